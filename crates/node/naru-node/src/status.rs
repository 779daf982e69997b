//! From what is to what the Pod object says. Pure.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::plan::{
    CommitState, ContainerState, Ended, ImageState, Observed, Phase, PodPhase, SandboxState, pod_phase,
    restart_at, should_restart,
};
use crate::pod::{DesiredContainer, DesiredPod};

/// Kubernetes' `Time`: whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// True when traffic may come: every container ready and nobody is ending the pod.
pub fn is_ready(pod: &DesiredPod, seen: &Observed) -> bool {
    seen.deletion.is_none() && containers_ready(pod, seen)
}

fn containers_ready(pod: &DesiredPod, seen: &Observed) -> bool {
    pod_phase(pod, seen) == PodPhase::Running
        && pod.containers.iter().all(|container| {
            let state = seen.container(&container.name);
            state.is_running() && state.ready
        })
}

fn is_initialized(pod: &DesiredPod, seen: &Observed) -> bool {
    pod.init_containers.iter().all(
        |container| matches!(&seen.container(&container.name).phase, Phase::Ended(ended) if ended.code == 0),
    )
}

/// The whole status. `before` is the status that the object has now: times of conditions that did
/// not change are kept.
pub fn pod_status(pod: &DesiredPod, seen: &Observed, before: &Value, host_ip: &str, now: Timestamp) -> Value {
    let phase = pod_phase(pod, seen);
    let done = matches!(phase, PodPhase::Succeeded | PodPhase::Failed);
    let condition = |kind: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let earlier = before["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|it| it["type"] == kind && it["status"] == status);
        let since =
            earlier.and_then(|it| it["lastTransitionTime"].as_str()).map_or_else(|| time(now), str::to_owned);
        let mut condition =
            json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since});
        if !holds && !reason.is_empty() {
            condition["reason"] = json!(reason);
        }
        if !holds && !message.is_empty() {
            condition["message"] = json!(message);
        }
        condition
    };
    let unready: Vec<&str> = pod
        .containers
        .iter()
        .filter(|container| !seen.container(&container.name).ready)
        .map(|container| container.name.as_str())
        .collect();
    let why = match phase {
        PodPhase::Succeeded => "PodCompleted",
        PodPhase::Failed => "PodFailed",
        _ => "ContainersNotReady",
    };
    let message = if unready.is_empty() || done {
        String::new()
    } else {
        format!("containers with unready status: [{}]", unready.join(" "))
    };
    let initialized = is_initialized(pod, seen) || phase == PodPhase::Succeeded;
    let conditions = json!([
        condition("PodReadyToStartContainers", matches!(seen.sandbox, SandboxState::Ready { .. }), "", ""),
        condition("Initialized", initialized, "ContainersNotInitialized", ""),
        condition("Ready", is_ready(pod, seen), why, &message),
        condition("ContainersReady", containers_ready(pod, seen), why, &message),
        condition("PodScheduled", true, "", ""),
    ]);

    let mut status = Map::new();
    status.insert("phase".into(), json!(format!("{phase:?}")));
    status.insert("conditions".into(), conditions);
    status.insert("hostIP".into(), json!(host_ip));
    status.insert("hostIPs".into(), json!([{"ip": host_ip}]));
    status.insert("qosClass".into(), json!(quality_of_service(pod)));
    if let Some(since) = seen.started_at {
        status.insert("startTime".into(), json!(time(since)));
    }
    if let SandboxState::Ready { address } = &seen.sandbox {
        status.insert("podIP".into(), json!(address));
        status.insert("podIPs".into(), json!([{"ip": address}]));
    }
    // A merge patch forgets only what it says to forget.
    let (reason, message) = match (&seen.failed, pod.problems.first()) {
        (Some((reason, message)), _) => (json!(reason), json!(message)),
        (None, Some(problem)) => (json!("Unsupported"), json!(problem.message)),
        (None, None) => (Value::Null, Value::Null),
    };
    status.insert("reason".into(), reason);
    status.insert("message".into(), message);
    let statuses = |containers: &[DesiredContainer], is_init: bool| -> Value {
        containers.iter().map(|container| container_status(pod, seen, container, is_init, now)).collect()
    };
    if !pod.init_containers.is_empty() {
        status.insert("initContainerStatuses".into(), statuses(&pod.init_containers, true));
    }
    status.insert("containerStatuses".into(), statuses(&pod.containers, false));
    Value::Object(status)
}

