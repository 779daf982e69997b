//! What the failure of a pod means for its Job, and when a Job has succeeded early.

use kube_kinds::{list, name, namespace, text};
use serde_json::Value;

use super::indexes::{self, Indexes};

#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// One more failure against the limit.
    Count,
    /// Not the job's fault.
    Ignore,
    FailIndex,
    /// The job has failed; why.
    FailJob(String),
}

/// The first rule of `spec.podFailurePolicy` that matches a failed pod.
pub fn judge(job: &Value, pod: &Value) -> Verdict {
    for (at, rule) in list(job, "/spec/podFailurePolicy/rules").iter().enumerate() {
        let Some(what) = matched(rule, pod) else { continue };
        return match text(rule, "/action") {
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {at}")),
            "Ignore" => Verdict::Ignore,
            "FailIndex" if job["spec"]["backoffLimitPerIndex"].is_i64() => Verdict::FailIndex,
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matched(rule: &Value, pod: &Value) -> Option<String> {
    let exit_codes = &rule["onExitCodes"];
    if exit_codes.is_object() {
        let wanted = text(exit_codes, "/containerName");
        let values = list(exit_codes, "/values");
        return ["/status/initContainerStatuses", "/status/containerStatuses"]
            .iter()
            .flat_map(|it| list(pod, it))
            .filter(|it| wanted.is_empty() || text(it, "/name") == wanted)
            .find_map(|container| {
                let code = container["state"]["terminated"]["exitCode"].as_i64().filter(|it| *it != 0)?;
                let among = values.iter().any(|it| it.as_i64() == Some(code));
                let holds = if text(exit_codes, "/operator") == "NotIn" { !among } else { among };
                let container = text(container, "/name");
                let pod = format!("{}/{}", namespace(pod), name(pod));
                holds.then(|| format!("Container {container} for pod {pod} failed with exit code {code}"))
            });
    }
    list(rule, "/onPodConditions").iter().find_map(|pattern| {
        let kind = text(pattern, "/type");
        let status = pattern["status"].as_str().unwrap_or("True");
        let condition = kube_kinds::condition(pod, kind)?;
        (condition["status"] == status)
            .then(|| format!("Pod {}/{} has condition {kind}", namespace(pod), name(pod)))
    })
}

/// The rule of `spec.successPolicy` that the succeeded indexes meet.
pub fn success(job: &Value, succeeded: &Indexes, completions: i64) -> Option<String> {
    let met = |rule: &Value| {
        let wanted = rule["succeededIndexes"].as_str().map(|it| indexes::parse(it, completions));
        let count = rule["succeededCount"].as_i64();
        match (wanted, count) {
            (Some(wanted), None) => wanted.is_subset(succeeded),
            (Some(wanted), Some(count)) => wanted.intersection(succeeded).count() as i64 >= count,
            (None, Some(count)) => succeeded.len() as i64 >= count,
            (None, None) => false,
        }
    };
    let at = list(job, "/spec/successPolicy/rules").iter().position(met)?;
    Some(format!("Matched rules at index {at}"))
}
