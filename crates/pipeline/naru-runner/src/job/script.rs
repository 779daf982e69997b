//! The processes that steps are: scripts for a shell, JavaScript for Node. And what they say to the job
//! through files and through commands in their output.

use super::environment::word;
use super::log::floor_char_boundary;
use super::packages::Loaded;
use super::{FAILED, JobRun, StepEnd, commands, matchers};
use crate::files::{FILE_BYTES_MAX, assignments};
use crate::protocol::Outcome;
use naru_objects::Diagnostic;
use naru_plan::Step;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// A step's summary beyond this is refused, as on GitHub.
const SUMMARY_BYTES_MAX: usize = 1024 * 1024;

/// Of all summaries together so much is kept with the job.
const SUMMARIES_BYTES_MAX: usize = 1024 * 1024;

/// The variable that would let one step's words change how the next one's program is started.
const BLOCKED: &str = "NODE_OPTIONS";

/// What the step at hand has said so far.
#[derive(Default)]
pub struct Speech {
    /// It wants to see its commands in the log.
    echo: bool,
    /// It has stopped commands until this comes.
    stopped: Option<String>,
    outputs: Vec<(String, String)>,
    state: Vec<(String, String)>,
    failed: bool,
    /// What was warned about once.
    warned: Vec<&'static str>,
}

