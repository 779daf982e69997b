//! Pulling from a registry over the distribution API: token or basic authentication, an index narrowed to
//! this machine's platform, blobs that resume where they broke off, digests checked over the raw bytes.
//!
//! Nothing outside the registry is ever fetched: a layer that names other URLs (a "foreign" layer) is
//! refused, because those would be requests that the image's author makes us do.

use crate::digest::Digest;
use crate::oci::{Descriptor, ImageConfig, Index, Manifest, media_type};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::remote::{RegistryError, Remote, TRIES_MAX};
use crate::several::for_other_platform;
use crate::store::{Credential, Error, ImageStore, LAYERS_MAX};
use futures::TryStreamExt;
use reqwest::header::RANGE;
use reqwest::{Method, StatusCode};
use std::collections::HashSet;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

const CONFIG_BYTES_MAX: u64 = 8 << 20; // the largest seen is a few hundred KiB
const BLOB_BYTES_MAX: u64 = 32 << 30; // bounds what one pull can put on the disk
const PARALLEL: usize = 3; // one download seldom fills a line

/// Blobs under way: whoever wants one that somebody else is fetching waits for it.
#[derive(Default)]
pub(crate) struct UnderWay {
    held: Mutex<HashSet<Digest>>,
    freed: Notify,
}

struct Held<'a>(&'a UnderWay, Digest);

impl UnderWay {
    async fn hold(&self, digest: &Digest) -> Held<'_> {
        loop {
            let freed = self.freed.notified();
            if self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.clone()) {
                return Held(self, digest.clone());
            }
            freed.await;
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
        self.0.freed.notify_waiters();
    }
}

/// One image at a time: two pods that want the same must not fetch it twice.
#[derive(Default)]
pub(crate) struct Turn(tokio::sync::Mutex<()>);

impl ImageStore {
    /// Fetches what a name stands for at its registry, and tags it. Returns the manifest's digest.
    pub async fn pull(&self, reference: &Reference) -> Result<Digest, Error> {
        self.pull_with(reference, &[]).await
    }

    /// As [`ImageStore::pull`], with credentials that go before the configured ones.
    pub async fn pull_with(
        &self,
        reference: &Reference,
        credentials: &[Credential],
    ) -> Result<Digest, Error> {
        self.pull_for(reference, credentials, &Platform::here()).await
    }

    /// As [`ImageStore::pull_with`], of an index the image for this platform.
    pub(crate) async fn pull_for(
        &self,
        reference: &Reference,
        credentials: &[Credential],
        platform: &Platform,
    ) -> Result<Digest, Error> {
        self.pull_wanted(reference, credentials, Wanted::For(platform)).await
    }

    /// As [`ImageStore::pull`], whatever machine it is for. An index has to be narrowed by a digest.
    pub(crate) async fn pull_as_it_is(&self, reference: &Reference) -> Result<Digest, Error> {
        self.pull_wanted(reference, &[], Wanted::AsItIs).await
    }

