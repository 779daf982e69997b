//! What a new pod gets from its surroundings: an account with a token, a priority, limits, a runtime.

use kube_kinds::selector::LabelSelector;
use kube_kinds::{Failure, Kind, int, list, quantity, table, text};
use serde_json::{Map, Value, json};

use crate::{Objects, random_suffix};

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// As Kubernetes has it: renewed hourly, with time to notice.
const TOKEN_SECONDS: i64 = 3607;

fn kind(group: &str, name: &str) -> &'static Kind {
    table::of(group, name).expect("the kinds of admission are built in")
}

pub(super) fn complete(objects: &Objects, namespace: &str, pod: &mut Value) -> Result<(), Failure> {
    account(objects, namespace, pod)?;
    priority(objects, pod)?;
    runtime(objects, pod)?;
    tolerations(pod);
    limits(objects, namespace, pod);
    Ok(())
}

fn forbidden(pod: &Value, why: &str) -> Failure {
    Failure::forbidden(kind("", "Pod"), kube_kinds::name(pod), why)
}

fn containers(pod: &mut Value) -> impl Iterator<Item = &mut Map<String, Value>> {
    let spec = pod.get_mut("spec").and_then(Value::as_object_mut);
    spec.into_iter()
        .flat_map(|it| it.iter_mut())
        .filter(|(field, _)| ["containers", "initContainers"].contains(&field.as_str()))
        .flat_map(|(_, list)| list.as_array_mut().into_iter().flatten())
        .filter_map(Value::as_object_mut)
}

fn account(objects: &Objects, namespace: &str, pod: &mut Value) -> Result<(), Failure> {
    let named = match text(pod, "/spec/serviceAccountName") {
        "" => text(pod, "/spec/serviceAccount"),
        named => named,
    };
    let name = if named.is_empty() { "default" } else { named }.to_string();
    let found = objects.find(kind("", "ServiceAccount"), namespace, &name);
    if found.is_none() && name != "default" {
        let why =
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(forbidden(pod, &why));
    }
    // The account `default` comes with the namespace, a moment later.
    let found = found.unwrap_or_default();
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    spec.insert("serviceAccountName".into(), json!(name));
    spec.insert("serviceAccount".into(), json!(name));
    if spec.get("imagePullSecrets").is_none_or(|it| it.as_array().is_none_or(Vec::is_empty))
        && let Some(secrets) = found.get("imagePullSecrets").filter(|it| it.is_array())
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let wanted = match spec.get("automountServiceAccountToken").and_then(Value::as_bool) {
        Some(wanted) => wanted,
        None => found["automountServiceAccountToken"] != false,
    };
    if !wanted {
        return Ok(());
    }
    let volume = format!("kube-api-access-{}", random_suffix());
    let mut mounted = false;
    for container in containers(pod) {
        let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
        let Some(mounts) = mounts.as_array_mut() else { continue };
        if !mounts.iter().any(|it| it["mountPath"] == TOKEN_PATH) {
            mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
            mounted = true;
        }
    }
    if mounted && let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}}));
        }
    }
    Ok(())
}

fn priority(objects: &Objects, pod: &mut Value) -> Result<(), Failure> {
    let class = text(pod, "/spec/priorityClassName").to_string();
    let classes = kind("scheduling.k8s.io", "PriorityClass");
    let (value, preemption, name) = match class.as_str() {
        "system-cluster-critical" => (2_000_000_000, "PreemptLowerPriority".to_string(), class.clone()),
        "system-node-critical" => (2_000_001_000, "PreemptLowerPriority".to_string(), class.clone()),
        "" => {
            let all = objects.list(classes, None, &LabelSelector::default());
            let default =
                all.iter().filter(|it| it["globalDefault"] == true).min_by_key(|it| int(it, "/value"));
            match default {
                Some(it) => (
                    int(it, "/value"),
                    text(it, "/preemptionPolicy").into(),
                    kube_kinds::name(it).to_string(),
                ),
                None => (0, "PreemptLowerPriority".to_string(), String::new()),
            }
        }
        named => match objects.find(classes, "", named) {
            Some(it) => (int(&it, "/value"), text(&it, "/preemptionPolicy").into(), named.to_string()),
            None => return Err(forbidden(pod, &format!("no PriorityClass with name {named} was found"))),
        },
    };
    if let Some(given) = pod["spec"]["priority"].as_i64().filter(|it| *it != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        );
        return Err(forbidden(pod, &why));
    }
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("priority".into(), json!(value));
        if !name.is_empty() {
            spec.insert("priorityClassName".into(), json!(name));
        }
        if spec.get("preemptionPolicy").is_none_or(Value::is_null) {
            let policy = if preemption.is_empty() { "PreemptLowerPriority" } else { &preemption };
            spec.insert("preemptionPolicy".into(), json!(policy));
        }
    }
    Ok(())
}

fn runtime(objects: &Objects, pod: &mut Value) -> Result<(), Failure> {
    let class = text(pod, "/spec/runtimeClassName").to_string();
    if class.is_empty() {
        return Ok(());
    }
    let Some(found) = objects.find(kind("node.k8s.io", "RuntimeClass"), "", &class) else {
        return Err(forbidden(pod, &format!("pod rejected: RuntimeClass {class:?} not found")));
    };
    let overhead = &found["overhead"]["podFixed"];
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if overhead.is_object() {
        if spec.get("overhead").is_some_and(|it| it.is_object() && it != overhead) {
            return Err(forbidden(
                pod,
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ));
        }
        spec.insert("overhead".into(), overhead.clone());
    }
    for (label, value) in found["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
        if selector.get(label).is_some_and(|it| it != value) {
            return Err(forbidden(pod, "pod rejected: conflict: runtimeClass.scheduling.nodeSelector"));
        }
        selector[label] = value.clone();
    }
    if let Some(more) = found["scheduling"]["tolerations"].as_array() {
        let all = spec.entry("tolerations").or_insert_with(|| json!([]));
        if let Some(all) = all.as_array_mut() {
            all.extend(more.iter().filter(|it| !all.contains(it)).cloned().collect::<Vec<_>>());
        }
    }
    Ok(())
}

