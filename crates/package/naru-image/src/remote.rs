//! Talking to a registry over the distribution API: the way in (mirrors, token or basic authentication,
//! credentials), and the answers that mean something. What is fetched is `pull`'s business, what is sent `push`'s.

use crate::oci::{Descriptor, media_type};
use crate::reference::Reference;
use crate::store::{Credential, ImageStore};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

pub(crate) const MANIFEST_BYTES_MAX: usize = 4 << 20; // as most registries
pub(crate) const TRIES_MAX: u32 = 5; // a broken connection goes on where it was
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const READ_TIMEOUT: Duration = Duration::from_secs(60); // silence, not duration

/// What goes wrong between us and a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot reach registry {registry}{}", chain(.source))]
    Unreachable { registry: String, source: reqwest::Error },
    #[error("registry {registry} has no image `{name}`")]
    NotFound { registry: String, name: String },
    #[error(
        "registry {registry} does not let us {what} `{name}`; check the name, \
         or give Naru credentials for that registry"
    )]
    Denied { registry: String, name: String, what: &'static str },
    #[error("registry {registry} answered {status} for {what}{}", said(.message))]
    Status { registry: String, status: u16, what: String, message: String },
    #[error("image `{name}` is refused: {why}")]
    Refused { name: String, why: String },
    #[error("cannot keep what was pulled in `{path}`")]
    Write { path: PathBuf, source: io::Error },
}

impl RegistryError {
    /// The line broke, or the registry had a bad moment: the same request may succeed.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Status { status: 500.. | 429, .. })
    }
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

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// One HTTP client for all registries, made when the first is asked.
#[derive(Default)]
pub(crate) struct Clients(OnceLock<reqwest::Client>);

impl Clients {
    fn get(&self, registry: &str) -> Result<reqwest::Client, RegistryError> {
        if let Some(it) = self.0.get() {
            return Ok(it.clone());
        }
        let built = reqwest::Client::builder()
            .user_agent("naru")
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|source| RegistryError::Unreachable { registry: registry.to_owned(), source })?;
        Ok(self.0.get_or_init(|| built).clone())
    }
}

/// What is wanted of a repository, as token servers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// One repository at one registry (or at a mirror of it).
pub(crate) struct Remote {
    client: reqwest::Client,
    /// As the user named it.
    pub(crate) registry: String,
    repository: String,
    /// The image's name, for messages.
    pub(crate) name: String,
    origin: String,
    access: Access,
    is_insecure: bool,
    credential: Option<Credential>,
    authorization: Mutex<Option<String>>,
}

impl Remote {
    /// The places to ask for an image, best first: the mirrors of its registry, then the registry itself.
    pub(crate) async fn all_for_pull(
        store: &ImageStore,
        reference: &Reference,
        credentials: &[Credential],
    ) -> Result<Vec<Self>, RegistryError> {
        let mut remotes = Vec::new();
        for (registry, mirror) in &store.inner.config.mirrors {
            if *registry == reference.registry {
                remotes.push(Self::open(store, reference, credentials, Access::Pull, Some(mirror)).await?);
            }
        }
        remotes.push(Self::open(store, reference, credentials, Access::Pull, None).await?);
        Ok(remotes)
    }

    /// `mirror` is `host:port` or a URL; without one the registry itself is meant.
    pub(crate) async fn open(
        store: &ImageStore,
        reference: &Reference,
        credentials: &[Credential],
        access: Access,
        mirror: Option<&str>,
    ) -> Result<Self, RegistryError> {
        let config = &store.inner.config;
        let registry = mirror.unwrap_or(&reference.registry);
        let client = store.inner.clients.get(registry)?;
        let (scheme, host) = match registry.split_once("://") {
            Some((scheme, host)) => (Some(scheme), host.trim_end_matches('/')),
            None => (None, registry),
        };
        let is_insecure = scheme.map_or_else(
            || is_loopback(host) || config.insecure_registries.iter().any(|it| it == host),
            |it| it == "http",
        );
        let address = if host == "docker.io" { "registry-1.docker.io" } else { host };
        let known = credentials.iter().chain(&config.credentials).find(|it| it.registry == host).cloned();
        let credential = match (known, &config.docker_config) {
            (None, Some(path)) => crate::credentials::find(path, host).await,
            (known, _) => known.filter(|it| !it.user.is_empty() || !it.password.is_empty()),
        };
        Ok(Self {
            client,
            registry: host.to_owned(),
            repository: reference.repository.clone(),
            name: reference.familiar(),
            origin: format!("{}://{address}", if is_insecure { "http" } else { "https" }),
            access,
            is_insecure,
            credential,
            authorization: Mutex::default(),
        })
    }

