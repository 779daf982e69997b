//! The services as their clients see them, without a network: what a job may see and do, and what not.

mod hostile;
mod rest;

use crate::runs::Runs;
use crate::{Bytestream, Changed, Code, Commit, Comparison, Config, Content, Services};
use async_trait::async_trait;
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode, header};
use naru_token::{JobClaims, TokenKey};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tower::ServiceExt;

#[derive(Default)]
struct SomeRuns(Mutex<BTreeMap<String, Value>>);

#[async_trait]
impl Runs for SomeRuns {
    async fn get(&self, name: &str) -> Result<Option<Value>, String> {
        Ok(self.0.lock().unwrap().get(name).cloned())
    }

    async fn list(&self, repository: &str) -> Result<Vec<Value>, String> {
        let all = self.0.lock().unwrap().values().cloned().collect::<Vec<_>>();
        Ok(all.into_iter().filter(|it| it["spec"]["repository"] == repository).collect())
    }

    async fn workflows(&self, repository: &str) -> Result<Vec<Value>, String> {
        let workflow = |name: &str, events: &[&str]| {
            json!({"metadata": {"name": name},
                   "spec": {"repository": repository, "file": format!(".github/workflows/{name}.yml"), "name": name,
                            "events": events}})
        };
        Ok(vec![workflow("ci", &["push"]), workflow("deploy", &["workflow_dispatch"])])
    }

    async fn create(&self, run: &Value) -> Result<(), String> {
        let name = run["metadata"]["name"].as_str().unwrap().to_owned();
        self.0.lock().unwrap().insert(name, run.clone());
        Ok(())
    }
}

/// A git server with the repositories `shop` and `setup-tool`, and the branch `main` in each.
struct SomeCode;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

#[async_trait]
impl Code for SomeCode {
    async fn resolve(&self, repository: &str, name: &str) -> Result<Option<String>, String> {
        Ok((["shop", "setup-tool"].contains(&repository)
            && ["main", "refs/heads/main", "refs/pull/7/head"].contains(&name))
        .then(|| SHA.to_owned()))
    }

    async fn archive(&self, repository: &str, _: &str) -> Result<Bytestream, String> {
        let text = format!("archive of {repository}");
        Ok(Box::pin(futures::stream::iter([Ok(text.into())])))
    }

    async fn default_branch(&self, _: &str) -> Result<Option<String>, String> {
        Ok(Some("main".into()))
    }

    async fn content(&self, _: &str, _: &str, path: &str) -> Result<Option<Content>, String> {
        Ok((path == "README.md").then(|| Content::File { sha: SHA.into(), bytes: b"hello".to_vec() }))
    }

    async fn commit(&self, _: &str, commit: &str) -> Result<Commit, String> {
        let text = |it: &str| it.to_owned();
        let date = text("2026-01-01T00:00:00Z");
        Ok(Commit {
            parents: vec![],
            author: text("T"),
            email: text("t@e"),
            date,
            message: format!("at {commit}"),
        })
    }

    async fn compare(&self, _: &str, _: &str, _: &str) -> Result<Comparison, String> {
        Ok(comparison())
    }
}

/// The rest of what that git server knows.
fn comparison() -> Comparison {
    let file = Changed { letter: 'R', path: "b".into(), previous: "a".into(), added: 2, removed: 1 };
    Comparison { files: vec![file], ahead: 1, behind: 0 }
}

/// Services with two runs of `shop`, one of them of another branch, and one of `other`.
struct Fixture {
    dir: tempfile::TempDir,
    runs: Arc<SomeRuns>,
    services: Services,
    key: TokenKey,
}

const CACHE_BYTES_MAX: u64 = 1000;

