//! The kernel calls that no safe crate offers, one safe function each.

/// `eprintln!` that cannot fail: a message that finds no room on the disk must not end a shim.
macro_rules! complain {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}
pub(crate) use complain;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub mod early;
pub mod mounts;
pub mod pages;

/// Result of [`fork`].
pub enum Fork {
    Parent(i32),
    Child,
}

/// Forks the process. Only the helpers call it, and they have one thread, so the child may allocate.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the helpers are single-threaded (see `maybe_run_helper`), so no lock can be held by a
    // thread that does not exist in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends a forked child without running the parent's exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

pub fn set_child_subreaper() {
    // SAFETY: plain integer arguments.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Signals this process when its parent dies.
pub fn die_with_parent() {
    // SAFETY: plain integer arguments.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
}

pub fn set_host_name(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are the string's.
    let code = unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn set_process_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        // SAFETY: the pointer is valid for the call; the kernel copies at most 16 bytes.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

pub fn set_extended_attribute(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let path = c_path(path)?;
    let name = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: all pointers live across the call and the length is the slice's.
    let code = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub fn has_extended_attribute(path: &Path, name: &str) -> bool {
    let (Ok(path), Ok(name)) = (c_path(path), CString::new(name)) else { return false };
    // SAFETY: a null buffer of size zero only asks for the length.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) >= 0 }
}

/// An open file description of `path` on a detached read-only mount.
///
/// A program started from it cannot be overwritten through `/proc/<pid>/exe`, the way out of a
/// container that CVE-2019-5736 showed. `None` on kernels before 5.12.
pub fn open_read_only_clone(path: &Path) -> Option<OwnedFd> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let path = c_path(path).ok()?;
    // SAFETY: the path lives across the call; a returned descriptor is ours alone.
    let tree = unsafe {
        let fd = libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            path.as_ptr(),
            OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC,
        );
        if fd < 0 {
            return None;
        }
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    let attributes = MountAttr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let empty = c"";
    // SAFETY: the struct is the kernel's first published version and its size is passed along.
    let code = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH,
            &attributes as *const MountAttr,
            size_of::<MountAttr>(),
        )
    };
    (code == 0).then_some(tree)
}

/// Makes `source` appear as descriptor `target` in a process about to be executed.
///
/// For `pre_exec`: async-signal-safe, no allocation.
pub fn place_descriptor(source: RawFd, target: RawFd) -> io::Result<()> {
    // SAFETY: plain integers; dup2 onto itself would keep close-on-exec, hence the second branch.
    let code = unsafe {
        if source == target { libc::fcntl(source, libc::F_SETFD, 0) } else { libc::dup2(source, target) }
    };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes over a descriptor that the parent placed at a known number.
pub fn take_descriptor(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD only asks whether the number is open; the helper's protocol says it is ours.
    unsafe { if libc::fcntl(number, libc::F_GETFD) < 0 { None } else { Some(OwnedFd::from_raw_fd(number)) } }
}

pub fn set_terminal_size(terminal: RawFd, columns: u16, rows: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct lives across the call.
    unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, &size) };
}

/// Columns and rows; `None` if it is no terminal.
pub fn terminal_size(terminal: RawFd) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the struct lives across the call, which fills it.
    let code = unsafe { libc::ioctl(terminal, libc::TIOCGWINSZ, &mut size) };
    (code == 0 && size.ws_col > 0).then_some((size.ws_col, size.ws_row))
}

/// The most that we may set a limit to without a right that we may lack; `None` for a name that we do not know.
pub fn hard_limit(name: &str) -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit};
    let resource = match name {
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => Resource::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        _ => return None,
    };
    getrlimit(resource).ok().map(|it| it.1)
}

/// CAP_SYS_RESOURCE, which some machines keep even from root.
pub fn may_raise_limits() -> bool {
    bounding_capabilities() & (1 << 24) != 0
}

/// Gives every signal its default meaning and unblocks all.
///
/// The Rust runtime ignores SIGPIPE and the shim blocks what it reads from a signalfd; both would be
/// inherited by the container's program, where `yes | head` would then never end.
pub fn reset_signals() {
    // SAFETY: resetting dispositions and the mask has no memory effects.
    unsafe {
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &empty, std::ptr::null_mut());
    }
}

/// The bounding set of this process, one bit per capability.
pub fn bounding_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// Installs a filter of system calls and leaves it open whether the program may gain privileges; needs
/// CAP_SYS_ADMIN.
pub fn install_filter(filter: &[seccompiler::sock_filter]) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const seccompiler::sock_filter,
    }
    let program = Program { length: filter.len() as u16, filter: filter.as_ptr() };
    // SAFETY: the kernel reads `length` instructions, which the slice has, and keeps nothing.
    let code = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&program))
    };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives up every capability but these, one bit each, also for what is executed later.
pub fn keep_capabilities(keep: u64) -> io::Result<()> {
    set_capabilities(keep, keep, keep, 0)
}

/// Takes the others out of the bounding set, which nothing brings back.
pub fn bound_capabilities(bounding: u64) -> io::Result<()> {
    for number in 0..64u64 {
        // SAFETY: plain integers. Numbers that the kernel does not know are refused, which is fine.
        if bounding & (1 << number) == 0
            && unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) } == 1
        {
            // SAFETY: plain integers.
            if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Makes these the capabilities of this process, one bit each; those of the bounding set can only become fewer.
pub fn set_capabilities(bounding: u64, effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    bound_capabilities(bounding)?;
    take_capabilities(effective, permitted, inheritable)
}

/// As [`set_capabilities`], without the bounding set.
pub fn take_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    const VERSION: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let sets = [0, 32].map(|shift| Sets {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    });
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: this version of the call reads one header and two sets.
    let code = unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), sets.as_ptr()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) {
    // SAFETY: plain integers; the caller has no use for what it closes.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// What the first process of a pid namespace owes the others. SIGCHLD is blocked.
pub fn reap_for_ever() -> ! {
    let mut child = nix::sys::signal::SigSet::empty();
    child.add(nix::sys::signal::Signal::SIGCHLD);
    loop {
        // SAFETY: a null status is allowed.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        let _ = child.wait();
    }
}

/// Replaces the process by `program`; returns only on failure.
pub fn execute(program: &OsStr, arguments: &[String]) -> io::Error {
    let Ok(program) = CString::new(program.as_bytes()) else {
        return io::Error::from(io::ErrorKind::InvalidInput);
    };
    let arguments: Vec<CString> =
        arguments.iter().filter_map(|argument| CString::new(argument.as_bytes()).ok()).collect();
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|it| it.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: both vectors outlive the call and the pointer list ends with null.
    unsafe { libc::execv(program.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// A descriptor that becomes readable when the process ends.
pub fn open_pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: plain integers; a returned descriptor is ours alone.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if fd < 0 { None } else { Some(OwnedFd::from_raw_fd(fd as RawFd)) }
    }
}

/// Start time of a process in clock ticks since boot: with the pid it names a process for good.
pub fn process_start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses; fields are counted after its last one.
    let after_name = &stat[stat.rfind(')')? + 2..];
    let mut fields = after_name.split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Identity of this boot. Pids and start times from another boot mean nothing.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

pub fn now_nanoseconds() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as i64)
}
