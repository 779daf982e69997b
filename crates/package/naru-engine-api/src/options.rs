//! What of a create request is honoured, and what is refused by the name of its flag. Pure.

use serde_json::Value;

use crate::answer::{is_set, text, texts};
use crate::error::{Error, Result};

/// Fields of the request itself that mean something here.
const CONFIG_HONOURED: &[&str] = &[
    "ArgsEscaped", // of Windows; without a meaning on Linux in Docker, too
    "AttachStderr",
    "AttachStdin",
    "AttachStdout",
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "HostConfig",
    "Hostname",
    "Image",
    "Labels",
    "NetworkingConfig",
    "OnBuild",
    "OpenStdin",
    "Shell",
    "StdinOnce",
    "StopSignal",
    "StopTimeout",
    "Tty",
    "User",
    "Volumes",
    "WorkingDir",
];

const HOST_HONOURED: &[&str] = &[
    "AutoRemove",
    "Binds",
    "CapAdd",
    "CapDrop",
    "CgroupnsMode",
    "ConsoleSize",     // the size of a terminal comes again with `resize`
    "ContainerIDFile", // the client writes it
    "CpuPeriod",
    "CpuQuota",
    "CpuShares",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "GroupAdd",
    "Init",
    "IpcMode",
    "Isolation",
    "LogConfig",
    "MaskedPaths",
    "Memory",
    "MemoryReservation",
    "MemorySwap",
    "MemorySwappiness",
    "Mounts",
    "NanoCpus",
    "NetworkMode",
    "PidMode",
    "PidsLimit",
    "PortBindings",
    "Privileged",
    "PublishAllPorts",
    "ReadonlyPaths",
    "ReadonlyRootfs",
    "RestartPolicy",
    "Runtime",
    "SecurityOpt",
    "ShmSize",
    "Sysctls",
    "Tmpfs",
    "UTSMode",
    "Ulimits",
    "UsernsMode",
    "VolumeDriver",
    "VolumesFrom",
];

/// Field, flag, and why not or what to do instead.
const REFUSED: &[(&str, &str, &str)] = &[
    ("BlkioDeviceReadBps", "--device-read-bps", "block devices are not throttled one by one"),
    ("BlkioDeviceReadIOps", "--device-read-iops", "block devices are not throttled one by one"),
    ("BlkioDeviceWriteBps", "--device-write-bps", "block devices are not throttled one by one"),
    ("BlkioDeviceWriteIOps", "--device-write-iops", "block devices are not throttled one by one"),
    ("BlkioWeight", "--blkio-weight", "weights belong to the slices of the machine"),
    ("BlkioWeightDevice", "--blkio-weight-device", "weights belong to the slices of the machine"),
    ("Cgroup", "--cgroup", "containers have groups of their own"),
    ("CgroupParent", "--cgroup-parent", "containers live in the slice of the apps"),
    ("CpuCount", "--cpu-count", "it is of Windows; use --cpus"),
    ("CpuPercent", "--cpu-percent", "it is of Windows; use --cpus"),
    ("CpuRealtimePeriod", "--cpu-rt-period", "real-time scheduling is not given to containers"),
    ("CpuRealtimeRuntime", "--cpu-rt-runtime", "real-time scheduling is not given to containers"),
    ("CpusetCpus", "--cpuset-cpus", "use --cpus"),
    ("CpusetMems", "--cpuset-mems", "memory is not bound to nodes"),
    (
        "DeviceCgroupRules",
        "--device-cgroup-rule",
        "devices are given to privileged containers only: --privileged",
    ),
    ("DeviceRequests", "--gpus", "devices are given to privileged containers only: --privileged"),
    ("Devices", "--device", "devices are given to privileged containers only: --privileged"),
    ("Domainname", "--domainname", "write the whole name with --hostname"),
    ("KernelMemory", "--kernel-memory", "kernels have given it up"),
    ("KernelMemoryTCP", "--kernel-memory-tcp", "kernels have given it up"),
    ("Links", "--link", "use a network of your own: docker network create, and --network"),
    ("MacAddress", "--mac-address", "addresses are chosen by the node"),
    ("NetworkDisabled", "network disabled", "use --network none"),
    ("OomKillDisable", "--oom-kill-disable", "a container out of memory ends; the machine goes on"),
    (
        "OomScoreAdj",
        "--oom-score-adj",
        "who goes first is decided by limits and requests: use --memory-reservation",
    ),
    ("StorageOpt", "--storage-opt", "the size of a container's files is not limited one by one"),
];

