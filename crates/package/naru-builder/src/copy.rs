//! `COPY` and `ADD`: which files go where. Planning looks at the source and at what the stage holds
//! already and decides; writing carries the plan out into a fresh directory that becomes a layer.
//!
//! Links in the stage are followed while planning, so that `COPY x /lib/` lands in `/usr/lib` where the
//! image says so. No path in a plan has a link as a parent: writing cannot be led astray.

use crate::archive;
use crate::cache::FileDigests;
use crate::dialect::leaves_context;
use crate::ignore::Ignore;
use crate::mode::Mode;
use crate::pattern::{is_pattern, matcher};
use naru_image::{Digest, LastLink, UnpackError, View, Whiteouts, unpack_as};
use regex::Regex;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub const FILES_MAX: usize = 1_000_000; // as a layer's entries
pub const BYTES_MAX: u64 = 16 << 30; // of one instruction; larger ones are a forgotten .dockerignore

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("`{0}` is not there{hint}", hint = if *.1 { ": .dockerignore hides it" } else { "" })]
    Missing(String, bool),
    #[error("`{0}` lies outside the build context")]
    Outside(String),
    #[error("`{0}` is a pattern that cannot be understood")]
    Pattern(String),
    #[error("several sources need a directory as their destination; write `{0}/`")]
    NeedsDirectory(String),
    #[error("`{0}` would be both a file and a directory")]
    Conflict(String),
    #[error("there is no {what} `{name}` in the image")]
    NoOwner { what: &'static str, name: String },
    #[error("more than {FILES_MAX} files or 16 GiB; put what the image does not need into .dockerignore")]
    TooMuch,
    #[error("`{0}` cannot be in an image: a name with `.wh.` in front hides another file")]
    Whiteout(String),
    #[error("cannot unpack `{path}`")]
    Unpack { path: String, source: UnpackError },
    #[error("cannot read `{path}`")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write `{path}`")]
    Write { path: PathBuf, source: io::Error },
}

impl CopyError {
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Write { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Unpack { source, .. } => source.is_disk_full(),
            _ => false,
        }
    }
}

/// An instruction with its variables expanded.
#[derive(Debug)]
pub struct Request<'a> {
    pub sources: Vec<Source<'a>>,
    /// Absolute; a trailing slash means a directory.
    pub destination: String,
    /// What the stage holds so far.
    pub stage: &'a View,
    pub owner: Option<(u32, u32)>,
    pub mode: Option<Mode>,
    pub exclude: Vec<String>,
    /// Directories of the sources' paths are kept.
    pub parents: bool,
}

#[derive(Debug, Clone)]
pub enum Source<'a> {
    Path { pattern: String, origin: Origin<'a> },
    Inline { name: String, content: String },
}

/// Where files come from.
#[derive(Debug, Clone)]
pub struct Origin<'a> {
    pub view: View,
    pub ignore: Option<&'a Ignore>,
    pub owners: Owners,
    /// Archives are unpacked.
    pub unpack: bool,
}

/// Whom files belong to without `--chown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Files of the context belong to root: who checked them out does not matter.
    Root,
    /// Files of another stage stay whose they are.
    Kept,
}

/// What to write, by path in the layer.
#[derive(Debug, Default)]
pub struct Plan {
    items: BTreeMap<PathBuf, Item>,
    /// Archives to unpack, and where, in order.
    archives: Vec<(PathBuf, PathBuf)>,
    bytes: u64,
}

#[derive(Debug)]
struct Item {
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    /// A directory that is there already and only named because a layer needs all parents.
    is_parent: bool,
}

#[derive(Debug)]
enum Kind {
    Directory,
    File(PathBuf),
    Inline(String),
    Symlink(PathBuf),
}

