//! Inside the job's pod: runs the steps one after the other and tells on standard output how far it is.
//!
//! Everything it needs is in one file ([`JobFile`], mounted from a Secret); it talks to nobody but git.

use crate::files::assignments;
use crate::mask::Mask;
use crate::protocol::{Event, Outcome, to_line};
use naru_plan::{Action, EvaluateError, Evaluator, Job, Step};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::Instant;

/// Longer lines are cut in pieces: one stack trace, and bounded memory however a step misbehaves.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// A step summary beyond this is cut, as on GitHub.
const SUMMARY_BYTES_MAX: usize = 1024 * 1024;

/// How long what a finished step left in the pipe is waited for. Data that was written before the exit is
/// there at once; this only bounds the wait for a process that the step left behind.
const DRAIN: Duration = Duration::from_millis(50);

/// More cannot have been in the pipe when the step ended (a pipe's size is at most 1 MiB by default).
const DRAIN_BYTES_MAX: usize = 1024 * 1024;

/// How often a checkout asks the server, and how much longer it waits after each time: a restart of naru
/// takes a second or two, an upgrade some more.
const FETCH_ATTEMPTS_MAX: u32 = 8;
const FETCH_PAUSE: Duration = Duration::from_millis(500);

/// How long a stopped step may take to clean up before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(7);

/// No timeout is longer: a number that somebody typed must not overflow the clock.
const TIMEOUT_MINUTES_MAX: u64 = 60 * 24 * 365;

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count.min(TIMEOUT_MINUTES_MAX))
}

/// Everything that a job needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobFile {
    /// The language whose expressions the job's texts hold.
    pub dialect: String,
    /// See [`crate::protocol`].
    pub nonce: String,
    pub job: Job,
    /// `github`, `needs`, `secrets`, `matrix`, ... as the dialect names them.
    pub contexts: Map<String, Value>,
    /// The repository's URL as the pod reaches it, and the token that may read it.
    pub checkout_url: String,
    pub checkout_token: String,
    pub sha: String,
    pub git_ref: String,
    pub workspace: PathBuf,
}

/// Runs the job; the exit code is 0 if it succeeded. `image_path` is the PATH that the pod's image came
/// with, `out` is the pod's log.
pub async fn run(file: JobFile, image_path: String, out: &mut (dyn Write + Send)) -> i32 {
    let Some(dialect) = naru_plan_dialects::DIALECTS.iter().find(|it| it.name == file.dialect) else {
        let _ = writeln!(out, "error: this naru does not know the workflow language `{}`", file.dialect);
        return 1;
    };
    let evaluator = dialect.evaluator;
    let mut mask = Mask::default();
    mask.add(&file.checkout_token);
    for secret in file.contexts.get("secrets").and_then(Value::as_object).into_iter().flatten() {
        mask.add(secret.1.as_str().unwrap_or_default());
    }
    let deadline = Instant::now() + minutes(file.job.timeout_minutes.max(1));
    let mut run = JobRun {
        out,
        mask,
        evaluator,
        deadline,
        env: Vec::new(),
        path: Vec::new(),
        steps: Map::new(),
        failed: false,
        cancelled: false,
        summary: String::new(),
        groups: Vec::new(),
        image_path,
        file,
    };
    run.job().await
}

struct JobRun<'a> {
    out: &'a mut (dyn Write + Send),
    mask: Mask,
    evaluator: &'static (dyn Evaluator + Sync),
    deadline: Instant,
    file: JobFile,
    /// The job's environment so far, later entries win.
    env: Vec<(String, String)>,
    /// What steps have put in front of PATH, the latest first.
    path: Vec<String>,
    /// The `steps` context.
    steps: Map<String, Value>,
    failed: bool,
    cancelled: bool,
    summary: String,
    /// The process groups of steps that have ended: what they started in the background (a server for the
    /// tests) is there for later steps and ends with the job, as on GitHub.
    groups: Vec<nix::unistd::Pid>,
    image_path: String,
}

/// How one step went.
struct StepEnd {
    outcome: Outcome,
    exit_code: Option<i32>,
}

const FAILED: StepEnd = StepEnd { outcome: Outcome::Failed, exit_code: None };

