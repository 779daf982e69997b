//! Which job comes next: a pure function of the plan and of how far each job is.

use crate::{EvaluateError, Job};
use std::collections::{BTreeMap, BTreeSet};

/// How far a job is, as the planner needs to know it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum JobState {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Skipped,
    /// Stopped by somebody or something before its end.
    Cancelled,
    /// Nobody knows how it would have ended.
    Interrupted,
}

impl JobState {
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// The observed side of one job of the plan, at the same index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobView {
    pub state: JobState,
    pub outputs: BTreeMap<String, String>,
}

/// What should happen now; indices are those of the plan's jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Start(usize),
    Skip(usize, String),
    /// Stop a job, or do not let it begin.
    Cancel(usize, String),
    /// Its condition could not be computed.
    Fail(usize, String),
    /// What it needs has ended and its condition holds: the jobs behind it are to be made.
    Expand(usize),
    /// A call whose jobs have all ended, and how.
    Finish(usize, JobState),
}

const ANOTHER_FAILED: &str = "another combination of the matrix failed";
const CONDITION: &str = "its condition does not hold";

/// Which jobs to start, skip or stop now. Pure; called again whenever a job changes state.
///
/// `cancelled` says that the run as a whole is to end: only jobs whose condition holds even so go on or
/// begin. `condition` evaluates a job's own condition; for a job that has not begun, once everything that it
/// needs has ended.
pub fn plan_next(
    jobs: &[Job],
    views: &[JobView],
    cancelled: bool,
    condition: impl Fn(&Job) -> Result<bool, EvaluateError>,
) -> Vec<Next> {
    assert_eq!(jobs.len(), views.len(), "one view per job");
    let mut next = Vec::new();
    let mut running: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (job, view) in jobs.iter().zip(views) {
        if view.state == JobState::Running {
            *running.entry((&job.scope, &job.id)).or_default() += 1;
        }
    }
    let stopped = stopped_by_a_sibling(jobs, views);
    for (index, (job, view)) in jobs.iter().zip(views).enumerate() {
        let is_stopped = stopped.contains(job.key.as_str());
        match view.state {
            JobState::Running if job.call.is_some() => {
                let inner = || jobs.iter().zip(views).filter(|(it, _)| it.scope == job.key);
                let expanded = job.call.as_ref().is_some_and(|it| it.expanded);
                if expanded && inner().all(|(_, it)| it.state.is_final()) {
                    next.push(Next::Finish(index, together(inner())));
                }
            }
            JobState::Running if is_stopped => next.push(Next::Cancel(index, ANOTHER_FAILED.into())),
            // A job that wants to run in any case, said by its condition, is left to its end.
            JobState::Running
                if cancelled && (job.condition.is_none() || !matches!(condition(job), Ok(true))) =>
            {
                next.push(Next::Cancel(index, "the run was cancelled".into()));
            }
            JobState::Pending if is_stopped => next.push(Next::Cancel(index, ANOTHER_FAILED.into())),
            JobState::Pending => {
                let waits = |(it, view): (&Job, &JobView)| {
                    it.scope == job.scope && job.needs.contains(&it.id) && !view.state.is_final()
                };
                if jobs.iter().zip(views).any(waits) {
                    continue;
                }
                match condition(job) {
                    Ok(true) if job.deferred.is_some() => next.push(Next::Expand(index)),
                    Ok(true) => {
                        let count = running.entry((&job.scope, &job.id)).or_default();
                        if job.parallel_max == 0 || *count < job.parallel_max {
                            *count += 1;
                            let start = if job.call.is_some() { Next::Expand } else { Next::Start };
                            next.push(start(index));
                        }
                    }
                    Ok(false) if cancelled => next.push(Next::Cancel(index, "the run was cancelled".into())),
                    Ok(false) => next.push(Next::Skip(index, CONDITION.into())),
                    Err(error) => next.push(Next::Fail(index, error.message)),
                }
            }
            _ => {}
        }
    }
    next
}

/// Keys of the jobs that end because another combination of their matrix failed, or of the matrix of a call
/// that they belong to.
fn stopped_by_a_sibling<'a>(jobs: &'a [Job], views: &[JobView]) -> BTreeSet<&'a str> {
    let mut stopped: BTreeSet<&str> = BTreeSet::new();
    for job in jobs {
        // A call stands before the jobs that it brings in.
        let by_sibling = job.fail_fast
            && !job.matrix.is_empty()
            && jobs.iter().zip(views).any(|(other, it)| {
                other.scope == job.scope
                    && other.id == job.id
                    && it.state == JobState::Failed
                    && !other.continue_on_error
            });
        if by_sibling || stopped.contains(job.scope.as_str()) {
            stopped.insert(&job.key);
        }
    }
    stopped
}

