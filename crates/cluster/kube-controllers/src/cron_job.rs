//! CronJob: a Job at every time of its schedule.
//!
//! The name of a Job is made from its time, so that a crash between writing the Job and writing the
//! status cannot start it twice.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::Propagation;
use kube_kinds::{
    condition_is_true, controller_of, is_deleting, list, name, namespace, parse_key, text, time, uid,
};
use kube_objects::EventType;
use serde_json::{Value, json};

use crate::action::{Action, Plan, controller_reference, kind};
use crate::harness::{Controller, Touched, View};
use crate::pods;
use naru_text::cron::Schedule;

/// Says that the schedule made a Job, and when: a Job that a person made from the CronJob has none.
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub struct CronJobs;

impl Controller for CronJobs {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn concerns(&self, change: &Touched<'_>, _: &View<'_>) -> Vec<String> {
        if change.is("batch/cronjobs/") {
            return vec![change.key.to_string()];
        }
        match controller_of(change.object).filter(|it| change.is("batch/jobs/") && it["kind"] == "CronJob") {
            Some(owner) => vec![kind("batch", "CronJob").key(namespace(change.object), text(owner, "/name"))],
            None => Vec::new(),
        }
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(cron) = view.objects.find(&kind("batch", "CronJob"), place, name) else {
            return Plan::default();
        };
        let jobs = view.objects.list(&kind("batch", "Job"), Some(place), &LabelSelector::default());
        reconcile(&cron, &jobs, now)
    }
}

fn is_finished(job: &Value) -> bool {
    condition_is_true(job, "Complete") || condition_is_true(job, "Failed")
}

fn warn(plan: &mut Plan, cron: &Arc<Value>, reason: &'static str, message: String) {
    plan.push(Action::Event { about: cron.clone(), event_type: EventType::Warning, reason, message });
}

fn delete_job(plan: &mut Plan, cron: &Arc<Value>, job: &Value) {
    plan.push(Action::Delete {
        kind: kind("batch", "Job"),
        namespace: namespace(job).to_string(),
        name: name(job).to_string(),
        uid: uid(job).to_string(),
        propagation: Propagation::Background,
    });
    plan.normal(cron, "SuccessfulDelete", format!("Deleted job {}", name(job)));
}

/// `jobs` are all of the namespace.
pub fn reconcile(cron: &Arc<Value>, jobs: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mine: Vec<&Arc<Value>> = jobs.iter().filter(|it| pods::is_controlled_by(it, cron)).collect();
    let known = |job: &Value| list(cron, "/status/active").iter().any(|it| it["uid"] == uid(job));
    for job in mine.iter().filter(|it| is_finished(it) && known(it)) {
        let end = if condition_is_true(job, "Complete") { "Complete" } else { "Failed" };
        plan.normal(cron, "SawCompletedJob", format!("Saw completed job: {}, condition: {end}", name(job)));
    }
    if !is_deleting(cron) {
        prune(&mut plan, cron, &mine);
    }
    let mut active: Vec<Value> = mine
        .iter()
        .filter(|it| !is_finished(it) && !is_deleting(it))
        .filter(|it| known(it) || it["metadata"]["annotations"][SCHEDULED_AT].is_string())
        .map(|it| reference(it))
        .collect();
    let mut status = cron["status"].as_object().cloned().unwrap_or_default();
    let succeeded = mine.iter().filter(|it| condition_is_true(it, "Complete"));
    let last_success = succeeded
        .filter_map(|it| it["status"]["completionTime"].as_str())
        .chain(cron["status"]["lastSuccessfulTime"].as_str())
        .max();
    if let Some(at) = last_success {
        status.insert("lastSuccessfulTime".into(), json!(at));
    }
    let suspended = cron["spec"]["suspend"] == true;
    if !suspended && !is_deleting(cron) {
        start(&mut plan, cron, jobs, &mine, &mut active, &mut status, now);
    }
    match active.is_empty() {
        true => status.remove("active"),
        false => status.insert("active".into(), Value::Array(active)),
    };
    plan.status(&kind("batch", "CronJob"), cron, Value::Object(status));
    plan
}

