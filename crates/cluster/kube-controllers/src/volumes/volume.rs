//! One volume: its phase, and its end.

use std::path::Path;
use std::sync::Arc;

use kube_kinds::{is_deleting, name, text, uid};
use serde_json::{Value, json};

use super::{PROVISIONED_BY, PROVISIONER, VOLUME_PROTECTION, volumes, with_finalizer, without_finalizer};
use crate::action::{Action, Plan};

pub fn reconcile(volume: &Arc<Value>, claim: Option<&Value>, directory: Option<&Path>) -> Plan {
    let mut plan = Plan::default();
    let reference = &volume["spec"]["claimRef"];
    let lives = claim.is_some_and(|it| reference["uid"].is_null() || reference["uid"] == uid(it));
    let was_bound = reference["uid"].is_string();
    let bound = lives && claim.is_some_and(|it| text(it, "/spec/volumeName") == name(volume));
    let phase = match (was_bound, lives) {
        _ if bound => "Bound",
        (true, false) => "Released",
        // Set aside for a claim that is about to be bound, or for anybody.
        _ => "Available",
    };
    let ours = volume["metadata"]["annotations"][PROVISIONED_BY] == PROVISIONER;
    if is_deleting(volume) {
        if phase != "Bound" {
            if let (true, Some(path)) = (ours && deletes(volume), own_directory(volume, directory)) {
                plan.push(Action::RemoveDirectory { path });
            }
            without_finalizer(&mut plan, &volumes(), volume, VOLUME_PROTECTION);
        }
        return plan;
    }
    let mut status = volume["status"].as_object().cloned().unwrap_or_default();
    status.insert("phase".into(), json!(phase));
    plan.status(&volumes(), volume, Value::Object(status));
    if phase == "Released" && ours && deletes(volume) {
        plan.delete(&volumes(), volume);
    } else if plan.actions.is_empty() {
        with_finalizer(&mut plan, &volumes(), volume, VOLUME_PROTECTION);
    }
    plan
}

fn deletes(volume: &Value) -> bool {
    volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
}

/// The directory that was made for the volume. Whatever else somebody wrote into its path is not ours to
/// remove.
fn own_directory(volume: &Value, directory: Option<&Path>) -> Option<std::path::PathBuf> {
    let own = directory?.join(name(volume));
    (Path::new(text(volume, "/spec/local/path")) == own && !name(volume).contains('/')).then_some(own)
}
