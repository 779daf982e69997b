use naru_kube_tests::{Case, Group::C, Scenario, scenario};
use serde_json::{Value, json};

use super::{
    check_collection, check_scale, check_status_endpoints, condition, idle, int, name, pods, template, text,
    wait_ready_pods,
};

pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        scenario(C, "[sig-apps] ReplicaSet Replace and Patch tests [Conformance]", |case| {
            let path = create_set(case, "rs", 1);
            wait_ready_pods(case, "app=rs", 1);
            case.wait("the replacement", || {
                let mut object = case.get(&path);
                object["spec"]["replicas"] = json!(2);
                (case.ask("PUT", &path, &object).code == 200).then_some(())
            });
            wait_ready_pods(case, "app=rs", 2);
            let patch = json!({"metadata": {"labels": {"test": "patched"}}, "spec": {"replicas": 3,
                "template": {"spec": {"terminationGracePeriodSeconds": 0}}}});
            let patched = case.patch("strategic-merge-patch", &path, &patch);
            assert_eq!(patched["metadata"]["labels"]["test"], "patched");
            wait_ready_pods(case, "app=rs", 3);
        }),
        scenario(
            C,
            "[sig-apps] ReplicaSet Replicaset should have a working scale subresource [Conformance]",
            |case| {
                let path = create_set(case, "rs", 1);
                check_scale(case, &path, "app=rs");
            },
        ),
        scenario(
            C,
            "[sig-apps] ReplicaSet should adopt matching pods on creation and release no longer matching pods [Conformance]",
            |case| {
                lone_pod(case, "lone", "rs");
                let path = create_set(case, "rs", 1);
                check_adoption(case, &path, "lone");
                check_release(case, &path, "lone");
            },
        ),
        scenario(
            C,
            "[sig-apps] ReplicaSet should list and delete a collection of ReplicaSets [Conformance]",
            |case| {
                check_collection(case, "apps/v1", "replicasets", |name| set(case, name, 1));
            },
        ),
        scenario(
            C,
            "[sig-apps] ReplicaSet should serve a basic image on each replica with a public image [Conformance]",
            |case| {
                let mut object = set(case, "rs", 2);
                object["spec"]["template"] = server(case, "rs");
                case.create(&case.path("apps/v1", "replicasets"), &object);
                check_servers(case, "rs");
            },
        ),
        scenario(
            C,
            "[sig-apps] ReplicaSet should validate Replicaset Status endpoints [Conformance]",
            |case| {
                let path = create_set(case, "rs", 1);
                wait_ready_pods(case, "app=rs", 1);
                check_status_endpoints(case, &path);
            },
        ),
    ];
    all.extend(controllers());
    all
}

fn controllers() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] ReplicationController should adopt matching pods on creation [Conformance]",
            |case| {
                lone_pod(case, "lone", "rc");
                let path = create_controller(case, "rc", 1);
                check_adoption(case, &path, "lone");
            },
        ),
        scenario(
            C,
            "[sig-apps] ReplicationController should get and update a ReplicationController scale [Conformance]",
            |case| {
                let path = create_controller(case, "rc", 1);
                check_scale(case, &path, "app=rc");
            },
        ),
        scenario(
            C,
            "[sig-apps] ReplicationController should release no longer matching pods [Conformance]",
            |case| {
                let path = create_controller(case, "rc", 1);
                let pod = name(&wait_ready_pods(case, "app=rc", 1)[0]).to_string();
                check_release(case, &path, &pod);
            },
        ),
        scenario(
            C,
            "[sig-apps] ReplicationController should serve a basic image on each replica with a public image [Conformance]",
            |case| {
                let mut object = controller(case, "rc", 2);
                object["spec"]["template"] = server(case, "rc");
                case.create(&case.path("v1", "replicationcontrollers"), &object);
                check_servers(case, "rc");
            },
        ),
        scenario(
            C,
            "[sig-apps] ReplicationController should test the lifecycle of a ReplicationController [Conformance]",
            |case| {
                let mut watch = case.watch(&case.path("v1", "replicationcontrollers"));
                let patience = std::time::Duration::from_secs(60);
                let path = create_controller(case, "rc", 1);
                assert_eq!(name(&watch.until("ADDED", patience)["object"]), "rc");
                wait_ready_pods(case, "app=rc", 1);
                let labels = json!({"metadata": {"labels": {"test": "patched"}}});
                assert_eq!(
                    case.patch("strategic-merge-patch", &path, &labels)["metadata"]["labels"]["test"],
                    "patched"
                );
                let status = format!("{path}/status");
                let patched =
                    case.patch("strategic-merge-patch", &status, &json!({"status": {"readyReplicas": 0}}));
                assert_eq!(int(&patched, "/status/readyReplicas"), 0);
                case.wait_for("the true figure", &status, |it| int(it, "/status/readyReplicas") == 1);
                case.merge(&format!("{path}/scale"), &json!({"spec": {"replicas": 2}}));
                wait_ready_pods(case, "app=rc", 2);
                case.wait_for("both to count", &status, |it| int(it, "/status/readyReplicas") == 2);
                let found = case.list("/api/v1/replicationcontrollers?labelSelector=test%3Dpatched");
                assert!(found.iter().any(|it| it["metadata"]["namespace"] == case.namespace.as_str()));
                let all = case.path("v1", "replicationcontrollers?labelSelector=test%3Dpatched");
                case.expect("DELETE", &all, &Value::Null, 200);
                assert_eq!(name(&watch.until("DELETED", patience)["object"]), "rc");
            },
        ),
    ]
}

