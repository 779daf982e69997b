//! What every part of the reader of workflows needs: findings with places, tables of keys, texts whose
//! expressions are checked.

use super::expression::{self, Part};
use super::names::Names;
use super::place::Allowed;
use crate::Trigger;
use naru_text::yaml::{Data, Node, Style};
use naru_text::{Finding, Place, suggest_hint};
use serde_json::Value;

/// How far back a finding is looked for that says the same.
const ALIKE_WITHIN: usize = 300;

/// A key that may stand in a mapping.
pub struct Key {
    pub name: &'static str,
    /// Known to GitHub, not to us. The text says what to do instead.
    pub refused: Option<&'static str>,
}

pub const fn key(name: &'static str) -> Key {
    Key { name, refused: None }
}

pub const fn refused(name: &'static str, instead: &'static str) -> Key {
    Key { name, refused: Some(instead) }
}

pub struct Reader<'a> {
    pub findings: Vec<Finding>,
    pub trigger: &'a Trigger,
    pub source: &'a str,
    /// Where its lines begin.
    pub lines: Vec<usize>,
    /// How the file is named; those of other repositories as `owner/name/path@ref`.
    pub path: String,
    /// The files that called this one, from the outermost in.
    pub callers: Vec<String>,
    /// What expressions may be computed with up front.
    pub known: serde_json::Map<String, Value>,
    /// See [`crate::Lowered::missing`].
    pub missing: Vec<String>,
    /// The names of every file that was called in, each once.
    pub called: Vec<String>,
    /// How many calls were followed.
    pub calls: usize,
    pub survey: crate::Survey,
    /// What expressions can look up where the reader is.
    pub names: Names,
    /// Whether the file asks for the trigger, once its events were read without fault.
    pub applies: Option<bool>,
}

