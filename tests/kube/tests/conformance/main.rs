//! The mirror tests: see `tests/kube/README.md`.

#![expect(clippy::unwrap_used, reason = "a scenario that cannot set itself up fails where it stands")]

mod api;
mod network;
mod node;
mod workloads;

fn main() -> std::process::ExitCode {
    naru_kube_tests::run(
        [api::all(), node::all(), workloads::all(), network::all()].into_iter().flatten().collect(),
    )
}
