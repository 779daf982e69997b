//! ReplicaSet and its elder ReplicationController: as many pods as asked for, at any moment.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{Kind, int, is_deleting, name, namespace, parse_key};
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::conditions;
use crate::harness::{Controller, Touched, View};
use crate::{adoption, pods};

/// Pods made or removed in one step; the rest follows in the next.
const BURST_MAX: usize = 500;

pub struct ReplicaSets;
pub struct ReplicationControllers;

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        concerns("apps/replicasets/", || kind("apps", "ReplicaSet"), change, view)
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        plan(&kind("apps", "ReplicaSet"), key, view, now)
    }
}

impl Controller for ReplicationControllers {
    fn name(&self) -> &'static str {
        "replication-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        concerns("core/replicationcontrollers/", || kind("", "ReplicationController"), change, view)
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        plan(&kind("", "ReplicationController"), key, view, now)
    }
}

fn concerns(
    own: &str,
    kind: impl FnOnce() -> Arc<Kind>,
    change: &Touched<'_>,
    view: &View<'_>,
) -> Vec<String> {
    if change.is(own) {
        return vec![change.key.to_string()];
    }
    match change.is("core/pods/") {
        true => adoption::owners_touched(view, &kind(), change),
        false => Vec::new(),
    }
}

fn plan(kind: &Arc<Kind>, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
    let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
    let Some(set) = view.objects.find(kind, place, name) else { return Plan::default() };
    let pods = view.objects.list(&crate::action::kind("", "Pod"), Some(place), &LabelSelector::default());
    reconcile(kind, &set, &pods, now)
}

/// ReplicationControllers select by a plain map.
fn selector_of(set: &Value) -> LabelSelector {
    match set["kind"] == "ReplicationController" {
        true => LabelSelector::from_map(&set["spec"]["selector"]),
        false => adoption::selector_of(set),
    }
}

