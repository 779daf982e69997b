//! A directory becomes a layer archive, byte for byte the same for the same content: entries sorted by
//! name, numeric owners, no user names, whole seconds. Overlayfs's marks in the directory (what a
//! container deleted) become the archive's whiteouts.

use crate::unpack::XATTR_OPAQUE;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("cannot read `{path}` for the layer")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the layer archive")]
    Write(#[source] io::Error),
    #[error(
        "`{path}` was moved by overlayfs's redirect_dir or metacopy, which a layer cannot express; \
         mount containers with redirect_dir=off,metacopy=off"
    )]
    Redirected { path: PathBuf },
}

impl PackError {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Write(it) if it.kind() == io::ErrorKind::StorageFull)
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    pub entries: u64,
}

/// Writes the archive of everything below `root`. Times later than `time_max` become `time_max`.
pub fn pack(root: &Path, time_max: Option<i64>, out: impl Write) -> Result<Packed, PackError> {
    let mut builder = tar::Builder::new(out);
    let mut packed = Packed::default();
    // First name of every inode that has several: later names become links to it.
    let mut seen: HashMap<(u64, u64), PathBuf> = HashMap::new();
    for entry in walkdir::WalkDir::new(root)
        .min_depth(1)
        .sort_by(|a, b| a.file_name().as_bytes().cmp(b.file_name().as_bytes()))
    {
        let entry = entry.map_err(|it| PackError::Read {
            path: it.path().unwrap_or(root).to_owned(),
            source: it.into_io_error().unwrap_or_else(|| io::Error::other("a loop in the directory")),
        })?;
        let path = entry.path();
        let read = |source: io::Error| PackError::Read { path: path.to_owned(), source };
        let name = path.strip_prefix(root).expect("walkdir stays below its root");
        let meta = fs::symlink_metadata(path).map_err(read)?;
        let kind = meta.file_type();
        if kind.is_socket() {
            continue; // a socket without its process means nothing
        }
        packed.entries += 1;
        let mut header = tar::Header::new_gnu();
        header.set_uid(u64::from(meta.uid()));
        header.set_gid(u64::from(meta.gid()));
        header.set_mode(meta.permissions().mode() & 0o7777);
        let mtime = time_max.map_or(meta.mtime(), |max| meta.mtime().min(max));
        header.set_mtime(u64::try_from(mtime).unwrap_or(0));
        header.set_size(0);

        if kind.is_char_device() && meta.rdev() == 0 {
            let mut hidden = OsString::from(".wh.");
            hidden.push(name.file_name().expect("min_depth(1): every entry has a name"));
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            header.set_mtime(0);
            let name = name.with_file_name(hidden);
            builder.append_data(&mut header, name, io::empty()).map_err(PackError::Write)?;
            continue;
        }
        let attributes = attributes_of(path)?;
        if !attributes.kept.is_empty() {
            let list = attributes.kept.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            builder.append_pax_extensions(list).map_err(PackError::Write)?;
        }
        if meta.nlink() > 1 && !kind.is_dir() {
            if let Some(first) = seen.get(&(meta.dev(), meta.ino())) {
                header.set_entry_type(tar::EntryType::Link);
                builder.append_link(&mut header, name, first).map_err(PackError::Write)?;
                continue;
            }
            seen.insert((meta.dev(), meta.ino()), name.to_owned());
        }
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            let mut with_slash = name.as_os_str().as_bytes().to_vec();
            with_slash.push(b'/');
            let with_slash = PathBuf::from(OsString::from_vec(with_slash));
            builder.append_data(&mut header, with_slash, io::empty()).map_err(PackError::Write)?;
            if attributes.is_opaque {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(0o644);
                header.set_mtime(0);
                header.set_size(0);
                header.set_uid(0);
                header.set_gid(0);
                builder
                    .append_data(&mut header, name.join(".wh..wh..opq"), io::empty())
                    .map_err(PackError::Write)?;
            }
        } else if kind.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            let target = fs::read_link(path).map_err(read)?;
            append_symlink(&mut builder, &mut header, name, &target).map_err(PackError::Write)?;
        } else if kind.is_file() {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(meta.len());
            let file = File::open(path).map_err(read)?;
            // `take`: a file that grows meanwhile must not break the archive.
            builder
                .append_data(&mut header, name, io::Read::take(file, meta.len()))
                .map_err(PackError::Write)?;
        } else {
            let kind = if kind.is_fifo() {
                tar::EntryType::Fifo
            } else if kind.is_char_device() {
                tar::EntryType::Char
            } else {
                tar::EntryType::Block
            };
            header.set_entry_type(kind);
            let number = |it: u64| u32::try_from(it).unwrap_or(0);
            header.set_device_major(number(nix::sys::stat::major(meta.rdev()))).map_err(PackError::Write)?;
            header.set_device_minor(number(nix::sys::stat::minor(meta.rdev()))).map_err(PackError::Write)?;
            builder.append_data(&mut header, name, io::empty()).map_err(PackError::Write)?;
        }
    }
    let mut out = builder.into_inner().map_err(PackError::Write)?;
    out.flush().map_err(PackError::Write)?;
    Ok(packed)
}