fn open(dir: &tempfile::TempDir, runs: &Arc<SomeRuns>, key: &TokenKey) -> Services {
    let config = Config {
        dir: dir.path().into(),
        key: key.clone(),
        admin_token: "admin".into(),
        runs: runs.clone(),
        code: Arc::new(SomeCode),
        owner: "naru".into(),
        public_url: "https://naru.example.com/".into(),
        actions_dir: Some(dir.path().join("vendored")),
        actions_from: None,
        cache_bytes_max: CACHE_BYTES_MAX,
        retention_days: 90,
    };
    Services::open(config).unwrap()
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        assert!(self.status.is_success(), "{}: {}", self.status, self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (runs, key) = (Arc::new(SomeRuns::default()), TokenKey::new(b"key"));
        for name in ["shop-1", "shop-2", "other-1"] {
            let run = json!({
                "apiVersion": "naru.dev/v1", "kind": "Run",
                "metadata": {"name": name, "uid": format!("uid-{name}")},
                "spec": {"repository": name.split('-').next(), "gitRef": "refs/heads/main", "sha": "", "change": "",
                         "event": "push", "pushedAt": "",
                         "payload": {"pull_request": {"number": 7, "base": {"ref": "main"}}}},
                "status": {"phase": "Running", "workflows": [], "diagnostics": [],
                           "jobs": [{"key": "ci-a", "name": "a", "phase": "Running", "steps": []}]},
            });
            runs.0.lock().unwrap().insert(name.into(), run);
        }
        let services = open(&dir, &runs, &key);
        Self { dir, runs, services, key }
    }

    fn claims(&self, run: &str) -> JobClaims {
        JobClaims {
            repository: run.split('-').next().unwrap().into(),
            run: run.into(),
            run_uid: format!("uid-{run}"),
            job: "ci-a".into(),
            git_ref: "refs/heads/main".into(),
            default_ref: "refs/heads/main".into(),
            exp: jiff::Timestamp::now().as_second() + 3600,
            ..JobClaims::default()
        }
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        token: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request =
            Request::builder().method(method).uri(url).header(header::HOST, "naru.localhost:7070");
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.services.router().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn twirp(&self, claims: &JobClaims, method: &str, message: Value) -> Answer {
        let service = if method.contains("Cache") { "CacheService" } else { "ArtifactService" };
        let url = format!("/twirp/github.actions.results.api.v1.{service}/{method}");
        let json = [("content-type", "application/json")];
        self.send(Method::POST, &url, &self.key.mint(claims), &json, message.to_string()).await
    }

    async fn put(&self, url: &str, more: &str, body: &str) -> Answer {
        let path =
            url.strip_prefix("http://naru.localhost:7070").expect("links lead to where the client asked");
        self.send(Method::PUT, &format!("{path}{more}"), "", &[], body.to_owned()).await
    }

    async fn get(&self, url: &str) -> Answer {
        self.send(Method::GET, url.strip_prefix("http://naru.localhost:7070").unwrap(), "", &[], "").await
    }

    async fn create(&self, claims: &JobClaims, name: &str) -> Answer {
        let message = json!({"workflow_run_backend_id": claims.run_uid, "workflow_job_run_backend_id": claims.job,
                             "name": name, "version": 4});
        self.twirp(claims, "CreateArtifact", message).await
    }

    async fn finalize(&self, claims: &JobClaims, name: &str, more: Value) -> Answer {
        let mut message = json!({"workflow_run_backend_id": claims.run_uid, "workflow_job_run_backend_id": claims.job,
                                 "name": name});
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.twirp(claims, "FinalizeArtifact", message).await
    }

    async fn artifacts(&self, claims: &JobClaims) -> Vec<Value> {
        let message = json!({"workflowRunBackendId": claims.run_uid, "workflowJobRunBackendId": claims.job});
        self.twirp(claims, "ListArtifacts", message).await.json()["artifacts"].as_array().unwrap().clone()
    }

    async fn save(&self, claims: &JobClaims, key: &str, text: &str) -> Answer {
        let created = self.twirp(claims, "CreateCacheEntry", json!({"key": key, "version": "v"})).await;
        if !created.status.is_success() || created.json()["ok"] == false {
            return created;
        }
        let url = created.json()["signed_upload_url"].as_str().unwrap().to_owned();
        assert_eq!(self.put(&url, "", text).await.status, StatusCode::CREATED);
        let message = json!({"key": key, "version": "v", "size_bytes": text.len().to_string()});
        self.twirp(claims, "FinalizeCacheEntryUpload", message).await
    }

    async fn restore(&self, claims: &JobClaims, key: &str, more: &[&str]) -> Option<(String, String)> {
        let message = json!({"key": key, "restore_keys": more, "version": "v"});
        let found = self.twirp(claims, "GetCacheEntryDownloadURL", message).await.json();
        if found["ok"] == false {
            return None;
        }
        let text = self.get(found["signed_download_url"].as_str().unwrap()).await.text();
        Some((found["matched_key"].as_str().unwrap().to_owned(), text))
    }
}

#[tokio::test]
async fn an_artifact_is_seen_by_the_run_once_it_is_complete() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    let created = it.create(&claims, "dist").await.json();
    assert_eq!(created["ok"], true);
    let url = created["signed_upload_url"].as_str().unwrap();
    assert!(it.artifacts(&claims).await.is_empty());
    for (name, text) in [("Yg%3D%3D", "world"), ("YQ%3D%3D", "hello ")] {
        assert_eq!(
            it.put(url, &format!("&comp=block&blockid={name}"), text).await.status,
            StatusCode::CREATED
        );
    }
    let early = it.finalize(&claims, "dist", json!({})).await;
    assert_eq!(early.status, StatusCode::BAD_REQUEST, "{}", early.text());
    let list = "<BlockList><Latest>YQ==</Latest><Latest>Yg==</Latest></BlockList>";
    assert_eq!(it.put(url, "&comp=blocklist", list).await.status, StatusCode::CREATED);
    let digest = "sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
    let ended = it.finalize(&claims, "dist", json!({"size": "11", "hash": digest})).await.json();
    assert_eq!(ended["ok"], true);
    // The answer was lost on the way: the client asks again.
    assert_eq!(it.finalize(&claims, "dist", json!({"size": "11"})).await.json(), ended);

    let sibling = JobClaims { job: "ci-b".into(), ..claims.clone() };
    let listed = it.artifacts(&sibling).await;
    assert_eq!(
        (&listed[0]["name"], &listed[0]["digest"], &listed[0]["size"]),
        (&json!("dist"), &json!(digest), &json!("11"))
    );
    let message = json!({"workflow_run_backend_id": claims.run_uid, "workflow_job_run_backend_id": "ci-a", "name": "dist"});
    let link = it.twirp(&sibling, "GetSignedArtifactURL", message.clone()).await.json();
    let found = it.get(link["signed_url"].as_str().unwrap()).await;
    assert_eq!(
        (found.text().as_str(), &found.headers["content-type"]),
        ("hello world", &"application/zip".parse().unwrap())
    );

    assert_eq!(
        it.create(&sibling, "dist").await.status,
        StatusCode::CONFLICT,
        "the name is taken in this run"
    );
    assert_eq!(
        it.put(url, "", "other").await.status,
        StatusCode::CONFLICT,
        "and what it names does not change"
    );
    assert!(it.artifacts(&it.claims("shop-2")).await.is_empty(), "another run has its own");
    let denied = it.twirp(&it.claims("shop-2"), "GetSignedArtifactURL", message.clone()).await;
    assert_eq!(denied.status, StatusCode::FORBIDDEN);
    assert_eq!(it.twirp(&claims, "DeleteArtifact", message).await.json()["ok"], true);
    assert!(it.artifacts(&claims).await.is_empty());
    assert_eq!(std::fs::read_dir(it.dir.path().join("blobs")).unwrap().count(), 0, "its bytes are gone, too");
}

