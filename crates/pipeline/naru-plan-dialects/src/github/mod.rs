//! GitHub Actions: `.github/workflows/*.yml`.
//!
//! Semantics follow GitHub's "Workflow syntax for GitHub Actions" and "Evaluate expressions" pages. A key
//! that we know but do not honour yet is an error with its place: a workflow runs as written or not at all.

mod action;
pub mod expression;
mod matrix;
mod pattern;
mod workflow;

pub use action::package;

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
