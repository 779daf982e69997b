//! A workflow on somebody's own machine, without a daemon: the same reading, planning and job as on the
//! server, each job a process of our own beside the others instead of a pod. Nothing isolates it from the
//! machine: the scripts are the user's own.
//!
//! What is not here is what needs the server: environments' rules, concurrency with other runs, containers.
//!
//! [`read`] says what would run, [`run`] does it and tells how far it is.

mod child;
mod contexts;
mod facts;

pub use facts::Facts;

use crate::protocol::{Event, Outcome};
use futures::FutureExt;
use naru_plan::{Job, JobState, JobView, Next, Plan, outputs_of, plan_next, result_of};
use naru_plan_dialects::{Dialect, Trigger, dialect_of};
use naru_text::{Finding, Place};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// What is to be run, and with what.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The top of the work tree.
    pub tree: PathBuf,
    /// Workflow files relative to it; empty is all that ask for the event.
    pub files: Vec<String>,
    pub event: String,
    /// `github.event`
    pub payload: Value,
    pub inputs: Map<String, Value>,
    /// Only these jobs, with all that they need; empty is all.
    pub jobs: Vec<String>,
    /// Only combinations of matrices that have these values.
    pub matrix: Vec<(String, String)>,
    pub secrets: BTreeMap<String, String>,
    pub vars: BTreeMap<String, String>,
    /// The outermost environment of every job.
    pub env: Vec<(String, String)>,
    /// More labels that this machine stands for.
    pub labels: Vec<String>,
    pub actions_dirs: Vec<PathBuf>,
    /// Addresses and tokens of services for actions.
    pub services: BTreeMap<String, String>,
    /// Where actions are that are in no directory; see [`JobFile::actions_url`](crate::job::JobFile).
    pub actions_url: String,
    pub breaks: Vec<String>,
    pub shell_on_failure: bool,
    pub tool_cache: PathBuf,
}

/// A file with what would run of it.
pub struct Planned {
    pub plan: Plan,
    pub dialect: &'static Dialect,
}

/// Whether actions may run, which want services around them.
pub fn uses_packages(reading: &Reading) -> bool {
    let mut jobs = reading.planned.iter().flat_map(|it| &it.plan.jobs);
    jobs.any(|it| {
        it.call.is_some()
            || it.deferred.is_some()
            || it.steps.iter().any(|it| matches!(it.action, naru_plan::Action::Uses { .. }))
    })
}

/// What the workflow files of a tree say.
#[derive(Default)]
pub struct Reading {
    pub planned: Vec<Planned>,
    /// Per file everything worth saying, with its place.
    pub findings: Vec<(String, Finding)>,
}

