//! Images on disk: an OCI layout (blobs by digest, tags in `index.json`) that other tools can read, and
//! beside it every layer unpacked, ready to be a lower directory of an overlay.
//!
//! Nothing is ever visible half-written: content goes to `tmp/` first and is renamed to its address.
//! A layer that a build made is kept as a directory only; its archive is hashed at once (that is its
//! identity) but compressed and stored not before an image needs it outside, because most layers of a
//! build never leave the machine.

use crate::digest::{Digest, Hashing};
use crate::host::{self, HostImageConfig};
use crate::oci::{
    ANNOTATION_BASE, ANNOTATION_REF_NAME, Descriptor, ImageConfig, Index, Manifest, media_type,
};
use crate::pack::{PackError, pack, remove_runtime_stubs};
use crate::reference::{HOST_IMAGE, Reference, ReferenceError, alias_of};
use crate::unpack::{UnpackError, decompress, unpack};
use crate::view::View;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

const MANIFEST_BYTES_MAX: u64 = 4 << 20; // as most registries
const CONFIG_BYTES_MAX: u64 = 8 << 20; // the largest seen is a few hundred KiB
pub const LAYERS_MAX: usize = 500; // overlayfs's own limit
/// Middle of the road: level 6 costs twice the time for two per cent.
const GZIP_LEVEL: u32 = 4;

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
}

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
    Pull(#[from] crate::pull::PullError),
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

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { what, path: path.to_owned(), source }
}

/// A layer as a build knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Digest of the plain archive.
    pub diff_id: Digest,
    /// Size of the plain archive.
    pub size: u64,
    pub is_empty: bool,
}

/// What stands beside an unpacked layer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayerRecord {
    #[serde(flatten)]
    layer: Layer,
    /// The archive's times were cut off here.
    #[serde(default)]
    time_max: Option<i64>,
    /// The stored archive, once there is one.
    #[serde(default)]
    blob: Option<(String, Digest, u64)>,
    /// The boot in which the directory was written: after a power cut it cannot be trusted.
    boot: String,
    #[serde(default)]
    is_synced: bool,
}

/// The host image's own part of a root: what to hide of `/` and what to show of the hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoot {
    pub masks: Vec<PathBuf>,
    /// Below the masks, bound back read-only.
    pub read_only: Vec<PathBuf>,
}

/// An image that is here, unpacked.
#[derive(Debug, Clone)]
pub struct LocalImage {
    pub reference: String,
    /// Of the manifest.
    pub digest: Digest,
    /// For an overlay, topmost first, never empty. Ends with `/` for an image over the host image.
    pub lower_dirs: Vec<PathBuf>,
    pub host: Option<HostRoot>,
    pub config: ImageConfig,
    /// Bottom first, without the host's root.
    pub layers: Vec<Layer>,
}

impl LocalImage {
    pub fn view(&self) -> View {
        View::new(self.lower_dirs.clone(), self.host.as_ref())
    }
}

/// Whether [`ImageStore::ensure`] asks a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// How a container's layer is to be committed.
#[derive(Debug, Clone, Copy, Default)]
pub struct CommitOptions {
    /// Later modification times become this one (`SOURCE_DATE_EPOCH`).
    pub time_max: Option<i64>,
}

/// The store; cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    boot: String,
    host: (HostRoot, ImageConfig),
    /// Guards `index.json`.
    index: Mutex<()>,
    expected: Mutex<HashMap<String, CommitOptions>>,
    /// Documents of images that exist for one step of a build only, and never touch the disk.
    transient: Mutex<HashMap<Digest, Vec<u8>>>,
    pub(crate) puller: crate::pull::Puller,
}

impl ImageStore {
    /// Opens the store, creating it if need be. Clears what a killed process left in `tmp/`, and drops
    /// unpacked layers that were written before a power cut and never forced to disk.
    pub fn open(config: Config) -> Result<Self> {
        for directory in ["blobs/sha256", "layers", "committed", "tmp", "empty"] {
            let path = config.dir.join(directory);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        let boot =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        let root = host::root(&config.host);
        let host_config = host::image_config(&config.host, &root);
        let puller = crate::pull::Puller::new();
        let inner = Inner {
            config,
            boot,
            host: (root, host_config),
            puller,
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
        let layers = self.dir().join("layers");
        for entry in fs::read_dir(&layers).map_err(io_error("read", &layers))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".json") {
                continue;
            }
            let record = Digest::parse(&format!("sha256:{name}")).ok().and_then(|it| self.layer_record(&it));
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
    fn write_cache_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
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
        self.dir().join("blobs/sha256").join(digest.hex())
    }

    /// Size of a blob that is here.
    pub fn blob_size(&self, digest: &Digest) -> Option<u64> {
        self.blob_path(digest).metadata().ok().map(|it| it.len())
    }

    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(&digest);
        if !path.exists() {
            self.write_file(&path, bytes)?;
        }
        Ok(digest)
    }

