//! Whose is it: objects without a controller that a selector matches are taken in, own ones that it
//! does not match any more are let go.

use std::sync::Arc;

use kube_kinds::selector::LabelSelector;
use kube_kinds::{Kind, controller_of, is_deleting, uid};
use serde_json::{Value, json};

use crate::action::{Plan, controller_reference};

/// The objects of `owner` among `candidates` (all of the namespace); what has to be written for that
/// goes into the plan. An owner that is going away takes in and lets go of nothing.
pub fn claim(
    plan: &mut Plan,
    owner: &Value,
    selector: &LabelSelector,
    kind: &Arc<Kind>,
    candidates: &[Arc<Value>],
) -> Vec<Arc<Value>> {
    let leaving = is_deleting(owner);
    let mut mine = Vec::new();
    for it in candidates {
        let references = || it["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        let matches = !selector.is_empty() && selector.matches(it);
        match controller_of(it) {
            Some(controller) if controller["uid"] == uid(owner) => {
                if matches || leaving {
                    mine.push(it.clone());
                } else {
                    let others: Vec<Value> =
                        references().into_iter().filter(|it| it["uid"] != uid(owner)).collect();
                    plan.change(kind, it, json!({"metadata": {"uid": uid(it), "ownerReferences": others}}));
                }
            }
            None if matches && !leaving && !is_deleting(it) => {
                let mut all = references();
                all.retain(|it| it["uid"] != uid(owner));
                all.push(controller_reference(owner));
                plan.change(kind, it, json!({"metadata": {"uid": uid(it), "ownerReferences": all}}));
                mine.push(it.clone());
            }
            _ => {}
        }
    }
    mine
}

/// The selector in `spec.selector`, which selects nothing when it is malformed.
pub fn selector_of(owner: &Value) -> LabelSelector {
    LabelSelector::from_object(&owner["spec"]["selector"]).unwrap_or_default()
}

/// The storage keys of the owners of `kind` in the namespace of an object without a controller, whose
/// selector matches it: they may want it.
pub fn suitors(view: &crate::harness::View<'_>, kind: &Kind, orphan: &Value) -> Vec<String> {
    let place = kube_kinds::namespace(orphan);
    let owners = view.objects.list(kind, Some(place), &LabelSelector::default());
    owners
        .iter()
        .filter(|it| {
            let selector = match it["spec"]["selector"]["matchLabels"].is_object()
                || it["spec"]["selector"]["matchExpressions"].is_array()
            {
                true => selector_of(it),
                false => LabelSelector::from_map(&it["spec"]["selector"]),
            };
            !selector.is_empty() && selector.matches(orphan)
        })
        .map(|it| kind.key(place, kube_kinds::name(it)))
        .collect()
}

/// Keys of the owners that a change of a pod (or whatever has a controller) concerns: the one that has
/// it, the one that had it, and those that may want it.
pub fn owners_touched(
    view: &crate::harness::View<'_>,
    kind: &Kind,
    change: &crate::harness::Touched<'_>,
) -> Vec<String> {
    let mut keys: Vec<String> = [Some(change.object), change.previous]
        .into_iter()
        .flatten()
        .filter_map(|object| controller_of(object).map(|it| (object, it)))
        .filter(|(_, owner)| owner["kind"] == kind.kind.as_str())
        .map(|(object, owner)| kind.key(kube_kinds::namespace(object), kube_kinds::text(owner, "/name")))
        .collect();
    if !change.deleted && controller_of(change.object).is_none() {
        keys.extend(suitors(view, kind, change.object));
    }
    keys
}
