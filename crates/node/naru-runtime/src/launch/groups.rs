//! A container's control groups: made and limited by whoever starts it, entered by itself.
//!
//! A v1 group is entered by writing `0` to `tasks`, and a v2 group by being born in it: neither takes the lock
//! over all forks of the machine that moving a process does, which costs milliseconds.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Spec};

use crate::cgroup::{self, Hierarchy};

/// What every container may do with devices, whatever its list says: make nodes (nobody lets it open them),
/// terminals, and the devices of every `/dev`.
const DEVICES_ALWAYS: &[&str] = &[
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
    "c 10:200 rwm",
];

pub struct Groups {
    name: String,
    hierarchies: Vec<Hierarchy>,
    /// Of v1 hierarchies, to be entered.
    entered: Vec<CString>,
    /// v2, to be born in.
    born_in: Option<File>,
}

/// Limits that are not set here; the library knows them.
pub fn refusal(spec: &Spec) -> Option<&'static str> {
    let resources = spec.linux().as_ref()?.resources().as_ref()?;
    if resources.block_io().is_some()
        || resources.hugepage_limits().as_ref().is_some_and(|it| !it.is_empty())
        || resources.network().is_some()
        || resources.rdma().is_some()
        || resources.unified().is_some()
    {
        return Some("limits on devices, huge pages or networks");
    }
    if let Some(memory) = resources.memory()
        && (memory.swap().is_some()
            || memory.kernel_tcp().is_some()
            || memory.swappiness().is_some()
            || memory.disable_oom_killer() == Some(true)
            || memory.limit().is_some_and(|it| it == 0)
            || memory.check_before_update() == Some(true))
    {
        return Some("limits on swap or on the kernel's memory");
    }
    if let Some(cpu) = resources.cpu()
        && (cpu.idle().is_some()
            || cpu.burst().is_some()
            || cpu.realtime_runtime().is_some()
            || cpu.realtime_period().is_some()
            || cpu.cpus().is_some()
            || cpu.mems().is_some())
    {
        return Some("processors by name or real time");
    }
    None
}

impl Groups {
    /// Makes the group in every hierarchy and sets its limits.
    pub fn make(name: &str, spec: &Spec) -> io::Result<Self> {
        let hierarchies = cgroup::hierarchies();
        let is_unified = hierarchies.iter().all(|it| it.controllers.is_none());
        let mut groups =
            Self { name: name.to_owned(), hierarchies: Vec::new(), entered: Vec::new(), born_in: None };
        let result = groups.make_in(&hierarchies, is_unified, spec);
        groups.hierarchies = hierarchies;
        if result.is_err() {
            groups.remove();
        }
        result.map(|()| groups)
    }

    fn make_in(&mut self, hierarchies: &[Hierarchy], is_unified: bool, spec: &Spec) -> io::Result<()> {
        if hierarchies.is_empty() {
            return Err(io::Error::other("no control groups are mounted below /sys/fs/cgroup"));
        }
        let none = LinuxResources::default();
        let resources = spec.linux().as_ref().and_then(|it| it.resources().as_ref()).unwrap_or(&none);
        for hierarchy in hierarchies {
            // `name=systemd` counts nothing and limits nothing.
            if hierarchy.controllers.as_ref().is_some_and(Vec::is_empty) {
                continue;
            }
            let path =
                make_directories(hierarchy, &self.name).map_err(|error| named(&hierarchy.mount, error))?;
            for (file, value) in limits(hierarchy, is_unified, resources) {
                let file = path.join(file);
                fs::write(&file, value).map_err(|error| named(&file, error))?;
            }
            if hierarchy.has("devices") {
                allow_devices(&path, resources.devices().as_deref().unwrap_or_default())?;
            }
            match hierarchy.controllers {
                None => self.born_in = Some(File::open(&path).map_err(|error| named(&path, error))?),
                Some(_) => self
                    .entered
                    .push(CString::new(path.join("tasks").as_os_str().as_bytes()).map_err(io::Error::other)?),
            }
        }
        Ok(())
    }

