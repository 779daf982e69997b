//! The REST interface as actions see it.

use super::*;

impl Fixture {
    async fn api(&self, method: Method, path: &str, token: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(method, &format!("/api/v3/{path}"), token, &[], body).await
    }
}

pub(super) fn with(claims: &JobClaims, permissions: &[(&str, &str)]) -> JobClaims {
    let permissions = permissions.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    JobClaims { permissions, ..claims.clone() }
}

#[tokio::test]
async fn each_call_needs_its_permission() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    let dispatch = json!({"event_type": "deploy"});
    let run = format!("repos/naru/shop/actions/runs/{}", naru_token::run_id("uid-shop-1"));
    for (method, path, body, scope, right) in [
        (Method::GET, "repos/naru/shop/contents/README.md", Value::Null, "contents", "read"),
        (Method::GET, "repos/naru/shop/git/ref/heads/main", Value::Null, "contents", "read"),
        (Method::GET, "repos/naru/shop/commits/main", Value::Null, "contents", "read"),
        (Method::GET, "repos/naru/shop/compare/main...main", Value::Null, "contents", "read"),
        (Method::GET, "repos/naru/shop/pulls/7", Value::Null, "pull-requests", "read"),
        (Method::GET, "repos/naru/shop/pulls/7/files", Value::Null, "pull-requests", "read"),
        (Method::GET, "repos/naru/shop/actions/artifacts", Value::Null, "actions", "read"),
        (Method::GET, "repos/naru/shop/actions/caches", Value::Null, "actions", "read"),
        (Method::GET, "repos/naru/shop/commits/main/check-runs", Value::Null, "checks", "read"),
        (Method::GET, "repos/naru/shop/commits/main/status", Value::Null, "statuses", "read"),
        (Method::GET, run.as_str(), Value::Null, "actions", "read"),
        (Method::POST, "repos/naru/shop/dispatches", dispatch.clone(), "contents", "write"),
        (
            Method::POST,
            "repos/naru/shop/actions/workflows/deploy.yml/dispatches",
            json!({"ref": "main"}),
            "actions",
            "write",
        ),
    ] {
        let without = it.key.mint(&with(&claims, &[("packages", "write")]));
        let refused = it.api(method.clone(), path, &without, body.clone()).await;
        assert_eq!(refused.status, StatusCode::FORBIDDEN, "{path}");
        assert!(refused.text().contains(&format!("`{scope}: {right}`")), "{}", refused.text());
        if right == "write" {
            let reads = it.key.mint(&with(&claims, &[(scope, "read")]));
            assert_eq!(
                it.api(method.clone(), path, &reads, body.clone()).await.status,
                StatusCode::FORBIDDEN,
                "{path}"
            );
            let fork = it.key.mint(&JobClaims { untrusted: true, ..with(&claims, &[(scope, "write")]) });
            assert_eq!(
                it.api(method.clone(), path, &fork, body.clone()).await.status,
                StatusCode::FORBIDDEN,
                "{path}"
            );
        }
        let allowed = it.api(method, path, &it.key.mint(&with(&claims, &[(scope, right)])), body).await;
        assert!(allowed.status.is_success(), "{path}: {}", allowed.text());
    }
    let everything = it.key.mint(&with(&claims, &[("contents", "write"), ("actions", "write")]));
    let other =
        it.api(Method::GET, "repos/naru/setup-tool/contents/README.md", &everything, Value::Null).await;
    assert_eq!(other.status, StatusCode::NOT_FOUND, "another repository");
    let elsewhere = it.api(Method::GET, "repos/someone/shop", &everything, Value::Null).await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND);
    let unknown = it.api(Method::GET, "repos/naru/shop/releases", &everything, Value::Null).await;
    assert!(
        unknown.status == StatusCode::NOT_FOUND && unknown.text().contains("actions/artifacts"),
        "{}",
        unknown.text()
    );
    assert_eq!(
        it.api(Method::GET, "repos/naru/shop", "", Value::Null).await.status,
        StatusCode::UNAUTHORIZED
    );
    let facts = it.api(Method::GET, "repos/naru/shop", "admin", Value::Null).await.json();
    assert_eq!((&facts["default_branch"], &facts["full_name"]), (&json!("main"), &json!("naru/shop")));
}

