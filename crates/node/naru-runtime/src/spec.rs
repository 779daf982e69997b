//! From our plain configuration to an OCI runtime specification. Pure.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cgroup;
use crate::config::{ContainerConfig, Mount, SandboxConfig};

/// Docker's default capabilities without MKNOD: nothing in a container has a use for device nodes,
/// and on cgroup v2 no device filter would stop them.
pub const CAPABILITIES_DEFAULT: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Files a container may open; the hard limit of the machine wins when it is lower.
const OPEN_FILES_MAX: u64 = 1_048_576;

/// The user as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub home: Option<PathBuf>,
}

/// What the machine at hand adds to the configuration.
pub struct Surroundings<'a> {
    /// Process whose network, ipc and uts namespaces the container shares: the shim.
    pub namespace_pid: u32,
    pub user: ResolvedUser,
    /// Parts of the host image's masks to bind back read-only.
    pub read_only_binds: &'a [PathBuf],
    pub open_files_hard_max: u64,
    pub unified_cgroups: bool,
}

/// The pod's own cgroup path and the container's below it.
pub fn container_cgroup(sandbox: &SandboxConfig, container: &str) -> String {
    format!("{}/{container}", sandbox.pod_cgroup)
}

pub fn lower_to_oci(sandbox: &SandboxConfig, config: &ContainerConfig, around: &Surroundings) -> Value {
    let capabilities: Vec<String> = match &config.capabilities {
        Some(names) => names.iter().map(|name| format!("CAP_{name}")).collect(),
        None => CAPABILITIES_DEFAULT.iter().map(|name| format!("CAP_{name}")).collect(),
    };
    let files = OPEN_FILES_MAX.min(around.open_files_hard_max);
    let mut environment: Vec<String> =
        config.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let missing = |name: &str| !config.environment.iter().any(|(key, _)| key == name);
    if missing("PATH") {
        environment.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    if missing("HOME") {
        let home = around.user.home.as_deref().unwrap_or(Path::new("/"));
        environment.push(format!("HOME={}", home.display()));
    }
    if config.terminal && missing("TERM") {
        environment.push("TERM=xterm".to_owned());
    }
    if missing("HOSTNAME") {
        environment.push(format!("HOSTNAME={}", sandbox.hostname));
    }

    let namespace = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{file}", around.namespace_pid)});
    let mut process = json!({
        "terminal": config.terminal,
        "user": {"uid": around.user.uid, "gid": around.user.gid, "additionalGids": around.user.additional_gids},
        "args": config.arguments,
        "env": environment,
        "cwd": config.working_directory,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": files, "soft": files}],
        "noNewPrivileges": config.no_new_privileges,
    });
    if let Some(score) = config.out_of_memory_score {
        process["oomScoreAdj"] = json!(score);
    }
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": config.root.read_only},
        "process": process,
        "mounts": mounts(sandbox, config, around),
        "linux": {
            "cgroupsPath": container_cgroup(sandbox, &config.id),
            "resources": resources(config),
            "namespaces": [
                {"type": "pid"},
                {"type": "mount"},
                {"type": "cgroup"},
                namespace("network", "net"),
                namespace("ipc", "ipc"),
                namespace("uts", "uts"),
            ],
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS,
        },
    })
}

