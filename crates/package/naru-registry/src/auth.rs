//! Who may do what. Reading is free unless the registry is private. The daemon's own token may do everything.
//! Anybody else is a user of the cluster: the password is a service account's token, and what it opens is what
//! RBAC says about `repositories` in the group `naru.dev`, by name: `get` pulls, `create` pushes, `delete`
//! deletes. So `kubectl create token ci | docker login -u ci --password-stdin` and a Role are all it takes.
//! The token of a workflow's job opens what its permission `packages` says, below the name of its repository.
//!
//! Clients exchange their password for a token that names what it opens (the Docker token authentication
//! specification), because without a challenge they would never show the password that they were given.

use crate::answer::{Code, Failure, json_answer};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use http::{HeaderMap, header};
use naru_client::Client;
use naru_objects::{Kind, NAMESPACE};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

const TOKEN_SECONDS: u64 = 300; // long enough for a request after another, short enough to be stolen in vain
const PREFIX: &str = "naru1.";

const TOKEN_REVIEW: Kind = Kind {
    group: "authentication.k8s.io",
    version: "v1",
    kind: "TokenReview",
    plural: "tokenreviews",
    namespaced: false,
};
const ACCESS_REVIEW: Kind = Kind {
    group: "authorization.k8s.io",
    version: "v1",
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    namespaced: false,
};

/// What the registry asks before it serves.
#[derive(Clone)]
pub struct Auth {
    /// Lets do everything.
    pub token: String,
    /// Knows the cluster's users; without it there are none.
    pub client: Option<Client>,
    /// Knows the tokens of jobs; without it they open nothing.
    pub jobs: Option<Jobs>,
    /// Reading needs a right, too.
    pub is_private: bool,
}

/// What the job whose token this is may do; `None`: it is no token of a job, or of one that is over.
pub type Jobs = Arc<dyn Fn(String) -> futures::future::BoxFuture<'static, Option<JobRights>> + Send + Sync>;

/// What a job may do with the repositories of this name and below it: `naru/shop`, `naru/shop/web`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRights {
    pub name: String,
    pub reads: bool,
    pub writes: bool,
}

impl JobRights {
    fn allow(&self, action: Action, name: &str) -> bool {
        let below = name.strip_prefix(&self.name).is_some_and(|it| it.is_empty() || it.starts_with('/'));
        below
            && match action {
                Action::Pull => self.reads || self.writes,
                Action::Push => self.writes,
                Action::Delete => false,
            }
    }
}

/// One thing to do with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Pull,
    Push,
    Delete,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Self::Pull => "get",
            Self::Push => "create",
            Self::Delete => "delete",
        }
    }
}

/// Repository and actions, as tokens carry them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grant {
    name: String,
    actions: Vec<Action>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    expires: u64,
    access: Vec<Grant>,
}

/// Who sends a request.
pub(crate) enum Caller {
    Nobody,
    /// The daemon's own token.
    Admin,
    User {
        name: String,
        groups: serde_json::Value,
    },
    Job(JobRights),
    /// Whoever was given this token for these repositories.
    Bearer(Vec<Grant>),
}

pub(crate) struct Gate {
    auth: Auth,
    /// Signs tokens; a restart makes clients ask for new ones.
    key: [u8; 32],
}

impl Gate {
    pub(crate) fn new(auth: Auth) -> Self {
        let mut key = [0; 32];
        for chunk in key.chunks_mut(16) {
            chunk.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        }
        Self { auth, key }
    }

    /// Who sends these headers; an error if they show something that is no good.
    pub(crate) async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Failure> {
        let Some(value) = headers.get(header::AUTHORIZATION).and_then(|it| it.to_str().ok()) else {
            return Ok(Caller::Nobody);
        };
        let wrong = || Failure::new(Code::Unauthorized, "the password or token is not valid, or no longer");
        if let Some(token) = value.strip_prefix("Bearer ") {
            if token.starts_with(PREFIX) {
                return Ok(Caller::Bearer(self.read(token).ok_or_else(wrong)?));
            }
            return self.who(token).await?.ok_or_else(wrong);
        }
        let decoded = value.strip_prefix("Basic ").and_then(|it| STANDARD.decode(it).ok());
        let pair = decoded.and_then(|it| String::from_utf8(it).ok());
        let password = pair.as_deref().and_then(|it| it.split_once(':')).map(|it| it.1);
        self.who(password.ok_or_else(wrong)?).await?.ok_or_else(wrong)
    }

