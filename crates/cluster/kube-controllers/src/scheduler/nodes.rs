//! The nodes as the scheduler sees them: what they have, and what the pods on them take.

use std::collections::HashMap;
use std::sync::Arc;

use kube_kinds::{int, is_deleting, list, name};
use serde_json::Value;

use super::demand::{Amounts, Demand};

#[derive(Debug)]
pub struct Node {
    pub name: String,
    /// `None` while pods are known of a node that is not.
    pub object: Option<Arc<Value>>,
    pub has: Amounts,
    pub pods_max: usize,
    pub taken: Amounts,
    /// By storage key.
    pub pods: HashMap<String, Arc<Demand>>,
    pub ready: bool,
    pub tainted: bool,
}

impl Node {
    fn unknown(name: &str) -> Node {
        Node {
            name: name.to_string(),
            object: None,
            has: Amounts::default(),
            pods_max: 0,
            taken: Amounts::default(),
            pods: HashMap::new(),
            ready: false,
            tainted: false,
        }
    }

    fn set(&mut self, object: &Arc<Value>) {
        let allocatable = &object["status"]["allocatable"];
        let has = if allocatable.is_object() { allocatable } else { &object["status"]["capacity"] };
        self.has = Amounts::of(has);
        let pods = match &has["pods"] {
            Value::String(text) => text.parse().unwrap_or(110),
            Value::Number(_) => int(has, "/pods"),
            _ => 110,
        };
        self.pods_max = usize::try_from(pods).unwrap_or(0);
        self.ready = kube_kinds::condition_is_true(object, "Ready") && !is_deleting(object);
        self.tainted = !list(object, "/spec/taints").is_empty()
            || object["spec"]["unschedulable"] == true
            || !self.ready;
        self.object = Some(object.clone());
    }

    /// Whether the node says what it has; one that does not refuses nothing.
    pub fn is_measured(&self) -> bool {
        self.has.cpu_milli > 0 || self.has.memory > 0
    }

    pub fn add(&mut self, key: &str, demand: Arc<Demand>) {
        self.remove(key);
        self.taken.add(&demand.amounts);
        self.pods.insert(key.to_string(), demand);
    }

    pub fn remove(&mut self, key: &str) -> Option<Arc<Demand>> {
        let demand = self.pods.remove(key)?;
        self.taken.take(&demand.amounts);
        Some(demand)
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.object.as_ref()?["metadata"]["labels"][key].as_str()
    }
}

/// All nodes, with the pods on them.
#[derive(Debug, Default)]
pub struct Nodes {
    all: Vec<Node>,
    by_name: HashMap<String, usize>,
    /// Where each pod is, by storage key.
    places: HashMap<String, usize>,
    /// Pods that keep others away; few clusters have any.
    pub keep_away: HashMap<String, usize>,
}

impl Nodes {
    pub fn known(&self) -> impl Iterator<Item = (usize, &Node)> {
        self.all.iter().enumerate().filter(|(_, it)| it.object.is_some())
    }

    pub fn len(&self) -> usize {
        self.known().count()
    }

    /// Slots, also of nodes that are no more.
    pub fn slots(&self) -> usize {
        self.all.len()
    }

    pub fn at(&self, at: usize) -> &Node {
        &self.all[at]
    }

    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied().filter(|at| self.all[*at].object.is_some())
    }

    fn slot(&mut self, name: &str) -> usize {
        if let Some(at) = self.by_name.get(name) {
            return *at;
        }
        self.all.push(Node::unknown(name));
        self.by_name.insert(name.to_string(), self.all.len() - 1);
        self.all.len() - 1
    }

    pub fn set(&mut self, object: &Arc<Value>) {
        let at = self.slot(name(object));
        self.all[at].set(object);
    }

    pub fn forget(&mut self, name: &str) {
        if let Some(at) = self.by_name.get(name) {
            self.all[*at].object = None;
        }
    }

    /// Puts a pod on a node, or moves it.
    pub fn place(&mut self, key: &str, node: &str, demand: Arc<Demand>) {
        self.remove(key);
        let at = self.slot(node);
        if !demand.anti_affinity.is_empty() {
            self.keep_away.insert(key.to_string(), at);
        }
        self.all[at].add(key, demand);
        self.places.insert(key.to_string(), at);
    }

    pub fn remove(&mut self, key: &str) -> Option<Arc<Demand>> {
        let at = self.places.remove(key)?;
        self.keep_away.remove(key);
        self.all[at].remove(key)
    }

    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Arc<Demand>)> {
        self.all.iter().flat_map(|node| node.pods.values().map(move |it| (node, it)))
    }
}
