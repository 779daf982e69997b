//! What expressions may look at before a job starts, and most of what they may look at in it.
//!
//! Names and shapes are those of GitHub's page "Contexts reference", which the other languages' variables are
//! made from as well.

use crate::contexts::runner_arch;
use naru_objects::{JobPhase, JobStatus, Run};
use naru_plan::{Job, JobState, JobView};
use serde_json::{Map, Value, json};

/// What all jobs of a run share.
pub struct RunContexts {
    /// `github`
    pub event: Map<String, Value>,
    pub vars: Map<String, Value>,
}

/// Where a run's repository is reached, in the words of its contexts.
pub struct Place<'a> {
    /// Base URL of the server as pods reach it, without a slash at the end.
    pub server_url: &'a str,
    pub owner: &'a str,
}

/// The `github` context as far as it is the same for every job and workflow of the run.
pub fn of_event(run: &Run, place: &Place<'_>) -> Map<String, Value> {
    let spec = &run.spec;
    let (ref_type, ref_name) = match spec.git_ref.strip_prefix("refs/tags/") {
        Some(tag) => ("tag", tag),
        None => (
            "branch",
            spec.git_ref
                .strip_prefix("refs/heads/")
                .or(spec.git_ref.strip_prefix("refs/pull/"))
                .unwrap_or(&spec.git_ref),
        ),
    };
    let repository = format!("{}/{}", place.owner, spec.repository);
    let attempt = spec.again.as_ref().map_or(1, |it| it.attempt);
    let github = json!({
        "event_name": spec.event, "event": payload(run, place), "sha": spec.sha, "ref": spec.git_ref,
        "ref_name": ref_name, "ref_type": ref_type, "ref_protected": spec.deploy,
        "base_ref": spec.base_ref, "head_ref": spec.head_ref,
        "repository": repository, "repository_owner": place.owner, "repository_id": "1",
        "repository_owner_id": "1", "repositoryUrl": format!("{}/{repository}.git", place.server_url),
        "repository_visibility": "private",
        "actor": spec.author, "triggering_actor": spec.author, "actor_id": "1",
        "run_id": naru_token::run_id(&run.metadata.uid).to_string(), "run_number": run.status.number.to_string(),
        "run_attempt": attempt.to_string(), "retention_days": "90", "secret_source": "Actions",
        "server_url": place.server_url, "api_url": format!("{}/api/v3", place.server_url),
        "graphql_url": format!("{}/api/graphql", place.server_url),
        "workspace": format!("/workspace/{}", spec.repository),
        "action": "", "action_path": "", "action_ref": "", "action_repository": "",
    });
    match github {
        Value::Object(map) => map,
        _ => unreachable!("written as an object above"),
    }
}

/// `github.event`: what the event's sender said, with what every event has put under it.
fn payload(run: &Run, place: &Place<'_>) -> Value {
    let spec = &run.spec;
    let full_name = format!("{}/{}", place.owner, spec.repository);
    let mut payload = json!({
        "repository": {
            "name": spec.repository, "full_name": full_name, "private": true, "fork": false,
            "owner": {"login": place.owner, "name": place.owner},
            "html_url": format!("{}/{full_name}", place.server_url),
            "clone_url": format!("{}/{full_name}.git", place.server_url),
        },
        "sender": {"login": spec.author},
    });
    if spec.event == "push" {
        let head = json!({"id": spec.sha, "message": spec.message, "timestamp": spec.committed_at,
                          "author": {"name": spec.author, "username": spec.author}});
        payload["ref"] = json!(spec.git_ref);
        payload["before"] = json!(spec.before);
        payload["after"] = json!(spec.sha);
        payload["created"] = json!(spec.before.chars().all(|it| it == '0'));
        payload["deleted"] = json!(false);
        payload["pusher"] = json!({"name": spec.author});
        payload["head_commit"] = head.clone();
        payload["commits"] = json!([head]);
        payload["base_ref"] = Value::Null;
        payload["compare"] =
            json!(format!("{}/{full_name}/compare/{}...{}", place.server_url, spec.before, spec.sha));
    }
    if !spec.inputs.is_empty() {
        payload["inputs"] = json!(spec.inputs);
    }
    if !spec.workflow.is_empty() {
        payload["workflow"] = json!(spec.workflow);
    }
    if !spec.schedule.is_empty() {
        payload["schedule"] = json!(spec.schedule);
    }
    if spec.payload["pull_request"].is_object() {
        let repository = payload["repository"].clone();
        payload["pull_request"] = json!({"head": {"repo": repository}, "base": {"repo": repository}});
    }
    merge(&mut payload, &spec.payload);
    payload
}

