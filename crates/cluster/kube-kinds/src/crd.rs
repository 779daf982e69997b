//! Kinds that users declare: a CustomResourceDefinition becomes rows of the table, and its schema
//! fills in defaults and finds mistakes.
//!
//! Not yet here: CEL rules, formats.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::columns::{Columns, DeclaredColumn};
use crate::{Cause, Kind, NameRule, Scale, Tier, defaults, list, text, validation};

/// How deep a schema is followed: a bound against schemas that were built to hurt.
const SCHEMA_DEPTH_MAX: usize = 64;

/// One kind per served version, the stored version first.
pub fn kinds_of(definition: &Value) -> Vec<Kind> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(String::from)).collect()
    };
    let mut versions: Vec<&Value> =
        list(spec, "/versions").iter().filter(|it| it["served"] == true).collect();
    versions.sort_by_key(|it| it["storage"] != true);
    versions
        .into_iter()
        .map(|version| {
            let scale = &version["subresources"]["scale"];
            Kind {
                group: text(spec, "/group").into(),
                version: text(version, "/name").into(),
                kind: text(names, "/kind").into(),
                plural: text(names, "/plural").into(),
                singular: match text(names, "/singular") {
                    "" => text(names, "/kind").to_lowercase(),
                    singular => singular.into(),
                },
                namespaced: spec["scope"] == "Namespaced",
                short_names: strings(&names["shortNames"]),
                categories: strings(&names["categories"]),
                has_status: version["subresources"]["status"].is_object(),
                scale: scale.is_object().then(|| Scale {
                    spec_replicas: pointer_of(text(scale, "/specReplicasPath")),
                    status_replicas: pointer_of(text(scale, "/statusReplicasPath")),
                    selector: Some(text(scale, "/labelSelectorPath"))
                        .filter(|it| !it.is_empty())
                        .map(pointer_of),
                }),
                subresources: &[],
                has_generation: true,
                names: NameRule::Subdomain,
                default: defaults::nothing,
                carry: |_, _| {},
                validate: validation::nothing,
                field: crate::table::no_field,
                columns: columns_of(version),
                warnings: crate::table::no_warnings,
                schema: version.pointer("/schema/openAPIV3Schema").map(|it| Arc::new(it.clone())),
                tier: Tier::Active,
                stored: None,
            }
        })
        .collect()
}

/// `.spec.replicas` as a JSON pointer.
fn pointer_of(path: &str) -> String {
    path.replace('.', "/")
}

fn columns_of(version: &Value) -> Columns {
    let declared = list(version, "/additionalPrinterColumns");
    if declared.is_empty() {
        return Columns::NAME_AND_AGE;
    }
    Columns::Declared(
        declared
            .iter()
            .map(|it| DeclaredColumn {
                name: text(it, "/name").into(),
                kind: text(it, "/type").into(),
                format: text(it, "/format").into(),
                description: text(it, "/description").into(),
                priority: crate::int(it, "/priority"),
                path: text(it, "/jsonPath").into(),
            })
            .collect(),
    )
}

/// The status that the API server gives a definition: this one serves it at once.
pub fn established_status(definition: &Value, now: &str) -> Value {
    let stored: Vec<&str> = list(definition, "/spec/versions")
        .iter()
        .filter(|it| it["storage"] == true)
        .map(|it| text(it, "/name"))
        .collect();
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message});
    json!({
        "acceptedNames": definition["spec"]["names"],
        "storedVersions": stored,
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
    })
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
    if depth > SCHEMA_DEPTH_MAX {
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

/// Fills in the defaults of a schema.
pub fn apply_defaults(object: &mut Value, schema: &Value) {
    fill(object, schema, 0);
}

fn fill(value: &mut Value, schema: &Value, depth: usize) {
    if depth > SCHEMA_DEPTH_MAX {
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
                }
                if let Some(field) = fields.get_mut(name) {
                    fill(field, property, depth + 1);
                }
            }
            if schema["additionalProperties"].is_object() {
                for (_, field) in fields.iter_mut() {
                    fill(field, &schema["additionalProperties"], depth + 1);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                fill(item, &schema["items"], depth + 1);
            }
        }
        _ => {}
    }
}

/// Checks types, required fields, enumerations, ranges and lengths.
pub fn check_schema(object: &Value, schema: &Value, causes: &mut Vec<Cause>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        // The API's own fields are checked elsewhere.
        if !["metadata", "apiVersion", "kind"].contains(&name.as_str())
            && let Some(value) = object.get(name)
        {
            check(value, property, name, causes, 0);
        }
    }
    required(object, schema, "", causes);
}

