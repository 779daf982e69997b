//! What is known of a pod: of its sandbox, its containers, its end.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use naru_runtime::Exit;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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

/// A stop that was asked for: by a probe, by a change or by the pod's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    pub asked_at: Timestamp,
    /// Instead of the pod's.
    pub grace: Option<SignedDuration>,
    /// There is a preStop hook; the signal comes when it has returned.
    pub hook: bool,
    pub signalled_at: Option<Timestamp>,
    pub killed: bool,
}

impl Stop {
    /// When patience ends. A hook that took all the time leaves the program a moment after the signal.
    pub fn kill_at(&self, deadline: Timestamp) -> Timestamp {
        match self.signalled_at {
            None => deadline + AFTER_HOOK,
            Some(at) if self.hook => deadline.max((at + AFTER_HOOK).min(deadline + AFTER_HOOK)),
            Some(_) => deadline,
        }
    }
}

/// kubelet's minimum between the signal and the kill.
const AFTER_HOOK: SignedDuration = SignedDuration::from_secs(2);

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
    /// The postStart hook has returned, or there is none.
    pub hooked: bool,
    /// Begin again after this end, whatever the restart policy: the specification changed.
    pub replace: bool,
    /// What the attempt runs: its image, and its resources as they hold now.
    pub image_name: String,
    pub resources: Value,
    pub commit: CommitState,
    /// The first attempt of the pod's present life.
    pub first_attempt: u32,
    /// Failures in a row, for the time until the next try.
    pub image_failures: u32,
    pub blocked_times: u32,
}

impl ContainerState {
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub fn is_busy(&self) -> bool {
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
        self.hooked = false;
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
    /// The life that began last, of a pod that has several.
    pub run: u32,
    pub deletion: Option<Deletion>,
    /// When the node first saw the pod.
    pub started_at: Option<Timestamp>,
    /// The pod's end was decided and is final: `DeadlineExceeded`, `Evicted`.
    pub failed: Option<(String, String)>,
    /// How long containers have after that, when not the pod's usual time.
    pub end_grace: Option<SignedDuration>,
    /// A change of resources that cannot be made now.
    pub resize: Option<Failure>,
    /// The delete request for the object was sent.
    pub object_deleted: bool,
}

impl Observed {
    pub fn container(&self, name: &str) -> &ContainerState {
        static NONE: std::sync::OnceLock<ContainerState> = std::sync::OnceLock::new();
        self.containers.get(name).unwrap_or_else(|| NONE.get_or_init(ContainerState::default))
    }
}
