//! Image names as Docker reads them: `rust:1` is `docker.io/library/rust:1`. And the user's aliases,
//! which send a name that cannot be pulled here somewhere else.

use crate::digest::Digest;

/// The registry name that means "only ever in this store".
pub const LOCAL_REGISTRY: &str = "naru.local";
/// The image whose root is this machine's own, read-only.
pub const HOST_IMAGE: &str = "naru.local/host";

const NAME_LENGTH_MAX: usize = 255; // distribution spec
const TAG_LENGTH_MAX: usize = 128; // distribution spec

/// A parsed and completed image name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

#[derive(Debug, thiserror::Error)]
#[error("{why} in image name `{name}`")]
pub struct ReferenceError {
    pub why: &'static str,
    pub name: String,
}

impl Reference {
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let fail = |why| ReferenceError { why, name: text.chars().take(300).collect() };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (
                rest,
                Some(Digest::parse(digest).map_err(|_| fail("the digest is neither sha256 nor sha512"))?),
            ),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|it| !is_tag(it)) {
            return Err(fail("the tag is not valid"));
        }
        let (registry, path) = match rest.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path.to_owned()),
            Some(_) => ("docker.io", rest.to_owned()),
            None => ("docker.io", format!("library/{rest}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        if rest.bytes().any(|it| it.is_ascii_uppercase()) && registry == "docker.io" {
            return Err(fail("upper case letters are not allowed"));
        }
        if !is_repository(&path) {
            return Err(fail("the repository is not valid"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository: path, tag, digest })
    }

    /// The name that a tag is kept under, without a digest.
    pub fn tag_name(&self) -> String {
        format!("{}:{}", self.name(), self.tag.as_deref().unwrap_or("latest"))
    }

    /// Registry and repository.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    pub fn is_local_only(&self) -> bool {
        self.registry == LOCAL_REGISTRY
    }

    /// As people write it: without `docker.io/library/`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let full = full.strip_prefix("docker.io/").unwrap_or(&full);
        full.strip_prefix("library/").unwrap_or(full).to_owned()
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_registry(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b".-:[]".contains(&c);
    (text.contains(['.', ':']) || text == "localhost") && text.bytes().all(allowed)
}

/// Whether this is a repository path by the distribution specification.
pub fn is_repository(path: &str) -> bool {
    let component = |it: &str| {
        let ends = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        ends(it.bytes().next())
            && ends(it.bytes().next_back())
            && it.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c))
            && !it.contains("..")
    };
    path.len() <= NAME_LENGTH_MAX && path.split('/').all(component)
}

/// Whether this is a tag by the distribution specification.
pub fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    tag.len() <= TAG_LENGTH_MAX
        && bytes.next().is_some_and(|c| c.is_ascii_alphanumeric() || c == b'_')
        && bytes.all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
}

/// Where the user's aliases send a name, if one of them matches. A pattern is a name in which `*` stands
/// for anything; without a tag it means `:latest`, as everywhere. The first match wins.
pub fn alias_of<'a>(aliases: &'a [(String, String)], name: &Reference) -> Option<&'a str> {
    let without_digest = Reference { digest: None, ..name.clone() };
    let (full, familiar) = (without_digest.to_string(), without_digest.familiar());
    aliases.iter().find_map(|(pattern, target)| {
        let last = pattern.rsplit('/').next().unwrap_or(pattern);
        let complete = match last.contains([':', '*']) {
            true => pattern.clone(),
            false => format!("{pattern}:latest"),
        };
        (glob(&complete, &full) || glob(&complete, &familiar)).then_some(target.as_str())
    })
}

/// `*` matches any characters; linear in practice because patterns have one or two stars.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.is_char_boundary(at) && glob(rest, &tail[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = Digest::of("x");
        for (text, want) in [
            ("rust", "docker.io/library/rust:latest"),
            ("rust:1", "docker.io/library/rust:1"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("ghcr.io/a/b:v1", "ghcr.io/a/b:v1"),
            ("localhost/x", "localhost/x:latest"),
            ("127.0.0.1:5000/x/y:1", "127.0.0.1:5000/x/y:1"),
            (&format!("naru.local/shop@{digest}"), &format!("naru.local/shop@{digest}")),
            (&format!("rust:1@{digest}"), &format!("docker.io/library/rust:1@{digest}")),
        ] {
            assert_eq!(Reference::parse(text).unwrap().to_string(), want, "{text}");
        }
        for bad in ["", "Rust", "a//b", "a/../b", "x:", "x:-a", "x@sha256:12", "a/.b", &"a".repeat(300)] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_alias_matches_short_and_full_names() {
        let aliases = vec![
            ("rust:1*".to_owned(), "host".to_owned()),
            ("busybox".to_owned(), "naru.local/busybox".to_owned()),
            ("ghcr.io/*".to_owned(), "mirror.example/x".to_owned()),
        ];
        let of = |name: &str| alias_of(&aliases, &Reference::parse(name).unwrap());
        assert_eq!(of("rust:1"), Some("host"));
        assert_eq!(of("docker.io/library/rust:1.95-slim"), Some("host"));
        assert_eq!(of("rust:2"), None);
        assert_eq!(of("busybox"), Some("naru.local/busybox"));
        assert_eq!(of("busybox:1.36"), None);
        assert_eq!(of("ghcr.io/a/b:3"), Some("mirror.example/x"));
    }
}