/// Decides what an instruction writes.
pub fn plan(request: &Request<'_>) -> Result<Plan, CopyError> {
    let excluded = request.exclude.iter().map(|it| {
        let clean = it.trim_start_matches("./").trim_matches('/');
        matcher(clean).map_err(|_| CopyError::Pattern(it.clone()))
    });
    let work = Work { request, excluded: excluded.collect::<Result<_, _>>()? };
    let mut plan = Plan::default();
    let wants_directory =
        request.parents || request.destination.ends_with('/') || request.destination.ends_with("/.");
    let (base, existing) = resolve_target(request.stage, Path::new(&request.destination))?;
    let is_directory = existing.as_ref().is_some_and(|it| it.meta.is_dir());
    let mut found: Vec<(&Origin<'_>, Found)> = Vec::new();
    let mut inline = Vec::new();
    for source in &request.sources {
        match source {
            Source::Path { pattern, origin } => {
                found.extend(find(origin, pattern, request.parents)?.into_iter().map(|it| (origin, it)));
            }
            Source::Inline { name, content } => inline.push((name, content)),
        }
    }
    if found.len() + inline.len() > 1 && !wants_directory && !is_directory {
        return Err(CopyError::NeedsDirectory(request.destination.clone()));
    }
    for (origin, it) in found {
        let name = it.path.file_name().unwrap_or_default();
        if !it.entry.meta.is_dir() && work.is_excluded(&it.path, name) {
            continue;
        }
        let mut base = base.clone();
        if request.parents {
            let kept = it.path.strip_prefix(&it.pivot).unwrap_or(&it.path);
            let above = if it.entry.meta.is_dir() { Some(kept) } else { kept.parent() };
            base = plan.kept_parents(&work, origin, &it.pivot, above.unwrap_or(Path::new("")), &base)?;
        }
        if it.entry.meta.is_dir() {
            plan.directory(&work, origin, &it.path, Path::new(""), &it.entry, &base)?;
            continue;
        }
        if origin.unpack && archive::is_archive(&it.entry.real).map_err(read(&it.path))? {
            plan.parents(request, &base)?;
            if !is_directory {
                plan.insert(base.clone(), default_directory(request))?;
            }
            plan.archives.push((it.entry.real, base.clone()));
            continue;
        }
        let target = if wants_directory || is_directory { base.join(name) } else { base.clone() };
        plan.file(&work, origin, &it.entry, target)?;
    }
    for (name, content) in inline {
        let target = if wants_directory || is_directory { base.join(name) } else { base.clone() };
        plan.parents(request, target.parent().unwrap_or(Path::new("")))?;
        let (uid, gid) = request.owner.unwrap_or((0, 0));
        let mode = request.mode.as_ref().map_or(0o644, |it| it.apply(0o644, false));
        let kind = Kind::Inline(content.clone());
        plan.insert(target, Item { kind, mode, uid, gid, mtime: (0, 0), is_parent: false })?;
    }
    Ok(plan)
}

/// A request with its patterns read.
struct Work<'a> {
    request: &'a Request<'a>,
    excluded: Vec<Regex>,
}

impl Work<'_> {
    /// By its path below what is copied, or by its name where a file itself is named.
    fn is_excluded(&self, path: &Path, name: &std::ffi::OsStr) -> bool {
        let (path, name) = (path.to_string_lossy(), name.to_string_lossy());
        self.excluded.iter().any(|it| it.is_match(&path) || it.is_match(&name))
    }

    fn excludes_below(&self, below: &Path) -> bool {
        let below = below.to_string_lossy();
        self.excluded.iter().any(|it| it.is_match(&below))
    }
}

fn read(path: &Path) -> impl Fn(io::Error) -> CopyError + use<> {
    let path = path.to_owned();
    move |source| CopyError::Read { path: path.clone(), source }
}

/// A plan for directories alone: `WORKDIR`.
pub fn plan_directory(stage: &View, path: &str, owner: Option<(u32, u32)>) -> Result<Plan, CopyError> {
    let mut plan = Plan::default();
    let (target, existing) = resolve_target(stage, Path::new(path))?;
    if existing.is_some_and(|it| it.meta.is_dir()) {
        return Ok(plan);
    }
    let request = Request {
        sources: Vec::new(),
        destination: path.into(),
        stage,
        owner,
        mode: None,
        exclude: Vec::new(),
        parents: false,
    };
    plan.parents(&request, &target)?;
    Ok(plan)
}

/// A file that a source names.
struct Found {
    /// In the origin.
    path: PathBuf,
    entry: naru_image::Entry,
    /// What of the path `--parents` leaves out: everything before `/./`.
    pivot: PathBuf,
}

