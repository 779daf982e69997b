//! Job: pods until enough of them have succeeded, or too many have failed.
//!
//! Counts in the status only grow, so a finished pod that is removed later stays counted. Not
//! here: indexed jobs and pod failure policies (refused by validation).

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::Propagation;
use kube_kinds::{
    condition_is_true, controller_of, int, is_deleting, name, namespace, parse_key, text, time, uid,
};
use kube_objects::EventType;
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::harness::{Controller, Touched, View};
use crate::pods;

/// Pause before a failed pod is replaced; it doubles with every further failure.
const BACK_OFF_SECONDS: i64 = 10;
const BACK_OFF_SECONDS_MAX: i64 = 600;

pub struct Jobs;

impl Controller for Jobs {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn concerns(&self, change: &Touched<'_>, _: &View<'_>) -> Vec<String> {
        if change.is("batch/jobs/") {
            return vec![change.key.to_string()];
        }
        match controller_of(change.object).filter(|it| change.is("core/pods/") && it["kind"] == "Job") {
            Some(owner) => vec![kind("batch", "Job").key(namespace(change.object), text(owner, "/name"))],
            None => Vec::new(),
        }
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(job) = view.objects.find(&kind("batch", "Job"), place, name) else {
            return Plan::default();
        };
        let pods = view.objects.list(&kind("", "Pod"), Some(place), &LabelSelector::default());
        reconcile(&job, &pods, now)
    }
}

