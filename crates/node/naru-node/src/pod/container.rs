//! Containers of a pod, lowered.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Problem, list, number, set, some_text, text, texts};
use crate::image::PullPolicy;
use crate::probe::{Check, Probe};
use crate::quantity;

/// What part a container has in its pod's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Must succeed before the next begins.
    Init,
    /// Begins like an init container and stays for as long as the pod lives.
    Sidecar,
    Main,
    /// Added to a running pod for a look around.
    Ephemeral,
}

#[derive(Debug, Clone)]
pub struct DesiredContainer {
    pub name: String,
    pub role: Role,
    pub image: String,
    pub pull_policy: PullPolicy,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<(String, EnvValue)>,
    pub env_from: Vec<EnvFrom>,
    pub mounts: Vec<VolumeMount>,
    pub resources: Resources,
    pub resize: ResizePolicy,
    pub user: Option<u32>,
    pub group: Option<u32>,
    pub supplementary_groups: Vec<u32>,
    /// Groups of the image's user database count as well.
    pub merge_groups: bool,
    pub must_not_be_root: bool,
    pub read_only_root: bool,
    pub privileged: bool,
    /// A program may become more than who started it, as `sudo` does. Only when the pod says so: Kubernetes
    /// allows it unless the pod says no, we forbid it unless the pod says yes.
    pub may_escalate: bool,
    pub unmasked_proc: bool,
    pub seccomp: Seccomp,
    /// `None` is the runtime's default set.
    pub capabilities: Option<Vec<String>>,
    /// They began with all that there are.
    pub all_capabilities: bool,
    pub liveness: Option<Probe>,
    pub readiness: Option<Probe>,
    pub startup: Option<Probe>,
    pub post_start: Option<Hook>,
    pub pre_stop: Option<Hook>,
    pub stop_signal: Option<String>,
    pub message_path: String,
    pub message_policy: MessagePolicy,
    /// An ephemeral container looks at this one's processes.
    pub target: Option<String>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// As the pod wrote them, for its status.
    pub written: Value,
    pub memory_bytes_max: Option<u64>,
    pub memory_bytes_request: Option<u64>,
    /// Thousandths of a core.
    pub cpu_millis_max: Option<u64>,
    pub cpu_millis_request: Option<u64>,
    pub disk_bytes_max: Option<u64>,
    pub disk_bytes_request: Option<u64>,
}

/// Whether a change of resources restarts the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResizePolicy {
    pub cpu_restarts: bool,
    pub memory_restarts: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    Default,
    Unconfined,
}

