//! The volumes of a pod: which nodes can reach them, and waiting for those that are made for it.

use std::sync::Arc;
use std::time::Duration;

use kube_kinds::{Failure, is_deleting, name, namespace, text};
use kube_objects::{Door, Objects, Patch, Writer};
use serde_json::{Value, json};

use crate::action::kind;
use crate::volumes::claims_of;

/// A volume that is not there by then is given up; the pod is tried anew.
const BINDING_SECONDS_MAX: u64 = 60;
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// What the claims of a pod say.
#[derive(Debug, Default)]
pub struct Storage {
    /// Volumes that are there.
    pub volumes: Vec<Arc<Value>>,
    /// Claims that get their volume when the node is known.
    pub waiting: Vec<String>,
}

/// Or why the pod cannot run anywhere yet.
pub fn look(objects: &Objects, pod: &Value) -> Result<Storage, String> {
    let mut storage = Storage::default();
    let place = namespace(pod);
    for claim_name in claims_of(pod) {
        let claims = kind("", "PersistentVolumeClaim");
        let Some(claim) = objects.find(&claims, place, &claim_name) else {
            return Err(format!("persistentvolumeclaim {claim_name:?} not found"));
        };
        if is_deleting(&claim) {
            return Err(format!("persistentvolumeclaim {claim_name:?} is being deleted"));
        }
        if claim["status"]["phase"] == "Lost" {
            return Err(format!(
                "persistentvolumeclaim {claim_name:?} bound to non-existent persistentvolume"
            ));
        }
        let volume = text(&claim, "/spec/volumeName");
        if !volume.is_empty() {
            match objects.find(&kind("", "PersistentVolume"), "", volume) {
                Some(volume) => storage.volumes.push(volume),
                None => return Err(format!("persistentvolume {volume:?} not found")),
            }
            continue;
        }
        let class = text(&claim, "/spec/storageClassName");
        let class = objects.find(&kind("storage.k8s.io", "StorageClass"), "", class);
        match class.is_some_and(|it| it["volumeBindingMode"] == "WaitForFirstConsumer") {
            true => storage.waiting.push(claim_name),
            false => return Err("pod has unbound immediate PersistentVolumeClaims".into()),
        }
    }
    Ok(storage)
}

/// Tells the claims their node and waits until they are bound.
pub async fn bind(
    objects: &Objects,
    place: &str,
    claims: &[String],
    node: &str,
    writer: &Writer,
) -> Result<(), Failure> {
    let kind = kind("", "PersistentVolumeClaim");
    let (_, mut watcher) = objects.store().list_and_watch(&kind.prefix_in(Some(place)));
    for claim in claims {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {SELECTED_NODE: node}}}));
        objects.patch(&kind, place, claim, &patch, Door::Object, writer).await?;
    }
    let is_bound = |claim: &String| {
        objects.find(&kind, place, claim).is_some_and(|it| {
            it["status"]["phase"] == "Bound"
                && !text(&it, "/spec/volumeName").is_empty()
                && !name(&it).is_empty()
        })
    };
    let wait = async {
        while !claims.iter().all(is_bound) {
            if watcher.next().await.is_err() {
                (_, watcher) = objects.store().list_and_watch(&kind.prefix_in(Some(place)));
            }
        }
    };
    if tokio::time::timeout(Duration::from_secs(BINDING_SECONDS_MAX), wait).await.is_ok() {
        return Ok(());
    }
    for claim in claims.iter().filter(|it| !is_bound(it)) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {SELECTED_NODE: null}}}));
        objects.patch(&kind, place, claim, &patch, Door::Object, writer).await?;
    }
    Err(Failure::new(
        504,
        "Timeout",
        format!("the volumes of the pod were not there after {BINDING_SECONDS_MAX} s"),
    ))
}
