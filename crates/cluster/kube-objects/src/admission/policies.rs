//! ValidatingAdmissionPolicies: users' own rules in CEL, bound to what they concern.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::{Value as Cel, from_json};
use kube_kinds::selector::LabelSelector;
use kube_kinds::{Failure, Kind, expression, list, name, namespace, table, text};
use serde_json::{Value, json};

use crate::{Mode, Objects, Writer};

const GROUP: &str = "admissionregistration.k8s.io";

/// A write as policies see it.
pub(super) struct Operation<'a> {
    pub word: &'static str,
    pub kind: &'a Kind,
    pub subresource: &'a str,
    pub old: Option<&'a Value>,
    pub new: Option<&'a Value>,
}

impl Operation<'_> {
    /// What there is to look at.
    fn object(&self) -> &Value {
        static NOTHING: Value = Value::Null;
        self.new.or(self.old).unwrap_or(&NOTHING)
    }
}

fn of(kind: &str) -> &'static Kind {
    table::of(GROUP, kind).expect("policies are built in")
}

/// Asks every bound policy. The first that denies is the answer.
pub(super) fn check(objects: &Objects, operation: &Operation<'_>, writer: &Writer) -> Result<(), Failure> {
    // Who can break the rules can always repair them.
    if operation.kind.group == GROUP {
        return Ok(());
    }
    let bindings = objects.list(of("ValidatingAdmissionPolicyBinding"), None, &LabelSelector::default());
    for binding in &bindings {
        let policy_name = text(binding, "/spec/policyName");
        let Some(policy) = objects.find(of("ValidatingAdmissionPolicy"), "", policy_name) else { continue };
        let matches = |it: &Value| matches(objects, it, operation);
        if !matches(&policy["spec"]["matchConstraints"]) {
            continue;
        }
        if binding["spec"]["matchResources"].is_object() && !matches(&binding["spec"]["matchResources"]) {
            continue;
        }
        let denied = match parameters(objects, &policy, binding, operation) {
            Parameters::None => judge(objects, &policy, &Value::Null, operation, writer),
            Parameters::Some(all) => all.iter().find_map(|it| judge(objects, &policy, it, operation, writer)),
            Parameters::Missing if binding["spec"]["paramRef"]["parameterNotFoundAction"] == "Allow" => None,
            Parameters::Missing => Some((
                "Invalid".into(),
                "no params found for policy binding with `Deny` parameterNotFoundAction".into(),
            )),
        };
        let Some((reason, why)) = denied else { continue };
        let actions = list(binding, "/spec/validationActions");
        let told = format!(
            "ValidatingAdmissionPolicy '{policy_name}' with binding '{}' denied request: {why}",
            name(binding)
        );
        if actions.iter().any(|it| it == "Deny") {
            return Err(refusal(operation, &reason, &told));
        }
        if actions.iter().any(|it| it == "Warn") {
            writer.notes.warn(format!(
                "Validation failed for ValidatingAdmissionPolicy '{policy_name}' with binding '{}': {why}",
                name(binding)
            ));
        }
    }
    Ok(())
}

