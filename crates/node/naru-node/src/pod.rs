//! From a Pod object to what this node would do about it. Pure; never fails: what it cannot honour
//! becomes a [`Problem`], and a pod with a problem is not started. Doing half of what a pod says
//! would be worse than saying so.

use std::collections::BTreeMap;

use naru_objects::labels;
use naru_runtime::Slice;
use serde_json::Value;

use crate::image::PullPolicy;
use crate::probe::{Check, Probe};
use crate::quantity;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The container it concerns, empty for the pod.
    pub container: String,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone)]
pub struct DesiredPod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub hostname: String,
    pub restart_policy: RestartPolicy,
    pub grace_seconds: i64,
    pub active_deadline_seconds: Option<i64>,
    pub init_containers: Vec<DesiredContainer>,
    pub containers: Vec<DesiredContainer>,
    pub volumes: BTreeMap<String, Volume>,
    pub fs_group: Option<u32>,
    pub host_aliases: Vec<(String, Vec<String>)>,
    pub slice: Slice,
    /// Keep what the container wrote as a layer under this id.
    pub commit: Option<String>,
    pub problems: Vec<Problem>,
}

#[derive(Debug, Clone)]
pub struct DesiredContainer {
    pub name: String,
    pub image: String,
    pub pull_policy: PullPolicy,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<(String, EnvValue)>,
    pub env_from: Vec<EnvFrom>,
    pub mounts: Vec<VolumeMount>,
    pub memory_bytes_max: Option<u64>,
    pub cpu_millis_max: Option<u64>,
    pub cpu_millis_request: Option<u64>,
    pub memory_bytes_request: Option<u64>,
    pub user: Option<u32>,
    pub group: Option<u32>,
    pub supplementary_groups: Vec<u32>,
    pub must_not_be_root: bool,
    pub read_only_root: bool,
    /// `None` is the runtime's default set.
    pub capabilities: Option<Vec<String>>,
    pub liveness: Option<Probe>,
    pub readiness: Option<Probe>,
    pub startup: Option<Probe>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    Text(String),
    ConfigMap { name: String, key: String, optional: bool },
    Secret { name: String, key: String, optional: bool },
    Field(String),
    Resource { resource: String, divisor: String },
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
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    EmptyDir { memory: bool },
    HostPath { path: String, kind: String },
    Files { sources: Vec<FileSource>, mode: u32 },
}

/// One source of a volume of files; a projected volume has several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSource {
    pub secret: bool,
    pub name: String,
    pub optional: bool,
    /// Key, path below the volume, mode. Empty: every key under its own name.
    pub items: Vec<(String, String, Option<u32>)>,
}

/// Capabilities that reach out of the container. Without a user namespace they are the machine.
const CAPABILITIES_REFUSED: &[&str] = &[
    "ALL",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "PERFMON",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_TIME",
    "WAKE_ALARM",
];

/// The runtime's default set, which `drop` subtracts from.
const CAPABILITIES_DEFAULT: &[&str] = naru_runtime::CAPABILITIES_DEFAULT;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
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
const POD_FIELDS_REFUSED: &[&str] = &[
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "shareProcessNamespace",
    "runtimeClassName",
    "dnsConfig",
    "ephemeralContainers",
    "resourceClaims",
];
const CONTAINER_FIELDS_REFUSED: &[&str] = &["lifecycle", "volumeDevices", "restartPolicy"];

