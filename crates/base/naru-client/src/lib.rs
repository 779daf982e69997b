//! The one Kubernetes client that every stage holds: objects as JSON values, and [`Cache`], a copy of a
//! kind that a watch keeps true. Stages see nothing else of the cluster, so whether it is the embedded
//! API (in-process, no socket) or a real one (another address) they cannot tell.
//!
//! It is not typed and it is not a framework: a controller is a loop over [`Cache::changed`].
//!
//! ```no_run
//! # async fn example(client: naru_client::Client) -> Result<(), naru_client::Error> {
//! use naru_objects::kinds;
//! let pods = client.cache(&kinds::POD, None, "naru.dev/app=shop");
//! pods.synced().await;
//! for pod in pods.list() {
//!     println!("{}", pod["metadata"]["name"]);
//! }
//! # Ok(()) }
//! ```

mod cache;

pub use cache::{Cache, Change};

use futures::{AsyncBufRead, AsyncBufReadExt, StreamExt};
use http::{Method, Request};
use naru_objects::{Kind, kinds, percent_encode};
use serde_json::{Value, json};

/// Why a request failed, with the object that it concerned.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {path}: {message}")]
pub struct Error {
    verb: &'static str,
    path: String,
    /// The HTTP status, 0 when no answer came.
    pub code: u16,
    /// The API's reason, such as `NotFound` or `AlreadyExists`.
    pub reason: String,
    pub message: String,
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }
    pub fn is_conflict(&self) -> bool {
        self.code == 409 && self.reason != "AlreadyExists"
    }
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }
    /// The watch's start lies before what the API remembers; list again.
    pub fn is_expired(&self) -> bool {
        self.code == 410
    }

    fn new(verb: &'static str, path: &str, source: kube::Error) -> Self {
        let path = path.split('?').next().unwrap_or(path).to_owned();
        match source {
            kube::Error::Api(status) => Self {
                verb,
                path,
                code: status.code,
                reason: status.reason.clone(),
                message: status.message.clone(),
            },
            other => Self { verb, path, code: 0, reason: String::new(), message: chain(&other) },
        }
    }
}

/// An error and its causes on one line, each cause once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(it) = source {
        let more = it.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = it.source();
    }
    text
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What [`Client::logs`] should return.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Stay until the container has ended.
    pub follow: bool,
    /// The container before the last restart.
    pub previous: bool,
    pub timestamps: bool,
    pub tail_lines: Option<u64>,
}

/// A Kubernetes client; cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: kube::Client,
}

impl Client {
    pub fn new(inner: kube::Client) -> Self {
        Self { inner }
    }

