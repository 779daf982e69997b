//! What a worker hears of: an earlier daemon's pod, the agent, the shim, probes, finished work.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use naru_client::EventKind;
use naru_runtime::{ContainerStatus, Sandbox, StartFailureKind};

use super::{Event, Filling, Order, StartError, Worker, container_id};
use crate::pod::{DesiredPod, FileSource, Volume, lower_pod};
use crate::probe::Kind;
use crate::prober::ProbeReport;
use crate::state::{
    CommitState, Deletion, Ended, Failure, ImageState, Phase, SandboxState, from_nanoseconds,
};
use crate::{effects, last_words, status};

/// Volumes that could not be written again keep what they show and are tried again.
const FILL_RETRY: SignedDuration = SignedDuration::from_secs(10);

impl Worker {
    /// Finds the pod as an earlier daemon left it.
    pub(super) async fn adopt(&mut self) {
        let now = Timestamp::now();
        self.seen.started_at.get_or_insert(now);
        if self.recorded.uid.is_empty() || self.recorded.gone {
            return;
        }
        let found = Sandbox::adopt(&self.directory).unwrap_or_else(|error| {
            tracing::warn!(pod = self.pod.name, %error, "cannot read the sandbox of a pod");
            None
        });
        let state = match &found {
            Some(sandbox) => sandbox.containers().await.ok(),
            None => None,
        };
        let alive = match (found, state, self.recorded.address.clone()) {
            (Some(sandbox), Some(state), Some(address)) => {
                self.seen.sandbox = SandboxState::Ready { address };
                self.watch(&sandbox);
                self.sandbox = Some(sandbox);
                // What changed while nobody was there.
                self.fill_at = Some(now);
                self.follow_sources();
                Some(state)
            }
            _ => {
                effects::destroy_remains(&self.directory).await;
                if let Some(address) = &self.recorded.address {
                    self.shared.release(address);
                }
                None
            }
        };
        let exits = Sandbox::recorded_exits(&self.directory);
        let begun: Vec<(String, u32)> = self
            .recorded
            .containers
            .iter()
            .filter(|(_, record)| record.begun)
            .map(|(name, record)| (name.clone(), record.attempt))
            .collect();
        for (name, attempt) in begun {
            let id = container_id(&name, attempt);
            let status = alive.as_ref().and_then(|state| state.get(&id)).cloned();
            let Some(state) = self.seen.containers.get_mut(&name) else { continue };
            match (status, exits.get(&id)) {
                (_, Some(exit)) => {
                    let exit = *exit;
                    self.note_exit(&name, attempt, &exit);
                }
                (Some(ContainerStatus::Exited(exit)), None) => self.note_exit(&name, attempt, &exit),
                (Some(ContainerStatus::Running(started)), None) => {
                    state.phase = Phase::Running { since: from_nanoseconds(started.started_at_nanoseconds) };
                    tracing::info!(pod = self.pod.name, container = name, "found running");
                }
                // The order reached the shim; its answer is on the way.
                (Some(ContainerStatus::Starting), None) => state.phase = Phase::Starting,
                (None, None) if alive.is_some() => state.phase = Phase::Waiting,
                (None, None) => state.end(lost(attempt, now)),
            }
        }
        let running: Vec<String> = self
            .seen
            .containers
            .iter()
            .filter(|(_, state)| state.is_running())
            .map(|(name, _)| name.clone())
            .collect();
        for name in running {
            self.begin_life(&name);
        }
        self.note_deletion(now);
    }

    /// The object changed: what of it changes what runs?
    fn note_change(&mut self, object: std::sync::Arc<serde_json::Value>, now: Timestamp) {
        let before = std::mem::replace(&mut self.pod, lower_pod(&object));
        let metadata = |object: &serde_json::Value| {
            (object["metadata"]["labels"].clone(), object["metadata"]["annotations"].clone())
        };
        let renamed = metadata(&object) != metadata(&self.object);
        self.object = object;
        if renamed && shows_own_fields(&self.pod) {
            self.fill();
        }
        let images: Vec<(String, String)> =
            self.pod.all().map(|it| (it.name.clone(), it.image.clone())).collect();
        for (name, image) in images {
            let changed = before.container(&name).is_some_and(|it| it.image != image);
            let state = self.state(&name);
            if let Phase::Blocked(failure) = &mut state.phase {
                failure.retry_at = now;
            }
            if changed {
                state.image = ImageState::Unknown;
                state.image_failures = 0;
                if state.is_running() && state.stop.is_none() {
                    state.replace = true;
                    let message = format!("Container {name} definition changed, will be restarted");
                    self.event(EventKind::Normal, "Killing", message);
                    self.stop_container(&name, None, now);
                }
            }
        }
        self.resize(now);
        self.note_deletion(now);
    }

