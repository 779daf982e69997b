//! What repositories of the registry may hold: bytes and tags, by patterns of their names. A blob that several of a
//! quota's repositories have is counted once.
//!
//! What counts is what their tags lead to, and what was pushed within the last hour and is under no tag yet: an image
//! comes blob by blob, its name last.

use crate::digest::Digest;
use crate::reference::{LOCAL_REGISTRY, glob};
use crate::repositories::{DEPTH_MAX, Repositories};
use crate::store::Error;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, SystemTime};

const UNDER_WAY: Duration = Duration::from_secs(3600); // an image that takes longer comes in blobs that are counted then

/// `shop/*`: at most so many bytes and tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// `*` stands for anything.
    pub repositories: String,
    pub bytes_max: Option<u64>,
    pub tags_max: Option<u64>,
}

/// How much of a quota is used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QuotaUse {
    pub repositories: String,
    pub bytes: u64,
    pub bytes_max: Option<u64>,
    pub tags: u64,
    pub tags_max: Option<u64>,
}

impl Quota {
    pub fn covers(&self, repository: &str) -> bool {
        glob(&self.repositories, repository)
    }
}

impl Repositories {
    /// Measures a quota, as it would be with `more` in it, too.
    pub fn quota_use(&self, quota: &Quota, more: Option<(&Digest, u64)>) -> Result<QuotaUse, Error> {
        let mut found: BTreeSet<Digest> = BTreeSet::new();
        let mut tags = 0;
        for (tag, manifest) in self.store.tags()? {
            let name = tag.strip_prefix(LOCAL_REGISTRY).and_then(|it| it.strip_prefix('/'));
            let name = name.and_then(|it| it.rsplit_once(':')).map(|it| it.0);
            if name.is_some_and(|it| quota.covers(it)) {
                tags += 1;
                self.collect(&manifest.digest, &mut found, DEPTH_MAX);
            }
        }
        for (name, digest, since) in self.records() {
            if quota.covers(&name) && since.elapsed().is_ok_and(|it| it < UNDER_WAY) {
                found.insert(digest);
            }
        }
        let mut sizes: BTreeMap<&Digest, u64> =
            found.iter().map(|it| (it, self.store.blob_size(it).unwrap_or(0))).collect();
        sizes.extend(more);
        Ok(QuotaUse {
            repositories: quota.repositories.clone(),
            bytes: sizes.values().sum(),
            bytes_max: quota.bytes_max,
            tags,
            tags_max: quota.tags_max,
        })
    }

    /// What was pushed to which repository, and when.
    fn records(&self) -> Vec<(String, Digest, SystemTime)> {
        let mut all = Vec::new();
        for entry in walkdir::WalkDir::new(&self.dir).into_iter().flatten() {
            let Some(kind) = entry.path().parent() else { continue };
            let is_record = kind.file_name().is_some_and(|it| it == "_blobs" || it == "_manifests");
            let digest = Digest::from_hex(&entry.file_name().to_string_lossy());
            let name = kind.parent().and_then(|it| it.strip_prefix(&self.dir).ok());
            let since = entry.metadata().ok().and_then(|it| it.modified().ok());
            if let (true, Some(digest), Some(name), Some(since)) = (is_record, digest, name, since) {
                all.push((name.to_string_lossy().into_owned(), digest, since));
            }
        }
        all
    }

    /// What a manifest leads to is no push under way any more: somebody took its name away.
    pub fn settle(&self, name: &str, manifest: &Digest) {
        let mut found = BTreeSet::new();
        self.collect(manifest, &mut found, DEPTH_MAX);
        for digest in found {
            for kind in ["_blobs", "_manifests"] {
                let record = self.dir.join(name).join(kind).join(digest.hex());
                if let Ok(file) = fs::File::open(record) {
                    let _ = file.set_modified(SystemTime::UNIX_EPOCH); // at worst it counts for an hour
                }
            }
        }
    }
}
