//! Which nodes can have a pod, and which of them is best.

use std::collections::HashMap;
use std::sync::Arc;

use kube_kinds::selector::LabelSelector;
use kube_kinds::{int, list, namespace, text};
use serde_json::Value;

use super::demand::{Demand, Spread, Term, ports_clash};
use super::nodes::{Node, Nodes};
use crate::placement;

/// Why a node cannot have the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub why: String,
    /// Whether taking pods off the node may help.
    pub curable: bool,
}

fn never(why: impl Into<String>) -> Refusal {
    Refusal { why: why.into(), curable: false }
}

fn for_now(why: impl Into<String>) -> Refusal {
    Refusal { why: why.into(), curable: true }
}

/// What of a pod's fate is the same for all nodes, computed once per attempt.
pub struct Question<'a> {
    pub demand: &'a Demand,
    /// Labels of namespaces, for terms that select them.
    pub namespaces: &'a HashMap<String, Value>,
    /// Volumes that only some nodes can reach.
    pub volumes: Vec<Arc<Value>>,
    /// Values of a topology that existing pods keep this one away from.
    kept_away: Vec<(String, String)>,
    /// For each required term, by value of its topology, how many pods match.
    affinity: Vec<HashMap<String, i64>>,
    anti_affinity: Vec<HashMap<String, i64>>,
    /// For each constraint, by value of its topology, how many pods match.
    spreads: Vec<HashMap<String, i64>>,
    preferred: Vec<HashMap<String, i64>>,
}

fn term_matches(term: &Term, pod: &Value, namespaces: &HashMap<String, Value>) -> bool {
    let place = namespace(pod);
    let here = term.namespaces.iter().any(|it| it == place)
        || term.namespace_selector.as_ref().is_some_and(|it| {
            it.is_empty() || namespaces.get(place).is_some_and(|labels| it.matches_labels(labels))
        });
    here && term.selector.matches(pod)
}

