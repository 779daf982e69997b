//! Freezing a group, and every figure that it keeps: what `docker pause` and `docker stats` want to know.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{hierarchies, keyed};

/// The kernel freezes at once what does not hang in a device.
const FREEZE_TIME_MAX: Duration = Duration::from_secs(10);

/// The figures of one group.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Detail {
    pub cpu_nanoseconds: u64,
    pub cpu_user_nanoseconds: u64,
    pub cpu_system_nanoseconds: u64,
    /// Periods, throttled periods, throttled nanoseconds.
    pub throttling: [u64; 3],
    pub memory_bytes: u64,
    pub memory_bytes_peak: u64,
    /// `None` is no limit.
    pub memory_bytes_max: Option<u64>,
    /// As the kernel names them.
    pub memory: BTreeMap<String, u64>,
    pub processes: u64,
    pub processes_max: Option<u64>,
    /// Major and minor of the device, bytes read and bytes written.
    pub io_bytes: Vec<(u64, u64, u64, u64)>,
    /// The layout that the figures are from.
    pub is_unified: bool,
}

/// Stops all processes of a group, or lets them go on. Returns when that is so. Blocking.
pub fn freeze(group: &str, frozen: bool) -> std::io::Result<()> {
    let hierarchies = hierarchies();
    let v1 = hierarchies.iter().find(|it| it.has("freezer"));
    let v2 = hierarchies.iter().find(|it| it.controllers.is_none());
    let (path, text, done): (_, _, Box<dyn Fn(&Path) -> bool>) = match (v1, v2) {
        (Some(v1), _) => {
            let wanted = if frozen { "FROZEN" } else { "THAWED" };
            let done = move |path: &Path| fs::read_to_string(path).is_ok_and(|it| it.trim() == wanted);
            (v1.path(group).join("freezer.state"), wanted, Box::new(done))
        }
        (None, Some(v2)) => {
            let done = move |path: &Path| {
                keyed(&path.with_file_name("cgroup.events"), "frozen") == Some(u64::from(frozen))
            };
            (v2.path(group).join("cgroup.freeze"), if frozen { "1" } else { "0" }, Box::new(done))
        }
        (None, None) => return Err(std::io::Error::other("this machine has no freezer")),
    };
    let began = Instant::now();
    loop {
        fs::write(&path, text)?;
        if done(&path) {
            return Ok(());
        }
        if began.elapsed() > FREEZE_TIME_MAX {
            let _ = fs::write(&path, if path.ends_with("freezer.state") { "THAWED" } else { "0" });
            return Err(std::io::Error::other("the processes cannot be frozen"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The processes of a group, as the machine numbers them.
pub fn processes(group: &str) -> Vec<i32> {
    let mut found: Vec<i32> = Vec::new();
    for hierarchy in hierarchies() {
        let text = fs::read_to_string(hierarchy.path(group).join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// `None` when the group does not exist.
pub fn detail(group: &str) -> Option<Detail> {
    let number = |path: &Path, name: &str| {
        fs::read_to_string(path.join(name)).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    /// v1 says "no limit" with a number that no machine has.
    const NO_LIMIT: u64 = 1 << 60;
    let mut detail = Detail::default();
    let mut exists = false;
    for hierarchy in hierarchies() {
        let path = hierarchy.path(group);
        if !path.exists() {
            continue;
        }
        let is_unified = hierarchy.controllers.is_none();
        let has = |name: &str| is_unified || hierarchy.has(name);
        if is_unified && path.join("memory.current").exists() {
            exists = true;
            detail.is_unified = true;
            let cpu = path.join("cpu.stat");
            let nanoseconds = |key: &str| keyed(&cpu, key).unwrap_or(0) * 1000;
            detail.cpu_nanoseconds = nanoseconds("usage_usec");
            detail.cpu_user_nanoseconds = nanoseconds("user_usec");
            detail.cpu_system_nanoseconds = nanoseconds("system_usec");
            detail.throttling = [
                keyed(&cpu, "nr_periods").unwrap_or(0),
                keyed(&cpu, "nr_throttled").unwrap_or(0),
                nanoseconds("throttled_usec"),
            ];
            detail.memory_bytes = number(&path, "memory.current").unwrap_or(0);
            detail.memory_bytes_peak = number(&path, "memory.peak").unwrap_or(0);
            detail.memory_bytes_max = number(&path, "memory.max");
            detail.memory = all_keyed(&path.join("memory.stat"));
            for line in fs::read_to_string(path.join("io.stat")).unwrap_or_default().lines() {
                let value = |key: &str| {
                    line.split(' ').find_map(|it| it.strip_prefix(key)?.parse::<u64>().ok()).unwrap_or(0)
                };
                if let Some((major, minor)) = device(line) {
                    detail.io_bytes.push((major, minor, value("rbytes="), value("wbytes=")));
                }
            }
        }
        if !is_unified && has("cpuacct") {
            exists = true;
            detail.cpu_nanoseconds = number(&path, "cpuacct.usage").unwrap_or(0);
            // In hundredths of a second, as every program on Linux is told them.
            let stat = path.join("cpuacct.stat");
            detail.cpu_user_nanoseconds = keyed(&stat, "user").unwrap_or(0) * 10_000_000;
            detail.cpu_system_nanoseconds = keyed(&stat, "system").unwrap_or(0) * 10_000_000;
        }
        if !is_unified && has("cpu") {
            let stat = path.join("cpu.stat");
            for (at, key) in ["nr_periods", "nr_throttled", "throttled_time"].iter().enumerate() {
                detail.throttling[at] = keyed(&stat, key).unwrap_or(detail.throttling[at]);
            }
        }
        if !is_unified && has("memory") {
            exists = true;
            detail.memory_bytes = number(&path, "memory.usage_in_bytes").unwrap_or(0);
            detail.memory_bytes_peak = number(&path, "memory.max_usage_in_bytes").unwrap_or(0);
            let max = number(&path, "memory.limit_in_bytes");
            detail.memory_bytes_max = max.filter(|bytes| *bytes < NO_LIMIT);
            detail.memory = all_keyed(&path.join("memory.stat"));
        }
        if !is_unified && has("blkio") {
            let text = fs::read_to_string(path.join("blkio.throttle.io_service_bytes")).unwrap_or_default();
            let mut by_device: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
            for line in text.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                if let (Some(device), [_, kind, bytes]) = (device(line), words.as_slice()) {
                    let entry = by_device.entry(device).or_default();
                    match *kind {
                        "Read" => entry.0 += bytes.parse::<u64>().unwrap_or(0),
                        "Write" => entry.1 += bytes.parse::<u64>().unwrap_or(0),
                        _ => {}
                    }
                }
            }
            detail.io_bytes.extend(by_device.into_iter().map(|((a, b), (read, wrote))| (a, b, read, wrote)));
        }
        if has("pids")
            && let Some(count) = number(&path, "pids.current")
        {
            detail.processes = count;
            detail.processes_max = number(&path, "pids.max");
        }
    }
    exists.then_some(detail)
}

/// `8:16 ...` at the beginning of a line.
fn device(line: &str) -> Option<(u64, u64)> {
    let (major, minor) = line.split(' ').next()?.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn all_keyed(path: &Path) -> BTreeMap<String, u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}
