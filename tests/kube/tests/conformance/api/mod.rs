//! Group A: what needs no container.

mod commands;
mod crds;
mod discovery;
mod events;
mod fields;
mod identity;
mod kinds;
mod namespaces;
mod objects;
mod quota;
mod watching;

use naru_kube_tests::Scenario;

pub fn all() -> Vec<Scenario> {
    [
        commands::all(),
        crds::all(),
        discovery::all(),
        events::all(),
        fields::all(),
        identity::all(),
        kinds::all(),
        namespaces::all(),
        objects::all(),
        quota::all(),
        watching::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
