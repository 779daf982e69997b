//! Watches, pages and forms of answers.

use std::time::Duration;

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for an event that must not come to come.
const SHORT: Duration = Duration::from_millis(400);

pub fn all() -> Vec<Scenario> {
    let of = |name, run: fn(&Case)| scenario(Group::A, name, run);
    vec![
        of(
            "[sig-api-machinery] Watchers should observe add, update, and delete watch notifications on configmaps [Conformance]",
            notifications,
        ),
        of(
            "[sig-api-machinery] Watchers should be able to start watching from a specific resource version [Conformance]",
            from_a_version,
        ),
        of(
            "[sig-api-machinery] Watchers should be able to restart watching from the last resource version observed by the previous watch [Conformance]",
            restarted,
        ),
        of(
            "[sig-api-machinery] Watchers should observe an object deletion if it stops meeting the requirements of the selector [Conformance]",
            leaves_the_selector,
        ),
        of(
            "[sig-api-machinery] Watchers should receive events on concurrent watches in same order [Conformance]",
            same_order,
        ),
        of(
            "[sig-api-machinery] Servers with support for API chunking should return chunks of results for list calls [Conformance]",
            chunks,
        ),
        of(
            "[sig-api-machinery] Servers with support for Table transformation should return a 406 for a backend which does not implement metadata [Conformance]",
            no_table,
        ),
        of("[sig-api-machinery] server version should find the server version [Conformance]", version),
    ]
}

fn map(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"watched": label}}, "data": {"mutation": "0"}})
}

fn set(it: &Case, name: &str, mutation: u32) -> Value {
    it.merge(
        &it.path("v1", &format!("configmaps/{name}")),
        &json!({"data": {"mutation": mutation.to_string()}}),
    )
}

fn version_of(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap()
}

