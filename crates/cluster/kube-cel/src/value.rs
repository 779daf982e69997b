//! JSON values as values of the language.

use std::collections::HashMap;
use std::sync::Arc;

use cel::Value;
use cel::objects::{Key, Map};
use serde_json::Value as Json;

/// Names of fields that are words of the language.
const RESERVED: [&str; 19] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
];

/// How an expression spells a field: `x-y` is `x__dash__y`, `namespace` is `__namespace__`.
pub fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}

pub fn from_json(value: &Json) -> Value {
    from_json_of(value, &Json::Null)
}

/// As `from_json`; the fields that the schema names are spelled as expressions spell them, and times
/// are times.
pub fn from_json_of(value: &Json, schema: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match number.as_i64() {
            Some(whole) if schema["type"] != "number" => Value::Int(whole),
            _ => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => match schema["format"].as_str() {
            Some("date-time") => chrono::DateTime::parse_from_rfc3339(text)
                .map_or_else(|_| Value::String(Arc::new(text.clone())), Value::Timestamp),
            _ => Value::String(Arc::new(text.clone())),
        },
        Json::Array(items) => {
            let place = &schema["items"];
            Value::List(Arc::new(items.iter().map(|it| from_json_of(it, place)).collect()))
        }
        Json::Object(fields) => {
            let properties = &schema["properties"];
            let fields: HashMap<Key, Value> = fields
                .iter()
                .map(|(name, field)| match properties.get(name) {
                    Some(place) => (Key::String(Arc::new(escape(name))), from_json_of(field, place)),
                    None => {
                        let place = &schema["additionalProperties"];
                        (Key::String(Arc::new(name.clone())), from_json_of(field, place))
                    }
                })
                .collect();
            Value::Map(Map { map: Arc::new(fields) })
        }
    }
}

/// A map of values that are of the language already.
pub fn map(fields: &HashMap<String, Value>) -> Value {
    let fields = fields.iter().map(|(name, value)| (Key::String(Arc::new(name.clone())), value.clone()));
    Value::Map(Map { map: Arc::new(fields.collect()) })
}

/// The length of the longest thing in a value; that of a text when texts are taken apart.
pub(crate) fn longest(value: &Value, texts: bool) -> u64 {
    match value {
        Value::List(items) => {
            items.iter().map(|it| longest(it, texts)).max().unwrap_or(0).max(items.len() as u64)
        }
        Value::Map(map) => {
            map.map.values().map(|it| longest(it, texts)).max().unwrap_or(0).max(map.map.len() as u64)
        }
        Value::String(text) if texts => text.len() as u64,
        _ => 1,
    }
}
