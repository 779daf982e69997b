//! The workflows of a repository's default branch as objects, and what starts by them: runs by the clock, and
//! runs after other runs.

use super::Shared;
use super::plans::{Planned, ReadFile};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use naru_objects::{
    ChangeId, JobPhase, JobStatus, Run, RunPhase, RunSpec, Workflow, WorkflowSchedule, WorkflowSpec,
    dns_label_unique, kinds, labels, timestamp,
};
use naru_text::cron::Schedule;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// A time that was missed, because nobody ran then, is made up for within this; beyond it nobody waits for it.
const LATE_MAX: jiff::SignedDuration = jiff::SignedDuration::from_mins(15);

/// The clock may jump; so often it is looked at in any case.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A run after a run after a run: so long a chain may be, as on GitHub.
const CHAIN_MAX: u64 = 3;

/// Writes the workflows that a push to the default branch brought, and removes those that it took away.
pub async fn publish(shared: &Shared, run: &Run, files: &[ReadFile]) -> Result<(), naru_client::Error> {
    let (client, namespace) = (&shared.client, &shared.config.namespace);
    let spec = &run.spec;
    let selector = format!("{}={}", labels::APP, spec.repository);
    let known = client.list(&kinds::WORKFLOW, Some(namespace), &selector).await?;
    for file in files {
        let name = dns_label_unique(&format!("{}-{}", spec.repository, super::plans::stem(&file.path)), 60);
        let object = json!({
            "apiVersion": kinds::WORKFLOW.api_version(), "kind": kinds::WORKFLOW.kind,
            "metadata": {"name": name, "namespace": namespace, "labels": {labels::APP: spec.repository}},
            "spec": WorkflowSpec {
                repository: spec.repository.clone(),
                file: file.path.clone(),
                name: file.name.clone(),
                git_ref: spec.git_ref.clone(),
                sha: spec.sha.clone(),
                events: file.events.clone(),
                follows: file.follows.clone(),
                schedules: (file.schedules.iter())
                    .map(|it| WorkflowSchedule { cron: it.cron.clone(), timezone: it.timezone.clone() })
                    .collect(),
            },
        });
        client.apply(&kinds::WORKFLOW, &object, labels::MANAGER).await?;
    }
    for object in known {
        let gone = !files.iter().any(|it| object["spec"]["file"] == it.path.as_str());
        if gone {
            client.delete(&kinds::WORKFLOW, namespace, naru_objects::name_of(&object), None).await?;
        }
    }
    Ok(())
}

/// Makes the runs that are due, for as long as the task lives.
pub async fn run_by_the_clock(shared: Arc<Shared>) {
    let mut workflows = shared.workflows.clone();
    loop {
        let now = Timestamp::now();
        let mut wake = LOOK_AGAIN;
        for object in workflows.list() {
            let Ok(workflow) = serde_json::from_value::<Workflow>((*object).clone()) else { continue };
            for schedule in &workflow.spec.schedules {
                let Some(clock) = Clock::of(&workflow, schedule) else { continue };
                if let Some(due) = clock.due(now)
                    && let Err(error) = start_due(&shared, &workflow, schedule, due).await
                {
                    tracing::warn!(workflow = %workflow.metadata.name, %error, "its time is looked at again");
                }
                if let Some(next) = clock.schedule.next(now, &clock.zone) {
                    let left = Duration::try_from(next.duration_since(now)).unwrap_or_default();
                    wake = wake.min(left);
                }
            }
        }
        tokio::select! {
            () = workflows.changed() => {}
            // A little after the minute, so that the clock has surely reached it.
            () = tokio::time::sleep(wake + Duration::from_millis(20)) => {}
        }
    }
}

/// One time table of a workflow with the time since which it counts.
struct Clock {
    schedule: Schedule,
    zone: TimeZone,
    since: Timestamp,
}

impl Clock {
    fn of(workflow: &Workflow, it: &WorkflowSchedule) -> Option<Self> {
        let zone = match it.timezone.as_str() {
            "" => TimeZone::UTC,
            name => TimeZone::get(name).ok()?,
        };
        let seen = workflow.status.scheduled.get(&it.cron).cloned();
        let since = seen.or(workflow.metadata.creation_timestamp.clone())?.parse().ok()?;
        Some(Self { schedule: Schedule::parse(&it.cron)?, zone, since })
    }

    /// The latest time that has come and was not seen to.
    fn due(&self, now: Timestamp) -> Option<Timestamp> {
        let since = self.since.max(now.checked_sub(LATE_MAX).ok()?);
        self.schedule.latest(since, now, &self.zone)
    }
}

async fn start_due(
    shared: &Shared,
    workflow: &Workflow,
    schedule: &WorkflowSchedule,
    due: Timestamp,
) -> Result<(), naru_client::Error> {
    let spec = &workflow.spec;
    // The name follows from the time, so that whoever makes it twice makes it once.
    let name = format!("{}-{}-{}", spec.repository, spec.file, schedule.cron);
    let name = format!("{}-{}", dns_label_unique(&name, 44), due.as_second() / 60);
    let run = RunSpec { event: "schedule".into(), schedule: schedule.cron.clone(), ..of_workflow(workflow) };
    create(shared, &name, run).await?;
    let status = json!({"scheduled": {schedule.cron.clone(): timestamp(due)}});
    let name = &workflow.metadata.name;
    shared.client.merge_status(&kinds::WORKFLOW, &shared.config.namespace, name, &status).await?;
    Ok(())
}

