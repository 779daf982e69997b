//! What only the node that runs a pod can give: its containers' logs, and a way in.

use std::io;
use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use naru_runtime::{Attachment, Exec, ExecConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

use crate::shared::PodView;
use crate::{LogRequest, Node, effects, logs, worker};

/// A port of the same machine answers at once or not at all.
const DIAL_TIME_MAX: std::time::Duration = std::time::Duration::from_secs(10);

pub type LogStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// A command to run in a running container.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub namespace: String,
    pub pod: String,
    /// Empty: whichever pod has the name.
    pub uid: String,
    /// Empty: the pod's first container.
    pub container: String,
    pub command: Vec<String>,
    /// Added to the container's own.
    pub environment: Vec<(String, String)>,
    pub working_directory: Option<std::path::PathBuf>,
    /// Instead of the container's own: `app`, `1000:1000`.
    pub user: Option<String>,
    pub privileged: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A running container whose own streams to join.
#[derive(Debug, Clone, Default)]
pub struct AttachRequest {
    pub namespace: String,
    pub pod: String,
    /// Empty: whichever pod has the name.
    pub uid: String,
    /// Empty: the pod's first container.
    pub container: String,
    /// Means something when the container's specification asks for an input.
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A command that runs. Dropping `exit` ends it.
pub struct ExecSession {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// With a terminal everything comes on `stdout`.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Width and height of the terminal.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    pub exit: oneshot::Receiver<i32>,
}

/// Why logs or exec cannot be had; in kubelet's words, because people search for them.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    Failed(String),
}

impl Node {
    /// A container's output, without the log's own fields.
    pub async fn logs(&self, request: LogRequest) -> Result<LogStream, StreamError> {
        let pod = self.find(&request.namespace, &request.pod, &request.uid)?;
        let container = find_container(&pod, &request.container)?;
        let about = |what: &str| {
            StreamError::BadRequest(format!(
                "container \"{}\" in pod \"{}\" {what}",
                container.name, pod.name
            ))
        };
        let attempt = match (request.previous, container.attempt) {
            (true, 0) => {
                return Err(StreamError::BadRequest(format!(
                    "previous terminated container \"{}\" in pod \"{}\" not found",
                    container.name, pod.name
                )));
            }
            (true, attempt) => attempt - 1,
            (false, _) if !container.began => return Err(about("is waiting to start: ContainerCreating")),
            (false, attempt) => attempt,
        };
        let number = if pod.one_log { 0 } else { attempt };
        let path = effects::log_path(&pod.directory, &container.name, number);
        let (shared, uid, name) = (self.shared.clone(), pod.uid.clone(), container.name.clone());
        let running = move || {
            let pod = shared.view(&uid);
            let container = pod.as_ref().and_then(|pod| pod.container(&name));
            container.is_some_and(|container| container.alive && container.attempt == attempt)
        };
        Ok(Box::pin(ReceiverStream::new(logs::stream(path, request, running))))
    }

    /// Runs a command in a container; returns when it was executed.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecSession, StreamError> {
        let pod = self.find(&request.namespace, &request.pod, &request.uid)?;
        let container = find_container(&pod, &request.container)?;
        let Some(sandbox) = pod.sandbox.as_ref().filter(|_| container.running) else {
            return Err(not_running(&pod, container));
        };
        let config = ExecConfig {
            container: worker::container_id(&container.name, container.attempt),
            arguments: request.command,
            environment: request.environment,
            working_directory: request.working_directory,
            user: request.user,
            privileged: request.privileged,
            stdin: request.stdin,
            terminal: request.tty,
        };
        let exec = sandbox.exec(&self.shared.program, &config).await;
        let mut exec = exec.map_err(|error| StreamError::Failed(effects::chain(&error)))?;
        let stdio = std::mem::take(&mut exec.stdio);
        let (resize, sizes) = mpsc::channel(4);
        let (tell, exit) = oneshot::channel();
        tokio::spawn(supervise(exec, sizes, tell));
        let stdout: Box<dyn AsyncRead + Send + Unpin> = match stdio.stdout {
            Some(stdout) => Box::new(stdout),
            None => Box::new(tokio::io::empty()),
        };
        Ok(ExecSession {
            stdin: stdio.stdin.map(|it| Box::new(it) as Box<dyn AsyncWrite + Send + Unpin>),
            stdout,
            stderr: stdio.stderr.map(|it| Box::new(it) as Box<dyn AsyncRead + Send + Unpin>),
            resize: request.tty.then_some(resize),
            exit,
        })
    }

    /// Joins a running container's own streams. The session's exit is 0 when the container has ended; how it
    /// ended is in its status.
    pub async fn attach(&self, request: AttachRequest) -> Result<ExecSession, StreamError> {
        let pod = self.find(&request.namespace, &request.pod, &request.uid)?;
        let container = find_container(&pod, &request.container)?;
        let Some(sandbox) = pod.sandbox.as_ref().filter(|_| container.running) else {
            return Err(not_running(&pod, container));
        };
        let id = worker::container_id(&container.name, container.attempt);
        let attachment = sandbox.attach(&id, request.stdin).await;
        let attachment = attachment.map_err(|error| StreamError::Failed(effects::chain(&error)))?;
        Ok(joined(attachment, &request))
    }

    /// A connection to a port of the pod, made inside its network: what listens on the pod's loopback alone
    /// is reached as well. `uid` may be empty.
    pub async fn port_forward(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        port: u16,
    ) -> Result<tokio::net::TcpStream, StreamError> {
        let pod = self.find(namespace, pod, uid)?;
        let Some(sandbox) = pod.sandbox.clone() else {
            return Err(StreamError::BadRequest(format!("pod \"{}\" is not running", pod.name)));
        };
        let dialled = effects::blocking(move || sandbox.dial(port, DIAL_TIME_MAX)).await;
        let connected = dialled.and_then(|stream| {
            stream.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(stream)
        });
        connected.map_err(|error| {
            StreamError::Failed(format!("failed to connect to localhost:{port} inside the pod: {error}"))
        })
    }

    pub(crate) fn find(&self, namespace: &str, name: &str, uid: &str) -> Result<PodView, StreamError> {
        let found = self.shared.find(namespace, name, uid);
        found.ok_or_else(|| StreamError::NotFound(format!("pods \"{name}\" not found on this node")))
    }
}

