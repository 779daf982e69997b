//! What the tests of workflows share: the daemon of `naru_loop_tests`, and what is asked of its runs.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

pub use naru_loop_tests::*;

use harness::{Daemon, naru_binary};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

/// The run of a name, once it has ended.
pub fn ended(daemon: &Daemon, name: &str) -> Value {
    daemon.wait_for(&format!("the end of run {name}"), "runs", |all| {
        let run = all.iter().find(|it| it["metadata"]["name"] == name)?;
        let phase = run["status"]["phase"].as_str().unwrap_or("Pending");
        (!matches!(phase, "Pending" | "Running")).then(|| run.clone())
    })
}

/// `naru secret` with these arguments and the value on its standard input.
pub fn secret(daemon: &Daemon, args: &[&str], value: &str) {
    let mut child = Command::new(naru_binary())
        .args(["--data-dir", &daemon.data_dir().display().to_string(), "secret"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(value.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// A program that goes on while the test looks, and ends with what is returned.
pub fn in_background(mut command: Command) -> Background {
    Background(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

pub struct Background(std::process::Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
