//! The API as programs see it: requests in, answers out, without a socket.

mod limits;
mod replay;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use kube_api::{Api, Config};
use serde_json::{Value, json};
use tower::ServiceExt;

struct Server {
    _dir: tempfile::TempDir,
    api: Api,
}

/// Lines of a watch.
struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

impl Server {
    async fn start() -> Server {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::new(dir.path().into(), "test");
        config.store.ring_changes_max = 64;
        let api = Api::open(config).expect("the API opens");
        api.prepare().await.expect("the first objects are written");
        Server { _dir: dir, api }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_string())).expect("a request");
        self.api.router().oneshot(request).await.expect("an answer")
    }

    async fn call(&self, method: &str, path: &str, content_type: &str, body: &str) -> (u16, Value) {
        let response = self.send(method, path, &[("content-type", content_type)], body).await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        (code, serde_json::from_slice(&bytes).expect("JSON"))
    }

    async fn get(&self, path: &str) -> Value {
        let (code, value) = self.call("GET", path, "", "").await;
        assert_eq!(code, 200, "{value}");
        value
    }

    async fn post(&self, path: &str, object: Value) -> (u16, Value) {
        self.call("POST", path, "application/json", &object.to_string()).await
    }

    async fn map(&self, name: &str, labels: Value) -> Value {
        let (code, made) = self.post(MAPS, json!({"metadata": {"name": name, "labels": labels}})).await;
        assert_eq!(code, 201, "{made}");
        made
    }

    async fn watch(&self, path: &str) -> Watch {
        let response = self.send("GET", path, &[], "").await;
        assert_eq!(response.status(), StatusCode::OK);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }
}

impl Watch {
    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.buffer.iter().position(|it| *it == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).expect("JSON");
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(20), self.body.frame()).await;
            let frame = frame.expect("in time").expect("the watch goes on").expect("readable");
            self.buffer.extend_from_slice(frame.data_ref().expect("data"));
        }
    }

    /// Type and name of the next event.
    async fn event(&mut self) -> String {
        let event = self.next().await;
        format!(
            "{} {}",
            event["type"].as_str().expect("a type"),
            event["object"]["metadata"]["name"].as_str().unwrap_or("-")
        )
    }
}

fn revision(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().expect("a revision")
}

