//! Deployment: one ReplicaSet per revision of the template, and the walk from one to the next.
//!
//! Sizes change by the rules of the rolling update: never more pods than `replicas + maxSurge`,
//! never fewer available ones than `replicas - maxUnavailable`. Not here: spreading a change of
//! `replicas` proportionally over the revisions in the middle of a rollout; the newest gets it.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::Propagation;
use kube_kinds::{Kind, controller_of, int, is_deleting, name, namespace, parse_key, text, time, uid};
use kube_objects::EventType;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::action::{Action, Plan, controller_reference, kind};
use crate::harness::{Controller, Touched, View};
use crate::pods;

const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
/// Annotations of the deployment that do not go to its ReplicaSets.
const OWN_ANNOTATIONS: [&str; 4] =
    ["kubectl.kubernetes.io/last-applied-configuration", REVISION, DESIRED, MAXIMUM];

pub struct Deployments;

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        let deployments = kind("apps", "Deployment");
        if change.is("apps/deployments/") {
            return vec![change.key.to_string()];
        }
        let place = namespace(change.object);
        if change.is("apps/replicasets/") {
            return match controller_of(change.object) {
                Some(owner) if owner["kind"] == "Deployment" => {
                    vec![deployments.key(place, text(owner, "/name"))]
                }
                Some(_) => Vec::new(),
                None => view
                    .objects
                    .list(&deployments, Some(place), &LabelSelector::default())
                    .iter()
                    .filter(|it| selects(it, change.object))
                    .map(|it| deployments.key(place, name(it)))
                    .collect(),
            };
        }
        // Recreate waits until the old pods are really gone.
        if change.is("core/pods/") && change.deleted {
            let set = controller_of(change.object)
                .and_then(|it| view.objects.find(&kind("apps", "ReplicaSet"), place, text(it, "/name")));
            if let Some(owner) = set.as_deref().and_then(controller_of) {
                return vec![deployments.key(place, text(owner, "/name"))];
            }
        }
        Vec::new()
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(deployment) = view.objects.find(&kind("apps", "Deployment"), place, name) else {
            return Plan::default();
        };
        let everything = LabelSelector::default();
        let sets = view.objects.list(&kind("apps", "ReplicaSet"), Some(place), &everything);
        let pods = view.objects.list(&kind("", "Pod"), Some(place), &everything);
        reconcile(&deployment, &sets, &pods, now)
    }
}

fn selects(deployment: &Value, set: &Value) -> bool {
    LabelSelector::from_object(&deployment["spec"]["selector"])
        .is_some_and(|it| !it.is_empty() && it.matches(set))
}

/// A ReplicaSet as this round sees it: its size may already be decided anew.
struct Revision {
    set: Arc<Value>,
    replicas: i64,
}

impl Revision {
    /// Pods that serve. Never more than the set is to have: its status may be from before it was
    /// made smaller, and counting pods that are on their way out would give up too many.
    fn available(&self) -> i64 {
        int(&self.set, "/status/availableReplicas").min(self.replicas)
    }
}

