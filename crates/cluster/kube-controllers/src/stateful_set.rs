//! StatefulSet: pods with names that stay, each with its own storage, one after the other.
//!
//! Pods are made from the first to the last and given up from the last to the first; the next step waits
//! until all before it serve (`Parallel` does not wait). Storage and identity of one pod are in
//! `stateful_set/identity.rs`.

mod identity;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{int, is_deleting, name, namespace, parse_key, text};
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::amount::{Round, amount};
use crate::harness::{Controller, Touched, View};
use crate::history::{self, HASH, History};
use crate::{adoption, conditions, pods};

pub struct StatefulSets;

impl Controller for StatefulSets {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn concerns(&self, change: &Touched<'_>, view: &View<'_>) -> Vec<String> {
        if change.is("apps/statefulsets/") {
            return vec![change.key.to_string()];
        }
        if change.is("core/pods/") || change.is("apps/controllerrevisions/") {
            return adoption::owners_touched(view, &kind("apps", "StatefulSet"), change);
        }
        Vec::new()
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let Some((_, _, place, name)) = parse_key(key) else { return Plan::default() };
        let Some(set) = view.objects.find(&kind("apps", "StatefulSet"), place, name) else {
            return Plan::default();
        };
        let everything = LabelSelector::default();
        let pods = view.objects.list(&kind("", "Pod"), Some(place), &everything);
        let claims = match set["spec"]["volumeClaimTemplates"].is_array() {
            true => view.objects.list(&kind("", "PersistentVolumeClaim"), Some(place), &everything),
            false => Vec::new(),
        };
        reconcile(&set, &pods, &claims, &history::list(view, place), now)
    }
}

/// What one round decides about.
struct Step<'a> {
    set: &'a Arc<Value>,
    history: &'a History,
    /// The revision that pods below the partition keep.
    current: String,
    claims: &'a [Arc<Value>],
    now: Timestamp,
    /// One after the other.
    ordered: bool,
    first: i64,
    replicas: i64,
}

/// `pods`, `claims` and `revisions` are all of the namespace.
pub fn reconcile(
    set: &Arc<Value>,
    pods: &[Arc<Value>],
    claims: &[Arc<Value>],
    revisions: &[Arc<Value>],
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let members: Vec<Arc<Value>> =
        pods.iter().filter(|it| identity::ordinal_of(set, it).is_some()).cloned().collect();
    let mut mine = adoption::claim(&mut plan, set, &adoption::selector_of(set), &kind("", "Pod"), &members);
    mine.sort_by_key(|it| identity::ordinal_of(set, it));
    let Some(history) = history::sync(&mut plan, set, revisions) else {
        let mut status = set["status"].clone();
        status["collisionCount"] = json!(int(set, "/status/collisionCount") + 1);
        plan.status(&kind("apps", "StatefulSet"), set, status);
        return plan;
    };
    let current = text(set, "/status/currentRevision");
    let current = match history.find(current) {
        Some(_) => current.to_string(),
        None => history.newest_name().to_string(),
    };
    let round = Step {
        set,
        history: &history,
        current,
        claims,
        now,
        ordered: set["spec"]["podManagementPolicy"] != "Parallel",
        first: int(set, "/spec/ordinals/start"),
        replicas: int(set, "/spec/replicas"),
    };
    if !is_deleting(set) {
        round.step(&mut plan, &mine);
        identity::own_claims(&mut plan, set, &mine, claims, round.first..round.first + round.replicas);
    }
    let status = round.status(&mine, &mut plan);
    let live = |revision: &Value| {
        name(revision) == text(&status, "/currentRevision")
            || mine.iter().any(|it| it["metadata"]["labels"][HASH] == name(revision))
    };
    history::prune(&mut plan, set, &history, live);
    plan.status(&kind("apps", "StatefulSet"), set, status);
    plan
}

