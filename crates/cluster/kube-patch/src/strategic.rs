//! Strategic merge patch: a merge patch that knows which lists are maps in disguise, with
//! directives (`$patch`, `$setElementOrder/x`, `$deleteFromPrimitiveList/x`, `$retainKeys`).

use serde_json::{Map, Value};

use crate::{Error, Shape};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const REMOVE: &str = "$deleteFromPrimitiveList/";

/// The object with the patch applied.
pub fn strategic(live: &Value, patch: &Value, shape: &Shape<'_>) -> Result<Value, Error> {
    match (live, patch) {
        (Value::Object(live), Value::Object(patch)) => {
            Ok(merge_maps(live, patch, shape, "")?.unwrap_or(Value::Null))
        }
        (_, Value::Object(patch)) => Ok(merge_maps(&Map::new(), patch, shape, "")?.unwrap_or(Value::Null)),
        (_, patch) => Ok(patch.clone()),
    }
}

/// `None` when the patch says that the map goes.
fn merge_maps(
    live: &Map<String, Value>,
    patch: &Map<String, Value>,
    shape: &Shape<'_>,
    at: &str,
) -> Result<Option<Value>, Error> {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("delete") => return Ok(None),
        Some("replace") => {
            let mut new = patch.clone();
            new.remove(DIRECTIVE);
            return Ok(Some(Value::Object(new)));
        }
        Some("merge") | None => {}
        Some(other) => return Err(Error::Directive { directive: other.to_string() }),
    }
    let mut new = live.clone();
    if let Some(retained) = patch.get(RETAIN).and_then(Value::as_array) {
        new.retain(|name, _| retained.iter().any(|it| it == name));
    }
    for (name, value) in patch {
        if name == DIRECTIVE || name == RETAIN || name.starts_with(ORDER) {
            continue;
        }
        if let Some(name) = name.strip_prefix(REMOVE) {
            if let (Some(Value::Array(items)), Value::Array(gone)) = (new.get_mut(name), value) {
                items.retain(|it| !gone.contains(it));
            }
            continue;
        }
        let place = shape.field(name).0;
        let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match value {
            Value::Null => {
                new.remove(name);
            }
            Value::Object(fields) => {
                let old = new.get(name).and_then(Value::as_object).cloned().unwrap_or_default();
                match merge_maps(&old, fields, &place, &at)? {
                    Some(merged) => new.insert(name.clone(), merged),
                    None => new.remove(name),
                };
            }
            Value::Array(items) => {
                let old = new.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
                new.insert(name.clone(), Value::Array(merge_lists(old, items, &place, &at)?));
            }
            scalar => {
                new.insert(name.clone(), scalar.clone());
            }
        }
    }
    for (name, order) in patch {
        if let Some(name) = name.strip_prefix(ORDER)
            && let (Some(Value::Array(items)), Value::Array(order)) = (new.get_mut(name), order)
        {
            set_order(items, order, shape.field(name).0.merge_key());
        }
    }
    Ok(Some(Value::Object(new)))
}

fn merge_lists(old: Vec<Value>, patch: &[Value], shape: &Shape<'_>, at: &str) -> Result<Vec<Value>, Error> {
    let replaces = patch.iter().any(|it| it.get(DIRECTIVE).is_some_and(|it| it == "replace"));
    if replaces {
        return Ok(patch.iter().filter(|it| it.get(DIRECTIVE).is_none()).cloned().collect());
    }
    let Some(key) = shape.merge_key() else {
        if !shape.merges_plain_values() {
            return patch.iter().map(|it| strategic(&Value::Null, it, &shape.items())).collect();
        }
        let mut new = old;
        for value in patch {
            if !new.contains(value) {
                new.push(value.clone());
            }
        }
        return Ok(new);
    };
    let mut new = old;
    for item in patch {
        let missing = || Error::MissingKey { path: at.to_string(), key: key.to_string() };
        let Value::Object(fields) = item else { return Err(missing()) };
        let Some(id) = fields.get(key) else { return Err(missing()) };
        let place = new.iter().position(|it| it.get(key) == Some(id));
        let live = place.and_then(|at| new[at].as_object()).cloned().unwrap_or_default();
        match (place, merge_maps(&live, fields, &shape.items(), at)?) {
            (Some(place), Some(merged)) => new[place] = merged,
            (Some(_), None) => new.retain(|it| it.get(key) != Some(id)),
            (None, Some(merged)) => new.push(merged),
            (None, None) => {}
        }
    }
    Ok(new)
}

/// Items named in `order` come in that order; the others keep their place behind the item that
/// they followed.
fn set_order(items: &mut Vec<Value>, order: &[Value], key: Option<&str>) {
    let id = |item: &Value| -> Value {
        match key {
            Some(key) => item.get(key).cloned().unwrap_or(Value::Null),
            None => item.clone(),
        }
    };
    let rank = |item: &Value| order.iter().position(|it| id(it) == id(item));
    let mut last = 0;
    let mut ranked: Vec<(usize, usize, Value)> = Vec::with_capacity(items.len());
    for (at, item) in items.drain(..).enumerate() {
        if let Some(rank) = rank(&item) {
            last = rank;
        }
        ranked.push((last, at, item));
    }
    ranked.sort_by_key(|(rank, at, _)| (*rank, *at));
    items.extend(ranked.into_iter().map(|(_, _, item)| item));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(live: Value, patch: Value, expected: Value) {
        let new =
            strategic(&live, &patch, &Shape::built_in("apps", "v1", "Deployment")).expect("a good patch");
        assert_eq!(new, expected);
    }

    fn pods(spec: Value) -> Value {
        json!({"spec": {"template": {"spec": spec}}})
    }

    #[test]
    fn containers_merge_by_name_and_keep_the_asked_order() {
        check(
            pods(json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]})),
            pods(json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
                "containers": [{"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]})),
            pods(
                json!({"containers": [{"name": "c", "image": "c:1"}, {"name": "b", "image": "b:2"}, {"name": "a", "image": "a:1"}]}),
            ),
        );
    }

    #[test]
    fn directives_remove_and_replace() {
        check(
            pods(json!({"containers": [{"name": "a", "args": ["x"]}, {"name": "b"}]})),
            pods(json!({"containers": [{"name": "b", "$patch": "delete"}, {"name": "a", "args": ["y"]}]})),
            pods(json!({"containers": [{"name": "a", "args": ["y"]}]})),
        );
        check(
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
        check(
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
        );
        check(
            json!({"spec": {"a": 1}}),
            json!({"spec": {"$patch": "replace", "b": 2}}),
            json!({"spec": {"b": 2}}),
        );
    }

    #[test]
    fn an_item_without_its_key_is_refused() {
        let patch = json!({"spec": {"containers": [{"image": "x"}]}});
        let error = strategic(&json!({}), &patch, &Shape::built_in("", "v1", "Pod")).expect_err("no name");
        assert_eq!(error.to_string(), "spec.containers is a list whose items need name");
    }
}
