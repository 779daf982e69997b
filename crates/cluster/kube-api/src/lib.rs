//! The Kubernetes-compatible API over the object store: HTTP in, objects out.
//!
//! [`Api::router`] is the whole API as one service. In this process it is called as it is, without
//! socket and TLS, and trusts its caller; [`Api::serve`] puts TLS and authentication before it.
//! Nothing here knows what a Deployment means: kinds are rows of the table in `kube-kinds`, writes
//! go through `kube-objects`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = kube_api::Config::new("data".into(), "0.1.0");
//! let api = kube_api::Api::open(config)?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:6443").await?;
//! api.write_kubeconfig("https://127.0.0.1:6443")?;
//! api.serve(listener, Default::default()).await;
//! # Ok(()) }
//! ```

mod answer;
mod audit;
mod auth;
mod body;
mod discovery;
mod evict;
mod exec;
mod forward;
mod metrics;
mod openapi;
mod proxy;
mod publish;
mod read;
mod request;
mod serve;
mod spdy;
mod streams;
mod tls;
mod tokens;
mod upgrade;
mod write;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};

use audit::Audit;
use kube_kinds::table;
use kube_objects::{Objects, Registry, Writer};
use kube_store::{OpenError, Options, Store};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// The kinds that are built in.
pub mod kinds {
    pub use kube_kinds::Tier;
    pub use kube_kinds::table::builtin;
}

pub use streams::{
    AttachRequest, Connection, ExecRequest, ExecSession, LogRequest, LogStream, NodeStreams, StreamError,
    Usage,
};

/// The address of the service `kubernetes`, the first of the range that services get theirs from.
pub const SERVICE_ADDRESS: &str = "10.96.0.1";

/// Namespaces that exist from the start.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

#[derive(Debug, Clone)]
pub struct Config {
    /// The store, the keys and the kubeconfig live here.
    pub data_dir: PathBuf,
    /// Naru's version, shown by `/version`.
    pub version: String,
    /// Names and addresses, beside those of this machine, that the server's certificate is for.
    pub extra_sans: Vec<String>,
    pub store: Options,
}

impl Config {
    pub fn new(data_dir: PathBuf, version: &str) -> Config {
        Config { data_dir, version: version.into(), extra_sans: Vec::new(), store: Options::default() }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("the object store cannot be opened")]
    Store { source: OpenError },
    #[error("the certificate for {what} cannot be made")]
    Certificate { what: &'static str, source: rcgen::Error },
    #[error("the key or certificate in {path} cannot be used")]
    Key { path: PathBuf, source: rustls::Error },
    #[error("the key for signing tokens in {path} cannot be made or used")]
    SigningKey { path: PathBuf },
    #[error("the initial objects cannot be written")]
    InitialObjects { source: kube_kinds::Failure },
}

/// A handle to the API. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Objects,
    registry: Registry,
    streams: RwLock<Option<Arc<dyn NodeStreams>>>,
    identity: tls::Identity,
    /// Signs the tokens of service accounts.
    token_keys: auth::jwt::Keys,
    version: String,
    data_dir: PathBuf,
    /// Begun by the first listener, shared by all.
    audit: Mutex<Option<Audit>>,
    documents: openapi::Documents,
    /// Ends watches and other long answers.
    stop: CancellationToken,
}

impl Api {
    /// Opens the store, and makes keys and the initial namespaces at the first start.
    pub fn open(config: Config) -> Result<Api, Error> {
        let in_dir = |source| Error::File { path: config.data_dir.clone(), source };
        std::fs::create_dir_all(&config.data_dir).map_err(in_dir)?;
        let identity = tls::Identity::open(&config.data_dir, &config.extra_sans)?;
        let token_keys = auth::jwt::Keys::open(&config.data_dir.join("pki"))?;
        let path = config.data_dir.join("objects.db");
        let store = Store::open(&path, config.store.clone()).map_err(|source| Error::Store { source })?;
        let objects = Objects::new(store);
        let inner = Inner {
            registry: Registry::new(objects.clone()),
            objects,
            streams: RwLock::new(None),
            identity,
            token_keys,
            version: config.version,
            data_dir: config.data_dir,
            audit: Mutex::default(),
            documents: openapi::Documents::default(),
            stop: CancellationToken::new(),
        };
        Ok(Api { inner: Arc::new(inner) })
    }

    /// Writes what must be there before the first client comes. `serve` does it, too; call it when
    /// only the router is used.
    pub async fn prepare(&self) -> Result<(), Error> {
        let kind = table::of("", "Namespace").expect("the table of kinds has namespaces");
        for name in NAMESPACES {
            if self.objects().find(kind, "", name).is_none() {
                let object = json!({"metadata": {"name": name}});
                match self.objects().create(kind, "", object, &Writer::new("naru")).await {
                    Err(failure) if !failure.is_already_exists() => {
                        return Err(Error::InitialObjects { source: failure });
                    }
                    _ => {}
                }
            }
        }
        auth::bootstrap::write(self).await.map_err(|source| Error::InitialObjects { source })
    }

    /// Makes the service `kubernetes`, by which pods find the API at this address.
    pub async fn publish(&self, address: SocketAddr) -> Result<(), Error> {
        publish::publish(self, address).await.map_err(|source| Error::InitialObjects { source })
    }

    /// The whole API as a service that trusts its caller.
    pub fn router(&self) -> axum::Router {
        axum::Router::new().fallback(request::handle).with_state(self.clone())
    }

    /// Who can stream a pod's logs and run commands in it. Until it is set, such requests are
    /// answered with 503.
    pub fn set_streams(&self, streams: Arc<dyn NodeStreams>) {
        *self.inner.streams.write().expect("no code panics while it holds this lock") = Some(streams);
    }

    pub fn store(&self) -> Store {
        self.inner.objects.store().clone()
    }

    /// Reading and writing objects without HTTP.
    pub fn objects(&self) -> &Objects {
        &self.inner.objects
    }

    /// A kubeconfig for the administrator of the API at this address.
    pub fn kubeconfig(&self, server_url: &str) -> String {
        self.inner.identity.kubeconfig(server_url)
    }

    /// The same as a file `admin.kubeconfig` (mode 0600) in the data directory.
    pub fn write_kubeconfig(&self, server_url: &str) -> Result<PathBuf, Error> {
        self.inner.identity.write_kubeconfig(server_url)
    }

    /// The bearer token of the administrator, for clients that cannot use a certificate.
    pub fn admin_token(&self) -> &str {
        &self.inner.identity.token
    }

    /// The certificate authority's certificate, PEM.
    pub fn ca_certificate(&self) -> &str {
        &self.inner.identity.ca_pem
    }

    /// Ends all watches and closes the store.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.objects.store().close().await;
    }

    fn streams(&self) -> Option<Arc<dyn NodeStreams>> {
        self.inner.streams.read().expect("no code panics while it holds this lock").clone()
    }

    fn audit(&self) -> Result<Audit, Error> {
        let mut audit = self.inner.audit.lock().expect("no code panics while it holds this lock");
        match &*audit {
            Some(audit) => Ok(audit.clone()),
            None => Ok(audit.insert(Audit::start(&self.inner.data_dir)?).clone()),
        }
    }

    fn registry(&self) -> &Registry {
        &self.inner.registry
    }
}
