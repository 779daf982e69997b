//! A node that is lost under a job. The test is the node: it takes the pod's job as a job's process does, never
//! says how it ends, and comes back when another pod has it.

use naru_actions_tests::harness::{Daemon, Repository, text};
use naru_actions_tests::{ended, in_background};
use serde_json::{Value, json};
use std::process::Command;

/// Ends when the test says so.
const WORKFLOW: &str = "on: push
permissions: {contents: write, actions: read, id-token: write}
jobs:
  build:
    runs-on: ubuntu-latest
    outputs: {at: '${{ steps.it.outputs.at }}'}
    steps:
      - id: it
        run: |
          while ! test -e /tmp/go; do sleep 0.1; done
          echo \"at=$(hostname)\" >> $GITHUB_OUTPUT
";

/// A node that nobody but the test speaks for.
fn ghost(daemon: &Daemon) {
    let node = json!({"apiVersion": "v1", "kind": "Node",
                      "metadata": {"name": "ghost", "labels": {"kubernetes.io/hostname": "ghost"}}});
    let made = daemon.kubectl_with_input(&["create", "-f", "-"], &node.to_string());
    assert!(made.status.success(), "{}", text(&made));
    let room = json!({"cpu": "4", "memory": "16Gi", "pods": "20"});
    let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
    let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": [ready]}});
    patch_status(daemon, "node", "ghost", &status);
}

fn patch_status(daemon: &Daemon, kind: &str, name: &str, patch: &Value) {
    let patch = patch.to_string();
    let done = daemon.kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch]);
    assert!(done.status.success(), "{}", text(&done));
}

fn schedulable(daemon: &Daemon, real: &str, wanted: bool) {
    let done = daemon.kubectl(&[if wanted { "uncordon" } else { "cordon" }, real]);
    assert!(done.status.success(), "{}", text(&done));
}

/// The run's pod on the ghost, as it says that it runs.
fn pod_on_ghost(daemon: &Daemon, run: &str) -> Value {
    let pod = daemon.wait_for("a pod on the ghost", "pods", |all| {
        let mut of_run = all.iter().filter(|it| it["metadata"]["labels"]["naru.dev/run"] == run);
        of_run.find(|it| it["spec"]["nodeName"] == "ghost").cloned()
    });
    let name = pod["metadata"]["name"].as_str().unwrap();
    let now = jiff::Timestamp::now().to_string();
    let container = json!({"name": "job", "state": {"running": {"startedAt": now}}, "ready": true,
                           "restartCount": 0, "image": "", "imageID": ""});
    let status = json!({"status": {"phase": "Running", "startTime": now, "containerStatuses": [container]}});
    patch_status(daemon, "pod", name, &status);
    pod
}

/// The node is gone, and somebody says that its pod is, too.
fn lose(daemon: &Daemon, pod: &Value) {
    let name = pod["metadata"]["name"].as_str().unwrap();
    for args in [&["delete", "node", "ghost"][..], &["delete", "pod", name, "--force", "--grace-period=0"]] {
        let done = daemon.kubectl(args);
        assert!(done.status.success(), "{}", text(&done));
    }
}

/// An answer's status and text.
fn ask(daemon: &Daemon, path: &str, token: &str, body: Option<&str>) -> (String, String) {
    let mut curl = Command::new("curl");
    curl.args(["-s", "--noproxy", "*", "-m", "20", "-w", "\n%{http_code}", "-H"]);
    curl.arg(format!("Authorization: Bearer {token}"));
    if let Some(body) = body {
        curl.args(["-H", "Content-Type: application/json", "-d", body]);
    }
    let output = curl.arg(format!("{}{path}", daemon.http())).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let (text, code) = out.rsplit_once('\n').unwrap();
    (code.to_owned(), text.to_owned())
}

/// What the pod would ask, as its job's process asks.
fn ask_for_job(daemon: &Daemon, pod: &Value) -> (String, String) {
    let container = &pod["spec"]["containers"][0];
    let url = container["command"].as_array().unwrap().last().unwrap().as_str().unwrap();
    let token = container["env"].as_array().unwrap().iter().find(|it| it["name"] == "NARU_WAIT_TOKEN");
    let path = &url[url.find("/_apis/").unwrap()..];
    ask(daemon, path, token.unwrap()["value"].as_str().unwrap(), None)
}

