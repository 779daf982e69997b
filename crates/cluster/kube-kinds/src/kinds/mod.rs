//! The kinds by group: each file holds rows and what is special about them.

mod admission;
mod apps;
mod autoscaling;
mod batch;
mod certificates;
mod devices;
mod events;
mod flow;
mod limits;
mod network;
mod policy;
mod rbac;
mod storage;

use crate::Kind;

pub(crate) fn rows() -> Vec<Kind> {
    [
        apps::rows,
        batch::rows,
        autoscaling::rows,
        policy::rows,
        network::rows,
        storage::rows,
        limits::rows,
        rbac::rows,
        events::rows,
        admission::rows,
        flow::rows,
        certificates::rows,
        devices::rows,
    ]
    .into_iter()
    .flat_map(|rows| rows())
    .collect()
}
