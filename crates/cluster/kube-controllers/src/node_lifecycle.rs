//! Nodes that fall silent or have troubles: their conditions, their taints, and what becomes of the pods
//! on them.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::Propagation;
use kube_kinds::{int, is_deleting, list, name, namespace, parse_key, text, time, uid};
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::conditions::{self, Condition};
use crate::harness::{Controller, Touched, View};
use crate::{placement, pods};

/// Without a sign of life for this long a node is not known to be ready.
const SILENCE_SECONDS_MAX: i64 = 40;
/// Pods that say nothing of silent nodes stay this long: most silences are restarts.
const TOLERATION_SECONDS: i64 = 300;
/// A pod on a node that does not exist: the node may be about to register.
const LOST_SECONDS: i64 = 60;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

pub struct NodeLifecycle {
    /// Silence before our own start is ours.
    pub started: Timestamp,
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn concerns(&self, change: &Touched<'_>, _: &View<'_>) -> Vec<String> {
        let nodes = kind("", "Node");
        if change.is("core/nodes/") {
            return vec![change.key.to_string()];
        }
        if change.is("coordination.k8s.io/leases/kube-node-lease/") {
            return vec![nodes.key("", name(change.object))];
        }
        let bound = text(change.object, "/spec/nodeName");
        let is_news = change.previous.is_none_or(|it| it["spec"] != change.object["spec"]);
        match change.is("core/pods/") && !change.deleted && !bound.is_empty() && is_news {
            true => vec![nodes.key("", bound)],
            false => Vec::new(),
        }
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, _, name)) = parse_key(key) else { return Plan::default() };
        let node = view.objects.find(&kind("", "Node"), "", name);
        let lease = view.objects.find(&kind("coordination.k8s.io", "Lease"), "kube-node-lease", name);
        // Only for a node in trouble it matters who is on it.
        let calm = node.as_ref().is_some_and(|it| {
            list(it, "/spec/taints").iter().all(|it| it["effect"] != "NoExecute")
                && kube_kinds::condition_is_true(it, "Ready")
        });
        let mut plan = Plan::default();
        let silent_for = |node: &Value| silence(node, lease.as_deref(), self.started, now);
        let unknown = node.as_ref().is_some_and(|it| silent_for(it) >= Some(SILENCE_SECONDS_MAX));
        let pods = match calm && !unknown {
            true => Vec::new(),
            false => {
                let all = view.objects.list(&kind("", "Pod"), None, &LabelSelector::default());
                all.into_iter().filter(|it| text(it, "/spec/nodeName") == name).collect()
            }
        };
        match &node {
            None => lost(&mut plan, &pods, now),
            Some(node) => reconcile(&mut plan, node, silent_for(node), &pods, now),
        }
        plan
    }
}

/// Seconds since the node's last sign of life, or `None` when it never gave one that can be missed.
fn silence(node: &Value, lease: Option<&Value>, started: Timestamp, now: Timestamp) -> Option<i64> {
    let renewed = lease.and_then(|it| time::parse(&it["spec"]["renewTime"]));
    let ready = kube_kinds::condition(node, "Ready").and_then(|it| time::parse(&it["lastHeartbeatTime"]));
    // A node without a lease is one that somebody else answers for.
    let last = renewed.map(|it| ready.map_or(it, |ready| it.max(ready)))?;
    Some(now.as_second() - last.max(started).as_second())
}

/// Pods of a node that does not exist.
fn lost(plan: &mut Plan, pods: &[Arc<Value>], now: Timestamp) {
    for pod in pods {
        let age = time::seconds_since(&pod["metadata"]["creationTimestamp"], now).unwrap_or(LOST_SECONDS);
        if age < LOST_SECONDS {
            plan.again_in(LOST_SECONDS - age);
            continue;
        }
        plan.push(disruption(pod, "DeletionByPodGC", "PodGC: node no longer exists", now));
        plan.push(Action::Kill {
            namespace: namespace(pod).to_string(),
            pod: name(pod).to_string(),
            uid: uid(pod).to_string(),
        });
    }
}

