//! The node's place in the cluster: its Node object, its heartbeat, its Lease.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use naru_objects::kinds;
use serde_json::{Value, json};

use crate::eviction::Pressure;
use crate::machine;
use crate::shared::Shared;

/// Where every cluster keeps node leases.
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// kubelet's numbers: a lease holds 40 s and is renewed every 10.
const LEASE_SECONDS: u64 = 40;
const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// The whole status is written seldom, when nothing changed.
const STATUS_PERIOD: u32 = 30;

pub(crate) async fn register(shared: &Shared) -> Result<(), naru_client::Error> {
    let name = shared.config.node_name.as_str();
    match shared.client.create(&kinds::NODE, &machine::node_object(name)).await {
        Err(error) if !error.is_already_exists() => return Err(error),
        _ => {}
    }
    write_status(shared).await?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASE_NAMESPACE}});
    match shared.client.create(&kinds::NAMESPACE, &namespace).await {
        Err(error) if !error.is_already_exists() => return Err(error),
        _ => {}
    }
    renew(shared).await
}

async fn write_status(shared: &Shared) -> Result<(), naru_client::Error> {
    let name = shared.config.node_name.as_str();
    let before = shared
        .client
        .get(&kinds::NODE, "", name)
        .await?
        .map_or(Value::Null, |mut node| node["status"].take());
    let disk = machine::disk_free(&shared.config.state_dir);
    let pressure = *shared.pressure.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Timestamp::now();
    let status = machine::node_status(name, &shared.machine, &shared.host_ip, disk, pressure, &before, now);
    shared.client.patch_status(&kinds::NODE, "", name, &status).await.map(drop)
}

/// Says what the node is short of, and keeps new pods away meanwhile.
pub(crate) async fn write_pressure(shared: &Shared, pressure: Pressure) -> Result<(), naru_client::Error> {
    write_status(shared).await?;
    let name = shared.config.node_name.as_str();
    let Some(node) = shared.client.get(&kinds::NODE, "", name).await? else { return Ok(()) };
    let ours = [
        ("node.kubernetes.io/memory-pressure", pressure.memory),
        ("node.kubernetes.io/disk-pressure", pressure.disk),
        ("node.kubernetes.io/pid-pressure", pressure.pids),
    ];
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let mut wanted: Vec<Value> =
        taints.iter().filter(|taint| ours.iter().all(|(key, _)| taint["key"] != *key)).cloned().collect();
    let short = ours.iter().filter(|(_, short)| *short);
    wanted.extend(short.map(|(key, _)| json!({"key": key, "effect": "NoSchedule"})));
    if wanted == taints {
        return Ok(());
    }
    let patch = json!({"spec": {"taints": wanted}, "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]}});
    shared.client.patch_merge(&kinds::NODE, "", name, &patch).await.map(drop)
}

async fn renew(shared: &Shared) -> Result<(), naru_client::Error> {
    let name = shared.config.node_name.as_str();
    let now = naru_objects::timestamp(Timestamp::now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let patched =
        shared.client.patch_merge(&kinds::LEASE, LEASE_NAMESPACE, name, &json!({"spec": spec})).await;
    match patched {
        Err(error) if error.is_not_found() => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name, "namespace": LEASE_NAMESPACE}, "spec": spec,
            });
            shared.client.create(&kinds::LEASE, &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// Says that the node lives, for as long as it does.
pub(crate) async fn heartbeat(shared: Arc<Shared>) {
    let mut round: u32 = 0;
    loop {
        tokio::time::sleep(LEASE_PERIOD).await;
        round = round.wrapping_add(1);
        let mut result = renew(&shared).await;
        if result.is_ok() && round.is_multiple_of(STATUS_PERIOD) {
            result = write_status(&shared).await;
        }
        if let Err(error) = result {
            tracing::warn!(%error, "cannot renew the node's lease");
        }
    }
}
