//! OpenAPI: what `kubectl apply`, `explain`, helm and Terraform ask before they send anything.
//!
//! Documents are made when they are asked for, kept compressed, and named by a hash of what they are
//! made from, so that a client that has one never loads it again.

mod gnostic;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, header};
use kube_kinds::{Failure, Kind};
use serde_json::{Map, Value, json};

use crate::discovery::subresources;
use crate::request::Parameters;
use crate::{Api, answer};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// What documents of every group refer to.
const COMMON: [&str; 5] = [
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta",
    "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
];
/// Clients ask for `spec.v2@v1.0`, too, but that is no media type by the rules and no answer that they can read.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Grows with every change of how documents are made: clients keep what they have under its hash.
const FORMAT: u8 = 2;
/// The strategic one, which is for built-in kinds, last.
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
    "application/strategic-merge-patch+json",
];

/// Documents by what they are and the hash of what they are made from, compressed.
#[derive(Default)]
pub(crate) struct Documents {
    made: Mutex<HashMap<String, (u64, Bytes)>>,
}

impl Documents {
    fn get(&self, name: &str, hash: u64, make: impl FnOnce() -> Vec<u8>) -> Bytes {
        let kept = self.made.lock().expect("no code panics while it holds this lock").get(name).cloned();
        if let Some((_, document)) = kept.filter(|(of, _)| *of == hash) {
            return document;
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&make()).expect("memory takes any bytes");
        let document = Bytes::from(encoder.finish().expect("memory takes any bytes"));
        let mut made = self.made.lock().expect("no code panics while it holds this lock");
        made.insert(name.to_string(), (hash, document.clone()));
        document
    }
}

/// `/openapi/v2`, `/openapi/v3` and the documents below it.
pub(crate) fn serve(
    api: &Api,
    segments: &[&str],
    headers: &HeaderMap,
    parameters: &Parameters,
) -> Result<Response, Failure> {
    let kinds = api.registry().all();
    match segments {
        ["v2"] => {
            let hash = kinds.iter().fold(*kube_tables::DIGEST, |hash, it| mix(hash, it));
            let binary = answer::accept(headers).contains("+protobuf");
            let name = if binary { "v2+protobuf" } else { "v2" };
            let document = api.inner.documents.get(name, hash, || {
                let document = v2(&kinds);
                if binary { gnostic::encode(&document) } else { document.to_string().into_bytes() }
            });
            let content_type = if binary { V2_PROTOBUF } else { "application/json" };
            Ok(respond(headers, content_type, hash, document, false))
        }
        ["v3"] => Ok(answer::json(200, &index(&kinds))),
        ["v3", path @ ..] => {
            let (group, version) = match path {
                ["api", version] => ("", *version),
                ["apis", group, version] => (*group, *version),
                _ => return Err(not_found()),
            };
            let of: Vec<&Arc<Kind>> =
                kinds.iter().filter(|it| it.group == group && it.version == version).collect();
            if of.is_empty() {
                return Err(not_found());
            }
            let hash = hash_of(&of);
            let document =
                api.inner.documents.get(&path.join("/"), hash, || v3(&of).to_string().into_bytes());
            let asked = parameters.get("hash");
            let lasting = asked.is_some_and(|it| it == format!("{hash:016X}"));
            Ok(respond(headers, "application/json", hash, document, lasting))
        }
        _ => Err(not_found()),
    }
}

fn not_found() -> Failure {
    Failure::new(404, "NotFound", "the server could not find the requested resource")
}

