//! Flow control of API requests: kept for clients that manage it; a server for ten people has no
//! use for it.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, column, created, or_none, words};
use crate::defaults::{set, set_initial_status, spec_of};
use crate::table::Scope::Cluster;
use crate::table::row;
use crate::{Cause, Kind, Tier, condition, int, text};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";

pub(super) fn rows() -> Vec<Kind> {
    vec![
        Kind {
            default: |object| {
                if let Some(spec) = spec_of(object) {
                    set(spec, "matchingPrecedence", 1000);
                }
                set_initial_status(object, json!({}));
            },
            validate: |object, _, causes| {
                if text(object, "/spec/priorityLevelConfiguration/name").is_empty() {
                    causes.push(Cause::required("spec.priorityLevelConfiguration.name", ""));
                }
                if !(1..=10_000).contains(&int(object, "/spec/matchingPrecedence")) {
                    causes.push(Cause::invalid(
                        "spec.matchingPrecedence",
                        &object["spec"]["matchingPrecedence"],
                        "must be between 1 and 10000, inclusive",
                    ));
                }
            },
            columns: SCHEMA,
            has_status: true,
            has_generation: true,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "FlowSchema", "flowschemas", Cluster, &[])
        },
        Kind {
            default: level_defaults,
            validate: |object, _, causes| {
                let spec = &object["spec"];
                if spec["type"] != "Limited" && spec["type"] != "Exempt" {
                    causes.push(Cause::unsupported("spec.type", &spec["type"], &["Exempt", "Limited"]));
                }
                if spec["type"] == "Limited" && !spec["limited"].is_object() {
                    causes.push(Cause::required("spec.limited", "must not be empty when type is Limited"));
                }
            },
            columns: LEVEL,
            has_status: true,
            has_generation: true,
            tier: Tier::Stored,
            ..row(GROUP, "v1", "PriorityLevelConfiguration", "prioritylevelconfigurations", Cluster, &[])
        },
    ]
}

fn level_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    let exempt = spec.get("type").is_some_and(|it| it == "Exempt");
    if exempt {
        set(spec, "exempt", json!({}));
    }
    for (part, shares) in [("exempt", 0), ("limited", 30)] {
        let Some(part) = spec.get_mut(part).and_then(Value::as_object_mut) else { continue };
        set(part, "nominalConcurrencyShares", shares);
        set(part, "lendablePercent", 0);
        let Some(response) = part.get_mut("limitResponse").and_then(Value::as_object_mut) else { continue };
        if let Some(queuing) = response.get_mut("queuing").and_then(Value::as_object_mut) {
            set(queuing, "queues", 64);
            set(queuing, "handSize", 8);
            set(queuing, "queueLengthLimit", 50);
        }
    }
    set_initial_status(object, json!({}));
}

const SCHEMA: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("PriorityLevel"),
        column("MatchingPrecedence", "integer", 0),
        words("DistinguisherMethod"),
        AGE,
        words("MissingPL"),
    ],
    |it, now| {
        vec![
            json!(crate::name(it)),
            json!(text(it, "/spec/priorityLevelConfiguration/name")),
            json!(int(it, "/spec/matchingPrecedence")),
            or_none(text(it, "/spec/distinguisherMethod/type")),
            created(it, now),
            json!(condition(it, "Dangling").map_or("?", |it| text(it, "/status"))),
        ]
    },
);

const LEVEL: Columns = Columns::BuiltIn(
    &[
        NAME,
        words("Type"),
        words("NominalConcurrencyShares"),
        words("Queues"),
        words("HandSize"),
        words("QueueLengthLimit"),
        AGE,
    ],
    |it, now| {
        let figure = |pointer: &str| {
            or_none(&it.pointer(pointer).and_then(Value::as_i64).map(|it| it.to_string()).unwrap_or_default())
        };
        vec![
            json!(crate::name(it)),
            json!(text(it, "/spec/type")),
            figure("/spec/limited/nominalConcurrencyShares"),
            figure("/spec/limited/limitResponse/queuing/queues"),
            figure("/spec/limited/limitResponse/queuing/handSize"),
            figure("/spec/limited/limitResponse/queuing/queueLengthLimit"),
            created(it, now),
        ]
    },
);
