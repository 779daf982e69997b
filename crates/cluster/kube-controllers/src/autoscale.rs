//! HorizontalPodAutoscaler: as many replicas as keep the use of cpu and memory at its target.
//!
//! The figures come from whoever measures ([`Usage`]); the arithmetic is Kubernetes' own: a ratio with a
//! tolerance, pods that are not ready or have no figures counted against any change, the largest wish of
//! all metrics, then the stabilization windows and the limits of speed in `spec.behavior`.

mod figures;
mod speed;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{condition_is_true, int, is_deleting, name, namespace, parse_key, text, time, uid};
use kube_objects::EventType;
use serde_json::{Value, json};

use crate::action::{Action, Plan, kind};
use crate::conditions::{self, Condition};
use crate::harness::{Controller, Touched, View};
use figures::Wish;
use speed::Past;

/// How often the figures are looked at.
const PERIOD_SECONDS: i64 = 15;

/// What one container uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
}

/// Whoever knows what pods use. Answers at once, from what was measured last.
pub trait Usage: Send + Sync {
    /// By container; `None` when nothing is known of the pod.
    fn of_pod(&self, namespace: &str, pod: &str) -> Option<Vec<(String, Used)>>;
}

pub struct Autoscalers {
    pub usage: Option<Arc<dyn Usage>>,
    /// Recommendations and changes by autoscaler: after a restart the windows begin anew.
    pub past: Mutex<HashMap<String, Past>>,
}

impl Controller for Autoscalers {
    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    fn concerns(&self, change: &Touched<'_>, _: &View<'_>) -> Vec<String> {
        let own = change.is("autoscaling/horizontalpodautoscalers/");
        if own && change.deleted {
            self.past.lock().expect("no code panics while it holds this lock").remove(change.key);
        }
        let is_news = change.previous.is_none_or(|it| it["spec"] != change.object["spec"]);
        if own && is_news { vec![change.key.to_string()] } else { Vec::new() }
    }

    fn plan(&self, key: &str, view: &View<'_>, now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some((_, _, place, name)) = parse_key(key) else { return plan };
        let kinds = kind("autoscaling", "HorizontalPodAutoscaler");
        let Some(scaler) = view.objects.find(&kinds, place, name).filter(|it| !is_deleting(it)) else {
            return plan;
        };
        plan.again_in(PERIOD_SECONDS);
        let mut past = self.past.lock().expect("no code panics while it holds this lock");
        let past = past.entry(key.to_string()).or_default();
        let round = Round { scaler: &scaler, now, conditions: conditions::all(&scaler) };
        round.run(&mut plan, view, self.usage.as_deref(), past);
        plan
    }
}

struct Round<'a> {
    scaler: &'a Arc<Value>,
    now: Timestamp,
    conditions: Vec<Value>,
}

