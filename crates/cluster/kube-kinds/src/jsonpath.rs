//! The part of JSONPath that printer columns use: `.spec.a`, `.a[0].b`, `.a[*].b`,
//! `.a[?(@.type=="Ready")].status`, `['odd.key']`.
//!
//! Not a general JSONPath: an expression outside this part finds nothing.

use serde_json::Value;

/// Every value that the path reaches.
pub fn find<'a>(root: &'a Value, path: &str) -> Vec<&'a Value> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut found = vec![root];
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some((inside, after)) = close_bracket(inner) else { return Vec::new() };
            found = index(found, inside);
            rest = after;
        } else {
            let name = rest.strip_prefix('.').unwrap_or(rest);
            let end = end_of_name(name);
            let (name, after) = name.split_at(end);
            if !name.is_empty() {
                let name = name.replace("\\.", ".");
                found = match name.as_str() {
                    "*" => found.into_iter().flat_map(children).collect(),
                    _ => found.into_iter().filter_map(|it| it.get(&name)).collect(),
                };
            } else if after == rest {
                return Vec::new();
            }
            rest = after;
        }
    }
    found
}

fn end_of_name(text: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            '\\' => escaped = true,
            '.' | '[' if !escaped => return at,
            _ => escaped = false,
        }
    }
    text.len()
}

fn close_bracket(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match (quote, letter) {
            (None, '\'' | '"') => quote = Some(letter),
            (Some(open), _) if open == letter => quote = None,
            (None, ']') => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    }
}

fn index<'a>(found: Vec<&'a Value>, inside: &str) -> Vec<&'a Value> {
    let inside = inside.trim();
    if inside == "*" {
        return found.into_iter().flat_map(children).collect();
    }
    if let Some(condition) = inside.strip_prefix("?(").and_then(|it| it.strip_suffix(')')) {
        return filter(found, condition);
    }
    if let Some(key) = unquote(inside) {
        return found.into_iter().filter_map(|it| it.get(key)).collect();
    }
    let Ok(position) = inside.parse::<i64>() else { return Vec::new() };
    found
        .into_iter()
        .filter_map(|it| {
            let items = it.as_array()?;
            let position = if position < 0 { items.len() as i64 + position } else { position };
            items.get(usize::try_from(position).ok()?)
        })
        .collect()
}

fn filter<'a>(found: Vec<&'a Value>, condition: &str) -> Vec<&'a Value> {
    let (path, equal, wanted) = match (condition.split_once("=="), condition.split_once("!=")) {
        (Some((path, wanted)), _) => (path, true, wanted),
        (None, Some((path, wanted))) => (path, false, wanted),
        _ => return Vec::new(),
    };
    let path = path.trim().trim_start_matches('@');
    let wanted = wanted.trim();
    let wanted = unquote(wanted).unwrap_or(wanted);
    found
        .into_iter()
        .flat_map(children)
        .filter(|it| find(it, path).first().is_some_and(|value| text(value) == wanted) == equal)
        .collect()
}

fn unquote(text: &str) -> Option<&str> {
    let quote = text.chars().next().filter(|it| *it == '\'' || *it == '"')?;
    text.strip_prefix(quote)?.strip_suffix(quote)
}

/// A value as a table shows it.
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn printer_column_paths_find_their_values() {
        let object = json!({"spec": {"hosts": ["a", "b"]}, "metadata": {"labels": {"naru.dev/app": "shop"}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "False"}]}});
        for (path, expected) in [
            (".spec.hosts[0]", vec!["a"]),
            (".spec.hosts[*]", vec!["a", "b"]),
            (".spec.hosts[-1]", vec!["b"]),
            (".status.conditions[?(@.type==\"Ready\")].status", vec!["True"]),
            (".metadata.labels['naru.dev/app']", vec!["shop"]),
            (".metadata.labels.naru\\.dev/app", vec!["shop"]),
            (".spec.nothing", vec![]),
        ] {
            assert_eq!(find(&object, path).into_iter().map(text).collect::<Vec<_>>(), expected, "{path}");
        }
    }
}
