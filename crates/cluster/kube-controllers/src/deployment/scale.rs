//! Sizes of revisions: the step of a rolling update, and the shares when the whole is resized.

use kube_kinds::int;
use serde_json::Value;

use super::{DESIRED, MAXIMUM, Revision, annotated};
use crate::amount::{Round, amount};

/// How far sizes may go.
pub(super) struct Limits {
    pub desired: i64,
    pub surge: i64,
    pub unavailable: i64,
    pub recreate: bool,
}

impl Limits {
    pub fn of(deployment: &Value) -> Limits {
        let desired = int(deployment, "/spec/replicas");
        if deployment["spec"]["strategy"]["type"] == "Recreate" {
            return Limits { desired, surge: 0, unavailable: 0, recreate: true };
        }
        let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
        let surge = amount(&rolling["maxSurge"], desired, Round::Up);
        let mut unavailable = amount(&rolling["maxUnavailable"], desired, Round::Down);
        if surge == 0 && unavailable == 0 {
            // Percentages of few pods: without one of the two nothing could ever move.
            unavailable = 1;
        }
        Limits { desired, surge, unavailable: unavailable.min(desired), recreate: false }
    }
}

fn total(newest: &Revision, old: &[Revision]) -> i64 {
    newest.replicas + old.iter().map(|it| it.replicas).sum::<i64>()
}

/// One step of a rolling update.
pub(super) fn roll(newest: &mut Revision, old: &mut [Revision], limits: &Limits) {
    if newest.replicas > limits.desired {
        newest.replicas = limits.desired;
    } else {
        let room = limits.desired + limits.surge - total(newest, old);
        newest.replicas += room.min(limits.desired - newest.replicas).max(0);
    }
    let available_min = limits.desired - limits.unavailable;
    let not_yet = newest.replicas - newest.available();
    // Pods that do not serve anyway go first; they can be given up without anybody noticing.
    let mut spare = total(newest, old) - available_min - not_yet;
    for it in old.iter_mut() {
        let gone = (it.replicas - it.available()).min(spare).max(0);
        it.replicas -= gone;
        spare -= gone;
    }
    let serving = newest.available() + old.iter().map(Revision::available).sum::<i64>();
    let mut spare = serving - available_min;
    for it in old.iter_mut() {
        let gone = it.replicas.min(spare).max(0);
        it.replicas -= gone;
        spare -= gone;
    }
}

/// Resizes without going on with the rollout: a single revision gets it all, of several each gets its
/// share of what is added or taken.
pub(super) fn all(newest: &mut Option<Revision>, old: &mut [Revision], limits: &Limits, deployment: &Value) {
    let finished = newest.as_ref().is_some_and(|it| {
        it.replicas == limits.desired
            && annotated(&it.set, DESIRED) == Some(limits.desired)
            && it.available() == limits.desired
    });
    if finished {
        old.iter_mut().for_each(|it| it.replicas = 0);
        return;
    }
    let mut active: Vec<&mut Revision> =
        newest.iter_mut().chain(old.iter_mut()).filter(|it| it.replicas > 0).collect();
    match active.len() {
        0 => {
            // All stand at zero: the newest starts, or, while it may not be made, the last one before it.
            if let Some(only) = newest.as_mut().or(old.last_mut()) {
                only.replicas = limits.desired;
            }
        }
        1 => active[0].replicas = limits.desired,
        _ if limits.recreate => {}
        _ => share(&mut active, limits, deployment),
    }
}

fn share(active: &mut [&mut Revision], limits: &Limits, deployment: &Value) {
    let total: i64 = active.iter().map(|it| it.replicas).sum();
    let allowed = if limits.desired > 0 { limits.desired + limits.surge } else { 0 };
    let mut left = allowed - total;
    // The largest first. Of equal ones the newest grows first and the oldest shrinks first; `active` has
    // the newest in front and the others from old to new.
    let age = |at: usize| if at == 0 { usize::MAX } else { at };
    let mut order: Vec<usize> = (0..active.len()).collect();
    order.sort_by_key(|at| {
        let tie = if left > 0 { usize::MAX - age(*at) } else { age(*at) };
        (std::cmp::Reverse(active[*at].replicas), tie)
    });
    for at in &order {
        let it = &mut active[*at];
        let part = fraction(it, limits, deployment);
        let part = if left > 0 { part.clamp(0, left) } else { part.clamp(left, 0) };
        it.replicas += part;
        left -= part;
    }
    // What rounding left over is the largest one's.
    let largest = &mut active[order[0]];
    largest.replicas = (largest.replicas + left).max(0);
}

/// By how much a revision grows when it keeps its share of the whole.
fn fraction(revision: &Revision, limits: &Limits, deployment: &Value) -> i64 {
    if limits.desired == 0 {
        return -revision.replicas;
    }
    let before = annotated(&revision.set, MAXIMUM)
        .filter(|it| *it > 0)
        .unwrap_or_else(|| int(deployment, "/status/replicas"))
        .max(1);
    let now = limits.desired + limits.surge;
    // Rounded to the nearest.
    (revision.replicas * now * 2 + before) / (before * 2) - revision.replicas
}
