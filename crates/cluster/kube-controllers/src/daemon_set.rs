//! DaemonSet: one pod on every node that may have it, and the walk of all of them to a new template.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{int, is_deleting, list, name, namespace, parse_key, text, time};
use kube_objects::EventType;
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::amount::{Round, amount};
use crate::harness::{Controller, Touched, View};
use crate::history::{self, HASH, History};
use crate::{adoption, conditions, placement, pods};

/// A pod that failed is replaced, but not faster than this: the node may refuse it at once, again.
const FAILED_SECONDS_MIN: i64 = 3;

pub struct DaemonSets;

impl Controller for DaemonSets {
    fn name(&self) -> &'static str {
        "daemonset-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        let sets = || kind("apps", "DaemonSet");
        if change.is("apps/daemonsets/") {
            return vec![change.key.to_string()];
        }
        if change.is("core/pods/") || change.is("apps/controllerrevisions/") {
            return adoption::owners_touched(view, &sets(), change);
        }
        if change.is("core/nodes/") && changes_placement(change) {
            let all = view.objects.list(&sets(), None, &LabelSelector::default());
            return all.iter().map(|it| sets().key(namespace(it), name(it))).collect();
        }
        Vec::new()
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(set) = view.objects.find(&kind("apps", "DaemonSet"), place, name) else {
            return Plan::default();
        };
        let everything = LabelSelector::default();
        let pods = view.objects.list(&kind("", "Pod"), Some(place), &everything);
        let nodes = view.objects.list(&kind("", "Node"), None, &everything);
        reconcile(&set, &pods, &nodes, &history::list(view, place), now)
    }
}

/// A heartbeat is no news here.
fn changes_placement(change: &Touched<'_>) -> bool {
    let of = |node: &Value| (node["metadata"]["labels"].clone(), node["spec"].clone());
    change.deleted || change.previous.is_none_or(|it| of(it) != of(change.object))
}

/// Taints that pods of a DaemonSet live with: what runs everywhere must also run where things go wrong.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// The pod for one node. The scheduler binds it: it is told the node by an affinity.
fn pod_for(set: &Value, node: &str, hash: &str) -> Value {
    let mut pod = pods::from_template(set, &set["spec"]["template"]);
    pod["metadata"]["labels"][HASH] = json!(hash);
    let mut tolerations = list(&pod, "/spec/tolerations").to_vec();
    let host = pod["spec"]["hostNetwork"] == true;
    let network = host.then_some(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    pod["spec"]["tolerations"] = Value::Array(tolerations);
    let by_name = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let required =
        &mut pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    match required["nodeSelectorTerms"].as_array_mut() {
        Some(terms) if !terms.is_empty() => {
            terms.iter_mut().for_each(|it| it["matchFields"] = by_name.clone());
        }
        _ => *required = json!({"nodeSelectorTerms": [{"matchFields": by_name}]}),
    }
    pod
}

/// The node that a pod is on, or is meant for.
fn node_of(pod: &Value) -> &str {
    let bound = text(pod, "/spec/nodeName");
    if !bound.is_empty() {
        return bound;
    }
    let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    list(pod, &format!("{required}/nodeSelectorTerms"))
        .iter()
        .flat_map(|it| list(it, "/matchFields"))
        .find(|it| it["key"] == "metadata.name")
        .map_or("", |it| text(it, "/values/0"))
}

/// Whether a node is to get a pod, and whether one that is there may stay.
struct Place<'a> {
    node: &'a str,
    starts: bool,
    stays: bool,
    /// Oldest first; those on their way out are not here.
    pods: Vec<&'a Arc<Value>>,
    leaving: usize,
}

/// `pods` and `revisions` are all of the namespace.
pub fn reconcile(
    set: &Arc<Value>,
    pods: &[Arc<Value>],
    nodes: &[Arc<Value>],
    revisions: &[Arc<Value>],
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let sets = kind("apps", "DaemonSet");
    let mine = adoption::claim(&mut plan, set, &adoption::selector_of(set), &kind("", "Pod"), pods);
    let Some(history) = history::sync(&mut plan, set, revisions) else {
        let mut status = set["status"].clone();
        status["collisionCount"] = json!(int(set, "/status/collisionCount") + 1);
        plan.status(&sets, set, status);
        return plan;
    };
    let places = places(set, &mine, nodes, history.newest_hash());
    if !is_deleting(set) {
        let mut gone: Vec<&str> = Vec::new();
        manage(&mut plan, set, &places, &history, now, &mut gone);
        if set["spec"]["updateStrategy"]["type"] != "OnDelete" {
            roll(&mut plan, set, &places, &history, now, &gone);
        }
    }
    let status = status(set, &places, &history, now, &mut plan);
    history::prune(&mut plan, set, &history, |revision| {
        mine.iter().any(|it| it["metadata"]["labels"][HASH] == history::hash_of(revision))
    });
    plan.status(&sets, set, status);
    plan
}

