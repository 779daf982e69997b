//! `RepositorySettings`: what the people who run this server let a repository's jobs do. Its name is the
//! repository's. Written by people, read by pipeline; no workflow can change it.
//!
//! Not called `Repository`: rights to `repositories` are rights to pull and push images.

use crate::Meta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RepositorySettings {
    pub metadata: Meta,
    pub spec: RepositorySettingsSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RepositorySettingsSpec {
    pub egress: Egress,
    /// What jobs may reach beside this server, if that is all that they may.
    pub allow: Vec<Allowed>,
    /// What a job may write, as `20Gi`; empty is what all may.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub disk: String,
}

/// What jobs may reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Egress {
    #[default]
    All,
    /// This server alone: git, artifacts, caches, actions, its registry and whatever that one passes on.
    Server,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Allowed {
    /// `10.1.0.0/16`, or one address.
    pub cidr: String,
    /// `443`, `8000-9000`, `53/udp`; none is all.
    pub ports: Vec<Value>,
}