impl JobRun<'_> {
    async fn job(&mut self) -> i32 {
        self.tell(&Event::JobStarted { at: now() });
        self.prepare();
        let steps = self.file.job.steps.clone();
        for (index, step) in steps.iter().enumerate() {
            self.step(index, step).await;
        }
        for group in std::mem::take(&mut self.groups) {
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
        let outputs = self.outputs();
        let outcome = if self.failed || self.cancelled { Outcome::Failed } else { Outcome::Succeeded };
        let mut summary = std::mem::take(&mut self.summary);
        if summary.len() > SUMMARY_BYTES_MAX {
            let end = (0..=SUMMARY_BYTES_MAX).rev().find(|it| summary.is_char_boundary(*it)).unwrap_or(0);
            summary.truncate(end);
        }
        let summary = summary.lines().map(|it| self.mask.apply(it)).collect::<Vec<_>>().join("\n");
        self.tell(&Event::JobEnded { outcome, outputs, summary, at: now() });
        i32::from(outcome == Outcome::Failed)
    }

    fn prepare(&mut self) {
        if let Err(error) = std::fs::create_dir_all(&self.file.workspace) {
            self.say(&format!("error: cannot make the workspace: {error}"));
            self.failed = true;
        }
        // The outer scopes' values may use one another only in the order in which they stand.
        for (name, template) in self.file.job.env.clone() {
            match self.text(&template, &[]) {
                Ok(value) => self.env.push((name, value)),
                Err(error) => {
                    self.say(&format!("error: the value of `{name}` in `env`: {error}"));
                    self.failed = true;
                }
            }
        }
    }

    fn outputs(&mut self) -> BTreeMap<String, String> {
        let mut outputs = BTreeMap::new();
        for (name, template) in self.file.job.outputs.clone() {
            match self.text(&template, &[]) {
                Ok(value) if self.mask.hides(&value) => {
                    self.say(&format!("warning: the output `{name}` holds a secret and is left out"));
                }
                Ok(value) => {
                    outputs.insert(name, value);
                }
                Err(error) => {
                    self.say(&format!("error: the output `{name}`: {error}"));
                    self.failed = true;
                }
            }
        }
        outputs
    }

    async fn step(&mut self, index: usize, step: &Step) {
        // A step's own environment counts for its condition too.
        let env = match self.step_env(step) {
            Ok(env) => env,
            Err(error) => {
                self.say(&format!("error: line {}: `env`: {error}", step.line));
                self.end_step(index, step, &FAILED);
                return;
            }
        };
        let contexts = self.contexts(&env);
        let wanted = match self.evaluator.condition(step.condition.as_deref(), &contexts) {
            Ok(wanted) => wanted,
            Err(error) => {
                self.say(&format!("error: line {}: `if`: {error}", step.line));
                self.end_step(index, step, &FAILED);
                return;
            }
        };
        if !wanted {
            self.end_step(index, step, &StepEnd { outcome: Outcome::Skipped, exit_code: None });
            return;
        }
        let name = self.evaluator.text(&step.name, &contexts).unwrap_or_else(|_| step.name.clone());
        let name = self.mask.apply(&name);
        self.tell(&Event::StepStarted { index, name: name.clone(), at: now() });
        let step = Step { name, ..step.clone() };
        let end = match &step.action {
            Action::Checkout { path, depth } => self.checkout(path, *depth).await,
            Action::Run { script, shell, extension } => {
                self.script(&step, script, shell, extension, &env, &contexts).await
            }
            Action::Uses { uses, .. } => {
                self.say(&format!("error: line {}: the action `{uses}` cannot run yet", step.line));
                FAILED
            }
        };
        self.end_step(index, &step, &end);
    }

    fn end_step(&mut self, index: usize, step: &Step, end: &StepEnd) {
        let word = match end.outcome {
            Outcome::Succeeded => "success",
            Outcome::Failed => "failure",
            Outcome::Skipped => "skipped",
        };
        let forgiven = end.outcome == Outcome::Failed && step.continue_on_error;
        if end.outcome == Outcome::Failed && !forgiven {
            self.failed = true;
        }
        if !step.id.is_empty() {
            let entry = self.steps.entry(step.id.clone()).or_insert_with(|| json!({"outputs": {}}));
            entry["outcome"] = json!(word);
            entry["conclusion"] = json!(if forgiven { "success" } else { word });
        }
        self.tell(&Event::StepEnded {
            index,
            name: step.name.clone(),
            outcome: end.outcome,
            exit_code: end.exit_code,
            at: now(),
        });
    }

    fn step_env(&self, step: &Step) -> Result<Vec<(String, String)>, EvaluateError> {
        step.env.iter().map(|(name, template)| Ok((name.clone(), self.text(template, &[])?))).collect()
    }

    /// A text with its expressions replaced; `env` is what the step adds to the environment.
    fn text(&self, template: &str, env: &[(String, String)]) -> Result<String, EvaluateError> {
        self.evaluator.text(template, &self.contexts(env))
    }

    fn contexts(&self, step_env: &[(String, String)]) -> Value {
        let mut contexts = self.file.contexts.clone();
        let env: Map<String, Value> =
            self.env.iter().chain(step_env).map(|(name, value)| (name.clone(), json!(value))).collect();
        contexts.insert("env".into(), Value::Object(env));
        contexts.insert("steps".into(), Value::Object(self.steps.clone()));
        let status = if self.cancelled {
            "cancelled"
        } else if self.failed {
            "failure"
        } else {
            "success"
        };
        contexts.insert("job".into(), json!({"status": status}));
        contexts.insert("__status".into(), json!(status));
        Value::Object(contexts)
    }

    async fn script(
        &mut self,
        step: &Step,
        script: &str,
        shell: &[String],
        extension: &str,
        env: &[(String, String)],
        contexts: &Value,
    ) -> StepEnd {
        let directory = tempfile::Builder::new().prefix("naru-step-").tempdir();
        let prepared = (|| {
            let directory = directory.as_ref().map_err(|it| format!("cannot make a directory: {it}"))?;
            let script = self.evaluator.text(script, contexts).map_err(|it| it.to_string())?;
            let within =
                self.evaluator.text(&step.working_directory, contexts).map_err(|it| it.to_string())?;
            let file = directory.path().join(format!("script.{extension}"));
            std::fs::write(&file, script).map_err(|it| format!("cannot write the script: {it}"))?;
            for name in ["output", "env", "path", "summary", "state"] {
                std::fs::write(directory.path().join(name), "").map_err(|it| it.to_string())?;
            }
            Ok::<_, String>((directory.path().to_owned(), file, self.file.workspace.join(within)))
        })();
        let (directory, file, working_directory) = match prepared {
            Ok(it) => it,
            Err(error) => {
                self.say(&format!("error: line {}: {error}", step.line));
                return FAILED;
            }
        };
        if !working_directory.is_dir() {
            self.say(&format!(
                "error: line {}: the working directory {} does not exist",
                step.line,
                working_directory.display()
            ));
            return FAILED;
        }
        let words: Vec<String> =
            shell.iter().map(|it| it.replace("{0}", &file.display().to_string())).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&working_directory);
        self.environment(&mut command, env, &directory);
        let timeout = match step.timeout_minutes {
            0 => self.deadline,
            it => self.deadline.min(Instant::now() + minutes(it)),
        };
        let end = self.execute(command, &words[0], timeout).await;
        self.read_files(step, &directory);
        end
    }

    fn environment(&self, command: &mut Command, env: &[(String, String)], directory: &Path) {
        let github = &self.file.contexts.get("github").cloned().unwrap_or_default();
        let text = |key: &str| github[key].as_str().unwrap_or_default().to_owned();
        command.env("CI", "true").env("GITHUB_ACTIONS", "true");
        for (name, key) in [
            ("GITHUB_SHA", "sha"),
            ("GITHUB_REF", "ref"),
            ("GITHUB_REF_NAME", "ref_name"),
            ("GITHUB_REF_TYPE", "ref_type"),
            ("GITHUB_REPOSITORY", "repository"),
            ("GITHUB_EVENT_NAME", "event_name"),
            ("GITHUB_ACTOR", "actor"),
            ("GITHUB_WORKFLOW", "workflow"),
            ("GITHUB_JOB", "job"),
            ("GITHUB_RUN_ID", "run_id"),
            ("GITHUB_RUN_NUMBER", "run_number"),
            ("GITHUB_SERVER_URL", "server_url"),
        ] {
            command.env(name, text(key));
        }
        command.env("GITHUB_WORKSPACE", &self.file.workspace);
        command.env("RUNNER_OS", "Linux").env("RUNNER_TEMP", std::env::temp_dir());
        for (name, file) in [
            ("GITHUB_OUTPUT", "output"),
            ("GITHUB_ENV", "env"),
            ("GITHUB_PATH", "path"),
            ("GITHUB_STEP_SUMMARY", "summary"),
            ("GITHUB_STATE", "state"),
        ] {
            command.env(name, directory.join(file));
        }
        for (name, value) in self.env.iter().chain(env) {
            command.env(name, value);
        }
        if !self.path.is_empty() {
            let path = command
                .as_std()
                .get_envs()
                .find(|(name, _)| *name == "PATH")
                .and_then(|(_, value)| value.map(|it| it.to_string_lossy().into_owned()))
                .unwrap_or_else(|| self.image_path.clone());
            command.env("PATH", format!("{}:{path}", self.path.join(":")));
        }
    }

    /// Runs a command to its end, its output line by line through the mask into the log.
    async fn execute(&mut self, mut command: Command, program: &str, deadline: Instant) -> StepEnd {
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
                self.say(&format!("error: cannot start `{program}`: {error}{hint}"));
                return FAILED;
            }
        };
        let group = child.id().map(|it| nix::unistd::Pid::from_raw(it as i32));
        let signal_group = |signal| {
            if let Some(group) = group {
                let _ = nix::sys::signal::killpg(group, signal);
            }
        };
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .expect("a runtime with I/O enabled can listen for signals");
        let mut lines = Lines::default();
        let mut buffer = vec![0u8; 32 * 1024];
        let mut kill_at = None;
        let mut why = None;
        let mut open = true;
        let status = loop {
            let next_deadline = kill_at.unwrap_or(deadline);
            tokio::select! {
                read = pipe.read(&mut buffer), if open => match read {
                    // It may have closed its output and go on; its end and the deadline still count.
                    Ok(0) | Err(_) => open = false,
                    Ok(count) => self.lines(lines.push(&buffer[..count])),
                },
                status = child.wait() => break status,
                _ = terminate.recv() => {
                    self.cancelled = true;
                    why.get_or_insert("the job was cancelled");
                    signal_group(nix::sys::signal::Signal::SIGTERM);
                    kill_at = Some(Instant::now() + STOP_GRACE);
                }
                () = tokio::time::sleep_until(next_deadline) => {
                    if kill_at.is_some() {
                        signal_group(nix::sys::signal::Signal::SIGKILL);
                    } else {
                        why.get_or_insert("it took longer than its timeout allows");
                        signal_group(nix::sys::signal::Signal::SIGTERM);
                    }
                    kill_at = Some(Instant::now() + STOP_GRACE);
                }
            }
        };
        if why.is_some() {
            // A step that was stopped leaves nothing running.
            signal_group(nix::sys::signal::Signal::SIGKILL);
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
            self.lines(lines.push(&buffer[..count]));
        }
        self.lines(lines.finish());
        self.groups.extend(group);
        if open {
            // A reader that goes away would end what was left in the background at its next line.
            tokio::spawn(async move { while let Ok(1..) = pipe.read(&mut buffer).await {} });
        }
        if let Some(why) = why {
            self.say(&format!("error: {why}"));
            return FAILED;
        }
        match status {
            Ok(status) if status.success() => StepEnd { outcome: Outcome::Succeeded, exit_code: Some(0) },
            Ok(status) => {
                let code = status.code().or_else(|| {
                    use std::os::unix::process::ExitStatusExt;
                    status.signal().map(|it| 128 + it)
                });
                StepEnd { outcome: Outcome::Failed, exit_code: code }
            }
            Err(error) => {
                self.say(&format!("error: lost the step's process: {error}"));
                FAILED
            }
        }
    }

    fn lines(&mut self, lines: Vec<String>) {
        for line in lines {
            if let Some(value) = line.trim_start().strip_prefix("::add-mask::") {
                self.mask.add(value.trim());
                continue;
            }
            self.say(&line);
        }
        let _ = self.out.flush();
    }

    async fn checkout(&mut self, path: &str, depth: u32) -> StepEnd {
        let target = self.file.workspace.join(path);
        if let Err(error) = std::fs::create_dir_all(&target) {
            self.say(&format!("error: cannot make {}: {error}", target.display()));
            return FAILED;
        }
        let (url, sha) = (self.file.checkout_url.clone(), self.file.sha.clone());
        let git_ref = self.file.git_ref.clone();
        let depth = format!("--depth={depth}");
        let mut fetch = vec!["fetch", "--quiet", "--no-tags"];
        if depth != "--depth=0" {
            fetch.push(&depth);
        }
        fetch.extend([url.as_str(), sha.as_str()]);
        let branch = git_ref.strip_prefix("refs/heads/");
        let checkout: Vec<&str> = match branch {
            Some(branch) => vec!["checkout", "--quiet", "--force", "-B", branch, "FETCH_HEAD"],
            None => vec!["checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"],
        };
        let header = format!("Authorization: {}", naru_source::basic_auth(&self.file.checkout_token));
        self.mask.add(header.rsplit(' ').next().unwrap_or_default());
        for args in [vec!["init", "--quiet"], fetch, checkout] {
            let mut attempt = 1;
            loop {
                let mut command = Command::new("git");
                command
                    .args(&args)
                    .current_dir(&target)
                    .env("GIT_TERMINAL_PROMPT", "0")
                    .env("GIT_CONFIG_COUNT", "3")
                    .envs([("GIT_CONFIG_KEY_0", "http.extraHeader"), ("GIT_CONFIG_VALUE_0", header.as_str())])
                    .envs([("GIT_CONFIG_KEY_1", "core.hooksPath"), ("GIT_CONFIG_VALUE_1", "/dev/null")])
                    .envs([("GIT_CONFIG_KEY_2", "safe.directory"), ("GIT_CONFIG_VALUE_2", "*")]);
                let end = self.execute(command, "git", self.deadline).await;
                if end.outcome == Outcome::Succeeded {
                    break;
                }
                // The server may just be restarting; fetching again is harmless.
                if args[0] != "fetch" || attempt == FETCH_ATTEMPTS_MAX || self.cancelled {
                    return end;
                }
                self.say(&format!(
                    "the server did not answer, trying again ({attempt} of {FETCH_ATTEMPTS_MAX})"
                ));
                tokio::time::sleep(FETCH_PAUSE * attempt).await;
                attempt += 1;
            }
        }
        self.say(&format!("{} is at {}", path_or_workspace(path), sha.get(..12).unwrap_or(&sha)));
        StepEnd { outcome: Outcome::Succeeded, exit_code: Some(0) }
    }

    /// Takes over what the step wrote for later steps.
    fn read_files(&mut self, step: &Step, directory: &Path) {
        let read = |name: &str| std::fs::read(directory.join(name)).unwrap_or_default();
        let text = |name: &str| String::from_utf8_lossy(&read(name)).into_owned();
        match assignments(&text("output")) {
            Ok(outputs) if !step.id.is_empty() => {
                let outputs: Map<String, Value> =
                    outputs.into_iter().map(|(name, value)| (name, json!(value))).collect();
                self.steps.insert(step.id.clone(), json!({"outputs": outputs}));
            }
            Ok(_) => {}
            Err(error) => self.bad_file("GITHUB_OUTPUT", &error),
        }
        match assignments(&text("env")) {
            Ok(env) => {
                for (name, value) in env {
                    // As on GitHub: the runner's own variables are not for a step to change.
                    if name.starts_with("GITHUB_") || name.starts_with("RUNNER_") || name == "NODE_OPTIONS" {
                        self.say(&format!("warning: `{name}` cannot be set through GITHUB_ENV"));
                    } else {
                        self.env.push((name, value));
                    }
                }
            }
            Err(error) => self.bad_file("GITHUB_ENV", &error),
        }
        for line in text("path").lines().filter(|it| !it.is_empty()) {
            self.path.insert(0, line.to_owned());
        }
        self.summary.push_str(&text("summary"));
    }

    fn bad_file(&mut self, name: &str, error: &str) {
        self.say(&format!("error: {name}: {error}"));
        self.failed = true;
    }

    fn say(&mut self, line: &str) {
        let line = self.mask.apply(line);
        let _ = writeln!(self.out, "{line}");
    }

    fn tell(&mut self, event: &Event) {
        let line = to_line(&self.file.nonce, event);
        let _ = writeln!(self.out, "{line}");
        let _ = self.out.flush();
    }
}

