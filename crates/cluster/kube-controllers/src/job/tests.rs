//! Jobs on a simulated cluster: pods end as the test says, everything else is the controller's.

use super::*;
use kube_kinds::{int, is_deleting};

struct World {
    job: Value,
    pods: Vec<Value>,
    now: Timestamp,
    made: usize,
}

impl World {
    fn new(spec: Value) -> World {
        let mut job = json!({"metadata": {"name": "j", "namespace": "default", "uid": "job"},
            "spec": {"parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}}, "status": {}});
        job["spec"] = kube_patch::merge(&job["spec"], &spec);
        World { job, pods: vec![], now: "2026-01-01T01:00:00Z".parse().expect("a time"), made: 0 }
    }

    fn decide(&mut self) {
        let pods: Vec<Arc<Value>> = self.pods.iter().cloned().map(Arc::new).collect();
        let job = Arc::new(self.job.clone());
        if is_ended(&job) {
            return;
        }
        for action in reconcile(&job, &pods, self.now).actions {
            match action {
                Action::Create { mut object, .. } => {
                    self.made += 1;
                    let pod = format!("p{}", self.made);
                    object["metadata"]["name"] = json!(pod);
                    object["metadata"]["uid"] = json!(pod);
                    object["status"] = json!({"phase": "Running"});
                    self.pods.push(object);
                }
                Action::Delete { name: target, .. } => {
                    let pod = self.pod(&target);
                    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T01:00:00Z");
                }
                Action::Change { name: target, patch, .. } => {
                    let pod = self.pod(&target);
                    *pod = kube_patch::merge(pod, &patch);
                }
                Action::Status { status, .. } => self.job["status"] = status,
                _ => {}
            }
        }
        self.pods.retain(|it| !is_deleting(it) || is_tracked(it));
    }

    fn settle(&mut self) {
        (0..6).for_each(|_| self.decide());
    }

    fn pod(&mut self, pod: &str) -> &mut Value {
        self.pods.iter_mut().find(|it| name(it) == pod).expect("known")
    }

    /// A pod ends with that exit code.
    fn exit(&mut self, pod: &str, code: i64) {
        let at = time::format(self.now);
        let pod = self.pod(pod);
        pod["status"] = json!({"phase": if code == 0 { "Succeeded" } else { "Failed" },
            "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": code, "finishedAt": at}}}]});
    }

    fn wait(&mut self, seconds: i64) {
        self.now += jiff::SignedDuration::from_secs(seconds);
        self.settle();
    }

    fn running(&self) -> Vec<&str> {
        let running =
            self.pods.iter().filter(|it| text(it, "/status/phase") == "Running" && !is_deleting(it));
        running.map(name).collect()
    }

    /// `Complete` or `Failed` with its reason.
    fn end(&self) -> Option<(&str, &str)> {
        let conditions = list(&self.job, "/status/conditions").iter();
        conditions
            .filter(|it| ["Complete", "Failed"].contains(&text(it, "/type")))
            .map(|it| (text(it, "/type"), text(it, "/reason")))
            .next()
    }

    fn count(&self, field: &str) -> i64 {
        int(&self.job, &format!("/status/{field}"))
    }
}

#[test]
fn a_job_runs_until_it_has_its_completions_and_counts_each_pod_once() {
    let mut world = World::new(json!({"parallelism": 2, "completions": 3}));
    world.settle();
    assert_eq!(world.running(), ["p1", "p2"]);
    world.exit("p1", 0);
    world.exit("p2", 0);
    world.settle();
    assert_eq!((world.running(), world.count("succeeded")), (vec!["p3"], 2));
    assert!(!is_tracked(world.pod("p1")), "a pod that is counted may go");
    world.pods.retain(|it| name(it) == "p3");
    world.exit("p3", 0);
    world.settle();
    assert_eq!((world.end(), world.count("succeeded")), (Some(("Complete", "CompletionsReached")), 3));
    assert!(world.job["status"]["completionTime"].is_string());
}

#[test]
fn a_pod_that_ends_while_nobody_looks_is_counted_after_a_crash() {
    let mut world = World::new(json!({"completions": 2}));
    world.settle();
    world.exit("p1", 0);
    // Noted and let go, but then the process dies before the count.
    world.decide();
    assert_eq!(world.job["status"]["uncountedTerminatedPods"]["succeeded"], json!(["p1"]));
    world.pods.retain(|it| name(it) != "p1");
    world.settle();
    assert_eq!(world.count("succeeded"), 1);
}

