//! Inside the job's pod: runs the steps one after the other and tells on standard output how far it is.
//!
//! Everything it needs is in one file ([`JobFile`], mounted from a Secret). A step is a script ([`script`]), a
//! checkout ([`checkout`]) or a packaged step ([`actions`]), which may hold steps of its own; all see the same
//! [`environment`], each process runs under [`process`], and what it prints goes by [`lines`] through
//! [`commands`] and [`matchers`] into the [`log`].

mod actions;
pub mod beside;
mod checkout;
mod commands;
mod container;
mod docker;
mod environment;
mod fetch;
mod forward;
mod hash;
mod lines;
mod log;
mod matchers;
mod packages;
mod pause;
mod process;
mod script;
pub mod snapshot;
mod sudo;
mod testing;
pub mod wait;

use crate::protocol::{Event, Outcome};
use environment::{Level, Places};
use futures::FutureExt;
use log::Log;
use naru_plan::{Action, Job, Step};
use naru_plan_dialects::Dialect;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// No timeout is longer: a number that somebody typed must not overflow the clock.
const TIMEOUT_MINUTES_MAX: f64 = 60.0 * 24.0 * 365.0;

/// How long steps that run always may go on after a cancellation, unless the job says.
const CANCEL_MINUTES_DEFAULT: u64 = 5;

/// An output beyond this is refused, as on GitHub: it is kept with the run.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

fn minutes(count: f64) -> Duration {
    // A NaN is no limit that anybody meant.
    Duration::try_from_secs_f64(60.0 * count.clamp(0.0, TIMEOUT_MINUTES_MAX)).unwrap_or_default()
}

/// Everything that a job needs to know.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobFile {
    /// The language whose expressions the job's texts hold.
    pub dialect: String,
    /// See [`crate::protocol`].
    pub nonce: String,
    pub job: Job,
    /// `github`, `needs`, `secrets`, `matrix`, ... as the dialect names them.
    pub contexts: Map<String, Value>,
    /// Addresses and tokens of the services that packaged steps talk to (`ACTIONS_RUNTIME_TOKEN`, ...): part
    /// of their environment. Scripts see those of them that prove who the job is.
    pub services: BTreeMap<String, String>,
    /// Ports of services that steps look for under another number: theirs, and that of the service.
    pub forwards: Vec<(u16, u16)>,
    /// Where the daemon starts containers beside this pod, and with what the job proves itself; empty where it
    /// has no pod.
    pub beside_url: String,
    pub beside_token: String,
    /// Steps may build and push images with the daemon, over a socket of Docker's kind.
    pub docker: bool,
    /// Directories with packaged steps, `<owner>/<repository>` or `<owner>/<repository>@<ref>`, asked before
    /// the server.
    pub actions_dirs: Vec<PathBuf>,
    /// Where else they are, if not at `github.server_url`: `<url>/_apis/actions/<owner>/<repository>/<ref>` answers
    /// with an archive.
    pub actions_url: String,
    /// The repository's URL as the pod reaches it, and the token that may read it.
    pub checkout_url: String,
    pub checkout_token: String,
    pub sha: String,
    pub git_ref: String,
    pub workspace: PathBuf,
    /// On somebody's own machine: a checkout takes this work tree as it is, uncommitted changes included.
    pub checkout_tree: Option<PathBuf>,
    /// Steps before which a shell opens on the terminal, by id, name or number.
    pub breaks: Vec<String>,
    /// A shell opens after a step that failed.
    pub shell_on_failure: bool,
}

