//! Rollouts on a simulated cluster: whatever the order in which pods get ready, the promises of
//! the strategy hold after every step.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::{int, name, text};
use serde_json::{Value, json};

use crate::action::Action;
use crate::deployment::reconcile;

struct World {
    deployment: Value,
    sets: Vec<Value>,
    /// Pods of each set, by readiness.
    pods: Vec<Vec<bool>>,
    now: Timestamp,
    deleted: Vec<String>,
    made: usize,
}

impl World {
    fn new(replicas: i64, strategy: Value) -> World {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {"replicas": replicas, "strategy": strategy, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
            "status": {}});
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        World { deployment, sets: Vec::new(), pods: Vec::new(), now, deleted: Vec::new(), made: 0 }
    }

    fn set_image(&mut self, image: &str) {
        self.deployment["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
        self.bump();
    }

    fn bump(&mut self) {
        let generation = int(&self.deployment, "/metadata/generation") + 1;
        self.deployment["metadata"]["generation"] = json!(generation);
    }

    /// Lets the deployment controller decide once, and carries it out.
    fn decide(&mut self) {
        let sets: Vec<Arc<Value>> = self.sets.iter().cloned().map(Arc::new).collect();
        let mut pods: Vec<Arc<Value>> = Vec::new();
        for (set, owned) in self.sets.iter().zip(&self.pods) {
            let pod = json!({"metadata": {"ownerReferences": [{"uid": set["metadata"]["uid"], "controller": true}]}, "status": {}});
            pods.extend(std::iter::repeat_n(Arc::new(pod), owned.len()));
        }
        for action in reconcile(&Arc::new(self.deployment.clone()), &sets, &pods, self.now).actions {
            match action {
                Action::Create { mut object, .. } => {
                    self.made += 1;
                    let uid = format!("s{}", self.made);
                    object["metadata"]["uid"] = json!(uid);
                    object["metadata"]["namespace"] = json!("default");
                    object["metadata"]["creationTimestamp"] =
                        json!(format!("2026-01-01T00:00:{:02}Z", self.made));
                    object["status"] = json!({});
                    self.sets.push(object);
                    self.pods.push(Vec::new());
                }
                Action::Change { kind, name: target, patch, .. } if kind.kind == "ReplicaSet" => {
                    let set = self.sets.iter_mut().find(|it| name(it) == target).expect("a known set");
                    *set = kube_patch::merge(set, &patch);
                }
                Action::Change { patch, .. } => self.deployment = kube_patch::merge(&self.deployment, &patch),
                Action::Status { status, .. } => self.deployment["status"] = status,
                Action::Delete { name: target, .. } => {
                    let at = self.sets.iter().position(|it| name(it) == target).expect("a known set");
                    self.deleted
                        .push(text(&self.sets[at], "/spec/template/spec/containers/0/image").to_string());
                    self.sets.remove(at);
                    self.pods.remove(at);
                }
                _ => {}
            }
        }
    }

    /// One set follows its size; a set that shrinks gives up pods that are not ready first.
    fn follow(&mut self, at: usize) {
        let wanted = int(&self.sets[at], "/spec/replicas") as usize;
        let pods = &mut self.pods[at];
        pods.sort_unstable();
        while pods.len() > wanted {
            pods.remove(0);
        }
        while pods.len() < wanted {
            pods.push(false);
        }
    }

    /// A set reports its pods.
    fn report(&mut self, at: usize) {
        let ready = self.pods[at].iter().filter(|it| **it).count();
        self.sets[at]["status"] =
            json!({"replicas": self.pods[at].len(), "readyReplicas": ready, "availableReplicas": ready});
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            self.decide();
            for at in 0..self.sets.len() {
                self.follow(at);
                self.pods[at].iter_mut().for_each(|it| *it = true);
                self.report(at);
            }
        }
    }

    /// Pods that are asked for. There may be more for a moment: those on their way out.
    fn asked(&self) -> i64 {
        self.sets.iter().map(|it| int(it, "/spec/replicas")).sum()
    }

    fn ready(&self) -> usize {
        self.pods.iter().flatten().filter(|it| **it).count()
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let condition = kube_kinds::condition(&self.deployment, kind).expect("the condition is there");
        (text(condition, "/status").to_string(), text(condition, "/reason").to_string())
    }
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

