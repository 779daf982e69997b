//! Drives one run from its plan to its end.

use super::contexts::{self, Place, RunContexts, view_of};
use super::environments;
use super::follow::{Followed, Report, now};
use super::groups::Standing;
use super::places::Placing;
use super::plans::{self, Planned, pending};
use super::pod;
use super::{Config, STATUS_EVERY, Shared, TAKE_UP_PAUSE};
use naru_client::{Cache, Client, EventKind};
use naru_objects::{JobPhase, JobStatus, Run, RunPhase, RunStatus, annotations, kinds};
use naru_plan::{EvaluateError, Job, JobView, Next, plan_next};
use naru_plan_dialects::Trigger;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Deadlines are looked at this often when nothing else happens.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// So often a commit is asked for before the run has failed.
const CHECKOUT_ATTEMPTS_MAX: u32 = 5;

pub struct Driver {
    pub shared: Arc<Shared>,
    pub config: Config,
    pub client: Client,
    pub pods: Cache,
    pub run: Run,
    pub object: Arc<Value>,
    pub status: RunStatus,
    pub contexts: RunContexts,
    pub plans: Vec<Planned>,
    /// What conditions have said, by workflow, job, and whether the run was cancelled then.
    conditions: Conditions,
}

type Conditions = HashMap<(usize, String, bool), Result<bool, EvaluateError>>;

/// What acting on one decision came to.
#[derive(PartialEq)]
pub enum Acted {
    /// Nothing moved: it waits for something.
    Waits,
    Moved,
    /// The list of jobs is another one now.
    Reshaped,
}

impl Driver {
    pub fn new(shared: Arc<Shared>, run: Run, object: Value) -> Self {
        Self {
            config: shared.config.clone(),
            client: shared.client.clone(),
            pods: shared.pods.clone(),
            status: run.status.clone(),
            run,
            object: Arc::new(object),
            contexts: RunContexts { event: Map::new(), vars: Map::new() },
            plans: Vec::new(),
            conditions: Conditions::default(),
            shared,
        }
    }

    pub async fn drive(mut self) {
        let done = match self.plan().await {
            Ok(true) => self.carry_out().await,
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => self.leave_groups(|_| true),
            Err(error) => {
                // The objects are as they are; a run that has not ended is taken up again once this returns.
                tracing::warn!(run = %self.run.metadata.name, %error, "the run is taken up again");
                tokio::time::sleep(TAKE_UP_PAUSE).await;
            }
        }
    }