    async fn who(&self, password: &str) -> Result<Option<Caller>, Failure> {
        if same(password, &self.auth.token) {
            return Ok(Some(Caller::Admin));
        }
        // Only what looks like a JWT is worth a question.
        if password.matches('.').count() != 2 {
            return Ok(None);
        }
        if let Some(jobs) = &self.auth.jobs
            && let Some(rights) = jobs(password.to_owned()).await
        {
            return Ok(Some(Caller::Job(rights)));
        }
        let Some(client) = &self.auth.client else { return Ok(None) };
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                            "spec": {"token": password}});
        let answer = client.create(&TOKEN_REVIEW, &review).await.map_err(unavailable)?;
        if answer["status"]["authenticated"] != true {
            return Ok(None);
        }
        let user = &answer["status"]["user"];
        let name = user["username"].as_str().unwrap_or_default().to_owned();
        Ok(Some(Caller::User { name, groups: user["groups"].clone() }))
    }

    pub(crate) async fn may(&self, caller: &Caller, action: Action, name: &str) -> Result<bool, Failure> {
        if matches!(caller, Caller::Admin) || (action == Action::Pull && !self.auth.is_private) {
            return Ok(true);
        }
        match caller {
            Caller::Nobody | Caller::Admin => Ok(false),
            Caller::Job(rights) => Ok(rights.allow(action, name)),
            Caller::Bearer(grants) => {
                Ok(grants.iter().any(|it| it.name == name && it.actions.contains(&action)))
            }
            Caller::User { name: user, groups } => {
                let Some(client) = &self.auth.client else { return Ok(false) };
                let review = json!({
                    "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                    "spec": {"user": user, "groups": groups, "resourceAttributes": {
                        "namespace": NAMESPACE, "group": "naru.dev", "resource": "repositories",
                        "verb": action.verb(), "name": name}},
                });
                let answer = client.create(&ACCESS_REVIEW, &review).await.map_err(unavailable)?;
                Ok(answer["status"]["allowed"] == true)
            }
        }
    }

    /// Whether a list of all repositories may be read.
    pub(crate) fn may_list(&self, caller: &Caller) -> bool {
        !self.auth.is_private || matches!(caller, Caller::Admin)
    }

    /// The answer of the token endpoint: a token for what was asked and is allowed. Asking for more than that
    /// is no error; the request that needs it will be.
    pub(crate) async fn give_token(&self, caller: &Caller, scopes: &[String]) -> Result<Response, Failure> {
        let mut access = Vec::new();
        for (name, wanted) in scopes.iter().filter_map(|it| scope(it)) {
            let mut actions = Vec::new();
            for action in wanted {
                if self.may(caller, action, name).await? {
                    actions.push(action);
                }
            }
            access.push(Grant { name: name.to_owned(), actions });
        }
        let token = match caller {
            // So that clients which ask for a token once, without naming what for, can go on with it.
            Caller::Admin if scopes.is_empty() => self.auth.token.clone(),
            _ => self.sign(access),
        };
        Ok(json_answer(&json!({"token": token, "access_token": token, "expires_in": TOKEN_SECONDS})))
    }

    fn mac(&self, payload: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(payload.as_bytes());
        mac
    }

    fn sign(&self, access: Vec<Grant>) -> String {
        let claims = Claims { expires: now() + TOKEN_SECONDS, access };
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims).expect("claims are plain data"));
        let mac = URL_SAFE_NO_PAD.encode(self.mac(&payload).finalize().into_bytes());
        format!("{PREFIX}{payload}.{mac}")
    }

    fn read(&self, token: &str) -> Option<Vec<Grant>> {
        let (payload, mac) = token.strip_prefix(PREFIX)?.split_once('.')?;
        self.mac(payload).verify_slice(&URL_SAFE_NO_PAD.decode(mac).ok()?).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        (claims.expires > now()).then_some(claims.access)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}

fn unavailable(error: naru_client::Error) -> Failure {
    tracing::error!(error = &error as &dyn std::error::Error, "the registry cannot ask who somebody is");
    Failure::new(Code::Unavailable, "the API that knows users does not answer; try again")
}

/// `repository:a/b:pull,push`; other resource types and actions mean nothing here.
fn scope(text: &str) -> Option<(&str, Vec<Action>)> {
    let rest = text.strip_prefix("repository:").or_else(|| text.strip_prefix("repository(plugin):"))?;
    let (name, actions) = rest.rsplit_once(':')?;
    let mut wanted = Vec::new();
    for action in actions.split(',') {
        match action {
            "pull" => wanted.push(Action::Pull),
            "push" => wanted.push(Action::Push),
            "delete" => wanted.push(Action::Delete),
            "*" => wanted.extend([Action::Pull, Action::Push, Action::Delete]),
            _ => {}
        }
    }
    Some((name, wanted))
}

/// Compares without telling by the time it takes where the first difference is.
fn same(a: &str, b: &str) -> bool {
    !b.is_empty() && a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_what_it_names_and_nothing_when_touched() {
        let gate =
            |token: &str| Gate::new(Auth { token: token.into(), client: None, jobs: None, is_private: true });
        let (gate, other) = (gate("a"), gate("a"));
        let grant = Grant { name: "shop/web".into(), actions: vec![Action::Pull] };
        let token = gate.sign(vec![grant.clone()]);
        assert_eq!(gate.read(&token), Some(vec![grant]));
        assert_eq!(other.read(&token), None, "signed with another key");
        for at in [PREFIX.len() + 3, token.len() - 2] {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(gate.read(&String::from_utf8(bytes).unwrap()), None);
        }
    }

    #[test]
    fn a_job_writes_below_its_repository() {
        let rights = |writes| JobRights { name: "naru/shop".into(), reads: true, writes };
        for (name, own) in
            [("naru/shop", true), ("naru/shop/web", true), ("naru/shopping", false), ("other/shop", false)]
        {
            assert_eq!(rights(true).allow(Action::Push, name), own, "{name}");
            assert_eq!(rights(false).allow(Action::Pull, name), own);
            assert!(!rights(false).allow(Action::Push, name) && !rights(true).allow(Action::Delete, name));
        }
    }

    #[test]
    fn scopes_are_read_from_their_end() {
        assert_eq!(scope("repository:a/b:pull,push"), Some(("a/b", vec![Action::Pull, Action::Push])));
        assert_eq!(scope("repository:host:5000/a:pull"), Some(("host:5000/a", vec![Action::Pull])));
        assert_eq!(scope("repository:a:*").map(|it| it.1.len()), Some(3));
        assert_eq!(scope("registry:catalog:*"), None);
    }
}