fn places<'a>(set: &'a Value, mine: &'a [Arc<Value>], nodes: &'a [Arc<Value>], hash: &str) -> Vec<Place<'a>> {
    let mut by_node: BTreeMap<&str, Vec<&Arc<Value>>> = BTreeMap::new();
    for pod in mine {
        by_node.entry(node_of(pod)).or_default().push(pod);
    }
    let mut places: Vec<Place<'a>> = Vec::new();
    for node in nodes {
        let probe = pod_for(set, name(node), hash);
        let wanted = text(set, "/spec/template/spec/nodeName");
        let fits = (wanted.is_empty() || wanted == name(node)) && placement::selects(&probe, node);
        let all = by_node.remove(name(node)).unwrap_or_default();
        let (leaving, mut pods): (Vec<&Arc<Value>>, Vec<&Arc<Value>>) =
            all.into_iter().partition(|it| is_deleting(it));
        pods.sort_by_key(|it| (text(it, "/metadata/creationTimestamp").to_string(), name(it).to_string()));
        places.push(Place {
            node: name(node),
            starts: fits
                && !is_deleting(node)
                && placement::untolerated(&probe, node, &["NoSchedule", "NoExecute"]).is_none(),
            stays: fits && placement::untolerated(&probe, node, &["NoExecute"]).is_none(),
            pods,
            leaving: leaving.len(),
        });
    }
    // Pods of nodes that are no more.
    for (node, pods) in by_node {
        let (leaving, pods): (Vec<_>, Vec<_>) = pods.into_iter().partition(|it| is_deleting(it));
        places.push(Place { node, starts: false, stays: false, pods, leaving: leaving.len() });
    }
    places
}

fn create(plan: &mut Plan, set: &Arc<Value>, node: &str, history: &History) {
    plan.push(Action::Create {
        kind: kind("", "Pod"),
        namespace: namespace(set).to_string(),
        object: pod_for(set, node, history.newest_hash()),
        tell: Some((set.clone(), "SuccessfulCreate", "Created pod: ")),
    });
}

