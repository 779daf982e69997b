use naru_kube_tests::{Case, Group::C, Scenario, scenario};
use serde_json::{Value, json};

use super::{check_scale, check_status_endpoints, condition, idle, int, name, pods, text, wait_ready_pods};

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] Deployment Deployment should have a working scale subresource [Conformance]",
            |case| {
                let path = create(case, "web", 1, json!({}));
                wait_available(case, &path, 1);
                check_scale(case, &path, "app=web");
                wait_available(case, &path, 3);
            },
        ),
        scenario(
            C,
            "[sig-apps] Deployment RecreateDeployment should delete old pods and create new ones [Conformance]",
            |case| {
                let path = create(case, "web", 2, json!({"strategy": {"type": "Recreate"}}));
                wait_available(case, &path, 2);
                let old: Vec<String> = pods(case, "app=web").iter().map(|it| name(it).to_string()).collect();
                // Whenever a new pod is there, no old one is.
                let mut watch = case.watch(&case.path("v1", "pods?labelSelector=app%3Dweb"));
                set_version(case, &path, "two");
                let mut present: Vec<String> = Vec::new();
                let mut made = 0;
                while made < 2 {
                    let event = watch.next(std::time::Duration::from_secs(60)).expect("an event");
                    let pod = name(&event["object"]).to_string();
                    match text(&event, "/type") {
                        "DELETED" => present.retain(|it| *it != pod),
                        "ADDED" => {
                            if !old.contains(&pod) {
                                made += 1;
                                assert!(
                                    !present.iter().any(|it| old.contains(it)),
                                    "{present:?} beside {pod}"
                                );
                            }
                            present.push(pod);
                        }
                        _ => {}
                    }
                }
                wait_complete(case, &path);
            },
        ),
        scenario(
            C,
            "[sig-apps] Deployment RollingUpdateDeployment should delete old pods and create new ones [Conformance]",
            |case| {
                // A ReplicaSet that was there before is taken in and rolled away.
                let labels = json!({"app": "web"});
                let set = json!({"metadata": {"name": "old", "labels": labels, "annotations":
                        {"deployment.kubernetes.io/revision": "3546343826724305832"}},
                    "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": idle(case, labels.clone())}});
                case.create(&case.path("apps/v1", "replicasets"), &set);
                wait_ready_pods(case, "app=web", 1);
                let path = create(case, "web", 1, json!({"template": versioned(case, "web", "two")}));
                wait_complete(case, &path);
                let object = case.get(&path);
                let revision = "3546343826724305833";
                assert_eq!(object["metadata"]["annotations"]["deployment.kubernetes.io/revision"], revision);
                let old = case.get(&case.path("apps/v1", "replicasets/old"));
                assert_eq!(old["metadata"]["ownerReferences"][0]["uid"], object["metadata"]["uid"]);
                assert_eq!((int(&old, "/spec/replicas"), sets(case).len()), (0, 2));
            },
        ),
        scenario(
            C,
            "[sig-apps] Deployment deployment should delete old replica sets [Conformance]",
            |case| {
                let path = create(case, "web", 1, json!({"revisionHistoryLimit": 0}));
                wait_available(case, &path, 1);
                set_version(case, &path, "two");
                wait_complete(case, &path);
                case.wait("the old set to go", || (sets(case).len() == 1).then_some(()));
            },
        ),
        scenario(
            C,
            "[sig-apps] Deployment deployment should support proportional scaling [Conformance]",
            |case| {
                let strategy =
                    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}});
                let path = create(case, "web", 10, json!({"strategy": strategy}));
                wait_available(case, &path, 10);
                // A version that never gets ready.
                let mut template = versioned(case, "web", "broken");
                template["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["false"]}});
                case.merge(&path, &json!({"spec": {"template": template}}));
                case.wait("8 old and 5 new pods", || (sizes(case) == [8, 5]).then_some(()));
                case.wait_for("8 available ones", &path, |it| int(it, "/status/availableReplicas") == 8);
                case.merge(&path, &json!({"spec": {"replicas": 30}}));
                case.wait("20 old and 13 new pods", || (sizes(case) == [20, 13]).then_some(()));
            },
        ),
        scenario(C, "[sig-apps] Deployment deployment should support rollover [Conformance]", |case| {
            let strategy =
                json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
            let path = create(case, "web", 1, json!({"strategy": strategy, "minReadySeconds": 1}));
            wait_available(case, &path, 1);
            // The second version is overtaken by the third before it gets anywhere.
            let mut template = versioned(case, "web", "two");
            template["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["false"]}});
            case.merge(&path, &json!({"spec": {"template": template}}));
            case.wait("the second set", || (sets(case).len() == 2).then_some(()));
            let probe = json!({"op": "remove", "path": "/spec/template/spec/containers/0/readinessProbe"});
            let version = json!({"op": "replace", "path": "/spec/template/metadata/annotations/version", "value": "three"});
            case.patch("json-patch", &path, &json!([probe, version]));
            wait_complete(case, &path);
            let left: Vec<i64> = sizes(case).into_iter().filter(|it| *it > 0).collect();
            assert_eq!((left, sets(case).len()), (vec![1], 3));
        }),
        scenario(C, "[sig-apps] Deployment should run the lifecycle of a Deployment [Conformance]", |case| {
            let mut watch = case.watch(&case.path("apps/v1", "deployments"));
            let path = create(case, "web", 1, json!({}));
            let patience = std::time::Duration::from_secs(60);
            assert_eq!(name(&watch.until("ADDED", patience)["object"]), "web");
            wait_available(case, &path, 1);
            let patch = json!({"metadata": {"labels": {"stage": "patched"}}, "spec": {"replicas": 2, "template":
                {"metadata": {"annotations": {"version": "two"}}}}});
            case.patch("strategic-merge-patch", &path, &patch);
            wait_complete(case, &path);
            let found = case.list("/apis/apps/v1/deployments?labelSelector=stage%3Dpatched");
            assert!(found.iter().any(|it| it["metadata"]["namespace"] == case.namespace.as_str()));
            case.wait("the replacement", || {
                let mut object = case.get(&path);
                object["metadata"]["labels"]["stage"] = json!("updated");
                object["spec"]["template"]["metadata"]["annotations"]["version"] = json!("three");
                let answer = case.ask("PUT", &path, &object);
                (answer.code == 200).then_some(())
            });
            wait_complete(case, &path);
            assert_eq!(case.get(&format!("{path}/status"))["status"]["readyReplicas"], 2);
            let all = case.path("apps/v1", "deployments?labelSelector=stage%3Dupdated");
            case.expect("DELETE", &all, &Value::Null, 200);
            assert_eq!(name(&watch.until("DELETED", patience)["object"]), "web");
            case.wait("its pods to go", || pods(case, "app=web").is_empty().then_some(()));
        }),
        scenario(
            C,
            "[sig-apps] Deployment should validate Deployment Status endpoints [Conformance]",
            |case| {
                let path = create(case, "web", 1, json!({}));
                wait_available(case, &path, 1);
                check_status_endpoints(case, &path);
            },
        ),
    ]
}

