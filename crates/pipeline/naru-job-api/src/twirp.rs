//! The two services of GitHub's results interface: Twirp calls with JSON bodies. Clients send names in
//! snake case, as the protocol's own files have them, or in camel case; both are read, snake case is written.

use crate::artifacts::{Artifact, NewArtifact, ZIP};
use crate::auth::{Job, base_url};
use crate::azure::{Link, Right};
use crate::problem::{Kind, Result, problem};
use crate::{Inner, Shared};
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::header;
use jiff::Timestamp;
use serde_json::{Value, json};

/// The largest message; they hold names and a few numbers.
const MESSAGE_BYTES_MAX: usize = 256 << 10;

pub async fn artifacts(
    State(inner): State<Shared>,
    Path(method): Path<String>,
    request: Request,
) -> Response {
    let answer = async {
        let call = Call::read(&inner, request).await?;
        match method.as_str() {
            "CreateArtifact" => create_artifact(&inner, &call).await,
            "FinalizeArtifact" => finalize_artifact(&inner, &call).await,
            "ListArtifacts" => list_artifacts(&inner, &call).await,
            "GetSignedArtifactURL" => artifact_url(&inner, &call).await,
            "DeleteArtifact" => delete_artifact(&inner, &call).await,
            _ => Err(no_such("ArtifactService", &method)),
        }
    };
    answered(answer.await)
}

pub async fn caches(State(inner): State<Shared>, Path(method): Path<String>, request: Request) -> Response {
    let answer = async {
        let call = Call::read(&inner, request).await?;
        match method.as_str() {
            "CreateCacheEntry" => create_cache(&inner, &call).await,
            "FinalizeCacheEntryUpload" => finalize_cache(&inner, &call).await,
            "GetCacheEntryDownloadURL" => cache_url(&inner, &call).await,
            _ => Err(no_such("CacheService", &method)),
        }
    };
    answered(answer.await)
}

fn answered(answer: Result<Value>) -> Response {
    match answer {
        Ok(message) => axum::Json(message).into_response(),
        Err(problem) => problem.twirp(),
    }
}

fn no_such(service: &str, method: &str) -> crate::problem::Problem {
    problem(Kind::NotFound, format!("{service} has no method {method} here"))
}

/// One call: who asks for what, and under which URL it reached us.
struct Call {
    job: Job,
    message: Value,
    base: String,
    now: Timestamp,
}

impl Call {
    async fn read(inner: &Inner, request: Request) -> Result<Self> {
        let job = inner.job(request.headers()).await?;
        let base = base_url(request.headers(), request.uri());
        let kind =
            request.headers().get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/json") {
            return Err(problem(
                Kind::Invalid,
                format!("messages are JSON (application/json), not `{kind}`"),
            ));
        }
        let body = axum::body::to_bytes(request.into_body(), MESSAGE_BYTES_MAX).await;
        let body = body.map_err(|_| {
            problem(Kind::TooLarge, format!("a message has at most {MESSAGE_BYTES_MAX} bytes"))
        })?;
        let message: Value = serde_json::from_slice(&body)
            .map_err(|it| problem(Kind::Invalid, format!("the message is no JSON: {it}")))?;
        Ok(Self { job, message, base, now: Timestamp::now() })
    }

    /// A field by its name in snake case.
    fn field(&self, name: &str) -> &Value {
        match &self.message[name] {
            Value::Null => &self.message[camel(name)],
            it => it,
        }
    }

    fn text(&self, name: &str) -> Result<&str> {
        match self.field(name).as_str() {
            Some(it) if !it.is_empty() => Ok(it),
            _ => Err(problem(Kind::Invalid, format!("the message has no {name}"))),
        }
    }

    /// A 64-bit number, which JSON of protobuf writes as text.
    fn number(&self, name: &str) -> Result<Option<u64>> {
        match self.field(name) {
            Value::Null => Ok(None),
            Value::String(it) if it.is_empty() => Ok(None),
            Value::String(it) => it.parse().map(Some).map_err(|_| it),
            it => it.as_u64().map(Some).ok_or(it).map_err(|_| &EMPTY),
        }
        .map_err(|_| problem(Kind::Invalid, format!("{name} is no number")))
    }

    /// The run that the message speaks of must be the token's, or an earlier attempt of it.
    fn check_run(&self) -> Result<()> {
        let run = self.text("workflow_run_backend_id")?;
        match self.job.family.iter().any(|it| it == run) {
            true => Ok(()),
            false => Err(problem(Kind::Denied, "the token is not of this run")),
        }
    }

    /// For whoever writes: the job must be the token's, too.
    fn check_job(&self) -> Result<()> {
        let run = self.text("workflow_run_backend_id")?;
        let job = self.text("workflow_job_run_backend_id")?;
        let claims = &self.job.claims;
        match run == claims.run_uid && job == naru_token::scope_part(&claims.job) {
            true => Ok(()),
            false => Err(problem(Kind::Denied, "the token is not of this job")),
        }
    }
}

static EMPTY: String = String::new();

fn camel(name: &str) -> String {
    let mut upper = false;
    let mut out = String::with_capacity(name.len());
    for it in name.chars() {
        match it {
            '_' => upper = true,
            it if std::mem::take(&mut upper) => out.push(it.to_ascii_uppercase()),
            it => out.push(it),
        }
    }
    out
}

