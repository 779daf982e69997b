//! What a pod is told about itself, as files.

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{main_of, node, pod_with_volume};

#[derive(Clone, Copy)]
enum Form {
    Own,
    Projected,
}

impl Form {
    fn volume(self, items: Value, mode: Option<u32>) -> Value {
        let mut volume = match self {
            Form::Own => json!({"downwardAPI": {"items": items}}),
            Form::Projected => json!({"projected": {"sources": [{"downwardAPI": {"items": items}}]}}),
        };
        if let (Some(mode), Some(it)) = (mode, volume.as_object_mut().and_then(|it| it.values_mut().next())) {
            it["defaultMode"] = json!(mode);
        }
        volume
    }
}

fn name(form: Form, mode: Option<u32>, item_mode: Option<u32>) -> impl Fn(&Case) {
    move |case| {
        let mut item = json!({"path": "podname", "fieldRef": {"fieldPath": "metadata.name"}});
        if let Some(mode) = item_mode {
            item["mode"] = json!(mode);
        }
        let script = "cat /v/podname; echo; stat -L -c %a /v/podname";
        let pod = pod_with_volume(case, "who-am-i", script, form.volume(json!([item]), mode));
        let shown = item_mode.or(mode).unwrap_or(0o644);
        assert_eq!(case.output_of(&pod), format!("who-am-i\n{shown:o}\n"));
    }
}

/// A resource of a container that has limits and requests, or has none.
fn resource(
    form: Form,
    resource: &'static str,
    divisor: &'static str,
    expect: &'static str,
) -> impl Fn(&Case) {
    move |case| {
        let item = json!({"path": "it", "resourceFieldRef":
            {"containerName": "main", "resource": resource, "divisor": divisor}});
        let mut pod = pod_with_volume(case, "asker", "cat /v/it", form.volume(json!([item]), None));
        if !expect.is_empty() {
            main_of(&mut pod)["resources"] = json!({
                "limits": {"cpu": "1250m", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}});
        }
        let expect = match expect {
            "" => allocatable(case, resource),
            given => given.to_owned(),
        };
        assert_eq!(case.output_of(&pod), format!("{expect}\n"));
    }
}

/// What the node offers, which is the limit of a container without one.
pub fn allocatable(case: &Case, resource: &str) -> String {
    let node = case.list("/api/v1/nodes").remove(0);
    match resource {
        "limits.cpu" => node["status"]["allocatable"]["cpu"].as_str().unwrap().to_owned(),
        _ => {
            let memory = node["status"]["allocatable"]["memory"].as_str().unwrap();
            let kibibytes: u64 = memory.strip_suffix("Ki").unwrap().parse().unwrap();
            (kibibytes * 1024).to_string()
        }
    }
}

fn changed(form: Form, field: &'static str) -> impl Fn(&Case) {
    move |case| {
        let item = json!({"path": "it", "fieldRef": {"fieldPath": format!("metadata.{field}")}});
        let script = "until grep -q 'second=\"2\"' /v/it; do sleep 0.1; done; grep first /v/it";
        let mut pod = pod_with_volume(case, "watcher", script, form.volume(json!([item]), None));
        pod["metadata"][field] = json!({"first": "1"});
        case.create(&case.path("v1", "pods"), &pod);
        case.wait_running("watcher");
        let at = case.path("v1", "pods/watcher");
        case.merge(&at, &json!({"metadata": {field: {"second": "2"}}}));
        case.wait_for("the change to arrive", &at, |it| it["status"]["phase"] == "Succeeded");
        assert_eq!(case.logs("watcher"), "first=\"1\"\n");
    }
}

