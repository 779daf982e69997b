//! `naru ci list`: the latest runs, one line each.

use crate::cli::Global;
use crate::commands::dora::duration;
use crate::connection;
use crate::error::Result;
use naru_objects::{NAMESPACE, Run, kinds};
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct ListArgs {
    /// Only runs of this repository.
    repository: Option<String>,
    /// At most so many, the latest first.
    #[arg(short = 'n', long, default_value_t = 20)]
    limit: usize,
}

pub async fn run(global: &Global, args: &ListArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let objects = client.list(&kinds::RUN, Some(NAMESPACE), "").await?;
    let mut runs: Vec<Run> = objects.into_iter().filter_map(|it| serde_json::from_value(it).ok()).collect();
    runs.retain(|it| args.repository.as_ref().is_none_or(|repository| *repository == it.spec.repository));
    runs.sort_by(|a, b| b.spec.pushed_at.cmp(&a.spec.pushed_at).then(b.metadata.name.cmp(&a.metadata.name)));
    if runs.is_empty() {
        println!("no runs yet; a push to a repository with workflows makes one");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<28} {:<20} {:<12} {:>8}  about", "run", "event", "phase", "took");
    for run in runs.iter().take(args.limit) {
        println!(
            "{:<28} {:<20} {:<12} {:>8}  {}",
            run.metadata.name,
            run.spec.event,
            format!("{:?}", run.status.phase),
            took(run).map(duration).unwrap_or_default(),
            run.spec.message
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Seconds from the start to the end, or to now.
fn took(run: &Run) -> Option<f64> {
    let start: jiff::Timestamp = run.status.started_at.parse().ok()?;
    let end = run.status.finished_at.parse().unwrap_or_else(|_| jiff::Timestamp::now());
    Some(end.duration_since(start).as_secs_f64())
}
