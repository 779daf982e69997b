//! `naru ci why`: a run and each of its jobs with the reason for how it stands.

use super::run_named;
use crate::cli::Global;
use crate::connection;
use crate::error::Result;
use naru_objects::{JobPhase, LostPod, Run, RunPhase};
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct WhyArgs {
    /// Such as `shop-main-3`.
    run: String,
}

pub async fn run(global: &Global, args: &WhyArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let run = run_named(&client, &args.run).await?;
    for line in lines(&run) {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

pub fn lines(run: &Run) -> Vec<String> {
    let (spec, status) = (&run.spec, &run.status);
    let mut lines = vec![format!("{}: {:?} {}", run.metadata.name, status.phase, status.message)];
    let mut cause = format!("{} on {}", spec.event, spec.git_ref);
    if !spec.author.is_empty() {
        cause.push_str(&format!(" by {}", spec.author));
    }
    if !spec.schedule.is_empty() {
        cause.push_str(&format!(", due by `{}`", spec.schedule));
    }
    if let Some(again) = &spec.again {
        cause.push_str(&format!(", attempt {} of what {} ran", again.attempt, again.run));
    }
    if spec.untrusted {
        cause.push_str("; it comes from outside, so it has no secrets and a token that only reads");
    }
    lines.push(format!("  because of a {cause}"));
    match status.workflows.as_slice() {
        [] if status.phase == RunPhase::Succeeded => {
            lines.push("  no workflow asks for this event with this branch and these files".into());
        }
        [] => {}
        files => lines.push(format!("  these workflows ask for it: {}", files.join(", "))),
    }
    for group in &status.groups {
        let how = if group.holds { "holds" } else { "waits for" };
        lines.push(format!("  {} {how} the concurrency group `{}`", group.member, group.group));
    }
    for it in &status.diagnostics {
        lines.push(format!("  {}: {}:{}:{}: {}", it.severity, it.file, it.line, it.column, it.message));
    }
    for job in &status.jobs {
        let depth = if job.behind.is_empty() { "" } else { "  " };
        let why = match job.phase {
            JobPhase::Failed if job.message.is_empty() => {
                let step = job.steps.iter().find(|it| it.phase == JobPhase::Failed);
                step.map(|it| {
                    let code = it.exit_code.map(|it| format!(" with {it}")).unwrap_or_default();
                    format!("the step `{}` failed{code}", it.name)
                })
                .unwrap_or_default()
            }
            JobPhase::Pending if job.message.is_empty() => "waits for what it needs".into(),
            _ => job.message.clone(),
        };
        lines.push(format!("{depth}  {:<12} {:<32} {why}", format!("{:?}", job.phase), job.name));
        for lost in &job.lost {
            let LostPod { pod, at, why, .. } = lost;
            lines.push(format!(
                "{depth}    {why} ({at}): given to another pod; what comes of {pod} is refused"
            ));
        }
    }
    lines
}
