//! Asks a container's probes at the right times and reports to the pod's loop.

use std::sync::Arc;
use std::time::Duration;

use naru_runtime::Sandbox;
use tokio::sync::mpsc;

use crate::effects;
use crate::pod::DesiredContainer;
use crate::probe::{Check, Counter, Kind, Probe, ask_network};
use crate::shared::Shared;

/// Until a probe has passed for the first time, asking more often finds it sooner: with the default
/// period of ten seconds every rollout would wait for ten.
const QUICK_PERIOD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct ProbeReport {
    pub container: String,
    pub attempt: u32,
    pub kind: Kind,
    pub success: bool,
    /// Present when this result changed what holds.
    pub verdict: Option<bool>,
    pub message: String,
}

pub(crate) struct Prober<E> {
    pub shared: Arc<Shared>,
    pub sandbox: Sandbox,
    pub container: DesiredContainer,
    pub attempt: u32,
    /// The shim's name for the container.
    pub id: String,
    pub address: String,
    /// What held before, after a restart of the daemon.
    pub started: bool,
    pub ready: bool,
    pub events: mpsc::Sender<E>,
}

impl<E: From<ProbeReport> + Send + 'static> Prober<E> {
    /// Startup first; then readiness and liveness side by side, until aborted.
    pub async fn run(self) {
        if let Some(startup) = &self.container.startup
            && !self.started
            && !self.repeat(Kind::Startup, startup, false).await
        {
            return;
        }
        let readiness = async {
            if let Some(probe) = &self.container.readiness {
                self.repeat(Kind::Readiness, probe, self.ready).await;
            }
        };
        let liveness = async {
            if let Some(probe) = &self.container.liveness {
                self.repeat(Kind::Liveness, probe, true).await;
            }
        };
        tokio::join!(readiness, liveness);
    }

    /// A startup probe ends with its first verdict, which is returned; others go on.
    async fn repeat(&self, kind: Kind, probe: &Probe, healthy: bool) -> bool {
        let mut counter = Counter::new(probe);
        tokio::time::sleep(Duration::from_secs(probe.initial_delay_seconds)).await;
        let period = Duration::from_secs(probe.period_seconds);
        let mut passed = healthy;
        loop {
            let began = tokio::time::Instant::now();
            let result = self.ask(&probe.check, Duration::from_secs(probe.timeout_seconds)).await;
            let success = result.is_ok();
            let verdict = counter.feed(success);
            passed |= verdict == Some(true);
            // Of failures in a row the first is news, and the one that decides.
            if verdict.is_some() || (!success && counter.in_a_row() == 1) {
                let report = ProbeReport {
                    container: self.container.name.clone(),
                    attempt: self.attempt,
                    kind,
                    success,
                    verdict,
                    message: result.err().unwrap_or_default(),
                };
                if self.events.send(report.into()).await.is_err() {
                    return false;
                }
            }
            if kind == Kind::Startup
                && let Some(verdict) = verdict
            {
                return verdict;
            }
            let quick = kind == Kind::Readiness && !passed;
            tokio::time::sleep_until(began + if quick { period.min(QUICK_PERIOD) } else { period }).await;
        }
    }

    async fn ask(&self, check: &Check, timeout: Duration) -> Result<(), String> {
        match check {
            Check::Exec { command } => {
                effects::ask_inside(&self.shared, &self.sandbox, &self.id, command, timeout).await
            }
            network => ask_network(network, &self.address, timeout).await,
        }
    }
}