fn required(value: &Value, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    for name in list(schema, "/required").iter().filter_map(Value::as_str) {
        if value.get(name).is_none_or(Value::is_null) {
            causes.push(Cause::required(&join(at, name), ""));
        }
    }
}

fn join(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_string() } else { format!("{at}.{name}") }
}

fn check(value: &Value, schema: &Value, at: &str, causes: &mut Vec<Cause>, depth: usize) {
    if depth > SCHEMA_DEPTH_MAX || (value.is_null() && (schema["nullable"] == true || depth > 0)) {
        return;
    }
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    let fits = match schema["type"].as_str() {
        _ if int_or_string => value.is_string() || value.is_i64() || value.is_u64(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !fits {
        let expected = schema["type"].as_str().unwrap_or("integer or string");
        causes.push(Cause {
            reason: "FieldValueTypeInvalid",
            message: format!("Invalid value: {value}: must be of type {expected}"),
            field: at.to_string(),
        });
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed.iter().map(|it| it.as_str().unwrap_or("").to_string()).collect();
        let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
        causes.push(Cause::unsupported(at, value, &allowed));
    }
    if let Some(number) = value.as_f64() {
        if let Some(limit) = schema["minimum"].as_f64().filter(|it| number < *it) {
            causes.push(Cause::invalid(at, value, &format!("should be greater than or equal to {limit}")));
        }
        if let Some(limit) = schema["maximum"].as_f64().filter(|it| number > *it) {
            causes.push(Cause::invalid(at, value, &format!("should be less than or equal to {limit}")));
        }
    }
    let length = match value {
        Value::String(text) => Some((text.chars().count() as u64, "minLength", "maxLength")),
        Value::Array(items) => Some((items.len() as u64, "minItems", "maxItems")),
        Value::Object(fields) => Some((fields.len() as u64, "minProperties", "maxProperties")),
        _ => None,
    };
    if let Some((length, min, max)) = length {
        if let Some(limit) = schema[min].as_u64().filter(|it| length < *it) {
            causes.push(Cause::invalid(at, &json!(length), &format!("should have at least {limit}")));
        }
        if let Some(limit) = schema[max].as_u64().filter(|it| length > *it) {
            causes.push(Cause::invalid(at, &json!(length), &format!("should have at most {limit}")));
        }
    }
    match value {
        Value::Object(fields) => {
            required(value, schema, at, causes);
            for (name, field) in fields {
                let property = &schema["properties"][name];
                let property = if property.is_null() { &schema["additionalProperties"] } else { property };
                if property.is_object() {
                    check(field, property, &join(at, name), causes, depth + 1);
                }
            }
        }
        Value::Array(items) if schema["items"].is_object() => {
            for (index, item) in items.iter().enumerate() {
                check(item, &schema["items"], &format!("{at}[{index}]"), causes, depth + 1);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_kind_has_defaults_rules_and_columns() {
        let definition = json!({"spec": {"group": "naru.dev", "scope": "Namespaced",
            "names": {"plural": "runs", "kind": "Run", "shortNames": ["rn"]},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {"spec": {
                    "type": "object", "required": ["repo"], "properties": {
                        "repo": {"type": "string", "minLength": 1}, "tries": {"type": "integer", "default": 1, "maximum": 3},
                        "mode": {"type": "string", "enum": ["a", "b"]}}}}}}}]}});
        let kinds = kinds_of(&definition);
        assert_eq!(kinds[0].key("default", "x"), "naru.dev/runs/default/x");
        assert!(kinds[0].has_status);
        let schema = kinds[0].schema.as_deref().expect("a schema");
        let mut object = json!({"spec": {"repo": ""}});
        apply_defaults(&mut object, schema);
        assert_eq!(object["spec"]["tries"], 1);
        let fields = |object: &Value| {
            let mut causes = Vec::new();
            check_schema(object, schema, &mut causes);
            causes.into_iter().map(|it| it.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(&object), ["spec.repo"]);
        assert_eq!(fields(&json!({})), ["spec"]);
        assert_eq!(
            fields(&json!({"spec": {"tries": 9, "mode": "c"}})),
            ["spec.repo", "spec.mode", "spec.tries"]
        );
        assert_eq!(fields(&json!({"spec": {"repo": 3}})), ["spec.repo"]);
    }
}
