//! Images for several platforms: one of them for building on, all of them under one name.

use crate::digest::Digest;
use crate::images::{LocalImage, PullPolicy, Resolved};
use crate::oci::{Descriptor, ImageConfig, Index, media_type};
use crate::platform::Platform;
use crate::reference::{LOCAL_REGISTRY, Reference};
use crate::store::{CONFIG_BYTES_MAX, Error, ImageStore, Result};

/// The name that an image of another platform is kept under: it must not take the place of this machine's.
pub(crate) fn for_other_platform(reference: &Reference, platform: &Platform) -> Reference {
    let place = format!("{}/{}", reference.registry.replace([':', '[', ']'], "-"), reference.repository);
    let platform = platform.to_string().replace('/', "-");
    Reference {
        registry: LOCAL_REGISTRY.into(),
        repository: format!("naru/platforms/{platform}/{}", place.to_ascii_lowercase()),
        ..reference.clone()
    }
}

impl ImageStore {
    /// The image for a platform, which need not be this machine's: for building on it, not for running it.
    pub async fn ensure_for(
        &self,
        name: &str,
        policy: PullPolicy,
        platform: &Platform,
    ) -> Result<LocalImage> {
        if platform.is_here() {
            return self.ensure(name, policy).await;
        }
        let reference = match self.resolve_name(name)? {
            Resolved::Host => return Err(Error::NotFor { name: name.into(), platform: platform.clone() }),
            Resolved::Name(it) => it,
        };
        let may_pull = !reference.is_local_only() && policy != PullPolicy::Never;
        let (store, wanted, named) = (self.clone(), platform.clone(), reference.clone());
        let known = tokio::task::spawn_blocking(move || store.known_for(&named, &wanted));
        let is_fixed = reference.digest.is_some();
        let digest = match known.await.map_err(|_| Error::Task)?? {
            Some(it) if !may_pull || is_fixed || policy == PullPolicy::IfNotPresent => it,
            None if !may_pull => {
                return Err(Error::NotFor { name: name.into(), platform: platform.clone() });
            }
            _ => self.pull_for(&reference, &[], platform).await?,
        };
        let (store, name) = (self.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || store.load(&name, &digest)).await.map_err(|_| Error::Task)?
    }

    /// The manifest for a platform that a name leads to, if it is here: below the name's index, under the name
    /// itself, or pulled for this platform before.
    fn known_for(&self, reference: &Reference, platform: &Platform) -> Result<Option<Digest>> {
        for name in [reference.clone(), for_other_platform(reference, platform)] {
            let Some(found) = self.find(&name)? else { continue };
            let Some(digest) = self.for_platform(&found.digest, platform)? else { continue };
            let config = self.manifest(&digest)?.config.digest;
            let config: ImageConfig = self.read_json("image config", &config, CONFIG_BYTES_MAX)?;
            if config.platform().is_none_or(|it| it == *platform) {
                return Ok(Some(digest));
            }
        }
        Ok(None)
    }

    /// Writes down an index of images that are here, in this order. Each says itself what it is for.
    pub fn put_index(&self, manifests: &[Digest]) -> Result<Digest> {
        let mut entries: Vec<Descriptor> = Vec::new();
        for digest in manifests {
            let manifest = self.manifest(digest)?;
            if manifest.is_over_host() {
                return Err(Error::OverHost(digest.clone()));
            }
            let config: ImageConfig =
                self.read_json("image config", &manifest.config.digest, CONFIG_BYTES_MAX)?;
            let damaged =
                |why: &str| Error::Damaged { what: "image", digest: digest.clone(), why: why.to_owned() };
            let platform =
                config.platform().ok_or_else(|| damaged("it does not say which platform it is for"))?;
            if let Some(it) = entries.iter().find(|it| it.platform.as_ref() == Some(&platform)) {
                return Err(damaged(&format!("{} is for {platform}, too", it.digest)));
            }
            let kind = match manifest.media_type.as_str() {
                "" => media_type::MANIFEST,
                it => it,
            };
            let size = self.blob_size(digest).unwrap_or_default();
            let platform = Some(platform);
            entries.push(Descriptor { platform, ..Descriptor::new(kind, digest.clone(), size) });
        }
        let index = Index { schema_version: 2, media_type: media_type::INDEX.into(), manifests: entries };
        self.put_blob(&serde_json::to_vec(&index).expect("an index is plain data"))
    }

    /// Joins images under a name. Each is pulled if it is not here; an index stands for all of its images, which
    /// have to be here.
    pub async fn join_images(&self, name: &str, images: &[String]) -> Result<Digest> {
        let target = Reference::parse(name)?;
        let mut manifests: Vec<Digest> = Vec::new();
        for image in images {
            let reference = match self.resolve_name(image)? {
                Resolved::Host => return Err(Error::OverHost(self.host_image().digest)),
                Resolved::Name(it) => it,
            };
            let found = match self.find(&reference)? {
                Some(it) => it.digest,
                None if reference.is_local_only() => {
                    return Err(Error::NotFound {
                        name: image.clone(),
                        hint: "; it is only ever built here",
                    });
                }
                None => self.pull_as_it_is(&reference).await?,
            };
            match self.as_index(&found)? {
                None => manifests.push(found),
                Some(index) => {
                    let named = index.manifests.into_iter().map(|it| it.digest);
                    let (here, missing): (Vec<Digest>, Vec<Digest>) =
                        named.partition(|it| self.blob_size(it).is_some());
                    if let Some(it) = missing.first() {
                        let why =
                            format!("it names {it}, which is not here; name its images by their digests");
                        return Err(Error::Damaged { what: "index", digest: found, why });
                    }
                    manifests.extend(here);
                }
            }
        }
        let digest = self.put_index(&manifests)?;
        self.tag(&target, &digest, media_type::INDEX)?;
        Ok(digest)
    }
}
