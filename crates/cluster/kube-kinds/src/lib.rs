//! What the API knows about each kind of object: names, scope, defaults, rules, columns.
//!
//! Everything here is a plain function of its inputs: no store, no clock, no network. A kind is
//! one row of [`table::builtin`]; kinds that users declare come from their
//! CustomResourceDefinition through [`crd::kinds_of`] and behave alike from then on.
//!
//! ```
//! let pods = kube_kinds::table::find("", "v1", "pods").expect("pods are built in");
//! assert_eq!(pods.key("default", "web-1"), "core/pods/default/web-1");
//! ```

pub mod columns;
pub mod crd;
pub mod decode;
pub mod defaults;
pub mod failure;
pub mod jsonpath;
mod kinds;
pub mod pod_security;
pub mod quantity;
pub mod quota;
pub mod selector;
pub mod service;
pub mod strategy;
pub mod structural;
pub mod table;
pub mod time;
pub mod validation;

use std::sync::Arc;

use serde_json::Value;

pub use failure::{Cause, Failure};
pub use structural::expression;

/// One served kind in one version.
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub namespaced: bool,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    /// `/status` is written on its own; writes of the object leave it alone, and the other way
    /// round.
    pub has_status: bool,
    pub scale: Option<Scale>,
    /// `metadata.generation` counts changes of the specification.
    pub has_generation: bool,
    pub names: NameRule,
    pub default: fn(&mut Value),
    /// Takes over from the old state what an update leaves unsaid and means to keep.
    pub carry: fn(&Value, &mut Value),
    pub validate: fn(&Value, Option<&Value>, &mut Vec<Cause>),
    /// Value of a field in a field selector; `None` when the kind does not support the field.
    pub field: fn(&Value, &str) -> Option<String>,
    pub columns: columns::Columns,
    /// What is stored but not acted on, said to whoever writes it.
    pub warnings: fn(&Value) -> Vec<String>,
    /// OpenAPI schema of a declared kind.
    pub schema: Option<Arc<Value>>,
    /// The schema has defaults, which objects also get that were stored before it had them.
    pub fills_in: bool,
    /// Fields that a field selector may name, dotted.
    pub selectable: Vec<String>,
    /// Whether something makes objects of this kind true, or they are only kept.
    pub tier: Tier,
    /// Set when the objects are stored in the form of another kind or version.
    pub stored: Option<Stored>,
}

/// What users may expect of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Controllers, the node or the API act on it.
    Active,
    /// Kept, checked and served, not acted on.
    Stored,
}

/// How a kind is kept in the form of another: `HorizontalPodAutoscaler` of `autoscaling/v1` as
/// that of `v2`, events of `events.k8s.io` as core events.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    /// Start of the storage keys (`core/events/`).
    pub prefix: &'static str,
    pub to_stored: fn(&mut Value),
    pub from_stored: fn(&mut Value),
}

/// Where the scale subresource finds its figures (JSON pointers).
#[derive(Debug, Clone)]
pub struct Scale {
    pub spec_replicas: String,
    pub status_replicas: String,
    /// Pointer to a label selector (object or string).
    pub selector: Option<String>,
}

/// Which characters a name may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// Lower case, digits, `-` and `.`; 253 characters.
    Subdomain,
    /// As above without `.`; 63 characters.
    Label,
    /// A label that starts with a letter.
    ServiceName,
    /// Whatever fits between two slashes of a path (`system:node`).
    PathSegment,
}

impl Kind {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group.is_empty() {
            true => self.version.clone(),
            false => format!("{}/{}", self.group, self.version),
        }
    }

    /// `pods`, `deployments.apps`: how messages name the resource.
    pub fn resource(&self) -> String {
        match self.group.is_empty() {
            true => self.plural.clone(),
            false => format!("{}.{}", self.plural, self.group),
        }
    }

    /// `Pod`, `Deployment.apps`.
    pub fn qualified_kind(&self) -> String {
        match self.group.is_empty() {
            true => self.kind.clone(),
            false => format!("{}.{}", self.kind, self.group),
        }
    }

    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// The storage key. Versions of one kind share it. Cluster-scoped kinds have an empty namespace.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{}/{}", self.prefix(), if self.namespaced { namespace } else { "" }, name)
    }

    /// Start of the keys of all objects of this kind.
    pub fn prefix(&self) -> String {
        if let Some(stored) = &self.stored {
            return stored.prefix.to_string();
        }
        format!("{}/{}/", if self.group.is_empty() { "core" } else { &self.group }, self.plural)
    }

    /// Start of the keys of this kind in one namespace, or in all of them.
    pub fn prefix_in(&self, namespace: Option<&str>) -> String {
        match namespace {
            Some(namespace) if self.namespaced => format!("{}{}/", self.prefix(), namespace),
            _ => self.prefix(),
        }
    }

    pub fn verbs(&self) -> &'static [&'static str] {
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
    }

    /// Value of a selectable field; every kind has name and namespace.
    pub fn field_value(&self, object: &Value, field: &str) -> Option<String> {
        match field {
            "metadata.name" => Some(text(object, "/metadata/name").to_string()),
            "metadata.namespace" => Some(text(object, "/metadata/namespace").to_string()),
            _ if self.selectable.iter().any(|it| it == field) => {
                let pointer = format!("/{}", field.replace('.', "/"));
                Some(match object.pointer(&pointer) {
                    Some(Value::String(text)) => text.clone(),
                    None | Some(Value::Null) => String::new(),
                    Some(other) => other.to_string(),
                })
            }
            _ => (self.field)(object, field),
        }
    }

    pub fn is_pod(&self) -> bool {
        self.group.is_empty() && self.plural == "pods"
    }

    pub fn is_namespace(&self) -> bool {
        self.group.is_empty() && self.plural == "namespaces"
    }

    pub fn is_crd(&self) -> bool {
        self.group == "apiextensions.k8s.io" && self.plural == "customresourcedefinitions"
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.plural)
    }
}

/// A storage key taken apart: group (`core` for the unnamed), plural, namespace, name.
pub fn parse_key(key: &str) -> Option<(&str, &str, &str, &str)> {
    let mut parts = key.splitn(4, '/');
    Some((parts.next()?, parts.next()?, parts.next()?, parts.next()?))
}

/// The string at a JSON pointer, or an empty one.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The integer at a JSON pointer, or 0.
pub fn int(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// The list at a JSON pointer, or an empty one.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|it| !it.is_null())
}

/// The condition of that type in `status.conditions`.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, "/status/conditions").iter().find(|it| it["type"] == kind)
}

pub fn condition_is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|it| it["status"] == "True")
}

/// The reference to the controller that owns the object.
pub fn controller_of(object: &Value) -> Option<&Value> {
    list(object, "/metadata/ownerReferences").iter().find(|it| it["controller"] == true)
}
