//! The name, the labels and the storage of one pod of a StatefulSet.

use std::ops::Range;
use std::sync::Arc;

use kube_kinds::{is_deleting, list, name, namespace, text, uid};
use serde_json::{Value, json};

use crate::action::{Plan, kind};
use crate::history::HASH;
use crate::pods;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The number at the end of a member's name.
pub(super) fn ordinal_of(set: &Value, pod: &Value) -> Option<i64> {
    let ordinal = name(pod).strip_prefix(name(set))?.strip_prefix('-')?;
    let canonical = ordinal == "0" || !ordinal.starts_with('0');
    (canonical && ordinal.chars().all(|it| it.is_ascii_digit())).then(|| ordinal.parse().ok())?
}

fn claim_name(template: &Value, pod: &str) -> String {
    format!("{}-{pod}", name(template))
}

/// The pod of that number.
pub(super) fn pod(set: &Value, template: &Value, revision: &str, ordinal: i64) -> Value {
    let mut pod = pods::from_template(set, template);
    let pod_name = format!("{}-{ordinal}", name(set));
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("generateName");
    }
    pod["metadata"]["name"] = json!(pod_name);
    pod["metadata"]["labels"][HASH] = json!(revision);
    pod["metadata"]["labels"][POD_NAME] = json!(pod_name);
    pod["metadata"]["labels"][POD_INDEX] = json!(ordinal.to_string());
    pod["spec"]["hostname"] = json!(pod_name);
    if !text(set, "/spec/serviceName").is_empty() {
        pod["spec"]["subdomain"] = set["spec"]["serviceName"].clone();
    }
    let claims = list(set, "/spec/volumeClaimTemplates");
    if claims.is_empty() {
        return pod;
    }
    let mut volumes: Vec<Value> = list(&pod, "/spec/volumes")
        .iter()
        .filter(|volume| !claims.iter().any(|it| name(it) == text(volume, "/name")))
        .cloned()
        .collect();
    volumes.extend(claims.iter().map(
        |it| json!({"name": name(it), "persistentVolumeClaim": {"claimName": claim_name(it, &pod_name)}}),
    ));
    pod["spec"]["volumes"] = Value::Array(volumes);
    pod
}

/// What an adopted pod, or one that somebody changed, lacks of its identity.
pub(super) fn repair(set: &Value, pod: &Value) -> Option<Value> {
    let ordinal = ordinal_of(set, pod)?.to_string();
    let labels = &pod["metadata"]["labels"];
    let right = labels[POD_NAME] == name(pod) && labels[POD_INDEX] == ordinal.as_str();
    (!right && !is_deleting(pod))
        .then(|| json!({"metadata": {"labels": {POD_NAME: name(pod), POD_INDEX: ordinal}}}))
}

/// The claims of one pod that do not exist.
pub(super) fn create_claims(plan: &mut Plan, set: &Value, ordinal: i64, claims: &[Arc<Value>]) {
    let pod_name = format!("{}-{ordinal}", name(set));
    for template in list(set, "/spec/volumeClaimTemplates") {
        let claim = claim_name(template, &pod_name);
        if claims.iter().any(|it| name(it) == claim) {
            continue;
        }
        let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        for (key, value) in set["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten() {
            labels.insert(key.clone(), value.clone());
        }
        let mut object = json!({
            "metadata": {"name": claim, "labels": labels}, "spec": template["spec"],
        });
        if !template["metadata"]["annotations"].is_null() {
            object["metadata"]["annotations"] = template["metadata"]["annotations"].clone();
        }
        plan.create(&kind("", "PersistentVolumeClaim"), namespace(set), object);
    }
}

/// Whom the claims go with: the retention policy is carried out by owner references, so that the garbage
/// collector does the rest.
pub(super) fn own_claims(
    plan: &mut Plan,
    set: &Value,
    pods: &[Arc<Value>],
    claims: &[Arc<Value>],
    wanted: Range<i64>,
) {
    let policy = &set["spec"]["persistentVolumeClaimRetentionPolicy"];
    let with_set = policy["whenDeleted"] == "Delete";
    let with_pod = policy["whenScaled"] == "Delete";
    for pod in pods {
        let Some(ordinal) = ordinal_of(set, pod) else { continue };
        let condemned = !wanted.contains(&ordinal);
        for template in list(set, "/spec/volumeClaimTemplates") {
            let claim = claim_name(template, name(pod));
            let Some(claim) = claims.iter().find(|it| name(it) == claim && !is_deleting(it)) else {
                continue;
            };
            let owner: Option<&Value> = match condemned && with_pod {
                true => Some(pod),
                false => with_set.then_some(set),
            };
            let mut references: Vec<Value> = list(claim, "/metadata/ownerReferences")
                .iter()
                .filter(|it| it["uid"] != uid(set) && it["uid"] != uid(pod))
                .cloned()
                .collect();
            references.extend(owner.map(|it| {
                json!({"apiVersion": it["apiVersion"], "kind": it["kind"], "name": name(it), "uid": uid(it)})
            }));
            if list(claim, "/metadata/ownerReferences") != references {
                let patch = json!({"metadata": {"uid": uid(claim), "ownerReferences": references}});
                plan.change(&kind("", "PersistentVolumeClaim"), claim, patch);
            }
        }
    }
}
