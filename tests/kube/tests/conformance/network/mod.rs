//! Group D: names, services and their endpoints.

mod dns;
mod endpoints;
mod reach;
mod services;

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

pub fn all() -> Vec<Scenario> {
    [dns::all(), endpoints::all(), reach::all(), services::all()].into_iter().flatten().collect()
}

/// A pod that serves its own name over HTTP on port 8080, with these labels.
fn server(case: &Case, name: &str, labels: Value) -> Value {
    let script = "mkdir -p /tmp/www && hostname > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www";
    let mut pod = case.pod(name, script);
    pod["metadata"]["labels"] = labels;
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    pod["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": 8080}]);
    pod["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    pod
}

fn start_server(case: &Case, name: &str, labels: Value) -> Value {
    case.create(&case.path("v1", "pods"), &server(case, name, labels));
    case.wait_running(name)
}

/// A pod from which things are tried.
fn start_client(case: &Case) {
    let mut pod = case.pod("client", "exec sleep 100000");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    case.create(&case.path("v1", "pods"), &pod);
    case.wait_running("client");
}

/// What a command in the client says; nothing if it fails.
fn try_in_client(case: &Case, command: &str) -> Option<String> {
    let output = case.kubectl(&["exec", "client", "--", "sh", "-c", command]);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn service(case: &Case, name: &str, spec: Value) -> Value {
    case.create(&case.path("v1", "services"), &json!({"metadata": {"name": name}, "spec": spec}))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// What the machine gets from an address, over HTTP.
fn curl(url: &str) -> Option<String> {
    let output = std::process::Command::new("curl").args(["-sf", "--max-time", "5", url]).output();
    let output = output.expect("curl is installed");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The addresses in the ready endpoints of a service's slices.
fn addresses(case: &Case, service: &str) -> Vec<String> {
    let path = case.path("discovery.k8s.io/v1", "endpointslices");
    let slices = case.list(&format!("{path}?labelSelector=kubernetes.io%2Fservice-name%3D{service}"));
    let mut all: Vec<String> = slices
        .iter()
        .flat_map(|it| list(it, "/endpoints"))
        .filter(|it| it["conditions"]["ready"] != false)
        .flat_map(|it| list(it, "/addresses"))
        .filter_map(|it| it.as_str().map(String::from))
        .collect();
    all.sort();
    all.dedup();
    all
}
