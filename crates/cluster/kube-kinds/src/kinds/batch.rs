//! CronJob. (Job is in the main table.)

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, created, figure, images, or_none, selector, wide, words};
use crate::defaults::{set, set_initial_status, spec_of, template};
use crate::table::Scope::Namespaced;
use crate::table::row;
use crate::validation::{self, Causes};
use crate::{Cause, Kind, list, text, time};

pub(super) fn rows() -> Vec<Kind> {
    vec![Kind {
        default: cron_job_defaults,
        validate: cron_job_rules,
        columns: CRON_JOB,
        has_status: true,
        has_generation: true,
        categories: vec!["all".into()],
        ..row("batch", "v1", "CronJob", "cronjobs", Namespaced, &["cj"])
    }]
}

fn cron_job_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", false);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "failedJobsHistoryLimit", 1);
    let job = spec.get_mut("jobTemplate").and_then(|it| it.get_mut("spec")).and_then(Value::as_object_mut);
    if let Some(job) = job {
        template(job, "Never");
    }
    set_initial_status(object, json!({}));
}

fn cron_job_rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    let schedule = text(spec, "/schedule");
    if schedule.is_empty() {
        causes.push(Cause::required("spec.schedule", ""));
    }
    if schedule.contains("TZ") {
        causes.push(Cause::invalid(
            "spec.schedule",
            &spec["schedule"],
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ));
    }
    let policies = ["Allow", "Forbid", "Replace"];
    if !policies.iter().any(|it| spec["concurrencyPolicy"] == *it) {
        causes.push(Cause::unsupported("spec.concurrencyPolicy", &spec["concurrencyPolicy"], &policies));
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        validation::not_negative(object, &format!("/spec/{field}"), causes);
    }
    let pod = &spec["jobTemplate"]["spec"]["template"]["spec"];
    let at = "spec.jobTemplate.spec.template.spec";
    validation::pod_spec(pod, at, causes);
    let policy = &pod["restartPolicy"];
    if policy != "Never" && policy != "OnFailure" {
        causes.push(Cause::unsupported(&format!("{at}.restartPolicy"), policy, &["OnFailure", "Never"]));
    }
}

const CRON_JOB: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Schedule"),
        words("Timezone"),
        words("Suspend"),
        figure("Active"),
        words("Last Schedule"),
        AGE,
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    |it, now| {
        let job = &it["spec"]["jobTemplate"]["spec"];
        let (containers, images) = images(&job["template"]);
        let last = &it["status"]["lastScheduleTime"];
        let suspended = if it["spec"]["suspend"] == true { "True" } else { "False" };
        vec![
            json!(crate::name(it)),
            json!(text(it, "/spec/schedule")),
            or_none(text(it, "/spec/timeZone")),
            json!(suspended),
            json!(list(it, "/status/active").len()),
            or_none(&if last.is_null() { String::new() } else { time::age(last, now) }),
            created(it, now),
            containers,
            images,
            selector(&job["selector"]),
        ]
    },
);
