//! `POST /_hooks/<host>/<repository>`: verified, kept, done. The answer comes when it is done, or after a few
//! seconds, because hosts do not wait for longer.

use crate::Config;
use crate::event::{self, Event};
use crate::upstream::{Host, Upstream};
use crate::verify::verify;
use crate::work;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// GitHub sends at most 25 MB.
const BODY_BYTES_MAX: usize = 25 << 20;

/// GitHub gives up after ten seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);

/// What was promised is tried so often, with these pauses.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(2),
    Duration::from_secs(15),
    Duration::from_mins(1),
    Duration::from_mins(5),
    Duration::from_mins(20),
];

/// What of a delivery's headers must be known to read it again.
const EVENT_HEADERS: [&str; 4] = ["x-github-event", "x-gitlab-event", "x-gitea-event", "x-forgejo-event"];

/// The endpoint; cheap to clone.
#[derive(Clone)]
pub struct Hooks {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    /// One delivery of a repository at a time, in their order.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Hooks {
    pub fn open(config: Config) -> std::io::Result<Self> {
        std::fs::create_dir_all(&config.dir)?;
        Ok(Self { inner: Arc::new(Inner { config, turns: Mutex::default() }) })
    }

    pub fn router(&self) -> Router {
        Router::new().route("/_hooks/{host}/{repository}", post(handle)).with_state(self.clone())
    }

    /// Does what was accepted before the last end of the process, and not done.
    pub async fn resume(&self) {
        let mut kept: Vec<PathBuf> = std::fs::read_dir(&self.inner.config.dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|it| it.path())
            .collect();
        kept.sort();
        for path in kept {
            let read = std::fs::read(&path).ok().and_then(|it| serde_json::from_slice::<Value>(&it).ok());
            match read.as_ref().and_then(Delivery::of_value) {
                Some(delivery) => self.insist(path, &delivery).await,
                // What a write that was cut off has left; it was never acknowledged.
                None => drop(std::fs::remove_file(&path)),
            }
        }
    }

    /// Does what was acknowledged, again and again if need be: the host does not deliver it once more.
    async fn insist(&self, path: PathBuf, delivery: &Delivery) {
        for pause in PAUSES {
            match self.carry_out(delivery).await {
                Ok(done) => {
                    tracing::info!(repository = delivery.repository, done, "an event from outside");
                    break;
                }
                Err(_) => tokio::time::sleep(pause).await,
            }
        }
        let _ = std::fs::remove_file(path);
    }

    async fn carry_out(&self, delivery: &Delivery) -> Result<String, String> {
        let turn = {
            let mut turns = self.inner.turns.lock().expect("nothing panics while it holds this");
            turns.entry(delivery.repository.clone()).or_default().clone()
        };
        let _turn = turn.lock().await;
        let config = &self.inner.config;
        let done = async {
            let event = event::read(delivery.host, &delivery.headers, delivery.body.as_bytes())?;
            if let Event::Nothing(why) = event {
                return Ok(why);
            }
            let upstream = Upstream::read(&config.client, &config.namespace, &delivery.repository).await;
            let upstream = upstream.map_err(|it| naru_client::chain(&it))?.ok_or("the upstream is gone")?;
            work::execute(config, &delivery.repository, &upstream, event, &delivery.digest()).await
        };
        let done = done.await;
        if let Err(error) = &done {
            tracing::warn!(repository = delivery.repository, error, "an event from outside came to nothing");
        }
        done
    }
}

/// One verified call.
struct Delivery {
    host: Host,
    repository: String,
    headers: HeaderMap,
    body: String,
}

impl Delivery {
    /// The same event delivered twice has the same digest: what it makes is named after it.
    fn digest(&self) -> String {
        Sha256::digest(&self.body).iter().take(5).map(|it| format!("{it:02x}")).collect()
    }

    fn to_value(&self) -> Value {
        let headers: HashMap<&str, &str> = EVENT_HEADERS
            .iter()
            .filter_map(|it| Some((*it, self.headers.get(*it)?.to_str().ok()?)))
            .collect();
        json!({"host": self.host.name(), "repository": self.repository, "headers": headers, "body": self.body})
    }

