//! The outcomes of steps in a registry, so that another machine need not do them again: an OCI artifact whose
//! configuration lists steps by their keys and whose layers are theirs. Only what a build asks for is fetched.

use crate::cache::Step;
use crate::outcome::{BuildError, StepError};
use naru_image::oci::{Descriptor, media_type};
use naru_image::{Digest, ImageStore, Reference};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};

/// Of the artifact and of its configuration.
const CACHE_TYPE: &str = "application/vnd.naru.build-cache.v1+json";
const LIST_BYTES_MAX: u64 = 8 << 20; // twenty thousand steps
/// A manifest holds no more layers; the rest is done again.
const LAYERS_MAX: usize = 450;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    key: Digest,
    #[serde(flatten)]
    step: Step,
    /// None for a step that changed nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blob: Option<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
struct List {
    steps: Vec<Listed>,
}

/// Steps that registries have.
#[derive(Debug, Default)]
pub(crate) struct Imported {
    steps: HashMap<Digest, (Reference, Listed)>,
}

impl Imported {
    /// Reads the lists. One that is not there is no error: the first build of all has none.
    pub(crate) async fn read(store: &ImageStore, names: &[String], say: &dyn Fn(String)) -> Self {
        let mut found = Self::default();
        for name in names {
            match found.add(store, name).await {
                Ok(count) => say(format!("{count} steps in the cache {name}")),
                Err(why) => say(format!("the cache {name} is not used: {why}")),
            }
        }
        found
    }

    async fn add(&mut self, store: &ImageStore, name: &str) -> Result<usize, String> {
        let text = |it: &dyn std::error::Error| crate::outcome::chain(it);
        let reference = Reference::parse(name).map_err(|it| text(&it))?;
        let digest = store.fetch_manifest(&reference).await.map_err(|it| text(&it))?;
        let manifest = store.manifest(&digest).map_err(|it| text(&it))?;
        if manifest.config.media_type != CACHE_TYPE {
            return Err("it is no build cache".into());
        }
        let config = &manifest.config.digest;
        store.fetch_blob(&reference, config).await.map_err(|it| text(&it))?;
        let bytes = store.read_blob("build cache", config, LIST_BYTES_MAX).map_err(|it| text(&it))?;
        let list: List = serde_json::from_slice(&bytes).map_err(|it| it.to_string())?;
        let count = list.steps.len();
        for step in list.steps {
            self.steps.entry(step.key.clone()).or_insert_with(|| (reference.clone(), step));
        }
        Ok(count)
    }

    /// The outcome of a step, with its layer on this machine. Blocks.
    pub(crate) fn get(&self, store: &ImageStore, key: &Digest) -> Result<Option<Step>, StepError> {
        let Some((reference, listed)) = self.steps.get(key) else { return Ok(None) };
        if let Some(blob) = &listed.blob {
            let fetch = store.fetch_blob(reference, &blob.digest);
            tokio::runtime::Handle::current().block_on(fetch)?;
            // What is unpacked has the digest that the list says, or is refused.
            store.ensure_layer(blob, &listed.step.layer.diff_id)?;
        }
        Ok(Some(listed.step.clone()))
    }
}

/// Writes the artifact of these steps into the store and returns its manifest's digest. Blocks.
pub(crate) fn artifact(store: &ImageStore, steps: &BTreeMap<Digest, Step>) -> Result<Digest, BuildError> {
    let mut listed = Vec::new();
    let mut layers: BTreeMap<String, Descriptor> = BTreeMap::new();
    for (key, step) in steps {
        let blob = match step.layer.is_empty {
            true => None,
            false => Some(store.layer_blob(&step.layer).map_err(BuildError::Store)?),
        };
        if let Some(blob) = &blob {
            if layers.len() >= LAYERS_MAX && !layers.contains_key(blob.digest.as_str()) {
                continue;
            }
            layers.insert(blob.digest.to_string(), blob.clone());
        }
        listed.push(Listed { key: key.clone(), step: step.clone(), blob });
    }
    let list = serde_json::to_vec(&List { steps: listed }).expect("a list of steps is plain data");
    let config = store.put_blob(&list).map_err(BuildError::Store)?;
    let layers: Vec<&Descriptor> = layers.values().collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST, "artifactType": CACHE_TYPE,
        "config": {"mediaType": CACHE_TYPE, "digest": config, "size": list.len()}, "layers": layers,
    });
    store.put_blob(manifest.to_string().as_bytes()).map_err(BuildError::Store)
}
