//! A sandbox's namespaces, mounts and groups, made before the shim begins its loop.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::Shim;
use crate::config::SandboxConfig;
use crate::sys::Fork;
use crate::{cgroup, sys};

pub fn main(arguments: &[OsString]) -> i32 {
    let Some(directory) = arguments.first().map(PathBuf::from) else {
        sys::complain!("usage: naru __shim <directory> (started by the daemon, not by hand)");
        return 2;
    };
    // Until the sandbox is ready it belongs to the daemon: one that is half-made when the daemon
    // dies would otherwise be finished behind the back of the next. The fork that stays is free.
    sys::die_with_parent();
    match set_up(&directory) {
        Ok(code) => code,
        Err(error) => {
            sys::complain!("{error}");
            1
        }
    }
}

pub(super) fn say<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Makes the namespaces and the socket, then leaves the real shim behind in a fork, so that the
/// daemon's wait for this process is the wait for a ready sandbox and init becomes the parent.
fn set_up(directory: &Path) -> Result<i32, String> {
    let text = fs::read(directory.join("sandbox.json")).map_err(say("cannot read sandbox.json"))?;
    let config: SandboxConfig = serde_json::from_slice(&text).map_err(say("cannot read sandbox.json"))?;
    for name in ["c", "oci", "shm"] {
        fs::create_dir_all(directory.join(name)).map_err(say("cannot make the sandbox's directories"))?;
    }
    let _ = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    std::env::set_current_dir("/").map_err(say("cannot enter /"))?;

    cgroup::ensure(&config.shim_cgroup, crate::Slice::Platform);
    cgroup::join(&config.shim_cgroup, std::process::id() as i32);
    cgroup::ensure(&config.pod_cgroup, config.slice);

    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
    namespaces.set(CloneFlags::CLONE_NEWNET, !config.host_network);
    namespaces.set(CloneFlags::CLONE_NEWIPC, !config.host_ipc);
    unshare(namespaces).map_err(say("cannot make namespaces (naru needs root)"))?;
    sys::set_host_name(&config.hostname).map_err(say("cannot set the host name"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(say("cannot detach mounts"))?;
    let size = format!("mode=1777,size={}", config.shared_memory_bytes_max);
    mount(
        Some("shm"),
        &directory.join("shm"),
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some(size.as_str()),
    )
    .map_err(say("cannot mount the pod's shared memory"))?;

    for volume in &config.memory_volumes {
        let group = volume.group.map_or("mode=0777".to_owned(), |group| format!("mode=2777,gid={group}"));
        let size = volume.bytes_max.map_or(String::new(), |bytes| format!(",size={bytes}"));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), &volume.path, Some("tmpfs"), flags, Some(format!("{group}{size}").as_str()))
            .map_err(say("cannot mount a volume in memory"))?;
    }
    for (name, value) in &config.sysctls {
        // Settings of the namespaces that this process is in.
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(path, value).map_err(|error| format!("cannot set {name} to {value}: {error}"))?;
    }

    if let Some(parent) = config.socket.parent() {
        fs::create_dir_all(parent).map_err(say("cannot make the socket's directory"))?;
    }
    let _ = fs::remove_file(&config.socket);
    let listener = UnixListener::bind(&config.socket).map_err(say("cannot bind the shim's socket"))?;
    fs::set_permissions(&config.socket, fs::Permissions::from_mode(0o600))
        .map_err(say("cannot protect the socket"))?;
    listener.set_nonblocking(true).map_err(say("cannot prepare the socket"))?;

    let (ready, mut announce) = std::io::pipe().map_err(say("cannot make a pipe"))?;
    match sys::fork().map_err(say("cannot fork"))? {
        Fork::Parent(_) => {
            drop(announce);
            let mut answer = String::new();
            let mut ready = ready;
            ready.read_to_string(&mut answer).map_err(say("the shim died at once"))?;
            if answer == "ready" { Ok(0) } else { Err(format!("the shim did not start: {answer}")) }
        }
        Fork::Child => {
            drop(ready);
            let result = Shim::new(config, listener).and_then(|shim| {
                announce.write_all(b"ready").map_err(say("nobody waits for the shim"))?;
                drop(announce);
                Ok(shim)
            });
            match result {
                Ok(mut shim) => shim.run(),
                Err(error) => sys::complain!("{error}"),
            }
            sys::exit_now(0)
        }
    }
}

/// A process that is the first in a new pid namespace and does nothing but take leave of the dead.
pub(super) fn hold_pids(config: &SandboxConfig) -> std::io::Result<i32> {
    let (mut told, mut tell) = std::io::pipe()?;
    let Fork::Parent(helper) = sys::fork()? else {
        // The namespace is that of the next fork, whose parent becomes the shim.
        let forked =
            unshare(CloneFlags::CLONE_NEWPID).map_err(std::io::Error::from).and_then(|()| sys::fork());
        match forked {
            Ok(Fork::Parent(pid)) => {
                let _ = tell.write_all(&pid.to_ne_bytes());
            }
            Ok(Fork::Child) => {
                drop((told, tell));
                sys::set_process_name("pause");
                sys::close_from(3);
                sys::reap_for_ever();
            }
            Err(_) => {}
        }
        sys::exit_now(0);
    };
    drop(tell);
    let mut pid = [0; 4];
    told.read_exact(&mut pid)?;
    let _ = waitpid(Pid::from_raw(helper), None);
    let pid = i32::from_ne_bytes(pid);
    // A group of its own: with v2 a group has processes or groups, not both.
    let group = format!("{}/pause", config.pod_cgroup);
    cgroup::ensure(&group, config.slice);
    cgroup::join(&group, pid);
    Ok(pid)
}
