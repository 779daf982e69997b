//! Walks over values whose shape is known: which fields there are, what differs, how two states
//! become one, what is left when fields are taken away. The meaning is that of Kubernetes'
//! structured merge and diff, against which `tests/golden.rs` holds it.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::Error;
use crate::fields::Fields;
use crate::schema::{ListType, Shape};

/// What distinguishes two states.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub added: Fields,
    pub modified: Fields,
    pub removed: Fields,
}

impl Comparison {
    /// What a writer who made the change now owns.
    pub fn changed(&self) -> Fields {
        let mut changed = self.added.clone();
        changed.union(self.modified.clone());
        changed
    }

    pub fn without(mut self, ignored: &Fields) -> Comparison {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            set.subtract_below(ignored);
        }
        self
    }

    fn put(&mut self, step: &str, child: Comparison) {
        self.added.put(step.to_string(), child.added);
        self.modified.put(step.to_string(), child.modified);
        self.removed.put(step.to_string(), child.removed);
    }
}

/// How a value is walked.
enum Form<'v> {
    Map(&'v Map<String, Value>),
    List(&'v [Value]),
    /// Scalars, nothing, and everything with one owner.
    Leaf,
}

fn form<'v>(value: &'v Value, shape: &Shape<'_>) -> Form<'v> {
    match value {
        _ if !shape.fits(value) => Form::Leaf,
        Value::Object(map) if !shape.map_is_atomic() => Form::Map(map),
        Value::Array(items) if shape.list_type() != ListType::Atomic => Form::List(items),
        _ => Form::Leaf,
    }
}

/// What tells an item of a list apart: `k:{"name":"web"}`, `v:"x"`. `place` is that of the items.
pub(crate) fn step_of(item: &Value, list: &ListType<'_>, place: &Shape<'_>) -> Result<String, String> {
    match list {
        ListType::Atomic => Err("an atomic list has no steps".into()),
        ListType::Set => match item {
            Value::Array(_) | Value::Object(_) | Value::Null => {
                Err("associative list without keys has an element that's not a scalar".into())
            }
            scalar => Ok(format!("v:{scalar}")),
        },
        ListType::Map(keys) => {
            let Value::Object(fields) = item else {
                return Err("associative list with keys may not have non-map elements".into());
            };
            let mut key = BTreeMap::new();
            for name in keys {
                let value = fields.get(*name).filter(|it| !it.is_null()).or_else(|| place.key_default(name));
                let Some(value) = value else {
                    return Err(format!(
                        "associative list with keys has an element that omits key field {name:?} (and doesn't have default value)"
                    ));
                };
                key.insert(*name, value);
            }
            Ok(format!("k:{}", json!(key)))
        }
    }
}

/// Whether a client may apply this: items of lists have their keys, once each.
pub(crate) fn check(value: &Value, shape: &Shape<'_>, at: &str) -> Result<(), Error> {
    match form(value, shape) {
        Form::Leaf => Ok(()),
        Form::Map(map) => {
            for (name, value) in map {
                check(value, &shape.field(name).0, &format!("{at}.{name}"))?;
            }
            Ok(())
        }
        Form::List(items) => {
            let (list, place) = (shape.list_type(), shape.items());
            let mut seen = HashSet::new();
            for (index, item) in items.iter().enumerate() {
                let wrong = |why: String| Error::Item { path: at.to_string(), why };
                let step =
                    step_of(item, &list, &place).map_err(|why| wrong(format!("element {index}: {why}")))?;
                let spelled = crate::fields::spell(&step);
                if !seen.insert(step) {
                    return Err(wrong(format!("duplicate entries for key {spelled}")));
                }
                check(item, &place, &format!("{at}{spelled}"))?;
            }
            Ok(())
        }
    }
}

/// All fields that somebody who states this value owns.
pub(crate) fn fields_of(value: &Value, shape: &Shape<'_>) -> Fields {
    let mut fields = Fields::default();
    match form(value, shape) {
        Form::Leaf => fields.owned = true,
        Form::Map(map) => {
            for (name, value) in map {
                let (place, named) = shape.field(name);
                let mut child = fields_of(value, &place);
                let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                // Entries of a map with free keys are things of their own.
                child.owned |= is_empty || !named;
                fields.put(format!("f:{name}"), child);
            }
        }
        Form::List(items) => {
            let (list, place) = (shape.list_type(), shape.items());
            for item in items {
                let Ok(step) = step_of(item, &list, &place) else { continue };
                let mut child = fields_of(item, &place);
                child.owned = true;
                fields.put(step, child);
            }
        }
    }
    fields
}

pub(crate) fn compare(old: &Value, new: &Value, shape: &Shape<'_>) -> Comparison {
    compare_at(Some(old), Some(new), shape)
}

fn is_hollow(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

fn compare_at(old: Option<&Value>, new: Option<&Value>, shape: &Shape<'_>) -> Comparison {
    let mut result = Comparison::default();
    if old == new {
        return result;
    }
    let leaf = |mut result: Comparison| {
        match (old, new) {
            (None, _) => result.added.owned = true,
            (_, None) => result.removed.owned = true,
            _ => result.modified.owned = true,
        }
        result
    };
    // The difference between nothing and an empty thing is one of the thing itself.
    if is_hollow(old) && is_hollow(new) {
        return leaf(result);
    }
    static NOTHING: Value = Value::Null;
    let forms = (form(old.unwrap_or(&NOTHING), shape), form(new.unwrap_or(&NOTHING), shape));
    let empty = Map::new();
    let (old_map, new_map) = match forms {
        (Form::Map(old), Form::Map(new)) => (old, new),
        (Form::Map(map), Form::Leaf) if is_hollow(new) => (map, &empty),
        (Form::Leaf, Form::Map(map)) if is_hollow(old) => (&empty, map),
        (Form::List(old_items), Form::List(new_items)) => {
            compare_items(old_items, new_items, shape, &mut result);
            return result;
        }
        (Form::List(items), Form::Leaf) if is_hollow(new) => {
            compare_items(items, &[], shape, &mut result);
            result.removed.owned = new.is_none();
            return result;
        }
        (Form::Leaf, Form::List(items)) if is_hollow(old) => {
            compare_items(&[], items, shape, &mut result);
            result.added.owned = old.is_none();
            return result;
        }
        _ => return leaf(result),
    };
    for (name, value) in old_map {
        let after = new_map.get(name);
        if after != Some(value) {
            result.put(&format!("f:{name}"), compare_at(Some(value), after, &shape.field(name).0));
        }
    }
    for (name, value) in new_map {
        if !old_map.contains_key(name) {
            result.put(&format!("f:{name}"), compare_at(None, Some(value), &shape.field(name).0));
        }
    }
    result.added.owned = old.is_none();
    result.removed.owned = new.is_none();
    result
}

fn compare_items(old: &[Value], new: &[Value], shape: &Shape<'_>, result: &mut Comparison) {
    let (list, place) = (shape.list_type(), shape.items());
    let mut steps: Vec<String> = Vec::new();
    let mut found: HashMap<String, (Vec<&Value>, Vec<&Value>)> = HashMap::new();
    for (items, is_new) in [(old, false), (new, true)] {
        for item in items {
            let Ok(step) = step_of(item, &list, &place) else { continue };
            let both = found.entry(step.clone()).or_insert_with(|| {
                steps.push(step);
                Default::default()
            });
            if is_new { &mut both.1 } else { &mut both.0 }.push(item);
        }
    }
    for step in steps {
        let (old, new) = &found[&step];
        match (old.as_slice(), new.as_slice()) {
            ([] | [_], [] | [_]) => {
                result.put(&step, compare_at(old.first().copied(), new.first().copied(), &place));
            }
            // Items with the same key are one thing, and nobody knows what is in it.
            ([_, _, ..], [_, _, ..]) => {
                if old != new {
                    result.modified.put(step, Fields::leaf());
                }
            }
            ([_, _, ..], rest) => {
                if let [one] = rest {
                    result.put(&step, compare_at(None, Some(one), &place));
                }
                result.removed.put(step, Fields::leaf());
            }
            (rest, _) => {
                if let [one] = rest {
                    result.put(&step, compare_at(Some(one), None, &place));
                }
                result.added.put(step, Fields::leaf());
            }
        }
    }
}

/// The live state with what a client applies put over it.
pub(crate) fn merge(live: &Value, applied: &Value, shape: &Shape<'_>) -> Value {
    match (form(live, shape), form(applied, shape)) {
        (Form::Map(old), Form::Map(new)) => {
            let mut merged = old.clone();
            for (name, value) in new {
                let value = match old.get(name) {
                    Some(old) => merge(old, value, &shape.field(name).0),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Form::List(old), Form::List(new)) => Value::Array(merge_items(old, new, shape)),
        // An applied nothing takes the whole of a scalar, and nothing of what has parts.
        (Form::Map(old), Form::Leaf) if applied.is_null() && !old.is_empty() => live.clone(),
        (Form::List(old), Form::Leaf) if applied.is_null() && !old.is_empty() => live.clone(),
        _ => applied.clone(),
    }
}

/// Applied items come in the order of the applied list, live ones keep their place among those that
/// both have.
fn merge_items(live: &[Value], applied: &[Value], shape: &Shape<'_>) -> Vec<Value> {
    let (list, place) = (shape.list_type(), shape.items());
    let steps = |items: &[Value]| -> Vec<String> {
        items.iter().map(|it| step_of(it, &list, &place).unwrap_or_else(|_| format!("?{it}"))).collect()
    };
    let (old, new) = (steps(live), steps(applied));
    let applied_at: HashMap<&str, usize> = new.iter().enumerate().map(|(at, it)| (it.as_str(), at)).collect();
    let mut live_at: HashMap<&str, Option<usize>> = HashMap::new();
    for (at, step) in old.iter().enumerate() {
        // A key that several live items have says nothing about which of them is meant.
        live_at.entry(step).and_modify(|it| *it = None).or_insert(Some(at));
    }
    let take = |at: usize| match live_at.get(new[at].as_str()).copied().flatten() {
        Some(old) => merge(&live[old], &applied[at], &place),
        None => applied[at].clone(),
    };
    let mut shared = new.iter().filter(|it| live_at.contains_key(it.as_str())).peekable();
    let mut done: HashSet<&str> = HashSet::new();
    let mut merged = Vec::with_capacity(live.len().max(applied.len()));
    let (mut l, mut r) = (0, 0);
    while l < live.len() || r < applied.len() {
        if l < live.len() && r < applied.len() {
            if old[l] == new[r] {
                done.insert(&new[r]);
                merged.push(take(r));
                (l, r) = (l + 1, r + 1);
                shared.next();
                continue;
            }
            if applied_at.contains_key(old[l].as_str()) && shared.peek().is_some_and(|it| **it != old[l]) {
                // In both, but not the next of the applied order: its turn comes with the applied list.
                l += 1;
                continue;
            }
        }
        if l < live.len() {
            if !applied_at.contains_key(old[l].as_str()) {
                merged.push(live[l].clone());
                l += 1;
                continue;
            }
            if done.contains(old[l].as_str()) {
                l += 1;
            }
        }
        if r < applied.len() {
            done.insert(&new[r]);
            merged.push(take(r));
            if shared.peek().is_some_and(|it| **it == new[r]) {
                shared.next();
            }
            r += 1;
        }
    }
    merged
}

/// The value without the members of `gone`. A part of which nothing is left becomes null, so that it
/// can be told from one that was taken itself; [`sweep`] removes it.
pub(crate) fn remove(value: &Value, gone: &Fields, shape: &Shape<'_>) -> Value {
    match form(value, shape) {
        Form::Leaf => match value {
            // What has one owner cannot lose a part.
            Value::Object(_) | Value::Array(_) if shape.fits(value) => Value::Null,
            _ => value.clone(),
        },
        Form::Map(map) => {
            let mut left = Map::new();
            for (name, value) in map {
                match gone.children.get(&format!("f:{name}")) {
                    Some(gone) if gone.owned => {}
                    Some(gone) => {
                        left.insert(name.clone(), remove(value, gone, &shape.field(name).0));
                    }
                    None => {
                        left.insert(name.clone(), value.clone());
                    }
                }
            }
            if left.is_empty() { Value::Null } else { Value::Object(left) }
        }
        Form::List(items) => {
            let (list, place) = (shape.list_type(), shape.items());
            let mut left = Vec::with_capacity(items.len());
            for item in items {
                let step = step_of(item, &list, &place);
                match step.ok().and_then(|it| gone.children.get(&it)) {
                    Some(gone) if gone.owned => {}
                    Some(gone) => left.push(remove(item, gone, &place)),
                    None => left.push(item.clone()),
                }
            }
            if left.is_empty() { Value::Null } else { Value::Array(left) }
        }
    }
}

/// Removes the nulls that [`remove`] has left in `value`, which was `before`.
pub(crate) fn sweep(value: &mut Value, before: &Value, shape: &Shape<'_>) {
    match (value, before) {
        (Value::Object(map), Value::Object(before)) => {
            map.retain(|name, value| !value.is_null() || before.get(name).is_none_or(Value::is_null));
            for (name, value) in map {
                if let Some(before) = before.get(name) {
                    sweep(value, before, &shape.field(name).0);
                }
            }
        }
        (Value::Array(items), Value::Array(before)) => {
            let (list, place) = (shape.list_type(), shape.items());
            if !matches!(list, ListType::Map(_)) {
                return;
            }
            items.retain(|it| !it.is_null());
            for item in items {
                let step = step_of(item, &list, &place).ok();
                let same = |it: &&Value| step.is_some() && step_of(it, &list, &place).ok() == step;
                if let Some(before) = before.iter().find(same) {
                    sweep(item, before, &place);
                }
            }
        }
        _ => {}
    }
}

/// The set with every field that the schema names and that has members below it: who owns a part of
/// a struct has a say in whether the struct stays.
pub(crate) fn with_named(fields: &Fields, shape: &Shape<'_>) -> Fields {
    let mut all = Fields { owned: fields.owned, children: BTreeMap::new() };
    for (step, child) in &fields.children {
        let (place, named) = match step.strip_prefix("f:") {
            Some(name) => shape.field(name),
            None => (shape.items(), false),
        };
        let mut child = with_named(child, &place);
        child.owned |= named;
        all.children.insert(step.clone(), child);
    }
    all
}
