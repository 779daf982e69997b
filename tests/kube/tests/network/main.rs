//! What users expect of network policies, Ingresses and volumes, on a real daemon with real pods.

use std::process::{Command, ExitCode};

use naru_kube_tests::{Case, run_own};
use serde_json::{Value, json};

fn main() -> ExitCode {
    run_own(vec![
        ("network policies close pods and open what they name", policies),
        ("an ingress leads host names and paths to services", ingress),
        ("a claim keeps its data when its pod goes", claims),
        ("a service without pods refuses at once", nobody),
    ])
}

fn server(case: &Case, name: &str) -> String {
    let script = "mkdir -p /tmp/www/sub && hostname > /tmp/www/index.html && hostname > /tmp/www/sub/index.html && \
        exec httpd -f -p 8080 -h /tmp/www";
    let mut pod = case.pod(name, script);
    pod["metadata"]["labels"] = json!({"app": name});
    pod["spec"]["terminationGracePeriodSeconds"] = json!(0);
    case.create(&case.path("v1", "pods"), &pod);
    let pod = case.wait_running(name);
    pod["status"]["podIP"].as_str().expect("an address").to_string()
}

/// What one pod gets from an address, or nothing.
fn fetch(case: &Case, from: &str, url: &str) -> Option<String> {
    let output = case.kubectl(&["exec", from, "--", "timeout", "2", "wget", "-q", "-O-", url]);
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn policy(case: &Case, name: &str, spec: Value) {
    let object = json!({"metadata": {"name": name}, "spec": spec});
    case.create(&case.path("networking.k8s.io/v1", "networkpolicies"), &object);
}

fn policies(case: &Case) {
    let web = server(case, "web");
    server(case, "friend");
    server(case, "stranger");
    let url = format!("http://{web}:8080/");
    let reaches = |from: &str| fetch(case, from, &url).is_some();
    case.wait("everybody to reach it", || (reaches("friend") && reaches("stranger")).then_some(()));
    policy(
        case,
        "closed",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}),
    );
    case.wait("nobody to reach it", || (!reaches("friend") && !reaches("stranger")).then_some(()));
    policy(
        case,
        "friends",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": 8080}]}]}),
    );
    case.wait("only the friend to reach it", || (reaches("friend") && !reaches("stranger")).then_some(()));
    // The other direction: the friend may talk to nobody any more, but still look up names.
    policy(
        case,
        "silent",
        json!({"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"]}),
    );
    case.wait("the friend to be silent", || (!reaches("friend")).then_some(()));
    let name = "kubernetes.default.svc.cluster.local.";
    assert!(case.kubectl(&["exec", "friend", "--", "nslookup", name]).status.success());
    for name in ["closed", "friends", "silent"] {
        case.delete(&case.path("networking.k8s.io/v1", &format!("networkpolicies/{name}")));
    }
    case.wait("everybody to reach it again", || (reaches("friend") && reaches("stranger")).then_some(()));
}

fn ingress(case: &Case) {
    for name in ["one", "two"] {
        server(case, name);
        let service = json!({"metadata": {"name": name}, "spec": {"selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
        case.create(&case.path("v1", "services"), &service);
    }
    let backend = |name: &str| json!({"service": {"name": name, "port": {"name": "http"}}});
    let host = format!("{}.test", case.namespace);
    let object = json!({"metadata": {"name": "web"}, "spec": {"rules": [{"host": host, "http": {"paths": [
        {"path": "/", "pathType": "Prefix", "backend": backend("one")},
        {"path": "/sub", "pathType": "Prefix", "backend": backend("two")}]}}]}});
    case.create(&case.path("networking.k8s.io/v1", "ingresses"), &object);
    let at = case.path("networking.k8s.io/v1", "ingresses/web");
    case.wait_for("the address", &at, |it| it["status"]["loadBalancer"]["ingress"][0]["ip"].is_string());
    let gateway = case.cluster.gateway();
    let ask = |path: &str| {
        let header = format!("Host: {host}");
        let output = Command::new("curl")
            .args(["-s", "--max-time", "5", "-H", &header, &format!("{gateway}{path}")])
            .output();
        String::from_utf8_lossy(&output.expect("curl is installed").stdout).trim().to_string()
    };
    case.wait("the first service at /", || (ask("/") == "one").then_some(()));
    case.wait("the second service at /sub/", || (ask("/sub/") == "two").then_some(()));
}

fn claims(case: &Case) {
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "10Mi"}}}});
    case.create(&case.path("v1", "persistentvolumeclaims"), &claim);
    let with_data = |name: &str, script: &str| {
        let mut pod = case.pod(name, script);
        pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        pod
    };
    case.output_of(&with_data("writer", "echo kept > /data/file"));
    let bound = case.get(&case.path("v1", "persistentvolumeclaims/data"));
    assert_eq!(bound["status"]["phase"], "Bound");
    case.delete(&case.path("v1", "pods/writer"));
    assert_eq!(case.output_of(&with_data("reader", "cat /data/file")).trim(), "kept");
    // With its claim the volume goes, and its directory.
    let volume =
        format!("/api/v1/persistentvolumes/{}", bound["spec"]["volumeName"].as_str().expect("a volume"));
    let path = case.get(&volume)["spec"]["local"]["path"].as_str().expect("a path").to_string();
    assert!(std::path::Path::new(&path).join("file").exists());
    case.delete(&case.path("v1", "pods/reader"));
    case.delete(&case.path("v1", "persistentvolumeclaims/data"));
    case.wait_gone(&volume);
    assert!(!std::path::Path::new(&path).exists());
}

fn nobody(case: &Case) {
    server(case, "client");
    let service =
        json!({"metadata": {"name": "none"}, "spec": {"selector": {"app": "none"}, "ports": [{"port": 80}]}});
    case.create(&case.path("v1", "services"), &service);
    case.wait("a refusal", || {
        let output =
            case.kubectl(&["exec", "client", "--", "timeout", "5", "wget", "-q", "-O-", "http://none/"]);
        String::from_utf8_lossy(&output.stderr).contains("refused").then_some(())
    });
}
