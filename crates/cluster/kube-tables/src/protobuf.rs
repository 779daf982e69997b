//! Protobuf request bodies as JSON values, decoded by the tables: the schema tells the types, the
//! tags tell the names.
//!
//! Encoders write every scalar that is not a pointer, so an empty one means "not given" unless the
//! schema requires it; for a pointer it means what it says.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

use crate::schema::{Schema, Type, definition, kind_of};

/// What every Kubernetes protobuf body begins with.
const MAGIC: &[u8] = b"k8s\0";
const DEPTH_MAX: usize = 64;
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const EXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("the body does not begin with the magic number of Kubernetes protobuf")]
    Magic,
    #[error("the body ends in the middle of {what}")]
    Truncated { what: &'static str },
    #[error("the body is not well formed: {what}")]
    Malformed { what: &'static str },
    #[error("messages are nested deeper than {DEPTH_MAX}")]
    TooDeep,
    #[error("the field {path} is not of the type that the schema gives it")]
    Type { path: String },
    #[error("no kind {kind} in {api_version}")]
    UnknownKind { api_version: String, kind: String },
}

struct Field {
    tag: u64,
    /// `<definition>` when the fields of another message stand in this one.
    name: String,
    pointer: bool,
}

static MESSAGES: LazyLock<HashMap<String, Vec<Field>>> = LazyLock::new(|| {
    let table = crate::table(include_bytes!("../data/protobuf.json.gz"));
    let Value::Object(messages) = table else { return HashMap::new() };
    let field = |it: &Value| Field {
        tag: it[0].as_u64().unwrap_or(0),
        name: it[1].as_str().unwrap_or("").to_string(),
        pointer: it[2] == 1,
    };
    let fields = |it: Value| it.as_array().into_iter().flatten().map(field).collect();
    messages.into_iter().map(|(name, it)| (name, fields(it))).collect()
});

/// A body of type `application/vnd.kubernetes.protobuf` as the JSON value that it stands for:
/// the magic number, then `runtime.Unknown` with the type and the message.
pub fn decode(body: &[u8]) -> Result<Value, DecodeError> {
    let body = body.strip_prefix(MAGIC).ok_or(DecodeError::Magic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &body[..0]);
    for field in Fields(body) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = utf8(text, "apiVersion")?,
                        (2, Wire::Bytes(text)) => kind = utf8(text, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let name = match kind_of(group, version, &kind) {
        Some((name, _)) => name.to_string(),
        // Options belong to every group.
        None if kind.ends_with("Options") => format!("{META}.{kind}"),
        None => return Err(DecodeError::UnknownKind { api_version, kind }),
    };
    let mut object = Map::new();
    object.insert("apiVersion".into(), Value::String(api_version));
    object.insert("kind".into(), Value::String(kind));
    let Some(schema) = definition(&name) else {
        return Err(DecodeError::Malformed { what: "an unknown kind" });
    };
    message(&name, schema, raw, "", &mut object, 0)?;
    Ok(Value::Object(object))
}

/// Adds the fields of a message to an object.
fn message(
    name: &str,
    schema: &Schema,
    bytes: &[u8],
    path: &str,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), DecodeError> {
    if depth > DEPTH_MAX {
        return Err(DecodeError::TooDeep);
    }
    let known = MESSAGES.get(name).map(Vec::as_slice).unwrap_or_default();
    for wire in Fields(bytes) {
        let (tag, wire) = wire?;
        // A newer client's field that this version does not know.
        let Some(field) = known.iter().find(|it| it.tag == tag) else { continue };
        if let Some(inlined) = field.name.strip_prefix('<') {
            let Wire::Bytes(bytes) = wire else { return Err(DecodeError::Type { path: path.into() }) };
            message(inlined.trim_end_matches('>'), schema, bytes, path, object, depth + 1)?;
            continue;
        }
        let path = format!("{path}.{}", field.name);
        let Some(property) = schema.property(&field.name) else { continue };
        match property.kind() {
            Type::Array => {
                let place = object.entry(field.name.as_str()).or_insert_with(|| Value::Array(Vec::new()));
                let (Value::Array(list), Some(items)) = (place, property.items()) else { continue };
                match wire {
                    // Numbers may come packed.
                    Wire::Bytes(packed) if matches!(items.kind(), Type::Integer | Type::Boolean) => {
                        let mut rest = packed;
                        while !rest.is_empty() {
                            list.push(scalar(items, &Wire::Varint(varint(&mut rest)?), &path, depth)?);
                        }
                    }
                    wire => list.push(scalar(items, &wire, &path, depth)?),
                }
            }
            Type::Object if property.additional().is_some() => {
                let Some(values) = property.additional() else { continue };
                let Wire::Bytes(entry) = wire else { return Err(DecodeError::Type { path }) };
                let place = object.entry(field.name.as_str()).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = place else { continue };
                let (mut key, mut value) = (String::new(), None);
                for part in Fields(entry) {
                    match part? {
                        (1, Wire::Bytes(text)) => key = utf8(text, &path)?,
                        (2, wire) => value = Some(map_value(values, &wire, &path, depth)?),
                        _ => {}
                    }
                }
                map.insert(key, value.unwrap_or_else(|| empty(values)));
            }
            _ => {
                let value = scalar(property, &wire, &path, depth)?;
                let given = field.pointer || schema.required().contains(&field.name.as_str());
                if given || !is_empty(&value) {
                    object.insert(field.name.clone(), value);
                }
            }
        }
    }
    Ok(())
}

/// Lists as values of a map travel in a message with one repeated field.
fn map_value(schema: &Schema, wire: &Wire<'_>, path: &str, depth: usize) -> Result<Value, DecodeError> {
    let (Type::Array, Wire::Bytes(bytes), Some(items)) = (schema.kind(), wire, schema.items()) else {
        return scalar(schema, wire, path, depth);
    };
    let mut list = Vec::new();
    for part in Fields(bytes) {
        list.push(scalar(items, &part?.1, path, depth)?);
    }
    Ok(Value::Array(list))
}

/// Anything but a list and a map with free keys.
fn scalar(schema: &Schema, wire: &Wire<'_>, path: &str, depth: usize) -> Result<Value, DecodeError> {
    let wrong = || DecodeError::Type { path: path.into() };
    if let (Some(name), Wire::Bytes(bytes)) = (schema.reference(), wire)
        && let Some(value) = special(name, bytes, path, depth)?
    {
        return Ok(value);
    }
    match (schema.kind(), wire) {
        (Type::String, Wire::Bytes(bytes)) if schema.format() == Some("byte") => {
            Ok(Value::String(STANDARD.encode(bytes)))
        }
        (Type::String, Wire::Bytes(bytes)) => Ok(Value::String(utf8(bytes, path)?)),
        (Type::Integer, Wire::Varint(number)) if schema.format() == Some("int32") => {
            Ok(Value::from(*number as i32))
        }
        (Type::Integer, Wire::Varint(number)) => Ok(Value::from(*number as i64)),
        (Type::Boolean, Wire::Varint(number)) => Ok(Value::Bool(*number != 0)),
        (Type::Number, Wire::Fixed64(bits)) => {
            Number::from_f64(f64::from_bits(*bits)).map(Value::Number).ok_or_else(wrong)
        }
        (Type::Object, Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            if let Some(name) = schema.reference() {
                message(name, schema, bytes, path, &mut object, depth + 1)?;
            }
            Ok(Value::Object(object))
        }
        // Lists of lists travel as messages with one repeated field.
        (Type::Array, wire) => map_value(schema, wire, path, depth),
        _ => Err(wrong()),
    }
}

/// Messages whose JSON form is not an object of their fields.
fn special(name: &str, bytes: &[u8], path: &str, depth: usize) -> Result<Option<Value>, DecodeError> {
    let wrong = || DecodeError::Type { path: path.into() };
    let value = match name.rsplit('.').next().unwrap_or(name) {
        "Quantity" => match first(bytes, 1)? {
            Some(Wire::Bytes(text)) => Value::String(utf8(text, path)?),
            _ => Value::String("0".into()),
        },
        "Time" | "MicroTime" | "Timestamp" if name.starts_with(META) => {
            let number = |wire| match wire {
                Some(Wire::Varint(number)) => number as i64,
                _ => 0,
            };
            let (seconds, nanos) = (number(first(bytes, 1)?), number(first(bytes, 2)?));
            if bytes.is_empty() {
                return Ok(Some(Value::Null));
            }
            let nanos = i32::try_from(nanos).map_err(|_| wrong())?;
            let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| wrong())?;
            Value::String(match name.ends_with("MicroTime") {
                true => time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
                false => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            })
        }
        "IntOrString" => match (first(bytes, 1)?, first(bytes, 2)?, first(bytes, 3)?) {
            (Some(Wire::Varint(1)), _, Some(Wire::Bytes(text))) => Value::String(utf8(text, path)?),
            (Some(Wire::Varint(1)), _, _) => Value::String(String::new()),
            (_, Some(Wire::Varint(number)), _) => Value::from(number as i32),
            _ => Value::from(0),
        },
        "RawExtension" | "FieldsV1" => match first(bytes, 1)? {
            Some(Wire::Bytes(text)) => serde_json::from_slice(text).map_err(|_| wrong())?,
            _ => Value::Null,
        },
        "JSON" if name.starts_with(EXTENSIONS) => match first(bytes, 1)? {
            Some(Wire::Bytes(text)) => serde_json::from_slice(text).map_err(|_| wrong())?,
            _ => Value::Null,
        },
        "JSONSchemaPropsOrBool" => match (first(bytes, 1)?, first(bytes, 2)?) {
            (_, Some(Wire::Bytes(schema))) => json_schema(schema, path, depth)?,
            (allows, _) => Value::Bool(matches!(allows, Some(Wire::Varint(1)))),
        },
        "JSONSchemaPropsOrArray" => match first(bytes, 1)? {
            Some(Wire::Bytes(schema)) => json_schema(schema, path, depth)?,
            _ => {
                let all = Fields(bytes).filter_map(|it| match it {
                    Ok((2, Wire::Bytes(schema))) => Some(json_schema(schema, path, depth)),
                    _ => None,
                });
                Value::Array(all.collect::<Result<_, _>>()?)
            }
        },
        "JSONSchemaPropsOrStringArray" => match first(bytes, 1)? {
            Some(Wire::Bytes(schema)) => json_schema(schema, path, depth)?,
            _ => {
                let all = Fields(bytes).filter_map(|it| match it {
                    Ok((2, Wire::Bytes(text))) => Some(utf8(text, path).map(Value::String)),
                    _ => None,
                });
                Value::Array(all.collect::<Result<_, _>>()?)
            }
        },
        _ => return Ok(None),
    };
    Ok(Some(value))
}

fn json_schema(bytes: &[u8], path: &str, depth: usize) -> Result<Value, DecodeError> {
    let name = format!("{EXTENSIONS}.JSONSchemaProps");
    let mut object = Map::new();
    if let Some(schema) = definition(&name) {
        message(&name, schema, bytes, path, &mut object, depth + 1)?;
    }
    Ok(Value::Object(object))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(it) => !it,
        Value::Number(it) => it.as_f64() == Some(0.0),
        Value::String(it) => it.is_empty(),
        Value::Array(it) => it.is_empty(),
        Value::Object(it) => it.is_empty(),
    }
}

