//! What to do about a pod next. Pure: the same pod, state and time give the same answer.
//!
//! The worker calls [`plan`] after every event, executes the actions, and sleeps until `wake_at`.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use naru_runtime::Exit;
use serde::{Deserialize, Serialize};

use crate::pod::{DesiredContainer, DesiredPod, RestartPolicy};

/// Kubernetes' restart back-off: at once, then 10 s, 20 s, 40 s ... 5 min.
const BACK_OFF_FIRST: SignedDuration = SignedDuration::from_secs(10);
const BACK_OFF_MAX: SignedDuration = SignedDuration::from_secs(300);
/// A container that ran this long is healthy; its next end starts the count anew.
const BACK_OFF_RESET: SignedDuration = SignedDuration::from_secs(600);

/// How a container ended, or why it never began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    pub attempt: u32,
    pub code: i32,
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    pub message: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

impl Ended {
    pub fn from_exit(attempt: u32, exit: &Exit) -> Self {
        let reason = match exit.code {
            _ if exit.out_of_memory => "OOMKilled",
            0 => "Completed",
            _ => "Error",
        };
        Self {
            attempt,
            code: exit.code,
            signal: exit.signal,
            reason: reason.to_owned(),
            message: String::new(),
            started_at: Some(from_nanoseconds(exit.started_at_nanoseconds)),
            finished_at: from_nanoseconds(exit.finished_at_nanoseconds),
        }
    }
}

pub fn from_nanoseconds(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds))
        .expect("an i64 of nanoseconds lies within jiff's years")
}

/// Something that may be tried again at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
    pub retry_at: Timestamp,
    pub times: u32,
}

