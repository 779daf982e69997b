//! The loop that every controller runs in: wake on changes, plan, execute, try again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use kube_kinds::Failure;
use kube_objects::{Objects, Registry, Writer};
use kube_store::{Change, Watcher};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::action::{Plan, execute};

/// Pause after the first failure of a key; it doubles with every further one.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Keys of one controller that are carried out at the same time; each waits for the disk.
const KEYS_AT_ONCE_MAX: usize = 32;
/// Plans between two looks at the news: a reader that never looks falls behind the history.
const PLANS_IN_A_ROW_MAX: usize = 16;

/// What a controller may look at.
pub struct View<'a> {
    pub objects: &'a Objects,
    pub registry: &'a Registry,
}

/// One controller. Keys are storage keys of whatever it reconciles.
pub trait Controller: Send + Sync {
    fn name(&self) -> &'static str;

    /// Which keys a change concerns. At the start every object counts as changed.
    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String>;

    /// What to do about a key now.
    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan;
}

/// A change as controllers see it.
pub struct Touched<'a> {
    pub key: &'a str,
    pub deleted: bool,
    pub object: &'a Value,
    pub previous: Option<&'a Value>,
}

impl Touched<'_> {
    /// Whether it is an object under this prefix of keys (`core/pods/`).
    pub fn is(&self, prefix: &str) -> bool {
        self.key.starts_with(prefix)
    }
}

impl<'a> From<&'a Change> for Touched<'a> {
    fn from(change: &'a Change) -> Touched<'a> {
        Touched {
            key: &change.key,
            deleted: change.deleted,
            object: &change.value,
            previous: change.previous.as_deref(),
        }
    }
}

/// What is to be looked at now, and what later.
#[derive(Default)]
struct Queue {
    ready: BTreeSet<String>,
    later: HashMap<String, Instant>,
    /// The same by time: there are as many as there are events.
    by_time: BTreeSet<(Instant, String)>,
    failures: HashMap<String, u32>,
}

impl Queue {
    fn next_at(&self) -> Option<Instant> {
        self.by_time.first().map(|it| it.0)
    }

    fn ended(&mut self, controller: &dyn Controller, key: String, result: Result<(), Failure>) {
        let Err(failure) = result else {
            self.failures.remove(&key);
            return;
        };
        let count = self.failures.entry(key.clone()).or_insert(0);
        let wait = (RETRY_FIRST * 2u32.saturating_pow(*count)).min(RETRY_MAX);
        *count += 1;
        tracing::debug!(controller = controller.name(), key, %failure, ?wait, "trying again");
        self.look_at(key, Instant::now() + wait);
    }

    fn wake(&mut self, now: Instant) {
        while let Some((at, key)) = self.by_time.first().cloned().filter(|it| it.0 <= now) {
            self.by_time.remove(&(at, key.clone()));
            self.later.remove(&key);
            self.ready.insert(key);
        }
    }

    fn look_at(&mut self, key: String, at: Instant) {
        self.forget_time(&key);
        self.by_time.insert((at, key.clone()));
        self.later.insert(key, at);
    }

    fn forget_time(&mut self, key: &str) {
        if let Some(at) = self.later.remove(key) {
            self.by_time.remove(&(at, key.to_string()));
        }
    }
}

/// Runs one controller until `shutdown`. Several keys are worked on at once, one key never twice: its
/// next plan is made from a store that has all of the last one's writes.
pub async fn run(controller: Box<dyn Controller>, objects: Objects, shutdown: CancellationToken) {
    let registry = Registry::new(objects.clone());
    let writer = Writer::new(controller.name());
    let view = View { objects: &objects, registry: &registry };
    let mut queue = Queue::default();
    let mut busy: HashSet<String> = HashSet::new();
    let mut work: FuturesUnordered<BoxFuture<'_, (String, Result<(), Failure>)>> = FuturesUnordered::new();
    let mut watcher = look_at_everything(&*controller, &view, &mut queue);
    while !shutdown.is_cancelled() {
        for _ in 0..PLANS_IN_A_ROW_MAX {
            if busy.len() == KEYS_AT_ONCE_MAX {
                break;
            }
            let Some(key) = queue.ready.iter().find(|it| !busy.contains(*it)).cloned() else { break };
            queue.ready.remove(&key);
            queue.forget_time(&key);
            let plan = controller.plan(&key, &view, Timestamp::now());
            if let Some(wait) = plan.again_after {
                queue.look_at(key.clone(), Instant::now() + wait);
            }
            if plan.actions.is_empty() {
                queue.failures.remove(&key);
                continue;
            }
            busy.insert(key.clone());
            let (objects, writer) = (&objects, &writer);
            work.push(async move { (key, execute(objects, plan.actions, writer).await) }.boxed());
        }
        let more = busy.len() < KEYS_AT_ONCE_MAX && queue.ready.iter().any(|it| !busy.contains(it));
        let next_at = queue.next_at();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            batch = watcher.next() => match batch {
                Ok(batch) => {
                    for change in &batch.changes {
                        queue.ready.extend(controller.concerns(&Touched::from(&**change), &view));
                    }
                }
                Err(error) => {
                    tracing::debug!(controller = controller.name(), %error, "looking at everything again");
                    watcher = look_at_everything(&*controller, &view, &mut queue);
                }
            },
            Some((key, result)) = work.next() => {
                busy.remove(&key);
                queue.ended(&*controller, key, result);
            }
            () = sleep_until(next_at) => queue.wake(Instant::now()),
            () = tokio::task::yield_now(), if more => {}
        }
    }
    // What has begun is finished, so that a plan is not left half done without need.
    while work.next().await.is_some() {}
}

fn look_at_everything(controller: &dyn Controller, view: &View<'_>, queue: &mut Queue) -> Watcher {
    let (snapshot, watcher) = view.objects.store().list_and_watch("");
    for entry in &snapshot.items {
        let touched = Touched { key: &entry.key, deleted: false, object: &entry.value, previous: None };
        queue.ready.extend(controller.concerns(&touched, view));
    }
    watcher
}

pub async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
