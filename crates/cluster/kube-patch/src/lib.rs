//! The four ways to change an object in part: JSON patch, merge patch, strategic merge patch and
//! server-side apply. Plain functions on JSON values; no I/O.
//!
//! ```
//! use serde_json::json;
//! let live = json!({"spec": {"replicas": 1, "paused": true}});
//! let new = kube_patch::merge(&live, &json!({"spec": {"replicas": 2, "paused": null}}));
//! assert_eq!(new, json!({"spec": {"replicas": 2}}));
//! ```

mod apply;
mod fields;
mod managers;
mod schema;
mod strategic;
mod typed;

use serde_json::Value;

pub use apply::{Apply, Conflict, apply, record_update};
pub use fields::Fields;
pub use managers::Owner;
pub use schema::Shape;
pub use strategic::strategic;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the patch is not a list of operations")]
    NotOperations { source: serde_json::Error },
    #[error("operation {index} of the patch cannot be carried out: {why}")]
    Operation { index: usize, why: String },
    #[error("the patch has {count} operations, the limit is {JSON_PATCH_OPERATIONS_MAX}")]
    TooManyOperations { count: usize },
    #[error("{path} is a list whose items need {key}")]
    MissingKey { path: String, key: String },
    #[error("{path}: {why}")]
    Item { path: String, why: String },
    #[error("{path} must be a list, because the patch directive in it is for lists")]
    NotAList { path: String },
    #[error("unknown directive $patch: {directive}")]
    Directive { directive: String },
}

/// Kubernetes' own limit.
const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// RFC 6902.
pub fn json(live: &Value, patch: &Value) -> Result<Value, Error> {
    use serde_json::from_value;
    let count = patch.as_array().map_or(0, Vec::len);
    if count > JSON_PATCH_OPERATIONS_MAX {
        return Err(Error::TooManyOperations { count });
    }
    let operations: json_patch::Patch =
        from_value(patch.clone()).map_err(|source| Error::NotOperations { source })?;
    let mut new = live.clone();
    json_patch::patch(&mut new, &operations)
        .map_err(|error| Error::Operation { index: error.operation, why: error.kind.to_string() })?;
    Ok(new)
}

/// RFC 7386.
pub fn merge(live: &Value, patch: &Value) -> Value {
    let mut new = live.clone();
    json_patch::merge(&mut new, patch);
    new
}