pub fn lower_pod(pod: &Value) -> DesiredPod {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    let mut problems = Vec::new();
    for field in POD_FIELDS_REFUSED {
        if set(&spec[*field]) {
            problems.push(Problem {
                container: String::new(),
                message: format!("spec.{field} is not supported by this node"),
            });
        }
    }
    if spec["hostUsers"] == false {
        problems.push(Problem {
            container: String::new(),
            message: "spec.hostUsers: false is not supported by this node".into(),
        });
    }
    if set(&spec["securityContext"]["sysctls"]) {
        problems.push(Problem {
            container: String::new(),
            message: "spec.securityContext.sysctls is not supported by this node".into(),
        });
    }
    check_seccomp(&spec["securityContext"], "", &mut problems);

    let volumes = list(&spec["volumes"])
        .filter_map(|volume| match lower_volume(volume) {
            Ok(lowered) => Some((text(&volume["name"]), lowered)),
            Err(message) => {
                problems.push(Problem { container: String::new(), message });
                None
            }
        })
        .collect();
    let mut containers = |field: &str| -> Vec<DesiredContainer> {
        list(&spec[field]).map(|container| lower_container(spec, container, &mut problems)).collect()
    };
    let (init_containers, containers) = (containers("initContainers"), containers("containers"));
    let name = text(&metadata["name"]);
    let commit = metadata["annotations"][labels::COMMIT].as_str().map(str::to_owned);
    if commit.is_some() && containers.len() != 1 {
        problems.push(Problem {
            container: String::new(),
            message: format!("a pod with the annotation {} needs exactly one container", labels::COMMIT),
        });
    }
    let slice = [&metadata["labels"][labels::SLICE], &metadata["annotations"][labels::SLICE]]
        .iter()
        .find_map(|value| value.as_str());
    DesiredPod {
        namespace: text(&metadata["namespace"]),
        uid: text(&metadata["uid"]),
        // The kernel's limit for host names; Kubernetes cuts as well.
        hostname: spec["hostname"].as_str().unwrap_or(&name).chars().take(63).collect(),
        name,
        restart_policy: match spec["restartPolicy"].as_str() {
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some("Never") => RestartPolicy::Never,
            _ => RestartPolicy::Always,
        },
        grace_seconds: spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30).max(0),
        active_deadline_seconds: spec["activeDeadlineSeconds"].as_i64(),
        init_containers,
        containers,
        volumes,
        fs_group: number(&spec["securityContext"]["fsGroup"]),
        host_aliases: list(&spec["hostAliases"])
            .map(|alias| (text(&alias["ip"]), texts(&alias["hostnames"])))
            .collect(),
        slice: if slice == Some("pipelines") { Slice::Pipelines } else { Slice::Apps },
        commit,
        problems,
    }
}

fn check_seccomp(context: &Value, container: &str, problems: &mut Vec<Problem>) {
    if let Some(kind) = context["seccompProfile"]["type"].as_str()
        && kind != "RuntimeDefault"
    {
        problems.push(Problem {
            container: container.to_owned(),
            message: format!(
                "seccompProfile.type {kind} is not supported by this node, only RuntimeDefault is"
            ),
        });
    }
}

fn lower_volume(volume: &Value) -> Result<Volume, String> {
    let mode = |value: &Value| number(value).unwrap_or(0o644);
    if let Some(source) = volume["emptyDir"].as_object() {
        let memory = source.get("medium").and_then(Value::as_str) == Some("Memory");
        return Ok(Volume::EmptyDir { memory });
    }
    if volume["hostPath"].is_object() {
        return Ok(Volume::HostPath {
            path: text(&volume["hostPath"]["path"]),
            kind: text(&volume["hostPath"]["type"]),
        });
    }
    if volume["configMap"].is_object() {
        let source = lower_file_source(&volume["configMap"], false);
        return Ok(Volume::Files { sources: vec![source], mode: mode(&volume["configMap"]["defaultMode"]) });
    }
    if volume["secret"].is_object() {
        let source = lower_file_source(&volume["secret"], true);
        return Ok(Volume::Files { sources: vec![source], mode: mode(&volume["secret"]["defaultMode"]) });
    }
    if volume["projected"].is_object() {
        let mut sources = Vec::new();
        for source in list(&volume["projected"]["sources"]) {
            if source["configMap"].is_object() {
                sources.push(lower_file_source(&source["configMap"], false));
            } else if source["secret"].is_object() {
                sources.push(lower_file_source(&source["secret"], true));
            } else {
                return Err(format!(
                    "volume {}: this node projects only configMap and secret sources",
                    text(&volume["name"])
                ));
            }
        }
        return Ok(Volume::Files { sources, mode: mode(&volume["projected"]["defaultMode"]) });
    }
    let kinds =
        volume.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).filter(|key| *key != "name");
    Err(format!(
        "volume {}: the type {} is not supported by this node",
        text(&volume["name"]),
        kinds.collect::<Vec<_>>().join(", ")
    ))
}

