//! What the Docker Engine API asks of the machine, answered by the node.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use naru_engine_api::{
    AttachSpec, ContainerNode, ExecSpec, Facts, Figures, Files, Mount, NodeError, RootWork, Session,
};
use naru_node::{AttachRequest, ExecRequest, LogRequest, Node, StreamError};
use std::io;
use tokio::sync::oneshot;

pub struct EngineNode(pub Node);

fn told(error: StreamError) -> NodeError {
    match error {
        StreamError::NotFound(it) => NodeError::NotFound(it),
        StreamError::BadRequest(it) => NodeError::NotRunning(it),
        StreamError::Failed(it) => NodeError::Failed(it),
    }
}

fn session(it: naru_node::ExecSession) -> Session {
    Session { stdin: it.stdin, stdout: it.stdout, stderr: it.stderr, resize: it.resize, exit: it.exit }
}

fn attach_request(namespace: &str, pod: &str, spec: AttachSpec) -> AttachRequest {
    AttachRequest {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: spec.uid,
        stdin: spec.stdin,
        stdout: true,
        stderr: true,
        tty: spec.tty,
        ..AttachRequest::default()
    }
}

#[async_trait]
impl ContainerNode for EngineNode {
    async fn attach(&self, namespace: &str, pod: &str, spec: AttachSpec) -> Result<Session, NodeError> {
        self.0.attach(attach_request(namespace, pod, spec)).await.map(session).map_err(told)
    }

    async fn attach_early(
        &self,
        namespace: &str,
        pod: &str,
        spec: AttachSpec,
    ) -> Result<oneshot::Receiver<Result<Session, NodeError>>, NodeError> {
        let waiting = self.0.attach_early(attach_request(namespace, pod, spec)).await.map_err(told)?;
        let (mut tell, hear) = oneshot::channel();
        tokio::spawn(async move {
            tokio::select! {
                joined = waiting => {
                    if let Ok(joined) = joined {
                        let _ = tell.send(joined.map(session).map_err(told));
                    }
                }
                // Dropping the other end gives up.
                () = tell.closed() => {}
            }
        });
        Ok(hear)
    }

    async fn exec(&self, namespace: &str, pod: &str, spec: ExecSpec) -> Result<Session, NodeError> {
        let request = ExecRequest {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            command: spec.command,
            environment: spec.environment,
            working_directory: spec.working_directory,
            user: spec.user,
            privileged: spec.privileged,
            stdin: spec.stdin,
            stdout: true,
            stderr: true,
            tty: spec.tty,
            ..ExecRequest::default()
        };
        self.0.exec(request).await.map(session).map_err(told)
    }

    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        follow: bool,
        tail: Option<u64>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, NodeError> {
        let request = LogRequest {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            follow,
            tail_lines: tail,
            records: true,
            ..LogRequest::default()
        };
        Ok(Box::pin(self.0.logs(request).await.map_err(told)?))
    }

    async fn signal(&self, namespace: &str, pod: &str, signal: i32) -> Result<(), NodeError> {
        self.0.signal(namespace, pod, signal).await.map_err(told)
    }

    async fn freeze(&self, namespace: &str, pod: &str, frozen: bool) -> Result<(), NodeError> {
        self.0.freeze(namespace, pod, frozen).await.map_err(told)
    }

    async fn processes(&self, namespace: &str, pod: &str) -> Result<Vec<i32>, NodeError> {
        self.0.processes(namespace, pod).await.map_err(told)
    }

    async fn facts(&self, namespace: &str, pod: &str) -> Result<Facts, NodeError> {
        let facts = self.0.facts(namespace, pod).await.map_err(told)?;
        let it = facts.figures;
        let figures = Figures {
            cpu_nanoseconds: it.cpu_nanoseconds,
            cpu_user_nanoseconds: it.cpu_user_nanoseconds,
            cpu_system_nanoseconds: it.cpu_system_nanoseconds,
            throttling: it.throttling,
            memory_bytes: it.memory_bytes,
            memory_bytes_peak: it.memory_bytes_peak,
            memory_bytes_max: it.memory_bytes_max,
            memory: it.memory,
            processes: it.processes,
            processes_max: it.processes_max,
            io_bytes: it.io_bytes,
            is_unified: it.is_unified,
        };
        Ok(Facts { pid: facts.pid, figures, links: facts.links })
    }

    fn files(&self, namespace: &str, pod: &str) -> Result<Option<Files>, NodeError> {
        let files = self.0.files(namespace, pod);
        Ok(files.map(|it| Files { upper: it.upper, directory: it.directory }))
    }

    async fn with_root(
        &self,
        namespace: &str,
        pod: &str,
        image: &str,
        mounts: Vec<Mount>,
        work: RootWork,
    ) -> Result<(), NodeError> {
        let mounts = mounts
            .into_iter()
            .map(|it| naru_node::Mount::new(it.source, it.destination, it.read_only))
            .collect();
        self.0.with_root(namespace, pod, image, mounts, work).await.map_err(told)
    }
}