/// Runs the job; the exit code is 0 if it succeeded. `image_path` is the PATH that the pod's image came
/// with, `out` is the pod's log.
pub async fn run(file: JobFile, image_path: String, out: &mut (dyn Write + Send)) -> i32 {
    let mut log = Log::new(out, &file.nonce);
    let Some(dialect) = naru_plan_dialects::DIALECTS.iter().find(|it| it.name == file.dialect) else {
        log.say(&format!("error: this naru does not know the workflow language `{}`", file.dialect));
        return 1;
    };
    log.mask.add(&file.checkout_token);
    log.mask.add(&file.beside_token);
    for (_, secret) in file.contexts.get("secrets").and_then(Value::as_object).into_iter().flatten() {
        log.mask.add(secret.as_str().unwrap_or_default());
    }
    for (name, value) in &file.services {
        if name.ends_with("_TOKEN") {
            log.mask.add(value);
        }
    }
    log.mask.settle();
    let mut image_path = image_path;
    let places = Places::of(&file);
    let contexts = environment::first_contexts(&file, &places);
    log.debug = contexts.get("runner").is_some_and(|it| it["debug"] == "1");
    // On somebody's own machine nobody is made root.
    let in_pod = !file.beside_url.is_empty();
    let root = in_pod.then(|| places.own());
    let sudo = root.and_then(|it| sudo::offer(it, &image_path));
    if let Some(directory) = &sudo {
        image_path = format!("{image_path}:{}", directory.display());
    }
    let mut env = Vec::new();
    if file.docker {
        match docker::open(&file.beside_url, &file.beside_token, places.own()) {
            Ok(other) => env.extend(other.map(|it| ("DOCKER_HOST".to_owned(), it))),
            Err(error) => log.say(&format!("warning: this job has no docker socket: {error}")),
        }
    }
    let now = Instant::now();
    let mut run = JobRun {
        log,
        dialect,
        interrupt: Interrupt::listen(),
        deadline: now + minutes(file.job.timeout_minutes.max(1) as f64),
        limits: Vec::new(),
        levels: vec![Level { inputs: contexts["inputs"].clone(), ..Level::default() }],
        contexts,
        places,
        env,
        path: Vec::new(),
        action_name: String::new(),
        names: BTreeMap::new(),
        speech: script::Speech::default(),
        matchers: matchers::Matchers::default(),
        actions: actions::Actions::default(),
        stop: None,
        summary: String::new(),
        groups: Vec::new(),
        extra_steps: 0,
        has_tools: sudo.is_some(),
        image_path,
        file,
    };
    run.job().await
}

struct JobRun<'a> {
    log: Log<'a>,
    dialect: &'static Dialect,
    interrupt: Interrupt,
    deadline: Instant,
    /// The ends of the steps that are under way, from the outermost in.
    limits: Vec<Instant>,
    file: JobFile,
    places: Places,
    contexts: Map<String, Value>,
    /// The job's environment so far, later entries win.
    env: Vec<(String, String)>,
    /// What steps have put in front of PATH, the latest first.
    path: Vec<String>,
    /// The job's own steps, and those of the composites that are under way. Never empty.
    levels: Vec<Level>,
    /// `github.action` of the step at hand, and how often each name was given.
    action_name: String,
    names: BTreeMap<String, usize>,
    speech: script::Speech,
    matchers: matchers::Matchers,
    actions: actions::Actions,
    stop: Option<Stop>,
    summary: String,
    /// The process groups of steps that have ended: what they started in the background (a server for the
    /// tests) is there for later steps and ends with the job, as on GitHub.
    groups: Vec<nix::unistd::Pid>,
    /// Steps beyond those of the file: what packages do before and after.
    extra_steps: usize,
    image_path: String,
    /// The image's PATH has a directory of ours at its end.
    has_tools: bool,
}

/// Somebody wants the job to end: its pod is deleted, or whoever started it here says so.
struct Interrupt {
    terminate: Signal,
    /// Ctrl-C goes to everything on the terminal; what it means for the job, whoever started it decides. Held so
    /// that the signal does nothing.
    _interrupt: Signal,
}

impl Interrupt {
    fn listen() -> Self {
        let of = |kind| signal(kind).expect("a runtime with I/O enabled can listen for signals");
        Self { terminate: of(SignalKind::terminate()), _interrupt: of(SignalKind::interrupt()) }
    }

