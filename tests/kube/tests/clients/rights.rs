//! Who may do what, with real tokens.

use naru_kube_tests::Case;
use serde_json::json;

use crate::{run, try_run};
use naru_loop_tests::harness::text;

const KUBECTL: &str = "kubectl-1.37";

pub fn all() -> Vec<(&'static str, fn(&Case))> {
    vec![
        ("a service account may what its bindings give, until its token's pod is gone", service_account),
        ("nobody gives away rights that they do not have", escalation),
        ("strangers learn nothing but the version", strangers),
    ]
}

fn service_account(it: &Case) {
    run(it, KUBECTL, &["create", "serviceaccount", "reader"]);
    let account = format!("{}:reader", it.namespace);
    run(
        it,
        KUBECTL,
        &["create", "rolebinding", "reader", "--clusterrole=view", &format!("--serviceaccount={account}")],
    );
    it.create(&it.path("v1", "pods"), &it.pod("bound", "sleep 1000"));
    let token = run(
        it,
        KUBECTL,
        &["create", "token", "reader", "--bound-object-kind=Pod", "--bound-object-name=bound"],
    );
    let bearer = format!("Bearer {}", token.trim());
    let ask = |path: &str| it.send("GET", path, &[("authorization", &bearer)], Vec::new());
    assert_eq!(ask(&it.path("v1", "pods")).code, 200);
    let refused = ask(&it.path("v1", "secrets"));
    assert_eq!(refused.code, 403);
    assert!(refused.text.contains("system:serviceaccount:"), "{}", refused.text);
    assert_eq!(ask("/api/v1/namespaces/kube-system/pods").code, 403);
    let identity = run(
        it,
        KUBECTL,
        &["auth", "can-i", "list", "pods", &format!("--as=system:serviceaccount:{account}")],
    );
    assert_eq!(identity, "yes\n");
    it.delete(&format!("{}?gracePeriodSeconds=0", it.path("v1", "pods/bound")));
    it.wait_gone(&it.path("v1", "pods/bound"));
    assert_eq!(ask(&it.path("v1", "pods")).code, 401, "the token dies with what it is bound to");
}

fn escalation(it: &Case) {
    let as_user = format!("--as={}", it.unique("clerk"));
    run(
        it,
        KUBECTL,
        &["create", "rolebinding", "clerk", "--clusterrole=admin", &format!("--user={}", it.unique("clerk"))],
    );
    let wide =
        try_run(it, KUBECTL, &["create", "role", "wide", "--verb=*", "--resource=nodes", &as_user], "");
    assert!(text(&wide).contains("not currently held"), "{}", text(&wide));
    run(it, KUBECTL, &["create", "role", "narrow", "--verb=get", "--resource=pods", &as_user]);
    let bound = try_run(
        it,
        KUBECTL,
        &["create", "rolebinding", "all", "--clusterrole=cluster-admin", "--user=x", &as_user],
        "",
    );
    assert!(text(&bound).contains("not currently held"), "{}", text(&bound));
    let patched = try_run(
        it,
        KUBECTL,
        &[
            "patch",
            "role",
            "narrow",
            &as_user,
            "--type=merge",
            "-p",
            &json!({"rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]}).to_string(),
        ],
        "",
    );
    assert!(text(&patched).contains("not currently held"), "{}", text(&patched));
}

fn strangers(it: &Case) {
    let none = [("authorization", "")];
    assert_eq!(it.send("GET", "/version", &none, Vec::new()).code, 200);
    assert_eq!(it.send("GET", "/healthz", &none, Vec::new()).code, 200);
    assert_eq!(it.send("GET", "/api/v1/pods", &none, Vec::new()).code, 403);
    let wrong = [("authorization", "Bearer wrong")];
    assert_eq!(it.send("GET", "/version", &wrong, Vec::new()).code, 401);
}
