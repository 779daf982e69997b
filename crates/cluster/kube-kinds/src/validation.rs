//! Rules that a stored object keeps. A broken rule names the field (422 with causes).
//!
//! Not the whole of Kubernetes' rules: those without which a controller or the node could not do
//! its work, and those that catch common mistakes.

use serde_json::{Value, json};

mod pod;

use crate::selector::LabelSelector;
use crate::{Cause, Kind, NameRule, list, text};

pub use pod::pod;
pub(crate) use pod::{ephemeral, only_resources, pod_spec, resize};

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
    let annotations = object["metadata"]["annotations"].as_object();
    let bytes: usize = annotations
        .into_iter()
        .flatten()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if bytes > ANNOTATIONS_BYTES_MAX {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"),
            field: "metadata.annotations".into(),
        });
    }
    for (index, finalizer) in list(object, "/metadata/finalizers").iter().enumerate() {
        let name = finalizer.as_str().unwrap_or("");
        let standard = ["foregroundDeletion", "kubernetes", "orphan"].contains(&name);
        if !is_qualified_name(name) {
            causes.push(Cause::invalid(&format!("metadata.finalizers[{index}]"), finalizer, QUALIFIED_NAME));
        } else if !standard && !name.contains('/') && kind.schema.is_none() && !kind.is_crd() {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            causes.push(Cause::invalid(&format!("metadata.finalizers[{index}]"), finalizer, why));
        }
    }
    if list(object, "/metadata/ownerReferences").iter().filter(|it| it["controller"] == true).count() > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &json!("array"),
            "Only one reference can have Controller set to true",
        ));
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

/// Kubernetes' own limit.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
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

/// As much as Kubernetes lets into a ConfigMap or a Secret.
const DATA_BYTES_MAX: usize = 1024 * 1024;

/// Keys that can be names of files; together not too much.
fn data(object: &Value, fields: &[&str], causes: &mut Causes) {
    const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
    let mut bytes = 0;
    let mut seen: Vec<&str> = Vec::new();
    for field in fields {
        for (key, value) in object[*field].as_object().into_iter().flatten() {
            let at = format!("{field}[{key}]");
            let fits = (1..=253).contains(&key.len())
                && key.chars().all(|it| it.is_ascii_alphanumeric() || "-._".contains(it))
                && key != "."
                && !key.starts_with("..");
            if !fits {
                causes.push(Cause::invalid(&at, &json!(key), KEY));
            }
            if seen.contains(&key.as_str()) {
                causes.push(Cause::invalid(&at, &json!(key), "duplicate of key present in data"));
            }
            seen.push(key);
            bytes += value.as_str().map_or(0, str::len);
        }
    }
    if bytes > DATA_BYTES_MAX {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {DATA_BYTES_MAX} bytes"),
            field: String::new(),
        });
    }
}

pub fn config_map(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    data(object, &["data", "binaryData"], causes);
    immutable_data(object, old, causes);
}

pub fn secret(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    data(object, &["data"], causes);
    let needed: &[&str] = match text(object, "/type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if object["data"][*key].is_null() {
            causes.push(Cause::required(&format!("data[{key}]"), ""));
        }
    }
    if object["type"] == "kubernetes.io/service-account-token"
        && text(&object["metadata"]["annotations"], "/kubernetes.io~1service-account.name").is_empty()
    {
        causes.push(Cause::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
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
    {
        for field in ["immutable", "data", "binaryData"] {
            if old[field] != object[field] {
                causes.push(Cause::forbidden(field, "field is immutable when `immutable` is set"));
            }
        }
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
