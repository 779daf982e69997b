//! Files in and out of containers: `docker cp`, `docker export`, `docker diff`.
//!
//! Whatever a container did to its files, nothing here leaves its root: paths are resolved by `pathrs` inside of
//! it, and directories are walked by descriptors that follow no link.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path as FilePath, PathBuf};

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use base64::Engine as _;
use bytes::Bytes;
use futures::StreamExt;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use pathrs::flags::OpenFlags;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::answer::{Query, ToChannel, json as answer, nanos, streamed};
use crate::container::Container;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::node::{Mount, RootWork};

const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks between the thread that reads files and the connection.
const CHUNKS_MAX: usize = 8;
const TAR: &str = "application/x-tar";
const STAT_HEADER: &str = "x-docker-container-path-stat";
/// Deeper trees are not files of a program.
const DEPTH_MAX: usize = 256;

fn mounts_of(container: &Container) -> Vec<Mount> {
    let kept = container.record.mounts.iter().filter(|it| it.kind != "tmpfs");
    kept.map(|it| Mount {
        source: it.source.clone().into(),
        destination: it.destination.clone().into(),
        read_only: it.read_only,
    })
    .collect()
}

async fn on_root(engine: &Engine, container: &Container, work: RootWork) -> Result<()> {
    let (namespace, pod) = (container.namespace(), container.pod_name());
    let mounts = mounts_of(container);
    Ok(engine.node.with_root(namespace, pod, container.pod_image(), mounts, work).await?)
}

fn path_of(query: &Query) -> Result<String> {
    let path = query.get("path").ok_or_else(|| Error::bad("missing parameter: path"))?;
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

/// Follows a last link only where the path says so: `link/`, `link/.`.
fn wants_target(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.")
}

fn resolve(root: &pathrs::Root, path: &str) -> io::Result<OwnedFd> {
    let handle = if wants_target(path) { root.resolve(path) } else { root.resolve_nofollow(path) };
    handle.map(OwnedFd::from).map_err(not_found)
}

/// With the kernel's own number, by which a path that is not there is told from one that is refused.
fn not_found(error: pathrs::error::Error) -> io::Error {
    match error.kind() {
        pathrs::error::ErrorKind::OsError(Some(number)) => io::Error::from_raw_os_error(number),
        _ => io::Error::other(error),
    }
}

fn meta(descriptor: &OwnedFd) -> io::Result<std::fs::Metadata> {
    File::from(descriptor.try_clone()?).metadata()
}

fn link_target(descriptor: &OwnedFd) -> io::Result<PathBuf> {
    Ok(nix::fcntl::readlinkat(descriptor.as_fd(), "")?.into())
}

/// Go's `os.FileMode`.
fn go_mode(meta: &std::fs::Metadata) -> u32 {
    let (mode, kind) = (meta.mode(), meta.file_type());
    let mut out = mode & 0o777;
    for (is, bit) in [
        (kind.is_dir(), 31),
        (kind.is_symlink(), 27),
        (kind.is_block_device() || kind.is_char_device(), 26),
        (kind.is_fifo(), 25),
        (kind.is_socket(), 24),
        (mode & 0o4000 != 0, 23),
        (mode & 0o2000 != 0, 22),
        (kind.is_char_device(), 21),
        (mode & 0o1000 != 0, 20),
    ] {
        if is {
            out |= 1 << bit;
        }
    }
    out
}

fn stat_of(path: &str, descriptor: &OwnedFd) -> io::Result<Value> {
    let meta = meta(descriptor)?;
    let name = FilePath::new(path).file_name().map_or("/".into(), |it| it.to_string_lossy().into_owned());
    let target = match meta.is_symlink() {
        true => link_target(descriptor)?.display().to_string(),
        false => String::new(),
    };
    let at = jiff::Timestamp::new(meta.mtime(), i32::try_from(meta.mtime_nsec()).unwrap_or(0));
    Ok(json!({"name": name, "size": meta.len(), "mode": go_mode(&meta),
        "mtime": nanos(at.unwrap_or_default()), "linkTarget": target}))
}

fn with_stat(mut response: Response, stat: &Value) -> Response {
    let text = base64::engine::general_purpose::STANDARD.encode(stat.to_string());
    if let Ok(value) = http::HeaderValue::from_str(&text) {
        response.headers_mut().insert(STAT_HEADER, value);
    }
    response
}

fn missing(container: &Container, path: &str, error: Error) -> Error {
    let lost = ["No such file", "not found", "os error 2"].iter().any(|it| error.message.contains(it));
    match lost {
        true => Error::missing(format!("Could not find the file {path} in container {}", container.name)),
        false => error,
    }
}

async fn stat(engine: &Engine, container: &Container, path: &str) -> Result<Value> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let wanted = path.to_owned();
    let work: RootWork = Box::new(move |root| {
        let root = pathrs::Root::from_fd(root);
        let stat = resolve(&root, &wanted).and_then(|it| stat_of(&wanted, &it))?;
        let _ = tell.send(stat);
        Ok(())
    });
    on_root(engine, container, work).await.map_err(|error| missing(container, path, error))?;
    told.await.map_err(|_| Error::server("the file's facts were not told"))
}

