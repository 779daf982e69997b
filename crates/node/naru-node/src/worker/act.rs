//! What a worker does: the actions of a plan, and the watchers that report back.

use std::ops::ControlFlow;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use naru_client::EventKind;
use naru_objects::kinds;
use naru_runtime::Sandbox;

use super::{Event, Filling, PUBLISH_RETRY, Worker, container_id};
use crate::effects;
use crate::plan::Action;
use crate::prober::Prober;
use crate::state::{CommitState, ImageState, Phase, SandboxState, Stop};
use crate::{provide, pull_secrets};

/// A hook has no limit in Kubernetes; one that hangs for this long has failed.
const POST_START_TIME_MAX: Duration = Duration::from_secs(24 * 3600);

impl Worker {
    pub(super) async fn execute(&mut self, action: Action, now: Timestamp) -> ControlFlow<()> {
        match action {
            Action::CreateSandbox => {
                self.seen.sandbox = SandboxState::Creating;
                self.record();
                let work =
                    effects::create_sandbox(self.shared.clone(), self.pod.clone(), self.object.clone());
                self.spawn(async move { Event::Sandbox(work.await) });
            }
            Action::EnsureImage { container } => {
                let Some(desired) = self.container(&container) else {
                    return ControlFlow::Continue(());
                };
                let (image, policy) = (desired.image.clone(), desired.pull_policy);
                self.state(&container).image = ImageState::Pulling;
                let (shared, pod) = (self.shared.clone(), self.pod.clone());
                self.spawn(async move {
                    let credentials = pull_secrets::of(&shared.client, &pod).await;
                    let namespace = Some(pod.namespace.as_str());
                    let result = shared.images.ensure(namespace, &image, policy, &credentials).await;
                    Event::Image(container, result)
                });
            }
            Action::Start { container, attempt } => self.start_container(&container, attempt),
            Action::Stop { container } => {
                let deletion = self.seen.deletion.as_ref().map(|deletion| deletion.grace);
                self.stop_container(&container, deletion.or(self.seen.end_grace), now);
            }
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
                let Some(id) = self.pod.commit.clone() else { return ControlFlow::Continue(()) };
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
                let keeps = self.pod.life.is_some();
                self.spawn(async move {
                    effects::tear_down(&shared, sandbox, &directory, &uid, address.as_deref(), keeps).await;
                    Event::TornDown
                });
            }
            Action::Begin => self.begin_next(now),
            Action::DeleteObject => return self.delete_object(now).await,
        }
        ControlFlow::Continue(())
    }

    /// The last step: the object, then the files, then the worker.
    async fn delete_object(&mut self, now: Timestamp) -> ControlFlow<()> {
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
                return ControlFlow::Continue(());
            }
        }
        self.seen.object_deleted = true;
        self.shared.forget(&self.pod.uid);
        effects::remove_directory(&self.directory).await;
        effects::remove_directory(&self.shared.memory_directory(&self.pod.uid)).await;
        ControlFlow::Break(())
    }

    /// Forgets how the last life of the pod went, but for what a restart count tells.
    fn begin_next(&mut self, now: Timestamp) {
        let Some(life) = &self.pod.life else { return };
        self.seen.run = life.run;
        self.seen.started_at = Some(now);
        self.seen.failed = None;
        self.seen.end_grace = None;
        self.seen.sandbox = SandboxState::Absent;
        self.seen.sandbox_failures = 0;
        for container in &self.pod.containers {
            let state = self.seen.containers.entry(container.name.clone()).or_default();
            if let Phase::Ended(ended) = &state.phase {
                state.attempt = ended.attempt + 1;
                state.last = Some(ended.clone());
            }
            state.first_attempt = state.attempt;
            state.phase = Phase::Waiting;
            state.image = ImageState::Unknown;
            (state.streak, state.image_failures, state.blocked_times) = (0, 0, 0);
        }
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
        state.hooked = desired.post_start.is_none();
        state.replace = false;
        state.image_name = desired.image.clone();
        state.resources = desired.resources.written.clone();
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

    /// Asks a container to end: its preStop hook first, then the signal. `grace` when it is not the pod's.
    pub(super) fn stop_container(&mut self, name: &str, grace: Option<SignedDuration>, now: Timestamp) {
        self.event(EventKind::Normal, "Killing", format!("Stopping container {name}"));
        let patience = grace.unwrap_or(SignedDuration::from_secs(self.pod.grace_seconds));
        let hook = self.container(name).and_then(|it| it.pre_stop.clone()).filter(|_| patience.is_positive());
        let state = self.state(name);
        let attempt = state.attempt;
        let signalled_at = hook.is_none().then_some(now);
        state.stop = Some(Stop { asked_at: now, grace, hook: hook.is_some(), signalled_at, killed: false });
        let Some(hook) = hook else { return self.signal_stop(name, attempt) };
        let (Some(sandbox), SandboxState::Ready { address }) =
            (self.sandbox.clone(), self.seen.sandbox.clone())
        else {
            return self.signal_stop(name, attempt);
        };
        let (shared, id, name) = (self.shared.clone(), container_id(name, attempt), name.to_owned());
        self.spawn(async move {
            let patience = Duration::try_from(patience).unwrap_or_default();
            let asked = effects::run_hook(&shared, &sandbox, &id, &address, &hook, patience);
            let result = tokio::time::timeout(patience, asked)
                .await
                .unwrap_or_else(|_| Err("PreStop hook not completed in grace period".to_owned()));
            Event::PreStop(name, attempt, result)
        });
    }

    /// The stop signal of the pod or of the image.
    pub(super) fn signal_stop(&mut self, name: &str, attempt: u32) {
        let own = self.container(name).and_then(|it| it.stop_signal.clone());
        let wanted = own.or_else(|| self.state(name).stop_signal.clone());
        self.signal(name, attempt, wanted.as_deref().map_or(nix::libc::SIGTERM, signal_number));
    }

    /// After a start: the hook, then the probes.
    pub(super) fn begin_life(&mut self, name: &str) {
        let state = self.state(name);
        let attempt = state.attempt;
        if state.hooked {
            return self.start_probes(name);
        }
        let Some(hook) = self.container(name).and_then(|it| it.post_start.clone()) else {
            self.state(name).hooked = true;
            return self.start_probes(name);
        };
        let (Some(sandbox), SandboxState::Ready { address }) =
            (self.sandbox.clone(), self.seen.sandbox.clone())
        else {
            return;
        };
        let (shared, id, name) = (self.shared.clone(), container_id(name, attempt), name.to_owned());
        self.spawn(async move {
            let result =
                effects::run_hook(&shared, &sandbox, &id, &address, &hook, POST_START_TIME_MAX).await;
            Event::PostStart(name, attempt, result)
        });
    }

    /// Writes the volumes of files again, now or when the writer at work has finished.
    pub(super) fn fill(&mut self) {
        self.fill_at = None;
        if self.filling != Filling::Idle {
            self.filling = Filling::Again;
            return;
        }
        if !matches!(self.seen.sandbox, SandboxState::Ready { .. }) {
            return;
        }
        self.filling = Filling::Busy;
        let (shared, pod, object) = (self.shared.clone(), self.pod.clone(), self.object.clone());
        self.spawn(async move { Event::Filled(provide::fill(&shared, &pod, &object).await) });
    }

    /// Watches what the volumes show.
    pub(super) fn follow_sources(&mut self) {
        self.followers = tokio::task::JoinSet::new();
        for (secret, name) in crate::volumes::needed_sources(&self.pod) {
            let cache = self.shared.follow(secret, &self.pod.namespace, &name);
            let events = self.events.clone();
            self.followers.spawn(async move {
                let mut changes = cache.changes();
                cache.synced().await;
                loop {
                    if events.send(Event::Sources).await.is_err() {
                        return;
                    }
                    changes.wait().await;
                }
            });
        }
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
    pub(super) fn watch(&mut self, sandbox: &Sandbox) {
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

    pub(super) fn start_probes(&mut self, name: &str) {
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

    pub(super) fn stop_probes(&mut self, name: &str) {
        if let Some(task) = self.probes.remove(name) {
            task.abort();
        }
    }
}

/// `SIGQUIT`, `QUIT` or `3`.
fn signal_number(name: &str) -> i32 {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    let real_time =
        |rest: &str| rest.trim_start_matches('+').parse::<i32>().ok().or(rest.is_empty().then_some(0));
    const REAL_TIME_FIRST: i32 = 34;
    name.parse()
        .ok()
        .or_else(|| full.strip_prefix("SIGRTMIN").and_then(real_time).map(|it| REAL_TIME_FIRST + it))
        .or_else(|| full.parse::<nix::sys::signal::Signal>().ok().map(|it| it as i32))
        .unwrap_or(nix::libc::SIGTERM)
}
