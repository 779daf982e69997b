//! Concurrency groups of jobs: one after the other within a run, and a newcomer in place of what runs.

use naru_actions_tests::harness::{Daemon, Repository};
use serde_json::Value;
use std::process::Stdio;

const SAME_RUN: &str = "on: push
jobs:
  first: {runs-on: ubuntu-latest, concurrency: one, steps: [{run: 'sleep 0.3'}]}
  second: {runs-on: ubuntu-latest, concurrency: ONE, steps: [{run: 'true'}]}
  third:
    needs: [first, second]
    concurrency: one
    uses: ./.github/workflows/called.yml
  fourth: {needs: third, runs-on: ubuntu-latest, concurrency: 'o${{ ''ne'' }}', steps: [{run: 'true'}]}
";

const CALLED: &str = "on: workflow_call
jobs:
  inner: {runs-on: ubuntu-latest, steps: [{run: 'true'}]}
";

const NEWCOMER: &str = "on: push
jobs:
  deploy:
    runs-on: ubuntu-latest
    concurrency: {group: deploy, cancel-in-progress: true}
    steps: [{run: 'sleep 600'}]
  call:
    concurrency: {group: call, cancel-in-progress: true}
    uses: ./.github/workflows/called.yml
";

fn phases(run: &Value) -> Vec<(String, String)> {
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    run["status"]["jobs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| (text(&it["name"]), text(&it["phase"])))
        .collect()
}

fn phase(run: &Value, job: &str) -> String {
    phases(run).into_iter().find(|it| it.0 == job).map(|it| it.1).unwrap_or_default()
}

fn named<'a>(runs: &'a [Value], name: &str) -> Option<&'a Value> {
    runs.iter().find(|it| it["metadata"]["name"] == name)
}

#[test]
fn jobs_of_one_group_take_turns_and_a_newcomer_may_end_them() {
    let daemon = Daemon::start();
    let repository = Repository::page(&daemon);
    repository.write(".github/workflows/called.yml", CALLED);
    repository.write(".github/workflows/ci.yml", SAME_RUN);
    repository.commit("one group");
    let shown = repository.push();
    let run = daemon.get("runs").into_iter().next().unwrap();
    assert_eq!(run["status"]["phase"], "Succeeded", "{shown}\n{:#}", run["status"]);
    let (first, second) = (&run["status"]["jobs"][0], &run["status"]["jobs"][1]);
    let times = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    let apart = times(first, "finishedAt") <= times(second, "startedAt")
        || times(second, "finishedAt") <= times(first, "startedAt");
    assert!(apart, "{first:#}\n{second:#}");

    // The first sleeps until somebody takes its place.
    repository.write(".github/workflows/called.yml", &CALLED.replace("'true'", "'sleep 600'"));
    repository.write(".github/workflows/ci.yml", NEWCOMER);
    repository.commit("sleeps");
    let mut push = repository.command(&["push", "naru", "main"]).stderr(Stdio::null()).spawn().unwrap();
    daemon.wait_for("the second run's jobs", "runs", |runs| {
        let run = named(runs, "page-main-2")?;
        (phase(run, "deploy") == "Running" && phase(run, "call / inner") == "Running").then_some(())
    });
    push.kill().unwrap();
    push.wait().unwrap();
    repository.write(".github/workflows/called.yml", CALLED);
    repository.write(".github/workflows/ci.yml", &NEWCOMER.replace("sleep 600", "true"));
    repository.commit("takes over");
    repository.push();
    let old = daemon.wait_for("the end of the second run", "runs", |runs| {
        let run = named(runs, "page-main-2")?;
        (run["status"]["phase"] == "Cancelled").then(|| run.clone())
    });
    assert_eq!(phase(&old, "deploy"), "Cancelled", "{:?}", phases(&old));
    assert_eq!(phase(&old, "call / inner"), "Cancelled", "{:?}", phases(&old));
    let new = daemon.get("runs");
    let new = named(&new, "page-main-3").unwrap();
    assert_eq!(new["status"]["phase"], "Succeeded", "{:?}", phases(new));
    daemon.destroy();
}
