//! What the tests of workflows share: the daemon of `naru_loop_tests`.

pub use naru_loop_tests::*;

use std::path::{Path, PathBuf};

/// The directory whose `node_modules` holds GitHub's own packages.
pub fn packages() -> PathBuf {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/actions").canonicalize();
    packages.expect("run scripts/setup.sh first")
}

/// Node: ours if the machine has none, or an old one.
pub fn node() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/node");
    if ours.exists() { ours } else { "node".into() }
}