impl Failure {
    /// The `times`-th failure in a row; the first is tried again after a second.
    pub fn new(reason: &str, message: String, before: u32, now: Timestamp) -> Self {
        let seconds = 1i64.checked_shl(before).unwrap_or(i64::MAX).min(60);
        Self {
            reason: reason.to_owned(),
            message,
            retry_at: now + SignedDuration::from_secs(seconds),
            times: before.saturating_add(1),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SandboxState {
    #[default]
    Absent,
    Creating,
    Ready {
        address: String,
    },
    Failed(Failure),
    TearingDown,
    /// Torn down for good; the pod is finished or goes.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ImageState {
    #[default]
    Unknown,
    Pulling,
    Present,
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    #[default]
    Waiting,
    Starting,
    /// The pod's configuration cannot be resolved yet: a ConfigMap or Secret is missing.
    Blocked(Failure),
    Running {
        since: Timestamp,
    },
    Ended(Ended),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CommitState {
    #[default]
    Wanted,
    Running,
    Done,
}

/// A stop that was asked for: by a probe or by the pod's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub asked_at: Timestamp,
    pub killed: bool,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerState {
    /// Number of the current attempt, from 0; what users see as the restart count.
    pub attempt: u32,
    pub image: ImageState,
    pub digest: String,
    /// The image's, when it is not SIGTERM.
    pub stop_signal: Option<String>,
    pub phase: Phase,
    pub last: Option<Ended>,
    /// Ends in a row without a long healthy run between them.
    pub streak: u32,
    pub ready: bool,
    /// The startup probe has passed, or there is none.
    pub started: bool,
    pub stop: Option<Stop>,
    pub commit: CommitState,
    /// Failures in a row, for the time until the next try.
    pub image_failures: u32,
    pub blocked_times: u32,
}

impl ContainerState {
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    fn is_busy(&self) -> bool {
        matches!(self.phase, Phase::Starting)
            || self.image == ImageState::Pulling
            || self.commit == CommitState::Running
    }

    /// Takes note of an end; counts the streak.
    pub fn end(&mut self, ended: Ended) {
        let ran =
            ended.started_at.map_or(SignedDuration::ZERO, |since| ended.finished_at.duration_since(since));
        self.streak = if ran >= BACK_OFF_RESET { 1 } else { self.streak.saturating_add(1) };
        self.phase = Phase::Ended(ended);
        self.ready = false;
        self.started = false;
        self.stop = None;
    }
}

/// Why the whole pod is to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    pub since: Timestamp,
    pub grace: SignedDuration,
    /// The pod was ready, so somebody may still be sending it requests.
    pub was_ready: bool,
    /// The object is gone already; nothing to wait for.
    pub forced: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub sandbox: SandboxState,
    /// Failures in a row.
    pub sandbox_failures: u32,
    pub containers: BTreeMap<String, ContainerState>,
    pub deletion: Option<Deletion>,
    /// When the node first saw the pod.
    pub started_at: Option<Timestamp>,
    /// The pod's end was decided and is final: `DeadlineExceeded`, `Evicted`.
    pub failed: Option<(String, String)>,
    /// The delete request for the object was sent.
    pub object_deleted: bool,
}

impl Observed {
    pub fn container(&self, name: &str) -> &ContainerState {
        static NONE: std::sync::OnceLock<ContainerState> = std::sync::OnceLock::new();
        self.containers.get(name).unwrap_or_else(|| NONE.get_or_init(ContainerState::default))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    CreateSandbox,
    EnsureImage {
        container: String,
    },
    Start {
        container: String,
        attempt: u32,
    },
    /// The stop signal.
    Stop {
        container: String,
    },
    Kill {
        container: String,
    },
    Commit {
        container: String,
    },
    /// The deadline passed: note it as the pod's end.
    Fail {
        reason: String,
        message: String,
    },
    TearDown,
    DeleteObject,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Where the pod stands, as Kubernetes names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

pub fn should_restart(pod: &DesiredPod, is_init: bool, ended: &Ended) -> bool {
    match pod.restart_policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => ended.code != 0,
        RestartPolicy::Always => !is_init || ended.code != 0,
    }
}

/// When a container that ended may begin again.
pub fn restart_at(state: &ContainerState, ended: &Ended) -> Timestamp {
    let delay = match state.streak {
        0 | 1 => SignedDuration::ZERO,
        streak => {
            let factor = 1i32.checked_shl(streak - 2).unwrap_or(i32::MAX);
            BACK_OFF_FIRST.checked_mul(factor).unwrap_or(BACK_OFF_MAX).min(BACK_OFF_MAX)
        }
    };
    ended.finished_at + delay
}

pub fn pod_phase(pod: &DesiredPod, seen: &Observed) -> PodPhase {
    if seen.failed.is_some() {
        return PodPhase::Failed;
    }
    for container in &pod.init_containers {
        match &seen.container(&container.name).phase {
            Phase::Ended(ended) if ended.code == 0 => {}
            Phase::Ended(ended) if !should_restart(pod, true, ended) => return PodPhase::Failed,
            _ => return PodPhase::Pending,
        }
    }
    let mut all_ended = !pod.containers.is_empty();
    let mut any_bad = false;
    let mut any_began = false;
    for container in &pod.containers {
        let state = seen.container(&container.name);
        any_began |= state.is_running() || state.last.is_some() || matches!(state.phase, Phase::Ended(_));
        match &state.phase {
            Phase::Ended(ended) if is_final(pod, seen, state, ended) => any_bad |= ended.code != 0,
            _ => all_ended = false,
        }
    }
    match (all_ended, any_bad, any_began) {
        (true, true, _) => PodPhase::Failed,
        (true, false, _) => PodPhase::Succeeded,
        (false, _, true) => PodPhase::Running,
        (false, _, false) => PodPhase::Pending,
    }
}

/// The container will not run again, and what it wrote is kept if that was asked for.
fn is_final(pod: &DesiredPod, seen: &Observed, state: &ContainerState, ended: &Ended) -> bool {
    let committed = pod.commit.is_none() || ended.code != 0 || state.commit == CommitState::Done;
    committed && (seen.deletion.is_some() || !should_restart(pod, false, ended))
}

/// The next steps. `drain` is how long a ready pod goes on serving after it was taken out of the
/// endpoints, so that whoever read them last can finish.
pub fn plan(pod: &DesiredPod, seen: &Observed, drain: SignedDuration, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if let Some(deletion) = &seen.deletion {
        plan_deletion(pod, seen, deletion, drain, now, &mut plan);
        return plan;
    }
    if !pod.problems.is_empty() {
        return plan;
    }
    let phase = pod_phase(pod, seen);
    if matches!(phase, PodPhase::Succeeded | PodPhase::Failed) {
        // After a deadline containers may still run.
        if plan_stops(pod, seen, SignedDuration::from_secs(pod.grace_seconds), now, &mut plan) {
            plan_tear_down(seen, &mut plan);
        }
        return plan;
    }
    if let (Some(seconds), Some(since)) = (pod.active_deadline_seconds, seen.started_at) {
        let deadline = since + SignedDuration::from_secs(seconds.max(0));
        if now >= deadline {
            plan.act(Action::Fail {
                reason: "DeadlineExceeded".into(),
                message: "Pod was active on the node longer than the specified deadline".into(),
            });
            return plan;
        }
        plan.wake(deadline);
    }
    match &seen.sandbox {
        SandboxState::Absent => {
            plan.act(Action::CreateSandbox);
            return plan;
        }
        SandboxState::Failed(failure) => {
            if now >= failure.retry_at {
                plan.act(Action::CreateSandbox);
            } else {
                plan.wake(failure.retry_at);
            }
            return plan;
        }
        SandboxState::Creating | SandboxState::TearingDown | SandboxState::Gone => return plan,
        SandboxState::Ready { .. } => {}
    }
    for container in &pod.init_containers {
        let state = seen.container(&container.name);
        if !matches!(&state.phase, Phase::Ended(ended) if ended.code == 0) {
            plan_container(pod, container, true, state, now, &mut plan);
            return plan;
        }
    }
    for container in &pod.containers {
        plan_container(pod, container, false, seen.container(&container.name), now, &mut plan);
    }
    plan
}

fn plan_container(
    pod: &DesiredPod,
    container: &DesiredContainer,
    is_init: bool,
    state: &ContainerState,
    now: Timestamp,
    plan: &mut Plan,
) {
    let name = || container.name.clone();
    match &state.phase {
        Phase::Waiting => plan_begin(container, state, state.attempt, now, plan),
        Phase::Starting => {}
        Phase::Blocked(failure) if now >= failure.retry_at => {
            plan_begin(container, state, state.attempt, now, plan)
        }
        Phase::Blocked(failure) => plan.wake(failure.retry_at),
        Phase::Running { .. } => {
            // Asked for by a failed probe.
            if let Some(stop) = &state.stop
                && !stop.killed
            {
                let kill_at = stop.asked_at + SignedDuration::from_secs(pod.grace_seconds);
                if now >= kill_at {
                    plan.act(Action::Kill { container: name() });
                } else {
                    plan.wake(kill_at);
                }
            }
        }
        Phase::Ended(ended) => {
            if ended.code == 0 && pod.commit.is_some() && !is_init && state.commit == CommitState::Wanted {
                plan.act(Action::Commit { container: name() });
            } else if should_restart(pod, is_init, ended) {
                let at = restart_at(state, ended);
                if now >= at {
                    plan_begin(container, state, ended.attempt + 1, now, plan);
                } else {
                    plan.wake(at);
                }
            }
        }
    }
}

fn plan_begin(
    container: &DesiredContainer,
    state: &ContainerState,
    attempt: u32,
    now: Timestamp,
    plan: &mut Plan,
) {
    match &state.image {
        ImageState::Unknown => plan.act(Action::EnsureImage { container: container.name.clone() }),
        ImageState::Pulling => {}
        ImageState::Failed(failure) if now >= failure.retry_at => {
            plan.act(Action::EnsureImage { container: container.name.clone() });
        }
        ImageState::Failed(failure) => plan.wake(failure.retry_at),
        ImageState::Present => plan.act(Action::Start { container: container.name.clone(), attempt }),
    }
}

/// Stops what runs; true when nothing does.
fn plan_stops(
    pod: &DesiredPod,
    seen: &Observed,
    grace: SignedDuration,
    now: Timestamp,
    plan: &mut Plan,
) -> bool {
    let mut quiet = true;
    for container in pod.init_containers.iter().chain(&pod.containers) {
        let state = seen.container(&container.name);
        quiet &= !state.is_busy();
        if !state.is_running() {
            continue;
        }
        quiet = false;
        match &state.stop {
            None => plan.act(Action::Stop { container: container.name.clone() }),
            Some(stop) if !stop.killed => {
                let kill_at = stop.asked_at + grace;
                if now >= kill_at {
                    plan.act(Action::Kill { container: container.name.clone() });
                } else {
                    plan.wake(kill_at);
                }
            }
            Some(_) => {}
        }
    }
    quiet
}

fn plan_tear_down(seen: &Observed, plan: &mut Plan) -> bool {
    match seen.sandbox {
        SandboxState::Ready { .. } | SandboxState::Failed(_) => {
            plan.act(Action::TearDown);
            false
        }
        SandboxState::Creating | SandboxState::TearingDown => false,
        SandboxState::Absent | SandboxState::Gone => true,
    }
}

fn plan_deletion(
    pod: &DesiredPod,
    seen: &Observed,
    deletion: &Deletion,
    drain: SignedDuration,
    now: Timestamp,
    plan: &mut Plan,
) {
    let drain =
        if deletion.was_ready && !deletion.forced { drain.min(deletion.grace) } else { SignedDuration::ZERO };
    let stop_at = deletion.since + drain;
    let anything_runs = seen.containers.values().any(ContainerState::is_running);
    if anything_runs && now < stop_at {
        plan.wake(stop_at);
        return;
    }
    let grace =
        if deletion.forced { SignedDuration::from_secs(2).min(deletion.grace) } else { deletion.grace };
    if !plan_stops(pod, seen, grace, now, plan) || !plan_tear_down(seen, plan) {
        return;
    }
    if !seen.object_deleted {
        plan.act(Action::DeleteObject);
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
