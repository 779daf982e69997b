//! The short-lived helpers: `__exec` puts a process into a running container, `__run` runs an OCI
//! bundle from start to end.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::config::{StartFailure, StartFailureKind};
use crate::executor::PodExecutor;
use crate::launch::{self, Groups, Launch};
use crate::{seccomp, spec, start, sys, trace};

/// The control connection of an exec helper, placed there by the daemon.
pub const CONTROL_DESCRIPTOR: RawFd = 3;

/// In the description of an exec: no filter, and everything that the machine has.
pub const PRIVILEGED: &str = "naruPrivileged";

/// A failed start ends by itself at once.
const REAP_TIME_MAX: Duration = Duration::from_secs(2);

/// What the daemon tells an exec helper, one line each. End of file means: give up.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExecOrder {
    Resize { columns: u16, rows: u16 },
}

/// What an exec helper tells, one line each: `Started` and `Exited`, or `Failed` alone.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExecResult {
    Started,
    Exited(i32),
    Failed(StartFailure),
}

/// Creates, starts, waits for and deletes the container of an OCI bundle; the exit code is its own.
///
/// For programs that are single-threaded, as `naru __run` is; the caller must not have threads.
pub fn run_bundle(bundle: &Path, id: &str) -> Result<i32, StartFailure> {
    let filter = seccomp::default_filter(false);
    let executor = PodExecutor { filter: Some(filter), keep_capabilities: None, die_with_parent: true };
    let path = bundle.join("config.json");
    let spec =
        Spec::load(&path).map_err(|error| other(format!("cannot read {}: {error}", path.display())))?;
    if launch::refusal(&spec).is_none()
        && let Some(root) = spec.root().as_ref().and_then(|it| bundle.join(it.path()).canonicalize().ok())
        && let Ok(groups) = Groups::make(&own_group(&spec, id)?, &spec)
    {
        let launch = Launch {
            spec: &spec,
            root: &root,
            groups: &groups,
            executor: &executor,
            stdio: None,
            as_brother: false,
        };
        let code = launch.start().map(wait_for);
        groups.remove();
        return code;
    }
    let root = std::env::temp_dir().join(format!("naru-run-{}", std::process::id()));
    std::fs::create_dir_all(&root).map_err(other)?;
    let result = run_by_library(bundle, id, executor, &root);
    let _ = std::fs::remove_dir_all(&root);
    result
}

/// The group that the bundle names, or one by the container's name.
fn own_group(spec: &Spec, id: &str) -> Result<String, StartFailure> {
    let is_plain = |it: &str| {
        !it.is_empty()
            && !it.starts_with('.')
            && it.bytes().all(|it| it.is_ascii_alphanumeric() || b"+_.-".contains(&it))
    };
    if !is_plain(id) {
        return Err(other(format!("`{id}` is not a container id")));
    }
    let named = spec.linux().as_ref().and_then(|it| it.cgroups_path().as_ref());
    Ok(named.map_or_else(|| format!("/naru-run-{id}"), |it| it.display().to_string()))
}

fn run_by_library(bundle: &Path, id: &str, executor: PodExecutor, root: &Path) -> Result<i32, StartFailure> {
    let trace = root.join("start.log");
    trace::write_errors_to(&trace);
    let explain = |error| start::explain(error, &trace);
    let mut container = ContainerBuilder::new(id.to_owned(), SyscallType::Linux)
        .with_root_path(root)
        .map_err(explain)?
        .with_executor(executor)
        .validate_id()
        .map_err(explain)?
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(false)
        .build()
        .map_err(explain)?;
    container.start().map_err(explain)?;
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    let code = wait_for(pid);
    container.delete(true).map_err(explain)?;
    Ok(code)
}

fn wait_for(pid: i32) -> i32 {
    loop {
        match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
            Err(nix::errno::Errno::EINTR) | Ok(_) => {}
            Err(_) => return 255,
        }
    }
}

pub fn main_run(arguments: &[OsString]) -> i32 {
    let [bundle, id] = arguments else {
        sys::complain!("usage: naru __run <bundle> <id>");
        return 2;
    };
    match run_bundle(&PathBuf::from(bundle), &id.to_string_lossy()) {
        Ok(code) => code,
        Err(failure) => {
            sys::complain!("{failure}");
            match failure.kind {
                StartFailureKind::NotFound => 127,
                StartFailureKind::NotExecutable => 126,
                _ => 125,
            }
        }
    }
}

