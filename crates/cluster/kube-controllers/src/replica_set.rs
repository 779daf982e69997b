//! ReplicaSet: as many pods as asked for, at any moment.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::Propagation;
use kube_kinds::{controller_of, int, is_deleting, name, namespace, parse_key, text, uid};
use kube_objects::EventType;
use serde_json::{Value, json};

use crate::action::{Action, Plan, controller_reference, kind};
use crate::harness::{Controller, Touched, View};
use crate::pods;

/// Pods made or removed in one step; the rest follows in the next.
const BURST_MAX: usize = 100;

pub struct ReplicaSets;

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        if change.is("apps/replicasets/") {
            return vec![change.key.to_string()];
        }
        if !change.is("core/pods/") {
            return Vec::new();
        }
        let sets = kind("apps", "ReplicaSet");
        let mut keys: Vec<String> = [Some(change.object), change.previous]
            .into_iter()
            .flatten()
            .filter_map(|pod| controller_of(pod).map(|it| (pod, it)))
            .filter(|(_, owner)| owner["kind"] == "ReplicaSet")
            .map(|(pod, owner)| sets.key(namespace(pod), text(owner, "/name")))
            .collect();
        if controller_of(change.object).is_none() && !change.deleted {
            // Somebody may want to adopt it.
            let place = namespace(change.object);
            for set in view.objects.list(&sets, Some(place), &LabelSelector::default()) {
                if selects(&set, change.object) {
                    keys.push(sets.key(place, name(&set)));
                }
            }
        }
        keys
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(set) = view.objects.find(&kind("apps", "ReplicaSet"), place, name) else {
            return Plan::default();
        };
        let pods = view.objects.list(&kind("", "Pod"), Some(place), &LabelSelector::default());
        reconcile(&set, &pods, now)
    }
}

fn selects(set: &Value, pod: &Value) -> bool {
    LabelSelector::from_object(&set["spec"]["selector"]).is_some_and(|it| !it.is_empty() && it.matches(pod))
}

/// Brings the number of pods to the number asked for. `pods` are all of the namespace.
pub fn reconcile(set: &Arc<Value>, pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let place = namespace(set).to_string();
    let pod_kind = kind("", "Pod");
    let mut active: Vec<Arc<Value>> = Vec::new();
    for pod in pods.iter().filter(|it| pods::is_active(it)) {
        let change = |references: Vec<Value>| Action::Change {
            kind: pod_kind.clone(),
            namespace: place.clone(),
            name: name(pod).to_string(),
            patch: json!({"metadata": {"uid": uid(pod), "ownerReferences": references}}),
        };
        let references = || pod["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        match controller_of(pod) {
            Some(owner) if owner["uid"] == uid(set) => {
                if selects(set, pod) || is_deleting(set) {
                    active.push(pod.clone());
                } else {
                    let others = references().into_iter().filter(|it| it["uid"] != uid(set)).collect();
                    plan.push(change(others));
                }
            }
            Some(_) => {}
            None if selects(set, pod) && !is_deleting(set) => {
                let mut all = references();
                all.push(controller_reference(set));
                plan.push(change(all));
                active.push(pod.clone());
            }
            None => {}
        }
    }

    let wanted = usize::try_from(int(set, "/spec/replicas")).unwrap_or(0);
    if !is_deleting(set) && active.len() < wanted {
        let missing = wanted - active.len();
        for _ in 0..missing.min(BURST_MAX) {
            plan.push(Action::Create {
                kind: pod_kind.clone(),
                namespace: place.clone(),
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
        for pod in candidates.iter().take((active.len() - wanted).min(BURST_MAX)) {
            plan.push(Action::Delete {
                kind: pod_kind.clone(),
                namespace: place.clone(),
                name: name(pod).to_string(),
                uid: uid(pod).to_string(),
                propagation: Propagation::Background,
            });
            plan.push(Action::Event {
                about: set.clone(),
                event_type: EventType::Normal,
                reason: "SuccessfulDelete",
                message: format!("Deleted pod: {}", name(pod)),
            });
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
    let status = json!({
        "replicas": active.len(),
        "fullyLabeledReplicas": active.iter().filter(|it| template.matches(it)).count(),
        "readyReplicas": active.iter().filter(|it| pods::is_ready(it)).count(),
        "availableReplicas": available,
        "observedGeneration": set["metadata"]["generation"],
    });
    if set["status"] != status {
        plan.push(Action::Status {
            kind: kind("apps", "ReplicaSet"),
            namespace: place,
            name: name(set).to_string(),
            status,
        });
    }
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
                    Some(format!("{}/{}", status["readyReplicas"], status["replicas"]))
                }
                _ => None,
            })
            .collect()
    }

    #[test]
    fn missing_pods_are_made_and_ended_ones_do_not_count() {
        let pods = [pod("a", Some("set"), "Running", true), pod("b", Some("set"), "Failed", false)];
        assert_eq!(words(&reconcile(&set(3), &pods, now())), ["create", "create", "1/1"]);
    }

    #[test]
    fn of_too_many_pods_the_least_useful_go() {
        let pods = [
            pod("a", Some("set"), "Running", true),
            pod("b", Some("set"), "Running", false),
            pod("c", Some("set"), "Pending", false),
        ];
        assert_eq!(words(&reconcile(&set(1), &pods, now())), ["delete c", "delete b", "1/3"]);
    }

    #[test]
    fn pods_are_adopted_and_released_by_their_labels() {
        let mut strange = (*pod("s", Some("set"), "Running", true)).clone();
        strange["metadata"]["labels"]["app"] = json!("other");
        let pods =
            [pod("a", None, "Running", true), Arc::new(strange), pod("x", Some("other"), "Running", true)];
        assert_eq!(words(&reconcile(&set(1), &pods, now())), ["adopt a", "release s", "1/1"]);
    }

    #[test]
    fn a_pod_is_available_after_its_time_of_probation() {
        let mut slow = (*set(1)).clone();
        slow["spec"]["minReadySeconds"] = json!(10);
        let plan = reconcile(&Arc::new(slow), &[pod("a", Some("set"), "Running", true)], now());
        assert!(plan.again_after.is_some());
        let Some(Action::Status { status, .. }) = plan.actions.last() else { panic!("a status") };
        assert_eq!((&status["readyReplicas"], &status["availableReplicas"]), (&json!(1), &json!(0)));
    }
}
