//! Namespaces, and what goes with them; who owns what.

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::{Value, json};

pub fn all() -> Vec<Scenario> {
    let of = |name, run: fn(&Case)| scenario(Group::A, name, run);
    vec![
        of(
            "[sig-api-machinery] Namespaces [Serial] should ensure that all pods are removed when a namespace is deleted [Conformance]",
            |it| goes_with_it(it, "pods", pod("left")),
        ),
        of(
            "[sig-api-machinery] Namespaces [Serial] should ensure that all services are removed when a namespace is deleted [Conformance]",
            |it| {
                goes_with_it(
                    it,
                    "services",
                    json!({"metadata": {"name": "left"}, "spec": {"ports": [{"port": 80}]}}),
                )
            },
        ),
        of("[sig-api-machinery] Namespaces [Serial] should patch a Namespace [Conformance]", patched),
        of(
            "[sig-api-machinery] Namespaces [Serial] should apply an update to a Namespace [Conformance]",
            updated,
        ),
        of(
            "[sig-api-machinery] Namespaces [Serial] should apply changes to a namespace status [Conformance]",
            status,
        ),
        of(
            "[sig-api-machinery] Namespaces [Serial] should apply a finalizer to a Namespace [Conformance]",
            finalizer,
        ),
        of(
            "[sig-api-machinery] OrderedNamespaceDeletion namespace deletion should delete pod first [Conformance]",
            pods_first,
        ),
        of(
            "[sig-api-machinery] Garbage collector should delete pods created by rc when not orphaning [Conformance]",
            |it| controller_goes(it, "v1", "replicationcontrollers", "Background"),
        ),
        of(
            "[sig-api-machinery] Garbage collector should orphan pods created by rc if delete options say so [Serial] [Conformance]",
            |it| controller_goes(it, "v1", "replicationcontrollers", "Orphan"),
        ),
        of(
            "[sig-api-machinery] Garbage collector should delete RS created by deployment when not orphaning [Conformance]",
            |it| deployment_goes(it, "Background"),
        ),
        of(
            "[sig-api-machinery] Garbage collector should orphan RS created by deployment when deleteOptions.PropagationPolicy is Orphan [Conformance]",
            |it| deployment_goes(it, "Orphan"),
        ),
        of(
            "[sig-api-machinery] Garbage collector should keep the rc around until all its pods are deleted if the deleteOptions says so [Serial] [Conformance]",
            foreground,
        ),
        of(
            "[sig-api-machinery] Garbage collector should not be blocked by dependency circle [Conformance]",
            circle,
        ),
        of(
            "[sig-api-machinery] Garbage collector should not delete dependents that have both valid owner and owner that's waiting for dependents to be deleted [Serial] [Conformance]",
            two_owners,
        ),
    ]
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"name": name}}, "spec": {"terminationGracePeriodSeconds": 1,
        // Never started: what matters is the object.
        "schedulingGates": [{"name": "example.com/never"}], "containers": [{"name": "c", "image": "none"}]}})
}

fn namespace(it: &Case, base: &str) -> (String, String) {
    let name = it.unique(base);
    it.create("/api/v1/namespaces", &json!({"metadata": {"name": name}}));
    let path = format!("/api/v1/namespaces/{name}");
    (name, path)
}

fn goes_with_it(it: &Case, plural: &str, object: Value) {
    let (_, path) = namespace(it, "doomed");
    it.create(&format!("{path}/{plural}"), &object);
    it.delete(&path);
    it.wait_gone(&path);
    it.create("/api/v1/namespaces", &json!({"metadata": {"name": it.unique("doomed")}}));
    assert!(it.list(&format!("{path}/{plural}")).is_empty(), "a new one of the name is empty");
    it.delete(&path);
}

fn patched(it: &Case) {
    let (_, path) = namespace(it, "patched");
    it.merge(&path, &json!({"metadata": {"labels": {"testLabel": "testValue"}}}));
    assert_eq!(it.get(&path)["metadata"]["labels"]["testLabel"], "testValue");
    it.delete(&path);
}

