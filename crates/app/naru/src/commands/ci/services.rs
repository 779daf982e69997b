//! What actions of a local run talk to: artifacts, caches, and the files of actions, served by this very
//! process on the loopback interface for as long as the run lasts. Caches stay for the next run.

use crate::adapters::Repositories;
use crate::error::{Error, Result};
use async_trait::async_trait;
use naru_job_api::{Config, Runs, Services};
use naru_runner::local::Facts;
use naru_token::{JobClaims, TokenKey};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// What all caches of local runs together may take.
const CACHE_BYTES_MAX: u64 = 10 << 30;

/// Artifacts of local runs are looked at right after; nobody asks for them later.
const ARTIFACT_DAYS: u32 = 1;

/// A run is over by then, and its token opens nothing more.
const TOKEN_SECONDS: i64 = 24 * 3600;

/// The name of the one run that there is.
const RUN: &str = "local";

/// The services of one run; they end with it.
pub struct LocalServices {
    /// Where they are.
    pub url: String,
    /// What actions find in their environment.
    pub variables: BTreeMap<String, String>,
    task: tokio::task::JoinHandle<()>,
    _lock: Option<Flock<File>>,
}

impl Drop for LocalServices {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts them; `kept` is where caches stay, `scratch` what is used while another run has that.
pub async fn start(
    facts: &Facts,
    kept: &Path,
    scratch: &Path,
    actions_from: Option<String>,
) -> Result<LocalServices> {
    std::fs::create_dir_all(kept)?;
    let lock = Flock::lock(File::create(kept.join("lock"))?, FlockArg::LockExclusiveNonblock).ok();
    let dir = if lock.is_some() { kept.to_owned() } else { scratch.join("services") };
    let uid = uuid();
    let key = TokenKey::new(uuid().as_bytes());
    let now = jiff::Timestamp::now().as_second();
    let token = key.mint(&JobClaims {
        repository: facts.repository.clone(),
        run: RUN.into(),
        run_uid: uid.clone(),
        job: RUN.into(),
        permissions: ["actions", "contents", "metadata"].map(|it| (it.to_owned(), "write".to_owned())).into(),
        git_ref: facts.git_ref.clone(),
        default_ref: facts.git_ref.clone(),
        iat: now,
        exp: now + TOKEN_SECONDS,
        ..JobClaims::default()
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let run = json!({
        "apiVersion": "naru.dev/v1", "kind": "Run", "metadata": {"name": RUN, "uid": uid},
        "spec": {"repository": facts.repository, "gitRef": facts.git_ref, "sha": facts.sha, "change": "c-local",
                 "event": "push", "pushedAt": ""},
        "status": {"phase": "Running"},
    });
    let services = Services::open(Config {
        dir,
        key,
        admin_token: uuid(),
        runs: Arc::new(OneRun(run)),
        code: Arc::new(Repositories(scratch.join("git"))),
        owner: facts.owner.clone(),
        public_url: url.clone(),
        actions_dir: None,
        actions_from,
        cache_bytes_max: CACHE_BYTES_MAX,
        retention_days: ARTIFACT_DAYS,
    })
    .map_err(|it| Error::new(format!("cannot open the caches of local runs in {}: {it}", kept.display())))?;
    let router = services.router();
    let task = tokio::spawn(async move {
        // It serves until it is dropped; a connection that breaks is the action's to report.
        let _ = axum::serve(listener, router).await;
    });
    let variables = [
        ("ACTIONS_RUNTIME_TOKEN", token),
        ("ACTIONS_RUNTIME_URL", format!("{url}/")),
        ("ACTIONS_RESULTS_URL", format!("{url}/")),
        ("ACTIONS_CACHE_URL", format!("{url}/")),
        ("ACTIONS_CACHE_SERVICE_V2", "true".to_owned()),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
    Ok(LocalServices { url, variables, task, _lock: lock })
}

/// Random, in the shape that uids have.
fn uuid() -> String {
    let bytes: [u8; 16] = rand::random();
    let hex: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The run that is under way, and no other.
struct OneRun(Value);

#[async_trait]
impl Runs for OneRun {
    async fn get(&self, name: &str) -> Result<Option<Value>, String> {
        Ok((name == RUN).then(|| self.0.clone()))
    }

    async fn list(&self, _: &str) -> Result<Vec<Value>, String> {
        Ok(vec![self.0.clone()])
    }

    async fn workflows(&self, _: &str) -> Result<Vec<Value>, String> {
        Ok(Vec::new())
    }

    async fn create(&self, _: &Value) -> Result<(), String> {
        Err("a local run starts no other: that needs the daemon".into())
    }
}
