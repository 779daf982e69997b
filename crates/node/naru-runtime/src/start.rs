//! Starting one container, inside a throw-away fork of the shim.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use libcontainer::config::YoukiConfig;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use pathrs::flags::OpenFlags;

use nix::mount::MsFlags;

use crate::config::{ContainerConfig, Mount, SandboxConfig, StartFailure, StartFailureKind, Started, User};
use crate::executor::{NOT_EXECUTABLE_MARK, NOT_FOUND_MARK, PodExecutor};
use crate::launch::{self, Groups, Launch};
use crate::spec::{self, ResolvedUser, Surroundings};
use crate::{rootfs, seccomp, sys, trace};

/// A user database larger than this is not one.
const USER_FILE_BYTES_MAX: u64 = 4 << 20;

/// The socket over which a container's terminal comes, in its directory.
const CONSOLE: &str = "console";

/// A socket's address has 107 bytes and a directory's name may have more, so it is named by a descriptor.
pub fn listen_for_console(directory: &Path) -> std::io::Result<UnixListener> {
    let _ = fs::remove_file(directory.join(CONSOLE));
    let open = File::open(directory)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{CONSOLE}", open.as_raw_fd()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Mounts, writes the OCI bundle, creates and starts. The init process becomes a child of our
/// parent, the shim.
pub fn start(
    sandbox: &SandboxConfig,
    shim_pid: u32,
    pids_of: Option<i32>,
    config: &ContainerConfig,
    stdio: Stdio,
) -> Result<Started, StartFailure> {
    let directory = sandbox.container_directory(&config.id);
    let read_only_binds = rootfs::mount_root(&directory, &config.root)?;
    let root = pathrs::Root::open(directory.join("rootfs")).map_err(other)?;
    let user = resolve_user(&root, &config.user)?;
    // Docker and containerd make it; images rely on it.
    root.mkdir_all(&config.working_directory, &Permissions::from_mode(0o755)).map_err(|error| {
        StartFailure {
            kind: StartFailureKind::Other,
            message: format!(
                "cannot make the working directory `{}`: {error}",
                config.working_directory.display()
            ),
        }
    })?;
    let mut config = config.clone();
    stage_sub_paths(&directory, &mut config.mounts)?;
    config.out_of_memory_score = config.out_of_memory_score.map(possible_score);
    for mount in &mut config.mounts {
        mount.destination = rootfs::resolve_destination(&root, &mount.destination);
    }
    let config = &config;
    let destinations: Vec<_> = config
        .mounts
        .iter()
        .map(|mount| mount.destination.clone())
        .chain(["/proc", "/dev", "/sys"].map(Into::into))
        .collect();
    rootfs::note_mount_stubs(&directory, &root, &destinations);
    let (_, open_files_hard_max) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).map_err(other)?;
    let around = Surroundings {
        namespace_pid: shim_pid,
        capability_bits: sys::bounding_capabilities(),
        pids_of: pids_of.map(i32::unsigned_abs),
        devices: if config.privileged { host_devices(Path::new("/dev")) } else { Vec::new() },
        user,
        read_only_binds: &read_only_binds,
        open_files_hard_max,
        unified_cgroups: spec::unified(),
    };
    let oci = spec::lower_to_oci(sandbox, config, &around);
    fs::write(directory.join("config.json"), oci.to_string()).map_err(other)?;

    let filter = seccomp::default_filter(spec::is_admin(config));
    let kept = oci["annotations"][spec::CAPABILITIES].as_str().and_then(|bits| bits.parse().ok());
    let executor = PodExecutor {
        filter: config.is_filtered().then_some(filter),
        keep_capabilities: kept.filter(|_| !config.no_new_privileges),
        die_with_parent: false,
    };
    let group = spec::container_cgroup(sandbox, &config.id);
    let specification: Spec = serde_json::from_value(oci).map_err(other)?;
    let pid = if launch::refusal(&specification).is_none()
        && let Ok(groups) = Groups::make(&group, &specification)
    {
        launch_here(sandbox, &config.id, &specification, &groups, &executor, stdio)?
    } else {
        crate::cgroup::join_beside(&group);
        start_by_library(sandbox, config, executor, stdio)?
    };
    Ok(Started { pid, started_at_nanoseconds: sys::now_nanoseconds() })
}

