//! The runtime as other tools call it: the operations of the OCI runtime specification on bundles, with state in
//! a directory of the caller's choice. podman, containerd and people use it through `naru oci`, a command line like
//! runc's.
//!
//! Each function is for a process of its own, single-threaded, and may leave children behind as the specification
//! wants it. Pods do not come this way; their shims hold their containers themselves.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::signal::Signal;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use seccompiler::BpfProgram;
use serde_json::{Value, json};

use crate::executor::PodExecutor;
use crate::foreground;
use crate::{profile, spec, sys, trace};

#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("cannot {what} `{path}`: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("`{path}` is not understood: {why}")]
    Document { path: PathBuf, why: String },
    #[error(transparent)]
    Profile(#[from] profile::ProfileError),
    #[error("there is no container `{id}` in {root}")]
    Unknown { id: String, root: PathBuf },
    #[error("container `{id}` is {status}, {why}")]
    State { id: String, status: String, why: &'static str },
    #[error("`{0}` is no signal; write TERM, SIGTERM or 15")]
    Signal(String),
    #[error("{0}")]
    Runtime(String),
}

impl From<LibcontainerError> for OciError {
    fn from(error: LibcontainerError) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(it) = source {
            let next = it.to_string();
            if !text.contains(&next) {
                text = format!("{text}: {next}");
            }
            source = it.source();
        }
        Self::Runtime(text)
    }
}

type Result<T> = std::result::Result<T, OciError>;

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OciError + 'a {
    move |source| OciError::Io { what, path: path.to_owned(), source }
}

/// Containers whose state is kept in one directory.
pub struct Oci {
    root: PathBuf,
}

#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    pub bundle: PathBuf,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub preserve_fds: i32,
    pub no_pivot: bool,
}

/// What `exec` runs: a `process.json`, or a command over the container's own process.
#[derive(Debug, Clone, Default)]
pub struct ExecOptions {
    pub process: Option<PathBuf>,
    pub command: Vec<String>,
    pub env: Vec<String>,
    pub cwd: Option<String>,
    /// `uid` or `uid:gid`.
    pub user: Option<String>,
    pub terminal: bool,
    pub detach: bool,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
}

/// One line of `list`.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub oci_version: &'static str,
    pub id: String,
    pub pid: i32,
    pub status: String,
    pub bundle: String,
    /// RFC 3339.
    pub created: String,
    pub owner: String,
}

const START_LOG: &str = "start.log";
const LOAD_TRIES: u32 = 20;
const LOAD_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);
const OCI_VERSION: &str = "1.0.2";

/// The last step inside, with a profile's filters.
#[derive(Clone)]
struct OciExecutor {
    filters: Vec<BpfProgram>,
    /// Bounding, effective, permitted and inheritable, as they are to be once the filters are in place; none:
    /// as they are.
    capabilities: Option<[u64; 4]>,
    inner: PodExecutor,
}

impl Executor for OciExecutor {
    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        self.inner.validate(spec)
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> std::result::Result<(), ExecutorSetEnvsError> {
        self.inner.setup_envs(envs)
    }

    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let refused = |error: &dyn std::fmt::Display| {
            ExecutorError::Other(format!("cannot install the seccomp profile: {error}"))
        };
        for filter in &self.filters {
            sys::install_filter(filter).map_err(|it| refused(&it))?;
        }
        if let Some([bounding, effective, permitted, inheritable]) = self.capabilities {
            sys::set_capabilities(bounding, effective, permitted, inheritable).map_err(|it| refused(&it))?;
        }
        self.inner.exec(spec)
    }
}

/// A bundle made ready for this machine.
struct Prepared {
    config: Value,
    executor: OciExecutor,
    /// What could not be had as asked, for people.
    warnings: Vec<String>,
}

