//! Pods that are started before there is a job for them, so that a job begins with its first step and not with
//! the start of a container.

use super::pod::{self, JobPod};
use super::{Shared, already_there_is_fine};
use naru_objects::{kinds, labels};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// Names of pods that were started ahead begin so.
const PREFIX: &str = "warm-";

/// A pod that was taken is replaced once its job is under way: the job's own start goes first.
const REPLACE_AFTER: Duration = Duration::from_secs(1);

/// Steps that run always get so long in a pod that was started ahead.
pub const CANCEL_MINUTES: u64 = 5;

/// Whether a pod was started before there was a job for it.
pub fn is_warm(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// What a pod was started for. One of an earlier version of our program, or of an image that is no longer
/// wanted, has another mark.
fn mark(shared: &Shared, image: &str) -> String {
    let launch = &shared.config.launch;
    let mut hash = Sha256::new();
    hash.update(image);
    for (path, _) in &launch.mounts {
        hash.update(path.as_os_str().as_encoded_bytes());
        if let Ok(facts) = std::fs::metadata(path) {
            hash.update(facts.len().to_le_bytes());
            let changed = facts.modified().ok().and_then(|it| it.duration_since(std::time::UNIX_EPOCH).ok());
            hash.update(changed.unwrap_or_default().as_nanos().to_le_bytes());
        }
    }
    hash.finalize().iter().take(8).map(|it| format!("{it:02x}")).collect()
}

/// Keeps pods ready for as long as the task lives.
pub async fn keep(shared: Arc<Shared>) {
    let mut pods = shared.warm.clone();
    loop {
        if let Err(error) = look(&shared).await {
            tracing::debug!(%error, "the pods that wait for jobs");
        }
        tokio::select! {
            () = pods.changed() => tokio::time::sleep(REPLACE_AFTER).await,
            () = shared.wanted.notified() => {}
        }
    }
}

async fn look(shared: &Shared) -> Result<(), naru_client::Error> {
    let config = &shared.config;
    let image = shared.last_image.lock().expect("nothing panics under this lock").clone();
    // Whatever is there from before may be the right thing.
    let Some(image) = image else { return Ok(()) };
    let mark = mark(shared, &image);
    let known = shared.warm.list();
    let (all, runs) = (&shared.pods, &known);
    let exists = |name: &str| {
        all.get(&config.namespace, name).is_some() || runs.iter().any(|it| naru_objects::name_of(it) == name)
    };
    shared.waiting.keep(exists);
    let mut ready = 0;
    for pod in known.iter() {
        let name = naru_objects::name_of(pod);
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let right = naru_objects::label_of(pod, labels::WARM) == mark;
        if pod["metadata"]["deletionTimestamp"].is_string()
            || !naru_objects::label_of(pod, labels::RUN).is_empty()
        {
            continue;
        }
        if ended || !right || ready >= config.warm_pods {
            // What is listed here may be a moment old: a job may have got the pod since.
            if shared.waiting.retire(name) {
                shared.client.delete(&kinds::POD, &config.namespace, name, None).await?;
            }
        } else {
            ready += 1;
        }
    }
    for _ in ready..config.warm_pods {
        let name = format!("{PREFIX}{}", &naru_objects::ChangeId::mint().as_str()[2..]);
        let (url, token) = (shared.url_of(&name), shared.token_of(&name));
        let object = pod::job_pod(&JobPod {
            metadata: json!({
                "name": name, "namespace": config.namespace,
                "labels": {labels::WARM: mark, labels::SLICE: "pipelines"}}),
            image: &image,
            container: None,
            services: &[],
            url: &url,
            token: &token,
            launch: &config.launch,
            server: config.pod_http.ip(),
            cancel_timeout_minutes: CANCEL_MINUTES,
            disk: pod::JOB_DISK,
        });
        let Ok(object) = object else { return Ok(()) };
        already_there_is_fine(shared.client.create(&kinds::POD, &object).await)?;
    }
    Ok(())
}

/// What the token of a pod that asks for its job is the keyed hash of.
pub fn token_of(pod: &str) -> String {
    format!("job of {pod}")
}

impl Shared {
    /// Where a pod asks for its job, and with what.
    pub fn url_of(&self, pod: &str) -> String {
        format!("http://{}:{}/_apis/jobs/{pod}", pod::SERVER_HOST, self.config.pod_http.port())
    }

    pub fn token_of(&self, pod: &str) -> String {
        (self.config.run_token)(&token_of(pod))
    }

    /// A pod for a job on this image that waits already.
    pub fn claim(&self, image: &str) -> Option<String> {
        *self.last_image.lock().expect("nothing panics under this lock") = Some(image.to_owned());
        self.wanted.notify_one();
        if self.config.warm_pods == 0 {
            return None;
        }
        let mark = mark(self, image);
        let fits = |name: &str| {
            let pod = self.warm.get(&self.config.namespace, name);
            pod.is_some_and(|it| {
                naru_objects::label_of(&it, labels::WARM) == mark
                    && it["status"]["phase"] == "Running"
                    && it["metadata"]["deletionTimestamp"].is_null()
            })
        };
        self.waiting.claim(fits)
    }

    /// Makes a pod that waited the job's own: it carries the job's labels and goes with its run.
    pub async fn adopt(&self, pod: &str, metadata: &Value) -> Result<(), naru_client::Error> {
        let mut labels = metadata["labels"].clone();
        labels[labels::WARM] = Value::Null;
        let patch = json!({"metadata": {"labels": labels, "ownerReferences": metadata["ownerReferences"]}});
        self.client.patch_merge(&kinds::POD, &self.config.namespace, pod, &patch).await.map(|_| ())
    }
}
