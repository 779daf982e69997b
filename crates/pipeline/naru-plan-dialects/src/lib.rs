//! The workflow languages: each folder brings one of them to the form of `naru-plan`. Text in, form and
//! findings out; no I/O, no clock, never a panic on bad input.
//!
//! Adding a language is one folder and one line of [`DIALECTS`].

pub mod github;

use naru_plan::{Evaluator, Package, Plan};
use naru_text::Finding;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What the reader of a workflow file must know about what happened. Plain values: a dry run is the real run.
#[derive(Debug, Clone, Default)]
pub struct Trigger {
    /// `push`, `pull_request`, ... as GitHub names it.
    pub event: String,
    /// `refs/heads/main`, `refs/tags/v1`, `refs/pull/3/merge`.
    pub git_ref: String,
    /// The labels that `runs-on` may name here.
    pub labels: Vec<String>,
    /// The event as its sender describes it (`github.event`).
    pub payload: Value,
    /// The files that the event changed, relative to the repository; `None` if that is not known, which lets
    /// every filter on paths pass.
    pub changed: Option<Vec<String>>,
    /// Only this file is meant (a dispatch, a schedule); else every file that asks for the event.
    pub workflow: Option<String>,
    /// The cron line that was due, for `schedule`.
    pub schedule: Option<String>,
    /// What a dispatch gave, as text.
    pub inputs: Map<String, Value>,
    /// Files that a workflow may call in: `.github/workflows/x.yml` of the same commit by its path, those of
    /// other repositories as `owner/name/path@ref`.
    pub files: BTreeMap<String, String>,
    /// Such files that cannot be had, and why.
    pub absent: BTreeMap<String, String>,
    /// What expressions that are computed up front may look at: `github`, `vars`.
    pub contexts: Map<String, Value>,
}

/// What came of one file.
#[derive(Debug, Clone, Default)]
pub struct Lowered {
    /// `None` if the file does not apply to the trigger, or could not be read at all.
    pub plan: Option<Plan>,
    /// Everything worth saying. Any error among it means that nothing of the plan may run.
    pub findings: Vec<Finding>,
    /// Files of [`Trigger::files`] that are called in and were not given, by the same names. There is no plan
    /// then; the caller fetches them and asks again.
    pub missing: Vec<String>,
    /// Whether the file asks for the trigger, also if it cannot be honoured. A file whose events cannot be read
    /// counts as if it did.
    pub applies: bool,
    /// What people call it.
    pub name: String,
    /// The events that it asks for.
    pub events: Vec<String>,
    /// The workflows, by name, after whose runs it runs.
    pub follows: Vec<String>,
    /// When it wants to run by itself.
    pub schedules: Vec<Schedule>,
    pub survey: Survey,
}

/// What a file is about, whether or not it applies to the trigger: for whoever looks before the first run.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    pub events: Vec<String>,
    /// The names of secrets and variables that it asks for.
    pub secrets: BTreeSet<String>,
    pub variables: BTreeSet<String>,
    /// The packaged steps that it uses, as it names them.
    pub actions: BTreeSet<String>,
    /// The files that it calls in, as it names them.
    pub workflows: BTreeSet<String>,
    pub labels: BTreeSet<String>,
    pub environments: BTreeSet<String>,
    /// Its jobs, those that cannot be known yet as they stand in the file.
    pub plan: Option<Plan>,
}

/// A time table in the words of cron: minute, hour, day of month, month, day of week.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Schedule {
    pub cron: String,
    /// An IANA name; empty is UTC.
    pub timezone: String,
}

/// A workflow language.
pub struct Dialect {
    pub name: &'static str,
    /// Whether a file of a repository, by its path, is written in it.
    pub claims: fn(path: &str) -> bool,
    pub lower: fn(path: &str, source: &str, trigger: &Trigger) -> Lowered,
    pub evaluator: &'static (dyn Evaluator + Sync),
    /// The names that the manifest of a packaged step may have; the first that is there counts.
    pub package_files: &'static [&'static str],
    /// A manifest as the form has it, and everything worth saying about it.
    pub package: fn(path: &str, source: &str) -> (Option<Package>, Vec<Finding>),
}

/// Every language that Naru reads.
pub const DIALECTS: &[Dialect] = &[github::DIALECT];

/// The dialect of a file by its path.
pub fn dialect_of(path: &str) -> Option<&'static Dialect> {
    DIALECTS.iter().find(|it| (it.claims)(path))
}
