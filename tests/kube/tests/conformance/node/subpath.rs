//! Parts of volumes, by a path that may have variables in it.

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{main_of, node, pod_with_volume};

/// A file of a volume of files, mounted alone.
fn file(volume: Value, sub_path: &'static str, at: &'static str, expect: &'static str) -> impl Fn(&Case) {
    move |case| {
        case.create(
            &case.path("v1", "configmaps"),
            &json!({"metadata": {"name": "map"}, "data": {"key": "from the map"}}),
        );
        case.create(
            &case.path("v1", "secrets"),
            &json!({"metadata": {"name": "secret"}, "stringData": {"key": "from the secret"}}),
        );
        let script = format!("cat {at}; (echo x > {at}) 2>/dev/null || echo; echo read-only");
        let mut pod = pod_with_volume(case, "part", &script, volume.clone());
        main_of(&mut pod)["volumeMounts"][0] = json!({"name": "v", "mountPath": at, "subPath": sub_path});
        assert_eq!(case.output_of(&pod), format!("{expect}\nread-only\n"));
    }
}

fn expanded(case: &Case) {
    let script = "test -d /v/who/inner && test ! -e /part/inner/x && touch /part/file && ls /v/who/inner";
    let mut pod = pod_with_volume(case, "who", script, json!({"emptyDir": {}}));
    let main = main_of(&mut pod);
    main["env"] = json!([{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    main["volumeMounts"] = json!([
        {"name": "v", "mountPath": "/v"},
        {"name": "v", "mountPath": "/part", "subPathExpr": "$(POD_NAME)/inner"}]);
    assert_eq!(case.output_of(&pod), "file\n");
}

/// A path that must not be is an error that names it, and the container never runs.
fn refused(expression: &'static str) -> impl Fn(&Case) {
    move |case| {
        let mut pod = pod_with_volume(case, "never", "echo ran", json!({"emptyDir": {}}));
        let main = main_of(&mut pod);
        main["env"] = json!([{"name": "POD_NAME", "value": expression}]);
        main["volumeMounts"][0]["subPathExpr"] = json!("$(POD_NAME)");
        case.create(&case.path("v1", "pods"), &pod);
        let seen = case.wait_for("the refusal", &case.path("v1", "pods/never"), |it| {
            it["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        });
        assert_eq!(seen["status"]["phase"], "Pending");
        let message = seen["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
        assert!(message.contains("SubPath"), "{message}");
    }
}

const MISSING: &str = "metadata.annotations['mysubpath']";

/// The path comes from an annotation that is bad at first; the container starts when it is good.
fn modified(case: &Case) {
    let mut pod = pod_with_volume(case, "later", "test -d /v && echo ran", json!({"emptyDir": {}}));
    pod["metadata"]["annotations"] = json!({"mysubpath": "/absolute"});
    let main = main_of(&mut pod);
    main["env"] = json!([{"name": "ANNOTATION", "valueFrom": {"fieldRef": {"fieldPath": MISSING}}}]);
    main["volumeMounts"][0]["subPathExpr"] = json!("$(ANNOTATION)");
    case.create(&case.path("v1", "pods"), &pod);
    let at = case.path("v1", "pods/later");
    case.wait_for("the refusal", &at, |it| {
        it["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    case.merge(&at, &json!({"metadata": {"annotations": {"mysubpath": "mypath"}}}));
    case.wait_for("the pod to run", &at, |it| it["status"]["phase"] == "Succeeded");
    assert_eq!(case.logs("later"), "ran\n");
}

/// What is written through the part is there through the whole.
fn written(case: &Case) {
    let script = "touch /part/test.log && test -f /v/foo/who/test.log && echo written";
    let mut pod = pod_with_volume(case, "who", script, json!({"emptyDir": {}}));
    pod["metadata"]["annotations"] = json!({"mysubpath": "foo"});
    let main = main_of(&mut pod);
    main["env"] = json!([
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "ANNOTATION", "valueFrom": {"fieldRef": {"fieldPath": MISSING}}}]);
    main["volumeMounts"] = json!([
        {"name": "v", "mountPath": "/v"},
        {"name": "v", "mountPath": "/part", "subPathExpr": "$(ANNOTATION)/$(POD_NAME)"}]);
    assert_eq!(case.output_of(&pod), "written\n");
}

pub fn all() -> Vec<Scenario> {
    let map = || json!({"configMap": {"name": "map"}});
    let downward = json!({"downwardAPI": {"items": [
        {"path": "d/name", "fieldRef": {"fieldPath": "metadata.name"}}]}});
    let projected = json!({"projected": {"sources": [{"configMap": {"name": "map"}}]}});
    vec![
        node(
            "[sig-node] Variable Expansion should allow substituting values in a volume subpath [Conformance]",
            expanded,
        ),
        node(
            "[sig-node] Variable Expansion should fail substituting values in a volume subpath with absolute path [Conformance]",
            refused("/tmp"),
        ),
        node(
            "[sig-node] Variable Expansion should fail substituting values in a volume subpath with backticks [Conformance]",
            refused("`../x`/../.."),
        ),
        node(
            "[sig-node] Variable Expansion should succeed in writing subpaths in container [Conformance]",
            written,
        ),
        node(
            "[sig-node] Variable Expansion should verify that a failing subpath expansion can be modified during the lifecycle of a container [Slow] [Conformance]",
            modified,
        ),
        node(
            "[sig-storage] Subpath Atomic writer volumes should support subpaths with configmap pod [Conformance]",
            file(map(), "key", "/one", "from the map"),
        ),
        node(
            "[sig-storage] Subpath Atomic writer volumes should support subpaths with configmap pod with mountPath of existing file [Conformance]",
            file(map(), "key", "/etc/passwd", "from the map"),
        ),
        node(
            "[sig-storage] Subpath Atomic writer volumes should support subpaths with downward pod [Conformance]",
            file(downward, "d/name", "/one", "part"),
        ),
        node(
            "[sig-storage] Subpath Atomic writer volumes should support subpaths with projected pod [Conformance]",
            file(projected, "key", "/one", "from the map"),
        ),
        node(
            "[sig-storage] Subpath Atomic writer volumes should support subpaths with secret pod [Conformance]",
            file(json!({"secret": {"secretName": "secret"}}), "key", "/one", "from the secret"),
        ),
    ]
}
