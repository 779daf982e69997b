//! Ingresses as routes: each becomes an HTTPRoute of a Gateway of our own, and goes the same way from
//! there, with a listener for each certificate of `spec.tls`. Pure.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::GATEWAY_CLASS;

/// Of the Gateway that all Ingresses belong to; no object can have such a name.
pub const GATEWAY: &str = "(ingress)";
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
/// As an IngressClass names its controller.
pub const CONTROLLER: &str = "naru.dev/ingress";

/// Whether an Ingress is ours: by its class, or because ours is the default one.
pub fn is_ours(ingress: &Value, classes: &[Arc<Value>]) -> bool {
    let ours = |it: &&Arc<Value>| it["spec"]["controller"] == CONTROLLER;
    let named = ingress["spec"]["ingressClassName"]
        .as_str()
        .or_else(|| ingress["metadata"]["annotations"][CLASS_ANNOTATION].as_str());
    match named {
        Some(name) => classes.iter().filter(ours).any(|it| it["metadata"]["name"] == name),
        None => classes.iter().filter(ours).any(|it| it["metadata"]["annotations"][DEFAULT_CLASS] == "true"),
    }
}

/// The Gateway of the Ingresses.
pub fn gateway(ingresses: &[&Arc<Value>]) -> Value {
    let all = json!({"namespaces": {"from": "All"}});
    let mut listeners = vec![json!({"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": all})];
    for ingress in ingresses {
        let place = &ingress["metadata"]["namespace"];
        for tls in items(&ingress["spec"]["tls"]) {
            // Without hosts it is the certificate for all that have none of their own.
            let any = [json!("")];
            let hosts = match items(&tls["hosts"]) {
                [] => &any[..],
                hosts => hosts,
            };
            for host in hosts {
                listeners.push(json!({
                    "name": format!("{}/{}", place.as_str().unwrap_or_default(), naru_objects::name_of(ingress)),
                    "protocol": "HTTPS", "port": 443, "hostname": host, "allowedRoutes": all,
                    "tls": {"certificateRefs": [{"name": tls["secretName"], "namespace": place}]}}));
            }
        }
    }
    json!({
        "metadata": {"name": GATEWAY, "namespace": GATEWAY},
        "spec": {"gatewayClassName": GATEWAY_CLASS, "listeners": listeners},
    })
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// One route per host name, because an Ingress' rules each have their own.
pub fn routes(ingress: &Value, services: &[Arc<Value>]) -> Vec<Value> {
    let place = ingress["metadata"]["namespace"].as_str().unwrap_or_default();
    let backend = |backend: &Value| {
        let service = &backend["service"];
        let port = match service["port"]["number"].as_u64() {
            Some(number) => json!(number),
            None => {
                let object = services.iter().find(|it| {
                    it["metadata"]["namespace"] == place && it["metadata"]["name"] == service["name"]
                });
                let ports = object.map_or(&[][..], |it| items(&it["spec"]["ports"]));
                ports
                    .iter()
                    .find(|it| it["name"] == service["port"]["name"])
                    .map_or(Value::Null, |it| it["port"].clone())
            }
        };
        json!({"name": service["name"], "port": port})
    };
    let route = |hostnames: Value, rules: Vec<Value>| {
        json!({
            "metadata": {"name": ingress["metadata"]["name"], "namespace": place,
                "creationTimestamp": ingress["metadata"]["creationTimestamp"]},
            "spec": {"parentRefs": [{"name": GATEWAY, "namespace": GATEWAY}], "hostnames": hostnames, "rules": rules},
        })
    };
    let mut routes = Vec::new();
    for rule in items(&ingress["spec"]["rules"]) {
        let hostnames = match rule["host"].as_str() {
            Some(host) if !host.is_empty() => json!([host]),
            _ => json!([]),
        };
        let mut rules: Vec<Value> = items(&rule["http"]["paths"])
            .iter()
            .map(|path| {
                let kind = if path["pathType"] == "Exact" { "Exact" } else { "PathPrefix" };
                let value = path["path"].as_str().filter(|it| !it.is_empty()).unwrap_or("/");
                json!({"matches": [{"path": {"type": kind, "value": value}}], "backendRefs": [backend(&path["backend"])]})
            })
            .collect();
        if rules.is_empty() && ingress["spec"]["defaultBackend"].is_object() {
            rules.push(json!({"backendRefs": [backend(&ingress["spec"]["defaultBackend"])]}));
        }
        routes.push(route(hostnames, rules));
    }
    if ingress["spec"]["defaultBackend"].is_object() {
        routes.push(route(
            json!([]),
            vec![json!({"backendRefs": [backend(&ingress["spec"]["defaultBackend"])]})],
        ));
    }
    routes
}

/// The new `status` of an Ingress, or `None` if it says the same already.
pub fn status(ingress: &Value, address: &str) -> Option<Value> {
    let wanted = json!([{"ip": address}]);
    (ingress["status"]["loadBalancer"]["ingress"] != wanted)
        .then(|| json!({"loadBalancer": {"ingress": wanted}}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_routes_and_the_default_takes_the_rest() {
        let ingress = json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {
            "ingressClassName": "naru", "defaultBackend": {"service": {"name": "rest", "port": {"number": 80}}},
            "rules": [{"host": "*.shop.test", "http": {"paths": [
                {"path": "/a", "pathType": "Exact", "backend": {"service": {"name": "web", "port": {"name": "http"}}}}]}}]}});
        let service = json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {"ports": [{"name": "http", "port": 8080}]}});
        let routes = routes(&ingress, &[Arc::new(service)]);
        assert_eq!(routes[0]["spec"]["hostnames"], json!(["*.shop.test"]));
        let expected = json!([{"matches": [{"path": {"type": "Exact", "value": "/a"}}],
            "backendRefs": [{"name": "web", "port": 8080}]}]);
        assert_eq!(routes[0]["spec"]["rules"], expected);
        assert_eq!(routes[1]["spec"]["rules"][0]["backendRefs"][0]["name"], "rest");
        let class = |default: &str| {
            Arc::new(json!({"metadata": {"name": "naru", "annotations": {DEFAULT_CLASS: default}},
            "spec": {"controller": CONTROLLER}}))
        };
        assert!(is_ours(&ingress, &[class("false")]) && !is_ours(&ingress, &[]));
        let plain = json!({"spec": {}});
        assert!(is_ours(&plain, &[class("true")]) && !is_ours(&plain, &[class("false")]));
    }
}
