//! The one thread that writes: it groups what has queued up into one commit, then publishes.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::log::{Failure, Log, Row};
use crate::memory::{Memory, stamp};
use crate::reserve::Reserve;
use crate::{Change, Entry, Expected, Options, WriteError};

/// Writes in one commit. More would only delay the first of them.
const GROUP_WRITES_MAX: usize = 256;

pub(crate) struct Write {
    pub key: Arc<str>,
    pub expected: Expected,
    /// The object and its JSON; `None` deletes.
    pub value: Option<(Value, String)>,
    pub answer: oneshot::Sender<Result<Entry, WriteError>>,
}

pub(crate) enum Request {
    Write(Write),
    Close(oneshot::Sender<()>),
}

pub(crate) struct Writer {
    log: Log,
    reserve: Reserve,
    memory: Arc<RwLock<Memory>>,
    publish: tokio::sync::watch::Sender<u64>,
    options: Options,
    compacted_at: Instant,
}

type Pending = (oneshot::Sender<Result<Entry, WriteError>>, Change, usize);

impl Writer {
    pub fn new(
        log: Log,
        reserve: Reserve,
        memory: Arc<RwLock<Memory>>,
        publish: tokio::sync::watch::Sender<u64>,
        options: Options,
    ) -> Writer {
        Writer { log, reserve, memory, publish, options, compacted_at: Instant::now() }
    }

    pub fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut group = Vec::with_capacity(GROUP_WRITES_MAX);
        let mut close = None;
        while close.is_none() {
            match requests.blocking_recv() {
                Some(Request::Write(write)) => group.push(write),
                Some(Request::Close(done)) => close = Some(done),
                None => break,
            }
            while close.is_none() && group.len() < GROUP_WRITES_MAX {
                match requests.try_recv() {
                    Ok(Request::Write(write)) => group.push(write),
                    Ok(Request::Close(done)) => close = Some(done),
                    Err(_) => break,
                }
            }
            self.commit(std::mem::take(&mut group));
            self.compact_when_due();
        }
        requests.close();
        drop(self.log);
        if let Some(done) = close {
            let _ = done.send(());
        }
    }

    fn commit(&mut self, group: Vec<Write>) {
        let at = now_ms();
        let mut rows = Vec::with_capacity(group.len());
        let mut pending: Vec<Pending> = Vec::with_capacity(group.len());
        {
            let memory = self.memory.read().expect("no code panics while it holds the lock of the memory");
            // Writes of this group are not in memory yet; later ones in the group must see them.
            let mut overlay: HashMap<Arc<str>, Option<(u64, Arc<Value>)>> = HashMap::new();
            let mut revision = memory.revision;
            for write in group {
                let current = match overlay.get(&write.key) {
                    Some(state) => state.clone(),
                    None => memory.get(&write.key).map(|entry| (entry.revision, entry.value)),
                };
                if let Err(error) = check(write.expected, current.as_ref().map(|(revision, _)| *revision)) {
                    let _ = write.answer.send(Err(error));
                    continue;
                }
                revision += 1;
                let previous = current.as_ref().map(|(_, value)| value.clone());
                let previous_revision = current.as_ref().map_or(0, |(revision, _)| *revision);
                let deleted = write.value.is_none();
                let (mut value, text) = match write.value {
                    Some((value, text)) => (value, Some(text)),
                    None => (previous.as_deref().cloned().unwrap_or(Value::Null), None),
                };
                stamp(&mut value, revision);
                let value = Arc::new(value);
                overlay.insert(write.key.clone(), (!deleted).then(|| (revision, value.clone())));
                let bytes = text.as_ref().map_or(256, String::len);
                rows.push(Row { revision, key: write.key.clone(), previous: previous_revision, at, text });
                let change = Change { revision, key: write.key, deleted, value, previous };
                pending.push((write.answer, change, bytes));
            }
        }
        if rows.is_empty() {
            return;
        }
        let mut result = self.log.append(&rows);
        if matches!(result, Err(Failure::DiskFull)) && self.reserve.give_up() {
            tracing::warn!("the disk is full, the reserve is given up for what must be written");
            result = self.log.append(&rows);
        }
        match result {
            Ok(()) => {
                self.publish(pending, at);
                self.reserve.restore_when_due();
            }
            Err(Failure::DiskFull) => {
                tracing::warn!(writes = rows.len(), "the disk is full, writes are refused");
                for (answer, _, _) in pending {
                    let _ = answer.send(Err(WriteError::DiskFull));
                }
            }
            Err(Failure::Broken(error)) => {
                // After a failed fsync nobody can say what is on the disk. Going on could
                // acknowledge writes that are lost at the next start; stopping cannot.
                tracing::error!(%error, "the object store cannot be written, stopping");
                std::process::abort();
            }
        }
    }

    fn publish(&mut self, pending: Vec<Pending>, at: u64) {
        let mut answers = Vec::with_capacity(pending.len());
        let revision = {
            let mut memory =
                self.memory.write().expect("no code panics while it holds the lock of the memory");
            for (answer, change, bytes) in pending {
                let entry =
                    Entry { key: change.key.clone(), revision: change.revision, value: change.value.clone() };
                memory.apply(change, bytes, at);
                answers.push((answer, entry));
            }
            memory.revision
        };
        self.publish.send_replace(revision);
        for (answer, entry) in answers {
            // The writer may have gone away; its write stands.
            let _ = answer.send(Ok(entry));
        }
    }

    fn compact_when_due(&mut self) {
        if self.compacted_at.elapsed() < self.options.compaction_interval {
            return;
        }
        self.compacted_at = Instant::now();
        let before_ms = now_ms().saturating_sub(self.options.history_ms_min);
        self.memory
            .write()
            .expect("no code panics while it holds the lock of the memory")
            .forget_before(before_ms);
        match self.log.compact(before_ms, self.options.history_rows_max) {
            Ok(removed) => tracing::debug!(removed, "compacted the object log"),
            Err(Failure::DiskFull) => tracing::warn!("the disk is full, the object log is not compacted"),
            Err(Failure::Broken(error)) => {
                tracing::error!(%error, "the object store cannot be compacted, stopping");
                std::process::abort();
            }
        }
    }
}

fn check(expected: Expected, current: Option<u64>) -> Result<(), WriteError> {
    match (expected, current) {
        (Expected::Absent, None) => Ok(()),
        (Expected::Absent, Some(revision)) => Err(WriteError::Exists { revision }),
        (Expected::Revision(_), None) => Err(WriteError::Absent),
        (Expected::Revision(wanted), Some(revision)) if wanted == revision => Ok(()),
        (Expected::Revision(_), Some(revision)) => Err(WriteError::Conflict { revision }),
    }
}

/// The JSON that goes into the log. It may carry an old `resourceVersion`; loading stamps the
/// row's own over it, which is cheaper than a copy without it here.
pub(crate) fn encode(value: &Value) -> String {
    value.to_string()
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}