/// What is done right after the start or right before the stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    Ask(Check),
    Sleep { seconds: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessagePolicy {
    File,
    /// The end of the log when the file is empty and the container failed.
    FallbackToLogsOnError,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    Text(String),
    ConfigMap {
        name: String,
        key: String,
        optional: bool,
    },
    Secret {
        name: String,
        key: String,
        optional: bool,
    },
    Field(String),
    /// Of the container itself when `container` is empty.
    Resource {
        container: String,
        resource: String,
        divisor: String,
    },
}

impl EnvValue {
    pub fn resource(resource: String, reference: &Value) -> Self {
        let divisor = reference["divisor"].as_str().filter(|it| *it != "0").unwrap_or("1").to_owned();
        EnvValue::Resource { container: text(&reference["containerName"]), resource, divisor }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvFrom {
    pub prefix: String,
    pub secret: bool,
    pub name: String,
    pub optional: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    pub volume: String,
    pub path: String,
    pub read_only: bool,
    pub sub_path: String,
    /// `sub_path` with the container's variables in it.
    pub sub_path_expression: String,
}

/// The runtime's default set, which `drop` subtracts from.
const CAPABILITIES_DEFAULT: &[&str] = naru_runtime::CAPABILITIES_DEFAULT;
/// Where a program may leave its last words, unless the pod says otherwise.
const MESSAGE_PATH_DEFAULT: &str = "/dev/termination-log";
/// Fields that would change what runs, and that this node does not know.
const CONTAINER_FIELDS_REFUSED: &[&str] = &["volumeDevices", "restartPolicyRules"];

pub fn lower_container(
    spec: &Value,
    container: &Value,
    role: Role,
    problems: &mut Vec<Problem>,
) -> DesiredContainer {
    let name = text(&container["name"]);
    let mut problem = |message: String| {
        problems.push(Problem { container: name.clone(), reason: "Unsupported", message });
    };
    for field in CONTAINER_FIELDS_REFUSED {
        if set(&container[*field]) {
            problem(format!("{field} of container {name} is not supported by this node"));
        }
    }
    let role = match (role, container["restartPolicy"].as_str()) {
        (Role::Init, Some("Always")) => Role::Sidecar,
        (role, None) => role,
        (role, Some(policy)) => {
            problem(format!("restartPolicy {policy} of container {name} is not supported by this node"));
            role
        }
    };
    let (own, pods) = (&container["securityContext"], &spec["securityContext"]);
    let privileged = own["privileged"] == true;
    let profile = [own, pods].into_iter().map(|it| &it["seccompProfile"]).find(|it| it.is_object());
    let seccomp = match profile.and_then(|it| it["type"].as_str()) {
        None | Some("RuntimeDefault") => Seccomp::Default,
        Some("Unconfined") => Seccomp::Unconfined,
        Some(kind) => {
            problem(format!(
                "seccompProfile.type {kind} of container {name} is not supported by this node, only RuntimeDefault \
                 and Unconfined are"
            ));
            Seccomp::Default
        }
    };
    let resources = lower_resources(&container["resources"], &format!("container {name}"), &mut problem);
    let ports: BTreeMap<&str, u16> = list(&container["ports"])
        .filter_map(|port| {
            Some((port["name"].as_str()?, u16::try_from(port["containerPort"].as_u64()?).ok()?))
        })
        .collect();
    let mut probe = |field: &str| {
        lower_probe(&container[field], &ports).unwrap_or_else(|message| {
            problem(format!("{field} of container {name}: {message}"));
            None
        })
    };
    let (liveness, readiness, startup) =
        (probe("livenessProbe"), probe("readinessProbe"), probe("startupProbe"));
    let mut hook = |field: &str| {
        lower_hook(&container["lifecycle"][field], &ports).unwrap_or_else(|message| {
            problem(format!("lifecycle.{field} of container {name}: {message}"));
            None
        })
    };
    let (post_start, pre_stop) = (hook("postStart"), hook("preStop"));
    let env = lower_env(container, &name, &mut problem);
    let mounts = lower_mounts(container, &name, &mut problem);
    let image = text(&container["image"]);
    DesiredContainer {
        role,
        pull_policy: match container["imagePullPolicy"].as_str() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            Some("IfNotPresent") => PullPolicy::IfNotPresent,
            _ if has_moving_tag(&image) => PullPolicy::Always,
            _ => PullPolicy::IfNotPresent,
        },
        image,
        command: texts(&container["command"]),
        args: texts(&container["args"]),
        working_dir: some_text(&container["workingDir"]),
        env,
        env_from: list(&container["envFrom"]).map(lower_env_from).collect(),
        mounts,
        resources,
        resize: lower_resize_policy(&container["resizePolicy"]),
        user: number(&own["runAsUser"]).or(number(&pods["runAsUser"])),
        group: number(&own["runAsGroup"]).or(number(&pods["runAsGroup"])),
        supplementary_groups: list(&pods["supplementalGroups"])
            .chain(std::iter::once(&pods["fsGroup"]))
            .filter_map(number)
            .collect(),
        merge_groups: pods["supplementalGroupsPolicy"] != "Strict",
        must_not_be_root: own["runAsNonRoot"].as_bool().or(pods["runAsNonRoot"].as_bool()).unwrap_or(false),
        read_only_root: own["readOnlyRootFilesystem"] == true,
        privileged,
        may_escalate: privileged || own["allowPrivilegeEscalation"] == true,
        unmasked_proc: own["procMount"] == "Unmasked",
        seccomp: if privileged { Seccomp::Unconfined } else { seccomp },
        capabilities: lower_capabilities(&own["capabilities"]),
        all_capabilities: texts(&own["capabilities"]["add"]).iter().any(|it| it.eq_ignore_ascii_case("all")),
        liveness,
        readiness,
        startup,
        post_start,
        pre_stop,
        stop_signal: some_text(&container["lifecycle"]["stopSignal"]),
        message_path: some_text(&container["terminationMessagePath"])
            .unwrap_or_else(|| MESSAGE_PATH_DEFAULT.to_owned()),
        message_policy: match container["terminationMessagePolicy"].as_str() {
            Some("FallbackToLogsOnError") => MessagePolicy::FallbackToLogsOnError,
            _ => MessagePolicy::File,
        },
        target: some_text(&container["targetContainerName"]),
        stdin: container["stdin"] == true,
        stdin_once: container["stdinOnce"] == true,
        tty: container["tty"] == true,
        name,
    }
}

pub fn lower_resources(resources: &Value, whose: &str, problem: &mut dyn FnMut(String)) -> Resources {
    let mut quantity = |kind: &str, resource: &str, parse: fn(&str) -> Option<u64>| {
        let value = &resources[kind][resource];
        let written =
            value.as_str().map(str::to_owned).or_else(|| value.as_number().map(ToString::to_string))?;
        let parsed = parse(&written);
        if parsed.is_none() {
            problem(format!("{kind}.{resource} of {whose} is not a quantity: {written}"));
        }
        parsed
    };
    let memory_bytes_max = quantity("limits", "memory", quantity::parse_whole);
    let cpu_millis_max = quantity("limits", "cpu", quantity::parse_milli);
    let disk_bytes_max = quantity("limits", "ephemeral-storage", quantity::parse_whole);
    Resources {
        memory_bytes_max,
        memory_bytes_request: quantity("requests", "memory", quantity::parse_whole).or(memory_bytes_max),
        cpu_millis_max,
        cpu_millis_request: quantity("requests", "cpu", quantity::parse_milli).or(cpu_millis_max),
        disk_bytes_max,
        disk_bytes_request: quantity("requests", "ephemeral-storage", quantity::parse_whole)
            .or(disk_bytes_max),
        written: resources.clone(),
    }
}

fn lower_resize_policy(policies: &Value) -> ResizePolicy {
    let restarts = |resource: &str| {
        list(policies).any(|it| it["resourceName"] == resource && it["restartPolicy"] == "RestartContainer")
    };
    ResizePolicy { cpu_restarts: restarts("cpu"), memory_restarts: restarts("memory") }
}

fn lower_capabilities(capabilities: &Value) -> Option<Vec<String>> {
    let names = |field: &str| -> Vec<String> {
        texts(&capabilities[field])
            .into_iter()
            .map(|name| name.to_ascii_uppercase().trim_start_matches("CAP_").to_owned())
            .collect()
    };
    let (added, dropped) = (names("add"), names("drop"));
    if added.is_empty() && dropped.is_empty() {
        return None;
    }
    let has_all = |list: &[String]| list.iter().any(|it| it == "ALL");
    let begin = if has_all(&added) { naru_runtime::CAPABILITIES_ALL } else { CAPABILITIES_DEFAULT };
    let mut kept: Vec<String> = begin
        .iter()
        .filter(|name| !has_all(&dropped) && !dropped.iter().any(|it| it == *name))
        .map(|name| (*name).to_owned())
        .collect();
    for name in added {
        if name != "ALL" && !kept.contains(&name) {
            kept.push(name);
        }
    }
    Some(kept)
}

fn lower_env(container: &Value, name: &str, problem: &mut dyn FnMut(String)) -> Vec<(String, EnvValue)> {
    let mut env = Vec::new();
    for entry in list(&container["env"]) {
        let from = &entry["valueFrom"];
        let key = |at: &Value| (text(&at["name"]), text(&at["key"]), at["optional"] == true);
        let value = if from.is_null() {
            EnvValue::Text(text(&entry["value"]))
        } else if from["configMapKeyRef"].is_object() {
            let (name, key, optional) = key(&from["configMapKeyRef"]);
            EnvValue::ConfigMap { name, key, optional }
        } else if from["secretKeyRef"].is_object() {
            let (name, key, optional) = key(&from["secretKeyRef"]);
            EnvValue::Secret { name, key, optional }
        } else if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
            EnvValue::Field(path.to_owned())
        } else if let Some(resource) = some_text(&from["resourceFieldRef"]["resource"]) {
            EnvValue::resource(resource, &from["resourceFieldRef"])
        } else {
            problem(format!(
                "env {} of container {name}: this source is not supported by this node",
                text(&entry["name"])
            ));
            continue;
        };
        env.push((text(&entry["name"]), value));
    }
    env
}

fn lower_env_from(source: &Value) -> EnvFrom {
    let secret = source["secretRef"].is_object();
    let at = if secret { &source["secretRef"] } else { &source["configMapRef"] };
    EnvFrom {
        prefix: text(&source["prefix"]),
        secret,
        name: text(&at["name"]),
        optional: at["optional"] == true,
    }
}

fn lower_mounts(container: &Value, name: &str, problem: &mut dyn FnMut(String)) -> Vec<VolumeMount> {
    let mut mounts = Vec::new();
    for mount in list(&container["volumeMounts"]) {
        if let Some(kind) = mount["mountPropagation"].as_str().filter(|kind| *kind != "None") {
            problem(format!(
                "volumeMounts {} of container {name}: mountPropagation {kind} is not supported by this node",
                text(&mount["name"])
            ));
        }
        mounts.push(VolumeMount {
            volume: text(&mount["name"]),
            path: text(&mount["mountPath"]),
            read_only: mount["readOnly"] == true,
            sub_path: text(&mount["subPath"]),
            sub_path_expression: text(&mount["subPathExpr"]),
        });
    }
    mounts
}

/// `latest` and no tag at all move; a digest never does.
pub fn has_moving_tag(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"))
}

type Ports<'a> = BTreeMap<&'a str, u16>;

fn port(value: &Value, ports: &Ports) -> Result<u16, String> {
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    let named = || value.as_str().and_then(|name| ports.get(name).copied().or_else(|| name.parse().ok()));
    number.or_else(named).ok_or_else(|| format!("there is no port {value}"))
}

/// The question of a probe or of a hook; `None` when there is none that we know.
fn lower_check(of: &Value, ports: &Ports) -> Result<Option<Check>, String> {
    if of["httpGet"].is_object() {
        let get = &of["httpGet"];
        return Ok(Some(Check::Http {
            tls: get["scheme"].as_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
            host: some_text(&get["host"]),
            port: port(&get["port"], ports)?,
            path: some_text(&get["path"]).unwrap_or_else(|| "/".to_owned()),
            headers: list(&get["httpHeaders"]).map(|it| (text(&it["name"]), text(&it["value"]))).collect(),
        }));
    }
    if of["tcpSocket"].is_object() {
        let socket = &of["tcpSocket"];
        return Ok(Some(Check::Tcp {
            host: some_text(&socket["host"]),
            port: port(&socket["port"], ports)?,
        }));
    }
    if of["grpc"].is_object() {
        return Ok(Some(Check::Grpc {
            port: port(&of["grpc"]["port"], ports)?,
            service: text(&of["grpc"]["service"]),
        }));
    }
    if of["exec"].is_object() {
        return Ok(Some(Check::Exec { command: texts(&of["exec"]["command"]) }));
    }
    Ok(None)
}

fn lower_hook(hook: &Value, ports: &Ports) -> Result<Option<Hook>, String> {
    if !set(hook) {
        return Ok(None);
    }
    if let Some(seconds) = hook["sleep"]["seconds"].as_u64() {
        return Ok(Some(Hook::Sleep { seconds }));
    }
    match lower_check(hook, ports)? {
        Some(check) => Ok(Some(Hook::Ask(check))),
        None => Err("only exec, httpGet, tcpSocket and sleep are known".into()),
    }
}

fn lower_probe(probe: &Value, ports: &Ports) -> Result<Option<Probe>, String> {
    if !probe.is_object() {
        return Ok(None);
    }
    let Some(check) = lower_check(probe, ports)? else {
        return Err("only httpGet, tcpSocket, grpc and exec are known".into());
    };
    let or = |field: &str, default: u64| probe[field].as_u64().filter(|it| *it > 0).unwrap_or(default);
    Ok(Some(Probe {
        check,
        initial_delay_seconds: probe["initialDelaySeconds"].as_u64().unwrap_or(0),
        period_seconds: or("periodSeconds", 10),
        timeout_seconds: or("timeoutSeconds", 1),
        success_threshold: or("successThreshold", 1) as u32,
        failure_threshold: or("failureThreshold", 3) as u32,
        grace_seconds: probe["terminationGracePeriodSeconds"].as_i64(),
    }))
}
