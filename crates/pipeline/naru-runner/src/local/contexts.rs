//! The contexts of a job on somebody's own machine: those of the server, with what the work tree says.

use super::{Facts, Request};
use naru_plan::{Job, JobView, Plan};
use serde_json::{Map, Value, json};

/// `github`, as far as it is the same for every job.
pub fn of_event(request: &Request, facts: &Facts) -> Map<String, Value> {
    let full_name = format!("{}/{}", facts.owner, facts.repository);
    let (ref_type, ref_name) = match facts.git_ref.strip_prefix("refs/tags/") {
        Some(tag) => ("tag", tag),
        None => ("branch", facts.git_ref.trim_start_matches("refs/heads/")),
    };
    let mut event = json!({
        "repository": {"name": facts.repository, "full_name": full_name,
                       "owner": {"login": facts.owner, "name": facts.owner}},
        "sender": {"login": facts.author},
    });
    if request.event == "push" {
        let head = json!({"id": facts.sha, "message": facts.message, "author": {"name": facts.author}});
        event["ref"] = json!(facts.git_ref);
        event["after"] = json!(facts.sha);
        event["pusher"] = json!({"name": facts.author});
        event["head_commit"] = head.clone();
        event["commits"] = json!([head]);
    }
    if !request.inputs.is_empty() {
        event["inputs"] = json!(request.inputs);
    }
    if let (Value::Object(event), Value::Object(given)) = (&mut event, &request.payload) {
        event.extend(given.clone());
    }
    let pull = &event["pull_request"];
    let github = json!({
        "event_name": request.event, "sha": facts.sha, "ref": facts.git_ref,
        "ref_name": ref_name, "ref_type": ref_type, "ref_protected": false,
        "base_ref": pull["base"]["ref"].as_str().unwrap_or_default(),
        "head_ref": pull["head"]["ref"].as_str().unwrap_or_default(),
        "repository": full_name, "repository_owner": facts.owner, "repository_id": "1", "repository_owner_id": "1",
        "actor": facts.author, "triggering_actor": facts.author, "actor_id": "1",
        "run_id": "1", "run_number": "1", "run_attempt": "1", "retention_days": "90",
        // Where actions go that want more than this machine has; the name also tells the official clients that
        // they speak to no old server.
        "server_url": "https://github.com", "api_url": "https://api.github.com",
        "graphql_url": "https://api.github.com/graphql",
        "event": event,
    });
    match github {
        Value::Object(map) => map,
        _ => unreachable!("written as an object above"),
    }
}

/// Everything that a job may look at before it starts, and most of what it may look at in it.
pub fn of_job(
    shared: &Map<String, Value>,
    request: &Request,
    plan: &Plan,
    job: &Job,
    jobs: &[Job],
    views: &[JobView],
    cancelled: bool,
) -> Map<String, Value> {
    let mut github = shared.clone();
    let text = |key: &str| shared.get(key).and_then(Value::as_str).unwrap_or_default();
    let workflow_ref = format!("{}/{}@{}", text("repository"), plan.file, text("ref"));
    github.insert("workflow".into(), json!(plan.name));
    github.insert("workflow_ref".into(), json!(workflow_ref));
    github.insert("workflow_sha".into(), json!(text("sha")));
    github.insert("job".into(), json!(job.id));
    let mut contexts = crate::contexts::of_plan(job, jobs, views, cancelled);
    contexts.insert("github".into(), Value::Object(github));
    contexts.insert("runner".into(), json!({"environment": "self-hosted"}));
    contexts.insert("vars".into(), json!(request.vars));
    contexts
}
