//! The lines of a Dockerfile: directives, comments, continued lines, heredocs. What comes out is one
//! [`Line`] per instruction with its words still as they were written; what they mean is `dialect`'s part.
//! Pure, and never fails: what cannot be read is a finding and the rest is read on.

use naru_text::{Finding, Place};

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// In upper case.
    pub keyword: String,
    /// As it stands in the file.
    pub written: String,
    /// Where the instruction begins.
    pub place: Place,
    /// Everything after the keyword, continued lines joined.
    pub rest: String,
    /// Where each character of `rest` stands, per piece: offset in `rest`, line and column.
    pieces: Vec<(usize, Place)>,
    pub heredocs: Vec<Heredoc>,
}

impl Line {
    /// Where a byte of `rest` stands in the file.
    pub fn place_of(&self, offset: usize) -> Place {
        let piece = self.pieces.iter().rev().find(|(from, _)| *from <= offset);
        let Some((from, place)) = piece else { return self.place };
        let characters = self.rest.get(*from..offset).map_or(0, |it| it.chars().count());
        Place::new(place.line, place.column + characters as u32)
    }

    /// The whole instruction on one line, for logs and for the image's history.
    pub fn text(&self) -> String {
        const LENGTH_MAX: usize = 300; // longer ones are read in the Dockerfile
        let words: Vec<&str> = self.rest.split_whitespace().collect();
        let mut text = format!("{} {}", self.keyword, words.join(" "));
        text.truncate(text.char_indices().nth(LENGTH_MAX).map_or(text.len(), |it| it.0));
        text.trim_end().to_owned()
    }

    /// What an instruction inside another (`ONBUILD COPY ..`) is as a line of its own.
    pub fn inner(&self) -> Option<Line> {
        let skipped = self.rest.len() - self.rest.trim_start().len();
        let (keyword, _) = split_keyword(self.rest.trim_start());
        if keyword.is_empty() {
            return None;
        }
        let from = skipped + keyword.len();
        let after = &self.rest[from..];
        let from = from + (after.len() - after.trim_start().len());
        let mut pieces: Vec<(usize, Place)> = vec![(0, self.place_of(from))];
        pieces.extend(self.pieces.iter().filter(|it| it.0 > from).map(|it| (it.0 - from, it.1)));
        Some(Line {
            keyword: keyword.to_ascii_uppercase(),
            written: keyword.to_owned(),
            place: self.place_of(skipped),
            rest: self.rest[from..].to_owned(),
            pieces,
            heredocs: self.heredocs.clone(),
        })
    }
}

/// `<<NAME`, `<<-NAME`, `<<"NAME"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// As it stands between the lines; `<<-` has lost its leading tabs.
    pub content: String,
    /// The name was not quoted: variables are filled in.
    pub expand: bool,
    /// The lines as they were written, for a shell that reads the heredoc itself.
    pub raw: String,
}

/// What the first lines say about how to read the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    pub escape: char,
    pub syntax: Option<(String, Place)>,
    pub check: Option<(String, Place)>,
}

impl Default for Directives {
    fn default() -> Self {
        Self { escape: '\\', syntax: None, check: None }
    }
}

#[derive(Debug, Default)]
pub struct Lines {
    pub directives: Directives,
    pub lines: Vec<Line>,
    pub findings: Vec<Finding>,
    /// Empty lines inside instructions.
    pub has_empty_continuation: Vec<Place>,
}

/// Reads the lines.
pub fn read(text: &str) -> Lines {
    let mut out = Lines::default();
    let lines: Vec<&str> = text.split('\n').map(|it| it.strip_suffix('\r').unwrap_or(it)).collect();
    directives(&lines, &mut out);
    let escape = out.directives.escape;
    let mut at = 0;
    while at < lines.len() {
        let first = lines[at].trim_start();
        if first.is_empty() || first.starts_with('#') {
            at += 1;
            continue;
        }
        at = instruction(&lines, at, escape, &mut out);
    }
    out
}

fn number(index: usize) -> u32 {
    u32::try_from(index + 1).unwrap_or(u32::MAX)
}

fn directives(lines: &[&str], out: &mut Lines) {
    for (index, line) in lines.iter().enumerate() {
        if index == 0 && line.starts_with("#!") {
            continue; // a Dockerfile that is a program
        }
        let Some(comment) = line.trim_start().strip_prefix('#') else { return };
        let Some((name, value)) = comment.split_once('=') else { return };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        let place = Place::new(number(index), (line.len() - comment.len()) as u32);
        let is_twice = match name.as_str() {
            "syntax" => out.directives.syntax.replace((value.to_owned(), place)).is_some(),
            "check" => out.directives.check.replace((value.to_owned(), place)).is_some(),
            "escape" => {
                match value {
                    "\\" | "`" => out.directives.escape = value.chars().next().unwrap_or('\\'),
                    _ => {
                        let message = format!("`{value}` cannot be the escape character");
                        out.findings.push(Finding::error(place, message).hint("write `# escape=\\``"));
                    }
                }
                false
            }
            // Any other comment ends the directives.
            _ => return,
        };
        if is_twice {
            let message = format!("only one `{name}` directive can be used");
            out.findings.push(Finding::error(place, message));
        }
    }
}

