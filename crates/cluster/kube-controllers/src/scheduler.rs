//! Scheduler: gives every pod the best of the nodes that can have it, or says why none can.
//!
//! It keeps its own picture of nodes and pods, fed by the watch; a decision is taken from the picture at
//! once and carried out beside the next ones, so that many bindings share one write to the disk. Pods that
//! fit nowhere wait for a change that may help, with growing pauses.

mod demand;
mod fit;
mod nodes;
mod preempt;
mod queue;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::Propagation;
use kube_kinds::{Failure, int, is_deleting, list, name, namespace, parse_key, text, time, uid};
use kube_objects::{EventType, Objects, Writer};
use kube_store::Change;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::action::{Action, execute, kind};
use crate::pods;
use demand::Demand;
use fit::{Question, Refusal};
use nodes::Nodes;
use queue::Queue;

const NAME: &str = "default-scheduler";
/// Decisions that are being written; more would only wait in the store's queue.
const WRITES_MAX: usize = 512;
/// Decisions between two looks at the news.
const DECISIONS_IN_A_ROW_MAX: usize = 64;
/// Enough nodes to choose from: looking at a thousand for each pod finds hardly better ones.
const CANDIDATES_MAX: usize = 100;

type Work<'a> = FuturesUnordered<BoxFuture<'a, (String, Result<(), Failure>)>>;

/// Runs until `shutdown`.
pub async fn run(objects: Objects, shutdown: CancellationToken) {
    let writer = Writer::new(NAME);
    let mut scheduler = Scheduler::new(&objects);
    let mut work: Work<'_> = FuturesUnordered::new();
    let mut watcher = scheduler.look_at_everything();
    while !shutdown.is_cancelled() {
        for _ in 0..DECISIONS_IN_A_ROW_MAX {
            if work.len() >= WRITES_MAX {
                break;
            }
            let Some(key) = scheduler.queue.pop() else { break };
            if let Some(decision) = scheduler.decide(&key) {
                let (objects, writer) = (&objects, &writer);
                work.push(async move { (key, carry_out(objects, decision, writer).await) }.boxed());
            }
        }
        let more = work.len() < WRITES_MAX && scheduler.queue.has_ready();
        let next_at = scheduler.queue.next_at();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            batch = watcher.next() => match batch {
                Ok(batch) => batch.changes.iter().for_each(|it| scheduler.learn(it)),
                Err(error) => {
                    tracing::debug!(%error, "looking at all nodes and pods again");
                    watcher = scheduler.look_at_everything();
                }
            },
            Some((key, result)) = work.next() => scheduler.done(&key, result),
            () = crate::harness::sleep_until(next_at) => scheduler.queue.wake_due(Instant::now()),
            () = tokio::task::yield_now(), if more => {}
        }
    }
    while work.next().await.is_some() {}
}

/// What follows from one look at one pod.
enum Decision {
    /// Claims that get their volumes first, then the actions.
    Bind {
        claims: Vec<String>,
        place: String,
        node: String,
        actions: Vec<Action>,
    },
    Tell(Vec<Action>),
}

async fn carry_out(objects: &Objects, decision: Decision, writer: &Writer) -> Result<(), Failure> {
    match decision {
        Decision::Tell(actions) => execute(objects, actions, writer).await,
        Decision::Bind { claims, place, node, actions } => {
            if !claims.is_empty() {
                storage::bind(objects, &place, &claims, &node, writer).await?;
            }
            execute(objects, actions, writer).await
        }
    }
}

struct Scheduler<'a> {
    objects: &'a Objects,
    nodes: Nodes,
    namespaces: HashMap<String, Value>,
    queue: Queue,
    /// Pods whose binding is being written.
    assumed: HashSet<String>,
    /// Pods that wait for their victims to go: node and demand.
    nominated: HashMap<String, (String, Arc<Demand>)>,
    /// Where the last search ended; the next begins there.
    start: usize,
}

fn waits(pod: &Value) -> bool {
    text(pod, "/spec/nodeName").is_empty()
        && text(pod, "/spec/schedulerName") == NAME
        && pods::is_active(pod)
        && !is_deleting(pod)
}