/// Something that happened, by the job's key.
#[derive(Debug)]
pub enum Told<'a> {
    /// Jobs that are known now; those of calls and computed matrices come later.
    Jobs(&'a [Job]),
    Started(&'a str),
    Event(&'a str, &'a Event),
    Line(&'a str, &'a str),
    Ended {
        key: &'a str,
        state: JobState,
        why: &'a str,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("no step is called `{name}`")]
    NoStep { name: String },
    #[error("no job is called `{name}`; there are: {known}")]
    NoJob { name: String, known: String },
    #[error("no combination has `{name}: {value}`")]
    NoCombination { name: String, value: String },
}

/// Reads the workflow files that the request means, for its event.
pub fn read(request: &Request, facts: &Facts) -> Result<Reading, Error> {
    let files = if request.files.is_empty() { workflow_files(&request.tree) } else { request.files.clone() };
    let shared = contexts::of_event(request, facts);
    let mut trigger = Trigger {
        event: request.event.clone(),
        git_ref: facts.git_ref.clone(),
        labels: crate::labels::of_this_machine().map(str::to_owned).chain(request.labels.clone()).collect(),
        payload: request.payload.clone(),
        inputs: request.inputs.clone(),
        contexts: Map::from_iter([
            ("github".to_owned(), Value::Object(shared)),
            ("vars".to_owned(), json!(request.vars)),
        ]),
        ..Trigger::default()
    };
    let mut reading = Reading::default();
    for path in files {
        let full = request.tree.join(&path);
        let source =
            std::fs::read_to_string(&full).map_err(|source| Error::Read { path: path.clone(), source })?;
        // A file that was named is one, wherever it stands.
        let Some(dialect) =
            dialect_of(&path).or((!request.files.is_empty()).then_some(&naru_plan_dialects::DIALECTS[0]))
        else {
            continue;
        };
        let fetch = |name: String| {
            let why = "it is not here; put its repository into a directory and name that with --actions-dir";
            std::future::ready(called_file(&name, request).ok_or_else(|| why.to_owned())).boxed()
        };
        let lowering = crate::calls::lower(dialect, &path, &source, &mut trigger, &fetch);
        let lowered = lowering.now_or_never().expect("files of this machine are not waited for");
        reading.findings.extend(lowered.findings.into_iter().map(|it| (path.clone(), it)));
        if let Some(plan) = lowered.plan {
            reading.planned.push(Planned { plan: select(plan, request)?, dialect });
        }
    }
    let jobs = reading.planned.iter().flat_map(|it| &it.plan.jobs);
    let named = |name: &String| {
        jobs.clone().flat_map(|it| it.steps.iter().enumerate()).any(|(index, step)| {
            step.id.eq_ignore_ascii_case(name)
                || step.name.eq_ignore_ascii_case(name)
                || name.parse() == Ok(index + 1)
        })
    };
    // Steps of jobs that come later are not known yet.
    let is_known = jobs.clone().all(|it| it.deferred.is_none() && it.call.is_none());
    if let Some(name) = request.breaks.iter().find(|it| is_known && !named(it)) {
        return Err(Error::NoStep { name: name.clone() });
    }
    let mut more = Vec::new();
    for planned in &reading.planned {
        let remarks = planned.plan.jobs.iter().flat_map(needs_of_server);
        more.extend(remarks.map(|it| (planned.plan.file.clone(), it)));
    }
    reading.findings.extend(more);
    Ok(reading)
}

/// What of a job is the server's: refused where the job would be another one without it, else told.
fn needs_of_server(job: &Job) -> Vec<Finding> {
    let mut findings = Vec::new();
    let containers = job.container.iter().map(|it| ("container", it.line));
    for (what, line) in containers.chain(job.services.iter().map(|(_, it)| ("services", it.line))) {
        let message = format!("the job `{}` has `{what}`, which needs the daemon", job.id);
        let hint = "push it to a server, or leave the job out by naming others with --job";
        findings.push(Finding::error(Place::new(line.max(job.line), 1), message).hint(hint));
    }
    if let Some(environment) = &job.environment {
        let message =
            format!("the rules and secrets of the environment `{}` are the server's", environment.name);
        findings.push(
            Finding::warning(Place::new(job.line, 1), message).hint("its secrets can be given with --secret"),
        );
    }
    findings
}

/// A called file: of the work tree by its path, `owner/name/path@ref` in a directory of repositories.
fn called_file(name: &str, request: &Request) -> Option<String> {
    let Some((place, git_ref)) = name.split_once('@') else {
        return std::fs::read_to_string(request.tree.join(name.trim_start_matches("./"))).ok();
    };
    let mut parts = place.splitn(3, '/');
    let (owner, repository, path) = (parts.next()?, parts.next()?, parts.next()?);
    if path.split('/').any(|it| it == "..") {
        return None;
    }
    request.actions_dirs.iter().find_map(|directory| {
        let named = [format!("{repository}@{git_ref}"), repository.to_owned()];
        named.iter().find_map(|it| std::fs::read_to_string(directory.join(owner).join(it).join(path)).ok())
    })
}

/// Leaves out what was not asked for.
fn select(mut plan: Plan, request: &Request) -> Result<Plan, Error> {
    if !request.jobs.is_empty() {
        let known: BTreeSet<String> = plan.jobs.iter().map(|it| it.id.clone()).collect();
        if let Some(name) = request.jobs.iter().find(|it| !known.contains(*it)) {
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            return Err(Error::NoJob { name: name.clone(), known });
        }
        let mut wanted: BTreeSet<String> = request.jobs.iter().cloned().collect();
        let mut open: Vec<String> = request.jobs.clone();
        while let Some(id) = open.pop() {
            for need in plan.jobs.iter().filter(|it| it.id == id).flat_map(|it| &it.needs) {
                if wanted.insert(need.clone()) {
                    open.push(need.clone());
                }
            }
        }
        plan.jobs.retain(|it| wanted.contains(&it.id));
    }
    let is_known = plan.jobs.iter().all(|it| it.deferred.is_none() && it.call.is_none());
    for (name, value) in &request.matrix {
        let any = plan.jobs.iter().any(|it| has(it, name, value) == Some(true));
        if is_known && !any {
            return Err(Error::NoCombination { name: name.clone(), value: value.clone() });
        }
    }
    plan.jobs.retain(|it| is_wanted(it, request));
    Ok(plan)
}

fn is_wanted(job: &Job, request: &Request) -> bool {
    request.matrix.iter().all(|(name, value)| has(job, name, value) != Some(false))
}

/// Whether a combination has a value; `None` if it does not know the name.
fn has(job: &Job, name: &str, value: &str) -> Option<bool> {
    job.matrix.get(name).map(|it| match it {
        Value::String(it) => it == value,
        it => serde_json::to_string(it).is_ok_and(|it| it == value),
    })
}

fn workflow_files(tree: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(tree.join(".github/workflows")).into_iter().flatten().flatten();
    let mut files: Vec<String> =
        entries.map(|it| format!(".github/workflows/{}", it.file_name().to_string_lossy())).collect();
    files.retain(|it| dialect_of(it).is_some());
    files.sort();
    files
}

/// How a run went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Succeeded,
    Failed,
    Cancelled,
}

/// How jobs are started.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Our own program, which runs jobs as `PROGRAM __job -`.
    pub program: PathBuf,
    /// Every job gets a directory in it.
    pub scratch: PathBuf,
    /// So many jobs run at a time.
    pub jobs_max: usize,
}

