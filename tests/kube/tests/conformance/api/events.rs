//! Events by both of their doors.

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::{Value, json};

pub fn all() -> Vec<Scenario> {
    let of = |name, run: fn(&Case)| scenario(Group::A, name, run);
    vec![
        of("[sig-instrumentation] Events should manage the lifecycle of an event [Conformance]", core),
        of("[sig-instrumentation] Events should delete a collection of events [Conformance]", collection),
        of(
            "[sig-instrumentation] Events API should ensure that an event can be fetched, patched, deleted, and listed [Conformance]",
            new,
        ),
    ]
}

fn event(it: &Case, name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"case": "event"}}, "message": "a test", "reason": "Tested", "type": "Normal", "count": 1,
        "involvedObject": {"kind": "Pod", "name": "none", "namespace": it.namespace}})
}

fn core(it: &Case) {
    let events = it.path("v1", "events");
    it.create(&events, &event(it, "one"));
    let everywhere = "/api/v1/events?labelSelector=case%3Devent&fieldSelector=involvedObject.name%3Dnone";
    let own = |it: &Case| {
        it.list(everywhere)
            .into_iter()
            .filter(|one| one["metadata"]["namespace"] == it.namespace.as_str())
            .count()
    };
    assert_eq!(own(it), 1);
    let patched = it.merge(&format!("{events}/one"), &json!({"message": "patched"}));
    assert_eq!(patched["message"], "patched");
    let mut object = it.get(&format!("{events}/one"));
    object["series"] = json!({"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"});
    assert_eq!(it.replace(&format!("{events}/one"), &object)["series"]["count"], 2);
    it.delete(&format!("{events}/one"));
    assert_eq!(own(it), 0);
}

fn collection(it: &Case) {
    let events = it.path("v1", "events");
    for name in ["one", "two", "three"] {
        it.create(&events, &event(it, name));
    }
    assert_eq!(it.list(&format!("{events}?labelSelector=case%3Devent")).len(), 3);
    it.delete(&format!("{events}?labelSelector=case%3Devent"));
    assert!(it.list(&format!("{events}?labelSelector=case%3Devent")).is_empty());
}

fn new(it: &Case) {
    let events = it.path("events.k8s.io/v1", "events");
    let object = json!({"metadata": {"name": "new", "labels": {"case": "new"}}, "eventTime": "2026-01-01T00:00:00.000000Z", "note": "a test",
        "reason": "Tested", "action": "Testing", "type": "Normal", "reportingController": "example.com/test", "reportingInstance": "test-1",
        "regarding": {"kind": "Pod", "name": "none", "namespace": it.namespace}});
    it.create(&events, &object);
    assert_eq!(it.list(&format!("{events}?labelSelector=case%3Dnew")).len(), 1);
    let got = it.get(&format!("{events}/new"));
    assert_eq!((got["note"].as_str(), got["regarding"]["name"].as_str()), (Some("a test"), Some("none")));
    let core = it.get(&it.path("v1", "events/new"));
    assert_eq!(
        (core["message"].as_str(), core["involvedObject"]["name"].as_str()),
        (Some("a test"), Some("none"))
    );
    let patched = it.merge(
        &format!("{events}/new"),
        &json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}}),
    );
    assert_eq!(patched["series"]["count"], 2);
    it.delete(&format!("{events}/new"));
    assert!(it.find(&format!("{events}/new")).is_none());
}
