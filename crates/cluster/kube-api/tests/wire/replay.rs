//! Fifty watchers against the log: whoever watches sees exactly what a replay of the file says, also when
//! objects move in and out of its selector, and when its place in history is forgotten in between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use kube_store::{Change, Options, Store};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{Dice, MAPS, MERGE, Server, revision};

const WATCHERS: usize = 50;
const WRITES: u64 = 1500;
const APPS: [&str; 4] = ["a", "b", "c", "d"];
/// Selectors in their wire form, and what they mean.
const SELECTORS: [(&str, fn(&str) -> bool); 4] = [
    ("", |_| true),
    ("app%3Da", |it| it == "a"),
    ("app+in+(a,b)", |it| it == "a" || it == "b"),
    ("app!%3Dc", |it| it != "c"),
];

/// One list and the events after it.
#[derive(Debug)]
struct Segment {
    from: u64,
    listed: BTreeMap<String, String>,
    /// Revision, type and name.
    events: Vec<(u64, String, String)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_watchers_see_what_a_replay_of_the_log_says() {
    let server = Arc::new(Server::start().await);
    let expired = Arc::new(AtomicUsize::new(0));
    let (tell, progress) = watch::channel(0u64);
    let mut watchers = Vec::new();
    let mut dice = Dice(7);
    let begin = |number: usize| {
        let (server, progress, expired) = (server.clone(), progress.clone(), expired.clone());
        tokio::spawn(async move { (number, follow(&server, number, progress, &expired).await) })
    };
    for number in 0..WRITES {
        if number.is_multiple_of(WRITES / WATCHERS as u64) && watchers.len() < WATCHERS {
            watchers.push(begin(watchers.len()));
        }
        let name = format!("m{}", dice.below(30));
        let app = APPS[dice.below(4) as usize];
        let body =
            json!({"metadata": {"name": name, "labels": {"app": app}}, "data": {"n": number.to_string()}});
        match dice.below(4) {
            0 => server.call("DELETE", &format!("{MAPS}/{name}"), "", "").await,
            1 => server.post(MAPS, body).await,
            _ => server.call("PATCH", &format!("{MAPS}/{name}"), MERGE, &body.to_string()).await,
        };
        tell.send_replace(number);
    }
    for app in APPS {
        server.map(&format!("end-{app}"), json!({"app": app})).await;
    }
    tell.send_replace(u64::MAX);
    let mut seen = Vec::new();
    for watcher in watchers {
        seen.push(watcher.await.expect("a watcher that ends"));
    }
    assert_eq!(seen.len(), WATCHERS);
    assert!(expired.load(SeqCst) > 0, "some were too slow for what is remembered");

    // The file, read anew.
    let path = server._dir.path().join("objects.db");
    server.api.close().await;
    let store = Store::open(
        &path,
        Options { ring_changes_max: 1 << 20, ring_bytes_max: 1 << 30, ..Options::default() },
    )
    .expect("the file opens");
    let mut replay = store.watch_from("", 0).expect("all of history is there");
    let mut log: Vec<Arc<Change>> = Vec::new();
    while log.last().is_none_or(|it| it.revision < store.revision()) {
        let batch = replay.next().await.expect("all of history is there");
        log.extend(
            batch
                .changes
                .into_iter()
                .filter(|it| it.key.contains("configmaps/default/") || it.revision == store.revision()),
        );
    }
    for (number, segments) in &seen {
        for segment in segments {
            check(*number, segment, &log);
        }
    }
    store.close().await;
}

fn name(value: &Value) -> String {
    kube_kinds::name(value).to_owned()
}

fn app(value: &Value) -> &str {
    value["metadata"]["labels"]["app"].as_str().unwrap_or("")
}

/// Holds what a watcher saw against the log.
fn check(number: usize, segment: &Segment, log: &[Arc<Change>]) {
    let matches = SELECTORS[number % SELECTORS.len()].1;
    let maps = || log.iter().filter(|it| it.key.contains("configmaps/default/"));
    let mut state = BTreeMap::new();
    for change in maps().filter(|it| it.revision <= segment.from) {
        state.remove(&name(&change.value));
        if !change.deleted && matches(app(&change.value)) {
            state.insert(name(&change.value), change.revision.to_string());
        }
    }
    assert_eq!(segment.listed, state, "watcher {number} lists what was true at {}", segment.from);
    let expected = maps().filter(|it| it.revision > segment.from).filter_map(|change| {
        let was = change.previous.as_ref().is_some_and(|it| matches(app(it)));
        let is = !change.deleted && matches(app(&change.value));
        let kind = match (was, is) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        Some((change.revision, kind.to_owned(), name(&change.value)))
    });
    let expected: Vec<_> = expected.take(segment.events.len()).collect();
    assert_eq!(segment.events, expected, "watcher {number} from {}", segment.from);
}

/// Lists and watches until it sees the end; begins anew when its place in history is gone.
async fn follow(
    server: &Server,
    number: usize,
    mut progress: watch::Receiver<u64>,
    expired: &AtomicUsize,
) -> Vec<Segment> {
    let selector = format!("labelSelector={}", SELECTORS[number % SELECTORS.len()].0);
    let is_slow = number.is_multiple_of(5);
    let mut segments: Vec<Segment> = Vec::new();
    loop {
        let list = server.get(&format!("{MAPS}?{selector}")).await;
        let from: u64 = revision(&list).parse().expect("a number");
        let items = kube_kinds::list(&list, "/items").iter().filter(|it| name(it) != "kube-root-ca.crt");
        let listed: BTreeMap<String, String> = items.map(|it| (name(it), revision(it).to_owned())).collect();
        let is_over = listed.keys().any(|it| it.starts_with("end-"));
        segments.push(Segment { from, listed, events: Vec::new() });
        if is_over {
            return segments;
        }
        let mut watch = server.watch(&format!("{MAPS}?watch=true&{selector}&resourceVersion={from}")).await;
        if is_slow {
            // Longer than anything is remembered.
            let until = *progress.borrow() + 300;
            let _ = progress.wait_for(|it| *it >= until.min(WRITES - 1)).await;
        }
        loop {
            let event = watch.next().await;
            let kind = event["type"].as_str().expect("a type").to_owned();
            if kind == "ERROR" {
                assert_eq!(event["object"]["code"], 410, "{event}");
                expired.fetch_add(1, SeqCst);
                break;
            }
            let object = &event["object"];
            let at = revision(object).parse().expect("a number");
            let is_end = name(object).starts_with("end-");
            segments.last_mut().expect("one was pushed above").events.push((at, kind, name(object)));
            if is_end {
                return segments;
            }
        }
    }
}
