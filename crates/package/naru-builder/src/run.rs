//! A `RUN` step is a pod like any other: scheduled, limited and isolated by the cluster, its log read
//! through the API. Its annotation asks the node to keep what it wrote as a layer.

use crate::engine::Config;
use crate::form::Network;
use base64::Engine as _;
use futures::stream::BoxStream;
use futures::{AsyncBufReadExt, StreamExt};
use naru_client::{Client, LogOptions};
use naru_objects::{kinds, labels};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// On every pod of a build step, for finding those that a killed daemon left.
pub const LABEL_STEP: &str = "naru.dev/build-step";
const LOG_LINE_BYTES_MAX: usize = 64 * 1024; // one stack trace, and bounded memory per step
/// How long the last lines may take once the container has ended.
const LOG_DRAIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct RunStep {
    /// Unique; the layer is committed under it.
    pub id: String,
    pub image: String,
    pub command: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: String,
    pub mounts: Vec<StepMount>,
    /// Variables whose values must not stand in an object that everybody may read.
    pub secret_env: BTreeMap<String, Vec<u8>>,
    pub network: Network,
    /// The name that the step sees itself under.
    pub hostname: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Nobody wants the outcome any more.
    pub stop: CancellationToken,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepMount {
    /// A directory or a file of this machine.
    Path {
        path: PathBuf,
        target: String,
        read_only: bool,
    },
    Tmpfs {
        target: String,
        size_bytes: Option<u64>,
    },
}

impl StepMount {
    pub fn target(&self) -> &str {
        match self {
            Self::Path { target, .. } | Self::Tmpfs { target, .. } => target,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunFailure {
    #[error("exit code {exit_code}{}", if .reason.is_empty() { String::new() } else { format!(" ({})", .reason) })]
    Failed { exit_code: i64, reason: String },
    #[error("it took longer than {} s", .0.as_secs())]
    TooLong(Duration),
    #[error("its pod cannot run: {0}")]
    CannotRun(String),
    #[error("the pod's API failed: {0}")]
    Api(String),
    #[error("it was stopped")]
    Stopped,
}

/// How steps are run: blocks until the step has ended and its layer is committed.
pub trait Runner: Send + Sync {
    fn run(&self, step: &RunStep, log: &mut dyn FnMut(&str)) -> Result<(), RunFailure>;
}

pub struct PodRunner {
    client: Client,
    namespace: String,
    memory_bytes: u64,
    cpu_millis: u64,
    timeout: Duration,
    /// On the disk that containers write to.
    dir: PathBuf,
}

/// With less than this left, a step that failed most likely failed for want of room. Its own message about
/// it may not have found room in the log either.
const DISK_FULL_BELOW_BYTES: u64 = 32 << 20;

fn is_disk_full(dir: &Path) -> bool {
    nix::sys::statvfs::statvfs(dir)
        .is_ok_and(|it| it.blocks_available() * it.fragment_size() <= DISK_FULL_BELOW_BYTES)
}

impl PodRunner {
    pub fn new(client: Client, config: &Config) -> Self {
        Self {
            client,
            namespace: config.namespace.clone(),
            memory_bytes: config.step_memory_bytes,
            cpu_millis: config.step_cpu_millis,
            timeout: config.step_timeout,
            dir: config.dir.clone(),
        }
    }

    fn pod(&self, step: &RunStep) -> Value {
        let name = format!("build-{}", step.id);
        let plain = step.env.iter().map(|(name, value)| json!({"name": name, "value": escape(value)}));
        let secret = step
            .secret_env
            .keys()
            .map(|it| json!({"name": it, "valueFrom": {"secretKeyRef": {"name": name, "key": it}}}));
        let env: Vec<Value> = plain.chain(secret).collect();
        let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
        for (index, mount) in step.mounts.iter().enumerate() {
            let name = format!("m{index}");
            let (mut volume, read_only) = match mount {
                StepMount::Path { path, read_only, .. } => {
                    let kind = if path.is_dir() { "Directory" } else { "" };
                    (json!({"hostPath": {"path": path, "type": kind}}), *read_only)
                }
                StepMount::Tmpfs { size_bytes: None, .. } => {
                    (json!({"emptyDir": {"medium": "Memory"}}), false)
                }
                StepMount::Tmpfs { size_bytes: Some(bytes), .. } => {
                    (json!({"emptyDir": {"medium": "Memory", "sizeLimit": bytes.to_string()}}), false)
                }
            };
            volume["name"] = json!(name);
            volumes.push(volume);
            mounts.push(json!({"name": name, "mountPath": mount.target(), "readOnly": read_only}));
        }
        let mut annotations = json!({labels::COMMIT: step.id});
        if step.network == Network::None {
            annotations[labels::NETWORK] = json!("none");
        }
        let mut all_labels = step.labels.clone();
        all_labels.insert(labels::SLICE.into(), "pipelines".into());
        all_labels.insert(LABEL_STEP.into(), step.id.clone());
        let command: Vec<String> = step.command.iter().map(|it| escape(it)).collect();
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": self.namespace, "labels": all_labels, "annotations": annotations,
            },
            "spec": {
                "hostname": step.hostname,
                "restartPolicy": "Never", "automountServiceAccountToken": false, "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "step", "image": step.image, "imagePullPolicy": "IfNotPresent", "command": command,
                    "env": env, "workingDir": step.working_dir, "volumeMounts": mounts,
                    "resources": {
                        "limits": {"memory": self.memory_bytes.to_string(), "cpu": format!("{}m", self.cpu_millis)},
                        "requests": {"memory": "0", "cpu": "0"},
                    },
                }],
                "volumes": volumes,
            },
        })
    }

    async fn run_pod(&self, step: &RunStep, log: &mut dyn FnMut(&str)) -> Result<(), RunFailure> {
        let api = |it: naru_client::Error| RunFailure::Api(it.to_string());
        let pod = self.pod(step);
        let name = naru_objects::name_of(&pod).to_owned();
        let cache =
            self.client.cache(&kinds::POD, Some(&self.namespace), &format!("{LABEL_STEP}={}", step.id));
        cache.synced().await;
        let pod = self.client.create(&kinds::POD, &pod).await.map_err(api)?;
        if !step.secret_env.is_empty() {
            // After the pod, which owns it and waits for it.
            let encode = |it: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(it);
            let data: BTreeMap<&String, String> =
                step.secret_env.iter().map(|(name, it)| (name, encode(it))).collect();
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
                "metadata": {"name": name, "namespace": self.namespace, "labels": {LABEL_STEP: step.id},
                             "ownerReferences": [naru_objects::owner_reference(&pod)]},
                "data": data,
            });
            self.client.create(&kinds::SECRET, &secret).await.map_err(api)?;
        }
        let outcome = tokio::select! {
            outcome = self.follow(&name, cache, log) => outcome,
            () = tokio::time::sleep(self.timeout) => Err(RunFailure::TooLong(self.timeout)),
            () = step.stop.cancelled() => Err(RunFailure::Stopped),
        };
        // Asked while the pod, and what it wrote, is still there.
        let outcome = match outcome {
            Err(RunFailure::Failed { exit_code, .. }) if is_disk_full(&self.dir) => Err(RunFailure::Failed {
                exit_code,
                reason: "the disk is full: free some space, or move the data directory to a larger disk"
                    .into(),
            }),
            other => other,
        };
        if let Err(error) = self.client.delete(&kinds::POD, &self.namespace, &name, Some(0)).await {
            tracing::warn!(pod = name, %error, "the pod of a build step is left behind");
        }
        if !step.secret_env.is_empty()
            && let Err(error) = self.client.delete(&kinds::SECRET, &self.namespace, &name, None).await
            && !error.is_not_found()
        {
            tracing::warn!(secret = name, %error, "the secret of a build step is left behind");
        }
        outcome
    }

    async fn follow(
        &self,
        name: &str,
        mut cache: naru_client::Cache,
        log: &mut dyn FnMut(&str),
    ) -> Result<(), RunFailure> {
        let mut seen = false;
        // Until it has a log, which it has from its start to its deletion.
        let mut end = loop {
            let pod = cache.get(&self.namespace, name);
            match pod.as_deref() {
                None if seen => return Err(RunFailure::CannotRun("it was deleted by somebody else".into())),
                None => {}
                Some(pod) => {
                    seen = true;
                    match state_of(pod) {
                        State::Waiting => {}
                        State::Stuck(why) => return Err(RunFailure::CannotRun(why)),
                        State::Running => break None,
                        State::Ended(end) => break Some(end),
                    }
                }
            }
            cache.changed().await;
        };
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut lines = match self.client.logs(&self.namespace, name, "step", &options).await {
            Ok(reader) => Some(lines(reader)),
            Err(error) => {
                log(&format!("(the step's log cannot be read: {error})"));
                None
            }
        };
        loop {
            let line = async {
                match &mut lines {
                    Some(it) => it.next().await,
                    None => std::future::pending().await,
                }
            };
            let ended = end.is_some();
            tokio::select! {
                line = line => match line {
                    Some(line) => log(&line),
                    None => lines = None,
                },
                () = cache.changed(), if !ended => match cache.get(&self.namespace, name).as_deref().map(state_of) {
                    Some(State::Ended(it)) => end = Some(it),
                    None => return Err(RunFailure::CannotRun("it was deleted by somebody else".into())),
                    Some(_) => {}
                },
                () = tokio::time::sleep(LOG_DRAIN), if ended => lines = None,
            }
            if lines.is_none()
                && let Some(end) = end.take()
            {
                return end;
            }
        }
    }
}

