//! A value against a schema.

use serde_json::{Map, Value, json};

use super::{DEPTH_MAX, join, memo};
use crate::{Cause, list, text};

/// More causes help nobody.
const CAUSES_MAX: usize = 100;

/// Everything that is wrong with an object of a declared kind, and was not wrong before.
pub(crate) fn check(object: &Value, old: Option<&Value>, schema: &Value, causes: &mut Vec<Cause>) {
    let update = old.is_some();
    Walk { update, pass: Pass::Schema }.value(object, old, schema, "", causes, 0);
    let blocking = ["FieldValueInvalid", "FieldValueForbidden", "FieldValueDuplicate"];
    if causes.iter().all(|it| blocking.contains(&it.reason)) {
        // Rules may rely on types and required fields.
        Walk { update, pass: Pass::Rules }.value(object, old, schema, "", causes, 0);
    }
}

struct Walk {
    /// What is as it was before is let be.
    update: bool,
    pass: Pass,
}

#[derive(PartialEq)]
enum Pass {
    Schema,
    Rules,
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Values as messages show them: what has parts is only named.
fn shown(value: &Value) -> Value {
    match value {
        Value::Array(_) => json!("array"),
        Value::Object(_) => json!("object"),
        scalar => scalar.clone(),
    }
}

impl Walk {
    fn value(
        &self,
        value: &Value,
        old: Option<&Value>,
        schema: &Value,
        at: &str,
        causes: &mut Vec<Cause>,
        depth: usize,
    ) {
        if depth > DEPTH_MAX || causes.len() >= CAUSES_MAX {
            return;
        }
        if self.update && old == Some(value) {
            return;
        }
        if value.is_null() && (schema["nullable"] == true || schema["type"].is_null()) {
            return;
        }
        if self.pass == Pass::Schema && !self.fits(value, schema, at, causes, depth) {
            return;
        }
        match value {
            Value::Array(items) => self.items(items, old, schema, at, causes, depth),
            Value::Object(fields) => self.fields(fields, old, schema, at, causes, depth),
            _ => {}
        }
        if self.pass == Pass::Rules {
            rules(value, old, schema, at, causes);
        }
    }

    /// The value itself, without its parts. `false` when its type makes everything else pointless.
    fn fits(&self, value: &Value, schema: &Value, at: &str, causes: &mut Vec<Cause>, depth: usize) -> bool {
        if let Some(expected) = wrong_type(value, schema) {
            causes.push(Cause {
                reason: "FieldValueTypeInvalid",
                message: format!(
                    "Invalid value: {:?}: {at} in body must be of type {expected}: {:?}",
                    kind_of(value),
                    kind_of(value)
                ),
                field: at.to_string(),
            });
            return false;
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            let allowed: Vec<String> =
                allowed.iter().map(|it| it.as_str().map_or_else(|| it.to_string(), String::from)).collect();
            let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
            causes.push(Cause::unsupported(at, value, &allowed));
        }
        match value {
            Value::Number(_) => number(value, schema, at, causes),
            Value::String(text) => string(value, text, schema, at, causes),
            Value::Array(items) => list_itself(items, schema, at, causes),
            Value::Object(fields) => map_itself(fields, schema, at, causes),
            _ => {}
        }
        junctors(value, schema, at, causes, depth);
        true
    }

    fn fields(
        &self,
        fields: &Map<String, Value>,
        old: Option<&Value>,
        schema: &Value,
        at: &str,
        causes: &mut Vec<Cause>,
        depth: usize,
    ) {
        for (name, field) in fields {
            // The API's own fields have rules of their own.
            if at.is_empty() && ["metadata", "apiVersion", "kind"].contains(&name.as_str()) {
                continue;
            }
            let place = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
            if place.is_object() {
                let old = old.and_then(|it| it.get(name));
                self.value(field, old, place, &join(at, name), causes, depth + 1);
            }
        }
    }

    fn items(
        &self,
        items: &[Value],
        old: Option<&Value>,
        schema: &Value,
        at: &str,
        causes: &mut Vec<Cause>,
        depth: usize,
    ) {
        let key_of = |item: &Value| key_of(item, schema);
        let list_type = schema["x-kubernetes-list-type"].as_str();
        if schema["items"].is_object() {
            for (index, item) in items.iter().enumerate() {
                // Only items with keys are the same ones as before.
                let before = match list_type {
                    Some("map") => old
                        .and_then(Value::as_array)
                        .and_then(|all| all.iter().find(|it| key_of(it) == key_of(item))),
                    _ => None,
                };
                self.value(item, before, &schema["items"], &format!("{at}[{index}]"), causes, depth + 1);
            }
        }
    }
}

fn map_itself(fields: &Map<String, Value>, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    for name in list(schema, "/required").iter().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            causes.push(Cause::required(&join(at, name), ""));
        }
    }
    if schema["x-kubernetes-embedded-resource"] == true {
        for name in ["apiVersion", "kind"] {
            if fields.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                causes.push(Cause::required(&join(at, name), "must not be empty"));
            }
        }
    }
    let count = fields.len() as u64;
    if let Some(limit) = schema["maxProperties"].as_u64().filter(|it| count > *it) {
        causes.push(too_many(at, count, limit));
    }
    if let Some(limit) = schema["minProperties"].as_u64().filter(|it| count < *it) {
        let why = format!("{at} in body should have at least {limit} properties");
        causes.push(Cause::invalid(at, &json!(count), &why));
    }
}

