//! A container's root from inside of its mount namespace: mounts, device nodes, and the turn that makes it `/`.
//!
//! Whatever the image or a volume holds, a path is opened below the root by the kernel's own resolver, and things
//! are mounted on what was opened, never on a name.

use std::ffi::{CStr, CString};
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use libcontainer::oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Mount, Spec};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat, umask};

use crate::cgroup::Hierarchy;
use crate::sys::mounts::{self as by_descriptor, Attributes, Links, open_inside};

/// Device nodes of every container: name, major, minor.
const DEVICES: &[(&str, u64, u64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("tty", 5, 0), ("urandom", 1, 9), ("random", 1, 8)];

/// Links in every `/dev`.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// What may be mounted below `/proc`: files that lxcfs and the like stand in for.
const PROC_PLACES: &[&str] = &[
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// A mount's options, as the kernel takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    /// For the file system itself.
    data: Vec<String>,
    is_bind: bool,
    is_recursive: bool,
    /// Also for what is mounted below.
    recursive: u64,
    is_private: bool,
}

/// `Err` names an option that the library has to be asked for.
fn read_options(entry: &Mount) -> Result<Options, &'static str> {
    let mut it = Options {
        flags: MsFlags::empty(),
        data: Vec::new(),
        is_bind: entry.typ().as_deref() == Some("bind"),
        is_recursive: false,
        recursive: 0,
        is_private: false,
    };
    for option in entry.options().iter().flatten() {
        match option.as_str() {
            "defaults" | "async" => {}
            "rprivate" | "private" => it.is_private = true,
            "bind" => it.is_bind = true,
            "rbind" => (it.is_bind, it.is_recursive) = (true, true),
            "ro" => it.flags |= MsFlags::MS_RDONLY,
            "rw" => it.flags -= MsFlags::MS_RDONLY,
            "nosuid" => it.flags |= MsFlags::MS_NOSUID,
            "suid" => it.flags -= MsFlags::MS_NOSUID,
            "nodev" => it.flags |= MsFlags::MS_NODEV,
            "dev" => it.flags -= MsFlags::MS_NODEV,
            "noexec" => it.flags |= MsFlags::MS_NOEXEC,
            "exec" => it.flags -= MsFlags::MS_NOEXEC,
            "sync" => it.flags |= MsFlags::MS_SYNCHRONOUS,
            "dirsync" => it.flags |= MsFlags::MS_DIRSYNC,
            "noatime" => it.flags |= MsFlags::MS_NOATIME,
            "nodiratime" => it.flags |= MsFlags::MS_NODIRATIME,
            "relatime" => it.flags |= MsFlags::MS_RELATIME,
            "strictatime" => it.flags |= MsFlags::MS_STRICTATIME,
            "rro" => it.recursive |= by_descriptor::READ_ONLY,
            "rnosuid" => it.recursive |= by_descriptor::NO_SETUID,
            "rnodev" => it.recursive |= by_descriptor::NO_DEVICES,
            "rnoexec" => it.recursive |= by_descriptor::NO_EXEC,
            "remount" | "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable"
            | "idmap" | "ridmap" | "tmpcopyup" | "mand" | "nomand" | "atime" | "diratime" | "norelatime"
            | "nostrictatime" | "rrw" | "rsuid" | "rdev" | "rexec" | "ratime" | "rnoatime" | "rdiratime"
            | "rnodiratime" | "rrelatime" | "rnorelatime" | "rstrictatime" | "rnostrictatime"
            | "symfollow" | "nosymfollow" | "rsymfollow" | "rnosymfollow" | "copy-symlink"
            | "src-nofollow" => {
                return Err("an unusual mount option");
            }
            other => it.data.push(other.to_owned()),
        }
    }
    Ok(it)
}

