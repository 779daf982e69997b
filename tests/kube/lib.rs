//! What the mirror tests are made of: one daemon for all, a namespace for each scenario, and a plain
//! client that shows requests as they are.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod cluster;
mod http;
mod image;
mod ledger;

use std::sync::Arc;

pub use cluster::{Case, Cluster, cluster};
pub use http::{Answer, Watch};
pub use ledger::{Group, Scenario, run, run_own};

/// One scenario: the verbatim name of the conformance test and what it does. The function fails by panicking.
pub fn scenario(group: Group, name: &'static str, run: impl Fn(&Case) + Send + Sync + 'static) -> Scenario {
    Scenario { group, name, run: Arc::new(run) }
}
