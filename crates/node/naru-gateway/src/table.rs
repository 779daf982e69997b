//! Objects to routing table: pure. The table is immutable; what must outlive it (counters, which pods
//! refuse connections) is shared between tables by name.
//!
//! A rule that we cannot honour answers 500 and says so in its route's status; it does not disturb others.

use crate::GATEWAY_CLASS;
use crate::certificates::Certificates;
use crate::filters::{self, Filters};
use crate::hosts::{Hosts, Scheme};
use crate::metrics::{Metrics, Series};
use crate::rules::{Match, attach, duration, read_match, schedule, unsupported_in};
use crate::status::Finding;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

pub const WEIGHT_MAX: u64 = 1_000_000; // by the Gateway API

/// The objects that a table is made of.
#[derive(Debug, Clone, Copy)]
pub struct Objects<'a> {
    pub gateways: &'a [Arc<Value>],
    pub routes: &'a [Arc<Value>],
    pub services: &'a [Arc<Value>],
    pub slices: &'a [Arc<Value>],
    /// ReferenceGrants: who may name what of another namespace.
    pub grants: &'a [Arc<Value>],
    /// Secrets of the type `kubernetes.io/tls`.
    pub secrets: &'a [Arc<Value>],
}

/// Where every request goes.
#[derive(Debug, Default)]
pub struct Table {
    http: Hosts,
    https: Hosts,
    pub(crate) certificates: Certificates,
    pub(crate) unmatched: Arc<Series>,
    /// False before the objects have been seen: then nobody can tell what is not routed.
    pub(crate) is_known: bool,
    backends: HashMap<(String, String, u16), Arc<Backend>>,
}

#[derive(Debug)]
pub struct Rule {
    path: PathMatch,
    method: Option<Method>,
    headers: Vec<(HeaderName, HeaderValue)>,
    query: Vec<(String, String)>,
    pub filters: Option<Arc<Filters>>,
    pub timeout: Option<Duration>,
    targets: Vec<Target>,
    /// Index into `targets` per turn, spread evenly: 3 to 1 is a a b a.
    schedule: Box<[u16]>,
    turn: AtomicU64,
    /// Oldest first, as the Gateway API breaks ties.
    pub(crate) age: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    Exact(String),
    Prefix(String),
}

/// One share of a rule's traffic.
#[derive(Debug, Clone)]
pub struct Target {
    pub series: Arc<Series>,
    /// As in `x-naru-backend`.
    pub service: HeaderValue,
    /// Without a backend the share answers 500: the reference is broken.
    pub backend: Option<Arc<Backend>>,
}

/// A Service's port and the pods that are ready behind it.
#[derive(Debug)]
pub struct Backend {
    pub endpoints: Box<[Arc<Endpoint>]>,
    turn: AtomicUsize,
    /// There were pods in this or an earlier table, so more will come.
    pub had_endpoints: bool,
}

#[derive(Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Not used until then, in milliseconds of the gateway's own clock.
    pub ejected_until_ms: AtomicU64,
}

impl Table {
    /// The rule for a request, if there is one.
    pub fn find(
        &self,
        scheme: Scheme,
        host: &str,
        uri: &Uri,
        method: &Method,
        headers: &HeaderMap,
    ) -> Option<&Arc<Rule>> {
        let hosts = match scheme {
            Scheme::Http => &self.http,
            Scheme::Https => &self.https,
        };
        hosts.find(host, uri, method, headers)
    }
}

/// Whether the first parameter of that name has that value, as they stand in the URL.
fn has_parameter(query: &str, name: &str, value: &str) -> bool {
    let mut pairs = query.split('&').map(|it| it.split_once('=').unwrap_or((it, "")));
    pairs.find(|it| it.0 == name).is_some_and(|it| it.1 == value)
}

impl Rule {
    /// What of a path the rule's own stands for.
    pub fn prefix(&self) -> &str {
        match &self.path {
            PathMatch::Exact(it) | PathMatch::Prefix(it) => it,
        }
    }

