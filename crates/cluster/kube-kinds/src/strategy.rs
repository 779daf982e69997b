//! What happens to an object on its way into the store, as plain functions: what a client may set,
//! what the server sets, when the generation grows, how deletion goes.
//!
//! The API and the controllers write through the same functions, so an object looks the same
//! whoever wrote it.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{Cause, Failure, Kind, crd, is_deleting, list, name, structural, text, time, uid, validation};

/// The finalizer that makes deletion wait for the dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that makes deletion let the dependents go.
pub const ORPHAN: &str = "orphan";
/// The finalizer that makes the removal of a declared kind wait for its objects.
pub const CRD_CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// What only the outside knows when an object is made.
pub struct Birth<'a> {
    /// From the path; empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub uid: String,
    /// Completes `generateName`.
    pub suffix: &'a str,
    pub now: Timestamp,
}

/// Fills in what the client has left out.
pub fn complete(kind: &Kind, object: &mut Value) -> Result<(), Failure> {
    metadata_of(object)?;
    finish(kind, object);
    Ok(())
}

/// A new object: complete, named, checked.
pub fn create(kind: &Kind, object: Value, birth: &Birth<'_>) -> Result<Value, Failure> {
    let mut object = typed(kind, object)?;
    let metadata = metadata_of(&mut object)?;
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|it| !it.is_empty()) {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let unnamed = metadata.get("name").and_then(Value::as_str).unwrap_or("").is_empty();
    let base = metadata.get("generateName").and_then(Value::as_str).unwrap_or("").to_string();
    if unnamed && !base.is_empty() {
        // Room for the suffix within a label's 63 characters.
        let base: String = base.chars().take(58).collect();
        metadata.insert("name".into(), json!(format!("{base}{}", birth.suffix)));
    }
    place(kind, metadata, birth.namespace)?;
    for field in
        ["deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "selfLink", "generation"]
    {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), json!(birth.uid));
    metadata.insert("creationTimestamp".into(), json!(time::format(birth.now)));
    if kind.has_generation {
        metadata.insert("generation".into(), json!(1));
    }
    if kind.has_status
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
    if kind.is_crd() {
        add_finalizer(&mut object, CRD_CLEANUP);
    }
    finish(kind, &mut object);
    // Clients with typed models read it at once; what a kind begins with is among its defaults.
    if kind.has_status && kind.schema.is_none() && object["status"].is_null() {
        object["status"] = json!({});
    }
    if kind.is_crd() {
        object["status"] = crd::status_of(&object, None, None, &time::format(birth.now));
    }
    check(kind, &object, None)?;
    Ok(object)
}

/// The successor of `old` that a client asks for. Equal to `old` (but for the revision) when
/// nothing changes.
pub fn update(kind: &Kind, old: &Value, object: Value, now: Timestamp) -> Result<Value, Failure> {
    let mut object = typed(kind, object)?;
    carry_metadata(kind, old, &mut object)?;
    if kind.has_status {
        carry(old, &mut object, "status");
    }
    finish(kind, &mut object);
    (kind.carry)(old, &mut object);
    if kind.is_crd() && old["spec"] != object["spec"] {
        object["status"] = crd::status_of(&object, Some(old), None, &time::format(now));
    }
    no_new_finalizers(kind, old, &object)?;
    if kind.has_generation && specified(old) != specified(&object) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = json!(generation);
    }
    check(kind, &object, Some(old))?;
    Ok(object)
}

/// A write of a pod's `/resize`: resources of its containers and nothing else.
pub fn resize_pod(kind: &Kind, old: &Value, asked: Value) -> Result<Value, Failure> {
    let asked = typed(kind, asked)?;
    same_object(kind, old, &asked)?;
    let mut new = old.clone();
    let mut causes = Vec::new();
    for field in ["containers", "initContainers"] {
        let wanted = asked["spec"][field].as_array().map_or(&[][..], Vec::as_slice);
        // Looked up, not indexed: a field that is not there must not come to be as null.
        let containers = new["spec"].get_mut(field).and_then(Value::as_array_mut);
        let containers = containers.map_or(&mut [][..], Vec::as_mut_slice);
        for (index, container) in containers.iter_mut().enumerate() {
            let Some(wanted) = wanted.iter().find(|it| it["name"] == container["name"]) else { continue };
            let mut resized = container.clone();
            resized["resources"] = wanted["resources"].clone();
            let mut same = resized.clone();
            same["resizePolicy"] = wanted["resizePolicy"].clone();
            if *wanted != same && *wanted != resized {
                causes.push(validation::only_resources(&format!("spec.{field}[{index}]")));
            }
            *container = resized;
        }
    }
    finish(kind, &mut new);
    validation::resize(old, &new, &mut causes);
    changed_pod(kind, old, new, &asked, causes)
}

