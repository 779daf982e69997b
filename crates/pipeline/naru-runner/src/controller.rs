//! The pipeline's controller: watches `Run`s and drives each that has not ended.
//!
//! One task per run. It holds nothing that is not in the objects: the plan is read again from the commit,
//! how far a job is comes from its pod's log. So a daemon that was killed takes every run up again.

use crate::job::JobFile;
use crate::protocol::{Event, Outcome, of_line};
use futures::AsyncBufReadExt;
use naru_client::{Cache, Client, EventKind, LogOptions};
use naru_objects::{
    Diagnostic, JobPhase, JobStatus, Run, RunPhase, RunStatus, StepStatus, dns_label, dns_label_unique,
    kinds, labels, timestamp,
};
use naru_plan::{Job, JobState, JobView, Next, Plan, outputs_of, plan_next, result_of};
use naru_plan_dialects::{Dialect, Trigger, dialect_of};
use naru_source::{Source, read_file};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// So many runs of a repository are kept, with their pods' logs; older ones go.
const RUNS_KEPT: usize = 30;

/// How often a status that changes all the time is written at most.
const STATUS_EVERY: Duration = Duration::from_millis(150);

/// Deadlines are looked at this often when nothing else happens.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Where in the pod things are.
const JOB_FILE_DIR: &str = "/naru/job";
const RUNNER_PATH: &str = "/naru/bin/naru";

#[derive(Clone)]
pub struct Config {
    pub namespace: String,
    pub source: Source,
    /// Base URL of the git server as pods reach it; a repository is at `<base>/<name>.git`.
    pub pod_git_url: String,
    /// A keyed hash: of a repository's name, the token that may read it.
    pub run_token: Arc<dyn Fn(&str) -> String + Send + Sync>,
    /// What `runs-on` labels map to: label to image.
    pub runners: BTreeMap<String, String>,
    /// Our own binary on the node; it is mounted into job pods and runs their steps.
    pub runner_exe: PathBuf,
}

/// Watches and drives runs until the task is aborted.
pub fn start(client: Client, config: Config) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut runs = client.cache(&kinds::RUN, Some(&config.namespace), "");
        let pods = client.cache(&kinds::POD, Some(&config.namespace), labels::RUN);
        runs.synced().await;
        pods.synced().await;
        // Drivers end with this task: a daemon that is stopped must not fail what it can no longer reach.
        let mut drivers = JoinSet::new();
        let mut driven = HashMap::<String, tokio::task::Id>::new();
        loop {
            for object in runs.list() {
                let Ok(run) = serde_json::from_value::<Run>((*object).clone()) else { continue };
                if run.status.phase.is_final() || run.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let uid = run.metadata.uid;
                if driven.contains_key(&uid) {
                    continue;
                }
                let task =
                    drivers.spawn(take_up(client.clone(), config.clone(), pods.clone(), run.metadata.name));
                driven.insert(uid, task.id());
            }
            prune(&client, &config, &runs).await;
            tokio::select! {
                () = runs.changed() => {}
                Some(ended) = drivers.join_next_with_id() => match ended {
                    Ok((id, ())) => driven.retain(|_, it| *it != id),
                    // Driving it again would break again; the next start of the daemon tries it once more.
                    Err(error) => tracing::error!(%error, "a run's driver broke (this is a bug in Naru)"),
                }
            }
        }
    })
}

/// Drives a run as the API has it now: the cached copy may be from before its end.
async fn take_up(client: Client, config: Config, pods: Cache, name: String) {
    let object = match client.get(&kinds::RUN, &config.namespace, &name).await {
        Ok(Some(object)) => object,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(run = %name, %error, "the run is taken up again");
            return tokio::time::sleep(TAKE_UP_PAUSE).await;
        }
    };
    let Ok(run) = serde_json::from_value::<Run>(object.clone()) else { return };
    if run.status.phase.is_final() {
        // The cache will have it in a moment.
        return tokio::time::sleep(STATUS_EVERY).await;
    }
    let driver = Driver { client, config, pods, status: run.status.clone(), run, object: Arc::new(object) };
    driver.drive().await;
}