#[tokio::test]
async fn an_artifact_that_was_damaged_on_the_way_is_refused() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    let created = it.create(&claims, "dist").await.json();
    it.put(created["signed_upload_url"].as_str().unwrap(), "", "hello worle").await;
    let digest = "sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
    let refused = it.finalize(&claims, "dist", json!({"size": "11", "hash": digest})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text().contains("is not what was sent"), "{}", refused.text());
    assert!(it.artifacts(&claims).await.is_empty());
    assert_eq!(it.create(&claims, "dist").await.status, StatusCode::OK, "the job may try again");
}

#[tokio::test]
async fn names_that_are_no_file_names_are_refused() {
    let it = Fixture::new();
    for bad in ["", "a/b", "..", "a\\b", "a:b", "a\nb", &"a".repeat(256)] {
        assert_eq!(it.create(&it.claims("shop-1"), bad).await.status, StatusCode::BAD_REQUEST, "{bad:?}");
    }
}

#[tokio::test]
async fn a_pod_of_a_lost_node_is_refused_and_what_it_left_is_replaced() {
    let it = Fixture::new();
    let first = it.claims("shop-1");
    let upload = async |claims: &JobClaims, text: &str| {
        let created = it.create(claims, "dist").await;
        assert_eq!(created.status, StatusCode::OK, "{}", created.text());
        it.put(created.json()["signed_upload_url"].as_str().unwrap(), "", text).await;
        let ended = it.finalize(claims, "dist", json!({"size": text.len().to_string()})).await;
        assert_eq!(ended.json()["ok"], true);
    };
    upload(&first, "of the first").await;
    it.runs.0.lock().unwrap().get_mut("shop-1").unwrap()["status"]["jobs"][0]["lost"] =
        json!([{"pod": "shop-1-ci-a", "node": "n", "at": "", "why": "the node `n` is gone"}]);
    let second = JobClaims { attempt: 2, ..first.clone() };
    for (method, message) in [
        ("ListArtifacts", json!({})),
        ("CreateArtifact", json!({"name": "late", "version": 4})),
        ("FinalizeArtifact", json!({"name": "dist", "size": "1"})),
        ("GetCacheEntryDownloadURL", json!({"key": "k", "version": "v"})),
        ("CreateCacheEntry", json!({"key": "k", "version": "v"})),
    ] {
        let refused = it.twirp(&first, method, message).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{method}");
        assert!(refused.text().contains("was given to another pod"), "{method}: {}", refused.text());
    }
    let token = it.key.mint(&first);
    for path in
        ["/_apis/oidc/token", "/api/v3/repos/acme/shop", "/_apis/artifactcache/cache?keys=k&version=v"]
    {
        assert_eq!(
            it.send(Method::GET, path, &token, &[], "").await.status,
            StatusCode::UNAUTHORIZED,
            "{path}"
        );
    }
    assert!(
        it.services.claims(&token).await.unwrap_err().contains("another pod"),
        "so git refuses it as well"
    );
    upload(&second, "of the second").await;
    assert_eq!(it.artifacts(&second).await[0]["size"], "13");
}

