//! Pushing to a registry over the distribution API: blobs that are there already are not sent, those that
//! another repository of the registry has are mounted, uploads go on where they broke off; the manifest comes
//! last, and before an index the images that it names.

use crate::Credential;
use crate::digest::Digest;
use crate::oci::{ANNOTATION_BASE, Descriptor, media_type};
use crate::reference::Reference;
use crate::remote::{Access, MANIFEST_BYTES_MAX, RegistryError, Remote, TRIES_MAX};
use crate::store::{Error, ImageStore, io_error};
use futures::{StreamExt, TryStreamExt};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode};
use serde_json::Value;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

const PARALLEL: usize = 3; // one upload seldom fills a line
const CHUNK: usize = 256 * 1024;

/// What a push does, as it happens. Digests are of blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushEvent {
    /// The registry has it.
    Exists(Digest),
    /// It was taken from another repository of the same registry.
    Mounted {
        digest: Digest,
        from: String,
    },
    Pushing {
        digest: Digest,
        size: u64,
    },
    Pushed(Digest),
    /// The manifest is there, under this name.
    Done {
        digest: Digest,
        size: u64,
        name: String,
    },
}

impl ImageStore {
    /// Sends the image or index with this manifest to the registry that `target` names, and everything that it
    /// needs before it. `progress` hears of each blob.
    pub async fn push(
        &self,
        manifest: &Digest,
        target: &Reference,
        credentials: &[Credential],
        progress: &(dyn Fn(PushEvent) + Send + Sync),
    ) -> Result<(), Error> {
        let remote = Remote::open(self, target, credentials, Access::Push, None).await?;
        remote.introduce().await?;
        let tag = match (&target.tag, &target.digest) {
            (Some(tag), _) => tag.clone(),
            (None, Some(digest)) => digest.to_string(),
            (None, None) => "latest".into(),
        };
        self.push_manifest(&remote, target, manifest, &tag, progress).await
    }

    async fn push_manifest(
        &self,
        remote: &Remote,
        target: &Reference,
        manifest: &Digest,
        reference: &str,
        progress: &(dyn Fn(PushEvent) + Send + Sync),
    ) -> Result<(), Error> {
        let bytes = self.read_blob("manifest", manifest, MANIFEST_BYTES_MAX as u64)?;
        let document: Value = serde_json::from_slice(&bytes)
            .map_err(|it| remote.refused(format!("its manifest {manifest} is damaged: {it}")))?;
        if document["annotations"][ANNOTATION_BASE] == "host" {
            return Err(Error::OverHost(manifest.clone()));
        }
        let is_index = document["manifests"].is_array();
        if is_index {
            for entry in descriptors(&document["manifests"]) {
                let digest = entry.digest.to_string();
                Box::pin(self.push_manifest(remote, target, &entry.digest, &digest, progress)).await?;
            }
        } else {
            let mut blobs = descriptors(&document["layers"]);
            blobs.extend(serde_json::from_value::<Descriptor>(document["config"].clone()).ok());
            futures::stream::iter(blobs.iter().map(Ok::<_, Error>))
                .try_for_each_concurrent(PARALLEL, |blob| self.push_blob(remote, target, blob, progress))
                .await?;
        }
        let default = if is_index { media_type::INDEX } else { media_type::MANIFEST };
        let kind = document["mediaType"].as_str().unwrap_or(default).to_owned();
        let size = bytes.len() as u64;
        let url = remote.url(&format!("manifests/{reference}"));
        let put = |it: reqwest::RequestBuilder| it.header(CONTENT_TYPE, &kind).body(bytes.clone());
        let response = remote.send(Method::PUT, &url, put).await?;
        remote.checked(response, &format!("manifest {reference}")).await?;
        progress(PushEvent::Done { digest: manifest.clone(), size, name: reference.to_owned() });
        Ok(())
    }

