//! What a route's status should say: pure.

use crate::CONTROLLER;
use crate::certificates::{ListenerFinding, is_tls};
use serde_json::{Value, json};
use std::sync::Arc;

/// What compiling found out about one route.
#[derive(Debug, Clone)]
pub struct Finding {
    pub route: Arc<Value>,
    /// The parents that are ours, with the reason if it cannot be attached.
    pub parents: Vec<(Value, Option<&'static str>)>,
    /// How many rules the route has.
    pub rules: usize,
    pub unsupported: Vec<String>,
    /// Reason and message of the first backend that is not there.
    pub unresolved: Option<(&'static str, String)>,
}

impl Finding {
    pub fn of(route: &Arc<Value>) -> Self {
        Self {
            route: Arc::clone(route),
            parents: Vec::new(),
            rules: 0,
            unsupported: Vec::new(),
            unresolved: None,
        }
    }
}

/// The route's new `status.parents`, or `None` if it says the same already. `now` is RFC 3339.
pub fn plan(finding: &Finding, now: &str) -> Option<Value> {
    let existing = finding.route["status"]["parents"].as_array().cloned().unwrap_or_default();
    let generation = finding.route["metadata"]["generation"].as_i64().unwrap_or(0);
    let is_ours = |it: &Value| it["controllerName"] == CONTROLLER;
    let mut parents: Vec<Value> = existing.iter().filter(|it| !is_ours(it)).cloned().collect();
    for (reference, refused) in &finding.parents {
        let before = existing.iter().find(|it| is_ours(it) && it["parentRef"] == *reference);
        let condition = |kind: &str, is_true: bool, reason: &str, message: &str| {
            let status = if is_true { "True" } else { "False" };
            let old = before.and_then(|it| it["conditions"].as_array()?.iter().find(|it| it["type"] == kind));
            let since =
                old.filter(|it| it["status"] == status).and_then(|it| it["lastTransitionTime"].as_str());
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                   "observedGeneration": generation, "lastTransitionTime": since.unwrap_or(now)})
        };
        let unsupported = finding.unsupported.join("; ");
        let all_unsupported = !finding.unsupported.is_empty() && finding.unsupported.len() == finding.rules;
        let mut conditions = vec![match refused {
            Some(reason) => {
                condition("Accepted", false, reason, "no listener of the Gateway takes this route")
            }
            None if all_unsupported => condition("Accepted", false, "UnsupportedValue", &unsupported),
            None => condition("Accepted", true, "Accepted", ""),
        }];
        conditions.push(match &finding.unresolved {
            Some((reason, message)) => condition("ResolvedRefs", false, reason, message),
            None => condition("ResolvedRefs", true, "ResolvedRefs", ""),
        });
        if !unsupported.is_empty() && !all_unsupported {
            conditions.push(condition("PartiallyInvalid", true, "UnsupportedValue", &unsupported));
        }
        parents.push(json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions}));
    }
    (parents != existing).then(|| json!(parents))
}

/// What the process itself knows of its doors.
#[derive(Debug, Clone)]
pub struct Doors {
    /// Where the gateway is reached.
    pub address: String,
    /// Whether it listens for TLS at all.
    pub has_tls: bool,
}

