//! What people type.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use naru_kube_tests::{Case, Group, Scenario, scenario};
use naru_loop_tests::harness::{text, tool};
use serde_json::{Value, json};

pub fn all() -> Vec<Scenario> {
    let of = |group, name, run: fn(&Case)| scenario(group, name, run);
    vec![
        of(
            Group::A,
            "[sig-cli] Kubectl client Kubectl api-versions should check if v1 is in available api versions [Conformance]",
            api_versions,
        ),
        of(
            Group::A,
            "[sig-cli] Kubectl client Kubectl cluster-info should check if Kubernetes control plane services is included in cluster-info [Conformance]",
            cluster_info,
        ),
        of(
            Group::A,
            "[sig-cli] Kubectl client Kubectl version should check is all data is printed [Conformance]",
            version,
        ),
        of(
            Group::A,
            "[sig-cli] Kubectl client Kubectl diff should check if kubectl diff finds a difference for Deployments [Conformance]",
            diff,
        ),
        of(
            Group::A,
            "[sig-cli] Kubectl client Proxy server should support proxy with --port 0 [Conformance]",
            proxy_port,
        ),
        of(
            Group::A,
            "[sig-cli] Kubectl client Proxy server should support --unix-socket=/path [Conformance]",
            proxy_socket,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Kubectl describe should check if kubectl describe prints relevant information for rc and pods [Conformance]",
            describe,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Kubectl expose should create services for rc [Conformance]",
            expose,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Kubectl label should update the label on a resource [Conformance]",
            label,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Kubectl patch should add annotations for pods in rc [Conformance]",
            patch,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Kubectl replace should update a single-container pod's image [Conformance]",
            replace,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Kubectl run pod should create a pod from an image when restart is Never [Conformance]",
            run_pod,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Kubectl server-side dry-run should check if kubectl can dry-run update Pods [Conformance]",
            dry_run,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Update Demo should create and stop a replication controller [Conformance]",
            controller_life,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Update Demo should scale a replication controller [Conformance]",
            controller_scaled,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl client Guestbook application should create and stop a working application [Conformance]",
            guestbook,
        ),
        of(
            Group::C,
            "[sig-cli] Kubectl logs logs should be able to retrieve and filter logs [Conformance]",
            logs,
        ),
    ]
}

fn said(it: &Case, args: &[&str]) -> String {
    said_with(it, args, "")
}

fn said_with(it: &Case, args: &[&str], input: &str) -> String {
    let output = it.kubectl_with_input(args, input);
    assert!(output.status.success(), "kubectl {args:?}: {}", text(&output));
    text(&output)
}

fn api_versions(it: &Case) {
    assert!(said(it, &["api-versions"]).lines().any(|it| it == "v1"));
}

fn cluster_info(it: &Case) {
    let info = said(it, &["cluster-info"]);
    assert!(info.contains("Kubernetes control plane") && info.contains("is running at"), "{info}");
}

fn version(it: &Case) {
    let version: Value =
        serde_json::from_slice(&it.kubectl(&["version", "-o", "json"]).stdout).expect("JSON");
    for field in ["major", "minor", "gitVersion", "platform"] {
        assert!(
            !version["serverVersion"][field].as_str().unwrap_or_default().is_empty(),
            "{field}: {version}"
        );
    }
}

fn deployment(it: &Case, command: &str) -> String {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 0,
        "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": it.cluster.image, "command": [command]}]}}}})
    .to_string()
}

fn diff(it: &Case) {
    said_with(it, &["create", "-f", "-"], &deployment(it, "first"));
    let output = it.kubectl_with_input(&["diff", "-f", "-"], &deployment(it, "second"));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("second"), "{}", text(&output));
}

/// `kubectl proxy` until the closure has an answer.
fn proxied(it: &Case, args: &[&str], ask: impl FnOnce(&str) -> String) -> String {
    let mut child = Command::new(tool("kubectl"))
        .arg("proxy")
        .args(args)
        .env("KUBECONFIG", &it.cluster.kubeconfig)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl starts");
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    out.read_line(&mut line).expect("it says where it listens");
    let answer = ask(line.trim());
    let _ = child.kill();
    let _ = child.wait();
    answer
}

fn proxy_port(it: &Case) {
    let answer = proxied(it, &["--port=0", "--disable-filter"], |line| {
        let address = line.rsplit(' ').next().expect("an address");
        let url = format!("http://{address}/api/");
        text(&Command::new("curl").args(["-s", "--noproxy", "*", "-m", "20", &url]).output().expect("curl"))
    });
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["versions"][0], "v1");
}