    pub fn born_in(&self) -> Option<BorrowedFd<'_>> {
        self.born_in.as_ref().map(AsFd::as_fd)
    }

    /// For the container's first process, before it has a thread or a child.
    pub fn enter(&self) -> io::Result<()> {
        for tasks in &self.entered {
            let path = Path::new(std::ffi::OsStr::from_bytes(tasks.as_bytes()));
            let mut file = File::options().write(true).open(path).map_err(|error| named(path, error))?;
            file.write_all(b"0").map_err(|error| named(path, error))?;
        }
        Ok(())
    }

    /// What is mounted, as it was found when the groups were made.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// After its processes are gone. The kernel may take a moment to notice.
    pub fn remove(&self) {
        const TRIES_MAX: u32 = 100;
        let is_gone = |it: &Hierarchy| match fs::remove_dir(it.path(&self.name)) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        // All of them, also when one is not empty.
        if self.hierarchies.iter().filter(|it| !is_gone(it)).count() == 0 {
            return;
        }
        for _ in 0..TRIES_MAX {
            if cgroup::remove(&self.name) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("control group {}: {error}", path.display()))
}

fn make_directories(hierarchy: &Hierarchy, name: &str) -> io::Result<PathBuf> {
    let full = hierarchy.path(name);
    // The groups above exist for all but the first container.
    match fs::create_dir(&full) {
        Ok(()) if !hierarchy.has("cpuset") && hierarchy.controllers.is_some() => return Ok(full),
        _ => {}
    }
    let mut path = hierarchy.mount.clone();
    for part in name.split('/').filter(|it| !it.is_empty()) {
        if hierarchy.controllers.is_none() {
            cgroup::pass_controllers_down(&path);
        }
        path.push(part);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if hierarchy.has("cpuset") {
            cgroup::copy_processors_down(&path);
        }
    }
    Ok(full)
}

/// Files and what is written to them. Under v1 beside v2, v2 has no controllers and limits nothing.
fn limits(
    hierarchy: &Hierarchy,
    is_unified: bool,
    resources: &LinuxResources,
) -> Vec<(&'static str, String)> {
    let mut list = Vec::new();
    let is_v2 = hierarchy.controllers.is_none();
    let has = |controller: &str| hierarchy.has(controller) || (is_v2 && is_unified);
    let most = |number: i64, unlimited: &str| match number {
        it if it < 0 => unlimited.to_owned(),
        it => it.to_string(),
    };
    if let (true, Some(memory)) = (has("memory"), resources.memory()) {
        if let Some(bytes) = memory.limit() {
            let file = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
            list.push((file, most(bytes, if is_v2 { "max" } else { "-1" })));
        }
        if let Some(bytes) = memory.reservation() {
            let file = if is_v2 { "memory.low" } else { "memory.soft_limit_in_bytes" };
            list.push((file, most(bytes, if is_v2 { "max" } else { "-1" })));
        }
    }
    if let (true, Some(cpu)) = (has("cpu"), resources.cpu()) {
        // 0 is how "as it was" is written.
        let shares = cpu.shares().filter(|it| *it != 0);
        let period = cpu.period().filter(|it| *it != 0);
        let quota = cpu.quota().filter(|it| *it != 0);
        if is_v2 {
            if let Some(shares) = shares {
                list.push(("cpu.weight", cgroup::weight_of_shares(shares).to_string()));
            }
            if period.is_some() || quota.is_some() {
                let quota = most(quota.unwrap_or(-1), "max");
                let period = period.unwrap_or(crate::spec::PERIOD_MICROSECONDS);
                list.push(("cpu.max", format!("{quota} {period}")));
            }
        } else {
            list.extend(shares.map(|it| ("cpu.shares", it.to_string())));
            list.extend(period.map(|it| ("cpu.cfs_period_us", it.to_string())));
            list.extend(quota.map(|it| ("cpu.cfs_quota_us", it.to_string())));
        }
    }
    if let (true, Some(pids)) = (has("pids"), resources.pids()) {
        let limit = if pids.limit() > 0 { pids.limit() } else { -1 };
        list.push(("pids.max", most(limit, "max")));
    }
    list
}

