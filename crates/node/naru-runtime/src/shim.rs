//! `naru __shim <dir>`: one per pod, single-threaded, tiny, and in nobody's way.
//!
//! It waits in `poll` for its socket, its children and their output. It knows nothing that is not
//! on disk, so the daemon can always ask again; an exit status is on disk before it is told.

mod setup;
mod streams;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

pub use self::setup::main;
use self::setup::{hold_pids, say};
use self::streams::{Attached, Input};
use crate::config::{
    ContainerConfig, ContainerStatus, Exit, Request, Response, SandboxConfig, ShimRecord, StartFailure,
    StartFailureKind, Started,
};
use crate::log::{FILE_BYTES_MAX, LogFile, Splitter, Stream};
use crate::start::{self, Stdio};
use crate::sys::Fork;
use crate::{cgroup, helper, spec, sys};

/// A request is one container's configuration; environments may hold certificates.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// A client that does not read its answers is dropped, not buffered for ever.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Output that somebody who joined a container has not read yet; the container waits.
const UNREAD_BYTES_MAX: usize = 1 << 20;
/// Input that a container has not read yet; its sender waits.
const INPUT_BYTES_MAX: usize = 256 * 1024;
/// libcontainer takes milliseconds; one that takes this long hangs (a dead network file system).
const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Nothing happened for this long: what a start needed of the program is not needed for a while.
const REST_MILLISECONDS: u16 = 1000;
/// After the init process is gone nothing in its pid namespace lives; the pipes close at once.
const OUTPUT_TIME_MAX: Duration = Duration::from_secs(2);

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    watching: bool,
    attached: Option<Attached>,
    /// Goes when everything was sent.
    closing: bool,
    gone: bool,
}

/// One output stream of a container.
struct Pump {
    pipe: File,
    splitter: Splitter,
}

enum Phase {
    /// A fork works on it; its answer comes through the pipe.
    Starting {
        child: i32,
        answer: File,
        text: Vec<u8>,
        client: usize,
        since: Instant,
    },
    Running(Started),
    /// Reaped, but output may still be in the pipes.
    Draining {
        exit: Exit,
        since: Instant,
    },
    Exited(Exit),
}

struct Container {
    phase: Phase,
    pumps: Vec<Pump>,
    log: Option<LogFile>,
    input: Option<Input>,
    /// Where the container's terminal will come from.
    console: Option<UnixListener>,
    terminal: bool,
    /// The terminal is also an input, for one attachment or for many.
    terminal_input: Option<bool>,
}

struct Shim {
    config: SandboxConfig,
    listener: UnixListener,
    signals: SignalFd,
    clients: BTreeMap<usize, Client>,
    client_next: usize,
    containers: BTreeMap<String, Container>,
    /// Exit statuses of children whose meaning is not known yet: a container may end before the
    /// fork that started it has told us its pid.
    reaped: HashMap<i32, WaitStatus>,
    shutting_down: Vec<usize>,
    finished: bool,
    /// Nothing was started since the program's pages were given back.
    is_slim: bool,
    /// First process of the pid namespace that the containers share.
    pause: Option<i32>,
}

/// What a ready descriptor stands for.
#[derive(Clone)]
enum Source {
    Listener,
    Signals,
    Client(usize),
    Answer(String),
    Output(String, usize),
    Input(String),
}