/// Old runs go, and with them, as their dependents, pods and logs.
async fn prune(client: &Client, config: &Config, runs: &Cache) {
    let mut of_repository: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for run in runs.list() {
        let ended = !matches!(run["status"]["phase"].as_str(), None | Some("Pending" | "Running"));
        if ended {
            of_repository
                .entry(run["spec"]["repository"].as_str().unwrap_or_default().to_owned())
                .or_default()
                .push((
                    run["spec"]["pushedAt"].as_str().unwrap_or_default().to_owned(),
                    naru_objects::name_of(&run).to_owned(),
                ));
        }
    }
    for mut ended in of_repository.into_values() {
        ended.sort();
        let surplus = ended.len().saturating_sub(RUNS_KEPT);
        for (_, name) in ended.into_iter().take(surplus) {
            if let Err(error) = client.delete(&kinds::RUN, &config.namespace, &name, None).await {
                tracing::warn!(%error, "an old run stays");
            }
        }
    }
}

/// A plan with the language that it was written in.
struct Planned {
    plan: Plan,
    dialect: &'static Dialect,
    /// Where its jobs begin in the run's list of jobs.
    offset: usize,
}

/// What a job's log follower tells the driver.
enum Report {
    Event(usize, Event),
    /// The log has ended or cannot be read; the pod tells the rest.
    LogEnded(usize),
}

struct Driver {
    client: Client,
    config: Config,
    pods: Cache,
    run: Run,
    object: Arc<Value>,
    status: RunStatus,
}

impl Driver {
    async fn drive(mut self) {
        let done = match self.plan().await {
            Ok(Some(plans)) => self.carry_out(&plans).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            // The objects are as they are; a run that has not ended is taken up again once this returns.
            tracing::warn!(run = %self.run.metadata.name, %error, "the run is taken up again");
            tokio::time::sleep(TAKE_UP_PAUSE).await;
        }
    }

