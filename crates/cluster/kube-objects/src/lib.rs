//! Reading and writing objects: the one way into the store, for the API and for the controllers.
//!
//! Each write is the same three steps: read the present state, decide the next one with the plain
//! functions of `kube-kinds` and `kube-patch`, and put it into the store under the condition that
//! nobody was faster. A write that changes nothing is not written.
//!
//! Not here: HTTP, authentication, discovery (see `kube-api`).

mod admission;
mod events;
mod notes;
mod patch;
mod registry;

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::{self, Birth, DeleteOptions, Deletion};
use kube_kinds::{Failure, Kind, list, name, structural, table, text, time};
use kube_store::{Entry, Expected, Store, WriteError};
use rand::Rng;
use serde_json::{Value, json};

pub use events::{EventType, involved};
pub use notes::{Notes, Validation};
pub use patch::Patch;
pub use registry::Registry;

use notes::Source;

/// A write that keeps losing the race against others gives up after this many attempts.
const ATTEMPTS_MAX: usize = 32;
const PERMANENT_NAMESPACES: [&str; 3] = ["default", "kube-public", "kube-system"];
/// Letters of generated names: no vowels, so that no words come about.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A handle to the objects in a store. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    store: Store,
    /// The same for all handles of one store.
    locks: Arc<admission::Locks>,
}

/// Which part of an object a write concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Object,
    Status,
    /// The object, written through its scale: whoever scales owns the number of replicas.
    Scale,
    /// The resources of a running pod's containers.
    Resize,
    /// Containers that are added to a running pod.
    Ephemeral,
}

/// On whose behalf, and whether it is meant.
#[derive(Debug, Clone)]
pub struct Writer {
    pub manager: String,
    pub mode: Mode,
    pub validation: Validation,
    /// Where to say what was odd.
    pub notes: Notes,
    /// `UserInfo` of the authentication API.
    pub user: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Commit,
    /// Everything but the write itself.
    DryRun,
}

impl Writer {
    pub fn new(manager: &str) -> Writer {
        Writer {
            manager: manager.to_string(),
            mode: Mode::Commit,
            validation: Validation::Ignore,
            notes: Notes::default(),
            user: json!({"username": "system:naru", "groups": ["system:masters", "system:authenticated"]}),
        }
    }
}

/// Who keeps the record of the fields' owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Record {
    Update,
    /// The same, for a state that a patch has made.
    Patch,
    /// The next state comes with it.
    Done,
}

/// What became of a deletion.
#[derive(Debug, Clone)]
pub enum Deleted {
    /// Gone; the last state.
    Removed(Arc<Value>),
    /// Marked; finalizers or a node still hold it.
    Pending(Arc<Value>),
}

/// Whether a patch made the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Created,
    Updated,
}

