//! From what a client sends to what the API means: duplicate and unknown fields are found, types are
//! checked, amounts are written as Kubernetes writes them.
//!
//! Built-in kinds follow the official schemas, declared ones their own. What a declared kind says
//! about values (ranges, patterns, rules) is checked later, when its defaults are in place.

use std::cell::RefCell;

use kube_tables::{Schema, Type};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::structural::join;
use crate::{Failure, Kind, quantity, structural};

/// So many findings say enough about one body.
const FINDINGS_MAX: usize = 100;
/// Deeper than anything that is meant, and far from the end of the stack.
const DEPTH_MAX: usize = 100;

/// Parses JSON, and names the fields that an object has twice (the last one counts):
/// `duplicate field "spec.replicas"`.
pub fn parse(bytes: &[u8]) -> Result<(Value, Vec<String>), Failure> {
    let duplicates = RefCell::new(Vec::new());
    let mut input = serde_json::Deserializer::from_slice(bytes);
    let root = Node { path: &|| String::new(), duplicates: &duplicates };
    let value = root
        .deserialize(&mut input)
        .and_then(|value| input.end().map(|()| value))
        .map_err(|error| Failure::bad_request(format!("the body is not JSON: {error}")))?;
    Ok((value, duplicates.into_inner()))
}

/// A value on its way in. The path is made only when it is needed.
struct Node<'a> {
    path: &'a dyn Fn() -> String,
    duplicates: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let index = list.len();
            let path = || format!("{}[{index}]", (self.path)());
            match items.next_element_seed(Node { path: &path, duplicates: self.duplicates })? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let path = || join(&(self.path)(), &name);
            let value = fields.next_value_seed(Node { path: &path, duplicates: self.duplicates })?;
            if map.contains_key(&name) {
                let mut duplicates = self.duplicates.borrow_mut();
                if duplicates.len() < FINDINGS_MAX {
                    duplicates.push(format!("duplicate field {:?}", path()));
                }
            }
            map.insert(name, value);
        }
        if map.len() > u32::MAX as usize {
            return Err(A::Error::custom("an object has too many fields"));
        }
        Ok(Value::Object(map))
    }
}

/// Makes the object one of its kind: unknown fields are taken out and named
/// (`unknown field "spec.x"`), values of a wrong type are refused with 400, nulls vanish, amounts
/// get their usual form.
pub fn conform(kind: &Kind, object: &mut Value) -> Result<Vec<String>, Failure> {
    let mut walk = Walk { findings: Vec::new(), wrong: None };
    if !object.is_object() {
        return Err(Failure::bad_request("the body must be an object"));
    }
    match &kind.schema {
        Some(schema) => {
            if let (Some(metadata), Some(of_all)) = (object.get_mut("metadata"), metadata_schema()) {
                walk.official(metadata, of_all, "metadata", 0);
            }
            structural::prune(object, schema, &mut walk.findings);
        }
        None => {
            if let Some(schema) = kube_tables::schema(&kind.group, &kind.version, &kind.kind) {
                walk.official(object, schema, "", 0);
            }
        }
    }
    match walk.wrong {
        Some(why) => Err(Failure::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            kind.kind, kind.version, kind.kind
        ))),
        None => {
            walk.findings.truncate(FINDINGS_MAX);
            Ok(walk.findings)
        }
    }
}

pub(crate) fn metadata_schema() -> Option<&'static Schema> {
    kube_tables::definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
}

struct Walk {
    findings: Vec<String>,
    /// The first value that cannot be what it should.
    wrong: Option<String>,
}

impl Walk {
    fn fail(&mut self, value: &Value, at: &str, expected: &str) {
        let given = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.wrong.get_or_insert_with(|| {
            format!("json: cannot unmarshal {given} into Go struct field {at} of type {expected}")
        });
    }

