//! Nobody gives away rights that they do not have: writes of roles need the rights in them or the verb
//! `escalate`, writes of bindings need the rights of the role or the verb `bind`.

use kube_kinds::{Failure, list, name, text};
use serde_json::Value;

use super::{Attributes, MASTERS, rbac};
use crate::request::Call;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks the state that a write would leave.
pub(crate) fn check(call: &Call, object: &Value) -> Result<(), Failure> {
    if call.kind.group != GROUP || call.user.is_in(MASTERS) {
        return Ok(());
    }
    let namespace = call.namespace();
    let may = |verb: &str, resource: &str, name: &str| {
        let asked = Attributes {
            verb: verb.into(),
            group: GROUP.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            path: String::new(),
        };
        rbac::allows(&call.api, &call.user, &asked)
    };
    let (granted, is_free) = match call.kind.kind.as_str() {
        "Role" | "ClusterRole" => {
            let is_aggregated = !object["aggregationRule"].is_null();
            let everything = serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
            let mut granted = list(object, "/rules").to_vec();
            granted.extend(is_aggregated.then_some(everything));
            (granted, may("escalate", &call.kind.plural, name(object)))
        }
        _ => {
            let role = &object["roleRef"];
            let resource = if role["kind"] == "Role" { "roles" } else { "clusterroles" };
            let granted = rbac::rules_of(&call.api, namespace, role);
            (granted, may("bind", resource, text(role, "/name")))
        }
    };
    if is_free {
        return Ok(());
    }
    let owned = rbac::rules(&call.api, &call.user, namespace);
    let missing: Vec<String> =
        granted.iter().filter(|it| !rbac::includes(&owned, it)).map(Value::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        call.user.name,
        call.user.groups,
        missing.join("\n")
    );
    Err(Failure::forbidden(&call.kind, name(object), &why))
}
