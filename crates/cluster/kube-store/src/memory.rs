//! What the store keeps in memory: the latest value of every key and a ring of recent changes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;

use crate::{Change, Entry, RevisionError, Snapshot};

pub(crate) struct Memory {
    pub revision: u64,
    latest: BTreeMap<Arc<str>, (u64, Arc<Value>)>,
    /// With its size in bytes, and when it came (ms).
    ring: VecDeque<(Arc<Change>, usize, u64)>,
    ring_bytes: usize,
    /// Every change after this revision is in the ring.
    ring_floor: u64,
    ring_changes_max: usize,
    ring_bytes_max: usize,
}

impl Memory {
    pub fn new(ring_changes_max: usize, ring_bytes_max: usize) -> Memory {
        Memory {
            revision: 0,
            latest: BTreeMap::new(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            ring_floor: 0,
            ring_changes_max,
            ring_bytes_max,
        }
    }

    /// Loads a state that has no history: watchers older than `revision` must list again.
    pub fn load(&mut self, key: Arc<str>, revision: u64, value: Value) {
        self.latest.insert(key, (revision, Arc::new(value)));
    }

    pub fn set_floor(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
        self.ring_floor = revision;
    }

    /// Drops the history up to `revision`, because a part of it is missing.
    pub fn forget_ring(&mut self, revision: u64) {
        self.ring.clear();
        self.ring_bytes = 0;
        self.ring_floor = revision;
    }

    pub fn apply(&mut self, change: Change, bytes: usize, at_ms: u64) {
        debug_assert!(change.revision > self.revision, "revisions only grow");
        self.revision = change.revision;
        if change.deleted {
            self.latest.remove(&change.key);
        } else {
            self.latest.insert(change.key.clone(), (change.revision, change.value.clone()));
        }
        self.ring.push_back((Arc::new(change), bytes, at_ms));
        self.ring_bytes += bytes;
        while self.ring.len() > self.ring_changes_max || self.ring_bytes > self.ring_bytes_max {
            if !self.forget_oldest() {
                break;
            }
        }
    }

    /// Drops history from before that time: nobody asks for it any more, and it takes memory.
    pub fn forget_before(&mut self, at_ms: u64) {
        while self.ring.front().is_some_and(|(_, _, came)| *came < at_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((oldest, bytes, _)) = self.ring.pop_front() else { return false };
        self.ring_bytes -= bytes;
        self.ring_floor = oldest.revision;
        true
    }

    pub fn get(&self, key: &str) -> Option<Entry> {
        let (key, (revision, value)) = self.latest.get_key_value(key)?;
        Some(Entry { key: key.clone(), revision: *revision, value: value.clone() })
    }

    pub fn list(&self, prefix: &str) -> Snapshot {
        let items = self
            .latest
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (revision, value))| Entry {
                key: key.clone(),
                revision: *revision,
                value: value.clone(),
            })
            .collect();
        Snapshot { revision: self.revision, items }
    }

    /// The present state with the changes after `revision` undone.
    pub fn list_at(&self, prefix: &str, revision: u64) -> Result<Snapshot, RevisionError> {
        self.check(revision)?;
        let mut state: BTreeMap<Arc<str>, Arc<Value>> =
            self.list(prefix).items.into_iter().map(|entry| (entry.key, entry.value)).collect();
        for (change, _, _) in self.ring.iter().rev() {
            if change.revision <= revision {
                break;
            }
            if !change.key.starts_with(prefix) {
                continue;
            }
            match &change.previous {
                Some(previous) => state.insert(change.key.clone(), previous.clone()),
                None => state.remove(&change.key),
            };
        }
        let items = state
            .into_iter()
            .map(|(key, value)| Entry { key, revision: revision_of(&value), value })
            .collect();
        Ok(Snapshot { revision, items })
    }

    pub fn check(&self, wanted: u64) -> Result<(), RevisionError> {
        if wanted < self.ring_floor {
            return Err(RevisionError::Expired { wanted, oldest: self.ring_floor });
        }
        if wanted > self.revision {
            return Err(RevisionError::Future { wanted, current: self.revision });
        }
        Ok(())
    }

    /// Changes under `prefix` after `cursor`, at most `max`, and the revision reached.
    pub fn changes(
        &self,
        prefix: &str,
        cursor: u64,
        max: usize,
    ) -> Result<(Vec<Arc<Change>>, u64), RevisionError> {
        self.check(cursor)?;
        let start = self.ring.partition_point(|(change, _, _)| change.revision <= cursor);
        let mut found = Vec::new();
        for (change, _, _) in self.ring.range(start..) {
            if change.key.starts_with(prefix) {
                found.push(change.clone());
                if found.len() == max {
                    return Ok((found, change.revision));
                }
            }
        }
        Ok((found, self.revision))
    }
}

/// The revision that a stored object carries.
pub(crate) fn revision_of(value: &Value) -> u64 {
    value["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Stamps the revision into an object's metadata.
pub(crate) fn stamp(value: &mut Value, revision: u64) {
    if let Some(object) = value.as_object_mut() {
        let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("resourceVersion".into(), Value::String(revision.to_string()));
        }
    }
}