#[tokio::test]
async fn a_token_opens_nothing_once_its_job_has_ended() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    assert!(it.artifacts(&claims).await.is_empty());
    let status_of = async |claims: &JobClaims| it.create(claims, "dist").await.status;
    let expired = JobClaims { exp: 1, ..claims.clone() };
    assert_eq!(status_of(&expired).await, StatusCode::UNAUTHORIZED);
    let unknown = JobClaims { run_uid: "of-an-earlier-life".into(), ..claims.clone() };
    assert_eq!(status_of(&unknown).await, StatusCode::UNAUTHORIZED);
    it.runs.0.lock().unwrap().get_mut("shop-1").unwrap()["status"]["jobs"][0]["phase"] = json!("Succeeded");
    assert_eq!(status_of(&claims).await, StatusCode::UNAUTHORIZED);

    let other_key = Fixture { key: TokenKey::new(b"foreign"), ..Fixture::new() };
    let foreign = other_key.create(&other_key.claims("shop-1"), "dist").await;
    assert_eq!(foreign.status, StatusCode::UNAUTHORIZED);
    assert_eq!(serde_json::from_slice::<Value>(&foreign.body).unwrap()["code"], "unauthenticated");
}

#[tokio::test]
async fn a_link_opens_what_it_was_signed_for_and_nothing_else() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    assert!(it.save(&claims, "k", "cached").await.status.is_success());
    let created = it.create(&claims, "dist").await.json();
    let url = created["signed_upload_url"].as_str().unwrap().to_owned();
    let message = json!({"key": "k", "version": "v"});
    let found = it.twirp(&claims, "GetCacheEntryDownloadURL", message).await.json();
    let read_url = found["signed_download_url"].as_str().unwrap().to_owned();
    assert_eq!(it.get(&read_url).await.text(), "cached");

    assert_eq!(it.get(&url).await.status, StatusCode::FORBIDDEN, "a link for writing does not read");
    assert_eq!(it.put(&read_url, "", "x").await.status, StatusCode::FORBIDDEN, "nor the other way");
    for (from, to) in
        [("sp=w", "sp=r"), ("se=", "se=9"), ("rsct=application", "rsct=text"), ("sig=", "sig=0")]
    {
        let tampered = url.replacen(from, to, 1);
        assert_ne!(tampered, url);
        assert_eq!(it.put(&tampered, "", "x").await.status, StatusCode::FORBIDDEN, "{from}");
    }
    let (blob, read_blob) = (url.split('?').next().unwrap(), read_url.split('?').next().unwrap());
    assert_eq!(
        it.get(&read_url.replace(read_blob, blob)).await.status,
        StatusCode::FORBIDDEN,
        "another blob"
    );
}

