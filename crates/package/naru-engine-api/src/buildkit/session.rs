//! Sessions: a client lends the daemon its files, secrets and logins for the time of a build, as services on a
//! connection that it opened itself.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use naru_image::Credential;
use tokio::sync::Notify;

use super::grpc::{Channel, Messages, Result, Sender, Status, code};
use super::wire;

/// A client opens its session and its build at the same time.
const SESSION_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Sessions {
    open: Mutex<HashMap<String, Session>>,
    changed: Notify,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Session {
    channel: Channel,
    /// Lower case, `/package.service/method`.
    methods: Arc<HashSet<String>>,
}

impl Sessions {
    /// Serves a session until its client closes it.
    pub async fn hold(&self, headers: HeaderMap, upgrade: OnUpgrade) {
        let id =
            headers.get("x-docker-expose-session-uuid").and_then(|it| it.to_str().ok()).unwrap_or_default();
        let methods = headers.get_all("x-docker-expose-session-grpc-method").iter();
        let methods = methods.filter_map(|it| it.to_str().ok()).map(str::to_ascii_lowercase).collect();
        let Ok(connection) = upgrade.await else { return };
        let (channel, driven) = match Channel::new(connection).await {
            Ok(it) => it,
            Err(error) => return tracing::debug!(%error, "a BuildKit session did not begin"),
        };
        let session = Session { channel, methods: Arc::new(methods) };
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), session);
        self.changed.notify_waiters();
        driven.await;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub async fn get(&self, id: &str) -> Result<Session> {
        let found = || {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.get(id).filter(|it| !it.channel.is_closed()).cloned()
        };
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if let Some(session) = found() {
                    return session;
                }
                changed.await;
            }
        };
        let none = || Status::new(code::NOT_FOUND, format!("no active session for {id}"));
        tokio::time::timeout(SESSION_PATIENCE, wait).await.map_err(|_| none())
    }
}

impl Session {
    pub fn offers(&self, method: &str) -> bool {
        self.methods.contains(&method.to_ascii_lowercase())
    }

    /// The files of a directory that the client lends by this name. Lists of patterns go as metadata.
    pub fn files(&self, name: &str, follow: &[String], exclude: &[String]) -> Result<(Sender, Messages)> {
        let mut metadata = HeaderMap::new();
        for (key, values) in
            [("dir-name", &[name.to_owned()][..]), ("followpaths", follow), ("exclude-patterns", exclude)]
        {
            // Percent-encoding is announced for what headers cannot hold.
            let plain = values.iter().all(|it| it.is_ascii() && !it.bytes().any(|it| it.is_ascii_control()));
            for value in values {
                let value = if plain { value.clone() } else { encoded(value) };
                if let Ok(value) = HeaderValue::from_str(&value) {
                    metadata.append(key, value);
                }
            }
            if !plain {
                let key = match key {
                    "followpaths" => "followpaths-encoded",
                    "exclude-patterns" => "exclude-patterns-encoded",
                    _ => "dir-name-encoded",
                };
                metadata.insert(key, HeaderValue::from_static("1"));
            }
        }
        self.channel.duplex("/moby.filesync.v1.FileSync/DiffCopy", metadata)
    }

    /// Where the client takes the result with this number: a file's bytes, or files.
    pub fn result(&self, number: usize) -> Result<(Sender, Messages)> {
        const METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";
        if !self.offers(METHOD) {
            return Err(Status::refused("the client takes no files"));
        }
        let mut metadata = HeaderMap::new();
        metadata.insert("buildkit-attachable-exporter-id", HeaderValue::from(number));
        self.channel.duplex(METHOD, metadata)
    }

    /// `None`: the client has no secret of this name.
    pub async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>> {
        const METHOD: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";
        if !self.offers(METHOD) {
            return Ok(None);
        }
        let question = wire::SecretRequest { id: id.to_owned() };
        match self.channel.unary::<wire::Bytes>(METHOD, &question).await {
            Ok(secret) => Ok(Some(secret.data)),
            Err(status) if status.code == code::NOT_FOUND => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// What `docker login` keeps for a registry.
    pub async fn credentials(&self, registry: &str) -> Result<Vec<Credential>> {
        const METHOD: &str = "/moby.filesync.v1.Auth/Credentials";
        if !self.offers(METHOD) {
            return Ok(Vec::new());
        }
        // Docker Hub's logins are kept under the name of its API.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let question = wire::CredentialsRequest { host: host.to_owned() };
        let found: wire::Credentials = self.channel.unary(METHOD, &question).await?;
        if found.user.is_empty() && found.secret.is_empty() {
            return Ok(Vec::new());
        }
        Ok(vec![Credential { registry: registry.to_owned(), user: found.user, password: found.secret }])
    }
}

/// As `url.QueryEscape` of Go does it, which is what the other side undoes.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