fn respond(headers: &HeaderMap, content_type: &str, hash: u64, document: Bytes, lasting: bool) -> Response {
    let tag = format!("\"{hash:016X}\"");
    let has = |name: header::HeaderName, word: &str| {
        headers.get(name).and_then(|it| it.to_str().ok()).is_some_and(|it| it.contains(word))
    };
    let mut response = if has(header::IF_NONE_MATCH, &tag) {
        answer::with_type(304, content_type, Body::empty())
    } else if has(header::ACCEPT_ENCODING, "gzip") {
        let mut response = answer::with_type(200, content_type, Body::from(document));
        let gzip = header::HeaderValue::from_static("gzip");
        response.headers_mut().insert(header::CONTENT_ENCODING, gzip);
        response
    } else {
        let mut plain = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&document[..]);
        std::io::Read::read_to_end(&mut decoder, &mut plain).expect("it was made by us");
        answer::with_type(200, content_type, Body::from(plain))
    };
    // What is asked for with its hash never changes.
    let caching = if lasting { "public, max-age=31536000, immutable" } else { "no-cache" };
    for (name, value) in [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, caching)] {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept-Encoding, Accept"));
    response
}

/// FNV-1a over what a document says about a kind.
fn mix(hash: u64, kind: &Kind) -> u64 {
    let text = format!(
        "{FORMAT}/{}/{}/{}/{}/{}/{}",
        kind.group,
        kind.version,
        kind.kind,
        kind.has_status,
        kind.namespaced,
        kind.schema.as_deref().map(Value::to_string).unwrap_or_default()
    );
    text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn hash_of(kinds: &[&Arc<Kind>]) -> u64 {
    kinds.iter().fold(*kube_tables::DIGEST, |hash, it| mix(hash, it))
}

fn index(kinds: &[Arc<Kind>]) -> Value {
    let mut groups: BTreeMap<String, Vec<&Arc<Kind>>> = BTreeMap::new();
    for kind in kinds {
        groups.entry(root(kind)).or_default().push(kind);
    }
    let paths: Map<String, Value> = groups
        .into_iter()
        .map(|(path, kinds)| {
            let address = format!("/openapi/v3/{path}?hash={:016X}", hash_of(&kinds));
            (path, json!({"serverRelativeURL": address}))
        })
        .collect();
    json!({"paths": paths})
}

/// `api/v1`, `apis/apps/v1`.
fn root(kind: &Kind) -> String {
    match kind.group.is_empty() {
        true => format!("api/{}", kind.version),
        false => format!("apis/{}/{}", kind.group, kind.version),
    }
}

fn v3(kinds: &[&Arc<Kind>]) -> Value {
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for kind in kinds {
        add_paths(kind, &mut paths);
    }
    let mut official: Vec<&str> = COMMON.to_vec();
    for kind in kinds {
        official.extend(kube_tables::name_of(&kind.group, &kind.version, &kind.kind));
        official.extend(kube_tables::name_of(&kind.group, &kind.version, &kind.list_kind()));
        let targets = subresources(kind).into_iter();
        official.extend(
            targets.filter_map(|(_, [group, version, it], _)| kube_tables::name_of(group, version, it)),
        );
    }
    schemas.extend(kube_tables::components(&official));
    for kind in kinds.iter().filter(|it| it.schema.is_some()) {
        add_declared(kind, &mut schemas);
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Kubernetes", "version": format!("v{}.0", kube_tables::VERSION)},
        "paths": paths, "components": {"schemas": schemas},
    })
}

/// All kinds in one document of the older form.
fn v2(kinds: &[Arc<Kind>]) -> Value {
    let all: Vec<&Arc<Kind>> = kinds.iter().collect();
    let mut document = v3(&all);
    let mut definitions = document["components"]["schemas"].take();
    point_to_definitions(&mut definitions);
    let mut paths = document["paths"].take();
    if let Some(paths) = paths.as_object_mut() {
        paths.values_mut().for_each(older_path);
    }
    json!({"swagger": "2.0", "info": document["info"], "paths": paths, "definitions": definitions})
}

