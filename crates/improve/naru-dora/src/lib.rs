//! The four delivery figures, folded from the objects that the loop leaves behind. Pure; the definitions
//! are those of DORA's yearly reports:
//!
//! - **deployment frequency**: releases promoted per day;
//! - **lead time for changes**: from the commit to all traffic on it, the median;
//! - **change failure rate**: releases that were rolled back, failed in traffic or were undone by hand, of
//!   all that reached traffic;
//! - **time to restore**: from the moment a bad release got traffic to the moment traffic was good again,
//!   the median.

use jiff::{SignedDuration, Timestamp};
use naru_objects::{Release, ReleasePhase, Run};
use serde::Serialize;

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// The days that the figures cover.
    pub days: f64,
    /// Releases that got all the traffic.
    pub deployments: usize,
    pub deployments_per_day: f64,
    pub lead_time_seconds: Option<f64>,
    /// 0 to 1; `None` before the first release.
    pub change_failure_rate: Option<f64>,
    pub failures: usize,
    pub time_to_restore_seconds: Option<f64>,
}

/// Folds the objects of one app, or of all, over the window that ends at `now`.
pub fn fold(runs: &[Run], releases: &[Release], now: Timestamp, window: SignedDuration) -> Figures {
    let begin = now.checked_sub(window).unwrap_or(Timestamp::MIN);
    let time = |text: &str| text.parse::<Timestamp>().ok();
    let within = |it: &Timestamp| *it >= begin && *it <= now;
    let live: Vec<(&Release, Timestamp)> =
        releases.iter().filter_map(|it| Some((it, time(&it.status.live_at).filter(&within)?))).collect();

    let mut lead_times = Vec::new();
    let mut deployments = 0;
    let mut restores = Vec::new();
    let mut failures = 0;
    // A release that brings an earlier one back is a repair and no change: it counts on neither side.
    for (release, live_at) in live.iter().filter(|(it, _)| it.spec.rollback_of.is_none()) {
        if let Some(promoted) = time(&release.status.promoted_at) {
            deployments += 1;
            let run = runs.iter().find(|it| it.spec.change == release.spec.change);
            let committed = run.and_then(|it| time(&it.spec.committed_at).or(time(&it.spec.pushed_at)));
            if let Some(committed) = committed {
                lead_times.push(promoted.duration_since(committed).as_secs_f64().max(0.0));
            }
            // Undone by hand: the release after it brought one before it back.
            let undone = live.iter().find(|(other, at)| {
                other.spec.app == release.spec.app
                    && other.spec.rollback_of.is_some()
                    && at > live_at
                    && is_next(release, other, &live)
            });
            if let Some((undo, _)) = undone
                && let Some(restored) = time(&undo.status.promoted_at)
            {
                failures += 1;
                restores.push(restored.duration_since(*live_at).as_secs_f64());
            }
        } else if matches!(release.status.phase, ReleasePhase::RolledBack | ReleasePhase::Failed) {
            failures += 1;
            if let Some(restored) = time(&release.status.finished_at) {
                restores.push(restored.duration_since(*live_at).as_secs_f64());
            }
        }
    }
    let reached_traffic = live.iter().filter(|(it, _)| it.spec.rollback_of.is_none()).count();
    // A team that began yesterday is not divided by a month.
    let first = live.iter().map(|it| it.1).min().unwrap_or(now);
    let days =
        (now.duration_since(first).as_secs_f64() / 86_400.0).clamp(1.0, window.as_secs_f64() / 86_400.0);
    Figures {
        days,
        deployments,
        deployments_per_day: deployments as f64 / days,
        lead_time_seconds: median(lead_times),
        change_failure_rate: (reached_traffic > 0).then(|| failures as f64 / reached_traffic as f64),
        failures,
        time_to_restore_seconds: median(restores),
    }
}

