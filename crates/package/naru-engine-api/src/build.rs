//! `POST /build`, the builder that clients fall back to: the context becomes a blob of the store, the build an
//! `Image` object, and its events the lines that people know.

use std::io;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use futures::StreamExt;
use naru_builder::{Event, Order};
use naru_objects::{ImageSpec, Upload, kinds};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::answer::{Query, is_set, json_lines};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::names::short;

/// Query fields that mean something here, and those that only matter to Docker's own builder.
const HONOURED: &[&str] =
    &["buildargs", "dockerfile", "labels", "nocache", "platform", "pull", "q", "t", "target"];
const WITHOUT_EFFECT: &[&str] = &["forcerm", "rm", "version"];
/// What a client sends for nothing.
const NOTHING: &[&str] = &["", "0", "null", "[]", "{}", "false", "default"];

/// Field, flag, and what to do instead.
const REFUSED: &[(&str, &str, &str)] = &[
    ("cachefrom", "--cache-from", "the cache is the machine's own, by content"),
    ("extrahosts", "--add-host", "write the names into the step that needs them"),
    ("memory", "--memory", "builds share the slice of the pipelines"),
    ("networkmode", "--network", "steps have the network of a pod"),
    ("outputs", "--output", "use naru build --output"),
    ("remote", "a build from a URL", "clone it, and build the directory"),
    ("squash", "--squash", "use several stages"),
    ("shmsize", "--shm-size", "use RUN --mount=type=tmpfs"),
];

fn check(raw: &str) -> Result<()> {
    for pair in raw.split('&').filter(|it| !it.is_empty()) {
        let name = pair.split('=').next().unwrap_or_default();
        let parsed = Query::parse(Some(pair));
        let value = parsed.get(name).unwrap_or_default();
        if name == "version" && value == "2" {
            return Err(Error::refused(
                "BuildKit is spoken over /grpc and /session, as docker buildx does it: install buildx",
            ));
        }
        if HONOURED.contains(&name) || WITHOUT_EFFECT.contains(&name) || NOTHING.contains(&value) {
            continue;
        }
        return Err(match REFUSED.iter().find(|(it, ..)| *it == name) {
            Some((_, flag, why)) => Error::refused(format!("{flag} is not supported by docker build: {why}")),
            None => Error::refused(format!("the option {name} of a build is not supported")),
        });
    }
    Ok(())
}

/// The order that a request means. `digest` is the context's. Pure.
fn order(raw: &str, digest: &str) -> Result<Order> {
    check(raw)?;
    let query = Query::parse(Some(raw));
    let map = |name: &str| -> Result<std::collections::BTreeMap<String, String>> {
        let Some(text) = query.get(name).filter(|it| *it != "null") else { return Ok(Default::default()) };
        let value: Value = serde_json::from_str(text)
            .map_err(|_| Error::bad(format!("invalid value for {name}: {text}")))?;
        // An argument without a value is taken from the client's environment, and left out if it is not there.
        let pairs =
            value.as_object().into_iter().flatten().filter(|(_, value)| is_set(value) || value.is_string());
        Ok(pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect())
    };
    let tags: Vec<String> = raw
        .split('&')
        .filter(|it| it.starts_with("t="))
        .filter_map(|it| Query::parse(Some(it)).get("t").map(str::to_owned))
        .collect();
    for tag in &tags {
        naru_image::Reference::parse(tag)
            .map_err(|error| Error::bad(format!("invalid reference format: {error}")))?;
    }
    let spec = ImageSpec {
        upload: Some(Upload { digest: digest.to_owned(), ..Upload::default() }),
        service: "docker".into(),
        dockerfile: query.get("dockerfile").unwrap_or("Dockerfile").to_owned(),
        target: query.get("target").map(str::to_owned),
        args: map("buildargs")?,
        labels: map("labels")?,
        no_cache: query.is("nocache"),
        pull: query.is("pull"),
        platforms: query.get("platform").filter(|it| !it.is_empty()).map(str::to_owned).into_iter().collect(),
        tags,
        ..ImageSpec::default()
    };
    Ok(Order { spec, ..Order::default() })
}

