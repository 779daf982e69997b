//! Waiting for a container's process in the foreground: signals go to it, and a terminal's bytes go both ways.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys;

const FORWARDED: &[Signal] = &[
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
];

/// Our own terminal, made raw for as long as the container has it.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let stdin = std::io::stdin();
        let before = if stdin.is_terminal() { tcgetattr(&stdin).ok() } else { None };
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            let _ = tcsetattr(&stdin, SetArg::TCSANOW, &raw);
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

/// Waits until the process ends, and returns its exit code: 128 and the signal's number if one ended it.
pub fn wait(pid: i32, terminal: Option<OwnedFd>) -> i32 {
    let pid = Pid::from_raw(pid);
    let mut watched: SigSet = FORWARDED.iter().copied().collect();
    watched.add(Signal::SIGCHLD);
    watched.add(Signal::SIGWINCH);
    let _ = watched.thread_block();
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).ok();
    let _raw = terminal.is_some().then(Raw::begin);
    let mut terminal = terminal.map(File::from);
    let mut is_input_open = terminal.is_some();
    let mut code = None;
    let mut buffer = [0; 16 * 1024];
    loop {
        while code.is_none() {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, it)) => code = Some(it),
                Ok(WaitStatus::Signaled(_, signal, _)) => code = Some(128 + signal as i32),
                Ok(WaitStatus::StillAlive) => break,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => code = Some(255),
            }
        }
        // What is still in the terminal is read to its end first.
        if let (Some(code), None) = (code, &terminal) {
            return code;
        }
        let stdin = std::io::stdin();
        let mut set = Vec::new();
        if let Some(it) = &signals {
            set.push((0, PollFd::new(it.as_fd(), PollFlags::POLLIN)));
        }
        if let Some(it) = &terminal {
            set.push((1, PollFd::new(it.as_fd(), PollFlags::POLLIN)));
            if is_input_open {
                set.push((2, PollFd::new(stdin.as_fd(), PollFlags::POLLIN)));
            }
        }
        let (names, mut polled): (Vec<u8>, Vec<PollFd>) = set.into_iter().unzip();
        // A signal wakes us; the limit is for a kernel that gave us no descriptor for them.
        let _ = poll(&mut polled, PollTimeout::from(500u16));
        let is_ready = |it: &PollFd| it.revents().is_some_and(|events| !events.is_empty());
        let ready: Vec<u8> =
            names.into_iter().zip(&polled).filter(|it| is_ready(it.1)).map(|it| it.0).collect();
        if ready.contains(&0)
            && let Some(descriptor) = &signals
        {
            while let Ok(Some(signal)) = descriptor.read_signal() {
                match Signal::try_from(signal.ssi_signo as i32) {
                    Ok(Signal::SIGCHLD) | Err(_) => {}
                    Ok(Signal::SIGWINCH) => terminal.iter().for_each(follow_size),
                    Ok(signal) => drop(kill(pid, signal)),
                }
            }
        }
        if ready.contains(&1) {
            let count = terminal.as_mut().map_or(Ok(0), |it| it.read(&mut buffer));
            match count {
                // EIO is how a pty says that the last writer is gone.
                Ok(0) | Err(_) => terminal = None,
                Ok(count) => {
                    let mut out = std::io::stdout();
                    if out.write_all(&buffer[..count]).and_then(|()| out.flush()).is_err() {
                        terminal = None;
                        let _ = kill(pid, Signal::SIGHUP);
                    }
                }
            }
        } else if code.is_some() {
            terminal = None;
        }
        if ready.contains(&2) {
            match stdin.lock().read(&mut buffer) {
                Ok(0) | Err(_) => is_input_open = false,
                Ok(count) => {
                    if let Some(it) = &mut terminal {
                        let _ = it.write_all(&buffer[..count]);
                    }
                }
            }
        }
    }
}

/// Gives the container's terminal the size of ours.
pub fn follow_size(terminal: &impl AsRawFd) {
    if let Some((columns, rows)) = sys::terminal_size(std::io::stdin().as_raw_fd()) {
        sys::set_terminal_size(terminal.as_raw_fd(), columns, rows);
    }
}
