//! What a job shows to the services around it: one signed token that says which job it is and what it may
//! do. It is `GITHUB_TOKEN`, `ACTIONS_RUNTIME_TOKEN` and the git password of the job's steps at once.
//!
//! A JSON web token (RFC 7519) under HMAC-SHA256, because the official clients read it: they look for the
//! run and the job in its `scp`. Nobody but us verifies it, so one secret key is enough, and nothing has to
//! be stored per job.
//!
//! ```
//! use naru_token::{JobClaims, TokenKey};
//! let key = TokenKey::new(b"a secret of the daemon");
//! let claims = JobClaims { repository: "shop".into(), job: "ci-test".into(), exp: 200, ..JobClaims::default() };
//! let token = key.mint(&claims);
//! assert_eq!(key.verify(&token, 100).unwrap().job, "ci-test");
//! assert!(key.verify(&token, 200).is_err());
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::collections::BTreeMap;

/// A longer text is no token of ours: a job's claims are names, and names are short.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// The one header that we write and accept. Comparing it whole leaves no algorithm to choose for whoever
/// sends a token.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Who the job is and what it may do. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobClaims {
    /// The repository's name on our git server, without owner.
    pub repository: String,
    /// Name and uid of the Run object.
    pub run: String,
    pub run_uid: String,
    /// The job's key in the run's status.
    pub job: String,
    /// Which of the pods that the job was given to: from 1, and 1 if it does not say. A job whose node was lost is
    /// given to another pod, and from then on the tokens of the one before open nothing.
    #[serde(skip_serializing_if = "is_first")]
    pub attempt: u32,
    /// Scope (`contents`, `actions`, `id-token`, ...) to `read` or `write`; what is not named is not allowed.
    pub permissions: BTreeMap<String, String>,
    /// The change comes from somebody who may not write to the repository.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
    /// The full ref that the run is of, such as `refs/heads/main` or `refs/pull/3/merge`: whose caches it writes.
    pub git_ref: String,
    /// The full ref that a pull request wants into, and that of the default branch: whose caches it also reads.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub base_ref: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub default_ref: String,
    pub iat: i64,
    pub exp: i64,
    /// What an id-token repeats to others.
    #[serde(skip_serializing_if = "Identity::is_empty")]
    pub identity: Identity,
}

/// The part of the claims that only id-tokens use, in GitHub's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    pub sha: String,
    pub event_name: String,
    pub actor: String,
    /// The branch names of a pull request, without `refs/heads/`.
    pub base_ref: String,
    pub head_ref: String,
    /// The workflow's name, and `.github/workflows/ci.yml`, the file.
    pub workflow: String,
    pub workflow_file: String,
    /// `owner/repo/.github/workflows/deploy.yml@ref` of the called workflow that the job stands in, if it does.
    pub job_workflow_ref: String,
    pub environment: String,
    pub run_number: String,
    pub run_attempt: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_first(attempt: &u32) -> bool {
    *attempt <= 1
}

impl Identity {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl JobClaims {
    /// Whether a scope is at least readable. Writing includes reading.
    pub fn may_read(&self, scope: &str) -> bool {
        matches!(self.permissions.get(scope).map(String::as_str), Some("read" | "write"))
    }

    /// Whether a scope is writable; never for a change that comes from outside.
    pub fn may_write(&self, scope: &str) -> bool {
        !self.untrusted && self.permissions.get(scope).map(String::as_str) == Some("write")
    }
}

/// As it travels: what the clients look for, beside what is ours.
#[derive(Serialize, Deserialize)]
struct Wire {
    /// `Actions.Results:<run>:<job>`: the official artifact clients take both ids from here.
    scp: String,
    #[serde(flatten)]
    claims: JobClaims,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("this is no job's token")]
    Malformed,
    #[error("the token's signature is not ours")]
    Signature,
    #[error("the token has expired; it lives as long as its job")]
    Expired,
}

/// The key that signs; made from a secret of the daemon. Cloning it is cheap.
#[derive(Clone)]
pub struct TokenKey {
    mac: Hmac<Sha256>,
}

