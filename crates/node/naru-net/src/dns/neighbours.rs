//! Names of a network's members, which only its members know: `db` means one thing to the pods of one network
//! and nothing, or something else, to others. Pods say in an annotation which networks they are in and by which
//! names; the answer depends on who asks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use naru_objects::labels;
use serde_json::Value;

use super::message::{A, ANY, Answer, Code, Question, Record};

type Networks = BTreeMap<String, Vec<String>>;

fn networks_of(pod: &Value) -> Option<Networks> {
    let text = pod["metadata"]["annotations"][labels::NETWORKS].as_str()?;
    serde_json::from_str(text).ok()
}

fn address_of(pod: &Value) -> Option<Ipv4Addr> {
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    pod["status"]["podIP"].as_str().filter(|_| !ended)?.parse().ok()
}

/// `None` when the asker is in no network with a member of this name.
pub fn answer(pods: &[Arc<Value>], asker: Ipv4Addr, question: &Question) -> Option<Answer> {
    let asks = pods.iter().find(|pod| address_of(pod) == Some(asker))?;
    let own = networks_of(asks).filter(|it| !it.is_empty())?;
    let is_named = |names: &Vec<String>| names.iter().any(|it| it.eq_ignore_ascii_case(&question.name));
    let mut found: Vec<Ipv4Addr> = pods
        .iter()
        .filter(|pod| pod["metadata"]["namespace"] == asks["metadata"]["namespace"])
        .filter(|pod| {
            let theirs = networks_of(pod).unwrap_or_default();
            theirs.iter().any(|(network, names)| own.contains_key(network) && is_named(names))
        })
        .filter_map(|pod| address_of(pod))
        .collect();
    if found.is_empty() {
        return None;
    }
    found.sort_unstable();
    let records = match question.kind {
        A | ANY => found.into_iter().map(|it| Record::address(&question.name, it)).collect(),
        // There is such a name, without what was asked for.
        _ => Vec::new(),
    };
    Some(Answer { code: Code::Fine, records, additional: vec![], outside: None, zone: None })
}

#[cfg(test)]
mod tests {
    use super::super::message::query_for_address;
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_means_something_to_the_members_of_its_network_only() {
        let pod = |address: &str, phase: &str, networks: Value| {
            Arc::new(json!({
                "metadata": {"namespace": "docker", "annotations": {labels::NETWORKS: networks.to_string()}},
                "status": {"podIP": address, "phase": phase},
            }))
        };
        let pods = [
            pod("10.9.0.2", "Running", json!({"front": ["web"], "back": ["web"]})),
            pod("10.9.0.3", "Running", json!({"back": ["db", "Db-1"]})),
            pod("10.9.0.4", "Running", json!({"other": ["db"]})),
            pod("10.9.0.5", "Failed", json!({"back": ["db"]})),
            Arc::new(json!({"metadata": {"namespace": "docker"}, "status": {"podIP": "10.9.0.6"}})),
        ];
        let ask = |from: &str, name: &str, kind: u16| {
            let mut question = Question::parse(&query_for_address(name)).expect("a question");
            question.kind = kind;
            let answer = answer(&pods, from.parse().expect("an address"), &question)?;
            Some(answer.records.len())
        };
        assert_eq!(ask("10.9.0.2", "db", A), Some(1), "of its own networks, and running");
        assert_eq!(ask("10.9.0.2", "DB-1", A), Some(1));
        assert_eq!(ask("10.9.0.2", "db", 28), Some(0), "without an address of the sixth version");
        assert_eq!(ask("10.9.0.3", "web", A), Some(1));
        assert_eq!(ask("10.9.0.4", "web", A), None, "it is asked elsewhere");
        assert_eq!(ask("10.9.0.6", "db", A), None);
    }
}
