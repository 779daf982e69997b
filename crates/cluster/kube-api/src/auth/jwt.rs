//! Tokens of service accounts: JSON Web Tokens (RFC 7519) signed with ES256, and the keys by which others
//! check them (RFC 7517). One algorithm and one key: nothing in a token chooses how it is checked.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};

use crate::Error;
use crate::tls::write_private_bytes;

pub(crate) struct Keys {
    pair: EcdsaKeyPair,
    id: String,
}

impl Keys {
    /// The signing key in this directory, made at the first start.
    pub fn open(dir: &Path) -> Result<Keys, Error> {
        let path = dir.join("service-account.key");
        let random = SystemRandom::new();
        let in_key = |_| Error::SigningKey { path: path.clone() };
        let document = match std::fs::read(&path) {
            Ok(document) => document,
            Err(_) => {
                let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
                    .map_err(in_key)?;
                write_private_bytes(&path, made.as_ref())?;
                made.as_ref().to_vec()
            }
        };
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &document, &random)
            .map_err(|_| Error::SigningKey { path: path.clone() })?;
        let digest = ring::digest::digest(&ring::digest::SHA256, pair.public_key().as_ref());
        Ok(Keys { id: URL_SAFE_NO_PAD.encode(digest), pair })
    }

    pub fn sign(&self, claims: &Value) -> Option<String> {
        let header = json!({"alg": "ES256", "kid": self.id, "typ": "JWT"});
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that we signed; whether they still hold is for the caller to say.
    pub fn verify(&self, token: &str) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        if decode(header)?["alg"] != "ES256" {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        key.verify(signed.as_bytes(), &signature).ok()?;
        decode(claims)
    }

    /// The public key as a JSON Web Key Set.
    pub fn to_jwks(&self) -> Value {
        // Uncompressed point: 4, then x and y of 32 bytes each.
        let point = self.pair.public_key().as_ref();
        let part =
            |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": part(1..33), "y": part(33..65)}]})
    }
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_we_signed_unchanged_is_believed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let keys = Keys::open(dir.path()).expect("a key can be made");
        let token = keys.sign(&json!({"sub": "system:serviceaccount:a:b"})).expect("it can be signed");
        assert_eq!(keys.verify(&token).expect("it is ours")["sub"], "system:serviceaccount:a:b");
        let again = Keys::open(dir.path()).expect("the key is kept");
        assert!(again.verify(&token).is_some());
        let other = tempfile::tempdir().expect("a temporary directory");
        assert!(Keys::open(other.path()).expect("a key can be made").verify(&token).is_none());
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = encode(&json!({"sub": "system:serviceaccount:kube-system:admin"}));
        parts[1] = &forged;
        assert!(keys.verify(&parts.join(".")).is_none());
        let none = encode(&json!({"alg": "none", "typ": "JWT"}));
        parts[0] = &none;
        assert!(keys.verify(&format!("{}.{}.", parts[0], parts[1])).is_none());
        assert!(keys.verify("").is_none() && keys.verify("a.b").is_none());
    }
}