impl Objects {
    pub fn new(store: Store) -> Objects {
        Objects { locks: store.shared(), store }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn find(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.store.get(&kind.key(namespace, name)).map(|it| present(kind, it.value))
    }

    pub fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Arc<Value>, Failure> {
        self.find(kind, namespace, name).ok_or_else(|| Failure::not_found(kind, name))
    }

    pub fn list(&self, kind: &Kind, namespace: Option<&str>, selector: &LabelSelector) -> Vec<Arc<Value>> {
        let items = self.store.list(&kind.prefix_in(namespace)).items.into_iter();
        items.map(|it| present(kind, it.value)).filter(|it| selector.matches(it)).collect()
    }

    pub async fn create(
        &self,
        kind: &Kind,
        namespace: &str,
        object: Value,
        writer: &Writer,
    ) -> Result<Arc<Value>, Failure> {
        let mut object = strategy::typed(kind, object)?;
        notes::conform(kind, &mut object, Source::Body, writer.validation, &writer.notes)?;
        strategy::complete(kind, &mut object)?;
        patch::record(kind, None, &mut object, Door::Object, writer, Timestamp::now());
        self.create_recorded(kind, namespace, object, writer).await
    }

    /// As `create`, for an object whose fields have their owners already.
    async fn create_recorded(
        &self,
        kind: &Kind,
        namespace: &str,
        object: Value,
        writer: &Writer,
    ) -> Result<Arc<Value>, Failure> {
        let generated = text(&object, "/metadata/name").is_empty();
        let mut object = object;
        strategy::complete(kind, &mut object)?;
        self.furnish(kind, namespace, &mut object)?;
        let mut attempt = 0;
        loop {
            let suffix = random_suffix();
            let birth = Birth {
                namespace,
                uid: uuid::Uuid::new_v4().to_string(),
                suffix: &suffix,
                now: Timestamp::now(),
            };
            let mut new = strategy::create(kind, object.clone(), &birth)?;
            self.check_namespace(kind, namespace, name(&new))?;
            let _held = self.settle(kind, None, &mut new, writer).await?;
            match self.put(kind, &new, Expected::Absent, writer).await {
                // A generated name that is taken: throw the dice again.
                Err(failure) if failure.is_already_exists() && generated && attempt < ATTEMPTS_MAX => {
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// Replaces the object, or its status. A `resourceVersion` in the new state is a condition.
    pub async fn replace(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        object: Value,
        door: Door,
        writer: &Writer,
    ) -> Result<Arc<Value>, Failure> {
        self.change(kind, namespace, name, door, writer, Record::Update, |_| Ok(object.clone())).await
    }

    /// Reads, lets `edit` change a copy, writes; again when somebody else was faster.
    pub async fn edit(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        door: Door,
        writer: &Writer,
        edit: impl Fn(&mut Value),
    ) -> Result<Arc<Value>, Failure> {
        self.change(kind, namespace, name, door, writer, Record::Update, |live| {
            let mut new = live.clone();
            edit(&mut new);
            Ok(new)
        })
        .await
    }

    /// Applies a patch. Only server-side apply makes an object that is not there.
    pub async fn patch(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        patch: &Patch,
        door: Door,
        writer: &Writer,
    ) -> Result<(Arc<Value>, Outcome), Failure> {
        if let Patch::Apply { object, force } = patch {
            return self.apply(kind, namespace, name, object, *force, door, writer).await;
        }
        let changed = self
            .change(kind, namespace, name, door, writer, Record::Patch, |live| patch.next_state(kind, live))
            .await?;
        Ok((changed, Outcome::Updated))
    }

    async fn apply(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        object: &Value,
        force: bool,
        door: Door,
        writer: &Writer,
    ) -> Result<(Arc<Value>, Outcome), Failure> {
        let mut object = strategy::typed(kind, object.clone())?;
        notes::conform(kind, &mut object, Source::Patch, writer.validation, &writer.notes)?;
        let object = &object;
        let mut attempt = 0;
        loop {
            let live = self.store.get(&kind.key(namespace, name)).map(|it| present(kind, it.value));
            let result = match &live {
                None if door == Door::Status => return Err(Failure::not_found(kind, name)),
                None => {
                    let new = patch::applied(kind, None, object, name, force, door, writer)?;
                    self.create_recorded(kind, namespace, new, writer).await.map(|it| (it, Outcome::Created))
                }
                Some(_) => self
                    .change(kind, namespace, name, door, writer, Record::Done, |live| {
                        patch::applied(kind, Some(live), object, name, force, door, writer)
                    })
                    .await
                    .map(|it| (it, Outcome::Updated)),
            };
            // The object came or went in between.
            let raced = match (&live, &result) {
                (None, Err(failure)) => failure.is_already_exists(),
                (Some(_), Err(failure)) => failure.is_not_found(),
                _ => false,
            };
            attempt += 1;
            if !raced || attempt == ATTEMPTS_MAX {
                return result;
            }
        }
    }

    /// Binds a pod to a node.
    pub async fn bind(
        &self,
        namespace: &str,
        name: &str,
        node: &str,
        writer: &Writer,
    ) -> Result<Arc<Value>, Failure> {
        let kind = table::of("", "Pod").expect("the table of kinds has pods");
        for _ in 0..ATTEMPTS_MAX {
            let live = self.entry(kind, namespace, name)?;
            let mut new = (*live.value).clone();
            let bound = text(&new, "/spec/nodeName");
            if !bound.is_empty() {
                let why = format!("pod {name} is already assigned to node {bound:?}");
                return Err(Failure::conflict(kind, name, &why));
            }
            if kube_kinds::is_deleting(&new) {
                let why = format!("pod {name} is being deleted, cannot be assigned to a host");
                return Err(Failure::conflict(kind, name, &why));
            }
            new["spec"]["nodeName"] = json!(node);
            let scheduled = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null,
                "lastTransitionTime": time::format(Timestamp::now())});
            set_condition(&mut new, scheduled);
            match self.put(kind, &new, Expected::Revision(live.revision), writer).await {
                Err(failure) if failure.is_conflict() => {}
                other => return other,
            }
        }
        Err(Failure::modified(kind, name))
    }

    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        writer: &Writer,
    ) -> Result<Deleted, Failure> {
        if kind.is_namespace() && PERMANENT_NAMESPACES.contains(&name) {
            return Err(Failure::forbidden(kind, name, "this namespace may not be deleted"));
        }
        for _ in 0..ATTEMPTS_MAX {
            let live = self.entry(kind, namespace, name)?;
            self.ask_policies("DELETE", kind, "", Some(&live.value), None, writer)?;
            let result = match strategy::delete(
                kind,
                &present(kind, live.value.clone()),
                options,
                Timestamp::now(),
            )? {
                Deletion::Unchanged => return Ok(Deleted::Pending(present(kind, live.value))),
                Deletion::Remove if writer.mode == Mode::DryRun => {
                    return Ok(Deleted::Removed(present(kind, live.value)));
                }
                Deletion::Remove => self.remove(kind, &live).await.map(Deleted::Removed),
                Deletion::Mark(new) => self
                    .put(kind, &new, Expected::Revision(live.revision), writer)
                    .await
                    .map(Deleted::Pending),
            };
            match result {
                Err(failure) if failure.is_conflict() => {}
                other => return other,
            }
        }
        Err(Failure::modified(kind, name))
    }

    /// The loop of every change: read, decide, write if nobody was faster.
    async fn change(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        door: Door,
        writer: &Writer,
        record: Record,
        next: impl Fn(&Value) -> Result<Value, Failure>,
    ) -> Result<Arc<Value>, Failure> {
        for _ in 0..ATTEMPTS_MAX {
            let live = self.entry(kind, namespace, name)?;
            let old = present(kind, live.value.clone());
            let mut asked = strategy::typed(kind, next(&old)?)?;
            if record != Record::Done {
                let source = if record == Record::Patch { Source::Patch } else { Source::Body };
                notes::conform(kind, &mut asked, source, writer.validation, &writer.notes)?;
            }
            let stated = text(&asked, "/metadata/resourceVersion");
            if !stated.is_empty() && stated != text(&old, "/metadata/resourceVersion") {
                return Err(Failure::modified(kind, name));
            }
            let now = Timestamp::now();
            let mut new = match door {
                Door::Object | Door::Scale => strategy::update(kind, &old, asked, now)?,
                Door::Status => strategy::update_status(kind, &old, asked)?,
                Door::Resize => strategy::resize_pod(kind, &old, asked)?,
                Door::Ephemeral => strategy::add_ephemeral(kind, &old, asked)?,
            };
            if record != Record::Done {
                patch::record(kind, Some(&old), &mut new, door, writer, now);
            }
            let _held = match door {
                Door::Status => {
                    self.ask_policies("UPDATE", kind, "status", Some(&old), Some(&new), writer)?;
                    Default::default()
                }
                _ => self.settle(kind, Some(&old), &mut new, writer).await?,
            };
            if strategy::is_same(&old, &new) {
                return Ok(old);
            }
            let result = match strategy::is_released(kind, &new) {
                true if writer.mode == Mode::Commit => self.remove(kind, &live).await,
                _ => self.put(kind, &new, Expected::Revision(live.revision), writer).await,
            };
            match result {
                Err(failure) if failure.is_conflict() => {}
                other => return other,
            }
        }
        Err(Failure::modified(kind, name))
    }

    fn entry(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Entry, Failure> {
        self.store.get(&kind.key(namespace, name)).ok_or_else(|| Failure::not_found(kind, name))
    }

    async fn put(
        &self,
        kind: &Kind,
        object: &Value,
        expected: Expected,
        writer: &Writer,
    ) -> Result<Arc<Value>, Failure> {
        let name = name(object);
        let key = kind.key(kube_kinds::namespace(object), name);
        if writer.mode == Mode::DryRun {
            if expected == Expected::Absent && self.store.get(&key).is_some() {
                return Err(Failure::already_exists(kind, name));
            }
            return Ok(Arc::new(object.clone()));
        }
        let entry = self.store.put(&key, expected, stored(kind, object.clone())).await;
        entry.map(|it| present(kind, it.value)).map_err(|error| failure_of(kind, name, error))
    }

    async fn remove(&self, kind: &Kind, live: &Entry) -> Result<Arc<Value>, Failure> {
        let gone = self.store.delete(&live.key, live.revision).await;
        gone.map(|it| present(kind, it.value)).map_err(|error| failure_of(kind, name(&live.value), error))
    }

    /// Nothing is made in a namespace that is not there, or that is going away.
    fn check_namespace(&self, kind: &Kind, namespace: &str, name: &str) -> Result<(), Failure> {
        if !kind.namespaced {
            return Ok(());
        }
        let namespaces = table::of("", "Namespace").expect("the table of kinds has namespaces");
        let found = self.get(namespaces, "", namespace)?;
        if kube_kinds::is_deleting(&found) {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(Failure::forbidden(kind, name, &why));
        }
        Ok(())
    }
}

/// The object in the version of `kind`. Versions differ in their name only, unless the kind says
/// how they are stored.
pub fn present(kind: &Kind, object: Arc<Value>) -> Arc<Value> {
    let version = kind.api_version();
    let fills_in = kind.schema.as_ref().filter(|_| kind.fills_in);
    if object["apiVersion"] == version.as_str() && fills_in.is_none() {
        return object;
    }
    let mut object = (*object).clone();
    match &kind.stored {
        Some(stored) => (stored.from_stored)(&mut object),
        None => object["apiVersion"] = json!(version),
    }
    if let Some(schema) = fills_in {
        structural::fill(&mut object, schema);
    }
    Arc::new(object)
}

/// The object as it is stored.
fn stored(kind: &Kind, mut object: Value) -> Value {
    if let Some(stored) = &kind.stored {
        (stored.to_stored)(&mut object);
    }
    object
}

/// Sets a condition in `status.conditions`, by its type.
pub fn set_condition(object: &mut Value, condition: Value) {
    let status = &mut object["status"];
    if status.is_null() {
        *status = json!({});
    }
    let conditions = &mut status["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Some(all) = conditions.as_array_mut() {
        match all.iter_mut().find(|it| it["type"] == condition["type"]) {
            Some(old) => *old = condition,
            None => all.push(condition),
        }
    }
}

/// Removes one finalizer.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) {
    let left: Vec<Value> =
        list(object, "/metadata/finalizers").iter().filter(|it| *it != finalizer).cloned().collect();
    object["metadata"]["finalizers"] = Value::Array(left);
}

/// Five letters for generated names.
pub fn random_suffix() -> String {
    let mut dice = rand::rng();
    (0..5).map(|_| SUFFIX_LETTERS[dice.random_range(0..SUFFIX_LETTERS.len())] as char).collect()
}

fn failure_of(kind: &Kind, name: &str, error: WriteError) -> Failure {
    match error {
        WriteError::Exists { .. } => Failure::already_exists(kind, name),
        WriteError::Absent => Failure::not_found(kind, name),
        WriteError::Conflict { .. } => Failure::modified(kind, name),
        WriteError::TooLarge { .. } => {
            Failure::new(413, "RequestEntityTooLarge", format!("{} {name:?}: {error}", kind.resource()))
        }
        WriteError::DiskFull => Failure::new(
            507,
            "InsufficientStorage",
            "nothing was written: the disk of the object store is full",
        ),
        WriteError::Closed => Failure::new(503, "ServiceUnavailable", "the object store is closing"),
    }
}
