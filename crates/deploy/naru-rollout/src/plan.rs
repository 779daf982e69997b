//! What a release needs next. Pure: objects and the time go in, one step comes out, so that a dry run is
//! the real run and a test needs no cluster.

use jiff::{SignedDuration, Timestamp};
use naru_objects::{Release, ReleasePhase, Strategy, VerdictOutcome};
use std::collections::BTreeMap;

/// A release whose pods are not ready by then has failed. Larger than a Deployment's own deadline would
/// be for one pod, because the pods of a release may come up one after the other.
const READY_WITHIN: SignedDuration = SignedDuration::from_secs(180);

/// One workload (Deployment) as observed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Workload {
    /// Replicas that the Deployment asks for; `None` if there is no such Deployment.
    pub wanted: Option<u32>,
    /// Ready pods that the service's endpoints name too.
    pub ready: u32,
    /// Why pods cannot run, if they cannot.
    pub broken: Option<String>,
}

/// Workloads by name.
pub type Workloads = BTreeMap<String, Workload>;

/// The next step of a release.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Create the objects, workloads with these replicas, and leave traffic where it is.
    Apply {
        replicas: Vec<(String, u32)>,
    },
    Scale {
        workload: String,
        replicas: u32,
    },
    /// Give the release this share of the traffic, in per cent.
    SetWeight {
        weight: u32,
    },
    /// The canary step was judged good, or needs no judgement.
    NextStep,
    Wait {
        why: String,
    },
    Promote,
    /// Traffic back to the release before, then the new pods away.
    RollBack {
        why: String,
    },
    /// It never had traffic: the new pods away.
    Fail {
        why: String,
    },
}

/// The shares of traffic that a release goes through, the last being 100.
pub fn steps(release: &Release, previous: Option<&Release>) -> Vec<u32> {
    if previous.is_none() {
        return vec![100];
    }
    let canary = release.spec.services.iter().find_map(|it| match &it.strategy {
        Strategy::Canary { steps, .. } => Some(steps.clone()),
        Strategy::Rolling => None,
    });
    canary.unwrap_or_else(|| {
        let replicas = release.spec.services.iter().map(|it| it.replicas).max().unwrap_or(1).max(1);
        (1..=replicas).map(|it| (100 * it).div_ceil(replicas)).collect()
    })
}

/// Whether monitor judges the release's steps.
pub fn is_judged(release: &Release, previous: Option<&Release>) -> bool {
    previous.is_some()
        && release.spec.services.iter().any(|it| matches!(it.strategy, Strategy::Canary { .. }))
}

/// Replicas that carry a share of the traffic.
fn replicas_at(replicas: u32, weight: u32) -> u32 {
    (replicas * weight).div_ceil(100).max(1)
}

pub fn plan_next(
    release: &Release,
    previous: Option<&Release>,
    workloads: &Workloads,
    now: Timestamp,
) -> Step {
    let steps = steps(release, previous);
    let status = &release.status;
    let index = (status.step as usize).min(steps.len() - 1);
    let weight = steps[index];
    if status.phase == ReleasePhase::Pending {
        let replicas = release
            .spec
            .services
            .iter()
            .map(|it| (it.workload.clone(), replicas_at(it.replicas, weight)))
            .collect();
        return Step::Apply { replicas };
    }

    let since = status.step_started_at.parse().or_else(|_| status.started_at.parse::<Timestamp>());
    let late = since.is_ok_and(|it| now.duration_since(it) > READY_WITHIN);
    let end = |why: String| {
        if previous.is_none() || status.weight == 0 {
            return Step::Fail { why };
        }
        restore_previous(previous, release, workloads, late).unwrap_or(Step::RollBack { why })
    };
    // Before anything else: a version that fails its requests often cannot keep its pods ready either, and
    // must not escape by that.
    let judged = status.verdicts.iter().rev().find(|it| it.step == index as u32);
    if let Some(it) = judged.filter(|it| it.outcome == VerdictOutcome::Bad && is_judged(release, previous)) {
        return end(it.why.clone());
    }
    let mut waiting = None;
    for service in &release.spec.services {
        let workload = workloads.get(&service.workload).cloned().unwrap_or_default();
        if let Some(why) = workload.broken {
            return end(format!("{}: {why}", service.workload));
        }
        let want = replicas_at(service.replicas, weight);
        if workload.wanted.is_some_and(|it| it != want) {
            return Step::Scale { workload: service.workload.clone(), replicas: want };
        }
        if workload.ready < want {
            waiting = Some(format!("{} has {} of {want} pods ready", service.workload, workload.ready));
        }
    }
    if let Some(why) = waiting {
        return if late && status.weight != weight { end(why) } else { Step::Wait { why } };
    }
    if status.weight != weight {
        return Step::SetWeight { weight };
    }
    if !is_judged(release, previous) {
        if let Some(step) = scale_previous(previous, release, workloads, weight) {
            return step;
        }
        return if index + 1 == steps.len() { Step::Promote } else { Step::NextStep };
    }
    match judged {
        Some(it) if it.outcome == VerdictOutcome::Good => {
            if index + 1 == steps.len() {
                Step::Promote
            } else {
                Step::NextStep
            }
        }
        // A judgement that could not be made moves nothing: monitor tries again.
        Some(it) => Step::Wait { why: it.why.clone() },
        None => Step::Wait { why: format!("watching {weight} % of the traffic") },
    }
}

