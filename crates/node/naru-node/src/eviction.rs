//! When the machine runs short: which pod goes, and what the node says about it.
//!
//! Deciding is pure ([`pressure`], [`victim`], [`over_limit`]); [`watch`] looks every few seconds and asks the
//! agent to end a pod. One at a time: the next look shows whether it was enough.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::effects::blocking;
use crate::pod::{DesiredPod, Role, Volume};
use crate::shared::{PodView, Shared};
use crate::worker::container_id;
use crate::{machine, provide, register};

const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// kubelet's threshold.
const MEMORY_BYTES_MIN: u64 = 100 << 20;
/// kubelet wants a tenth of the disk free; on a large disk, which others fill as well, less will do.
const DISK_SHARE_MIN: u64 = 10;
const DISK_BYTES_MIN: u64 = 4 << 30;
/// Of all process ids a tenth is kept for the machine itself.
const PIDS_SHARE_MIN: u64 = 10;
/// A pod that has written less than this frees nothing worth its end.
const DISK_BYTES_WORTH: u64 = 1 << 20;

/// What the machine is short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signals {
    pub memory_bytes_free: u64,
    pub memory_bytes: u64,
    pub disk_bytes_free: u64,
    pub disk_bytes: u64,
    pub pids_free: u64,
    pub pids: u64,
}

pub fn pressure(signals: &Signals) -> Pressure {
    let disk_min = (signals.disk_bytes / DISK_SHARE_MIN).min(DISK_BYTES_MIN);
    // A machine with little memory keeps a twentieth of it.
    let memory_min = MEMORY_BYTES_MIN.min(signals.memory_bytes / 20);
    Pressure {
        memory: signals.memory_bytes_free < memory_min,
        disk: signals.disk_bytes_free < disk_min,
        pids: signals.pids_free < signals.pids / PIDS_SHARE_MIN,
    }
}

/// What a pod may claim of the machine, for choosing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds {
    pub priority: i64,
    /// A build, which goes before an app.
    pub is_build: bool,
    pub memory_bytes_request: u64,
    pub disk_bytes_request: u64,
    pub disk_bytes_max: Option<u64>,
    /// Name and limit of what a container may write.
    pub containers: Vec<(String, u64)>,
    /// Name and limit of volumes on the disk.
    pub volumes: Vec<(String, u64)>,
}

impl Bounds {
    pub fn of(pod: &DesiredPod) -> Self {
        let own = || pod.containers.iter().chain(pod.sidecars());
        let sum = |of: fn(&crate::pod::Resources) -> Option<u64>| -> u64 {
            own().filter_map(|it| of(&it.resources)).sum()
        };
        let limits: Vec<(String, u64)> = pod
            .all()
            .filter(|it| it.role != Role::Ephemeral)
            .filter_map(|it| Some((it.name.clone(), it.resources.disk_bytes_max?)))
            .collect();
        let all_limited = own().all(|it| it.resources.disk_bytes_max.is_some());
        let volumes = pod.volumes.iter().filter_map(|(name, volume)| match volume {
            Volume::EmptyDir { memory: false, size_bytes_max: Some(bytes) } => Some((name.clone(), *bytes)),
            _ => None,
        });
        Self {
            priority: pod.priority,
            is_build: pod.slice == naru_runtime::Slice::Pipelines,
            memory_bytes_request: pod
                .resources
                .memory_bytes_request
                .unwrap_or(sum(|it| it.memory_bytes_request)),
            disk_bytes_request: sum(|it| it.disk_bytes_request),
            disk_bytes_max: (all_limited && !pod.containers.is_empty()).then(|| sum(|it| it.disk_bytes_max)),
            containers: limits,
            volumes: volumes.collect(),
        }
    }

    fn is_limited(&self) -> bool {
        self.disk_bytes_max.is_some() || !self.containers.is_empty() || !self.volumes.is_empty()
    }
}

/// One pod among those to choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    pub priority: i64,
    pub is_build: bool,
    pub used_bytes: u64,
    pub request_bytes: u64,
}

/// Who goes first: builds, then whoever uses more than it asked for, the less important, the more above.
pub fn victim(candidates: &[Candidate], worth_bytes: u64) -> Option<&Candidate> {
    let worth = candidates.iter().filter(|it| it.used_bytes >= worth_bytes);
    worth.min_by_key(|it| {
        let above = it.used_bytes.saturating_sub(it.request_bytes);
        (!it.is_build, above == 0, it.priority, Reverse(above))
    })
}

/// What a pod has written: by container, by volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    pub containers: Vec<(String, u64)>,
    pub volumes: Vec<(String, u64)>,
}

