//! Every key of the Compose specification and what becomes of it. The page docs/compose.md is held against
//! this table by a test, so a key is added to both or to neither.

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It means what the specification says.
    Kept,
    /// The rest of the file still works without it; the person is told why it has no effect.
    Told(&'static str),
    /// Leaving it out would change what the app does, so the file is refused.
    Refused(&'static str),
}

use Fate::{Kept, Refused, Told};

pub type Key = (&'static str, Fate);

const ONE_NETWORK: &str =
    "pods have addresses of their own choice on one network; say who may talk to whom with `networks`";
const NO_DEVICES: &str = "devices of the machine are not given to pods";
const BUILDER: &str = "builds run in pods of their own, which the machine's owner configures";
const CGROUPS: &str = "pods share the machine by `deploy.resources`; this knob has no counterpart in a pod";
const WINDOWS: &str = "it concerns Windows containers";

pub const TOP: &[Key] = &[
    ("version", Told("it is obsolete and means nothing; remove it")),
    ("name", Kept),
    ("include", Kept),
    ("services", Kept),
    ("networks", Kept),
    ("volumes", Kept),
    ("configs", Kept),
    ("secrets", Kept),
    ("models", Refused("language models are not provided; run one as a service")),
];

pub const INCLUDE: &[Key] = &[("path", Kept), ("project_directory", Kept), ("env_file", Kept)];

pub const SERVICE: &[Key] = &[
    ("annotations", Kept),
    (
        "attach",
        Told("`naru up` attaches to nothing; `naru logs` and `kubectl logs` show what a service says"),
    ),
    ("blkio_config", Told(CGROUPS)),
    ("build", Kept),
    ("cap_add", Kept),
    ("cap_drop", Kept),
    ("cgroup", Refused(CGROUPS)),
    ("cgroup_parent", Refused(CGROUPS)),
    ("command", Kept),
    ("configs", Kept),
    ("container_name", Kept),
    ("cpu_count", Refused(WINDOWS)),
    ("cpu_percent", Refused(WINDOWS)),
    ("cpu_period", Refused("write `cpus: 1.5` instead of a quota and a period")),
    ("cpu_quota", Refused("write `cpus: 1.5` instead of a quota and a period")),
    ("cpu_rt_period", Refused(CGROUPS)),
    ("cpu_rt_runtime", Refused(CGROUPS)),
    ("cpu_shares", Told("shares follow from `deploy.resources.reservations.cpus`")),
    ("cpus", Kept),
    ("cpuset", Refused(CGROUPS)),
    ("credential_spec", Refused(WINDOWS)),
    ("depends_on", Kept),
    ("deploy", Kept),
    ("develop", Told("`naru up` does not watch files; run it again after a change")),
    ("device_cgroup_rules", Refused(NO_DEVICES)),
    ("devices", Refused(NO_DEVICES)),
    ("dns", Kept),
    ("dns_opt", Kept),
    ("dns_search", Kept),
    ("domainname", Refused("names in the cluster follow from the service's name and namespace")),
    ("entrypoint", Kept),
    ("env_file", Kept),
    ("environment", Kept),
    ("expose", Kept),
    ("extends", Kept),
    ("external_links", Refused("reach other services by their names: <service>.<namespace>")),
    ("extra_hosts", Kept),
    ("gpus", Refused(NO_DEVICES)),
    ("group_add", Kept),
    ("healthcheck", Kept),
    ("hostname", Kept),
    ("image", Kept),
    ("init", Kept),
    ("ipc", Kept),
    ("isolation", Refused(WINDOWS)),
    ("label_file", Kept),
    ("labels", Kept),
    (
        "links",
        Refused(
            "every service is reached by its name without links; order the start with `depends_on`, add names with `networks: {default: {aliases: [...]}}`",
        ),
    ),
    ("logging", Told("the node keeps what containers write; drivers have no counterpart in a pod")),
    ("mac_address", Refused(ONE_NETWORK)),
    ("mem_limit", Kept),
    ("mem_reservation", Kept),
    ("mem_swappiness", Told(CGROUPS)),
    ("memswap_limit", Told("pods do not swap beyond their memory")),
    ("models", Refused("language models are not provided; run one as a service")),
    ("network_mode", Kept),
    ("networks", Kept),
    ("oom_kill_disable", Refused("a pod that passes its memory limit is ended and started again")),
    ("oom_score_adj", Told("it follows from the pod's requests and limits")),
    ("pid", Refused("a pod does not see the processes of the machine or of other pods")),
    ("pids_limit", Told("the number of processes has no limit in a pod's form")),
    ("platform", Kept),
    ("ports", Kept),
    ("post_start", Kept),
    ("pre_stop", Kept),
    ("privileged", Kept),
    ("profiles", Kept),
    ("provider", Refused("services of other providers are not started; run a container instead")),
    ("pull_policy", Kept),
    ("pull_refresh_after", Told("images are pulled by `pull_policy` alone")),
    ("read_only", Kept),
    ("restart", Kept),
    ("runtime", Refused("containers run in Naru's own runtime")),
    ("scale", Kept),
    ("secrets", Kept),
    ("security_opt", Kept),
    ("shm_size", Kept),
    ("stdin_open", Kept),
    ("stop_grace_period", Kept),
    ("stop_signal", Kept),
    ("storage_opt", Refused("a container's own layer is limited by nothing but the disk's budget")),
    ("sysctls", Kept),
    ("tmpfs", Kept),
    ("tty", Kept),
    ("ulimits", Told("containers have the limits of the machine")),
    ("use_api_socket", Refused("the engine's socket is not given to containers")),
    ("user", Kept),
    ("userns_mode", Refused("user namespaces are the node's own affair")),
    ("uts", Refused("a pod has a host name of its own")),
    ("volumes", Kept),
    ("volumes_from", Refused("mount the same named volume in both services")),
    ("working_dir", Kept),
];

pub const BUILD: &[Key] = &[
    ("additional_contexts", Kept),
    ("args", Kept),
    ("cache_from", Kept),
    ("cache_to", Kept),
    ("context", Kept),
    ("dockerfile", Kept),
    ("dockerfile_inline", Kept),
    ("entitlements", Refused(BUILDER)),
    ("extra_hosts", Refused(BUILDER)),
    ("isolation", Refused(WINDOWS)),
    ("labels", Kept),
    ("network", Refused("builds have the network of pods")),
    ("no_cache", Kept),
    ("platforms", Refused("images are built for this machine; `naru build --platform` makes others")),
    ("privileged", Refused(BUILDER)),
    ("provenance", Told("say it to `naru build`")),
    ("pull", Kept),
    ("sbom", Told("say it to `naru build`")),
    ("secrets", Kept),
    ("shm_size", Refused(BUILDER)),
    ("ssh", Kept),
    ("tags", Kept),
    ("target", Kept),
    ("ulimits", Told("builds have the limits of the machine")),
];

pub const DEPLOY: &[Key] = &[
    ("endpoint_mode", Kept),
    ("labels", Kept),
    ("mode", Kept),
    ("placement", Told("there is one machine to be placed on")),
    ("replicas", Kept),
    ("resources", Kept),
    ("restart_policy", Kept),
    ("rollback_config", Told("`kubectl rollout undo` rolls back as the service is updated")),
    ("update_config", Kept),
];

pub const UPDATE_CONFIG: &[Key] = &[
    ("delay", Kept),
    ("failure_action", Told("an update that does not become ready stops where it is; the old pods serve on")),
    ("max_failure_ratio", Told("an update goes on only while its pods become ready")),
    ("monitor", Told("the health check decides when a pod is good")),
    ("order", Kept),
    ("parallelism", Kept),
];

pub const RESTART_POLICY: &[Key] = &[
    ("condition", Kept),
    ("delay", Told("restarts are delayed by Kubernetes' own growing steps")),
    ("max_attempts", Kept),
    ("window", Told("a container that has run for ten minutes is forgiven its restarts")),
];

pub const RESOURCES: &[Key] = &[("limits", Kept), ("reservations", Kept)];
pub const AMOUNTS: &[Key] = &[
    ("cpus", Kept),
    ("devices", Refused(NO_DEVICES)),
    ("generic_resources", Refused(NO_DEVICES)),
    ("memory", Kept),
    ("pids", Told("the number of processes has no limit in a pod's form")),
];

pub const HEALTHCHECK: &[Key] = &[
    ("disable", Kept),
    ("interval", Kept),
    ("retries", Kept),
    ("start_interval", Kept),
    ("start_period", Kept),
    ("test", Kept),
    ("timeout", Kept),
];

pub const PORT: &[Key] = &[
    ("app_protocol", Kept),
    ("host_ip", Kept),
    ("mode", Kept),
    ("name", Kept),
    ("protocol", Kept),
    ("published", Kept),
    ("target", Kept),
];

pub const DEPENDENCY: &[Key] = &[
    ("condition", Kept),
    ("required", Kept),
    ("restart", Told("a service that changes does not restart those that depend on it; they reconnect")),
];

pub const MOUNT: &[Key] = &[
    ("bind", Kept),
    ("consistency", Told("there is one machine, and nothing to be synchronised")),
    ("image", Refused("mounts of images are not supported")),
    ("read_only", Kept),
    ("source", Kept),
    ("target", Kept),
    ("tmpfs", Kept),
    ("type", Kept),
    ("volume", Kept),
];
pub const MOUNT_BIND: &[Key] = &[
    ("create_host_path", Kept),
    ("propagation", Refused("mounts do not propagate between pods and the machine")),
    ("recursive", Refused("bind mounts take what is mounted below with them")),
    ("selinux", Told("this machine's containers have no SELinux labels")),
];
pub const MOUNT_VOLUME: &[Key] = &[
    ("labels", Told("labels belong to the volume at the top of the file")),
    ("nocopy", Kept),
    ("subpath", Kept),
];
pub const MOUNT_TMPFS: &[Key] =
    &[("mode", Told("a memory volume can be written by everyone (1777)")), ("size", Kept)];

pub const GRANT: &[Key] = &[
    ("gid", Told("files of configs and secrets belong to root; their mode is honoured")),
    ("mode", Kept),
    ("source", Kept),
    ("target", Kept),
    ("uid", Told("files of configs and secrets belong to root; their mode is honoured")),
];

pub const SERVICE_NETWORK: &[Key] = &[
    ("aliases", Kept),
    ("driver_opts", Refused(ONE_NETWORK)),
    ("gw_priority", Told("a pod has one network interface")),
    ("interface_name", Refused(ONE_NETWORK)),
    ("ipv4_address", Refused(ONE_NETWORK)),
    ("ipv6_address", Refused(ONE_NETWORK)),
    ("link_local_ips", Refused(ONE_NETWORK)),
    ("mac_address", Refused(ONE_NETWORK)),
    ("priority", Told("a pod has one network interface")),
];

pub const NETWORK: &[Key] = &[
    ("attachable", Told("all pods of the machine are attached to its network")),
    ("driver", Kept),
    ("driver_opts", Refused(ONE_NETWORK)),
    ("enable_ipv4", Kept),
    ("enable_ipv6", Told("pods have IPv4 addresses only")),
    ("external", Kept),
    ("internal", Kept),
    ("ipam", Told("the node gives addresses (`naru serve --subnet`)")),
    ("labels", Told("a network is no object of its own")),
    ("name", Told("a network is no object of its own")),
];

pub const VOLUME: &[Key] = &[
    ("driver", Kept),
    (
        "driver_opts",
        Refused(
            "volumes are claims on the machine's disk; write `x-naru: {class: ..., size: ...}` for another StorageClass",
        ),
    ),
    ("external", Kept),
    ("labels", Kept),
    ("name", Kept),
];

pub const CONFIG: &[Key] = &[
    ("content", Kept),
    ("environment", Kept),
    ("external", Kept),
    ("file", Kept),
    ("labels", Kept),
    ("name", Kept),
    ("template_driver", Refused("templates are not filled in; use variables in `content`")),
];

pub const SECRET: &[Key] = &[
    ("driver", Refused("secrets come from a file or the environment")),
    ("driver_opts", Refused("secrets come from a file or the environment")),
    ("environment", Kept),
    ("external", Kept),
    ("file", Kept),
    ("labels", Kept),
    ("name", Kept),
    ("template_driver", Refused("templates are not filled in")),
];

/// What `x-naru` of a service may say.
pub const NARU_SERVICE: &[Key] = &[("host", Kept), ("path", Kept), ("port", Kept)];
/// What `x-naru` of a volume may say.
pub const NARU_VOLUME: &[Key] = &[("class", Kept), ("size", Kept)];
pub const HOOK: &[Key] = &[
    ("command", Kept),
    ("environment", Refused("a hook has the environment of its service")),
    ("privileged", Refused("a hook has the rights of its service")),
    ("user", Refused("a hook runs as the user of its service")),
    ("working_dir", Refused("a hook runs where its service runs")),
];

/// All tables by the place that they describe, for the documentation.
pub const ALL: &[(&str, &[Key])] = &[
    ("the file", TOP),
    ("include", INCLUDE),
    ("services.*", SERVICE),
    ("services.*.build", BUILD),
    ("services.*.deploy", DEPLOY),
    ("services.*.deploy.resources.*", AMOUNTS),
    ("services.*.deploy.restart_policy", RESTART_POLICY),
    ("services.*.deploy.update_config", UPDATE_CONFIG),
    ("services.*.depends_on.*", DEPENDENCY),
    ("services.*.healthcheck", HEALTHCHECK),
    ("services.*.networks.*", SERVICE_NETWORK),
    ("services.*.ports[]", PORT),
    ("services.*.post_start[]", HOOK),
    ("services.*.volumes[]", MOUNT),
    ("services.*.volumes[].bind", MOUNT_BIND),
    ("services.*.volumes[].tmpfs", MOUNT_TMPFS),
    ("services.*.volumes[].volume", MOUNT_VOLUME),
    ("services.*.configs[], secrets[]", GRANT),
    ("services.*.x-naru", NARU_SERVICE),
    ("networks.*", NETWORK),
    ("volumes.*", VOLUME),
    ("volumes.*.x-naru", NARU_VOLUME),
    ("configs.*", CONFIG),
    ("secrets.*", SECRET),
];

/// The tables as the rows of docs/compose.md.
pub fn markdown() -> String {
    let mut out = String::from("| in | keys | |\n| --- | --- | --- |\n");
    for (place, keys) in ALL {
        let kept: Vec<String> =
            keys.iter().filter(|(_, fate)| *fate == Kept).map(|(key, _)| format!("`{key}`")).collect();
        out.push_str(&format!("| `{place}` | {} | honoured |\n", kept.join(", ")));
        let mut reasons: Vec<(Fate, Vec<String>)> = Vec::new();
        for (key, fate) in keys.iter().filter(|(_, fate)| *fate != Kept) {
            match reasons.iter_mut().find(|(it, _)| it == fate) {
                Some((_, keys)) => keys.push(format!("`{key}`")),
                None => reasons.push((*fate, vec![format!("`{key}`")])),
            }
        }
        for (fate, keys) in reasons {
            let said = match fate {
                Kept => continue,
                Told(why) => format!("warned: {why}"),
                Refused(why) => format!("refused: {why}"),
            };
            out.push_str(&format!("| | {} | {} |\n", keys.join(", "), said.replace('|', "\\|")));
        }
    }
    out
}
