//! The image store over HTTP, as the OCI distribution specification 1.1 has it: docker, podman, skopeo, crane
//! and containerd pull from it and push to it. The registry's `shop/web:1` is the store's
//! `naru.local/shop/web:1`.
//!
//! Who may do what is in [`Auth`]; images of other registries are served through [`Config::upstreams`].
//!
//! ```no_run
//! # fn example(store: naru_image::ImageStore) -> std::io::Result<()> {
//! use naru_registry::{Auth, Config, Registry};
//! let auth = Auth { token: "secret".into(), client: None, jobs: None, is_private: false };
//! let config = Config { auth, upstreams: vec![], quotas: vec![] };
//! let router: axum::Router = Registry::open(store, config)?.router();
//! # Ok(()) }
//! ```

mod answer;
mod auth;
mod proxy;
mod quota;
pub mod range;
mod read;
mod upload;
mod write;

#[cfg(test)]
mod registry_test;

pub use auth::{Auth, JobRights, Jobs};

use answer::{Code, Failure};
use auth::{Action, Caller, Gate};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use naru_image::{Digest, ImageStore, LOCAL_REGISTRY, Quota, Reference, Repositories, is_repository, is_tag};
use std::sync::Arc;

const FORM_BYTES_MAX: usize = 64 << 10; // a token request is a few hundred bytes

/// How a registry serves.
pub struct Config {
    pub auth: Auth,
    /// Registries whose images are served through ours (`docker.io`), none by default: whoever reaches the port
    /// makes us fetch them.
    pub upstreams: Vec<String>,
    /// What repositories may hold.
    pub quotas: Vec<Quota>,
}

/// The registry endpoint; cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: ImageStore,
    pub(crate) repositories: Repositories,
    pub(crate) uploads: upload::Uploads,
    pub(crate) proxy: proxy::Proxy,
    gate: Gate,
    pub(crate) quotas: quota::Quotas,
}

impl Registry {
    /// Opens the registry over a store. Uploads that were under way when it was last closed can go on.
    pub fn open(store: ImageStore, config: Config) -> std::io::Result<Self> {
        let inner = Inner {
            repositories: store.repositories(),
            uploads: upload::Uploads::open(store.dir().join("registry/uploads"))?,
            proxy: proxy::Proxy::new(config.upstreams),
            gate: Gate::new(config.auth),
            quotas: quota::Quotas::new(config.quotas),
            store,
        };
        Ok(Self { inner: Arc::new(inner) })
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Base,
    Token,
    Catalog,
    Tags { name: &'a str },
    Manifest { name: &'a str, reference: &'a str },
    Blob { name: &'a str, digest: &'a str },
    Uploads { name: &'a str },
    Upload { name: &'a str, id: &'a str },
    Referrers { name: &'a str, digest: &'a str },
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2").unwrap_or(path).trim_start_matches('/');
        if rest.is_empty() {
            return Some(Self::Base);
        }
        if rest == "token" {
            return Some(Self::Token);
        }
        if rest == "_catalog" {
            return Some(Self::Catalog);
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags { name });
        }
        if let Some(name) =
            rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads"))
        {
            return Some(Self::Uploads { name });
        }
        if let Some((name, id)) = rest.rsplit_once("/blobs/uploads/") {
            return Some(Self::Upload { name, id });
        }
        if let Some((name, digest)) = rest.rsplit_once("/blobs/") {
            return Some(Self::Blob { name, digest });
        }
        if let Some((name, digest)) = rest.rsplit_once("/referrers/") {
            return Some(Self::Referrers { name, digest });
        }
        let (name, reference) = rest.rsplit_once("/manifests/")?;
        Some(Self::Manifest { name, reference })
    }

    fn name(self) -> Option<&'a str> {
        match self {
            Self::Base | Self::Token | Self::Catalog => None,
            Self::Tags { name } | Self::Uploads { name } | Self::Manifest { name, .. } => Some(name),
            Self::Blob { name, .. } | Self::Upload { name, .. } | Self::Referrers { name, .. } => Some(name),
        }
    }

    /// What a request to it does with its repository.
    fn action(self, method: &Method) -> Action {
        match (method, self) {
            (&Method::DELETE, Self::Upload { .. }) => Action::Push,
            (&Method::DELETE, _) => Action::Delete,
            // Asking how far one's own upload came.
            (_, Self::Upload { .. }) => Action::Push,
            (&Method::GET | &Method::HEAD, _) => Action::Pull,
            _ => Action::Push,
        }
    }
}

