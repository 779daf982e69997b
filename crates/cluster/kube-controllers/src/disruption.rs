//! PodDisruptionBudget: how many of its pods may be taken out right now.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{controller_of, int, is_deleting, name, namespace, parse_key, text, time};
use serde_json::{Value, json};

use crate::action::{Plan, kind};
use crate::amount::{Round, amount};
use crate::conditions::{self, Condition};
use crate::harness::{Controller, Touched, View};
use crate::pods;

/// An eviction that was allowed but did not happen blocks the budget no longer than this.
const EVICTION_SECONDS_MAX: i64 = 120;

pub struct DisruptionBudgets;

impl Controller for DisruptionBudgets {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        if change.is("policy/poddisruptionbudgets/") {
            return vec![change.key.to_string()];
        }
        let scaled =
            ["apps/replicasets/", "apps/deployments/", "apps/statefulsets/", "core/replicationcontrollers/"];
        if !change.is("core/pods/") && !scaled.iter().any(|it| change.is(it)) {
            return Vec::new();
        }
        let budgets = kind("policy", "PodDisruptionBudget");
        let place = namespace(change.object);
        let states = [Some(change.object), change.previous];
        view.objects
            .list(&budgets, Some(place), &LabelSelector::default())
            .iter()
            .filter(|it| !change.is("core/pods/") || states.iter().flatten().any(|pod| selects(it, pod)))
            .map(|it| budgets.key(place, name(it)))
            .collect()
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(budget) = view.objects.find(&kind("policy", "PodDisruptionBudget"), place, name) else {
            return Plan::default();
        };
        let pods = view.objects.list(&kind("", "Pod"), Some(place), &LabelSelector::default());
        let find = |group: &str, of: &str, name: &str| {
            kube_kinds::table::of(group, of).and_then(|it| view.objects.find(it, place, name))
        };
        reconcile(&budget, &pods, &find, now)
    }
}

/// An empty selector selects all, none selects nothing.
fn selects(budget: &Value, pod: &Value) -> bool {
    budget["spec"]["selector"].is_object()
        && LabelSelector::from_object(&budget["spec"]["selector"]).is_some_and(|it| it.matches(pod))
}

/// How many pods there should be: what their controllers ask for, not what happens to be there.
fn expected(pods: &[&Arc<Value>], find: &dyn Fn(&str, &str, &str) -> Option<Arc<Value>>) -> Option<i64> {
    let mut by_owner: BTreeMap<String, i64> = BTreeMap::new();
    for pod in pods {
        let owner = controller_of(pod)?;
        let group =
            |owner: &Value| text(owner, "/apiVersion").split_once('/').map_or("", |it| it.0).to_string();
        let mut found = find(&group(owner), text(owner, "/kind"), text(owner, "/name"))?;
        if let Some(above) = controller_of(&found).filter(|it| it["kind"] == "Deployment") {
            found = find("apps", "Deployment", text(above, "/name"))?;
        }
        found["spec"]["replicas"].as_i64()?;
        by_owner.insert(kube_kinds::uid(&found).to_string(), int(&found, "/spec/replicas"));
    }
    Some(by_owner.values().sum())
}

