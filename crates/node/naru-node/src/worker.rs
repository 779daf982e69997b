//! One pod's loop: what happened, what to do, do it.
//!
//! Decisions are [`crate::plan`]'s; here are the effects. Everything that takes time runs as a task
//! that reports back as an [`Event`], so the loop always hears of a deletion at once.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use naru_client::EventKind;
use naru_objects::kinds;
use naru_runtime::{ContainerStatus, Sandbox, StartFailureKind};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::image::{ImageError, ImageInfo};
use crate::plan::{
    Action, CommitState, ContainerState, Deletion, Ended, Failure, ImageState, Observed, Phase, SandboxState,
    Stop, from_nanoseconds, plan,
};
use crate::pod::{DesiredContainer, DesiredPod, lower_pod};
use crate::probe::Kind;
use crate::prober::{ProbeReport, Prober};
use crate::record::Record;
use crate::shared::{ContainerView, PodView, Shared};
use crate::{effects, status};

/// Events on their way to a loop that is busy with an API request.
const EVENTS_MAX: usize = 256;
/// A status that the API refused is offered again.
const PUBLISH_RETRY: SignedDuration = SignedDuration::from_secs(1);

/// What the agent tells a worker.
pub(crate) enum Order {
    /// The object as it is now.
    Pod(Arc<Value>),
    /// The object is gone without having been finished: end at once.
    Gone,
}

enum Event {
    Order(Order),
    Sandbox(Result<(Sandbox, String), effects::SandboxFailure>),
    Image(String, Result<ImageInfo, ImageError>),
    Started(String, u32, Result<naru_runtime::Started, StartError>),
    /// `None`: the shim died.
    Shim(Option<BTreeMap<String, ContainerStatus>>),
    Probe(ProbeReport),
    Committed(String, Result<(), ImageError>),
    TornDown,
}

impl From<ProbeReport> for Event {
    fn from(report: ProbeReport) -> Self {
        Event::Probe(report)
    }
}

pub(crate) enum StartError {
    /// The pod's configuration cannot be resolved; it may become possible.
    Blocked(String),
    Runtime(naru_runtime::Error),
}

pub(crate) struct Worker {
    shared: Arc<Shared>,
    directory: PathBuf,
    object: Arc<Value>,
    pod: DesiredPod,
    seen: Observed,
    images: HashMap<String, ImageInfo>,
    sandbox: Option<Sandbox>,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    /// Dropped with the worker: a daemon that drains leaves nothing half-done in the background.
    tasks: JoinSet<()>,
    probes: HashMap<String, AbortHandle>,
    published: Value,
    publish_at: Option<Timestamp>,
    recorded: Record,
}

/// The agent's end of a worker.
pub(crate) struct WorkerHandle {
    events: mpsc::Sender<Event>,
    pub task: tokio::task::JoinHandle<()>,
}

impl WorkerHandle {
    /// Waits when the worker is behind; the agent then looks at the newest object again.
    pub async fn send(&self, order: Order) {
        let _ = self.events.send(Event::Order(order)).await;
    }
}

/// Starts the loop of a pod. `record` is what an earlier daemon left.
pub(crate) fn start(shared: Arc<Shared>, object: Arc<Value>, record: Option<Record>) -> WorkerHandle {
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let sender = events.clone();
    let task = tokio::spawn(async move {
        let pod = lower_pod(&object);
        let directory = shared.pod_directory(&pod.uid);
        let mut worker = Worker {
            published: object["status"].clone(),
            seen: record.as_ref().map(Record::to_observed).unwrap_or_default(),
            recorded: record.unwrap_or_default(),
            shared,
            directory,
            object,
            pod,
            images: HashMap::new(),
            sandbox: None,
            events: sender,
            inbox,
            tasks: JoinSet::new(),
            probes: HashMap::new(),
            publish_at: None,
        };
        worker.adopt().await;
        for problem in &worker.pod.problems {
            worker.event(EventKind::Warning, "Unsupported", problem.message.clone());
        }
        worker.run().await;
    });
    WorkerHandle { events, task }
}

