//! A run that is done again: what of the one before is kept, and what begins anew. Pure.

use naru_objects::{JobPhase, JobStatus, StepStatus};
use std::collections::BTreeMap;

/// What a run that is done again takes over from the one before: every job that is not done again. Of those that
/// stand behind a call or a matrix only those begin anew that are asked for, unless only the call itself is: then
/// all of it starts from the file.
pub(super) fn taken_over(fresh: Vec<JobStatus>, before: &[JobStatus], again: &[String]) -> Vec<JobStatus> {
    /// A job's own status and those of everything behind it, in their order.
    fn of<'a>(key: &str, before: &'a [JobStatus]) -> Vec<&'a JobStatus> {
        let mut keys = vec![key.to_owned()];
        let mut found = Vec::new();
        for it in before {
            if it.key == key || keys.contains(&it.behind) {
                keys.push(it.key.clone());
                found.push(it);
            }
        }
        found
    }
    fresh
        .into_iter()
        .flat_map(|job| {
            let all = of(&job.key, before);
            let is_led = |key: &str| all.iter().any(|it| it.behind == key);
            let asked: Vec<&str> =
                all.iter().filter(|it| again.contains(&it.key)).map(|it| it.key.as_str()).collect();
            if all.is_empty() || !asked.is_empty() && asked.iter().all(|it| is_led(it) || *it == job.key) {
                return vec![job];
            }
            // A call goes on if anything behind it does.
            let goes_on = |key: &str| {
                let mut open = vec![key.to_owned()];
                while let Some(leader) = open.pop() {
                    for it in all.iter().filter(|it| it.behind == leader) {
                        if asked.contains(&it.key.as_str()) && !is_led(&it.key) {
                            return true;
                        }
                        open.push(it.key.clone());
                    }
                }
                false
            };
            all.iter()
                .map(|it| match () {
                    () if is_led(&it.key) && goes_on(&it.key) => JobStatus {
                        phase: JobPhase::Running,
                        message: String::new(),
                        finished_at: String::new(),
                        outputs: BTreeMap::new(),
                        ..(*it).clone()
                    },
                    () if asked.contains(&it.key.as_str()) && !is_led(&it.key) => begun_anew(it),
                    () => (*it).clone(),
                })
                .collect()
        })
        .collect()
}

/// A job as it stood before it began.
fn begun_anew(job: &JobStatus) -> JobStatus {
    let step = |it: &StepStatus| StepStatus { name: it.name.clone(), ..StepStatus::default() };
    JobStatus {
        key: job.key.clone(),
        name: job.name.clone(),
        behind: job.behind.clone(),
        steps: job.steps.iter().map(step).collect(),
        ..JobStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_done_again_keeps_what_went_well() {
        let status = |key: &str, behind: &str, phase| JobStatus {
            key: key.into(),
            behind: behind.into(),
            phase,
            ..JobStatus::default()
        };
        let fresh = ["a", "call", "m"].map(|it| status(it, "", JobPhase::Pending)).to_vec();
        let before = [
            status("a", "", JobPhase::Succeeded),
            status("call", "", JobPhase::Failed),
            status("call-x", "call", JobPhase::Failed),
            status("call-y", "call", JobPhase::Succeeded),
            status("m-1", "m", JobPhase::Succeeded),
            status("m-2", "m", JobPhase::Succeeded),
        ];
        let of = |again: &[&str]| {
            let again: Vec<String> = again.iter().map(|it| (*it).to_owned()).collect();
            let taken = taken_over(fresh.clone(), &before, &again);
            taken.iter().map(|it| format!("{} {:?}", it.key, it.phase)).collect::<Vec<_>>().join(", ")
        };
        // What failed behind a call, the rest of it not; all of it, if the call is what is asked for.
        let part =
            "a Succeeded, call Running, call-x Pending, call-y Succeeded, m-1 Succeeded, m-2 Succeeded";
        assert_eq!(of(&["call", "call-x"]), part);
        assert_eq!(of(&["call-x"]), part);
        assert_eq!(of(&["call"]), "a Succeeded, call Pending, m-1 Succeeded, m-2 Succeeded");
        assert_eq!(
            of(&["a", "m-2"]),
            "a Pending, call Failed, call-x Failed, call-y Succeeded, m-1 Succeeded, m-2 Pending"
        );
    }
}
