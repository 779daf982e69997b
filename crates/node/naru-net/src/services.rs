//! Services as nft rules: a packet to a service's address goes to one of its endpoints.
//!
//! A pure function from objects to the text of one table. It applies to pods of the bridge and to the
//! machine itself (`ClusterIP`), and to whoever reaches the machine (`NodePort`, `externalIPs`,
//! `LoadBalancer`, host ports). The table outlives the daemon, so traffic flows while it restarts.
//!
//! Affinity by client address is a hash of that address: the same client meets the same endpoint for as
//! long as the endpoints stay the same, and no state can be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use serde_json::Value;

use crate::Config;
use crate::balancers::{Key, MachinePort, is_ours};

/// What the rules follow from.
pub struct Objects<'a> {
    pub services: &'a [Arc<Value>],
    pub slices: &'a [Arc<Value>],
    pub pods: &'a [Arc<Value>],
    /// The ports of the machine that services of the type LoadBalancer have got.
    pub open: &'a BTreeMap<MachinePort, Key>,
    /// The name of this node: some policies keep traffic on it.
    pub node: &'a str,
}

pub fn table_name(config: &Config) -> String {
    format!("{}_services", crate::firewall::table_name(config))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// An address as nft takes it; everything else is left out, for it may be anything that somebody wrote.
fn address(value: &str) -> Option<&str> {
    value.parse::<std::net::Ipv4Addr>().ok().filter(|it| !it.is_unspecified()).map(|_| value)
}

/// Whether it is a network of IPv4, as nft takes it.
fn network(value: &str) -> bool {
    value.split_once('/').is_some_and(|(first, length)| {
        first.parse::<std::net::Ipv4Addr>().is_ok() && length.parse::<u8>().is_ok_and(|it| it <= 32)
    })
}

fn protocol(port: &Value) -> Option<&'static str> {
    match port["protocol"].as_str().unwrap_or("TCP") {
        "TCP" => Some("tcp"),
        "UDP" => Some("udp"),
        "SCTP" => Some("sctp"),
        _ => None,
    }
}

fn number(port: &Value) -> Option<u64> {
    port.as_u64().filter(|it| (1..=65535).contains(it))
}

/// One place that serves.
type Endpoint = (String, u64);

#[derive(Default)]
struct Rules {
    /// Address, protocol and port of services -> chain.
    services: BTreeMap<String, String>,
    /// The same of addresses by which the outside knows a service.
    outside: BTreeMap<String, String>,
    /// Protocol and port of the machine -> chain.
    ports: BTreeMap<String, String>,
    chains: BTreeMap<String, String>,
    addresses: BTreeSet<String>,
    endpoints: BTreeSet<String>,
}

impl Rules {
    /// The chain that leads to these endpoints; services with the same ones share it.
    fn chain(&mut self, protocol: &str, endpoints: &BTreeSet<Endpoint>, sticky: bool) -> Option<String> {
        let body = match endpoints.len() {
            0 => return None,
            1 => {
                let (address, port) = endpoints.first()?;
                format!("meta l4proto {protocol} dnat ip to {address}:{port}")
            }
            count => {
                let choice = if sticky { "jhash ip saddr" } else { "numgen random" };
                let targets: Vec<String> = endpoints
                    .iter()
                    .enumerate()
                    .map(|(at, (address, port))| format!("{at} : {address} . {port}"))
                    .collect();
                let targets = targets.join(", ");
                format!("meta l4proto {protocol} dnat ip to {choice} mod {count} map {{ {targets} }}")
            }
        };
        self.endpoints.extend(endpoints.iter().map(|it| it.0.clone()));
        Some(self.add(body))
    }

    fn add(&mut self, body: String) -> String {
        let next = format!("s{}", self.chains.len());
        self.chains.entry(body).or_insert(next).clone()
    }

    /// The chain for clients of these networks; the others meet whatever the machine itself has there.
    fn only_from(&mut self, ranges: &[Value], chain: String) -> String {
        let ranges: Vec<&str> =
            ranges.iter().filter_map(Value::as_str).map(str::trim).filter(|it| network(it)).collect();
        match ranges.is_empty() {
            true => chain,
            false => self.add(format!("ip saddr {{ {} }} goto {chain}", ranges.join(", "))),
        }
    }
}

/// The endpoints of one port of a service: those that are ready, or, when none is, those that still serve
/// while they end.
fn endpoints(objects: &Objects<'_>, slices: &[&Arc<Value>], port: &Value, local: bool) -> BTreeSet<Endpoint> {
    let (mut ready, mut ending) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices {
        let matching = list(slice, "/ports")
            .iter()
            .find(|it| text(it, "/name") == text(port, "/name") && protocol(it) == protocol(port));
        let Some(target) = matching.and_then(|it| number(&it["port"])) else { continue };
        for endpoint in list(slice, "/endpoints") {
            if local && endpoint["nodeName"] != objects.node {
                continue;
            }
            let conditions = &endpoint["conditions"];
            let set = if conditions["ready"] != false {
                &mut ready
            } else if conditions["serving"] == true && conditions["terminating"] == true {
                &mut ending
            } else {
                continue;
            };
            let addresses = list(endpoint, "/addresses").iter().filter_map(|it| address(it.as_str()?));
            set.extend(addresses.map(|it| (it.to_string(), target)));
        }
    }
    if ready.is_empty() { ending } else { ready }
}