    pub(crate) fn matches(&self, uri: &Uri, method: &Method, headers: &HeaderMap) -> bool {
        let path = uri.path();
        let path_matches = match &self.path {
            PathMatch::Exact(it) => path == it,
            // `/a` is a prefix of `/a/b`, not of `/ab`.
            PathMatch::Prefix(it) => {
                it == "/"
                    || path
                        .strip_prefix(it.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        };
        path_matches
            && self.method.as_ref().is_none_or(|it| it == method)
            && self.headers.iter().all(|(name, value)| headers.get(name) == Some(value))
            && self
                .query
                .iter()
                .all(|(name, value)| has_parameter(uri.query().unwrap_or_default(), name, value))
    }

    /// Whose turn it is. None when all weights are zero.
    pub fn next(&self) -> Option<&Target> {
        if self.schedule.is_empty() {
            return None;
        }
        let turn = self.turn.fetch_add(1, Relaxed) % self.schedule.len() as u64;
        Some(&self.targets[usize::from(self.schedule[turn as usize])])
    }

    /// For a request that had its turn already, perhaps by an older table: the same service if it is still
    /// there, so that trying again does not move traffic from one share to another.
    pub fn again(&self, target: &Target) -> Option<&Target> {
        let is_same = |it: &&Target| it.service == target.service;
        let has_share = |index: usize| self.schedule.iter().any(|it| usize::from(*it) == index);
        let same = self.targets.iter().enumerate().find(|(index, it)| is_same(it) && has_share(*index));
        same.map(|(_, it)| it).or_else(|| self.next())
    }

    /// Exact paths, then long prefixes, then methods, then more headers, then more parameters, then older routes.
    pub(crate) fn precedence(&self) -> (u8, usize, u8, usize, usize) {
        let (kind, length) = match &self.path {
            PathMatch::Exact(it) => (1, it.len()),
            PathMatch::Prefix(it) => (0, it.len()),
        };
        (kind, length, u8::from(self.method.is_some()), self.headers.len(), self.query.len())
    }
}

impl Backend {
    /// Endpoints in the order in which a request should try them: the next one first, those that refused
    /// a moment ago last.
    pub fn next(&self, now_ms: u64, attempt: usize) -> Option<&Arc<Endpoint>> {
        let count = self.endpoints.len();
        if count == 0 {
            return None;
        }
        let start = if attempt == 0 {
            self.turn.fetch_add(1, Relaxed)
        } else {
            self.turn.load(Relaxed) + attempt - 1
        };
        let usable = |it: &&Arc<Endpoint>| it.ejected_until_ms.load(Relaxed) <= now_ms;
        let in_order = (0..count).map(|it| &self.endpoints[(start + it) % count]);
        in_order.clone().find(usable).or_else(|| in_order.clone().next())
    }
}

/// Compiles the objects. `previous` lends what outlives a table. The findings are for the routes' status.
pub fn compile(objects: Objects<'_>, metrics: &Metrics, previous: &Table) -> (Table, Vec<Finding>) {
    let mut builder = Builder {
        table: Table { unmatched: metrics.series("", ""), is_known: true, ..Table::default() },
        endpoints: previous
            .backends
            .values()
            .flat_map(|it| it.endpoints.iter().map(|it| (it.address, Arc::clone(it))))
            .collect(),
        objects,
        metrics,
        previous,
    };
    let mut routes: Vec<&Arc<Value>> = objects.routes.iter().collect();
    routes.sort_by_key(|it| (age_of(it), namespace_of(it).to_owned(), name_of(it).to_owned()));
    let findings = routes.into_iter().filter_map(|it| builder.route(it)).collect();
    let mut table = builder.table;
    // Stable, and routes came oldest first.
    table.http.sort();
    table.https.sort();
    (table, findings)
}

struct Builder<'a> {
    table: Table,
    objects: Objects<'a>,
    metrics: &'a Metrics,
    previous: &'a Table,
    endpoints: HashMap<SocketAddr, Arc<Endpoint>>,
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
fn namespace_of(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}
fn age_of(object: &Value) -> String {
    object["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned()
}
pub fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
fn find<'a>(objects: &'a [Arc<Value>], namespace: &str, name: &str) -> Option<&'a Arc<Value>> {
    objects.iter().find(|it| name_of(it) == name && namespace_of(it) == namespace)
}

impl Builder<'_> {
    /// None for a route that has nothing to do with us.
    fn route(&mut self, route: &Arc<Value>) -> Option<Finding> {
        let spec = &route["spec"];
        let mut finding = Finding::of(route);
        let mut hostnames: Vec<(Scheme, String)> = Vec::new();
        for parent in items(&spec["parentRefs"]) {
            let namespace = parent["namespace"].as_str().unwrap_or(namespace_of(route));
            let name = parent["name"].as_str().unwrap_or_default();
            let gateway = find(self.objects.gateways, namespace, name)
                .filter(|it| it["spec"]["gatewayClassName"] == GATEWAY_CLASS);
            let Some(gateway) = gateway else { continue };
            let wanted: Vec<&str> = items(&spec["hostnames"]).iter().filter_map(Value::as_str).collect();
            let found = attach(gateway, parent, &wanted, namespace_of(route) == namespace_of(gateway));
            finding.parents.push((parent.clone(), found.as_ref().err().copied()));
            hostnames.extend(found.unwrap_or_default());
        }
        if finding.parents.is_empty() {
            return None;
        }
        hostnames.sort();
        hostnames.dedup();
        for (index, rule) in items(&spec["rules"]).iter().enumerate() {
            self.rule(route, index, rule, &hostnames, &mut finding);
        }
        Some(finding)
    }

