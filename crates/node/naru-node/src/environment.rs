//! A container's environment and command line. Pure: ConfigMaps and Secrets come in as a lookup.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use serde_json::Value;

use crate::image::ImageInfo;
use crate::pod::{DesiredContainer, DesiredPod, EnvValue};
use crate::quantity;

/// What a container may ask about where it runs.
pub struct Place<'a> {
    pub object: &'a Value,
    pub pod: &'a DesiredPod,
    pub pod_ip: &'a str,
    pub host_ip: &'a str,
    pub allocatable: Allocatable,
    /// Services of the pod's namespace, and `kubernetes` of `default`.
    pub services: &'a [Arc<Value>],
}

/// What pods may use of the machine: the limit of a container that has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allocatable {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

/// ConfigMaps and Secrets by (is secret, name); `None` means that there is none of that name.
pub type Sources = BTreeMap<(bool, String), Option<Value>>;

/// Names that [`environment`] will look up.
pub fn needed_sources(container: &DesiredContainer) -> Vec<(bool, String)> {
    let from = container.env_from.iter().map(|source| (source.secret, source.name.clone()));
    let env = container.env.iter().filter_map(|(_, value)| match value {
        EnvValue::ConfigMap { name, .. } => Some((false, name.clone())),
        EnvValue::Secret { name, .. } => Some((true, name.clone())),
        _ => None,
    });
    from.chain(env).collect()
}

/// Text of a key of a ConfigMap or Secret; binary values come back as they are.
pub fn key_of(secret: bool, object: &Value, key: &str) -> Option<Vec<u8>> {
    let decode = |value: &Value| base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok();
    if secret {
        return object["data"].get(key).and_then(decode);
    }
    match object["data"].get(key).and_then(Value::as_str) {
        Some(text) => Some(text.as_bytes().to_owned()),
        None => object["binaryData"].get(key).and_then(decode),
    }
}

/// All keys of a ConfigMap or Secret.
pub fn keys_of(object: &Value) -> Vec<String> {
    let keys = |field: &str| object[field].as_object().into_iter().flatten().map(|(key, _)| key.clone());
    keys("data").chain(keys("binaryData")).collect()
}

fn kind(secret: bool) -> &'static str {
    if secret { "secret" } else { "configmap" }
}

/// The image's variables, then those of services, then `envFrom`, then `env`; later wins, `$(NAME)` sees what
/// came before.
pub fn environment(
    container: &DesiredContainer,
    image: &ImageInfo,
    sources: &Sources,
    place: &Place,
) -> Result<Vec<(String, String)>, String> {
    let mut list: Vec<(String, String)> = Vec::new();
    let mut put = |name: String, value: String| match list.iter_mut().find(|(key, _)| *key == name) {
        Some(entry) => entry.1 = value,
        None => list.push((name, value)),
    };
    for entry in &image.env {
        if let Some((name, value)) = entry.split_once('=') {
            put(name.to_owned(), value.to_owned());
        }
    }
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in services(place) {
        own.insert(name.clone(), value.clone());
        put(name, value);
    }
    for from in &container.env_from {
        match sources.get(&(from.secret, from.name.clone())).and_then(Option::as_ref) {
            Some(object) => {
                for key in keys_of(object) {
                    let value = key_of(from.secret, object, &key).unwrap_or_default();
                    let value = String::from_utf8_lossy(&value).into_owned();
                    own.insert(format!("{}{key}", from.prefix), value.clone());
                    put(format!("{}{key}", from.prefix), value);
                }
            }
            None if from.optional => {}
            None => return Err(format!("{} \"{}\" not found", kind(from.secret), from.name)),
        }
    }
    for (name, value) in &container.env {
        let value = match value {
            EnvValue::Text(text) => Some(expand(text, &own)),
            EnvValue::ConfigMap { name, key, optional } => reference(sources, false, name, key, *optional)?,
            EnvValue::Secret { name, key, optional } => reference(sources, true, name, key, *optional)?,
            EnvValue::Field(_) | EnvValue::Resource { .. } => Some(downward(value, Some(container), place)?),
        };
        if let Some(value) = value {
            own.insert(name.clone(), value.clone());
            put(name.clone(), value);
        }
    }
    Ok(list)
}

