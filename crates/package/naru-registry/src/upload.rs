//! Pushing blobs: in one piece, in chunks, or by mounting what another repository has. An upload is a file and
//! the name of its repository; it survives a restart, and its client goes on where it was.

use crate::answer::{Code, Failure, value};
use crate::quota::Taking;
use crate::read::blocking;
use crate::write::io_error;
use crate::{Inner, digest, header_text, query_value};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use naru_image::{Digest, Hashing, is_repository};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

const BLOB_BYTES_MAX: u64 = 32 << 30; // bounds what one upload can put on the disk
const UPLOADS_MAX: usize = 256; // open at once
const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(24 * 3600); // a day without a byte: the client is gone
const CHUNKS_WAITING: usize = 16; // between the connection and the disk

/// Uploads that are under way.
pub struct Uploads {
    /// Per upload its bytes (`<id>`) and its repository (`<id>.name`).
    dir: PathBuf,
    open: Mutex<HashMap<String, Upload>>,
}

struct Upload {
    name: String,
    touched: SystemTime,
    /// None while a request is writing to it.
    content: Option<Content>,
}

/// What came, and its digest so far.
type Content = Hashing<File>;

impl Uploads {
    /// Finds the uploads that were under way when we were last here.
    pub fn open(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        let mut open = HashMap::new();
        for entry in std::fs::read_dir(&dir)?.flatten() {
            let file_name = entry.file_name().to_string_lossy().into_owned();
            let Some(id) = file_name.strip_suffix(".name") else { continue };
            let (Ok(name), Ok(mut old)) = (std::fs::read_to_string(entry.path()), File::open(dir.join(id)))
            else {
                continue;
            };
            let touched = old.metadata().and_then(|it| it.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let file = File::options().append(true).open(dir.join(id))?;
            let content = Hashing::resume(file, &mut old)?;
            open.insert(id.to_owned(), Upload { name, touched, content: Some(content) });
        }
        Ok(Self { dir, open: Mutex::new(open) })
    }

    fn open_uploads(&self) -> std::sync::MutexGuard<'_, HashMap<String, Upload>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    fn begin(&self, name: &str) -> Result<String, Failure> {
        let mut open = self.open_uploads();
        let is_idle =
            |it: &Upload| it.content.is_some() && it.touched.elapsed().is_ok_and(|it| it > UPLOAD_IDLE_MAX);
        let expired: Vec<String> = open.iter().filter(|(_, it)| is_idle(it)).map(|it| it.0.clone()).collect();
        for id in expired {
            open.remove(&id);
            self.remove_files(&id);
        }
        if open.len() >= UPLOADS_MAX {
            let text = format!("{UPLOADS_MAX} uploads are open already");
            return Err(Failure::new(Code::TooManyRequests, text));
        }
        let id = uuid::Uuid::new_v4().to_string();
        let file =
            File::options().create_new(true).append(true).open(self.path(&id)).map_err(write_failed)?;
        std::fs::write(self.dir.join(format!("{id}.name")), name).map_err(write_failed)?;
        let content = Some(Hashing::new(file));
        open.insert(id.clone(), Upload { name: name.to_owned(), touched: SystemTime::now(), content });
        Ok(id)
    }

    /// Takes an upload for one request; it is given back when the guard is dropped.
    fn take<'a>(&'a self, name: &str, id: &'a str) -> Result<Taken<'a>, Failure> {
        let mut open = self.open_uploads();
        let Some(upload) = open.get_mut(id).filter(|it| it.name == name) else {
            return Err(Failure::new(Code::BlobUploadUnknown, "there is no such upload; start over"));
        };
        let Some(content) = upload.content.take() else {
            return Err(Failure::new(Code::RangeInvalid, "another request is writing to this upload"));
        };
        Ok(Taken { uploads: self, id, content: Some(content) })
    }

    fn remove_files(&self, id: &str) {
        let _ = std::fs::remove_file(self.path(id));
        let _ = std::fs::remove_file(self.dir.join(format!("{id}.name")));
    }
}