fn notifications(it: &Case) {
    let maps = it.path("v1", "configmaps");
    let watched = |label: &str| it.watch(&format!("{maps}?labelSelector=watched%20in%20({label})"));
    let (mut a, mut b, mut both) = (watched("a"), watched("b"), watched("a,b"));
    it.create(&maps, &map("first", "a"));
    set(it, "first", 1);
    set(it, "first", 2);
    it.delete(&format!("{maps}/first"));
    it.create(&maps, &map("second", "b"));
    it.delete(&format!("{maps}/second"));
    let kinds = |watch: &mut naru_kube_tests::Watch<'_>, count: usize| -> Vec<String> {
        (0..count)
            .map(|_| watch.next(PATIENCE).expect("an event")["type"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(kinds(&mut a, 4), ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]);
    assert_eq!(kinds(&mut b, 2), ["ADDED", "DELETED"]);
    assert_eq!(kinds(&mut both, 6), ["ADDED", "MODIFIED", "MODIFIED", "DELETED", "ADDED", "DELETED"]);
    assert!(a.next(SHORT).is_none() && b.next(SHORT).is_none());
}

fn from_a_version(it: &Case) {
    let maps = it.path("v1", "configmaps");
    it.create(&maps, &map("one", "version"));
    let first = set(it, "one", 1);
    set(it, "one", 2);
    it.delete(&format!("{maps}/one"));
    let mut watch =
        it.watch(&format!("{maps}?labelSelector=watched%3Dversion&resourceVersion={}", version_of(&first)));
    let event = watch.next(PATIENCE).expect("an event");
    assert_eq!(
        (event["type"].as_str(), event["object"]["data"]["mutation"].as_str()),
        (Some("MODIFIED"), Some("2"))
    );
    assert_eq!(watch.next(PATIENCE).expect("an event")["type"], "DELETED");
}

fn restarted(it: &Case) {
    let maps = it.path("v1", "configmaps");
    let at = |from: &str| it.watch(&format!("{maps}?labelSelector=watched%3Drestart{from}"));
    let mut first = at("");
    it.create(&maps, &map("one", "restart"));
    set(it, "one", 1);
    first.until("ADDED", PATIENCE);
    let last = first.until("MODIFIED", PATIENCE);
    drop(first);
    set(it, "one", 2);
    it.delete(&format!("{maps}/one"));
    let mut second = at(&format!("&resourceVersion={}", version_of(&last["object"])));
    assert_eq!(second.next(PATIENCE).expect("an event")["object"]["data"]["mutation"], "2");
    assert_eq!(second.next(PATIENCE).expect("an event")["type"], "DELETED");
}

fn leaves_the_selector(it: &Case) {
    let maps = it.path("v1", "configmaps");
    let mut watch = it.watch(&format!("{maps}?labelSelector=watched%3Din"));
    it.create(&maps, &map("one", "in"));
    set(it, "one", 1);
    let label =
        |value: &str| it.merge(&format!("{maps}/one"), &json!({"metadata": {"labels": {"watched": value}}}));
    label("out");
    set(it, "one", 2);
    label("in");
    set(it, "one", 3);
    it.delete(&format!("{maps}/one"));
    let seen: Vec<(String, String)> = (0..6)
        .map(|_| {
            let event = watch.next(PATIENCE).expect("an event");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
            (text(&event["type"]), text(&event["object"]["data"]["mutation"]))
        })
        .collect();
    let wanted = [
        ("ADDED", "0"),
        ("MODIFIED", "1"),
        ("DELETED", "1"),
        ("ADDED", "2"),
        ("MODIFIED", "3"),
        ("DELETED", "3"),
    ];
    assert_eq!(seen, wanted.map(|(kind, data)| (kind.to_string(), data.to_string())));
}

fn same_order(it: &Case) {
    let maps = it.path("v1", "configmaps");
    let start = version_of(&it.get(&maps)).to_string();
    for round in 0..30 {
        let name = format!("map-{}", round % 5);
        match round {
            0..5 => drop(it.create(&maps, &map(&name, "order"))),
            _ => drop(set(it, &name, round)),
        }
    }
    let seen = |from: &str| -> Vec<String> {
        let mut watch = it.watch(&format!("{maps}?labelSelector=watched%3Dorder&resourceVersion={from}"));
        let mut versions = Vec::new();
        while let Some(event) = watch.next(SHORT) {
            versions.push(version_of(&event["object"]).to_string());
        }
        versions
    };
    let whole = seen(&start);
    assert_eq!(whole.len(), 30);
    for (index, version) in whole.iter().enumerate().step_by(7) {
        assert_eq!(
            seen(version),
            whole[index + 1..],
            "a watch from {version} sees the rest in the same order"
        );
    }
}

fn chunks(it: &Case) {
    let templates = it.path("v1", "podtemplates");
    for number in 0..40 {
        let body = json!({"metadata": {"name": format!("template-{number:04}")},
            "template": {"spec": {"containers": [{"name": "c", "image": "none"}]}}});
        it.create(&templates, &body);
    }
    let (mut seen, mut token, mut version) = (Vec::new(), String::new(), Value::Null);
    loop {
        let page = it.get(&format!("{templates}?limit=17&continue={token}"));
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 17);
        if !version.is_null() {
            assert_eq!(page["metadata"]["resourceVersion"], version, "all pages are of one state");
        }
        version = page["metadata"]["resourceVersion"].clone();
        seen.extend(items.iter().map(|it| it["metadata"]["name"].as_str().unwrap().to_string()));
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_string();
        if token.is_empty() {
            assert!(page["metadata"]["remainingItemCount"].is_null());
            break;
        }
        assert_eq!(page["metadata"]["remainingItemCount"], 40 - seen.len());
    }
    let wanted: Vec<String> = (0..40).map(|number| format!("template-{number:04}")).collect();
    assert_eq!(seen, wanted);
    assert_eq!(it.list(&format!("{templates}?limit=500")).len(), 40);
}

fn no_table(it: &Case) {
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let review =
        json!({"spec": {"resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}});
    let headers = [table[0], ("content-type", "application/json")];
    let answer = it.send(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        &headers,
        review.to_string().into_bytes(),
    );
    assert_eq!(answer.code, 406, "{}", answer.text);
}

fn version(it: &Case) {
    let version = it.get("/version");
    assert_eq!(version["major"], "1");
    let minor = version["minor"].as_str().unwrap().trim_end_matches('+');
    assert!(minor.parse::<u32>().is_ok(), "{version}");
}
