//! Images in and out: registries, archives, root file systems.

use std::fs::File;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use base64::Engine as _;
use futures::StreamExt;
use http::HeaderMap;
use naru_client::chain;
use naru_image::oci::{ImageConfig, architecture, media_type};
use naru_image::{CommitOptions, Credential, ImageStore, PushEvent, Reference};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::answer::{Query, json_lines, text, texts};
use crate::caller::Caller;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::names::short;

/// An error within this time is told by its status; later ones come in the stream.
const FIRST_WORDS: Duration = Duration::from_millis(1500);

/// `X-Registry-Auth`: what `docker login` keeps, for this one request.
pub fn credentials(headers: &HeaderMap, registry: &str) -> Result<Vec<Credential>> {
    let found = login(headers, registry)?;
    Ok(Caller::of(headers).logins(registry, found))
}

fn login(headers: &HeaderMap, registry: &str) -> Result<Vec<Credential>> {
    let Some(value) = headers.get("x-registry-auth").and_then(|it| it.to_str().ok()) else {
        return Ok(Vec::new());
    };
    let engines = [
        &base64::engine::general_purpose::URL_SAFE,
        &base64::engine::general_purpose::STANDARD,
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
    ];
    let bytes = engines.iter().find_map(|it| it.decode(value.trim()).ok());
    let bytes = bytes.ok_or_else(|| Error::bad("invalid X-Registry-Auth header"))?;
    let login: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let (mut user, mut password) =
        (text(&login, "/username").to_owned(), text(&login, "/password").to_owned());
    if user.is_empty()
        && let Ok(pair) = base64::engine::general_purpose::STANDARD.decode(text(&login, "/auth"))
        && let Some((a, b)) = String::from_utf8_lossy(&pair).split_once(':')
    {
        (user, password) = (a.to_owned(), b.to_owned());
    }
    if user.is_empty() && password.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Credential { registry: registry.to_owned(), user, password }])
}

