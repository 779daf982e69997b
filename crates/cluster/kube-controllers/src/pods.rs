//! Questions about pods that several controllers ask.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::{condition, controller_of, int, is_deleting, list, text, time, uid};
use serde_json::{Value, json};

use crate::action::controller_reference;

/// Not ended and not on its way out.
pub fn is_active(pod: &Value) -> bool {
    !is_deleting(pod) && !is_finished(pod)
}

pub fn is_finished(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"))
}

pub fn is_ready(pod: &Value) -> bool {
    kube_kinds::condition_is_true(pod, "Ready")
}

/// Whether the pod has been ready long enough; if not, the seconds that are missing.
pub fn availability(pod: &Value, min_ready_seconds: i64, now: Timestamp) -> Result<(), Option<i64>> {
    if !is_ready(pod) {
        return Err(None);
    }
    if min_ready_seconds == 0 {
        return Ok(());
    }
    let since = condition(pod, "Ready").and_then(|it| time::seconds_since(&it["lastTransitionTime"], now));
    match since {
        Some(seconds) if seconds >= min_ready_seconds => Ok(()),
        Some(seconds) => Err(Some(min_ready_seconds - seconds)),
        None => Err(None),
    }
}

pub fn is_controlled_by(object: &Value, owner: &Value) -> bool {
    controller_of(object).is_some_and(|it| it["uid"] == uid(owner))
}

/// A pod made from the template of its owner.
pub fn from_template(owner: &Value, template: &Value) -> Value {
    let metadata = &template["metadata"];
    let mut pod = json!({
        "metadata": {
            "generateName": format!("{}-", kube_kinds::name(owner)),
            "ownerReferences": [controller_reference(owner)],
        },
        "spec": template["spec"],
    });
    for field in ["labels", "annotations", "finalizers"] {
        if !metadata[field].is_null() {
            pod["metadata"][field] = metadata[field].clone();
        }
    }
    pod
}

pub fn restarts(pod: &Value) -> i64 {
    ["/status/initContainerStatuses", "/status/containerStatuses"]
        .iter()
        .flat_map(|field| list(pod, field))
        .map(|it| int(it, "/restartCount"))
        .sum()
}

/// The pods in the order in which one would give them up: those that do nothing yet first, then
/// the not ready, then the youngest.
pub fn sort_for_deletion(pods: &mut [Arc<Value>]) {
    pods.sort_by_cached_key(|pod| {
        let phase = match text(pod, "/status/phase") {
            "Pending" => 0,
            "Running" => 2,
            _ => 1,
        };
        let cost: i64 = pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]
            .as_str()
            .and_then(|it| it.parse().ok())
            .unwrap_or(0);
        let ready_since = condition(pod, "Ready")
            .filter(|it| it["status"] == "True")
            .and_then(|it| time::parse(&it["lastTransitionTime"]))
            .map_or(0, Timestamp::as_second);
        let created = time::parse(&pod["metadata"]["creationTimestamp"]).map_or(0, Timestamp::as_second);
        (
            !text(pod, "/spec/nodeName").is_empty(),
            phase,
            is_ready(pod),
            cost,
            std::cmp::Reverse(ready_since),
            std::cmp::Reverse(restarts(pod)),
            std::cmp::Reverse(created),
        )
    });
}
