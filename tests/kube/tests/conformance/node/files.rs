//! ConfigMaps and Secrets as files, alone and projected.

use naru_kube_tests::{Case, Scenario};
use serde_json::{Value, json};

use super::{main_of, node, pod_with_volume};

/// The three ways to show an object as files.
#[derive(Clone, Copy)]
enum Source {
    ConfigMap,
    Secret,
    ProjectedConfigMap,
    ProjectedSecret,
}

impl Source {
    fn is_secret(self) -> bool {
        matches!(self, Source::Secret | Source::ProjectedSecret)
    }

    fn path(self, case: &Case, name: &str) -> String {
        let kind = if self.is_secret() { "secrets" } else { "configmaps" };
        case.path("v1", format!("{kind}/{name}").trim_end_matches('/'))
    }

    fn object(self, name: &str, data: &[(&str, &str)]) -> Value {
        let field = if self.is_secret() { "stringData" } else { "data" };
        let data: serde_json::Map<String, Value> =
            data.iter().map(|(key, value)| (key.to_string(), json!(value))).collect();
        json!({"metadata": {"name": name}, field: data})
    }

    fn create(self, case: &Case, name: &str, data: &[(&str, &str)]) {
        case.create(&self.path(case, ""), &self.object(name, data));
    }

    /// A volume of the object; `options` are `items`, `optional` and the like, `mode` its default mode.
    fn volume(self, name: &str, options: Value, mode: Option<u32>) -> Value {
        let mut source = options;
        let key = if matches!(self, Source::Secret) { "secretName" } else { "name" };
        source[key] = json!(name);
        let mut volume = match self {
            Source::ConfigMap => json!({"configMap": source}),
            Source::Secret => json!({"secret": source}),
            Source::ProjectedConfigMap => json!({"projected": {"sources": [{"configMap": source}]}}),
            Source::ProjectedSecret => json!({"projected": {"sources": [{"secret": source}]}}),
        };
        if let (Some(mode), Some(it)) = (mode, volume.as_object_mut().and_then(|it| it.values_mut().next())) {
            it["defaultMode"] = json!(mode);
        }
        volume
    }
}

/// Shows the content, the mode and the owner's group of one file.
const SHOW: &str = "cat /v/$0; echo; stat -L -c '%a %g' /v/$0";

fn show(file: &str) -> String {
    SHOW.replace("$0", file)
}

fn plain(source: Source) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "it", &[("key", "value")]);
        let pod = pod_with_volume(case, "reader", &show("key"), source.volume("it", json!({}), None));
        assert_eq!(case.output_of(&pod), "value\n644 0\n");
    }
}

fn as_user(source: Source) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "it", &[("key", "value")]);
        let mut pod =
            pod_with_volume(case, "reader", "id -u; cat /v/key", source.volume("it", json!({}), None));
        pod["spec"]["securityContext"] = json!({"runAsUser": 1000, "runAsNonRoot": true});
        assert_eq!(case.output_of(&pod), "1000\nvalue\n");
    }
}

fn default_mode(source: Source) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "it", &[("key", "value")]);
        let volume = source.volume("it", json!({}), Some(0o400));
        assert_eq!(case.output_of(&pod_with_volume(case, "reader", &show("key"), volume)), "value\n400 0\n");
    }
}

/// As a user of a group that the volume is given to.
fn as_group(source: Source) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "it", &[("key", "value")]);
        let volume = source.volume("it", json!({}), Some(0o440));
        let mut pod = pod_with_volume(case, "reader", &show("key"), volume);
        pod["spec"]["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 1001});
        assert_eq!(case.output_of(&pod), "value\n440 1001\n");
    }
}

fn mapped(source: Source, mode: Option<u32>, user: Option<u32>) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "it", &[("key", "value"), ("other", "x")]);
        let mut item = json!({"key": "key", "path": "path/to/file"});
        if let Some(mode) = mode {
            item["mode"] = json!(mode);
        }
        let volume = source.volume("it", json!({"items": [item]}), None);
        let script = format!("{}; ls /v", show("path/to/file"));
        let mut pod = pod_with_volume(case, "reader", &script, volume);
        if let Some(user) = user {
            pod["spec"]["securityContext"] = json!({"runAsUser": user});
        }
        assert_eq!(case.output_of(&pod), format!("value\n{:o} 0\npath\n", mode.unwrap_or(0o644)));
    }
}

fn twice(source: Source) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "it", &[("key", "value")]);
        let volume = source.volume("it", json!({}), None);
        let mut pod = pod_with_volume(case, "reader", "cat /v/key /w/key", volume.clone());
        let mut second = volume;
        second["name"] = json!("w");
        pod["spec"]["volumes"].as_array_mut().unwrap().push(second);
        let mounts = main_of(&mut pod)["volumeMounts"].as_array_mut().unwrap();
        mounts.push(json!({"name": "w", "mountPath": "/w"}));
        assert_eq!(case.output_of(&pod), "valuevalue\n");
    }
}

