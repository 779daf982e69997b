//! EndpointSlices: where the pods behind a Service can be reached.
//!
//! A pod that is going away is never ready here, so that a gateway stops sending to it before it
//! stops. Pods that resolve a named port differently get slices of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::Propagation;
use kube_kinds::{controller_of, is_deleting, list, name, namespace, parse_key, text, uid};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::action::{Action, Plan, controller_reference, kind};
use crate::harness::{Controller, Touched, View};
use crate::pods;

pub const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";

pub struct EndpointSlices;

impl Controller for EndpointSlices {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        if change.is("core/services/") {
            return vec![change.key.to_string()];
        }
        let services = kind("", "Service");
        let place = namespace(change.object);
        if change.is("discovery.k8s.io/endpointslices/") {
            let service = change.object["metadata"]["labels"][SERVICE].as_str();
            return service.map(|it| services.key(place, it)).into_iter().collect();
        }
        services_of_pod(change, view)
    }

    fn plan(&self, key: &str, view: &View<'_>, _: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(service) = view.objects.find(&kind("", "Service"), place, name) else {
            // The slices go with their owner.
            return Plan::default();
        };
        let pods = view.objects.list(&kind("", "Pod"), Some(place), &LabelSelector::default());
        let slices = view.objects.list(
            &kind("discovery.k8s.io", "EndpointSlice"),
            Some(place),
            &LabelSelector::default(),
        );
        reconcile(&service, &pods, &slices)
    }
}

/// A service without a selector has endpoints that somebody else writes.
/// Keys of the services that select the pod of a change, before it or after; none for other changes.
pub fn services_of_pod(change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
    if !change.is("core/pods/") {
        return Vec::new();
    }
    let services = kind("", "Service");
    let place = namespace(change.object);
    let states = [Some(change.object), change.previous];
    view.objects
        .list(&services, Some(place), &LabelSelector::default())
        .iter()
        .filter(|it| selector_of(it).is_some_and(|it| states.iter().flatten().any(|pod| it.matches(pod))))
        .map(|it| services.key(place, name(it)))
        .collect()
}

pub fn selector_of(service: &Value) -> Option<LabelSelector> {
    let selector = LabelSelector::from_map(&service["spec"]["selector"]);
    (!selector.is_empty() && service["spec"]["type"] != "ExternalName").then_some(selector)
}

/// `pods` and `slices` are all of the namespace.
pub fn reconcile(service: &Arc<Value>, pods: &[Arc<Value>], slices: &[Arc<Value>]) -> Plan {
    let mut plan = Plan::default();
    let Some(selector) = selector_of(service).filter(|_| !is_deleting(service)) else { return plan };
    let mut wanted = wanted(service, pods, &selector);
    let slice_kind = kind("discovery.k8s.io", "EndpointSlice");
    let mine = slices.iter().filter(|it| {
        it["metadata"]["labels"][MANAGED_BY] == MANAGER
            && controller_of(it).is_some_and(|owner| owner["uid"] == uid(service))
    });
    for slice in mine.filter(|it| !is_deleting(it)) {
        let target = (namespace(slice).to_string(), name(slice).to_string());
        match wanted.remove(name(slice)) {
            Some(new) => {
                let mut patch = json!({});
                for field in ["endpoints", "ports"] {
                    if slice[field] != new[field] {
                        patch[field] = new[field].clone();
                    }
                }
                if patch != json!({}) {
                    plan.push(Action::Change {
                        kind: slice_kind.clone(),
                        namespace: target.0,
                        name: target.1,
                        patch,
                    });
                }
            }
            None => plan.push(Action::Delete {
                kind: slice_kind.clone(),
                namespace: target.0,
                name: target.1,
                uid: uid(slice).to_string(),
                propagation: Propagation::Background,
            }),
        }
    }
    for object in wanted.into_values() {
        plan.push(Action::Create {
            kind: slice_kind.clone(),
            namespace: namespace(service).to_string(),
            object,
            tell: None,
        });
    }
    plan
}

/// The slices that should be, by name.
fn wanted(service: &Value, pods: &[Arc<Value>], selector: &LabelSelector) -> BTreeMap<String, Value> {
    let mut groups: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    let mut selected: Vec<&Arc<Value>> = pods
        .iter()
        .filter(|it| selector.matches(it) && !pods::is_finished(it) && !text(it, "/status/podIP").is_empty())
        .collect();
    selected.sort_by_key(|it| name(it).to_string());
    for pod in selected {
        let ports = ports(service, pod);
        let group = groups.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new()));
        group.1.push(endpoint(service, pod));
    }
    if groups.is_empty() {
        // An empty slice says "nobody", which is different from "not looked yet".
        groups.insert(String::new(), (json!([]), Vec::new()));
    }
    let slices = groups.into_iter().map(|(key, (ports, endpoints))| {
        let slice_name = slice_name(service, if ports == default_ports(service) { "" } else { &key });
        let object = json!({
            "metadata": {
                "name": slice_name,
                "labels": {SERVICE: name(service), MANAGED_BY: MANAGER},
                "ownerReferences": [controller_reference(service)],
            },
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        });
        (slice_name, object)
    });
    slices.collect()
}

