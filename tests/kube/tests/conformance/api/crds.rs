//! Kinds that users declare.

use std::time::Duration;

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const PATIENCE: Duration = Duration::from_secs(20);

pub fn all() -> Vec<Scenario> {
    let of = |name, run: fn(&Case)| scenario(Group::A, name, run);
    vec![
        of(
            "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition creating/deleting custom resource definition objects works [Conformance]",
            made_and_removed,
        ),
        of(
            "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition listing custom resource definition objects works [Conformance]",
            listed,
        ),
        of(
            "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition getting/updating/patching custom resource definition status sub-resource works [Conformance]",
            status,
        ),
        of(
            "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] should include custom resource definition resources in discovery documents [Conformance]",
            own_discovery,
        ),
        of(
            "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] custom resource defaulting for requests and from storage works [Conformance]",
            defaults,
        ),
        of(
            "[sig-api-machinery] CustomResourceDefinition Watch [Privileged:ClusterAdmin] CustomResourceDefinition Watch watch on custom resource definition objects [Conformance]",
            watched,
        ),
        of(
            "[sig-api-machinery] CustomResourceFieldSelectors [Privileged:ClusterAdmin] CustomResourceFieldSelectors MUST list and watch custom resources matching the field selector [Conformance]",
            field_selectors,
        ),
        of(
            "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface [Conformance]",
            aggregated,
        ),
        of(
            "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface for CRDs [Conformance]",
            aggregated_declared,
        ),
        of(
            "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery endpoint Accept headers [Conformance]",
            accept_headers,
        ),
        of(
            "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery request for CRDs [Conformance]",
            aggregated_declared,
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for CRD with validation schema [Conformance]",
            published,
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for CRD without validation schema [Conformance]",
            |it| published_free(it, json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for CRD preserving unknown fields at the schema root [Conformance]",
            |it| {
                published_free(
                    it,
                    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}),
                )
            },
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for CRD preserving unknown fields in an embedded object [Conformance]",
            |it| {
                published_free(
                    it,
                    json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}),
                )
            },
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for multiple CRDs of different groups [Conformance]",
            |it| published_together(it, ["one", "two"], ["v1", "v1"]),
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for multiple CRDs of same group but different versions [Conformance]",
            |it| published_together(it, ["same", "same"], ["v1", "v2"]),
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for multiple CRDs of same group and version but different kinds [Conformance]",
            |it| published_together(it, ["same", "same"], ["v1", "v1"]),
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] updates the published spec when one version gets renamed [Conformance]",
            renamed,
        ),
        of(
            "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] removes definition from spec when one version gets changed to not be served [Conformance]",
            unserved,
        ),
    ]
}

/// A definition of a kind that only this scenario uses.
pub struct Declared {
    pub group: String,
    pub plural: String,
    pub kind: String,
    pub path: String,
}

impl Declared {
    /// Declares `Thing` in this group with versions, each with a schema; the first one is stored.
    pub fn new(it: &Case, base: &str, versions: &[(&str, Value)]) -> Declared {
        Self::with(it, base, "things", versions, json!({}))
    }

    pub fn with(it: &Case, base: &str, plural: &str, versions: &[(&str, Value)], more: Value) -> Declared {
        let group = format!("{base}.{}.example.com", it.namespace);
        let kind = format!("{}{}", plural[..1].to_uppercase(), &plural[1..plural.len() - 1]);
        let versions: Vec<Value> = versions
            .iter()
            .enumerate()
            .map(|(index, (name, schema))| {
                let mut version = json!({"name": name, "served": true, "storage": index == 0,
                    "schema": {"openAPIV3Schema": schema}});
                for (field, value) in more.as_object().unwrap() {
                    version[field] = value.clone();
                }
                version
            })
            .collect();
        let name = format!("{plural}.{group}");
        let object = json!({
            "metadata": {"name": name, "labels": {"case": it.namespace}},
            "spec": {"group": group, "scope": "Namespaced", "versions": versions,
                "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")}},
        });
        it.create(DEFINITIONS, &object);
        let declared = Declared { path: format!("{DEFINITIONS}/{name}"), group, plural: plural.into(), kind };
        it.wait_for("the kind to be established", &declared.path, |it| {
            let conditions = it["status"]["conditions"].as_array();
            conditions
                .is_some_and(|all| all.iter().any(|it| it["type"] == "Established" && it["status"] == "True"))
        });
        declared
    }

    pub fn objects(&self, it: &Case, version: &str) -> String {
        it.path(&format!("{}/{version}", self.group), &self.plural)
    }

    pub fn object(&self, version: &str, name: &str, rest: Value) -> Value {
        let mut object = rest;
        object["apiVersion"] = json!(format!("{}/{version}", self.group));
        object["kind"] = json!(self.kind);
        object["metadata"]["name"] = json!(name);
        object
    }

    pub fn remove(&self, it: &Case) {
        it.delete(&self.path);
        it.wait_gone(&self.path);
    }
}

