//! Root file systems: overlayfs over image layers, or over the machine's own root.
//!
//! All mounts are made in the shim's mount namespace, so they vanish with it: there is no crash
//! after which a mount is left behind.
//!
//! The host image needs no mount per mask. Its masks are one small *mask layer* between the
//! container's own upper directory and `/`: an opaque directory hides what is below it, an empty
//! file replaces a file. The masked places are then ordinary writable directories of the container,
//! and a commit of the upper directory does not contain them.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::config::{HostRoot, Mount, RootFs, StartFailure, StartFailureKind};
use crate::sys;

/// Hidden in every host image, whatever the caller masks: other people's temporary files, sockets
/// of services, removable media. Temporary directories keep their mode.
const HOST_MASKS_ALWAYS: &[(&str, u32)] = &[
    ("/tmp", 0o1777),
    ("/var/tmp", 0o1777),
    ("/run", 0o755),
    ("/mnt", 0o755),
    ("/media", 0o755),
    ("/lost+found", 0o700),
];

fn failure(what: impl std::fmt::Display) -> StartFailure {
    StartFailure { kind: StartFailureKind::Other, message: what.to_string() }
}

/// Mounts the container's root below `directory` and returns the extra read-only binds it needs.
pub fn mount_root(directory: &Path, root: &RootFs) -> Result<Vec<PathBuf>, StartFailure> {
    if root.lower_directories.is_empty() {
        return Err(failure("the image has no layers"));
    }
    for name in ["rootfs", "upper", "work", "l"] {
        make_directory(&directory.join(name), 0o755)
            .map_err(|error| failure(format!("cannot make `{name}`: {error}")))?;
    }
    let mut lowers = root.lower_directories.clone();
    let mut binds = Vec::new();
    if let Some(host) = &root.host {
        // Not on disk: overlayfs refuses a lower layer inside another, and everything is inside `/`.
        let layer = directory.join("mask");
        make_directory(&layer, 0o755).map_err(|error| failure(format!("cannot make `mask`: {error}")))?;
        mount(Some("mask"), &layer, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
            .map_err(|error| failure(format!("cannot mount the mask of the host image: {error}")))?;
        binds = build_mask_layer(&layer, host, Path::new("/"))
            .map_err(|error| failure(format!("cannot build the mask of the host image: {error}")))?;
        let at = lowers.len() - 1;
        lowers.insert(at, layer);
        if at > 0 {
            // Image layers lie below `/`, too. An overlay of their own hides the masked root's place in the
            // tree, so that the layers are no longer inside of another.
            lowers.truncate(at);
            lowers.push(mount_masked_root(directory)?);
        }
    }
    // Mount options are one page at most, so layers are named by links of one or two letters
    // relative to the current directory.
    let links = directory.join("l");
    let mut names = Vec::new();
    for (number, lower) in lowers.iter().enumerate() {
        if !lower.is_dir() {
            return Err(failure(format!("layer `{}` does not exist", lower.display())));
        }
        let link = links.join(number.to_string());
        let _ = fs::remove_file(&link);
        symlink(lower, &link).map_err(|error| failure(format!("cannot link a layer: {error}")))?;
        names.push(number.to_string());
    }
    std::env::set_current_dir(&links)
        .map_err(|error| failure(format!("cannot enter `{}`: {error}", links.display())))?;
    // nodev: the devices of a container are those that the runtime makes in its `/dev`.
    let options = format!("lowerdir={},upperdir=../upper,workdir=../work", names.join(":"));
    let result = mount(
        Some("overlay"),
        &directory.join("rootfs"),
        Some("overlay"),
        MsFlags::MS_NODEV,
        Some(options.as_str()),
    );
    let _ = std::env::set_current_dir("/");
    if root.host.is_some() {
        // The overlay holds them.
        let _ = umount2(&directory.join("base"), MntFlags::MNT_DETACH);
        let _ = umount2(&directory.join("mask"), MntFlags::MNT_DETACH);
    }
    result.map_err(|error| failure(format!("cannot mount the root file system: {error}")))?;
    Ok(binds)
}

/// The machine's root under its mask as a read-only overlay at `base`.
fn mount_masked_root(directory: &Path) -> Result<PathBuf, StartFailure> {
    let base = directory.join("base");
    make_directory(&base, 0o755).map_err(|error| failure(format!("cannot make `base`: {error}")))?;
    std::env::set_current_dir(directory)
        .map_err(|error| failure(format!("cannot enter `{}`: {error}", directory.display())))?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    let result = mount(Some("overlay"), &base, Some("overlay"), flags, Some("lowerdir=mask:/"));
    let _ = std::env::set_current_dir("/");
    result.map_err(|error| failure(format!("cannot mount the host image: {error}")))?;
    Ok(base)
}

/// A shim takes milliseconds for what it has to take down.
const TAKEN_DOWN_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// Mounts a container's root in a mount namespace that nobody else is in, and does `work` on it. Whatever
/// happens, nothing stays mounted. Blocking.
pub fn with_mounted_root(
    directory: &Path,
    root: &RootFs,
    mounts: &[Mount],
    work: impl FnOnce(OwnedFd) -> io::Result<()> + Send,
) -> io::Result<()> {
    use nix::fcntl::{OFlag, open};
    use nix::sched::{CloneFlags, unshare};
    std::fs::create_dir_all(directory)?;
    std::thread::scope(|scope| {
        // A thread of its own: its mounts, its root and its directory are nobody else's from here on.
        let worker = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            let began = std::time::Instant::now();
            loop {
                match mount_root(directory, root) {
                    Ok(_) => break,
                    // A container that has just ended is still being taken down.
                    Err(error) if error.message.contains("EBUSY") && began.elapsed() < TAKEN_DOWN_MAX => {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    Err(error) => return Err(io::Error::other(error)),
                }
            }
            let place = directory.join("rootfs");
            let inside = pathrs::Root::open(&place).map_err(io::Error::other)?;
            for wanted in mounts {
                let destination = resolve_destination(&inside, &wanted.destination);
                if inside.resolve(&destination).is_err() {
                    make_mount_point(&inside, &destination, wanted.source.is_dir())?;
                }
                let target = inside.resolve(&destination).map_err(io::Error::other)?;
                let target = format!("/proc/self/fd/{}", target.as_fd().as_raw_fd());
                let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
                mount(Some(&wanted.source), target.as_str(), None::<&str>, flags, None::<&str>)?;
                if wanted.read_only {
                    let again = inside.resolve(&destination).map_err(io::Error::other)?;
                    let again = format!("/proc/self/fd/{}", again.as_fd().as_raw_fd());
                    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                    mount(None::<&str>, again.as_str(), None::<&str>, flags, None::<&str>)?;
                }
            }
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            work(open(&place, flags, nix::sys::stat::Mode::empty())?)
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the work on a container's root panicked")))
    })
}

fn make_mount_point(root: &pathrs::Root, path: &Path, is_directory: bool) -> io::Result<()> {
    let mode = Permissions::from_mode(0o755);
    if is_directory {
        return root.mkdir_all(path, &mode).map(drop).map_err(io::Error::other);
    }
    if let Some(parent) = path.parent() {
        root.mkdir_all(parent, &mode).map_err(io::Error::other)?;
    }
    let flags = pathrs::flags::OpenFlags::O_WRONLY;
    root.create_file(path, flags, &Permissions::from_mode(0o644)).map(drop).map_err(io::Error::other)
}

pub fn unmount_root(directory: &Path) {
    let _ = umount2(&directory.join("rootfs"), MntFlags::MNT_DETACH);
}

/// Makes the layer that hides `host.masks`; returns what must be bound back read-only.
///
/// `base` is `/`; tests use another.
fn build_mask_layer(layer: &Path, host: &HostRoot, base: &Path) -> io::Result<Vec<PathBuf>> {
    make_directory(layer, 0o755)?;
    let always = HOST_MASKS_ALWAYS.iter().map(|(path, mode)| (PathBuf::from(path), Some(*mode)));
    for (mask, mode) in always.chain(host.masks.iter().map(|path| (path.clone(), None))) {
        let Some(relative) = relative(&mask) else { continue };
        let original = base.join(&relative);
        let Ok(metadata) = original.symlink_metadata() else { continue };
        let target = layer.join(&relative);
        // A mask below another mask is hidden already; making its directory would show a name.
        if ancestors_masked(layer, &relative) {
            continue;
        }
        make_parents(layer, &relative, base)?;
        if metadata.is_dir() {
            make_directory(&target, mode.unwrap_or(metadata.permissions().mode() & 0o7777))?;
            sys::set_extended_attribute(&target, OPAQUE, b"y")?;
        } else {
            // A link would show where it points, so it becomes an empty file too.
            fs::write(&target, b"")?;
            fs::set_permissions(&target, Permissions::from_mode(0o600))?;
        }
    }
    let mut binds = Vec::new();
    for path in &host.read_only {
        let Some(relative) = relative(path) else { continue };
        let original = base.join(&relative);
        if !original.exists() || !ancestors_masked(layer, &relative) {
            continue;
        }
        // The place to mount on, so that it does not appear as a change of the container.
        if original.is_dir() {
            fs::create_dir_all(layer.join(&relative))?;
        } else {
            if let Some(parent) = layer.join(&relative).parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(layer.join(&relative), b"")?;
        }
        binds.push(original);
    }
    Ok(binds)
}

const OPAQUE: &str = "trusted.overlay.opaque";

fn ancestors_masked(layer: &Path, relative: &Path) -> bool {
    relative.ancestors().skip(1).any(|ancestor| {
        !ancestor.as_os_str().is_empty() && layer.join(ancestor).is_dir() && is_opaque(&layer.join(ancestor))
    })
}

fn is_opaque(path: &Path) -> bool {
    sys::has_extended_attribute(path, OPAQUE)
}

/// Parents in the layer carry the original's mode: overlayfs shows the topmost directory's.
fn make_parents(layer: &Path, relative: &Path, base: &Path) -> io::Result<()> {
    let mut path = PathBuf::new();
    for part in relative.parent().into_iter().flat_map(Path::components) {
        path.push(part);
        let mode =
            base.join(&path).metadata().map_or(0o755, |metadata| metadata.permissions().mode() & 0o7777);
        make_directory(&layer.join(&path), mode)?;
    }
    Ok(())
}

fn relative(path: &Path) -> Option<PathBuf> {
    let clean: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    (!clean.as_os_str().is_empty() && !path.components().any(|part| part == Component::ParentDir))
        .then_some(clean)
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where a mount point really is when its links are followed inside the root.
///
/// The runtime resolves safely too, but refuses a link that dangles, and `/etc/resolv.conf` dangles
/// wherever systemd made it a link into `/run`.
pub fn resolve_destination(root: &pathrs::Root, destination: &Path) -> PathBuf {
    const LINKS_MAX: u32 = 40;
    let mut links = 0;
    let mut done = PathBuf::from("/");
    let mut todo: Vec<std::ffi::OsString> =
        destination.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    while let Some(part) = todo.pop() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(name)) => {
                let next = done.join(name);
                match root.readlink(&next) {
                    Ok(target) if links < LINKS_MAX => {
                        links += 1;
                        todo.extend(target.components().rev().map(|part| part.as_os_str().to_owned()));
                    }
                    _ => done = next,
                }
            }
            Some(Component::RootDir) => done = PathBuf::from("/"),
            Some(Component::ParentDir) => {
                done.pop();
            }
            _ => {}
        }
    }
    done
}

