//! Whether a delivery is from whom it says. Pure.

use crate::upstream::Host;
use hmac::{Hmac, Mac};
use http::HeaderMap;
use sha2::{Digest, Sha256};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the header {0} is missing: set a secret in the webhook's settings")]
    Missing(&'static str),
    #[error("the header {0} is there more than once")]
    Twice(&'static str),
    #[error("the delivery is not signed with this repository's secret")]
    Wrong,
}

/// Verifies a delivery. For all but GitLab the header is the HMAC-SHA256 of the raw body; GitLab sends the
/// secret itself.
pub fn verify(host: Host, headers: &HeaderMap, body: &[u8], secret: &str) -> Result<(), Refused> {
    let (name, prefix) = match host {
        Host::Github => ("x-hub-signature-256", "sha256="),
        Host::Gitlab => ("x-gitlab-token", ""),
        Host::Gitea => ("x-gitea-signature", ""),
        Host::Forgejo => ("x-forgejo-signature", ""),
    };
    let mut all = headers.get_all(name).iter();
    let given = all.next().ok_or(Refused::Missing(name))?;
    if all.next().is_some() {
        return Err(Refused::Twice(name));
    }
    let given = given.to_str().ok().and_then(|it| it.strip_prefix(prefix)).ok_or(Refused::Wrong)?;
    if secret.is_empty() {
        return Err(Refused::Wrong);
    }
    let is_right = match host {
        // Digests are compared, so that the time it takes tells nothing about the secret.
        Host::Gitlab => Sha256::digest(given) == Sha256::digest(secret),
        _ => from_hex(given).is_some_and(|it| mac(secret, body).verify_slice(&it).is_ok()),
    };
    if is_right { Ok(()) } else { Err(Refused::Wrong) }
}

fn mac(secret: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    mac
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.bytes().all(|it| it.is_ascii_hexdigit()) {
        return None;
    }
    (0..64).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GitHub documents this secret, body and signature in "Validating webhook deliveries".
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn githubs_documented_delivery_is_accepted_and_no_bit_may_differ() {
        let signed = format!("sha256={SIGNATURE}");
        let good = headers(&[("x-hub-signature-256", &signed)]);
        assert_eq!(verify(Host::Github, &good, BODY, SECRET), Ok(()));
        for bit in 0..BODY.len() * 8 {
            let mut body = BODY.to_vec();
            body[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(verify(Host::Github, &good, &body, SECRET), Err(Refused::Wrong), "bit {bit}");
        }
        for at in 0..64 {
            let mut wrong = SIGNATURE.as_bytes().to_vec();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            let wrong = format!("sha256={}", String::from_utf8(wrong).unwrap());
            assert_eq!(
                verify(Host::Github, &headers(&[("x-hub-signature-256", &wrong)]), BODY, SECRET),
                Err(Refused::Wrong)
            );
        }
    }

    #[test]
    fn a_header_that_is_missing_doubled_or_weaker_is_refused() {
        let signed = format!("sha256={SIGNATURE}");
        let name = "x-hub-signature-256";
        let of = |all: &[(&'static str, &str)]| verify(Host::Github, &headers(all), BODY, SECRET);
        assert_eq!(of(&[]), Err(Refused::Missing(name)));
        assert_eq!(
            of(&[("x-hub-signature", "sha1=deadbeef")]),
            Err(Refused::Missing(name)),
            "no way down to SHA-1"
        );
        assert_eq!(of(&[(name, &signed), (name, &signed)]), Err(Refused::Twice(name)));
        assert_eq!(of(&[(name, SIGNATURE)]), Err(Refused::Wrong));
        assert_eq!(of(&[(name, "sha256=")]), Err(Refused::Wrong));
        assert_eq!(verify(Host::Github, &headers(&[(name, &signed)]), BODY, ""), Err(Refused::Wrong));
    }

    #[test]
    fn the_other_hosts_sign_in_their_own_headers() {
        for (host, name) in [(Host::Gitea, "x-gitea-signature"), (Host::Forgejo, "x-forgejo-signature")] {
            assert_eq!(verify(host, &headers(&[(name, SIGNATURE)]), BODY, SECRET), Ok(()));
            assert_eq!(verify(host, &headers(&[(name, SIGNATURE)]), b"other", SECRET), Err(Refused::Wrong));
        }
        let token = |value: &str| verify(Host::Gitlab, &headers(&[("x-gitlab-token", value)]), BODY, SECRET);
        assert_eq!(token(SECRET), Ok(()));
        assert_eq!(token("it's a secret to everybody"), Err(Refused::Wrong));
        assert_eq!(token(""), Err(Refused::Wrong));
    }
}
