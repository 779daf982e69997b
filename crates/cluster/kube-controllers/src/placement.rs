//! Which nodes a pod may be on: selectors, node affinity, taints and tolerations. Plain questions about
//! a pod and a node; the scheduler, DaemonSets and the node lifecycle ask them.

use kube_kinds::{list, name, text};
use serde_json::Value;

/// `spec.nodeSelector` and the required node affinity.
pub fn selects(pod: &Value, node: &Value) -> bool {
    let labels = &node["metadata"]["labels"];
    let plain = pod["spec"]["nodeSelector"]
        .as_object()
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value));
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    plain && (required.is_null() || matches_node_selector(required, node))
}

/// A `NodeSelector`: one of its terms must match; one without requirements matches nothing.
pub fn matches_node_selector(selector: &Value, node: &Value) -> bool {
    list(selector, "/nodeSelectorTerms").iter().any(|it| matches_term(it, node))
}

pub fn matches_term(term: &Value, node: &Value) -> bool {
    let expressions = list(term, "/matchExpressions");
    let fields = list(term, "/matchFields");
    let label = |key: &str| node["metadata"]["labels"][key].as_str();
    let field = |key: &str| (key == "metadata.name").then(|| name(node));
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|it| requirement_holds(it, label(text(it, "/key"))))
        && fields.iter().all(|it| requirement_holds(it, field(text(it, "/key"))))
}

fn requirement_holds(requirement: &Value, value: Option<&str>) -> bool {
    let values = list(requirement, "/values");
    let among = |value: &str| values.iter().any(|it| it == value);
    let compare = |holds: fn(i64, i64) -> bool| {
        let limit = values.first().and_then(Value::as_str).and_then(|it| it.parse().ok());
        let value = value.and_then(|it| it.parse().ok());
        matches!((value, limit), (Some(value), Some(limit)) if holds(value, limit))
    };
    match text(requirement, "/operator") {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|value, limit| value > limit),
        "Lt" => compare(|value, limit| value < limit),
        _ => false,
    }
}

/// The first taint with one of these effects that the pod does not tolerate.
pub fn untolerated<'a>(pod: &Value, node: &'a Value, effects: &[&str]) -> Option<&'a Value> {
    let tolerations = list(pod, "/spec/tolerations");
    list(node, "/spec/taints")
        .iter()
        .filter(|taint| effects.contains(&text(taint, "/effect")))
        .find(|taint| !tolerations.iter().any(|it| tolerates(it, taint)))
}

pub fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let (key, effect) = (text(toleration, "/key"), text(toleration, "/effect"));
    if !effect.is_empty() && taint["effect"] != effect {
        return false;
    }
    match text(toleration, "/operator") {
        "Exists" => key.is_empty() || taint["key"] == key,
        _ => taint["key"] == key && text(taint, "/value") == text(toleration, "/value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn node_affinity_knows_all_operators() {
        let node = json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}}});
        for (requirement, expected) in [
            (json!({"key": "disk", "operator": "In", "values": ["ssd"]}), true),
            (json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]}), false),
            (json!({"key": "gpu", "operator": "NotIn", "values": ["x"]}), true),
            (json!({"key": "gpu", "operator": "Exists"}), false),
            (json!({"key": "gpu", "operator": "DoesNotExist"}), true),
            (json!({"key": "cores", "operator": "Gt", "values": ["4"]}), true),
            (json!({"key": "cores", "operator": "Lt", "values": ["8"]}), false),
        ] {
            let selector = json!({"nodeSelectorTerms": [{"matchExpressions": [requirement]}]});
            assert_eq!(matches_node_selector(&selector, &node), expected, "{selector}");
        }
        assert!(!matches_node_selector(&json!({"nodeSelectorTerms": [{}]}), &node));
        let by_name = json!([{"key": "metadata.name", "operator": "In", "values": ["n1"]}]);
        assert!(matches_node_selector(&json!({"nodeSelectorTerms": [{"matchFields": by_name}]}), &node));
    }

    #[test]
    fn tolerations_match_by_key_value_and_effect() {
        let taint = json!({"key": "a", "value": "b", "effect": "NoSchedule"});
        for (toleration, expected) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "a", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "a", "value": "b"}), true),
            (json!({"key": "a", "operator": "Equal", "value": "c"}), false),
        ] {
            assert_eq!(tolerates(&toleration, &taint), expected, "{toleration}");
        }
    }
}
