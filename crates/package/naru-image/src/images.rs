//! Images: what a name means, what a container of it needs, and what may be forgotten.

use crate::Credential;
use crate::digest::Digest;
use crate::host;
use crate::layers::Layer;
use crate::oci::{ANNOTATION_BASE, Descriptor, ImageConfig, Index, Manifest, RootFs, media_type};
use crate::platform::Platform;
use crate::reference::{HOST_IMAGE, Reference, alias_of};
use crate::repositories::DEPTH_MAX;
use crate::store::{
    BLOB_DIRECTORIES, CONFIG_BYTES_MAX, Error, ImageStore, MANIFEST_BYTES_MAX, Result, io_error,
    sync_directory,
};
use crate::view::View;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The host image's own part of a root: what to hide of `/` and what to show of the hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoot {
    pub masks: Vec<PathBuf>,
    /// Below the masks, bound back read-only.
    pub read_only: Vec<PathBuf>,
}

/// An image that is here, unpacked.
#[derive(Debug, Clone)]
pub struct LocalImage {
    pub reference: String,
    /// Of the manifest.
    pub digest: Digest,
    /// For an overlay, topmost first, never empty. Ends with `/` for an image over the host image.
    pub lower_dirs: Vec<PathBuf>,
    pub host: Option<HostRoot>,
    pub config: ImageConfig,
    /// Bottom first, without the host's root.
    pub layers: Vec<Layer>,
}

impl LocalImage {
    pub fn view(&self) -> View {
        View::new(self.lower_dirs.clone(), self.host.as_ref())
    }
}

/// Whether [`ImageStore::ensure`] asks a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

/// What a name turned out to mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    Host,
    Name(Reference),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Own,
    Host,
}

/// An image that exists for one step of a build, see [`ImageStore::put_transient`].
pub struct TransientImage {
    store: ImageStore,
    digests: [Digest; 2],
}

impl TransientImage {
    /// Of the manifest.
    pub fn digest(&self) -> &Digest {
        &self.digests[0]
    }
}

impl Drop for TransientImage {
    fn drop(&mut self) {
        let mut transient = self.store.transient();
        for digest in &self.digests {
            transient.remove(digest);
        }
    }
}

fn plain_blob(layer: &Layer) -> Descriptor {
    Descriptor::new(media_type::LAYER, layer.diff_id.clone(), layer.size)
}

/// Configuration and manifest of an image, as bytes.
fn documents(
    config: &ImageConfig,
    layers: &[Layer],
    blobs: Vec<Descriptor>,
    base: Base,
) -> (Vec<u8>, Vec<u8>) {
    let mut config = config.clone();
    config.rootfs.diff_ids = layers.iter().map(|it| it.diff_id.clone()).collect();
    let config = serde_json::to_vec(&config).expect("an image config is plain data");
    let mut annotations = BTreeMap::new();
    if base == Base::Host {
        annotations.insert(ANNOTATION_BASE.to_owned(), "host".to_owned());
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::MANIFEST.into(),
        config: Descriptor::new(media_type::CONFIG, Digest::of(&config), config.len() as u64),
        layers: blobs,
        annotations,
    };
    (config, serde_json::to_vec(&manifest).expect("a manifest is plain data"))
}

/// What of an image's configuration says which layers it has.
#[derive(serde::Deserialize)]
struct RootFsOnly {
    rootfs: RootFs,
}

/// What [`ImageStore::gc`] must not touch besides tagged images.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    pub manifests: Vec<Digest>,
    pub layers: Vec<Digest>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Collected {
    pub blobs: u64,
    pub layers: u64,
    pub bytes: u64,
}

