//! Tokens for service accounts, and what others need to check them.

use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use kube_kinds::{Cause, Failure, list, table, text, uid};
use serde_json::{Value, json};

use crate::auth::authenticate::{self, ISSUER};
use crate::request::Call;
use crate::{Api, answer, body};

const SECONDS_DEFAULT: i64 = 3600;
const SECONDS_MIN: i64 = 600;
const SECONDS_MAX: i64 = 1 << 32;

/// `POST serviceaccounts/NAME/token`: a TokenRequest comes back with its token.
pub(crate) async fn create(call: Call, body: Body) -> Result<Response, Failure> {
    let account = call.api.objects().get(&call.kind, call.namespace(), call.name())?;
    let mut request = body::optional(&call.headers, body).await?;
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(SECONDS_DEFAULT);
    let wrong = |detail: &str| {
        static REQUEST: LazyLock<&kube_kinds::Kind> = LazyLock::new(|| {
            table::of("", "ServiceAccount").expect("the table of kinds has service accounts")
        });
        let cause = Cause::invalid("spec.expirationSeconds", &json!(seconds), detail);
        let mut failure = Failure::invalid(&REQUEST, call.name(), vec![cause]);
        failure.message = failure.message.replace("ServiceAccount", "TokenRequest.authentication.k8s.io");
        failure
    };
    if seconds < SECONDS_MIN {
        return Err(wrong("may not specify a duration less than 10 minutes"));
    }
    if seconds > SECONDS_MAX {
        return Err(wrong("may not specify a duration larger than 2^32 seconds"));
    }
    let mut audiences: Vec<String> =
        list(&request, "/spec/audiences").iter().filter_map(|it| it.as_str().map(String::from)).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.into());
    }
    let bound = bound(&call, &request["spec"]["boundObjectRef"])?;
    let claims = authenticate::claims(&account, &audiences, seconds, bound);
    let token = call.api.inner.token_keys.sign(&claims);
    let token = token.ok_or_else(|| Failure::new(500, "InternalError", "the token could not be signed"))?;
    let expires = jiff::Timestamp::from_second(claims["exp"].as_i64().unwrap_or(0)).unwrap_or_default();
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["kind"] = json!("TokenRequest");
    request["metadata"] = json!({"name": call.name(), "namespace": call.namespace(), "creationTimestamp":
        kube_kinds::time::format(jiff::Timestamp::now())});
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] = json!({"token": token, "expirationTimestamp": kube_kinds::time::format(expires)});
    Ok(answer::json(201, &request))
}

/// What the token lives and dies with, as it stands in the claims.
fn bound(call: &Call, reference: &Value) -> Result<Value, Failure> {
    if reference.is_null() {
        return Ok(json!({}));
    }
    let (name, field) = (text(reference, "/name"), text(reference, "/kind").to_lowercase());
    let kind = match field.as_str() {
        "pod" | "secret" => table::of("", text(reference, "/kind")),
        _ => None,
    };
    let Some(kind) = kind else {
        return Err(Failure::bad_request(format!(
            "cannot bind token to object of type {}: use a Pod or a Secret",
            text(reference, "/kind")
        )));
    };
    let object = call.api.objects().get(kind, call.namespace(), name)?;
    let wanted = text(reference, "/uid");
    if !wanted.is_empty() && wanted != uid(&object) {
        return Err(Failure::conflict(
            kind,
            name,
            &format!("the UID in the bound object reference ({wanted}) does not match the UID in record"),
        ));
    }
    Ok(json!({field: {"name": name, "uid": uid(&object)}}))
}

/// `/.well-known/openid-configuration`.
pub(crate) fn configuration() -> Value {
    json!({
        "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"), "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// `/openid/v1/jwks`.
pub(crate) fn keys(api: &Api) -> Response {
    let keys = api.inner.token_keys.to_jwks();
    answer::with_type(200, "application/jwk-set+json", Body::from(keys.to_string()))
}
