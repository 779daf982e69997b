//! Server-side apply: a client states the fields it cares about; the server remembers who stated
//! what, so that two clients can share an object and each can take back its own part.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::Error;
use crate::fields::Fields;
use crate::managers::{self, Entry, Operation, Owner};
use crate::schema::Shape;
use crate::typed::{self, Comparison};

/// Fields that the server owns; they never belong to a client.
const SERVER_METADATA: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "managedFields",
    "selfLink",
    "clusterName",
];
/// Owns what was there before anybody's fields were recorded.
const BEFORE: &str = "before-first-apply";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Kubernetes' limit of all annotations of an object.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

pub struct Apply<'a> {
    pub owner: Owner<'a>,
    /// Take fields away from other managers instead of failing.
    pub force: bool,
    pub shape: Shape<'a>,
    /// What this door does not write (`status`, or all but `status`).
    pub ignored: &'a Fields,
}

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub manager: String,
    /// Empty for managers that apply.
    pub api_version: String,
    pub subresource: String,
    /// When the manager last wrote, wire format; empty for managers that apply.
    pub time: String,
    pub field: String,
}

impl Conflict {
    /// `"kubectl-edit" using apps/v1`: the other manager as messages name it.
    pub fn who(&self) -> String {
        let mut who = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            who.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.api_version.is_empty() {
            who.push_str(&format!(" using {}", self.api_version));
        }
        who
    }
}

/// The object after `patch` is applied over `live` (`None` when it does not exist yet), or what
/// stands against it.
pub fn apply(
    live: Option<&Value>,
    patch: &Value,
    request: &Apply<'_>,
) -> Result<Result<Value, Vec<Conflict>>, Error> {
    typed::check(patch, &request.shape, "")?;
    let nothing = json!({});
    let live = live.unwrap_or(&nothing);
    let result = apply_once(live, patch, request, request.force);
    let conflicts = match result {
        Ok(object) => return Ok(Ok(synchronize_last_applied(live, patch, request, object))),
        Err(conflicts) => conflicts,
    };
    // Who moves from client-side apply to server-side apply owns what it applied last.
    if request.owner.manager == "kubectl"
        && let Some(own) = last_applied_fields(live, &request.shape)
    {
        let mut left = conflicts.clone();
        left.values_mut().for_each(|(_, fields)| fields.subtract(&own));
        left.retain(|_, (_, fields)| !fields.is_empty());
        if left.is_empty() {
            let object = apply_once(live, patch, request, true).expect("forced");
            return Ok(Ok(synchronize_last_applied(live, patch, request, object)));
        }
        return Ok(Err(spell(left)));
    }
    Ok(Err(spell(conflicts)))
}

/// Contested fields by the order of their owners.
type Conflicts = BTreeMap<usize, (Entry, Fields)>;

fn spell(conflicts: Conflicts) -> Vec<Conflict> {
    let mut all: Vec<Conflict> = conflicts
        .into_values()
        .flat_map(|(entry, fields)| {
            let updates = entry.operation == Operation::Update;
            fields.paths().into_iter().map(move |field| Conflict {
                manager: entry.manager.clone(),
                api_version: if updates { entry.api_version.clone() } else { String::new() },
                subresource: entry.subresource.clone(),
                time: if updates { entry.time.as_str().unwrap_or("").into() } else { String::new() },
                field,
            })
        })
        .collect();
    all.sort_by(|a, b| (&a.manager, &a.field).cmp(&(&b.manager, &b.field)));
    all
}

fn apply_once(live: &Value, patch: &Value, request: &Apply<'_>, force: bool) -> Result<Value, Conflicts> {
    let (owner, shape) = (&request.owner, &request.shape);
    let mut entries = managers::read(live);
    let (live, patch) = (&without_record(live), &without_record(patch));
    if entries.is_empty() {
        // Without an owner these fields could be taken silently.
        let first = Owner { manager: BEFORE, ..*owner };
        let changed = typed::compare(&json!({}), live, shape).without(request.ignored).changed();
        let fields = strip(changed);
        if !fields.is_empty() {
            entries.push(Entry::new(&first, Operation::Update, fields));
        }
    }
    let mut wanted = typed::fields_of(patch, shape);
    wanted.owned = false;
    wanted.subtract_below(request.ignored);

    let whole = typed::merge(live, patch, shape);
    let mut merged = whole.clone();
    let at = entries.iter().position(|it| it.is(owner, Operation::Apply));
    let before = at.map(|at| entries[at].fields.clone()).unwrap_or_default();
    if !before.is_empty() {
        merged = prune(&merged, &before, &wanted, &entries, at, shape);
    }
    let comparison = typed::compare(live, &merged, shape);
    let changes = comparison.without(request.ignored);
    take(&mut entries, &changes, at, force)?;

    typed::sweep(&mut merged, &whole, shape);
    let fields = strip(wanted);
    let same = live == &merged;
    let now = json!(owner.now);
    // The position may have moved: who lost everything is gone.
    match entries.iter_mut().find(|it| it.is(owner, Operation::Apply)) {
        Some(mine) => {
            if !same || mine.fields != fields {
                mine.time = now;
            }
            mine.fields = fields;
            mine.api_version = owner.api_version.to_string();
        }
        None => entries.push(Entry::new(owner, Operation::Apply, fields)),
    }
    managers::write(&mut merged, entries);
    Ok(merged)
}

