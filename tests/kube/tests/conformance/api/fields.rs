//! What happens to fields that nobody knows, and to those that come twice.

use naru_kube_tests::{Answer, Case, Group, Scenario, scenario};
use serde_json::{Value, json};

use super::crds::Declared;

pub fn all() -> Vec<Scenario> {
    let of = |name, run: fn(&Case)| scenario(Group::A, name, run);
    vec![
        of(
            "[sig-api-machinery] FieldValidation should detect unknown and duplicate fields of a typed object [Conformance]",
            typed,
        ),
        of(
            "[sig-api-machinery] FieldValidation should detect unknown metadata fields of a typed object [Conformance]",
            typed_metadata,
        ),
        of(
            "[sig-api-machinery] FieldValidation should create/apply a valid CR for CRD with validation schema [Conformance]",
            valid,
        ),
        of(
            "[sig-api-machinery] FieldValidation should create/apply an invalid CR with extra properties for CRD with validation schema [Conformance]",
            extra,
        ),
        of(
            "[sig-api-machinery] FieldValidation should create/apply a CR with unknown fields for CRD with no validation schema [Conformance]",
            free,
        ),
        of(
            "[sig-api-machinery] FieldValidation should detect unknown metadata fields in both the root and embedded object of a CR [Conformance]",
            embedded,
        ),
        of(
            "[sig-api-machinery] FieldValidation should detect duplicates in a CR when preserving unknown fields [Conformance]",
            duplicates,
        ),
    ]
}

fn post(it: &Case, path: &str, validation: &str, body: &str) -> Answer {
    let path = format!("{path}?fieldValidation={validation}");
    it.send("POST", &path, &[("content-type", "application/json")], body.as_bytes().to_vec())
}

const DEPLOYMENT: &str = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"NAME","META":1},
  "spec":{"UNKNOWN":"x","replicas":1,"replicas":0,"selector":{"matchLabels":{"a":"b"}},
  "template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"none"}]}}}}"#;

fn typed(it: &Case) {
    let path = it.path("apps/v1", "deployments");
    let body = |name: &str| {
        DEPLOYMENT.replace("NAME", name).replace(",\"META\":1", "").replace("UNKNOWN", "strange")
    };
    let strict = post(it, &path, "Strict", &body("strict"));
    assert_eq!(strict.code, 400, "{}", strict.text);
    for part in [
        "strict decoding error",
        "unknown field \\\"spec.strange\\\"",
        "duplicate field \\\"spec.replicas\\\"",
    ] {
        assert!(strict.text.contains(part), "{}", strict.text);
    }
    let warned = post(it, &path, "Warn", &body("warned"));
    assert_eq!(warned.code, 201, "{}", warned.text);
    let warnings: Vec<&str> =
        warned.headers.get_all("warning").iter().map(|it| it.to_str().unwrap()).collect();
    assert!(warnings.iter().any(|it| it.contains("spec.strange")), "{warnings:?}");
    assert!(warnings.iter().any(|it| it.contains("spec.replicas")), "{warnings:?}");
    let ignored = post(it, &path, "Ignore", &body("ignored"));
    assert_eq!(ignored.code, 201, "{}", ignored.text);
    assert!(ignored.body["spec"]["strange"].is_null(), "what nobody knows is not kept");
    assert_eq!(ignored.body["spec"]["replicas"], 0, "the last one counts");
}

fn typed_metadata(it: &Case) {
    let body = DEPLOYMENT
        .replace("NAME", "meta")
        .replace("META", "strange")
        .replace("\"UNKNOWN\":\"x\",", "")
        .replace("\"replicas\":1,", "");
    let strict = post(it, &it.path("apps/v1", "deployments"), "Strict", &body);
    assert_eq!(strict.code, 400, "{}", strict.text);
    assert!(strict.text.contains("metadata.strange"), "{}", strict.text);
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "knownField1": {"type": "string"}, "cronSpec": {"type": "string", "pattern": "^a+$"}}}}})
}