impl Written {
    fn bytes(&self) -> u64 {
        self.containers.iter().chain(&self.volumes).map(|(_, bytes)| bytes).sum()
    }
}

/// kubelet's words for a pod that wrote more than it may.
pub fn over_limit(bounds: &Bounds, written: &Written) -> Option<String> {
    let of = |list: &[(String, u64)], name: &str| list.iter().find(|it| it.0 == name).map_or(0, |it| it.1);
    for (name, limit) in &bounds.volumes {
        if of(&written.volumes, name) > *limit {
            return Some(format!(
                "Usage of EmptyDir volume \"{name}\" exceeds the limit \"{}\". ",
                quantity(*limit)
            ));
        }
    }
    for (name, limit) in &bounds.containers {
        if of(&written.containers, name) > *limit {
            return Some(format!(
                "Container {name} exceeded its local ephemeral storage limit \"{}\". ",
                quantity(*limit)
            ));
        }
    }
    let limit = bounds.disk_bytes_max.filter(|limit| written.bytes() > *limit)?;
    Some(format!(
        "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
        quantity(limit)
    ))
}

fn quantity(bytes: u64) -> String {
    match bytes {
        bytes if bytes.is_multiple_of(1 << 20) => format!("{}Mi", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("{}Ki", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

fn signals(state_dir: &Path) -> Signals {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let figure = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|it| it.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|it| it.trim().parse::<u64>().ok());
    // `0.00 0.01 0.05 1/234 5678`: running and all threads.
    let threads = fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok());
    let pids = number("/proc/sys/kernel/pid_max").unwrap_or(0);
    let (disk_bytes_free, disk_bytes) = machine::disk_free(state_dir).unwrap_or((u64::MAX, 0));
    Signals {
        memory_bytes_free: figure("MemAvailable:"),
        memory_bytes: figure("MemTotal:"),
        disk_bytes_free,
        disk_bytes,
        pids_free: pids.saturating_sub(threads.unwrap_or(0)),
        pids,
    }
}

/// What the pod's files take on the disk. Blocking; walks them all.
fn written(pod: &PodView) -> Written {
    let containers = pod.containers.iter().map(|container| {
        let layer =
            pod.directory.join("c").join(container_id(&container.name, container.attempt)).join("upper");
        let logs = pod.directory.join("logs").join(&container.name);
        (container.name.clone(), size_of(&layer) + size_of(&logs))
    });
    let volumes = fs::read_dir(pod.directory.join("volumes")).into_iter().flatten().flatten();
    let volumes = volumes.map(|it| (it.file_name().to_string_lossy().into_owned(), size_of(&it.path())));
    Written { containers: containers.collect(), volumes: volumes.collect() }
}

/// Blocks that files take, whatever their length says; links are not followed.
fn size_of(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut todo: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(found) = path.symlink_metadata() else { continue };
        bytes += found.blocks() * 512;
        if found.is_dir() {
            todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|it| it.path()));
        }
    }
    bytes
}

/// Looks for as long as the node runs.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let mut before = Pressure::default();
    // What an earlier daemon said may hold no more.
    let mut told = None;
    loop {
        tokio::time::sleep(LOOK_PERIOD).await;
        let state_dir = shared.config.state_dir.clone();
        let now = pressure(&blocking(move || signals(&state_dir)).await);
        *shared.pressure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = now;
        if told != Some(now) {
            match register::write_pressure(&shared, now).await {
                Ok(()) => told = Some(now),
                Err(error) => tracing::warn!(%error, "cannot tell what the node is short of"),
            }
        }
        end_over_limit(&shared).await;
        // A moment's shortage ends nobody.
        if now.memory && before.memory {
            end_for_memory(&shared).await;
        } else if now.disk && before.disk {
            end_for_disk(&shared).await;
        }
        before = now;
    }
}

async fn end_over_limit(shared: &Shared) {
    for view in shared.views() {
        if !view.bounds.is_limited() || view.sandbox.is_none() {
            continue;
        }
        let (uid, bounds) = (view.uid.clone(), view.bounds.clone());
        if let Some(message) = over_limit(&bounds, &blocking(move || written(&view)).await) {
            shared.evict(&uid, message).await;
        }
    }
}