    fn note_exit(&mut self, name: &str, attempt: u32, exit: &naru_runtime::Exit) {
        let mut ended = Ended::from_exit(attempt, exit);
        if let Some(container) = self.container(name) {
            ended.message = last_words::of(&self.directory, &self.pod, container, attempt, exit.code);
        }
        self.state(name).end(ended);
    }

    fn note_post_start(&mut self, name: &str, attempt: u32, result: Result<(), String>, now: Timestamp) {
        let state = self.state(name);
        if state.attempt != attempt || !state.is_running() {
            return;
        }
        match result {
            Ok(()) => {
                state.hooked = true;
                self.start_probes(name);
            }
            Err(message) => {
                self.event(
                    EventKind::Warning,
                    "FailedPostStartHook",
                    format!("PostStartHook failed: {message}"),
                );
                if self.state(name).stop.is_none() {
                    self.stop_container(name, None, now);
                }
            }
        }
    }

    fn note_pre_stop(&mut self, name: &str, attempt: u32, result: Result<(), String>, now: Timestamp) {
        if let Err(message) = result {
            self.event(EventKind::Warning, "FailedPreStopHook", format!("PreStopHook failed: {message}"));
        }
        let state = self.state(name);
        if state.attempt != attempt || !state.is_running() {
            return;
        }
        if let Some(stop) = &mut state.stop {
            stop.signalled_at = Some(now);
            self.signal_stop(name, attempt);
        }
    }

    pub(super) fn handle(&mut self, event: Event) {
        let now = Timestamp::now();
        match event {
            Event::Order(Order::Pod(object)) => self.note_change(object, now),
            Event::Order(Order::Gone) => {
                let since = self.seen.deletion.as_ref().map_or(now, |deletion| deletion.since);
                let grace = SignedDuration::from_secs(self.pod.grace_seconds);
                self.seen.deletion = Some(Deletion { since, grace, was_ready: false, forced: true });
            }
            Event::Order(Order::Evict(message)) => {
                if self.seen.failed.is_none() && self.seen.deletion.is_none() {
                    self.event(EventKind::Warning, "Evicted", message.clone());
                    self.seen.failed = Some(("Evicted".to_owned(), message));
                    // What it holds is needed now.
                    self.seen.end_grace = Some(SignedDuration::ZERO);
                }
            }
            Event::Sandbox(Ok(made)) => {
                self.watch(&made.sandbox);
                self.sandbox = Some(made.sandbox);
                self.seen.sandbox = SandboxState::Ready { address: made.address };
                self.seen.sandbox_failures = 0;
                self.fill_at = made.renew_at;
                self.follow_sources();
            }
            Event::Sandbox(Err((reason, message))) => {
                let before = self.seen.sandbox_failures;
                self.seen.sandbox_failures += 1;
                self.event(EventKind::Warning, reason, message.clone());
                self.seen.sandbox = SandboxState::Failed(Failure::new(reason, message, before, now));
            }
            Event::Image(name, Ok(info)) => {
                let image = self.container(&name).map(|it| it.image.clone()).unwrap_or_default();
                self.event(
                    EventKind::Normal,
                    "Pulled",
                    format!("Container image \"{image}\" is present on the machine"),
                );
                for warning in &info.warnings {
                    self.event(EventKind::Warning, "PolicyViolation", warning.clone());
                }
                let state = self.state(&name);
                state.image = ImageState::Present;
                state.image_failures = 0;
                state.digest = info.digest.clone();
                state.stop_signal = info.stop_signal.clone();
                self.images.insert(name, info);
            }
            Event::Image(name, Err(error)) => {
                self.event(EventKind::Warning, "Failed", error.to_string());
                let state = self.state(&name);
                let before = state.image_failures;
                state.image_failures += 1;
                state.image =
                    ImageState::Failed(Failure::new(error.reason(), error.to_string(), before, now));
            }
            Event::Started(name, attempt, result) => self.note_start(&name, attempt, result, now),
            Event::Shim(Some(states)) => self.note_states(&states),
            Event::Shim(None) => self.note_loss(now),
            Event::Probe(report) => self.note_probe(report, now),
            Event::PostStart(name, attempt, result) => self.note_post_start(&name, attempt, result, now),
            Event::PreStop(name, attempt, result) => self.note_pre_stop(&name, attempt, result, now),
            Event::Sources => self.fill(),
            Event::Filled(result) => {
                let again = self.filling == Filling::Again;
                self.filling = Filling::Idle;
                match result {
                    Ok(renew_at) => self.fill_at = renew_at,
                    Err(message) => {
                        self.event(EventKind::Warning, "FailedMount", message);
                        self.fill_at = Some(now + FILL_RETRY);
                    }
                }
                if again {
                    self.fill();
                }
            }
            Event::Committed(name, result) => {
                let state = self.state(&name);
                state.commit = CommitState::Done;
                if let Err(error) = result {
                    let message = error.to_string();
                    if let Phase::Ended(ended) = &mut self.state(&name).phase {
                        ended.code = 128;
                        ended.reason = "CommitFailed".into();
                        ended.message = message.clone();
                    }
                    self.event(EventKind::Warning, "CommitFailed", message);
                }
            }
            Event::TornDown => self.seen.sandbox = SandboxState::Gone,
        }
    }

