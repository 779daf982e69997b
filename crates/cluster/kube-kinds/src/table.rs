//! The table of built-in kinds. A new kind is one row in the file of its group under `kinds/`, with
//! its defaults, rules and columns beside it if it has any; the rows here are those that everything
//! else stands on.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::columns::{self, Columns};
use crate::{Kind, NameRule, Scale, Tier, defaults, kinds, text, validation};

/// All built-in kinds in the order of discovery. Core first.
pub fn builtin() -> &'static [Arc<Kind>] {
    static KINDS: OnceLock<Vec<Arc<Kind>>> = OnceLock::new();
    KINDS.get_or_init(|| rows().into_iter().chain(kinds::rows()).map(Arc::new).collect())
}

/// The built-in kind behind a resource path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    builtin().iter().find(|it| it.group == group && it.version == version && it.plural == plural)
}

/// The built-in kind of that name, for callers that know it exists.
pub fn of(group: &str, kind: &str) -> Option<&'static Arc<Kind>> {
    builtin().iter().find(|it| it.group == group && it.kind == kind)
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Scope {
    Cluster,
    Namespaced,
}
use Scope::{Cluster, Namespaced};

const GATEWAY: &str = "gateway.networking.k8s.io";

fn rows() -> Vec<Kind> {
    vec![
        Kind {
            default: defaults::namespace,
            names: NameRule::Label,
            field: |object, field| (field == "status.phase").then(|| text(object, "/status/phase").into()),
            columns: columns::NAMESPACE,
            has_status: true,
            ..row("", "v1", "Namespace", "namespaces", Cluster, &["ns"])
        },
        Kind {
            field: |object, field| {
                (field == "spec.unschedulable").then(|| (object["spec"]["unschedulable"] == true).to_string())
            },
            columns: columns::NODE,
            has_status: true,
            ..row("", "v1", "Node", "nodes", Cluster, &["no"])
        },
        Kind {
            default: defaults::pod,
            validate: validation::pod,
            field: pod_field,
            columns: columns::POD,
            has_status: true,
            has_generation: true,
            categories: vec!["all".into()],
            ..row("", "v1", "Pod", "pods", Namespaced, &["po"])
        },
        Kind {
            default: defaults::service,
            carry: crate::service::carry_over,
            validate: validation::service,
            names: NameRule::ServiceName,
            columns: columns::SERVICE,
            warnings: service_warnings,
            has_status: true,
            categories: vec!["all".into()],
            ..row("", "v1", "Service", "services", Namespaced, &["svc"])
        },
        Kind {
            validate: validation::config_map,
            columns: columns::CONFIG_MAP,
            ..row("", "v1", "ConfigMap", "configmaps", Namespaced, &["cm"])
        },
        Kind {
            default: defaults::secret,
            validate: validation::secret,
            field: |object, field| (field == "type").then(|| text(object, "/type").into()),
            columns: columns::SECRET,
            ..row("", "v1", "Secret", "secrets", Namespaced, &[])
        },
        Kind {
            columns: columns::SERVICE_ACCOUNT,
            ..row("", "v1", "ServiceAccount", "serviceaccounts", Namespaced, &["sa"])
        },
        Kind {
            field: event_field,
            columns: columns::EVENT,
            ..row("", "v1", "Event", "events", Namespaced, &["ev"])
        },
        Kind {
            default: defaults::deployment,
            validate: validation::deployment,
            columns: columns::DEPLOYMENT,
            has_status: true,
            has_generation: true,
            scale: Some(apps_scale()),
            categories: vec!["all".into()],
            ..row("apps", "v1", "Deployment", "deployments", Namespaced, &["deploy"])
        },
        Kind {
            default: defaults::replica_set,
            validate: validation::replica_set,
            field: |object, field| {
                (field == "status.replicas").then(|| crate::int(object, "/status/replicas").to_string())
            },
            columns: columns::REPLICA_SET,
            has_status: true,
            has_generation: true,
            scale: Some(apps_scale()),
            categories: vec!["all".into()],
            ..row("apps", "v1", "ReplicaSet", "replicasets", Namespaced, &["rs"])
        },
        Kind {
            default: defaults::job,
            validate: validation::job,
            field: |object, field| {
                (field == "status.successful").then(|| crate::int(object, "/status/succeeded").to_string())
            },
            columns: columns::JOB,
            has_status: true,
            has_generation: true,
            categories: vec!["all".into()],
            ..row("batch", "v1", "Job", "jobs", Namespaced, &[])
        },
        Kind {
            columns: columns::LEASE,
            ..row("coordination.k8s.io", "v1", "Lease", "leases", Namespaced, &[])
        },
        Kind {
            columns: columns::ENDPOINT_SLICE,
            has_generation: true,
            ..row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", Namespaced, &[])
        },
        Kind {
            columns: columns::GATEWAY_CLASS,
            has_status: true,
            has_generation: true,
            ..row(GATEWAY, "v1", "GatewayClass", "gatewayclasses", Cluster, &["gc"])
        },
        Kind {
            default: defaults::gateway,
            columns: columns::GATEWAY,
            has_status: true,
            has_generation: true,
            ..row(GATEWAY, "v1", "Gateway", "gateways", Namespaced, &["gtw"])
        },
        Kind {
            default: defaults::http_route,
            columns: columns::HTTP_ROUTE,
            has_status: true,
            has_generation: true,
            ..row(GATEWAY, "v1", "HTTPRoute", "httproutes", Namespaced, &[])
        },
        row(GATEWAY, "v1", "ReferenceGrant", "referencegrants", Namespaced, &["refgrant"]),
        row(GATEWAY, "v1beta1", "ReferenceGrant", "referencegrants", Namespaced, &["refgrant"]),
        Kind {
            default: defaults::custom_resource_definition,
            validate: validation::custom_resource_definition,
            columns: columns::CUSTOM_RESOURCE_DEFINITION,
            has_status: true,
            has_generation: true,
            categories: vec!["api-extensions".into()],
            ..row(
                "apiextensions.k8s.io",
                "v1",
                "CustomResourceDefinition",
                "customresourcedefinitions",
                Cluster,
                &["crd", "crds"],
            )
        },
    ]
}

