//! What a worker does: the actions of a plan, and the watchers that report back.

use std::ops::ControlFlow;
use std::time::Duration;

use jiff::Timestamp;
use naru_client::EventKind;
use naru_objects::kinds;
use naru_runtime::Sandbox;

use super::{Event, PUBLISH_RETRY, Worker, container_id};
use crate::effects;
use crate::plan::{Action, CommitState, ImageState, Phase, SandboxState, Stop};
use crate::prober::Prober;

impl Worker {
    pub(super) async fn execute(&mut self, action: Action, now: Timestamp) -> ControlFlow<()> {
        match action {
            Action::CreateSandbox => {
                self.seen.sandbox = SandboxState::Creating;
                self.record();
                let work = effects::create_sandbox(self.shared.clone(), self.pod.clone());
                self.spawn(async move { Event::Sandbox(work.await) });
            }
            Action::EnsureImage { container } => {
                let Some(desired) = self.container(&container) else {
                    return ControlFlow::Continue(());
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
                self.spawn(async move {
                    effects::tear_down(&shared, sandbox, &directory, &uid, address.as_deref()).await;
                    Event::TornDown
                });
            }
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

    pub(super) fn stop_container(&mut self, name: &str, now: Timestamp) {
        let signal = self.state(name).stop_signal.as_deref().map_or(nix::libc::SIGTERM, signal_number);
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
    name.parse()
        .ok()
        .or_else(|| full.parse::<nix::sys::signal::Signal>().ok().map(|it| it as i32))
        .unwrap_or(nix::libc::SIGTERM)
}
