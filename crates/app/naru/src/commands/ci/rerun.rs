//! `naru ci rerun`: a run once more, as a run of its own that names the one before.

use super::run_named;
use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use naru_objects::{Again, ChangeId, JobPhase, NAMESPACE, Run, kinds, labels, timestamp};
use serde_json::json;
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct RerunArgs {
    /// Such as `shop-main-3`.
    run: String,
    /// Only the jobs that did not succeed, and those that depend on them; the others are taken over.
    #[arg(long)]
    failed: bool,
    /// Only this job and those that depend on it.
    #[arg(long, value_name = "KEY", conflicts_with = "failed")]
    job: Option<String>,
}

pub async fn run(global: &Global, args: &RerunArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let run = run_named(&client, &args.run).await?;
    let name = &run.metadata.name;
    if !run.status.phase.is_final() {
        return Err(Error::new(format!("the run `{name}` has not ended yet"))
            .hint(format!("`naru ci cancel {name}` ends it")));
    }
    let jobs = match (&args.job, args.failed) {
        (Some(job), _) => {
            if !run.status.jobs.iter().any(|it| it.key == *job) {
                let known: Vec<&str> = run.status.jobs.iter().map(|it| it.key.as_str()).collect();
                return Err(Error::new(format!("the run has no job `{job}`"))
                    .hint(format!("it has {}", known.join(", "))));
            }
            // What was skipped may have been skipped because of it.
            let again = |it: &&naru_objects::JobStatus| it.key == *job || it.phase == JobPhase::Skipped;
            run.status.jobs.iter().filter(again).map(|it| it.key.clone()).collect()
        }
        (None, true) => {
            let again: Vec<String> = (run.status.jobs.iter())
                .filter(|it| it.phase != JobPhase::Succeeded)
                .map(|it| it.key.clone())
                .collect();
            if again.is_empty() {
                return Err(Error::new(format!("nothing of the run `{name}` failed")));
            }
            again
        }
        (None, false) => Vec::new(),
    };
    // The second attempt of an attempt counts on from the first.
    let first = run.spec.again.as_ref().map_or(name.clone(), |it| {
        name.strip_suffix(&format!("-again{}", it.attempt)).unwrap_or(name).to_owned()
    });
    let objects = client.list(&kinds::RUN, Some(NAMESPACE), "").await?;
    let runs: Vec<Run> = objects.into_iter().filter_map(|it| serde_json::from_value(it).ok()).collect();
    let attempt = (runs.iter())
        .filter(|it| it.metadata.name.starts_with(&format!("{first}-again")))
        .filter_map(|it| it.spec.again.as_ref().map(|it| it.attempt))
        .max()
        .unwrap_or(1)
        + 1;
    let mut spec = run.spec.clone();
    let change = ChangeId::mint();
    spec.change = change.to_string();
    // What was pushed since must not be replaced by what stood before it.
    spec.deploy &= !runs.iter().any(|it| {
        it.spec.repository == spec.repository
            && it.spec.git_ref == spec.git_ref
            && it.spec.pushed_at > spec.pushed_at
            && it.spec.sha != spec.sha
    });
    spec.pushed_at = timestamp(jiff::Timestamp::now());
    spec.again = Some(Again { run: name.clone(), attempt, jobs });
    let new_name = format!("{first}-again{attempt}");
    let object = json!({
        "apiVersion": kinds::RUN.api_version(), "kind": kinds::RUN.kind,
        "metadata": {
            "name": new_name, "namespace": NAMESPACE,
            "labels": {labels::CHANGE: change.as_str(), labels::APP: spec.repository}},
        "spec": spec,
    });
    client.create(&kinds::RUN, &object).await?;
    println!("{new_name} runs it again; `naru logs -f run/{new_name}` follows it");
    Ok(ExitCode::SUCCESS)
}
