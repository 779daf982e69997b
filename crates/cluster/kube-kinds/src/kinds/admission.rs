//! Webhook configurations and admission policies.

use serde_json::{Map, Value, json};

use crate::columns::{AGE, Columns, NAME, column, created, words};
use crate::defaults::{items, set, set_initial_status, spec_of};
use crate::table::Scope::Cluster;
use crate::table::row;
use crate::validation::Causes;
use crate::{Cause, Kind, Tier, list, text};

const GROUP: &str = "admissionregistration.k8s.io";

pub(super) fn rows() -> Vec<Kind> {
    vec![
        Kind {
            default: |object| webhook_defaults(object, true),
            validate: webhook_rules,
            columns: WEBHOOKS,
            has_generation: true,
            categories: vec!["api-extensions".into()],
            tier: Tier::Stored,
            ..row(GROUP, "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", Cluster, &[])
        },
        Kind {
            default: |object| webhook_defaults(object, false),
            validate: webhook_rules,
            columns: WEBHOOKS,
            has_generation: true,
            categories: vec!["api-extensions".into()],
            tier: Tier::Stored,
            ..row(
                GROUP,
                "v1",
                "ValidatingWebhookConfiguration",
                "validatingwebhookconfigurations",
                Cluster,
                &[],
            )
        },
        Kind {
            default: policy_defaults,
            validate: policy_rules,
            columns: POLICY,
            has_status: true,
            has_generation: true,
            categories: vec!["api-extensions".into()],
            ..row(GROUP, "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", Cluster, &[])
        },
        Kind {
            default: |object| {
                if let Some(Value::Object(matching)) =
                    spec_of(object).and_then(|it| it.get_mut("matchResources"))
                {
                    match_defaults(matching);
                }
            },
            validate: |object, _, causes| {
                if text(object, "/spec/policyName").is_empty() {
                    causes.push(Cause::required("spec.policyName", ""));
                }
                if list(object, "/spec/validationActions").is_empty() {
                    causes.push(Cause::required("spec.validationActions", ""));
                }
            },
            columns: const {
                Columns::BuiltIn(&[NAME, words("PolicyName"), words("ParamRef"), AGE], |it, now| {
                    let parameter = &it["spec"]["paramRef"];
                    let shown = match (parameter.is_object(), text(parameter, "/namespace")) {
                        (false, _) => "<unset>".to_string(),
                        (true, "") => format!("*/{}", text(parameter, "/name")),
                        (true, namespace) => format!("{namespace}/{}", text(parameter, "/name")),
                    };
                    vec![
                        json!(crate::name(it)),
                        json!(text(it, "/spec/policyName")),
                        json!(shown),
                        created(it, now),
                    ]
                })
            },
            has_generation: true,
            categories: vec!["api-extensions".into()],
            ..row(
                GROUP,
                "v1",
                "ValidatingAdmissionPolicyBinding",
                "validatingadmissionpolicybindings",
                Cluster,
                &[],
            )
        },
    ]
}

fn match_defaults(matching: &mut Map<String, Value>) {
    set(matching, "matchPolicy", "Equivalent");
    set(matching, "namespaceSelector", json!({}));
    set(matching, "objectSelector", json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in items(matching, list) {
            set(rule, "scope", "*");
        }
    }
}

fn webhook_defaults(object: &mut Value, mutating: bool) {
    let Some(object) = object.as_object_mut() else { return };
    for webhook in items(object, "webhooks") {
        set(webhook, "failurePolicy", "Fail");
        set(webhook, "matchPolicy", "Equivalent");
        set(webhook, "namespaceSelector", json!({}));
        set(webhook, "objectSelector", json!({}));
        set(webhook, "timeoutSeconds", 10);
        if mutating {
            set(webhook, "reinvocationPolicy", "Never");
        }
        for rule in items(webhook, "rules") {
            set(rule, "scope", "*");
        }
        let service = webhook.get_mut("clientConfig").and_then(|it| it.get_mut("service"));
        if let Some(service) = service.and_then(Value::as_object_mut) {
            set(service, "port", 443);
        }
    }
}