/// Brings the number of pods to the number asked for. `pods` are all of the namespace.
pub fn reconcile(kind: &Arc<Kind>, set: &Arc<Value>, pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let pod_kind = crate::action::kind("", "Pod");
    let present: Vec<Arc<Value>> = pods.iter().filter(|it| !pods::is_finished(it)).cloned().collect();
    let mine = adoption::claim(&mut plan, set, &selector_of(set), &pod_kind, &present);
    let (active, terminating): (Vec<Arc<Value>>, Vec<Arc<Value>>) =
        mine.into_iter().partition(|it| pods::is_active(it));

    let wanted = usize::try_from(int(set, "/spec/replicas")).unwrap_or(0);
    if !is_deleting(set) && active.len() < wanted {
        let missing = wanted - active.len();
        for _ in 0..missing.min(BURST_MAX) {
            plan.push(Action::Create {
                kind: pod_kind.clone(),
                namespace: namespace(set).to_string(),
                object: pods::from_template(set, &set["spec"]["template"]),
                tell: Some((set.clone(), "SuccessfulCreate", "Created pod: ")),
            });
        }
        if missing > BURST_MAX {
            plan.again_in(0);
        }
    } else if !is_deleting(set) && active.len() > wanted {
        let mut candidates = active.clone();
        pods::sort_for_deletion(&mut candidates);
        candidates.truncate((active.len() - wanted).min(BURST_MAX));
        candidates.iter().for_each(|pod| plan.delete(&pod_kind, pod));
        for pod in &candidates {
            plan.normal(set, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
        }
    }

    let min_ready = int(set, "/spec/minReadySeconds");
    let mut available = 0;
    for pod in &active {
        match pods::availability(pod, min_ready, now) {
            Ok(()) => available += 1,
            Err(Some(seconds)) => plan.again_in(seconds),
            Err(None) => {}
        }
    }
    let template = LabelSelector::from_map(&set["spec"]["template"]["metadata"]["labels"]);
    let mut status = json!({"replicas": active.len(), "observedGeneration": set["metadata"]["generation"]});
    for (field, count) in [
        ("fullyLabeledReplicas", active.iter().filter(|it| template.matches(it)).count()),
        ("readyReplicas", active.iter().filter(|it| pods::is_ready(it)).count()),
        ("availableReplicas", available),
        ("terminatingReplicas", terminating.len()),
    ] {
        if count > 0 {
            status[field] = json!(count);
        }
    }
    let mut conditions = conditions::all(set);
    if active.len() >= wanted {
        conditions.retain(|it| it["type"] != "ReplicaFailure");
    }
    if !conditions.is_empty() {
        status["conditions"] = Value::Array(conditions);
    }
    plan.status(kind, set, status);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    fn set(replicas: i64) -> Arc<Value> {
        Arc::new(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "set", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}}}))
    }

    fn pod(name: &str, owner: Option<&str>, phase: &str, ready: bool) -> Arc<Value> {
        let mut pod = json!({"metadata": {"name": name, "uid": name, "namespace": "default", "labels": {"app": "web"}},
            "spec": {"nodeName": "n"}, "status": {"phase": phase, "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:59:55Z"}]}});
        if let Some(owner) = owner {
            pod["metadata"]["ownerReferences"] =
                json!([{"uid": owner, "controller": true, "kind": "ReplicaSet", "name": "web"}]);
        }
        Arc::new(pod)
    }

    /// The actions in one word each.
    fn words(plan: &Plan) -> Vec<String> {
        plan.actions
            .iter()
            .filter_map(|it| match it {
                Action::Create { .. } => Some("create".to_string()),
                Action::Delete { name, .. } => Some(format!("delete {name}")),
                Action::Change { name, patch, .. } => {
                    let owners = patch["metadata"]["ownerReferences"].as_array().map_or(0, Vec::len);
                    Some(format!("{} {name}", if owners > 0 { "adopt" } else { "release" }))
                }
                Action::Status { status, .. } => {
                    Some(format!("{}/{}", int(status, "/readyReplicas"), int(status, "/replicas")))
                }
                _ => None,
            })
            .collect()
    }

    #[test]
    fn missing_pods_are_made_and_ended_ones_do_not_count() {
        let pods = [pod("a", Some("set"), "Running", true), pod("b", Some("set"), "Failed", false)];
        assert_eq!(
            words(&reconcile(&kind("apps", "ReplicaSet"), &set(3), &pods, now())),
            ["create", "create", "1/1"]
        );
    }

    #[test]
    fn of_too_many_pods_the_least_useful_go() {
        let pods = [
            pod("a", Some("set"), "Running", true),
            pod("b", Some("set"), "Running", false),
            pod("c", Some("set"), "Pending", false),
        ];
        assert_eq!(
            words(&reconcile(&kind("apps", "ReplicaSet"), &set(1), &pods, now())),
            ["delete c", "delete b", "1/3"]
        );
    }

    #[test]
    fn pods_are_adopted_and_released_by_their_labels() {
        let mut strange = (*pod("s", Some("set"), "Running", true)).clone();
        strange["metadata"]["labels"]["app"] = json!("other");
        let pods =
            [pod("a", None, "Running", true), Arc::new(strange), pod("x", Some("other"), "Running", true)];
        assert_eq!(
            words(&reconcile(&kind("apps", "ReplicaSet"), &set(1), &pods, now())),
            ["adopt a", "release s", "1/1"]
        );
    }

    #[test]
    fn a_pod_is_available_after_its_time_of_probation() {
        let mut slow = (*set(1)).clone();
        slow["spec"]["minReadySeconds"] = json!(10);
        let plan = reconcile(
            &kind("apps", "ReplicaSet"),
            &Arc::new(slow),
            &[pod("a", Some("set"), "Running", true)],
            now(),
        );
        assert!(plan.again_after.is_some());
        let Some(Action::Status { status, .. }) = plan.actions.last() else { panic!("a status") };
        assert_eq!((int(status, "/readyReplicas"), int(status, "/availableReplicas")), (1, 0));
    }
}
