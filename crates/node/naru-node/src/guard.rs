//! Builds and jobs must not hurt the apps beside them. Their slice has the idle policy or a low weight; that alone
//! decides who runs first, not who waits for memory or for the disk. So while anything of theirs runs, the pressure
//! on the apps is watched, and the slice's processors are taken away step by step until the apps wait no more.

use crate::shared::Shared;
use naru_runtime::cgroup::{self, SliceCpu};
use naru_runtime::{Gauge, Slice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const LOOK_PERIOD: Duration = Duration::from_millis(500); // a request that waits longer has been noticed
const MUCH: f64 = 0.10; // the apps wait a tenth of the time: somebody sees it
const LITTLE: f64 = 0.02; // what an app does to itself now and then
const STARVED_AFTER: usize = 6; // looks: three seconds
const USED_MIN: f64 = 0.05; // of one processor
const MILLIS_MIN: u64 = 200; // a build never stands still: it would hold its memory for ever

/// What the slice may use next, in thousandths of a core; `None` is all there is.
pub fn next_limit(limit: Option<u64>, worst: f64, cores_millis: u64) -> Option<u64> {
    let now = limit.unwrap_or(cores_millis);
    let next = if worst > MUCH {
        (now / 2).max(MILLIS_MIN)
    } else if worst < LITTLE {
        now + (now / 4).max(100)
    } else {
        now
    };
    (next < cores_millis).then_some(next)
}

/// Whether builds get their weight for a while instead of giving way always: else an app that never rests would
/// make them stand still, and even one that is told to end could not. `used` and `waited` are shares of one
/// processor and of the time, over the last looks, oldest first.
pub fn is_starved(looks: &[(f64, f64)]) -> bool {
    let average = |it: fn(&(f64, f64)) -> f64| looks.iter().map(it).sum::<f64>() / looks.len() as f64;
    looks.len() >= STARVED_AFTER && average(|it| it.0) < USED_MIN && average(|it| it.1) > 0.5
}

/// The limit that holds, for people who ask why a build is slow. 0 is none.
#[derive(Default)]
pub struct Limit(AtomicU64);

impl Limit {
    pub fn millis(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|it| *it > 0)
    }

    fn set(&self, limit: Option<u64>) {
        self.0.store(limit.unwrap_or(0), Ordering::Relaxed);
    }
}

/// Watches for as long as the node runs.
pub async fn watch(shared: Arc<Shared>) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64 * 1000;
    let mut gauge = Gauge::new(Slice::Apps);
    let mut cpu = SliceCpu::open(Slice::Pipelines, shared.config.state_dir.join("pipelines-cpu.json"));
    let mut builds = Gauge::new(Slice::Pipelines);
    let mut looks: Vec<(f64, f64)> = Vec::new();
    let mut used_before = 0.0;
    let mut limit = None;
    loop {
        tokio::time::sleep(LOOK_PERIOD).await;
        let is_building = shared.views().iter().any(|it| it.bounds.is_build && it.sandbox.is_some());
        if is_building {
            let used =
                cgroup::usage(&format!("/naru/{}", Slice::Pipelines.name())).map_or(0.0, |it| it.cpu_seconds);
            let waited = builds.read().map_or(0.0, |it| it.cpu);
            looks.push(((used - used_before) / LOOK_PERIOD.as_secs_f64(), waited));
            used_before = used;
            if is_starved(&looks) {
                cgroup::set_idle(Slice::Pipelines, false);
                looks.clear();
            } else if looks.len() > 2 * STARVED_AFTER {
                cgroup::set_idle(Slice::Pipelines, true);
                looks.clear();
            }
        }
        let worst = gauge.read().map_or(0.0, |it| it.worst());
        let next = if is_building { next_limit(limit, worst, cores) } else { None };
        if limit.is_none() && next.is_none() {
            continue;
        }
        if limit.is_none() {
            tracing::info!(pressure = worst, "builds are slowed down, because the apps wait");
        } else if next.is_none() {
            tracing::info!("builds have all processors again");
        }
        limit = next;
        cpu.set(limit);
        shared.pipelines_limit.set(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_that_get_nothing_at_all_get_their_weight() {
        assert!(is_starved(&[(0.01, 0.99); 6]));
        assert!(!is_starved(&[(0.01, 0.99); 5]), "not after a moment");
        assert!(!is_starved(&[(0.01, 0.0); 6]), "they do not want more");
        assert!(!is_starved(&[(0.5, 0.99); 6]));
    }

    #[test]
    fn builds_give_way_at_once_and_come_back_by_and_by() {
        let mut limit = None;
        let mut steps = Vec::new();
        for worst in [0.0, 0.5, 0.5, 0.5, 0.5, 0.05, 0.0, 0.0] {
            limit = next_limit(limit, worst, 2000);
            steps.push(limit);
        }
        let want = [None, Some(1000), Some(500), Some(250), Some(200), Some(200), Some(300), Some(400)];
        assert_eq!(steps, want);
        for _ in 0..20 {
            limit = next_limit(limit, 0.0, 2000);
        }
        assert_eq!(limit, None, "without pressure nothing is held back");
    }
}
