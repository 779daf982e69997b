//! Platforms as images name them: `linux/arm64`, `linux/arm/v7`.

use serde::{Deserialize, Serialize};

/// What an image is made for, in the one form in which two of them can be compared: variants that mean nothing
/// more than their architecture (`arm64/v8`, `amd64/v1`) are left out, `arm` alone is `arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a platform; write it like `linux/arm64`")]
pub struct PlatformError(String);

impl Platform {
    /// This machine's.
    pub fn here() -> Self {
        Self { architecture: architecture().into(), os: "linux".into(), variant: None }
    }

    /// `linux/arm64/v8`, `arm64`, or `linux` (this machine's architecture).
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            ["linux"] => ("linux", architecture(), None),
            [one] => ("linux", *one, None),
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some(*variant)),
            _ => return Err(PlatformError(text.into())),
        };
        let is_word = |it: &str| {
            !it.is_empty() && it.bytes().all(|it| it.is_ascii_alphanumeric() || b"_-".contains(&it))
        };
        if !is_word(os) || !is_word(architecture) || !variant.is_none_or(is_word) {
            return Err(PlatformError(text.into()));
        }
        Ok(Self::new(os, architecture, variant))
    }

    /// From an image's configuration or an index; either may use other names.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let lower = architecture.to_ascii_lowercase();
        let variant = variant.map(str::to_ascii_lowercase).filter(|it| !it.is_empty());
        let (architecture, variant) = match (lower.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", Some(it)) => ("amd64", Some(it)),
            ("aarch64" | "arm64", None | Some("8" | "v8")) => ("arm64", None),
            ("aarch64" | "arm64", Some(it)) => ("arm64", Some(it)),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("i386", _) => ("386", None),
            (other, it) => (other, it),
        };
        Self { architecture: architecture.into(), os: os.into(), variant: variant.map(str::to_owned) }
    }

    /// In the one form.
    pub fn plain(&self) -> Self {
        Self::new(&self.os, &self.architecture, self.variant.as_deref())
    }

    pub fn is_here(&self) -> bool {
        *self == Self::here()
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |it| write!(f, "/{it}"))
    }
}

/// This machine's architecture as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_platform_are_equal() {
        for (text, want) in [
            ("linux/amd64", "linux/amd64"),
            ("x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("armhf", "linux/arm/v7"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), want, "{text}");
        }
        assert!(Platform::parse("linux").unwrap().is_here());
        for bad in ["", "linux/", "linux/arm64/v8/x", "linux/a b", "../x"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }
}
