//! What starts, holds back and ends runs: events, calls, environments, concurrency, services, doing again.
//!
//! They need root, `cargo build -p naru`, and what `scripts/setup.sh` installs.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod control;
mod pulls;
mod reports;
mod services;
mod triggers;

use naru_actions_tests::ended;
use naru_actions_tests::harness::{Daemon, text};
use serde_json::Value;

/// The first run with an event, once it has ended.
fn ended_by(daemon: &Daemon, event: &str) -> Value {
    let name = daemon.wait_for(&format!("a run by {event}"), "runs", |all| {
        let run = all.iter().find(|it| it["spec"]["event"] == event)?;
        Some(run["metadata"]["name"].as_str()?.to_owned())
    });
    ended(daemon, &name)
}

/// Phase of a job by its key.
fn phase<'a>(run: &'a Value, key: &str) -> &'a str {
    let jobs = run["status"]["jobs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let job = jobs.iter().find(|it| it["key"] == key);
    job.unwrap_or_else(|| panic!("no job {key}: {run:#}"))["phase"].as_str().unwrap()
}

fn logs(daemon: &Daemon, run: &Value) -> String {
    text(&daemon.naru(&["logs", &format!("run/{}", run["metadata"]["name"].as_str().unwrap())]))
}

/// Dispatches a workflow; the name of its run.
fn dispatch(daemon: &Daemon, args: &[&str]) -> String {
    let output = daemon.naru(&[&["ci", "dispatch"], args].concat());
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    shown.split(':').next().unwrap().to_owned()
}
