//! Service accounts, tokens and reviews; certificates.

use naru_kube_tests::{Case, Group, Scenario, scenario};
use serde_json::{Value, json};

pub fn all() -> Vec<Scenario> {
    let of = |name, run: fn(&Case)| scenario(Group::A, name, run);
    vec![
        of("[sig-auth] ServiceAccounts should update a ServiceAccount [Conformance]", update),
        of(
            "[sig-auth] ServiceAccounts should guarantee kube-root-ca.crt exist in any namespace [Conformance]",
            root_ca,
        ),
        of(
            "[sig-auth] ServiceAccounts should create a serviceAccountToken and ensure a successful TokenReview [Conformance]",
            token_review,
        ),
        of(
            "[sig-auth] SubjectReview should support SubjectReview API operations [Conformance]",
            subject_review,
        ),
    ]
}

fn update(it: &Case) {
    let accounts = it.path("v1", "serviceaccounts");
    it.create(&accounts, &json!({"metadata": {"name": "one"}, "automountServiceAccountToken": true}));
    let mut object = it.get(&format!("{accounts}/one"));
    assert_eq!(object["automountServiceAccountToken"], true);
    object["automountServiceAccountToken"] = json!(false);
    assert_eq!(it.replace(&format!("{accounts}/one"), &object)["automountServiceAccountToken"], false);
}

fn root_ca(it: &Case) {
    let path = it.path("v1", "configmaps/kube-root-ca.crt");
    let holds = |it: &Value| it["data"]["ca.crt"].as_str().is_some_and(|it| it.contains("BEGIN CERTIFICATE"));
    it.wait_for("the certificate", &path, holds);
    it.delete(&path);
    it.wait_for("the certificate to come back", &path, holds);
    it.merge(&path, &json!({"data": {"ca.crt": "changed"}}));
    it.wait_for("the certificate to be put right", &path, holds);
}

fn token_review(it: &Case) {
    it.create(&it.path("v1", "serviceaccounts"), &json!({"metadata": {"name": "tested"}}));
    let made = it
        .create(&it.path("v1", "serviceaccounts/tested/token"), &json!({"spec": {"expirationSeconds": 600}}));
    let token = made["status"]["token"].as_str().unwrap();
    assert!(made["status"]["expirationTimestamp"].is_string());
    let review = it.create("/apis/authentication.k8s.io/v1/tokenreviews", &json!({"spec": {"token": token}}));
    assert_eq!(review["status"]["authenticated"], true, "{review}");
    let name = format!("system:serviceaccount:{}:tested", it.namespace);
    assert_eq!(review["status"]["user"]["username"], name.as_str());
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let own = it.send("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", &headers, b"{}".to_vec());
    assert_eq!(own.body["status"]["userInfo"]["username"], name.as_str(), "{}", own.text);
    it.delete(&it.path("v1", "serviceaccounts/tested"));
    it.wait_gone(&it.path("v1", "serviceaccounts/tested"));
    let gone = it.create("/apis/authentication.k8s.io/v1/tokenreviews", &json!({"spec": {"token": token}}));
    assert_ne!(gone["status"]["authenticated"], true, "a token dies with its account");
}

fn subject_review(it: &Case) {
    let account = format!("system:serviceaccount:{}:tested", it.namespace);
    let attributes = json!({"namespace": it.namespace, "verb": "list", "resource": "configmaps"});
    let spec = json!({"user": account, "resourceAttributes": attributes});
    let subject = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let local = it.path("authorization.k8s.io/v1", "localsubjectaccessreviews");
    for path in [subject, local.as_str()] {
        assert_eq!(it.create(path, &json!({"spec": spec}))["status"]["allowed"], false);
    }
    it.create(
        &it.path("rbac.authorization.k8s.io/v1", "rolebindings"),
        &json!({"metadata": {"name": "tested"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": "tested", "namespace": it.namespace}]}),
    );
    for path in [subject, local.as_str()] {
        assert_eq!(it.create(path, &json!({"spec": spec}))["status"]["allowed"], true);
    }
    let own = it.create(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
        &json!({"spec": {"resourceAttributes": attributes}}),
    );
    assert_eq!(own["status"]["allowed"], true);
}
