//! Scheduler: gives a pod the first node that is ready and fits its selector and taints.
//!
//! One machine has one node, so there is nothing to weigh yet; resources are the node's to refuse.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{condition_is_true, is_deleting, name, namespace, parse_key, text, time};
use kube_objects::EventType;
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::harness::{Controller, Touched, View};
use crate::{placement, pods};

pub struct Scheduler;

impl Controller for Scheduler {
    fn name(&self) -> &'static str {
        "default-scheduler"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        let pods = kind("", "Pod");
        if change.is("core/nodes/") {
            let waiting = view.objects.list(&pods, None, &LabelSelector::default());
            return waiting
                .iter()
                .filter(|it| waits(it))
                .map(|it| pods.key(namespace(it), name(it)))
                .collect();
        }
        match change.is("core/pods/") && !change.deleted && waits(change.object) {
            true => vec![change.key.to_string()],
            false => Vec::new(),
        }
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(pod) = view.objects.find(&kind("", "Pod"), place, name).filter(|it| waits(it)) else {
            return Plan::default();
        };
        let nodes = view.objects.list(&kind("", "Node"), None, &LabelSelector::default());
        reconcile(&pod, &nodes, now)
    }
}

fn waits(pod: &Value) -> bool {
    text(pod, "/spec/nodeName").is_empty()
        && text(pod, "/spec/schedulerName") == "default-scheduler"
        && pods::is_active(pod)
        && !is_deleting(pod)
}

pub fn reconcile(pod: &Arc<Value>, nodes: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let place = namespace(pod).to_string();
    let mut refusals: Vec<&str> = Vec::new();
    for node in nodes {
        match refusal(pod, node) {
            None => {
                let message = format!("Successfully assigned {place}/{} to {}", name(pod), name(node));
                plan.push(Action::Bind { namespace: place, pod: name(pod).into(), node: name(node).into() });
                plan.push(Action::Event {
                    about: pod.clone(),
                    event_type: EventType::Normal,
                    reason: "Scheduled",
                    message,
                });
                return plan;
            }
            Some(why) => refusals.push(why),
        }
    }
    let message = match nodes.len() {
        0 => "no nodes available to schedule pods".to_string(),
        count => {
            refusals.sort_unstable();
            let reasons: Vec<String> =
                refusals.chunk_by(|a, b| a == b).map(|same| format!("{} {}", same.len(), same[0])).collect();
            format!("0/{count} nodes are available: {}.", reasons.join(", "))
        }
    };
    let told = kube_kinds::condition(pod, "PodScheduled").is_some_and(|it| it["message"] == message.as_str());
    if told {
        return plan;
    }
    let mut status = pod["status"].clone();
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|it| it["type"] != "PodScheduled");
    conditions.push(
        json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastProbeTime": null, "lastTransitionTime": time::format(now)}),
    );
    status["conditions"] = Value::Array(conditions);
    plan.push(Action::Status { kind: kind("", "Pod"), namespace: place, name: name(pod).into(), status });
    plan.push(Action::Event {
        about: pod.clone(),
        event_type: EventType::Warning,
        reason: "FailedScheduling",
        message,
    });
    plan
}

/// Why the node cannot have the pod.
fn refusal(pod: &Value, node: &Value) -> Option<&'static str> {
    if is_deleting(node) || !condition_is_true(node, "Ready") {
        return Some("node(s) were not ready");
    }
    if node["spec"]["unschedulable"] == true {
        return Some("node(s) were unschedulable");
    }
    if !placement::selects(pod, node) {
        return Some("node(s) didn't match Pod's node affinity/selector");
    }
    let untolerated = placement::untolerated(pod, node, &["NoSchedule", "NoExecute"]);
    untolerated.map(|_| "node(s) had untolerated taint(s)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ready: &str) -> Arc<Value> {
        Arc::new(json!({"metadata": {"name": name, "labels": {"disk": "ssd"}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
    }

    #[track_caller]
    fn check(spec: Value, nodes: &[Arc<Value>], expected: &str) {
        let pod =
            Arc::new(json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec, "status": {}}));
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let plan = reconcile(&pod, nodes, now);
        let said = plan.actions.iter().find_map(|it| match it {
            Action::Event { message, .. } => Some(message.as_str()),
            _ => None,
        });
        assert_eq!(said, Some(expected));
    }

    #[test]
    fn a_pod_gets_a_ready_node_or_is_told_why_not() {
        check(json!({}), &[], "no nodes available to schedule pods");
        let nodes = [node("a", "False"), node("b", "True")];
        check(json!({}), &nodes, "Successfully assigned default/p to b");
        check(
            json!({"nodeSelector": {"disk": "tape"}}),
            &nodes,
            "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were not ready.",
        );
    }
}
