//! Words and variables of a Dockerfile, by the rules of its own little shell: quotes, the escape
//! character, `$name`, `${name:-default}`, `${name#prefix}`, `${name/this/that}` and friends. Pure.

use std::iter::Peekable;
use std::str::Chars;

/// Why a text could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    #[error("`${{{0}` is never closed")]
    Unclosed(String),
    #[error("`${{{0}}}` is not a substitution that a Dockerfile knows")]
    Unsupported(String),
    #[error("a quote ({0}) is never closed")]
    Quote(char),
    #[error("{name}: {message}")]
    Required { name: String, message: String },
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Splits at blanks outside quotes. Quotes and escapes stay, for [`expand`] to resolve.
pub fn split_words(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(it) if it == c => quote = None,
            _ => {}
        }
        word.push(c);
        if c == escape && quote != Some('\'') {
            word.extend(chars.next());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Resolves quotes, escapes and variables. An unknown variable is empty.
pub fn expand(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, ExpandError> {
    Shell { escape, lookup }.word(&mut text.chars().peekable(), None)
}

/// As [`expand`], and a variable's blanks outside quotes separate words: `EXPOSE $PORTS`.
pub fn expand_words(text: &str, escape: char, lookup: Lookup<'_>) -> Result<Vec<String>, ExpandError> {
    let mut out = Vec::new();
    for word in split_words(text, escape) {
        let is_quoted = word.contains(['"', '\'']);
        let expanded = expand(&word, escape, lookup)?;
        match is_quoted {
            true => out.push(expanded),
            false => out.extend(expanded.split_whitespace().map(str::to_owned)),
        }
    }
    Ok(out)
}

/// As [`expand`], but quotes are ordinary characters: for heredocs.
pub fn expand_document(text: &str, lookup: Lookup<'_>) -> Result<String, ExpandError> {
    let shell = Shell { escape: '\\', lookup };
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if matches!(chars.peek(), Some('$' | '\\')) => out.extend(chars.next()),
            '$' => shell.variable(&mut chars, &mut out)?,
            _ => out.push(c),
        }
    }
    Ok(out)
}

struct Shell<'a> {
    escape: char,
    lookup: Lookup<'a>,
}