impl Options {
    fn attributes(&self) -> Attributes {
        let mut set = 0;
        for (flag, bit) in [
            (MsFlags::MS_RDONLY, by_descriptor::READ_ONLY),
            (MsFlags::MS_NOSUID, by_descriptor::NO_SETUID),
            (MsFlags::MS_NODEV, by_descriptor::NO_DEVICES),
            (MsFlags::MS_NOEXEC, by_descriptor::NO_EXEC),
            (MsFlags::MS_NODIRATIME, by_descriptor::NO_DIRECTORY_ACCESS_TIME),
        ] {
            if self.flags.contains(flag) {
                set |= bit;
            }
        }
        let access = if self.flags.contains(MsFlags::MS_STRICTATIME) {
            Some(by_descriptor::STRICT_ACCESS_TIME)
        } else if self.flags.contains(MsFlags::MS_NOATIME) {
            Some(by_descriptor::NO_ACCESS_TIME)
        } else {
            self.flags.contains(MsFlags::MS_RELATIME).then_some(0)
        };
        let clear = if access.is_some() { by_descriptor::ACCESS_TIME } else { 0 };
        let propagation = if self.is_private { libc::MS_PRIVATE } else { 0 };
        Attributes { set: set | access.unwrap_or(0), clear, propagation, user_namespace: 0 }
    }
}

/// Why the library has to make this root; `None` if [`enter`] can.
pub fn refusal(spec: &Spec, linux: &Linux) -> Option<&'static str> {
    if !matches!(linux.rootfs_propagation().as_deref(), None | Some("slave" | "private")) {
        return Some("mounts that are shared");
    }
    let mut has_devices = false;
    for entry in spec.mounts().iter().flatten() {
        if entry.uid_mappings().as_ref().is_some_and(|it| !it.is_empty()) {
            return Some("mounts with users of their own");
        }
        let options = match read_options(entry) {
            Ok(it) => it,
            Err(reason) => return Some(reason),
        };
        let destination = entry.destination();
        if !destination.is_absolute() || destination.components().any(|it| it == Component::ParentDir) {
            return Some("a mount at a relative path");
        }
        let kind = entry.typ().as_deref().unwrap_or_default();
        if options.is_bind && entry.source().is_none() {
            return Some("a bind without a source");
        }
        if kind == "tmpfs" && options.flags.contains(MsFlags::MS_RDONLY) {
            return Some("a read-only tmpfs");
        }
        let is_proc = destination == Path::new("/proc");
        if (destination.starts_with("/proc") && !(is_proc && kind == "proc")) || kind == "cgroup2" {
            return Some("a mount at or below /proc");
        }
        has_devices |= destination == Path::new("/dev") && kind == "tmpfs" && !options.is_bind;
    }
    if !has_devices {
        return Some("a /dev that the image brings");
    }
    let others = linux.devices().iter().flatten();
    if others.into_iter().any(|it| !it.path().starts_with("/dev/") || it.typ() == LinuxDeviceType::A) {
        return Some("a device outside of /dev");
    }
    None
}

type Failure = String;

fn say<E: Display>(what: impl Display) -> impl FnOnce(E) -> Failure {
    move |error| format!("{what}: {error}")
}

fn text(path: &Path) -> Result<CString, Failure> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| format!("{} has a zero byte", path.display()))
}

/// The root while it is being furnished.
struct Root<'a> {
    path: &'a Path,
    directory: OwnedFd,
    hierarchies: &'a [Hierarchy],
}

