//! Build contexts as archives: a client packs a directory, the daemon unpacks it once and keeps it for the
//! next build, which most often is of the same files.

use crate::ignore::Ignore;
use naru_image::{Digest, ImageStore, UnpackError, Whiteouts, decompress, unpack_as};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Unpacked contexts that are kept for the next build of the same files.
const CONTEXTS_KEPT: usize = 8;

/// Writes the archive of a build context: every file that the ignore rules leave, sorted by name, owned by
/// root as `COPY` would make them. The same files make the same bytes.
pub fn pack_context(root: &Path, ignore: &Ignore, out: impl Write) -> io::Result<u64> {
    let mut builder = tar::Builder::new(out);
    builder.mode(tar::HeaderMode::Complete);
    let mut files = 0;
    pack_directory(&mut builder, root, Path::new(""), ignore, &mut files)?;
    builder.into_inner()?.flush()?;
    Ok(files)
}

fn pack_directory(
    builder: &mut tar::Builder<impl Write>,
    root: &Path,
    directory: &Path,
    ignore: &Ignore,
    files: &mut u64,
) -> io::Result<()> {
    let mut entries = fs::read_dir(root.join(directory))?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by(|a, b| a.file_name().as_bytes().cmp(b.file_name().as_bytes()));
    for entry in entries {
        let name = directory.join(entry.file_name());
        let hidden = ignore.hides(&name);
        let meta = match entry.path().symlink_metadata() {
            Ok(it) => it,
            // Somebody builds or edits meanwhile: a file that is gone is not part of the context.
            Err(it) if it.kind() == io::ErrorKind::NotFound => continue,
            Err(it) => return Err(it),
        };
        // Below a hidden directory a file may be shown again.
        let may_show_below = meta.is_dir() && !ignore.is_final();
        if hidden && !may_show_below {
            continue;
        }
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(meta.permissions().mode() & 0o7777);
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        header.set_size(0);
        if meta.is_dir() {
            if !hidden {
                header.set_entry_type(tar::EntryType::Directory);
                builder.append_data(&mut header, &name, io::empty())?;
            }
            pack_directory(builder, root, &name, ignore, files)?;
            continue;
        }
        *files += 1;
        if meta.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            let target = fs::read_link(entry.path())?;
            // `append_link` would tidy the target up; a short one is written as it is.
            let bytes = target.as_os_str().as_bytes();
            if bytes.len() < 100 && header.set_link_name_literal(bytes).is_ok() {
                builder.append_data(&mut header, &name, io::empty())?;
            } else {
                builder.append_link(&mut header, &name, &target)?;
            }
        } else if meta.is_file() {
            header.set_size(meta.len());
            // A file that shrinks or grows meanwhile must not break the archive.
            let file = io::Read::take(File::open(entry.path())?.chain_zeros(), meta.len());
            builder.append_data(&mut header, &name, file)?;
        }
        // Sockets, pipes and devices are no content.
    }
    Ok(())
}

trait ChainZeros: io::Read + Sized {
    /// The content, then zeros without end.
    fn chain_zeros(self) -> io::Chain<Self, io::Repeat> {
        self.chain(io::repeat(0))
    }
}
impl ChainZeros for File {}

/// Why an uploaded context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    #[error("the build context {0} is no longer here; send it again")]
    Gone(Digest),
    #[error("cannot unpack the build context {digest}")]
    Unpack { digest: Digest, source: UnpackError },
    #[error("cannot keep the build context")]
    Io(#[from] io::Error),
}

/// Unpacked contexts, by digest.
#[derive(Debug, Clone)]
pub(crate) struct Contexts {
    dir: PathBuf,
    /// How many builds use each.
    used: Arc<Mutex<HashMap<String, usize>>>,
}

/// A context while a build uses it.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) path: PathBuf,
    name: String,
    contexts: Contexts,
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        let mut used = self.contexts.used();
        if let Some(count) = used.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.name);
            }
        }
    }
}

