//! PersistentVolumeClaims get a PersistentVolume: one that is there, or a directory made for them.
//!
//! A claim of the class `local-path` waits until a pod wants it and the scheduler has chosen the node
//! (`volume.kubernetes.io/selected-node`); then a volume is made whose path is
//! `<directory>/<name of the volume>`. When a volume with the policy `Delete` loses its claim, its
//! directory goes with it. What is in use is protected by finalizers, as everywhere.

mod claim;
#[cfg(test)]
mod tests;
mod volume;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{Kind, is_deleting, list, name, namespace, parse_key, text};
use serde_json::{Value, json};

use crate::action::{Plan, kind};
use crate::harness::{Controller, Touched, View};

pub use claim::allows;

/// The class that a fresh cluster has.
pub const CLASS: &str = "local-path";
pub const PROVISIONER: &str = "naru.dev/local-path";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_US: &str = "pv.kubernetes.io/bound-by-controller";
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

fn claims() -> Arc<Kind> {
    kind("", "PersistentVolumeClaim")
}

fn volumes() -> Arc<Kind> {
    kind("", "PersistentVolume")
}

/// The StorageClass of a fresh cluster.
pub fn default_class() -> Value {
    json!({
        "metadata": {"name": CLASS, "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    })
}

pub struct Volumes {
    /// Where the directories of volumes are; without it none are made.
    pub directory: Option<PathBuf>,
}

impl Controller for Volumes {
    fn name(&self) -> &'static str {
        "persistentvolume-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        if change.is("core/persistentvolumeclaims/") {
            let bound = text(change.object, "/spec/volumeName");
            let volume = (!bound.is_empty()).then(|| volumes().key("", bound));
            return std::iter::once(change.key.to_string()).chain(volume).collect();
        }
        if change.is("core/persistentvolumes/") {
            let mut keys = vec![change.key.to_string()];
            let reference = &change.object["spec"]["claimRef"];
            if reference.is_object() {
                keys.push(claims().key(text(reference, "/namespace"), text(reference, "/name")));
            } else {
                keys.extend(unbound(view));
            }
            return keys;
        }
        if change.is("storage.k8s.io/storageclasses/") {
            return unbound(view);
        }
        // A pod that is gone or has ended sets its claims free.
        if change.is("core/pods/") && (change.deleted || crate::pods::is_finished(change.object)) {
            let place = namespace(change.object);
            return claims_of(change.object).map(|it| claims().key(place, &it)).collect();
        }
        Vec::new()
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, plural, place, name)) = parse_key(key) else { return Plan::default() };
        let everything = LabelSelector::default();
        if plural == "persistentvolumes" {
            let Some(volume) = view.objects.find(&volumes(), "", name) else { return Plan::default() };
            let reference = &volume["spec"]["claimRef"];
            let claim = view.objects.find(&claims(), text(reference, "/namespace"), text(reference, "/name"));
            return volume::reconcile(&volume, claim.as_deref(), self.directory.as_deref());
        }
        let Some(claim) = view.objects.find(&claims(), place, name) else { return Plan::default() };
        let class = text(&claim, "/spec/storageClassName");
        let known = claim::Known {
            volumes: view.objects.list(&volumes(), None, &everything),
            class: view.objects.find(&kind("storage.k8s.io", "StorageClass"), "", class),
            node: claim["metadata"]["annotations"][SELECTED_NODE]
                .as_str()
                .and_then(|it| view.objects.find(&kind("", "Node"), "", it)),
            nodes: view.objects.list(&kind("", "Node"), None, &everything),
            users: match is_deleting(&claim) {
                true => view.objects.list(&kind("", "Pod"), Some(place), &everything),
                false => Vec::new(),
            },
            directory: self.directory.as_deref(),
        };
        claim::reconcile(&claim, &known, now)
    }
}

/// Names of the claims that a pod uses.
pub fn claims_of(pod: &Value) -> impl Iterator<Item = String> + '_ {
    list(pod, "/spec/volumes").iter().filter_map(move |volume| {
        if volume["ephemeral"].is_object() {
            return Some(format!("{}-{}", name(pod), text(volume, "/name")));
        }
        volume["persistentVolumeClaim"]["claimName"].as_str().map(String::from)
    })
}

fn unbound(view: &View<'_>) -> Vec<String> {
    let all = view.objects.list(&claims(), None, &LabelSelector::default());
    let waiting = all.iter().filter(|it| text(it, "/spec/volumeName").is_empty());
    waiting.map(|it| claims().key(namespace(it), name(it))).collect()
}

fn with_finalizer(plan: &mut Plan, kind: &Arc<Kind>, object: &Value, finalizer: &str) {
    let mut finalizers = list(object, "/metadata/finalizers").to_vec();
    if !is_deleting(object) && !finalizers.iter().any(|it| it == finalizer) {
        finalizers.push(json!(finalizer));
        let revision = &object["metadata"]["resourceVersion"];
        plan.change(
            kind,
            object,
            json!({"metadata": {"resourceVersion": revision, "finalizers": finalizers}}),
        );
    }
}

fn without_finalizer(plan: &mut Plan, kind: &Arc<Kind>, object: &Value, finalizer: &str) {
    let finalizers = list(object, "/metadata/finalizers");
    if finalizers.iter().any(|it| it == finalizer) {
        let left: Vec<&Value> = finalizers.iter().filter(|it| *it != finalizer).collect();
        let revision = &object["metadata"]["resourceVersion"];
        plan.change(kind, object, json!({"metadata": {"resourceVersion": revision, "finalizers": left}}));
    }
}
