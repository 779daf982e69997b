//! Patches as requests carry them, turned into the next state of an object.

use jiff::Timestamp;
use kube_kinds::{Failure, Kind, time};
use kube_patch::{Apply, Conflict, Fields, Owner, Shape};
use serde_json::{Value, json};

use crate::{Door, Writer};

/// A change in part.
#[derive(Debug, Clone)]
pub enum Patch {
    Json(Value),
    Merge(Value),
    Strategic(Value),
    Apply { object: Value, force: bool },
}

impl Patch {
    /// The state that the patch asks for. An apply has its own way, because it may create.
    pub(crate) fn next_state(&self, kind: &Kind, live: &Value) -> Result<Value, Failure> {
        match self {
            Patch::Json(patch) => kube_patch::json(live, patch).map_err(unprocessable),
            Patch::Merge(patch) => Ok(kube_patch::merge(live, patch)),
            Patch::Strategic(_) if kind.schema.is_some() => Err(Failure::new(
                415,
                "UnsupportedMediaType",
                "strategic merge patch is for built-in kinds; use a merge patch for this one",
            )),
            Patch::Strategic(patch) => {
                kube_patch::strategic(live, patch, &shape(kind)).map_err(unprocessable)
            }
            Patch::Apply { object, .. } => Ok(object.clone()),
        }
    }
}

fn unprocessable(error: kube_patch::Error) -> Failure {
    Failure::new(422, "Invalid", format!("the patch cannot be applied: {error}"))
}

fn shape(kind: &Kind) -> Shape<'_> {
    match &kind.schema {
        Some(schema) => Shape::declared(schema),
        None => Shape::built_in(&kind.group, &kind.version, &kind.kind),
    }
}

/// What a write through this door does not concern, so that nobody comes to own it there.
fn ignored(kind: &Kind, door: Door) -> Fields {
    match door {
        Door::Status => Fields::of_paths(&[&["spec"], &["metadata", "labels"]]),
        _ if kind.has_status => Fields::of_paths(&[&["status"]]),
        _ => Fields::default(),
    }
}

/// The state after a server-side apply.
pub(crate) fn applied(
    kind: &Kind,
    live: Option<&Value>,
    object: &Value,
    name: &str,
    force: bool,
    door: Door,
    writer: &Writer,
) -> Result<Value, Failure> {
    if !object.is_object() {
        return Err(Failure::bad_request("the body of an apply must be an object"));
    }
    for field in ["apiVersion", "kind"] {
        if object[field].as_str().is_none_or(str::is_empty) {
            return Err(Failure::bad_request(format!("{field} must be set in the body of an apply")));
        }
    }
    if object["metadata"]["managedFields"].as_array().is_some_and(|it| !it.is_empty()) {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    let mut object = object.clone();
    if kube_kinds::name(&object).is_empty() {
        object["metadata"]["name"] = json!(name);
    }
    let api_version = kind.api_version();
    let now = time::format(Timestamp::now());
    let owner = Owner {
        manager: &writer.manager,
        api_version: &api_version,
        subresource: subresource(door),
        now: &now,
    };
    let ignored = ignored(kind, door);
    let request = Apply { owner, force, shape: shape(kind), ignored: &ignored };
    match kube_patch::apply(live, &object, &request) {
        Ok(Ok(applied)) => Ok(applied),
        Ok(Err(conflicts)) => Err(conflict(&conflicts)),
        Err(error) => Err(Failure::bad_request(format!(
            "failed to create typed patch object ({name}; {api_version}, Kind={}): {error}",
            kind.kind
        ))),
    }
}

/// Records who changed what, for writes that are not an apply.
pub(crate) fn record(
    kind: &Kind,
    old: Option<&Value>,
    new: &mut Value,
    door: Door,
    writer: &Writer,
    now: Timestamp,
) {
    let api_version = kind.api_version();
    let now = time::format(now);
    let owner = Owner {
        manager: &writer.manager,
        api_version: &api_version,
        subresource: subresource(door),
        now: &now,
    };
    kube_patch::record_update(old, new, &owner, &shape(kind), &ignored(kind, door));
}

fn subresource(door: Door) -> &'static str {
    match door {
        Door::Object => "",
        Door::Status => "status",
        Door::Scale => "scale",
        Door::Resize => "resize",
        Door::Ephemeral => "ephemeralcontainers",
    }
}

fn conflict(conflicts: &[Conflict]) -> Failure {
    let at = |it: &Conflict| match it.time.is_empty() {
        true => it.who(),
        false => format!("{} at {}", it.who(), it.time),
    };
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|it| {
            json!({"reason": "FieldManagerConflict", "field": it.field, "message": format!("conflict with {}", at(it))})
        })
        .collect();
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: conflict with {}: {}", at(one), one.field),
        many => {
            let mut lines: Vec<String> = Vec::new();
            for it in many {
                let heading = format!("conflicts with {}:", at(it));
                if !lines.contains(&heading) {
                    lines.push(heading.clone());
                    let own = many.iter().filter(|other| at(other) == at(it));
                    lines.extend(own.map(|it| format!("- {}", it.field)));
                }
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    Failure { code: 409, reason: "Conflict", message, details: json!({"causes": causes}) }
}