/// Takes out of a bundle's configuration what we do ourselves, and brings limits within what we may give.
fn prepare(mut config: Value, seccomp: &Value) -> Result<Prepared> {
    let filters = if seccomp.is_object() { profile::compile(seccomp)? } else { Vec::new() };
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("seccomp");
    }
    let mut warnings = Vec::new();
    let process = &mut config["process"];
    for limit in process["rlimits"].as_array_mut().into_iter().flatten() {
        if let Some(hard) = sys::hard_limit(limit["type"].as_str().unwrap_or_default())
            && limit["hard"].as_u64().is_some_and(|it| it > hard)
            && !sys::may_raise_limits()
        {
            warnings.push(format!(
                "{} is {hard} instead of {}: the machine gives no more",
                limit["type"], limit["hard"]
            ));
            limit["hard"] = hard.into();
            limit["soft"] = limit["soft"].as_u64().unwrap_or(hard).min(hard).into();
        }
    }
    // A filter is installed with a right that the program must not keep, unless it can gain none anyway.
    let set = |process: &Value, name: &str| -> u64 {
        let names = process["capabilities"][name].as_array().cloned().unwrap_or_default();
        let short: Vec<String> = names
            .iter()
            .filter_map(|it| Some(it.as_str()?.trim_start_matches("CAP_").to_ascii_uppercase()))
            .collect();
        spec::bits(&short.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let admin = spec::bits(&["SYS_ADMIN"]);
    let needs_right =
        !filters.is_empty() && process["noNewPrivileges"] != true && set(process, "effective") & admin == 0;
    let mut capabilities = None;
    if needs_right {
        let before = ["bounding", "effective", "permitted", "inheritable"].map(|it| set(process, it));
        capabilities = Some(before);
        // SETPCAP takes the other out of the bounding set again, and goes with it.
        for name in ["bounding", "effective", "permitted"] {
            let list = process["capabilities"][name].as_array().cloned().unwrap_or_default();
            let more = ["CAP_SYS_ADMIN", "CAP_SETPCAP"].map(Value::from);
            process["capabilities"][name] = list.into_iter().chain(more).collect();
        }
    }
    let inner = PodExecutor { filter: None, keep_capabilities: None, die_with_parent: false };
    Ok(Prepared { config, executor: OciExecutor { filters, capabilities, inner }, warnings })
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    serde_json::from_slice(&bytes)
        .map_err(|it| OciError::Document { path: path.to_owned(), why: it.to_string() })
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, value.to_string()).map_err(io_error("write", path))
}

impl Oci {
    /// `root` is made when the first container is.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What we keep of a container besides libcontainer's state.
    fn own_dir(&self, id: &str) -> PathBuf {
        self.root.join(".naru").join(id)
    }

    fn load(&self, id: &str) -> Result<Container> {
        let unknown = || OciError::Unknown { id: id.to_owned(), root: self.root.clone() };
        if id.is_empty() || id.contains('/') || id.starts_with('.') {
            return Err(unknown());
        }
        let directory = self.root.join(id);
        if !directory.join("state.json").exists() {
            return Err(unknown());
        }
        // The file is not replaced whole: somebody may be writing it just now.
        let mut tries = 0;
        let mut container = loop {
            match Container::load(directory.clone()) {
                Ok(it) => break it,
                Err(error) if tries >= LOAD_TRIES => return Err(error.into()),
                Err(_) => {
                    tries += 1;
                    std::thread::sleep(LOAD_PAUSE);
                }
            }
        };
        container.refresh_status()?;
        Ok(container)
    }

    /// Makes the container of a bundle; its process waits for [`Oci::start`]. Returns what had to be given less of
    /// than was asked for.
    pub fn create(&self, id: &str, options: &CreateOptions) -> Result<Vec<String>> {
        let (container, warnings) = self.build(id, options, true)?;
        drop(container);
        Ok(warnings)
    }

