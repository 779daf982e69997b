//! `container` and `services`.

use super::expression::Evaluation;
use super::reader::scalar_text;
use super::settle::{at, computed, text, unknown_key, value};
use naru_plan::Container;
use naru_text::Finding;
use naru_text::yaml::{Data, Node};

pub const CONTAINER_KEYS: &[&str] = &["image", "env", "ports", "volumes", "options", "credentials"];
pub const SERVICE_KEYS: &[&str] =
    &["image", "env", "ports", "volumes", "options", "credentials", "entrypoint", "command"];

pub fn services(node: &Node, evaluation: &Evaluation<'_>) -> Result<Vec<(String, Container)>, Finding> {
    let computed_node;
    let node = if node.entries().is_empty() {
        computed_node = computed(node, evaluation)?;
        if computed_node.is_null() || scalar_is_empty(&computed_node) {
            return Ok(Vec::new());
        }
        &computed_node
    } else {
        node
    };
    if !matches!(node.data, Data::Mapping(_)) {
        return Err(at(node, format!("`services` must be a mapping, this is {}", node.describe())));
    }
    let mut all = Vec::new();
    for (name, value) in node.entries() {
        // A service whose image is empty is not wanted in this combination.
        if let Some(it) = container(value, evaluation, true)? {
            all.push((name.as_str().unwrap_or_default().to_owned(), it));
        }
    }
    Ok(all)
}

fn scalar_is_empty(node: &Node) -> bool {
    matches!(&node.data, Data::Scalar { text, .. } if text.is_empty())
}

/// A container; none if its image is empty. Variables and credentials stay as they are, they may hold secrets.
pub fn container(
    node: &Node,
    evaluation: &Evaluation<'_>,
    is_service: bool,
) -> Result<Option<Container>, Finding> {
    let mut it = Container { line: node.place.line, ..Container::default() };
    if node.entries().is_empty() {
        let computed = computed(node, evaluation)?;
        if !computed.entries().is_empty() {
            return container(&computed, evaluation, is_service);
        }
        if matches!(computed.data, Data::Sequence(_)) {
            return Err(at(node, "a container must be an image or a mapping, this is a list"));
        }
        it.image = scalar_text(&computed);
        return Ok(Some(it).filter(|it| !it.image.is_empty()));
    }
    let texts = |node: &Node| -> Result<Vec<String>, Finding> {
        let it = value(node, evaluation)?;
        let Some(items) = it.items() else { return Err(at(node, "must be a list")) };
        Ok(items.iter().map(|it| it.text().into_owned()).collect())
    };
    for (key, value) in node.entries() {
        match key.as_str().unwrap_or_default() {
            "image" => it.image = text(value, evaluation)?,
            "options" => it.options = text(value, evaluation)?,
            "entrypoint" if is_service => it.entrypoint = text(value, evaluation)?,
            "command" if is_service => it.command = text(value, evaluation)?,
            "ports" => it.ports = texts(value)?,
            "volumes" => it.volumes = texts(value)?,
            "env" => {
                let pair =
                    |(key, it): &(Node, Node)| (key.as_str().unwrap_or_default().to_owned(), scalar_text(it));
                it.env = value.entries().iter().map(pair).collect();
            }
            "credentials" => {
                let part = |key: &str| value.get(key).map(scalar_text).unwrap_or_default();
                if let Some((key, _)) = value
                    .entries()
                    .iter()
                    .find(|(it, _)| !matches!(it.as_str(), Some("username" | "password")))
                {
                    return Err(at(key, "`credentials` are a username and a password"));
                }
                it.credentials = Some((part("username"), part("password")));
            }
            _ if is_service => return Err(unknown_key(key, "a service", SERVICE_KEYS)),
            _ => return Err(unknown_key(key, "`container`", CONTAINER_KEYS)),
        }
    }
    if it.image.is_empty() && node.get("image").is_none() {
        return Err(at(node, "the container has no `image`"));
    }
    Ok(Some(it).filter(|it| !it.image.is_empty()))
}