    /// A path below the repository as a URL.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/v2/{}/{path}", self.origin, self.repository)
    }

    /// What a `Location` header means: absolute, or relative to the registry.
    pub(crate) fn locate(&self, location: &str) -> String {
        if location.contains("://") { location.to_owned() } else { format!("{}{location}", self.origin) }
    }

    pub(crate) fn refused(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::Refused { name: self.name.clone(), why: why.into() }
    }

    pub(crate) fn unreachable(&self, source: reqwest::Error) -> RegistryError {
        RegistryError::Unreachable { registry: self.registry.clone(), source }
    }

    /// A request that logs in once if it is told to. It is made by `build`, because it may be sent twice.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        build: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        for is_second in [false, true] {
            let mut request = build(self.client.request(method.clone(), url));
            // Never to another host: an upload's location may be a signed address elsewhere.
            if let Some(it) = self.authorization().as_ref().filter(|_| url.starts_with(&self.origin)) {
                request = request.header(AUTHORIZATION, it);
            }
            let response = request.send().await.map_err(|it| self.unreachable(it))?;
            if response.status() != StatusCode::UNAUTHORIZED || is_second {
                return Ok(response);
            }
            let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|it| it.to_str().ok());
            let authorization = self.log_in(challenge.unwrap_or("")).await?;
            *self.authorization() = Some(authorization);
        }
        unreachable!("the second answer is returned whatever it is")
    }

    /// Sends the credentials before a body is sent that cannot be sent twice.
    pub(crate) async fn introduce(&self) -> Result<(), RegistryError> {
        self.send(Method::GET, &format!("{}/v2/", self.origin), |it| it).await.map(|_| ())
    }

    fn authorization(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn denied(&self) -> RegistryError {
        let what = if self.access == Access::Push { "write" } else { "read" };
        RegistryError::Denied { registry: self.registry.clone(), name: self.name.clone(), what }
    }

    async fn log_in(&self, challenge: &str) -> Result<String, RegistryError> {
        let denied = || self.denied();
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
            return Err(self.refused("its registry wants our credentials sent without encryption"));
        }
        // What we want is what is asked for: the challenge to the first, reading request names reading alone.
        let actions = if self.access == Access::Push { "pull,push" } else { "pull" };
        let scope = format!("repository:{}:{actions}", self.repository);
        let mut url = reqwest::Url::parse(realm).map_err(|_| denied())?;
        if let Some(service) = fields.get("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &scope);
        let mut request = self.client.get(url);
        if let Some(basic) = basic {
            request = request.header(AUTHORIZATION, basic);
        }
        let response = request.send().await.map_err(|it| self.unreachable(it))?;
        if !response.status().is_success() {
            return Err(denied());
        }
        let answer: serde_json::Value = response.json().await.map_err(|it| self.unreachable(it))?;
        let token =
            answer["token"].as_str().or_else(|| answer["access_token"].as_str()).ok_or_else(denied)?;
        Ok(format!("Bearer {token}"))
    }

    /// The answer, or what its status means.
    pub(crate) async fn checked(&self, response: Response, what: &str) -> Result<Response, RegistryError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let registry = self.registry.clone();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied()),
            StatusCode::NOT_FOUND if self.access == Access::Pull => {
                Err(RegistryError::NotFound { registry, name: self.name.clone() })
            }
            _ => {
                let body = response.bytes().await.unwrap_or_default();
                let document: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
                let message = document["errors"][0]["message"].as_str().unwrap_or_default();
                let message = message.chars().take(300).collect();
                Err(RegistryError::Status {
                    registry,
                    status: status.as_u16(),
                    what: what.to_owned(),
                    message,
                })
            }
        }
    }

    /// Media type and bytes of a manifest or an index, by tag or digest.
    pub(crate) async fn manifest(&self, wanted: &str) -> Result<(String, Vec<u8>), RegistryError> {
        let accept =
            [media_type::MANIFEST, media_type::DOCKER_MANIFEST, media_type::INDEX, media_type::DOCKER_INDEX];
        let url = self.url(&format!("manifests/{wanted}"));
        let response = self.send(Method::GET, &url, |it| it.header(ACCEPT, accept.join(", "))).await?;
        let response = self.checked(response, &format!("manifest {wanted}")).await?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_owned();
        let bytes = self.small(response, "its manifest").await?;
        Ok((kind, bytes))
    }

    /// A document below the repository that is no manifest.
    pub(crate) async fn small_json(&self, path: &str) -> Result<Vec<u8>, RegistryError> {
        let response = self.send(Method::GET, &self.url(path), |it| it).await?;
        self.small(self.checked(response, path).await?, path).await
    }

    /// A blob that is read where it is wanted and not kept.
    pub(crate) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let bytes = self.small_json(&format!("blobs/{}", blob.digest)).await?;
        match blob.digest.same_kind_of(&bytes) == blob.digest {
            true => Ok(bytes),
            false => Err(self.refused(format!("blob {} has other content", blob.digest))),
        }
    }

    /// The whole body.
    async fn small(&self, mut response: Response, what: &str) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|it| self.unreachable(it))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MANIFEST_BYTES_MAX {
                return Err(self.refused(format!("{what} is larger than 4 MiB")));
            }
        }
        Ok(bytes)
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |it| it.0);
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
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
}
