//! A container's environment and command line. Pure: ConfigMaps and Secrets come in as a lookup.

use std::collections::BTreeMap;

use base64::Engine;
use serde_json::Value;

use crate::image::ImageInfo;
use crate::pod::{DesiredContainer, EnvValue};
use crate::quantity;

/// What a container may ask about where it runs.
pub struct Place<'a> {
    pub pod: &'a Value,
    pub pod_ip: &'a str,
    pub host_ip: &'a str,
    pub cpus: u64,
    pub memory_bytes: u64,
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

/// The image's variables, then `envFrom`, then `env`; later wins, `$(NAME)` sees what came before.
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
            EnvValue::Field(path) => Some(field(path, place)?),
            EnvValue::Resource { resource, divisor } => {
                Some(resource_of(container, place, resource, divisor)?)
            }
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

fn field(path: &str, place: &Place) -> Result<String, String> {
    let metadata = &place.pod["metadata"];
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
        "spec.nodeName" => text(&place.pod["spec"]["nodeName"]),
        "spec.serviceAccountName" => text(&place.pod["spec"]["serviceAccountName"]),
        "status.podIP" | "status.podIPs" => place.pod_ip.to_owned(),
        "status.hostIP" | "status.hostIPs" => place.host_ip.to_owned(),
        _ => return Err(format!("fieldPath {path} is not supported")),
    })
}

fn resource_of(
    container: &DesiredContainer,
    place: &Place,
    resource: &str,
    divisor: &str,
) -> Result<String, String> {
    // Without a limit the machine is the limit.
    let milli = match resource {
        "limits.cpu" => container.cpu_millis_max.unwrap_or(place.cpus * 1000),
        "requests.cpu" => container.cpu_millis_request.unwrap_or(0),
        "limits.memory" => container.memory_bytes_max.unwrap_or(place.memory_bytes).saturating_mul(1000),
        "requests.memory" => container.memory_bytes_request.unwrap_or(0).saturating_mul(1000),
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
                         "spec": {"nodeName": "box", "containers": [container]}});
        let lowered = lower_pod(&pod);
        let image = ImageInfo { env: vec!["PATH=/bin".into(), "A=image".into()], ..ImageInfo::default() };
        let sources = sources
            .iter()
            .map(|(secret, name, it)| ((*secret, name.to_string()), Some(it.clone())))
            .collect();
        let place =
            Place { pod: &pod, pod_ip: "10.88.0.5", host_ip: "10.88.0.1", cpus: 2, memory_bytes: 1 << 30 };
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
