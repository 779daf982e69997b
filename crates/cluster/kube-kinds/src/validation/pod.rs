//! Rules of pods and of the templates that pods come from.

use serde_json::{Map, Value, json};

use super::{Causes, PORT_NAME, PORT_NUMBER, check_name, is_port_name, is_qualified_name, labels};
use crate::{Cause, NameRule, list, quantity, text};

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub fn pod(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    match old {
        // What a pod may be is judged once; what an update changes is judged alone.
        Some(old) => changes(&old["spec"], &object["spec"], causes),
        None => pod_spec(&object["spec"], "spec", causes),
    }
}

/// What an update may change: images, a shorter deadline, more tolerations.
fn changes(old: &Value, new: &Value, causes: &mut Causes) {
    for field in ["containers", "initContainers"] {
        if list(old, &format!("/{field}")).len() != list(new, &format!("/{field}")).len() {
            causes.push(Cause::forbidden("spec.containers", "pod updates may not add or remove containers"));
            return;
        }
        for (index, container) in list(new, &format!("/{field}")).iter().enumerate() {
            if text(container, "/image").trim().is_empty() {
                causes.push(Cause::required(&format!("spec.{field}[{index}].image"), ""));
            }
        }
    }
    match (old["activeDeadlineSeconds"].as_i64(), new["activeDeadlineSeconds"].as_i64()) {
        (Some(before), Some(after)) if after > before => causes.push(Cause::invalid(
            "spec.activeDeadlineSeconds",
            &json!(after),
            &format!("must be less than or equal to previous value {before}"),
        )),
        (Some(before), None) => causes.push(Cause::invalid(
            "spec.activeDeadlineSeconds",
            &Value::Null,
            &format!("must not update from a positive integer to nil value: {before}"),
        )),
        (_, Some(after)) if after < 1 => {
            causes.push(Cause::invalid(
                "spec.activeDeadlineSeconds",
                &json!(after),
                "must be greater than 0",
            ));
        }
        _ => {}
    }
    let but_seconds = |it: &Value| {
        let mut it = it.as_object().cloned().unwrap_or_default();
        it.remove("tolerationSeconds");
        it
    };
    let kept = list(new, "/tolerations");
    if !list(old, "/tolerations").iter().all(|it| kept.iter().any(|new| but_seconds(new) == but_seconds(it)))
    {
        causes.push(Cause::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    if frozen(old) != frozen(new) {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to existing tolerations), `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

/// The part of a pod's specification that an update may not change.
fn frozen(spec: &Value) -> Map<String, Value> {
    let mut spec = spec.as_object().cloned().unwrap_or_default();
    for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"]
    {
        spec.remove(field);
    }
    for field in ["containers", "initContainers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    spec
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

pub(crate) fn pod_spec(spec: &Value, at: &str, causes: &mut Causes) {
    if list(spec, "/containers").is_empty() {
        causes.push(Cause::required(&format!("{at}.containers"), ""));
    }
    let volumes = volumes(spec, at, causes);
    let mut names: Vec<&str> = Vec::new();
    for list_name in CONTAINER_LISTS {
        for (index, container) in list(spec, &format!("/{list_name}")).iter().enumerate() {
            let at = format!("{at}.{list_name}[{index}]");
            unique_name(container, &at, &mut names, causes);
            self::container(container, &at, &volumes, list_name, causes);
        }
    }
    one_of(spec, "restartPolicy", at, &["Always", "OnFailure", "Never"], causes);
    one_of(spec, "dnsPolicy", at, &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], causes);
    if spec["dnsPolicy"] == "None" && list(spec, "/dnsConfig/nameservers").is_empty() {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.push(Cause::required(&format!("{at}.dnsConfig.nameservers"), why));
    }
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|it| !(1..=i64::from(i32::MAX)).contains(&it)) {
        let why = "must be between 1 and 2147483647, inclusive";
        causes.push(Cause::invalid(
            &format!("{at}.activeDeadlineSeconds"),
            &spec["activeDeadlineSeconds"],
            why,
        ));
    }
    labels(&spec["nodeSelector"], &format!("{at}.nodeSelector"), causes);
    for field in ["hostname", "subdomain"] {
        let name = text(spec, &format!("/{field}"));
        if !name.is_empty()
            && let Err(why) = check_name(NameRule::Label, name)
        {
            causes.push(Cause::invalid(&format!("{at}.{field}"), &spec[field], why));
        }
    }
    for (index, toleration) in list(spec, "/tolerations").iter().enumerate() {
        self::toleration(toleration, &format!("{at}.tolerations[{index}]"), causes);
    }
    for (index, alias) in list(spec, "/hostAliases").iter().enumerate() {
        if text(alias, "/ip").parse::<std::net::IpAddr>().is_err() {
            let field = format!("{at}.hostAliases[{index}].ip");
            causes.push(Cause::invalid(&field, &alias["ip"], "must be a valid IP address"));
        }
    }
    for (index, spread) in list(spec, "/topologySpreadConstraints").iter().enumerate() {
        let at = format!("{at}.topologySpreadConstraints[{index}]");
        if crate::int(spread, "/maxSkew") < 1 {
            causes.push(Cause::invalid(
                &format!("{at}.maxSkew"),
                &spread["maxSkew"],
                "must be greater than zero",
            ));
        }
        if text(spread, "/topologyKey").is_empty() {
            causes.push(Cause::required(&format!("{at}.topologyKey"), "can not be empty"));
        }
        one_of(spread, "whenUnsatisfiable", &at, &["DoNotSchedule", "ScheduleAnyway"], causes);
    }
    for (index, sysctl) in list(spec, "/securityContext/sysctls").iter().enumerate() {
        let name = text(sysctl, "/name");
        let part = |it: &str| {
            !it.is_empty()
                && it.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || "-_".contains(it))
                && it.starts_with(|it: char| it.is_ascii_alphanumeric())
                && it.ends_with(|it: char| it.is_ascii_alphanumeric())
        };
        if name.len() > 253 || !name.split(['.', '/']).all(part) {
            let field = format!("{at}.securityContext.sysctls[{index}].name");
            let why = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            causes.push(Cause::invalid(&field, &sysctl["name"], why));
        }
    }
}

/// A field that has one of some words, if it is there.
fn one_of(holder: &Value, field: &str, at: &str, words: &[&str], causes: &mut Causes) {
    let value = &holder[field];
    if !value.is_null() && !words.iter().any(|it| value == it) {
        causes.push(Cause::unsupported(&format!("{at}.{field}"), value, words));
    }
}

fn toleration(toleration: &Value, at: &str, causes: &mut Causes) {
    let (key, operator) = (text(toleration, "/key"), text(toleration, "/operator"));
    if !key.is_empty() && !is_qualified_name(key) {
        causes.push(Cause::invalid(&format!("{at}.key"), &toleration["key"], super::QUALIFIED_NAME));
    }
    if key.is_empty() && operator != "Exists" {
        let why =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(Cause::invalid(&format!("{at}.operator"), &toleration["operator"], why));
    }
    match operator {
        "" | "Equal" => {}
        "Exists" if !text(toleration, "/value").is_empty() => {
            let why = "value must be empty when `operator` is 'Exists'";
            causes.push(Cause::invalid(&format!("{at}.operator"), toleration, why));
        }
        "Exists" => {}
        _ => causes.push(Cause::unsupported(
            &format!("{at}.operator"),
            &toleration["operator"],
            &["Equal", "Exists"],
        )),
    }
    let effects = ["", "NoSchedule", "PreferNoSchedule", "NoExecute"];
    if !effects.contains(&text(toleration, "/effect")) {
        causes.push(Cause::unsupported(&format!("{at}.effect"), &toleration["effect"], &effects[1..]));
    }
    if !toleration["tolerationSeconds"].is_null() && text(toleration, "/effect") != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        causes.push(Cause::invalid(&format!("{at}.effect"), &toleration["effect"], why));
    }
}

/// The name of a container or volume: there, a label, and not among `names`, to which it is added.
fn unique_name<'a>(item: &'a Value, at: &str, names: &mut Vec<&'a str>, causes: &mut Causes) {
    let name = text(item, "/name");
    let at = format!("{at}.name");
    if name.is_empty() {
        causes.push(Cause::required(&at, ""));
    } else if let Err(why) = check_name(NameRule::Label, name) {
        causes.push(Cause::invalid(&at, &json!(name), why));
    } else if names.contains(&name) {
        causes.push(Cause::duplicate(&at, &json!(name)));
    }
    names.push(name);
}

fn volumes<'a>(spec: &'a Value, at: &str, causes: &mut Causes) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for (index, volume) in list(spec, "/volumes").iter().enumerate() {
        let at = format!("{at}.volumes[{index}]");
        unique_name(volume, &at, &mut names, causes);
        let sources = volume.as_object().into_iter().flatten().filter(|(it, _)| *it != "name");
        let sources: Vec<&String> = sources.map(|(field, _)| field).collect();
        match sources.as_slice() {
            [] => causes.push(Cause::required(&at, "must specify a volume type")),
            [_] => {}
            [_, more, ..] => {
                causes.push(Cause::forbidden(
                    &format!("{at}.{more}"),
                    "may not specify more than 1 volume type",
                ));
            }
        }
        for (source, field) in [
            ("hostPath", "path"),
            ("configMap", "name"),
            ("secret", "secretName"),
            ("persistentVolumeClaim", "claimName"),
            ("csi", "driver"),
        ] {
            if volume[source].is_object() && text(&volume[source], &format!("/{field}")).is_empty() {
                causes.push(Cause::required(&format!("{at}.{source}.{field}"), ""));
            }
        }
        if text(volume, "/hostPath/path").split('/').any(|it| it == "..") {
            let field = format!("{at}.hostPath.path");
            causes.push(Cause::invalid(&field, &volume["hostPath"]["path"], "must not contain '..'"));
        }
        if volume["hostPath"].is_object() {
            let kinds = [
                "",
                "DirectoryOrCreate",
                "Directory",
                "FileOrCreate",
                "File",
                "Socket",
                "CharDevice",
                "BlockDevice",
            ];
            one_of(&volume["hostPath"], "type", &format!("{at}.hostPath"), &kinds, causes);
        }
        for source in ["configMap", "secret", "downwardAPI"] {
            items(&volume[source], &format!("{at}.{source}"), causes);
        }
        if text(volume, "/emptyDir/sizeLimit").starts_with('-') {
            let field = format!("{at}.emptyDir.sizeLimit");
            causes.push(Cause::forbidden(&field, "SizeLimit field must be a valid resource quantity"));
        }
        for (index, source) in list(volume, "/projected/sources").iter().enumerate() {
            for kind in ["configMap", "secret", "downwardAPI"] {
                items(&source[kind], &format!("{at}.projected.sources[{index}].{kind}"), causes);
            }
        }
    }
    names
}

/// Keys of a source that become files.
fn items(source: &Value, at: &str, causes: &mut Causes) {
    for (index, item) in list(source, "/items").iter().enumerate() {
        let at = format!("{at}.items[{index}]");
        if !at.contains("downwardAPI") && text(item, "/key").is_empty() {
            causes.push(Cause::required(&format!("{at}.key"), ""));
        }
        let path = text(item, "/path");
        if path.is_empty() {
            causes.push(Cause::required(&format!("{at}.path"), ""));
        } else if let Some(why) = leaves(path) {
            causes.push(Cause::invalid(&format!("{at}.path"), &item["path"], why));
        }
    }
    if let Some(mode) = source["defaultMode"].as_i64()
        && !(0..=0o777).contains(&mode)
    {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        causes.push(Cause::invalid(&format!("{at}.defaultMode"), &source["defaultMode"], why));
    }
}

/// Why a path does not stay where it is put.
fn leaves(path: &str) -> Option<&'static str> {
    if path.starts_with('/') {
        return Some("must be a relative path");
    }
    path.split('/').any(|it| it == "..").then_some("must not contain '..'")
}

fn container(container: &Value, at: &str, volumes: &[&str], list_name: &str, causes: &mut Causes) {
    let image = text(container, "/image");
    // Templates may leave the image to somebody else; pods do not.
    if image.is_empty() {
        causes.push(Cause::required(&format!("{at}.image"), ""));
    } else if image.trim() != image {
        causes.push(Cause::invalid(
            &format!("{at}.image"),
            &container["image"],
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(container, "imagePullPolicy", at, &["Always", "IfNotPresent", "Never"], causes);
    one_of(container, "terminationMessagePolicy", at, &["FallbackToLogsOnError", "File"], causes);
    ports(container, at, causes);
    environment(container, at, causes);
    mounts(container, at, volumes, causes);
    resources(container, at, causes);
    let restarts = list_name == "containers" || container["restartPolicy"] == "Always";
    if list_name == "initContainers" {
        one_of(container, "restartPolicy", at, &["Always", "Never", "OnFailure"], causes);
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[kind];
        if probe.is_null() {
            continue;
        }
        let at = format!("{at}.{kind}");
        if !restarts {
            causes.push(Cause::forbidden(
                &at,
                "may not be set for init containers without restartPolicy=Always",
            ));
            continue;
        }
        self::probe(probe, &at, kind == "readinessProbe", causes);
    }
    for hook in ["postStart", "preStop"] {
        let handler = &container["lifecycle"][hook];
        if !handler.is_null() {
            handlers(
                handler,
                &format!("{at}.lifecycle.{hook}"),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                causes,
            );
        }
    }
    let context = &container["securityContext"];
    if context["allowPrivilegeEscalation"] == false && context["privileged"] == true {
        let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        causes.push(Cause::invalid(&format!("{at}.securityContext"), &json!("object"), why));
    }
}

fn ports(container: &Value, at: &str, causes: &mut Causes) {
    let is_port = |it: &Value| it.as_i64().is_some_and(|it| (1..=65535).contains(&it));
    let mut names: Vec<&str> = Vec::new();
    for (index, port) in list(container, "/ports").iter().enumerate() {
        let at = format!("{at}.ports[{index}]");
        if !is_port(&port["containerPort"]) {
            causes.push(Cause::invalid(&format!("{at}.containerPort"), &port["containerPort"], PORT_NUMBER));
        }
        if !port["hostPort"].is_null() && port["hostPort"] != 0 && !is_port(&port["hostPort"]) {
            causes.push(Cause::invalid(&format!("{at}.hostPort"), &port["hostPort"], PORT_NUMBER));
        }
        one_of(port, "protocol", &at, &["SCTP", "TCP", "UDP"], causes);
        let name = text(port, "/name");
        if !name.is_empty() {
            if !is_port_name(name) {
                causes.push(Cause::invalid(&format!("{at}.name"), &port["name"], PORT_NAME));
            } else if names.contains(&name) {
                causes.push(Cause::duplicate(&format!("{at}.name"), &port["name"]));
            }
            names.push(name);
        }
    }
}

fn environment(container: &Value, at: &str, causes: &mut Causes) {
    for (index, env) in list(container, "/env").iter().enumerate() {
        let at = format!("{at}.env[{index}]");
        let name = text(env, "/name");
        if name.is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        } else if name.contains('=') || !name.bytes().all(|it| (0x20..0x7f).contains(&it)) {
            let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            causes.push(Cause::invalid(&format!("{at}.name"), &env["name"], why));
        }
        let source = &env["valueFrom"];
        if source.is_object() {
            if !text(env, "/value").is_empty() {
                let why = "may not be specified when `value` is not empty";
                causes.push(Cause::invalid(&format!("{at}.valueFrom"), &json!(""), why));
            }
            let count = source.as_object().map_or(0, Map::len);
            if count != 1 {
                let why = match count {
                    0 => {
                        "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
                    }
                    _ => "may not have more than one field specified at a time",
                };
                causes.push(Cause::invalid(&format!("{at}.valueFrom"), &json!(""), why));
            }
            for (kind, field) in [
                ("configMapKeyRef", "key"),
                ("secretKeyRef", "key"),
                ("fieldRef", "fieldPath"),
                ("resourceFieldRef", "resource"),
            ] {
                if source[kind].is_object() && text(&source[kind], &format!("/{field}")).is_empty() {
                    causes.push(Cause::required(&format!("{at}.valueFrom.{kind}.{field}"), ""));
                }
            }
        }
    }
    for (index, from) in list(container, "/envFrom").iter().enumerate() {
        if from["configMapRef"].is_object() == from["secretRef"].is_object() {
            let why = "must specify one of: `configMapRef` or `secretRef`";
            causes.push(Cause::invalid(&format!("{at}.envFrom[{index}]"), &json!(""), why));
        }
    }
}

fn mounts(container: &Value, at: &str, volumes: &[&str], causes: &mut Causes) {
    let mut paths: Vec<&str> = Vec::new();
    for (index, mount) in list(container, "/volumeMounts").iter().enumerate() {
        let at = format!("{at}.volumeMounts[{index}]");
        let name = text(mount, "/name");
        if name.is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        } else if !volumes.contains(&name) {
            causes.push(Cause {
                reason: "FieldValueNotFound",
                message: format!("Not found: {name:?}"),
                field: format!("{at}.name"),
            });
        }
        let path = text(mount, "/mountPath");
        if path.is_empty() {
            causes.push(Cause::required(&format!("{at}.mountPath"), ""));
        } else if paths.contains(&path) {
            causes.push(Cause::invalid(&format!("{at}.mountPath"), &mount["mountPath"], "must be unique"));
        }
        paths.push(path);
        for field in ["subPath", "subPathExpr"] {
            if let Some(why) = leaves(text(mount, &format!("/{field}"))) {
                causes.push(Cause::invalid(&format!("{at}.{field}"), &mount[field], why));
            }
        }
        if !text(mount, "/subPath").is_empty() && !text(mount, "/subPathExpr").is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            causes.push(Cause::invalid(&format!("{at}.subPathExpr"), &mount["subPathExpr"], why));
        }
    }
}

fn resources(container: &Value, at: &str, causes: &mut Causes) {
    let milli = |amount: &Value| {
        let written = amount.as_str().map_or_else(|| amount.to_string(), String::from);
        quantity::parse_milli(&written)
    };
    let resources = &container["resources"];
    for list in ["limits", "requests"] {
        for (resource, amount) in resources[list].as_object().into_iter().flatten() {
            let field = format!("{at}.resources.{list}[{resource}]");
            match milli(amount) {
                None => {
                    causes.push(Cause::invalid(&field, amount, "must be a quantity such as 500m or 128Mi"));
                }
                Some(amount_milli) if amount_milli < 0 => {
                    causes.push(Cause::invalid(&field, amount, "must be greater than or equal to 0"));
                }
                Some(_) => {}
            }
            if !is_qualified_name(resource) {
                causes.push(Cause::invalid(&field, &json!(resource), super::QUALIFIED_NAME));
            }
        }
    }
    for (resource, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][resource];
        if let (Some(request_milli), Some(limit_milli)) = (milli(request), milli(limit))
            && !limit.is_null()
            && request_milli > limit_milli
        {
            let why =
                format!("must be less than or equal to {resource} limit of {}", limit.as_str().unwrap_or(""));
            causes.push(Cause::invalid(&format!("{at}.resources.requests"), request, &why));
        }
    }
}

fn probe(probe: &Value, at: &str, may_need_several: bool, causes: &mut Causes) {
    handlers(probe, at, &["exec", "httpGet", "tcpSocket", "grpc"], causes);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        let least = if field == "initialDelaySeconds" { 0 } else { 1 };
        if probe[field].as_i64().is_some_and(|it| it < least) {
            let why = format!("must be greater than or equal to {least}");
            causes.push(Cause::invalid(&format!("{at}.{field}"), &probe[field], &why));
        }
    }
    if !may_need_several && probe["successThreshold"].as_i64().is_some_and(|it| it > 1) {
        causes.push(Cause::invalid(
            &format!("{at}.successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        ));
    }
}

fn handlers(holder: &Value, at: &str, kinds: &[&str], causes: &mut Causes) {
    let given: Vec<&&str> = kinds.iter().filter(|it| holder[**it].is_object()).collect();
    match given.as_slice() {
        [] => causes.push(Cause::required(at, "must specify a handler type")),
        [_] => {}
        [_, more, ..] => {
            causes
                .push(Cause::forbidden(&format!("{at}.{more}"), "may not specify more than 1 handler type"));
        }
    }
    if holder["exec"].is_object() && list(holder, "/exec/command").is_empty() {
        causes.push(Cause::required(&format!("{at}.exec.command"), ""));
    }
    for kind in ["httpGet", "tcpSocket", "grpc"] {
        if !holder[kind].is_object() {
            continue;
        }
        let port = &holder[kind]["port"];
        let fits = match port {
            Value::Number(number) => number.as_i64().is_some_and(|it| (1..=65535).contains(&it)),
            Value::String(name) => kind != "grpc" && is_port_name(name),
            _ => false,
        };
        if !fits {
            let why = if port.is_string() { PORT_NAME } else { PORT_NUMBER };
            causes.push(Cause::invalid(&format!("{at}.{kind}.port"), port, why));
        }
    }
}
