//! Mounts by descriptor (Linux 5.12), paths that cannot leave a root, and processes born in their namespaces.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::Fork;

/// What a mount may not do, as the kernel counts it.
pub const READ_ONLY: u64 = 1;
pub const NO_SETUID: u64 = 2;
pub const NO_DEVICES: u64 = 4;
pub const NO_EXEC: u64 = 8;
/// Access times: the field, and what it may be set to.
pub const ACCESS_TIME: u64 = 0x70;
pub const NO_ACCESS_TIME: u64 = 0x10;
pub const STRICT_ACCESS_TIME: u64 = 0x20;
pub const NO_DIRECTORY_ACCESS_TIME: u64 = 0x80;

/// `struct mount_attr` as the kernel first published it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub user_namespace: u64,
}

/// `struct open_how`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// How links on the way are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// As if the directory were `/`.
    Inside,
    /// Not at all.
    Refused,
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens a path below a directory that nothing in the path can lead out of (Linux 5.6).
pub fn open_inside(directory: BorrowedFd<'_>, path: &CStr, flags: i32, links: Links) -> io::Result<OwnedFd> {
    const NO_MAGIC_LINKS: u64 = 2;
    const NO_SYMLINKS: u64 = 4;
    const IN_ROOT: u64 = 16;
    // The kernel asks to come again when something was renamed meanwhile.
    const TRIES_MAX: u32 = 100;
    let resolve = match links {
        Links::Inside => IN_ROOT | NO_MAGIC_LINKS,
        Links::Refused => IN_ROOT | NO_MAGIC_LINKS | NO_SYMLINKS,
    };
    let mode = if flags & libc::O_CREAT != 0 { 0o644 } else { 0 };
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode, resolve };
    let mut tries = 0;
    loop {
        // SAFETY: path and struct live across the call, and the struct's size is passed along.
        let result = descriptor(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                directory.as_raw_fd(),
                path.as_ptr(),
                &how as *const OpenHow,
                size_of::<OpenHow>(),
            )
        });
        tries += 1;
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES_MAX => {}
            other => return other,
        }
    }
}

/// A copy of the mount at `path` (or of `directory` itself, if that is empty) that is nowhere yet.
pub fn clone_mount(directory: RawFd, path: &CStr, is_recursive: bool) -> io::Result<OwnedFd> {
    const CLONE: libc::c_int = 1;
    let mut flags = CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH;
    if is_recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path lives across the call.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) })
}

/// Changes what a mount may do; with `is_recursive` also those below it.
pub fn set_attributes(mount: &impl AsRawFd, attributes: &Attributes, is_recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if is_recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the struct lives across the call and its size is passed along.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attributes as *const Attributes,
            size_of::<Attributes>(),
        )
    })
}

/// Puts a mount that is nowhere at the place that is open as `target`.
pub fn place_mount(mount: &impl AsRawFd, target: &impl AsRawFd) -> io::Result<()> {
    const FROM_DESCRIPTOR: libc::c_uint = 0x4;
    const TO_DESCRIPTOR: libc::c_uint = 0x40;
    // SAFETY: empty paths; both descriptors are open.
    done(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            FROM_DESCRIPTOR | TO_DESCRIPTOR,
        )
    })
}

/// Forks into new namespaces and, where given, into a v2 control group, without the locks that moving there
/// takes; as a brother, the child is our parent's. The caller is single-threaded.
pub fn fork_into(namespaces: i32, group: Option<BorrowedFd<'_>>, as_brother: bool) -> io::Result<Fork> {
    const INTO_GROUP: u64 = 0x2_0000_0000;
    // `struct clone_args` as of Linux 5.7.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    // A brother dies with the signal that we would.
    let (brother, exit_signal) = if as_brother { (libc::CLONE_PARENT, 0) } else { (0, libc::SIGCHLD as u64) };
    let arguments = CloneArgs {
        flags: (namespaces | brother) as u64 | if group.is_some() { INTO_GROUP } else { 0 },
        exit_signal,
        cgroup: group.map_or(0, |it| it.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without a stack of its own the child goes on as after fork, which a process with one thread may.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &arguments as *const CloneArgs, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid as i32)),
    }
}

/// Marks every descriptor from `first` on to be closed when a program is executed (Linux 5.11).
pub fn close_on_execute_from(first: u32) -> io::Result<()> {
    // SAFETY: plain integers.
    done(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Nobody may look into this process by ptrace or /proc, but with rights over the machine.
pub fn hide_from_others() {
    // SAFETY: plain integers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// What this process becomes, and what no program it executes can undo.
pub fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: plain integers.
    done(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())
}

/// Becomes the user and keeps the capabilities that are permitted, to be cut down afterwards.
pub fn become_user(user: u32, group: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: plain integers, and a pointer and length of one slice. The calls are made directly, because the
    // C library's would change threads that do not exist.
    unsafe {
        done(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        done(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        done(libc::syscall(libc::SYS_setresgid, group, group, group))?;
        done(libc::syscall(libc::SYS_setresuid, user, user, user))?;
        done(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0).into())
    }
}

/// Gives capabilities that a program keeps although its file has none. What cannot be given is left out, as
/// other runtimes do.
pub fn raise_ambient_capabilities(bits: u64) {
    for number in (0..64u64).filter(|it| bits & (1 << it) != 0) {
        // SAFETY: plain integers.
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
    }
}

pub fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are the string's.
    done(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())
}
