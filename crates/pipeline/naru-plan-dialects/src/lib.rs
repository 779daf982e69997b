//! The workflow languages: each folder brings one of them to the form of `naru-plan`. Text in, form and
//! findings out; no I/O, no clock, never a panic on bad input.
//!
//! Adding a language is one folder and one line of [`DIALECTS`].

pub mod github;

use naru_plan::{Evaluator, Plan};
use naru_text::Finding;

/// What the reader of a workflow file must know about the push. Plain values: a dry run is the real run.
#[derive(Debug, Clone, Default)]
pub struct Trigger {
    /// `push` so far.
    pub event: String,
    /// `refs/heads/main`, `refs/tags/v1`.
    pub git_ref: String,
    /// The labels that `runs-on` may name here.
    pub labels: Vec<String>,
}

/// What came of one file.
#[derive(Debug, Clone, Default)]
pub struct Lowered {
    /// `None` if the file does not apply to the trigger, or could not be read at all.
    pub plan: Option<Plan>,
    /// Everything worth saying. Any error among it means that nothing of the plan may run.
    pub findings: Vec<Finding>,
}

/// A workflow language.
pub struct Dialect {
    pub name: &'static str,
    /// Whether a file of a repository, by its path, is written in it.
    pub claims: fn(path: &str) -> bool,
    pub lower: fn(path: &str, source: &str, trigger: &Trigger) -> Lowered,
    pub evaluator: &'static (dyn Evaluator + Sync),
}

/// Every language that Naru reads.
pub const DIALECTS: &[Dialect] = &[github::DIALECT];

/// The dialect of a file by its path.
pub fn dialect_of(path: &str) -> Option<&'static Dialect> {
    DIALECTS.iter().find(|it| (it.claims)(path))
}