/// One instruction with its continued lines and heredocs. Returns the line after it.
fn instruction(lines: &[&str], first: usize, escape: char, out: &mut Lines) -> usize {
    let mut joined = String::new();
    let mut pieces = Vec::new();
    let mut at = first;
    let mut is_continued = true;
    while is_continued && at < lines.len() {
        let line = lines[at];
        let trimmed = line.trim_start();
        if at > first && (trimmed.starts_with('#') || trimmed.is_empty()) {
            if trimmed.is_empty() {
                out.has_empty_continuation.push(Place::new(number(at), 1));
            }
            at += 1;
            continue;
        }
        let (line, skipped) = match at == first {
            true => (trimmed, line.len() - trimmed.len()),
            false => (line, 0),
        };
        pieces.push((joined.len(), Place::new(number(at), skipped as u32 + 1)));
        let (content, continues) = continued(line, escape);
        joined.push_str(content);
        is_continued = continues;
        at += 1;
    }
    let (keyword, rest) = split_keyword(&joined);
    let shift = joined.len() - rest.len();
    let place = pieces.first().map_or(Place::new(number(first), 1), |it| it.1);
    let shifted = pieces.iter().filter(|it| it.0 > shift).map(|it| (it.0 - shift, it.1));
    let of_shift = Line {
        keyword: String::new(),
        written: String::new(),
        place,
        rest: joined.clone(),
        pieces: pieces.clone(),
        heredocs: Vec::new(),
    }
    .place_of(shift);
    let mut line = Line {
        keyword: keyword.to_ascii_uppercase(),
        written: keyword.to_owned(),
        place,
        rest: rest.trim_end().to_owned(),
        pieces: std::iter::once((0, of_shift)).chain(shifted).collect(),
        heredocs: Vec::new(),
    };
    let takes_heredocs = |it: &str| matches!(it, "ADD" | "COPY" | "RUN");
    let inner = line.inner().filter(|_| line.keyword == "ONBUILD").map(|it| it.keyword);
    if takes_heredocs(&line.keyword) || inner.is_some_and(|it| takes_heredocs(&it)) {
        for (name, is_chomped, expand, offset) in heredoc_names(&line.rest, escape) {
            let begins = at;
            let mut content = String::new();
            let mut raw = String::new();
            let mut is_closed = false;
            while at < lines.len() {
                let text = lines[at];
                at += 1;
                let chomped = if is_chomped { text.trim_start_matches('\t') } else { text };
                if chomped == name {
                    is_closed = true;
                    break;
                }
                for (to, text) in [(&mut content, chomped), (&mut raw, text)] {
                    to.push_str(text);
                    to.push('\n');
                }
            }
            if !is_closed {
                let message = format!("the heredoc `{name}` is never closed");
                let hint = format!("end it with a line that is only `{name}`");
                out.findings.push(Finding::error(line.place_of(offset), message).hint(hint));
                at = begins.max(at);
            }
            line.heredocs.push(Heredoc { name, content, expand, raw });
        }
    }
    out.lines.push(line);
    at
}

/// A line without the escape at its end, if it is continued.
fn continued(line: &str, escape: char) -> (&str, bool) {
    let end = line.trim_end_matches([' ', '\t']);
    match end.strip_suffix(escape) {
        // Two of them are one that was escaped.
        Some(head) if !head.ends_with(escape) => (head, true),
        _ => (line, false),
    }
}

fn split_keyword(text: &str) -> (&str, &str) {
    match text.find(char::is_whitespace) {
        Some(end) => (&text[..end], text[end..].trim_start()),
        None => (text, ""),
    }
}

