//! The Node object: what this machine is and has. Reading is here, deciding nothing.

use std::fs;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::eviction::Pressure;
use crate::status::time;

/// As many as the smallest default subnet share allows; kubelet's default is 110.
pub const PODS_MAX: u32 = 250;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub cpus: u64,
    pub memory_bytes: u64,
    pub kernel: String,
    pub os_image: String,
    pub machine_id: String,
    pub boot_id: String,
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

impl Machine {
    pub fn read() -> Self {
        let memory_kib = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            text.lines().find_map(|line| {
                line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok()
            })
        });
        let os_image = fs::read_to_string("/etc/os-release").ok().and_then(|text| {
            text.lines()
                .find_map(|line| Some(line.strip_prefix("PRETTY_NAME=")?.trim_matches('"').to_owned()))
        });
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
            memory_bytes: memory_kib.unwrap_or(0u64) * 1024,
            kernel: first_line("/proc/sys/kernel/osrelease"),
            os_image: os_image.unwrap_or_else(|| "Linux".to_owned()),
            machine_id: first_line("/etc/machine-id"),
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
        }
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The object without its status.
pub fn node_object(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture(),
        }},
        "spec": {},
    })
}

/// `before` keeps the time since when the node is ready.
pub fn node_status(
    name: &str,
    machine: &Machine,
    address: &str,
    disk_free: Option<(u64, u64)>,
    pressure: Pressure,
    before: &Value,
    now: Timestamp,
) -> Value {
    let mut resources = json!({
        "cpu": machine.cpus.to_string(),
        "memory": format!("{}Ki", machine.memory_bytes / 1024),
        "pods": PODS_MAX.to_string(),
    });
    if let Some((_, total)) = disk_free {
        resources["ephemeral-storage"] = json!(format!("{}Ki", total / 1024));
    }
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let earlier = before["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|it| it["type"] == kind && it["status"] == status);
        let since =
            earlier.and_then(|it| it["lastTransitionTime"].as_str()).map_or_else(|| time(now), str::to_owned);
        json!({"type": kind, "status": status, "reason": reason, "message": message,
               "lastHeartbeatTime": time(now), "lastTransitionTime": since})
    };
    let of = |short: bool, bad: &'static str, good: &'static str| if short { bad } else { good };
    let Pressure { memory, disk, pids } = pressure;
    let memory_reason = of(memory, "NodeHasInsufficientMemory", "NodeHasSufficientMemory");
    let disk_reason = of(disk, "NodeHasDiskPressure", "NodeHasNoDiskPressure");
    let pids_reason = of(pids, "NodeHasInsufficientPID", "NodeHasSufficientPID");
    let message = |short: bool, what: &str| match short {
        true => format!("the node is short of {what}"),
        false => format!("the node has {what}"),
    };
    json!({
        "capacity": resources, "allocatable": resources,
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
        "conditions": [
            condition("MemoryPressure", memory, memory_reason, &message(memory, "memory")),
            condition("DiskPressure", disk, disk_reason, &message(disk, "room on its disk")),
            condition("PIDPressure", pids, pids_reason, &message(pids, "process ids")),
            condition("Ready", true, "KubeletReady", "naru is running"),
        ],
        "nodeInfo": {
            "architecture": architecture(), "operatingSystem": "linux", "kernelVersion": machine.kernel,
            "osImage": machine.os_image, "machineID": machine.machine_id, "systemUUID": machine.machine_id,
            "bootID": machine.boot_id, "containerRuntimeVersion": concat!("naru://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": concat!("v1.35.0+naru-", env!("CARGO_PKG_VERSION")), "kubeProxyVersion": "",
        },
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
    })
}

/// Free and all bytes of the file system that holds `path`.
pub fn disk_free(path: &std::path::Path) -> Option<(u64, u64)> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    let block = found.fragment_size();
    Some((found.blocks_available() * block, found.blocks() * block))
}