    async fn recv(&mut self) {
        self.terminate.recv().await;
    }
}

/// The job ends early; steps that run always may go on until `until`.
struct Stop {
    cancelled: bool,
    until: Instant,
}

/// How one step went.
#[derive(Clone, Copy)]
struct StepEnd {
    outcome: Outcome,
    exit_code: Option<i32>,
}

const FAILED: StepEnd = StepEnd { outcome: Outcome::Failed, exit_code: None };
const SUCCEEDED: StepEnd = StepEnd { outcome: Outcome::Succeeded, exit_code: None };
const SKIPPED: StepEnd = StepEnd { outcome: Outcome::Skipped, exit_code: None };

impl JobRun<'_> {
    async fn job(&mut self) -> i32 {
        self.log.tell(&Event::JobStarted { at: now() });
        let mut steps = self.file.job.steps.clone();
        if !self.prepare() || !self.fetch_actions(&steps).await {
            self.levels[0].failed = true;
            // Not even what runs always: there is nothing to clean up yet.
            for (index, step) in steps.drain(..).enumerate() {
                self.end_event(index, &step.name, &SKIPPED);
            }
        }
        for (from, to) in self.file.forwards.clone() {
            if let Err(error) = forward::start(from, ([127, 0, 0, 1], to).into()).await {
                self.log.say(&format!("error: the port {from} of a service cannot be listened on: {error}"));
                self.levels[0].failed = true;
            }
        }
        let server = self.file.services.get("ACTIONS_RESULTS_URL").cloned().unwrap_or_default();
        if let Err(error) = forward::start_server(&server).await {
            self.log.say(&format!(
                "warning: curl and git do not reach {server}, because its port is taken: {error}"
            ));
        }
        self.pre_steps(&steps).await;
        for (index, step) in steps.iter().enumerate() {
            self.step(&[index], step).await;
        }
        self.post_steps().await;
        for group in std::mem::take(&mut self.groups) {
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
        let outputs = self.outputs();
        let outcome = match &self.stop {
            Some(Stop { cancelled: true, .. }) => Outcome::Cancelled,
            Some(_) => Outcome::Failed,
            None if self.levels[0].failed => Outcome::Failed,
            None => Outcome::Succeeded,
        };
        self.report_tests();
        let summary = std::mem::take(&mut self.summary);
        let summary = summary.lines().map(|it| self.log.masked(it)).collect::<Vec<_>>().join("\n");
        let annotations = std::mem::take(&mut self.log.annotations);
        self.log.tell(&Event::JobEnded { outcome, outputs, summary, annotations, at: now() });
        i32::from(outcome != Outcome::Succeeded)
    }

    /// Directories, the event's file, the job's environment; false if the job cannot run at all.
    fn prepare(&mut self) -> bool {
        let made = self.places.make().and_then(|()| environment::write_event(&self.file, &self.places));
        if let Err(error) = made {
            let place = self.places.workspace.display().to_string();
            self.log.say(&format!("error: cannot make the workspace {place}: {error}"));
            return false;
        }
        // The outer scopes' values may use one another only in the order in which they stand.
        for (name, template) in self.file.job.env.clone() {
            self.enter(&[]);
            match self.text(&template) {
                Ok(value) => self.env.push((name, value)),
                Err(error) => {
                    self.log.say(&format!("error: the value of `{name}` in `env`: {error}"));
                    return false;
                }
            }
        }
        true
    }

    fn outputs(&mut self) -> BTreeMap<String, String> {
        let mut outputs = BTreeMap::new();
        self.enter(&[]);
        for (name, template) in self.file.job.outputs.clone() {
            match self.text(&template) {
                Ok(value) if self.log.mask.hides(&value) => {
                    self.log.say(&format!("warning: the output `{name}` holds a secret and is left out"));
                }
                Ok(value) if value.len() > OUTPUT_BYTES_MAX => {
                    let message = format!(
                        "the output `{name}` has {} KiB, at most {} KiB are kept",
                        value.len() / 1024,
                        OUTPUT_BYTES_MAX / 1024
                    );
                    self.log.remark("error", &message);
                    self.levels[0].failed = true;
                }
                Ok(value) => {
                    outputs.insert(name, value);
                }
                Err(error) => {
                    self.log.say(&format!("error: the output `{name}`: {error}"));
                    self.levels[0].failed = true;
                }
            }
        }
        outputs
    }

    /// One step of the current level; `at` is its index, after those of the steps that it stands in.
    async fn step(&mut self, at: &[usize], step: &Step) -> Outcome {
        self.is_cancelled();
        let outer_name = std::mem::take(&mut self.action_name);
        self.action_name = self.name_of(&outer_name, step);
        self.enter(&[]);
        let end = self.step_within(at, step).await;
        self.action_name = outer_name;
        end.outcome
    }

    async fn step_within(&mut self, at: &[usize], step: &Step) -> StepEnd {
        // A step's own environment counts for its condition too.
        let env = match self.step_env(step) {
            Ok(env) => env,
            Err(error) => {
                self.log.remark("error", &format!("line {}: `env`: {error}", step.line));
                return self.end_step(at, step, &step.name, FAILED);
            }
        };
        self.enter(&env);
        let name = self.display_name(step);
        match self.condition(step.condition.as_deref()) {
            Ok(true) => {}
            Ok(false) => return self.end_step(at, step, &name, SKIPPED),
            Err(error) => {
                self.log.remark("error", &format!("line {}: `if`: {error}", step.line));
                return self.end_step(at, step, &name, FAILED);
            }
        }
        let limit = match self.timeout(step) {
            Ok(limit) => limit,
            Err(error) => {
                self.log.remark("error", &format!("line {}: `timeout-minutes`: {error}", step.line));
                return self.end_step(at, step, &name, FAILED);
            }
        };
        if let [index] = at {
            self.start_step(*index, &name);
        } else {
            self.log.say(&format!("##[group]{name}"));
        }
        if let [index] = at
            && self.breaks_at(*index, step, &name)
        {
            self.pause(at, step, &env, &format!("before `{name}`")).await;
            self.enter(&env);
        }
        self.limits.extend(limit);
        let end = match &step.action {
            Action::Checkout { path, depth } => self.checkout(path, *depth).await,
            Action::Run { script, shell, extension } => {
                self.script(at, step, (script, shell, extension), &env).await
            }
            Action::Uses { uses, with } => self.uses(at, step, uses, with).await,
        };
        if limit.is_some() {
            self.limits.pop();
        }
        if at.len() > 1 {
            self.log.say("##[endgroup]");
        } else if end.outcome == Outcome::Failed && self.file.shell_on_failure && self.stop.is_none() {
            self.pause(at, step, &env, &format!("`{name}` has failed")).await;
        }
        self.end_step(at, step, &name, end)
    }

    fn end_step(&mut self, at: &[usize], step: &Step, name: &str, end: StepEnd) -> StepEnd {
        let conclusion = self.conclude(step, end.outcome);
        self.set_result(step, end.outcome, conclusion);
        if let [index] = at {
            self.end_event(*index, name, &end);
        } else if let Some(code) = end.exit_code.filter(|_| end.outcome == Outcome::Failed) {
            self.log.say(&format!("##[error]{name} failed with {code}"));
        }
        end
    }

    /// What a step's outcome means for those after it: a failure may be forgiven.
    fn conclude(&mut self, step: &Step, outcome: Outcome) -> Outcome {
        if outcome != Outcome::Failed {
            return outcome;
        }
        let forgiven = match step.continue_on_error_text.as_str() {
            "" => Ok(step.continue_on_error),
            text => self.text(text).map(|it| it == "true"),
        };
        match forgiven {
            Ok(true) => return Outcome::Succeeded,
            Ok(false) => {}
            Err(error) => {
                self.log.remark("error", &format!("line {}: `continue-on-error`: {error}", step.line))
            }
        }
        self.levels.last_mut().expect("there is always the job's own level").failed = true;
        outcome
    }

    /// Until when the step may run, if it says so.
    fn timeout(&mut self, step: &Step) -> Result<Option<Instant>, String> {
        let count = match step.timeout_minutes_text.as_str() {
            "" => step.timeout_minutes as f64,
            text => {
                let value = self.text(text).map_err(|it| it.to_string())?;
                let value = value.trim();
                if value.is_empty() {
                    0.0
                } else {
                    value.parse().map_err(|_| format!("`{value}` is no number"))?
                }
            }
        };
        Ok((count > 0.0).then(|| Instant::now() + minutes(count)))
    }

    fn display_name(&mut self, step: &Step) -> String {
        let name = self.text(&step.name).unwrap_or_else(|_| step.name.clone());
        self.log.masked(&name).into_owned()
    }

    /// `github.action`: the step's id, or a name after what it does, numbered from the second on.
    fn name_of(&mut self, outer: &str, step: &Step) -> String {
        let own = if step.id.is_empty() {
            let plain = match &step.action {
                Action::Run { .. } => "__run".to_owned(),
                Action::Checkout { .. } => "__actions_checkout".to_owned(),
                Action::Uses { uses, .. } if uses.starts_with('.') => "__self".to_owned(),
                Action::Uses { uses, .. } => {
                    let name = uses.split('@').next().unwrap_or_default();
                    format!("__{}", name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "_"))
                }
            };
            let count = self.names.entry(format!("{outer}/{plain}")).or_default();
            *count += 1;
            if *count > 1 { format!("{plain}_{count}") } else { plain }
        } else {
            step.id.clone()
        };
        if outer.is_empty() { own } else { format!("{outer}.{own}") }
    }

    fn level(&self) -> &Level {
        self.levels.last().expect("there is always the job's own level")
    }

    /// The index of a step that is not in the file.
    fn extra_index(&mut self) -> usize {
        self.extra_steps += 1;
        self.file.job.steps.len() + self.extra_steps - 1
    }

    fn start_step(&mut self, index: usize, name: &str) {
        self.log.tell(&Event::StepStarted { index, name: name.to_owned(), at: now() });
    }

    fn end_extra(&mut self, index: usize, name: &str, step: &Step, end: &StepEnd) {
        self.conclude(step, end.outcome);
        self.end_event(index, name, end);
    }

    fn end_event(&mut self, index: usize, name: &str, end: &StepEnd) {
        let (name, outcome, exit_code) = (name.to_owned(), end.outcome, end.exit_code);
        self.log.tell(&Event::StepEnded { index, name, outcome, exit_code, at: now() });
    }

    /// Until when what runs now may run.
    fn limit(&self) -> Instant {
        let job = self.stop.as_ref().map_or(self.deadline, |it| it.until);
        self.limits.iter().copied().fold(job, Instant::min)
    }

    fn is_cancelled(&mut self) -> bool {
        if self.interrupt.recv().now_or_never().is_some() {
            self.cancel();
        }
        self.stop.is_some()
    }

    fn cancel(&mut self) {
        self.end_early(true);
    }

    /// Something ran into its limit: a step's own, or the job's.
    fn time_out(&mut self) {
        if self.stop.is_none() && Instant::now() >= self.deadline {
            self.end_early(false);
        }
    }

    fn end_early(&mut self, cancelled: bool) {
        let grace = match self.file.job.cancel_timeout_minutes {
            0 => CANCEL_MINUTES_DEFAULT,
            it => it,
        };
        self.stop.get_or_insert_with(|| Stop { cancelled, until: Instant::now() + minutes(grace as f64) });
    }
}

fn now() -> String {
    naru_objects::timestamp(jiff::Timestamp::now())
}

#[cfg(test)]
mod tests;