fn container_status(
    pod: &DesiredPod,
    seen: &Observed,
    container: &DesiredContainer,
    is_init: bool,
    now: Timestamp,
) -> Value {
    let state = seen.container(&container.name);
    let (current, last) = states(pod, seen, container, state, is_init, now);
    let identity = match &state.phase {
        Phase::Running { .. } => Some(state.attempt),
        Phase::Ended(ended) => Some(ended.attempt),
        _ => state.last.as_ref().map(|ended| ended.attempt),
    };
    let ready = if is_init {
        matches!(&state.phase, Phase::Ended(ended) if ended.code == 0)
    } else {
        state.is_running() && state.ready
    };
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": state.digest,
        "containerID": identity.map_or(String::new(), |attempt| format!("naru://{}/{}-{attempt}", pod.uid, container.name)),
        "restartCount": state.attempt,
        "ready": ready,
        "started": state.is_running() && state.started,
        "state": current,
        "lastState": last,
    })
}

fn states(
    pod: &DesiredPod,
    seen: &Observed,
    container: &DesiredContainer,
    state: &ContainerState,
    is_init: bool,
    now: Timestamp,
) -> (Value, Value) {
    let waiting = |reason: &str, message: &str| {
        let mut waiting = json!({"reason": reason});
        if !message.is_empty() {
            waiting["message"] = json!(message);
        }
        json!({"waiting": waiting})
    };
    let terminated = |ended: &Ended| {
        let mut inner = json!({
            "exitCode": ended.code, "reason": ended.reason,
            "startedAt": ended.started_at.map(time), "finishedAt": time(ended.finished_at),
            "containerID": format!("naru://{}/{}-{}", pod.uid, container.name, ended.attempt),
        });
        if let Some(signal) = ended.signal {
            inner["signal"] = json!(signal);
        }
        if !ended.message.is_empty() {
            inner["message"] = json!(ended.message);
        }
        json!({"terminated": inner})
    };
    let last = state.last.as_ref().map_or_else(|| json!({}), terminated);
    if let Some(problem) =
        pod.problems.iter().find(|it| it.container.is_empty() || it.container == container.name)
    {
        return (waiting("Unsupported", &problem.message), last);
    }
    let over = seen.failed.is_some();
    match &state.phase {
        Phase::Running { since } => (json!({"running": {"startedAt": time(*since)}}), last),
        Phase::Ended(ended) => {
            let committing =
                pod.commit.is_some() && ended.code == 0 && state.commit != CommitState::Done && !is_init;
            if committing && let Some(since) = ended.started_at {
                // Its work is not done before its files are kept.
                return (json!({"running": {"startedAt": time(since)}}), last);
            }
            let restarts = should_restart(pod, is_init, ended) && seen.deletion.is_none() && !over;
            if restarts && let ImageState::Failed(failure) = &state.image {
                return (waiting(&failure.reason, &failure.message), terminated(ended));
            }
            let at = restart_at(state, ended);
            if restarts && now < at {
                let delay = at.duration_since(ended.finished_at).as_secs();
                let message = format!(
                    "back-off {delay}s restarting failed container={} pod={}",
                    container.name, pod.name
                );
                return (waiting("CrashLoopBackOff", &message), terminated(ended));
            }
            (terminated(ended), last)
        }
        Phase::Blocked(failure) => (waiting(&failure.reason, &failure.message), last),
        Phase::Starting => (waiting("ContainerCreating", ""), last),
        Phase::Waiting => {
            if let ImageState::Failed(failure) = &state.image {
                let reason = match failure.reason.as_str() {
                    "ErrImagePull" if failure.times > 1 => "ImagePullBackOff",
                    reason => reason,
                };
                return (waiting(reason, &failure.message), last);
            }
            if let SandboxState::Failed(failure) = &seen.sandbox {
                return (waiting("ContainerCreating", &failure.message), last);
            }
            let reason =
                if !is_init && !is_initialized(pod, seen) { "PodInitializing" } else { "ContainerCreating" };
            (waiting(reason, ""), last)
        }
    }
}