fn empty(schema: &Schema) -> Value {
    match schema.kind() {
        Type::Integer | Type::Number => Value::from(0),
        Type::Boolean => Value::Bool(false),
        Type::Object => Value::Object(Map::new()),
        Type::Array => Value::Array(Vec::new()),
        _ => Value::String(String::new()),
    }
}

fn utf8(bytes: &[u8], path: &str) -> Result<String, DecodeError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_string()),
        Err(_) => Err(DecodeError::Type { path: path.into() }),
    }
}

#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The last field with this tag, as protobuf has it.
fn first(bytes: &[u8], wanted: u64) -> Result<Option<Wire<'_>>, DecodeError> {
    let mut found = None;
    for field in Fields(bytes) {
        let (tag, wire) = field?;
        if tag == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

/// The fields of a message; ends at the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = read_field(&mut self.0);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn read_field<'a>(rest: &mut &'a [u8]) -> Result<(u64, Wire<'a>), DecodeError> {
    let key = varint(rest)?;
    let wire = match key & 7 {
        0 => Wire::Varint(varint(rest)?),
        1 => {
            let bytes: [u8; 8] = take(rest, 8)?.try_into().expect("eight bytes were taken");
            Wire::Fixed64(u64::from_le_bytes(bytes))
        }
        2 => {
            let length = usize::try_from(varint(rest)?)
                .map_err(|_| DecodeError::Malformed { what: "a length beyond memory" })?;
            Wire::Bytes(take(rest, length)?)
        }
        5 => {
            take(rest, 4)?;
            Wire::Fixed32
        }
        _ => return Err(DecodeError::Malformed { what: "an unknown wire type" }),
    };
    match key >> 3 {
        0 => Err(DecodeError::Malformed { what: "a field without a number" }),
        tag => Ok((tag, wire)),
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], DecodeError> {
    let (taken, left) = rest.split_at_checked(count).ok_or(DecodeError::Truncated { what: "a field" })?;
    *rest = left;
    Ok(taken)
}

fn varint(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let [byte, left @ ..] = *rest else { return Err(DecodeError::Truncated { what: "a number" }) };
        *rest = left;
        if shift < 64 {
            value |= u64::from(byte & 0x7f) << shift;
        }
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(DecodeError::Malformed { what: "a number of more than ten bytes" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn field(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag << 3 | 2, content.len() as u8];
        bytes.extend(content);
        bytes
    }

    fn number(tag: u8, value: u8) -> Vec<u8> {
        vec![tag << 3, value]
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn what_was_given_stays_and_what_encoders_fill_in_goes() {
        let metadata = [field(1, b"web"), field(2, b""), field(8, b"")].concat();
        // replicas is a pointer, minReadySeconds is not.
        let spec = [number(1, 0), number(5, 0)].concat();
        let raw = [field(1, &metadata), field(2, &spec), field(3, b"")].concat();
        let object = decode(&body("apps/v1", "Deployment", &raw)).expect("it is well formed");
        assert_eq!(
            object,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
                "spec": {"replicas": 0}})
        );
    }

    #[test]
    fn maps_bytes_and_inlined_messages() {
        let entry = [field(1, b"key"), field(2, b"\xff")].concat();
        let object = decode(&body("v1", "Secret", &field(2, &entry))).expect("it is well formed");
        assert_eq!(object["data"], json!({"key": "/w=="}));
        let source = field(2, &field(2, b""));
        let volume = [field(1, b"tmp"), source].concat();
        let raw = field(2, &field(1, &volume));
        let object = decode(&body("v1", "Pod", &raw)).expect("it is well formed");
        assert_eq!(object["spec"]["volumes"], json!([{"name": "tmp", "emptyDir": {}}]));
    }

    #[test]
    fn rubbish_is_an_error_and_never_more() {
        assert_eq!(decode(b"{}"), Err(DecodeError::Magic));
        let good = body("v1", "Pod", &field(1, &field(1, b"x")));
        for end in 5..good.len() {
            let _ = decode(&good[..end]);
        }
        for at in 4..good.len() {
            for byte in 0..=255 {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = decode(&bad);
            }
        }
        assert!(matches!(decode(&body("v1", "Nonsense", b"")), Err(DecodeError::UnknownKind { .. })));
    }
}