    /// The files of the commit. A server that is just starting or a full disk is no reason to fail a run.
    async fn checkout(&self) -> Result<tempfile::TempDir, naru_source::Error> {
        let spec = &self.run.spec;
        let mut attempt = 1;
        loop {
            match self.config.source.checkout(&spec.repository, &spec.sha).await {
                Err(error) if attempt < CHECKOUT_ATTEMPTS_MAX => {
                    tracing::warn!(run = %self.run.metadata.name, %error, "the commit is read again");
                    tokio::time::sleep(TAKE_UP_PAUSE * attempt).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Reads the workflows at the commit. `None` if that ended the run: they cannot be honoured, or none
    /// applies.
    async fn plan(&mut self) -> Result<Option<Vec<Planned>>, naru_client::Error> {
        let spec = self.run.spec.clone();
        let tree = match self.checkout().await {
            Ok(tree) => tree,
            Err(error) => {
                self.end(RunPhase::Failed, &format!("cannot read the commit: {error}")).await;
                return Ok(None);
            }
        };
        let trigger = Trigger {
            event: spec.event.clone(),
            git_ref: spec.git_ref.clone(),
            labels: self.config.runners.keys().cloned().collect(),
            ..Trigger::default()
        };
        let mut plans: Vec<Planned> = Vec::new();
        let mut diagnostics = Vec::new();
        for path in workflow_files(tree.path()) {
            let Some(dialect) = dialect_of(&path) else { continue };
            let Ok(Some(source)) = read_file(tree.path(), &path) else { continue };
            let lowered = (dialect.lower)(&path, &source, &trigger);
            diagnostics.extend(lowered.findings.iter().map(|it| Diagnostic {
                severity: if it.is_error() { "error" } else { "warning" }.into(),
                file: path.clone(),
                line: it.place.line,
                column: it.place.column,
                message: it.message.clone(),
                hint: it.hint.clone(),
            }));
            if let Some(plan) = lowered.plan {
                let offset = plans.iter().map(|it| it.plan.jobs.len()).sum();
                plans.push(Planned { plan, dialect, offset });
            }
        }
        let refused = diagnostics.iter().any(|it| it.severity == "error");
        self.status.workflows = plans.iter().map(|it| it.plan.file.clone()).collect();
        self.status.diagnostics = diagnostics;
        if refused {
            self.end(RunPhase::Refused, "a workflow cannot be honoured; nothing was run").await;
            return Ok(None);
        }
        if plans.is_empty() {
            self.end(RunPhase::Succeeded, "no workflow applies to this push").await;
            return Ok(None);
        }
        if self.status.jobs.is_empty() {
            let several = plans.len() > 1;
            self.status.jobs = plans
                .iter()
                .flat_map(|it| it.plan.jobs.iter().map(move |job| (it, job)))
                .map(|(it, job)| JobStatus {
                    key: if several {
                        format!("{}-{}", stem(&it.plan.file), job.key)
                    } else {
                        job.key.clone()
                    },
                    name: job.name.clone(),
                    steps: job
                        .steps
                        .iter()
                        .map(|step| StepStatus { name: step.name.clone(), ..StepStatus::default() })
                        .collect(),
                    ..JobStatus::default()
                })
                .collect();
            unique_keys(&mut self.status.jobs);
        } else if self.status.jobs.len() != plans.iter().map(|it| it.plan.jobs.len()).sum::<usize>() {
            let why =
                "this naru reads the workflow differently from the one that began; push again to run it anew";
            self.end(RunPhase::Interrupted, why).await;
            return Ok(None);
        }
        self.status.phase = RunPhase::Running;
        if self.status.started_at.is_empty() {
            self.status.started_at = now();
        }
        self.write().await?;
        Ok(Some(plans))
    }

    async fn carry_out(&mut self, plans: &[Planned]) -> Result<(), naru_client::Error> {
        let (reports_in, mut reports) = mpsc::channel::<Report>(256);
        let mut followed = HashSet::new();
        let mut pods = self.pods.changes();
        let mut written = tokio::time::Instant::now();
        loop {
            for planned in plans {
                for next in self.next(planned) {
                    self.act(planned, next).await?;
                }
            }
            for index in 0..self.status.jobs.len() {
                self.observe(index, &reports_in, &mut followed);
            }
            if self.status.jobs.iter().all(|it| it.phase.is_final())
                && plans.iter().all(|it| self.next(it).is_empty())
            {
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
                () = tokio::time::sleep(STATUS_EVERY), if !wait.is_zero() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
        let of = |phase| self.status.jobs.iter().filter(|it| it.phase == phase).count();
        let all: Vec<&Job> = plans.iter().flat_map(|it| &it.plan.jobs).collect();
        let failed = all
            .iter()
            .zip(&self.status.jobs)
            .any(|(job, it)| it.phase == JobPhase::Failed && !job.continue_on_error);
        if failed {
            self.end(RunPhase::Failed, &format!("{} of {} jobs failed", of(JobPhase::Failed), all.len()))
                .await;
        } else if of(JobPhase::Interrupted) > 0 {
            self.end(RunPhase::Interrupted, "a job was lost on the way; push again to run it anew").await;
        } else {
            self.end(RunPhase::Succeeded, "").await;
        }
        Ok(())
    }

    fn views(&self, planned: &Planned) -> Vec<JobView> {
        self.status.jobs[planned.offset..planned.offset + planned.plan.jobs.len()]
            .iter()
            .map(|it| JobView {
                state: match it.phase {
                    JobPhase::Pending => JobState::Pending,
                    JobPhase::Running => JobState::Running,
                    JobPhase::Succeeded => JobState::Succeeded,
                    JobPhase::Failed => JobState::Failed,
                    JobPhase::Skipped => JobState::Skipped,
                    JobPhase::Cancelled => JobState::Cancelled,
                    JobPhase::Interrupted => JobState::Interrupted,
                },
                outputs: it.outputs.clone(),
            })
            .collect()
    }

    fn next(&self, planned: &Planned) -> Vec<Next> {
        let views = self.views(planned);
        plan_next(&planned.plan.jobs, &views, |job| {
            let contexts = self.contexts(planned, job, &views);
            planned.dialect.evaluator.condition(job.condition.as_deref(), &Value::Object(contexts))
        })
    }

    async fn act(&mut self, planned: &Planned, next: Next) -> Result<(), naru_client::Error> {
        let (index, phase, message) = match next {
            Next::Start(index) => return self.start(planned, index).await,
            Next::Skip(index, why) => (index, JobPhase::Skipped, why),
            Next::Fail(index, why) => (index, JobPhase::Failed, why),
            Next::Expand(index) => {
                let why = "the file changed its meaning while it ran (this is a bug in Naru)";
                (index, JobPhase::Failed, why.into())
            }
            Next::Cancel(index, why) => {
                let pod = self.status.jobs[planned.offset + index].pod.clone();
                self.client.delete(&kinds::POD, &self.config.namespace, &pod, None).await?;
                (index, JobPhase::Failed, why)
            }
        };
        let job = &mut self.status.jobs[planned.offset + index];
        job.phase = phase;
        job.message = message;
        job.finished_at = now();
        Ok(())
    }

    /// Creates the job's pod. Its name follows from the run, so that starting twice starts once.
    async fn start(&mut self, planned: &Planned, index: usize) -> Result<(), naru_client::Error> {
        let job = &planned.plan.jobs[index];
        let views = self.views(planned);
        let at = planned.offset + index;
        let pod = dns_label_unique(&format!("{}-{}", self.run.metadata.name, self.status.jobs[at].key), 60);
        let mut contexts = self.contexts(planned, job, &views);
        contexts.insert("secrets".into(), self.secrets().await?);
        let spec = &self.run.spec;
        let file = JobFile {
            dialect: planned.dialect.name.into(),
            nonce: self.nonce(&pod),
            job: job.clone(),
            contexts,
            checkout_url: format!("{}/{}.git", self.config.pod_git_url, spec.repository),
            checkout_token: (self.config.run_token)(&spec.repository),
            sha: spec.sha.clone(),
            git_ref: spec.git_ref.clone(),
            workspace: PathBuf::from(format!("/workspace/{}", spec.repository)),
            ..JobFile::default()
        };
        let metadata = |name: &str| {
            json!({
                "name": name, "namespace": self.config.namespace,
                "labels": {
                    labels::RUN: self.run.metadata.name, labels::CHANGE: spec.change, labels::APP: spec.repository,
                    labels::JOB: dns_label(&self.status.jobs[at].key, 63), labels::SLICE: "pipelines"},
                "ownerReferences": [naru_objects::owner_reference(&self.object)],
            })
        };
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata(&pod), "type": "naru.dev/job",
            "stringData": {"job.json": serde_json::to_string(&file).expect("a job file always serialises")},
        });
        already_there_is_fine(self.client.create(&kinds::SECRET, &secret).await)?;
        let image = job.runs_on.iter().find_map(|it| {
            self.config
                .runners
                .iter()
                .find(|(label, _)| label.eq_ignore_ascii_case(it))
                .map(|(_, image)| image)
        });
        let pod_object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata(&pod),
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 10,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "job",
                    "image": image.expect("checked in lower(): every label of runs-on is mapped"),
                    "command": [RUNNER_PATH, "__job", format!("{JOB_FILE_DIR}/job.json")],
                    "workingDir": "/workspace",
                    "resources": {"limits": {"memory": JOB_MEMORY}, "requests": {"cpu": "100m"}},
                    "volumeMounts": [
                        {"name": "workspace", "mountPath": "/workspace"},
                        {"name": "job", "mountPath": JOB_FILE_DIR, "readOnly": true},
                        {"name": "runner", "mountPath": RUNNER_PATH, "readOnly": true}],
                }],
                "volumes": [
                    {"name": "workspace", "emptyDir": {}},
                    {"name": "job", "secret": {"secretName": pod}},
                    {"name": "runner", "hostPath": {"path": self.config.runner_exe, "type": "File"}}],
            },
        });
        already_there_is_fine(self.client.create(&kinds::POD, &pod_object).await)?;
        let status = &mut self.status.jobs[at];
        status.phase = JobPhase::Running;
        status.pod = pod;
        status.started_at = now();
        self.write().await
    }

    async fn secrets(&self) -> Result<Value, naru_client::Error> {
        let name = secret_name(&self.run.spec.repository);
        let mut secrets = Map::new();
        if let Some(object) = self.client.get(&kinds::SECRET, &self.config.namespace, &name).await? {
            for (name, value) in object["data"].as_object().into_iter().flatten() {
                use base64::Engine as _;
                let bytes =
                    base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
                secrets.insert(name.clone(), json!(String::from_utf8_lossy(&bytes.unwrap_or_default())));
            }
        }
        secrets.insert("GITHUB_TOKEN".into(), json!((self.config.run_token)(&self.run.spec.repository)));
        Ok(Value::Object(secrets))
    }

    /// What expressions of a job may ask for before it starts, and most of what they may ask for in it.
    fn contexts(&self, planned: &Planned, job: &Job, views: &[JobView]) -> Map<String, Value> {
        let spec = &self.run.spec;
        let (ref_type, ref_name) = match spec.git_ref.strip_prefix("refs/tags/") {
            Some(tag) => ("tag", tag),
            None => ("branch", spec.git_ref.strip_prefix("refs/heads/").unwrap_or(&spec.git_ref)),
        };
        let jobs = &planned.plan.jobs;
        let needs: Map<String, Value> = job
            .needs
            .iter()
            .map(|id| {
                let need =
                    json!({"result": result_of(id, jobs, views), "outputs": outputs_of(id, jobs, views)});
                (id.clone(), need)
            })
            .collect();
        // A job runs if all that it needs, and what those need, went well.
        let status = ancestors(job, jobs).into_iter().map(|id| result_of(id, jobs, views)).fold(
            "success",
            |all, it| match (all, it) {
                ("failure", _) | (_, "failure") => "failure",
                (_, "success") => all,
                _ => "skipped",
            },
        );
        let contexts = json!({
            "github": {
                "event_name": spec.event, "sha": spec.sha, "ref": spec.git_ref, "ref_name": ref_name,
                "ref_type": ref_type, "repository": spec.repository, "actor": spec.author,
                "workflow": planned.plan.name, "job": job.id, "run_id": self.run.metadata.uid,
                "run_number": self.run.metadata.name.rsplit('-').next(), "run_attempt": "1",
                "server_url": self.config.pod_git_url, "workspace": format!("/workspace/{}", spec.repository),
                "event": {
                    "ref": spec.git_ref, "before": spec.before, "after": spec.sha,
                    "head_commit": {"id": spec.sha, "message": spec.message},
                    "repository": {"name": spec.repository, "full_name": spec.repository},
                    "pusher": {"name": spec.author}},
            },
            "needs": needs,
            "matrix": job.matrix,
            "strategy": {"fail-fast": job.fail_fast, "max-parallel": job.parallel_max,
                         "job-total": jobs.iter().filter(|it| it.id == job.id).count()},
            "runner": {"os": "Linux", "arch": std::env::consts::ARCH, "temp": "/tmp", "name": "naru"},
            "vars": {},
            "inputs": {},
            "__status": status,
        });
        match contexts {
            Value::Object(map) => map,
            _ => unreachable!("written as an object above"),
        }
    }

    /// See [`crate::protocol`]. It follows from the pod's name and our key, so that a daemon that comes
    /// back knows it.
    fn nonce(&self, pod: &str) -> String {
        (self.config.run_token)(&format!("nonce of {pod}"))
    }

    /// Follows the pod of a running job, and sees when it has ended without a word.
    fn observe(&mut self, index: usize, reports: &mpsc::Sender<Report>, followed: &mut HashSet<usize>) {
        let nonce = self.nonce(&self.status.jobs[index].pod);
        let job = &mut self.status.jobs[index];
        if job.phase != JobPhase::Running || followed.contains(&index) {
            return;
        }
        let Some(pod) = self.pods.get(&self.config.namespace, &job.pod) else {
            // The cache may lag behind a pod that was just created; one that had started and is gone is lost.
            if job.steps.iter().any(|it| it.phase != JobPhase::Pending) || age(job) > POD_SEEN_WITHIN {
                job.phase = JobPhase::Interrupted;
                job.message = "its pod is gone".into();
                job.finished_at = now();
            }
            return;
        };
        let container = &pod["status"]["containerStatuses"][0];
        let started =
            container["state"]["running"].is_object() || container["state"]["terminated"].is_object();
        if !started {
            if pod["status"]["phase"] == "Failed" {
                job.phase = JobPhase::Failed;
                job.message = pod_message(&pod);
                job.finished_at = now();
            } else {
                let said = container["state"]["waiting"]["message"].as_str();
                if let Some(said) = said {
                    said.clone_into(&mut job.message);
                }
                let within = if said.is_some() { JOB_STARTS_WITHIN } else { SILENT_JOB_STARTS_WITHIN };
                let hopeless = matches!(
                    container["state"]["waiting"]["reason"].as_str(),
                    Some(
                        "InvalidImageName"
                            | "ErrImageNeverPull"
                            | "CreateContainerConfigError"
                            | "Unsupported"
                    )
                );
                if hopeless || age(job) > within {
                    job.phase = JobPhase::Failed;
                    if job.message.is_empty() {
                        job.message = "its pod did not start".into();
                    }
                    job.finished_at = now();
                    let (client, namespace, pod) =
                        (self.client.clone(), self.config.namespace.clone(), job.pod.clone());
                    tokio::spawn(async move { client.delete(&kinds::POD, &namespace, &pod, None).await });
                }
            }
            return;
        }
        followed.insert(index);
        job.message.clear();
        let (client, namespace, name) = (self.client.clone(), self.config.namespace.clone(), job.pod.clone());
        let reports = reports.clone();
        tokio::spawn(async move {
            let options = LogOptions { follow: true, ..LogOptions::default() };
            // A log that cannot be read says nothing about the job, so it is asked for again, from its start:
            // taking an event twice changes nothing.
            for _ in 0..LOG_ATTEMPTS_MAX {
                match client.logs(&namespace, &name, "job", &options).await {
                    Ok(reader) => {
                        let mut lines = reader.lines();
                        let mut broken = false;
                        while let Some(line) = futures::StreamExt::next(&mut lines).await {
                            let Ok(line) = line else {
                                broken = true;
                                break;
                            };
                            if let Some(event) = of_line(&nonce, &line)
                                && reports.send(Report::Event(index, event)).await.is_err()
                            {
                                return;
                            }
                        }
                        if !broken {
                            break;
                        }
                    }
                    Err(error) if error.is_not_found() => break,
                    Err(error) => tracing::debug!(pod = %name, %error, "the job's log cannot be read yet"),
                }
                tokio::time::sleep(LOG_PAUSE).await;
            }
            // The pod's end may be seen a little later than its log's; nor may a log that ends at once be
            // asked for without a pause.
            tokio::time::sleep(LOG_PAUSE).await;
            let _ = reports.send(Report::LogEnded(index)).await;
        });
    }

    fn take(&mut self, report: Report, followed: &mut HashSet<usize>) {
        match report {
            Report::Event(index, event) => self.status.jobs[index].take(event),
            Report::LogEnded(index) => {
                let job = &mut self.status.jobs[index];
                if job.phase != JobPhase::Running {
                    return;
                }
                // No last word. Either the pod's end is still to be seen, or the process died in between.
                let pod = self.pods.get(&self.config.namespace, &job.pod);
                match pod.as_deref().map(|it| it["status"]["phase"].as_str().unwrap_or_default()) {
                    Some("Succeeded" | "Failed") => {
                        let message = pod_message(pod.as_deref().expect("matched as Some"));
                        job.phase = JobPhase::Interrupted;
                        job.message = format!("the job ended without saying how: {message}");
                        job.finished_at = now();
                    }
                    None => {
                        job.phase = JobPhase::Interrupted;
                        job.message = "its pod is gone".into();
                        job.finished_at = now();
                    }
                    Some(_) => {
                        followed.remove(&index);
                    }
                }
            }
        }
    }

    async fn end(&mut self, phase: RunPhase, message: &str) {
        self.status.phase = phase;
        message.clone_into(&mut self.status.message);
        self.status.finished_at = now();
        if self.status.started_at.is_empty() {
            self.status.started_at = now();
        }
        while let Err(error) = self.write().await {
            if error.is_not_found() {
                return;
            }
            tracing::warn!(%error, "the run's end is not written yet");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let kind = if phase == RunPhase::Succeeded { EventKind::Normal } else { EventKind::Warning };
        self.client.event(&self.object, kind, &format!("{phase:?}"), message).await;
    }

    async fn write(&self) -> Result<(), naru_client::Error> {
        let status = serde_json::to_value(&self.status).expect("a status always serialises");
        self.client
            .patch_status(&kinds::RUN, &self.config.namespace, &self.run.metadata.name, &status)
            .await
            .map(|_| ())
    }
}