    fn build(&self, id: &str, options: &CreateOptions, detach: bool) -> Result<(Container, Vec<String>)> {
        let bundle = options.bundle.canonicalize().map_err(io_error("find", &options.bundle))?;
        let mut config = read_json(&bundle.join("config.json"))?;
        let rootfs = config["root"]["path"].as_str().unwrap_or("rootfs").to_owned();
        let rootfs = bundle.join(rootfs);
        let rootfs = rootfs.canonicalize().map_err(io_error("find the root file system", &rootfs))?;
        config["root"]["path"] = rootfs.display().to_string().into();
        let seccomp = config["linux"]["seccomp"].clone();
        let prepared = prepare(config, &seccomp)?;
        // Whoever asked for the id is told by libcontainer if it is taken or no good; only then is anything ours.
        let builder = ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
            .with_root_path(&self.root)?
            .with_pid_file(options.pid_file.as_ref())?
            .with_console_socket(options.console_socket.as_ref())
            .with_preserved_fds(options.preserve_fds)
            .with_executor(prepared.executor)
            .validate_id()?;
        if self.root.join(id).exists() {
            return Err(OciError::Runtime(format!("container `{id}` exists already; delete it first")));
        }
        let own = self.own_dir(id);
        fs::create_dir_all(&own).map_err(io_error("make", &own))?;
        write_json(&own.join("config.json"), &prepared.config)?;
        write_json(&own.join("seccomp.json"), &seccomp)?;
        write_json(&own.join("bundle.json"), &json!(bundle))?;
        // What goes wrong inside, after we have left, is written there.
        trace::write_errors_to(&own.join(START_LOG));
        let built = builder
            .as_init(&own)
            .with_systemd(false)
            .with_detach(detach)
            .with_no_pivot(options.no_pivot)
            .build();
        match built {
            Ok(container) => Ok((container, prepared.warnings)),
            Err(error) => {
                let _ = fs::remove_dir_all(&own);
                let _ = fs::remove_dir_all(self.root.join(id));
                Err(error.into())
            }
        }
    }

    /// Lets the process of a created container go.
    pub fn start(&self, id: &str) -> Result<()> {
        let mut container = self.load(id)?;
        if !container.can_start() {
            return Err(state_error(&container, "and only a created one can be started"));
        }
        Ok(container.start()?)
    }

    /// The state document of the runtime specification.
    pub fn state(&self, id: &str) -> Result<Value> {
        let container = self.load(id)?;
        let stopped = container.status() == ContainerStatus::Stopped;
        Ok(json!({
            "ociVersion": OCI_VERSION, "id": id, "status": word(container.status()),
            "pid": if stopped { 0 } else { container.pid().map_or(0, |it| it.as_raw()) },
            "bundle": self.bundle_of(id), "annotations": container.state.annotations.clone().unwrap_or_default(),
            "created": container.created().map(|it| it.to_rfc3339()),
        }))
    }

    fn bundle_of(&self, id: &str) -> String {
        let recorded = read_json(&self.own_dir(id).join("bundle.json")).unwrap_or_default();
        recorded.as_str().unwrap_or_default().to_owned()
    }

    /// Sends a signal to the container's process, or to all of its processes.
    pub fn kill(&self, id: &str, signal: &str, all: bool) -> Result<()> {
        let wrong = || OciError::Signal(signal.to_owned());
        let signal: Signal = signal.try_into().map_err(|_| wrong())?;
        let mut container = self.load(id)?;
        if !container.can_kill() {
            return Err(state_error(&container, "and there is nothing to signal"));
        }
        Ok(container.kill(signal, all)?)
    }

    /// Removes a container that has ended; with `force` ends it first, and one that is not there is no error.
    pub fn delete(&self, id: &str, force: bool) -> Result<()> {
        let mut container = match self.load(id) {
            Err(OciError::Unknown { .. }) if force => return Ok(()),
            other => other?,
        };
        if !force && !container.can_delete() {
            return Err(state_error(
                &container,
                "and only a stopped one can be deleted; --force ends it first",
            ));
        }
        container.delete(force)?;
        let own = self.own_dir(id);
        if own.exists() {
            fs::remove_dir_all(&own).map_err(io_error("remove", &own))?;
        }
        Ok(())
    }

