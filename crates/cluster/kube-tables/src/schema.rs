//! The schemas, read once and kept for the life of the process (about 1 MB).

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

/// One node of a schema: a definition, a property or a list's items. A reference to another
/// definition is followed by every method, so that a node is what its place may hold.
#[derive(Debug, Default)]
pub struct Schema {
    kind: Type,
    format: Option<&'static str>,
    reference: Option<&'static str>,
    properties: Vec<(&'static str, Schema)>,
    items: Option<Box<Schema>>,
    additional: Option<Box<Schema>>,
    required: Vec<&'static str>,
    list_type: Option<ListType>,
    list_map_keys: Vec<&'static str>,
    map_is_atomic: bool,
    merge_key: Option<&'static str>,
    strategies: Vec<&'static str>,
    default: Option<Value>,
    kinds: Vec<[&'static str; 3]>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    /// A string such as `100m` or a number.
    Quantity,
    /// Anything: the schema says nothing about it.
    #[default]
    Any,
}

/// Who owns what in a list, for server-side apply.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

static DEFINITIONS: LazyLock<HashMap<&'static str, Schema>> = LazyLock::new(|| {
    let table = crate::table(include_bytes!("../data/schema.json.gz"));
    let Value::Object(definitions) = table else { return HashMap::new() };
    definitions.into_iter().map(|(name, it)| (leak(name), Schema::read(it))).collect()
});

static KINDS: LazyLock<HashMap<[&'static str; 3], (&'static str, &'static Schema)>> = LazyLock::new(|| {
    let mut kinds = HashMap::new();
    for (name, schema) in DEFINITIONS.iter() {
        // Options of requests belong to every group; they are found by their definition.
        if schema.kinds.len() < 5 {
            kinds.extend(schema.kinds.iter().map(|it| (*it, (*name, schema))));
        }
    }
    kinds
});

/// The schema of a built-in kind.
pub fn schema(group: &str, version: &str, kind: &str) -> Option<&'static Schema> {
    kind_of(group, version, kind).map(|(_, schema)| schema)
}

/// The name of a built-in kind's definition.
pub fn name_of(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    kind_of(group, version, kind).map(|(name, _)| name)
}

pub(crate) fn kind_of(group: &str, version: &str, kind: &str) -> Option<(&'static str, &'static Schema)> {
    KINDS.get(&[group, version, kind]).copied()
}

/// A definition by its official name, such as `io.k8s.api.core.v1.PodSpec`.
pub fn definition(name: &str) -> Option<&'static Schema> {
    DEFINITIONS.get(name)
}

/// All definitions by name, in no order.
pub fn definitions() -> impl Iterator<Item = (&'static str, &'static Schema)> {
    DEFINITIONS.iter().map(|(name, schema)| (*name, schema))
}

impl Schema {
    fn target(&self) -> &Schema {
        match self.reference {
            Some(name) => DEFINITIONS.get(name).unwrap_or(self),
            None => self,
        }
    }

    pub fn kind(&self) -> Type {
        self.target().kind
    }

