//! What the store keeps in memory: the latest value of every key and a ring of recent changes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::Value;

use crate::{Change, Entry, Page, RevisionError, Snapshot};

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

    /// At most `max` items under `prefix` after the key `after`, at a revision (0: the present one), and how
    /// many come after them. Takes what the page takes, not what the whole list would; only the rest is
    /// counted, key by key.
    pub fn page(&self, prefix: &str, revision: u64, after: &str, max: usize) -> Result<Page, RevisionError> {
        let revision = if revision == 0 { self.revision } else { revision };
        self.check(revision)?;
        // What differs from the present: the state before the first change after the revision.
        let mut then: BTreeMap<&str, Option<&Arc<Value>>> = BTreeMap::new();
        for (change, _, _) in self.ring.iter().rev().take_while(|it| it.0.revision > revision) {
            if change.key.starts_with(prefix) && &*change.key > after {
                then.insert(&change.key, change.previous.as_ref());
            }
        }
        let start = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let mut present = self
            .latest
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .peekable();
        let mut then = then.into_iter().peekable();
        let (mut items, mut remaining) = (Vec::new(), 0);
        loop {
            let (key, value, at) = match (present.peek(), then.peek()) {
                (None, None) => break,
                (Some((key, _)), Some((other, _))) if ***key < **other => {
                    let (key, (at, value)) = present.next().expect("it was seen");
                    (key.clone(), value, *at)
                }
                (Some(_), None) => {
                    let (key, (at, value)) = present.next().expect("it was seen");
                    (key.clone(), value, *at)
                }
                (now, Some((other, before))) => {
                    let is_same = now.is_some_and(|(key, _)| ***key == **other);
                    let (other, before) = (*other, *before);
                    let key = match is_same {
                        true => present.next().map(|it| it.0.clone()).expect("it was seen"),
                        false => Arc::from(other),
                    };
                    then.next();
                    // It was not there yet.
                    let Some(value) = before else { continue };
                    (key, value, revision_of(value))
                }
            };
            if items.len() < max {
                items.push(Entry { key, revision: at, value: value.clone() });
            } else {
                remaining += 1;
            }
        }
        Ok(Page { revision, items, remaining })
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
