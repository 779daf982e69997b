//! How a later compose file, or a service that extends another, changes what came before.
//!
//! Mappings are merged key by key, single values are replaced, lists are appended to, with the exceptions
//! of the specification: commands are replaced as a whole, and lists of mounts and ports know when two
//! items mean the same thing. `!reset` removes, `!override` replaces.

use super::tree::{At, Data, Entry, Node, Tag};

/// How a key's values are put together. The path is that within a service.
enum Rule {
    /// Key by key, item after item.
    Usual,
    Replace,
    /// Lists of `NAME=value` and mappings are one thing.
    Pairs,
    /// Lists of names and mappings from names are one thing.
    Names,
    /// A text stands for the mapping with this one key.
    Short(&'static str),
    /// Items are the same if this says the same of them.
    Items(fn(&Node) -> String),
}

fn rule(path: &[&str]) -> Rule {
    let path = match path {
        ["services", _, rest @ ..] => rest,
        _ => return Rule::Usual,
    };
    match path {
        ["command" | "entrypoint"] | ["healthcheck", "test"] => Rule::Replace,
        ["environment" | "labels" | "annotations" | "sysctls" | "extra_hosts"]
        | ["build", "args" | "labels" | "additional_contexts" | "extra_hosts"]
        | ["deploy", "labels"] => Rule::Pairs,
        ["depends_on" | "networks"] => Rule::Names,
        ["build"] => Rule::Short("context"),
        ["ports"] => Rule::Items(port),
        ["volumes"] => Rule::Items(|it| mount(it, "target")),
        ["configs" | "secrets"] => Rule::Items(grant),
        _ => Rule::Usual,
    }
}

fn port(node: &Node) -> String {
    match node.as_str() {
        Some(text) => text.trim_end_matches("/tcp").to_owned(),
        None => {
            let part = |key: &str| node.get(key).and_then(Node::as_str).unwrap_or_default();
            let protocol = match part("protocol") {
                "" | "tcp" => String::new(),
                other => format!("/{other}"),
            };
            match (part("host_ip"), part("published")) {
                ("", "") => format!("{}{protocol}", part("target")),
                ("", published) => format!("{published}:{}{protocol}", part("target")),
                (ip, published) => format!("{ip}:{published}:{}{protocol}", part("target")),
            }
        }
    }
}

fn mount(node: &Node, key: &str) -> String {
    match node.as_str() {
        Some(text) => text.split(':').nth(1).unwrap_or(text).to_owned(),
        None => node.get(key).and_then(Node::as_str).unwrap_or_default().to_owned(),
    }
}

/// Configs and secrets are the same if they appear at the same place.
fn grant(node: &Node) -> String {
    let source = node.get("source").unwrap_or(node).as_str().unwrap_or_default();
    node.get("target").and_then(Node::as_str).unwrap_or(source).to_owned()
}

/// `base` changed by `over`.
pub fn merge(path: &[&str], base: Node, over: Node) -> Node {
    match over.tag {
        Tag::Override => return over,
        Tag::Reset => return Node { tag: Tag::Reset, ..Node::null(over.at) },
        Tag::None => {}
    }
    if over.is_null() && path.len() > 2 && base.is_map() {
        // `networks: {front: }` says nothing about what is there.
        return base;
    }
    match rule(path) {
        Rule::Replace => over,
        Rule::Pairs => maps(path, pairs(base), pairs(over)),
        Rule::Names => maps(path, names(base), names(over)),
        Rule::Short(key) => maps(path, long(base, key), long(over, key)),
        Rule::Items(same) => lists(base, over, same),
        Rule::Usual => match (&base.data, &over.data) {
            (Data::Map(_), Data::Map(_)) => maps(path, base, over),
            (Data::List(_), Data::List(_) | Data::Scalar { .. }) | (Data::Scalar { .. }, Data::List(_)) => {
                lists(base, over, |it| {
                    format!("{:?}", it.as_str().map(str::to_owned).unwrap_or_else(|| plain(it)))
                })
            }
            _ => over,
        },
    }
}

/// A node without its places, to be compared.
fn plain(node: &Node) -> String {
    match &node.data {
        Data::Scalar { text, .. } => text.clone(),
        Data::List(items) => format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(",")),
        Data::Map(entries) => {
            entries.iter().map(|it| format!("{}={};", it.key, plain(&it.value))).collect::<String>()
        }
    }
}

fn maps(path: &[&str], base: Node, over: Node) -> Node {
    let (Data::Map(mut entries), Data::Map(more)) = (base.data, over.data.clone()) else { return over };
    for entry in more {
        let mut inner = path.to_vec();
        inner.push(&entry.key);
        match entries.iter_mut().find(|it| it.key == entry.key) {
            Some(found) => {
                let before = std::mem::replace(&mut found.value, Node::null(entry.at));
                found.value = merge(&inner, before, entry.value.clone());
                found.at = entry.at;
            }
            None => entries.push(entry.clone()),
        }
    }
    entries.retain(|it| it.value.tag != Tag::Reset);
    Node { at: over.at, data: Data::Map(entries), tag: Tag::None }
}

