//! The patterns of `branches`, `tags` and `paths`, after GitHub's "Filter pattern cheat sheet". They look like globs
//! and are not: `?` and `+` repeat the character before them, as in `v[0-9]+.[0-9]+`.

/// What one place of the name may hold.
enum Atom {
    Literal(char),
    /// `*`: any characters but `/`.
    Star,
    /// `**`: any characters.
    DoubleStar,
    /// `**/` where a name begins: the way around the next item, which is the directories.
    MaybeDirectories,
    /// Any characters up to a `/`.
    Directories,
    /// `[a-z]`, as ranges.
    Class(Vec<(char, char)>),
}

#[derive(Clone, Copy, PartialEq)]
enum Times {
    Once,
    /// `?`
    AtMostOnce,
    /// `+`
    AtLeastOnce,
}

pub struct Pattern {
    items: Vec<(Atom, Times)>,
}

impl Pattern {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut items: Vec<(Atom, Times)> = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let atom = match c {
                '?' | '+' => {
                    let times = if c == '?' { Times::AtMostOnce } else { Times::AtLeastOnce };
                    match items.last_mut() {
                        Some((Atom::Literal(_) | Atom::Class(_), last)) if *last == Times::Once => {
                            *last = times
                        }
                        _ => return Err(format!("`{c}` repeats the character before it, and there is none")),
                    }
                    continue;
                }
                '*' if chars.next_if_eq(&'*').is_some() => {
                    let begins = matches!(
                        items.last(),
                        None | Some((Atom::Literal('/'), Times::Once) | (Atom::Directories, _))
                    );
                    if begins && chars.next_if_eq(&'/').is_some() {
                        items.push((Atom::MaybeDirectories, Times::Once));
                        Atom::Directories
                    } else {
                        Atom::DoubleStar
                    }
                }
                '*' => Atom::Star,
                '[' => Atom::Class(class(&mut chars)?),
                '\\' => Atom::Literal(chars.next().ok_or("`\\` at the end")?),
                c => Atom::Literal(c),
            };
            items.push((atom, Times::Once));
        }
        Ok(Self { items })
    }

    /// All ways through the pattern side by side, so that no pattern takes longer than its length times
    /// that of the name.
    pub fn matches(&self, name: &str) -> bool {
        let mut at = vec![false; self.items.len() + 1];
        at[0] = true;
        self.skip(&mut at);
        for c in name.chars() {
            let mut next = vec![false; at.len()];
            for (index, (atom, times)) in self.items.iter().enumerate().filter(|(index, _)| at[*index]) {
                if matches!(atom, Atom::Directories) {
                    next[index] = true;
                    next[index + 1] |= c == '/';
                    continue;
                }
                let (fits, stays) = match atom {
                    Atom::Literal(it) => (*it == c, *times == Times::AtLeastOnce),
                    Atom::Class(ranges) => (
                        ranges.iter().any(|(from, to)| (*from..=*to).contains(&c)),
                        *times == Times::AtLeastOnce,
                    ),
                    Atom::Star => (c != '/', true),
                    Atom::DoubleStar | Atom::Directories => (true, true),
                    Atom::MaybeDirectories => (false, false),
                };
                if fits {
                    next[index] |= stays;
                    next[index + 1] = true;
                }
            }
            at = next;
            self.skip(&mut at);
        }
        at[self.items.len()]
    }

    /// Steps over what may be left out.
    fn skip(&self, at: &mut [bool]) {
        for (index, (atom, times)) in self.items.iter().enumerate() {
            let none = matches!(atom, Atom::Star | Atom::DoubleStar | Atom::MaybeDirectories);
            if at[index] && (none || *times == Times::AtMostOnce) {
                at[index + 1] = true;
            }
            if at[index] && matches!(atom, Atom::MaybeDirectories) {
                at[index + 2] = true;
            }
        }
    }
}

fn class(chars: &mut impl Iterator<Item = char>) -> Result<Vec<(char, char)>, String> {
    let mut inner = Vec::new();
    loop {
        match chars.next() {
            Some(']') => break,
            Some(it) => inner.push(it),
            None => return Err("`[` without its `]`".into()),
        }
    }
    let mut ranges = Vec::new();
    let mut rest = inner.as_slice();
    while !rest.is_empty() {
        match rest {
            [from, '-', to, more @ ..] => {
                ranges.push((*from, *to));
                rest = more;
            }
            [one, more @ ..] => {
                ranges.push((*one, *one));
                rest = more;
            }
            [] => {}
        }
    }
    if ranges.is_empty() { Err("`[]` holds no character".into()) } else { Ok(ranges) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheat_sheet_holds() {
        // Pattern, what it matches, what it does not; from GitHub's page.
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("feature/*", &["feature/my-branch"], &["feature/beta-a/my-branch"]),
            ("feature/**", &["feature/beta-a/my-branch", "feature/x"], &["other"]),
            ("releases/mona-the-cat", &["releases/mona-the-cat"], &["releases/mona"]),
            ("*", &["main", "releases"], &["all/the/branches"]),
            ("**", &["all/the/branches", "main"], &[]),
            ("*feature", &["mona-feature", "feature", "ver-10-feature"], &["feature-x"]),
            ("v2*", &["v2", "v2.0", "v2.9"], &["v1"]),
            ("v[12].[0-9]+.[0-9]+", &["v1.10.1", "v2.0.0"], &["v3.0.0", "v1.10", "v1.10.1-rc"]),
            ("colou?r", &["color", "colour"], &["colouur"]),
            ("releases**", &["releases/1/x", "releases"], &["release"]),
            ("a\\*", &["a*"], &["ab"]),
            ("*.jsx?", &["page.js", "page.jsx"], &["page.j", "a/page.js"]),
            ("**.js", &["index.js", "js/index.js", "src/js/app.js"], &["index.jsx"]),
            ("docs/*", &["docs/README.md", "docs/file.txt"], &["docs/a/b.md"]),
            ("docs/**", &["docs/README.md", "docs/mona/octocat.txt"], &["doc/x", "docs"]),
            (
                "docs/**/*.md",
                &["docs/README.md", "docs/mona/hello-world.md", "docs/a/markdown/file.md"],
                &["docs.md", "a/docs/x.md"],
            ),
            (
                "**/docs/**",
                &["docs/hello.md", "dir/docs/my-file.txt", "space/docs/plan/space.doc"],
                &["mydocs/x", "docs"],
            ),
            ("**/README.md", &["README.md", "js/README.md"], &["js/xREADME.md"]),
            ("**/*src/**", &["a/src/app.js", "my-src/code/js/app.js"], &["src-a/x.js"]),
            ("**/*-post.md", &["my-post.md", "path/their-post.md"], &["my-post.mdx"]),
            (
                "**/migrate-*.sql",
                &["migrate-10909.sql", "db/migrate-v1.0.sql", "db/sept/migrate-v1.sql"],
                &["db/xmigrate-1.sql"],
            ),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb", "ab"]),
            ("**/**/x", &["x", "a/x", "a/b/x"], &["ax"]),
        ];
        for (pattern, good, bad) in cases {
            let it = Pattern::parse(pattern).unwrap();
            for name in *good {
                assert!(it.matches(name), "{pattern} {name}");
            }
            for name in *bad {
                assert!(!it.matches(name), "{pattern} {name}");
            }
        }
        assert!(Pattern::parse("+").is_err() && Pattern::parse("[a").is_err());
    }
}
