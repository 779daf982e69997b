//! The mirror tests: see `tests/kube/README.md`.

mod api;
mod network;
mod node;
mod workloads;

fn main() -> std::process::ExitCode {
    naru_kube_tests::run(
        [api::all(), node::all(), workloads::all(), network::all()].into_iter().flatten().collect(),
    )
}