/// The files that a source pattern names.
fn find(origin: &Origin<'_>, pattern: &str, may_descend: bool) -> Result<Vec<Found>, CopyError> {
    if leaves_context(pattern) {
        return Err(CopyError::Outside(pattern.to_owned()));
    }
    let hidden = |path: &Path| origin.ignore.is_some_and(|it| it.hides(path));
    let pivot = match pattern.split_once("/./") {
        Some((before, _)) if !is_pattern(before) => clean(before),
        _ => PathBuf::new(),
    };
    let clean = clean(pattern);
    if !is_pattern(pattern) {
        let entry = origin.view.resolve(&clean, LastLink::Follow).map_err(read(&clean))?;
        // Something below a hidden directory may be shown again, so a directory is looked into.
        let is_hidden = hidden(&clean) && !entry.as_ref().is_some_and(|(_, it)| it.meta.is_dir());
        return match entry {
            Some((_, entry)) if !is_hidden => Ok(vec![Found { path: clean, entry, pivot }]),
            it => Err(CopyError::Missing(pattern.to_owned(), it.is_some())),
        };
    }
    let mut paths = vec![PathBuf::new()];
    for part in clean.components() {
        let text = part.as_os_str().to_string_lossy();
        let mut next = Vec::new();
        if !is_pattern(&text) {
            next.extend(paths.into_iter().map(|it| it.join(part)));
        } else if text == "**" && may_descend {
            for path in paths {
                directories_below(origin, path, &mut next)?;
            }
        } else {
            let matcher = matcher(&text).map_err(|_| CopyError::Pattern(pattern.to_owned()))?;
            for path in paths {
                let directory = origin.view.resolve(&path, LastLink::Follow).map_err(read(&path))?;
                let Some((real, entry)) = directory else { continue };
                if entry.meta.is_dir() {
                    let names = origin.view.read_directory(&real).map_err(read(&path))?.into_keys();
                    next.extend(
                        names.filter(|it| matcher.is_match(&it.to_string_lossy())).map(|it| path.join(it)),
                    );
                }
            }
        }
        paths = next;
        if paths.len() > FILES_MAX {
            return Err(CopyError::TooMuch);
        }
    }
    let mut found = Vec::new();
    for path in paths {
        if let Some((_, entry)) = origin.view.resolve(&path, LastLink::Follow).map_err(read(&path))?
            && !hidden(&path)
        {
            found.push(Found { path, entry, pivot: pivot.clone() });
        }
    }
    if found.is_empty() { Err(CopyError::Missing(pattern.to_owned(), false)) } else { Ok(found) }
}

/// A directory and every one below it. Links to directories are not followed.
fn directories_below(origin: &Origin<'_>, path: PathBuf, out: &mut Vec<PathBuf>) -> Result<(), CopyError> {
    let entries = origin.view.read_directory(&path).map_err(read(&path))?;
    out.push(path.clone());
    for (name, entry) in entries {
        if entry.meta.is_dir() {
            directories_below(origin, path.join(name), out)?;
        }
    }
    Ok(())
}

fn clean(path: &str) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// Where a path of the image leads: links followed as far as it exists, the rest as written.
fn resolve_target(stage: &View, path: &Path) -> Result<(PathBuf, Option<naru_image::Entry>), CopyError> {
    let mut at = PathBuf::new();
    let mut entry = None;
    let fail = |source| CopyError::Read { path: path.to_owned(), source };
    for part in clean(&path.to_string_lossy()).components() {
        let next = at.join(part);
        match stage.resolve(&next, LastLink::Follow).map_err(fail)? {
            Some((resolved, found)) => {
                at = resolved;
                entry = Some(found);
            }
            None => {
                at = next;
                entry = None;
            }
        }
    }
    if at.as_os_str().is_empty() {
        entry = stage.entry(Path::new("")).map_err(fail)?;
    }
    Ok((at, entry))
}

