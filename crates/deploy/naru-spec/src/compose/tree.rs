//! A compose file as a tree that knows where each value stands, in which file; anchors and merge keys
//! (`<<`) are resolved, variables are filled in.

use super::interpolate::{self, Variables};
use naru_text::yaml::{self, Style};
use naru_text::{Finding, Place};

/// Where something stands: a file of the project (its number) and the place in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct At {
    pub file: usize,
    pub place: Place,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub at: At,
    pub data: Data,
    pub tag: Tag,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    Scalar { text: String, plain: bool },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub at: At,
    pub value: Node,
}

/// What a later file says about the value of an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tag {
    /// The usual rules of merging.
    #[default]
    None,
    /// `!reset`: the earlier value goes.
    Reset,
    /// `!override`: this value stands alone.
    Override,
}

const TAGS: &[&str] = &["!reset", "!override"];

impl Node {
    pub fn text(at: At, text: impl Into<String>) -> Self {
        Self { at, data: Data::Scalar { text: text.into(), plain: false }, tag: Tag::None }
    }

    pub fn null(at: At) -> Self {
        Self { at, data: Data::Scalar { text: String::new(), plain: true }, tag: Tag::None }
    }

    pub fn map(at: At, entries: Vec<Entry>) -> Self {
        Self { at, data: Data::Map(entries), tag: Tag::None }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|it| it.key == key).map(|it| &it.value)
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.data {
            Data::Map(entries) => entries,
            _ => &[],
        }
    }

    /// A list's items; a single scalar counts as a list of one, as compose has it in many places.
    pub fn items_or_one(&self) -> Vec<&Node> {
        match &self.data {
            Data::List(items) => items.iter().collect(),
            Data::Scalar { .. } if !self.is_null() => vec![self],
            _ => Vec::new(),
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// Also of text: a variable's value has no quotes of its own.
    pub fn as_bool(&self) -> Option<bool> {
        match self.as_str()?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" | "1" => Some(true),
            "false" | "no" | "off" | "n" | "0" => Some(false),
            _ => None,
        }
    }

    pub fn is_map(&self) -> bool {
        matches!(self.data, Data::Map(_))
    }

    /// Nothing that could matter: null, false, an empty list, mapping or text.
    pub fn is_empty(&self) -> bool {
        match &self.data {
            Data::Scalar { text, .. } => self.is_null() || text.is_empty() || text == "false",
            Data::List(items) => items.is_empty(),
            Data::Map(entries) => entries.is_empty(),
        }
    }

    pub fn describe(&self) -> &'static str {
        match &self.data {
            Data::Scalar { .. } if self.is_null() => "nothing",
            Data::Scalar { .. } => "text",
            Data::List(_) => "a list",
            Data::Map(_) => "a mapping",
        }
    }
}

/// Reads a file. The findings are of this file.
pub fn read(source: &str, file: usize, variables: &Variables) -> (Option<Node>, Vec<Finding>) {
    let (node, tags, mut findings) = yaml::parse_tagged(source, TAGS);
    let mut reading = Reading { file, variables, tags, findings: Vec::new() };
    let node = node.map(|it| reading.convert(&it));
    findings.append(&mut reading.findings);
    (node, findings)
}

struct Reading<'a> {
    file: usize,
    variables: &'a Variables,
    tags: Vec<(Place, String)>,
    findings: Vec<Finding>,
}

impl Reading<'_> {
    fn convert(&mut self, node: &yaml::Node) -> Node {
        let at = At { file: self.file, place: node.place };
        let tag = match self.tags.iter().find(|(place, _)| *place == node.place) {
            Some((_, tag)) if tag == "!reset" => Tag::Reset,
            Some(_) => Tag::Override,
            None => Tag::None,
        };
        let data = match &node.data {
            yaml::Data::Scalar { text, style } => {
                let plain = *style == Style::Plain;
                let text = match interpolate::fill(text, self.variables) {
                    Ok(filled) => {
                        for name in filled.unset {
                            let message =
                                format!("the variable `{name}` is not set; nothing stands in its place");
                            let hint =
                                format!("set it, write it into .env, or write `${{{name}:-a default}}`");
                            self.findings.push(Finding::warning(node.place, message).hint(hint));
                        }
                        filled.text
                    }
                    Err(why) => {
                        self.findings.push(Finding::error(node.place, why.message).hint(why.hint));
                        text.clone()
                    }
                };
                Data::Scalar { text, plain }
            }
            yaml::Data::Sequence(items) => Data::List(items.iter().map(|it| self.convert(it)).collect()),
            yaml::Data::Mapping(entries) => Data::Map(self.entries(entries)),
        };
        Node { at, data, tag }
    }

    /// A mapping's own entries come before those that `<<` brings in.
    fn entries(&mut self, entries: &[(yaml::Node, yaml::Node)]) -> Vec<Entry> {
        let mut all: Vec<Entry> = Vec::new();
        let mut merged = Vec::new();
        for (key, value) in entries {
            let at = At { file: self.file, place: key.place };
            let Some(name) = key.as_str() else {
                self.findings.push(Finding::error(
                    key.place,
                    format!("a key must be text, this is {}", key.describe()),
                ));
                continue;
            };
            let value = self.convert(value);
            if name == "<<" {
                merged.push((at, value));
            } else {
                // One tag can stand before a mapping and its first key; it is the value's that counts.
                all.push(Entry { key: name.to_owned(), at, value });
            }
        }
        for (at, value) in merged {
            let sources = match value.data {
                Data::List(items) => items,
                data => vec![Node { data, ..value }],
            };
            for source in sources {
                let Data::Map(entries) = source.data else {
                    self.findings
                        .push(Finding::error(at.place, "`<<` takes a mapping, or a list of mappings"));
                    continue;
                };
                for entry in entries {
                    if !all.iter().any(|it| it.key == entry.key) {
                        all.push(entry);
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_keys_and_variables_are_resolved() {
        let source = "x-base: &base {a: 1, b: 2}\nx-more: &more {c: 3}\none:\n  <<: [*base, *more]\n  b: ${B}\n  n: ${N:-4}\n";
        let variables = Variables::from([("B".to_owned(), "five".to_owned())]);
        let (node, findings) = read(source, 0, &variables);
        assert!(findings.is_empty(), "{findings:?}");
        let node = node.unwrap();
        let one = node.get("one").unwrap();
        let text = |key: &str| one.get(key).and_then(Node::as_str).unwrap_or("-").to_owned();
        assert_eq!([text("a"), text("b"), text("c"), text("n")], ["1", "five", "3", "4"]);
        assert_eq!(one.get("a").unwrap().at.place, Place::new(1, 19));
    }
}
