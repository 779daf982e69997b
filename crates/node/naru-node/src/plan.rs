//! What to do about a pod next. Pure: the same pod, state and time give the same answer.
//!
//! The worker calls [`plan`] after every event, executes the actions, and sleeps until `wake_at`.

use jiff::{SignedDuration, Timestamp};

use crate::pod::{DesiredContainer, DesiredPod, Life, RestartPolicy, Role};
use crate::state::{CommitState, ContainerState, Deletion, Ended, ImageState, Observed, Phase, SandboxState};

/// Kubernetes' restart back-off: at once, then 10 s, 20 s, 40 s ... 5 min.
const BACK_OFF_FIRST: SignedDuration = SignedDuration::from_secs(10);
const BACK_OFF_MAX: SignedDuration = SignedDuration::from_secs(300);
/// And Docker's, for a pod with several lives.
const LIFE_BACK_OFF_FIRST: SignedDuration = SignedDuration::from_millis(100);
const LIFE_BACK_OFF_MAX: SignedDuration = SignedDuration::from_secs(60);
const LIFE_BACK_OFF_RESET: SignedDuration = SignedDuration::from_secs(10);

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
    /// The next life of a pod that has several.
    Begin,
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

pub fn should_restart(
    pod: &DesiredPod,
    container: &DesiredContainer,
    state: &ContainerState,
    ended: &Ended,
) -> bool {
    if let (Some(life), Role::Main) = (&pod.life, container.role) {
        // A program that cannot be started is told to who wanted it, and not tried for ever.
        let tried = ended.reason == "StartError";
        return !tried && life.restarts(ended.code, ended.attempt.saturating_sub(state.first_attempt));
    }
    match (container.role, pod.restart_policy) {
        (Role::Ephemeral, _) => false,
        (Role::Sidecar, _) => true,
        (_, RestartPolicy::Never) => false,
        (Role::Init, _) | (_, RestartPolicy::OnFailure) => ended.code != 0,
        (_, RestartPolicy::Always) => true,
    }
}

/// When a container that ended may begin again.
pub fn restart_at(pod: &DesiredPod, state: &ContainerState, ended: &Ended) -> Timestamp {
    if pod.life.is_some() {
        // Docker's: a tenth of a second, doubled up to a minute; one that held on for a while begins anew.
        let ran = ended.started_at.map(|since| ended.finished_at.duration_since(since));
        let held = ran.is_some_and(|ran| ran >= LIFE_BACK_OFF_RESET);
        let doublings = if held { 0 } else { state.streak.saturating_sub(1).min(16) };
        let delay = LIFE_BACK_OFF_FIRST.checked_mul(1 << doublings).unwrap_or(LIFE_BACK_OFF_MAX);
        return ended.finished_at + delay.min(LIFE_BACK_OFF_MAX);
    }
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
    for container in pod.init_containers.iter().filter(|it| it.role == Role::Init) {
        match &seen.container(&container.name).phase {
            Phase::Ended(ended) if ended.code == 0 => {}
            Phase::Ended(ended)
                if !should_restart(pod, container, seen.container(&container.name), ended) =>
            {
                return PodPhase::Failed;
            }
            _ => return PodPhase::Pending,
        }
    }
    let sidecars_run = pod.sidecars().any(|it| {
        let state = seen.container(&it.name);
        state.is_running() || state.is_busy()
    });
    match main_outcome(pod, seen) {
        Some(_) if sidecars_run => PodPhase::Running,
        Some(Outcome::Bad) => PodPhase::Failed,
        Some(Outcome::Good) => PodPhase::Succeeded,
        None if any_began(pod, seen) => PodPhase::Running,
        None => PodPhase::Pending,
    }
}

/// How the work of a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Good,
    Bad,
}

/// Present when every main container has ended for good.
pub fn main_outcome(pod: &DesiredPod, seen: &Observed) -> Option<Outcome> {
    let mut outcome = Outcome::Good;
    for container in &pod.containers {
        let state = seen.container(&container.name);
        match &state.phase {
            Phase::Ended(ended) if is_final(pod, seen, container, state, ended) => {
                if ended.code != 0 {
                    outcome = Outcome::Bad;
                }
            }
            _ => return None,
        }
    }
    (!pod.containers.is_empty()).then_some(outcome)
}

fn any_began(pod: &DesiredPod, seen: &Observed) -> bool {
    pod.containers.iter().any(|container| {
        let state = seen.container(&container.name);
        state.is_running() || state.last.is_some() || matches!(state.phase, Phase::Ended(_))
    })
}

/// Every init container has succeeded and every sidecar has started.
pub fn is_initialized(pod: &DesiredPod, seen: &Observed) -> bool {
    pod.init_containers.iter().all(|container| {
        let state = seen.container(&container.name);
        match container.role {
            Role::Sidecar => state.started || any_began(pod, seen),
            _ => matches!(&state.phase, Phase::Ended(ended) if ended.code == 0),
        }
    })
}