/// Starts it ourselves, and leaves what the library needs to know when something is executed in it later.
fn launch_here(
    sandbox: &SandboxConfig,
    id: &str,
    specification: &Spec,
    groups: &Groups,
    executor: &PodExecutor,
    stdio: Stdio,
) -> Result<i32, StartFailure> {
    let bundle = sandbox.container_directory(id);
    let state = sandbox.directory.join("oci").join(id);
    fs::create_dir_all(&state).map_err(other)?;
    YoukiConfig::from_spec(specification, id).and_then(|it| it.save(&state)).map_err(other)?;
    let root = bundle.join("rootfs").canonicalize().map_err(other)?;
    let launch = Launch {
        spec: specification,
        root: &root,
        groups,
        executor,
        stdio: Some([stdio.stdin, stdio.stdout, stdio.stderr]),
        as_brother: true,
    };
    let pid = launch.start()?;
    let saved =
        Container::new(id, ContainerStatus::Running, Some(pid), &bundle, &state).and_then(|mut it| {
            it.set_creator(0).set_systemd(false).set_annotations(specification.annotations().clone()).save()
        });
    saved.map(|()| pid).map_err(|error| {
        // One that nothing can be executed in would be found out much later.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        other(format!("cannot write down the container's state: {error}"))
    })
}

fn start_by_library(
    sandbox: &SandboxConfig,
    config: &ContainerConfig,
    executor: PodExecutor,
    stdio: Stdio,
) -> Result<i32, StartFailure> {
    let directory = sandbox.container_directory(&config.id);
    let trace = directory.join("start.log");
    trace::write_errors_to(&trace);
    let explain = |error| explain(error, &trace);
    let mut container = ContainerBuilder::new(config.id.clone(), SyscallType::Linux)
        .with_root_path(sandbox.directory.join("oci"))
        .map_err(explain)?
        .with_executor(executor)
        .with_stdin(stdio.stdin)
        .with_stdout(stdio.stdout)
        .with_stderr(stdio.stderr)
        .with_console_socket(config.terminal.then(|| directory.join(CONSOLE)))
        .validate_id()
        .map_err(explain)?
        .as_init(&directory)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(explain)?;
    let pid =
        container.pid().map(|pid| pid.as_raw()).ok_or_else(|| other("the runtime reported no process"))?;
    container.start().map_err(explain)?;
    Ok(pid)
}

fn other(error: impl std::fmt::Display) -> StartFailure {
    StartFailure { kind: StartFailureKind::Other, message: error.to_string() }
}

/// libcontainer passes errors between its processes as text; ours are found by their marks, and the
/// causes of its own, which it cuts off, in what it traced to a file.
pub(crate) fn explain(error: libcontainer::error::LibcontainerError, traced: &Path) -> StartFailure {
    let mut text = error.to_string();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    for (mark, kind) in
        [(NOT_FOUND_MARK, StartFailureKind::NotFound), (NOT_EXECUTABLE_MARK, StartFailureKind::NotExecutable)]
    {
        if let Some(at) = text.find(mark) {
            let message = text[at..].trim_end_matches('"').to_owned();
            return StartFailure { kind, message };
        }
    }
    if let Some(cause) = fs::read_to_string(traced).ok().as_deref().and_then(|text| text.lines().next()) {
        text.push_str(": ");
        text.push_str(cause);
    }
    StartFailure { kind: StartFailureKind::Other, message: text }
}