/// A node that goes silent keeps its pods for five minutes.
fn tolerations(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let all = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(all) = all.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = all.iter().any(|it| {
            (it["key"] == key || text(it, "/key").is_empty())
                && ["", "NoExecute"].contains(&text(it, "/effect"))
        });
        if !tolerated {
            all.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
}

/// The limits of the namespace for containers that name none.
fn limits(objects: &Objects, namespace: &str, pod: &mut Value) {
    let ranges = objects.list(kind("", "LimitRange"), Some(namespace), &LabelSelector::default());
    let mut told = Vec::new();
    for limit in ranges.iter().flat_map(|it| list(it, "/spec/limits")).filter(|it| it["type"] == "Container")
    {
        for container in containers(pod) {
            let name = container.get("name").and_then(Value::as_str).unwrap_or("").to_string();
            let resources = container.entry("resources").or_insert_with(|| json!({}));
            for (from, to) in [("defaultRequest", "requests"), ("default", "limits")] {
                for (resource, amount) in limit[from].as_object().into_iter().flatten() {
                    if resources[to][resource].is_null() {
                        resources[to][resource] = amount.clone();
                        told.push(format!("{resource} {} for container {name}", to.trim_end_matches('s')));
                    }
                }
            }
        }
    }
    if !told.is_empty() && pod["metadata"].is_object() {
        let annotations = &mut pod["metadata"]["annotations"];
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations["kubernetes.io/limit-ranger"] =
            json!(format!("LimitRanger plugin set: {}", told.join("; ")));
    }
}

/// What of the pod is outside of the limits of its namespace.
pub(super) fn outside_limits(objects: &Objects, namespace: &str, pod: &Value) -> Vec<String> {
    let ranges = objects.list(kind("", "LimitRange"), Some(namespace), &LabelSelector::default());
    let mut wrong = Vec::new();
    for limit in ranges.iter().flat_map(|it| list(it, "/spec/limits")) {
        match text(limit, "/type") {
            "Container" => {
                for field in ["containers", "initContainers"] {
                    for container in list(&pod["spec"], &format!("/{field}")) {
                        let of =
                            |field: &str, resource: &str| milli(&container["resources"][field][resource]);
                        compare("Container", limit, &of, &mut wrong);
                    }
                }
            }
            "Pod" => {
                let (requests, limits) = (
                    kube_kinds::quota::pod_amounts(pod, "requests"),
                    kube_kinds::quota::pod_amounts(pod, "limits"),
                );
                let of = |field: &str, resource: &str| {
                    if field == "requests" { &requests } else { &limits }.get(resource).copied()
                };
                compare("Pod", limit, &of, &mut wrong);
            }
            _ => {}
        }
    }
    wrong
}

fn milli(amount: &Value) -> Option<i128> {
    match amount {
        Value::String(text) => quantity::parse_milli(text),
        Value::Number(number) => quantity::parse_milli(&number.to_string()),
        _ => None,
    }
}

fn compare(what: &str, limit: &Value, of: &dyn Fn(&str, &str) -> Option<i128>, wrong: &mut Vec<String>) {
    let written = |amount: i128| kube_kinds::quota::written(amount, "");
    for (resource, bound) in limit["min"].as_object().into_iter().flatten() {
        let Some(least) = milli(bound) else { continue };
        let bound = bound.as_str().unwrap_or("");
        match (of("requests", resource), of("limits", resource)) {
            (None, None) => wrong
                .push(format!("minimum {resource} usage per {what} is {bound}.  No request is specified")),
            (Some(it), _) if it < least => {
                wrong.push(format!(
                    "minimum {resource} usage per {what} is {bound}, but request is {}",
                    written(it)
                ));
            }
            (_, Some(it)) if it < least => {
                wrong.push(format!(
                    "minimum {resource} usage per {what} is {bound}, but limit is {}",
                    written(it)
                ));
            }
            _ => {}
        }
    }
    for (resource, bound) in limit["max"].as_object().into_iter().flatten() {
        let Some(most) = milli(bound) else { continue };
        let bound = bound.as_str().unwrap_or("");
        match (of("limits", resource), of("requests", resource)) {
            (None, _) => {
                wrong.push(format!("maximum {resource} usage per {what} is {bound}.  No limit is specified"))
            }
            (Some(it), _) if it > most => {
                wrong.push(format!(
                    "maximum {resource} usage per {what} is {bound}, but limit is {}",
                    written(it)
                ));
            }
            (_, Some(it)) if it > most => {
                wrong.push(format!(
                    "maximum {resource} usage per {what} is {bound}, but request is {}",
                    written(it)
                ));
            }
            _ => {}
        }
    }
    for (resource, ratio) in limit["maxLimitRequestRatio"].as_object().into_iter().flatten() {
        let (Some(most), Some(limit), Some(request)) =
            (milli(ratio), of("limits", resource), of("requests", resource))
        else {
            continue;
        };
        if request > 0 && limit * 1000 > most * request {
            wrong.push(format!(
                "{resource} max limit to request ratio per {what} is {}, but provided ratio is {:.6}",
                ratio.as_str().unwrap_or(""),
                limit as f64 / request as f64
            ));
        }
    }
}
