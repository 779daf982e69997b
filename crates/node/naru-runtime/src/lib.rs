//! Containers: namespaces, cgroups, root file systems and the shim that keeps them.
//!
//! A pod is a *sandbox*: one tiny single-threaded process, the shim, which is this very program
//! executed again as `naru __shim <dir>`. It owns the pod's network, ipc, uts and mount
//! namespaces, starts containers in them through libcontainer, copies their output into log files
//! and writes their exit status to disk. The daemon talks to it over a unix socket and may die and
//! come back: the containers do not notice.
//!
//! Why a process per pod and not a thread: libcontainer forks without exec and changes the
//! process' umask, directory and dumpable flag, which hangs a program with threads (see
//! `docs/design` for the measurements). For the same reason each start happens in a fork of the shim.
//!
//! What it is not: it knows no Kubernetes, no image, no address. `naru-node` decides what to run,
//! `naru-net` plugs the network in, an image service names the directories.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use naru_runtime::{ContainerConfig, HelperProgram, RootFs, Sandbox, SandboxConfig};
//! // First line of `main`, before any thread exists:
//! naru_runtime::maybe_run_helper();
//!
//! let program = HelperProgram::new("/proc/self/exe".as_ref())?;
//! let sandbox = Sandbox::create(&program, &SandboxConfig::new("uid-1", "/var/lib/x/pods/uid-1", "/run/x/1")).await?;
//! let mut config = ContainerConfig::new("web-0", RootFs::layers(["/layers/a"]), ["/bin/httpd", "-f"]);
//! config.memory_bytes_max = Some(64 << 20);
//! sandbox.start(&config).await?;
//! # Ok(()) }
//! ```
//!
//! This is the only crate with `unsafe`: fork, mount and seccomp calls need it, and each is one line
//! behind a safe function in `sys`.
#![allow(unsafe_code)]

mod attach;
pub mod cgroup;
mod client;
mod config;
mod executor;
mod foreground;
mod helper;
mod launch;
mod log;
pub mod oci;
mod pressure;
mod profile;
mod rootfs;
mod seccomp;
mod shim;
mod spec;
mod start;
mod sys;
mod trace;

pub use attach::Attachment;
pub use client::{Error, Exec, ExecConfig, ExecStdio, HelperProgram, Sandbox, Watch};
pub use config::{
    ContainerConfig, ContainerStatus, Exit, HostRoot, MemoryVolume, Mount, RESOURCE_LIMITS, RootFs,
    SandboxConfig, Slice, StartFailure, StartFailureKind, Started, User,
};
pub use helper::run_bundle;
pub use log::FILES_MAX as LOG_FILES_MAX;
pub use pressure::{Gauge, Pressure};
pub use rootfs::{remove_mount_stubs, with_mounted_root};
pub use spec::{CAPABILITIES_ALL, CAPABILITIES_DEFAULT};
pub use sys::pages::let_go_of_program;
pub use sys::terminal_size;

/// Small pages for this process and the helpers that it starts. The allocator asks for huge ones, which
/// trade memory for speed: measured on the idle daemon, 37 MiB against 10. Containers get the machine's
/// setting back before their program starts.
pub fn without_huge_pages() {
    // An older kernel that does not know the call leaves us with more memory and nothing worse.
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Lets a reader that goes away end this process quietly, as other programs do it; Rust's own start-up code
/// asks for an error instead. For commands that print, never for a daemon.
pub fn end_on_broken_pipe() {
    // SAFETY: no handler is installed, only the default action chosen.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Executes `program` again with these arguments from a read-only mount, so that no container can overwrite it
/// through `/proc/<pid>/exe` (CVE-2019-5736). The variable `mark` tells the new process that it was. Returns only
/// where the kernel cannot (before 5.12). The caller has no threads.
pub fn execute_read_only(program: &std::path::Path, arguments: &[String], mark: &str) {
    use std::os::fd::AsRawFd;
    if let Some(mount) = sys::open_read_only_clone(program) {
        // SAFETY: there are no threads that could read the environment meanwhile.
        unsafe { std::env::set_var(mark, "1") };
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let _ = sys::execute(path.as_ref(), arguments);
    }
}

/// Runs the helper that the command line names and never returns, or returns at once.
///
/// Must be the first thing `main` does: a helper has to be single-threaded. A name that starts with
/// two underscores is ours; people never type it.
pub fn maybe_run_helper() {
    run_helper();
    sys::early::restore_huge_pages();
}

fn run_helper() {
    let mut arguments = std::env::args_os().skip(1);
    let Some(name) = arguments.next() else { return };
    let arguments: Vec<_> = arguments.collect();
    let code = match name.to_str() {
        Some("__shim") => shim::main(&arguments),
        Some("__exec") => helper::main_exec(&arguments),
        Some("__run") => helper::main_run(&arguments),
        _ => return,
    };
    std::process::exit(code)
}