impl<'a> Question<'a> {
    pub fn new(
        demand: &'a Demand,
        nodes: &Nodes,
        namespaces: &'a HashMap<String, Value>,
        volumes: Vec<Arc<Value>>,
    ) -> Question<'a> {
        let mut kept_away = Vec::new();
        for (key, at) in &nodes.keep_away {
            let node = nodes.at(*at);
            for term in node.pods.get(key).iter().flat_map(|it| &it.anti_affinity) {
                if let Some(value) = node.label(&term.topology)
                    && term_matches(term, &demand.pod, namespaces)
                {
                    kept_away.push((term.topology.clone(), value.to_string()));
                }
            }
        }
        let count = |terms: &[Term]| -> Vec<HashMap<String, i64>> {
            let counts = terms.iter().map(|term| {
                let mut counts = HashMap::new();
                for (node, other) in nodes.pods() {
                    if let Some(value) = node.label(&term.topology)
                        && term_matches(term, &other.pod, namespaces)
                    {
                        *counts.entry(value.to_string()).or_default() += 1;
                    }
                }
                counts
            });
            counts.collect()
        };
        let spreads = demand.spreads.iter().map(|it| spread_counts(it, demand, nodes)).collect();
        Question {
            demand,
            namespaces,
            volumes,
            kept_away,
            affinity: count(&demand.affinity),
            anti_affinity: count(&demand.anti_affinity),
            spreads,
            preferred: count(&demand.preferred),
        }
    }

    /// `extra` are pods that a node is promised to.
    pub fn refusal(&self, node: &Node, extra: &[&Arc<Demand>]) -> Option<Refusal> {
        let Some(object) = &node.object else { return Some(never("node(s) were unschedulable")) };
        let pod = &self.demand.pod;
        if node.tainted
            && let Some(refusal) = taint_refusal(pod, object, node.ready)
        {
            return Some(refusal);
        }
        if self.demand.selects && !placement::selects(pod, object) {
            return Some(never("node(s) didn't match Pod's node affinity/selector"));
        }
        if self.volumes.iter().any(|it| !crate::volumes::allows(it, object)) {
            return Some(never("node(s) had volume node affinity conflict"));
        }
        let clash = |other: &Demand| {
            other.ports.iter().any(|it| self.demand.ports.iter().any(|own| ports_clash(own, it)))
        };
        if !self.demand.ports.is_empty()
            && node.pods.values().chain(extra.iter().copied()).any(|it| clash(it))
        {
            return Some(for_now("node(s) didn't have free ports for the requested pod ports"));
        }
        self.resource_refusal(node, extra).or_else(|| self.neighbour_refusal(node))
    }

    fn resource_refusal(&self, node: &Node, extra: &[&Arc<Demand>]) -> Option<Refusal> {
        if node.pods.len() + extra.len() + 1 > node.pods_max {
            return Some(for_now("Too many pods"));
        }
        if !node.is_measured() {
            return None;
        }
        let sum = |of: fn(&Demand) -> i64| extra.iter().map(|it| of(it)).sum::<i64>();
        let asked = &self.demand.amounts;
        for (resource, asked, has, taken) in [
            (
                "cpu",
                asked.cpu_milli,
                node.has.cpu_milli,
                node.taken.cpu_milli + sum(|it| it.amounts.cpu_milli),
            ),
            ("memory", asked.memory, node.has.memory, node.taken.memory + sum(|it| it.amounts.memory)),
            ("ephemeral-storage", asked.storage, node.has.storage, node.taken.storage),
        ] {
            if asked > 0 && asked > has - taken {
                let never_fits = asked > has;
                let why = format!("Insufficient {resource}");
                return Some(if never_fits { never(why) } else { for_now(why) });
            }
        }
        for (resource, count) in &asked.others {
            let has = node.has.others.get(resource).copied().unwrap_or(0);
            let taken = node.taken.others.get(resource).copied().unwrap_or(0);
            if *count > has - taken {
                return Some(for_now(format!("Insufficient {resource}")));
            }
        }
        None
    }

    /// Pods that must be near, must not be near, or must be spread.
    fn neighbour_refusal(&self, node: &Node) -> Option<Refusal> {
        if self.kept_away.iter().any(|(topology, value)| node.label(topology) == Some(value)) {
            return Some(for_now("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        let near = |counts: &HashMap<String, i64>, term: &Term| {
            node.label(&term.topology).map(|it| counts.get(it).copied().unwrap_or(0))
        };
        for (term, counts) in self.demand.affinity.iter().zip(&self.affinity) {
            // The first of a group that wants to be together may go anywhere.
            let first = counts.is_empty() && term_matches(term, &self.demand.pod, self.namespaces);
            let near = near(counts, term);
            if near.is_none() || (near == Some(0) && !first) {
                return Some(never("node(s) didn't match pod affinity rules"));
            }
        }
        for (term, counts) in self.demand.anti_affinity.iter().zip(&self.anti_affinity) {
            if near(counts, term).is_some_and(|it| it > 0) {
                return Some(for_now("node(s) didn't match pod anti-affinity rules"));
            }
        }
        for (spread, counts) in self.demand.spreads.iter().zip(&self.spreads).filter(|(it, _)| it.required) {
            let Some(value) = node.label(&spread.topology) else {
                return Some(never(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let few = (counts.len() as i64) < spread.domains_min;
            let least = if few { 0 } else { counts.values().min().copied().unwrap_or(0) };
            let own = i64::from(spread.selector.matches(&self.demand.pod));
            if counts.get(value).copied().unwrap_or(0) + own - least > spread.skew_max {
                return Some(for_now("node(s) didn't match pod topology spread constraints"));
            }
        }
        None
    }

    /// The higher the better.
    pub fn score(&self, node: &Node) -> i64 {
        let Some(object) = &node.object else { return 0 };
        let mut score = room_score(self.demand, node);
        let preferences = "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution";
        if self.demand.selects {
            let held = list(&self.demand.pod, preferences)
                .iter()
                .filter(|it| placement::matches_term(&it["preference"], object));
            score += 2 * held.map(|it| int(it, "/weight")).sum::<i64>();
        }
        if node.tainted && placement::untolerated(&self.demand.pod, object, &["PreferNoSchedule"]).is_some() {
            score -= 300;
        }
        for (term, counts) in self.demand.preferred.iter().zip(&self.preferred) {
            let near = node.label(&term.topology).and_then(|it| counts.get(it)).copied().unwrap_or(0);
            score += 2 * term.weight * near;
        }
        for (spread, counts) in self.demand.spreads.iter().zip(&self.spreads) {
            let here = node.label(&spread.topology).and_then(|it| counts.get(it)).copied().unwrap_or(0);
            score -= 100 * here / spread.skew_max;
        }
        score
    }
}

/// Free cpu and memory after the pod, 0 to 100, and as much again when both are used evenly.
fn room_score(demand: &Demand, node: &Node) -> i64 {
    if !node.is_measured() {
        return 100 - (node.pods.len() as i64).min(100);
    }
    // Pods that ask for nothing use something.
    let asked = |amount: i64, standard: i64| if amount > 0 { amount } else { standard };
    let part = |has: i64, taken: i64, asked: i64| match has {
        0 => 0,
        has => ((taken + asked) * 1000 / has).clamp(0, 1000),
    };
    let count = node.pods.len() as i64;
    let cpu =
        part(node.has.cpu_milli, node.taken.cpu_milli.max(count * 100), asked(demand.amounts.cpu_milli, 100));
    const STANDARD_MEMORY: i64 = 200 << 20;
    let memory = part(
        node.has.memory,
        node.taken.memory.max(count.saturating_mul(STANDARD_MEMORY)),
        asked(demand.amounts.memory, STANDARD_MEMORY),
    );
    (2000 - cpu - memory) / 20 + (1000 - (cpu - memory).abs()) / 10
}

fn taint_refusal(pod: &Value, node: &Value, ready: bool) -> Option<Refusal> {
    if let Some(taint) = placement::untolerated(pod, node, &["NoSchedule", "NoExecute"]) {
        if text(taint, "/key") == "node.kubernetes.io/unschedulable" {
            return Some(never("node(s) were unschedulable"));
        }
        let (key, value) = (text(taint, "/key"), text(taint, "/value"));
        return Some(never(format!("node(s) had untolerated taint {{{key}: {value}}}")));
    }
    // Conditions become taints a moment later.
    let implied = |key: &str| serde_json::json!({"key": key, "effect": "NoSchedule"});
    let tolerates =
        |key: &str| list(pod, "/spec/tolerations").iter().any(|it| placement::tolerates(it, &implied(key)));
    if node["spec"]["unschedulable"] == true && !tolerates("node.kubernetes.io/unschedulable") {
        return Some(never("node(s) were unschedulable"));
    }
    if !ready && !tolerates("node.kubernetes.io/not-ready") {
        return Some(never("node(s) had untolerated taint {node.kubernetes.io/not-ready: }"));
    }
    None
}

/// Matching pods by value of the topology, over the nodes that count; each value is there, if with 0.
fn spread_counts(spread: &Spread, demand: &Demand, nodes: &Nodes) -> HashMap<String, i64> {
    let mut counts = HashMap::new();
    let place = namespace(&demand.pod);
    let matches = |selector: &LabelSelector, pod: &Value| {
        namespace(pod) == place && !kube_kinds::is_deleting(pod) && selector.matches(pod)
    };
    for (_, node) in nodes.known() {
        let (Some(object), Some(value)) = (&node.object, node.label(&spread.topology)) else { continue };
        let counted = (!spread.honors_affinity || placement::selects(&demand.pod, object))
            && (!spread.honors_taints || taint_refusal(&demand.pod, object, node.ready).is_none());
        if counted {
            let count = node.pods.values().filter(|it| matches(&spread.selector, &it.pod)).count();
            *counts.entry(value.to_string()).or_default() += count as i64;
        }
    }
    counts
}
