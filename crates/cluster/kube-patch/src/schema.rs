//! What the place of a value is: which lists are sets or maps in disguise, which maps have one owner.
//! By the official tables for built-in kinds, by the schema for declared ones; where nothing is
//! declared, maps are granular and lists are one value.

use kube_tables::{ListType as Official, Schema, Type};
use serde_json::Value;

/// A place in the shape of an object. Cheap to copy.
#[derive(Clone, Copy)]
pub struct Shape<'a>(Place<'a>);

#[derive(Clone, Copy)]
enum Place<'a> {
    Official(&'static Schema),
    /// The root of a declared kind: its metadata is that of every kind.
    Root(&'a Value),
    Declared(&'a Value),
    /// Nothing is known about it.
    Free,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListType<'a> {
    /// Items are told apart by these fields.
    Map(Vec<&'a str>),
    Set,
    Atomic,
}

const METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl<'a> Shape<'a> {
    /// A kind of the official tables; of an unknown one nothing is known.
    pub fn built_in(group: &str, version: &str, kind: &str) -> Shape<'static> {
        Shape(kube_tables::schema(group, version, kind).map_or(Place::Free, Place::Official))
    }

    /// A kind with an OpenAPI v3 schema.
    pub fn declared(schema: &'a Value) -> Shape<'a> {
        Shape(Place::Root(schema))
    }

    /// The place of a field, and whether the schema names it.
    pub(crate) fn field(&self, name: &str) -> (Shape<'a>, bool) {
        let (place, named) = match self.0 {
            Place::Official(schema) => match schema.property(name) {
                Some(property) => (Place::Official(property), true),
                None => (schema.additional().map_or(Place::Free, Place::Official), false),
            },
            Place::Root(_) if name == "metadata" => {
                (kube_tables::definition(METADATA).map_or(Place::Free, Place::Official), true)
            }
            Place::Root(_) if name == "apiVersion" || name == "kind" => (Place::Free, true),
            Place::Root(schema) | Place::Declared(schema) => match schema["properties"].get(name) {
                Some(property) => (Place::Declared(property), true),
                None => match &schema["additionalProperties"] {
                    values if values.is_object() => (Place::Declared(values), false),
                    _ => (Place::Free, false),
                },
            },
            Place::Free => (Place::Free, false),
        };
        (Shape(place), named)
    }

    pub(crate) fn items(&self) -> Shape<'a> {
        Shape(match self.0 {
            Place::Official(schema) => schema.items().map_or(Place::Free, Place::Official),
            Place::Root(schema) | Place::Declared(schema) => match &schema["items"] {
                items if items.is_object() => Place::Declared(items),
                _ => Place::Free,
            },
            Place::Free => Place::Free,
        })
    }

    /// How server-side apply sees the list here.
    pub(crate) fn list_type(&self) -> ListType<'a> {
        match self.0 {
            Place::Official(schema) => match schema.list_type() {
                Official::Map => ListType::Map(schema.list_map_keys().to_vec()),
                Official::Set => ListType::Set,
                Official::Atomic => ListType::Atomic,
            },
            Place::Root(schema) | Place::Declared(schema) => {
                match schema["x-kubernetes-list-type"].as_str() {
                    Some("map") => {
                        let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                        ListType::Map(keys.filter_map(Value::as_str).collect())
                    }
                    Some("set") => ListType::Set,
                    _ => ListType::Atomic,
                }
            }
            Place::Free => ListType::Atomic,
        }
    }

    /// Whether the map here has one owner as a whole.
    pub(crate) fn map_is_atomic(&self) -> bool {
        match self.0 {
            Place::Official(schema) => schema.map_is_atomic(),
            Place::Root(schema) | Place::Declared(schema) => schema["x-kubernetes-map-type"] == "atomic",
            Place::Free => false,
        }
    }

    /// Key fields that a client may leave out, because they have a default. Asked of a list's items.
    pub(crate) fn key_default(&self, key: &str) -> Option<&'a Value> {
        match self.0 {
            Place::Official(schema) => schema.property(key)?.default_value(),
            Place::Root(schema) | Place::Declared(schema) => {
                Some(&schema["properties"][key]["default"]).filter(|it| !it.is_null())
            }
            Place::Free => None,
        }
    }

    /// Whether a value of this JSON type belongs here. Where types are mixed, anything does.
    pub(crate) fn fits(&self, value: &Value) -> bool {
        let expected = match self.0 {
            Place::Official(schema) if schema.is_free_form() => return true,
            Place::Official(schema) => match schema.kind() {
                Type::Object => "object",
                Type::Array => "array",
                Type::Any => return true,
                _ => "scalar",
            },
            Place::Root(schema) | Place::Declared(schema) => {
                if schema["x-kubernetes-preserve-unknown-fields"] == true && schema["type"].is_null() {
                    return true;
                }
                match schema["type"].as_str() {
                    Some("object") => "object",
                    Some("array") => "array",
                    Some(_) => "scalar",
                    None if schema["x-kubernetes-int-or-string"] == true => "scalar",
                    None => return true,
                }
            }
            Place::Free => return true,
        };
        match value {
            Value::Null => true,
            Value::Object(_) => expected == "object",
            Value::Array(_) => expected == "array",
            _ => expected == "scalar",
        }
    }

    /// The one field by which a strategic merge patch tells items apart.
    pub(crate) fn merge_key(&self) -> Option<&'static str> {
        match self.0 {
            Place::Official(schema) if schema.merges() => schema.merge_key(),
            _ => None,
        }
    }

    /// Whether a strategic merge patch adds to the list of plain values here.
    pub(crate) fn merges_plain_values(&self) -> bool {
        matches!(self.0, Place::Official(schema) if schema.merges() && schema.merge_key().is_none())
    }
}
