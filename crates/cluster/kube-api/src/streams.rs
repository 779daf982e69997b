//! What only the node that runs a pod can do, behind a trait; and `kubectl logs` on top of it.

use std::io;

use async_trait::async_trait;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::BoxStream;
use kube_kinds::{Failure, list, text, uid};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::answer;
use crate::request::Call;

pub type LogStream = BoxStream<'static, io::Result<Bytes>>;

/// The node's side of `logs` and `exec`. The application wires it.
#[async_trait]
pub trait NodeStreams: Send + Sync {
    async fn logs(&self, request: LogRequest) -> Result<LogStream, StreamError>;
    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, StreamError>;
    /// Joins a running container's own streams; the exit comes when the container ends.
    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, StreamError>;
    /// A connection to a port in the pod's network.
    async fn port_forward(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        port: u16,
    ) -> Result<Connection, StreamError>;
    /// What the node and its pods use now.
    async fn usage(&self) -> Vec<Usage>;
}

/// Bytes both ways.
pub trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}
pub type Connection = Box<dyn Duplex>;

/// What a container, or the node itself, uses.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    /// Empty for a node.
    pub namespace: String,
    /// Of the pod or the node.
    pub name: String,
    /// Empty for a node.
    pub container: String,
    /// Billionths of a core, over `window`.
    pub cpu_nanocores: u64,
    /// The working set.
    pub memory_bytes: u64,
    pub window: std::time::Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRequest {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub follow: bool,
    /// The log of the container's previous life.
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
    pub since_seconds: Option<u64>,
    pub limit_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A command that runs in a container. Dropping it means that nobody listens any more.
pub struct ExecSession {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Width and height of the terminal.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    pub exit: oneshot::Receiver<i32>,
}

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    Failed(String),
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Failure {
        match error {
            StreamError::NotFound(message) => Failure::new(404, "NotFound", message),
            StreamError::BadRequest(message) => Failure::bad_request(message),
            StreamError::Failed(message) => Failure::new(500, "InternalError", message),
        }
    }
}

pub(crate) async fn log(call: Call) -> Result<Response, Failure> {
    let pod = call.api.objects().get(&call.kind, call.namespace(), call.name())?;
    let request = LogRequest {
        namespace: call.namespace().into(),
        pod: call.name().into(),
        uid: uid(&pod).into(),
        container: container(&call, &pod)?,
        follow: call.parameters.is_set("follow"),
        previous: call.parameters.is_set("previous"),
        timestamps: call.parameters.is_set("timestamps"),
        tail_lines: call.parameters.number("tailLines")?,
        since_seconds: call.parameters.number("sinceSeconds")?,
        limit_bytes: call.parameters.number("limitBytes")?,
    };
    let lines = node(&call, &pod)?.logs(request).await?;
    Ok(answer::with_type(200, "text/plain; charset=utf-8", Body::from_stream(lines)))
}

/// Whoever runs the pod.
pub(crate) fn node(call: &Call, pod: &Value) -> Result<std::sync::Arc<dyn NodeStreams>, Failure> {
    if text(pod, "/spec/nodeName").is_empty() {
        return Err(Failure::bad_request(format!("pod {} does not have a host assigned", call.name())));
    }
    call.api.streams().ok_or_else(|| {
        Failure::new(503, "ServiceUnavailable", "the node that runs the pod is not connected yet")
    })
}

/// The container that is meant: the named one, or the only one.
pub(crate) fn container(call: &Call, pod: &Value) -> Result<String, Failure> {
    let names = |field: &str| -> Vec<&str> { list(pod, field).iter().map(|it| text(it, "/name")).collect() };
    let containers = names("/spec/containers");
    match (call.parameters.get("container"), containers.as_slice()) {
        (Some(name), _)
            if containers.contains(&name)
                || names("/spec/initContainers").contains(&name)
                || names("/spec/ephemeralContainers").contains(&name) =>
        {
            Ok(name.to_string())
        }
        (Some(name), _) => {
            Err(Failure::bad_request(format!("container {name} is not valid for pod {}", call.name())))
        }
        (None, [only]) => Ok(only.to_string()),
        (None, several) => Err(Failure::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            call.name(),
            several.join(" ")
        ))),
    }
}
