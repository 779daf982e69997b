//! Id-tokens: who a job is, signed for others to verify, so that a cloud can let it in without a stored
//! secret. OpenID Connect discovery and key set beside it; the claims are GitHub's.
//!
//! Signed with ES256, because `ring` makes no RSA keys: whoever verifies reads the algorithm from the key set.

use crate::problem::{Kind, Problem, Result, problem};
use crate::records::sync_dir;
use crate::{Inner, Shared};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use jiff::Timestamp;
use naru_token::JobClaims;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

/// An id-token is shown at once, and never again.
const LIFE_SECONDS: i64 = 300;

/// A client's clock may be a little behind.
const EARLIER_SECONDS: i64 = 60;

const AUDIENCE_BYTES_MAX: usize = 1024;

/// The key that signs id-tokens: made once, kept in a file that only we can read.
pub struct IdKey {
    pair: EcdsaKeyPair,
    /// RFC 7638: the key's own thumbprint.
    id: String,
    random: SystemRandom,
}

impl IdKey {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let random = SystemRandom::new();
        let broken = || std::io::Error::other("the key for id-tokens makes no sense");
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
                let bytes = made.map_err(|_| std::io::Error::other("no key can be made"))?.as_ref().to_vec();
                write_private(path, &bytes)?;
                bytes
            }
            Err(error) => return Err(error),
        };
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &bytes, &random)
            .map_err(|_| broken())?;
        let (x, y) = point(&pair);
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let id = URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, canonical.as_bytes()));
        Ok(Self { pair, id, random })
    }

    fn public(&self) -> Value {
        let (x, y) = point(&self.pair);
        json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": self.id, "alg": "ES256", "use": "sig"})
    }

    fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.id});
        let part = |it: &Value| URL_SAFE_NO_PAD.encode(it.to_string());
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.pair.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|_| problem(Kind::Internal, "the id-token cannot be signed"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The coordinates of the public key: 0x04, 32 bytes, 32 bytes.
fn point(pair: &EcdsaKeyPair) -> (String, String) {
    let bytes = pair.public_key().as_ref();
    (URL_SAFE_NO_PAD.encode(&bytes[1..33]), URL_SAFE_NO_PAD.encode(&bytes[33..65]))
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("new");
    let mut file =
        std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_dir(path.parent().expect("the key is a file in a directory"))
}

pub async fn token(
    State(inner): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let job = inner.job(&headers).await?;
        if !job.claims.may_write("id-token") {
            let why = match job.claims.untrusted {
                true => "a change from outside gets no id-token",
                false => "an id-token needs `permissions: id-token: write` in the job",
            };
            return Err(problem(Kind::Denied, why));
        }
        let audience = query.get("audience").filter(|it| !it.is_empty());
        if audience.is_some_and(|it| it.len() > AUDIENCE_BYTES_MAX) {
            return Err(problem(
                Kind::Invalid,
                format!("an audience has at most {AUDIENCE_BYTES_MAX} bytes"),
            ));
        }
        let claims = claims_of(&inner, &job.claims, audience.map(String::as_str), Timestamp::now());
        Ok::<_, Problem>(
            axum::Json(json!({"count": 1, "value": inner.id_key.sign(&claims)?})).into_response(),
        )
    };
    answer.await.unwrap_or_else(|it| it.rest())
}

pub async fn discovery(State(inner): State<Shared>) -> Response {
    let issuer = &inner.public_url;
    axum::Json(json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}/.well-known/jwks"),
        "subject_types_supported": ["public", "pairwise"],
        "response_types_supported": ["id_token"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "scopes_supported": ["openid"],
        "claims_supported": [
            "sub", "aud", "exp", "iat", "iss", "jti", "nbf", "ref", "ref_type", "sha", "repository",
            "repository_owner", "run_id", "run_number", "run_attempt", "actor", "workflow", "workflow_ref",
            "job_workflow_ref", "head_ref", "base_ref", "event_name", "environment", "runner_environment",
        ],
    }))
    .into_response()
}

pub async fn keys(State(inner): State<Shared>) -> Response {
    axum::Json(json!({"keys": [inner.id_key.public()]})).into_response()
}

/// GitHub's claims, as far as there is something to say.
fn claims_of(inner: &Inner, job: &JobClaims, audience: Option<&str>, now: Timestamp) -> Value {
    let (owner, who) = (&inner.owner, &job.identity);
    let repository = format!("{owner}/{}", job.repository);
    let now = now.as_second();
    let workflow_ref = format!("{repository}/{}@{}", who.workflow_file, job.git_ref);
    let called = if who.job_workflow_ref.is_empty() { &workflow_ref } else { &who.job_workflow_ref };
    let kind = match job.git_ref.split('/').nth(1) {
        Some("tags") => "tag",
        _ => "branch",
    };
    let jti: [u8; 16] = rand::random();
    let mut claims = json!({
        "iss": inner.public_url, "sub": subject(&repository, job),
        "aud": audience.map_or_else(|| format!("{}/{owner}", inner.public_url), str::to_owned),
        "iat": now, "nbf": now - EARLIER_SECONDS, "exp": now + LIFE_SECONDS,
        "jti": URL_SAFE_NO_PAD.encode(jti),
        "ref": job.git_ref, "ref_type": kind, "sha": who.sha,
        "repository": repository, "repository_owner": owner, "repository_visibility": "private",
        "run_id": naru_token::run_id(&job.run_uid).to_string(),
        "run_number": who.run_number, "run_attempt": who.run_attempt, "actor": who.actor,
        "workflow": who.workflow, "workflow_ref": workflow_ref, "workflow_sha": who.sha,
        "job_workflow_ref": called, "head_ref": who.head_ref, "base_ref": who.base_ref,
        "event_name": who.event_name, "runner_environment": "self-hosted",
    });
    if !who.environment.is_empty() {
        claims["environment"] = json!(who.environment);
    }
    claims
}

/// What clouds match: the environment wins, then a pull request, then the ref. A colon in a name would let it
/// pass for another part.
fn subject(repository: &str, job: &JobClaims) -> String {
    let escape = |it: &str| it.replace(':', "%3A");
    let who = &job.identity;
    let rest = match who.event_name.as_str() {
        _ if !who.environment.is_empty() => format!("environment:{}", escape(&who.environment)),
        "pull_request" => "pull_request".to_owned(),
        _ => format!("ref:{}", escape(&job.git_ref)),
    };
    format!("repo:{repository}:{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use naru_token::Identity;

    #[test]
    fn a_subject_says_where_the_job_belongs() {
        let of = |environment: &str, event: &str| {
            let identity =
                Identity { environment: environment.into(), event_name: event.into(), ..Identity::default() };
            subject(
                "naru/shop",
                &JobClaims { git_ref: "refs/heads/main".into(), identity, ..JobClaims::default() },
            )
        };
        assert_eq!(of("", "push"), "repo:naru/shop:ref:refs/heads/main");
        assert_eq!(of("", "pull_request"), "repo:naru/shop:pull_request");
        assert_eq!(of("prod", "pull_request"), "repo:naru/shop:environment:prod");
        assert_eq!(
            of("a:ref:refs/heads/main", "push"),
            "repo:naru/shop:environment:a%3Aref%3Arefs/heads/main"
        );
    }

    #[test]
    fn the_key_is_made_once_and_is_ours_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = IdKey::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(IdKey::open(&path).unwrap().id, first.id);
        std::fs::write(&path, "garbage").unwrap();
        assert!(IdKey::open(&path).is_err());
    }
}