/// Reads `/etc/passwd` and `/etc/group` of the container, never leaving its root.
pub(crate) fn resolve_user(root: &pathrs::Root, wanted: &User) -> Result<ResolvedUser, StartFailure> {
    let read = |path: &str| -> String {
        let mut text = String::new();
        if let Ok(file) = root.open_subpath(path, OpenFlags::O_RDONLY | OpenFlags::O_NONBLOCK) {
            // A fifo or a device here is a trap, not a user database.
            if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                let _ = Read::take(&file as &File, USER_FILE_BYTES_MAX).read_to_string(&mut text);
            }
        }
        text
    };
    look_up_user(wanted, &read("etc/passwd"), &read("etc/group"))
        .map_err(|message| StartFailure { kind: StartFailureKind::User, message })
}

fn look_up_user(wanted: &User, passwd: &str, group: &str) -> Result<ResolvedUser, String> {
    let (name, group_name) = match wanted.name.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (wanted.name.as_str(), None),
    };
    let entries =
        || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|entry| entry.len() >= 6);
    let by_number = |uid: u32| entries().find(|entry| entry[2].parse() == Ok(uid));
    let entry = match (wanted.uid, name) {
        (Some(uid), _) => by_number(uid),
        (None, "") => by_number(0),
        (None, name) => {
            entries().find(|entry| entry[0] == name).or_else(|| name.parse().ok().and_then(by_number))
        }
    };
    let uid = match (wanted.uid, &entry) {
        (Some(uid), _) => uid,
        (None, Some(entry)) => entry[2].parse().map_err(|_| format!("user `{name}` has no number"))?,
        (None, None) if name.is_empty() => 0,
        (None, None) => name.parse().map_err(|_| format!("the image has no user `{name}`"))?,
    };
    if wanted.must_not_be_root && uid == 0 {
        return Err("the container would run as root, which runAsNonRoot forbids".to_owned());
    }
    let groups: HashMap<&str, (u32, Vec<&str>)> = group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, number) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
            Some((name, (number, fields.next().unwrap_or_default().split(',').collect())))
        })
        .collect();
    let gid = match (wanted.gid, group_name) {
        (Some(gid), _) => gid,
        (None, Some(group)) => match groups.get(group) {
            Some((number, _)) => *number,
            None => group.parse().map_err(|_| format!("the image has no group `{group}`"))?,
        },
        (None, None) => entry.as_ref().and_then(|entry| entry[3].parse().ok()).unwrap_or(0),
    };
    let mut additional_gids = wanted.supplementary_gids.clone();
    if let Some(entry) = &entry
        && group_name.is_none()
        && !wanted.only_given_groups
    {
        let member_of = groups.values().filter(|(_, members)| members.contains(&entry[0]));
        additional_gids.extend(member_of.map(|(number, _)| *number));
    }
    additional_gids.sort_unstable();
    additional_gids.dedup();
    let home = entry.as_ref().map(|entry| entry[5]).filter(|home| home.starts_with('/')).map(Into::into);
    Ok(ResolvedUser { uid, gid, additional_gids, home })
}

