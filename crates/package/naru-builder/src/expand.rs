//! Words and variables of a Dockerfile, by the rules of its own little shell: quotes, the escape
//! character, `$name`, `${name:-default}` and friends. Pure.

/// Why a text could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    #[error("`${{{0}` is never closed")]
    Unclosed(String),
    #[error("`${{{0}}}` is not supported here")]
    Unsupported(String),
    #[error("{name}: {message}")]
    Required { name: String, message: String },
}

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
pub fn expand(
    text: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let mut quote = None;
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' if quote.is_none() => quote = Some(c),
            _ if quote == Some(c) => quote = None,
            _ if c == escape && quote != Some('\'') => match chars.next() {
                // Inside double quotes only these can be escaped.
                Some(next) if quote == Some('"') && !['"', '$', escape].contains(&next) => {
                    out.extend([c, next])
                }
                Some(next) => out.push(next),
                None => out.push(c),
            },
            '$' if quote != Some('\'') => variable(&mut chars, escape, lookup, &mut out)?,
            _ => out.push(c),
        }
    }
    Ok(out)
}

/// As [`expand`], but quotes are ordinary characters: for heredocs.
pub fn expand_document(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&'$') => out.extend(chars.next()),
            '$' => variable(&mut chars, '\\', lookup, &mut out)?,
            _ => out.push(c),
        }
    }
    Ok(out)
}

fn variable(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
    out: &mut String,
) -> Result<(), ExpandError> {
    let is_name = |it: &char| it.is_ascii_alphanumeric() || *it == '_';
    if chars.peek() != Some(&'{') {
        let mut name = String::new();
        while let Some(c) = chars.next_if(|it| is_name(it)) {
            name.push(c);
        }
        match name.is_empty() {
            true => out.push('$'),
            false => out.push_str(&lookup(&name).unwrap_or_default()),
        }
        return Ok(());
    }
    chars.next();
    let mut inner = String::new();
    let mut depth = 1;
    loop {
        let Some(c) = chars.next() else { return Err(ExpandError::Unclosed(inner)) };
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        inner.push(c);
        if c == escape {
            inner.extend(chars.next());
        }
    }
    let end = inner.find(|it| !is_name(&it)).unwrap_or(inner.len());
    let (name, operator) = inner.split_at(end);
    let value = lookup(name);
    let set = value.clone().filter(|it| !it.is_empty());
    let word = |skip: usize| expand(&operator[skip..], escape, lookup);
    if name.is_empty() {
        return Err(ExpandError::Unsupported(inner));
    }
    let result = match (operator.as_bytes().first(), operator.as_bytes().get(1)) {
        (None, _) => value.unwrap_or_default(),
        (Some(b':'), Some(b'-')) => set.map_or_else(|| word(2), Ok)?,
        (Some(b':'), Some(b'+')) => set.map_or_else(|| Ok(String::new()), |_| word(2))?,
        (Some(b':'), Some(b'?')) => {
            let message = word(2)?;
            set.ok_or(ExpandError::Required { name: name.to_owned(), message })?
        }
        (Some(b'-'), _) => value.map_or_else(|| word(1), Ok)?,
        (Some(b'+'), _) => value.map_or_else(|| Ok(String::new()), |_| word(1))?,
        (Some(b'?'), _) => {
            let message = word(1)?;
            value.ok_or(ExpandError::Required { name: name.to_owned(), message })?
        }
        _ => return Err(ExpandError::Unsupported(inner)),
    };
    out.push_str(&result);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_in_docker() {
        let lookup = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, want) in [
            ("$A", "a"),
            ("x${A}y", "xay"),
            ("$AB", ""),
            ("${B:-z}", "z"),
            ("${EMPTY:-z}", "z"),
            ("${EMPTY-z}", ""),
            ("${A:+y}", "y"),
            ("${B:+y}", ""),
            ("${B:-${A}!}", "a!"),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A b\"", "a b"),
            ("a\\ b", "a b"),
            ("$", "$"),
            ("100%", "100%"),
            ("\"a\\\"b\"", "a\"b"),
            ("it''s", "its"),
        ] {
            assert_eq!(expand(text, '\\', &lookup).unwrap(), want, "{text}");
        }
        assert!(matches!(expand("${A", '\\', &lookup), Err(ExpandError::Unclosed(_))));
        assert!(matches!(expand("${A#x}", '\\', &lookup), Err(ExpandError::Unsupported(_))));
        assert!(matches!(expand("${B:?give it}", '\\', &lookup), Err(ExpandError::Required { .. })));
        assert_eq!(expand_document("\"$A\" \\$A", &lookup).unwrap(), "\"a\" $A");
    }

    #[test]
    fn words_end_at_blanks_outside_quotes() {
        assert_eq!(
            split_words("A=1  B=\"x y\" C='a  b' D=e\\ f", '\\'),
            ["A=1", "B=\"x y\"", "C='a  b'", "D=e\\ f"]
        );
    }
}
