//! What all handlers share, and how a container is found by what people type.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use naru_builder::BuildLogs;
use naru_client::{Cache, Client};
use naru_image::ImageStore;
use naru_objects::{Kind, kinds};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::container::{Container, LABEL_ID};
use crate::error::{Error, Result};
use crate::events::Events;
use crate::exec::Execs;
use crate::node::ContainerNode;

/// What of the cluster changes within this time is seen by a request that waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const NETWORK_POLICY: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    namespaced: true,
};

#[derive(Debug, Clone)]
pub struct Config {
    /// Where the pods are.
    pub namespace: String,
    pub node_name: String,
    /// What `docker info` calls the data.
    pub data_dir: PathBuf,
    /// The cluster's name server; without it containers do not find each other by name.
    pub name_server: Option<IpAddr>,
    /// The machine as pods see it.
    pub gateway: Ipv4Addr,
    /// The pods' addresses, `10.88.0.0/16`.
    pub subnet: String,
    pub version: String,
    /// Where `Image` objects are built.
    pub builds_namespace: String,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot make the namespace of Docker's containers")]
    Namespace(#[source] naru_client::Error),
    #[error("cannot make the networks that Docker always has")]
    Networks(#[source] naru_client::Error),
}

/// The API; cheap to clone.
#[derive(Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

/// Nobody outside can name it.
pub struct Inner {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) images: ImageStore,
    pub(crate) builds: BuildLogs,
    pub(crate) buildkit: crate::buildkit::Builds,
    pub(crate) node: Arc<dyn ContainerNode>,
    pub(crate) pods: Cache,
    pub(crate) claims: Cache,
    pub(crate) volumes: Cache,
    pub(crate) policies: Cache,
    pub(crate) events: Events,
    pub(crate) execs: Execs,
    /// One after the other: names, and the turns of one container.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    pub(crate) creating: tokio::sync::Mutex<()>,
    /// Terminals of running containers, for `resize`.
    pub(crate) terminals: Mutex<HashMap<String, tokio::sync::mpsc::Sender<(u16, u16)>>>,
    pub(crate) checks: crate::health::Checks,
}

impl std::ops::Deref for Engine {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Engine {
    /// Makes the namespace and begins to follow what is in it.
    pub async fn start(
        config: Config,
        client: Client,
        images: ImageStore,
        builds: BuildLogs,
        node: Arc<dyn ContainerNode>,
    ) -> Result<Self, StartError> {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": config.namespace}});
        client.apply(&kinds::NAMESPACE, &namespace, "naru").await.map_err(StartError::Namespace)?;
        let place = Some(config.namespace.as_str());
        let engine = Self(Arc::new(Inner {
            pods: client.cache(&kinds::POD, place, LABEL_ID),
            claims: client.cache(&kinds::PERSISTENT_VOLUME_CLAIM, place, ""),
            volumes: client.cache(&kinds::PERSISTENT_VOLUME, None, ""),
            policies: client.cache(&NETWORK_POLICY, place, ""),
            events: Events::default(),
            execs: Execs::default(),
            turns: Mutex::default(),
            creating: tokio::sync::Mutex::default(),
            terminals: Mutex::default(),
            checks: crate::health::Checks::default(),
            config,
            client,
            images,
            builds,
            buildkit: crate::buildkit::Builds::default(),
            node,
        }));
        for cache in [&engine.pods, &engine.claims, &engine.volumes, &engine.policies] {
            cache.synced().await;
        }
        engine.ensure_networks().await.map_err(StartError::Networks)?;
        Ok(engine)
    }

    /// Follows the containers until `shutdown`: events, health, those that remove themselves.
    pub(crate) fn follow(&self, shutdown: CancellationToken) -> tokio::task::JoinHandle<()> {
        let engine = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = crate::lives::follow(engine) => {}
                () = shutdown.cancelled() => {}
            }
        })
    }

    pub fn containers(&self) -> Vec<Container> {
        self.pods.list().iter().filter_map(Container::of).collect()
    }

    /// By its whole id, its name, or as much of its id as is unique.
    pub fn container(&self, wanted: &str) -> Result<Container> {
        let name = wanted.strip_prefix('/').unwrap_or(wanted);
        let all = self.containers();
        if let Some(found) = all.iter().find(|it| it.id() == name || it.name == name) {
            return Ok(found.clone());
        }
        let is_id = !name.is_empty() && name.bytes().all(|it| it.is_ascii_hexdigit());
        let mut matching = all.into_iter().filter(|it| is_id && it.id().starts_with(name));
        match (matching.next(), matching.next()) {
            (Some(found), None) => Ok(found),
            (Some(_), Some(_)) => Err(Error::bad(format!("Multiple IDs found with provided prefix: {name}"))),
            _ => Err(Error::no_container(wanted)),
        }
    }

    /// Only one at a time changes a container.
    pub async fn turn(&self, id: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for are made again when somebody comes.
            turns.retain(|_, it| Arc::strong_count(it) > 1);
            turns.entry(id.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }

    /// Waits until `done` says something about the container; it is `None` once the container is gone.
    pub async fn wait_for<T>(&self, id: &str, mut done: impl FnMut(Option<&Container>) -> Option<T>) -> T {
        let mut changes = self.pods.changes();
        // Looked for once; from then on by the name of its pod, which stays.
        let mut pod =
            self.containers().into_iter().find(|it| it.id() == id).map(|it| it.pod_name().to_owned());
        loop {
            let found = match &pod {
                Some(pod) => self.pods.get(&self.config.namespace, pod).as_ref().and_then(Container::of),
                None => self.containers().into_iter().find(|it| it.id() == id),
            };
            pod = pod.or_else(|| found.as_ref().map(|it| it.pod_name().to_owned()));
            if let Some(it) = done(found.as_ref()) {
                return it;
            }
            changes.wait().await;
        }
    }

    /// Writes annotations (`null` removes one) and waits until our own copy has them.
    pub async fn annotate(&self, container: &Container, annotations: Value) -> Result<()> {
        self.patch(container, json!({"metadata": {"annotations": annotations}})).await
    }

    pub async fn patch(&self, container: &Container, patch: Value) -> Result<()> {
        let (namespace, name) = (container.namespace(), container.pod_name());
        let written = self.client.patch_merge(&kinds::POD, namespace, name, &patch).await?;
        self.caught_up(&self.pods, &written).await;
        Ok(())
    }

    /// Waits until a copy has an object as it was written, or newer.
    pub async fn caught_up(&self, cache: &Cache, written: &Value) {
        let version = |it: &Value| {
            it["metadata"]["resourceVersion"].as_str().and_then(|it| it.parse::<u64>().ok()).unwrap_or(0)
        };
        let wanted = version(written);
        let (namespace, name) =
            (written["metadata"]["namespace"].as_str().unwrap_or(""), naru_objects::name_of(written));
        let mut changes = cache.changes();
        let caught_up = async {
            while cache.get(namespace, name).is_none_or(|it| version(&it) < wanted) {
                changes.wait().await;
            }
        };
        // It may have been deleted meanwhile; then there is nothing to wait for.
        let _ = tokio::time::timeout(Duration::from_secs(2), caught_up).await;
    }
}
