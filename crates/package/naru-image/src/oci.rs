//! The OCI image documents, as far as we write them. Fields of others' documents that we do not know are
//! kept; our own come out in one fixed order, so that the same image always has the same digest.

use crate::digest::Digest;
pub use crate::platform::{Platform, architecture};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

pub mod media_type {
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
}

/// Annotation of a manifest whose layers lie over this machine's own root: it means nothing elsewhere.
pub const ANNOTATION_BASE: &str = "naru.dev/base";
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, annotations: BTreeMap::new(), platform: None }
    }

    /// In the store's own index: a registry has it, too.
    pub fn is_pulled(&self) -> bool {
        self.annotations.contains_key(crate::usage::ANNOTATION_PULLED)
    }

    /// In an index: whether it is what this platform needs.
    pub fn is_for(&self, platform: &Platform) -> bool {
        self.platform.as_ref().is_some_and(|it| it.plain() == *platform)
    }
}

/// An image index, which is also what `index.json` is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    pub fn is_over_host(&self) -> bool {
        self.annotations.get(ANNOTATION_BASE).is_some_and(|it| it == "host")
    }
}

/// The image's configuration document.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: RunConfig,
    #[serde(default)]
    pub rootfs: RootFs,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl ImageConfig {
    /// What the image is made for; none if it does not say.
    pub fn platform(&self) -> Option<Platform> {
        let variant = self.rest.get("variant").and_then(Value::as_str);
        let is_said = !self.architecture.is_empty();
        is_said.then(|| {
            Platform::new(if self.os.is_empty() { "linux" } else { &self.os }, &self.architecture, variant)
        })
    }

    pub fn set_platform(&mut self, platform: &Platform) {
        self.architecture = platform.architecture.clone();
        self.os = platform.os.clone();
        match &platform.variant {
            Some(it) => self.rest.insert("variant".into(), it.as_str().into()),
            None => self.rest.remove("variant"),
        };
    }
}

/// How containers of the image are started unless told otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "is_empty_or_null", deserialize_with = "null_is_default")]
    pub exposed_ports: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    #[serde(skip_serializing_if = "is_empty_or_null", deserialize_with = "null_is_default")]
    pub volumes: BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub shell: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub on_build: Vec<String>,
}

fn is_empty_or_null(map: &BTreeMap<String, Value>) -> bool {
    map.is_empty()
}

/// Docker writes `null` for an empty list.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl RunConfig {
    /// The value of an environment variable.
    pub fn env_of(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|it| it.strip_prefix(name)?.strip_prefix('='))
    }

    /// Sets a variable in its place, or adds it.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        match self.env.iter_mut().find(|it| it.split('=').next() == Some(name)) {
            Some(it) => *it = entry,
            None => self.env.push(entry),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".into(), diff_ids: Vec::new() }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    #[serde(skip_serializing_if = "is_false")]
    pub empty_layer: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

fn is_false(it: &bool) -> bool {
    !it
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_writes_is_read_and_nothing_is_lost() {
        let text = r#"{"architecture":"amd64","os":"linux","container":"abc","config":{"Env":["A=1"],"Cmd":null,
            "Entrypoint":["/x"],"Volumes":null,"Labels":null},"rootfs":{"type":"layers","diff_ids":[]},
            "history":[{"created_by":"x","empty_layer":true}]}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.config.env_of("A"), Some("1"));
        assert!(config.config.cmd.is_empty());
        assert_eq!(serde_json::to_value(&config).unwrap()["container"], "abc");
    }
}
