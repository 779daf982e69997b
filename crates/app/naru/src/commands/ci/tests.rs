//! `naru ci tests`: the tests that a run's jobs told of: in JUnit's files that they left in their workspace or as
//! artifacts, or, of a job that has left none, in its output.

use super::run_named;
use crate::cli::Global;
use crate::connection;
use crate::error::Result;
use futures::{AsyncBufReadExt, StreamExt};
use naru_client::{Client, LogOptions};
use naru_objects::{NAMESPACE, Run, kinds};
use naru_runner::protocol::{MARK, tests_of};
use naru_runner::reports::{Outcome, Test, count, flaky, junit, test_of, zip};
use serde_json::{Value, json};
use std::collections::BTreeSet;
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

/// A larger artifact is not opened for the tests in it.
const ARTIFACT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A job, or an artifact, with its tests.
struct Report {
    job: String,
    tests: Vec<Test>,
}

/// Exit code 1 if a test failed.
pub async fn run(global: &Global, args: &TestsArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let run = run_named(&client, &args.run).await?;
    let mut reports = reports(&client, &run).await;
    reports.extend(in_artifacts(global, &run, &reports).await?);
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
        let (mut printed, mut left) = (Vec::new(), Vec::new());
        while let Some(Ok(line)) = lines.next().await {
            match line.starts_with(MARK) {
                true => left.extend(tests_of(&line).into_iter().flat_map(|(_, tests)| tests)),
                false => printed.extend(test_of(&line)),
            }
        }
        // The same tests, told twice.
        let tests = if left.is_empty() { printed } else { left };
        if !tests.is_empty() {
            reports.push(Report { job: job.name.clone(), tests });
        }
    }
    reports
}

/// The tests of reports that were uploaded, as far as no job tells of them.
async fn in_artifacts(global: &Global, run: &Run, reports: &[Report]) -> Result<Vec<Report>> {
    let known: BTreeSet<&str> = reports.iter().flat_map(|it| &it.tests).map(|it| it.name.as_str()).collect();
    let endpoints = connection::endpoints(global)?;
    let token = std::fs::read_to_string(connection::push_token_path(&global.data_dir))?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let get = async |url: &str| http.get(url).bearer_auth(token.trim()).send().await?.error_for_status();
    let id = naru_token::run_id(&run.metadata.uid);
    let repository = format!("{}/api/v3/repos/{}/{}", endpoints.http, endpoints.owner, run.spec.repository);
    let list: Value =
        get(&format!("{repository}/actions/runs/{id}/artifacts?per_page=100")).await?.json().await?;
    let mut found = Vec::new();
    for artifact in list["artifacts"].as_array().into_iter().flatten() {
        let name = artifact["name"].as_str().unwrap_or_default();
        if artifact["size_in_bytes"].as_u64().is_none_or(|it| it > ARTIFACT_BYTES_MAX) {
            continue;
        }
        let bytes =
            get(&format!("{repository}/actions/artifacts/{}/zip", artifact["id"])).await?.bytes().await?;
        let mut tests = uploaded(name, &bytes);
        tests.retain(|it| !known.contains(it.name.as_str()));
        if !tests.is_empty() {
            found.push(Report { job: format!("artifact {name}"), tests });
        }
    }
    Ok(found)
}

/// The tests in an artifact: an archive, or the report itself.
fn uploaded(name: &str, bytes: &[u8]) -> Vec<Test> {
    let read = |file: &str, text: &[u8]| match junit::read(text) {
        Ok(tests) => tests,
        Err(error) => {
            eprintln!("the test report {file} in the artifact {name} cannot be read: {error}");
            Vec::new()
        }
    };
    if junit::is_report(bytes) {
        return read(name, bytes);
    }
    let entries = zip::entries(bytes).unwrap_or_default();
    let is_xml = |it: &&zip::Entry| {
        it.name.to_ascii_lowercase().ends_with(".xml") && it.bytes <= junit::FILE_BYTES_MAX
    };
    let texts = entries.iter().filter(is_xml).filter_map(|it| {
        let text = zip::content(bytes, it, junit::FILE_BYTES_MAX).ok()?;
        junit::is_report(&text).then(|| (it.name.clone(), text))
    });
    let mut tests: Vec<Test> = texts.flat_map(|(file, text)| read(&file, &text)).collect();
    tests.truncate(junit::TESTS_MAX);
    tests
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
            "no tests are told of: known are JUnit's files, and the output of cargo test, go test -v, pytest -v and TAP".into(),
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
    let test = |it: &Test| json!({"name": it.name, "outcome": outcome(it.outcome), "seconds": it.seconds, "retried": it.retried});
    let job = |it: &Report| json!({"job": it.job, "tests": it.tests.iter().map(test).collect::<Vec<_>>()});
    json!({"jobs": reports.iter().map(job).collect::<Vec<_>>(), "flaky": flaky})
}