/// `sets` and `pods` are all of the namespace.
pub fn reconcile(deployment: &Arc<Value>, sets: &[Arc<Value>], pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let place = namespace(deployment).to_string();
    let set_kind = kind("apps", "ReplicaSet");
    let mut owned: Vec<Arc<Value>> = Vec::new();
    for set in sets {
        match controller_of(set) {
            Some(owner) if owner["uid"] == uid(deployment) => owned.push(set.clone()),
            None if selects(deployment, set) && !is_deleting(set) && !is_deleting(deployment) => {
                let mut all = set["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
                all.push(controller_reference(deployment));
                plan.push(change(&set_kind, set, json!({"metadata": {"ownerReferences": all}})));
                owned.push(set.clone());
            }
            _ => {}
        }
    }
    owned.sort_by_key(|it| (text(it, "/metadata/creationTimestamp").to_string(), name(it).to_string()));
    if is_deleting(deployment) {
        let status = status(deployment, None, &owned, None, now, &mut plan);
        push_status(&mut plan, deployment, &place, status);
        return plan;
    }

    let template = &deployment["spec"]["template"];
    let newest_at = owned.iter().position(|it| same_template(&it["spec"]["template"], template));
    let newest = newest_at.map(|at| owned.remove(at));
    let mut old: Vec<Revision> =
        owned.iter().map(|it| Revision { set: it.clone(), replicas: int(it, "/spec/replicas") }).collect();
    let limits = Limits::of(deployment);
    let paused = deployment["spec"]["paused"] == true;
    let top = old.iter().map(|it| revision_of(&it.set)).max().unwrap_or(0);

    let Some(newest) = newest else {
        let mut status = status(deployment, None, &owned, None, now, &mut plan);
        if !paused {
            let replicas = match limits.recreate {
                true if old_pods(&old, pods) > 0 || old.iter().any(|it| it.replicas > 0) => 0,
                true => limits.desired,
                false => {
                    let total: i64 = old.iter().map(|it| it.replicas).sum();
                    (limits.desired + limits.surge - total).clamp(0, limits.desired)
                }
            };
            let set = create_set(&mut plan, deployment, &limits, top + 1, replicas);
            let message = format!("Created new replica set {set:?}");
            let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let renewed = Freshness::Renewed;
            set_condition(
                &mut conditions,
                "Progressing",
                "True",
                "NewReplicaSetCreated",
                &message,
                renewed,
                now,
            );
            status["conditions"] = Value::Array(conditions);
        }
        push_status(&mut plan, deployment, &place, status);
        return plan;
    };

    let mut newest = Revision { replicas: int(&newest, "/spec/replicas"), set: newest };
    let revision = revision_of(&newest.set).max(top + 1);
    if paused {
        // Only the size follows; the rollout stands still.
        if old.iter().all(|it| it.replicas == 0) {
            newest.replicas = limits.desired;
        }
    } else if limits.recreate {
        old.iter_mut().for_each(|it| it.replicas = 0);
        if old_pods(&old, pods) == 0 || newest.replicas > limits.desired {
            newest.replicas = limits.desired;
        }
    } else {
        roll(&mut newest, &mut old, &limits);
    }
    let everything = std::iter::once(&newest).chain(&old);
    for it in everything {
        scale_set(&mut plan, deployment, it, &limits, (uid(&it.set) == uid(&newest.set)).then_some(revision));
    }
    if text(deployment, &format!("/metadata/annotations/{}", REVISION.replace('/', "~1")))
        != revision.to_string()
    {
        let patch = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        plan.push(change(&kind("apps", "Deployment"), deployment, patch));
    }
    let status = status(deployment, Some(&newest.set), &owned, Some(&limits), now, &mut plan);
    if is_complete(deployment, &status) {
        prune_history(&mut plan, deployment, &old);
    }
    push_status(&mut plan, deployment, &place, status);
    plan
}

/// How far sizes may go.
struct Limits {
    desired: i64,
    surge: i64,
    unavailable: i64,
    recreate: bool,
}

impl Limits {
    fn of(deployment: &Value) -> Limits {
        let desired = int(deployment, "/spec/replicas");
        let recreate = deployment["spec"]["strategy"]["type"] == "Recreate";
        let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
        let surge = amount(&rolling["maxSurge"], desired, Round::Up);
        let mut unavailable = amount(&rolling["maxUnavailable"], desired, Round::Down);
        if surge == 0 && unavailable == 0 {
            // Percentages of few pods: without one of the two nothing could ever move.
            unavailable = 1;
        }
        Limits { desired, surge, unavailable: unavailable.min(desired), recreate }
    }
}

enum Round {
    Up,
    Down,
}

fn amount(value: &Value, of: i64, round: Round) -> i64 {
    let Some(percent) = value.as_str().and_then(|it| it.strip_suffix('%')?.parse::<i64>().ok()) else {
        return value.as_i64().unwrap_or(0);
    };
    match round {
        Round::Up => (of * percent + 99) / 100,
        Round::Down => of * percent / 100,
    }
}

/// One step of a rolling update.
fn roll(newest: &mut Revision, old: &mut [Revision], limits: &Limits) {
    let total =
        |newest: &Revision, old: &[Revision]| newest.replicas + old.iter().map(|it| it.replicas).sum::<i64>();
    if newest.replicas > limits.desired {
        newest.replicas = limits.desired;
    } else {
        let room = limits.desired + limits.surge - total(newest, old);
        newest.replicas += room.min(limits.desired - newest.replicas).max(0);
    }
    let available_min = limits.desired - limits.unavailable;
    let not_yet = newest.replicas - newest.available();
    // Pods that do not serve anyway go first; they can be given up without anybody noticing.
    let mut spare = total(newest, old) - available_min - not_yet;
    for it in old.iter_mut() {
        let gone = (it.replicas - it.available()).min(spare).max(0);
        it.replicas -= gone;
        spare -= gone;
    }
    let serving = newest.available() + old.iter().map(Revision::available).sum::<i64>();
    let mut spare = serving - available_min;
    for it in old.iter_mut() {
        let gone = it.replicas.min(spare).max(0);
        it.replicas -= gone;
        spare -= gone;
    }
}

/// Pods of old revisions that still exist, whatever they do.
fn old_pods(old: &[Revision], pods: &[Arc<Value>]) -> usize {
    pods.iter()
        .filter(|pod| !pods::is_finished(pod) && old.iter().any(|it| pods::is_controlled_by(pod, &it.set)))
        .count()
}

fn revision_of(set: &Value) -> i64 {
    set["metadata"]["annotations"][REVISION].as_str().and_then(|it| it.parse().ok()).unwrap_or(0)
}

/// Equal but for the label that tells revisions apart.
fn same_template(of_set: &Value, template: &Value) -> bool {
    let strip = |template: &Value| {
        let mut template = template.clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove(HASH);
        }
        if let Some(metadata) = template["metadata"].as_object_mut() {
            metadata.retain(|_, value| !value.is_null());
        }
        template
    };
    strip(of_set) == strip(template)
}

