//! A layer archive becomes a directory that overlayfs can use as a lower layer. The archive is hostile
//! until shown otherwise: nothing is ever written outside the directory, whatever its entries say.
//!
//! How: every parent directory is opened by the kernel with `openat2(RESOLVE_IN_ROOT)`, so `..`, absolute
//! paths and symbolic links in the archive end inside the layer; the last name is then created relative to
//! that descriptor, never followed. Hard links are resolved the same way. Whiteouts of the archive
//! (`.wh.name`, `.wh..wh..opq`) become what overlayfs understands: a 0/0 character device, an xattr.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub const ENTRIES_MAX: u64 = 1_000_000; // a full distribution has about 200,000 files
pub const PATH_BYTES_MAX: usize = 4096; // PATH_MAX; longer paths could not be opened anyway
pub const LAYER_BYTES_MAX: u64 = 64 << 30; // larger than any layer that we have seen; bounds a bomb
/// Compression ratio from which a layer counts as a bomb once it is larger than [`RATIO_FREE_BYTES`].
pub const RATIO_MAX: u64 = 250;
/// Of the headers before one entry: its extended attributes and long names are held in memory.
pub const HEADERS_BYTES_MAX: u64 = 1 << 20; // the kernel allows 64 KiB of attributes
/// Of the paths of all directories, which are held in memory until the end.
pub const DIRECTORIES_BYTES_MAX: usize = 16 << 20; // two hundred thousand of eighty bytes
pub const RATIO_FREE_BYTES: u64 = 256 << 20;
pub const XATTR_OPAQUE: &str = "trusted.overlay.opaque";

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a layer was refused, with the entry that it concerns.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("cannot read the layer archive")]
    Read(#[from] io::Error),
    #[error("the layer archive is refused: {why} in entry `{entry}`")]
    Refused { why: &'static str, entry: String },
    #[error("the layer archive is refused: {why}")]
    Limit { why: String },
    #[error("cannot write `{entry}` of the layer")]
    Write { entry: String, source: io::Error },
}

impl UnpackError {
    /// The disk is full: worth another try once there is room.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull)
    }
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    pub bytes: u64,
    /// Device nodes that were left out because they would reach the machine's hardware.
    pub devices_left_out: u64,
}

/// How the bytes of a layer are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// By the first bytes: what a media type says is not always true.
    pub fn sniff(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Counts the compressed bytes that went in, so that the ratio is known while the output grows.
struct Counting<R> {
    inner: R,
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes.set(self.bytes.get() + n as u64);
        Ok(n)
    }
}

/// Fails once more comes out than a sane layer holds.
struct Bounded<R> {
    inner: R,
    compressed: Rc<Cell<u64>>,
    bytes: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.bytes += n as u64;
        if self.bytes > LAYER_BYTES_MAX {
            return Err(io::Error::other("more than 64 GiB unpacked"));
        }
        if self.bytes > RATIO_FREE_BYTES && self.bytes / self.compressed.get().max(1) > RATIO_MAX {
            return Err(io::Error::other("it grows more than 250 times when unpacked: a decompression bomb"));
        }
        Ok(n)
    }
}

/// The plain archive behind a possibly compressed stream, bounded against bombs.
pub fn decompress<'a>(reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let compressed = Rc::new(Cell::new(0));
    let mut counting =
        io::BufReader::with_capacity(128 * 1024, Counting { inner: reader, bytes: Rc::clone(&compressed) });
    let kind = Compression::sniff(io::BufRead::fill_buf(&mut counting)?);
    let inner: Box<dyn Read + 'a> = match kind {
        Compression::None => return Ok(Box::new(counting)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(counting)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(counting)?),
    };
    Ok(Box::new(Bounded { inner, compressed, bytes: 0 }))
}

/// Unpacks a layer's plain archive into `root`, an existing directory of ours.
pub fn unpack(archive: &mut dyn Read, root: &Path) -> Result<Unpacked, UnpackError> {
    unpack_as(archive, root, Whiteouts::Hide)
}

/// What a name that begins with `.wh.` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// It hides something of the layers below.
    Hide,
    /// It is a file like any other: in a build context.
    Keep,
    /// No layer could hold such a file: an archive that `ADD` unpacks into one must not have it.
    Refuse,
}