fn lists(base: Node, over: Node, same: impl Fn(&Node) -> String) -> Node {
    let items = |node: &Node| match &node.data {
        Data::List(items) => items.clone(),
        _ if node.is_null() => Vec::new(),
        _ => vec![node.clone()],
    };
    let mut all = items(&base);
    for item in items(&over) {
        let key = same(&item);
        match all.iter_mut().find(|it| same(it) == key) {
            Some(found) => *found = item,
            None => all.push(item),
        }
    }
    Node { at: over.at, data: Data::List(all), tag: Tag::None }
}

/// `- NAME=value` as a mapping; a name alone has no value.
pub fn pairs(node: Node) -> Node {
    let Data::List(items) = node.data else { return node };
    let entries = items
        .into_iter()
        .map(|it| {
            let text = it.as_str().unwrap_or_default();
            match text.split_once('=').or_else(|| text.split_once(':').filter(|(_, rest)| !rest.is_empty())) {
                Some((key, value)) => Entry {
                    key: key.trim().to_owned(),
                    at: it.at,
                    value: Node::text(it.at, value.to_owned()),
                },
                None => Entry { key: text.to_owned(), at: it.at, value: Node::null(it.at) },
            }
        })
        .collect();
    Node::map(node.at, entries)
}

/// `- name` as a mapping from names to nothing.
pub fn names(node: Node) -> Node {
    let Data::List(items) = node.data else { return node };
    let entry = |it: Node| Entry {
        key: it.as_str().unwrap_or_default().to_owned(),
        at: it.at,
        value: Node::null(it.at),
    };
    Node::map(node.at, items.into_iter().map(entry).collect())
}

fn long(node: Node, key: &str) -> Node {
    match &node.data {
        Data::Scalar { .. } if !node.is_null() => {
            let at: At = node.at;
            Node::map(at, vec![Entry { key: key.to_owned(), at, value: node }])
        }
        _ => node,
    }
}

/// A tree without what `!reset` removed.
pub fn without_resets(node: Node) -> Node {
    let data = match node.data {
        Data::Map(entries) => Data::Map(
            entries
                .into_iter()
                .filter(|it| it.value.tag != Tag::Reset)
                .map(|it| Entry { value: without_resets(it.value), ..it })
                .collect(),
        ),
        other => other,
    };
    Node { data, ..node }
}

#[cfg(test)]
mod tests {
    use super::super::interpolate::Variables;
    use super::super::tree;
    use super::*;

    fn check(base: &str, over: &str, want: &str) {
        let read = |source: &str| {
            let indented: String = source.lines().map(|it| format!("    {it}\n")).collect();
            let (node, findings) =
                tree::read(&format!("services:\n  web:\n{indented}"), 0, &Variables::new());
            assert!(findings.is_empty(), "{findings:?}");
            node.unwrap()
        };
        let merged = without_resets(merge(&[], read(base), read(over)));
        let web = merged.get("services").and_then(|it| it.get("web")).unwrap();
        assert_eq!(plain(web), want);
    }

    #[test]
    fn later_files_change_earlier_ones() {
        check("image: a\ncommand: [x, y]", "image: b\ncommand: [z]", "image=b;command=[z];");
        check("environment: [A=1, B=2]", "environment: {B: 3, C: 4}", "environment=A=1;B=3;C=4;;");
        check("ports: ['80:80']", "ports: ['80:80/tcp', '81:81']", "ports=[80:80/tcp,81:81];");
        check("ports: ['80:80']", "ports: [{target: 80, published: 80}]", "ports=[target=80;published=80;];");
        check("volumes: ['a:/data', 'b:/x']", "volumes: ['c:/data:ro']", "volumes=[c:/data:ro,b:/x];");
        check(
            "depends_on: [db]",
            "depends_on: {cache: {condition: service_healthy}}",
            "depends_on=db=;cache=condition=service_healthy;;;",
        );
        check("build: .", "build: {target: dev}", "build=context=.;target=dev;;");
        check("ports: ['80:80']\nimage: a", "ports: !reset []", "image=a;");
        check("ports: ['80:80']", "ports: !override ['82:82']", "ports=[82:82];");
        check("dns: 1.1.1.1", "dns: [8.8.8.8]", "dns=[1.1.1.1,8.8.8.8];");
        check(
            "healthcheck: {test: [CMD, a], retries: 3}",
            "healthcheck: {test: b}",
            "healthcheck=test=b;retries=3;;",
        );
    }
}