impl Shim {
    fn new(config: SandboxConfig, listener: UnixListener) -> Result<Self, String> {
        sys::set_process_name("naru-shim");
        sys::set_child_subreaper();
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
            mask.add(signal);
        }
        mask.thread_block().map_err(say("cannot block signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(say("cannot make a signal descriptor"))?;
        // The daemon reads our standard error until now; from here on it must not hold its pipe.
        let null =
            File::options().read(true).write(true).open("/dev/null").map_err(say("cannot open /dev/null"))?;
        let errors = File::options()
            .create(true)
            .append(true)
            .open(config.directory.join("shim.log"))
            .map_err(say("cannot open shim.log"))?;
        for (source, target) in [(null.as_raw_fd(), 0), (null.as_raw_fd(), 1), (errors.as_raw_fd(), 2)] {
            sys::place_descriptor(source, target).map_err(say("cannot redirect standard streams"))?;
        }
        let pid = std::process::id() as i32;
        let record = ShimRecord {
            pid,
            start_time: sys::process_start_time(pid).unwrap_or_default(),
            boot_id: sys::boot_id(),
        };
        let text = serde_json::to_vec(&record).map_err(say("cannot write shim.json"))?;
        write_durably(&config.directory.join("shim.json"), &text).map_err(say("cannot write shim.json"))?;
        let pause = match config.share_pids && !config.host_pids {
            true => Some(hold_pids(&config).map_err(say("cannot share process ids"))?),
            false => None,
        };
        Ok(Self {
            config,
            pause,
            listener,
            signals,
            clients: BTreeMap::new(),
            client_next: 0,
            containers: BTreeMap::new(),
            reaped: HashMap::new(),
            shutting_down: Vec::new(),
            finished: false,
            is_slim: false,
        })
    }

    fn run(&mut self) {
        while !self.finished {
            let (sources, events) = self.wait();
            for (source, ready) in sources.into_iter().zip(events) {
                if !ready {
                    continue;
                }
                match source {
                    Source::Listener => self.accept(),
                    Source::Signals => self.drain_signals(),
                    Source::Client(number) => self.serve(number),
                    Source::Answer(id) => self.read_answer(&id),
                    Source::Output(id, stream) => self.read_output(&id, stream),
                    Source::Input(id) => self.write_input(&id),
                }
            }
            self.reap();
            self.advance();
            self.flush();
        }
    }

    /// Sleeps until something can be done. Level-triggered, so nothing is lost between rounds.
    fn wait(&mut self) -> (Vec<Source>, Vec<bool>) {
        let mut sources = vec![Source::Listener, Source::Signals];
        let mut descriptors = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        for (number, client) in &self.clients {
            let crowded =
                client.attached.as_ref().is_some_and(|it| match self.containers.get(&it.container) {
                    // It was joined before it began; what is typed waits.
                    None => true,
                    Some(container) => {
                        matches!(container.phase, Phase::Starting { .. })
                            || container.input.as_ref().is_some_and(|it| it.pending.len() >= INPUT_BYTES_MAX)
                    }
                });
            let mut flags = if crowded { PollFlags::empty() } else { PollFlags::POLLIN };
            if !client.output.is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            sources.push(Source::Client(*number));
            descriptors.push(PollFd::new(client.stream.as_fd(), flags));
        }
        let mut timed = false;
        for (id, container) in &self.containers {
            if let Phase::Starting { answer, .. } = &container.phase {
                sources.push(Source::Answer(id.clone()));
                descriptors.push(PollFd::new(answer.as_fd(), PollFlags::POLLIN));
            }
            if let Some(input) = &container.input
                && !input.pending.is_empty()
            {
                sources.push(Source::Input(id.clone()));
                descriptors.push(PollFd::new(input.pipe.as_fd(), PollFlags::POLLOUT));
            }
            timed |= matches!(container.phase, Phase::Starting { .. } | Phase::Draining { .. });
            // Who has joined and does not read holds the program up, as a terminal would: nothing is lost. The
            // end of a container does not wait for him.
            let unread = self.clients.values().any(|client| {
                client.attached.as_ref().is_some_and(|it| it.container == *id)
                    && client.output.len() >= UNREAD_BYTES_MAX
            });
            if unread && matches!(container.phase, Phase::Running(_)) {
                continue;
            }
            for (stream, pump) in container.pumps.iter().enumerate() {
                sources.push(Source::Output(id.clone(), stream));
                descriptors.push(PollFd::new(pump.pipe.as_fd(), PollFlags::POLLIN));
            }
        }
        timed |= !self.shutting_down.is_empty();
        // Only what has a deadline is polled; an idle shim never wakes.
        let timeout = match (timed, self.is_slim) {
            (true, _) => PollTimeout::from(50u8),
            (false, false) => PollTimeout::from(REST_MILLISECONDS),
            (false, true) => PollTimeout::NONE,
        };
        if poll(&mut descriptors, timeout) == Ok(0) && !timed {
            sys::pages::let_go_of_program();
            self.is_slim = true;
        }
        let ready = descriptors
            .iter()
            .map(|descriptor| descriptor.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        (sources, ready)
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let root = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)
                .is_ok_and(|peer| peer.uid() == 0);
            if !root || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let client = Client {
                stream,
                input: Vec::new(),
                output: Vec::new(),
                watching: false,
                attached: None,
                closing: false,
                gone: false,
            };
            self.clients.insert(self.client_next, client);
            self.client_next += 1;
        }
    }

    fn drain_signals(&mut self) {
        // SIGTERM and friends are read and dropped: a pod ends by request, not by a stray signal.
        while let Ok(Some(_)) = self.signals.read_signal() {}
    }

