//! Error codes of the distribution specification and the JSON that carries them.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    BlobUnknown,
    BlobUploadInvalid,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    RangeInvalid,
    SizeInvalid,
    TooManyRequests,
    Unauthorized,
    Denied,
    Unsupported,
    NotFound,
    Full,
    /// Somebody whom we must ask does not answer.
    Unavailable,
    Internal,
}

impl Code {
    fn parts(self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::BlobUnknown => (S::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::BlobUploadInvalid => (S::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::BlobUploadUnknown => (S::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::DigestInvalid => (S::BAD_REQUEST, "DIGEST_INVALID"),
            Self::ManifestBlobUnknown => (S::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestInvalid => (S::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestUnknown => (S::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::NameInvalid => (S::BAD_REQUEST, "NAME_INVALID"),
            Self::NameUnknown => (S::NOT_FOUND, "NAME_UNKNOWN"),
            Self::RangeInvalid => (S::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::SizeInvalid => (S::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::TooManyRequests => (S::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::Unauthorized => (S::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::Denied => (S::FORBIDDEN, "DENIED"),
            Self::Unsupported => (S::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::NotFound => (S::NOT_FOUND, "NAME_UNKNOWN"),
            Self::Full => (S::INSUFFICIENT_STORAGE, "UNKNOWN"),
            Self::Unavailable => (S::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

#[derive(Debug)]
pub struct Failure {
    code: Code,
    message: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The store's own trouble: said to the client in general, to the log in detail.
    pub fn store(error: naru_image::Error) -> Self {
        match &error {
            it if it.is_disk_full() => {
                Self::new(Code::Full, "the disk is full; free some space and try again")
            }
            naru_image::Error::OverHost(_) => Self::new(Code::Denied, error.to_string()),
            naru_image::Error::WrongDigest { .. } => Self::new(Code::DigestInvalid, error.to_string()),
            _ => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the registry cannot use its store"
                );
                Self::new(Code::Internal, "the image store failed; the server's log says more")
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, code) = self.code.parts();
        let body = json!({"errors": [{"code": code, "message": self.message}]}).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"naru\""));
        }
        response
    }
}

pub fn json_answer(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A header value of text that we made ourselves.
pub fn value(text: impl AsRef<str>) -> HeaderValue {
    HeaderValue::from_str(text.as_ref()).unwrap_or(HeaderValue::from_static(""))
}
