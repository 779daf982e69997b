//! Where an image comes from, in a form that others can check: an in-toto statement with SLSA's provenance
//! (v1), signed as a DSSE envelope with this daemon's Ed25519 key, kept as an OCI referrer of the image.
//!
//! It says what the daemon itself saw: which source, which bases, which arguments. Values of arguments that
//! look like secrets are left out.

use base64::Engine as _;
use naru_image::oci::media_type;
use naru_image::{Digest, ImageStore};
use naru_policy::{Envelope, pre_authentication};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The repository whose referrers hold every statement, whatever the image is called.
pub const ATTESTATIONS: &str = "naru/attestations";
const STATEMENT: &str = "application/vnd.in-toto+json";
const ENVELOPE: &str = "application/vnd.dsse.envelope.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const PREDICATE: &str = "https://slsa.dev/provenance/v1";
const BUILD_TYPE: &str = "https://naru.dev/build/dockerfile/v1";
const BUILDER: &str = "https://naru.dev/builder/v1";
const DOCUMENT_BYTES_MAX: u64 = 4 << 20; // as a manifest

/// What one build was made of.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub names: Vec<String>,
    /// `repository` and `commit`, or `context` with its digest.
    pub source: BTreeMap<String, String>,
    pub dockerfile: String,
    pub dockerfile_digest: Option<Digest>,
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
    /// Base images and their manifests.
    pub bases: BTreeMap<String, Digest>,
    /// What it was built for, `linux/amd64`.
    pub platforms: Vec<String>,
    /// RFC 3339.
    pub started: String,
    pub finished: String,
}

/// Signs with a key that never leaves its file.
pub struct Signer {
    key: Ed25519KeyPair,
}