fn disruption(pod: &Value, reason: &str, message: &str, now: Timestamp) -> Action {
    Action::PodCondition {
        namespace: namespace(pod).to_string(),
        pod: name(pod).to_string(),
        uid: uid(pod).to_string(),
        condition: json!({"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": time::format(now)}),
    }
}

fn reconcile(plan: &mut Plan, node: &Arc<Value>, silent: Option<i64>, pods: &[Arc<Value>], now: Timestamp) {
    let nodes = kind("", "Node");
    let mut status = node["status"].clone();
    let mut conditions = conditions::all(node);
    match silent {
        Some(seconds) if seconds >= SILENCE_SECONDS_MAX => {
            for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
                if kind != "Ready" && conditions::of(&conditions, kind).is_none() {
                    continue;
                }
                let message = "Kubelet stopped posting node status.";
                let new = Condition { kind, status: "Unknown", reason: "NodeStatusUnknown", message };
                let heartbeat = conditions::of(&conditions, kind).map(|it| it["lastHeartbeatTime"].clone());
                conditions::set(&mut conditions, new, now);
                if let Some(it) = conditions.iter_mut().find(|it| it["type"] == kind) {
                    it["lastHeartbeatTime"] = heartbeat.unwrap_or_default();
                }
            }
        }
        Some(seconds) => plan.again_in(SILENCE_SECONDS_MAX - seconds),
        None => {}
    }
    status["conditions"] = json!(conditions);
    if conditions != conditions::all(node) {
        plan.status(&nodes, node, status);
        for pod in pods.iter().filter(|it| pods::is_ready(it)) {
            plan.push(Action::PodCondition {
                namespace: namespace(pod).to_string(),
                pod: name(pod).to_string(),
                uid: uid(pod).to_string(),
                condition: json!({"type": "Ready", "status": "False", "reason": "NodeStatusUnknown",
                    "lastProbeTime": null, "lastTransitionTime": time::format(now)}),
            });
        }
    }
    let taints = taints(node, &conditions, now);
    if list(node, "/spec/taints") != taints {
        let revision = &node["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": revision}, "spec": {"taints": taints}});
        plan.change(&nodes, node, patch);
    }
    for pod in pods.iter().filter(|it| !is_deleting(it) && !pods::is_finished(it)) {
        evict(plan, pod, &taints, now);
    }
}

/// The taints that follow from the conditions; those that people set stay.
fn taints(node: &Value, conditions: &[Value], now: Timestamp) -> Vec<Value> {
    let is =
        |kind: &str, status: &str| conditions::of(conditions, kind).is_some_and(|it| it["status"] == status);
    let (unready, unknown) = (is("Ready", "False"), is("Ready", "Unknown"));
    let wanted = [
        (NOT_READY, "NoSchedule", unready),
        (NOT_READY, "NoExecute", unready),
        (UNREACHABLE, "NoSchedule", unknown),
        (UNREACHABLE, "NoExecute", unknown),
        ("node.kubernetes.io/memory-pressure", "NoSchedule", is("MemoryPressure", "True")),
        ("node.kubernetes.io/disk-pressure", "NoSchedule", is("DiskPressure", "True")),
        ("node.kubernetes.io/pid-pressure", "NoSchedule", is("PIDPressure", "True")),
        ("node.kubernetes.io/network-unavailable", "NoSchedule", is("NetworkUnavailable", "True")),
        ("node.kubernetes.io/unschedulable", "NoSchedule", node["spec"]["unschedulable"] == true),
    ];
    let same = |taint: &Value, key: &str, effect: &str| taint["key"] == key && taint["effect"] == effect;
    let mut taints: Vec<Value> = list(node, "/spec/taints")
        .iter()
        .filter(|taint| wanted.iter().find(|(key, effect, _)| same(taint, key, effect)).is_none_or(|it| it.2))
        .cloned()
        .collect();
    for taint in taints.iter_mut().filter(|it| it["effect"] == "NoExecute" && it["timeAdded"].is_null()) {
        taint["timeAdded"] = json!(time::format(now));
    }
    for (key, effect, _) in wanted.iter().filter(|it| it.2) {
        if !taints.iter().any(|it| same(it, key, effect)) {
            let mut taint = json!({"key": key, "effect": effect});
            if *effect == "NoExecute" {
                taint["timeAdded"] = json!(time::format(now));
            }
            taints.push(taint);
        }
    }
    taints
}

