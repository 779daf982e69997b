//! `hashFiles`: which files its patterns name, and one hash over them. Patterns mean what they mean to the
//! npm package `@actions/glob` (which GitHub's runner uses for this): lines are patterns, `!` takes out again,
//! a directory stands for everything in it, `*` and `?` stay within a name, `**` does not; hidden files count,
//! links to directories are not followed. Files are taken in the order in which that package walks: the entries
//! of a directory by the bytes of their names, what is below one before the next.

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A pattern that names more has gone wrong (`**` in a dependency's tree), and would block the job for long.
const FILES_MAX: usize = 1_000_000;

/// The hash over all files that the patterns name within the workspace: SHA-256 of the SHA-256s, in hex; empty
/// if there is none.
pub fn of_files(workspace: &Path, patterns: &[String]) -> std::io::Result<String> {
    let mut whole = Sha256::new();
    let mut count = 0;
    for file in files(workspace, patterns)? {
        let mut hash = Sha256::new();
        std::io::copy(&mut std::fs::File::open(&file)?, &mut hash)?;
        whole.update(hash.finalize());
        count += 1;
    }
    if count == 0 {
        return Ok(String::new());
    }
    Ok(whole.finalize().iter().map(|it| format!("{it:02x}")).collect())
}

/// The files that patterns name, in the order of the walk.
fn files(workspace: &Path, patterns: &[String]) -> std::io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for line in patterns.iter().flat_map(|it| it.lines()).map(str::trim) {
        if !line.is_empty() && !line.starts_with('#') {
            let names = line.trim_start_matches("./").split('/');
            if names.clone().any(|it| it == ".." || it == ".") && !matches!(line, "." | "./") {
                return Err(std::io::Error::other(format!(
                    "`.` and `..` cannot stand within the pattern `{line}`"
                )));
            }
            all.extend(Pattern::parse(line, workspace));
        }
    }
    let mut found = Vec::new();
    for root in roots(&all) {
        walk(&root, &all, &mut found)?;
    }
    // What lies outside of the workspace does not count.
    found.retain(|it| it.starts_with(workspace));
    Ok(found)
}

/// Where to begin: the parts of patterns before their first wildcard, without those within others.
fn roots(patterns: &[Pattern]) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    for pattern in patterns.iter().filter(|it| !it.negated) {
        let mut root = PathBuf::from("/");
        for segment in &pattern.segments {
            let Segment::Literal(name) = segment else { break };
            root.push(name);
        }
        if !roots.contains(&root) {
            roots.push(root);
        }
    }
    let all = roots.clone();
    roots.retain(|it| !all.iter().any(|other| other != it && it.starts_with(other)));
    roots
}