fn reference(
    sources: &Sources,
    secret: bool,
    name: &str,
    key: &str,
    optional: bool,
) -> Result<Option<String>, String> {
    let object = sources.get(&(secret, name.to_owned())).and_then(Option::as_ref);
    match object.map(|object| key_of(secret, object, key)) {
        Some(Some(value)) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        _ if optional => Ok(None),
        None => Err(format!("{} \"{name}\" not found", kind(secret))),
        Some(None) => Err(format!("couldn't find key {key} in {} {name}", kind(secret))),
    }
}

/// A field of the pod or a resource of a container. `own` is the container that asks; a volume is nobody's.
pub fn downward(value: &EnvValue, own: Option<&DesiredContainer>, place: &Place) -> Result<String, String> {
    match value {
        EnvValue::Field(path) => field(path, place),
        EnvValue::Resource { container, resource, divisor } => {
            let of = match container.as_str() {
                "" => own,
                name => place.pod.container(name),
            };
            let of = of.ok_or_else(|| format!("container {container} not found"))?;
            resource_of(of, place.allocatable, resource, divisor)
        }
        _ => Err("this source is not of the downward API; this is a bug in Naru".into()),
    }
}

fn field(path: &str, place: &Place) -> Result<String, String> {
    let metadata = &place.object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(rest) = path.strip_prefix("metadata.") {
        for kind in ["labels", "annotations"] {
            if let Some(key) =
                rest.strip_prefix(kind).and_then(|it| it.strip_prefix("['")?.strip_suffix("']"))
            {
                return Ok(text(&metadata[kind][key]));
            }
        }
    }
    Ok(match path {
        "metadata.name" => text(&metadata["name"]),
        "metadata.namespace" => text(&metadata["namespace"]),
        "metadata.uid" => text(&metadata["uid"]),
        "metadata.labels" => lines_of(&metadata["labels"]),
        "metadata.annotations" => lines_of(&metadata["annotations"]),
        "spec.nodeName" => text(&place.object["spec"]["nodeName"]),
        "spec.serviceAccountName" => text(&place.object["spec"]["serviceAccountName"]),
        "status.podIP" | "status.podIPs" => place.pod_ip.to_owned(),
        "status.hostIP" | "status.hostIPs" => place.host_ip.to_owned(),
        _ => return Err(format!("fieldPath {path} is not supported")),
    })
}

/// One `key="value"` per line, as the downward API writes maps.
fn lines_of(map: &Value) -> String {
    let sorted: BTreeMap<&String, &Value> = map.as_object().into_iter().flatten().collect();
    let lines: Vec<String> = sorted
        .into_iter()
        .map(|(key, value)| format!("{key}={}", Value::from(value.as_str().unwrap_or_default())))
        .collect();
    lines.join("\n")
}

/// The variables by which programs find services without DNS.
fn services(place: &Place) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for service in place.services {
        let (metadata, spec) = (&service["metadata"], &service["spec"]);
        let name = metadata["name"].as_str().unwrap_or_default();
        let api = name == "kubernetes" && metadata["namespace"] == "default";
        let linked = place.pod.service_links && metadata["namespace"] == place.pod.namespace.as_str();
        let address = spec["clusterIP"].as_str().unwrap_or_default();
        let ports: Vec<&Value> = spec["ports"].as_array().into_iter().flatten().collect();
        if !(api || linked) || address.is_empty() || address == "None" || ports.is_empty() {
            continue;
        }
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let upper = |name: &str| name.to_ascii_uppercase().replace('-', "_");
        let prefix = upper(name);
        let mut put = |suffix: &str, value: String| found.push((format!("{prefix}_{suffix}"), value));
        let number = |port: &Value| port["port"].as_u64().unwrap_or_default();
        put("SERVICE_HOST", address.to_owned());
        put("SERVICE_PORT", number(ports[0]).to_string());
        for port in &ports {
            if let Some(name) = port["name"].as_str().filter(|it| !it.is_empty()) {
                put(&format!("SERVICE_PORT_{}", upper(name)), number(port).to_string());
            }
        }
        for (at, port) in ports.iter().enumerate() {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            let (lower, number) = (protocol.to_ascii_lowercase(), number(port));
            if at == 0 {
                put("PORT", format!("{lower}://{host}:{number}"));
            }
            let begin = format!("PORT_{number}_{protocol}");
            put(&begin, format!("{lower}://{host}:{number}"));
            put(&format!("{begin}_PROTO"), lower);
            put(&format!("{begin}_PORT"), number.to_string());
            put(&format!("{begin}_ADDR"), address.to_owned());
        }
    }
    found
}