fn proxy_socket(it: &Case) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("proxy.sock");
    let answer = proxied(it, &[&format!("--unix-socket={}", path.display())], |_| {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).expect("the socket listens");
        stream.write_all(b"GET /api/ HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    });
    assert!(answer.contains("\"versions\""), "{answer}");
}

/// A controller of web servers.
fn controller(it: &Case, name: &str, replicas: u32) -> String {
    json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"replicas": replicas, "selector": {"app": name}, "template": {"metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "web", "image": it.cluster.image,
            "command": ["httpd", "-f", "-p", "8080", "-h", "/www"], "ports": [{"containerPort": 8080}]}]}}}})
    .to_string()
}

fn pods(it: &Case, app: &str) -> Vec<Value> {
    let all = it.list(&format!("{}?labelSelector=app%3D{app}", it.path("v1", "pods")));
    all.into_iter().filter(|it| it["metadata"]["deletionTimestamp"].is_null()).collect()
}

fn running(it: &Case, app: &str, count: usize) -> Vec<Value> {
    it.wait(&format!("{count} running pods"), || {
        let all = pods(it, app);
        let running = all.iter().filter(|it| it["status"]["phase"] == "Running").count();
        (running == count && all.len() == count).then_some(all)
    })
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().expect("a name").to_string()
}

fn describe(it: &Case) {
    said_with(it, &["create", "-f", "-"], &controller(it, "web", 1));
    let pod = name(&running(it, "web", 1)[0]);
    let described = said(it, &["describe", "pod", &pod]);
    for part in [
        "Name:",
        "Namespace:",
        "Node:",
        "Labels:",
        "Status:",
        "IP:",
        "Controlled By:",
        "ReplicationController/web",
        "Image:",
        "State:",
        "Running",
    ] {
        assert!(described.contains(part), "{part} is missing in {described}");
    }
    let described = said(it, &["describe", "rc", "web"]);
    for part in [
        "Name:",
        "Selector:",
        "app=web",
        "Replicas:",
        "1 current",
        "1 desired",
        "Pods Status:",
        "1 Running",
        "Pod Template:",
        "Events:",
    ] {
        assert!(described.contains(part), "{part} is missing in {described}");
    }
    let described = said(it, &["describe", "node"]);
    for part in ["Name:", "Conditions:", "Ready", "Capacity:", "cpu", "Non-terminated Pods:"] {
        assert!(described.contains(part), "{part} is missing in {described}");
    }
    assert!(said(it, &["describe", "namespace", &it.namespace]).contains("Active"));
}

fn expose(it: &Case) {
    said_with(it, &["create", "-f", "-"], &controller(it, "web", 1));
    running(it, "web", 1);
    said(it, &["expose", "rc", "web", "--name=first", "--port=1234", "--target-port=8080"]);
    said(it, &["expose", "service", "first", "--name=second", "--port=2345", "--target-port=8080"]);
    for (service, port) in [("first", 1234), ("second", 2345)] {
        let object = it.get(&it.path("v1", &format!("services/{service}")));
        assert_eq!(object["spec"]["ports"][0]["port"], port);
        assert_eq!(object["spec"]["ports"][0]["targetPort"], 8080);
        it.wait_for("an endpoint", &it.path("v1", &format!("endpoints/{service}")), |it| {
            it["subsets"][0]["ports"][0]["port"] == 8080
        });
    }
}

fn label(it: &Case) {
    it.create(&it.path("v1", "pods"), &it.pod("one", "sleep 1000"));
    said(it, &["label", "pod", "one", "testing-label=testing-label-value"]);
    assert!(said(it, &["get", "pod", "one", "-L", "testing-label"]).contains("testing-label-value"));
    said(it, &["label", "pod", "one", "testing-label-"]);
    assert!(!said(it, &["get", "pod", "one", "-L", "testing-label"]).contains("testing-label-value"));
}