/// The pause before a run whose driver met an error is driven again.
const TAKE_UP_PAUSE: Duration = Duration::from_secs(1);

/// So often a commit is asked for before the run has failed.
const CHECKOUT_ATTEMPTS_MAX: u32 = 5;

/// So often a job's log is asked for before its pod alone is believed, and the pause in between.
const LOG_ATTEMPTS_MAX: u32 = 20;
const LOG_PAUSE: Duration = Duration::from_millis(300);

/// A pod that was created and is not in the cache by then is gone.
const POD_SEEN_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// A pod that says nothing about why it does not start (there is no room for it) has failed by then.
const SILENT_JOB_STARTS_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_mins(30);

/// How long ago the job was started.
fn age(job: &JobStatus) -> jiff::SignedDuration {
    let now = jiff::Timestamp::now();
    now.duration_since(job.started_at.parse().unwrap_or(now))
}

/// Makes every job's key, and so its pod's name, its own: `ci.yml` and `ci.yaml`, or a matrix `test` and a
/// job `test-1`, would share one.
fn unique_keys(jobs: &mut [JobStatus]) {
    let mut taken = BTreeSet::new();
    for job in jobs {
        let mut key = job.key.clone();
        let mut number = 2;
        while !taken.insert(dns_label(&key, 63)) {
            key = format!("{}-x{number}", job.key);
            number += 1;
        }
        job.key = key;
    }
}