fn set(case: &Case, app: &str, replicas: i64) -> Value {
    json!({"metadata": {"name": app}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": app}},
        "template": idle(case, json!({"app": app}))}})
}

fn create_set(case: &Case, app: &str, replicas: i64) -> String {
    case.create(&case.path("apps/v1", "replicasets"), &set(case, app, replicas));
    case.path("apps/v1", &format!("replicasets/{app}"))
}

fn controller(case: &Case, app: &str, replicas: i64) -> Value {
    json!({"metadata": {"name": app}, "spec": {"replicas": replicas, "selector": {"app": app},
        "template": idle(case, json!({"app": app}))}})
}

fn create_controller(case: &Case, app: &str, replicas: i64) -> String {
    case.create(&case.path("v1", "replicationcontrollers"), &controller(case, app, replicas));
    case.path("v1", &format!("replicationcontrollers/{app}"))
}

fn lone_pod(case: &Case, pod_name: &str, app: &str) {
    let mut pod = case.pod(pod_name, "exec sleep 100000");
    pod["metadata"]["labels"] = json!({"app": app});
    pod["spec"]["restartPolicy"] = json!("Always");
    case.create(&case.path("v1", "pods"), &pod);
    case.wait_running(pod_name);
}

/// The pod gets the owner, and no other one is made.
fn check_adoption(case: &Case, owner: &str, pod: &str) {
    let uid = text(&case.get(owner), "/metadata/uid").to_string();
    case.wait_for("the pod to be adopted", &case.path("v1", &format!("pods/{pod}")), |it| {
        let owner = &it["metadata"]["ownerReferences"][0];
        owner["uid"] == uid.as_str() && owner["controller"] == true
    });
    case.wait_for("it to be the only one", owner, |it| int(it, "/status/replicas") == 1);
    assert_eq!(case.list(&case.path("v1", "pods")).len(), 1);
}

/// A pod whose label does not match any more loses its owner and is replaced.
fn check_release(case: &Case, owner: &str, pod: &str) {
    let at = case.path("v1", &format!("pods/{pod}"));
    case.merge(&at, &json!({"metadata": {"labels": {"app": "not-matching"}}}));
    case.wait_for("the pod to be released", &at, |it| it["metadata"]["ownerReferences"].is_null());
    let app = name(&case.get(owner)).to_string();
    case.wait("a successor", || (pods(case, &format!("app={app}")).len() == 1).then_some(()));
}

/// Pods that serve their own name on port 8080.
fn server(case: &Case, app: &str) -> Value {
    let script = "mkdir -p /tmp/www && hostname > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
    let mut template = template(case, json!({"app": app}), script);
    template["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    template
}

fn check_servers(case: &Case, app: &str) {
    for pod in wait_ready_pods(case, &format!("app={app}"), 2) {
        let url = format!("http://{}:8080/", text(&pod, "/status/podIP"));
        let output = std::process::Command::new("curl").args(["-sf", "--max-time", "10", &url]).output();
        let output = output.expect("curl is installed");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), name(&pod));
        assert_eq!(condition(&pod, "Ready"), "True");
    }
}
