//! Small facts about large things: one JSON file each, all of them in memory. A file is complete or not
//! there, and what was acknowledged is on the disk.

use crate::blobs::Blobs;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;

/// The records of one directory, by id. Ids grow, and are never used twice.
pub struct Records<T> {
    dir: PathBuf,
    all: BTreeMap<u64, T>,
    last: u64,
}

impl<T: Serialize + DeserializeOwned + Clone> Records<T> {
    /// Reads what is there. A file that makes no sense is said and left alone.
    pub fn open(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&dir)?.flatten() {
            let path = entry.path();
            let id = path.file_name().and_then(|it| it.to_str()?.strip_suffix(".json")?.parse().ok());
            let Some(id) = id else {
                // What a write that was cut off has left.
                let _ = std::fs::remove_file(&path);
                continue;
            };
            match std::fs::read(&path).map(|it| serde_json::from_slice(&it)) {
                Ok(Ok(record)) => {
                    all.insert(id, record);
                }
                Ok(Err(error)) => tracing::error!(path = %path.display(), %error, "a record cannot be read"),
                Err(error) => tracing::error!(path = %path.display(), %error, "a record cannot be read"),
            }
        }
        let last = all.keys().next_back().copied().unwrap_or(0);
        Ok(Self { dir, all, last })
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &T)> {
        self.all.iter().map(|(id, it)| (*id, it))
    }

    /// What a condition holds for first, as a copy.
    pub fn find(&self, holds: impl Fn(u64, &T) -> bool) -> Option<(u64, T)> {
        self.iter().find(|(id, it)| holds(*id, it)).map(|(id, it)| (id, it.clone()))
    }

    pub fn get(&self, id: u64) -> Option<&T> {
        self.all.get(&id)
    }

    /// An id for a new record. From the clock in microseconds (53 bits last until 2255), so that one whose record is gone does not come back after a
    /// restart.
    pub fn next_id(&mut self) -> u64 {
        let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
        self.last = now.max(self.last + 1);
        self.last
    }

    /// Writes a record; on the disk when this returns. The files are small, so this blocks for one fsync.
    pub fn put(&mut self, id: u64, record: T) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(&record).expect("records hold nothing that JSON cannot say");
        write_durably(&self.path(id), &bytes)?;
        self.all.insert(id, record);
        Ok(())
    }

    /// Changes a record in a way that may be forgotten in a power cut.
    pub fn touch(&mut self, id: u64, change: impl FnOnce(&mut T)) {
        let path = self.path(id);
        if let Some(record) = self.all.get_mut(&id) {
            change(record);
            let bytes = serde_json::to_vec(record).expect("records hold nothing that JSON cannot say");
            let temporary = path.with_extension("new");
            let written = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, &path));
            if let Err(error) = written {
                tracing::warn!(path = %path.display(), %error, "a record is not written");
            }
        }
    }

    pub fn remove(&mut self, id: u64) -> std::io::Result<()> {
        if self.all.remove(&id).is_some() {
            std::fs::remove_file(self.path(id))?;
            sync_dir(&self.dir)?;
        }
        Ok(())
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

/// Removes a record and then the blob that it is of: a blob without a record is garbage, a record without its
/// blob would be a lie.
pub async fn forget<T: Serialize + DeserializeOwned + Clone>(
    records: &Mutex<Records<T>>,
    id: u64,
    blob: impl Fn(&T) -> &String,
    blobs: &Blobs,
) -> std::io::Result<()> {
    let mut records = records.lock().await;
    if let Some(blob) = records.get(id).map(|it| blob(it).clone()) {
        records.remove(id)?;
        drop(records);
        blobs.remove(&blob).await;
    }
    Ok(())
}

/// Writes a file that is complete or not there, and on the disk when this returns.
pub fn write_durably(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_dir(path.parent().expect("records are files in a directory"))
}

pub fn sync_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_the_process_and_ids_are_not_used_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = Records::<String>::open(dir.path().join("r")).unwrap();
        let (a, b) = (records.next_id(), records.next_id());
        records.put(a, "a".into()).unwrap();
        records.put(b, "b".into()).unwrap();
        records.remove(b).unwrap();
        // A write that was cut off.
        std::fs::write(dir.path().join("r/7.new"), "half").unwrap();
        let mut records = Records::<String>::open(dir.path().join("r")).unwrap();
        assert_eq!(records.iter().collect::<Vec<_>>(), vec![(a, &"a".to_owned())]);
        assert!(records.next_id() > b);
        assert_eq!(std::fs::read_dir(dir.path().join("r")).unwrap().count(), 1);
    }
}