/// The whole table, as a transaction for `nft -f -`.
pub fn rules(config: &Config, objects: &Objects<'_>) -> String {
    let mut rules = Rules::default();
    let mut by_service: BTreeMap<(&str, &str), Vec<&Arc<Value>>> = BTreeMap::new();
    for slice in objects.slices.iter().filter(|it| it["addressType"] == "IPv4") {
        let service = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str().unwrap_or("");
        by_service.entry((text(slice, "/metadata/namespace"), service)).or_default().push(slice);
    }
    for service in objects.services {
        let key = (text(service, "/metadata/namespace"), text(service, "/metadata/name"));
        add_service(&mut rules, objects, service, by_service.get(&key).map_or(&[], Vec::as_slice));
    }
    for pod in objects.pods {
        add_host_ports(&mut rules, pod);
    }
    render(config, &rules)
}

fn add_service(rules: &mut Rules, objects: &Objects<'_>, service: &Value, slices: &[&Arc<Value>]) {
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        return;
    }
    let sticky = spec["sessionAffinity"] == "ClientIP";
    let own = address(text(spec, "/clusterIP"));
    let outside: BTreeSet<&str> = list(spec, "/externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .chain(list(service, "/status/loadBalancer/ingress").iter().map(|it| text(it, "/ip")))
        .filter_map(address)
        .collect();
    for port in list(spec, "/ports") {
        let (Some(protocol), Some(number_of)) = (protocol(port), number(&port["port"])) else { continue };
        if let Some(own) = own {
            rules.addresses.insert(own.to_string());
            let local = spec["internalTrafficPolicy"] == "Local";
            let places = endpoints(objects, slices, port, local);
            if let Some(chain) = rules.chain(protocol, &places, sticky) {
                rules.services.insert(format!("{own} . {protocol} . {number_of}"), chain);
            }
        }
        let node_port = number(&port["nodePort"]);
        let machine_port = (protocol, number_of as u16);
        let is_open = is_ours(service)
            && objects.open.get(&machine_port).is_some_and(|it| {
                it.0 == text(service, "/metadata/namespace") && it.1 == text(service, "/metadata/name")
            });
        if outside.is_empty() && node_port.is_none() && !is_open {
            continue;
        }
        let places = endpoints(objects, slices, port, spec["externalTrafficPolicy"] == "Local");
        let Some(chain) = rules.chain(protocol, &places, sticky) else { continue };
        for address in &outside {
            rules.outside.insert(format!("{address} . {protocol} . {number_of}"), chain.clone());
        }
        if let Some(node_port) = node_port {
            rules.ports.insert(format!("{protocol} . {node_port}"), chain.clone());
        }
        if is_open {
            let chain = rules.only_from(list(spec, "/loadBalancerSourceRanges"), chain);
            rules.ports.insert(format!("{protocol} . {number_of}"), chain);
        }
    }
}

fn add_host_ports(rules: &mut Rules, pod: &Value) {
    let ended = ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"));
    let Some(own) =
        address(text(pod, "/status/podIP")).filter(|_| pod["spec"]["hostNetwork"] != true && !ended)
    else {
        return;
    };
    for port in list(pod, "/spec/containers").iter().flat_map(|it| list(it, "/ports")) {
        let (Some(protocol), Some(on_host)) = (protocol(port), number(&port["hostPort"])) else { continue };
        let Some(inside) = number(&port["containerPort"]) else { continue };
        let place = BTreeSet::from([(own.to_string(), inside)]);
        let Some(chain) = rules.chain(protocol, &place, false) else { continue };
        match address(text(port, "/hostIP")) {
            Some(address) => rules.outside.insert(format!("{address} . {protocol} . {on_host}"), chain),
            None => rules.ports.insert(format!("{protocol} . {on_host}"), chain),
        };
    }
}

