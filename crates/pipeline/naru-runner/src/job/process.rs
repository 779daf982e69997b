//! One process of a step: its output line by line through the mask into the log, its end, and how it is
//! stopped: asked (SIGINT), urged (SIGTERM), killed, as GitHub's runner does.

use super::lines::Lines;
use super::{FAILED, JobRun, StepEnd};
use crate::protocol::Outcome;
use nix::sys::signal::Signal;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::Instant;

/// How long what a finished step left in the pipe is waited for. Data that was written before the exit is
/// there at once; this only bounds the wait for a process that the step left behind.
const DRAIN: Duration = Duration::from_millis(50);

/// More cannot have been in the pipe when the step ended (a pipe's size is at most 1 MiB by default).
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

/// What a stopped step gets, and how long it may take each time.
const STOP: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_millis(7500)),
    (Signal::SIGTERM, Duration::from_millis(2500)),
    (Signal::SIGKILL, Duration::from_millis(2500)),
];

/// Why a process was stopped.
#[derive(Clone, Copy, PartialEq)]
enum Why {
    Cancelled,
    TooLong,
}

impl JobRun<'_> {
    /// Runs a command to its end, or to that of the time it has.
    pub(super) async fn execute(&mut self, mut command: Command, program: &str) -> StepEnd {
        let started = (|| {
            let (reader, writer) = std::io::pipe()?;
            command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
            let child = command.spawn()?;
            // The command keeps the writing ends until it is dropped, and with them the pipe open.
            drop(command);
            Ok::<_, std::io::Error>((child, tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into())?))
        })();
        let (mut child, mut pipe) = match started {
            Ok(it) => it,
            Err(error) => {
                let hint = if error.kind() == std::io::ErrorKind::NotFound {
                    "; it is not in the image that `runs-on` maps to"
                } else {
                    ""
                };
                self.log.say(&format!("error: cannot start `{program}`: {error}{hint}"));
                return FAILED;
            }
        };
        let group = child.id().map(|it| nix::unistd::Pid::from_raw(it as i32));
        let signal_group = |signal| {
            if let Some(group) = group {
                let _ = nix::sys::signal::killpg(group, signal);
            }
        };
        let mut lines = Lines::default();
        let mut buffer = vec![0u8; 32 * 1024];
        let mut stops = STOP.iter();
        let mut next_look = self.limit();
        let mut why = None;
        let mut open = true;
        let status = loop {
            let mut stop = None;
            tokio::select! {
                read = pipe.read(&mut buffer), if open => match read {
                    // It may have closed its output and go on; its end and the deadline still count.
                    Ok(0) | Err(_) => open = false,
                    Ok(count) => {
                        let complete = lines.push(&buffer[..count], &self.log.mask);
                        self.lines(complete);
                    }
                },
                status = child.wait() => break status,
                _ = self.interrupt.recv() => stop = Some(Why::Cancelled),
                () = tokio::time::sleep_until(next_look) => stop = Some(Why::TooLong),
            }
            if let Some(it) = stop {
                if it == Why::Cancelled {
                    self.cancel();
                }
                why.get_or_insert(it);
                // Asked for twice, it comes sooner.
                let (signal, patience) = stops.next().copied().unwrap_or(STOP[STOP.len() - 1]);
                signal_group(signal);
                next_look = Instant::now() + patience;
            }
        };
        if why.is_some() {
            // A step that was stopped leaves nothing running.
            signal_group(Signal::SIGKILL);
        }
        // Bounded in time as a whole and in bytes: what was left in the background may never stop talking.
        // What lies ready is read even after the time has passed.
        let drain_until = Instant::now() + DRAIN;
        let mut drained = 0;
        while open
            && drained < DRAIN_BYTES_MAX
            && let Ok(Ok(count)) = tokio::time::timeout_at(drain_until, pipe.read(&mut buffer)).await
        {
            if count == 0 {
                open = false;
            }
            drained += count;
            let complete = lines.push(&buffer[..count], &self.log.mask);
            self.lines(complete);
        }
        let rest = lines.finish();
        self.lines(rest);
        self.groups.extend(group);
        if open {
            // A reader that goes away would end what was left in the background at its next line.
            tokio::spawn(async move { while let Ok(1..) = pipe.read(&mut buffer).await {} });
        }
        match (why, status) {
            (Some(Why::Cancelled), _) => {
                self.log.remark("error", "the job was cancelled");
                StepEnd { outcome: Outcome::Cancelled, exit_code: None }
            }
            (Some(Why::TooLong), _) => {
                self.log.remark("error", "it took longer than its timeout allows");
                self.time_out();
                FAILED
            }
            (None, Ok(status)) if status.success() => {
                StepEnd { outcome: Outcome::Succeeded, exit_code: Some(0) }
            }
            (None, Ok(status)) => {
                let code = status.code().or_else(|| {
                    use std::os::unix::process::ExitStatusExt;
                    status.signal().map(|it| 128 + it)
                });
                StepEnd { outcome: Outcome::Failed, exit_code: code }
            }
            (None, Err(error)) => {
                self.log.say(&format!("error: lost the step's process: {error}"));
                FAILED
            }
        }
    }
}
