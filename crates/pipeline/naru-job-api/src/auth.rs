//! Whose request it is. A job shows its token; its claims are believed as long as the job runs.

use crate::Inner;
use crate::problem::{Kind, Problem, Result, problem};
use http::{HeaderMap, header};
use jiff::Timestamp;
use naru_objects::{JobStatus, Run};
use naru_token::{Invalid, JobClaims, credential};

/// A run that was done again reads the artifacts of at most so many earlier attempts.
const ATTEMPTS_MAX: usize = 50;

/// A job that runs.
pub struct Job {
    pub claims: JobClaims,
    /// The run's uid, then those of the attempts before it.
    pub family: Vec<String>,
}

/// Whoever asks for what is not only a job's own.
pub enum Caller {
    Job(Box<Job>),
    /// Somebody with the push token.
    Admin,
}

impl Caller {
    /// Whether a repository is any business of the caller's.
    pub fn sees(&self, repository: &str) -> bool {
        match self {
            Self::Job(it) => it.claims.repository == repository,
            Self::Admin => true,
        }
    }

    pub fn may(&self, scope: &str, right: &str) -> Result<()> {
        let Self::Job(it) = self else { return Ok(()) };
        let may = match right {
            // A repository's name and default branch are in every token.
            _ if scope == "metadata" => true,
            "read" => it.claims.may_read(scope),
            _ => it.claims.may_write(scope),
        };
        match may {
            true => Ok(()),
            false => {
                let why = if it.claims.untrusted { ", which a change from outside never gets" } else { "" };
                let message = format!(
                    "Resource not accessible by integration: this needs `{scope}: {right}` among the job's permissions{why}"
                );
                Err(problem(Kind::Denied, message))
            }
        }
    }

    /// Whom a run that the caller starts is noted under.
    pub fn name(&self) -> String {
        match self {
            Self::Job(it) if !it.claims.identity.actor.is_empty() => it.claims.identity.actor.clone(),
            Self::Job(it) => it.claims.run.clone(),
            Self::Admin => "naru".to_owned(),
        }
    }
}

impl Inner {
    /// A job, or somebody with the push token.
    pub async fn caller(&self, headers: &HeaderMap) -> Result<Caller> {
        let token = token_of(headers).ok_or_else(no_token)?;
        let digest = |it: &str| ring::digest::digest(&ring::digest::SHA256, it.as_bytes());
        // Digests are compared, so that the time it takes tells nothing about the token.
        if digest(&token).as_ref() == digest(&self.admin_token).as_ref() {
            return Ok(Caller::Admin);
        }
        Ok(Caller::Job(Box::new(self.job_of(&token).await?)))
    }

    /// The job that asks.
    pub async fn job(&self, headers: &HeaderMap) -> Result<Job> {
        self.job_of(&token_of(headers).ok_or_else(no_token)?).await
    }

    /// The job that a token is of.
    pub async fn job_of(&self, token: &str) -> Result<Job> {
        let claims = self.key.verify(token, Timestamp::now().as_second()).map_err(invalid)?;
        let Some(run) = self.run(&claims.run).await?.filter(|it| it.metadata.uid == claims.run_uid) else {
            return Err(problem(Kind::Unauthenticated, "the run of this token is gone"));
        };
        if is_fenced(&run, &claims.job, claims.attempt) {
            return Err(problem(
                Kind::Unauthenticated,
                "the job of this token was given to another pod, because the node of this one was lost",
            ));
        }
        if has_ended(&run, &claims.job) {
            return Err(problem(
                Kind::Unauthenticated,
                "the job of this token has ended, and the token with it",
            ));
        }
        let mut family = vec![claims.run_uid.clone()];
        let mut again = run.spec.again;
        while let Some(earlier) = again.filter(|_| family.len() < ATTEMPTS_MAX) {
            let Some(run) = self.run(&earlier.run).await? else { break };
            family.push(run.metadata.uid);
            again = run.spec.again;
        }
        Ok(Job { claims, family })
    }

    /// Reserves a key of the caches for a job's upload. What a job that has ended has left half done is in
    /// nobody's way.
    pub async fn reserve_cache(
        &self,
        claims: &JobClaims,
        key: &str,
        version: &str,
        bytes: Option<u64>,
        now: Timestamp,
    ) -> Result<(u64, String)> {
        let mut ended = self.caches.rival(claims, key, version).await;
        if let Some(rival) = &ended {
            let run = self.run(&rival.run).await?.filter(|it| it.metadata.uid == rival.run_uid);
            if run.is_some_and(|it| !has_ended(&it, &rival.job)) {
                ended = None;
            }
        }
        self.caches.reserve(&self.blobs, claims, key, version, bytes, ended.as_ref(), now).await
    }

    async fn run(&self, name: &str) -> Result<Option<Run>> {
        let found = self.runs.get(name).await.map_err(|it| {
            tracing::error!(error = it, "a run cannot be looked at");
            problem(Kind::Internal, "the run cannot be looked at; try again")
        })?;
        found
            .map(serde_json::from_value)
            .transpose()
            .map_err(|it| Problem::internal("the run cannot be understood", &it))
    }
}

/// Whether the job was given to another pod since.
fn is_fenced(run: &Run, job: &str, attempt: u32) -> bool {
    run.status.jobs.iter().find(|it| it.key == job).is_some_and(|it| it.attempt() != attempt.max(1))
}

fn has_ended(run: &Run, job: &str) -> bool {
    let is_it = |it: &&JobStatus| it.key == job;
    run.status.phase.is_final() || run.status.jobs.iter().find(is_it).is_some_and(|it| it.phase.is_final())
}

fn token_of(headers: &HeaderMap) -> Option<String> {
    credential(headers.get(header::AUTHORIZATION)?.to_str().ok()?)
}

fn no_token() -> Problem {
    problem(Kind::Unauthenticated, "a job's token is needed, as `Authorization: Bearer <token>`")
}

fn invalid(it: Invalid) -> Problem {
    problem(Kind::Unauthenticated, it.to_string())
}

/// The URL under which the client reached us: links in answers must work for it, in a pod and outside.
pub fn base_url(headers: &HeaderMap, uri: &http::Uri) -> String {
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok());
    let host = host.or_else(|| uri.authority().map(http::uri::Authority::as_str)).unwrap_or("localhost");
    format!("http://{host}")
}
