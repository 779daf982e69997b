//! From a Pod object to what this node would do about it. Pure; never fails: what it cannot honour
//! becomes a [`Problem`], and a pod with a problem is not started. Doing half of what a pod says
//! would be worse than saying so.

mod container;
mod life;
mod sysctl;
mod volume;

use std::collections::BTreeMap;

use naru_objects::labels;
use naru_runtime::Slice;
use serde_json::Value;

pub use self::container::{DesiredContainer, EnvValue, Hook, MessagePolicy, Resources, Role, Seccomp};
pub use self::life::{Life, Options};
pub use self::volume::{FileSource, ObjectSource, TokenSource, Volume};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The container it concerns, empty for the pod.
    pub container: String,
    /// What tools know it by: `Unsupported`, `SysctlForbidden`.
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// How names are looked up in the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dns {
    pub policy: String,
    pub name_servers: Vec<String>,
    pub searches: Vec<String>,
    /// Name and value; the value may be empty.
    pub options: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct DesiredPod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: Option<i64>,
    /// What `hostname` prints in the pod.
    pub hostname: String,
    /// `name.subdomain.namespace.svc.cluster.local`, when the pod asks for a subdomain.
    pub full_name: Option<String>,
    pub restart_policy: RestartPolicy,
    pub grace_seconds: i64,
    pub active_deadline_seconds: Option<i64>,
    pub init_containers: Vec<DesiredContainer>,
    pub containers: Vec<DesiredContainer>,
    pub ephemeral_containers: Vec<DesiredContainer>,
    pub volumes: BTreeMap<String, Volume>,
    pub fs_group: Option<u32>,
    pub host_aliases: Vec<(String, Vec<String>)>,
    pub dns: Dns,
    pub host_network: bool,
    /// It has no network but its own loopback.
    pub no_network: bool,
    pub host_pids: bool,
    pub host_ipc: bool,
    pub share_pids: bool,
    pub sysctls: Vec<(String, String)>,
    /// Every service of the namespace appears in the environment.
    pub service_links: bool,
    /// Of the pod as a whole.
    pub resources: Resources,
    /// Types of conditions that others must set before the pod is ready.
    pub readiness_gates: Vec<String>,
    pub pull_secrets: Vec<String>,
    pub runtime_class: Option<String>,
    pub service_account: String,
    pub priority: i64,
    pub slice: Slice,
    /// It can be stopped and started again.
    pub life: Option<Life>,
    pub options: Options,
    /// Keep what the container wrote as a layer under this id.
    pub commit: Option<String>,
    pub problems: Vec<Problem>,
}

impl DesiredPod {
    /// Every container, in the order in which they begin.
    pub fn all(&self) -> impl Iterator<Item = &DesiredContainer> {
        self.init_containers.iter().chain(&self.containers).chain(&self.ephemeral_containers)
    }

    pub fn container(&self, name: &str) -> Option<&DesiredContainer> {
        self.all().find(|container| container.name == name)
    }

    /// Which log an attempt writes to: all lives of a pod with several share one.
    pub fn log_number(&self, attempt: u32) -> u32 {
        if self.life.is_some() { 0 } else { attempt }
    }

    pub fn sidecars(&self) -> impl DoubleEndedIterator<Item = &DesiredContainer> {
        self.init_containers.iter().filter(|container| container.role == Role::Sidecar)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A string that is there and not empty.
fn some_text(value: &Value) -> Option<String> {
    value.as_str().filter(|it| !it.is_empty()).map(str::to_owned)
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// True when a field is there and means something.
fn set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    }
}

/// Fields of the pod's specification that would change what runs, and that this node does not know.
const POD_FIELDS_REFUSED: &[&str] = &["resourceClaims"];

/// The kernel's limit for host names.
const HOST_NAME_BYTES_MAX: usize = 63;
/// Where services are found; every cluster's default.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

pub fn lower_pod(pod: &Value) -> DesiredPod {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    let security = &spec["securityContext"];
    let mut problems = Vec::new();
    let mut problem = |reason: &'static str, message: String| {
        problems.push(Problem { container: String::new(), reason, message });
    };
    for field in POD_FIELDS_REFUSED {
        if set(&spec[*field]) {
            problem("Unsupported", format!("spec.{field} is not supported by this node"));
        }
    }
    if spec["hostUsers"] == false {
        problem("Unsupported", "spec.hostUsers: false is not supported by this node".into());
    }
    if spec["os"]["name"].as_str().is_some_and(|name| name != "linux") {
        problem("PodOSNotSupported", "this node runs only pods for linux".into());
    }
    let host_network = spec["hostNetwork"] == true;
    let host_ipc = spec["hostIPC"] == true;
    let sysctls: Vec<(String, String)> =
        list(&security["sysctls"]).map(|it| (text(&it["name"]), text(&it["value"]))).collect();
    for (name, _) in &sysctls {
        if let Err(message) = sysctl::check(name, host_network, host_ipc) {
            problem("SysctlForbidden", message);
        }
    }

