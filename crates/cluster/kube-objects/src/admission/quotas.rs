//! Quotas: counted from the objects themselves at every write that uses more, so that nothing can slip
//! through.

use std::sync::Arc;

use kube_kinds::quota::{self, Amounts};
use kube_kinds::selector::LabelSelector;
use kube_kinds::{Failure, Kind, name, table, uid};
use serde_json::Value;

use crate::{Objects, Registry};

pub(super) fn of_namespace(objects: &Objects, namespace: &str) -> Vec<Arc<Value>> {
    let quotas = table::of("", "ResourceQuota").expect("quotas are built in");
    objects.list(quotas, Some(namespace), &LabelSelector::default())
}

/// Whether the namespace has room for the change. The caller holds the lock of quotas.
pub(super) fn check(
    objects: &Objects,
    quotas: &[Arc<Value>],
    kind: &Kind,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Failure> {
    let wanted = quota::used_by(kind, new);
    let before = old.map(|it| quota::used_by(kind, it)).unwrap_or_default();
    let forbid = |why: String| Err(Failure::forbidden(kind, name(new), &why));
    for quota in quotas.iter().filter(|it| quota::is_in_scope(it, kind, new)) {
        let hard = quota::hard(quota);
        if kind.is_pod() && old.is_none() {
            let missing = quota::unnamed(quota, new);
            if !missing.is_empty() {
                return forbid(format!("failed quota: {}: must specify {}", name(quota), missing.join("; ")));
            }
        }
        let more: Vec<(&String, i128, i128)> = hard
            .iter()
            .filter_map(|(resource, limit)| {
                let more = wanted.get(resource)? - before.get(resource).unwrap_or(&0);
                (more > 0).then_some((resource, more, *limit))
            })
            .collect();
        if more.is_empty() {
            continue;
        }
        let used = counted(objects, quota, kind, uid(new));
        let over: Vec<_> = more
            .iter()
            .map(|(resource, more, limit)| {
                (
                    *resource,
                    *more,
                    used.get(*resource).copied().unwrap_or(0) + before.get(*resource).unwrap_or(&0),
                    *limit,
                )
            })
            .filter(|(_, more, used, limit)| more + used > *limit)
            .collect();
        if !over.is_empty() {
            let join = |of: &dyn Fn(&(&String, i128, i128, i128)) -> i128| -> String {
                let parts: Vec<String> =
                    over.iter().map(|it| format!("{}={}", it.0, quota::written(of(it), ""))).collect();
                parts.join(",")
            };
            return forbid(format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                name(quota),
                join(&|it| it.1),
                join(&|it| it.2),
                join(&|it| it.3)
            ));
        }
    }
    Ok(())
}

/// What objects of the kind use of the quota, without the one with `own` uid.
fn counted(objects: &Objects, quota: &Value, kind: &Kind, own: &str) -> Amounts {
    let mut used = Amounts::new();
    for object in objects.list(kind, Some(kube_kinds::namespace(quota)), &LabelSelector::default()) {
        if uid(&object) == own || !quota::is_in_scope(quota, kind, &object) {
            continue;
        }
        for (resource, amount) in quota::used_by(kind, &object) {
            *used.entry(resource).or_insert(0) += amount;
        }
    }
    used
}

impl Objects {
    /// The status that a quota should have now.
    pub fn quota_status(&self, quota: &Value, registry: &Registry) -> Value {
        let hard = quota::hard(quota);
        let place = kube_kinds::namespace(quota);
        let mut used = Amounts::new();
        for kind in registry.all().iter().filter(|it| it.namespaced && it.stored.is_none()) {
            // Only kinds of which the quota speaks are counted.
            let all = self.list(kind, Some(place), &LabelSelector::default());
            for object in all.iter().filter(|it| quota::is_in_scope(quota, kind, it)) {
                for (resource, amount) in quota::used_by(kind, object) {
                    if hard.contains_key(&resource) {
                        *used.entry(resource).or_insert(0) += amount;
                    }
                }
            }
        }
        quota::status(quota, &used)
    }
}
