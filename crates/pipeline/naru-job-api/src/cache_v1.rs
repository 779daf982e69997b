//! The first cache service, which older clients speak: the same entries under other words. Uploads come as
//! ranges with the job's token, not through a link.

use crate::Shared;
use crate::auth::base_url;
use crate::azure::{Link, Right};
use crate::blobs::range_name;
use crate::problem::{Kind, Result, problem};
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The largest body that is not an upload.
const BODY_BYTES_MAX: usize = 64 << 10;

/// No cache is so large: positions can be added up without an overflow.
const RANGE_END_MAX: u64 = 1 << 50;

/// So many entries are told of a key; the list is for people who look for the reason of a miss.
const LISTED_MAX: usize = 100;

type Words = Query<HashMap<String, String>>;

pub async fn find(
    State(inner): State<Shared>,
    Query(query): Words,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    let answer = async {
        let job = inner.job(&headers).await?;
        let word = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
        let keys: Vec<String> = word("keys").split(',').map(|it| it.trim().to_owned()).collect();
        let now = Timestamp::now();
        let found = inner.caches.find(&job.claims, &keys, word("version"), now).await?;
        let Some((_, entry)) = found else { return Ok(StatusCode::NO_CONTENT.into_response()) };
        let url = inner.link(&base_url(&headers, &uri), &Link::download(&entry.blob, Right::Read), now);
        Ok(axum::Json(json!({
            "result": "hit", "archiveLocation": url, "cacheKey": entry.key, "cacheVersion": entry.version,
            "scope": entry.scope, "creationTime": entry.created_at.to_string(),
        }))
        .into_response())
    };
    answered(answer.await)
}

pub async fn list(State(inner): State<Shared>, Query(query): Words, headers: HeaderMap) -> Response {
    let answer = async {
        let job = inner.job(&headers).await?;
        let key = query.get("key").cloned().unwrap_or_default();
        let repository = &job.claims.repository;
        let found = inner.caches.list(|_, it| it.repository == *repository && it.key.starts_with(&key)).await;
        let entries = found.iter().take(LISTED_MAX).map(|(_, it)| {
            json!({"cacheKey": it.key, "cacheVersion": it.version, "scope": it.scope,
                   "creationTime": it.created_at.to_string()})
        });
        let entries: Vec<Value> = entries.collect();
        Ok(axum::Json(json!({"totalCount": found.len(), "artifactCaches": entries})).into_response())
    };
    answered(answer.await)
}

pub async fn reserve(State(inner): State<Shared>, request: Request) -> Response {
    let answer = async {
        let job = inner.job(request.headers()).await?;
        let body = json_of(request).await?;
        let (key, version) =
            (body["key"].as_str().unwrap_or_default(), body["version"].as_str().unwrap_or_default());
        let bytes = body["cacheSize"].as_u64();
        let reserved = inner.reserve_cache(&job.claims, key, version, bytes, Timestamp::now()).await;
        let (id, _) = reserved.map_err(|it| match it.kind {
            // The client asks for this status to tell the size apart from a rival.
            Kind::TooLarge => problem(Kind::Invalid, it.message),
            _ => it,
        })?;
        Ok((StatusCode::CREATED, axum::Json(json!({"cacheId": id}))).into_response())
    };
    answered(answer.await)
}

pub async fn upload(State(inner): State<Shared>, Path(id): Path<u64>, request: Request) -> Response {
    let answer = async {
        let job = inner.job(request.headers()).await?;
        let (_, entry) = inner.caches.pending(&job.claims, |it, _| it == id).await?;
        let range =
            request.headers().get(header::CONTENT_RANGE).and_then(|it| content_range(it.to_str().ok()?));
        let (start, end) = range.ok_or_else(|| {
            problem(Kind::Invalid, "an upload says which bytes it brings: `Content-Range: bytes 0-99/*`")
        })?;
        let body = request.into_body().into_data_stream();
        inner.blobs.put_piece(&entry.blob, &range_name(start, end), Some(end - start + 1), body).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    answered(answer.await)
}

pub async fn commit(State(inner): State<Shared>, Path(id): Path<u64>, request: Request) -> Response {
    let answer = async {
        let job = inner.job(request.headers()).await?;
        let (_, entry) = inner.caches.pending(&job.claims, |it, _| it == id).await?;
        let body = json_of(request).await?;
        let bytes = body["size"]
            .as_u64()
            .ok_or_else(|| problem(Kind::Invalid, "the size of the upload is missing"))?;
        if entry.bytes.is_none() {
            inner.blobs.put_ranges(&entry.blob, bytes).await?;
        }
        inner.caches.finalize(&inner.blobs, id, Some(bytes), Timestamp::now()).await?;
        Ok(StatusCode::NO_CONTENT.into_response())
    };
    answered(answer.await)
}

fn answered(answer: Result<Response>) -> Response {
    answer.unwrap_or_else(|it| it.rest())
}

async fn json_of(request: Request) -> Result<Value> {
    let body = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
    let body =
        body.map_err(|_| problem(Kind::TooLarge, format!("a request has at most {BODY_BYTES_MAX} bytes")))?;
    serde_json::from_slice(&body)
        .map_err(|it| problem(Kind::Invalid, format!("the request is no JSON: {it}")))
}

/// `bytes 0-99/*`: the first and the last byte.
fn content_range(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.strip_prefix("bytes ")?.split_once('/')?.0.split_once('-')?;
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end && end < RANGE_END_MAX).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_its_first_and_its_last_byte() {
        assert_eq!(content_range("bytes 0-99/*"), Some((0, 99)));
        for bad in
            ["", "bytes 5-2/*", "bytes 0-99", "bytes -/*", "bytes 0-18446744073709551615/*", "lines 0-1/*"]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
