//! Sets of fields: who owns what. The tree is the one that `FieldsV1` spells out as JSON:
//! `f:name` for a field, `k:{"name":"web"}` for an item of a list map, `v:"x"` for one of a set.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A node of the tree. A node may belong to the set itself, whether or not it has children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    pub(crate) owned: bool,
    pub(crate) children: BTreeMap<String, Fields>,
}

impl Fields {
    pub(crate) fn leaf() -> Fields {
        Fields { owned: true, children: BTreeMap::new() }
    }

    /// The set of these paths, given as field names.
    pub fn of_paths(paths: &[&[&str]]) -> Fields {
        let mut fields = Fields::default();
        for path in paths {
            let mut here = &mut fields;
            for name in *path {
                here = here.children.entry(format!("f:{name}")).or_default();
            }
            here.owned = true;
        }
        fields
    }

    pub fn is_empty(&self) -> bool {
        !self.owned && self.children.is_empty()
    }

    /// Puts `child` in its place unless there is nothing in it.
    pub(crate) fn put(&mut self, step: String, child: Fields) {
        if !child.is_empty() {
            self.children.entry(step).or_default().union(child);
        }
    }

    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.owned && !self.children.is_empty() {
            map.insert(".".into(), json!({}));
        }
        for (step, child) in &self.children {
            map.insert(step.clone(), child.to_value());
        }
        Value::Object(map)
    }

    /// From `fieldsV1`. The root itself is never a member. `None` when it is malformed.
    pub fn parse(value: &Value) -> Option<Fields> {
        let mut fields = Fields::parse_node(value)?;
        fields.owned = false;
        Some(fields)
    }

    fn parse_node(value: &Value) -> Option<Fields> {
        let mut fields = Fields::default();
        let map = value.as_object()?;
        fields.owned = map.is_empty() || map.contains_key(".");
        for (step, child) in map.iter().filter(|(step, _)| *step != ".") {
            let step = match step.split_at_checked(2)? {
                ("f:", _) => step.clone(),
                ("i:", index) => format!("i:{}", index.parse::<i64>().ok()?),
                // Read and written again, so that equal steps are equal texts.
                ("v:", value) => format!("v:{}", serde_json::from_str::<Value>(value).ok()?),
                ("k:", key) => {
                    let key: BTreeMap<String, Value> = serde_json::from_str(key).ok()?;
                    format!("k:{}", json!(key))
                }
                _ => return None,
            };
            fields.children.insert(step, Fields::parse_node(child)?);
        }
        Some(fields)
    }

    pub fn union(&mut self, other: Fields) {
        self.owned |= other.owned;
        for (step, child) in other.children {
            self.children.entry(step).or_default().union(child);
        }
    }

    /// Takes the members of `other` away, and only those: what is below them stays.
    pub fn subtract(&mut self, other: &Fields) {
        if other.owned {
            self.owned = false;
        }
        for (step, child) in &other.children {
            if let Some(mine) = self.children.get_mut(step) {
                mine.subtract(child);
                if mine.is_empty() {
                    self.children.remove(step);
                }
            }
        }
    }

    /// Takes the members of `other` away with everything below them.
    pub fn subtract_below(&mut self, other: &Fields) {
        for (step, child) in &other.children {
            if child.owned {
                self.children.remove(step);
            } else if let Some(mine) = self.children.get_mut(step) {
                mine.subtract_below(child);
                if mine.is_empty() {
                    self.children.remove(step);
                }
            }
        }
    }

    pub fn intersect(&self, other: &Fields) -> Fields {
        let mut both = Fields { owned: self.owned && other.owned, children: BTreeMap::new() };
        for (step, mine) in &self.children {
            if let Some(theirs) = other.children.get(step) {
                let child = mine.intersect(theirs);
                if !child.is_empty() {
                    both.children.insert(step.clone(), child);
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
        for (step, child) in &self.children {
            child.collect(&format!("{at}{}", spell(step)), paths);
        }
    }
}

/// A step as people read it: `.image`, `[name="web"]`, `[="x"]`, `[3]`.
pub(crate) fn spell(step: &str) -> String {
    match step.split_at(2) {
        ("f:", name) => format!(".{name}"),
        ("k:", key) => {
            let key: BTreeMap<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let parts: Vec<String> = key.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("[{}]", parts.join(","))
        }
        ("i:", index) => format!("[{index}]"),
        (_, value) => format!("[={value}]"),
    }
}
