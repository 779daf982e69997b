//! The steps of a pod's life that touch the machine. Each is whole: it undoes what it began when it
//! cannot finish.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use naru_runtime::{
    ContainerConfig, ExecConfig, Mount, RootFs, Sandbox, SandboxConfig, Slice, Started, User, cgroup,
};
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::environment::{self, Place};
use crate::image::{ImageError, ImageInfo, ImageService};
use crate::pod::{DesiredContainer, DesiredPod, Hook, Seccomp};
use crate::probe::{Check, ask_network};
use crate::shared::Shared;
use crate::worker::{StartError, container_id};
use crate::{last_words, network_files, provide, status, volumes};

/// Error texts keep their causes: people read them in `kubectl describe`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

/// Work on files that may be many or on a slow disk.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Why a sandbox could not be made: the event's reason and the message.
pub(crate) type SandboxFailure = (&'static str, String);

/// A sandbox that is ready for containers.
pub(crate) struct Made {
    pub sandbox: Sandbox,
    pub address: String,
    /// When tokens in its volumes want to be renewed.
    pub renew_at: Option<Timestamp>,
}

pub(crate) async fn create_sandbox(
    shared: Arc<Shared>,
    pod: DesiredPod,
    object: Arc<Value>,
) -> Result<Made, SandboxFailure> {
    let directory = shared.pod_directory(&pod.uid);
    destroy_remains(&directory).await;
    let mount = |message: String| ("FailedMount", message);
    let create = |message: String| ("FailedCreatePodSandBox", message);
    provide::check_runtime(&shared, &pod).await.map_err(create)?;
    let claims = provide::claims(&shared, &pod).await.map_err(mount)?;
    let places = provide::places(&shared, &pod.uid, claims);
    let memory_volumes = volumes::memory_volumes(&pod, &places);
    let prepared = pod.clone();
    blocking(move || volumes::prepare(&prepared, &places)).await.map_err(mount)?;
    let renew_at = provide::fill(&shared, &pod, &object).await.map_err(mount)?;

    let slice = pod.slice.name();
    let config = SandboxConfig {
        id: pod.uid.clone(),
        socket: shared.config.socket(&pod.uid),
        hostname: match pod.host_network {
            true => shared.config.node_name.clone(),
            false => pod.hostname.clone(),
        },
        shim_cgroup: shared.config.shim_cgroup(),
        pod_cgroup: format!("/naru/{slice}/{}", pod.uid),
        slice: pod.slice,
        host_network: pod.host_network,
        host_ipc: pod.host_ipc,
        host_pids: pod.host_pids,
        share_pids: pod.share_pids,
        sysctls: pod.sysctls.clone(),
        memory_volumes,
        ..SandboxConfig::new(&pod.uid, &directory, "")
    };
    let sandbox = Sandbox::create(&shared.program, &config).await.map_err(|error| create(chain(&error)))?;
    let attached = async {
        limit_whole(&pod, sandbox.pod_cgroup())?;
        let address = match pod.host_network {
            true => shared.host_ip.clone(),
            false if pod.no_network => naru_net::attach_nothing(sandbox.pid())
                .await
                .map(|()| crate::shared::LOOPBACK.to_owned())
                .map_err(|error| chain(&error))?,
            false => {
                let attached = shared.network.attach(&pod.uid, sandbox.pid()).await;
                attached.map_err(|error| chain(&error))?.to_string()
            }
        };
        match network_files::write(&directory.join("etc"), &pod, &address, shared.config.cluster_dns) {
            Ok(()) => Ok(address),
            Err(error) => {
                shared.release(&address);
                Err(format!("cannot write the pod's network files: {error}"))
            }
        }
    };
    match attached.await {
        Ok(address) => Ok(Made { sandbox, address, renew_at }),
        Err(message) => {
            if sandbox.shutdown().await.is_err() {
                destroy_remains(&directory).await;
            }
            Err(create(message))
        }
    }
}

pub(crate) struct StartJob {
    pub shared: Arc<Shared>,
    pub sandbox: Sandbox,
    pub object: Arc<Value>,
    pub pod: DesiredPod,
    pub container: DesiredContainer,
    pub image: ImageInfo,
    pub address: String,
    pub attempt: u32,
}

pub(crate) async fn start_container(job: StartJob) -> Result<Started, StartError> {
    let config = configure(&job).await.map_err(StartError::Blocked)?;
    if job.pod.life.is_some() {
        let (pod, container) = (job.shared.pod_directory(&job.pod.uid), job.container.name.clone());
        let attempt = job.attempt;
        let carried = blocking(move || crate::inside::carry_files(&pod, &container, attempt)).await;
        carried
            .map_err(|error| StartError::Blocked(format!("cannot keep the container's files: {error}")))?;
        for early in job.shared.take_early(&job.pod.uid) {
            early.join(&job.sandbox, &config.id).await;
        }
        return job.sandbox.start(&config).await.map_err(StartError::Runtime);
    }
    if let Some(older) = job.attempt.checked_sub(1) {
        // Its files are of no use; its log stays, for `--previous`.
        let older_id = container_id(&job.container.name, older);
        let directory = job.sandbox.container_directory(&older_id);
        for part in ["upper", "work"] {
            remove_directory(&directory.join(part)).await;
        }
    }
    if let Some(oldest) = job.attempt.checked_sub(2) {
        remove_directory(&job.sandbox.container_directory(&container_id(&job.container.name, oldest))).await;
        let log = log_path(&job.shared.pod_directory(&job.pod.uid), &job.container.name, oldest);
        for number in 0..naru_runtime::LOG_FILES_MAX {
            let mut path = log.clone().into_os_string();
            if number > 0 {
                path.push(format!(".{number}"));
            }
            let _ = tokio::fs::remove_file(PathBuf::from(path)).await;
        }
    }
    job.sandbox.start(&config).await.map_err(StartError::Runtime)
}

async fn configure(job: &StartJob) -> Result<ContainerConfig, String> {
    let (shared, pod, container) = (&job.shared, &job.pod, &job.container);
    check_user(pod, container, &job.image)?;
    let sources =
        provide::fetch(&shared.client, &pod.namespace, environment::needed_sources(container)).await?;
    shared.services.synced().await;
    let services = shared.services.list();
    let place = Place {
        object: &job.object,
        pod,
        pod_ip: &job.address,
        host_ip: &shared.host_ip,
        allocatable: provide::allocatable(shared),
        services: &services,
    };
    let mut environment = environment::environment(container, &job.image, &sources, &place)?;
    environment.retain(|(name, _)| {
        let of_image = || job.image.env.iter().any(|it| it.split('=').next() == Some(name));
        let own = || container.env.iter().any(|(it, _)| it == name) || of_image();
        !pod.options.unset.contains(name) && (!pod.options.plain_environment || own())
    });
    let arguments = environment::command_line(container, &job.image, &environment);
    let root = RootFs {
        lower_directories: job.image.lower_dirs.clone(),
        host: job.image.host.clone().map(|mut host| {
            // What we keep is nobody's business in there, and overlayfs would loop.
            host.masks.push(shared.config.state_dir.clone());
            host.masks.push(shared.config.run_dir.clone());
            host
        }),
        read_only: container.read_only_root,
    };
    let directory = shared.pod_directory(&pod.uid);
    let id = container_id(&container.name, job.attempt);
    let mut config = ContainerConfig::new(&id, root, arguments);
    config.working_directory = match container.working_dir.as_deref().unwrap_or(&job.image.working_dir) {
        "" => "/".into(),
        path => path.into(),
    };
    config.user = User {
        // A number in the pod replaces the image's user, with its group.
        name: match (&pod.options.user, container.user) {
            (_, Some(_)) => String::new(),
            (Some(user), None) => user.clone(),
            (None, None) => job.image.user.clone(),
        },
        uid: container.user,
        gid: container.group,
        supplementary_gids: container.supplementary_groups.clone(),
        must_not_be_root: container.must_not_be_root,
        only_given_groups: !container.merge_groups,
    };
    let claims = provide::claims(shared, pod).await?;
    let places = provide::places(shared, &pod.uid, claims);
    config.mounts = volumes::mounts(pod, container, &environment, &places)?;
    config.mounts.extend(network_files::mounts(&directory.join("etc"), &config.mounts));
    let message = Mount::new(last_words::prepare(&directory, &id)?, &container.message_path, false);
    if !config.mounts.iter().any(|it| it.destination == message.destination) {
        config.mounts.push(message);
    }
    config.environment = environment;
    config.capabilities = container.capabilities.clone();
    config.all_capabilities = container.all_capabilities;
    config.privileged = container.privileged;
    config.unfiltered = container.seccomp == Seccomp::Unconfined;
    config.unmasked_proc = container.unmasked_proc;
    config.no_new_privileges = !container.may_escalate;
    config.memory_bytes_max = container.resources.memory_bytes_max;
    config.cpu_millis_max = container.resources.cpu_millis_max;
    config.cpu_millis_request = container.resources.cpu_millis_request;
    config.pids_max = pod.options.pids_max.map_or(config.pids_max, |max| max.min(config.pids_max));
    config.resource_limits =
        pod.options.limits.iter().map(|it| (it.name.clone(), it.soft, it.hard)).collect();
    config.log = Some(log_path(&directory, &container.name, pod.log_number(job.attempt)));
    config.pids_of = target_of(job)?;
    config.stdin = container.stdin;
    config.stdin_once = container.stdin_once;
    config.terminal = container.tty;
    config.out_of_memory_score = Some(out_of_memory_score(pod, container, shared.machine.memory_bytes));
    Ok(config)
}

/// The shim's name for the container whose processes an ephemeral one looks at.
fn target_of(job: &StartJob) -> Result<Option<String>, String> {
    // Where all share their processes already there is nothing to do.
    let shared = job.pod.share_pids || job.pod.host_pids;
    let Some(target) = job.container.target.as_deref().filter(|_| !shared) else { return Ok(None) };
    let view = job.shared.view(&job.pod.uid);
    let running = view.as_ref().and_then(|view| view.container(target)).filter(|it| it.running);
    let running = running.ok_or_else(|| format!("target container {target} is not running"))?;
    Ok(Some(container_id(target, running.attempt)))
}

/// What the pod as a whole may use, where it says so.
fn limit_whole(pod: &DesiredPod, group: &str) -> Result<(), String> {
    let whole = &pod.resources;
    if whole.written.as_object().is_none_or(|it| it.is_empty()) {
        return Ok(());
    }
    let limits = cgroup::Limits {
        memory_bytes_max: whole.memory_bytes_max,
        cpu_millis_max: whole.cpu_millis_max,
        cpu_millis_request: whole.cpu_millis_request,
    };
    cgroup::set_limits(group, &limits).map_err(|error| format!("cannot limit the pod: {error}"))
}

/// Who the kernel ends first when memory runs out: builds, then who asked for nothing, last who asked for all
/// that it may have. kubelet's figures but for builds.
fn out_of_memory_score(pod: &DesiredPod, container: &DesiredContainer, memory_bytes: u64) -> i32 {
    const BUILD: i32 = 1000;
    const BEST_EFFORT: i32 = 990;
    if pod.slice == Slice::Pipelines {
        return BUILD;
    }
    match status::quality_of_service(pod) {
        "Guaranteed" => -997,
        "BestEffort" => BEST_EFFORT,
        _ => {
            let asked = container.resources.memory_bytes_request.unwrap_or(0);
            let share = asked.saturating_mul(1000) / memory_bytes.max(1);
            (1000 - i32::try_from(share).unwrap_or(1000)).clamp(3, BEST_EFFORT - 1)
        }
    }
}

/// kubelet's check and words; by name only the image itself knows who somebody is.
fn check_user(pod: &DesiredPod, container: &DesiredContainer, image: &ImageInfo) -> Result<(), String> {
    if !container.must_not_be_root {
        return Ok(());
    }
    let place =
        format!("(pod: \"{}_{}({})\", container: {})", pod.name, pod.namespace, pod.uid, container.name);
    let name = image.user.split(':').next().unwrap_or_default();
    match (container.user, name.parse::<u32>()) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if name.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (None, Err(_)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root \
             {place}"
        )),
    }
}

