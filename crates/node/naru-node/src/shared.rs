//! What all workers of a node share.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use naru_client::{Cache, Client, EventKind};
use naru_net::Network;
use naru_runtime::{HelperProgram, Sandbox};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::Config;
use crate::eviction::{Bounds, Pressure};
use crate::image::ImageService;
use crate::machine::Machine;

/// Events that wait for the API; more are dropped, an event is worth no memory.
const EVENTS_MAX: usize = 512;
/// The same about the same pod within this time is one event that is counted, as everywhere.
const SAME_EVENT: Duration = Duration::from_secs(600);

pub(crate) struct Shared {
    pub config: Config,
    pub client: Client,
    pub images: Arc<dyn ImageService>,
    pub network: Network,
    pub program: HelperProgram,
    pub machine: Machine,
    pub host_ip: String,
    /// Empty until the first list has come.
    pub services: Cache,
    pub sources: Mutex<HashMap<(bool, String, String), Weak<Cache>>>,
    pub pressure: Mutex<Pressure>,
    /// What builds may use while they are held back.
    pub pipelines_limit: crate::guard::Limit,
    /// Pods that must go: uid and message; the agent reads it.
    pub evictions: mpsc::Sender<(String, String)>,
    pub evicted: Mutex<Option<mpsc::Receiver<(String, String)>>>,
    pub samples: crate::stats::Samples,
    /// Who waits for the start of a pod's container to be there from its first byte on, by the pod's uid.
    pub early: Mutex<HashMap<String, Vec<crate::inside::Early>>>,
    pods: RwLock<BTreeMap<String, PodView>>,
    events: mpsc::Sender<PodEvent>,
    inbox: Mutex<Option<mpsc::Receiver<PodEvent>>>,
}

pub(crate) struct PodEvent {
    about: Arc<Value>,
    kind: EventKind,
    reason: &'static str,
    message: String,
}

/// A pod as logs, exec and statistics see it.
#[derive(Debug, Clone)]
pub(crate) struct PodView {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub directory: PathBuf,
    pub sandbox: Option<Sandbox>,
    pub main_container: String,
    pub containers: Vec<ContainerView>,
    /// All attempts write to one log.
    pub one_log: bool,
    pub bounds: Bounds,
}

#[derive(Debug, Clone)]
pub(crate) struct ContainerView {
    pub name: String,
    pub attempt: u32,
    pub running: bool,
    /// Running, or about to.
    pub alive: bool,
    /// There may be output to read.
    pub began: bool,
}

impl PodView {
    pub fn container(&self, name: &str) -> Option<&ContainerView> {
        let name = if name.is_empty() { &self.main_container } else { name };
        self.containers.iter().find(|container| container.name == name)
    }
}

/// The address of a pod without a network.
pub const LOOPBACK: &str = "127.0.0.1";

impl Shared {
    pub fn new(
        config: Config,
        client: Client,
        images: Arc<dyn ImageService>,
        network: Network,
        program: HelperProgram,
        machine: Machine,
    ) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let (evictions, evicted) = mpsc::channel(8);
        let services = client.cache(&naru_objects::kinds::SERVICE, None, "");
        let host_ip = network.gateway().to_string();
        Self {
            config,
            client,
            images,
            network,
            program,
            machine,
            host_ip,
            services,
            sources: Mutex::default(),
            pressure: Mutex::default(),
            pipelines_limit: Default::default(),
            evictions,
            evicted: Mutex::new(Some(evicted)),
            samples: crate::stats::Samples::default(),
            early: Mutex::default(),
            pods: RwLock::default(),
            events,
            inbox: Mutex::new(Some(inbox)),
        }
    }

    pub fn pod_directory(&self, uid: &str) -> PathBuf {
        self.config.pods_directory().join(uid)
    }

    pub fn memory_directory(&self, uid: &str) -> PathBuf {
        self.config.memory_directory().join(uid)
    }

    pub fn release(&self, address: &str) {
        // A pod on the machine's own network, or on none, has no address of its own.
        if address == self.host_ip || address == LOOPBACK {
            return;
        }
        if let Ok(address) = address.parse() {
            self.network.release(address);
        }
    }

    pub fn show(&self, view: PodView) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(view.uid.clone(), view);
    }

    pub fn forget(&self, uid: &str) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    pub fn view(&self, uid: &str) -> Option<PodView> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// By name, and by uid when it is not empty: a name may be used again.
    pub fn find(&self, namespace: &str, name: &str, uid: &str) -> Option<PodView> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values()
            .find(|pod| pod.namespace == namespace && pod.name == name && (uid.is_empty() || pod.uid == uid))
            .cloned()
    }

    pub fn views(&self) -> Vec<PodView> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub async fn evict(&self, uid: &str, message: String) {
        let _ = self.evictions.send((uid.to_owned(), message)).await;
    }

    /// Queues an event about a pod.
    pub fn event(&self, about: Arc<Value>, kind: EventKind, reason: &'static str, message: String) {
        tracing::debug!(pod = about["metadata"]["name"].as_str(), reason, message, "event");
        let _ = self.events.try_send(PodEvent { about, kind, reason, message });
    }

    /// Sends queued events, in order; runs for as long as the node does.
    pub async fn send_events(self: Arc<Self>) {
        let inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut inbox) = inbox else { return };
        let mut told: HashMap<(String, &'static str, String), (String, u32, Instant)> = HashMap::new();
        while let Some(event) = inbox.recv().await {
            let uid = event.about["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            let key = (uid, event.reason, event.message.clone());
            if let Some((name, count, at)) = told.get_mut(&key)
                && at.elapsed() < SAME_EVENT
            {
                let namespace = event.about["metadata"]["namespace"].as_str().unwrap_or("default");
                (*count, *at) = (*count + 1, Instant::now());
                if self.client.event_again(namespace, name, *count).await {
                    continue;
                }
            }
            if told.len() >= EVENTS_MAX {
                told.retain(|_, (_, _, at)| at.elapsed() < SAME_EVENT);
                if told.len() >= EVENTS_MAX {
                    told.clear();
                }
            }
            if let Some(name) =
                self.client.event(&event.about, event.kind, event.reason, &event.message).await
            {
                told.insert(key, (name, 1, Instant::now()));
            }
        }
    }
}
