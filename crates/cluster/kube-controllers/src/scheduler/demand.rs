//! What a pod asks of a node, read once from its object.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube_kinds::quantity::parse_milli;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{int, list, namespace, text};
use serde_json::Value;

/// Amounts of resources: thousandths of a core, bytes, pieces.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Amounts {
    pub cpu_milli: i64,
    pub memory: i64,
    pub storage: i64,
    /// Devices and the like.
    pub others: BTreeMap<String, i64>,
}

impl Amounts {
    pub fn of(resources: &Value) -> Amounts {
        let mut amounts = Amounts::default();
        for (resource, quantity) in resources.as_object().into_iter().flatten() {
            let milli = match quantity {
                Value::String(text) => parse_milli(text),
                number => number.as_i64().map(|it| i128::from(it) * 1000),
            };
            let milli = milli.unwrap_or(0);
            let whole = i64::try_from((milli + 999) / 1000).unwrap_or(i64::MAX);
            match resource.as_str() {
                "cpu" => amounts.cpu_milli = i64::try_from(milli).unwrap_or(i64::MAX),
                "memory" => amounts.memory = whole,
                "ephemeral-storage" => amounts.storage = whole,
                "pods" => {}
                other => {
                    amounts.others.insert(other.to_string(), whole);
                }
            }
        }
        amounts
    }

    pub fn add(&mut self, more: &Amounts) {
        self.cpu_milli = self.cpu_milli.saturating_add(more.cpu_milli);
        self.memory = self.memory.saturating_add(more.memory);
        self.storage = self.storage.saturating_add(more.storage);
        for (name, count) in &more.others {
            *self.others.entry(name.clone()).or_default() += count;
        }
    }

    pub fn take(&mut self, less: &Amounts) {
        self.cpu_milli -= less.cpu_milli;
        self.memory -= less.memory;
        self.storage -= less.storage;
        for (name, count) in &less.others {
            *self.others.entry(name.clone()).or_default() -= count;
        }
    }

    fn max(&mut self, other: &Amounts) {
        self.cpu_milli = self.cpu_milli.max(other.cpu_milli);
        self.memory = self.memory.max(other.memory);
        self.storage = self.storage.max(other.storage);
        for (name, count) in &other.others {
            let own = self.others.entry(name.clone()).or_default();
            *own = (*own).max(*count);
        }
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Debug, Clone)]
pub struct Term {
    pub selector: LabelSelector,
    pub namespaces: Vec<String>,
    pub namespace_selector: Option<LabelSelector>,
    pub topology: String,
    pub weight: i64,
}

/// A topology spread constraint.
#[derive(Debug, Clone)]
pub struct Spread {
    pub selector: LabelSelector,
    pub topology: String,
    pub skew_max: i64,
    pub domains_min: i64,
    /// Must hold; otherwise it is a wish.
    pub required: bool,
    pub honors_affinity: bool,
    pub honors_taints: bool,
}

#[derive(Debug)]
pub struct Demand {
    pub pod: Arc<Value>,
    pub priority: i64,
    pub amounts: Amounts,
    /// Protocol, address, port on the node.
    pub ports: Vec<(String, String, i64)>,
    /// Whether selectors or node affinity must be looked at.
    pub selects: bool,
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    pub preferred: Vec<Term>,
    pub spreads: Vec<Spread>,
}

impl Demand {
    pub fn of(pod: &Arc<Value>) -> Demand {
        let affinity = &pod["spec"]["affinity"];
        let terms = |kind: &str| required_terms(pod, &affinity[kind]);
        let mut preferred = preferred_terms(pod, &affinity["podAffinity"], 1);
        preferred.extend(preferred_terms(pod, &affinity["podAntiAffinity"], -1));
        Demand {
            pod: pod.clone(),
            priority: int(pod, "/spec/priority"),
            amounts: requests(&pod["spec"]),
            ports: host_ports(&pod["spec"]),
            selects: pod["spec"]["nodeSelector"].is_object() || affinity["nodeAffinity"].is_object(),
            affinity: terms("podAffinity"),
            anti_affinity: terms("podAntiAffinity"),
            preferred,
            spreads: list(pod, "/spec/topologySpreadConstraints").iter().map(|it| spread(pod, it)).collect(),
        }
    }
}

