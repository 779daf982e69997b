//! Whatever a client sends, patches answer: with a new state or an error, never with a panic.

use std::io::Read;

use kube_patch::{Apply, Fields, Owner, Shape, apply, json, merge, record_update, strategic};
use serde_json::{Value, json};

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

fn odd(dice: &mut Dice) -> Value {
    let all = [
        json!(null),
        json!(""),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!([]),
        json!({}),
        json!([null]),
        json!([[1]]),
        json!({"": {}}),
        json!("$patch"),
        json!({"$patch": "delete"}),
        json!({"$patch": 7}),
        json!({"$retainKeys": [1]}),
        json!({"$setElementOrder/containers": "x"}),
        json!([{"$patch": "replace"}]),
        json!({"$deleteFromPrimitiveList/finalizers": {}}),
        json!([{"name": null}, {"name": null}]),
        json!(true),
    ];
    all[dice.below(all.len())].clone()
}

/// Puts odd things into random places.
fn spoil(value: &mut Value, dice: &mut Dice) {
    match value {
        Value::Object(map) if !map.is_empty() && dice.below(5) != 0 => {
            let at = dice.below(map.len());
            if let Some(field) = map.values_mut().nth(at) {
                spoil(field, dice);
            }
        }
        Value::Array(items) if !items.is_empty() && dice.below(5) != 0 => {
            let at = dice.below(items.len());
            spoil(&mut items[at], dice);
        }
        place => *place = odd(dice),
    }
}

#[test]
fn spoiled_objects_and_patches_never_make_anything_panic() {
    let file = include_bytes!("../oracle/golden.jsonl.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&file[..]).read_to_string(&mut text).expect("made by the oracle");
    let widget: Value = serde_json::from_str(include_str!("../oracle/widget.json")).expect("JSON");
    let mut dice = Dice(7);
    let ignored = Fields::of_paths(&[&["status"]]);
    for line in text.lines().step_by(8) {
        let sequence: Value = serde_json::from_str(line).expect("JSON");
        let kind = sequence["kind"].as_str().expect("a kind");
        let shape = match kind {
            "Widget" => Shape::declared(&widget),
            "Deployment" => Shape::built_in("apps", "v1", kind),
            _ => Shape::built_in("", "v1", kind),
        };
        let owner = Owner { manager: "m", api_version: "v1", subresource: "", now: "2026-01-01T00:00:00Z" };
        let mut live = json!({});
        for step in sequence["steps"].as_array().expect("steps") {
            let mut object = step["object"].clone();
            for _ in 0..dice.below(4) {
                spoil(&mut object, &mut dice);
            }
            if dice.below(4) == 0 && object.is_object() {
                object["metadata"] = json!({"managedFields": odd(&mut dice)});
            }
            let _ = merge(&live, &object);
            let _ = strategic(&live, &object, &shape);
            let _ = json(
                &live,
                &json!([{"op": "replace", "path": "/spec/x/-", "value": object}, odd(&mut dice)]),
            );
            let request = Apply { owner, force: dice.below(2) == 0, shape, ignored: &ignored };
            let mut new = match apply(Some(&live), &object, &request) {
                Ok(Ok(new)) => new,
                _ => object,
            };
            if new.is_object() {
                record_update(Some(&live), &mut new, &owner, &shape, &ignored);
                if dice.below(3) == 0 {
                    spoil(&mut new, &mut dice);
                }
                live = new;
            }
        }
    }
}
