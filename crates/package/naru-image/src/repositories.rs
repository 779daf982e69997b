//! What belongs to a repository: the blobs and manifests that were pushed to it (empty files, named by digest),
//! and which manifests refer to which. Content is shared by all repositories; belonging decides who sees it, what
//! may be deleted, and what is kept. Images that the builder made belong to their repository by their tags.

use crate::digest::Digest;
use crate::reference::LOCAL_REGISTRY;
use crate::store::{Error, ImageStore};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MANIFEST_BYTES_MAX: u64 = 4 << 20; // as most registries
pub(crate) const DEPTH_MAX: usize = 4; // an index of indexes is odd; deeper ones are an attack

/// The registry's own records, see [`ImageStore::repositories`].
pub struct Repositories {
    /// A directory per repository. Names of our own begin with `_`, which no component of a name does.
    pub(crate) dir: PathBuf,
    pub(crate) store: ImageStore,
}

impl ImageStore {
    /// What belongs to which repository of the registry.
    pub fn repositories(&self) -> Repositories {
        Repositories::new(self)
    }
}

impl Repositories {
    pub(crate) fn new(store: &ImageStore) -> Self {
        Self { dir: store.dir().join("registry/repositories"), store: store.clone() }
    }

    fn file(&self, name: &str, kind: &str, digest: &Digest) -> PathBuf {
        self.dir.join(name).join(kind).join(digest.hex())
    }

    /// Writes down that a blob is in a repository.
    pub fn add_blob(&self, name: &str, digest: &Digest) -> io::Result<()> {
        write(&self.file(name, "_blobs", digest), b"")
    }

    /// Takes a blob out of a repository; false if it was not in it.
    pub fn remove_blob(&self, name: &str, digest: &Digest) -> io::Result<bool> {
        remove(&self.file(name, "_blobs", digest))
    }

    /// Writes down that a manifest is in a repository; returns its subject if it has one.
    pub fn add_manifest(
        &self,
        name: &str,
        digest: &Digest,
        document: &Value,
        kind: &str,
        size: u64,
    ) -> io::Result<Option<Digest>> {
        write(&self.file(name, "_manifests", digest), kind.as_bytes())?;
        let Some(subject) = subject(document) else { return Ok(None) };
        let mut descriptor = json!({"mediaType": kind, "digest": digest, "size": size});
        // The artifact's type, or the type of its configuration (distribution specification, referrers).
        let artifact = document["artifactType"].as_str().filter(|it| !it.is_empty());
        if let Some(it) = artifact.or_else(|| document["config"]["mediaType"].as_str()) {
            descriptor["artifactType"] = it.into();
        }
        if document["annotations"].is_object() {
            descriptor["annotations"] = document["annotations"].clone();
        }
        let dir = self.dir.join(name).join("_referrers").join(subject.hex());
        write(&dir.join(digest.hex()), descriptor.to_string().as_bytes())?;
        Ok(Some(subject))
    }

    /// Takes a manifest out of a repository; false if it was not pushed to it.
    pub fn remove_manifest(&self, name: &str, digest: &Digest, document: &Value) -> io::Result<bool> {
        if let Some(subject) = subject(document) {
            remove(&self.dir.join(name).join("_referrers").join(subject.hex()).join(digest.hex()))?;
        }
        remove(&self.file(name, "_manifests", digest))
    }

