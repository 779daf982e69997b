//! The steps of a pod's life that touch the machine. Each is whole: it undoes what it began when it
//! cannot finish.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use naru_client::Client;
use naru_objects::kinds;
use naru_runtime::{ContainerConfig, ExecConfig, RootFs, Sandbox, SandboxConfig, Slice, Started, User};
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::environment::{self, Place, Sources};
use crate::image::{ImageError, ImageInfo, ImageService};
use crate::pod::{DesiredContainer, DesiredPod};
use crate::shared::Shared;
use crate::volumes::{self, Places};
use crate::worker::{StartError, container_id};

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

fn places(shared: &Shared, uid: &str) -> Places {
    Places { disk: shared.pod_directory(uid).join("volumes"), memory: shared.memory_directory(uid) }
}

async fn fetch(client: &Client, namespace: &str, names: Vec<(bool, String)>) -> Result<Sources, String> {
    let mut sources = Sources::new();
    for (secret, name) in names {
        if sources.contains_key(&(secret, name.clone())) {
            continue;
        }
        let kind = if secret { &kinds::SECRET } else { &kinds::CONFIG_MAP };
        let object = client.get(kind, namespace, &name).await.map_err(|error| error.to_string())?;
        sources.insert((secret, name), object);
    }
    Ok(sources)
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

pub(crate) async fn create_sandbox(
    shared: Arc<Shared>,
    pod: DesiredPod,
) -> Result<(Sandbox, String), SandboxFailure> {
    let directory = shared.pod_directory(&pod.uid);
    destroy_remains(&directory).await;
    let mount = |message: String| ("FailedMount", message);
    let create = |message: String| ("FailedCreatePodSandBox", message);
    let sources =
        fetch(&shared.client, &pod.namespace, volumes::needed_sources(&pod)).await.map_err(mount)?;
    let places = places(&shared, &pod.uid);
    let prepared = pod.clone();
    blocking(move || volumes::prepare(&prepared, &sources, &places)).await.map_err(mount)?;

    let slice = pod.slice.name();
    let config = SandboxConfig {
        id: pod.uid.clone(),
        socket: shared.config.socket(&pod.uid),
        hostname: pod.hostname.clone(),
        shim_cgroup: shared.config.shim_cgroup(),
        pod_cgroup: format!("/naru/{slice}/{}", pod.uid),
        slice: pod.slice,
        ..SandboxConfig::new(&pod.uid, &directory, "")
    };
    let sandbox = Sandbox::create(&shared.program, &config).await.map_err(|error| create(chain(&error)))?;
    let attached = async {
        let address =
            shared.network.attach(&pod.uid, sandbox.pid()).await.map_err(|error| chain(&error))?.to_string();
        match volumes::write_network_files(&directory.join("etc"), &pod, &address) {
            Ok(()) => Ok(address),
            Err(error) => {
                shared.release(&address);
                Err(format!("cannot write the pod's network files: {error}"))
            }
        }
    };
    match attached.await {
        Ok(address) => Ok((sandbox, address)),
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
    let sources = fetch(&shared.client, &pod.namespace, environment::needed_sources(container)).await?;
    let place = Place {
        pod: &job.object,
        pod_ip: &job.address,
        host_ip: &shared.host_ip,
        cpus: shared.machine.cpus,
        memory_bytes: shared.machine.memory_bytes,
    };
    let environment = environment::environment(container, &job.image, &sources, &place)?;
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
    let mut config = ContainerConfig::new(&container_id(&container.name, job.attempt), root, arguments);
    config.environment = environment;
    config.working_directory = match container.working_dir.as_deref().unwrap_or(&job.image.working_dir) {
        "" => "/".into(),
        path => path.into(),
    };
    config.user = User {
        // A number in the pod replaces the image's user, with its group.
        name: if container.user.is_some() { String::new() } else { job.image.user.clone() },
        uid: container.user,
        gid: container.group,
        supplementary_gids: container.supplementary_groups.clone(),
        must_not_be_root: container.must_not_be_root,
    };
    config.mounts = volumes::network_mounts(&directory.join("etc"));
    config.mounts.extend(volumes::mounts(pod, container, &places(shared, &pod.uid))?);
    config.capabilities = container.capabilities.clone();
    config.memory_bytes_max = container.memory_bytes_max;
    config.cpu_millis_max = container.cpu_millis_max;
    config.cpu_millis_request = container.cpu_millis_request;
    config.log = Some(log_path(&directory, &container.name, job.attempt));
    config.stdin = container.stdin;
    config.stdin_once = container.stdin_once;
    config.terminal = container.tty;
    // When memory runs out a build goes before a shop.
    config.out_of_memory_score = (pod.slice == Slice::Pipelines).then_some(500);
    Ok(config)
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
    // Exit files and the specification are small; these are not.
    if let Ok(mut entries) = tokio::fs::read_dir(directory.join("c")).await {
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
