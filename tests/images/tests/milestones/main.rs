//! What a person types on the way from a directory to an app that runs, as one script: build, apply, look inside,
//! forward a port, copy a file, and go on while the daemon is replaced.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

use naru_image_tests::harness::{Daemon, busybox, naru_binary, text, tool};
use std::fs;
use std::process::{Command, Output, Stdio};

const DOCKERFILE: &str = "FROM scratch AS base
COPY busybox /bin/busybox
RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]

FROM base
COPY index.html /www/index.html
EXPOSE 8080
CMD [\"/bin/sh\", \"-c\", \"echo serving; exec httpd -f -p 8080 -h /www\"]
";

const OBJECTS: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web:1
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

/// Bash with `naru` and `kubectl` as people have them.
fn script(daemon: &Daemon, dir: &std::path::Path, text: &str) -> Output {
    let path = format!(
        "{}:{}:{}",
        naru_binary().parent().unwrap().display(),
        tool("kubectl").parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    Command::new("bash")
        .args(["-euo", "pipefail", "-c", text])
        .current_dir(dir)
        .env("PATH", path)
        .env("NARU_DATA_DIR", daemon.data_dir())
        .env("KUBECONFIG", daemon.endpoints["kubeconfig"].as_str().unwrap())
        .env("HOME", dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn from_a_directory_to_an_app_that_outlives_its_daemon() {
    let mut daemon = Daemon::start();
    let dir = tempfile::tempdir().unwrap();
    fs::copy(busybox(), dir.path().join("busybox")).unwrap();
    fs::write(dir.path().join("Dockerfile"), DOCKERFILE).unwrap();
    fs::write(dir.path().join("index.html"), "hello from web\n").unwrap();
    fs::write(dir.path().join("web.yaml"), OBJECTS).unwrap();
    let output = script(
        &daemon,
        dir.path(),
        r#"
        naru build -t web:1 .
        kubectl apply -f web.yaml
        kubectl rollout status deploy/web --timeout=60s
        name=$(kubectl exec deploy/web -- cat /etc/hostname)
        kubectl get pod "$name" -o name
        kubectl logs deploy/web | grep serving
        kubectl port-forward svc/web :80 >forward.log 2>&1 & forward=$!
        trap 'kill $forward' EXIT
        until grep -q 'Forwarding from 127' forward.log; do kill -0 $forward; sleep 0.05; done
        port=$(grep -o '127.0.0.1:[0-9]*' forward.log | head -n 1)
        curl -sf --noproxy '*' "http://$port" | grep 'hello from web'
        kubectl cp "$name:/etc/hostname" copied
        [ "$(cat copied)" = "$name" ]
        until kubectl top pod "$name" 2>top.log; do grep -qi 'not available' top.log; sleep 0.2; done
        echo everything was typed"#,
    );
    assert!(
        output.status.success() && text(&output).contains("everything was typed"),
        "{}\n{}",
        text(&output),
        daemon.log()
    );

    // What runs is untouched by the end and the return of what started it.
    let containers = |daemon: &Daemon| -> Vec<String> {
        let id = |it: &serde_json::Value| it["status"]["containerStatuses"][0]["containerID"].to_string();
        let mut all: Vec<String> = daemon.get("pods").iter().map(id).collect();
        all.sort();
        all
    };
    let before = containers(&daemon);
    assert_eq!(before.len(), 2);
    daemon.stop();
    daemon.start_again();
    let output = script(
        &daemon,
        dir.path(),
        "kubectl rollout status deploy/web --timeout=60s; kubectl exec deploy/web -- cat /www/index.html",
    );
    assert!(text(&output).contains("hello from web"), "{}", text(&output));
    assert_eq!(containers(&daemon), before);
    daemon.destroy();
}
