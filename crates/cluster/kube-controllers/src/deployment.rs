//! Deployment: one ReplicaSet per revision of the template, and the walk from one to the next.
//!
//! Sizes change by the rules of the rolling update: never more pods than `replicas + maxSurge`,
//! never fewer available ones than `replicas - maxUnavailable`. When `replicas` changes in the middle of
//! a rollout, every revision gets its share (`scale.rs`). What people and tools wait for is the status
//! (`status.rs`).

mod scale;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{controller_of, int, is_deleting, name, namespace, parse_key, text};
use serde_json::{Map, Value, json};

use crate::action::{Plan, controller_reference, kind};
use crate::harness::{Controller, Touched, View};
use crate::{adoption, hash, pods};
use scale::Limits;

const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const HASH: &str = "pod-template-hash";
/// Annotations of the deployment that do not go to its ReplicaSets.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    HISTORY,
    DESIRED,
    MAXIMUM,
];

pub struct Deployments;

impl Controller for Deployments {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        if change.is("apps/deployments/") {
            return vec![change.key.to_string()];
        }
        if change.is("apps/replicasets/") {
            return adoption::owners_touched(view, &kind("apps", "Deployment"), change);
        }
        // Recreate waits until the old pods have ended or are really gone.
        if change.is("core/pods/") && (change.deleted || pods::is_finished(change.object)) {
            let place = namespace(change.object);
            let set = controller_of(change.object)
                .filter(|it| it["kind"] == "ReplicaSet")
                .and_then(|it| view.objects.find(&kind("apps", "ReplicaSet"), place, text(it, "/name")));
            if let Some(owner) = set.as_deref().and_then(controller_of) {
                return vec![kind("apps", "Deployment").key(place, text(owner, "/name"))];
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
        let pods = match deployment["spec"]["strategy"]["type"] == "Recreate" {
            true => view.objects.list(&kind("", "Pod"), Some(place), &everything),
            false => Vec::new(),
        };
        reconcile(&deployment, &sets, &pods, now)
    }
}

/// A ReplicaSet as this round sees it: its size may already be decided anew.
struct Revision {
    set: Arc<Value>,
    replicas: i64,
}

impl Revision {
    fn of(set: &Arc<Value>) -> Revision {
        Revision { set: set.clone(), replicas: int(set, "/spec/replicas") }
    }

