//! Text with places: what every reader of foreign files needs in order to say `file:line:column`.
//!
//! [`Finding`] is one thing worth saying about a file, [`yaml`] reads YAML without losing where things
//! stand, [`suggest`] answers "did you mean". Nothing here knows what a file means.
//!
//! ```
//! let (node, findings) = naru_text::yaml::parse("on: push\njobs: {}\n");
//! assert!(findings.is_empty());
//! let node = node.unwrap();
//! assert_eq!(node.get("on").unwrap().as_str(), Some("push"));
//! assert_eq!(node.get("jobs").unwrap().place.line, 2);
//! ```

pub mod cron;
pub mod yaml;

use serde::{Deserialize, Serialize};
use std::fmt;

/// A position in a text; both count from 1, columns in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    pub line: u32,
    pub column: u32,
}

impl Place {
    pub fn new(line: u32, column: u32) -> Self {
        Self { line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One thing worth saying about a file: where, what, and what to type instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    pub place: Place,
    pub message: String,
    /// Empty when there is nothing better to type.
    pub hint: String,
}

impl Finding {
    pub fn error(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place, message: message.into(), hint: String::new() }
    }

    pub fn warning(place: Place, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, message) }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// As people read it:
    /// ```text
    /// error: job `deploy` needs `bild`, which does not exist
    ///   --> .github/workflows/ci.yml:14:12
    /// hint: did you mean `build`?
    /// ```
    pub fn render(&self, file: &str) -> String {
        let kind = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let mut text = format!("{kind}: {}\n  --> {file}:{}", self.message, self.place);
        if !self.hint.is_empty() {
            text.push_str("\nhint: ");
            text.push_str(&self.hint);
        }
        text
    }
}

/// The candidate nearest to what was typed, if it is near enough to be a slip of the finger: at most a
/// third of the letters differ.
pub fn suggest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|it| (distance(&typed.to_lowercase(), &it.to_lowercase()), it))
        .filter(|(distance, it)| *distance <= (it.chars().count().max(3) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, it)| it)
}

/// `did you mean ...?` as a hint, or the list of what would be understood.
pub fn suggest_hint(typed: &str, candidates: &[&str]) -> String {
    match suggest(typed, candidates.iter().copied()) {
        Some(it) => format!("did you mean `{it}`?"),
        None => format!("known here: {}", candidates.join(", ")),
    }
}

/// Edits (insert, delete, replace, swap neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0usize; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_guessed_and_a_different_word_is_not() {
        let words = ["steps", "runs-on", "strategy", "needs"];
        assert_eq!(suggest("step", words), Some("steps"));
        assert_eq!(suggest("runs_on", words), Some("runs-on"));
        assert_eq!(suggest("stratgey", words), Some("strategy"));
        assert_eq!(suggest("container", words), None);
    }

    #[test]
    fn a_finding_names_the_place_and_the_way_out() {
        let text = Finding::error(Place::new(14, 12), "unknown key `step`").hint("did you mean `steps`?");
        assert_eq!(
            text.render("ci.yml"),
            "error: unknown key `step`\n  --> ci.yml:14:12\nhint: did you mean `steps`?"
        );
    }
}