    async fn pull_wanted(
        &self,
        reference: &Reference,
        credentials: &[Credential],
        wanted: Wanted<'_>,
    ) -> Result<Digest, Error> {
        let _turn = self.inner.turn.0.lock().await;
        let mut remotes = Remote::all_for_pull(self, reference, credentials).await?;
        let origin = remotes.pop().expect("the registry itself is always among them");
        for mirror in remotes {
            match self.pull_from(&mirror, reference, wanted).await {
                Ok(digest) => return Ok(digest),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(mirror = mirror.registry, image = %reference, error, "not to be had from a mirror");
                }
            }
        }
        self.pull_from(&origin, reference, wanted).await
    }

    async fn pull_from(
        &self,
        remote: &Remote,
        reference: &Reference,
        wanted: Wanted<'_>,
    ) -> Result<Digest, Error> {
        let refused = |why: String| Error::from(remote.refused(why));
        let (mut kind, mut bytes, mut digest) = remote.named_manifest(reference).await?;
        let mut named = None;
        if is_index(&kind, &bytes) {
            named = Some(digest.clone());
            let index: Index =
                serde_json::from_slice(&bytes).map_err(|it| refused(format!("bad index: {it}")))?;
            let Wanted::For(platform) = wanted else {
                let why = format!("it is an index{}; name one of its images by its digest", variants(&index));
                return Err(refused(why));
            };
            let entry =
                index.manifests.iter().find(|it| it.is_for(platform)).ok_or_else(|| {
                    refused(format!("it has no variant for {platform}{}", variants(&index)))
                })?;
            (kind, bytes) = remote.manifest(entry.digest.as_str()).await?;
            digest = entry.digest.same_kind_of(&bytes);
            if digest != entry.digest || is_index(&kind, &bytes) {
                return Err(refused("its index and its manifest disagree".into()));
            }
        }
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|it| refused(format!("not a manifest that we can read: {it}")))?;
        check(&manifest).map_err(refused)?;

        remote.blob(self, &manifest.config, CONFIG_BYTES_MAX).await?;
        let config = self.read_blob("image config", &manifest.config.digest, CONFIG_BYTES_MAX)?;
        let config: ImageConfig =
            serde_json::from_slice(&config).map_err(|it| refused(format!("bad image config: {it}")))?;
        let made_for = config.platform();
        let platform = match (wanted, &made_for) {
            (Wanted::For(wanted), Some(it)) if it != wanted => {
                let machine = if wanted.is_here() { "this machine is" } else { "wanted is" };
                return Err(refused(format!("it is made for {it}, {machine} {wanted}")));
            }
            (Wanted::For(it), _) => it.clone(),
            (Wanted::AsItIs, made_for) => made_for.clone().unwrap_or_else(Platform::here),
        };
        futures::stream::iter(manifest.layers.iter().map(Ok))
            .try_for_each_concurrent(PARALLEL, |layer| remote.blob(self, layer, BLOB_BYTES_MAX))
            .await?;
        // The manifest last: once it is here, everything that it names is.
        self.put_blob_as(&bytes, &digest)?;
        if reference.tag.is_some() {
            let kind = if kind.is_empty() { media_type::MANIFEST } else { &kind };
            match platform.is_here() {
                true => self.tag_pulled(reference, &digest, kind, named.as_ref())?,
                false => self.tag_pulled(&for_other_platform(reference, &platform), &digest, kind, None)?,
            }
        }
        tracing::info!(image = %reference, %digest, "pulled");
        Ok(digest)
    }
}

impl ImageStore {
    /// Fetches the manifest or index that a name stands for at its registry as it is, and tags it; nothing that
    /// it names is fetched. For whoever serves it on.
    pub async fn fetch_manifest(&self, reference: &Reference) -> Result<Digest, Error> {
        let mut fetched = None;
        let mut failure = None;
        for remote in Remote::all_for_pull(self, reference, &[]).await? {
            match remote.named_manifest(reference).await {
                Ok(it) => {
                    fetched = Some((remote, it));
                    break;
                }
                Err(it) => failure = Some(it),
            }
        }
        let Some((remote, (kind, bytes, digest))) = fetched else {
            return Err(failure.expect("the registry itself is always asked").into());
        };
        let document: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|it| remote.refused(format!("bad manifest: {it}")))?;
        if document["schemaVersion"] != 2 {
            return Err(remote
                .refused("it is in Docker's schema 1, which nobody should use any more")
                .into());
        }
        self.put_blob_as(&bytes, &digest)?;
        if reference.tag.is_some() {
            let default = if is_index(&kind, &bytes) { media_type::INDEX } else { media_type::MANIFEST };
            self.tag_pulled(reference, &digest, if kind.is_empty() { default } else { &kind }, None)?;
        }
        Ok(digest)
    }

    /// Fetches one blob of a repository at its registry, unless it is here.
    pub async fn fetch_blob(&self, reference: &Reference, digest: &Digest) -> Result<(), Error> {
        let mut failure = None;
        for remote in Remote::all_for_pull(self, reference, &[]).await? {
            match remote.whole_blob(self, digest).await {
                Ok(()) => return Ok(()),
                Err(it) => failure = Some(it),
            }
        }
        Err(failure.expect("the registry itself is always asked"))
    }
}