fn mounts(sandbox: &SandboxConfig, config: &ContainerConfig, around: &Surroundings) -> Vec<Value> {
    let special = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mut list = vec![
        special("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        special("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        special("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    if around.unified_cgroups {
        list.push(special("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]));
    }
    let bind = |mount: &Mount| {
        // `rro` also covers what is mounted below the source.
        let options: &[&str] = if mount.read_only {
            &["rbind", "nosuid", "nodev", "rro"]
        } else {
            &["rbind", "nosuid", "nodev"]
        };
        json!({"destination": mount.destination, "type": "bind", "source": mount.source, "options": options})
    };
    list.push(bind(&Mount {
        source: sandbox.directory.join("shm"),
        destination: "/dev/shm".into(),
        read_only: false,
    }));
    list.extend(
        around
            .read_only_binds
            .iter()
            .map(|path| bind(&Mount { source: path.clone(), destination: path.clone(), read_only: true })),
    );
    // Parents before children, whatever order the pod lists them in.
    let mut wanted: Vec<&Mount> = config.mounts.iter().collect();
    wanted.sort_by_key(|mount| mount.destination.components().count());
    list.extend(wanted.into_iter().map(bind));
    list
}

fn resources(config: &ContainerConfig) -> Value {
    const PERIOD_MICROSECONDS: u64 = 100_000;
    let mut cpu = serde_json::Map::new();
    if let Some(millis) = config.cpu_millis_max.filter(|millis| *millis > 0) {
        // The kernel refuses quotas below a millisecond.
        cpu.insert("quota".into(), json!((millis * PERIOD_MICROSECONDS / 1000).max(1000)));
        cpu.insert("period".into(), json!(PERIOD_MICROSECONDS));
    }
    // As kubelet: 1000 millis are 1024 shares; nothing asked is the least there is.
    let asked = config.cpu_millis_request.unwrap_or(0);
    cpu.insert("shares".into(), json!((asked * 1024 / 1000).clamp(2, 262_144)));
    let device = |major: i64, minor: Value| json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"});
    let mut resources = json!({
        "pids": {"limit": config.pids_max},
        "cpu": cpu,
        "devices": [
            {"allow": false, "access": "rwm"},
            device(1, json!(3)), device(1, json!(5)), device(1, json!(7)),
            device(1, json!(8)), device(1, json!(9)),
            device(5, json!(0)), device(5, json!(1)), device(5, json!(2)),
            {"allow": true, "type": "c", "major": 136, "access": "rwm"},
        ],
    });
    if let Some(bytes) = config.memory_bytes_max {
        resources["memory"] = json!({"limit": bytes});
    }
    resources
}

/// True when a container was deliberately given the capability that the filter is there to deny.
pub fn is_admin(config: &ContainerConfig) -> bool {
    config.capabilities.as_ref().is_some_and(|names| names.iter().any(|name| name == "SYS_ADMIN"))
}

pub(crate) fn unified() -> bool {
    cgroup::is_unified()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RootFs;

    fn lower(config: &ContainerConfig) -> Value {
        let around = Surroundings {
            namespace_pid: 7,
            user: ResolvedUser::default(),
            read_only_binds: &[],
            open_files_hard_max: 20_000,
            unified_cgroups: false,
        };
        lower_to_oci(&SandboxConfig::new("pod", "/p", "/r"), config, &around)
    }

    #[test]
    fn limits_reach_the_specification_and_rlimits_stay_below_the_hard_limit() {
        let mut config = ContainerConfig::new("c-0", RootFs::layers(["/l"]), ["/true"]);
        config.memory_bytes_max = Some(64 << 20);
        config.cpu_millis_max = Some(500);
        config.cpu_millis_request = Some(250);
        let spec = lower(&config);
        assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 64 << 20);
        assert_eq!(
            spec["linux"]["resources"]["cpu"],
            json!({"quota": 50_000, "period": 100_000, "shares": 256})
        );
        assert_eq!(spec["linux"]["cgroupsPath"], "/naru/apps/pod/c-0");
        assert_eq!(spec["process"]["rlimits"][0]["hard"], 20_000);
        assert!(!spec["process"]["capabilities"]["bounding"].to_string().contains("SYS_ADMIN"));
    }

    #[test]
    fn a_volume_inside_a_volume_is_mounted_after_it() {
        let mut config = ContainerConfig::new("c-0", RootFs::layers(["/l"]), ["/true"]);
        for destination in ["/data/inner", "/data"] {
            config.mounts.push(Mount {
                source: "/s".into(),
                destination: destination.into(),
                read_only: false,
            });
        }
        let spec = lower(&config);
        let order: Vec<&str> = spec["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|mount| mount["destination"].as_str().filter(|path| path.starts_with("/data")))
            .collect();
        assert_eq!(order, ["/data", "/data/inner"]);
    }
}
