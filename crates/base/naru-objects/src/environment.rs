//! `Environment`: a named place that a repository's jobs deploy to, and who and what it lets in. Written by
//! people, read by pipeline.

use crate::Meta;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Environment {
    pub metadata: Meta,
    pub spec: EnvironmentSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvironmentSpec {
    pub repository: String,
    /// As workflows name it.
    pub name: String,
    /// Who may let a job in; nobody means that no approval is needed.
    pub reviewers: Vec<String>,
    /// A job waits so long before it begins.
    pub wait_minutes: u32,
    /// Patterns of branches and tags that may come; none means all.
    pub branches: Vec<String>,
}