impl JobRun<'_> {
    pub(super) async fn script(
        &mut self,
        at: &[usize],
        step: &Step,
        (script, shell, extension): (&str, &[String], &str),
        env: &[(String, String)],
    ) -> StepEnd {
        let prepared = (|| {
            let directory = self.step_directory()?;
            let mut script = self.text(script).map_err(|it| it.to_string())?;
            if extension == "ps1" {
                // As GitHub's runner has it: an error stops the script, and its end is that of the last program.
                script = format!(
                    "$ErrorActionPreference = 'stop'\n{script}\nif ((Test-Path -LiteralPath variable:\\LASTEXITCODE)) {{ exit $LASTEXITCODE }}\n"
                );
            }
            let within = self.text(&step.working_directory).map_err(|it| it.to_string())?;
            let file = directory.path().join(format!("script.{extension}"));
            std::fs::write(&file, script).map_err(|it| format!("cannot write the script: {it}"))?;
            Ok::<_, String>((directory, file, self.places.workspace.join(within)))
        })();
        let (directory, file, working_directory) = match prepared {
            Ok(it) => it,
            Err(error) => {
                self.log.say(&format!("error: line {}: {error}", step.line));
                return FAILED;
            }
        };
        if !working_directory.is_dir() {
            self.log.say(&format!(
                "error: line {}: the working directory {} does not exist",
                step.line,
                working_directory.display()
            ));
            return FAILED;
        }
        let words: Vec<String> =
            shell.iter().map(|it| it.replace("{0}", &file.display().to_string())).collect();
        let Some((program, arguments)) = words.split_first() else {
            self.log.say(&format!("error: line {}: the step has no shell", step.line));
            return FAILED;
        };
        // Debian has `python3` only, images without bash have `sh`, which is what an unnamed shell falls back to.
        let program = match program.as_str() {
            "python" if !self.has_program("python", env) && self.has_program("python3", env) => "python3",
            "bash"
                if arguments == ["-e", &arguments[arguments.len() - 1]] && !self.has_program("bash", env) =>
            {
                "sh"
            }
            it => it,
        };
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&working_directory);
        self.environment(&mut command, env, directory.path());
        // A script may prove to others who it is; the token of the job's services is for actions only.
        for (name, value) in &self.file.services {
            if name.starts_with("ACTIONS_ID_TOKEN_") || !name.starts_with("ACTIONS_") {
                command.env(name, value);
            }
        }
        let end = self.execute(command, program).await;
        self.heard(at, step, directory.path(), end)
    }

    pub(super) async fn node(
        &mut self,
        at: &[usize],
        step: &Step,
        loaded: &Loaded,
        script: &str,
        env: &[(String, String)],
        inputs: &[(String, Value)],
    ) -> StepEnd {
        let script = loaded.directory.join(script);
        if !script.is_file() {
            self.log.remark("error", &format!("the action's {} does not exist", script.display()));
            return FAILED;
        }
        let Some(node) = self.node_program(env) else {
            let message = "JavaScript actions need `node`, which is not in the job's image; put Node 20 or newer into \
                           the image that `runs-on` maps to";
            self.log.remark("error", message);
            return FAILED;
        };
        let directory = match self.step_directory() {
            Ok(it) => it,
            Err(error) => {
                self.log.say(&format!("error: {error}"));
                return FAILED;
            }
        };
        let mut command = Command::new(node);
        command.arg(&script).current_dir(&self.places.workspace);
        self.environment(&mut command, env, directory.path());
        for (name, value) in inputs {
            command.env(input_variable(name), value.as_str().unwrap_or_default());
        }
        for (name, value) in self.actions.states.get(at).into_iter().flatten() {
            command.env(format!("STATE_{name}"), value);
        }
        command.envs(&self.file.services);
        let end = self.execute(command, "node").await;
        self.heard(at, step, directory.path(), end)
    }

    /// A directory with the files through which a step speaks.
    pub(super) fn step_directory(&mut self) -> Result<tempfile::TempDir, String> {
        let directory = tempfile::Builder::new()
            .prefix("step-")
            .tempdir_in(&self.places.temp)
            .map_err(|it| format!("cannot make a directory in {}: {it}", self.places.temp.display()))?;
        for name in ["output", "env", "path", "summary", "state"] {
            std::fs::write(directory.path().join(name), "")
                .map_err(|it| format!("cannot write into {}: {it}", directory.path().display()))?;
        }
        self.speech = Speech { echo: self.log.debug, ..Speech::default() };
        self.matchers.reset();
        Ok(directory)
    }

    /// Takes over what the step has said to later ones.
    pub(super) fn heard(&mut self, at: &[usize], step: &Step, directory: &Path, end: StepEnd) -> StepEnd {
        let mut speech = std::mem::take(&mut self.speech);
        self.file_of("GITHUB_OUTPUT", &directory.join("output"), &mut speech, |_, speech, it| {
            speech.outputs.extend(it)
        });
        self.file_of("GITHUB_STATE", &directory.join("state"), &mut speech, |_, speech, it| {
            speech.state.extend(it)
        });
        self.file_of("GITHUB_ENV", &directory.join("env"), &mut speech, |run, _, all| {
            for (name, value) in all {
                if name.eq_ignore_ascii_case(BLOCKED) {
                    run.log.remark("error", &format!("`{BLOCKED}` cannot be set through GITHUB_ENV"));
                } else {
                    run.set_env(name, value);
                }
            }
        });
        match read(&directory.join("path")) {
            Ok(text) => {
                for line in text.split('\n').map(|it| it.trim_end_matches('\r')).filter(|it| !it.is_empty()) {
                    self.add_path(line);
                }
            }
            Err(error) => {
                self.log.remark("error", &format!("GITHUB_PATH: {error}"));
                speech.failed = true;
            }
        }
        self.summarize(&directory.join("summary"));
        let Speech { outputs, state, failed, .. } = speech;
        self.set_outputs(step, outputs);
        if !state.is_empty() {
            self.actions.states.entry(at.to_vec()).or_default().extend(state);
        }
        if failed && end.outcome == Outcome::Succeeded { FAILED } else { end }
    }

    fn file_of(
        &mut self,
        name: &str,
        path: &Path,
        speech: &mut Speech,
        take: impl FnOnce(&mut Self, &mut Speech, Vec<(String, String)>),
    ) {
        match read(path).and_then(|it| assignments(&it)) {
            Ok(all) => take(self, speech, all),
            Err(error) => {
                self.log.remark("error", &format!("{name}: {error}"));
                speech.failed = true;
            }
        }
    }

    fn set_env(&mut self, name: String, value: String) {
        self.env.retain(|(it, _)| *it != name);
        self.env.push((name, value));
    }

    /// The latest comes first, and once.
    fn add_path(&mut self, path: &str) {
        self.path.retain(|it| it != path);
        self.path.insert(0, path.to_owned());
    }

    fn summarize(&mut self, path: &Path) {
        let size = std::fs::metadata(path).map_or(0, |it| it.len());
        if size > SUMMARY_BYTES_MAX as u64 {
            let message = format!(
                "the step summary has {} KiB, at most {} KiB are kept: it is left out",
                size / 1024,
                SUMMARY_BYTES_MAX / 1024
            );
            self.log.remark("error", &message);
            return;
        }
        let Ok(text) = read(path) else { return };
        let room = SUMMARIES_BYTES_MAX.saturating_sub(self.summary.len());
        if text.len() > room {
            self.log.remark("warning", "the job's summaries are too long together: the rest is left out");
        }
        self.summary.push_str(&text[..floor_char_boundary(&text, room)]);
    }

    /// Adds to what later steps of the same level find as this one's outputs.
    pub(super) fn set_outputs(&mut self, step: &Step, outputs: Vec<(String, String)>) {
        if step.id.is_empty() {
            return;
        }
        let level = self.levels.last_mut().expect("there is always the job's own level");
        let entry = level.steps.entry(step.id.clone()).or_insert_with(|| json!({"outputs": {}}));
        for (name, value) in outputs {
            entry["outputs"][name] = json!(value);
        }
    }

    pub(super) fn set_result(&mut self, step: &Step, outcome: Outcome, conclusion: Outcome) {
        if step.id.is_empty() {
            return;
        }
        let level = self.levels.last_mut().expect("there is always the job's own level");
        let entry = level.steps.entry(step.id.clone()).or_insert_with(|| json!({"outputs": {}}));
        entry["outcome"] = json!(word(outcome));
        entry["conclusion"] = json!(word(conclusion));
    }

    /// Lines of a step's output: commands are done, remarks of compilers become annotations, all is shown.
    pub(super) fn lines(&mut self, lines: Vec<String>) {
        for line in lines {
            self.line(&line);
        }
        self.log.flush();
    }

    fn line(&mut self, line: &str) {
        if let Some(token) = &self.speech.stopped {
            if commands::resumes(line, token) {
                self.speech.stopped = None;
            }
            self.log.say(line);
            return;
        }
        match commands::parse(line) {
            Some(Ok(command)) => return self.command(line, command),
            Some(Err(misused)) => return self.misused(&misused),
            None => {}
        }
        match self.matchers.line(line) {
            Some(found) => {
                let note = self.diagnostic(&found);
                self.log.annotate_as(note, line);
            }
            None => self.log.say(line),
        }
    }

    fn misused(&mut self, why: &str) {
        self.log.remark("error", why);
        self.speech.failed = true;
    }

    fn command(&mut self, line: &str, command: commands::Command) {
        use commands::Command;
        let omitted = matches!(
            command,
            Command::AddMask(_)
                | Command::Debug(_)
                | Command::Annotate(_)
                | Command::Group(_)
                | Command::EndGroup
        );
        if self.speech.echo && !omitted {
            self.log.say(line);
        }
        match command {
            Command::Annotate(note) => {
                let file = self.within_workspace(Path::new(&note.file)).unwrap_or(note.file);
                self.log.annotate(Diagnostic { file, ..note });
            }
            Command::Debug(message) => self.log.debug(&message),
            Command::Group(title) => self.log.say(&format!("##[group]{title}")),
            Command::EndGroup => self.log.say("##[endgroup]"),
            Command::AddMask(value) if value.trim().is_empty() => {
                self.log.remark("warning", "`::add-mask::` was given nothing to hide");
            }
            Command::AddMask(value) => {
                self.log.mask.add(&value);
                if self.speech.echo {
                    self.log.say("::add-mask::***");
                }
            }
            Command::SetOutput { name, value } => {
                self.deprecated("set-output", "GITHUB_OUTPUT");
                self.speech.outputs.push((name, value));
            }
            Command::SaveState { name, value } => {
                self.deprecated("save-state", "GITHUB_STATE");
                self.speech.state.push((name, value));
            }
            Command::SetEnv { .. } | Command::AddPath(_) if !self.allows_unsecure() => {
                let message = "`::set-env::` and `::add-path::` are disabled: what a step merely prints must not change \
                               later ones; write to the files GITHUB_ENV and GITHUB_PATH";
                self.misused(message);
            }
            Command::SetEnv { name, .. } if name.eq_ignore_ascii_case(BLOCKED) => {
                self.log.remark("error", &format!("`{BLOCKED}` cannot be set through `::set-env::`"));
            }
            Command::SetEnv { name, value } => self.set_env(name, value),
            Command::AddPath(path) => self.add_path(&path),
            Command::StopCommands { token } => {
                if commands::is_safe_token(&token) {
                    self.log.say(line);
                    self.speech.stopped = Some(token);
                } else {
                    self.misused(&format!(
                        "`::stop-commands::` needs a token that nobody else knows, not `{token}`"
                    ));
                }
            }
            Command::Echo(on) => self.speech.echo = on,
            Command::AddMatcher { file } => match self.load_matchers(&file) {
                Ok(loaded) => {
                    for why in &loaded.left_out {
                        self.log.remark("warning", &format!("a problem matcher is left out: {why}"));
                    }
                    self.matchers.add(loaded.matchers);
                }
                Err(error) => self.misused(&error),
            },
            Command::RemoveMatcher { owner, file } if file.is_empty() => self.matchers.remove(&owner),
            Command::RemoveMatcher { file, .. } => match self.load_matchers(&file) {
                Ok(all) => all.matchers.iter().for_each(|it| self.matchers.remove(&it.owner)),
                Err(error) => self.misused(&error),
            },
        }
    }

    fn deprecated(&mut self, command: &'static str, file: &str) {
        if !self.speech.warned.contains(&command) {
            self.speech.warned.push(command);
            let message =
                format!("`::{command}::` is deprecated; append `NAME=value` to the file ${file} instead");
            self.log.remark("warning", &message);
        }
    }

    fn allows_unsecure(&self) -> bool {
        let env = self.contexts.get("env").map(|it| it["ACTIONS_ALLOW_UNSECURE_COMMANDS"].clone());
        env.unwrap_or_default().as_str().is_some_and(|it| it.eq_ignore_ascii_case("true"))
    }

    fn load_matchers(&self, file: &str) -> Result<matchers::Loaded, String> {
        let path = self.places.workspace.join(file);
        let json = read(&path).map_err(|it| format!("the problem matcher {}: {it}", path.display()))?;
        matchers::load(&json).map_err(|it| format!("{}: {it}", path.display()))
    }

    /// What a matcher found, as a remark: about a file only if that is one of the workspace.
    fn diagnostic(&self, found: &matchers::Found) -> Diagnostic {
        let number = |it: &Option<String>| it.as_deref().and_then(|it| it.parse().ok()).unwrap_or(0);
        let file = found.file.as_deref().filter(|it| !it.trim().is_empty()).map(|file| {
            let from =
                found.from_path.as_deref().and_then(|it| Path::new(it).parent()).unwrap_or(Path::new(""));
            self.places.workspace.join(from).join(file)
        });
        let message = found.message.clone().unwrap_or_default();
        let code = found.code.as_deref().map(str::trim).filter(|it| !it.is_empty());
        Diagnostic {
            severity: match found.severity.as_deref().map(str::to_ascii_lowercase) {
                Some(it) if !it.is_empty() => it,
                _ => "error".into(),
            },
            file: file
                .filter(|it| it.is_file())
                .and_then(|it| self.within_workspace(&it))
                .unwrap_or_default(),
            line: number(&found.line),
            column: number(&found.column),
            message: code.map_or(message.clone(), |code| format!("{message} ({code})")),
            hint: String::new(),
        }
    }

    /// A path relative to the workspace; `None` if it is none of it.
    fn within_workspace(&self, path: &Path) -> Option<String> {
        if path.as_os_str().is_empty() {
            return None;
        }
        let mut plain = PathBuf::new();
        for part in self.places.workspace.join(path).components() {
            match part {
                std::path::Component::ParentDir => {
                    plain.pop();
                }
                std::path::Component::CurDir => {}
                it => plain.push(it),
            }
        }
        Some(plain.strip_prefix(&self.places.workspace).ok()?.display().to_string())
    }
}

/// A file that a step wrote, if it is there and of a sane size.
fn read(path: &Path) -> Result<String, String> {
    let size = match std::fs::metadata(path) {
        Ok(it) => it.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error.to_string()),
    };
    if size > FILE_BYTES_MAX as u64 {
        return Err(format!("the file has {} MiB, at most {} are read", size >> 20, FILE_BYTES_MAX >> 20));
    }
    let bytes = std::fs::read(path).map_err(|it| it.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `INPUT_` and the name in capitals, blanks as underscores.
pub(super) fn input_variable(name: &str) -> String {
    format!("INPUT_{}", name.replace(' ', "_").to_uppercase())
}
