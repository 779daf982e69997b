//! The judgement of a canary step: the new version against the old, by the gateway's own figures.

use crate::Samples;
use jiff::{SignedDuration, Timestamp};
use naru_client::Client;
use naru_objects::{
    Release, ReleasePhase, ServiceRollout, Strategy, Verdict, VerdictOutcome, kinds, timestamp,
};
use serde_json::json;
use std::time::Duration;

/// How often steps under way are looked at.
const JUDGE_EVERY: Duration = Duration::from_millis(500);

/// Fewer requests than this tell nothing; the window is extended.
const REQUESTS_MIN: u64 = 20;

/// The window is extended to so many times its length before a step with few requests is judged anyway.
const EXTENSIONS_MAX: i32 = 3;

/// A success rate so much lower than the old version's is bad.
const SUCCESS_DROP_MAX: f64 = 0.05;

/// Latency may grow to so many times the old version's, and by as many seconds on top: between fast
/// answers the ratio alone would judge noise.
const LATENCY_FACTOR_MAX: f64 = 2.0;
const LATENCY_MARGIN_SECONDS: f64 = 0.1;

/// A scrape older than this means that nobody measures, and nothing can be judged.
const STALE: SignedDuration = SignedDuration::from_secs(10);

/// What the gateway counted for one version within a window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figures {
    pub requests: u64,
    /// Share of answers below 500; 1 without any.
    pub success: f64,
    /// 95th percentile in seconds.
    pub latency: f64,
}

/// How far a step is when it is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    pub window: SignedDuration,
    pub elapsed: SignedDuration,
    /// Whether the figures are fresh.
    pub measured: bool,
}

/// The judgement, or `None` while the window still runs. Pure.
pub fn judge(new: Figures, old: Figures, progress: Progress) -> Option<(VerdictOutcome, String)> {
    use VerdictOutcome::{Bad, Good, Inconclusive};
    let per_cent = |it: f64| format!("{:.1} %", 100.0 * it);
    let enough = new.requests >= REQUESTS_MIN;
    if enough && new.success + SUCCESS_DROP_MAX < old.success {
        // No need to let more requests fail.
        let why = format!(
            "{} of {} requests succeeded, {} on the version before",
            per_cent(new.success),
            new.requests,
            per_cent(old.success)
        );
        return Some((Bad, why));
    }
    if progress.elapsed < progress.window {
        return None;
    }
    if !progress.measured {
        return Some((Inconclusive, "the gateway's figures are missing; the release waits".into()));
    }
    let extended = progress.elapsed >= progress.window * EXTENSIONS_MAX;
    if !enough && !extended {
        return None;
    }
    if new.requests == 0 {
        return Some((Good, "no requests to judge by; its pods are ready".into()));
    }
    if new.success + SUCCESS_DROP_MAX < old.success {
        return Some((Bad, format!("{} of {} requests succeeded", per_cent(new.success), new.requests)));
    }
    let comparable = enough && old.latency > 0.0;
    if comparable && new.latency > old.latency * LATENCY_FACTOR_MAX + LATENCY_MARGIN_SECONDS {
        let why = format!(
            "95 % of its answers take up to {:.0} ms, {:.0} ms on the version before",
            1000.0 * new.latency,
            1000.0 * old.latency
        );
        return Some((Bad, why));
    }
    let why = format!("{} of {} requests succeeded", per_cent(new.success), new.requests);
    Some((Good, why))
}

