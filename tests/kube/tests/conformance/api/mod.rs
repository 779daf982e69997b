//! Group A: what needs no container.

mod discovery;

use naru_kube_tests::Scenario;

pub fn all() -> Vec<Scenario> {
    [discovery::all()].into_iter().flatten().collect()
}