#[tokio::test]
async fn artifacts_and_caches_of_a_repository_are_listed_fetched_and_deleted() {
    let it = Fixture::new();
    let claims = it.claims("shop-1");
    for (name, text) in [("a", "first"), ("b", "second")] {
        let created = it.create(&claims, name).await.json();
        it.put(created["signed_upload_url"].as_str().unwrap(), "", text).await;
        it.finalize(&claims, name, json!({})).await.json();
        it.save(&claims, &format!("key-{name}"), text).await.json();
    }
    let token = it.key.mint(&with(&it.claims("shop-2"), &[("actions", "write")]));
    let get = async |path: &str| {
        it.api(Method::GET, &format!("repos/naru/shop/actions/{path}"), &token, Value::Null).await
    };
    let delete = async |path: &str| {
        it.api(Method::DELETE, &format!("repos/naru/shop/actions/{path}"), &token, Value::Null).await
    };
    let run = naru_token::run_id("uid-shop-1");
    let page = get(&format!("runs/{run}/artifacts?per_page=1")).await.json();
    assert_eq!((&page["total_count"], page["artifacts"].as_array().unwrap().len()), (&json!(2), 1));
    assert_eq!(get(&format!("runs/{run}/artifacts?name=a")).await.json()["artifacts"][0]["name"], "a");
    let id = get("artifacts?name=b").await.json()["artifacts"][0]["id"].as_u64().unwrap();
    let found = get(&format!("artifacts/{id}/zip")).await;
    assert_eq!(found.status, StatusCode::FOUND);
    assert_eq!(it.get(found.headers["location"].to_str().unwrap()).await.text(), "second");
    assert_eq!(delete(&format!("artifacts/{id}")).await.status, StatusCode::NO_CONTENT);
    assert_eq!(get(&format!("artifacts/{id}")).await.status, StatusCode::NOT_FOUND);

    assert_eq!(get("caches?key=key-").await.json()["total_count"], 2);
    assert_eq!(delete("caches?key=key-").await.status, StatusCode::NOT_FOUND, "a whole key is meant");
    assert_eq!(delete("caches?key=key-a").await.json()["total_count"], 1);
    assert_eq!(get("caches").await.json()["actions_caches"][0]["key"], "key-b");
    let foreign = it.key.mint(&with(&it.claims("other-1"), &[("actions", "write")]));
    let refused = it.api(Method::GET, "repos/naru/shop/actions/caches", &foreign, Value::Null).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_dispatch_makes_a_run() {
    let it = Fixture::new();
    let path = "repos/naru/shop/actions/workflows";
    let post = async |path: &str, body: Value| it.api(Method::POST, path, "admin", body).await;
    let unknown = post(&format!("{path}/none.yml/dispatches"), json!({"ref": "main"})).await;
    assert!(
        unknown.status == StatusCode::NOT_FOUND && unknown.text().contains("ci.yml"),
        "{}",
        unknown.text()
    );
    let not_so = post(&format!("{path}/ci.yml/dispatches"), json!({"ref": "refs/heads/main"})).await;
    assert!(not_so.status == StatusCode::UNPROCESSABLE_ENTITY && not_so.text().contains("workflow_dispatch"));
    let no_ref = post(&format!("{path}/deploy.yml/dispatches"), json!({"ref": "nothing"})).await;
    assert_eq!(no_ref.status, StatusCode::UNPROCESSABLE_ENTITY);
    let body = json!({"ref": "main", "inputs": {"version": "1.2"}});
    let started = post(&format!("{path}/deploy.yml/dispatches"), body).await;
    assert_eq!(started.status, StatusCode::NO_CONTENT, "{}", started.text());
    let sent =
        post("repos/naru/shop/dispatches", json!({"event_type": "released", "client_payload": {"n": 1}}))
            .await;
    assert_eq!(sent.status, StatusCode::NO_CONTENT, "{}", sent.text());
    let runs = it.runs.list("shop").await.unwrap();
    let of = |event: &str| runs.iter().find(|it| it["spec"]["event"] == event).unwrap()["spec"].clone();
    let by_hand = of("workflow_dispatch");
    assert_eq!(
        (&by_hand["workflow"], &by_hand["inputs"]["version"]),
        (&json!(".github/workflows/deploy.yml"), &json!("1.2"))
    );
    assert_eq!((&by_hand["gitRef"], &by_hand["sha"]), (&json!("refs/heads/main"), &json!(SHA)));
    let payload = &of("repository_dispatch")["payload"];
    assert_eq!((&payload["action"], &payload["client_payload"]["n"]), (&json!("released"), &json!(1)));
}

#[tokio::test]
async fn what_a_pull_request_changes_is_told_file_by_file() {
    let it = Fixture::new();
    let get = async |path: &str| {
        it.api(Method::GET, &format!("repos/naru/shop/{path}"), "admin", Value::Null).await
    };
    let files = get("pulls/7/files").await.json();
    let expected = json!([{"filename": "b", "previous_filename": "a", "status": "renamed", "additions": 2, "deletions": 1,
                           "changes": 3}]);
    assert_eq!(files, expected);
    assert_eq!(get("compare/main...main").await.json()["status"], "ahead");
    assert_eq!(get("commits/main").await.json()["commit"]["message"], format!("at {SHA}"));
    for missing in ["pulls/8", "pulls/x/files", "compare/main...none", "commits/none"] {
        assert_eq!(get(missing).await.status, StatusCode::NOT_FOUND, "{missing}");
    }
    assert_eq!(get("compare/main").await.status, StatusCode::BAD_REQUEST);
}