impl Step<'_> {
    fn is_wanted(&self, ordinal: i64) -> bool {
        (self.first..self.first + self.replicas).contains(&ordinal)
    }

    fn partition(&self) -> i64 {
        self.first + int(self.set, "/spec/updateStrategy/rollingUpdate/partition")
    }

    fn revision_of<'a>(&self, pod: &'a Value) -> &'a str {
        pod["metadata"]["labels"][HASH].as_str().unwrap_or("")
    }

    /// Serves, for as long as `minReadySeconds` asks.
    fn is_available(&self, pod: &Value, plan: &mut Plan) -> bool {
        if text(pod, "/status/phase") != "Running" || is_deleting(pod) {
            return false;
        }
        match pods::availability(pod, int(self.set, "/spec/minReadySeconds"), self.now) {
            Ok(()) => true,
            Err(wait) => {
                if let Some(seconds) = wait {
                    plan.again_in(seconds);
                }
                false
            }
        }
    }

    fn step(&self, plan: &mut Plan, mine: &[Arc<Value>]) {
        let pod_at =
            |ordinal: i64| mine.iter().find(|it| identity::ordinal_of(self.set, it) == Some(ordinal));
        for ordinal in self.first..self.first + self.replicas {
            let Some(pod) = pod_at(ordinal) else {
                self.create(plan, ordinal);
                if self.ordered {
                    return;
                }
                continue;
            };
            if pods::is_finished(pod) && !is_deleting(pod) {
                // Ended for good, which a pod of a StatefulSet never may: a new one under the same name.
                let message =
                    format!("StatefulSet {} is recreating failed Pod {}", name(self.set), name(pod));
                plan.push(Action::Event {
                    about: self.set.clone(),
                    event_type: kube_objects::EventType::Warning,
                    reason: "RecreatingFailedPod",
                    message,
                });
                plan.delete(&kind("", "Pod"), pod);
                if self.ordered {
                    return;
                }
                continue;
            }
            if let Some(patch) = identity::repair(self.set, pod) {
                plan.change(&kind("", "Pod"), pod, patch);
            }
            if text(pod, "/status/phase") == "Pending" && !is_deleting(pod) {
                identity::create_claims(plan, self.set, ordinal, self.claims);
            }
            let serves = self.is_available(pod, plan);
            if self.ordered && !serves {
                return;
            }
        }
        let unhealthy = mine.iter().find(|it| !self.is_available(it, plan));
        let condemned: Vec<&Arc<Value>> = mine
            .iter()
            .rev()
            .filter(|it| identity::ordinal_of(self.set, it).is_some_and(|it| !self.is_wanted(it)))
            .collect();
        for pod in condemned {
            if is_deleting(pod) {
                if self.ordered {
                    return;
                }
                continue;
            }
            let others_suffer = unhealthy.is_some_and(|it| name(it) != name(pod));
            if self.ordered && others_suffer {
                return;
            }
            self.delete(plan, pod);
            if self.ordered {
                return;
            }
        }
        self.update(plan, mine);
    }

    /// The rolling update: from the last pod to the partition, never more unavailable ones than allowed.
    fn update(&self, plan: &mut Plan, mine: &[Arc<Value>]) {
        if self.set["spec"]["updateStrategy"]["type"] == "OnDelete" {
            return;
        }
        let limit = &self.set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
        let mut spare = match limit.is_null() {
            true => 1,
            false => amount(limit, self.replicas, Round::Up).max(1),
        };
        let wanted: Vec<&Arc<Value>> = mine
            .iter()
            .rev()
            .filter(|it| identity::ordinal_of(self.set, it).is_some_and(|it| self.is_wanted(it)))
            .collect();
        spare -= wanted.iter().filter(|it| !self.is_available(it, plan)).count() as i64;
        let outdated = wanted.iter().filter(|it| {
            identity::ordinal_of(self.set, it) >= Some(self.partition())
                && self.revision_of(it) != self.history.newest_name()
                && !is_deleting(it)
        });
        for pod in outdated {
            // One that does not serve is replaced for nothing.
            let serves = self.is_available(pod, plan);
            if serves && spare <= 0 {
                return;
            }
            self.delete(plan, pod);
            if serves {
                spare -= 1;
            }
            if limit.is_null() {
                return;
            }
        }
    }

    fn create(&self, plan: &mut Plan, ordinal: i64) {
        let on_delete = self.set["spec"]["updateStrategy"]["type"] == "OnDelete";
        let revision = match !on_delete && ordinal < self.partition() {
            true => &self.current,
            false => self.history.newest_name(),
        };
        let template = match self.history.find(revision) {
            Some(found) => history::template_of(found),
            None => self.set["spec"]["template"].clone(),
        };
        identity::create_claims(plan, self.set, ordinal, self.claims);
        let pod = identity::pod(self.set, &template, revision, ordinal);
        let pod_name = name(&pod).to_string();
        plan.create(&kind("", "Pod"), namespace(self.set), pod);
        let message = format!("create Pod {pod_name} in StatefulSet {} successful", name(self.set));
        plan.normal(self.set, "SuccessfulCreate", message);
    }

    fn delete(&self, plan: &mut Plan, pod: &Value) {
        plan.delete(&kind("", "Pod"), pod);
        let message = format!("delete Pod {} in StatefulSet {} successful", name(pod), name(self.set));
        plan.normal(self.set, "SuccessfulDelete", message);
    }

    fn status(&self, mine: &[Arc<Value>], plan: &mut Plan) -> Value {
        let running: Vec<&Arc<Value>> = mine.iter().filter(|it| !pods::is_finished(it)).collect();
        let count = |is: &dyn Fn(&Value) -> bool| running.iter().filter(|it| is(it)).count() as i64;
        let newest = self.history.newest_name();
        let replicas = running.len() as i64;
        let ready = count(&|it| text(it, "/status/phase") == "Running" && pods::is_ready(it));
        let updated = count(&|it| !is_deleting(it) && self.revision_of(it) == newest);
        let mut on_current = count(&|it| !is_deleting(it) && self.revision_of(it) == self.current);
        let available = running.iter().filter(|it| self.is_available(it, plan)).count() as i64;
        let mut current = self.current.clone();
        let rolling = self.set["spec"]["updateStrategy"]["type"] != "OnDelete";
        if rolling && updated == replicas && ready == replicas && replicas == self.replicas {
            current = newest.to_string();
            on_current = updated;
        }
        let mut status = json!({
            "observedGeneration": self.set["metadata"]["generation"],
            "replicas": replicas, "availableReplicas": available,
            "currentRevision": current, "updateRevision": newest,
            "collisionCount": int(self.set, "/status/collisionCount"),
        });
        for (field, count) in
            [("readyReplicas", ready), ("currentReplicas", on_current), ("updatedReplicas", updated)]
        {
            if count > 0 {
                status[field] = json!(count);
            }
        }
        let conditions = conditions::all(self.set);
        if !conditions.is_empty() {
            status["conditions"] = Value::Array(conditions);
        }
        status
    }
}
