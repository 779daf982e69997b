//! Plain data: what the daemon asks of the shim and what it hears back.
//!
//! These are files (`sandbox.json`, `container.json`, `exit.json`) and wire at once, so serde is a
//! promise here: a daemon of a later version reads what an earlier one wrote.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Who gets the machine when it is short: platform before apps before pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slice {
    Platform,
    #[default]
    Apps,
    Pipelines,
}

impl Slice {
    pub fn name(self) -> &'static str {
        match self {
            Slice::Platform => "platform",
            Slice::Apps => "apps",
            Slice::Pipelines => "pipelines",
        }
    }

    /// cgroup v2 weight; v1 shares are derived from it. A build gets a fifth of what a shop gets.
    pub fn cpu_weight(self) -> u64 {
        match self {
            Slice::Platform => 400,
            Slice::Apps => 200,
            Slice::Pipelines => 40,
        }
    }
}

/// A pod's sandbox: what its containers share.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxConfig {
    /// The pod's uid.
    pub id: String,
    /// Everything of the pod lives below: configuration, root file systems, exit statuses.
    pub directory: PathBuf,
    /// The shim's socket. Short: the kernel allows 107 bytes.
    pub socket: PathBuf,
    pub hostname: String,
    /// cgroup of the shim itself, for example `/naru/platform/ab12`. Shims share it.
    pub shim_cgroup: String,
    /// cgroup of the pod, for example `/naru/apps/<uid>`; a container's is one below.
    pub pod_cgroup: String,
    pub slice: Slice,
    /// Size of the `/dev/shm` that the pod's containers share.
    pub shared_memory_bytes_max: u64,
    /// Share the machine's instead of having an own one.
    #[serde(default)]
    pub host_network: bool,
    #[serde(default)]
    pub host_ipc: bool,
    #[serde(default)]
    pub host_pids: bool,
    /// The containers see each other's processes.
    #[serde(default)]
    pub share_pids: bool,
    /// Kernel settings of the pod's own namespaces, `net.ipv4.ip_local_port_range` and its value.
    #[serde(default)]
    pub sysctls: Vec<(String, String)>,
    #[serde(default)]
    pub memory_volumes: Vec<MemoryVolume>,
}

/// A directory that is in memory for as long as the pod lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryVolume {
    /// Exists.
    pub path: PathBuf,
    pub bytes_max: Option<u64>,
    pub group: Option<u32>,
}

impl SandboxConfig {
    pub fn new(id: &str, directory: impl AsRef<Path>, socket_directory: impl AsRef<Path>) -> Self {
        let slice = Slice::default();
        Self {
            id: id.to_owned(),
            directory: directory.as_ref().to_owned(),
            socket: socket_directory.as_ref().join("shim.sock"),
            hostname: id.to_owned(),
            shim_cgroup: "/naru/platform/shims".to_owned(),
            pod_cgroup: format!("/naru/{}/{id}", slice.name()),
            slice,
            shared_memory_bytes_max: 64 << 20,
            host_network: false,
            host_ipc: false,
            host_pids: false,
            share_pids: false,
            sysctls: Vec::new(),
            memory_volumes: Vec::new(),
        }
    }

    pub fn container_directory(&self, container: &str) -> PathBuf {
        self.directory.join("c").join(container)
    }
}

/// The user as the pod or image names it: resolved inside the container's own `/etc/passwd`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// `""`, `1000`, `app`, `app:web`, `1000:1000`, as in an image's configuration.
    pub name: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub supplementary_gids: Vec<u32>,
    /// Refuse to start when the result is user 0.
    pub must_not_be_root: bool,
    /// Groups of the image's user database do not count.
    #[serde(default)]
    pub only_given_groups: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootFs {
    /// Image layers, topmost first.
    pub lower_directories: Vec<PathBuf>,
    /// Present when the last lower directory is `/`.
    pub host: Option<HostRoot>,
    pub read_only: bool,
}

impl RootFs {
    pub fn layers<P: Into<PathBuf>>(layers: impl IntoIterator<Item = P>) -> Self {
        Self { lower_directories: layers.into_iter().map(Into::into).collect(), host: None, read_only: false }
    }
}

/// The machine's own root as an image: everything installed is there, secrets are not.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostRoot {
    /// Directories that appear empty, files that appear empty.
    pub masks: Vec<PathBuf>,
    /// Paths below a mask that stay visible, read-only: tool chains under a home directory.
    pub read_only: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    pub source: PathBuf,
    /// Absolute inside the container; symbolic links on the way are resolved inside its root.
    pub destination: PathBuf,
    pub read_only: bool,
    /// A path below `source`, made as a directory when it is missing; links in it never lead out of `source`.
    #[serde(default)]
    pub sub_path: Option<PathBuf>,
}

