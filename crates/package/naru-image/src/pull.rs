//! Pulling from a registry over the distribution API: token or basic authentication, an index narrowed to
//! this machine's platform, blobs that resume where they broke off, digests checked over the raw bytes.
//!
//! Nothing outside the registry is ever fetched: a layer that names other URLs (a "foreign" layer) is
//! refused, because those would be requests that the image's author makes us do.

use crate::digest::{Digest, Hashing};
use crate::oci::{Descriptor, ImageConfig, Index, Manifest, architecture, media_type};
use crate::reference::Reference;
use crate::remote::{RegistryError, Remote, TRIES_MAX};
use crate::store::{Credential, Error, ImageStore, LAYERS_MAX};
use futures::TryStreamExt;
use reqwest::header::RANGE;
use reqwest::{Method, StatusCode};
use std::io::{self, Write};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const CONFIG_BYTES_MAX: u64 = 8 << 20; // the largest seen is a few hundred KiB
const BLOB_BYTES_MAX: u64 = 32 << 30; // bounds what one pull can put on the disk
const PARALLEL: usize = 3; // one download seldom fills a line

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
        let _turn = self.inner.turn.0.lock().await;
        let mut remotes = Remote::all_for_pull(self, reference, credentials).await?;
        let origin = remotes.pop().expect("the registry itself is always among them");
        for mirror in remotes {
            match self.pull_from(&mirror, reference).await {
                Ok(digest) => return Ok(digest),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(mirror = mirror.registry, image = %reference, error, "not to be had from a mirror");
                }
            }
        }
        self.pull_from(&origin, reference).await
    }

    async fn pull_from(&self, remote: &Remote, reference: &Reference) -> Result<Digest, Error> {
        let refused = |why: String| Error::from(remote.refused(why));
        let wanted = match &reference.digest {
            Some(it) => it.to_string(),
            None => reference.tag.clone().unwrap_or_else(|| "latest".into()),
        };
        let (mut kind, mut bytes) = remote.manifest(&wanted).await?;
        let mut digest = Digest::of(&bytes);
        if let Some(expected) = &reference.digest
            && *expected != digest
        {
            return Err(refused(format!(
                "the registry sent {digest} instead of the digest that was asked for"
            )));
        }
        if is_index(&kind, &bytes) {
            let index: Index =
                serde_json::from_slice(&bytes).map_err(|it| refused(format!("bad index: {it}")))?;
            let ours = |it: &&Descriptor| {
                it.platform.as_ref().is_some_and(|it| it.os == "linux" && it.architecture == architecture())
            };
            let entry = index
                .manifests
                .iter()
                .find(ours)
                .ok_or_else(|| refused(format!("it has no variant for linux/{}", architecture())))?;
            (kind, bytes) = remote.manifest(entry.digest.as_str()).await?;
            digest = Digest::of(&bytes);
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
        if !config.architecture.is_empty() && config.architecture != architecture() {
            return Err(refused(format!(
                "it is made for {}, this machine is {}",
                config.architecture,
                architecture()
            )));
        }
        futures::stream::iter(manifest.layers.iter().map(Ok))
            .try_for_each_concurrent(PARALLEL, |layer| remote.blob(self, layer, BLOB_BYTES_MAX))
            .await?;
        // The manifest last: once it is here, everything that it names is.
        self.put_blob(&bytes)?;
        if reference.tag.is_some() {
            let kind = if kind.is_empty() { media_type::MANIFEST } else { &kind };
            self.tag(reference, &digest, kind)?;
        }
        tracing::info!(image = %reference, %digest, "pulled");
        Ok(digest)
    }
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
            let file = std::fs::File::open(&partial).map_err(fail)?;
            file.sync_all().map_err(fail)?;
            let mut hashing = Hashing::new(&file);
            io::copy(&mut hashing, &mut io::sink()).map_err(fail)?;
            let (_, digest, _) = hashing.finish();
            if digest != expected {
                std::fs::remove_file(&partial).map_err(fail)?;
                let why = format!("blob {expected} has other content: {digest}");
                return Err(Error::from(RegistryError::Refused { name, why }));
            }
            std::fs::rename(&partial, store.blob_path(&expected)).map_err(fail)?;
            crate::store::sync_directory(&store.dir().join("blobs/sha256"))
        })
        .await
        .map_err(|_| Error::Task)?
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
