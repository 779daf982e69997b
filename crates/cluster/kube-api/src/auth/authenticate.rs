//! From a connection's certificate and a request's headers to an identity.

use std::collections::BTreeMap;

use http::{HeaderMap, header};
use kube_kinds::{Failure, is_deleting, table, text, uid};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AUTHENTICATED, Attributes, MASTERS, User, rbac};
use crate::Api;

/// Who signs tokens, and whom they are for when nobody else is named.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The user of a certificate that the verifier has checked: the common name; organizations are groups.
pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().find_map(|it| it.as_str().ok())?;
    let mut user = User::new(name, &[]);
    user.groups = subject.iter_organization().filter_map(|it| it.as_str().ok()).map(String::from).collect();
    user.groups.push(AUTHENTICATED.into());
    Some(user)
}

/// The identity of a request. A token that is not good is refused even where nobody has to say who they are.
pub(crate) fn of_request(
    api: &Api,
    certificate: Option<&User>,
    headers: &HeaderMap,
) -> Result<User, Failure> {
    let user = match (certificate, bearer(headers)) {
        (Some(user), _) => user.clone(),
        (None, Some(token)) => {
            of_token(api, token, &[ISSUER]).map(|(user, _)| user).ok_or_else(unauthorized)?
        }
        (None, None) => User::anonymous(),
    };
    impersonated(api, user, headers)
}

pub(crate) fn unauthorized() -> Failure {
    Failure::new(401, "Unauthorized", "Unauthorized")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        return value.to_str().ok()?.strip_prefix("Bearer ").map(str::trim);
    }
    // Browsers cannot set headers on a websocket: the token is one of the protocols offered.
    let offered = headers.get(header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    offered.split(',').find_map(|it| it.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))
}

/// Whose token it is, and for which of the audiences.
pub(crate) fn of_token(api: &Api, token: &str, audiences: &[&str]) -> Option<(User, Vec<String>)> {
    if is_equal(token, api.admin_token()) {
        let all = audiences.iter().map(|it| it.to_string()).collect();
        return Some((User::new("admin", &[MASTERS, AUTHENTICATED]), all));
    }
    let claims = api.inner.token_keys.verify(token)?;
    let user = of_claims(api, &claims)?;
    let named: Vec<&str> = match &claims["aud"] {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one],
        _ => Vec::new(),
    };
    let good: Vec<String> =
        audiences.iter().filter(|it| named.contains(it)).map(|it| it.to_string()).collect();
    (!good.is_empty()).then_some((user, good))
}

/// In constant time: how far the comparison came must not be measurable.
fn is_equal(given: &str, secret: &str) -> bool {
    given.len() == secret.len()
        && given.bytes().zip(secret.bytes()).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

/// A service account, as long as it, and what the token is bound to, exist.
fn of_claims(api: &Api, claims: &Value) -> Option<User> {
    let now = jiff::Timestamp::now().as_second();
    let holds = claims["iss"] == ISSUER
        && claims["exp"].as_i64().is_some_and(|it| it > now)
        && claims["nbf"].as_i64().is_none_or(|it| it <= now + 5);
    let about = &claims["kubernetes.io"];
    let namespace = text(about, "/namespace");
    let account = text(about, "/serviceaccount/name");
    if !holds || namespace.is_empty() || account.is_empty() {
        return None;
    }
    let is_there = |kind: &str, name: &str, wanted: &str| {
        let kind = table::of("", kind)?;
        let object = api.objects().find(kind, namespace, name)?;
        (uid(&object) == wanted && !is_deleting(&object)).then_some(())
    };
    is_there("ServiceAccount", account, text(about, "/serviceaccount/uid"))?;
    let mut extra = BTreeMap::new();
    let mut tell = |key: &str, value: &str| {
        extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_string()]);
    };
    if let Some(id) = claims["jti"].as_str() {
        tell("credential-id", &format!("JTI={id}"));
    }
    for (kind, field) in [("Pod", "pod"), ("Secret", "secret")] {
        let (name, id) = (text(about, &format!("/{field}/name")), text(about, &format!("/{field}/uid")));
        if !name.is_empty() {
            is_there(kind, name, id)?;
            if kind == "Pod" {
                tell("pod-name", name);
                tell("pod-uid", id);
            }
        }
    }
    let mut user = User::new(
        &format!("system:serviceaccount:{namespace}:{account}"),
        &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), AUTHENTICATED],
    );
    user.uid = text(about, "/serviceaccount/uid").into();
    user.extra = extra;
    Some(user)
}

/// `--as` and its like: another identity, for those who may.
fn impersonated(api: &Api, user: User, headers: &HeaderMap) -> Result<User, Failure> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|it| it.to_str().ok()).map(String::from).collect()
    };
    let names = all("impersonate-user");
    let groups = all("impersonate-group");
    let Some(name) = names.first() else {
        if !groups.is_empty() || headers.contains_key("impersonate-uid") {
            return Err(Failure::new(
                403,
                "Forbidden",
                "impersonating groups needs a user: Impersonate-User",
            ));
        }
        return Ok(user);
    };
    let may = |group: &str, resource: &str, namespace: &str, name: &str| {
        let asked = Attributes {
            verb: "impersonate".into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            path: String::new(),
        };
        if rbac::allows(api, &user, &asked) { Ok(()) } else { Err(asked.forbidden(&user)) }
    };
    let mut other = User::new(name, &[]);
    match name.strip_prefix("system:serviceaccount:").and_then(|it| it.split_once(':')) {
        Some((namespace, account)) => {
            may("", "serviceaccounts", namespace, account)?;
            other.groups =
                vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        None => may("", "users", "", name)?,
    }
    for group in groups {
        may("", "groups", "", &group)?;
        other.groups.push(group);
    }
    for id in all("impersonate-uid") {
        may("authentication.k8s.io", "uids", "", &id)?;
        other.uid = id;
    }
    for (header, value) in headers {
        let Some(key) = header.as_str().strip_prefix("impersonate-extra-") else { continue };
        let value = value.to_str().unwrap_or_default();
        may("authentication.k8s.io", &format!("userextras/{key}"), "", value)?;
        other.extra.entry(key.into()).or_default().push(value.into());
    }
    if name != "system:anonymous" && !other.is_in(AUTHENTICATED) {
        other.groups.push(AUTHENTICATED.into());
    }
    Ok(other)
}

/// The claims of a new token for a service account; `bound` is `{"pod": {name, uid}}` or the like.
pub(crate) fn claims(account: &Value, audiences: &[String], seconds: i64, bound: Value) -> Value {
    let now = jiff::Timestamp::now().as_second();
    let namespace = kube_kinds::namespace(account);
    let name = kube_kinds::name(account);
    let mut about = json!({"namespace": namespace, "serviceaccount": {"name": name, "uid": uid(account)}});
    for (field, value) in bound.as_object().into_iter().flatten() {
        about[field] = value.clone();
    }
    json!({
        "iss": ISSUER, "aud": audiences, "sub": format!("system:serviceaccount:{namespace}:{name}"),
        "iat": now, "nbf": now, "exp": now + seconds, "jti": uuid::Uuid::new_v4().to_string(),
        "kubernetes.io": about,
    })
}
