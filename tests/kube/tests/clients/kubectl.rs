//! kubectl, old and new.

use std::io::{BufRead, BufReader};
use std::process::Command;

use naru_kube_tests::Case;

use crate::{Running, command, run, run_with, try_run};
use naru_loop_tests::harness::text;

const VERSIONS: [&str; 2] = ["kubectl-1.32", "kubectl-1.37"];

pub fn all() -> Vec<(&'static str, fn(&Case))> {
    vec![
        ("kubectl applies, explains, compares and edits without flags", applies),
        ("kubectl reaches into a pod: logs, exec, cp, attach, port-forward, top", reaches_in),
        ("kubectl creates imperatively, which newer versions do in protobuf", creates),
        ("kubectl drain asks the disruption budget", drains),
    ]
}

fn guestbook(it: &Case, version: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: front, labels: {{app: guestbook, version: '{version}'}}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: guestbook}}}}
  template:
    metadata: {{labels: {{app: guestbook}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: {image}
        command: [sh, -c, 'echo started; exec httpd -f -p 8080 -h /www']
        ports: [{{containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /index.html, port: 8080}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: front}}
spec:
  selector: {{app: guestbook}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
",
        image = it.cluster.image
    )
}

fn applies(it: &Case) {
    for (round, kubectl) in VERSIONS.into_iter().enumerate() {
        let first = guestbook(it, &format!("a{round}"), 1);
        run_with(it, kubectl, &["apply", "-f", "-"], &first);
        let again = run_with(it, kubectl, &["apply", "-f", "-"], &first);
        assert!(again.contains("deployment.apps/front unchanged"), "{again}");
        run(it, kubectl, &["rollout", "status", "deployment/front", "--timeout=90s"]);
        assert_eq!(run_with(it, kubectl, &["diff", "-f", "-"], &first), "");
        let second = guestbook(it, &format!("b{round}"), 2);
        let difference = try_run(it, kubectl, &["diff", "-f", "-"], &second);
        assert_eq!(difference.status.code(), Some(1), "{}", text(&difference));
        assert!(text(&difference).contains("+  replicas: 2"), "{}", text(&difference));
        let applied =
            run_with(it, kubectl, &["apply", "--server-side", "--force-conflicts", "-f", "-"], &second);
        assert!(applied.contains("serverside-applied"), "{applied}");
        let explained = run(it, kubectl, &["explain", "deployment.spec.replicas"]);
        assert!(explained.contains("replicas <integer>") && explained.contains("pods"), "{explained}");
        let shown = run(it, kubectl, &["get", "deploy,svc"]);
        assert!(shown.contains("UP-TO-DATE") && shown.contains("CLUSTER-IP"), "{shown}");
        let wrong = second.replace("replicas: 2", "replicas: 2\n  replica: 2");
        let refused = try_run(it, kubectl, &["apply", "-f", "-"], &wrong);
        assert!(text(&refused).contains("unknown field \"spec.replica\""), "{}", text(&refused));
        // A List is in the older description of the API only.
        let list = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "listed"}}]}"#;
        run_with(it, kubectl, &["apply", "-f", "-"], list);
        run(it, kubectl, &["set", "env", "deployment/front", &format!("ROUND={round}")]);
        run(it, kubectl, &["rollout", "status", "deployment/front", "--timeout=90s"]);
        let history = run(it, kubectl, &["rollout", "history", "deployment/front"]);
        assert!(history.contains("REVISION"), "{history}");
        run(it, kubectl, &["rollout", "undo", "deployment/front"]);
        run(it, kubectl, &["rollout", "status", "deployment/front", "--timeout=90s"]);
        run(it, kubectl, &["scale", "deployment/front", "--replicas=1"]);
        run(
            it,
            kubectl,
            &["delete", "deployment/front", "service/front", "--cascade=foreground", "--timeout=60s"],
        );
    }
}

