//! What happens to an object between a client's wish and the store, beyond its own rules: decisions
//! that look at other objects.
//!
//! What several writers share (addresses, quotas) is decided and written under one lock, so that it
//! is never given twice.

mod definitions;
mod pods;
mod policies;
mod quotas;
mod security;
mod services;

use std::sync::Arc;

use kube_kinds::selector::LabelSelector;
use kube_kinds::{Failure, Kind, name, table, text};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{Objects, Writer};

/// The class that claims without one get.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_INGRESS_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";

/// Held from the decision to the write.
#[derive(Default)]
pub(crate) struct Held {
    _locks: Vec<OwnedMutexGuard<()>>,
}

/// One lock for each thing that is shared out.
#[derive(Default)]
pub(crate) struct Locks {
    services: Arc<Mutex<()>>,
    definitions: Arc<Mutex<()>>,
    quotas: Arc<Mutex<()>>,
}

fn is(kind: &Kind, group: &str, plural: &str) -> bool {
    kind.group == group && kind.plural == plural
}

impl Objects {
    /// What a new object gets from its surroundings.
    pub(crate) fn furnish(&self, kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), Failure> {
        if kind.is_pod() {
            pods::complete(self, namespace, object)?;
        } else if is(kind, "", "persistentvolumeclaims") && object["spec"]["storageClassName"].is_null() {
            let class = self.default_of("storage.k8s.io", "StorageClass", DEFAULT_CLASS);
            if let (Some(class), Some(spec)) = (class, object.get_mut("spec").and_then(Value::as_object_mut))
            {
                spec.insert("storageClassName".into(), json!(class));
            }
        } else if is(kind, "networking.k8s.io", "ingresses")
            && object["spec"]["ingressClassName"].is_null()
            && object["metadata"]["annotations"]["kubernetes.io/ingress.class"].is_null()
        {
            let class = self.default_of("networking.k8s.io", "IngressClass", DEFAULT_INGRESS_CLASS);
            if let (Some(class), Some(spec)) = (class, object.get_mut("spec").and_then(Value::as_object_mut))
            {
                spec.insert("ingressClassName".into(), json!(class));
            }
        }
        Ok(())
    }

    /// What users' own policies say about a write.
    pub(crate) fn ask_policies(
        &self,
        word: &'static str,
        kind: &Kind,
        subresource: &str,
        old: Option<&Value>,
        new: Option<&Value>,
        writer: &Writer,
    ) -> Result<(), Failure> {
        policies::check(self, &policies::Operation { word, kind, subresource, old, new }, writer)
    }

    /// The newest class that says it is the default.
    fn default_of(&self, group: &str, kind: &str, annotation: &str) -> Option<String> {
        let classes = table::of(group, kind).expect("classes are built in");
        let all = self.list(classes, None, &LabelSelector::default());
        let defaults = all.iter().filter(|it| it["metadata"]["annotations"][annotation] == "true");
        defaults
            .max_by_key(|it| text(it, "/metadata/creationTimestamp").to_string())
            .map(|it| name(it).to_string())
    }

    /// The last decisions before the write. `new` is valid by itself.
    pub(crate) async fn settle(
        &self,
        kind: &Kind,
        old: Option<&Value>,
        new: &mut Value,
        writer: &Writer,
    ) -> Result<Held, Failure> {
        let word = if old.is_some() { "UPDATE" } else { "CREATE" };
        self.ask_policies(word, kind, "", old, Some(new), writer)?;
        let mut held = Held::default();
        let place = kube_kinds::namespace(new).to_string();
        if kind.namespaced {
            let changed = old.is_none_or(|it| it["spec"] != new["spec"]);
            if kind.is_pod() && old.is_none() {
                let wrong = pods::outside_limits(self, &place, new);
                if !wrong.is_empty() {
                    let why =
                        if wrong.len() == 1 { wrong[0].clone() } else { format!("[{}]", wrong.join(", ")) };
                    return Err(Failure::forbidden(kind, name(new), &why));
                }
            }
            let namespaces = table::of("", "Namespace").expect("the table of kinds has namespaces");
            if changed && let Some(namespace) = self.find(namespaces, "", &place) {
                security::check(&namespace, kind, new, writer)?;
            }
        }
        if is(kind, "", "services") {
            held._locks.push(self.locks.services.clone().lock_owned().await);
            services::allocate(self, kind, old, new)?;
        }
        if kind.is_crd() {
            held._locks.push(self.locks.definitions.clone().lock_owned().await);
            definitions::check_names(self, kind, old, new);
        }
        let quotas = if kind.namespaced { quotas::of_namespace(self, &place) } else { Vec::new() };
        if !quotas.is_empty() {
            held._locks.push(self.locks.quotas.clone().lock_owned().await);
            quotas::check(self, &quotas, kind, old, new)?;
        }
        Ok(held)
    }
}
