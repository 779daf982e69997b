//! Manifests pushed and deleted, blobs deleted. A manifest is taken only when everything that it names is in its
//! repository, so whoever sees it can pull it.

use crate::answer::{Code, Failure, value};
use crate::quota::Taking;
use crate::read::{blocking, is_manifest};
use crate::upload::created;
use crate::{Inner, Wanted, digest, header_text, wanted};
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use naru_image::oci::{ANNOTATION_BASE, media_type};
use naru_image::{Digest, Error, Repositories};
use serde_json::Value;
use std::sync::Arc;

const MANIFEST_BYTES_MAX: usize = 4 << 20; // as most registries

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
    let is_index = document["manifests"].is_array();
    if document["schemaVersion"] != 2
        || !is_manifest(&document)
        || (is_index && document["config"].is_object())
    {
        return Err(invalid("neither an image manifest nor an index of schema version 2"));
    }
    if document["annotations"][ANNOTATION_BASE] == "host" {
        return Err(invalid("an image over another machine's root means nothing here"));
    }
    let declared =
        header_text(headers, &header::CONTENT_TYPE).map(|it| it.split(';').next().unwrap_or(it).trim());
    let own = document["mediaType"].as_str();
    if let (Some(declared), Some(own)) = (declared, own)
        && declared != own
    {
        return Err(invalid("the media type in the document is not the one of the request"));
    }
    let actual = match &wanted {
        Wanted::Digest(digest) => digest.same_kind_of(&bytes),
        Wanted::Tag(_) => Digest::of(&bytes),
    };
    if let Wanted::Digest(digest) = &wanted
        && *digest != actual
    {
        return Err(Failure::new(Code::DigestInvalid, format!("the manifest's digest is {actual}")));
    }
    let (name_owned, document_) = (name.to_owned(), document.clone());
    let missing = blocking(inner, move |it| missing(&it.repositories, &name_owned, &document_)).await?;
    if let Some(digest) = missing {
        return Err(Failure::new(Code::ManifestBlobUnknown, format!("{digest} is not here; push it first")));
    }
    let default = if is_index { media_type::INDEX } else { media_type::MANIFEST };
    let kind = own.or(declared).unwrap_or(default).to_owned();
    let tag = match wanted {
        Wanted::Tag(tag) => Some(inner.reference(name, Some(tag), None)),
        Wanted::Digest(_) => None,
    };
    let name_owned = name.to_owned();
    let (digest, subject) = blocking(inner, move |inner| {
        let digest = actual;
        let size = bytes.len() as u64;
        let _turn = inner.quotas.turn();
        let tag_name = tag.as_ref().and_then(|it| it.tag.as_deref());
        for taking in [Some(Taking::Blob(&digest, size)), tag_name.map(Taking::Tag)].into_iter().flatten() {
            if let Some(refusal) = inner.quotas.refusal(inner, &name_owned, taking)? {
                return Ok(Err(refusal));
            }
        }
        inner.store.put_blob_as(&bytes, &digest)?;
        let added = inner.repositories.add_manifest(&name_owned, &digest, &document, &kind, size);
        let subject = added.map_err(|source| io_error(inner, source))?;
        if let Some(tag) = tag {
            inner.store.tag(&tag, &digest, &kind)?;
        }
        Ok(Ok((digest, subject)))
    })
    .await??;
    let mut response = created(format!("/v2/{name}/manifests/{digest}"), &digest);
    if let Some(subject) = subject {
        // Tells the client that it need not keep a list of referrers under a tag (specification 1.1).
        response.headers_mut().insert("oci-subject", value(subject.as_str()));
    }
    Ok(response)
}

/// The first thing that a manifest names and its repository has not.
fn missing(repositories: &Repositories, name: &str, document: &Value) -> Result<Option<Digest>, Error> {
    let list = |key: &str| document[key].as_array().cloned().unwrap_or_default();
    let digest = |it: &Value| Digest::parse(it["digest"].as_str()?).ok();
    // Layers that are to be had elsewhere are never pushed (image specification, non-distributable layers).
    let is_ours = |it: &&Value| {
        let kind = it["mediaType"].as_str().unwrap_or_default();
        !kind.contains("nondistributable") && !kind.contains(".foreign.")
    };
    let blobs = list("layers");
    for blob in blobs.iter().filter(is_ours).chain([&document["config"]]).filter_map(digest) {
        if !repositories.has_blob(name, &blob)? {
            return Ok(Some(blob));
        }
    }
    for child in list("manifests").iter().filter_map(digest) {
        if !repositories.has_manifest(name, &child)? {
            return Ok(Some(child));
        }
    }
    Ok(None)
}

pub fn io_error(inner: &Inner, source: std::io::Error) -> Error {
    Error::Io { what: "write", path: inner.store.dir().join("registry"), source }
}

fn accepted() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// `DELETE`: takes a name away, or a manifest with all its names in this repository.
pub async fn delete_manifest(inner: &Arc<Inner>, name: &str, reference: &str) -> Result<Response, Failure> {
    let in_repository = format!("{}:", inner.reference(name, None, None).name());
    let wanted = wanted(reference)?;
    let (tag, digest) = match &wanted {
        Wanted::Tag(tag) => (Some((*tag).to_owned()), None),
        Wanted::Digest(digest) => (None, Some(digest.clone())),
    };
    let name_owned = name.to_owned();
    let is_done = blocking(inner, move |inner| {
        let mut is_done = false;
        for (full, manifest) in inner.store.tags()? {
            let Some(short) = full.strip_prefix(&in_repository) else { continue };
            if tag.as_deref() == Some(short) || digest.as_ref() == Some(&manifest.digest) {
                is_done |= inner.store.untag(&inner.reference(&name_owned, Some(short), None))?;
                inner.repositories.settle(&name_owned, &manifest.digest);
            }
        }
        if let Some(digest) = digest {
            let bytes =
                inner.store.read_blob("manifest", &digest, MANIFEST_BYTES_MAX as u64).unwrap_or_default();
            let document = serde_json::from_slice(&bytes).unwrap_or_default();
            let removed = inner.repositories.remove_manifest(&name_owned, &digest, &document);
            is_done |= removed.map_err(|source| io_error(inner, source))?;
        }
        Ok(is_done)
    })
    .await?;
    match is_done {
        true => Ok(accepted()),
        false => {
            let text = format!("there is no manifest {reference} in {name}");
            Err(Failure::new(Code::ManifestUnknown, text))
        }
    }
}

/// `DELETE`: takes a blob out of this repository. Images of it that need it go on having it.
pub async fn delete_blob(inner: &Arc<Inner>, name: &str, text: &str) -> Result<Response, Failure> {
    let digest = digest(text)?;
    let name_owned = name.to_owned();
    let is_done = blocking(inner, move |inner| {
        inner.repositories.remove_blob(&name_owned, &digest).map_err(|source| io_error(inner, source))
    })
    .await?;
    match is_done {
        true => Ok(accepted()),
        false => Err(Failure::new(Code::BlobUnknown, format!("there is no blob {text} in {name}"))),
    }
}