#[test]
fn failures_are_retried_with_a_pause_and_not_for_ever() {
    let mut world = World::new(json!({"completions": 1, "backoffLimit": 1}));
    world.settle();
    world.exit("p1", 1);
    world.wait(5);
    assert_eq!((world.running().len(), world.count("failed")), (0, 1));
    world.wait(5);
    assert_eq!(world.running(), ["p2"]);
    world.exit("p2", 1);
    world.settle();
    assert_eq!(world.end(), Some(("Failed", "BackoffLimitExceeded")));
}

#[test]
fn a_deadline_ends_the_job_and_its_pods() {
    let mut world = World::new(json!({"completions": 1, "activeDeadlineSeconds": 60}));
    world.settle();
    world.wait(60);
    assert_eq!((world.end(), world.running().len()), (Some(("Failed", "DeadlineExceeded")), 0));
}

#[test]
fn a_suspended_job_has_no_pods_and_starts_anew() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2}));
    world.settle();
    world.job["spec"]["suspend"] = json!(true);
    world.settle();
    assert_eq!((world.running().len(), world.count("failed")), (0, 0));
    assert!(condition_is_true(&world.job, "Suspended") && world.job["status"]["startTime"].is_null());
    world.job["spec"]["suspend"] = json!(false);
    world.settle();
    assert_eq!(world.running().len(), 2);
    assert!(!condition_is_true(&world.job, "Suspended"));
}

#[test]
fn indexes_are_each_done_once() {
    let mut world = World::new(json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"}));
    world.settle();
    let pod = world.pod("p2").clone();
    assert_eq!(pod["metadata"]["generateName"], "j-1-");
    assert_eq!(pod["spec"]["hostname"], "j-1");
    assert_eq!(pod["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    world.exit("p2", 0);
    world.settle();
    assert_eq!(world.job["status"]["completedIndexes"], "1");
    world.exit("p1", 3);
    world.wait(10);
    let indexes: Vec<&str> = world
        .pods
        .iter()
        .filter(|it| text(it, "/status/phase") == "Running")
        .map(|it| text(it, "/metadata/generateName"))
        .collect();
    assert_eq!(indexes, ["j-2-", "j-0-"]);
    for pod in ["p3", "p4"] {
        world.exit(pod, 0);
    }
    world.settle();
    assert_eq!((world.end(), world.count("succeeded")), (Some(("Complete", "CompletionsReached")), 3));
    assert_eq!(world.job["status"]["completedIndexes"], "0-2");
}

#[test]
fn an_index_fails_alone() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed",
        "backoffLimit": 1_000_000, "backoffLimitPerIndex": 1}));
    world.settle();
    world.exit("p1", 1);
    world.exit("p2", 0);
    world.wait(10);
    assert_eq!(world.running(), ["p3"]);
    world.exit("p3", 1);
    world.settle();
    assert_eq!(world.job["status"]["failedIndexes"], "0");
    assert_eq!(world.end(), Some(("Failed", "FailedIndexes")));
}

#[test]
fn rules_say_what_a_failure_means() {
    let policy = json!({"rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
    let mut world = World::new(json!({"completions": 1, "podFailurePolicy": policy}));
    world.settle();
    world.exit("p1", 1);
    world.pod("p1")["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True"}]);
    world.settle();
    assert_eq!((world.running(), world.count("failed")), (vec!["p2"], 0));
    world.exit("p2", 42);
    world.settle();
    assert_eq!(world.end(), Some(("Failed", "PodFailurePolicy")));
    let failed = kube_kinds::condition(&world.job, "Failed").expect("failed");
    let why = "Container c for pod /p2 failed with exit code 42 matching FailJob rule at index 1";
    assert_eq!(failed["message"], why);
}

#[test]
fn a_success_policy_ends_the_rest() {
    let policy = json!({"rules": [{"succeededIndexes": "0"}]});
    let mut world = World::new(
        json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "successPolicy": policy}),
    );
    world.settle();
    world.exit("p1", 0);
    world.settle();
    assert_eq!((world.end(), world.running().len()), (Some(("Complete", "SuccessPolicy")), 0));
    assert_eq!(world.count("failed"), 0);
}