impl Runner for PodRunner {
    fn run(&self, step: &RunStep, log: &mut dyn FnMut(&str)) -> Result<(), RunFailure> {
        tokio::runtime::Handle::current().block_on(self.run_pod(step, log))
    }
}

/// Removes the pods of steps that nobody waits for: those of a daemon that was killed.
pub async fn remove_leftovers(client: &Client, namespace: &str) -> Result<usize, naru_client::Error> {
    let pods = client.list(&kinds::POD, Some(namespace), LABEL_STEP).await?;
    for pod in &pods {
        client.delete(&kinds::POD, namespace, naru_objects::name_of(pod), Some(0)).await?;
    }
    Ok(pods.len())
}

enum State {
    Waiting,
    Stuck(String),
    Running,
    Ended(Result<(), RunFailure>),
}

/// Reasons after which waiting longer would not help a step.
const STUCK: &[&str] = &[
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerError",
    "CreateContainerConfigError",
    "RunContainerError",
    "Unsupported",
];

fn state_of(pod: &Value) -> State {
    let container = &pod["status"]["containerStatuses"][0]["state"];
    let text = |it: &Value| it.as_str().unwrap_or_default().to_owned();
    match pod["status"]["phase"].as_str().unwrap_or_default() {
        "Succeeded" => State::Ended(Ok(())),
        "Failed" => {
            let terminated = &container["terminated"];
            let reason = match text(&terminated["reason"]).as_str() {
                "OOMKilled" => "out of memory".to_owned(),
                "" | "Error" => text(&pod["status"]["reason"]),
                other => other.to_owned(),
            };
            let message = text(&terminated["message"]);
            let message = if message.is_empty() { text(&pod["status"]["message"]) } else { message };
            let reason =
                [reason, message].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(": ");
            let exit_code = terminated["exitCode"].as_i64().unwrap_or(-1);
            State::Ended(Err(RunFailure::Failed { exit_code, reason }))
        }
        "Running" => State::Running,
        _ => {
            let waiting = &container["waiting"];
            let reason = text(&waiting["reason"]);
            if STUCK.contains(&reason.as_str()) {
                return State::Stuck(format!("{reason}: {}", text(&waiting["message"])));
            }
            State::Waiting
        }
    }
}