async fn end_for_memory(shared: &Arc<Shared>) {
    let views = shared.views();
    let candidates: Vec<Candidate> = blocking(move || {
        let running =
            views.into_iter().filter_map(|it| Some((it.sandbox.as_ref()?.pod_cgroup().to_owned(), it)));
        running
            .filter_map(|(group, view)| {
                let used_bytes = naru_runtime::cgroup::usage(&group)?.memory_bytes;
                Some(candidate(&view, used_bytes, view.bounds.memory_bytes_request))
            })
            .collect()
    })
    .await;
    if let Some(it) = victim(&candidates, 1) {
        let have = provide::allocatable(shared).memory_bytes;
        let message = format!(
            "The node was low on resource: memory. Threshold quantity: {}, available of {}. The pod was using {}, \
             request is {}. ",
            quantity(MEMORY_BYTES_MIN.min(have / 20)),
            quantity(have),
            quantity(it.used_bytes),
            quantity(it.request_bytes)
        );
        shared.evict(&it.uid, message).await;
    }
}

async fn end_for_disk(shared: &Shared) {
    let views = shared.views();
    let candidates: Vec<Candidate> = blocking(move || {
        let running = views.into_iter().filter(|it| it.sandbox.is_some());
        running.map(|it| candidate(&it, written(&it).bytes(), it.bounds.disk_bytes_request)).collect()
    })
    .await;
    if let Some(it) = victim(&candidates, DISK_BYTES_WORTH) {
        let message = format!(
            "The node was low on resource: ephemeral-storage. The pod was using {}, request is {}. ",
            quantity(it.used_bytes),
            quantity(it.request_bytes)
        );
        shared.evict(&it.uid, message).await;
    }
}

fn candidate(view: &PodView, used_bytes: u64, request_bytes: u64) -> Candidate {
    Candidate {
        uid: view.uid.clone(),
        priority: view.bounds.priority,
        is_build: view.bounds.is_build,
        used_bytes,
        request_bytes,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::lower_pod;

    #[test]
    fn pressure_begins_at_the_thresholds() {
        let calm = Signals {
            memory_bytes_free: 1 << 30,
            memory_bytes: 8 << 30,
            disk_bytes_free: 5 << 30,
            disk_bytes: 1 << 40,
            pids_free: 30_000,
            pids: 32_768,
        };
        assert_eq!(pressure(&calm), Pressure::default());
        assert!(pressure(&Signals { memory_bytes_free: 99 << 20, ..calm }).memory);
        assert!(pressure(&Signals { disk_bytes_free: 3 << 30, ..calm }).disk);
        assert!(!pressure(&Signals { disk_bytes_free: 3 << 30, disk_bytes: 20 << 30, ..calm }).disk);
        assert!(pressure(&Signals { pids_free: 3000, ..calm }).pids);
    }

    #[test]
    fn builds_go_first_then_who_took_more_than_it_asked_for() {
        let pod = |uid: &str, priority, is_build, used_bytes, request_bytes| Candidate {
            uid: uid.into(),
            priority,
            is_build,
            used_bytes,
            request_bytes,
        };
        let within = pod("within", 0, false, 900, 1000);
        let above = pod("above", 0, false, 500, 100);
        let far_above = pod("far", 0, false, 900, 100);
        let important = pod("important", 1000, false, 5000, 0);
        let build = pod("build", 0, true, 10, 100);
        let choose = |list: &[&Candidate]| {
            let list: Vec<Candidate> = list.iter().map(|it| (*it).clone()).collect();
            victim(&list, 1).map(|it| it.uid.clone())
        };
        assert_eq!(choose(&[&within, &above, &far_above, &important, &build]).as_deref(), Some("build"));
        assert_eq!(choose(&[&within, &above, &far_above, &important]).as_deref(), Some("far"));
        assert_eq!(choose(&[&within, &important]).as_deref(), Some("important"));
        assert_eq!(choose(&[&within]).as_deref(), Some("within"));
        assert_eq!(victim(&[pod("small", 0, false, 10, 0)], DISK_BYTES_WORTH), None);
    }

    #[test]
    fn who_writes_more_than_it_may_is_told_what() {
        let pod = lower_pod(&json!({"metadata": {}, "spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
            "containers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}]}}));
        let bounds = Bounds::of(&pod);
        let wrote = |a: u64, v: u64| {
            over_limit(
                &bounds,
                &Written { containers: vec![("a".into(), a)], volumes: vec![("v".into(), v)] },
            )
        };
        assert_eq!(wrote(100, 100), None);
        assert_eq!(wrote(0, 2 << 20).unwrap(), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
        assert_eq!(
            wrote(3 << 20, 0).unwrap(),
            "Container a exceeded its local ephemeral storage limit \"2Mi\". "
        );
        assert!(wrote((2 << 20) - 10, 1 << 20).unwrap().starts_with("Pod ephemeral local storage usage"));
    }
}