/// A stream of progress whose first error still has a status of its own.
async fn progress<F>(work: impl FnOnce(mpsc::Sender<Value>) -> F) -> Result<Response>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let last = sender.clone();
    let mut task = tokio::spawn(work(sender));
    match tokio::time::timeout(FIRST_WORDS, &mut task).await {
        Ok(Ok(done)) => done?,
        Ok(Err(error)) => return Err(Error::server(error.to_string())),
        Err(_) => {
            tokio::spawn(async move {
                let failed = match task.await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.message,
                    Err(error) => error.to_string(),
                };
                let _ = last.send(json!({"errorDetail": {"message": failed}, "error": failed})).await;
            });
        }
    }
    Ok(json_lines(tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

/// `docker pull`, and `docker import`.
pub async fn create(
    State(engine): State<Engine>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    if let Some(from) = query.get("fromSrc") {
        if from != "-" {
            return Err(Error::refused(
                "docker import from a URL is not supported: fetch it, and import the file",
            ));
        }
        return import(engine, query, body).await;
    }
    crate::system::check_platform(query.get("platform"))?;
    let name = query.get("fromImage").ok_or_else(|| Error::bad("fromImage is missing"))?;
    let wanted = match query.get("tag") {
        Some(digest) if digest.starts_with("sha256:") => format!("{name}@{digest}"),
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    };
    let reference = match engine.images.resolve_name(&wanted)? {
        naru_image::Resolved::Host => {
            let line = json!({"status": format!("Status: Image is up to date for {wanted}: it is this machine's own root")});
            return Ok(json_lines(futures::stream::once(async { line })));
        }
        naru_image::Resolved::Name(reference) => reference,
    };
    if reference.is_local_only() {
        return Err(Error::missing(format!(
            "{wanted} is only ever built here; there is nowhere to pull it from"
        )));
    }
    let credentials = credentials(&headers, &reference.registry)?;
    progress(move |sender| async move {
        let tag =
            reference.tag.clone().or(reference.digest.as_ref().map(|it| it.to_string())).unwrap_or_default();
        let repository = reference.name();
        let repository = repository.strip_prefix("docker.io/").unwrap_or(&repository);
        let _ = sender.send(json!({"status": format!("Pulling from {repository}"), "id": tag})).await;
        let before = engine.images.find(&reference)?.map(|it| it.digest);
        let digest = engine.images.pull_with(&reference, &credentials).await?;
        if let Ok(manifest) = engine.images.manifest(&digest) {
            for layer in &manifest.layers {
                let line =
                    json!({"status": "Pull complete", "progressDetail": {}, "id": short(layer.digest.hex())});
                let _ = sender.send(line).await;
            }
        }
        let _ = sender.send(json!({"status": format!("Digest: {digest}")})).await;
        let status = match before.as_ref() == Some(&digest) {
            true => "Image is up to date for",
            false => "Downloaded newer image for",
        };
        let _ = sender.send(json!({"status": format!("Status: {status} {}", reference.familiar())})).await;
        engine.events.tell("image", "pull", &reference.familiar(), json!({"name": reference.familiar()}));
        Ok(())
    })
    .await
}

pub async fn push(engine: &Engine, name: &str, query: &Query, headers: &HeaderMap) -> Result<Response> {
    crate::system::check_platform(query.get("platform"))?;
    let wanted = match query.get("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    };
    let target = Reference::parse(&wanted)
        .map_err(|error| Error::bad(format!("invalid reference format: {error}")))?;
    let found = engine.images.find(&target)?;
    let found = found
        .ok_or_else(|| Error::missing(format!("An image does not exist locally with the tag: {name}")))?;
    if target.is_local_only() {
        return Err(Error::bad(format!("{wanted} has no registry; give it another name with docker tag")));
    }
    let credentials = credentials(headers, &target.registry)?;
    let engine = engine.clone();
    progress(move |sender| async move {
        let first = json!({"status": format!("The push refers to repository [{}]", target.name())});
        let _ = sender.send(first).await;
        let tell = sender.clone();
        let told = move |event: PushEvent| {
            let line = match event {
                PushEvent::Exists(digest) => {
                    json!({"status": "Layer already exists", "id": short(digest.hex())})
                }
                PushEvent::Mounted { digest, from } => {
                    json!({"status": format!("Mounted from {from}"), "id": short(digest.hex())})
                }
                PushEvent::Pushing { digest, size } => json!({"status": "Pushing", "id": short(digest.hex()),
                    "progressDetail": {"current": 0, "total": size}}),
                PushEvent::Pushed(digest) => json!({"status": "Pushed", "id": short(digest.hex())}),
                PushEvent::Done { digest, size, name } => {
                    let told = json!({"status": format!("{name}: digest: {digest} size: {size}")});
                    let _ = tell.try_send(told);
                    json!({"progressDetail": {}, "aux": {"Tag": name, "Digest": digest, "Size": size}})
                }
            };
            // Progress is worth no waiting.
            let _ = tell.try_send(line);
        };
        engine.images.push(&found.digest, &target, &credentials, &told).await?;
        engine.events.tell("image", "push", &target.familiar(), json!({"name": target.familiar()}));
        Ok(())
    })
    .await
}

/// The request's body in a file.
pub async fn spool(store: &ImageStore, body: Body) -> Result<(tempfile::TempDir, PathBuf)> {
    use tokio::io::AsyncWriteExt;
    let directory = store.scratch_dir()?;
    let path = directory.path().join("body");
    let mut file = tokio::fs::File::create(&path).await?;
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Error::bad(format!("cannot read the request: {error}")))?;
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    Ok((directory, path))
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|it| Error::server(it.to_string()))?
}

/// A configuration with nothing but what every one has.
pub fn fresh_config() -> ImageConfig {
    ImageConfig {
        created: Some(crate::answer::now()),
        architecture: architecture().into(),
        os: "linux".into(),
        ..ImageConfig::default()
    }
}

async fn import(engine: Engine, query: Query, body: Body) -> Result<Response> {
    let changes: Vec<&str> = query.get("changes").into_iter().collect();
    let mut config = fresh_config();
    for change in changes {
        apply_change(&mut config, change)?;
    }
    let message = query.get("message").unwrap_or("Imported from -").to_owned();
    let target = match (query.get("repo"), query.get("tag")) {
        (None, _) => None,
        (Some(name), Some(tag)) => Some(format!("{name}:{tag}")),
        (Some(name), None) => Some(name.to_owned()),
    };
    let target = target
        .map(|it| {
            Reference::parse(&it).map_err(|error| Error::bad(format!("invalid reference format: {error}")))
        })
        .transpose()?;
    let target = target.ok_or_else(|| {
        Error::refused("docker import without a name is not supported: what has no name is removed soon")
    })?;
    let store = engine.images.clone();
    let (_scratch, path) = spool(&store, body).await?;
    let name = target.clone();
    let digest = blocking(move || {
        let directory = store.scratch_dir()?;
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut plain = naru_image::decompress(io::BufReader::new(File::open(path)?))?;
        naru_image::unpack(&mut plain, directory.path())
            .map_err(|error| Error::bad(format!("cannot import: {}", chain(&error))))?;
        let layer = store.add_layer(directory, CommitOptions::default())?;
        config.history = serde_json::from_value(json!([{"created": config.created, "comment": message}]))
            .unwrap_or_default();
        let digest = store.put_image(&config, &[layer], naru_image::Base::Own)?;
        store.tag(&name, &digest, media_type::MANIFEST)?;
        Ok(digest)
    })
    .await?;
    engine.events.tell("image", "import", digest.as_str(), json!({"name": target.familiar()}));
    let line = json!({"status": digest});
    Ok(json_lines(futures::stream::once(async { line })))
}

/// `--change`: one instruction of a Dockerfile laid over a configuration.
pub fn apply_change(config: &mut ImageConfig, change: &str) -> Result<()> {
    let (word, rest) = change.trim().split_once(char::is_whitespace).unwrap_or((change.trim(), ""));
    let rest = rest.trim();
    let list = || -> Vec<String> {
        match serde_json::from_str::<Vec<String>>(rest) {
            Ok(list) => list,
            Err(_) => vec!["/bin/sh".into(), "-c".into(), rest.into()],
        }
    };
    let run = &mut config.config;
    match word.to_ascii_uppercase().as_str() {
        "CMD" => run.cmd = list(),
        "ENTRYPOINT" => run.entrypoint = list(),
        "USER" => run.user = rest.into(),
        "WORKDIR" => run.working_dir = rest.into(),
        "STOPSIGNAL" => run.stop_signal = Some(rest.into()),
        "ENV" | "LABEL" => {
            let (name, value) = rest
                .split_once(['=', ' '])
                .ok_or_else(|| Error::bad(format!("{word} must have two arguments")))?;
            let value = value.trim().trim_matches('"');
            match word.eq_ignore_ascii_case("ENV") {
                true => run.set_env(name, value),
                false => drop(run.labels.insert(name.into(), value.into())),
            }
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let (number, protocol) = crate::ports::parse_port(port)?;
                run.exposed_ports.insert(format!("{number}/{protocol}"), json!({}));
            }
        }
        "VOLUME" => {
            let paths: Vec<String> = serde_json::from_str(rest)
                .unwrap_or_else(|_| rest.split_whitespace().map(str::to_owned).collect());
            run.volumes.extend(paths.into_iter().map(|it| (it, json!({}))));
        }
        "HEALTHCHECK" if rest.eq_ignore_ascii_case("NONE") => {
            run.healthcheck = Some(json!({"Test": ["NONE"]}))
        }
        _ => return Err(Error::refused(format!("--change {word} is not supported"))),
    }
    Ok(())
}

