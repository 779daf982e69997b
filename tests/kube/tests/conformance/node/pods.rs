use naru_kube_tests::Scenario;

pub fn all() -> Vec<Scenario> {
    Vec::new()
}