/// As [`unpack`], for archives that are no layers.
pub fn unpack_as(archive: &mut dyn Read, root: &Path, whiteouts: Whiteouts) -> Result<Unpacked, UnpackError> {
    let open = File::open(root).map_err(|source| UnpackError::Write { entry: ".".into(), source })?;
    let mut unpacker = Unpacker {
        root: open.into(),
        whiteouts,
        parent: None,
        times: Times::default(),
        done: Unpacked::default(),
    };
    let mut rest = each_entry(archive, |entry| {
        unpacker.done.entries += 1;
        if unpacker.done.entries > ENTRIES_MAX {
            return Err(UnpackError::Limit { why: format!("more than {ENTRIES_MAX} entries") });
        }
        unpacker.entry(entry)
    })?;
    // What follows the end mark belongs to the stream's digest.
    io::copy(&mut rest, &mut io::sink()).map_err(UnpackError::Read)?;
    unpacker.finish()
}

/// Goes through an archive whose headers are limited: the reader of archives takes whatever they say into memory.
/// Returns what follows the end mark.
pub fn each_entry<R: Read, E: From<io::Error>>(
    archive: R,
    mut each: impl FnMut(&mut tar::Entry<'_, Headers<R>>) -> Result<(), E>,
) -> Result<R, E> {
    let left = Rc::new(Cell::new(HEADERS_BYTES_MAX));
    let mut archive = tar::Archive::new(Headers { inner: archive, left: Rc::clone(&left) });
    for entry in archive.entries()? {
        let mut entry = entry?;
        left.set(u64::MAX);
        each(&mut entry)?;
        // What nobody wanted of it: the next step reads headers only.
        io::copy(&mut entry, &mut io::sink())?;
        left.set(HEADERS_BYTES_MAX);
    }
    Ok(archive.into_inner().inner)
}

/// The bytes of an archive, so many of them as may be headers.
pub struct Headers<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Headers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other("the headers of one entry are larger than 1 MiB"));
        }
        let length = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..length])?;
        self.left.set(left - read as u64);
        Ok(read)
    }
}

/// Modification times of directories, set at the end because filling a directory changes them.
#[derive(Default)]
struct Times {
    list: Vec<(PathBuf, i64)>,
    bytes: usize,
}

impl Times {
    fn push(&mut self, path: PathBuf, mtime: i64) -> Result<(), UnpackError> {
        self.bytes += path.as_os_str().len() + size_of::<(PathBuf, i64)>();
        if self.bytes > DIRECTORIES_BYTES_MAX {
            let why =
                format!("the names of its directories take more than {} MiB", DIRECTORIES_BYTES_MAX >> 20);
            return Err(UnpackError::Limit { why });
        }
        self.list.push((path, mtime));
        Ok(())
    }
}

struct Unpacker {
    root: OwnedFd,
    whiteouts: Whiteouts,
    /// The parent directory that was opened last: archives list a directory's files one after the other.
    parent: Option<(PathBuf, OwnedFd)>,
    times: Times,
    done: Unpacked,
}

