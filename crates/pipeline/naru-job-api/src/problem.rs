//! One kind of error for all services here, and how each protocol writes it.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request makes no sense.
    Invalid,
    /// It makes sense, and cannot be done.
    Unprocessable,
    /// No token, or none of ours.
    Unauthenticated,
    Denied,
    NotFound,
    /// Somebody else has the name.
    Exists,
    TooLarge,
    /// The disk has no room.
    Full,
    /// A range beyond the end.
    Range,
    /// Somebody whom we ask for it does not answer as he should.
    Gateway,
    Internal,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Problem>;

/// A problem of this kind.
pub fn problem(kind: Kind, message: impl Into<String>) -> Problem {
    Problem { kind, message: message.into() }
}

impl Problem {
    /// Something of ours went wrong. The client learns what, our log also why.
    pub fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "{what}");
        problem(Kind::Internal, format!("{what}: {error}"))
    }

    pub fn status(&self) -> StatusCode {
        match self.kind {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::Denied => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Exists => StatusCode::CONFLICT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Full => StatusCode::INSUFFICIENT_STORAGE,
            Kind::Range => StatusCode::RANGE_NOT_SATISFIABLE,
            Kind::Gateway => StatusCode::BAD_GATEWAY,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// As Twirp 7 has it: a code of its list and a text.
    pub fn twirp(&self) -> Response {
        let code = match self.kind {
            Kind::Invalid | Kind::Unprocessable => "invalid_argument",
            Kind::Unauthenticated => "unauthenticated",
            Kind::Denied => "permission_denied",
            Kind::NotFound => "not_found",
            Kind::Exists => "already_exists",
            Kind::TooLarge | Kind::Full => "resource_exhausted",
            Kind::Range => "out_of_range",
            Kind::Gateway => "unavailable",
            Kind::Internal => "internal",
        };
        (self.status(), axum::Json(json!({"code": code, "msg": self.message}))).into_response()
    }

    /// As GitHub's REST interface has it; also that of the first cache service.
    pub fn rest(&self) -> Response {
        let status = self.status();
        (status, axum::Json(json!({"message": self.message, "status": status.as_u16().to_string()})))
            .into_response()
    }

    /// As Azure's blob storage has it.
    pub fn azure(&self) -> Response {
        let code = match self.kind {
            Kind::Invalid | Kind::Unprocessable => "InvalidInput",
            Kind::Unauthenticated | Kind::Denied => "AuthenticationFailed",
            Kind::NotFound => "BlobNotFound",
            Kind::Exists => "BlobAlreadyExists",
            Kind::TooLarge => "RequestBodyTooLarge",
            Kind::Full => "InsufficientAccountPermissions",
            Kind::Range => "InvalidRange",
            Kind::Internal | Kind::Gateway => "InternalError",
        };
        let text = xml_escape(&self.message);
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>{text}</Message></Error>"
        );
        (self.status(), [("content-type", "application/xml"), ("x-ms-error-code", code)], body)
            .into_response()
    }

    /// For whoever reads plain text.
    pub fn text(&self) -> Response {
        (self.status(), format!("{}\n", self.message)).into_response()
    }
}

fn xml_escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