/// A short name for a template. Independent of the order of fields.
fn template_hash(template: &Value) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = Sha256::new();
    feed(template, &mut hash);
    hash.finalize()[..10].iter().map(|it| LETTERS[*it as usize % LETTERS.len()] as char).collect()
}

fn feed(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            hash.update(b"{");
            for (name, value) in fields {
                hash.update(name.as_bytes());
                hash.update([0]);
                feed(value, hash);
            }
            hash.update(b"}");
        }
        Value::Array(items) => {
            hash.update(b"[");
            items.iter().for_each(|it| feed(it, hash));
            hash.update(b"]");
        }
        plain => hash.update(plain.to_string().as_bytes()),
    }
}

fn set_annotations(deployment: &Value, limits: &Limits, revision: Option<i64>) -> Map<String, Value> {
    let mut annotations = Map::new();
    if let Some(revision) = revision {
        for (key, value) in deployment["metadata"]["annotations"].as_object().into_iter().flatten() {
            if !OWN_ANNOTATIONS.contains(&key.as_str()) {
                annotations.insert(key.clone(), value.clone());
            }
        }
        annotations.insert(REVISION.into(), json!(revision.to_string()));
    }
    annotations.insert(DESIRED.into(), json!(limits.desired.to_string()));
    annotations.insert(MAXIMUM.into(), json!((limits.desired + limits.surge).to_string()));
    annotations
}

