//! The node agent: makes the pods that are assigned to this machine real, and tells how they are.
//!
//! It is a Kubernetes client and knows nothing but standard Kubernetes: it watches Pods, and writes
//! their status, the Node and its Lease. Images come through [`ImageService`], containers from
//! `naru-runtime`, addresses from `naru-net`.
//!
//! How it is built: one loop per pod ([`worker`]) around a pure function ([`plan`]) from "what is
//! wanted, what is, what time is it" to actions. Everything that must survive the daemon is on disk
//! or in the pod's shim, so a daemon that was killed finds its pods running and goes on.
//!
//! ```no_run
//! # async fn example(client: naru_client::Client, images: std::sync::Arc<dyn naru_node::ImageService>)
//! # -> Result<(), naru_node::Error> {
//! let config = naru_node::Config::new("box", "/var/lib/naru/node", "/run/naru/ab12");
//! let node = naru_node::Node::start(config, client, images).await?;
//! // ... until SIGTERM; the containers stay.
//! node.drain().await;
//! # Ok(()) }
//! ```

mod effects;
mod environment;
mod eviction;
mod grpc;
mod guard;
mod http_get;
mod image;
mod inside;
mod last_words;
mod logs;
mod machine;
mod network_files;
mod plan;
mod pod;
mod probe;
mod prober;
mod provide;
mod pull_secrets;
mod quantity;
mod record;
mod register;
mod shared;
mod state;
mod stats;
mod status;
mod streams;
mod volumes;
mod worker;

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::SignedDuration;
use naru_client::{Cache, Client};
use naru_net::Network;
use naru_objects::kinds;
use naru_runtime::{HelperProgram, cgroup};
use serde_json::Value;
use tokio::task::JoinHandle;

pub use crate::inside::{ContainerFiles, Facts, RootWork};
pub use naru_runtime::{Mount, cgroup::Detail};

pub use crate::image::{Credential, HostRoot, ImageError, ImageInfo, ImageService, PullPolicy};
pub use crate::logs::LogRequest;
use crate::machine::Machine;
pub use crate::machine::disk_free;
use crate::record::Record;
use crate::shared::Shared;
pub use crate::stats::{ContainerStats, NodeStats, PodStats};
pub use crate::streams::{AttachRequest, ExecRequest, ExecSession, LogStream, StreamError};
use crate::worker::{Order, WorkerHandle};

#[derive(Debug, Clone)]
pub struct Config {
    pub node_name: String,
    /// Pods' files, on disk. Kept across restarts.
    pub state_dir: PathBuf,
    /// Sockets and, in memory, secrets. Short: a socket's path has 107 bytes.
    pub run_dir: PathBuf,
    pub bridge: String,
    pub subnet: naru_net::Subnet,
    /// The name server of the cluster, for pods that want names of services. `None`: there is none, and pods
    /// use the machine's.
    pub cluster_dns: Option<std::net::IpAddr>,
    /// This program; its `main` begins with [`naru_runtime::maybe_run_helper`].
    pub exe: PathBuf,
}

/// How long a ready pod goes on serving after it was taken out of the endpoints: whoever read them
/// last has connected by then.
pub(crate) const DRAIN_DELAY: SignedDuration = SignedDuration::from_secs(1);

