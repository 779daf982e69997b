//! From an app to Kubernetes objects. Pure, and every name follows from the release's number, so that two
//! releases stand side by side and neither is ever changed.

use crate::{App, EnvValue, Rollout, Service};
use naru_objects::{ServiceRollout, Strategy, labels};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a rendering depends on besides the app.
#[derive(Debug, Clone)]
pub struct RenderInput<'a> {
    pub namespace: &'a str,
    /// The release's name, `<app>-r<number>`.
    pub release: &'a str,
    pub change: &'a str,
    /// Image by digest, per service.
    pub images: &'a BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    pub objects: Vec<Value>,
    pub services: Vec<ServiceRollout>,
}

/// How long a pod that left the routes may take to finish its requests.
const TERMINATION_GRACE_SECONDS: u32 = 30;

/// How long a release may take until its pods are ready.
const PROGRESS_DEADLINE_SECONDS: u32 = 120;

/// The Gateway that routes are attached to.
pub const GATEWAY: &str = "naru";

pub fn render(app: &App, input: &RenderInput<'_>) -> Rendered {
    let mut rendered = Rendered { objects: Vec::new(), services: Vec::new() };
    for service in &app.services {
        let stable = format!("{}-{}", app.name, service.name);
        let workload = workload_name(&app.name, &service.name, input.release);
        let release_labels = json!({
            "app.kubernetes.io/name": service.name, "app.kubernetes.io/part-of": app.name,
            "app.kubernetes.io/managed-by": labels::MANAGER,
            labels::APP: app.name, labels::SERVICE: service.name, labels::RELEASE: input.release,
            labels::CHANGE: input.change,
        });
        let metadata =
            |name: &str| json!({"name": name, "namespace": input.namespace, "labels": release_labels});
        let own_pods =
            json!({labels::APP: app.name, labels::SERVICE: service.name, labels::RELEASE: input.release});
        rendered.objects.push(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(&workload),
            "spec": {
                "replicas": service.replicas,
                "progressDeadlineSeconds": PROGRESS_DEADLINE_SECONDS,
                "selector": {"matchLabels": own_pods},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
                "template": {
                    "metadata": {"labels": release_labels},
                    "spec": pod_spec(service, &input.images[&service.name]),
                },
            },
        }));
        if let Some(port) = service.port {
            let ports = json!([{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}]);
            rendered.objects.push(json!({
                "apiVersion": "v1", "kind": "Service", "metadata": metadata(&workload),
                "spec": {"selector": own_pods, "ports": ports},
            }));
            // The name that other services call, whatever the release.
            rendered.objects.push(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": stable, "namespace": input.namespace,
                             "labels": {labels::APP: app.name, labels::SERVICE: service.name}},
                "spec": {"selector": {labels::APP: app.name, labels::SERVICE: service.name}, "ports": ports},
            }));
        }
        let route = service.host.as_ref().map(|host| {
            rendered.objects.push(json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": stable, "namespace": input.namespace,
                             "labels": {labels::APP: app.name, labels::SERVICE: service.name}},
                "spec": {
                    "parentRefs": [{"name": GATEWAY}],
                    "hostnames": [host],
                    "rules": [{
                        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                        "backendRefs": [{"name": workload, "port": service.port, "weight": 100}]}],
                },
            }));
            stable.clone()
        });
        rendered.services.push(ServiceRollout {
            service: service.name.clone(),
            workload,
            route,
            replicas: service.replicas,
            port: service.port.unwrap_or_default(),
            strategy: match &service.rollout {
                Rollout::Rolling => Strategy::Rolling,
                Rollout::Canary { steps, window_seconds } => {
                    Strategy::Canary { steps: steps.clone(), window_seconds: *window_seconds }
                }
            },
        });
    }
    rendered
}

/// `shop-web-r3` for the service `web` in the release `shop-r3`.
fn workload_name(app: &str, service: &str, release: &str) -> String {
    let number = release.strip_prefix(app).unwrap_or(release).trim_start_matches('-');
    format!("{app}-{service}-{number}")
}

