//! The one service the node needs from another wing: "give me a root file system for this image".
//!
//! The trait is the node's, as the image service is the kubelet's in CRI; `package` fulfils it and
//! `app` wires the two.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
pub use naru_runtime::HostRoot;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// A way into a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// `docker.io`, `registry.example.com:5000`.
    pub registry: String,
    pub user: String,
    pub password: String,
}

/// An image that is on disk, ready to be mounted.
#[derive(Debug, Clone, Default)]
pub struct ImageInfo {
    /// What `imageID` shows, `sha256:...`.
    pub digest: String,
    /// Layers, topmost first. With `host` the last one is `/`.
    pub lower_dirs: Vec<PathBuf>,
    pub host: Option<HostRoot>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub working_dir: String,
    /// `""`, `app`, `1000:1000`.
    pub user: String,
    /// `SIGTERM`, `QUIT` or a number.
    pub stop_signal: Option<String>,
    /// What speaks against running it, and does not forbid it.
    pub warnings: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("`{image}` is not an image reference")]
    InvalidName { image: String },
    #[error("image `{image}` is not present and its pull policy is Never")]
    NeverPull { image: String },
    #[error("cannot pull image `{image}`: {message}")]
    Pull { image: String, message: String },
    #[error("{message}")]
    Refused { image: String, message: String },
    #[error("cannot keep the container's files as layer {id}: {message}")]
    Commit { id: String, message: String },
}

impl ImageError {
    /// The waiting reason that every Kubernetes tool knows.
    pub fn reason(&self) -> &'static str {
        match self {
            ImageError::InvalidName { .. } => "InvalidImageName",
            ImageError::NeverPull { .. } => "ErrImageNeverPull",
            ImageError::Pull { .. } => "ErrImagePull",
            ImageError::Refused { .. } => "SignatureValidationFailed",
            ImageError::Commit { .. } => "CommitFailed",
        }
    }
}

#[async_trait]
pub trait ImageService: Send + Sync {
    /// Makes the image present and says where it is. The credentials are the pod's, best first. `namespace` is
    /// that of the pod which is to run it, and is asked whether it may; without one nothing is run.
    async fn ensure(
        &self,
        namespace: Option<&str>,
        image: &str,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<ImageInfo, ImageError>;

    /// Keeps a finished container's changes as a layer. Called again with the same id after a crash.
    async fn commit(&self, id: &str, upper: &Path) -> Result<(), ImageError>;
}
