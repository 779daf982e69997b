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
mod cleanup;
mod conditions;
mod cron_job;
mod daemon_set;
mod deployment;
#[cfg(test)]
mod deployment_tests;
mod endpoints;
mod expiry;
mod garbage;
mod harness;
mod hash;
mod history;
mod job;
mod placement;
mod pods;
mod replica_set;
mod scheduler;
mod stateful_set;

use kube_objects::Objects;
use kube_store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use action::Action;
use harness::Controller;

/// All controllers.
fn controllers() -> Vec<Box<dyn Controller>> {
    vec![
        Box::new(deployment::Deployments),
        Box::new(replica_set::ReplicaSets),
        Box::new(replica_set::ReplicationControllers),
        Box::new(stateful_set::StatefulSets),
        Box::new(daemon_set::DaemonSets),
        Box::new(job::Jobs),
        Box::new(cron_job::CronJobs),
        Box::new(endpoints::EndpointSlices),
        Box::new(scheduler::Scheduler),
        Box::new(garbage::GarbageCollector),
        Box::new(cleanup::Cleanup),
        Box::new(expiry::EventExpiry),
    ]
}

/// Runs all controllers until `shutdown`. The handle ends when the last one has finished what it
/// was doing.
pub fn start(store: Store, shutdown: CancellationToken) -> JoinHandle<()> {
    let objects = Objects::new(store);
    let running: Vec<JoinHandle<()>> = controllers()
        .into_iter()
        .map(|it| tokio::spawn(harness::run(it, objects.clone(), shutdown.clone())))
        .collect();
    tokio::spawn(async move {
        for it in running {
            if let Err(error) = it.await {
                tracing::error!(%error, "a controller has ended unexpectedly: this is a bug in Naru");
            }
        }
    })
}
