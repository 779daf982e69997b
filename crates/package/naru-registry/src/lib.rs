//! The image store over HTTP, as the OCI distribution specification has it: docker, podman, skopeo and
//! containerd pull from it and push to it.
//!
//! Reading is free for whoever reaches the port; writing needs the token, as the password of any user or as
//! Bearer. Clients are sent through the usual token exchange, because without a challenge they would never
//! show the password that they were given. The registry's `shop/web:1` is the store's `naru.local/shop/web:1`.
//!
//! ```no_run
//! # fn example(store: naru_image::ImageStore) {
//! let registry = naru_registry::Registry::new(store, "secret".into());
//! let router: axum::Router = registry.router();
//! # }
//! ```

mod answer;
mod read;
mod upload;

#[cfg(test)]
mod registry_test;

use answer::{Code, Failure};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{HeaderMap, Method, header};
use naru_image::{Digest, ImageStore, LOCAL_REGISTRY, Reference, is_repository, is_tag};
use std::sync::Arc;

/// The registry endpoint; cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: ImageStore,
    token: String,
    pub(crate) uploads: upload::Uploads,
}

impl Registry {
    /// `token` lets write.
    pub fn new(store: ImageStore, token: String) -> Self {
        let uploads = upload::Uploads::new(store.dir().join("tmp"));
        Self { inner: Arc::new(Inner { store, token, uploads }) }
    }

    /// Everything below `/v2/`, to be merged into a server.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v2", any(handle))
            .route("/v2/", any(handle))
            .route("/v2/{*rest}", any(handle))
            .with_state(Arc::clone(&self.inner))
    }
}

/// What a path below `/v2/` means. Repository names hold slashes, so it is read from its end.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Base,
    Token,
    Catalog,
    Tags { name: &'a str },
    Manifest { name: &'a str, reference: &'a str },
    Blob { name: &'a str, digest: &'a str },
    Uploads { name: &'a str },
    Upload { name: &'a str, id: &'a str },
}

fn target(path: &str) -> Option<Target<'_>> {
    let rest = path.strip_prefix("/v2").unwrap_or(path).trim_start_matches('/');
    if rest.is_empty() {
        return Some(Target::Base);
    }
    if rest == "token" {
        return Some(Target::Token);
    }
    if rest == "_catalog" {
        return Some(Target::Catalog);
    }
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return Some(Target::Tags { name });
    }
    if let Some(name) = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads")) {
        return Some(Target::Uploads { name });
    }
    if let Some((name, id)) = rest.rsplit_once("/blobs/uploads/") {
        return Some(Target::Upload { name, id });
    }
    if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
        return Some(Target::Blob { name, digest });
    }
    let (name, reference) = rest.rsplit_once("/manifests/")?;
    Some(Target::Manifest { name, reference })
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = match route(&inner, &parts, body).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    };
    if response.status() == http::StatusCode::UNAUTHORIZED && target(parts.uri.path()) != Some(Target::Token)
    {
        let host = parts.headers.get(header::HOST).and_then(|it| it.to_str().ok()).unwrap_or("localhost");
        let challenge = format!("Bearer realm=\"http://{host}/v2/token\",service=\"naru\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, answer::value(challenge));
    }
    response
        .headers_mut()
        .insert("docker-distribution-api-version", http::HeaderValue::from_static("registry/2.0"));
    response
}

async fn route(inner: &Arc<Inner>, parts: &http::request::Parts, body: Body) -> Result<Response, Failure> {
    let target = target(parts.uri.path()).ok_or(Failure::new(Code::NotFound, "no such endpoint"))?;
    let name = match target {
        Target::Base | Target::Token | Target::Catalog => None,
        Target::Tags { name } | Target::Uploads { name } | Target::Manifest { name, .. } => Some(name),
        Target::Blob { name, .. } | Target::Upload { name, .. } => Some(name),
    };
    if name.is_some_and(|it| !is_repository(it)) {
        return Err(Failure::new(Code::NameInvalid, "the repository's name is not valid"));
    }
    let is_read = matches!(parts.method, Method::GET | Method::HEAD);
    if !is_read && !inner.may_write(&parts.headers) {
        return Err(Failure::new(Code::Unauthorized, "writing needs the token, as Bearer or as a password"));
    }
    let is_head = parts.method == Method::HEAD;
    match (&parts.method, target) {
        (_, Target::Base) if is_read => match parts.headers.contains_key(header::AUTHORIZATION) {
            true => Ok(answer::json_answer(&serde_json::json!({}))),
            false => Err(Failure::new(Code::Unauthorized, "ask for a token first; one for reading is free")),
        },
        (_, Target::Token) if is_read => inner.give_token(&parts.headers),
        (_, Target::Catalog) if is_read => read::catalog(inner, parts.uri.query()).await,
        (_, Target::Tags { name }) if is_read => read::tags(inner, name, parts.uri.query()).await,
        (_, Target::Manifest { name, reference }) if is_read => read::manifest(inner, name, reference).await,
        (_, Target::Blob { digest, .. }) if is_read => {
            read::blob(inner, digest, &parts.headers, is_head).await
        }
        (&Method::PUT, Target::Manifest { name, reference }) => {
            upload::manifest(inner, name, reference, &parts.headers, body).await
        }
        (&Method::DELETE, Target::Manifest { name, reference }) => {
            upload::delete_manifest(inner, name, reference).await
        }
        (&Method::POST, Target::Uploads { name }) => {
            upload::begin(inner, name, parts.uri.query(), body).await
        }
        (&Method::PATCH, Target::Upload { name, id }) => {
            upload::append(inner, name, id, &parts.headers, body).await
        }
        (&Method::PUT, Target::Upload { name, id }) => {
            upload::finish(inner, name, id, parts.uri.query(), &parts.headers, body).await
        }
        (&Method::GET, Target::Upload { name, id }) => upload::state(inner, name, id).await,
        (&Method::DELETE, Target::Upload { id, .. }) => upload::cancel(inner, id).await,
        _ => Err(Failure::new(Code::Unsupported, "this method is not supported here")),
    }
}

