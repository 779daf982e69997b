//! `.dockerignore`: which files of the context do not exist for the build. The rules are moby's: patterns
//! from the context's root, `!` brings back, the last match decides, a directory takes its files along.

use crate::pattern::matcher;
use regex::Regex;
use std::path::Path;

#[derive(Debug, Default)]
pub struct Ignore {
    rules: Vec<(Regex, Effect)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Hide,
    Show,
}

impl Ignore {
    /// Reads the file's text. A pattern that cannot be understood is returned with its line.
    pub fn parse(text: &str) -> Result<Self, (u32, String)> {
        let mut rules = Vec::new();
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (effect, pattern) = match line.strip_prefix('!') {
                Some(rest) => (Effect::Show, rest.trim()),
                None => (Effect::Hide, line),
            };
            let mut parts: Vec<&str> = Vec::new();
            for part in pattern.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(parts.pop()),
                    part => parts.push(part),
                }
            }
            if parts.is_empty() {
                continue;
            }
            let matcher = matcher(&parts.join("/")).map_err(|why| (index as u32 + 1, why))?;
            rules.push((matcher, effect));
        }
        Ok(Self { rules })
    }

    /// Whether the file (relative to the context) is hidden, itself or with a directory above it.
    pub fn hides(&self, path: &Path) -> bool {
        let mut hidden = false;
        let path = path.to_string_lossy();
        let ends = || path.match_indices('/').map(|it| it.0).chain([path.len()]);
        for (matcher, effect) in &self.rules {
            let matches = || ends().any(|end| matcher.is_match(&path[..end]));
            if (*effect == Effect::Hide) != hidden && matches() {
                hidden = *effect == Effect::Hide;
            }
        }
        hidden
    }

    /// Nothing is hidden.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether nothing below a hidden directory can be shown again, so that it need not be entered.
    pub fn is_final(&self) -> bool {
        self.rules.iter().all(|(_, effect)| *effect == Effect::Hide)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_decides() {
        let ignore =
            Ignore::parse("# comment\ntarget\n**/*.log\n/docs/*\n!docs/keep.md\n*.tmp\n\n!a.tmp\n").unwrap();
        for (path, hidden) in [
            ("target", true),
            ("target/debug/x", true),
            ("src/target", false),
            ("a/b/c.log", true),
            ("c.log", true),
            ("docs/x.md", true),
            ("docs/keep.md", false),
            ("docs", false),
            ("b.tmp", true),
            ("a.tmp", false),
            ("sub/b.tmp", false),
            ("src/main.rs", false),
        ] {
            assert_eq!(ignore.hides(Path::new(path)), hidden, "{path}");
        }
        assert!(!ignore.is_final());
        assert!(Ignore::parse("target/\n").unwrap().hides(Path::new("target/x")));
        assert_eq!(Ignore::parse("ok\n[\n").unwrap_err().0, 2);
    }
}