/// Judges every release that is under way until the task is aborted.
pub(crate) async fn run(client: Client, namespace: String, samples: Samples) {
    let mut releases = client.cache(&kinds::RELEASE, Some(&namespace), "");
    releases.synced().await;
    loop {
        let mut busy = false;
        for object in releases.list() {
            let Ok(release) = serde_json::from_value::<Release>((*object).clone()) else { continue };
            if release.status.phase != ReleasePhase::Progressing || release.status.previous.is_empty() {
                continue;
            }
            busy = true;
            let previous = releases
                .get(&namespace, &release.status.previous)
                .and_then(|it| serde_json::from_value::<Release>((*it).clone()).ok());
            let Some(previous) = previous else { continue };
            if let Some(verdict) = verdict_of(&release, &previous, &samples, Timestamp::now()) {
                let mut verdicts = release.status.verdicts.clone();
                verdicts.retain(|it| it.step != verdict.step);
                verdicts.push(verdict);
                let status = json!({"verdicts": verdicts});
                let name = &release.metadata.name;
                if let Err(error) = client.patch_status(&kinds::RELEASE, &namespace, name, &status).await {
                    tracing::warn!(%error, "the verdict is not written yet");
                }
            }
        }
        if busy {
            tokio::time::sleep(JUDGE_EVERY).await;
        } else {
            releases.changed().await;
        }
    }
}

/// The verdict on the step that is under way, if it is due and not given yet.
fn verdict_of(release: &Release, previous: &Release, samples: &Samples, now: Timestamp) -> Option<Verdict> {
    let status = &release.status;
    let window = release.spec.services.iter().find_map(|it| match &it.strategy {
        Strategy::Canary { window_seconds, steps } => {
            // The weight of the step must have been set, or there is nothing to see yet.
            (steps.get(status.step as usize) == Some(&status.weight)).then_some(*window_seconds)
        }
        Strategy::Rolling => None,
    })?;
    let given = status.verdicts.iter().find(|it| it.step == status.step);
    if given.is_some_and(|it| it.outcome != VerdictOutcome::Inconclusive) {
        return None;
    }
    let started: Timestamp = status.step_started_at.parse().ok()?;
    // After a restart of the daemon the window begins anew: requests that nobody counted are no ground to
    // call a step quiet, and so good.
    let from = samples.since().map_or(started, |it| it.max(started));
    let figures = |services: &[ServiceRollout]| {
        let all: Vec<Figures> =
            services.iter().map(|it| figures_of(samples, &it.workload, from, now)).collect();
        sum(&all)
    };
    let new = figures(&release.spec.services);
    let mut old = figures(&previous.spec.services);
    if old.requests < REQUESTS_MIN {
        // With all traffic on the new version, the old one is what it was when last seen.
        match status.verdicts.iter().rev().find(|it| it.requests_old >= REQUESTS_MIN) {
            Some(it) => (old.success, old.latency) = (it.success_old, it.latency_old),
            None => old.success = 1.0,
        }
    }
    let measured = samples.last_seen(SCRAPED).is_some_and(|it| now.duration_since(it) < STALE);
    let progress = Progress {
        window: SignedDuration::from_secs(i64::from(window)),
        elapsed: now.duration_since(from),
        measured,
    };
    let (outcome, why) = judge(new, old, progress)?;
    if given.is_some_and(|it| it.outcome == outcome) {
        return None;
    }
    Some(Verdict {
        step: status.step,
        weight: status.weight,
        at: timestamp(now),
        outcome,
        why,
        requests_new: new.requests,
        requests_old: old.requests,
        success_new: new.success,
        success_old: old.success,
        latency_new: new.latency,
        latency_old: old.latency,
    })
}

/// The gateway's counter and histogram (see its own documentation).
const REQUESTS: &str = "naru_gateway_requests_total";
/// Always there when the gateway was scraped, also before its first request.
const SCRAPED: &str = "naru_build_info";
const DURATION: &str = "naru_gateway_request_duration_seconds";

fn figures_of(samples: &Samples, service: &str, from: Timestamp, to: Timestamp) -> Figures {
    let matching = [("service", service)];
    let by_code = samples.increase_by(REQUESTS, &matching, "code", from, to);
    let requests: f64 = by_code.values().sum();
    let bad: f64 = by_code.iter().filter(|(code, _)| code.starts_with('5')).map(|(_, count)| count).sum();
    Figures {
        requests: requests.round() as u64,
        success: if requests > 0.0 { 1.0 - bad / requests } else { 1.0 },
        latency: samples.quantile(DURATION, &matching, 0.95, from, to).unwrap_or_default(),
    }
}

