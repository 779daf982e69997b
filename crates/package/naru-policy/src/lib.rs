//! Which images may run: `ImagePolicy` objects, held against what is signed about an image.
//!
//! In comes an image that is here, and the namespace of the pod that wants it; out comes leave, leave with
//! warnings, or a refusal that says which policy, what was missing and what to type. Nothing is run before that.
//! It signs nothing (naru-builder does, and cosign) and fetches nothing itself (naru-image does).
//!
//! [`judge`] decides; [`Gate`] reads the policies, has signatures fetched, and remembers what passed.

mod dsse;
mod judge;
mod key;
mod pattern;

pub use dsse::{Envelope, pre_authentication};
pub use judge::{Authorities, Finding, Lacks, judge};
pub use key::{Key, KeyError};

use naru_client::Client;
use naru_image::{Credential, Digest, ImageStore, LocalImage, Reference, Signed};
use naru_objects::{ImagePolicy, PolicyMode, kinds};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

const PASSED_MAX: usize = 10_000; // a pair of image and policy each; then it is all checked again

/// Why an image may not run.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the policies that say which images may run cannot be read")]
    Policies(#[source] naru_client::Error),
    #[error(
        "ImagePolicy `{policy}` cannot be understood, so nothing that it covers runs: {why}; mend it with: kubectl edit imagepolicy {policy}"
    )]
    Unreadable { policy: String, why: String },
    #[error("what is signed about `{image}` cannot be read")]
    Signed { image: String, source: naru_image::Error },
    #[error("{0}")]
    NotVouchedFor(String),
}

/// How this daemon knows what it has built itself.
#[derive(Clone)]
pub struct Own {
    /// Ed25519, 32 bytes.
    pub public_key: Vec<u8>,
    /// The repository that holds its statements.
    pub repository: String,
}

/// What one policy says about an image.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub policy: String,
    pub mode: PolicyMode,
    /// Who vouches for the image.
    pub authority: Option<String>,
    /// Why nobody does.
    pub why: String,
}

/// The gate that every pod's image passes. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    store: ImageStore,
    client: Client,
    own: Option<Own>,
    /// Who vouched for which image by which policy (with its version): a signature that held goes on to hold.
    passed: Mutex<HashMap<(Digest, String), String>>,
}

impl Gate {
    pub fn new(store: ImageStore, client: Client, own: Option<Own>) -> Self {
        Self(Arc::new(Inner { store, client, own, passed: Mutex::default() }))
    }

    /// Whether a pod of this namespace may run the image: with these warnings, or not at all.
    pub async fn admit(
        &self,
        namespace: &str,
        image: &LocalImage,
        credentials: &[Credential],
    ) -> Result<Vec<String>, Refusal> {
        let mut warnings = Vec::new();
        for verdict in self.verdicts(namespace, image, credentials).await? {
            if verdict.authority.is_some() {
                continue;
            }
            match verdict.mode {
                PolicyMode::Enforce => return Err(Refusal::NotVouchedFor(verdict.why)),
                PolicyMode::Warn => warnings.push(verdict.why),
            }
        }
        Ok(warnings)
    }

    /// What each policy that covers the image says.
    pub async fn verdicts(
        &self,
        namespace: &str,
        image: &LocalImage,
        credentials: &[Credential],
    ) -> Result<Vec<Verdict>, Refusal> {
        let policies = self.policies_for(namespace, image).await?;
        let is_own_root = image.host.is_some() && image.layers.is_empty();
        if policies.is_empty() || is_own_root || self.0.store.is_transient(&image.digest) {
            // This machine's own root was fetched from nowhere; a build's step is of an image that is judged when
            // it is done.
            return Ok(Vec::new());
        }
        let mut verdicts = Vec::new();
        let mut signed: Option<(Vec<Digest>, Vec<Signed>)> = None;
        let mut was_asked = false;
        for policy in policies {
            let name = policy.metadata.name.clone();
            let keys = Authorities::read(&policy.spec)
                .map_err(|why| Refusal::Unreadable { policy: name.clone(), why })?;
            let version = format!("{}/{}", policy.metadata.uid, policy.metadata.resource_version);
            let known = (image.digest.clone(), version);
            let mut verdict =
                Verdict { policy: name, mode: policy.spec.mode, authority: None, why: String::new() };
            verdict.authority = self.passed().get(&known).cloned();
            while verdict.authority.is_none() {
                let (digests, documents) = match &signed {
                    Some(it) => it,
                    None => signed.insert(self.known(image)?),
                };
                let finding = judge(&keys, digests, documents, self.0.own.as_ref());
                match finding {
                    Finding::VouchedFor { authority } => {
                        self.remember(known.clone(), authority.clone());
                        verdict.authority = Some(authority);
                    }
                    // Once per question: what is kept may be older than what its registry has now.
                    Finding::Lacking(_) if !was_asked && keys.any_key() => {
                        was_asked = true;
                        if self.fetch(image, credentials).await? {
                            signed = None;
                        }
                    }
                    Finding::Lacking(lacks) => {
                        verdict.why = explain(&image.reference, image, digests, &verdict.policy, &lacks);
                        break;
                    }
                }
            }
            verdicts.push(verdict);
        }
        Ok(verdicts)
    }