impl Root<'_> {
    fn open(&self, path: &Path, flags: i32, links: Links) -> io::Result<OwnedFd> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let name = match relative.as_os_str().is_empty() {
            true => CString::from(c"."),
            false => CString::new(relative.as_os_str().as_bytes())?,
        };
        open_inside(self.directory.as_fd(), &name, flags, links)
    }

    /// Opens a directory, made with those above it where they are missing.
    fn directory(&self, path: &Path, links: Links) -> io::Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        match self.open(path, flags, links) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let mut parent = self.open(Path::new("/"), flags, links)?;
        let mut done = PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            done.push(name);
            parent = match self.open(&done, flags, links) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let name = CString::new(name.as_bytes())?;
                    nix::sys::stat::mkdirat(&parent, name.as_c_str(), Mode::from_bits_truncate(0o755))?;
                    open_inside(parent.as_fd(), &name, flags, Links::Refused)?
                }
                other => other?,
            };
        }
        Ok(parent)
    }

    /// Opens a file to mount on, made where it is missing.
    fn file(&self, path: &Path) -> io::Result<OwnedFd> {
        match self.open(path, libc::O_PATH, Links::Inside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let parent = self.directory(path.parent().unwrap_or(Path::new("/")), Links::Inside)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let name = CString::new(name.as_bytes())?;
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
        drop(open_inside(parent.as_fd(), &name, flags, Links::Refused)?);
        open_inside(parent.as_fd(), &name, libc::O_PATH, Links::Refused)
    }

    /// A place below `/proc` that is not one of a few would put the image's files where programs trust the
    /// kernel's; links may lead there.
    fn check_place(&self, place: &OwnedFd) -> Result<(), Failure> {
        let found = std::fs::read_link(magic(place)).map_err(say("cannot tell where a mount goes"))?;
        let inside = found
            .strip_prefix(self.path)
            .map_err(|_| format!("{} is outside of the container; this is a bug in Naru", found.display()))?;
        match inside.strip_prefix("proc") {
            Ok(it) if !PROC_PLACES.iter().any(|allowed| it == Path::new(allowed)) => {
                Err(format!("nothing may be mounted at /{}", inside.display()))
            }
            _ => Ok(()),
        }
    }

    fn mount(&self, entry: &Mount) -> Result<(), Failure> {
        let options = read_options(entry).map_err(say("a mount that was checked"))?;
        let destination = entry.destination();
        let failed = || format!("cannot mount `{}`", destination.display());
        let kind = entry.typ().as_deref().unwrap_or_default();
        if options.is_bind {
            return self.bind(entry, &options).map_err(say(failed()));
        }
        if kind == "cgroup" {
            return self.control_groups(destination, &options).map_err(say(failed()));
        }
        // The kernel's own file systems go where they are said to be and nowhere else.
        let links = match kind {
            "proc" | "sysfs" => Links::Refused,
            _ => Links::Inside,
        };
        let place = self.directory(destination, links).map_err(say(failed()))?;
        if kind != "proc" {
            self.check_place(&place)?;
        }
        let source = entry.source().as_deref().unwrap_or(Path::new(kind));
        let data = options.data.join(",");
        let data = Some(data.as_str()).filter(|it| !it.is_empty());
        mount(Some(source), magic(&place).as_str(), Some(kind), options.flags - MsFlags::MS_RDONLY, data)
            .map_err(say(failed()))?;
        self.protect(destination, options.flags).map_err(say(failed()))
    }

    /// Makes what was just mounted read-only, if it is to be: this mount, and not the file system, which for some
    /// kinds is everybody's.
    fn protect(&self, destination: &Path, flags: MsFlags) -> Result<(), Failure> {
        if !flags.contains(MsFlags::MS_RDONLY) {
            return Ok(());
        }
        // What was opened before is below the mount that now covers it.
        let place = self.directory(destination, Links::Inside).map_err(|error| error.to_string())?;
        let attributes = Attributes { set: by_descriptor::READ_ONLY, ..Attributes::default() };
        by_descriptor::set_attributes(&place, &attributes, false).map_err(say("read-only"))
    }

    fn bind(&self, entry: &Mount, options: &Options) -> Result<(), Failure> {
        let source = entry.source().as_deref().unwrap_or(Path::new(""));
        let failed = |error: io::Error| format!("`{}`: {error}", source.display());
        let copy = by_descriptor::clone_mount(libc::AT_FDCWD, &text(source)?, options.is_recursive)
            .map_err(failed)?;
        let copy = File::from(copy);
        let place = match copy.metadata().map_err(failed)?.is_dir() {
            true => self.directory(entry.destination(), Links::Inside),
            false => self.file(entry.destination()),
        };
        let place = place.map_err(|error| error.to_string())?;
        self.check_place(&place)?;
        let attributes = options.attributes();
        if attributes != Attributes::default() {
            by_descriptor::set_attributes(&copy, &attributes, false).map_err(failed)?;
        }
        if options.recursive != 0 {
            let attributes = Attributes { set: options.recursive, ..Attributes::default() };
            by_descriptor::set_attributes(&copy, &attributes, true).map_err(failed)?;
        }
        by_descriptor::place_mount(&copy, &place).map_err(failed)
    }

    /// v2 as it is; v1 as a directory with a mount for each hierarchy. A control group namespace, which who asks
    /// for this has, makes the container's group their root.
    fn control_groups(&self, destination: &Path, options: &Options) -> Result<(), Failure> {
        let hierarchies = self.hierarchies;
        let place = self.directory(destination, Links::Inside).map_err(|error| error.to_string())?;
        self.check_place(&place)?;
        let flags = options.flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let writable = flags - MsFlags::MS_RDONLY;
        if hierarchies.iter().all(|it| it.controllers.is_none()) {
            mount(Some("cgroup"), magic(&place).as_str(), Some("cgroup2"), writable, None::<&str>)
                .map_err(say("cgroup2"))?;
            return self.protect(destination, flags);
        }
        mount(Some("tmpfs"), magic(&place).as_str(), Some("tmpfs"), writable, Some("mode=755"))
            .map_err(say("tmpfs"))?;
        let place = self.directory(destination, Links::Inside).map_err(|error| error.to_string())?;
        for hierarchy in hierarchies {
            let (Some(name), Some(controllers)) = (hierarchy.mount.file_name(), &hierarchy.controllers)
            else {
                continue;
            };
            let below = destination.join(name);
            let name = CString::new(name.as_bytes()).map_err(|error| error.to_string())?;
            let data = match controllers.is_empty() {
                true => format!("name={}", name.to_string_lossy()),
                false => controllers.join(","),
            };
            let made = make_directory(&place, &name).map_err(say("control groups"))?;
            mount(Some("cgroup"), magic(&made).as_str(), Some("cgroup"), writable, Some(data.as_str()))
                .map_err(say(&data))?;
            self.protect(&below, flags)?;
            for controller in controllers.iter().filter(|_| controllers.len() > 1) {
                let _ = nix::unistd::symlinkat(name.as_c_str(), &place, controller.as_str());
            }
        }
        self.protect(destination, flags)
    }

    fn devices(&self, linux: &Linux) -> Result<(), Failure> {
        let directory = self.directory(Path::new("/dev"), Links::Refused).map_err(say("cannot open /dev"))?;
        for (target, name) in LINKS {
            nix::unistd::symlinkat(*target, &directory, *name).map_err(say("cannot furnish /dev"))?;
        }
        if Path::new("/proc/kcore").exists() {
            let _ = nix::unistd::symlinkat("/proc/kcore", &directory, "kcore");
        }
        let wanted: Vec<&LinuxDevice> = linux.devices().iter().flatten().collect();
        let before = umask(Mode::empty());
        let made = (|| {
            for (name, major, minor) in DEVICES {
                if wanted.iter().any(|it| it.path() == &Path::new("/dev").join(name)) {
                    continue;
                }
                let mode = Mode::from_bits_truncate(0o666);
                mknodat(&directory, *name, SFlag::S_IFCHR, mode, makedev(*major, *minor))
                    .map_err(say(format!("cannot make /dev/{name}")))?;
            }
            wanted.iter().try_for_each(|it| self.device(it))
        })();
        umask(before);
        made?;
        // A newer kernel's devpts is the only one that gives terminals.
        let _ = nix::unistd::unlinkat(&directory, "ptmx", nix::unistd::UnlinkatFlags::NoRemoveDir);
        nix::unistd::symlinkat("pts/ptmx", &directory, "ptmx").map_err(say("cannot furnish /dev"))
    }

    fn device(&self, device: &LinuxDevice) -> Result<(), Failure> {
        let failed = || format!("cannot make {}", device.path().display());
        let (Some(parent), Some(name)) = (device.path().parent(), device.path().file_name()) else {
            return Err(failed());
        };
        let parent = self.directory(parent, Links::Inside).map_err(say(failed()))?;
        let kind = match device.typ() {
            LinuxDeviceType::B => SFlag::S_IFBLK,
            LinuxDeviceType::P => SFlag::S_IFIFO,
            _ => SFlag::S_IFCHR,
        };
        let mode = Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777);
        let number = makedev(device.major() as u64, device.minor() as u64);
        mknodat(&parent, name, kind, mode, number).map_err(say(failed()))?;
        let (user, group) = (device.uid().map(Into::into), device.gid().map(Into::into));
        if user.is_some() || group.is_some() {
            let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
            nix::unistd::fchownat(&parent, name, user, group, flags).map_err(say(failed()))?;
        }
        Ok(())
    }
}