fn open() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn made_and_removed(it: &Case) {
    let declared = Declared::new(it, "made", &[("v1", open())]);
    let objects = declared.objects(it, "v1");
    it.create(&objects, &declared.object("v1", "one", json!({"spec": {"any": 1}})));
    assert_eq!(it.get(&format!("{objects}/one"))["spec"]["any"], 1);
    declared.remove(it);
    assert_eq!(it.ask("GET", &objects, &Value::Null).code, 404, "the kind is gone with its definition");
}

fn listed(it: &Case) {
    for base in ["a", "b", "c"] {
        Declared::new(it, base, &[("v1", open())]);
    }
    let own = format!("{DEFINITIONS}?labelSelector=case%3D{}", it.namespace);
    assert_eq!(it.list(&own).len(), 3);
    it.delete(&own);
    it.wait("all definitions to go", || it.list(&own).is_empty().then_some(()));
}

fn status(it: &Case) {
    let declared = Declared::new(it, "status", &[("v1", open())]);
    let door = format!("{}/status", declared.path);
    let condition =
        json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "by a test"});
    let mut whole = it.get(&door);
    whole["status"]["conditions"].as_array_mut().unwrap().push(condition.clone());
    let replaced = it.replace(&door, &whole);
    assert!(
        replaced["status"]["conditions"].as_array().unwrap().iter().any(|it| it["type"] == "StatusUpdate")
    );
    let patched = it.merge(&door, &json!({"status": {"conditions": [condition]}}));
    assert_eq!(patched["status"]["conditions"][0]["type"], "StatusUpdate");
    assert_eq!(patched["spec"]["group"], declared.group.as_str());
    declared.remove(it);
}

fn own_discovery(it: &Case) {
    let groups = it.get("/apis")["groups"].take();
    let group =
        groups.as_array().unwrap().iter().find(|it| it["name"] == "apiextensions.k8s.io").cloned().unwrap();
    assert_eq!(group["versions"][0]["version"], "v1");
    assert_eq!(it.get("/apis/apiextensions.k8s.io")["preferredVersion"]["version"], "v1");
    let served = it.get("/apis/apiextensions.k8s.io/v1");
    assert!(
        served["resources"].as_array().unwrap().iter().any(|it| it["name"] == "customresourcedefinitions")
    );
}

fn defaults(it: &Case) {
    let schema = |b: bool| {
        let mut a = json!({"type": "object", "properties": {"a": {"type": "string", "default": "A"}, "b": {"type": "string"}}});
        if b {
            a["properties"]["b"]["default"] = json!("B");
        }
        a
    };
    let declared = Declared::new(it, "defaults", &[("v1", schema(false))]);
    let objects = declared.objects(it, "v1");
    let one = it.create(&objects, &declared.object("v1", "one", json!({})));
    assert_eq!(one["a"], "A");
    assert!(one["b"].is_null());
    let mut definition = it.get(&declared.path);
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema(true);
    it.replace(&declared.path, &definition);
    let kept = it.wait_for("the new default to be read", &format!("{objects}/one"), |it| it["b"] == "B");
    assert_eq!(kept["a"], "A");
    assert_eq!(it.list(&objects)[0]["b"], "B");
    declared.remove(it);
}

fn watched(it: &Case) {
    let declared = Declared::new(it, "watched", &[("v1", open())]);
    let objects = declared.objects(it, "v1");
    let mut watch = it.watch(&objects);
    let name = |event: &Value| event["object"]["metadata"]["name"].as_str().unwrap().to_string();
    for one in ["one", "two"] {
        it.create(&objects, &declared.object("v1", one, json!({})));
        assert_eq!(name(&watch.until("ADDED", PATIENCE)), one);
    }
    it.merge(&format!("{objects}/one"), &json!({"spec": {"dummy": "1"}}));
    assert_eq!(name(&watch.until("MODIFIED", PATIENCE)), "one");
    for one in ["two", "one"] {
        it.delete(&format!("{objects}/{one}"));
        assert_eq!(name(&watch.until("DELETED", PATIENCE)), one);
    }
    declared.remove(it);
}

