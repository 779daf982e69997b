//! Following the changes under a prefix.

use std::sync::{Arc, RwLock};

use crate::memory::Memory;
use crate::{Change, RevisionError, Store};

/// One watcher gets at most this many changes at once, so that it cannot hold the lock for long.
const BATCH_CHANGES_MAX: usize = 256;

/// A cursor into the history. A watcher that falls behind the ring gets `Expired` and must list
/// again: slow readers cost no memory.
pub struct Watcher {
    memory: Arc<RwLock<Memory>>,
    published: tokio::sync::watch::Receiver<u64>,
    prefix: String,
    cursor: u64,
}

/// Changes in order, and the revision up to which there are no others.
pub struct Batch {
    pub changes: Vec<Arc<Change>>,
    pub revision: u64,
}

impl Watcher {
    pub(crate) fn new(store: &Store, prefix: &str, cursor: u64) -> Watcher {
        Watcher {
            memory: store.memory.clone(),
            published: store.published.clone(),
            prefix: prefix.to_string(),
            cursor,
        }
    }

    /// Everything up to this revision has been handed out.
    pub fn revision(&self) -> u64 {
        self.cursor
    }

    /// Waits for at least one change. Safe to drop while it waits. After the store has closed it
    /// waits for ever: whoever closes the store stops its watchers.
    pub async fn next(&mut self) -> Result<Batch, RevisionError> {
        loop {
            self.published.borrow_and_update();
            let (changes, revision) = self
                .memory
                .read()
                .expect("no code panics while it holds the lock of the memory")
                .changes(&self.prefix, self.cursor, BATCH_CHANGES_MAX)?;
            self.cursor = revision;
            if !changes.is_empty() {
                return Ok(Batch { changes, revision });
            }
            if self.published.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