    fn of_value(value: &Value) -> Option<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in value["headers"].as_object()? {
            headers.insert(HeaderName::try_from(name).ok()?, HeaderValue::from_str(value.as_str()?).ok()?);
        }
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        Some(Self {
            host: Host::parse(&text("host")?)?,
            repository: text("repository")?,
            headers,
            body: text("body")?,
        })
    }
}

async fn handle(
    State(hooks): State<Hooks>,
    Path((host, repository)): Path<(String, String)>,
    request: Request,
) -> Response {
    match accept(&hooks, &host, repository, request).await {
        Ok((status, text)) => (status, format!("{text}\n")).into_response(),
        Err((status, text)) => {
            tracing::warn!(host, status = status.as_u16(), reason = text, "a webhook is refused");
            (status, format!("{text}\n")).into_response()
        }
    }
}

type Answer = (StatusCode, String);

async fn accept(hooks: &Hooks, host: &str, repository: String, request: Request) -> Result<Answer, Answer> {
    let config = &hooks.inner.config;
    let host = Host::parse(host).ok_or_else(|| {
        (StatusCode::NOT_FOUND, "the hosts are github, gitlab, gitea and forgejo".to_owned())
    })?;
    let headers = request.headers().clone();
    let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
    let body = body.map_err(|_| {
        (StatusCode::PAYLOAD_TOO_LARGE, format!("a delivery has at most {BODY_BYTES_MAX} bytes"))
    })?;
    let internal = |it: String| (StatusCode::INTERNAL_SERVER_ERROR, it);
    let upstream = match naru_git::is_valid_name(&repository) {
        true => Upstream::read(&config.client, &config.namespace, &repository)
            .await
            .map_err(|it| internal(naru_client::chain(&it)))?,
        false => None,
    };
    // Whoever does not know the secret does not learn which repositories there are.
    let secret = upstream.filter(|it| it.host == host).map(|it| it.hook_secret).unwrap_or_default();
    verify(host, &headers, &body, &secret).map_err(|it| (StatusCode::UNAUTHORIZED, it.to_string()))?;
    let body = String::from_utf8(body.to_vec())
        .map_err(|_| (StatusCode::BAD_REQUEST, "the body is no text".into()))?;
    let delivery = Delivery { host, repository, headers, body };
    // Nonsense is said at once, and not kept.
    if let Event::Nothing(why) = event::read(host, &delivery.headers, delivery.body.as_bytes())
        .map_err(|it| (StatusCode::BAD_REQUEST, it))?
    {
        return Ok((StatusCode::OK, why));
    }
    let path =
        keep(config, &delivery).map_err(|it| internal(format!("the delivery cannot be kept: {it}")))?;
    let hooks = hooks.clone();
    let (answer, answered) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let done = hooks.carry_out(&delivery).await;
        let failed = done.is_err();
        // Nobody waits any more: the host was told that it is under way.
        let is_promised = answer.send(done).is_err();
        match failed && is_promised {
            true => hooks.insist(path, &delivery).await,
            false => drop(std::fs::remove_file(path)),
        }
    });
    match tokio::time::timeout(ANSWER_WITHIN, answered).await {
        Err(_) => Ok((StatusCode::ACCEPTED, "it is being fetched".into())),
        Ok(Ok(Ok(done))) => Ok((StatusCode::OK, done)),
        Ok(Ok(Err(why))) => Err((StatusCode::BAD_GATEWAY, why)),
        Ok(Err(_)) => Err(internal("the event broke something (this is a bug in Naru)".into())),
    }
}

/// Writes a delivery down before it is acknowledged. The name sorts by time.
fn keep(config: &Config, delivery: &Delivery) -> std::io::Result<PathBuf> {
    let now = jiff::Timestamp::now().as_microsecond();
    let path = config.dir.join(format!("{now:020}-{}", delivery.digest()));
    let mut file = std::fs::File::create(&path)?;
    file.write_all(delivery.to_value().to_string().as_bytes())?;
    file.sync_all()?;
    std::fs::File::open(&config.dir)?.sync_all()?;
    Ok(path)
}
