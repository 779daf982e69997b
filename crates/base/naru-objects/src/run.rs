//! `Run`: one push and what the pipeline made of it. Written by code, carried out by pipeline.

use crate::Meta;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    pub api_version: String,
    pub kind: String,
    pub metadata: Meta,
    pub spec: RunSpec,
    #[serde(default)]
    pub status: RunStatus,
}

/// What was pushed. Never changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSpec {
    /// The repository's name, without `.git`. Also the app's name.
    pub repository: String,
    /// The full ref, such as `refs/heads/main`.
    pub git_ref: String,
    /// The commit, 40 hex digits.
    pub sha: String,
    /// The commit that the ref named before the push; all zeros for a new ref.
    #[serde(default)]
    pub before: String,
    pub change: String,
    /// The event that caused the run, as GitHub names it.
    pub event: String,
    #[serde(default)]
    pub author: String,
    /// First line of the commit message.
    #[serde(default)]
    pub message: String,
    /// When the commit was made (RFC 3339): lead time starts here.
    #[serde(default)]
    pub committed_at: String,
    /// When the push was accepted (RFC 3339).
    pub pushed_at: String,
    /// Whether a successful run goes on to a release: true on the default branch.
    #[serde(default)]
    pub deploy: bool,
    /// The event as its sender describes it, where it says more than the fields above (`github.event`).
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub payload: Value,
    /// The files that the event changed; `None` if that is not known or too many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Vec<String>>,
    /// Only this workflow file is meant (a dispatch, a schedule); empty is every one that asks for the event.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workflow: String,
    /// What a dispatch gave.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub inputs: Map<String, Value>,
    /// The cron line that was due.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub schedule: String,
    /// Of a pull request: the branch that it wants into, and the one that it comes from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub base_ref: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub head_ref: String,
    /// The change comes from somebody who may not write to the repository: no secrets, a token that reads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
    /// The run that this one does again, and which of its jobs; those not named are taken over as they ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<Again>,
}

/// A run done again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Again {
    pub run: String,
    /// Counts from 2.
    pub attempt: u32,
    /// Keys of jobs; empty is all.
    pub jobs: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    /// The files could not be honoured; nothing was run. See `diagnostics`.
    Refused,
    /// Stopped by somebody, or in favour of a newer run of its concurrency group.
    Cancelled,
    /// The machine lost a job on the way and nobody knows how it would have ended.
    Interrupted,
}

impl RunPhase {
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RunStatus {
    pub phase: RunPhase,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub finished_at: String,
    /// Counts the runs of a repository.
    pub number: u64,
    /// What people see of it, where the workflow says (`run-name`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// The workflow files that apply to this event.
    pub workflows: Vec<String>,
    /// Its places in concurrency groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupPlace>,
    pub jobs: Vec<JobStatus>,
    pub diagnostics: Vec<Diagnostic>,
}

/// A place in a concurrency group of the repository.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupPlace {
    pub group: String,
    /// The workflow file or the job's key that asked for it.
    pub member: String,
    /// It runs; else it waits.
    pub holds: bool,
}

/// One finding in a file, with its place. Lines and columns count from 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Diagnostic {
    /// `error` or `warning`.
    pub severity: String,
    pub file: String,
    pub line: u32,
    pub column: u32,
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Skipped,
    Cancelled,
    Interrupted,
}

impl JobPhase {
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobStatus {
    /// Unique within the run: the job's id, with the matrix combination's index if it has one.
    pub key: String,
    /// What people see: the job's `name:` or id, with the matrix values.
    pub name: String,
    /// The key of the job that this one stands behind: a call, or a matrix that other jobs' outputs made.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub behind: String,
    pub phase: JobPhase,
    /// Why it was asked to end before its end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stopping: String,
    /// Where it deploys to, and where that is seen.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub environment: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub url: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// Where the pod runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The pods that had the job before and were lost with their nodes. Whatever comes of them counts for nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LostPod>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub finished_at: String,
    pub steps: Vec<StepStatus>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outputs: BTreeMap<String, String>,
    /// What the job's steps wrote to the step summary, in Markdown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// What steps remarked about files (`::error file=...`), the first hundred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub annotations: Vec<Diagnostic>,
}

impl JobStatus {
    /// Counts the pods that the job was given to, from 1.
    pub fn attempt(&self) -> u32 {
        u32::try_from(self.lost.len()).map_or(u32::MAX, |it| it.saturating_add(1))
    }
}

/// A pod that was lost with its node, and its job taken back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LostPod {
    pub pod: String,
    pub node: String,
    /// When that was noticed.
    pub at: String,
    pub why: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StepStatus {
    pub name: String,
    pub phase: JobPhase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub finished_at: String,
}
