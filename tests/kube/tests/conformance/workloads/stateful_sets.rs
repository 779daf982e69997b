use naru_kube_tests::{Case, Group::C, Scenario, scenario};
use serde_json::{Value, json};

use super::{
    check_collection, check_scale, check_status_endpoints, idle, int, is_ready, name, pods, ready_by_file,
    wait_ready_pods,
};

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Burst scaling should run to completion even with unhealthy pods [Slow] [Conformance]",
            |case| {
                let path = create(
                    case,
                    1,
                    json!({"podManagementPolicy": "Parallel",
                    "template": ready_by_file(case, json!({"app": "ss"}), "touch /ready; exec sleep 100000")}),
                );
                wait_ready_pods(case, "app=ss", 1);
                case.exec("ss-0", &["rm", "/ready"]);
                wait_unready(case, "ss-0");
                case.merge(&path, &json!({"spec": {"replicas": 3}}));
                case.wait("three pods though one is not ready", || {
                    let pods = pods(case, "app=ss");
                    (pods.len() == 3 && pods[1..].iter().all(is_ready) && !is_ready(&pods[0])).then_some(())
                });
                case.exec("ss-1", &["rm", "/ready"]);
                wait_unready(case, "ss-1");
                case.merge(&path, &json!({"spec": {"replicas": 0}}));
                case.wait("all to go", || pods(case, "app=ss").is_empty().then_some(()));
                case.wait_for("the status", &path, |it| int(it, "/status/replicas") == 0);
            },
        ),
        scenario(
            C,
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] Scaling should happen in predictable order and halt if any stateful pod is unhealthy [Slow] [Conformance]",
            |case| {
                let path = create(
                    case,
                    1,
                    json!({
                    "template": ready_by_file(case, json!({"app": "ss"}), "touch /ready; exec sleep 100000")}),
                );
                wait_ready_pods(case, "app=ss", 1);
                case.exec("ss-0", &["rm", "/ready"]);
                wait_unready(case, "ss-0");
                let mut watch = case.watch(&case.path("v1", "pods?labelSelector=app%3Dss"));
                case.merge(&path, &json!({"spec": {"replicas": 3}}));
                // The controller has seen it and stands still.
                case.wait_for("the new size to be seen", &path, |it| {
                    it["status"]["observedGeneration"] == it["metadata"]["generation"]
                });
                assert_eq!(pods(case, "app=ss").len(), 1);
                case.exec("ss-0", &["touch", "/ready"]);
                wait_ready_pods(case, "app=ss", 3);
                assert_eq!(order(&mut watch, "ADDED", 3), ["ss-0", "ss-1", "ss-2"]);
                case.exec("ss-0", &["rm", "/ready"]);
                wait_unready(case, "ss-0");
                case.merge(&path, &json!({"spec": {"replicas": 0}}));
                case.wait_for("the new size to be seen", &path, |it| {
                    it["status"]["observedGeneration"] == it["metadata"]["generation"]
                });
                assert_eq!(pods(case, "app=ss").len(), 3);
                case.exec("ss-0", &["touch", "/ready"]);
                case.wait("all to go", || pods(case, "app=ss").is_empty().then_some(()));
                assert_eq!(order(&mut watch, "DELETED", 3), ["ss-2", "ss-1", "ss-0"]);
            },
        ),
        scenario(
            C,
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should have a working scale subresource [Conformance]",
            |case| {
                let path = create(case, 1, json!({}));
                wait_ready_pods(case, "app=ss", 1);
                check_scale(case, &path, "app=ss");
            },
        ),
        scenario(
            C,
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should list, patch and delete a collection of StatefulSets [Conformance]",
            |case| {
                let path = create(case, 1, json!({}));
                wait_ready_pods(case, "app=ss", 1);
                let patch = json!({"spec": {"replicas": 2, "template": {"metadata": {"annotations": {"version": "2"}}}}});
                case.patch("strategic-merge-patch", &path, &patch);
                wait_ready_pods(case, "app=ss", 2);
                check_collection(case, "apps/v1", "statefulsets", |name| {
                    let mut set = object(case, 0);
                    set["metadata"]["name"] = json!(name);
                    set
                });
            },
        ),
        scenario(
            C,
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should validate Statefulset Status endpoints [Conformance]",
            |case| {
                let path = create(case, 1, json!({}));
                wait_ready_pods(case, "app=ss", 1);
                check_status_endpoints(case, &path);
            },
        ),
    ]
}

pub(super) fn object(case: &Case, replicas: i64) -> Value {
    json!({"metadata": {"name": "ss"}, "spec": {"replicas": replicas, "serviceName": "ss",
        "selector": {"matchLabels": {"app": "ss"}}, "template": idle(case, json!({"app": "ss"}))}})
}

/// Creates the StatefulSet `ss` and returns its path.
pub(super) fn create(case: &Case, replicas: i64, more: Value) -> String {
    let mut set = object(case, replicas);
    for (field, value) in more.as_object().into_iter().flatten() {
        set["spec"][field] = value.clone();
    }
    case.create(&case.path("apps/v1", "statefulsets"), &set);
    case.path("apps/v1", "statefulsets/ss")
}

fn wait_unready(case: &Case, pod: &str) {
    case.wait_for("the pod to be unready", &case.path("v1", &format!("pods/{pod}")), |it| !is_ready(it));
}

/// Names of pods in the order of their events.
fn order(watch: &mut naru_kube_tests::Watch<'_>, event: &str, count: usize) -> Vec<String> {
    let patience = std::time::Duration::from_secs(60);
    (0..count).map(|_| name(&watch.until(event, patience)["object"]).to_string()).collect()
}
