//! Bodies and queries beyond all measure, and bodies that are broken: a Status that names what is wrong, never
//! a failure of ours.

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::{APPLY, Dice, MAPS, MERGE, Server};

#[tokio::test]
async fn what_is_too_large_is_refused_as_such() {
    let server = Server::start().await;
    let big = "x".repeat(3 << 20);
    let object = json!({"metadata": {"name": "big"}, "data": {"a": big}});
    let (code, status) = server.post(MAPS, object.clone()).await;
    assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")), "{}", status["message"]);
    server.map("small", json!({})).await;
    for (method, kind) in [("PATCH", MERGE), ("PATCH", APPLY), ("PUT", "application/json")] {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "small"}, "data": {"a": big}}).to_string();
        let path = format!("{MAPS}/small?fieldManager=t");
        let (code, status) = server.call(method, &path, kind, &body).await;
        assert_eq!(
            (code, &status["kind"]),
            (413, &json!("Status")),
            "{method} {kind}: {}",
            status["message"]
        );
    }
    // A million values of a label, in an object and in a selector.
    let labels: serde_json::Map<String, Value> =
        (0..1_000_000).map(|it| (format!("l{it}"), json!("v"))).collect();
    let (code, status) = server.post(MAPS, json!({"metadata": {"name": "labels", "labels": labels}})).await;
    assert_eq!((code, &status["kind"]), (413, &json!("Status")), "{}", status["message"]);
    let values: Vec<String> = (0..5_000).map(|it| format!("v{it}")).collect();
    let list = server.get(&format!("{MAPS}?labelSelector=app+in+({})", values.join(","))).await;
    assert_eq!(list["items"], json!([]));
    assert_eq!(server.get(&format!("{MAPS}/small")).await["metadata"]["name"], "small");
}

/// A field of a protobuf message with a length.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
    out
}

/// A ConfigMap as kubectl's older siblings send it.
fn config_map(name: &str) -> Vec<u8> {
    let meta = field(1, name.as_bytes());
    let pair = [field(1, b"key"), field(2, b"value")].concat();
    let raw = [field(1, &meta), field(2, &pair)].concat();
    let kind = [field(1, b"v1"), field(2, b"ConfigMap")].concat();
    [b"k8s\0".to_vec(), field(1, &kind), field(2, &raw)].concat()
}

async fn post(server: &Server, path: &str, body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let request = Request::post(path)
        .header("content-type", "application/vnd.kubernetes.protobuf")
        .header("accept", "application/json")
        .body(axum::body::Body::from(body))
        .expect("a request");
    let response = server.api.router().oneshot(request).await.expect("an answer");
    (response.status(), response.into_body().collect().await.expect("a body").to_bytes().to_vec())
}

#[tokio::test]
async fn broken_protobuf_is_answered_with_a_status() {
    let server = Server::start().await;
    let (code, answer) = post(&server, MAPS, config_map("whole")).await;
    assert_eq!(code, StatusCode::CREATED, "{}", String::from_utf8_lossy(&answer));
    assert_eq!(server.get(&format!("{MAPS}/whole")).await["data"]["key"], "value");
    let whole = config_map("cut");
    let mut bodies: Vec<(String, Vec<u8>)> =
        (0..whole.len()).map(|end| (format!("cut at {end}"), whole[..end].to_vec())).collect();
    bodies.push((
        "endless length".into(),
        [b"k8s\0".to_vec(), vec![0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]].concat(),
    ));
    bodies.push(("groups".into(), [b"k8s\0".to_vec(), vec![0x0b; 4096]].concat()));
    bodies.push(("zeros".into(), [b"k8s\0".to_vec(), vec![0; 4096]].concat()));
    let deep = (0..2_000).fold(Vec::new(), |inner, _| field(1, &inner));
    bodies.push(("deep".into(), [b"k8s\0".to_vec(), field(2, &deep)].concat()));
    let mut dice = Dice(11);
    for round in 0..3_000 {
        let mut body = config_map(&format!("r{round}"));
        for _ in 0..1 + dice.below(4) {
            let at = 4 + dice.below(body.len() as u64 - 4) as usize;
            body[at] = dice.below(256) as u8;
        }
        bodies.push((format!("round {round}"), body));
    }
    for (what, body) in bodies {
        let (code, answer) = post(&server, MAPS, body).await;
        assert!(code.as_u16() < 500, "{what}: {code} {}", String::from_utf8_lossy(&answer));
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|_| panic!("{what}: not JSON"));
        if !code.is_success() {
            assert_eq!(answer["kind"], "Status", "{what}");
            assert!(answer["message"].as_str().is_some_and(|it| !it.is_empty()), "{what}: {answer}");
        }
    }
}