impl Config {
    pub fn new(node_name: &str, state_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            node_name: node_name.to_owned(),
            state_dir: state_dir.into(),
            run_dir: run_dir.into(),
            bridge: "naru0".to_owned(),
            subnet: "10.88.0.0/16".parse().expect("the default subnet is one"),
            cluster_dns: None,
            exe: "/proc/self/exe".into(),
        }
    }

    pub(crate) fn pods_directory(&self) -> PathBuf {
        self.state_dir.join("pods")
    }

    pub(crate) fn memory_directory(&self) -> PathBuf {
        self.run_dir.join("memory")
    }

    pub(crate) fn socket_directory(&self) -> PathBuf {
        self.run_dir.join("s")
    }

    pub(crate) fn socket(&self, uid: &str) -> PathBuf {
        self.socket_directory().join(uid)
    }

    fn network(&self) -> naru_net::Config {
        naru_net::Config::new(&self.bridge, self.subnet)
    }

    /// The bridge tells instances apart.
    pub(crate) fn shim_cgroup(&self) -> String {
        format!("/naru/platform/{}", self.bridge)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot prepare {path}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("the run directory {path} is too long for sockets; the limit is {limit} bytes")]
    RunDirectoryTooLong { path: PathBuf, limit: usize },
    #[error("cannot open the program {path}")]
    Program { path: PathBuf, source: std::io::Error },
    #[error("cannot set up the pods' network")]
    Network(#[from] naru_net::Error),
    #[error("cannot register the node")]
    Register(#[from] naru_client::Error),
    #[error("cannot mount {path} in memory")]
    Memory { path: PathBuf, source: std::io::Error },
}

/// The running agent; cheap to clone. When the last clone goes without [`Node::drain`] it stops as
/// well, less politely.
#[derive(Clone)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

impl Node {
    /// Returns when the node is registered and every pod of an earlier daemon has been found.
    pub async fn start(config: Config, client: Client, images: Arc<dyn ImageService>) -> Result<Node, Error> {
        prepare_directories(&config)?;
        let exe = config.exe.clone();
        let program = HelperProgram::new(&exe).map_err(|source| Error::Program { path: exe, source })?;
        let left = Record::load_all(&config.pods_directory());
        let used = left.iter().filter_map(|(_, record)| record.as_ref()?.address.as_deref()?.parse().ok());
        let network = Network::start(config.network(), used).await?;
        for slice in
            [naru_runtime::Slice::Platform, naru_runtime::Slice::Apps, naru_runtime::Slice::Pipelines]
        {
            cgroup::ensure(&format!("/naru/{}", slice.name()), slice);
        }
        let shared = Arc::new(Shared::new(config, client, images, network, program, Machine::read()));
        register::register(&shared).await?;
        let cache = shared.client.cache(&kinds::POD, None, "");
        cache.synced().await;
        let mut agent = Agent { shared: shared.clone(), cache, workers: HashMap::new() };
        agent.adopt(left).await;
        agent.reconcile().await;
        let tasks = vec![
            tokio::spawn(shared.clone().send_events()),
            tokio::spawn(register::heartbeat(shared.clone())),
            tokio::spawn(stats::sample(shared.clone())),
            tokio::spawn(eviction::watch(shared.clone())),
            tokio::spawn(guard::watch(shared.clone())),
            tokio::spawn(agent.run()),
        ];
        Ok(Node { shared, tasks: Arc::new(Tasks(Mutex::new(tasks))) })
    }

    /// The machine's address as pods see it; listeners on it are reachable from every pod.
    pub fn bridge_address(&self) -> Ipv4Addr {
        self.shared.network.gateway()
    }

    /// What builds and jobs may use together while they are held back for the apps, in thousandths of a core.
    pub fn pipelines_limit(&self) -> Option<u64> {
        self.shared.pipelines_limit.millis()
    }

    /// Stops watching and writing. Containers go on; the next [`Node::start`] finds them.
    pub async fn drain(&self) {
        let tasks = std::mem::take(&mut *self.tasks.0.lock().unwrap_or_else(PoisonError::into_inner));
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            let _ = task.await;
        }
    }
}

/// Gives every pod of this node a worker.
struct Agent {
    shared: Arc<Shared>,
    cache: Cache,
    workers: HashMap<String, (Arc<Value>, WorkerHandle)>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        for (_, worker) in self.workers.values() {
            worker.task.abort();
        }
    }
}

impl Agent {
    fn ours(&self) -> Vec<Arc<Value>> {
        let name = self.shared.config.node_name.as_str();
        self.cache.list().into_iter().filter(|pod| pod["spec"]["nodeName"] == name).collect()
    }

    /// Takes over what an earlier daemon left: pods that are still wanted go on, the rest ends.
    async fn adopt(&mut self, left: Vec<(PathBuf, Option<Record>)>) {
        let wanted: HashMap<String, Arc<Value>> =
            self.ours().into_iter().map(|pod| (uid(&pod), pod)).collect();
        for (directory, record) in left {
            let uid = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(pod) = wanted.get(&uid) {
                let worker = worker::start(self.shared.clone(), pod.clone(), record);
                self.workers.insert(uid, (pod.clone(), worker));
                continue;
            }
            tracing::info!(pod = record.as_ref().map(|it| it.name.as_str()), "ending a pod that is gone");
            let address = record.and_then(|record| record.address);
            let sandbox = naru_runtime::Sandbox::adopt(&directory).ok().flatten();
            effects::tear_down(&self.shared, sandbox, &directory, &uid, address.as_deref(), false).await;
            effects::remove_directory(&directory).await;
        }
    }

