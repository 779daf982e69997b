//! `naru ci tests`: the tests that a run's jobs told of in their output.

use super::run_named;
use crate::cli::Global;
use crate::connection;
use crate::error::Result;
use futures::{AsyncBufReadExt, StreamExt};
use naru_client::{Client, LogOptions};
use naru_objects::{NAMESPACE, Run, kinds};
use naru_runner::protocol::MARK;
use naru_runner::reports::{Outcome, Test, flaky, test_of};
use serde_json::json;
use std::process::ExitCode;

/// So many of the slowest are named.
const SLOWEST_SHOWN: usize = 5;

#[derive(clap::Args, Clone)]
pub struct TestsArgs {
    /// Such as `shop-main-3`.
    run: String,
    #[arg(long)]
    json: bool,
}

/// A job with its tests.
struct Report {
    job: String,
    tests: Vec<Test>,
}

/// Exit code 1 if a test failed.
pub async fn run(global: &Global, args: &TestsArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let run = run_named(&client, &args.run).await?;
    let reports = reports(&client, &run).await;
    // Runs of the same commit, this one among them: whatever did both there is not the code's doing.
    let objects = client.list(&kinds::RUN, Some(NAMESPACE), "").await?;
    let mut all = Vec::new();
    for other in objects.into_iter().filter_map(|it| serde_json::from_value::<Run>(it).ok()) {
        if other.spec.repository == run.spec.repository && other.spec.sha == run.spec.sha {
            all.extend(self::reports(&client, &other).await.into_iter().flat_map(|it| it.tests));
        }
    }
    let flaky = flaky(all.iter());
    let failed = reports.iter().flat_map(|it| &it.tests).any(|it| it.outcome == Outcome::Failed);
    if args.json {
        println!("{:#}", as_json(&reports, &flaky));
    } else {
        lines(&reports, &flaky).iter().for_each(|it| println!("{it}"));
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn reports(client: &Client, run: &Run) -> Vec<Report> {
    let mut reports = Vec::new();
    for job in run.status.jobs.iter().filter(|it| !it.pod.is_empty()) {
        // A pod of long ago is gone, and its log with it.
        let Ok(log) = client.logs(NAMESPACE, &job.pod, "job", &LogOptions::default()).await else { continue };
        let mut lines = log.lines();
        let mut tests = Vec::new();
        while let Some(Ok(line)) = lines.next().await {
            tests.extend(Some(line).filter(|it| !it.starts_with(MARK)).and_then(|it| test_of(&it)));
        }
        if !tests.is_empty() {
            reports.push(Report { job: job.name.clone(), tests });
        }
    }
    reports
}

fn count(tests: &[Test], outcome: Outcome) -> usize {
    tests.iter().filter(|it| it.outcome == outcome).count()
}

fn slowest(reports: &[Report]) -> Vec<(f64, &str)> {
    let all = reports.iter().flat_map(|it| &it.tests);
    let mut timed: Vec<(f64, &str)> = all.filter_map(|it| Some((it.seconds?, it.name.as_str()))).collect();
    timed.sort_by(|a, b| b.0.total_cmp(&a.0));
    timed.truncate(SLOWEST_SHOWN);
    timed
}

fn lines(reports: &[Report], flaky: &[String]) -> Vec<String> {
    if reports.is_empty() {
        return vec![
            "no tests are told of in the output; known are those of cargo test, go test -v, pytest -v and TAP".into(),
        ];
    }
    let mut lines = Vec::new();
    for Report { job, tests } in reports {
        let of = |outcome| count(tests, outcome);
        let (passed, failed, skipped) = (of(Outcome::Passed), of(Outcome::Failed), of(Outcome::Skipped));
        lines.push(format!("{job}: {passed} passed, {failed} failed, {skipped} skipped"));
        let failed = tests.iter().filter(|it| it.outcome == Outcome::Failed);
        lines.extend(failed.map(|it| format!("  x {}", it.name)));
    }
    let slowest = slowest(reports);
    if !slowest.is_empty() {
        lines.push("the slowest".into());
        lines.extend(slowest.iter().map(|(seconds, name)| format!("  {seconds:>8.2} s  {name}")));
    }
    if !flaky.is_empty() {
        lines.push("passed and failed with the same commit".into());
        lines.extend(flaky.iter().map(|it| format!("  ~ {it}")));
    }
    lines
}

fn as_json(reports: &[Report], flaky: &[String]) -> serde_json::Value {
    let outcome = |it: Outcome| match it {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::Skipped => "skipped",
    };
    let test = |it: &Test| json!({"name": it.name, "outcome": outcome(it.outcome), "seconds": it.seconds});
    let job = |it: &Report| json!({"job": it.job, "tests": it.tests.iter().map(test).collect::<Vec<_>>()});
    json!({"jobs": reports.iter().map(job).collect::<Vec<_>>(), "flaky": flaky})
}
