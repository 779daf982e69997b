//! From figures to a number of replicas.

use std::sync::Arc;

use jiff::Timestamp;
use kube_kinds::quantity::parse_milli;
use kube_kinds::{int, list, name, namespace, text, time};
use serde_json::{Value, json};

use super::{Usage, Used, counts, is_ready};

/// A ratio this near to one is no reason to change anything.
const TOLERANCE: f64 = 0.1;
/// A young pod that is not ready has figures of its start, which say nothing.
const YOUNG_SECONDS: i64 = 300;

pub struct Wish {
    pub replicas: i64,
    /// `cpu resource utilization (percentage of request)`.
    pub reason: String,
    /// For `status.currentMetrics`.
    pub metrics: Vec<Value>,
}

/// The largest wish of all metrics. When one cannot be had, the others may only add.
pub fn wish(
    scaler: &Value,
    pods: &[Arc<Value>],
    current: i64,
    usage: Option<&dyn Usage>,
    now: Timestamp,
) -> Result<Wish, String> {
    let mut best: Option<Wish> = None;
    let mut metrics = Vec::new();
    let mut missing: Option<String> = None;
    for metric in list(scaler, "/spec/metrics") {
        match of_metric(metric, scaler, pods, current, usage, now) {
            Ok((replicas, reason, status)) => {
                metrics.push(status);
                if best.as_ref().is_none_or(|it| replicas > it.replicas) {
                    best = Some(Wish { replicas, reason, metrics: Vec::new() });
                }
            }
            Err(why) => missing = missing.or(Some(why)),
        }
    }
    match (best, missing) {
        (Some(best), missing) if missing.is_none() || best.replicas >= current => {
            Ok(Wish { metrics, ..best })
        }
        (_, Some(why)) => Err(why),
        _ => Err("no metrics are asked for".into()),
    }
}

/// What of the pods a metric is about.
struct Measure<'a> {
    resource: &'a str,
    container: Option<&'a str>,
}

impl Measure<'_> {
    /// Thousandths of a core, or bytes.
    fn used(&self, containers: &[(String, Used)]) -> i64 {
        let mine = containers.iter().filter(|(it, _)| self.container.is_none_or(|wanted| wanted == it));
        mine.map(|(_, it)| if self.resource == "cpu" { it.cpu_milli } else { it.memory_bytes }).sum()
    }

    fn requested(&self, pod: &Value) -> Option<i64> {
        let mut sum = 0;
        for container in list(pod, "/spec/containers") {
            if self.container.is_some_and(|wanted| container["name"] != wanted) {
                continue;
            }
            let request = container["resources"]["requests"][self.resource].as_str()?;
            let milli = parse_milli(request)?;
            let value = if self.resource == "cpu" { milli } else { milli / 1000 };
            sum += i64::try_from(value).ok()?;
        }
        Some(sum)
    }

    fn quantity(&self, value: i64) -> String {
        if self.resource == "cpu" { format!("{value}m") } else { value.to_string() }
    }

    fn parse(&self, quantity: &str) -> Option<i64> {
        let milli = parse_milli(quantity)?;
        i64::try_from(if self.resource == "cpu" { milli } else { milli / 1000 }).ok()
    }
}

