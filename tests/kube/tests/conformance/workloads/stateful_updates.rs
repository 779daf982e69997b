use naru_kube_tests::{Case, Group::C, Scenario, scenario};
use serde_json::{Value, json};

use super::stateful_sets::create;
use super::{name, pods, text, wait_ready_pods};

const REVISION: &str = "controller-revision-hash";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should perform canary updates and phased rolling updates of template modifications [Conformance]",
            |case| {
                let partition =
                    |at: i64| json!({"type": "RollingUpdate", "rollingUpdate": {"partition": at}});
                let path = create(case, 3, json!({"updateStrategy": partition(3)}));
                wait_ready_pods(case, "app=ss", 3);
                let old = text(&case.get(&path), "/status/currentRevision").to_string();
                set_version(case, &path, "2");
                let new = wait_update_revision(case, &path, &old);
                assert_eq!(revisions(case), [old.as_str(); 3], "above the partition nothing moves");
                case.merge(&path, &json!({"spec": {"updateStrategy": partition(2)}}));
                wait_revisions(case, [&old, &old, &new]);
                // A canary that is lost comes back as it was, and so does one of the others.
                for pod in ["ss-2", "ss-0"] {
                    replace_pod(case, pod);
                    wait_revisions(case, [&old, &old, &new]);
                }
                case.merge(&path, &json!({"spec": {"updateStrategy": partition(1)}}));
                wait_revisions(case, [&old, &new, &new]);
                case.merge(&path, &json!({"spec": {"updateStrategy": partition(0)}}));
                wait_revisions(case, [&new, &new, &new]);
                case.wait_for("the update to be complete", &path, |it| {
                    it["status"]["currentRevision"] == new.as_str()
                });
            },
        ),
        scenario(
            C,
            "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should perform rolling updates and roll backs of template modifications [Conformance]",
            |case| {
                let path = create(case, 3, json!({}));
                wait_ready_pods(case, "app=ss", 3);
                let old = text(&case.get(&path), "/status/currentRevision").to_string();
                let mut watch = case.watch(&case.path("v1", "pods?labelSelector=app%3Dss"));
                set_version(case, &path, "2");
                let new = wait_update_revision(case, &path, &old);
                wait_revisions(case, [&new, &new, &new]);
                let patience = std::time::Duration::from_secs(60);
                let order: Vec<String> =
                    (0..3).map(|_| name(&watch.until("DELETED", patience)["object"]).to_string()).collect();
                assert_eq!(order, ["ss-2", "ss-1", "ss-0"]);
                case.wait_for("the update to be complete", &path, |it| {
                    it["status"]["currentRevision"] == new.as_str()
                });
                let version = "/spec/template/metadata/annotations";
                case.patch("json-patch", &path, &json!([{"op": "remove", "path": version}]));
                wait_revisions(case, [&old, &old, &old]);
                case.wait_for("the way back to be complete", &path, |it| {
                    it["status"]["currentRevision"] == old.as_str()
                        && it["status"]["updateRevision"] == old.as_str()
                });
            },
        ),
    ]
}

fn set_version(case: &Case, path: &str, version: &str) {
    case.merge(path, &json!({"spec": {"template": {"metadata": {"annotations": {"version": version}}}}}));
}

fn wait_update_revision(case: &Case, path: &str, old: &str) -> String {
    let set = case.wait_for("a new revision", path, |it| {
        it["status"]["updateRevision"] != old
            && it["status"]["observedGeneration"] == it["metadata"]["generation"]
    });
    text(&set, "/status/updateRevision").to_string()
}

fn revisions(case: &Case) -> Vec<String> {
    let label = |it: &Value| it["metadata"]["labels"][REVISION].as_str().unwrap_or("").to_string();
    pods(case, "app=ss").iter().map(label).collect()
}

fn wait_revisions(case: &Case, expected: [&str; 3]) {
    case.wait(&format!("the revisions {expected:?}"), || {
        let ready = pods(case, "app=ss").iter().all(super::is_ready);
        (ready && revisions(case) == expected).then_some(())
    });
}

fn replace_pod(case: &Case, pod: &str) {
    let path = case.path("v1", &format!("pods/{pod}"));
    let uid = text(&case.get(&path), "/metadata/uid").to_string();
    case.delete(&path);
    case.wait_for("its successor", &path, |it| text(it, "/metadata/uid") != uid);
}