impl ImageStore {
    /// Writes configuration and manifest of an image of these layers (bottom first) and returns the
    /// manifest's digest. Every layer's archive is in the store afterwards, unless the image lies over the
    /// host's root: then there is nowhere to send archives to, and the unpacked layers are forced to disk.
    pub fn put_image(&self, config: &ImageConfig, layers: &[Layer], base: Base) -> Result<Digest> {
        let blobs = match base {
            Base::Own => layers.iter().map(|it| self.layer_blob(it)).collect::<Result<_>>()?,
            Base::Host => {
                self.sync_layers(layers)?;
                layers.iter().map(plain_blob).collect()
            }
        };
        let (config, manifest) = documents(config, layers, blobs, base);
        self.put_blob(&config)?;
        self.put_blob(&manifest)
    }

    /// An image for one step of a build: it can be used here until the handle is dropped, costs no write
    /// and no compression, and is gone after a restart.
    pub fn put_transient(&self, config: &ImageConfig, layers: &[Layer], base: Base) -> TransientImage {
        let (config, manifest) = documents(config, layers, layers.iter().map(plain_blob).collect(), base);
        let digests = [Digest::of(&manifest), Digest::of(&config)];
        let mut transient = self.transient();
        transient.insert(digests[0].clone(), manifest);
        transient.insert(digests[1].clone(), config);
        drop(transient);
        TransientImage { store: self.clone(), digests }
    }

    /// Whether an image exists for a step of a build only.
    pub fn is_transient(&self, digest: &Digest) -> bool {
        self.transient().contains_key(digest)
    }

    /// Forces unpacked layers to disk: for images that have no archive to unpack again. File by file,
    /// because `syncfs` would wait for everything that anybody else has written.
    fn sync_layers(&self, layers: &[Layer]) -> Result<()> {
        for layer in layers {
            let Some(mut record) = self.layer_record(&layer.diff_id) else { continue };
            if record.is_synced {
                continue;
            }
            let path = self.layer_dir(&layer.diff_id);
            for entry in walkdir::WalkDir::new(&path).contents_first(true) {
                let entry = entry.map_err(|it| io_error("write", &path)(it.into()))?;
                if entry.file_type().is_file() || entry.file_type().is_dir() {
                    sync_directory(entry.path())?;
                }
            }
            record.is_synced = true;
            self.write_layer_record(&record)?;
        }
        Ok(())
    }

    /// The machine's own root as an image.
    pub fn host_image(&self) -> LocalImage {
        let (root, config) = &self.inner.host;
        LocalImage {
            reference: HOST_IMAGE.into(),
            digest: host::fingerprint(&self.inner.config.host, root),
            lower_dirs: vec!["/".into()],
            host: Some(root.clone()),
            config: config.clone(),
            layers: Vec::new(),
        }
    }

    /// The empty image: `FROM scratch`.
    pub fn scratch_image(&self) -> LocalImage {
        let config = ImageConfig {
            architecture: crate::oci::architecture().into(),
            os: "linux".into(),
            ..Default::default()
        };
        LocalImage {
            reference: "scratch".into(),
            digest: Digest::of("scratch"),
            lower_dirs: vec![self.dir().join("empty")],
            host: None,
            config,
            layers: Vec::new(),
        }
    }

    /// Where the user's aliases send this name: the host image, or a name to look for.
    pub fn resolve_name(&self, name: &str) -> Result<Resolved> {
        let mut reference = Reference::parse(name)?;
        for _ in 0..8 {
            if reference.name() == HOST_IMAGE && reference.digest.is_none() {
                return Ok(Resolved::Host);
            }
            if reference.is_local_only() {
                break; // what was built here is meant, whatever `*` an alias has
            }
            match alias_of(&self.inner.config.aliases, &reference) {
                Some("host") => return Ok(Resolved::Host),
                Some(target) => {
                    let next = Reference::parse(target)?;
                    if next == reference {
                        break;
                    }
                    reference = next;
                }
                None => break,
            }
        }
        Ok(Resolved::Name(reference))
    }

