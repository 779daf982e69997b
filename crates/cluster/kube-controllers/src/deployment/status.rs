//! What `kubectl rollout status`, helm and Argo CD read.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::{int, is_deleting, name, time};
use serde_json::{Value, json};

use super::{is_paused, scale::Limits};
use crate::action::Plan;
use crate::conditions::{self, Condition};

pub(super) fn is_complete(deployment: &Value, status: &Value) -> bool {
    let desired = int(deployment, "/spec/replicas");
    ["updatedReplicas", "replicas", "availableReplicas"]
        .iter()
        .all(|it| int(status, &format!("/{it}")) == desired)
}

/// The status that follows from the sets' own. Counts of zero are left out, as clients know it.
pub(super) fn of(
    deployment: &Value,
    newest: Option<&Arc<Value>>,
    old: &[Arc<Value>],
    now: Timestamp,
    plan: &mut Plan,
) -> Value {
    let all: Vec<&Arc<Value>> = newest.into_iter().chain(old).collect();
    let sum = |pointer: &str| all.iter().map(|it| int(it, pointer)).sum::<i64>();
    let available = sum("/status/availableReplicas");
    let mut status = json!({"observedGeneration": deployment["metadata"]["generation"]});
    for (field, count) in [
        ("replicas", sum("/status/replicas")),
        ("updatedReplicas", newest.map_or(0, |it| int(it, "/status/replicas"))),
        ("readyReplicas", sum("/status/readyReplicas")),
        ("availableReplicas", available),
        ("terminatingReplicas", sum("/status/terminatingReplicas")),
        ("unavailableReplicas", (sum("/spec/replicas") - available).max(0)),
        ("collisionCount", int(deployment, "/status/collisionCount")),
    ] {
        if count != 0 {
            status[field] = json!(count);
        }
    }
    let mut conditions = conditions::all(deployment);
    let limits = Limits::of(deployment);
    let (value, reason, message) = match available >= limits.desired - limits.unavailable {
        true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    put(&mut conditions, "Available", value, reason, message, false, now);
    let failure = all.iter().find_map(|it| kube_kinds::condition(it, "ReplicaFailure"));
    match failure {
        Some(it) => {
            let (reason, message) = (kube_kinds::text(it, "/reason"), kube_kinds::text(it, "/message"));
            put(&mut conditions, "ReplicaFailure", "True", reason, message, false, now);
        }
        None => conditions.retain(|it| it["type"] != "ReplicaFailure"),
    }
    // No deadline: nobody is told of progress.
    if let Some(deadline) = deployment["spec"]["progressDeadlineSeconds"].as_i64()
        && !is_deleting(deployment)
    {
        let newest = newest.map(|it| name(it));
        progress(deployment, newest, &status, deadline, &mut conditions, now, plan);
    }
    status["conditions"] = Value::Array(conditions);
    status
}

/// A new revision has its set.
pub(super) fn began(status: &mut Value, set: &str, now: Timestamp) {
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let message = format!("Created new replica set {set:?}");
    put(&mut conditions, "Progressing", "True", "NewReplicaSetCreated", &message, true, now);
    status["conditions"] = Value::Array(conditions);
}

fn put(
    conditions: &mut Vec<Value>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    progressed: bool,
    now: Timestamp,
) {
    conditions::set_updated(conditions, Condition { kind, status, reason, message }, progressed, now);
}

const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const AVAILABLE: &str = "NewReplicaSetAvailable";

/// The condition that `kubectl rollout status` and the rollout engine wait for.
fn progress(
    deployment: &Value,
    set: Option<&str>,
    status: &Value,
    deadline: i64,
    conditions: &mut Vec<Value>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let current = conditions::of(conditions, "Progressing").cloned();
    let reason = current.as_ref().map_or("", |it| kube_kinds::text(it, "/reason"));
    if is_paused(deployment) {
        if reason != TIMED_OUT {
            let message = "Deployment is paused";
            put(conditions, "Progressing", "Unknown", "DeploymentPaused", message, false, now);
        }
        return;
    }
    if reason == "DeploymentPaused" {
        // The deadline counts anew from here.
        let message = "Deployment is resumed";
        put(conditions, "Progressing", "Unknown", "DeploymentResumed", message, false, now);
        plan.again_in(deadline);
        return;
    }
    let Some(set) = set else { return };
    if is_complete(deployment, status) {
        let message = format!("ReplicaSet {set:?} has successfully progressed.");
        put(conditions, "Progressing", "True", AVAILABLE, &message, false, now);
        return;
    }
    let before = &deployment["status"];
    let count = |status: &Value, field: &str| int(status, &format!("/{field}"));
    let grew = |field: &str| count(status, field) > count(before, field);
    let old = |status: &Value| count(status, "replicas") - count(status, "updatedReplicas");
    let progressed = grew("updatedReplicas")
        || grew("readyReplicas")
        || grew("availableReplicas")
        || old(status) < old(before)
        || before["observedGeneration"] != status["observedGeneration"];
    // A rollout that was complete stays so when pods come and go later: that is not its failure.
    if reason == AVAILABLE && old(status) == 0 {
        return;
    }
    if progressed || current.is_none() || reason == AVAILABLE {
        let message = format!("ReplicaSet {set:?} is progressing.");
        put(conditions, "Progressing", "True", "ReplicaSetUpdated", &message, true, now);
        plan.again_in(deadline);
        return;
    }
    if reason == TIMED_OUT {
        return;
    }
    let since = current.as_ref().and_then(|it| time::seconds_since(&it["lastUpdateTime"], now)).unwrap_or(0);
    if since < deadline {
        plan.again_in(deadline - since);
    } else {
        let message = format!("ReplicaSet {set:?} has timed out progressing.");
        put(conditions, "Progressing", "False", TIMED_OUT, &message, true, now);
    }
}