impl Inner {
    /// The token for writing to whoever knows it, one that is worth nothing to whoever shows no password.
    fn give_token(&self, headers: &HeaderMap) -> Result<Response, Failure> {
        let token = match headers.contains_key(header::AUTHORIZATION) {
            true if self.may_write(headers) => self.token.as_str(),
            true => return Err(Failure::new(Code::Unauthorized, "the password is not the token")),
            false => "anonymous",
        };
        Ok(answer::json_answer(
            &serde_json::json!({"token": token, "access_token": token, "expires_in": 3600}),
        ))
    }

    fn may_write(&self, headers: &HeaderMap) -> bool {
        use base64::Engine;
        let Some(value) = headers.get(header::AUTHORIZATION).and_then(|it| it.to_str().ok()) else {
            return false;
        };
        if let Some(token) = value.strip_prefix("Bearer ") {
            return same(token, &self.token);
        }
        let decoded = value
            .strip_prefix("Basic ")
            .and_then(|it| base64::engine::general_purpose::STANDARD.decode(it).ok());
        let pair = decoded.and_then(|it| String::from_utf8(it).ok());
        pair.as_deref()
            .and_then(|it| it.split_once(':'))
            .is_some_and(|(_, password)| same(password, &self.token))
    }

    /// A repository of ours as the store names it.
    pub(crate) fn reference(&self, name: &str, tag: Option<&str>, digest: Option<Digest>) -> Reference {
        Reference {
            registry: LOCAL_REGISTRY.into(),
            repository: name.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        }
    }
}

/// A tag or a digest.
pub(crate) enum Wanted<'a> {
    Tag(&'a str),
    Digest(Digest),
}

pub(crate) fn wanted(reference: &str) -> Result<Wanted<'_>, Failure> {
    if reference.contains(':') {
        return digest(reference).map(Wanted::Digest);
    }
    match is_tag(reference) {
        true => Ok(Wanted::Tag(reference)),
        false => Err(Failure::new(Code::ManifestInvalid, "the tag is not valid")),
    }
}

pub(crate) fn digest(text: &str) -> Result<Digest, Failure> {
    Digest::parse(text).map_err(|_| Failure::new(Code::DigestInvalid, "only sha256 digests are understood"))
}

/// Compares without telling by the time it takes where the first difference is.
fn same(a: &str, b: &str) -> bool {
    !b.is_empty() && a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// The value of a query parameter; percent escapes only where a digest needs them.
pub(crate) fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    let pair = query?.split('&').find_map(|it| it.strip_prefix(name)?.strip_prefix('='))?;
    Some(pair.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        for (path, want) in [
            ("/v2/", Target::Base),
            ("/v2/_catalog", Target::Catalog),
            ("/v2/a/b/tags/list", Target::Tags { name: "a/b" }),
            ("/v2/a/manifests/latest", Target::Manifest { name: "a", reference: "latest" }),
            ("/v2/a/blobs/x/blobs/sha256:1", Target::Blob { name: "a/blobs/x", digest: "sha256:1" }),
            ("/v2/a/blobs/uploads/", Target::Uploads { name: "a" }),
            ("/v2/a/blobs/uploads/id", Target::Upload { name: "a", id: "id" }),
        ] {
            assert_eq!(target(path), Some(want), "{path}");
        }
        assert_eq!(target("/v2/a"), None);
    }
}
