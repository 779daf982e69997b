//! Pulling from a registry over the distribution API: token or basic authentication, an index narrowed to
//! this machine's platform, blobs that resume where they broke off, digests checked over the raw bytes.
//!
//! Nothing outside the registry is ever fetched: a layer that names other URLs (a "foreign" layer) is
//! refused, because those would be requests that the image's author makes us do.

use crate::digest::{Digest, Hashing};
use crate::oci::{Descriptor, ImageConfig, Index, Manifest, architecture, media_type};
use crate::reference::Reference;
use crate::store::{Credential, Error, ImageStore, LAYERS_MAX};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, RANGE, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const MANIFEST_BYTES_MAX: usize = 4 << 20; // as most registries
const CONFIG_BYTES_MAX: u64 = 8 << 20; // the largest seen is a few hundred KiB
const BLOB_BYTES_MAX: u64 = 32 << 30; // bounds what one pull can put on the disk
const TRIES_MAX: u32 = 5; // a broken connection goes on where it was
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60); // silence, not duration

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("cannot reach registry {registry}{}", chain(.source))]
    Unreachable { registry: String, source: reqwest::Error },
    #[error("registry {registry} has no image `{name}`")]
    NotFound { registry: String, name: String },
    #[error(
        "registry {registry} does not let us read `{name}`; check the name, \
         or give Naru credentials for that registry"
    )]
    Denied { registry: String, name: String },
    #[error("registry {registry} answered {status} for {what}")]
    Status { registry: String, status: u16, what: String },
    #[error("image `{name}` is refused: {why}")]
    Refused { name: String, why: String },
    #[error("cannot keep what was pulled in `{path}`")]
    Write { path: PathBuf, source: io::Error },
}

/// reqwest's own text says only "error sending request"; the cause is what helps.
fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(it) = source {
        text = format!("{text}: {it}");
        source = it.source();
    }
    text
}

/// One at a time: two pods that want the same image must not fetch it twice, and two pulls side by side
/// only share one line.
pub(crate) struct Puller {
    turn: tokio::sync::Mutex<()>,
    client: OnceLock<reqwest::Client>,
}

impl Puller {
    pub(crate) fn new() -> Self {
        Self { turn: tokio::sync::Mutex::default(), client: OnceLock::new() }
    }
}

struct Session<'a> {
    client: reqwest::Client,
    reference: &'a Reference,
    base: String,
    is_insecure: bool,
    credential: Option<Credential>,
    authorization: Option<String>,
}

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
        let _turn = self.inner.puller.turn.lock().await;
        let mut session = Session::open(self, reference, credentials)?;
        let refused = |why: String| Error::from(PullError::Refused { name: reference.familiar(), why });
        let wanted = match &reference.digest {
            Some(it) => it.to_string(),
            None => reference.tag.clone().unwrap_or_else(|| "latest".into()),
        };
        let (mut kind, mut bytes) = session.manifest(&wanted).await?;
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
            (kind, bytes) = session.manifest(entry.digest.as_str()).await?;
            digest = Digest::of(&bytes);
            if digest != entry.digest || is_index(&kind, &bytes) {
                return Err(refused("its index and its manifest disagree".into()));
            }
        }
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|it| refused(format!("not a manifest that we can read: {it}")))?;
        check(&manifest).map_err(refused)?;

        session.blob(self, &manifest.config, CONFIG_BYTES_MAX).await?;
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
        for layer in &manifest.layers {
            session.blob(self, layer, BLOB_BYTES_MAX).await?;
        }
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

impl<'a> Session<'a> {
    fn open(
        store: &'a ImageStore,
        reference: &'a Reference,
        credentials: &[Credential],
    ) -> Result<Self, Error> {
        let config = &store.inner.config;
        let client = match store.inner.puller.client.get() {
            Some(it) => it.clone(),
            None => {
                let built = reqwest::Client::builder()
                    .user_agent("naru")
                    .connect_timeout(CONNECT_TIMEOUT)
                    .read_timeout(READ_TIMEOUT)
                    .build()
                    .map_err(|source| PullError::Unreachable {
                        registry: reference.registry.clone(),
                        source,
                    })?;
                store.inner.puller.client.get_or_init(|| built).clone()
            }
        };
        let host = match reference.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let name = host.rsplit_once(':').map_or(host, |it| it.0);
        let is_loopback = matches!(name, "localhost" | "127.0.0.1" | "[::1]");
        let is_insecure = is_loopback || config.insecure_registries.iter().any(|it| it == host);
        let scheme = if is_insecure { "http" } else { "https" };
        let credential = credentials
            .iter()
            .chain(&config.credentials)
            .find(|it| it.registry == reference.registry)
            .cloned();
        Ok(Self {
            client,
            reference,
            base: format!("{scheme}://{host}/v2/{}", reference.repository),
            is_insecure,
            credential,
            authorization: None,
        })
    }

