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

/// What a later exec must know of the container's process, as annotations of its specification.
pub const FILTERED: &str = "dev.naru.filtered";
pub const CAPABILITIES: &str = "dev.naru.capabilities";

/// One bit per capability.
pub(crate) fn bits(names: &[&str]) -> u64 {
    let numbers = names.iter().filter_map(|name| CAPABILITIES_ALL.iter().position(|it| it == name));
    numbers.fold(0, |bits, number| bits | 1 << number)
}

/// Everything that the kernel knows, in its own order: the place is the number.
pub const CAPABILITIES_ALL: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
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
    /// Process whose pid namespace the container shares.
    pub pids_of: Option<u32>,
    /// Capabilities that this process could pass on.
    pub capability_bits: u64,
    /// Device nodes of the machine, for a privileged container.
    pub devices: Vec<Value>,
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
    let names: Vec<&str> = match &config.capabilities {
        _ if config.privileged => CAPABILITIES_ALL.to_vec(),
        Some(names) => names.iter().map(String::as_str).collect(),
        None => CAPABILITIES_DEFAULT.to_vec(),
    };
    // "All" are all that this machine may give; one that was asked for by name fails where it is missing.
    let given = |name: &&str| {
        let at = CAPABILITIES_ALL.iter().position(|it| it == name);
        at.is_none_or(|at| around.capability_bits & (1 << at) != 0)
    };
    let names: Vec<&str> = names
        .into_iter()
        .filter(|name| !(config.privileged || config.all_capabilities) || given(name))
        .collect();
    let kept = bits(&names);
    let guarded = config.is_filtered() && !config.no_new_privileges;
    // To install a filter and to give up what that takes; gone before the program starts.
    let lent = ["SYS_ADMIN", "SETPCAP"].iter().filter(|name| guarded && !names.contains(name));
    let capabilities: Vec<String> = names.iter().chain(lent).map(|name| format!("CAP_{name}")).collect();
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

    let mut limits = vec![json!({"type": "RLIMIT_NOFILE", "hard": files, "soft": files})];
    for (name, soft, hard) in &config.resource_limits {
        let kind = format!("RLIMIT_{}", name.to_uppercase());
        limits.retain(|it| it["type"] != kind);
        limits.push(json!({"type": kind, "soft": soft, "hard": hard}));
    }

    let namespace = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{file}", around.namespace_pid)});
    let mut process = json!({
        "terminal": config.terminal,
        "user": {"uid": around.user.uid, "gid": around.user.gid, "additionalGids": around.user.additional_gids},
        "args": config.arguments,
        "env": environment,
        "cwd": config.working_directory,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "rlimits": limits,
        "noNewPrivileges": config.no_new_privileges,
    });
    if let Some(score) = config.out_of_memory_score {
        process["oomScoreAdj"] = json!(score);
    }
    let mut namespaces = vec![
        json!({"type": "mount"}),
        namespace("network", "net"),
        namespace("ipc", "ipc"),
        namespace("uts", "uts"),
    ];
    match around.pids_of {
        Some(pid) => namespaces.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
        None if sandbox.host_pids => {}
        None => namespaces.push(json!({"type": "pid"})),
    }
    if !config.privileged {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let open = config.privileged || config.unmasked_proc;
    let masked: &[&str] = if open { &[] } else { MASKED_PATHS };
    let read_only: &[&str] = if open { &[] } else { READ_ONLY_PATHS };
    json!({
        "ociVersion": "1.0.2",
        "annotations": {FILTERED: config.is_filtered().to_string(), CAPABILITIES: kept.to_string()},
        "root": {"path": "rootfs", "readonly": config.root.read_only},
        "process": process,
        "mounts": mounts(sandbox, config, around),
        "linux": {
            "cgroupsPath": container_cgroup(sandbox, &config.id),
            "resources": resources(config),
            "namespaces": namespaces,
            "devices": around.devices,
            "maskedPaths": masked,
            "readonlyPaths": read_only,
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
    ];
    let write = if config.privileged { "rw" } else { "ro" };
    list.push(special("/sys", "sysfs", &["nosuid", "noexec", "nodev", write]));
    if around.unified_cgroups {
        list.push(special("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", write]));
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
    let shared_memory =
        if sandbox.host_ipc { PathBuf::from("/dev/shm") } else { sandbox.directory.join("shm") };
    list.push(bind(&Mount::new(shared_memory, "/dev/shm", false)));
    list.extend(around.read_only_binds.iter().map(|path| bind(&Mount::new(path, path, true))));
    // Parents before children, whatever order the pod lists them in.
    let mut wanted: Vec<&Mount> = config.mounts.iter().collect();
    wanted.sort_by_key(|mount| mount.destination.components().count());
    list.extend(wanted.into_iter().map(bind));
    list
}

/// Quotas are for this long.
pub(crate) const PERIOD_MICROSECONDS: u64 = 100_000;

/// The kernel refuses quotas below a millisecond.
pub(crate) fn quota(cpu_millis: u64) -> u64 {
    (cpu_millis * PERIOD_MICROSECONDS / 1000).max(1000)
}

/// As kubelet: 1000 millis are 1024 shares; nothing asked is the least there is.
pub(crate) fn shares_of(cpu_millis: Option<u64>) -> u64 {
    (cpu_millis.unwrap_or(0) * 1024 / 1000).clamp(2, 262_144)
}

fn resources(config: &ContainerConfig) -> Value {
    let mut cpu = serde_json::Map::new();
    if let Some(millis) = config.cpu_millis_max.filter(|millis| *millis > 0) {
        cpu.insert("quota".into(), json!(quota(millis)));
        cpu.insert("period".into(), json!(PERIOD_MICROSECONDS));
    }
    cpu.insert("shares".into(), json!(shares_of(config.cpu_millis_request)));
    let device = |major: i64, minor: Value| json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"});
    let mut devices = vec![
        json!({"allow": false, "access": "rwm"}),
        device(1, json!(3)),
        device(1, json!(5)),
        device(1, json!(7)),
        device(1, json!(8)),
        device(1, json!(9)),
        device(5, json!(0)),
        device(5, json!(1)),
        device(5, json!(2)),
        json!({"allow": true, "type": "c", "major": 136, "access": "rwm"}),
    ];
    if config.privileged {
        devices = vec![json!({"allow": true, "access": "rwm"})];
    }
    let mut resources = json!({
        "pids": {"limit": config.pids_max},
        "cpu": cpu,
        "devices": devices,
    });
    if let Some(bytes) = config.memory_bytes_max {
        resources["memory"] = json!({"limit": bytes});
    }
    resources
}

/// True when a container was deliberately given the capability that the filter is there to deny.
pub fn is_admin(config: &ContainerConfig) -> bool {
    config.privileged
        || config.capabilities.as_ref().is_some_and(|names| names.iter().any(|name| name == "SYS_ADMIN"))
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
            pids_of: None,
            capability_bits: u64::MAX,
            devices: Vec::new(),
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
            config.mounts.push(Mount::new("/s", destination, false));
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