impl<'a> Scheduler<'a> {
    fn new(objects: &'a Objects) -> Scheduler<'a> {
        Scheduler {
            objects,
            nodes: Nodes::default(),
            namespaces: HashMap::new(),
            queue: Queue::default(),
            assumed: HashSet::new(),
            nominated: HashMap::new(),
            start: 0,
        }
    }

    fn look_at_everything(&mut self) -> kube_store::Watcher {
        let (snapshot, watcher) = self.objects.store().list_and_watch("");
        // Bindings under way are in no snapshot yet.
        let assumed: Vec<(String, String, Arc<Demand>)> = self
            .nodes
            .known()
            .flat_map(|(_, node)| node.pods.iter().map(move |(key, it)| (key, node, it)))
            .filter(|(key, _, _)| self.assumed.contains(*key))
            .map(|(key, node, it)| (key.clone(), node.name.clone(), it.clone()))
            .collect();
        self.nodes = Nodes::default();
        for (key, node, demand) in assumed {
            self.nodes.place(&key, &node, demand);
        }
        for entry in &snapshot.items {
            self.learn_object(&entry.key, &entry.value, None);
        }
        self.queue.wake_all();
        watcher
    }

    fn learn(&mut self, change: &Change) {
        if change.deleted {
            self.unlearn(&change.key, &change.value);
        } else {
            self.learn_object(&change.key, &change.value, change.previous.as_deref());
        }
    }

    fn learn_object(&mut self, key: &str, object: &Arc<Value>, previous: Option<&Value>) {
        if key.starts_with("core/pods/") {
            self.learn_pod(key, object, previous);
        } else if key.starts_with("core/nodes/") {
            self.nodes.set(object);
            let matters = |node: &Value| {
                let ready = kube_kinds::condition_is_true(node, "Ready");
                (
                    node["spec"].clone(),
                    node["metadata"]["labels"].clone(),
                    node["status"]["allocatable"].clone(),
                    ready,
                )
            };
            if previous.is_none_or(|it| matters(it) != matters(object)) {
                self.queue.wake_all();
            }
        } else if key.starts_with("core/namespaces/") {
            let labels = object["metadata"]["labels"].clone();
            if self.namespaces.insert(name(object).to_string(), labels.clone()) != Some(labels) {
                self.queue.wake_all();
            }
        } else if key.starts_with("core/persistentvolume")
            || key.starts_with("storage.k8s.io/storageclasses/")
        {
            self.queue.wake_all();
        }
    }

    fn learn_pod(&mut self, key: &str, pod: &Arc<Value>, previous: Option<&Value>) {
        if pods::is_finished(pod) {
            return self.unlearn(key, pod);
        }
        let node = text(pod, "/spec/nodeName");
        if !node.is_empty() {
            self.assumed.remove(key);
            self.queue.remove(key);
            self.nominated.remove(key);
            let known = self.nodes.find(node).is_some_and(|at| self.nodes.at(at).pods.contains_key(key));
            let same = |it: &Value| {
                it["metadata"]["labels"] == pod["metadata"]["labels"]
                    && is_deleting(it) == is_deleting(pod)
                    && it["spec"] == pod["spec"]
            };
            if !known || !previous.is_some_and(same) {
                self.nodes.place(key, node, Arc::new(Demand::of(pod)));
                self.queue.wake_sociable();
            }
            return;
        }
        if !waits(pod) {
            return self.queue.remove(key);
        }
        // Our own notes in its status are no reason to try again.
        let is_news = previous.is_none_or(|it| {
            it["spec"] != pod["spec"] || it["metadata"]["labels"] != pod["metadata"]["labels"]
        });
        if is_news && !self.assumed.contains(key) {
            let sociable =
                pod["spec"]["affinity"].is_object() || pod["spec"]["topologySpreadConstraints"].is_array();
            self.queue.push(key, self.priority(pod), sociable);
        }
    }

    fn unlearn(&mut self, key: &str, object: &Value) {
        if key.starts_with("core/pods/") {
            self.assumed.remove(key);
            self.queue.remove(key);
            self.nominated.remove(key);
            if self.nodes.remove(key).is_some() {
                self.queue.wake_all();
            }
        } else if key.starts_with("core/nodes/") {
            self.nodes.forget(name(object));
        } else if key.starts_with("core/namespaces/") {
            self.namespaces.remove(name(object));
        }
    }

    /// The priority that admission wrote, or that of the class.
    fn priority(&self, pod: &Value) -> i64 {
        if let Some(priority) = pod["spec"]["priority"].as_i64() {
            return priority;
        }
        let class = text(pod, "/spec/priorityClassName");
        if class.is_empty() {
            return 0;
        }
        let class = self.objects.find(&kind("scheduling.k8s.io", "PriorityClass"), "", class);
        class.map_or(0, |it| int(&it, "/value"))
    }

    fn done(&mut self, key: &str, result: Result<(), Failure>) {
        let Err(failure) = result else { return };
        tracing::debug!(key, %failure, "a scheduling decision was not written");
        let pod = self.objects.store().get(key).map(|it| it.value);
        let unbound = pod.is_some_and(|it| waits(&it));
        if self.assumed.remove(key) && unbound {
            self.nodes.remove(key);
        }
        if unbound {
            self.queue.put_back(key, Instant::now());
        }
    }

    /// Looks at one pod; `None` when there is nothing to do about it.
    fn decide(&mut self, key: &str) -> Option<Decision> {
        let (_, _, place, pod_name) = parse_key(key)?;
        let pod = self.objects.find(&kind("", "Pod"), place, pod_name).filter(|it| waits(it));
        let Some(pod) = pod else {
            self.queue.remove(key);
            return None;
        };
        if !list(&pod, "/spec/schedulingGates").is_empty() {
            self.queue.remove(key);
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            return self.note(&pod, "SchedulingGated", message.into(), None);
        }
        let mut demand = Demand::of(&pod);
        demand.priority = self.priority(&pod);
        let demand = Arc::new(demand);
        let storage = match storage::look(self.objects, &pod) {
            Ok(storage) => storage,
            Err(why) => return self.refuse_all(key, &pod, &why),
        };
        let refusals = match self.choose(key, &demand, &storage.volumes) {
            Ok(at) => {
                let node = self.nodes.at(at).name.clone();
                self.nodes.place(key, &node, demand);
                self.assumed.insert(key.to_string());
                self.queue.remove(key);
                self.nominated.remove(key);
                return Some(bind(&pod, node, storage.waiting));
            }
            Err(refusals) => refusals,
        };
        self.queue.put_back(key, Instant::now());
        let mut actions = Vec::new();
        if !preempt::is_under_way(&self.nodes, &pod) {
            actions = self.sacrifice(key, &demand, &refusals, &storage.volumes);
        }
        let message = explain(&refusals, actions.is_empty());
        self.note(&pod, "Unschedulable", message, Some(actions))
    }

    /// The best of the first nodes that can have the pod, or why none can.
    fn choose(
        &mut self,
        key: &str,
        demand: &Arc<Demand>,
        volumes: &[Arc<Value>],
    ) -> Result<usize, Vec<(usize, Refusal)>> {
        let question = Question::new(demand, &self.nodes, &self.namespaces, volumes.to_vec());
        let mut promised: HashMap<&str, Vec<&Arc<Demand>>> = HashMap::new();
        for (other, (node, it)) in &self.nominated {
            if other != key && it.priority >= demand.priority {
                promised.entry(node).or_default().push(it);
            }
        }
        let slots = self.nodes.slots();
        let mut refusals = Vec::new();
        let mut best: Option<(i64, usize)> = None;
        let mut candidates = 0;
        for step in 0..slots {
            let at = (self.start + step) % slots;
            let node = self.nodes.at(at);
            if node.object.is_none() {
                continue;
            }
            let extra = promised.get(node.name.as_str()).map_or(&[][..], Vec::as_slice);
            if let Some(refusal) = question.refusal(node, extra) {
                refusals.push((at, refusal));
                continue;
            }
            let score = question.score(node);
            if best.is_none_or(|(known, _)| score > known) {
                best = Some((score, at));
            }
            candidates += 1;
            if candidates == CANDIDATES_MAX {
                self.start = at + 1;
                break;
            }
        }
        best.map(|(_, at)| at).ok_or(refusals)
    }

    /// Nodes have nothing to do with it.
    fn refuse_all(&mut self, key: &str, pod: &Arc<Value>, why: &str) -> Option<Decision> {
        self.queue.put_back(key, Instant::now());
        let all = self.nodes.len();
        let message = format!(
            "0/{all} nodes are available: {why}. preemption: 0/{all} nodes are available: \
            {all} Preemption is not helpful for scheduling."
        );
        self.note(pod, "Unschedulable", message, None)
    }

    /// Takes less important pods off a node.
    fn sacrifice(
        &mut self,
        key: &str,
        demand: &Arc<Demand>,
        refusals: &[(usize, Refusal)],
        volumes: &[Arc<Value>],
    ) -> Vec<Action> {
        let budgets =
            self.objects.list(&kind("policy", "PodDisruptionBudget"), None, &LabelSelector::default());
        let found = preempt::plan(&mut self.nodes, demand, refusals, &self.namespaces, volumes, &budgets);
        let Some(sacrifice) = found else { return Vec::new() };
        let node = self.nodes.at(sacrifice.node).name.clone();
        self.nominated.insert(key.to_string(), (node.clone(), demand.clone()));
        let pod = &demand.pod;
        let mut actions = vec![Action::Nominate {
            namespace: namespace(pod).to_string(),
            pod: name(pod).to_string(),
            node: node.clone(),
        }];
        for (_, victim) in sacrifice.victims {
            let victim = &victim.pod;
            if is_deleting(victim) {
                continue;
            }
            let message = format!("{NAME}: preempting to accommodate a higher priority pod");
            actions.push(Action::PodCondition {
                namespace: namespace(victim).to_string(),
                pod: name(victim).to_string(),
                uid: uid(victim).to_string(),
                condition: json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
                    "message": message, "lastProbeTime": null, "lastTransitionTime": time::format(Timestamp::now())}),
            });
            actions.push(Action::Delete {
                kind: kind("", "Pod"),
                namespace: namespace(victim).to_string(),
                name: name(victim).to_string(),
                uid: uid(victim).to_string(),
                propagation: Propagation::Background,
            });
            actions.push(Action::Event {
                about: victim.clone(),
                event_type: EventType::Normal,
                reason: "Preempted",
                message: format!("Preempted by pod {} on node {node}", uid(pod)),
            });
        }
        actions
    }

    /// Says in the pod's condition why it waits, if it does not say so already.
    fn note(
        &self,
        pod: &Arc<Value>,
        reason: &'static str,
        message: String,
        more: Option<Vec<Action>>,
    ) -> Option<Decision> {
        let mut actions = more.unwrap_or_default();
        let known = kube_kinds::condition(pod, "PodScheduled");
        if !known.is_some_and(|it| it["message"] == message.as_str() && it["reason"] == reason) {
            let since = known.filter(|it| it["status"] == "False").map(|it| it["lastTransitionTime"].clone());
            actions.push(Action::PodCondition {
                namespace: namespace(pod).to_string(),
                pod: name(pod).to_string(),
                uid: uid(pod).to_string(),
                condition: json!({"type": "PodScheduled", "status": "False", "reason": reason, "message": message,
                    "lastProbeTime": null,
                    "lastTransitionTime": since.unwrap_or_else(|| json!(time::format(Timestamp::now())))}),
            });
            if reason == "Unschedulable" {
                actions.push(Action::Event {
                    about: pod.clone(),
                    event_type: EventType::Warning,
                    reason: "FailedScheduling",
                    message,
                });
            }
        }
        (!actions.is_empty()).then_some(Decision::Tell(actions))
    }
}

