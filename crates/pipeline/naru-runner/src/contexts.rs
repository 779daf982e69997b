//! What a job may look at before it starts, as far as it follows from the plan alone: the same on the server and
//! on somebody's own machine.

use naru_plan::{Job, JobView, outputs_of, result_of, status_before};
use serde_json::{Map, Value, json};

/// `needs`, `matrix`, `strategy`, `inputs`, and how what the job needs has gone.
pub fn of_plan(job: &Job, jobs: &[Job], views: &[JobView], cancelled: bool) -> Map<String, Value> {
    let needs: Map<String, Value> = job
        .needs
        .iter()
        .map(|id| {
            let result = result_of(&job.scope, id, jobs, views);
            (id.clone(), json!({"result": result, "outputs": outputs_of(&job.scope, id, jobs, views)}))
        })
        .collect();
    let siblings = || jobs.iter().filter(|it| it.scope == job.scope && it.id == job.id);
    let strategy = json!({
        "fail-fast": job.fail_fast, "max-parallel": job.parallel_max, "job-total": siblings().count(),
        "job-index": siblings().position(|it| it.key == job.key)});
    let status = if cancelled { "cancelled" } else { status_before(job, jobs, views) };
    Map::from_iter(
        [
            ("needs", Value::Object(needs)),
            // As on GitHub, where `toJSON(matrix)` of a job without one is `null`.
            ("matrix", if job.matrix.is_empty() { Value::Null } else { json!(job.matrix) }),
            ("strategy", strategy),
            ("inputs", json!(job.inputs)),
            ("__status", json!(status)),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    )
}

/// The machine's architecture as GitHub writes it.
pub fn runner_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "X64",
        "aarch64" => "ARM64",
        "x86" => "X86",
        "arm" => "ARM",
        other => other,
    }
}
