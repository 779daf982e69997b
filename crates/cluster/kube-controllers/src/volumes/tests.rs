//! Claims and volumes, step by step.

use std::path::Path;

use super::*;
use crate::action::Action;

fn claim(class: &str) -> Value {
    json!({"metadata": {"name": "data", "namespace": "default", "uid": "c1", "annotations": {}},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}, "status": {"phase": "Pending"}})
}

fn volume(name: &str, size: &str) -> Arc<Value> {
    Arc::new(
        json!({"metadata": {"name": name, "resourceVersion": "1"}, "spec": {"storageClassName": "manual",
        "accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": size}}}),
    )
}

fn known(volumes: Vec<Arc<Value>>) -> claim::Known<'static> {
    claim::Known {
        volumes,
        class: None,
        node: None,
        nodes: vec![],
        users: vec![],
        directory: Some(Path::new("/data")),
    }
}

fn plan(claim: &Value, known: &claim::Known<'_>) -> Plan {
    claim::reconcile(&Arc::new(claim.clone()), known, "2026-01-01T00:00:00Z".parse().expect("a time"))
}

fn words(plan: &Plan) -> Vec<String> {
    let words = plan.actions.iter().map(|it| match it {
        Action::Create { object, .. } => format!("create {}", name(object)),
        Action::Change { name, .. } => format!("change {name}"),
        Action::Status { status, .. } => format!("status {}", text(status, "/phase")),
        Action::Event { reason, .. } => reason.to_string(),
        Action::Delete { name, .. } => format!("delete {name}"),
        Action::MakeDirectory { path } | Action::RemoveDirectory { path } => path.display().to_string(),
        other => format!("{other:?}"),
    });
    words.collect()
}

#[test]
fn the_smallest_volume_that_will_do_is_taken() {
    let volumes = vec![volume("small", "512Mi"), volume("large", "5Gi"), volume("right", "2Gi")];
    let plan = plan(&claim("manual"), &known(volumes));
    assert_eq!(words(&plan), ["change right", "change data", "status Bound"]);
}

#[test]
fn a_directory_is_made_when_a_pod_has_its_node() {
    let claim = claim(CLASS);
    let mut known = known(vec![]);
    known.class = Some(Arc::new(default_class()));
    assert_eq!(words(&plan(&claim, &known)), ["WaitForFirstConsumer"]);
    known.node = Some(Arc::new(json!({"metadata": {"name": "n1"}})));
    let made = plan(&claim, &known);
    assert_eq!(words(&made), ["/data/pvc-c1", "create pvc-c1", "ProvisioningSucceeded"]);
    let Some(Action::Create { object, .. }) = made.actions.into_iter().nth(1) else { panic!("a volume") };
    known.volumes = vec![Arc::new(object)];
    assert_eq!(words(&plan(&claim, &known)), ["change data", "status Bound"]);
}

#[test]
fn a_volume_without_its_claim_goes_with_its_directory() {
    let mut own = (*volume("pvc-c1", "1Gi")).clone();
    own["metadata"]["annotations"] = json!({PROVISIONED_BY: PROVISIONER});
    own["metadata"]["finalizers"] = json!([VOLUME_PROTECTION]);
    own["spec"]["claimRef"] = json!({"namespace": "default", "name": "data", "uid": "c1"});
    own["spec"]["persistentVolumeReclaimPolicy"] = json!("Delete");
    own["spec"]["local"] = json!({"path": "/data/pvc-c1"});
    let directory = Some(Path::new("/data"));
    let step = |volume: &Value| words(&volume::reconcile(&Arc::new(volume.clone()), None, directory));
    assert_eq!(step(&own), ["status Released", "delete pvc-c1"]);
    let mut kept = own.clone();
    kept["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
    assert_eq!(step(&kept), ["status Released"]);
    own["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(step(&own), ["/data/pvc-c1", "change pvc-c1"]);
    own["spec"]["local"] = json!({"path": "/etc"});
    assert_eq!(step(&own), ["change pvc-c1"], "only what was made for it is removed");
}

#[test]
fn a_claim_in_use_stays() {
    let mut claim = claim("manual");
    claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    claim["metadata"]["finalizers"] = json!([CLAIM_PROTECTION]);
    let mut known = known(vec![]);
    let user = json!({"metadata": {"name": "p"}, "spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}});
    known.users = vec![Arc::new(user)];
    assert!(words(&plan(&claim, &known)).is_empty());
    known.users.clear();
    assert_eq!(words(&plan(&claim, &known)), ["change data"]);
}
