//! Images on disk: an OCI layout (blobs by digest, tags in `index.json`) that other tools can read, and
//! beside it every layer unpacked, ready to be a lower directory of an overlay.
//!
//! Nothing is ever visible half-written: content goes to `tmp/` first and is renamed to its address.
//! A layer that a build made is kept as a directory only; its archive is hashed at once (that is its
//! identity) but compressed and stored not before an image needs it outside, because most layers of a
//! build never leave the machine.

use crate::digest::{Digest, Hashing};
use crate::host::{self, HostImageConfig};
use crate::images::HostRoot;
use crate::layers::CommitOptions;
use crate::oci::{ANNOTATION_REF_NAME, Descriptor, ImageConfig, Index, Manifest, media_type};
use crate::pack::PackError;
use crate::reference::{Reference, ReferenceError};
use crate::unpack::UnpackError;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20; // as most registries
/// Below the store: the OCI layout's, one per algorithm.
pub(crate) const BLOB_DIRECTORIES: [&str; 2] = ["blobs/sha256", "blobs/sha512"];
pub(crate) const CONFIG_BYTES_MAX: u64 = 8 << 20; // the largest seen is a few hundred KiB
pub const LAYERS_MAX: usize = 500; // overlayfs's own limit

/// What an [`ImageStore`] needs to know.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub dir: PathBuf,
    pub host: HostImageConfig,
    /// The user's names for images that cannot be pulled here: pattern and target. The target `host` is
    /// the host image.
    pub aliases: Vec<(String, String)>,
    /// Registries (`host:port`) that are spoken to over plain HTTP. Loopback always is.
    pub insecure_registries: Vec<String>,
    pub credentials: Vec<Credential>,
    /// Docker's `config.json`, whose credentials and credential helpers are used where none are given.
    pub docker_config: Option<PathBuf>,
    /// Registry and mirror (`host:port` or a URL): asked before the registry itself.
    pub mirrors: Vec<(String, String)>,
}

