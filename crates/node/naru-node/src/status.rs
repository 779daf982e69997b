//! From what is to what the Pod object says. Pure.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::plan::{PodPhase, is_initialized, main_outcome, pod_phase, restart_at, should_restart};
use crate::pod::{DesiredContainer, DesiredPod, Role};
use crate::state::{CommitState, ContainerState, Ended, ImageState, Observed, Phase, SandboxState};

/// Kubernetes' `Time`: whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Everything that a status is made of.
pub struct About<'a> {
    pub pod: &'a DesiredPod,
    pub seen: &'a Observed,
    /// The object, for the conditions that others write.
    pub object: &'a Value,
    /// The status as this node wrote it last: times of conditions that did not change are kept.
    pub before: &'a Value,
    pub host_ip: &'a str,
}

/// True when traffic may come: every container ready, every gate open, and nobody is ending the pod.
pub fn is_ready(pod: &DesiredPod, seen: &Observed, object: &Value) -> bool {
    seen.deletion.is_none() && containers_ready(pod, seen) && closed_gates(pod, object).is_empty()
}

/// Readiness gates whose condition nobody has set to true.
fn closed_gates<'a>(pod: &'a DesiredPod, object: &Value) -> Vec<&'a str> {
    let open = |gate: &str| {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.clone().any(|it| it["type"] == gate && it["status"] == "True")
    };
    pod.readiness_gates.iter().map(String::as_str).filter(|gate| !open(gate)).collect()
}

fn containers_ready(pod: &DesiredPod, seen: &Observed) -> bool {
    pod_phase(pod, seen) == PodPhase::Running
        && pod.containers.iter().chain(pod.sidecars()).all(|container| {
            let state = seen.container(&container.name);
            state.is_running() && state.ready
        })
}

/// The whole status.
pub fn pod_status(about: &About, now: Timestamp) -> Value {
    let About { pod, seen, object, before, host_ip } = *about;
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
        // Patches forget only what they say to forget.
        let told = |text: &str| if holds || text.is_empty() { Value::Null } else { json!(text) };
        json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since,
               "reason": told(reason), "message": told(message), "observedGeneration": pod.generation})
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
    let closed = closed_gates(pod, object);
    let (ready_why, ready_message) = match containers_ready(pod, seen) && !closed.is_empty() {
        true => (
            "ReadinessGatesNotReady",
            format!("the status of pod readiness gate \"{}\" is not \"True\"", closed[0]),
        ),
        false => (why, message.clone()),
    };
    let mut conditions = vec![
        condition("PodReadyToStartContainers", matches!(seen.sandbox, SandboxState::Ready { .. }), "", ""),
        condition("Initialized", initialized, "ContainersNotInitialized", ""),
        condition("Ready", is_ready(pod, seen, object), ready_why, &ready_message),
        condition("ContainersReady", containers_ready(pod, seen), why, &message),
        condition("PodScheduled", true, "", ""),
    ];
    if let Some((reason, message)) = seen.failed.as_ref().filter(|(reason, _)| reason == "Evicted") {
        let mut disruption = condition("DisruptionTarget", true, "", "");
        disruption["reason"] = json!("TerminationByKubelet");
        disruption["message"] = json!(message);
        tracing::trace!(reason, "disrupted");
        conditions.push(disruption);
    }
    conditions.extend(seen.resize.as_ref().map(|resize| {
        let mut pending = condition("PodResizePending", true, "", "");
        pending["reason"] = json!(resize.reason);
        pending["message"] = json!(resize.message);
        pending
    }));

    let mut status = Map::new();
    status.insert("phase".into(), json!(format!("{phase:?}")));
    status.insert("conditions".into(), json!(conditions));
    status.insert("observedGeneration".into(), json!(pod.generation));
    status.insert("hostIP".into(), json!(host_ip));
    status.insert("hostIPs".into(), replaced(json!({"ip": host_ip})));
    status.insert("qosClass".into(), json!(quality_of_service(pod)));
    if let Some(since) = seen.started_at {
        status.insert("startTime".into(), json!(time(since)));
    }
    if let SandboxState::Ready { address } = &seen.sandbox {
        status.insert("podIP".into(), json!(address));
        status.insert("podIPs".into(), replaced(json!({"ip": address})));
    } else if pod.life.is_some() {
        // Its next life has another one, and somebody else may have this one by then.
        status.insert("podIP".into(), Value::Null);
        status.insert("podIPs".into(), Value::Null);
    }
    // A merge patch forgets only what it says to forget.
    let (reason, message) = match (&seen.failed, pod.problems.first()) {
        (Some((reason, message)), _) => (json!(reason), json!(message)),
        (None, Some(problem)) => (json!("Unsupported"), json!(problem.message)),
        (None, None) => (Value::Null, Value::Null),
    };
    status.insert("reason".into(), reason);
    status.insert("message".into(), message);
    let statuses = |containers: &[DesiredContainer]| -> Value {
        containers.iter().map(|container| container_status(pod, seen, container, now)).collect()
    };
    if !pod.init_containers.is_empty() {
        status.insert("initContainerStatuses".into(), statuses(&pod.init_containers));
    }
    status.insert("containerStatuses".into(), statuses(&pod.containers));
    if !pod.ephemeral_containers.is_empty() {
        status.insert("ephemeralContainerStatuses".into(), statuses(&pod.ephemeral_containers));
    }
    Value::Object(status)
}