fn field_selectors(it: &Case) {
    let schema = json!({"type": "object", "properties": {"hostPort": {"type": "string"}, "replicas": {"type": "integer"}}});
    let more = json!({"selectableFields": [{"jsonPath": ".hostPort"}, {"jsonPath": ".replicas"}]});
    let declared = Declared::with(it, "fields", "things", &[("v1", schema)], more);
    let objects = declared.objects(it, "v1");
    let selected = format!("{objects}?fieldSelector=hostPort%3Dhost1:80,replicas%3D2");
    let mut watch = it.watch(&selected);
    for (name, port, replicas) in [("a", "host1:80", 2), ("b", "host1:80", 3), ("c", "host2:80", 2)] {
        it.create(&objects, &declared.object("v1", name, json!({"hostPort": port, "replicas": replicas})));
    }
    let names: Vec<Value> = it.list(&selected).iter().map(|it| it["metadata"]["name"].clone()).collect();
    assert_eq!(names, [json!("a")]);
    assert_eq!(watch.next(PATIENCE).expect("an event")["object"]["metadata"]["name"], "a");
    it.merge(&format!("{objects}/a"), &json!({"replicas": 5}));
    assert_eq!(watch.next(PATIENCE).expect("an event")["type"], "DELETED");
    let unknown = it.ask("GET", &format!("{objects}?fieldSelector=spec.none%3D1"), &Value::Null);
    assert_eq!(unknown.code, 400, "{}", unknown.text);
    declared.remove(it);
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

fn discovery(it: &Case, path: &str, accept: &str) -> (String, Value) {
    let answer = it.send("GET", path, &[("accept", accept)], Vec::new());
    assert_eq!(answer.code, 200, "{}", answer.text);
    (answer.headers["content-type"].to_str().unwrap().to_string(), answer.body)
}

fn aggregated(it: &Case) {
    let (_, core) = discovery(it, "/api", AGGREGATED);
    assert_eq!(core["items"][0]["versions"][0]["version"], "v1");
    let (_, groups) = discovery(it, "/apis", AGGREGATED);
    for (group, resource) in [
        ("apps", "deployments"),
        ("batch", "jobs"),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        ("rbac.authorization.k8s.io", "clusterroles"),
    ] {
        let found = groups["items"].as_array().unwrap().iter().find(|it| it["metadata"]["name"] == group);
        let version = &found.unwrap_or_else(|| panic!("{group} is missing"))["versions"][0];
        assert!(
            version["resources"].as_array().unwrap().iter().any(|it| it["resource"] == resource),
            "{version}"
        );
        assert_eq!(version["freshness"], "Current");
    }
}

fn aggregated_declared(it: &Case) {
    let declared = Declared::new(it, "found", &[("v1", open()), ("v2", open())]);
    it.wait("the kind to be in discovery", || {
        let (_, groups) = discovery(it, "/apis", AGGREGATED);
        let group = groups["items"]
            .as_array()?
            .iter()
            .find(|it| it["metadata"]["name"] == declared.group.as_str())?
            .clone();
        let versions: Vec<&Value> = group["versions"].as_array()?.iter().map(|it| &it["version"]).collect();
        assert_eq!(versions, [&json!("v2"), &json!("v1")], "the newest comes first");
        assert_eq!(group["versions"][0]["resources"][0]["responseKind"]["kind"], "Thing");
        Some(())
    });
    declared.remove(it);
}

fn accept_headers(it: &Case) {
    for (accept, kind) in [
        ("application/json", "APIGroupList"),
        (AGGREGATED, "APIGroupDiscoveryList"),
        (
            "application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList,application/json",
            "APIGroupList",
        ),
        (
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
            "APIGroupDiscoveryList",
        ),
    ] {
        let (content_type, document) = discovery(it, "/apis", accept);
        assert_eq!(document["kind"], kind, "{accept}");
        assert_eq!(content_type.contains("APIGroupDiscoveryList"), kind == "APIGroupDiscoveryList");
    }
}

/// The schema of a declared kind in the published documents.
fn schema_of(it: &Case, declared: &Declared, version: &str) -> Option<Value> {
    let path = format!("/openapi/v3/apis/{}/{version}", declared.group);
    let document = it.find(&path)?;
    let of = |schema: &Value| schema["x-kubernetes-group-version-kind"][0]["kind"] == declared.kind.as_str();
    document["components"]["schemas"].as_object()?.values().find(|it| of(it)).cloned()
}

fn published(it: &Case) {
    let schema = json!({"type": "object", "description": "Thing for a test", "properties": {
        "spec": {"type": "object", "description": "what is wanted", "required": ["name"], "properties": {
            "name": {"type": "string", "description": "its name"},
            "size": {"type": "string", "enum": ["small", "large"]}}}}});
    let declared = Declared::new(it, "schema", &[("v1", schema)]);
    let found = it.wait("the schema to be published", || schema_of(it, &declared, "v1"));
    assert_eq!(found["properties"]["spec"]["properties"]["name"]["description"], "its name");
    let explained = it.kubectl(&["explain", &format!("{}.{}.spec", declared.plural, declared.group)]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("its name"), "{explained:?}");
    let apply = |body: Value| {
        it.kubectl_with_input(
            &["apply", "-f", "-"],
            &declared.object("v1", "one", json!({"spec": body})).to_string(),
        )
    };
    assert!(apply(json!({"name": "n", "size": "small"})).status.success());
    for wrong in
        [json!({"size": "small"}), json!({"name": "n", "size": "middling"}), json!({"name": "n", "more": 1})]
    {
        let output = apply(wrong.clone());
        assert!(!output.status.success(), "{wrong} is refused");
    }
    declared.remove(it);
}

fn published_free(it: &Case, schema: Value) {
    let declared = Declared::new(it, "free", &[("v1", schema)]);
    it.wait("the schema to be published", || schema_of(it, &declared, "v1"));
    let object =
        declared.object("v1", "one", json!({"spec": {"any": [{"thing": "goes"}], "deep": {"er": true}}}));
    let output = it.kubectl_with_input(&["apply", "-f", "-"], &object.to_string());
    assert!(output.status.success(), "{output:?}");
    assert_eq!(it.get(&format!("{}/one", declared.objects(it, "v1")))["spec"], object["spec"]);
    let explained = it.kubectl(&["explain", &format!("{}.{}", declared.plural, declared.group)]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("Thing"), "{explained:?}");
    declared.remove(it);
}

fn published_together(it: &Case, groups: [&str; 2], versions: [&str; 2]) {
    let plurals = if groups[0] == groups[1] { ["things", "stuffs"] } else { ["things", "things"] };
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}});
    let make =
        |at: usize| Declared::with(it, groups[at], plurals[at], &[(versions[at], schema.clone())], json!({}));
    let both = [make(0), make(1)];
    for (declared, version) in both.iter().zip(versions) {
        let found = it.wait("the schema to be published", || schema_of(it, declared, version));
        assert_eq!(found["properties"]["spec"]["properties"]["a"]["type"], "string");
    }
    for declared in &both {
        declared.remove(it);
    }
}