/// A run of a workflow as the default branch has it.
fn of_workflow(workflow: &Workflow) -> RunSpec {
    let spec = &workflow.spec;
    RunSpec {
        repository: spec.repository.clone(),
        git_ref: spec.git_ref.clone(),
        sha: spec.sha.clone(),
        author: "naru".into(),
        message: spec.name.clone(),
        pushed_at: timestamp(Timestamp::now()),
        workflow: spec.file.clone(),
        ..RunSpec::default()
    }
}

async fn create(shared: &Shared, name: &str, mut spec: RunSpec) -> Result<(), naru_client::Error> {
    let change = ChangeId::mint();
    spec.change = change.to_string();
    let object = json!({
        "apiVersion": kinds::RUN.api_version(), "kind": kinds::RUN.kind,
        "metadata": {
            "name": name, "namespace": shared.config.namespace,
            "labels": {labels::CHANGE: change.as_str(), labels::APP: spec.repository}},
        "spec": spec,
    });
    super::already_there_is_fine(shared.client.create(&kinds::RUN, &object).await)
}

/// Makes the runs of workflows that asked to run after one that has just ended.
pub async fn run_after(shared: &Shared, run: &Run, plans: &[Planned]) -> Result<(), naru_client::Error> {
    let chain = run.spec.payload["workflow_run"]["chain"].as_u64().unwrap_or(0) + 1;
    if chain > CHAIN_MAX || plans.is_empty() {
        return Ok(());
    }
    let selector = format!("{}={}", labels::APP, run.spec.repository);
    let objects = shared.client.list(&kinds::WORKFLOW, Some(&shared.config.namespace), &selector).await?;
    for object in objects {
        let Ok(workflow) = serde_json::from_value::<Workflow>(object) else { continue };
        for planned in plans {
            let named = |it: &String| *it == planned.plan.name || *it == planned.plan.file;
            if !workflow.spec.follows.iter().any(named) {
                continue;
            }
            let name = format!("{}-{}-{}", run.metadata.name, planned.plan.file, workflow.metadata.name);
            let spec = RunSpec {
                event: "workflow_run".into(),
                payload: payload(run, planned, chain),
                ..of_workflow(&workflow)
            };
            create(shared, &dns_label_unique(&name, 56), spec).await?;
        }
    }
    Ok(())
}

fn payload(run: &Run, planned: &Planned, chain: u64) -> Value {
    let of_plan = |it: &&JobStatus| planned.keys.contains(&it.key);
    let has = |phase| run.status.jobs.iter().filter(of_plan).any(|it| it.phase == phase);
    let conclusion = match run.status.phase {
        RunPhase::Succeeded => "success",
        _ if has(JobPhase::Failed) => "failure",
        _ if has(JobPhase::Cancelled) || has(JobPhase::Interrupted) => "cancelled",
        _ => "success",
    };
    let spec = &run.spec;
    let branch = if spec.head_ref.is_empty() {
        spec.git_ref.trim_start_matches("refs/heads/").trim_start_matches("refs/tags/")
    } else {
        &spec.head_ref
    };
    let id = naru_token::run_id(&run.metadata.uid);
    json!({
        "action": "completed",
        "workflow": {"name": planned.plan.name, "path": planned.plan.file},
        "workflow_run": {
            "id": id, "name": planned.plan.name, "path": planned.plan.file, "event": spec.event,
            "status": "completed", "conclusion": conclusion, "head_branch": branch, "head_sha": spec.sha,
            "run_number": run.status.number, "display_title": spec.message, "chain": chain,
            "run_attempt": spec.again.as_ref().map_or(1, |it| it.attempt),
            "actor": {"login": spec.author}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use naru_objects::WorkflowStatus;
    use std::collections::BTreeMap;

    #[test]
    fn a_missed_time_is_made_up_for_once_and_not_after_long() {
        let at = |it: &str| it.parse::<Timestamp>().unwrap();
        let schedule = WorkflowSchedule { cron: "0 * * * *".into(), ..WorkflowSchedule::default() };
        let seen = |it: &str| Workflow {
            status: WorkflowStatus { scheduled: BTreeMap::from([("0 * * * *".to_owned(), it.to_owned())]) },
            ..Workflow::default()
        };
        let due = |since: &str, now: &str| Clock::of(&seen(since), &schedule).unwrap().due(at(now));
        let hour = "2026-01-01T05:00:00Z";
        assert_eq!(due("2026-01-01T04:00:00Z", "2026-01-01T05:00:01Z"), Some(at(hour)));
        assert_eq!(due(hour, "2026-01-01T05:10:00Z"), None);
        assert_eq!(due("2026-01-01T01:00:00Z", "2026-01-01T05:10:00Z"), Some(at(hour)));
        assert_eq!(due("2026-01-01T01:00:00Z", "2026-01-01T05:20:00Z"), None, "nobody waits for it any more");
    }
}
