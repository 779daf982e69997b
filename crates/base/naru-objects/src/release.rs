//! `Release`: one immutable set of image digests and rendered objects, and how its rollout went.
//! Written by deploy, judged by monitor, carried out by rollout.

use crate::Meta;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    pub api_version: String,
    pub kind: String,
    pub metadata: Meta,
    pub spec: ReleaseSpec,
    #[serde(default)]
    pub status: ReleaseStatus,
}

/// What is released. Never changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseSpec {
    pub app: String,
    /// Counts up from 1 within the app.
    pub number: u64,
    pub change: String,
    #[serde(default)]
    pub sha: String,
    /// Image reference by digest, per service.
    pub images: BTreeMap<String, String>,
    /// The rendered objects, complete: what rollout applies, with the weight of a route left at its start.
    pub objects: Vec<Value>,
    pub services: Vec<ServiceRollout>,
    /// The release whose content this one brings back, if it is a rollback on request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback_of: Option<String>,
}

/// How one service of the release comes into traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRollout {
    pub service: String,
    /// The Deployment and the Service of this release, named alike.
    pub workload: String,
    /// The HTTPRoute that carries the weights; none for a service without a host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    pub replicas: u32,
    pub port: u16,
    pub strategy: Strategy,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Strategy {
    /// New pods come up one after the other and take over as they become ready; no judgement.
    Rolling,
    /// Traffic moves by these percentages; each step is judged for `window_seconds` before the next.
    Canary { steps: Vec<u32>, window_seconds: u32 },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReleasePhase {
    #[default]
    Pending,
    /// Objects are applied; the new pods come up or traffic is moving.
    Progressing,
    /// It has all the traffic.
    Promoted,
    /// It was judged bad; the release before it has all the traffic again.
    RolledBack,
    /// It never got ready; the release before it never lost traffic.
    Failed,
    /// A later release took its place.
    Superseded,
}

impl ReleasePhase {
    pub fn is_final(self) -> bool {
        matches!(self, Self::RolledBack | Self::Failed | Self::Superseded)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReleaseStatus {
    pub phase: ReleasePhase,
    /// The release that had the traffic when this one began.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub previous: String,
    /// Index of the canary step that is under way; `steps.len()` once all are passed.
    pub step: u32,
    /// The share of traffic that this release has now, in per cent.
    pub weight: u32,
    /// When the current step's weight was set (RFC 3339); a verdict on the step counts from here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub step_started_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    /// When the first request could reach it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub live_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub promoted_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub finished_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Written by monitor, read by rollout: the loop's one backward edge.
    pub verdicts: Vec<Verdict>,
    /// What happened when, for people and for the walk of a change.
    pub history: Vec<HistoryEntry>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HistoryEntry {
    pub at: String,
    pub what: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VerdictOutcome {
    Good,
    Bad,
    /// Too few requests to tell within the window.
    #[default]
    Inconclusive,
}

/// The judgement of one canary step: the new version against the old over the same window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Verdict {
    pub step: u32,
    pub weight: u32,
    pub at: String,
    pub outcome: VerdictOutcome,
    pub why: String,
    pub requests_new: u64,
    pub requests_old: u64,
    /// Share of answers below 500, 0 to 1.
    pub success_new: f64,
    pub success_old: f64,
    /// 95th percentile in seconds.
    pub latency_new: f64,
    pub latency_old: f64,
}
