//! Our kinds as CustomResourceDefinitions: what a real cluster is given, and what the embedded API
//! installs at its first start. Schemas name the fields that people and printers use and keep the rest.

use serde_json::{Value, json};

/// One definition per kind of ours.
pub fn all() -> Vec<Value> {
    vec![
        crd(
            "Run",
            "runs",
            "run",
            &[
                ("Change", "string", ".spec.change"),
                ("Ref", "string", ".spec.gitRef"),
                ("Phase", "string", ".status.phase"),
                ("Message", "string", ".spec.message"),
                ("Age", "date", ".metadata.creationTimestamp"),
            ],
            json!({"required": ["repository", "gitRef", "sha", "change"], "properties": {
            "repository": {"type": "string"}, "gitRef": {"type": "string"},
            "sha": {"type": "string", "pattern": "^[0-9a-f]{40}$"}, "change": {"type": "string"},
            "deploy": {"type": "boolean"}}}),
        ),
        crd(
            "Workflow",
            "workflows",
            "workflow",
            &[
                ("Repository", "string", ".spec.repository"),
                ("File", "string", ".spec.file"),
                ("Events", "string", ".spec.events"),
                ("Age", "date", ".metadata.creationTimestamp"),
            ],
            json!({"required": ["repository", "file"], "properties": {
            "repository": {"type": "string"}, "file": {"type": "string"}, "name": {"type": "string"},
            "gitRef": {"type": "string"}, "sha": {"type": "string"},
            "events": {"type": "array", "items": {"type": "string"}}}}),
        ),
        crd(
            "Environment",
            "environments",
            "environment",
            &[
                ("Repository", "string", ".spec.repository"),
                ("Name", "string", ".spec.name"),
                ("Reviewers", "string", ".spec.reviewers"),
                ("Age", "date", ".metadata.creationTimestamp"),
            ],
            json!({"required": ["repository", "name"], "properties": {
            "repository": {"type": "string"}, "name": {"type": "string", "minLength": 1},
            "reviewers": {"type": "array", "items": {"type": "string"}},
            "waitMinutes": {"type": "integer", "minimum": 0, "maximum": 43200},
            "branches": {"type": "array", "items": {"type": "string"}}}}),
        ),
        repository_settings(),
        crd(
            "Image",
            "images",
            "image",
            &[
                ("Change", "string", ".spec.change"),
                ("Service", "string", ".spec.service"),
                ("Phase", "string", ".status.phase"),
                ("Digest", "string", ".status.digest"),
                ("Size", "integer", ".status.sizeBytes"),
                ("Age", "date", ".metadata.creationTimestamp"),
            ],
            json!({"properties": {
            "repository": {"type": "string"}, "sha": {"type": "string"}, "change": {"type": "string"},
            "service": {"type": "string"}, "context": {"type": "string"}, "dockerfile": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "upload": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}),
        ),
        crd(
            "Release",
            "releases",
            "release",
            &[
                ("App", "string", ".spec.app"),
                ("Number", "integer", ".spec.number"),
                ("Change", "string", ".spec.change"),
                ("Phase", "string", ".status.phase"),
                ("Weight", "integer", ".status.weight"),
                ("Age", "date", ".metadata.creationTimestamp"),
            ],
            json!({"required": ["app", "number", "change"], "properties": {
            "app": {"type": "string"}, "number": {"type": "integer", "minimum": 1},
            "change": {"type": "string"}}}),
        ),
        image_policy(),
    ]
}

/// Of the whole cluster, and strict: a key that nobody reads would leave a hole that looks closed.
fn image_policy() -> Value {
    let patterns = || json!({"type": "array", "items": {"type": "string", "minLength": 1}});
    let attestation = json!({"type": "object", "required": ["predicateType"], "properties": {
        "predicateType": {"type": "string", "minLength": 1},
        "builders": patterns(), "sources": patterns()}});
    let authority = json!({"type": "object", "required": ["name"],
        "x-kubernetes-validations": [{
            "rule": "has(self.key) != (has(self.builtHere) && self.builtHere)",
            "message": "an authority has either a key or `builtHere: true`",
        }],
        "properties": {
            "name": {"type": "string", "minLength": 1}, "builtHere": {"type": "boolean"},
            "key": {"type": "object", "required": ["data"], "properties": {
                "data": {"type": "string", "pattern": "-----BEGIN PUBLIC KEY-----"}}},
            "attestations": {"type": "array", "items": attestation}}});
    let spec = json!({"required": ["authorities"], "properties": {
        "mode": {"type": "string", "enum": ["enforce", "warn"], "default": "enforce"},
        "namespaces": patterns(), "images": patterns(),
        "authorities": {"type": "array", "minItems": 1, "items": authority}}});
    let columns = [
        ("Mode", "string", ".spec.mode"),
        ("Namespaces", "string", ".spec.namespaces"),
        ("Images", "string", ".spec.images"),
        ("Age", "date", ".metadata.creationTimestamp"),
    ];
    let mut definition = crd("ImagePolicy", "imagepolicies", "imagepolicy", &columns, spec);
    definition["spec"]["scope"] = json!("Cluster");
    let version = &mut definition["spec"]["versions"][0];
    if let Some(fields) = version["schema"]["openAPIV3Schema"]["properties"]["spec"].as_object_mut() {
        fields.remove("x-kubernetes-preserve-unknown-fields");
    }
    version["schema"]["openAPIV3Schema"]["required"] = json!(["spec"]);
    definition
}

/// What people set for a repository. A name that is not known here is refused, not kept: a rule with a typing
/// error would be none.
fn repository_settings() -> Value {
    let mut definition = crd(
        "RepositorySettings",
        "repositorysettings",
        "repositorysettings",
        &[("Egress", "string", ".spec.egress"), ("Age", "date", ".metadata.creationTimestamp")],
        json!({
            "properties": {
                "egress": {"type": "string", "enum": ["all", "server"], "default": "all"},
                "disk": {"type": "string", "pattern": "^[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?$"},
                "allow": {"type": "array", "maxItems": 100, "items": {
                    "type": "object", "required": ["cidr"], "properties": {
                        "cidr": {"type": "string", "minLength": 1, "maxLength": 18},
                        "ports": {"type": "array", "maxItems": 100,
                                  "items": {"x-kubernetes-int-or-string": true}}}}}},
            "x-kubernetes-validations": [{
                "rule": "!has(self.allow) || self.egress == 'server'",
                "message": "allow means something only with egress: server"}],
        }),
    );
    let spec = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    if let Value::Object(spec) = spec {
        spec.remove("x-kubernetes-preserve-unknown-fields");
        spec.insert("default".into(), json!({}));
    }
    definition
}

fn crd(kind: &str, plural: &str, singular: &str, columns: &[(&str, &str, &str)], mut spec: Value) -> Value {
    spec["type"] = json!("object");
    spec["x-kubernetes-preserve-unknown-fields"] = json!(true);
    let columns: Vec<Value> = columns
        .iter()
        .map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path}))
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.naru.dev")},
        "spec": {
            "group": "naru.dev", "scope": "Namespaced",
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural,
                      "singular": singular, "categories": ["naru"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": spec,
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
            }],
        },
    })
}
