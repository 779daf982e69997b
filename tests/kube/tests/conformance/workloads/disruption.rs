use naru_kube_tests::{Case, Group::C, Scenario, scenario};
use serde_json::{Value, json};

use super::{condition, idle, int, name, wait_ready_pods};

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] DisruptionController Listing PodDisruptionBudgets for all namespaces should list and delete a collection of PodDisruptionBudgets [Conformance]",
            |case| {
                super::check_collection(case, "policy/v1", "poddisruptionbudgets", |_| {
                    budget(json!({"minAvailable": 1}))
                });
            },
        ),
        scenario(
            C,
            "[sig-apps] DisruptionController should block an eviction until the PDB is updated to allow it [Conformance]",
            |case| {
                replicas(case, 3);
                let pod = name(&wait_ready_pods(case, "app=web", 3)[0]).to_string();
                let path = create(case, json!({"minAvailable": 3}));
                case.wait_for("three healthy pods", &path, |it| int(it, "/status/currentHealthy") == 3);
                let eviction =
                    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
                let at = case.path("v1", &format!("pods/{pod}/eviction"));
                case.expect("POST", &at, &eviction, 429);
                assert!(case.find(&case.path("v1", &format!("pods/{pod}"))).is_some());
                case.merge(&path, &json!({"spec": {"minAvailable": 2}}));
                case.wait("the eviction to be allowed", || {
                    (case.ask("POST", &at, &eviction).code == 201).then_some(())
                });
                case.wait("the pod to go", || {
                    let pod = case.find(&case.path("v1", &format!("pods/{pod}")));
                    pod.is_none_or(|it| !it["metadata"]["deletionTimestamp"].is_null()).then_some(())
                });
            },
        ),
        scenario(
            C,
            "[sig-apps] DisruptionController should create a PodDisruptionBudget [Conformance]",
            |case| {
                let path = create(case, json!({"minAvailable": "1%"}));
                case.wait_for("it to be seen", &path, |it| {
                    it["status"]["observedGeneration"] == it["metadata"]["generation"]
                });
                case.wait("the update", || {
                    let mut budget = case.get(&path);
                    budget["spec"]["minAvailable"] = json!("2%");
                    (case.ask("PUT", &path, &budget).code == 200).then_some(())
                });
                let patched =
                    case.patch("strategic-merge-patch", &path, &json!({"spec": {"minAvailable": "3%"}}));
                assert_eq!(patched["spec"]["minAvailable"], "3%");
                case.delete(&path);
                case.wait_gone(&path);
            },
        ),
        scenario(
            C,
            "[sig-apps] DisruptionController should observe PodDisruptionBudget status updated [Conformance]",
            |case| {
                let path = create(case, json!({"minAvailable": 1}));
                replicas(case, 3);
                wait_ready_pods(case, "app=web", 3);
                let budget =
                    case.wait_for("two that may go", &path, |it| int(it, "/status/disruptionsAllowed") == 2);
                assert_eq!(
                    (int(&budget, "/status/currentHealthy"), int(&budget, "/status/expectedPods")),
                    (3, 3)
                );
                assert_eq!(condition(&budget, "DisruptionAllowed"), "True");
            },
        ),
        scenario(
            C,
            "[sig-apps] DisruptionController should update/patch PodDisruptionBudget status [Conformance]",
            |case| {
                let path = create(case, json!({"minAvailable": 1}));
                case.wait_for("it to be seen", &path, |it| {
                    it["status"]["observedGeneration"] == it["metadata"]["generation"]
                });
                let status = format!("{path}/status");
                case.wait("the status to be replaced", || {
                    let mut budget = case.get(&status);
                    budget["status"]["disruptedPods"] = json!({"pod": "2026-01-01T00:00:00Z"});
                    (case.ask("PUT", &status, &budget).code == 200).then_some(())
                });
                let patched = case
                    .merge(&status, &json!({"status": {"disruptedPods": {"other": "2026-01-01T00:00:00Z"}}}));
                assert_eq!(patched["status"]["disruptedPods"]["other"], "2026-01-01T00:00:00Z");
            },
        ),
    ]
}

fn budget(spec: Value) -> Value {
    let mut budget = json!({"metadata": {"name": "budget"}, "spec": spec});
    budget["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
    budget
}

fn create(case: &Case, spec: Value) -> String {
    case.create(&case.path("policy/v1", "poddisruptionbudgets"), &budget(spec));
    case.path("policy/v1", "poddisruptionbudgets/budget")
}

fn replicas(case: &Case, count: i64) {
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": count, "selector": {"matchLabels": {"app": "web"}},
        "template": idle(case, json!({"app": "web"}))}});
    case.create(&case.path("apps/v1", "replicasets"), &set);
}