/// Runs what was planned. `stop` ends the run early: each message is one more request to be quick.
pub async fn run(
    request: &Request,
    facts: &Facts,
    planned: &Planned,
    machine: &Machine,
    stop: &mut mpsc::Receiver<()>,
    tell: &mut dyn FnMut(Told<'_>),
) -> Ended {
    let (messages_in, mut messages) = mpsc::channel(256);
    let jobs = planned.plan.jobs.clone();
    let mut local = Local {
        request,
        planned,
        shared: contexts::of_event(request, facts),
        facts,
        machine,
        views: vec![JobView::default(); jobs.len()],
        jobs,
        children: BTreeMap::new(),
        messages: messages_in,
        cancelled: false,
    };
    tell(Told::Jobs(&local.jobs));
    loop {
        while local.step(tell) {}
        if local.children.is_empty() {
            break;
        }
        tokio::select! {
            Some((key, message)) = messages.recv() => local.take(&key, message, tell),
            Some(()) = stop.recv() => {
                local.cancelled = true;
                local.children.values().for_each(child::Child::stop);
            }
        }
    }
    let of = |state| {
        local.jobs.iter().zip(&local.views).any(|(job, it)| it.state == state && !job.continue_on_error)
    };
    if of(JobState::Failed) || of(JobState::Interrupted) {
        Ended::Failed
    } else if local.cancelled || of(JobState::Cancelled) {
        Ended::Cancelled
    } else {
        Ended::Succeeded
    }
}

struct Local<'r> {
    request: &'r Request,
    planned: &'r Planned,
    shared: Map<String, Value>,
    facts: &'r Facts,
    machine: &'r Machine,
    jobs: Vec<Job>,
    views: Vec<JobView>,
    children: BTreeMap<String, child::Child>,
    messages: mpsc::Sender<(String, child::Message)>,
    cancelled: bool,
}