/// The streams of a container that was joined.
pub(crate) fn joined(attachment: Attachment, request: &AttachRequest) -> ExecSession {
    let Attachment { stdin, stdout, stderr, resize, mut tasks } = attachment;
    let (mut tell, exit) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            () = tasks.ended() => {
                let _ = tell.send(0);
            }
            // Nobody listens any more; the container goes on.
            () = tell.closed() => {}
        }
    });
    ExecSession {
        stdin: stdin.map(|it| Box::new(it) as Box<dyn AsyncWrite + Send + Unpin>),
        stdout: Box::new(stdout),
        stderr: (!request.tty && request.stderr)
            .then(|| Box::new(stderr) as Box<dyn AsyncRead + Send + Unpin>),
        resize: request.tty.then_some(resize),
        exit,
    }
}

pub(crate) fn not_running(pod: &PodView, container: &crate::shared::ContainerView) -> StreamError {
    StreamError::BadRequest(format!(
        "container \"{}\" in pod \"{}\" is not running",
        container.name, pod.name
    ))
}

pub(crate) fn find_container<'a>(
    pod: &'a PodView,
    name: &str,
) -> Result<&'a crate::shared::ContainerView, StreamError> {
    pod.container(name)
        .ok_or_else(|| StreamError::BadRequest(format!("container {name} is not valid for pod {}", pod.name)))
}

/// Holds the command until it ends or nobody waits for it; letting go of it kills it.
async fn supervise(mut exec: Exec, mut sizes: mpsc::Receiver<(u16, u16)>, mut tell: oneshot::Sender<i32>) {
    let mut resizable = true;
    let code = loop {
        tokio::select! {
            code = exec.wait() => break code.unwrap_or(255),
            () = tell.closed() => return,
            size = sizes.recv(), if resizable => match size {
                Some((columns, rows)) => {
                    let _ = exec.resize(columns, rows).await;
                }
                None => resizable = false,
            },
        }
    };
    let _ = tell.send(code);
}