    async fn reconcile(&mut self) {
        let pods = self.ours();
        let present: HashSet<String> = pods.iter().map(|pod| uid(pod)).collect();
        for pod in pods {
            let key = uid(&pod);
            match self.workers.get_mut(&key) {
                // A worker that ended without cleaning up has failed; what it wrote down goes on.
                Some((_, worker))
                    if worker.task.is_finished() && self.shared.pod_directory(&key).exists() =>
                {
                    let record = Record::load(&self.shared.pod_directory(&key)).ok();
                    let worker = worker::start(self.shared.clone(), pod.clone(), record);
                    self.workers.insert(key, (pod, worker));
                }
                Some((known, worker)) => {
                    if known["metadata"]["resourceVersion"] != pod["metadata"]["resourceVersion"] {
                        worker.send(Order::Pod(pod.clone())).await;
                        *known = pod;
                    }
                }
                None => {
                    let worker = worker::start(self.shared.clone(), pod.clone(), None);
                    self.workers.insert(key, (pod, worker));
                }
            }
        }
        let gone: Vec<String> = self.workers.keys().filter(|uid| !present.contains(*uid)).cloned().collect();
        for uid in gone {
            let Some((_, worker)) = self.workers.get(&uid) else { continue };
            if worker.task.is_finished() {
                self.workers.remove(&uid);
            } else {
                worker.send(Order::Gone).await;
            }
        }
    }

    async fn run(mut self) {
        let evicted = self.shared.evicted.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut evicted) = evicted else { return };
        loop {
            // Workers whose pods are gone are let go of when they have cleaned up.
            let unfinished = self.workers.values().any(|(pod, worker)| {
                !worker.task.is_finished()
                    && self.cache.get(namespace(pod), naru_objects::name_of(pod)).is_none()
            });
            let again = async {
                match unfinished {
                    true => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.cache.changed() => {}
                Some((uid, message)) = evicted.recv() => {
                    if let Some((_, worker)) = self.workers.get(&uid) {
                        worker.send(Order::Evict(message)).await;
                    }
                }
                () = again => {}
            }
            self.reconcile().await;
        }
    }
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

fn namespace(pod: &Value) -> &str {
    pod["metadata"]["namespace"].as_str().unwrap_or_default()
}

fn prepare_directories(config: &Config) -> Result<(), Error> {
    const UID_BYTES: usize = 36;
    const SOCKET_BYTES_MAX: usize = 107;
    let bytes = config.socket(&"x".repeat(UID_BYTES)).as_os_str().len();
    if bytes > SOCKET_BYTES_MAX {
        let limit = SOCKET_BYTES_MAX - (bytes - config.run_dir.as_os_str().len());
        return Err(Error::RunDirectoryTooLong { path: config.run_dir.clone(), limit });
    }
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    for path in [&config.state_dir, &config.run_dir, &config.pods_directory(), &config.memory_directory()] {
        let failed = |source| Error::Directory { path: path.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    mount_memory(&config.memory_directory())
}

/// Secrets must not reach the disk; where `/run` is not in memory a small file system of our own is.
fn mount_memory(path: &Path) -> Result<(), Error> {
    let failed = |errno: nix::Error| Error::Memory { path: path.to_owned(), source: errno.into() };
    let kind = nix::sys::statfs::statfs(path).map_err(failed)?.filesystem_type();
    if kind == nix::sys::statfs::TMPFS_MAGIC {
        return Ok(());
    }
    use nix::mount::MsFlags;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("naru"), path, Some("tmpfs"), flags, Some("mode=700")).map_err(failed)
}

/// Ends every pod of an instance and removes everything it made on the machine. For an instance
/// whose daemon does not run.
pub async fn destroy(config: Config) -> Result<(), Error> {
    // What always gives way would take its time to die on a busy machine.
    cgroup::set_idle(naru_runtime::Slice::Pipelines, false);
    for (directory, record) in Record::load_all(&config.pods_directory()) {
        tracing::debug!(pod = record.as_ref().map(|it| it.name.as_str()), "ending a pod");
        let clean = match naru_runtime::Sandbox::adopt(&directory) {
            Ok(Some(sandbox)) => sandbox.shutdown().await.is_ok(),
            _ => false,
        };
        if !clean {
            effects::destroy_remains(&directory).await;
        }
        effects::remove_directory(&directory).await;
    }
    naru_net::teardown(&config.network()).await?;
    let group = config.shim_cgroup();
    for _ in 0..50 {
        if cgroup::remove(&group) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for shared in ["/naru/platform", "/naru/apps", "/naru/pipelines", "/naru"] {
        cgroup::remove_if_empty(shared);
    }
    // Only if it is a mount of ours; the kernel says when it is not one.
    let _ = nix::mount::umount2(&config.memory_directory(), nix::mount::MntFlags::MNT_DETACH);
    effects::remove_directory(&config.run_dir).await;
    Ok(())
}
