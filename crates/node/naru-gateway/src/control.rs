//! Keeps the table true: whenever an object changes, all are compiled anew and the table is swapped.

use crate::status::Doors;
use crate::table::{Objects, compile};
use crate::{GATEWAY_CLASS, Shared, certificates, ingress, status};
use naru_client::{Cache, Client, EventKind};
use naru_objects::{Kind, kinds};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Changes that come together are compiled together; short enough that no dying pod is used for longer.
const SETTLE: Duration = Duration::from_millis(2);

const LOOK_AGAIN: Duration = Duration::from_secs(3600);

const fn networking(kind: &'static str, plural: &'static str, namespaced: bool) -> Kind {
    Kind { group: "networking.k8s.io", version: "v1", kind, plural, namespaced }
}

const INGRESS: Kind = networking("Ingress", "ingresses", true);
const INGRESS_CLASS: Kind = networking("IngressClass", "ingressclasses", false);
const REFERENCE_GRANT: Kind = Kind {
    group: "gateway.networking.k8s.io",
    version: "v1",
    kind: "ReferenceGrant",
    plural: "referencegrants",
    namespaced: true,
};

/// A cluster without any class gets ours, as the default one.
async fn offer_class(client: &Client) {
    let class = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": GATEWAY_CLASS, "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": ingress::CONTROLLER},
    });
    match client.list(&INGRESS_CLASS, None, "").await {
        Ok(classes) if classes.is_empty() => {
            if let Err(error) = client.create(&INGRESS_CLASS, &class).await {
                tracing::warn!(%error, "the class of our Ingresses cannot be made");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the classes of Ingresses cannot be listed"),
    }
}

pub async fn run(client: Client, shared: Arc<Shared>, doors: Doors, shutdown: CancellationToken) {
    let cache = |kind: &Kind| client.cache(kind, None, "");
    let caches = [
        cache(&kinds::GATEWAY),
        cache(&kinds::HTTP_ROUTE),
        cache(&kinds::SERVICE),
        cache(&kinds::ENDPOINT_SLICE),
        cache(&INGRESS),
        cache(&INGRESS_CLASS),
        cache(&REFERENCE_GRANT),
        client.cache_where(&kinds::SECRET, None, "type=kubernetes.io/tls"),
    ];
    offer_class(&client).await;
    let mut changes: Vec<_> = caches.iter().map(Cache::changes).collect();
    for cache in &caches {
        tokio::select! {
            () = cache.synced() => {}
            () = shutdown.cancelled() => return,
        }
    }
    let mut told: HashSet<(String, String)> = HashSet::new();
    loop {
        let (gateways, routes, services, slices) =
            (caches[0].list(), caches[1].list(), caches[2].list(), caches[3].list());
        let (ingresses, classes, grants) = (caches[4].list(), caches[5].list(), caches[6].list());
        let secrets = caches[7].list();
        let ingresses: Vec<&Arc<Value>> =
            ingresses.iter().filter(|it| ingress::is_ours(it, &classes)).collect();
        let from_ingresses = ingresses.iter().flat_map(|it| ingress::routes(it, &services)).map(Arc::new);
        let all_routes: Vec<Arc<Value>> = routes.iter().cloned().chain(from_ingresses).collect();
        let own = std::iter::once(Arc::new(ingress::gateway(&ingresses)));
        let all_gateways: Vec<Arc<Value>> = gateways.iter().cloned().chain(own).collect();
        let objects = Objects {
            gateways: &all_gateways,
            routes: &all_routes,
            services: &services,
            slices: &slices,
            grants: &grants,
            secrets: &secrets,
        };
        let before = shared.table.load_full();
        let (mut table, findings) = compile(objects, &shared.metrics, &before);
        let now = jiff::Timestamp::now();
        let (certificates, of_listeners) = certificates::compile(&objects, &before.certificates, now);
        table.certificates = certificates;
        shared.replace_table(table);
        let now = seconds(&naru_objects::timestamp(now));
        for finding in of_listeners.iter().filter(|it| it.gateway == ingress::GATEWAY) {
            // An Ingress has no conditions, so that it is told by an event.
            let why = finding.problem.as_ref().map(|it| &it.1).or(finding.warning.as_ref());
            let no_door = "its certificates are not shown: start naru with --gateway-tls ADDRESS".to_owned();
            let why = why.or((!doors.has_tls).then_some(&no_door));
            let of = |it: &&&Arc<Value>| {
                let place = it["metadata"]["namespace"].as_str().unwrap_or_default();
                format!("{place}/{}", naru_objects::name_of(it)) == finding.listener
            };
            if let (Some(why), Some(ingress)) = (why, ingresses.iter().find(of))
                && told.insert((finding.listener.clone(), why.clone()))
            {
                client.event(ingress, EventKind::Warning, "Certificate", why).await;
            }
        }
        // What is mended may break again, and is told again then.
        told.retain(|(listener, _)| {
            of_listeners.iter().any(|it| {
                it.listener == *listener && (it.problem.is_some() || it.warning.is_some() || !doors.has_tls)
            })
        });
        for ingress in ingresses {
            if let Some(status) = ingress::status(ingress, &doors.address) {
                write(&client, &INGRESS, ingress, status).await;
            }
        }
        // Routes that were made from Ingresses are nobody's object.
        for finding in findings.iter().filter(|it| it.route["metadata"]["uid"].is_string()) {
            if let Some(parents) = status::plan(finding, &now) {
                write(&client, &kinds::HTTP_ROUTE, &finding.route, json!({"parents": parents})).await;
            }
        }
        for gateway in gateways.iter().filter(|it| it["spec"]["gatewayClassName"] == GATEWAY_CLASS) {
            let (name, place) = (naru_objects::name_of(gateway), &gateway["metadata"]["namespace"]);
            // Routes that a listener takes: all that name the Gateway, or those that name the listener.
            let attached = |listener: &str| {
                let takes = |(parent, refused): &(Value, Option<&str>), route: &Value| {
                    let home = if parent["namespace"].is_null() {
                        &route["metadata"]["namespace"]
                    } else {
                        &parent["namespace"]
                    };
                    refused.is_none()
                        && parent["name"] == name
                        && home == place
                        && parent["sectionName"].as_str().is_none_or(|it| it == listener)
                };
                findings.iter().filter(|it| it.parents.iter().any(|parent| takes(parent, &it.route))).count()
            };
            if let Some(status) = status::plan_gateway(gateway, attached, &of_listeners, &doors, &now) {
                for it in
                    of_listeners.iter().filter(|it| it.gateway == name && *place == it.namespace.as_str())
                {
                    let why = it.problem.as_ref().map(|it| &it.1).or(it.warning.as_ref());
                    if let Some(why) = why
                        && told.insert((it.listener.clone(), why.clone()))
                    {
                        client.event(gateway, EventKind::Warning, "Certificate", why).await;
                    }
                }
                write(&client, &kinds::GATEWAY, gateway, status).await;
            }
        }
        let wait = async {
            futures::future::select_all(changes.iter_mut().map(|it| Box::pin(it.wait()))).await;
        };
        tokio::select! {
            () = wait => {}
            // Certificates expire without any object changing.
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            () = shutdown.cancelled() => return,
        }
        tokio::time::sleep(SETTLE).await;
    }
}

async fn write(client: &Client, kind: &Kind, object: &Value, status: Value) {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = naru_objects::name_of(object);
    if let Err(error) = client.patch_status(kind, namespace, name, &status).await
        && !error.is_not_found()
    {
        tracing::warn!(kind = kind.kind, name, %error, "a status is not written");
    }
}

/// Conditions have whole seconds.
fn seconds(text: &str) -> String {
    format!("{}Z", text.split('.').next().unwrap_or(text).trim_end_matches('Z'))
}