    /// The image, if it is here. Unpacks layers if need be, so it may take a while.
    pub fn local(&self, name: &str) -> Result<Option<LocalImage>> {
        let reference = match self.resolve_name(name)? {
            Resolved::Host => return Ok(Some(self.host_image())),
            Resolved::Name(it) => it,
        };
        let Some(found) = self.find(&reference)? else { return Ok(None) };
        let Some(digest) = self.for_this_machine(&found.digest)? else { return Ok(None) };
        self.load(name, &digest).map(Some)
    }

    /// The manifest itself, or of an index the one for this machine; none if that was never fetched.
    pub fn for_this_machine(&self, digest: &Digest) -> Result<Option<Digest>> {
        self.for_platform(digest, &Platform::here())
    }

    /// The manifest itself, or of an index the one for a platform; none if that was never fetched.
    pub fn for_platform(&self, digest: &Digest, platform: &Platform) -> Result<Option<Digest>> {
        let Some(index) = self.as_index(digest)? else { return Ok(Some(digest.clone())) };
        let entry = index.manifests.iter().find(|it| it.is_for(platform));
        Ok(entry.filter(|it| self.blob_size(&it.digest).is_some()).map(|it| it.digest.clone()))
    }

    /// The index of this digest, if it is one.
    pub fn as_index(&self, digest: &Digest) -> Result<Option<Index>> {
        let document: serde_json::Value = self.read_json("manifest", digest, MANIFEST_BYTES_MAX)?;
        match document["manifests"].is_array() {
            true => self.read_json("index", digest, MANIFEST_BYTES_MAX).map(Some),
            false => Ok(None),
        }
    }

