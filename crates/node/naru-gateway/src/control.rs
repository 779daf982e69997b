//! Keeps the table true: whenever an object changes, all are compiled anew and the table is swapped.

use crate::table::{Objects, compile};
use crate::{GATEWAY_CLASS, Shared, status};
use naru_client::{Cache, Client};
use naru_objects::{Kind, kinds};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Changes that come together are compiled together; short enough that no dying pod is used for longer.
const SETTLE: Duration = Duration::from_millis(2);

pub async fn run(client: Client, shared: Arc<Shared>, shutdown: CancellationToken) {
    let cache = |kind: &Kind| client.cache(kind, None, "");
    let caches = [
        cache(&kinds::GATEWAY),
        cache(&kinds::HTTP_ROUTE),
        cache(&kinds::SERVICE),
        cache(&kinds::ENDPOINT_SLICE),
    ];
    let mut changes: Vec<_> = caches.iter().map(Cache::changes).collect();
    for cache in &caches {
        tokio::select! {
            () = cache.synced() => {}
            () = shutdown.cancelled() => return,
        }
    }
    loop {
        let (gateways, routes, services, slices) =
            (caches[0].list(), caches[1].list(), caches[2].list(), caches[3].list());
        let objects = Objects { gateways: &gateways, routes: &routes, services: &services, slices: &slices };
        let (table, findings) = compile(objects, &shared.metrics, &shared.table.load());
        shared.replace_table(table);
        let now = seconds(&naru_objects::timestamp(jiff::Timestamp::now()));
        for finding in &findings {
            if let Some(parents) = status::plan(finding, &now) {
                write(&client, &kinds::HTTP_ROUTE, &finding.route, json!({"parents": parents})).await;
            }
        }
        for gateway in gateways.iter().filter(|it| it["spec"]["gatewayClassName"] == GATEWAY_CLASS) {
            let name = naru_objects::name_of(gateway);
            let is_parent = |it: &&status::Finding| {
                it.parents.iter().any(|(parent, refused)| refused.is_none() && parent["name"] == name)
            };
            if let Some(status) =
                status::plan_gateway(gateway, findings.iter().filter(is_parent).count(), &now)
            {
                write(&client, &kinds::GATEWAY, gateway, status).await;
            }
        }
        let [a, b, c, d] = &mut changes[..] else { unreachable!("there are four caches") };
        tokio::select! {
            () = a.wait() => {}
            () = b.wait() => {}
            () = c.wait() => {}
            () = d.wait() => {}
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