/// The values by which items of a list map are told apart.
fn key_of(item: &Value, schema: &Value) -> Vec<Value> {
    let default = |key: &str| schema["items"]["properties"][key]["default"].clone();
    let keys = list(schema, "/x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
    keys.map(|key| item.get(key).cloned().unwrap_or_else(|| default(key))).collect()
}

fn list_itself(items: &[Value], schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    let count = items.len() as u64;
    if let Some(limit) = schema["maxItems"].as_u64().filter(|it| count > *it) {
        causes.push(too_many(at, count, limit));
    }
    if let Some(limit) = schema["minItems"].as_u64().filter(|it| count < *it) {
        let why = format!("{at} in body should have at least {limit} items");
        causes.push(Cause::invalid(at, &json!(count), &why));
    }
    let keys = list(schema, "/x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
    let keys: Vec<String> = keys.map(String::from).collect();
    let list_type = schema["x-kubernetes-list-type"].as_str();
    let mut seen = std::collections::HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let (id, shown) = match list_type {
            Some("map") => {
                let key = key_of(item, schema);
                let names: Map<String, Value> = keys.iter().cloned().zip(key.iter().cloned()).collect();
                (json!(key).to_string(), Value::Object(names))
            }
            Some("set") => (item.to_string(), item.clone()),
            _ => continue,
        };
        if !seen.insert(id) {
            causes.push(Cause::duplicate(&format!("{at}[{index}]"), &shown));
        }
    }
}

fn too_many(at: &str, count: u64, limit: u64) -> Cause {
    Cause {
        reason: "FieldValueTooMany",
        message: format!("Too many: {count}: must have at most {limit} items"),
        field: at.to_string(),
    }
}

/// The type that a value should have had.
fn wrong_type<'a>(value: &Value, schema: &'a Value) -> Option<&'a str> {
    if schema["x-kubernetes-int-or-string"] == true {
        return (!value.is_string() && !value.is_i64() && !value.is_u64()).then_some("integer,string");
    }
    let fits = match schema["type"].as_str()? {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|it| it.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => true,
    };
    (!fits).then(|| text(schema, "/type"))
}

fn number(value: &Value, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    let Some(number) = value.as_f64() else { return };
    let mut wrong =
        |why: String| causes.push(Cause::invalid(at, value, &format!("{at} in body should be {why}")));
    if let Some(limit) = schema["minimum"].as_f64() {
        match schema["exclusiveMinimum"] == true {
            true if number <= limit => wrong(format!("greater than {limit}")),
            false if number < limit => wrong(format!("greater than or equal to {limit}")),
            _ => {}
        }
    }
    if let Some(limit) = schema["maximum"].as_f64() {
        match schema["exclusiveMaximum"] == true {
            true if number >= limit => wrong(format!("less than {limit}")),
            false if number > limit => wrong(format!("less than or equal to {limit}")),
            _ => {}
        }
    }
    if let Some(factor) = schema["multipleOf"].as_f64().filter(|it| *it > 0.0)
        && (number / factor).fract().abs() > 1e-9
    {
        wrong(format!("a multiple of {factor}"));
    }
    let widest = match schema["format"].as_str() {
        Some("int32") => Some(f64::from(i32::MAX)),
        _ => None,
    };
    if widest.is_some_and(|it| number.abs() > it + 1.0) {
        wrong("of type int32".into());
    }
}

fn string(value: &Value, text: &str, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    let length = text.chars().count() as u64;
    if let Some(limit) = schema["maxLength"].as_u64().filter(|it| length > *it) {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {limit} bytes"),
            field: at.to_string(),
        });
    }
    if let Some(limit) = schema["minLength"].as_u64().filter(|it| length < *it) {
        let why = format!("{at} in body should be at least {limit} chars long");
        causes.push(Cause::invalid(at, value, &why));
    }
    if let Some(pattern) = schema["pattern"].as_str()
        && let Some(regex) = &*memo::pattern(pattern)
        && !regex.is_match(text)
    {
        causes.push(Cause::invalid(at, value, &format!("{at} in body should match '{pattern}'")));
    }
    if let Some(format) = schema["format"].as_str()
        && !fits_format(text, format)
    {
        let why = format!("{at} in body must be of type {format}: {value}");
        causes.push(Cause::invalid(at, value, &why));
    }
}

