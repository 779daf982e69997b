//! Pulling: manifests, blobs with ranges, lists.

use crate::answer::{Code, Failure, json_answer, value};
use crate::range::{self, Asked};
use crate::{Inner, Wanted, digest, header_text, named, proxy, query_value, wanted};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use naru_image::oci::media_type;
use naru_image::{Digest, LOCAL_REGISTRY, Reference};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::SeekFrom;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

const MANIFEST_BYTES_MAX: u64 = 4 << 20; // as most registries
const LIST_MAX: usize = 1_000; // one page of a list

/// Runs what blocks elsewhere.
pub async fn blocking<T: Send + 'static>(
    inner: &Arc<Inner>,
    work: impl FnOnce(&Inner) -> Result<T, naru_image::Error> + Send + 'static,
) -> Result<T, Failure> {
    let inner = Arc::clone(inner);
    let task = tokio::task::spawn_blocking(move || work(&inner));
    task.await
        .map_err(|_| Failure::new(Code::Internal, "the request was not finished"))?
        .map_err(Failure::store)
}

/// Where a request's repository is: here, or at another registry whose images we serve.
fn source(inner: &Inner, name: &str, query: Option<&str>) -> Option<(String, String)> {
    let ns = query_value(query, "ns");
    inner.proxy.target(name, ns.as_deref()).map(|(registry, name)| (registry, name.to_owned()))
}

pub async fn manifest(
    inner: &Arc<Inner>,
    name: &str,
    text: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Failure> {
    let wanted = wanted(text)?;
    let reference = |registry: &str, name: &str| match &wanted {
        Wanted::Tag(tag) => named(registry, name, Some(tag), None),
        Wanted::Digest(digest) => named(registry, name, None, Some(digest.clone())),
    };
    let found = match source(inner, name, query) {
        Some((registry, name)) => {
            let elsewhere = reference(&registry, &name);
            proxy::manifest(inner, &elsewhere).await?;
            local_manifest(inner, None, elsewhere).await?
        }
        None => match local_manifest(inner, Some(name), reference(LOCAL_REGISTRY, name)).await? {
            None if let Some((registry, name)) = inner.proxy.default_target(name) => {
                let elsewhere = reference(&registry, name);
                proxy::manifest(inner, &elsewhere).await?;
                local_manifest(inner, None, elsewhere).await?
            }
            found => found,
        },
    };
    let unknown = || Failure::new(Code::ManifestUnknown, format!("there is no manifest {text} in {name}"));
    let (mut digest, mut bytes) = found.ok_or_else(unknown)?;
    // A blob that is no manifest has no business here.
    let mut document: Value = serde_json::from_slice(&bytes).map_err(|_| unknown())?;
    if !is_manifest(&document) {
        return Err(unknown());
    }
    let accepted = Accepted::of(headers);
    if !accepted.takes(kind_of(&document))
        && matches!(wanted, Wanted::Tag(_))
        && document["manifests"].is_array()
    {
        // An old client that asked for an image and knows no indexes gets the one for this machine.
        let index = digest.clone();
        let child = blocking(inner, move |it| it.store.for_this_machine(&index)).await?;
        if let Some(child) = child {
            let name = child.clone();
            bytes =
                blocking(inner, move |it| it.store.read_blob("manifest", &name, MANIFEST_BYTES_MAX)).await?;
            document = serde_json::from_slice(&bytes).map_err(|_| unknown())?;
            digest = child;
        }
    }
    if !accepted.takes(kind_of(&document)) {
        let why = format!("{text} is of the type {}, which the request does not accept", kind_of(&document));
        return Err(Failure::new(Code::ManifestUnknown, why));
    }
    if document["annotations"][naru_image::oci::ANNOTATION_BASE] == "host" {
        return Err(Failure::store(naru_image::Error::OverHost(digest)));
    }
    let etag = format!("\"{digest}\"");
    if header_text(headers, &header::IF_NONE_MATCH) == Some(&etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, value(etag))]).into_response());
    }
    let headers = [
        (header::CONTENT_TYPE, value(kind_of(&document))),
        (header::ETAG, value(etag)),
        (header::HeaderName::from_static("docker-content-digest"), value(digest.as_str())),
    ];
    Ok((headers, bytes).into_response())
}

