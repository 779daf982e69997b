//! What a controller wants done, as plain data, and the doing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use kube_kinds::strategy::{DeleteOptions, Propagation};
use kube_kinds::{Failure, Kind, name, namespace, table, text, time, uid};
use kube_objects::{Door, EventType, Objects, Patch, Writer};
use serde_json::{Value, json};

/// One effect.
#[derive(Debug, Clone)]
pub enum Action {
    /// Neighbouring creations of one kind go side by side, a few at first and then more.
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
    /// One condition of a pod; the rest of its status belongs to the node.
    PodCondition {
        namespace: String,
        pod: String,
        uid: String,
        condition: Value,
    },
    /// Neighbouring deletions go side by side.
    Delete {
        kind: Arc<Kind>,
        namespace: String,
        name: String,
        uid: String,
        propagation: Propagation,
    },
    /// The directory of a volume, open to whatever user the pod runs as.
    MakeDirectory {
        path: PathBuf,
    },
    RemoveDirectory {
        path: PathBuf,
    },
    /// A pod that no node answers for goes at once.
    Kill {
        namespace: String,
        pod: String,
        uid: String,
    },
    /// Where a pod will be when those have gone that are in its way.
    Nominate {
        namespace: String,
        pod: String,
        node: String,
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

    /// A merge patch of `object`.
    pub fn change(&mut self, kind: &Arc<Kind>, object: &Value, patch: Value) {
        self.push(Action::Change {
            kind: kind.clone(),
            namespace: namespace(object).to_string(),
            name: name(object).to_string(),
            patch,
        });
    }

    /// The status of `object`, if it is another one.
    pub fn status(&mut self, kind: &Arc<Kind>, object: &Value, status: Value) {
        if object["status"] != status {
            self.push(Action::Status {
                kind: kind.clone(),
                namespace: namespace(object).to_string(),
                name: name(object).to_string(),
                status,
            });
        }
    }

    pub fn delete(&mut self, kind: &Arc<Kind>, object: &Value) {
        self.push(Action::Delete {
            kind: kind.clone(),
            namespace: namespace(object).to_string(),
            name: name(object).to_string(),
            uid: uid(object).to_string(),
            propagation: Propagation::Background,
        });
    }

    pub fn create(&mut self, kind: &Arc<Kind>, namespace: &str, object: Value) {
        self.push(Action::Create {
            kind: kind.clone(),
            namespace: namespace.to_string(),
            object,
            tell: None,
        });
    }

    pub fn normal(&mut self, about: &Arc<Value>, reason: &'static str, message: String) {
        self.push(Action::Event { about: about.clone(), event_type: EventType::Normal, reason, message });
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
    let mut actions = actions.into_iter().peekable();
    // As many creations at once as the last ones that went well, doubled: when a quota is used up, one
    // refusal says as much as a hundred.
    let mut creations_max = 1;
    while let Some(first) = actions.next() {
        let batch_max = match &first {
            Action::Create { .. } => creations_max,
            Action::Delete { .. } => DELETIONS_AT_ONCE_MAX,
            _ => 1,
        };
        let mut batch = vec![first];
        while batch.len() < batch_max {
            match actions.next_if(|it| goes_beside(&batch[0], it)) {
                Some(next) => batch.push(next),
                None => break,
            }
        }
        if matches!(batch[0], Action::Create { .. }) {
            creations_max = (batch.len() * 2).min(CREATIONS_AT_ONCE_MAX);
        }
        let done = join_all(batch.into_iter().map(|it| execute_one(objects, it, writer))).await;
        done.into_iter().collect::<Result<(), Failure>>()?;
    }
    Ok(())
}

/// Bounds what one key keeps in the store's write queue.
const CREATIONS_AT_ONCE_MAX: usize = 128;
const DELETIONS_AT_ONCE_MAX: usize = 128;

fn goes_beside(first: &Action, next: &Action) -> bool {
    match (first, next) {
        (Action::Create { kind: one, .. }, Action::Create { kind: other, .. })
        | (Action::Delete { kind: one, .. }, Action::Delete { kind: other, .. }) => Arc::ptr_eq(one, other),
        _ => false,
    }
}

async fn execute_one(objects: &Objects, action: Action, writer: &Writer) -> Result<(), Failure> {
    match action {
        Action::Create { kind, namespace, object, tell } => {
            let made = objects.create(&kind, &namespace, object, writer).await;
            match (made, tell) {
                (Ok(made), Some((about, reason, message))) => {
                    let message = format!("{message}{}", name(&made));
                    tell_later(objects, about, EventType::Normal, reason, message, writer);
                }
                (Ok(_), None) => {}
                // Its container is on the way out, and it with it.
                (Err(failure), _) if is_terminating(&failure) => {}
                (Err(failure), Some((about, _, _))) => {
                    let message = format!("Error creating: {failure}");
                    say_replica_failure(objects, &about, &failure, writer).await;
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
        Action::PodCondition { namespace, pod, uid, condition } => {
            let pods = crate::action::kind("", "Pod");
            let write = objects.edit(&pods, &namespace, &pod, Door::Status, writer, |object| {
                if kube_kinds::uid(object) == uid {
                    kube_objects::set_condition(object, condition.clone());
                }
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
        Action::MakeDirectory { path } => make_directory(&path).await.map_err(|it| on_disk(&path, &it))?,
        Action::RemoveDirectory { path } => match tokio::fs::remove_dir_all(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(on_disk(&path, &error)),
            _ => {}
        },
        Action::Kill { namespace, pod, uid } => {
            let options =
                DeleteOptions { grace_seconds: Some(0), uid: Some(uid), ..DeleteOptions::default() };
            let pods = crate::action::kind("", "Pod");
            gone_is_fine(objects.delete(&pods, &namespace, &pod, &options, writer).await)?;
        }
        Action::Nominate { namespace, pod, node } => {
            let pods = crate::action::kind("", "Pod");
            let write = objects.edit(&pods, &namespace, &pod, Door::Status, writer, |object| {
                object["status"]["nominatedNodeName"] = json!(node);
            });
            gone_is_fine(write.await)?;
        }
        Action::Bind { namespace, pod, node } => {
            gone_is_fine(objects.bind(&namespace, &pod, &node, writer).await)?;
        }
        Action::Event { about, event_type, reason, message } => {
            tell_later(objects, about, event_type, reason, message, writer);
        }
    }
    Ok(())
}

async fn make_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    tokio::fs::create_dir_all(path).await?;
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).await
}

fn on_disk(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(500, "InternalError", format!("the volume's directory {}: {error}", path.display()))
}

fn is_terminating(failure: &Failure) -> bool {
    failure.code == 403 && failure.message.contains("because it is being terminated")
}

/// ReplicaSets and ReplicationControllers say in a condition why they cannot have their pods.
async fn say_replica_failure(objects: &Objects, owner: &Value, failure: &Failure, writer: &Writer) {
    if !["ReplicaSet", "ReplicationController"].contains(&text(owner, "/kind")) {
        return;
    }
    let Some(kind) =
        table::of(text(owner, "/apiVersion").split_once('/').map_or("", |it| it.0), text(owner, "/kind"))
    else {
        return;
    };
    let condition = json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
        "message": failure.to_string(), "lastTransitionTime": time::format(Timestamp::now())});
    let (place, name) = (kube_kinds::namespace(owner), name(owner));
    let write = objects.edit(kind, place, name, Door::Status, writer, |object| {
        let known = kube_kinds::condition(object, "ReplicaFailure");
        // The message names a pod whose name is new each time; writing that would wake us for ever.
        if known.is_none_or(|it| it["reason"] != condition["reason"]) {
            kube_objects::set_condition(object, condition.clone());
        }
    });
    if let Err(failure) = write.await {
        tracing::debug!(%failure, name, "the condition ReplicaFailure is not recorded");
    }
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