    /// Creates, starts, waits and deletes; or with `detach` only the first two. Returns the exit code, and what had
    /// to be given less of.
    pub fn run(
        &self,
        id: &str,
        options: &CreateOptions,
        detach: bool,
        keep: bool,
    ) -> Result<(i32, Vec<String>)> {
        let wants_terminal = read_json(&options.bundle.join("config.json"))?["process"]["terminal"] == true;
        let mut options = options.clone();
        let mut listener = None;
        if wants_terminal && options.console_socket.is_none() && !detach {
            let (socket, made) = self.console(id)?;
            options.console_socket = Some(socket);
            listener = Some(made);
        }
        let (mut container, mut warnings) = self.build(id, &options, detach || listener.is_some())?;
        let terminal = self.receive(listener, options.console_socket.as_deref())?;
        container.start()?;
        if detach {
            return Ok((0, warnings));
        }
        let pid = container.pid().map_or(0, |it| it.as_raw());
        let code = foreground::wait(pid, terminal);
        let said = fs::read_to_string(self.own_dir(id).join(START_LOG)).unwrap_or_default();
        if code == 255
            && let Some(line) = said.lines().last()
        {
            warnings.push(format!("the program was not started: {line}"));
        }
        if !keep {
            let mut container = self.load(id)?;
            container.delete(true)?;
            let _ = fs::remove_dir_all(self.own_dir(id));
        }
        Ok((code, warnings))
    }

    fn console(&self, id: &str) -> Result<(PathBuf, UnixListener)> {
        fs::create_dir_all(&self.root).map_err(io_error("make", &self.root))?;
        let socket = self.root.join(format!(".console-{}-{}", std::process::id(), id.len()));
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(io_error("listen on", &socket))?;
        Ok((socket, listener))
    }

    fn receive(&self, listener: Option<UnixListener>, socket: Option<&Path>) -> Result<Option<OwnedFd>> {
        let (Some(listener), Some(socket)) = (listener, socket) else { return Ok(None) };
        let terminal = crate::helper::receive_terminal(&listener);
        let _ = fs::remove_file(socket);
        if let Ok(it) = &terminal {
            foreground::follow_size(it); // before the program asks
        }
        terminal.map(Some).map_err(io_error("receive the terminal over", socket))
    }

    /// Runs one more process in a running container; returns its exit code, 0 if it was detached.
    pub fn exec(&self, id: &str, options: &ExecOptions) -> Result<i32> {
        let container = self.load(id)?;
        if !container.can_exec() {
            return Err(state_error(&container, "and a process can only join a running one"));
        }
        let own = self.own_dir(id);
        let config = read_json(&own.join("config.json"))?;
        let seccomp = read_json(&own.join("seccomp.json"))?;
        let original = read_json(&Path::new(&self.bundle_of(id)).join("config.json")).unwrap_or_default();
        let mut process = match &options.process {
            Some(path) => read_json(path)?,
            None => {
                // The container's own, as its author wrote it: ours has a right more.
                let model = if original["process"].is_object() { &original } else { &config };
                let mut it = model["process"].clone();
                it["args"] = json!(options.command);
                it["terminal"] = options.terminal.into();
                it
            }
        };
        if let Some(env) = process["env"].as_array_mut() {
            env.extend(options.env.iter().map(|it| json!(it)));
        }
        if let Some(cwd) = &options.cwd {
            process["cwd"] = json!(cwd);
        }
        if let Some(user) = &options.user {
            let mut parts = user.split(':').map(str::parse::<u32>);
            let wrong = || OciError::Runtime(format!("`{user}` is no user; write a number, or uid:gid"));
            process["user"]["uid"] = parts.next().and_then(|it| it.ok()).ok_or_else(wrong)?.into();
            if let Some(gid) = parts.next() {
                process["user"]["gid"] = gid.map_err(|_| wrong())?.into();
            }
        }
        let prepared = prepare(json!({"process": process}), &seccomp)?;
        let file = own.join(format!("process-{}.json", std::process::id()));
        write_json(&file, &prepared.config["process"])?;
        let result = self.exec_file(id, options, &file, prepared);
        let _ = fs::remove_file(&file);
        result
    }