fn reference(job: &Value) -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "namespace": namespace(job), "name": name(job),
        "uid": uid(job), "resourceVersion": job["metadata"]["resourceVersion"]})
}

/// Starts the Job that is due, if one is, and waits for the next.
fn start(
    plan: &mut Plan,
    cron: &Arc<Value>,
    jobs: &[Arc<Value>],
    mine: &[&Arc<Value>],
    active: &mut Vec<Value>,
    status: &mut serde_json::Map<String, Value>,
    now: Timestamp,
) {
    let expression = text(cron, "/spec/schedule");
    let Some(schedule) = Schedule::parse(expression) else {
        warn(plan, cron, "UnparseableSchedule", format!("unparseable schedule: {expression:?}"));
        return;
    };
    let zone = match text(cron, "/spec/timeZone") {
        "" => TimeZone::system(),
        zone => match TimeZone::get(zone) {
            Ok(zone) => zone,
            Err(_) => {
                warn(plan, cron, "UnknownTimeZone", format!("invalid timeZone: {zone:?}"));
                return;
            }
        },
    };
    let created = time::parse(&cron["metadata"]["creationTimestamp"]).unwrap_or(now);
    let last = time::parse(&cron["status"]["lastScheduleTime"]);
    let mut earliest = last.unwrap_or(created);
    let deadline = cron["spec"]["startingDeadlineSeconds"].as_i64();
    if let Some(limit) = deadline.and_then(|it| Timestamp::from_second(now.as_second() - it).ok()) {
        earliest = earliest.max(limit);
    }
    if let Some(next) = schedule.next(now, &zone) {
        plan.again_in(next.as_second() - now.as_second());
    }
    let Some(due) = schedule.latest(earliest, now, &zone) else { return };
    let job_name = format!("{}-{}", name(cron), due.as_second().div_euclid(60));
    if let Some(started) = jobs.iter().find(|it| name(it) == job_name) {
        if pods::is_controlled_by(started, cron) {
            // Started before a crash; only the note is missing.
            status.insert("lastScheduleTime".into(), json!(time::format(due)));
        }
        return;
    }
    match text(cron, "/spec/concurrencyPolicy") {
        "Forbid" if !active.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.normal(cron, "JobAlreadyActive", message.into());
            return;
        }
        "Replace" => {
            for job in mine.iter().filter(|it| active.iter().any(|active| active["uid"] == uid(it))) {
                delete_job(plan, cron, job);
            }
            active.clear();
        }
        _ => {}
    }
    plan.push(Action::Create {
        kind: kind("batch", "Job"),
        namespace: namespace(cron).to_string(),
        object: job_from(cron, &job_name, &due.to_zoned(zone).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()),
        tell: Some((cron.clone(), "SuccessfulCreate", "Created job ")),
    });
    status.insert("lastScheduleTime".into(), json!(time::format(due)));
}

fn job_from(cron: &Value, job_name: &str, at: &str) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let mut annotations = template["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.insert(SCHEDULED_AT.into(), json!(at));
    let mut job = json!({
        "metadata": {"name": job_name, "annotations": annotations, "ownerReferences": [controller_reference(cron)]},
        "spec": template["spec"],
    });
    if !template["metadata"]["labels"].is_null() {
        job["metadata"]["labels"] = template["metadata"]["labels"].clone();
    }
    job
}

