//! The OWASP top ten of CI/CD risks, each as something that is tried and does not work.
//!
//! They need root, `cargo build -p naru`, and what `scripts/setup.sh` installs.

mod limits;

use naru_actions_tests::harness::{Daemon, Repository, naru_binary, text};
use naru_actions_tests::{ended, secret};
use serde_json::{Value, json};
use std::process::Command;

/// Looks around as a job may, and says what it found.
const LOOK: &str = "on: [push, pull_request]
permissions: {contents: write, id-token: write}
jobs:
  look:
    runs-on: ubuntu-latest
    outputs: {leak: '${{ secrets.KEY }}'}
    steps:
      - run: |
          echo \"the secret has ${#KEY} letters, it is $KEY\"
          printf %s \"$KEY\" | base64 -w0; echo
          echo \"id tokens: ${ACTIONS_ID_TOKEN_REQUEST_TOKEN:+yes}\"
        env: {KEY: '${{ secrets.KEY }}'}
      - name: Write to the repository
        run: |
          git clone --quiet http://x:$TOKEN@${GITHUB_SERVER_URL#http://}/$GITHUB_REPOSITORY.git copy
          cd copy
          git -c user.name=j -c user.email=j@j commit --quiet --allow-empty -m by-a-job
          if git push --quiet origin HEAD:refs/heads/by-a-job; then echo pushed; else echo refused; fi
        env: {TOKEN: '${{ github.token }}'}
      - name: Another repository
        run: if git ls-remote http://x:$TOKEN@${GITHUB_SERVER_URL#http://}/naru/other; then echo opened; else echo closed; fi
        env: {TOKEN: '${{ github.token }}'}
      - name: The machine
        run: |
          ls /root/.ssh /var/lib/naru /var/run/secrets 2>/dev/null | sed 's/^/found /'
          test ! -e /naru/job/job.json || echo found the job file
          mount -t tmpfs none /mnt 2>/dev/null && echo found a mount
          chroot / true 2>/dev/null; cat /proc/1/environ 2>/dev/null | tr '\\0' '\\n' | grep -a TOKEN= | sed 's/^/found /'
          echo looked
      - name: Containers of its own
        run: |
          ask() { curl -s --unix-socket /var/run/docker.sock -o /dev/null -w '%{http_code}' \"$@\"; }
          echo \"docker says $(ask http://d/info) $(ask -X POST http://d/containers/create) $(ask -X DELETE http://d/images/x)\"
      - name: The API
        run: \"curl -sk -o /dev/null -w 'the API says %{http_code}\\n' https://kubernetes.default.svc/api/v1/secrets || echo 'the API says nothing'\"
";

const DEPLOY: &str = "on: workflow_dispatch
jobs:
  deploy:
    runs-on: ubuntu-latest
    environment: production
    steps: [{run: echo deployed}]
";

fn logs(daemon: &Daemon, name: &str) -> String {
    text(&daemon.naru(&["logs", &format!("run/{name}")]))
}

#[test]
fn a_job_finds_no_more_than_it_was_given_and_a_change_from_outside_is_given_nothing() {
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let daemon = Daemon::start_in(dir, &["--actions-from", "none"]);
    let other = Repository::empty(&daemon, "other");
    other.write("a", "b");
    other.commit("another repository");
    other.push();
    let shop = Repository::empty(&daemon, "shop");
    shop.write("readme", "a shop\n");
    shop.commit("the start");
    shop.push();
    secret(&daemon, &["shop", "KEY"], "squeamish-ossifrage");
    shop.write(".github/workflows/look.yml", LOOK);
    shop.write(".github/workflows/deploy.yml", DEPLOY);
    shop.commit("look around");
    shop.push();

    let trusted = ended(&daemon, "shop-main-2");
    let shown = logs(&daemon, "shop-main-2");
    // 6 Credential hygiene: not in the log, not in an output, not in any object.
    assert!(shown.contains("the secret has 19 letters, it is ***") && shown.contains("***\n"), "{shown}");
    for leak in ["squeamish", "c3F1ZWFtaXNo"] {
        assert!(!shown.contains(leak), "{shown}");
        let runs = text(&daemon.kubectl(&["get", "runs,pods,events", "-o", "json"]));
        assert!(!runs.contains(leak), "an object has it");
        assert!(!daemon.log().contains(leak), "the daemon's log has it");
    }
    assert!(trusted["status"]["jobs"][0]["outputs"]["leak"].is_null(), "{trusted:#}");
    // 2 Identity and access: the token does what its permissions say, with its own repository.
    assert!(shown.contains("pushed") && shown.contains("closed") && !shown.contains("opened"), "{shown}");
    assert!(shown.contains("id tokens: yes"), "{shown}");
    // 5 Pipeline-based access: nothing of the machine or the cluster is there for the taking.
    assert!(shown.contains("looked") && !shown.contains("found "), "{shown}");
    assert!(shown.contains("docker says 200 403 403"), "{shown}");
    assert!(shown.contains("the API says 401") || shown.contains("the API says 403"), "{shown}");
    // What a job pushes starts nothing.
    assert!(!daemon.get("runs").iter().any(|it| it["spec"]["gitRef"] == "refs/heads/by-a-job"));

    // 4 Poisoned pipelines: the same workflow, changed by a stranger in a pull request.
    let mut poisoned = trusted.clone();
    poisoned["metadata"] = json!({"name": "shop-poisoned"});
    poisoned["status"] = Value::Null;
    poisoned["spec"]["event"] = json!("pull_request");
    poisoned["spec"]["untrusted"] = json!(true);
    poisoned["spec"]["deploy"] = json!(false);
    poisoned["spec"]["baseRef"] = json!("main");
    let applied = daemon.kubectl_with_input(&["create", "-f", "-"], &poisoned.to_string());
    assert!(applied.status.success(), "{}", text(&applied));
    ended(&daemon, "shop-poisoned");
    let shown = logs(&daemon, "shop-poisoned");
    assert!(shown.contains("the secret has 0 letters") && shown.contains("id tokens: \n"), "{shown}");
    assert!(shown.contains("refused") && !shown.contains("pushed"), "{shown}");
    assert!(shown.contains("docker says 000 000 000"), "no socket: {shown}");

    // 1 Flow control: nobody deploys to production alone.
    let environment = "apiVersion: naru.dev/v1
kind: Environment
metadata: {name: shop-production}
spec: {repository: shop, name: production, reviewers: [ann], branches: [main]}
";
    assert!(daemon.kubectl_with_input(&["apply", "-f", "-"], environment).status.success());
    let dispatched = text(&daemon.naru(&["ci", "dispatch", "shop", "deploy.yml"]));
    let name = dispatched.split(':').next().unwrap();
    daemon.wait_for("the job that waits", "runs", |all| {
        let run = all.iter().find(|it| it["metadata"]["name"] == name)?;
        run["status"]["jobs"][0]["message"].as_str().filter(|it| it.starts_with("waits for ann")).map(|_| ())
    });
    let rejected = daemon.naru(&["ci", "reject", name, "production", "--as", "ann", "-m", "not today"]);
    assert!(rejected.status.success(), "{}", text(&rejected));
    let run = ended(&daemon, name);
    assert_eq!(run["status"]["phase"], "Failed");
    assert!(
        run["status"]["jobs"][0]["message"].as_str().unwrap().contains("rejected by ann: not today"),
        "{run:#}"
    );
    assert!(!logs(&daemon, name).contains("deployed"));

    // 8 Services of others: an action that nobody vendored is not fetched from anywhere.
    let third = "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps: [{uses: stranger/thing@v1}]\n";
    shop.write(".github/workflows/look.yml", third);
    shop.commit("use a stranger's action");
    shop.push();
    let run = ended(&daemon, "shop-main-3");
    assert_eq!(run["status"]["phase"], "Failed", "{run:#}");
    assert!(logs(&daemon, "shop-main-3").contains("stranger/thing"), "{}", logs(&daemon, "shop-main-3"));
    // 3 Dependency chain: and its name, which can be moved, was warned of.
    let why = text(&daemon.naru(&["ci", "why", "shop-main-3"]));
    assert!(why.contains("warning") && why.contains("stranger/thing@v1"), "{why}");

    // 9 Artifact integrity: an image that this daemon did not build is told from one that it did.
    let context = tempfile::Builder::new().prefix("naru-context-").tempdir().unwrap();
    std::fs::write(context.path().join("Dockerfile"), "FROM scratch\nCOPY Dockerfile /\n").unwrap();
    let path = context.path().display().to_string();
    assert!(daemon.naru(&["build", "-q", "-t", "ours:1", &path]).status.success());
    assert!(daemon.naru(&["image", "verify", "ours:1"]).status.success());
    assert!(!daemon.naru(&["image", "verify", "stranger:1"]).status.success());

    // 10 Logging: who decided is in the audit log.
    let audit = std::fs::read_to_string(daemon.data_dir().join("api/audit.log")).unwrap();
    assert!(audit.contains(name) && audit.contains("shop-ci"), "decisions and secrets are in the audit log");
    daemon.destroy();
}

#[test]
fn what_invites_an_attack_is_said_before_anything_runs() {
    // 7 Insecure configuration: a privileged event that runs a stranger's code, and a stranger's words in a script.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(".github/workflows/ci.yml");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let workflow = "on: pull_request_target
jobs:
  a:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
        with: {ref: '${{ github.event.pull_request.head.sha }}'}
      - run: echo '${{ github.event.pull_request.title }}'
";
    std::fs::write(&path, workflow).unwrap();
    let output = Command::new(naru_binary()).arg("ci").arg("lint").arg(&path).output().unwrap();
    let shown = text(&output);
    assert!(shown.contains("ci.yml:7:") && shown.contains("ci.yml:8:"), "{shown}");
    assert!(shown.contains("github.event.pull_request.title"), "{shown}");
}