#[test]
fn the_job_of_a_lost_node_is_run_again_once_and_its_pod_of_before_is_refused() {
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let daemon = Daemon::start_in(dir, &["--warm-pods", "0"]);
    let real = daemon.get("nodes").remove(0)["metadata"]["name"].as_str().unwrap().to_owned();
    let page = Repository::empty(&daemon, "page");
    page.write(".github/workflows/ci.yml", WORKFLOW);
    page.commit("a job that waits");
    schedulable(&daemon, &real, false);
    ghost(&daemon);
    let push = in_background(page.command(&["push", "naru", "main"]));
    let old = pod_on_ghost(&daemon, "page-main-1");
    let (status, job) = ask_for_job(&daemon, &old);
    assert_eq!(status, "200", "{job}");
    let job: Value = serde_json::from_str(&job).unwrap();
    let token = job["services"]["ACTIONS_RUNTIME_TOKEN"].as_str().unwrap().to_owned();
    let artifacts = "/twirp/github.actions.results.api.v1.ArtifactService";
    let run = daemon.get("runs").remove(0)["metadata"]["uid"].take();
    let ids = json!({"workflow_run_backend_id": run, "workflow_job_run_backend_id": "build"}).to_string();
    assert_eq!(ask(&daemon, &format!("{artifacts}/ListArtifacts"), &token, Some(&ids)).0, "200");
    daemon.wait_for("the node of the job", "runs", |all| {
        (all[0]["status"]["jobs"][0]["node"] == "ghost").then_some(())
    });

    lose(&daemon, &old);
    schedulable(&daemon, &real, true);
    let new = daemon.wait_for("another pod", "pods", |all| {
        let mut of_run = all.iter().filter(|it| it["metadata"]["labels"]["naru.dev/run"] == "page-main-1");
        let pod = of_run.find(|it| it["status"]["phase"] == "Running")?;
        Some(pod["metadata"]["name"].as_str()?.to_owned())
    });
    assert_ne!(new, old["metadata"]["name"].as_str().unwrap());

    // The pod of before comes back, with everything that it had.
    for (path, body) in [
        (format!("{artifacts}/ListArtifacts"), Some(ids.as_str())),
        (format!("{artifacts}/CreateArtifact"), Some(r#"{"name": "late", "version": 4}"#)),
        ("/_apis/artifactcache/cache?keys=k&version=v".into(), None),
        ("/_apis/oidc/token".into(), None),
        ("/api/v3/repos/naru/page".into(), None),
    ] {
        let (status, said) = ask(&daemon, &path, &token, body);
        assert!(status == "401" && said.contains("was given to another pod"), "{path}: {status} {said}");
    }
    let remote = format!("{}/naru/page", daemon.http().replace("//", &format!("//x-access-token:{token}@")));
    let fetched = page.command(&["ls-remote", &remote]).output().unwrap();
    assert!(!fetched.status.success(), "{}", text(&fetched));
    let (status, said) = ask_for_job(&daemon, &old);
    assert!(status == "410" && said.contains("was given to another"), "{status} {said}");

    let go = daemon.kubectl(&["exec", &new, "--", "touch", "/tmp/go"]);
    assert!(go.status.success(), "{}", text(&go));
    let run = ended(&daemon, "page-main-1");
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert_eq!(run["status"]["jobs"][0]["outputs"]["at"], new.as_str());
    let why = text(&daemon.naru(&["ci", "why", "page-main-1"]));
    assert!(why.contains("the node `ghost` is gone") && why.contains("given to another pod"), "{why}");
    drop(push);

    // A second time it stays lost.
    schedulable(&daemon, &real, false);
    page.commit("a job that takes its nodes down");
    let push = in_background(page.command(&["push", "naru", "main"]));
    for _ in 0..2 {
        ghost(&daemon);
        let pod = pod_on_ghost(&daemon, "page-main-2");
        daemon.wait_for("the node of the job", "runs", |all| {
            let run = all.iter().find(|it| it["metadata"]["name"] == "page-main-2")?;
            (run["status"]["jobs"][0]["pod"] == pod["metadata"]["name"]
                && run["status"]["jobs"][0]["node"] == "ghost")
                .then_some(())
        });
        lose(&daemon, &pod);
    }
    let run = ended(&daemon, "page-main-2");
    assert_eq!(run["status"]["phase"], "Interrupted", "{run:#}");
    let message = run["status"]["jobs"][0]["message"].as_str().unwrap();
    assert_eq!(message, "the node `ghost` is gone, and it was run again once already");
    schedulable(&daemon, &real, true);
    drop(push);
    daemon.destroy();
}
