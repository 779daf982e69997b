//! A schema itself: whether it is structural, its defaults fit it and its rules can be compiled.

use serde_json::Value;

use super::{DEPTH_MAX, check, fill, memo};
use crate::{Cause, list, text};

/// Words of OpenAPI that a structural schema does not have.
const FORBIDDEN: [&str; 8] = [
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "patternProperties",
    "readOnly",
    "xml",
];

/// Everything that is wrong with the schema of a version.
pub(crate) fn check_definition(schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    if schema["type"] != "object" {
        if schema["type"].is_null() {
            causes.push(Cause::required(&format!("{at}.type"), "must not be empty at the root"));
        } else {
            causes.push(Cause::invalid(&format!("{at}.type"), &schema["type"], "must be object at the root"));
        }
    }
    node(schema, at, true, causes, 0);
}

fn node(schema: &Value, at: &str, is_root: bool, causes: &mut Vec<Cause>, depth: usize) {
    if depth > DEPTH_MAX {
        causes.push(Cause::forbidden(at, "the schema is nested too deeply"));
        return;
    }
    let field = |name: &str| format!("{at}.{name}");
    let is_free = schema["x-kubernetes-preserve-unknown-fields"] == true
        || schema["x-kubernetes-int-or-string"] == true;
    let types = ["array", "boolean", "integer", "number", "object", "string"];
    match schema["type"].as_str() {
        None if !is_free && !is_root => {
            causes.push(Cause::required(&field("type"), "must not be empty for specified object fields"));
        }
        Some(_) if schema["x-kubernetes-int-or-string"] == true => {
            causes.push(Cause::invalid(
                &field("type"),
                &schema["type"],
                "must be empty if x-kubernetes-int-or-string is true",
            ));
        }
        Some(kind) if !types.contains(&kind) => {
            causes.push(Cause::unsupported(&field("type"), &schema["type"], &types));
        }
        _ => {}
    }
    for word in FORBIDDEN {
        if schema.get(word).is_some() {
            causes.push(Cause::forbidden(&field(word), "must not be set in a structural schema"));
        }
    }
    if schema["uniqueItems"] == true {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        causes.push(Cause::forbidden(&field("uniqueItems"), why));
    }
    if schema["additionalProperties"] == false {
        let why = "additionalProperties cannot be set to false";
        causes.push(Cause::forbidden(&field("additionalProperties"), why));
    }
    if schema["additionalProperties"].is_object() && schema["properties"].is_object() {
        causes.push(Cause::forbidden(
            &field("additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if schema["type"] == "array" && !schema["items"].is_object() {
        causes.push(Cause::required(&field("items"), "must be specified"));
    }
    list_type(schema, at, causes);
    for (index, rule) in list(schema, "/x-kubernetes-validations").iter().enumerate() {
        let at = format!("{at}.x-kubernetes-validations[{index}]");
        if let Err(why) = &*memo::expression(text(rule, "/rule")) {
            causes.push(Cause::invalid(&format!("{at}.rule"), &rule["rule"], why));
        }
        if let Some(expression) = rule["messageExpression"].as_str()
            && let Err(why) = &*memo::expression(expression)
        {
            causes.push(Cause::invalid(&format!("{at}.messageExpression"), &rule["messageExpression"], why));
        }
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && memo::pattern(pattern).is_none()
    {
        causes.push(Cause::invalid(
            &field("pattern"),
            &schema["pattern"],
            "must be a valid regular expression",
        ));
    }
    if !schema["default"].is_null() {
        let mut default = schema["default"].clone();
        fill(&mut default, schema);
        let mut wrong = Vec::new();
        check(&default, None, schema, &mut wrong);
        for cause in wrong {
            let inner = if cause.field.is_empty() { String::new() } else { format!(".{}", cause.field) };
            causes.push(Cause { field: format!("{at}.default{inner}"), ..cause });
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if is_root && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
            continue;
        }
        node(property, &format!("{at}.properties[{name}]"), false, causes, depth + 1);
    }
    for name in ["items", "additionalProperties"] {
        if schema[name].is_object() {
            node(&schema[name], &field(name), false, causes, depth + 1);
        }
    }
}

fn list_type(schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    let field = |name: &str| format!("{at}.{name}");
    let kind = &schema["x-kubernetes-list-type"];
    let kinds = ["atomic", "map", "set"];
    match kind.as_str() {
        None => {}
        Some(_) if schema["type"] != "array" => {
            causes.push(Cause::invalid(
                &field("type"),
                &schema["type"],
                "must be array if x-kubernetes-list-type is specified",
            ));
        }
        Some("map") => {
            let keys = list(schema, "/x-kubernetes-list-map-keys");
            if keys.is_empty() {
                let why = "must not be empty if x-kubernetes-list-type is map";
                causes.push(Cause::required(&field("x-kubernetes-list-map-keys"), why));
            }
            for (index, key) in keys.iter().filter_map(Value::as_str).enumerate() {
                let property = &schema["items"]["properties"][key];
                if property.is_null() {
                    let why = "entries must all be names of item properties";
                    let at = format!("{}[{index}]", field("x-kubernetes-list-map-keys"));
                    causes.push(Cause::invalid(&at, &keys[index], why));
                } else if property["default"].is_null()
                    && !list(&schema["items"], "/required").iter().any(|it| it == key)
                {
                    let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                    causes.push(Cause::required(&format!("{at}.items.properties[{key}].default"), why));
                }
            }
        }
        Some(other) if !kinds.contains(&other) => {
            causes.push(Cause::unsupported(&field("x-kubernetes-list-type"), kind, &kinds));
        }
        Some(_) => {}
    }
}
