//! Whatever a client sends as an object of whatever kind, the answer is an object or a failure that
//! names what is wrong: never a panic, never something that the API cannot read again.

use jiff::Timestamp;
use kube_kinds::strategy::{self, Birth, DeleteOptions};
use kube_kinds::{Kind, decode, table};
use kube_tables::{Schema, Type};
use serde_json::{Map, Value, json};

/// The same numbers in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }

    fn one<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// A value of the official shape, with odd content.
fn made(schema: &Schema, dice: &mut Dice, depth: usize) -> Value {
    let texts = [
        "a",
        "",
        "A B",
        "web",
        "1Gi",
        "10%",
        "/x",
        "../y",
        "Always",
        "true",
        "10.96.0.1",
        "None",
        "2026-01-01T00:00:00Z",
    ];
    match schema.kind() {
        _ if dice.below(60) == 0 => Value::Null,
        Type::Object => {
            let mut map = Map::new();
            let chance = if depth < 3 { 3 } else { 8 };
            for (name, property) in schema.properties() {
                if depth < 9 && (dice.below(chance) == 0 || schema.required().contains(&name)) {
                    map.insert(name.into(), made(property, dice, depth + 1));
                }
            }
            if let Some(values) = schema.additional() {
                for _ in 0..dice.below(3) {
                    map.insert(dice.one(&["a", "b/c", "", "cpu", "."]).into(), made(values, dice, depth + 1));
                }
            }
            Value::Object(map)
        }
        Type::Array => match schema.items() {
            Some(items) if depth < 9 => (0..dice.below(3)).map(|_| made(items, dice, depth + 1)).collect(),
            _ => json!([]),
        },
        Type::Integer => json!([0, 1, -1, 80, 65536, i32::MAX][dice.below(6)]),
        Type::Number => json!(1.5),
        Type::Boolean => json!(dice.below(2) == 0),
        Type::IntOrString if dice.below(2) == 0 => json!(80),
        Type::Quantity => json!(dice.one(&["1", "500m", "1Gi", "x", "-1"])),
        Type::Any => json!({"any": [1, {"x": null}]}),
        Type::String | Type::IntOrString => match schema.format() {
            Some("byte") => json!("YQ=="),
            Some("date-time") => json!("2026-01-01T00:00:00Z"),
            _ => json!(dice.one(&texts)),
        },
    }
}

fn accept(kind: &Kind, object: &Value) -> Option<Value> {
    let mut object = strategy::typed(kind, object.clone()).ok()?;
    decode::conform(kind, &mut object).ok()?;
    Some(object)
}

#[test]
fn odd_objects_of_every_kind_are_taken_or_refused() {
    let mut dice = Dice(11);
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let mut taken = 0;
    for kind in table::builtin() {
        let Some(schema) = kube_tables::schema(&kind.group, &kind.version, &kind.kind) else { continue };
        let namespace = if kind.namespaced { "default" } else { "" };
        for _ in 0..150 {
            let mut object = made(schema, &mut dice, 0);
            if !object.is_object() {
                continue;
            }
            object["apiVersion"] = json!(kind.api_version());
            object["kind"] = json!(kind.kind);
            object["metadata"] = json!({"name": "a"});
            let Some(object) = accept(kind, &object) else { continue };
            let birth = Birth { namespace, uid: "u".into(), suffix: "abcde", now };
            // Beside the rules: what a controller or an older server may have left in the store.
            let live = match strategy::create(kind, object.clone(), &birth) {
                Ok(made) => made,
                Err(failure) => {
                    assert!(failure.code < 500, "{kind:?}: {failure}");
                    object
                }
            };
            taken += 1;
            assert!(accept(kind, &live).is_some(), "{kind:?}: {live:#}");
            let mut next = made(schema, &mut dice, 0);
            if next.is_object() {
                next["metadata"] = json!({"name": "a"});
                next["apiVersion"] = json!(kind.api_version());
                next["kind"] = json!(kind.kind);
                if let Some(next) = accept(kind, &next) {
                    let _ = strategy::update(kind, &live, next.clone(), now);
                    let _ = strategy::update_status(kind, &live, next);
                }
            }
            let _ = strategy::delete(kind, &live, &DeleteOptions::default(), now);
            let _ = kube_kinds::quota::used_by(kind, &live);
        }
    }
    assert!(taken > 1000, "{taken}");
}
