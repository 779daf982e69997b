//! Caches: files that a job leaves for later runs, by key. An entry belongs to the ref that wrote it; a job
//! reads those of its own ref, then of the branch that it wants into, then of the default branch. So nobody
//! can put something into the caches of a branch that he cannot push to.

use crate::blobs::{Blobs, Digest};
use crate::problem::{Kind, Problem, Result, problem};
use crate::records::{self, Records};
use jiff::{SignedDuration, Timestamp};
use naru_token::JobClaims;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::PathBuf;
use tokio::sync::Mutex;

/// GitHub's limits: characters of a key, and keys of one question.
const KEY_CHARS_MAX: usize = 512;
const KEYS_MAX: usize = 10;

/// A reservation that nobody has ended by then was given up: its job is gone, or its runner.
const UPLOAD_LIFE: SignedDuration = SignedDuration::from_hours(6);

/// What was found is downloaded next: it is not evicted meanwhile.
const IN_USE: SignedDuration = SignedDuration::from_mins(15);

/// The clients know these words, and tell them apart from a fault.
const WRITE_DENIED: &str = "cache write denied:";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub repository: String,
    /// The full ref that it belongs to.
    pub scope: String,
    pub key: String,
    /// What the client makes of paths and compression: entries of different versions never meet.
    pub version: String,
    pub blob: String,
    pub created_at: Timestamp,
    pub used_at: Timestamp,
    /// Run and job that write it.
    #[serde(default)]
    pub run: String,
    pub run_uid: String,
    pub job: String,
    /// Once the upload has ended.
    pub bytes: Option<u64>,
}

impl Entry {
    /// Whether it is what a job would write under this key.
    fn is_same(&self, claims: &JobClaims, key: &str, version: &str) -> bool {
        self.repository == claims.repository
            && self.scope == claims.git_ref
            && self.key == key
            && self.version == version
    }
}

pub struct Caches {
    records: Mutex<Records<Entry>>,
    bytes_max: u64,
}

impl Caches {
    pub fn open(dir: PathBuf, bytes_max: u64) -> std::io::Result<Self> {
        Ok(Self { records: Mutex::new(Records::open(dir)?), bytes_max })
    }

    pub fn blobs(&self) -> HashSet<String> {
        let records = self.records.try_lock().expect("nobody else has it while it is opened");
        records.iter().map(|(_, it)| it.blob.clone()).collect()
    }

    /// Another job's upload under way of what a job wants to reserve.
    pub async fn rival(&self, claims: &JobClaims, key: &str, version: &str) -> Option<Entry> {
        let is_rival = |_: u64, it: &Entry| it.is_same(claims, key, version) && it.bytes.is_none();
        self.records.lock().await.find(is_rival).map(|(_, it)| it)
    }

    /// Reserves a key for the job's upload; returns the entry's id and blob. Of a job in `ended` an upload under
    /// way is taken for given up.
    pub async fn reserve(
        &self,
        blobs: &Blobs,
        claims: &JobClaims,
        key: &str,
        version: &str,
        bytes: Option<u64>,
        ended: Option<&Entry>,
        now: Timestamp,
    ) -> Result<(u64, String)> {
        check_key(key)?;
        check_version(version)?;
        may_write(claims)?;
        if let Some(bytes) = bytes.filter(|it| *it > self.bytes_max) {
            return Err(self.too_large(bytes));
        }
        let mut records = self.records.lock().await;
        let found = records.find(|_, it| it.is_same(claims, key, version));
        if let Some((id, entry)) = found {
            let is_mine = entry.run_uid == claims.run_uid && entry.job == claims.job;
            let has_ended = ended.is_some_and(|it| it.blob == entry.blob);
            let given_up = is_mine || has_ended || entry.created_at + UPLOAD_LIFE <= now;
            if entry.bytes.is_some() || !given_up {
                return Err(problem(
                    Kind::Exists,
                    format!(
                        "a cache with the key {key} already exists for {}, or is being written",
                        entry.scope
                    ),
                ));
            }
            records.remove(id).map_err(not_written)?;
            blobs.remove(&entry.blob).await;
        }
        let entry = Entry {
            repository: claims.repository.clone(),
            scope: claims.git_ref.clone(),
            key: key.to_owned(),
            version: version.to_owned(),
            blob: blobs.create_limited(self.bytes_max)?,
            created_at: now,
            used_at: now,
            run: claims.run.clone(),
            run_uid: claims.run_uid.clone(),
            job: claims.job.clone(),
            bytes: None,
        };
        let id = records.next_id();
        let blob = entry.blob.clone();
        records.put(id, entry).map_err(not_written)?;
        Ok((id, blob))
    }

