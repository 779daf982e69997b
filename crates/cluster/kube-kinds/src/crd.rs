//! Kinds that users declare: a CustomResourceDefinition becomes rows of the table.
//!
//! What schemas say about values is in `structural`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::columns::{Columns, DeclaredColumn};
use crate::{
    Cause, Kind, NameRule, Scale, Tier, condition_is_true, defaults, list, structural, text, validation,
};

/// One kind per served version, the stored version first.
pub fn kinds_of(definition: &Value) -> Vec<Kind> {
    if !condition_is_true(definition, "Established") {
        return Vec::new();
    }
    let spec = &definition["spec"];
    let names = &spec["names"];
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|it| it.as_str().map(String::from)).collect()
    };
    let mut versions: Vec<&Value> =
        list(spec, "/versions").iter().filter(|it| it["served"] == true).collect();
    versions.sort_by_key(|it| it["storage"] != true);
    versions
        .into_iter()
        .map(|version| {
            let scale = &version["subresources"]["scale"];
            Kind {
                group: text(spec, "/group").into(),
                version: text(version, "/name").into(),
                kind: text(names, "/kind").into(),
                plural: text(names, "/plural").into(),
                singular: match text(names, "/singular") {
                    "" => text(names, "/kind").to_lowercase(),
                    singular => singular.into(),
                },
                namespaced: spec["scope"] == "Namespaced",
                short_names: strings(&names["shortNames"]),
                categories: strings(&names["categories"]),
                has_status: version["subresources"]["status"].is_object(),
                scale: scale.is_object().then(|| Scale {
                    spec_replicas: pointer_of(text(scale, "/specReplicasPath")),
                    status_replicas: pointer_of(text(scale, "/statusReplicasPath")),
                    selector: Some(text(scale, "/labelSelectorPath"))
                        .filter(|it| !it.is_empty())
                        .map(pointer_of),
                }),
                has_generation: true,
                names: NameRule::Subdomain,
                default: defaults::nothing,
                carry: |_, _| {},
                validate: validation::nothing,
                field: crate::table::no_field,
                columns: columns_of(version),
                warnings: crate::table::no_warnings,
                schema: version.pointer("/schema/openAPIV3Schema").map(|it| Arc::new(it.clone())),
                fills_in: structural::has_defaults(&version["schema"]["openAPIV3Schema"]),
                selectable: list(version, "/selectableFields")
                    .iter()
                    .map(|it| text(it, "/jsonPath").trim_start_matches('.').to_string())
                    .collect(),
                tier: Tier::Active,
                stored: None,
            }
        })
        .collect()
}

/// `.spec.replicas` as a JSON pointer.
fn pointer_of(path: &str) -> String {
    path.replace('.', "/")
}

fn columns_of(version: &Value) -> Columns {
    let declared = list(version, "/additionalPrinterColumns");
    if declared.is_empty() {
        return Columns::NAME_AND_AGE;
    }
    Columns::Declared(
        declared
            .iter()
            .map(|it| DeclaredColumn {
                name: text(it, "/name").into(),
                kind: text(it, "/type").into(),
                format: text(it, "/format").into(),
                description: text(it, "/description").into(),
                priority: crate::int(it, "/priority"),
                path: text(it, "/jsonPath").into(),
            })
            .collect(),
    )
}

/// The status of a definition whose names are free, or taken by somebody else (`taken` says what is
/// wrong). Who stores objects of a version remembers it.
pub fn status_of(definition: &Value, old: Option<&Value>, taken: Option<&str>, now: &str) -> Value {
    let mut status = old.map_or(Value::Null, |it| it["status"].clone());
    if !status.is_object() {
        status = json!({});
    }
    let mut stored: Vec<Value> = list(&status, "/storedVersions").to_vec();
    for version in list(definition, "/spec/versions").iter().filter(|it| it["storage"] == true) {
        if !stored.contains(&version["name"]) {
            stored.push(version["name"].clone());
        }
    }
    status["storedVersions"] = json!(stored);
    let was_established = old.is_some_and(|it| condition_is_true(it, "Established"));
    match taken {
        None => {
            status["acceptedNames"] = definition["spec"]["names"].clone();
            set_condition(&mut status, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now);
            let message = "the initial names have been accepted";
            set_condition(&mut status, "Established", "True", "InitialNamesAccepted", message, now);
        }
        Some(why) => {
            if status["acceptedNames"].is_null() {
                status["acceptedNames"] = json!({"plural": "", "kind": ""});
            }
            set_condition(&mut status, "NamesAccepted", "False", "NamesConflict", why, now);
            if !was_established {
                let message = "not all names are accepted";
                set_condition(&mut status, "Established", "False", "NotAccepted", message, now);
            }
        }
    }
    status
}

