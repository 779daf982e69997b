//! A running job as its pod and its log tell of it.

use super::driver::Driver;
use crate::protocol::{Event, Outcome, of_line};
use futures::AsyncBufReadExt;
use naru_client::{Client, LogOptions};
use naru_objects::{JobPhase, JobStatus, StepStatus, kinds, timestamp};
use serde_json::Value;
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::mpsc;

/// So often a job's log is asked for before its pod alone is believed, and the pause in between.
const LOG_ATTEMPTS_MAX: u32 = 20;
const LOG_PAUSE: Duration = Duration::from_millis(300);

/// A pod that was created and is not in the cache by then is gone.
const POD_SEEN_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// A pod that says nothing about why it does not start (there is no room for it) has failed by then.
const SILENT_JOB_STARTS_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_mins(30);

/// A job whose image cannot be had by then has failed: a registry that is down for longer is no hiccup.
const JOB_STARTS_WITHIN: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

/// No job reports more steps: it is kept in one object.
const STEPS_MAX: usize = 2000;

/// What a job's log follower tells the driver, by the pod: a job may have another one by then.
pub enum Report {
    Event(String, Event),
    /// The log has ended or cannot be read; the pod tells the rest.
    LogEnded(String),
}

/// The pods whose logs are being followed.
pub type Followed = HashSet<String>;

impl Driver {
    /// See [`crate::protocol`]. It follows from the pod's name and our key, so that a daemon that comes
    /// back knows it.
    pub fn nonce(&self, pod: &str) -> String {
        (self.config.run_token)(&format!("nonce of {pod}"))
    }

    /// Looks at the pod of every running job: follows its log once it runs, sees when it cannot start.
    pub fn observe(&mut self, reports: &mpsc::Sender<Report>, followed: &mut Followed) {
        for index in 0..self.status.jobs.len() {
            let job = &self.status.jobs[index];
            // A call runs no pod of its own.
            if job.phase == JobPhase::Running && !job.pod.is_empty() && !followed.contains(&job.pod) {
                self.observe_one(index, reports, followed);
            }
        }
    }

