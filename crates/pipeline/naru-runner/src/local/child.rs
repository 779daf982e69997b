//! A job as a process: its file goes in by a pipe, so that it is nowhere to be read; its log comes out.

use super::{Facts, Machine, Request};
use crate::job::JobFile;
use crate::protocol::{Event, Outcome, of_line};
use naru_plan::Job;
use naru_plan_dialects::Dialect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

pub enum Message {
    Line(String),
    Event(Event),
    Exited(String),
}

pub struct Child {
    pid: Option<Pid>,
    stopped: bool,
    /// What its last word was.
    pub outcome: Option<Outcome>,
}

impl Child {
    /// One more request to end.
    pub fn stop(&self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGTERM);
        }
    }

    /// The terminal is the job's now.
    pub fn give_terminal(&self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGUSR1);
        }
    }

    pub fn stop_once(&mut self) {
        if !std::mem::replace(&mut self.stopped, true) {
            self.stop();
        }
    }
}

pub fn start(
    request: &Request,
    facts: &Facts,
    dialect: &Dialect,
    machine: &Machine,
    job: &Job,
    mut contexts: Map<String, Value>,
    messages: &mpsc::Sender<(String, Message)>,
) -> std::io::Result<Child> {
    // Like GitHub's machines: `work/<repository>/<repository>`, what is temporary beside it.
    let root = machine.scratch.join(naru_objects::dns_label(&job.key, 60)).join(&facts.repository);
    std::fs::create_dir_all(&root)?;
    if let Some(runner) = contexts.get_mut("runner") {
        runner["tool_cache"] = json!(request.tool_cache);
    }
    let nonce = tempfile::Builder::new().prefix("").rand_bytes(24).tempfile_in(&root)?;
    let nonce = nonce.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut job = job.clone();
    job.env.splice(0..0, request.env.iter().cloned());
    let file = JobFile {
        dialect: dialect.name.into(),
        nonce: nonce.clone(),
        contexts,
        services: request.services.clone(),
        actions_dirs: request.actions_dirs.clone(),
        actions_url: request.actions_url.clone(),
        sha: facts.sha.clone(),
        git_ref: facts.git_ref.clone(),
        workspace: root.join(&facts.repository),
        checkout_tree: Some(request.tree.clone()),
        breaks: request.breaks.clone(),
        shell_on_failure: request.shell_on_failure,
        job,
        ..JobFile::default()
    };
    let mut process = Command::new(&machine.program)
        .args(["__job", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let pid = process.id().map(|it| Pid::from_raw(it as i32));
    let mut stdin = process.stdin.take().expect("piped above");
    let stdout = process.stdout.take().expect("piped above");
    let text = serde_json::to_vec(&file)?;
    let (messages, key) = (messages.clone(), file.job.key);
    tokio::spawn(async move {
        // A process that is gone says so by its end.
        let _ = stdin.write_all(&text).await;
        drop(stdin);
        let mut reader = BufReader::with_capacity(64 * 1024, stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).await.is_ok_and(|it| it > 0) {
            let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
            let message = of_line(&nonce, &text).map_or(Message::Line(text), Message::Event);
            if messages.send((key.clone(), message)).await.is_err() {
                return;
            }
            line.clear();
        }
        let how = match process.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let _ = messages.send((key, Message::Exited(how))).await;
    });
    Ok(Child { pid, stopped: false, outcome: None })
}