fn refuse(field: &str) -> Error {
    match REFUSED.iter().find(|(it, ..)| *it == field) {
        Some((_, flag, why)) => Error::refused(format!("{flag} is not supported: {why}")),
        None => Error::refused(format!("the option {field} is not supported")),
    }
}

/// Refuses what cannot be honoured. Returns warnings.
pub fn check(request: &Value) -> Result<Vec<String>> {
    let host = &request["HostConfig"];
    for (fields, honoured) in [(request, CONFIG_HONOURED), (host, HOST_HONOURED)] {
        for (field, value) in fields.as_object().into_iter().flatten() {
            if is_set(value) && !honoured.contains(&field.as_str()) {
                return Err(refuse(field));
            }
        }
    }
    let one_of = |field: &str, flag: &str, known: &[&str]| {
        let value = text(host, &format!("/{field}"));
        if known.contains(&value) {
            return Ok(());
        }
        let known: Vec<&&str> = known.iter().filter(|it| !it.is_empty()).collect();
        Err(Error::refused(format!("{flag}={value} is not supported; what can be had: {known:?}")))
    };
    one_of("IpcMode", "--ipc", &["", "private", "shareable", "host"])?;
    one_of("PidMode", "--pid", &["", "host"])?;
    one_of("UTSMode", "--uts", &[""])?;
    one_of("UsernsMode", "--userns", &["", "host"])?;
    one_of("CgroupnsMode", "--cgroupns", &["", "private"])?;
    one_of("Isolation", "--isolation", &["", "default"])?;
    one_of("Runtime", "--runtime", &["", "naru", "runc", "io.containerd.runc.v2"])?;
    one_of("VolumeDriver", "--volume-driver", &["", "local"])?;
    for (field, ours) in
        [("MaskedPaths", "systempaths=unconfined"), ("ReadonlyPaths", "systempaths=unconfined")]
    {
        if !host[field].is_null() && !texts(&host[field]).is_empty() {
            return Err(Error::refused(format!(
                "{field} cannot be chosen one by one; {ours} opens all of them"
            )));
        }
    }
    let policy = text(host, "/RestartPolicy/Name");
    if !["", "no", "always", "unless-stopped", "on-failure"].contains(&policy) {
        return Err(Error::bad(format!("invalid restart policy: unknown policy '{policy}'")));
    }
    let retries = host["RestartPolicy"]["MaximumRetryCount"].as_i64().unwrap_or(0);
    if retries != 0 && policy != "on-failure" {
        return Err(Error::bad(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'".to_owned(),
        ));
    }
    if retries < 0 {
        return Err(Error::bad("invalid restart policy: maximum retry count cannot be negative".to_owned()));
    }
    if host["AutoRemove"] == true && !["", "no"].contains(&policy) {
        return Err(Error::bad("can't create 'AutoRemove' container with restart policy".to_owned()));
    }
    let memory = host["Memory"].as_i64().unwrap_or(0);
    if memory != 0 && memory < MEMORY_BYTES_MIN {
        return Err(Error::bad("Minimum memory limit allowed is 6MB".to_owned()));
    }
    let mut warnings = check_log(&host["LogConfig"])?;
    let swap = host["MemorySwap"].as_i64().unwrap_or(0);
    if swap > 0 && memory == 0 {
        return Err(Error::bad(
            "You should always set the Memory limit when using Memoryswap limit".to_owned(),
        ));
    }
    if swap != 0 && swap != memory {
        warnings.push("--memory-swap: swap is not limited; the limit of memory holds".to_owned());
    }
    if !matches!(host["MemorySwappiness"].as_i64(), None | Some(-1)) {
        return Err(Error::refused("--memory-swappiness is not supported: it is the machine's to decide"));
    }
    Ok(warnings)
}

