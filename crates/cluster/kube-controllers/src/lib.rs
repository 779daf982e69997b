//! The controllers that make standard Kubernetes objects true: Deployments become ReplicaSets,
//! ReplicaSets and Jobs become Pods, Pods get a node, Services get EndpointSlices, and what nobody
//! owns any more goes.
//!
//! Each controller is two steps: *observe* reads the objects that one key concerns from the store
//! (which is in memory and never stale), and a plain `reconcile(observed, now)` answers with
//! [`Action`]s. [`harness`] does the rest: it wakes a controller when something it cares about
//! changes, carries the actions out, and tries again with growing pauses. Nothing polls; a wait
//! for a time is part of the answer.
//!
//! Not here: anything about containers (the node's work) or the kinds of the loop.

mod action;
mod adoption;
mod amount;
mod autoscale;
mod cleanup;
mod conditions;
mod cron_job;
mod daemon_set;
mod deployment;
#[cfg(test)]
mod deployment_tests;
mod disruption;
mod endpoints;
mod endpoints_legacy;
mod ephemeral_volumes;
mod expiry;
mod garbage;
mod harness;
mod hash;
mod history;
mod job;
mod node_lifecycle;
mod placement;
mod pods;
mod quota;
mod replica_set;
mod scheduler;
mod service_accounts;
pub mod simulate;
mod stateful_set;
mod volumes;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_objects::{Objects, Writer};
use kube_store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use action::Action;
pub use autoscale::{Usage, Used};
use harness::Controller;

/// What the controllers are told from outside.
#[derive(Clone, Default)]
pub struct Settings {
    /// The certificate (PEM) by which pods know the API; each namespace gets it as a ConfigMap.
    pub cluster_ca: Option<String>,
    /// Where volumes of the class `local-path` have their directories.
    pub volumes: Option<PathBuf>,
    /// What pods use, for autoscaling.
    pub usage: Option<Arc<dyn Usage>>,
}

/// All controllers.
fn controllers(settings: &Settings) -> Vec<Box<dyn Controller>> {
    let Settings { cluster_ca, volumes, usage } = settings.clone();
    vec![
        Box::new(deployment::Deployments),
        Box::new(replica_set::ReplicaSets),
        Box::new(replica_set::ReplicationControllers),
        Box::new(stateful_set::StatefulSets),
        Box::new(daemon_set::DaemonSets),
        Box::new(job::Jobs),
        Box::new(cron_job::CronJobs),
        Box::new(autoscale::Autoscalers { usage, past: Mutex::default() }),
        Box::new(disruption::DisruptionBudgets),
        Box::new(endpoints::EndpointSlices),
        Box::new(endpoints_legacy::Endpoints),
        Box::new(volumes::Volumes { directory: volumes }),
        Box::new(ephemeral_volumes::EphemeralVolumes),
        Box::new(node_lifecycle::NodeLifecycle { started: Timestamp::now() }),
        Box::new(service_accounts::ServiceAccounts { cluster_ca }),
        Box::new(quota::Quotas),
        Box::new(garbage::GarbageCollector),
        Box::new(cleanup::Cleanup),
        Box::new(expiry::EventExpiry),
    ]
}

/// Runs all controllers until `shutdown`. The handle ends when the last one has finished what it
/// was doing.
pub fn start(store: Store, settings: Settings, shutdown: CancellationToken) -> JoinHandle<()> {
    let objects = Objects::new(store);
    let mut running: Vec<JoinHandle<()>> = controllers(&settings)
        .into_iter()
        .map(|it| tokio::spawn(harness::run(it, objects.clone(), shutdown.clone())))
        .collect();
    running.push(tokio::spawn(scheduler::run(objects.clone(), shutdown)));
    tokio::spawn(async move {
        if settings.volumes.is_some() {
            offer_local_path(&objects).await;
        }
        for it in running {
            if let Err(error) = it.await {
                tracing::error!(%error, "a controller has ended unexpectedly: this is a bug in Naru");
            }
        }
    })
}

/// A fresh cluster can store; one whose classes somebody has chosen is left alone.
async fn offer_local_path(objects: &Objects) {
    let classes = action::kind("storage.k8s.io", "StorageClass");
    if !objects.list(&classes, None, &LabelSelector::default()).is_empty() {
        return;
    }
    let writer = Writer::new("persistentvolume-controller");
    if let Err(failure) = objects.create(&classes, "", volumes::default_class(), &writer).await {
        tracing::warn!(%failure, "the storage class {} cannot be made", volumes::CLASS);
    }
}