fn quality_of_service(pod: &DesiredPod) -> &'static str {
    let all = || pod.init_containers.iter().chain(&pod.containers);
    let asks = |it: &DesiredContainer| {
        it.cpu_millis_request.is_some()
            || it.memory_bytes_request.is_some()
            || it.cpu_millis_max.is_some()
            || it.memory_bytes_max.is_some()
    };
    let guaranteed = |it: &DesiredContainer| {
        it.cpu_millis_max.is_some()
            && it.memory_bytes_max.is_some()
            && it.cpu_millis_request == it.cpu_millis_max
            && it.memory_bytes_request == it.memory_bytes_max
    };
    match () {
        _ if !all().any(asks) => "BestEffort",
        _ if all().all(guaranteed) => "Guaranteed",
        _ => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Deletion, Failure};
    use crate::pod::lower_pod;

    fn pod(policy: &str) -> DesiredPod {
        lower_pod(&json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "i:1"}]}}))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_311_845 + seconds).unwrap()
    }

    fn running() -> Observed {
        let mut seen = Observed {
            sandbox: SandboxState::Ready { address: "10.88.0.5".into() },
            started_at: Some(at(0)),
            ..Observed::default()
        };
        let state = seen.containers.entry("a".into()).or_default();
        state.phase = Phase::Running { since: at(1) };
        (state.ready, state.started, state.digest) = (true, true, "sha256:1".into());
        seen
    }

    fn condition(status: &Value, kind: &str) -> (String, String) {
        let found = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == kind).unwrap();
        (found["status"].as_str().unwrap().into(), found["lastTransitionTime"].as_str().unwrap().into())
    }

    #[test]
    fn a_running_pod_tells_where_it_is() {
        let status = pod_status(&pod("Always"), &running(), &Value::Null, "10.88.0.1", at(2));
        assert_eq!(status["phase"], "Running");
        assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("10.88.0.5"), &json!("10.88.0.1")));
        let container = &status["containerStatuses"][0];
        assert_eq!(container["state"]["running"]["startedAt"], "2026-11-22T01:44:06Z");
        assert_eq!((&container["ready"], &container["containerID"]), (&json!(true), &json!("naru://u/a-0")));
        assert_eq!(condition(&status, "Ready"), ("True".into(), "2026-11-22T01:44:07Z".into()));
        // Told again later, the time of the change stays.
        let again = pod_status(&pod("Always"), &running(), &status, "10.88.0.1", at(60));
        assert_eq!(condition(&again, "Ready").1, "2026-11-22T01:44:07Z");
    }

    #[test]
    fn a_pod_that_is_being_deleted_is_not_ready_while_it_still_runs() {
        let mut seen = running();
        seen.deletion = Some(Deletion {
            since: at(5),
            grace: jiff::SignedDuration::from_secs(30),
            was_ready: true,
            forced: false,
        });
        let status = pod_status(&pod("Always"), &seen, &Value::Null, "h", at(5));
        assert_eq!(condition(&status, "Ready").0, "False");
        assert_eq!(condition(&status, "ContainersReady").0, "True");
    }

    #[test]
    fn waiting_reasons_are_the_ones_that_people_know() {
        let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
        let mut seen =
            Observed { sandbox: SandboxState::Ready { address: "x".into() }, ..Observed::default() };
        let status = pod_status(&pod("Always"), &seen, &Value::Null, "h", at(0));
        assert_eq!((reason(&status), &status["phase"]), (json!("ContainerCreating"), &json!("Pending")));
        let state = seen.containers.entry("a".into()).or_default();
        state.image = ImageState::Failed(Failure::new("ErrImagePull", "no route".into(), 0, at(0)));
        assert_eq!(reason(&pod_status(&pod("Always"), &seen, &Value::Null, "h", at(0))), "ErrImagePull");
        let state = seen.containers.get_mut("a").unwrap();
        state.image = ImageState::Failed(Failure::new("ErrImagePull", "no route".into(), 1, at(0)));
        assert_eq!(reason(&pod_status(&pod("Always"), &seen, &Value::Null, "h", at(0))), "ImagePullBackOff");
        let state = seen.containers.get_mut("a").unwrap();
        state.image = ImageState::Present;
        for attempt in 0..2 {
            state.attempt = attempt;
            state.end(Ended {
                attempt,
                code: 1,
                signal: None,
                reason: "Error".into(),
                message: String::new(),
                started_at: Some(at(0)),
                finished_at: at(1),
            });
        }
        let status = pod_status(&pod("Always"), &seen, &Value::Null, "h", at(2));
        assert_eq!((reason(&status), &status["phase"]), (json!("CrashLoopBackOff"), &json!("Running")));
        let container = &status["containerStatuses"][0];
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
        assert_eq!(
            container["state"]["waiting"]["message"],
            "back-off 10s restarting failed container=a pod=p"
        );
        let status = pod_status(&pod("Never"), &seen, &Value::Null, "h", at(2));
        assert_eq!(
            (&status["phase"], &status["containerStatuses"][0]["state"]["terminated"]["reason"]),
            (&json!("Failed"), &json!("Error"))
        );
    }

    #[test]
    fn an_unsupported_pod_says_so() {
        let pod =
            lower_pod(&json!({"metadata": {}, "spec": {"hostPID": true, "containers": [{"name": "a"}]}}));
        let status = pod_status(&pod, &Observed::default(), &Value::Null, "h", at(0));
        assert_eq!(status["reason"], "Unsupported");
        assert_eq!(
            status["containerStatuses"][0]["state"]["waiting"]["message"],
            "spec.hostPID is not supported by this node"
        );
    }
}