impl Signer {
    /// Reads the key, or makes one at the first start; mode 0600.
    pub fn open(path: &Path) -> io::Result<Self> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let bytes = match std::fs::read(path) {
            Ok(it) => it,
            Err(it) if it.kind() == io::ErrorKind::NotFound => {
                let made = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new());
                let made = made.map_err(|_| io::Error::other("no random numbers for a key"))?;
                let fresh = path.with_extension("new");
                let mut options = std::fs::File::options();
                let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
                file.write_all(made.as_ref())?;
                file.sync_all()?;
                std::fs::rename(&fresh, path)?;
                made.as_ref().to_vec()
            }
            Err(it) => return Err(it),
        };
        let key = Ed25519KeyPair::from_pkcs8(&bytes)
            .map_err(|it| io::Error::other(format!("{} is not a key: {it}", path.display())))?;
        Ok(Self { key })
    }

    /// Tells keys apart: the digest of the public half.
    pub fn key_id(&self) -> String {
        Digest::of(self.key.public_key().as_ref()).hex().to_owned()
    }

    pub fn public_key(&self) -> Vec<u8> {
        self.key.public_key().as_ref().to_vec()
    }

    fn envelope(&self, statement: &Value) -> Value {
        let payload = statement.to_string();
        let encode = |it: &[u8]| base64::engine::general_purpose::STANDARD.encode(it);
        let signature = self.key.sign(&pre_authentication(STATEMENT, payload.as_bytes()));
        json!({
            "payloadType": STATEMENT, "payload": encode(payload.as_bytes()),
            "signatures": [{"keyid": self.key_id(), "sig": encode(signature.as_ref())}],
        })
    }

    /// Writes a statement about an image down, unless there is one.
    pub fn attest(&self, store: &ImageStore, image: &Digest, facts: &Facts) -> naru_image::Result<()> {
        let repositories = store.repositories();
        if !repositories.referrers(ATTESTATIONS, image).is_empty() {
            return Ok(());
        }
        let kind = match store.as_index(image)? {
            Some(_) => media_type::INDEX,
            None => media_type::MANIFEST,
        };
        let envelope = self.envelope(&statement(image, facts)).to_string();
        let layer = store.put_blob(envelope.as_bytes())?;
        let empty = store.put_blob(b"{}")?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::MANIFEST, "artifactType": STATEMENT,
            "config": {"mediaType": EMPTY, "digest": empty, "size": 2},
            "layers": [{
                "mediaType": ENVELOPE, "digest": layer, "size": envelope.len(),
                "annotations": {"in-toto.io/predicate-type": PREDICATE},
            }],
            "subject": {
                "mediaType": kind, "digest": image,
                "size": store.blob_size(image).unwrap_or_default(),
            },
            "annotations": {"in-toto.io/predicate-type": PREDICATE},
        });
        let bytes = manifest.to_string();
        let digest = store.put_blob(bytes.as_bytes())?;
        let failed = |source| naru_image::Error::Io {
            what: "write down",
            path: store.dir().join("registry").join(ATTESTATIONS),
            source,
        };
        for blob in [&layer, &empty] {
            repositories.add_blob(ATTESTATIONS, blob).map_err(failed)?;
        }
        let size = bytes.len() as u64;
        repositories
            .add_manifest(ATTESTATIONS, &digest, &manifest, media_type::MANIFEST, size)
            .map_err(failed)?;
        Ok(())
    }

    /// Looks for a statement about an image that this key signed.
    pub fn verify(&self, store: &ImageStore, image: &Digest) -> Verdict {
        let found = store.repositories().referrers(ATTESTATIONS, image);
        if found.is_empty() {
            return Verdict::refused("nothing is known about where it comes from: it was not built here");
        }
        let mut last = Verdict::refused("no statement about it could be read");
        for descriptor in found {
            match self.check(store, &descriptor, image) {
                Ok(statement) => {
                    let key_id = self.key_id();
                    return Verdict { is_verified: true, key_id, why: String::new(), statement };
                }
                Err(why) => last = Verdict::refused(&why),
            }
        }
        last
    }

    fn check(&self, store: &ImageStore, descriptor: &Value, image: &Digest) -> Result<Value, String> {
        let read = |digest: &Value| -> Result<Value, String> {
            let digest = Digest::parse(digest.as_str().unwrap_or_default()).map_err(|it| it.to_string())?;
            let bytes =
                store.read_blob("statement", &digest, DOCUMENT_BYTES_MAX).map_err(|it| it.to_string())?;
            serde_json::from_slice(&bytes).map_err(|it| it.to_string())
        };
        let manifest = read(&descriptor["digest"])?;
        let envelope = read(&manifest["layers"][0]["digest"])?;
        self.check_envelope(&envelope, image)
    }

    fn check_envelope(&self, envelope: &Value, image: &Digest) -> Result<Value, String> {
        let Envelope { kind, payload, signatures } = Envelope::read(envelope)?;
        let own = naru_policy::Key::ed25519(self.public_key());
        let signed = pre_authentication(&kind, &payload);
        if !signatures.iter().any(|it| own.has_signed(&signed, it)) {
            return Err("the statement is not signed with this daemon's key".into());
        }
        // Only what is signed is looked at.
        let statement: Value = serde_json::from_slice(&payload).map_err(|it| it.to_string())?;
        let subjects = statement["subject"].as_array().map(Vec::as_slice).unwrap_or_default();
        if kind != STATEMENT || !subjects.iter().any(|it| it["digest"]["sha256"] == image.hex()) {
            return Err("the statement is about another image".into());
        }
        if statement["predicate"]["runDetails"]["builder"]["id"] != BUILDER {
            return Err("the statement names another builder".into());
        }
        Ok(statement)
    }
}

/// Forgets what is said about images that are no more. The content goes with the next collection.
pub(crate) fn forget_the_gone(store: &ImageStore) -> io::Result<()> {
    let repositories = store.repositories();
    for subject in repositories.subjects(ATTESTATIONS) {
        if store.blob_size(&subject).is_some() {
            continue;
        }
        for descriptor in repositories.referrers(ATTESTATIONS, &subject) {
            let Ok(digest) = Digest::parse(descriptor["digest"].as_str().unwrap_or_default()) else {
                continue;
            };
            let Ok(bytes) = store.read_blob("statement", &digest, DOCUMENT_BYTES_MAX) else { continue };
            let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            if let Ok(layer) = Digest::parse(document["layers"][0]["digest"].as_str().unwrap_or_default()) {
                repositories.remove_blob(ATTESTATIONS, &layer)?;
            }
            repositories.remove_manifest(ATTESTATIONS, &digest, &document)?;
        }
    }
    Ok(())
}

