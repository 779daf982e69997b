//! What every namespace has from its first moment: the ServiceAccount `default` and the certificate by
//! which its pods know the API.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::{is_deleting, name, namespace};
use serde_json::{Value, json};

use crate::action::{Plan, kind};
use crate::harness::{Controller, Touched, View};

const ROOT_CA: &str = "kube-root-ca.crt";

pub struct ServiceAccounts {
    /// PEM; without it no ConfigMap is made.
    pub cluster_ca: Option<String>,
}

impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn concerns(&self, change: &Touched<'_>, _: &View<'_>) -> Vec<String> {
        if change.is("core/namespaces/") {
            return vec![change.key.to_string()];
        }
        let ours = (change.is("core/serviceaccounts/") && name(change.object) == "default")
            || (change.is("core/configmaps/") && name(change.object) == ROOT_CA);
        match ours {
            true => vec![kind("", "Namespace").key("", namespace(change.object))],
            false => Vec::new(),
        }
    }

    fn plan(&self, key: &str, view: &View<'_>, _: Timestamp) -> Plan {
        let Some(entry) = view.objects.store().get(key) else { return Plan::default() };
        let place = name(&entry.value);
        let account = view.objects.find(&kind("", "ServiceAccount"), place, "default");
        let map = view.objects.find(&kind("", "ConfigMap"), place, ROOT_CA);
        reconcile(&entry.value, account.as_deref(), map.as_ref(), self.cluster_ca.as_deref())
    }
}

fn reconcile(place: &Value, account: Option<&Value>, map: Option<&Arc<Value>>, ca: Option<&str>) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(place) {
        return plan;
    }
    if account.is_none() {
        plan.create(&kind("", "ServiceAccount"), name(place), json!({"metadata": {"name": "default"}}));
    }
    let Some(ca) = ca else { return plan };
    let data = json!({"ca.crt": ca});
    match map {
        None => {
            let why = "Contains a CA bundle that can be used to verify the kube-apiserver.";
            let metadata = json!({"name": ROOT_CA, "annotations": {"kubernetes.io/description": why}});
            plan.create(&kind("", "ConfigMap"), name(place), json!({"metadata": metadata, "data": data}));
        }
        Some(map) if map["data"] != data => {
            // What is not ours in it goes too: it is trusted.
            let mut patch = data;
            for key in map["data"].as_object().into_iter().flatten().map(|it| it.0) {
                if key != "ca.crt" {
                    patch[key] = Value::Null;
                }
            }
            plan.change(&kind("", "ConfigMap"), map, json!({"data": patch}));
        }
        Some(_) => {}
    }
    plan
}