/// A change of the object reaches a running container.
fn updated(source: Source) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "it", &[("key", "value-1")]);
        let volume = source.volume("it", json!({}), None);
        let script = "until grep -q value-2 /v/key; do sleep 0.1; done; cat /v/key";
        let pod = pod_with_volume(case, "reader", script, volume);
        case.create(&case.path("v1", "pods"), &pod);
        case.wait_running("reader");
        assert_eq!(case.exec("reader", &["cat", "/v/key"]), "value-1");
        case.replace(&source.path(case, "it"), &source.object("it", &[("key", "value-2")]));
        ended(case, "reader");
        assert_eq!(case.logs("reader"), "value-2\n");
    }
}

fn ended(case: &Case, pod: &str) {
    case.wait_for("the end of the pod", &case.path("v1", &format!("pods/{pod}")), |it| {
        it["status"]["phase"] == "Succeeded"
    });
}

/// Of three optional objects one is deleted, one changed, one made while the pod runs.
fn optional(source: Source) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "goes", &[("data", "value-1")]);
        source.create(case, "changes", &[("data", "value-1")]);
        let script = "until test ! -e /goes/data && grep -qs value-3 /changes/data && grep -qs value-1 /comes/data; \
                      do sleep 0.1; done; echo all";
        let mut pod = case.pod("reader", script);
        let names = ["goes", "changes", "comes"];
        pod["spec"]["volumes"] = names
            .map(|name| {
                let mut volume = source.volume(name, json!({"optional": true}), None);
                volume["name"] = json!(name);
                volume
            })
            .into_iter()
            .collect();
        main_of(&mut pod)["volumeMounts"] =
            names.map(|name| json!({"name": name, "mountPath": format!("/{name}")})).into_iter().collect();
        case.create(&case.path("v1", "pods"), &pod);
        case.wait_running("reader");
        assert_eq!(case.exec("reader", &["cat", "/goes/data"]), "value-1");
        case.delete(&source.path(case, "goes"));
        case.replace(&source.path(case, "changes"), &source.object("changes", &[("data", "value-3")]));
        source.create(case, "comes", &[("data", "value-1")]);
        ended(case, "reader");
        assert_eq!(case.logs("reader"), "all\n");
    }
}

/// What is immutable can be neither changed nor made changeable, only deleted.
fn immutable(source: Source) -> impl Fn(&Case) {
    move |case| {
        source.create(case, "it", &[("key", "value")]);
        let at = source.path(case, "it");
        case.replace(&at, &source.object("it", &[("key", "changed")]));
        let mut fixed = source.object("it", &[("key", "fixed")]);
        fixed["immutable"] = json!(true);
        case.replace(&at, &fixed);
        case.expect("PUT", &at, &source.object("it", &[("key", "again")]), 422);
        fixed["metadata"]["labels"] = json!({"may": "change"});
        case.replace(&at, &fixed);
        fixed["immutable"] = json!(false);
        case.expect("PUT", &at, &fixed, 422);
        case.delete(&at);
        case.wait_gone(&at);
    }
}

fn binary(case: &Case) {
    let object =
        json!({"metadata": {"name": "it"}, "data": {"text": "value"}, "binaryData": {"dump": "3srfHg=="}});
    case.create(&case.path("v1", "configmaps"), &object);
    let script = "cat /v/text; echo; od -An -tx1 /v/dump";
    let pod = pod_with_volume(case, "reader", script, json!({"configMap": {"name": "it"}}));
    assert_eq!(case.output_of(&pod).replace(' ', ""), "value\ndecadf1e\n");
}

fn other_namespace(case: &Case) {
    let other = case.unique("other");
    case.create("/api/v1/namespaces", &json!({"metadata": {"name": other}}));
    let mut foreign = Source::Secret.object("it", &[("key", "foreign")]);
    foreign["metadata"]["namespace"] = json!(other);
    case.create(&format!("/api/v1/namespaces/{other}/secrets"), &foreign);
    Source::Secret.create(case, "it", &[("key", "own")]);
    let volume = Source::Secret.volume("it", json!({}), None);
    assert_eq!(case.output_of(&pod_with_volume(case, "reader", "cat /v/key", volume)), "own\n");
    case.delete(&format!("/api/v1/namespaces/{other}"));
}

