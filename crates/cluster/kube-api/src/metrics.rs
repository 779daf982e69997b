//! `metrics.k8s.io`: what nodes and pods use now, for `kubectl top` and for autoscalers. Nothing is stored.

use axum::response::Response;
use http::Method;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{Failure, table, time};
use serde_json::{Value, json};

use crate::request::{Parameters, method_not_allowed};
use crate::streams::Usage;
use crate::{Api, answer};

pub(crate) const GROUP: &str = "metrics.k8s.io";
pub(crate) const VERSION: &str = "v1beta1";

pub(crate) async fn serve(
    api: &Api,
    method: &Method,
    namespace: Option<&str>,
    plural: &str,
    name: Option<&str>,
    parameters: &Parameters,
) -> Result<Response, Failure> {
    if *method != Method::GET {
        return Err(method_not_allowed());
    }
    let usage = match api.streams() {
        Some(node) => node.usage().await,
        None => Vec::new(),
    };
    let now = time::format(jiff::Timestamp::now());
    let (kind, object_kind) = match plural {
        "nodes" => ("NodeMetrics", "Node"),
        "pods" => ("PodMetrics", "Pod"),
        _ => return Err(Failure::new(404, "NotFound", "the server could not find the requested resource")),
    };
    let selector = LabelSelector::parse(parameters.get("labelSelector").unwrap_or(""))?;
    let of = table::of("", object_kind).expect("the table of kinds has pods and nodes");
    let mut items = Vec::new();
    for object in api.objects().list(of, namespace, &selector) {
        let mut metrics = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": kind, "timestamp": now,
            "metadata": {"name": object["metadata"]["name"], "creationTimestamp": now},
        });
        for field in ["namespace", "labels"] {
            if let Some(value) = object["metadata"].get(field) {
                metrics["metadata"][field] = value.clone();
            }
        }
        let own: Vec<&Usage> = usage
            .iter()
            .filter(|it| {
                it.namespace == kube_kinds::namespace(&object)
                    && it.name == kube_kinds::name(&object)
                    && it.container.is_empty() == (object_kind == "Node")
            })
            .collect();
        // What does not run has no figures.
        let Some(first) = own.first() else { continue };
        metrics["window"] = json!(format!("{:.3}s", first.window.as_secs_f64()));
        match object_kind {
            "Node" => metrics["usage"] = quantities(first),
            _ => {
                metrics["containers"] =
                    own.iter().map(|it| json!({"name": it.container, "usage": quantities(it)})).collect();
            }
        }
        items.push(metrics);
    }
    if let Some(name) = name {
        let found = items.into_iter().find(|it| it["metadata"]["name"] == name);
        let missing = || Failure::new(404, "NotFound", format!("{plural}.{GROUP} {name:?} not found"));
        return found.map(|it| answer::json(200, &it)).ok_or_else(missing);
    }
    Ok(answer::json(
        200,
        &json!({"kind": format!("{kind}List"), "apiVersion": format!("{GROUP}/{VERSION}"),
            "metadata": {"resourceVersion": api.objects().store().revision().to_string()}, "items": items}),
    ))
}

fn quantities(usage: &Usage) -> Value {
    json!({"cpu": format!("{}n", usage.cpu_nanocores), "memory": format!("{}Ki", usage.memory_bytes / 1024)})
}
