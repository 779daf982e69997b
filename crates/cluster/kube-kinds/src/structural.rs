//! What the schema of a declared kind says about values: which fields are kept, what is filled in,
//! what is wrong.
//!
//! What was wrong before an update and is as it was is let be, so that a stricter schema does not lock
//! the objects that are there.

mod check;
mod definition;
mod memo;

use serde_json::Value;

pub(crate) use check::check;
pub(crate) use definition::check_definition;
pub use memo::expression;

/// How deep a schema is followed: a bound against schemas that were built to hurt.
pub(crate) const DEPTH_MAX: usize = 64;

pub(crate) fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_string() } else { format!("{at}.{name}") }
}

/// Takes out what the schema does not know, and names it: `unknown field "spec.x"`.
pub(crate) fn prune(object: &mut Value, schema: &Value, findings: &mut Vec<String>) {
    prune_at(object, schema, "", true, findings, 0);
}

fn prune_at(
    value: &mut Value,
    schema: &Value,
    at: &str,
    is_resource: bool,
    findings: &mut Vec<String>,
    depth: usize,
) {
    if depth > DEPTH_MAX {
        return;
    }
    let embedded = |schema: &Value| schema["x-kubernetes-embedded-resource"] == true;
    match value {
        Value::Object(fields) => {
            let (properties, free) = (&schema["properties"], &schema["additionalProperties"]);
            let keeps =
                schema["x-kubernetes-preserve-unknown-fields"] == true || *free == true || free.is_object();
            fields.retain(|name, _| {
                let known = keeps
                    || properties.get(name).is_some()
                    || (is_resource && ["apiVersion", "kind", "metadata"].contains(&name.as_str()));
                if !known {
                    findings.push(format!("unknown field {:?}", join(at, name)));
                }
                known
            });
            for (name, field) in fields {
                if is_resource && name == "metadata" {
                    if !at.is_empty() {
                        prune_metadata(field, &join(at, name), findings);
                    }
                    continue;
                }
                let place = properties.get(name).unwrap_or(free);
                if place.is_object() {
                    prune_at(field, place, &join(at, name), embedded(place), findings, depth + 1);
                }
            }
        }
        Value::Array(items) if schema["items"].is_object() => {
            for (index, item) in items.iter_mut().enumerate() {
                let place = &schema["items"];
                prune_at(item, place, &format!("{at}[{index}]"), embedded(place), findings, depth + 1);
            }
        }
        _ => {}
    }
}

/// The metadata of an object within an object.
fn prune_metadata(metadata: &mut Value, at: &str, findings: &mut Vec<String>) {
    let (Some(fields), Some(known)) = (metadata.as_object_mut(), crate::decode::metadata_schema()) else {
        return;
    };
    fields.retain(|name, _| {
        let is_known = known.property(name).is_some();
        if !is_known {
            findings.push(format!("unknown field {:?}", join(at, name)));
        }
        is_known
    });
}

/// Whether the schema fills anything in.
pub(crate) fn has_defaults(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            fields.get("default").is_some_and(|it| !it.is_null()) || fields.values().any(has_defaults)
        }
        Value::Array(items) => items.iter().any(has_defaults),
        _ => false,
    }
}

/// Fills in the defaults of a schema.
pub fn fill(value: &mut Value, schema: &Value) {
    fill_at(value, schema, 0);
}