/// Containers together, or the hungriest init container beside the sidecars before it.
fn requests(spec: &Value) -> Amounts {
    let of = |container: &Value| Amounts::of(&container["resources"]["requests"]);
    let mut together = Amounts::default();
    spec["containers"].as_array().into_iter().flatten().for_each(|it| together.add(&of(it)));
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        let mut own = of(container);
        if container["restartPolicy"] == "Always" {
            sidecars.add(&own);
            peak.max(&sidecars);
        } else {
            own.add(&sidecars);
            peak.max(&own);
        }
    }
    together.add(&sidecars);
    together.max(&peak);
    // What is asked for the pod as a whole replaces the sum.
    let whole = Amounts::of(&spec["resources"]["requests"]);
    for (own, whole) in [(&mut together.cpu_milli, whole.cpu_milli), (&mut together.memory, whole.memory)] {
        if whole > 0 {
            *own = whole;
        }
    }
    together.add(&Amounts::of(&spec["overhead"]));
    together
}

fn host_ports(spec: &Value) -> Vec<(String, String, i64)> {
    let containers = spec["containers"].as_array().into_iter().flatten();
    containers
        .flat_map(|it| list(it, "/ports"))
        .filter(|it| int(it, "/hostPort") > 0)
        .map(|it| {
            let address = match text(it, "/hostIP") {
                "" => "0.0.0.0",
                address => address,
            };
            (it["protocol"].as_str().unwrap_or("TCP").to_string(), address.to_string(), int(it, "/hostPort"))
        })
        .collect()
}

/// Whether two ports of a node cannot both be had.
pub fn ports_clash(one: &(String, String, i64), other: &(String, String, i64)) -> bool {
    one.2 == other.2 && one.0 == other.0 && (one.1 == other.1 || one.1 == "0.0.0.0" || other.1 == "0.0.0.0")
}

fn term(pod: &Value, term: &Value, weight: i64) -> Term {
    let mut selector = term["labelSelector"].clone();
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        add_label_keys(pod, &mut selector, list(term, &format!("/{field}")), operator);
    }
    let mut namespaces: Vec<String> =
        list(term, "/namespaces").iter().filter_map(|it| it.as_str().map(String::from)).collect();
    let namespace_selector = &term["namespaceSelector"];
    if namespaces.is_empty() && namespace_selector.is_null() {
        namespaces.push(namespace(pod).to_string());
    }
    Term {
        selector: LabelSelector::from_object(&selector).unwrap_or_default(),
        namespaces,
        namespace_selector: namespace_selector
            .is_object()
            .then(|| LabelSelector::from_object(namespace_selector))
            .flatten(),
        topology: text(term, "/topologyKey").to_string(),
        weight,
    }
}

/// Adds the pod's own values of some labels to a selector.
fn add_label_keys(pod: &Value, selector: &mut Value, keys: &[Value], operator: &str) {
    for key in keys.iter().filter_map(Value::as_str) {
        let value = &pod["metadata"]["labels"][key];
        if value.is_string() {
            let requirement = serde_json::json!({"key": key, "operator": operator, "values": [value]});
            match selector["matchExpressions"].as_array_mut() {
                Some(all) => all.push(requirement),
                None => selector["matchExpressions"] = serde_json::json!([requirement]),
            }
        }
    }
}

fn required_terms(pod: &Value, affinity: &Value) -> Vec<Term> {
    list(affinity, "/requiredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .map(|it| term(pod, it, 0))
        .collect()
}

fn preferred_terms(pod: &Value, affinity: &Value, sign: i64) -> Vec<Term> {
    list(affinity, "/preferredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .map(|it| term(pod, &it["podAffinityTerm"], sign * int(it, "/weight")))
        .collect()
}

fn spread(pod: &Value, constraint: &Value) -> Spread {
    let mut selector = constraint["labelSelector"].clone();
    add_label_keys(pod, &mut selector, list(constraint, "/matchLabelKeys"), "In");
    Spread {
        selector: LabelSelector::from_object(&selector).unwrap_or_default(),
        topology: text(constraint, "/topologyKey").to_string(),
        skew_max: int(constraint, "/maxSkew").max(1),
        domains_min: int(constraint, "/minDomains"),
        required: constraint["whenUnsatisfiable"] != "ScheduleAnyway",
        honors_affinity: constraint["nodeAffinityPolicy"] != "Ignore",
        honors_taints: constraint["nodeTaintsPolicy"] == "Honor",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_asks_for_its_hungriest_moment() {
        let asks = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = asks("100m");
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({"containers": [asks("200m"), asks("300m")], "initContainers": [asks("1")]});
        assert_eq!(requests(&spec).cpu_milli, 1000);
        let spec = json!({"containers": [asks("200m")], "initContainers": [sidecar, asks("50m")]});
        assert_eq!(requests(&spec).cpu_milli, 300);
        let spec = json!({"containers": [asks("200m")], "resources": {"requests": {"cpu": "2"}}, "overhead": {"cpu": "10m"}});
        assert_eq!(requests(&spec).cpu_milli, 2010);
    }
}