    /// The job's own upload under way that a condition names.
    pub async fn pending(
        &self,
        claims: &JobClaims,
        holds: impl Fn(u64, &Entry) -> bool,
    ) -> Result<(u64, Entry)> {
        let records = self.records.lock().await;
        let mine = |id: u64, it: &Entry| {
            let is_mine = it.run_uid == claims.run_uid && it.job == claims.job && it.scope == claims.git_ref;
            is_mine && holds(id, it)
        };
        let found = records.find(mine);
        found.ok_or_else(|| problem(Kind::NotFound, "no upload of this cache is under way; reserve it first"))
    }

    /// Ends an upload whose pieces are in order. Everybody finds the entry from now on.
    pub async fn finalize(&self, blobs: &Blobs, id: u64, bytes: Option<u64>, now: Timestamp) -> Result<u64> {
        let found = self.records.lock().await.get(id).map(|it| (it.blob.clone(), it.bytes));
        let (blob, ended) = found.ok_or_else(|| problem(Kind::NotFound, "this upload was given up"))?;
        if let Some(stored) = ended {
            // Said twice, because the first answer was lost on the way; or by somebody who means another upload.
            return match bytes.is_none_or(|it| it == stored) {
                true => Ok(id),
                false => Err(problem(Kind::Exists, "this cache is complete and does not change any more")),
            };
        }
        let (stored, _) = blobs.seal(&blob, Digest::Skip).await?;
        if bytes.is_some_and(|it| it != stored) || stored > self.bytes_max {
            self.remove(blobs, id).await?;
            return Err(match bytes.filter(|it| *it != stored) {
                Some(said) => {
                    problem(Kind::Invalid, format!("{stored} of {said} bytes have arrived; save it again"))
                }
                None => self.too_large(stored),
            });
        }
        let mut records = self.records.lock().await;
        let Some(mut entry) = records.get(id).cloned() else {
            return Err(problem(Kind::NotFound, "this upload was given up"));
        };
        if entry.bytes.is_none() {
            entry.bytes = Some(stored);
            entry.created_at = now;
            entry.used_at = now;
            records.put(id, entry).map_err(not_written)?;
        }
        drop(records);
        self.evict(blobs, now).await;
        Ok(id)
    }