/// Everything that a job needs, directly or not: a job that failed far up keeps this one from running,
/// also when what lies between was skipped or runs always.
fn ancestors<'a>(job: &'a Job, jobs: &'a [Job]) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = job.needs.iter().map(String::as_str).collect();
    while let Some(id) = open.pop() {
        if found.insert(id) {
            let of_id = jobs.iter().filter(|it| it.id == id);
            open.extend(of_id.flat_map(|it| &it.needs).map(String::as_str));
        }
    }
    found
}

/// A job whose image cannot be had by then has failed: a registry that is down for longer is no hiccup.
const JOB_STARTS_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// Memory that one job may use: enough for a Rust build, and the machine survives a leak.
const JOB_MEMORY: &str = "4Gi";

/// The Secret that holds a repository's CI secrets.
pub fn secret_name(repository: &str) -> String {
    format!("{}-ci", dns_label(repository, 50))
}

/// No job reports more steps: it is kept in one object.
const STEPS_MAX: usize = 2000;

trait TakeEvent {
    fn take(&mut self, event: Event);
}

impl TakeEvent for JobStatus {
    /// Events are facts: taking one again changes nothing.
    fn take(&mut self, event: Event) {
        match event {
            Event::JobStarted { at } => self.started_at = at,
            Event::StepStarted { index, name, at } => {
                // What packaged steps do before and after comes behind the steps of the file.
                if index >= self.steps.len() && index < STEPS_MAX {
                    self.steps.resize_with(index + 1, StepStatus::default);
                }
                if let Some(step) = self.steps.get_mut(index) {
                    *step = StepStatus {
                        name,
                        phase: JobPhase::Running,
                        started_at: at,
                        ..StepStatus::default()
                    };
                }
            }
            Event::StepEnded { index, name, outcome, exit_code, at } => {
                if let Some(step) = self.steps.get_mut(index) {
                    step.name = name;
                    step.phase = phase_of(outcome);
                    step.exit_code = exit_code;
                    step.finished_at = at;
                }
            }
            Event::JobEnded { outcome, outputs, summary, annotations, at } => {
                if self.phase == JobPhase::Running {
                    self.phase = phase_of(outcome);
                }
                self.outputs = outputs;
                self.summary = summary;
                self.annotations = annotations;
                self.finished_at = at;
            }
        }
    }
}