impl TokenKey {
    /// `secret` may sign other things, too: the key here is derived from it under a name of its own.
    pub fn new(secret: &[u8]) -> Self {
        let mut derive = new_mac(secret);
        derive.update(b"naru job token v1");
        Self { mac: new_mac(&derive.finalize().into_bytes()) }
    }

    /// The token of these claims.
    pub fn mint(&self, claims: &JobClaims) -> String {
        let scp = format!("Actions.Results:{}:{}", scope_part(&claims.run_uid), scope_part(&claims.job));
        let wire = Wire { scp, claims: claims.clone() };
        let payload = serde_json::to_vec(&wire).expect("claims hold nothing that JSON cannot say");
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(payload));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(&signed).finalize().into_bytes());
        format!("{signed}.{signature}")
    }

    /// The claims of a token that is ours and has not expired by `now`.
    pub fn verify(&self, token: &str, now: i64) -> Result<JobClaims, Invalid> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Invalid::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Invalid::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Invalid::Malformed)?;
        if header != URL_SAFE_NO_PAD.encode(HEADER) {
            return Err(Invalid::Malformed);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Invalid::Malformed)?;
        // Compares in constant time.
        self.sign(signed).verify_slice(&signature).map_err(|_| Invalid::Signature)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Invalid::Malformed)?;
        let wire: Wire = serde_json::from_slice(&payload).map_err(|_| Invalid::Malformed)?;
        if wire.claims.exp <= now {
            return Err(Invalid::Expired);
        }
        Ok(wire.claims)
    }

    /// Signs a short text of another kind (a link, say): hexadecimal. `purpose` keeps kinds apart.
    pub fn sign_text(&self, purpose: &str, text: &str) -> String {
        let tag = self.tag(purpose, text).finalize().into_bytes();
        tag.iter().map(|it| format!("{it:02x}")).collect()
    }

    /// Whether a signature is the one of [`Self::sign_text`]; in constant time.
    pub fn is_signed(&self, purpose: &str, text: &str, signature: &str) -> bool {
        let bytes: Option<Vec<u8>> = (signature.len().is_multiple_of(2) && signature.is_ascii()).then(|| {
            (0..signature.len())
                .step_by(2)
                .map_while(|at| u8::from_str_radix(&signature[at..at + 2], 16).ok())
                .collect()
        });
        bytes.is_some_and(|it| self.tag(purpose, text).verify_slice(&it).is_ok())
    }

    fn sign(&self, signed: &str) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(signed.as_bytes());
        mac
    }

    fn tag(&self, purpose: &str, text: &str) -> Hmac<Sha256> {
        // A token's signed part holds no line break, so it can never be taken for one of these.
        self.sign(&format!("{purpose}\n{text}"))
    }
}

fn new_mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// A job's key as it stands in `scp`, whose parts are split at colons and spaces.
pub fn scope_part(text: &str) -> String {
    text.replace([':', ' '], "-")
}

