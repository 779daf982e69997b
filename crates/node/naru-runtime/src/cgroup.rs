//! Control groups in all three layouts: v1, v2 and both at once.
//!
//! libcontainer sets a container's limits; this module makes the groups above it (the slices with
//! their weights), puts the shims somewhere that outlives the daemon, reads what a container used,
//! and removes everything.

mod detail;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Slice;
use crate::spec;

pub use self::detail::{Detail, detail, freeze, processes};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub mount: PathBuf,
    /// v1: its controllers, empty for `name=systemd`; `None` for v2.
    pub controllers: Option<Vec<String>>,
}

pub(crate) fn hierarchies() -> Vec<Hierarchy> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn parse_mounts(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
        // A bind mount of a part of the tree is not a place to make groups in.
        if before.split(' ').nth(3) != Some("/") || !mount.starts_with("/sys/fs/cgroup") {
            continue;
        }
        let mut after = after.split(' ');
        let controllers = match after.next() {
            Some("cgroup2") => None,
            Some("cgroup") => {
                let options = after.next_back().unwrap_or_default();
                let known = ["rw", "ro", "xattr", "noprefix", "clone_children"];
                Some(
                    options
                        .split(',')
                        .filter(|option| !known.contains(option) && !option.contains('='))
                        .map(str::to_owned)
                        .collect(),
                )
            }
            _ => continue,
        };
        if !found.iter().any(|hierarchy| hierarchy.mount == mount) {
            found.push(Hierarchy { mount, controllers });
        }
    }
    found
}

impl Hierarchy {
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.as_ref().is_some_and(|list| list.iter().any(|name| name == controller))
    }

    pub fn path(&self, group: &str) -> PathBuf {
        self.mount.join(group.trim_start_matches('/'))
    }
}

/// Makes `group` in every hierarchy and the groups above it; a slice gets its weight.
///
/// Errors are not fatal one by one: a hierarchy may be read-only or owned by someone else, and the
/// limit that matters is set (and checked) by libcontainer.
pub fn ensure(group: &str, slice: Slice) {
    let slice_path = format!("/naru/{}", slice.name());
    for hierarchy in hierarchies() {
        let mut path = hierarchy.mount.clone();
        for part in group.split('/').filter(|part| !part.is_empty()) {
            if hierarchy.controllers.is_none() {
                pass_controllers_down(&path);
            }
            path.push(part);
            let _ = fs::create_dir(&path);
            if hierarchy.has("cpuset") {
                copy_processors_down(&path);
            }
        }
        set_priority_in(&hierarchy, &hierarchy.path(&slice_path), slice, slice == Slice::Pipelines);
    }
}

/// Lets a slice give way the moment that anything else wants the processor (Linux 5.15), or gives it its weight.
pub fn set_idle(slice: Slice, is_idle: bool) {
    let group = format!("/naru/{}", slice.name());
    for hierarchy in hierarchies() {
        set_priority_in(&hierarchy, &hierarchy.path(&group), slice, is_idle);
    }
}

fn set_priority_in(hierarchy: &Hierarchy, path: &Path, slice: Slice, is_idle: bool) {
    let (file, weight) = match hierarchy.controllers {
        None => ("cpu.weight", slice.cpu_weight()),
        Some(_) if hierarchy.has("cpu") => ("cpu.shares", shares(slice.cpu_weight())),
        Some(_) => return,
    };
    // A group that gives way has no weight; older kernels do not know the file.
    let is_set = fs::write(path.join("cpu.idle"), if is_idle { "1" } else { "0" }).is_ok();
    if !is_idle || !is_set {
        let _ = fs::write(path.join(file), weight.to_string());
    }
}

/// v1 shares as v2 weight, in the kernel's own translation.
pub(crate) fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// v2 weight 100 is v1 1024 shares.
pub(crate) fn shares(weight: u64) -> u64 {
    (weight * 1024 / 100).max(2)
}

/// v2 passes controllers down one level at a time. One write each: a missing controller would otherwise void the
/// others.
pub(crate) fn pass_controllers_down(path: &Path) {
    for controller in ["+cpu", "+memory", "+pids", "+io"] {
        let _ = fs::write(path.join("cgroup.subtree_control"), controller);
    }
}

/// A v1 cpuset is born empty and refuses tasks until it has processors and memory nodes.
pub(crate) fn copy_processors_down(path: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        copy_down(path, file);
    }
}

