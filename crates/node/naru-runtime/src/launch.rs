//! Starting a container ourselves: one fork into all of its namespaces, and no state on the way.
//!
//! libcontainer does everything that the OCI specification has, and takes two forks, two thousand system calls
//! and a file for each step to do it. Nearly every container needs none of that, so this does the usual, and
//! [`refusal`] says which configurations are the library's: hooks, user namespaces, terminals, unusual mounts and
//! limits. What both do must look the same from inside; `tests/containers.rs` runs one container both ways and
//! compares.
//!
//! The order in the new process matters. Groups come first, while the machine's files are in reach; then
//! namespaces; then the root, on which nothing is resolved by name; then what the program may do, the filter last.

mod groups;
mod inside;
mod root;

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use nix::sched::CloneFlags;

use crate::config::{StartFailure, StartFailureKind};
use crate::executor::{NOT_EXECUTABLE_MARK, NOT_FOUND_MARK, PodExecutor};
use crate::sys::{self, Fork, mounts as by_descriptor};

pub use self::groups::Groups;

/// Everything that a container is started from.
pub struct Launch<'a> {
    pub spec: &'a Spec,
    /// Absolute, without links.
    pub root: &'a Path,
    /// Of v1 groups to enter; made by [`Groups::make`].
    pub groups: &'a Groups,
    pub executor: &'a PodExecutor,
    /// Standard streams; ours if there are none.
    pub stdio: Option<[OwnedFd; 3]>,
    /// The container is to be a child of our parent.
    pub as_brother: bool,
}

/// Why the library has to start this; `None` if we can. Pure but for a look at our own user namespace.
pub fn refusal(spec: &Spec) -> Option<&'static str> {
    let Some(linux) = spec.linux() else { return Some("a configuration without `linux`") };
    let Some(process) = spec.process() else { return Some("a configuration without a process") };
    if spec.hooks().is_some() {
        return Some("hooks");
    }
    if process.terminal() == Some(true) {
        return Some("a terminal");
    }
    if process.apparmor_profile().is_some()
        || process.selinux_label().is_some()
        || linux.mount_label().is_some()
    {
        return Some("labels of a security module");
    }
    if process.io_priority().is_some()
        || process.scheduler().is_some()
        || process.exec_cpu_affinity().is_some()
    {
        return Some("a scheduler of its own");
    }
    if linux.intel_rdt().is_some()
        || linux.memory_policy().is_some()
        || linux.personality().is_some()
        || linux.net_devices().as_ref().is_some_and(|it| !it.is_empty())
        || linux.time_offsets().as_ref().is_some_and(|it| !it.is_empty())
        || linux.sysctl().as_ref().is_some_and(|it| !it.is_empty())
        || linux.uid_mappings().as_ref().is_some_and(|it| !it.is_empty())
    {
        return Some("settings of the kernel");
    }
    namespaces(linux)
        .err()
        .or_else(|| groups::refusal(spec))
        .or_else(|| root::refusal(spec, linux))
        .or_else(in_user_namespace)
}

/// Device nodes cannot be made there.
fn in_user_namespace() -> Option<&'static str> {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    (!is_whole).then_some("a user namespace around us")
}

/// The namespaces of a container, as the kernel's flags.
#[derive(Debug, Default, PartialEq, Eq)]
struct Namespaces {
    /// To be born in.
    new: i32,
    /// Of control groups, which begins where the process is by then.
    has_groups: bool,
    has_new_names: bool,
    /// Those of others: the process' children's, or its own.
    pids_of: Option<PathBuf>,
    joined: Vec<(PathBuf, i32)>,
}

fn namespaces(linux: &Linux) -> Result<Namespaces, &'static str> {
    let mut it = Namespaces::default();
    for namespace in linux.namespaces().iter().flatten() {
        let flag = match namespace.typ() {
            LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
            LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
            LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
            LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
            LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
            LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            LinuxNamespaceType::User | LinuxNamespaceType::Time => {
                return Err("namespaces of users or of time");
            }
        };
        match namespace.path() {
            Some(_) if flag == CloneFlags::CLONE_NEWNS || flag == CloneFlags::CLONE_NEWCGROUP => {
                return Err("mounts or control groups of others");
            }
            Some(path) if flag == CloneFlags::CLONE_NEWPID => it.pids_of = Some(path.clone()),
            Some(path) => it.joined.push((path.clone(), flag.bits())),
            None if flag == CloneFlags::CLONE_NEWCGROUP => it.has_groups = true,
            None => {
                it.has_new_names |= flag == CloneFlags::CLONE_NEWUTS;
                it.new |= flag.bits();
            }
        }
    }
    if it.new & libc::CLONE_NEWNS == 0 {
        return Err("the machine's own mounts");
    }
    Ok(it)
}