fn lower_file_source(source: &Value, secret: bool) -> FileSource {
    // Secrets say `secretName` in a volume of their own and `name` in a projection.
    let name = source["secretName"].as_str().or(source["name"].as_str()).unwrap_or_default();
    FileSource {
        secret,
        name: name.to_owned(),
        optional: source["optional"] == true,
        items: list(&source["items"])
            .map(|item| (text(&item["key"]), text(&item["path"]), number(&item["mode"])))
            .collect(),
    }
}

fn lower_container(spec: &Value, container: &Value, problems: &mut Vec<Problem>) -> DesiredContainer {
    let name = text(&container["name"]);
    let mut problem = |message: String| problems.push(Problem { container: name.clone(), message });
    for field in CONTAINER_FIELDS_REFUSED {
        if set(&container[*field]) {
            problem(format!("{field} of container {name} is not supported by this node"));
        }
    }
    let (own, pods) = (&container["securityContext"], &spec["securityContext"]);
    if own["privileged"] == true {
        problem(format!("container {name} wants to be privileged, which this node refuses"));
    }
    if own["procMount"].as_str().is_some_and(|kind| kind != "Default") {
        problem(format!("procMount of container {name} is not supported by this node"));
    }
    for port in list(&container["ports"]) {
        if port["hostPort"].as_u64().is_some_and(|number| number > 0) {
            problem(format!("hostPort of container {name} is not supported by this node"));
        }
    }
    let capability_names = |field: &str| -> Vec<String> {
        texts(&own["capabilities"][field])
            .into_iter()
            .map(|name| name.to_ascii_uppercase().trim_start_matches("CAP_").to_owned())
            .collect()
    };
    let (added, dropped) = (capability_names("add"), capability_names("drop"));
    for capability in &added {
        if CAPABILITIES_REFUSED.contains(&capability.as_str()) {
            problem(format!("container {name} wants the capability {capability}, which this node refuses"));
        }
    }
    let resources = &container["resources"];
    let mut quantity = |kind: &str, resource: &str, parse: fn(&str) -> Option<u64>| {
        let value = &resources[kind][resource];
        let written =
            value.as_str().map(str::to_owned).or_else(|| value.as_number().map(ToString::to_string))?;
        let parsed = parse(&written);
        if parsed.is_none() {
            problem(format!("{kind}.{resource} of container {name} is not a quantity: {written}"));
        }
        parsed
    };
    let memory_bytes_max = quantity("limits", "memory", quantity::parse_whole);
    let cpu_millis_max = quantity("limits", "cpu", quantity::parse_milli);
    let memory_bytes_request = quantity("requests", "memory", quantity::parse_whole).or(memory_bytes_max);
    let cpu_millis_request = quantity("requests", "cpu", quantity::parse_milli).or(cpu_millis_max);

    let ports: BTreeMap<&str, u16> = list(&container["ports"])
        .filter_map(|port| {
            Some((port["name"].as_str()?, u16::try_from(port["containerPort"].as_u64()?).ok()?))
        })
        .collect();
    let mut probe = |field: &str| match lower_probe(&container[field], &ports) {
        Ok(probe) => probe,
        Err(message) => {
            problem(format!("{field} of container {name}: {message}"));
            None
        }
    };
    let (liveness, readiness, startup) =
        (probe("livenessProbe"), probe("readinessProbe"), probe("startupProbe"));

    let mut env = Vec::new();
    for entry in list(&container["env"]) {
        let from = &entry["valueFrom"];
        let value = if from.is_null() {
            EnvValue::Text(text(&entry["value"]))
        } else if from["configMapKeyRef"].is_object() {
            let at = &from["configMapKeyRef"];
            EnvValue::ConfigMap {
                name: text(&at["name"]),
                key: text(&at["key"]),
                optional: at["optional"] == true,
            }
        } else if from["secretKeyRef"].is_object() {
            let at = &from["secretKeyRef"];
            EnvValue::Secret {
                name: text(&at["name"]),
                key: text(&at["key"]),
                optional: at["optional"] == true,
            }
        } else if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
            EnvValue::Field(path.to_owned())
        } else if let Some(resource) = from["resourceFieldRef"]["resource"].as_str() {
            let divisor = from["resourceFieldRef"]["divisor"].as_str().filter(|it| *it != "0").unwrap_or("1");
            EnvValue::Resource { resource: resource.to_owned(), divisor: divisor.to_owned() }
        } else {
            problem(format!(
                "env {} of container {name}: this source is not supported by this node",
                text(&entry["name"])
            ));
            continue;
        };
        env.push((text(&entry["name"]), value));
    }
    let env_from = list(&container["envFrom"])
        .map(|source| {
            let secret = source["secretRef"].is_object();
            let at = if secret { &source["secretRef"] } else { &source["configMapRef"] };
            EnvFrom {
                prefix: text(&source["prefix"]),
                secret,
                name: text(&at["name"]),
                optional: at["optional"] == true,
            }
        })
        .collect();
    let mut mounts = Vec::new();
    for mount in list(&container["volumeMounts"]) {
        if set(&mount["subPathExpr"]) || mount["mountPropagation"].as_str().is_some_and(|kind| kind != "None")
        {
            problem(format!(
                "subPathExpr and mountPropagation of container {name} are not supported by this node"
            ));
        }
        mounts.push(VolumeMount {
            volume: text(&mount["name"]),
            path: text(&mount["mountPath"]),
            read_only: mount["readOnly"] == true,
            sub_path: text(&mount["subPath"]),
        });
    }
    check_seccomp(own, &name, problems);
    let image = text(&container["image"]);
    DesiredContainer {
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
        working_dir: container["workingDir"].as_str().filter(|it| !it.is_empty()).map(str::to_owned),
        env,
        env_from,
        mounts,
        memory_bytes_max,
        cpu_millis_max,
        cpu_millis_request,
        memory_bytes_request,
        user: number(&own["runAsUser"]).or(number(&pods["runAsUser"])),
        group: number(&own["runAsGroup"]).or(number(&pods["runAsGroup"])),
        supplementary_groups: list(&pods["supplementalGroups"])
            .chain(std::iter::once(&pods["fsGroup"]))
            .filter_map(number)
            .collect(),
        must_not_be_root: own["runAsNonRoot"].as_bool().or(pods["runAsNonRoot"].as_bool()).unwrap_or(false),
        read_only_root: own["readOnlyRootFilesystem"] == true,
        capabilities: (!added.is_empty() || !dropped.is_empty()).then(|| {
            let mut names: Vec<String> = CAPABILITIES_DEFAULT
                .iter()
                .filter(|name| !dropped.iter().any(|it| it == *name || it == "ALL"))
                .map(|name| (*name).to_owned())
                .collect();
            names.extend(added.into_iter().filter(|name| {
                !CAPABILITIES_DEFAULT.contains(&name.as_str()) || dropped.iter().any(|it| it == "ALL")
            }));
            names
        }),
        liveness,
        readiness,
        startup,
        stdin: container["stdin"] == true,
        stdin_once: container["stdinOnce"] == true,
        tty: container["tty"] == true,
        name,
    }
}

