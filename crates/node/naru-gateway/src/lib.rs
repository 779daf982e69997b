//! The gateway: HTTP requests from outside find the pods that should answer them.
//!
//! What it does is said by standard objects, Gateways, HTTPRoutes, Services and EndpointSlices; it knows
//! nothing of releases. They are compiled into one immutable [`Table`] that is swapped whole, so a change
//! of weights closes no connection and no request sees half of it. A few threads of its own serve, each
//! with its own connections to the pods: nothing is locked or shared on a request's way.
//!
//! A request whose pod just died is sent to another one if that is safe, and one for a service whose pods
//! are all being replaced waits a moment before it is given up.
//!
//! ```no_run
//! # async fn example(client: naru_client::Client) -> std::io::Result<()> {
//! use naru_gateway::{Config, Gateway};
//! let listener = tokio::net::TcpListener::bind("0.0.0.0:80").await?;
//! let shutdown = tokio_util::sync::CancellationToken::new();
//! let gateway = Gateway::start(Config::default(), listener, None, client, shutdown);
//! print!("{}", gateway.metrics_text());
//! # Ok(()) }
//! ```

mod certificates;
mod connection;
mod control;
mod filters;
mod hosts;
mod ingress;
mod message;
mod metrics;
mod pool;
mod proxy;
mod rules;
mod status;
mod table;
mod tls;

#[cfg(test)]
mod proxy_test;

pub use table::{Objects, Table, compile};

use arc_swap::ArcSwap;
use hosts::Scheme;
use metrics::Metrics;
use naru_client::Client;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The class of the Gateways that are ours.
pub const GATEWAY_CLASS: &str = "naru";
/// As HTTPRoutes name us in their status.
pub const CONTROLLER: &str = "naru.dev/gateway";

#[derive(Debug, Clone)]
pub struct Config {
    /// Say in every answer which Service gave it (`x-naru-backend`). For tests and demonstrations: it
    /// tells the world about the inside.
    pub backend_header: bool,
    /// Threads that serve; 0 means as many as there are cores, at most four.
    pub threads: usize,
    /// From a request to the head of its answer, unless its route says otherwise.
    pub request_timeout: Duration,
    /// How long a request waits for a service whose pods are all being replaced.
    pub hold: Duration,
    /// How long requests under way may take to end after `shutdown`.
    pub drain: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            backend_header: false,
            threads: 0,
            request_timeout: Duration::from_secs(60),
            hold: Duration::from_secs(5),
            drain: Duration::from_secs(3),
        }
    }
}

/// A running gateway; cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
}

/// What the threads have in common.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) table: Arc<ArcSwap<Table>>,
    /// Moves with every new table: held requests look again.
    pub(crate) version: watch::Sender<u64>,
    pub(crate) metrics: Metrics,
}

impl Shared {
    pub(crate) fn replace_table(&self, table: Table) {
        self.table.store(Arc::new(table));
        self.version.send_modify(|it| *it += 1);
    }
}

impl Gateway {
    /// Serves on a bound listener by the cluster's objects until `shutdown`.
    /// With a second listener HTTPS is served there.
    pub fn start(
        config: Config,
        listener: TcpListener,
        tls_listener: Option<TcpListener>,
        client: Client,
        shutdown: CancellationToken,
    ) -> Self {
        let has_tls = tls_listener.is_some();
        let gateway = Self::serve(config, listener, tls_listener, shutdown.clone());
        let doors = status::Doors { address: gateway.address.ip().to_string(), has_tls };
        tokio::spawn(control::run(client, Arc::clone(&gateway.shared), doors, shutdown));
        gateway
    }

    /// Serves by whatever table it is given: the data plane alone.
    fn serve(
        config: Config,
        listener: TcpListener,
        tls_listener: Option<TcpListener>,
        shutdown: CancellationToken,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if config.threads == 0 { cores.min(4) } else { config.threads };
        let shared = Arc::new(Shared {
            config,
            table: Arc::new(ArcSwap::from_pointee(Table::default())),
            version: watch::Sender::new(0),
            metrics: Metrics::default(),
        });
        let address = listener.local_addr().expect("a bound listener has an address");
        for (listener, scheme) in [(Some(listener), Scheme::Http), (tls_listener, Scheme::Https)] {
            match listener.map(TcpListener::into_std).transpose() {
                Ok(Some(listener)) => proxy::start(&shared, &listener, scheme, threads, &shutdown),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "the gateway cannot listen"),
            }
        }
        Self { shared, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Counters and histograms in Prometheus's text format.
    pub fn metrics_text(&self) -> String {
        self.shared.metrics.text()
    }
}