    /// A request that logs in once if it is told to.
    async fn get(&mut self, url: &str, headers: &[(HeaderName, String)]) -> Result<Response, PullError> {
        let response = self.send(url, headers).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenge =
            response.headers().get(WWW_AUTHENTICATE).and_then(|it| it.to_str().ok()).unwrap_or("");
        self.authorization = Some(self.log_in(challenge).await?);
        self.send(url, headers).await
    }

    async fn send(&self, url: &str, headers: &[(HeaderName, String)]) -> Result<Response, PullError> {
        let mut request = self.client.get(url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(it) = &self.authorization {
            request = request.header(AUTHORIZATION, it);
        }
        let registry = || self.reference.registry.clone();
        request.send().await.map_err(|source| PullError::Unreachable { registry: registry(), source })
    }

    async fn log_in(&self, challenge: &str) -> Result<String, PullError> {
        let denied = || PullError::Denied {
            registry: self.reference.registry.clone(),
            name: self.reference.familiar(),
        };
        let basic = self.credential.as_ref().map(|it| {
            use base64::Engine;
            let pair = format!("{}:{}", it.user, it.password);
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
        });
        let Some((scheme, rest)) = challenge.split_once(' ') else { return basic.ok_or_else(denied) };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return basic.ok_or_else(denied);
        }
        let fields = challenge_fields(rest);
        let realm = fields.get("realm").ok_or_else(denied)?;
        if !realm.starts_with("https://") && !self.is_insecure {
            return Err(PullError::Refused {
                name: self.reference.familiar(),
                why: "its registry wants our credentials sent without encryption".into(),
            });
        }
        let scope = fields
            .get("scope")
            .cloned()
            .unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        let mut url = reqwest::Url::parse(realm).map_err(|_| denied())?;
        if let Some(service) = fields.get("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &scope);
        let mut request = self.client.get(url);
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let unreachable =
            |source| PullError::Unreachable { registry: self.reference.registry.clone(), source };
        let response = request.send().await.map_err(unreachable)?;
        if !response.status().is_success() {
            return Err(denied());
        }
        let answer: serde_json::Value = response.json().await.map_err(unreachable)?;
        let token =
            answer["token"].as_str().or_else(|| answer["access_token"].as_str()).ok_or_else(denied)?;
        Ok(format!("Bearer {token}"))
    }

    fn status_error(&self, status: StatusCode, what: String) -> PullError {
        let registry = self.reference.registry.clone();
        match status {
            StatusCode::NOT_FOUND => PullError::NotFound { registry, name: self.reference.familiar() },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                PullError::Denied { registry, name: self.reference.familiar() }
            }
            other => PullError::Status { registry, status: other.as_u16(), what },
        }
    }

    async fn manifest(&mut self, wanted: &str) -> Result<(String, Vec<u8>), PullError> {
        let accept =
            [media_type::MANIFEST, media_type::DOCKER_MANIFEST, media_type::INDEX, media_type::DOCKER_INDEX];
        let url = format!("{}/manifests/{wanted}", self.base);
        let mut response = self.get(&url, &[(ACCEPT, accept.join(", "))]).await?;
        if !response.status().is_success() {
            return Err(self.status_error(response.status(), format!("manifest {wanted}")));
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_owned();
        let mut bytes = Vec::new();
        let unreachable =
            |source| PullError::Unreachable { registry: self.reference.registry.clone(), source };
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MANIFEST_BYTES_MAX {
                return Err(PullError::Refused {
                    name: self.reference.familiar(),
                    why: "its manifest is larger than 4 MiB".into(),
                });
            }
        }
        Ok((kind, bytes))
    }

