//! Dynamic resource allocation: device classes, claims and what drivers offer. Only kept.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, created, words};
use crate::defaults::{items, set, set_initial_status, spec_of};
use crate::table::Scope::{Cluster, Namespaced};
use crate::table::row;
use crate::{Cause, Kind, Tier, is_deleting, list, text};

const GROUP: &str = "resource.k8s.io";

pub(super) fn rows() -> Vec<Kind> {
    vec![
        Kind {
            has_generation: true,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "DeviceClass", "deviceclasses", Cluster, &[])
        },
        Kind {
            default: |object| {
                if let Some(spec) = spec_of(object) {
                    request_defaults(spec);
                }
                set_initial_status(object, json!({}));
            },
            validate: |object, old, causes| {
                if old.is_some_and(|it| it["spec"] != object["spec"]) {
                    causes.push(Cause::invalid("spec", &object["spec"], "field is immutable"));
                }
            },
            columns: CLAIM,
            has_status: true,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "ResourceClaim", "resourceclaims", Namespaced, &[])
        },
        Kind {
            default: |object| {
                if let Some(Value::Object(claim)) = spec_of(object).and_then(|it| it.get_mut("spec")) {
                    request_defaults(claim);
                }
            },
            validate: |object, old, causes| {
                if old.is_some_and(|it| it["spec"] != object["spec"]) {
                    causes.push(Cause::invalid("spec", &object["spec"], "field is immutable"));
                }
            },
            tier: Tier::Stored,
            ..row(GROUP, "v1", "ResourceClaimTemplate", "resourceclaimtemplates", Namespaced, &[])
        },
        Kind {
            field: |object, field| match field {
                "spec.nodeName" => Some(text(object, "/spec/nodeName").into()),
                "spec.driver" => Some(text(object, "/spec/driver").into()),
                _ => None,
            },
            columns: const {
                Columns::BuiltIn(&[NAME, words("Node"), words("Driver"), words("Pool"), AGE], |it, now| {
                    vec![
                        json!(crate::name(it)),
                        json!(text(it, "/spec/nodeName")),
                        json!(text(it, "/spec/driver")),
                        json!(text(it, "/spec/pool/name")),
                        created(it, now),
                    ]
                })
            },
            has_generation: true,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "ResourceSlice", "resourceslices", Cluster, &[])
        },
    ]
}

fn request_defaults(claim: &mut serde_json::Map<String, Value>) {
    let Some(devices) = claim.get_mut("devices").and_then(Value::as_object_mut) else { return };
    for request in items(devices, "requests") {
        let exactly = request.get_mut("exactly").and_then(Value::as_object_mut);
        for request in exactly.into_iter() {
            set(request, "allocationMode", "ExactCount");
            if request["allocationMode"] == "ExactCount" {
                set(request, "count", 1);
            }
        }
    }
}

const CLAIM: Columns = Columns::BuiltIn(&[NAME, words("State"), AGE], |it, now| {
    let mut states = Vec::new();
    if is_deleting(it) {
        states.push("deleted");
    }
    if it["status"]["allocation"].is_object() {
        states.push("allocated");
    }
    if !list(it, "/status/reservedFor").is_empty() {
        states.push("reserved");
    }
    if states.is_empty() {
        states.push("pending");
    }
    vec![json!(crate::name(it)), json!(states.join(",")), created(it, now)]
});