/// A write of a pod's `/ephemeralcontainers`: more of them; those that are there stay as they are.
pub fn add_ephemeral(kind: &Kind, old: &Value, asked: Value) -> Result<Value, Failure> {
    let asked = typed(kind, asked)?;
    same_object(kind, old, &asked)?;
    let mut new = old.clone();
    new["spec"]["ephemeralContainers"] = asked["spec"]["ephemeralContainers"].clone();
    finish(kind, &mut new);
    let mut causes = Vec::new();
    validation::ephemeral(old, &new, &mut causes);
    changed_pod(kind, old, new, &asked, causes)
}

fn changed_pod(
    kind: &Kind,
    old: &Value,
    mut new: Value,
    asked: &Value,
    causes: Vec<Cause>,
) -> Result<Value, Failure> {
    if !causes.is_empty() {
        return Err(Failure::invalid(kind, crate::name(old), causes));
    }
    if !asked["metadata"]["managedFields"].is_null() {
        new["metadata"]["managedFields"] = asked["metadata"]["managedFields"].clone();
    }
    if specified(old) != specified(&new) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        new["metadata"]["generation"] = json!(generation);
    }
    check(kind, &new, None)?;
    Ok(new)
}

/// A write of `/status`: the status changes, and what of the metadata is the client's. Of a declared
/// kind only the status does.
pub fn update_status(kind: &Kind, old: &Value, object: Value) -> Result<Value, Failure> {
    let object = typed(kind, object)?;
    same_object(kind, old, &object)?;
    let mut new = old.clone();
    match object.get("status") {
        Some(status) if !status.is_null() => new["status"] = status.clone(),
        _ => {
            if let Some(fields) = new.as_object_mut() {
                fields.remove("status");
            }
        }
    }
    if let (Some(asked), Some(metadata)) = (object["metadata"].as_object(), new["metadata"].as_object_mut()) {
        let fields: &[&str] = match (&kind.schema, kind.kind.as_str()) {
            (Some(_), _) => &["managedFields"],
            (None, "Deployment") => &["annotations", "finalizers", "ownerReferences", "managedFields"],
            (None, _) => &["annotations", "finalizers", "labels", "ownerReferences", "managedFields"],
        };
        for field in fields {
            match asked.get(*field).filter(|it| !it.is_null()) {
                Some(value) => metadata.insert((*field).to_string(), value.clone()),
                None => metadata.remove(*field),
            };
        }
    }
    finish(kind, &mut new);
    no_new_finalizers(kind, old, &new)?;
    let mut causes = Vec::new();
    validation::metadata(kind, &new, &mut causes);
    if let Some(schema) = &kind.schema {
        structural::check(&new, Some(old), schema, &mut causes);
        causes.retain(|it| it.field.starts_with("status") || it.field.starts_with("metadata"));
    }
    match causes.is_empty() {
        true => Ok(new),
        false => Err(Failure::invalid(kind, name(old), causes)),
    }
}

/// What is on its way out cannot be held by somebody new.
fn no_new_finalizers(kind: &Kind, old: &Value, new: &Value) -> Result<(), Failure> {
    if !is_deleting(old) {
        return Ok(());
    }
    for added in list(new, "/metadata/finalizers") {
        if !list(old, "/metadata/finalizers").contains(added) {
            let cause = Cause {
                reason: "FieldValueForbidden",
                message: format!(
                    "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers {added}"
                ),
                field: "metadata.finalizers".into(),
            };
            return Err(Failure::invalid(kind, name(old), vec![cause]));
        }
    }
    Ok(())
}

