//! What others have signed about an image: cosign's signatures and attestations beside it in its repository
//! (`sha256-<hex>.sig`, `.att`), and referrers that hold a DSSE envelope or a Sigstore bundle.
//!
//! Here they are found and kept, so that a pod can start while the registry is away. Whether one of them holds,
//! and whose word counts, is naru-policy's business: nothing here is trusted.

use crate::Credential;
use crate::digest::Digest;
use crate::images::{LocalImage, Resolved};
use crate::oci::{Descriptor, Index};
use crate::reference::Reference;
use crate::remote::{RegistryError, Remote};
use crate::repositories::Repositories;
use crate::store::{Error, ImageStore, MANIFEST_BYTES_MAX, Result, io_error};
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle"; // and `.v0.3+json`, or `+json;version=0.1`
const SIGNED_BYTES_MAX: u64 = 4 << 20; // statements with lists of contents come close
const SIGNED_MAX: usize = 64; // of one image; more is somebody's attack on our time

/// One signed document. Its own signature vouches for it, wherever it was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Signed {
    /// cosign's: the text that was signed, and the signature, both in base64.
    Payload { text: String, signature: String },
    /// DSSE around an in-toto statement.
    Envelope(Value),
}

/// How a document is to be read out of a blob.
enum Form {
    Payload { signature: String },
    Envelope,
    Bundle,
}

impl Form {
    fn read(&self, bytes: &[u8]) -> Option<Signed> {
        let json = || serde_json::from_slice::<Value>(bytes).ok();
        match self {
            Self::Payload { signature } => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                Some(Signed::Payload { text, signature: signature.clone() })
            }
            Self::Envelope => json().filter(|it| it["payload"].is_string()).map(Signed::Envelope),
            Self::Bundle => json()
                .map(|mut it| it["dsseEnvelope"].take())
                .filter(|it| it["payload"].is_string())
                .map(Signed::Envelope),
        }
    }
}

/// The signed documents that a manifest holds.
fn documents(manifest: &Value) -> Vec<(Descriptor, Form)> {
    let layers = manifest["layers"].as_array().into_iter().flatten();
    let document = |layer: &Value| -> Option<(Descriptor, Form)> {
        let blob: Descriptor = serde_json::from_value(layer.clone()).ok()?;
        let form = match blob.media_type.as_str() {
            SIMPLE_SIGNING => Form::Payload { signature: blob.annotations.get(SIGNATURE)?.clone() },
            ENVELOPE => Form::Envelope,
            it if it.starts_with(BUNDLE) => Form::Bundle,
            _ => return None,
        };
        (blob.size <= SIGNED_BYTES_MAX).then_some((blob, form))
    };
    layers.filter_map(document).take(SIGNED_MAX).collect()
}

/// The tags that cosign keeps what is said about an image under.
fn tags_beside(digest: &Digest) -> [String; 2] {
    [".sig", ".att"].map(|it| format!("{}-{}{it}", digest.algorithm(), digest.hex()))
}

impl ImageStore {
    /// The digests under which an image may have been signed: its manifest's, and that of the index which its
    /// name stands for.
    pub fn signed_digests(&self, image: &LocalImage) -> Result<Vec<Digest>> {
        let mut digests = vec![image.digest.clone()];
        let Resolved::Name(reference) = self.resolve_name(&image.reference)? else { return Ok(digests) };
        // An index that is not here was followed when the image was pulled by it.
        digests.extend(reference.digest.clone());
        if let Some(entry) = self.find(&reference)? {
            let leads_here = entry.digest == image.digest
                || self.for_this_machine(&entry.digest)?.is_some_and(|it| it == image.digest);
            if leads_here {
                digests.push(entry.digest.clone());
                let index = entry.annotations.get(crate::usage::ANNOTATION_INDEX);
                digests.extend(index.and_then(|it| Digest::parse(it).ok()));
            }
        }
        digests.sort();
        digests.dedup();
        Ok(digests)
    }

    /// What is signed about an image and is here: in its repository of ours, in `repository` (of statements about
    /// any image), and what [`ImageStore::fetch_signed`] kept.
    pub fn known_signed(&self, image: &LocalImage, repository: &str) -> Result<Vec<Signed>> {
        let mut found: Vec<Signed> = fs::read(self.signed_path(&image.digest))
            .ok()
            .and_then(|it| serde_json::from_slice(&it).ok())
            .unwrap_or_default();
        let Resolved::Name(reference) = self.resolve_name(&image.reference)? else { return Ok(found) };
        let repositories = self.repositories();
        for digest in self.signed_digests(image)? {
            for tag in tags_beside(&digest) {
                let name = Reference { tag: Some(tag), digest: None, ..reference.clone() };
                if let Some(entry) = self.find(&name)? {
                    self.read_signed(&entry.digest, &mut found);
                }
            }
            let own = reference.is_local_only().then_some(reference.repository.as_str());
            for repository in own.into_iter().chain([repository]) {
                self.read_referrers(&repositories, repository, &digest, &mut found);
            }
        }
        Ok(found)
    }

    fn read_referrers(
        &self,
        repositories: &Repositories,
        name: &str,
        subject: &Digest,
        found: &mut Vec<Signed>,
    ) {
        for descriptor in repositories.referrers(name, subject).into_iter().take(SIGNED_MAX) {
            if let Ok(digest) = Digest::parse(descriptor["digest"].as_str().unwrap_or_default()) {
                self.read_signed(&digest, found);
            }
        }
    }

