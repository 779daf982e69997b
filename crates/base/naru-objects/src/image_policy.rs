//! `ImagePolicy`: which images may run, by who has signed them and what is attested about them. Of the whole
//! cluster; written by people, read by package before a pod's container starts.

use crate::Meta;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImagePolicy {
    pub metadata: Meta,
    pub spec: ImagePolicySpec,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImagePolicySpec {
    pub mode: PolicyMode,
    /// Patterns of namespaces; none means all. `*` stands for anything.
    pub namespaces: Vec<String>,
    /// Patterns of image names, short or full; none means all.
    pub images: Vec<String>,
    /// Who may vouch for an image. One of them is enough.
    pub authorities: Vec<Authority>,
}

/// What happens to an image that nobody vouches for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyMode {
    /// It does not run.
    #[default]
    Enforce,
    /// It runs, and the pod has an Event.
    Warn,
}

/// One who may vouch: a key, or this daemon itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Authority {
    /// For messages.
    pub name: String,
    pub key: Option<PublicKey>,
    /// The image was built by this daemon, which signs what it builds.
    pub built_here: bool,
    /// What has to be attested with the key, all of it. None means that a signature is enough.
    pub attestations: Vec<Attestation>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicKey {
    /// PEM, `-----BEGIN PUBLIC KEY-----`: ECDSA P-256 and P-384, Ed25519, RSA.
    pub data: String,
}

/// An in-toto statement about the image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attestation {
    /// `https://slsa.dev/provenance/v1`.
    pub predicate_type: String,
    /// Patterns of which one matches the builder's id (SLSA provenance).
    pub builders: Vec<String>,
    /// Patterns of which one matches a source it was built from (SLSA provenance).
    pub sources: Vec<String>,
}