/// `pods` are all of the namespace.
pub fn reconcile(job: &Arc<Value>, pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(job) {
        return plan;
    }
    let mine: Vec<&Arc<Value>> = pods.iter().filter(|it| pods::is_controlled_by(it, job)).collect();
    let active: Vec<&Arc<Value>> = mine.iter().filter(|it| pods::is_active(it)).copied().collect();
    let phase = |phase: &str| mine.iter().filter(|it| text(it, "/status/phase") == phase).count() as i64;
    let succeeded = phase("Succeeded").max(int(job, "/status/succeeded"));
    let failed = phase("Failed").max(int(job, "/status/failed"));
    let mut status = job["status"].as_object().cloned().unwrap_or_default();

    if condition_is_true(job, "Complete") || condition_is_true(job, "Failed") {
        // Nothing of an ended job goes on running.
        remove_pods(&mut plan, job, &active);
        if let Some(seconds) = job["spec"]["ttlSecondsAfterFinished"].as_i64() {
            clean_up(&mut plan, job, seconds, now);
        }
        return plan;
    }

    let suspended = job["spec"]["suspend"] == true;
    if !suspended && status.get("startTime").is_none_or(Value::is_null) {
        status.insert("startTime".into(), json!(time::format(now)));
    }
    let started = status.get("startTime").cloned().unwrap_or(Value::Null);
    let running_for = time::seconds_since(&started, now).unwrap_or(0);
    let deadline = job["spec"]["activeDeadlineSeconds"].as_i64();
    let retries = active.iter().map(|it| pods::restarts(it)).sum::<i64>();
    let limit = int(job, "/spec/backoffLimit");
    let parallelism = int(job, "/spec/parallelism");
    let completions = job["spec"]["completions"].as_i64();

    let failure = if failed > limit || (retries > 0 && retries + failed >= limit) {
        Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit"))
    } else if deadline.is_some_and(|it| running_for >= it) && !suspended {
        Some(("DeadlineExceeded", "Job was active longer than specified deadline"))
    } else {
        None
    };
    let complete = match completions {
        Some(completions) => succeeded >= completions,
        None => succeeded > 0 && active.is_empty(),
    };
    let mut conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut active_now = active.len() as i64;
    if complete {
        conditions.push(condition(
            "Complete",
            "CompletionsReached",
            "Reached expected number of succeeded pods",
            now,
        ));
        status.insert("completionTime".into(), json!(time::format(now)));
        event(&mut plan, job, EventType::Normal, "Completed", "Job completed");
        remove_pods(&mut plan, job, &active);
        active_now = 0;
    } else if let Some((reason, message)) = failure {
        conditions.push(condition("Failed", reason, message, now));
        event(&mut plan, job, EventType::Warning, reason, message);
        remove_pods(&mut plan, job, &active);
        active_now = 0;
    } else if suspended {
        remove_pods(&mut plan, job, &active);
        active_now = 0;
        if !condition_is_true(job, "Suspended") {
            conditions.retain(|it| it["type"] != "Suspended");
            conditions.push(condition("Suspended", "JobSuspended", "Job suspended", now));
        }
    } else {
        conditions.retain(|it| it["type"] != "Suspended");
        let wanted = match completions {
            Some(completions) => parallelism.min(completions - succeeded),
            // A work queue: once one has succeeded, no new workers.
            None if succeeded > 0 => active_now.min(parallelism),
            None => parallelism,
        };
        let terminating = mine.iter().filter(|it| is_deleting(it) && !pods::is_finished(it)).count() as i64;
        let missing = (wanted - active_now - terminating).max(0);
        let wait = back_off(&mine, failed, now);
        if active_now > wanted {
            let mut candidates: Vec<Arc<Value>> = active.iter().map(|it| (*it).clone()).collect();
            pods::sort_for_deletion(&mut candidates);
            let excess: Vec<&Arc<Value>> = candidates.iter().take((active_now - wanted) as usize).collect();
            remove_pods(&mut plan, job, &excess);
        } else if missing > 0 && wait > 0 {
            plan.again_in(wait);
        } else {
            for _ in 0..missing {
                plan.push(Action::Create {
                    kind: kind("", "Pod"),
                    namespace: namespace(job).to_string(),
                    object: pods::from_template(job, &job["spec"]["template"]),
                    tell: Some((job.clone(), "SuccessfulCreate", "Created pod: ")),
                });
            }
        }
        if let Some(deadline) = deadline {
            plan.again_in(deadline - running_for);
        }
    }
    for (field, count) in [
        ("active", active_now),
        ("succeeded", succeeded),
        ("failed", failed),
        ("ready", active.iter().filter(|it| pods::is_ready(it)).count() as i64),
    ] {
        match count {
            0 if field != "ready" => status.remove(field),
            _ => status.insert(field.into(), json!(count)),
        };
    }
    if !conditions.is_empty() || status.contains_key("conditions") {
        status.insert("conditions".into(), Value::Array(conditions));
    }
    let status = Value::Object(status);
    if job["status"] != status {
        plan.push(Action::Status {
            kind: kind("batch", "Job"),
            namespace: namespace(job).to_string(),
            name: name(job).to_string(),
            status,
        });
    }
    plan
}

/// Seconds until a new pod may be made: more after every failure, counted from the last one.
fn back_off(pods: &[&Arc<Value>], failed: i64, now: Timestamp) -> i64 {
    if failed == 0 {
        return 0;
    }
    let ended = pods
        .iter()
        .filter(|it| text(it, "/status/phase") == "Failed")
        .filter_map(|pod| {
            let statuses = kube_kinds::list(pod, "/status/containerStatuses");
            let ends = statuses.iter().filter_map(|it| time::parse(&it["state"]["terminated"]["finishedAt"]));
            ends.max().or_else(|| time::parse(&pod["metadata"]["creationTimestamp"]))
        })
        .max();
    let Some(ended) = ended else { return 0 };
    let exponent = u32::try_from(failed - 1).unwrap_or(0).min(10);
    let pause = (BACK_OFF_SECONDS << exponent).min(BACK_OFF_SECONDS_MAX);
    (ended.as_second() + pause - now.as_second()).max(0)
}

fn remove_pods(plan: &mut Plan, job: &Arc<Value>, pods: &[&Arc<Value>]) {
    for pod in pods {
        plan.push(Action::Delete {
            kind: kind("", "Pod"),
            namespace: namespace(pod).to_string(),
            name: name(pod).to_string(),
            uid: uid(pod).to_string(),
            propagation: Propagation::Background,
        });
        event(plan, job, EventType::Normal, "SuccessfulDelete", &format!("Deleted pod: {}", name(pod)));
    }
}

