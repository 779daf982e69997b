//! Garbage collection: what nobody owns any more goes, and owners wait for or let go of their
//! dependents as the deletion asked.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::strategy::{FOREGROUND, ORPHAN, Propagation};
use kube_kinds::{Kind, is_deleting, list, name, namespace, text, uid};
use serde_json::{Value, json};

use crate::action::{Action, Plan};
use crate::harness::{Controller, Touched, View};

pub struct GarbageCollector;

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        let mut keys = Vec::new();
        let references = list(change.object, "/metadata/ownerReferences");
        if !change.deleted && (!references.is_empty() || is_deleting(change.object)) {
            keys.push(change.key.to_string());
        }
        if change.deleted || is_deleting(change.object) {
            keys.extend(dependents(view, uid(change.object)).into_iter().map(|(key, _)| key));
        }
        if change.deleted
            || change.previous.is_some_and(|it| list(it, "/metadata/ownerReferences") != references)
        {
            // An owner that waits for this one may go now.
            let before = change.previous.map_or(&[][..], |it| list(it, "/metadata/ownerReferences"));
            for reference in references.iter().chain(before) {
                keys.extend(owner_key(view, reference, namespace(change.object)));
            }
        }
        keys
    }

    fn plan(&self, key: &str, view: &View<'_>, _: Timestamp) -> Plan {
        let Some(entry) = view.objects.store().get(key) else { return Plan::default() };
        let Some(kind) = view.registry.at_key(key) else { return Plan::default() };
        let object = entry.value;
        let owners: Vec<Owner> = list(&object, "/metadata/ownerReferences")
            .iter()
            .map(|reference| Owner {
                reference: reference.clone(),
                state: owner_state(view, reference, &object),
            })
            .collect();
        let needs_dependents =
            is_deleting(&object) || owners.iter().any(|it| matches!(it.state, OwnerState::Waiting));
        let dependents: Vec<(Arc<Kind>, Arc<Value>)> = match needs_dependents {
            true => dependents(view, uid(&object))
                .into_iter()
                .filter(|(_, it)| !waits_for(view, it, uid(&object)))
                .filter_map(|(key, object)| view.registry.at_key(&key).map(|kind| (kind, object)))
                .collect(),
            false => Vec::new(),
        };
        reconcile(&kind, &object, &owners, &dependents)
    }
}

pub struct Owner {
    pub reference: Value,
    pub state: OwnerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    Present,
    /// Gone, or another object has its name now.
    Absent,
    /// Being deleted in the foreground: it waits for this dependent.
    Waiting,
}

fn owner_key(view: &View<'_>, reference: &Value, place: &str) -> Option<String> {
    let kind = view.registry.of(text(reference, "/apiVersion"), text(reference, "/kind"))?;
    Some(kind.key(place, text(reference, "/name")))
}

fn owner_state(view: &View<'_>, reference: &Value, dependent: &Value) -> OwnerState {
    // A kind that is not served says nothing about its objects: keep the dependent.
    let Some(key) = owner_key(view, reference, namespace(dependent)) else { return OwnerState::Present };
    match view.objects.store().get(&key) {
        Some(owner) if uid(&owner.value) == text(reference, "/uid") => {
            let waits = is_waiting(&owner.value) && reference["blockOwnerDeletion"] == true;
            if waits { OwnerState::Waiting } else { OwnerState::Present }
        }
        _ => OwnerState::Absent,
    }
}

fn dependents(view: &View<'_>, owner: &str) -> Vec<(String, Arc<Value>)> {
    if owner.is_empty() {
        return Vec::new();
    }
    let all = view.objects.store().list("").items.into_iter();
    all.filter(|it| list(&it.value, "/metadata/ownerReferences").iter().any(|it| it["uid"] == owner))
        .map(|it| (it.key.to_string(), it.value))
        .collect()
}

