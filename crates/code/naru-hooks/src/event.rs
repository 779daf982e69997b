//! What a delivery says, in one form for all hosts. Pure.

use crate::upstream::Host;
use http::HeaderMap;
use serde_json::{Value, json};

const ZERO: &str = "0000000000000000000000000000000000000000";

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Push {
        git_ref: String,
        is_deleted: bool,
        default_branch: String,
    },
    PullRequest(Box<PullRequest>),
    /// Nothing to do, and why.
    Nothing(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct PullRequest {
    pub number: u64,
    pub action: String,
    /// Branches without `refs/heads/`.
    pub base_ref: String,
    pub head_ref: String,
    pub head_sha: String,
    /// The ref of the host under which the head is.
    pub fetch_ref: String,
    /// The head is in another repository than the base.
    pub is_from_fork: bool,
    pub title: String,
    pub author: String,
    pub default_branch: String,
    /// The event in GitHub's form.
    pub payload: Value,
}

/// The event of a delivery; an error says which field makes no sense.
pub fn read(host: Host, headers: &HeaderMap, body: &[u8]) -> Result<Event, String> {
    let header =
        |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default().to_owned();
    let body: Value = serde_json::from_slice(body)
        .map_err(|it| format!("the body is no JSON: {it}; choose the content type application/json"))?;
    let kind = match host {
        Host::Github => header("x-github-event"),
        Host::Gitlab => header("x-gitlab-event"),
        Host::Gitea => header("x-gitea-event"),
        Host::Forgejo => header("x-forgejo-event"),
    };
    match (host, kind.as_str()) {
        (Host::Gitlab, "Push Hook" | "Tag Push Hook") => push(&body, text(&body, "/project/default_branch")),
        (Host::Gitlab, "Merge Request Hook") => merge_request(&body),
        (Host::Gitlab, _) => Ok(Event::Nothing(format!("`{kind}` starts nothing here"))),
        (_, "push") => push(&body, text(&body, "/repository/default_branch")),
        (_, "pull_request" | "pull_request_sync") => pull_request(&body),
        (_, "ping") => Ok(Event::Nothing("the webhook works".into())),
        _ => Ok(Event::Nothing(format!("`{kind}` starts nothing here"))),
    }
}

fn text(body: &Value, pointer: &str) -> String {
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn needed(body: &Value, pointer: &str) -> Result<String, String> {
    match text(body, pointer) {
        it if it.is_empty() => {
            Err(format!("the delivery has no {}", pointer.trim_start_matches('/').replace('/', ".")))
        }
        it => Ok(it),
    }
}

fn push(body: &Value, default_branch: String) -> Result<Event, String> {
    let git_ref = needed(body, "/ref")?;
    if !git_ref.starts_with("refs/heads/") && !git_ref.starts_with("refs/tags/") {
        return Ok(Event::Nothing(format!("{git_ref} is no branch and no tag")));
    }
    let is_deleted = needed(body, "/after")? == ZERO;
    Ok(Event::Push { git_ref, is_deleted, default_branch })
}

fn pull_request(body: &Value) -> Result<Event, String> {
    let number = body.pointer("/pull_request/number").and_then(Value::as_u64);
    let number = number.ok_or("the delivery has no pull_request.number")?;
    let action = match needed(body, "/action")?.as_str() {
        // Gitea's word for what GitHub calls so.
        "synchronized" => "synchronize".to_owned(),
        it => it.to_owned(),
    };
    let (head, base) = (body.pointer("/pull_request/head/repo"), body.pointer("/pull_request/base/repo"));
    let id = |it: Option<&Value>| it.map(|it| it["id"].clone()).filter(|it| !it.is_null());
    let mut payload = body.clone();
    payload["action"] = json!(action);
    Ok(Event::PullRequest(Box::new(PullRequest {
        number,
        action,
        base_ref: needed(body, "/pull_request/base/ref")?,
        head_ref: needed(body, "/pull_request/head/ref")?,
        head_sha: needed(body, "/pull_request/head/sha")?,
        fetch_ref: format!("refs/pull/{number}/head"),
        // A fork that was deleted has no repository any more: still from outside.
        is_from_fork: id(head).is_none() || id(head) != id(base),
        title: text(body, "/pull_request/title"),
        author: text(body, "/pull_request/user/login"),
        default_branch: text(body, "/repository/default_branch"),
        payload,
    })))
}

fn merge_request(body: &Value) -> Result<Event, String> {
    let number = body.pointer("/object_attributes/iid").and_then(Value::as_u64);
    let number = number.ok_or("the delivery has no object_attributes.iid")?;
    let action = match text(body, "/object_attributes/action").as_str() {
        "open" => "opened",
        "reopen" => "reopened",
        "close" | "merge" => "closed",
        // An update without an old revision changes only words.
        "update" if body.pointer("/object_attributes/oldrev").is_some() => "synchronize",
        "update" => "edited",
        it => return Ok(Event::Nothing(format!("`{it}` of a merge request starts nothing here"))),
    };
    let (base_ref, head_ref) = (
        needed(body, "/object_attributes/target_branch")?,
        needed(body, "/object_attributes/source_branch")?,
    );
    let head_sha = needed(body, "/object_attributes/last_commit/id")?;
    let ids = [
        body.pointer("/object_attributes/source_project_id"),
        body.pointer("/object_attributes/target_project_id"),
    ];
    let is_from_fork = ids[0].is_none() || ids[0] != ids[1];
    let (title, author) = (text(body, "/object_attributes/title"), text(body, "/user/username"));
    let default_branch = text(body, "/project/default_branch");
    let payload = json!({
        "action": action, "number": number,
        "pull_request": {
            "number": number, "title": title, "body": text(body, "/object_attributes/description"),
            "state": if action == "closed" { "closed" } else { "open" },
            "merged": body.pointer("/object_attributes/action").is_some_and(|it| it == "merge"),
            "merge_commit_sha": body.pointer("/object_attributes/merge_commit_sha"),
            "draft": body.pointer("/object_attributes/work_in_progress"), "user": {"login": author},
            "head": {"ref": head_ref, "sha": head_sha, "repo": {"fork": is_from_fork}},
            "base": {"ref": base_ref, "repo": {"fork": false}},
            "html_url": text(body, "/object_attributes/url"),
        },
        "repository": {"default_branch": default_branch, "full_name": text(body, "/project/path_with_namespace")},
        "sender": {"login": author},
    });
    Ok(Event::PullRequest(Box::new(PullRequest {
        number,
        action: action.into(),
        base_ref,
        head_ref,
        head_sha,
        fetch_ref: format!("refs/merge-requests/{number}/head"),
        is_from_fork,
        title,
        author,
        default_branch,
        payload,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: Host, header: &'static str, kind: &str, body: &Value) -> Result<Event, String> {
        let mut headers = HeaderMap::new();
        headers.insert(header, kind.parse().unwrap());
        read(host, &headers, body.to_string().as_bytes())
    }

    #[test]
    fn pushes_of_all_hosts_are_one_event() {
        let pushed = |git_ref: &str, after: &str| json!({"ref": git_ref, "after": after, "repository": {"default_branch": "main"}, "project": {"default_branch": "main"}});
        for (host, header, kind) in [
            (Host::Github, "x-github-event", "push"),
            (Host::Gitea, "x-gitea-event", "push"),
            (Host::Forgejo, "x-forgejo-event", "push"),
            (Host::Gitlab, "x-gitlab-event", "Push Hook"),
        ] {
            let event = of(host, header, kind, &pushed("refs/heads/a/b", &"1".repeat(40))).unwrap();
            let expected = Event::Push {
                git_ref: "refs/heads/a/b".into(),
                is_deleted: false,
                default_branch: "main".into(),
            };
            assert_eq!(event, expected, "{host:?}");
            assert!(matches!(
                of(host, header, kind, &pushed("refs/tags/v1", ZERO)),
                Ok(Event::Push { is_deleted: true, .. })
            ));
            assert!(matches!(of(host, header, kind, &pushed("refs/notes/x", ZERO)), Ok(Event::Nothing(_))));
            assert!(of(host, header, kind, &json!({})).unwrap_err().contains("ref"));
        }
        assert!(matches!(of(Host::Github, "x-github-event", "star", &json!({})), Ok(Event::Nothing(_))));
    }

    #[test]
    fn a_pull_request_tells_whether_it_comes_from_a_fork() {
        let body = |head: Value| {
            json!({"action": "synchronized", "repository": {"default_branch": "main"},
                   "pull_request": {"number": 7, "title": "t", "user": {"login": "ann"},
                        "head": {"ref": "fix", "sha": "abc", "repo": head}, "base": {"ref": "main", "repo": {"id": 1}}}})
        };
        let fork = |head: Value| match of(Host::Gitea, "x-gitea-event", "pull_request", &body(head)).unwrap()
        {
            Event::PullRequest(it) => (it.action.clone(), it.payload["action"].clone(), it.is_from_fork),
            it => panic!("{it:?}"),
        };
        assert_eq!(fork(json!({"id": 1})), ("synchronize".into(), json!("synchronize"), false));
        assert!(fork(json!({"id": 2})).2);
        assert!(fork(Value::Null).2, "the fork was deleted");
    }

    #[test]
    fn a_merge_request_is_told_in_githubs_words() {
        let body = json!({
            "user": {"username": "ann"}, "project": {"default_branch": "main", "path_with_namespace": "a/shop"},
            "object_attributes": {"iid": 3, "action": "update", "oldrev": "x", "title": "t", "source_branch": "fix",
                "target_branch": "main", "source_project_id": 2, "target_project_id": 1, "last_commit": {"id": "abc"}}});
        let Ok(Event::PullRequest(it)) = of(Host::Gitlab, "x-gitlab-event", "Merge Request Hook", &body)
        else {
            panic!()
        };
        assert_eq!((it.number, it.action.as_str(), it.is_from_fork), (3, "synchronize", true));
        assert_eq!(it.fetch_ref, "refs/merge-requests/3/head");
        assert_eq!(it.payload["pull_request"]["head"]["sha"], "abc");
    }

    /// Whatever a host that knows the secret sends, reading it comes to an end.
    #[test]
    fn nonsense_is_an_error_and_no_panic() {
        let good = json!({"ref": "refs/heads/main", "after": "1", "action": "opened", "number": 1,
            "object_attributes": {"iid": 3, "action": "open", "source_branch": "a", "target_branch": "b", "last_commit": {"id": "c"}},
            "pull_request": {"number": 1, "head": {"ref": "a", "sha": "b", "repo": {"id": 1}}, "base": {"ref": "c", "repo": {}}}});
        let text = good.to_string();
        let kinds = [
            (Host::Github, "x-github-event", "push"),
            (Host::Github, "x-github-event", "pull_request"),
            (Host::Gitlab, "x-gitlab-event", "Push Hook"),
            (Host::Gitlab, "x-gitlab-event", "Merge Request Hook"),
        ];
        for (host, header, kind) in kinds {
            let mut headers = HeaderMap::new();
            headers.insert(header, kind.parse().unwrap());
            for at in 0..text.len() {
                let cut = read(host, &headers, &text.as_bytes()[..at]);
                assert!(cut.is_err(), "{at}");
                let mut bent = text.clone().into_bytes();
                bent[at] ^= 1;
                let _ = read(host, &headers, &bent);
            }
            // Each value of another type.
            for pointer in [
                "/ref",
                "/after",
                "/action",
                "/pull_request",
                "/pull_request/head",
                "/object_attributes",
                "/object_attributes/iid",
            ] {
                for other in [Value::Null, json!(7), json!([]), json!({}), json!("")] {
                    let mut body = good.clone();
                    *body.pointer_mut(pointer).unwrap() = other;
                    let _ = read(host, &headers, body.to_string().as_bytes());
                }
            }
        }
    }
}
