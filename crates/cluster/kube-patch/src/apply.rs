//! Server-side apply: a client states the fields it cares about; the server remembers who stated
//! what, so that two clients can share an object and each can take back its own part.
//!
//! Narrow on purpose, and in its final place: ownership of Update requests is recorded only on
//! objects that somebody has applied (as Kubernetes did at first), one set of fields serves all
//! versions of a kind, and quantities are compared as text.

use serde_json::{Map, Value, json};

use crate::Error;
use crate::fields::{Fields, item_key};
use crate::schema::{ListType, Shape};

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
    "deletionTimestamp",
];

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// Empty, or `status`.
    pub subresource: &'a str,
    /// Wire format; used only when something changes.
    pub now: &'a str,
}

pub struct Apply<'a> {
    pub owner: Owner<'a>,
    /// Take fields away from other managers instead of failing.
    pub force: bool,
    pub shape: Shape<'a>,
    /// Top-level fields that this door does not write (`status`, or all but `status`).
    pub ignored: &'a [&'a str],
}

/// The new object. `removed_fields` is for logs and tests.
#[derive(Debug)]
pub struct Applied {
    pub object: Value,
    pub removed_fields: Vec<String>,
}

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub manager: String,
    pub api_version: String,
    pub field: String,
}

#[derive(Debug, Clone)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: Value,
    fields: Fields,
}

impl Entry {
    fn is(&self, owner: &Owner<'_>, operation: &str) -> bool {
        self.manager == owner.manager
            && self.operation == operation
            && self.subresource == owner.subresource
            && (operation == "Apply" || self.api_version == owner.api_version)
    }
}

/// Applies `patch` over `live` (`None` when the object does not exist yet).
pub fn apply(
    live: Option<&Value>,
    patch: &Value,
    request: &Apply<'_>,
) -> Result<Result<Applied, Vec<Conflict>>, Error> {
    let owner = &request.owner;
    let mut patch = patch.clone();
    drop_nulls(&mut patch);
    if let Some(fields) = patch.as_object_mut() {
        fields.retain(|name, _| !request.ignored.contains(&name.as_str()));
    }
    fill_keys(&mut patch, &request.shape)?;
    let wanted = client_fields(&patch, &request.shape);
    let Some(live) = live else {
        let mut object = patch;
        let entries = vec![new_entry(owner, "Apply", wanted)];
        write_entries(&mut object, entries);
        return Ok(Ok(Applied { object, removed_fields: Vec::new() }));
    };
    let mut entries = read_entries(live);
    if entries.is_empty() {
        // Nobody knows who wrote it: without an owner its fields could be taken silently.
        let mut fields = client_fields(live, &request.shape);
        fields.children.remove("f:status");
        let first = Owner { manager: "before-first-apply", subresource: "", ..*owner };
        entries.push(new_entry(&first, "Update", fields));
    }
    let changing = differing(Some(live), &patch, &request.shape).intersect_members(&wanted);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|it| !it.is(owner, "Apply")) {
        let contested = entry.fields.intersect(&changing);
        if contested.is_empty() {
            continue;
        }
        if request.force {
            entry.fields.subtract(&contested);
        } else {
            conflicts.extend(contested.paths().into_iter().map(|field| Conflict {
                manager: entry.manager.clone(),
                api_version: entry.api_version.clone(),
                field,
            }));
        }
    }
    if !conflicts.is_empty() {
        return Ok(Err(conflicts));
    }

    let mut object = merge_typed(live, &patch, &request.shape);
    let before = entries.iter().find(|it| it.is(owner, "Apply")).map(|it| it.fields.clone());
    let mut dropped = before.clone().unwrap_or_default();
    dropped.subtract(&wanted);
    for entry in entries.iter().filter(|it| !it.is(owner, "Apply")) {
        dropped.subtract(&entry.fields);
    }
    let removed_fields = dropped.paths();
    remove(&mut object, &dropped, &kept_by_others(&entries, owner, &wanted), &request.shape);

    match entries.iter_mut().find(|it| it.is(owner, "Apply")) {
        Some(mine) => {
            if mine.fields != wanted || !equal_but_managers(&object, live) {
                mine.time = json!(owner.now);
            }
            mine.fields = wanted;
            mine.api_version = owner.api_version.to_string();
        }
        None => entries.push(new_entry(owner, "Apply", wanted)),
    }
    entries.retain(|it| !it.fields.is_empty());
    write_entries(&mut object, entries);
    Ok(Ok(Applied { object, removed_fields }))
}

