//! The new process on its way to the program, from its first instruction to `execve`.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use libcontainer::oci_spec::runtime::{LinuxCapabilities, PosixRlimit, PosixRlimitType, Process};
use libcontainer::workload::{Executor, ExecutorError};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};

use super::{Launch, Namespaces, join, root};
use crate::sys::{self, mounts as by_descriptor};

/// A user database larger than this is not one.
const PASSWD_BYTES_MAX: u64 = 4 << 20;

/// Returns only on failure, with what failed.
pub fn become_program(launch: &Launch<'_>, namespaces: &Namespaces) -> String {
    if let Err(error) = prepare(launch, namespaces) {
        return error;
    }
    match launch.executor.exec(launch.spec) {
        Ok(()) => "the program was executed and is not there; this is a bug in Naru".to_owned(),
        Err(ExecutorError::Other(text)) => text,
        Err(error) => error.to_string(),
    }
}

fn say<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {error}")
}

fn prepare(launch: &Launch<'_>, namespaces: &Namespaces) -> Result<(), String> {
    let spec = launch.spec;
    let linux = spec.linux().as_ref().ok_or("the configuration has no `linux`")?;
    let process = spec.process().as_ref().ok_or("the configuration has no process")?;
    sys::set_process_name("naru-init");
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(say("cannot set oomScoreAdj"))?;
    }
    launch.groups.enter().map_err(|error| error.to_string())?;
    if namespaces.has_groups {
        nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP)
            .map_err(say("cannot make a control group namespace"))?;
    }
    nix::unistd::setsid().map_err(say("cannot begin a session"))?;
    if let Some(streams) = &launch.stdio {
        for (target, stream) in streams.iter().enumerate() {
            sys::place_descriptor(stream.as_raw_fd(), target as RawFd)
                .map_err(say("cannot connect the standard streams"))?;
        }
    }
    for (path, kind) in &namespaces.joined {
        join(path, CloneFlags::from_bits_truncate(*kind))?;
    }
    if namespaces.has_new_names {
        if let Some(name) = spec.hostname() {
            sys::set_host_name(name).map_err(say("cannot set the host name"))?;
        }
        if let Some(name) = spec.domainname() {
            by_descriptor::set_domain_name(name).map_err(say("cannot set the domain name"))?;
        }
    }
    for limit in process.rlimits().iter().flatten() {
        set_limit(limit)?;
    }

    root::enter(launch.root, spec, linux, launch.groups.hierarchies())?;
    // SAFETY: the three standard streams are open; who started us made sure of it.
    root::own_null([0, 1, 2].map(|it| unsafe { BorrowedFd::borrow_raw(it) }))?;
    if let Some(mask) = process.user().umask() {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
    }
    root::restrict(spec, linux)?;

    // First as root, who may enter what the user may not; where root may not either (a network file system), as
    // the user.
    let enter = || nix::unistd::chdir(process.cwd());
    let is_entered = match enter() {
        Err(nix::errno::Errno::EPERM | nix::errno::Errno::EACCES) => false,
        other => other.map(|()| true).map_err(|error| {
            format!("cannot enter the working directory `{}`: {error}", process.cwd().display())
        })?,
    };
    become_user(process)?;
    if !is_entered {
        enter().map_err(say("cannot enter the working directory"))?;
    }
    // A directory outside of the root has no path in it.
    let directory =
        nix::unistd::getcwd().map_err(say("the working directory is not inside of the container"))?;
    if !directory.is_absolute() {
        return Err("the working directory is not inside of the container".to_owned());
    }
    by_descriptor::close_on_execute_from(3).map_err(say("cannot close descriptors"))?;
    launch.executor.setup_envs(environment(process)).map_err(|error| error.to_string())
}

fn become_user(process: &Process) -> Result<(), String> {
    let capabilities = process.capabilities();
    let bits = |set: fn(&LinuxCapabilities) -> &Option<libcontainer::oci_spec::runtime::Capabilities>| {
        let names = capabilities.as_ref().and_then(|it| set(it).as_ref());
        let names: Vec<String> = names.into_iter().flatten().map(|it| it.to_string()).collect();
        let names: Vec<&str> = names.iter().map(|it| it.strip_prefix("CAP_").unwrap_or(it)).collect();
        crate::spec::bits(&names)
    };
    if capabilities.is_some() {
        sys::bound_capabilities(bits(LinuxCapabilities::bounding))
            .map_err(say("cannot bound capabilities"))?;
    }
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    by_descriptor::become_user(user.uid(), user.gid(), &groups).map_err(say("cannot become the user"))?;
    if capabilities.is_some() {
        sys::take_capabilities(
            bits(LinuxCapabilities::effective),
            bits(LinuxCapabilities::permitted),
            bits(LinuxCapabilities::inheritable),
        )
        .map_err(say("cannot set capabilities"))?;
        by_descriptor::raise_ambient_capabilities(bits(LinuxCapabilities::ambient));
    }
    if process.no_new_privileges() == Some(true) {
        by_descriptor::forbid_new_privileges().map_err(say("cannot forbid new privileges"))?;
    }
    Ok(())
}

fn set_limit(limit: &PosixRlimit) -> Result<(), String> {
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    };
    setrlimit(resource, limit.soft(), limit.hard())
        .map_err(|error| format!("cannot set {}: {error}", limit.typ()))
}

/// The configuration's, and a home where it names none.
fn environment(process: &Process) -> HashMap<String, String> {
    let entries = process.env().iter().flatten();
    let mut environment: HashMap<String, String> = entries
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    if environment.get("HOME").is_none_or(String::is_empty)
        && let Some(home) = home(process.user().uid())
    {
        environment.insert("HOME".to_owned(), home);
    }
    environment
}

/// From the container's own user database, read as a plain file: the C library would load the image's code for it.
fn home(user: u32) -> Option<String> {
    // A fifo or a device here is a trap, not a user database.
    fs::metadata("/etc/passwd").ok().filter(|it| it.is_file() && it.len() <= PASSWD_BYTES_MAX)?;
    let text = fs::read_to_string("/etc/passwd").ok()?;
    let mut homes = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.len() >= 6 && fields[2].parse() == Ok(user)).then(|| fields[5].to_owned())
    });
    homes.next()
}