/// `append_link` normalises the target as if it were a path of ours; a symbolic link's text is not.
fn append_symlink<W: Write>(
    builder: &mut tar::Builder<W>,
    header: &mut tar::Header,
    name: &Path,
    target: &Path,
) -> io::Result<()> {
    let bytes = target.as_os_str().as_bytes();
    if bytes.len() < 100 && header.set_link_name_literal(bytes).is_ok() {
        return builder.append_data(header, name, io::empty());
    }
    builder.append_link(header, name, target)
}

#[derive(Default)]
struct Attributes {
    is_opaque: bool,
    /// As PAX keys and values.
    kept: Vec<(String, Vec<u8>)>,
}

fn attributes_of(path: &Path) -> Result<Attributes, PackError> {
    let mut found = Attributes::default();
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(it) if it.kind() == io::ErrorKind::Unsupported => return Ok(found),
        Err(source) => return Err(PackError::Read { path: path.to_owned(), source }),
    };
    for name in names {
        let Some(text) = name.to_str() else { continue };
        match text {
            XATTR_OPAQUE => {
                found.is_opaque = xattr::get(path, text).is_ok_and(|it| it.as_deref() == Some(b"y"))
            }
            "trusted.overlay.redirect" | "trusted.overlay.metacopy" => {
                return Err(PackError::Redirected { path: path.to_owned() });
            }
            _ if text.starts_with("user.") || text == "security.capability" => {
                if let Ok(Some(value)) = xattr::get(path, text) {
                    found.kept.push((format!("SCHILY.xattr.{text}"), value));
                }
            }
            _ => {} // overlayfs's bookkeeping, and policies of this machine
        }
    }
    found.kept.sort();
    Ok(found)
}

/// Takes out of a container's upper directory what the container runtime put there rather than the
/// container: mount points under `/proc`, `/sys`, `/dev` and the files that were mounted over.
pub fn remove_runtime_stubs(upper: &Path, mount_points: &[PathBuf]) -> io::Result<()> {
    for stub in mount_points {
        remove_empty(upper, stub)?;
    }
    for directory in ["proc", "sys", "dev"] {
        let path = upper.join(directory);
        // A symbolic link here would be the image's own; it is left alone and not followed.
        if fs::symlink_metadata(&path).is_ok_and(|it| it.is_dir()) {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else {
                    fs::remove_file(entry.path())?;
                }
            }
            fs::remove_dir(&path)?;
        }
    }
    for file in ["resolv.conf", "hosts", "hostname"] {
        let etc = upper.join("etc");
        let path = etc.join(file);
        let is_directory = fs::symlink_metadata(&etc).is_ok_and(|it| it.is_dir());
        if is_directory && fs::symlink_metadata(&path).is_ok_and(|it| it.is_file() && it.len() == 0) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Removes an empty file or directory below `root`, through no link: the container may have put one there.
fn remove_empty(root: &Path, path: &Path) -> io::Result<()> {
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
    use nix::sys::stat::{SFlag, fstatat};
    use nix::unistd::{UnlinkatFlags, unlinkat};
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let Ok(parent) = openat2(File::open(root)?, parent, how) else { return Ok(()) };
    let Ok(stat) = fstatat(&parent, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) else { return Ok(()) };
    let flags = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => UnlinkatFlags::RemoveDir,
        SFlag::S_IFREG if stat.st_size == 0 => UnlinkatFlags::NoRemoveDir,
        _ => return Ok(()),
    };
    match unlinkat(&parent, name, flags) {
        Ok(()) | Err(nix::errno::Errno::ENOTEMPTY | nix::errno::Errno::ENOENT) => Ok(()),
        Err(it) => Err(it.into()),
    }
}
