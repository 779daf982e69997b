//! The object store: an append-only log in one SQLite file, one global revision, watches.
//!
//! Every write appends a row `log(rev, key, deleted, prev, at, value)`; `rev` is the
//! `resourceVersion` that clients see. The latest state of every key and the last few thousand
//! changes are kept in memory, so that reads and watches never touch the file. One writer thread
//! owns the file; it takes whatever has queued up, commits it as one transaction (one `fsync` for
//! many writers) and only then publishes and answers. A write that was acknowledged survives
//! `kill -9`; one that was not is never seen by a reader.
//!
//! The store knows nothing of Kubernetes but `metadata.resourceVersion`. Keys are paths such as
//! `apps/deployments/default/web`; what they mean is decided above.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use kube_store::{Expected, Options, Store};
//! let store = Store::open("store.db".as_ref(), Options::default())?;
//! let key = "core/configmaps/default/a";
//! store.put(key, Expected::Absent, serde_json::json!({"metadata": {"name": "a"}})).await?;
//! let (snapshot, mut watcher) = store.list_and_watch("core/configmaps/");
//! assert_eq!(snapshot.items.len(), 1);
//! for change in watcher.next().await?.changes {
//!     println!("{} {}", change.revision, change.key);
//! }
//! # Ok(()) }
//! ```

mod log;
mod memory;
mod reserve;
mod watch;
mod writer;

use std::any::Any;
use std::path::Path;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use memory::Memory;
pub use watch::{Batch, Watcher};

/// Writers that may wait for the writer thread; more wait in `send`.
const WRITE_QUEUE_MAX: usize = 1024;

/// How much history is kept. The defaults suit one machine with a few hundred objects.
#[derive(Debug, Clone)]
pub struct Options {
    /// Changes kept in memory for watchers that resume; older ones must list again (410).
    pub ring_changes_max: usize,
    /// The same limit in bytes of JSON, so that large objects do not multiply memory. In memory an
    /// object takes about five times its JSON.
    pub ring_bytes_max: usize,
    /// Superseded rows younger than this stay in the file; older changes are also dropped from memory.
    pub history_ms_min: u64,
    /// ... unless there are more rows of history than this.
    pub history_rows_max: u64,
    /// How often the file is freed of older history, at most.
    pub compaction_interval: Duration,
    /// One object, as JSON. The figure is etcd's default request limit.
    pub object_bytes_max: usize,
    /// Space on the disk that is kept for what must be written when it is full.
    pub reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            ring_changes_max: 4096,
            ring_bytes_max: 4 * 1024 * 1024,
            history_ms_min: 5 * 60 * 1000,
            history_rows_max: 20_000,
            compaction_interval: Duration::from_secs(60),
            object_bytes_max: 3 * 512 * 1024,
            reserve_bytes: 8 * 1024 * 1024,
        }
    }
}

/// What a writer believes to be the present state of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Absent,
    Revision(u64),
}

/// One key as it is now.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: Arc<str>,
    pub revision: u64,
    pub value: Arc<Value>,
}

/// A part of a list, and how many keys come after it.
#[derive(Debug, Clone)]
pub struct Page {
    pub revision: u64,
    pub items: Vec<Entry>,
    pub remaining: usize,
}

/// All keys under a prefix at one revision.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub revision: u64,
    pub items: Vec<Entry>,
}

/// One write. For a deletion `value` is the last state, carrying the revision of the deletion.
#[derive(Debug)]
pub struct Change {
    pub revision: u64,
    pub key: Arc<str>,
    pub deleted: bool,
    pub value: Arc<Value>,
    pub previous: Option<Arc<Value>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the object store {path} cannot be opened")]
    File { path: String, source: rusqlite::Error },
    #[error("the object store {path} cannot be made private to its owner")]
    Permissions { path: String, source: std::io::Error },
    #[error("the object store {path} is in use by another process")]
    InUse { path: String },
    #[error("revision {revision} of {key} in the object store is not JSON")]
    Damaged { revision: u64, key: String, source: serde_json::Error },
    #[error("the writer thread cannot be started")]
    Thread { source: std::io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("exists already at revision {revision}")]
    Exists { revision: u64 },
    #[error("does not exist")]
    Absent,
    #[error("is at revision {revision}, not at the expected one")]
    Conflict { revision: u64 },
    #[error("the object has {bytes} bytes, the limit is {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// Nothing was written; the write may be repeated when there is room again.
    #[error("the disk is full")]
    DiskFull,
    #[error("the store is closed")]
    Closed,
}