impl Launch<'_> {
    /// Returns the process once it has become the program. On failure nothing of it runs; who made the groups
    /// removes them, and a brother is reaped by our parent.
    pub fn start(self) -> Result<i32, StartFailure> {
        let other = |message: String| StartFailure { kind: StartFailureKind::Other, message };
        let linux = self.spec.linux().as_ref().expect("`refusal` wants one");
        let namespaces = namespaces(linux).expect("`refusal` asked for them");
        let as_brother = self.as_brother;
        // Between joining somebody's namespaces and becoming the program nobody there may look into us.
        by_descriptor::hide_from_others();
        if let Some(path) = &namespaces.pids_of {
            join(path, CloneFlags::CLONE_NEWPID).map_err(other)?;
        }
        let (mut told, mut tell) =
            io::pipe().map_err(|error| other(format!("cannot make a pipe: {error}")))?;
        match by_descriptor::fork_into(namespaces.new, self.groups.born_in(), as_brother)
            .map_err(|error| other(format!("cannot make the container's namespaces: {error}")))?
        {
            Fork::Child => {
                drop(told);
                let error = inside::become_program(&self, &namespaces);
                let _ = tell.write_all(error.as_bytes());
                sys::exit_now(1)
            }
            Fork::Parent(pid) => {
                drop(tell);
                let mut text = String::new();
                // It ends when the program is executed, or the process dies.
                let read = told.read_to_string(&mut text);
                if read.is_ok() && text.is_empty() {
                    return Ok(pid);
                }
                if !as_brother {
                    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
                }
                Err(failure(&text))
            }
        }
    }
}

fn join(path: &Path, kind: CloneFlags) -> Result<(), String> {
    let namespace =
        std::fs::File::open(path).map_err(|error| format!("cannot open {}: {error}", path.display()))?;
    nix::sched::setns(namespace, kind).map_err(|error| format!("cannot join {}: {error}", path.display()))
}

/// What the new process said, with the kind that its mark names.
fn failure(text: &str) -> StartFailure {
    for (mark, kind) in
        [(NOT_FOUND_MARK, StartFailureKind::NotFound), (NOT_EXECUTABLE_MARK, StartFailureKind::NotExecutable)]
    {
        if text.starts_with(mark) {
            return StartFailure { kind, message: text.to_owned() };
        }
    }
    let message = match text {
        "" => "the container's first process died before its program".to_owned(),
        text => format!("failed to create container: {text}"),
    };
    StartFailure { kind: StartFailureKind::Other, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
        let mut spec = crate::oci::default_spec(false);
        spec["process"]["terminal"] = json!(false);
        change(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn the_usual_is_ours_and_the_rest_the_librarys() {
        assert_eq!(refusal(&spec(|_| {})), None);
        let check = |change: fn(&mut serde_json::Value), expect: &str| {
            assert_eq!(refusal(&spec(change)), Some(expect));
        };
        check(|it| it["process"]["terminal"] = json!(true), "a terminal");
        check(|it| it["hooks"] = json!({"prestart": [{"path": "/bin/true"}]}), "hooks");
        check(|it| it["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"}), "settings of the kernel");
        check(|it| it["linux"]["namespaces"] = json!([{"type": "pid"}]), "the machine's own mounts");
        check(
            |it| it["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "user"}]),
            "namespaces of users or of time",
        );
        check(|it| it["mounts"] = json!([]), "a /dev that the image brings");
    }

    #[test]
    fn namespaces_of_others_are_joined_and_the_rest_are_born_in() {
        let spec = spec(|it| {
            it["linux"]["namespaces"] = json!([
                {"type": "mount"}, {"type": "uts"}, {"type": "cgroup"},
                {"type": "pid", "path": "/proc/7/ns/pid"}, {"type": "network", "path": "/proc/7/ns/net"},
            ]);
        });
        let got = namespaces(spec.linux().as_ref().unwrap()).unwrap();
        assert_eq!(
            got,
            Namespaces {
                new: libc::CLONE_NEWNS | libc::CLONE_NEWUTS,
                has_groups: true,
                has_new_names: true,
                pids_of: Some("/proc/7/ns/pid".into()),
                joined: vec![("/proc/7/ns/net".into(), libc::CLONE_NEWNET)],
            }
        );
    }
}