    async fn policies_for(&self, namespace: &str, image: &LocalImage) -> Result<Vec<ImagePolicy>, Refusal> {
        let objects = self.0.client.list(&kinds::IMAGE_POLICY, None, "").await.map_err(Refusal::Policies)?;
        let mut found = Vec::new();
        for object in objects {
            let name = naru_objects::name_of(&object).to_owned();
            let policy: ImagePolicy = serde_json::from_value(object)
                .map_err(|it| Refusal::Unreadable { policy: name, why: it.to_string() })?;
            if covers(&policy, namespace, &image.reference) {
                found.push(policy);
            }
        }
        Ok(found)
    }

    fn known(&self, image: &LocalImage) -> Result<(Vec<Digest>, Vec<Signed>), Refusal> {
        let repository = self.0.own.as_ref().map_or("", |it| it.repository.as_str());
        let read = || -> naru_image::Result<_> {
            Ok((self.0.store.signed_digests(image)?, self.0.store.known_signed(image, repository)?))
        };
        read().map_err(|source| Refusal::Signed { image: image.reference.clone(), source })
    }

    /// Whether the image's registry was there to be asked.
    async fn fetch(&self, image: &LocalImage, credentials: &[Credential]) -> Result<bool, Refusal> {
        let fetched = self.0.store.fetch_signed(image, credentials).await;
        let fetched = fetched.map_err(|source| Refusal::Signed { image: image.reference.clone(), source })?;
        Ok(fetched.is_some())
    }

    fn passed(&self) -> std::sync::MutexGuard<'_, HashMap<(Digest, String), String>> {
        self.0.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, passed: (Digest, String), authority: String) {
        let mut all = self.passed();
        if all.len() >= PASSED_MAX {
            all.clear();
        }
        all.insert(passed, authority);
    }
}

/// Whether a policy is about an image of this name in this namespace. A name counts as it is written, short and
/// full.
fn covers(policy: &ImagePolicy, namespace: &str, image: &str) -> bool {
    let any = |patterns: &[String], texts: &[&str]| {
        patterns.is_empty() || patterns.iter().any(|it| texts.iter().any(|text| pattern::matches(it, text)))
    };
    let (full, familiar) = match Reference::parse(image) {
        Ok(it) => {
            let named = Reference { digest: None, ..it.clone() };
            let named = if named.tag.is_none() { named.name() } else { named.to_string() };
            (named, it.familiar())
        }
        Err(_) => (image.to_owned(), image.to_owned()),
    };
    any(&policy.spec.namespaces, &[namespace]) && any(&policy.spec.images, &[image, &full, &familiar])
}

/// The refusal: image, policy, what each authority lacked, and what to type.
fn explain(name: &str, image: &LocalImage, digests: &[Digest], policy: &str, lacks: &[Lacks]) -> String {
    let command = match lacks.iter().all(|it| it.is_statement) {
        true => "cosign attest --key KEY --type slsaprovenance1 --predicate FILE",
        false => "cosign sign --key KEY",
    };
    let lacks: Vec<String> = lacks.iter().map(|it| format!("{}: {}", it.authority, it.why)).collect();
    // What people sign is what the name stands for: an index, if there is one.
    let signed = digests.iter().find(|it| **it != image.digest).unwrap_or(&image.digest);
    let place = Reference::parse(name).map_or_else(|_| name.to_owned(), |it| it.name());
    format!(
        "ImagePolicy `{policy}` does not let `{name}` ({}) run: {}; sign it (`{command} {place}@{signed}`), \
         build it here (`naru build`), or look at the policy (`kubectl get imagepolicy {policy} -o yaml`)",
        image.digest,
        lacks.join("; "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use naru_objects::ImagePolicySpec;

    #[test]
    fn a_policy_covers_names_as_they_are_written_short_or_full() {
        let policy = |namespaces: &[&str], images: &[&str]| ImagePolicy {
            spec: ImagePolicySpec {
                namespaces: namespaces.iter().map(|&it| it.to_owned()).collect(),
                images: images.iter().map(|&it| it.to_owned()).collect(),
                ..Default::default()
            },
            ..Default::default()
        };
        for (namespaces, images, image, want) in [
            (&[][..], &[][..], "busybox", true),
            (&["prod-*"], &[], "busybox", false),
            (&["sh?p"], &["busybox"], "busybox", true),
            (&[], &["docker.io/library/*"], "busybox", true),
            (&[], &["busybox:*"], "busybox", true),
            (&[], &["ghcr.io/acme/*"], "ghcr.io/acme/web/api:1", true),
            (&[], &["ghcr.io/acme/*"], "ghcr.io/acme2/web:1", false),
            (&[], &["ghcr.io/acme/web:1"], &format!("ghcr.io/acme/web:1@{}", Digest::of("")), true),
        ] {
            assert_eq!(covers(&policy(namespaces, images), "shop", image), want, "{images:?} {image}");
        }
    }
}