/// A pod stays on a tainted node for as long as it tolerates the worst of the taints.
fn evict(plan: &mut Plan, pod: &Value, taints: &[Value], now: Timestamp) {
    let mut left: Option<i64> = None;
    for taint in taints.iter().filter(|it| it["effect"] == "NoExecute") {
        let tolerating: Vec<&Value> =
            list(pod, "/spec/tolerations").iter().filter(|it| placement::tolerates(it, taint)).collect();
        let seconds = match tolerating.is_empty() {
            true if [NOT_READY, UNREACHABLE].contains(&text(taint, "/key")) => Some(TOLERATION_SECONDS),
            true => Some(0),
            false if tolerating.iter().any(|it| it["tolerationSeconds"].is_null()) => None,
            false => tolerating.iter().map(|it| int(it, "/tolerationSeconds").max(0)).min(),
        };
        let Some(seconds) = seconds else { continue };
        let since = time::seconds_since(&taint["timeAdded"], now).unwrap_or(0);
        let rest = (seconds - since).max(0);
        left = Some(left.map_or(rest, |it| it.min(rest)));
    }
    match left {
        Some(0) => {
            let message = "Taint manager: deleting due to NoExecute taint";
            plan.push(disruption(pod, "DeletionByTaintManager", message, now));
            plan.push(Action::Delete {
                kind: kind("", "Pod"),
                namespace: namespace(pod).to_string(),
                name: name(pod).to_string(),
                uid: uid(pod).to_string(),
                propagation: Propagation::Background,
            });
        }
        Some(seconds) => plan.again_in(seconds),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: Value) -> Arc<Value> {
        Arc::new(json!({"metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
    }

    fn pod(tolerations: Value) -> Arc<Value> {
        Arc::new(json!({"metadata": {"name": "p", "uid": "p", "namespace": "default"},
            "spec": {"nodeName": "n", "tolerations": tolerations}, "status": {"phase": "Running"}}))
    }

    fn deletes(node: &Arc<Value>, tolerations: Value) -> bool {
        let mut plan = Plan::default();
        let now = "2026-01-01T00:10:00Z".parse().expect("a time");
        reconcile(&mut plan, node, Some(0), &[pod(tolerations)], now);
        plan.actions.iter().any(|it| matches!(it, Action::Delete { .. }))
    }

    #[test]
    fn pods_leave_a_tainted_node_when_their_patience_ends() {
        let since = |at: &str| node("True", json!([{"key": "a", "effect": "NoExecute", "timeAdded": at}]));
        let (old, new) = (since("2026-01-01T00:00:00Z"), since("2026-01-01T00:09:59Z"));
        assert!(deletes(&new, json!([])));
        assert!(!deletes(&old, json!([{"key": "a", "operator": "Exists"}])));
        let patient = json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 60}]);
        assert!(deletes(&old, patient.clone()) && !deletes(&new, patient));
    }

    #[test]
    fn a_silent_node_is_tainted_and_its_pods_stay_a_while() {
        let mut plan = Plan::default();
        let now = "2026-01-01T00:10:00Z".parse().expect("a time");
        reconcile(&mut plan, &node("True", json!([])), Some(41), &[pod(json!([]))], now);
        let taints: Vec<String> = plan
            .actions
            .iter()
            .filter_map(|it| match it {
                Action::Change { patch, .. } => Some(patch["spec"]["taints"].to_string()),
                _ => None,
            })
            .collect();
        assert!(taints[0].contains(UNREACHABLE), "{taints:?}");
        assert!(!plan.actions.iter().any(|it| matches!(it, Action::Delete { .. })));
        assert_eq!(plan.again_after.map(|it| it.as_secs()), Some(300));
    }
}
