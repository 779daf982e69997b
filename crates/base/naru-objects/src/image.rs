//! `Image`: one Dockerfile to build, of a commit or of an uploaded directory, and the image that came of it.
//! The request is written by deploy (which reads `naru.yaml`) or by a client (`naru build`), the outcome by
//! package.

use crate::Meta;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    pub api_version: String,
    pub kind: String,
    pub metadata: Meta,
    pub spec: ImageSpec,
    #[serde(default)]
    pub status: ImageStatus,
}

/// What to build. Never changes. The source is either `repository` and `sha`, or `upload`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageSpec {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// The commit, 40 hex digits.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,
    pub change: String,
    /// The service of `naru.yaml` that the image is for.
    pub service: String,
    /// The build context, relative to the source's root.
    pub context: String,
    /// The Dockerfile, relative to the context.
    pub dockerfile: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
    /// Names that the image is given besides those of its repository: `web:1`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Added to the image's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `linux/amd64`; none means this machine's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub platforms: Vec<String>,
    /// Every step is done again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_cache: bool,
    /// Names of caches in registries to look steps up in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache_from: Vec<String>,
    /// Names of caches in registries that the steps are sent to; `name,mode=max` for those of all stages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache_to: Vec<String>,
    /// The image is sent to the registries of its `tags`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub push: bool,
    /// Base images are asked for at their registries even if they are here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pull: bool,
}

/// A source that a client sent into the image store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Upload {
    /// Digest of the context's tar archive. Empty: there is none, and nothing of it can be copied.
    pub digest: String,
    /// The Dockerfile's text. The context was cleaned by its ignore file already then. Without it the
    /// Dockerfile is a file of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile: Option<String>,
    /// What `FROM` and `COPY --from` mean by these names: digests of more archives, or
    /// `docker-image://name`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, String>,
    /// A Secret of the same namespace with what `RUN --mount=type=secret` may see. It is removed after the
    /// build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secrets: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImagePhase {
    #[default]
    Pending,
    Building,
    Ready,
    Failed,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageStatus {
    pub phase: ImagePhase,
    /// What a pod may name: `naru.local/<repository>/<service>@sha256:...`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reference: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    pub size_bytes: u64,
    pub layers: u32,
    pub cached_steps: u32,
    pub total_steps: u32,
    pub advice: Vec<ImageAdvice>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub finished_at: String,
}

/// What would make the image smaller or safer, and what to write instead.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageAdvice {
    /// Line of the Dockerfile, from 1; 0 when it concerns the whole file.
    pub line: u32,
    pub message: String,
    pub hint: String,
}