    /// A blob that comes in pieces.
    pub fn begin_blob(&self) -> Result<BlobWriter> {
        Ok(BlobWriter { store: self.clone(), file: Hashing::new(self.temp_file()?) })
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
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(Error::WrongDigest { what, digest: digest.clone(), actual });
        }
        Ok(bytes)
    }

    fn read_json<T: serde::de::DeserializeOwned>(
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
        let tag = name.tag_name();
        let size = self
            .blob_size(manifest)
            .ok_or_else(|| Error::NotFound { name: manifest.to_string(), hint: "" })?;
        let (mut index, _guard) = self.index()?;
        let mut entry = Descriptor::new(kind, manifest.clone(), size);
        entry.annotations.insert(ANNOTATION_REF_NAME.into(), tag.clone());
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

    // ---- layers

    /// Where a layer is, or will be, unpacked.
    pub fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.dir().join("layers").join(diff_id.hex())
    }

    fn layer_record(&self, diff_id: &Digest) -> Option<LayerRecord> {
        let path = self.dir().join("layers").join(format!("{}.json", diff_id.hex()));
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn write_layer_record(&self, record: &LayerRecord) -> Result<()> {
        let path = self.dir().join("layers").join(format!("{}.json", record.layer.diff_id.hex()));
        let bytes = serde_json::to_vec(record).expect("a layer record is plain data");
        self.write_cache_file(&path, &bytes)
    }

    /// The layer, if it is here unpacked.
    pub fn layer(&self, diff_id: &Digest) -> Option<Layer> {
        let record = self.layer_record(diff_id)?;
        self.layer_dir(diff_id).is_dir().then_some(record.layer)
    }

    /// An empty directory in which a layer can be put together; gone with its handle.
    pub fn scratch_dir(&self) -> Result<tempfile::TempDir> {
        let tmp = self.dir().join("tmp");
        tempfile::tempdir_in(&tmp).map_err(io_error("create a directory in", &tmp))
    }

    /// Makes a layer of a directory, which is moved to its address (or thrown away if that layer is here).
    pub fn add_layer(&self, dir: tempfile::TempDir, options: CommitOptions) -> Result<Layer> {
        let out = Hashing::new(io::BufWriter::with_capacity(256 * 1024, io::sink()));
        let mut out = out;
        let packed = pack(dir.path(), options.time_max, &mut out).map_err(Error::Pack)?;
        let (_, diff_id, size) = out.finish();
        let layer = Layer { diff_id, size, is_empty: packed.entries == 0 };
        if self.layer(&layer.diff_id).is_none() {
            self.write_layer_record(&LayerRecord {
                layer: layer.clone(),
                time_max: options.time_max,
                blob: None,
                boot: self.inner.boot.clone(),
                is_synced: false,
            })?;
            self.publish_layer(dir, &layer.diff_id)?;
        }
        Ok(layer)
    }

    fn publish_layer(&self, dir: tempfile::TempDir, diff_id: &Digest) -> Result<()> {
        let target = self.layer_dir(diff_id);
        match fs::rename(dir.path(), &target) {
            Ok(()) => {
                let _ = dir.keep(); // moved: nothing is left to remove
                Ok(())
            }
            // Somebody else was faster with the same content.
            Err(_) if target.is_dir() => Ok(()),
            Err(it) => Err(io_error("create", &target)(it)),
        }
    }

    /// The stored archive of a layer, compressed now if it never was.
    pub fn layer_blob(&self, layer: &Layer) -> Result<Descriptor> {
        let damaged =
            |why: &str| Error::Damaged { what: "layer", digest: layer.diff_id.clone(), why: why.into() };
        let mut record = self.layer_record(&layer.diff_id).ok_or_else(|| damaged("it is not here"))?;
        if let Some((kind, digest, size)) = &record.blob
            && self.blob_size(digest) == Some(*size)
        {
            return Ok(Descriptor::new(kind, digest.clone(), *size));
        }
        let blob = self.begin_blob()?;
        let compressed = flate2::GzBuilder::new().write(blob, flate2::Compression::new(GZIP_LEVEL));
        let mut plain = Hashing::new(io::BufWriter::with_capacity(256 * 1024, compressed));
        pack(&self.layer_dir(&layer.diff_id), record.time_max, &mut plain).map_err(Error::Pack)?;
        let (buffered, actual, _) = plain.finish();
        if actual != layer.diff_id {
            return Err(Error::WrongDigest { what: "unpacked layer", digest: layer.diff_id.clone(), actual });
        }
        let write = |it| Error::Pack(PackError::Write(it));
        let compressed = buffered.into_inner().map_err(|it| write(it.into_error()))?;
        let (digest, size) = compressed.finish().map_err(write)?.commit(None)?;
        record.blob = Some((media_type::LAYER_GZIP.into(), digest.clone(), size));
        self.write_layer_record(&record)?;
        Ok(Descriptor::new(media_type::LAYER_GZIP, digest, size))
    }

    /// Unpacks a stored layer, unless it is.
    pub fn ensure_layer(&self, blob: &Descriptor, diff_id: &Digest) -> Result<Layer> {
        if let Some(layer) = self.layer(diff_id) {
            return Ok(layer);
        }
        let path = self.blob_path(&blob.digest);
        let file = File::open(&path).map_err(io_error("read", &path))?;
        let fail = |source| Error::Unpack { digest: diff_id.clone(), source };
        let dir = self.scratch_dir()?;
        // The directory is the layer's root: what everybody may enter.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(io_error("change", dir.path()))?;
        let plain = decompress(file).map_err(|it| fail(UnpackError::Read(it)))?;
        let mut plain = Hashing::new(plain);
        let unpacked = unpack(&mut plain, dir.path()).map_err(fail)?;
        let (_, actual, size) = plain.finish();
        if actual != *diff_id {
            return Err(Error::WrongDigest { what: "layer", digest: diff_id.clone(), actual });
        }
        let layer = Layer { diff_id: diff_id.clone(), size, is_empty: unpacked.entries == 0 };
        self.write_layer_record(&LayerRecord {
            layer: layer.clone(),
            time_max: None,
            blob: Some((blob.media_type.clone(), blob.digest.clone(), blob.size)),
            boot: self.inner.boot.clone(),
            is_synced: false,
        })?;
        self.publish_layer(dir, diff_id)?;
        Ok(layer)
    }

    // ---- commits of containers

    /// Says how the container that will be committed under `id` is to be treated.
    pub fn expect_commit(&self, id: &str, options: CommitOptions) {
        self.inner
            .expected
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(id.into(), options);
    }

    /// Keeps what a container wrote (its overlay's upper directory, which is moved away) as a layer.
    /// Blocks; [`ImageStore::commit`] does not.
    pub fn commit_blocking(&self, id: &str, upper: &Path) -> Result<Layer> {
        let expected =
            self.inner.expected.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(id);
        remove_runtime_stubs(upper).map_err(io_error("clean", upper))?;
        let dir = self.scratch_dir()?;
        match fs::rename(upper, dir.path()) {
            Ok(()) => {
                // The runtime removes its directory itself, later.
                fs::create_dir(upper).map_err(io_error("create", upper))?;
            }
            Err(it) if it.kind() == io::ErrorKind::CrossesDevices => copy_tree(upper, dir.path())?,
            Err(it) => return Err(io_error("move", upper)(it)),
        }
        let layer = self.add_layer(dir, expected.unwrap_or_default())?;
        let bytes = serde_json::to_vec(&layer).expect("a layer is plain data");
        self.write_cache_file(&self.committed_path(id), &bytes)?;
        Ok(layer)
    }

    /// As [`ImageStore::commit_blocking`], on a thread of its own.
    pub async fn commit(&self, id: &str, upper: &Path) -> Result<Layer> {
        let (store, id, upper) = (self.clone(), id.to_owned(), upper.to_owned());
        tokio::task::spawn_blocking(move || store.commit_blocking(&id, &upper))
            .await
            .map_err(|_| Error::Task)?
    }

    /// The layer that was committed under `id`; it is handed over once.
    pub fn take_committed(&self, id: &str) -> Result<Layer> {
        let path = self.committed_path(id);
        let bytes = fs::read(&path).map_err(|_| Error::NotCommitted(id.into()))?;
        let _ = fs::remove_file(&path);
        serde_json::from_slice(&bytes).map_err(|_| Error::NotCommitted(id.into()))
    }

    fn committed_path(&self, id: &str) -> PathBuf {
        // An id comes from a pod's annotation: its digest is a safe file name whatever it says.
        self.dir().join("committed").join(Digest::of(id).hex())
    }

    // ---- images

    /// Writes configuration and manifest of an image of these layers (bottom first) and returns the
    /// manifest's digest. Every layer's archive is in the store afterwards, unless the image lies over the
    /// host's root: then there is nowhere to send archives to, and the unpacked layers are forced to disk.
    pub fn put_image(&self, config: &ImageConfig, layers: &[Layer], base: Base) -> Result<Digest> {
        let blobs = match base {
            Base::Own => layers.iter().map(|it| self.layer_blob(it)).collect::<Result<_>>()?,
            Base::Host => {
                self.sync_layers(layers)?;
                layers.iter().map(plain_blob).collect()
            }
        };
        let (config, manifest) = documents(config, layers, blobs, base);
        self.put_blob(&config)?;
        self.put_blob(&manifest)
    }

    /// An image for one step of a build: it can be used here until the handle is dropped, costs no write
    /// and no compression, and is gone after a restart.
    pub fn put_transient(&self, config: &ImageConfig, layers: &[Layer], base: Base) -> TransientImage {
        let (config, manifest) = documents(config, layers, layers.iter().map(plain_blob).collect(), base);
        let digests = [Digest::of(&manifest), Digest::of(&config)];
        let mut transient = self.transient();
        transient.insert(digests[0].clone(), manifest);
        transient.insert(digests[1].clone(), config);
        drop(transient);
        TransientImage { store: self.clone(), digests }
    }

    fn transient(&self) -> MutexGuard<'_, HashMap<Digest, Vec<u8>>> {
        self.inner.transient.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Forces unpacked layers to disk: for images that have no archive to unpack again. File by file,
    /// because `syncfs` would wait for everything that anybody else has written.
    fn sync_layers(&self, layers: &[Layer]) -> Result<()> {
        for layer in layers {
            let Some(mut record) = self.layer_record(&layer.diff_id) else { continue };
            if record.is_synced {
                continue;
            }
            let path = self.layer_dir(&layer.diff_id);
            for entry in walkdir::WalkDir::new(&path).contents_first(true) {
                let entry = entry.map_err(|it| io_error("write", &path)(it.into()))?;
                if entry.file_type().is_file() || entry.file_type().is_dir() {
                    sync_directory(entry.path())?;
                }
            }
            record.is_synced = true;
            self.write_layer_record(&record)?;
        }
        Ok(())
    }

    /// The machine's own root as an image.
    pub fn host_image(&self) -> LocalImage {
        let (root, config) = &self.inner.host;
        LocalImage {
            reference: HOST_IMAGE.into(),
            digest: host::fingerprint(&self.inner.config.host, root),
            lower_dirs: vec!["/".into()],
            host: Some(root.clone()),
            config: config.clone(),
            layers: Vec::new(),
        }
    }

    /// The empty image: `FROM scratch`.
    pub fn scratch_image(&self) -> LocalImage {
        let config = ImageConfig {
            architecture: crate::oci::architecture().into(),
            os: "linux".into(),
            ..Default::default()
        };
        LocalImage {
            reference: "scratch".into(),
            digest: Digest::of("scratch"),
            lower_dirs: vec![self.dir().join("empty")],
            host: None,
            config,
            layers: Vec::new(),
        }
    }

    /// Where the user's aliases send this name: the host image, or a name to look for.
    pub fn resolve_name(&self, name: &str) -> Result<Resolved> {
        let mut reference = Reference::parse(name)?;
        for _ in 0..8 {
            if reference.name() == HOST_IMAGE && reference.digest.is_none() {
                return Ok(Resolved::Host);
            }
            match alias_of(&self.inner.config.aliases, &reference) {
                Some("host") => return Ok(Resolved::Host),
                Some(target) => {
                    let next = Reference::parse(target)?;
                    if next == reference {
                        break;
                    }
                    reference = next;
                }
                None => break,
            }
        }
        Ok(Resolved::Name(reference))
    }

    /// The image, if it is here. Unpacks layers if need be, so it may take a while.
    pub fn local(&self, name: &str) -> Result<Option<LocalImage>> {
        let reference = match self.resolve_name(name)? {
            Resolved::Host => return Ok(Some(self.host_image())),
            Resolved::Name(it) => it,
        };
        let Some(found) = self.find(&reference)? else { return Ok(None) };
        self.load(name, &found.digest).map(Some)
    }

    /// The image of a manifest that is here.
    pub fn load(&self, name: &str, digest: &Digest) -> Result<LocalImage> {
        let manifest = self.manifest(digest)?;
        let config: ImageConfig =
            self.read_json("image config", &manifest.config.digest, CONFIG_BYTES_MAX)?;
        let damaged =
            |why: &str| Error::Damaged { what: "manifest", digest: digest.clone(), why: why.into() };
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(damaged("manifest and config disagree about the number of layers"));
        }
        let mut layers = Vec::new();
        for (blob, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            let layer = match self.layer(diff_id) {
                Some(it) => it,
                None if self.blob_size(&blob.digest).is_none() => {
                    return Err(damaged("a layer is no longer here; build or pull the image again"));
                }
                None => self.ensure_layer(blob, diff_id)?,
            };
            layers.push(layer);
        }
        let host = manifest.is_over_host().then(|| self.inner.host.0.clone());
        let mut lower_dirs: Vec<PathBuf> =
            layers.iter().rev().filter(|it| !it.is_empty).map(|it| self.layer_dir(&it.diff_id)).collect();
        // The same layer twice would be refused by overlayfs; the upper one hides the lower one anyway.
        let mut seen = HashSet::new();
        lower_dirs.retain(|it| seen.insert(it.clone()));
        if host.is_some() {
            lower_dirs.push("/".into());
        } else if lower_dirs.is_empty() {
            lower_dirs.push(self.dir().join("empty"));
        }
        Ok(LocalImage { reference: name.into(), digest: digest.clone(), lower_dirs, host, config, layers })
    }

    /// The image, pulled if the policy says so and it is not here.
    pub async fn ensure(&self, name: &str, policy: PullPolicy) -> Result<LocalImage> {
        let reference = match self.resolve_name(name)? {
            Resolved::Host => return Ok(self.host_image()),
            Resolved::Name(it) => it,
        };
        let may_pull = !reference.is_local_only() && policy != PullPolicy::Never;
        let is_fixed = reference.digest.is_some();
        if !(may_pull && policy == PullPolicy::Always && !is_fixed) {
            let (store, name) = (self.clone(), name.to_owned());
            let task = tokio::task::spawn_blocking(move || store.local(&name));
            match task.await.map_err(|_| Error::Task)? {
                Ok(Some(image)) => return Ok(image),
                Err(it) if !may_pull => return Err(it),
                _ => {}
            }
        }
        if !may_pull {
            let hint = if reference.is_local_only() { "; it is only ever built here" } else { "" };
            return Err(Error::NotFound { name: name.into(), hint });
        }
        let digest = self.pull(&reference).await?;
        let (store, name) = (self.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || store.load(&name, &digest)).await.map_err(|_| Error::Task)?
    }

    /// Removes what no tag, none of `keep` and nothing younger than `age_min` needs.
    pub fn gc(&self, keep: &Keep, age_min: Duration) -> Result<Collected> {
        let mut blobs: HashSet<Digest> = keep.manifests.iter().cloned().collect();
        let mut layers: HashSet<Digest> = keep.layers.iter().cloned().collect();
        blobs.extend(self.tags()?.into_iter().map(|(_, it)| it.digest));
        for digest in blobs.clone() {
            let Ok(manifest) = self.manifest(&digest) else { continue };
            blobs.extend(manifest.layers.iter().map(|it| it.digest.clone()));
            if let Ok(config) =
                self.read_json::<ImageConfig>("image config", &manifest.config.digest, CONFIG_BYTES_MAX)
            {
                layers.extend(config.rootfs.diff_ids);
            }
            blobs.insert(manifest.config.digest);
        }
        for layer in &layers {
            blobs.extend(self.layer_record(layer).and_then(|it| it.blob).map(|it| it.1));
        }
        let is_old = |path: &Path| {
            let age = path
                .symlink_metadata()
                .and_then(|it| it.modified())
                .ok()
                .and_then(|it| SystemTime::now().duration_since(it).ok());
            age.is_some_and(|it| it >= age_min)
        };
        let mut collected = Collected::default();
        let directory = self.dir().join("blobs/sha256");
        for entry in fs::read_dir(&directory).map_err(io_error("read", &directory))?.flatten() {
            let digest = Digest::parse(&format!("sha256:{}", entry.file_name().to_string_lossy()));
            let is_kept = digest.is_ok_and(|it| blobs.contains(&it));
            if !is_kept && is_old(&entry.path()) {
                collected.bytes += entry.metadata().map(|it| it.len()).unwrap_or(0);
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
                collected.blobs += 1;
            }
        }
        let directory = self.dir().join("layers");
        for entry in fs::read_dir(&directory).map_err(io_error("read", &directory))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(hex) = name.strip_suffix(".json") else { continue };
            let Ok(digest) = Digest::parse(&format!("sha256:{hex}")) else { continue };
            // The record's time is the layer's age: the directory's own is the image's.
            if layers.contains(&digest) || !is_old(&entry.path()) {
                continue;
            }
            let path = self.layer_dir(&digest);
            // The directory first: a record without one is harmless, the reverse would be dropped unseen.
            if path.exists() {
                let aside = self.scratch_dir()?;
                fs::rename(&path, aside.path().join("layer")).map_err(io_error("remove", &path))?;
            }
            fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            collected.layers += 1;
        }
        Ok(collected)
    }
}

