//! What Kubernetes fills in when a field is left out.
//!
//! Applied at every write of the object, before validation and before two states are compared, so
//! that a client which sends the short form and one which sends the long form mean the same.

use serde_json::{Map, Value, json};

pub fn nothing(_: &mut Value) {}

/// Sets a field that is absent or null.
pub(crate) fn set(object: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    match object.get(field) {
        None | Some(Value::Null) => {
            object.insert(field.to_string(), value.into());
        }
        Some(_) => {}
    }
}

pub(crate) fn spec_of(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object.as_object_mut()?.entry("spec").or_insert_with(|| json!({})).as_object_mut()
}

pub fn pod(object: &mut Value) {
    if let Some(spec) = spec_of(object) {
        pod_spec(spec, "Always");
    }
    let class = qos_class(&object["spec"]);
    if let Some(status) =
        object.as_object_mut().and_then(|it| it.entry("status").or_insert_with(|| json!({})).as_object_mut())
    {
        set(status, "phase", "Pending");
        set(status, "qosClass", class);
    }
}

fn pod_spec(spec: &mut Map<String, Value>, restart_policy: &str) {
    set(spec, "restartPolicy", restart_policy);
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", json!({}));
    set(spec, "enableServiceLinks", true);
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            self::container(container);
        }
    }
    for volume in items(spec, "volumes") {
        for (kind, field) in
            [("configMap", "defaultMode"), ("secret", "defaultMode"), ("projected", "defaultMode")]
        {
            if let Some(source) = volume.get_mut(kind).and_then(Value::as_object_mut) {
                set(source, field, 420);
            }
        }
        if let Some(source) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
            set(source, "type", "");
        }
        let named_only = volume.len() == 1 && volume.contains_key("name");
        if named_only {
            volume.insert("emptyDir".into(), json!({}));
        }
    }
}

fn container(container: &mut Map<String, Value>) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let policy = match has_floating_tag(image) {
        true => "Always",
        false => "IfNotPresent",
    };
    set(container, "imagePullPolicy", policy);
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut)
        && let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned()
    {
        let requests = resources.entry("requests").or_insert_with(|| json!({}));
        if let Some(requests) = requests.as_object_mut() {
            for (resource, amount) in limits {
                set(requests, &resource, amount);
            }
        }
    }
    for port in items(container, "ports") {
        set(port, "protocol", "TCP");
    }
    for env in items(container, "env") {
        if let Some(field) = env.get_mut("valueFrom").and_then(|it| it.get_mut("fieldRef"))
            && let Some(field) = field.as_object_mut()
        {
            set(field, "apiVersion", "v1");
        }
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(kind).and_then(Value::as_object_mut) else { continue };
        set(probe, "timeoutSeconds", 1);
        set(probe, "periodSeconds", 10);
        set(probe, "successThreshold", 1);
        set(probe, "failureThreshold", 3);
        if let Some(http) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            set(http, "path", "/");
            set(http, "scheme", "HTTP");
        }
    }
}

