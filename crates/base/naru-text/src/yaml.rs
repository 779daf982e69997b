//! YAML that remembers where everything stands. Scalars keep their source text and style, because what
//! `010`, `1.10` or `yes` mean differs between the dialects that read them; each dialect decides.
//!
//! Built over the parser of `saphyr` with its limits on aliases; a size limit of our own comes first.

use crate::{Finding, Place};
use saphyr::{MarkedYaml, ScalarStyle, YamlData, YamlLoader};
use saphyr_parser::{Parser, ScanError, StrInput};

/// Larger files are refused before parsing: five megabytes is far beyond any file a person maintains.
pub const SOURCE_BYTES_MAX: usize = 5 * 1024 * 1024;

/// Deeper nesting is refused: nobody reads it, and recursion over it must stay within the stack.
pub const DEPTH_MAX: usize = 128;

/// One node with the place where it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub place: Place,
    pub data: Data,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// The text as written (quotes and block markers resolved).
    Scalar {
        text: String,
        style: Style,
    },
    Sequence(Vec<Node>),
    /// In the order of the file; keys are unique.
    Mapping(Vec<(Node, Node)>),
}

/// Whether a scalar was written plainly, and so may be a number or a boolean, or as a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// Quoted or a block: always a string.
    Text,
}

impl Node {
    /// The value of a mapping's key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(it, _)| it.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// A mapping's entries; none for any other node.
    pub fn entries(&self) -> &[(Node, Node)] {
        match &self.data {
            Data::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// A sequence's items; none for any other node.
    pub fn items(&self) -> &[Node] {
        match &self.data {
            Data::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The text of a scalar, whatever it may mean.
    pub fn as_str(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// `null`, `~` or nothing at all.
    pub fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar { text, style: Style::Plain }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// `true` or `false` as YAML 1.2's core schema has them.
    pub fn as_bool(&self) -> Option<bool> {
        match &self.data {
            Data::Scalar { text, style: Style::Plain } => match text.as_str() {
                "true" | "True" | "TRUE" => Some(true),
                "false" | "False" | "FALSE" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// A plain decimal whole number.
    pub fn as_u64(&self) -> Option<u64> {
        match &self.data {
            Data::Scalar { text, style: Style::Plain } => text.parse().ok(),
            _ => None,
        }
    }

    /// What a person would call it: `a mapping`, `a list`, `text`.
    pub fn describe(&self) -> &'static str {
        match &self.data {
            Data::Scalar { .. } if self.is_null() => "nothing",
            Data::Scalar { .. } => "text",
            Data::Sequence(_) => "a list",
            Data::Mapping(_) => "a mapping",
        }
    }

    /// The node as JSON by YAML 1.2's core schema.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.data {
            Data::Sequence(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Data::Mapping(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, value)| (key.as_str().unwrap_or_default().to_owned(), value.to_json()))
                    .collect(),
            ),
            Data::Scalar { text, style: Style::Text } => Value::String(text.clone()),
            Data::Scalar { text, style: Style::Plain } => {
                if self.is_null() {
                    return Value::Null;
                }
                if let Some(it) = self.as_bool() {
                    return Value::Bool(it);
                }
                if let Ok(it) = text.parse::<i64>() {
                    return it.into();
                }
                let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
                match text.parse::<f64>() {
                    Ok(it) if numeric && it.is_finite() => {
                        serde_json::Number::from_f64(it).map_or(Value::Null, Value::Number)
                    }
                    _ => Value::String(text.clone()),
                }
            }
        }
    }
}

/// Reads one document. What could be understood comes with every finding; `None` with an error finding
/// when nothing could.
pub fn parse(source: &str) -> (Option<Node>, Vec<Finding>) {
    let (node, _, findings) = parse_tagged(source, &[]);
    (node, findings)
}

/// As [`parse`], for a language with tags of its own, such as `!reset`: also says which value, by its place,
/// bears which of the `known` tags.
pub fn parse_tagged(source: &str, known: &[&str]) -> (Option<Node>, Vec<(Place, String)>, Vec<Finding>) {
    let mut tags = Tags { known, found: Vec::new() };
    let (node, findings) = read(source, &mut tags);
    (node, tags.found, findings)
}

struct Tags<'a> {
    known: &'a [&'a str],
    found: Vec<(Place, String)>,
}

impl Tags<'_> {
    fn see(&mut self, place: Place, tag: &str, findings: &mut Vec<Finding>) {
        if self.known.contains(&tag) {
            self.found.push((place, tag.to_owned()));
        } else {
            findings.push(Finding::error(place, format!("the tag `{tag}` is not understood here")));
        }
    }
}

fn read(source: &str, tags: &mut Tags<'_>) -> (Option<Node>, Vec<Finding>) {
    let start = Place::new(1, 1);
    if source.len() > SOURCE_BYTES_MAX {
        let message = format!("the file has {} bytes; at most {SOURCE_BYTES_MAX} are read", source.len());
        return (None, vec![Finding::error(start, message)]);
    }
    // A byte order mark is what some editors write; it means nothing.
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    if let Some(place) = too_deep(source) {
        return (None, vec![Finding::error(place, format!("nested deeper than {DEPTH_MAX} levels"))]);
    }
    let mut loader = YamlLoader::<MarkedYaml<'_>>::default();
    loader.early_parse(false);
    let mut parser = Parser::new(StrInput::new(source));
    if let Err(error) = parser.load(&mut loader, true) {
        return (None, vec![scan_error(&error)]);
    }
    if let Some(error) = loader.error() {
        return (None, vec![scan_error(error)]);
    }
    let documents = loader.into_documents();
    let mut findings = Vec::new();
    if let Some(second) = documents.get(1) {
        let message = "the file holds a second document; one is expected";
        findings.push(Finding::error(place_of(second), message).hint("remove everything from this `---` on"));
    }
    match documents.first() {
        Some(document) => (Some(convert(document, tags, &mut findings)), findings),
        None => {
            findings.push(Finding::error(start, "the file is empty"));
            (None, findings)
        }
    }
}

/// The place where flow or block nesting passes [`DEPTH_MAX`]. Runs before the tree is built, because
/// building and dropping it recurse.
fn too_deep(source: &str) -> Option<Place> {
    let mut depth = 0usize;
    for event in Parser::new(StrInput::new(source)) {
        let Ok((event, span)) = event else { return None };
        use saphyr_parser::Event::{MappingEnd, MappingStart, SequenceEnd, SequenceStart};
        match event {
            MappingStart(..) | SequenceStart(..) => depth += 1,
            MappingEnd | SequenceEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Some(place(&span.start));
        }
    }
    None
}

fn place(marker: &saphyr::Marker) -> Place {
    Place::new(marker.line() as u32, marker.col() as u32 + 1)
}

fn place_of(node: &MarkedYaml<'_>) -> Place {
    place(&node.span.start)
}

fn scan_error(error: &ScanError) -> Finding {
    let hint = if error.info().contains("tab") { "indent with spaces" } else { "" };
    Finding::error(place(error.marker()), format!("not valid YAML: {}", error.info())).hint(hint)
}

fn convert(node: &MarkedYaml<'_>, tags: &mut Tags<'_>, findings: &mut Vec<Finding>) -> Node {
    let place = place_of(node);
    let data = match &node.data {
        YamlData::Representation(text, style, tag) => {
            if let Some(tag) = tag {
                tags.see(place, &tag.to_string(), findings);
            }
            let style = if *style == ScalarStyle::Plain { Style::Plain } else { Style::Text };
            Data::Scalar { text: text.to_string(), style }
        }
        YamlData::Sequence(items) => {
            Data::Sequence(items.iter().map(|it| convert(it, tags, findings)).collect())
        }
        YamlData::Mapping(entries) => Data::Mapping(
            entries
                .iter()
                .map(|(key, value)| (convert(key, tags, findings), convert(value, tags, findings)))
                .collect(),
        ),
        YamlData::Tagged(tag, inner) => {
            tags.see(place_of(inner), &tag.to_string(), findings);
            return convert(inner, tags, findings);
        }
        YamlData::Value(_) | YamlData::BadValue | YamlData::Alias(_) => {
            Data::Scalar { text: String::new(), style: Style::Plain }
        }
    };
    Node { place, data }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(source: &str) -> String {
        let (_, findings) = parse(source);
        findings.first().map(|it| it.render("f.yml")).unwrap_or_default()
    }

    #[test]
    fn places_and_source_text_survive() {
        let (node, findings) = parse("on:\n  push:\n    v: 1.10\n    w: '010'\n    no: yes\n");
        assert!(findings.is_empty(), "{findings:?}");
        let push = node.unwrap().get("on").unwrap().get("push").unwrap().clone();
        assert_eq!(push.get("v").unwrap().as_str(), Some("1.10"));
        assert_eq!(push.get("v").unwrap().place, Place::new(3, 8));
        assert_eq!(push.get("w").unwrap().to_json(), "010");
        assert_eq!(push.get("no").unwrap().to_json(), "yes");
    }

    #[test]
    fn bad_files_are_refused_with_a_place() {
        assert!(error_of("a: 1\na: 2\n").contains("f.yml:2:1"), "{}", error_of("a: 1\na: 2\n"));
        assert!(error_of("a: [1\nb: 2\n").contains("f.yml:"), "{}", error_of("a: [1\nb: 2\n"));
        assert!(error_of("a:\n\t- b\n").contains("f.yml:2:"), "{}", error_of("a:\n\t- b\n"));
        assert!(error_of("").contains("empty"));
        assert!(error_of("a: 1\n---\nb: 2\n").contains("second document"));
        let deep = (0..200).map(|i| format!("{}a:\n", " ".repeat(i))).collect::<String>();
        assert!(error_of(&deep).contains("nested deeper"), "{}", error_of(&deep));
        assert!(!error_of(&"[".repeat(100_000)).is_empty());
    }

    #[test]
    fn an_alias_bomb_is_refused_quickly() {
        let mut bomb = String::from("a0: &a0 [x]\n");
        for i in 1..12 {
            let refs = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(error_of(&bomb).contains("f.yml:"), "{}", error_of(&bomb));
    }

    #[test]
    fn tags_of_a_language_are_told_by_place() {
        let (node, tags, findings) = parse_tagged(
            "a: !reset\nb: !override\n  - x\nc: !reset {}\nd: !other 1\n",
            &["!reset", "!override"],
        );
        let node = node.unwrap();
        let found: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|key| {
                let at = node.get(key).unwrap().place;
                tags.iter().find(|(place, _)| *place == at).map(|(_, tag)| tag.as_str())
            })
            .collect();
        assert_eq!(found, [Some("!reset"), Some("!override"), Some("!reset")], "{tags:?}");
        assert!(findings[0].message.contains("!other"), "{findings:?}");
    }

    #[test]
    fn anchors_are_expanded() {
        let (node, findings) = parse("a: &x {k: v}\nb: *x\n");
        assert!(findings.is_empty());
        assert_eq!(node.unwrap().get("b").unwrap().get("k").unwrap().as_str(), Some("v"));
    }
}
