use naru_kube_tests::{Case, Group::C, Scenario, scenario};
use serde_json::{Value, json};

use super::{name, template, text};

/// Every second; shorter than any minute, so that a test need not wait for the next one.
const EVERY_SECOND: &str = "@every 1s";

pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            C,
            "[sig-apps] CronJob should not schedule jobs when suspended [Slow] [Conformance]",
            |case| {
                let path = create(case, "suspended", EVERY_SECOND, json!({"suspend": true}));
                // Another one on the same schedule shows that the time has come more than once.
                create(case, "witness", EVERY_SECOND, json!({}));
                case.wait("the witness", || (jobs_of(case, "witness").len() > 1).then_some(()));
                assert!(jobs_of(case, "suspended").is_empty());
                assert_eq!(case.get(&path)["status"]["active"], Value::Null);
            },
        ),
        scenario(
            C,
            "[sig-apps] CronJob should not schedule new jobs when ForbidConcurrent [Slow] [Conformance]",
            |case| {
                let path = create(case, "cron", EVERY_SECOND, json!({"concurrencyPolicy": "Forbid"}));
                case.wait_for("a job", &path, |it| active(it) == 1);
                let refused = case.path("v1", "events?fieldSelector=reason%3DJobAlreadyActive");
                case.wait("a time that was passed over", || (!case.list(&refused).is_empty()).then_some(()));
                assert_eq!((jobs_of(case, "cron").len(), active(&case.get(&path))), (1, 1));
            },
        ),
        scenario(C, "[sig-apps] CronJob should replace jobs when ReplaceConcurrent [Conformance]", |case| {
            let path = create(case, "cron", EVERY_SECOND, json!({"concurrencyPolicy": "Replace"}));
            let first = case.wait_for("a job", &path, |it| active(it) == 1);
            let first = text(&first, "/status/active/0/name").to_string();
            case.wait_gone(&case.path("batch/v1", &format!("jobs/{first}")));
            case.wait_for("another one", &path, |it| {
                active(it) == 1 && text(it, "/status/active/0/name") != first
            });
            case.merge(&path, &json!({"spec": {"suspend": true}}));
        }),
        scenario(C, "[sig-apps] CronJob should schedule multiple jobs concurrently [Conformance]", |case| {
            let path = create(case, "cron", EVERY_SECOND, json!({"concurrencyPolicy": "Allow"}));
            case.wait_for("two jobs at once", &path, |it| active(it) >= 2);
            case.merge(&path, &json!({"spec": {"suspend": true}}));
            let running =
                jobs_of(case, "cron").into_iter().filter(|it| it["status"]["completionTime"].is_null());
            assert!(running.count() >= 2);
        }),
        scenario(C, "[sig-apps] CronJob should support CronJob API operations [Conformance]", |case| {
            let all = case.path("batch/v1", "cronjobs");
            let groups = case.get("/apis");
            assert!(
                groups["groups"].as_array().is_some_and(|all| all.iter().any(|it| it["name"] == "batch"))
            );
            let served = case.get("/apis/batch/v1")["resources"].take();
            assert!(
                served.as_array().is_some_and(|all| all.iter().any(|it| it["name"] == "cronjobs/status"))
            );
            let mut watch = case.watch(&all);
            let patience = std::time::Duration::from_secs(60);
            for cron in ["one", "two", "three"] {
                create(case, cron, "0 0 1 1 *", json!({}));
                assert_eq!(name(&watch.until("ADDED", patience)["object"]), cron);
            }
            let path = case.path("batch/v1", "cronjobs/one");
            assert_eq!(case.list(&all).len(), 3);
            let everywhere = case.list("/apis/batch/v1/cronjobs");
            assert!(
                everywhere.iter().filter(|it| it["metadata"]["namespace"] == case.namespace.as_str()).count()
                    == 3
            );
            assert_eq!(
                case.merge(&path, &json!({"metadata": {"annotations": {"patched": "true"}}}))["metadata"]["annotations"]
                    ["patched"],
                "true"
            );
            case.wait("the update", || {
                let mut cron = case.get(&path);
                cron["metadata"]["annotations"]["updated"] = json!("true");
                (case.ask("PUT", &path, &cron).code == 200).then_some(())
            });
            let modified = watch.until("MODIFIED", patience);
            assert_eq!(name(&modified["object"]), "one");
            let status = format!("{path}/status");
            let at = "2026-01-01T00:00:00Z";
            assert_eq!(
                case.merge(&status, &json!({"status": {"lastScheduleTime": at}}))["status"]["lastScheduleTime"],
                at
            );
            case.delete(&path);
            case.wait_gone(&path);
            case.expect("DELETE", &all, &Value::Null, 200);
            case.wait("all to go", || case.list(&all).is_empty().then_some(()));
        }),
    ]
}

fn create(case: &Case, cron: &str, schedule: &str, more: Value) -> String {
    let mut template = template(case, json!({"cron": cron}), "exec sleep 100000");
    template["spec"]["restartPolicy"] = json!("Never");
    let mut spec = json!({"schedule": schedule, "jobTemplate": {"spec": {"template": template}}});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    case.create(&case.path("batch/v1", "cronjobs"), &json!({"metadata": {"name": cron}, "spec": spec}));
    case.path("batch/v1", &format!("cronjobs/{cron}"))
}

fn jobs_of(case: &Case, cron: &str) -> Vec<Value> {
    let mut jobs = case.list(&case.path("batch/v1", "jobs"));
    jobs.retain(|it| {
        text(it, "/metadata/ownerReferences/0/name") == cron && it["metadata"]["deletionTimestamp"].is_null()
    });
    jobs
}

fn active(cron: &Value) -> i64 {
    cron["status"]["active"].as_array().map_or(0, |it| it.len() as i64)
}