fn refusal(operation: &Operation<'_>, reason: &str, told: &str) -> Failure {
    let mut failure = Failure::forbidden(operation.kind, name(operation.object()), told);
    let (code, reason) = match reason {
        "Unauthorized" => (401, "Unauthorized"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        "Forbidden" => (403, "Forbidden"),
        _ => (422, "Invalid"),
    };
    failure.code = code;
    failure.reason = reason;
    failure
}

fn matches(objects: &Objects, constraints: &Value, operation: &Operation<'_>) -> bool {
    let rules = list(constraints, "/resourceRules");
    if !rules.is_empty() && !rules.iter().any(|it| rule_matches(it, operation)) {
        return false;
    }
    if list(constraints, "/excludeResourceRules").iter().any(|it| rule_matches(it, operation)) {
        return false;
    }
    let selects = |selector: &Value, labels: &Value| {
        LabelSelector::from_object(selector).is_some_and(|it| it.matches_labels(labels))
    };
    let selector = &constraints["objectSelector"];
    if selector.is_object() {
        let labels = |it: Option<&Value>| it.is_some_and(|it| selects(selector, &it["metadata"]["labels"]));
        if !labels(operation.new) && !labels(operation.old) {
            return false;
        }
    }
    let selector = &constraints["namespaceSelector"];
    if selector.is_object() {
        let labels = match operation.kind.is_namespace() {
            true => operation.object()["metadata"]["labels"].clone(),
            false if !operation.kind.namespaced => return true,
            false => place_of(objects, operation)["metadata"]["labels"].clone(),
        };
        return selects(selector, &labels);
    }
    true
}

fn place_of(objects: &Objects, operation: &Operation<'_>) -> Arc<Value> {
    let namespaces = table::of("", "Namespace").expect("the table of kinds has namespaces");
    match operation.kind.namespaced {
        true => objects.find(namespaces, "", namespace(operation.object())).unwrap_or_default(),
        false => Arc::default(),
    }
}

fn rule_matches(rule: &Value, operation: &Operation<'_>) -> bool {
    let has =
        |field: &str, value: &str| list(rule, &format!("/{field}")).iter().any(|it| it == "*" || it == value);
    let kind = operation.kind;
    let resource = match operation.subresource {
        "" => kind.plural.clone(),
        part => format!("{}/{part}", kind.plural),
    };
    let named = list(rule, "/resources").iter().filter_map(Value::as_str).any(|it| {
        it == resource
            || it == "*/*"
            || (it == "*" && operation.subresource.is_empty())
            || it.strip_suffix("/*").is_some_and(|it| it == kind.plural)
            || (!operation.subresource.is_empty() && it.strip_prefix("*/") == Some(operation.subresource))
    });
    let scope = match text(rule, "/scope") {
        "Cluster" => !kind.namespaced,
        "Namespaced" => kind.namespaced,
        _ => true,
    };
    let names = list(rule, "/resourceNames");
    has("operations", operation.word)
        && has("apiGroups", &kind.group)
        && has("apiVersions", &kind.version)
        && named
        && scope
        && (names.is_empty() || names.iter().any(|it| it == name(operation.object())))
}

enum Parameters {
    /// The policy has none.
    None,
    Some(Vec<Arc<Value>>),
    Missing,
}

fn parameters(objects: &Objects, policy: &Value, binding: &Value, operation: &Operation<'_>) -> Parameters {
    let (kind, reference) = (&policy["spec"]["paramKind"], &binding["spec"]["paramRef"]);
    if !kind.is_object() || !reference.is_object() {
        return Parameters::None;
    }
    let registry = crate::Registry::new(objects.clone());
    let Some(kind) = registry.of(text(kind, "/apiVersion"), text(kind, "/kind")) else {
        return Parameters::Missing;
    };
    let place = match text(reference, "/namespace") {
        "" => namespace(operation.object()),
        place => place,
    };
    let found: Vec<Arc<Value>> = match text(reference, "/name") {
        "" => match LabelSelector::from_object(&reference["selector"]) {
            Some(selector) => objects.list(&kind, Some(place), &selector),
            None => Vec::new(),
        },
        named => objects.find(&kind, place, named).into_iter().collect(),
    };
    if found.is_empty() { Parameters::Missing } else { Parameters::Some(found) }
}

/// Reason and message of a refusal.
fn judge(
    objects: &Objects,
    policy: &Value,
    parameter: &Value,
    operation: &Operation<'_>,
    writer: &Writer,
) -> Option<(String, String)> {
    let spec = &policy["spec"];
    let null = Value::Null;
    let kind = operation.kind;
    let named = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
    let resource = json!({"group": kind.group, "version": kind.version, "resource": kind.plural});
    let request = json!({
        "kind": named, "resource": resource, "requestKind": named, "requestResource": resource,
        "subResource": operation.subresource, "name": name(operation.object()),
        "namespace": namespace(operation.object()), "operation": operation.word,
        "userInfo": writer.user, "dryRun": writer.mode == Mode::DryRun,
    });
    let place = place_of(objects, operation);
    let mut variables = vec![
        ("object", from_json(operation.new.unwrap_or(&null))),
        ("oldObject", from_json(operation.old.unwrap_or(&null))),
        ("request", from_json(&request)),
        ("params", from_json(parameter)),
        ("namespaceObject", from_json(&place)),
    ];
    let ignores = spec["failurePolicy"] == "Ignore";
    for condition in list(spec, "/matchConditions") {
        match evaluate(text(condition, "/expression"), &variables).map(|it| matches!(it, Cel::Bool(true))) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(_) if ignores => return None,
            Err(why) => return Some(("Invalid".into(), why)),
        }
    }
    // Each variable sees those before it.
    let known: RefCell<HashMap<String, Cel>> = RefCell::default();
    for variable in list(spec, "/variables") {
        variables.retain(|(name, _)| *name != "variables");
        variables.push(("variables", kube_cel::map(&known.borrow())));
        if let Ok(value) = evaluate(text(variable, "/expression"), &variables) {
            known.borrow_mut().insert(text(variable, "/name").to_string(), value);
        }
    }
    variables.retain(|(name, _)| *name != "variables");
    variables.push(("variables", kube_cel::map(&known.borrow())));
    for validation in list(spec, "/validations") {
        let source = text(validation, "/expression");
        let reason = match text(validation, "/reason") {
            "" => "Invalid".to_string(),
            reason => reason.to_string(),
        };
        match evaluate(source, &variables) {
            Ok(Cel::Bool(true)) => {}
            Ok(Cel::Bool(false)) => {
                let told = validation["messageExpression"]
                    .as_str()
                    .and_then(|it| evaluate(it, &variables).ok())
                    .and_then(|it| if let Cel::String(text) = it { Some(text.to_string()) } else { None });
                let told = told.or_else(|| validation["message"].as_str().map(String::from));
                return Some((
                    reason,
                    told.unwrap_or_else(|| format!("failed expression: {}", source.trim())),
                ));
            }
            Ok(_) if ignores => {}
            Ok(_) => return Some((reason, format!("expression '{source}' is no bool"))),
            Err(_) if ignores => {}
            Err(why) => return Some((reason, format!("expression '{source}' resulted in error: {why}"))),
        }
    }
    None
}

fn evaluate(source: &str, variables: &[(&str, Cel)]) -> Result<Cel, String> {
    match &*expression(source) {
        Ok(compiled) => compiled.evaluate(variables),
        Err(why) => Err(why.clone()),
    }
}