fn updated(it: &Case) {
    let (name, path) = namespace(it, "updated");
    let mut object = it.get(&path);
    object["metadata"]["labels"]["updated"] = json!(name);
    let object = it.replace(&path, &object);
    assert_eq!(object["metadata"]["labels"]["updated"], name.as_str());
    assert_eq!(object["metadata"]["labels"]["kubernetes.io/metadata.name"], name.as_str());
    it.delete(&path);
}

fn status(it: &Case) {
    let (_, path) = namespace(it, "status");
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "reason": "E2E", "message": "by a test"});
    let patched =
        it.merge(&format!("{path}/status"), &json!({"status": {"conditions": [condition("StatusPatch")]}}));
    assert_eq!(patched["status"]["conditions"][0]["type"], "StatusPatch");
    let mut whole = it.get(&format!("{path}/status"));
    whole["status"]["conditions"].as_array_mut().unwrap().push(condition("StatusUpdate"));
    let replaced = it.replace(&format!("{path}/status"), &whole);
    assert_eq!(replaced["status"]["conditions"][1]["type"], "StatusUpdate");
    assert_eq!(replaced["status"]["phase"], "Active");
    it.delete(&path);
}

fn finalizer(it: &Case) {
    let (_, path) = namespace(it, "finalizer");
    let mut object = it.get(&path);
    object["spec"]["finalizers"] = json!(["kubernetes", "example.com/e2e"]);
    let object = it.replace(&format!("{path}/finalize"), &object);
    assert_eq!(object["spec"]["finalizers"], json!(["kubernetes", "example.com/e2e"]));
    it.delete(&path);
    let held = it.wait_for("the namespace to be held", &path, |it| {
        it["spec"]["finalizers"] == json!(["example.com/e2e"])
    });
    assert_eq!(held["status"]["phase"], "Terminating");
    let mut object = held;
    object["spec"]["finalizers"] = json!([]);
    it.replace(&format!("{path}/finalize"), &object);
    it.wait_gone(&path);
}

fn pods_first(it: &Case) {
    let (_, path) = namespace(it, "ordered");
    let mut held = pod("held");
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    it.create(&format!("{path}/pods"), &held);
    it.create(&format!("{path}/configmaps"), &json!({"metadata": {"name": "after"}}));
    it.delete(&path);
    it.wait_for("the pod to be deleted", &format!("{path}/pods/held"), |it| {
        it["metadata"]["deletionTimestamp"].is_string()
    });
    it.wait_for("the reason to be told", &path, |it| {
        let conditions = it["status"]["conditions"].as_array();
        conditions.is_some_and(|all| {
            all.iter().any(|it| {
                it["type"] == "NamespaceDeletionContentFailure"
                    || it["type"] == "NamespaceContentRemaining"
                    || it["type"] == "NamespaceFinalizersRemaining"
            })
        })
    });
    assert!(it.find(&format!("{path}/configmaps/after")).is_some(), "other things go after the pods");
    it.merge(&format!("{path}/pods/held"), &json!({"metadata": {"finalizers": null}}));
    it.wait_gone(&path);
}

/// A controller with two pods that are never started.
fn controller(it: &Case, name: &str) -> String {
    let mut template = pod("unused");
    template["metadata"] = json!({"labels": {"of": name}});
    it.create(
        &it.path("v1", "replicationcontrollers"),
        &json!({"metadata": {"name": name}, "spec": {"replicas": 2, "selector": {"of": name}, "template": template}}),
    );
    let pods = pods_of(it, name);
    it.wait("two pods", || (it.list(&pods).len() == 2).then_some(()));
    it.path("v1", &format!("replicationcontrollers/{name}"))
}

fn pods_of(it: &Case, name: &str) -> String {
    format!("{}?labelSelector=of%3D{name}", it.path("v1", "pods"))
}

