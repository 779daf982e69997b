//! Public keys as people have them: PEM around the SubjectPublicKeyInfo of X.509 (RFC 5280, RFC 5480, RFC 8410).

use base64::Engine as _;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};

/// A key that signatures can be held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    kind: Kind,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("it is not PEM of the form `-----BEGIN PUBLIC KEY-----`")]
    NotPem,
    #[error("its content is not a public key")]
    NotAKey,
    #[error("its kind is not known; ECDSA P-256 and P-384, Ed25519 and RSA are")]
    Unknown,
}

const OID_EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const OID_RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

const SEQUENCE: u8 = 0x30;
const OBJECT_ID: u8 = 0x06;
const BIT_STRING: u8 = 0x03;

impl Key {
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let body = text.split_once("-----BEGIN PUBLIC KEY-----").ok_or(KeyError::NotPem)?.1;
        let (body, rest) = body.split_once("-----END PUBLIC KEY-----").ok_or(KeyError::NotPem)?;
        if rest.contains("-----BEGIN") {
            return Err(KeyError::NotPem); // a second key would be ignored
        }
        let body: String = body.split_whitespace().collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body).map_err(|_| KeyError::NotPem)?;
        Self::from_der(&der)
    }

    fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let parts = || {
            let (info, rest) = value(SEQUENCE, der)?;
            let (algorithm, info) = value(SEQUENCE, info)?;
            let (name, parameters) = value(OBJECT_ID, algorithm)?;
            let (bits, after) = value(BIT_STRING, info)?;
            let (unused, bytes) = bits.split_first()?;
            (rest.is_empty() && after.is_empty() && *unused == 0).then_some((name, parameters, bytes))
        };
        let (name, parameters, bytes) = parts().ok_or(KeyError::NotAKey)?;
        let curve = value(OBJECT_ID, parameters).map(|it| it.0);
        let kind = match (name, curve) {
            (OID_EC, Some(OID_P256)) => Kind::P256,
            (OID_EC, Some(OID_P384)) => Kind::P384,
            (OID_ED25519, _) => Kind::Ed25519,
            (OID_RSA, _) => Kind::Rsa,
            _ => return Err(KeyError::Unknown),
        };
        Ok(Self { kind, bytes: bytes.to_vec() })
    }

    pub fn ed25519(bytes: Vec<u8>) -> Self {
        Self { kind: Kind::Ed25519, bytes }
    }

    /// Whether the key's owner signed these bytes.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let ways: &[&'static dyn VerificationAlgorithm] = match self.kind {
            Kind::P256 => &[&ECDSA_P256_SHA256_ASN1],
            Kind::P384 => &[&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1],
            Kind::Ed25519 => &[&ED25519],
            Kind::Rsa => &[&RSA_PKCS1_2048_8192_SHA256, &RSA_PSS_2048_8192_SHA256],
        };
        ways.iter().any(|&way| UnparsedPublicKey::new(way, &self.bytes).verify(message, signature).is_ok())
    }
}

/// Content of the DER value of this tag at the start, and what follows it.
fn value(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=127 => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?)), rest.get(2..)?),
        _ => return None, // longer than any key
    };
    (length <= rest.len()).then(|| rest.split_at(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with `openssl genpkey` and `openssl dgst -sha256 -sign` (Ed25519: `openssl pkeyutl -sign -rawin`).
    const CASES: &str = include_str!("key_cases.txt");

    #[test]
    fn what_openssl_signs_is_verified_and_nothing_else() {
        let mut seen = 0;
        for case in CASES.split("=== ").skip(1) {
            let (name, rest) = case.split_once('\n').unwrap();
            let (pem, signature) = rest.split_once("--- signature of `hello`\n").unwrap();
            let signature: String = signature.split_whitespace().collect();
            let signature = base64::engine::general_purpose::STANDARD.decode(signature).unwrap();
            let key = Key::from_pem(pem).unwrap();
            assert!(key.has_signed(b"hello", &signature), "{name}");
            assert!(!key.has_signed(b"hullo", &signature), "{name}");
            let mut bent = signature.clone();
            *bent.last_mut().unwrap() ^= 1;
            assert!(!key.has_signed(b"hello", &bent), "{name}");
            // Every shorter or bent form of the key is refused or verifies nothing, and never panics.
            let body: String = pem.lines().filter(|it| !it.starts_with('-')).collect();
            let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
            for cut in 0..der.len() {
                assert!(Key::from_der(&der[..cut]).is_err(), "{name} {cut}");
                let mut bent = der.clone();
                bent[cut] ^= 0x55;
                if let Ok(key) = Key::from_der(&bent) {
                    let _ = key.has_signed(b"hello", &signature);
                }
            }
            seen += 1;
        }
        assert_eq!(seen, 4);
    }

    #[test]
    fn what_is_no_key_says_so() {
        assert_eq!(Key::from_pem("hello"), Err(KeyError::NotPem));
        let empty = "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n";
        assert_eq!(Key::from_pem(empty), Err(KeyError::NotAKey));
        // X25519: a key, but not for signatures.
        let other = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VuAyEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n-----END PUBLIC KEY-----";
        assert_eq!(Key::from_pem(other), Err(KeyError::Unknown));
        assert_eq!(Key::from_pem(&format!("{other}\n{other}")), Err(KeyError::NotPem));
    }
}
