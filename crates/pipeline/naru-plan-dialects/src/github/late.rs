//! What stands before a job's start as the file has it, kept until everything that it asks for is known: as JSON
//! in [`naru_plan::Job::deferred`], with the order of keys, the style of scalars and the places.

use super::expression::{self, Evaluation, Node as Tree, Part};
use super::reader::has_expression;
use super::settle::{apply, check_shape, labels_of, plain, strategy};
use naru_plan::Job;
use naru_text::yaml::{Data, Node, Style};
use naru_text::{Finding, Place};
use serde_json::{Map, Value, json};

/// The values of a job's keys as they stand in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Late {
    pub place: Place,
    /// The labels that `runs-on` may name here.
    pub labels: Vec<String>,
    pub nodes: Vec<(String, Node)>,
    /// What stands before the job's name: the names of the jobs that called it in.
    pub prefix: String,
}

impl Late {
    pub fn node(&self, key: &str) -> Option<&Node> {
        self.nodes.iter().find(|(it, _)| it == key).map(|(_, it)| it)
    }

    /// Whether every context that the values ask for is known. The variables of containers and their credentials
    /// are not computed here.
    pub fn is_ready(&self, known: &Map<String, Value>) -> bool {
        let is_known = |name: &str| matches!(name, "matrix" | "strategy") || known.contains_key(name);
        let mut ready = true;
        for (key, node) in &self.nodes {
            let container = |it: &Node| {
                it.entries()
                    .iter()
                    .filter(|(key, _)| !matches!(key.as_str(), Some("env" | "credentials")))
                    .all(|(_, it)| asks_only(it, &is_known))
                    && (!it.entries().is_empty() || asks_only(it, &is_known))
            };
            ready &= match key.as_str() {
                "container" => container(node),
                "services" if !node.entries().is_empty() => {
                    node.entries().iter().all(|(_, it)| container(it))
                }
                "environment" => match node.get("name") {
                    Some(name) => asks_only(name, &is_known),
                    None => asks_only(node, &is_known),
                },
                _ => asks_only(node, &is_known),
            };
        }
        ready
    }

    /// What is wrong with the values, as far as it can be said before they are computed.
    pub fn check_static(&self, findings: &mut Vec<Finding>) {
        let nothing = Value::Null;
        let evaluation = Evaluation::new(&nothing);
        for (key, node) in &self.nodes {
            let checked = if has_expression(node) {
                check_shape(key, node)
            } else if key == "strategy" {
                strategy(node, &evaluation, &mut Job::default()).map(|_| ())
            } else {
                apply(key, node, self, &evaluation, &mut Job::default(), &mut Vec::new())
            };
            findings.extend(checked.err());
        }
    }

    pub fn survey(&self, survey: &mut crate::Survey) {
        if let Some(node) = self.node("runs-on").filter(|it| !has_expression(it))
            && let Ok((labels, _)) = plain(node).and_then(|it| labels_of(&it))
        {
            survey.labels.extend(labels);
        }
    }

    pub fn to_json(&self) -> Value {
        let nodes: Vec<Value> = self.nodes.iter().map(|(key, node)| json!([key, encode(node)])).collect();
        json!({
            "at": [self.place.line, self.place.column], "labels": self.labels, "nodes": nodes,
            "prefix": self.prefix,
        })
    }

    pub fn of_json(value: &Value) -> Option<Self> {
        let texts = |it: &Value| -> Option<Vec<String>> {
            it.as_array()?.iter().map(|it| it.as_str().map(str::to_owned)).collect()
        };
        let mut nodes = Vec::new();
        for pair in value["nodes"].as_array()? {
            nodes.push((pair[0].as_str()?.to_owned(), decode(&pair[1])?));
        }
        Some(Self {
            place: place_of(&value["at"]),
            labels: texts(&value["labels"])?,
            nodes,
            prefix: value["prefix"].as_str()?.to_owned(),
        })
    }
}

/// A node as JSON that keeps the order of keys, the style of scalars and the places.
pub fn encode(node: &Node) -> Value {
    let at = json!([node.place.line, node.place.column]);
    match &node.data {
        Data::Scalar { text, style: Style::Plain } => json!({"at": at, "plain": text}),
        Data::Scalar { text, style: Style::Text } => json!({"at": at, "text": text}),
        Data::Sequence(items) => json!({"at": at, "list": items.iter().map(encode).collect::<Vec<_>>()}),
        Data::Mapping(entries) => {
            let entries: Vec<Value> =
                entries.iter().map(|(key, it)| json!([encode(key), encode(it)])).collect();
            json!({"at": at, "map": entries})
        }
    }
}

pub fn decode(value: &Value) -> Option<Node> {
    let data = if let Some(text) = value["plain"].as_str() {
        Data::Scalar { text: text.to_owned(), style: Style::Plain }
    } else if let Some(text) = value["text"].as_str() {
        Data::Scalar { text: text.to_owned(), style: Style::Text }
    } else if let Some(items) = value["list"].as_array() {
        Data::Sequence(items.iter().map(decode).collect::<Option<_>>()?)
    } else {
        let entries = value["map"].as_array()?.iter().map(|it| Some((decode(&it[0])?, decode(&it[1])?)));
        Data::Mapping(entries.collect::<Option<_>>()?)
    };
    Some(Node { place: place_of(&value["at"]), data })
}

fn place_of(value: &Value) -> Place {
    let number = |at: usize| value[at].as_u64().unwrap_or(0) as u32;
    Place::new(number(0), number(1))
}

/// Whether an expression of a node asks for this context.
pub fn asks_for(node: &Node, context: &str) -> bool {
    !asks_only(node, &|it| it != context)
}

/// Whether the expressions of a node ask for known contexts only. What cannot be read has been told elsewhere.
fn asks_only(node: &Node, is_known: &impl Fn(&str) -> bool) -> bool {
    match &node.data {
        Data::Scalar { text, .. } => expression::parts(text).unwrap_or_default().iter().all(|part| {
            let Part::Expression { expr, .. } = part else { return true };
            let mut known = true;
            expr.walk(&mut |it| known &= !matches!(&it.node, Tree::Context(name) if !is_known(name)));
            known
        }),
        Data::Sequence(items) => items.iter().all(|it| asks_only(it, is_known)),
        Data::Mapping(entries) => {
            entries.iter().all(|(key, it)| asks_only(key, is_known) && asks_only(it, is_known))
        }
    }
}