fn copy_down(path: &Path, file: &str) {
    let own = fs::read_to_string(path.join(file)).unwrap_or_default();
    if own.trim().is_empty()
        && let Some(parent) = path.parent()
        && let Ok(value) = fs::read_to_string(parent.join(file))
    {
        let _ = fs::write(path.join(file), value.trim());
    }
}

/// Moves a process into `group` in every hierarchy, so that whoever stops the daemon's group
/// (systemd, a container supervisor) does not stop the shims.
pub(crate) fn join(group: &str, pid: i32) {
    for hierarchy in hierarchies() {
        let _ = fs::write(hierarchy.path(group).join("cgroup.procs"), pid.to_string());
    }
}

/// Where v2 stands beside v1 without any controller: moves this process into `group` there, so that the pressure
/// on a slice can be read. What it starts follows.
pub(crate) fn join_beside(group: &str) {
    let hierarchies = hierarchies();
    if hierarchies.iter().all(|it| it.controllers.is_none()) {
        return; // the runtime's own business
    }
    for hierarchy in hierarchies.iter().filter(|it| it.controllers.is_none()) {
        let path = hierarchy.path(group);
        let _ = fs::create_dir_all(&path);
        let _ = fs::write(path.join("cgroup.procs"), std::process::id().to_string());
    }
}

/// The directory with the pressure files of a slice, where the kernel keeps them.
pub(crate) fn pressure_directory(slice: Slice) -> Option<PathBuf> {
    let group = format!("/naru/{}", slice.name());
    let unified = hierarchies().into_iter().find(|it| it.controllers.is_none())?;
    Some(unified.path(&group)).filter(|it| it.join("cpu.pressure").exists())
}

/// Lets a slice use less than all processors for a time. Under v2 that is one number. Under v1 a group must not
/// allow more than the one above it, and a container that starts with a limit of its own would be refused; so
/// there each container gets its part, and what it had is written down until it is given back.
pub struct SliceCpu {
    slice: Slice,
    file: PathBuf,
    /// v1: what the containers' groups were allowed, as the kernel writes it (-1 is no limit).
    before: std::collections::BTreeMap<PathBuf, i64>,
}

impl SliceCpu {
    /// `file` is where it is written down; what an earlier process left there is given back.
    pub fn open(slice: Slice, file: PathBuf) -> Self {
        let before = fs::read(&file).ok().and_then(|it| serde_json::from_slice(&it).ok()).unwrap_or_default();
        let mut it = Self { slice, file, before };
        it.set(None);
        it
    }

    /// Thousandths of a core for all of the slice; `None` is no limit. To be called again while it holds, for
    /// containers that have started since.
    pub fn set(&mut self, millis: Option<u64>) {
        let group = format!("/naru/{}", self.slice.name());
        for hierarchy in hierarchies() {
            let path = hierarchy.path(&group);
            if hierarchy.controllers.is_none() {
                let max = millis.map_or("max".to_owned(), |it| spec::quota(it).to_string());
                let _ = fs::write(path.join("cpu.max"), format!("{max} {}", spec::PERIOD_MICROSECONDS));
            } else if hierarchy.has("cpu") {
                self.set_containers(&path, millis);
            }
        }
    }

    fn set_containers(&mut self, slice: &Path, millis: Option<u64>) {
        let Some(millis) = millis else {
            for (path, quota) in std::mem::take(&mut self.before) {
                let _ = fs::write(path, quota.to_string()); // one that is gone needs nothing
            }
            let _ = fs::remove_file(&self.file);
            return;
        };
        let directories = |path: &Path| {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.filter(|it| it.file_type().is_ok_and(|it| it.is_dir())).map(|it| it.path())
        };
        let containers: Vec<PathBuf> = directories(slice)
            .flat_map(|pod| directories(&pod).collect::<Vec<_>>())
            .map(|it| it.join("cpu.cfs_quota_us"))
            .collect();
        let mut is_new = false;
        for path in &containers {
            if let (false, Ok(text)) = (self.before.contains_key(path), fs::read_to_string(path)) {
                self.before.insert(path.clone(), text.trim().parse().unwrap_or(-1));
                is_new = true;
            }
        }
        if is_new {
            let text = serde_json::to_vec(&self.before).expect("paths and numbers are plain data");
            if fs::write(&self.file, text).is_err() {
                return; // what cannot be given back is not taken
            }
        }
        let part = spec::quota(millis / containers.len().max(1) as u64) as i64;
        for path in containers {
            let own = self.before.get(&path).copied().unwrap_or(-1);
            let quota = if own < 0 { part } else { part.min(own) };
            let _ = fs::write(path, quota.to_string());
        }
    }
}