#[tokio::test]
async fn caches_belong_to_a_ref_and_are_read_downwards() {
    let it = Fixture::new();
    let main = it.claims("shop-1");
    let feature = JobClaims { git_ref: "refs/heads/feature".into(), ..it.claims("shop-2") };
    assert!(it.save(&main, "npm-1", "of main").await.status.is_success());
    assert_eq!(
        it.save(&main, "npm-1", "again").await.status,
        StatusCode::CONFLICT,
        "an entry does not change"
    );
    assert_eq!(it.restore(&feature, "npm-2", &["npm-"]).await, Some(("npm-1".into(), "of main".into())));
    assert!(it.save(&feature, "npm-1", "of feature").await.status.is_success());
    assert_eq!(it.restore(&feature, "npm-1", &[]).await, Some(("npm-1".into(), "of feature".into())));
    assert_eq!(it.restore(&main, "npm-1", &[]).await, Some(("npm-1".into(), "of main".into())));
    let third =
        JobClaims { git_ref: "refs/heads/third".into(), default_ref: "refs/heads/x".into(), ..main.clone() };
    assert_eq!(it.restore(&third, "npm-1", &["n"]).await, None);
    let other = it.claims("other-1");
    assert_eq!(it.restore(&other, "npm-1", &["n"]).await, None, "of another repository");
    let message = json!({"key": "npm-1", "version": "w"});
    let wrong_version = it.twirp(&main, "GetCacheEntryDownloadURL", message).await.json();
    assert_eq!(wrong_version["ok"], false);
}

#[tokio::test]
async fn a_fork_reads_caches_and_writes_none_but_its_own() {
    let it = Fixture::new();
    let main = it.claims("shop-1");
    it.save(&main, "npm", "good").await.json();
    let fork = JobClaims {
        git_ref: "refs/pull/3/merge".into(),
        base_ref: "refs/heads/main".into(),
        untrusted: true,
        ..it.claims("shop-2")
    };
    assert_eq!(it.restore(&fork, "npm", &[]).await, Some(("npm".into(), "good".into())));
    assert!(it.save(&fork, "pip", "poison").await.status.is_success());
    assert_eq!(it.restore(&main, "pip", &["p"]).await, None);
    let on_main = JobClaims { git_ref: "refs/heads/main".into(), ..fork };
    let refused = it.save(&on_main, "pip", "poison").await.json();
    assert!(refused["message"].as_str().unwrap().starts_with("cache write denied:"), "{refused}");
}

#[tokio::test]
async fn what_a_dead_job_has_reserved_is_in_nobodys_way() {
    let it = Fixture::new();
    let (dead, next) = (it.claims("shop-1"), it.claims("shop-2"));
    let message = json!({"key": "npm", "version": "v"});
    it.twirp(&dead, "CreateCacheEntry", message.clone()).await.json();
    assert_eq!(
        it.save(&next, "npm", "x").await.status,
        StatusCode::CONFLICT,
        "the other job still writes it"
    );
    it.runs.0.lock().unwrap().get_mut("shop-1").unwrap()["status"]["jobs"][0]["phase"] = json!("Interrupted");
    assert!(it.save(&next, "npm", "x").await.status.is_success());
    assert_eq!(it.restore(&next, "npm", &[]).await, Some(("npm".into(), "x".into())));
}

