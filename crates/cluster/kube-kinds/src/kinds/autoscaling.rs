//! HorizontalPodAutoscaler: stored as v2; what v1 cannot say goes into annotations, as Kubernetes
//! does it.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, created, figure, words};
use crate::defaults::{set, set_initial_status, spec_of};
use crate::table::Scope::Namespaced;
use crate::table::row;
use crate::validation::Causes;
use crate::{Cause, Kind, Stored, int, list, text};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";

pub(super) fn rows() -> Vec<Kind> {
    let of_version = |version: &str| Kind {
        validate: rules,
        has_status: true,
        categories: vec!["all".into()],
        ..row(
            "autoscaling",
            version,
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            Namespaced,
            &["hpa"],
        )
    };
    vec![
        Kind { default: defaults, columns: AUTOSCALER, ..of_version("v2") },
        Kind {
            default: |object| {
                if let Some(spec) = spec_of(object) {
                    set(spec, "minReplicas", 1);
                }
                set_initial_status(object, json!({"currentReplicas": 0, "desiredReplicas": 0}));
            },
            columns: AUTOSCALER_V1,
            stored: Some(Stored {
                prefix: "autoscaling/horizontalpodautoscalers/",
                to_stored: to_v2,
                from_stored: to_v1,
            }),
            ..of_version("v1")
        },
    ]
}

fn defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "minReplicas", 1);
    if spec.get("metrics").is_none_or(|it| it.as_array().is_none_or(Vec::is_empty)) {
        spec.insert("metrics".into(), json!([cpu(80)]));
    }
    if let Some(behavior) = spec.get_mut("behavior").and_then(Value::as_object_mut) {
        let up = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": 15}, {"type": "Pods", "value": 4, "periodSeconds": 15}]});
        let down = json!({"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]});
        for (direction, filled) in [("scaleUp", up), ("scaleDown", down)] {
            set(behavior, direction, json!({}));
            if let (Some(rules), Value::Object(filled)) =
                (behavior.get_mut(direction).and_then(Value::as_object_mut), filled)
            {
                for (field, value) in filled {
                    set(rules, &field, value);
                }
            }
        }
    }
    set_initial_status(object, json!({"desiredReplicas": 0, "currentMetrics": null}));
}

fn cpu(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn is_plain_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["averageUtilization"].is_i64()
}

fn rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    for field in ["kind", "name"] {
        if text(&spec["scaleTargetRef"], &format!("/{field}")).is_empty() {
            causes.push(Cause::required(&format!("spec.scaleTargetRef.{field}"), ""));
        }
    }
    let (min, max) = (spec["minReplicas"].as_i64().unwrap_or(1), int(spec, "/maxReplicas"));
    if min < 1 {
        causes.push(Cause::invalid(
            "spec.minReplicas",
            &spec["minReplicas"],
            "must be greater than or equal to 1",
        ));
    }
    if max < 1 {
        causes.push(Cause::invalid("spec.maxReplicas", &json!(max), "must be greater than 0"));
    } else if max < min {
        causes.push(Cause::invalid(
            "spec.maxReplicas",
            &json!(max),
            "must be greater than or equal to `minReplicas`",
        ));
    }
    for (index, metric) in list(spec, "/metrics").iter().enumerate() {
        let kinds = ["ContainerResource", "External", "Object", "Pods", "Resource"];
        if !kinds.iter().any(|it| metric["type"] == *it) {
            causes.push(Cause::unsupported(&format!("spec.metrics[{index}].type"), &metric["type"], &kinds));
        }
    }
}

fn annotate(object: &mut Value, annotation: &str, value: &Value) {
    let annotations = &mut object["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = json!({});
    }
    annotations[annotation] = json!(value.to_string());
}

