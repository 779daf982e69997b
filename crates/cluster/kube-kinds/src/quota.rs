//! What an object uses of a quota, and what a quota counts. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Kind, list, quantity, text};

/// Resource to amount, in thousandths.
pub type Amounts = BTreeMap<String, i128>;

/// What one object of the kind uses. Empty when no quota counts it.
pub fn used_by(kind: &Kind, object: &Value) -> Amounts {
    let mut used = Amounts::new();
    let mut add = |resource: String, amount: i128| *used.entry(resource).or_insert(0) += amount;
    let finished = kind.is_pod() && ["Succeeded", "Failed"].contains(&text(object, "/status/phase"));
    let counted = match kind.group.is_empty() {
        true => format!("count/{}", kind.plural),
        false => format!("count/{}.{}", kind.plural, kind.group),
    };
    add(counted, 1000);
    if !kind.group.is_empty() {
        return used;
    }
    match kind.plural.as_str() {
        "pods" if finished => {}
        "pods" => {
            add("pods".into(), 1000);
            for (field, prefix) in [("requests", "requests."), ("limits", "limits.")] {
                for (resource, amount) in pod_amounts(object, field) {
                    if field == "requests"
                        && ["cpu", "memory", "ephemeral-storage"].contains(&resource.as_str())
                    {
                        add(resource.clone(), amount);
                    }
                    add(format!("{prefix}{resource}"), amount);
                }
            }
        }
        "services" => {
            add("services".into(), 1000);
            let ports = list(object, "/spec/ports").len() as i128 * 1000;
            match text(object, "/spec/type") {
                "NodePort" => add("services.nodeports".into(), ports),
                "LoadBalancer" => {
                    add("services.loadbalancers".into(), 1000);
                    if object["spec"]["allocateLoadBalancerNodePorts"] != false {
                        add("services.nodeports".into(), ports);
                    }
                }
                _ => {}
            }
        }
        "persistentvolumeclaims" => {
            let storage = milli(&object["spec"]["resources"]["requests"]["storage"]);
            add("persistentvolumeclaims".into(), 1000);
            add("requests.storage".into(), storage);
            let class = text(object, "/spec/storageClassName");
            if !class.is_empty() {
                let of_class = format!("{class}.storageclass.storage.k8s.io/");
                add(format!("{of_class}requests.storage"), storage);
                add(format!("{of_class}persistentvolumeclaims"), 1000);
            }
        }
        "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas" => {
            add(kind.plural.clone(), 1000);
        }
        _ => {}
    }
    used
}

fn milli(amount: &Value) -> i128 {
    match amount {
        Value::String(text) => quantity::parse_milli(text).unwrap_or(0),
        Value::Number(number) => quantity::parse_milli(&number.to_string()).unwrap_or(0),
        _ => 0,
    }
}

/// What a pod asks for: its containers together, or its largest init container if that is more;
/// sidecars stay, so they count with both.
pub fn pod_amounts(pod: &Value, field: &str) -> Amounts {
    let spec = &pod["spec"];
    let of = |container: &Value| -> Amounts {
        let amounts = container["resources"][field].as_object().into_iter().flatten();
        amounts.map(|(resource, amount)| (resource.clone(), milli(amount))).collect()
    };
    let mut total = Amounts::new();
    for container in list(spec, "/containers") {
        for (resource, amount) in of(container) {
            *total.entry(resource).or_insert(0) += amount;
        }
    }
    let mut sidecars = Amounts::new();
    let mut init = Amounts::new();
    for container in list(spec, "/initContainers") {
        let own = of(container);
        if container["restartPolicy"] == "Always" {
            for (resource, amount) in own {
                *sidecars.entry(resource).or_insert(0) += amount;
            }
        } else {
            for (resource, amount) in own {
                let with = amount + sidecars.get(&resource).copied().unwrap_or(0);
                let most = init.entry(resource).or_insert(0);
                *most = with.max(*most);
            }
        }
    }
    for (resource, amount) in sidecars {
        *total.entry(resource).or_insert(0) += amount;
    }
    for (resource, amount) in init {
        let most = total.entry(resource).or_insert(0);
        *most = amount.max(*most);
    }
    for (resource, amount) in spec["overhead"].as_object().into_iter().flatten() {
        if field == "requests" || total.contains_key(resource) {
            *total.entry(resource.clone()).or_insert(0) += milli(amount);
        }
    }
    total
}

