//! Patterns of paths as Go and moby understand them: `*` and `?` stay within a name, `**` goes over
//! directories, `[a-z]` and `[^a-z]` are classes, `\` takes a character as it is. Braces mean nothing.

use regex::Regex;

/// Whether the text is more than a plain path.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// A matcher for whole relative paths. The error says what is wrong.
pub fn matcher(pattern: &str) -> Result<Regex, String> {
    let mut out = String::from("(?s)^");
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // `**/` also means no directory at all.
                let _ = chars.next_if_eq(&'/');
                match chars.peek() {
                    None => out.push_str(".*"),
                    Some(_) => out.push_str("(.*/)?"),
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '\\' => match chars.next() {
                Some(next) => out.push_str(&regex::escape(&next.to_string())),
                None => return Err("a `\\` at its end".into()),
            },
            '[' => {
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                let mut is_closed = false;
                while let Some(c) = chars.next() {
                    match c {
                        ']' => {
                            is_closed = true;
                            break;
                        }
                        '-' => out.push('-'),
                        '\\' => out.extend(chars.next().map(|it| regex::escape(&it.to_string()))),
                        // Signs that mean something in a class of regular expressions only.
                        '[' | '&' | '~' | '^' => out.extend(['\\', c]),
                        c => out.push(c),
                    }
                }
                if !is_closed {
                    return Err("a `[` that is never closed".into());
                }
                out.push(']');
            }
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    out.push('$');
    Regex::new(&out).map_err(|_| "it is not well formed".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_moby() {
        for (pattern, path, want) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "d/a.txt", false),
            ("**/*.txt", "d/e/a.txt", true),
            ("**/*.txt", "a.txt", true),
            ("d/**", "d/e/a", true),
            ("d/**", "d", false),
            ("a**b", "a/x/b", true),
            ("**", "x/y", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("fil?", "file", true),
            ("d?e", "d/e", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a[]b", "a", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("{a,b}", "a", false),
            ("{a,b}", "{a,b}", true),
            ("a+(b)", "a+(b)", true),
            ("a.c", "abc", false),
            ("", "", true),
        ] {
            match matcher(pattern) {
                Ok(it) => assert_eq!(it.is_match(path), want, "{pattern} {path}"),
                Err(_) => assert!(!want, "{pattern}"),
            }
        }
        assert!(matcher("[").is_err() && matcher("a\\").is_err() && matcher("[z-a]").is_err());
    }
}