fn webhook_rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    for (index, webhook) in list(object, "/webhooks").iter().enumerate() {
        let at = format!("webhooks[{index}]");
        let name = text(webhook, "/name");
        if name.split('.').count() < 3 {
            causes.push(Cause::invalid(
                &format!("{at}.name"),
                &json!(name),
                "should be a domain with at least three segments separated by dots",
            ));
        }
        let client = &webhook["clientConfig"];
        if client["url"].is_null() == client["service"].is_null() {
            causes.push(Cause::required(
                &format!("{at}.clientConfig"),
                "exactly one of url or service is required",
            ));
        }
        if webhook["sideEffects"] != "None" && webhook["sideEffects"] != "NoneOnDryRun" {
            causes.push(Cause::unsupported(
                &format!("{at}.sideEffects"),
                &webhook["sideEffects"],
                &["None", "NoneOnDryRun"],
            ));
        }
        conditions(webhook, &at, causes);
        if list(webhook, "/admissionReviewVersions").is_empty() {
            causes.push(Cause::required(&format!("{at}.admissionReviewVersions"), ""));
        }
    }
}

/// `matchConditions`: named, and CEL.
fn conditions(object: &Value, at: &str, causes: &mut Causes) {
    let mut names: Vec<&str> = Vec::new();
    for (index, condition) in list(object, "/matchConditions").iter().enumerate() {
        let at = format!("{at}.matchConditions[{index}]");
        let name = text(condition, "/name");
        if name.is_empty() {
            causes.push(Cause::required(&format!("{at}.name"), ""));
        } else if names.contains(&name) {
            causes.push(Cause::duplicate(&format!("{at}.name"), &condition["name"]));
        }
        names.push(name);
        expression(condition, "expression", &at, causes);
    }
}

fn expression(holder: &Value, field: &str, at: &str, causes: &mut Causes) {
    if let Some(source) = holder[field].as_str().filter(|it| !it.trim().is_empty())
        && let Err(why) = &*crate::expression(source)
    {
        causes.push(Cause::invalid(&format!("{at}.{field}"), &holder[field], why));
    }
}

fn policy_defaults(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    set(spec, "failurePolicy", "Fail");
    if let Some(Value::Object(matching)) = spec.get_mut("matchConstraints") {
        match_defaults(matching);
    }
    set_initial_status(object, json!({}));
}

fn policy_rules(object: &Value, _: Option<&Value>, causes: &mut Causes) {
    let spec = &object["spec"];
    if list(spec, "/matchConstraints/resourceRules").is_empty() {
        causes.push(Cause::required("spec.matchConstraints", ""));
    }
    if list(spec, "/validations").is_empty() && list(spec, "/auditAnnotations").is_empty() {
        causes.push(Cause::required(
            "spec.validations",
            "validations or auditAnnotations must contain at least one item",
        ));
    }
    conditions(spec, "spec", causes);
    for (index, variable) in list(spec, "/variables").iter().enumerate() {
        expression(variable, "expression", &format!("spec.variables[{index}]"), causes);
    }
    for (index, validation) in list(spec, "/validations").iter().enumerate() {
        if text(validation, "/expression").trim().is_empty() {
            causes.push(Cause::required(
                &format!("spec.validations[{index}].expression"),
                "expression is not specified",
            ));
        }
        let at = format!("spec.validations[{index}]");
        expression(validation, "expression", &at, causes);
        expression(validation, "messageExpression", &at, causes);
    }
}

const WEBHOOKS: Columns = Columns::BuiltIn(&[NAME, column("Webhooks", "integer", 0), AGE], |it, now| {
    vec![json!(crate::name(it)), json!(list(it, "/webhooks").len()), created(it, now)]
});

const POLICY: Columns =
    Columns::BuiltIn(&[NAME, column("Validations", "integer", 0), words("ParamKind"), AGE], |it, now| {
        let parameter = &it["spec"]["paramKind"];
        let shown = match parameter.is_object() {
            true => format!("{}/{}", text(parameter, "/apiVersion"), text(parameter, "/kind")),
            false => "<unset>".to_string(),
        };
        vec![
            json!(crate::name(it)),
            json!(list(it, "/spec/validations").len()),
            json!(shown),
            created(it, now),
        ]
    });
