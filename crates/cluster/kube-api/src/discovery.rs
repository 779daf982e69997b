//! What is served, for clients that ask first: aggregated and legacy discovery, version.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::HeaderMap;
use kube_kinds::{Failure, Kind};
use kube_objects::Registry;
use serde_json::{Value, json};

use crate::auth::reviews::REVIEWS;
use crate::{answer, metrics};

/// The level of Kubernetes whose objects we follow.
const KUBERNETES_MINOR: &str = "35";

pub(crate) fn version(naru: &str) -> Value {
    json!({
        "major": "1", "minor": KUBERNETES_MINOR, "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+naru.{naru}"),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

/// One row of discovery: a kind, or what is only asked and never stored.
struct Row<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    plural: &'a str,
    singular: String,
    namespaced: bool,
    verbs: Vec<&'a str>,
    short_names: &'a [String],
    categories: &'a [String],
    subresources: Vec<Subresource>,
}

fn rows(kinds: &[Arc<Kind>]) -> Vec<Row<'_>> {
    let stored = kinds.iter().map(|it| Row {
        group: &it.group,
        version: &it.version,
        kind: &it.kind,
        plural: &it.plural,
        singular: it.singular.clone(),
        namespaced: it.namespaced,
        verbs: it.verbs().to_vec(),
        short_names: &it.short_names,
        categories: &it.categories,
        subresources: subresources(it),
    });
    let plain = |group, version, kind: &'static str, plural, namespaced, verbs: &[&'static str]| Row {
        group,
        version,
        kind,
        plural,
        singular: kind.to_lowercase(),
        namespaced,
        verbs: verbs.to_vec(),
        short_names: &[],
        categories: &[],
        subresources: Vec::new(),
    };
    let asked =
        REVIEWS.iter().map(|it| plain(it.group, "v1", it.kind, it.plural, it.namespaced, &["create"]));
    let measured = [("NodeMetrics", "nodes", false), ("PodMetrics", "pods", true)].into_iter().map(
        |(kind, plural, namespaced)| {
            plain(metrics::GROUP, metrics::VERSION, kind, plural, namespaced, &["get", "list"])
        },
    );
    stored.chain(asked).chain(measured).collect()
}

/// Paths above the resources: `/`, `/api`, `/apis`, `/apis/GROUP`, `/api/v1`, `/apis/GROUP/VERSION`.
pub(crate) fn answer(
    registry: &Registry,
    segments: &[&str],
    headers: &HeaderMap,
) -> Result<Response, Failure> {
    let kinds = registry.all();
    let rows = rows(&kinds);
    let not_found = || Failure::new(404, "NotFound", "the server could not find the requested resource");
    let document = match segments {
        [] => {
            let mut paths = vec!["/api".to_string(), "/api/v1".into(), "/apis".into()];
            for group in groups(&rows).into_iter().filter(|it| !it.is_empty()) {
                paths.push(format!("/apis/{group}"));
                paths.extend(versions(&rows, group).into_iter().map(|it| format!("/apis/{group}/{it}")));
            }
            paths.extend(
                ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(String::from),
            );
            json!({"paths": paths})
        }
        ["api"] | ["apis"] if wants_aggregated(headers) => {
            let is_core = segments == ["api"];
            let items: Vec<Value> = groups(&rows)
                .into_iter()
                .filter(|it| it.is_empty() == is_core)
                .map(|group| aggregated_group(&rows, group))
                .collect();
            let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
                "metadata": {}, "items": items});
            // Clients take the answer for the old form unless the type is repeated.
            let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
            return Ok(answer::with_type(200, content_type, Body::from(document.to_string())));
        }
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            let groups: Vec<Value> = groups(&rows)
                .into_iter()
                .filter(|it| !it.is_empty())
                .map(|group| legacy_group(&rows, group))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", group] if groups(&rows).contains(group) => {
            let mut document = legacy_group(&rows, group);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            document
        }
        ["api", version] => resources(&rows, "", version).ok_or_else(not_found)?,
        ["apis", group, version] => resources(&rows, group, version).ok_or_else(not_found)?,
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

fn groups<'a>(rows: &[Row<'a>]) -> Vec<&'a str> {
    let mut groups = Vec::new();
    for row in rows {
        if !groups.contains(&row.group) {
            groups.push(row.group);
        }
    }
    groups
}

fn versions<'a>(rows: &[Row<'a>], group: &str) -> Vec<&'a str> {
    let mut versions = Vec::new();
    for row in rows.iter().filter(|it| it.group == group) {
        if !versions.contains(&row.version) {
            versions.push(row.version);
        }
    }
    versions.sort_by_key(|it| std::cmp::Reverse(rank(it)));
    versions
}

