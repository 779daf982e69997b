//! How far a service is, from what the cluster says of its objects. Pure.

use naru_spec::compose::Condition;
use serde_json::Value;

/// What is known of one service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Its containers have been started.
    pub started: bool,
    /// All of its pods are of the newest form and answer their checks.
    pub ready: bool,
    /// It has run to its end, and well.
    pub completed: bool,
    /// It will not come about by waiting.
    pub failed: Option<String>,
    /// Why it is not there yet.
    pub waits: Option<String>,
}

impl State {
    pub fn meets(&self, condition: Condition) -> bool {
        match condition {
            Condition::Started => self.started || self.completed,
            Condition::Healthy => self.ready || self.completed,
            Condition::Completed => self.completed,
        }
    }

    /// Nothing more is to be waited for.
    pub fn is_well(&self) -> bool {
        self.ready || self.completed
    }

    pub fn word(&self) -> &'static str {
        match self {
            Self { failed: Some(_), .. } => "failed",
            Self { completed: true, .. } => "completed",
            Self { ready: true, .. } => "ready",
            Self { started: true, .. } => "started",
            _ => "starting",
        }
    }
}

/// Reasons for which a container does not start that waiting does not mend.
const HOPELESS: &[&str] = &[
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
];

/// The state of a workload and its pods, of which those with another image are of an earlier form.
pub fn state<'p>(workload: &Value, pods: impl Iterator<Item = &'p Value>) -> State {
    let mut state = State::default();
    let (spec, status) = (&workload["spec"], &workload["status"]);
    let image = &spec["template"]["spec"]["containers"][0]["image"];
    let pods: Vec<&Value> = pods
        .filter(|it| {
            it["metadata"]["deletionTimestamp"].is_null() && it["spec"]["containers"][0]["image"] == *image
        })
        .collect();
    let has_run = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0]["state"];
        container["running"].is_object() || container["terminated"].is_object()
    };
    let number = |value: &Value, otherwise: u64| value.as_u64().unwrap_or(otherwise);
    let is_seen = number(&status["observedGeneration"], 0) >= number(&workload["metadata"]["generation"], 0);
    let condition = |kind: &str| {
        let found = status["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == kind);
        found
            .filter(|it| it["status"] == "True")
            .map(|it| it["message"].as_str().unwrap_or_default().to_owned())
    };
    match workload["kind"].as_str() {
        Some("Job") => {
            state.completed = condition("Complete").is_some();
            state.failed =
                condition("Failed").map(|it| if it.is_empty() { "the job failed".into() } else { it });
            state.started = state.completed || pods.iter().any(|it| has_run(it));
            // A job that serves while it runs is well as soon as it does; any other is to complete.
            let container = &spec["template"]["spec"]["containers"][0];
            let serves = container["ports"].is_array() || container["readinessProbe"].is_object();
            let wanted = number(&spec["parallelism"], 1).min(number(&spec["completions"], u64::MAX));
            state.ready = serves && wanted > 0 && number(&status["ready"], 0) >= wanted;
        }
        Some("DaemonSet") => {
            let wanted = number(&status["desiredNumberScheduled"], 0);
            state.ready = is_seen
                && number(&status["updatedNumberScheduled"], 0) >= wanted
                && number(&status["numberAvailable"], 0) >= wanted;
            state.started = is_seen && (wanted == 0 || pods.iter().any(|it| has_run(it)));
        }
        _ => {
            let wanted = number(&spec["replicas"], 1);
            let updated = number(&status["updatedReplicas"], 0);
            state.ready = is_seen
                && updated >= wanted
                && number(&status["replicas"], 0) <= updated
                && number(&status["availableReplicas"], 0) >= wanted;
            state.started =
                is_seen && updated >= wanted && (wanted == 0 || pods.iter().any(|it| has_run(it)));
        }
    }
    if state.is_well() || state.failed.is_some() {
        return state;
    }
    for pod in pods {
        let unscheduled = pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|it| it["type"] == "PodScheduled" && it["status"] == "False");
        if let Some(it) = unscheduled {
            state.waits = it["message"].as_str().map(str::to_owned);
        }
        for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let waiting = &container["state"]["waiting"];
            let reason = waiting["reason"].as_str().unwrap_or_default();
            if reason.is_empty() || reason == "ContainerCreating" || reason == "PodInitializing" {
                continue;
            }
            let message = match waiting["message"].as_str() {
                Some(it) if !it.is_empty() => format!("{reason}: {it}"),
                _ => reason.to_owned(),
            };
            if HOPELESS.contains(&reason) {
                state.failed = Some(message.clone());
            }
            state.waits = Some(message);
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(image: &str, container: Value) -> Value {
        json!({"metadata": {}, "spec": {"containers": [{"image": image}]}, "status": {"containerStatuses": [{"state": container}]}})
    }

    #[test]
    fn a_deployment_is_ready_when_all_pods_are_of_its_newest_form() {
        let deployment = |status: Value| {
            json!({"kind": "Deployment", "metadata": {"generation": 2}, "status": status,
                "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": "b"}]}}}})
        };
        let pods = [
            pod("a", json!({"running": {}})),
            pod("b", json!({"waiting": {"reason": "ErrImagePull", "message": "no"}})),
        ];
        let old = deployment(
            json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
        );
        let got = state(&old, pods.iter());
        assert!(!got.ready && !got.started, "{got:?}");
        assert_eq!(got.waits.as_deref(), Some("ErrImagePull: no"));
        let rolling = deployment(
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}),
        );
        assert!(!state(&rolling, pods.iter()).ready);
        let done = deployment(
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
        );
        assert!(state(&done, pods.iter()).ready);
        let hopeless = [pod("b", json!({"waiting": {"reason": "ImagePullBackOff"}}))];
        assert_eq!(state(&rolling, hopeless.iter()).failed.as_deref(), Some("ImagePullBackOff"));
    }

    #[test]
    fn a_job_completes_or_fails() {
        let job = |kind: &str| json!({"kind": "Job", "spec": {}, "status": {"conditions": [{"type": kind, "status": "True", "message": "m"}]}});
        assert!(state(&job("Complete"), [].iter()).meets(Condition::Completed));
        assert_eq!(state(&job("Failed"), [].iter()).failed.as_deref(), Some("m"));
        let running = |container: Value| {
            json!({"kind": "Job", "status": {"ready": 1},
            "spec": {"completions": 1, "template": {"spec": {"containers": [container]}}}})
        };
        assert_eq!(state(&running(json!({"ports": []})), [].iter()).word(), "ready");
        assert!(!state(&running(json!({})), [].iter()).is_well());
    }
}