    async fn push_blob(
        &self,
        remote: &Remote,
        target: &Reference,
        blob: &Descriptor,
        progress: &(dyn Fn(PushEvent) + Send + Sync),
    ) -> Result<(), Error> {
        let digest = &blob.digest;
        let head = remote.send(Method::HEAD, &remote.url(&format!("blobs/{digest}")), |it| it).await?;
        if head.status() == StatusCode::OK {
            progress(PushEvent::Exists(digest.clone()));
            return Ok(());
        }
        let size = self.blob_size(digest).ok_or_else(|| {
            remote.refused(format!("its blob {digest} is not on this machine; pull or build the image again"))
        })?;
        let other = self.repository_with(target, digest)?;
        let query = other.as_ref().map(|it| format!("?mount={digest}&from={it}")).unwrap_or_default();
        let url = remote.url(&format!("blobs/uploads/{query}"));
        let begun = remote.send(Method::POST, &url, |it| it.header(CONTENT_LENGTH, "0")).await?;
        let begun = remote.checked(begun, "an upload").await?;
        if begun.status() == StatusCode::CREATED {
            progress(PushEvent::Mounted { digest: digest.clone(), from: other.unwrap_or_default() });
            return Ok(());
        }
        progress(PushEvent::Pushing { digest: digest.clone(), size });
        let mut location = location(remote, &begun)?;
        let mut sent = 0;
        for attempt in 1.. {
            match self.send_rest(remote, digest, &location, sent, size).await {
                Ok(next) => {
                    location = next;
                    break;
                }
                Err(Error::Registry(it)) if it.is_passing() && attempt < TRIES_MAX => {
                    tracing::warn!(blob = %digest, attempt, error = %it, "push interrupted, going on");
                    tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                    // The registry says how much of it came.
                    let state = remote.send(Method::GET, &location, |it| it).await?;
                    let state = remote.checked(state, "an upload's state").await?;
                    sent = received(&state);
                    location = self::location(remote, &state).unwrap_or(location);
                }
                Err(it) => return Err(it),
            }
        }
        let separator = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{separator}digest={digest}");
        let put = |it: reqwest::RequestBuilder| it.header(CONTENT_LENGTH, "0");
        let response = remote.send(Method::PUT, &url, put).await?;
        remote.checked(response, &format!("blob {digest}")).await?;
        progress(PushEvent::Pushed(digest.clone()));
        Ok(())
    }

    /// Sends a blob from byte `start` on; returns where its upload goes on.
    async fn send_rest(
        &self,
        remote: &Remote,
        digest: &Digest,
        url: &str,
        start: u64,
        size: u64,
    ) -> Result<String, Error> {
        if start >= size {
            return Ok(url.to_owned());
        }
        let path = self.blob_path(digest);
        let mut file = tokio::fs::File::open(&path).await.map_err(io_error("read", &path))?;
        file.seek(io::SeekFrom::Start(start)).await.map_err(io_error("read", &path))?;
        let body = std::sync::Mutex::new(Some(ReaderStream::with_capacity(file.take(size - start), CHUNK)));
        let response = remote
            .send(Method::PATCH, url, |it| {
                let taken = body.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                let mut it = it.header(CONTENT_TYPE, "application/octet-stream");
                if start > 0 {
                    it = it.header(CONTENT_RANGE, format!("{start}-{}", size - 1));
                }
                match taken {
                    Some(stream) => {
                        it.header(CONTENT_LENGTH, size - start).body(Body::wrap_stream(stream.boxed()))
                    }
                    None => it, // sent once already: only the refusal of a second login comes of this
                }
            })
            .await?;
        let response = remote.checked(response, &format!("blob {digest}")).await?;
        Ok(location(remote, &response)?)
    }

    /// Another repository of the same registry that should have a blob, because an image of it is here.
    fn repository_with(&self, target: &Reference, blob: &Digest) -> Result<Option<String>, Error> {
        for (name, manifest) in self.tags()? {
            let Ok(name) = Reference::parse(&name) else { continue };
            if name.registry != target.registry || name.repository == target.repository {
                continue;
            }
            let Ok(manifest) = self.manifest(&manifest.digest) else { continue };
            if manifest.layers.iter().any(|it| it.digest == *blob) {
                return Ok(Some(name.repository));
            }
        }
        Ok(None)
    }
}

fn descriptors(list: &Value) -> Vec<Descriptor> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|it| serde_json::from_value(it.clone()).ok()).collect()
}

fn location(remote: &Remote, response: &Response) -> Result<String, RegistryError> {
    let location = response.headers().get(LOCATION).and_then(|it| it.to_str().ok());
    location
        .map(|it| remote.locate(it))
        .ok_or_else(|| remote.refused("its registry does not say where to upload"))
}

/// How many bytes of an upload have come: `Range: 0-99` means a hundred.
fn received(response: &Response) -> u64 {
    let range = response.headers().get(RANGE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let last = range.trim_start_matches("bytes=").split_once('-').and_then(|it| it.1.parse::<u64>().ok());
    last.map_or(0, |it| if it == 0 { 0 } else { it + 1 })
}