fn resource_of(
    container: &DesiredContainer,
    allocatable: Allocatable,
    resource: &str,
    divisor: &str,
) -> Result<String, String> {
    let own = &container.resources;
    let thousand = |bytes: u64| bytes.saturating_mul(1000);
    // Without a limit the machine is the limit.
    let milli = match resource {
        "limits.cpu" => own.cpu_millis_max.unwrap_or(allocatable.cpu_millis),
        "requests.cpu" => own.cpu_millis_request.unwrap_or(0),
        "limits.memory" => thousand(own.memory_bytes_max.unwrap_or(allocatable.memory_bytes)),
        "requests.memory" => thousand(own.memory_bytes_request.unwrap_or(0)),
        "limits.ephemeral-storage" => thousand(own.disk_bytes_max.unwrap_or(allocatable.disk_bytes)),
        "requests.ephemeral-storage" => thousand(own.disk_bytes_request.unwrap_or(0)),
        _ => return Err(format!("resourceFieldRef {resource} is not supported")),
    };
    let divisor = quantity::parse_milli(divisor).filter(|it| *it > 0).ok_or("divisor is not a quantity")?;
    Ok(milli.div_ceil(divisor).to_string())
}

/// `$(NAME)` becomes the value if there is one and stays otherwise; `$$` is one dollar sign.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("$$") {
            out.push('$');
            rest = &rest[2..];
        } else if let Some(end) = rest.strip_prefix("$(").and_then(|inner| inner.find(')')) {
            let name = &rest[2..2 + end];
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&rest[..end + 3]),
            }
            rest = &rest[end + 3..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

/// A subPathExpr with the container's variables in it; one that is not there is an error, as everywhere.
pub fn expand_path(text: &str, environment: &[(String, String)]) -> Result<String, String> {
    let variables: BTreeMap<String, String> = environment.iter().cloned().collect();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        rest = &rest[at..];
        if rest.starts_with("$$") {
            rest = &rest[2..];
        } else if let Some(end) = rest.strip_prefix("$(").and_then(|inner| inner.find(')')) {
            let name = &rest[2..2 + end];
            if !variables.contains_key(name) {
                return Err(format!("missing value for \"{name}\" in subPathExpr \"{text}\""));
            }
            rest = &rest[end + 3..];
        } else {
            rest = &rest[1..];
        }
    }
    Ok(expand(text, &variables))
}