/// Whether two states differ in nothing but the revision, and in when fields were written: an apply states
/// fields before their defaults, so only here is it seen that it changed nothing.
pub fn is_same(old: &Value, new: &Value) -> bool {
    fn fields<'v>(object: &'v Value, without: &[&str]) -> Vec<(&'v String, &'v Value)> {
        let all = object.as_object().into_iter().flatten();
        let mut kept: Vec<_> = all.filter(|(name, _)| !without.contains(&name.as_str())).collect();
        kept.sort_by_key(|it| it.0);
        kept
    }
    let owners = |object: &Value| -> Vec<Vec<(String, Value)>> {
        let entry =
            |it: &Value| fields(it, &["time"]).into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        list(object, "/metadata/managedFields").iter().map(entry).collect()
    };
    fields(old, &["metadata"]) == fields(new, &["metadata"])
        && fields(&old["metadata"], &["resourceVersion", "managedFields"])
            == fields(&new["metadata"], &["resourceVersion", "managedFields"])
        && owners(old) == owners(new)
}

/// After an update: is the object to vanish because nothing holds it any more?
pub fn is_released(kind: &Kind, object: &Value) -> bool {
    let held_by_namespace = kind.is_namespace() && !list(object, "/spec/finalizers").is_empty();
    let held_by_node = kind.is_pod() && object["metadata"]["deletionGracePeriodSeconds"].as_i64() > Some(0);
    is_deleting(object)
        && list(object, "/metadata/finalizers").is_empty()
        && !held_by_namespace
        && !held_by_node
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl DeleteOptions {
    /// From the body of a DELETE request.
    pub fn parse(body: &Value) -> Result<DeleteOptions, Failure> {
        let propagation = match body["propagationPolicy"].as_str() {
            Some(word) => Some(Propagation::parse(word)?),
            None if body["orphanDependents"] == true => Some(Propagation::Orphan),
            None => None,
        };
        let owned = |value: &Value| value.as_str().map(String::from);
        Ok(DeleteOptions {
            grace_seconds: body["gracePeriodSeconds"].as_i64(),
            propagation,
            uid: owned(&body["preconditions"]["uid"]),
            resource_version: owned(&body["preconditions"]["resourceVersion"]),
        })
    }
}

impl Propagation {
    pub fn parse(word: &str) -> Result<Propagation, Failure> {
        match word {
            "Background" => Ok(Propagation::Background),
            "Foreground" => Ok(Propagation::Foreground),
            "Orphan" => Ok(Propagation::Orphan),
            other => Err(Failure::bad_request(format!("invalid propagationPolicy {other:?}"))),
        }
    }
}

/// How a deletion goes on.
#[derive(Debug, PartialEq)]
pub enum Deletion {
    /// Nothing holds the object.
    Remove,
    /// It stays, marked, until finalizers or the node let it go.
    Mark(Value),
    /// It is on its way already.
    Unchanged,
}

pub fn delete(
    kind: &Kind,
    object: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Result<Deletion, Failure> {
    if let Some(wanted) = options.uid.as_deref().filter(|it| *it != uid(object)) {
        let why = format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {}",
            uid(object)
        );
        return Err(Failure::conflict(kind, name(object), &why));
    }
    let revision = text(object, "/metadata/resourceVersion");
    if let Some(wanted) = options.resource_version.as_deref().filter(|it| *it != revision) {
        let why =
            format!("Precondition failed: ResourceVersion in precondition: {wanted}, in object: {revision}");
        return Err(Failure::conflict(kind, name(object), &why));
    }
    let mut new = object.clone();
    match options.propagation {
        Some(Propagation::Foreground) if !is_deleting(object) => add_finalizer(&mut new, FOREGROUND),
        Some(Propagation::Orphan) if !is_deleting(object) => add_finalizer(&mut new, ORPHAN),
        _ => {}
    }
    let grace = match kind.is_pod() {
        true => pod_grace(object, options.grace_seconds),
        false => 0,
    };
    let held = !list(&new, "/metadata/finalizers").is_empty()
        || (kind.is_namespace() && !list(&new, "/spec/finalizers").is_empty());
    if grace == 0 && !held {
        return Ok(Deletion::Remove);
    }
    let metadata = &mut new["metadata"];
    if !is_deleting(object) {
        let end = now.saturating_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
        metadata["deletionTimestamp"] = json!(time::format(end));
        metadata["deletionGracePeriodSeconds"] = json!(grace);
        if kind.has_generation {
            metadata["generation"] = json!(metadata["generation"].as_i64().unwrap_or(0) + 1);
        }
        if kind.is_namespace() {
            new["status"]["phase"] = json!("Terminating");
        }
    } else if kind.is_pod() && grace < metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) {
        // A later request may only shorten the time.
        let end = now.saturating_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
        metadata["deletionTimestamp"] = json!(time::format(end));
        metadata["deletionGracePeriodSeconds"] = json!(grace);
    }
    match new == *object {
        true => Ok(Deletion::Unchanged),
        false => Ok(Deletion::Mark(new)),
    }
}