fn reaches_in(it: &Case) {
    let pod = it.pod("web", "echo first; echo second; cd /tmp; httpd -f -p 8080 -h /www");
    it.create(&it.path("v1", "pods"), &pod);
    it.wait_running("web");
    for kubectl in VERSIONS {
        assert_eq!(run(it, kubectl, &["logs", "web", "--tail=1"]), "second\n");
        assert_eq!(run(it, kubectl, &["exec", "web", "--", "sh", "-c", "echo out; exit 0"]), "out\n");
        let failed = try_run(it, kubectl, &["exec", "web", "--", "sh", "-c", "exit 3"], "");
        assert_eq!(failed.status.code(), Some(3), "{}", text(&failed));
        let copied = std::env::temp_dir().join(format!("{}-{kubectl}", it.namespace));
        let target = copied.display().to_string();
        run(it, kubectl, &["cp", "web:/www/index.html", &target]);
        assert_eq!(std::fs::read_to_string(&copied).expect("it was copied"), "hello\n");
        run(it, kubectl, &["cp", &target, "web:/tmp/back"]);
        std::fs::remove_file(&copied).expect("it can be removed");
        assert_eq!(run(it, kubectl, &["exec", "web", "--", "cat", "/tmp/back"]), "hello\n");
        assert_eq!(forwarded(it, kubectl), "hello\n");
        it.wait("figures of the pod", || {
            let top = try_run(it, kubectl, &["top", "pod", "web"], "");
            (top.status.success() && text(&top).contains("Mi")).then_some(())
        });
    }
    run(
        it,
        VERSIONS[1],
        &["debug", "web", "--image", &it.cluster.image, "-c", "look", "--", "sleep", "1000"],
    );
    it.wait_for("the debugging container", &it.path("v1", "pods/web"), |it| {
        it["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object()
    });
    let resize = r#"{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"20m"}}}]}}"#;
    let refused =
        try_run(it, VERSIONS[1], &["patch", "pod", "web", "--subresource", "resize", "-p", resize], "");
    assert!(text(&refused).contains("QOS Class may not change"), "{}", text(&refused));
    let mut talker = it.pod("talker", "read line; echo \"heard $line\"");
    talker["spec"]["containers"][0]["stdin"] = true.into();
    it.create(&it.path("v1", "pods"), &talker);
    it.wait_running("talker");
    let attached = run_with(it, VERSIONS[1], &["attach", "-i", "talker"], "a word\n");
    assert!(attached.contains("heard a word") || it.logs("talker").contains("heard a word"), "{attached}");
}

/// One request through `kubectl port-forward`.
fn forwarded(it: &Case, kubectl: &str) -> String {
    let mut child = command(it, kubectl, &["port-forward", "pod/web", ":8080"]).spawn().expect("it starts");
    let mut line = String::new();
    // Kept open: it says more with each connection.
    let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
    out.read_line(&mut line).expect("it says where it listens");
    let _running = Running(child);
    // Forwarding from 127.0.0.1:40123 -> 8080
    let address =
        line.split_whitespace().nth(2).unwrap_or_else(|| panic!("no address in {line:?}")).to_string();
    let output = Command::new("curl")
        .args(["-s", "--noproxy", "*", "-m", "20", &format!("http://{address}/index.html")])
        .output()
        .expect("curl is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn creates(it: &Case) {
    for (round, kubectl) in VERSIONS.into_iter().enumerate() {
        let name = |base: &str| format!("{base}-{round}");
        let image = format!("--image={}", it.cluster.image);
        run(it, kubectl, &["create", "deployment", &name("web"), &image, "--replicas=0"]);
        run(it, kubectl, &["create", "configmap", &name("map"), "--from-literal=a=b"]);
        run(it, kubectl, &["create", "secret", "generic", &name("secret"), "--from-literal=password=hidden"]);
        run(it, kubectl, &["create", "serviceaccount", &name("robot")]);
        run(it, kubectl, &["create", "role", &name("role"), "--verb=get", "--resource=pods"]);
        run(it, kubectl, &["create", "job", &name("job"), &image, "--", "true"]);
        run(it, kubectl, &["create", "cronjob", &name("cron"), &image, "--schedule=0 0 1 1 *", "--", "true"]);
        run(it, kubectl, &["create", "service", "clusterip", &name("service"), "--tcp=80:8080"]);
        run(it, kubectl, &["create", "ingress", &name("ingress"), "--rule=a.test/*=web:80"]);
        run(it, kubectl, &["create", "quota", &name("quota"), "--hard=pods=100"]);
        run(it, kubectl, &["autoscale", "deployment", &name("web"), "--max=3", "--cpu-percent=50"]);
        let scaled = it.get(&it.path("apps/v1", &format!("deployments/{}", name("web"))));
        assert_eq!(scaled["spec"]["replicas"], 0, "a zero that was meant is kept");
        let secret = it.get(&it.path("v1", &format!("secrets/{}", name("secret"))));
        assert_eq!(secret["data"]["password"], "aGlkZGVu");
        assert_eq!(secret["type"], "Opaque");
    }
}

fn drains(it: &Case) {
    let mut pod = it.pod("kept", "sleep 1000");
    pod["metadata"]["labels"] = serde_json::json!({"app": "kept"});
    it.create(&it.path("v1", "pods"), &pod);
    it.wait_running("kept");
    it.create(
        &it.path("policy/v1", "poddisruptionbudgets"),
        &serde_json::json!({"metadata": {"name": "kept"}, "spec": {"minAvailable": 1,
            "selector": {"matchLabels": {"app": "kept"}}}}),
    );
    it.wait_for("the budget to be counted", &it.path("policy/v1", "poddisruptionbudgets/kept"), |it| {
        it["status"]["currentHealthy"] == 1
    });
    let eviction =
        serde_json::json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "kept"}});
    let path = it.path("v1", "pods/kept/eviction");
    let refused = it.ask("POST", &path, &eviction);
    assert_eq!(refused.code, 429, "{}", refused.text);
    assert!(refused.headers.contains_key("retry-after"));
    it.merge(
        &it.path("policy/v1", "poddisruptionbudgets/kept"),
        &serde_json::json!({"spec": {"minAvailable": 0}}),
    );
    it.wait("the eviction to be allowed", || (it.ask("POST", &path, &eviction).code == 201).then_some(()));
    it.wait_gone(&it.path("v1", "pods/kept"));
}
