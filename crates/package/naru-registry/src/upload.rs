//! Pushing: blobs in one piece or in chunks, then the manifest that names them. A manifest is taken only
//! when everything that it names is here, so whoever sees it can pull it.

use crate::answer::{Code, Failure, value};
use crate::read::{blocking, missing};
use crate::{Inner, Wanted, digest, query_value, wanted};
use axum::body::Body;
use axum::response::Response;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use naru_image::oci::{ANNOTATION_BASE, media_type};
use naru_image::{Digest, is_repository};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const MANIFEST_BYTES_MAX: usize = 4 << 20; // as most registries
const BLOB_BYTES_MAX: u64 = 32 << 30; // bounds what one upload can put on the disk
const UPLOADS_MAX: usize = 256; // open at once
const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(3600); // an hour without a byte: the client is gone

/// Uploads that are under way. They do not outlive the process: clients start over.
pub struct Uploads {
    dir: PathBuf,
    open: Mutex<HashMap<String, Upload>>,
}

struct Upload {
    name: String,
    bytes: u64,
    touched: Instant,
    /// A request is writing to it.
    is_busy: bool,
}

impl Uploads {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, open: Mutex::default() }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<String, Upload>> {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("upload-{id}"))
    }

    fn begin(&self, name: &str) -> Result<String, Failure> {
        let mut open = self.open();
        let expired: Vec<String> = open
            .iter()
            .filter(|(_, it)| !it.is_busy && it.touched.elapsed() > UPLOAD_IDLE_MAX)
            .map(|it| it.0.clone())
            .collect();
        for id in expired {
            open.remove(&id);
            let _ = std::fs::remove_file(self.path(&id));
        }
        if open.len() >= UPLOADS_MAX {
            return Err(Failure::new(
                Code::TooManyRequests,
                format!("{UPLOADS_MAX} uploads are open already"),
            ));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let upload = Upload { name: name.to_owned(), bytes: 0, touched: Instant::now(), is_busy: false };
        open.insert(id.clone(), upload);
        Ok(id)
    }

    /// Takes an upload for one request; it is given back when the guard is dropped.
    fn take<'a>(&'a self, name: &str, id: &'a str) -> Result<Taken<'a>, Failure> {
        let mut open = self.open();
        let upload = open.get_mut(id).filter(|it| it.name == name);
        let Some(upload) = upload else {
            return Err(Failure::new(Code::BlobUploadUnknown, "there is no such upload; start over"));
        };
        if upload.is_busy {
            return Err(Failure::new(Code::RangeInvalid, "another request is writing to this upload"));
        }
        upload.is_busy = true;
        Ok(Taken { uploads: self, id, bytes: upload.bytes })
    }

    fn remove(&self, id: &str) {
        self.open().remove(id);
        let _ = std::fs::remove_file(self.path(id));
    }
}

struct Taken<'a> {
    uploads: &'a Uploads,
    id: &'a str,
    bytes: u64,
}

impl Taken<'_> {
    /// Appends a body to the upload's file.
    async fn append(&mut self, body: Body) -> Result<(), Failure> {
        let path = self.uploads.path(self.id);
        let file = tokio::fs::OpenOptions::new().create(true).append(true).open(&path).await;
        let mut file = file.map_err(write_failed)?;
        let mut stream = body.into_data_stream();
        while let Some(chunk) = stream.next().await {
            // A broken connection keeps what came: the client may ask how much and go on.
            let chunk = match chunk {
                Ok(it) => it,
                Err(_) => {
                    file.flush().await.map_err(write_failed)?;
                    return Err(Failure::new(Code::BlobUploadInvalid, "the connection broke off"));
                }
            };
            if self.bytes + chunk.len() as u64 > BLOB_BYTES_MAX {
                return Err(Failure::new(Code::SizeInvalid, "the blob is larger than 32 GiB"));
            }
            if let Err(error) = file.write_all(&chunk).await {
                // How much of the chunk is there is not known: cut back to what is.
                let _ = file.set_len(self.bytes).await;
                return Err(write_failed(error));
            }
            self.bytes += chunk.len() as u64;
        }
        file.flush().await.map_err(write_failed)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(upload) = self.uploads.open().get_mut(self.id) {
            upload.bytes = self.bytes;
            upload.touched = Instant::now();
            upload.is_busy = false;
        }
    }
}