/// What a name turned out to mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    Host,
    Name(Reference),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Own,
    Host,
}

/// An image that exists for one step of a build, see [`ImageStore::put_transient`].
pub struct TransientImage {
    store: ImageStore,
    digests: [Digest; 2],
}

impl TransientImage {
    /// Of the manifest.
    pub fn digest(&self) -> &Digest {
        &self.digests[0]
    }
}

impl Drop for TransientImage {
    fn drop(&mut self) {
        let mut transient = self.store.transient();
        for digest in &self.digests {
            transient.remove(digest);
        }
    }
}

fn plain_blob(layer: &Layer) -> Descriptor {
    Descriptor::new(media_type::LAYER, layer.diff_id.clone(), layer.size)
}

/// Configuration and manifest of an image, as bytes.
fn documents(
    config: &ImageConfig,
    layers: &[Layer],
    blobs: Vec<Descriptor>,
    base: Base,
) -> (Vec<u8>, Vec<u8>) {
    let mut config = config.clone();
    config.rootfs.diff_ids = layers.iter().map(|it| it.diff_id.clone()).collect();
    let config = serde_json::to_vec(&config).expect("an image config is plain data");
    let mut annotations = BTreeMap::new();
    if base == Base::Host {
        annotations.insert(ANNOTATION_BASE.to_owned(), "host".to_owned());
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::MANIFEST.into(),
        config: Descriptor::new(media_type::CONFIG, Digest::of(&config), config.len() as u64),
        layers: blobs,
        annotations,
    };
    (config, serde_json::to_vec(&manifest).expect("a manifest is plain data"))
}

/// What [`ImageStore::gc`] must not touch besides tagged images.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    pub manifests: Vec<Digest>,
    pub layers: Vec<Digest>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Collected {
    pub blobs: u64,
    pub layers: u64,
    pub bytes: u64,
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

/// For an upper directory on another file system: through the archive format, which keeps everything
/// that a layer keeps.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut archive =
        tempfile::tempfile_in(to.parent().unwrap_or(Path::new("/"))).map_err(io_error("copy to", to))?;
    pack(from, None, io::BufWriter::new(&mut archive)).map_err(Error::Pack)?;
    io::Seek::rewind(&mut archive).map_err(io_error("copy to", to))?;
    let fail = |source| Error::Unpack { digest: Digest::of(""), source };
    unpack(&mut io::BufReader::new(archive), to).map_err(fail).map(|_| ())
}
