//! Objects of ours in GitHub's words.

use crate::artifacts::Artifact;
use crate::cache::Entry;
use crate::code::{Changed, Commit, Row};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use naru_objects::{JobPhase, JobStatus, Run, RunPhase, Workflow};
use serde_json::{Value, json};

/// A repository, and the URL under which the client reached us.
pub struct Repository {
    pub owner: String,
    pub name: String,
    pub base: String,
}

impl Repository {
    fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    fn api(&self) -> String {
        format!("{}/api/v3/repos/{}", self.base, self.full_name())
    }

    pub fn facts(&self, default_branch: &str) -> Value {
        let page = format!("{}/{}", self.base, self.full_name());
        json!({
            "name": self.name, "full_name": self.full_name(), "owner": {"login": self.owner},
            "default_branch": default_branch, "private": true, "visibility": "private",
            "url": self.api(), "html_url": page, "clone_url": format!("{page}.git"),
        })
    }

    pub fn git_ref(&self, full: &str, sha: &str) -> Value {
        let url = format!("{}/git/{full}", self.api());
        json!({"ref": full, "url": url, "object": {"type": "commit", "sha": sha}})
    }

    pub fn file(&self, path: &str, sha: &str, bytes: &[u8]) -> Value {
        json!({
            "type": "file", "name": last(path), "path": path, "sha": sha, "size": bytes.len(),
            "encoding": "base64", "content": STANDARD.encode(bytes),
            "url": format!("{}/contents/{path}", self.api()),
        })
    }

    pub fn row(&self, dir: &str, row: &Row) -> Value {
        let kind = match row.kind.as_str() {
            "tree" => "dir",
            "commit" => "submodule",
            _ => "file",
        };
        let path = if dir.is_empty() { row.name.clone() } else { format!("{dir}/{}", row.name) };
        let url = format!("{}/contents/{path}", self.api());
        json!({"type": kind, "name": row.name, "path": path, "sha": row.sha, "size": row.bytes, "url": url})
    }

    pub fn commit(&self, sha: &str, it: &Commit) -> Value {
        let who = json!({"name": it.author, "email": it.email, "date": it.date});
        json!({
            "sha": sha, "url": format!("{}/commits/{sha}", self.api()),
            "commit": {"message": it.message, "author": who, "committer": who},
            "parents": it.parents.iter().map(|it| json!({"sha": it})).collect::<Vec<_>>(),
        })
    }

    pub fn run(&self, it: &Run) -> Value {
        let (status, conclusion) = of_run(it.status.phase);
        let id = naru_token::run_id(&it.metadata.uid);
        json!({
            "id": id, "name": it.metadata.name, "run_number": it.status.number, "event": it.spec.event,
            "status": status, "conclusion": conclusion,
            "head_branch": branch(&it.spec.git_ref), "head_sha": it.spec.sha,
            "display_title": it.spec.message, "run_attempt": it.spec.again.as_ref().map_or(1, |it| it.attempt),
            "created_at": it.spec.pushed_at, "run_started_at": it.status.started_at,
            "actor": {"login": it.spec.author}, "url": format!("{}/actions/runs/{id}", self.api()),
            "artifacts_url": format!("{}/actions/runs/{id}/artifacts", self.api()),
        })
    }

    pub fn artifact(&self, id: u64, it: &Artifact) -> Value {
        let ended = it.ended.as_ref().expect("only what has ended is listed");
        let url = format!("{}/actions/artifacts/{id}", self.api());
        json!({
            "id": id, "name": it.name, "size_in_bytes": ended.bytes, "digest": ended.digest, "expired": false,
            "url": url, "archive_download_url": format!("{url}/zip"),
            "created_at": it.created_at.to_string(), "updated_at": ended.at.to_string(),
            "expires_at": it.expires_at.to_string(),
            "workflow_run": {"id": naru_token::run_id(&it.run_uid), "head_branch": branch(&it.git_ref), "head_sha": it.sha},
        })
    }
}

pub fn changed(it: &Changed) -> Value {
    let status = match it.letter {
        'A' => "added",
        'D' => "removed",
        'R' => "renamed",
        'C' => "copied",
        'T' => "changed",
        _ => "modified",
    };
    let mut file = json!({
        "filename": it.path, "status": status, "additions": it.added, "deletions": it.removed,
        "changes": it.added + it.removed,
    });
    if !it.previous.is_empty() {
        file["previous_filename"] = json!(it.previous);
    }
    file
}

