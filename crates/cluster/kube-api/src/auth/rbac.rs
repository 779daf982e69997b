//! Role-based access: roles are lists of what is allowed, bindings give them to users and groups.

use kube_kinds::selector::LabelSelector;
use kube_kinds::{Kind, list, table, text};
use serde_json::Value;

use super::{Attributes, MASTERS, User};
use crate::Api;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Whether the user may do it.
pub(crate) fn allows(api: &Api, user: &User, asked: &Attributes) -> bool {
    user.is_in(MASTERS) || any_rule(api, user, &asked.namespace, |rule| covers(rule, asked))
}

/// All rules that hold for the user in a namespace (everywhere when it is empty).
pub(crate) fn rules(api: &Api, user: &User, namespace: &str) -> Vec<Value> {
    let mut all = Vec::new();
    if user.is_in(MASTERS) {
        all.push(serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        all.push(serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    any_rule(api, user, namespace, |rule| {
        all.push(rule.clone());
        false
    });
    all
}

/// Walks over the rules until one is as wanted.
fn any_rule(api: &Api, user: &User, namespace: &str, mut wanted: impl FnMut(&Value) -> bool) -> bool {
    let mut bindings = objects(api, "ClusterRoleBinding", None);
    if !namespace.is_empty() {
        bindings.extend(objects(api, "RoleBinding", Some(namespace)));
    }
    for binding in &bindings {
        let place = kube_kinds::namespace(binding);
        if list(binding, "/subjects").iter().any(|it| is_meant(it, user, place))
            && rules_of(api, place, &binding["roleRef"]).iter().any(&mut wanted)
        {
            return true;
        }
    }
    false
}

fn kind(name: &str) -> &'static Kind {
    table::of(GROUP, name).expect("the table of kinds has roles and bindings")
}

fn objects(api: &Api, name: &str, namespace: Option<&str>) -> Vec<std::sync::Arc<Value>> {
    api.objects().list(kind(name), namespace, &LabelSelector::default())
}

/// The rules of the role that a binding in this namespace refers to.
pub(crate) fn rules_of(api: &Api, namespace: &str, reference: &Value) -> Vec<Value> {
    let name = text(reference, "/name");
    let role = match text(reference, "/kind") {
        "Role" => api.objects().find(kind("Role"), namespace, name),
        _ => api.objects().find(kind("ClusterRole"), "", name),
    };
    let Some(role) = role else { return Vec::new() };
    let mut rules = list(&role, "/rules").to_vec();
    for selector in list(&role, "/aggregationRule/clusterRoleSelectors") {
        // An unreadable selector gives nothing.
        let Some(selector) = LabelSelector::from_object(selector) else { continue };
        for part in api.objects().list(kind("ClusterRole"), None, &selector) {
            // What is put together from others is not put together again.
            if part["aggregationRule"].is_null() {
                rules.extend(list(&part, "/rules").iter().cloned());
            }
        }
    }
    rules
}

fn is_meant(subject: &Value, user: &User, binding_namespace: &str) -> bool {
    let name = text(subject, "/name");
    match text(subject, "/kind") {
        "User" => name == user.name,
        "Group" => user.is_in(name),
        "ServiceAccount" => {
            let namespace = match text(subject, "/namespace") {
                "" => binding_namespace,
                namespace => namespace,
            };
            user.name == format!("system:serviceaccount:{namespace}:{name}")
        }
        _ => false,
    }
}

fn covers(rule: &Value, asked: &Attributes) -> bool {
    if !has(rule, "/verbs", &asked.verb) {
        return false;
    }
    if asked.resource.is_empty() {
        return list(rule, "/nonResourceURLs").iter().filter_map(Value::as_str).any(|it| {
            it == asked.path || it.strip_suffix('*').is_some_and(|start| asked.path.starts_with(start))
        });
    }
    has(rule, "/apiGroups", &asked.group)
        && has_resource(rule, &asked.resource)
        && has_name(rule, &asked.name)
}

fn has(rule: &Value, field: &str, wanted: &str) -> bool {
    list(rule, field).iter().any(|it| it == "*" || it == wanted)
}

fn has_resource(rule: &Value, wanted: &str) -> bool {
    has(rule, "/resources", wanted)
        || wanted.split_once('/').is_some_and(|(_, subresource)| {
            list(rule, "/resources").iter().any(|it| it.as_str() == Some(&format!("*/{subresource}")))
        })
}

fn has_name(rule: &Value, wanted: &str) -> bool {
    let names = list(rule, "/resourceNames");
    names.is_empty() || names.iter().any(|it| it == wanted)
}

/// Whether rules that someone has include everything that another rule gives.
pub(crate) fn includes(owned: &[Value], rule: &Value) -> bool {
    let texts = |field: &str| -> Vec<&str> { list(rule, field).iter().filter_map(Value::as_str).collect() };
    let verbs = texts("/verbs");
    let asked = |verb: &str, group: &str, resource: &str, name: &str, path: &str| {
        let asked = Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            name: name.into(),
            path: path.into(),
            namespace: String::new(),
        };
        owned.iter().any(|it| covers(it, &asked))
    };
    let names = match texts("/resourceNames") {
        names if names.is_empty() => vec![""],
        names => names,
    };
    verbs.iter().all(|verb| {
        texts("/nonResourceURLs").iter().all(|path| asked(verb, "", "", "", path))
            && texts("/apiGroups").iter().all(|group| {
                texts("/resources")
                    .iter()
                    .all(|resource| names.iter().all(|name| asked(verb, group, resource, name, "")))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(verb: &str, group: &str, resource: &str, name: &str) -> Attributes {
        let text = String::from;
        Attributes {
            verb: text(verb),
            group: text(group),
            resource: text(resource),
            name: text(name),
            ..Attributes::default()
        }
    }

    #[test]
    fn a_rule_covers_what_it_names() {
        let rule =
            json!({"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods", "*/scale"]});
        for (verb, group, resource, expected) in [
            ("get", "", "pods", true),
            ("delete", "", "pods", false),
            ("get", "batch", "pods", false),
            ("get", "", "pods/log", false),
            ("get", "apps", "deployments/scale", true),
        ] {
            assert_eq!(
                covers(&rule, &asked(verb, group, resource, "")),
                expected,
                "{verb} {group} {resource}"
            );
        }
        let one = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["web"]});
        assert!(covers(&one, &asked("delete", "x", "things/any", "web")));
        assert!(!covers(&one, &asked("list", "x", "things", "")));
        let paths = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]});
        assert!(covers(&paths, &Attributes::path("get", "/api/v1")));
        assert!(!covers(&paths, &Attributes::path("get", "/metrics")));
    }

    #[test]
    fn nobody_gives_more_than_they_have() {
        let owned = [json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]})];
        assert!(includes(
            &owned,
            &json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]})
        ));
        assert!(!includes(
            &owned,
            &json!({"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]})
        ));
        assert!(!includes(&owned, &json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]})));
        assert!(!includes(&owned, &json!({"verbs": ["get"], "nonResourceURLs": ["/metrics"]})));
    }
}
