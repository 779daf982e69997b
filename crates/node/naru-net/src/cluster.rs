//! The network as the API declares it: services, network policies and names, kept true by watches.
//!
//! Whenever an object changes, the rules are computed anew and replaced as a whole, if they differ. What
//! was written last stays in the kernel when this process ends, so that traffic goes on.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use naru_client::{Cache, Client};
use naru_objects::{Kind, kinds};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Config, balancers, dns, firewall, policies, services};

/// Changes that come together are written together.
const SETTLE: Duration = Duration::from_millis(5);
/// After a failure of `nft`.
const RETRY: Duration = Duration::from_secs(1);
/// How often a port is tried that another program has.
const PORT_RETRY: Duration = Duration::from_secs(5);
/// Where pods ask for names; every cluster's is the tenth address of its services.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// What follows the API.
#[derive(Clone)]
pub(crate) struct Caches {
    pub services: Cache,
    pub slices: Cache,
    pub pods: Cache,
    pub namespaces: Cache,
    policies: Cache,
}

/// The addresses of pods whose policies for what they may reach are in force. Cheap to clone.
#[derive(Clone, Default)]
pub struct Held(Arc<RwLock<BTreeSet<String>>>);

impl Held {
    pub fn holds(&self, address: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(address)
    }

    fn set(&self, held: BTreeSet<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = held;
    }
}

/// Whether the kernel takes rules from us. Without them pods have no addresses of services, and names are
/// better asked where the machine asks.
pub async fn can_filter() -> bool {
    firewall::run("list tables\n").await.is_ok()
}

/// Keeps rules and names true until `shutdown`. `node` is this node's name in the API.
pub async fn start(
    client: Client,
    config: Config,
    node: String,
    held: Held,
    shutdown: CancellationToken,
) -> Vec<JoinHandle<()>> {
    let cache = |kind: &Kind| client.cache(kind, None, "");
    let caches = Caches {
        services: cache(&kinds::SERVICE),
        slices: cache(&kinds::ENDPOINT_SLICE),
        pods: cache(&kinds::POD),
        namespaces: cache(&kinds::NAMESPACE),
        policies: cache(&kinds::NETWORK_POLICY),
    };
    let gateway = config.subnet.gateway();
    let mut tasks = Vec::new();
    let mut dns_at = SocketAddrV4::new(gateway, 53);
    match dns::start(gateway, config.subnet, caches.clone(), shutdown.clone()).await {
        Ok((port, task)) => {
            tasks.push(task);
            dns_at.set_port(port);
            if let Err(error) = publish_dns(&client, gateway, port).await {
                tracing::warn!(%error, "the service of the cluster's names is not published");
            }
        }
        Err(error) => {
            tracing::warn!(%gateway, %error, "cannot answer for names: pods find services by address only");
        }
    }
    tasks.push(tokio::spawn(keep(client, caches, config, node, dns_at, held, shutdown)));
    tasks
}

/// The service that every cluster has for its names.
async fn publish_dns(client: &Client, gateway: Ipv4Addr, target: u16) -> Result<(), naru_client::Error> {
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"});
    let port =
        |name: &str, protocol: &str, port: u16| json!({"name": name, "port": port, "protocol": protocol});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {"clusterIP": DNS_ADDRESS, "ports": [port("dns", "UDP", 53), port("dns-tcp", "TCP", 53)]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4", "endpoints": [{"addresses": [gateway], "conditions": {"ready": true}}],
        "ports": [port("dns", "UDP", target), port("dns-tcp", "TCP", target)],
    });
    client.apply(&kinds::SERVICE, &service, "naru").await?;
    client.apply(&kinds::ENDPOINT_SLICE, &slice, "naru").await.map(drop)
}

async fn keep(
    client: Client,
    caches: Caches,
    config: Config,
    node: String,
    dns: SocketAddrV4,
    held: Held,
    shutdown: CancellationToken,
) {
    let all = [&caches.services, &caches.slices, &caches.pods, &caches.namespaces, &caches.policies];
    let mut changes: Vec<_> = all.iter().map(|it| it.changes()).collect();
    for cache in all {
        tokio::select! {
            () = cache.synced() => {}
            () = shutdown.cancelled() => return,
        }
    }
    let mut written = [String::new(), String::new()];
    let mut doors = balancers::Doors::default();
    loop {
        let pods: Vec<Arc<Value>> = caches.pods.list();
        let (services, slices) = (caches.services.list(), caches.slices.list());
        let (open, some_are_taken) = doors.settle(&balancers::claims(&services));
        let objects =
            services::Objects { services: &services, slices: &slices, pods: &pods, open: &open, node: &node };
        let (policies, namespaces) = (caches.policies.list(), caches.namespaces.list());
        let (policies, now_held) = policies::rules(
            &config,
            &policies::Objects { policies: &policies, pods: &pods, namespaces: &namespaces },
            dns,
        );
        let rules = [services::rules(&config, &objects), policies];
        let mut failed = false;
        for (written, rules) in written.iter_mut().zip(rules) {
            if *written == rules {
                continue;
            }
            match firewall::run(&rules).await {
                Ok(()) => *written = rules,
                Err(error) => {
                    tracing::warn!(error, "the rules of services and policies cannot be written");
                    failed = true;
                }
            }
        }
        if !failed {
            held.set(now_held);
            firewall::open_loopback(&config);
            let machine = balancers::machine_address();
            for service in &services {
                if let Some(status) = balancers::plan_status(service, &open, machine) {
                    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                    balancers::write_status(&client, service, status, now).await;
                }
            }
        }
        let wait = async {
            let any = changes.iter_mut().map(|it| Box::pin(it.wait()));
            futures::future::select_all(any).await;
        };
        tokio::select! {
            () = wait => {}
            () = tokio::time::sleep(RETRY), if failed => {}
            () = tokio::time::sleep(PORT_RETRY), if some_are_taken => {}
            () = shutdown.cancelled() => return,
        }
        tokio::time::sleep(SETTLE).await;
    }
}