/// The heredocs that a line begins: name, `<<-`, whether variables count, and where.
fn heredoc_names(rest: &str, escape: char) -> Vec<(String, bool, bool, usize)> {
    let mut out = Vec::new();
    let mut from = 0;
    for word in crate::expand::split_words(rest, escape) {
        let offset = rest[from..].find(&word).map_or(from, |it| it + from);
        from = offset + word.len();
        // A number is the descriptor that the shell would give it to.
        let text = word.trim_start_matches(|it: char| it.is_ascii_digit());
        let Some(name) = text.strip_prefix("<<") else { continue };
        let (is_chomped, name) = match name.strip_prefix('-') {
            Some(name) => (true, name),
            None => (false, name),
        };
        if name.contains('<') || name.is_empty() {
            continue; // a here-string is the shell's own
        }
        let plain: String = name.chars().filter(|it| !['"', '\''].contains(it) && *it != escape).collect();
        if !plain.is_empty() {
            let expand = plain == name;
            out.push((plain, is_chomped, expand, offset));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(String, String)> {
        read(text).lines.into_iter().map(|it| (it.keyword, it.rest)).collect()
    }

    fn pairs(want: &[(&str, &str)]) -> Vec<(String, String)> {
        want.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn lines_are_joined_as_docker_joins_them() {
        for (text, want) in [
            ("from a\nRUN b\n", &[("FROM", "a"), ("RUN", "b")][..]),
            ("RUN a \\\n  # no\n\n  b\n", &[("RUN", "a   b")]),
            ("RUN a \\  \t\nb\nCMD c", &[("RUN", "a b"), ("CMD", "c")]),
            ("RUN a\\\\\nCMD c", &[("RUN", "a\\\\"), ("CMD", "c")]),
            ("# escape=`\nRUN a `\n b\\\n", &[("RUN", "a  b\\")]),
            ("#escape=`\n# more\nRUN a`\nb", &[("RUN", "ab")]),
            ("# a comment\n# escape=`\nRUN a\\\nb", &[("RUN", "ab")]),
            ("  # x\n\tRUN\ta\r\n", &[("RUN", "a")]),
            ("RUN \\\na", &[("RUN", "a")]),
            ("R\\\nUN a", &[("RUN", "a")]),
            ("RUN a \\", &[("RUN", "a")]),
            ("RUN", &[("RUN", "")]),
        ] {
            assert_eq!(lines(text), pairs(want), "{text:?}");
        }
    }

    #[test]
    fn heredocs_are_taken_whole() {
        let text = "COPY <<one <<-\"t w\" <<'x' /d/\n$A\none\n\t\tb\n\tt w\nc\nx\nRUN cat <<E > /x; echo <<< no\nl \\\n# kept\nE\nUSER a\n";
        let out = read(text);
        assert_eq!(out.findings, []);
        let of = |index: usize| {
            let docs = &out.lines[index].heredocs;
            docs.iter().map(|it| (it.name.as_str(), it.content.as_str(), it.expand)).collect::<Vec<_>>()
        };
        assert_eq!(of(0), [("one", "$A\n", true), ("t w", "b\n", false), ("x", "c\n", false)]);
        assert_eq!(out.lines[0].heredocs[1].raw, "\t\tb\n");
        assert_eq!(of(1), [("E", "l \\\n# kept\n", true)]);
        assert_eq!(out.lines[2].keyword, "USER");
        // Only where it means something.
        assert_eq!(lines("LABEL a=<<x\nRUN b"), pairs(&[("LABEL", "a=<<x"), ("RUN", "b")]));
        assert_eq!(
            read("ONBUILD COPY <<x /y\nz\nx\nRUN b").lines[0].inner().unwrap().heredocs[0].content,
            "z\n"
        );
        let open = read("RUN <<EOF\nx\n");
        assert!(open.findings[0].message.contains("never closed"), "{:?}", open.findings);
        assert_eq!(open.findings[0].place, Place::new(1, 5));
    }

    #[test]
    fn places_survive_the_joining() {
        let out = read("FROM a\n  RUN one \\\n    two --x\n");
        let line = &out.lines[1];
        assert_eq!((line.place.line, line.place.column), (2, 3));
        let at = |it: &str| line.place_of(line.rest.find(it).unwrap());
        assert_eq!((at("one").line, at("one").column), (2, 7));
        assert_eq!((at("two").line, at("two").column), (3, 5));
        assert_eq!((at("--x").line, at("--x").column), (3, 9));
        let inner = read("ONBUILD  COPY a b").lines[0].inner().unwrap();
        assert_eq!((inner.keyword.as_str(), inner.rest.as_str()), ("COPY", "a b"));
        assert_eq!((inner.place.column, inner.place_of(2).column), (10, 17));
    }

    #[test]
    fn directives_stand_first() {
        let of = |text: &str| read(text).directives;
        let first = of("# syntax=docker/dockerfile:1\n# check=skip=all\nFROM a");
        assert_eq!(first.syntax.unwrap().0, "docker/dockerfile:1");
        assert_eq!(first.check.unwrap().0, "skip=all");
        assert_eq!(of("#!/usr/bin/env x\n#ESCAPE = `\nFROM a").escape, '`');
        assert_eq!(of("\n# escape=`\nFROM a").escape, '\\');
        assert_eq!(of("FROM a\n# escape=`\n").escape, '\\');
        assert_eq!(read("# escape=x\nFROM a").findings.len(), 1);
        assert_eq!(read("# syntax=a\n# syntax=b\nFROM a").findings.len(), 1);
    }
}