/// A Gateway's new status, or `None` if it says the same already. `attached` counts the routes that a
/// listener takes, by its name; `certificates` has what was found out about the listeners with TLS.
pub fn plan_gateway(
    gateway: &Value,
    attached: impl Fn(&str) -> usize,
    certificates: &[ListenerFinding],
    doors: &Doors,
    now: &str,
) -> Option<Value> {
    let generation = gateway["metadata"]["generation"].as_i64().unwrap_or(0);
    let before = &gateway["status"];
    let conditions = |before: &Value, kinds: &[(&str, bool, &str, &str)]| -> Vec<Value> {
        let each = |(kind, is_true, reason, message): &(&str, bool, &str, &str)| {
            let status = if *is_true { "True" } else { "False" };
            let old = before.as_array().and_then(|it| it.iter().find(|it| it["type"] == *kind));
            let since =
                old.filter(|it| it["status"] == status).and_then(|it| it["lastTransitionTime"].as_str());
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                   "observedGeneration": generation, "lastTransitionTime": since.unwrap_or(now)})
        };
        kinds.iter().map(each).collect()
    };
    let listeners = gateway["spec"]["listeners"].as_array().cloned().unwrap_or_default();
    let listeners: Vec<Value> = listeners
        .iter()
        .map(|listener| {
            let is_served = listener["protocol"] == "HTTP" || is_tls(listener);
            let old = before["listeners"]
                .as_array()
                .and_then(|it| it.iter().find(|it| it["name"] == listener["name"]));
            let old = old.map_or(Value::Null, |it| it["conditions"].clone());
            let found = certificates.iter().find(|it| {
                gateway["metadata"]["name"] == it.gateway.as_str()
                    && gateway["metadata"]["namespace"] == it.namespace.as_str()
                    && listener["name"] == it.listener.as_str()
            });
            let warning = found.and_then(|it| it.warning.as_deref()).unwrap_or_default();
            let problem = found.and_then(|it| it.problem.as_ref());
            let no_door = "the gateway does not listen for TLS: start it with `naru serve --gateway-tls ADDRESS`";
            let kinds = match is_served {
                true => [
                    ("Accepted", true, "Accepted", ""),
                    match found {
                        Some(_) if !doors.has_tls => ("Programmed", false, "Invalid", no_door),
                        Some(it) if !it.is_served => ("Programmed", false, "Invalid", "there is no certificate to show"),
                        _ => ("Programmed", true, "Programmed", ""),
                    },
                    match problem {
                        Some((reason, message)) => ("ResolvedRefs", false, *reason, message.as_str()),
                        None => ("ResolvedRefs", true, "ResolvedRefs", warning),
                    },
                ],
                false => [
                    ("Accepted", false, "UnsupportedProtocol", "only listeners for HTTP, and for HTTPS that ends here, are supported"),
                    ("Programmed", false, "Invalid", ""),
                    ("ResolvedRefs", true, "ResolvedRefs", ""),
                ],
            };
            json!({
                "name": listener["name"], "attachedRoutes": if is_served { attached(listener["name"].as_str().unwrap_or_default()) } else { 0 },
                "supportedKinds": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}],
                "conditions": conditions(&old, &kinds),
            })
        })
        .collect();
    let kinds = [("Accepted", true, "Accepted", ""), ("Programmed", true, "Programmed", "")];
    let after = json!({
        "addresses": [{"type": "IPAddress", "value": doors.address}],
        "conditions": conditions(&before["conditions"], &kinds), "listeners": listeners,
    });
    ["addresses", "conditions", "listeners"].iter().any(|it| after[it] != before[it]).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_once() {
        let route = json!({"metadata": {"name": "r", "generation": 2}});
        let mut finding = Finding::of(&Arc::new(route.clone()));
        finding.parents.push((json!({"name": "g"}), None));
        finding.rules = 1;
        let parents = plan(&finding, "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(parents[0]["conditions"][0]["type"], "Accepted");
        assert_eq!(parents[0]["conditions"][0]["status"], "True");
        let mut written = route;
        written["status"]["parents"] = parents;
        finding.route = Arc::new(written);
        assert_eq!(plan(&finding, "2026-01-02T00:00:00Z"), None, "nothing has changed");
        finding.unresolved = Some(("BackendNotFound", "there is no Service x".into()));
        let parents = plan(&finding, "2026-01-02T00:00:00Z").unwrap();
        let gateway = json!({"spec": {"listeners": [
            {"name": "web", "protocol": "HTTP"}, {"name": "other", "protocol": "HTTP"}]}});
        let doors = Doors { address: "192.0.2.1".into(), has_tls: false };
        let status = plan_gateway(&gateway, |it| usize::from(it == "web"), &[], &doors, "now").unwrap();
        let attached =
            ["0", "1"].map(|at| status.pointer(&format!("/listeners/{at}/attachedRoutes")).unwrap().clone());
        assert_eq!((attached, &status["addresses"][0]["value"]), ([json!(1), json!(0)], &json!("192.0.2.1")));
        assert_eq!(parents[0]["conditions"][1]["reason"], "BackendNotFound");
        assert_eq!(parents[0]["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
    }
}