fn point_to_definitions(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // The older form has neither.
            fields.remove("oneOf");
            fields.remove("nullable");
            for (name, field) in fields.iter_mut() {
                match field.as_str().and_then(|it| it.strip_prefix("#/components/schemas/")) {
                    Some(target) if name == "$ref" => *field = json!(format!("#/definitions/{target}")),
                    _ => point_to_definitions(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(point_to_definitions),
        _ => {}
    }
}

/// Bodies are parameters, and answers have a schema of their own.
fn older_path(path: &mut Value) {
    point_to_definitions(path);
    for operation in path.as_object_mut().into_iter().flat_map(|it| it.values_mut()) {
        if !operation.is_object() {
            continue;
        }
        for parameter in operation["parameters"].as_array_mut().into_iter().flatten() {
            let kind = parameter["schema"]["type"].take();
            if let Some(parameter) = parameter.as_object_mut() {
                parameter.remove("schema");
                parameter.insert("type".into(), kind);
                parameter.insert("uniqueItems".into(), json!(true));
            }
        }
        let content = operation["requestBody"]["content"].as_object_mut();
        let body = content.and_then(|it| it.values_mut().next()).map(|it| it["schema"].take());
        let body = body.unwrap_or_default();
        if let Some(operation) = operation.as_object_mut() {
            operation.remove("requestBody");
        }
        if !body.is_null() {
            let parameter = json!({"in": "body", "name": "body", "required": true, "schema": body});
            if let Some(parameters) = operation["parameters"].as_array_mut() {
                parameters.push(parameter);
            }
        }
        for answer in operation["responses"].as_object_mut().into_iter().flat_map(|it| it.values_mut()) {
            let schema = answer["content"]["application/json"]["schema"].take();
            if let Some(answer) = answer.as_object_mut() {
                answer.remove("content");
                answer.insert("schema".into(), schema);
            }
        }
    }
}

/// A kind that users declared: its own schema, with the metadata of every object.
fn add_declared(kind: &Kind, schemas: &mut Map<String, Value>) {
    let Some(schema) = &kind.schema else { return };
    let mut schema = (**schema).clone();
    let name = definition_name(kind);
    let own = json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
    schema["x-kubernetes-group-version-kind"] = own;
    schema["type"] = json!("object");
    let standard = |kind: &str| json!({"$ref": format!("#/components/schemas/{META}.{kind}")});
    schema["properties"]["apiVersion"] = json!({"type": "string",
        "description": "The version of the schema that this object follows."});
    schema["properties"]["kind"] = json!({"type": "string", "description": "The kind of this object."});
    schema["properties"]["metadata"] = standard("ObjectMeta");
    let list = json!({
        "type": "object", "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": standard("ListMeta"),
            "items": {"type": "array", "items": {"$ref": format!("#/components/schemas/{name}")}},
        },
        "x-kubernetes-group-version-kind":
            [{"group": kind.group, "version": kind.version, "kind": kind.list_kind()}],
    });
    schemas.insert(format!("{name}List"), list);
    schemas.insert(name, schema);
}

/// `com.example.v1.Widget` for `widgets.example.com`.
fn definition_name(kind: &Kind) -> String {
    let mut parts: Vec<&str> = kind.group.split('.').rev().collect();
    parts.extend([kind.version.as_str(), kind.kind.as_str()]);
    parts.join(".")
}

fn add_paths(kind: &Kind, paths: &mut Map<String, Value>) {
    let scope = if kind.namespaced { "namespaces/{namespace}/" } else { "" };
    let collection = format!("/{}/{scope}{}", root(kind), kind.plural);
    let item = format!("{collection}/{{name}}");
    let verbs = kind.verbs();
    let operations = |of: &[(&str, &str, &str)]| -> Value {
        let served = of.iter().filter(|(verb, ..)| verbs.contains(verb));
        let made = served.map(|(_, method, action)| (method.to_string(), operation(kind, action, None)));
        Value::Object(made.collect())
    };
    let of_collection = operations(&[
        ("list", "get", "list"),
        ("create", "post", "post"),
        ("deletecollection", "delete", "deletecollection"),
    ]);
    let of_item = operations(&[
        ("get", "get", "get"),
        ("update", "put", "put"),
        ("patch", "patch", "patch"),
        ("delete", "delete", "delete"),
    ]);
    paths.insert(collection, of_collection);
    paths.insert(item.clone(), of_item);
    for (name, [group, version, own], verbs) in subresources(kind) {
        let target = if own.is_empty() { None } else { Some([group, version, own]) };
        let mut operations = Map::new();
        for verb in verbs {
            let (method, action) = match *verb {
                "get" => ("get", "get"),
                "update" => ("put", "put"),
                "patch" => ("patch", "patch"),
                "create" => ("post", "post"),
                _ => continue,
            };
            operations.insert(method.into(), operation(kind, action, target));
        }
        paths.insert(format!("{item}/{name}"), Value::Object(operations));
    }
}

/// What one method does, with the parameters that clients look for.
fn operation(kind: &Kind, action: &str, target: Option<[&str; 3]>) -> Value {
    let [group, version, name] =
        target.unwrap_or([kind.group.as_str(), kind.version.as_str(), kind.kind.as_str()]);
    let mut parameters = Vec::new();
    let mut parameter = |name: &str, kind: &str| {
        parameters.push(json!({"name": name, "in": "query", "schema": {"type": kind}}));
    };
    match action {
        "list" | "deletecollection" => {
            for name in
                ["labelSelector", "fieldSelector", "continue", "resourceVersion", "resourceVersionMatch"]
            {
                parameter(name, "string");
            }
            for name in ["limit", "timeoutSeconds"] {
                parameter(name, "integer");
            }
            for name in ["watch", "allowWatchBookmarks", "sendInitialEvents"] {
                parameter(name, "boolean");
            }
        }
        "post" | "put" | "patch" => {
            for name in ["dryRun", "fieldManager", "fieldValidation"] {
                parameter(name, "string");
            }
            if action == "patch" {
                parameter("force", "boolean");
            }
        }
        "delete" => {
            for name in ["dryRun", "propagationPolicy"] {
                parameter(name, "string");
            }
            parameter("gracePeriodSeconds", "integer");
        }
        _ => {}
    }
    let definition = match (kind.schema.is_some(), target) {
        (true, None) => Some(definition_name(kind)),
        _ => kube_tables::name_of(group, version, name).map(String::from),
    };
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let body = match action {
        "post" | "put" => definition.as_deref().map(reference),
        "patch" => Some(reference(&format!("{META}.Patch"))),
        "delete" | "deletecollection" => Some(reference(&format!("{META}.DeleteOptions"))),
        _ => None,
    };
    let mut made = json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": name},
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {
            "schema": definition.as_deref().map(reference).unwrap_or_else(|| json!({"type": "string"}))}}}},
    });
    if let Some(schema) = body {
        // kubectl makes a strategic merge patch only where the document says that one is taken.
        let media: &[&str] = match (action, kind.schema.is_some()) {
            ("patch", false) => &PATCHES,
            ("patch", true) => &PATCHES[..3],
            _ => &["*/*"],
        };
        let content: Map<String, Value> =
            media.iter().map(|it| (it.to_string(), json!({"schema": schema}))).collect();
        made["requestBody"] = json!({"content": content});
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds() -> Vec<Arc<Kind>> {
        kube_kinds::table::builtin().to_vec()
    }

    #[test]
    fn every_reference_of_every_document_leads_somewhere() {
        fn walk(value: &Value, at: &Value, missing: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    if let Some(name) = fields.get("$ref").and_then(|it| it.as_str()?.rsplit('/').next())
                        && at.get(name).is_none()
                    {
                        missing.push(name.to_string());
                    }
                    fields.values().for_each(|it| walk(it, at, missing));
                }
                Value::Array(items) => items.iter().for_each(|it| walk(it, at, missing)),
                _ => {}
            }
        }
        let kinds = kinds();
        let apps: Vec<&Arc<Kind>> = kinds.iter().filter(|it| it.group == "apps").collect();
        let document = v3(&apps);
        let mut missing = Vec::new();
        walk(&document, &document["components"]["schemas"], &mut missing);
        let document = v2(&kinds);
        walk(&document, &document["definitions"], &mut missing);
        missing.sort();
        missing.dedup();
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn kubectl_finds_that_the_server_validates() {
        let kinds = kinds();
        let apps: Vec<&Arc<Kind>> = kinds.iter().filter(|it| it.group == "apps").collect();
        let document = v3(&apps);
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|it| it["name"].as_str())
            .collect();
        assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"), "{patch}");
    }
}
