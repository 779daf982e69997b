//! Job: pods until enough of them have succeeded, or too many have failed.
//!
//! Every pod of a Job carries a finalizer, so that none vanishes uncounted: a pod that has ended is first
//! noted in `status.uncountedTerminatedPods`, then let go, then counted. Whenever this process dies in
//! between, the next round goes on from what the status says. The round itself is in `job/round.rs`.

mod indexes;
mod policy;
mod round;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::Propagation;
use kube_kinds::{condition_is_true, controller_of, list, name, namespace, parse_key, text, time, uid};
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::adoption;
use crate::harness::{Controller, Touched, View};

pub use round::reconcile;

const TRACKING: &str = "batch.kubernetes.io/job-tracking";

pub struct Jobs;

impl Controller for Jobs {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        if change.is("batch/jobs/") {
            return vec![change.key.to_string()];
        }
        if !change.is("core/pods/") {
            return Vec::new();
        }
        let mut keys = adoption::owners_touched(view, &kind("batch", "Job"), change);
        if is_tracked(change.object) && !change.deleted && !belongs_to_a_job(change.object) {
            // Nobody counts it: it is let go.
            keys.push(change.key.to_string());
        }
        keys
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, plural, place, name)) = parse_key(key) else { return Plan::default() };
        let pods = kind("", "Pod");
        let mut plan = Plan::default();
        if plural == "pods" {
            let pod = view.objects.find(&pods, place, name);
            if let Some(pod) = pod.filter(|it| is_tracked(it) && !belongs_to_a_job(it)) {
                let_go(&mut plan, &pod);
            }
            return plan;
        }
        let all = view.objects.list(&pods, Some(place), &LabelSelector::default());
        let job = view.objects.find(&kind("batch", "Job"), place, name);
        for pod in all.iter().filter(|it| is_tracked(it)) {
            let owner = controller_of(pod).filter(|it| it["kind"] == "Job" && it["name"] == name);
            let lives = |owner: &Value| job.as_ref().is_some_and(|it| owner["uid"] == uid(it));
            if owner.is_some_and(|it| !lives(it)) {
                let_go(&mut plan, pod);
            }
        }
        let Some(job) = job.filter(|it| is_ours(it)) else { return plan };
        let mut rest = match is_ended(&job) {
            true => ended(&job, &all, now),
            false => reconcile(&job, &all, now),
        };
        plan.actions.append(&mut rest.actions);
        plan.again_after = rest.again_after;
        plan
    }
}

/// A Job may name another controller.
fn is_ours(job: &Value) -> bool {
    ["", "kubernetes.io/job-controller"].contains(&text(job, "/spec/managedBy"))
}

fn is_ended(job: &Value) -> bool {
    condition_is_true(job, "Complete") || condition_is_true(job, "Failed")
}

fn is_tracked(pod: &Value) -> bool {
    list(pod, "/metadata/finalizers").iter().any(|it| it == TRACKING)
}

fn belongs_to_a_job(pod: &Value) -> bool {
    controller_of(pod).is_some_and(|it| it["kind"] == "Job")
}

/// Takes the finalizer off.
fn let_go(plan: &mut Plan, pod: &Value) {
    if is_tracked(pod) {
        let left: Vec<&Value> =
            list(pod, "/metadata/finalizers").iter().filter(|it| *it != TRACKING).collect();
        plan.change(&kind("", "Pod"), pod, json!({"metadata": {"uid": uid(pod), "finalizers": left}}));
    }
}

/// Nothing of an ended job goes on running, and after its time it goes itself.
fn ended(job: &Arc<Value>, pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    for pod in pods.iter().filter(|it| crate::pods::is_controlled_by(it, job)) {
        let_go(&mut plan, pod);
        if crate::pods::is_active(pod) {
            plan.delete(&kind("", "Pod"), pod);
        }
    }
    let Some(seconds) = job["spec"]["ttlSecondsAfterFinished"].as_i64() else { return plan };
    if kube_kinds::is_deleting(job) {
        return plan;
    }
    let end = kube_kinds::condition(job, "Complete")
        .filter(|it| it["status"] == "True")
        .or_else(|| kube_kinds::condition(job, "Failed"));
    let since = end.and_then(|it| time::seconds_since(&it["lastTransitionTime"], now)).unwrap_or(0);
    if since < seconds {
        plan.again_in(seconds - since);
        return plan;
    }
    plan.push(Action::Delete {
        kind: kind("batch", "Job"),
        namespace: namespace(job).to_string(),
        name: name(job).to_string(),
        uid: uid(job).to_string(),
        propagation: Propagation::Foreground,
    });
    plan
}