/// The ports as a service without named targets has them; the usual case keeps one name for ever.
fn default_ports(service: &Value) -> Value {
    ports(service, &Value::Null)
}

fn slice_name(service: &Value, ports: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(uid(service));
    hash.update(ports);
    let digest: String = hash.finalize()[..3].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{digest}", name(service))
}

pub fn ports(service: &Value, pod: &Value) -> Value {
    let mut ports = Vec::new();
    for port in list(service, "/spec/ports") {
        let number = match &port["targetPort"] {
            Value::String(target) => match target.parse::<i64>() {
                Ok(number) => Some(number),
                Err(_) => named_port(pod, target, text(port, "/protocol")),
            },
            number => number.as_i64(),
        };
        // A pod without the named port does not serve it.
        if let Some(number) = number {
            let mut entry =
                json!({"name": text(port, "/name"), "port": number, "protocol": port["protocol"]});
            if !port["appProtocol"].is_null() {
                entry["appProtocol"] = port["appProtocol"].clone();
            }
            ports.push(entry);
        }
    }
    Value::Array(ports)
}

fn named_port(pod: &Value, name: &str, protocol: &str) -> Option<i64> {
    list(pod, "/spec/containers")
        .iter()
        .flat_map(|it| list(it, "/ports"))
        .find(|it| text(it, "/name") == name && text(it, "/protocol") == protocol)
        .and_then(|it| it["containerPort"].as_i64())
}

fn endpoint(service: &Value, pod: &Value) -> Value {
    let serving = pods::is_ready(pod);
    let terminating = is_deleting(pod);
    let ready = (serving && !terminating) || service["spec"]["publishNotReadyAddresses"] == true;
    let mut endpoint = json!({
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {"kind": "Pod", "name": name(pod), "namespace": namespace(pod), "uid": uid(pod)},
    });
    // A name of its own below the service's.
    let hostname = text(pod, "/spec/hostname");
    if !hostname.is_empty() && text(pod, "/spec/subdomain") == name(service) {
        endpoint["hostname"] = json!(hostname);
    }
    endpoint
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(target: Value) -> Arc<Value> {
        Arc::new(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default", "uid": "s"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": target}]}}),
        )
    }

    fn pod(name: &str, ready: bool, port: i64) -> Value {
        json!({"metadata": {"name": name, "uid": name, "namespace": "default", "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}]},
            "status": {"phase": "Running", "podIP": format!("10.0.0.{port}"), "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    }

    fn made(plan: &Plan) -> Vec<&Value> {
        let made = plan.actions.iter().filter_map(|it| match it {
            Action::Create { object, .. } => Some(object),
            _ => None,
        });
        made.collect()
    }

    #[test]
    fn pods_are_ready_only_while_they_serve_and_stay() {
        let mut leaving = pod("b", true, 2);
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let mut finished = pod("d", false, 4);
        finished["status"]["phase"] = json!("Succeeded");
        let pods = [pod("a", true, 1), leaving, pod("c", false, 3), finished].map(Arc::new);
        let plan = reconcile(&service(json!(8080)), &pods, &[]);
        let slice = made(&plan)[0];
        let seen: Vec<(&str, bool, bool)> = list(slice, "/endpoints")
            .iter()
            .map(|it| {
                let conditions = &it["conditions"];
                (text(it, "/targetRef/name"), conditions["ready"] == true, conditions["terminating"] == true)
            })
            .collect();
        assert_eq!(seen, [("a", true, false), ("b", false, true), ("c", false, false)]);
        assert_eq!(slice["ports"], json!([{"name": "", "port": 8080, "protocol": "TCP"}]));
    }

    #[test]
    fn a_named_port_is_looked_up_in_each_pod() {
        let pods = [pod("a", true, 1), pod("b", true, 2)].map(Arc::new);
        let plan = reconcile(&service(json!("http")), &pods, &[]);
        let ports: Vec<i64> = made(&plan).iter().map(|it| kube_kinds::int(it, "/ports/0/port")).collect();
        assert_eq!(ports, [1, 2]);
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let pods = [Arc::new(pod("a", true, 1))];
        let service = service(json!(8080));
        let slice = Arc::new({
            let mut slice = made(&reconcile(&service, &pods, &[]))[0].clone();
            slice["metadata"]["namespace"] = json!("default");
            slice
        });
        assert!(reconcile(&service, &pods, std::slice::from_ref(&slice)).actions.is_empty());
        let gone = reconcile(&service, &[], std::slice::from_ref(&slice));
        assert!(!gone.actions.is_empty(), "the endpoint is taken out");
    }
}
