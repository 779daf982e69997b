//! Responses, and the forms in which a client wants its objects.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use kube_kinds::columns::{self, Include};
use kube_kinds::{Failure, Kind};
use serde_json::{Value, json};

use crate::request::Parameters;

pub(crate) fn json(code: u16, value: &Value) -> Response {
    with_type(code, "application/json", Body::from(value.to_string()))
}

pub(crate) fn text(text: &'static str) -> Response {
    with_type(200, "text/plain; charset=utf-8", Body::from(text))
}

pub(crate) fn failure(failure: &Failure) -> Response {
    let mut response = json(failure.code, &failure.to_value());
    if let Some(seconds) = failure.details["retryAfterSeconds"].as_u64() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

pub(crate) fn with_type(code: u16, content_type: &str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = content_type.parse() {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
}

/// What the client prefers, from its Accept header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Metadata,
    Table(Include),
}

impl Form {
    pub fn wanted(headers: &HeaderMap, parameters: &Parameters) -> Result<Form, Failure> {
        let accept = accept(headers);
        for kind in accept.split(',').map(str::trim) {
            let mut parts = kind.split(';').map(str::trim);
            let media = parts.next().unwrap_or("");
            let form = parts.find_map(|it| it.strip_prefix("as="));
            match (media, form) {
                ("application/json", Some("Table")) => {
                    let include = match parameters.get("includeObject") {
                        Some("None") => Include::None,
                        Some("Object") => Include::Object,
                        _ => Include::Metadata,
                    };
                    return Ok(Form::Table(include));
                }
                ("application/json", Some("PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                    return Ok(Form::Metadata);
                }
                ("application/json" | "application/*" | "*/*" | "", None) => return Ok(Form::Object),
                _ => {}
            }
        }
        Err(Failure::new(406, "NotAcceptable", "only application/json is served"))
    }

    /// For answers that have no metadata to make a table of.
    pub fn only_objects(headers: &HeaderMap) -> Result<(), Failure> {
        let accept = accept(headers);
        let plain = accept.is_empty() || accept.split(',').any(|it| !it.contains("as="));
        let refused = || Failure::new(406, "NotAcceptable", "only application/json is served here");
        plain.then_some(()).ok_or_else(refused)
    }

    /// One object in this form.
    pub fn object(self, kind: &Kind, object: &Value, with_definitions: bool) -> Value {
        match self {
            Form::Object => object.clone(),
            Form::Metadata => columns::partial_metadata(object),
            Form::Table(include) => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let now = jiff::Timestamp::now();
                columns::table(kind, &[object], metadata, include, with_definitions, now)
            }
        }
    }

    /// A list in this form, as JSON text: objects are written as they are, without a copy.
    pub fn list_text(self, kind: &Kind, objects: &[&Value], metadata: Value) -> String {
        if self != Form::Object {
            return self.list(kind, objects, metadata).to_string();
        }
        let head = json!({"kind": kind.list_kind(), "apiVersion": kind.api_version(), "metadata": metadata});
        let head = head.to_string();
        // The closing brace comes after the items.
        let mut text = String::with_capacity(head.len() + 16 + objects.len() * 1024);
        text.push_str(&head[..head.len() - 1]);
        text.push_str(",\"items\":[");
        for (index, object) in objects.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(&object.to_string());
        }
        text.push_str("]}");
        text
    }

    /// A list in this form.
    pub fn list(self, kind: &Kind, objects: &[&Value], metadata: Value) -> Value {
        match self {
            Form::Object => json!({
                "kind": kind.list_kind(), "apiVersion": kind.api_version(),
                "metadata": metadata, "items": objects,
            }),
            Form::Metadata => {
                let items: Vec<Value> = objects.iter().map(|it| columns::partial_metadata(it)).collect();
                json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata, "items": items})
            }
            Form::Table(include) => {
                columns::table(kind, objects, metadata, include, true, jiff::Timestamp::now())
            }
        }
    }
}

pub(crate) fn accept(headers: &HeaderMap) -> &str {
    headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or("")
}