fn default_directory(request: &Request<'_>) -> Item {
    let (uid, gid) = request.owner.unwrap_or((0, 0));
    Item { kind: Kind::Directory, mode: 0o755, uid, gid, mtime: (0, 0), is_parent: false }
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.archives.is_empty()
    }

    fn insert(&mut self, path: PathBuf, item: Item) -> Result<(), CopyError> {
        if path.as_os_str().is_empty() {
            return Ok(()); // the root itself
        }
        if path.file_name().is_some_and(|it| it.as_bytes().starts_with(b".wh.")) {
            return Err(CopyError::Whiteout(path.display().to_string()));
        }
        let conflict = || CopyError::Conflict(path.display().to_string());
        let is_directory = matches!(item.kind, Kind::Directory);
        if let Some(existing) = self.items.get(&path) {
            let was_directory = matches!(existing.kind, Kind::Directory);
            if was_directory != is_directory {
                return Err(conflict());
            }
            if was_directory && item.is_parent {
                return Ok(());
            }
        }
        for parent in path.ancestors().skip(1) {
            if self.items.get(parent).is_some_and(|it| !matches!(it.kind, Kind::Directory)) {
                return Err(conflict());
            }
        }
        self.items.insert(path, item);
        if self.items.len() > FILES_MAX || self.bytes > BYTES_MAX {
            return Err(CopyError::TooMuch);
        }
        Ok(())
    }

    /// A layer names every directory above what it holds, as the stage has it.
    fn parents(&mut self, request: &Request<'_>, path: &Path) -> Result<(), CopyError> {
        let mut above: Vec<&Path> = path.ancestors().filter(|it| !it.as_os_str().is_empty()).collect();
        above.reverse();
        for directory in above {
            if self.items.contains_key(directory) {
                continue;
            }
            let entry = request
                .stage
                .entry(directory)
                .map_err(|source| CopyError::Read { path: directory.to_owned(), source })?;
            let item = match entry {
                Some(it) if it.meta.is_dir() => Item { is_parent: true, ..item_of(&it, Kind::Directory) },
                Some(_) => return Err(CopyError::Conflict(directory.display().to_string())),
                None => default_directory(request),
            };
            self.insert(directory.to_owned(), item)?;
        }
        Ok(())
    }

    /// With `--parents`: the directories of a source's path, as they are there.
    fn kept_parents(
        &mut self,
        work: &Work<'_>,
        origin: &Origin<'_>,
        pivot: &Path,
        above: &Path,
        base: &Path,
    ) -> Result<PathBuf, CopyError> {
        let (mut at, mut target) = (pivot.to_owned(), base.to_owned());
        self.parents(work.request, base)?;
        for part in above.components() {
            at.push(part);
            let (real, in_stage) = resolve_target(work.request.stage, &target.join(part))?;
            target = real;
            if in_stage.is_some_and(|it| it.meta.is_dir()) {
                self.parents(work.request, &target)?;
            } else if let Some((_, entry)) = origin.view.resolve(&at, LastLink::Follow).map_err(read(&at))?
                && !self.items.contains_key(&target)
            {
                let item = self.own(work.request, origin, item_of(&entry, Kind::Directory));
                self.insert(target.clone(), item)?;
            }
        }
        Ok(target)
    }

    fn own(&self, request: &Request<'_>, origin: &Origin<'_>, mut item: Item) -> Item {
        match (request.owner, origin.owners) {
            (Some(owner), _) => (item.uid, item.gid) = owner,
            (None, Owners::Root) => (item.uid, item.gid) = (0, 0),
            (None, Owners::Kept) => {}
        }
        // A link has no mode of its own.
        if let Some(mode) = request.mode.as_ref().filter(|_| !matches!(item.kind, Kind::Symlink(_))) {
            item.mode = mode.apply(item.mode, matches!(item.kind, Kind::Directory));
        }
        item
    }

    fn file(
        &mut self,
        work: &Work<'_>,
        origin: &Origin<'_>,
        entry: &naru_image::Entry,
        target: PathBuf,
    ) -> Result<(), CopyError> {
        let request = work.request;
        let parent = target.parent().unwrap_or(Path::new(""));
        self.parents(request, parent)?;
        let in_stage = request.stage.entry(&target).map_err(read(&target))?;
        if in_stage.is_some_and(|it| it.meta.is_dir()) {
            return Err(CopyError::Conflict(target.display().to_string()));
        }
        let kind = if entry.meta.is_symlink() {
            let link = fs::read_link(&entry.real).map_err(read(&entry.real))?;
            Kind::Symlink(link)
        } else if entry.meta.is_file() {
            self.bytes += entry.meta.len();
            Kind::File(entry.real.clone())
        } else {
            return Ok(()); // sockets, pipes and devices are no content
        };
        let item = self.own(request, origin, item_of(entry, kind));
        self.insert(target, item)
    }

    /// The content of a directory goes into the target directory. `below` is where we are in what is copied.
    fn directory(
        &mut self,
        work: &Work<'_>,
        origin: &Origin<'_>,
        path: &Path,
        below: &Path,
        entry: &naru_image::Entry,
        target: &Path,
    ) -> Result<(), CopyError> {
        let request = work.request;
        let (target, in_stage) = resolve_target(request.stage, target)?;
        self.parents(request, target.parent().unwrap_or(Path::new("")))?;
        match in_stage {
            Some(it) if it.meta.is_dir() => self.parents(request, &target)?,
            Some(_) => return Err(CopyError::Conflict(target.display().to_string())),
            // What is copied is the content: the directory that it goes into is a new one.
            None if below.as_os_str().is_empty() => {
                if !self.items.contains_key(&target) {
                    self.insert(target.clone(), default_directory(request))?;
                }
            }
            None => {
                let item = self.own(request, origin, item_of(entry, Kind::Directory));
                self.insert(target.clone(), item)?;
            }
        }
        let Some((real, _)) = origin.view.resolve(path, LastLink::Follow).map_err(read(path))? else {
            return Ok(());
        };
        for (name, child) in origin.view.read_directory(&real).map_err(read(path))? {
            let (child_path, child_below) = (path.join(&name), below.join(&name));
            if work.excludes_below(&child_below) {
                continue;
            }
            let hidden = origin.ignore.is_some_and(|it| it.hides(&child_path));
            if child.meta.is_dir() {
                if !hidden {
                    self.directory(work, origin, &child_path, &child_below, &child, &target.join(&name))?;
                } else if !origin.ignore.is_some_and(Ignore::is_final) {
                    self.shown_below(work, origin, &child_path, &child_below, &target.join(&name))?;
                }
            } else if !hidden {
                self.file(work, origin, &child, target.join(&name))?;
            }
        }
        Ok(())
    }

    /// Of a hidden directory only what a `!` pattern brings back.
    fn shown_below(
        &mut self,
        work: &Work<'_>,
        origin: &Origin<'_>,
        path: &Path,
        below: &Path,
        target: &Path,
    ) -> Result<(), CopyError> {
        for (name, child) in origin.view.read_directory(path).map_err(read(path))? {
            let (child_path, child_below) = (path.join(&name), below.join(&name));
            if work.excludes_below(&child_below) {
                continue;
            }
            let hidden = origin.ignore.is_some_and(|it| it.hides(&child_path));
            let to = target.join(&name);
            match (child.meta.is_dir(), hidden) {
                (true, true) => self.shown_below(work, origin, &child_path, &child_below, &to)?,
                (true, false) => self.directory(work, origin, &child_path, &child_below, &child, &to)?,
                (false, false) => self.file(work, origin, &child, to)?,
                (false, true) => {}
            }
        }
        Ok(())
    }

    /// What the plan would write, times left out: two plans with one digest make the same layer.
    pub fn digest(&self, digests: &FileDigests) -> Result<Digest, CopyError> {
        let mut text = String::new();
        for (path, item) in &self.items {
            let content = match &item.kind {
                Kind::Directory => "directory".to_owned(),
                Kind::File(real) => digests.of(real).map_err(read(real))?.to_string(),
                Kind::Inline(content) => Digest::of(content).to_string(),
                Kind::Symlink(target) => format!("-> {}", target.display()),
            };
            text.push_str(&format!("{:?} {:o} {}:{} {content}\n", path, item.mode, item.uid, item.gid));
        }
        for (real, target) in &self.archives {
            text.push_str(&format!("unpack {} {target:?}\n", digests.of(real).map_err(read(real))?));
        }
        Ok(Digest::of(text))
    }

    /// Writes everything below `root`, a fresh directory.
    pub fn write(&self, root: &Path) -> Result<(), CopyError> {
        for (path, item) in &self.items {
            let to = root.join(path);
            let fail = |source| CopyError::Write { path: path.clone(), source };
            match &item.kind {
                Kind::Directory => fs::create_dir(&to).map_err(fail)?,
                Kind::File(real) => {
                    fs::copy(real, &to).map_err(fail)?;
                    copy_attributes(real, &to).map_err(fail)?;
                }
                Kind::Inline(content) => fs::write(&to, content).map_err(fail)?,
                Kind::Symlink(target) => std::os::unix::fs::symlink(target, &to).map_err(fail)?,
            }
            std::os::unix::fs::lchown(&to, Some(item.uid), Some(item.gid)).map_err(fail)?;
            if !matches!(item.kind, Kind::Symlink(_)) {
                fs::set_permissions(&to, fs::Permissions::from_mode(item.mode)).map_err(fail)?;
            }
        }
        for (real, target) in &self.archives {
            let shown = || target.display().to_string();
            let read = |source| CopyError::Read { path: real.clone(), source };
            let file = fs::File::open(real).map_err(read)?;
            let mut plain = archive::decompress(file).map_err(read)?;
            unpack_as(&mut plain, &root.join(target), Whiteouts::Refuse)
                .map_err(|source| CopyError::Unpack { path: shown(), source })?;
        }
        // Times last and inside out: filling a directory changes its own.
        for (path, item) in self.items.iter().rev() {
            use nix::sys::stat::{UtimensatFlags, utimensat};
            use nix::sys::time::TimeSpec;
            let time = TimeSpec::new(item.mtime.0, i64::from(item.mtime.1));
            let to = root.join(path);
            utimensat(nix::fcntl::AT_FDCWD, &to, &time, &time, UtimensatFlags::NoFollowSymlink)
                .map_err(|it| CopyError::Write { path: path.clone(), source: it.into() })?;
        }
        Ok(())
    }
}

