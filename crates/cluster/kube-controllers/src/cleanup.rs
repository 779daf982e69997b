//! The end of containers of objects: a namespace that is deleted is emptied first (pods before the
//! rest), a declared kind takes its objects with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::strategy::{CRD_CLEANUP, Propagation};
use kube_kinds::{Kind, is_deleting, list, name, namespace, parse_key, text, time, uid};
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::harness::{Controller, Touched, View};

pub struct Cleanup;

const NAMESPACES: &str = "core/namespaces/";
const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions/";

impl Controller for Cleanup {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        let leaves = |key: &str| view.objects.store().get(key).is_some_and(|it| is_deleting(&it.value));
        if change.is(NAMESPACES) || change.is(DEFINITIONS) {
            let concerned = !change.deleted && is_deleting(change.object);
            return if concerned { vec![change.key.to_string()] } else { Vec::new() };
        }
        let Some((group, plural, place, _)) = parse_key(change.key) else { return Vec::new() };
        let containers = [kind("", "Namespace").key("", place), format!("{DEFINITIONS}/{plural}.{group}")];
        containers.into_iter().filter(|key| leaves(key)).collect()
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some(entry) = view.objects.store().get(key).filter(|it| is_deleting(&it.value)) else {
            return Plan::default();
        };
        let with_kind =
            |entry: kube_store::Entry| view.registry.at_key(&entry.key).map(|kind| (kind, entry.value));
        if key.starts_with(NAMESPACES) {
            let all = view.objects.store().list("").items.into_iter();
            let inside = all.filter(|it| parse_key(&it.key).is_some_and(|it| it.2 == name(&entry.value)));
            return empty_namespace(&entry.value, &inside.filter_map(with_kind).collect::<Vec<_>>(), now);
        }
        let prefix =
            format!("{}/{}/", text(&entry.value, "/spec/group"), text(&entry.value, "/spec/names/plural"));
        let inside = view.objects.store().list(&prefix).items.into_iter();
        empty_definition(&entry.value, &inside.filter_map(with_kind).collect::<Vec<_>>())
    }
}

type Inside = [(Arc<Kind>, Arc<Value>)];

/// The finalizer that stands for the content of a namespace; others are other people's.
const CONTENT: &str = "kubernetes";

/// Pods first: what they use must outlive them. What holds the namespace up is told in its conditions.
pub fn empty_namespace(namespace: &Arc<Value>, inside: &Inside, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if inside.is_empty() {
        let finalizers = list(namespace, "/spec/finalizers");
        if finalizers.iter().any(|it| it == CONTENT) {
            let left: Vec<&Value> = finalizers.iter().filter(|it| *it != CONTENT).collect();
            plan.push(change(&kind("", "Namespace"), namespace, json!({"spec": {"finalizers": left}})));
        }
        return plan;
    }
    let has_pods = inside.iter().any(|(kind, _)| kind.is_pod());
    for (kind, object) in inside.iter().filter(|(kind, _)| kind.is_pod() == has_pods) {
        remove(&mut plan, kind, object);
    }
    if plan.actions.is_empty() {
        // Everything has been asked to go, and does not.
        let status = told(namespace, inside, now);
        if namespace["status"] != status {
            plan.status(&kind("", "Namespace"), namespace, status);
        }
    }
    plan
}

/// The status of a namespace that is held up by what is in it.
fn told(namespace: &Value, inside: &Inside, now: Timestamp) -> Value {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (kind, object) in inside {
        *kinds.entry(kind.resource()).or_default() += 1;
        for finalizer in list(object, "/metadata/finalizers") {
            *finalizers.entry(finalizer.as_str().unwrap_or("")).or_default() += 1;
        }
    }
    let all: Vec<String> =
        kinds.iter().map(|(kind, count)| format!("{kind} has {count} resource instances")).collect();
    let held: Vec<String> =
        finalizers.iter().map(|(it, count)| format!("{it} in {count} resource instances")).collect();
    let mut object = namespace.clone();
    let mut tell = |kind: &str, truth: bool, reason: &str, message: String| {
        let status = if truth { "True" } else { "False" };
        let old = kube_kinds::condition(&object, kind).filter(|it| it["status"] == status);
        let since = old.map_or_else(|| json!(time::format(now)), |it| it["lastTransitionTime"].clone());
        let condition = json!({"type": kind, "status": status, "lastTransitionTime": since,
            "reason": reason, "message": message});
        kube_objects::set_condition(&mut object, condition);
    };
    let fine = "All resources successfully discovered";
    tell("NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", fine.into());
    let fine = "All content successfully deleted, may be waiting on finalization";
    tell("NamespaceDeletionContentFailure", false, "ContentDeleted", fine.into());
    let message = format!("Some resources are remaining: {}", all.join(", "));
    tell("NamespaceContentRemaining", true, "SomeResourcesRemain", message);
    let message = match held.is_empty() {
        true => "All content-preserving finalizers finished".to_string(),
        false => format!("Some content in the namespace has finalizers remaining: {}", held.join(", ")),
    };
    tell("NamespaceFinalizersRemaining", !held.is_empty(), "SomeFinalizersRemain", message);
    object["status"].take()
}

pub fn empty_definition(definition: &Arc<Value>, inside: &Inside) -> Plan {
    let mut plan = Plan::default();
    let finalizers = list(definition, "/metadata/finalizers");
    if inside.is_empty() && finalizers.iter().any(|it| it == CRD_CLEANUP) {
        let left: Vec<&Value> = finalizers.iter().filter(|it| *it != CRD_CLEANUP).collect();
        let patch = json!({"metadata": {"finalizers": left,
            "resourceVersion": definition["metadata"]["resourceVersion"]}});
        plan.push(change(&kind("apiextensions.k8s.io", "CustomResourceDefinition"), definition, patch));
    }
    for (kind, object) in inside {
        remove(&mut plan, kind, object);
    }
    plan
}

fn remove(plan: &mut Plan, kind: &Arc<Kind>, object: &Value) {
    if !is_deleting(object) {
        plan.push(Action::Delete {
            kind: kind.clone(),
            namespace: namespace(object).to_string(),
            name: name(object).to_string(),
            uid: uid(object).to_string(),
            propagation: Propagation::Background,
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
