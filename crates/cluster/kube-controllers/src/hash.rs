//! A short name for a template: the same for the same content, in whatever order its fields stand.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// No vowels, so that no words come about.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// `collisions` tells templates apart that would get the same name.
pub fn short(content: &Value, collisions: i64) -> String {
    let mut hash = Sha256::new();
    feed(content, &mut hash);
    if collisions > 0 {
        hash.update(collisions.to_string());
    }
    hash.finalize()[..10].iter().map(|it| LETTERS[*it as usize % LETTERS.len()] as char).collect()
}

fn feed(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<_> = map.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            hash.update(b"{");
            for (name, value) in fields {
                hash.update(name.as_bytes());
                hash.update([0]);
                feed(value, hash);
            }
            hash.update(b"}");
        }
        Value::Array(items) => {
            hash.update(b"[");
            items.iter().for_each(|it| feed(it, hash));
            hash.update(b"]");
        }
        plain => hash.update(plain.to_string().as_bytes()),
    }
}
