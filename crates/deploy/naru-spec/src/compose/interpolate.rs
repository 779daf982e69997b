//! Variables in compose files (`$X`, `${X:-default}` and their kin), and the files that set them (`.env`).

use std::collections::BTreeMap;

pub type Variables = BTreeMap<String, String>;

/// Defaults within defaults: more than a person writes, and little enough for the stack.
const DEPTH_MAX: usize = 16;

#[derive(Debug, PartialEq)]
pub struct Filled {
    pub text: String,
    /// Variables that had no value and no default.
    pub unset: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub struct Wrong {
    pub message: String,
    pub hint: String,
}

fn wrong<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { message: message.into(), hint: hint.into() })
}

/// Fills in every variable of a text. `$$` is a dollar sign.
pub fn fill(text: &str, variables: &Variables) -> Result<Filled, Wrong> {
    let mut filled = Filled { text: String::with_capacity(text.len()), unset: Vec::new() };
    fill_into(text, variables, &mut filled, 0)?;
    Ok(filled)
}

fn fill_into(text: &str, variables: &Variables, out: &mut Filled, depth: usize) -> Result<(), Wrong> {
    if depth > DEPTH_MAX {
        return wrong(format!("variables are nested deeper than {DEPTH_MAX}"), "");
    }
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.text.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let Some(end) = closing(after) else {
                return wrong(
                    format!("`${{{after}` is never closed"),
                    "close it with `}`, or write `$$` for a dollar sign",
                );
            };
            expression(&after[..end], variables, out, depth)?;
            rest = &after[end + 1..];
        } else {
            let length = name_length(rest);
            if length == 0 {
                return wrong("`$` stands before no name", "write `$$` for a dollar sign");
            }
            plain(&rest[..length], variables, out);
            rest = &rest[length..];
        }
    }
    out.text.push_str(rest);
    Ok(())
}

/// Where the brace that was opened before `text` is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'{' if at > 0 && bytes[at - 1] == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn name_length(text: &str) -> usize {
    if text.starts_with(|it: char| it.is_ascii_digit()) {
        return 0;
    }
    text.find(|it: char| !(it.is_ascii_alphanumeric() || it == '_')).unwrap_or(text.len())
}

fn plain(name: &str, variables: &Variables, out: &mut Filled) {
    match variables.get(name) {
        Some(value) => out.text.push_str(value),
        None => out.unset.push(name.to_owned()),
    }
}

fn expression(text: &str, variables: &Variables, out: &mut Filled, depth: usize) -> Result<(), Wrong> {
    let length = name_length(text);
    let (name, operator) = text.split_at(length);
    if name.is_empty() {
        return wrong(format!("`${{{text}}}` names no variable"), "write it like `${NAME:-default}`");
    }
    let value = variables.get(name);
    let (colon, operator) = match operator.strip_prefix(':') {
        Some(rest) => (true, rest),
        None => (false, operator),
    };
    // With the colon an empty value counts as none.
    let value_that_counts = value.filter(|it| !colon || !it.is_empty());
    let mut operators = operator.chars();
    match (operators.next(), operators.as_str()) {
        (None, _) if !colon => plain(name, variables, out),
        (Some('-'), default) => match value_that_counts {
            Some(value) => out.text.push_str(value),
            None => fill_into(default, variables, out, depth + 1)?,
        },
        (Some('+'), replacement) => {
            if value_that_counts.is_some() {
                fill_into(replacement, variables, out, depth + 1)?;
            }
        }
        (Some('?'), message) => match value_that_counts {
            Some(value) => out.text.push_str(value),
            None => {
                let mut why = Filled { text: String::new(), unset: Vec::new() };
                fill_into(message, variables, &mut why, depth + 1)?;
                let why = if why.text.is_empty() { String::new() } else { format!(": {}", why.text) };
                return wrong(
                    format!("the variable `{name}` is required{why}"),
                    format!("set {name}, or write it into .env"),
                );
            }
        },
        _ => {
            return wrong(
                format!("`${{{text}}}` is not understood"),
                "the forms are ${X}, ${X-d}, ${X:-d}, ${X?why}, ${X:?why}, ${X+r} and ${X:+r}",
            );
        }
    }
    Ok(())
}

/// A line of an environment file that is not understood.
#[derive(Debug, PartialEq)]
pub struct WrongLine {
    pub line: u32,
    pub message: String,
}