fn valid(it: &Case) {
    let declared = Declared::new(it, "valid", &[("v1", schema())]);
    let objects = declared.objects(it, "v1");
    let object = declared.object("v1", "one", json!({"spec": {"knownField1": "x", "cronSpec": "aa"}}));
    assert_eq!(post(it, &objects, "Strict", &object.to_string()).code, 201);
    let applied = it.apply(
        &format!("{objects}/two"),
        "tester",
        false,
        &declared.object("v1", "two", json!({"spec": {"cronSpec": "a"}})),
    );
    assert_eq!(applied.code, 201, "{}", applied.text);
    let wrong = declared.object("v1", "three", json!({"spec": {"cronSpec": "b"}}));
    assert_eq!(post(it, &objects, "Strict", &wrong.to_string()).code, 422);
    declared.remove(it);
}

fn extra(it: &Case) {
    let declared = Declared::new(it, "extra", &[("v1", schema())]);
    let objects = declared.objects(it, "v1");
    let object =
        |name: &str| declared.object("v1", name, json!({"spec": {"knownField1": "x", "extra": "y"}}));
    let strict = post(it, &objects, "Strict", &object("one").to_string());
    assert_eq!(strict.code, 400, "{}", strict.text);
    assert!(strict.text.contains("unknown field \\\"spec.extra\\\""), "{}", strict.text);
    let ignored = post(it, &objects, "Ignore", &object("two").to_string());
    assert_eq!(ignored.code, 201);
    assert!(ignored.body["spec"]["extra"].is_null(), "it is pruned");
    let path = format!("{objects}/three?fieldManager=t&fieldValidation=Strict");
    let headers = [("content-type", "application/apply-patch+yaml")];
    let applied = it.send("PATCH", &path, &headers, object("three").to_string().into_bytes());
    assert!(matches!(applied.code, 400 | 422) && applied.text.contains("extra"), "{}", applied.text);
    declared.remove(it);
}

fn free(it: &Case) {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let declared = Declared::new(it, "free", &[("v1", open)]);
    let objects = declared.objects(it, "v1");
    let object = declared.object("v1", "one", json!({"spec": {"anything": "y"}, "more": [1]}));
    let made = post(it, &objects, "Strict", &object.to_string());
    assert_eq!(made.code, 201, "{}", made.text);
    assert_eq!(made.body["spec"]["anything"], "y");
    assert_eq!(made.body["more"], json!([1]));
    let applied = it.apply(
        &format!("{objects}/two"),
        "t",
        false,
        &declared.object("v1", "two", json!({"other": {"a": 1}})),
    );
    assert_eq!(applied.code, 201, "{}", applied.text);
    declared.remove(it);
}

fn embedded(it: &Case) {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "template": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}}}});
    let declared = Declared::new(it, "embedded", &[("v1", schema)]);
    let objects = declared.objects(it, "v1");
    let mut object = declared.object(
        "v1",
        "one",
        json!({"spec": {"template": {"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "inner", "unknownSubMeta": "x"}, "anything": 1}}}),
    );
    object["metadata"]["unknownMeta"] = json!("y");
    let strict = post(it, &objects, "Strict", &object.to_string());
    assert_eq!(strict.code, 400, "{}", strict.text);
    for field in ["metadata.unknownMeta", "spec.template.metadata.unknownSubMeta"] {
        assert!(strict.text.contains(field), "{field} is missing in {}", strict.text);
    }
    declared.remove(it);
}

fn duplicates(it: &Case) {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let declared = Declared::new(it, "twice", &[("v1", open)]);
    let body = format!(
        r#"{{"apiVersion":"{}/v1","kind":"Thing","metadata":{{"name":"one"}},"spec":{{"any":1}},"spec":{{"any":2}}}}"#,
        declared.group
    );
    let strict = post(it, &declared.objects(it, "v1"), "Strict", &body);
    assert_eq!(strict.code, 400, "{}", strict.text);
    assert!(strict.text.contains("duplicate field \\\"spec\\\""), "{}", strict.text);
    declared.remove(it);
}