    fn official(&mut self, value: &mut Value, schema: &'static Schema, at: &str, depth: usize) {
        if depth > DEPTH_MAX || value.is_null() || schema.is_free_form() {
            return;
        }
        match schema.kind() {
            Type::Object => match value {
                Value::Object(map) => self.fields(map, schema, at, depth),
                other => self.fail(other, at, "object"),
            },
            Type::Array => match value {
                Value::Array(items) => {
                    let Some(of_items) = schema.items() else { return };
                    for (index, item) in items.iter_mut().enumerate() {
                        self.official(item, of_items, &format!("{at}[{index}]"), depth + 1);
                    }
                }
                other => self.fail(other, at, "[]"),
            },
            Type::String => match (&*value, schema.format()) {
                (Value::String(text), Some("byte")) => {
                    if !is_base64(text) {
                        self.wrong.get_or_insert_with(|| format!("illegal base64 data in {at}"));
                    }
                }
                (Value::String(text), Some("date-time")) => {
                    if text.parse::<jiff::Timestamp>().is_err() {
                        self.wrong.get_or_insert_with(|| {
                            format!("parsing time {text:?} in {at}: not a time such as 2006-01-02T15:04:05Z")
                        });
                    }
                }
                (Value::String(_), _) => {}
                (other, _) => self.fail(other, at, "string"),
            },
            Type::Integer => self.integer(value, schema.format(), at),
            Type::Number => {
                if !value.is_number() {
                    self.fail(value, at, "float64");
                }
            }
            Type::Boolean => {
                if !value.is_boolean() {
                    self.fail(value, at, "bool");
                }
            }
            Type::IntOrString => {
                if value.is_number() {
                    self.integer(value, Some("int32"), at);
                } else if !value.is_string() {
                    self.fail(value, at, "intstr.IntOrString");
                }
            }
            Type::Quantity => {
                let text = match &*value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    other => return self.fail(other, at, "resource.Quantity"),
                };
                match quantity::canonical(&text) {
                    Some(canonical) => *value = canonical.into(),
                    None => {
                        self.wrong.get_or_insert_with(|| {
                            format!("{at}: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$', not {text:?}")
                        });
                    }
                }
            }
            Type::Any => {}
        }
    }

    fn fields(&mut self, map: &mut Map<String, Value>, schema: &'static Schema, at: &str, depth: usize) {
        let findings = &mut self.findings;
        map.retain(|name, value| {
            let known = schema.property(name).or(schema.additional());
            let Some(place) = known else {
                findings.push(format!("unknown field {:?}", join(at, name)));
                return false;
            };
            // Times that have not come yet are spelled out; any other nothing is left out.
            let is_time = place.format() == Some("date-time") && name != "creationTimestamp";
            !value.is_null()
                || is_time
                || schema.additional().is_some()
                || schema.required().contains(&name.as_str())
        });
        for (name, value) in map {
            if let Some(place) = schema.property(name).or(schema.additional()) {
                self.official(value, place, &join(at, name), depth + 1);
            }
        }
    }

    fn integer(&mut self, value: &mut Value, format: Option<&str>, at: &str) {
        if let Some(whole) =
            value.as_f64().filter(|it| value.is_f64() && it.fract() == 0.0 && it.abs() < 9e15)
        {
            *value = Value::from(whole as i64);
        }
        let fits = match (value.as_i64(), format) {
            (Some(number), Some("int32")) => i32::try_from(number).is_ok(),
            (Some(_), _) => true,
            (None, _) => false,
        };
        if !fits {
            self.fail(value, at, format.unwrap_or("int64"));
        }
    }
}

/// Standard base64 with its padding; line ends are allowed.
pub(crate) fn is_base64(text: &str) -> bool {
    let letters: Vec<u8> = text.bytes().filter(|it| !b"\r\n".contains(it)).collect();
    let padding = letters.iter().rev().take_while(|it| **it == b'=').count();
    letters.len().is_multiple_of(4)
        && padding <= 2
        && letters[..letters.len() - padding]
            .iter()
            .all(|it| it.is_ascii_alphanumeric() || *it == b'+' || *it == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;
    use serde_json::json;

    #[test]
    fn duplicates_are_named_where_they_are() {
        let (value, duplicates) = parse(br#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": 3}"#).expect("it is JSON");
        assert_eq!(value, json!({"a": 3, "b": [{"c": 2}]}));
        assert_eq!(duplicates, ["duplicate field \"b[0].c\"", "duplicate field \"a\""]);
        assert!(parse(b"{} x").is_err());
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err(), "depth has a limit");
    }

    #[test]
    fn unknown_fields_are_named_and_taken_out() {
        let kind = table::find("apps", "v1", "deployments").expect("built in");
        let mut object = json!({"metadata": {"labels": {"x": "y"}, "odd": 1}, "spec": {"replicas": 2.0, "foo": {},
            "template": {"metadata": {"creationTimestamp": null}, "spec": {"containers": [{"name": "a", "bar": 1,
                "resources": {"limits": {"cpu": "1000m", "memory": 1024}}}]}}}});
        assert_eq!(
            conform(kind, &mut object).expect("the types fit"),
            [
                "unknown field \"metadata.odd\"",
                "unknown field \"spec.foo\"",
                "unknown field \"spec.template.spec.containers[0].bar\""
            ]
        );
        assert_eq!(
            object["spec"],
            json!({"replicas": 2, "template": {"metadata": {}, "spec": {"containers": [{"name": "a",
                "resources": {"limits": {"cpu": "1", "memory": "1024"}}}]}}})
        );
    }

    #[test]
    fn values_of_a_wrong_type_are_refused() {
        let kind = table::find("apps", "v1", "deployments").expect("built in");
        for (spec, why) in [
            (
                json!({"replicas": "2"}),
                "cannot unmarshal string into Go struct field spec.replicas of type int32",
            ),
            (
                json!({"replicas": 3_000_000_000i64}),
                "number into Go struct field spec.replicas of type int32",
            ),
            (json!({"template": []}), "cannot unmarshal array into Go struct field spec.template"),
            (json!({"paused": 1}), "of type bool"),
        ] {
            let failure = conform(kind, &mut json!({"spec": spec})).expect_err("refused");
            assert_eq!(failure.code, 400);
            assert!(failure.message.contains(why), "{}", failure.message);
        }
        let secret = table::find("", "v1", "secrets").expect("built in");
        assert!(conform(secret, &mut json!({"data": {"a": "YQ=="}})).is_ok());
        assert!(conform(secret, &mut json!({"data": {"a": "Y?=="}})).is_err());
    }
}