/// Which image of a name is meant.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    For(&'a Platform),
    AsItIs,
}

/// What an index has instead, for a message.
fn variants(index: &Index) -> String {
    let platforms = index.manifests.iter().filter_map(|it| it.platform.as_ref());
    let names: Vec<String> =
        platforms.filter(|it| it.os != "unknown").map(|it| it.plain().to_string()).collect();
    if names.is_empty() { String::new() } else { format!("; it has {}", names.join(", ")) }
}

fn is_index(kind: &str, bytes: &[u8]) -> bool {
    // The media type may lie or be missing; what decides is what the document holds.
    match serde_json::from_slice::<serde_json::Value>(bytes) {
        Ok(it) => it["manifests"].is_array() && it["layers"].is_null(),
        Err(_) => kind == media_type::INDEX || kind == media_type::DOCKER_INDEX,
    }
}

fn check(manifest: &Manifest) -> Result<(), String> {
    if manifest.schema_version != 2 {
        return Err("it is in Docker's schema 1, which nobody should use any more".into());
    }
    if manifest.layers.len() > LAYERS_MAX {
        return Err(format!("it has more than {LAYERS_MAX} layers"));
    }
    for layer in &manifest.layers {
        let kind = &layer.media_type;
        if kind.contains("foreign") || kind.contains("nondistributable") {
            return Err("it has a layer that is to be fetched from somewhere else".into());
        }
        let known = [
            media_type::LAYER,
            media_type::LAYER_GZIP,
            media_type::LAYER_ZSTD,
            media_type::DOCKER_LAYER,
            media_type::DOCKER_LAYER_GZIP,
        ];
        if !known.contains(&kind.as_str()) {
            return Err(format!("it has a layer of the unknown type `{kind}`"));
        }
    }
    Ok(())
}

impl Remote {
    /// Media type, bytes and digest of the manifest or index that a name stands for, held against the digest that
    /// the name may have.
    async fn named_manifest(
        &self,
        reference: &Reference,
    ) -> Result<(String, Vec<u8>, Digest), RegistryError> {
        let (wanted, expected) = match &reference.digest {
            Some(it) => (it.to_string(), Some(it)),
            None => (reference.tag.clone().unwrap_or_else(|| "latest".into()), None),
        };
        let (kind, bytes) = self.manifest(&wanted).await?;
        let digest = expected.map_or_else(|| Digest::of(&bytes), |it| it.same_kind_of(&bytes));
        if expected.is_some_and(|it| *it != digest) {
            let why = format!("the registry sent {digest} instead of the digest that was asked for");
            return Err(self.refused(why));
        }
        Ok((kind, bytes, digest))
    }

    /// Fetches a blob into the store, unless it is there.
    pub(crate) async fn blob(
        &self,
        store: &ImageStore,
        blob: &Descriptor,
        bytes_max: u64,
    ) -> Result<(), Error> {
        if store.blob_size(&blob.digest) == Some(blob.size) {
            return Ok(());
        }
        let _held = store.inner.under_way.hold(&blob.digest).await;
        if store.blob_size(&blob.digest) == Some(blob.size) {
            return Ok(()); // somebody else was faster
        }
        let refused = |why: String| self.refused(why);
        if blob.size > bytes_max {
            return Err(refused(format!("blob {} says to have {} bytes", blob.digest, blob.size)).into());
        }
        let partial = store.dir().join("tmp").join(format!("pull-{}", blob.digest.hex()));
        for attempt in 1.. {
            match self.fetch(blob, &partial).await {
                Ok(()) => break,
                Err(it) if it.is_passing() && attempt < TRIES_MAX => {
                    tracing::warn!(blob = %blob.digest, attempt, error = %it, "pull interrupted, going on");
                    tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                }
                Err(it) => return Err(it.into()),
            }
        }
        let (store, expected, name) = (store.clone(), blob.digest.clone(), self.name.clone());
        tokio::task::spawn_blocking(move || {
            let fail = |source| RegistryError::Write { path: partial.clone(), source };
            let mut file = std::fs::File::open(&partial).map_err(fail)?;
            let digest = expected.same_kind_of_file(&mut file).map_err(fail)?;
            if digest != expected {
                std::fs::remove_file(&partial).map_err(fail)?;
                let why = format!("blob {expected} has other content: {digest}");
                return Err(Error::from(RegistryError::Refused { name, why }));
            }
            store.adopt_blob(&partial, &expected)
        })
        .await
        .map_err(|_| Error::Task)?
    }

