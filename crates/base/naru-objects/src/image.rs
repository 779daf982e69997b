//! `Image`: one Dockerfile to build at one commit, and the image that came of it. The request is written
//! by deploy (which reads `naru.yaml`), the outcome by package.

use crate::Meta;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    pub api_version: String,
    pub kind: String,
    pub metadata: Meta,
    pub spec: ImageSpec,
    #[serde(default)]
    pub status: ImageStatus,
}

/// What to build. Never changes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    pub repository: String,
    /// The commit, 40 hex digits.
    pub sha: String,
    pub change: String,
    /// The service of `naru.yaml` that the image is for.
    pub service: String,
    /// The build context, relative to the repository's root.
    pub context: String,
    /// The Dockerfile, relative to the context.
    pub dockerfile: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default)]
    pub args: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePhase {
    #[default]
    Pending,
    Building,
    Ready,
    Failed,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageStatus {
    pub phase: ImagePhase,
    /// What a pod may name: `naru.local/<repository>/<service>@sha256:...`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reference: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    pub size_bytes: u64,
    pub layers: u32,
    pub cached_steps: u32,
    pub total_steps: u32,
    pub advice: Vec<ImageAdvice>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub finished_at: String,
}

/// What would make the image smaller or safer, and what to write instead.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageAdvice {
    /// Line of the Dockerfile, from 1; 0 when it concerns the whole file.
    pub line: u32,
    pub message: String,
    pub hint: String,
}