async fn handle(State(inner): State<Arc<Inner>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let mut response = match route(&inner, &parts, body).await {
        Ok(response) => response,
        Err(failure) => failure.into_response(),
    };
    let target = Target::of(parts.uri.path());
    if response.status() == StatusCode::UNAUTHORIZED && target != Some(Target::Token) {
        let challenge = challenge(&parts, target);
        response.headers_mut().insert(header::WWW_AUTHENTICATE, answer::value(challenge));
    }
    response
        .headers_mut()
        .insert("docker-distribution-api-version", http::HeaderValue::from_static("registry/2.0"));
    response
}

/// Where to get a token, and for what.
fn challenge(parts: &Parts, target: Option<Target<'_>>) -> String {
    let text = |name: &str| parts.headers.get(name).and_then(|it| it.to_str().ok());
    let host = text("host").or(parts.uri.host()).unwrap_or("localhost");
    // Behind a proxy that ends TLS the client must be sent back the way it came.
    let scheme = if text("x-forwarded-proto") == Some("https") { "https" } else { "http" };
    let mut challenge = format!("Bearer realm=\"{scheme}://{host}/v2/token\",service=\"naru\"");
    if let Some((target, name)) = target.and_then(|it| Some((it, it.name()?)))
        && is_repository(name)
    {
        let actions = match target.action(&parts.method) {
            Action::Pull => "pull",
            Action::Push => "pull,push",
            Action::Delete => "delete",
        };
        challenge.push_str(&format!(",scope=\"repository:{name}:{actions}\""));
        if parts.headers.contains_key(header::AUTHORIZATION) {
            challenge.push_str(",error=\"insufficient_scope\"");
        }
    }
    challenge
}

async fn route(inner: &Arc<Inner>, parts: &Parts, body: Body) -> Result<Response, Failure> {
    let target = Target::of(parts.uri.path()).ok_or(Failure::new(Code::NotFound, "no such endpoint"))?;
    let query = parts.uri.query();
    let is_read = matches!(parts.method, Method::GET | Method::HEAD);
    if target == Target::Token {
        return token(inner, parts, body).await;
    }
    let caller = inner.gate.caller(&parts.headers).await?;
    let Some(name) = target.name() else {
        return match target {
            Target::Base if is_read && matches!(caller, Caller::Nobody) => {
                Err(Failure::new(Code::Unauthorized, "ask for a token first; one for reading may be free"))
            }
            Target::Base if is_read => Ok(answer::json_answer(&serde_json::json!({}))),
            Target::Catalog if is_read && inner.gate.may_list(&caller) => read::catalog(inner, query).await,
            Target::Catalog if is_read => {
                Err(Failure::new(Code::Unauthorized, "the list of repositories needs the daemon's token"))
            }
            _ => Err(Failure::new(Code::Unsupported, "this method is not supported here")),
        };
    };
    if !is_repository(name) {
        return Err(Failure::new(Code::NameInvalid, "the repository's name is not valid"));
    }
    let action = target.action(&parts.method);
    if !inner.gate.may(&caller, action, name).await? {
        let verb = match action {
            Action::Pull => "reading",
            Action::Push => "writing",
            Action::Delete => "deleting",
        };
        let text = format!("{verb} {name} needs the daemon's token, or a user's whom RBAC lets");
        return Err(Failure::new(Code::Unauthorized, text));
    }
    let headers = &parts.headers;
    match (&parts.method, target) {
        (_, Target::Tags { name }) if is_read => read::tags(inner, name, query).await,
        (_, Target::Manifest { name, reference }) if is_read => {
            read::manifest(inner, name, reference, query, headers).await
        }
        (_, Target::Blob { name, digest }) if is_read => {
            read::blob(inner, name, digest, query, headers, parts.method == Method::HEAD).await
        }
        (_, Target::Referrers { name, digest }) if is_read => {
            read::referrers(inner, name, digest, query).await
        }
        (&Method::PUT, Target::Manifest { name, reference }) => {
            write::manifest(inner, name, reference, headers, body).await
        }
        (&Method::DELETE, Target::Manifest { name, reference }) => {
            write::delete_manifest(inner, name, reference).await
        }
        (&Method::DELETE, Target::Blob { name, digest }) => write::delete_blob(inner, name, digest).await,
        (&Method::POST, Target::Uploads { name }) => {
            // A blob of another repository is given only to who may read that one.
            let from = query_value(query, "from");
            let may_mount = match &from {
                Some(from) => inner.gate.may(&caller, Action::Pull, from).await?,
                None => false,
            };
            upload::begin(inner, name, from.filter(|_| may_mount), query, body).await
        }
        (&Method::PATCH, Target::Upload { name, id }) => upload::append(inner, name, id, headers, body).await,
        (&Method::PUT, Target::Upload { name, id }) => {
            upload::finish(inner, name, id, query, headers, body).await
        }
        (&Method::GET, Target::Upload { name, id }) => upload::state(inner, name, id).await,
        (&Method::DELETE, Target::Upload { name, id }) => upload::cancel(inner, name, id).await,
        _ => Err(Failure::new(Code::Unsupported, "this method is not supported here")),
    }
}

