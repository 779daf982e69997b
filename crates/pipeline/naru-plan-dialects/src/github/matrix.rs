//! `strategy.matrix`: the combinations, with `include` and `exclude` as GitHub spreads them out.

use super::expression::{Val, equal};
use serde_json::{Map, Value};

/// GitHub's own limit on the jobs of one matrix.
pub const COMBINATIONS_MAX: usize = 256;

/// Names with their values, in the order of the file.
pub type Combination = Vec<(String, Val<'static>)>;

/// So many combinations are spread out before `exclude` takes some away; more are an error in any case.
const SPREAD_MAX: usize = 20_000;

/// All combinations of the axes, without the excluded, with the included; in the order of the file.
pub fn spread(
    axes: &[(String, Vec<Val<'static>>)],
    include: &[Combination],
    exclude: &[Combination],
) -> Vec<Combination> {
    let mut all: Vec<Combination> = vec![Combination::new()];
    for (name, values) in axes {
        all = all
            .iter()
            .flat_map(|it| {
                values.iter().map(move |value| {
                    let mut it = it.clone();
                    it.push((name.clone(), value.clone()));
                    it
                })
            })
            .take(SPREAD_MAX)
            .collect();
    }
    if axes.is_empty() {
        all.clear();
    }
    all.retain(|it| !exclude.iter().any(|out| out.iter().all(|(key, value)| holds(it, key, value))));

    let original = all.clone();
    for extra in include {
        let is_axis = |key: &str| axes.iter().any(|(name, _)| name == key);
        let mut joined = false;
        for (it, original) in all.iter_mut().zip(&original) {
            // An include joins every original combination whose axis values it does not change.
            let fits = extra.iter().all(|(key, value)| !is_axis(key) || holds(original, key, value));
            if fits {
                joined = true;
                for (key, value) in extra {
                    match it.iter_mut().find(|(name, _)| name == key) {
                        Some(entry) => entry.1 = value.clone(),
                        None => it.push((key.clone(), value.clone())),
                    }
                }
            }
        }
        if !joined {
            all.push(extra.clone());
        }
    }
    all
}

fn holds(combination: &Combination, key: &str, value: &Val<'static>) -> bool {
    combination.iter().any(|(name, it)| name == key && same(it, value))
}

/// Scalars as `==` has them; lists and objects by what is in them.
fn same(a: &Val<'static>, b: &Val<'static>) -> bool {
    if a.is_collection() || b.is_collection() { a.to_json() == b.to_json() } else { equal(a, b) }
}

/// The `matrix` context of a combination.
pub fn value(combination: &Combination, spread: bool) -> Val<'static> {
    if spread { Val::object(combination.clone()) } else { Val::Null }
}

pub fn json(combination: &Combination) -> Value {
    Value::Object(combination.iter().map(|(key, it)| (key.clone(), it.to_json())).collect::<Map<_, _>>())
}

/// What tells a combination from the others for people: its values, those of lists and objects one by one.
pub fn label(combination: &Combination) -> String {
    fn collect(value: &Val<'static>, out: &mut Vec<String>) {
        if let Some(items) = value.items() {
            items.iter().for_each(|it| collect(it, out));
        } else if let Some(entries) = value.entries() {
            entries.iter().for_each(|(_, it)| collect(it, out));
        } else {
            out.push(value.text().into_owned());
        }
    }
    let mut out = Vec::new();
    combination.iter().for_each(|(_, it)| collect(it, &mut out));
    out.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn combination(it: Value) -> Combination {
        it.as_object().unwrap().iter().map(|(key, it)| (key.clone(), Val::of(it).into_owned())).collect()
    }

    fn axis(name: &str, values: Value) -> (String, Vec<Val<'static>>) {
        (name.to_owned(), values.as_array().unwrap().iter().map(|it| Val::of(it).into_owned()).collect())
    }

    #[test]
    fn include_extends_and_adds_as_on_github() {
        let axes = [axis("fruit", json!(["apple", "pear"])), axis("animal", json!(["cat", "dog"]))];
        let include: Vec<_> = [
            json!({"color": "green"}),
            json!({"color": "pink", "animal": "cat"}),
            json!({"fruit": "apple", "shape": "circle"}),
            json!({"fruit": "banana"}),
            json!({"fruit": "banana", "animal": "cat"}),
        ]
        .into_iter()
        .map(combination)
        .collect();
        let all: Vec<Value> = spread(&axes, &include, &[]).iter().map(super::json).collect();
        assert_eq!(
            all,
            [
                json!({"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"}),
                json!({"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"}),
                json!({"fruit": "pear", "animal": "cat", "color": "pink"}),
                json!({"fruit": "pear", "animal": "dog", "color": "green"}),
                json!({"fruit": "banana"}),
                json!({"fruit": "banana", "animal": "cat"}),
            ]
        );
    }

    #[test]
    fn a_combination_is_named_by_its_values_in_order() {
        let axes = [axis("z", json!([1.5])), axis("a", json!([{"os": "linux", "cc": ["gcc"]}]))];
        assert_eq!(label(&spread(&axes, &[], &[])[0]), "1.5, gcc, linux");
    }

    #[test]
    fn exclude_takes_out_what_it_matches() {
        let axes = [axis("a", json!([1, 2])), axis("b", json!([1, 2]))];
        let exclude = [combination(json!({"a": 1, "b": 2}))];
        assert_eq!(spread(&axes, &[], &exclude).len(), 3);
    }

    #[test]
    fn what_is_excluded_does_not_count_against_the_limit() {
        let numbers: Vec<Value> = (0..20).map(|it| json!(it)).collect();
        let axes = [axis("a", json!(numbers)), axis("b", json!(numbers))];
        let exclude: Vec<_> = (0..10).map(|it| combination(json!({"a": it}))).collect();
        let all = spread(&axes, &[], &exclude);
        assert_eq!(all.len(), 200);
        assert_eq!(super::json(all.last().unwrap()), json!({"a": 19, "b": 19}));
    }
}
