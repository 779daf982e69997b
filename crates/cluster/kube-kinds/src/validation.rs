//! Rules that a stored object keeps. A broken rule names the field (422 with causes).
//!
//! Not the whole of Kubernetes' rules: those without which a controller or the node could not do
//! its work, and those that catch common mistakes.

use serde_json::{Map, Value, json};

use crate::selector::LabelSelector;
use crate::{Cause, Kind, NameRule, list, quantity, text};

pub(crate) type Causes = Vec<Cause>;

pub fn nothing(_: &Value, _: Option<&Value>, _: &mut Causes) {}

/// Name, labels, annotations, owners: the same for every kind.
pub fn metadata(kind: &Kind, object: &Value, causes: &mut Causes) {
    let name = crate::name(object);
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Err(why) = check_name(kind.names, name) {
        causes.push(Cause::invalid("metadata.name", &json!(name), why));
    }
    labels(&object["metadata"]["labels"], "metadata.labels", causes);
    if let Some(annotations) = object["metadata"]["annotations"].as_object() {
        for (key, value) in annotations {
            if !is_qualified_name(&key.to_lowercase()) {
                causes.push(Cause::invalid("metadata.annotations", &json!(key), QUALIFIED_NAME));
            }
            if !value.is_string() {
                causes.push(Cause::invalid("metadata.annotations", value, "must be a string"));
            }
        }
    }
    for (index, owner) in list(object, "/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or("").is_empty() {
                let field = format!("metadata.ownerReferences[{index}].{field}");
                causes.push(Cause::required(&field, "must not be empty"));
            }
        }
    }
}

const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

pub fn check_name(rule: NameRule, name: &str) -> Result<(), &'static str> {
    let is_inner = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-';
    let is_edge = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
    let is_label =
        |part: &str| part.chars().all(is_inner) && part.starts_with(is_edge) && part.ends_with(is_edge);
    match rule {
        NameRule::Subdomain if name.len() <= 253 && name.split('.').all(is_label) => Ok(()),
        NameRule::Subdomain => Err(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
        ),
        NameRule::Label if name.len() <= 63 && is_label(name) => Ok(()),
        NameRule::Label => Err(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
        ),
        NameRule::PathSegment if name != "." && name != ".." && !name.contains(['/', '%']) => Ok(()),
        NameRule::PathSegment => Err("may not be '.', '..' or contain '/' or '%'"),
        NameRule::ServiceName
            if name.len() <= 63 && is_label(name) && name.starts_with(|it: char| it.is_ascii_lowercase()) =>
        {
            Ok(())
        }
        NameRule::ServiceName => Err(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
        ),
    }
}

fn is_qualified_name(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(|it| check_name(NameRule::Subdomain, it).is_ok())
        && !name.is_empty()
        && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    value.is_empty()
        || (value.len() <= 63
            && value.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it))
            && value.starts_with(|it: char| it.is_ascii_alphanumeric())
            && value.ends_with(|it: char| it.is_ascii_alphanumeric()))
}

pub(crate) fn labels(labels: &Value, field: &str, causes: &mut Causes) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if !is_qualified_name(key) {
            causes.push(Cause::invalid(field, &json!(key), QUALIFIED_NAME));
        }
        if !value.as_str().is_some_and(is_label_value) {
            causes.push(Cause::invalid(field, value, "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character, and must be no more than 63 characters"));
        }
    }
}

pub fn pod(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    pod_spec(&object["spec"], "spec", causes);
    if let Some(old) = old
        && frozen_pod_spec(&old["spec"]) != frozen_pod_spec(&object["spec"])
    {
        causes.push(Cause {
            reason: "FieldValueForbidden",
            message: "Forbidden: pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.terminationGracePeriodSeconds` or `spec.tolerations`".into(),
            field: "spec".into(),
        });
    }
}

pub(crate) fn only_resources(field: &str) -> Cause {
    Cause {
        reason: "FieldValueForbidden",
        message: "Forbidden: only cpu and memory resources are mutable".into(),
        field: field.into(),
    }
}