/// `latest` and no tag at all move; a digest never does.
fn has_moving_tag(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"))
}

fn lower_probe(probe: &Value, ports: &BTreeMap<&str, u16>) -> Result<Option<Probe>, String> {
    if !probe.is_object() {
        return Ok(None);
    }
    let port = |value: &Value| -> Result<u16, String> {
        let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
        let named = || value.as_str().and_then(|name| ports.get(name).copied().or_else(|| name.parse().ok()));
        number.or_else(named).ok_or_else(|| format!("there is no port {value}"))
    };
    let check = if probe["httpGet"].is_object() {
        let get = &probe["httpGet"];
        if get["scheme"].as_str().is_some_and(|scheme| scheme != "HTTP") {
            return Err("only the scheme HTTP is supported by this node".into());
        }
        Check::Http {
            host: get["host"].as_str().filter(|it| !it.is_empty()).map(str::to_owned),
            port: port(&get["port"])?,
            path: get["path"].as_str().filter(|it| !it.is_empty()).unwrap_or("/").to_owned(),
            headers: list(&get["httpHeaders"]).map(|it| (text(&it["name"]), text(&it["value"]))).collect(),
        }
    } else if probe["tcpSocket"].is_object() {
        Check::Tcp {
            host: probe["tcpSocket"]["host"].as_str().filter(|it| !it.is_empty()).map(str::to_owned),
            port: port(&probe["tcpSocket"]["port"])?,
        }
    } else if probe["exec"].is_object() {
        Check::Exec { command: texts(&probe["exec"]["command"]) }
    } else {
        return Err("only httpGet, tcpSocket and exec are supported by this node".into());
    };
    let or = |field: &str, default: u64| probe[field].as_u64().filter(|it| *it > 0).unwrap_or(default);
    Ok(Some(Probe {
        check,
        initial_delay_seconds: probe["initialDelaySeconds"].as_u64().unwrap_or(0),
        period_seconds: or("periodSeconds", 10),
        timeout_seconds: or("timeoutSeconds", 1),
        success_threshold: or("successThreshold", 1) as u32,
        failure_threshold: or("failureThreshold", 3) as u32,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec})
    }

    fn problems(spec: Value) -> Vec<String> {
        lower_pod(&pod(spec)).problems.into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn what_would_be_done_by_half_is_refused_with_its_place() {
        assert_eq!(
            problems(json!({
                "hostNetwork": true,
                "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "x"}}],
                "containers": [
                    {"name": "a", "image": "x", "securityContext": {"privileged": true}},
                    {"name": "b", "image": "x", "lifecycle": {"preStop": {}}, "ports": [{"hostPort": 80}]},
                    {"name": "c", "image": "x", "securityContext": {"capabilities": {"add": ["CAP_SYS_ADMIN"]}}},
                    {"name": "d", "image": "x", "livenessProbe": {"grpc": {"port": 1}}},
                ],
            })),
            [
                "spec.hostNetwork is not supported by this node",
                "volume d: the type persistentVolumeClaim is not supported by this node",
                "container a wants to be privileged, which this node refuses",
                "lifecycle of container b is not supported by this node",
                "hostPort of container b is not supported by this node",
                "container c wants the capability SYS_ADMIN, which this node refuses",
                "livenessProbe of container d: only httpGet, tcpSocket and exec are supported by this node",
            ]
        );
    }

    #[test]
    fn an_ordinary_pod_has_no_problems() {
        let pod = lower_pod(&pod(json!({
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 5,
            "hostNetwork": false, "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
            "volumes": [{"name": "c", "configMap": {"name": "m", "items": [{"key": "k", "path": "d/f"}]}}],
            "containers": [{
                "name": "a", "image": "shop:1", "ports": [{"name": "http", "containerPort": 8080}],
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
                "securityContext": {"runAsUser": 7, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}},
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 2},
            }],
        })));
        assert_eq!(pod.problems, []);
        let container = &pod.containers[0];
        assert_eq!(container.capabilities, Some(vec!["NET_BIND_SERVICE".to_owned()]));
        assert_eq!((container.user, container.supplementary_groups.as_slice()), (Some(7), &[2000][..]));
        assert_eq!((container.memory_bytes_max, container.cpu_millis_request), (Some(64 << 20), Some(500)));
        let probe = container.readiness.as_ref().expect("a probe");
        assert!(matches!(&probe.check, Check::Http { port: 8080, path, .. } if path == "/healthz"));
        assert_eq!((probe.period_seconds, probe.timeout_seconds, probe.failure_threshold), (2, 1, 3));
        assert_eq!(container.pull_policy, PullPolicy::IfNotPresent);
    }

    #[test]
    fn moving_tags_are_pulled_always() {
        for (image, moving) in [
            ("shop", true),
            ("shop:latest", true),
            ("host:5000/shop", true),
            ("shop:1", false),
            ("shop@sha256:0", false),
        ] {
            assert_eq!(has_moving_tag(image), moving, "{image}");
        }
    }
}