impl Worker {
    /// Finds the pod as an earlier daemon left it.
    async fn adopt(&mut self) {
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
                (_, Some(exit)) => state.end(Ended::from_exit(attempt, exit)),
                (Some(ContainerStatus::Exited(exit)), None) => state.end(Ended::from_exit(attempt, &exit)),
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
            self.start_probes(&name);
        }
        self.note_deletion(now);
    }

    async fn run(&mut self) {
        loop {
            let mut wake_at;
            loop {
                let now = Timestamp::now();
                let decided = plan(&self.pod, &self.seen, crate::DRAIN_DELAY, now);
                wake_at = decided.wake_at;
                if decided.actions.is_empty() {
                    break;
                }
                for action in decided.actions {
                    if self.execute(action, now).await.is_break() {
                        return;
                    }
                }
            }
            self.record();
            self.show();
            self.publish().await;
            let wake_at = match (wake_at, self.publish_at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let sleep = async {
                match wake_at {
                    Some(at) => {
                        let wait = at.duration_since(Timestamp::now());
                        // A millisecond more: a timer that fires early would plan the same again.
                        tokio::time::sleep(
                            Duration::try_from(wait).unwrap_or_default() + Duration::from_millis(1),
                        )
                        .await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.inbox.recv() => {
                    let Some(event) = event else { return };
                    self.handle(event);
                    while let Ok(event) = self.inbox.try_recv() {
                        self.handle(event);
                    }
                }
                () = sleep => {}
            }
            while self.tasks.try_join_next().is_some() {}
        }
    }

    fn container(&self, name: &str) -> Option<&DesiredContainer> {
        self.pod.init_containers.iter().chain(&self.pod.containers).find(|container| container.name == name)
    }

    fn state(&mut self, name: &str) -> &mut ContainerState {
        self.seen.containers.entry(name.to_owned()).or_default()
    }

    /// Runs `work` beside the loop; its result comes back as an event.
    fn spawn(&mut self, work: impl Future<Output = Event> + Send + 'static) -> AbortHandle {
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let event = work.await;
            let _ = events.send(event).await;
        })
    }

    fn event(&self, kind: EventKind, reason: &'static str, message: String) {
        self.shared.event(self.object.clone(), kind, reason, message);
    }

    async fn execute(&mut self, action: Action, now: Timestamp) -> std::ops::ControlFlow<()> {
        match action {
            Action::CreateSandbox => {
                self.seen.sandbox = SandboxState::Creating;
                self.record();
                let work = effects::create_sandbox(self.shared.clone(), self.pod.clone());
                self.spawn(async move { Event::Sandbox(work.await) });
            }
            Action::EnsureImage { container } => {
                let Some(desired) = self.container(&container) else {
                    return std::ops::ControlFlow::Continue(());
                };
                let (image, policy) = (desired.image.clone(), desired.pull_policy);
                self.state(&container).image = ImageState::Pulling;
                let images = self.shared.images.clone();
                self.spawn(async move {
                    let result = images.ensure(&image, policy).await;
                    Event::Image(container, result)
                });
            }
            Action::Start { container, attempt } => self.start_container(&container, attempt),
            Action::Stop { container } => self.stop_container(&container, now),
            Action::Kill { container } => {
                let attempt = self.state(&container).attempt;
                if let Some(stop) = &mut self.state(&container).stop {
                    stop.killed = true;
                }
                self.signal(&container, attempt, nix::libc::SIGKILL);
            }
            Action::Commit { container } => {
                let state = self.state(&container);
                state.commit = CommitState::Running;
                let attempt = state.attempt;
                let Some(id) = self.pod.commit.clone() else { return std::ops::ControlFlow::Continue(()) };
                let directory = self.directory.join("c").join(container_id(&container, attempt));
                let images = self.shared.images.clone();
                self.spawn(async move {
                    Event::Committed(container, effects::commit(images, id, directory).await)
                });
            }
            Action::Fail { reason, message } => {
                self.event(EventKind::Warning, "DeadlineExceeded", message.clone());
                self.seen.failed = Some((reason, message));
            }
            Action::TearDown => {
                let address = match std::mem::replace(&mut self.seen.sandbox, SandboxState::TearingDown) {
                    SandboxState::Ready { address } => Some(address),
                    _ => None,
                };
                let (shared, directory) = (self.shared.clone(), self.directory.clone());
                let (sandbox, uid) = (self.sandbox.take(), self.pod.uid.clone());
                self.spawn(async move {
                    effects::tear_down(&shared, sandbox, &directory, &uid, address.as_deref()).await;
                    Event::TornDown
                });
            }
            Action::DeleteObject => return self.delete_object(now).await,
        }
        std::ops::ControlFlow::Continue(())
    }

    /// The last step: the object, then the files, then the worker.
    async fn delete_object(&mut self, now: Timestamp) -> std::ops::ControlFlow<()> {
        let forced = self.seen.deletion.as_ref().is_some_and(|deletion| deletion.forced);
        if !forced {
            self.publish().await;
            let gone =
                self.shared.client.delete(&kinds::POD, &self.pod.namespace, &self.pod.name, Some(0)).await;
            if let Err(error) = gone {
                tracing::warn!(pod = self.pod.name, %error, "cannot delete a finished pod; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                // The plan asks for it again.
                self.publish_at = Some(now + PUBLISH_RETRY);
                return std::ops::ControlFlow::Continue(());
            }
        }
        self.seen.object_deleted = true;
        self.shared.forget(&self.pod.uid);
        effects::remove_directory(&self.directory).await;
        effects::remove_directory(&self.shared.memory_directory(&self.pod.uid)).await;
        std::ops::ControlFlow::Break(())
    }

    fn start_container(&mut self, name: &str, attempt: u32) {
        let Some(desired) = self.container(name).cloned() else { return };
        let (Some(sandbox), Some(image)) = (self.sandbox.clone(), self.images.get(name).cloned()) else {
            // After a restart of the daemon the image must be looked up again.
            self.state(name).image = ImageState::Unknown;
            return;
        };
        let address = match &self.seen.sandbox {
            SandboxState::Ready { address } => address.clone(),
            _ => return,
        };
        let state = self.state(name);
        if let Phase::Ended(ended) = &state.phase {
            state.last = Some(ended.clone());
        }
        state.attempt = attempt;
        state.phase = Phase::Starting;
        state.commit = CommitState::Wanted;
        state.ready = false;
        state.started = false;
        state.stop = None;
        // Before the order goes out: a daemon that dies now must look for this attempt.
        self.record();
        let work = effects::start_container(effects::StartJob {
            shared: self.shared.clone(),
            sandbox,
            object: self.object.clone(),
            pod: self.pod.clone(),
            container: desired,
            image,
            address,
            attempt,
        });
        let name = name.to_owned();
        self.spawn(async move { Event::Started(name, attempt, work.await) });
    }

    fn stop_container(&mut self, name: &str, now: Timestamp) {
        let signal = self
            .images
            .get(name)
            .and_then(|image| image.stop_signal.as_deref())
            .map_or(nix::libc::SIGTERM, signal_number);
        self.event(EventKind::Normal, "Killing", format!("Stopping container {name}"));
        let state = self.state(name);
        state.stop = Some(Stop { asked_at: now, killed: false });
        let attempt = state.attempt;
        self.signal(name, attempt, signal);
    }

    fn signal(&mut self, name: &str, attempt: u32, signal: i32) {
        let Some(sandbox) = self.sandbox.clone() else { return };
        let id = container_id(name, attempt);
        self.tasks.spawn(async move {
            if let Err(error) = sandbox.signal(&id, signal).await {
                tracing::warn!(container = id, %error, "cannot signal a container");
            }
        });
    }

    /// Follows the shim until it dies.
    fn watch(&mut self, sandbox: &Sandbox) {
        let (sandbox, directory, events) = (sandbox.clone(), self.directory.clone(), self.events.clone());
        self.tasks.spawn(async move {
            loop {
                if let Ok(mut watch) = sandbox.watch().await {
                    while let Ok(Some(state)) = watch.next().await {
                        if events.send(Event::Shim(Some(state))).await.is_err() {
                            return;
                        }
                    }
                }
                if !matches!(Sandbox::adopt(&directory), Ok(Some(_))) {
                    let _ = events.send(Event::Shim(None)).await;
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }

    fn handle(&mut self, event: Event) {
        let now = Timestamp::now();
        match event {
            Event::Order(Order::Pod(object)) => {
                self.pod = lower_pod(&object);
                self.object = object;
                self.note_deletion(now);
            }
            Event::Order(Order::Gone) => {
                let since = self.seen.deletion.as_ref().map_or(now, |deletion| deletion.since);
                let grace = SignedDuration::from_secs(self.pod.grace_seconds);
                self.seen.deletion = Some(Deletion { since, grace, was_ready: false, forced: true });
            }
            Event::Sandbox(Ok((sandbox, address))) => {
                self.watch(&sandbox);
                self.sandbox = Some(sandbox);
                self.seen.sandbox = SandboxState::Ready { address };
                self.seen.sandbox_failures = 0;
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
                let state = self.state(&name);
                state.image = ImageState::Present;
                state.image_failures = 0;
                state.digest = info.digest.clone();
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
                let was_ready = status::is_ready(&self.pod, &self.seen);
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
                self.start_probes(name);
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
                    state.end(Ended::from_exit(attempt, exit));
                    let streak = state.streak;
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
                    self.start_probes(&name);
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
                self.stop_container(name, now);
            }
            _ => {}
        }
    }

    fn start_probes(&mut self, name: &str) {
        let Some(desired) = self.container(name).cloned() else { return };
        let SandboxState::Ready { address } = self.seen.sandbox.clone() else { return };
        let Some(sandbox) = self.sandbox.clone() else { return };
        let state = self.state(name);
        if desired.startup.is_none() {
            state.started = true;
        }
        if desired.readiness.is_none() && state.started {
            state.ready = true;
        }
        if desired.startup.is_none() && desired.readiness.is_none() && desired.liveness.is_none() {
            return;
        }
        let prober = Prober {
            started: state.started,
            ready: state.ready,
            attempt: state.attempt,
            id: container_id(name, state.attempt),
            shared: self.shared.clone(),
            sandbox,
            container: desired,
            address,
            events: self.events.clone(),
        };
        let task = self.tasks.spawn(prober.run());
        if let Some(older) = self.probes.insert(name.to_owned(), task) {
            older.abort();
        }
    }

    fn stop_probes(&mut self, name: &str) {
        if let Some(task) = self.probes.remove(name) {
            task.abort();
        }
    }

    fn record(&mut self) {
        let record = Record::new(&self.pod.uid, &self.pod.namespace, &self.pod.name, &self.seen);
        if record == self.recorded || self.seen.object_deleted {
            return;
        }
        if let Err(error) = record.save(&self.directory) {
            tracing::warn!(pod = self.pod.name, %error, "cannot write down the state of a pod");
            return;
        }
        self.recorded = record;
    }

    /// Lets logs, exec and statistics see the pod.
    fn show(&self) {
        let containers = self
            .pod
            .init_containers
            .iter()
            .chain(&self.pod.containers)
            .map(|container| {
                let state = self.seen.container(&container.name);
                ContainerView {
                    name: container.name.clone(),
                    attempt: state.attempt,
                    running: state.is_running(),
                    alive: matches!(state.phase, Phase::Running { .. } | Phase::Starting),
                    began: !matches!(state.phase, Phase::Waiting | Phase::Blocked(_)) || state.last.is_some(),
                }
            })
            .collect();
        self.shared.show(PodView {
            uid: self.pod.uid.clone(),
            namespace: self.pod.namespace.clone(),
            name: self.pod.name.clone(),
            directory: self.directory.clone(),
            sandbox: self.sandbox.clone(),
            main_container: self.pod.containers.first().map(|it| it.name.clone()).unwrap_or_default(),
            containers,
        });
    }

    async fn publish(&mut self) {
        let now = Timestamp::now();
        let wanted = status::pod_status(&self.pod, &self.seen, &self.published, &self.shared.host_ip, now);
        let forced = self.seen.deletion.as_ref().is_some_and(|deletion| deletion.forced);
        if wanted == self.published || forced {
            self.publish_at = None;
            return;
        }
        let client = &self.shared.client;
        match client.patch_status(&kinds::POD, &self.pod.namespace, &self.pod.name, &wanted).await {
            Ok(_) => {
                self.published = wanted;
                self.publish_at = None;
            }
            // Deleted meanwhile; the agent will say so.
            Err(error) if error.is_not_found() => self.publish_at = None,
            Err(error) => {
                tracing::warn!(pod = self.pod.name, %error, "cannot write a pod's status; trying again");
                self.publish_at = Some(now + PUBLISH_RETRY);
            }
        }
    }
}

/// The shim knows containers by name and attempt.
pub(crate) fn container_id(name: &str, attempt: u32) -> String {
    format!("{name}-{attempt}")
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

/// `SIGQUIT`, `QUIT` or `3`.
fn signal_number(name: &str) -> i32 {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse()
        .ok()
        .or_else(|| full.parse::<nix::sys::signal::Signal>().ok().map(|it| it as i32))
        .unwrap_or(nix::libc::SIGTERM)
}