impl Shell<'_> {
    /// Up to `end` outside quotes, which is left to be read.
    fn word(&self, chars: &mut Peekable<Chars<'_>>, end: Option<char>) -> Result<String, ExpandError> {
        let mut out = String::new();
        while let Some(&c) = chars.peek() {
            if Some(c) == end {
                break;
            }
            chars.next();
            match c {
                '\'' => loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => out.push(c),
                        None => return Err(ExpandError::Quote('\'')),
                    }
                },
                '"' => self.double_quoted(chars, &mut out)?,
                '$' => self.variable(chars, &mut out)?,
                // A newline after the escape was a continued line; at the very end it stands for itself.
                _ if c == self.escape => match chars.next() {
                    Some(next) => out.push(next),
                    None => out.push(c),
                },
                _ => out.push(c),
            }
        }
        Ok(out)
    }

    fn double_quoted(&self, chars: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), ExpandError> {
        loop {
            match chars.next() {
                Some('"') => return Ok(()),
                Some('$') => self.variable(chars, out)?,
                // Inside double quotes only these can be escaped.
                Some(c) if c == self.escape => match chars.next() {
                    Some(next) if next == '"' || next == '$' || next == self.escape => out.push(next),
                    Some(next) => out.extend([c, next]),
                    None => return Err(ExpandError::Quote('"')),
                },
                Some(c) => out.push(c),
                None => return Err(ExpandError::Quote('"')),
            }
        }
    }

    /// What follows a `$`.
    fn variable(&self, chars: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), ExpandError> {
        if chars.next_if_eq(&'{').is_none() {
            let name = name(chars);
            match name.is_empty() {
                true => out.push('$'),
                false => out.push_str(&(self.lookup)(&name).unwrap_or_default()),
            }
            return Ok(());
        }
        let name = name(chars);
        let value = (self.lookup)(&name);
        let rest =
            |chars: &Peekable<Chars<'_>>| chars.clone().take_while(|it| *it != '}').collect::<String>();
        let bad = |chars: &Peekable<Chars<'_>>| ExpandError::Unsupported(format!("{name}{}", rest(chars)));
        if name.is_empty() {
            return Err(match chars.peek() {
                None => ExpandError::Unclosed(String::new()),
                Some(_) => bad(chars),
            });
        }
        let unclosed = || ExpandError::Unclosed(name.clone());
        let mut operator = chars.next().ok_or_else(unclosed)?;
        if operator == '}' {
            out.push_str(&value.unwrap_or_default());
            return Ok(());
        }
        let mut value = value;
        let is_colon = operator == ':';
        if is_colon {
            operator = chars.next().ok_or_else(unclosed)?;
            if !matches!(operator, '-' | '+' | '?') {
                return Err(ExpandError::Unsupported(format!("{name}:{operator}{}", rest(chars))));
            }
            value = value.filter(|it| !it.is_empty());
        }
        let result = match operator {
            '-' => {
                let word = self.word(chars, Some('}'))?;
                value.unwrap_or(word)
            }
            '+' => {
                let word = self.word(chars, Some('}'))?;
                value.map(|_| word).unwrap_or_default()
            }
            '?' => {
                let message = self.word(chars, Some('}'))?;
                let message = match message.is_empty() {
                    true => "is not allowed to be unset".to_owned(),
                    false => message,
                };
                value.ok_or(ExpandError::Required { name: name.clone(), message })?
            }
            '#' | '%' => {
                let is_longest = chars.next_if_eq(&operator).is_some();
                let pattern = self.pattern(chars, &['}'])?;
                trim(&value.unwrap_or_default(), &pattern, operator == '#', is_longest)
            }
            '/' => {
                let is_all = chars.next_if_eq(&'/').is_some();
                let pattern = self.pattern(chars, &['/', '}'])?;
                let with = match chars.next_if_eq(&'/') {
                    Some(_) => self.word(chars, Some('}'))?,
                    None => String::new(),
                };
                replace(&value.unwrap_or_default(), &pattern, &with, is_all)
            }
            _ => return Err(ExpandError::Unsupported(format!("{name}{operator}{}", rest(chars)))),
        };
        chars.next_if_eq(&'}').ok_or_else(unclosed)?;
        out.push_str(&result);
        Ok(())
    }

    /// A pattern up to one of `ends`: what is quoted or escaped stands for itself.
    fn pattern(&self, chars: &mut Peekable<Chars<'_>>, ends: &[char]) -> Result<Vec<Part>, ExpandError> {
        let mut parts = Vec::new();
        while let Some(&c) = chars.peek() {
            if ends.contains(&c) {
                break;
            }
            chars.next();
            match c {
                '*' => parts.push(Part::Any),
                '?' => parts.push(Part::One),
                _ if c == self.escape => parts.push(Part::Char(chars.next().unwrap_or(c))),
                '\'' | '"' => {
                    let quoted: String = chars.by_ref().take_while(|it| *it != c).collect();
                    parts.extend(quoted.chars().map(Part::Char));
                }
                '$' => {
                    let mut text = String::new();
                    self.variable(chars, &mut text)?;
                    parts.extend(text.chars().map(Part::Char));
                }
                _ => parts.push(Part::Char(c)),
            }
        }
        Ok(parts)
    }
}

/// `name`, a position (`1`), or one of the shell's own (`@`), which a Dockerfile never sets.
fn name(chars: &mut Peekable<Chars<'_>>) -> String {
    let mut name = String::new();
    match chars.peek() {
        Some(c) if c.is_ascii_digit() => {
            name.extend(std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)));
        }
        Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => {
            // Alone; `$-` and the like at the end of a word are meant as text more often than not, but
            // this is what the other builders do.
            name.extend(chars.next());
        }
        _ => {
            let is_name = |it: &char| it.is_ascii_alphanumeric() || *it == '_';
            name.extend(std::iter::from_fn(|| chars.next_if(is_name)));
        }
    }
    name
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Char(char),
    /// `?`
    One,
    /// `*`
    Any,
}

fn matches(pattern: &[Part], text: &[char]) -> bool {
    // The usual two pointers: after a `*` that failed, it takes one character more.
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Part::Any) => {
                star = Some((p, t));
                p += 1;
            }
            Some(Part::One) => {
                p += 1;
                t += 1;
            }
            Some(Part::Char(c)) if *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|it| *it == Part::Any)
}

/// Takes the shortest or longest match away from the beginning (or the end).
fn trim(value: &str, pattern: &[Part], is_prefix: bool, is_longest: bool) -> String {
    let chars: Vec<char> = value.chars().collect();
    let lengths: Vec<usize> = match is_longest {
        true => (0..=chars.len()).rev().collect(),
        false => (0..=chars.len()).collect(),
    };
    for length in lengths {
        let (part, rest) = match is_prefix {
            true => chars.split_at(length),
            false => {
                let (rest, part) = chars.split_at(chars.len() - length);
                (part, rest)
            }
        };
        if matches(pattern, part) {
            return rest.iter().collect();
        }
    }
    value.to_owned()
}