fn versioned(case: &Case, app: &str, version: &str) -> Value {
    let mut template = idle(case, json!({"app": app}));
    template["metadata"]["annotations"] = json!({"version": version});
    template
}

/// Creates a Deployment and returns its path.
fn create(case: &Case, app: &str, replicas: i64, more: Value) -> String {
    let mut spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": app}},
        "template": versioned(case, app, "one")});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    case.create(&case.path("apps/v1", "deployments"), &json!({"metadata": {"name": app}, "spec": spec}));
    case.path("apps/v1", &format!("deployments/{app}"))
}

fn set_version(case: &Case, path: &str, version: &str) {
    case.merge(path, &json!({"spec": {"template": {"metadata": {"annotations": {"version": version}}}}}));
}

fn wait_available(case: &Case, path: &str, replicas: i64) {
    case.wait_for("the deployment to be available", path, |it| {
        int(it, "/status/availableReplicas") == replicas && condition(it, "Available") == "True"
    });
}

/// As `kubectl rollout status` sees it.
fn wait_complete(case: &Case, path: &str) {
    case.wait_for("the rollout to be complete", path, |it| {
        let all = int(it, "/spec/replicas");
        int(it, "/status/observedGeneration") >= int(it, "/metadata/generation")
            && ["updatedReplicas", "replicas", "availableReplicas"]
                .iter()
                .all(|field| int(it, &format!("/status/{field}")) == all)
    });
}

/// The ReplicaSets of the namespace, oldest first.
fn sets(case: &Case) -> Vec<Value> {
    let mut sets = case.list(&case.path("apps/v1", "replicasets"));
    let revision = |it: &Value| {
        it["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
            .as_str()
            .and_then(|it| it.parse::<i64>().ok())
    };
    sets.sort_by_key(revision);
    sets
}

fn sizes(case: &Case) -> Vec<i64> {
    sets(case).iter().map(|it| int(it, "/spec/replicas")).collect()
}