/// What a change of resources must keep.
pub(crate) fn resize(old: &Value, new: &Value, causes: &mut Causes) {
    let class = |pod: &Value| crate::defaults::qos_class(&pod["spec"]);
    if class(old) != class(new) {
        causes.push(Cause {
            reason: "FieldValueInvalid",
            message: "Invalid value: Pod QOS Class may not change as a result of resizing".into(),
            field: "spec".into(),
        });
    }
}

/// Ephemeral containers are only ever added, and are as they were added.
pub(crate) fn ephemeral(old: &Value, new: &Value, causes: &mut Causes) {
    let added = list(new, "/spec/ephemeralContainers");
    for container in list(old, "/spec/ephemeralContainers") {
        let kept = added.iter().find(|it| it["name"] == container["name"]);
        if kept != Some(container) {
            let name = text(container, "/name");
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: format!(
                    "Forbidden: existing ephemeral containers \"{name}\" may not be removed or changed"
                ),
                field: "spec.ephemeralContainers".into(),
            });
        }
    }
    let others = ["/spec/containers", "/spec/initContainers"].map(|field| list(new, field)).concat();
    for (index, container) in added.iter().enumerate() {
        let field = format!("spec.ephemeralContainers[{index}].name");
        let name = &container["name"];
        if name.as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required(&field, ""));
        } else if others.iter().chain(&added[..index]).any(|it| it["name"] == *name) {
            causes.push(Cause::duplicate(&field, name));
        }
    }
}

/// Kernel settings have names such as `net.ipv4.tcp_syncookies` or `net/ipv4/tcp_syncookies`.
fn sysctls(spec: &Value, at: &str, causes: &mut Causes) {
    let is_segment = |segment: &str| {
        let inside = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-' || it == '_';
        let edge = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit();
        !segment.is_empty()
            && segment.chars().all(inside)
            && segment.starts_with(edge)
            && segment.ends_with(edge)
    };
    for (index, sysctl) in list(spec, "/securityContext/sysctls").iter().enumerate() {
        let name = text(sysctl, "/name");
        if name.len() > 253 || !name.split(['.', '/']).all(is_segment) {
            let field = format!("{at}.securityContext.sysctls[{index}].name");
            causes.push(Cause::invalid(
                &field,
                &sysctl["name"],
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            ));
        }
    }
}

/// The part of a pod's specification that an update may not change.
fn frozen_pod_spec(spec: &Value) -> Map<String, Value> {
    let mut spec = spec.as_object().cloned().unwrap_or_default();
    for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations"] {
        spec.remove(field);
    }
    for field in ["containers", "initContainers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            container["image"] = Value::Null;
        }
    }
    spec
}

pub(crate) fn pod_spec(spec: &Value, at: &str, causes: &mut Causes) {
    sysctls(spec, at, causes);
    let containers = list(spec, "/containers");
    if containers.is_empty() {
        causes.push(Cause::required(&format!("{at}.containers"), ""));
    }
    let volumes: Vec<&str> = list(spec, "/volumes").iter().map(|it| text(it, "/name")).collect();
    for (index, name) in volumes.iter().enumerate() {
        let field = format!("{at}.volumes[{index}].name");
        if name.is_empty() {
            causes.push(Cause::required(&field, ""));
        } else if volumes[..index].contains(name) {
            causes.push(Cause::duplicate(&field, &json!(name)));
        }
    }
    let mut names: Vec<&str> = Vec::new();
    for (field, container) in ["initContainers", "containers"].iter().flat_map(|field| {
        let items = spec[*field].as_array().map_or(&[][..], Vec::as_slice);
        items.iter().enumerate().map(move |(index, it)| (format!("{at}.{field}[{index}]"), it))
    }) {
        let name = text(container, "/name");
        if name.is_empty() {
            causes.push(Cause::required(&format!("{field}.name"), ""));
        } else if check_name(NameRule::Label, name).is_err() {
            causes.push(Cause::invalid(&format!("{field}.name"), &json!(name), "must be an RFC 1123 label"));
        } else if names.contains(&name) {
            causes.push(Cause::duplicate(&format!("{field}.name"), &json!(name)));
        }
        names.push(name);
        self::container(container, &field, &volumes, causes);
    }
    let policy = &spec["restartPolicy"];
    if !policy.is_null() && !["Always", "OnFailure", "Never"].iter().any(|it| policy == it) {
        causes.push(Cause::unsupported(
            &format!("{at}.restartPolicy"),
            policy,
            &["Always", "OnFailure", "Never"],
        ));
    }
}