fn of_metric(
    metric: &Value,
    scaler: &Value,
    pods: &[Arc<Value>],
    current: i64,
    usage: Option<&dyn Usage>,
    now: Timestamp,
) -> Result<(i64, String, Value), String> {
    let kind = text(metric, "/type");
    let (field, source) = match kind {
        "Resource" => ("resource", &metric["resource"]),
        "ContainerResource" => ("containerResource", &metric["containerResource"]),
        other => {
            return Err(format!(
                "metrics of type {other} are not known here: use Resource or ContainerResource"
            ));
        }
    };
    let measure = Measure { resource: text(source, "/name"), container: source["container"].as_str() };
    if !["cpu", "memory"].contains(&measure.resource) {
        return Err(format!("the resource {} is not measured: use cpu or memory", measure.resource));
    }
    let unavailable =
        || format!("failed to get {} utilization: no metrics known for the pods", measure.resource);
    let usage = usage.ok_or_else(unavailable)?;
    let target = &source["target"];
    let by_request = text(target, "/type") == "Utilization";
    let goal = match by_request {
        true => int(target, "/averageUtilization") as f64,
        false => measure.parse(text(target, "/averageValue")).unwrap_or(0) as f64,
    };
    if goal <= 0.0 {
        return Err("the target of the metric is not positive".into());
    }
    let (mut used, mut requested, mut measured) = (0i64, 0i64, 0i64);
    // Requests of pods whose figures are missing or not to be trusted yet.
    let (mut unmeasured, mut starting) = (Vec::new(), Vec::new());
    for pod in pods.iter().filter(|it| counts(it)) {
        let request = match by_request {
            true => measure.requested(pod).ok_or_else(|| {
                format!("missing request for {} in a container of Pod {}", measure.resource, name(pod))
            })?,
            false => 0,
        };
        let age = time::seconds_since(&pod["status"]["startTime"], now).unwrap_or(0);
        let Some(containers) = usage.of_pod(namespace(pod), name(pod)) else {
            if is_ready(pod) {
                unmeasured.push(request)
            } else {
                starting.push(request)
            }
            continue;
        };
        if text(pod, "/status/phase") == "Pending"
            || (measure.resource == "cpu" && !is_ready(pod) && age < YOUNG_SECONDS)
        {
            starting.push(request);
            continue;
        }
        used += measure.used(&containers);
        requested += request;
        measured += 1;
    }
    if measured == 0 {
        return Err(unavailable());
    }
    let ratio_of = |used: i64, requested: i64, count: i64| match by_request {
        true => used as f64 * 100.0 / requested.max(1) as f64 / goal,
        false => used as f64 / count.max(1) as f64 / goal,
    };
    let ratio = ratio_of(used, requested, measured);
    let average = used / measured;
    let percent = used * 100 / requested.max(1);
    let mut current_value = json!({"averageValue": measure.quantity(average)});
    if by_request {
        current_value["averageUtilization"] = json!(percent);
    }
    let mut status = json!({"name": measure.resource, "current": current_value});
    if let Some(container) = measure.container {
        status["container"] = json!(container);
    }
    let of = if by_request { "utilization (percentage of request)" } else { "" };
    let reason = match measure.container {
        Some(container) => format!("{} container resource {of} of {container}", measure.resource),
        None => format!("{} resource {of}", measure.resource),
    };
    let direction = if ratio > 1.0 { "scaleUp" } else { "scaleDown" };
    let tolerance = scaler["spec"]["behavior"][direction]["tolerance"]
        .as_str()
        .and_then(parse_milli)
        .map_or(TOLERANCE, |it| it as f64 / 1000.0);
    let near = |ratio: f64| (ratio - 1.0).abs() <= tolerance;
    let answer =
        |replicas: i64| Ok((replicas, reason.trim().to_string(), json!({"type": kind, field: status})));
    let others = unmeasured.len() + starting.len();
    if others == 0 || (unmeasured.is_empty() && ratio <= 1.0) {
        let wished = (ratio * measured as f64).ceil() as i64;
        return answer(if near(ratio) { current } else { wished });
    }
    // Those without figures stand for what would hold the change back.
    let (mut used, mut requested, mut count) = (used, requested, measured);
    for request in unmeasured {
        let assumed = if ratio < 1.0 { if by_request { request } else { goal as i64 } } else { 0 };
        used += assumed;
        requested += request;
        count += 1;
    }
    if ratio > 1.0 {
        requested += starting.iter().sum::<i64>();
        count += starting.len() as i64;
    }
    let corrected = ratio_of(used, requested, count);
    if near(corrected) || (ratio < 1.0) != (corrected < 1.0) {
        return answer(current);
    }
    let wished = (corrected * count as f64).ceil() as i64;
    let against = (ratio > 1.0 && wished < current) || (ratio < 1.0 && wished > current);
    answer(if against { current } else { wished })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(Vec<Option<i64>>);

    impl Usage for Fixed {
        fn of_pod(&self, _: &str, pod: &str) -> Option<Vec<(String, Used)>> {
            let at: usize = pod.parse().ok()?;
            let cpu_milli = (*self.0.get(at)?)?;
            Some(vec![("c".into(), Used { cpu_milli, memory_bytes: cpu_milli * 1024 })])
        }
    }

    #[track_caller]
    fn check(target: Value, cpu: &[Option<i64>], expected: i64) {
        let scaler = json!({"spec": {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]}});
        let pods: Vec<Arc<Value>> = (0..cpu.len())
            .map(|at| {
                Arc::new(json!({"metadata": {"name": at.to_string(), "uid": "u"},
                    "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
                    "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                        "conditions": [{"type": "Ready", "status": "True"}]}}))
            })
            .collect();
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        let usage = Fixed(cpu.to_vec());
        let wish = wish(&scaler, &pods, cpu.len() as i64, Some(&usage), now).expect("figures");
        assert_eq!(wish.replicas, expected);
    }

    #[test]
    fn replicas_follow_the_ratio_of_use_to_target() {
        let half = json!({"type": "Utilization", "averageUtilization": 50});
        check(half.clone(), &[Some(100), Some(100)], 4);
        check(half.clone(), &[Some(52), Some(50)], 2);
        check(half.clone(), &[Some(10), Some(10), Some(10), Some(10)], 1);
        check(json!({"type": "AverageValue", "averageValue": "20m"}), &[Some(50), Some(50)], 5);
        // One without figures counts as idle when growing and as busy when shrinking.
        check(half.clone(), &[Some(100), None], 2);
        check(half, &[Some(10), None, Some(10)], 3);
    }
}