/// Lines of a log, as text, cut at the limit.
fn lines<R: futures::AsyncBufRead + Unpin + Send + 'static>(reader: R) -> BoxStream<'static, String> {
    futures::stream::unfold(reader, |mut reader| async move {
        let mut line = Vec::new();
        loop {
            let (used, is_end) = match reader.fill_buf().await {
                Ok([]) | Err(_) if line.is_empty() => return None,
                Ok([]) | Err(_) => (0, true),
                Ok(buffer) => {
                    let end = buffer.iter().position(|it| *it == b'\n');
                    let part = &buffer[..end.unwrap_or(buffer.len())];
                    let room = LOG_LINE_BYTES_MAX.saturating_sub(line.len());
                    line.extend_from_slice(&part[..part.len().min(room)]);
                    (part.len() + usize::from(end.is_some()), end.is_some())
                }
            };
            reader.consume_unpin(used);
            if is_end {
                let text = String::from_utf8_lossy(&line);
                return Some((text.trim_end_matches('\r').to_owned(), reader));
            }
        }
    })
    .boxed()
}

/// The cluster replaces `$(NAME)` and `$$` in a pod's command and environment; a build means them for the
/// shell.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        out.push(c);
        if c == '$' && matches!(chars.peek(), Some('$' | '(')) {
            out.push('$');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_shell_should_see_passes_through_the_cluster() {
        for (text, want) in [("$A $(x)", "$A $$(x)"), ("$$", "$$$"), ("$$(A)", "$$$$(A)"), ("a$", "a$")] {
            assert_eq!(escape(text), want, "{text}");
        }
    }

    #[test]
    fn a_pod_that_failed_says_why() {
        let failed = |terminated: Value| {
            let pod = json!({"status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": terminated}}]}});
            match state_of(&pod) {
                State::Ended(Err(it)) => it.to_string(),
                _ => panic!("not a failure"),
            }
        };
        assert_eq!(failed(json!({"exitCode": 101, "reason": "Error"})), "exit code 101");
        assert_eq!(failed(json!({"exitCode": 137, "reason": "OOMKilled"})), "exit code 137 (out of memory)");
    }

    #[tokio::test]
    async fn a_log_without_line_ends_is_cut() {
        let endless = vec![b'x'; 3 * LOG_LINE_BYTES_MAX];
        let text = [&b"one\r\n\ntwo\n"[..], &endless].concat();
        let found: Vec<String> = lines(futures::io::Cursor::new(text)).collect().await;
        assert_eq!(found.len(), 4);
        assert_eq!((found[0].as_str(), found[1].as_str(), found[2].as_str()), ("one", "", "two"));
        assert_eq!(found[3].len(), LOG_LINE_BYTES_MAX);
    }
}