/// How several jobs that stand for one have ended together.
fn together<'a>(mut of: impl Iterator<Item = (&'a Job, &'a JobView)> + Clone) -> JobState {
    if of.clone().any(|(job, it)| it.state == JobState::Failed && !job.continue_on_error) {
        JobState::Failed
    } else if of.clone().any(|(_, it)| matches!(it.state, JobState::Cancelled | JobState::Interrupted)) {
        JobState::Cancelled
    } else if of.all(|(_, it)| it.state == JobState::Skipped) {
        JobState::Skipped
    } else {
        JobState::Succeeded
    }
}

/// The result of everything named `id` in a scope together, in the words that conditions compare with.
pub fn result_of(scope: &str, id: &str, jobs: &[Job], views: &[JobView]) -> &'static str {
    match together(jobs.iter().zip(views).filter(|(job, _)| job.scope == scope && job.id == id)) {
        JobState::Failed => "failure",
        JobState::Cancelled => "cancelled",
        JobState::Skipped => "skipped",
        _ => "success",
    }
}

/// The outputs of everything named `id` in a scope; of two combinations the later in the plan wins.
pub fn outputs_of(scope: &str, id: &str, jobs: &[Job], views: &[JobView]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (_, view) in jobs.iter().zip(views).filter(|(job, _)| job.scope == scope && job.id == id) {
        all.extend(view.outputs.clone().into_iter().filter(|(_, it)| !it.is_empty()));
    }
    all
}

/// What `success()` and its kin say to a job before it begins: everything that it needs, directly or not, went
/// well. A job that failed far up counts also when what lies between was skipped or runs always.
pub fn status_before(job: &Job, jobs: &[Job], views: &[JobView]) -> &'static str {
    let mut ancestors: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = job.needs.iter().map(String::as_str).collect();
    while let Some(id) = open.pop() {
        if ancestors.insert(id) {
            let of_id = jobs.iter().filter(|it| it.scope == job.scope && it.id == id);
            open.extend(of_id.flat_map(|it| &it.needs).map(String::as_str));
        }
    }
    let results = ancestors.into_iter().map(|id| result_of(&job.scope, id, jobs, views));
    results.fold("success", |all, it| match (all, it) {
        ("failure", _) | (_, "failure") => "failure",
        (_, "success") => all,
        _ => "skipped",
    })
}