/// Does what a hook says. A preStop hook is bounded by its caller.
pub(crate) async fn run_hook(
    shared: &Shared,
    sandbox: &Sandbox,
    id: &str,
    address: &str,
    hook: &Hook,
    timeout: Duration,
) -> Result<(), String> {
    match hook {
        Hook::Sleep { seconds } => {
            tokio::time::sleep(Duration::from_secs(*seconds).min(timeout)).await;
            Ok(())
        }
        Hook::Ask(Check::Exec { command }) => ask_inside(shared, sandbox, id, command, timeout).await,
        Hook::Ask(check) => match ask_network(check, address, timeout).await {
            // That it was asked is the point; what it answers is its own affair, as everywhere.
            Err(message) if message.starts_with("HTTP probe failed") => Ok(()),
            other => other,
        },
    }
}

pub(crate) fn log_path(pod_directory: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_directory.join("logs").join(container).join(format!("{attempt}.log"))
}

/// Runs a command in a container for a probe; anything but success is a failure with its output.
pub(crate) async fn ask_inside(
    shared: &Shared,
    sandbox: &Sandbox,
    id: &str,
    command: &[String],
    timeout: Duration,
) -> Result<(), String> {
    const OUTPUT_BYTES_MAX: u64 = 1024;
    let config = ExecConfig {
        container: id.to_owned(),
        arguments: command.to_vec(),
        environment: Vec::new(),
        working_directory: None,
        user: None,
        privileged: false,
        stdin: false,
        terminal: false,
    };
    let asked = async {
        let mut exec = sandbox.exec(&shared.program, &config).await.map_err(|error| chain(&error))?;
        let stdio = std::mem::take(&mut exec.stdio);
        let mut output = Vec::new();
        let read = async {
            // Both are drained so that a talkative check does not block; only the beginning is kept.
            let out = async {
                if let Some(mut stdout) = stdio.stdout {
                    let _ = (&mut stdout).take(OUTPUT_BYTES_MAX).read_to_end(&mut output).await;
                    let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
                }
            };
            let errors = async {
                if let Some(mut stderr) = stdio.stderr {
                    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
                }
            };
            tokio::join!(out, errors);
        };
        let (code, ()) = tokio::join!(exec.wait(), read);
        match code {
            Ok(0) => Ok(()),
            Ok(code) => Err(format!("exit code {code}: {}", String::from_utf8_lossy(&output).trim())),
            Err(error) => Err(chain(&error)),
        }
    };
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or_else(|_| Err(format!("command timed out after {timeout:?}")))
}