    /// The entry that a job gets for its keys: the first is the exact one, each is also a prefix.
    pub async fn find(
        &self,
        claims: &JobClaims,
        keys: &[String],
        version: &str,
        now: Timestamp,
    ) -> Result<Option<(u64, Entry)>> {
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(problem(Kind::Invalid, format!("a cache is asked for with 1 to {KEYS_MAX} keys")));
        }
        keys.iter().try_for_each(|it| check_key(it))?;
        check_version(version)?;
        let mut records = self.records.lock().await;
        let readable: Vec<(u64, &Entry)> = records
            .iter()
            .filter(|(_, it)| {
                it.bytes.is_some() && it.repository == claims.repository && it.version == version
            })
            .collect();
        let found = scopes(claims).iter().find_map(|scope| pick(&readable, scope, keys));
        let Some(id) = found else { return Ok(None) };
        records.touch(id, |it| it.used_at = now);
        Ok(records.get(id).map(|it| (id, it.clone())))
    }

    /// Finished entries for which a condition holds, newest first.
    pub async fn list(&self, holds: impl Fn(u64, &Entry) -> bool) -> Vec<(u64, Entry)> {
        let records = self.records.lock().await;
        let there = |(id, it): &(u64, &Entry)| it.bytes.is_some() && holds(*id, it);
        records.iter().rev().filter(there).map(|(id, it)| (id, it.clone())).collect()
    }

    pub async fn remove(&self, blobs: &Blobs, id: u64) -> Result<()> {
        records::forget(&self.records, id, |it| &it.blob, blobs).await.map_err(not_written)
    }

    pub async fn tidy(&self, blobs: &Blobs, now: Timestamp) {
        let given_up: Vec<u64> = {
            let records = self.records.lock().await;
            let is_old = |it: &Entry| it.bytes.is_none() && it.created_at + UPLOAD_LIFE <= now;
            records.iter().filter(|(_, it)| is_old(it)).map(|(id, _)| id).collect()
        };
        for id in given_up {
            if let Err(problem) = self.remove(blobs, id).await {
                tracing::warn!(%problem, "an upload that was given up stays");
            }
        }
        self.evict(blobs, now).await;
    }

    /// Removes what was not used for the longest until the rest fits.
    async fn evict(&self, blobs: &Blobs, now: Timestamp) {
        let surplus = {
            let records = self.records.lock().await;
            let entries: Vec<(u64, &Entry)> = records.iter().collect();
            surplus(&entries, self.bytes_max, now)
        };
        for id in surplus {
            if let Err(problem) = self.remove(blobs, id).await {
                tracing::warn!(%problem, "a cache stays beyond the budget");
            }
        }
    }

    fn too_large(&self, bytes: u64) -> Problem {
        let message = format!(
            "a cache of {bytes} bytes does not fit into the {} bytes for all caches (`naru serve --cache-budget`)",
            self.bytes_max
        );
        problem(Kind::TooLarge, message)
    }
}

/// The refs whose caches a job reads, in this order.
fn scopes(claims: &JobClaims) -> Vec<&str> {
    let mut scopes: Vec<&str> = Vec::new();
    for it in [&claims.git_ref, &claims.base_ref, &claims.default_ref] {
        if !it.is_empty() && !scopes.contains(&it.as_str()) {
            scopes.push(it);
        }
    }
    scopes
}

/// Within one scope, for each key in turn: the entry of exactly this key, else the newest that begins so.
fn pick(entries: &[(u64, &Entry)], scope: &str, keys: &[String]) -> Option<u64> {
    let of_scope = || entries.iter().filter(|(_, it)| it.scope == scope);
    keys.iter().find_map(|key| {
        let exact = of_scope().find(|(_, it)| it.key == *key);
        let newest = || {
            of_scope()
                .filter(|(_, it)| it.key.starts_with(key.as_str()))
                .max_by_key(|(id, it)| (it.created_at, *id))
        };
        exact.or_else(newest).map(|(id, _)| *id)
    })
}

/// Which finished entries go: those not used for the longest, but none that was just used.
fn surplus(entries: &[(u64, &Entry)], bytes_max: u64, now: Timestamp) -> Vec<u64> {
    let mut bytes: u64 = entries.iter().filter_map(|(_, it)| it.bytes).sum();
    let mut by_use: Vec<&(u64, &Entry)> = entries.iter().filter(|(_, it)| it.bytes.is_some()).collect();
    by_use.sort_by_key(|(id, it)| (it.used_at, *id));
    let mut gone = Vec::new();
    for (id, it) in by_use {
        if bytes <= bytes_max || it.used_at + IN_USE > now && it.used_at != it.created_at {
            continue;
        }
        bytes -= it.bytes.unwrap_or(0);
        gone.push(*id);
    }
    gone
}

