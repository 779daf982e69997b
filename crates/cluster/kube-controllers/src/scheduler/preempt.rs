//! Room for an important pod at the cost of less important ones.

use std::collections::HashMap;
use std::sync::Arc;

use kube_kinds::selector::LabelSelector;
use kube_kinds::{int, is_deleting, list, namespace, text};
use serde_json::Value;

use super::demand::Demand;
use super::fit::{Question, Refusal};
use super::nodes::Nodes;

/// Who has to go from where.
#[derive(Debug)]
pub struct Sacrifice {
    pub node: usize,
    /// Storage keys.
    pub victims: Vec<(String, Arc<Demand>)>,
}

/// The node where it costs least: no budget broken, then the least important victims, then the fewest.
pub fn plan(
    nodes: &mut Nodes,
    demand: &Arc<Demand>,
    refusals: &[(usize, Refusal)],
    namespaces: &HashMap<String, Value>,
    volumes: &[Arc<Value>],
    budgets: &[Arc<Value>],
) -> Option<Sacrifice> {
    if demand.pod["spec"]["preemptionPolicy"] == "Never" {
        return None;
    }
    let mut best: Option<((usize, i64, i64, usize), Sacrifice)> = None;
    let curable: Vec<usize> = refusals.iter().filter(|it| it.1.curable).map(|it| it.0).collect();
    for at in curable {
        let node = nodes.at(at);
        let mut lower: Vec<(String, Arc<Demand>)> = node
            .pods
            .iter()
            .filter(|(_, it)| it.priority < demand.priority)
            .map(|(key, it)| (key.clone(), it.clone()))
            .collect();
        if lower.is_empty() {
            continue;
        }
        let name = node.name.clone();
        for (key, _) in &lower {
            nodes.remove(key);
        }
        let fits = |nodes: &Nodes| {
            let question = Question::new(demand, nodes, namespaces, volumes.to_vec());
            question.refusal(nodes.at(at), &[]).is_none()
        };
        let mut victims = Vec::new();
        if fits(nodes) {
            // Back with those that need not go: protected ones first, then the most important.
            let mut left: HashMap<usize, i64> = budgets
                .iter()
                .enumerate()
                .map(|(at, it)| (at, int(it, "/status/disruptionsAllowed")))
                .collect();
            let breaks = |pod: &Value, left: &HashMap<usize, i64>| {
                budgets.iter().enumerate().any(|(at, it)| protects(it, pod) && left[&at] <= 0)
            };
            lower.sort_by_key(|(key, it)| (std::cmp::Reverse(it.priority), key.clone()));
            lower.sort_by_key(|(_, it)| !breaks(&it.pod, &left));
            let mut broken = 0;
            for (key, it) in &lower {
                nodes.place(key, &name, it.clone());
                if fits(nodes) {
                    continue;
                }
                nodes.remove(key);
                broken += usize::from(breaks(&it.pod, &left));
                let protecting = budgets.iter().enumerate().filter(|(_, budget)| protects(budget, &it.pod));
                for (at, _) in protecting {
                    *left.entry(at).or_default() -= 1;
                }
                victims.push((key.clone(), it.clone()));
            }
            let highest = victims.iter().map(|(_, it)| it.priority).max().unwrap_or(i64::MIN);
            let sum = victims.iter().map(|(_, it)| it.priority).fold(0i64, i64::saturating_add);
            let cost = (broken, highest, sum, victims.len());
            if !victims.is_empty() && best.as_ref().is_none_or(|(known, _)| cost < *known) {
                best = Some((cost, Sacrifice { node: at, victims: victims.clone() }));
            }
        }
        // Nobody has gone yet.
        for (key, it) in lower {
            nodes.place(&key, &name, it);
        }
    }
    best.map(|it| it.1)
}

fn protects(budget: &Value, pod: &Value) -> bool {
    namespace(budget) == namespace(pod)
        && !is_deleting(budget)
        && budget["spec"]["selector"].is_object()
        && LabelSelector::from_object(&budget["spec"]["selector"]).is_some_and(|it| it.matches(pod))
}

/// Whether the pod waits for victims that are still on their way out.
pub fn is_under_way(nodes: &Nodes, pod: &Value) -> bool {
    let nominated = text(pod, "/status/nominatedNodeName");
    let Some(at) = nodes.find(nominated).filter(|_| !nominated.is_empty()) else { return false };
    let priority = int(pod, "/spec/priority");
    nodes.at(at).pods.values().any(|it| {
        it.priority < priority
            && is_deleting(&it.pod)
            && list(&it.pod, "/status/conditions").iter().any(|it| it["reason"] == "PreemptionByScheduler")
    })
}
