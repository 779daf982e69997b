//! What clients are told when something cannot be done: Docker's status codes, and a message.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use naru_client::chain;
use serde_json::json;

use crate::node::NodeError;

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub status: StatusCode,
    pub message: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub fn missing(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: not in this state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500.
    pub fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501: known, and not offered.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    pub fn no_container(name: &str) -> Self {
        Self::missing(format!("No such container: {name}"))
    }

    pub fn no_image(name: &str) -> Self {
        Self::missing(format!("No such image: {name}"))
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"message": self.message}))).into_response()
    }
}

impl From<naru_client::Error> for Error {
    fn from(error: naru_client::Error) -> Self {
        let status = match error.code {
            404 => StatusCode::NOT_FOUND,
            409 => StatusCode::CONFLICT,
            400 | 422 => StatusCode::BAD_REQUEST,
            507 => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.message.clone())
    }
}

impl From<NodeError> for Error {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::NotFound(message) => Self::missing(message),
            NodeError::NotRunning(message) => Self::conflict(message),
            NodeError::Failed(message) => Self::server(message),
        }
    }
}

impl From<naru_image::Error> for Error {
    fn from(error: naru_image::Error) -> Self {
        let message = chain(&error);
        match error {
            naru_image::Error::Name(_) => Self::bad(format!("invalid reference format: {message}")),
            it if it.is_not_found() => Self::missing(message),
            it if it.is_disk_full() => Self::new(StatusCode::INSUFFICIENT_STORAGE, message),
            _ => Self::server(message),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::NotFound => Self::missing(error.to_string()),
            _ => Self::server(error.to_string()),
        }
    }
}
