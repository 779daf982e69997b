//! Events of the newer group: the same objects as core events, under other field names.

use serde_json::{Map, Value};

use crate::columns::{Columns, EVENT};
use crate::table::Scope::Namespaced;
use crate::table::row;
use crate::{Kind, Stored};

/// Field of `events.k8s.io/v1`, field of core `v1`.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

pub(super) fn rows() -> Vec<Kind> {
    vec![Kind {
        field: |event, field| {
            let field = match field.strip_prefix("regarding.") {
                Some(rest) => format!("involvedObject.{rest}"),
                None if field == "reportingController" => "reportingComponent".to_string(),
                None => field.to_string(),
            };
            crate::table::event_field(&core(event), &field)
        },
        columns: EVENTS,
        stored: Some(Stored {
            prefix: "core/events/",
            to_stored: |event| rename(event, NAMES.map(|(new, core)| (new, core)), "v1"),
            from_stored: |event| rename(event, NAMES.map(|(new, core)| (core, new)), "events.k8s.io/v1"),
        }),
        ..row("events.k8s.io", "v1", "Event", "events", Namespaced, &["ev"])
    }]
}

/// The event as core events are; it may be one already.
fn core(event: &Value) -> Value {
    let mut event = event.clone();
    rename(&mut event, NAMES, "v1");
    event
}

fn rename(event: &mut Value, names: [(&str, &str); NAMES.len()], api_version: &str) {
    let Some(fields) = event.as_object_mut() else { return };
    let mut renamed = Map::new();
    for (name, value) in std::mem::take(fields) {
        let to = names.iter().find(|(from, _)| *from == name).map_or(name.as_str(), |(_, to)| to);
        renamed.insert(to.to_string(), value);
    }
    renamed.insert("apiVersion".into(), api_version.into());
    *fields = renamed;
}

const EVENTS: Columns = match EVENT {
    Columns::BuiltIn(columns, _) => Columns::BuiltIn(columns, |event, now| EVENT.cells(&core(event), now)),
    Columns::Declared(_) => panic!("events are built in"),
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn an_event_is_the_same_in_both_groups() {
        let kind = crate::table::find("events.k8s.io", "v1", "events").expect("built in");
        let stored = kind.stored.expect("stored as core events");
        let sent = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal",
            "regarding": {"kind": "Pod", "name": "p"}, "note": "done", "reportingController": "c", "action": "x"});
        let mut object = sent.clone();
        (stored.to_stored)(&mut object);
        assert_eq!(object["involvedObject"]["name"], "p");
        assert_eq!(object["message"], "done");
        (stored.from_stored)(&mut object);
        assert_eq!(object, sent);
        assert_eq!(kind.field_value(&object, "regarding.kind").as_deref(), Some("Pod"));
    }
}