/// Replaces the first longest match, or every one.
fn replace(value: &str, pattern: &[Part], with: &str, is_all: bool) -> String {
    let chars: Vec<char> = value.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    let mut is_done = false;
    while at < chars.len() {
        let found = match is_done {
            true => None,
            false => (at + 1..=chars.len()).rev().find(|end| matches(pattern, &chars[at..*end])),
        };
        match found {
            Some(end) => {
                out.push_str(with);
                at = end;
                is_done = !is_all;
            }
            None => {
                out.push(chars[at]);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        Some(match name {
            "A" => "a".to_owned(),
            "EMPTY" => String::new(),
            "WORDS" => "one two".to_owned(),
            "PATH" => "/usr/local/lib/libx.so.1".to_owned(),
            "FILE" => "archive.tar.gz".to_owned(),
            "STAR" => "a*b".to_owned(),
            _ => return None,
        })
    }

    #[test]
    fn variables_expand_as_in_docker() {
        for (text, want) in [
            ("$A", "a"),
            ("x${A}y", "xay"),
            ("$AB", ""),
            ("${B:-z}", "z"),
            ("${EMPTY:-z}", "z"),
            ("${EMPTY-z}", ""),
            ("${B-z}", "z"),
            ("${A:+y}", "y"),
            ("${B:+y}", ""),
            ("${EMPTY:+y}", ""),
            ("${EMPTY+y}", "y"),
            ("${B:-${A}!}", "a!"),
            ("${B:-${C:-${A}}}", "a"),
            ("${B:-'}'}", "}"),
            ("${A:?x}", "a"),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A b\"", "a b"),
            ("\"\\$A \\x\"", "$A \\x"),
            ("a\\ b", "a b"),
            ("$", "$"),
            ("100%", "100%"),
            ("\"a\\\"b\"", "a\"b"),
            ("it''s", "its"),
            ("$1x", "x"),
            ("he\\\\llo", "he\\llo"),
            // Prefixes and suffixes, shortest and longest.
            ("${PATH#/}", "usr/local/lib/libx.so.1"),
            ("${PATH#*/}", "usr/local/lib/libx.so.1"),
            ("${PATH##*/}", "libx.so.1"),
            ("${PATH%/*}", "/usr/local/lib"),
            ("${PATH%%.*}", "/usr/local/lib/libx"),
            ("${FILE%.gz}", "archive.tar"),
            ("${FILE%%.*}", "archive"),
            ("${FILE#nothing}", "archive.tar.gz"),
            ("${FILE#?}", "rchive.tar.gz"),
            ("${FILE%.[a-z]z}", "archive.tar.gz"),
            ("${STAR#a\\*}", "b"),
            ("${B#x}", ""),
            // Replacements.
            ("${FILE/./-}", "archive-tar.gz"),
            ("${FILE//./-}", "archive-tar-gz"),
            ("${FILE/a*./X}", "Xgz"),
            ("${FILE//[ar]}", "archive.tar.gz"),
            ("${FILE//a}", "rchive.tr.gz"),
            ("${FILE/tar/${A}}", "archive.a.gz"),
            ("${PATH//\\//-}", "-usr-local-lib-libx.so.1"),
            ("${B/x/y}", ""),
        ] {
            assert_eq!(expand(text, '\\', &lookup).as_deref(), Ok(want), "{text}");
        }
        assert_eq!(expand("`$A c:\\x", '`', &lookup).unwrap(), "$A c:\\x");
        assert_eq!(expand_document("\"$A\" \\$A 'x'", &lookup).unwrap(), "\"a\" $A 'x'");
        assert_eq!(
            expand_words("80 $WORDS \"$WORDS\" $B", '\\', &lookup).unwrap(),
            ["80", "one", "two", "one two"]
        );
    }

    #[test]
    fn what_is_no_substitution_is_an_error() {
        use ExpandError as E;
        for (text, want) in [
            ("${A", E::Unclosed("A".into())),
            ("${", E::Unclosed(String::new())),
            ("${}", E::Unsupported(String::new())),
            ("${A:x}", E::Unsupported("A:x".into())),
            ("${A^^}", E::Unsupported("A^^".into())),
            ("${A:-x", E::Unclosed("A".into())),
            ("\"a", E::Quote('"')),
            ("'a", E::Quote('\'')),
            ("${B:?give it}", E::Required { name: "B".into(), message: "give it".into() }),
            (
                "${EMPTY:?}",
                E::Required { name: "EMPTY".into(), message: "is not allowed to be unset".into() },
            ),
        ] {
            assert_eq!(expand(text, '\\', &lookup), Err(want), "{text}");
        }
        assert_eq!(expand("${EMPTY?x}", '\\', &lookup).unwrap(), "");
    }

    #[test]
    fn words_end_at_blanks_outside_quotes() {
        assert_eq!(
            split_words("A=1  B=\"x y\" C='a  b' D=e\\ f", '\\'),
            ["A=1", "B=\"x y\"", "C='a  b'", "D=e\\ f"]
        );
    }
}
