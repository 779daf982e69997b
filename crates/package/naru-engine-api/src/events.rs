//! What happened lately, and what happens: `docker events`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use axum::extract::{RawQuery, State};
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::answer::{Query, json_lines, parse_time};
use crate::engine::Engine;
use crate::error::Result;
use crate::filters::Filters;

/// Kept for `--since`; as many as dockerd keeps are 256, more cost little.
const KEPT_MAX: usize = 1024;

pub struct Events {
    kept: Mutex<VecDeque<Value>>,
    sender: broadcast::Sender<Value>,
}

impl Default for Events {
    fn default() -> Self {
        Self { kept: Mutex::default(), sender: broadcast::channel(KEPT_MAX).0 }
    }
}

impl Events {
    pub fn tell(&self, kind: &str, action: &str, id: &str, attributes: Value) {
        let now = Timestamp::now();
        let mut attributes = attributes;
        // Go's maps hold text only.
        for value in attributes.as_object_mut().into_iter().flat_map(|it| it.values_mut()) {
            if !value.is_string() {
                *value = json!(value.to_string());
            }
        }
        let mut event = json!({
            "Type": kind, "Action": action, "Actor": {"ID": id, "Attributes": attributes}, "scope": "local",
            "time": now.as_second(), "timeNano": i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX),
        });
        if kind == "container" || kind == "image" {
            event["status"] = json!(action);
            event["id"] = json!(id);
            event["from"] = event["Actor"]["Attributes"]["image"].clone();
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Inside the lock: who subscribes sees each event once, kept or sent.
        let _ = self.sender.send(event);
    }

    pub fn follow(&self) -> (Vec<Value>, broadcast::Receiver<Value>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.sender.subscribe())
    }
}

const FILTERS: &[&str] = &[
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

fn fits(filters: &Filters, event: &Value) -> bool {
    let kind = event["Type"].as_str().unwrap_or_default();
    let id = event["Actor"]["ID"].as_str().unwrap_or_default();
    let attributes = &event["Actor"]["Attributes"];
    let is_named = |wanted: &str| {
        id == wanted || (wanted.len() >= 4 && id.starts_with(wanted)) || attributes["name"] == wanted
    };
    let of_kind = |name: &str| !filters.has(name) || (kind == name && filters.of(name).any(is_named));
    let action = event["Action"].as_str().unwrap_or_default();
    let of_image = || {
        let image = attributes["image"].as_str().unwrap_or_default();
        filters.any("image", |wanted| {
            (kind == "image" && is_named(wanted))
                || image == wanted
                || image.split(':').next() == Some(wanted)
        })
    };
    filters.any("type", |it| it == kind)
        && filters.any("event", |it| action == it || action.split(':').next() == Some(it))
        && filters.any("scope", |it| it == "local")
        && of_kind("container")
        && of_kind("network")
        && of_kind("volume")
        && of_image()
        && filters.labels(attributes)
        && !["config", "daemon", "node", "plugin", "secret", "service"].iter().any(|it| filters.has(it))
}

pub async fn events(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let filters = Filters::parse(query.get("filters"), FILTERS)?;
    let since = query.get("since").map(parse_time).transpose()?;
    let until = query.get("until").map(parse_time).transpose()?;
    let at = |event: &Value| event["timeNano"].as_i64().map(i128::from).unwrap_or(0);
    let (kept, receiver) = engine.events.follow();
    let earlier: Vec<Value> = kept
        .into_iter()
        .filter(|it| since.is_some_and(|since| at(it) >= since.as_nanosecond()))
        .filter(|it| until.is_none_or(|until| at(it) <= until.as_nanosecond()))
        .filter(|it| fits(&filters, it))
        .collect();
    let stream = futures::stream::unfold(
        (earlier.into_iter().collect::<VecDeque<_>>(), receiver, filters),
        move |(mut earlier, mut receiver, filters)| async move {
            if let Some(event) = earlier.pop_front() {
                return Some((event, (earlier, receiver, filters)));
            }
            let ends = async {
                match until {
                    Some(until) => {
                        let left = until.duration_since(Timestamp::now());
                        tokio::time::sleep(std::time::Duration::try_from(left).unwrap_or_default()).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(ends);
            loop {
                tokio::select! {
                    () = &mut ends => return None,
                    event = receiver.recv() => match event {
                        Ok(event) if fits(&filters, &event) => return Some((event, (earlier, receiver, filters))),
                        Ok(_) => {}
                        // Too slow for what happened meanwhile; what comes now is told.
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return None,
                    },
                }
            }
        },
    );
    Ok(json_lines(stream))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_choose_events() {
        let events = Events::default();
        events.tell(
            "container",
            "health_status: healthy",
            "abcdef",
            json!({"name": "web", "image": "shop:1", "a": 1}),
        );
        let (kept, _) = events.follow();
        let check = |text: &str| fits(&Filters::parse(Some(text), FILTERS).unwrap(), &kept[0]);
        assert!(check(r#"{"event":["health_status"],"container":["web"],"label":["a=1"],"image":["shop"]}"#));
        assert!(!check(r#"{"type":["network"]}"#) && !check(r#"{"container":["db"]}"#));
    }
}
