//! The Docker Engine API on a unix socket: `docker`, `docker compose`, SDKs and testcontainers work with Naru
//! as they do with dockerd, and what they start are pods.
//!
//! It holds no state of its own. A container is a Pod with several lives (see `naru-node`) whose annotations keep
//! Docker's own facts; a volume is a PersistentVolumeClaim; a network is a NetworkPolicy; images are those of the
//! store. What only the machine can do, such as joining a container's streams, it asks of [`ContainerNode`].
//!
//! What of a request cannot be honoured is refused by the name of its flag, never dropped.
//!
//! ```no_run
//! # async fn example(client: naru_client::Client, images: naru_image::ImageStore,
//! #     builds: naru_builder::BuildLogs, node: std::sync::Arc<dyn naru_engine_api::ContainerNode>,
//! #     config: naru_engine_api::Config) {
//! let engine = naru_engine_api::Engine::start(config, client, images, builds, node).await.unwrap();
//! let listener = naru_engine_api::listen("/run/naru/docker.sock".as_ref()).unwrap();
//! engine.serve(listener, tokio_util::sync::CancellationToken::new()).await;
//! # }
//! ```

mod answer;
mod archive;
mod attach;
mod build;
mod buildkit;
mod bundle;
mod caller;
mod container;
mod containers;
mod create;
mod engine;
mod error;
mod events;
mod exec;
mod filters;
mod health;
mod images;
mod lives;
mod logs;
mod mounts;
mod names;
mod networks;
mod node;
mod options;
mod ports;
mod server;
mod stats;
mod system;
mod transfer;
mod view;
mod volumes;

pub use engine::{Config, Engine, StartError};
pub use node::{
    AttachSpec, ContainerNode, ExecSpec, Facts, Figures, Files, Mount, NodeError, RootWork, Session,
};
pub use server::listen;