/// Whether an object on its way out waits, through its dependents, for the object with that uid: then
/// that one must not wait for it in turn.
fn waits_for(view: &View<'_>, object: &Value, target: &str) -> bool {
    let mut known: Vec<String> = Vec::new();
    let mut next = vec![(uid(object).to_string(), is_waiting(object))];
    while let Some((owner, waits)) = next.pop() {
        if !waits || known.contains(&owner) {
            continue;
        }
        for (_, dependent) in dependents(view, &owner) {
            if uid(&dependent) == target {
                return true;
            }
            next.push((uid(&dependent).to_string(), is_waiting(&dependent)));
        }
        known.push(owner);
    }
    false
}

fn is_waiting(object: &Value) -> bool {
    is_deleting(object) && list(object, "/metadata/finalizers").iter().any(|it| it == FOREGROUND)
}

/// What to do about one object, given its owners and its dependents.
pub fn reconcile(
    kind: &Arc<Kind>,
    object: &Arc<Value>,
    owners: &[Owner],
    dependents: &[(Arc<Kind>, Arc<Value>)],
) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(object) {
        finish_deletion(&mut plan, kind, object, dependents);
        return plan;
    }
    if owners.is_empty() {
        return plan;
    }
    let is = |state: OwnerState| owners.iter().any(|it| it.state == state);
    if is(OwnerState::Present) {
        if is(OwnerState::Absent) || is(OwnerState::Waiting) {
            // Somebody still wants it; the others are forgotten.
            let kept: Vec<&Value> =
                owners.iter().filter(|it| it.state == OwnerState::Present).map(|it| &it.reference).collect();
            plan.push(change(kind, object, json!({"metadata": {"ownerReferences": kept}})));
        }
        return plan;
    }
    let propagation = match is(OwnerState::Waiting) && !dependents.is_empty() {
        true => Propagation::Foreground,
        false => Propagation::Background,
    };
    plan.push(Action::Delete {
        kind: kind.clone(),
        namespace: namespace(object).to_string(),
        name: name(object).to_string(),
        uid: uid(object).to_string(),
        propagation,
    });
    plan
}

/// Takes away our own finalizers when their work is done.
fn finish_deletion(
    plan: &mut Plan,
    kind: &Arc<Kind>,
    object: &Arc<Value>,
    dependents: &[(Arc<Kind>, Arc<Value>)],
) {
    let finalizers = list(object, "/metadata/finalizers");
    let owner = uid(object);
    if finalizers.iter().any(|it| it == ORPHAN) {
        for (kind, dependent) in dependents {
            let kept: Vec<&Value> =
                list(dependent, "/metadata/ownerReferences").iter().filter(|it| it["uid"] != owner).collect();
            plan.push(change(kind, dependent, json!({"metadata": {"ownerReferences": kept}})));
        }
        plan.push(without(kind, object, ORPHAN));
    } else if finalizers.iter().any(|it| it == FOREGROUND) {
        let blocks = |dependent: &Value| {
            list(dependent, "/metadata/ownerReferences")
                .iter()
                .any(|it| it["uid"] == owner && it["blockOwnerDeletion"] == true)
        };
        if !dependents.iter().any(|(_, it)| blocks(it)) {
            plan.push(without(kind, object, FOREGROUND));
        }
    }
}

fn without(kind: &Arc<Kind>, object: &Value, finalizer: &str) -> Action {
    let left: Vec<&Value> =
        list(object, "/metadata/finalizers").iter().filter(|it| *it != finalizer).collect();
    // The revision is a condition: a finalizer that somebody adds now must not get lost.
    let patch =
        json!({"metadata": {"finalizers": left, "resourceVersion": object["metadata"]["resourceVersion"]}});
    change(kind, object, patch)
}

fn change(kind: &Arc<Kind>, object: &Value, patch: Value) -> Action {
    Action::Change {
        kind: kind.clone(),
        namespace: namespace(object).to_string(),
        name: name(object).to_string(),
        patch,
    }
}
