//! Reading files out of a stack of layers without mounting it: what a container would see, looked up
//! entry by entry. Also the view of a build context, which is a stack of one.
//!
//! Symbolic links are followed inside the view only, so a link can lead nowhere that a container could
//! not go.

use crate::images::HostRoot;
use crate::unpack::XATTR_OPAQUE;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

const LINKS_MAX: usize = 40; // as the kernel

/// A stack of directories, topmost first.
#[derive(Debug, Clone)]
pub struct View {
    layers: Vec<PathBuf>,
    masks: Vec<PathBuf>,
    shown: Vec<PathBuf>,
}

/// One entry of the view.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it really is.
    pub real: PathBuf,
    /// Without following a last link.
    pub meta: Metadata,
}

impl View {
    pub fn new(layers: Vec<PathBuf>, host: Option<&HostRoot>) -> Self {
        let relative = |paths: &[PathBuf]| {
            paths.iter().map(|it| it.strip_prefix("/").unwrap_or(it).to_owned()).collect()
        };
        Self {
            layers,
            masks: host.map(|it| relative(&it.masks)).unwrap_or_default(),
            shown: host.map(|it| relative(&it.read_only)).unwrap_or_default(),
        }
    }

    pub fn of_directory(path: &Path) -> Self {
        Self { layers: vec![path.to_owned()], masks: Vec::new(), shown: Vec::new() }
    }

    /// One directory, all of it.
    pub fn is_single(&self) -> bool {
        self.layers.len() == 1 && self.masks.is_empty()
    }

    /// The entry at a path that is relative and free of links and dots.
    pub fn entry(&self, path: &Path) -> io::Result<Option<Entry>> {
        'layers: for (index, layer) in self.layers.iter().enumerate() {
            let is_host = layer == Path::new("/");
            if is_host && self.is_masked(path) {
                return Ok(None);
            }
            let mut real = layer.clone();
            let mut stop_below = false;
            let mut meta = None;
            let mut components = path.components().peekable();
            if components.peek().is_none() {
                return Ok(Some(Entry { meta: fs::symlink_metadata(&real)?, real }));
            }
            while let Some(component) = components.next() {
                real.push(component);
                let found = match fs::symlink_metadata(&real) {
                    Ok(found) => found,
                    Err(it) if it.kind() == io::ErrorKind::NotFound => {
                        if stop_below {
                            return Ok(None);
                        }
                        continue 'layers;
                    }
                    Err(it) => return Err(it),
                };
                if is_whiteout(&found) {
                    return Ok(None);
                }
                let is_last = components.peek().is_none();
                if !is_last && !found.is_dir() {
                    return Ok(None); // a file hides whatever directory lies below it
                }
                if !is_last && index + 1 < self.layers.len() {
                    stop_below |= is_opaque(&real);
                }
                meta = Some(found);
            }
            let meta = meta.expect("the path has at least one component");
            return Ok(Some(Entry { real, meta }));
        }
        Ok(None)
    }

    /// Follows links inside the view. Returns the path that they lead to and the entry there.
    pub fn resolve(&self, path: &Path, last: LastLink) -> io::Result<Option<(PathBuf, Entry)>> {
        let mut pending: Vec<OsString> = reversed(path);
        let mut at = PathBuf::new();
        let mut links = 0;
        let mut entry = self.entry(&at)?;
        while let Some(part) = pending.pop() {
            if part == ".." {
                at.pop();
                entry = self.entry(&at)?;
                continue;
            }
            at.push(&part);
            entry = self.entry(&at)?;
            let Some(found) = &entry else { return Ok(None) };
            if found.meta.is_symlink() && (!pending.is_empty() || last == LastLink::Follow) {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::other("too many symbolic links"));
                }
                let target = fs::read_link(&found.real)?;
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::new();
                }
                pending.extend(reversed(&target));
                entry = self.entry(&at)?;
            }
        }
        Ok(entry.map(|it| (at, it)))
    }

    /// What lies in a directory (a path as for [`View::entry`]), by name.
    pub fn read_directory(&self, path: &Path) -> io::Result<BTreeMap<OsString, Entry>> {
        let mut found: BTreeMap<OsString, Option<Entry>> = BTreeMap::new();
        for layer in &self.layers {
            let real = layer.join(path);
            match fs::symlink_metadata(&real) {
                Ok(it) if it.is_dir() => {}
                Ok(_) => break,
                // Something above it is hidden or a file here, and so is everything in the layers below.
                Err(it) if it.kind() == io::ErrorKind::NotADirectory => break,
                Err(it) if it.kind() == io::ErrorKind::NotFound => continue,
                Err(it) => return Err(it),
            }
            for entry in fs::read_dir(&real)? {
                let entry = entry?;
                let meta = fs::symlink_metadata(entry.path())?;
                let child = path.join(entry.file_name());
                if layer == Path::new("/") && self.is_masked(&child) {
                    continue;
                }
                let value = (!is_whiteout(&meta)).then(|| Entry { real: entry.path(), meta });
                found.entry(entry.file_name()).or_insert(value);
            }
            if self.layers.len() > 1 && is_opaque_somewhere(layer, path) {
                break;
            }
        }
        Ok(found.into_iter().filter_map(|(name, entry)| Some((name, entry?))).collect())
    }

    /// The content of a small file, following links; `None` when there is none.
    pub fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        match self.resolve(path, LastLink::Follow)? {
            Some((_, entry)) if entry.meta.is_file() && entry.meta.len() <= bytes_max => {
                fs::read(entry.real).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Hidden by the host image's masks.
    fn is_masked(&self, path: &Path) -> bool {
        // Other file systems, which an overlay over `/` does not see.
        if ["proc", "sys", "dev"].iter().any(|it| path.starts_with(it) && path != Path::new(it)) {
            return true;
        }
        let hidden = self.masks.iter().any(|mask| path.starts_with(mask));
        let visible = || self.shown.iter().any(|shown| path.starts_with(shown) || shown.starts_with(path));
        let is_mask_directory =
            || self.masks.iter().any(|it| it == path) && Path::new("/").join(path).is_dir();
        hidden && !visible() && !is_mask_directory()
    }
}

/// What [`View::resolve`] does with a link at the end of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    Follow,
    Keep,
}

fn reversed(path: &Path) -> Vec<OsString> {
    path.components()
        .rev()
        .filter_map(|it| match it {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

pub(crate) fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(path: &Path) -> bool {
    matches!(xattr::get(path, XATTR_OPAQUE), Ok(Some(value)) if value == b"y")
}

fn is_opaque_somewhere(layer: &Path, path: &Path) -> bool {
    path.ancestors().any(|it| !it.as_os_str().is_empty() && is_opaque(&layer.join(it)))
}