/// `pods` are all of the namespace; `find` looks an object of the namespace up by group, kind and name.
pub fn reconcile(
    budget: &Arc<Value>,
    pods: &[Arc<Value>],
    find: &dyn Fn(&str, &str, &str) -> Option<Arc<Value>>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mine: Vec<&Arc<Value>> =
        pods.iter().filter(|it| selects(budget, it) && !pods::is_finished(it)).collect();
    let mut disrupted = serde_json::Map::new();
    for (pod, since) in budget["status"]["disruptedPods"].as_object().into_iter().flatten() {
        let still = mine.iter().any(|it| name(it) == pod && !is_deleting(it));
        let age = time::seconds_since(since, now).unwrap_or(i64::MAX);
        if still && age < EVICTION_SECONDS_MAX {
            plan.again_in(EVICTION_SECONDS_MAX - age);
            disrupted.insert(pod.clone(), since.clone());
        }
    }
    let healthy = mine
        .iter()
        .filter(|it| pods::is_ready(it) && !is_deleting(it) && !disrupted.contains_key(name(it)))
        .count() as i64;
    let spec = &budget["spec"];
    let counts = if !spec["maxUnavailable"].is_null() {
        expected(&mine, find).map(|it| (it, (it - amount(&spec["maxUnavailable"], it, Round::Up)).max(0)))
    } else if spec["minAvailable"].is_string() {
        expected(&mine, find).map(|it| (it, amount(&spec["minAvailable"], it, Round::Up)))
    } else {
        Some((mine.len() as i64, spec["minAvailable"].as_i64().unwrap_or(1)))
    };
    let (expected, desired) = counts.unwrap_or((0, 0));
    let allowed = if counts.is_some() && expected > 0 { (healthy - desired).max(0) } else { 0 };
    let mut conditions = conditions::all(budget);
    let (status, reason) = match (counts, allowed) {
        (None, _) => ("False", "SyncFailed"),
        (_, 0) => ("False", "InsufficientPods"),
        _ => ("True", "SufficientPods"),
    };
    let message = match counts {
        None => "the pods have no controller whose size is known",
        Some(_) => "",
    };
    conditions::set(&mut conditions, Condition { kind: "DisruptionAllowed", status, reason, message }, now);
    let generation = &budget["metadata"]["generation"];
    for it in conditions.iter_mut().filter(|it| it["type"] == "DisruptionAllowed") {
        it["observedGeneration"] = generation.clone();
        if it["message"].is_null() {
            it["message"] = json!("");
        }
    }
    let mut status = json!({
        "observedGeneration": generation, "expectedPods": expected, "currentHealthy": healthy,
        "desiredHealthy": desired, "disruptionsAllowed": allowed, "conditions": conditions,
    });
    if !disrupted.is_empty() {
        status["disruptedPods"] = Value::Object(disrupted);
    }
    plan.status(&kind("policy", "PodDisruptionBudget"), budget, status);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Action;

    #[track_caller]
    fn check(spec: Value, ready: usize, expected: (i64, i64, i64)) {
        let mut budget =
            json!({"metadata": {"name": "b", "namespace": "default", "generation": 1}, "spec": spec});
        budget["spec"]["selector"] = json!({"matchLabels": {"app": "web"}});
        let pods: Vec<Arc<Value>> = (0..4)
            .map(|at| {
                let status = if at < ready { "True" } else { "False" };
                Arc::new(json!({"metadata": {"name": format!("p{at}"), "labels": {"app": "web"}, "ownerReferences": [
                        {"controller": true, "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web"}]},
                    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}}))
            })
            .collect();
        let set = Arc::new(json!({"metadata": {"uid": "s"}, "spec": {"replicas": 4}}));
        let now = "2026-01-01T00:00:00Z".parse().expect("a time");
        let plan = reconcile(&Arc::new(budget), &pods, &|_, _, _| Some(set.clone()), now);
        let Some(Action::Status { status, .. }) = plan.actions.last() else { panic!("a status") };
        let seen = |field: &str| int(status, &format!("/{field}"));
        assert_eq!((seen("expectedPods"), seen("desiredHealthy"), seen("disruptionsAllowed")), expected);
    }

    #[test]
    fn what_may_go_is_what_is_more_than_needed() {
        check(json!({"minAvailable": 3}), 4, (4, 3, 1));
        check(json!({"minAvailable": 3}), 2, (4, 3, 0));
        check(json!({"minAvailable": "50%"}), 4, (4, 2, 2));
        check(json!({"maxUnavailable": 1}), 4, (4, 3, 1));
        check(json!({"maxUnavailable": "25%"}), 3, (4, 3, 0));
    }
}