/// Several services as one: requests add up, the worst latency counts.
fn sum(all: &[Figures]) -> Figures {
    let requests: u64 = all.iter().map(|it| it.requests).sum();
    let good: f64 = all.iter().map(|it| it.success * it.requests as f64).sum();
    Figures {
        requests,
        success: if requests > 0 { good / requests as f64 } else { 1.0 },
        latency: all.iter().map(|it| it.latency).fold(0.0, f64::max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(requests: u64, success: f64, latency: f64) -> Figures {
        Figures { requests, success, latency }
    }

    fn at(seconds: i64) -> Progress {
        Progress {
            window: SignedDuration::from_secs(10),
            elapsed: SignedDuration::from_secs(seconds),
            measured: true,
        }
    }

    fn outcome(new: Figures, old: Figures, progress: Progress) -> Option<VerdictOutcome> {
        judge(new, old, progress).map(|it| it.0)
    }

    #[test]
    fn a_third_of_errors_is_bad_before_the_window_ends() {
        let old = figures(300, 1.0, 0.01);
        assert_eq!(outcome(figures(30, 0.66, 0.01), old, at(2)), Some(VerdictOutcome::Bad));
        assert_eq!(outcome(figures(5, 0.6, 0.01), old, at(2)), None);
        assert_eq!(outcome(figures(30, 1.0, 0.01), old, at(2)), None);
    }

    #[test]
    fn at_the_end_of_the_window_success_and_latency_decide() {
        let old = figures(300, 0.99, 0.05);
        assert_eq!(outcome(figures(30, 0.97, 0.06), old, at(10)), Some(VerdictOutcome::Good));
        assert_eq!(outcome(figures(30, 0.99, 0.5), old, at(10)), Some(VerdictOutcome::Bad));
    }

    #[test]
    fn a_restart_in_the_middle_of_a_step_does_not_make_it_good() {
        let release = |number: u64, status: serde_json::Value| -> Release {
            serde_json::from_value(json!({
                "apiVersion": "naru.dev/v1", "kind": "Release", "metadata": {"name": format!("shop-r{number}")},
                "spec": {"app": "shop", "number": number, "change": "c", "images": {}, "objects": [],
                         "services": [{"service": "web", "workload": format!("shop-web-r{number}"), "replicas": 1,
                                       "port": 80, "strategy": {"type": "canary", "steps": [10, 100], "windowSeconds": 10}}]},
                "status": status,
            }))
            .unwrap()
        };
        let old = release(1, json!({"phase": "Promoted"}));
        let new = release(
            2,
            json!({"phase": "Progressing", "weight": 10, "stepStartedAt": "2026-01-01T00:00:00Z"}),
        );
        let back: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let samples = Samples::default();
        let line = || crate::exposition::Line { name: SCRAPED.into(), labels: Vec::new(), value: 1.0 };
        samples.push(vec![line()], back);
        assert_eq!(verdict_of(&new, &old, &samples, back), None);
        let later = back + SignedDuration::from_secs(30);
        samples.push(vec![line()], later);
        let verdict = verdict_of(&new, &old, &samples, later).unwrap();
        assert_eq!(verdict.outcome, VerdictOutcome::Good);
    }

    #[test]
    fn few_requests_extend_the_window_and_missing_figures_never_promote() {
        let old = figures(50, 1.0, 0.05);
        assert_eq!(outcome(figures(3, 1.0, 0.05), old, at(10)), None);
        assert_eq!(outcome(figures(3, 1.0, 0.05), old, at(30)), Some(VerdictOutcome::Good));
        assert_eq!(outcome(figures(0, 1.0, 0.0), figures(0, 1.0, 0.0), at(30)), Some(VerdictOutcome::Good));
        let blind = Progress { measured: false, ..at(30) };
        assert_eq!(outcome(figures(0, 1.0, 0.0), old, blind), Some(VerdictOutcome::Inconclusive));
    }
}
