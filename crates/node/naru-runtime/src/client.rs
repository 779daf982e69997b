//! The daemon's side: make a sandbox, find it again, talk to it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};

use crate::attach::Attachment;
use crate::config::{
    ContainerConfig, ContainerStatus, Exit, Request, Response, SandboxConfig, ShimRecord, StartFailure,
    Started,
};
use crate::helper::{self, CONTROL_DESCRIPTOR, ExecOrder, ExecResult};
use crate::shim::write_durably;
use crate::sys;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot prepare sandbox {id}")]
    Prepare { id: String, source: io::Error },
    #[error("the shim of {id} did not start: {text}")]
    Shim { id: String, text: String },
    #[error("the shim of {id} does not answer")]
    Connection { id: String, source: io::Error },
    #[error("the shim of {id} sent an answer that makes no sense: {text}")]
    Protocol { id: String, text: String },
    #[error("the shim of {id} refused: {text}")]
    Refused { id: String, text: String },
    #[error("the shim of {id} took longer than {seconds} s")]
    Timeout { id: String, seconds: u64 },
    #[error("container {container} cannot be started")]
    Start { container: String, source: StartFailure },
}

/// Longer than the shim gives a start, so that its answer wins.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(90);

/// This program, opened so that nothing inside a container can write to it.
#[derive(Debug)]
pub struct HelperProgram {
    path: PathBuf,
    /// Keeps the read-only mount behind `path` alive.
    _mount: Option<OwnedFd>,
}

