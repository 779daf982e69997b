//! A copy of a kind, kept true by list and watch. Level-triggered on purpose: a controller asks "what is
//! there now?", never "what happened?", so nothing is lost when events are missed or folded together.

use crate::{Client, WatchEvent};
use futures::StreamExt;
use naru_objects::Kind;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::sync::watch;

/// Wait before a broken list or watch is tried again: short, because on one machine the usual cause is
/// our own start-up, and never zero, so that a refused request cannot spin.
const RETRY: Duration = Duration::from_millis(200);

type Key = (String, String);
type Objects = BTreeMap<Key, Arc<Value>>;

/// A counter that moves with every change of the copy, handed out by [`Cache::changes`].
pub struct Change(watch::Receiver<u64>);

impl Change {
    /// Waits until something has changed since the last call. Never returns once the cache is gone.
    pub async fn wait(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// See [`Client::cache`]. Clones share one copy; the watch ends when the last is dropped.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
    seen: watch::Receiver<u64>,
}

struct Shared {
    objects: Arc<RwLock<Objects>>,
    task: tokio::task::AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cache {
    pub(crate) fn start(client: Client, kind: Kind, namespace: Option<String>, query: String) -> Self {
        let objects = Arc::new(RwLock::new(Objects::new()));
        // Version 0 means "not listed yet".
        let (changed, seen) = watch::channel(0u64);
        let task = tokio::spawn(follow(client, kind, namespace, query, Arc::clone(&objects), changed));
        Self { shared: Arc::new(Shared { objects, task: task.abort_handle() }), seen }
    }

    /// Waits for the first complete list.
    pub async fn synced(&self) {
        let mut seen = self.seen.clone();
        // The sender lives as long as the task, which lives as long as `self`.
        let _ = seen.wait_for(|it| *it > 0).await;
    }

    /// Waits until the copy has changed since this handle last waited.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// An independent waiter for changes.
    pub fn changes(&self) -> Change {
        Change(self.seen.clone())
    }

    pub fn list(&self) -> Vec<Arc<Value>> {
        self.objects().values().cloned().collect()
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.objects().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn objects(&self) -> std::sync::RwLockReadGuard<'_, Objects> {
        self.shared.objects.read().expect("no holder of this lock panics: it only moves values")
    }
}

async fn follow(
    client: Client,
    kind: Kind,
    namespace: Option<String>,
    query: String,
    objects: Arc<RwLock<Objects>>,
    changed: watch::Sender<u64>,
) {
    loop {
        let version = match client.list_with_version(&kind, namespace.as_deref(), &query).await {
            Ok((items, version)) => {
                let fresh: Objects = items.into_iter().map(|it| (key(&it), Arc::new(it))).collect();
                *objects.write().expect("no holder of this lock panics: it only moves values") = fresh;
                changed.send_modify(|it| *it += 1);
                version
            }
            Err(error) => {
                tracing::debug!(kind = kind.kind, %error, "list failed, trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        watch_from(&client, &kind, namespace.as_deref(), &query, version, &objects, &changed).await;
        tokio::time::sleep(RETRY).await;
    }
}

/// Watches until the API says that the version is too old; a watch that merely ends is taken up again.
async fn watch_from(
    client: &Client,
    kind: &Kind,
    namespace: Option<&str>,
    query: &str,
    mut version: String,
    objects: &RwLock<Objects>,
    changed: &watch::Sender<u64>,
) {
    loop {
        let mut events = match client.watch(kind, namespace, query, &version).await {
            Ok(events) => events,
            Err(error) => {
                tracing::debug!(kind = kind.kind, %error, "watch failed, listing again");
                return;
            }
        };
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::debug!(kind = kind.kind, %error, "watch broke, listing again");
                    return;
                }
            };
            let (WatchEvent::Applied(object) | WatchEvent::Deleted(object) | WatchEvent::Bookmark(object)) =
                &event;
            if let Some(it) = object["metadata"]["resourceVersion"].as_str() {
                it.clone_into(&mut version);
            }
            let mut objects = objects.write().expect("no holder of this lock panics: it only moves values");
            match event {
                WatchEvent::Applied(object) => drop(objects.insert(key(&object), Arc::new(object))),
                WatchEvent::Deleted(object) => drop(objects.remove(&key(&object))),
                WatchEvent::Bookmark(_) => continue,
            }
            drop(objects);
            changed.send_modify(|it| *it += 1);
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn key(object: &Value) -> Key {
    let meta = &object["metadata"];
    (meta["namespace"].as_str().unwrap_or_default().to_owned(), naru_objects::name_of(object).to_owned())
}
