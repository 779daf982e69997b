//! One round of a Job that has not ended: count, judge, make and remove pods, write the status.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::{condition_is_true, int, is_deleting, list, name, namespace, text, time, uid};
use serde_json::{Map, Value, json};

use super::indexes::{self, Indexes};
use super::policy::{self, Verdict};
use super::{TRACKING, is_tracked, let_go};
use crate::action::{Action, Plan, kind};
use crate::adoption;
use crate::conditions::{self, Condition};
use crate::pods;

/// Pause before a failed pod is replaced; it doubles with every further failure.
const BACK_OFF_SECONDS: i64 = 10;
const BACK_OFF_SECONDS_MAX: i64 = 600;
/// Pods made in one round; the rest follows in the next.
const BURST_MAX: usize = 500;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";

struct Round<'a> {
    job: &'a Arc<Value>,
    now: Timestamp,
    plan: Plan,
    /// Those that run or will, those on their way out, those that have ended.
    active: Vec<Arc<Value>>,
    terminating: Vec<Arc<Value>>,
    finished: Vec<Arc<Value>>,
    /// Counted for good.
    succeeded: i64,
    failed: i64,
    /// Noted by uid, but still held by the finalizer.
    noted_succeeded: BTreeSet<String>,
    noted_failed: BTreeSet<String>,
    completed: Indexes,
    failed_indexes: Indexes,
    conditions: Vec<Value>,
}

/// `pods` are all of the namespace.
pub fn reconcile(job: &Arc<Value>, pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let selector = adoption::selector_of(job);
    let mine = match selector.is_empty() {
        true => pods.iter().filter(|it| pods::is_controlled_by(it, job)).cloned().collect(),
        false => adoption::claim(&mut plan, job, &selector, &kind("", "Pod"), pods),
    };
    if is_deleting(job) {
        mine.iter().for_each(|it| let_go(&mut plan, it));
        return plan;
    }
    let (finished, rest): (Vec<_>, Vec<_>) = mine.into_iter().partition(|it| pods::is_finished(it));
    let (terminating, active): (Vec<_>, Vec<_>) = rest.into_iter().partition(|it| is_deleting(it));
    let noted = |field: &str| -> BTreeSet<String> {
        list(job, &format!("/status/uncountedTerminatedPods/{field}"))
            .iter()
            .filter_map(|it| it.as_str().map(String::from))
            .collect()
    };
    let completions = job["spec"]["completions"].as_i64().unwrap_or(0);
    let mut round = Round {
        job,
        now,
        plan,
        active,
        terminating,
        finished,
        succeeded: int(job, "/status/succeeded"),
        failed: int(job, "/status/failed"),
        noted_succeeded: noted("succeeded"),
        noted_failed: noted("failed"),
        completed: indexes::parse(text(job, "/status/completedIndexes"), completions),
        failed_indexes: indexes::parse(text(job, "/status/failedIndexes"), completions),
        conditions: conditions::all(job),
    };
    round.run();
    round.plan
}

