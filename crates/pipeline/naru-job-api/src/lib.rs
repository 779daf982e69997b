//! The HTTP services that a job's steps talk to, as the official actions speak to them: artifacts, caches,
//! and the links under which both are uploaded and downloaded; id-tokens; the files of actions; and a part
//! of the REST interface.
//!
//! Who may do what is in the job's token ([`naru_token`]) and nowhere else: a job writes artifacts of its
//! own run and caches of its own ref, and reads what its ref may read. A token whose job has ended opens
//! nothing.
//!
//! Everything is in files of one directory: blobs in pieces ([`blobs`]), and one small JSON file per
//! artifact and cache entry ([`records`]). What was acknowledged is on the disk; what was not is removed.
//!
//! Formats: the messages are those that the published clients `@actions/artifact` and `@actions/cache`
//! carry with them; the upload links speak the part of Azure's Blob REST interface that these clients use.

mod actions;
mod artifacts;
mod auth;
mod azure;
mod blobs;
mod cache;
mod cache_v1;
mod code;
mod oidc;
mod problem;
mod records;
mod rest;
mod runs;
mod twirp;
mod upstream;

#[cfg(test)]
mod services_test;

pub use code::{Bytestream, Changed, Code, Commit, Comparison, Content, Row};
pub use runs::{Runs, RunsOfClient};

use axum::Router;
use axum::routing::{any, get, patch, post};
use naru_token::{JobClaims, TokenKey};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What a caller outside of the server must know of it.
pub struct Config {
    /// Everything is below this directory.
    pub dir: PathBuf,
    /// Verifies the tokens of jobs, and signs links.
    pub key: TokenKey,
    /// Whoever has it may do everything that a job may, in every repository.
    pub admin_token: String,
    pub runs: Arc<dyn Runs>,
    pub code: Arc<dyn Code>,
    /// The owner of all repositories here, as clients of GitHub want one: `naru` of `naru/shop`.
    pub owner: String,
    /// The URL under which others reach us: the issuer of id-tokens.
    pub public_url: String,
    /// Where vendored actions are: `<owner>/<name>` or `<owner>/<name>@<ref>` below it.
    pub actions_dir: Option<PathBuf>,
    /// The git host that is asked for actions which are not here.
    pub actions_from: Option<String>,
    /// What all caches together may take; those not used for the longest go first.
    pub cache_bytes_max: u64,
    /// How long an artifact is kept that asks for nothing else.
    pub retention_days: u32,
}

/// The services; cheap to clone.
#[derive(Clone)]
pub struct Services {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub key: TokenKey,
    pub admin_token: String,
    pub runs: Arc<dyn Runs>,
    pub code: Arc<dyn Code>,
    pub owner: String,
    pub public_url: String,
    pub actions_dir: Option<PathBuf>,
    /// Archives of vendored actions, made again by each process.
    pub packed_dir: PathBuf,
    pub upstream: upstream::Upstream,
    pub id_key: oidc::IdKey,
    pub blobs: blobs::Blobs,
    pub artifacts: artifacts::Artifacts,
    pub caches: cache::Caches,
}

pub(crate) type Shared = Arc<Inner>;

/// How often what has expired is removed.
const TIDY_PERIOD: Duration = Duration::from_mins(10);

impl Services {
    /// Opens what is in the directory. Uploads that were under way go on.
    pub fn open(config: Config) -> std::io::Result<Self> {
        let blobs = blobs::Blobs::open(config.dir.join("blobs"))?;
        let artifacts = artifacts::Artifacts::open(config.dir.join("artifacts"), config.retention_days)?;
        let caches = cache::Caches::open(config.dir.join("caches"), config.cache_bytes_max)?;
        let mut known = artifacts.blobs();
        known.extend(caches.blobs());
        blobs.remove_unknown(|id| known.contains(id));
        let packed_dir = config.dir.join("packed");
        if packed_dir.exists() {
            std::fs::remove_dir_all(&packed_dir)?;
        }
        let inner = Inner {
            key: config.key,
            admin_token: config.admin_token,
            runs: config.runs,
            code: config.code,
            owner: config.owner,
            public_url: config.public_url.trim_end_matches('/').to_owned(),
            actions_dir: config.actions_dir,
            packed_dir,
            upstream: upstream::Upstream::new(config.dir.join("actions"), config.actions_from),
            id_key: oidc::IdKey::open(&config.dir.join("id-key"))?,
            blobs,
            artifacts,
            caches,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Everything that is served, to be merged into a server.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/twirp/github.actions.results.api.v1.ArtifactService/{method}", post(twirp::artifacts))
            .route("/twirp/github.actions.results.api.v1.CacheService/{method}", post(twirp::caches))
            .route("/_apis/results/blobs/{id}", any(azure::handle))
            .route("/_apis/artifactcache/cache", get(cache_v1::find))
            .route("/_apis/artifactcache/caches", get(cache_v1::list).post(cache_v1::reserve))
            .route("/_apis/artifactcache/caches/{id}", patch(cache_v1::upload).post(cache_v1::commit))
            .route("/_apis/actions/{owner}/{name}/{*ref}", get(actions::handle))
            .route("/_apis/oidc/token", get(oidc::token))
            .route("/api/v3/{*path}", any(rest::handle))
            .route("/.well-known/openid-configuration", get(oidc::discovery))
            .route("/.well-known/jwks", get(oidc::keys))
            .with_state(self.inner.clone())
    }

    /// Whose a token is, if its job runs; or why it opens nothing.
    pub async fn claims(&self, token: &str) -> Result<JobClaims, String> {
        self.inner.job_of(token).await.map(|it| it.claims).map_err(|it| it.message)
    }

    /// Removes what has expired or was given up, for as long as the task runs.
    pub fn tidy(&self) -> tokio::task::JoinHandle<()> {
        let inner = self.inner.clone();
        tokio::spawn(async move {
            loop {
                let now = jiff::Timestamp::now();
                inner.artifacts.tidy(&inner.blobs, now).await;
                inner.caches.tidy(&inner.blobs, now).await;
                tokio::time::sleep(TIDY_PERIOD).await;
            }
        })
    }
}