fn bind(pod: &Arc<Value>, node: String, claims: Vec<String>) -> Decision {
    let place = namespace(pod).to_string();
    let message = format!("Successfully assigned {place}/{} to {node}", name(pod));
    let actions = vec![
        Action::Bind { namespace: place.clone(), pod: name(pod).to_string(), node: node.clone() },
        Action::Event { about: pod.clone(), event_type: EventType::Normal, reason: "Scheduled", message },
    ];
    Decision::Bind { claims, place, node, actions }
}

/// `0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.`, as `kubectl` users know it.
fn explain(refusals: &[(usize, Refusal)], nobody_goes: bool) -> String {
    let all = refusals.len();
    if all == 0 {
        return "no nodes available to schedule pods".into();
    }
    let count = |reasons: &mut dyn Iterator<Item = &str>| -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        reasons.for_each(|it| *counts.entry(it).or_default() += 1);
        let mut parts: Vec<String> = counts.iter().map(|(why, count)| format!("{count} {why}")).collect();
        parts.sort();
        parts.join(", ")
    };
    let why = count(&mut refusals.iter().map(|it| it.1.why.as_str()));
    let mut message = format!("0/{all} nodes are available: {why}.");
    if nobody_goes {
        let help = count(&mut refusals.iter().map(|it| match it.1.curable {
            true => "No preemption victims found for incoming pod",
            false => "Preemption is not helpful for scheduling",
        }));
        message.push_str(&format!(" preemption: 0/{all} nodes are available: {help}."));
    }
    message
}
