//! What is known of a repository's own pull requests, in two small files beside it: which ref has which number
//! (`naru-pulls`, a line each that never changes), and how each stands (`naru-pull-states.json`). Read and written
//! under the repository's lock; a state moves only after the run that tells of it is stored.

use crate::record::{RecordError, write_durably};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Where numbers begin in a repository that also has pull requests of another host: those keep the host's.
pub const BESIDE_UPSTREAM: u64 = 1_000_001;

/// Says that another host's pull requests are taken over here.
const UPSTREAM: &str = "naru-upstream";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    #[default]
    Open,
    Closed,
    Merged,
}

/// A pull request as the last event told of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    pub state: State,
    pub base: String,
    pub topic: String,
    pub head: String,
    pub title: String,
    pub author: String,
    /// It has commits that its base does not have; one without cannot be seen to be merged.
    pub is_ahead: bool,
    /// The commit by which it was merged here, if it was.
    pub merged_by: Option<String>,
    /// How often it was closed.
    pub closings: usize,
}

#[derive(Debug, Default)]
pub struct Book {
    /// Numbers and refs, the oldest first.
    refs: Vec<(u64, String)>,
    pub entries: BTreeMap<u64, Entry>,
    is_beside_upstream: bool,
}

impl Book {
    pub fn open(directory: &Path) -> Result<Self, RecordError> {
        let read = |name: &str| {
            let path = directory.join(name);
            match std::fs::read_to_string(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
                it => it.map_err(|source| RecordError::Io { path, source }),
            }
        };
        let states = read("naru-pull-states.json")?;
        let entries = match states.is_empty() {
            true => BTreeMap::new(),
            false => serde_json::from_str(&states).map_err(|it| RecordError::Io {
                path: directory.join("naru-pull-states.json"),
                source: std::io::Error::other(it),
            })?,
        };
        let refs = read("naru-pulls")?.lines().enumerate().map(|(at, line)| numbered(at, line)).collect();
        Ok(Self { refs, entries, is_beside_upstream: directory.join(UPSTREAM).exists() })
    }

    /// The number of what is asked for by a ref; one that was merged is done, and the next push to its ref asks
    /// for another.
    pub fn number_of(&self, git_ref: &str) -> Option<u64> {
        let (number, _) = self.refs.iter().rev().find(|(_, it)| it == git_ref)?;
        let is_merged = self.entries.get(number).is_some_and(|it| it.state == State::Merged);
        (!is_merged).then_some(*number)
    }

    /// The ref by which a number was asked for.
    pub fn ref_of(&self, number: u64) -> Option<&str> {
        self.refs.iter().find(|(it, _)| *it == number).map(|(_, it)| it.as_str())
    }

    /// Gives a ref its number, on the disk before anybody sees it.
    pub fn assign(&mut self, directory: &Path, git_ref: &str) -> Result<u64, RecordError> {
        if let Some(number) = self.number_of(git_ref) {
            return Ok(number);
        }
        let first = if self.is_beside_upstream { BESIDE_UPSTREAM } else { 1 };
        let number = self.refs.iter().map(|(it, _)| it + 1).max().unwrap_or(1).max(first);
        self.refs.push((number, git_ref.to_owned()));
        let lines: String = self.refs.iter().map(|(number, it)| format!("{number} {it}\n")).collect();
        let path = directory.join("naru-pulls");
        write_durably(&path, &lines).map_err(|source| RecordError::Io { path, source })?;
        Ok(number)
    }

    pub fn put(&mut self, directory: &Path, number: u64, entry: Entry) -> Result<(), RecordError> {
        self.entries.insert(number, entry);
        let text = serde_json::to_string_pretty(&self.entries).expect("numbers are fine as keys");
        let path = directory.join("naru-pull-states.json");
        write_durably(&path, &text).map_err(|source| RecordError::Io { path, source })
    }
}

/// Before there were numbers beside the refs, a ref's number was that of its line.
fn numbered(at: usize, line: &str) -> (u64, String) {
    let with_number =
        line.split_once(' ').and_then(|(number, it)| Some((number.parse().ok()?, it.to_owned())));
    with_number.unwrap_or_else(|| (at as u64 + 1, line.to_owned()))
}

/// Notes that another host's pull requests come here. `Err` is the number of ours that stands in the way of one
/// of theirs.
pub fn beside_upstream(directory: &Path, theirs: &[u64]) -> Result<Result<(), u64>, RecordError> {
    let path = directory.join(UPSTREAM);
    if !path.exists() {
        write_durably(&path, "").map_err(|source| RecordError::Io { path, source })?;
    }
    let book = Book::open(directory)?;
    let is_open = |number: &&u64| match book.entries.get(number) {
        Some(it) => it.state == State::Open,
        None => false,
    };
    Ok(theirs.iter().find(is_open).map_or(Ok(()), |it| Err(*it)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_keep_out_of_the_way_of_anothers() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        std::fs::write(at.join("naru-pulls"), "refs/for/main/a\nrefs/for/main/b\n").unwrap();
        let mut book = Book::open(at).unwrap();
        assert_eq!((book.number_of("refs/for/main/b"), book.number_of("refs/for/main/c")), (Some(2), None));
        assert_eq!(book.assign(at, "refs/for/main/c").unwrap(), 3);
        book.put(at, 2, Entry { state: State::Merged, ..Entry::default() }).unwrap();
        book.put(at, 3, Entry { topic: "c".into(), ..Entry::default() }).unwrap();
        let mut book = Book::open(at).unwrap();
        assert_eq!(book.entries[&3].topic, "c");
        assert_eq!(book.assign(at, "refs/for/main/b").unwrap(), 4, "the merged one is done");
        assert_eq!((book.ref_of(2), book.ref_of(4)), (Some("refs/for/main/b"), Some("refs/for/main/b")));

        assert_eq!(beside_upstream(at, &[2, 7]).unwrap(), Ok(()));
        assert_eq!(beside_upstream(at, &[3]).unwrap(), Err(3), "it is open");
        let mut book = Book::open(at).unwrap();
        assert_eq!(book.assign(at, "refs/for/main/d").unwrap(), BESIDE_UPSTREAM);
        assert_eq!(book.assign(at, "refs/for/main/e").unwrap(), BESIDE_UPSTREAM + 1);
    }
}
