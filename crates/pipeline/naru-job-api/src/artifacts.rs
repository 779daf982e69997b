//! Artifacts: files that a run leaves, by name. One name is one artifact of a run; it does not change once
//! its upload has ended.

use crate::auth::Job;
use crate::blobs::{Blobs, Digest};
use crate::problem::{Kind, Problem, Result, problem};
use crate::records::{self, Records};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::PathBuf;
use tokio::sync::Mutex;

/// A name's length, and how many artifacts a job may leave: GitHub's limit is 500 per job.
const NAME_BYTES_MAX: usize = 255;
const PER_JOB_MAX: usize = 500;

/// Nobody may ask for a longer life.
const RETENTION_DAYS_MAX: u32 = 400;

/// An upload that nobody has ended by then was given up: no job runs for longer.
const UPLOAD_LIFE: SignedDuration = SignedDuration::from_hours(48);

pub const ZIP: &str = "application/zip";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    pub repository: String,
    /// Name and uid of the run, and the job that made it.
    pub run: String,
    pub run_uid: String,
    pub job: String,
    /// Which of the pods that the job was given to.
    #[serde(default)]
    pub attempt: u32,
    pub name: String,
    pub media_type: String,
    pub blob: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub git_ref: String,
    pub sha: String,
    /// Once the upload has ended.
    pub ended: Option<Ended>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    pub at: Timestamp,
    pub bytes: u64,
    /// `sha256:` and 64 hex digits.
    pub digest: String,
}

pub struct Artifacts {
    records: Mutex<Records<Artifact>>,
    retention_days: u32,
}

/// What a job asks for.
pub struct NewArtifact {
    pub name: String,
    pub media_type: String,
    pub expires_at: Option<Timestamp>,
}

impl Artifacts {
    pub fn open(dir: PathBuf, retention_days: u32) -> std::io::Result<Self> {
        let retention_days = retention_days.clamp(1, RETENTION_DAYS_MAX);
        Ok(Self { records: Mutex::new(Records::open(dir)?), retention_days })
    }

    pub fn blobs(&self) -> HashSet<String> {
        let records = self.records.try_lock().expect("nobody else has it while it is opened");
        records.iter().map(|(_, it)| it.blob.clone()).collect()
    }

    /// Begins an upload; returns the blob to write to.
    pub async fn create(
        &self,
        blobs: &Blobs,
        job: &Job,
        new: NewArtifact,
        now: Timestamp,
    ) -> Result<Artifact> {
        check_name(&new.name)?;
        let claims = &job.claims;
        let mut records = self.records.lock().await;
        let of_run = || records.iter().filter(|(_, it)| it.run_uid == claims.run_uid);
        // What came of a pod that was lost with its node counts for nothing.
        let is_lost = |it: &Artifact| it.job == claims.job && it.attempt.max(1) < claims.attempt.max(1);
        if of_run().any(|(_, it)| it.ended.is_some() && it.name == new.name && !is_lost(it)) {
            return Err(exists(&new.name));
        }
        if of_run().filter(|(_, it)| it.job == claims.job).count() >= PER_JOB_MAX {
            return Err(problem(Kind::TooLarge, format!("a job leaves at most {PER_JOB_MAX} artifacts")));
        }
        // The job's own earlier try of the same name was given up.
        let given_up = of_run().find(|(_, it)| it.job == claims.job && it.name == new.name);
        let given_up = given_up.map(|(id, it)| (id, it.blob.clone()));
        let days = SignedDuration::from_hours(24 * i64::from(self.retention_days));
        let longest = now + SignedDuration::from_hours(24 * i64::from(RETENTION_DAYS_MAX));
        let artifact = Artifact {
            repository: claims.repository.clone(),
            run: claims.run.clone(),
            run_uid: claims.run_uid.clone(),
            job: claims.job.clone(),
            attempt: claims.attempt,
            name: new.name,
            media_type: new.media_type,
            blob: blobs.create()?,
            created_at: now,
            expires_at: new.expires_at.unwrap_or(now + days).min(longest),
            git_ref: claims.git_ref.clone(),
            sha: claims.identity.sha.clone(),
            ended: None,
        };
        let id = records.next_id();
        records.put(id, artifact.clone()).map_err(not_written)?;
        if let Some((id, blob)) = given_up {
            records.remove(id).map_err(not_written)?;
            blobs.remove(&blob).await;
        }
        Ok(artifact)
    }