fn walk(path: &Path, patterns: &[Pattern], found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let Ok(kind) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let names: Vec<&str> = path.iter().skip(1).map(|it| it.to_str().unwrap_or("\u{fffd}")).collect();
    // A link counts as the file that it names; one to a directory is not entered.
    let is_file = kind.is_file() || (kind.is_symlink() && path.is_file());
    if is_file {
        // The last pattern that fits decides.
        let last = patterns.iter().rfind(|it| !it.directories_only && it.matches(&names));
        if last.is_some_and(|it| !it.negated) {
            if found.len() == FILES_MAX {
                return Err(std::io::Error::other(format!("the patterns name more than {FILES_MAX} files")));
            }
            found.push(path.to_owned());
        }
    } else if kind.is_dir() {
        let may = patterns.iter().any(|it| !it.negated && it.may_match_below(&names));
        if !may {
            return Ok(());
        }
        let mut entries: Vec<_> =
            std::fs::read_dir(path)?.filter_map(Result::ok).map(|it| it.file_name()).collect();
        entries.sort();
        for entry in entries {
            walk(&path.join(entry), patterns, found)?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum Segment {
    Literal(String),
    /// With `*`, `?` or `[...]` in it.
    Wild(Vec<char>),
    /// `**`
    Deep,
}

#[derive(Debug, Clone)]
struct Pattern {
    negated: bool,
    directories_only: bool,
    segments: Vec<Segment>,
}

impl Pattern {
    /// A line as one pattern, and as a second one that stands for everything below what it names.
    fn parse(line: &str, workspace: &Path) -> Vec<Pattern> {
        let mut negated = false;
        let mut text = line;
        while let Some(rest) = text.strip_prefix('!') {
            negated = !negated;
            text = rest.trim_start();
        }
        if text.is_empty() {
            return Vec::new();
        }
        let directories_only = text.ends_with('/');
        let mut segments: Vec<Segment> = Vec::new();
        if !text.starts_with('/') {
            let names =
                workspace.iter().skip(1).map(|it| Segment::Literal(it.to_string_lossy().into_owned()));
            segments.extend(names);
        }
        for part in text.split('/') {
            match part {
                "" | "." => {}
                "**" => segments.push(Segment::Deep),
                it => segments.push(segment(it)),
            }
        }
        let whole = Pattern { negated, directories_only, segments };
        let mut patterns = vec![whole.clone()];
        if directories_only || !matches!(whole.segments.last(), Some(Segment::Deep)) {
            let mut below = whole;
            below.directories_only = false;
            below.segments.push(Segment::Deep);
            patterns.push(below);
        }
        patterns
    }

    fn matches(&self, names: &[&str]) -> bool {
        match_from(&self.segments, names)
    }

    fn may_match_below(&self, names: &[&str]) -> bool {
        partial(&self.segments, names)
    }
}

fn match_from(segments: &[Segment], names: &[&str]) -> bool {
    match (segments.split_first(), names.split_first()) {
        (None, None) => true,
        (None, Some(_)) | (Some((Segment::Literal(_) | Segment::Wild(_), _)), None) => false,
        (Some((Segment::Deep, rest)), _) => {
            if rest.is_empty() {
                // `x/**` is what lies below x, not x itself.
                return !names.is_empty();
            }
            (0..=names.len()).any(|skip| match_from(rest, &names[skip..]))
        }
        (Some((segment, rest)), Some((name, names))) => fits(segment, name) && match_from(rest, names),
    }
}

/// Whether something below could match: as far as the names go, they fit.
fn partial(segments: &[Segment], names: &[&str]) -> bool {
    match (segments.split_first(), names.split_first()) {
        (_, None) | (Some((Segment::Deep, _)), _) => true,
        (None, Some(_)) => false,
        (Some((segment, rest)), Some((name, names))) => fits(segment, name) && partial(rest, names),
    }
}

fn segment(text: &str) -> Segment {
    let mut literal = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' => return Segment::Wild(text.chars().collect()),
            '[' if chars.clone().any(|it| it == ']') => return Segment::Wild(text.chars().collect()),
            '\\' => literal.extend(chars.next()),
            c => literal.push(c),
        }
    }
    Segment::Literal(literal)
}

fn fits(segment: &Segment, name: &str) -> bool {
    match segment {
        Segment::Literal(it) => it == name,
        Segment::Wild(pattern) => wild(pattern, &name.chars().collect::<Vec<_>>()),
        Segment::Deep => true,
    }
}

/// One star is remembered at a time, so that no pattern takes long.
fn wild(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        let one = match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some('?') => Some(p + 1),
            Some('[') => class(&pattern[p..], name[n]).and_then(|(hit, length)| hit.then_some(p + length)),
            Some('\\') if pattern.get(p + 1) == Some(&name[n]) => Some(p + 2),
            Some(c) if *c == name[n] => Some(p + 1),
            _ => None,
        };
        match (one, star) {
            (Some(next), _) => {
                p = next;
                n += 1;
            }
            (None, Some((at, from))) => {
                p = at + 1;
                n = from + 1;
                star = Some((at, from + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|it| *it == '*')
}

/// Whether a character is in `[...]`, and how long that is; `None` if it never closes.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let start = if negated { 2 } else { 1 };
    let mut at = start;
    let mut hit = false;
    loop {
        match *pattern.get(at)? {
            ']' if at > start => return Some((hit != negated, at + 1)),
            low => {
                let high = match (pattern.get(at + 1), pattern.get(at + 2)) {
                    (Some('-'), Some(high)) if *high != ']' => {
                        at += 2;
                        *high
                    }
                    _ => low,
                };
                hit |= low <= c && c <= high;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        root
    }

    #[test]
    fn patterns_name_files_as_actions_glob_has_them() {
        let root = tree(&[
            "a.lock",
            "sub/a.lock",
            "sub/deep/b.lock",
            ".hidden/c.lock",
            "src/x.rs",
            "src-2/y.rs",
            "a[1].txt",
        ]);
        let named = |patterns: &[&str]| -> Vec<String> {
            let patterns: Vec<String> = patterns.iter().map(|it| (*it).to_owned()).collect();
            let found = files(root.path(), &patterns).unwrap();
            found.iter().map(|it| it.strip_prefix(root.path()).unwrap().display().to_string()).collect()
        };
        assert_eq!(named(&["**/*.lock"]), [".hidden/c.lock", "a.lock", "sub/a.lock", "sub/deep/b.lock"]);
        assert_eq!(named(&["*.lock"]), ["a.lock"]);
        assert_eq!(named(&["sub"]), ["sub/a.lock", "sub/deep/b.lock"]);
        assert_eq!(named(&["sub/"]), ["sub/a.lock", "sub/deep/b.lock"]);
        assert_eq!(named(&["**/*.lock\n!sub/**"]), [".hidden/c.lock", "a.lock"]);
        assert_eq!(
            named(&["**/*.lock", "!sub", "sub/deep/*.lock"]),
            [".hidden/c.lock", "a.lock", "sub/deep/b.lock"]
        );
        assert_eq!(named(&["s?c/*.rs", "src-[0-9]/**"]), ["src/x.rs", "src-2/y.rs"]);
        assert_eq!(named(&["# no", "./a.lock"]), ["a.lock"]);
        assert_eq!(named(&["a\\[1\\].txt"]), ["a[1].txt"]);
        assert!(named(&["/etc/hostname", "none/**"]).is_empty());
    }

    #[test]
    fn the_hash_is_that_of_the_hashes() {
        let root = tree(&["a", "b"]);
        // `(sha256 of "a", sha256 of "b")` as bytes, hashed: what `cat <(sha256sum ...) | sha256sum` says of
        // the raw digests.
        let mut whole = Sha256::new();
        whole.update(Sha256::digest(b"a"));
        whole.update(Sha256::digest(b"b"));
        let want: String = whole.finalize().iter().map(|it| format!("{it:02x}")).collect();
        assert_eq!(of_files(root.path(), &["*".into()]).unwrap(), want);
        assert_eq!(of_files(root.path(), &["none".into()]).unwrap(), "");
    }
}