/// Kills what is in `group` and below, then removes it from every hierarchy.
///
/// True when nothing is left. A group empties only after its processes are reaped, so the caller
/// may have to come again.
pub fn remove(group: &str) -> bool {
    let mut clean = true;
    for hierarchy in hierarchies() {
        let path = hierarchy.path(group);
        if path.exists() {
            remove_tree(&path);
            clean &= !path.exists();
        }
    }
    clean
}

fn remove_tree(path: &Path) {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path());
            }
        }
    }
    for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Ok(pid) = pid.parse::<i32>()
            && pid > 1
        {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    let _ = fs::remove_dir(path);
}

/// Removes `group` where it is empty, and leaves it where it is not: for parents that several
/// instances share.
pub fn remove_if_empty(group: &str) {
    for hierarchy in hierarchies() {
        let _ = fs::remove_dir(hierarchy.path(group));
    }
}

/// What a container or a pod used.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    pub cpu_seconds: f64,
    /// Working set: memory that reclaim could not simply drop.
    pub memory_bytes: u64,
    pub processes: u64,
}

/// `None` when the group does not exist.
pub fn usage(group: &str) -> Option<Usage> {
    let mut usage = Usage::default();
    let mut exists = false;
    let number =
        |path: PathBuf| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    for hierarchy in hierarchies() {
        let path = hierarchy.path(group);
        if !path.exists() {
            continue;
        }
        if hierarchy.controllers.is_none() {
            if let Some(microseconds) = keyed(&path.join("cpu.stat"), "usage_usec")
                && path.join("memory.current").exists()
            {
                exists = true;
                usage.cpu_seconds = microseconds as f64 / 1e6;
            }
            if let Some(bytes) = number(path.join("memory.current")) {
                exists = true;
                let inactive = keyed(&path.join("memory.stat"), "inactive_file").unwrap_or(0);
                usage.memory_bytes = bytes.saturating_sub(inactive);
            }
            if let Some(count) = number(path.join("pids.current")) {
                usage.processes = count;
            }
            continue;
        }
        if hierarchy.has("cpuacct")
            && let Some(nanoseconds) = number(path.join("cpuacct.usage"))
        {
            exists = true;
            usage.cpu_seconds = nanoseconds as f64 / 1e9;
        }
        if hierarchy.has("memory")
            && let Some(bytes) = number(path.join("memory.usage_in_bytes"))
        {
            exists = true;
            let inactive = keyed(&path.join("memory.stat"), "total_inactive_file").unwrap_or(0);
            usage.memory_bytes = bytes.saturating_sub(inactive);
        }
        if hierarchy.has("pids")
            && let Some(count) = number(path.join("pids.current"))
        {
            usage.processes = count;
        }
    }
    exists.then_some(usage)
}

/// What a running container may use from now on. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub memory_bytes_max: Option<u64>,
    /// Thousandths of a core.
    pub cpu_millis_max: Option<u64>,
    pub cpu_millis_request: Option<u64>,
}

/// Changes the limits of a group that exists. An error may leave some of them changed; doing it again is safe.
pub fn set_limits(group: &str, limits: &Limits) -> std::io::Result<()> {
    set_limits_in(&hierarchies(), group, limits)
}