    /// Ends the job's upload. What the client says about size and digest must be what has arrived.
    pub async fn finalize(
        &self,
        blobs: &Blobs,
        job: &Job,
        name: &str,
        bytes: Option<u64>,
        digest: Option<&str>,
        now: Timestamp,
    ) -> Result<u64> {
        let mine = |_: u64, it: &Artifact| {
            it.run_uid == job.claims.run_uid && it.job == job.claims.job && it.name == name
        };
        let found = self.records.lock().await.find(mine);
        let Some((id, mut artifact)) = found else {
            return Err(problem(Kind::NotFound, format!("no upload of an artifact `{name}` is under way")));
        };
        if let Some(ended) = &artifact.ended {
            // Said twice, because the first answer was lost on the way.
            let is_same =
                bytes.is_none_or(|it| it == ended.bytes) && digest.is_none_or(|it| it == ended.digest);
            return if is_same { Ok(id) } else { Err(exists(name)) };
        }
        let (stored_bytes, stored_digest) = blobs.seal(&artifact.blob, Digest::Sha256).await?;
        let stored_digest = format!("sha256:{}", stored_digest.unwrap_or_default());
        let size_differs = bytes.is_some_and(|it| it != stored_bytes);
        let digest_differs = digest.is_some_and(|it| it.contains(':') && *it != *stored_digest);
        if size_differs || digest_differs {
            self.remove(blobs, id).await?;
            let message = format!(
                "what has arrived of `{name}` is not what was sent: {stored_bytes} bytes with {stored_digest}; \
                 upload it again"
            );
            return Err(problem(Kind::Invalid, message));
        }
        let mut records = self.records.lock().await;
        if records.get(id).is_none() {
            return Err(problem(Kind::NotFound, format!("the artifact `{name}` was deleted meanwhile")));
        }
        let rival = |(other, it): (u64, &Artifact)| {
            other != id && it.run_uid == artifact.run_uid && it.name == name && it.ended.is_some()
        };
        if records.iter().any(rival) {
            drop(records);
            self.remove(blobs, id).await?;
            return Err(exists(name));
        }
        artifact.ended = Some(Ended { at: now, bytes: stored_bytes, digest: stored_digest });
        records.put(id, artifact).map_err(not_written)?;
        Ok(id)
    }

    /// The finished artifacts for which a condition holds, oldest first.
    pub async fn list(&self, now: Timestamp, holds: impl Fn(u64, &Artifact) -> bool) -> Vec<(u64, Artifact)> {
        let records = self.records.lock().await;
        let there = |(id, it): &(u64, &Artifact)| it.ended.is_some() && it.expires_at > now && holds(*id, it);
        records.iter().filter(there).map(|(id, it)| (id, it.clone())).collect()
    }

    pub async fn remove(&self, blobs: &Blobs, id: u64) -> Result<()> {
        records::forget(&self.records, id, |it| &it.blob, blobs).await.map_err(not_written)
    }

    pub async fn tidy(&self, blobs: &Blobs, now: Timestamp) {
        let old: Vec<u64> = {
            let records = self.records.lock().await;
            let is_old = |it: &Artifact| {
                it.expires_at <= now || it.ended.is_none() && it.created_at + UPLOAD_LIFE <= now
            };
            records.iter().filter(|(_, it)| is_old(it)).map(|(id, _)| id).collect()
        };
        for id in old {
            if let Err(problem) = self.remove(blobs, id).await {
                tracing::warn!(%problem, "an artifact that has expired stays");
            }
        }
    }
}

fn exists(name: &str) -> Problem {
    problem(Kind::Exists, format!("an artifact with this name already exists on the workflow run: {name}"))
}

fn not_written(error: std::io::Error) -> Problem {
    Problem::internal("an artifact cannot be noted down", &error)
}

/// The characters that the official clients refuse, too: a name becomes a directory when it is downloaded.
fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(problem(Kind::Invalid, format!("an artifact's name has 1 to {NAME_BYTES_MAX} bytes")));
    }
    let bad = |it: char| it.is_control() || "\":<>|*?\\/".contains(it);
    match name.chars().find(|it| bad(*it)) {
        _ if name == "." || name == ".." => Err(problem(Kind::Invalid, "an artifact's name is no directory")),
        Some(it) => Err(problem(Kind::Invalid, format!("an artifact's name may not hold {it:?}: {name}"))),
        None => Ok(()),
    }
}