/// Puts everything of `over` into `under`, mapping by mapping.
fn merge(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (under, over) => under.clone_from(over),
    }
}

/// How far the jobs are, in the planner's words.
pub fn view_of(status: &JobStatus) -> JobView {
    JobView {
        state: match status.phase {
            JobPhase::Pending => JobState::Pending,
            JobPhase::Running => JobState::Running,
            JobPhase::Succeeded => JobState::Succeeded,
            JobPhase::Failed => JobState::Failed,
            JobPhase::Skipped => JobState::Skipped,
            JobPhase::Cancelled => JobState::Cancelled,
            JobPhase::Interrupted => JobState::Interrupted,
        },
        outputs: status.outputs.clone(),
    }
}

/// The contexts of one job before it starts.
pub fn of_job(
    shared: &RunContexts,
    workflow: &str,
    file: &str,
    run: &Run,
    job: &Job,
    jobs: &[Job],
    views: &[JobView],
    cancelled: bool,
) -> Map<String, Value> {
    let mut github = shared.event.clone();
    let repository = github.get("repository").and_then(Value::as_str).unwrap_or_default().to_owned();
    github.insert("workflow".into(), json!(workflow));
    github.insert("workflow_ref".into(), json!(format!("{repository}/{file}@{}", run.spec.git_ref)));
    github.insert("workflow_sha".into(), json!(run.spec.sha));
    github.insert("job".into(), json!(job.id));
    let mut contexts = crate::contexts::of_plan(job, jobs, views, cancelled);
    contexts.insert("github".into(), Value::Object(github));
    contexts.insert(
        "runner".into(),
        json!({"os": "Linux", "arch": runner_arch(), "temp": "/tmp", "name": "naru", "environment": "self-hosted"}),
    );
    contexts.insert("vars".into(), json!(shared.vars));
    contexts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(spec: Value) -> Run {
        let mut all = json!({"repository": "shop", "gitRef": "refs/heads/main", "sha": "a".repeat(40),
                             "change": "c-1", "event": "push", "pushedAt": ""});
        merge(&mut all, &spec);
        serde_json::from_value(json!({
            "apiVersion": "naru.dev/v1", "kind": "Run",
            "metadata": {"name": "shop-main-1", "uid": "00000000-0010-4000-8000-000000000000"}, "spec": all,
        }))
        .unwrap()
    }

    #[test]
    fn what_the_sender_says_stands_over_what_every_event_has() {
        let place = Place { server_url: "http://naru.localhost:1", owner: "acme" };
        let push = of_event(&run(json!({"message": "m"})), &place);
        assert_eq!(push["event"]["head_commit"]["message"], "m");
        assert_eq!((push["repository"].clone(), push["run_id"].clone()), (json!("acme/shop"), json!("260")));
        let pull = run(json!({
            "event": "pull_request", "gitRef": "refs/pull/3/merge", "headRef": "fix", "baseRef": "main",
            "payload": {"number": 3, "repository": {"fork": true}, "pull_request": {"title": "t"}}}));
        let pull = of_event(&pull, &place);
        assert_eq!((pull["ref_name"].clone(), pull["head_ref"].clone()), (json!("3/merge"), json!("fix")));
        assert_eq!(pull["event"]["repository"]["full_name"], "acme/shop");
        assert_eq!(pull["event"]["repository"]["fork"], true);
    }
}