impl Round<'_> {
    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        conditions::set(&mut self.conditions, Condition { kind, status, reason, message }, self.now);
    }

    fn warn(&self, plan: &mut Plan, reason: &'static str, message: String) {
        let event_type = EventType::Warning;
        plan.push(Action::Event { about: self.scaler.clone(), event_type, reason, message });
    }

    fn run(mut self, plan: &mut Plan, view: &View<'_>, usage: Option<&dyn Usage>, past: &mut Past) {
        let place = namespace(self.scaler).to_string();
        let reference = &self.scaler["spec"]["scaleTargetRef"];
        let kind = view.registry.of(text(reference, "/apiVersion"), text(reference, "/kind"));
        let target = kind.as_ref().and_then(|it| view.objects.find(it, &place, text(reference, "/name")));
        let scale = kind.as_ref().and_then(|it| it.scale.clone());
        let (Some(kind), Some(target), Some(scale)) = (kind, target, scale) else {
            let message = format!(
                "the HPA controller was unable to get the target's current scale: {} {:?} not found",
                text(reference, "/kind"),
                text(reference, "/name")
            );
            self.set("AbleToScale", "False", "FailedGetScale", &message);
            self.warn(plan, "FailedGetScale", message);
            let before = int(self.scaler, "/status/desiredReplicas");
            return self.write(plan, before, None, Vec::new());
        };
        let message = "the HPA controller was able to get the target's current scale";
        self.set("AbleToScale", "True", "SucceededGetScale", message);
        let current = target.pointer(&scale.spec_replicas).and_then(Value::as_i64).unwrap_or(1);
        if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            self.set("ScalingActive", "False", "ScalingDisabled", message);
            return self.write(plan, 0, Some(0), Vec::new());
        }
        let min = self.scaler["spec"]["minReplicas"].as_i64().unwrap_or(1);
        let max = int(self.scaler, "/spec/maxReplicas").max(min);
        let selector =
            scale.selector.as_deref().and_then(|it| target.pointer(it)).map(|it| match it.as_str() {
                Some(text) => LabelSelector::parse(text).unwrap_or_default(),
                None => LabelSelector::from_object(it).unwrap_or_default(),
            });
        let pods = match selector.filter(|it| !it.is_empty()) {
            Some(selector) => view.objects.list(&crate::action::kind("", "Pod"), Some(&place), &selector),
            None => Vec::new(),
        };
        let wish = figures::wish(self.scaler, &pods, current, usage, self.now);
        let (desired, reason) = match wish {
            Ok(Wish { replicas, reason, metrics }) => {
                let message =
                    format!("the HPA was able to successfully calculate a replica count from {reason}");
                self.set("ScalingActive", "True", "ValidMetricFound", &message);
                let desired = self.bounded(replicas, current, min, max, past);
                (desired, Ok((reason, metrics)))
            }
            Err(why) => {
                let message = format!("the HPA was unable to compute the replica count: {why}");
                self.set("ScalingActive", "False", "FailedGetResourceMetric", &message);
                self.warn(plan, "FailedGetResourceMetric", why);
                // Without figures only the bounds are kept.
                (current.clamp(min, max), Err(()))
            }
        };
        if desired != current {
            let mut patch = json!({});
            set_at(&mut patch, &scale.spec_replicas, desired);
            plan.change(&kind, &target, patch);
            let below = if desired > current { "above" } else { "below" };
            let why = match &reason {
                Ok((reason, _)) if desired > min || desired > current => format!("{reason} {below} target"),
                Ok(_) => "All metrics below target".to_string(),
                Err(()) if current > max => "Current number of replicas above Spec.MaxReplicas".to_string(),
                Err(()) => "Current number of replicas below Spec.MinReplicas".to_string(),
            };
            plan.normal(self.scaler, "SuccessfulRescale", format!("New size: {desired}; reason: {why}"));
            let message = format!("the HPA controller was able to update the target scale to {desired}");
            self.set("AbleToScale", "True", "SucceededRescale", &message);
            past.changed(current, desired, self.now);
        }
        let metrics = reason.map(|it| it.1).unwrap_or_default();
        self.write(plan, desired, Some(current), metrics);
    }

    /// Within the windows, the speeds and the bounds, with the conditions that say which of them held.
    fn bounded(&mut self, wish: i64, current: i64, min: i64, max: i64, past: &mut Past) -> i64 {
        let behavior = &self.scaler["spec"]["behavior"];
        let stabilized = past.stabilized(wish, behavior, current, self.now);
        if stabilized != wish {
            let (reason, message) = match stabilized > wish {
                true => (
                    "ScaleDownStabilized",
                    "recent recommendations were higher than current one, applying the highest recent recommendation",
                ),
                false => (
                    "ScaleUpStabilized",
                    "recent recommendations were lower than current one, applying the lowest recent recommendation",
                ),
            };
            self.set("AbleToScale", "True", reason, message);
        } else {
            let message = "recommended size matches current size";
            self.set("AbleToScale", "True", "ReadyForNewScale", message);
        }
        let paced = past.paced(stabilized, behavior, current, self.now);
        let bounded = paced.clamp(min, max);
        let (status, reason, message) = if bounded < paced {
            ("True", "TooManyReplicas", "the desired replica count is more than the maximum replica count")
        } else if bounded > paced {
            ("True", "TooFewReplicas", "the desired replica count is less than the minimum replica count")
        } else if paced > stabilized {
            (
                "True",
                "ScaleDownLimit",
                "the desired replica count is decreasing faster than the maximum scale rate",
            )
        } else if paced < stabilized {
            (
                "True",
                "ScaleUpLimit",
                "the desired replica count is increasing faster than the maximum scale rate",
            )
        } else {
            ("False", "DesiredWithinRange", "the desired count is within the acceptable range")
        };
        self.set("ScalingLimited", status, reason, message);
        bounded
    }

    fn write(self, plan: &mut Plan, desired: i64, current: Option<i64>, metrics: Vec<Value>) {
        let mut status = self.scaler["status"].as_object().cloned().unwrap_or_default();
        if self.scaler["metadata"]["generation"].is_i64() {
            status.insert("observedGeneration".into(), self.scaler["metadata"]["generation"].clone());
        }
        status.insert("desiredReplicas".into(), json!(desired));
        if let Some(current) = current {
            status.insert("currentReplicas".into(), json!(current));
            if current != desired {
                status.insert("lastScaleTime".into(), json!(time::format(self.now)));
            }
        }
        match metrics.is_empty() {
            true => status.insert("currentMetrics".into(), Value::Null),
            false => status.insert("currentMetrics".into(), json!(metrics)),
        };
        status.insert("conditions".into(), json!(self.conditions));
        plan.status(&kind("autoscaling", "HorizontalPodAutoscaler"), self.scaler, Value::Object(status));
    }
}

/// Sets the number at a JSON pointer, making the objects on the way.
fn set_at(patch: &mut Value, pointer: &str, number: i64) {
    let mut at = patch;
    for part in pointer.trim_start_matches('/').split('/') {
        at = &mut at[part];
    }
    *at = json!(number);
}

/// A pod that counts: not on its way out, not failed.
fn counts(pod: &Value) -> bool {
    !is_deleting(pod) && text(pod, "/status/phase") != "Failed" && !uid(pod).is_empty()
}

fn is_ready(pod: &Value) -> bool {
    condition_is_true(pod, "Ready") && !name(pod).is_empty()
}
