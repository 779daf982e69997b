//! Carries plans out: a `Run` object becomes pods, one per job, and what they report becomes its status.
//!
//! Two halves meet in the pod's log. Outside, the [`controller`] watches `Run`s, plans, creates pods and
//! reads their logs. Inside the pod, [`job`] runs the steps and writes, between the lines of the steps,
//! lines of its own ([`protocol`]) that tell how far it is. The pod therefore goes on while the daemon is
//! away, and a daemon that comes back reads the log from its start and knows everything.

pub mod controller;
pub mod job;
pub mod labels;
pub mod launch;
pub mod local;
pub mod protocol;
pub mod reports;
pub mod warm;

mod calls;
mod contexts;
mod files;
mod mask;

pub use controller::{Config, start};
