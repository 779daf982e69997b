//! LimitRange, ResourceQuota, PriorityClass, RuntimeClass: what bounds and orders pods.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, column, created, words};
use crate::defaults::{items, set, spec_of};
use crate::table::Scope::{Cluster, Namespaced};
use crate::table::row;
use crate::validation::Causes;
use crate::{Cause, Kind, int, list, quantity, text};

/// Above this value only the system's own priorities are.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;

pub(super) fn rows() -> Vec<Kind> {
    vec![
        Kind {
            default: limit_range_defaults,
            validate: limit_range_rules,
            columns: const {
                Columns::BuiltIn(&[NAME, words("Created At")], |it, _| {
                    vec![json!(crate::name(it)), json!(text(it, "/metadata/creationTimestamp"))]
                })
            },
            ..row("", "v1", "LimitRange", "limitranges", Namespaced, &["limits"])
        },
        Kind {
            default: |object| crate::defaults::set_initial_status(object, json!({})),
            validate: quota_rules,
            columns: QUOTA,
            has_status: true,
            ..row("", "v1", "ResourceQuota", "resourcequotas", Namespaced, &["quota"])
        },
        Kind {
            default: |object| {
                if let Some(class) = object.as_object_mut() {
                    set(class, "preemptionPolicy", "PreemptLowerPriority");
                    set(class, "value", 0);
                }
            },
            validate: priority_rules,
            columns: PRIORITY,
            has_generation: true,
            ..row("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", Cluster, &["pc"])
        },
        Kind {
            validate: |object, old, causes| {
                if text(object, "/handler").is_empty() {
                    causes.push(Cause::required("handler", ""));
                }
                if old.is_some_and(|it| it["handler"] != object["handler"]) {
                    causes.push(Cause::invalid("handler", &object["handler"], "field is immutable"));
                }
            },
            columns: const {
                Columns::BuiltIn(&[NAME, words("Handler"), AGE], |it, now| {
                    vec![json!(crate::name(it)), json!(text(it, "/handler")), created(it, now)]
                })
            },
            ..row("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", Cluster, &[])
        },
    ]
}

fn limit_range_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    for limit in items(spec, "limits") {
        if limit.get("type").is_none_or(|it| it != "Container") {
            continue;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let Some(amounts) = limit.get(from).and_then(Value::as_object).cloned() else { continue };
            let filled = limit.entry(to).or_insert_with(|| json!({}));
            if let Some(filled) = filled.as_object_mut() {
                for (resource, amount) in amounts {
                    set(filled, &resource, amount);
                }
            }
        }
    }
}

fn limit_range_rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    for (index, limit) in list(object, "/spec/limits").iter().enumerate() {
        if text(limit, "/type").is_empty() {
            causes.push(Cause::required(&format!("spec.limits[{index}].type"), ""));
        }
        for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            for (resource, amount) in limit[field].as_object().into_iter().flatten() {
                let written = amount.as_str().map_or_else(|| amount.to_string(), String::from);
                if quantity::parse_milli(&written).is_none_or(|it| it < 0) {
                    let at = format!("spec.limits[{index}].{field}[{resource}]");
                    causes.push(Cause::invalid(&at, amount, "must be a quantity such as 500m or 128Mi"));
                }
            }
        }
        let milli =
            |field: &str, resource: &str| limit[field][resource].as_str().and_then(quantity::parse_milli);
        for (lower, upper) in
            [("min", "max"), ("min", "default"), ("defaultRequest", "default"), ("default", "max")]
        {
            for (resource, amount) in limit[lower].as_object().into_iter().flatten() {
                if let (Some(low), Some(high)) = (milli(lower, resource), milli(upper, resource))
                    && low > high
                {
                    let at = format!("spec.limits[{index}].{lower}[{resource}]");
                    let high = text(&limit[upper], &format!("/{resource}"));
                    causes.push(Cause::invalid(
                        &at,
                        amount,
                        &format!("{lower} value is greater than {upper} value {high}"),
                    ));
                }
            }
        }
    }
}

fn quota_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    for (resource, amount) in object["spec"]["hard"].as_object().into_iter().flatten() {
        let written = amount.as_str().map_or_else(|| amount.to_string(), String::from);
        if quantity::parse_milli(&written).is_none_or(|it| it < 0) {
            let at = format!("spec.hard[{resource}]");
            causes.push(Cause::invalid(&at, amount, "must be greater than or equal to 0"));
        }
    }
    if old.is_some_and(|it| it["spec"]["scopes"] != object["spec"]["scopes"]) {
        causes.push(Cause::invalid("spec.scopes", &object["spec"]["scopes"], "field is immutable"));
    }
}

fn priority_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let value = int(object, "/value");
    if value > HIGHEST_USER_PRIORITY && !crate::name(object).starts_with("system-") {
        causes.push(Cause {
            reason: "FieldValueForbidden",
            message: format!(
                "Forbidden: maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
            ),
            field: "value".into(),
        });
    }
    let policies = ["Never", "PreemptLowerPriority"];
    if !policies.iter().any(|it| object["preemptionPolicy"] == *it) {
        causes.push(Cause::unsupported("preemptionPolicy", &object["preemptionPolicy"], &policies));
    }
    if let Some(old) = old {
        if int(old, "/value") != value {
            causes.push(Cause {
                reason: "FieldValueForbidden",
                message: "Forbidden: may not be changed in an update.".into(),
                field: "value".into(),
            });
        }
        if old["preemptionPolicy"] != object["preemptionPolicy"] {
            causes.push(Cause::invalid(
                "preemptionPolicy",
                &object["preemptionPolicy"],
                "field is immutable",
            ));
        }
    }
}

const QUOTA: Columns = Columns::BuiltIn(&[NAME, words("Request"), words("Limit"), AGE], |it, now| {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in it["status"]["hard"].as_object().into_iter().flatten() {
        let used = it["status"]["used"][resource].as_str().unwrap_or("0");
        let shown = format!("{resource}: {used}/{}", hard.as_str().unwrap_or(""));
        match resource.starts_with("limits") {
            true => limits.push(shown),
            false => requests.push(shown),
        }
    }
    vec![json!(crate::name(it)), json!(requests.join(", ")), json!(limits.join(", ")), created(it, now)]
});

const PRIORITY: Columns = Columns::BuiltIn(
    &[
        NAME,
        column("Value", "integer", 0),
        column("Global-Default", "boolean", 0),
        AGE,
        words("PreemptionPolicy"),
    ],
    |it, now| {
        vec![
            json!(crate::name(it)),
            json!(int(it, "/value")),
            json!(it["globalDefault"] == true),
            created(it, now),
            json!(text(it, "/preemptionPolicy")),
        ]
    },
);