/// A list of one that takes the place of whatever was there.
fn replaced(only: Value) -> Value {
    json!([{"$patch": "replace"}, only])
}

fn container_status(
    pod: &DesiredPod,
    seen: &Observed,
    container: &DesiredContainer,
    now: Timestamp,
) -> Value {
    let state = seen.container(&container.name);
    let (current, last) = states(pod, seen, container, state, now);
    let identity = match &state.phase {
        Phase::Running { .. } => Some(state.attempt),
        Phase::Ended(ended) => Some(ended.attempt),
        _ => state.last.as_ref().map(|ended| ended.attempt),
    };
    let ready = match container.role {
        Role::Init => matches!(&state.phase, Phase::Ended(ended) if ended.code == 0),
        Role::Ephemeral => false,
        Role::Main | Role::Sidecar => state.is_running() && state.ready,
    };
    let mut status = json!({
        "name": container.name,
        "image": container.image,
        "imageID": state.digest,
        "containerID": identity.map_or(String::new(), |attempt| format!("naru://{}/{}-{attempt}", pod.uid, container.name)),
        "restartCount": state.attempt,
        "ready": ready,
        "started": state.is_running() && state.started,
        "state": current,
        "lastState": last,
    });
    let resources = if state.is_running() { &state.resources } else { &container.resources.written };
    if resources.as_object().is_some_and(|it| !it.is_empty()) {
        status["resources"] = resources.clone();
        let asked = resources["requests"].as_object().filter(|it| !it.is_empty());
        if let Some(asked) = asked {
            status["allocatedResources"] = json!(asked);
        }
    }
    status
}