    fn rule(
        &mut self,
        route: &Value,
        index: usize,
        rule: &Value,
        hostnames: &[(Scheme, String)],
        finding: &mut Finding,
    ) {
        let route_name = format!("{}/{}", namespace_of(route), name_of(route));
        let (filters, unsupported) = match filters::read(rule) {
            Ok(filters) => (filters.map(Arc::new), unsupported_in(rule)),
            Err(why) => (None, Some(why)),
        };
        if let Some(what) = &unsupported {
            finding.unsupported.push(format!("rules[{index}]: {what}"));
        }
        finding.rules += 1;
        let mut targets = Vec::new();
        let mut weights = Vec::new();
        for reference in items(&rule["backendRefs"]) {
            let weight = reference["weight"].as_u64().unwrap_or(1).min(WEIGHT_MAX);
            let name = reference["name"].as_str().unwrap_or_default();
            let backend = match unsupported {
                Some(_) => None,
                None => match self.backend(route, reference) {
                    Ok(it) => Some(it),
                    Err((reason, message)) => {
                        finding.unresolved.get_or_insert((reason, message));
                        None
                    }
                },
            };
            targets.push(Target {
                series: self.metrics.series(&route_name, name),
                service: HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("")),
                backend,
            });
            weights.push(weight);
        }
        let schedule = schedule(&weights);
        let default_match = [serde_json::json!({})];
        let matches = match items(&rule["matches"]) {
            [] => &default_match[..],
            it => it,
        };
        for it in matches {
            let Some(Match { path, method, headers, query }) = read_match(it) else { continue };
            let compiled = Arc::new(Rule {
                path,
                method,
                headers,
                query,
                filters: filters.clone(),
                timeout: rule["timeouts"]["request"].as_str().and_then(duration).filter(|it| !it.is_zero()),
                targets: targets.clone(),
                schedule: schedule.clone(),
                turn: AtomicU64::new(0),
                age: age_of(route),
            });
            for (scheme, host) in hostnames {
                let hosts = match scheme {
                    Scheme::Http => &mut self.table.http,
                    Scheme::Https => &mut self.table.https,
                };
                hosts.add(host, Arc::clone(&compiled));
            }
        }
    }

    /// Whether a grant of `namespace` lets routes of another one name this Service.
    fn is_granted(&self, namespace: &str, service: &str, from: &str) -> bool {
        let grants = self.objects.grants.iter().filter(|it| namespace_of(it) == namespace);
        grants.into_iter().any(|grant| {
            let is_from = items(&grant["spec"]["from"]).iter().any(|it| {
                it["group"] == "gateway.networking.k8s.io"
                    && it["kind"] == "HTTPRoute"
                    && it["namespace"] == from
            });
            is_from
                && items(&grant["spec"]["to"])
                    .iter()
                    .any(|it| it["kind"] == "Service" && it["name"].as_str().is_none_or(|it| it == service))
        })
    }

    fn backend(&mut self, route: &Value, reference: &Value) -> Result<Arc<Backend>, (&'static str, String)> {
        let name = reference["name"].as_str().unwrap_or_default();
        let namespace = reference["namespace"].as_str().unwrap_or(namespace_of(route));
        let kind = reference["kind"].as_str().unwrap_or("Service");
        if kind != "Service" || !matches!(reference["group"].as_str(), None | Some("" | "core")) {
            return Err(("InvalidKind", format!("a backend of kind {kind} is not supported")));
        }
        if namespace != namespace_of(route) && !self.is_granted(namespace, name, namespace_of(route)) {
            let message =
                format!("no ReferenceGrant of namespace {namespace} lets this route name Service {name}");
            return Err(("RefNotPermitted", message));
        }
        let service = find(self.objects.services, namespace, name)
            .ok_or_else(|| ("BackendNotFound", format!("there is no Service {name}")))?;
        let port = reference["port"].as_u64().and_then(|it| u16::try_from(it).ok());
        let ports = items(&service["spec"]["ports"]);
        let service_port =
            ports.iter().find(|it| port.is_some() && it["port"].as_u64() == port.map(u64::from));
        let (Some(port), Some(service_port)) = (port, service_port) else {
            return Err(("BackendNotFound", format!("Service {name} has no port {}", reference["port"])));
        };
        let key = (namespace.to_owned(), name.to_owned(), port);
        if let Some(known) = self.table.backends.get(&key) {
            return Ok(Arc::clone(known));
        }
        let port_name = service_port["name"].as_str().unwrap_or_default();
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for slice in self.objects.slices {
            let of = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str();
            if of != Some(name) || namespace_of(slice) != namespace {
                continue;
            }
            let number =
                items(&slice["ports"]).iter().find(|it| it["name"].as_str().unwrap_or_default() == port_name);
            let Some(number) = number.and_then(|it| u16::try_from(it["port"].as_u64()?).ok()) else {
                continue;
            };
            for endpoint in items(&slice["endpoints"]) {
                if endpoint["conditions"]["ready"] == false {
                    continue;
                }
                let parse = |it: &Value| it.as_str()?.parse::<IpAddr>().ok();
                addresses.extend(
                    items(&endpoint["addresses"])
                        .iter()
                        .filter_map(parse)
                        .map(|it| SocketAddr::from((it, number))),
                );
            }
        }
        addresses.sort();
        addresses.dedup();
        let endpoints: Box<[Arc<Endpoint>]> = addresses
            .into_iter()
            .map(|address| {
                let new = || Arc::new(Endpoint { address, ejected_until_ms: AtomicU64::new(0) });
                Arc::clone(self.endpoints.entry(address).or_insert_with(new))
            })
            .collect();
        let before = self.previous.backends.get(&key);
        let backend = Arc::new(Backend {
            had_endpoints: !endpoints.is_empty() || before.is_some_and(|it| it.had_endpoints),
            endpoints,
            turn: AtomicUsize::new(before.map_or(0, |it| it.turn.load(Relaxed))),
        });
        self.table.backends.insert(key, Arc::clone(&backend));
        Ok(backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::intersect;
    use serde_json::json;

    #[test]
    fn shares_are_exact_and_spread() {
        assert_eq!(schedule(&[3, 1]).to_vec(), [0u16, 0, 1, 0]);
        assert_eq!(schedule(&[50, 50]).to_vec(), [0u16, 1]);
        assert!(schedule(&[0, 0]).is_empty());
        for weights in [vec![90, 10], vec![1, 2, 7], vec![333_333, 666_667], vec![1_000_000, 1], vec![0, 5]] {
            let turns = schedule(&weights);
            let sum: u64 = weights.iter().sum();
            for (index, weight) in weights.iter().enumerate() {
                let count =
                    (0..10_000).filter(|it| usize::from(turns[it % turns.len()]) == index).count() as f64;
                let want = 10_000.0 * *weight as f64 / sum as f64;
                assert!((count - want).abs() <= 50.0, "{weights:?}: {count} instead of {want}");
            }
        }
    }

    fn objects(rules: Value) -> [Vec<Arc<Value>>; 4] {
        let gateway = json!({"metadata": {"name": "g", "namespace": "d"}, "spec": {"gatewayClassName": "naru",
            "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}]}});
        let route = json!({"metadata": {"name": "r", "namespace": "d", "generation": 3}, "spec": {
            "parentRefs": [{"name": "g"}], "hostnames": ["a.test", "*.b.test"], "rules": rules}});
        let service = |name: &str| {
            json!({"metadata": {"name": name, "namespace": "d"}, "spec": {
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
        };
        let slice = json!({"metadata": {"name": "s", "namespace": "d", "labels": {"kubernetes.io/service-name": "one"}},
            "ports": [{"name": "http", "port": 8080}], "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"], "conditions": {}}]});
        let arc = |it: Vec<Value>| it.into_iter().map(Arc::new).collect();
        [arc(vec![gateway]), arc(vec![route]), arc(vec![service("one"), service("two")]), arc(vec![slice])]
    }

    fn compiled(all: &[Vec<Arc<Value>>; 4], previous: &Table) -> (Table, Vec<Finding>) {
        let objects = Objects {
            gateways: &all[0],
            routes: &all[1],
            services: &all[2],
            slices: &all[3],
            grants: &[],
            secrets: &[],
        };
        compile(objects, &Metrics::default(), previous)
    }

    fn service_of(table: &Table, host: &str, path: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert("x-beta", HeaderValue::from_static("1"));
        let headers = if path.ends_with("beta") { headers } else { HeaderMap::new() };
        let rule = table.find(Scheme::Http, host, &path.parse().unwrap(), &Method::GET, &headers)?;
        Some(rule.next()?.service.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_most_specific_rule_wins() {
        let backend = |name: &str| json!([{"name": name, "port": 80}]);
        let all = objects(json!([
            {"backendRefs": backend("root")},
            {"matches": [{"path": {"type": "PathPrefix", "value": "/api/"}}], "backendRefs": backend("api")},
            {"matches": [{"path": {"type": "Exact", "value": "/api/x"}}], "backendRefs": backend("exact")},
            {"matches": [{"headers": [{"name": "X-Beta", "value": "1"}]}], "backendRefs": backend("beta")},
        ]));
        let (table, _) = compiled(&all, &Table::default());
        for (host, path, want) in [
            ("a.test", "/", Some("root")),
            ("A.TEST:8080", "/api", Some("api")),
            ("a.test", "/api/y", Some("api")),
            ("a.test", "/apix", Some("root")),
            ("a.test", "/api/x", Some("exact")),
            ("x.b.test", "/", Some("root")),
            ("b.test", "/", None),
            ("c.test", "/", None),
            ("a.test", "/beta", Some("beta")),
            ("", "/", None),
        ] {
            assert_eq!(service_of(&table, host, path).as_deref(), want, "{host} {path}");
        }
    }

    #[test]
    fn only_ready_pods_are_used_and_their_state_outlives_the_table() {
        let all = objects(
            json!([{"backendRefs": [{"name": "one", "port": 80, "weight": 9}, {"name": "two", "port": 80}]}]),
        );
        let (table, findings) = compiled(&all, &Table::default());
        assert!(findings[0].unresolved.is_none());
        let backend = &table.backends[&("d".to_owned(), "one".to_owned(), 80)];
        let addresses: Vec<String> = backend.endpoints.iter().map(|it| it.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.1:8080", "10.0.0.3:8080"]);
        backend.endpoints[0].ejected_until_ms.store(1000, Relaxed);
        for _ in 0..4 {
            assert_eq!(
                backend.next(500, 0).unwrap().address.to_string(),
                "10.0.0.3:8080",
                "the other is ejected"
            );
        }
        let (again, _) = compiled(&all, &table);
        let again = &again.backends[&("d".to_owned(), "one".to_owned(), 80)];
        assert_eq!(again.endpoints[0].ejected_until_ms.load(Relaxed), 1000);
        let none = [all[0].clone(), all[1].clone(), all[2].clone(), vec![]];
        let (empty, _) = compiled(&none, &table);
        let empty = &empty.backends[&("d".to_owned(), "one".to_owned(), 80)];
        assert!(empty.endpoints.is_empty() && empty.had_endpoints, "more will come");
        assert!(!table.backends[&("d".to_owned(), "two".to_owned(), 80)].had_endpoints);
    }

    #[test]
    fn a_rule_that_cannot_be_honoured_harms_only_itself() {
        let all = objects(json!([
            {"matches": [{"path": {"value": "/old"}}], "filters": [{"type": "RequestMirror"}], "backendRefs": [{"name": "one", "port": 80}]},
            {"backendRefs": [{"name": "one", "port": 80}, {"name": "gone", "port": 80}]},
        ]));
        let (table, findings) = compiled(&all, &Table::default());
        let target = |path: &str| {
            let rule = table
                .find(Scheme::Http, "a.test", &path.parse().unwrap(), &Method::GET, &HeaderMap::new())
                .unwrap();
            [rule.next().unwrap().backend.is_some(), rule.next().map(|it| it.backend.is_some()).unwrap()]
        };
        assert_eq!(target("/old"), [false, false]);
        assert_eq!(target("/"), [true, false], "half of the requests have nowhere to go");
        let finding = &findings[0];
        assert_eq!(finding.unsupported, ["rules[0]: the filter RequestMirror is not supported"]);
        assert_eq!(finding.unresolved.as_ref().unwrap().0, "BackendNotFound");
    }

    #[test]
    fn routes_of_other_gateways_are_not_ours() {
        let mut all = objects(json!([{"backendRefs": [{"name": "one", "port": 80}]}]));
        let mut other = (*all[0][0]).clone();
        other["spec"]["gatewayClassName"] = json!("other");
        all[0] = vec![Arc::new(other)];
        let (table, findings) = compiled(&all, &Table::default());
        assert!(findings.is_empty() && service_of(&table, "a.test", "/").is_none());
        assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("5"), None);
        assert_eq!(intersect("*.test", "a.test").as_deref(), Some("a.test"));
        assert_eq!(intersect("a.test", "b.test"), None);
    }
}