#[tokio::test]
async fn caches_stay_within_their_budget() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    let text = "x".repeat(400);
    for key in ["a", "b", "c"] {
        assert!(it.save(&claims, key, &text).await.status.is_success());
    }
    assert_eq!(it.restore(&claims, "a", &[]).await, None, "the oldest is gone");
    assert!(it.restore(&claims, "b", &[]).await.is_some() && it.restore(&claims, "c", &[]).await.is_some());
    let message = json!({"key": "d", "version": "v"});
    let created = it.twirp(&claims, "CreateCacheEntry", message).await.json();
    let refused = it.put(created["signed_upload_url"].as_str().unwrap(), "", &"x".repeat(1001)).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refused.text().contains("--cache-budget"), "{}", refused.text());
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart_and_half_uploads_go_on() {
    let mut it = Fixture::new();
    let claims = it.claims("shop-1");
    it.save(&claims, "k", "cached").await.json();
    let created = it.create(&claims, "dist").await.json();
    let url = created["signed_upload_url"].as_str().unwrap().to_owned();
    it.put(&url, "&comp=block&blockid=YQ%3D%3D", "first ").await;
    // A blob that nothing speaks of: its record was never written.
    let orphan = it.dir.path().join("blobs").join("0".repeat(32));
    std::fs::create_dir(&orphan).unwrap();
    it.services = open(&it.dir, &it.runs, &it.key);
    assert!(!orphan.exists());
    assert_eq!(it.restore(&claims, "k", &[]).await, Some(("k".into(), "cached".into())));
    assert!(it.artifacts(&claims).await.is_empty());
    it.put(&url, "&comp=block&blockid=Yg%3D%3D", "second").await;
    it.put(&url, "&comp=blocklist", "<BlockList><Latest>YQ==</Latest><Latest>Yg==</Latest></BlockList>")
        .await;
    assert_eq!(it.finalize(&claims, "dist", json!({"size": "12"})).await.json()["ok"], true);
}

