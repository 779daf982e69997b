//! The services that steps talk to, with the official clients: `@actions/artifact`, `@actions/cache` and
//! `@actions/core` under Node against a daemon. The token is that of a job that really runs.
//!
//! They need root, `cargo build -p naru`, and what `scripts/setup.sh` installs.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod artifacts;
mod caches;
mod identity;
mod images;
mod jobs;

use naru_actions_tests::harness::{Daemon, Repository, text};
use naru_actions_tests::{node, packages};
use naru_token::{JobClaims, TokenKey};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The job stays for as long as the test needs it.
const WORKFLOW: &str = "on: push
jobs:
  stay:
    runs-on: ubuntu-latest
    steps:
      - run: sleep 600
";

/// A daemon with a job that runs, and a directory that the clients work in.
struct Fixture {
    daemon: Daemon,
    claims: JobClaims,
    work: tempfile::TempDir,
}

impl Fixture {
    fn start(more: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
        let daemon = Daemon::start_in(dir, more);
        let repository = Repository::page(&daemon);
        repository.write(".github/workflows/ci.yml", WORKFLOW);
        repository.commit("a job that stays");
        // A push shows the run until its end; whoever has seen enough may leave.
        let mut push = repository.command(&["push", "naru", "main"]).stderr(Stdio::null()).spawn().unwrap();
        let claims = running(&daemon, "page-main-1");
        push.kill().unwrap();
        push.wait().unwrap();
        let work = tempfile::Builder::new().prefix("naru-work-").tempdir().unwrap();
        let packages = packages();
        std::os::unix::fs::symlink(packages.join("node_modules"), work.path().join("node_modules")).unwrap();
        std::fs::copy(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/client.mjs"),
            work.path().join("client.mjs"),
        )
        .unwrap();
        Self { daemon, claims, work }
    }

    fn mint(&self, claims: &JobClaims) -> String {
        let key = std::fs::read_to_string(self.daemon.data_dir().join("run-key")).unwrap();
        TokenKey::new(key.trim().as_bytes()).mint(claims)
    }

    /// The client's command, with what the runner gives to an action.
    fn command(&self, claims: &JobClaims, args: &[&str]) -> Command {
        let server = self.daemon.http();
        let mut command = Command::new(node());
        command
            .arg("client.mjs")
            .args(args)
            .current_dir(self.work.path())
            .stdin(Stdio::null())
            .env("ACTIONS_RUNTIME_TOKEN", self.mint(claims))
            .env("ACTIONS_RESULTS_URL", format!("{server}/"))
            .env("ACTIONS_CACHE_URL", format!("{server}/"))
            .env("ACTIONS_CACHE_SERVICE_V2", "true")
            .env("ACTIONS_ID_TOKEN_REQUEST_URL", format!("{server}/_apis/oidc/token?x=1"))
            .env("ACTIONS_ID_TOKEN_REQUEST_TOKEN", self.mint(claims))
            .env("GITHUB_SERVER_URL", server.replace("127.0.0.1", "naru.localhost"))
            .env("GITHUB_API_URL", format!("{server}/api/v3"))
            .env("GITHUB_TOKEN", self.mint(claims))
            .env("GITHUB_REPOSITORY", "naru/page")
            .env("GITHUB_WORKSPACE", self.work.path())
            .env("RUNNER_TEMP", self.work.path());
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(name);
        }
        command
    }

    fn run(&self, claims: &JobClaims, args: &[&str]) -> Output {
        self.command(claims, args).output().unwrap()
    }

    /// The client's answer; the test fails with what it printed if there is none.
    fn call(&self, claims: &JobClaims, args: &[&str]) -> Value {
        answer(&self.run(claims, args))
    }

    fn path(&self, name: &str) -> String {
        self.work.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.work.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(output));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(out.trim_end().lines().last().unwrap_or_default()).unwrap()
}

/// The claims of a run's first job, once it runs.
fn running(daemon: &Daemon, run: &str) -> JobClaims {
    daemon.wait_for("a job that runs", "runs", |all| {
        let run = all.iter().find(|it| it["metadata"]["name"] == run)?;
        let job = run["status"]["jobs"].get(0).filter(|it| it["phase"] == "Running")?;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Some(JobClaims {
            repository: text(&run["spec"]["repository"]),
            run: text(&run["metadata"]["name"]),
            run_uid: text(&run["metadata"]["uid"]),
            job: text(&job["key"]),
            permissions: BTreeMap::from([
                ("contents".into(), "write".into()),
                ("actions".into(), "write".into()),
                ("id-token".into(), "write".into()),
            ]),
            git_ref: text(&run["spec"]["gitRef"]),
            default_ref: "refs/heads/main".into(),
            exp: i64::MAX,
            ..JobClaims::default()
        })
    })
}