fn render(config: &Config, rules: &Rules) -> String {
    let (table, bridge) = (table_name(config), &config.bridge);
    let mut out = format!("table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n");
    let mut write = |line: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{line}");
    };
    for (body, chain) in &rules.chains {
        write(&format!("chain {chain} {{\n{body}\n}}"));
    }
    let elements = |items: Vec<String>| match items.is_empty() {
        true => String::new(),
        false => format!("\nelements = {{ {} }}", items.join(", ")),
    };
    let verdicts = |map: &BTreeMap<String, String>| {
        elements(map.iter().map(|(key, it)| format!("{key} : goto {it}")).collect())
    };
    for (name, kind, map) in [
        ("services", "ipv4_addr . inet_proto . inet_service", &rules.services),
        ("outside", "ipv4_addr . inet_proto . inet_service", &rules.outside),
        ("ports", "inet_proto . inet_service", &rules.ports),
    ] {
        write(&format!("map {name} {{\ntype {kind} : verdict{}\n}}", verdicts(map)));
    }
    let addresses = elements(rules.addresses.iter().cloned().collect());
    write(&format!("set addresses {{\ntype ipv4_addr{addresses}\n}}"));
    let same = elements(rules.endpoints.iter().map(|it| format!("{it} . {it}")).collect());
    write(&format!("set itself {{\ntype ipv4_addr . ipv4_addr{same}\n}}"));
    write(&format!(
        "chain prerouting {{\n\
         type nat hook prerouting priority -100; policy accept;\n\
         iifname \"{bridge}\" ip daddr . meta l4proto . th dport vmap @services\n\
         ip daddr . meta l4proto . th dport vmap @outside\n\
         fib daddr type local meta l4proto . th dport vmap @ports\n\
         }}\n\
         chain output {{\n\
         type nat hook output priority -100; policy accept;\n\
         ip daddr . meta l4proto . th dport vmap @services\n\
         ip daddr . meta l4proto . th dport vmap @outside\n\
         fib daddr type local meta l4proto . th dport vmap @ports\n\
         }}"
    ));
    // A pod that meets itself, and the machine's loopback address, must be answered through the machine.
    write(&format!(
        "chain postrouting {{\n\
         type nat hook postrouting priority 100; policy accept;\n\
         ct status dnat ip saddr . ip daddr @itself masquerade\n\
         oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade\n\
         }}"
    ));
    // The loopback addresses are routable on the bridge for the machine's own sake, not for the pods'.
    write(&format!(
        "chain guard {{\n\
         type filter hook prerouting priority -300; policy accept;\n\
         iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop\n\
         }}"
    ));
    // A service without endpoints refuses at once; nothing of it leaves the machine.
    write(&format!(
        "chain forward {{\n\
         type filter hook forward priority 0; policy accept;\n\
         iifname \"{bridge}\" ip daddr @addresses meta l4proto tcp reject with tcp reset\n\
         iifname \"{bridge}\" ip daddr @addresses reject with icmp port-unreachable\n\
         }}\n\
         chain host {{\n\
         type filter hook output priority 0; policy accept;\n\
         ip daddr @addresses meta l4proto tcp reject with tcp reset\n\
         ip daddr @addresses reject with icmp port-unreachable\n\
         }}"
    ));
    write("}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(service: Value, endpoints: Value, expected: &[&str]) {
        let config = Config::new("nt0", "10.9.0.0/24".parse().expect("a subnet"));
        let mut service = service;
        service["metadata"] = json!({"name": "web", "namespace": "default"});
        let slice = json!({"metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints});
        let (services, slices) = ([Arc::new(service)], [Arc::new(slice)]);
        let open = crate::balancers::claims(&services);
        let objects = Objects { services: &services, slices: &slices, pods: &[], open: &open, node: "n1" };
        let text = rules(&config, &objects);
        for line in expected {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    fn ready(address: &str, node: &str) -> Value {
        json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
    }

    #[test]
    fn addresses_and_ports_lead_to_endpoints() {
        let port = json!({"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080});
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.9", "ports": [port], "externalIPs": ["192.0.2.1"]});
        let two = json!([ready("10.9.0.2", "n1"), ready("10.9.0.3", "n2")]);
        let expected = [
            "dnat ip to numgen random mod 2 map { 0 : 10.9.0.2 . 8080, 1 : 10.9.0.3 . 8080 }",
            "10.96.0.9 . tcp . 80 : goto s0",
            "192.0.2.1 . tcp . 80 : goto s0",
            "tcp . 30080 : goto s0",
        ];
        check(json!({"spec": spec}), two.clone(), &expected);
        let mut sticky = spec.clone();
        sticky["sessionAffinity"] = json!("ClientIP");
        check(json!({"spec": sticky}), two.clone(), &["jhash ip saddr mod 2"]);
        let mut local = spec.clone();
        local["externalTrafficPolicy"] = json!("Local");
        check(json!({"spec": local}), two, &["tcp . 30080 : goto s1", "dnat ip to 10.9.0.2:8080"]);
        check(
            json!({"spec": spec}),
            json!([]),
            &["set addresses {\ntype ipv4_addr\nelements = { 10.96.0.9 }"],
        );
    }

    #[test]
    fn a_load_balancer_is_the_machine_itself() {
        let port = json!({"name": "http", "port": 8080, "protocol": "TCP"});
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [port]});
        let one = json!([ready("10.9.0.2", "n1")]);
        check(json!({"spec": spec}), one.clone(), &["tcp . 8080 : goto s0"]);
        let mut local = spec.clone();
        local["loadBalancerSourceRanges"] = json!(["127.0.0.0/8", "bad; flush"]);
        check(json!({"spec": local}), one, &["ip saddr { 127.0.0.0/8 } goto s0", "tcp . 8080 : goto s1"]);
    }

    #[test]
    fn what_ends_serves_only_when_nobody_else_does() {
        let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}]});
        let ending = json!({"addresses": ["10.9.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}});
        check(json!({"spec": spec}), json!([ending, ready("10.9.0.3", "n1")]), &["dnat ip to 10.9.0.3:8080"]);
        check(json!({"spec": spec}), json!([ending]), &["dnat ip to 10.9.0.2:8080"]);
    }
}
