//! Sets of fields: who owns what. The tree is the one that `FieldsV1` spells out as JSON:
//! `f:name` for a field, `k:{"name":"web"}` for an item of a list map, `v:"x"` for one of a set.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::schema::{ListType, Shape};

/// A node of the tree. A node may belong to the set itself, whether or not it has children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    pub(crate) owned: bool,
    pub(crate) children: BTreeMap<String, Fields>,
}

impl Fields {
    /// All leaves of a value.
    pub fn of(value: &Value, shape: &Shape<'_>) -> Fields {
        let mut fields = Fields::default();
        match value {
            Value::Object(map) if !map.is_empty() && !shape.map_is_atomic() => {
                for (name, value) in map {
                    fields.children.insert(format!("f:{name}"), Fields::of(value, &shape.field(name)));
                }
            }
            Value::Array(items) if !items.is_empty() => match shape.list_type() {
                ListType::Atomic => fields.owned = true,
                ListType::Set => {
                    for item in items {
                        fields.children.insert(format!("v:{item}"), Fields::leaf());
                    }
                }
                ListType::Map(keys) => {
                    for item in items {
                        let mut child = Fields::of(item, &shape.items());
                        child.owned = true;
                        fields.children.insert(item_key(item, &keys, &shape.items()), child);
                    }
                }
            },
            _ => fields.owned = true,
        }
        fields
    }

    pub(crate) fn leaf() -> Fields {
        Fields { owned: true, children: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.owned && self.children.is_empty()
    }

    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.owned && !self.children.is_empty() {
            map.insert(".".into(), json!({}));
        }
        for (element, child) in &self.children {
            map.insert(element.clone(), child.to_value());
        }
        Value::Object(map)
    }

    /// From `fieldsV1`. The root itself is never a member.
    pub fn parse(value: &Value) -> Fields {
        let mut fields = Fields::parse_node(value);
        fields.owned = false;
        fields
    }

    fn parse_node(value: &Value) -> Fields {
        let mut fields = Fields::default();
        let Some(map) = value.as_object() else { return fields };
        fields.owned = map.is_empty() || map.contains_key(".");
        for (element, child) in map.iter().filter(|(element, _)| *element != ".") {
            fields.children.insert(element.clone(), Fields::parse_node(child));
        }
        fields
    }

    pub fn union(&mut self, other: &Fields) {
        self.owned |= other.owned;
        for (element, child) in &other.children {
            self.children.entry(element.clone()).or_default().union(child);
        }
    }

    /// Takes the members of `other` away.
    pub fn subtract(&mut self, other: &Fields) {
        if other.owned {
            self.owned = false;
        }
        for (element, child) in &other.children {
            if let Some(mine) = self.children.get_mut(element) {
                mine.subtract(child);
                if mine.is_empty() {
                    self.children.remove(element);
                }
            }
        }
    }

    pub fn intersect(&self, other: &Fields) -> Fields {
        let mut both = Fields { owned: self.owned && other.owned, children: BTreeMap::new() };
        for (element, mine) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                let child = mine.intersect(theirs);
                if !child.is_empty() {
                    both.children.insert(element.clone(), child);
                }
            }
        }
        both
    }

    /// Members as dotted paths: `.spec.containers[name="web"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, at: &str, paths: &mut Vec<String>) {
        if self.owned && !at.is_empty() {
            paths.push(at.to_string());
        }
        for (element, child) in &self.children {
            let step = match element.split_at(2) {
                ("f:", name) => format!(".{name}"),
                ("k:", key) => {
                    let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                    let parts: Vec<String> =
                        key.iter().map(|(name, value)| format!("{name}={value}")).collect();
                    format!("[{}]", parts.join(","))
                }
                (_, value) => format!("[={value}]"),
            };
            child.collect(&format!("{at}{step}"), paths);
        }
    }
}

/// `k:{"containerPort":80,"protocol":"TCP"}` for an item of a list map.
pub(crate) fn item_key(item: &Value, keys: &[String], shape: &Shape<'_>) -> String {
    let key: BTreeMap<&str, Value> = keys
        .iter()
        .map(|key| {
            let value = item.get(key).cloned().or_else(|| shape.key_default(key)).unwrap_or(Value::Null);
            (key.as_str(), value)
        })
        .collect();
    format!("k:{}", json!(key))
}