fn item_of(entry: &naru_image::Entry, kind: Kind) -> Item {
    let meta = &entry.meta;
    Item {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
        is_parent: false,
    }
}

/// File capabilities and user attributes belong to a file's content.
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let names = match xattr::list(from) {
        Ok(names) => names,
        Err(it) if it.kind() == io::ErrorKind::Unsupported => return Ok(()),
        Err(it) => return Err(it),
    };
    for name in names
        .filter(|it| it.to_str().is_some_and(|it| it.starts_with("user.") || it == "security.capability"))
    {
        if let Some(value) = xattr::get(from, &name)? {
            xattr::set(to, &name, &value)?;
        }
    }
    Ok(())
}

/// `user`, `user:group`, numbers or names of the image's own `passwd` and `group`.
pub fn owner_of(stage: &View, text: &str) -> Result<(u32, u32), CopyError> {
    const BYTES_MAX: u64 = 1 << 20; // of passwd; larger ones are no passwd
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let table = |path: &str| {
        let bytes = stage.read(Path::new(path), BYTES_MAX).ok().flatten().unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let field = |text: &str, name: &str, index: usize| {
        text.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            (fields.first() == Some(&name)).then(|| fields.get(index)?.parse::<u32>().ok()).flatten()
        })
    };
    let passwd = table("etc/passwd");
    let (uid, gid) = match user.parse::<u32>() {
        Ok(uid) => (uid, uid),
        Err(_) => {
            let missing = || CopyError::NoOwner { what: "user", name: user.to_owned() };
            let known_root = (user == "root").then_some(0);
            let uid = field(&passwd, user, 2).or(known_root).ok_or_else(missing)?;
            (uid, field(&passwd, user, 3).or(known_root).ok_or_else(missing)?)
        }
    };
    let Some(group) = group.filter(|it| !it.is_empty()) else { return Ok((uid, gid)) };
    let gid = match group.parse::<u32>() {
        Ok(gid) => gid,
        Err(_) => field(&table("etc/group"), group, 2)
            .or((group == "root").then_some(0))
            .ok_or_else(|| CopyError::NoOwner { what: "group", name: group.to_owned() })?,
    };
    Ok((uid, gid))
}