impl Reader<'_> {
    pub fn error(&mut self, node: &Node, message: impl Into<String>) {
        self.findings.push(Finding::error(node.place, message));
    }

    pub fn error_hint(&mut self, node: &Node, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.push(Finding::error(node.place, message).hint(hint));
    }

    pub fn warn(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        let finding = Finding::warning(place, message).hint(hint);
        // A value that many things take over is said once; what is alike stands close.
        if !self.findings.iter().rev().take(ALIKE_WITHIN).any(|it| *it == finding) {
            self.findings.push(finding);
        }
    }

    /// Whether it is a mapping; says so if not.
    pub fn mapping(&mut self, what: &str, node: &Node) -> bool {
        let is = matches!(node.data, Data::Mapping(_));
        if !is {
            self.error(node, format!("{what} must be a mapping, this is {}", node.describe()));
        }
        is
    }

    /// Checks a mapping's keys against the table; false if it is no mapping at all.
    pub fn keys(&mut self, what: &str, node: &Node, table: &[Key]) -> bool {
        if !self.mapping(what, node) {
            return false;
        }
        for (key, _) in node.entries() {
            let name = key.as_str().unwrap_or_default();
            match table.iter().find(|it| it.name == name) {
                Some(Key { refused: None, .. }) => {}
                Some(Key { refused: Some(instead), .. }) => {
                    self.error_hint(key, format!("`{name}` of {what} is not supported"), *instead);
                }
                None => {
                    let known: Vec<&str> = table.iter().map(|it| it.name).collect();
                    let message = format!("unknown key `{name}` in {what}");
                    self.error_hint(key, message, suggest_hint(name, &known));
                }
            }
        }
        true
    }

    /// GitHub has anchors and aliases, but no merge keys.
    pub fn refuse_merge_keys(&mut self, node: &Node) {
        for (key, value) in node.entries() {
            if matches!(&key.data, Data::Scalar { text, style: Style::Plain } if text == "<<") {
                self.error_hint(
                    key,
                    "merge keys (`<<`) are not part of GitHub's YAML",
                    "repeat the keys, or use an alias for the whole value",
                );
            }
            self.refuse_merge_keys(value);
        }
        for item in node.items() {
            self.refuse_merge_keys(item);
        }
    }

    /// A scalar as text, its expressions checked for the place where it stands.
    pub fn text(&mut self, node: &Node, allowed: &Allowed) -> String {
        if !matches!(node.data, Data::Scalar { .. }) {
            self.error(node, format!("text is expected here, this is {}", node.describe()));
            return String::new();
        }
        let text = scalar_text(node);
        self.check_text(node, &text, allowed);
        if let Data::Scalar { text: written, style: Style::Plain } = &node.data
            && *written != text
            && node.to_json().is_number()
        {
            let message = format!("`{written}` is the number {text} for YAML, and so for GitHub");
            self.warn(node.place, message, format!("write '{written}' in quotes if it is meant as text"));
        }
        text
    }

    pub fn check_text(&mut self, node: &Node, text: &str, allowed: &Allowed) {
        if !text.contains("${{") {
            return;
        }
        self.check_parts(node, text, expression::parts(text), allowed);
    }

    fn check_parts(
        &mut self,
        node: &Node,
        text: &str,
        parts: Result<Vec<Part<'_>>, naru_plan::EvaluateError>,
        allowed: &Allowed,
    ) {
        let parts = match parts {
            Ok(parts) => parts,
            Err(error) => {
                let place = self.place_in(node, text, error.offset);
                self.findings.push(Finding::error(place, format!("expression: {}", error.message)));
                return;
            }
        };
        for part in &parts {
            let Part::Expression { expr, offset } = part else { continue };
            if let Err(error) = allowed.check(expr) {
                let place = self.place_in(node, text, offset + error.offset);
                self.findings.push(Finding::error(place, format!("expression: {}", error.message)));
            }
            for (message, hint, at) in self.names.unknown(expr) {
                let place = self.place_in(node, text, offset + at);
                self.warn(place, message, hint);
            }
            super::security::note_secrets(expr, &mut self.survey);
        }
    }

    pub fn condition(&mut self, node: &Node, allowed: &Allowed) -> Option<String> {
        let text = self.scalar("`if`", node)?;
        match expression::condition_parts(&text) {
            Err(error) => self.check_parts(node, &text, Err(error), allowed),
            Ok(parts) => {
                if parts.len() > 1 {
                    self.warn(
                        node.place,
                        "this condition is a text with expressions in it, and so always true",
                        "put all of it between one pair of braces: `${{ a && b }}`",
                    );
                }
                self.check_parts(node, &text, Ok(parts), allowed);
            }
        }
        Some(text)
    }

    /// A scalar's text.
    pub fn scalar(&mut self, what: &str, node: &Node) -> Option<String> {
        if matches!(node.data, Data::Scalar { .. }) {
            return Some(scalar_text(node));
        }
        self.error(node, format!("{what} must be text, this is {}", node.describe()));
        None
    }

    pub fn env(&mut self, node: &Node, allowed: &Allowed) -> Vec<(String, String)> {
        self.texts("`env`", node, allowed)
    }

    /// A mapping of names to texts.
    pub fn texts(&mut self, what: &str, node: &Node, allowed: &Allowed) -> Vec<(String, String)> {
        if node.is_null() || !self.mapping(what, node) {
            return Vec::new();
        }
        node.entries()
            .iter()
            .map(|(key, value)| (key.as_str().unwrap_or_default().to_owned(), self.text(value, allowed)))
            .collect()
    }

    /// Checks every expression under a node whose shape is looked at later.
    pub fn check_all(&mut self, node: &Node, allowed: &Allowed) {
        match &node.data {
            Data::Scalar { .. } => {
                self.text(node, allowed);
            }
            Data::Sequence(items) => items.iter().for_each(|it| self.check_all(it, allowed)),
            Data::Mapping(entries) => entries.iter().for_each(|(_, it)| self.check_all(it, allowed)),
        }
    }

    pub fn bool_of(&mut self, what: &str, node: &Node) -> bool {
        node.as_bool().unwrap_or_else(|| {
            self.error(node, format!("`{what}` must be true or false"));
            false
        })
    }

    /// A word or a list of words, each with its node.
    pub fn words(&mut self, what: &str, node: &Node) -> Vec<(String, Node)> {
        let items = match &node.data {
            Data::Sequence(items) => items.clone(),
            _ => vec![node.clone()],
        };
        let mut words = Vec::new();
        for item in items {
            if let Some(text) = self.scalar(what, &item) {
                if text.is_empty() {
                    self.error(&item, format!("{what} must not be empty"));
                }
                words.push((text, item));
            }
        }
        words
    }

    /// The place of a byte of a scalar's text. The text as it stands in the file may differ (quotes, blocks,
    /// folded lines), but its expressions are the same in the same order.
    pub fn place_in(&self, node: &Node, text: &str, offset: usize) -> Place {
        let Some(start) = self.byte_of(node.place) else { return node.place };
        let starts: Vec<usize> = text.match_indices("${{").map(|it| it.0).collect();
        let ordinal = starts.iter().rposition(|it| *it <= offset);
        let byte = match ordinal {
            Some(ordinal) => {
                let Some((at, _)) = self.source[start..].match_indices("${{").nth(ordinal) else {
                    return node.place;
                };
                // Within an expression on one line, bytes stand as they are.
                let within = offset - starts[ordinal];
                let expression = text.get(starts[ordinal]..offset).unwrap_or_default();
                start + at + if expression.contains('\n') { 0 } else { within }
            }
            None if text.contains('\n') => return node.place,
            None => start + offset + usize::from(self.source[start..].starts_with(['\'', '"'])),
        };
        self.place_of_byte(byte).unwrap_or(node.place)
    }

    fn byte_of(&self, place: Place) -> Option<usize> {
        let start = *self.lines.get(place.line.checked_sub(1)? as usize)?;
        let rest = &self.source[start..];
        let column = place.column.checked_sub(1)? as usize;
        Some(start + rest.char_indices().nth(column).map_or(rest.len(), |it| it.0))
    }

    fn place_of_byte(&self, byte: usize) -> Option<Place> {
        let line = self.lines.partition_point(|it| *it <= byte);
        let start = *self.lines.get(line.checked_sub(1)?)?;
        let before = self.source.get(start..byte)?;
        Some(Place::new(line as u32, before.chars().count() as u32 + 1))
    }
}

pub fn line_starts(source: &str) -> Vec<usize> {
    std::iter::once(0).chain(source.match_indices('\n').map(|it| it.0 + 1)).collect()
}

/// A scalar as GitHub turns it into text: what YAML takes for a number or a boolean is written anew.
pub fn scalar_text(node: &Node) -> String {
    match node.to_json() {
        Value::Null => String::new(),
        Value::Bool(it) => it.to_string(),
        Value::Number(it) => expression::number_text(it.as_f64().unwrap_or(f64::NAN)),
        _ => node.as_str().unwrap_or_default().to_owned(),
    }
}

pub fn has_expression(node: &Node) -> bool {
    match &node.data {
        Data::Scalar { text, .. } => text.contains("${{"),
        Data::Sequence(items) => items.iter().any(has_expression),
        Data::Mapping(entries) => entries.iter().any(|(key, it)| has_expression(key) || has_expression(it)),
    }
}