impl Local<'_> {
    fn contexts(&self, job: &Job) -> Map<String, Value> {
        contexts::of_job(
            &self.shared,
            self.request,
            &self.planned.plan,
            job,
            &self.jobs,
            &self.views,
            self.cancelled,
        )
    }

    /// Does what is due; true if that may make more due.
    fn step(&mut self, tell: &mut dyn FnMut(Told<'_>)) -> bool {
        let evaluator = self.planned.dialect.evaluator;
        let next = plan_next(&self.jobs, &self.views, self.cancelled, |job| {
            evaluator.condition(job.condition.as_deref(), &Value::Object(self.contexts(job)))
        });
        for next in next {
            match next {
                Next::Start(index) if self.children.len() >= self.machine.jobs_max => {
                    let _waits_for_a_place = index;
                }
                Next::Start(index) => match self.start(index) {
                    Ok(()) => {
                        self.views[index].state = JobState::Running;
                        tell(Told::Started(&self.jobs[index].key));
                    }
                    Err(why) => {
                        self.end(index, JobState::Failed, &why, tell);
                        return true;
                    }
                },
                Next::Skip(index, why) => {
                    self.end(index, JobState::Skipped, &why, tell);
                    return true;
                }
                Next::Fail(index, why) => {
                    self.end(index, JobState::Failed, &why, tell);
                    return true;
                }
                Next::Cancel(index, why) => {
                    let key = &self.jobs[index].key;
                    match self.children.get_mut(key) {
                        Some(child) => child.stop_once(),
                        None => {
                            self.end(index, JobState::Cancelled, &why, tell);
                            return true;
                        }
                    }
                }
                Next::Expand(index) => {
                    self.expand(index, tell);
                    return true;
                }
                Next::Finish(index, state) => {
                    self.finish(index, state, tell);
                    return true;
                }
            }
        }
        false
    }

    fn end(&mut self, index: usize, state: JobState, why: &str, tell: &mut dyn FnMut(Told<'_>)) {
        self.views[index].state = state;
        tell(Told::Ended { key: &self.jobs[index].key, state, why });
    }

    /// The jobs behind a call, or behind one whose matrix was not known.
    fn expand(&mut self, index: usize, tell: &mut dyn FnMut(Told<'_>)) {
        let job = self.jobs[index].clone();
        let contexts = Value::Object(self.contexts(&job));
        let mut jobs = match self.planned.dialect.evaluator.expand(&job, &contexts) {
            Ok(jobs) => jobs,
            Err(error) => return self.end(index, JobState::Failed, &error.message, tell),
        };
        jobs.retain(|it| is_wanted(it, self.request));
        let views = vec![JobView::default(); jobs.len()];
        if job.call.is_some() && job.deferred.is_none() {
            if let Some(call) = &mut self.jobs[index].call {
                call.expanded = true;
            }
            self.views[index].state = JobState::Running;
            tell(Told::Started(&self.jobs[index].key));
            self.jobs.splice(index + 1..index + 1, jobs);
            self.views.splice(index + 1..index + 1, views);
        } else {
            self.jobs.splice(index..=index, jobs);
            self.views.splice(index..=index, views);
        }
        tell(Told::Jobs(&self.jobs));
    }

    /// Ends a call whose jobs have ended, with its outputs.
    fn finish(&mut self, index: usize, state: JobState, tell: &mut dyn FnMut(Told<'_>)) {
        let job = self.jobs[index].clone();
        let mut contexts = self.contexts(&job);
        let inner: Vec<&Job> = self.jobs.iter().filter(|it| it.scope == job.key).collect();
        let jobs: Map<String, Value> = inner
            .iter()
            .map(|it| {
                let result = result_of(&job.key, &it.id, &self.jobs, &self.views);
                let outputs = outputs_of(&job.key, &it.id, &self.jobs, &self.views);
                (it.id.clone(), json!({"result": result, "outputs": outputs}))
            })
            .collect();
        contexts.insert("jobs".into(), Value::Object(jobs));
        if let Some(first) = inner.first() {
            contexts.insert("inputs".into(), json!(first.inputs));
        }
        let contexts = Value::Object(contexts);
        let mut outputs = BTreeMap::new();
        for (name, text) in job.call.iter().flat_map(|it| &it.outputs) {
            match self.planned.dialect.evaluator.text(text, &contexts) {
                Ok(value) => {
                    outputs.insert(name.clone(), value);
                }
                Err(error) => {
                    return self.end(index, JobState::Failed, &format!("the output `{name}`: {error}"), tell);
                }
            }
        }
        self.views[index].outputs = outputs;
        self.end(index, state, "", tell);
    }

    fn start(&mut self, index: usize) -> Result<(), String> {
        let job = &self.jobs[index];
        if job.container.is_some() || !job.services.is_empty() {
            return Err("it has containers, which need the daemon".into());
        }
        let mut contexts = self.contexts(job);
        contexts.insert("secrets".into(), self.secrets(job, &contexts)?);
        let child = child::start(
            self.request,
            self.facts,
            self.planned.dialect,
            self.machine,
            job,
            contexts,
            &self.messages,
        )
        .map_err(|it| format!("cannot start the job: {it}"))?;
        self.children.insert(job.key.clone(), child);
        Ok(())
    }

    fn secrets(&self, job: &Job, contexts: &Map<String, Value>) -> Result<Value, String> {
        let mut secrets: Map<String, Value> =
            self.request.secrets.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let token = secrets.get("GITHUB_TOKEN").cloned();
        for handed in &job.secrets {
            let mut contexts = contexts.clone();
            contexts.insert("secrets".into(), Value::Object(secrets));
            let contexts = Value::Object(contexts);
            secrets = Map::new();
            for (name, text) in handed {
                let value = self.planned.dialect.evaluator.text(text, &contexts);
                secrets
                    .insert(name.clone(), json!(value.map_err(|it| format!("the secret `{name}`: {it}"))?));
            }
        }
        secrets.extend(token.map(|it| ("GITHUB_TOKEN".to_owned(), it)));
        Ok(Value::Object(secrets))
    }

    fn take(&mut self, key: &str, message: child::Message, tell: &mut dyn FnMut(Told<'_>)) {
        let Some(index) = self.jobs.iter().position(|it| it.key == key) else { return };
        match message {
            child::Message::Line(line) => tell(Told::Line(key, &line)),
            child::Message::Event(event) => {
                if let Event::JobEnded { outcome, outputs, .. } = &event {
                    self.views[index].outputs = outputs.clone();
                    let child = self.children.get_mut(key).expect("it speaks, so it runs");
                    child.outcome = Some(*outcome);
                }
                tell(Told::Event(key, &event));
                if let (Event::Paused { .. }, Some(child)) = (&event, self.children.get(key)) {
                    child.give_terminal();
                }
            }
            child::Message::Exited(how) => {
                let Some(child) = self.children.remove(key) else { return };
                let (state, why) = match child.outcome {
                    Some(Outcome::Succeeded) => (JobState::Succeeded, String::new()),
                    Some(Outcome::Skipped) => (JobState::Skipped, String::new()),
                    Some(Outcome::Cancelled) => (JobState::Cancelled, String::new()),
                    Some(Outcome::Failed) => (JobState::Failed, String::new()),
                    None => (JobState::Failed, format!("the job ended without saying how: {how}")),
                };
                self.end(index, state, &why, tell);
            }
        }
    }
}