fn make_directory(parent: &OwnedFd, name: &CStr) -> io::Result<OwnedFd> {
    nix::sys::stat::mkdirat(parent, name, Mode::from_bits_truncate(0o755))?;
    open_inside(parent.as_fd(), name, libc::O_PATH | libc::O_DIRECTORY, Links::Refused)
}

/// What is open, as a name for calls that take no descriptor.
fn magic(open: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", open.as_raw_fd())
}

/// Mounts everything at `path` and makes it this process' root. In a mount namespace of the container's own.
pub fn enter(path: &Path, spec: &Spec, linux: &Linux, hierarchies: &[Hierarchy]) -> Result<(), Failure> {
    let propagation = match linux.rootfs_propagation().as_deref() {
        Some("private") => MsFlags::MS_PRIVATE,
        _ => MsFlags::MS_SLAVE,
    };
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | propagation, None::<&str>)
        .map_err(say("cannot detach mounts"))?;
    mount(Some(path), path, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(say(format!("cannot bind the root {}", path.display())))?;
    let directory = File::options().read(true).open(path).map_err(say("cannot open the root"))?;
    let root = Root { path, directory: directory.into(), hierarchies };
    for entry in spec.mounts().iter().flatten() {
        root.mount(entry)?;
    }
    root.devices(linux)?;
    turn(&root).map_err(say("cannot make the container's root this process' root"))
}