    fn observe_one(&mut self, index: usize, reports: &mpsc::Sender<Report>, followed: &mut Followed) {
        let nonce = self.nonce(&self.status.jobs[index].pod);
        let job = &mut self.status.jobs[index];
        let Some(pod) = self.pods.get(&self.config.namespace, &job.pod) else { return };
        let container = container_status(&pod);
        let started =
            container["state"]["running"].is_object() || container["state"]["terminated"].is_object();
        if !started {
            if pod["status"]["phase"] == "Failed" {
                job.phase = JobPhase::Failed;
                job.message = pod_message(&pod);
                job.finished_at = now();
                return;
            }
            let waiting = waiting(&pod, container);
            let said = waiting["message"].as_str();
            if let Some(said) = said {
                said.clone_into(&mut job.message);
            }
            let within = if said.is_some() { JOB_STARTS_WITHIN } else { SILENT_JOB_STARTS_WITHIN };
            let hopeless = matches!(
                waiting["reason"].as_str(),
                Some("InvalidImageName" | "ErrImageNeverPull" | "CreateContainerConfigError" | "Unsupported")
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
            return;
        }
        followed.insert(job.pod.clone());
        job.message.clear();
        tokio::spawn(follow(
            self.client.clone(),
            self.config.namespace.clone(),
            job.pod.clone(),
            nonce,
            reports.clone(),
        ));
    }

    pub fn take(&mut self, report: Report, followed: &mut Followed) {
        match report {
            Report::Event(pod, event) => {
                if let Some(job) = self.status.jobs.iter_mut().find(|it| it.pod == pod) {
                    take_event(job, event);
                }
            }
            Report::LogEnded(name) => {
                let Some(job) = self.status.jobs.iter_mut().find(|it| it.pod == name) else { return };
                if job.phase != JobPhase::Running {
                    return;
                }
                // No last word. Either the pod's end is still to be seen, or the process died in between.
                let pod = self.pods.get(&self.config.namespace, &job.pod);
                match pod.as_deref().map(|it| it["status"]["phase"].as_str().unwrap_or_default()) {
                    Some("Succeeded" | "Failed") => {
                        let pod = pod.as_deref().expect("matched as Some");
                        let message = pod_message(pod);
                        // It wrote more than it may: that is the job's own doing, and how it ended.
                        if pod["status"]["reason"] == "Evicted" && message.contains(" exceeds the ") {
                            job.phase = JobPhase::Failed;
                            message.trim().clone_into(&mut job.message);
                            job.finished_at = now();
                            return;
                        }
                        lose(job, &format!("the job ended without saying how: {message}"));
                    }
                    // Looked at with its node.
                    None => {}
                    Some(_) => {
                        followed.remove(&name);
                    }
                }
            }
        }
    }
}

/// Reads a job's log to its end and reports what the job says about itself.
async fn follow(
    client: Client,
    namespace: String,
    pod: String,
    nonce: String,
    reports: mpsc::Sender<Report>,
) {
    let options = LogOptions { follow: true, ..LogOptions::default() };
    // A log that cannot be read says nothing about the job, so it is asked for again, from its start:
    // taking an event twice changes nothing.
    for _ in 0..LOG_ATTEMPTS_MAX {
        match client.logs(&namespace, &pod, super::pod::JOB_CONTAINER, &options).await {
            Ok(reader) => {
                let mut lines = reader.lines();
                let mut broken = false;
                while let Some(line) = futures::StreamExt::next(&mut lines).await {
                    let Ok(line) = line else {
                        broken = true;
                        break;
                    };
                    if let Some(event) = of_line(&nonce, &line)
                        && reports.send(Report::Event(pod.clone(), event)).await.is_err()
                    {
                        return;
                    }
                }
                if !broken {
                    break;
                }
            }
            Err(error) if error.is_not_found() => break,
            Err(error) => tracing::debug!(%pod, %error, "the job's log cannot be read yet"),
        }
        tokio::time::sleep(LOG_PAUSE).await;
    }
    // The pod's end may be seen a little later than its log's; nor may a log that ends at once be
    // asked for without a pause.
    tokio::time::sleep(LOG_PAUSE).await;
    let _ = reports.send(Report::LogEnded(pod)).await;
}

/// Ends a job of which nobody knows how it would have ended, unless it was asked to end.
pub(super) fn lose(job: &mut JobStatus, why: &str) {
    if job.stopping.is_empty() {
        job.phase = JobPhase::Interrupted;
        why.clone_into(&mut job.message);
    } else {
        job.phase = JobPhase::Cancelled;
        job.message.clone_from(&job.stopping);
    }
    job.finished_at = now();
}

/// Events are facts: taking one again changes nothing.
fn take_event(job: &mut JobStatus, event: Event) {
    match event {
        Event::JobStarted { at } => job.started_at = at,
        // Only where somebody sits before the job.
        Event::Paused { .. } | Event::Resumed { .. } => {}
        // Read from the log by whoever asks for them.
        Event::Tests { .. } => {}
        Event::StepStarted { index, name, at } => {
            // What packaged steps do before and after comes behind the steps of the file.
            if index >= job.steps.len() && index < STEPS_MAX {
                job.steps.resize_with(index + 1, StepStatus::default);
            }
            if let Some(step) = job.steps.get_mut(index) {
                *step =
                    StepStatus { name, phase: JobPhase::Running, started_at: at, ..StepStatus::default() };
            }
        }
        Event::StepEnded { index, name, outcome, exit_code, at } => {
            if let Some(step) = job.steps.get_mut(index) {
                step.name = name;
                step.phase = phase_of(outcome);
                step.exit_code = exit_code;
                step.finished_at = at;
            }
        }
        Event::JobEnded { outcome, outputs, summary, annotations, at } => {
            if job.phase == JobPhase::Running {
                job.phase = phase_of(outcome);
                if !job.stopping.is_empty() && job.phase != JobPhase::Succeeded {
                    job.phase = JobPhase::Cancelled;
                    job.message.clone_from(&job.stopping);
                }
            }
            job.outputs = outputs;
            job.summary = summary;
            job.annotations = annotations;
            job.finished_at = at;
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

/// The status of the container that runs the steps.
fn container_status(pod: &Value) -> &Value {
    pod["status"]["containerStatuses"]
        .as_array()
        .and_then(|all| all.iter().find(|it| it["name"] == super::pod::JOB_CONTAINER))
        .unwrap_or(&Value::Null)
}

/// Why the steps have not begun: a service that does not come up is in the way of them.
fn waiting<'a>(pod: &'a Value, job: &'a Value) -> &'a Value {
    let services = pod["status"]["initContainerStatuses"].as_array().into_iter().flatten();
    let of_service = services.map(|it| &it["state"]["waiting"]).find(|it| it["message"].is_string());
    of_service.unwrap_or(&job["state"]["waiting"])
}

fn pod_message(pod: &Value) -> String {
    let terminated = &container_status(pod)["state"]["terminated"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [text(&terminated["reason"]), text(&terminated["message"]), text(&pod["status"]["message"])]
        .into_iter()
        .filter(|it| !it.is_empty())
        .collect::<Vec<_>>()
        .join(": ")
}

/// Whether a job's pod that is not to be seen is gone. The cache may lag behind a pod that was just made.
pub(super) fn is_gone(job: &JobStatus) -> bool {
    !job.node.is_empty()
        || job.steps.iter().any(|it| it.phase != JobPhase::Pending)
        || age(job) > POD_SEEN_WITHIN
}

/// How long ago the job was started.
fn age(job: &JobStatus) -> jiff::SignedDuration {
    let now = jiff::Timestamp::now();
    now.duration_since(job.started_at.parse().unwrap_or(now))
}

pub fn now() -> String {
    timestamp(jiff::Timestamp::now())
}