/// Why a watch or a historic list cannot be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevisionError {
    #[error("revision {wanted} is gone, the oldest is {oldest}")]
    Expired { wanted: u64, oldest: u64 },
    #[error("revision {wanted} is ahead of the present {current}")]
    Future { wanted: u64, current: u64 },
}

/// A handle; clones share one store. The file closes when the last handle is gone.
#[derive(Clone)]
pub struct Store {
    memory: Arc<RwLock<Memory>>,
    published: tokio::sync::watch::Receiver<u64>,
    queue: mpsc::Sender<writer::Request>,
    object_bytes_max: usize,
    shared: Arc<OnceLock<Arc<dyn Any + Send + Sync>>>,
}

impl Store {
    /// One value of the user's for all handles of this store: what its writers have to agree on. There
    /// is one type of it.
    pub fn shared<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let shared = self.shared.get_or_init(|| Arc::new(T::default())).clone();
        shared.downcast().expect("the store is used with one type of shared value")
    }

    /// Opens or creates the file and loads the present state. Blocks; call it at start.
    pub fn open(path: &Path, options: Options) -> Result<Store, OpenError> {
        let (file, memory) = log::Log::open(path, &options)?;
        let object_bytes_max = options.object_bytes_max;
        let (queue, requests) = mpsc::channel(WRITE_QUEUE_MAX);
        let (publish, published) = tokio::sync::watch::channel(memory.revision);
        let memory = Arc::new(RwLock::new(memory));
        let reserve = reserve::Reserve::take(path, options.reserve_bytes);
        let writer = writer::Writer::new(file, reserve, memory.clone(), publish, options);
        std::thread::Builder::new()
            .name("kube-store".into())
            .spawn(move || writer.run(requests))
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Store { memory, published, queue, object_bytes_max, shared: Arc::default() })
    }

    /// The revision of the last write.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    pub fn get(&self, key: &str) -> Option<Entry> {
        self.read().get(key)
    }

    /// Everything under `prefix`, in the order of the keys.
    pub fn list(&self, prefix: &str) -> Snapshot {
        self.read().list(prefix)
    }

    /// A part of a list, at an earlier revision or (0) the present one: what stands after the key `after`.
    pub fn page(&self, prefix: &str, revision: u64, after: &str, max: usize) -> Result<Page, RevisionError> {
        self.read().page(prefix, revision, after, max)
    }

    /// The present state and every change after it, without a gap between the two.
    pub fn list_and_watch(&self, prefix: &str) -> (Snapshot, Watcher) {
        let memory = self.read();
        let snapshot = memory.list(prefix);
        let watcher = Watcher::new(self, prefix, snapshot.revision);
        (snapshot, watcher)
    }

    /// Every change under `prefix` after `revision`.
    pub fn watch_from(&self, prefix: &str, revision: u64) -> Result<Watcher, RevisionError> {
        self.read().check(revision)?;
        Ok(Watcher::new(self, prefix, revision))
    }

    /// Writes and answers with the stored object, after it is safe on the disk.
    pub async fn put(&self, key: &str, expected: Expected, value: Value) -> Result<Entry, WriteError> {
        let text = writer::encode(&value);
        if text.len() > self.object_bytes_max {
            return Err(WriteError::TooLarge { bytes: text.len(), bytes_max: self.object_bytes_max });
        }
        self.write(key, expected, Some((value, text))).await
    }

    /// Removes; answers with the last state, carrying the revision of the removal.
    pub async fn delete(&self, key: &str, revision: u64) -> Result<Entry, WriteError> {
        self.write(key, Expected::Revision(revision), None).await
    }

    /// Finishes what is queued and closes the file. Other handles get `Closed` from then on.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(writer::Request::Close(done)).await.is_ok() {
            // An error means that the thread is gone, which is what was asked for.
            let _ = closed.await;
        }
    }

    async fn write(
        &self,
        key: &str,
        expected: Expected,
        value: Option<(Value, String)>,
    ) -> Result<Entry, WriteError> {
        let (answer, done) = oneshot::channel();
        let write = writer::Write { key: key.into(), expected, value, answer };
        self.queue.send(writer::Request::Write(write)).await.map_err(|_| WriteError::Closed)?;
        done.await.map_err(|_| WriteError::Closed)?
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Memory> {
        self.memory.read().expect("no code panics while it holds the lock of the memory")
    }
}
