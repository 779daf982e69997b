//! The files that a step writes to speak to later steps: `NAME=value` lines, or with a delimiter
//! ```text
//! NAME<<EOF
//! several
//! lines
//! EOF
//! ```
//! after GitHub's page "Workflow commands", section on environment files. As its runner does on Linux, only a
//! line feed ends a line: a carriage return before it belongs to the value.

/// A file beyond this is refused: it would be held in memory and sent along to every later step.
pub const FILE_BYTES_MAX: usize = 10 * 1024 * 1024;

/// The assignments of a file, in order; a line that is none is an error with its number.
pub fn assignments(text: &str) -> Result<Vec<(String, String)>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n').enumerate();
    while let Some((number, line)) = lines.next() {
        if line.is_empty() || line == "\r" {
            continue;
        }
        let equals = line.find('=').unwrap_or(usize::MAX);
        let heredoc = line.find("<<").unwrap_or(usize::MAX);
        if heredoc < equals {
            let (name, delimiter) = (&line[..heredoc], &line[heredoc + 2..]);
            if name.is_empty() || delimiter.is_empty() {
                return Err(format!("line {}: `NAME<<DELIMITER` lacks a part", number + 1));
            }
            let mut value = Vec::new();
            loop {
                match lines.next() {
                    Some((_, it)) if it == delimiter => break,
                    Some((_, it)) => value.push(it),
                    None => return Err(format!("line {}: `{delimiter}` never comes", number + 1)),
                }
            }
            found.push((name.to_owned(), value.join("\n")));
        } else if equals < usize::MAX && equals > 0 {
            found.push((line[..equals].to_owned(), line[equals + 1..].to_owned()));
        } else if equals == 0 {
            return Err(format!("line {}: the name before `=` is empty", number + 1));
        } else {
            return Err(format!("line {}: `{line}` is not `NAME=value`", number + 1));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let pairs = |all: &[(&str, &str)]| -> Vec<(String, String)> {
            all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        for (text, want) in [
            ("A=1\n\nB<<END\nx=y\nz\nEND\nC=a<<b\n", pairs(&[("A", "1"), ("B", "x=y\nz"), ("C", "a<<b")])),
            // No line break at the end, an empty value, an empty heredoc, a blank line within one.
            ("A=", pairs(&[("A", "")])),
            ("A<<E\nE", pairs(&[("A", "")])),
            ("A<<E\n\nx\n\nE\n", pairs(&[("A", "\nx\n")])),
            ("A B=c=d\n", pairs(&[("A B", "c=d")])),
            ("A<<E\r\nx\r\nE\r\nB=1\r\n", pairs(&[("A", "x\r"), ("B", "1\r")])),
            ("", pairs(&[])),
        ] {
            assert_eq!(assignments(text), Ok(want), "{text:?}");
        }
        for (text, want) in [
            ("A<<E\nx\n", "never comes"),
            ("oops", "line 1"),
            ("=x", "empty"),
            ("<<E\nE\n", "lacks a part"),
            ("A<<\nE\n", "lacks a part"),
        ] {
            assert!(assignments(text).unwrap_err().contains(want), "{text:?}");
        }
    }
}