/// A job writes caches of its own ref. A change from outside writes those of its pull request and no others.
fn may_write(claims: &JobClaims) -> Result<()> {
    if claims.git_ref.is_empty() || claims.untrusted && !claims.git_ref.starts_with("refs/pull/") {
        let message = format!(
            "{WRITE_DENIED} a change from outside does not write caches of {}",
            if claims.git_ref.is_empty() { "a run without ref" } else { &claims.git_ref }
        );
        return Err(problem(Kind::Denied, message));
    }
    Ok(())
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.chars().count() > KEY_CHARS_MAX || key.contains(',') {
        let message = format!("a cache's key has 1 to {KEY_CHARS_MAX} characters and no comma: {key:.80}");
        return Err(problem(Kind::Invalid, message));
    }
    Ok(())
}

fn check_version(version: &str) -> Result<()> {
    match version.is_empty() || version.len() > KEY_CHARS_MAX {
        true => Err(problem(Kind::Invalid, "a cache has a version")),
        false => Ok(()),
    }
}

fn not_written(error: std::io::Error) -> Problem {
    Problem::internal("a cache cannot be noted down", &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(scope: &str, key: &str, second: i64, bytes: u64) -> Entry {
        let at = Timestamp::from_second(second).unwrap();
        Entry {
            repository: "shop".into(),
            scope: scope.into(),
            key: key.into(),
            version: "v".into(),
            blob: String::new(),
            created_at: at,
            used_at: at,
            run: String::new(),
            run_uid: String::new(),
            job: String::new(),
            bytes: Some(bytes),
        }
    }

    #[test]
    fn the_exact_key_wins_then_the_newest_with_the_first_prefix() {
        let all = [
            entry("main", "npm-a", 1, 1),
            entry("main", "npm-b", 3, 1),
            entry("main", "npm-c", 2, 1),
            entry("main", "pip-a", 9, 1),
            entry("other", "npm-z", 10, 1),
        ];
        let entries: Vec<(u64, &Entry)> = (0..).zip(&all).collect();
        let picked = |keys: &[&str]| {
            let keys: Vec<String> = keys.iter().map(|it| (*it).to_owned()).collect();
            pick(&entries, "main", &keys).map(|it| all[it as usize].key.as_str())
        };
        assert_eq!(picked(&["npm-a", "npm-"]), Some("npm-a"));
        assert_eq!(picked(&["npm-x", "npm-", "pip-"]), Some("npm-b"));
        assert_eq!(picked(&["npm-x", "pip-", "npm-"]), Some("pip-a"));
        assert_eq!(picked(&["np"]), Some("npm-b"), "the key itself is a prefix, too");
        assert_eq!(picked(&["npm-z"]), None, "of another branch");
    }

    #[test]
    fn what_was_not_used_for_the_longest_goes_first() {
        let mut all = [entry("m", "a", 1, 40), entry("m", "b", 2, 40), entry("m", "c", 3, 40)];
        let now = Timestamp::from_second(10_000).unwrap();
        all[0].used_at = Timestamp::from_second(50).unwrap();
        let entries: Vec<(u64, &Entry)> = (0..).zip(&all).collect();
        assert_eq!(surplus(&entries, 120, now), Vec::<u64>::new());
        assert_eq!(surplus(&entries, 100, now), vec![1]);
        assert_eq!(surplus(&entries, 50, now), vec![1, 2]);
        all[1].used_at = now;
        let entries: Vec<(u64, &Entry)> = (0..).zip(&all).collect();
        assert_eq!(surplus(&entries, 10, now), vec![2, 0], "what is being downloaded stays");
    }

    #[test]
    fn a_change_from_outside_writes_only_what_is_its_own() {
        let claims = |git_ref: &str, untrusted| JobClaims {
            git_ref: git_ref.into(),
            untrusted,
            ..JobClaims::default()
        };
        assert!(may_write(&claims("refs/heads/main", false)).is_ok());
        assert!(may_write(&claims("refs/pull/3/merge", true)).is_ok());
        let denied = may_write(&claims("refs/heads/main", true)).unwrap_err();
        assert!(denied.message.starts_with(WRITE_DENIED), "{denied}");
        assert!(may_write(&claims("", false)).is_err());
    }
}