    /// A blob of which only the digest is known.
    async fn whole_blob(&self, store: &ImageStore, digest: &Digest) -> Result<(), Error> {
        let head = self.send(Method::HEAD, &self.url(&format!("blobs/{digest}")), |it| it).await?;
        let head = self.checked(head, &format!("blob {digest}")).await?;
        let length = head.headers().get(reqwest::header::CONTENT_LENGTH).and_then(|it| it.to_str().ok());
        let size = length.and_then(|it| it.parse().ok());
        let size =
            size.ok_or_else(|| self.refused(format!("its registry does not tell the size of {digest}")))?;
        self.blob(store, &Descriptor::new(media_type::LAYER, digest.clone(), size), BLOB_BYTES_MAX).await
    }

    async fn fetch(&self, blob: &Descriptor, partial: &std::path::Path) -> Result<(), RegistryError> {
        let fail = |source| RegistryError::Write { path: partial.to_owned(), source };
        let mut have = partial.metadata().map(|it| it.len()).unwrap_or(0);
        if have > blob.size {
            std::fs::File::create(partial).and_then(|mut it| it.flush()).map_err(fail)?;
            have = 0;
        }
        if have == blob.size && blob.size > 0 {
            return Ok(());
        }
        let url = self.url(&format!("blobs/{}", blob.digest));
        let ranged = |it: reqwest::RequestBuilder| match have {
            0 => it,
            have => it.header(RANGE, format!("bytes={have}-")),
        };
        let response = self.send(Method::GET, &url, ranged).await?;
        let mut response = self.checked(response, &format!("blob {}", blob.digest)).await?;
        let mut options = tokio::fs::OpenOptions::new();
        options.create(true).write(true);
        let is_resumed = response.status() == StatusCode::PARTIAL_CONTENT;
        if is_resumed {
            options.append(true);
        } else {
            options.truncate(true);
            have = 0;
        }
        let mut file = options.open(partial).await.map_err(fail)?;
        loop {
            let chunk = response.chunk().await;
            let Some(chunk) = (match chunk {
                Ok(it) => it,
                Err(it) => {
                    file.flush().await.map_err(fail)?;
                    return Err(self.unreachable(it));
                }
            }) else {
                break;
            };
            have += chunk.len() as u64;
            if have > blob.size {
                return Err(RegistryError::Refused {
                    name: self.name.clone(),
                    why: format!("blob {} is larger than its manifest says", blob.digest),
                });
            }
            file.write_all(&chunk).await.map_err(fail)?;
        }
        file.flush().await.map_err(fail)?;
        if have < blob.size {
            return Err(RegistryError::Refused {
                name: self.name.clone(),
                why: format!("blob {} is smaller than its manifest says", blob.digest),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_layers_and_schema_1_are_refused() {
        let layer = |kind: &str| Manifest {
            schema_version: 2,
            media_type: String::new(),
            config: Descriptor::new(media_type::CONFIG, Digest::of(""), 0),
            layers: vec![Descriptor::new(kind, Digest::of(""), 0)],
            annotations: Default::default(),
        };
        assert!(check(&layer(media_type::LAYER_GZIP)).is_ok());
        assert!(check(&layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")).is_err());
        assert!(check(&layer("text/html")).is_err());
        assert!(check(&Manifest { schema_version: 1, ..layer(media_type::LAYER_GZIP) }).is_err());
    }
}
