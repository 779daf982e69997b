use naru_kube_tests::{Case, Group::C, Scenario, scenario};
use serde_json::{Value, json};

use super::{condition, int, name, pods, template, text, wait_ready_pods};

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] Job should adopt matching orphans and release non-matching pods [Conformance]",
            |case| {
                let path =
                    create(case, "job", "exec sleep 100000", json!({"parallelism": 2, "completions": 2}));
                let pod = name(&wait_ready_pods(case, "job-name=job", 2)[0]).to_string();
                let at = case.path("v1", &format!("pods/{pod}"));
                let uid = text(&case.get(&path), "/metadata/uid").to_string();
                case.merge(&at, &json!({"metadata": {"ownerReferences": null}}));
                case.wait_for("the pod to be adopted", &at, |it| {
                    it["metadata"]["ownerReferences"][0]["uid"] == uid.as_str()
                });
                let gone = json!({"metadata": {"labels": {"batch.kubernetes.io/controller-uid": null,
                "controller-uid": null, "job-name": null, "batch.kubernetes.io/job-name": null}}});
                case.merge(&at, &gone);
                case.wait_for("the pod to be released", &at, |it| {
                    it["metadata"]["ownerReferences"].is_null()
                });
            },
        ),
        scenario(
            C,
            "[sig-apps] Job should allow to use a pod failure policy to ignore failure matching on DisruptionTarget condition [Conformance]",
            |case| {
                let policy = json!({"rules": [{"action": "Ignore", "onPodConditions":
                    [{"type": "DisruptionTarget", "status": "True"}]}]});
                // Evicted, which is nobody's failure; without the policy one failure would be the end.
                let more = json!({"backoffLimit": 0, "podFailurePolicy": policy});
                let path = create(case, "job", "trap 'exit 1' TERM; sleep 100000 & wait", more);
                let pod = name(&wait_ready_pods(case, "job-name=job", 1)[0]).to_string();
                let eviction =
                    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}});
                case.create(&case.path("v1", &format!("pods/{pod}/eviction")), &eviction);
                let next = case.wait("a successor", || {
                    let pods = pods(case, "job-name=job");
                    pods.into_iter().find(|it| name(it) != pod && super::is_ready(it))
                });
                let job = case.get(&path);
                assert_eq!((int(&job, "/status/failed"), condition(&job, "Failed")), (0, ""));
                assert_ne!(name(&next), pod);
            },
        ),
        scenario(
            C,
            "[sig-apps] Job should allow to use the pod failure policy on exit code to fail the job early [Conformance]",
            |case| {
                let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}]});
                let more = json!({"parallelism": 2, "completions": 4, "backoffLimit": 6, "podFailurePolicy": policy});
                let path = create(case, "job", "exit 1", more);
                let job = wait_end(case, &path, "Failed");
                assert_eq!(reason(&job, "Failed"), "PodFailurePolicy");
            },
        ),
        scenario(C, "[sig-apps] Job should apply changes to a job status [Conformance]", |case| {
            let more = json!({"parallelism": 2, "completions": 4, "backoffLimit": 6});
            let path = create(case, "job", "exec sleep 100000", more);
            wait_ready_pods(case, "job-name=job", 2);
            case.wait_for("both to count", &path, |it| int(it, "/status/ready") == 2);
            let status = format!("{path}/status");
            let custom = json!({"type": "CustomConditionType", "status": "True", "reason": "E2E",
                "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let patch = json!({"metadata": {"annotations": {"patchedstatus": "true"}}, "status": {"conditions": [custom]}});
            let patched = case.merge(&status, &patch);
            assert_eq!(condition(&patched, "CustomConditionType"), "True");
            case.wait("the start time to be replaced", || {
                let mut job = case.get(&status);
                job["status"]["conditions"] = json!([custom]);
                let answer = case.ask("PUT", &status, &job);
                (answer.code == 200).then_some(())
            });
            let job = case.wait_for("the condition to stay", &path, |it| int(it, "/status/active") == 2);
            assert_eq!(condition(&job, "CustomConditionType"), "True");
        }),
        scenario(C, "[sig-apps] Job should delete a job [Conformance]", |case| {
            let path = create(case, "job", "exec sleep 100000", json!({"parallelism": 2, "completions": 4}));
            wait_ready_pods(case, "job-name=job", 2);
            let options = json!({"propagationPolicy": "Foreground"});
            let answer = case.ask("DELETE", &path, &options);
            assert!(matches!(answer.code, 200 | 202), "{}", answer.text);
            case.wait_gone(&path);
            assert!(case.list(&case.path("v1", "pods?labelSelector=job-name%3Djob")).is_empty());
        }),
        scenario(C, "[sig-apps] Job should manage the lifecycle of a job [Conformance]", |case| {
            let more = json!({"parallelism": 1, "completions": 1, "backoffLimit": 6, "suspend": true});
            let path = create(case, "job", "exit 0", more);
            case.wait_for("it to be suspended", &path, |it| condition(it, "Suspended") == "True");
            assert!(pods(case, "job-name=job").is_empty());
            case.merge(&path, &json!({"metadata": {"labels": {"stage": "patched"}}}));
            case.wait("the update", || {
                let mut job = case.get(&path);
                job["spec"]["suspend"] = json!(false);
                job["metadata"]["annotations"] = json!({"updated": "true"});
                (case.ask("PUT", &path, &job).code == 200).then_some(())
            });
            let job = wait_end(case, &path, "Complete");
            assert_eq!((int(&job, "/status/succeeded"), condition(&job, "Suspended")), (1, "False"));
            assert!(job["status"]["completionTime"].is_string() && job["status"]["startTime"].is_string());
            let found = case.list("/apis/batch/v1/jobs?labelSelector=stage%3Dpatched");
            assert!(found.iter().any(|it| it["metadata"]["namespace"] == case.namespace.as_str()));
            let all = case.path("batch/v1", "jobs?labelSelector=stage%3Dpatched");
            case.expect("DELETE", &all, &json!({"propagationPolicy": "Background"}), 200);
            case.wait_gone(&path);
        }),
        scenario(
            C,
            "[sig-apps] Job should run a job to completion when tasks sometimes fail and are locally restarted [Conformance]",
            |case| {
                // Each pod fails once and is restarted by the node; what it left behind makes it succeed.
                let script = "if [ -e /data/mark ]; then exit 0; else touch /data/mark; exit 1; fi";
                let mut template = template(case, json!({}), script);
                template["spec"]["restartPolicy"] = json!("OnFailure");
                template["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
                template["spec"]["containers"][0]["volumeMounts"] =
                    json!([{"name": "data", "mountPath": "/data"}]);
                let more =
                    json!({"parallelism": 2, "completions": 4, "backoffLimit": 6, "template": template});
                let path = create(case, "job", "", more);
                let job = wait_end(case, &path, "Complete");
                assert_eq!(int(&job, "/status/succeeded"), 4);
                for pod in case.list(&case.path("v1", "pods?labelSelector=job-name%3Djob")) {
                    assert_eq!(int(&pod, "/status/containerStatuses/0/restartCount"), 1, "{}", name(&pod));
                }
            },
        ),
    ]
}

/// Creates a Job whose pods run a script once, and returns its path.
pub(super) fn create(case: &Case, job: &str, script: &str, more: Value) -> String {
    let mut template = template(case, json!({}), script);
    template["spec"]["restartPolicy"] = json!("Never");
    let mut spec = json!({"template": template});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    case.create(&case.path("batch/v1", "jobs"), &json!({"metadata": {"name": job}, "spec": spec}));
    case.path("batch/v1", &format!("jobs/{job}"))
}

pub(super) fn wait_end(case: &Case, path: &str, end: &str) -> Value {
    case.wait_for(&format!("the job to be {end}"), path, |it| condition(it, end) == "True")
}

pub(super) fn reason(job: &Value, end: &str) -> String {
    let conditions = job["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .filter(|it| it["type"] == end)
        .map(|it| text(it, "/reason").to_string())
        .next()
        .unwrap_or_default()
}
