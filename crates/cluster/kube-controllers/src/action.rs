//! What a controller wants done, as plain data, and the doing.

use std::sync::Arc;
use std::time::Duration;

use kube_kinds::strategy::{DeleteOptions, Propagation};
use kube_kinds::{Failure, Kind, name, table};
use kube_objects::{Door, EventType, Objects, Patch, Writer};
use serde_json::{Value, json};

/// One effect.
#[derive(Debug, Clone)]
pub enum Action {
    Create {
        kind: Arc<Kind>,
        namespace: String,
        object: Value,
        /// Told in an event about this object, with the new name at the end.
        tell: Option<(Arc<Value>, &'static str, &'static str)>,
    },
    /// A merge patch of the object.
    Change {
        kind: Arc<Kind>,
        namespace: String,
        name: String,
        patch: Value,
    },
    /// Replaces the status.
    Status {
        kind: Arc<Kind>,
        namespace: String,
        name: String,
        status: Value,
    },
    Delete {
        kind: Arc<Kind>,
        namespace: String,
        name: String,
        uid: String,
        propagation: Propagation,
    },
    Bind {
        namespace: String,
        pod: String,
        node: String,
    },
    Event {
        about: Arc<Value>,
        event_type: EventType,
        reason: &'static str,
        message: String,
    },
}

/// The answer of a controller for one key.
#[derive(Debug, Default)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Look again after this time, even if nothing changes.
    pub again_after: Option<Duration>,
}

impl Plan {
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// The earlier of the waits wins.
    pub fn again_in(&mut self, seconds: i64) {
        let wait = Duration::from_secs(seconds.max(0) as u64) + Duration::from_millis(100);
        self.again_after = Some(self.again_after.map_or(wait, |it| it.min(wait)));
    }
}

/// The built-in kind, which the table has.
pub fn kind(group: &str, kind: &str) -> Arc<Kind> {
    table::of(group, kind).expect("the controllers' kinds are built in").clone()
}

/// Carries out the actions in order; the first failure ends it.
pub async fn execute(objects: &Objects, actions: Vec<Action>, writer: &Writer) -> Result<(), Failure> {
    for action in actions {
        match action {
            Action::Create { kind, namespace, object, tell } => {
                let made = objects.create(&kind, &namespace, object, writer).await;
                match (made, tell) {
                    (Ok(made), Some((about, reason, message))) => {
                        let message = format!("{message}{}", name(&made));
                        tell_later(objects, about, EventType::Normal, reason, message, writer);
                    }
                    (Ok(_), None) => {}
                    (Err(failure), Some((about, _, _))) => {
                        let message = format!("Error creating: {failure}");
                        tell_later(objects, about, EventType::Warning, "FailedCreate", message, writer);
                        return Err(failure);
                    }
                    (Err(failure), None) => return Err(failure),
                }
            }
            Action::Change { kind, namespace, name, patch } => {
                let patch = Patch::Merge(patch);
                gone_is_fine(objects.patch(&kind, &namespace, &name, &patch, Door::Object, writer).await)?;
            }
            Action::Status { kind, namespace, name, status } => {
                let write = objects.edit(&kind, &namespace, &name, Door::Status, writer, |object| {
                    object["status"] = status.clone();
                });
                gone_is_fine(write.await)?;
            }
            Action::Delete { kind, namespace, name, uid, propagation } => {
                let options = DeleteOptions {
                    propagation: Some(propagation),
                    uid: Some(uid).filter(|it| !it.is_empty()),
                    ..DeleteOptions::default()
                };
                gone_is_fine(objects.delete(&kind, &namespace, &name, &options, writer).await)?;
            }
            Action::Bind { namespace, pod, node } => {
                gone_is_fine(objects.bind(&namespace, &pod, &node, writer).await)?;
            }
            Action::Event { about, event_type, reason, message } => {
                tell_later(objects, about, event_type, reason, message, writer);
            }
        }
    }
    Ok(())
}

/// Events are written beside the work: nobody waits for them, and each costs an `fsync`.
fn tell_later(
    objects: &Objects,
    about: Arc<Value>,
    event_type: EventType,
    reason: &'static str,
    message: String,
    writer: &Writer,
) {
    let (objects, writer) = (objects.clone(), writer.clone());
    tokio::spawn(async move { objects.event(&about, event_type, reason, &message, &writer).await });
}

/// An object that went in the meantime needs nothing more.
fn gone_is_fine<T>(result: Result<T, Failure>) -> Result<(), Failure> {
    match result {
        Err(failure) if !failure.is_not_found() => Err(failure),
        _ => Ok(()),
    }
}

/// An owner reference that makes `owner` the controller.
pub fn controller_reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": name(owner),
        "uid": kube_kinds::uid(owner), "controller": true, "blockOwnerDeletion": true,
    })
}
