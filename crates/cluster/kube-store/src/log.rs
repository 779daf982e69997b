//! The file: one table, appended to in transactions that are on the disk before they return.

use std::collections::HashMap;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, params};
use serde_json::Value;

use crate::memory::{Memory, stamp};
use crate::{Change, OpenError, Options};

/// Rows removed in one transaction of a compaction: writers wait at most for this many.
const COMPACTION_ROWS_MAX: usize = 500;
/// A predecessor that is still going down gets this long to let go of the file.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(2);
/// Free pages returned to the file system after a compaction (4 KiB each).
const VACUUM_PAGES_MAX: u32 = 4096;

pub(crate) struct Log {
    file: Connection,
}

pub(crate) struct Row {
    pub revision: u64,
    pub key: Arc<str>,
    pub previous: u64,
    pub at: u64,
    /// `None` marks a deletion.
    pub text: Option<String>,
}

/// The two ways in which a write fails: nothing happened, or nobody knows what happened.
pub(crate) enum Failure {
    DiskFull,
    Broken(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Failure {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Failure::DiskFull,
            _ => Failure::Broken(error),
        }
    }
}

impl Log {
    pub fn open(path: &Path, options: &Options) -> Result<(Log, Memory), OpenError> {
        let in_file = |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                OpenError::InUse { path: path.display().to_string() }
            }
            _ => OpenError::File { path: path.display().to_string(), source },
        };
        // Secrets are in here. SQLite gives its side files the mode of the file.
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .and_then(|it| it.set_permissions(std::fs::Permissions::from_mode(0o600)))
            .map_err(|source| OpenError::Permissions { path: path.display().to_string(), source })?;
        let file = Connection::open(path).map_err(in_file)?;
        file.busy_timeout(PREDECESSOR_WAIT).map_err(in_file)?;
        // `exclusive`: the state in memory is the truth only while nobody else writes the file.
        file.execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL;
             PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA cache_size = -1024;
             BEGIN EXCLUSIVE;
             CREATE TABLE IF NOT EXISTS log (
                 rev INTEGER PRIMARY KEY AUTOINCREMENT,
                 key TEXT NOT NULL,
                 deleted INTEGER NOT NULL,
                 prev INTEGER NOT NULL,
                 at INTEGER NOT NULL,
                 value TEXT
             );
             CREATE INDEX IF NOT EXISTS log_key ON log (key, rev);
             COMMIT;",
        )
        .map_err(in_file)?;
        let memory = load(&file, options, in_file)?;
        Ok((Log { file }, memory))
    }

    /// One transaction, durable when it returns.
    pub fn append(&mut self, rows: &[Row]) -> Result<(), Failure> {
        let transaction = self.file.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO log (rev, key, deleted, prev, at, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for row in rows {
                insert.execute(params![
                    row.revision as i64,
                    &*row.key,
                    row.text.is_none(),
                    row.previous as i64,
                    row.at as i64,
                    row.text,
                ])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Removes rows that a later row of the same key has replaced, and markers of deletions, when
    /// they are older than `before_ms` or in excess of `rows_max`. The last row stays always: it
    /// holds the counter.
    pub fn compact(&mut self, before_ms: u64, rows_max: u64) -> Result<usize, Failure> {
        let last: i64 = self.file.query_row("SELECT coalesce(max(rev), 0) FROM log", [], |row| row.get(0))?;
        let by_age: i64 = self.file.query_row(
            "SELECT coalesce(max(rev), 0) FROM log WHERE at < ?1",
            [before_ms as i64],
            |row| row.get(0),
        )?;
        let floor = by_age.max(last - rows_max as i64).min(last - 1);
        let mut removed = 0;
        loop {
            let count = self.file.execute(
                "DELETE FROM log WHERE rev IN (
                     SELECT rev FROM log AS old WHERE rev <= ?1 AND (deleted = 1 OR EXISTS (
                         SELECT 1 FROM log AS new WHERE new.key = old.key AND new.rev > old.rev
                     )) LIMIT ?2)",
                params![floor, COMPACTION_ROWS_MAX as i64],
            )?;
            removed += count;
            if count < COMPACTION_ROWS_MAX {
                break;
            }
        }
        if removed > 0 {
            self.file.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES_MAX})"))?;
        }
        Ok(removed)
    }
}

