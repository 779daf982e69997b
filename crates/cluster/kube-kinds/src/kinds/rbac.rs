//! Roles and their bindings.

use serde_json::{Value, json};

use crate::columns::{AGE, Columns, NAME, created, wide, words};
use crate::defaults::{items, set};
use crate::table::Scope::{Cluster, Namespaced};
use crate::table::row;
use crate::validation::Causes;
use crate::{Cause, Kind, NameRule, list, text};

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn rows() -> Vec<Kind> {
    let role = |kind: &str, plural: &str, scope| Kind {
        validate: role_rules,
        names: NameRule::PathSegment,
        columns: ROLE,
        ..row(GROUP, "v1", kind, plural, scope, &[])
    };
    let binding = |kind: &str, plural: &str, scope| Kind {
        default: binding_defaults,
        validate: binding_rules,
        names: NameRule::PathSegment,
        columns: BINDING,
        ..row(GROUP, "v1", kind, plural, scope, &[])
    };
    vec![
        role("Role", "roles", Namespaced),
        binding("RoleBinding", "rolebindings", Namespaced),
        role("ClusterRole", "clusterroles", Cluster),
        binding("ClusterRoleBinding", "clusterrolebindings", Cluster),
    ]
}

fn role_rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    let cluster = object["kind"] == "ClusterRole";
    for (index, rule) in list(object, "/rules").iter().enumerate() {
        let at = format!("rules[{index}]");
        let has = |field: &str| rule[field].as_array().is_some_and(|it| !it.is_empty());
        if !has("verbs") {
            causes.push(Cause::required(&format!("{at}.verbs"), "verbs must contain at least one value"));
        }
        if has("nonResourceURLs") {
            if !cluster {
                causes.push(Cause::invalid(
                    &format!("{at}.nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    "namespaced rules cannot apply to non-resource URLs",
                ));
            }
            if has("apiGroups") || has("resources") || has("resourceNames") {
                causes.push(Cause::invalid(
                    &format!("{at}.nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    "rules cannot apply to both regular resources and non-resource URLs",
                ));
            }
            continue;
        }
        for (field, detail) in [
            ("apiGroups", "resource rules must supply at least one api group"),
            ("resources", "resource rules must supply at least one resource"),
        ] {
            if !has(field) {
                causes.push(Cause::required(&format!("{at}.{field}"), detail));
            }
        }
    }
}

fn binding_defaults(object: &mut Value) {
    let Some(binding) = object.as_object_mut() else { return };
    if let Some(role) = binding.get_mut("roleRef").and_then(Value::as_object_mut) {
        set(role, "apiGroup", GROUP);
    }
    for subject in items(binding, "subjects") {
        if let Some("User" | "Group") = subject.get("kind").and_then(Value::as_str) {
            set(subject, "apiGroup", GROUP);
        }
    }
}

fn binding_rules(object: &Value, old: Option<&Value>, causes: &mut Causes) {
    let role = &object["roleRef"];
    let kinds: &[&str] = match object["kind"] == "ClusterRoleBinding" {
        true => &["ClusterRole"],
        false => &["ClusterRole", "Role"],
    };
    if role["apiGroup"] != GROUP {
        causes.push(Cause::unsupported("roleRef.apiGroup", &role["apiGroup"], &[GROUP]));
    }
    if !kinds.iter().any(|it| role["kind"] == *it) {
        causes.push(Cause::unsupported("roleRef.kind", &role["kind"], kinds));
    }
    if text(role, "/name").is_empty() {
        causes.push(Cause::required("roleRef.name", ""));
    }
    if old.is_some_and(|it| it["roleRef"] != *role) {
        causes.push(Cause::invalid("roleRef", role, "cannot change roleRef"));
    }
    for (index, subject) in list(object, "/subjects").iter().enumerate() {
        let at = format!("subjects[{index}]");
        if text(subject, "/name").is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        }
        match subject["kind"].as_str() {
            Some("User" | "Group") => {}
            Some("ServiceAccount") => {
                if text(subject, "/namespace").is_empty() && object["kind"] == "ClusterRoleBinding" {
                    causes.push(Cause::required(&format!("{at}.namespace"), ""));
                }
            }
            _ => causes.push(Cause::unsupported(
                &format!("{at}.kind"),
                &subject["kind"],
                &["Group", "ServiceAccount", "User"],
            )),
        }
    }
}

const ROLE: Columns = Columns::BuiltIn(&[NAME, words("Created At")], |it, _| {
    vec![json!(crate::name(it)), json!(text(it, "/metadata/creationTimestamp"))]
});

const BINDING: Columns = Columns::BuiltIn(
    &[NAME, words("Role"), AGE, wide("Users"), wide("Groups"), wide("ServiceAccounts")],
    |it, now| {
        let subjects = |kind: &str| -> Value {
            let names: Vec<String> = list(it, "/subjects")
                .iter()
                .filter(|it| it["kind"] == kind)
                .map(|it| match text(it, "/namespace") {
                    "" => text(it, "/name").to_string(),
                    namespace => format!("{namespace}/{}", text(it, "/name")),
                })
                .collect();
            json!(names.join(", "))
        };
        vec![
            json!(crate::name(it)),
            json!(format!("{}/{}", text(it, "/roleRef/kind"), text(it, "/roleRef/name"))),
            created(it, now),
            subjects("User"),
            subjects("Group"),
            subjects("ServiceAccount"),
        ]
    },
);