/// Docker's own: a program needs some.
const MEMORY_BYTES_MIN: i64 = 6 << 20;

fn check_log(log: &Value) -> Result<Vec<String>> {
    let driver = text(log, "/Type");
    if !["", "json-file", "local"].contains(&driver) {
        return Err(Error::refused(format!(
            "--log-driver={driver} is not supported: the log is kept by the node, and docker logs reads it"
        )));
    }
    let options = log["Config"].as_object().into_iter().flatten();
    let mut warnings = Vec::new();
    for (name, value) in options {
        match name.as_str() {
            // Bounded anyway; a larger or smaller bound loses nothing that was promised.
            "max-size" | "max-file" | "compress" | "mode" | "max-buffer-size" => warnings.push(format!(
                "--log-opt {name}={} has no effect: a container's log is kept in three files of 10 MiB",
                value.as_str().unwrap_or_default()
            )),
            _ => return Err(Error::refused(format!("--log-opt {name} is not supported"))),
        }
    }
    Ok(warnings)
}

/// What `--security-opt` asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Security {
    pub no_new_privileges: bool,
    pub unfiltered: bool,
    pub unmasked: bool,
}

pub fn security(options: &Value) -> Result<Security> {
    let mut security = Security::default();
    for option in texts(options) {
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option.as_str(), ""));
        match (name, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => {}
            ("seccomp", "unconfined") => security.unfiltered = true,
            ("seccomp", "builtin") => {}
            ("systempaths", "unconfined") => security.unmasked = true,
            // There is nothing of these modules to switch off.
            ("apparmor", "unconfined" | "docker-default") | ("label", _) => {}
            ("seccomp", _) => {
                return Err(Error::refused(
                    "--security-opt seccomp with a profile is not supported: there are the built-in one and \
                     seccomp=unconfined",
                ));
            }
            _ => return Err(Error::bad(format!("invalid --security-opt: {option:?}"))),
        }
    }
    Ok(security)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_cannot_be_honoured_is_refused_by_its_flag() {
        for (host, said) in [
            (json!({"Devices": [{"PathOnHost": "/dev/fuse"}]}), "--device "),
            (json!({"CpusetCpus": "0"}), "--cpuset-cpus"),
            (json!({"PidMode": "container:x"}), "--pid=container:x"),
            (json!({"LogConfig": {"Type": "syslog"}}), "--log-driver=syslog"),
            (json!({"NewInventions": 1}), "NewInventions"),
            (json!({"AutoRemove": true, "RestartPolicy": {"Name": "always"}}), "AutoRemove"),
            (json!({"Memory": 1000}), "Minimum memory"),
        ] {
            let error = check(&json!({"Image": "i", "HostConfig": host})).unwrap_err();
            assert!(error.message.contains(said), "{}", error.message);
        }
        // What a client sends for nothing at all.
        let plain = json!({"Image": "i", "Tty": false, "HostConfig": {"MemorySwappiness": -1, "Devices": [],
            "CpusetCpus": "", "ConsoleSize": [40, 80], "LogConfig": {"Type": "", "Config": {}},
            "OomKillDisable": false, "PidsLimit": 0, "MaskedPaths": null, "IpcMode": "private"}});
        assert_eq!(check(&plain).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn security_options_have_two_spellings() {
        let options = json!(["no-new-privileges", "seccomp:unconfined", "label=disable"]);
        let expected = Security { no_new_privileges: true, unfiltered: true, unmasked: false };
        assert_eq!(security(&options).unwrap(), expected);
        assert_eq!(security(&json!(["seccomp={}"])).unwrap_err().status, 501);
    }
}