fn phase_of(outcome: Outcome) -> JobPhase {
    match outcome {
        Outcome::Succeeded => JobPhase::Succeeded,
        Outcome::Failed => JobPhase::Failed,
        Outcome::Skipped => JobPhase::Skipped,
        Outcome::Cancelled => JobPhase::Cancelled,
    }
}

fn pod_message(pod: &Value) -> String {
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [text(&terminated["reason"]), text(&terminated["message"]), text(&pod["status"]["message"])]
        .into_iter()
        .filter(|it| !it.is_empty())
        .collect::<Vec<_>>()
        .join(": ")
}

fn already_there_is_fine(result: Result<Value, naru_client::Error>) -> Result<(), naru_client::Error> {
    match result {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

/// The workflow files of a tree, in order.
fn workflow_files(tree: &Path) -> Vec<String> {
    let mut files: Vec<String> = std::fs::read_dir(tree.join(".github/workflows"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|it| format!(".github/workflows/{}", it.file_name().to_string_lossy()))
        .collect();
    files.sort();
    files
}

fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split('.').next().unwrap_or(name)
}

fn now() -> String {
    timestamp(jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_files_with_the_same_stem_get_pods_of_their_own() {
        let job = |key: &str| JobStatus { key: key.into(), ..JobStatus::default() };
        let mut jobs = [job("ci-test"), job("ci-test"), job("ci_test"), job("other")];
        unique_keys(&mut jobs);
        let pods: BTreeSet<String> = jobs.iter().map(|it| dns_label(&it.key, 60)).collect();
        assert_eq!(pods.len(), 4, "{pods:?}");
        assert_eq!((jobs[0].key.as_str(), jobs[3].key.as_str()), ("ci-test", "other"));
    }

    #[test]
    fn a_job_looks_at_what_its_needs_need() {
        let job = |id: &str, needs: &[&str]| Job {
            id: id.into(),
            needs: needs.iter().map(|it| (*it).to_owned()).collect(),
            ..Job::default()
        };
        let jobs = [job("a", &[]), job("b", &["a"]), job("c", &["b"]), job("d", &[])];
        assert_eq!(ancestors(&jobs[2], &jobs), BTreeSet::from(["a", "b"]));
    }
}
