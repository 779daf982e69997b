//! `strategy.matrix`: the combinations, with `include` and `exclude` as GitHub spreads them out.

use serde_json::{Map, Value};

/// GitHub's own limit on the jobs of one matrix.
pub const COMBINATIONS_MAX: usize = 256;

pub type Combination = Map<String, Value>;

/// So many combinations are spread out before `exclude` takes some away; more are an error in any case.
const SPREAD_MAX: usize = 20_000;

/// All combinations of the axes, without the excluded, with the included; in the order of the file.
pub fn spread(
    axes: &[(String, Vec<Value>)],
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
                    it.insert(name.clone(), value.clone());
                    it
                })
            })
            .take(SPREAD_MAX)
            .collect();
    }
    if axes.is_empty() {
        all.clear();
    }
    all.retain(|it| !exclude.iter().any(|out| out.iter().all(|(key, value)| it.get(key) == Some(value))));

    let original = all.len();
    for extra in include {
        let is_axis = |key: &str| axes.iter().any(|(name, _)| name == key);
        let mut joined = false;
        for it in &mut all[..original] {
            // An include joins every original combination whose axis values it does not change.
            let fits = extra.iter().all(|(key, value)| !is_axis(key) || it.get(key) == Some(value));
            if fits {
                joined = true;
                it.extend(extra.clone());
            }
        }
        if !joined {
            all.push(extra.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn combination(it: Value) -> Combination {
        it.as_object().unwrap().clone()
    }

    #[test]
    fn include_extends_and_adds_as_on_github() {
        let axes = [
            ("fruit".to_owned(), vec![json!("apple"), json!("pear")]),
            ("animal".to_owned(), vec![json!("cat"), json!("dog")]),
        ];
        let include: Vec<_> = [
            json!({"color": "green"}),
            json!({"color": "pink", "animal": "cat"}),
            json!({"fruit": "banana"}),
        ]
        .into_iter()
        .map(combination)
        .collect();
        let all: Vec<Value> = spread(&axes, &include, &[]).into_iter().map(Value::Object).collect();
        assert_eq!(
            all,
            [
                json!({"fruit": "apple", "animal": "cat", "color": "pink"}),
                json!({"fruit": "apple", "animal": "dog", "color": "green"}),
                json!({"fruit": "pear", "animal": "cat", "color": "pink"}),
                json!({"fruit": "pear", "animal": "dog", "color": "green"}),
                json!({"fruit": "banana"}),
            ]
        );
    }

    #[test]
    fn exclude_takes_out_what_it_matches() {
        let axes = [("a".to_owned(), vec![json!(1), json!(2)]), ("b".to_owned(), vec![json!(1), json!(2)])];
        let exclude = [combination(json!({"a": 1, "b": 2}))];
        assert_eq!(spread(&axes, &[], &exclude).len(), 3);
    }

    #[test]
    fn what_is_excluded_does_not_count_against_the_limit() {
        let numbers: Vec<Value> = (0..20).map(|it| json!(it)).collect();
        let axes = [("a".to_owned(), numbers.clone()), ("b".to_owned(), numbers)];
        let exclude: Vec<_> = (0..10).map(|it| combination(json!({"a": it}))).collect();
        let all = spread(&axes, &[], &exclude);
        assert_eq!(all.len(), 200);
        assert_eq!(all.last(), Some(&combination(json!({"a": 19, "b": 19}))));
    }
}
