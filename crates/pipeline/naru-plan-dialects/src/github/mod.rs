//! GitHub Actions: `.github/workflows/*.yml`.
//!
//! Semantics follow GitHub's "Workflow syntax for GitHub Actions" and "Evaluate expressions" pages. A key
//! that we know but do not honour is an error with its place: a workflow runs as written or not at all.
//!
//! [`workflow`] reads the file, [`events`] its `on`, [`job`] and [`step`] the rest; [`settle`] computes what must be
//! known before a job starts, [`call`] brings in reusable workflows, [`security`] warns.

mod action;
mod call;
mod container;
mod cron;
mod events;
pub mod expression;
mod inputs;
mod job;
mod late;
mod matrix;
mod names;
mod pattern;
mod place;
mod reader;
mod security;
mod settle;
mod step;
mod workflow;

pub use action::package;

/// Whether a branch or tag is one that a pattern of `branches` means; a pattern that is none means nothing.
pub fn matches_ref(pattern: &str, name: &str) -> bool {
    pattern::Pattern::parse(pattern).is_ok_and(|it| it.matches(name))
}

use crate::Dialect;

pub const DIALECT: Dialect = Dialect {
    name: "github",
    claims: |path| {
        path.strip_prefix(".github/workflows/")
            .is_some_and(|name| !name.contains('/') && (name.ends_with(".yml") || name.ends_with(".yaml")))
    },
    lower: workflow::lower,
    evaluator: &expression::GithubEvaluator,
    package_files: &["action.yml", "action.yaml"],
    package: action::package,
};