/// Stable versions before beta before alpha, newer before older; the first is preferred.
fn rank(version: &str) -> (u8, u32, u32) {
    let number = |text: &str| text.parse().unwrap_or(0);
    let rest = version.strip_prefix('v').unwrap_or(version);
    match (rest.split_once("beta"), rest.split_once("alpha")) {
        (Some((major, minor)), _) => (2, number(major), number(minor)),
        (_, Some((major, minor))) => (1, number(major), number(minor)),
        _ => (if rest.parse::<u32>().is_ok() { 3 } else { 0 }, number(rest), 0),
    }
}

fn legacy_group(rows: &[Row<'_>], group: &str) -> Value {
    let versions: Vec<Value> = versions(rows, group)
        .into_iter()
        .map(|it| json!({"groupVersion": format!("{group}/{it}"), "version": it}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

/// A subresource: its name, kind (group, version, kind) and verbs.
pub(crate) type Subresource = (&'static str, [&'static str; 3], &'static [&'static str]);

const PROXY_VERBS: &[&str] = &["create", "delete", "get", "patch", "update"];

pub(crate) fn subresources(kind: &Kind) -> Vec<Subresource> {
    let mut all: Vec<Subresource> = Vec::new();
    if kind.has_status {
        all.push(("status", ["", "", ""], &["get", "patch", "update"]));
    }
    if kind.scale.is_some() {
        all.push(("scale", ["autoscaling", "v1", "Scale"], &["get", "patch", "update"]));
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => all.extend::<[Subresource; 9]>([
            ("attach", ["", "v1", "PodAttachOptions"], &["create", "get"]),
            ("binding", ["", "v1", "Binding"], &["create"]),
            ("ephemeralcontainers", ["", "", ""], &["get", "patch", "update"]),
            ("eviction", ["policy", "v1", "Eviction"], &["create"]),
            ("exec", ["", "v1", "PodExecOptions"], &["create", "get"]),
            ("log", ["", "", ""], &["get"]),
            ("portforward", ["", "v1", "PodPortForwardOptions"], &["create", "get"]),
            ("proxy", ["", "v1", "PodProxyOptions"], PROXY_VERBS),
            ("resize", ["", "", ""], &["get", "patch", "update"]),
        ]),
        ("", "Service") => all.push(("proxy", ["", "v1", "ServiceProxyOptions"], PROXY_VERBS)),
        ("", "Namespace") => all.push(("finalize", ["", "", ""], &["update"])),
        ("", "ServiceAccount") => {
            all.push(("token", ["authentication.k8s.io", "v1", "TokenRequest"], &["create"]));
        }
        ("certificates.k8s.io", "CertificateSigningRequest") => {
            all.push(("approval", ["", "", ""], &["get", "patch", "update"]));
        }
        _ => {}
    }
    all
}

fn aggregated_group(rows: &[Row<'_>], group: &str) -> Value {
    let versions: Vec<Value> = versions(rows, group)
        .into_iter()
        .map(|version| {
            let resources: Vec<Value> = rows
                .iter()
                .filter(|it| it.group == group && it.version == version)
                .map(aggregated_resource)
                .collect();
            json!({"version": version, "freshness": "Current", "resources": resources})
        })
        .collect();
    json!({"metadata": if group.is_empty() { json!({}) } else { json!({"name": group}) }, "versions": versions})
}

fn aggregated_resource(row: &Row<'_>) -> Value {
    let own = json!({"group": row.group, "version": row.version, "kind": row.kind});
    let subresources: Vec<Value> = row
        .subresources
        .iter()
        .map(|(name, [group, version, it], verbs)| {
            let response = match *it {
                "" => own.clone(),
                _ => json!({"group": group, "version": version, "kind": it}),
            };
            json!({"subresource": name, "responseKind": response, "verbs": verbs})
        })
        .collect();
    let mut resource = json!({
        "resource": row.plural, "responseKind": own, "singularResource": row.singular,
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" }, "verbs": row.verbs,
    });
    add_names(&mut resource, row);
    if !subresources.is_empty() {
        resource["subresources"] = json!(subresources);
    }
    resource
}

fn add_names(resource: &mut Value, row: &Row<'_>) {
    for (field, values) in [("shortNames", row.short_names), ("categories", row.categories)] {
        if !values.is_empty() {
            resource[field] = json!(values);
        }
    }
}

fn resources(rows: &[Row<'_>], group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for row in rows.iter().filter(|it| it.group == group && it.version == version) {
        let mut resource = json!({
            "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced,
            "kind": row.kind, "verbs": row.verbs,
        });
        add_names(&mut resource, row);
        resources.push(resource);
        for (name, [group, version, it], verbs) in &row.subresources {
            let mut resource = json!({
                "name": format!("{}/{name}", row.plural), "singularName": "", "namespaced": row.namespaced,
                "kind": if it.is_empty() { row.kind } else { it }, "verbs": verbs,
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