fn renamed(it: &Case) {
    let declared = Declared::new(it, "renamed", &[("v2", open()), ("v3", open())]);
    it.wait("both versions", || schema_of(it, &declared, "v3").and(schema_of(it, &declared, "v2")));
    let mut definition = it.get(&declared.path);
    definition["spec"]["versions"][1]["name"] = json!("v4");
    it.replace(&declared.path, &definition);
    it.wait("the new name", || schema_of(it, &declared, "v4"));
    it.wait("the old name to go", || schema_of(it, &declared, "v3").is_none().then_some(()));
    assert!(schema_of(it, &declared, "v2").is_some(), "the other version stays");
    declared.remove(it);
}

fn unserved(it: &Case) {
    let declared = Declared::new(it, "unserved", &[("v5", open()), ("v6alpha1", open())]);
    it.wait("both versions", || schema_of(it, &declared, "v6alpha1").and(schema_of(it, &declared, "v5")));
    let mut definition = it.get(&declared.path);
    definition["spec"]["versions"][1]["served"] = json!(false);
    it.replace(&declared.path, &definition);
    it.wait("the version to go", || schema_of(it, &declared, "v6alpha1").is_none().then_some(()));
    assert!(schema_of(it, &declared, "v5").is_some());
    declared.remove(it);
}
