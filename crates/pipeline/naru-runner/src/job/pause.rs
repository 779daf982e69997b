//! A job that waits for somebody: a shell on the terminal, with the step's environment, before a step that
//! was asked for or after one that failed.

use super::JobRun;
use crate::protocol::Event;
use naru_plan::Step;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// How long whoever started the job may take to give the terminal away.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

impl JobRun<'_> {
    /// Whether somebody wants to look before this step: it is named by its id, its name, or its number from 1.
    pub(super) fn breaks_at(&self, index: usize, step: &Step, name: &str) -> bool {
        self.file.breaks.iter().any(|it| {
            (!step.id.is_empty() && it.eq_ignore_ascii_case(&step.id))
                || it.eq_ignore_ascii_case(name)
                || it.parse() == Ok(index + 1)
        })
    }

    /// Opens the shell and waits for its end; what is done in it (variables, outputs) counts as the step's.
    pub(super) async fn pause(&mut self, at: &[usize], step: &Step, env: &[(String, String)], why: &str) {
        let open = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty");
        let (Ok(input), Ok(output), Ok(errors)) = (open(), open(), open()) else {
            self.log.remark("warning", &format!("there is no terminal to open a shell on ({why})"));
            return;
        };
        let Ok(directory) = self.step_directory() else { return };
        let (program, plain): (_, &[&str]) =
            // Start-up files would change what the step has.
            if self.has_program("bash", env) { ("bash", &["--noprofile", "--norc"]) } else { ("sh", &[]) };
        let mut command = Command::new(program);
        command.args(plain).arg("-i").current_dir(&self.places.workspace);
        self.environment(&mut command, env, directory.path());
        command.env("PS1", "naru:\\w$ ").env("NARU_PAUSED", why);
        command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).stderr(Stdio::from(errors));
        let mut heard =
            signal(SignalKind::user_defined1()).expect("a runtime with I/O enabled can listen for signals");
        self.log.tell(&Event::Paused { why: why.to_owned(), at: super::now() });
        // Whoever draws on the terminal leaves it first; if nobody does, nobody answers.
        let _ = tokio::time::timeout(ANSWER_WITHIN, heard.recv()).await;
        match command.status().await {
            Ok(_) => {
                self.heard(at, step, directory.path(), super::SUCCEEDED);
            }
            Err(error) => self.log.remark("warning", &format!("cannot start `{program}`: {error}")),
        }
        self.log.tell(&Event::Resumed { at: super::now() });
    }
}
