//! PodDisruptionBudget.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, created, figure, words};
use crate::defaults::set_initial_status;
use crate::selector::LabelSelector;
use crate::table::Scope::Namespaced;
use crate::table::row;
use crate::validation::{self, Causes};
use crate::{Cause, Kind, int};

pub(super) fn rows() -> Vec<Kind> {
    vec![Kind {
        default: |object| {
            set_initial_status(
                object,
                json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
            );
        },
        validate: budget_rules,
        columns: BUDGET,
        has_status: true,
        has_generation: true,
        ..row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", Namespaced, &["pdb"])
    }]
}

fn budget_rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        causes.push(Cause::invalid("spec", &json!({}), "minAvailable and maxUnavailable cannot be both set"));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        if !spec[field].is_null() && validation::int_or_percent(&spec[field]).is_none() {
            causes.push(Cause::invalid(
                &format!("spec.{field}"),
                &spec[field],
                "must be an integer or a percentage (e.g '5%')",
            ));
        }
    }
    if LabelSelector::from_object(&spec["selector"]).is_none() {
        causes.push(Cause::invalid("spec.selector", &spec["selector"], "invalid label selector"));
    }
}

const BUDGET: Columns = Columns::BuiltIn(
    &[NAME, words("Min Available"), words("Max Unavailable"), figure("Allowed Disruptions"), AGE],
    |it, now| {
        let amount = |field: &str| match &it["spec"][field] {
            Value::Null => json!("N/A"),
            Value::String(text) => json!(text),
            number => json!(number.to_string()),
        };
        vec![
            json!(crate::name(it)),
            amount("minAvailable"),
            amount("maxUnavailable"),
            json!(int(it, "/status/disruptionsAllowed")),
            created(it, now),
        ]
    },
);