fn delete(plan: &mut Plan, set: &Arc<Value>, pod: &Value) {
    plan.delete(&kind("", "Pod"), pod);
    plan.normal(set, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
}

fn is_new(pod: &Value, history: &History) -> bool {
    pod["metadata"]["labels"][HASH] == history.newest_hash()
}

fn surge_of(set: &Value, wanted: i64) -> i64 {
    amount(&set["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"], wanted, Round::Up)
}

fn wanted(places: &[Place<'_>]) -> i64 {
    places.iter().filter(|it| it.starts).count() as i64
}

/// One pod where one belongs, none where none does.
fn manage<'a>(
    plan: &mut Plan,
    set: &Arc<Value>,
    places: &[Place<'a>],
    history: &History,
    now: Timestamp,
    gone: &mut Vec<&'a str>,
) {
    let surging = surge_of(set, wanted(places)) > 0;
    for place in places {
        let (ended, living): (Vec<&Arc<Value>>, Vec<&Arc<Value>>) =
            place.pods.iter().copied().partition(|it| pods::is_finished(it));
        for pod in &ended {
            let age = time::seconds_since(&pod["metadata"]["creationTimestamp"], now).unwrap_or(i64::MAX);
            if place.stays && age < FAILED_SECONDS_MIN {
                plan.again_in(FAILED_SECONDS_MIN - age);
                continue;
            }
            plan.push(Action::Event {
                about: set.clone(),
                event_type: EventType::Warning,
                reason: "FailedDaemonPod",
                message: format!(
                    "Found failed daemon pod {} on node {}, will try to kill it",
                    name(pod),
                    place.node
                ),
            });
            delete(plan, set, pod);
            gone.push(name(pod));
        }
        if !place.stays {
            for pod in &living {
                delete(plan, set, pod);
                gone.push(name(pod));
            }
        } else if living.is_empty() && ended.is_empty() && place.leaving == 0 && place.starts {
            create(plan, set, place.node, history);
        } else if living.len() > 1 {
            // Two are right only while a new one takes over from an old one.
            let newest = living.iter().find(|it| is_new(it, history));
            let oldest = living.iter().find(|it| !is_new(it, history));
            let kept = match (surging, newest, oldest) {
                (true, Some(new), Some(old)) => vec![name(new), name(old)],
                (_, Some(new), _) if oldest.is_none() => vec![name(new)],
                _ => vec![name(living[0])],
            };
            for pod in living.iter().filter(|it| !kept.contains(&name(it))) {
                delete(plan, set, pod);
                gone.push(name(pod));
            }
        }
    }
}

/// One step of the rolling update.
fn roll(
    plan: &mut Plan,
    set: &Arc<Value>,
    places: &[Place<'_>],
    history: &History,
    now: Timestamp,
    gone: &[&str],
) {
    let wanted = wanted(places);
    let surge = surge_of(set, wanted);
    let limit = &set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
    let mut unavailable_max = amount(limit, wanted, Round::Up);
    if surge == 0 && unavailable_max == 0 {
        unavailable_max = 1;
    }
    let min_ready = int(set, "/spec/minReadySeconds");
    let available = |pod: &Value| pods::availability(pod, min_ready, now).is_ok();
    let (mut unavailable, mut surging) = (0, 0);
    let mut outdated: Vec<(&str, &Arc<Value>)> = Vec::new();
    for place in places.iter().filter(|it| it.starts) {
        let mut living = place.pods.iter().filter(|it| !pods::is_finished(it) && !gone.contains(&name(it)));
        let new = living.clone().find(|it| is_new(it, history));
        let old = living.find(|it| !is_new(it, history));
        match (old, new) {
            (None, new) => {
                if !new.is_some_and(|it| available(it)) {
                    unavailable += 1;
                }
            }
            (Some(old), Some(new)) => {
                if available(new) || !available(old) {
                    delete(plan, set, old);
                } else {
                    surging += 1;
                }
            }
            // What does not serve is replaced for nothing.
            (Some(old), None) if !available(old) => match surge > 0 {
                true => create(plan, set, place.node, history),
                false => {
                    delete(plan, set, old);
                    unavailable += 1;
                }
            },
            (Some(old), None) => outdated.push((place.node, old)),
        }
    }
    let room = if surge > 0 { surge - surging } else { unavailable_max - unavailable };
    for (node, old) in outdated.into_iter().take(usize::try_from(room).unwrap_or(0)) {
        match surge > 0 {
            true => create(plan, set, node, history),
            false => delete(plan, set, old),
        }
    }
}

fn status(set: &Value, places: &[Place<'_>], history: &History, now: Timestamp, plan: &mut Plan) -> Value {
    let min_ready = int(set, "/spec/minReadySeconds");
    let wanted = wanted(places);
    let (mut current, mut misplaced, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0);
    for place in places {
        let living: Vec<_> = place.pods.iter().filter(|it| !pods::is_finished(it)).collect();
        if !place.starts {
            misplaced += i64::from(!living.is_empty());
            continue;
        }
        let Some(first) = living.iter().find(|it| is_new(it, history)).or(living.first()) else { continue };
        current += 1;
        updated += i64::from(is_new(first, history));
        ready += i64::from(living.iter().any(|it| pods::is_ready(it)));
        let mut serves = false;
        for pod in &living {
            match pods::availability(pod, min_ready, now) {
                Ok(()) => serves = true,
                Err(Some(seconds)) => plan.again_in(seconds),
                Err(None) => {}
            }
        }
        available += i64::from(serves);
    }
    let mut status = json!({
        "observedGeneration": set["metadata"]["generation"],
        "currentNumberScheduled": current, "desiredNumberScheduled": wanted,
        "numberMisscheduled": misplaced, "numberReady": ready,
    });
    for (field, count) in [
        ("updatedNumberScheduled", updated),
        ("numberAvailable", available),
        ("numberUnavailable", wanted - available),
        ("collisionCount", int(set, "/status/collisionCount")),
    ] {
        if count > 0 {
            status[field] = json!(count);
        }
    }
    let conditions = conditions::all(set);
    if !conditions.is_empty() {
        status["conditions"] = Value::Array(conditions);
    }
    status
}