/// Whether an image is what it is said to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    pub is_verified: bool,
    pub key_id: String,
    /// Why not.
    pub why: String,
    pub statement: Value,
}

impl Verdict {
    fn refused(why: &str) -> Self {
        Self { is_verified: false, key_id: String::new(), why: why.to_owned(), statement: Value::Null }
    }
}

fn statement(image: &Digest, facts: &Facts) -> Value {
    let names: Vec<&str> = match facts.names.is_empty() {
        true => vec!["image"],
        false => facts.names.iter().map(String::as_str).collect(),
    };
    let subject: Vec<Value> =
        names.iter().map(|it| json!({"name": it, "digest": {"sha256": image.hex()}})).collect();
    let args: BTreeMap<&String, &str> = facts
        .args
        .iter()
        .map(|(name, value)| {
            (name, if crate::dialect::is_secret(name) { "(left out)" } else { value.as_str() })
        })
        .collect();
    let mut dependencies: Vec<Value> = facts
        .bases
        .iter()
        .map(|(name, digest)| json!({"uri": format!("docker-image://{name}"), "digest": {"sha256": digest.hex()}}))
        .collect();
    if let (Some(repository), Some(commit)) = (facts.source.get("repository"), facts.source.get("commit")) {
        dependencies.push(json!({"uri": format!("git+{repository}"), "digest": {"gitCommit": commit}}));
    }
    if let Some(context) = facts.source.get("context") {
        let hex = context.strip_prefix("sha256:").unwrap_or(context);
        dependencies.push(json!({"name": "context", "digest": {"sha256": hex}}));
    }
    let mut dockerfile = json!({"path": facts.dockerfile});
    if let Some(digest) = &facts.dockerfile_digest {
        dockerfile["digest"] = json!({"sha256": digest.hex()});
    }
    json!({
        "_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "source": facts.source, "dockerfile": dockerfile, "target": facts.target, "args": args,
                },
                "internalParameters": {"platforms": facts.platforms, "builtOn": naru_image::Platform::here().to_string()},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"naru": env!("CARGO_PKG_VERSION")}},
                "metadata": {"startedOn": facts.started, "finishedOn": facts.finished},
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_holds_only_as_it_was_signed() {
        let dir = tempfile::tempdir().unwrap();
        let store =
            ImageStore::open(naru_image::Config { dir: dir.path().join("images"), ..Default::default() });
        let store = store.unwrap();
        let image = store.put_blob(b"{}").unwrap();
        let signer = Signer::open(&dir.path().join("key")).unwrap();
        assert!(signer.verify(&store, &image).why.contains("not built here"));
        let mut facts =
            Facts { names: vec!["web:1".into()], dockerfile: "Dockerfile".into(), ..Facts::default() };
        facts.args.insert("VERSION".into(), "1".into());
        facts.args.insert("API_TOKEN".into(), "hush".into());
        facts.bases.insert("debian:12".into(), Digest::of("base"));
        signer.attest(&store, &image, &facts).unwrap();
        // The same key after a restart.
        let signer = Signer::open(&dir.path().join("key")).unwrap();
        let verdict = signer.verify(&store, &image);
        assert!(verdict.is_verified, "{}", verdict.why);
        let text = verdict.statement.to_string();
        assert!(text.contains("\"VERSION\":\"1\"") && !text.contains("hush"), "{text}");
        assert!(text.contains(Digest::of("base").hex()));

        forget_the_gone(&store).unwrap();
        assert!(signer.verify(&store, &image).is_verified, "the image is still there");

        // Another key, another image, another byte.
        let stranger = Signer::open(&dir.path().join("other")).unwrap();
        assert!(stranger.verify(&store, &image).why.contains("not signed"));
        let envelope = signer.envelope(&statement(&image, &facts));
        assert!(signer.check_envelope(&envelope, &image).is_ok());
        let why = signer.check_envelope(&envelope, &Digest::of("another")).unwrap_err();
        assert!(why.contains("another image"), "{why}");
        let mut changed = envelope.clone();
        let payload = statement(&Digest::of("another"), &facts).to_string();
        changed["payload"] = json!(base64::engine::general_purpose::STANDARD.encode(payload));
        assert!(signer.check_envelope(&changed, &Digest::of("another")).unwrap_err().contains("not signed"));
    }
}
