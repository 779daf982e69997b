//! Events from other git hosts, and verdicts back to them: a host of our own (`host.py`) with git's own backend
//! and the status call, webhooks signed as the hosts sign them.
//!
//! They need root and `cargo build -p naru`.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod ssh;

use hmac::{Hmac, Mac};
use naru_actions_tests::harness::{Daemon, PATIENCE, text};
use serde_json::{Value, json};
use sha2::Sha256;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TOKEN: &str = "a-token-of-the-host";

const WORKFLOW: &str = "on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: cat greeting
";

struct Host {
    dir: tempfile::TempDir,
    port: u16,
    server: Child,
}

impl Host {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("naru-host-").tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut it = Self { server: serve(&dir, port), dir, port };
        it.wait();
        let bare = it.bare().display().to_string();
        it.git(".", &["init", "--quiet", "--bare", "--initial-branch=main", &bare]);
        it.git(".", &["init", "--quiet", "--initial-branch=main", "work"]);
        it.write(".github/workflows/ci.yml", WORKFLOW);
        it.write("greeting", "hello\n");
        it.git("work", &["remote", "add", "origin", &bare]);
        it
    }

    fn wait(&mut self) {
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "the host does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.server = serve(&self.dir, self.port);
        self.wait();
    }

    fn bare(&self) -> PathBuf {
        self.dir.path().join("acme/shop.git")
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/acme/shop.git", self.port)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.dir.path().join("work").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn git(&self, directory: &str, args: &[&str]) -> String {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=T", "-c", "user.email=t@example.org"]).args(args);
        let output = command.current_dir(self.dir.path().join(directory)).output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Commits everything and puts it under a ref of the host; returns the commit.
    fn publish(&self, message: &str, to: &str) -> String {
        self.git("work", &["add", "--all"]);
        self.git("work", &["commit", "--quiet", "--allow-empty", "-m", message]);
        self.git("work", &["push", "--quiet", "--force", "origin", &format!("HEAD:{to}")]);
        self.git("work", &["rev-parse", "HEAD"])
    }

    /// What was said of a commit, in its order.
    fn told(&self, sha: &str) -> Vec<Value> {
        let log = std::fs::read_to_string(self.dir.path().join("statuses")).unwrap_or_default();
        let told = log.lines().map(|it| serde_json::from_str::<Value>(it).unwrap());
        told.filter(|it| it["path"].as_str().unwrap().ends_with(sha))
            .map(|mut it| it["body"].take())
            .collect()
    }

    /// The states that a commit was given as a whole, in their order.
    fn states(&self, sha: &str) -> Vec<String> {
        let all = self.told(sha).into_iter();
        let whole = all.filter(|it| it["context"].as_str().is_some_and(|it| it.matches('/').count() == 1));
        whole.map(|it| it["state"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits for the last state of one context.
    fn wait_for_context(&self, sha: &str, context: &str, state: &str) -> Value {
        let began = Instant::now();
        loop {
            let last = self.told(sha).into_iter().rfind(|it| it["context"] == context);
            if let Some(it) = last.filter(|it| it["state"] == state) {
                return it;
            }
            assert!(began.elapsed() < PATIENCE, "{context} of {sha} is not {state}: {:?}", self.told(sha));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_for_state(&self, sha: &str, state: &str) {
        let began = Instant::now();
        while self.states(sha).last().map(String::as_str) != Some(state) {
            assert!(began.elapsed() < PATIENCE, "{sha} is not told to be {state}: {:?}", self.states(sha));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn serve(dir: &tempfile::TempDir, port: u16) -> Child {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/hooks/host.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(port.to_string()).arg(dir.path()).arg(TOKEN).arg(dir.path().join("statuses"));
    // It complains of clients that hang up.
    command.stderr(Stdio::null()).spawn().unwrap()
}

/// `naru upstream`: returns the webhook's URL and secret, as it prints them.
fn connect(daemon: &Daemon, repository: &str, url: &str, more: &[&str]) -> (String, String) {
    let mut child = Command::new(naru_actions_tests::harness::naru_binary())
        .args(["--data-dir", &daemon.data_dir().display().to_string(), "upstream", repository, url])
        .args(more)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(TOKEN.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let shown = text(&output);
    let word = |name: &str| {
        let line = shown.lines().find(|it| it.trim_start().starts_with(name)).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    };
    (word("URL"), word("secret"))
}

fn signature(secret: &str, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    mac.finalize().into_bytes().iter().map(|it| format!("{it:02x}")).collect()
}

/// One delivery; returns status and text.
fn deliver(url: &str, headers: &[String], body: &str) -> (u16, String) {
    let mut command = Command::new("curl");
    command.args(["-s", "--noproxy", "*", "-w", "\n%{http_code}", "--data-binary", "@-", "-H", "Expect:"]);
    command.args(["-H", "content-type: application/json"]);
    for header in headers {
        command.args(["-H", header]);
    }
    let mut child = command.arg(url).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // A server that refuses may stop reading.
    let _ = child.stdin.take().unwrap().write_all(body.as_bytes());
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = shown.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn from_github(hook: &(String, String), event: &str, body: &Value) -> (u16, String) {
    let body = body.to_string();
    let signed = format!("x-hub-signature-256: sha256={}", signature(&hook.1, &body));
    deliver(&hook.0, &[format!("x-github-event: {event}"), signed], &body)
}

fn pushed(git_ref: &str, sha: &str) -> Value {
    json!({"ref": git_ref, "after": sha, "repository": {"default_branch": "main"}, "project": {"default_branch": "main"}})
}

fn run_of(daemon: &Daemon, repository: &str, event: &str, phase: &str) -> Value {
    daemon.wait_for(&format!("a {phase} run of {event}"), "runs", |all| {
        let is_it = |it: &&Value| {
            it["spec"]["repository"] == repository
                && it["spec"]["event"] == event
                && it["status"]["phase"] == phase
        };
        all.iter().find(is_it).cloned()
    })
}

#[test]
fn pushes_and_pull_requests_of_github_run_here_and_their_verdict_goes_back() {
    let mut host = Host::start();
    let daemon = Daemon::start();
    let hook = connect(&daemon, "shop", &host.url(), &["--host", "github"]);
    let first = host.publish("first", "refs/heads/main");

    let (status, said) = from_github(&hook, "ping", &json!({"zen": "x"}));
    assert_eq!((status, said.trim()), (200, "the webhook works"));
    let push = pushed("refs/heads/main", &first);
    let (status, said) = from_github(&hook, "push", &push);
    assert!(status == 200 && said.contains("shop-main-1"), "{status} {said}");
    let run = run_of(&daemon, "shop", "push", "Succeeded");
    assert_eq!((run["spec"]["sha"].as_str(), &run["spec"]["deploy"]), (Some(first.as_str()), &json!(true)));
    host.wait_for_state(&first, "success");
    assert!(host.states(&first).starts_with(&["pending".into()]) || host.states(&first).len() == 1);
    // Each job has a status of its own, and both lead to a page for whoever knows the token.
    let key = run["status"]["jobs"][0]["key"].as_str().unwrap();
    let of_job = host.wait_for_context(&first, &format!("naru/push/{key}"), "success");
    let page = of_job["target_url"].as_str().unwrap();
    assert_eq!(page, format!("{}/runs/shop-main-1", daemon.http()));
    let look = |user: &[&str]| {
        let mut curl = Command::new("curl");
        text(&curl.args(["-s", "--noproxy", "*"]).args(user).arg(page).output().unwrap())
    };
    assert!(look(&[]).contains("needs the push token"));
    let shown = look(&["-u", &format!("x:{}", daemon.push_token())]);
    assert!(shown.contains("shop-main-1: Succeeded") && shown.contains("because of a push"), "{shown}");
    // The same again: nothing is new.
    let (status, said) = from_github(&hook, "push", &push);
    assert!(status == 200 && said.contains("up to date"), "{status} {said}");

    // Who does not know the secret gets nowhere, and learns nothing.
    let body = push.to_string();
    let event = "x-github-event: push".to_owned();
    let wrong = format!("x-hub-signature-256: sha256={}", signature("guess", &body));
    assert_eq!(deliver(&hook.0, &[event.clone(), wrong.clone()], &body).0, 401);
    assert_eq!(deliver(&hook.0, std::slice::from_ref(&event), &body).0, 401);
    assert_eq!(deliver(&hook.0.replace("/shop", "/other"), &[event.clone(), wrong], &body).0, 401);
    assert_eq!(
        deliver(&hook.0.replace("/github/", "/gitlab/"), &[format!("x-gitlab-token: {}", hook.1)], &body).0,
        401
    );
    let (status, _) = deliver(&hook.0, &[event], &"x".repeat(26 << 20));
    assert_eq!(status, 413);

    // A pull request from a fork: merged, untrusted, told at its head.
    host.git("work", &["checkout", "--quiet", "-b", "fix"]);
    host.write("other", "x");
    let head = host.publish("a fix", "refs/pull/7/head");
    host.git("work", &["checkout", "--quiet", "main"]);
    host.write("third", "y");
    host.publish("meanwhile", "refs/heads/main");
    let pull = |number: u32, sha: &str, branch: &str, repository: u32| {
        json!({"action": "opened", "number": number, "repository": {"default_branch": "main"},
               "pull_request": {"number": number, "title": "A fix", "user": {"login": "ann"},
                   "head": {"ref": branch, "sha": sha, "repo": {"id": repository}},
                   "base": {"ref": "main", "repo": {"id": 1}}}})
    };
    let (status, said) = from_github(&hook, "pull_request", &pull(7, &head, "fix", 2));
    assert!(status == 200 && said.contains("#7 runs as shop-pr-7-"), "{status} {said}");
    let run = run_of(&daemon, "shop", "pull_request", "Succeeded");
    let spec = &run["spec"];
    assert_eq!(
        (&spec["untrusted"], &spec["baseRef"], &spec["headRef"]),
        (&json!(true), &json!("main"), &json!("fix"))
    );
    assert_eq!(
        (&spec["gitRef"], &spec["payload"]["action"]),
        (&json!("refs/pull/7/merge"), &json!("opened"))
    );
    assert_ne!(spec["sha"], json!(head), "the merge is what is tested");
    host.wait_for_state(&head, "success");
    let (_, again) = from_github(&hook, "pull_request", &pull(7, &head, "fix", 2));
    assert_eq!(again, said, "delivered twice, it is the same run");
    assert_eq!(daemon.get("runs").iter().filter(|it| it["spec"]["event"] == "pull_request").count(), 1);

    // Merged there: what asks for `closed` runs on the branch that it went into.
    let mut closed = pull(7, &head, "fix", 2);
    closed["action"] = json!("closed");
    closed["pull_request"]["merged"] = json!(true);
    let (status, said) = from_github(&hook, "pull_request", &closed);
    assert!(status == 200 && said.contains("#7 runs as"), "{status} {said}");
    daemon.wait_for("the run of what was merged", "runs", |all| {
        let run = all.iter().find(|it| it["spec"]["payload"]["action"] == "closed")?;
        (run["spec"]["gitRef"] == "refs/heads/main").then_some(())
    });
    // Pull requests of our own keep out of the way of the host's.
    host.git(
        "work",
        &["push", "--quiet", &daemon.git_url("shop", &daemon.push_token()), "fix:refs/for/main/ours"],
    );
    daemon.wait_for("our own pull request", "runs", |all| {
        let run = all.iter().find(|it| it["spec"]["headRef"] == "ours")?;
        (run["spec"]["gitRef"] == "refs/pull/1000001/merge").then_some(())
    });

    // One that conflicts runs nothing, and says so.
    host.git("work", &["checkout", "--quiet", "-b", "clash", &first]);
    host.write("third", "another");
    let clash = host.publish("a clash", "refs/pull/8/head");
    let (status, said) = from_github(&hook, "pull_request", &pull(8, &clash, "clash", 1));
    assert!(status == 200 && said.contains("conflicts with main"), "{status} {said}");

    // While the host is away nothing is taken for done; it can be delivered again.
    host.git("work", &["checkout", "--quiet", "main"]);
    host.write("greeting", "hello again\n");
    let second = host.publish("second", "refs/heads/main");
    host.stop();
    let (status, said) = from_github(&hook, "push", &pushed("refs/heads/main", &second));
    assert!(status == 502 && said.contains("fetch"), "{status} {said}");
    host.start_again();
    let (status, said) = from_github(&hook, "push", &pushed("refs/heads/main", &second));
    assert!(status == 200 && said.contains("shop-main-2"), "{status} {said}");
    host.wait_for_state(&second, "success");
    daemon.destroy();
}

#[test]
fn gitlab_and_gitea_are_understood_too() {
    let host = Host::start();
    let daemon = Daemon::start();
    let sha = host.publish("first", "refs/heads/main");
    let body = pushed("refs/heads/main", &sha).to_string();
    for name in ["gitlab", "gitea", "forgejo"] {
        let hook = connect(&daemon, name, &host.url(), &["--host", name]);
        let headers = match name {
            "gitlab" => vec!["x-gitlab-event: Push Hook".to_owned(), format!("x-gitlab-token: {}", hook.1)],
            _ => vec![
                format!("x-{name}-event: push"),
                format!("x-{name}-signature: {}", signature(&hook.1, &body)),
            ],
        };
        let (status, said) = deliver(&hook.0, &headers, &body);
        assert!(status == 200 && said.contains(&format!("{name}-main-1")), "{name}: {status} {said}");
    }
    for name in ["gitlab", "gitea", "forgejo"] {
        run_of(&daemon, name, "push", "Succeeded");
    }
    let began = Instant::now();
    let paths = ["/api/v4/projects/acme%2Fshop/statuses/", "/api/v1/repos/acme/shop/statuses/"];
    let told = |path: &str, count: usize| {
        let log = std::fs::read_to_string(host.dir.path().join("statuses")).unwrap_or_default();
        let whole = |it: &&str| it.contains("\"naru/push\"") && it.contains("\"state\": \"success\"");
        log.lines().filter(whole).filter(|it| it.contains(path)).count() == count
    };
    while !told(paths[0], 1) || !told(paths[1], 2) {
        assert!(
            began.elapsed() < PATIENCE,
            "{:?}",
            std::fs::read_to_string(host.dir.path().join("statuses"))
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    daemon.destroy();
}

#[test]
fn an_event_that_was_accepted_outlives_the_daemon() {
    let host = Host::start();
    let mut daemon = Daemon::start();
    let hook = connect(&daemon, "shop", &host.url(), &["--host", "github"]);
    let first = host.publish("first", "refs/heads/main");
    let hang = host.dir.path().join("hang");
    std::fs::write(&hang, "").unwrap();
    let delivered =
        std::thread::spawn(move || from_github(&hook, "push", &pushed("refs/heads/main", &first)));
    let kept = daemon.data_dir().join("hooks");
    let began = Instant::now();
    while std::fs::read_dir(&kept).unwrap().next().is_none() {
        assert!(began.elapsed() < PATIENCE, "the delivery is not kept");
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.kill();
    assert_eq!(delivered.join().unwrap().0, 0, "nobody has answered");
    std::fs::remove_file(hang).unwrap();
    daemon.start_again();
    run_of(&daemon, "shop", "push", "Succeeded");
    assert_eq!(daemon.get("runs").len(), 1);
    let began = Instant::now();
    while std::fs::read_dir(&kept).unwrap().next().is_some() {
        assert!(began.elapsed() < PATIENCE, "the delivery is kept for ever");
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.destroy();
}