/// The present state, and as much recent history as fits the ring, so that a client which was
/// watching before a restart can go on where it was.
fn load(
    file: &Connection,
    options: &Options,
    in_file: impl Fn(rusqlite::Error) -> OpenError,
) -> Result<Memory, OpenError> {
    let loaded_ms = crate::writer::now_ms();
    let mut memory = Memory::new(options.ring_changes_max, options.ring_bytes_max);
    let last: i64 =
        file.query_row("SELECT coalesce(max(rev), 0) FROM log", [], |row| row.get(0)).map_err(&in_file)?;
    let tail_start = last.saturating_sub(options.ring_changes_max as i64).max(0);

    let mut latest = file
        .prepare(
            "SELECT rev, key, deleted, prev, value FROM log
             WHERE rev IN (SELECT max(rev) FROM log WHERE rev <= ?1 GROUP BY key) AND deleted = 0",
        )
        .map_err(&in_file)?;
    let mut rows = latest.query([tail_start]).map_err(&in_file)?;
    let mut state: HashMap<Arc<str>, (u64, Arc<Value>)> = HashMap::new();
    while let Some(row) = rows.next().map_err(&in_file)? {
        let row = read_row(row).map_err(&in_file)?;
        let value = parse(&row)?;
        state.insert(row.key.clone(), (row.revision, Arc::new(value.clone())));
        memory.load(row.key, row.revision, value);
    }
    memory.set_floor(tail_start as u64);

    let mut tail = file
        .prepare("SELECT rev, key, deleted, prev, value FROM log WHERE rev > ?1 ORDER BY rev")
        .map_err(&in_file)?;
    let mut rows = tail.query([tail_start]).map_err(&in_file)?;
    let mut expected = tail_start as u64 + 1;
    while let Some(row) = rows.next().map_err(&in_file)? {
        let row = read_row(row).map_err(&in_file)?;
        let (known, previous) = match state.get(&row.key) {
            Some((revision, value)) => (*revision, Some(value.clone())),
            None => (0, None),
        };
        let deleted = row.text.is_none();
        let value = match deleted {
            true => {
                let mut value = previous.as_deref().cloned().unwrap_or(Value::Null);
                stamp(&mut value, row.revision);
                Arc::new(value)
            }
            false => Arc::new(parse(&row)?),
        };
        match deleted {
            true => state.remove(&row.key),
            false => state.insert(row.key.clone(), (row.revision, value.clone())),
        };
        let gap = row.revision != expected;
        let previous_is_gone = row.previous != known;
        expected = row.revision + 1;
        let bytes = row.text.as_ref().map_or(256, String::len);
        let revision = row.revision;
        if gap {
            // Compaction has been here: history before this row is not complete.
            memory.forget_ring(revision - 1);
        }
        memory.apply(Change { revision, key: row.key, deleted, value, previous }, bytes, loaded_ms);
        if previous_is_gone {
            memory.forget_ring(revision);
        }
    }
    Ok(memory)
}

fn read_row(row: &rusqlite::Row<'_>) -> Result<Row, rusqlite::Error> {
    Ok(Row {
        revision: row.get::<_, i64>(0)? as u64,
        key: row.get::<_, String>(1)?.into(),
        previous: row.get::<_, i64>(3)? as u64,
        at: 0,
        text: row.get(4)?,
    })
}

fn parse(row: &Row) -> Result<Value, OpenError> {
    let text = row.text.as_deref().unwrap_or("null");
    let mut value = serde_json::from_str(text).map_err(|source| OpenError::Damaged {
        revision: row.revision,
        key: row.key.to_string(),
        source,
    })?;
    stamp(&mut value, row.revision);
    Ok(value)
}
