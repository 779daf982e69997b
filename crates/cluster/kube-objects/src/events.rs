//! Events: what happened to an object, for people. The same happening counts up instead of
//! filling the store.

use jiff::Timestamp;
use kube_kinds::{Failure, name, namespace, table, time, uid};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Door, Objects, Writer};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Normal,
    Warning,
}

/// A reference to the object that an event is about.
pub fn involved(object: &Value) -> Value {
    json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"], "name": name(object),
        "namespace": namespace(object), "uid": uid(object),
        "resourceVersion": object["metadata"]["resourceVersion"],
    })
}

impl Objects {
    /// Records an event about `object`. Failing to record one is worth a log line, not an error.
    pub async fn event(&self, object: &Value, kind: EventType, reason: &str, message: &str, writer: &Writer) {
        if let Err(failure) = self.record_event(object, kind, reason, message, writer).await {
            tracing::debug!(%failure, reason, object = name(object), "event not recorded");
        }
    }

    async fn record_event(
        &self,
        object: &Value,
        kind: EventType,
        reason: &str,
        message: &str,
        writer: &Writer,
    ) -> Result<(), Failure> {
        let events = table::of("", "Event").expect("the table of kinds has events");
        let place = match namespace(object) {
            "" => "default",
            namespace => namespace,
        };
        let mut hash = Sha256::new();
        for part in [uid(object), reason, message, &writer.manager] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let digest: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let event_name = format!("{}.{digest}", name(object));
        let now = time::format(Timestamp::now());
        if self.find(events, place, &event_name).is_some() {
            let counted = self
                .edit(events, place, &event_name, Door::Object, writer, |event| {
                    event["count"] = json!(event["count"].as_i64().unwrap_or(1) + 1);
                    event["lastTimestamp"] = json!(now);
                })
                .await;
            return counted.map(|_| ());
        }
        let event = json!({
            "metadata": {"name": event_name},
            "involvedObject": involved(object),
            "type": match kind { EventType::Normal => "Normal", EventType::Warning => "Warning" },
            "reason": reason, "message": message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "eventTime": null,
            "source": {"component": writer.manager},
            "reportingComponent": writer.manager, "reportingInstance": "",
        });
        match self.create(events, place, event, writer).await {
            Err(failure) if !failure.is_already_exists() => Err(failure),
            _ => Ok(()),
        }
    }
}
