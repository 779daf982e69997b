//! StatefulSets on a simulated cluster.

use super::*;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

struct World {
    set: Value,
    pods: Vec<Value>,
    claims: Vec<Value>,
    revisions: Vec<Value>,
    made: usize,
}

impl World {
    fn new(spec: Value) -> World {
        let mut set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "db", "namespace": "default", "uid": "set", "generation": 1},
            "spec": {"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
            "status": {}});
        set["spec"] = kube_patch::merge(&set["spec"], &spec);
        World { set, pods: vec![], claims: vec![], revisions: vec![], made: 0 }
    }

    /// One decision, carried out; answers with what happened to pods.
    fn decide(&mut self) -> Vec<String> {
        let arc = |all: &[Value]| -> Vec<Arc<Value>> { all.iter().cloned().map(Arc::new).collect() };
        let set = Arc::new(self.set.clone());
        let plan = reconcile(&set, &arc(&self.pods), &arc(&self.claims), &arc(&self.revisions), now());
        let mut told = Vec::new();
        for action in plan.actions {
            match action {
                Action::Create { kind, mut object, .. } => {
                    self.made += 1;
                    object["metadata"]["uid"] = json!(format!("u{}", self.made));
                    object["metadata"]["namespace"] = json!("default");
                    match kind.kind.as_str() {
                        "Pod" => {
                            told.push(format!("create {}", name(&object)));
                            object["status"] = json!({"phase": "Pending"});
                            self.pods.push(object);
                        }
                        "PersistentVolumeClaim" => self.claims.push(object),
                        _ => self.revisions.push(object),
                    }
                }
                Action::Delete { kind, name: target, .. } if kind.kind == "Pod" => {
                    told.push(format!("delete {target}"));
                    self.pods.retain(|it| name(it) != target);
                }
                Action::Delete { name: target, .. } => self.revisions.retain(|it| name(it) != target),
                Action::Status { status, .. } => self.set["status"] = status,
                Action::Change { name: target, patch, kind, .. } => {
                    let all = match kind.kind.as_str() {
                        "Pod" => &mut self.pods,
                        "PersistentVolumeClaim" => &mut self.claims,
                        _ => &mut self.revisions,
                    };
                    let it = all.iter_mut().find(|it| name(it) == target).expect("known");
                    *it = kube_patch::merge(it, &patch);
                }
                _ => {}
            }
        }
        told
    }

    fn ready(&mut self, pod: &str) {
        let pod = self.pods.iter_mut().find(|it| name(it) == pod).expect("known");
        pod["status"] = json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    }

    fn all_ready(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..20 {
            told.extend(self.decide());
            let names: Vec<String> = self.pods.iter().map(|it| name(it).to_string()).collect();
            names.iter().for_each(|it| self.ready(it));
        }
        told
    }

    fn images(&self) -> Vec<(&str, &str)> {
        let mut all: Vec<_> =
            self.pods.iter().map(|it| (name(it), text(it, "/spec/containers/0/image"))).collect();
        all.sort_unstable();
        all
    }

    fn set_image(&mut self, image: &str) {
        self.set["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    }
}

#[test]
fn pods_come_one_after_the_other_and_go_backwards() {
    let mut world = World::new(json!({}));
    assert_eq!(world.decide(), ["create db-0"]);
    assert_eq!(world.decide(), [""; 0], "it waits for db-0");
    world.ready("db-0");
    assert_eq!(world.decide(), ["create db-1"]);
    world.all_ready();
    assert_eq!(int(&world.set, "/status/readyReplicas"), 3);
    world.set["spec"]["replicas"] = json!(1);
    assert_eq!(world.all_ready(), ["delete db-2", "delete db-1"]);
    let labels = &world.pods[0]["metadata"]["labels"];
    assert_eq!(
        (&labels["statefulset.kubernetes.io/pod-name"], &labels["apps.kubernetes.io/pod-index"]),
        (&json!("db-0"), &json!("0"))
    );
    assert_eq!(world.pods[0]["spec"]["subdomain"], "db");
}

#[test]
fn parallel_sets_do_not_wait() {
    let mut world = World::new(json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}}));
    assert_eq!(world.decide(), ["create db-5", "create db-6", "create db-7"]);
}

#[test]
fn an_update_stops_at_the_partition_and_goes_back_by_its_history() {
    let mut world = World::new(json!({"updateStrategy": {"rollingUpdate": {"partition": 1}}}));
    world.all_ready();
    world.set_image("v2");
    assert_eq!(world.all_ready(), ["delete db-2", "create db-2", "delete db-1", "create db-1"]);
    assert_eq!(world.images(), [("db-0", "v1"), ("db-1", "v2"), ("db-2", "v2")]);
    assert_ne!(world.set["status"]["currentRevision"], world.set["status"]["updateRevision"]);
    world.pods.retain(|it| name(it) != "db-0");
    world.all_ready();
    assert_eq!(world.images()[0], ("db-0", "v1"), "below the partition the old revision is kept");
    world.set["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(0);
    world.all_ready();
    assert_eq!(world.set["status"]["currentRevision"], world.set["status"]["updateRevision"]);
    world.set_image("v1");
    world.all_ready();
    let numbers: Vec<i64> = world.revisions.iter().map(|it| int(it, "/revision")).collect();
    assert_eq!(numbers, [3, 2], "the first revision is the newest again");
}

#[test]
fn on_delete_waits_for_people() {
    let mut world = World::new(json!({"updateStrategy": {"type": "OnDelete"}}));
    world.all_ready();
    world.set_image("v2");
    assert_eq!(world.all_ready(), [""; 0]);
    world.pods.retain(|it| name(it) != "db-1");
    world.all_ready();
    assert_eq!(world.images(), [("db-0", "v1"), ("db-1", "v2"), ("db-2", "v1")]);
}

#[test]
fn each_pod_has_its_claims_and_they_go_as_the_policy_says() {
    let mut world = World::new(json!({"replicas": 2,
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Delete"}}));
    world.all_ready();
    let claims: Vec<&str> = world.claims.iter().map(name).collect();
    assert_eq!(claims, ["data-db-0", "data-db-1"]);
    assert_eq!(world.pods[1]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-db-1");
    assert!(world.claims.iter().all(|it| list_of_owners(it).is_empty()));
    let uid = text(&world.pods[1], "/metadata/uid").to_string();
    world.set["spec"]["replicas"] = json!(1);
    world.decide();
    assert_eq!(list_of_owners(&world.claims[1]), [uid]);
    assert!(list_of_owners(&world.claims[0]).is_empty());
}

fn list_of_owners(object: &Value) -> Vec<String> {
    let owners = kube_kinds::list(object, "/metadata/ownerReferences").iter();
    owners.map(|it| text(it, "/uid").to_string()).collect()
}