/// With neither a user nor a password it is nobody's: then what is configured is not used either.
#[derive(Debug, Clone)]
pub struct Credential {
    pub registry: String,
    pub user: String,
    pub password: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} `{path}`")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Name(#[from] ReferenceError),
    #[error("image `{name}` is not on this machine{hint}")]
    NotFound { name: String, hint: &'static str },
    #[error("image `{name}` is not to be had for {platform}")]
    NotFor { name: String, platform: crate::Platform },
    #[error("no layer was committed under `{0}`")]
    NotCommitted(String),
    #[error("{what} {digest} is damaged: {why}")]
    Damaged { what: &'static str, digest: Digest, why: String },
    #[error("{what} {digest} does not have the digest that it should have; it has {actual}")]
    WrongDigest { what: &'static str, digest: Digest, actual: Digest },
    #[error("image {0} lies over this machine's own root and cannot leave it; build it on a real base image")]
    OverHost(Digest),
    #[error("cannot unpack layer {digest}")]
    Unpack { digest: Digest, source: UnpackError },
    #[error("cannot make a layer")]
    Pack(#[source] PackError),
    #[error(transparent)]
    Registry(#[from] crate::remote::RegistryError),
    #[error("a background task of the image store ended early")]
    Task,
}

impl Error {
    /// The disk is full: nothing was half-written, and it works again once there is room.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Unpack { source, .. } => source.is_disk_full(),
            Self::Pack(it) => it.is_disk_full(),
            _ => false,
        }
    }
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { what, path: path.to_owned(), source }
}

/// The store; cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) boot: String,
    pub(crate) host: (HostRoot, ImageConfig),
    /// Guards `index.json`.
    index: Mutex<()>,
    pub(crate) expected: Mutex<HashMap<String, CommitOptions>>,
    /// Documents of images that exist for one step of a build only, and never touch the disk.
    pub(crate) transient: Mutex<HashMap<Digest, Vec<u8>>>,
    pub(crate) turn: crate::pull::Turn,
    pub(crate) under_way: crate::pull::UnderWay,
    /// Bytes of unpacked layers, which never change.
    pub(crate) layer_sizes: Mutex<HashMap<Digest, u64>>,
    pub(crate) is_over_budget: std::sync::atomic::AtomicBool,
    pub(crate) clients: crate::remote::Clients,
}

impl ImageStore {
    /// Opens the store, creating it if need be. Clears what a killed process left in `tmp/`, and drops
    /// unpacked layers that were written before a power cut and never forced to disk.
    pub fn open(config: Config) -> Result<Self> {
        for directory in BLOB_DIRECTORIES.iter().chain(&["layers", "committed", "tmp", "empty"]) {
            let path = config.dir.join(directory);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        let boot =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let root = host::root(&config.host);
        let host_config = host::image_config(&config.host, &root);
        let inner = Inner {
            config,
            boot,
            host: (root, host_config),
            turn: Default::default(),
            under_way: Default::default(),
            layer_sizes: Default::default(),
            is_over_budget: Default::default(),
            clients: Default::default(),
            index: Mutex::default(),
            expected: Mutex::default(),
            transient: Mutex::default(),
        };
        let store = Self { inner: Arc::new(inner) };
        store.write_new("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        store.write_new("index.json", br#"{"schemaVersion":2,"manifests":[]}"#)?;
        store.clear_leftovers()?;
        Ok(store)
    }

    pub fn dir(&self) -> &Path {
        &self.inner.config.dir
    }

    fn write_new(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir().join(name);
        if path.exists() { Ok(()) } else { self.write_file(&path, bytes) }
    }

    fn clear_leftovers(&self) -> Result<()> {
        let tmp = self.dir().join("tmp");
        for entry in fs::read_dir(&tmp).map_err(io_error("read", &tmp))?.flatten() {
            // Partial downloads are resumed and checked as a whole.
            if entry.file_name().to_string_lossy().starts_with("pull-") {
                continue;
            }
            let path = entry.path();
            let removed = if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(io_error("remove", &path))?;
        }
        // Handed over to builds that are no more.
        let committed = self.dir().join("committed");
        for entry in fs::read_dir(&committed).map_err(io_error("read", &committed))?.flatten() {
            fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
        }
        let layers = self.dir().join("layers");
        for entry in fs::read_dir(&layers).map_err(io_error("read", &layers))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".json") {
                continue;
            }
            let record = Digest::from_hex(&name).and_then(|it| self.layer_record(&it));
            if !record.is_some_and(|it| it.is_synced || it.boot == self.inner.boot) {
                tracing::info!(layer = name, "dropping an unpacked layer from before an unclean stop");
                fs::remove_dir_all(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Whole or not at all, and on disk before it returns.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = self.temp_file()?;
        file.write_all(bytes).map_err(io_error("write", path))?;
        self.persist(file, path)
    }

    /// Whole or not at all for readers, but a power cut may take it: for what is checked when it is read.
    pub(crate) fn write_cache_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = self.temp_file()?;
        file.write_all(bytes).map_err(io_error("write", path))?;
        let persisted = file.persist(path);
        persisted.map(|_| ()).map_err(|it| Error::Io {
            what: "write",
            path: path.to_owned(),
            source: it.error,
        })
    }

    fn temp_file(&self) -> Result<tempfile::NamedTempFile> {
        let tmp = self.dir().join("tmp");
        tempfile::NamedTempFile::new_in(&tmp).map_err(io_error("create a file in", &tmp))
    }

    fn persist(&self, file: tempfile::NamedTempFile, path: &Path) -> Result<()> {
        file.as_file().sync_all().map_err(io_error("write", path))?;
        file.persist(path).map_err(|it| Error::Io {
            what: "write",
            path: path.to_owned(),
            source: it.error,
        })?;
        sync_directory(path.parent().unwrap_or(Path::new("/")))
    }

    // ---- blobs

    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir().join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// Size of a blob that is here.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        self.blob_path(digest).metadata().ok().map(|it| it.len())
    }

    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        self.put_blob_as(bytes, &digest)?;
        Ok(digest)
    }

    /// Bytes whose digest the caller has made sure of.
    pub fn put_blob_as(&self, bytes: &[u8], digest: &Digest) -> Result<()> {
        let path = self.blob_path(digest);
        if path.exists() { Ok(()) } else { self.write_file(&path, bytes) }
    }

    /// A blob that comes in pieces.
    pub fn begin_blob(&self) -> Result<BlobWriter> {
        Ok(BlobWriter { store: self.clone(), file: Hashing::new(self.temp_file()?) })
    }

    /// Takes a file of the store's own file system in as a blob, whose digest the caller has made sure of. The
    /// file is moved.
    pub fn adopt_blob(&self, path: &Path, digest: &Digest) -> Result<()> {
        let target = self.blob_path(digest);
        File::open(path).and_then(|it| it.sync_all()).map_err(io_error("write", path))?;
        fs::rename(path, &target).map_err(io_error("write", &target))?;
        sync_directory(target.parent().unwrap_or(Path::new("/")))
    }

    /// A small blob, checked against its digest.
    pub fn read_blob(&self, what: &'static str, digest: &Digest, bytes_max: u64) -> Result<Vec<u8>> {
        if let Some(bytes) = self.transient().get(digest) {
            return Ok(bytes.clone());
        }
        let path = self.blob_path(digest);
        let size = path.metadata().map_err(io_error("read", &path))?.len();
        if size > bytes_max {
            let why = format!("{size} bytes are more than the {bytes_max} allowed");
            return Err(Error::Damaged { what, digest: digest.clone(), why });
        }
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        let actual = digest.same_kind_of(&bytes);
        if actual != *digest {
            return Err(Error::WrongDigest { what, digest: digest.clone(), actual });
        }
        Ok(bytes)
    }

    pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        digest: &Digest,
        max: u64,
    ) -> Result<T> {
        serde_json::from_slice(&self.read_blob(what, digest, max)?).map_err(|it| Error::Damaged {
            what,
            digest: digest.clone(),
            why: it.to_string(),
        })
    }

    pub fn manifest(&self, digest: &Digest) -> Result<Manifest> {
        let manifest: Manifest = self.read_json("manifest", digest, MANIFEST_BYTES_MAX)?;
        if manifest.layers.len() > LAYERS_MAX {
            let why = format!("it has more than {LAYERS_MAX} layers");
            return Err(Error::Damaged { what: "manifest", digest: digest.clone(), why });
        }
        Ok(manifest)
    }

    pub(crate) fn transient(&self) -> MutexGuard<'_, HashMap<Digest, Vec<u8>>> {
        self.inner.transient.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    // ---- tags

    fn index(&self) -> Result<(Index, MutexGuard<'_, ()>)> {
        let guard = self.inner.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = self.dir().join("index.json");
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        let index = serde_json::from_slice(&bytes).map_err(|it| Error::Io {
            what: "understand",
            path,
            source: it.into(),
        })?;
        Ok((index, guard))
    }

    /// Gives a manifest a name; a name that stands for another one moves.
    pub fn tag(&self, name: &Reference, manifest: &Digest, kind: &str) -> Result<()> {
        self.tag_with(name, manifest, kind, &[])
    }

    /// As [`ImageStore::tag`], for what a registry has, too: it may go when room is needed. `index` is what the
    /// name stands for there, if that is not the manifest.
    pub(crate) fn tag_pulled(
        &self,
        name: &Reference,
        manifest: &Digest,
        kind: &str,
        index: Option<&Digest>,
    ) -> Result<()> {
        let mut marks = vec![(crate::usage::ANNOTATION_PULLED, "true")];
        marks.extend(index.map(|it| (crate::usage::ANNOTATION_INDEX, it.as_str())));
        self.tag_with(name, manifest, kind, &marks)
    }

    fn tag_with(
        &self,
        name: &Reference,
        manifest: &Digest,
        kind: &str,
        marks: &[(&str, &str)],
    ) -> Result<()> {
        let tag = name.tag_name();
        let size = self
            .blob_size(manifest)
            .ok_or_else(|| Error::NotFound { name: manifest.to_string(), hint: "" })?;
        let (mut index, _guard) = self.index()?;
        let mut entry = Descriptor::new(kind, manifest.clone(), size);
        entry.annotations.insert(ANNOTATION_REF_NAME.into(), tag.clone());
        for (mark, value) in marks {
            entry.annotations.insert((*mark).to_owned(), (*value).to_owned());
        }
        if index.manifests.contains(&entry) {
            return Ok(());
        }
        index.manifests.retain(|it| it.annotations.get(ANNOTATION_REF_NAME) != Some(&tag));
        index.manifests.push(entry);
        let bytes = serde_json::to_vec_pretty(&index).expect("an index is plain data");
        self.write_file(&self.dir().join("index.json"), &bytes)
    }

    /// Takes a name away; the content goes with the next [`ImageStore::gc`].
    pub fn untag(&self, name: &Reference) -> Result<bool> {
        let tag = name.tag_name();
        let (mut index, _guard) = self.index()?;
        let before = index.manifests.len();
        index.manifests.retain(|it| it.annotations.get(ANNOTATION_REF_NAME) != Some(&tag));
        if index.manifests.len() == before {
            return Ok(false);
        }
        let bytes = serde_json::to_vec_pretty(&index).expect("an index is plain data");
        self.write_file(&self.dir().join("index.json"), &bytes)?;
        Ok(true)
    }

    /// Every name and what it stands for.
    pub fn tags(&self) -> Result<Vec<(String, Descriptor)>> {
        let (index, _guard) = self.index()?;
        let name = |it: Descriptor| Some((it.annotations.get(ANNOTATION_REF_NAME)?.clone(), it));
        Ok(index.manifests.into_iter().filter_map(name).collect())
    }

    /// The manifest that a name stands for here.
    pub fn find(&self, name: &Reference) -> Result<Option<Descriptor>> {
        if let Some(digest) = &name.digest {
            let in_memory = self.transient().get(digest).map(|it| it.len() as u64);
            let found = in_memory.or_else(|| self.blob_size(digest));
            return Ok(found.map(|size| Descriptor::new(media_type::MANIFEST, digest.clone(), size)));
        }
        let tag = name.tag_name();
        Ok(self.tags()?.into_iter().find(|(it, _)| *it == tag).map(|(_, it)| it))
    }
}

/// A blob under way. Dropped without [`BlobWriter::commit`], it leaves nothing behind.
pub struct BlobWriter {
    store: ImageStore,
    file: Hashing<tempfile::NamedTempFile>,
}

impl Write for BlobWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.file.write(buffer)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter {
    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// Puts the blob at its address, on disk, if it is what was expected.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let (file, digest, bytes) = self.file.finish();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(Error::WrongDigest { what: "blob", digest: expected.clone(), actual: digest });
        }
        let path = self.store.blob_path(&digest);
        if self.store.blob_size(&digest) != Some(bytes) {
            self.store.persist(file, &path)?;
        }
        Ok((digest, bytes))
    }
}

pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|it| it.sync_all()).map_err(io_error("write", path))
}
