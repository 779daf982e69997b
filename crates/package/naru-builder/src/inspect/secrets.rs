//! Secrets that an image gives to everybody who has it: in files of any layer (deleted ones too: whoever has
//! the image has the layer), in variables, in the history. A value is never told, only where it is.

use super::{Advice, FileUse, Layers};
use naru_image::oci::ImageConfig;
use regex::bytes::RegexSet;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const READ_BYTES_MAX: u64 = 1 << 20; // secrets stand in small files

/// What is looked for in files' content.
const PATTERNS: &[(&str, &str)] = &[
    (
        "a private key",
        r"-----BEGIN (?:RSA |EC |DSA |OPENSSH |ENCRYPTED |PGP )?PRIVATE KEY(?: BLOCK)?-----\r?\n[A-Za-z0-9+/=\r\n:, -]{64}",
    ),
    ("an AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a GitHub token", r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
    ("a GitLab token", r"\bglpat-[A-Za-z0-9_-]{20,}"),
    ("a Slack token", r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
    ("an npm token", r"(?m)^//[^\s:]+/:_(?:authToken|password)\s*=\s*[^\s$]+"),
    ("a Google API key", r"\bAIza[0-9A-Za-z_-]{35}\b"),
    ("a Stripe key", r"\b[rs]k_live_[0-9A-Za-z]{20,}"),
    ("a password in an address", r"\b[a-z][a-z0-9+]{2,}://[^\s:/@]{1,64}:[^\s:/@$\{<]{6,}@[A-Za-z0-9.-]+"),
];

/// Files that hold nothing but secrets, by name or path.
const NAMES: &[(&str, &str)] = &[
    (".env", "variables for development, most often with secrets"),
    (".netrc", "passwords of servers"),
    (".pgpass", "passwords of databases"),
    (".git-credentials", "passwords of git servers"),
    (".aws/credentials", "keys of AWS"),
    (".docker/config.json", "passwords of registries"),
    (".kube/config", "keys of a cluster"),
    ("gcloud/credentials.db", "keys of Google Cloud"),
    ("id_rsa", "a private key"),
    ("id_ecdsa", "a private key"),
    ("id_ed25519", "a private key"),
];

/// Where examples of secrets stand that are none.
const NOT_IN: &[&str] =
    &["test", "tests", "testdata", "testing", "example", "examples", "doc", "docs", "man", "__pycache__"];

pub(super) fn find(layers: &Layers, config: &ImageConfig) -> io::Result<Vec<Advice>> {
    // All at once: one pass over each file.
    let set = RegexSet::new(PATTERNS.iter().map(|it| it.1)).expect("the patterns of the table above");
    let looks_like = |bytes: &[u8]| set.matches(bytes).iter().next().map(|it| PATTERNS[it].0);
    let mut found: BTreeMap<(&str, usize), Vec<FileUse>> = BTreeMap::new();
    for file in &layers.files {
        if !file.meta.is_file() || file.meta.len() == 0 || is_elsewhere(&file.path) {
            continue;
        }
        let named = NAMES.iter().find(|it| file.path.ends_with(it.0)).map(|it| it.1);
        let what = match named {
            Some(what) if has_value(&file.real, file.path.ends_with(".docker/config.json"))? => Some(what),
            _ if file.meta.len() > READ_BYTES_MAX => None,
            _ => {
                let mut bytes = Vec::new();
                File::open(&file.real)?.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
                // Programs hold the beginnings of keys as texts to look for.
                match bytes.contains(&0) {
                    true => None,
                    false => looks_like(&bytes),
                }
            }
        };
        if let Some(what) = what {
            let path = format!("/{}", file.path.display());
            found.entry((what, file.layer)).or_default().push(FileUse { path, bytes: file.meta.len() });
        }
    }
    let mut advice: Vec<Advice> = found
        .into_iter()
        .map(|((what, layer), files)| Advice {
            rule: "secret".into(),
            message: format!("{what}: {}", files[0].path),
            hint:
                "take it back where it is valid, then use `RUN --mount=type=secret` or a Secret of the pod; \
                   deleting the file in a later layer does not help"
                    .into(),
            layer: Some(layer + 1),
            created_by: layers.created_by[layer].clone(),
            files,
            ..Advice::default()
        })
        .collect();
    for pair in &config.config.env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_secret = crate::dialect::is_secret(name) || looks_like(value.as_bytes()).is_some();
        // A path to a secret is none.
        if is_secret && !value.is_empty() && !value.starts_with('/') {
            advice.push(Advice {
                rule: "secret".into(),
                message: format!("the variable `{name}` can be read by everybody who has the image"),
                hint: "give it to the container as a Secret when it runs".into(),
                ..Advice::default()
            });
        }
    }
    for (index, step) in config.history.iter().enumerate() {
        if let Some(what) = looks_like(step.created_by.as_bytes()) {
            advice.push(Advice {
                rule: "secret".into(),
                message: format!("{what} in the command of step {} of the history", index + 1),
                hint: "use `RUN --mount=type=secret`, and take the value back where it is valid".into(),
                ..Advice::default()
            });
        }
    }
    Ok(advice)
}

fn is_elsewhere(path: &Path) -> bool {
    path.starts_with("usr/share")
        || path.iter().any(|part| NOT_IN.iter().any(|it| part.eq_ignore_ascii_case(it)))
}

/// A file of that name that says nothing is none.
fn has_value(path: &Path, is_docker: bool) -> io::Result<bool> {
    let mut text = String::new();
    if File::open(path)?.take(READ_BYTES_MAX).read_to_string(&mut text).is_err() {
        return Ok(true); // not text: a key database
    }
    if is_docker {
        return Ok(text.contains("\"auth\""));
    }
    let is_value = |line: &str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && !line.ends_with('=')
    };
    Ok(text.lines().any(is_value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_from_what_looks_like_them() {
        let matches = |text: &str| {
            PATTERNS.iter().find(|it| regex::Regex::new(it.1).unwrap().is_match(text)).map(|it| it.0)
        };
        // Put together here, so that nobody who searches this repository finds a key.
        let key = format!("-----BEGIN {} KEY-----\n{}\n", "PRIVATE", "A".repeat(64));
        for (text, want) in [
            (key.as_str(), Some("a private key")),
            ("-----BEGIN PUBLIC KEY-----\nAAAA", None),
            (&format!("-----BEGIN {} KEY-----", "PRIVATE"), None),
            (&format!("key = {}{}", "AKIA", "ABCDEFGHIJKLMNOP"), Some("an AWS access key")),
            (&format!("x {}_{}", "ghp", "a".repeat(36)), Some("a GitHub token")),
            ("//registry.npmjs.org/:_authToken=abc", Some("an npm token")),
            ("//registry.npmjs.org/:_authToken=${NPM_TOKEN}", None),
            ("postgres://shop:correcthorse@db/shop", Some("a password in an address")),
            ("postgres://shop:$PASSWORD@db/shop", None),
            ("https://example.com/a:b", None),
        ] {
            assert_eq!(matches(text), want, "{text}");
        }
        assert!(is_elsewhere(Path::new("usr/lib/python3/test/keys.pem")));
        assert!(!is_elsewhere(Path::new("app/keys.pem")));
    }
}