#[tokio::test]
async fn a_write_that_changes_nothing_has_no_revision() {
    let server = Server::start().await;
    let made = server.map("a", json!({"x": "y"})).await;
    let path = format!("{MAPS}/a");
    let (_, same) = server.call("PUT", &path, "application/json", &made.to_string()).await;
    assert_eq!(same, made);
    let (_, same) = server.call("PATCH", &path, MERGE, r#"{"metadata":{"labels":{"x":"y"}}}"#).await;
    assert_eq!(same, made);
    let (_, changed) = server.call("PATCH", &path, MERGE, r#"{"data":{"k":"v"}}"#).await;
    assert_ne!(revision(&changed), revision(&made));
    let (code, failure) = server.call("PUT", &path, "application/json", &made.to_string()).await;
    assert_eq!((code, failure["reason"].as_str()), (409, Some("Conflict")), "the revision in it is old");
    let mut unconditional = made.clone();
    unconditional["metadata"].as_object_mut().expect("fields").remove("resourceVersion");
    let (code, replaced) = server.call("PUT", &path, "application/json", &unconditional.to_string()).await;
    assert_eq!((code, replaced["data"].is_null()), (200, true));
}

#[tokio::test]
async fn failures_say_what_and_why() {
    let server = Server::start().await;
    server.map("a", json!({})).await;
    for (method, path, media, body, code, reason) in [
        ("POST", MAPS, "application/json", r#"{"metadata":{"name":"a"}}"#, 409, "AlreadyExists"),
        ("GET", "/api/v1/namespaces/default/configmaps/none", "", "", 404, "NotFound"),
        ("GET", "/apis/none/v1/things", "", "", 404, "NotFound"),
        (
            "POST",
            "/api/v1/namespaces/none/configmaps",
            "application/json",
            r#"{"metadata":{"name":"a"}}"#,
            404,
            "NotFound",
        ),
        ("POST", MAPS, "application/json", r#"{"metadata":{"name":"Upper"}}"#, 422, "Invalid"),
        ("POST", MAPS, "application/json", "{", 400, "BadRequest"),
        ("POST", MAPS, "application/json", r#"{"kind":"Secret","metadata":{"name":"b"}}"#, 400, "BadRequest"),
        ("POST", MAPS, "application/vnd.kubernetes.protobuf", "k8s\0", 400, "BadRequest"),
        ("PATCH", "/api/v1/namespaces/default/configmaps/a", "text/plain", "{}", 415, "UnsupportedMediaType"),
        ("PUT", MAPS, "application/json", "{}", 405, "MethodNotAllowed"),
        ("GET", "/api/v1/pods?fieldSelector=spec.color%3Dred", "", "", 400, "BadRequest"),
        ("GET", "/openapi/v3/apis/none/v1", "", "", 404, "NotFound"),
    ] {
        let (got, failure) = server.call(method, path, media, body).await;
        assert_eq!((got, failure["reason"].as_str()), (code, Some(reason)), "{method} {path}: {failure}");
        assert_eq!(failure["kind"], "Status");
    }
    let response = server.send("GET", MAPS, &[("accept", "application/vnd.kubernetes.protobuf")], "").await;
    assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE);
}

#[tokio::test]
async fn a_watch_follows_objects_into_and_out_of_its_selector() {
    let server = Server::start().await;
    let list = server.get(&format!("{MAPS}?labelSelector=app%3Dweb")).await;
    let path = format!("{MAPS}?watch=true&labelSelector=app%3Dweb&resourceVersion={}", revision(&list));
    let mut watch = server.watch(&path).await;
    server.map("other", json!({"app": "db"})).await;
    server.map("a", json!({"app": "web"})).await;
    assert_eq!(watch.event().await, "ADDED a");
    let label = |value: &str| format!(r#"{{"metadata":{{"labels":{{"app":"{value}"}}}}}}"#);
    let (_, left) = server.call("PATCH", &format!("{MAPS}/a"), MERGE, &label("db")).await;
    let event = watch.next().await;
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["metadata"]["labels"]["app"], "web", "the last state that matched");
    assert_eq!(revision(&event["object"]), revision(&left));
    server.call("PATCH", &format!("{MAPS}/other"), MERGE, &label("web")).await;
    assert_eq!(watch.event().await, "ADDED other");
    server.call("PATCH", &format!("{MAPS}/other"), MERGE, r#"{"data":{"k":"v"}}"#).await;
    assert_eq!(watch.event().await, "MODIFIED other");
    let (_, status) = server.call("DELETE", &format!("{MAPS}/other"), "", "").await;
    assert_eq!(status["status"], "Success");
    assert_eq!(watch.event().await, "DELETED other");
}

#[tokio::test]
async fn a_watch_from_the_distant_past_is_told_to_list_again() {
    let server = Server::start().await;
    for number in 0..100 {
        server.map(&format!("m{number}"), json!({})).await;
    }
    let event = server.watch(&format!("{MAPS}?watch=true&resourceVersion=1")).await.next().await;
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    let (code, failure) = server.call("GET", &format!("{MAPS}?resourceVersion=99999"), "", "").await;
    assert_eq!(code, 504);
    assert_eq!(failure["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_mark() {
    let server = Server::start().await;
    server.map("a", json!({})).await;
    let path = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let mut watch = server.watch(&path).await;
    assert_eq!(watch.event().await, "ADDED a");
    let mark = watch.next().await;
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(watch.event().await, "BOOKMARK -", "one more at the end of its time");
    assert!(watch.body.frame().await.is_none());
}

#[tokio::test]
async fn pages_of_a_list_belong_to_one_moment() {
    let server = Server::start().await;
    for name in ["a", "b", "c", "d", "e"] {
        server.map(name, json!({})).await;
    }
    let first = server.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    server.map("bb", json!({})).await;
    server.call("DELETE", &format!("{MAPS}/d"), "", "").await;
    let token = first["metadata"]["continue"].as_str().expect("more");
    let rest = server.get(&format!("{MAPS}?limit=10&continue={token}")).await;
    let names: Vec<&str> = rest["items"].as_array().expect("items").iter().map(kube_kinds::name).collect();
    assert_eq!(names, ["c", "d", "e"]);
    assert_eq!(revision(&rest), revision(&first));
}

#[tokio::test]
async fn server_side_apply_creates_shares_and_removes() {
    let server = Server::start().await;
    let path = |manager: &str, force: bool| format!("{MAPS}/a?fieldManager={manager}&force={force}");
    let body = |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {data}\n");
    let (code, _) = server.call("PATCH", &path("ci", false), APPLY, &body("{one: '1', two: '2'}")).await;
    assert_eq!(code, 201);
    let (code, failure) = server.call("PATCH", &path("ops", false), APPLY, &body("{two: '3'}")).await;
    assert_eq!(code, 409);
    assert_eq!(failure["details"]["causes"][0]["field"], ".data.two");
    let (code, _) = server.call("PATCH", &path("ops", true), APPLY, &body("{two: '3'}")).await;
    assert_eq!(code, 200);
    let (_, object) = server.call("PATCH", &path("ci", false), APPLY, &body("{}")).await;
    assert_eq!(object["data"], json!({"two": "3"}));
    let before = revision(&object).to_string();
    let (_, object) = server.call("PATCH", &path("ci", false), APPLY, &body("{}")).await;
    assert_eq!(revision(&object), before);
}

#[tokio::test]
async fn a_dry_run_answers_without_writing() {
    let server = Server::start().await;
    let before = server.api.store().revision();
    let (code, made) =
        server.post(&format!("{MAPS}?dryRun=All"), json!({"metadata": {"generateName": "x-"}})).await;
    assert_eq!(code, 201);
    assert_eq!(kube_kinds::name(&made).len(), "x-".len() + 5);
    assert_eq!(server.api.store().revision(), before);
}

#[tokio::test]
async fn tables_have_the_columns_of_the_kind() {
    let server = Server::start().await;
    server.map("a", json!({})).await;
    let response = server.send("GET", MAPS, &[("accept", TABLE)], "").await;
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    let table: Value = serde_json::from_slice(&bytes).expect("JSON");
    let names: Vec<&str> = kube_kinds::list(&table, "/columnDefinitions")
        .iter()
        .map(|it| kube_kinds::text(it, "/name"))
        .collect();
    assert_eq!(names, ["Name", "Data", "Age"]);
    assert_eq!(table["rows"][0]["cells"][0], "a");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}

#[tokio::test]
async fn finalizers_and_the_status_have_their_own_rules() {
    let server = Server::start().await;
    let pod = json!({"metadata": {"name": "p", "finalizers": ["test/hold"]}, "spec": {"containers": [{"name": "c", "image": "i:1"}]},
        "status": {"phase": "Running"}});
    let path = "/api/v1/namespaces/default/pods";
    let (_, made) = server.post(path, pod).await;
    assert_eq!(made["status"]["phase"], "Pending", "a client does not say how a new pod is");
    let path = format!("{path}/p");
    let (_, pod) = server
        .call(
            "PATCH",
            &format!("{path}/status"),
            MERGE,
            r#"{"status":{"phase":"Running"},"spec":{"nodeName":"x"}}"#,
        )
        .await;
    assert_eq!((&pod["status"]["phase"], &pod["spec"]["nodeName"]), (&json!("Running"), &Value::Null));
    let (code, _) = server.post(&format!("{path}/binding"), json!({"target": {"name": "n1"}})).await;
    assert_eq!(code, 201);
    let (_, pod) = server.call("DELETE", &path, "application/json", r#"{"gracePeriodSeconds":5}"#).await;
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 5);
    let (_, pod) = server.call("DELETE", &path, "application/json", r#"{"gracePeriodSeconds":0}"#).await;
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(server.get(&path).await["metadata"]["finalizers"], json!(["test/hold"]), "held");
    server.call("PATCH", &path, MERGE, r#"{"metadata":{"finalizers":null}}"#).await;
    assert_eq!(server.call("GET", &path, "", "").await.0, 404);
}

#[tokio::test]
async fn both_forms_of_discovery_list_the_same() {
    let server = Server::start().await;
    let groups = server.get("/apis").await;
    let legacy: Vec<&str> = kube_kinds::list(&groups, "/groups").iter().map(plain_name).collect();
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let response = server.send("GET", "/apis", &[("accept", aggregated)], "").await;
    let content_type = response.headers()["content-type"].to_str().expect("text").to_string();
    assert!(content_type.contains("as=APIGroupDiscoveryList"), "{content_type}");
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    let document: Value = serde_json::from_slice(&bytes).expect("JSON");
    let new: Vec<&str> = kube_kinds::list(&document, "/items").iter().map(kube_kinds::name).collect();
    assert_eq!(legacy, new);
    let apps = server.get("/apis/apps/v1").await;
    let names: Vec<&str> = kube_kinds::list(&apps, "/resources").iter().map(plain_name).collect();
    assert_eq!(names[..3], ["deployments", "deployments/status", "deployments/scale"]);
}

fn plain_name(it: &Value) -> &str {
    kube_kinds::text(it, "/name")
}

#[tokio::test]
async fn what_is_not_acted_on_is_said() {
    let server = Server::start().await;
    let service = r#"{"metadata":{"name":"web"},"spec":{"type":"LoadBalancer","loadBalancerClass":"example.com/x","selector":{"a":"b"},"ports":[{"port":80}]}}"#;
    let response = server
        .send("POST", "/api/v1/namespaces/default/services", &[("content-type", "application/json")], service)
        .await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let warning = response.headers()["warning"].to_str().expect("text").to_string();
    assert!(warning.contains("there is no load balancer of the class"), "{warning}");
}

#[tokio::test]
async fn scale_reads_and_writes_replicas() {
    let server = Server::start().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    assert_eq!(server.post(path, deployment).await.0, 201);
    let (_, scale) =
        server.call("PATCH", &format!("{path}/web/scale"), MERGE, r#"{"spec":{"replicas":4}}"#).await;
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(4), &json!("a=b")));
    let deployment = server.get(&format!("{path}/web")).await;
    assert_eq!(
        (&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]),
        (&json!(4), &json!(2))
    );
}

/// A small generator of numbers: the same sequence for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

type Known = BTreeMap<String, Value>;

fn known(list: &Value) -> Known {
    kube_kinds::list(list, "/items")
        .iter()
        .map(|it| (kube_kinds::name(it).to_string(), it["data"].clone()))
        .collect()
}

/// What a client believes that lists once and then follows, until it sees the object `end-APP`.
async fn follow(server: &Server, app: &str) -> Known {
    let end = format!("end-{app}");
    let selector = format!("labelSelector=app%3D{app}");
    'list: loop {
        let list = server.get(&format!("{MAPS}?{selector}")).await;
        let mut known = known(&list);
        let mut at: u64 = revision(&list).parse().expect("a number");
        let mut watch = server.watch(&format!("{MAPS}?watch=true&{selector}&resourceVersion={at}")).await;
        while !known.contains_key(&end) {
            let event = watch.next().await;
            let object = &event["object"];
            let name = kube_kinds::name(object).to_string();
            match event["type"].as_str().expect("a type") {
                "ERROR" => continue 'list,
                "ADDED" => assert!(known.insert(name, object["data"].clone()).is_none(), "added twice"),
                "MODIFIED" => assert!(known.insert(name, object["data"].clone()).is_some(), "not known"),
                "DELETED" => assert!(known.remove(&name).is_some(), "not known"),
                other => panic!("an event of type {other}"),
            }
            let now: u64 = revision(object).parse().expect("a number");
            assert!(now > at, "revisions grow");
            at = now;
        }
        return known;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_believe_what_is_true_whatever_happens() {
    const APPS: [&str; 3] = ["a", "b", "c"];
    for seed in 1..=5 {
        let server = Arc::new(Server::start().await);
        let start = |app: &'static str| {
            let server = server.clone();
            tokio::spawn(async move { (app, follow(&server, app).await) })
        };
        let mut watchers: Vec<_> = APPS.into_iter().map(start).collect();
        let mut dice = Dice(seed);
        for number in 0..300 {
            let name = format!("m{}", dice.below(12));
            let app = APPS[dice.below(3) as usize];
            let body = json!({"metadata": {"name": name, "labels": {"app": app}}, "data": {"n": number.to_string()}});
            match dice.below(4) {
                0 => server.call("DELETE", &format!("{MAPS}/{name}"), "", "").await,
                1 => server.post(MAPS, body).await,
                _ => server.call("PATCH", &format!("{MAPS}/{name}"), MERGE, &body.to_string()).await,
            };
            if number % 50 == 0 {
                watchers.extend(APPS.into_iter().map(start));
            }
        }
        for app in APPS {
            server.map(&format!("end-{app}"), json!({"app": app})).await;
        }
        for watcher in watchers {
            let (app, believed) = watcher.await.expect("a watcher that ends");
            let truth = server.get(&format!("{MAPS}?labelSelector=app%3D{app}")).await;
            assert_eq!(believed, known(&truth), "seed {seed}, app {app}");
        }
    }
}

#[tokio::test]
async fn what_clients_ask_before_they_apply_is_named_by_its_content() {
    let server = Server::start().await;
    let index = server.get("/openapi/v3").await;
    let address = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_string();
    assert!(address.contains("?hash="), "{address}");
    let response = server.send("GET", &address, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert!(response.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    let tag = response.headers()["etag"].to_str().unwrap().to_string();
    let again = server.send("GET", &address, &[("if-none-match", &tag)], "").await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    let document = server.get(&address).await;
    let deployment = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    let old = server.get("/openapi/v2").await;
    assert_eq!(old["swagger"], "2.0");
    assert!(old["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    for asked in ["spec.v2@v1.0", "spec.v2.v1.0"] {
        let accept = format!("application/com.github.proto-openapi.{asked}+protobuf");
        let binary = server.send("GET", "/openapi/v2", &[("accept", &accept)], "").await;
        // The older name is no media type, so kubectl could not read an answer under it.
        let got = binary.headers()["content-type"].to_str().unwrap();
        assert_eq!(got, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    }
}

#[tokio::test]
async fn unknown_and_duplicate_fields_are_refused_told_or_left_out() {
    let server = Server::start().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let body = r#"{"metadata": {"name": "c", "odd": 1}, "data": {"a": "1"}, "data": {"a": "2"}, "dta": {}}"#;
    let (code, refused) =
        server.call("POST", &format!("{path}?fieldValidation=Strict"), "application/json", body).await;
    assert_eq!(code, 400);
    let message = refused["message"].as_str().expect("text");
    assert!(
        message.ends_with(
            r#"strict decoding error: unknown field "dta", unknown field "metadata.odd", duplicate field "data""#
        ),
        "{message}"
    );
    let (code, made) = server.call("POST", path, "application/json", body).await;
    assert_eq!(code, 201);
    assert_eq!(made["data"]["a"], "2");
    assert!(made["dta"].is_null() && made["metadata"]["odd"].is_null());
    let patch = r#"{"dta": 1}"#;
    let (code, refused) = server
        .call("PATCH", &format!("{path}/c?fieldValidation=Strict"), "application/merge-patch+json", patch)
        .await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().expect("text").contains(r#"unknown field "dta""#), "{refused}");
}

#[tokio::test]
async fn a_declared_kind_prunes_fills_in_and_judges_its_objects() {
    let server = Server::start().await;
    let definition = |default: Value| {
        json!({"metadata": {"name": "toys.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "toys", "kind": "Toy"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                "x-kubernetes-validations": [{"rule": "!has(self.size) || self.size < 5", "message": "too big"}],
                "properties": {"color": {"type": "string"}, "size": {"type": "integer", "default": default}}}}}}}]}})
    };
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let (code, refused) = server.post(crds, definition(json!("x"))).await;
    assert_eq!(code, 422, "{refused}");
    let (code, made) = server.post(crds, definition(Value::Null)).await;
    assert_eq!(code, 201, "{made}");
    let mut twin = definition(Value::Null);
    twin["metadata"]["name"] = json!("games.example.com");
    twin["spec"]["names"] = json!({"plural": "games", "kind": "Toy"});
    let (_, twin) = server.post(crds, twin).await;
    assert_eq!(twin["status"]["conditions"][0]["status"], "False", "{twin}");

    let toys = "/apis/example.com/v1/namespaces/default/toys";
    let (code, toy) = server
        .post(toys, json!({"metadata": {"name": "a"}, "spec": {"color": "red", "odd": 1, "size": 1}}))
        .await;
    assert_eq!((code, &toy["spec"]), (201, &json!({"color": "red", "size": 1})));
    let (_, _) =
        server.post(toys, json!({"metadata": {"name": "b"}, "spec": {"color": "blue", "size": 2}})).await;
    let (code, refused) = server.post(toys, json!({"metadata": {"name": "c"}, "spec": {"size": 7}})).await;
    assert_eq!(code, 422);
    assert_eq!(refused["details"]["causes"][0]["message"], "Invalid value: \"object\": too big");
    let red = server.get(&format!("{toys}?fieldSelector=spec.color=red")).await;
    assert_eq!(red["items"].as_array().map(Vec::len), Some(1));

    let patch = json!({"metadata": {"name": "plain"}, "spec": {}});
    server.post(toys, patch).await;
    let path = format!("{crds}/toys.example.com");
    let patch = json!([{"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size/default", "value": 3}]);
    let (code, _) = server.call("PATCH", &path, "application/json-patch+json", &patch.to_string()).await;
    assert_eq!(code, 200);
    assert_eq!(server.get(&format!("{toys}/plain")).await["spec"]["size"], 3, "also what was stored before");
}

#[tokio::test]
async fn a_pod_is_furnished_and_held_to_the_limits_of_its_namespace() {
    let server = Server::start().await;
    let namespace =
        json!({"metadata": {"name": "team", "labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    server.post("/api/v1/namespaces", namespace).await;
    let team = "/api/v1/namespaces/team";
    let pod = |name: &str, container: Value| {
        let mut one = json!({"name": "c", "image": "i"});
        for (field, value) in container.as_object().into_iter().flatten() {
            one[field] = value.clone();
        }
        json!({"metadata": {"name": name}, "spec": {"containers": [one]}})
    };
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container", "default": {"cpu": "1"},
        "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "2"}}]}});
    assert_eq!(server.post(&format!("{team}/limitranges"), range).await.0, 201);
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2", "requests.cpu": "500m", "configmaps": "1"}}});
    assert_eq!(server.post(&format!("{team}/resourcequotas"), quota).await.0, 201);

    let (code, made) = server.post(&format!("{team}/pods"), pod("a", json!({}))).await;
    assert_eq!(code, 201, "{made}");
    let spec = &made["spec"];
    assert_eq!(
        spec["containers"][0]["resources"],
        json!({"limits": {"cpu": "1"}, "requests": {"cpu": "100m"}})
    );
    assert_eq!((&spec["priority"], &spec["serviceAccountName"]), (&json!(0), &json!("default")));
    assert_eq!(
        spec["containers"][0]["volumeMounts"][0]["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    let refused = |container: Value| {
        let (server, path) = (&server, format!("{team}/pods"));
        let body = pod("b", container);
        async move {
            let (code, failure) = server.post(&path, body).await;
            assert_eq!(code, 403, "{failure}");
            failure["message"].as_str().expect("text").to_string()
        }
    };
    let told = refused(json!({"securityContext": {"privileged": true}})).await;
    assert!(
        told.contains("violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not"),
        "{told}"
    );
    let told = refused(json!({"resources": {"limits": {"cpu": "3"}}})).await;
    assert!(told.contains("maximum cpu usage per Container is 2, but limit is 3"), "{told}");
    let told = refused(json!({"resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "450m"}}})).await;
    assert!(
        told.ends_with("exceeded quota: q, requested: requests.cpu=450m, used: requests.cpu=100m, limited: requests.cpu=500m"),
        "{told}"
    );
    assert_eq!(server.post(&format!("{team}/pods"), pod("b", json!({}))).await.0, 201);
    let told = refused(json!({})).await;
    assert!(told.contains("exceeded quota: q, requested: pods=1, used: pods=2"), "{told}");
}

#[tokio::test]
async fn a_quota_is_never_overdrawn_by_writers_at_once() {
    let server = Server::start().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"configmaps": "5"}}});
    server.post("/api/v1/namespaces/default/resourcequotas", quota).await;
    let writes = (0..20).map(|it| server.post(MAPS, json!({"metadata": {"name": format!("c{it}")}})));
    let codes: Vec<u16> = futures::future::join_all(writes).await.into_iter().map(|(code, _)| code).collect();
    assert_eq!(codes.iter().filter(|it| **it == 201).count(), 5, "{codes:?}");
}

#[tokio::test]
async fn a_bound_policy_denies_and_warns() {
    let server = Server::start().await;
    let group = "/apis/admissionregistration.k8s.io/v1";
    let policy = |expression: &str| {
        json!({"metadata": {"name": "p"}, "spec": {"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]},
            "matchConditions": [{"name": "c", "expression": "request.userInfo.username != 'nobody'"}],
            "variables": [{"name": "size", "expression": "object.data.size()"}, {"name": "double", "expression": "variables.size * 2"}],
            "validations": [{"expression": expression, "messageExpression": "'twice ' + string(variables.double)"}]}})
    };
    let (code, refused) = server.post(&format!("{group}/validatingadmissionpolicies"), policy("1 +")).await;
    assert_eq!(code, 422, "{refused}");
    server.post(MAPS, json!({"metadata": {"name": "limit"}, "data": {"max": "2"}})).await;
    let expression = "variables.double <= int(params.data.max)";
    assert_eq!(server.post(&format!("{group}/validatingadmissionpolicies"), policy(expression)).await.0, 201);
    let binding = |actions: Value| {
        json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": actions,
        "paramRef": {"name": "limit", "namespace": "default", "parameterNotFoundAction": "Deny"}}})
    };
    let path = format!("{group}/validatingadmissionpolicybindings");
    assert_eq!(server.post(&path, binding(json!(["Deny"]))).await.0, 201);
    let map = |name: &str| json!({"metadata": {"name": name}, "data": {"a": "1", "b": "2"}});
    let (code, refused) = server.post(MAPS, map("a")).await;
    assert_eq!(code, 422);
    assert!(
        refused["message"]
            .as_str()
            .expect("text")
            .ends_with("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: twice 4"),
        "{refused}"
    );
    assert_eq!(server.post(MAPS, json!({"metadata": {"name": "a"}, "data": {"a": "1"}})).await.0, 201);
    let patch = json!({"spec": {"validationActions": ["Warn"]}}).to_string();
    let (code, _) = server.call("PATCH", &format!("{path}/b"), "application/merge-patch+json", &patch).await;
    assert_eq!(code, 200);
    let body = map("b").to_string();
    let response = server.send("POST", MAPS, &[("content-type", "application/json")], &body).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    assert!(response.headers()["warning"].to_str().expect("text").contains("twice 4"));
}