/// The annotation's JSON, taken off the object.
fn take_annotation(object: &mut Value, annotation: &str) -> Option<Value> {
    let metadata = object["metadata"].as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(annotation)?;
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn take(object: &mut Value, part: &str, field: &str) -> Option<Value> {
    object.get_mut(part)?.as_object_mut()?.remove(field)
}

fn to_v1(object: &mut Value) {
    object["apiVersion"] = json!("autoscaling/v1");
    if let Some(Value::Array(mut metrics)) = take(object, "spec", "metrics") {
        if let Some(at) = metrics.iter().position(is_plain_cpu) {
            let percent = metrics.remove(at)["resource"]["target"]["averageUtilization"].clone();
            object["spec"]["targetCPUUtilizationPercentage"] = percent;
        }
        if !metrics.is_empty() {
            annotate(object, METRICS, &Value::Array(metrics));
        }
    }
    if let Some(behavior) = take(object, "spec", "behavior") {
        annotate(object, BEHAVIOR, &behavior);
    }
    if let Some(conditions) = take(object, "status", "conditions").filter(|it| !it.is_null()) {
        annotate(object, CONDITIONS, &conditions);
    }
    if let Some(Value::Array(mut metrics)) = take(object, "status", "currentMetrics") {
        let current = |it: &Value| it["resource"]["current"]["averageUtilization"].clone();
        if let Some(at) =
            metrics.iter().position(|it| it["resource"]["name"] == "cpu" && current(it).is_i64())
        {
            object["status"]["currentCPUUtilizationPercentage"] = current(&metrics[at]);
            let plain = metrics[at]["resource"]["current"]["averageValue"].is_null();
            if plain {
                metrics.remove(at);
            }
        }
        if !metrics.is_empty() {
            annotate(object, CURRENT_METRICS, &Value::Array(metrics));
        }
    }
    if object["status"].is_object() && object["status"]["currentReplicas"].is_null() {
        object["status"]["currentReplicas"] = json!(0);
    }
}

fn to_v2(object: &mut Value) {
    object["apiVersion"] = json!("autoscaling/v2");
    let mut metrics = match take_annotation(object, METRICS) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    if let Some(percent) = take(object, "spec", "targetCPUUtilizationPercentage").and_then(|it| it.as_i64()) {
        metrics.insert(0, cpu(percent));
    }
    if metrics.is_empty() {
        metrics.push(cpu(80));
    }
    if object["spec"].is_object() {
        object["spec"]["metrics"] = Value::Array(metrics);
    }
    if let Some(behavior) = take_annotation(object, BEHAVIOR) {
        object["spec"]["behavior"] = behavior;
    }
    let conditions = take_annotation(object, CONDITIONS);
    let mut current = match take_annotation(object, CURRENT_METRICS) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    if let Some(percent) =
        take(object, "status", "currentCPUUtilizationPercentage").and_then(|it| it.as_i64())
        && !current.iter().any(|it| it["resource"]["name"] == "cpu")
    {
        current.insert(
            0,
            json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}),
        );
    }
    if object["status"].is_object() {
        if let Some(conditions) = conditions {
            object["status"]["conditions"] = conditions;
        }
        object["status"]["currentMetrics"] = if current.is_empty() { Value::Null } else { json!(current) };
    }
}

const AUTOSCALER: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Reference"),
        words("Targets"),
        words("MinPods"),
        words("MaxPods"),
        figure("Replicas"),
        AGE,
    ],
    |it, now| {
        let target = &it["spec"]["scaleTargetRef"];
        let shown: Vec<String> = list(it, "/spec/metrics")
            .iter()
            .enumerate()
            .map(|(index, metric)| metric_text(metric, list(it, "/status/currentMetrics").get(index)))
            .collect();
        let targets = match shown.as_slice() {
            [] => "<none>".to_string(),
            [one] => one.clone(),
            [one, two] => format!("{one}, {two}"),
            [one, two, more @ ..] => format!("{one}, {two} + {} more...", more.len()),
        };
        vec![
            json!(crate::name(it)),
            json!(format!("{}/{}", text(target, "/kind"), text(target, "/name"))),
            json!(targets),
            it["spec"]["minReplicas"].as_i64().map_or(json!("<unset>"), |it| json!(it.to_string())),
            json!(int(it, "/spec/maxReplicas").to_string()),
            json!(int(it, "/status/currentReplicas")),
            created(it, now),
        ]
    },
);

const AUTOSCALER_V1: Columns = match AUTOSCALER {
    Columns::BuiltIn(columns, _) => Columns::BuiltIn(columns, |it, now| {
        let mut it = it.clone();
        to_v2(&mut it);
        AUTOSCALER.cells(&it, now)
    }),
    Columns::Declared(_) => panic!("autoscalers are built in"),
};

/// `cpu: 12%/80%`.
fn metric_text(metric: &Value, current: Option<&Value>) -> String {
    let source = ["resource", "containerResource", "pods", "object", "external"]
        .into_iter()
        .find(|it| metric[*it].is_object())
        .unwrap_or("resource");
    let target = &metric[source]["target"];
    let current = current.map_or(&Value::Null, |it| &it[source]["current"]);
    let amount = |from: &Value, percent: bool| match percent {
        true => from["averageUtilization"].as_i64().map(|it| format!("{it}%")),
        false => from["averageValue"].as_str().or(from["value"].as_str()).map(String::from),
    };
    let percent = target["averageUtilization"].is_i64();
    let now = amount(current, percent).unwrap_or_else(|| "<unknown>".into());
    let goal = amount(target, percent).unwrap_or_else(|| "<auto>".into());
    match source {
        "resource" | "containerResource" => {
            format!("{}: {now}/{goal}", text(metric, &format!("/{source}/name")))
        }
        _ => format!("{now}/{goal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_one_keeps_what_it_cannot_say() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [cpu(50), {"type": "Pods", "pods": {"metric": {"name": "q"}}}],
                "behavior": {"scaleUp": {"selectPolicy": "Min"}}},
            "status": {"currentReplicas": 1, "desiredReplicas": 2, "conditions": [{"type": "ScalingActive"}], "currentMetrics": null}});
        let mut object = v2.clone();
        to_v1(&mut object);
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 50);
        assert!(object["metadata"]["annotations"][BEHAVIOR].is_string());
        to_v2(&mut object);
        assert_eq!(object, v2);
    }
}