struct Taken<'a> {
    uploads: &'a Uploads,
    id: &'a str,
    /// None once the upload is over, or broken beyond going on.
    content: Option<Content>,
}

impl Taken<'_> {
    fn bytes(&self) -> u64 {
        self.content.as_ref().map_or(0, Hashing::bytes)
    }

    /// Appends a body to the upload's file. Hashing and writing are a thread's business, because both block.
    async fn append(&mut self, body: Body) -> Result<(), Failure> {
        let Some(mut content) = self.content.take() else {
            return Err(Failure::new(Code::BlobUploadUnknown, "there is no such upload; start over"));
        };
        let (sender, mut chunks) = tokio::sync::mpsc::channel::<Bytes>(CHUNKS_WAITING);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = chunks.blocking_recv() {
                if let Err(error) = content.write_all(&chunk) {
                    return (content, Err(error));
                }
            }
            (content, Ok(()))
        });
        let mut stream = body.into_data_stream();
        let mut outcome = Ok(());
        let mut room = BLOB_BYTES_MAX;
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk else {
                // What came is kept: the client may ask how much and go on.
                outcome = Err(Failure::new(Code::BlobUploadInvalid, "the connection broke off"));
                break;
            };
            let Some(rest) = room.checked_sub(chunk.len() as u64) else {
                outcome = Err(Failure::new(Code::SizeInvalid, "the blob is larger than 32 GiB"));
                break;
            };
            room = rest;
            if sender.send(chunk).await.is_err() {
                break; // the writer says why
            }
        }
        drop(sender);
        let (content, written) = match writing.await {
            Ok(it) => it,
            Err(_) => return Err(Failure::new(Code::Internal, "the upload was not finished")),
        };
        match written {
            Ok(()) => self.content = Some(content),
            Err(error) => {
                // How much of the chunk is there is not known: cut back to what was hashed.
                let (file, bytes) = (content.get_ref(), content.bytes());
                if file.set_len(bytes).is_ok() {
                    self.content = Some(content);
                }
                outcome = Err(write_failed(error));
            }
        }
        outcome
    }

    /// The upload is over, whatever came of it.
    fn close(mut self) -> Option<Content> {
        let content = self.content.take();
        self.uploads.open_uploads().remove(self.id);
        content
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut open = self.uploads.open_uploads();
        match self.content.take() {
            Some(content) => {
                if let Some(upload) = open.get_mut(self.id) {
                    upload.content = Some(content);
                    upload.touched = SystemTime::now();
                }
            }
            None => {
                if open.remove(self.id).is_some() {
                    self.uploads.remove_files(self.id);
                }
            }
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

fn answer(status: StatusCode, name: &str, id: &str, bytes: u64) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(format!("/v2/{name}/blobs/uploads/{id}")));
    headers.insert(header::RANGE, value(format!("0-{}", bytes.saturating_sub(1))));
    headers.insert("docker-upload-uuid", value(id));
    if status != StatusCode::NO_CONTENT {
        headers.insert(header::CONTENT_LENGTH, value("0"));
    }
    response
}

pub fn created(location: String, digest: &Digest) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(location));
    headers.insert("docker-content-digest", value(digest.as_str()));
    headers.insert(header::CONTENT_LENGTH, value("0"));
    response
}

