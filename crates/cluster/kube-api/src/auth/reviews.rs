//! Questions about identities and rights. They are posted like objects, and nothing is stored.

use kube_kinds::{Failure, list, text};
use serde_json::{Value, json};

use super::{AUTHENTICATED, Attributes, User, authenticate, rbac};
use crate::Api;

/// A kind that is only asked.
pub(crate) struct Review {
    pub group: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub namespaced: bool,
}

pub(crate) const REVIEWS: [Review; 6] = [
    review("authentication.k8s.io", "TokenReview", "tokenreviews", false),
    review("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", false),
    review("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", false),
    review("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
    review("authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
    review("authorization.k8s.io", "LocalSubjectAccessReview", "localsubjectaccessreviews", true),
];

const fn review(group: &'static str, kind: &'static str, plural: &'static str, namespaced: bool) -> Review {
    Review { group, kind, plural, namespaced }
}

pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Review> {
    REVIEWS.iter().find(|it| it.group == group && version == "v1" && it.plural == plural)
}

/// The review with its answer in `status`.
pub(crate) fn answer(
    api: &Api,
    user: &User,
    review: &Review,
    namespace: &str,
    mut body: Value,
) -> Result<Value, Failure> {
    if !body.is_object() {
        return Err(Failure::bad_request("the body must be an object"));
    }
    let spec = body["spec"].clone();
    let status = match review.kind {
        "TokenReview" => token_review(api, &spec),
        "SelfSubjectReview" => json!({"userInfo": user.to_value()}),
        "SelfSubjectAccessReview" => access(api, user, &attributes(&spec)?),
        "SubjectAccessReview" => access(api, &named(&spec)?, &attributes(&spec)?),
        "LocalSubjectAccessReview" => {
            let asked = attributes(&spec)?;
            if asked.namespace != namespace {
                return Err(Failure::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {namespace}"
                )));
            }
            access(api, &named(&spec)?, &asked)
        }
        _ => rules_review(api, user, text(&spec, "/namespace"))?,
    };
    body["apiVersion"] = json!(format!("{}/v1", review.group));
    body["kind"] = json!(review.kind);
    if !body["metadata"].is_object() {
        body["metadata"] = json!({});
    }
    body["metadata"]["creationTimestamp"] = Value::Null;
    body["status"] = status;
    Ok(body)
}

fn token_review(api: &Api, spec: &Value) -> Value {
    let asked: Vec<&str> = list(spec, "/audiences").iter().filter_map(Value::as_str).collect();
    let audiences = if asked.is_empty() { vec![authenticate::ISSUER] } else { asked };
    match authenticate::of_token(api, text(spec, "/token"), &audiences) {
        Some((user, audiences)) => {
            json!({"authenticated": true, "user": user.to_value(), "audiences": audiences})
        }
        None => json!({"user": {}, "error": "invalid bearer token"}),
    }
}

fn named(spec: &Value) -> Result<User, Failure> {
    let mut user = User::new(text(spec, "/user"), &[]);
    user.groups = list(spec, "/groups").iter().filter_map(|it| it.as_str().map(String::from)).collect();
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(Failure::bad_request("at least one of spec.user or spec.groups must be specified"));
    }
    if user.name.starts_with("system:serviceaccount:") && !user.is_in(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    Ok(user)
}

fn attributes(spec: &Value) -> Result<Attributes, Failure> {
    if let Some(path) = spec.get("nonResourceAttributes").filter(|it| it.is_object()) {
        return Ok(Attributes::path(text(path, "/verb"), text(path, "/path")));
    }
    let resource = &spec["resourceAttributes"];
    if !resource.is_object() {
        let message =
            "exactly one of spec.nonResourceAttributes or spec.resourceAttributes must be specified";
        return Err(Failure::bad_request(message));
    }
    let plural = text(resource, "/resource");
    Ok(Attributes {
        verb: text(resource, "/verb").into(),
        group: text(resource, "/group").into(),
        resource: match text(resource, "/subresource") {
            "" => plural.into(),
            subresource => format!("{plural}/{subresource}"),
        },
        namespace: text(resource, "/namespace").into(),
        name: text(resource, "/name").into(),
        path: String::new(),
    })
}

fn access(api: &Api, user: &User, asked: &Attributes) -> Value {
    match rbac::allows(api, user, asked) {
        true => json!({"allowed": true, "reason": "RBAC: allowed"}),
        false => json!({"allowed": false}),
    }
}

fn rules_review(api: &Api, user: &User, namespace: &str) -> Result<Value, Failure> {
    if namespace.is_empty() {
        return Err(Failure::bad_request("no namespace on request"));
    }
    let (paths, resources): (Vec<Value>, Vec<Value>) =
        rbac::rules(api, user, namespace).into_iter().partition(|it| !it["nonResourceURLs"].is_null());
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}