fn set_condition(status: &mut Value, kind: &str, truth: &str, reason: &str, message: &str, now: &str) {
    let conditions = &mut status["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(all) = conditions.as_array_mut() else { return };
    let new = json!({"type": kind, "status": truth, "lastTransitionTime": now, "reason": reason, "message": message});
    match all.iter_mut().find(|it| it["type"] == kind) {
        Some(old) if old["status"] == truth && old["reason"] == reason && old["message"] == message => {}
        Some(old) => *old = new,
        None => all.push(new),
    }
}

/// What of a definition's names another definition of the group has.
pub fn conflict(definition: &Value, other: &Value) -> Option<String> {
    if text(definition, "/spec/group") != text(other, "/spec/group") {
        return None;
    }
    let own = &definition["spec"]["names"];
    let accepted = &other["status"]["acceptedNames"];
    let resources = |names: &Value| -> Vec<String> {
        let short = list(names, "/shortNames").iter().filter_map(Value::as_str);
        let all = [text(names, "/plural"), text(names, "/singular")].into_iter().chain(short);
        all.filter(|it| !it.is_empty()).map(String::from).collect()
    };
    let taken = resources(accepted);
    if let Some(name) = resources(own).into_iter().find(|it| taken.contains(it)) {
        return Some(format!("{name:?} is already in use"));
    }
    let kinds = [text(accepted, "/kind"), text(accepted, "/listKind")];
    let own = [text(own, "/kind"), text(own, "/listKind")];
    own.into_iter()
        .find(|it| !it.is_empty() && kinds.contains(it))
        .map(|it| format!("{it:?} is already in use"))
}

/// Rules of a definition that look into its schemas.
pub(crate) fn check_schemas(definition: &Value, causes: &mut Vec<Cause>) {
    for (index, version) in list(definition, "/spec/versions").iter().enumerate() {
        if let Some(schema) = version.pointer("/schema/openAPIV3Schema") {
            let at = format!("spec.versions[{index}].schema.openAPIV3Schema");
            structural::check_definition(schema, &at, causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_kind_has_defaults_rules_and_columns() {
        let definition = json!({"status": {"conditions": [{"type": "Established", "status": "True"}]},
            "spec": {"group": "naru.dev", "scope": "Namespaced",
            "names": {"plural": "runs", "kind": "Run", "shortNames": ["rn"]},
            "versions": [{"name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}],
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {"spec": {
                    "type": "object", "required": ["repo"], "properties": {
                        "repo": {"type": "string", "minLength": 1}, "tries": {"type": "integer", "default": 1, "maximum": 3},
                        "mode": {"type": "string", "enum": ["a", "b"]}}}}}}}]}});
        let kinds = kinds_of(&definition);
        assert_eq!(kinds[0].key("default", "x"), "naru.dev/runs/default/x");
        assert!(kinds[0].has_status);
        let schema = kinds[0].schema.as_deref().expect("a schema");
        let mut object = json!({"spec": {"repo": ""}});
        structural::fill(&mut object, schema);
        assert_eq!(object["spec"]["tries"], 1);
        let fields = |object: &Value| {
            let mut causes = Vec::new();
            structural::check(object, None, schema, &mut causes);
            causes.into_iter().map(|it| it.field).collect::<Vec<_>>()
        };
        assert_eq!(fields(&object), ["spec.repo"]);
        assert_eq!(fields(&json!({})), ["spec"]);
        assert_eq!(
            fields(&json!({"spec": {"tries": 9, "mode": "c"}})),
            ["spec.repo", "spec.mode", "spec.tries"]
        );
        assert_eq!(fields(&json!({"spec": {"repo": 3}})), ["spec.repo"]);
    }
}