    /// A client from a kubeconfig file's text, for the context that it names as current.
    pub async fn from_kubeconfig(text: &str) -> Result<Self> {
        let load = async {
            let config = kube::config::Kubeconfig::from_yaml(text)?;
            let mut config =
                kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default())
                    .await?;
            // Watches and logs may be silent for long; the server ends watches by itself.
            config.read_timeout = None;
            Ok(config)
        };
        let config = load.await.map_err(|it: kube::config::KubeconfigError| Error {
            verb: "read",
            path: "the kubeconfig".into(),
            code: 0,
            reason: String::new(),
            message: chain(&it),
        })?;
        let inner = kube::Client::try_from(config).map_err(|it| Error::new("use", "the kubeconfig", it))?;
        Ok(Self { inner })
    }

    /// The client underneath, for the streams (exec, attach) that this crate does not wrap.
    pub fn kube(&self) -> kube::Client {
        self.inner.clone()
    }

    async fn send(
        &self,
        verb: &'static str,
        method: Method,
        path: String,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Value> {
        let request = Request::builder()
            .method(method)
            .uri(&path)
            .header("content-type", content_type)
            .header("accept", "application/json")
            .body(body)
            .expect("paths are made of names that the API accepted");
        self.inner.request::<Value>(request).await.map_err(|it| Error::new(verb, &path, it))
    }

    /// The object, or `None` if there is none of that name.
    pub async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Value>> {
        let path = kind.path(Some(namespace), Some(name));
        match self.send("get", Method::GET, path, "application/json", Vec::new()).await {
            Ok(it) => Ok(Some(it)),
            Err(it) if it.is_not_found() => Ok(None),
            Err(it) => Err(it),
        }
    }

    /// All objects of a kind, in one namespace or in all, that match a label selector (empty: all).
    pub async fn list(&self, kind: &Kind, namespace: Option<&str>, selector: &str) -> Result<Vec<Value>> {
        Ok(self.list_with_version(kind, namespace, &by_labels(selector)).await?.0)
    }

    async fn list_with_version(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        query: &str,
    ) -> Result<(Vec<Value>, String)> {
        let path = format!("{}?{query}", kind.path(namespace, None));
        let mut answer = self.send("list", Method::GET, path, "application/json", Vec::new()).await?;
        let version = answer["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let mut items = match answer["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        };
        // A list leaves out what it says once for all; a stage wants whole objects.
        for item in &mut items {
            item["apiVersion"] = json!(kind.api_version());
            item["kind"] = json!(kind.kind);
        }
        Ok((items, version))
    }

    pub async fn create(&self, kind: &Kind, object: &Value) -> Result<Value> {
        let path = kind.path(object["metadata"]["namespace"].as_str().or(Some("default")), None);
        self.send("create", Method::POST, path, "application/json", bytes_of(object)).await
    }

    /// Server-side apply as field manager `manager`, taking over fields that others own: what a release
    /// says, holds.
    pub async fn apply(&self, kind: &Kind, object: &Value, manager: &str) -> Result<Value> {
        let path = format!(
            "{}?fieldManager={}&force=true",
            kind.path(
                object["metadata"]["namespace"].as_str().or(Some("default")),
                object["metadata"]["name"].as_str()
            ),
            percent_encode(manager)
        );
        self.send("apply", Method::PATCH, path, "application/apply-patch+yaml", bytes_of(object)).await
    }

    /// JSON merge patch (RFC 7386).
    pub async fn patch_merge(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value> {
        let path = kind.path(Some(namespace), Some(name));
        self.send("patch", Method::PATCH, path, "application/merge-patch+json", bytes_of(patch)).await
    }

    /// JSON merge patch of the `status` subresource: `patch` is the status alone.
    pub async fn patch_status(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        status: &Value,
    ) -> Result<Value> {
        self.send_status(kind, namespace, name, status, "application/merge-patch+json").await
    }

    /// Strategic merge patch of the `status` subresource: lists of named things, such as conditions, are merged.
    pub async fn merge_status(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        status: &Value,
    ) -> Result<Value> {
        self.send_status(kind, namespace, name, status, "application/strategic-merge-patch+json").await
    }

    async fn send_status(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        status: &Value,
        content_type: &str,
    ) -> Result<Value> {
        let path = format!("{}/status", kind.path(Some(namespace), Some(name)));
        let body = bytes_of(&json!({"status": status}));
        self.send("patch the status of", Method::PATCH, path, content_type, body).await
    }

    /// Replaces the object; fails with a conflict if it has changed since its `resourceVersion`.
    pub async fn replace(&self, kind: &Kind, object: &Value) -> Result<Value> {
        let path = kind.path(object["metadata"]["namespace"].as_str(), object["metadata"]["name"].as_str());
        self.send("replace", Method::PUT, path, "application/json", bytes_of(object)).await
    }

    /// Replaces the status; fails with a conflict if the object has changed since its `resourceVersion`.
    pub async fn replace_status(&self, kind: &Kind, object: &Value) -> Result<Value> {
        let path = kind.path(object["metadata"]["namespace"].as_str(), object["metadata"]["name"].as_str());
        let path = format!("{path}/status");
        self.send("replace the status of", Method::PUT, path, "application/json", bytes_of(object)).await
    }

    /// Deletes the object (dependents follow in the background). One that is gone already is fine.
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        grace_seconds: Option<i64>,
    ) -> Result<()> {
        let mut options =
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        if let Some(grace) = grace_seconds {
            options["gracePeriodSeconds"] = json!(grace);
        }
        let path = kind.path(Some(namespace), Some(name));
        match self.send("delete", Method::DELETE, path, "application/json", bytes_of(&options)).await {
            Ok(_) => Ok(()),
            Err(it) if it.is_not_found() => Ok(()),
            Err(it) => Err(it),
        }
    }

    /// Scales a workload through its `scale` subresource.
    pub async fn scale(&self, kind: &Kind, namespace: &str, name: &str, replicas: u32) -> Result<()> {
        let path = format!("{}/scale", kind.path(Some(namespace), Some(name)));
        let body = bytes_of(&json!({"spec": {"replicas": replicas}}));
        self.send("scale", Method::PATCH, path, "application/merge-patch+json", body).await.map(|_| ())
    }

    /// A container's log, as lines of bytes. An empty `container` means the pod's only one.
    pub async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: &LogOptions,
    ) -> Result<impl AsyncBufRead + Unpin + Send + use<>> {
        let mut path = format!(
            "{}/log?follow={}&previous={}&timestamps={}",
            kinds::POD.path(Some(namespace), Some(pod)),
            options.follow,
            options.previous,
            options.timestamps
        );
        if !container.is_empty() {
            path.push_str(&format!("&container={}", percent_encode(container)));
        }
        if let Some(lines) = options.tail_lines {
            path.push_str(&format!("&tailLines={lines}"));
        }
        let request = Request::get(&path).body(Vec::new()).expect("the path is made of names");
        let reader = self.inner.request_stream(request).await.map_err(|it| Error::new("read", &path, it))?;
        Ok(Box::pin(reader))
    }

    /// Records an event about an object (`kubectl describe` shows it). An event is worth no failure, so an
    /// error is logged and forgotten.
    /// Returns the event's name.
    pub async fn event(&self, about: &Value, kind: EventKind, reason: &str, message: &str) -> Option<String> {
        let now = naru_objects::timestamp(jiff::Timestamp::now());
        let namespace = about["metadata"]["namespace"].as_str().unwrap_or("default");
        let object = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": format!("{}.", naru_objects::name_of(about)), "namespace": namespace},
            "involvedObject": {
                "apiVersion": about["apiVersion"], "kind": about["kind"], "namespace": namespace,
                "name": about["metadata"]["name"], "uid": about["metadata"]["uid"]},
            "type": match kind { EventKind::Normal => "Normal", EventKind::Warning => "Warning" },
            "reason": reason, "message": message, "count": 1,
            "firstTimestamp": seconds(&now), "lastTimestamp": seconds(&now),
            "source": {"component": "naru"},
        });
        match self.create(&kinds::EVENT, &object).await {
            Ok(made) => Some(naru_objects::name_of(&made).to_owned()),
            Err(error) => {
                tracing::debug!(%error, "event not recorded");
                None
            }
        }
    }

    /// The event happened again, for the `count`-th time; false when it is not there any more.
    pub async fn event_again(&self, namespace: &str, name: &str, count: u32) -> bool {
        let now = naru_objects::timestamp(jiff::Timestamp::now());
        let patch = json!({"count": count, "lastTimestamp": seconds(&now)});
        self.patch_merge(&kinds::EVENT, namespace, name, &patch).await.is_ok()
    }

    /// A copy of a kind that a background watch keeps true for as long as the cache lives.
    pub fn cache(&self, kind: &Kind, namespace: Option<&str>, selector: &str) -> Cache {
        Cache::start(self.clone(), *kind, namespace.map(str::to_owned), by_labels(selector))
    }

    /// A copy of those objects of a kind that a field selector chooses, such as `type=kubernetes.io/tls`.
    pub fn cache_where(&self, kind: &Kind, namespace: Option<&str>, fields: &str) -> Cache {
        let query = format!("fieldSelector={}", percent_encode(fields));
        Cache::start(self.clone(), *kind, namespace.map(str::to_owned), query)
    }

    /// A copy of one object by its name, for as long as the cache lives.
    pub fn cache_named(&self, kind: &Kind, namespace: &str, name: &str) -> Cache {
        let query = format!("fieldSelector=metadata.name%3D{}", percent_encode(name));
        Cache::start(self.clone(), *kind, Some(namespace.to_owned()), query)
    }

    /// Creates something below an object: a token of a service account, an eviction of a pod.
    pub async fn create_below(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        body: &Value,
    ) -> Result<Value> {
        let path = format!("{}/{subresource}", kind.path(Some(namespace), Some(name)));
        self.send("create", Method::POST, path, "application/json", bytes_of(body)).await
    }

    /// Strategic merge patch of something below an object, such as the resources of a pod (`resize`).
    pub async fn patch_below(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        subresource: &str,
        patch: &Value,
    ) -> Result<Value> {
        let path = format!("{}/{subresource}", kind.path(Some(namespace), Some(name)));
        let content_type = "application/strategic-merge-patch+json";
        self.send("patch", Method::PATCH, path, content_type, bytes_of(patch)).await
    }

    /// One watch from a resource version on; ends when the server ends it.
    async fn watch(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        query: &str,
        version: &str,
    ) -> Result<impl futures::Stream<Item = Result<WatchEvent>> + Send + use<>> {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&resourceVersion={version}&{query}",
            kind.path(namespace, None),
        );
        let request = Request::get(&path)
            .header("accept", "application/json")
            .header("accept-encoding", "identity")
            .body(Vec::new())
            .expect("the path is made of names");
        let reader = self.inner.request_stream(request).await.map_err(|it| Error::new("watch", &path, it))?;
        let broken = {
            let path = path.clone();
            move |message: String| Error {
                verb: "watch",
                path: path.split('?').next().unwrap_or_default().to_owned(),
                code: 0,
                reason: String::new(),
                message,
            }
        };
        Ok(Box::pin(reader).lines().map(move |line| {
            let line = line.map_err(|it| broken(it.to_string()))?;
            let mut event: Value = serde_json::from_str(&line).map_err(|it| broken(it.to_string()))?;
            let object = event["object"].take();
            match event["type"].as_str() {
                Some("ADDED" | "MODIFIED") => Ok(WatchEvent::Applied(object)),
                Some("DELETED") => Ok(WatchEvent::Deleted(object)),
                Some("BOOKMARK") => Ok(WatchEvent::Bookmark(object)),
                _ => Err(Error {
                    verb: "watch",
                    path: String::new(),
                    code: object["code"].as_u64().unwrap_or(0) as u16,
                    reason: object["reason"].as_str().unwrap_or_default().to_owned(),
                    message: object["message"].as_str().unwrap_or("unknown event").to_owned(),
                }),
            }
        }))
    }
}

/// Whether an event tells of the usual course or of something to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Normal,
    Warning,
}

enum WatchEvent {
    Applied(Value),
    Deleted(Value),
    Bookmark(Value),
}

fn by_labels(selector: &str) -> String {
    format!("labelSelector={}", percent_encode(selector))
}

fn bytes_of(object: &Value) -> Vec<u8> {
    serde_json::to_vec(object).expect("a JSON value always serialises")
}

/// `2026-11-22T01:02:03.000000Z` without its fraction: `Time` fields know whole seconds only.
fn seconds(timestamp: &str) -> String {
    format!("{}Z", timestamp.split('.').next().unwrap_or(timestamp).trim_end_matches('Z'))
}
