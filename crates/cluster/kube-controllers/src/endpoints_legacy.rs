//! Endpoints, the elder form of EndpointSlices: written for Services with a selector, and read for those
//! without one, whose Endpoints somebody else writes and which are mirrored into slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{is_deleting, list, name, namespace, parse_key, text};
use serde_json::{Value, json};

use crate::action::{Plan, controller_reference, kind};
use crate::endpoints::{SERVICE, ports, selector_of, services_of_pod};
use crate::harness::{Controller, Touched, View};
use crate::pods;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Leader elections of old wrote into Endpoints; that is nobody's address.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// More than this nobody reads from the elder form.
const ADDRESSES_MAX: usize = 1000;

pub struct Endpoints;

impl Controller for Endpoints {
    fn name(&self) -> &'static str {
        "endpoints-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        let services = kind("", "Service");
        let place = namespace(change.object);
        if change.is("core/services/") {
            return vec![change.key.to_string()];
        }
        if change.is("core/endpoints/") {
            return vec![services.key(place, name(change.object))];
        }
        if change.is("discovery.k8s.io/endpointslices/") {
            let labels = &change.object["metadata"]["labels"];
            let ours = labels[SLICE_MANAGED_BY] == MIRROR;
            return labels[SERVICE]
                .as_str()
                .filter(|_| ours)
                .map(|it| services.key(place, it))
                .into_iter()
                .collect();
        }
        services_of_pod(change, view)
    }

    fn plan(&self, key: &str, view: &View<'_>, _: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let endpoints = view.objects.find(&kind("", "Endpoints"), place, name);
        let service = view.objects.find(&kind("", "Service"), place, name);
        let slice_kind = kind("discovery.k8s.io", "EndpointSlice");
        let of_service = LabelSelector::from_map(&json!({SERVICE: name, SLICE_MANAGED_BY: MIRROR}));
        let mirrored = view.objects.list(&slice_kind, Some(place), &of_service);
        let pods = match service.as_deref().and_then(selector_of) {
            Some(selector) => view.objects.list(&kind("", "Pod"), Some(place), &selector),
            None => Vec::new(),
        };
        reconcile(service.as_ref(), endpoints.as_ref(), &pods, &mirrored)
    }
}

/// `pods` are those that the service selects, `mirrored` the slices made from its Endpoints.
fn reconcile(
    service: Option<&Arc<Value>>,
    endpoints: Option<&Arc<Value>>,
    pods: &[Arc<Value>],
    mirrored: &[Arc<Value>],
) -> Plan {
    let mut plan = Plan::default();
    let kinds = kind("", "Endpoints");
    let slices = kind("discovery.k8s.io", "EndpointSlice");
    let ours = endpoints.filter(|it| it["metadata"]["labels"][MANAGED_BY] == MANAGER);
    let Some(service) = service.filter(|it| !is_deleting(it)) else {
        ours.iter().for_each(|it| plan.delete(&kinds, it));
        mirrored.iter().for_each(|it| plan.delete(&slices, it));
        return plan;
    };
    if selector_of(service).is_some() {
        mirrored.iter().for_each(|it| plan.delete(&slices, it));
        write(&mut plan, service, endpoints, pods);
        return plan;
    }
    let source = endpoints.filter(|it| {
        let metadata = &it["metadata"];
        metadata["labels"][SKIP] != "true" && metadata["annotations"][LEADER].is_null() && ours.is_none()
    });
    let mut wanted: BTreeMap<String, Value> = source
        .map(|it| mirror(service, it))
        .unwrap_or_default()
        .into_iter()
        .map(|it| (name(&it).to_string(), it))
        .collect();
    for slice in mirrored.iter().filter(|it| !is_deleting(it)) {
        match wanted.remove(name(slice)) {
            None => plan.delete(&slices, slice),
            Some(new) => {
                if slice["endpoints"] != new["endpoints"] || slice["ports"] != new["ports"] {
                    let patch = json!({"endpoints": new["endpoints"], "ports": new["ports"]});
                    plan.change(&slices, slice, patch);
                }
            }
        }
    }
    for object in wanted.into_values() {
        plan.create(&slices, namespace(service), object);
    }
    plan
}

fn write(plan: &mut Plan, service: &Arc<Value>, endpoints: Option<&Arc<Value>>, pods: &[Arc<Value>]) {
    let mut labels = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), json!(MANAGER));
    if service["spec"]["clusterIP"] == "None" {
        labels.insert("service.kubernetes.io/headless".into(), json!(""));
    }
    let subsets = subsets(service, pods);
    match endpoints {
        None => {
            let object = json!({"metadata": {"name": name(service), "labels": labels}, "subsets": subsets});
            plan.create(&kind("", "Endpoints"), namespace(service), object);
        }
        Some(live) => {
            let current = live["subsets"].as_array().cloned().unwrap_or_default();
            if current != subsets || live["metadata"]["labels"] != Value::Object(labels.clone()) {
                plan.change(
                    &kind("", "Endpoints"),
                    live,
                    json!({"metadata": {"labels": labels}, "subsets": subsets}),
                );
            }
        }
    }
}