fn clean_up(plan: &mut Plan, job: &Value, seconds: i64, now: Timestamp) {
    let ended = kube_kinds::condition(job, "Complete").or_else(|| kube_kinds::condition(job, "Failed"));
    let since = ended.and_then(|it| time::seconds_since(&it["lastTransitionTime"], now)).unwrap_or(0);
    if since < seconds {
        plan.again_in(seconds - since);
        return;
    }
    plan.push(Action::Delete {
        kind: kind("batch", "Job"),
        namespace: namespace(job).to_string(),
        name: name(job).to_string(),
        uid: uid(job).to_string(),
        propagation: Propagation::Background,
    });
}

fn condition(kind: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let now = time::format(now);
    json!({"type": kind, "status": "True", "reason": reason, "message": message,
        "lastProbeTime": now, "lastTransitionTime": now})
}

fn event(plan: &mut Plan, job: &Arc<Value>, event_type: EventType, reason: &'static str, message: &str) {
    plan.push(Action::Event { about: job.clone(), event_type, reason, message: message.to_string() });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    fn job(spec: Value) -> Arc<Value> {
        let mut job = json!({"metadata": {"name": "j", "namespace": "default", "uid": "job"},
            "spec": {"parallelism": 1, "completions": 1, "backoffLimit": 1, "template": {"spec": {}}},
            "status": {"startTime": "2026-01-01T00:59:00Z"}});
        for (field, value) in spec.as_object().expect("fields") {
            job["spec"][field] = value.clone();
        }
        Arc::new(job)
    }

    fn pod(name: &str, phase: &str, ended: &str) -> Arc<Value> {
        Arc::new(json!({"metadata": {"name": name, "uid": name, "namespace": "default",
                "ownerReferences": [{"uid": "job", "controller": true, "kind": "Job", "name": "j"}]},
            "status": {"phase": phase, "containerStatuses": [{"state": {"terminated": {"finishedAt": ended}}}]}}))
    }

    #[track_caller]
    fn check(job: Arc<Value>, pods: &[Arc<Value>], expected: &[&str]) {
        let plan = reconcile(&job, pods, now());
        let words: Vec<String> = plan
            .actions
            .iter()
            .filter_map(|it| match it {
                Action::Create { .. } => Some("create".to_string()),
                Action::Delete { name, .. } => Some(format!("delete {name}")),
                Action::Status { status, .. } => {
                    let last = status["conditions"].as_array().and_then(|it| it.last());
                    last.map(|it| text(it, "/reason").to_string())
                }
                _ => None,
            })
            .collect();
        assert_eq!(words, expected);
    }

    #[test]
    fn a_job_runs_until_it_has_its_completions() {
        check(job(json!({"parallelism": 2, "completions": 3})), &[], &["create", "create"]);
        let done = [pod("a", "Succeeded", ""), pod("b", "Succeeded", "")];
        check(job(json!({"parallelism": 2, "completions": 3})), &done, &["create"]);
        check(job(json!({})), &done[..1], &["CompletionsReached"]);
    }

    #[test]
    fn failures_are_retried_with_a_pause_and_not_for_ever() {
        check(job(json!({})), &[pod("a", "Failed", "2026-01-01T00:59:55Z")], &[]);
        check(job(json!({})), &[pod("a", "Failed", "2026-01-01T00:59:45Z")], &["create"]);
        let twice = [pod("a", "Failed", "2026-01-01T00:59:00Z"), pod("b", "Failed", "2026-01-01T00:59:30Z")];
        check(job(json!({})), &twice, &["BackoffLimitExceeded"]);
    }

    #[test]
    fn a_deadline_ends_the_job_and_its_pods() {
        check(
            job(json!({"activeDeadlineSeconds": 60})),
            &[pod("a", "Running", "")],
            &["delete a", "DeadlineExceeded"],
        );
    }
}
