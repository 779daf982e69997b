//! The end of a build: the target stage becomes an image, or one per platform and an index of them, with names.

use crate::advice::{self, Made};
use crate::engine::{BuildRequest, Builder, named_stage};
use crate::outcome::{BuildError, BuiltImage};
use crate::stage::{Build, Progress, rfc3339};
use naru_image::oci::media_type;
use naru_image::{Base, Digest, Reference};
use std::sync::{Mutex, PoisonError};

/// What was made for one platform.
pub(crate) struct Part {
    pub(crate) digest: Digest,
    size: u64,
    layers: u32,
    advice: Vec<naru_objects::ImageAdvice>,
}

impl Builder {
    /// Gives what was made its names: an index, where it was made for several platforms.
    pub(crate) fn name_image(
        &self,
        request: &BuildRequest,
        mut parts: Vec<Part>,
        progress: &Mutex<Progress<'_>>,
    ) -> Result<BuiltImage, BuildError> {
        let store = &self.inner.store;
        let (digest, kind) = match parts.as_slice() {
            [one] => (one.digest.clone(), media_type::MANIFEST),
            many => {
                let digests: Vec<Digest> = many.iter().map(|it| it.digest.clone()).collect();
                (store.put_index(&digests).map_err(BuildError::Store)?, media_type::INDEX)
            }
        };
        let mut names = request.names.clone();
        let latest = ["latest".to_owned()];
        let tags = match (request.tags.is_empty(), names.is_empty()) {
            (true, true) => &latest[..],
            _ => &request.tags,
        };
        for tag in tags {
            let name = Reference::parse(&format!("naru.local/{}:{tag}", request.name));
            names.push(name.map_err(|it| BuildError::Store(it.into()))?);
        }
        for name in &names {
            store.tag(name, &digest, kind).map_err(BuildError::Store)?;
        }
        let (cached_steps, total_steps) = {
            let progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            (progress.cached, progress.step)
        };
        Ok(BuiltImage {
            reference: format!("{}@{digest}", names.first().expect("at least `latest` is a name").name()),
            digest,
            names: names.iter().map(Reference::familiar).collect(),
            size: parts.iter().map(|it| it.size).sum(),
            layers: parts.iter().map(|it| it.layers).sum(),
            cached_steps,
            total_steps,
            advice: parts.swap_remove(0).advice,
        })
    }
}

impl Build<'_> {
    /// Turns the target stage into an image.
    pub(crate) fn finish(&self) -> Result<Part, BuildError> {
        let store = &self.builder.inner.store;
        let mut state = self.finished(self.target);
        state.config.created = Some(match self.epoch {
            Some(it) => rfc3339(it),
            None if state.created.is_empty() => rfc3339(0),
            None => state.created.clone(),
        });
        for (name, value) in &self.request.labels {
            state.config.config.labels.insert(name.clone(), value.clone());
        }
        let base = if state.host.is_some() { Base::Host } else { Base::Own };
        let digest = store.put_image(&state.config, &state.layers, base).map_err(BuildError::Store)?;
        let manifest = store.manifest(&digest).map_err(BuildError::Store)?;
        let stage = &self.dockerfile.stages[self.target];
        let made = Made {
            stage,
            config: &state.config,
            is_over_host: state.host.is_some(),
            own_layers: state
                .own_layers
                .iter()
                .map(|(layer, line)| (store.layer_dir(layer), *line))
                .collect(),
            view: &state.view(store),
            is_base_pulled: named_stage(self.dockerfile, &stage.image, self.target).is_none(),
        };
        Ok(Part {
            size: manifest.layers.iter().map(|it| it.size).sum(),
            layers: manifest.layers.len() as u32,
            advice: advice::give(&made),
            digest,
        })
    }
}