    /// The object carries a deletion time: from now on the pod takes no new requests.
    fn note_deletion(&mut self, now: Timestamp) {
        let metadata = &self.object["metadata"];
        if metadata["deletionTimestamp"].is_null() {
            return;
        }
        let seconds =
            metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(self.pod.grace_seconds).max(0);
        let grace = SignedDuration::from_secs(seconds);
        match &mut self.seen.deletion {
            // Asked again with less patience.
            Some(deletion) => deletion.grace = deletion.grace.min(grace),
            None => {
                // Who owns a pod with several lives has stopped it if he wanted time.
                let was_ready =
                    self.pod.life.is_none() && status::is_ready(&self.pod, &self.seen, &self.object);
                self.seen.deletion = Some(Deletion { since: now, grace, was_ready, forced: false });
            }
        }
    }

    fn note_start(
        &mut self,
        name: &str,
        attempt: u32,
        result: Result<naru_runtime::Started, StartError>,
        now: Timestamp,
    ) {
        let state = self.state(name);
        if state.attempt != attempt || state.phase != Phase::Starting {
            return;
        }
        match result {
            Ok(started) => {
                state.blocked_times = 0;
                state.phase = Phase::Running { since: from_nanoseconds(started.started_at_nanoseconds) };
                self.event(EventKind::Normal, "Created", format!("Created container: {name}"));
                self.event(EventKind::Normal, "Started", format!("Started container {name}"));
                self.begin_life(name);
            }
            Err(StartError::Blocked(message)) => {
                let failure =
                    Failure::new("CreateContainerConfigError", message.clone(), state.blocked_times, now);
                state.blocked_times += 1;
                state.phase = Phase::Blocked(failure);
                self.event(EventKind::Warning, "Failed", format!("Error: {message}"));
            }
            Err(StartError::Runtime(error)) => {
                let (code, message) = match &error {
                    naru_runtime::Error::Start { source, .. } => {
                        let code = match source.kind {
                            StartFailureKind::NotFound => 127,
                            StartFailureKind::NotExecutable => 126,
                            _ => 128,
                        };
                        (code, source.message.clone())
                    }
                    other => (128, other.to_string()),
                };
                state.end(Ended {
                    attempt,
                    code,
                    signal: None,
                    reason: "StartError".into(),
                    message: message.clone(),
                    started_at: None,
                    finished_at: now,
                });
                self.event(
                    EventKind::Warning,
                    "Failed",
                    format!("Error: failed to start container \"{name}\": {message}"),
                );
            }
        }
    }

