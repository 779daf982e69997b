//! One claim: find a volume or have one made, bind both, protect while in use.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::quantity::parse_milli;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{is_deleting, list, name, namespace, text, uid};
use kube_objects::EventType;
use serde_json::{Value, json};

use super::{
    BIND_COMPLETED, BOUND_BY_US, CLAIM_PROTECTION, PROVISIONED_BY, PROVISIONER, SELECTED_NODE, claims,
    claims_of, volumes, with_finalizer, without_finalizer,
};
use crate::action::{Action, Plan};
use crate::{placement, pods};

/// What a claim's fate depends on.
pub struct Known<'a> {
    pub volumes: Vec<Arc<Value>>,
    pub class: Option<Arc<Value>>,
    /// The node that the scheduler has chosen for the first pod.
    pub node: Option<Arc<Value>>,
    pub nodes: Vec<Arc<Value>>,
    /// Pods of the namespace; only asked for when the claim is on its way out.
    pub users: Vec<Arc<Value>>,
    pub directory: Option<&'a Path>,
}

pub fn reconcile(claim: &Arc<Value>, known: &Known<'_>, _now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(claim) {
        let uses = |pod: &Value| !pods::is_finished(pod) && claims_of(pod).any(|it| it == name(claim));
        if !known.users.iter().any(|it| uses(it)) {
            without_finalizer(&mut plan, &claims(), claim, CLAIM_PROTECTION);
        }
        return plan;
    }
    let bound = text(claim, "/spec/volumeName");
    if !bound.is_empty() {
        let volume = known.volumes.iter().find(|it| name(it) == bound);
        stay_bound(&mut plan, claim, volume);
    } else if let Some(volume) = find(claim, known) {
        bind(&mut plan, claim, volume);
    } else {
        provision(&mut plan, claim, known);
    }
    if plan.actions.is_empty() {
        with_finalizer(&mut plan, &claims(), claim, CLAIM_PROTECTION);
    }
    plan
}

/// Whether the volume is this claim's.
fn is_for(volume: &Value, claim: &Value) -> bool {
    let reference = &volume["spec"]["claimRef"];
    reference["name"] == name(claim)
        && reference["namespace"] == namespace(claim)
        && (reference["uid"].is_null() || reference["uid"] == uid(claim))
}

fn stay_bound(plan: &mut Plan, claim: &Arc<Value>, volume: Option<&Arc<Value>>) {
    match volume {
        None if claim["metadata"]["annotations"][BIND_COMPLETED].is_string() => {
            let mut status = claim["status"].clone();
            status["phase"] = json!("Lost");
            if claim["status"]["phase"] != "Lost" {
                let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                tell(plan, claim, EventType::Warning, "ClaimLost", message.into());
            }
            plan.status(&claims(), claim, status);
        }
        // A volume named by its user may come yet.
        None => {}
        Some(volume) if is_for(volume, claim) || volume["spec"]["claimRef"].is_null() => {
            bind(plan, claim, volume);
        }
        Some(volume) => {
            let message = format!("volume {:?} already bound to a different claim.", name(volume));
            tell(plan, claim, EventType::Warning, "FailedBinding", message);
        }
    }
}

fn tell(plan: &mut Plan, claim: &Arc<Value>, event_type: EventType, reason: &'static str, message: String) {
    plan.push(Action::Event { about: claim.clone(), event_type, reason, message });
}

fn requested(claim: &Value) -> i128 {
    parse_milli(text(claim, "/spec/resources/requests/storage")).unwrap_or(0)
}

fn capacity(volume: &Value) -> i128 {
    parse_milli(text(volume, "/spec/capacity/storage")).unwrap_or(0)
}

fn mode(object: &Value) -> &str {
    object["spec"]["volumeMode"].as_str().unwrap_or("Filesystem")
}

/// The smallest volume that will do; one that was set aside for the claim comes first.
fn find<'a>(claim: &Value, known: &'a Known<'_>) -> Option<&'a Arc<Value>> {
    if let Some(own) = known.volumes.iter().find(|it| is_for(it, claim) && !is_deleting(it)) {
        return Some(own);
    }
    if waits_for_consumer(known) && known.node.is_none() {
        return None;
    }
    let selector = &claim["spec"]["selector"];
    let selector = LabelSelector::from_object(selector).unwrap_or_default();
    let fits = |volume: &Value| {
        let modes = list(volume, "/spec/accessModes");
        let here = known.node.as_ref().is_none_or(|node| allows(volume, node));
        volume["spec"]["claimRef"].is_null()
            && !is_deleting(volume)
            && text(volume, "/spec/storageClassName") == text(claim, "/spec/storageClassName")
            && mode(volume) == mode(claim)
            && capacity(volume) >= requested(claim)
            && list(claim, "/spec/accessModes").iter().all(|it| modes.contains(it))
            && selector.matches(volume)
            && here
    };
    known.volumes.iter().filter(|it| fits(it)).min_by_key(|it| (capacity(it), name(it).to_string()))
}

/// Whether the volume can be used on the node.
pub fn allows(volume: &Value, node: &Value) -> bool {
    let required = &volume["spec"]["nodeAffinity"]["required"];
    required.is_null() || placement::matches_node_selector(required, node)
}

