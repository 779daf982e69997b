//! Starts a container beside a job, in the job's own pod (an ephemeral container), and tells what it says.

use super::pod::{WAIT_TOKEN, WORKSPACE_VOLUME};
use crate::job::beside::{Request, Said};
use crate::launch::Launch;
use futures::{AsyncBufReadExt, StreamExt};
use naru_client::{Client, LogOptions};
use naru_objects::{Egress, RepositorySettings, kinds, labels};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::mpsc::Sender;

/// An image may have to be fetched first.
const STARTS_WITHIN: Duration = Duration::from_secs(300);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What an image starts by itself.
#[derive(Default)]
pub struct Image {
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
}

/// Everything that a container beside a job needs.
pub struct Beside {
    pub client: Client,
    pub namespace: String,
    pub launch: Launch,
}

impl Beside {
    /// Runs the container to its end. Whoever asked may go away; the container looks by itself whether it is to
    /// end.
    pub async fn run(&self, pod: &str, request: &Request, image: &Image, said: &Sender<Said>) {
        let last = match self.follow(pod, request, image, said).await {
            Ok(code) => Said::Exit(code),
            Err(error) => Said::Error(error),
        };
        let _ = said.send(last).await;
    }

    /// Why the steps in this pod may not build and push images; `None` if they may.
    pub async fn may_not_push(&self, pod: &str) -> Result<Option<&'static str>, String> {
        let object = self.pod(pod).await?;
        let run = naru_objects::label_of(&object, labels::RUN);
        let run = self.client.get(&kinds::RUN, &self.namespace, run).await;
        let run = run.map_err(|it| naru_client::chain(&it))?;
        if run.is_none_or(|it| it["spec"]["untrusted"] == true) {
            return Ok(Some("a change from outside builds no images with the daemon"));
        }
        self.may_not_build(pod).await
    }

    /// Why nothing is built for the job in this pod: what a repository's jobs may not reach, the daemon must not
    /// reach for them.
    pub async fn may_not_build(&self, pod: &str) -> Result<Option<&'static str>, String> {
        let object = self.pod(pod).await?;
        let repository = naru_objects::label_of(&object, labels::APP);
        let settings = self.client.get(&kinds::REPOSITORY_SETTINGS, &self.namespace, repository).await;
        let is_free = match settings.map_err(|it| naru_client::chain(&it))? {
            None => true,
            Some(it) => {
                serde_json::from_value::<RepositorySettings>(it).is_ok_and(|it| it.spec.egress == Egress::All)
            }
        };
        Ok((!is_free).then_some(
            "this repository's jobs may not reach everything (its RepositorySettings), so they build no images with \
             the daemon, which would fetch and push for them",
        ))
    }

    async fn follow(
        &self,
        pod: &str,
        request: &Request,
        image: &Image,
        said: &Sender<Said>,
    ) -> Result<i32, String> {
        let object = self.pod(pod).await?;
        let count = object["spec"]["ephemeralContainers"].as_array().map_or(0, Vec::len);
        let name = format!("action-{}", count + 1);
        let patch = json!({"spec": {"ephemeralContainers": [self.container(&name, request, image)]}});
        self.client
            .patch_below(&kinds::POD, &self.namespace, pod, "ephemeralcontainers", &patch)
            .await
            .map_err(|it| naru_client::chain(&it))?;
        self.started(pod, &name).await?;
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let log = self.client.logs(&self.namespace, pod, &name, &options).await;
        let mut lines = log.map_err(|it| naru_client::chain(&it))?.lines();
        while let Some(Ok(line)) = lines.next().await {
            if said.send(Said::Line(line)).await.is_err() {
                break;
            }
        }
        loop {
            let state = self.state(pod, &name).await?;
            if let Some(code) = state["terminated"]["exitCode"].as_i64() {
                return Ok(i32::try_from(code).unwrap_or(1));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn container(&self, name: &str, request: &Request, image: &Image) -> Value {
        let mut command = self.launch.command.clone();
        command.extend(["__inside".to_owned(), request.start.display().to_string()]);
        command.push(serde_json::to_string(&image.entrypoint).expect("texts always serialise"));
        command.push(serde_json::to_string(&image.command).expect("texts always serialise"));
        let mut mounts = vec![
            json!({"name": WORKSPACE_VOLUME, "mountPath": "/workspace"}),
            json!({"name": WORKSPACE_VOLUME, "mountPath": "/github"}),
        ];
        for (number, (_, inside)) in self.launch.mounts.iter().enumerate() {
            mounts.push(json!({"name": format!("runner-{number}"), "mountPath": inside, "readOnly": true}));
        }
        json!({
            "name": name, "image": request.image, "imagePullPolicy": "IfNotPresent", "command": command,
            "env": [{"name": WAIT_TOKEN, "value": ""}], "volumeMounts": mounts,
            // Docker actions are made to run as root, which owns the workspace.
            "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": false},
        })
    }

    async fn pod(&self, name: &str) -> Result<Value, String> {
        let found = self.client.get(&kinds::POD, &self.namespace, name).await;
        found.map_err(|it| naru_client::chain(&it))?.ok_or_else(|| format!("there is no pod {name}"))
    }

    async fn state(&self, pod: &str, name: &str) -> Result<Value, String> {
        let object = self.pod(pod).await?;
        let statuses = object["status"]["ephemeralContainerStatuses"].as_array();
        let status = statuses.and_then(|all| all.iter().find(|it| it["name"] == name));
        Ok(status.map(|it| it["state"].clone()).unwrap_or_default())
    }

    async fn started(&self, pod: &str, name: &str) -> Result<(), String> {
        let began = tokio::time::Instant::now();
        let mut why = String::new();
        while began.elapsed() < STARTS_WITHIN {
            let state = self.state(pod, name).await?;
            if state["running"].is_object() || state["terminated"].is_object() {
                return Ok(());
            }
            let waiting = &state["waiting"];
            if let Some(said) = waiting["message"].as_str() {
                said.clone_into(&mut why);
            }
            if matches!(
                waiting["reason"].as_str(),
                Some("InvalidImageName" | "Unsupported" | "CreateContainerConfigError")
            ) {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(if why.is_empty() { "the container did not start".into() } else { why })
    }
}