/// The credential of an `Authorization` header: `Bearer x`, `token x` as GitHub's own clients write it, or
/// the password of `Basic`.
pub fn credential(authorization: &str) -> Option<String> {
    let (scheme, rest) = authorization.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

/// The number under which GitHub's clients know a run: they do arithmetic on it, so it has at most 53 bits.
/// From the first digits of its uid, which are random.
pub fn run_id(run_uid: &str) -> u64 {
    let digits: String = run_uid.chars().filter(char::is_ascii_hexdigit).take(13).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> TokenKey {
        TokenKey::new(b"secret")
    }

    fn claims() -> JobClaims {
        JobClaims {
            repository: "shop".into(),
            run: "shop-main-1".into(),
            run_uid: "0b2f6d0e-5a4c-4b7e-9a52-0c1d2e3f4a5b".into(),
            job: "ci-test".into(),
            permissions: BTreeMap::from([
                ("contents".into(), "read".into()),
                ("actions".into(), "write".into()),
            ]),
            git_ref: "refs/heads/main".into(),
            exp: 2000,
            ..JobClaims::default()
        }
    }

    fn parts(token: &str) -> (String, serde_json::Value, String) {
        let parts: Vec<&str> = token.split('.').collect();
        let payload = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        (parts[0].to_owned(), payload, parts[2].to_owned())
    }

    #[test]
    fn the_official_clients_find_run_and_job_in_the_scope() {
        let (_, payload, _) = parts(&key().mint(&claims()));
        assert_eq!(payload["scp"], "Actions.Results:0b2f6d0e-5a4c-4b7e-9a52-0c1d2e3f4a5b:ci-test");
        assert_eq!(payload["exp"], 2000);
    }

    #[test]
    fn a_token_says_what_was_put_in_until_it_expires() {
        let token = key().mint(&claims());
        assert_eq!(key().verify(&token, 1999).unwrap(), claims());
        assert_eq!(key().verify(&token, 2000), Err(Invalid::Expired));
    }

    #[test]
    fn a_forged_token_is_refused() {
        let token = key().mint(&claims());
        assert_eq!(TokenKey::new(b"other").verify(&token, 0), Err(Invalid::Signature));
        let (header, mut payload, signature) = parts(&token);
        payload["permissions"]["contents"] = "write".into();
        let payload = URL_SAFE_NO_PAD.encode(payload.to_string());
        assert_eq!(key().verify(&format!("{header}.{payload}.{signature}"), 0), Err(Invalid::Signature));
        // "alg": "none", and the same key under another algorithm's name.
        for alg in ["none", "HS512", "RS256"] {
            let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#));
            assert_eq!(key().verify(&format!("{header}.{payload}."), 0), Err(Invalid::Malformed), "{alg}");
            let signed = format!("{header}.{payload}");
            let signature = URL_SAFE_NO_PAD.encode(key().sign(&signed).finalize().into_bytes());
            assert_eq!(key().verify(&format!("{signed}.{signature}"), 0), Err(Invalid::Malformed), "{alg}");
        }
        for bad in ["", "a", "a.b", "a.b.c", "..", &"a.".repeat(20_000)] {
            assert_eq!(key().verify(bad, 0), Err(Invalid::Malformed), "{bad:.20}");
        }
        let short = token.rsplit_once('.').unwrap().0;
        assert!(key().verify(&format!("{short}."), 0).is_err());
    }

    #[test]
    fn a_signed_text_is_no_other_text_and_no_other_kind() {
        let signature = key().sign_text("blob", "a?x=1");
        assert!(key().is_signed("blob", "a?x=1", &signature));
        assert!(!key().is_signed("blob", "a?x=2", &signature));
        assert!(!key().is_signed("other", "a?x=1", &signature));
        for bad in ["", "zz", "é", &signature[2..]] {
            assert!(!key().is_signed("blob", "a?x=1", bad), "{bad}");
        }
    }

    #[test]
    fn a_change_from_outside_writes_nothing_whatever_the_file_says() {
        let mut it = claims();
        assert!(it.may_read("contents") && !it.may_write("contents"));
        assert!(it.may_write("actions") && it.may_read("actions"));
        assert!(!it.may_read("packages"));
        it.untrusted = true;
        assert!(it.may_read("actions") && !it.may_write("actions"));
    }

    #[test]
    fn a_credential_is_found_however_a_client_writes_it() {
        let basic = format!("Basic {}", STANDARD.encode("x-access-token:abc:d"));
        for (header, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("token abc", Some("abc")),
            (basic.as_str(), Some("abc:d")),
            ("Basic !!", None),
            ("Digest abc", None),
            ("abc", None),
        ] {
            assert_eq!(credential(header).as_deref(), expected, "{header}");
        }
    }

    #[test]
    fn a_run_has_a_number_that_javascript_can_hold() {
        assert_eq!(run_id("0b2f6d0e-5a4c-4b7e-9a52-0c1d2e3f4a5b"), 0xb2f6_d0e5_a4c4);
        assert!(run_id("ffffffff-ffff-ffff-ffff-ffffffffffff") < 1 << 53);
        assert_eq!(run_id(""), 0);
    }
}