/// Seconds that a node has to stop the pod: none when no node has it or it has ended by itself.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let ended = ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"));
    if text(pod, "/spec/nodeName").is_empty() || ended {
        return 0;
    }
    asked.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30).max(0)
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let finalizers = &mut object["metadata"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().any(|it| it == finalizer) => {}
        Some(list) => list.push(json!(finalizer)),
        None => *finalizers = json!([finalizer]),
    }
}

/// The object with `apiVersion` and `kind` of the path, which it must not contradict.
pub fn typed(kind: &Kind, mut object: Value) -> Result<Value, Failure> {
    let Some(fields) = object.as_object_mut() else {
        return Err(Failure::bad_request("the body must be an object"));
    };
    for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
        match fields.get(field).and_then(Value::as_str) {
            Some(given) if !given.is_empty() && given != expected => {
                return Err(Failure::bad_request(format!(
                    "{field} in the body is {given:?}, but the path serves {expected:?}"
                )));
            }
            _ => fields.insert(field.into(), json!(expected)),
        };
    }
    Ok(object)
}

fn metadata_of(object: &mut Value) -> Result<&mut Map<String, Value>, Failure> {
    let fields = object.as_object_mut().ok_or_else(|| Failure::bad_request("the body must be an object"))?;
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    metadata.as_object_mut().ok_or_else(|| Failure::bad_request("metadata must be an object"))
}

/// The namespace of the path, which the body must not contradict.
fn place(kind: &Kind, metadata: &mut Map<String, Value>, namespace: &str) -> Result<(), Failure> {
    if !kind.namespaced {
        metadata.remove("namespace");
        return Ok(());
    }
    match metadata.get("namespace").and_then(Value::as_str) {
        Some(given) if !given.is_empty() && given != namespace => Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
        _ => {
            metadata.insert("namespace".into(), json!(namespace));
            Ok(())
        }
    }
}

fn same_object(kind: &Kind, old: &Value, new: &Value) -> Result<(), Failure> {
    let given = text(new, "/metadata/name");
    if !given.is_empty() && given != name(old) {
        return Err(Failure::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({})",
            name(old)
        )));
    }
    let given = uid(new);
    if !given.is_empty() && given != uid(old) {
        let why =
            format!("Precondition failed: UID in precondition: {given}, UID in object meta: {}", uid(old));
        return Err(Failure::conflict(kind, name(old), &why));
    }
    Ok(())
}

/// What of the metadata only the server writes stays as it is.
fn carry_metadata(kind: &Kind, old: &Value, object: &mut Value) -> Result<(), Failure> {
    same_object(kind, old, object)?;
    let namespace = crate::namespace(old).to_string();
    let metadata = metadata_of(object)?;
    place(kind, metadata, &namespace)?;
    for field in [
        "name",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        match old["metadata"].get(field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
    Ok(())
}

fn carry(old: &Value, new: &mut Value, field: &str) {
    if let Some(fields) = new.as_object_mut() {
        match old.get(field) {
            Some(value) => fields.insert(field.into(), value.clone()),
            None => fields.remove(field),
        };
    }
}

/// Defaults, and metadata without empty leftovers.
fn finish(kind: &Kind, object: &mut Value) {
    (kind.default)(object);
    if let Some(schema) = &kind.schema {
        structural::fill(object, schema);
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
            let empty = metadata.get(field).is_some_and(|it| {
                it.is_null()
                    || it.as_array().is_some_and(Vec::is_empty)
                    || it.as_object().is_some_and(Map::is_empty)
            });
            if empty {
                metadata.remove(field);
            }
        }
        metadata.remove("selfLink");
    }
}

fn check(kind: &Kind, object: &Value, old: Option<&Value>) -> Result<(), Failure> {
    let mut causes = Vec::new();
    validation::metadata(kind, object, &mut causes);
    (kind.validate)(object, old, &mut causes);
    if let Some(schema) = &kind.schema {
        structural::check(object, old, schema, &mut causes);
    }
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Failure::invalid(kind, name(object), causes)),
    }
}

