//! What a build need not do again. [`StepCache`]: a chain of instructions and contents led to this layer.
//! [`FileDigests`]: a file with this inode, size and times had that content.
//!
//! Both may be deleted at any time; then builds are slower and nothing else.

use naru_image::{Digest, Layer};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// Half a megabyte of context files per thousand entries; forgotten as a whole when there are more.
const FILES_MAX: usize = 200_000;
/// A file that changed this recently may change again within the same tick of the file system's clock.
const SETTLED: Duration = Duration::from_millis(50);

/// The outcome of one step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    pub layer: Layer,
    /// RFC 3339.
    pub created: String,
}

#[derive(Debug, Clone)]
pub struct StepCache {
    dir: PathBuf,
}

impl StepCache {
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.dir.join(key.hex())
    }

    pub fn get(&self, key: &Digest) -> Option<Step> {
        serde_json::from_slice(&fs::read(self.path(key)).ok()?).ok()
    }

    pub fn put(&self, key: &Digest, step: &Step) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        serde_json::to_writer(&mut file, step)?;
        file.persist(self.path(key)).map(|_| ()).map_err(|it| it.error)
    }

    /// Notes that a step is still of use. Not on every build: a write per step would cost more than the
    /// build.
    pub fn touch(&self, key: &Digest) {
        const OFTEN_ENOUGH: Duration = Duration::from_secs(3600);
        if let Ok(file) = fs::File::open(self.path(key)) {
            let is_recent = file
                .metadata()
                .and_then(|it| it.modified())
                .ok()
                .and_then(|it| it.elapsed().ok())
                .is_some_and(|it| it < OFTEN_ENOUGH);
            if !is_recent {
                let _ = file.set_modified(SystemTime::now());
            }
        }
    }

    /// Forgets steps that nobody used for so long, and returns the layers of the others.
    pub fn gc(&self, age_max: Duration) -> io::Result<Vec<Digest>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
            let step: Option<Step> =
                fs::read(entry.path()).ok().and_then(|it| serde_json::from_slice(&it).ok());
            match step {
                Some(step) if age <= age_max => kept.push(step.layer.diff_id),
                _ => fs::remove_file(entry.path())?,
            }
        }
        Ok(kept)
    }
}

/// Device, inode, size, modification and change time in nanoseconds.
type FileKey = (u64, u64, u64, i128, i128);

#[derive(Debug)]
pub struct FileDigests {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    files: HashMap<FileKey, Digest>,
    is_changed: bool,
}

impl FileDigests {
    /// Reads what earlier builds learned; a file that cannot be understood is ignored.
    pub fn open(path: PathBuf) -> Self {
        let mut files = HashMap::new();
        for line in fs::read_to_string(&path).unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let [dev, ino, size, mtime, ctime, hex] = fields[..] else { continue };
            let key = (dev.parse(), ino.parse(), size.parse(), mtime.parse(), ctime.parse());
            let (Ok(dev), Ok(ino), Ok(size), Ok(mtime), Ok(ctime)) = key else { continue };
            let Ok(digest) = Digest::parse(&format!("sha256:{hex}")) else { continue };
            files.insert((dev, ino, size, mtime, ctime), digest);
        }
        Self { path, known: Mutex::new(Known { files, is_changed: false }) }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The digest of a file's content, read only if the file is new or has changed.
    pub fn of(&self, path: &Path) -> io::Result<Digest> {
        let file = fs::File::open(path)?;
        let meta = file.metadata()?;
        let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let (mtime, ctime) = (time(meta.mtime(), meta.mtime_nsec()), time(meta.ctime(), meta.ctime_nsec()));
        let key = (meta.dev(), meta.ino(), meta.size(), mtime, ctime);
        if let Some(digest) = self.known().files.get(&key) {
            return Ok(digest.clone());
        }
        let mut hashing = naru_image::Hashing::new(file);
        io::copy(&mut hashing, &mut io::sink())?;
        let (file, digest, size) = hashing.finish();
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_settled =
            i128::try_from((age.saturating_sub(SETTLED)).as_nanos()).is_ok_and(|it| it > ctime.max(mtime));
        let after = file.metadata()?;
        let is_same = size == key.2 && time(after.mtime(), after.mtime_nsec()) == mtime;
        if is_settled && is_same {
            let mut known = self.known();
            if known.files.len() >= FILES_MAX {
                known.files.clear();
            }
            known.files.insert(key, digest.clone());
            known.is_changed = true;
        }
        Ok(digest)
    }

    /// Writes down what is known, if there is anything new.
    pub fn save(&self) -> io::Result<()> {
        let mut known = self.known();
        if !known.is_changed {
            return Ok(());
        }
        let mut text = String::with_capacity(known.files.len() * 130);
        for ((dev, ino, size, mtime, ctime), digest) in &known.files {
            text.push_str(&format!("{dev} {ino} {size} {mtime} {ctime} {}\n", digest.hex()));
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.persist(&self.path).map_err(|it| it.error)?;
        known.is_changed = false;
        Ok(())
    }
}