/// The variables of an environment file, in its order; a name without `=` is taken from `outer`.
/// Values in double quotes and without quotes may use variables: those of the file above them and `outer`.
pub fn parse_env_file(source: &str, outer: &Variables) -> Result<Vec<(String, String)>, WrongLine> {
    let mut known = outer.clone();
    let mut all = Vec::new();
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let mut lines = source.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let number = index as u32 + 1;
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let trimmed = trimmed.strip_prefix("export ").map_or(trimmed, str::trim_start);
        let at = trimmed.find(['=', ':']);
        let name = at.map_or(trimmed, |at| &trimmed[..at]).trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(WrongLine { line: number, message: format!("`{trimmed}` is not NAME=value") });
        }
        let Some(at) = at else {
            if let Some(value) = outer.get(name) {
                all.push((name.to_owned(), value.clone()));
            }
            continue;
        };
        let mut raw = trimmed[at + 1..].trim_start().to_owned();
        let value = match raw.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                // A quoted value may go on for several lines.
                while closing_quote(&raw, quote).is_none() {
                    let Some((_, next)) = lines.next() else {
                        return Err(WrongLine {
                            line: number,
                            message: format!("the value of `{name}` has no closing {quote}"),
                        });
                    };
                    raw.push('\n');
                    raw.push_str(next);
                }
                let end = closing_quote(&raw, quote).expect("the loop above ends with one");
                let inner = &raw[1..end];
                if quote == '"' {
                    filled(&unescape(inner), &known, number)?
                } else {
                    inner.replace("\\'", "'")
                }
            }
            _ => {
                let end = raw.find(" #").unwrap_or(raw.len());
                filled(raw[..end].trim_end(), &known, number)?
            }
        };
        known.insert(name.to_owned(), value.clone());
        all.push((name.to_owned(), value));
    }
    Ok(all)
}

fn filled(text: &str, variables: &Variables, line: u32) -> Result<String, WrongLine> {
    fill(text, variables).map(|it| it.text).map_err(|it| WrongLine { line, message: it.message })
}

fn closing_quote(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, it) in text.char_indices().skip(1) {
        match it {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            it if it == quote => return Some(at),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(it) = chars.next() {
        if it != '\\' {
            out.push(it);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('$') => out.push_str("$$"),
            Some(other @ ('"' | '\\' | '\'')) => out.push(other),
            Some(other) => {
                out.push('\\');
                out.push(other);
            }
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        [("A", "1"), ("EMPTY", ""), ("B", "two")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn every_form_of_a_variable() {
        let cases = [
            ("$A-${B}", "1-two"),
            ("$$A ${A}$$", "$A 1$"),
            ("${X:-d} ${X-d} ${EMPTY:-d} [${EMPTY-d}]", "d d d []"),
            ("${A:+r} ${X:+r}[${EMPTY:+r}] ${EMPTY+r}", "r [] r"),
            ("${X:-${Y:-${A}}}", "1"),
            ("${A:?no} ${A?no} [${EMPTY?no}]", "1 1 []"),
            ("http://${X:-a:b}/}", "http://a:b/}"),
            ("[$UNSET]", "[]"),
        ];
        for (text, want) in cases {
            assert_eq!(fill(text, &variables()).map(|it| it.text), Ok(want.to_owned()), "{text}");
        }
        assert_eq!(fill("$U ${V}", &variables()).unwrap().unset, ["U", "V"]);
        for (text, want) in [
            ("${X:?say $A}", "the variable `X` is required: say 1"),
            ("${EMPTY:?}", "the variable `EMPTY` is required"),
            ("${A", "is never closed"),
            ("cost: 5$", "stands before no name"),
            ("${A/b/c}", "is not understood"),
            ("${}", "names no variable"),
        ] {
            let error = fill(text, &variables()).unwrap_err();
            assert!(error.message.contains(want), "{text}: {error:?}");
        }
        assert!(fill(&"${X:-".repeat(50_000), &variables()).is_err());
    }

    #[test]
    fn environment_files_as_people_write_them() {
        let source = "# comment\nA=1 # note\nexport B = 'it $A'\nC=\"x ${A}\\n\"\nD=\nE=a#b\nOUT\nMISSING\nM=\"one\ntwo\"\nK: v\n";
        let outer = Variables::from([("OUT".to_owned(), "side".to_owned())]);
        let want = [
            ("A", "1"),
            ("B", "it $A"),
            ("C", "x 1\n"),
            ("D", ""),
            ("E", "a#b"),
            ("OUT", "side"),
            ("M", "one\ntwo"),
            ("K", "v"),
        ];
        let want: Vec<_> = want.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(parse_env_file(source, &outer), Ok(want));
        assert_eq!(parse_env_file("A=1\nB=\"open\n", &outer).unwrap_err().line, 2);
        assert_eq!(parse_env_file("two words\n", &outer).unwrap_err().line, 1);
    }
}