fn write_failed(error: std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::StorageFull {
        return Failure::new(Code::Full, "the disk is full; free some space and go on");
    }
    tracing::error!(%error, "an upload cannot be written");
    Failure::new(Code::Internal, "the upload cannot be written")
}

fn accepted(name: &str, id: &str, bytes: u64) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    upload_headers(&mut response, name, id, bytes);
    response
}

fn upload_headers(response: &mut Response, name: &str, id: &str, bytes: u64) {
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(format!("/v2/{name}/blobs/uploads/{id}")));
    headers.insert(header::RANGE, value(format!("0-{}", bytes.saturating_sub(1))));
    headers.insert("docker-upload-uuid", value(id));
    headers.insert(header::CONTENT_LENGTH, value("0"));
}

fn created(location: String, digest: &Digest) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(location));
    headers.insert("docker-content-digest", value(digest.as_str()));
    headers.insert(header::CONTENT_LENGTH, value("0"));
    response
}

/// `POST`: opens an upload, mounts a blob that is here already, or takes a blob in one request.
pub async fn begin(
    inner: &Arc<Inner>,
    name: &str,
    query: Option<&str>,
    body: Body,
) -> Result<Response, Failure> {
    if let Some(wanted) = query_value(query, "mount") {
        let wanted = digest(&wanted)?;
        let is_named = query_value(query, "from").is_none_or(|it| is_repository(&it));
        // Every repository is readable by everybody, so mounting gives nothing away.
        if is_named && inner.store.blob_size(&wanted).is_some() {
            return Ok(created(format!("/v2/{name}/blobs/{wanted}"), &wanted));
        }
    }
    let id = inner.uploads.begin(name)?;
    if query_value(query, "digest").is_some() {
        return finish(inner, name, &id, query, &HeaderMap::new(), body).await;
    }
    Ok(accepted(name, &id, 0))
}

/// `PATCH`: the next chunk.
pub async fn append(
    inner: &Arc<Inner>,
    name: &str,
    id: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let mut upload = inner.uploads.take(name, id)?;
    check_range(headers, upload.bytes)?;
    upload.append(body).await?;
    Ok(accepted(name, id, upload.bytes))
}

/// A chunk that says where it belongs must belong at the end.
fn check_range(headers: &HeaderMap, bytes: u64) -> Result<(), Failure> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(()) };
    let start = range
        .to_str()
        .ok()
        .and_then(|it| it.trim_start_matches("bytes ").split_once('-')?.0.parse::<u64>().ok());
    match start == Some(bytes) {
        true => Ok(()),
        false => Err(Failure::new(Code::RangeInvalid, format!("the next byte is number {bytes}"))),
    }
}

/// `PUT`: the last chunk, perhaps empty, and the digest of the whole.
pub async fn finish(
    inner: &Arc<Inner>,
    name: &str,
    id: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let wanted =
        query_value(query, "digest").ok_or(Failure::new(Code::DigestInvalid, "`digest` is missing"))?;
    let wanted = digest(&wanted)?;
    let mut upload = inner.uploads.take(name, id)?;
    check_range(headers, upload.bytes)?;
    upload.append(body).await?;
    let (path, expected) = (inner.uploads.path(id), wanted.clone());
    let stored = blocking(inner, move |inner| {
        let mut blob = inner.store.begin_blob()?;
        let failed = |source| naru_image::Error::Io { what: "read", path: path.clone(), source };
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        std::io::copy(&mut file, &mut blob).map_err(failed)?;
        blob.commit(Some(&expected))
    })
    .await;
    drop(upload);
    inner.uploads.remove(id);
    stored?;
    Ok(created(format!("/v2/{name}/blobs/{wanted}"), &wanted))
}

