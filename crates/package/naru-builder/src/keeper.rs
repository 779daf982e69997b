//! One budget for what can be had again: images, their layers, the build cache, containers' own files, what was
//! pushed to the registry. When it is used up, what was not used for the longest goes first: steps of builds,
//! caches that `RUN --mount=type=cache` keeps, images that a registry has. What runs, what a release names, what
//! people built or pushed by name is never touched; when that alone is too much, pushes are refused and people are
//! told. And before the disk is full, they are told when it will be.

use crate::controller::{Ages, clean};
use crate::engine::Builder;
use naru_client::{Client, EventKind};
use naru_objects::kinds;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LOOK_FIRST: Duration = Duration::from_secs(60); // not while everything starts
const LOOK_EVERY: Duration = Duration::from_secs(300); // a disk that fills faster than this is full before help comes
const SAMPLES_MAX: usize = 24 * 12; // a day of looks
const FORECAST_SPAN_MIN: f64 = 900.0; // seconds; what happened within less says nothing
const FORECAST_TOLD_BELOW: Duration = Duration::from_secs(48 * 3600); // time enough for people to act
const HOUR: Duration = Duration::from_secs(3600);

/// From gentle to last: each step is tried only while the budget is still exceeded. Nothing used within the last
/// hour ever goes: a build under way may need it.
const LADDER: &[Ages] = &[
    Ages {
        steps: hours(7 * 24),
        unused: hours(24),
        pulled: Some(hours(30 * 24)),
        mounts: Some(hours(14 * 24)),
    },
    Ages {
        steps: hours(3 * 24),
        unused: hours(12),
        pulled: Some(hours(7 * 24)),
        mounts: Some(hours(7 * 24)),
    },
    Ages { steps: hours(24), unused: hours(6), pulled: Some(hours(48)), mounts: Some(hours(48)) },
    Ages { steps: hours(6), unused: hours(3), pulled: Some(hours(6)), mounts: Some(hours(12)) },
    Ages { steps: HOUR, unused: HOUR, pulled: Some(HOUR), mounts: Some(HOUR) },
];

const fn hours(count: u64) -> Duration {
    Duration::from_secs(count * 3600)
}

#[derive(Debug, Clone)]
pub struct KeeperConfig {
    /// Of the daemon; what is in it is what is measured.
    pub data_dir: PathBuf,
    pub namespace: String,
    /// None: four fifths of the file system.
    pub budget_bytes: Option<u64>,
    pub node_name: String,
    /// Of the registry; shown, and kept by it.
    pub quotas: Vec<naru_image::Quota>,
}

/// Something on the disk, with a name for people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    pub name: String,
    pub bytes: u64,
    /// Whether it counts against the budget; the rest is people's own.
    pub in_budget: bool,
}

/// Who uses the disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskReport {
    pub budget_bytes: u64,
    /// Of what is in the budget.
    pub used_bytes: u64,
    pub disk_bytes: u64,
    pub disk_free_bytes: u64,
    pub parts: Vec<Part>,
    pub images: Vec<naru_image::ImageUse>,
    #[serde(default)]
    pub quotas: Vec<naru_image::QuotaUse>,
    /// At the pace of the last day; none while it does not fill.
    pub full_in_seconds: Option<u64>,
}

/// Keeps the disk within its budget; cheap to clone.
#[derive(Clone)]
pub struct Keeper {
    builder: Builder,
    client: Client,
    config: Arc<KeeperConfig>,
    /// Seconds since the first look, and free bytes.
    samples: Arc<Mutex<VecDeque<(f64, f64)>>>,
}

impl Keeper {
    /// Starts looking after the disk, until `shutdown`.
    pub fn start(
        builder: Builder,
        client: Client,
        config: KeeperConfig,
        shutdown: CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let keeper = Self { builder, client, config: Arc::new(config), samples: Arc::default() };
        let task = tokio::spawn(keeper.clone().run(shutdown));
        (keeper, task)
    }

