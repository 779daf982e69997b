//! Whether one of a policy's authorities vouches for an image. Pure: digests and signed documents in, a finding
//! out. Only what is signed is looked at, and only after its signature held.

use crate::Own;
use crate::dsse::Envelope;
use crate::key::Key;
use crate::pattern;
use base64::Engine as _;
use naru_image::{Digest, Signed};
use naru_objects::{Attestation, ImagePolicySpec};
use serde_json::Value;

const STATEMENT: &str = "application/vnd.in-toto+json";
/// What cosign 3 says of an image that it signs.
const COSIGN_SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

/// A policy's authorities, understood.
pub struct Authorities<'a>(Vec<Authority<'a>>);

struct Authority<'a> {
    name: &'a str,
    /// None: this daemon's own.
    key: Option<Key>,
    attestations: &'a [Attestation],
}

impl<'a> Authorities<'a> {
    pub fn read(spec: &'a ImagePolicySpec) -> Result<Self, String> {
        if spec.authorities.is_empty() {
            return Err("it names no authority".into());
        }
        let read = |(at, it): (usize, &'a naru_objects::Authority)| {
            let place = |why: String| format!("spec.authorities[{at}] (`{}`): {why}", it.name);
            let key = match (&it.key, it.built_here) {
                (Some(key), false) => {
                    Some(Key::from_pem(&key.data).map_err(|it| place(format!("key.data: {it}")))?)
                }
                (None, true) => None,
                _ => return Err(place("it needs either a key or `builtHere: true`".into())),
            };
            if it.attestations.iter().any(|it| it.predicate_type.is_empty()) {
                return Err(place("an attestation has no predicateType".into()));
            }
            Ok(Authority { name: &it.name, key, attestations: &it.attestations })
        };
        spec.authorities.iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Whether somebody else's signature would do.
    pub fn any_key(&self) -> bool {
        self.0.iter().any(|it| it.key.is_some())
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    VouchedFor { authority: String },
    Lacking(Vec<Lacks>),
}

/// What one authority lacks.
#[derive(Debug, PartialEq, Eq)]
pub struct Lacks {
    pub authority: String,
    /// A statement is missing, not a signature.
    pub is_statement: bool,
    pub why: String,
}

/// Looks for the first authority that vouches for an image of one of these digests.
pub fn judge(
    authorities: &Authorities<'_>,
    digests: &[Digest],
    documents: &[Signed],
    own: Option<&Own>,
) -> Finding {
    let own_key = own.map(|it| Key::ed25519(it.public_key.clone()));
    let mut lacks = Vec::new();
    for authority in &authorities.0 {
        let found = match authority.key.as_ref().or(own_key.as_ref()) {
            Some(key) => check(authority, key, digests, documents),
            None => Err("this daemon has no key of its own".to_owned()),
        };
        match found {
            Ok(()) => return Finding::VouchedFor { authority: authority.name.to_owned() },
            Err(why) => lacks.push(Lacks {
                authority: authority.name.to_owned(),
                is_statement: !authority.attestations.is_empty(),
                why,
            }),
        }
    }
    Finding::Lacking(lacks)
}

fn check(
    authority: &Authority<'_>,
    key: &Key,
    digests: &[Digest],
    documents: &[Signed],
) -> Result<(), String> {
    let claims: Vec<Claim> = documents.iter().filter_map(|it| claim(it, key)).collect();
    let about_it = |it: &&Claim| it.subjects.iter().any(|it| digests.iter().any(|own| own.as_str() == it));
    let mine: Vec<&Claim> = claims.iter().filter(about_it).collect();
    if mine.is_empty() {
        return Err(match (&authority.key, documents.len(), claims.first()) {
            (None, ..) => "it was not built by this daemon".into(),
            (Some(_), 0, _) => "nothing is signed about it".into(),
            (Some(_), _, Some(other)) => format!(
                "what is signed with its key is about another image ({})",
                other.subjects.first().map_or("none", String::as_str)
            ),
            (Some(_), 1, None) => "what is signed about it is not signed with its key".into(),
            (Some(_), found, None) => {
                format!("of the {found} documents signed about it none is signed with its key")
            }
        });
    }
    for wanted in authority.attestations {
        let of_type =
            mine.iter().filter(|it| it.statement["predicateType"] == wanted.predicate_type.as_str());
        let mut why = format!("it has no attestation of the type `{}`", wanted.predicate_type);
        let mut holds = false;
        for claim in of_type {
            match meets(&claim.statement["predicate"], wanted) {
                Ok(()) => holds = true,
                Err(it) => why = it,
            }
        }
        if !holds {
            return Err(why);
        }
    }
    // A statement is no signature, unless it is our own: that is how we sign.
    let is_signed = authority.key.is_none() || mine.iter().any(|it| it.is_signature);
    match authority.attestations.is_empty() && !is_signed {
        true => Err("it has attestations with its key, and no signature; name them in the policy".into()),
        false => Ok(()),
    }
}

/// What a document says, once its signature held.
struct Claim {
    /// Digests of what it is about.
    subjects: Vec<String>,
    /// An in-toto statement, or null.
    statement: Value,
    is_signature: bool,
}

fn claim(document: &Signed, key: &Key) -> Option<Claim> {
    let decode = |it: &str| base64::engine::general_purpose::STANDARD.decode(it.trim()).ok();
    match document {
        Signed::Payload { text, signature } => {
            let text = decode(text)?;
            if !key.has_signed(&text, &decode(signature)?) {
                return None;
            }
            let payload: Value = serde_json::from_slice(&text).ok()?;
            let critical = &payload["critical"];
            if !matches!(
                critical["type"].as_str(),
                Some("cosign container image signature" | "atomic container signature")
            ) {
                return None;
            }
            let digest = critical["image"]["docker-manifest-digest"].as_str()?;
            Some(Claim { subjects: vec![digest.to_owned()], statement: Value::Null, is_signature: true })
        }
        Signed::Envelope(value) => {
            let envelope = Envelope::read(value).ok()?;
            let signed = envelope.signed();
            if envelope.kind != STATEMENT || !envelope.signatures.iter().any(|it| key.has_signed(&signed, it))
            {
                return None;
            }
            let statement: Value = serde_json::from_slice(&envelope.payload).ok()?;
            let digests = |it: &Value| -> Vec<String> {
                let all = it["digest"].as_object().into_iter().flatten();
                all.filter_map(|(algorithm, hex)| Some(format!("{algorithm}:{}", hex.as_str()?))).collect()
            };
            let subjects = statement["subject"].as_array().into_iter().flatten().flat_map(digests).collect();
            let is_signature = statement["predicateType"] == COSIGN_SIGN;
            Some(Claim { subjects, statement, is_signature })
        }
    }
}

/// Holds SLSA's provenance (v0.2 and v1) against what is wanted of it.
fn meets(predicate: &Value, wanted: &Attestation) -> Result<(), String> {
    let text = |it: &Value| it.as_str().map(str::to_owned);
    let builders: Vec<String> = [&predicate["runDetails"]["builder"]["id"], &predicate["builder"]["id"]]
        .into_iter()
        .filter_map(text)
        .collect();
    let mut sources: Vec<String> = [
        &predicate["buildDefinition"]["externalParameters"]["source"]["repository"],
        &predicate["buildDefinition"]["externalParameters"]["workflow"]["repository"],
        &predicate["invocation"]["configSource"]["uri"],
    ]
    .into_iter()
    .filter_map(text)
    .collect();
    let materials = [&predicate["buildDefinition"]["resolvedDependencies"], &predicate["materials"]];
    for it in materials.into_iter().filter_map(Value::as_array).flatten() {
        // Bases are what it was built on, not from.
        sources.extend(text(&it["uri"]).filter(|it| it.starts_with("git+")));
    }
    for (what, wanted, found) in
        [("builder", &wanted.builders, builders), ("source", &wanted.sources, sources)]
    {
        let holds = wanted.is_empty()
            || wanted.iter().any(|pattern| found.iter().any(|it| pattern::matches(pattern, it)));
        if !holds {
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            return Err(format!("its attested {what} ({found}) is none of: {}", wanted.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use naru_objects::PublicKey;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
    use serde_json::json;

    struct Signer(EcdsaKeyPair);

    impl Signer {
        fn new() -> Self {
            let random = SystemRandom::new();
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
            Self(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap())
        }

        fn pem(&self) -> String {
            // SubjectPublicKeyInfo of P-256 is this and the point.
            let mut der = vec![0x30, 0x59, 0x30, 0x13, 0x06, 0x07];
            der.extend([0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08]);
            der.extend([0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00]);
            der.extend(self.0.public_key().as_ref());
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", encode(&der))
        }

        fn sign(&self, message: &[u8]) -> String {
            encode(self.0.sign(&SystemRandom::new(), message).unwrap().as_ref())
        }

        fn payload(&self, digest: &str, kind: &str) -> Signed {
            let text = json!({"critical": {"identity": {"docker-reference": "r/web"}, "type": kind,
                "image": {"docker-manifest-digest": digest}}, "optional": null})
            .to_string();
            Signed::Payload { text: encode(text.as_bytes()), signature: self.sign(text.as_bytes()) }
        }

        fn statement(&self, digest: &Digest, kind: &str, predicate: Value) -> Signed {
            let text = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": kind,
                "subject": [{"name": "r/web", "digest": {"sha256": digest.hex()}}], "predicate": predicate})
            .to_string();
            let signature = self.sign(&crate::pre_authentication(STATEMENT, text.as_bytes()));
            Signed::Envelope(json!({"payloadType": STATEMENT, "payload": encode(text.as_bytes()),
                "signatures": [{"sig": signature}]}))
        }
    }

    fn encode(bytes: &[u8]) -> String {
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    const COSIGN: &str = "cosign container image signature";
    const SLSA: &str = "https://slsa.dev/provenance/v1";

    fn spec(pem: &str, attestations: Vec<Attestation>) -> ImagePolicySpec {
        let key = Some(PublicKey { data: pem.into() });
        let ci = naru_objects::Authority { name: "ci".into(), key, attestations, ..Default::default() };
        ImagePolicySpec { authorities: vec![ci], ..Default::default() }
    }

    fn ask(spec: &ImagePolicySpec, digest: &Digest, documents: &[Signed]) -> Result<String, String> {
        match judge(&Authorities::read(spec).unwrap(), std::slice::from_ref(digest), documents, None) {
            Finding::VouchedFor { authority } => Ok(authority),
            Finding::Lacking(mut lacks) => Err(lacks.remove(0).why),
        }
    }

    #[test]
    fn a_signature_is_of_one_key_and_one_image() {
        let (signer, stranger) = (Signer::new(), Signer::new());
        let (image, other) = (Digest::of("image"), Digest::of("other"));
        let policy = spec(&signer.pem(), Vec::new());
        let why = |documents: &[Signed]| ask(&policy, &image, documents).unwrap_err();
        let good = signer.payload(image.as_str(), COSIGN);
        assert_eq!(ask(&policy, &image, std::slice::from_ref(&good)), Ok("ci".into()));
        assert!(why(&[]).contains("nothing is signed"));
        let strange = stranger.payload(image.as_str(), COSIGN);
        assert!(why(std::slice::from_ref(&strange)).contains("not signed with its key"));
        assert_eq!(ask(&policy, &image, &[strange, good.clone()]), Ok("ci".into()), "one good one is enough");
        assert!(why(&[signer.payload(other.as_str(), COSIGN)]).contains(other.as_str()));
        assert!(why(&[signer.payload(image.as_str(), "something else")]).contains("not signed with its key"));
        // Another text under a good signature.
        let (Signed::Payload { signature, .. }, Signed::Payload { text, .. }) =
            (signer.payload(other.as_str(), COSIGN), good)
        else {
            unreachable!()
        };
        assert!(why(&[Signed::Payload { text, signature }]).contains("not signed with its key"));
        // As cosign 3 does it.
        assert!(ask(&policy, &image, &[signer.statement(&image, COSIGN_SIGN, json!({}))]).is_ok());
        let unnamed = signer.statement(&image, SLSA, json!({}));
        assert!(why(&[unnamed]).contains("no signature"));
    }

    #[test]
    fn an_attestation_has_a_builder_and_a_source() {
        let signer = Signer::new();
        let image = Digest::of("image");
        let wanted = Attestation {
            predicate_type: SLSA.into(),
            builders: vec!["https://ci.example.com/*".into()],
            sources: vec!["git+https://git.example.com/shop*".into()],
        };
        let policy = spec(&signer.pem(), vec![wanted]);
        let provenance = |builder: &str, source: &str| {
            json!({"runDetails": {"builder": {"id": builder}},
                "buildDefinition": {"resolvedDependencies": [{"uri": source}, {"uri": "docker-image://x"}]}})
        };
        let of = |builder: &str, source: &str| {
            ask(&policy, &image, &[signer.statement(&image, SLSA, provenance(builder, source))])
        };
        assert!(of("https://ci.example.com/7", "git+https://git.example.com/shop").is_ok());
        assert!(of("https://other/7", "git+https://git.example.com/shop").unwrap_err().contains("builder"));
        assert!(of("https://ci.example.com/7", "git+https://x/shop").unwrap_err().contains("source"));
        let signature = signer.payload(image.as_str(), COSIGN);
        assert!(ask(&policy, &image, &[signature]).unwrap_err().contains("no attestation"));
        let old = json!({"builder": {"id": "https://ci.example.com/7"},
            "invocation": {"configSource": {"uri": "git+https://git.example.com/shop@refs/heads/main"}}});
        assert!(ask(&policy, &image, &[signer.statement(&image, SLSA, old)]).is_ok(), "SLSA 0.2");
    }

    #[test]
    fn what_a_policy_means_is_known_or_refused_with_its_place() {
        let read = |spec: &ImagePolicySpec| Authorities::read(spec).map(|_| ()).unwrap_err();
        assert!(read(&ImagePolicySpec::default()).contains("no authority"));
        assert!(
            read(&spec("-----BEGIN PUBLIC KEY-----", Vec::new())).contains("authorities[0] (`ci`): key.data")
        );
        let mut both = spec(&Signer::new().pem(), Vec::new());
        both.authorities[0].built_here = true;
        assert!(read(&both).contains("either"));
    }
}