/// `GET`: how much has come.
pub async fn state(inner: &Arc<Inner>, name: &str, id: &str) -> Result<Response, Failure> {
    let bytes = inner.uploads.take(name, id)?.bytes;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    upload_headers(&mut response, name, id, bytes);
    Ok(response)
}

pub async fn cancel(inner: &Arc<Inner>, id: &str) -> Result<Response, Failure> {
    inner.uploads.remove(id);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// `PUT` of a manifest: checked, stored, named.
pub async fn manifest(
    inner: &Arc<Inner>,
    name: &str,
    reference: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let wanted = wanted(reference)?;
    let bytes = axum::body::to_bytes(body, MANIFEST_BYTES_MAX)
        .await
        .map_err(|_| Failure::new(Code::SizeInvalid, "the manifest is larger than 4 MiB"))?;
    let invalid = |why: &str| Failure::new(Code::ManifestInvalid, why);
    let document: Value = serde_json::from_slice(&bytes).map_err(|it| invalid(&format!("not JSON: {it}")))?;
    let is_image = document["config"].is_object() && document["layers"].is_array();
    let is_index = document["manifests"].is_array();
    if document["schemaVersion"] != 2 || is_image == is_index {
        return Err(invalid("neither an image manifest nor an index of schema version 2"));
    }
    if document["annotations"][ANNOTATION_BASE] == "host" {
        return Err(invalid("an image over another machine's root means nothing here"));
    }
    let declared = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let own = document["mediaType"].as_str();
    if let (Some(declared), Some(own)) = (declared, own)
        && declared != own
    {
        return Err(invalid("the media type in the document is not the one of the request"));
    }
    let actual = Digest::of(&bytes);
    if let Wanted::Digest(digest) = &wanted
        && *digest != actual
    {
        return Err(Failure::new(Code::DigestInvalid, format!("the manifest's digest is {actual}")));
    }
    if let Some(digest) = missing(inner, &document) {
        return Err(Failure::new(Code::ManifestBlobUnknown, format!("{digest} is not here; push it first")));
    }
    let default = if is_index { media_type::INDEX } else { media_type::MANIFEST };
    let kind = own.or(declared).unwrap_or(default).to_owned();
    let tag = match wanted {
        Wanted::Tag(tag) => Some(inner.reference(name, Some(tag), None)),
        Wanted::Digest(_) => None,
    };
    let digest = blocking(inner, move |inner| {
        let digest = inner.store.put_blob(&bytes)?;
        if let Some(tag) = tag {
            inner.store.tag(&tag, &digest, &kind)?;
        }
        Ok(digest)
    });
    let digest = digest.await?;
    Ok(created(format!("/v2/{name}/manifests/{digest}"), &digest))
}

/// `DELETE`: takes a name away, or every name of a manifest in this repository.
pub async fn delete_manifest(inner: &Arc<Inner>, name: &str, reference: &str) -> Result<Response, Failure> {
    let tags = blocking(inner, |inner| inner.store.tags()).await?;
    let in_repository = format!("{}:", inner.reference(name, None, None).name());
    let wanted = wanted(reference)?;
    let doomed: Vec<String> = tags
        .into_iter()
        .filter_map(|(tag, manifest)| {
            let short = tag.strip_prefix(&in_repository)?;
            let is_meant = match &wanted {
                Wanted::Tag(it) => *it == short,
                Wanted::Digest(it) => *it == manifest.digest,
            };
            is_meant.then(|| short.to_owned())
        })
        .collect();
    if doomed.is_empty() {
        return Err(Failure::new(
            Code::ManifestUnknown,
            format!("there is no manifest {reference} in {name}"),
        ));
    }
    let name = name.to_owned();
    blocking(inner, move |inner| {
        for tag in doomed {
            inner.store.untag(&inner.reference(&name, Some(&tag), None))?;
        }
        Ok(())
    })
    .await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}