/// Whether the quota's scopes take the object in. Quotas with scopes count pods only.
pub fn is_in_scope(quota: &Value, kind: &Kind, object: &Value) -> bool {
    let plain =
        list(quota, "/spec/scopes").iter().map(|it| (it.as_str().unwrap_or(""), "Exists", &Value::Null));
    let selected = list(quota, "/spec/scopeSelector/matchExpressions")
        .iter()
        .map(|it| (text(it, "/scopeName"), text(it, "/operator"), &it["values"]));
    plain.chain(selected).all(|(scope, operator, values)| {
        if !kind.is_pod() {
            return false;
        }
        let spec = &object["spec"];
        match scope {
            "Terminating" => spec["activeDeadlineSeconds"].is_i64(),
            "NotTerminating" => !spec["activeDeadlineSeconds"].is_i64(),
            "BestEffort" => is_best_effort(object),
            "NotBestEffort" => !is_best_effort(object),
            "PriorityClass" => {
                let class = &spec["priorityClassName"];
                let within = values.as_array().is_some_and(|it| it.contains(class));
                match operator {
                    "In" => within,
                    "NotIn" => !within,
                    "DoesNotExist" => text(spec, "/priorityClassName").is_empty(),
                    _ => !text(spec, "/priorityClassName").is_empty(),
                }
            }
            _ => false,
        }
    })
}

fn is_best_effort(pod: &Value) -> bool {
    let spec = &pod["spec"];
    ["containers", "initContainers"].iter().flat_map(|it| spec[*it].as_array().into_iter().flatten()).all(
        |it| {
            ["requests", "limits"].iter().all(|field| {
                ["cpu", "memory"].iter().all(|resource| milli(&it["resources"][*field][*resource]) == 0)
            })
        },
    )
}

/// The hard limits of a quota.
pub fn hard(quota: &Value) -> Amounts {
    let hard = quota["spec"]["hard"].as_object().into_iter().flatten();
    hard.map(|(resource, amount)| (resource.clone(), milli(amount))).collect()
}

/// The status of a quota: its limits and what is used of them.
pub fn status(quota: &Value, used: &Amounts) -> Value {
    let used: serde_json::Map<String, Value> = quota["spec"]["hard"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(resource, hard)| {
            let amount = used.get(resource).copied().unwrap_or(0);
            (resource.clone(), json!(written(amount, hard.as_str().unwrap_or(""))))
        })
        .collect();
    json!({"hard": quota["spec"]["hard"], "used": used})
}

/// The amount, in the units that `like` has.
pub fn written(milli: i128, like: &str) -> String {
    let number = match milli % 1000 {
        0 => (milli / 1000).to_string(),
        _ => format!("{milli}m"),
    };
    if !like.ends_with('i') || milli % 1_024_000 != 0 {
        return quantity::canonical(&number).unwrap_or(number);
    }
    let kibi = format!("{}Ki", milli / 1_024_000);
    quantity::canonical(&kibi).unwrap_or(kibi)
}

/// Resources of the quota that every container must name, and this pod's do not: `cpu for: web`.
pub fn unnamed(quota: &Value, pod: &Value) -> Vec<String> {
    let mut missing = Vec::new();
    for resource in hard(quota).keys() {
        let (field, name) = match resource.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => ("requests", resource.as_str()),
            other => match (other.strip_prefix("requests."), other.strip_prefix("limits.")) {
                (Some(name @ ("cpu" | "memory" | "ephemeral-storage")), _) => ("requests", name),
                (_, Some(name)) => ("limits", name),
                _ => continue,
            },
        };
        let without: Vec<&str> = ["initContainers", "containers"]
            .iter()
            .flat_map(|it| pod["spec"][*it].as_array().into_iter().flatten())
            .filter(|it| it["resources"][field][name].is_null())
            .map(|it| text(it, "/name"))
            .collect();
        if !without.is_empty() {
            missing.push(format!("{resource} for: {}", without.join(",")));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;

    #[test]
    fn a_pod_uses_what_its_containers_ask_for() {
        let pods = table::find("", "v1", "pods").expect("built in");
        let pod = json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "1"}}},
            {"name": "b", "resources": {"requests": {"cpu": "250m"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2"}}}]}});
        let used = used_by(pods, &pod);
        assert_eq!(used["requests.cpu"], 2000);
        assert_eq!(used["limits.cpu"], 1000);
        assert_eq!(used["pods"], 1000);
        let quota = json!({"spec": {"hard": {"requests.cpu": "3", "memory": "2Gi", "pods": "5", "limits.memory": "1Gi"}}});
        assert_eq!(
            status(&quota, &used)["used"],
            json!({"requests.cpu": "2", "memory": "1Gi", "pods": "1", "limits.memory": "0"})
        );
        assert_eq!(unnamed(&quota, &pod), ["limits.memory for: i,a,b", "memory for: i,b"]);
        let ended = json!({"spec": pod["spec"], "status": {"phase": "Failed"}});
        assert_eq!(used_by(pods, &ended).get("pods"), None);
        let best = json!({"spec": {"scopes": ["BestEffort"]}});
        assert!(!is_in_scope(&best, pods, &pod));
        assert!(is_in_scope(&best, pods, &json!({"spec": {"containers": [{"name": "a"}]}})));
    }
}