/// Whether `undo` is the first release of the app that got traffic after `release`.
fn is_next(release: &Release, undo: &Release, live: &[(&Release, Timestamp)]) -> bool {
    let next = live
        .iter()
        .map(|(it, _)| it)
        .filter(|it| it.spec.app == release.spec.app && it.spec.number > release.spec.number)
        .filter(|it| !it.status.promoted_at.is_empty())
        .min_by_key(|it| it.spec.number);
    next.is_some_and(|it| it.spec.number == undo.spec.number)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        len if len % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn release(number: u64, change: &str, status: serde_json::Value, rollback_of: Option<&str>) -> Release {
        serde_json::from_value(json!({
            "apiVersion": "naru.dev/v1", "kind": "Release", "metadata": {"name": format!("shop-r{number}")},
            "spec": {"app": "shop", "number": number, "change": change, "images": {}, "objects": [],
                     "services": [], "rollbackOf": rollback_of},
            "status": status,
        }))
        .unwrap()
    }

    fn run(change: &str, committed: &str) -> Run {
        serde_json::from_value(json!({
            "apiVersion": "naru.dev/v1", "kind": "Run", "metadata": {"name": change},
            "spec": {"repository": "shop", "gitRef": "refs/heads/main", "sha": "0", "change": change,
                     "event": "push", "committedAt": committed, "pushedAt": committed},
        }))
        .unwrap()
    }

    #[test]
    fn two_good_releases_and_a_bad_one() {
        let runs = [run("c-1", "2026-01-01T10:00:00Z"), run("c-2", "2026-01-01T11:00:00Z")];
        let good =
            |live: &str, promoted: &str| json!({"phase": "Promoted", "liveAt": live, "promotedAt": promoted});
        let releases = [
            release(1, "c-1", good("2026-01-01T10:01:00Z", "2026-01-01T10:02:00Z"), None),
            release(2, "c-2", good("2026-01-01T11:01:00Z", "2026-01-01T11:04:00Z"), None),
            release(
                3,
                "c-3",
                json!({"phase": "RolledBack", "liveAt": "2026-01-01T12:00:00Z", "finishedAt": "2026-01-01T12:00:30Z"}),
                None,
            ),
        ];
        let now = "2026-01-01T13:00:00Z".parse().unwrap();
        let figures = fold(&runs, &releases, now, SignedDuration::from_hours(24 * 30));
        assert_eq!(figures.deployments, 2);
        assert_eq!(figures.lead_time_seconds, Some(180.0));
        assert_eq!(figures.change_failure_rate, Some(1.0 / 3.0));
        assert_eq!(figures.time_to_restore_seconds, Some(30.0));
    }

    #[test]
    fn a_rollback_by_hand_makes_the_release_before_it_a_failure() {
        let at = |live: &str, promoted: &str| json!({"phase": "Superseded", "liveAt": live, "promotedAt": promoted});
        let releases = [
            release(1, "c-1", at("2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z"), None),
            release(2, "c-2", at("2026-01-01T11:00:00Z", "2026-01-01T11:00:00Z"), None),
            release(3, "c-1", at("2026-01-01T11:09:00Z", "2026-01-01T11:10:00Z"), Some("shop-r1")),
        ];
        let now = "2026-01-01T13:00:00Z".parse().unwrap();
        let figures = fold(&[], &releases, now, SignedDuration::from_hours(24));
        assert_eq!((figures.deployments, figures.failures), (2, 1));
        assert_eq!(figures.time_to_restore_seconds, Some(600.0));
    }

    #[test]
    fn rollbacks_count_once_whatever_the_order_of_the_list_and_are_no_changes_themselves() {
        let at = |hour: u32| {
            let time = format!("2026-01-01T{hour:02}:00:00Z");
            json!({"phase": "Superseded", "liveAt": time, "promotedAt": time})
        };
        let bad_rollback = json!({"phase": "RolledBack", "liveAt": "2026-01-01T11:00:00Z", "finishedAt": "2026-01-01T11:01:00Z"});
        // As the API lists them, by name: `shop-r10` stands before `shop-r2`.
        let releases = [
            release(1, "c-1", at(1), None),
            release(10, "c-1", at(10), Some("shop-r1")),
            release(11, "c-1", bad_rollback, Some("shop-r1")),
            release(2, "c-2", at(2), None),
            release(3, "c-1", at(3), Some("shop-r1")),
            release(9, "c-9", at(9), None),
        ];
        let now = "2026-01-01T13:00:00Z".parse().unwrap();
        let figures = fold(&[], &releases, now, SignedDuration::from_hours(24));
        assert_eq!((figures.deployments, figures.failures), (3, 2));
        assert_eq!(figures.change_failure_rate, Some(2.0 / 3.0));
        assert_eq!(figures.time_to_restore_seconds, Some(3600.0));
    }
}