/// The container will not run again, and what it wrote is kept if that was asked for.
fn is_final(
    pod: &DesiredPod,
    seen: &Observed,
    container: &DesiredContainer,
    state: &ContainerState,
    ended: &Ended,
) -> bool {
    let committed = pod.commit.is_none() || ended.code != 0 || state.commit == CommitState::Done;
    let again = state.replace || should_restart(pod, container, state, ended);
    committed && (seen.deletion.is_some() || !again)
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
    if let Some(life) = &pod.life
        && plan_life(pod, life, seen, now, &mut plan)
    {
        return plan;
    }
    let phase = pod_phase(pod, seen);
    if matches!(phase, PodPhase::Succeeded | PodPhase::Failed) || main_outcome(pod, seen).is_some() {
        // Sidecars go when the work is done; after a deadline or an eviction everything still runs.
        let grace = seen.end_grace.unwrap_or(SignedDuration::from_secs(pod.grace_seconds));
        if plan_stops(pod, seen, grace, None, now, &mut plan) {
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
    for container in &pod.ephemeral_containers {
        plan_container(pod, container, seen.container(&container.name), now, &mut plan);
    }
    for container in &pod.init_containers {
        let state = seen.container(&container.name);
        match container.role {
            Role::Sidecar => {
                plan_container(pod, container, state, now, &mut plan);
                // One that falls over later starts again beside the others.
                if !state.started && !any_began(pod, seen) {
                    return plan;
                }
            }
            _ if matches!(&state.phase, Phase::Ended(ended) if ended.code == 0) => {}
            _ => {
                plan_container(pod, container, state, now, &mut plan);
                return plan;
            }
        }
    }
    for container in &pod.containers {
        plan_container(pod, container, seen.container(&container.name), now, &mut plan);
    }
    plan
}

/// The turns of a pod with several lives; false while the present one just goes on.
fn plan_life(pod: &DesiredPod, life: &Life, seen: &Observed, now: Timestamp, plan: &mut Plan) -> bool {
    let next = life.run > seen.run;
    let over = life.stopped || seen.failed.is_some() || main_outcome(pod, seen).is_some();
    if seen.run > 0 && (over || next) {
        let grace = SignedDuration::from_secs(life.grace.unwrap_or(pod.grace_seconds));
        let grace = seen.end_grace.unwrap_or(grace);
        if !plan_stops(pod, seen, grace, None, now, plan) || !plan_tear_down(seen, plan) {
            return true;
        }
    }
    if next && !life.stopped {
        plan.act(Action::Begin);
        return true;
    }
    over || seen.run == 0
}

fn plan_container(
    pod: &DesiredPod,
    container: &DesiredContainer,
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
            // Asked for by a failed probe or a change.
            if let Some(stop) = &state.stop
                && !stop.killed
            {
                let grace = stop.grace.unwrap_or(SignedDuration::from_secs(pod.grace_seconds));
                let kill_at = stop.kill_at(stop.asked_at + grace);
                if now >= kill_at {
                    plan.act(Action::Kill { container: name() });
                } else {
                    plan.wake(kill_at);
                }
            }
        }
        Phase::Ended(ended) => {
            let commits = pod.commit.is_some() && container.role == Role::Main;
            if ended.code == 0 && commits && state.commit == CommitState::Wanted {
                plan.act(Action::Commit { container: name() });
            } else if state.replace {
                plan_begin(container, state, ended.attempt + 1, now, plan);
            } else if should_restart(pod, container, state, ended) {
                let at = restart_at(pod, state, ended);
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

/// Stops what runs, sidecars last and in reverse; true when nothing does. `until` is the end of the whole
/// pod's time, which sidecars share with the others.
fn plan_stops(
    pod: &DesiredPod,
    seen: &Observed,
    grace: SignedDuration,
    until: Option<Timestamp>,
    now: Timestamp,
    plan: &mut Plan,
) -> bool {
    let mut quiet = true;
    for container in pod.all().filter(|container| container.role != Role::Sidecar) {
        quiet &= plan_stop(container, seen, |asked_at| asked_at + grace, now, plan);
    }
    for container in pod.sidecars().rev() {
        if !quiet {
            return false;
        }
        let deadline = |asked_at: Timestamp| until.unwrap_or(asked_at + grace).max(asked_at);
        quiet &= plan_stop(container, seen, deadline, now, plan);
    }
    quiet
}

fn plan_stop(
    container: &DesiredContainer,
    seen: &Observed,
    deadline: impl Fn(Timestamp) -> Timestamp,
    now: Timestamp,
    plan: &mut Plan,
) -> bool {
    let state = seen.container(&container.name);
    if !state.is_running() {
        return !state.is_busy();
    }
    match &state.stop {
        None => plan.act(Action::Stop { container: container.name.clone() }),
        Some(stop) if !stop.killed => {
            let kill_at = stop.kill_at(deadline(stop.asked_at));
            if now >= kill_at {
                plan.act(Action::Kill { container: container.name.clone() });
            } else {
                plan.wake(kill_at);
            }
        }
        Some(_) => {}
    }
    false
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
    let until = stop_at + grace;
    if !plan_stops(pod, seen, grace, Some(until), now, plan) || !plan_tear_down(seen, plan) {
        return;
    }
    if !seen.object_deleted {
        plan.act(Action::DeleteObject);
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
