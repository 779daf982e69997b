//! What the stages hand to each other: our kinds (`Run`, `Workflow`, `Environment`, `Image`, `ImagePolicy`, `Release`), the
//! labels that tie one change together, and the coordinates of the standard kinds that we touch.
//!
//! This crate is API: whatever stands here is read by `kubectl`, by the web page and by every stage.
//! It holds no behaviour beyond building and reading objects.
//!
//! ```
//! use naru_objects::{kinds, ChangeId};
//! assert_eq!(kinds::RUN.path(Some("default"), Some("shop-1")),
//!            "/apis/naru.dev/v1/namespaces/default/runs/shop-1");
//! assert!(ChangeId::mint().as_str().starts_with("c-"));
//! ```

pub mod annotations;
pub mod crds;
pub mod environment;
pub mod image;
pub mod image_policy;
pub mod kinds;
pub mod labels;
pub mod release;
pub mod run;
mod settings;
pub mod workflow;

pub use environment::{Environment, EnvironmentSpec};
pub use image::{Image, ImageAdvice, ImagePhase, ImageSpec, ImageStatus, Upload};
pub use image_policy::{Attestation, Authority, ImagePolicy, ImagePolicySpec, PolicyMode, PublicKey};
pub use kinds::Kind;
pub use release::{
    Release, ReleasePhase, ReleaseSpec, ReleaseStatus, ServiceRollout, Strategy, Verdict, VerdictOutcome,
};
pub use run::{
    Again, Diagnostic, GroupPlace, JobPhase, JobStatus, LostPod, Run, RunPhase, RunSpec, RunStatus,
    StepStatus,
};
pub use settings::{Allowed, Egress, RepositorySettings, RepositorySettingsSpec};
pub use workflow::{Workflow, WorkflowSchedule, WorkflowSpec, WorkflowStatus};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The namespace that Naru's own objects and the apps live in until a team asks for more.
pub const NAMESPACE: &str = "default";

/// The id of one change, minted once at the push: `c-` and ten base-32 characters. It travels as the
/// label [`labels::CHANGE`] on everything that the change causes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChangeId(String);

impl ChangeId {
    /// A new id. Fifty random bits: a team of ten would have to push for a century to see two alike.
    pub fn mint() -> Self {
        const ALPHABET: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let id: String = (0..10).map(|_| ALPHABET[rand::random_range(0..ALPHABET.len())] as char).collect();
        Self(format!("c-{id}"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ChangeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for ChangeId {
    fn from(it: &str) -> Self {
        Self(it.to_owned())
    }
}

/// `metadata` as our kinds use it. Fields that we do not know stay in `rest`, so that reading an object
/// and writing it back loses nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    #[serde(default)]
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<String>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

/// An owner reference from one of our objects to what it causes, so that deleting the cause cleans up.
pub fn owner_reference(owner: &Value) -> Value {
    serde_json::json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"],
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": false,
    })
}

/// RFC 3339 with microseconds, as Kubernetes writes `MicroTime`: fine enough for the walk of a change.
pub fn timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// The object's name, or the empty string.
pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Percent-encodes a text for a URL's query (RFC 3986: unreserved characters stay).
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The value of a label, or the empty string.
pub fn label_of<'a>(object: &'a Value, label: &str) -> &'a str {
    object["metadata"]["labels"][label].as_str().unwrap_or_default()
}

/// A DNS-1123 label made from free text: lower case, dashes, at most `length_max` characters, never
/// empty and never with a dash at either end.
pub fn dns_label(text: &str, length_max: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
        if out.len() >= length_max {
            break;
        }
    }
    let out = out.trim_matches('-');
    if out.is_empty() { "x".into() } else { out.to_owned() }
}

/// As [`dns_label`], and different texts stay different: one that does not survive as it is ends in a
/// short hash of itself.
pub fn dns_label_unique(text: &str, length_max: usize) -> String {
    let label = dns_label(text, length_max);
    if label == text {
        return label;
    }
    // FNV-1a: stable over versions, and nobody gains by making two of their own names collide.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, it| (hash ^ u64::from(it)).wrapping_mul(0x0100_0000_01b3));
    format!("{}-{:08x}", dns_label(text, length_max.saturating_sub(9)), hash >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_that_differ_at_the_end_stay_different() {
        let of = |end: &str| dns_label_unique(&format!("{}-{end}", "a".repeat(70)), 60);
        assert_ne!(of("x"), of("y"));
        assert!(of("x").len() <= 60);
        assert_ne!(dns_label_unique("a_b", 60), dns_label_unique("a-b", 60));
        assert_eq!(dns_label_unique("shop-main-1-test", 60), "shop-main-1-test");
    }

    #[test]
    fn free_text_becomes_a_name_that_kubernetes_accepts() {
        let cases = [("Test on 1.2", "test-on-1-2"), ("--", "x"), ("a_b", "a-b"), ("ends!", "ends")];
        for (text, want) in cases {
            assert_eq!(dns_label(text, 40), want, "{text}");
        }
        assert_eq!(dns_label("abcdef", 3), "abc");
    }

    #[test]
    fn reading_and_writing_back_keeps_unknown_metadata() {
        let meta: Meta = serde_json::from_value(serde_json::json!({"name":"x","finalizers":["a"]})).unwrap();
        assert_eq!(serde_json::to_value(&meta).unwrap()["finalizers"][0], "a");
    }
}