/// `docker commit`.
pub async fn commit(State(engine): State<Engine>, RawQuery(query): RawQuery, body: Body) -> Result<Response> {
    let raw = query.unwrap_or_default();
    let changes: Vec<String> = raw
        .split('&')
        .filter(|it| it.starts_with("changes="))
        .filter_map(|it| Query::parse(Some(it)).get("changes").map(str::to_owned))
        .flat_map(|it| it.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let query = Query::parse(Some(&raw));
    let given = crate::answer::json_body(body).await?;
    let container = engine.container(query.get("container").unwrap_or_default())?;
    let _turn = engine.turn(container.id()).await;
    let found = engine.find_image(&container.record.digest)?;
    let base = engine.load_image(&found).await?;
    let mut config = base.config.clone();
    // What the container was told counts, as in Docker.
    let own = container.record.config.clone();
    let environment = texts(&own["Env"]);
    config.config.env = environment;
    config.config.cmd = texts(&own["Cmd"]);
    config.config.entrypoint = texts(&own["Entrypoint"]);
    config.config.user = text(&own, "/User").to_owned();
    config.config.working_dir = text(&own, "/WorkingDir").to_owned();
    for (name, value) in own["Labels"].as_object().into_iter().flatten() {
        config.config.labels.insert(name.clone(), value.as_str().unwrap_or_default().to_owned());
    }
    if !texts(&given["Cmd"]).is_empty() {
        config.config.cmd = texts(&given["Cmd"]);
    }
    for change in &changes {
        apply_change(&mut config, change)?;
    }
    config.created = Some(crate::answer::now());
    if let Some(author) = query.get("author") {
        config.rest.insert("author".into(), json!(author));
    }
    let target = query.get("repo").map(|name| match query.get("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    });
    // What has no name would be removed soon.
    let target = target.unwrap_or_else(|| format!("commit:{}", short(&crate::names::random_id())));
    let target = Reference::parse(&target)
        .map_err(|error| Error::bad(format!("invalid reference format: {error}")))?;
    let (namespace, pod) = (container.namespace(), container.pod_name());
    let running = container.state().status == crate::container::Status::Running;
    let frozen = running && query.is_or("pause", true);
    if frozen {
        engine.node.freeze(namespace, pod, true).await?;
    }
    let files = engine.node.files(namespace, pod)?;
    let store = engine.images.clone();
    let comment = query.get("comment").unwrap_or_default().to_owned();
    let command = crate::create::command_line(&container.record.config).join(" ");
    let name = target.clone();
    let packed = blocking(move || {
        let mut layers = base.layers.clone();
        let directory = store.scratch_dir()?;
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        if let Some(files) = &files {
            copy_upper(&store, files, directory.path())?;
        }
        layers.push(store.add_layer(directory, CommitOptions::default())?);
        let mut history = serde_json::to_value(&config.history).unwrap_or_default();
        if let Some(list) = history.as_array_mut() {
            list.push(json!({"created": config.created, "created_by": command, "comment": comment}));
        }
        config.history = serde_json::from_value(history).unwrap_or_default();
        let over = if base.host.is_some() { naru_image::Base::Host } else { naru_image::Base::Own };
        let digest = store.put_image(&config, &layers, over)?;
        store.tag(&name, &digest, media_type::MANIFEST)?;
        Ok(digest)
    })
    .await;
    if frozen {
        engine.node.freeze(namespace, pod, false).await?;
    }
    let digest = packed?;
    engine.tell_container("commit", &container, json!({"imageID": digest, "imageRef": target.familiar()}));
    Ok(crate::answer::created(json!({"Id": digest})))
}

/// Copies what a container wrote, without what the runtime made only to mount on.
fn copy_upper(store: &ImageStore, files: &crate::node::Files, to: &FilePath) -> Result<()> {
    let scratch = store.scratch_dir()?;
    let path = scratch.path().join("layer.tar");
    let out = io::BufWriter::new(File::create(&path)?);
    let failed = |error: &dyn std::error::Error| {
        Error::server(format!("cannot copy the container's files: {}", chain(error)))
    };
    naru_image::pack(&files.upper, None, out).map_err(|error| failed(&error))?;
    naru_image::unpack(&mut io::BufReader::new(File::open(&path)?), to).map_err(|error| failed(&error))?;
    for stub in crate::archive::stubs(files) {
        let Ok(relative) = stub.strip_prefix("/") else { continue };
        let place = to.join(relative);
        match place.symlink_metadata() {
            // What is not empty is the container's own, and stays.
            Ok(meta) if meta.is_dir() => drop(std::fs::remove_dir(&place)),
            Ok(meta) if meta.is_file() && meta.len() == 0 => std::fs::remove_file(&place)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_come_in_a_header() {
        let mut headers = HeaderMap::new();
        let login = json!({"username": "u", "password": "p", "serveraddress": "r"}).to_string();
        let value = base64::engine::general_purpose::URL_SAFE.encode(login);
        headers.insert("x-registry-auth", value.parse().unwrap());
        let found = credentials(&headers, "r.example").unwrap();
        assert_eq!((found[0].registry.as_str(), found[0].user.as_str()), ("r.example", "u"));
        headers.insert("x-registry-auth", "e30=".parse().unwrap());
        assert!(credentials(&headers, "r.example").unwrap().is_empty(), "nobody is logged in");
    }

    #[test]
    fn changes_are_instructions() {
        let mut config = fresh_config();
        for change in ["CMD [\"a\", \"b\"]", "ENV A=1", "EXPOSE 80 53/udp", "LABEL x=\"y\"", "ENTRYPOINT run"]
        {
            apply_change(&mut config, change).unwrap();
        }
        assert_eq!(config.config.cmd, ["a", "b"]);
        assert_eq!(config.config.entrypoint, ["/bin/sh", "-c", "run"]);
        assert!(config.config.exposed_ports.contains_key("53/udp"));
        assert_eq!(config.config.labels["x"], "y");
        assert!(apply_change(&mut config, "RUN x").is_err());
    }
}