    fn serve(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let mut buffer = [0; 16 * 1024];
        loop {
            match client.stream.read(&mut buffer) {
                Ok(0) => {
                    client.gone = true;
                    break;
                }
                Ok(count) => client.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    client.gone = true;
                    break;
                }
            }
        }
        if client.input.len() > REQUEST_BYTES_MAX {
            client.gone = true;
        }
        while let Some(client) = self.clients.get_mut(&number) {
            if client.attached.is_some() {
                self.take_frames(number);
                return;
            }
            let Some(end) = client.input.iter().position(|byte| *byte == b'\n') else { return };
            let line: Vec<u8> = client.input.drain(..=end).collect();
            match serde_json::from_slice::<Request>(&line) {
                Ok(request) => self.handle(number, request),
                Err(error) => self.answer(number, &Response::Error(format!("unknown request: {error}"))),
            }
        }
    }

    fn handle(&mut self, number: usize, request: Request) {
        match request {
            Request::Start(config) => {
                if let Err(failure) = self.begin_start(number, &config) {
                    self.answer(number, &Response::Failed(failure));
                }
            }
            Request::Signal { container, signal } => {
                let response = match self.containers.get(&container).map(|container| &container.phase) {
                    Some(Phase::Running(started)) => match Signal::try_from(signal) {
                        // We are the parent: until we reap it the pid is nobody else's.
                        Ok(signal) => {
                            let _ = kill(Pid::from_raw(started.pid), signal);
                            Response::Done
                        }
                        Err(_) => Response::Error(format!("there is no signal {signal}")),
                    },
                    Some(_) => Response::Done,
                    None => Response::Error(format!("there is no container {container}")),
                };
                self.answer(number, &response);
            }
            Request::Attach { container, stdin, early } => self.attach(number, container, stdin, early),
            Request::Watch => {
                if let Some(client) = self.clients.get_mut(&number) {
                    client.watching = true;
                }
                let state = self.state();
                self.answer(number, &state);
            }
            Request::Shutdown => self.shutting_down.push(number),
        }
    }

    fn state(&self) -> Response {
        let status = |container: &Container| match &container.phase {
            Phase::Starting { .. } => ContainerStatus::Starting,
            Phase::Running(started) => ContainerStatus::Running(*started),
            Phase::Draining { exit, .. } => ContainerStatus::Running(Started {
                pid: 0,
                started_at_nanoseconds: exit.started_at_nanoseconds,
            }),
            Phase::Exited(exit) => ContainerStatus::Exited(*exit),
        };
        Response::Containers(
            self.containers.iter().map(|(id, container)| (id.clone(), status(container))).collect(),
        )
    }

    fn answer(&mut self, number: usize, response: &Response) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        match serde_json::to_vec(response) {
            Ok(text) if client.output.len() + text.len() < ANSWER_BYTES_MAX => {
                client.output.extend_from_slice(&text);
                client.output.push(b'\n');
            }
            _ => client.gone = true,
        }
    }

    fn begin_start(&mut self, number: usize, config: &ContainerConfig) -> Result<(), StartFailure> {
        let other = |message: String| StartFailure { kind: StartFailureKind::Other, message };
        if config.id.is_empty()
            || config.id.starts_with('.')
            || !config.id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        {
            return Err(other(format!("`{}` is not a container id", config.id)));
        }
        let directory = self.config.container_directory(&config.id);
        if self.containers.contains_key(&config.id) || directory.join("exit.json").exists() {
            return Err(StartFailure {
                kind: StartFailureKind::Exists,
                message: format!("container {} was started before", config.id),
            });
        }
        if !self.shutting_down.is_empty() {
            return Err(other("the sandbox is shutting down".to_owned()));
        }
        fs::create_dir_all(&directory)
            .map_err(|error| other(format!("cannot make the container's directory: {error}")))?;
        let pids_of = match &config.pids_of {
            None => self.pause,
            Some(target) => match self.containers.get(target).map(|container| &container.phase) {
                Some(Phase::Running(started)) => Some(started.pid),
                _ => return Err(other(format!("container {target} does not run"))),
            },
        };
        let pipe = || std::io::pipe().map_err(|error| other(format!("cannot make a pipe: {error}")));
        let (answer, tell) = pipe()?;
        let (out_read, out_write) = pipe()?;
        let (error_read, error_write) = pipe()?;
        let (stdin, input) = if config.stdin && !config.terminal {
            let (read, write) = pipe()?;
            (OwnedFd::from(read), Some(File::from(OwnedFd::from(write))))
        } else {
            let null =
                File::open("/dev/null").map_err(|error| other(format!("cannot open /dev/null: {error}")))?;
            (null.into(), None)
        };
        let console = match config.terminal {
            true => Some(
                start::listen_for_console(&directory)
                    .map_err(|error| other(format!("cannot wait for the terminal: {error}")))?,
            ),
            false => None,
        };
        let log = match &config.log {
            Some(path) => Some(
                LogFile::open(path, FILE_BYTES_MAX)
                    .map_err(|error| other(format!("cannot open the log `{}`: {error}", path.display())))?,
            ),
            None => None,
        };
        self.is_slim = false;
        match sys::fork().map_err(|error| other(format!("cannot fork: {error}")))? {
            Fork::Child => {
                drop((answer, out_read, error_read, input));
                sys::reset_signals();
                let stdio = Stdio { stdin, stdout: out_write.into(), stderr: error_write.into() };
                let parent = std::os::unix::process::parent_id();
                // Panics must not unwind into the shim's loop in the wrong process.
                let result =
                    std::panic::catch_unwind(|| start::start(&self.config, parent, pids_of, config, stdio))
                        .unwrap_or_else(|_| {
                            Err(other("starting the container panicked; this is a bug in Naru".to_owned()))
                        });
                let response = match result {
                    Ok(started) => Response::Started(started),
                    Err(failure) => Response::Failed(failure),
                };
                let mut tell = tell;
                let _ = serde_json::to_writer(&mut tell, &response);
                sys::exit_now(0)
            }
            Fork::Parent(child) => {
                let pump = |pipe: std::io::PipeReader, stream| {
                    let pipe = File::from(OwnedFd::from(pipe));
                    set_nonblocking(&pipe);
                    Pump { pipe, splitter: Splitter::new(stream) }
                };
                let answer = File::from(OwnedFd::from(answer));
                set_nonblocking(&answer);
                let input = input.map(|pipe| {
                    set_nonblocking(&pipe);
                    Input { pipe, once: config.stdin_once, pending: Vec::new(), ending: false }
                });
                let container = Container {
                    input,
                    console,
                    terminal: config.terminal,
                    terminal_input: (config.terminal && config.stdin).then_some(config.stdin_once),
                    phase: Phase::Starting {
                        child,
                        answer,
                        text: Vec::new(),
                        client: number,
                        since: Instant::now(),
                    },
                    pumps: vec![pump(out_read, Stream::Out), pump(error_read, Stream::Error)],
                    log,
                };
                self.containers.insert(config.id.clone(), container);
                Ok(())
            }
        }
    }

    fn read_answer(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Starting { answer, text, client, child, .. } = &mut container.phase else { return };
        let mut buffer = [0; 4096];
        loop {
            match answer.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        let (client, child) = (*client, *child);
        let response = serde_json::from_slice(text).unwrap_or_else(|_| {
            Response::Failed(StartFailure {
                kind: StartFailureKind::Other,
                message: "the start helper died without an answer".to_owned(),
            })
        });
        // It has nothing more to say; it may only be slow to exit.
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        match &response {
            Response::Started(started) => {
                container.phase = Phase::Running(*started);
                if let Some(console) = container.console.take() {
                    match helper::receive_terminal(&console) {
                        Ok(master) => container.take_terminal(master),
                        Err(error) => sys::complain!("{id} has no terminal: {error}"),
                    }
                }
            }
            _ => {
                self.containers.remove(id);
                start::clean_up(&self.config, id);
            }
        }
        let joined = |it: &Client| it.attached.as_ref().is_some_and(|it| it.container == id);
        let joined: Vec<usize> =
            self.clients.iter().filter(|(_, it)| joined(it)).map(|(number, _)| *number).collect();
        for number in joined {
            match &response {
                // What was typed before it began.
                Response::Started(_) => self.take_frames(number),
                _ => {
                    if let Some(client) = self.clients.get_mut(&number) {
                        client.closing = true;
                    }
                }
            }
        }
        self.answer(client, &response);
    }

    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => {
                    if let Some(pid) = status.pid() {
                        self.reaped.insert(pid.as_raw(), status);
                    }
                }
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
    }

    /// Moves every container to the phase that the facts allow.
    fn advance(&mut self) {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        let mut changed = false;
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            match &container.phase {
                Phase::Starting { child, since, .. } => {
                    if since.elapsed() > START_TIME_MAX {
                        let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
                    }
                }
                Phase::Running(started) => {
                    let started = *started;
                    if let Some(status) = self.reaped.remove(&started.pid) {
                        let exit = self.exit_of(&id, started.started_at_nanoseconds, status);
                        if let Some(container) = self.containers.get_mut(&id) {
                            container.phase = Phase::Draining { exit, since: Instant::now() };
                        }
                    }
                }
                Phase::Draining { .. } | Phase::Exited(_) => {}
            }
            let Some(container) = self.containers.get_mut(&id) else { continue };
            if let Phase::Draining { exit, since } = container.phase
                && (container.pumps.is_empty() || since.elapsed() > OUTPUT_TIME_MAX)
            {
                container.pumps.clear();
                container.log = None;
                container.input = None;
                for client in self.clients.values_mut() {
                    client.closing |= client.attached.as_ref().is_some_and(|it| it.container == id);
                }
                container.phase = Phase::Exited(exit);
                self.conclude(&id, exit);
                changed = true;
            }
        }
        if self.containers.values().all(|container| !matches!(container.phase, Phase::Starting { .. })) {
            let alive: Vec<i32> = self
                .containers
                .values()
                .filter_map(|container| match &container.phase {
                    Phase::Running(started) => Some(started.pid),
                    _ => None,
                })
                .collect();
            // Helpers and orphans: nobody will ask.
            self.reaped.retain(|pid, _| alive.contains(pid));
        }
        if changed {
            let state = self.state();
            let watching: Vec<usize> = self
                .clients
                .iter()
                .filter(|(_, client)| client.watching)
                .map(|(number, _)| *number)
                .collect();
            for number in watching {
                self.answer(number, &state);
            }
        }
        self.advance_shutdown();
    }

    fn exit_of(&self, id: &str, started_at_nanoseconds: i64, status: WaitStatus) -> Exit {
        let (code, signal) = match status {
            WaitStatus::Exited(_, code) => (code, None),
            WaitStatus::Signaled(_, signal, _) => (128 + signal as i32, Some(signal as i32)),
            _ => (255, None),
        };
        // The kernel counts kills in the group; it is the container's end only if that was a kill.
        let out_of_memory =
            code == 137 && cgroup::out_of_memory_kills(&spec::container_cgroup(&self.config, id)) > 0;
        Exit {
            code,
            signal,
            out_of_memory,
            started_at_nanoseconds,
            finished_at_nanoseconds: sys::now_nanoseconds(),
        }
    }

    fn conclude(&self, id: &str, exit: Exit) {
        start::clean_up(&self.config, id);
        let path = self.config.container_directory(id).join("exit.json");
        let written = serde_json::to_vec(&exit)
            .map_err(std::io::Error::other)
            .and_then(|text| write_durably(&path, &text));
        if let Err(error) = written {
            // Still told over the socket; only a crash before the next daemon hears it loses it.
            sys::complain!("cannot write the exit status of {id}: {error}");
        }
    }

    fn advance_shutdown(&mut self) {
        if self.shutting_down.is_empty() {
            return;
        }
        for container in self.containers.values() {
            match &container.phase {
                Phase::Running(started) => {
                    let _ = kill(Pid::from_raw(started.pid), Signal::SIGKILL);
                }
                Phase::Starting { child, .. } => {
                    let _ = kill(Pid::from_raw(*child), Signal::SIGKILL);
                }
                _ => {}
            }
        }
        let ended = self.containers.values().all(|container| matches!(container.phase, Phase::Exited(_)));
        // Processes of an exec may still be in a group; removal kills them and is tried again.
        if let Some(pause) = self.pause.take_if(|_| ended) {
            let _ = kill(Pid::from_raw(pause), Signal::SIGKILL);
        }
        if ended && cgroup::remove(&self.config.pod_cgroup) {
            let _ = fs::remove_file(&self.config.socket);
            for number in std::mem::take(&mut self.shutting_down) {
                self.answer(number, &Response::Done);
            }
            self.finished = true;
        }
    }

    fn flush(&mut self) {
        for client in self.clients.values_mut() {
            while !client.output.is_empty() && !client.gone {
                match client.stream.write(&client.output) {
                    Ok(0) => client.gone = true,
                    Ok(count) => {
                        client.output.drain(..count);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => client.gone = true,
                }
            }
            client.gone |= client.closing && client.output.is_empty();
        }
        let gone: Vec<usize> =
            self.clients.iter().filter(|(_, client)| client.gone).map(|(number, _)| *number).collect();
        for number in gone {
            if let Some(attached) = self.clients.remove(&number).and_then(|client| client.attached) {
                self.detach(&attached);
            }
        }
    }
}

fn set_nonblocking(file: &File) {
    let _ = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
}

/// Whole or not at all, and still there after a power cut.
pub(crate) fn write_durably(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}
