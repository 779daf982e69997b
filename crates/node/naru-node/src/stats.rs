//! What pods and the node use: read from the cgroups when asked, rates against a sample of some seconds ago.

use std::collections::HashMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use naru_runtime::cgroup;

use crate::shared::{PodView, Shared};
use crate::worker::container_id;
use crate::{Node, effects};

/// Rates are averages over one to two of these; `kubectl top` is expected to lag a little.
const SAMPLE_PERIOD: Duration = Duration::from_secs(10);
/// A rate over less says more about the clock than about the load.
const WINDOW_MIN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, PartialEq)]
pub struct PodStats {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// Of all its containers, those that ended included.
    pub cpu_seconds: f64,
    /// Billionths of a core.
    pub cpu_nanocores: u64,
    /// Working set.
    pub memory_bytes: u64,
    /// The running ones.
    pub containers: Vec<ContainerStats>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStats {
    pub name: String,
    pub restarts: u32,
    pub cpu_seconds: f64,
    /// Billionths of a core.
    pub cpu_nanocores: u64,
    pub memory_bytes: u64,
    pub processes: u64,
    /// The time over which `cpu_nanocores` is an average.
    pub window: Duration,
}

/// The whole machine.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeStats {
    pub name: String,
    pub cpu_seconds: f64,
    /// Billionths of a core.
    pub cpu_nanocores: u64,
    /// Memory that could not simply be dropped.
    pub memory_bytes: u64,
    pub window: Duration,
}

/// Seconds of processor time by cgroup, and of the machine under the empty name.
struct Sample {
    at: Instant,
    cpu_seconds: HashMap<String, f64>,
}

/// The two latest samples, older first.
#[derive(Default)]
pub(crate) struct Samples(Mutex<Vec<Sample>>);

impl Samples {
    /// Billionths of a core since the oldest sample that knows `group`, and over how long.
    fn rate(&self, group: &str, cpu_seconds: f64) -> (u64, Duration) {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples
            .iter()
            .filter(|sample| sample.at.elapsed() >= WINDOW_MIN)
            .find_map(|sample| Some((sample.at.elapsed(), *sample.cpu_seconds.get(group)?)))
            .map_or((0, SAMPLE_PERIOD), |(window, before)| {
                let nanocores = (cpu_seconds - before).max(0.0) * 1e9 / window.as_secs_f64();
                (nanocores as u64, window)
            })
    }
}

fn groups(pod: &PodView) -> Vec<String> {
    let Some(sandbox) = pod.sandbox.as_ref() else { return Vec::new() };
    let group = sandbox.pod_cgroup();
    let containers = pod.containers.iter().filter(|container| container.running);
    let containers = containers.map(|it| format!("{group}/{}", container_id(&it.name, it.attempt)));
    std::iter::once(group.to_owned()).chain(containers).collect()
}

/// Takes samples for as long as the node runs.
pub(crate) async fn sample(shared: Arc<Shared>) {
    loop {
        let views = shared.views();
        let cpu_seconds = effects::blocking(move || {
            let groups = views.iter().flat_map(groups);
            let mut found: HashMap<String, f64> =
                groups.filter_map(|it| cgroup::usage(&it).map(|usage| (it, usage.cpu_seconds))).collect();
            found.insert(String::new(), machine_cpu_seconds());
            found
        });
        let sample = Sample { cpu_seconds: cpu_seconds.await, at: Instant::now() };
        {
            let mut samples = shared.samples.0.lock().unwrap_or_else(PoisonError::into_inner);
            if samples.len() == 2 {
                samples.remove(0);
            }
            samples.push(sample);
        }
        tokio::time::sleep(SAMPLE_PERIOD).await;
    }
}

impl Node {
    /// What every pod uses now. Reads a few small files per container.
    pub async fn stats(&self) -> Vec<PodStats> {
        let shared = self.shared.clone();
        effects::blocking(move || {
            shared.views().into_iter().filter_map(|pod| pod_stats(&shared.samples, pod)).collect()
        })
        .await
    }

    /// What the machine uses now.
    pub async fn node_stats(&self) -> NodeStats {
        let shared = self.shared.clone();
        effects::blocking(move || {
            let cpu_seconds = machine_cpu_seconds();
            let (cpu_nanocores, window) = shared.samples.rate("", cpu_seconds);
            let name = shared.config.node_name.clone();
            NodeStats { name, cpu_seconds, cpu_nanocores, memory_bytes: machine_memory_bytes(), window }
        })
        .await
    }
}

/// `None` for a pod that has nothing running.
fn pod_stats(samples: &Samples, pod: PodView) -> Option<PodStats> {
    let group = pod.sandbox.as_ref()?.pod_cgroup();
    let all = cgroup::usage(group)?;
    let containers = pod.containers.iter().filter(|container| container.running).filter_map(|container| {
        let group = format!("{group}/{}", container_id(&container.name, container.attempt));
        let usage = cgroup::usage(&group)?;
        let (cpu_nanocores, window) = samples.rate(&group, usage.cpu_seconds);
        Some(ContainerStats {
            name: container.name.clone(),
            restarts: container.attempt,
            cpu_seconds: usage.cpu_seconds,
            cpu_nanocores,
            memory_bytes: usage.memory_bytes,
            processes: usage.processes,
            window,
        })
    });
    Some(PodStats {
        containers: containers.collect(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        cpu_seconds: all.cpu_seconds,
        cpu_nanocores: samples.rate(group, all.cpu_seconds).0,
        memory_bytes: all.memory_bytes,
    })
}

/// Everything but idling and waiting, of all processors since the machine started.
fn machine_cpu_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0; // USER_HZ, part of the kernel's interface
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|it| it.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let busy = ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, it)| it);
    busy.sum::<u64>() as f64 / TICKS_PER_SECOND
}

fn machine_memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let figure = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|it| it.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
    };
    figure("MemTotal:").saturating_sub(figure("MemAvailable:")) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_averages_since_a_sample() {
        let samples = Samples::default();
        assert_eq!(samples.rate("a", 5.0).0, 0, "nothing to compare with yet");
        let at = Instant::now().checked_sub(Duration::from_secs(10)).expect("the machine runs longer");
        let cpu_seconds = [("a".to_owned(), 5.0)].into();
        samples.0.lock().expect("alone").push(Sample { at, cpu_seconds });
        let (rate, window) = samples.rate("a", 10.0);
        assert!((490_000_000..=500_000_000).contains(&rate), "{rate}");
        assert!(window >= Duration::from_secs(10));
        assert_eq!(samples.rate("b", 10.0).0, 0);
    }
}
