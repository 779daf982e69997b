//! What the owner of a pod with several lives may do with its container, beside what a kubelet offers: join it
//! before it begins, freeze it, look at its files while it is stopped.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use naru_runtime::{Mount, RootFs, Sandbox, cgroup};
use tokio::sync::oneshot;

use crate::image::PullPolicy;
use crate::shared::{PodView, Shared};
use crate::streams::{self, joined};
use crate::worker::container_id;
use crate::{AttachRequest, ExecSession, Node, StreamError, effects};

/// How long a new pod may take to be seen here, and how often it is looked for.
const SEEN_MAX: Duration = Duration::from_secs(5);
const SEEN_PERIOD: Duration = Duration::from_millis(10);

/// Somebody who waits for a container to begin.
pub(crate) struct Early {
    request: AttachRequest,
    tell: oneshot::Sender<Result<ExecSession, StreamError>>,
}

impl Early {
    pub async fn join(self, sandbox: &Sandbox, id: &str) {
        let attachment = sandbox.attach_early(id, self.request.stdin).await;
        let session = attachment
            .map(|attachment| joined(attachment, &self.request))
            .map_err(|error| StreamError::Failed(effects::chain(&error)));
        // Who has gone meanwhile leaves the container alone by dropping the session.
        let _ = self.tell.send(session);
    }
}

impl Shared {
    pub(crate) fn take_early(&self, uid: &str) -> Vec<Early> {
        self.early.lock().unwrap_or_else(PoisonError::into_inner).remove(uid).unwrap_or_default()
    }
}

/// What is known of a running container beside its status.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Its first process, as the machine numbers it.
    pub pid: i32,
    pub figures: cgroup::Detail,
    /// Bytes, packets, errors and drops received, and the same sent, by link.
    pub links: Vec<(String, [u64; 8])>,
}

/// The directories of a container's own files.
#[derive(Debug, Clone)]
pub struct ContainerFiles {
    /// What it wrote, as overlayfs keeps it.
    pub upper: PathBuf,
    /// Where the runtime notes what it made in there.
    pub directory: PathBuf,
}

/// Work on an open root.
pub type RootWork = Box<dyn FnOnce(OwnedFd) -> io::Result<()> + Send>;

/// The files of the attempt before become those of this one.
pub(crate) fn carry_files(pod_directory: &Path, container: &str, attempt: u32) -> io::Result<()> {
    let directory = |attempt| pod_directory.join("c").join(container_id(container, attempt));
    let here = directory(attempt);
    let before = (0..attempt).rev().map(directory).find(|it| it.join("upper").is_dir());
    let Some(before) = before.filter(|_| !here.join("upper").exists()) else { return Ok(()) };
    std::fs::create_dir_all(&here)?;
    let stubs = before.join("stubs.json");
    if stubs.exists() {
        std::fs::rename(stubs, here.join("stubs.json"))?;
    }
    // The files last: found again whole when this was interrupted.
    std::fs::rename(before.join("upper"), here.join("upper"))?;
    let _ = std::fs::remove_dir_all(before);
    Ok(())
}

impl Node {
    /// Joins the container when its next life begins, from its first byte on. The receiver fails when it could
    /// not begin; dropping it gives up.
    pub async fn attach_early(
        &self,
        request: AttachRequest,
    ) -> Result<oneshot::Receiver<Result<ExecSession, StreamError>>, StreamError> {
        let uid = match request.uid.as_str() {
            "" => self.find(&request.namespace, &request.pod, "")?.uid,
            // It may be so new that nobody here has looked at it.
            uid => uid.to_owned(),
        };
        let (tell, told) = oneshot::channel();
        let mut early = self.shared.early.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who gave up are not kept.
        early.retain(|_, list| {
            list.retain(|it| !it.tell.is_closed());
            !list.is_empty()
        });
        early.entry(uid).or_default().push(Early { request, tell });
        Ok(told)
    }

    /// Sends a signal to the container's first process.
    pub async fn signal(&self, namespace: &str, pod: &str, signal: i32) -> Result<(), StreamError> {
        let (pod, id) = self.running(namespace, pod)?;
        let Some(sandbox) = pod.sandbox else { return Ok(()) };
        sandbox.signal(&id, signal).await.map_err(|error| StreamError::Failed(effects::chain(&error)))
    }

    /// Stops all of the container's processes where they are, or lets them go on.
    pub async fn freeze(&self, namespace: &str, pod: &str, frozen: bool) -> Result<(), StreamError> {
        let group = self.group(namespace, pod)?;
        let done = effects::blocking(move || cgroup::freeze(&group, frozen)).await;
        done.map_err(|error| StreamError::Failed(error.to_string()))
    }

    /// The container's processes, as the machine numbers them.
    pub async fn processes(&self, namespace: &str, pod: &str) -> Result<Vec<i32>, StreamError> {
        let group = self.group(namespace, pod)?;
        Ok(effects::blocking(move || cgroup::processes(&group)).await)
    }