fn fill_at(value: &mut Value, schema: &Value, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let default = &property["default"];
                let missing = match fields.get(name) {
                    None => true,
                    Some(Value::Null) => property["nullable"] != true,
                    Some(_) => false,
                };
                if missing && !default.is_null() {
                    fields.insert(name.clone(), default.clone());
                } else if missing && fields.contains_key(name) {
                    // A null where none may be is as good as nothing.
                    fields.remove(name);
                }
                if let Some(field) = fields.get_mut(name) {
                    fill_at(field, property, depth + 1);
                }
            }
            let values = &schema["additionalProperties"];
            if values.is_object() {
                for (name, field) in fields.iter_mut() {
                    if schema["properties"].get(name).is_none() {
                        if field.is_null() && values["nullable"] != true && !values["default"].is_null() {
                            *field = values["default"].clone();
                        }
                        fill_at(field, values, depth + 1);
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                fill_at(item, &schema["items"], depth + 1);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["name"],
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is above max'", "fieldPath": ".min"},
                {"rule": "!has(oldSelf.name) || self.name == oldSelf.name", "message": "name is for ever", "reason": "FieldValueForbidden"}],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                "min": {"type": "integer", "minimum": 0}, "max": {"type": "integer", "default": 10},
                "port": {"x-kubernetes-int-or-string": true},
                "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                    "items": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}, "v": {"type": "integer", "maximum": 5}}}},
                "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                "when": {"type": "string", "format": "date-time"},
                "maybe": {"type": "string", "nullable": true}}}}})
    }

    #[track_caller]
    fn wrong(spec: Value, old: Option<Value>) -> Vec<String> {
        let mut causes = Vec::new();
        let old = old.map(|it| json!({"spec": it}));
        check(&json!({"spec": spec}), old.as_ref(), &schema(), &mut causes);
        causes.into_iter().map(|it| format!("{}: {}", it.field, it.message)).collect()
    }

    #[test]
    fn every_rule_of_a_schema_names_its_field() {
        let good = json!({"name": "a", "min": 1, "max": 2, "port": "http", "tags": ["x", "y"], "items": [{"id": "a"}, {"id": "b"}],
            "one": {"a": "x"}, "when": "2026-01-01T00:00:00Z", "maybe": null});
        assert_eq!(wrong(good.clone(), None), [""; 0]);
        for (field, value, told) in [
            (
                "name",
                json!("A"),
                "spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'",
            ),
            ("name", json!("abcdef"), "spec.name: Too long: may not be more than 5 bytes"),
            (
                "min",
                json!("1"),
                "spec.min: Invalid value: \"string\": spec.min in body must be of type integer: \"string\"",
            ),
            (
                "min",
                json!(-1),
                "spec.min: Invalid value: -1: spec.min in body should be greater than or equal to 0",
            ),
            ("min", json!(7), "spec.min: Invalid value: \"object\": min 7 is above max"),
            (
                "port",
                json!(true),
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ),
            ("tags", json!(["x", "x"]), "spec.tags[1]: Duplicate value: \"x\""),
            ("items", json!([{"id": "a"}, {"id": "a"}]), "spec.items[1]: Duplicate value: {\"id\":\"a\"}"),
            ("items", json!([{"v": 1}]), "spec.items[0].id: Required value"),
            (
                "one",
                json!({"a": "1", "b": "2"}),
                "spec.one: Invalid value: \"object\": spec.one in body must validate one and only one schema (oneOf)",
            ),
            (
                "when",
                json!("now"),
                "spec.when: Invalid value: \"now\": spec.when in body must be of type date-time: \"now\"",
            ),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert_eq!(wrong(bad, None), [told]);
        }
    }

    #[test]
    fn what_was_wrong_and_stays_as_it_was_is_let_be() {
        let old = json!({"name": "a", "min": 1, "max": 2, "items": [{"id": "a", "v": 9}]});
        let mut new = old.clone();
        new["max"] = json!(3);
        assert_eq!(wrong(new.clone(), Some(old.clone())), [""; 0]);
        new["items"][0]["v"] = json!(8);
        assert_eq!(wrong(new, Some(old.clone())).len(), 1);
        let mut renamed = old.clone();
        renamed["name"] = json!("b");
        assert_eq!(wrong(renamed, Some(old)), ["spec: Forbidden: name is for ever"]);
    }

    #[test]
    fn a_schema_that_is_not_structural_says_why() {
        let told = |schema: Value| {
            let mut causes = Vec::new();
            check_definition(&schema, "s", &mut causes);
            causes.into_iter().map(|it| it.field).collect::<Vec<_>>()
        };
        assert_eq!(told(schema()), [""; 0]);
        assert_eq!(told(json!({"type": "string"})), ["s.type"]);
        assert_eq!(
            told(json!({"type": "object", "properties": {"a": {}, "b": {"type": "array"},
                "c": {"type": "integer", "default": "x"}, "d": {"type": "string", "$ref": "#/x"},
                "e": {"type": "object", "x-kubernetes-validations": [{"rule": "self."}]},
                "f": {"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}}})),
            [
                "s.properties[a].type",
                "s.properties[b].items",
                "s.properties[c].default",
                "s.properties[d].$ref",
                "s.properties[e].x-kubernetes-validations[0].rule",
                "s.properties[f].x-kubernetes-list-map-keys[0]"
            ]
        );
    }

    #[test]
    fn unknown_fields_vanish_where_nothing_keeps_them() {
        let mut findings = Vec::new();
        let mut object = json!({"apiVersion": "x/v1", "metadata": {"name": "n"}, "odd": 1, "spec": {"name": "a", "odd": {}, "items": [{"id": "a", "odd": 1}]}});
        prune(&mut object, &schema(), &mut findings);
        assert_eq!(
            object,
            json!({"apiVersion": "x/v1", "metadata": {"name": "n"}, "spec": {"name": "a", "items": [{"id": "a"}]}})
        );
        findings.sort();
        assert_eq!(
            findings,
            ["unknown field \"odd\"", "unknown field \"spec.items[0].odd\"", "unknown field \"spec.odd\""]
        );
    }
}