    /// Pods that serve. Never more than the set is to have: its status may be from before it was
    /// made smaller, and counting pods that are on their way out would give up too many.
    fn available(&self) -> i64 {
        int(&self.set, "/status/availableReplicas").min(self.replicas)
    }
}

/// `sets` are all of the namespace; `pods` too, but only `Recreate` asks for them.
pub fn reconcile(deployment: &Arc<Value>, sets: &[Arc<Value>], pods: &[Arc<Value>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let set_kind = kind("apps", "ReplicaSet");
    let mut owned =
        adoption::claim(&mut plan, deployment, &adoption::selector_of(deployment), &set_kind, sets);
    owned.sort_by_key(|it| (text(it, "/metadata/creationTimestamp").to_string(), name(it).to_string()));
    let template = &deployment["spec"]["template"];
    let newest_at = owned.iter().position(|it| same_template(&it["spec"]["template"], template));
    let newest = newest_at.map(|at| owned.remove(at));
    if is_deleting(deployment) {
        let status = status::of(deployment, newest.as_ref(), &owned, now, &mut plan);
        push_status(&mut plan, deployment, status);
        return plan;
    }
    let mut old: Vec<Revision> = owned.iter().map(Revision::of).collect();
    let limits = Limits::of(deployment);
    let top = old.iter().map(|it| revision_of(&it.set)).max().unwrap_or(0);
    if is_paused(deployment) || is_scaled(deployment, newest.iter().chain(&owned)) {
        // The rollout stands still; only the sizes follow.
        let mut newest = newest.as_ref().map(Revision::of);
        scale::all(&mut newest, &mut old, &limits, deployment);
        let revision = newest.as_ref().map(|it| revision_of(&it.set).max(top + 1));
        write_sets(&mut plan, deployment, newest.as_ref(), &old, &limits, revision);
        let newest = newest.map(|it| it.set);
        let status = status::of(deployment, newest.as_ref(), &owned, now, &mut plan);
        push_status(&mut plan, deployment, status);
        if is_paused(deployment) {
            prune_history(&mut plan, deployment, &old);
        }
        return plan;
    }
    let Some(newest) = newest else {
        begin(&mut plan, deployment, sets, &old, &limits, pods, top + 1, now);
        return plan;
    };
    let mut newest = Revision::of(&newest);
    let revision = revision_of(&newest.set).max(top + 1);
    if limits.recreate {
        old.iter_mut().for_each(|it| it.replicas = 0);
        if old_pods(&old, pods) == 0 || newest.replicas > limits.desired {
            newest.replicas = limits.desired;
        }
    } else {
        scale::roll(&mut newest, &mut old, &limits);
    }
    write_sets(&mut plan, deployment, Some(&newest), &old, &limits, Some(revision));
    let status = status::of(deployment, Some(&newest.set), &owned, now, &mut plan);
    if status::is_complete(deployment, &status) {
        prune_history(&mut plan, deployment, &old);
    }
    push_status(&mut plan, deployment, status);
    plan
}

fn is_paused(deployment: &Value) -> bool {
    deployment["spec"]["paused"] == true
}

/// Whether `spec.replicas` is another one than the sets were last told.
fn is_scaled<'a>(deployment: &Value, sets: impl Iterator<Item = &'a Arc<Value>>) -> bool {
    let desired = int(deployment, "/spec/replicas");
    sets.filter(|it| int(it, "/spec/replicas") > 0)
        .any(|it| annotated(it, DESIRED).is_some_and(|known| known != desired))
}

/// Starts a revision: its ReplicaSet does not exist yet.
fn begin(
    plan: &mut Plan,
    deployment: &Arc<Value>,
    sets: &[Arc<Value>],
    old: &[Revision],
    limits: &Limits,
    pods: &[Arc<Value>],
    revision: i64,
    now: Timestamp,
) {
    let owned: Vec<Arc<Value>> = old.iter().map(|it| it.set.clone()).collect();
    let mut status = status::of(deployment, None, &owned, now, plan);
    let collisions = int(deployment, "/status/collisionCount");
    let mut template = deployment["spec"]["template"].clone();
    let hash = hash::short(&template, collisions);
    let set_name = format!("{}-{hash}", name(deployment));
    if sets.iter().any(|it| name(it) == set_name) {
        // Somebody else's, or one that is going: the next name.
        status["collisionCount"] = json!(collisions + 1);
        push_status(plan, deployment, status);
        return;
    }
    let replicas = match limits.recreate {
        true if old_pods(old, pods) > 0 || old.iter().any(|it| it.replicas > 0) => 0,
        true => limits.desired,
        false => {
            let total: i64 = old.iter().map(|it| it.replicas).sum();
            (limits.desired + limits.surge - total).clamp(0, limits.desired)
        }
    };
    template["metadata"]["labels"][HASH] = json!(hash);
    let mut selector = deployment["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = json!(hash);
    let object = json!({
        "metadata": {
            "name": set_name, "labels": template["metadata"]["labels"],
            "annotations": set_annotations(deployment, None, limits, Some(revision)),
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {"replicas": replicas, "minReadySeconds": int(deployment, "/spec/minReadySeconds"),
            "selector": selector, "template": template},
    });
    plan.create(&kind("apps", "ReplicaSet"), namespace(deployment), object);
    if replicas > 0 {
        plan.normal(
            deployment,
            "ScalingReplicaSet",
            format!("Scaled up replica set {set_name} from 0 to {replicas}"),
        );
    }
    mark_revision(plan, deployment, revision);
    status::began(&mut status, &set_name, now);
    push_status(plan, deployment, status);
}

/// Pods of old revisions that still exist and do something, on their way out or not.
fn old_pods(old: &[Revision], pods: &[Arc<Value>]) -> usize {
    pods.iter()
        .filter(|pod| !pods::is_finished(pod) && old.iter().any(|it| pods::is_controlled_by(pod, &it.set)))
        .count()
}

fn annotated(object: &Value, annotation: &str) -> Option<i64> {
    object["metadata"]["annotations"][annotation].as_str()?.parse().ok()
}

fn revision_of(set: &Value) -> i64 {
    annotated(set, REVISION).unwrap_or(0)
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

/// What the ReplicaSet of a revision carries; of old ones only the sizes.
fn set_annotations(
    deployment: &Value,
    set: Option<&Value>,
    limits: &Limits,
    revision: Option<i64>,
) -> Map<String, Value> {
    let mut annotations = Map::new();
    if let Some(revision) = revision {
        for (key, value) in deployment["metadata"]["annotations"].as_object().into_iter().flatten() {
            if !OWN_ANNOTATIONS.contains(&key.as_str()) {
                annotations.insert(key.clone(), value.clone());
            }
        }
        annotations.insert(REVISION.into(), json!(revision.to_string()));
        let before = set.map_or(0, revision_of);
        if before > 0 && before != revision {
            // An undo: the set lives on under a new number and remembers the old ones.
            let past = set.map_or("", |it| it["metadata"]["annotations"][HISTORY].as_str().unwrap_or(""));
            let comma = if past.is_empty() { "" } else { "," };
            annotations.insert(HISTORY.into(), json!(format!("{past}{comma}{before}")));
        }
    }
    annotations.insert(DESIRED.into(), json!(limits.desired.to_string()));
    annotations.insert(MAXIMUM.into(), json!((limits.desired + limits.surge).to_string()));
    annotations
}

fn write_sets(
    plan: &mut Plan,
    deployment: &Arc<Value>,
    newest: Option<&Revision>,
    old: &[Revision],
    limits: &Limits,
    revision: Option<i64>,
) {
    if let Some(it) = newest {
        write_set(plan, deployment, it, limits, revision);
    }
    for it in old {
        write_set(plan, deployment, it, limits, None);
    }
    if let Some(revision) = revision {
        mark_revision(plan, deployment, revision);
    }
}

fn mark_revision(plan: &mut Plan, deployment: &Value, revision: i64) {
    if annotated(deployment, REVISION) != Some(revision) {
        let patch = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        plan.change(&kind("apps", "Deployment"), deployment, patch);
    }
}

/// Writes the size and the annotations of a set, where they differ. `newest` is its number if it is
/// the newest.
fn write_set(
    plan: &mut Plan,
    deployment: &Arc<Value>,
    revision: &Revision,
    limits: &Limits,
    newest: Option<i64>,
) {
    let set = &revision.set;
    let before = int(set, "/spec/replicas");
    let mut patch = json!({});
    if before != revision.replicas {
        patch["spec"]["replicas"] = json!(revision.replicas);
    }
    if newest.is_some() || revision.replicas > 0 {
        for (key, value) in set_annotations(deployment, Some(set), limits, newest) {
            if set["metadata"]["annotations"][&key] != value {
                patch["metadata"]["annotations"][&key] = value;
            }
        }
    }
    if newest.is_some() {
        let min_ready = int(deployment, "/spec/minReadySeconds");
        if int(set, "/spec/minReadySeconds") != min_ready {
            patch["spec"]["minReadySeconds"] = json!(min_ready);
        }
    }
    if patch != json!({}) {
        plan.change(&kind("apps", "ReplicaSet"), set, patch);
    }
    if before != revision.replicas {
        let direction = if revision.replicas > before { "up" } else { "down" };
        plan.normal(
            deployment,
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {} from {before} to {}", name(set), revision.replicas),
        );
    }
}

fn push_status(plan: &mut Plan, deployment: &Value, status: Value) {
    plan.status(&kind("apps", "Deployment"), deployment, status);
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
        plan.delete(&kind("apps", "ReplicaSet"), &it.set);
    }
}