/// `GET` with the password in the header, or `POST` as OAuth 2 has it.
async fn token(inner: &Arc<Inner>, parts: &Parts, body: Body) -> Result<Response, Failure> {
    let mut fields = parts.uri.query().unwrap_or_default().to_owned();
    let mut headers = parts.headers.clone();
    if parts.method == Method::POST {
        let bytes = axum::body::to_bytes(body, FORM_BYTES_MAX)
            .await
            .map_err(|_| Failure::new(Code::SizeInvalid, "the token request is too large"))?;
        fields = String::from_utf8_lossy(&bytes).into_owned();
        if query_value(Some(&fields), "grant_type").as_deref() != Some("password") {
            return Err(Failure::new(Code::Unsupported, "only the grant type `password` is understood"));
        }
        let field = |name| query_value(Some(&fields), name).unwrap_or_default();
        use base64::Engine;
        let pair = format!("{}:{}", field("username"), field("password"));
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        headers.insert(header::AUTHORIZATION, answer::value(basic));
    } else if parts.method != Method::GET {
        return Err(Failure::new(Code::Unsupported, "this method is not supported here"));
    }
    let caller = inner.gate.caller(&headers).await?;
    let scopes: Vec<String> = query_values(&fields, "scope")
        .iter()
        .flat_map(|it| it.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    inner.gate.give_token(&caller, &scopes).await
}

impl Inner {
    /// A repository of ours as the store names it.
    pub(crate) fn reference(&self, name: &str, tag: Option<&str>, digest: Option<Digest>) -> Reference {
        named(LOCAL_REGISTRY, name, tag, digest)
    }
}

pub(crate) fn named(registry: &str, name: &str, tag: Option<&str>, digest: Option<Digest>) -> Reference {
    Reference {
        registry: registry.to_owned(),
        repository: name.to_owned(),
        tag: tag.map(str::to_owned),
        digest,
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
    Digest::parse(text)
        .map_err(|_| Failure::new(Code::DigestInvalid, "only sha256 and sha512 digests are understood"))
}

/// The header as text.
pub(crate) fn header_text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|it| it.to_str().ok())
}

/// The first value of a parameter of a query or a form.
pub(crate) fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    query_values(query?, name).into_iter().next()
}

fn query_values(query: &str, name: &str) -> Vec<String> {
    let pairs = query.split('&').filter_map(|it| it.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value)).collect()
}

/// Percent escapes and `+` undone; what is no escape stays as it is.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => out.push(b' '),
            (b'%', [a, b, after @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                let digit = |it: &u8| (*it as char).to_digit(16).unwrap_or(0) as u8;
                out.push(digit(a) << 4 | digit(b));
                rest = after;
            }
            _ => out.push(*first),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
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
            ("/v2/a/b/referrers/sha256:1", Target::Referrers { name: "a/b", digest: "sha256:1" }),
        ] {
            assert_eq!(Target::of(path), Some(want), "{path}");
        }
        assert_eq!(Target::of("/v2/a"), None);
    }

    #[test]
    fn queries_are_decoded() {
        let query = "digest=sha256%3Aab&scope=repository%3Aa%2Fb%3Apull&scope=x+y&odd=100%";
        assert_eq!(query_value(Some(query), "digest").as_deref(), Some("sha256:ab"));
        assert_eq!(query_values(query, "scope"), ["repository:a/b:pull", "x y"]);
        assert_eq!(query_value(Some(query), "odd").as_deref(), Some("100%"));
    }
}