impl Round<'_> {
    fn run(&mut self) {
        let failure = self.count();
        let started = self.start();
        self.judge(failure, &started);
        let decided = self.is("FailureTarget") || self.is("SuccessCriteriaMet");
        let (removed, created) = match decided || self.job["spec"]["suspend"] == true {
            true => (self.remove(self.active.clone()), 0),
            false => self.resize(),
        };
        self.end();
        let status = self.status(&started, removed.len() as i64, created);
        // First it is noted which pods have ended, then they are let go.
        let mut plan = Plan { again_after: self.plan.again_after, ..Plan::default() };
        plan.status(&kind("batch", "Job"), self.job, status);
        for pod in self.finished.iter().chain(&self.terminating) {
            if self.noted_succeeded.contains(uid(pod)) || self.noted_failed.contains(uid(pod)) {
                let_go(&mut plan, pod);
            }
        }
        plan.actions.append(&mut self.plan.actions);
        self.plan = plan;
    }

    fn is(&self, condition: &str) -> bool {
        conditions::of(&self.conditions, condition).is_some_and(|it| it["status"] == "True")
    }

    fn is_indexed(&self) -> bool {
        self.job["spec"]["completionMode"] == "Indexed"
    }

    fn completions(&self) -> Option<i64> {
        self.job["spec"]["completions"].as_i64()
    }

    /// A pod on its way out is replaced only when it has ended.
    fn waits_for_the_end(&self) -> bool {
        self.job["spec"]["podReplacementPolicy"] == "Failed"
            || self.job["spec"]["podFailurePolicy"].is_object()
    }

    fn index_of(&self, pod: &Value) -> Option<i64> {
        let index: i64 = pod["metadata"]["annotations"][INDEX].as_str()?.parse().ok()?;
        (0..self.completions().unwrap_or(0)).contains(&index).then_some(index)
    }

    /// Moves ended pods through the books. Answers with what fails the job by its policy.
    fn count(&mut self) -> Option<String> {
        // Those that are let go are counted now.
        let held = |uids: &BTreeSet<String>, pods: &[Arc<Value>]| -> BTreeSet<String> {
            let held = pods.iter().filter(|it| is_tracked(it) && uids.contains(uid(it)));
            held.map(|it| uid(it).to_string()).collect()
        };
        let ended: Vec<Arc<Value>> = self.finished.iter().chain(&self.terminating).cloned().collect();
        for (noted, count) in
            [(&mut self.noted_succeeded, &mut self.succeeded), (&mut self.noted_failed, &mut self.failed)]
        {
            let still = held(noted, &ended);
            *count += (noted.len() - still.len()) as i64;
            *noted = still;
        }
        let mut failure = None;
        for pod in &ended {
            let known = self.noted_succeeded.contains(uid(pod)) || self.noted_failed.contains(uid(pod));
            if known || !is_tracked(pod) {
                continue;
            }
            let phase = text(pod, "/status/phase");
            let index = self.index_of(pod);
            if phase == "Succeeded" {
                if self.is_indexed() {
                    // Two pods of one index are one completion.
                    let Some(index) = index else {
                        let_go(&mut self.plan, pod);
                        continue;
                    };
                    self.completed.insert(index);
                }
                self.noted_succeeded.insert(uid(pod).to_string());
                continue;
            }
            if phase != "Failed" && self.waits_for_the_end() {
                if text(pod, "/spec/nodeName").is_empty() {
                    // It has never run, so no node will say how it ended.
                    let_go(&mut self.plan, pod);
                }
                continue;
            }
            let verdict = if phase == "Failed" { policy::judge(self.job, pod) } else { Verdict::Count };
            match &verdict {
                Verdict::Ignore => {
                    let_go(&mut self.plan, pod);
                    continue;
                }
                Verdict::FailJob(why) => failure = Some(why.clone()),
                Verdict::FailIndex => self.failed_indexes.extend(index),
                Verdict::Count => {}
            }
            if let (Some(limit), Some(index)) = (self.job["spec"]["backoffLimitPerIndex"].as_i64(), index) {
                if failures_of(pod) >= limit {
                    self.failed_indexes.insert(index);
                }
                // The failures of an index are counted on its pods: the last one stays until its successor
                // is there.
                let settled = self.failed_indexes.contains(&index)
                    || self.completed.contains(&index)
                    || self.active.iter().any(|it| self.index_of(it) == Some(index));
                if !settled && failure.is_none() {
                    continue;
                }
            }
            self.noted_failed.insert(uid(pod).to_string());
        }
        failure
    }

    fn succeeded_now(&self) -> i64 {
        match self.is_indexed() {
            true => self.completed.len() as i64,
            false => self.succeeded + self.noted_succeeded.len() as i64,
        }
    }

    fn failed_now(&self) -> i64 {
        self.failed + self.noted_failed.len() as i64
    }

    /// The start time; suspending and resuming begin anew.
    fn start(&mut self) -> Value {
        let suspended = self.job["spec"]["suspend"] == true;
        let before = self.job["status"]["startTime"].clone();
        let job = self.job.clone();
        if suspended {
            if !self.is("Suspended") {
                self.set("Suspended", "True", "JobSuspended", "Job suspended");
                self.plan.normal(&job, "Suspended", "Job suspended".into());
            }
            return Value::Null;
        }
        if self.is("Suspended") {
            self.set("Suspended", "False", "JobResumed", "Job resumed");
            self.plan.normal(&job, "Resumed", "Job resumed".into());
            return json!(time::format(self.now));
        }
        if before.is_null() { json!(time::format(self.now)) } else { before }
    }

    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        conditions::set(&mut self.conditions, Condition { kind, status, reason, message }, self.now);
        if let Some(it) = self.conditions.iter_mut().find(|it| it["type"] == kind) {
            it["lastProbeTime"] = it["lastTransitionTime"].clone();
        }
    }

    fn judge(&mut self, policy: Option<String>, started: &Value) {
        if self.is("FailureTarget") || self.is("SuccessCriteriaMet") {
            return;
        }
        let spec = &self.job["spec"];
        let suspended = spec["suspend"] == true;
        let limit = spec["backoffLimit"].as_i64().unwrap_or(6);
        let restarts: i64 = match spec["template"]["spec"]["restartPolicy"] == "OnFailure" {
            true => self.active.iter().map(|it| pods::restarts(it)).sum(),
            false => 0,
        };
        let exceeded = self.failed_now() > limit || (restarts > 0 && restarts >= limit);
        let deadline = spec["activeDeadlineSeconds"].as_i64();
        let running_for = time::seconds_since(started, self.now).unwrap_or(0);
        let failed_max = spec["maxFailedIndexes"].as_i64();
        let mut failure: Option<(&str, String)> = None;
        if let Some(why) = policy {
            failure = Some(("PodFailurePolicy", why));
        } else if exceeded {
            failure = Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()));
        } else if let Some(deadline) = deadline
            && !suspended
        {
            if running_for >= deadline {
                let why = "Job was active longer than specified deadline";
                failure = Some(("DeadlineExceeded", why.into()));
            } else {
                self.plan.again_in(deadline - running_for);
            }
        }
        if failure.is_none() && failed_max.is_some_and(|it| self.failed_indexes.len() as i64 > it) {
            let why = "Job has exceeded the specified maximal number of failed indexes";
            failure = Some(("MaxFailedIndexesExceeded", why.into()));
        }
        let settled = self.completions().is_some_and(|it| {
            self.is_indexed() && self.completed.union(&self.failed_indexes).count() as i64 >= it
        });
        if failure.is_none() && settled && !self.failed_indexes.is_empty() {
            failure = Some(("FailedIndexes", "Job has failed indexes".into()));
        }
        if let Some((reason, message)) = failure {
            self.set("FailureTarget", "True", reason, &message);
            return;
        }
        if self.is_indexed()
            && let Some(message) = policy::success(self.job, &self.completed, self.completions().unwrap_or(0))
        {
            self.set("SuccessCriteriaMet", "True", "SuccessPolicy", &message);
            return;
        }
        let complete = match self.completions() {
            Some(completions) => self.succeeded_now() >= completions,
            None => self.succeeded_now() > 0 && self.active.is_empty() && self.terminating.is_empty(),
        };
        if complete {
            let message = "Reached expected number of succeeded pods";
            self.set("SuccessCriteriaMet", "True", "CompletionsReached", message);
        }
    }

    /// The last word, when no pod is left that could still do something.
    fn end(&mut self) {
        if !self.active.is_empty() || !self.terminating.is_empty() {
            return;
        }
        if !(self.noted_succeeded.is_empty() && self.noted_failed.is_empty()) {
            return;
        }
        let job = self.job.clone();
        for (interim, last) in [("FailureTarget", "Failed"), ("SuccessCriteriaMet", "Complete")] {
            let Some(it) = conditions::of(&self.conditions, interim).filter(|it| it["status"] == "True")
            else {
                continue;
            };
            let (reason, message) = (text(it, "/reason").to_string(), text(it, "/message").to_string());
            self.set(last, "True", &reason, &message);
            if last == "Complete" {
                self.plan.normal(&job, "Completed", "Job completed".into());
            } else {
                let reason = EVENTS.iter().find(|it| **it == reason).copied().unwrap_or("Failed");
                self.plan.push(Action::Event {
                    about: job,
                    event_type: kube_objects::EventType::Warning,
                    reason,
                    message,
                });
            }
            return;
        }
    }

    /// Takes pods out without counting them as failures.
    fn remove(&mut self, victims: Vec<Arc<Value>>) -> Vec<Arc<Value>> {
        let job = self.job.clone();
        let failing = self.is("FailureTarget");
        for pod in &victims {
            // Those of a failed job are its failures; they are counted when they have ended.
            if !failing {
                let_go(&mut self.plan, pod);
            }
            self.plan.delete(&kind("", "Pod"), pod);
            self.plan.normal(&job, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
        }
        victims
    }

    /// Makes and removes pods. Answers with those removed and how many were made.
    fn resize(&mut self) -> (Vec<Arc<Value>>, i64) {
        let mut removed = Vec::new();
        let parallelism = int(self.job, "/spec/parallelism");
        let mut active = self.active.clone();
        if self.is_indexed() {
            // Of two pods of one index, and of those that are not needed, none stays.
            let mut seen = Indexes::new();
            active
                .sort_by_key(|it| (!pods::is_ready(it), text(it, "/metadata/creationTimestamp").to_string()));
            let (kept, surplus): (Vec<_>, Vec<_>) = active.into_iter().partition(|it| {
                self.index_of(it).is_some_and(|it| {
                    !self.completed.contains(&it) && !self.failed_indexes.contains(&it) && seen.insert(it)
                })
            });
            active = kept;
            removed.extend(self.remove(surplus));
        }
        let active_now = active.len() as i64;
        let wanted = match self.completions() {
            Some(completions) => {
                let settled = match self.is_indexed() {
                    true => self.completed.union(&self.failed_indexes).count() as i64,
                    false => self.succeeded_now(),
                };
                parallelism.min(completions - settled).max(0)
            }
            // A work queue: once one has succeeded, no new workers.
            None if self.succeeded_now() > 0 => active_now.min(parallelism),
            None => parallelism,
        };
        if active_now > wanted {
            pods::sort_for_deletion(&mut active);
            active.truncate((active_now - wanted) as usize);
            removed.extend(self.remove(active));
            return (removed, 0);
        }
        let leaving = if self.waits_for_the_end() { self.terminating.len() as i64 } else { 0 };
        let missing = usize::try_from(wanted - active_now - leaving).unwrap_or(0);
        if missing == 0 {
            return (removed, 0);
        }
        let indexes: Vec<Option<i64>> = match self.is_indexed() {
            true => self.free_indexes(&active, missing).into_iter().map(Some).collect(),
            false => {
                let wait = self.back_off(self.failed_now(), self.finished.iter());
                if wait > 0 {
                    self.plan.again_in(wait);
                    return (removed, 0);
                }
                vec![None; missing]
            }
        };
        let created = indexes.len().min(BURST_MAX) as i64;
        if indexes.len() > BURST_MAX {
            self.plan.again_in(0);
        }
        for index in indexes.into_iter().take(BURST_MAX) {
            let object = self.pod(index);
            self.plan.push(Action::Create {
                kind: kind("", "Pod"),
                namespace: namespace(self.job).to_string(),
                object,
                tell: Some((self.job.clone(), "SuccessfulCreate", "Created pod: ")),
            });
        }
        (removed, created)
    }

    /// The lowest indexes that nobody works on and that may start now.
    fn free_indexes(&mut self, active: &[Arc<Value>], count: usize) -> Vec<i64> {
        let mut busy: Indexes = active.iter().filter_map(|it| self.index_of(it)).collect();
        if self.waits_for_the_end() {
            busy.extend(self.terminating.iter().filter_map(|it| self.index_of(it)));
        }
        let per_index = self.job["spec"]["backoffLimitPerIndex"].is_i64();
        let all = (!per_index).then(|| self.back_off(self.failed_now(), self.finished.iter()));
        let mut free = Vec::new();
        for index in 0..self.completions().unwrap_or(0) {
            if free.len() == count {
                break;
            }
            if busy.contains(&index)
                || self.completed.contains(&index)
                || self.failed_indexes.contains(&index)
            {
                continue;
            }
            let wait = all.unwrap_or_else(|| {
                let own = self.finished.iter().filter(|it| self.index_of(it) == Some(index));
                self.back_off(self.failures_so_far(index), own)
            });
            match wait > 0 {
                true => self.plan.again_in(wait),
                false => free.push(index),
            }
        }
        free
    }

    /// Failures of one index, as its pods remember them.
    fn failures_so_far(&self, index: i64) -> i64 {
        let ended = self.finished.iter().chain(&self.terminating);
        ended
            .filter(|it| self.index_of(it) == Some(index) && text(it, "/status/phase") != "Succeeded")
            .filter(|it| policy::judge(self.job, it) != Verdict::Ignore)
            .map(|it| failures_of(it) + 1)
            .max()
            .unwrap_or(0)
    }

    /// Seconds until a new pod may be made: more after every failure, counted from the last one.
    fn back_off<'b>(&self, failed: i64, finished: impl Iterator<Item = &'b Arc<Value>>) -> i64 {
        if failed == 0 {
            return 0;
        }
        let ended = finished.filter(|it| text(it, "/status/phase") == "Failed").filter_map(|pod| {
            let statuses = list(pod, "/status/containerStatuses");
            let ends = statuses.iter().filter_map(|it| time::parse(&it["state"]["terminated"]["finishedAt"]));
            ends.max().or_else(|| time::parse(&pod["metadata"]["creationTimestamp"]))
        });
        let Some(ended) = ended.max() else { return 0 };
        let exponent = u32::try_from(failed - 1).unwrap_or(0).min(10);
        let pause = (BACK_OFF_SECONDS << exponent).min(BACK_OFF_SECONDS_MAX);
        (ended.as_second() + pause - self.now.as_second()).max(0)
    }

    fn pod(&self, index: Option<i64>) -> Value {
        let job_name = name(self.job);
        let mut pod = pods::from_template(self.job, &self.job["spec"]["template"]);
        let mut finalizers = list(&pod, "/metadata/finalizers").to_vec();
        finalizers.push(json!(TRACKING));
        pod["metadata"]["finalizers"] = Value::Array(finalizers);
        let Some(index) = index else { return pod };
        pod["metadata"]["generateName"] = json!(format!("{job_name}-{index}-"));
        pod["metadata"]["annotations"][INDEX] = json!(index.to_string());
        pod["metadata"]["labels"][INDEX] = json!(index.to_string());
        if self.job["spec"]["backoffLimitPerIndex"].is_i64() {
            pod["metadata"]["annotations"][INDEX_FAILURES] = json!(self.failures_so_far(index).to_string());
        }
        pod["spec"]["hostname"] = json!(format!("{job_name}-{index}"));
        let variable = json!({"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef":
            {"fieldPath": format!("metadata.annotations['{INDEX}']")}}});
        for containers in ["initContainers", "containers"] {
            for container in pod["spec"][containers].as_array_mut().into_iter().flatten() {
                let mut variables = list(container, "/env").to_vec();
                if !variables.iter().any(|it| it["name"] == "JOB_COMPLETION_INDEX") {
                    variables.push(variable.clone());
                }
                container["env"] = Value::Array(variables);
            }
        }
        pod
    }

    fn status(&self, started: &Value, removed: i64, created: i64) -> Value {
        let mut status = self.job["status"].as_object().cloned().unwrap_or_default();
        let ready = self.active.iter().filter(|it| pods::is_ready(it)).count() as i64;
        let mut noted = Map::new();
        for (field, uids) in [("succeeded", &self.noted_succeeded), ("failed", &self.noted_failed)] {
            if !uids.is_empty() {
                noted.insert(field.into(), json!(uids));
            }
        }
        status.insert("uncountedTerminatedPods".into(), Value::Object(noted));
        let over = self.is("Complete") || self.is("Failed");
        status.insert("ready".into(), json!(ready));
        status.insert("terminating".into(), json!(self.terminating.len() as i64 + removed));
        for (field, count) in [
            ("active", self.active.len() as i64 - removed + if over { 0 } else { created }),
            // Two pods of one index are one success.
            ("succeeded", if self.is_indexed() { self.completed.len() as i64 } else { self.succeeded }),
            ("failed", self.failed),
        ] {
            match count {
                0 => status.remove(field),
                _ => status.insert(field.into(), json!(count)),
            };
        }
        for (field, set) in [("completedIndexes", &self.completed), ("failedIndexes", &self.failed_indexes)] {
            match set.is_empty() {
                true => status.remove(field),
                false => status.insert(field.into(), json!(indexes::format(set))),
            };
        }
        match started.is_null() {
            true => status.remove("startTime"),
            false => status.insert("startTime".into(), started.clone()),
        };
        if self.is("Complete") && !condition_is_true(self.job, "Complete") {
            status.insert("completionTime".into(), json!(time::format(self.now)));
        }
        if !self.conditions.is_empty() {
            status.insert("conditions".into(), Value::Array(self.conditions.clone()));
        }
        Value::Object(status)
    }
}

/// Reasons of events are constants; these are those of failed jobs.
const EVENTS: [&str; 5] = [
    "BackoffLimitExceeded",
    "DeadlineExceeded",
    "PodFailurePolicy",
    "MaxFailedIndexesExceeded",
    "FailedIndexes",
];

/// Earlier failures of the index that a pod works on.
fn failures_of(pod: &Value) -> i64 {
    pod["metadata"]["annotations"][INDEX_FAILURES].as_str().and_then(|it| it.parse().ok()).unwrap_or(0)
}