pub async fn build(
    State(engine): State<Engine>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let raw = query.unwrap_or_default();
    check(&raw)?;
    let (scratch, path) = crate::transfer::spool(&engine.images, body).await?;
    let store = engine.images.clone();
    let digest = tokio::task::spawn_blocking(move || -> Result<naru_image::Digest> {
        let mut plain = naru_image::decompress(io::BufReader::new(std::fs::File::open(&path)?))?;
        let mut blob = store.begin_blob()?;
        io::copy(&mut plain, &mut blob)?;
        drop(scratch);
        Ok(blob.commit(None)?.0)
    });
    let digest = digest.await.map_err(|it| Error::server(it.to_string()))??;
    let order = order(&raw, digest.as_str())?;
    let tags = order.spec.tags.clone();
    let image = naru_builder::submit(&engine.client, &engine.config.builds_namespace, order).await?;
    let name = naru_objects::name_of(&image).to_owned();
    let (sender, receiver) = mpsc::channel(256);
    let logins = headers.get("x-registry-config").and_then(|it| it.to_str().ok()).unwrap_or_default();
    if !NOTHING.contains(&logins) && logins != "e30=" && logins != "bnVsbA==" {
        let note = "Note: base images are pulled with the daemon's own credentials, not with those of docker login\n";
        let _ = sender.send(json!({"stream": note})).await;
    }
    tokio::spawn(follow(engine, name, tags, sender));
    Ok(json_lines(tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

/// Tells the client of the build until it is over; a client that goes away ends it.
async fn follow(engine: Engine, name: String, tags: Vec<String>, sender: mpsc::Sender<Value>) {
    let mut events = std::pin::pin!(engine.builds.follow(&name));
    loop {
        let line = tokio::select! {
            line = events.next() => line,
            () = sender.closed() => None,
        };
        let Some(line) = line else { break };
        let Ok(event) = serde_json::from_str::<Event>(&line) else { continue };
        let is_last = event.is_last();
        for line in lines_of(event, &tags) {
            if sender.send(line).await.is_err() {
                break;
            }
        }
        if is_last {
            return;
        }
    }
    let gone = engine.client.delete(&kinds::IMAGE, &engine.config.builds_namespace, &name, None).await;
    if let Err(error) = gone {
        tracing::debug!(%error, "a build that nobody waits for goes on");
    }
}

/// One event as Docker tells it. Pure.
fn lines_of(event: Event, tags: &[String]) -> Vec<Value> {
    let stream = |text: String| json!({"stream": text});
    match event {
        Event::Step { number, total, text, .. } => vec![stream(format!("Step {number}/{total} : {text}\n"))],
        Event::Cached { number } => vec![stream(format!(" ---> Using cache ({number})\n"))],
        Event::Log { line, .. } => vec![stream(format!("{line}\n"))],
        Event::Finding { text } | Event::Note { text } => vec![stream(format!("{text}\n"))],
        Event::Finished { .. } => Vec::new(),
        Event::Done(image) => {
            let mut lines = vec![
                json!({"aux": {"ID": image.digest}}),
                stream(format!("Successfully built {}\n", short(image.digest.hex()))),
            ];
            lines.extend(tags.iter().map(|tag| stream(format!("Successfully tagged {tag}\n"))));
            lines
        }
        Event::Failed { report } => {
            vec![json!({"errorDetail": {"code": 1, "message": report}, "error": report})]
        }
    }
}

pub async fn prune() -> Result<Response> {
    Err(Error::refused("the build cache is not pruned by hand: what is not used goes by itself"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_becomes_an_order_or_is_refused() {
        let raw = "buildargs=%7B%22A%22%3A%22b%22%2C%22C%22%3Anull%7D&cachefrom=%5B%5D&cpuquota=0&dockerfile=x%2FDockerfile\
                   &labels=%7B%7D&memory=0&networkmode=default&nocache=1&rm=1&shmsize=0&t=a%3A1&t=b&target=last&ulimits=null\
                   &version=1";
        let order = order(raw, "sha256:0").unwrap();
        assert_eq!(order.spec.tags, ["a:1", "b"]);
        assert_eq!((order.spec.dockerfile.as_str(), order.spec.no_cache), ("x/Dockerfile", true));
        assert_eq!(super::order("platform=linux%2Fs390x", "").unwrap().spec.platforms, ["linux/s390x"]);
        assert_eq!(order.spec.args, std::collections::BTreeMap::from([("A".into(), "b".into())]));
        for (raw, said) in [
            ("squash=1", "--squash"),
            ("version=2", "BuildKit"),
            ("networkmode=host", "--network"),
            ("news=1", "news"),
            ("t=A%3A%3A", "invalid reference"),
        ] {
            assert!(super::order(raw, "").unwrap_err().message.contains(said), "{raw}");
        }
    }
}