pub async fn head(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let path = path_of(&Query::parse(query.as_deref()))?;
    let container = engine.container(&wanted)?;
    let stat = stat(&engine, &container, &path).await?;
    Ok(with_stat(Response::new(Body::empty()), &stat))
}

pub async fn get(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let path = path_of(&Query::parse(query.as_deref()))?;
    let container = engine.container(&wanted)?;
    let stat = stat(&engine, &container, &path).await?;
    let name = match path.ends_with("/.") {
        true => ".".to_owned(),
        false => FilePath::new(&path).file_name().map_or(".".into(), |it| it.to_string_lossy().into_owned()),
    };
    Ok(with_stat(send(engine, container, path, name.into()), &stat))
}

/// `docker export`: everything.
pub async fn export(State(engine): State<Engine>, Path(wanted): Path<String>) -> Result<Response> {
    let container = engine.container(&wanted)?;
    engine.tell_container("export", &container, json!({}));
    Ok(send(engine, container, "/".into(), PathBuf::new()))
}

/// The tree at `path` as an archive whose entries begin with `name`.
fn send(engine: Engine, container: Container, path: String, name: PathBuf) -> Response {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_MAX);
    let errors = sender.clone();
    let work: RootWork = Box::new(move |root| {
        let root = pathrs::Root::from_fd(root);
        let top = resolve(&root, &path)?;
        let mut out = tar::Builder::new(io::BufWriter::with_capacity(CHUNK_BYTES, ToChannel(sender)));
        pack(&mut out, &top, &name, meta(&top)?.dev(), 0)?;
        out.into_inner()?.flush()
    });
    tokio::spawn(async move {
        if let Err(error) = on_root(&engine, &container, work).await {
            // The head is on its way already: a broken body is how the client hears of it.
            let _ = errors.send(Err(io::Error::other(error.message))).await;
        }
    });
    streamed(TAR, tokio_stream::wrappers::ReceiverStream::new(receiver))
}