/// An image that is named without a tag, or as `latest`, and without a digest.
fn has_floating_tag(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    match image.rsplit('/').next().and_then(|name| name.split_once(':')) {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

pub(crate) fn items<'a>(
    object: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let containers: Vec<&Value> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| spec[*list].as_array().into_iter().flatten())
        .collect();
    let resources = |field: &str, resource: &str| {
        containers.iter().filter(|it| !it["resources"][field][resource].is_null()).count()
    };
    let names = ["cpu", "memory"];
    if names.iter().all(|it| resources("limits", it) == 0 && resources("requests", it) == 0) {
        return "BestEffort";
    }
    let guaranteed = containers.iter().all(|it| {
        names.iter().all(|name| {
            let limit = &it["resources"]["limits"][*name];
            !limit.is_null() && *limit == it["resources"]["requests"][*name]
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

pub(crate) fn template(spec: &mut Map<String, Value>, restart_policy: &str) {
    if let Some(template) = spec.get_mut("template").and_then(Value::as_object_mut) {
        template.entry("metadata").or_insert_with(|| json!({}));
        if let Some(pod) = template.entry("spec").or_insert_with(|| json!({})).as_object_mut() {
            pod_spec(pod, restart_policy);
        }
    }
}

pub fn deployment(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    set(spec, "strategy", json!({}));
    if let Some(strategy) = spec.get_mut("strategy").and_then(Value::as_object_mut) {
        set(strategy, "type", "RollingUpdate");
        if strategy["type"] == "RollingUpdate" {
            set(strategy, "rollingUpdate", json!({}));
            if let Some(rolling) = strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut) {
                set(rolling, "maxUnavailable", "25%");
                set(rolling, "maxSurge", "25%");
            }
        }
    }
    template(spec, "Always");
}

pub fn replica_set(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "replicas", 1);
    template(spec, "Always");
    set_initial_status(object, json!({"replicas": 0}));
}

pub fn job(object: &mut Value) {
    let uid = crate::uid(object).to_string();
    let name = crate::name(object).to_string();
    let Some(spec) = spec_of(object) else { return };
    set(spec, "parallelism", 1);
    if spec["parallelism"] == 1 {
        // With several workers "no completions" means a work queue.
        set(spec, "completions", 1);
    }
    // Where each index has its own limit, the job as a whole has none.
    let per_index = spec.get("backoffLimitPerIndex").is_some_and(|it| !it.is_null());
    set(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    let policy = spec.get("podFailurePolicy").is_some_and(|it| !it.is_null());
    set(spec, "podReplacementPolicy", if policy { "Failed" } else { "TerminatingOrFailed" });
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    template(spec, "Never");
    let manual = spec.get("manualSelector") == Some(&Value::Bool(true));
    if !manual && !uid.is_empty() {
        set(spec, "selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
        if let Some(template) = spec.get_mut("template") {
            let labels = [
                ("batch.kubernetes.io/controller-uid", &uid),
                ("batch.kubernetes.io/job-name", &name),
                ("controller-uid", &uid),
                ("job-name", &name),
            ];
            for (label, value) in labels {
                if template["metadata"]["labels"][label].is_null() {
                    template["metadata"]["labels"][label] = json!(value);
                }
            }
        }
    }
}

pub fn service(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10_800}}));
    } else {
        spec.remove("sessionAffinityConfig");
    }
    if spec["type"] != "ExternalName" {
        set(spec, "internalTrafficPolicy", "Cluster");
        set(spec, "ipFamilies", json!(["IPv4"]));
        set(spec, "ipFamilyPolicy", "SingleStack");
    }
    if spec["type"] == "NodePort" || spec["type"] == "LoadBalancer" {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if spec["type"] == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    for port in items(spec, "ports") {
        set(port, "protocol", "TCP");
        let number = port.get("port").cloned().unwrap_or(Value::Null);
        set(port, "targetPort", number);
    }
    set_initial_status(object, json!({"loadBalancer": {}}));
}

pub fn namespace(object: &mut Value) {
    let name = crate::name(object).to_string();
    if !name.is_empty() {
        let labels = &mut object["metadata"]["labels"];
        labels["kubernetes.io/metadata.name"] = json!(name);
    }
    if let Some(spec) = spec_of(object) {
        set(spec, "finalizers", json!(["kubernetes"]));
    }
    set_initial_status(object, json!({"phase": "Active"}));
}

pub fn secret(object: &mut Value) {
    let Some(secret) = object.as_object_mut() else { return };
    set(secret, "type", "Opaque");
    if let Some(Value::Object(strings)) = secret.remove("stringData") {
        let data = secret.entry("data").or_insert_with(|| json!({}));
        for (key, value) in strings {
            data[key] = Value::String(base64(value.as_str().unwrap_or("").as_bytes()));
        }
    }
}

pub fn custom_resource_definition(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "conversion", json!({"strategy": "None"}));
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or("").to_string();
        set(names, "singular", kind.to_lowercase());
        set(names, "listKind", format!("{kind}List"));
    }
}

pub fn http_route(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    for parent in items(spec, "parentRefs") {
        set(parent, "group", "gateway.networking.k8s.io");
        set(parent, "kind", "Gateway");
    }
    for rule in items(spec, "rules") {
        set(rule, "matches", json!([{}]));
        for it in items(rule, "matches") {
            set(it, "path", json!({}));
            if let Some(path) = it.get_mut("path").and_then(Value::as_object_mut) {
                set(path, "type", "PathPrefix");
                set(path, "value", "/");
            }
        }
        for backend in items(rule, "backendRefs") {
            set(backend, "group", "");
            set(backend, "kind", "Service");
            set(backend, "weight", 1);
        }
    }
}

pub fn gateway(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    for listener in items(spec, "listeners") {
        set(listener, "allowedRoutes", json!({"namespaces": {"from": "Same"}}));
    }
}

pub(crate) fn set_initial_status(object: &mut Value, status: Value) {
    if let Some(object) = object.as_object_mut() {
        set(object, "status", status);
    }
}

/// Standard base64. Twenty lines, for one field, instead of a dependency of this crate.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().enumerate().fold(0u32, |word, (at, byte)| word | u32::from(*byte) << (16 - 8 * at));
        for position in 0..4 {
            match position <= chunk.len() {
                true => text.push(LETTERS[(word >> (18 - 6 * position)) as usize & 63] as char),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_deployment_becomes_the_long_form() {
        let mut object = json!({"spec": {"template": {"spec": {"containers": [
            {"name": "web", "image": "shop:1", "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}}},
            {"name": "side", "image": "reg:5000/side"}]}}}});
        deployment(&mut object);
        let spec = &object["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(spec["strategy"]["rollingUpdate"]["maxSurge"], "25%");
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(pod["containers"][1]["imagePullPolicy"], "Always");
        assert_eq!(pod["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"]["path"], "/");
        let once = object.clone();
        deployment(&mut object);
        assert_eq!(object, once, "defaults applied twice change nothing");
    }

    #[test]
    fn string_data_of_a_secret_becomes_data() {
        for (plain, encoded) in
            [("", ""), ("a", "YQ=="), ("ab", "YWI="), ("abc", "YWJj"), ("hello", "aGVsbG8=")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
