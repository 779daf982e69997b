//! Group C: controllers make workloads true.

mod cron_jobs;
mod daemon_sets;
mod deployments;
mod disruption;
mod indexed_jobs;
mod jobs;
mod replicas;
mod stateful_sets;
mod stateful_updates;

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

pub fn all() -> Vec<Scenario> {
    [
        deployments::all(),
        replicas::all(),
        stateful_sets::all(),
        stateful_updates::all(),
        daemon_sets::all(),
        jobs::all(),
        indexed_jobs::all(),
        cron_jobs::all(),
        disruption::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A template of pods that do nothing until they are stopped, and stop at once.
fn idle(case: &Case, labels: Value) -> Value {
    template(case, labels, "exec sleep 100000")
}

fn template(case: &Case, labels: Value, script: &str) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "main", "image": case.cluster.image, "command": ["sh", "-c", script]}]}})
}

/// A template of pods that are ready when the file /ready is there.
fn ready_by_file(case: &Case, labels: Value, script: &str) -> Value {
    let mut template = template(case, labels, script);
    template["spec"]["containers"][0]["readinessProbe"] =
        json!({"exec": {"command": ["cat", "/ready"]}, "periodSeconds": 1});
    template
}

fn int(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True" && pod["metadata"]["deletionTimestamp"].is_null()
}

/// The status of a condition; empty if there is none of that type.
fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|it| it["type"] == kind).map(|it| text(it, "/status")).next().unwrap_or("")
}

/// Pods of the namespace with these labels, by name; those on their way out are not among them.
fn pods(case: &Case, selector: &str) -> Vec<Value> {
    let mut pods = case.list(&format!("{}?labelSelector={selector}", case.path("v1", "pods")));
    pods.retain(|it| it["metadata"]["deletionTimestamp"].is_null());
    pods.sort_by_key(|it| name(it).to_string());
    pods
}

fn wait_ready_pods(case: &Case, selector: &str, count: usize) -> Vec<Value> {
    case.wait(&format!("{count} ready pods with {selector}"), || {
        let pods = pods(case, selector);
        (pods.len() == count && pods.iter().all(is_ready)).then_some(pods)
    })
}

/// Writes of `/status` by patch and by replacement are kept by whoever else writes it.
fn check_status_endpoints(case: &Case, path: &str) {
    let status = format!("{path}/status");
    assert_eq!(case.get(&status)["metadata"]["name"], case.get(path)["metadata"]["name"]);
    // A list in a merge patch replaces the whole, so the present conditions go with it.
    let with = |object: &Value, kind: &str| {
        let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|it| it["type"] != kind);
        conditions.push(json!({"type": kind, "status": "True", "reason": "E2E", "message": "Set by a test"}));
        conditions
    };
    let patch = json!({"status": {"conditions": with(&case.get(path), "StatusPatched")}});
    let patched = case.merge(&status, &patch);
    assert_eq!(condition(&patched, "StatusPatched"), "True");
    case.wait("the status to be replaced", || {
        let mut object = case.get(&status);
        object["status"]["conditions"] = json!(with(&object, "StatusUpdate"));
        let answer = case.ask("PUT", &status, &object);
        assert!(matches!(answer.code, 200 | 409), "{}", answer.text);
        (answer.code == 200).then_some(())
    });
    case.wait_for("both conditions", path, |it| {
        condition(it, "StatusUpdate") == "True" && condition(it, "StatusPatched") == "True"
    });
}

/// The scale subresource shows the size, and sets it by replacement and by patch.
fn check_scale(case: &Case, path: &str, selector: &str) {
    let at = format!("{path}/scale");
    let scale = case.get(&at);
    assert_eq!((text(&scale, "/kind"), text(&scale, "/apiVersion")), ("Scale", "autoscaling/v1"));
    let before = int(&scale, "/spec/replicas");
    assert_eq!(text(&scale, "/status/selector"), selector);
    let mut wanted = scale;
    wanted["spec"]["replicas"] = json!(before + 1);
    wanted["metadata"]["resourceVersion"] = Value::Null;
    let scaled = case.replace(&at, &wanted);
    assert_eq!(int(&scaled, "/spec/replicas"), before + 1);
    assert_eq!(int(&case.get(path), "/spec/replicas"), before + 1);
    case.merge(&at, &json!({"spec": {"replicas": before + 2}}));
    assert_eq!(int(&case.get(path), "/spec/replicas"), before + 2);
    case.wait_for("the new size", &at, |it| int(it, "/status/replicas") == before + 2);
}

/// Objects with a label are listed in all namespaces and deleted as one.
fn check_collection(case: &Case, api_version: &str, plural: &str, make: impl Fn(&str) -> Value) {
    let label = format!("collection={}", case.namespace);
    let path = case.path(api_version, plural);
    for name in ["one", "two", "three"] {
        let mut object = make(name);
        object["metadata"] = json!({"name": name, "labels": {"collection": case.namespace}});
        case.create(&path, &object);
    }
    let everywhere = format!("/apis/{api_version}/{plural}?labelSelector={label}");
    let everywhere = if api_version == "v1" { everywhere.replace("/apis/", "/api/") } else { everywhere };
    assert_eq!(case.list(&everywhere).len(), 3);
    case.expect("DELETE", &format!("{path}?labelSelector={label}"), &Value::Null, 200);
    case.wait("the collection to be gone", || case.list(&everywhere).is_empty().then_some(()));
}
