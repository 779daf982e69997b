//! Volumes of a pod, lowered.

use serde_json::Value;

use super::container::EnvValue;
use super::{list, number, some_text, text};
use crate::quantity;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    EmptyDir {
        memory: bool,
        size_bytes_max: Option<u64>,
    },
    HostPath {
        path: String,
        kind: String,
    },
    /// Bound to a volume of this machine by the time the pod starts.
    Claim {
        name: String,
        read_only: bool,
    },
    /// Files that the API provides, kept as it says while the pod lives.
    Files {
        sources: Vec<FileSource>,
        mode: u32,
    },
}

/// One source of a volume of files; a projected volume has several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    Object(ObjectSource),
    Downward(Vec<DownwardItem>),
    Token(TokenSource),
}

/// A ConfigMap or a Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectSource {
    pub secret: bool,
    pub name: String,
    pub optional: bool,
    /// Key, path below the volume, mode. Empty: every key under its own name.
    pub items: Vec<(String, String, Option<u32>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownwardItem {
    pub path: String,
    pub mode: Option<u32>,
    /// A field or a resource.
    pub value: EnvValue,
}

/// A token of the pod's service account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSource {
    pub path: String,
    /// Empty: the API itself.
    pub audience: String,
    pub expiration_seconds: i64,
}

/// Kubernetes' own default for a token of a volume.
const TOKEN_SECONDS: i64 = 3600;

pub fn lower_volume(volume: &Value) -> Result<Volume, String> {
    let mode = |value: &Value| number(value).unwrap_or(0o644);
    let name = || text(&volume["name"]);
    let size = |value: &Value| match value.as_str() {
        Some(written) => quantity::parse_whole(written)
            .map(Some)
            .ok_or_else(|| format!("volume {}: emptyDir.sizeLimit is not a quantity: {written}", name())),
        None => Ok(None),
    };
    if volume["emptyDir"].is_object() {
        let source = &volume["emptyDir"];
        let memory = match source["medium"].as_str() {
            Some("Memory") => true,
            None | Some("") => false,
            Some(other) => {
                return Err(format!(
                    "volume {}: emptyDir.medium {other} is not supported by this node",
                    name()
                ));
            }
        };
        let size_bytes_max = size(&source["sizeLimit"])?.filter(|bytes| *bytes > 0);
        return Ok(Volume::EmptyDir { memory, size_bytes_max });
    }
    if volume["hostPath"].is_object() {
        return Ok(Volume::HostPath {
            path: text(&volume["hostPath"]["path"]),
            kind: text(&volume["hostPath"]["type"]),
        });
    }
    if volume["persistentVolumeClaim"].is_object() {
        let claim = &volume["persistentVolumeClaim"];
        return Ok(Volume::Claim { name: text(&claim["claimName"]), read_only: claim["readOnly"] == true });
    }
    for (field, secret) in [("configMap", false), ("secret", true)] {
        let source = &volume[field];
        if source.is_object() {
            let sources = vec![FileSource::Object(lower_object(source, secret))];
            return Ok(Volume::Files { sources, mode: mode(&source["defaultMode"]) });
        }
    }
    if volume["downwardAPI"].is_object() {
        let source = &volume["downwardAPI"];
        let sources = vec![lower_downward(source, &name())?];
        return Ok(Volume::Files { sources, mode: mode(&source["defaultMode"]) });
    }
    if volume["projected"].is_object() {
        let mut sources = Vec::new();
        for source in list(&volume["projected"]["sources"]) {
            sources.push(lower_projection(source, &name())?);
        }
        return Ok(Volume::Files { sources, mode: mode(&volume["projected"]["defaultMode"]) });
    }
    let kinds: Vec<&str> = kinds_of(volume);
    if kinds.is_empty() {
        // As everywhere: a volume that says nothing is an empty directory.
        return Ok(Volume::EmptyDir { memory: false, size_bytes_max: None });
    }
    Err(format!("volume {}: the type {} is not supported by this node", name(), kinds.join(", ")))
}

fn kinds_of(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key.as_str())
        .filter(|key| *key != "name")
        .collect()
}

fn lower_projection(source: &Value, volume: &str) -> Result<FileSource, String> {
    if source["configMap"].is_object() {
        return Ok(FileSource::Object(lower_object(&source["configMap"], false)));
    }
    if source["secret"].is_object() {
        return Ok(FileSource::Object(lower_object(&source["secret"], true)));
    }
    if source["downwardAPI"].is_object() {
        return lower_downward(&source["downwardAPI"], volume);
    }
    let token = &source["serviceAccountToken"];
    if token.is_object() {
        return Ok(FileSource::Token(TokenSource {
            path: some_text(&token["path"]).unwrap_or_else(|| "token".to_owned()),
            audience: text(&token["audience"]),
            expiration_seconds: token["expirationSeconds"].as_i64().unwrap_or(TOKEN_SECONDS),
        }));
    }
    Err(format!("volume {volume}: this node does not project {} sources", kinds_of(source).join(", ")))
}

fn lower_object(source: &Value, secret: bool) -> ObjectSource {
    // Secrets say `secretName` in a volume of their own and `name` in a projection.
    let name = source["secretName"].as_str().or(source["name"].as_str()).unwrap_or_default();
    ObjectSource {
        secret,
        name: name.to_owned(),
        optional: source["optional"] == true,
        items: list(&source["items"])
            .map(|item| (text(&item["key"]), text(&item["path"]), number(&item["mode"])))
            .collect(),
    }
}

fn lower_downward(source: &Value, volume: &str) -> Result<FileSource, String> {
    let mut items = Vec::new();
    for item in list(&source["items"]) {
        let path = text(&item["path"]);
        let value = if let Some(field) = some_text(&item["fieldRef"]["fieldPath"]) {
            EnvValue::Field(field)
        } else if let Some(resource) = some_text(&item["resourceFieldRef"]["resource"]) {
            EnvValue::resource(resource, &item["resourceFieldRef"])
        } else {
            return Err(format!("volume {volume}: {path} names neither a field nor a resource"));
        };
        items.push(DownwardItem { path, mode: number(&item["mode"]), value });
    }
    Ok(FileSource::Downward(items))
}