pub fn cache(id: u64, it: &Entry) -> Value {
    json!({
        "id": id, "ref": it.scope, "key": it.key, "version": it.version, "size_in_bytes": it.bytes,
        "created_at": it.created_at.to_string(), "last_accessed_at": it.used_at.to_string(),
    })
}

pub fn workflow(it: &Workflow) -> Value {
    let id = naru_token::run_id(&it.metadata.uid);
    json!({"id": id, "name": it.spec.name, "path": it.spec.file, "state": "active"})
}

pub fn jobs(run: &Run) -> Vec<Value> {
    let run_id = naru_token::run_id(&run.metadata.uid);
    let job = |(number, it): (usize, &JobStatus)| {
        let (status, conclusion) = of_job(it.phase);
        let step = |(number, it): (usize, &naru_objects::StepStatus)| {
            let (status, conclusion) = of_job(it.phase);
            json!({"name": it.name, "number": number + 1, "status": status, "conclusion": conclusion,
                   "started_at": it.started_at, "completed_at": it.finished_at})
        };
        json!({
            "id": number + 1, "run_id": run_id, "name": it.name, "status": status, "conclusion": conclusion,
            "head_sha": run.spec.sha, "started_at": it.started_at, "completed_at": it.finished_at,
            "steps": it.steps.iter().enumerate().map(step).collect::<Vec<_>>(),
        })
    };
    run.status.jobs.iter().enumerate().map(job).collect()
}

pub fn check_runs(run: &Run) -> Vec<Value> {
    let check = |it: &JobStatus| {
        let (status, conclusion) = of_job(it.phase);
        json!({
            "name": it.name, "head_sha": run.spec.sha, "status": status, "conclusion": conclusion,
            "started_at": it.started_at, "completed_at": it.finished_at,
            "output": {"title": it.name, "summary": it.summary, "annotations_count": it.annotations.len()},
        })
    };
    run.status.jobs.iter().map(check).collect()
}

pub fn status(run: &Run) -> Value {
    json!({
        "context": format!("naru/{}", run.spec.event), "state": state(run.status.phase),
        "description": run.status.message, "created_at": run.spec.pushed_at,
        "updated_at": run.status.finished_at,
    })
}

pub fn combined_status(sha: &str, runs: &[Run]) -> Value {
    let states: Vec<&str> = runs.iter().map(|it| state(it.status.phase)).collect();
    let all = match () {
        () if states.iter().any(|it| matches!(*it, "failure" | "error")) => "failure",
        () if states.is_empty() || states.contains(&"pending") => "pending",
        () => "success",
    };
    let statuses: Vec<Value> = runs.iter().map(status).collect();
    json!({"sha": sha, "state": all, "total_count": statuses.len(), "statuses": statuses})
}

fn state(phase: RunPhase) -> &'static str {
    match of_run(phase) {
        (_, None) => "pending",
        (_, Some("success")) => "success",
        (_, Some("failure")) => "failure",
        _ => "error",
    }
}

/// Status and conclusion.
fn of_run(phase: RunPhase) -> (&'static str, Option<&'static str>) {
    match phase {
        RunPhase::Pending => ("queued", None),
        RunPhase::Running => ("in_progress", None),
        RunPhase::Succeeded => ("completed", Some("success")),
        RunPhase::Failed => ("completed", Some("failure")),
        RunPhase::Refused => ("completed", Some("startup_failure")),
        RunPhase::Cancelled => ("completed", Some("cancelled")),
        // GitHub's word for a runner that was lost.
        RunPhase::Interrupted => ("completed", Some("stale")),
    }
}

fn of_job(phase: JobPhase) -> (&'static str, Option<&'static str>) {
    match phase {
        JobPhase::Pending => ("queued", None),
        JobPhase::Running => ("in_progress", None),
        JobPhase::Succeeded => ("completed", Some("success")),
        JobPhase::Failed => ("completed", Some("failure")),
        JobPhase::Skipped => ("completed", Some("skipped")),
        JobPhase::Cancelled => ("completed", Some("cancelled")),
        JobPhase::Interrupted => ("completed", Some("stale")),
    }
}

fn branch(git_ref: &str) -> &str {
    git_ref.strip_prefix("refs/heads/").or_else(|| git_ref.strip_prefix("refs/tags/")).unwrap_or(git_ref)
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
