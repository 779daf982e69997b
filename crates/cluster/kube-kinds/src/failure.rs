//! Failures as clients of the API see them: a `Status` object with code, reason and causes.

use serde_json::{Value, json};

use crate::Kind;

/// A request that was not carried out, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Value,
}

/// One field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: &'static str,
    pub message: String,
    pub field: String,
}

impl Cause {
    pub fn required(field: &str, detail: &str) -> Cause {
        let message = match detail.is_empty() {
            true => "Required value".to_string(),
            false => format!("Required value: {detail}"),
        };
        Cause { reason: "FieldValueRequired", message, field: field.into() }
    }

    pub fn invalid(field: &str, value: &Value, detail: &str) -> Cause {
        Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {detail}"),
            field: field.into(),
        }
    }

    pub fn unsupported(field: &str, value: &Value, supported: &[&str]) -> Cause {
        let supported: Vec<String> = supported.iter().map(|it| format!("{it:?}")).collect();
        Cause {
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: {value}: supported values: {}", supported.join(", ")),
            field: field.into(),
        }
    }

    pub fn forbidden(field: &str, detail: &str) -> Cause {
        Cause { reason: "FieldValueForbidden", message: format!("Forbidden: {detail}"), field: field.into() }
    }

    pub fn duplicate(field: &str, value: &Value) -> Cause {
        Cause {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value}"),
            field: field.into(),
        }
    }
}

impl Failure {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure { code, reason, message: message.into(), details: Value::Null }
    }

    pub fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(400, "BadRequest", message)
    }

    pub fn not_found(kind: &Kind, name: &str) -> Failure {
        Failure::new(404, "NotFound", format!("{} {name:?} not found", kind.resource()))
            .with_object(kind, name)
    }

    pub fn already_exists(kind: &Kind, name: &str) -> Failure {
        Failure::new(409, "AlreadyExists", format!("{} {name:?} already exists", kind.resource()))
            .with_object(kind, name)
    }

    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Failure {
        Failure::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.resource()),
        )
        .with_object(kind, name)
    }

    pub fn modified(kind: &Kind, name: &str) -> Failure {
        Failure::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Failure {
        Failure::new(403, "Forbidden", format!("{} {name:?} is forbidden: {why}", kind.resource()))
            .with_object(kind, name)
    }

    pub fn invalid(kind: &Kind, name: &str, causes: Vec<Cause>) -> Failure {
        let texts: Vec<String> = causes.iter().map(|it| format!("{}: {}", it.field, it.message)).collect();
        let texts = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {texts}", kind.qualified_kind());
        let causes: Vec<Value> = causes
            .into_iter()
            .map(|it| json!({"reason": it.reason, "message": it.message, "field": it.field}))
            .collect();
        Failure {
            code: 422,
            reason: "Invalid",
            message,
            details: json!({"name": name, "group": kind.group, "kind": kind.kind, "causes": causes}),
        }
    }

    /// A patch whose result is not an object of its kind.
    pub fn invalid_patch(why: &str) -> Failure {
        let cause = Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {why}"),
            field: "patch".into(),
        };
        Failure {
            code: 422,
            reason: "Invalid",
            message: format!(" \"\" is invalid: patch: {}", cause.message),
            details: json!({"causes": [{"reason": cause.reason, "message": cause.message, "field": cause.field}]}),
        }
    }

    pub fn expired(message: impl Into<String>) -> Failure {
        Failure::new(410, "Expired", message)
    }

    fn with_object(mut self, kind: &Kind, name: &str) -> Failure {
        // The resource's name in the field `kind` is what Kubernetes answers, too.
        self.details = json!({"name": name, "group": kind.group, "kind": kind.plural});
        self
    }

    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// The `Status` object.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}