/// Addresses with the same ports stand together.
fn subsets(service: &Value, pods: &[Arc<Value>]) -> Vec<Value> {
    let tolerant = service["spec"]["publishNotReadyAddresses"] == true;
    let mut groups: BTreeMap<String, (Value, Vec<Value>, Vec<Value>)> = BTreeMap::new();
    let mut sorted: Vec<&Arc<Value>> = pods.iter().collect();
    sorted.sort_by_key(|it| name(it).to_string());
    for pod in sorted.into_iter().take(ADDRESSES_MAX) {
        if pods::is_finished(pod) || is_deleting(pod) || text(pod, "/status/podIP").is_empty() {
            continue;
        }
        let mut ports = ports(service, pod);
        for port in ports.as_array_mut().into_iter().flatten() {
            if let Some(fields) = port.as_object_mut() {
                fields.retain(|field, value| field != "name" || value != "");
            }
        }
        let mut address = json!({"ip": pod["status"]["podIP"], "nodeName": pod["spec"]["nodeName"],
            "targetRef": {"kind": "Pod", "namespace": namespace(pod), "name": name(pod), "uid": kube_kinds::uid(pod)}});
        if text(pod, "/spec/subdomain") == name(service) && !text(pod, "/spec/hostname").is_empty() {
            address["hostname"] = pod["spec"]["hostname"].clone();
        }
        let group = groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new(), Vec::new()));
        if tolerant || pods::is_ready(pod) { group.1.push(address) } else { group.2.push(address) }
    }
    let subsets = groups.into_values().map(|(ports, ready, waiting)| {
        let mut subset = json!({});
        for (field, all) in
            [("addresses", json!(ready)), ("notReadyAddresses", json!(waiting)), ("ports", ports)]
        {
            if all.as_array().is_some_and(|it| !it.is_empty()) {
                subset[field] = all;
            }
        }
        subset
    });
    subsets.collect()
}

/// One slice per subset.
fn mirror(service: &Value, endpoints: &Value) -> Vec<Value> {
    let slices = list(endpoints, "/subsets").iter().enumerate().map(|(at, subset)| {
        let endpoint = |address: &Value, ready: bool| {
            let mut endpoint = json!({"addresses": [address["ip"]], "conditions": {"ready": ready}});
            for field in ["hostname", "nodeName", "targetRef"] {
                if !address[field].is_null() {
                    endpoint[field] = address[field].clone();
                }
            }
            endpoint
        };
        let ready = list(subset, "/addresses").iter().map(|it| endpoint(it, true));
        let waiting = list(subset, "/notReadyAddresses").iter().map(|it| endpoint(it, false));
        let ports: Vec<Value> = list(subset, "/ports")
            .iter()
            .map(|it| json!({"name": text(it, "/name"), "port": it["port"], "protocol": it["protocol"].as_str().unwrap_or("TCP")}))
            .collect();
        let mut labels = endpoints["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        labels.insert(SERVICE.into(), json!(name(service)));
        labels.insert(SLICE_MANAGED_BY.into(), json!(MIRROR));
        let mut owner = controller_reference(endpoints);
        owner["apiVersion"] = json!("v1");
        owner["kind"] = json!("Endpoints");
        json!({"metadata": {"name": format!("{}-mirror-{at}", name(service)), "labels": labels, "ownerReferences": [owner]},
            "addressType": "IPv4", "endpoints": ready.chain(waiting).collect::<Vec<_>>(), "ports": ports})
    });
    slices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;

    #[test]
    fn endpoints_are_written_for_selectors_and_mirrored_without() {
        let service = |selector: Value| {
            Arc::new(json!({"metadata": {"name": "web", "namespace": "a"},
                "spec": {"selector": selector, "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]}}))
        };
        let pod = Arc::new(json!({"metadata": {"name": "p", "namespace": "a", "labels": {"app": "web"}},
            "spec": {"nodeName": "n"}, "status": {"podIP": "10.0.0.1", "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}]}}));
        let plan = reconcile(Some(&service(json!({"app": "web"}))), None, &[pod], &[]);
        let Some(Action::Create { object, .. }) = plan.actions.first() else { panic!("{plan:?}") };
        assert_eq!(object["subsets"][0]["addresses"][0]["ip"], "10.0.0.1");
        assert_eq!(object["subsets"][0]["ports"], json!([{"port": 8080, "protocol": "TCP"}]));

        let by_hand =
            Arc::new(json!({"metadata": {"name": "web", "namespace": "a", "uid": "e"}, "subsets": [
            {"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 80, "name": "http"}]}]}));
        let plan = reconcile(Some(&service(Value::Null)), Some(&by_hand), &[], &[]);
        let Some(Action::Create { object, .. }) = plan.actions.first() else { panic!("{plan:?}") };
        assert_eq!(object["endpoints"][0]["addresses"][0], "10.1.2.3");
        let plan = reconcile(Some(&service(Value::Null)), None, &[], &[Arc::new(object.clone())]);
        assert!(matches!(plan.actions.first(), Some(Action::Delete { .. })), "{plan:?}");
    }
}