    fn exec_file(&self, id: &str, options: &ExecOptions, file: &Path, prepared: Prepared) -> Result<i32> {
        let wants_terminal = prepared.config["process"]["terminal"] == true;
        let mut socket = options.console_socket.clone();
        let mut listener = None;
        if wants_terminal && socket.is_none() && !options.detach {
            let (made, it) = self.console(id)?;
            socket = Some(made);
            listener = Some(it);
        }
        let pid = ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
            .with_root_path(&self.root)?
            .with_pid_file(options.pid_file.as_ref())?
            .with_console_socket(socket.as_ref())
            .with_executor(prepared.executor)
            .as_tenant()
            .with_detach(options.detach || listener.is_some())
            .with_process(Some(file))
            .build()?;
        let terminal = self.receive(listener, socket.as_deref())?;
        match options.detach {
            true => Ok(0),
            false => Ok(foreground::wait(pid.as_raw(), terminal)),
        }
    }

    /// The processes of a container, as the machine numbers them.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>> {
        let container = self.load(id)?;
        let group = container.spec()?.cgroup_path;
        Ok(crate::cgroup::processes(&group.display().to_string()))
    }

    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let directory = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
            other => other.map_err(io_error("read", &self.root))?,
        };
        for entry in directory.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            // One that is just being made or removed by somebody else is not there yet, or no more.
            let Ok(container) = self.load(&id) else { continue };
            entries.push(Entry {
                oci_version: OCI_VERSION,
                pid: match container.status() {
                    ContainerStatus::Stopped => 0,
                    _ => container.pid().map_or(0, |it| it.as_raw()),
                },
                status: word(container.status()).to_owned(),
                bundle: self.bundle_of(&id),
                created: container.created().map(|it| it.to_rfc3339()).unwrap_or_default(),
                owner: container.creator().map(|it| it.to_string_lossy().into_owned()).unwrap_or_default(),
                id,
            });
        }
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(entries)
    }

    pub fn pause(&self, id: &str) -> Result<()> {
        let mut container = self.load(id)?;
        if !container.can_pause() {
            return Err(state_error(&container, "and only a running one can be paused"));
        }
        Ok(container.pause()?)
    }

    pub fn resume(&self, id: &str) -> Result<()> {
        let mut container = self.load(id)?;
        if !container.can_resume() {
            return Err(state_error(&container, "and only a paused one can be resumed"));
        }
        Ok(container.resume()?)
    }
}

/// As the runtime specification writes it.
fn word(status: ContainerStatus) -> &'static str {
    match status {
        ContainerStatus::Creating => "creating",
        ContainerStatus::Created => "created",
        ContainerStatus::Stopped => "stopped",
        ContainerStatus::Running => "running",
        ContainerStatus::Paused => "paused",
    }
}

fn state_error(container: &Container, why: &'static str) -> OciError {
    OciError::State { id: container.id().to_owned(), status: word(container.status()).to_owned(), why }
}

/// A bundle's configuration to begin with, as `runc spec` writes one.
pub fn default_spec(rootless: bool) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
               "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    let mut namespaces: Vec<Value> =
        ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|it| json!({"type": it})).into();
    let mut linux = json!({
        "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if rootless {
        // Without rights a network and the group of terminals are not to be had.
        namespaces.retain(|it| it["type"] != "network");
        namespaces.push(json!({"type": "user"}));
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
        linux["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
        mounts[2]["options"] = json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
        mounts[5] = json!({"destination": "/sys", "type": "none", "source": "/sys",
                           "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
    }
    linux["namespaces"] = namespaces.into();
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true, "user": {"uid": 0, "gid": 0}, "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "naru",
        "mounts": mounts,
        "linux": linux,
    })
}

/// What this runtime can do, as the specification's features document has it.
pub fn features(version: &str) -> Value {
    let capabilities: Vec<String> = spec::CAPABILITIES_ALL.iter().map(|it| format!("CAP_{it}")).collect();
    json!({
        "ociVersionMin": "1.0.0", "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": ["async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "iversion",
            "mand", "noatime", "nodev", "nodiratime", "noexec", "noiversion", "nomand", "norelatime",
            "nostrictatime", "nosuid", "private", "rbind", "relatime", "remount", "ro", "rprivate", "rshared",
            "rslave", "runbindable", "rw", "shared", "slave", "strictatime", "suid", "sync", "unbindable"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "archs": [if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" }],
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": false},
        },
        "annotations": {"dev.naru.version": version},
        "potentiallyUnsafeConfigAnnotations": [],
    })
}