fn allow_devices(path: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    let open = |file: &str| {
        let path = path.join(file);
        File::options().write(true).open(&path).map_err(|error| named(&path, error))
    };
    let mut allow = open("devices.allow")?;
    let mut deny = None;
    let mut allows_all = rules.is_empty();
    let mut written: Vec<String> = Vec::new();
    for rule in rules {
        let text = rule.to_string();
        let file = match rule.allow() {
            true => &mut allow,
            false => match &mut deny {
                Some(it) => it,
                none => none.insert(open("devices.deny")?),
            },
        };
        file.write_all(text.as_bytes()).map_err(|error| named(path, error))?;
        allows_all = match text.starts_with("a ") {
            true => rule.allow(),
            false => allows_all && rule.allow(),
        };
        written.push(text);
    }
    if allows_all {
        return Ok(());
    }
    for always in DEVICES_ALWAYS.iter().filter(|it| !written.iter().any(|text| text == *it)) {
        allow.write_all(always.as_bytes()).map_err(|error| named(path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(
        controllers: Option<&[&str]>,
        is_unified: bool,
        resources: serde_json::Value,
        expect: &[(&str, &str)],
    ) {
        let hierarchy = Hierarchy {
            mount: "/nowhere".into(),
            controllers: controllers.map(|it| it.iter().map(|it| (*it).to_owned()).collect()),
        };
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let got = limits(&hierarchy, is_unified, &resources);
        let got: Vec<(&str, &str)> = got.iter().map(|it| (it.0, it.1.as_str())).collect();
        assert_eq!(got, expect, "{controllers:?}");
    }

    #[test]
    fn limits_in_the_words_of_either_version() {
        let all = json!({
            "memory": {"limit": 1024, "reservation": -1}, "pids": {"limit": 0},
            "cpu": {"shares": 1024, "quota": 50_000, "period": 100_000},
        });
        check(
            Some(&["memory"]),
            false,
            all.clone(),
            &[("memory.limit_in_bytes", "1024"), ("memory.soft_limit_in_bytes", "-1")],
        );
        check(
            Some(&["cpu", "cpuacct"]),
            false,
            all.clone(),
            &[("cpu.shares", "1024"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")],
        );
        check(Some(&["pids"]), false, all.clone(), &[("pids.max", "max")]);
        check(
            None,
            true,
            all.clone(),
            &[
                ("memory.max", "1024"),
                ("memory.low", "max"),
                ("cpu.weight", "39"),
                ("cpu.max", "50000 100000"),
                ("pids.max", "max"),
            ],
        );
        check(None, false, all, &[]);
        check(None, true, json!({"cpu": {"quota": -1}}), &[("cpu.max", "max 100000")]);
    }

    #[test]
    fn what_is_not_set_here_is_left_to_the_library() {
        let spec = |resources: serde_json::Value| -> Spec {
            serde_json::from_value(json!({"ociVersion": "1.0.2", "linux": {"resources": resources}})).unwrap()
        };
        assert_eq!(refusal(&spec(json!({"memory": {"limit": 1024}, "pids": {"limit": 7}}))), None);
        for other in [
            json!({"memory": {"swap": 7}}),
            json!({"cpu": {"cpus": "0-1"}}),
            json!({"unified": {"memory.high": "1"}}),
            json!({"blockIO": {"weight": 10}}),
        ] {
            assert!(refusal(&spec(other.clone())).is_some(), "{other}");
        }
    }
}