    /// Fetches a blob into the store, unless it is there.
    async fn blob(&mut self, store: &ImageStore, blob: &Descriptor, bytes_max: u64) -> Result<(), Error> {
        if store.blob_size(&blob.digest) == Some(blob.size) {
            return Ok(());
        }
        let refused = |why: String| PullError::Refused { name: self.reference.familiar(), why };
        if blob.size > bytes_max {
            return Err(refused(format!("blob {} says to have {} bytes", blob.digest, blob.size)).into());
        }
        let partial = store.dir().join("tmp").join(format!("pull-{}", blob.digest.hex()));
        for attempt in 1.. {
            match self.fetch(blob, &partial).await {
                Ok(()) => break,
                Err(it @ (PullError::Unreachable { .. } | PullError::Status { status: 500.., .. }))
                    if attempt < TRIES_MAX =>
                {
                    tracing::warn!(blob = %blob.digest, attempt, error = %it, "pull interrupted, going on");
                    tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
                }
                Err(it) => return Err(it.into()),
            }
        }
        let (store, expected, name) = (store.clone(), blob.digest.clone(), self.reference.familiar());
        tokio::task::spawn_blocking(move || {
            let fail = |source| PullError::Write { path: partial.clone(), source };
            let file = std::fs::File::open(&partial).map_err(fail)?;
            file.sync_all().map_err(fail)?;
            let mut hashing = Hashing::new(&file);
            io::copy(&mut hashing, &mut io::sink()).map_err(fail)?;
            let (_, digest, _) = hashing.finish();
            if digest != expected {
                std::fs::remove_file(&partial).map_err(fail)?;
                let why = format!("blob {expected} has other content: {digest}");
                return Err(Error::from(PullError::Refused { name, why }));
            }
            std::fs::rename(&partial, store.blob_path(&expected)).map_err(fail)?;
            crate::store::sync_directory(&store.dir().join("blobs/sha256"))
        })
        .await
        .map_err(|_| Error::Task)?
    }

    async fn fetch(&mut self, blob: &Descriptor, partial: &std::path::Path) -> Result<(), PullError> {
        let fail = |source| PullError::Write { path: partial.to_owned(), source };
        let mut have = partial.metadata().map(|it| it.len()).unwrap_or(0);
        if have > blob.size {
            std::fs::File::create(partial).and_then(|mut it| it.flush()).map_err(fail)?;
            have = 0;
        }
        if have == blob.size && blob.size > 0 {
            return Ok(());
        }
        let range = (have > 0).then(|| (RANGE, format!("bytes={have}-")));
        let url = format!("{}/blobs/{}", self.base, blob.digest);
        let mut response = self.get(&url, range.as_slice()).await?;
        if !response.status().is_success() {
            return Err(self.status_error(response.status(), format!("blob {}", blob.digest)));
        }
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
        let unreachable =
            |source| PullError::Unreachable { registry: self.reference.registry.clone(), source };
        loop {
            let chunk = response.chunk().await;
            let Some(chunk) = (match chunk {
                Ok(it) => it,
                Err(it) => {
                    file.flush().await.map_err(fail)?;
                    return Err(unreachable(it));
                }
            }) else {
                break;
            };
            have += chunk.len() as u64;
            if have > blob.size {
                return Err(PullError::Refused {
                    name: self.reference.familiar(),
                    why: format!("blob {} is larger than its manifest says", blob.digest),
                });
            }
            file.write_all(&chunk).await.map_err(fail)?;
        }
        file.flush().await.map_err(fail)?;
        if have < blob.size {
            return Err(PullError::Refused {
                name: self.reference.familiar(),
                why: format!("blob {} is smaller than its manifest says", blob.digest),
            });
        }
        Ok(())
    }
}

/// `realm="...",service="...",scope="a,b"`: commas inside quotes do not separate.
fn challenge_fields(text: &str) -> HashMap<String, String> {
    let mut fields = HashMap::new();
    let mut rest = text.trim();
    while let Some((key, tail)) = rest.split_once('=') {
        let key = key.trim_matches([',', ' ']).to_ascii_lowercase();
        let (value, tail) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => tail.split_once(',').unwrap_or((tail, "")),
        };
        fields.insert(key, value.to_owned());
        rest = tail;
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_with_commas_in_quotes_is_read() {
        let fields =
            challenge_fields(r#"realm="https://a/token",service="x",scope="repository:a/b:pull,push""#);
        assert_eq!(fields["realm"], "https://a/token");
        assert_eq!(fields["scope"], "repository:a/b:pull,push");
    }

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