/// The formats of Kubernetes; an unknown one says nothing.
fn fits_format(text: &str, format: &str) -> bool {
    let hex = |text: &str, groups: &[usize]| {
        let parts: Vec<&str> = text.split('-').collect();
        parts.len() == groups.len()
            && parts
                .iter()
                .zip(groups)
                .all(|(part, length)| part.len() == *length && part.bytes().all(|it| it.is_ascii_hexdigit()))
    };
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => crate::time::parse_duration(text).is_some(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, bits)| {
            address.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok_and(|it| it <= 128)
        }),
        "mac" => text.split([':', '-']).count() == 6 && text.split([':', '-']).all(|it| hex(it, &[2])),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => hex(text, &[8, 4, 4, 4, 12]),
        "byte" => crate::decode::is_base64(text),
        "email" => text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
        "hostname" => crate::validation::check_name(crate::NameRule::Subdomain, &text.to_lowercase()).is_ok(),
        "uri" => text.contains(':') && !text.contains(char::is_whitespace),
        _ => true,
    }
}

/// `allOf`, `anyOf`, `oneOf`, `not`.
fn junctors(value: &Value, schema: &Value, at: &str, causes: &mut Vec<Cause>, depth: usize) {
    let fits = |part: &Value| {
        let mut wrong = Vec::new();
        Walk { update: false, pass: Pass::Schema }.value(value, None, part, at, &mut wrong, depth + 1);
        wrong
    };
    for part in list(schema, "/allOf") {
        causes.extend(fits(part));
    }
    let any = list(schema, "/anyOf");
    if !any.is_empty() && !any.iter().any(|it| fits(it).is_empty()) {
        causes.push(Cause::invalid(
            at,
            &shown(value),
            &format!("{at} in body must validate at least one schema (anyOf)"),
        ));
    }
    let one = list(schema, "/oneOf");
    if !one.is_empty() && one.iter().filter(|it| fits(it).is_empty()).count() != 1 {
        causes.push(Cause::invalid(
            at,
            &shown(value),
            &format!("{at} in body must validate one and only one schema (oneOf)"),
        ));
    }
    if schema["not"].is_object() && fits(&schema["not"]).is_empty() {
        causes.push(Cause::invalid(
            at,
            &shown(value),
            &format!("{at} in body must not validate the schema (not)"),
        ));
    }
}

/// `x-kubernetes-validations`.
fn rules(value: &Value, old: Option<&Value>, schema: &Value, at: &str, causes: &mut Vec<Cause>) {
    let rules = list(schema, "/x-kubernetes-validations");
    if rules.is_empty() {
        return;
    }
    let convert = |value: &Value| match at.is_empty() {
        true => kube_cel::from_json_of(&root(value), schema),
        false => kube_cel::from_json_of(value, schema),
    };
    let this = convert(value);
    for rule in rules {
        let source = text(rule, "/rule");
        let compiled = memo::expression(source);
        let mut variables = vec![("self", this.clone())];
        let mut fail = |message: String, field: String| {
            let reason = match rule["reason"].as_str() {
                Some("FieldValueForbidden") => "FieldValueForbidden",
                Some("FieldValueRequired") => "FieldValueRequired",
                Some("FieldValueDuplicate") => "FieldValueDuplicate",
                _ => "FieldValueInvalid",
            };
            let message = match reason {
                "FieldValueForbidden" => format!("Forbidden: {message}"),
                "FieldValueRequired" => format!("Required value: {message}"),
                "FieldValueDuplicate" => format!("Duplicate value: {}", shown(value)),
                _ => format!("Invalid value: {}: {message}", shown(value)),
            };
            causes.push(Cause { reason, message, field });
        };
        let compiled = match &*compiled {
            Ok(compiled) => compiled,
            Err(why) => {
                fail(format!("rule compile error: {why}"), at.to_string());
                continue;
            }
        };
        if compiled.mentions("oldSelf") {
            // Rules about a change say nothing about a beginning.
            let Some(old) = old else { continue };
            variables.push(("oldSelf", convert(old)));
        }
        let field = match rule["fieldPath"].as_str() {
            Some(path) => format!("{at}{}", if at.is_empty() { path.trim_start_matches('.') } else { path }),
            None => at.to_string(),
        };
        match compiled.holds(&variables) {
            Ok(true) => {}
            Ok(false) => {
                let told = rule["messageExpression"].as_str().and_then(|it| match &*memo::expression(it) {
                    Ok(expression) => expression.text(&variables).ok().filter(|it| !it.trim().is_empty()),
                    Err(_) => None,
                });
                let message = told.or_else(|| rule["message"].as_str().map(String::from));
                fail(message.unwrap_or_else(|| format!("failed rule: {}", source.trim())), field);
            }
            Err(why) => fail(format!("rule evaluation error: {why}"), field),
        }
    }
}

/// What a rule at the root may see: of the metadata only the names.
fn root(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| name == "name" || name == "generateName");
    }
    object
}