/// A manifest that is in the store, and in repository `name` if there is one.
async fn local_manifest(
    inner: &Arc<Inner>,
    name: Option<&str>,
    reference: Reference,
) -> Result<Option<(Digest, Vec<u8>)>, Failure> {
    let name = name.map(str::to_owned);
    blocking(inner, move |inner| {
        let Some(found) = inner.store.find(&reference)? else { return Ok(None) };
        if let (Some(name), Some(digest)) = (name, &reference.digest)
            && !inner.repositories.has_manifest(&name, digest)?
        {
            return Ok(None);
        }
        let bytes = inner.store.read_blob("manifest", &found.digest, MANIFEST_BYTES_MAX)?;
        Ok(Some((found.digest, bytes)))
    })
    .await
}

/// Image manifest, index, or (until they were withdrawn) artifact manifest.
pub fn is_manifest(document: &Value) -> bool {
    let is_image = document["config"].is_object() && document["layers"].is_array();
    is_image || document["manifests"].is_array()
}

fn kind_of(document: &Value) -> &str {
    let default = if document["manifests"].is_array() { media_type::INDEX } else { media_type::MANIFEST };
    document["mediaType"].as_str().unwrap_or(default)
}

/// The media types that a request accepts.
struct Accepted(Vec<String>);

impl Accepted {
    fn of(headers: &HeaderMap) -> Self {
        let all = headers.get_all(header::ACCEPT).iter().filter_map(|it| it.to_str().ok());
        let types =
            all.flat_map(|it| it.split(',')).map(|it| it.split(';').next().unwrap_or("").trim().to_owned());
        Self(types.filter(|it| !it.is_empty()).collect())
    }

    /// Whoever names no type of manifest takes any: curl, browsers, clients that read the document.
    fn takes(&self, kind: &str) -> bool {
        let names_manifests = self.0.iter().any(|it| it.contains("manifest") || it.contains("image.index"));
        !names_manifests || self.0.iter().any(|it| it == kind || it == "*/*")
    }
}