    fn note_states(&mut self, states: &BTreeMap<String, ContainerStatus>) {
        let names: Vec<String> = self.seen.containers.keys().cloned().collect();
        for name in names {
            let state = self.state(&name);
            let attempt = state.attempt;
            if !matches!(state.phase, Phase::Starting | Phase::Running { .. }) {
                continue;
            }
            match states.get(&container_id(&name, attempt)) {
                Some(ContainerStatus::Exited(exit)) => {
                    self.note_exit(&name, attempt, exit);
                    let streak = self.state(&name).streak;
                    self.stop_probes(&name);
                    if exit.code != 0 && streak > 1 {
                        self.event(
                            EventKind::Warning,
                            "BackOff",
                            format!("Back-off restarting failed container {name} in pod {}", self.pod.name),
                        );
                    }
                }
                // A start whose answer an earlier daemon would have read.
                Some(ContainerStatus::Running(started))
                    if state.phase == Phase::Starting && started.pid > 0 =>
                {
                    state.phase = Phase::Running { since: from_nanoseconds(started.started_at_nanoseconds) };
                    self.begin_life(&name);
                }
                _ => {}
            }
        }
    }

    /// The shim is dead, and with it the pod's namespaces: what ran has ended.
    fn note_loss(&mut self, now: Timestamp) {
        if !matches!(self.seen.sandbox, SandboxState::Ready { .. }) {
            return;
        }
        tracing::warn!(pod = self.pod.name, "the pod's shim died; its containers start over");
        let exits = Sandbox::recorded_exits(&self.directory);
        let names: Vec<String> = self.seen.containers.keys().cloned().collect();
        for name in names {
            self.stop_probes(&name);
            let state = self.state(&name);
            let attempt = state.attempt;
            if matches!(state.phase, Phase::Starting | Phase::Running { .. }) {
                state.end(match exits.get(&container_id(&name, attempt)) {
                    Some(exit) => Ended::from_exit(attempt, exit),
                    None => lost(attempt, now),
                });
            }
        }
        self.event(
            EventKind::Normal,
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.".into(),
        );
        self.sandbox = None;
        if let SandboxState::Ready { address } = std::mem::take(&mut self.seen.sandbox) {
            self.shared.release(&address);
        }
    }

    fn note_probe(&mut self, report: ProbeReport, now: Timestamp) {
        let name = report.container.as_str();
        let state = self.state(name);
        if state.attempt != report.attempt || !state.is_running() {
            return;
        }
        if !report.success {
            let message = format!("{} probe failed: {}", report.kind.name(), report.message);
            self.event(EventKind::Warning, "Unhealthy", message);
        }
        let has_readiness = self.container(name).is_some_and(|container| container.readiness.is_some());
        let state = self.state(name);
        match (report.kind, report.verdict) {
            (Kind::Startup, Some(true)) => {
                state.started = true;
                // Without a readiness probe, up is ready.
                state.ready |= !has_readiness;
            }
            (Kind::Readiness, Some(ready)) => state.ready = ready,
            (Kind::Liveness | Kind::Startup, Some(false)) if state.stop.is_none() => {
                state.ready = false;
                let kind = report.kind.name().to_lowercase();
                let message = format!("Container {name} failed {kind} probe, will be restarted");
                self.event(EventKind::Normal, "Killing", message);
                let container = self.container(name);
                let probe = container.and_then(|it| match report.kind {
                    Kind::Startup => it.startup.as_ref(),
                    _ => it.liveness.as_ref(),
                });
                let grace = probe.and_then(|it| it.grace_seconds).map(SignedDuration::from_secs);
                self.stop_container(name, grace, now);
            }
            _ => {}
        }
    }
}

/// True when a volume shows labels or annotations.
fn shows_own_fields(pod: &DesiredPod) -> bool {
    pod.volumes.values().any(|volume| match volume {
        Volume::Files { sources, .. } => sources.iter().any(|it| matches!(it, FileSource::Downward(_))),
        _ => false,
    })
}

/// The container's end was not seen: the machine or the shim went down with it.
fn lost(attempt: u32, now: Timestamp) -> Ended {
    Ended {
        attempt,
        code: 137,
        signal: None,
        reason: "ContainerStatusUnknown".into(),
        message: "The container ended when nobody was there to see how".into(),
        started_at: None,
        finished_at: now,
    }
}
