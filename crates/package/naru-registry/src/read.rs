//! Pulling: manifests, blobs with ranges, lists.

use crate::answer::{Code, Failure, json_answer, value};
use crate::{Inner, Wanted, digest, query_value, wanted};
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use naru_image::oci::media_type;
use naru_image::{Digest, LOCAL_REGISTRY};
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

pub async fn manifest(inner: &Arc<Inner>, name: &str, reference: &str) -> Result<Response, Failure> {
    let unknown =
        || Failure::new(Code::ManifestUnknown, format!("there is no manifest {reference} in {name}"));
    let reference = match wanted(reference)? {
        Wanted::Tag(tag) => inner.reference(name, Some(tag), None),
        Wanted::Digest(digest) => inner.reference(name, None, Some(digest)),
    };
    let found = blocking(inner, move |inner| {
        let Some(found) = inner.store.find(&reference)? else { return Ok(None) };
        let bytes = inner.store.read_blob("manifest", &found.digest, MANIFEST_BYTES_MAX)?;
        Ok(Some((found, bytes)))
    });
    let (found, bytes) = found.await?.ok_or_else(unknown)?;
    // A blob that is no manifest has no business here.
    let document: Value = serde_json::from_slice(&bytes).map_err(|_| unknown())?;
    let is_image = document["config"].is_object() && document["layers"].is_array();
    if !is_image && !document["manifests"].is_array() {
        return Err(unknown());
    }
    if document["annotations"][naru_image::oci::ANNOTATION_BASE] == "host" {
        return Err(Failure::store(naru_image::Error::OverHost(found.digest)));
    }
    let kind = document["mediaType"].as_str().unwrap_or(media_type::MANIFEST).to_owned();
    let headers = [
        (header::CONTENT_TYPE, value(kind)),
        (header::ETAG, value(format!("\"{}\"", found.digest))),
        (header::HeaderName::from_static("docker-content-digest"), value(found.digest.as_str())),
    ];
    Ok((headers, bytes).into_response())
}

pub async fn blob(
    inner: &Arc<Inner>,
    text: &str,
    headers: &HeaderMap,
    is_head: bool,
) -> Result<Response, Failure> {
    let digest = digest(text)?;
    let unknown = |_| Failure::new(Code::BlobUnknown, format!("there is no blob {text}"));
    let mut file = tokio::fs::File::open(inner.store.blob_path(&digest)).await.map_err(unknown)?;
    let size = file.metadata().await.map_err(unknown)?.len();
    let range = match headers.get(header::RANGE).and_then(|it| it.to_str().ok()) {
        Some(text) => range(text, size)?,
        None => None,
    };
    let (start, length) = range.unwrap_or((0, size));
    let body = if is_head {
        Body::empty()
    } else {
        file.seek(SeekFrom::Start(start)).await.map_err(unknown)?;
        Body::from_stream(ReaderStream::with_capacity(file.take(length), 128 * 1024))
    };
    let mut response = Response::new(body);
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, value("application/octet-stream"));
    out.insert(header::CONTENT_LENGTH, value(length.to_string()));
    out.insert(header::ACCEPT_RANGES, value("bytes"));
    out.insert("docker-content-digest", value(digest.as_str()));
    if range.is_some() {
        out.insert(header::CONTENT_RANGE, value(format!("bytes {start}-{}/{size}", start + length - 1)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// Start and length of `bytes=a-b`, `bytes=a-` or `bytes=-n`. Several ranges, or another unit, mean the
/// whole blob.
fn range(text: &str, size: u64) -> Result<Option<(u64, u64)>, Failure> {
    let unsatisfiable = || Failure::new(Code::RangeInvalid, "the range lies outside the blob");
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|it| it.split_once('-')) else {
        return Ok(None);
    };
    if last.contains(',') {
        return Ok(None);
    }
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(end)) => (start, end.min(size.saturating_sub(1))),
        (Ok(start), Err(_)) if last.is_empty() => (start, size.saturating_sub(1)),
        (Err(_), Ok(count)) if first.is_empty() => (size.saturating_sub(count), size.saturating_sub(1)),
        _ => return Ok(None),
    };
    if start >= size || start > end {
        return Err(unsatisfiable());
    }
    Ok(Some((start, end - start + 1)))
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
    if all.is_empty() {
        return Err(Failure::new(Code::NameUnknown, format!("there is no repository {name}")));
    }
    let (tags, next) = page(all, query, &format!("/v2/{name}/tags/list"));
    Ok(listed(json!({"name": name, "tags": tags}), next))
}

pub async fn catalog(inner: &Arc<Inner>, query: Option<&str>) -> Result<Response, Failure> {
    let prefix = format!("{LOCAL_REGISTRY}/");
    let all = blocking(inner, |inner| inner.store.tags()).await?;
    let name = |tag: &str| Some(tag.strip_prefix(&prefix)?.rsplit_once(':')?.0.to_owned());
    let (repositories, next) =
        page(all.iter().filter_map(|(tag, _)| name(tag)).collect(), query, "/v2/_catalog");
    Ok(listed(json!({"repositories": repositories}), next))
}

/// Whether everything that a manifest names is here.
pub fn missing(inner: &Inner, document: &Value) -> Option<Digest> {
    let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
    let named = [vec![document["config"].clone()], list("layers"), list("manifests")].concat();
    named
        .iter()
        .filter_map(|it| Digest::parse(it["digest"].as_str()?).ok())
        .find(|it| inner.store.blob_size(it).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_http_says() {
        let of = |text| range(text, 10).map_err(|_| ());
        assert_eq!(of("bytes=2-4"), Ok(Some((2, 3))));
        assert_eq!(of("bytes=2-"), Ok(Some((2, 8))));
        assert_eq!(of("bytes=-3"), Ok(Some((7, 3))));
        assert_eq!(of("bytes=0-99"), Ok(Some((0, 10))));
        assert_eq!(of("bytes=10-"), Err(()));
        assert_eq!(of("bytes=4-2"), Err(()));
        assert_eq!(of("bytes=0-1,3-4"), Ok(None));
        assert_eq!(of("lines=1-2"), Ok(None));
    }
}
