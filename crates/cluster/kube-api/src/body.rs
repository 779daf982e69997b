//! Request bodies: JSON or YAML in, a value out.

use axum::body::Body;
use http::{HeaderMap, header};
use kube_kinds::{Failure, decode};
use kube_objects::Patch;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
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
    let documents = Yaml::load_from_str(text)
        .map_err(|error| Failure::bad_request(format!("the body is not YAML: {error}")))?;
    match documents.as_slice() {
        [one] => to_json(one),
        [] => Ok(Value::Null),
        _ => Err(Failure::bad_request("the body has several YAML documents")),
    }
}

fn to_json(node: &Yaml<'_>) -> Result<Value, Failure> {
    Ok(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(value)) => Value::Bool(*value),
        Yaml::Value(Scalar::Integer(value)) => Value::from(*value),
        Yaml::Value(Scalar::FloatingPoint(value)) => {
            Number::from_f64(value.into_inner()).map_or(Value::Null, Value::Number)
        }
        Yaml::Value(Scalar::String(value)) => Value::String(value.to_string()),
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