/// Of ended Jobs as many stay as asked for; the oldest go.
fn prune(plan: &mut Plan, cron: &Arc<Value>, mine: &[&Arc<Value>]) {
    for (end, field, standard) in
        [("Complete", "successfulJobsHistoryLimit", 3), ("Failed", "failedJobsHistoryLimit", 1)]
    {
        let limit = cron["spec"][field].as_i64().unwrap_or(standard);
        let mut ended: Vec<&&Arc<Value>> =
            mine.iter().filter(|it| condition_is_true(it, end) && !is_deleting(it)).collect();
        ended.sort_by_key(|it| (text(it, "/status/startTime").to_string(), name(it).to_string()));
        let excess = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        ended.into_iter().take(excess).for_each(|it| delete_job(plan, cron, it));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(spec: Value, status: Value) -> Arc<Value> {
        let base = json!({"schedule": "*/5 * * * *", "timeZone": "UTC", "concurrencyPolicy": "Allow",
            "jobTemplate": {"spec": {"template": {"spec": {}}}}});
        Arc::new(
            json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c", "namespace": "default",
                "uid": "cron", "creationTimestamp": "2026-01-01T00:00:30Z"},
            "spec": kube_patch::merge(&base, &spec), "status": status}),
        )
    }

    fn job(name: &str, end: Option<&str>) -> Arc<Value> {
        let conditions = end.map(|it| json!([{"type": it, "status": "True"}])).unwrap_or(json!([]));
        Arc::new(
            json!({"metadata": {"name": name, "uid": name, "namespace": "default", "annotations": {SCHEDULED_AT: "x"},
                "ownerReferences": [{"uid": "cron", "controller": true, "kind": "CronJob", "name": "c"}]},
            "status": {"startTime": name, "conditions": conditions}}),
        )
    }

    #[track_caller]
    fn check(cron: &Arc<Value>, jobs: &[Arc<Value>], now: &str, expected: &[&str]) -> Plan {
        let plan = reconcile(cron, jobs, now.parse().expect("a time"));
        let words: Vec<String> = plan
            .actions
            .iter()
            .filter_map(|it| match it {
                Action::Create { object, .. } => Some(format!("create {}", name(object))),
                Action::Delete { name, .. } => Some(format!("delete {name}")),
                _ => None,
            })
            .collect();
        assert_eq!(words, expected);
        plan
    }

    #[test]
    fn a_job_starts_at_its_time_and_once() {
        let fresh = cron(json!({}), json!({}));
        let plan = check(&fresh, &[], "2026-01-01T00:02:00Z", &[]);
        assert!(plan.again_after.is_some_and(|it| it.as_secs() == 180));
        check(&fresh, &[], "2026-01-01T00:05:01Z", &["create c-29453765"]);
        check(&fresh, &[job("c-29453765", None)], "2026-01-01T00:05:02Z", &[]);
        let done = cron(json!({}), json!({"lastScheduleTime": "2026-01-01T00:05:00Z"}));
        check(&done, &[], "2026-01-01T00:06:00Z", &[]);
        check(&cron(json!({"suspend": true}), json!({})), &[], "2026-01-01T00:05:01Z", &[]);
    }

    #[test]
    fn what_was_missed_too_long_ago_is_not_made_up_for() {
        let late = cron(json!({"startingDeadlineSeconds": 60}), json!({}));
        check(&late, &[], "2026-01-01T00:07:00Z", &[]);
        check(&late, &[], "2026-01-01T00:05:50Z", &["create c-29453765"]);
    }

    #[test]
    fn a_running_job_forbids_or_is_replaced() {
        let running = [job("c-1", None)];
        let now = "2026-01-01T00:05:01Z";
        check(&cron(json!({}), json!({})), &running, now, &["create c-29453765"]);
        check(&cron(json!({"concurrencyPolicy": "Forbid"}), json!({})), &running, now, &[]);
        let replacing = cron(json!({"concurrencyPolicy": "Replace"}), json!({}));
        check(&replacing, &running, now, &["delete c-1", "create c-29453765"]);
    }

    #[test]
    fn the_history_has_its_limits() {
        let jobs: Vec<Arc<Value>> = ["1", "2", "3", "4"].map(|it| job(it, Some("Complete"))).to_vec();
        let suspended = cron(json!({"suspend": true}), json!({}));
        check(&suspended, &jobs, "2026-01-01T00:01:00Z", &["delete 1"]);
    }
}