#[test]
fn promises_hold_in_any_order_of_events() {
    for (replicas, surge, unavailable) in
        [(1, 1, 0), (3, 1, 0), (4, 1, 1), (4, 0, 1), (10, 3, 2), (5, 5, 0), (2, 0, 2)]
    {
        for seed in 0..10u64 {
            let mut world = World::new(replicas, rolling(json!(surge), json!(unavailable)));
            world.settle();
            assert_eq!(world.ready(), replicas as usize);
            world.set_image("v2");
            let mut dice = seed;
            let mut below = |limit: usize| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (dice >> 33) as usize % limit
            };
            for step in 0..400 {
                let at = below(world.sets.len());
                match below(4) {
                    0 => world.decide(),
                    1 => world.follow(at),
                    2 => world.report(at),
                    _ => {
                        let pods = world.pods[at].len();
                        if pods > 0 {
                            let pod = below(pods);
                            world.pods[at][pod] = true;
                        }
                    }
                }
                if step == 120 {
                    // A new version in the middle of the rollout.
                    world.set_image("v3");
                }
                assert!(world.asked() <= replicas + surge, "seed {seed}: {} pods", world.asked());
                assert!(
                    world.ready() >= (replicas - unavailable) as usize,
                    "seed {seed}: {} ready",
                    world.ready()
                );
            }
            world.settle();
            assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
            let images: Vec<&str> = world
                .sets
                .iter()
                .filter(|it| int(it, "/spec/replicas") > 0)
                .map(|it| text(it, "/spec/template/spec/containers/0/image"))
                .collect();
            assert_eq!(images, ["v3"]);
        }
    }
}

#[test]
fn a_rollout_that_stands_still_is_reported_after_its_deadline() {
    let mut world = World::new(2, rolling(json!("25%"), json!("25%")));
    world.settle();
    assert_eq!(world.condition("Available").0, "True");
    world.set_image("v2");
    world.decide();
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetCreated");
    for _ in 0..3 {
        world.decide();
        (0..world.sets.len()).for_each(|at| {
            world.follow(at);
            world.report(at);
        });
    }
    assert_eq!(world.condition("Progressing").1, "ReplicaSetUpdated");
    world.now += jiff::SignedDuration::from_secs(601);
    world.decide();
    assert_eq!(world.condition("Progressing"), ("False".into(), "ProgressDeadlineExceeded".into()));
    assert_eq!(world.ready(), 2, "the old version serves");
}

#[test]
fn history_is_kept_to_its_limit_and_going_back_reuses_it() {
    let mut world = World::new(1, rolling(json!(1), json!(0)));
    for image in ["v1", "v2", "v3", "v4", "v5"] {
        world.set_image(image);
        world.settle();
    }
    assert_eq!(world.deleted, ["v1", "v2"]);
    let revision = |world: &World| {
        world.deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"].clone()
    };
    assert_eq!(revision(&world), "5");
    world.set_image("v3");
    world.settle();
    assert_eq!(world.sets.len(), 3, "the set of v3 is used again");
    assert_eq!(revision(&world), "6");
}

#[test]
fn a_paused_deployment_changes_its_size_but_not_its_version() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    world.settle();
    world.deployment["spec"]["paused"] = json!(true);
    world.deployment["spec"]["replicas"] = json!(4);
    world.bump();
    world.settle();
    assert_eq!((world.asked(), world.ready()), (4, 4));
    world.set_image("v2");
    world.settle();
    assert_eq!(world.sets.len(), 1);
    world.deployment["spec"]["paused"] = json!(false);
    world.settle();
    assert_eq!(world.sets.len(), 2);
}

/// The example of the Kubernetes documentation: 10 replicas, at most 3 more, at most 2 fewer; a new
/// version that does not start, and then 5 more.
#[test]
fn a_change_of_size_in_the_middle_of_a_rollout_is_shared() {
    let mut world = World::new(10, rolling(json!(3), json!(2)));
    world.settle();
    world.set_image("broken");
    for _ in 0..5 {
        world.decide();
        (0..world.sets.len()).for_each(|at| {
            world.follow(at);
            world.report(at);
        });
    }
    let sizes =
        |world: &World| -> Vec<i64> { world.sets.iter().map(|it| int(it, "/spec/replicas")).collect() };
    assert_eq!(sizes(&world), [8, 5]);
    world.deployment["spec"]["replicas"] = json!(15);
    world.bump();
    world.decide();
    assert_eq!(sizes(&world), [11, 7]);
}
