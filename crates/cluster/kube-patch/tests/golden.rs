//! What Kubernetes' own field manager answers to random sequences of writes (see `oracle/`), and
//! what we answer.

use std::io::Read;

use kube_patch::{Apply, Fields, Owner, Shape, apply, record_update};
use serde_json::{Value, json};

struct Door {
    subresource: &'static str,
    ignored: Fields,
}

fn golden() -> String {
    let file = include_bytes!("../oracle/golden.jsonl.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&file[..]).read_to_string(&mut text).expect("made by the oracle");
    text
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

/// The record in the form of the golden file: no times, sorted.
fn managed(object: &Value) -> Vec<(String, Value)> {
    let mut all: Vec<(String, Value)> = object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|it| {
            let text = |field: &str| it[field].as_str().unwrap_or("").to_string();
            (
                format!("{}/{}/{}", text("operation"), text("manager"), text("subresource")),
                it["fieldsV1"].clone(),
            )
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn expected_record(step: &Value) -> Vec<(String, Value)> {
    let entries = step["managed"].as_array().into_iter().flatten();
    entries
        .map(|it| {
            let text = |field: &str| it[field].as_str().unwrap_or("").to_string();
            let fields = serde_json::from_str(&text("fields")).expect("JSON");
            (format!("{}/{}/{}", text("operation"), text("manager"), text("subresource")), fields)
        })
        .collect()
}

fn without_record(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    object
}

#[test]
fn sequences_of_writes_end_as_in_kubernetes() {
    let widget: Value = serde_json::from_str(include_str!("../oracle/widget.json")).expect("JSON");
    let doors = [
        Door { subresource: "", ignored: Fields::of_paths(&[&["status"]]) },
        Door { subresource: "status", ignored: Fields::of_paths(&[&["spec"], &["metadata", "labels"]]) },
    ];
    let mut steps = 0;
    for (number, line) in golden().lines().enumerate() {
        let sequence: Value = serde_json::from_str(line).expect("JSON");
        let kind = sequence["kind"].as_str().expect("a kind");
        let (shape, api_version) = match kind {
            "Widget" => (Shape::declared(&widget), "example.com/v1"),
            "Deployment" => (Shape::built_in("apps", "v1", kind), "apps/v1"),
            _ => (Shape::built_in("", "v1", kind), "v1"),
        };
        let mut live: Option<Value> = None;
        for (at, step) in sequence["steps"].as_array().expect("steps").iter().enumerate() {
            steps += 1;
            let place = || {
                format!(
                    "sequence {number} ({kind}), step {at}: {step}\nlive: {}",
                    live.clone().unwrap_or_default()
                )
            };
            let door = &doors[usize::from(step["door"] == "status")];
            let manager = step["manager"].as_str().expect("a manager");
            let owner =
                Owner { manager, api_version, subresource: door.subresource, now: "2026-01-01T00:00:00Z" };
            let result = match step["op"] == "apply" {
                true => {
                    let request =
                        Apply { owner, force: step["force"] == true, shape, ignored: &door.ignored };
                    apply(live.as_ref(), &step["object"], &request)
                }
                false => {
                    let mut new = step["object"].clone();
                    record_update(live.as_ref(), &mut new, &owner, &shape, &door.ignored);
                    Ok(Ok(new))
                }
            };
            let mut new = match result {
                Err(error) => {
                    assert_eq!(step["refused"], true, "{error}\n{}", place());
                    continue;
                }
                Ok(Err(conflicts)) => {
                    let mut told: Vec<String> = conflicts
                        .iter()
                        .map(|it| format!("conflict with {}: {}", it.who(), it.field))
                        .collect();
                    told.sort();
                    assert_eq!(json!(told), step["conflicts"], "{}", place());
                    continue;
                }
                Ok(Ok(new)) => new,
            };
            assert!(step["refused"].is_null() && step["conflicts"].is_null(), "{}", place());
            drop_nulls(&mut new);
            new["metadata"]["uid"] = json!("u");
            let mut wanted = step["result"].clone();
            drop_nulls(&mut wanted);
            assert_eq!(without_record(new.clone()), wanted, "{}", place());
            assert_eq!(managed(&new), expected_record(step), "{}", place());
            // Only the newest write is newer than the others.
            for entry in new["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
                entry["time"] = json!("1999-01-01T00:00:00Z");
            }
            live = Some(new);
        }
    }
    assert!(steps > 1000, "the golden file is not empty");
}