struct Meta {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    mtime: i64,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Unpacker {
    fn entry(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), UnpackError> {
        use tar::EntryType as T;
        let name = String::from_utf8_lossy(&entry.path_bytes()).chars().take(200).collect::<String>();
        let refuse = |why| UnpackError::Refused { why, entry: name.clone() };
        let kind = entry.header().entry_type();
        if matches!(kind, T::XGlobalHeader) {
            return Ok(());
        }
        let meta = read_meta(entry).map_err(refuse)?;
        let path = clean_path(&entry.path_bytes()).map_err(refuse)?;
        let Some(last) = path.file_name().map(OsStr::to_owned) else {
            // The root itself: its attributes count, nothing is created.
            if kind.is_dir() {
                let fail = |it: Errno| UnpackError::Write { entry: ".".into(), source: it.into() };
                nix::sys::stat::fchmod(&self.root, meta.mode).map_err(fail)?;
                nix::unistd::fchown(&self.root, Some(meta.uid), Some(meta.gid)).map_err(fail)?;
                self.times.push(PathBuf::from("."), meta.mtime)?;
                return Ok(());
            }
            return Err(refuse("the path is empty"));
        };
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        let write = |source: io::Error| UnpackError::Write { entry: name.clone(), source };

        self.open_parent(&parent).map_err(write)?;
        let directory = &self.parent.as_ref().expect("opened one line above").1;

        let hides = self.whiteouts == Whiteouts::Hide;
        if hides && last.as_bytes() == WHITEOUT_OPAQUE {
            return xattr::set(through(directory, OsStr::new(".")), XATTR_OPAQUE, b"y").map_err(write);
        }
        if self.whiteouts == Whiteouts::Refuse && last.as_bytes().starts_with(WHITEOUT_PREFIX) {
            return Err(refuse("a name that would hide another file of the image (`.wh.`)"));
        }
        if let Some(hidden) = last.as_bytes().strip_prefix(WHITEOUT_PREFIX).filter(|_| hides) {
            if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(refuse("a whiteout without a name"));
            }
            return whiteout(directory, OsStr::from_bytes(hidden)).map_err(write);
        }

        let mut link_target = None;
        if matches!(kind, T::Link) {
            let target = entry.link_name_bytes().ok_or_else(|| refuse("a hard link without a target"))?;
            link_target = Some(clean_path(&target).map_err(refuse)?);
        }
        let replaced = remove_existing(directory, &last, kind.is_dir()).map_err(write)?;
        match kind {
            T::Directory => {
                if replaced != Existing::Directory {
                    mkdirat(directory, last.as_os_str(), Mode::from_bits_truncate(0o755))
                        .map_err(|it| write(it.into()))?;
                }
                if replaced == Existing::Whiteout {
                    xattr::set(through(directory, &last), XATTR_OPAQUE, b"y").map_err(write)?;
                }
                self.times.push(path.clone(), meta.mtime)?;
            }
            T::Regular | T::Continuous | T::GNUSparse => {
                let how = OpenHow::new()
                    .flags(
                        OFlag::O_CREAT
                            | OFlag::O_EXCL
                            | OFlag::O_WRONLY
                            | OFlag::O_CLOEXEC
                            | OFlag::O_NOFOLLOW,
                    )
                    .mode(Mode::from_bits_truncate(0o600))
                    .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
                let file = openat2(directory, last.as_os_str(), how).map_err(|it| write(it.into()))?;
                self.done.bytes += copy(entry, &mut File::from(file), &name)?;
            }
            T::Symlink => {
                let target =
                    entry.link_name_bytes().ok_or_else(|| refuse("a symbolic link without a target"))?;
                if target.len() > PATH_BYTES_MAX {
                    return Err(refuse("the link's target is too long"));
                }
                symlinkat(OsStr::from_bytes(&target), directory, last.as_os_str())
                    .map_err(|it| write(it.into()))?;
            }
            T::Link => {
                let target = link_target.expect("set above for every hard link");
                let Some(target_name) = target.file_name() else {
                    return Err(refuse("a hard link to the root"));
                };
                let from = resolve_directory(&self.root, target.parent().unwrap_or(Path::new("")))
                    .map_err(|it| write(it.into()))?;
                linkat(&from, target_name, directory, last.as_os_str(), AtFlags::empty())
                    .map_err(|it| write(it.into()))?;
                return Ok(()); // attributes are the target's
            }
            T::Fifo => mknodat(directory, last.as_os_str(), SFlag::S_IFIFO, Mode::empty(), 0)
                .map_err(|it| write(it.into()))?,
            T::Char | T::Block => {
                let number = |it: io::Result<Option<u32>>| it.ok().flatten().map(u64::from);
                let (major, minor) = (
                    number(entry.header().device_major()).ok_or_else(|| refuse("no device number"))?,
                    number(entry.header().device_minor()).ok_or_else(|| refuse("no device number"))?,
                );
                if !(kind == T::Char && is_harmless(major, minor)) {
                    self.done.devices_left_out += 1;
                    return Ok(());
                }
                let device = nix::sys::stat::makedev(major, minor);
                mknodat(directory, last.as_os_str(), SFlag::S_IFCHR, Mode::empty(), device)
                    .map_err(|it| write(it.into()))?;
            }
            _ => return Err(refuse("an entry of unknown type")),
        }
        apply_meta(directory, &last, &meta, kind).map_err(write)
    }