    /// Such as `int32`, `int64`, `byte`, `date-time`.
    pub fn format(&self) -> Option<&'static str> {
        self.format.or(self.target().format)
    }

    /// The name of the definition that stands here, if it is one.
    pub fn reference(&self) -> Option<&'static str> {
        self.reference
    }

    pub fn property(&self, name: &str) -> Option<&Schema> {
        let properties = &self.target().properties;
        let at = properties.binary_search_by(|(it, _)| (*it).cmp(name)).ok()?;
        Some(&properties[at].1)
    }

    /// In the order of their names.
    pub fn properties(&self) -> impl Iterator<Item = (&'static str, &Schema)> {
        self.target().properties.iter().map(|(name, schema)| (*name, schema))
    }

    /// What the list holds.
    pub fn items(&self) -> Option<&Schema> {
        self.target().items.as_deref()
    }

    /// What a map with free keys holds.
    pub fn additional(&self) -> Option<&Schema> {
        self.target().additional.as_deref()
    }

    /// Whether unknown fields are kept here: an object about which nothing is said.
    pub fn is_free_form(&self) -> bool {
        let it = self.target();
        it.kind == Type::Any
            || (it.kind == Type::Object && it.properties.is_empty() && it.additional.is_none())
    }

    pub fn required(&self) -> &[&'static str] {
        &self.target().required
    }

    pub fn list_type(&self) -> ListType {
        self.list_type.or(self.target().list_type).unwrap_or_default()
    }

    pub fn list_map_keys(&self) -> &[&'static str] {
        match self.list_map_keys.is_empty() {
            true => &self.target().list_map_keys,
            false => &self.list_map_keys,
        }
    }

    /// Whether the object here has one owner as a whole.
    pub fn map_is_atomic(&self) -> bool {
        self.map_is_atomic || self.target().map_is_atomic
    }

    /// The field by which a strategic merge patch tells items of the list apart.
    pub fn merge_key(&self) -> Option<&'static str> {
        self.merge_key.or(self.target().merge_key)
    }

    /// Whether a strategic merge patch merges the list here instead of replacing it.
    pub fn merges(&self) -> bool {
        self.strategies.contains(&"merge")
    }

    /// Whether a strategic merge patch may say with `$retainKeys` which fields stay.
    pub fn retains_keys(&self) -> bool {
        self.strategies.contains(&"retainKeys")
    }

    pub fn default_value(&self) -> Option<&Value> {
        self.default.as_ref()
    }

    /// The node at a dotted path; lists are entered by `[]`: `spec.containers[].ports`.
    pub fn at(&self, path: &str) -> Option<&Schema> {
        let mut here = self;
        for step in path.split('.') {
            let name = step.trim_end_matches("[]");
            here = here.property(name)?;
            for _ in 0..(step.len() - name.len()) / 2 {
                here = here.items()?;
            }
        }
        Some(here)
    }

    fn read(value: Value) -> Schema {
        let Value::Object(mut fields) = value else { return Schema::default() };
        let mut schema = Schema::default();
        let text = |value: Option<Value>| match value {
            Some(Value::String(text)) => Some(leak(text)),
            _ => None,
        };
        schema.kind = match fields.get("type").and_then(Value::as_str) {
            Some("object") => Type::Object,
            Some("array") => Type::Array,
            Some("string") => Type::String,
            Some("integer") => Type::Integer,
            Some("number") => Type::Number,
            Some("boolean") => Type::Boolean,
            _ => match fields.get("oneOf").map(|it| &it[1]["type"]) {
                Some(it) if it == "integer" => Type::IntOrString,
                Some(_) => Type::Quantity,
                None => Type::Any,
            },
        };
        schema.format = text(fields.remove("format"));
        schema.reference = text(fields.remove("$ref")).and_then(|it| it.rsplit('/').next());
        if let Some(Value::Object(properties)) = fields.remove("properties") {
            schema.properties =
                properties.into_iter().map(|(name, it)| (leak(name), Schema::read(it))).collect();
            schema.properties.sort_by_key(|(name, _)| *name);
        }
        schema.items = fields.remove("items").map(|it| Box::new(Schema::read(it)));
        schema.additional = fields.remove("additionalProperties").map(|it| Box::new(Schema::read(it)));
        let texts = |value: Option<Value>| -> Vec<&'static str> {
            let Some(Value::Array(all)) = value else { return Vec::new() };
            all.into_iter().filter_map(|it| text(Some(it))).collect()
        };
        schema.required = texts(fields.remove("required"));
        schema.list_type = match text(fields.remove("x-kubernetes-list-type")) {
            Some("map") => Some(ListType::Map),
            Some("set") => Some(ListType::Set),
            Some(_) => Some(ListType::Atomic),
            None => None,
        };
        schema.list_map_keys = texts(fields.remove("x-kubernetes-list-map-keys"));
        schema.map_is_atomic = fields.get("x-kubernetes-map-type").is_some_and(|it| it == "atomic");
        schema.merge_key = text(fields.remove("x-kubernetes-patch-merge-key"));
        schema.strategies = text(fields.remove("x-kubernetes-patch-strategy"))
            .map(|it| it.split(',').collect())
            .unwrap_or_default();
        schema.default = fields.remove("default");
        if let Some(Value::Array(kinds)) = fields.remove("x-kubernetes-group-version-kind") {
            let name = |kind: &Value, field: &str| leak(kind[field].as_str().unwrap_or("").to_string());
            let read = |it: &Value| [name(it, "group"), name(it, "version"), name(it, "kind")];
            schema.kinds = kinds.iter().map(read).collect();
        }
        schema
    }
}

/// The tables live as long as the process.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_tell_what_clients_and_patches_need() {
        let deployment = schema("apps", "v1", "Deployment").expect("it is official");
        assert!(deployment.at("spec.strategy").expect("it is official").retains_keys());
        assert_eq!(deployment.at("spec").expect("it is official").required(), ["selector", "template"]);
        let port = deployment.at("spec.template.spec.containers[].ports[].protocol").expect("it is official");
        assert_eq!(port.default_value(), Some(&Value::from("TCP")));
        assert!(deployment.at("spec.selector").expect("it is official").map_is_atomic());
        assert!(
            deployment.at("spec.strategy.rollingUpdate.maxSurge").expect("it is").kind() == Type::IntOrString
        );
        let limits =
            deployment.at("spec.template.spec.containers[].resources.limits").expect("it is official");
        assert_eq!(limits.additional().map(Schema::kind), Some(Type::Quantity));
        assert!(deployment.at("metadata.managedFields[].fieldsV1").expect("it is official").is_free_form());
        assert!(deployment.at("spec.nonsense").is_none());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(schema: &Schema, missing: &mut Vec<&'static str>) {
            missing.extend(schema.reference.filter(|it| definition(it).is_none()));
            schema.properties.iter().for_each(|(_, it)| walk(it, missing));
            schema.items.iter().chain(&schema.additional).for_each(|it| walk(it, missing));
        }
        let mut missing = Vec::new();
        definitions().for_each(|(_, it)| walk(it, &mut missing));
        assert_eq!(missing, Vec::<&str>::new());
    }
}
