//! The names of the cluster: the zone `cluster.local` as Kubernetes specifies it, and the way back from
//! addresses.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::Value;

use super::message::{A, ANY, Answer, CNAME, Code, Data, PTR, Question, Record, SRV, TXT};
use crate::Subnet;

const DOMAIN: &str = "cluster.local";
const REVERSE: &str = "in-addr.arpa";
/// The version of the specification that is followed.
const VERSION: &str = "1.1.0";

pub struct Zone<'a> {
    pub services: &'a [Arc<Value>],
    pub slices: &'a [Arc<Value>],
    pub pods: &'a [Arc<Value>],
    pub namespaces: &'a [Arc<Value>],
    pub subnet: Subnet,
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn is_named(object: &Value, place: &str, name: &str) -> bool {
    text(object, "/metadata/name") == name && text(object, "/metadata/namespace") == place
}

/// A place behind a headless service.
struct Member<'a> {
    /// Its own name below the service's.
    host: String,
    address: Ipv4Addr,
    slice: &'a Value,
}

/// `10-88-0-2`: the name of who has none.
fn dashed(address: Ipv4Addr) -> String {
    address.to_string().replace('.', "-")
}

fn found(records: Vec<Record>) -> Answer {
    Answer { code: Code::Fine, records, additional: vec![], outside: None, zone: Some(DOMAIN) }
}

fn nothing(code: Code) -> Answer {
    Answer { code, records: vec![], additional: vec![], outside: None, zone: Some(DOMAIN) }
}

