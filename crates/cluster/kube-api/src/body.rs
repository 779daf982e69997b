//! Request bodies: JSON or YAML in, a value out.

use axum::body::Body;
use http::{HeaderMap, header};
use kube_kinds::{Failure, decode};
use kube_objects::Patch;
use saphyr::{ScalarStyle, Tag, Yaml, YamlLoader};
use serde_json::{Map, Number, Value};

use crate::request::Call;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Kubernetes' own limit.
const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A body that must be there.
pub(crate) async fn object(call: &Call, body: Body) -> Result<Value, Failure> {
    let bytes = read(body).await?;
    match media_type(&call.headers) {
        "application/json" | "" => noted(call, &bytes),
        "application/yaml" | "application/x-yaml" | "text/yaml" => from_yaml(&bytes),
        PROTOBUF => from_protobuf(&bytes),
        other => Err(unsupported(other)),
    }
}

/// A body that may be left out.
pub(crate) async fn optional(headers: &HeaderMap, body: Body) -> Result<Value, Failure> {
    let bytes = read(body).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    match media_type(headers) {
        "application/yaml" => from_yaml(&bytes),
        PROTOBUF => from_protobuf(&bytes),
        _ => from_json(&bytes),
    }
}

pub(crate) async fn patch(call: &Call, body: Body) -> Result<Patch, Failure> {
    let parameters = &call.parameters;
    let bytes = read(body).await?;
    match media_type(&call.headers) {
        "application/json-patch+json" => from_json(&bytes).map(Patch::Json),
        "application/merge-patch+json" => noted(call, &bytes).map(Patch::Merge),
        "application/strategic-merge-patch+json" => noted(call, &bytes).map(Patch::Strategic),
        "application/apply-patch+yaml" => {
            if parameters.get("fieldManager").is_none() {
                return Err(Failure::bad_request("fieldManager is required for apply patch"));
            }
            let object = noted(call, &bytes).or_else(|_| from_yaml(&bytes))?;
            Ok(Patch::Apply { object, force: parameters.is_set("force") })
        }
        other => Err(unsupported(other)),
    }
}

async fn read(body: Body) -> Result<bytes::Bytes, Failure> {
    axum::body::to_bytes(body, BODY_BYTES_MAX).await.map_err(|_| {
        let message = format!("the body cannot be read, or is longer than {BODY_BYTES_MAX} bytes");
        Failure::new(413, "RequestEntityTooLarge", message)
    })
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim()
}

fn unsupported(media: &str) -> Failure {
    let message = format!("the body of the request was in an unknown format: {media:?}");
    Failure::new(415, "UnsupportedMediaType", message)
}

fn from_protobuf(bytes: &[u8]) -> Result<Value, Failure> {
    kube_tables::decode(bytes)
        .map_err(|error| Failure::bad_request(format!("the protobuf body cannot be read: {error}")))
}

/// JSON whose duplicate fields are noted.
fn noted(call: &Call, bytes: &[u8]) -> Result<Value, Failure> {
    let (value, duplicates) = decode::parse(bytes)?;
    call.notes.found_duplicates(duplicates);
    Ok(value)
}

fn from_json(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes)
        .map_err(|error| Failure::bad_request(format!("the body is not JSON: {error}")))
}

fn from_yaml(bytes: &[u8]) -> Result<Value, Failure> {
    let text = std::str::from_utf8(bytes).map_err(|_| Failure::bad_request("the body is not UTF-8"))?;
    let mut loader = YamlLoader::<Yaml<'_>>::default();
    loader.early_parse(false);
    saphyr_parser::Parser::new_from_str(text)
        .load(&mut loader, true)
        .map_err(|error| Failure::bad_request(format!("the body is not YAML: {error}")))?;
    match loader.into_documents().as_slice() {
        [one] => to_json(one),
        [] => Ok(Value::Null),
        _ => Err(Failure::bad_request("the body has several YAML documents")),
    }
}

fn to_json(node: &Yaml<'_>) -> Result<Value, Failure> {
    Ok(match node {
        Yaml::Representation(text, style, tag) => scalar(text, *style, tag.as_deref()),
        Yaml::Sequence(items) => Value::Array(items.iter().map(to_json).collect::<Result<_, _>>()?),
        Yaml::Mapping(fields) => {
            let mut map = Map::new();
            for (key, value) in fields {
                let key = match to_json(key)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                map.insert(key, to_json(value)?);
            }
            Value::Object(map)
        }
        _ => return Err(Failure::bad_request("the body has YAML that JSON cannot express")),
    })
}

/// A plain scalar as YAML 1.1 has it, which is what kubectl and real clusters read: `yes` is true, `0755` is
/// octal.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_text = tag.is_some_and(|it| it.suffix == "str");
    if style != ScalarStyle::Plain || is_text {
        return Value::String(text.to_string());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let digits = text.replace('_', "");
    let (sign, bare) = match digits.strip_prefix('-') {
        Some(bare) => (-1, bare),
        None => (1, digits.strip_prefix('+').unwrap_or(&digits)),
    };
    let radix = |prefix: &str, radix| {
        let rest = bare.strip_prefix(prefix).filter(|it| it.starts_with(|c: char| c.is_ascii_hexdigit()))?;
        i64::from_str_radix(rest, radix).ok()
    };
    let starts_as_number = bare.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let whole = match bare {
        _ if !starts_as_number => None,
        "0" => Some(0),
        _ => radix("0x", 16)
            .or_else(|| radix("0o", 8))
            .or_else(|| radix("0b", 2))
            .or_else(|| radix("0", 8))
            .or_else(|| bare.parse().ok().filter(|_| !bare.starts_with('0'))),
    };
    if let Some(whole) = whole {
        return Value::from(sign * whole);
    }
    let fraction = bare.parse::<f64>().ok().filter(|it| starts_as_number && it.is_finite());
    match fraction.and_then(|it| Number::from_f64(it * sign as f64)) {
        Some(number) => Value::Number(number),
        None => Value::String(text.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_means_what_it_means_to_kubectl() {
        let body = b"a: yes\nb: 'yes'\nc: 0755\nd: 0x10\ne: 1_000\nf: -1.5\ng: ~\nh: 12:30\ni: 08\nj: !!str 5\nk: 1e3\nl: v1\n";
        let read = from_yaml(body).expect("it is YAML");
        let wanted = json!({"a": true, "b": "yes", "c": 493, "d": 16, "e": 1000, "f": -1.5, "g": null, "h": "12:30",
            "i": 8.0, "j": "5", "k": 1000.0, "l": "v1"});
        assert_eq!(read, wanted);
        assert!(from_yaml(b"a: [").is_err());
    }
}
