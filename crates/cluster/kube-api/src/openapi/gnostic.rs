//! The older document in its binary form, which Argo CD and old kubectls load: the messages of
//! gnostic's `OpenAPIv2.proto`, as far as Kubernetes uses them.

use serde_json::{Map, Value};

/// Fields of `openapi.v2.Schema` that hold a string.
const TEXTS: [(&str, u64); 4] = [("$ref", 1), ("format", 2), ("title", 3), ("description", 4)];

pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, document["swagger"].as_str().unwrap_or("2.0"));
    let mut info = Message::default();
    info.text(1, document["info"]["title"].as_str().unwrap_or_default());
    info.text(2, document["info"]["version"].as_str().unwrap_or_default());
    out.message(2, &info);
    // Clients of this form read definitions only; the paths say just that they exist.
    let mut paths = Message::default();
    for name in keys(&document["paths"]) {
        let mut path = Message::default();
        path.text(1, name);
        path.message(2, &Message::default());
        paths.message(2, &path);
    }
    out.message(8, &paths);
    out.message(9, &named(document["definitions"].as_object()));
    out.0
}

fn keys(value: &Value) -> impl Iterator<Item = &str> {
    value.as_object().into_iter().flatten().map(|(name, _)| name.as_str())
}

/// `Definitions` and `Properties` are alike: names with schemas.
fn named(schemas: Option<&Map<String, Value>>) -> Message {
    let mut out = Message::default();
    for (name, value) in schemas.into_iter().flatten() {
        let mut pair = Message::default();
        pair.text(1, name);
        pair.message(2, &schema(value));
        out.message(1, &pair);
    }
    out
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    for (name, tag) in TEXTS {
        if let Some(text) = value[name].as_str() {
            out.text(tag, text);
        }
    }
    if let Some(default) = value.get("default") {
        out.message(5, &any(default));
    }
    for name in value["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.text(19, name);
    }
    for word in value["enum"].as_array().into_iter().flatten() {
        out.message(20, &any(word));
    }
    if value["additionalProperties"].is_object() {
        let mut item = Message::default();
        item.message(1, &schema(&value["additionalProperties"]));
        out.message(21, &item);
    }
    if let Some(kind) = value["type"].as_str() {
        let mut item = Message::default();
        item.text(1, kind);
        out.message(22, &item);
    }
    if value["items"].is_object() {
        let mut item = Message::default();
        item.message(1, &schema(&value["items"]));
        out.message(23, &item);
    }
    if let Some(properties) = value["properties"].as_object() {
        out.message(25, &named(Some(properties)));
    }
    for (name, extension) in value.as_object().into_iter().flatten() {
        if name.starts_with("x-") {
            let mut pair = Message::default();
            pair.text(1, name);
            pair.message(2, &any(extension));
            out.message(31, &pair);
        }
    }
    out
}

/// `Any`, whose `yaml` is what readers use; JSON is YAML.
fn any(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(2, &value.to_string());
    out
}

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn text(&mut self, tag: u64, text: &str) {
        self.bytes(tag, text.as_bytes());
    }

    fn message(&mut self, tag: u64, message: &Message) {
        self.bytes(tag, &message.0);
    }

    fn bytes(&mut self, tag: u64, bytes: &[u8]) {
        self.varint(tag << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}