fn pod_spec(service: &Service, image: &str) -> Value {
    let env: Vec<Value> = service
        .env
        .iter()
        .map(|(name, value)| match value {
            EnvValue::Text(text) => json!({"name": name, "value": text}),
            EnvValue::Secret { name: secret, key } => {
                json!({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
            }
        })
        .collect();
    let mut container = json!({"name": service.name, "image": image, "env": env});
    if !service.command.is_empty() {
        container["command"] = json!(service.command);
    }
    if let Some(port) = service.port {
        container["ports"] = json!([{"name": "http", "containerPort": port, "protocol": "TCP"}]);
        // Without a health path the port must at least accept connections.
        let check = match &service.health {
            Some(path) => json!({"httpGet": {"path": path, "port": port}}),
            None => json!({"tcpSocket": {"port": port}}),
        };
        let with = |period: u32, failures: u32| {
            let mut probe = check.clone();
            probe["periodSeconds"] = json!(period);
            probe["failureThreshold"] = json!(failures);
            probe["timeoutSeconds"] = json!(2);
            probe
        };
        container["startupProbe"] = with(1, PROGRESS_DEADLINE_SECONDS);
        container["readinessProbe"] = with(2, 2);
        container["livenessProbe"] = with(5, 3);
    }
    let mut limits = json!({});
    if let Some(memory) = &service.memory {
        limits["memory"] = json!(memory);
    }
    if let Some(cpu) = &service.cpu {
        limits["cpu"] = json!(cpu);
    }
    if limits.as_object().is_some_and(|it| !it.is_empty()) {
        container["resources"] = json!({"limits": limits});
    }
    json!({
        "terminationGracePeriodSeconds": TERMINATION_GRACE_SECONDS,
        "automountServiceAccountToken": false,
        "containers": [container],
    })
}

/// The same objects under another release: what a rollback applies. Every name and label that holds the
/// old release's name, or a workload's, holds the new one's.
pub fn renumber(rendered: &Rendered, app: &str, from: &str, to: &str, change: &str) -> Rendered {
    let mut names: Vec<(String, String)> = vec![(from.to_owned(), to.to_owned())];
    let mut services = rendered.services.clone();
    for service in &mut services {
        let renamed = workload_name(app, &service.service, to);
        names.push((std::mem::replace(&mut service.workload, renamed.clone()), renamed));
    }
    let mut objects = rendered.objects.clone();
    for object in &mut objects {
        rename(object, &names, change);
    }
    Rendered { objects, services }
}

fn rename(value: &mut Value, names: &[(String, String)], change: &str) {
    match value {
        Value::String(text) => {
            if let Some((_, to)) = names.iter().find(|(from, _)| from == text) {
                text.clone_from(to);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|it| rename(it, names, change)),
        Value::Object(map) => {
            for (key, it) in map {
                if key == labels::CHANGE {
                    *it = json!(change);
                } else {
                    rename(it, names, change);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(release: &str) -> Rendered {
        let source = "app: shop\nservices:\n  web:\n    build: .\n    port: 8080\n    host: shop.localhost\n    replicas: 2\n    health: /healthz\n    env: {DB: secret/db}\n    rollout: canary 10% 50% 100%\n";
        let app = crate::parse(source).0.unwrap();
        let images = BTreeMap::from([("web".to_owned(), "naru.local/shop/web@sha256:1".to_owned())]);
        render(&app, &RenderInput { namespace: "default", release, change: "c-1", images: &images })
    }

    #[test]
    fn ten_lines_become_standard_objects() {
        let rendered = rendered("shop-r3");
        let kinds: Vec<_> = rendered.objects.iter().map(|it| it["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["Deployment", "Service", "Service", "HTTPRoute"]);
        let deployment = &rendered.objects[0];
        assert_eq!(deployment["metadata"]["name"], "shop-web-r3");
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/healthz");
        assert_eq!(container["env"][0]["valueFrom"]["secretKeyRef"]["key"], "DB");
        assert_eq!(rendered.objects[3]["spec"]["rules"][0]["backendRefs"][0]["name"], "shop-web-r3");
    }

    #[test]
    fn a_rollback_is_the_old_release_under_a_new_number() {
        let renumbered = renumber(&rendered("shop-r3"), "shop", "shop-r3", "shop-r5", "c-1");
        assert_eq!(renumbered, rendered("shop-r5"));
    }
}