    let volumes = list(&spec["volumes"])
        .filter_map(|it| match volume::lower_volume(it) {
            Ok(lowered) => Some((text(&it["name"]), lowered)),
            Err(message) => {
                problems.push(Problem { container: String::new(), reason: "Unsupported", message });
                None
            }
        })
        .collect();
    let mut containers = |field: &str, role: Role| -> Vec<DesiredContainer> {
        list(&spec[field]).map(|it| container::lower_container(spec, it, role, &mut problems)).collect()
    };
    let (init_containers, ephemeral_containers, containers) = (
        containers("initContainers", Role::Init),
        containers("ephemeralContainers", Role::Ephemeral),
        containers("containers", Role::Main),
    );
    let name = text(&metadata["name"]);
    let namespace = text(&metadata["namespace"]);
    let commit = metadata["annotations"][labels::COMMIT].as_str().map(str::to_owned);
    if commit.is_some() && containers.len() != 1 {
        problems.push(Problem {
            container: String::new(),
            reason: "Unsupported",
            message: format!("a pod with the annotation {} needs exactly one container", labels::COMMIT),
        });
    }
    let (life, options) = life::lower(&metadata["annotations"]).unwrap_or_else(|message| {
        problems.push(Problem { container: String::new(), reason: "Unsupported", message });
        (None, Options::default())
    });
    if life.is_some() && (containers.len() != 1 || !init_containers.is_empty()) {
        problems.push(Problem {
            container: String::new(),
            reason: "Unsupported",
            message: format!("a pod with the annotation {} needs exactly one container", labels::LIFE),
        });
    }
    let slice = [&metadata["labels"][labels::SLICE], &metadata["annotations"][labels::SLICE]]
        .iter()
        .find_map(|value| value.as_str());
    let short: String = options
        .hostname
        .clone()
        .or_else(|| some_text(&spec["hostname"]))
        .unwrap_or_else(|| name.clone())
        .chars()
        .take(HOST_NAME_BYTES_MAX)
        .collect();
    let short = short.trim_end_matches(['-', '.']).to_owned();
    let full_name = some_text(&spec["subdomain"])
        .map(|subdomain| format!("{short}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}"));
    let hostname = match &full_name {
        Some(full) if spec["setHostnameAsFQDN"] == true => {
            if full.len() > HOST_NAME_BYTES_MAX {
                problems.push(Problem {
                    container: String::new(),
                    reason: "Unsupported",
                    message: format!(
                        "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long \
                         ({HOST_NAME_BYTES_MAX} characters is the max)"
                    ),
                });
            }
            full.clone()
        }
        _ => short,
    };
    let dns = &spec["dnsConfig"];
    DesiredPod {
        uid: text(&metadata["uid"]),
        generation: metadata["generation"].as_i64(),
        hostname,
        full_name,
        restart_policy: match spec["restartPolicy"].as_str() {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        },
        grace_seconds: spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30).max(0),
        active_deadline_seconds: spec["activeDeadlineSeconds"].as_i64(),
        init_containers,
        containers,
        ephemeral_containers,
        volumes,
        fs_group: number(&security["fsGroup"]),
        host_aliases: list(&spec["hostAliases"])
            .map(|alias| (text(&alias["ip"]), texts(&alias["hostnames"])))
            .collect(),
        dns: Dns {
            policy: some_text(&spec["dnsPolicy"]).unwrap_or_else(|| "ClusterFirst".to_owned()),
            name_servers: texts(&dns["nameservers"]),
            searches: texts(&dns["searches"]),
            options: list(&dns["options"]).map(|it| (text(&it["name"]), text(&it["value"]))).collect(),
        },
        host_network,
        no_network: metadata["annotations"][labels::NETWORK] == "none",
        host_pids: spec["hostPID"] == true,
        host_ipc,
        share_pids: spec["shareProcessNamespace"] == true,
        sysctls,
        service_links: spec["enableServiceLinks"] != false,
        resources: container::lower_resources(&spec["resources"], "the pod", &mut |message| {
            problems.push(Problem { container: String::new(), reason: "Unsupported", message });
        }),
        readiness_gates: list(&spec["readinessGates"]).map(|it| text(&it["conditionType"])).collect(),
        runtime_class: some_text(&spec["runtimeClassName"]),
        pull_secrets: list(&spec["imagePullSecrets"]).filter_map(|it| some_text(&it["name"])).collect(),
        service_account: some_text(&spec["serviceAccountName"]).unwrap_or_else(|| "default".to_owned()),
        priority: spec["priority"].as_i64().unwrap_or(0),
        slice: if slice == Some("pipelines") { Slice::Pipelines } else { Slice::Apps },
        life,
        options,
        commit,
        problems,
        namespace,
        name,
    }
}

#[cfg(test)]
#[path = "pod_test.rs"]
mod tests;