    /// The files of the commit. A server that is just starting or a full disk is no reason to fail a run.
    async fn checkout(&self) -> Result<tempfile::TempDir, naru_source::Error> {
        let spec = &self.run.spec;
        let mut attempt = 1;
        loop {
            match self.config.source.files(&spec.repository, &spec.sha, ".github").await {
                Err(error) if attempt < CHECKOUT_ATTEMPTS_MAX => {
                    tracing::warn!(run = %self.run.metadata.name, %error, "the commit is read again");
                    tokio::time::sleep(TAKE_UP_PAUSE * attempt).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Reads the workflows at the commit. False if that ended the run: they cannot be honoured, or none
    /// applies.
    async fn plan(&mut self) -> Result<bool, naru_client::Error> {
        let spec = self.run.spec.clone();
        if self.status.number == 0 {
            self.status.number = self.shared.number(&spec.repository);
            self.run.status.number = self.status.number;
        }
        let tree = match self.checkout().await {
            Ok(tree) => tree,
            Err(error) => {
                self.end(RunPhase::Failed, &format!("cannot read the commit: {error}")).await;
                return Ok(false);
            }
        };
        let server_url = format!("http://{}:{}", pod::SERVER_HOST, self.config.pod_http.port());
        let place = Place { server_url: &server_url, owner: &self.config.owner };
        self.contexts = RunContexts {
            event: contexts::of_event(&self.run, &place),
            vars: environments::variables(&self.client, &self.config.namespace, &spec.repository, "").await?,
        };
        let some = |it: &str| (!it.is_empty()).then(|| it.to_owned());
        let trigger = Trigger {
            event: spec.event.clone(),
            git_ref: spec.git_ref.clone(),
            labels: self.config.runners.keys().cloned().collect(),
            payload: self.contexts.event["event"].clone(),
            changed: spec.changed.clone(),
            workflow: some(&spec.workflow),
            schedule: some(&spec.schedule),
            inputs: spec.inputs.clone(),
            files: BTreeMap::new(),
            absent: BTreeMap::new(),
            contexts: Map::from_iter([
                ("github".to_owned(), json!(self.contexts.event)),
                ("vars".to_owned(), json!(self.contexts.vars)),
            ]),
        };
        let reading = plans::read(tree.path(), &self.config.source, &self.config.owner, &trigger).await;
        let refused = reading.refused;
        self.plans = reading.planned;
        if spec.event == "push" && spec.deploy && spec.again.is_none() && !refused {
            super::workflows::publish(&self.shared, &self.run, &reading.files).await?;
        }
        self.status.workflows = self.plans.iter().map(|it| it.plan.file.clone()).collect();
        self.status.diagnostics = reading.diagnostics;
        if refused {
            self.end(RunPhase::Refused, "a workflow cannot be honoured; nothing was run").await;
            return Ok(false);
        }
        if self.plans.is_empty() {
            let what = if spec.event == "push" { "push" } else { "event" };
            self.end(RunPhase::Succeeded, &format!("no workflow applies to this {what}")).await;
            return Ok(false);
        }
        self.status.title = self.title();
        if self.status.jobs.is_empty() {
            self.status.jobs = self.first_jobs().await?;
        }
        if !self.restore() {
            let why =
                "this naru reads the workflow differently from the one that began; push again to run it anew";
            self.end(RunPhase::Interrupted, why).await;
            return Ok(false);
        }
        self.status.phase = RunPhase::Running;
        if self.status.started_at.is_empty() {
            self.status.started_at = now();
        }
        self.write().await?;
        Ok(true)
    }

    /// What the workflow wants the run to be called.
    fn title(&self) -> String {
        let [planned] = self.plans.as_slice() else { return String::new() };
        let contexts = json!({
            "github": self.contexts.event, "vars": self.contexts.vars, "inputs": inputs_of(planned)});
        planned.dialect.evaluator.text(&planned.plan.run_name, &contexts).unwrap_or_default()
    }

    /// The statuses to begin with: none has begun, or, of a run that is done again, what is taken over.
    async fn first_jobs(&self) -> Result<Vec<JobStatus>, naru_client::Error> {
        let fresh = || {
            let jobs = |it: &Planned| -> Vec<JobStatus> {
                it.keys.iter().zip(&it.plan.jobs).map(|(key, job)| pending(key, job, "")).collect()
            };
            self.plans.iter().flat_map(jobs).collect::<Vec<_>>()
        };
        let Some(again) = self.run.spec.again.as_ref().filter(|it| !it.jobs.is_empty()) else {
            return Ok(fresh());
        };
        let before = self.client.get(&kinds::RUN, &self.config.namespace, &again.run).await?;
        let before = before.and_then(|it| serde_json::from_value::<Run>(it).ok());
        let before = before.map(|it| it.status.jobs).unwrap_or_default();
        Ok(super::again::taken_over(fresh(), &before, &again.jobs))
    }

    /// Brings the plans to where the statuses are: jobs that were made late are made again. False if the two
    /// do not fit together.
    fn restore(&mut self) -> bool {
        let statuses = std::mem::take(&mut self.status.jobs);
        // Their keys are made anew in the same way, so only what the files themselves say is there at first.
        self.status.jobs = (self.plans.iter())
            .flat_map(|it| it.keys.iter().zip(&it.plan.jobs).map(|(key, job)| pending(key, job, "")))
            .collect();
        loop {
            for job in &mut self.status.jobs {
                if let Some(known) = statuses.iter().find(|it| it.key == job.key) {
                    job.clone_from(known);
                }
            }
            let Some((at, index)) = self.to_expand_again(&statuses) else { break };
            if self.expand(at, index).is_err() {
                break;
            }
        }
        let made: BTreeSet<&String> = self.status.jobs.iter().map(|it| &it.key).collect();
        let fits = made.len() == statuses.len() && statuses.iter().all(|it| made.contains(&it.key));
        self.status.jobs = statuses;
        fits
    }

    /// A job behind which others stand by their statuses, and not yet in the plan. One that needs another such
    /// job comes after it.
    fn to_expand_again(&self, statuses: &[JobStatus]) -> Option<(usize, usize)> {
        let is_open = |planned: &Planned, index: usize| {
            let job = &planned.plan.jobs[index];
            let open = job.deferred.is_some() || job.call.as_ref().is_some_and(|it| !it.expanded);
            open && statuses.iter().any(|it| it.behind == planned.keys[index])
        };
        self.plans.iter().enumerate().find_map(|(at, planned)| {
            let jobs = &planned.plan.jobs;
            let ready = |index: &usize| {
                let job = &jobs[*index];
                let waits_for =
                    |other: &usize| jobs[*other].scope == job.scope && job.needs.contains(&jobs[*other].id);
                !(0..jobs.len()).filter(waits_for).any(|other| is_open(planned, other))
            };
            (0..jobs.len()).filter(|it| is_open(planned, *it)).find(ready).map(|index| (at, index))
        })
    }

    async fn carry_out(&mut self) -> Result<(), naru_client::Error> {
        let (reports_in, mut reports) = mpsc::channel::<Report>(256);
        let mut followed = Followed::new();
        let mut pods = self.pods.changes();
        let mut runs = self.shared.runs.changes();
        let mut groups = self.shared.groups.changes();
        let mut written = tokio::time::Instant::now();
        self.fence_lost();
        self.offer_again().await?;
        loop {
            self.look_at_wishes();
            for at in 0..self.plans.len() {
                self.advance(at).await?;
            }
            self.observe(&reports_in, &mut followed);
            let missing = self.missing();
            if !missing.is_empty() {
                self.settle_missing(missing, &mut followed).await?;
            }
            if self.status.jobs.iter().all(|it| it.phase.is_final()) {
                break;
            }
            let wait = STATUS_EVERY.saturating_sub(written.elapsed());
            if wait.is_zero() {
                self.write().await?;
                written = tokio::time::Instant::now();
            }
            tokio::select! {
                Some(report) = reports.recv() => {
                    self.take(report, &mut followed);
                    while let Ok(report) = reports.try_recv() {
                        self.take(report, &mut followed);
                    }
                }
                () = pods.wait() => {}
                () = runs.wait() => {}
                _ = groups.changed() => {}
                () = tokio::time::sleep(STATUS_EVERY), if !wait.is_zero() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
        self.remove_strays().await?;
        let of = |phase| self.status.jobs.iter().filter(|it| it.phase == phase).count();
        let all = self.status.jobs.len();
        let failed = self.plans.iter().flat_map(|it| it.keys.iter().zip(&it.plan.jobs)).any(|(key, job)| {
            !job.continue_on_error && self.job(key).is_some_and(|it| it.phase == JobPhase::Failed)
        });
        if failed {
            let message = format!("{} of {all} jobs failed", of(JobPhase::Failed));
            self.end(RunPhase::Failed, &message).await;
        } else if of(JobPhase::Interrupted) > 0 {
            self.end(RunPhase::Interrupted, "a job was lost on the way; push again to run it anew").await;
        } else if of(JobPhase::Cancelled) > 0 {
            let job = self.status.jobs.iter().find(|it| it.phase == JobPhase::Cancelled);
            let message = job.map(|it| it.message.clone()).unwrap_or_default();
            self.end(RunPhase::Cancelled, &message).await;
        } else {
            self.end(RunPhase::Succeeded, "").await;
        }
        Ok(())
    }

    /// What people wrote on the run since: that it is to end, or that a job may deploy.
    fn look_at_wishes(&mut self) {
        if let Some(object) = self.shared.runs.get(&self.config.namespace, &self.run.metadata.name) {
            let written = &object["metadata"]["annotations"];
            self.run.metadata.annotations = serde_json::from_value(written.clone()).unwrap_or_default();
        }
        if let Some(who) = self.run.metadata.annotations.get(annotations::CANCEL) {
            for planned in &mut self.plans {
                planned.cancelled.get_or_insert_with(|| format!("cancelled by {who}"));
            }
        }
    }

    /// Does whatever can be done now in one workflow.
    async fn advance(&mut self, at: usize) -> Result<(), naru_client::Error> {
        let planned = &self.plans[at];
        let member = planned.plan.file.clone();
        if let Some(concurrency) = planned.plan.concurrency.clone() {
            let contexts = json!({
                "github": self.contexts.event, "vars": self.contexts.vars, "inputs": inputs_of(planned)});
            match self.place(&concurrency, at, &contexts, &member).await {
                Ok(Standing::Holds) => {}
                Ok(Standing::Waits) if self.plans[at].cancelled.is_none() => return Ok(()),
                Ok(_) => {
                    let why = || "a newer run of its concurrency group took its place".to_owned();
                    self.plans[at].cancelled.get_or_insert_with(why);
                }
                Err(Placing::Api(error)) => return Err(error),
                Err(Placing::Text(error)) => {
                    let why = || format!("its concurrency group cannot be computed: {error}");
                    self.plans[at].cancelled.get_or_insert_with(why);
                }
            }
        }
        self.look_at_places(at).await?;
        'reshaped: loop {
            let mut moved = false;
            for next in self.next(at) {
                match self.act(at, next).await? {
                    Acted::Waits => {}
                    Acted::Moved => moved = true,
                    Acted::Reshaped => continue 'reshaped,
                }
            }
            if !moved {
                break;
            }
        }
        let ended = self.plans[at].keys.iter().all(|key| self.job(key).is_none_or(|it| it.phase.is_final()));
        if ended {
            self.leave_groups(|it| it.member == member);
        }
        Ok(())
    }

    pub fn job(&self, key: &str) -> Option<&JobStatus> {
        self.status.jobs.iter().find(|it| it.key == key)
    }

    pub(super) fn job_mut(&mut self, at: usize, index: usize) -> &mut JobStatus {
        let key = &self.plans[at].keys[index];
        self.status.jobs.iter_mut().find(|it| it.key == *key).expect("every planned job has a status")
    }

    pub(super) fn views(&self, planned: &Planned) -> Vec<JobView> {
        planned.keys.iter().map(|key| self.job(key).map(view_of).unwrap_or_default()).collect()
    }

    pub(super) fn contexts_of(&self, planned: &Planned, job: &Job, views: &[JobView]) -> Map<String, Value> {
        contexts::of_job(
            &self.contexts,
            &planned.plan.name,
            &planned.plan.file,
            &self.run,
            job,
            &planned.plan.jobs,
            views,
            planned.cancelled.is_some(),
        )
    }

    fn next(&mut self, at: usize) -> Vec<Next> {
        let conditions = RefCell::new(std::mem::take(&mut self.conditions));
        let planned = &self.plans[at];
        let views = self.views(planned);
        let cancelled = planned.cancelled.is_some();
        let next = plan_next(&planned.plan.jobs, &views, cancelled, |job| {
            // A job is asked once all that it needs has ended, so the answer stays; and it is asked each time that
            // somebody looks while it waits for its place. The event behind it may have half a megabyte.
            let asked = (at, job.key.clone(), cancelled);
            if let Some(known) = conditions.borrow().get(&asked) {
                return known.clone();
            }
            let contexts = self.contexts_of(planned, job, &views);
            let answer =
                planned.dialect.evaluator.condition(job.condition.as_deref(), &Value::Object(contexts));
            conditions.borrow_mut().insert(asked, answer.clone());
            answer
        });
        self.conditions = conditions.into_inner();
        next
    }

    async fn act(&mut self, at: usize, next: Next) -> Result<Acted, naru_client::Error> {
        let (index, phase, message) = match next {
            Next::Start(index) => match self.left_out(&self.plans[at].plan.jobs[index]) {
                Some(why) => (index, JobPhase::Skipped, why),
                None => return self.start(at, index).await,
            },
            Next::Expand(index) => {
                let planned = &self.plans[at];
                let job = &planned.plan.jobs[index];
                // Before its matrix is known a job holds no place; each of its combinations does.
                if job.deferred.is_none() && job.concurrency.is_some() {
                    let contexts = Value::Object(self.contexts_of(planned, job, &self.views(planned)));
                    if let Some(held_back) = self.held_back(at, index, &contexts).await? {
                        return Ok(held_back);
                    }
                }
                match self.expand(at, index) {
                    Ok(()) => return Ok(Acted::Reshaped),
                    Err(error) => {
                        let planned = &self.plans[at];
                        let (file, line) = (&planned.plan.file, planned.plan.jobs[index].line);
                        (index, JobPhase::Failed, format!("{file}:{line}: {}", error.message))
                    }
                }
            }
            Next::Finish(index, state) => return Ok(self.finish(at, index, state)),
            Next::Skip(index, why) => (index, JobPhase::Skipped, why),
            Next::Fail(index, why) => (index, JobPhase::Failed, why),
            Next::Cancel(index, why) => {
                let why = self.plans[at].cancelled.clone().unwrap_or(why);
                return self.cancel(at, index, &why).await;
            }
        };
        self.close(at, index, phase, &message);
        Ok(Acted::Moved)
    }

    /// What a job's labels map to. `[self-hosted, linux, gpu]` is a machine with a GPU.
    pub(super) fn image_of(&self, job: &Job) -> Option<&str> {
        let mapped = |label: &&String| {
            let mut runners = self.config.runners.iter();
            runners.find(|(it, _)| it.eq_ignore_ascii_case(label)).map(|(_, image)| image.as_str())
        };
        let general =
            |it: &&String| crate::labels::GENERAL.iter().any(|general| general.eq_ignore_ascii_case(it));
        let mut labels =
            job.runs_on.iter().filter(|it| !general(it)).chain(job.runs_on.iter().filter(general));
        labels.find_map(|it| mapped(&it))
    }

    /// Why a job is not run here, if that was decided for its label.
    fn left_out(&self, job: &Job) -> Option<String> {
        let left_out = self.image_of(job) == Some(super::LEFT_OUT);
        left_out.then(|| format!("`{}` is left out here, by `--runner`", job.runs_on.join(", ")))
    }

    /// Ends a job that has no pod.
    pub(super) fn close(&mut self, at: usize, index: usize, phase: JobPhase, message: &str) {
        let job = self.job_mut(at, index);
        job.phase = phase;
        message.clone_into(&mut job.message);
        job.finished_at = now();
    }

    /// Stops a job: one that has begun gets the time to clean up and keeps its log.
    pub(super) async fn cancel(
        &mut self,
        at: usize,
        index: usize,
        why: &str,
    ) -> Result<Acted, naru_client::Error> {
        let job = self.job_mut(at, index);
        if !job.stopping.is_empty() {
            return Ok(Acted::Waits);
        }
        let pod = job.pod.clone();
        let begun = job.steps.iter().any(|it| it.phase != JobPhase::Pending);
        if job.phase == JobPhase::Pending || pod.is_empty() || !begun {
            if !pod.is_empty() {
                self.client.delete(&kinds::POD, &self.config.namespace, &pod, None).await?;
            }
            self.close(at, index, JobPhase::Cancelled, why);
            return Ok(Acted::Moved);
        }
        why.clone_into(&mut job.stopping);
        // The kubelet ends the containers of a pod whose deadline has passed as it does at a deletion, and the
        // pod stays, with its log.
        let patch = json!({"spec": {"activeDeadlineSeconds": 1}});
        match self.client.patch_merge(&kinds::POD, &self.config.namespace, &pod, &patch).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.write().await?;
        Ok(Acted::Waits)
    }

    async fn end(&mut self, phase: RunPhase, message: &str) {
        self.status.phase = phase;
        message.clone_into(&mut self.status.message);
        self.status.finished_at = now();
        if self.status.started_at.is_empty() {
            self.status.started_at = now();
        }
        while let Err(error) = self.write_end().await {
            if error.is_not_found() {
                return;
            }
            tracing::warn!(%error, "the run's end is not written yet");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let kind = if phase == RunPhase::Succeeded { EventKind::Normal } else { EventKind::Warning };
        self.client.event(&self.object, kind, &format!("{phase:?}"), message).await;
    }

    /// Whoever runs after this run is made before its end is written, so that a crash between the two makes
    /// them, by the same names, the next time.
    async fn write_end(&mut self) -> Result<(), naru_client::Error> {
        self.run.status = self.status.clone();
        if self.status.phase != RunPhase::Refused {
            super::workflows::run_after(&self.shared, &self.run, &self.plans).await?;
        }
        self.write().await
    }

    pub(super) async fn write(&self) -> Result<(), naru_client::Error> {
        let status = serde_json::to_value(&self.status).expect("a status always serialises");
        self.client
            .patch_status(&kinds::RUN, &self.config.namespace, &self.run.metadata.name, &status)
            .await
            .map(|_| ())
    }
}

/// The inputs of a workflow are the same for all of its jobs.
fn inputs_of(planned: &Planned) -> Map<String, Value> {
    planned.plan.jobs.first().map(|it| it.inputs.clone()).unwrap_or_default()
}
