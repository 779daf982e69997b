//! The files that a step writes to speak to later steps: `NAME=value` lines, or with a delimiter
//! ```text
//! NAME<<EOF
//! several
//! lines
//! EOF
//! ```
//! after GitHub's page "Workflow commands", section on environment files.

/// The assignments of a file, in order; a line that is none is an error with its number.
pub fn assignments(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim().is_empty() {
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
        let text = "A=1\n\nB<<END\nx=y\nz\nEND\nC=a<<b\n";
        let want = [("A", "1"), ("B", "x=y\nz"), ("C", "a<<b")];
        let want: Vec<_> = want.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(assignments(text), Ok(want));
        assert!(assignments("A<<E\nx\n").unwrap_err().contains("never comes"));
        assert!(assignments("oops").unwrap_err().contains("line 1"));
    }
}
