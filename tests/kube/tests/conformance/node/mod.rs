//! Group B: what a node does with pods.

mod downward;
mod emptydir;
mod environment;
mod files;
mod lifecycle;
mod pods;
mod probes;
mod resize;
mod security;
mod subpath;

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::Value;

pub fn all() -> Vec<Scenario> {
    [
        downward::all(),
        emptydir::all(),
        environment::all(),
        files::all(),
        lifecycle::all(),
        pods::all(),
        probes::all(),
        resize::all(),
        security::all(),
        subpath::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn node(name: &'static str, run: impl Fn(&Case) + Send + Sync + 'static) -> Scenario {
    scenario(Group::B, name, run)
}

/// The pod's first container, to change it.
fn main_of(pod: &mut Value) -> &mut Value {
    &mut pod["spec"]["containers"][0]
}

/// A pod of one container that shows a volume at `/v`, with changes to the container and to the pod's spec.
fn pod_with_volume(case: &Case, name: &str, script: &str, volume: Value) -> Value {
    let mut pod = case.pod(name, script);
    let mut volume = volume;
    volume["name"] = "v".into();
    pod["spec"]["volumes"] = serde_json::json!([volume]);
    main_of(&mut pod)["volumeMounts"] = serde_json::json!([{"name": "v", "mountPath": "/v"}]);
    pod
}
