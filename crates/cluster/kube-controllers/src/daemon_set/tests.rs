//! DaemonSets over a few nodes.

use super::*;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

fn node(name: &str, taints: Value) -> Arc<Value> {
    Arc::new(json!({"metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": {"taints": taints}}))
}

fn set(spec: Value) -> Arc<Value> {
    let base = json!({"selector": {"matchLabels": {"app": "d"}}, "updateStrategy": {"type": "RollingUpdate"},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}});
    Arc::new(json!({"apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "d", "namespace": "default", "uid": "set"},
        "spec": kube_patch::merge(&base, &spec), "status": {}}))
}

/// The revision that a set's first round makes.
fn revision(set: &Arc<Value>) -> Arc<Value> {
    let plan = reconcile(set, &[], &[], &[], now());
    let made = plan.actions.into_iter().find_map(|it| match it {
        Action::Create { kind, mut object, .. } if kind.kind == "ControllerRevision" => {
            object["metadata"]["uid"] = json!("r");
            Some(Arc::new(object))
        }
        _ => None,
    });
    made.expect("a revision")
}

fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Value> {
    Arc::new(json!({"metadata": {"name": name, "uid": name, "namespace": "default",
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "d", HASH: hash},
            "ownerReferences": [{"uid": "set", "controller": true, "kind": "DaemonSet", "name": "d"}]},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": [{"type": "Ready",
            "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
}

fn words(plan: &Plan) -> Vec<String> {
    let words = plan.actions.iter().filter_map(|it| match it {
        Action::Create { kind, object, .. } if kind.kind == "Pod" => {
            Some(format!("create on {}", node_of(object)))
        }
        Action::Delete { kind, name, .. } if kind.kind == "Pod" => Some(format!("delete {name}")),
        _ => None,
    });
    words.collect()
}

#[test]
fn every_node_that_may_have_one_gets_a_pod() {
    let bad = json!([{"key": "gpu", "effect": "NoSchedule"}]);
    let nodes = [
        node("a", json!([])),
        node("b", bad),
        node("c", json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}])),
    ];
    let set = set(json!({}));
    let revisions = [revision(&set)];
    let plan = reconcile(&set, &[], &nodes, &revisions, now());
    assert_eq!(words(&plan), ["create on a", "create on c"]);
    let hash = history::hash_of(&revisions[0]);
    let on_b = [pod("x", "b", hash, true), pod("y", "gone", hash, true), pod("z", "a", hash, true)];
    let plan = reconcile(&set, &on_b, &nodes, &revisions, now());
    assert_eq!(words(&plan), ["create on c", "delete y"], "what is there may stay on b");
}

#[test]
fn an_update_replaces_as_many_as_may_be_missing() {
    let nodes = ["a", "b", "c"].map(|it| node(it, json!([])));
    let set = set(json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}}}));
    let revisions = [revision(&set)];
    let hash = history::hash_of(&revisions[0]);
    let pods = [pod("x", "a", "old", true), pod("y", "b", "old", true), pod("z", "c", hash, true)];
    assert_eq!(words(&reconcile(&set, &pods, &nodes, &revisions, now())), ["delete x"]);
    let pods = [pod("x", "a", "old", true), pod("y", "b", "old", true), pod("z", "c", hash, false)];
    assert_eq!(words(&reconcile(&set, &pods, &nodes, &revisions, now())), [""; 0], "z is not there yet");
    let pods = [pod("x", "a", "old", true), pod("y", "b", "old", false), pod("z", "c", hash, false)];
    assert_eq!(words(&reconcile(&set, &pods, &nodes, &revisions, now())), ["delete y"]);
}

#[test]
fn with_a_surge_the_new_pod_comes_before_the_old_one_goes() {
    let nodes = ["a", "b"].map(|it| node(it, json!([])));
    let set = set(json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}));
    let revisions = [revision(&set)];
    let hash = history::hash_of(&revisions[0]);
    let mut pods = vec![pod("x", "a", "old", true), pod("y", "b", "old", true)];
    assert_eq!(words(&reconcile(&set, &pods, &nodes, &revisions, now())), ["create on a"]);
    pods.push(pod("n", "a", hash, false));
    assert_eq!(words(&reconcile(&set, &pods, &nodes, &revisions, now())), [""; 0]);
    pods[2] = pod("n", "a", hash, true);
    assert_eq!(words(&reconcile(&set, &pods, &nodes, &revisions, now())), ["delete x", "create on b"]);
}
