//! What a job's token opens beyond artifacts and caches: id-tokens, git, and the files of actions.

use crate::{Fixture, node};
use naru_actions_tests::harness::text;
use naru_token::{Identity, JobClaims};
use serde_json::{Value, json};
use std::process::{Command, Output};

/// Verifies a token of the issuer as any client does: discovery, key set, signature; prints the claims.
const VERIFY: &str = "
const crypto = require('crypto')
const [token, issuer] = process.argv.slice(1)
const part = text => JSON.parse(Buffer.from(text, 'base64url'))
;(async () => {
  const found = await (await fetch(issuer + '/.well-known/openid-configuration')).json()
  const { keys } = await (await fetch(found.jwks_uri)).json()
  const [header, payload, signature] = token.split('.')
  const key = keys.find(it => it.kid === part(header).kid)
  const verifies = text => crypto.verify('sha256', Buffer.from(text),
    { key: crypto.createPublicKey({ key, format: 'jwk' }), dsaEncoding: 'ieee-p1363' }, Buffer.from(signature, 'base64url'))
  if (found.issuer !== part(payload).iss) throw new Error('another issuer')
  if (!verifies(header + '.' + payload)) throw new Error('the signature is wrong')
  if (verifies(header + '.' + payload + 'x')) throw new Error('anything verifies')
  console.log(JSON.stringify(part(payload)))
})()
";

impl Fixture {
    fn git(&self, claims: &JobClaims, directory: &str, args: &[&str]) -> Output {
        let url =
            self.daemon.http().replace("http://", &format!("http://x-access-token:{}@", self.mint(claims)));
        let args: Vec<String> = args.iter().map(|it| it.replace("<server>", &url)).collect();
        let mut command = Command::new("git");
        command.args(["-c", "user.name=T", "-c", "user.email=t@example.org"]).args(args);
        command.current_dir(self.path(directory)).env("GIT_TERMINAL_PROMPT", "0").output().unwrap()
    }

    fn get(&self, claims: &JobClaims, path: &str, to: &str) -> (String, String) {
        let output = Command::new("curl")
            .args(["-s", "--noproxy", "*", "-D", "-", "-o", &self.path(to), "-w", "%{http_code}"])
            .args(["-H", &format!("Authorization: Bearer {}", self.mint(claims))])
            .arg(format!("{}{path}", self.daemon.http()))
            .output()
            .unwrap();
        let shown = text(&output);
        let status = shown.lines().last().unwrap_or_default().to_owned();
        (status, shown)
    }
}

#[test]
fn a_job_s_token_opens_its_repository_and_says_who_it_is() {
    let upstream = Upstream::start();
    let vendored = tempfile::tempdir().unwrap();
    let action = vendored.path().join("actions/hello");
    std::fs::create_dir_all(&action).unwrap();
    std::fs::write(action.join("action.yml"), "name: hello").unwrap();
    let it = Fixture::start(&[
        "--actions-dir",
        &vendored.path().display().to_string(),
        "--actions-from",
        &upstream.url(),
        "--owner",
        "acme",
    ]);
    id_tokens(&it);
    git(&it);
    actions(&it, upstream);
    it.daemon.destroy();
}

fn id_tokens(it: &Fixture) {
    let identity = Identity {
        event_name: "push".into(),
        sha: "0".repeat(40),
        workflow: "CI".into(),
        workflow_file: ".github/workflows/ci.yml".into(),
        environment: "prod".into(),
        ..Identity::default()
    };
    let claims = JobClaims { identity, ..it.claims.clone() };
    for client in ["core-of-v4", "@actions/core"] {
        let token = it.call(&claims, &[client, "id", "sts.example.com"]);
        let verified = Command::new(node())
            .args(["-e", VERIFY, token.as_str().unwrap(), &it.daemon.http()])
            .output()
            .unwrap();
        assert!(verified.status.success(), "{}", text(&verified));
        let said: Value = serde_json::from_slice(&verified.stdout).unwrap();
        assert_eq!(
            (&said["aud"], &said["sub"]),
            (&json!("sts.example.com"), &json!("repo:acme/page:environment:prod"))
        );
        assert_eq!(said["workflow_ref"], "acme/page/.github/workflows/ci.yml@refs/heads/main");
        assert!(said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap() <= 600, "{said}");
    }
    let without = JobClaims { permissions: Default::default(), ..claims };
    let refused = it.run(&without, &["core-of-v4", "id", "sts.example.com"]);
    assert!(text(&refused).contains("id-token: write"), "{}", text(&refused));
}

