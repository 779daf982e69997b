//! Names and ids: Docker's are freer than those of a Kubernetes object.

use rand::Rng;
use sha2::{Digest, Sha256};

/// As Docker shows ids to people.
pub const SHORT: usize = 12;

const ADJECTIVES: &[&str] = &[
    "amber", "brave", "calm", "clear", "cosy", "eager", "fair", "gentle", "golden", "happy", "keen", "kind",
    "light", "lively", "lucid", "merry", "mild", "neat", "nimble", "patient", "plain", "proud", "quick",
    "quiet", "ready", "round", "serene", "sharp", "silent", "steady", "swift", "warm",
];
const NOUNS: &[&str] = &[
    "aspen", "beacon", "birch", "brook", "cedar", "clover", "comet", "coral", "crane", "delta", "ember",
    "falcon", "fern", "finch", "harbor", "heron", "island", "juniper", "lantern", "maple", "meadow", "otter",
    "pebble", "pine", "river", "robin", "sparrow", "spruce", "summit", "thistle", "walnut", "willow",
];

/// A name for a container that was given none.
pub fn random_name() -> String {
    let mut random = rand::rng();
    let mut one = |list: &[&str]| list[random.random_range(0..list.len())].to_owned();
    format!("{}_{}", one(ADJECTIVES), one(NOUNS))
}

/// 64 hexadecimal digits.
pub fn random_id() -> String {
    let bytes: [u8; 32] = rand::rng().random();
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

/// The same 64 digits for the same text.
pub fn id_of(text: &str) -> String {
    Sha256::digest(text).iter().map(|it| format!("{it:02x}")).collect()
}

pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// Docker's rule for names of containers, volumes and networks.
pub fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|it| it.is_ascii_alphanumeric())
        && name.len() > 1
        && bytes.all(|it| it.is_ascii_alphanumeric() || b"_.-".contains(&it))
}

/// The name of an object that stands for something of Docker's: readable, and different for different names.
pub fn object_name(name: &str) -> String {
    const LENGTH_MAX: usize = 54;
    naru_objects::dns_label_unique(name, LENGTH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects_are_readable_and_differ() {
        assert_eq!(object_name("data"), "data");
        assert!(object_name("shop_db-data").starts_with("shop-db-data-"));
        assert_ne!(object_name("A_b"), object_name("a_b"));
        assert!(is_name("web_1") && !is_name("-x") && !is_name("a/b") && !is_name("x"));
        assert_eq!(random_id().len(), 64);
    }
}