    /// Opens (and if need be creates) a directory of the layer.
    fn open_parent(&mut self, path: &Path) -> io::Result<()> {
        if self.parent.as_ref().is_some_and(|(open, _)| open == path)
            && is_still_there(&self.root, self.parent.as_ref())
        {
            return Ok(());
        }
        let directory = match resolve_directory(&self.root, path) {
            Err(Errno::ENOENT) => {
                let mut so_far = PathBuf::new();
                for component in path.components() {
                    let above = resolve_directory(&self.root, &so_far)?;
                    match mkdirat(&above, component.as_os_str(), Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(it) => return Err(it.into()),
                    }
                    so_far.push(component);
                }
                resolve_directory(&self.root, path)?
            }
            other => other?,
        };
        self.parent = Some((path.to_owned(), directory));
        Ok(())
    }

    fn finish(self) -> Result<Unpacked, UnpackError> {
        for (path, mtime) in self.times.list.iter().rev() {
            // A directory may have been replaced since: then its time is no longer of interest.
            let Ok(directory) = resolve_directory(&self.root, path) else { continue };
            let time = TimeSpec::new(*mtime, 0);
            nix::sys::stat::futimens(&directory, &time, &time)
                .map_err(|it| UnpackError::Write { entry: path.display().to_string(), source: it.into() })?;
        }
        if self.done.devices_left_out > 0 {
            tracing::warn!(count = self.done.devices_left_out, "device nodes of a layer were left out");
        }
        Ok(self.done)
    }
}

/// A cached descriptor must still be what the path leads to: an entry may have replaced the directory.
fn is_still_there(root: &OwnedFd, cached: Option<&(PathBuf, OwnedFd)>) -> bool {
    let Some((path, open)) = cached else { return false };
    let stat = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|it| (it.st_dev, it.st_ino));
    resolve_directory(root, path).and_then(|now| Ok(stat(&now)? == stat(open)?)).unwrap_or(false)
}

/// The path by which functions without a descriptor argument reach an entry of an open directory.
fn through(directory: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name)
}

/// Opens a directory as a process would whose root is the layer.
fn resolve_directory(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// The path without `.` and leading slashes. `..` is refused: no sane archive has one.
fn clean_path(bytes: &[u8]) -> Result<PathBuf, &'static str> {
    if bytes.len() > PATH_BYTES_MAX {
        return Err("the path is longer than 4096 bytes");
    }
    let mut path = PathBuf::new();
    for part in bytes.split(|it| *it == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("`..` in the path"),
            part if part.contains(&0) => return Err("a NUL byte in the path"),
            part if part.len() > 255 => return Err("a name longer than 255 bytes"),
            part => path.push(OsStr::from_bytes(part)),
        }
    }
    Ok(path)
}