pub fn all() -> Vec<Scenario> {
    use Form::{Own, Projected};
    vec![
        node(
            "[sig-storage] Downward API volume should provide container's cpu limit [NodeConformance] [Conformance]",
            resource(Own, "limits.cpu", "1m", "1250"),
        ),
        node(
            "[sig-storage] Downward API volume should provide container's cpu request [NodeConformance] [Conformance]",
            resource(Own, "requests.cpu", "1m", "250"),
        ),
        node(
            "[sig-storage] Downward API volume should provide container's memory limit [NodeConformance] [Conformance]",
            resource(Own, "limits.memory", "1", "67108864"),
        ),
        node(
            "[sig-storage] Downward API volume should provide container's memory request [NodeConformance] [Conformance]",
            resource(Own, "requests.memory", "1Mi", "32"),
        ),
        node(
            "[sig-storage] Downward API volume should provide node allocatable (cpu) as default cpu limit if the limit is not set [NodeConformance] [Conformance]",
            resource(Own, "limits.cpu", "1", ""),
        ),
        node(
            "[sig-storage] Downward API volume should provide node allocatable (memory) as default memory limit if the limit is not set [NodeConformance] [Conformance]",
            resource(Own, "limits.memory", "1", ""),
        ),
        node(
            "[sig-storage] Downward API volume should provide podname only [NodeConformance] [Conformance]",
            name(Own, None, None),
        ),
        node(
            "[sig-storage] Downward API volume should set DefaultMode on files [LinuxOnly] [NodeConformance] [Conformance]",
            name(Own, Some(0o400), None),
        ),
        node(
            "[sig-storage] Downward API volume should set mode on item file [LinuxOnly] [NodeConformance] [Conformance]",
            name(Own, None, Some(0o400)),
        ),
        node(
            "[sig-storage] Downward API volume should update annotations on modification [NodeConformance] [Conformance]",
            changed(Own, "annotations"),
        ),
        node(
            "[sig-storage] Downward API volume should update labels on modification [NodeConformance] [Conformance]",
            changed(Own, "labels"),
        ),
        node(
            "[sig-storage] Projected downwardAPI should provide container's cpu limit [NodeConformance] [Conformance]",
            resource(Projected, "limits.cpu", "1m", "1250"),
        ),
        node(
            "[sig-storage] Projected downwardAPI should provide container's cpu request [NodeConformance] [Conformance]",
            resource(Projected, "requests.cpu", "1m", "250"),
        ),
        node(
            "[sig-storage] Projected downwardAPI should provide container's memory limit [NodeConformance] [Conformance]",
            resource(Projected, "limits.memory", "1", "67108864"),
        ),
        node(
            "[sig-storage] Projected downwardAPI should provide container's memory request [NodeConformance] [Conformance]",
            resource(Projected, "requests.memory", "1Mi", "32"),
        ),
        node(
            "[sig-storage] Projected downwardAPI should provide node allocatable (cpu) as default cpu limit if the limit is not set [NodeConformance] [Conformance]",
            resource(Projected, "limits.cpu", "1", ""),
        ),
        node(
            "[sig-storage] Projected downwardAPI should provide node allocatable (memory) as default memory limit if the limit is not set [NodeConformance] [Conformance]",
            resource(Projected, "limits.memory", "1", ""),
        ),
        node(
            "[sig-storage] Projected downwardAPI should provide podname only [NodeConformance] [Conformance]",
            name(Projected, None, None),
        ),
        node(
            "[sig-storage] Projected downwardAPI should set DefaultMode on files [LinuxOnly] [NodeConformance] [Conformance]",
            name(Projected, Some(0o400), None),
        ),
        node(
            "[sig-storage] Projected downwardAPI should set mode on item file [LinuxOnly] [NodeConformance] [Conformance]",
            name(Projected, None, Some(0o400)),
        ),
        node(
            "[sig-storage] Projected downwardAPI should update annotations on modification [NodeConformance] [Conformance]",
            changed(Projected, "annotations"),
        ),
        node(
            "[sig-storage] Projected downwardAPI should update labels on modification [NodeConformance] [Conformance]",
            changed(Projected, "labels"),
        ),
    ]
}