/// Records a write that is not an apply: what it changed now belongs to the writer. Does nothing
/// on objects that nobody has applied.
pub fn record_update(old: &Value, new: &mut Value, owner: &Owner<'_>, shape: &Shape<'_>) {
    if new["metadata"]["managedFields"].as_array().is_none_or(Vec::is_empty) {
        return;
    }
    if old["metadata"]["managedFields"] != new["metadata"]["managedFields"] {
        // The client edits the record itself, as migration tools do.
        return;
    }
    let mut changed = differing(Some(old), new, shape);
    strip_server_fields(&mut changed);
    let mut removed = client_fields(old, shape);
    removed.subtract(&client_fields(new, shape));
    if changed.is_empty() && removed.is_empty() {
        return;
    }
    let mut entries = read_entries(new);
    for entry in &mut entries {
        entry.fields.subtract(&removed);
        if !entry.is(owner, "Update") {
            entry.fields.subtract(&changed);
        }
    }
    if !changed.is_empty() {
        match entries.iter_mut().find(|it| it.is(owner, "Update")) {
            Some(mine) => {
                mine.fields.union(&changed);
                mine.time = json!(owner.now);
            }
            None => entries.push(new_entry(owner, "Update", changed)),
        }
    }
    entries.retain(|it| !it.fields.is_empty());
    write_entries(new, entries);
}

fn new_entry(owner: &Owner<'_>, operation: &str, fields: Fields) -> Entry {
    Entry {
        manager: owner.manager.to_string(),
        operation: operation.to_string(),
        api_version: owner.api_version.to_string(),
        subresource: owner.subresource.to_string(),
        time: json!(owner.now),
        fields,
    }
}

fn read_entries(object: &Value) -> Vec<Entry> {
    let owned = |value: &Value| value.as_str().unwrap_or("").to_string();
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| Entry {
            manager: owned(&it["manager"]),
            operation: owned(&it["operation"]),
            api_version: owned(&it["apiVersion"]),
            subresource: owned(&it["subresource"]),
            time: it["time"].clone(),
            fields: Fields::parse(&it["fieldsV1"]),
        })
        .filter(|it| !it.fields.is_empty())
        .collect()
}

fn write_entries(object: &mut Value, entries: Vec<Entry>) {
    let entries: Vec<Value> = entries
        .into_iter()
        .map(|it| {
            let mut entry = json!({
                "manager": it.manager, "operation": it.operation, "apiVersion": it.api_version,
                "time": it.time, "fieldsType": "FieldsV1", "fieldsV1": it.fields.to_value(),
            });
            if !it.subresource.is_empty() {
                entry["subresource"] = json!(it.subresource);
            }
            entry
        })
        .collect();
    object["metadata"]["managedFields"] = Value::Array(entries);
}

/// The fields of an object that a client can own.
fn client_fields(object: &Value, shape: &Shape<'_>) -> Fields {
    let mut fields = Fields::of(object, shape);
    strip_server_fields(&mut fields);
    fields
}

fn strip_server_fields(fields: &mut Fields) {
    fields.owned = false;
    fields.children.remove("f:apiVersion");
    fields.children.remove("f:kind");
    if let Some(metadata) = fields.children.get_mut("f:metadata") {
        for name in SERVER_METADATA {
            metadata.children.remove(&format!("f:{name}"));
        }
        metadata.owned = false;
        if metadata.is_empty() {
            fields.children.remove("f:metadata");
        }
    }
}

impl Fields {
    /// As `intersect`; a separate name because the receiver is a set of changes.
    fn intersect_members(&self, wanted: &Fields) -> Fields {
        self.intersect(wanted)
    }
}

