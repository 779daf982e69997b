//! DSSE: a signed envelope around a document, as in-toto's statements travel.

use base64::Engine as _;
use serde_json::Value;

/// An envelope's parts, decoded; nothing of it is trusted yet.
pub struct Envelope {
    pub kind: String,
    pub payload: Vec<u8>,
    pub signatures: Vec<Vec<u8>>,
}

impl Envelope {
    pub fn read(value: &Value) -> Result<Self, String> {
        let decode = |it: &Value| {
            let text = it.as_str().unwrap_or_default();
            base64::engine::general_purpose::STANDARD.decode(text).map_err(|it| it.to_string())
        };
        let signatures = value["signatures"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(Self {
            kind: value["payloadType"].as_str().unwrap_or_default().to_owned(),
            payload: decode(&value["payload"])?,
            signatures: signatures.iter().filter_map(|it| decode(&it["sig"]).ok()).collect(),
        })
    }

    /// What the signatures are of.
    pub fn signed(&self) -> Vec<u8> {
        pre_authentication(&self.kind, &self.payload)
    }
}

/// What DSSE signs: type and body with their lengths, so that neither can be taken for a part of the other.
pub fn pre_authentication(kind: &str, body: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {kind} {} ", kind.len(), body.len()).into_bytes();
    out.extend_from_slice(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_own_example() {
        assert_eq!(
            pre_authentication("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }
}
