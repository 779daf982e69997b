//! Volumes that live as long as their pod: each gets a claim of its own, which the pod owns.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::{is_deleting, list, name, namespace, parse_key, text};
use serde_json::{Value, json};

use crate::action::{Plan, controller_reference, kind};
use crate::harness::{Controller, Touched, View};
use crate::pods;

pub struct EphemeralVolumes;

impl Controller for EphemeralVolumes {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    fn concerns(&self, change: &Touched<'_>, _: &View<'_>) -> Vec<String> {
        let asks = || list(change.object, "/spec/volumes").iter().any(|it| it["ephemeral"].is_object());
        match change.is("core/pods/") && !change.deleted && asks() {
            true => vec![change.key.to_string()],
            false => Vec::new(),
        }
    }

    fn plan(&self, key: &str, view: &View<'_>, _: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(pod) = view.objects.find(&kind("", "Pod"), place, name) else { return Plan::default() };
        let claims = kind("", "PersistentVolumeClaim");
        reconcile(&pod, |claim| view.objects.find(&claims, place, claim).is_some())
    }
}

fn reconcile(pod: &Arc<Value>, exists: impl Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::default();
    if is_deleting(pod) || pods::is_finished(pod) {
        return plan;
    }
    for volume in list(pod, "/spec/volumes").iter().filter(|it| it["ephemeral"].is_object()) {
        let template = &volume["ephemeral"]["volumeClaimTemplate"];
        let claim = format!("{}-{}", name(pod), text(volume, "/name"));
        if exists(&claim) {
            continue;
        }
        let mut metadata = json!({"name": claim, "ownerReferences": [controller_reference(pod)]});
        for field in ["labels", "annotations"] {
            if template["metadata"][field].is_object() {
                metadata[field] = template["metadata"][field].clone();
            }
        }
        let object = json!({"metadata": metadata, "spec": template["spec"]});
        plan.create(&kind("", "PersistentVolumeClaim"), namespace(pod), object);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;

    #[test]
    fn a_pod_owns_the_claims_of_its_own_volumes() {
        let pod = Arc::new(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a", "uid": "u"},
            "spec": {"volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}},
                {"name": "other", "emptyDir": {}}]}}),
        );
        let plan = reconcile(&pod, |_| false);
        let [Action::Create { object, .. }] = &plan.actions[..] else { panic!("{plan:?}") };
        assert_eq!((name(object), text(object, "/metadata/ownerReferences/0/uid")), ("p-scratch", "u"));
        assert!(reconcile(&pod, |_| true).actions.is_empty());
    }
}