fn waits_for_consumer(known: &Known<'_>) -> bool {
    known.class.as_ref().is_some_and(|it| it["volumeBindingMode"] == "WaitForFirstConsumer")
}

/// Both sides, the volume first: a crash in between leaves a volume that is set aside for the claim.
fn bind(plan: &mut Plan, claim: &Arc<Value>, volume: &Value) {
    if volume["spec"]["claimRef"]["uid"] != uid(claim) {
        let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace(claim),
            "name": name(claim), "uid": uid(claim), "resourceVersion": claim["metadata"]["resourceVersion"]});
        let revision = &volume["metadata"]["resourceVersion"];
        let patch = json!({"metadata": {"resourceVersion": revision, "annotations": {BOUND_BY_US: "yes"}},
            "spec": {"claimRef": reference}});
        plan.change(&volumes(), volume, patch);
    }
    let annotations = &claim["metadata"]["annotations"];
    if text(claim, "/spec/volumeName") != name(volume) || !annotations[BIND_COMPLETED].is_string() {
        let mut patch = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}, "spec": {"volumeName": name(volume)}});
        if text(claim, "/spec/volumeName").is_empty() {
            patch["metadata"]["annotations"][BOUND_BY_US] = json!("yes");
        }
        plan.change(&claims(), claim, patch);
    }
    let mut status = claim["status"].as_object().cloned().unwrap_or_default();
    status.insert("phase".into(), json!("Bound"));
    status.insert("accessModes".into(), volume["spec"]["accessModes"].clone());
    status.insert("capacity".into(), volume["spec"]["capacity"].clone());
    plan.status(&claims(), claim, Value::Object(status));
}

fn provision(plan: &mut Plan, claim: &Arc<Value>, known: &Known<'_>) {
    let mut status = claim["status"].clone();
    if status["phase"] != "Pending" {
        status["phase"] = json!("Pending");
        plan.status(&claims(), claim, status);
    }
    let class_name = text(claim, "/spec/storageClassName");
    let Some(class) = &known.class else {
        let message = match class_name {
            "" => "no persistent volumes available for this claim and no storage class is set".to_string(),
            class => format!("storageclass.storage.k8s.io {class:?} not found"),
        };
        let reason = if class_name.is_empty() { "FailedBinding" } else { "ProvisioningFailed" };
        let event_type = if class_name.is_empty() { EventType::Normal } else { EventType::Warning };
        return tell(plan, claim, event_type, reason, message);
    };
    if text(class, "/provisioner") == "kubernetes.io/no-provisioner" && known.node.is_some() {
        let message = "no persistent volumes available for this claim";
        return tell(plan, claim, EventType::Normal, "FailedBinding", message.into());
    }
    if waits_for_consumer(known) && known.node.is_none() {
        let message = "waiting for first consumer to be created before binding";
        return tell(plan, claim, EventType::Normal, "WaitForFirstConsumer", message.into());
    }
    let ours = text(class, "/provisioner") == PROVISIONER;
    let (Some(directory), true) = (known.directory, ours) else {
        let message = format!(
            "Waiting for a volume to be created by the external provisioner {:?}.",
            text(class, "/provisioner")
        );
        return tell(plan, claim, EventType::Normal, "ExternalProvisioning", message);
    };
    if mode(claim) == "Block" {
        let message = "the local-path provisioner makes directories, not block devices".to_string();
        return tell(plan, claim, EventType::Warning, "ProvisioningFailed", message);
    }
    let ready = known.nodes.iter().find(|it| kube_kinds::condition_is_true(it, "Ready"));
    let Some(node) = known.node.as_ref().or(ready) else {
        let message = "no node is ready to hold the volume".to_string();
        return tell(plan, claim, EventType::Warning, "ProvisioningFailed", message);
    };
    let volume_name = format!("pvc-{}", uid(claim));
    let host = node["metadata"]["labels"]["kubernetes.io/hostname"].as_str().unwrap_or(name(node));
    let path = directory.join(&volume_name);
    plan.push(Action::MakeDirectory { path: path.clone() });
    let on_node = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]});
    plan.create(
        &volumes(),
        "",
        json!({
            "metadata": {"name": volume_name, "annotations": {PROVISIONED_BY: PROVISIONER, SELECTED_NODE: name(node)},
                "finalizers": [super::VOLUME_PROTECTION]},
            "spec": {
                "accessModes": claim["spec"]["accessModes"],
                "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace(claim),
                    "name": name(claim), "uid": uid(claim), "resourceVersion": claim["metadata"]["resourceVersion"]},
                "local": {"path": path}, "nodeAffinity": {"required": on_node},
                "persistentVolumeReclaimPolicy": class["reclaimPolicy"].as_str().unwrap_or("Delete"),
                "storageClassName": class_name, "volumeMode": "Filesystem",
            },
        }),
    );
    tell(
        plan,
        claim,
        EventType::Normal,
        "ProvisioningSucceeded",
        format!("Successfully provisioned volume {volume_name}"),
    );
}