/// Without CAP_SYS_RESOURCE, inside of a container say, nobody can be better protected than we are.
fn possible_score(wanted: i32) -> i32 {
    if sys::bounding_capabilities() & spec::bits(&["SYS_RESOURCE"]) != 0 {
        return wanted;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
    wanted.max(own.unwrap_or(0))
}

/// Where binds of parts of volumes are prepared, in the container's directory.
const STAGED: &str = "sub";

/// A path below a volume is chosen by the pod, and what lies in the volume by its containers, so links are
/// followed inside the volume only, and what was found is bound before anybody can swap it.
fn stage_sub_paths(directory: &Path, mounts: &mut [Mount]) -> Result<(), StartFailure> {
    let staged = directory.join(STAGED);
    for (number, mount) in mounts.iter_mut().enumerate() {
        let Some(sub_path) = mount.sub_path.take() else { continue };
        let failed = |error: &dyn std::fmt::Display| {
            other(format!("failed to prepare subPath `{}`: {error}", sub_path.display()))
        };
        let volume = pathrs::Root::open(&mount.source).map_err(|error| failed(&error))?;
        let handle = match volume.resolve(&sub_path) {
            Ok(handle) => handle,
            Err(_) => {
                volume.mkdir_all(&sub_path, &Permissions::from_mode(0o777)).map_err(|error| failed(&error))?
            }
        };
        let found = handle.reopen(OpenFlags::O_PATH).map_err(|error| failed(&error))?;
        let target = staged.join(number.to_string());
        fs::create_dir_all(&staged).map_err(|error| failed(&error))?;
        match found.metadata().is_ok_and(|it| it.is_dir()) {
            true => fs::create_dir_all(&target).map_err(|error| failed(&error))?,
            false => fs::write(&target, b"").map_err(|error| failed(&error))?,
        }
        let source = format!("/proc/self/fd/{}", found.as_raw_fd());
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        nix::mount::mount(Some(source.as_str()), &target, None::<&str>, flags, None::<&str>)
            .map_err(|error| failed(&error))?;
        mount.source = target;
    }
    Ok(())
}

/// The machine's device nodes, but for those that every container has of its own.
fn host_devices(directory: &Path) -> Vec<serde_json::Value> {
    const OWN: &[&str] = &["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"];
    let mut devices = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        let kind = metadata.file_type();
        if kind.is_dir() {
            devices.extend(host_devices(&path));
        } else if kind.is_char_device() || kind.is_block_device() {
            devices.push(serde_json::json!({
                "path": path, "type": if kind.is_char_device() { "c" } else { "b" },
                "major": nix::sys::stat::major(metadata.rdev()), "minor": nix::sys::stat::minor(metadata.rdev()),
                "fileMode": metadata.mode() & 0o777, "uid": metadata.uid(), "gid": metadata.gid(),
            }));
        }
    }
    devices
}

/// Takes away what a container leaves in the shim's namespace and in libcontainer's state.
pub fn clean_up(sandbox: &SandboxConfig, container: &str) {
    let directory = sandbox.container_directory(container);
    rootfs::unmount_root(&directory);
    for entry in fs::read_dir(directory.join(STAGED)).into_iter().flatten().flatten() {
        let _ = nix::mount::umount2(&entry.path(), nix::mount::MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(sandbox.directory.join("oci").join(Path::new(container)));
    crate::cgroup::remove(&spec::container_cgroup(sandbox, container));
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\nbad line\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nweb:x:2000:app,other\n";

    fn check(name: &str, expect: Result<(u32, u32, &[u32]), &str>) {
        let wanted = User { name: name.to_owned(), ..User::default() };
        let got = look_up_user(&wanted, PASSWD, GROUP);
        match (got, expect) {
            (Ok(user), Ok((uid, gid, extra))) => {
                assert_eq!((user.uid, user.gid, user.additional_gids.as_slice()), (uid, gid, extra), "{name}")
            }
            (Err(message), Err(expect)) => assert_eq!(message, expect),
            (got, expect) => panic!("{name}: {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn users_are_those_of_the_image() {
        check("", Ok((0, 0, &[])));
        check("app", Ok((1000, 1001, &[2000])));
        check("1000", Ok((1000, 1001, &[2000])));
        check("app:web", Ok((1000, 2000, &[])));
        check("4242", Ok((4242, 0, &[])));
        check("4242:77", Ok((4242, 77, &[])));
        check("nobody", Err("the image has no user `nobody`"));
        check("app:wheel", Err("the image has no group `wheel`"));
    }

    #[test]
    fn run_as_non_root_is_checked_against_the_resolved_number() {
        let wanted = User { name: "root".into(), must_not_be_root: true, ..User::default() };
        assert!(look_up_user(&wanted, PASSWD, GROUP).is_err());
        let wanted = User { name: "app".into(), must_not_be_root: true, ..User::default() };
        assert!(look_up_user(&wanted, PASSWD, GROUP).is_ok());
    }
}