fn create_set(
    plan: &mut Plan,
    deployment: &Arc<Value>,
    limits: &Limits,
    revision: i64,
    replicas: i64,
) -> String {
    let mut template = deployment["spec"]["template"].clone();
    let hash = template_hash(&template);
    template["metadata"]["labels"][HASH] = json!(hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = json!(hash);
    let set_name = format!("{}-{hash}", name(deployment));
    let object = json!({
        "metadata": {
            "name": set_name, "labels": template["metadata"]["labels"],
            "annotations": set_annotations(deployment, limits, Some(revision)),
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {"replicas": replicas, "minReadySeconds": int(deployment, "/spec/minReadySeconds"),
            "selector": selector, "template": template},
    });
    plan.push(Action::Create {
        kind: kind("apps", "ReplicaSet"),
        namespace: namespace(deployment).to_string(),
        object,
        tell: None,
    });
    plan.push(Action::Event {
        about: deployment.clone(),
        event_type: EventType::Normal,
        reason: "ScalingReplicaSet",
        message: format!("Scaled up replica set {set_name} from 0 to {replicas}"),
    });
    set_name
}

/// Writes the size and the annotations of a set, where they differ.
fn scale_set(
    plan: &mut Plan,
    deployment: &Arc<Value>,
    revision: &Revision,
    limits: &Limits,
    newest_revision: Option<i64>,
) {
    let set = &revision.set;
    let before = int(set, "/spec/replicas");
    let mut patch = json!({});
    if before != revision.replicas {
        patch["spec"]["replicas"] = json!(revision.replicas);
    }
    if newest_revision.is_some() || revision.replicas > 0 {
        for (key, value) in set_annotations(deployment, limits, newest_revision) {
            if set["metadata"]["annotations"][&key] != value {
                patch["metadata"]["annotations"][&key] = value;
            }
        }
    }
    if newest_revision.is_some() {
        let min_ready = int(deployment, "/spec/minReadySeconds");
        if int(set, "/spec/minReadySeconds") != min_ready {
            patch["spec"]["minReadySeconds"] = json!(min_ready);
        }
    }
    if patch != json!({}) {
        plan.push(change(&kind("apps", "ReplicaSet"), set, patch));
    }
    if before != revision.replicas {
        let direction = if revision.replicas > before { "up" } else { "down" };
        plan.push(Action::Event {
            about: deployment.clone(),
            event_type: EventType::Normal,
            reason: "ScalingReplicaSet",
            message: format!(
                "Scaled {direction} replica set {} from {before} to {}",
                name(set),
                revision.replicas
            ),
        });
    }
}

fn change(kind: &Arc<Kind>, object: &Value, patch: Value) -> Action {
    Action::Change {
        kind: kind.clone(),
        namespace: namespace(object).to_string(),
        name: name(object).to_string(),
        patch,
    }
}

fn push_status(plan: &mut Plan, deployment: &Value, place: &str, status: Value) {
    if deployment["status"] != status {
        plan.push(Action::Status {
            kind: kind("apps", "Deployment"),
            namespace: place.to_string(),
            name: name(deployment).to_string(),
            status,
        });
    }
}

fn is_complete(deployment: &Value, status: &Value) -> bool {
    let desired = int(deployment, "/spec/replicas");
    ["updatedReplicas", "replicas", "availableReplicas"]
        .iter()
        .all(|it| status[*it].as_i64() == Some(desired))
}

/// The status that follows from the sets' own.
fn status(
    deployment: &Value,
    newest: Option<&Arc<Value>>,
    old: &[Arc<Value>],
    limits: Option<&Limits>,
    now: Timestamp,
    plan: &mut Plan,
) -> Value {
    let all: Vec<&Arc<Value>> = newest.into_iter().chain(old).collect();
    let sum = |pointer: &str| all.iter().map(|it| int(it, pointer)).sum::<i64>();
    let available = sum("/status/availableReplicas");
    let mut status = json!({
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": sum("/status/replicas"),
        "updatedReplicas": newest.map_or(0, |it| int(it, "/status/replicas")),
        "readyReplicas": sum("/status/readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": (sum("/spec/replicas") - available).max(0),
    });
    let before = &deployment["status"];
    let mut conditions = before["conditions"].as_array().cloned().unwrap_or_default();
    let available_min = match limits {
        Some(limits) => limits.desired - limits.unavailable,
        None => Limits::of(deployment).desired - Limits::of(deployment).unavailable,
    };
    let (value, reason, message) = match available >= available_min {
        true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
    };
    set_condition(&mut conditions, "Available", value, reason, message, Freshness::Kept, now);
    if let Some(newest) = newest {
        progress(deployment, name(newest), &status, &mut conditions, now, plan);
    }
    status["conditions"] = Value::Array(conditions);
    if let Value::Object(fields) = &mut status {
        // As Kubernetes leaves it out: clients read "absent" as none.
        fields.retain(|name, value| name != "unavailableReplicas" || *value != 0);
    }
    status
}

/// The condition that `kubectl rollout status` and the rollout engine wait for.
fn progress(
    deployment: &Value,
    set: &str,
    status: &Value,
    conditions: &mut Vec<Value>,
    now: Timestamp,
    plan: &mut Plan,
) {
    if deployment["spec"]["paused"] == true {
        set_condition(
            conditions,
            "Progressing",
            "Unknown",
            "DeploymentPaused",
            "Deployment is paused",
            Freshness::Kept,
            now,
        );
        return;
    }
    if is_complete(deployment, status) {
        let message = format!("ReplicaSet {set:?} has successfully progressed.");
        set_condition(
            conditions,
            "Progressing",
            "True",
            "NewReplicaSetAvailable",
            &message,
            Freshness::Kept,
            now,
        );
        return;
    }
    let before = &deployment["status"];
    let grew = |field: &str| status[field].as_i64().unwrap_or(0) > before[field].as_i64().unwrap_or(0);
    let old = |status: &Value| int(status, "/replicas") - int(status, "/updatedReplicas");
    let progressed = grew("updatedReplicas")
        || grew("readyReplicas")
        || grew("availableReplicas")
        || old(status) < old(before)
        || before["observedGeneration"] != status["observedGeneration"];
    let current = conditions.iter().find(|it| it["type"] == "Progressing").cloned();
    let exceeded = current.as_ref().is_some_and(|it| it["reason"] == "ProgressDeadlineExceeded");
    if progressed
        || current.is_none()
        || (!exceeded && current.as_ref().is_some_and(|it| it["reason"] == "NewReplicaSetAvailable"))
    {
        let message = format!("ReplicaSet {set:?} is progressing.");
        set_condition(
            conditions,
            "Progressing",
            "True",
            "ReplicaSetUpdated",
            &message,
            Freshness::Renewed,
            now,
        );
        plan.again_in(int(deployment, "/spec/progressDeadlineSeconds"));
        return;
    }
    let since = current.as_ref().and_then(|it| time::seconds_since(&it["lastUpdateTime"], now)).unwrap_or(0);
    let left = int(deployment, "/spec/progressDeadlineSeconds") - since;
    if exceeded {
        return;
    }
    if left > 0 {
        plan.again_in(left);
    } else {
        let message = format!("ReplicaSet {set:?} has timed out progressing.");
        set_condition(
            conditions,
            "Progressing",
            "False",
            "ProgressDeadlineExceeded",
            &message,
            Freshness::Renewed,
            now,
        );
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Freshness {
    /// `lastUpdateTime` moves, because there was progress.
    Renewed,
    Kept,
}

fn set_condition(
    conditions: &mut Vec<Value>,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    freshness: Freshness,
    now: Timestamp,
) {
    let now = json!(time::format(now));
    let old = conditions.iter().position(|it| it["type"] == kind);
    let before = old.map(|at| conditions[at].clone()).unwrap_or(Value::Null);
    let same = before["status"] == value && before["reason"] == reason && before["message"] == message;
    if same && freshness == Freshness::Kept {
        return;
    }
    let transition =
        if before["status"] == value { before["lastTransitionTime"].clone() } else { now.clone() };
    let new = json!({"type": kind, "status": value, "reason": reason, "message": message,
        "lastUpdateTime": now, "lastTransitionTime": transition});
    match old {
        Some(at) => conditions[at] = new,
        None => conditions.push(new),
    }
}

/// Removes revisions beyond the limit; they are empty and their rollout is over.
fn prune_history(plan: &mut Plan, deployment: &Value, old: &[Revision]) {
    let limit = deployment["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10);
    let mut empty: Vec<&Revision> = old
        .iter()
        .filter(|it| it.replicas == 0 && int(&it.set, "/status/replicas") == 0 && !is_deleting(&it.set))
        .collect();
    empty.sort_by_key(|it| revision_of(&it.set));
    let excess = empty.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for it in empty.into_iter().take(excess) {
        plan.push(Action::Delete {
            kind: kind("apps", "ReplicaSet"),
            namespace: namespace(&it.set).to_string(),
            name: name(&it.set).to_string(),
            uid: uid(&it.set).to_string(),
            propagation: Propagation::Background,
        });
    }
}
