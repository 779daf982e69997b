//! Problem matchers: patterns over a step's output that find remarks of compilers and linters and make
//! annotations of them. After actions/runner's page "Problem Matchers".
//!
//! The patterns are JavaScript's. Rust's engine never takes longer than linear time for a line, which is why
//! it is used; what it cannot express (looking ahead and behind, back references) is refused by name.

use regex::Regex;
use serde::Deserialize;
use std::borrow::Cow;

/// A longer line is a dump and no remark.
const LINE_BYTES_MAX: usize = 8 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    problem_matcher: Vec<Config>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    owner: String,
    #[serde(default)]
    severity: String,
    #[serde(default)]
    pattern: Vec<PatternConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PatternConfig {
    #[serde(default)]
    regexp: String,
    #[serde(default)]
    r#loop: bool,
    #[serde(flatten)]
    groups: Groups,
}

/// Which group of the pattern holds what.
#[derive(Deserialize, Clone, Default)]
#[serde(rename_all = "camelCase")]
struct Groups {
    file: Option<usize>,
    line: Option<usize>,
    column: Option<usize>,
    severity: Option<usize>,
    code: Option<usize>,
    message: Option<usize>,
    from_path: Option<usize>,
}

pub struct Matcher {
    pub owner: String,
    severity: String,
    patterns: Vec<Pattern>,
    /// What each pattern but the last has found so far.
    running: Vec<Option<Found>>,
}

struct Pattern {
    regex: Regex,
    again: bool,
    groups: Groups,
}

/// What was found, as the output has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    pub file: Option<String>,
    pub line: Option<String>,
    pub column: Option<String>,
    pub severity: Option<String>,
    pub code: Option<String>,
    pub message: Option<String>,
    pub from_path: Option<String>,
}

/// What a file of matchers holds.
#[derive(Default)]
pub struct Loaded {
    pub matchers: Vec<Matcher>,
    /// Matchers that are left out, and why.
    pub left_out: Vec<String>,
}

/// Reads a file of matchers. A pattern that only another engine understands is no fault of the file's.
pub fn load(json: &str) -> Result<Loaded, String> {
    let json = json.strip_prefix('\u{feff}').unwrap_or(json);
    let file: File =
        serde_json::from_str(json).map_err(|it| format!("not a file of problem matchers: {it}"))?;
    let mut loaded = Loaded::default();
    for config in file.problem_matcher {
        let owner = config.owner.clone();
        if loaded.matchers.iter().any(|it| it.owner.eq_ignore_ascii_case(&owner)) {
            return Err(format!("two matchers have the owner `{owner}`"));
        }
        match matcher(config) {
            Ok(it) => loaded.matchers.push(it),
            Err(Unusable::Pattern(why)) => loaded.left_out.push(why),
            Err(Unusable::Config(why)) => return Err(why),
        }
    }
    Ok(loaded)
}

enum Unusable {
    Pattern(String),
    Config(String),
}

impl From<String> for Unusable {
    fn from(why: String) -> Self {
        Self::Config(why)
    }
}