    /// Measures everything now.
    pub async fn report(&self) -> std::io::Result<DiskReport> {
        self.measured(Scope::Everything).await
    }

    async fn measured(&self, scope: Scope) -> std::io::Result<DiskReport> {
        let (builder, config) = (self.builder.clone(), Arc::clone(&self.config));
        let task = tokio::task::spawn_blocking(move || measure(&builder, &config, scope));
        let mut report = task.await.map_err(std::io::Error::other)??;
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        report.full_in_seconds = forecast(samples.iter().copied()).map(|it| it.as_secs());
        Ok(report)
    }

    /// Brings the disk within its budget now, as far as that goes, and measures everything.
    pub async fn tidy(&self) -> Result<DiskReport, Box<dyn std::error::Error + Send + Sync>> {
        self.shrink().await?;
        Ok(self.report().await?)
    }

    /// Brings the disk within its budget; tells of what is in it alone.
    async fn shrink(&self) -> Result<DiskReport, Box<dyn std::error::Error + Send + Sync>> {
        let mut report = self.measured(Scope::Budget).await?;
        for ages in LADDER {
            if report.used_bytes <= report.budget_bytes {
                break;
            }
            clean(&self.builder, &self.client, &self.config.namespace, ages).await?;
            report = self.measured(Scope::Budget).await?;
        }
        self.builder.store().set_over_budget(report.used_bytes > report.budget_bytes);
        Ok(report)
    }

    async fn run(self, shutdown: CancellationToken) {
        let began = tokio::time::Instant::now();
        let mut wait = LOOK_FIRST;
        let (mut told_of_budget, mut told_of_end) = (false, false);
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => return,
            }
            wait = LOOK_EVERY;
            let report = match self.look(began.elapsed().as_secs_f64()).await {
                Ok(it) => it,
                Err(error) => {
                    tracing::warn!(error = &*error, "the disk's budget cannot be looked after");
                    continue;
                }
            };
            let is_over = report.used_bytes > report.budget_bytes;
            if is_over && !told_of_budget {
                let text = format!(
                    "{} of a disk budget of {} are used, and nothing of it may go; `naru df` shows by what. Pushes are \
                     refused until there is room",
                    size(report.used_bytes),
                    size(report.budget_bytes)
                );
                self.tell("DiskBudgetExceeded", &text).await;
            }
            told_of_budget = is_over;
            let soon = report.full_in_seconds.filter(|it| *it < FORECAST_TOLD_BELOW.as_secs());
            if let (Some(seconds), false) = (soon, told_of_end) {
                let text = format!(
                    "at the pace of the last hours the disk is full in about {} h ({} free); `naru df` shows who uses it",
                    seconds / 3600,
                    size(report.disk_free_bytes)
                );
                self.tell("DiskFullForecast", &text).await;
            }
            told_of_end = soon.is_some();
        }
    }

    async fn look(&self, now: f64) -> Result<DiskReport, Box<dyn std::error::Error + Send + Sync>> {
        let report = self.shrink().await?;
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back((now, report.disk_free_bytes as f64));
        Ok(report)
    }

    async fn tell(&self, reason: &str, text: &str) {
        tracing::warn!(reason, "{text}");
        if let Ok(Some(node)) = self.client.get(&kinds::NODE, "", &self.config.node_name).await {
            self.client.event(&node, EventKind::Warning, reason, text).await;
        }
    }
}

/// When the free bytes reach zero, by the straight line that fits the samples best; none if they do not fall.
fn forecast(samples: impl Iterator<Item = (f64, f64)> + Clone) -> Option<Duration> {
    let count = samples.clone().count() as f64;
    let (first, last) = (samples.clone().next()?, samples.clone().last()?);
    if count < 3.0 || last.0 - first.0 < FORECAST_SPAN_MIN {
        return None;
    }
    let mean = |it: fn((f64, f64)) -> f64| samples.clone().map(it).sum::<f64>() / count;
    let (time, free) = (mean(|it| it.0), mean(|it| it.1));
    let (mut with, mut square) = (0.0, 0.0);
    for (at, value) in samples {
        with += (at - time) * (value - free);
        square += (at - time).powi(2);
    }
    let slope = with / square;
    // A megabyte an hour fills no disk that anybody has.
    (slope < -300.0).then(|| Duration::from_secs_f64((last.1 / -slope).clamp(0.0, 1e9)))
}