fn read_meta(entry: &mut tar::Entry<'_, impl Read>) -> Result<Meta, &'static str> {
    let header = entry.header();
    let id = |it: io::Result<u64>| it.ok().and_then(|it| u32::try_from(it).ok());
    // Writers that know no owner leave the field empty, which every reader takes for 0.
    let is_blank = |field: &[u8]| field.iter().all(|it| matches!(it, 0 | b' '));
    let (uid, gid) = (&header.as_old().uid, &header.as_old().gid);
    let mut meta = Meta {
        mode: Mode::from_bits_truncate(header.mode().map_err(|_| "a bad mode")? & 0o7777),
        uid: Uid::from_raw(if is_blank(uid) { 0 } else { id(header.uid()).ok_or("a bad user id")? }),
        gid: Gid::from_raw(if is_blank(gid) { 0 } else { id(header.gid()).ok_or("a bad group id")? }),
        mtime: header.mtime().ok().and_then(|it| i64::try_from(it).ok()).unwrap_or(0),
        xattrs: Vec::new(),
    };
    // Two readers that disagree about a size see two different archives (RUSTSEC-2025-0111): whoever
    // writes both sizes must mean the same one. Zero stands for "look at the extension".
    let header_size = header.entry_size().map_err(|_| "a bad size")?;
    let is_sparse = header.entry_type().is_gnu_sparse();
    if !is_sparse && header_size != 0 && header_size != entry.size() {
        return Err("two different sizes");
    }
    let Some(extensions) = entry.pax_extensions().map_err(|_| "a malformed PAX extension")? else {
        return Ok(meta);
    };
    for extension in extensions {
        let extension = extension.map_err(|_| "a malformed PAX extension")?;
        let key = extension.key_bytes();
        if key.starts_with(b"GNU.sparse.") {
            return Err("a sparse file in PAX format, which is not supported");
        }
        if key == b"mtime" {
            let text = extension.value().map_err(|_| "a malformed PAX time")?;
            meta.mtime =
                text.split('.').next().and_then(|it| it.parse().ok()).ok_or("a malformed PAX time")?;
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            // `trusted.*` would be overlayfs's own marks, `security.*` other than file capabilities a
            // policy of another machine.
            if name.starts_with(b"user.") || name == b"security.capability" {
                meta.xattrs.push((OsString::from_vec(name.to_vec()), extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(meta)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Nothing,
    Directory,
    Whiteout,
    Removed,
}

/// A later entry takes an earlier one's place; a directory merges with a directory.
fn remove_existing(directory: &OwnedFd, name: &OsStr, with_directory: bool) -> io::Result<Existing> {
    let stat = match nix::sys::stat::fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(Existing::Nothing),
        other => other?,
    };
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR if with_directory => Ok(Existing::Directory),
        SFlag::S_IFDIR => {
            // The standard library removes by descriptors and never follows a link.
            std::fs::remove_dir_all(through(directory, name))?;
            Ok(Existing::Removed)
        }
        kind => {
            unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?;
            let is_whiteout = kind == SFlag::S_IFCHR && stat.st_rdev == 0;
            Ok(if is_whiteout { Existing::Whiteout } else { Existing::Removed })
        }
    }
}

/// Hides `name` of the layers below. What this same layer holds under that name stays.
fn whiteout(directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match nix::sys::stat::fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR => {
            xattr::set(through(directory, name), XATTR_OPAQUE, b"y")
        }
        Ok(_) => Ok(()),
        Err(Errno::ENOENT) => Ok(mknodat(directory, name, SFlag::S_IFCHR, Mode::empty(), 0)?),
        Err(it) => Err(it.into()),
    }
}

/// null, zero, full, random, urandom, tty, console, ptmx: what every container has anyway.
fn is_harmless(major: u64, minor: u64) -> bool {
    matches!((major, minor), (1, 3 | 5 | 7 | 8 | 9) | (5, 0..=2))
}

fn copy(from: &mut impl Read, to: &mut File, name: &str) -> Result<u64, UnpackError> {
    let mut buffer = vec![0; 128 * 1024];
    let mut bytes = 0;
    loop {
        let n = from.read(&mut buffer).map_err(UnpackError::Read)?;
        if n == 0 {
            return Ok(bytes);
        }
        to.write_all(&buffer[..n]).map_err(|source| UnpackError::Write { entry: name.to_owned(), source })?;
        bytes += n as u64;
    }
}

fn apply_meta(directory: &OwnedFd, name: &OsStr, meta: &Meta, kind: tar::EntryType) -> io::Result<()> {
    fchownat(directory, name, Some(meta.uid), Some(meta.gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if !kind.is_symlink() {
        // After the owner, because changing the owner clears set-user-id. The name was created by us
        // and is no link, so following is safe.
        fchmodat(directory, name, meta.mode, FchmodatFlags::FollowSymlink)?;
    }
    for (key, value) in &meta.xattrs {
        match xattr::set(through(directory, name), key, value) {
            Err(it) if matches!(it.raw_os_error(), Some(libc_enotsup) if libc_enotsup == Errno::ENOTSUP as i32) =>
            {
                tracing::debug!(?key, "the file system does not keep this attribute");
            }
            other => other?,
        }
    }
    let time = TimeSpec::new(meta.mtime, 0);
    Ok(utimensat(directory, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}
