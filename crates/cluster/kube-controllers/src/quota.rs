//! Quotas say what is used of them. The counting for refusals is done at each write; this is what
//! people and clients look at.

use std::collections::BTreeSet;

use jiff::Timestamp;
use kube_kinds::parse_key;
use kube_kinds::selector::LabelSelector;

use crate::action::{Plan, kind};
use crate::harness::{Controller, Touched, View};

pub struct Quotas;

impl Controller for Quotas {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        let quotas = kind("", "ResourceQuota");
        if change.is("core/events/") || change.is("coordination.k8s.io/") {
            return Vec::new();
        }
        let Some((_, _, place, _)) = parse_key(change.key).filter(|it| !it.2.is_empty()) else {
            return Vec::new();
        };
        let all = view.objects.list(&quotas, Some(place), &LabelSelector::default());
        let keys: BTreeSet<String> = all.iter().map(|it| quotas.key(place, kube_kinds::name(it))).collect();
        keys.into_iter().collect()
    }

    fn plan(&self, key: &str, view: &View<'_>, _: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(entry) = view.objects.store().get(key) else { return plan };
        let status = view.objects.quota_status(&entry.value, view.registry);
        if entry.value["status"] != status {
            plan.status(&kind("", "ResourceQuota"), &entry.value, status);
        }
        plan
    }
}