fn controller_goes(it: &Case, _: &str, _: &str, policy: &str) {
    let path = controller(it, "owner");
    it.ask("DELETE", &path, &json!({"propagationPolicy": policy}));
    it.wait_gone(&path);
    let pods = pods_of(it, "owner");
    match policy {
        "Orphan" => {
            let left = it.list(&pods);
            assert_eq!(left.len(), 2, "orphans stay");
            assert!(left.iter().all(|it| it["metadata"]["ownerReferences"].is_null()), "{left:#?}");
        }
        _ => it.wait("the pods to go", || it.list(&pods).is_empty().then_some(())),
    }
}

fn deployment_goes(it: &Case, policy: &str) {
    let mut template = pod("unused");
    template["metadata"] = json!({"labels": {"of": "deployment"}});
    it.create(
        &it.path("apps/v1", "deployments"),
        &json!({"metadata": {"name": "owner"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"of": "deployment"}},
            "template": template}}),
    );
    let sets = it.path("apps/v1", "replicasets");
    it.wait("a replica set", || (it.list(&sets).len() == 1).then_some(()));
    let path = it.path("apps/v1", "deployments/owner");
    it.ask("DELETE", &path, &json!({"propagationPolicy": policy}));
    it.wait_gone(&path);
    match policy {
        "Orphan" => {
            let left = it.list(&sets);
            assert_eq!(left.len(), 1, "orphans stay");
            assert!(left[0]["metadata"]["ownerReferences"].is_null());
        }
        _ => it.wait("the replica set to go", || it.list(&sets).is_empty().then_some(())),
    }
}

fn foreground(it: &Case) {
    let path = controller(it, "patient");
    let pods = it.list(&pods_of(it, "patient"));
    let held = it.path("v1", &format!("pods/{}", pods[0]["metadata"]["name"].as_str().unwrap()));
    it.merge(&held, &json!({"metadata": {"finalizers": ["example.com/held"]}}));
    it.ask("DELETE", &path, &json!({"propagationPolicy": "Foreground"}));
    let waiting =
        it.wait_for("the owner to wait", &path, |it| it["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    it.wait("the free pod to go", || (it.list(&pods_of(it, "patient")).len() == 1).then_some(()));
    assert!(it.find(&path).is_some(), "the owner stays as long as a pod does");
    it.merge(&held, &json!({"metadata": {"finalizers": null}}));
    it.wait_gone(&path);
}

fn owner(pod: &Value, blocks: bool) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
        "controller": false, "blockOwnerDeletion": blocks})
}

fn circle(it: &Case) {
    let pods = it.path("v1", "pods");
    let made: Vec<Value> = ["one", "two", "three"].iter().map(|name| it.create(&pods, &pod(name))).collect();
    for (index, of) in made.iter().enumerate() {
        let owners = json!({"metadata": {"ownerReferences": [owner(&made[(index + 1) % 3], true)]}});
        it.merge(&format!("{pods}/{}", of["metadata"]["name"].as_str().unwrap()), &owners);
    }
    it.ask("DELETE", &format!("{pods}/one"), &json!({"propagationPolicy": "Foreground"}));
    it.wait("all to go", || it.list(&pods).is_empty().then_some(()));
}

fn two_owners(it: &Case) {
    let pods = it.path("v1", "pods");
    let going = it.create(&pods, &pod("going"));
    let staying = it.create(&pods, &pod("staying"));
    let mut both = pod("both");
    both["metadata"]["ownerReferences"] = json!([owner(&going, true), owner(&staying, false)]);
    it.create(&pods, &both);
    let mut only = pod("only");
    only["metadata"]["ownerReferences"] = json!([owner(&going, true)]);
    it.create(&pods, &only);
    it.ask("DELETE", &format!("{pods}/going"), &json!({"propagationPolicy": "Foreground"}));
    it.wait_gone(&format!("{pods}/going"));
    it.wait_gone(&format!("{pods}/only"));
    let left = it.get(&format!("{pods}/both"));
    let owners = left["metadata"]["ownerReferences"].as_array().unwrap();
    assert_eq!(owners.len(), 1);
    assert_eq!(owners[0]["name"], "staying");
}
