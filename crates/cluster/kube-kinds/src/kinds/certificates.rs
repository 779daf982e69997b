//! CertificateSigningRequest.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, created, or_none, words};
use crate::defaults::{set, set_initial_status, spec_of};
use crate::table::Scope::Cluster;
use crate::table::row;
use crate::validation::Causes;
use crate::{Cause, Kind, NameRule, Tier, list, text, time};

pub(super) fn rows() -> Vec<Kind> {
    vec![Kind {
        default: |object| {
            if let Some(spec) = spec_of(object) {
                set(spec, "usages", json!(["digital signature", "key encipherment"]));
            }
            set_initial_status(object, json!({}));
        },
        validate: rules,
        names: NameRule::PathSegment,
        field: |object, field| {
            (field == "spec.signerName").then(|| text(object, "/spec/signerName").to_string())
        },
        columns: REQUEST,
        has_status: true,
        tier: Tier::Stored,
        ..row(
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            Cluster,
            &["csr"],
        )
    }]
}

fn rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    for field in ["request", "signerName"] {
        if text(object, &format!("/spec/{field}")).is_empty() {
            causes.push(Cause::required(&format!("spec.{field}"), ""));
        }
    }
    if old.is_some_and(|it| it["spec"] != object["spec"]) {
        causes.push(Cause::invalid("spec", &Value::Null, "field is immutable"));
    }
}

const REQUEST: Columns = Columns::BuiltIn(
    &[NAME, AGE, words("SignerName"), words("Requestor"), words("RequestedDuration"), words("Condition")],
    |it, now| {
        let duration = it["spec"]["expirationSeconds"].as_i64().map(time::duration).unwrap_or_default();
        let mut shown: Vec<&str> =
            list(it, "/status/conditions").iter().map(|it| text(it, "/type")).collect();
        if shown.is_empty() {
            shown.push("Pending");
        }
        if !text(it, "/status/certificate").is_empty() {
            shown.push("Issued");
        }
        vec![
            json!(crate::name(it)),
            created(it, now),
            json!(text(it, "/spec/signerName")),
            json!(text(it, "/spec/username")),
            or_none(&duration),
            json!(shown.join(",")),
        ]
    },
);