    pub async fn facts(&self, namespace: &str, pod: &str) -> Result<Facts, StreamError> {
        let (view, id) = self.running(namespace, pod)?;
        let Some(sandbox) = view.sandbox else { return Ok(Facts::default()) };
        let group = format!("{}/{id}", sandbox.pod_cgroup());
        let states = sandbox.containers().await.unwrap_or_default();
        let pid = match states.get(&id) {
            Some(naru_runtime::ContainerStatus::Running(started)) => started.pid,
            _ => 0,
        };
        let shim = sandbox.pid();
        Ok(effects::blocking(move || Facts {
            pid,
            figures: cgroup::detail(&group).unwrap_or_default(),
            links: links(&std::fs::read_to_string(format!("/proc/{shim}/net/dev")).unwrap_or_default()),
        })
        .await)
    }

    /// Where the container's own files are; `None` before it has any.
    pub fn files(&self, namespace: &str, pod: &str) -> Option<ContainerFiles> {
        let directory = newest(&self.find(namespace, pod, "").ok()?);
        let upper = directory.join("upper");
        upper.is_dir().then_some(ContainerFiles { upper, directory })
    }

    /// A pod that was just made is here in a moment.
    async fn find_soon(&self, namespace: &str, pod: &str) -> Result<PodView, StreamError> {
        let began = std::time::Instant::now();
        loop {
            match self.find(namespace, pod, "") {
                Err(_) if began.elapsed() < SEEN_MAX => tokio::time::sleep(SEEN_PERIOD).await,
                found => return found,
            }
        }
    }

    /// Does `work` on the container's root, mounts included, whether it runs or not. `image` and `mounts` are
    /// for one that does not run; its mounts are seen by nobody else and gone when the work is done.
    pub async fn with_root(
        &self,
        namespace: &str,
        pod: &str,
        image: &str,
        mounts: Vec<Mount>,
        work: RootWork,
    ) -> Result<(), StreamError> {
        let failed = |error: io::Error| StreamError::Failed(error.to_string());
        if let Ok((view, id)) = self.running(namespace, pod)
            && let Some(sandbox) = view.sandbox
            && let Ok(states) = sandbox.containers().await
            && let Some(naru_runtime::ContainerStatus::Running(started)) = states.get(&id)
            && let Ok(root) = open_directory(Path::new(&format!("/proc/{}/root", started.pid)))
        {
            return effects::blocking(move || work(root)).await.map_err(failed);
        }
        let view = self.find_soon(namespace, pod).await?;
        let info = self.shared.images.ensure(None, image, PullPolicy::Never, &[]).await;
        let info = info.map_err(|error| StreamError::Failed(error.to_string()))?;
        let root = RootFs { lower_directories: info.lower_dirs, host: info.host, read_only: false };
        let directory = newest(&view);
        effects::blocking(move || naru_runtime::with_mounted_root(&directory, &root, &mounts, work))
            .await
            .map_err(failed)
    }

    fn running(&self, namespace: &str, pod: &str) -> Result<(PodView, String), StreamError> {
        let pod = self.find(namespace, pod, "")?;
        let container = streams::find_container(&pod, "")?;
        if !container.running {
            return Err(streams::not_running(&pod, container));
        }
        let id = container_id(&container.name, container.attempt);
        Ok((pod, id))
    }

    fn group(&self, namespace: &str, pod: &str) -> Result<String, StreamError> {
        let (pod, id) = self.running(namespace, pod)?;
        let group = pod.sandbox.as_ref().map(|it| it.pod_cgroup().to_owned()).unwrap_or_default();
        Ok(format!("{group}/{id}"))
    }
}

/// The directory of the attempt that has the files, or of the one that will.
fn newest(pod: &PodView) -> PathBuf {
    let attempt = pod.container("").map_or(0, |it| it.attempt);
    let directory = |attempt| pod.directory.join("c").join(container_id(&pod.main_container, attempt));
    let found = (0..=attempt).rev().map(directory).find(|it| it.join("upper").is_dir());
    found.unwrap_or_else(|| directory(attempt))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, nix::sys::stat::Mode::empty())?)
}

/// `/proc/net/dev` without the loopback.
fn links(text: &str) -> Vec<(String, [u64; 8])> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let numbers: Vec<u64> = rest.split_whitespace().filter_map(|it| it.parse().ok()).collect();
            let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
            let figures = [at(0), at(1), at(2), at(3), at(8), at(9), at(10), at(11)];
            (name.trim() != "lo").then(|| (name.trim().to_owned(), figures))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_from_life_to_life() {
        let pod = tempfile::tempdir().unwrap();
        let at = |path: &str| pod.path().join("c").join(path);
        std::fs::create_dir_all(at("main-0/upper")).unwrap();
        std::fs::write(at("main-0/upper/kept"), "x").unwrap();
        std::fs::write(at("main-0/stubs.json"), "[]").unwrap();
        // An attempt that could not begin left a directory without files.
        std::fs::create_dir_all(at("main-1")).unwrap();
        for _ in 0..2 {
            carry_files(pod.path(), "main", 2).unwrap();
            assert_eq!(std::fs::read_to_string(at("main-2/upper/kept")).unwrap(), "x");
            assert!(at("main-2/stubs.json").exists() && !at("main-0").exists());
        }
    }

    #[test]
    fn the_loopback_is_nobodys_traffic() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        assert_eq!(links(text), [("eth0".to_owned(), [1, 2, 3, 4, 5, 6, 7, 8])]);
    }
}