    /// Adds what a manifest of ours holds. One that cannot be read vouches for nothing.
    fn read_signed(&self, manifest: &Digest, found: &mut Vec<Signed>) {
        let Ok(manifest) = self.read_json::<Value>("manifest", manifest, MANIFEST_BYTES_MAX) else { return };
        for (blob, form) in documents(&manifest) {
            let Ok(bytes) = self.read_blob("signature", &blob.digest, SIGNED_BYTES_MAX) else { continue };
            add(found, form.read(&bytes));
        }
    }

    /// Asks the registry of an image for what is signed about it, and keeps that beside the image. None for an
    /// image that no registry gave us.
    pub async fn fetch_signed(
        &self,
        image: &LocalImage,
        credentials: &[Credential],
    ) -> Result<Option<Vec<Signed>>> {
        let Resolved::Name(reference) = self.resolve_name(&image.reference)? else { return Ok(None) };
        let was_made_here = || -> Result<bool> {
            let tagged = Reference { digest: None, ..reference.clone() };
            let entry = if tagged.tag.is_some() { self.find(&tagged)? } else { None };
            Ok(entry.is_some_and(|it| !it.annotations.contains_key(crate::usage::ANNOTATION_PULLED)))
        };
        if reference.is_local_only() || was_made_here()? {
            return Ok(None);
        }
        let digests = self.signed_digests(image)?;
        let mut failure = None;
        for remote in Remote::all_for_pull(self, &reference, credentials).await? {
            match remote.signed(&digests).await {
                Ok(found) => {
                    let text = serde_json::to_vec(&found).expect("signed documents are plain data");
                    let path = self.signed_path(&image.digest);
                    let dir = path.parent().expect("the path has a directory");
                    fs::create_dir_all(dir).map_err(io_error("create", dir))?;
                    self.write_cache_file(&path, &text)?;
                    return Ok(Some(found));
                }
                Err(it) => failure = Some(it),
            }
        }
        Err(Error::Registry(failure.expect("the registry itself is always asked")))
    }

    fn signed_path(&self, image: &Digest) -> PathBuf {
        self.dir().join("signed").join(image.hex())
    }

    /// Forgets what was kept about images that are no longer here.
    pub(crate) fn forget_signed(&self) -> Result<()> {
        let dir = self.dir().join("signed");
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let digest = Digest::from_hex(&entry.file_name().to_string_lossy());
            if digest.is_none_or(|it| self.blob_size(&it).is_none()) {
                fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}

fn add(found: &mut Vec<Signed>, document: Option<Signed>) {
    if let Some(it) = document.filter(|it| !found.contains(it))
        && found.len() < SIGNED_MAX
    {
        found.push(it);
    }
}

impl Remote {
    async fn signed(&self, digests: &[Digest]) -> Result<Vec<Signed>, RegistryError> {
        let mut found = Vec::new();
        for digest in digests {
            let mut manifests = tags_beside(digest).to_vec();
            manifests.extend(self.referrers(digest).await?);
            for wanted in manifests.iter().take(SIGNED_MAX) {
                let (_, bytes) = match self.manifest(wanted).await {
                    Ok(it) => it,
                    Err(RegistryError::NotFound { .. }) => continue,
                    Err(it) => return Err(it),
                };
                let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                for (blob, form) in documents(&manifest) {
                    add(&mut found, form.read(&self.small_blob(&blob).await?));
                }
            }
        }
        Ok(found)
    }

    /// Digests of the manifests that refer to this one: of the registry's list, or of the index that clients keep
    /// under a tag where the registry has no list.
    async fn referrers(&self, digest: &Digest) -> Result<Vec<String>, RegistryError> {
        let listed = match self.small_json(&format!("referrers/{digest}")).await {
            Err(RegistryError::NotFound { .. } | RegistryError::Status { status: 400..=499, .. }) => None,
            other => Some(other?),
        };
        let list = match listed {
            Some(it) => it,
            None => match self.manifest(&format!("{}-{}", digest.algorithm(), digest.hex())).await {
                Ok((_, bytes)) => bytes,
                Err(RegistryError::NotFound { .. }) => return Ok(Vec::new()),
                Err(it) => return Err(it),
            },
        };
        let index: Option<Index> = serde_json::from_slice(&list).ok();
        let manifests = index.map(|it| it.manifests).unwrap_or_default();
        Ok(manifests.into_iter().map(|it| it.digest.to_string()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_three_forms_are_read_and_everything_else_is_left() {
        let digest = Digest::of("x");
        let layer = |kind: &str, size: u64| {
            json!({"mediaType": kind, "digest": digest, "size": size,
            "annotations": {SIGNATURE: "c2ln"}})
        };
        let manifest = json!({"layers": [
            layer(SIMPLE_SIGNING, 5), layer(ENVELOPE, 5), layer("application/vnd.dev.sigstore.bundle.v0.3+json", 5),
            layer("application/spdx+json", 5), layer(ENVELOPE, SIGNED_BYTES_MAX + 1),
            json!({"mediaType": SIMPLE_SIGNING, "digest": digest, "size": 1}), json!("odd"),
        ]});
        let found = documents(&manifest);
        assert_eq!(found.len(), 3);
        let envelope = json!({"payload": "e30=", "signatures": []});
        assert_eq!(
            found[0].1.read(b"text"),
            Some(Signed::Payload { text: "dGV4dA==".into(), signature: "c2ln".into() })
        );
        assert_eq!(
            found[1].1.read(envelope.to_string().as_bytes()),
            Some(Signed::Envelope(envelope.clone()))
        );
        let bundle = json!({"dsseEnvelope": envelope});
        assert_eq!(found[2].1.read(bundle.to_string().as_bytes()), Some(Signed::Envelope(envelope)));
        assert_eq!(found[2].1.read(b"{}"), None);
    }
}
