//! Who asks, and what they may do: identities from certificates and tokens, RBAC, and the reviews by which
//! clients ask about both.

pub(crate) mod authenticate;
pub(crate) mod bootstrap;
pub(crate) mod escalation;
pub(crate) mod jwt;
pub(crate) mod rbac;
pub(crate) mod reviews;

use std::collections::BTreeMap;

use kube_kinds::Failure;
use serde_json::{Value, json};

/// Members may do everything.
pub(crate) const MASTERS: &str = "system:masters";
pub(crate) const AUTHENTICATED: &str = "system:authenticated";

/// An identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn new(name: &str, groups: &[&str]) -> User {
        let groups = groups.iter().map(|it| it.to_string()).collect();
        User { name: name.into(), uid: String::new(), groups, extra: BTreeMap::new() }
    }

    /// Naru's own parts, which call the router without a network.
    pub fn internal() -> User {
        User::new("system:naru", &[MASTERS, AUTHENTICATED])
    }

    pub fn anonymous() -> User {
        User::new("system:anonymous", &["system:unauthenticated"])
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|it| it == group)
    }

    /// `UserInfo` of the authentication API.
    pub fn to_value(&self) -> Value {
        let mut value = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            value["uid"] = json!(self.uid);
        }
        if !self.extra.is_empty() {
            value["extra"] = json!(self.extra);
        }
        value
    }
}

/// What is asked, in the words of RBAC.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attributes {
    pub verb: String,
    pub group: String,
    /// With its subresource: `pods`, `pods/log`. Empty for a path that is no resource.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub path: String,
}

impl Attributes {
    pub fn path(verb: &str, path: &str) -> Attributes {
        Attributes { verb: verb.into(), path: path.into(), ..Attributes::default() }
    }

    pub fn forbidden(&self, user: &User) -> Failure {
        let Attributes { verb, group, resource, namespace, name, path } = self;
        if resource.is_empty() {
            let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
            return Failure::new(403, "Forbidden", message);
        }
        let place = match namespace.as_str() {
            "" => "at the cluster scope".to_string(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let plural = resource.split('/').next().unwrap_or(resource);
        let what = if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") };
        let whose = if name.is_empty() { what } else { format!("{what} {name:?}") };
        let message = format!(
            "{whose} is forbidden: User {:?} cannot {verb} resource {resource:?} in API group {group:?} {place}",
            user.name
        );
        let mut failure = Failure::new(403, "Forbidden", message);
        failure.details = json!({"name": name, "group": group, "kind": plural});
        failure
    }
}
