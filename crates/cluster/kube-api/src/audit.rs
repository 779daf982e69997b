//! Who changed what, and who was turned away: one line of JSON (`audit.k8s.io/v1`, level Metadata) for each
//! request from the network that writes, reaches into a pod, reads a secret or is refused. Bodies are never
//! written down.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use http::{HeaderMap, Method, Uri, header};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::Error;
use crate::auth::{Attributes, User};

/// When the file is this long it becomes `audit.log.1`, and the one before goes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Lines that wait for the disk; requests wait when there are more, so that none is lost.
const QUEUE: usize = 1024;

#[derive(Clone)]
pub(crate) struct Audit(mpsc::Sender<String>);

/// A request as it came in.
pub(crate) struct Request {
    received: jiff::Timestamp,
    method: Method,
    uri: Uri,
    agent: String,
    asked: Attributes,
}

impl Request {
    pub fn new(method: &Method, uri: &Uri, headers: &HeaderMap, asked: Attributes) -> Request {
        let agent = headers.get(header::USER_AGENT).and_then(|it| it.to_str().ok());
        Request {
            received: jiff::Timestamp::now(),
            method: method.clone(),
            uri: uri.clone(),
            agent: agent.unwrap_or_default().to_string(),
            asked,
        }
    }

    fn matters(&self, code: u16) -> bool {
        let plural = self.asked.resource.split('/').next().unwrap_or_default();
        let is_review = plural.ends_with("reviews");
        let reaches_in = self.asked.verb == "create";
        (self.method != Method::GET && !is_review)
            || reaches_in
            || plural == "secrets"
            || matches!(code, 401 | 403)
    }

    fn line(&self, user: Option<&User>, address: &str, code: u16) -> Value {
        let Attributes { verb, group, resource, namespace, name, .. } = &self.asked;
        let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let mut line = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": uuid::Uuid::new_v4().to_string(),
            "stage": "ResponseComplete", "requestURI": self.uri.to_string(), "verb": verb,
            "user": user.map(User::to_value).unwrap_or_else(|| json!({})), "sourceIPs": [address],
            "userAgent": self.agent, "responseStatus": {"code": code},
            "requestReceivedTimestamp": self.received.to_string(), "stageTimestamp": jiff::Timestamp::now().to_string(),
        });
        if !resource.is_empty() {
            line["objectRef"] = json!({"resource": plural, "apiGroup": group, "namespace": namespace, "name": name,
                "subresource": subresource});
        }
        line
    }
}

impl Audit {
    /// Writes to `audit.log` in this directory until the last handle is gone.
    pub fn start(dir: &Path) -> Result<Audit, Error> {
        let path = dir.join("audit.log");
        let mut file = open(&path).map_err(|source| Error::File { path: path.clone(), source })?;
        let (sender, mut lines) = mpsc::channel::<String>(QUEUE);
        std::thread::spawn(move || {
            while let Some(line) = lines.blocking_recv() {
                if let Err(error) = append(&path, &mut file, &line) {
                    tracing::error!(%error, "the audit log cannot be written");
                }
            }
        });
        Ok(Audit(sender))
    }

    pub async fn record(&self, request: &Request, user: Option<&User>, address: &str, code: u16) {
        if request.matters(code) {
            // It ends with the process only.
            let _ = self.0.send(format!("{}\n", request.line(user, address, code))).await;
        }
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn append(path: &PathBuf, file: &mut File, line: &str) -> std::io::Result<()> {
    if file.metadata()?.len() + line.len() as u64 > FILE_BYTES_MAX {
        fs::rename(path, path.with_extension("log.1"))?;
        *file = open(path)?;
    }
    file.write_all(line.as_bytes())
}
