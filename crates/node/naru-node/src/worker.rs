//! One pod's loop: what happened ([`observe`]), what to do, do it ([`act`]).
//!
//! Decisions are [`crate::plan`]'s; here are the effects. Everything that takes time runs as a task
//! that reports back as an [`Event`], so the loop always hears of a deletion at once.

mod act;
mod observe;
mod resize;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use naru_client::EventKind;
use naru_objects::kinds;
use naru_runtime::{ContainerStatus, Sandbox};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use crate::image::{ImageError, ImageInfo};
use crate::plan::plan;
use crate::pod::{DesiredContainer, DesiredPod, lower_pod};
use crate::prober::ProbeReport;
use crate::record::Record;
use crate::shared::{ContainerView, PodView, Shared};
use crate::state::{ContainerState, Observed, Phase};
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
    /// The machine is short of something, or the pod took more than it may.
    Evict(String),
}

enum Event {
    Order(Order),
    Sandbox(Result<effects::Made, effects::SandboxFailure>),
    Image(String, Result<ImageInfo, ImageError>),
    Started(String, u32, Result<naru_runtime::Started, StartError>),
    /// `None`: the shim died.
    Shim(Option<BTreeMap<String, ContainerStatus>>),
    Probe(ProbeReport),
    /// A postStart hook of this attempt has returned.
    PostStart(String, u32, Result<(), String>),
    /// A preStop hook of this attempt has returned, or its time is over.
    PreStop(String, u32, Result<(), String>),
    /// A ConfigMap or Secret that a volume shows has changed.
    Sources,
    /// The volumes were written again; when their tokens want to be renewed.
    Filled(Result<Option<Timestamp>, String>),
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
    /// Followers of what the volumes show.
    followers: JoinSet<()>,
    filling: Filling,
    fill_at: Option<Timestamp>,
}

/// Whether the volumes of files are being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    Idle,
    Busy,
    /// Something changed meanwhile.
    Again,
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
            followers: JoinSet::new(),
            filling: Filling::Idle,
            fill_at: None,
        };
        worker.adopt().await;
        for problem in &worker.pod.problems {
            worker.event(EventKind::Warning, problem.reason, problem.message.clone());
        }
        worker.refuse();
        worker.run().await;
    });
    WorkerHandle { events, task }
}

impl Worker {
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
            let wake_at = [wake_at, self.publish_at, self.fill_at].into_iter().flatten().min();
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
            if self.fill_at.is_some_and(|at| at <= Timestamp::now()) {
                self.fill();
            }
            while self.tasks.try_join_next().is_some() {}
        }
    }

    fn container(&self, name: &str) -> Option<&DesiredContainer> {
        self.pod.container(name)
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

    /// A pod that asks for what it must not have is finished at once, as kubelet rejects it.
    fn refuse(&mut self) {
        let refused = self.pod.problems.iter().find(|problem| problem.reason != "Unsupported");
        if let Some(problem) = refused
            && self.seen.failed.is_none()
        {
            self.seen.failed = Some((problem.reason.to_owned(), problem.message.clone()));
        }
    }

    fn event(&self, kind: EventKind, reason: &'static str, message: String) {
        self.shared.event(self.object.clone(), kind, reason, message);
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
            .all()
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
            one_log: self.pod.life.is_some(),
            bounds: crate::eviction::Bounds::of(&self.pod),
        });
    }

    async fn publish(&mut self) {
        let now = Timestamp::now();
        let about = status::About {
            pod: &self.pod,
            seen: &self.seen,
            object: &self.object,
            before: &self.published,
            host_ip: &self.shared.host_ip,
        };
        let wanted = status::pod_status(&about, now);
        let forced = self.seen.deletion.as_ref().is_some_and(|deletion| deletion.forced);
        if wanted == self.published || forced {
            self.publish_at = None;
            return;
        }
        let client = &self.shared.client;
        match client.merge_status(&kinds::POD, &self.pod.namespace, &self.pod.name, &wanted).await {
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