/// The first circle among the `needs`, as the ids along it, if there is one.
pub fn needs_cycle(jobs: &[Job]) -> Option<Vec<String>> {
    fn visit<'a>(
        id: &'a str,
        needs: &BTreeMap<&'a str, &'a [String]>,
        path: &mut Vec<&'a str>,
        done: &mut Vec<&'a str>,
    ) -> Option<Vec<String>> {
        if done.contains(&id) {
            return None;
        }
        if let Some(start) = path.iter().position(|it| *it == id) {
            let mut circle: Vec<String> = path[start..].iter().map(|it| (*it).to_owned()).collect();
            circle.push(id.to_owned());
            return Some(circle);
        }
        path.push(id);
        for need in needs.get(id).copied().unwrap_or_default() {
            if let Some(circle) = visit(need, needs, path, done) {
                return Some(circle);
            }
        }
        path.pop();
        done.push(id);
        None
    }
    let needs: BTreeMap<&str, &[String]> =
        jobs.iter().map(|it| (it.id.as_str(), it.needs.as_slice())).collect();
    let mut done = Vec::new();
    needs.keys().find_map(|id| visit(id, &needs, &mut Vec::new(), &mut done))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Call;
    use serde_json::{Map, Value, json};

    fn job(id: &str, needs: &[&str]) -> Job {
        Job {
            id: id.into(),
            key: id.into(),
            needs: needs.iter().map(|it| (*it).to_owned()).collect(),
            ..Job::default()
        }
    }

    fn view(state: JobState) -> JobView {
        JobView { state, ..JobView::default() }
    }

    #[test]
    fn a_job_waits_for_what_it_needs() {
        let jobs = [job("a", &[]), job("b", &["a"])];
        let go = |_: &Job| Ok(true);
        let at = |a, b| plan_next(&jobs, &[view(a), view(b)], false, go);
        assert_eq!(at(JobState::Pending, JobState::Pending), vec![Next::Start(0)]);
        assert_eq!(at(JobState::Running, JobState::Pending), vec![]);
        assert_eq!(at(JobState::Succeeded, JobState::Pending), vec![Next::Start(1)]);
    }

    #[test]
    fn a_failed_combination_stops_its_matrix() {
        let combination = |key: &str| Job {
            key: key.into(),
            matrix: Map::from_iter([("v".to_owned(), Value::from(key))]),
            fail_fast: true,
            ..job("m", &[])
        };
        let jobs = [combination("m-1"), combination("m-2"), combination("m-3")];
        let views = [view(JobState::Failed), view(JobState::Running), view(JobState::Pending)];
        let next = plan_next(&jobs, &views, false, |_| Ok(true));
        assert!(matches!(next.as_slice(), [Next::Cancel(1, _), Next::Cancel(2, _)]), "{next:?}");
    }

    #[test]
    fn max_parallel_holds_combinations_back() {
        let combination = |key: &str| Job { key: key.into(), parallel_max: 2, ..job("m", &[]) };
        let jobs = [combination("1"), combination("2"), combination("3")];
        let views = [view(JobState::Running), view(JobState::Pending), view(JobState::Pending)];
        assert_eq!(plan_next(&jobs, &views, false, |_| Ok(true)), vec![Next::Start(1)]);
    }

    #[test]
    fn a_circle_of_needs_is_named() {
        let circle = needs_cycle(&[job("a", &["c"]), job("b", &["a"]), job("c", &["b"])]).unwrap();
        assert_eq!(circle, ["a", "c", "b", "a"]);
        assert_eq!(needs_cycle(&[job("a", &[]), job("b", &["a"]), job("c", &["a", "b"])]), None);
    }

    #[test]
    fn a_call_brings_its_jobs_in_and_ends_with_them() {
        let call = |expanded| Job { call: Some(Call { expanded, ..Call::default() }), ..job("c", &["a"]) };
        let inner =
            |id: &str, needs: &[&str]| Job { scope: "c".into(), key: format!("c-{id}"), ..job(id, needs) };
        let go = |_: &Job| Ok(true);
        let jobs = [job("a", &[]), call(false), job("z", &["c"])];
        let views = [view(JobState::Succeeded), view(JobState::Pending), view(JobState::Pending)];
        assert_eq!(plan_next(&jobs, &views, false, go), vec![Next::Expand(1)]);

        // An inner `a` is another one than that of the caller.
        let jobs = [job("a", &[]), call(true), inner("a", &[]), inner("b", &["a"]), job("z", &["c"])];
        let at = |a, b, c| {
            let states = [JobState::Succeeded, c, a, b, JobState::Pending];
            plan_next(&jobs, &states.map(view), false, go)
        };
        assert_eq!(at(JobState::Pending, JobState::Pending, JobState::Running), vec![Next::Start(2)]);
        assert_eq!(at(JobState::Succeeded, JobState::Pending, JobState::Running), vec![Next::Start(3)]);
        let end = at(JobState::Succeeded, JobState::Failed, JobState::Running);
        assert_eq!(end, vec![Next::Finish(1, JobState::Failed)]);
        assert_eq!(at(JobState::Succeeded, JobState::Failed, JobState::Failed), vec![Next::Start(4)]);
    }

    #[test]
    fn what_depends_on_outputs_is_made_once_they_are_there() {
        let later = Job { deferred: Some(json!({})), ..job("m", &["a"]) };
        let jobs = [job("a", &[]), later];
        let at = |a| plan_next(&jobs, &[view(a), view(JobState::Pending)], false, |_| Ok(true));
        assert_eq!(at(JobState::Running), vec![]);
        assert_eq!(at(JobState::Succeeded), vec![Next::Expand(1)]);
    }

    #[test]
    fn a_cancelled_run_lets_only_those_go_on_that_want_to_in_any_case() {
        let always = |id: &str, needs: &[&str]| Job { condition: Some("always()".into()), ..job(id, needs) };
        let jobs = [job("a", &[]), always("b", &[]), job("c", &["a"]), always("d", &["a"])];
        let views = [JobState::Running, JobState::Running, JobState::Pending, JobState::Pending].map(view);
        let next = |views: &[JobView]| plan_next(&jobs, views, true, |it| Ok(it.condition.is_some()));
        assert!(matches!(next(&views).as_slice(), [Next::Cancel(0, _)]), "{:?}", next(&views));
        let views = [JobState::Cancelled, JobState::Running, JobState::Pending, JobState::Pending].map(view);
        assert!(matches!(next(&views).as_slice(), [Next::Cancel(2, _), Next::Start(3)]));
    }

    #[test]
    fn a_failure_far_up_counts_beyond_what_was_skipped() {
        let jobs = [job("a", &[]), job("b", &["a"]), job("c", &["b"]), job("d", &[])];
        let views = [JobState::Failed, JobState::Skipped, JobState::Pending, JobState::Pending].map(view);
        assert_eq!(status_before(&jobs[2], &jobs, &views), "failure");
        assert_eq!(status_before(&jobs[3], &jobs, &views), "success");
    }
}