fn states(
    pod: &DesiredPod,
    seen: &Observed,
    container: &DesiredContainer,
    state: &ContainerState,
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
    let is_init = matches!(container.role, Role::Init | Role::Sidecar);
    let over = seen.failed.is_some() || main_outcome(pod, seen).is_some();
    match &state.phase {
        Phase::Running { since } => (json!({"running": {"startedAt": time(*since)}}), last),
        Phase::Ended(ended) => {
            let committing = container.role == Role::Main
                && pod.commit.is_some()
                && ended.code == 0
                && state.commit != CommitState::Done;
            if committing && let Some(since) = ended.started_at {
                // Its work is not done before its files are kept.
                return (json!({"running": {"startedAt": time(since)}}), last);
            }
            let again = state.replace || should_restart(pod, container, state, ended);
            let restarts = again && seen.deletion.is_none() && !over;
            if restarts && let ImageState::Failed(failure) = &state.image {
                return (waiting(&failure.reason, &failure.message), terminated(ended));
            }
            let at = restart_at(pod, state, ended);
            if restarts && !state.replace && now < at {
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
            if pod.life.as_ref().is_some_and(|life| life.run == 0) {
                return (waiting("Created", ""), last);
            }
            let reason =
                if !is_init && !is_initialized(pod, seen) { "PodInitializing" } else { "ContainerCreating" };
            (waiting(reason, ""), last)
        }
    }
}

pub fn quality_of_service(pod: &DesiredPod) -> &'static str {
    // What the pod as a whole asks for decides where it says something.
    let whole = &pod.resources;
    let of_pod = whole.written.as_object().is_some_and(|it| !it.is_empty());
    let all: Vec<_> = match of_pod {
        true => vec![whole],
        false => pod.init_containers.iter().chain(&pod.containers).map(|it| &it.resources).collect(),
    };
    let asks = all.iter().any(|it| {
        it.cpu_millis_request.is_some_and(|it| it > 0)
            || it.memory_bytes_request.is_some_and(|it| it > 0)
            || it.cpu_millis_max.is_some()
            || it.memory_bytes_max.is_some()
    });
    let guaranteed = all.iter().all(|it| {
        it.cpu_millis_max.is_some()
            && it.memory_bytes_max.is_some()
            && it.cpu_millis_request == it.cpu_millis_max
            && it.memory_bytes_request == it.memory_bytes_max
    });
    match () {
        _ if !asks => "BestEffort",
        _ if guaranteed => "Guaranteed",
        _ => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::lower_pod;
    use crate::state::{Deletion, Failure};

    fn pod(policy: &str) -> DesiredPod {
        lower_pod(&json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "i:1"}]}}))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_311_845 + seconds).unwrap()
    }

    fn told(pod: &DesiredPod, seen: &Observed, before: &Value, now: Timestamp) -> Value {
        let about = About { pod, seen, object: &Value::Null, before, host_ip: "10.88.0.1" };
        pod_status(&about, now)
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
        let status = told(&pod("Always"), &running(), &Value::Null, at(2));
        assert_eq!(status["phase"], "Running");
        assert_eq!((&status["podIP"], &status["hostIP"]), (&json!("10.88.0.5"), &json!("10.88.0.1")));
        let container = &status["containerStatuses"][0];
        assert_eq!(container["state"]["running"]["startedAt"], "2026-11-22T01:44:06Z");
        assert_eq!((&container["ready"], &container["containerID"]), (&json!(true), &json!("naru://u/a-0")));
        assert_eq!(condition(&status, "Ready"), ("True".into(), "2026-11-22T01:44:07Z".into()));
        // Told again later, the time of the change stays.
        let again = told(&pod("Always"), &running(), &status, at(60));
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
        let status = told(&pod("Always"), &seen, &Value::Null, at(5));
        assert_eq!(condition(&status, "Ready").0, "False");
        assert_eq!(condition(&status, "ContainersReady").0, "True");
    }

    #[test]
    fn waiting_reasons_are_the_ones_that_people_know() {
        let reason = |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
        let mut seen =
            Observed { sandbox: SandboxState::Ready { address: "x".into() }, ..Observed::default() };
        let status = told(&pod("Always"), &seen, &Value::Null, at(0));
        assert_eq!((reason(&status), &status["phase"]), (json!("ContainerCreating"), &json!("Pending")));
        let state = seen.containers.entry("a".into()).or_default();
        state.image = ImageState::Failed(Failure::new("ErrImagePull", "no route".into(), 0, at(0)));
        assert_eq!(reason(&told(&pod("Always"), &seen, &Value::Null, at(0))), "ErrImagePull");
        let state = seen.containers.get_mut("a").unwrap();
        state.image = ImageState::Failed(Failure::new("ErrImagePull", "no route".into(), 1, at(0)));
        assert_eq!(reason(&told(&pod("Always"), &seen, &Value::Null, at(0))), "ImagePullBackOff");
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
        let status = told(&pod("Always"), &seen, &Value::Null, at(2));
        assert_eq!((reason(&status), &status["phase"]), (json!("CrashLoopBackOff"), &json!("Running")));
        let container = &status["containerStatuses"][0];
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
        assert_eq!(
            container["state"]["waiting"]["message"],
            "back-off 10s restarting failed container=a pod=p"
        );
        let status = told(&pod("Never"), &seen, &Value::Null, at(2));
        assert_eq!(
            (&status["phase"], &status["containerStatuses"][0]["state"]["terminated"]["reason"]),
            (&json!("Failed"), &json!("Error"))
        );
    }

    #[test]
    fn an_unsupported_pod_says_so() {
        let pod =
            lower_pod(&json!({"metadata": {}, "spec": {"hostUsers": false, "containers": [{"name": "a"}]}}));
        let status = told(&pod, &Observed::default(), &Value::Null, at(0));
        assert_eq!(status["reason"], "Unsupported");
        assert_eq!(
            status["containerStatuses"][0]["state"]["waiting"]["message"],
            "spec.hostUsers: false is not supported by this node"
        );
    }
}