/// `POST`: opens an upload, mounts a blob of repository `from`, or takes a blob in one request.
pub async fn begin(
    inner: &Arc<Inner>,
    name: &str,
    from: Option<String>,
    query: Option<&str>,
    body: Body,
) -> Result<Response, Failure> {
    if let Some(wanted) = query_value(query, "mount") {
        let wanted = digest(&wanted)?;
        if let Some(from) = from.filter(|it| is_repository(it)) {
            let (blob, to) = (wanted.clone(), name.to_owned());
            let is_mounted = blocking(inner, move |inner| {
                let is_there =
                    inner.repositories.has_blob(&from, &blob)? && inner.store.blob_size(&blob).is_some();
                if is_there {
                    let _turn = inner.quotas.turn();
                    let size = inner.store.blob_size(&blob).unwrap_or(0);
                    if let Some(refusal) = inner.quotas.refusal(inner, &to, Taking::Blob(&blob, size))? {
                        return Ok(Err(refusal));
                    }
                    inner.repositories.add_blob(&to, &blob).map_err(|it| io_error(inner, it))?;
                }
                Ok(Ok(is_there))
            });
            if is_mounted.await?? {
                return Ok(created(format!("/v2/{name}/blobs/{wanted}"), &wanted));
            }
        }
    }
    if inner.store.is_over_budget() {
        let text = "the disk budget is used up; `naru df` on the server shows by what";
        return Err(Failure::new(Code::Denied, text)); // clients show the text of a 403, of a 507 not
    }
    within_quota(inner, name, 1).await?;
    let id = inner.uploads.begin(name)?;
    if query_value(query, "digest").is_some() {
        return finish(inner, name, &id, query, &HeaderMap::new(), body).await;
    }
    Ok(answer(StatusCode::ACCEPTED, name, &id, 0))
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
    check_range(headers, upload.bytes())?;
    upload.append(body).await?;
    within_quota(inner, name, upload.bytes()).await?;
    Ok(answer(StatusCode::ACCEPTED, name, id, upload.bytes()))
}

/// Nobody sends to the end what cannot be kept.
async fn within_quota(inner: &Arc<Inner>, name: &str, bytes: u64) -> Result<(), Failure> {
    let name = name.to_owned();
    let refusal = blocking(inner, move |it| it.quotas.refusal(it, &name, Taking::Bytes(bytes)));
    refusal.await?.map_or(Ok(()), Err)
}

/// A chunk that says where it belongs must belong at the end.
fn check_range(headers: &HeaderMap, bytes: u64) -> Result<(), Failure> {
    let Some(range) = header_text(headers, &header::CONTENT_RANGE) else { return Ok(()) };
    let start = range.trim_start_matches("bytes ").split_once('-').and_then(|it| it.0.parse::<u64>().ok());
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
    check_range(headers, upload.bytes())?;
    upload.append(body).await?;
    let content = upload.close();
    let (id, expected, to) = (id.to_owned(), wanted.clone(), name.to_owned());
    blocking(inner, move |inner| {
        let digest = content.map(|it| it.finish().1).map(|it| match expected.algorithm() == it.algorithm() {
            true => Ok(it),
            // Hashed once more, by the algorithm that the client turns out to want.
            false => {
                File::open(inner.uploads.path(&id)).and_then(|mut it| expected.same_kind_of_file(&mut it))
            }
        });
        let digest = digest.transpose().map_err(|it| io_error(inner, it))?;
        let stored = match digest {
            Some(digest) if digest == expected => {
                let _turn = inner.quotas.turn();
                let size = inner.uploads.path(&id).metadata().map_or(0, |it| it.len());
                if let Some(refusal) = inner.quotas.refusal(inner, &to, Taking::Blob(&expected, size))? {
                    inner.uploads.remove_files(&id);
                    return Ok(Err(refusal));
                }
                let adopted = inner.store.adopt_blob(&inner.uploads.path(&id), &expected);
                adopted.and_then(|()| {
                    inner.repositories.add_blob(&to, &expected).map_err(|it| io_error(inner, it))
                })
            }
            Some(actual) => Err(naru_image::Error::WrongDigest { what: "blob", digest: expected, actual }),
            None => Err(io_error(inner, std::io::ErrorKind::NotFound.into())),
        };
        inner.uploads.remove_files(&id);
        stored.map(Ok)
    })
    .await??;
    Ok(created(format!("/v2/{name}/blobs/{wanted}"), &wanted))
}

/// `GET`: how much has come.
pub async fn state(inner: &Arc<Inner>, name: &str, id: &str) -> Result<Response, Failure> {
    let bytes = inner.uploads.take(name, id)?.bytes();
    Ok(answer(StatusCode::NO_CONTENT, name, id, bytes))
}

/// `DELETE`: the client gives up.
pub async fn cancel(inner: &Arc<Inner>, name: &str, id: &str) -> Result<Response, Failure> {
    inner.uploads.take(name, id)?.close();
    inner.uploads.remove_files(id);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
