//! Layers: made of directories and containers, unpacked from archives, compressed only when somebody
//! outside wants them.

use crate::digest::{Digest, Hashing};
use crate::oci::{Descriptor, media_type};
use crate::pack::{PackError, pack, remove_runtime_stubs};
use crate::store::{Error, ImageStore, Result, io_error};
use crate::unpack::{UnpackError, decompress, unpack};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Of a machine's programs (120 MB): level 3 takes 1.7 s for 49.5 MB, 4 takes 2.0 s for 49.0, 6 takes 2.6 s for 48.4.
/// What buildah writes is larger than any of them.
const GZIP_LEVEL: u32 = 3;

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
pub(crate) struct LayerRecord {
    #[serde(flatten)]
    pub(crate) layer: Layer,
    /// The archive's times were cut off here.
    #[serde(default)]
    pub(crate) time_max: Option<i64>,
    /// The stored archive, once there is one.
    #[serde(default)]
    pub(crate) blob: Option<(String, Digest, u64)>,
    /// The boot in which the directory was written: after a power cut it cannot be trusted.
    pub(crate) boot: String,
    #[serde(default)]
    pub(crate) is_synced: bool,
}

/// How a container's layer is to be committed.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// Later modification times become this one (`SOURCE_DATE_EPOCH`).
    pub time_max: Option<i64>,
    /// Relative paths that the container runtime made to mount something at, innermost first. Those that
    /// are still empty go.
    pub stubs: Vec<PathBuf>,
}

impl ImageStore {
    /// Where a layer is, or will be, unpacked.
    pub fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.dir().join("layers").join(diff_id.hex())
    }

    pub(crate) fn layer_record(&self, diff_id: &Digest) -> Option<LayerRecord> {
        let path = self.dir().join("layers").join(format!("{}.json", diff_id.hex()));
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    pub(crate) fn write_layer_record(&self, record: &LayerRecord) -> Result<()> {
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

    /// Says how the container that will be committed under `id` is to be treated.
    pub fn expect_commit(&self, id: &str, options: CommitOptions) {
        self.inner
            .expected
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(id.into(), options);
    }

    /// No container will be committed under `id` after all.
    pub fn forget_commit(&self, id: &str) {
        self.inner.expected.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(id);
        let _ = fs::remove_file(self.committed_path(id));
    }

    /// Keeps what a container wrote (its overlay's upper directory, which is moved away) as a layer.
    /// Blocks; [`ImageStore::commit`] does not.
    pub fn commit_blocking(&self, id: &str, upper: &Path) -> Result<Layer> {
        let expected =
            self.inner.expected.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(id);
        let expected = expected.unwrap_or_default();
        remove_runtime_stubs(upper, &expected.stubs).map_err(io_error("clean", upper))?;
        let dir = self.scratch_dir()?;
        match fs::rename(upper, dir.path()) {
            Ok(()) => {
                // The runtime removes its directory itself, later.
                fs::create_dir(upper).map_err(io_error("create", upper))?;
            }
            Err(it) if it.kind() == io::ErrorKind::CrossesDevices => copy_tree(upper, dir.path())?,
            Err(it) => return Err(io_error("move", upper)(it)),
        }
        let layer = self.add_layer(dir, expected)?;
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