/// What is measured. People's own files may be many, and nothing that is decided here depends on them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Budget,
    Everything,
}

fn measure(builder: &Builder, config: &KeeperConfig, scope: Scope) -> std::io::Result<DiskReport> {
    let usage = builder.store().usage()?;
    let part = |name: &str, bytes, in_budget| Part { name: name.into(), bytes, in_budget };
    let dir = |name: &str| naru_image::disk_bytes(&config.data_dir.join(name));
    let mut parts = vec![
        part("image layers, unpacked", usage.layers, true),
        part("image archives and registry", usage.blobs, true),
        part("uploads under way", usage.uploads, true),
        part("build cache", dir("builds"), true),
        part("containers and their logs", dir("node"), true),
    ];
    if scope == Scope::Everything {
        parts.extend([
            part("volumes", dir("volumes"), false),
            part("repositories", dir("git"), false),
            part("artifacts and caches of jobs", dir("ci"), false),
            part("objects", dir("api"), false),
        ]);
    }
    let repositories = builder.store().repositories();
    let quotas = match scope {
        Scope::Everything => config.quotas.iter().map(|it| repositories.quota_use(it, None)).collect(),
        Scope::Budget => Ok(Vec::new()),
    };
    let system = nix::sys::statvfs::statvfs(&config.data_dir)?;
    let disk_bytes = system.blocks() * system.fragment_size();
    let used_bytes = parts.iter().filter(|it| it.in_budget).map(|it| it.bytes).sum();
    Ok(DiskReport {
        budget_bytes: config.budget_bytes.unwrap_or(disk_bytes / 5 * 4),
        used_bytes,
        disk_bytes,
        disk_free_bytes: system.blocks_available() * system.fragment_size(),
        parts,
        images: usage.images,
        quotas: quotas.map_err(std::io::Error::other)?,
        full_in_seconds: None,
    })
}

/// Removes directories of cache mounts that no build used for so long; a build marks what it uses.
pub(crate) fn remove_old_mounts(dir: &Path, age_max: Duration) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|it| it.modified()).ok().and_then(|it| it.elapsed().ok());
        if age.is_some_and(|it| it > age_max)
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "a cache of builds is not removed");
        }
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fills_steadily_is_foretold() {
        let gib = (1u64 << 30) as f64;
        let falling = (0..12).map(|it| (f64::from(it) * 300.0, 100.0 * gib - f64::from(it) * gib));
        // A gibibyte every five minutes, 89 left.
        assert_eq!(forecast(falling).map(|it| it.as_secs()), Some(89 * 300));
        let steady = (0..12).map(|it| (f64::from(it) * 300.0, 100.0 * gib));
        assert_eq!(forecast(steady), None);
        let short = (0..3).map(|it| (f64::from(it) * 60.0, 100.0 * gib - f64::from(it) * gib));
        assert_eq!(forecast(short), None, "three minutes say nothing");
        assert_eq!(forecast(std::iter::empty()), None);
    }

    #[test]
    fn each_rung_of_the_ladder_keeps_less_and_the_last_hour_always_stays() {
        for pair in LADDER.windows(2) {
            assert!(pair[1].steps < pair[0].steps && pair[1].pulled < pair[0].pulled);
        }
        for ages in LADDER {
            assert!(
                ages.steps >= HOUR
                    && ages.unused >= HOUR
                    && ages.pulled >= Some(HOUR)
                    && ages.mounts >= Some(HOUR)
            );
        }
    }
}
