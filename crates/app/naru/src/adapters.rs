//! Where wings meet that do not know each other: package's image store as the node's image service, the
//! node's streams as the API's, code's repositories as the ones that jobs ask for.

use async_trait::async_trait;
use kube_api::{
    AttachRequest, Connection, ExecRequest, ExecSession, LogRequest, LogStream, NodeStreams, StreamError,
};
use kube_controllers::{Usage, Used};
use naru_image::ImageStore;
use naru_job_api::{Bytestream, Changed, Code, Commit, Comparison, Content, Row};
use naru_node::{Credential, HostRoot, ImageError, ImageInfo, ImageService, Node, PullPolicy};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The node asks, package answers.
pub struct Images {
    pub store: ImageStore,
    pub gate: naru_policy::Gate,
}

#[async_trait]
impl ImageService for Images {
    async fn ensure(
        &self,
        namespace: Option<&str>,
        image: &str,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<ImageInfo, ImageError> {
        let credentials: Vec<naru_image::Credential> = credentials
            .iter()
            .map(|it| naru_image::Credential {
                registry: it.registry.clone(),
                user: it.user.clone(),
                password: it.password.clone(),
            })
            .collect();
        let pull = match policy {
            PullPolicy::Always => naru_image::PullPolicy::Always,
            PullPolicy::IfNotPresent => naru_image::PullPolicy::IfNotPresent,
            PullPolicy::Never => naru_image::PullPolicy::Never,
        };
        let found = self.store.ensure_with(image, pull, &credentials).await.map_err(|error| match error {
            naru_image::Error::Name(_) => ImageError::InvalidName { image: image.to_owned() },
            it if it.is_not_found() && policy == PullPolicy::Never => {
                ImageError::NeverPull { image: image.to_owned() }
            }
            it => ImageError::Pull { image: image.to_owned(), message: chain(&it) },
        })?;
        let refused = |it| ImageError::Refused { image: image.to_owned(), message: chain(&it) };
        let warnings = match namespace {
            Some(it) => self.gate.admit(it, &found, &credentials).await.map_err(refused)?,
            None => Vec::new(),
        };
        let run = found.config.config;
        Ok(ImageInfo {
            digest: found.digest.to_string(),
            lower_dirs: found.lower_dirs,
            host: found.host.map(|it| HostRoot { masks: it.masks, read_only: it.read_only }),
            entrypoint: run.entrypoint,
            cmd: run.cmd,
            env: run.env,
            working_dir: run.working_dir,
            user: run.user,
            stop_signal: run.stop_signal,
            warnings,
        })
    }

    async fn commit(&self, id: &str, upper: &Path) -> Result<(), ImageError> {
        let (store, id_owned, upper) = (self.store.clone(), id.to_owned(), upper.to_owned());
        let committed = tokio::task::spawn_blocking(move || store.commit_blocking(&id_owned, &upper)).await;
        let failed = |message: String| ImageError::Commit { id: id.to_owned(), message };
        match committed {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(failed(chain(&error))),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// An error and its causes on one line, for messages that become part of an object.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(it) = source {
        text = format!("{text}: {it}");
        source = it.source();
    }
    text
}

/// The API asks, the node answers.
pub struct Streams(pub Node);

#[async_trait]
impl NodeStreams for Streams {
    async fn logs(&self, request: LogRequest) -> Result<LogStream, StreamError> {
        let request = naru_node::LogRequest {
            namespace: request.namespace,
            pod: request.pod,
            uid: request.uid,
            container: request.container,
            follow: request.follow,
            previous: request.previous,
            timestamps: request.timestamps,
            tail_lines: request.tail_lines,
            since_seconds: request.since_seconds,
            limit_bytes: request.limit_bytes,
            records: false,
        };
        self.0.logs(request).await.map_err(stream_error)
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, StreamError> {
        let request = naru_node::ExecRequest {
            namespace: request.namespace,
            pod: request.pod,
            uid: request.uid,
            container: request.container,
            command: request.command,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
            ..naru_node::ExecRequest::default()
        };
        self.0.exec(request).await.map(session).map_err(stream_error)
    }

    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, StreamError> {
        let request = naru_node::AttachRequest {
            namespace: request.namespace,
            pod: request.pod,
            uid: request.uid,
            container: request.container,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        };
        self.0.attach(request).await.map(session).map_err(stream_error)
    }

    async fn port_forward(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        port: u16,
    ) -> Result<Connection, StreamError> {
        let stream = self.0.port_forward(namespace, pod, uid, port).await.map_err(stream_error)?;
        Ok(Box::new(stream))
    }

    async fn usage(&self) -> Vec<kube_api::Usage> {
        let node = self.0.node_stats().await;
        let mut all = vec![kube_api::Usage {
            namespace: String::new(),
            name: node.name,
            container: String::new(),
            cpu_nanocores: node.cpu_nanocores,
            memory_bytes: node.memory_bytes,
            window: node.window,
        }];
        for pod in self.0.stats().await {
            all.extend(pod.containers.into_iter().map(|it| kube_api::Usage {
                namespace: pod.namespace.clone(),
                name: pod.pod.clone(),
                container: it.name,
                cpu_nanocores: it.cpu_nanocores,
                memory_bytes: it.memory_bytes,
                window: it.window,
            }));
        }
        all
    }
}

/// What pods used when it was last looked at, for the autoscaler.
#[derive(Default)]
pub struct Measured(Mutex<HashMap<(String, String), Vec<(String, Used)>>>);

/// The rates behind the figures are averages over as much.
const MEASURE_PERIOD: Duration = Duration::from_secs(10);

impl Measured {
    /// Measures for as long as the daemon runs.
    pub async fn measure(self: Arc<Self>, node: Node) {
        loop {
            let used = |it: naru_node::ContainerStats| {
                let used = Used {
                    cpu_milli: i64::try_from(it.cpu_nanocores / 1_000_000).unwrap_or(i64::MAX),
                    memory_bytes: i64::try_from(it.memory_bytes).unwrap_or(i64::MAX),
                };
                (it.name, used)
            };
            let pods = node.stats().await.into_iter();
            let latest = pods
                .map(|it| ((it.namespace, it.pod), it.containers.into_iter().map(used).collect()))
                .collect();
            *self.0.lock().expect("no code panics while it holds this lock") = latest;
            tokio::time::sleep(MEASURE_PERIOD).await;
        }
    }
}

impl Usage for Measured {
    fn of_pod(&self, namespace: &str, pod: &str) -> Option<Vec<(String, Used)>> {
        let latest = self.0.lock().expect("no code panics while it holds this lock");
        latest.get(&(namespace.to_owned(), pod.to_owned())).cloned()
    }
}

/// The services of jobs ask, code answers.
pub struct Repositories(pub PathBuf);

#[async_trait]
impl Code for Repositories {
    async fn resolve(&self, repository: &str, name: &str) -> Result<Option<String>, String> {
        naru_git::resolve(&self.0, repository, name).await.map_err(|it| chain(&it))
    }

    async fn archive(&self, repository: &str, commit: &str) -> Result<Bytestream, String> {
        let archive = naru_git::archive(&self.0, repository, commit).map_err(|it| chain(&it))?;
        Ok(Box::pin(tokio_util::io::ReaderStream::new(archive)))
    }

    async fn default_branch(&self, repository: &str) -> Result<Option<String>, String> {
        naru_git::default_branch(&self.0, repository).await.map_err(|it| chain(&it))
    }

    async fn content(&self, repository: &str, commit: &str, path: &str) -> Result<Option<Content>, String> {
        let found = naru_git::entry(&self.0, repository, commit, path).await.map_err(|it| chain(&it))?;
        Ok(found.map(|it| match it {
            naru_git::Entry::File { sha, bytes } => Content::File { sha, bytes },
            naru_git::Entry::Directory(rows) => Content::Directory(
                rows.into_iter().map(|(kind, sha, bytes, name)| Row { kind, sha, bytes, name }).collect(),
            ),
        }))
    }

    async fn commit(&self, repository: &str, commit: &str) -> Result<Commit, String> {
        let it = naru_git::commit(&self.0, repository, commit).await.map_err(|it| chain(&it))?;
        let naru_git::Commit { parents, author, email, date, message } = it;
        Ok(Commit { parents, author, email, date, message })
    }

    async fn compare(&self, repository: &str, base: &str, head: &str) -> Result<Comparison, String> {
        let found = naru_git::compare(&self.0, repository, base, head).await.map_err(|it| chain(&it))?;
        let (files, ahead, behind) = found;
        let file = |it: naru_git::Changed| {
            let naru_git::Changed { letter, path, previous, added, removed } = it;
            Changed { letter, path, previous, added, removed }
        };
        Ok(Comparison { files: files.into_iter().map(file).collect(), ahead, behind })
    }
}

fn session(session: naru_node::ExecSession) -> ExecSession {
    ExecSession {
        stdin: session.stdin,
        stdout: session.stdout,
        stderr: session.stderr,
        resize: session.resize,
        exit: session.exit,
    }
}

fn stream_error(error: naru_node::StreamError) -> StreamError {
    match error {
        naru_node::StreamError::NotFound(it) => StreamError::NotFound(it),
        naru_node::StreamError::BadRequest(it) => StreamError::BadRequest(it),
        naru_node::StreamError::Failed(it) => StreamError::Failed(it),
    }
}
