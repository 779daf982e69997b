//! Which lists are sets or maps in disguise: by a table for the built-in kinds, by the schema for
//! declared ones. Everything that is not named is an atomic list and a granular map.

use serde_json::Value;

/// A place in the shape of an object. Cheap to move down.
#[derive(Clone)]
pub struct Shape<'a> {
    kind: &'a str,
    schema: Option<&'a Value>,
    /// Field names from the root, list positions left out.
    path: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListType {
    /// Items are told apart by these fields.
    Map(Vec<String>),
    Set,
    Atomic,
}

const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

impl<'a> Shape<'a> {
    pub fn built_in(kind: &'a str) -> Shape<'a> {
        Shape { kind, schema: None, path: Vec::new() }
    }

    pub fn declared(kind: &'a str, schema: &'a Value) -> Shape<'a> {
        Shape { kind, schema: Some(schema), path: Vec::new() }
    }

    pub(crate) fn field(&self, name: &str) -> Shape<'a> {
        let mut path = self.path.clone();
        path.push(name.to_string());
        let schema = self.schema.map(|it| match &it["properties"][name] {
            Value::Null => &it["additionalProperties"],
            property => property,
        });
        Shape { kind: self.kind, schema, path }
    }

    pub(crate) fn items(&self) -> Shape<'a> {
        Shape { kind: self.kind, schema: self.schema.map(|it| &it["items"]), path: self.path.clone() }
    }

    pub(crate) fn path(&self) -> String {
        self.path.join(".")
    }

    fn is_metadata(&self) -> bool {
        self.path.first().is_some_and(|it| it == "metadata")
    }

    /// How server-side apply sees the list here.
    pub(crate) fn list_type(&self) -> ListType {
        if let Some(schema) = self.schema.filter(|_| !self.is_metadata()) {
            let keys = || {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                keys.filter_map(|it| it.as_str().map(String::from)).collect()
            };
            return match schema["x-kubernetes-list-type"].as_str() {
                Some("map") => ListType::Map(keys()),
                Some("set") => ListType::Set,
                _ => ListType::Atomic,
            };
        }
        let map = |keys: &[&str]| ListType::Map(keys.iter().map(|it| it.to_string()).collect());
        match self.last() {
            "finalizers" => ListType::Set,
            "ports" => match self.parent() {
                parent if CONTAINERS.contains(&parent) => map(&["containerPort", "protocol"]),
                "spec" if self.kind == "Service" => map(&["port", "protocol"]),
                _ => ListType::Atomic,
            },
            "topologySpreadConstraints" => map(&["topologyKey", "whenUnsatisfiable"]),
            // Core kinds merge tolerations and taints as a whole.
            _ => match self.merge_key() {
                Some(key) if key != "key" && key != "topologyKey" => map(&[key]),
                _ => ListType::Atomic,
            },
        }
    }

    /// The one field by which a strategic merge patch tells items apart.
    pub(crate) fn merge_key(&self) -> Option<&'static str> {
        match self.last() {
            field if CONTAINERS.contains(&field) => Some("name"),
            "env" | "volumes" | "imagePullSecrets" | "listeners" | "resourceClaims" => Some("name"),
            "secrets" if self.kind == "ServiceAccount" => Some("name"),
            "ports" if CONTAINERS.contains(&self.parent()) => Some("containerPort"),
            "ports" if self.kind == "Service" => Some("port"),
            "volumeMounts" => Some("mountPath"),
            "volumeDevices" => Some("devicePath"),
            "hostAliases" | "podIPs" => Some("ip"),
            "topologySpreadConstraints" => Some("topologyKey"),
            "conditions" if self.parent() == "status" => Some("type"),
            "addresses" if self.kind == "Node" => Some("type"),
            "taints" if self.kind == "Node" => Some("key"),
            "ownerReferences" => Some("uid"),
            _ => None,
        }
    }

    /// Whether a strategic merge patch adds to the list of plain values here.
    pub(crate) fn merges_plain_values(&self) -> bool {
        self.last() == "finalizers"
    }

    /// Whether the map here has one owner as a whole.
    pub(crate) fn map_is_atomic(&self) -> bool {
        if let Some(schema) = self.schema.filter(|_| !self.is_metadata()) {
            return schema["x-kubernetes-map-type"] == "atomic";
        }
        matches!(
            self.last(),
            "selector"
                | "labelSelector"
                | "nodeSelector"
                | "fieldRef"
                | "resourceFieldRef"
                | "configMapKeyRef"
                | "secretKeyRef"
        )
    }

    /// Key fields that a client may leave out, because they have a default.
    pub(crate) fn key_default(&self, key: &str) -> Option<Value> {
        match (key, self.schema) {
            (_, Some(schema)) => {
                Some(schema["properties"][key]["default"].clone()).filter(|it| !it.is_null())
            }
            ("protocol", None) => Some(Value::from("TCP")),
            _ => None,
        }
    }

    fn last(&self) -> &str {
        self.path.last().map_or("", String::as_str)
    }

    fn parent(&self) -> &str {
        self.path.len().checked_sub(2).map_or("", |at| self.path[at].as_str())
    }
}