fn git(it: &Fixture) {
    for (number, url) in
        ["<server>/acme/page", "<server>/acme/page.git", "<server>/git/page.git"].iter().enumerate()
    {
        let cloned = it.git(&it.claims, "", &["clone", "--quiet", url, &format!("clone-{number}")]);
        assert!(cloned.status.success(), "{url}: {}", text(&cloned));
    }
    // What a job pushes makes no run.
    it.write("clone-0/made-by-a-job", b"x");
    for args in
        [&["add", "."][..], &["commit", "--quiet", "-m", "by a job"], &["push", "--quiet", "origin", "main"]]
    {
        let done = it.git(&it.claims, "clone-0", args);
        assert!(done.status.success(), "{}", text(&done));
    }
    let head = text(&it.git(&it.claims, "clone-0", &["rev-parse", "HEAD"]));
    let seen = text(&it.git(&it.claims, "clone-1", &["ls-remote", "origin", "refs/heads/main"]));
    assert_eq!(seen.split_whitespace().next(), Some(head.trim()));
    assert_eq!(it.daemon.get("runs").len(), 1);

    let reads = JobClaims { permissions: [("contents".into(), "read".into())].into(), ..it.claims.clone() };
    let fork = JobClaims { untrusted: true, ..it.claims.clone() };
    for claims in [&reads, &fork] {
        let fetched = it.git(claims, "clone-1", &["fetch", "--quiet", "<server>/acme/page", "main"]);
        assert!(fetched.status.success(), "{}", text(&fetched));
        let refused = it.git(claims, "clone-0", &["push", "<server>/acme/page", "main:other"]);
        assert!(!refused.status.success() && text(&refused).contains("403"), "{}", text(&refused));
    }
    let elsewhere = JobClaims { repository: "other".into(), ..it.claims.clone() };
    let nothing = JobClaims { permissions: Default::default(), ..it.claims.clone() };
    let expired = JobClaims { exp: 1, ..it.claims.clone() };
    for claims in [elsewhere, nothing, expired] {
        let refused = it.git(&claims, "clone-1", &["ls-remote", "<server>/acme/page"]);
        assert!(!refused.status.success(), "{}", text(&refused));
    }
}

fn actions(it: &Fixture, upstream: Upstream) {
    let unpacked = |file: &str| {
        let output = Command::new("tar").args(["-xzOf", &it.path(file), "action.yml"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let (status, _) = it.get(&it.claims, "/_apis/actions/actions/hello/v1", "hello.tgz");
    assert_eq!((status.as_str(), unpacked("hello.tgz").as_str()), ("200", "name: hello"));
    let (status, shown) = it.get(&it.claims, "/_apis/actions/acme/page/main", "page.tgz");
    let head = text(&it.git(&it.claims, "clone-0", &["rev-parse", "HEAD"]));
    assert!(status == "200" && shown.contains(head.trim()), "{shown}");
    let files = Command::new("tar").args(["-tzf", &it.path("page.tgz")]).output().unwrap();
    assert!(text(&files).lines().any(|it| it == "made-by-a-job"), "{}", text(&files));

    let (status, shown) = it.get(&it.claims, "/_apis/actions/far/away/v1", "away.tgz");
    assert!(status == "200" && shown.contains(&upstream.commit), "{shown}");
    assert_eq!(unpacked("away.tgz"), "name: far away");
    let (status, _) = it.get(&it.claims, &format!("/_apis/actions/far/away/{}", upstream.commit), "away.tgz");
    assert_eq!(status, "200", "the commit is known from before");
    let asked = upstream.stop();
    assert_eq!(asked, 1, "the tag was asked for once, the commit never");
    let (status, _) = it.get(&it.claims, "/_apis/actions/far/away/v1", "away.tgz");
    assert_eq!(status, "200", "the host is away");
    let (status, _) = it.get(&it.claims, "/_apis/actions/far/other/v1", "reason.txt");
    let reason = std::fs::read_to_string(it.path("reason.txt")).unwrap();
    assert!(status == "502" && reason.contains("far/other@v1"), "{status}: {reason}");
}

/// A git host with one action: what `git archive` makes of a repository, under the usual path.
struct Upstream {
    dir: tempfile::TempDir,
    commit: String,
    server: std::process::Child,
    port: u16,
}

impl Upstream {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command
                .args(["-c", "user.name=T", "-c", "user.email=t@example.org"])
                .args(args)
                .current_dir(dir.path());
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
            text(&output).trim().to_owned()
        };
        git(&["init", "--quiet", "--initial-branch=main"]);
        std::fs::write(dir.path().join("action.yml"), "name: far away").unwrap();
        git(&["add", "action.yml"]);
        git(&["commit", "--quiet", "-m", "one"]);
        let archive = dir.path().join("www/far/away/archive/v1.tar.gz");
        std::fs::create_dir_all(archive.parent().unwrap()).unwrap();
        git(&[
            "archive",
            "--format=tar.gz",
            "--prefix=away-1/",
            "-o",
            &archive.display().to_string(),
            "HEAD",
        ]);
        let commit = git(&["rev-parse", "HEAD"]);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let server = Command::new("python3")
            .args(["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--directory"])
            .arg(dir.path().join("www"))
            .stderr(log)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let began = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < naru_actions_tests::harness::PATIENCE, "the git host does not start");
            std::thread::yield_now();
        }
        Self { dir, commit, server, port }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How many archives it was asked for.
    fn stop(mut self) -> usize {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        log.lines().filter(|it| it.contains("\"GET ")).count()
    }
}