impl HelperProgram {
    /// `program` is a binary whose `main` calls [`crate::maybe_run_helper`], usually `/proc/self/exe`.
    pub fn new(program: &Path) -> io::Result<Self> {
        let program = program.canonicalize()?;
        Ok(match sys::open_read_only_clone(&program) {
            Some(mount) => Self {
                path: format!("/proc/{}/fd/{}", std::process::id(), mount.as_raw_fd()).into(),
                _mount: Some(mount),
            },
            None => Self { path: program, _mount: None },
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // What `ps` shows; the path is a number in /proc.
        command.arg0("naru");
        // Helpers take everything from files; nothing of the daemon's environment is theirs.
        command.env_clear().current_dir("/");
        command
    }
}

/// A handle on a pod's shim. Cheap to clone; dropping it leaves the shim running.
#[derive(Debug, Clone)]
pub struct Sandbox {
    id: String,
    directory: PathBuf,
    socket: PathBuf,
    pod_cgroup: String,
    pid: i32,
}

impl Sandbox {
    /// Starts the shim and returns when it answers.
    pub async fn create(program: &HelperProgram, config: &SandboxConfig) -> Result<Sandbox, Error> {
        let prepare = |source| Error::Prepare { id: config.id.clone(), source };
        std::fs::create_dir_all(&config.directory).map_err(prepare)?;
        let text = serde_json::to_vec_pretty(config).map_err(io::Error::other).map_err(prepare)?;
        write_durably(&config.directory.join("sandbox.json"), &text).map_err(prepare)?;
        let output = program
            .command()
            .arg("__shim")
            .arg(&config.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .await
            .map_err(prepare)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Shim { id: config.id.clone(), text });
        }
        match Self::adopt(&config.directory).map_err(prepare)? {
            Some(sandbox) => Ok(sandbox),
            None => Err(Error::Shim { id: config.id.clone(), text: "it died at once".to_owned() }),
        }
    }

    /// Finds the shim of a sandbox that an earlier daemon made. `None` when it does not run any
    /// more: the machine was started anew or the shim was killed.
    pub fn adopt(directory: &Path) -> io::Result<Option<Sandbox>> {
        let config: SandboxConfig = match std::fs::read(directory.join("sandbox.json")) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: ShimRecord = match std::fs::read(directory.join("shim.json")) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let same_boot = record.boot_id == sys::boot_id();
        let same_process = sys::process_start_time(record.pid) == Some(record.start_time);
        Ok((same_boot && same_process).then_some(Sandbox {
            id: config.id,
            directory: config.directory,
            socket: config.socket,
            pod_cgroup: config.pod_cgroup,
            pid: record.pid,
        }))
    }

    /// Exit statuses on disk, of containers that ended at any time.
    pub fn recorded_exits(directory: &Path) -> BTreeMap<String, Exit> {
        let entries = std::fs::read_dir(directory.join("c")).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let id = entry.file_name().into_string().ok()?;
                let text = std::fs::read(entry.path().join("exit.json")).ok()?;
                Some((id, serde_json::from_slice(&text).ok()?))
            })
            .collect()
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// The shim, whose namespaces are the pod's.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn pod_cgroup(&self) -> &str {
        &self.pod_cgroup
    }

    pub fn container_directory(&self, container: &str) -> PathBuf {
        self.directory.join("c").join(container)
    }

    async fn connect(&self) -> Result<(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf), Error> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| Error::Connection { id: self.id.clone(), source })?;
        let (reader, writer) = stream.into_split();
        Ok((BufReader::new(reader).lines(), writer))
    }

    async fn ask(&self, request: &Request) -> Result<Response, Error> {
        let (mut lines, mut writer) = self.connect().await?;
        let exchange = async {
            send(&mut writer, request).await?;
            lines.next_line().await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
        };
        let line = tokio::time::timeout(ANSWER_TIME_MAX, exchange)
            .await
            .map_err(|_| Error::Timeout { id: self.id.clone(), seconds: ANSWER_TIME_MAX.as_secs() })?
            .map_err(|source| Error::Connection { id: self.id.clone(), source })?;
        self.parse(&line)
    }

    fn parse(&self, line: &str) -> Result<Response, Error> {
        serde_json::from_str(line).map_err(|_| Error::Protocol { id: self.id.clone(), text: line.to_owned() })
    }

    fn unexpected(&self, response: Response) -> Error {
        match response {
            Response::Error(text) => Error::Refused { id: self.id.clone(), text },
            other => Error::Protocol { id: self.id.clone(), text: format!("{other:?}") },
        }
    }

    pub async fn start(&self, config: &ContainerConfig) -> Result<Started, Error> {
        match self.ask(&Request::Start(Box::new(config.clone()))).await? {
            Response::Started(started) => Ok(started),
            Response::Failed(source) => Err(Error::Start { container: config.id.clone(), source }),
            other => Err(self.unexpected(other)),
        }
    }

    /// Signals the container's first process; one that ended already is no error.
    pub async fn signal(&self, container: &str, signal: i32) -> Result<(), Error> {
        match self.ask(&Request::Signal { container: container.to_owned(), signal }).await? {
            Response::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    pub async fn containers(&self) -> Result<BTreeMap<String, ContainerStatus>, Error> {
        match self.ask(&Request::Watch).await? {
            Response::Containers(containers) => Ok(containers),
            other => Err(self.unexpected(other)),
        }
    }

    /// All containers now, and again whenever one ends.
    pub async fn watch(&self) -> Result<Watch, Error> {
        let (lines, mut writer) = self.connect().await?;
        send(&mut writer, &Request::Watch)
            .await
            .map_err(|source| Error::Connection { id: self.id.clone(), source })?;
        Ok(Watch { sandbox: self.clone(), lines, _writer: writer })
    }

    /// Joins a running container's standard streams.
    pub async fn attach(&self, container: &str, stdin: bool) -> Result<Attachment, Error> {
        self.join(container, stdin, false).await
    }

    /// As [`Sandbox::attach`] for a container that has not begun: nothing of its output is missed.
    pub async fn attach_early(&self, container: &str, stdin: bool) -> Result<Attachment, Error> {
        self.join(container, stdin, true).await
    }

    async fn join(&self, container: &str, stdin: bool, early: bool) -> Result<Attachment, Error> {
        let connection = |source| Error::Connection { id: self.id.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(connection)?;
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        send(&mut writer, &Request::Attach { container: container.to_owned(), stdin, early })
            .await
            .map_err(connection)?;
        let mut line = String::new();
        reader.read_line(&mut line).await.map_err(connection)?;
        match self.parse(&line)? {
            Response::Done => {
                let left = reader.buffer().to_vec();
                Ok(Attachment::new(left, reader.into_inner(), writer, stdin))
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Connects to a port of the pod's own loopback, from inside of its network. Blocking.
    pub fn dial(&self, port: u16, timeout: Duration) -> io::Result<std::net::TcpStream> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.pid))?;
        // A thread of its own: one that has changed its network can serve nobody else.
        let dialled = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let addresses: [std::net::SocketAddr; 2] =
                [([127, 0, 0, 1], port).into(), (std::net::Ipv6Addr::LOCALHOST, port).into()];
            let first = std::net::TcpStream::connect_timeout(&addresses[0], timeout);
            first.or_else(|error| {
                std::net::TcpStream::connect_timeout(&addresses[1], timeout).map_err(|_| error)
            })
        });
        dialled.join().unwrap_or_else(|_| Err(io::Error::other("the dialling thread panicked")))
    }

    /// Kills every container, removes the cgroups and ends the shim; returns when all is gone.
    pub async fn shutdown(&self) -> Result<(), Error> {
        match self.ask(&Request::Shutdown).await? {
            Response::Done => Ok(()),
            other => Err(self.unexpected(other)),
        }
    }

    /// Ends a sandbox whose shim may be gone or mute: whatever is left of it is killed by its
    /// cgroups. Blocking.
    pub fn destroy_remains(directory: &Path) -> io::Result<()> {
        if let Some(sandbox) = Self::adopt(directory)? {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(sandbox.pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        let Ok(text) = std::fs::read(directory.join("sandbox.json")) else { return Ok(()) };
        let config: SandboxConfig = serde_json::from_slice(&text)?;
        for _ in 0..100 {
            if crate::cgroup::remove(&config.pod_cgroup) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = std::fs::remove_file(&config.socket);
        Ok(())
    }

    /// Who somebody is by the user database of a running container.
    async fn look_up_user(&self, container: &str, name: &str) -> Result<crate::spec::ResolvedUser, Error> {
        let failed = |message: String| Error::Start {
            container: container.to_owned(),
            source: StartFailure { kind: crate::StartFailureKind::User, message },
        };
        let Some(ContainerStatus::Running(started)) = self.containers().await?.remove(container) else {
            return Err(failed("the container does not run".to_owned()));
        };
        // The kernel's own link to the root is the one link to follow.
        use nix::fcntl::{OFlag, open};
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = format!("/proc/{}/root", started.pid);
        let root = open(place.as_str(), flags, nix::sys::stat::Mode::empty())
            .map_err(|error| failed(format!("cannot open the container's root: {error}")))?;
        let root = pathrs::Root::from_fd(root);
        let user = crate::User { name: name.to_owned(), ..crate::User::default() };
        crate::start::resolve_user(&root, &user).map_err(|failure| failed(failure.message))
    }

    /// Runs another process in a running container; returns when it was executed.
    pub async fn exec(&self, program: &HelperProgram, config: &ExecConfig) -> Result<Exec, Error> {
        let prepare = |source| Error::Prepare { id: self.id.clone(), source };
        // The container's own process is the model: user, capabilities, limits, environment.
        let bundle = self.container_directory(&config.container);
        let text = std::fs::read(bundle.join("config.json")).map_err(prepare)?;
        let spec: serde_json::Value =
            serde_json::from_slice(&text).map_err(io::Error::other).map_err(prepare)?;
        let mut process = spec["process"].clone();
        process["args"] = json!(config.arguments);
        process["terminal"] = json!(config.terminal);
        if let Some(environment) = process["env"].as_array_mut() {
            if config.terminal {
                environment.push(json!("TERM=xterm"));
            }
            environment
                .extend(config.environment.iter().map(|(name, value)| json!(format!("{name}={value}"))));
        }
        if let Some(directory) = &config.working_directory {
            process["cwd"] = json!(directory);
        }
        if let Some(user) = &config.user {
            let found = self.look_up_user(&config.container, user).await?;
            process["user"] =
                json!({"uid": found.uid, "gid": found.gid, "additionalGids": found.additional_gids});
            if let (Some(home), Some(environment)) = (found.home, process["env"].as_array_mut()) {
                environment.retain(|it| !it.as_str().is_some_and(|it| it.starts_with("HOME=")));
                environment.push(json!(format!("HOME={}", home.display())));
            }
        }
        if config.privileged {
            let bits = sys::bounding_capabilities();
            let has = |(at, _): &(usize, &&str)| bits & (1 << at) != 0;
            let all = crate::spec::CAPABILITIES_ALL.iter().enumerate().filter(has);
            let all: Vec<String> = all.map(|(_, name)| format!("CAP_{name}")).collect();
            process["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
            process["noNewPrivileges"] = json!(false);
            process[helper::PRIVILEGED] = json!(true);
        }
        let file = self.directory.join(format!("exec-{}.json", sys::now_nanoseconds()));
        std::fs::write(&file, process.to_string()).map_err(prepare)?;
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(prepare)?;
        ours.set_nonblocking(true).map_err(prepare)?;
        let theirs_number = theirs.as_raw_fd();
        let stdio = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        let mut command = program.command();
        command
            .arg("__exec")
            .arg(&self.directory)
            .arg(&config.container)
            .arg(&file)
            .stdin(stdio(config.stdin))
            .stdout(Stdio::piped())
            .stderr(if config.terminal { Stdio::null() } else { Stdio::piped() })
            .kill_on_drop(true);
        // SAFETY: the closure makes one async-signal-safe call and allocates nothing.
        unsafe { command.pre_exec(move || sys::place_descriptor(theirs_number, CONTROL_DESCRIPTOR)) };
        let mut child = command.spawn().map_err(prepare)?;
        drop(theirs);
        let (reader, writer) = UnixStream::from_std(ours).map_err(prepare)?.into_split();
        let stdio =
            ExecStdio { stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take() };
        let lines = BufReader::new(reader).lines();
        let mut exec =
            Exec { container: config.container.clone(), child, lines, writer, file, ended: None, stdio };
        match exec.next_result().await? {
            ExecResult::Started => Ok(exec),
            other => Err(Error::Protocol { id: self.id.clone(), text: format!("{other:?}") }),
        }
    }
}

async fn send(writer: &mut OwnedWriteHalf, message: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(message)?;
    text.push(b'\n');
    writer.write_all(&text).await
}

/// See [`Sandbox::watch`].
pub struct Watch {
    sandbox: Sandbox,
    lines: Lines<BufReader<OwnedReadHalf>>,
    _writer: OwnedWriteHalf,
}

impl Watch {
    /// The next state; `None` when the shim is gone. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<BTreeMap<String, ContainerStatus>>, Error> {
        let line = self
            .lines
            .next_line()
            .await
            .map_err(|source| Error::Connection { id: self.sandbox.id.clone(), source })?;
        match line.map(|line| self.sandbox.parse(&line)).transpose()? {
            Some(Response::Containers(containers)) => Ok(Some(containers)),
            Some(other) => Err(self.sandbox.unexpected(other)),
            None => Ok(None),
        }
    }
}

#[derive(Debug, Clone)]
pub struct ExecConfig {
    pub container: String,
    pub arguments: Vec<String>,
    /// Added to the container's own.
    pub environment: Vec<(String, String)>,
    pub working_directory: Option<PathBuf>,
    /// Instead of the container's own: `app`, `1000:1000`.
    pub user: Option<String>,
    /// With everything that the machine has.
    pub privileged: bool,
    pub stdin: bool,
    /// A pseudo terminal: output and errors arrive together on `stdout`.
    pub terminal: bool,
}

/// The pipes of an exec; take what you need, dropping `stdin` closes it.
#[derive(Debug, Default)]
pub struct ExecStdio {
    pub stdin: Option<tokio::process::ChildStdin>,
    pub stdout: Option<tokio::process::ChildStdout>,
    pub stderr: Option<tokio::process::ChildStderr>,
}

/// A running exec. Dropping it kills the process.
#[derive(Debug)]
pub struct Exec {
    container: String,
    child: Child,
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    file: PathBuf,
    /// The helper has said how it ended; a `wait` that was cancelled afterwards must not lose it.
    ended: Option<i32>,
    pub stdio: ExecStdio,
}

impl Exec {
    pub async fn resize(&mut self, columns: u16, rows: u16) -> io::Result<()> {
        send(&mut self.writer, &ExecOrder::Resize { columns, rows }).await
    }

    /// The process' exit code. Cancel-safe; the output must be read meanwhile by the caller.
    pub async fn wait(&mut self) -> Result<i32, Error> {
        let code = match self.ended {
            Some(code) => code,
            None => match self.next_result().await? {
                ExecResult::Exited(code) => *self.ended.insert(code),
                other => {
                    return Err(Error::Protocol { id: self.container.clone(), text: format!("{other:?}") });
                }
            },
        };
        let _ = self.child.wait().await;
        Ok(code)
    }

    async fn next_result(&mut self) -> Result<ExecResult, Error> {
        let connection = |source| Error::Connection { id: self.container.clone(), source };
        let line = self.lines.next_line().await.map_err(connection)?.unwrap_or_default();
        match serde_json::from_str(&line) {
            Ok(ExecResult::Failed(source)) => Err(Error::Start { container: self.container.clone(), source }),
            Ok(result) => Ok(result),
            Err(_) => Err(Error::Protocol { id: self.container.clone(), text: line }),
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        let _ = std::fs::remove_file(self.file.with_extension("log"));
    }
}