fn path_or_workspace(path: &str) -> &str {
    if path.is_empty() { "the workspace" } else { path }
}

fn now() -> String {
    naru_objects::timestamp(jiff::Timestamp::now())
}

/// Bytes to lines, bounded.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|it| *it == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            lines.push(line.trim_end_matches(['\n', '\r']).to_owned());
        }
        if self.rest.len() > LINE_BYTES_MAX {
            lines.extend(self.finish());
        }
        lines
    }

    fn finish(&mut self) -> Vec<String> {
        let rest = std::mem::take(&mut self.rest);
        if rest.is_empty() { Vec::new() } else { vec![String::from_utf8_lossy(&rest).into_owned()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::of_line;

    fn run_step(id: &str, script: &str) -> Step {
        Step {
            id: id.into(),
            name: "Run it".into(),
            action: Action::Run {
                script: script.into(),
                shell: ["bash", "-e", "{0}"].map(str::to_owned).to_vec(),
                extension: "sh".into(),
            },
            ..Step::default()
        }
    }

    async fn job(steps: Vec<Step>) -> (i32, String, Vec<Event>) {
        let workspace = tempfile::tempdir().unwrap();
        let file = JobFile {
            dialect: "github".into(),
            nonce: "n".into(),
            job: Job {
                steps,
                timeout_minutes: 5,
                outputs: vec![("v".into(), "${{ steps.a.outputs.v }}".into())],
                ..Job::default()
            },
            contexts: json!({"secrets": {"KEY": "hunter22"}, "github": {"sha": "abc"}})
                .as_object()
                .unwrap()
                .clone(),
            checkout_url: String::new(),
            checkout_token: "token".into(),
            sha: String::new(),
            git_ref: String::new(),
            workspace: workspace.path().to_owned(),
        };
        let mut out = Vec::new();
        let code = run(file, "/usr/bin:/bin".into(), &mut out).await;
        let text = String::from_utf8(out).unwrap();
        let events = text.lines().filter_map(|it| of_line("n", it)).collect();
        (code, text, events)
    }

    #[tokio::test]
    async fn steps_pass_values_on_and_secrets_stay_hidden() {
        let (code, log, events) = job(vec![
            run_step("a", "echo v=1.2 >> $GITHUB_OUTPUT; echo X=from-env >> $GITHUB_ENV; echo '# done' >> $GITHUB_STEP_SUMMARY"),
            run_step("", "echo \"got ${{ steps.a.outputs.v }} $X ${{ env.X }}\"; echo ${{ secrets.KEY }}; echo -n ${{ secrets.KEY }} | base64"),
        ])
        .await;
        assert_eq!(code, 0, "{log}");
        assert!(log.contains("got 1.2 from-env from-env"), "{log}");
        assert!(!log.contains("hunter22") && !log.contains("aHVudGVyMjI"), "{log}");
        let Some(Event::JobEnded { outputs, summary, .. }) = events.last() else { panic!("{log}") };
        assert_eq!(outputs["v"], "1.2");
        assert_eq!(summary, "# done");
    }

    #[tokio::test]
    async fn a_failed_step_skips_the_rest_but_not_always() {
        let mut cleanup = run_step("", "echo cleaning");
        cleanup.condition = Some("always()".into());
        let (code, log, events) =
            job(vec![run_step("", "exit 3"), run_step("", "echo never"), cleanup]).await;
        assert_eq!(code, 1);
        assert!(!log.contains("never") && log.contains("cleaning"), "{log}");
        let ends: Vec<_> = events
            .iter()
            .filter_map(|it| match it {
                Event::StepEnded { outcome, exit_code, .. } => Some((*outcome, *exit_code)),
                _ => None,
            })
            .collect();
        assert_eq!(
            ends,
            [(Outcome::Failed, Some(3)), (Outcome::Skipped, None), (Outcome::Succeeded, Some(0))]
        );
    }

    #[tokio::test]
    async fn a_step_that_closes_its_output_is_still_bound_by_its_end() {
        let (code, log, _) =
            job(vec![run_step("", "exec >&- 2>&-; sleep 0.2; exit 4"), run_step("", "echo never")]).await;
        assert_eq!(code, 1);
        assert!(!log.contains("never"), "{log}");
    }

    #[tokio::test]
    async fn what_a_step_starts_in_the_background_serves_later_steps_and_ends_with_the_job() {
        let (code, log, _) = job(vec![
            run_step("", "(while sleep 0.02; do echo beat; echo x >> beats; done) & echo $! > pid"),
            run_step("", "before=$(wc -l < beats); sleep 0.3; after=$(wc -l < beats); test $after -gt $before; cat pid"),
        ])
        .await;
        assert_eq!(code, 0, "{log}");
        let pid = log.lines().filter_map(|it| it.parse::<i32>().ok()).next_back().unwrap();
        let gone = async {
            // Killed is not reaped: a zombie has no command line.
            while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|it| !it.is_empty()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    }

    #[tokio::test]
    async fn a_process_left_behind_does_not_hold_the_job() {
        let (code, log, _) = job(vec![run_step("", "sleep 600 & echo started")]).await;
        assert_eq!(code, 0);
        assert!(log.contains("started"));
    }
}