/// Notes which mount points the runtime is about to make, so that [`remove_mount_stubs`] can take
/// them out of a committed layer again.
pub fn note_mount_stubs(directory: &Path, root: &pathrs::Root, destinations: &[PathBuf]) {
    let missing: Vec<&PathBuf> = destinations.iter().filter(|path| root.resolve(path).is_err()).collect();
    // What an earlier life of the same files noted is there now, and still nothing of the container's.
    let noted = fs::read(directory.join("stubs.json")).ok();
    let noted: Vec<PathBuf> = noted.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let missing: Vec<&PathBuf> = missing.into_iter().chain(&noted).collect();
    if !missing.is_empty()
        && let Ok(text) = serde_json::to_vec(&missing)
    {
        let _ = fs::write(directory.join("stubs.json"), text);
    }
}

/// Removes the empty files and directories that were made only to mount on, before `upper` becomes
/// an image layer. Anything that the container put there stays.
pub fn remove_mount_stubs(container_directory: &Path) {
    let Ok(text) = fs::read(container_directory.join("stubs.json")) else { return };
    let Ok(stubs) = serde_json::from_slice::<Vec<PathBuf>>(&text) else { return };
    let Ok(upper) = pathrs::Root::open(container_directory.join("upper")) else { return };
    for stub in stubs {
        let empty_file = upper
            .resolve_nofollow(&stub)
            .ok()
            .and_then(|handle| handle.reopen(pathrs::flags::OpenFlags::O_PATH).ok())
            .and_then(|file| file.metadata().ok())
            .is_some_and(|metadata| metadata.is_file() && metadata.len() == 0);
        if empty_file {
            let _ = upper.remove_file(&stub);
        } else {
            // Fails when it is not empty, which is right.
            let _ = upper.remove_dir(&stub);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_layer_hides_what_is_named_and_keeps_places_for_tool_chains() {
        let base = tempfile::tempdir().unwrap();
        let layer = tempfile::tempdir().unwrap();
        for path in ["root/.cargo/bin", "root/.ssh", "etc/ssh"] {
            fs::create_dir_all(base.path().join(path)).unwrap();
        }
        fs::write(base.path().join("etc/shadow"), "secret").unwrap();
        let host = HostRoot {
            masks: ["/root", "/root/.ssh", "/etc/shadow", "/etc/ssh", "/missing", "/../x"]
                .map(PathBuf::from)
                .into(),
            read_only: ["/root/.cargo/bin", "/etc/passwd", "/usr"].map(PathBuf::from).into(),
        };
        let layer = layer.path().join("mask");
        let binds = build_mask_layer(&layer, &host, base.path()).unwrap();
        assert_eq!(binds, [base.path().join("root/.cargo/bin")], "only what lies below a mask");
        assert!(layer.join("root/.cargo/bin").is_dir());
        assert!(!layer.join("root/.ssh").exists(), "a mask below a mask leaves no name");
        assert!(is_opaque(&layer.join("root")) && is_opaque(&layer.join("etc/ssh")));
        assert!(!is_opaque(&layer.join("etc")));
        assert_eq!(fs::read(layer.join("etc/shadow")).unwrap(), b"");
        assert!(!layer.join("missing").exists());
    }
}
