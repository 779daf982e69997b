//! What only the machine that runs the pods can do. The trait is ours, as the streaming interface is the
//! kubelet's; `app` fulfils it with the node.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    NotRunning(String),
    #[error("{0}")]
    Failed(String),
}

/// A container's streams, or a command's.
pub struct Session {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// With a terminal everything comes on `stdout`.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Columns and rows of the terminal.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
    /// Dropping it ends a command, and leaves a container alone.
    pub exit: oneshot::Receiver<i32>,
}

#[derive(Debug, Clone, Default)]
pub struct AttachSpec {
    /// Of the pod, for one that the node may not have seen yet.
    pub uid: String,
    pub stdin: bool,
    pub tty: bool,
}

#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    pub command: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub working_directory: Option<PathBuf>,
    pub user: Option<String>,
    pub privileged: bool,
    pub stdin: bool,
    pub tty: bool,
}

/// What is known of a running container beside its status.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub pid: i32,
    pub figures: Figures,
    /// Bytes, packets, errors and drops received, and the same sent, by link.
    pub links: Vec<(String, [u64; 8])>,
}

/// What its control group counts.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub cpu_nanoseconds: u64,
    pub cpu_user_nanoseconds: u64,
    pub cpu_system_nanoseconds: u64,
    /// Periods, throttled periods, throttled nanoseconds.
    pub throttling: [u64; 3],
    pub memory_bytes: u64,
    pub memory_bytes_peak: u64,
    pub memory_bytes_max: Option<u64>,
    /// As the kernel names them.
    pub memory: BTreeMap<String, u64>,
    pub processes: u64,
    pub processes_max: Option<u64>,
    /// Major and minor of the device, bytes read and bytes written.
    pub io_bytes: Vec<(u64, u64, u64, u64)>,
    pub is_unified: bool,
}

/// Where a container's own files are.
#[derive(Debug, Clone)]
pub struct Files {
    /// What it wrote, as overlayfs keeps it.
    pub upper: PathBuf,
    /// Where the runtime notes what it made in there.
    pub directory: PathBuf,
}

/// A directory or file of the machine in a container.
#[derive(Debug, Clone)]
pub struct Mount {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
}

/// Work on an open root.
pub type RootWork = Box<dyn FnOnce(OwnedFd) -> io::Result<()> + Send>;

/// Pods are named by namespace and name.
#[async_trait]
pub trait ContainerNode: Send + Sync {
    /// Joins a running container from now on.
    async fn attach(&self, namespace: &str, pod: &str, spec: AttachSpec) -> Result<Session, NodeError>;

    /// Joins the container's next life from its first byte on.
    async fn attach_early(
        &self,
        namespace: &str,
        pod: &str,
        spec: AttachSpec,
    ) -> Result<oneshot::Receiver<Result<Session, NodeError>>, NodeError>;

    /// Runs a command in a running container.
    async fn exec(&self, namespace: &str, pod: &str, spec: ExecSpec) -> Result<Session, NodeError>;

    /// The log as it is on the disk: `time stream tag text`, a line each.
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        follow: bool,
        tail: Option<u64>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, NodeError>;

    /// To the container's first process.
    async fn signal(&self, namespace: &str, pod: &str, signal: i32) -> Result<(), NodeError>;

    /// Stops all its processes where they are, or lets them go on.
    async fn freeze(&self, namespace: &str, pod: &str, frozen: bool) -> Result<(), NodeError>;

    /// Its processes as the machine numbers them.
    async fn processes(&self, namespace: &str, pod: &str) -> Result<Vec<i32>, NodeError>;

    async fn facts(&self, namespace: &str, pod: &str) -> Result<Facts, NodeError>;

    /// `None` before it has any.
    fn files(&self, namespace: &str, pod: &str) -> Result<Option<Files>, NodeError>;

    /// Does `work` on the container's root whether it runs or not. `image` and `mounts` are for one that does
    /// not run.
    async fn with_root(
        &self,
        namespace: &str,
        pod: &str,
        image: &str,
        mounts: Vec<Mount>,
        work: RootWork,
    ) -> Result<(), NodeError>;
}