    /// Descriptors of the manifests in a repository that have this one as their subject, in a stable order.
    pub fn referrers(&self, name: &str, subject: &Digest) -> Vec<Value> {
        let dir = self.dir.join(name).join("_referrers").join(subject.hex());
        let mut found: Vec<(PathBuf, Value)> = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|it| Some((it.path(), serde_json::from_slice(&fs::read(it.path()).ok()?).ok()?)))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found.into_iter().map(|it| it.1).collect()
    }

    /// Manifests that others of a repository have as their subject, whether they are here or not.
    pub fn subjects(&self, name: &str) -> Vec<Digest> {
        let entries = fs::read_dir(self.dir.join(name).join("_referrers")).into_iter().flatten().flatten();
        let digest =
            |it: fs::DirEntry| Digest::parse(&format!("sha256:{}", it.file_name().to_string_lossy()));
        entries.filter_map(|it| digest(it).ok()).collect()
    }

    /// Whether a manifest is in a repository: pushed to it, or under one of its tags.
    pub fn has_manifest(&self, name: &str, digest: &Digest) -> Result<bool, Error> {
        let is_here = self.store.blob_size(digest).is_some();
        Ok(is_here && self.file(name, "_manifests", digest).exists() || self.tagged(name)?.contains(digest))
    }

    /// Whether a blob is in a repository: pushed to it, or part of an image of it.
    pub fn has_blob(&self, name: &str, digest: &Digest) -> Result<bool, Error> {
        if self.file(name, "_blobs", digest).exists() {
            return Ok(true);
        }
        Ok(self.tagged(name)?.contains(digest))
    }

    /// Every digest that the tags of a repository lead to.
    fn tagged(&self, name: &str) -> Result<BTreeSet<Digest>, Error> {
        let prefix = format!("{LOCAL_REGISTRY}/{name}:");
        let mut found = BTreeSet::new();
        for (tag, manifest) in self.store.tags()? {
            if tag.strip_prefix(&prefix).is_some_and(|it| !it.contains('/')) {
                self.collect(&manifest.digest, &mut found, DEPTH_MAX);
            }
        }
        Ok(found)
    }

    /// Adds every digest that a manifest leads to.
    pub(crate) fn collect(&self, digest: &Digest, found: &mut BTreeSet<Digest>, depth: usize) {
        if !found.insert(digest.clone()) || depth == 0 {
            return;
        }
        let Ok(bytes) = self.store.read_blob("manifest", digest, MANIFEST_BYTES_MAX) else { return };
        let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        for blob in digests(&document, &["config", "layers"]) {
            found.insert(blob);
        }
        for child in digests(&document, &["manifests"]) {
            self.collect(&child, found, depth - 1);
        }
    }

    /// Every reference of one manifest to another: subject and referrer, in whichever repository.
    pub(crate) fn all_referrers(&self) -> Vec<(Digest, Digest)> {
        let mut found = Vec::new();
        let digest = |path: &Path| Digest::from_hex(path.file_name()?.to_str()?);
        for entry in
            walkdir::WalkDir::new(&self.dir).into_iter().flatten().filter(|it| it.file_type().is_file())
        {
            let path = entry.path();
            let Some(subject_dir) = path.parent() else { continue };
            if subject_dir.parent().and_then(Path::file_name).is_some_and(|it| it == "_referrers")
                && let (Some(subject), Some(referrer)) = (digest(subject_dir), digest(path))
            {
                found.push((subject, referrer));
            }
        }
        found
    }

    /// Forgets what belonged to repositories and is no longer in the store.
    pub(crate) fn forget_missing(&self) -> io::Result<()> {
        for entry in
            walkdir::WalkDir::new(&self.dir).into_iter().flatten().filter(|it| it.file_type().is_file())
        {
            let name = entry.file_name().to_string_lossy();
            if let Some(digest) = Digest::from_hex(&name)
                && self.store.blob_size(&digest).is_none()
            {
                remove(entry.path())?;
            }
        }
        Ok(())
    }

    /// Names of all repositories that something was pushed to.
    pub fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let mut open = vec![self.dir.clone()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let file_name = entry.file_name().to_string_lossy().into_owned();
                if !file_name.starts_with('_') {
                    open.push(entry.path());
                } else if file_name == "_manifests"
                    && fs::read_dir(entry.path()).is_ok_and(|mut it| it.next().is_some())
                    && let Ok(name) = dir.strip_prefix(&self.dir)
                {
                    names.insert(name.to_string_lossy().into_owned());
                }
            }
        }
        names
    }
}

/// The manifest that another one says something about.
fn subject(document: &Value) -> Option<Digest> {
    Digest::parse(document["subject"]["digest"].as_str()?).ok()
}

/// Digests of the descriptors under these keys, of which each holds one or a list.
fn digests(document: &Value, keys: &[&str]) -> Vec<Digest> {
    let list = |key: &&str| match &document[*key] {
        Value::Array(items) => items.clone(),
        Value::Object(_) => vec![document[*key].clone()],
        _ => Vec::new(),
    };
    let all = keys.iter().flat_map(list);
    all.filter_map(|it| Digest::parse(it["digest"].as_str()?).ok()).collect()
}

/// Whole or not at all, and on disk: what a client is told to have pushed stays pushed.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|it| it == bytes) {
        return Ok(());
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    io::Write::write_all(&mut file, bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|it| it.error)?;
    fs::File::open(dir)?.sync_all()
}

fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(it) if it.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(it) => Err(it),
    }
}
