//! Content addresses: `sha256:` and 64 hex digits, or `sha512:` and 128. Ours are sha256; the others come from
//! people who want them. A [`Digest`] that exists is well formed, so its hex part may be used as a file name.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::io::{self, Read, Write};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

#[derive(Debug, thiserror::Error)]
#[error("not a digest of the form `sha256:<64 hex digits>` or `sha512:<128 hex digits>`: {0}")]
pub struct DigestError(String);

impl Digest {
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let is_lower_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let is_digest = match text.split_once(':') {
            Some(("sha256", hex)) => hex.len() == 64 && hex.bytes().all(is_lower_hex),
            Some(("sha512", hex)) => hex.len() == 128 && hex.bytes().all(is_lower_hex),
            _ => false,
        };
        match is_digest {
            true => Ok(Self(text.to_owned())),
            false => Err(DigestError(text.chars().take(150).collect())),
        }
    }

    /// A digest whose algorithm is told by its length, as in names of files.
    pub fn from_hex(hex: &str) -> Option<Self> {
        let algorithm = if hex.len() == 128 { "sha512" } else { "sha256" };
        Self::parse(&format!("{algorithm}:{hex}")).ok()
    }

    /// The digest of these bytes.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self::from_hasher(Sha256::new_with_prefix(bytes))
    }

    /// The digest of these bytes by the same algorithm as this one.
    pub fn same_kind_of(&self, bytes: impl AsRef<[u8]>) -> Self {
        match self.algorithm() {
            "sha512" => Self::named("sha512", &Sha512::digest(bytes)),
            _ => Self::of(bytes),
        }
    }

    pub fn from_hasher(hasher: Sha256) -> Self {
        Self::named("sha256", &hasher.finalize())
    }

    fn named(algorithm: &str, bytes: &[u8]) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(algorithm.len() + 1 + bytes.len() * 2);
        text.push_str(algorithm);
        text.push(':');
        for byte in bytes {
            text.push(HEX[usize::from(byte >> 4)] as char);
            text.push(HEX[usize::from(byte & 15)] as char);
        }
        Self(text)
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        &self.0[.."sha256".len()]
    }

    /// The digest of all that can be read, by the same algorithm as this one.
    pub fn same_kind_of_file(&self, file: &mut impl Read) -> io::Result<Self> {
        match self.algorithm() {
            "sha512" => {
                let mut hasher = Sha512::new();
                io::copy(file, &mut hasher)?;
                Ok(Self::named("sha512", &hasher.finalize()))
            }
            _ => {
                let mut hasher = Sha256::new();
                io::copy(file, &mut hasher)?;
                Ok(Self::from_hasher(hasher))
            }
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the algorithm.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// Twelve digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(it: Digest) -> Self {
        it.0
    }
}

/// Passes bytes through and remembers their digest and number.
pub struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    pub fn new(inner: T) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// Goes on where an earlier one stopped, whose bytes are read once more.
    pub fn resume(inner: T, earlier: &mut impl Read) -> io::Result<Self> {
        let mut hashing = Hashing::new(io::sink());
        io::copy(earlier, &mut hashing)?;
        Ok(Self { inner, hasher: hashing.hasher, bytes: hashing.bytes })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest::from_hasher(self.hasher), self.bytes)
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lower_case_hex_of_a_known_algorithm_is_a_digest() {
        let long = Digest::parse(&format!("sha512:{}", "0a".repeat(64))).unwrap();
        assert_eq!(Digest::from_hex(long.hex()).as_ref(), Some(&long));
        assert!(
            long.same_kind_of("")
                .as_str()
                .starts_with("sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc")
        );
        assert_eq!(long.same_kind_of("x"), long.same_kind_of_file(&mut "x".as_bytes()).unwrap());
        let good = Digest::of("");
        assert_eq!(good.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(Digest::parse(good.as_str()).unwrap(), good);
        for bad in ["", "sha256:", "sha512:00", &good.as_str().to_uppercase(), &good.as_str()[..70]] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert!(Digest::parse(&format!("sha256:../{}", &good.hex()[3..])).is_err());
    }
}
