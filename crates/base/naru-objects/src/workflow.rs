//! `Workflow`: a workflow file as the default branch has it. Written by pipeline at each push to that branch;
//! what runs by a clock, after other runs or by hand is found here.

use crate::Meta;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Workflow {
    pub metadata: Meta,
    pub spec: WorkflowSpec,
    pub status: WorkflowStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkflowSpec {
    pub repository: String,
    /// Relative to the repository.
    pub file: String,
    pub name: String,
    pub git_ref: String,
    pub sha: String,
    /// The events that it asks for.
    pub events: Vec<String>,
    /// The workflows, by name, after whose runs it runs.
    pub follows: Vec<String>,
    pub schedules: Vec<WorkflowSchedule>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkflowSchedule {
    /// Minute, hour, day of month, month, day of week.
    pub cron: String,
    /// An IANA name; empty is UTC.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub timezone: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkflowStatus {
    /// Of each cron line, when it was last due and seen to (RFC 3339).
    pub scheduled: BTreeMap<String, String>,
}