pub(crate) fn row(
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
    scope: Scope,
    short: &[&str],
) -> Kind {
    Kind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: kind.to_lowercase(),
        namespaced: scope == Namespaced,
        short_names: short.iter().map(|it| it.to_string()).collect(),
        categories: Vec::new(),
        has_status: false,
        scale: None,
        has_generation: false,
        names: NameRule::Subdomain,
        default: defaults::nothing,
        carry: |_, _| {},
        validate: validation::nothing,
        field: no_field,
        columns: Columns::NAME_AND_AGE,
        warnings: no_warnings,
        schema: None,
        fills_in: false,
        selectable: Vec::new(),
        tier: Tier::Active,
        stored: None,
    }
}

pub(crate) fn no_warnings(_: &Value) -> Vec<String> {
    Vec::new()
}

fn service_warnings(service: &Value) -> Vec<String> {
    match text(service, "/spec/loadBalancerClass") {
        "" => Vec::new(),
        class => vec![format!(
            "spec.loadBalancerClass: there is no load balancer of the class {class:?} here; without a class the ports are opened on the machine"
        )],
    }
}

pub(crate) fn no_field(_: &Value, _: &str) -> Option<String> {
    None
}

pub(crate) fn apps_scale() -> Scale {
    Scale {
        spec_replicas: "/spec/replicas".into(),
        status_replicas: "/status/replicas".into(),
        selector: Some("/spec/selector".into()),
    }
}

fn pod_field(object: &Value, field: &str) -> Option<String> {
    let pointer = match field {
        "spec.nodeName" => "/spec/nodeName",
        "spec.restartPolicy" => "/spec/restartPolicy",
        "spec.schedulerName" => "/spec/schedulerName",
        "spec.serviceAccountName" => "/spec/serviceAccountName",
        "spec.hostNetwork" => return Some((object["spec"]["hostNetwork"] == true).to_string()),
        "status.phase" => "/status/phase",
        "status.podIP" => "/status/podIP",
        "status.nominatedNodeName" => "/status/nominatedNodeName",
        _ => return None,
    };
    Some(text(object, pointer).to_string())
}

pub(crate) fn event_field(object: &Value, field: &str) -> Option<String> {
    let pointer = match field {
        "involvedObject.kind" => "/involvedObject/kind",
        "involvedObject.namespace" => "/involvedObject/namespace",
        "involvedObject.name" => "/involvedObject/name",
        "involvedObject.uid" => "/involvedObject/uid",
        "involvedObject.apiVersion" => "/involvedObject/apiVersion",
        "involvedObject.resourceVersion" => "/involvedObject/resourceVersion",
        "involvedObject.fieldPath" => "/involvedObject/fieldPath",
        "reason" => "/reason",
        "reportingComponent" => "/reportingComponent",
        "source" => "/source/component",
        "type" => "/type",
        _ => return None,
    };
    Some(text(object, pointer).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::{Include, table};
    use serde_json::json;

    /// Whatever a client sends, no row of the table trips over it.
    #[test]
    fn every_kind_stands_empty_and_odd_objects() {
        let odd =
            ["metadata", "spec", "status", "rules", "subjects", "webhooks", "subsets", "template", "data"];
        for kind in builtin() {
            for filling in
                [json!({}), json!([1]), json!("text"), json!(null), json!({"template": [], "metrics": 3})]
            {
                let mut object = json!({"apiVersion": kind.api_version(), "kind": kind.kind});
                for field in odd {
                    object[field] = filling.clone();
                }
                object["metadata"] = json!({"name": "x"});
                (kind.default)(&mut object);
                let once = object.clone();
                (kind.default)(&mut object);
                assert_eq!(object, once, "{kind:?}: defaults applied twice change nothing");
                (kind.validate)(&object, Some(&once), &mut Vec::new());
                let table =
                    table(kind, &[&object], json!({}), Include::None, true, jiff::Timestamp::UNIX_EPOCH);
                assert_eq!(
                    table["columnDefinitions"].as_array().map(Vec::len),
                    table["rows"][0]["cells"].as_array().map(Vec::len),
                    "{kind:?}"
                );
                if let Some(stored) = &kind.stored {
                    (stored.to_stored)(&mut object);
                    (stored.from_stored)(&mut object);
                    assert_eq!(object["apiVersion"], kind.api_version());
                }
            }
        }
    }

    #[test]
    fn no_two_rows_have_the_same_path() {
        let mut seen = std::collections::HashSet::new();
        for kind in builtin() {
            assert!(seen.insert((&kind.group, &kind.version, &kind.plural)), "{kind:?}");
        }
    }
}
