//! ControllerRevisions: what the template of a StatefulSet or DaemonSet was, so that it can be rolled
//! back to. The data of a revision is a patch of its owner, which is what `kubectl rollout undo` sends.

use std::sync::Arc;

use kube_kinds::selector::LabelSelector;
use kube_kinds::{Kind, int, is_deleting, name, namespace, text};
use serde_json::{Value, json};

use crate::action::{Plan, controller_reference, kind};
use crate::adoption;
use crate::harness::View;
use crate::hash;

pub const HASH: &str = "controller-revision-hash";

/// The revisions of one owner, oldest first. `newest` is the one of the present template.
pub struct History {
    pub newest: Value,
    pub all: Vec<Arc<Value>>,
}

impl History {
    pub fn newest_name(&self) -> &str {
        name(&self.newest)
    }

    pub fn newest_hash(&self) -> &str {
        hash_of(&self.newest)
    }

    pub fn find(&self, revision: &str) -> Option<&Value> {
        if self.newest_name() == revision {
            return Some(&self.newest);
        }
        self.all.iter().find(|it| name(it) == revision).map(|it| &**it)
    }
}

pub fn hash_of(revision: &Value) -> &str {
    revision["metadata"]["labels"][HASH].as_str().unwrap_or("")
}

/// The template that a revision holds.
pub fn template_of(revision: &Value) -> Value {
    let mut template = revision["data"]["spec"]["template"].clone();
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    template
}

fn kind_of_revisions() -> Arc<Kind> {
    kind("apps", "ControllerRevision")
}

/// All of a namespace.
pub fn list(view: &View<'_>, place: &str) -> Vec<Arc<Value>> {
    view.objects.list(&kind_of_revisions(), Some(place), &LabelSelector::default())
}

/// Finds or makes the revision of the present template. `None` when its name is taken: the owner's status
/// must count a collision and try again.
pub fn sync(plan: &mut Plan, owner: &Arc<Value>, revisions: &[Arc<Value>]) -> Option<History> {
    let kind = kind_of_revisions();
    let mut all = adoption::claim(plan, owner, &adoption::selector_of(owner), &kind, revisions);
    all.retain(|it| !is_deleting(it));
    all.sort_by_key(|it| (int(it, "/revision"), name(it).to_string()));
    let mut data = json!({"spec": {"template": owner["spec"]["template"]}});
    data["spec"]["template"]["$patch"] = json!("replace");
    let top = all.last().map_or(0, |it| int(it, "/revision"));
    if let Some(at) = all.iter().rposition(|it| it["data"] == data) {
        let mut newest = (*all[at]).clone();
        if int(&newest, "/revision") < top && !is_deleting(owner) {
            // Rolled back: the old revision is the newest again.
            plan.change(&kind, &newest, json!({"revision": top + 1}));
            newest["revision"] = json!(top + 1);
            all.remove(at);
            all.push(Arc::new(newest.clone()));
        }
        return Some(History { newest, all });
    }
    let hash = hash::short(&data, int(owner, "/status/collisionCount"));
    let revision_name = format!("{}-{hash}", name(owner));
    if revisions.iter().any(|it| name(it) == revision_name) {
        return None;
    }
    let mut labels = owner["spec"]["template"]["metadata"]["labels"].clone();
    labels[HASH] = json!(hash);
    labels["controller.kubernetes.io/hash"] = json!(hash);
    let newest = json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {"name": revision_name, "namespace": namespace(owner), "labels": labels,
            "annotations": kept_annotations(owner), "ownerReferences": [controller_reference(owner)]},
        "data": data, "revision": top + 1,
    });
    if !is_deleting(owner) {
        plan.create(&kind, namespace(owner), newest.clone());
    }
    all.push(Arc::new(newest.clone()));
    Some(History { newest, all })
}

/// Why the template was changed is part of its history.
fn kept_annotations(owner: &Value) -> Value {
    let mut annotations = json!({});
    let of_owner = owner["metadata"]["annotations"].as_object();
    for (key, value) in of_owner.into_iter().flatten() {
        if key != "kubectl.kubernetes.io/last-applied-configuration" {
            annotations[key] = value.clone();
        }
    }
    annotations
}

/// Removes revisions beyond `spec.revisionHistoryLimit` that nobody lives by.
pub fn prune(plan: &mut Plan, owner: &Value, history: &History, is_live: impl Fn(&Value) -> bool) {
    let limit = owner["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10);
    let idle: Vec<&Arc<Value>> =
        history.all.iter().filter(|it| name(it) != history.newest_name() && !is_live(it)).collect();
    let excess = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for it in idle.into_iter().take(excess).filter(|it| !text(it, "/metadata/uid").is_empty()) {
        plan.delete(&kind_of_revisions(), it);
    }
}
