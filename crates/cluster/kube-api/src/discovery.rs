//! What is served, for clients that ask first: aggregated and legacy discovery, version.

use axum::body::Body;
use axum::response::Response;
use http::HeaderMap;
use kube_kinds::{Failure, Kind};
use kube_objects::Registry;
use serde_json::{Value, json};

use crate::answer;

/// The level of Kubernetes whose objects we follow.
const KUBERNETES_MINOR: &str = "35";

pub(crate) fn version(naru: &str) -> Value {
    json!({
        "major": "1", "minor": KUBERNETES_MINOR, "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+naru.{naru}"),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// Paths above the resources: `/`, `/api`, `/apis`, `/apis/GROUP`, `/api/v1`, `/apis/GROUP/VERSION`.
pub(crate) fn answer(
    registry: &Registry,
    segments: &[&str],
    headers: &HeaderMap,
) -> Result<Response, Failure> {
    let kinds = registry.all();
    let kinds: Vec<&Kind> = kinds.iter().map(|it| &**it).collect();
    let not_found = || Failure::new(404, "NotFound", "the server could not find the requested resource");
    let document = match segments {
        [] => {
            let mut paths = vec!["/api".to_string(), "/api/v1".into(), "/apis".into()];
            for group in groups(&kinds).into_iter().filter(|it| !it.is_empty()) {
                paths.extend(versions(&kinds, group).into_iter().map(|it| format!("/apis/{group}/{it}")));
            }
            paths.extend(["/healthz", "/livez", "/readyz", "/version"].map(String::from));
            json!({"paths": paths})
        }
        ["api"] | ["apis"] if wants_aggregated(headers) => {
            let is_core = segments == ["api"];
            let items: Vec<Value> = groups(&kinds)
                .into_iter()
                .filter(|it| it.is_empty() == is_core)
                .map(|group| aggregated_group(&kinds, group))
                .collect();
            let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
                "metadata": {}, "items": items});
            // Clients take the answer for the old form unless the type is repeated.
            let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
            return Ok(answer::with_type(200, content_type, Body::from(document.to_string())));
        }
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            let groups: Vec<Value> = groups(&kinds)
                .into_iter()
                .filter(|it| !it.is_empty())
                .map(|group| legacy_group(&kinds, group))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", group] if groups(&kinds).contains(group) => {
            let mut document = legacy_group(&kinds, group);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            document
        }
        ["api", version] => resources(&kinds, "", version).ok_or_else(not_found)?,
        ["apis", group, version] => resources(&kinds, group, version).ok_or_else(not_found)?,
        _ => return Err(not_found()),
    };
    Ok(answer::json(200, &document))
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    answer::accept(headers).split(',').any(|it| {
        let parts: Vec<&str> = it.split(';').map(str::trim).collect();
        ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"].iter().all(|it| parts.contains(it))
    })
}

fn groups<'a>(kinds: &[&'a Kind]) -> Vec<&'a str> {
    let mut groups = Vec::new();
    for kind in kinds {
        if !groups.contains(&kind.group.as_str()) {
            groups.push(kind.group.as_str());
        }
    }
    groups
}

fn versions<'a>(kinds: &[&'a Kind], group: &str) -> Vec<&'a str> {
    let mut versions = Vec::new();
    for kind in kinds.iter().filter(|it| it.group == group) {
        if !versions.contains(&kind.version.as_str()) {
            versions.push(kind.version.as_str());
        }
    }
    versions
}

fn legacy_group(kinds: &[&Kind], group: &str) -> Value {
    let versions: Vec<Value> = versions(kinds, group)
        .into_iter()
        .map(|it| json!({"groupVersion": format!("{group}/{it}"), "version": it}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

/// A subresource: its name, kind (group, version, kind) and verbs.
pub(crate) type Subresource = (&'static str, [&'static str; 3], &'static [&'static str]);

pub(crate) fn subresources(kind: &Kind) -> Vec<Subresource> {
    let mut all: Vec<Subresource> = Vec::new();
    if kind.has_status {
        all.push(("status", ["", "", ""], &["get", "patch", "update"]));
    }
    if kind.scale.is_some() {
        all.push(("scale", ["autoscaling", "v1", "Scale"], &["get", "patch", "update"]));
    }
    for name in kind.subresources {
        match *name {
            "log" => all.push(("log", ["", "", ""], &["get"])),
            "exec" => all.push(("exec", ["", "v1", "PodExecOptions"], &["create", "get"])),
            "binding" => all.push(("binding", ["", "v1", "Binding"], &["create"])),
            _ => {}
        }
    }
    all
}

fn aggregated_group(kinds: &[&Kind], group: &str) -> Value {
    let versions: Vec<Value> = versions(kinds, group)
        .into_iter()
        .map(|version| {
            let resources: Vec<Value> = kinds
                .iter()
                .filter(|it| it.group == group && it.version == version)
                .map(|kind| aggregated_resource(kind))
                .collect();
            json!({"version": version, "freshness": "Current", "resources": resources})
        })
        .collect();
    json!({"metadata": if group.is_empty() { json!({}) } else { json!({"name": group}) }, "versions": versions})
}

fn aggregated_resource(kind: &Kind) -> Value {
    let own = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let subresources: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|(name, [group, version, it], verbs)| {
            let response = match it {
                "" => own.clone(),
                _ => json!({"group": group, "version": version, "kind": it}),
            };
            json!({"subresource": name, "responseKind": response, "verbs": verbs})
        })
        .collect();
    let mut resource = json!({
        "resource": kind.plural, "responseKind": own, "singularResource": kind.singular,
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "verbs": kind.verbs(),
    });
    for (field, values) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
        if !values.is_empty() {
            resource[field] = json!(values);
        }
    }
    if !subresources.is_empty() {
        resource["subresources"] = json!(subresources);
    }
    resource
}

fn resources(kinds: &[&Kind], group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds.iter().filter(|it| it.group == group && it.version == version) {
        let mut resource = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs(),
        });
        for (field, values) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
            if !values.is_empty() {
                resource[field] = json!(values);
            }
        }
        resources.push(resource);
        for (name, [group, version, it], verbs) in subresources(kind) {
            let mut resource = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": if it.is_empty() { kind.kind.as_str() } else { it }, "verbs": verbs,
            });
            if !it.is_empty() {
                resource["group"] = json!(group);
                resource["version"] = json!(version);
            }
            resources.push(resource);
        }
    }
    if resources.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    Some(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}),
    )
}