/// Keeps what a finished container wrote.
pub(crate) async fn commit(
    images: Arc<dyn ImageService>,
    id: String,
    container_directory: PathBuf,
) -> Result<(), ImageError> {
    let directory = container_directory.clone();
    blocking(move || naru_runtime::remove_mount_stubs(&directory)).await;
    images.commit(&id, &container_directory.join("upper")).await
}

/// Ends a pod's sandbox; logs and records stay.
pub(crate) async fn tear_down(
    shared: &Shared,
    sandbox: Option<Sandbox>,
    directory: &Path,
    uid: &str,
    address: Option<&str>,
    keeps_files: bool,
) {
    let clean = match sandbox {
        Some(sandbox) => sandbox.shutdown().await.is_ok(),
        None => false,
    };
    if !clean {
        destroy_remains(directory).await;
    }
    shared.network.detach(uid).await;
    if let Some(address) = address {
        shared.release(address);
    }
    // Exit files and the specification are small; these are not. A pod with another life keeps them.
    if !keeps_files && let Ok(mut entries) = tokio::fs::read_dir(directory.join("c")).await {
        while let Ok(Some(entry)) = entries.next_entry().await {
            for part in ["upper", "work"] {
                remove_directory(&entry.path().join(part)).await;
            }
        }
    }
    remove_directory(&directory.join("volumes")).await;
    remove_directory(&shared.memory_directory(uid)).await;
    let _ = tokio::fs::remove_dir(shared.config.socket_directory()).await;
}

/// Kills whatever is left of a sandbox.
pub(crate) async fn destroy_remains(directory: &Path) {
    let owned = directory.to_owned();
    if let Err(error) = blocking(move || Sandbox::destroy_remains(&owned)).await {
        tracing::warn!(directory = %directory.display(), %error, "cannot clean up a sandbox");
    }
    // A new shim must not take the old one's files for its own.
    for name in ["shim.json", "sandbox.json"] {
        let _ = tokio::fs::remove_file(directory.join(name)).await;
    }
    remove_directory(&directory.join("oci")).await;
}

pub(crate) async fn remove_directory(path: &Path) {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove a directory");
        }
        _ => {}
    }
}