fn set_limits_in(hierarchies: &[Hierarchy], group: &str, limits: &Limits) -> std::io::Result<()> {
    for hierarchy in hierarchies {
        let path = hierarchy.path(group);
        if !path.exists() {
            continue;
        }
        let write = |file: &str, value: String| {
            fs::write(path.join(file), &value)
                .map_err(|error| std::io::Error::new(error.kind(), format!("{file} to {value}: {error}")))
        };
        let quota = limits.cpu_millis_max.map(spec::quota);
        let shares = spec::shares_of(limits.cpu_millis_request);
        if hierarchy.controllers.is_none() {
            if path.join("memory.max").exists() {
                let max = limits.memory_bytes_max.map_or("max".to_owned(), |bytes| bytes.to_string());
                write("memory.max", max)?;
            }
            if path.join("cpu.max").exists() {
                let max = quota.map_or("max".to_owned(), |quota| quota.to_string());
                write("cpu.max", format!("{max} {}", spec::PERIOD_MICROSECONDS))?;
                write("cpu.weight", weight_of_shares(shares).to_string())?;
            }
            continue;
        }
        if hierarchy.has("memory") {
            let max = limits.memory_bytes_max.map_or("-1".to_owned(), |bytes| bytes.to_string());
            write("memory.limit_in_bytes", max)?;
        }
        if hierarchy.has("cpu") {
            write("cpu.cfs_quota_us", quota.map_or("-1".to_owned(), |quota| quota.to_string()))?;
            write("cpu.shares", shares.to_string())?;
        }
    }
    Ok(())
}

/// How often the kernel killed something in `group` for want of memory.
pub(crate) fn out_of_memory_kills(group: &str) -> u64 {
    hierarchies()
        .iter()
        .filter_map(|hierarchy| {
            let path = hierarchy.path(group);
            if hierarchy.controllers.is_none() {
                keyed(&path.join("memory.events"), "oom_kill")
            } else if hierarchy.has("memory") {
                keyed(&path.join("memory.oom_control"), "oom_kill")
            } else {
                None
            }
        })
        .sum()
}

/// A value from a file of `key value` lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// True where the only hierarchy is v2, the layout in which a container can be shown its own part.
pub(crate) fn is_unified() -> bool {
    hierarchies().iter().all(|hierarchy| hierarchy.controllers.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_in_the_words_of_either_version() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[&str]| {
            let mount = root.path().join(name);
            fs::create_dir_all(mount.join("naru/c")).unwrap();
            for file in files {
                fs::write(mount.join("naru/c").join(file), "").unwrap();
            }
            mount
        };
        let unified = make("v2", &["memory.max", "cpu.max", "cpu.weight"]);
        let memory = make("memory", &["memory.limit_in_bytes"]);
        let cpu = make("cpu", &["cpu.cfs_quota_us", "cpu.shares"]);
        let hierarchies = [
            Hierarchy { mount: unified, controllers: None },
            Hierarchy { mount: memory, controllers: Some(vec!["memory".into()]) },
            Hierarchy { mount: cpu, controllers: Some(vec!["cpu".into(), "cpuacct".into()]) },
        ];
        let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
        let limits = Limits {
            memory_bytes_max: Some(64 << 20),
            cpu_millis_max: Some(500),
            cpu_millis_request: Some(1000),
        };
        set_limits_in(&hierarchies, "/naru/c", &limits).unwrap();
        assert_eq!(read("v2/naru/c/memory.max"), "67108864");
        assert_eq!(read("v2/naru/c/cpu.max"), "50000 100000");
        assert_eq!(read("v2/naru/c/cpu.weight"), "39");
        assert_eq!(read("memory/naru/c/memory.limit_in_bytes"), "67108864");
        assert_eq!(read("cpu/naru/c/cpu.cfs_quota_us"), "50000");
        assert_eq!(read("cpu/naru/c/cpu.shares"), "1024");
        set_limits_in(&hierarchies, "/naru/c", &Limits::default()).unwrap();
        assert_eq!(read("v2/naru/c/memory.max"), "max");
        assert_eq!(read("v2/naru/c/cpu.max"), "max 100000");
        assert_eq!(read("cpu/naru/c/cpu.cfs_quota_us"), "-1");
    }

    #[test]
    fn reads_v1_v2_and_hybrid_layouts() {
        let hybrid = "\
26 25 0:23 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
27 26 0:24 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
28 26 0:25 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
29 26 0:26 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw
30 26 0:26 /docker/x /mnt rw,relatime shared:4 - cgroup2 cgroup2 rw";
        let found = parse_mounts(hybrid);
        assert_eq!(found.len(), 3);
        assert!(found[0].has("cpu") && found[0].has("cpuacct") && !found[0].has("memory"));
        assert_eq!(found[1].controllers.as_deref(), Some(&[][..]));
        assert_eq!(found[2].controllers, None);
        let unified = "29 26 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(parse_mounts(unified)[0].controllers, None);
    }
}
