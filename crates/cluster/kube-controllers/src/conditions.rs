//! Conditions in a status, with their times.

use jiff::Timestamp;
use kube_kinds::time;
use serde_json::{Value, json};

/// What a condition says now.
pub struct Condition<'a> {
    pub kind: &'a str,
    /// `True`, `False` or `Unknown`.
    pub status: &'a str,
    pub reason: &'a str,
    pub message: &'a str,
}

/// Sets a condition by its type. `lastTransitionTime` moves when the status does.
pub fn set(conditions: &mut Vec<Value>, new: Condition<'_>, now: Timestamp) {
    let at = conditions.iter().position(|it| it["type"] == new.kind);
    let before = at.map_or(&Value::Null, |at| &conditions[at]);
    let since = match before["status"] == new.status {
        true => before["lastTransitionTime"].clone(),
        false => json!(time::format(now)),
    };
    let mut condition = json!({"type": new.kind, "status": new.status, "lastTransitionTime": since});
    for (field, value) in [("reason", new.reason), ("message", new.message)] {
        if !value.is_empty() {
            condition[field] = json!(value);
        }
    }
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

/// As `set`, with `lastUpdateTime`, as Deployments have it: it moves with every change of reason or
/// message, and with progress.
pub fn set_updated(conditions: &mut Vec<Value>, new: Condition<'_>, progressed: bool, now: Timestamp) {
    let before = of(conditions, new.kind).cloned().unwrap_or(Value::Null);
    let same =
        before["status"] == new.status && before["reason"] == new.reason && before["message"] == new.message;
    if same && !progressed {
        return;
    }
    let kind = new.kind.to_string();
    set(conditions, new, now);
    if let Some(condition) = conditions.iter_mut().find(|it| it["type"] == kind.as_str()) {
        condition["lastUpdateTime"] = json!(time::format(now));
    }
}

/// The condition of that type.
pub fn of<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|it| it["type"] == kind)
}

/// The conditions of an object's status.
pub fn all(object: &Value) -> Vec<Value> {
    object["status"]["conditions"].as_array().cloned().unwrap_or_default()
}