impl Zone<'_> {
    /// `None` when the name is not the cluster's to answer for.
    pub fn answer(&self, question: &Question) -> Option<Answer> {
        let name = question.name.as_str();
        if let Some(reversed) = name.strip_suffix(REVERSE) {
            return self.reverse(name, reversed, question.kind);
        }
        if name != DOMAIN && !name.ends_with(&format!(".{DOMAIN}")) {
            return None;
        }
        let below = name.strip_suffix(DOMAIN).unwrap_or("").trim_end_matches('.');
        let labels: Vec<&str> = below.split('.').filter(|it| !it.is_empty()).collect();
        let Some(records) = self.records(name, &labels) else { return Some(nothing(Code::NoSuchName)) };
        let mut outside = None;
        let mut additional = Vec::new();
        let mut wanted = Vec::new();
        for record in records {
            let kind = match &record.data {
                Data::Address(_) => A,
                Data::Name(kind, target) => {
                    if *kind == CNAME && question.kind != CNAME {
                        outside = Some(target.clone());
                    }
                    *kind
                }
                Data::Service { target, .. } => {
                    let below = target.strip_suffix(DOMAIN).unwrap_or("").trim_end_matches('.');
                    let labels: Vec<&str> = below.split('.').collect();
                    if question.kind == SRV {
                        let targets = self.records(target, &labels).unwrap_or_default();
                        additional
                            .extend(targets.into_iter().filter(|it| matches!(it.data, Data::Address(_))));
                    }
                    SRV
                }
                Data::Text(_) => TXT,
            };
            if kind == question.kind || kind == CNAME || question.kind == ANY {
                wanted.push(record);
            }
        }
        additional.dedup();
        Some(Answer { outside: outside.filter(|_| question.kind == A), additional, ..found(wanted) })
    }

    /// All records of a name, or `None` if there is no such name.
    fn records(&self, name: &str, labels: &[&str]) -> Option<Vec<Record>> {
        let nothing = Some(Vec::new());
        match labels {
            [] | ["svc"] | ["pod"] => nothing,
            ["dns-version"] => Some(vec![Record { name: name.into(), data: Data::Text(VERSION.into()) }]),
            [place, "svc" | "pod"] => self.has_namespace(place).then(Vec::new),
            [address, place, "pod"] => {
                let address: Ipv4Addr = address.replace('-', ".").parse().ok()?;
                let here = |pod: &Arc<Value>| {
                    text(pod, "/metadata/namespace") == *place
                        && text(pod, "/status/podIP") == address.to_string()
                };
                self.pods.iter().any(here).then(|| vec![Record::address(name, address)])
            }
            [service, place, "svc"] => self.of_service(name, service, place),
            [port, protocol, service, place, "svc"] if port.starts_with('_') && protocol.starts_with('_') => {
                let records = self.ports(name, &port[1..], &protocol[1..], service, place)?;
                (!records.is_empty()).then_some(records)
            }
            [host, service, place, "svc"] => {
                if host.starts_with('_') {
                    return self.service(service, place).map(|_| Vec::new());
                }
                let members = self.members(service, place)?;
                let records: Vec<Record> = members
                    .iter()
                    .filter(|it| it.host == *host)
                    .map(|it| Record::address(name, it.address))
                    .collect();
                (!records.is_empty()).then_some(records)
            }
            _ => None,
        }
    }

    fn has_namespace(&self, place: &str) -> bool {
        self.namespaces.iter().any(|it| text(it, "/metadata/name") == place)
    }

    fn service(&self, service: &str, place: &str) -> Option<&Arc<Value>> {
        self.services.iter().find(|it| is_named(it, place, service))
    }

    fn of_service(&self, name: &str, service: &str, place: &str) -> Option<Vec<Record>> {
        let object = self.service(service, place)?;
        if object["spec"]["type"] == "ExternalName" {
            let target = text(object, "/spec/externalName").trim_end_matches('.').to_string();
            return Some(vec![Record { name: name.into(), data: Data::Name(CNAME, target) }]);
        }
        if let Ok(address) = text(object, "/spec/clusterIP").parse() {
            let mut records = vec![Record::address(name, address)];
            records.extend(self.all_ports(name, object, place));
            return Some(records);
        }
        let members = self.members(service, place)?;
        let addresses: BTreeSet<Ipv4Addr> = members.iter().map(|it| it.address).collect();
        let mut records: Vec<Record> = addresses.into_iter().map(|it| Record::address(name, it)).collect();
        records.extend(self.all_ports(name, object, place));
        Some(records)
    }

    /// `SRV` of a service itself: all its ports.
    fn all_ports(&self, name: &str, service: &Value, place: &str) -> Vec<Record> {
        let own = text(service, "/metadata/name");
        let ports = list(service, "/spec/ports").iter();
        ports
            .flat_map(|port| {
                let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
                self.ports(name, text(port, "/name"), &protocol, own, place).unwrap_or_default()
            })
            .collect()
    }

    fn ports(
        &self,
        name: &str,
        port: &str,
        protocol: &str,
        service: &str,
        place: &str,
    ) -> Option<Vec<Record>> {
        let object = self.service(service, place)?;
        let matches = |it: &Value| {
            text(it, "/name") == port
                && it["protocol"].as_str().unwrap_or("TCP").eq_ignore_ascii_case(protocol)
        };
        let base = format!("{service}.{place}.svc.{DOMAIN}");
        let record = |number: &Value, target: String| {
            let port = u16::try_from(number.as_u64()?).ok()?;
            Some(Record { name: name.into(), data: Data::Service { port, target } })
        };
        if text(object, "/spec/clusterIP").parse::<Ipv4Addr>().is_ok() {
            let ports = list(object, "/spec/ports").iter().filter(|it| matches(it));
            return Some(ports.filter_map(|it| record(&it["port"], base.clone())).collect());
        }
        let mut records = Vec::new();
        for member in self.members(service, place)? {
            for port in list(member.slice, "/ports").iter().filter(|it| matches(it)) {
                records.extend(record(&port["port"], format!("{}.{base}", member.host)));
            }
        }
        Some(records)
    }

    /// Who is behind a service without an address of its own.
    fn members(&self, service: &str, place: &str) -> Option<Vec<Member<'_>>> {
        let object = self.service(service, place)?;
        if text(object, "/spec/clusterIP") != "None" {
            return Some(Vec::new());
        }
        let mut members = Vec::new();
        for slice in self.slices.iter().filter(|it| {
            text(it, "/metadata/namespace") == place
                && it["metadata"]["labels"]["kubernetes.io/service-name"] == service
        }) {
            for endpoint in list(slice, "/endpoints").iter().filter(|it| it["conditions"]["ready"] != false) {
                for address in list(endpoint, "/addresses").iter().filter_map(|it| it.as_str()?.parse().ok())
                {
                    let host = match text(endpoint, "/hostname") {
                        "" => dashed(address),
                        host => host.to_string(),
                    };
                    members.push(Member { host, address, slice });
                }
            }
        }
        Some(members)
    }

    /// From an address to its name. Addresses that are not the cluster's are asked elsewhere.
    fn reverse(&self, name: &str, reversed: &str, kind: u16) -> Option<Answer> {
        let parts: Vec<&str> = reversed.trim_end_matches('.').rsplit('.').collect();
        let address: Ipv4Addr = parts.join(".").parse().ok()?;
        let as_text = address.to_string();
        let pointer = |target: String| {
            let records = vec![Record { name: name.into(), data: Data::Name(PTR, target) }];
            found(if kind == PTR || kind == ANY { records } else { vec![] })
        };
        if let Some(service) = self.services.iter().find(|it| text(it, "/spec/clusterIP") == as_text) {
            let (own, place) = (text(service, "/metadata/name"), text(service, "/metadata/namespace"));
            return Some(pointer(format!("{own}.{place}.svc.{DOMAIN}")));
        }
        for slice in self.slices {
            let place = text(slice, "/metadata/namespace");
            let service = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap_or("");
            let headless =
                self.service(service, place).is_some_and(|it| text(it, "/spec/clusterIP") == "None");
            let endpoint = list(slice, "/endpoints")
                .iter()
                .find(|it| list(it, "/addresses").iter().any(|it| it == as_text.as_str()));
            if let Some(endpoint) = endpoint.filter(|_| headless) {
                let host = match text(endpoint, "/hostname") {
                    "" => dashed(address),
                    host => host.to_string(),
                };
                return Some(pointer(format!("{host}.{service}.{place}.svc.{DOMAIN}")));
            }
        }
        self.subnet.contains(address).then(|| nothing(Code::NoSuchName))
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::{CNAME, query_for_address};
    use super::*;
    use serde_json::json;

    fn ask(name: &str, kind: u16) -> String {
        let place = json!({"metadata": {"name": "a"}});
        let service = |name: &str, spec: Value| {
            Arc::new(json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec}))
        };
        let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
        let services = [
            service("web", json!({"clusterIP": "10.96.0.9", "ports": ports})),
            service("db", json!({"clusterIP": "None", "ports": ports})),
            service("far", json!({"type": "ExternalName", "externalName": "example.org"})),
        ];
        let slices = [Arc::new(
            json!({"metadata": {"namespace": "a", "labels": {"kubernetes.io/service-name": "db"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": [
                {"addresses": ["10.9.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.9.0.3"], "conditions": {"ready": true}},
                {"addresses": ["10.9.0.4"], "conditions": {"ready": false}}]}),
        )];
        let pods = [Arc::new(json!({"metadata": {"namespace": "a"}, "status": {"podIP": "10.9.0.2"}}))];
        let zone = Zone {
            services: &services,
            slices: &slices,
            pods: &pods,
            namespaces: &[Arc::new(place)],
            subnet: "10.9.0.0/24".parse().expect("a subnet"),
        };
        let mut question = Question::parse(&query_for_address(name)).expect("a question");
        question.kind = kind;
        let Some(answer) = zone.answer(&question) else { return "elsewhere".into() };
        let words = answer.records.iter().map(|it| match &it.data {
            Data::Address(address) => address.to_string(),
            Data::Name(_, name) => name.clone(),
            Data::Service { port, target } => format!("{target}:{port}"),
            Data::Text(text) => text.clone(),
        });
        match answer.code {
            Code::NoSuchName => "no such name".into(),
            _ => words.collect::<Vec<_>>().join(" "),
        }
    }

    #[test]
    fn names_are_those_of_the_specification() {
        for (name, kind, expected) in [
            ("web.a.svc.cluster.local", A, "10.96.0.9"),
            ("WEB.A.svc.cluster.local", A, "10.96.0.9"),
            ("web.b.svc.cluster.local", A, "no such name"),
            ("web.a.svc.cluster.local", 28, ""),
            ("_http._tcp.web.a.svc.cluster.local", SRV, "web.a.svc.cluster.local:80"),
            ("_ftp._tcp.web.a.svc.cluster.local", SRV, "no such name"),
            ("db.a.svc.cluster.local", A, "10.9.0.2 10.9.0.3"),
            ("db-0.db.a.svc.cluster.local", A, "10.9.0.2"),
            ("10-9-0-3.db.a.svc.cluster.local", A, "10.9.0.3"),
            (
                "_http._tcp.db.a.svc.cluster.local",
                SRV,
                "db-0.db.a.svc.cluster.local:8080 10-9-0-3.db.a.svc.cluster.local:8080",
            ),
            ("far.a.svc.cluster.local", A, "example.org"),
            ("far.a.svc.cluster.local", CNAME, "example.org"),
            ("10-9-0-2.a.pod.cluster.local", A, "10.9.0.2"),
            ("dns-version.cluster.local", TXT, "1.1.0"),
            ("9.0.96.10.in-addr.arpa", PTR, "web.a.svc.cluster.local"),
            ("2.0.9.10.in-addr.arpa", PTR, "db-0.db.a.svc.cluster.local"),
            ("77.0.9.10.in-addr.arpa", PTR, "no such name"),
            ("1.1.1.1.in-addr.arpa", PTR, "elsewhere"),
            ("example.org", A, "elsewhere"),
            ("svc.cluster.local", A, ""),
        ] {
            assert_eq!(ask(name, kind), expected, "{name}");
        }
    }
}