    /// The image of a manifest that is here.
    pub fn load(&self, name: &str, digest: &Digest) -> Result<LocalImage> {
        let manifest = self.manifest(digest)?;
        self.mark_used(digest);
        let config: ImageConfig =
            self.read_json("image config", &manifest.config.digest, CONFIG_BYTES_MAX)?;
        let damaged =
            |why: &str| Error::Damaged { what: "manifest", digest: digest.clone(), why: why.into() };
        if config.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(damaged("manifest and config disagree about the number of layers"));
        }
        let mut layers = Vec::new();
        for (blob, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
            let layer = match self.layer(diff_id) {
                Some(it) => it,
                None if self.blob_size(&blob.digest).is_none() => {
                    return Err(damaged("a layer is no longer here; build or pull the image again"));
                }
                None => self.ensure_layer(blob, diff_id)?,
            };
            layers.push(layer);
        }
        let host = manifest.is_over_host().then(|| self.inner.host.0.clone());
        let mut lower_dirs: Vec<PathBuf> =
            layers.iter().rev().filter(|it| !it.is_empty).map(|it| self.layer_dir(&it.diff_id)).collect();
        // The same layer twice would be refused by overlayfs; the upper one hides the lower one anyway.
        let mut seen = HashSet::new();
        lower_dirs.retain(|it| seen.insert(it.clone()));
        if host.is_some() {
            lower_dirs.push("/".into());
        } else if lower_dirs.is_empty() {
            lower_dirs.push(self.dir().join("empty"));
        }
        Ok(LocalImage { reference: name.into(), digest: digest.clone(), lower_dirs, host, config, layers })
    }

    /// The image, pulled if the policy says so and it is not here.
    pub async fn ensure(&self, name: &str, policy: PullPolicy) -> Result<LocalImage> {
        self.ensure_with(name, policy, &[]).await
    }

    /// As [`ImageStore::ensure`], with credentials that go before the configured ones.
    pub async fn ensure_with(
        &self,
        name: &str,
        policy: PullPolicy,
        credentials: &[Credential],
    ) -> Result<LocalImage> {
        let reference = match self.resolve_name(name)? {
            Resolved::Host => return Ok(self.host_image()),
            Resolved::Name(it) => it,
        };
        let may_pull = !reference.is_local_only() && policy != PullPolicy::Never;
        let is_fixed = reference.digest.is_some();
        if !(may_pull && policy == PullPolicy::Always && !is_fixed) {
            let (store, name) = (self.clone(), name.to_owned());
            let task = tokio::task::spawn_blocking(move || store.local(&name));
            match task.await.map_err(|_| Error::Task)? {
                Ok(Some(image)) => return Ok(image),
                Err(it) if !may_pull => return Err(it),
                _ => {}
            }
        }
        if !may_pull {
            let hint = if reference.is_local_only() { "; it is only ever built here" } else { "" };
            return Err(Error::NotFound { name: name.into(), hint });
        }
        let digest = self.pull_with(&reference, credentials).await?;
        let (store, name) = (self.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || store.load(&name, &digest)).await.map_err(|_| Error::Task)?
    }

    /// Removes what no tag, none of `keep` and nothing younger than `age_min` needs.
    pub fn gc(&self, keep: &Keep, age_min: Duration) -> Result<Collected> {
        let mut layers: HashSet<Digest> = keep.layers.iter().cloned().collect();
        let repositories = self.repositories();
        let mut live: BTreeSet<Digest> = BTreeSet::new();
        let tagged = self.tags()?.into_iter().map(|(_, it)| it.digest);
        for digest in keep.manifests.iter().cloned().chain(tagged) {
            repositories.collect(&digest, &mut live, DEPTH_MAX);
        }
        // What says something about a living image lives with it: signatures, provenance, lists of contents.
        let mut referrers = repositories.all_referrers();
        loop {
            let (of_living, others): (Vec<_>, Vec<_>) =
                referrers.into_iter().partition(|(subject, _)| live.contains(subject));
            referrers = others;
            if of_living.is_empty() {
                break;
            }
            for (_, referrer) in of_living {
                repositories.collect(&referrer, &mut live, DEPTH_MAX);
            }
        }
        for digest in &live {
            let is_small = self.blob_size(digest).is_some_and(|it| it <= CONFIG_BYTES_MAX);
            if is_small
                && let Ok(config) = self.read_json::<RootFsOnly>("image config", digest, CONFIG_BYTES_MAX)
            {
                layers.extend(config.rootfs.diff_ids);
            }
        }
        let mut blobs: HashSet<Digest> = live.into_iter().collect();
        for layer in &layers {
            blobs.extend(self.layer_record(layer).and_then(|it| it.blob).map(|it| it.1));
        }
        let is_old = |path: &Path| {
            let age = path
                .symlink_metadata()
                .and_then(|it| it.modified())
                .ok()
                .and_then(|it| SystemTime::now().duration_since(it).ok());
            age.is_some_and(|it| it >= age_min)
        };
        let mut collected = Collected::default();
        let directories = BLOB_DIRECTORIES.map(|it| self.dir().join(it));
        let mut entries = Vec::new();
        for directory in &directories {
            entries.extend(fs::read_dir(directory).map_err(io_error("read", directory))?.flatten());
        }
        for entry in entries {
            let digest = Digest::from_hex(&entry.file_name().to_string_lossy());
            let is_kept = digest.is_some_and(|it| blobs.contains(&it));
            if !is_kept && is_old(&entry.path()) {
                collected.bytes += entry.metadata().map(|it| it.len()).unwrap_or(0);
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
                collected.blobs += 1;
            }
        }
        let directory = self.dir().join("layers");
        for entry in fs::read_dir(&directory).map_err(io_error("read", &directory))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(hex) = name.strip_suffix(".json") else { continue };
            let Some(digest) = Digest::from_hex(hex) else { continue };
            // The record's time is the layer's age: the directory's own is the image's.
            if layers.contains(&digest) || !is_old(&entry.path()) {
                continue;
            }
            let path = self.layer_dir(&digest);
            // The directory first: a record without one is harmless, the reverse would be dropped unseen.
            if path.exists() {
                let aside = self.scratch_dir()?;
                fs::rename(&path, aside.path().join("layer")).map_err(io_error("remove", &path))?;
            }
            fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            collected.layers += 1;
        }
        repositories.forget_missing().map_err(io_error("clean", &self.dir().join("registry")))?;
        self.forget_signed()?;
        Ok(collected)
    }
}
