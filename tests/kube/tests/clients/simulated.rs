//! `naru dev`: the whole control plane on nodes that only pretend.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use naru_kube_tests::Case;
use naru_loop_tests::harness::{kubectl, naru_binary, text, tool};
use serde_json::{Value, json};

use crate::Running;

pub fn all() -> Vec<(&'static str, fn(&Case))> {
    vec![("a guestbook rolls out, back and away on simulated nodes", guestbook)]
}

fn guestbook(_: &Case) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().display().to_string();
    let mut child = Command::new(naru_binary())
        .args([
            "--data-dir",
            &data,
            "dev",
            "--nodes",
            "2",
            "--simulate",
            "--api",
            "127.0.0.1:0",
            "--print-endpoints",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("naru starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped"))
        .read_line(&mut line)
        .expect("it says where it is");
    let _running = Running(child);
    let endpoints: Value = serde_json::from_str(&line).expect("JSON");
    let kubeconfig = endpoints["kubeconfig"].as_str().expect("a path").to_string();
    let run = |args: &[&str], input: &str| {
        let output = kubectl(&kubeconfig, args, input);
        assert!(output.status.success(), "kubectl {args:?}: {}", text(&output));
        text(&output)
    };
    assert_eq!(run(&["get", "nodes", "-o", "name"], "").lines().count(), 2);
    let tier = |name: &str, replicas: u32| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas,
            "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "php", "image": "x:1"}]}}}})
    };
    let all = format!("{}\n---\n{}\n---\n{}\n", tier("leader", 1), tier("follower", 2), tier("frontend", 3));
    run(&["apply", "-f", "-"], &all);
    run(&["rollout", "status", "deploy/frontend", "--timeout=60s"], "");
    run(&["set", "image", "deploy/frontend", "php=x:2"], "");
    run(&["rollout", "status", "deploy/frontend", "--timeout=60s"], "");
    run(&["rollout", "undo", "deploy/frontend"], "");
    run(&["rollout", "status", "deploy/frontend", "--timeout=60s"], "");
    let image =
        run(&["get", "deploy/frontend", "-o", "jsonpath={.spec.template.spec.containers[0].image}"], "");
    assert_eq!(image, "x:1");
    run(&["delete", "--cascade=foreground", "--timeout=60s", "-f", "-"], &all);
    assert!(run(&["get", "pods"], "").contains("No resources found"));

    let chart = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(chart.path().join("templates")).expect("a directory");
    std::fs::write(chart.path().join("Chart.yaml"), "apiVersion: v2\nname: d\nversion: 1.0.0\n")
        .expect("a file");
    std::fs::write(chart.path().join("templates/all.yaml"), tier("charted", 2).to_string()).expect("a file");
    let installed = Command::new(tool("helm-4"))
        .args(["install", "d", &chart.path().display().to_string(), "--wait", "--timeout=60s"])
        .env("KUBECONFIG", &kubeconfig)
        .env("HOME", dir.path())
        .output()
        .expect("helm is installed");
    assert!(installed.status.success(), "{}", text(&installed));
}