/// `__exec <pod directory> <container> <process.json>`: standard streams are the process' own, or
/// with a terminal the helper's end of it.
pub fn main_exec(arguments: &[OsString]) -> i32 {
    let [directory, container, process] = arguments else {
        sys::complain!("usage: naru __exec <pod directory> <container> <process file>");
        return 2;
    };
    let Some(control) = sys::take_descriptor(CONTROL_DESCRIPTOR) else {
        sys::complain!("naru __exec is started by the daemon, not by hand");
        return 2;
    };
    let control = UnixStream::from(control);
    let result = exec(Path::new(directory), &container.to_string_lossy(), Path::new(process), &control)
        .map_or_else(ExecResult::Failed, ExecResult::Exited);
    reap_all();
    tell(&control, &result);
    0
}

/// A daemon that is gone hears nothing, and needs nothing.
fn tell(control: &UnixStream, result: &ExecResult) {
    let _ = control.set_nonblocking(false);
    if let Ok(mut text) = serde_json::to_vec(result) {
        text.push(b'\n');
        let mut control = control;
        let _ = control.write_all(&text);
    }
}

/// Takes leave of every child. One left as a zombie belongs to a container's pid namespace, which
/// cannot end before the machine's init finds the time to reap it.
fn reap_all() {
    let deadline = Instant::now() + REAP_TIME_MAX;
    while Instant::now() < deadline {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

fn other(error: impl std::fmt::Display) -> StartFailure {
    StartFailure { kind: StartFailureKind::Other, message: error.to_string() }
}

fn exec(
    directory: &Path,
    container: &str,
    process: &Path,
    control: &UnixStream,
) -> Result<i32, StartFailure> {
    let text = std::fs::read(process).map_err(other)?;
    let description: serde_json::Value = serde_json::from_slice(&text).map_err(other)?;
    let terminal = description["terminal"] == true;
    let admin = description["capabilities"]["bounding"]
        .as_array()
        .is_some_and(|names| names.iter().any(|name| name == "CAP_SYS_ADMIN"));
    let trace = process.with_extension("log");
    trace::write_errors_to(&trace);
    let explain = |error| {
        let failure = start::explain(error, &trace);
        let _ = std::fs::remove_file(&trace);
        failure
    };
    let specification = std::fs::read(directory.join("c").join(container).join("config.json")).ok();
    let specification: serde_json::Value =
        specification.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let annotation = |name: &str| specification["annotations"][name].as_str();
    let bound = description["noNewPrivileges"] == true;
    // A container that an older version started says nothing.
    let privileged = description[PRIVILEGED] == true;
    let filtered = !privileged && annotation(spec::FILTERED).map_or(bound, |it| it == "true");
    let kept = annotation(spec::CAPABILITIES).and_then(|bits| bits.parse::<u64>().ok()).filter(|_| !bound);
    let admin = kept.map_or(admin, |bits| bits & spec::bits(&["SYS_ADMIN"]) != 0);
    let filter = seccomp::default_filter(admin);
    let builder = ContainerBuilder::new(container.to_owned(), SyscallType::Linux)
        .with_root_path(directory.join("oci"))
        .map_err(explain)?
        .with_executor(PodExecutor {
            filter: filtered.then_some(filter),
            keep_capabilities: kept,
            die_with_parent: true,
        });

    if !terminal {
        let duplicate = |descriptor: RawFd| -> Result<OwnedFd, StartFailure> {
            let standard =
                sys::take_descriptor(descriptor).ok_or_else(|| other("a standard stream is closed"))?;
            let copy = standard.try_clone().map_err(other)?;
            // The number stays open for us; only the process' own end decides when a pipe closes.
            std::mem::forget(standard);
            Ok(copy)
        };
        let (stdin, stdout, stderr) = (duplicate(0)?, duplicate(1)?, duplicate(2)?);
        let pid = builder
            .with_stdin(stdin)
            .with_stdout(stdout)
            .with_stderr(stderr)
            .as_tenant()
            .with_process(Some(process))
            .build()
            .map_err(explain)?;
        tell(control, &ExecResult::Started);
        return Ok(relay(pid.as_raw(), None, control));
    }

    // The pty is made inside the container and its master comes back over this socket.
    let socket = process.with_extension("tty");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(other)?;
    let pid = builder
        .with_console_socket(Some(&socket))
        .as_tenant()
        .with_detach(true)
        .with_process(Some(process))
        .build()
        .map_err(explain)?;
    let master = receive_terminal(&listener).map_err(other)?;
    let _ = std::fs::remove_file(&socket);
    tell(control, &ExecResult::Started);
    Ok(relay(pid.as_raw(), Some(master), control))
}

pub fn receive_terminal(listener: &UnixListener) -> std::io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (stream, _) = listener.accept()?;
    let mut buffer = [0; 64];
    let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let Some(descriptor) = descriptors.first().and_then(|number| sys::take_descriptor(*number))
        {
            return Ok(descriptor);
        }
    }
    Err(std::io::Error::other("the container sent no terminal"))
}