/// Takes what this manager no longer states out of the object, unless somebody else wants it.
fn prune(
    merged: &Value,
    before: &Fields,
    wanted: &Fields,
    entries: &[Entry],
    own: Option<usize>,
    shape: &Shape<'_>,
) -> Value {
    let gone = |from: &Value, fields: &Fields| match typed::remove(from, fields, shape) {
        Value::Null => json!({}),
        left => left,
    };
    let all_of = |value: &Value| {
        let mut fields = typed::with_named(&typed::fields_of(value, shape), shape);
        fields.owned = false;
        fields
    };
    let before = typed::with_named(before, shape);
    let pruned = gone(merged, &before);

    let mut kept = wanted.clone();
    for (at, entry) in entries.iter().enumerate() {
        if Some(at) != own {
            kept.union(entry.fields.clone());
        }
    }
    let in_merged = all_of(merged);
    let mut dropped = in_merged.clone();
    dropped.subtract(&all_of(&pruned));
    dropped.subtract(&typed::with_named(&kept, shape));
    let pruned = gone(merged, &dropped);

    // What hung on a removed item, but was never this manager's, stays.
    let mut dropped = in_merged;
    dropped.subtract(&all_of(&pruned));
    gone(merged, &dropped.intersect(&before))
}

/// Takes changed fields away from all owners but the one at `own`; without force, changing what
/// another owns is a conflict.
fn take(
    entries: &mut Vec<Entry>,
    changes: &Comparison,
    own: Option<usize>,
    force: bool,
) -> Result<(), Conflicts> {
    let changed = changes.changed();
    let mut conflicts = Conflicts::new();
    for (at, entry) in entries.iter_mut().enumerate() {
        if Some(at) == own {
            continue;
        }
        let contested = entry.fields.intersect(&changed);
        if !contested.is_empty() {
            conflicts.insert(at, (entry.clone(), contested.clone()));
            entry.fields.subtract(&contested);
        }
        entry.fields.subtract(&changes.removed);
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    let mut at = 0;
    entries.retain(|it| {
        at += 1;
        Some(at - 1) == own || !it.fields.is_empty()
    });
    Ok(())
}

/// Records in `new` who owns its fields after a write that is not an apply: what the write changes
/// belongs to the writer. `old` is `None` for a new object.
pub fn record_update(
    old: Option<&Value>,
    new: &mut Value,
    owner: &Owner<'_>,
    shape: &Shape<'_>,
    ignored: &Fields,
) {
    let nothing = json!({"metadata": {}, "spec": {}, "status": {}});
    let is_new = old.is_none();
    let live = old.unwrap_or(&nothing);
    // Subresources do not write the record itself.
    let mut entries = match owner.subresource {
        "" => managers::read_asked(live, new),
        _ => managers::read(live),
    };
    if entries.is_empty() && !is_new {
        // The record was cleared: it starts again with the next apply.
        managers::write(new, entries);
        return;
    }
    let changes = typed::compare(&without_record(live), &without_record(new), shape).without(ignored);
    let changed = strip(changes.changed());
    // As in an apply, all others lose what changes; the writer keeps the rest of its own.
    let forced = take(&mut entries, &changes, None, true);
    forced.expect("forced writes have no conflicts");
    if !changed.is_empty() {
        match entries.iter_mut().find(|it| it.is(owner, Operation::Update)) {
            Some(mine) => {
                mine.fields.union(changed);
                mine.time = json!(owner.now);
            }
            None => entries.push(Entry::new(owner, Operation::Update, changed)),
        }
    }
    managers::cap(&mut entries);
    managers::write(new, entries);
}

fn without_record(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// The set without what belongs to the server.
fn strip(mut fields: Fields) -> Fields {
    fields.owned = false;
    fields.children.remove("f:apiVersion");
    fields.children.remove("f:kind");
    if let Some(metadata) = fields.children.get_mut("f:metadata") {
        for name in SERVER_METADATA {
            if let Some(child) = metadata.children.get_mut(&format!("f:{name}")) {
                child.owned = false;
                child.children.clear();
            }
        }
        metadata.children.retain(|_, it| !it.is_empty());
        metadata.owned = false;
        if metadata.is_empty() {
            fields.children.remove("f:metadata");
        }
    }
    fields
}

/// What client-side apply has stated and still stands.
fn last_applied_fields(live: &Value, shape: &Shape<'_>) -> Option<Fields> {
    let text = live.pointer("/metadata/annotations")?.get(LAST_APPLIED)?.as_str()?;
    let stated: Value = serde_json::from_str(text).ok()?;
    let mut fields = typed::fields_of(&stated, shape);
    let comparison = typed::compare(&stated, live, shape);
    for set in [&comparison.added, &comparison.modified, &comparison.removed] {
        fields.subtract(set);
    }
    Some(fields)
}

/// kubectl may go back to client-side apply: its annotation follows what it applies here.
fn synchronize_last_applied(live: &Value, patch: &Value, request: &Apply<'_>, mut object: Value) -> Value {
    let has = live.pointer("/metadata/annotations").is_some_and(|it| it.get(LAST_APPLIED).is_some());
    if request.owner.manager != "kubectl" || !has {
        return object;
    }
    let mut stated = without_record(patch);
    if let Some(annotations) = stated.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{stated}\n");
    if text.len() <= ANNOTATIONS_BYTES_MAX
        && let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)
    {
        annotations.insert(LAST_APPLIED.into(), json!(text));
    }
    object
}