/// Everything but metadata and status: what the generation counts.
fn specified(object: &Value) -> Vec<(&String, &Value)> {
    object
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(field, _)| !["metadata", "status", "apiVersion", "kind"].contains(&field.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("a time")
    }

    fn made(group: &str, kind: &str, object: Value) -> Value {
        let kind = table::of(group, kind).expect("built in");
        let birth = Birth { namespace: "default", uid: "u1".into(), suffix: "x7k2p", now: now() };
        create(kind, object, &birth).expect("valid")
    }

    fn config_map() -> Value {
        made("", "ConfigMap", json!({"metadata": {"generateName": "a-"}, "data": {"k": "v"}}))
    }

    #[test]
    fn a_new_object_is_named_placed_and_dated() {
        let object = config_map();
        assert_eq!(object["metadata"]["name"], "a-x7k2p");
        assert_eq!(object["metadata"]["namespace"], "default");
        assert_eq!(object["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
        assert_eq!(object["apiVersion"], "v1");
    }

    #[test]
    fn a_new_object_has_the_status_that_its_kind_begins_with() {
        let namespace = made("", "Namespace", json!({"metadata": {"name": "n"}}));
        assert_eq!(namespace["status"], json!({"phase": "Active"}));
        let node = made("", "Node", json!({"metadata": {"name": "n"}, "status": {"phase": "x"}}));
        assert_eq!(node["status"], json!({}));
    }

    #[test]
    fn the_generation_counts_changes_of_the_specification_only() {
        let kind = table::of("apps", "Deployment").expect("built in");
        let old = made(
            "apps",
            "Deployment",
            json!({"metadata": {"name": "web"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
        );
        let mut labelled = old.clone();
        labelled["metadata"]["labels"] = json!({"x": "y"});
        labelled["status"] = json!({"replicas": 7});
        let new = update(kind, &old, labelled, now()).expect("valid");
        assert_eq!(new["metadata"]["generation"], 1);
        assert_eq!(new["status"], json!({}), "the status has a door of its own");
        let mut scaled = old.clone();
        scaled["spec"]["replicas"] = json!(3);
        assert_eq!(update(kind, &old, scaled, now()).expect("valid")["metadata"]["generation"], 2);
        let status = json!({"spec": {"replicas": 9}, "status": {"replicas": 1}});
        let new = update_status(kind, &old, status).expect("valid");
        assert_eq!((&new["spec"]["replicas"], &new["status"]["replicas"]), (&json!(1), &json!(1)));
    }

    #[test]
    fn pods_on_a_node_get_their_grace_and_others_vanish() {
        let kind = table::of("", "Pod").expect("built in");
        let free = made(
            "",
            "Pod",
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        );
        let options = DeleteOptions::default();
        assert_eq!(delete(kind, &free, &options, now()).expect("valid"), Deletion::Remove);
        let mut bound = free;
        bound["spec"]["nodeName"] = json!("n1");
        let Deletion::Mark(marked) = delete(kind, &bound, &options, now()).expect("valid") else {
            panic!("marked")
        };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:30Z");
        assert!(!is_released(kind, &marked));
        assert_eq!(delete(kind, &marked, &options, now()).expect("valid"), Deletion::Unchanged);
        let at_once = DeleteOptions { grace_seconds: Some(0), ..options };
        assert_eq!(delete(kind, &marked, &at_once, now()).expect("valid"), Deletion::Remove);
    }

    #[test]
    fn finalizers_hold_an_object_until_they_are_gone() {
        let kind = table::of("", "ConfigMap").expect("built in");
        let mut object = config_map();
        object["metadata"]["finalizers"] = json!(["naru.dev/x"]);
        let Deletion::Mark(marked) = delete(kind, &object, &DeleteOptions::default(), now()).expect("valid")
        else {
            panic!("marked")
        };
        assert!(!is_released(kind, &marked));
        let mut more = marked.clone();
        more["metadata"]["finalizers"] = json!(["naru.dev/x", "late"]);
        assert_eq!(update(kind, &marked, more, now()).expect_err("refused").code, 422);
        let mut released = marked.clone();
        released["metadata"]["finalizers"] = json!([]);
        assert!(is_released(kind, &update(kind, &marked, released, now()).expect("valid")));
    }
}