/// The leaves of `new` that `old` does not have, or has with another value.
fn differing(old: Option<&Value>, new: &Value, shape: &Shape<'_>) -> Fields {
    let mut fields = Fields::default();
    if old == Some(new) {
        return fields;
    }
    let mut add = |element: String, child: Fields| {
        if !child.is_empty() {
            fields.children.insert(element, child);
        }
    };
    match new {
        Value::Object(map) if !map.is_empty() && !shape.map_is_atomic() => {
            for (name, value) in map {
                add(
                    format!("f:{name}"),
                    differing(old.and_then(|it| it.get(name)), value, &shape.field(name)),
                );
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let old_items = old.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            match shape.list_type() {
                ListType::Atomic => fields.owned = true,
                ListType::Set => {
                    for item in items.iter().filter(|it| !old_items.contains(it)) {
                        add(format!("v:{item}"), Fields::leaf());
                    }
                }
                ListType::Map(keys) => {
                    let place = shape.items();
                    for item in items {
                        let key = item_key(item, &keys, &place);
                        let before = old_items.iter().find(|it| item_key(it, &keys, &place) == key);
                        let mut child = differing(before, item, &place);
                        child.owned |= before.is_none();
                        add(key, child);
                    }
                }
            }
        }
        _ => fields.owned = true,
    }
    fields
}

fn merge_typed(live: &Value, patch: &Value, shape: &Shape<'_>) -> Value {
    match (live, patch) {
        (Value::Object(live), Value::Object(patch)) if !shape.map_is_atomic() => {
            let mut new = live.clone();
            for (name, value) in patch {
                let merged = match live.get(name) {
                    Some(old) => merge_typed(old, value, &shape.field(name)),
                    None => value.clone(),
                };
                new.insert(name.clone(), merged);
            }
            Value::Object(new)
        }
        (Value::Array(live), Value::Array(patch)) => match shape.list_type() {
            ListType::Atomic => Value::Array(patch.clone()),
            ListType::Set => {
                let mut new = live.clone();
                new.extend(patch.iter().filter(|it| !live.contains(it)).cloned());
                Value::Array(new)
            }
            ListType::Map(keys) => {
                let place = shape.items();
                let mut new = live.clone();
                for item in patch {
                    let key = item_key(item, &keys, &place);
                    match new.iter_mut().find(|it| item_key(it, &keys, &place) == key) {
                        Some(old) => *old = merge_typed(old, item, &place),
                        None => new.push(item.clone()),
                    }
                }
                Value::Array(new)
            }
        },
        (_, patch) => patch.clone(),
    }
}

/// What must stay although this manager lets it go.
fn kept_by_others(entries: &[Entry], owner: &Owner<'_>, wanted: &Fields) -> Fields {
    let mut kept = wanted.clone();
    for entry in entries.iter().filter(|it| !it.is(owner, "Apply")) {
        kept.union(&entry.fields);
    }
    kept
}

/// Removes members of `dropped`, unless something below them belongs to somebody else.
fn remove(value: &mut Value, dropped: &Fields, kept: &Fields, shape: &Shape<'_>) {
    let none = Fields::default();
    match value {
        Value::Object(map) => {
            for (element, child) in &dropped.children {
                let Some(name) = element.strip_prefix("f:") else { continue };
                let kept = kept.children.get(element).unwrap_or(&none);
                if child.owned && kept.is_empty() {
                    map.remove(name);
                } else if let Some(field) = map.get_mut(name) {
                    remove(field, child, kept, &shape.field(name));
                    let emptied = field.as_object().is_some_and(Map::is_empty)
                        || field.as_array().is_some_and(Vec::is_empty);
                    if emptied && kept.is_empty() {
                        map.remove(name);
                    }
                }
            }
        }
        Value::Array(items) => {
            let keys = match shape.list_type() {
                ListType::Map(keys) => keys,
                ListType::Set => {
                    items.retain(|it| {
                        let element = format!("v:{it}");
                        !dropped.children.contains_key(&element) || kept.children.contains_key(&element)
                    });
                    return;
                }
                ListType::Atomic => return,
            };
            let place = shape.items();
            items.retain_mut(|item| {
                let element = item_key(item, &keys, &place);
                let Some(child) = dropped.children.get(&element) else { return true };
                let kept = kept.children.get(&element).unwrap_or(&none);
                if child.owned && kept.is_empty() {
                    return false;
                }
                remove(item, child, kept, &place);
                true
            });
        }
        _ => {}
    }
}

fn equal_but_managers(a: &Value, b: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        object
    };
    strip(a) == strip(b)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Writes defaulted keys into items of list maps, and finds items without their keys.
fn fill_keys(value: &mut Value, shape: &Shape<'_>) -> Result<(), Error> {
    match value {
        Value::Object(map) => {
            for (name, field) in map.iter_mut() {
                fill_keys(field, &shape.field(name))?;
            }
        }
        Value::Array(items) => {
            let place = shape.items();
            if let ListType::Map(keys) = shape.list_type() {
                for (item, key) in items.iter_mut().flat_map(|item| {
                    let missing: Vec<String> =
                        keys.iter().filter(|key| item.get(key.as_str()).is_none()).cloned().collect();
                    let mut item = Some(item);
                    missing.first().cloned().and_then(|key| item.take().map(|item| (item, key)))
                }) {
                    match (place.key_default(&key), item.as_object_mut()) {
                        (Some(default), Some(fields)) => fields.insert(key, default),
                        _ => return Err(Error::MissingKey { path: shape.path(), key }),
                    };
                }
            }
            for item in items {
                fill_keys(item, &place)?;
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>(manager: &'a str, force: bool) -> Apply<'a> {
        Apply {
            owner: Owner { manager, api_version: "apps/v1", subresource: "", now: "T1" },
            force,
            shape: Shape::built_in("Deployment"),
            ignored: &["status"],
        }
    }

    #[track_caller]
    fn applied(live: Option<&Value>, patch: Value, manager: &str) -> Value {
        apply(live, &patch, &request(manager, false)).expect("good").expect("no conflict").object
    }

    fn without_managers(mut object: Value) -> Value {
        object["metadata"].as_object_mut().expect("metadata").remove("managedFields");
        object
    }

    fn two_containers() -> Value {
        json!({"metadata": {"name": "web", "labels": {"a": "1"}}, "spec": {"replicas": 1, "template": {"spec": {"containers": [
            {"name": "a", "image": "a:1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "b:1"}]}}}})
    }

    #[test]
    fn what_a_manager_no_longer_states_is_removed() {
        let live = applied(None, two_containers(), "ci");
        let fewer = json!({"metadata": {"name": "web"}, "spec": {"template": {"spec": {"containers": [
            {"name": "a", "image": "a:2"}]}}}});
        let new = applied(Some(&live), fewer, "ci");
        assert_eq!(
            without_managers(new),
            json!({"metadata": {"name": "web"}, "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "a:2"}]}}}})
        );
    }

    #[test]
    fn a_second_manager_conflicts_shares_or_takes_by_force() {
        let live = applied(None, two_containers(), "ci");
        let scale = json!({"metadata": {"name": "web"}, "spec": {"replicas": 3}});
        let conflicts =
            apply(Some(&live), &scale, &request("ops", false)).expect("good").expect_err("owned by ci");
        assert_eq!(
            conflicts,
            [Conflict {
                manager: "ci".into(),
                api_version: "apps/v1".into(),
                field: ".spec.replicas".into()
            }]
        );
        let forced = apply(Some(&live), &scale, &request("ops", true)).expect("good").expect("forced").object;
        assert_eq!(forced["spec"]["replicas"], 3);
        let mut without = two_containers();
        without["spec"].as_object_mut().expect("spec").remove("replicas");
        let again = applied(Some(&forced), without.clone(), "ci");
        assert_eq!(again["spec"]["replicas"], 3, "it belongs to ops now");

        let same = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1}});
        let shared = applied(Some(&live), same, "ops");
        let shared = applied(Some(&shared), without, "ci");
        assert_eq!(shared["spec"]["replicas"], 1, "ops still states it");
    }

    #[test]
    fn applying_the_same_twice_changes_nothing() {
        let live = applied(None, two_containers(), "ci");
        let mut again = request("ci", false);
        again.owner.now = "T2";
        let new = apply(Some(&live), &two_containers(), &again).expect("good").expect("no conflict").object;
        assert_eq!(new, live);
        let fields = &live["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:containers"];
        assert_eq!(
            fields["k:{\"name\":\"a\"}"],
            json!({".": {}, "f:image": {}, "f:name": {}, "f:ports": {
                "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:protocol": {}}}})
        );
    }

    #[test]
    fn an_update_takes_over_what_it_changes() {
        let live = applied(None, two_containers(), "ci");
        let mut edited = live.clone();
        edited["spec"]["replicas"] = json!(5);
        let owner = Owner { manager: "kubectl-edit", api_version: "apps/v1", subresource: "", now: "T2" };
        record_update(&live, &mut edited, &owner, &Shape::built_in("Deployment"));
        assert_eq!(edited["metadata"]["managedFields"][1]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
        let conflicts = apply(Some(&edited), &two_containers(), &request("ci", false))
            .expect("good")
            .expect_err("edited");
        assert_eq!(conflicts[0].manager, "kubectl-edit");
    }

    #[test]
    fn fields_of_an_object_that_nobody_applied_are_not_taken_silently() {
        let live = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2}});
        let patch = json!({"metadata": {"name": "web"}, "spec": {"replicas": 3}});
        let conflicts =
            apply(Some(&live), &patch, &request("ci", false)).expect("good").expect_err("somebody's");
        assert_eq!(conflicts[0].manager, "before-first-apply");
    }
}