fn container(container: &Value, at: &str, volumes: &[&str], causes: &mut Causes) {
    if text(container, "/image").is_empty() {
        causes.push(Cause::required(&format!("{at}.image"), ""));
    }
    for (index, port) in list(container, "/ports").iter().enumerate() {
        let number = &port["containerPort"];
        if !number.as_i64().is_some_and(|it| (1..=65535).contains(&it)) {
            let field = format!("{at}.ports[{index}].containerPort");
            causes.push(Cause::invalid(&field, number, "must be between 1 and 65535, inclusive"));
        }
    }
    for (index, env) in list(container, "/env").iter().enumerate() {
        let field = format!("{at}.env[{index}]");
        if text(env, "/name").is_empty() {
            causes.push(Cause::required(&format!("{field}.name"), ""));
        }
        if !env["value"].is_null() && !env["value"].is_string() {
            causes.push(Cause::invalid(
                &format!("{field}.value"),
                &env["value"],
                "must be a string (quote it)",
            ));
        }
    }
    for (index, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let name = text(mount, "/name");
        if !volumes.contains(&name) {
            causes.push(Cause {
                reason: "FieldValueNotFound",
                message: format!("Not found: {name:?}"),
                field: format!("{at}.volumeMounts[{index}].name"),
            });
        }
        if text(mount, "/mountPath").is_empty() {
            causes.push(Cause::required(&format!("{at}.volumeMounts[{index}].mountPath"), ""));
        }
    }
    for list in ["limits", "requests"] {
        for (resource, amount) in container["resources"][list].as_object().into_iter().flatten() {
            let written = match amount {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            if quantity::parse_milli(&written).is_none_or(|it| it < 0) {
                let field = format!("{at}.resources.{list}[{resource}]");
                causes.push(Cause::invalid(&field, amount, "must be a quantity such as 500m or 128Mi"));
            }
        }
    }
}

pub(crate) fn selector_and_template(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    let selector = &spec["selector"];
    match LabelSelector::from_object(selector) {
        Some(parsed) if !selector.is_null() && !parsed.is_empty() => {
            let labels = &spec["template"]["metadata"]["labels"];
            if !parsed.matches_labels(labels) {
                causes.push(Cause::invalid(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                ));
            }
        }
        Some(_) => causes.push(Cause::required("spec.selector", "")),
        None => causes.push(Cause::invalid("spec.selector", selector, "invalid label selector")),
    }
    if let Some(old) = old
        && old["spec"]["selector"] != *selector
    {
        causes.push(Cause::invalid("spec.selector", selector, "field is immutable"));
    }
    labels(&spec["template"]["metadata"]["labels"], "spec.template.metadata.labels", causes);
    pod_spec(&spec["template"]["spec"], "spec.template.spec", causes);
}

pub(crate) fn not_negative(object: &Value, pointer: &str, causes: &mut Causes) {
    let value = object.pointer(pointer).unwrap_or(&Value::Null);
    let field = pointer.trim_start_matches('/').replace('/', ".");
    if !value.is_null() && !value.as_i64().is_some_and(|it| (0..=i64::from(i32::MAX)).contains(&it)) {
        causes.push(Cause::invalid(&field, value, "must be greater than or equal to 0"));
    }
}

pub fn deployment(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    not_negative(object, "/spec/replicas", causes);
    not_negative(object, "/spec/revisionHistoryLimit", causes);
    not_negative(object, "/spec/progressDeadlineSeconds", causes);
    not_negative(object, "/spec/minReadySeconds", causes);
    selector_and_template(object, old, causes);
    always_restarts(object, causes);
    let strategy = &object["spec"]["strategy"];
    match strategy["type"].as_str() {
        Some("RollingUpdate") => {
            let limit = |field: &str| int_or_percent(&strategy["rollingUpdate"][field]);
            match (limit("maxSurge"), limit("maxUnavailable")) {
                (Some(0), Some(0)) => causes.push(Cause::invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    &strategy["rollingUpdate"]["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                )),
                (Some(_), Some(_)) => {}
                _ => causes.push(Cause::invalid(
                    "spec.strategy.rollingUpdate",
                    &strategy["rollingUpdate"],
                    "must be an integer or a percentage (e.g '5%')",
                )),
            }
        }
        Some("Recreate") => {}
        _ => causes.push(Cause::unsupported(
            "spec.strategy.type",
            &strategy["type"],
            &["Recreate", "RollingUpdate"],
        )),
    }
}

pub(crate) fn int_or_percent(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64().filter(|it| *it >= 0),
        Value::String(text) => text.strip_suffix('%')?.parse().ok().filter(|it| *it >= 0),
        _ => None,
    }
}

pub(crate) fn always_restarts(object: &Value, causes: &mut Causes) {
    let policy = &object["spec"]["template"]["spec"]["restartPolicy"];
    if !policy.is_null() && policy != "Always" {
        causes.push(Cause::unsupported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
}

pub fn replica_set(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    not_negative(object, "/spec/replicas", causes);
    selector_and_template(object, old, causes);
    always_restarts(object, causes);
}

pub fn job(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    for field in
        ["completions", "parallelism", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"]
    {
        not_negative(object, &format!("/spec/{field}"), causes);
    }
    let spec = &object["spec"];
    pod_spec(&spec["template"]["spec"], "spec.template.spec", causes);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy != "Never" && policy != "OnFailure" {
        causes.push(Cause::unsupported("spec.template.spec.restartPolicy", policy, &["OnFailure", "Never"]));
    }
    match spec["completionMode"].as_str() {
        Some("NonIndexed") => {}
        Some("Indexed") if spec["completions"].is_null() => {
            causes.push(Cause::required("spec.completions", "when completion mode is Indexed"));
        }
        Some("Indexed") => {}
        _ => {
            let modes = ["NonIndexed", "Indexed"];
            causes.push(Cause::unsupported("spec.completionMode", &spec["completionMode"], &modes));
        }
    }
    if let Some(old) = old {
        for field in ["selector", "template", "completions"] {
            if old["spec"][field] != spec[field] {
                causes.push(Cause::invalid(&format!("spec.{field}"), &spec[field], "field is immutable"));
            }
        }
    }
}

pub fn service(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.iter().any(|it| spec["type"] == *it) {
        causes.push(Cause::unsupported("spec.type", &spec["type"], &kinds));
    }
    if !["ClientIP", "None"].iter().any(|it| spec["sessionAffinity"] == *it) {
        causes.push(Cause::unsupported(
            "spec.sessionAffinity",
            &spec["sessionAffinity"],
            &["ClientIP", "None"],
        ));
    }
    let external_name = spec["type"] == "ExternalName";
    let ports = list(object, "/spec/ports");
    if external_name {
        let name = text(spec, "/externalName");
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            causes.push(Cause::required("spec.externalName", ""));
        } else if let Err(why) = check_name(NameRule::Subdomain, &name.to_lowercase()) {
            causes.push(Cause::invalid("spec.externalName", &spec["externalName"], why));
        }
        if !text(spec, "/clusterIP").is_empty() {
            causes
                .push(Cause::forbidden("spec.clusterIPs[0]", "may not be set when `type` is 'ExternalName'"));
        }
    } else if ports.is_empty() && spec["clusterIP"] != "None" {
        causes.push(Cause::required("spec.ports", ""));
    }
    labels(&spec["selector"], "spec.selector", causes);
    let address = text(spec, "/clusterIP");
    if !["", "None"].contains(&address) && address.parse::<std::net::IpAddr>().is_err() {
        causes.push(Cause::invalid(
            "spec.clusterIPs[0]",
            &spec["clusterIP"],
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
    }
    if spec["type"] == "LoadBalancer" || spec["type"] == "NodePort" {
        if address == "None" {
            let why = "may not be set to 'None' for LoadBalancer and NodePort services";
            causes.push(Cause::invalid("spec.clusterIPs[0]", &spec["clusterIP"], why));
        }
        let policies = ["Cluster", "Local"];
        if !policies.iter().any(|it| spec["externalTrafficPolicy"] == *it) {
            causes.push(Cause::unsupported(
                "spec.externalTrafficPolicy",
                &spec["externalTrafficPolicy"],
                &policies,
            ));
        }
    }
    if spec["ipFamilyPolicy"] == "RequireDualStack" || list(spec, "/ipFamilies").iter().any(|it| it == "IPv6")
    {
        let why = "this cluster has IPv4 addresses only";
        causes.push(Cause::invalid("spec.ipFamilyPolicy", &spec["ipFamilyPolicy"], why));
    }
    let mut names: Vec<&str> = Vec::new();
    let mut numbers: Vec<(&Value, &Value)> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        if !port["port"].as_i64().is_some_and(|it| (1..=65535).contains(&it)) {
            causes.push(Cause::invalid(&format!("{at}.port"), &port["port"], PORT_NUMBER));
        }
        let name = text(port, "/name");
        if ports.len() > 1 && name.is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        } else if !name.is_empty() && check_name(NameRule::Label, name).is_err() {
            let why = check_name(NameRule::Label, name).expect_err("checked above");
            causes.push(Cause::invalid(&format!("{at}.name"), &port["name"], why));
        } else if !name.is_empty() && names.contains(&name) {
            causes.push(Cause::duplicate(&format!("{at}.name"), &port["name"]));
        }
        names.push(name);
        let protocols = ["SCTP", "TCP", "UDP"];
        if !protocols.iter().any(|it| port["protocol"] == *it) {
            causes.push(Cause::unsupported(&format!("{at}.protocol"), &port["protocol"], &protocols));
        }
        match &port["targetPort"] {
            Value::Number(number) if !number.as_i64().is_some_and(|it| (1..=65535).contains(&it)) => {
                causes.push(Cause::invalid(&format!("{at}.targetPort"), &port["targetPort"], PORT_NUMBER));
            }
            Value::String(name) if !is_port_name(name) => {
                causes.push(Cause::invalid(&format!("{at}.targetPort"), &port["targetPort"], PORT_NAME));
            }
            _ => {}
        }
        let number = (&port["port"], &port["protocol"]);
        if numbers.contains(&number) {
            causes.push(Cause::duplicate(&at, port));
        }
        numbers.push(number);
        let may = matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
        if !may && crate::int(port, "/nodePort") != 0 {
            causes.push(Cause::forbidden(
                &format!("{at}.nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            ));
        }
    }
    if let Some(old) = old
        && old["spec"]["type"] != "ExternalName"
        && !external_name
        && !text(old, "/spec/clusterIP").is_empty()
        && old["spec"]["clusterIP"] != spec["clusterIP"]
    {
        causes.push(Cause::invalid("spec.clusterIPs[0]", &spec["clusterIP"], "may not change once set"));
    }
}

const PORT_NUMBER: &str = "must be between 1 and 65535, inclusive";
const PORT_NAME: &str = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), at least one letter, and be no more than 15 characters";

/// An IANA service name: `http`, `web-1`.
fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '-')
        && name.contains(|it: char| it.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

/// Names of files, as far as Kubernetes lets them be.
fn data_keys(object: &Value, causes: &mut Causes) {
    const MESSAGE: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
    for field in ["data", "binaryData"] {
        for (key, _) in object[field].as_object().into_iter().flatten() {
            let fine = (1..=253).contains(&key.len())
                && key.chars().all(|it| it.is_ascii_alphanumeric() || "-_.".contains(it))
                && key != "."
                && !key.starts_with("..");
            if !fine {
                causes.push(Cause::invalid(&format!("{field}[{key}]"), &json!(key), MESSAGE));
            }
        }
    }
}

pub fn config_map(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    data_keys(object, causes);
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        if !value.is_string() {
            causes.push(Cause::invalid(&format!("data[{key}]"), value, "must be a string"));
        }
    }
    immutable_data(object, old, causes);
}

pub fn secret(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    data_keys(object, causes);
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        if !value.is_string() {
            let message = "Invalid value: must be base64 text".to_string();
            causes.push(Cause { reason: "FieldValueInvalid", message, field: format!("data[{key}]") });
        }
    }
    if let Some(old) = old
        && old["type"] != object["type"]
    {
        causes.push(Cause::invalid("type", &object["type"], "field is immutable"));
    }
    immutable_data(object, old, causes);
}

fn immutable_data(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    if let Some(old) = old
        && old["immutable"] == true
        && (old["data"] != object["data"] || object["immutable"] != true)
    {
        let message = "Forbidden: field is immutable when `immutable` is set".to_string();
        causes.push(Cause { reason: "FieldValueForbidden", message, field: "data".into() });
    }
}

pub fn custom_resource_definition(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    if let Some(old) = old {
        for (field, pointer) in [
            ("spec.scope", "/spec/scope"),
            ("spec.group", "/spec/group"),
            ("spec.names.plural", "/spec/names/plural"),
            ("spec.names.kind", "/spec/names/kind"),
        ] {
            if old.pointer(pointer) != object.pointer(pointer) {
                let value = object.pointer(pointer).unwrap_or(&Value::Null);
                causes.push(Cause::invalid(field, value, "field is immutable"));
            }
        }
        for (index, stored) in list(old, "/status/storedVersions").iter().enumerate() {
            if !list(object, "/spec/versions").iter().any(|it| it["name"] == *stored) {
                let field = format!("status.storedVersions[{index}]");
                causes.push(Cause::invalid(
                    &field,
                    stored,
                    "missing from spec.versions; objects are stored in it",
                ));
            }
        }
    }
    let (group, plural) = (text(spec, "/group"), text(spec, "/names/plural"));
    for (field, value) in
        [("spec.group", group), ("spec.names.plural", plural), ("spec.names.kind", text(spec, "/names/kind"))]
    {
        if value.is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    if crate::name(object) != format!("{plural}.{group}") {
        causes.push(Cause::invalid(
            "metadata.name",
            &object["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if !["Namespaced", "Cluster"].iter().any(|it| spec["scope"] == *it) {
        causes.push(Cause::unsupported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    let versions = list(object, "/spec/versions");
    if versions.iter().filter(|it| it["storage"] == true).count() != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            &json!(versions.len()),
            "must have exactly one version marked as storage version",
        ));
    }
    for (index, version) in versions.iter().enumerate() {
        if text(version, "/name").is_empty() {
            causes.push(Cause::required(&format!("spec.versions[{index}].name"), ""));
        }
        if version.pointer("/schema/openAPIV3Schema").is_none() {
            let field = format!("spec.versions[{index}].schema.openAPIV3Schema");
            causes.push(Cause::required(&field, "schemas are required"));
        }
    }
    crate::crd::check_schemas(object, causes);
    if !spec["conversion"]["strategy"].is_null() && spec["conversion"]["strategy"] != "None" {
        causes.push(Cause::unsupported(
            "spec.conversion.strategy",
            &spec["conversion"]["strategy"],
            &["None"],
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_with_mistakes_names_every_field() {
        let object = json!({"metadata": {"name": "web"}, "spec": {"replicas": -1, "selector": {"matchLabels": {"a": "b"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}},
            "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [
                {"name": "UP", "ports": [{"containerPort": 99999}], "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                 "resources": {"limits": {"memory": "lots"}}}]}}}});
        let mut causes = Vec::new();
        deployment(&object, None, &mut causes);
        let fields: Vec<&str> = causes.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.replicas",
                "spec.template.metadata.labels",
                "spec.template.spec.containers[0].name",
                "spec.template.spec.containers[0].image",
                "spec.template.spec.containers[0].ports[0].containerPort",
                "spec.template.spec.containers[0].volumeMounts[0].name",
                "spec.template.spec.containers[0].resources.limits[memory]",
                "spec.strategy.rollingUpdate.maxUnavailable",
            ]
        );
    }

    #[test]
    fn names_follow_the_rule_of_their_kind() {
        for (rule, name, ok) in [
            (NameRule::Subdomain, "a.b-c", true),
            (NameRule::Subdomain, "a..b", false),
            (NameRule::Subdomain, "-a", false),
            (NameRule::Label, "1a", true),
            (NameRule::Label, "a.b", false),
            (NameRule::ServiceName, "1a", false),
            (NameRule::ServiceName, "a1", true),
        ] {
            assert_eq!(check_name(rule, name).is_ok(), ok, "{name}");
        }
    }
}