fn matcher(config: Config) -> Result<Matcher, Unusable> {
    let owner = config.owner;
    if owner.is_empty() {
        return Err("a matcher lacks `owner`".to_owned().into());
    }
    if !matches!(config.severity.to_ascii_lowercase().as_str(), "" | "error" | "warning" | "notice") {
        return Err(
            format!("`{owner}`: the severity `{}` is not error, warning or notice", config.severity).into()
        );
    }
    let count = config.pattern.len();
    if count == 0 {
        return Err(format!("`{owner}` has no pattern").into());
    }
    let mut patterns = Vec::new();
    let mut taken: Vec<&str> = Vec::new();
    for (index, it) in config.pattern.into_iter().enumerate() {
        if it.r#loop && (index == 0 || index + 1 < count || it.groups.message.is_none()) {
            return Err(format!(
                "`{owner}`: `loop` is only for the last of several patterns, with a message"
            )
            .into());
        }
        let regex = Regex::new(&from_javascript(&it.regexp)).map_err(|error| {
            Unusable::Pattern(format!(
                "`{owner}`: the pattern `{}` cannot be used: {}",
                it.regexp,
                reason(&error)
            ))
        })?;
        let groups = &it.groups;
        for (name, group) in [
            ("file", groups.file),
            ("line", groups.line),
            ("column", groups.column),
            ("severity", groups.severity),
            ("code", groups.code),
            ("message", groups.message),
            ("fromPath", groups.from_path),
        ] {
            let Some(group) = group else { continue };
            if group >= regex.captures_len() {
                return Err(format!(
                    "`{owner}`: `{name}` names group {group}, which the pattern does not have"
                )
                .into());
            }
            if taken.contains(&name) {
                return Err(format!("`{owner}`: `{name}` is set twice").into());
            }
            taken.push(name);
        }
        patterns.push(Pattern { regex, again: it.r#loop, groups: it.groups });
    }
    if !taken.contains(&"message") {
        return Err(format!("`{owner}`: no pattern sets `message`").into());
    }
    Ok(Matcher { owner, severity: config.severity, running: vec![None; count - 1], patterns })
}

fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// What JavaScript reads differently: `\<` and `\>` are plain signs there, and so are `[` within a class, a `-`
/// beside `\s` and its kin, and a `{` that counts nothing.
fn from_javascript(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut in_class = false;
    let mut after_kind = false;
    let is_kind = |c: char| "sdwSDW".contains(c);
    let mut chars = pattern.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let was_kind = std::mem::take(&mut after_kind);
        match c {
            '-' if in_class
                && (was_kind
                    || pattern[at + 1..].strip_prefix('\\').is_some_and(|it| it.starts_with(is_kind))) =>
            {
                out.push_str("\\-");
            }
            '\\' => match chars.next() {
                Some((_, c @ ('<' | '>'))) => out.push(c),
                Some((_, c)) => {
                    after_kind = is_kind(c);
                    out.extend(['\\', c]);
                }
                None => out.push('\\'),
            },
            '[' if in_class => out.push_str("\\["),
            '&' | '~' if in_class => out.extend(['\\', c]),
            '[' => {
                in_class = true;
                out.push('[');
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '{' if !in_class => {
                let counts = pattern[at + 1..].split_once('}').is_some_and(|(it, _)| {
                    it.starts_with(|c: char| c.is_ascii_digit())
                        && it.chars().all(|c| c.is_ascii_digit() || c == ',')
                });
                out.push_str(if counts { "{" } else { "\\{" });
            }
            '}' if !in_class => {
                let open =
                    out.rfind('{').is_some_and(|it| !out[..it].ends_with('\\') && !out[it..].contains('}'));
                out.push_str(if open { "}" } else { "\\}" });
            }
            c => out.push(c),
        }
    }
    out
}

impl Matcher {
    fn reset(&mut self) {
        self.running.fill(None);
    }

    /// Takes a line in; what it completes comes out.
    fn line(&mut self, line: &str) -> Option<Found> {
        for index in (0..self.patterns.len()).rev() {
            let before = if index == 0 { None } else { self.running[index - 1].clone() };
            if index > 0 && before.is_none() {
                continue;
            }
            let pattern = &self.patterns[index];
            let last = index + 1 == self.patterns.len();
            let found = pattern.regex.captures(line).map(|it| combine(before.as_ref(), &pattern.groups, &it));
            match (last, found) {
                (true, Some(mut found)) => {
                    let again = pattern.again;
                    self.reset();
                    if again {
                        self.running[index - 1] = before;
                    }
                    if found.severity.as_ref().is_none_or(String::is_empty) && !self.severity.is_empty() {
                        found.severity = Some(self.severity.clone());
                    }
                    return Some(found);
                }
                (true, None) if index > 0 => self.running[index - 1] = None,
                (true, None) => {}
                (false, found) => self.running[index] = found,
            }
        }
        None
    }
}

fn combine(before: Option<&Found>, groups: &Groups, captures: &regex::Captures<'_>) -> Found {
    let get = |group: Option<usize>, old: fn(&Found) -> &Option<String>| {
        before
            .and_then(|it| old(it).clone())
            .or_else(|| group.map(|it| captures.get(it).map(|it| it.as_str().to_owned()).unwrap_or_default()))
    };
    Found {
        file: get(groups.file, |it| &it.file),
        line: get(groups.line, |it| &it.line),
        column: get(groups.column, |it| &it.column),
        severity: get(groups.severity, |it| &it.severity),
        code: get(groups.code, |it| &it.code),
        message: get(groups.message, |it| &it.message),
        from_path: get(groups.from_path, |it| &it.from_path),
    }
}

/// The matchers that are in force.
#[derive(Default)]
pub struct Matchers {
    all: Vec<Matcher>,
}

impl Matchers {
    /// The newest come first; those of the same owner are replaced.
    pub fn add(&mut self, new: Vec<Matcher>) {
        for it in &new {
            self.remove(&it.owner);
        }
        self.all.splice(0..0, new);
    }

    pub fn remove(&mut self, owner: &str) {
        self.all.retain(|it| !it.owner.eq_ignore_ascii_case(owner));
    }

    /// What a step began to say does not go on in the next one.
    pub fn reset(&mut self) {
        self.all.iter_mut().for_each(Matcher::reset);
    }

    pub fn line(&mut self, line: &str) -> Option<Found> {
        if self.all.is_empty() || line.len() > LINE_BYTES_MAX {
            return None;
        }
        let line = without_colours(line);
        let (index, found) =
            self.all.iter_mut().enumerate().find_map(|(i, it)| Some((i, it.line(&line)?)))?;
        for (_, other) in self.all.iter_mut().enumerate().filter(|(it, _)| *it != index) {
            other.reset();
        }
        let severity = found.severity.as_deref().unwrap_or_default().to_ascii_lowercase();
        let says = found.message.as_ref().is_some_and(|it| !it.trim().is_empty());
        (says && matches!(severity.as_str(), "" | "error" | "warning" | "notice")).then_some(found)
    }
}

fn without_colours(line: &str) -> Cow<'_, str> {
    if !line.contains("\x1b[") {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        out.push_str(before);
        let after = after.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        rest = after.strip_prefix('m').unwrap_or(after);
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(json: &str, lines: &str) -> Vec<Found> {
        let mut matchers = Matchers::default();
        matchers.add(load(json).unwrap().matchers);
        lines.lines().filter_map(|it| matchers.line(it)).collect()
    }

    fn shown(found: &[Found]) -> Vec<String> {
        let text = |it: &Option<String>| it.clone().unwrap_or_default();
        found
            .iter()
            .map(|it| {
                format!(
                    "{}:{}:{} {} {}",
                    text(&it.file),
                    text(&it.line),
                    text(&it.column),
                    text(&it.severity),
                    text(&it.message)
                )
            })
            .collect()
    }

    #[test]
    fn one_pattern_finds_a_compilers_remark_with_its_colours_taken_off() {
        let json = r#"{"problemMatcher": [{"owner": "gcc", "pattern": [{
            "regexp": "^(.*):(\\d+):(\\d+):\\s+(warning|error):\\s+(.*)$",
            "file": 1, "line": 2, "column": 3, "severity": 4, "message": 5}]}]}"#;
        let found = all(json, "make: x\n\x1b[1ma.c:3:7:\x1b[0m error: no such thing\nok");
        assert_eq!(shown(&found), ["a.c:3:7 error no such thing"]);
    }

    #[test]
    fn several_patterns_loop_over_the_remarks_of_one_file() {
        let json = r#"{"problemMatcher": [{"owner": "eslint", "severity": "warning", "pattern": [
            {"regexp": "^([^\\s].*)$", "file": 1},
            {"regexp": "^\\s+(\\d+):(\\d+)\\s+(error|warning|info)?\\s+(.*)$", "line": 1, "column": 2, "severity": 3, "message": 4, "loop": true}]}]}"#;
        let found = all(
            json,
            "src/a.js\n  1:0  error  Missing semi\n  5:3    Unused\n\n  7:1  error  lost\nb.js\n  2:2  error  x\n",
        );
        assert_eq!(
            shown(&found),
            ["src/a.js:1:0 error Missing semi", "src/a.js:5:3 warning Unused", "b.js:2:2 error x"]
        );
    }

    #[test]
    fn patterns_of_javascript_are_understood_or_refused_by_name() {
        for (pattern, line) in [
            (r"^(?:\\s+\\d+\\>)?([^\\s].*)$", "  12>x.cs"),
            (r"^([^[]+)$", "abc"),
            (r"^\\{(.*)}$", "{a}"),
            (r"^(a{2})\\/$", "aa/"),
            (r"^{(.*)\\}$", "{a}"),
            (r"^(?:[\\s->=]*(.*):(\\d*):(\\d*)|.*)$", "  --> src/main.rs:2:5"),
            (r"^([\\w-.]+)$", "a-b.c"),
            (r"^([.-\\d]+)$", "1.-2"),
        ] {
            let json = format!(
                r#"{{"problemMatcher":[{{"owner":"o","pattern":[{{"regexp":"{pattern}","message":1}}]}}]}}"#
            );
            assert_eq!(all(&json, line).len(), 1, "{pattern}");
        }
        let bad = |json: &str| load(json).err().unwrap();
        let look =
            load(r#"{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"(?<!x)(y)","message":1}]}]}"#)
                .unwrap();
        assert!(look.matchers.is_empty() && look.left_out[0].contains("look-around"), "{:?}", look.left_out);
        assert!(bad("oops").contains("not a file of problem matchers"));
        assert!(
            bad(r#"{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"(x)","message":2}]}]}"#)
                .contains("group 2")
        );
        assert!(
            bad(r#"{"problemMatcher":[{"owner":"o","pattern":[{"regexp":"(x)","file":1}]}]}"#)
                .contains("message")
        );
    }

    #[test]
    fn a_matcher_replaces_its_owners_older_one() {
        let one = |word: &str| {
            format!(
                r#"{{"problemMatcher":[{{"owner":"o","pattern":[{{"regexp":"^{word} (.*)$","message":1}}]}}]}}"#
            )
        };
        let mut matchers = Matchers::default();
        matchers.add(load(&one("a")).unwrap().matchers);
        matchers.add(load(&one("b")).unwrap().matchers);
        assert!(matchers.line("a x").is_none() && matchers.line("b x").is_some());
        matchers.remove("O");
        assert!(matchers.line("b x").is_none());
    }
}
