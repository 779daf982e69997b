//! What the store takes on the disk, and when its images were last used.

use crate::digest::Digest;
use crate::store::{BLOB_DIRECTORIES, ImageStore};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const OFTEN_ENOUGH: Duration = Duration::from_secs(600); // a write for every start of a container is too many

/// Annotation of a name in `index.json`: its registry has it, too, so it may go when room is needed.
pub(crate) const ANNOTATION_PULLED: &str = "naru.dev/pulled";
/// The index that a pulled name stands for: it is what people sign.
pub(crate) const ANNOTATION_INDEX: &str = "naru.dev/index";

/// An image that is here, by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageUse {
    pub name: String,
    pub digest: Digest,
    /// Of its layers, unpacked. Layers that images share are counted with each of them.
    pub bytes: u64,
    /// Seconds since 1970.
    pub last_used: u64,
    /// It can be pulled again.
    pub is_pulled: bool,
}

/// Bytes on the disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    pub blobs: u64,
    pub layers: u64,
    pub uploads: u64,
    pub images: Vec<ImageUse>,
}

impl ImageStore {
    /// Measures the store. Blocks; unpacked layers never change, so each is walked once.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for directory in BLOB_DIRECTORIES.map(|it| self.dir().join(it)) {
            usage.blobs += directory_bytes(&directory)?;
        }
        for directory in ["tmp", "registry/uploads"] {
            usage.uploads += directory_bytes(&self.dir().join(directory)).unwrap_or(0);
        }
        let mut sizes = self.inner.layer_sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = HashMap::new();
        for entry in fs::read_dir(self.dir().join("layers"))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(digest) = Digest::from_hex(&name) else { continue };
            let bytes = sizes.get(&digest).copied().unwrap_or_else(|| disk_bytes(&entry.path()));
            usage.layers += bytes;
            present.insert(digest, bytes);
        }
        *sizes = present;
        drop(sizes);
        for (name, manifest) in self.tags().map_err(io::Error::other)? {
            let layers = self.layers_of(&manifest.digest);
            let bytes = layers.iter().filter_map(|it| self.layer(it)).map(|it| it.size).sum();
            usage.images.push(ImageUse {
                name,
                bytes,
                last_used: self
                    .last_used(&manifest.digest)
                    .map_or(0, |it| it.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())),
                is_pulled: manifest.is_pulled(),
                digest: manifest.digest,
            });
        }
        usage.images.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        Ok(usage)
    }

    fn layers_of(&self, manifest: &Digest) -> Vec<Digest> {
        let config = self.for_this_machine(manifest).ok().flatten().and_then(|it| self.manifest(&it).ok());
        let config = config.and_then(|it| {
            self.read_json::<crate::oci::ImageConfig>(
                "image config",
                &it.config.digest,
                crate::store::CONFIG_BYTES_MAX,
            )
            .ok()
        });
        config.map(|it| it.rootfs.diff_ids).unwrap_or_default()
    }

    /// When a container or a build last used an image, or it came.
    pub fn last_used(&self, manifest: &Digest) -> Option<SystemTime> {
        self.blob_path(manifest).metadata().and_then(|it| it.modified()).ok()
    }

    /// Notes that an image is used now, by its manifest's time: what is cleaned goes by the same.
    pub(crate) fn mark_used(&self, manifest: &Digest) {
        let is_recent =
            self.last_used(manifest).and_then(|it| it.elapsed().ok()).is_some_and(|it| it < OFTEN_ENOUGH);
        if !is_recent && let Ok(file) = fs::File::open(self.blob_path(manifest)) {
            let _ = file.set_modified(SystemTime::now());
        }
    }

    /// More is stored than may be, and nothing of it can go: nothing more is taken in until this is taken back.
    pub fn set_over_budget(&self, is_over: bool) {
        self.inner.is_over_budget.store(is_over, Ordering::Relaxed);
    }

    pub fn is_over_budget(&self) -> bool {
        self.inner.is_over_budget.load(Ordering::Relaxed)
    }
}

fn directory_bytes(path: &std::path::Path) -> io::Result<u64> {
    Ok(fs::read_dir(path)?.flatten().filter_map(|it| it.metadata().ok()).map(|it| it.blocks() * 512).sum())
}

/// Blocks that files below a path take, whatever their length says. Links are not followed, nor mounts entered.
pub fn disk_bytes(path: &std::path::Path) -> u64 {
    let entries = walkdir::WalkDir::new(path).same_file_system(true).into_iter().flatten();
    entries.filter_map(|it| it.metadata().ok()).map(|it| it.blocks() * 512).sum()
}