impl Mount {
    pub fn new(source: impl Into<PathBuf>, destination: impl Into<PathBuf>, read_only: bool) -> Self {
        Self { source: source.into(), destination: destination.into(), read_only, sub_path: None }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerConfig {
    /// Unique in its pod, `[a-zA-Z0-9._-]`; by convention `<name>-<attempt>`.
    pub id: String,
    pub root: RootFs,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Made when it does not exist, as everywhere.
    pub working_directory: PathBuf,
    pub user: User,
    pub mounts: Vec<Mount>,
    /// Names without `CAP_`; `None` is the default set.
    pub capabilities: Option<Vec<String>>,
    pub no_new_privileges: bool,
    /// Everything the machine has: all capabilities and devices, no filter, no masks.
    #[serde(default)]
    pub privileged: bool,
    /// `capabilities` began with all that there are; those that the machine lacks are left out.
    #[serde(default)]
    pub all_capabilities: bool,
    /// No filter of system calls.
    #[serde(default)]
    pub unfiltered: bool,
    /// `/proc` without masks.
    #[serde(default)]
    pub unmasked_proc: bool,
    pub memory_bytes_max: Option<u64>,
    /// Thousandths of a core.
    pub cpu_millis_max: Option<u64>,
    /// Thousandths of a core, becomes a weight against the neighbours.
    pub cpu_millis_request: Option<u64>,
    pub pids_max: u64,
    /// CRI log file; rotated beside itself. `None` drops the output.
    pub log: Option<PathBuf>,
    pub out_of_memory_score: Option<i32>,
    /// Keep an input open that [`crate::Sandbox::attach`] can write to; otherwise there is none.
    #[serde(default)]
    pub stdin: bool,
    /// The input ends with the first attachment that wrote to it.
    #[serde(default)]
    pub stdin_once: bool,
    /// See the processes of this running container, and be seen by them.
    #[serde(default)]
    pub pids_of: Option<String>,
    /// A pseudo terminal for standard streams.
    #[serde(default)]
    pub terminal: bool,
    /// Name, soft and hard limit, see [`RESOURCE_LIMITS`].
    #[serde(default)]
    pub resource_limits: Vec<(String, u64, u64)>,
}

/// Limits of a process that can be set, as `ulimit` and Docker name them.
pub const RESOURCE_LIMITS: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A CI job may run a compiler on every core and a shell around each; a fork bomb stops here.
pub const PIDS_MAX_DEFAULT: u64 = 4096;

impl ContainerConfig {
    /// The filter of system calls applies.
    pub(crate) fn is_filtered(&self) -> bool {
        !self.privileged && !self.unfiltered
    }

    pub fn new<S: Into<String>>(id: &str, root: RootFs, arguments: impl IntoIterator<Item = S>) -> Self {
        Self {
            id: id.to_owned(),
            root,
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
            working_directory: PathBuf::from("/"),
            user: User::default(),
            mounts: Vec::new(),
            capabilities: None,
            no_new_privileges: true,
            privileged: false,
            all_capabilities: false,
            unfiltered: false,
            unmasked_proc: false,
            memory_bytes_max: None,
            cpu_millis_max: None,
            cpu_millis_request: None,
            pids_max: PIDS_MAX_DEFAULT,
            log: None,
            out_of_memory_score: None,
            stdin: false,
            stdin_once: false,
            pids_of: None,
            terminal: false,
            resource_limits: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    pub pid: i32,
    pub started_at_nanoseconds: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailureKind {
    /// The program is not in the image (a shell would say 127).
    NotFound,
    /// The program cannot be executed (126).
    NotExecutable,
    /// The user or group is unknown, or root where it must not be.
    User,
    /// The id is in use or was used.
    Exists,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    pub kind: StartFailureKind,
    pub message: String,
}

/// How a container ended. On disk before anyone hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// 128 + signal when it was killed, as shells count.
    pub code: i32,
    pub signal: Option<i32>,
    pub out_of_memory: bool,
    pub started_at_nanoseconds: i64,
    pub finished_at_nanoseconds: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum ContainerStatus {
    Starting,
    Running(Started),
    Exited(Exit),
}

/// One line of the shim's protocol, from the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    Start(Box<ContainerConfig>),
    Signal {
        container: String,
        signal: i32,
    },
    /// After `Done` the connection carries frames (see [`crate::attach`]) until the container ends.
    Attach {
        container: String,
        stdin: bool,
        /// It may not have begun yet: join it from its first byte on.
        #[serde(default)]
        early: bool,
    },
    /// Answered now, and again whenever a container ends.
    Watch,
    /// Kills what runs and ends the shim; answered when everything is gone.
    Shutdown,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Response {
    Started(Started),
    Failed(StartFailure),
    Done,
    Containers(std::collections::BTreeMap<String, ContainerStatus>),
    Error(String),
}

/// Written by the shim when it is ready; how a returning daemon finds it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShimRecord {
    pub pid: i32,
    pub start_time: u64,
    pub boot_id: String,
}