fn patch(it: &Case) {
    said_with(it, &["create", "-f", "-"], &controller(it, "web", 1));
    let pod = name(&running(it, "web", 1)[0]);
    said(it, &["patch", "pod", &pod, "-p", r#"{"metadata":{"annotations":{"x":"y"}}}"#]);
    assert_eq!(it.get(&it.path("v1", &format!("pods/{pod}")))["metadata"]["annotations"]["x"], "y");
}

fn replace(it: &Case) {
    it.create(&it.path("v1", "pods"), &it.pod("one", "sleep 1000"));
    it.wait_running("one");
    let mut object = it.get(&it.path("v1", "pods/one"));
    let image = it.cluster.image.replace(":1", "@none").replace("@none", ":2");
    object["spec"]["containers"][0]["image"] = json!(image);
    said_with(it, &["replace", "-f", "-"], &object.to_string());
    assert_eq!(it.get(&it.path("v1", "pods/one"))["spec"]["containers"][0]["image"], image.as_str());
}

fn run_pod(it: &Case) {
    let image = format!("--image={}", it.cluster.image);
    said(it, &["run", "one", "--restart=Never", &image, "--", "true"]);
    let pod = it.get(&it.path("v1", "pods/one"));
    assert_eq!(pod["spec"]["containers"][0]["image"], it.cluster.image.as_str());
    assert_eq!(pod["spec"]["restartPolicy"], "Never");
    it.wait_for("the pod to end", &it.path("v1", "pods/one"), |it| it["status"]["phase"] == "Succeeded");
}

fn dry_run(it: &Case) {
    it.create(&it.path("v1", "pods"), &it.pod("one", "sleep 1000"));
    let patch = r#"{"spec":{"containers":[{"name":"main","image":"other:1"}]}}"#;
    said(it, &["patch", "pod", "one", "-p", patch, "--dry-run=server"]);
    assert_eq!(
        it.get(&it.path("v1", "pods/one"))["spec"]["containers"][0]["image"],
        it.cluster.image.as_str()
    );
}

fn controller_life(it: &Case) {
    said_with(it, &["create", "-f", "-"], &controller(it, "demo", 2));
    running(it, "demo", 2);
    said_with(it, &["delete", "--grace-period=0", "--force", "-f", "-"], &controller(it, "demo", 2));
    it.wait("the pods to go", || {
        it.list(&format!("{}?labelSelector=app%3Ddemo", it.path("v1", "pods"))).is_empty().then_some(())
    });
}

fn controller_scaled(it: &Case) {
    said_with(it, &["create", "-f", "-"], &controller(it, "demo", 2));
    running(it, "demo", 2);
    said(it, &["scale", "rc", "demo", "--replicas=1", "--timeout=5m"]);
    running(it, "demo", 1);
    said(it, &["scale", "rc", "demo", "--replicas=2", "--timeout=5m"]);
    running(it, "demo", 2);
}

fn guestbook(it: &Case) {
    let of = |name: &str, replicas: u32, script: &str| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": {"tier": name}}, "template": {"metadata": {"labels": {"tier": name}}, "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": it.cluster.image, "command": ["sh", "-c", script], "ports": [{"containerPort": 8080}],
                    "resources": {"requests": {"cpu": "10m", "memory": "10Mi"}},
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]}}}})
    };
    let service = |name: &str| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"tier": name}, "ports": [{"port": 8080}]}});
    let web = "exec httpd -f -p 8080 -h /www";
    let everything = [
        of("backend", 1, web),
        of("replica", 2, web),
        of(
            "frontend",
            3,
            "mkdir -p /tmp/www/cgi-bin; printf '#!/bin/sh\\necho; wget -q -O - http://$BACKEND:8080/index.html\\n' > /tmp/www/cgi-bin/ask; chmod +x /tmp/www/cgi-bin/ask; exec httpd -f -p 8080 -h /tmp/www",
        ),
        service("backend"),
        service("replica"),
        service("frontend"),
    ];
    let mut text = String::new();
    for object in &everything {
        text.push_str(&format!("---\n{object}\n"));
    }
    said_with(it, &["create", "-f", "-"], &text);
    for name in ["backend", "replica", "frontend"] {
        said(it, &["rollout", "status", &format!("deployment/{name}"), "--timeout=90s"]);
    }
    let backend = pods_by_tier(it, "backend");
    let address = backend[0]["status"]["podIP"].as_str().expect("an address").to_string();
    said(it, &["set", "env", "deployment/frontend", &format!("BACKEND={address}")]);
    said(it, &["rollout", "status", "deployment/frontend", "--timeout=90s"]);
    let answer = it.get_text(&it.path("v1", "services/frontend/proxy/cgi-bin/ask"));
    assert_eq!(answer.trim(), "hello");
    said_with(it, &["delete", "--grace-period=0", "--force", "-f", "-"], &text);
    it.wait("all pods to go", || it.list(&it.path("v1", "pods")).is_empty().then_some(()));
}

fn pods_by_tier(it: &Case, tier: &str) -> Vec<Value> {
    it.list(&format!("{}?labelSelector=tier%3D{tier}", it.path("v1", "pods")))
}

fn logs(it: &Case) {
    it.create(
        &it.path("v1", "pods"),
        &it.pod("talker", "for i in $(seq 1 20); do echo line $i; done; sleep 1000"),
    );
    it.wait_running("talker");
    it.wait("all lines", || (it.logs("talker").lines().count() == 20).then_some(()));
    assert_eq!(said(it, &["logs", "talker", "--tail=1"]), "line 20\n");
    assert_eq!(said(it, &["logs", "talker", "--limit-bytes=1"]), "l");
    let stamped = said(it, &["logs", "talker", "--tail=1", "--timestamps"]);
    assert!(
        stamped.starts_with("20") && stamped.contains('T') && stamped.ends_with("line 20\n"),
        "{stamped}"
    );
    assert_eq!(said(it, &["logs", "talker", "--since=24h"]).lines().count(), 20);
    let recent = said(it, &["logs", "talker", "--since=1h", "-c", "main"]);
    assert_eq!(recent.lines().count(), 20);
}
