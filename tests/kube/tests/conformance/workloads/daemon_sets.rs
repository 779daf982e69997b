use naru_kube_tests::{Case, Group::C, Scenario, scenario};
use serde_json::{Value, json};

use super::{check_collection, check_status_endpoints, idle, int, name, pods, text, wait_ready_pods};

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] ControllerRevision [Serial] should manage the lifecycle of a ControllerRevision [Conformance]",
            |case| {
                let path = create(case, "ds", json!({}));
                wait_ready_pods(case, "app=ds", 1);
                let all = case.path("apps/v1", "controllerrevisions?labelSelector=app%3Dds");
                let first = case.list(&all).remove(0);
                let at = case.path("apps/v1", &format!("controllerrevisions/{}", name(&first)));
                let labels = json!({"metadata": {"labels": {"test": "patched"}}});
                assert_eq!(case.merge(&at, &labels)["metadata"]["labels"]["test"], "patched");
                let mut copy = first.clone();
                copy["metadata"] = json!({"name": "made-by-hand", "labels": first["metadata"]["labels"],
                    "ownerReferences": first["metadata"]["ownerReferences"]});
                copy["revision"] = json!(int(&first, "/revision") + 1);
                case.create(&case.path("apps/v1", "controllerrevisions"), &copy);
                case.delete(&at);
                case.wait_gone(&at);
                case.merge(
                    &path,
                    &json!({"spec": {"template": {"metadata": {"annotations": {"version": "2"}}}}}),
                );
                case.wait("the revision of the new template", || {
                    let versions: Vec<Value> = case
                        .list(&all)
                        .iter()
                        .map(|it| {
                            it["data"]["spec"]["template"]["metadata"]["annotations"]["version"].clone()
                        })
                        .collect();
                    versions.contains(&json!("2")).then_some(())
                });
                let collection = case.path("apps/v1", "controllerrevisions?labelSelector=app%3Dds");
                case.expect("DELETE", &collection, &Value::Null, 200);
            },
        ),
        scenario(
            C,
            "[sig-apps] Daemon set [Serial] should list and delete a collection of DaemonSets [Conformance]",
            |case| {
                check_collection(case, "apps/v1", "daemonsets", |name| object(case, name));
            },
        ),
        scenario(
            C,
            "[sig-apps] Daemon set [Serial] should retry creating failed daemon pods [Conformance]",
            |case| {
                create(case, "ds", json!({}));
                let pod = wait_ready_pods(case, "app=ds", 1).remove(0);
                let at = case.path("v1", &format!("pods/{}", name(&pod)));
                case.merge(&format!("{at}/status"), &json!({"status": {"phase": "Failed"}}));
                case.wait("a successor of the failed pod", || {
                    let pods = pods(case, "app=ds");
                    pods.iter().any(|it| name(it) != name(&pod) && super::is_ready(it)).then_some(())
                });
            },
        ),
        scenario(
            C,
            "[sig-apps] Daemon set [Serial] should rollback without unnecessary restarts [Conformance]",
            |case| {
                let path = create(case, "ds", json!({}));
                let first = wait_ready_pods(case, "app=ds", 1).remove(0);
                // A version that cannot start goes nowhere; back from it the pods that are right stay.
                let strategy =
                    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
                case.merge(&path, &json!({"spec": {"updateStrategy": strategy}}));
                let set_image = |image: &str| {
                    let containers = [json!({"name": "main", "image": image})];
                    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
                    case.patch("strategic-merge-patch", &path, &patch);
                };
                set_image("localhost:1/not/there:1");
                case.wait("the broken pod", || (pods(case, "app=ds").len() == 2).then_some(()));
                set_image(&case.cluster.image);
                case.wait("only the first pod to be left", || {
                    let left = pods(case, "app=ds");
                    (left.len() == 1 && name(&left[0]) == name(&first)).then_some(())
                });
                let kept = &wait_ready_pods(case, "app=ds", 1)[0];
                assert_eq!(kept["metadata"]["uid"], first["metadata"]["uid"]);
                assert_eq!(int(kept, "/status/containerStatuses/0/restartCount"), 0);
            },
        ),
        scenario(
            C,
            "[sig-apps] Daemon set [Serial] should run and stop complex daemon [Conformance]",
            |case| {
                let label = case.unique("color");
                let node = name(&case.list("/api/v1/nodes")[0]).to_string();
                let node = format!("/api/v1/nodes/{node}");
                let path = create(case, "ds", json!({"nodeSelector": {&label: "blue"}}));
                case.wait_for("nobody to be wanted", &path, |it| {
                    it["status"]["observedGeneration"] == it["metadata"]["generation"]
                        && int(it, "/status/desiredNumberScheduled") == 0
                });
                assert!(pods(case, "app=ds").is_empty());
                case.merge(&node, &json!({"metadata": {"labels": {&label: "blue"}}}));
                wait_ready_pods(case, "app=ds", 1);
                case.merge(&node, &json!({"metadata": {"labels": {&label: "green"}}}));
                case.wait("the pod to go", || pods(case, "app=ds").is_empty().then_some(()));
                case.merge(
                    &path,
                    &json!({"spec": {"template": {"spec": {"nodeSelector": {&label: "green"}}}}}),
                );
                wait_ready_pods(case, "app=ds", 1);
                case.merge(&node, &json!({"metadata": {"labels": {&label: null}}}));
            },
        ),
        scenario(
            C,
            "[sig-apps] Daemon set [Serial] should run and stop simple daemon [Conformance]",
            |case| {
                let path = create(case, "ds", json!({}));
                let pod = wait_ready_pods(case, "app=ds", 1).remove(0);
                case.delete(&case.path("v1", &format!("pods/{}", name(&pod))));
                case.wait("another one", || {
                    let pods = pods(case, "app=ds");
                    (pods.len() == 1 && name(&pods[0]) != name(&pod) && super::is_ready(&pods[0]))
                        .then_some(())
                });
                case.delete(&path);
                case.wait("its pods to go", || pods(case, "app=ds").is_empty().then_some(()));
            },
        ),
        scenario(
            C,
            "[sig-apps] Daemon set [Serial] should update pod when spec was updated and update strategy is RollingUpdate [Conformance]",
            |case| {
                let path = create(case, "ds", json!({}));
                let pod = wait_ready_pods(case, "app=ds", 1).remove(0);
                let hash = |it: &Value| text(it, "/metadata/labels/controller-revision-hash").to_string();
                case.merge(
                    &path,
                    &json!({"spec": {"template": {"metadata": {"annotations": {"version": "2"}}}}}),
                );
                case.wait_for("the update", &path, |it| {
                    int(it, "/status/updatedNumberScheduled") == 1
                        && int(it, "/status/numberAvailable") == 1
                        && it["status"]["observedGeneration"] == it["metadata"]["generation"]
                });
                let new = wait_ready_pods(case, "app=ds", 1).remove(0);
                assert_ne!(hash(&new), hash(&pod));
                assert_eq!(case.list(&case.path("apps/v1", "controllerrevisions")).len(), 2);
            },
        ),
        scenario(
            C,
            "[sig-apps] Daemon set [Serial] should verify changes to a daemon set status [Conformance]",
            |case| {
                let path = create(case, "ds", json!({}));
                wait_ready_pods(case, "app=ds", 1);
                check_status_endpoints(case, &path);
            },
        ),
    ]
}

fn object(case: &Case, app: &str) -> Value {
    json!({"metadata": {"name": app}, "spec": {"selector": {"matchLabels": {"app": app}},
        "template": idle(case, json!({"app": app}))}})
}

/// Creates a DaemonSet, with more in the specification of its pods, and returns its path.
fn create(case: &Case, app: &str, pod_spec: Value) -> String {
    let mut set = object(case, app);
    for (field, value) in pod_spec.as_object().into_iter().flatten() {
        set["spec"]["template"]["spec"][field] = value.clone();
    }
    case.create(&case.path("apps/v1", "daemonsets"), &set);
    case.path("apps/v1", &format!("daemonsets/{app}"))
}
