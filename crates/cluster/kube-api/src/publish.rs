//! The service by which pods find the API.

use std::net::SocketAddr;

use kube_kinds::{Failure, table};
use kube_objects::{Door, Writer};
use serde_json::{Value, json};

use crate::{Api, SERVICE_ADDRESS};

pub(crate) async fn publish(api: &Api, address: SocketAddr) -> Result<(), Failure> {
    let (ip, port) = (address.ip().to_string(), address.port());
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": SERVICE_ADDRESS, "type": "ClusterIP", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]},
    });
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    write(api, "", "Service", service, &["spec"]).await?;
    write(api, "", "Endpoints", endpoints, &["subsets"]).await?;
    write(api, "discovery.k8s.io", "EndpointSlice", slice, &["endpoints", "ports"]).await
}

/// Makes the object, or sets these fields of the one that is there.
async fn write(api: &Api, group: &str, kind: &str, object: Value, fields: &[&str]) -> Result<(), Failure> {
    let kind = table::of(group, kind).expect("the table of kinds has services and endpoints");
    let writer = Writer::new("naru");
    if api.objects().find(kind, "default", "kubernetes").is_none() {
        return api.objects().create(kind, "default", object, &writer).await.map(drop);
    }
    let edit = |live: &mut Value| {
        for field in fields {
            match (&mut live[*field], &object[*field]) {
                // What the server adds to a specification stays.
                (Value::Object(live), Value::Object(wanted)) => {
                    live.extend(wanted.iter().map(|(name, it)| (name.clone(), it.clone())));
                }
                (live, wanted) => *live = wanted.clone(),
            }
        }
    };
    api.objects().edit(kind, "default", "kubernetes", Door::Object, &writer, edit).await.map(drop)
}