/// Waits for the process; carries a terminal's bytes; kills the process when the daemon hangs up.
fn relay(pid: i32, terminal: Option<OwnedFd>, control: &UnixStream) -> i32 {
    let _ = control.set_nonblocking(true);
    let mut control_reader = control;
    let mut terminal = terminal.map(File::from);
    let mut stdin_open = terminal.is_some();
    let mut control_open = true;
    let mut pending = Vec::new();
    let mut exit = None;
    let pidfd = sys::open_pidfd(pid);
    loop {
        if exit.is_none() {
            match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => exit = Some(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => exit = Some(128 + signal as i32),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => exit = Some(255),
            }
        }
        // With a terminal what is still in it is read to the end first.
        if let Some(code) = exit
            && terminal.is_none()
        {
            return code;
        }
        let stdin = std::io::stdin();
        let mut descriptors = Vec::new();
        if let Some(pidfd) = &pidfd
            && exit.is_none()
        {
            descriptors.push((0, PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)));
        }
        if control_open {
            descriptors.push((1, PollFd::new(control.as_fd(), PollFlags::POLLIN)));
        }
        if let Some(terminal) = &terminal {
            descriptors.push((2, PollFd::new(terminal.as_fd(), PollFlags::POLLIN)));
            if stdin_open {
                descriptors.push((3, PollFd::new(stdin.as_fd(), PollFlags::POLLIN)));
            }
        }
        let (names, mut set): (Vec<u8>, Vec<PollFd>) = descriptors.into_iter().unzip();
        let _ = poll(&mut set, PollTimeout::from(1000u16));
        let ready: Vec<u8> = names
            .into_iter()
            .zip(&set)
            .filter(|(_, polled)| polled.revents().is_some_and(|events| !events.is_empty()))
            .map(|(name, _)| name)
            .collect();
        let mut buffer = [0; 16 * 1024];
        if ready.contains(&1) {
            match control_reader.read(&mut buffer) {
                Ok(0) => control_open = false,
                Ok(count) => pending.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => control_open = false,
            }
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if let (Ok(ExecOrder::Resize { columns, rows }), Some(terminal)) =
                    (serde_json::from_slice(&line), &terminal)
                {
                    sys::set_terminal_size(terminal.as_raw_fd(), columns, rows);
                }
            }
            if !control_open {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if ready.contains(&2) {
            let count = terminal.as_mut().map_or(Ok(0), |terminal| terminal.read(&mut buffer));
            match count {
                // EIO is how a pty says that the last writer is gone.
                Ok(0) | Err(_) => terminal = None,
                Ok(count) => {
                    if std::io::stdout()
                        .write_all(&buffer[..count])
                        .and_then(|()| std::io::stdout().flush())
                        .is_err()
                    {
                        terminal = None;
                        let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
                    }
                }
            }
        } else if exit.is_some() && !ready.contains(&1) {
            // The process ended and its terminal is empty.
            terminal = None;
        }
        if ready.contains(&3) {
            let mut standard = stdin.lock();
            match standard.read(&mut buffer) {
                Ok(0) | Err(_) => {
                    stdin_open = false;
                    // End of input on a terminal is Ctrl-D.
                    if let Some(terminal) = &mut terminal {
                        let _ = terminal.write_all(&[4]);
                    }
                }
                Ok(count) => {
                    if let Some(terminal) = &mut terminal {
                        let _ = terminal.write_all(&buffer[..count]);
                    }
                }
            }
        }
    }
}