async fn create_artifact(inner: &Inner, call: &Call) -> Result<Value> {
    call.check_job()?;
    let version = call.number("version")?.unwrap_or(0);
    if version < 4 {
        return Err(problem(
            Kind::Invalid,
            format!("version {version} of artifacts is not served; use @v4 of the action"),
        ));
    }
    let expires_at = match call.field("expires_at") {
        Value::Null => None,
        it => Some(
            it.as_str()
                .and_then(|it| it.parse().ok())
                .ok_or_else(|| problem(Kind::Invalid, "expires_at is no time (RFC 3339)"))?,
        ),
    };
    let new = NewArtifact {
        name: call.text("name")?.to_owned(),
        media_type: call.field("mime_type").as_str().filter(|it| !it.is_empty()).unwrap_or(ZIP).to_owned(),
        expires_at,
    };
    let artifact = inner.artifacts.create(&inner.blobs, &call.job, new, call.now).await?;
    let url = inner.link(&call.base, &Link::upload(&artifact.blob), call.now);
    Ok(json!({"ok": true, "signed_upload_url": url}))
}

async fn finalize_artifact(inner: &Inner, call: &Call) -> Result<Value> {
    call.check_job()?;
    let (name, digest) = (call.text("name")?, call.field("hash").as_str());
    let bytes = call.number("size")?;
    let id = inner.artifacts.finalize(&inner.blobs, &call.job, name, bytes, digest, call.now).await?;
    Ok(json!({"ok": true, "artifact_id": id.to_string()}))
}

async fn list_artifacts(inner: &Inner, call: &Call) -> Result<Value> {
    call.check_run()?;
    let (name, id_wanted) = (call.field("name_filter").as_str(), call.number("id_filter")?);
    let found = inner.artifacts.list(call.now, |id, it| {
        call.job.family.contains(&it.run_uid)
            && name.is_none_or(|name| it.name == name)
            && id_wanted.is_none_or(|it| it == id)
    });
    let message = |(id, it): &(u64, Artifact)| {
        let ended = it.ended.as_ref().expect("only what has ended is listed");
        json!({
            "workflow_run_backend_id": it.run_uid, "workflow_job_run_backend_id": naru_token::scope_part(&it.job),
            "database_id": id.to_string(), "name": it.name, "size": ended.bytes.to_string(),
            "created_at": it.created_at.to_string(), "digest": ended.digest,
        })
    };
    Ok(json!({"artifacts": found.await.iter().map(message).collect::<Vec<_>>()}))
}

/// The newest finished artifact of this name that the run or an earlier attempt of it has left.
async fn named(inner: &Inner, call: &Call) -> Result<(u64, Artifact)> {
    call.check_run()?;
    let name = call.text("name")?;
    let run = call.text("workflow_run_backend_id")?;
    let found = inner.artifacts.list(call.now, |_, it| it.run_uid == run && it.name == name).await;
    found.into_iter().next_back().ok_or_else(|| {
        problem(
            Kind::NotFound,
            format!("the run has no artifact `{name}`, or its upload has not ended, or it has expired"),
        )
    })
}

async fn artifact_url(inner: &Inner, call: &Call) -> Result<Value> {
    let (_, artifact) = named(inner, call).await?;
    let url = inner.link(&call.base, &Link::of_artifact(&artifact), call.now);
    Ok(json!({"signed_url": url}))
}

async fn delete_artifact(inner: &Inner, call: &Call) -> Result<Value> {
    let (id, artifact) = named(inner, call).await?;
    if artifact.run_uid != call.job.claims.run_uid {
        return Err(problem(Kind::Denied, "an earlier attempt's artifacts are not deleted"));
    }
    inner.artifacts.remove(&inner.blobs, id).await?;
    Ok(json!({"ok": true, "artifact_id": id.to_string()}))
}

async fn create_cache(inner: &Inner, call: &Call) -> Result<Value> {
    let (key, version) = (call.text("key")?, call.text("version")?);
    let reserved = inner.reserve_cache(&call.job.claims, key, version, None, call.now).await;
    match reserved {
        Ok((_, blob)) => {
            let url = inner.link(&call.base, &Link::upload(&blob), call.now);
            Ok(json!({"ok": true, "signed_upload_url": url}))
        }
        // The clients look for this one in the answer, not in an error.
        Err(it) if it.kind == Kind::Denied => Ok(json!({"ok": false, "message": it.message})),
        Err(it) => Err(it),
    }
}

async fn finalize_cache(inner: &Inner, call: &Call) -> Result<Value> {
    let (key, version) = (call.text("key")?, call.text("version")?);
    let bytes = call.number("size_bytes")?;
    let named = |_: u64, it: &crate::cache::Entry| it.key == key && it.version == version;
    let (id, _) = inner.caches.pending(&call.job.claims, named).await?;
    let id = inner.caches.finalize(&inner.blobs, id, bytes, call.now).await?;
    Ok(json!({"ok": true, "entry_id": id.to_string()}))
}

async fn cache_url(inner: &Inner, call: &Call) -> Result<Value> {
    let mut keys = vec![call.text("key")?.to_owned()];
    let more = call.field("restore_keys").as_array();
    keys.extend(more.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned));
    let found = inner.caches.find(&call.job.claims, &keys, call.text("version")?, call.now).await?;
    let Some((_, entry)) = found else { return Ok(json!({"ok": false})) };
    let url = inner.link(&call.base, &Link::download(&entry.blob, Right::Read), call.now);
    Ok(json!({"ok": true, "signed_download_url": url, "matched_key": entry.key}))
}