#[tokio::test]
async fn older_clients_save_and_restore_by_ranges() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    let token = it.key.mint(&claims);
    let base = "/_apis/artifactcache";
    let missing =
        it.send(Method::GET, &format!("{base}/cache?keys=npm-1%2Cnpm-&version=v"), &token, &[], "").await;
    assert_eq!(missing.status, StatusCode::NO_CONTENT);
    let ask = json!({"key": "npm-1", "version": "v", "cacheSize": 10}).to_string();
    let reserved = it.send(Method::POST, &format!("{base}/caches"), &token, &[], ask.clone()).await;
    assert_eq!(reserved.status, StatusCode::CREATED);
    let id = reserved.json()["cacheId"].as_u64().unwrap();
    let rival = it.key.mint(&it.claims("shop-2"));
    let taken = it.send(Method::POST, &format!("{base}/caches"), &rival, &[], ask).await;
    assert_eq!(taken.status, StatusCode::CONFLICT, "somebody else writes it");
    let url = format!("{base}/caches/{id}");
    let foreign = it.send(Method::PATCH, &url, &rival, &[("content-range", "bytes 0-4/*")], "evil!").await;
    assert_eq!(foreign.status, StatusCode::NOT_FOUND);
    for (range, text) in [("bytes 5-9/*", "world"), ("bytes 0-4/*", "hello")] {
        let sent = it.send(Method::PATCH, &url, &token, &[("content-range", range)], text).await;
        assert_eq!(sent.status, StatusCode::NO_CONTENT, "{}", sent.text());
    }
    let early = it.send(Method::POST, &url, &token, &[], json!({"size": 11}).to_string()).await;
    assert_eq!(early.status, StatusCode::BAD_REQUEST, "{}", early.text());
    let committed = it.send(Method::POST, &url, &token, &[], json!({"size": 10}).to_string()).await;
    assert!(committed.status.is_success(), "{}", committed.text());
    let found = it
        .send(Method::GET, &format!("{base}/cache?keys=npm-2%2Cnpm-&version=v"), &token, &[], "")
        .await
        .json();
    assert_eq!(found["cacheKey"], "npm-1");
    assert_eq!(it.get(found["archiveLocation"].as_str().unwrap()).await.text(), "helloworld");
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    assert_eq!(it.twirp(&claims, "MigrateArtifact", json!({})).await.status, StatusCode::NOT_FOUND);
    let url = "/twirp/github.actions.results.api.v1.ArtifactService/ListArtifacts";
    let token = it.key.mint(&claims);
    let binary = it.send(Method::POST, url, &token, &[("content-type", "application/protobuf")], "").await;
    assert_eq!(binary.status, StatusCode::BAD_REQUEST);
    let long = it
        .send(Method::POST, url, &token, &[("content-type", "application/json")], vec![b' '; 300 << 10])
        .await;
    assert_eq!(long.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn actions_come_from_the_first_place_that_has_them() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    let get = async |claims: &JobClaims, name: &str| {
        it.send(Method::GET, &format!("/_apis/actions/{name}"), &it.key.mint(claims), &[], "").await
    };
    let missing = get(&claims, "actions/checkout/v4").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert!(
        missing.text().contains("--actions-dir") && missing.text().contains("actions-checkout"),
        "{}",
        missing.text()
    );
    let ours = get(&claims, "naru/setup-tool/main").await;
    assert_eq!(
        (ours.text().as_str(), ours.headers["x-naru-sha"].to_str().unwrap()),
        ("archive of setup-tool", SHA)
    );

    let vendored = it.dir.path().join("vendored/actions");
    for (dir, text) in [("checkout", "any"), ("checkout@v4", "four")] {
        std::fs::create_dir_all(vendored.join(dir)).unwrap();
        std::fs::write(vendored.join(dir).join("action.yml"), text).unwrap();
    }
    let content = |answer: &Answer| {
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&answer.body[..]));
        let mut text = String::new();
        std::io::Read::read_to_string(&mut tar.entries().unwrap().next().unwrap().unwrap(), &mut text)
            .unwrap();
        text
    };
    assert_eq!(content(&get(&claims, "actions/checkout/v4").await), "four");
    assert_eq!(content(&get(&claims, "actions/checkout/releases/v5").await), "any");
    for bad in ["..%2f..%2fetc/passwd/v4", ".git/x/v4", "actions/checkout/..%2f..%2fx"] {
        assert!(get(&claims, bad).await.status.is_client_error(), "{bad}");
    }
    let fork = JobClaims { untrusted: true, ..claims.clone() };
    assert_eq!(get(&fork, "naru/setup-tool/main").await.status, StatusCode::FORBIDDEN);
    assert_eq!(get(&fork, "naru/shop/main").await.status, StatusCode::OK);
    let nobody = it.send(Method::GET, "/_apis/actions/naru/shop/main", "", &[], "").await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_id_token_needs_its_permission() {
    let it = Fixture::new();
    let mut claims = it.claims("shop-1");
    let url = "/_apis/oidc/token?x=1&audience=sts";
    let ask = async |claims: &JobClaims| it.send(Method::GET, url, &it.key.mint(claims), &[], "").await;
    let refused = ask(&claims).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.text().contains("id-token: write"), "{}", refused.text());
    claims.permissions.insert("id-token".into(), "write".into());
    assert_eq!(ask(&claims).await.json()["value"].as_str().unwrap().split('.').count(), 3);
    let fork = JobClaims { untrusted: true, ..claims };
    assert_eq!(ask(&fork).await.status, StatusCode::FORBIDDEN);
    let known = it.send(Method::GET, "/.well-known/openid-configuration", "", &[], "").await.json();
    assert_eq!(known["issuer"], "https://naru.example.com");
    assert_eq!(known["jwks_uri"], "https://naru.example.com/.well-known/jwks");
    let keys = it.send(Method::GET, "/.well-known/jwks", "", &[], "").await.json();
    assert_eq!((&keys["keys"][0]["alg"], keys["keys"][0].get("d")), (&json!("ES256"), None));
}