impl Contexts {
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        // What a context holds is nobody's business on this machine.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                fs::remove_dir_all(entry.path())?; // a process was killed while it unpacked
            }
        }
        Ok(Self { dir, used: Arc::default() })
    }

    fn used(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of a context whose archive is in the store. Blocks.
    pub(crate) fn unpacked(&self, store: &ImageStore, digest: &Digest) -> Result<Unpacked, ContextError> {
        let name = digest.hex().to_owned();
        let path = self.dir.join(&name);
        *self.used().entry(name.clone()).or_default() += 1;
        let guard = Unpacked { path: path.clone(), name, contexts: self.clone() };
        if let Ok(directory) = File::open(&path) {
            let _ = directory.set_modified(SystemTime::now()); // used last, removed last
            return Ok(guard);
        }
        let archive = match File::open(store.blob_path(digest)) {
            Ok(it) => it,
            Err(it) if it.kind() == io::ErrorKind::NotFound => {
                return Err(ContextError::Gone(digest.clone()));
            }
            Err(it) => return Err(it.into()),
        };
        let fresh = tempfile::Builder::new().prefix(".").tempdir_in(&self.dir)?;
        let mut plain = decompress(archive)?;
        unpack_as(&mut plain, fresh.path(), Whiteouts::Keep)
            .map_err(|source| ContextError::Unpack { digest: digest.clone(), source })?;
        match fs::rename(fresh.path(), &path) {
            Ok(()) => drop(fresh.keep()),
            // Another build of the same files was faster.
            Err(_) if path.is_dir() => {}
            Err(it) => return Err(it.into()),
        }
        self.remove_oldest();
        Ok(guard)
    }

    fn remove_oldest(&self) {
        let used = self.used();
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut idle: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter(|it| {
                let name = it.file_name().to_string_lossy().into_owned();
                !name.starts_with('.') && !used.contains_key(&name)
            })
            .filter_map(|it| Some((it.metadata().ok()?.modified().ok()?, it.path())))
            .collect();
        idle.sort();
        let too_many = idle.len().saturating_sub(CONTEXTS_KEPT);
        for (_, path) in idle.drain(..too_many) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_comes_out_as_it_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("sub/kept")).unwrap();
        fs::write(source.join("run.sh"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(source.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(source.join(".wh.file"), "kept").unwrap();
        fs::write(source.join("sub/kept/a"), "a").unwrap();
        fs::write(source.join("sub/b"), "b").unwrap();
        std::os::unix::fs::symlink("../x", source.join("link")).unwrap();
        let ignore = Ignore::parse("sub\n!sub/kept\n").unwrap();
        let pack = || {
            let mut bytes = Vec::new();
            pack_context(&source, &ignore, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(pack(), pack());

        let store =
            ImageStore::open(naru_image::Config { dir: dir.path().join("images"), ..Default::default() });
        let store = store.unwrap();
        let digest = store.put_blob(&pack()).unwrap();
        let contexts = Contexts::open(dir.path().join("contexts")).unwrap();
        let unpacked = contexts.unpacked(&store, &digest).unwrap();
        let at = |it: &str| unpacked.path.join(it);
        assert_eq!(fs::read_to_string(at("sub/kept/a")).unwrap(), "a");
        assert!(!at("sub/b").exists());
        assert_eq!(fs::read_to_string(at(".wh.file")).unwrap(), "kept");
        assert_eq!(fs::metadata(at("run.sh")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("../x"));
        // Again: nothing is unpacked, so the archive need not be there.
        fs::remove_file(store.blob_path(&digest)).unwrap();
        assert_eq!(contexts.unpacked(&store, &digest).unwrap().path, unpacked.path);
        let gone = contexts.unpacked(&store, &Digest::of("never")).unwrap_err();
        assert!(gone.to_string().contains("send it again"));
    }
}
