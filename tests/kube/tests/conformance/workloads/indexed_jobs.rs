use naru_kube_tests::{Group::C, Scenario, scenario};
use serde_json::json;

use super::jobs::{create, reason, wait_end};
use super::{int, pods, text};

/// The index by its environment, where the failing ones fail.
const ODD_FAIL: &str = "exit $((JOB_COMPLETION_INDEX % 2))";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] Job should create pods for an Indexed job with completion indexes and specified hostname [Conformance]",
            |case| {
                let more = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 4, "backoffLimit": 6});
                // The name of the host and the index agree, or it fails.
                let path = create(case, "job", "[ $(hostname) = job-$JOB_COMPLETION_INDEX ]", more);
                let job = wait_end(case, &path, "Complete");
                assert_eq!(
                    (int(&job, "/status/succeeded"), text(&job, "/status/completedIndexes")),
                    (4, "0-3")
                );
                let mut seen: Vec<String> = Vec::new();
                for pod in pods(case, "job-name=job") {
                    let index = &pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"];
                    assert_eq!(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"], *index);
                    let index = index.as_str().expect("an index").to_string();
                    assert_eq!(text(&pod, "/spec/hostname"), format!("job-{index}"));
                    seen.push(index);
                }
                seen.sort();
                assert_eq!(seen, ["0", "1", "2", "3"]);
            },
        ),
        scenario(
            C,
            "[sig-apps] Job should execute all indexes despite some failing when using backoffLimitPerIndex [Conformance]",
            |case| {
                let more = json!({"completionMode": "Indexed", "parallelism": 4, "completions": 4,
                    "backoffLimitPerIndex": 0});
                let path = create(case, "job", ODD_FAIL, more);
                let job = wait_end(case, &path, "Failed");
                assert_eq!(reason(&job, "Failed"), "FailedIndexes");
                let indexes = (text(&job, "/status/completedIndexes"), text(&job, "/status/failedIndexes"));
                assert_eq!(indexes, ("0,2", "1,3"));
                assert_eq!((int(&job, "/status/succeeded"), int(&job, "/status/failed")), (2, 2));
            },
        ),
        scenario(
            C,
            "[sig-apps] Job should mark indexes as failed when the FailIndex action is matched in podFailurePolicy [Conformance]",
            |case| {
                let policy = json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}}]});
                let more = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2,
                    "backoffLimitPerIndex": 1, "podFailurePolicy": policy});
                let path = create(case, "job", ODD_FAIL, more);
                let job = wait_end(case, &path, "Failed");
                let indexes = (text(&job, "/status/completedIndexes"), text(&job, "/status/failedIndexes"));
                assert_eq!(indexes, ("0", "1"));
                assert_eq!((int(&job, "/status/succeeded"), int(&job, "/status/failed")), (1, 1));
            },
        ),
        scenario(
            C,
            "[sig-apps] Job should terminate job execution when the number of failed indexes exceeds maxFailedIndexes [Conformance]",
            |case| {
                let more = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 10,
                    "backoffLimitPerIndex": 0, "maxFailedIndexes": 1});
                let path = create(case, "job", "exit 1", more);
                let job = wait_end(case, &path, "Failed");
                assert_eq!(reason(&job, "Failed"), "MaxFailedIndexesExceeded");
                assert_eq!(int(&job, "/status/succeeded"), 0);
                assert!(int(&job, "/status/failed") < 10, "it ended early");
            },
        ),
        scenario(
            C,
            "[sig-apps] Job with successPolicy should succeeded when all indexes succeeded [Conformance]",
            |case| {
                let policy = json!({"rules": [{"succeededIndexes": "0"}]});
                let more = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 2, "successPolicy": policy});
                let path = create(case, "job", "exit 0", more);
                let job = wait_end(case, &path, "Complete");
                assert!(["SuccessPolicy", "CompletionsReached"].contains(&reason(&job, "Complete").as_str()));
                assert_eq!(super::condition(&job, "SuccessCriteriaMet"), "True");
            },
        ),
        scenario(
            C,
            "[sig-apps] Job with successPolicy succeededCount rule should succeeded even when some indexes remain pending [Conformance]",
            |case| {
                let policy = json!({"rules": [{"succeededCount": 1}]});
                let more = json!({"completionMode": "Indexed", "parallelism": 2, "completions": 5, "backoffLimit": 0,
                    "successPolicy": policy});
                let path = create(case, "job", "[ $JOB_COMPLETION_INDEX = 0 ] || exec sleep 100000", more);
                let job = wait_end(case, &path, "Complete");
                assert_eq!(reason(&job, "Complete"), "SuccessPolicy");
                assert_eq!(text(&job, "/status/completedIndexes"), "0");
                assert_eq!(int(&job, "/status/active"), 0);
            },
        ),
        scenario(
            C,
            "[sig-apps] Job with successPolicy succeededIndexes rule should succeeded even when some indexes remain pending [Conformance]",
            |case| {
                let policy = json!({"rules": [{"succeededIndexes": "0"}]});
                let more = json!({"completionMode": "Indexed", "parallelism": 3, "completions": 3, "backoffLimit": 0,
                    "successPolicy": policy});
                let path = create(case, "job", "[ $JOB_COMPLETION_INDEX = 0 ] || exec sleep 100000", more);
                let job = wait_end(case, &path, "Complete");
                assert_eq!(reason(&job, "Complete"), "SuccessPolicy");
                assert_eq!(
                    (text(&job, "/status/completedIndexes"), int(&job, "/status/terminating")),
                    ("0", 0)
                );
            },
        ),
    ]
}