/// `command` replaces the image's entrypoint and its arguments; `args` only the arguments.
pub fn command_line(
    container: &DesiredContainer,
    image: &ImageInfo,
    environment: &[(String, String)],
) -> Vec<String> {
    let variables: BTreeMap<String, String> = environment.iter().cloned().collect();
    let (entrypoint, arguments): (&[String], &[String]) =
        match (container.command.is_empty(), container.args.is_empty()) {
            (false, _) => (&container.command, &container.args),
            (true, false) => (&image.entrypoint, &container.args),
            (true, true) => (&image.entrypoint, &image.cmd),
        };
    let expanded = |list: &[String], from_pod: bool| -> Vec<String> {
        list.iter().map(|text| if from_pod { expand(text, &variables) } else { text.clone() }).collect()
    };
    let mut line = expanded(entrypoint, !container.command.is_empty());
    line.extend(expanded(arguments, !container.command.is_empty() || !container.args.is_empty()));
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::lower_pod;

    fn check(container: Value, sources: &[(bool, &str, Value)]) -> Result<Vec<String>, String> {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a/b": "l"}},
                         "spec": {"nodeName": "box", "containers": [container.clone()]}});
        let lowered = lower_pod(&pod);
        let image = ImageInfo { env: vec!["PATH=/bin".into(), "A=image".into()], ..ImageInfo::default() };
        let sources = sources
            .iter()
            .map(|(secret, name, it)| ((*secret, name.to_string()), Some(it.clone())))
            .collect();
        let services = [
            json!({"metadata": {"name": "db-main", "namespace": "n"},
                   "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "sql", "port": 5432}]}}),
            json!({"metadata": {"name": "other", "namespace": "m"},
                   "spec": {"clusterIP": "10.96.0.8", "ports": [{"port": 1}]}}),
        ];
        let services: Vec<Arc<Value>> =
            services.into_iter().filter(|_| container["name"] == "linked").map(Arc::new).collect();
        let place = Place {
            object: &pod,
            pod: &lowered,
            pod_ip: "10.88.0.5",
            host_ip: "10.88.0.1",
            allocatable: Allocatable { cpu_millis: 2000, memory_bytes: 1 << 30, disk_bytes: 1 << 40 },
            services: &services,
        };
        environment(&lowered.containers[0], &image, &sources, &place)
            .map(|list| list.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn later_sources_win_and_references_see_what_came_before() {
        let container = json!({"name": "c", "image": "i",
        "envFrom": [{"prefix": "M_", "configMapRef": {"name": "m"}}],
        "env": [
            {"name": "A", "value": "pod"}, {"name": "B", "value": "$(A)-$(M_k)-$(NOPE)-$$(A)"},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "O", "valueFrom": {"secretKeyRef": {"name": "none", "key": "x", "optional": true}}},
        ]});
        let sources =
            [(false, "m", json!({"data": {"k": "v"}})), (true, "s", json!({"data": {"token": "c2VjcmV0"}}))];
        assert_eq!(
            check(container, &sources).unwrap(),
            [
                "PATH=/bin",
                "A=pod",
                "M_k=v",
                "B=pod-v-$(NOPE)-$(A)",
                "S=secret",
                "IP=10.88.0.5",
                "L=l",
                "CPU=2"
            ]
        );
    }

    #[test]
    fn services_of_the_namespace_are_found_without_dns() {
        let list = check(
            json!({"name": "linked", "image": "i", "env": [{"name": "URL", "value": "$(DB_MAIN_PORT)/x"}]}),
            &[],
        )
        .unwrap();
        for line in [
            "DB_MAIN_SERVICE_HOST=10.96.0.7",
            "DB_MAIN_SERVICE_PORT=5432",
            "DB_MAIN_SERVICE_PORT_SQL=5432",
            "DB_MAIN_PORT=tcp://10.96.0.7:5432",
            "DB_MAIN_PORT_5432_TCP=tcp://10.96.0.7:5432",
            "DB_MAIN_PORT_5432_TCP_PROTO=tcp",
            "DB_MAIN_PORT_5432_TCP_PORT=5432",
            "DB_MAIN_PORT_5432_TCP_ADDR=10.96.0.7",
            "URL=tcp://10.96.0.7:5432/x",
        ] {
            assert!(list.iter().any(|it| it == line), "{line} is not in {list:?}");
        }
        assert!(!list.iter().any(|it| it.starts_with("OTHER")));
    }

    #[test]
    fn a_path_with_an_unknown_variable_is_refused() {
        let variables = [("A".to_owned(), "x".to_owned())];
        assert_eq!(expand_path("$(A)/b", &variables), Ok("x/b".into()));
        assert_eq!(
            expand_path("$(B)", &variables),
            Err("missing value for \"B\" in subPathExpr \"$(B)\"".into())
        );
    }

    #[test]
    fn a_missing_source_is_named() {
        let at = |from: Value| {
            check(
                json!({"name": "c", "image": "i", "env": [{"name": "X", "valueFrom": from}]}),
                &[(false, "m", json!({"data": {}}))],
            )
        };
        assert_eq!(
            at(json!({"secretKeyRef": {"name": "s", "key": "k"}})).unwrap_err(),
            "secret \"s\" not found"
        );
        assert_eq!(
            at(json!({"configMapKeyRef": {"name": "m", "key": "k"}})).unwrap_err(),
            "couldn't find key k in configmap m"
        );
    }

    #[test]
    fn command_replaces_the_entrypoint_and_args_the_arguments() {
        let image =
            ImageInfo { entrypoint: vec!["/run".into()], cmd: vec!["$(A)".into()], ..ImageInfo::default() };
        let environment = [("A".to_owned(), "x".to_owned())];
        for (container, expect) in [
            (json!({}), vec!["/run", "$(A)"]),
            (json!({"args": ["$(A)"]}), vec!["/run", "x"]),
            (json!({"command": ["/c"]}), vec!["/c"]),
            (json!({"command": ["/c"], "args": ["y"]}), vec!["/c", "y"]),
        ] {
            let pod = lower_pod(&json!({"metadata": {}, "spec": {"containers": [container]}}));
            assert_eq!(command_line(&pod.containers[0], &image, &environment), expect);
        }
    }
}