/// The new root on top of the old one, which then goes.
fn turn(root: &Root<'_>) -> nix::Result<()> {
    let old = nix::fcntl::open(
        "/",
        nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    nix::unistd::fchdir(&root.directory)?;
    nix::unistd::pivot_root(".", ".")?;
    nix::unistd::fchdir(&old)?;
    // Taking the old root's mounts away must not reach the machine.
    mount(None::<&str>, ".", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

/// Closes what the container may see or change less of. Inside of the new root.
pub fn restrict(spec: &Spec, linux: &Linux) -> Result<(), Failure> {
    if spec.root().as_ref().and_then(|it| it.readonly()) == Some(true) {
        let root = File::open("/").map_err(say("cannot open /"))?;
        let attributes = Attributes { set: by_descriptor::READ_ONLY, ..Attributes::default() };
        by_descriptor::set_attributes(&root, &attributes, false).map_err(say("cannot make / read-only"))?;
    }
    for path in linux.readonly_paths().iter().flatten() {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        match mount(Some(path.as_str()), path.as_str(), None::<&str>, flags, None::<&str>) {
            Err(nix::errno::Errno::ENOENT) => continue,
            other => other.map_err(say(format!("cannot make {path} read-only")))?,
        }
        let flags = MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC
            | MsFlags::MS_BIND
            | MsFlags::MS_REMOUNT
            | MsFlags::MS_RDONLY;
        mount(Some(path.as_str()), path.as_str(), None::<&str>, flags, None::<&str>)
            .map_err(say(format!("cannot make {path} read-only")))?;
    }
    mask(linux.masked_paths().as_deref().unwrap_or_default())
}

fn mask(paths: &[String]) -> Result<(), Failure> {
    let null = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open("/dev/null")
        .map_err(say("cannot open /dev/null"))?;
    check_null(&null)?;
    // One empty file system for all directories: each of its own would cost more than all the rest.
    let mut empty: Option<&str> = None;
    for path in paths {
        let failed = || format!("cannot hide {path}");
        let found = match File::options().read(true).custom_flags(libc::O_PATH).open(path) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => continue,
            other => other.map_err(say(failed()))?,
        };
        if !found.metadata().map_err(say(failed()))?.is_dir() {
            let copy = by_descriptor::clone_mount(null.as_raw_fd(), c"", false).map_err(say(failed()))?;
            by_descriptor::place_mount(&copy, &found).map_err(say(failed()))?;
        } else if let Some(empty) = empty {
            mount(Some(empty), path.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(say(failed()))?;
        } else {
            mount(Some("tmpfs"), path.as_str(), Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)
                .map_err(say(failed()))?;
            empty = Some(path);
        }
    }
    Ok(())
}

/// An image whose `/dev/null` is something else could have what we hide shown, or written to.
fn check_null(open: &File) -> Result<(), Failure> {
    let found = open.metadata().map_err(say("cannot look at /dev/null"))?;
    let is_null = found.mode() & libc::S_IFMT == libc::S_IFCHR && found.rdev() == makedev(1, 3);
    if is_null { Ok(()) } else { Err("/dev/null of the container is not the null device".to_owned()) }
}

/// Standard streams that are the machine's `/dev/null` become the container's.
pub fn own_null(standard: [BorrowedFd<'_>; 3]) -> Result<(), Failure> {
    let null =
        File::options().read(true).write(true).open("/dev/null").map_err(say("cannot open /dev/null"))?;
    check_null(&null)?;
    for stream in standard {
        let found = nix::sys::stat::fstat(stream).map_err(say("a standard stream is closed"))?;
        if found.st_mode & libc::S_IFMT == libc::S_IFCHR && found.st_rdev == makedev(1, 3) {
            crate::sys::place_descriptor(null.as_raw_fd(), stream.as_raw_fd())
                .map_err(say("cannot replace a standard stream"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(mounts: serde_json::Value) -> Spec {
        let mut all = vec![json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs"})];
        all.extend(mounts.as_array().cloned().unwrap_or_default());
        serde_json::from_value(json!({"ociVersion": "1.0.2", "mounts": all, "linux": {}})).unwrap()
    }

    fn refused(mounts: serde_json::Value) -> bool {
        let spec = spec(mounts);
        refusal(&spec, spec.linux().as_ref().unwrap()).is_some()
    }

    #[test]
    fn what_a_root_needs_beyond_the_usual_is_left_to_the_library() {
        assert!(!refused(json!([])));
        assert!(!refused(
            json!([{"destination": "/a", "type": "bind", "source": "/b", "options": ["rbind", "rro"]}])
        ));
        assert!(!refused(json!([{"destination": "/proc", "type": "proc", "source": "proc"}])));
        for mount in [
            json!({"destination": "/proc/cpuinfo", "type": "bind", "source": "/b", "options": ["bind"]}),
            json!({"destination": "/proc", "type": "bind", "source": "/b", "options": ["bind"]}),
            json!({"destination": "/a", "type": "bind", "source": "/b", "options": ["rbind", "rshared"]}),
            json!({"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}),
            json!({"destination": "a", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/a/../b", "type": "tmpfs", "source": "tmpfs"}),
        ] {
            assert!(refused(json!([mount])), "{mount}");
        }
        let bare: Spec = serde_json::from_value(json!({"ociVersion": "1.0.2", "linux": {}})).unwrap();
        assert!(refusal(&bare, bare.linux().as_ref().unwrap()).is_some(), "its /dev would be the image's");
    }

    #[test]
    fn options_become_flags_and_data() {
        let spec = spec(json!([{"destination": "/a", "type": "tmpfs", "source": "t",
            "options": ["nosuid", "strictatime", "mode=755", "size=1k", "rw"]}]));
        let options = read_options(&spec.mounts().as_ref().unwrap()[1]).unwrap();
        assert_eq!(options.flags, MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME);
        assert_eq!(options.data, ["mode=755", "size=1k"]);
        let attributes = options.attributes();
        assert_eq!((attributes.set, attributes.clear), (0x22, 0x70));
    }
}