pub async fn blob(
    inner: &Arc<Inner>,
    name: &str,
    text: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    is_head: bool,
) -> Result<Response, Failure> {
    let digest = digest(text)?;
    let unknown = || Failure::new(Code::BlobUnknown, format!("there is no blob {text} in {name}"));
    let here = match source(inner, name, query) {
        Some((registry, name)) => {
            proxy::blob(inner, &named(&registry, &name, None, Some(digest.clone())), &digest).await?;
            true
        }
        None => {
            let (name_owned, wanted) = (name.to_owned(), digest.clone());
            let is_ours = blocking(inner, move |it| it.repositories.has_blob(&name_owned, &wanted)).await?;
            match inner.proxy.default_target(name).filter(|_| !is_ours) {
                Some((registry, name)) => {
                    proxy::blob(inner, &named(&registry, name, None, Some(digest.clone())), &digest).await?;
                    true
                }
                None => is_ours,
            }
        }
    };
    if !here {
        return Err(unknown());
    }
    let mut file = tokio::fs::File::open(inner.store.blob_path(&digest)).await.map_err(|_| unknown())?;
    let size = file.metadata().await.map_err(|_| unknown())?.len();
    let range = match header_text(headers, &header::RANGE) {
        Some(text) => match range::asked(text, size) {
            Asked::Whole => None,
            Asked::Part { start, bytes } => Some((start, bytes)),
            Asked::Outside => {
                return Err(Failure::new(Code::RangeInvalid, "the range lies outside the blob"));
            }
        },
        None => None,
    };
    let (start, length) = range.unwrap_or((0, size));
    let body = if is_head {
        Body::empty()
    } else {
        file.seek(SeekFrom::Start(start)).await.map_err(|_| unknown())?;
        Body::from_stream(ReaderStream::with_capacity(file.take(length), 256 * 1024))
    };
    let mut response = Response::new(body);
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, value("application/octet-stream"));
    out.insert(header::CONTENT_LENGTH, value(length.to_string()));
    out.insert(header::ACCEPT_RANGES, value("bytes"));
    out.insert(header::ETAG, value(format!("\"{digest}\"")));
    out.insert("docker-content-digest", value(digest.as_str()));
    if range.is_some() {
        out.insert(header::CONTENT_RANGE, value(format!("bytes {start}-{}/{size}", start + length - 1)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// The manifests that refer to one, as an index; of one type of artifact if asked. An unknown one has none.
pub async fn referrers(
    inner: &Arc<Inner>,
    name: &str,
    text: &str,
    query: Option<&str>,
) -> Result<Response, Failure> {
    let subject = digest(text)?;
    let name = name.to_owned();
    let mut found = blocking(inner, move |it| Ok(it.repositories.referrers(&name, &subject))).await?;
    let wanted = query_value(query, "artifactType");
    if let Some(wanted) = &wanted {
        found.retain(|it| it["artifactType"] == wanted.as_str());
    }
    let index = json!({"schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": found});
    let mut response = ([(header::CONTENT_TYPE, media_type::INDEX)], index.to_string()).into_response();
    if wanted.is_some() {
        response.headers_mut().insert("oci-filters-applied", value("artifactType"));
    }
    Ok(response)
}

/// One page of a sorted list, and the link to the next.
fn page(all: BTreeSet<String>, query: Option<&str>, path: &str) -> (Vec<String>, Option<String>) {
    let limit =
        query_value(query, "n").and_then(|it| it.parse::<usize>().ok()).unwrap_or(LIST_MAX).min(LIST_MAX);
    let last = query_value(query, "last").unwrap_or_default();
    let mut rest = all.into_iter().filter(|it| last.is_empty() || *it > last);
    let page: Vec<String> = rest.by_ref().take(limit).collect();
    let more =
        rest.next().and_then(|_| Some(format!("<{path}?n={limit}&last={}>; rel=\"next\"", page.last()?)));
    (page, more)
}

fn listed(value_: Value, next: Option<String>) -> Response {
    let mut response = json_answer(&value_);
    if let Some(next) = next {
        response.headers_mut().insert(header::LINK, value(next));
    }
    response
}

pub async fn tags(inner: &Arc<Inner>, name: &str, query: Option<&str>) -> Result<Response, Failure> {
    let prefix = format!("{LOCAL_REGISTRY}/{name}:");
    let all = blocking(inner, |inner| inner.store.tags()).await?;
    let all: BTreeSet<String> =
        all.iter().filter_map(|(tag, _)| tag.strip_prefix(&prefix).map(str::to_owned)).collect();
    if all.is_empty() && !inner.repositories.names().contains(name) {
        return Err(Failure::new(Code::NameUnknown, format!("there is no repository {name}")));
    }
    let (tags, next) = page(all, query, &format!("/v2/{name}/tags/list"));
    Ok(listed(json!({"name": name, "tags": tags}), next))
}

pub async fn catalog(inner: &Arc<Inner>, query: Option<&str>) -> Result<Response, Failure> {
    let prefix = format!("{LOCAL_REGISTRY}/");
    let all = blocking(inner, |inner| inner.store.tags()).await?;
    let name = |tag: &str| Some(tag.strip_prefix(&prefix)?.rsplit_once(':')?.0.to_owned());
    let mut names: BTreeSet<String> = all.iter().filter_map(|(tag, _)| name(tag)).collect();
    names.extend(blocking(inner, |it| Ok(it.repositories.names())).await?);
    let (repositories, next) = page(names, query, "/v2/_catalog");
    Ok(listed(json!({"repositories": repositories}), next))
}