fn combined(case: &Case) {
    Source::ConfigMap.create(case, "map", &[("configmap-data", "from the map")]);
    Source::Secret.create(case, "secret", &[("secret-data", "from the secret")]);
    let volume = json!({"projected": {"sources": [
        {"downwardAPI": {"items": [{"path": "podname", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"secret": {"name": "secret", "items": [{"key": "secret-data", "path": "s/data"}]}},
        {"configMap": {"name": "map"}},
    ]}});
    let script = "cat /v/podname; echo; cat /v/s/data; echo; cat /v/configmap-data";
    let pod = pod_with_volume(case, "all-in-one", script, volume);
    assert_eq!(case.output_of(&pod), "all-in-one\nfrom the secret\nfrom the map\n");
}

/// Fifty ConfigMaps in several pods at once: each pod sees all of them whole.
fn many(case: &Case) {
    const MAPS: usize = 50;
    const PODS: usize = 3;
    for number in 0..MAPS {
        Source::ConfigMap.create(case, &format!("racey-{number}"), &[("data", "value")]);
    }
    for pod in 0..PODS {
        let mut object = case.pod(&format!("racer-{pod}"), "cat /m/*/data | wc -c; cat /m/*/data | md5sum");
        object["spec"]["volumes"] = (0..MAPS)
            .map(|it| json!({"name": format!("v{it}"), "configMap": {"name": format!("racey-{it}")}}))
            .collect();
        main_of(&mut object)["volumeMounts"] =
            (0..MAPS).map(|it| json!({"name": format!("v{it}"), "mountPath": format!("/m/{it}")})).collect();
        case.create(&case.path("v1", "pods"), &object);
    }
    for pod in 0..PODS {
        ended(case, &format!("racer-{pod}"));
        assert!(case.logs(&format!("racer-{pod}")).starts_with("250\n"));
    }
}

fn beside_each_other(case: &Case) {
    Source::Secret.create(case, "secret", &[("data-1", "value-1")]);
    Source::ConfigMap.create(case, "map", &[("data-1", "value-2")]);
    let mut pod = case.pod("reader", "cat /s/data-1 /c/data-1");
    pod["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "secret"}},
        {"name": "c", "configMap": {"name": "map"}}]);
    main_of(&mut pod)["volumeMounts"] =
        json!([{"name": "s", "mountPath": "/s", "readOnly": true}, {"name": "c", "mountPath": "/c"}]);
    assert_eq!(case.output_of(&pod), "value-1value-2\n");
}

pub fn all() -> Vec<Scenario> {
    use Source::{ConfigMap, ProjectedConfigMap, ProjectedSecret, Secret};
    vec![
        node(
            "[sig-storage] ConfigMap binary data should be reflected in volume [NodeConformance] [Conformance]",
            binary,
        ),
        node(
            "[sig-storage] ConfigMap optional updates should be reflected in volume [NodeConformance] [Conformance]",
            optional(ConfigMap),
        ),
        node(
            "[sig-storage] ConfigMap should be consumable from pods in volume [NodeConformance] [Conformance]",
            plain(ConfigMap),
        ),
        node(
            "[sig-storage] ConfigMap should be consumable from pods in volume as non-root [NodeConformance] [Conformance]",
            as_user(ConfigMap),
        ),
        node(
            "[sig-storage] ConfigMap should be consumable from pods in volume with defaultMode set [LinuxOnly] [NodeConformance] [Conformance]",
            default_mode(ConfigMap),
        ),
        node(
            "[sig-storage] ConfigMap should be consumable from pods in volume with mappings [NodeConformance] [Conformance]",
            mapped(ConfigMap, None, None),
        ),
        node(
            "[sig-storage] ConfigMap should be consumable from pods in volume with mappings and Item mode set [LinuxOnly] [NodeConformance] [Conformance]",
            mapped(ConfigMap, Some(0o400), None),
        ),
        node(
            "[sig-storage] ConfigMap should be consumable from pods in volume with mappings as non-root [NodeConformance] [Conformance]",
            mapped(ConfigMap, None, Some(1000)),
        ),
        node(
            "[sig-storage] ConfigMap should be consumable in multiple volumes in the same pod [NodeConformance] [Conformance]",
            twice(ConfigMap),
        ),
        node(
            "[sig-storage] ConfigMap should be immutable if `immutable` field is set [Conformance]",
            immutable(ConfigMap),
        ),
        node(
            "[sig-storage] ConfigMap updates should be reflected in volume [NodeConformance] [Conformance]",
            updated(ConfigMap),
        ),
        node(
            "[sig-storage] EmptyDir wrapper volumes should not cause race condition when used for configmaps [Serial] [Conformance]",
            many,
        ),
        node("[sig-storage] EmptyDir wrapper volumes should not conflict [Conformance]", beside_each_other),
        node(
            "[sig-storage] Projected combined should project all components that make up the projection API [Projection] [NodeConformance] [Conformance]",
            combined,
        ),
        node(
            "[sig-storage] Projected configMap optional updates should be reflected in volume [NodeConformance] [Conformance]",
            optional(ProjectedConfigMap),
        ),
        node(
            "[sig-storage] Projected configMap should be consumable from pods in volume [NodeConformance] [Conformance]",
            plain(ProjectedConfigMap),
        ),
        node(
            "[sig-storage] Projected configMap should be consumable from pods in volume as non-root [NodeConformance] [Conformance]",
            as_user(ProjectedConfigMap),
        ),
        node(
            "[sig-storage] Projected configMap should be consumable from pods in volume with defaultMode set [LinuxOnly] [NodeConformance] [Conformance]",
            default_mode(ProjectedConfigMap),
        ),
        node(
            "[sig-storage] Projected configMap should be consumable from pods in volume with mappings [NodeConformance] [Conformance]",
            mapped(ProjectedConfigMap, None, None),
        ),
        node(
            "[sig-storage] Projected configMap should be consumable from pods in volume with mappings and Item mode set [LinuxOnly] [NodeConformance] [Conformance]",
            mapped(ProjectedConfigMap, Some(0o400), None),
        ),
        node(
            "[sig-storage] Projected configMap should be consumable from pods in volume with mappings as non-root [NodeConformance] [Conformance]",
            mapped(ProjectedConfigMap, None, Some(1000)),
        ),
        node(
            "[sig-storage] Projected configMap should be consumable in multiple volumes in the same pod [NodeConformance] [Conformance]",
            twice(ProjectedConfigMap),
        ),
        node(
            "[sig-storage] Projected configMap updates should be reflected in volume [NodeConformance] [Conformance]",
            updated(ProjectedConfigMap),
        ),
        node(
            "[sig-storage] Projected secret optional updates should be reflected in volume [NodeConformance] [Conformance]",
            optional(ProjectedSecret),
        ),
        node(
            "[sig-storage] Projected secret should be consumable from pods in volume [NodeConformance] [Conformance]",
            plain(ProjectedSecret),
        ),
        node(
            "[sig-storage] Projected secret should be consumable from pods in volume as non-root with defaultMode and fsGroup set [LinuxOnly] [NodeConformance] [Conformance]",
            as_group(ProjectedSecret),
        ),
        node(
            "[sig-storage] Projected secret should be consumable from pods in volume with defaultMode set [LinuxOnly] [NodeConformance] [Conformance]",
            default_mode(ProjectedSecret),
        ),
        node(
            "[sig-storage] Projected secret should be consumable from pods in volume with mappings [NodeConformance] [Conformance]",
            mapped(ProjectedSecret, None, None),
        ),
        node(
            "[sig-storage] Projected secret should be consumable from pods in volume with mappings and Item Mode set [LinuxOnly] [NodeConformance] [Conformance]",
            mapped(ProjectedSecret, Some(0o400), None),
        ),
        node(
            "[sig-storage] Projected secret should be consumable in multiple volumes in a pod [NodeConformance] [Conformance]",
            twice(ProjectedSecret),
        ),
        node(
            "[sig-storage] Secrets optional updates should be reflected in volume [NodeConformance] [Conformance]",
            optional(Secret),
        ),
        node(
            "[sig-storage] Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace [NodeConformance] [Conformance]",
            other_namespace,
        ),
        node(
            "[sig-storage] Secrets should be consumable from pods in volume [NodeConformance] [Conformance]",
            plain(Secret),
        ),
        node(
            "[sig-storage] Secrets should be consumable from pods in volume as non-root with defaultMode and fsGroup set [LinuxOnly] [NodeConformance] [Conformance]",
            as_group(Secret),
        ),
        node(
            "[sig-storage] Secrets should be consumable from pods in volume with defaultMode set [LinuxOnly] [NodeConformance] [Conformance]",
            default_mode(Secret),
        ),
        node(
            "[sig-storage] Secrets should be consumable from pods in volume with mappings [NodeConformance] [Conformance]",
            mapped(Secret, None, None),
        ),
        node(
            "[sig-storage] Secrets should be consumable from pods in volume with mappings and Item Mode set [LinuxOnly] [NodeConformance] [Conformance]",
            mapped(Secret, Some(0o400), None),
        ),
        node(
            "[sig-storage] Secrets should be consumable in multiple volumes in a pod [NodeConformance] [Conformance]",
            twice(Secret),
        ),
        node(
            "[sig-storage] Secrets should be immutable if `immutable` field is set [Conformance]",
            immutable(Secret),
        ),
    ]
}