/// Adds what a descriptor stands for, and everything below it.
fn pack<W: Write>(
    out: &mut tar::Builder<W>,
    from: &OwnedFd,
    name: &FilePath,
    device: u64,
    depth: usize,
) -> io::Result<()> {
    let meta = meta(from)?;
    let kind = meta.file_type();
    if kind.is_socket() || depth > DEPTH_MAX {
        return Ok(());
    }
    let mut header = tar::Header::new_gnu();
    header.set_uid(u64::from(meta.uid()));
    header.set_gid(u64::from(meta.gid()));
    header.set_mode(meta.mode() & 0o7777);
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_size(0);
    let reopened = format!("/proc/self/fd/{}", from.as_raw_fd());
    if kind.is_dir() {
        header.set_entry_type(tar::EntryType::Directory);
        if !name.as_os_str().is_empty() {
            out.append_data(&mut header, name.join(""), io::empty())?;
        }
        // What is mounted by the runtime is no file of the container: `/proc`, `/sys`, `/dev`.
        let is_special = depth == 1
            && name.components().count() == 1
            && meta.dev() != device
            && ["proc", "sys", "dev"].iter().any(|it| name == FilePath::new(it));
        if is_special {
            return Ok(());
        }
        let mut names: Vec<OsString> = std::fs::read_dir(&reopened)?
            .map(|entry| entry.map(|it| it.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        let directory = File::open(&reopened)?;
        for child in names {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let opened = match openat(directory.as_fd(), child.as_os_str(), flags, Mode::empty()) {
                Ok(opened) => opened,
                // Gone meanwhile.
                Err(nix::errno::Errno::ENOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            pack(out, &opened, &name.join(&child), device, depth + 1)?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        header.set_entry_type(tar::EntryType::Symlink);
        return out.append_link(&mut header, name, link_target(from)?);
    }
    if kind.is_file() {
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(meta.len());
        // A file that shrinks meanwhile is filled up: the archive must not break.
        let file = File::open(&reopened)?.take(meta.len()).chain(io::repeat(0)).take(meta.len());
        return out.append_data(&mut header, name, file);
    }
    header.set_entry_type(match () {
        () if kind.is_fifo() => tar::EntryType::Fifo,
        () if kind.is_char_device() => tar::EntryType::Char,
        () => tar::EntryType::Block,
    });
    header.set_device_major(nix::sys::stat::major(meta.rdev()) as u32)?;
    header.set_device_minor(nix::sys::stat::minor(meta.rdev()) as u32)?;
    out.append_data(&mut header, name, io::empty())
}

pub async fn put(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let path = path_of(&query)?;
    let container = engine.container(&wanted)?;
    let _turn = engine.turn(container.id()).await;
    let in_mount = |it: &&crate::container::MountPoint| FilePath::new(&path).starts_with(&it.destination);
    if container.record.host_config["ReadonlyRootfs"] == true
        && !container.record.mounts.iter().any(|it| in_mount(&it))
    {
        return Err(Error::bad("container rootfs is marked read-only"));
    }
    let keep_kinds = query.is("noOverwriteDirNonDir");
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(CHUNKS_MAX);
    let feed = async move {
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            if sender.send(chunk.map_err(io::Error::other)).await.is_err() {
                return;
            }
        }
    };
    let to = path.clone();
    let work: RootWork = Box::new(move |root| {
        let root = pathrs::Root::from_fd(root);
        let place = root.resolve(&to).map_err(not_found)?;
        if !meta(&OwnedFd::from(place))?.is_dir() {
            return Err(io::Error::other("extraction point is not a directory"));
        }
        let from = FromChannel { receiver, rest: Bytes::new() };
        let plain = naru_image::decompress(from)?;
        extract(&root, FilePath::new(&to), plain, keep_kinds)
    });
    let ((), done) = tokio::join!(feed, on_root(&engine, &container, work));
    done.map_err(|error| match error.message.contains("extraction point") {
        true => Error::bad(error.message),
        false => missing(&container, &path, error),
    })?;
    engine.tell_container("extract-to-dir", &container, json!({}));
    Ok(Response::new(Body::empty()))
}

struct FromChannel {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for FromChannel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.rest = chunk?,
                None => return Ok(0),
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

/// An entry's path below `base`, without ways out.
fn below(base: &FilePath, name: &FilePath) -> io::Result<PathBuf> {
    let mut path = base.to_owned();
    for part in name.components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir | Component::RootDir => {}
            _ => {
                return Err(io::Error::other(format!(
                    "the archive names {}, which leads out",
                    name.display()
                )));
            }
        }
    }
    Ok(path)
}

fn extract(root: &pathrs::Root, base: &FilePath, archive: impl Read, keep_kinds: bool) -> io::Result<()> {
    let mut directories: Vec<(PathBuf, i64)> = Vec::new();
    naru_image::each_entry::<_, io::Error>(archive, |entry| {
        let path = below(base, &entry.path()?)?;
        let header = entry.header().clone();
        let mode = header.mode()? & 0o7777;
        let (uid, gid) = (header.uid()? as u32, header.gid()? as u32);
        let mtime = i64::try_from(header.mtime()?).unwrap_or(0);
        if path == base {
            return Ok(());
        }
        let permissions = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode;
        if let Some(parent) = path.parent() {
            root.mkdir_all(parent, &permissions(0o755)).map_err(io::Error::other)?;
        }
        let there = root.resolve_nofollow(&path).ok().map(OwnedFd::from);
        let is_directory = there.as_ref().and_then(|it| meta(it).ok()).map(|it| it.is_dir());
        let kind = header.entry_type();
        if keep_kinds && is_directory.is_some_and(|it| it != kind.is_dir()) {
            let what =
                if kind.is_dir() { "non-directory with directory" } else { "directory with non-directory" };
            return Err(io::Error::other(format!("cannot overwrite {what} \"{}\"", path.display())));
        }
        match is_directory {
            Some(true) if kind.is_dir() => {}
            Some(true) => root.remove_all(&path).map_err(io::Error::other)?,
            Some(false) => root.remove_file(&path).map_err(io::Error::other)?,
            None => {}
        }
        match kind {
            tar::EntryType::Directory => {
                root.mkdir_all(&path, &permissions(mode)).map_err(io::Error::other)?;
                directories.push((path.clone(), mtime));
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let mut file = root
                    .create_file(&path, OpenFlags::O_WRONLY, &permissions(0o600))
                    .map_err(io::Error::other)?;
                io::copy(entry, &mut file)?;
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name()?.unwrap_or_default().into_owned();
                root.create(&path, &pathrs::InodeType::Symlink(target)).map_err(io::Error::other)?;
            }
            tar::EntryType::Link => {
                let target = below(base, &entry.link_name()?.unwrap_or_default())?;
                root.create(&path, &pathrs::InodeType::Hardlink(target)).map_err(io::Error::other)?;
                return Ok(());
            }
            tar::EntryType::Fifo => {
                root.create(&path, &pathrs::InodeType::Fifo(permissions(mode))).map_err(io::Error::other)?;
            }
            tar::EntryType::XGlobalHeader => return Ok(()),
            other => {
                return Err(io::Error::other(format!(
                    "{}: entries of the kind {other:?} are not copied",
                    path.display()
                )));
            }
        }
        let made = OwnedFd::from(root.resolve_nofollow(&path).map_err(not_found)?);
        apply(&made, mode, uid, gid, mtime, kind == tar::EntryType::Symlink)
    })?;
    // Inner ones first; what was put into them has changed their times.
    for (path, mtime) in directories.into_iter().rev() {
        let made = OwnedFd::from(root.resolve_nofollow(&path).map_err(not_found)?);
        set_time(&made, mtime)?;
    }
    Ok(())
}

fn apply(made: &OwnedFd, mode: u32, uid: u32, gid: u32, mtime: i64, is_link: bool) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    nix::unistd::fchownat(
        made.as_fd(),
        "",
        Some(nix::unistd::Uid::from_raw(uid)),
        Some(nix::unistd::Gid::from_raw(gid)),
        nix::fcntl::AtFlags::AT_EMPTY_PATH,
    )?;
    if is_link {
        return Ok(());
    }
    let place = format!("/proc/self/fd/{}", made.as_raw_fd());
    std::fs::set_permissions(place, std::fs::Permissions::from_mode(mode))?;
    set_time(made, mtime)
}

fn set_time(made: &OwnedFd, mtime: i64) -> io::Result<()> {
    use nix::sys::time::TimeSpec;
    let at = TimeSpec::new(mtime, 0);
    let place = format!("/proc/self/fd/{}", made.as_raw_fd());
    let here = nix::fcntl::AT_FDCWD;
    nix::sys::stat::utimensat(here, place.as_str(), &at, &at, nix::sys::stat::UtimensatFlags::FollowSymlink)?;
    Ok(())
}

/// `docker diff`.
pub async fn changes(State(engine): State<Engine>, Path(wanted): Path<String>) -> Result<Response> {
    let container = engine.container(&wanted)?;
    let Some(files) = engine.node.files(container.namespace(), container.pod_name())? else {
        return Ok(answer(json!([])));
    };
    let image = container.pod_image().to_owned();
    let store = engine.images.clone();
    let found = tokio::task::spawn_blocking(move || -> Result<Vec<Value>> {
        let image = store.local(&image)?.ok_or_else(|| Error::no_image(&image))?;
        Ok(compare(&files, &image.view())?)
    });
    Ok(answer(json!(found.await.map_err(|it| Error::server(it.to_string()))??)))
}

/// What the runtime made in the container's files only to mount on.
pub fn stubs(files: &crate::node::Files) -> Vec<PathBuf> {
    let text = std::fs::read(files.directory.join("stubs.json")).ok();
    text.and_then(|it| serde_json::from_slice(&it).ok()).unwrap_or_default()
}

fn compare(files: &crate::node::Files, image: &naru_image::View) -> io::Result<Vec<Value>> {
    const CHANGED: u8 = 0;
    const ADDED: u8 = 1;
    const DELETED: u8 = 2;
    let stubs = stubs(files);
    let mut found = Vec::new();
    fn walk(
        upper: &FilePath,
        relative: &FilePath,
        image: &naru_image::View,
        stubs: &[PathBuf],
        found: &mut Vec<Value>,
    ) -> io::Result<()> {
        let mut names: Vec<OsString> = std::fs::read_dir(upper.join(relative))?
            .map(|it| it.map(|it| it.file_name()))
            .collect::<io::Result<_>>()?;
        names.sort();
        for name in names {
            let path = relative.join(name);
            let meta = upper.join(&path).symlink_metadata()?;
            let shown = FilePath::new("/").join(&path);
            let before = image.entry(&path)?;
            let is_gone = meta.file_type().is_char_device() && meta.rdev() == 0;
            let is_stub = before.is_none() && stubs.contains(&shown) && (meta.is_dir() || meta.len() == 0);
            if !is_stub {
                let kind = match () {
                    () if is_gone => DELETED,
                    () if before.is_some() => CHANGED,
                    () => ADDED,
                };
                found.push(json!({"Path": shown, "Kind": kind}));
            }
            if meta.is_dir() {
                walk(upper, &path, image, stubs, found)?;
            }
        }
        Ok(())
    }
    walk(&files.upper, FilePath::new(""), image, &stubs, &mut found)?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut out = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            header.set_mtime(1_000_000);
            header.set_uid(u64::from(nix::unistd::getuid().as_raw()));
            header.set_gid(u64::from(nix::unistd::getgid().as_raw()));
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            if kind.is_file() {
                header.set_size(content.len() as u64);
                header.set_cksum();
                out.append(&header, content.as_bytes()).unwrap();
            } else {
                header.set_size(0);
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
                header.set_cksum();
                out.append(&header, io::empty()).unwrap();
            }
        }
        out.into_inner().unwrap()
    }

    /// A marker outside of the root that must never be touched.
    fn check(entries: &[(&str, tar::EntryType, &str)]) -> (tempfile::TempDir, io::Result<()>) {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("marker"), "harmless").unwrap();
        let inside = outside.path().join("root");
        std::fs::create_dir_all(inside.join("d")).unwrap();
        let root = pathrs::Root::open(&inside).unwrap();
        let result = extract(&root, FilePath::new("/d"), &archive(entries)[..], false);
        assert_eq!(std::fs::read_to_string(outside.path().join("marker")).unwrap(), "harmless");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 2, "nothing new beside the root");
        (outside, result)
    }

    #[test]
    fn archives_never_leave_the_root() {
        use tar::EntryType::{Link, Regular, Symlink};
        assert!(check(&[("../../marker", Regular, "bad")]).1.is_err());
        // A link to the outside is resolved inside: the file lands below the root.
        let (made, result) = check(&[("up", Symlink, "../../.."), ("up/marker", Regular, "bad")]);
        result.unwrap();
        assert_eq!(std::fs::read_to_string(made.path().join("root/marker")).unwrap(), "bad");
        assert!(check(&[("hard", Link, "../../marker")]).1.is_err());
        let (made, result) = check(&[("a/b", Regular, "x"), ("a/c", Link, "a/b"), ("a/b", Regular, "y")]);
        result.unwrap();
        assert_eq!(std::fs::read_to_string(made.path().join("root/d/a/c")).unwrap(), "x");
    }

    #[test]
    fn what_is_packed_follows_no_link() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("marker"), "secret").unwrap();
        let inside = outside.path().join("root");
        std::fs::create_dir_all(inside.join("d")).unwrap();
        std::fs::write(inside.join("d/file"), "content").unwrap();
        std::os::unix::fs::symlink("../../marker", inside.join("d/link")).unwrap();
        let root = pathrs::Root::open(&inside).unwrap();
        let mut out = tar::Builder::new(Vec::new());
        let top = resolve(&root, "/d").unwrap();
        pack(&mut out, &top, FilePath::new("d"), meta(&top).unwrap().dev(), 0).unwrap();
        let bytes = out.into_inner().unwrap();
        let names: Vec<String> = tar::Archive::new(&bytes[..])
            .entries()
            .unwrap()
            .map(|it| it.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["d/", "d/file", "d/link"]);
        assert!(!String::from_utf8_lossy(&bytes).contains("secret"));
        assert_eq!(resolve(&root, "/d/nothing").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