/// Before traffic goes back, the old version's pods do: a rolling release has taken them away one by one.
/// Waits for the first of them as long as the new version can still answer, but not for ever.
fn restore_previous(
    previous: Option<&Release>,
    release: &Release,
    workloads: &Workloads,
    late: bool,
) -> Option<Step> {
    let answers = |it: &Release| {
        it.spec.services.iter().all(|it| workloads.get(&it.workload).is_some_and(|it| it.ready > 0))
    };
    let previous = previous?;
    let scale = previous.spec.services.iter().find_map(|old| {
        let wanted = workloads.get(&old.workload)?.wanted?;
        (wanted < old.replicas)
            .then(|| Step::Scale { workload: old.workload.clone(), replicas: old.replicas })
    });
    scale.or_else(|| {
        (!late && !answers(previous) && answers(release))
            .then(|| Step::Wait { why: "the release before is brought back".into() })
    })
}

/// A rolling release takes the old pods away as the new ones take over.
fn scale_previous(
    previous: Option<&Release>,
    release: &Release,
    workloads: &Workloads,
    weight: u32,
) -> Option<Step> {
    let previous = previous?;
    previous.spec.services.iter().find_map(|old| {
        // A service that the new release does not have keeps its pods until the release is promoted.
        release.spec.services.iter().find(|it| it.service == old.service)?;
        let replicas = old.replicas - (old.replicas * weight / 100).min(old.replicas);
        let wanted = workloads.get(&old.workload)?.wanted?;
        (wanted > replicas).then(|| Step::Scale { workload: old.workload.clone(), replicas })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use naru_objects::{Meta, ReleaseSpec, ReleaseStatus, ServiceRollout, Verdict};

    fn release(number: u64, strategy: Strategy) -> Release {
        let workload = format!("shop-web-r{number}");
        Release {
            api_version: "naru.dev/v1".into(),
            kind: "Release".into(),
            metadata: Meta { name: format!("shop-r{number}"), ..Meta::default() },
            spec: ReleaseSpec {
                app: "shop".into(),
                number,
                services: vec![ServiceRollout {
                    service: "web".into(),
                    workload,
                    route: Some("shop-web".into()),
                    replicas: 2,
                    port: 80,
                    strategy,
                }],
                ..ReleaseSpec::default()
            },
            status: ReleaseStatus { phase: ReleasePhase::Progressing, ..ReleaseStatus::default() },
        }
    }

    fn canary() -> Strategy {
        Strategy::Canary { steps: vec![10, 50, 100], window_seconds: 30 }
    }

    fn workloads(items: &[(&str, u32, u32)]) -> Workloads {
        items
            .iter()
            .map(|(name, wanted, ready)| {
                ((*name).to_owned(), Workload { wanted: Some(*wanted), ready: *ready, broken: None })
            })
            .collect()
    }

    fn verdict(step: u32, outcome: VerdictOutcome) -> Verdict {
        Verdict { step, outcome, why: "because".into(), ..Verdict::default() }
    }

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_canary_moves_only_on_a_good_verdict() {
        let old = release(1, canary());
        let mut new = release(2, canary());
        let at = |new: &Release, wanted, ready| {
            plan_next(new, Some(&old), &workloads(&[("shop-web-r2", wanted, ready)]), NOW)
        };
        assert!(matches!(at(&new, 1, 0), Step::Wait { .. }));
        assert_eq!(at(&new, 1, 1), Step::SetWeight { weight: 10 });
        new.status.weight = 10;
        assert!(matches!(at(&new, 1, 1), Step::Wait { .. }));
        new.status.verdicts = vec![verdict(0, VerdictOutcome::Inconclusive)];
        assert!(matches!(at(&new, 1, 1), Step::Wait { .. }));
        new.status.verdicts = vec![verdict(0, VerdictOutcome::Good)];
        assert_eq!(at(&new, 1, 1), Step::NextStep);
        (new.status.step, new.status.weight) = (2, 50);
        assert_eq!(at(&new, 1, 1), Step::Scale { workload: "shop-web-r2".into(), replicas: 2 });
        assert_eq!(at(&new, 2, 2), Step::SetWeight { weight: 100 });
        new.status.weight = 100;
        new.status.verdicts.push(verdict(2, VerdictOutcome::Good));
        assert_eq!(at(&new, 2, 2), Step::Promote);
    }

    #[test]
    fn a_bad_verdict_rolls_back_and_a_dead_image_never_gets_traffic() {
        let old = release(1, canary());
        let mut new = release(2, canary());
        let mut broken = workloads(&[("shop-web-r2", 1, 0)]);
        broken.get_mut("shop-web-r2").unwrap().broken = Some("ErrImagePull".into());
        assert_eq!(
            plan_next(&new, Some(&old), &broken, NOW),
            Step::Fail { why: "shop-web-r2: ErrImagePull".into() }
        );
        new.status.weight = 10;
        new.status.verdicts = vec![verdict(0, VerdictOutcome::Bad)];
        for ready in [0, 1] {
            let workloads = workloads(&[("shop-web-r2", 1, ready), ("shop-web-r1", 2, 2)]);
            let step = plan_next(&new, Some(&old), &workloads, NOW);
            assert_eq!(step, Step::RollBack { why: "because".into() }, "{ready} ready");
        }
    }

    #[test]
    fn traffic_never_goes_back_to_pods_that_were_taken_away() {
        let old = release(1, Strategy::Rolling);
        let mut new = release(2, Strategy::Rolling);
        new.status.weight = 100;
        let at = |old_wanted, old_ready| {
            let mut workloads = workloads(&[("shop-web-r2", 2, 1), ("shop-web-r1", old_wanted, old_ready)]);
            workloads.get_mut("shop-web-r2").unwrap().broken = Some("it crashes".into());
            plan_next(&new, Some(&old), &workloads, NOW)
        };
        assert_eq!(at(0, 0), Step::Scale { workload: "shop-web-r1".into(), replicas: 2 });
        assert!(matches!(at(2, 0), Step::Wait { .. }));
        assert!(matches!(at(2, 1), Step::RollBack { .. }));
    }

    #[test]
    fn a_rolling_release_exchanges_pod_by_pod() {
        let old = release(1, Strategy::Rolling);
        let mut new = release(2, Strategy::Rolling);
        new.status.weight = 50;
        let at = |new: &Release, old_wanted| {
            let workloads = workloads(&[("shop-web-r2", 1, 1), ("shop-web-r1", old_wanted, old_wanted)]);
            plan_next(new, Some(&old), &workloads, NOW)
        };
        assert_eq!(at(&new, 2), Step::Scale { workload: "shop-web-r1".into(), replicas: 1 });
        assert_eq!(at(&new, 1), Step::NextStep);
    }

    #[test]
    fn the_first_release_takes_all_traffic_at_once() {
        let new = release(1, canary());
        assert_eq!(
            plan_next(&new, None, &workloads(&[("shop-web-r1", 2, 2)]), NOW),
            Step::SetWeight { weight: 100 }
        );
    }

    #[test]
    fn pods_that_never_get_ready_end_the_release() {
        let old = release(1, canary());
        let mut new = release(2, canary());
        new.status.started_at = "1970-01-01T00:00:00Z".into();
        let later = NOW + SignedDuration::from_secs(181);
        let step = plan_next(&new, Some(&old), &workloads(&[("shop-web-r2", 1, 0)]), later);
        assert!(matches!(step, Step::Fail { .. }), "{step:?}");
    }
}
