//! NetworkPolicies as nft rules: who may talk to whom.
//!
//! A pure function from objects to the text of one table. Pods that no policy selects are open; for the
//! others everything is refused that no rule allows. The machine itself always reaches its pods (probes),
//! and pods always reach the cluster's name server, without which nothing works and which is no pod here
//! that a policy could name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

use serde_json::Value;

use crate::Config;

pub struct Objects<'a> {
    pub policies: &'a [Arc<Value>],
    pub pods: &'a [Arc<Value>],
    pub namespaces: &'a [Arc<Value>],
}

pub fn table_name(config: &Config) -> String {
    format!("{}_policies", crate::firewall::table_name(config))
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether labels match a selector; the empty one matches all.
fn selects(selector: &Value, labels: &Value) -> bool {
    let plain = selector["matchLabels"].as_object().into_iter().flatten().all(|(key, it)| labels[key] == *it);
    plain
        && list(selector, "/matchExpressions").iter().all(|it| {
            let value = labels[text(it, "/key")].as_str();
            let among = list(it, "/values").iter().any(|it| it.as_str() == value && value.is_some());
            match text(it, "/operator") {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    In,
    Out,
}

impl Way {
    fn word(self) -> &'static str {
        if self == Way::In { "Ingress" } else { "Egress" }
    }

    /// The field of the other side's address.
    fn other(self) -> &'static str {
        if self == Way::In { "saddr" } else { "daddr" }
    }
}

struct World<'a> {
    objects: &'a Objects<'a>,
    namespaces: BTreeMap<&'a str, &'a Value>,
}

/// The pod's address, if it has one of its own.
fn address(pod: &Value) -> Option<&str> {
    let ended = ["Succeeded", "Failed"].contains(&text(pod, "/status/phase"));
    let address = text(pod, "/status/podIP");
    let own = pod["spec"]["hostNetwork"] != true && !ended && address.parse::<std::net::Ipv4Addr>().is_ok();
    own.then_some(address)
}

/// `types` when they are given; otherwise ingress, and egress when it has rules.
fn concerns(policy: &Value, way: Way) -> bool {
    let types = list(policy, "/spec/policyTypes");
    match types.is_empty() {
        true => way == Way::In || policy["spec"]["egress"].is_array(),
        false => types.iter().any(|it| it == way.word()),
    }
}

impl World<'_> {
    /// Pods that one peer of a rule means.
    fn peers(&self, peer: &Value, home: &str) -> Vec<&Arc<Value>> {
        let matches = |pod: &Value| {
            let place = text(pod, "/metadata/namespace");
            let here = match peer["namespaceSelector"].is_object() {
                false => place == home,
                true => self
                    .namespaces
                    .get(place)
                    .is_some_and(|it| selects(&peer["namespaceSelector"], &it["metadata"]["labels"])),
            };
            here && (!peer["podSelector"].is_object()
                || selects(&peer["podSelector"], &pod["metadata"]["labels"]))
        };
        self.objects.pods.iter().filter(|it| address(it).is_some() && matches(it)).collect()
    }

    /// The lines of one rule of a policy, for a pod.
    fn lines(&self, way: Way, rule: &Value, home: &str, pod: &Value) -> Vec<String> {
        let side = way.other();
        let peers = list(rule, if way == Way::In { "/from" } else { "/to" });
        let ports = list(rule, "/ports");
        // Named ports are the receiving pod's.
        let mut matches: Vec<(String, Option<&Value>)> = Vec::new();
        if peers.is_empty() {
            matches.push((String::new(), None));
        }
        for peer in peers {
            let block = &peer["ipBlock"];
            if block.is_object() {
                if let Some(cidr) = cidr(text(block, "/cidr")) {
                    let except: Vec<&str> =
                        list(block, "/except").iter().filter_map(|it| self::cidr(it.as_str()?)).collect();
                    let except = match except.is_empty() {
                        true => String::new(),
                        false => format!("ip {side} != {{ {} }} ", except.join(", ")),
                    };
                    matches.push((format!("ip {side} {cidr} {except}"), None));
                }
                continue;
            }
            let pods = self.peers(peer, home);
            let named = ports.iter().any(|it| it["port"].is_string());
            if way == Way::Out && named {
                matches.extend(
                    pods.iter().filter_map(|it| Some((format!("ip {side} {} ", address(it)?), Some(&***it)))),
                );
            } else if !pods.is_empty() {
                let addresses: BTreeSet<&str> = pods.iter().filter_map(|it| address(it)).collect();
                let addresses = addresses.into_iter().collect::<Vec<_>>().join(", ");
                matches.push((format!("ip {side} {{ {addresses} }} "), None));
            }
        }
        let mut lines = Vec::new();
        for (peer, receiver) in matches {
            if ports.is_empty() {
                lines.push(format!("{peer}return"));
            }
            let receiver = if way == Way::In { Some(pod) } else { receiver };
            lines.extend(
                ports.iter().filter_map(|it| Some(format!("{peer}{} return", port_match(it, receiver)?))),
            );
        }
        lines
    }
}

fn cidr(text: &str) -> Option<&str> {
    let (address, bits) = text.split_once('/')?;
    let fine = address.parse::<std::net::Ipv4Addr>().is_ok() && bits.parse::<u8>().is_ok_and(|it| it <= 32);
    fine.then_some(text)
}

fn port_match(port: &Value, receiver: Option<&Value>) -> Option<String> {
    let protocol = match port["protocol"].as_str().unwrap_or("TCP") {
        "TCP" => "tcp",
        "UDP" => "udp",
        "SCTP" => "sctp",
        _ => return None,
    };
    let number = match &port["port"] {
        Value::Null => return Some(format!("meta l4proto {protocol}")),
        Value::String(name) => {
            let ports = list(receiver?, "/spec/containers").iter().flat_map(|it| list(it, "/ports"));
            let own = ports.filter(|it| it["name"] == name.as_str());
            own.filter_map(|it| it["containerPort"].as_u64()).next()?
        }
        number => number.as_u64()?,
    };
    match port["endPort"].as_u64().filter(|it| *it > number && *it <= 65535) {
        Some(last) => Some(format!("{protocol} dport {number}-{last}")),
        None => Some(format!("{protocol} dport {number}")),
    }
}

/// The whole table, as a transaction for `nft -f -`, and the addresses of the pods that may not reach everything.
/// `dns` is where the cluster's name server listens.
pub fn rules(
    config: &Config,
    objects: &Objects<'_>,
    dns: std::net::SocketAddrV4,
) -> (String, BTreeSet<String>) {
    let (dns, dns_port) = (dns.ip(), dns.port());
    let namespaces = objects.namespaces.iter().map(|it| (text(it, "/metadata/name"), &**it)).collect();
    let world = World { objects, namespaces };
    // Pods with the same rules share a chain.
    let mut chains: BTreeMap<String, String> = BTreeMap::new();
    let mut maps: [BTreeMap<&str, String>; 2] = [BTreeMap::new(), BTreeMap::new()];
    for pod in objects.pods {
        let (Some(own), place) = (address(pod), text(pod, "/metadata/namespace")) else { continue };
        for (at, way) in [Way::In, Way::Out].into_iter().enumerate() {
            let mut selected = false;
            let mut lines = BTreeSet::new();
            for policy in objects.policies {
                let mine = text(policy, "/metadata/namespace") == place
                    && concerns(policy, way)
                    && selects(&policy["spec"]["podSelector"], &pod["metadata"]["labels"]);
                if mine {
                    selected = true;
                    let rules = list(policy, if way == Way::In { "/spec/ingress" } else { "/spec/egress" });
                    lines.extend(rules.iter().flat_map(|it| world.lines(way, it, place, pod)));
                }
            }
            if selected {
                let body = lines.into_iter().chain(["drop".to_string()]).collect::<Vec<_>>().join("\n");
                let next = format!("p{}", chains.len());
                maps[at].insert(own, chains.entry(body).or_insert(next).clone());
            }
        }
    }
    let (table, bridge) = (table_name(config), &config.bridge);
    let mut out = format!("table ip {table}\ndelete table ip {table}\n");
    let held: BTreeSet<String> = maps[1].keys().map(|it| (*it).to_owned()).collect();
    if chains.is_empty() {
        return (out, held);
    }
    let _ = writeln!(out, "table ip {table} {{");
    for (body, chain) in &chains {
        let _ = writeln!(out, "chain {chain} {{\n{body}\n}}");
    }
    for (name, map) in ["to_pods", "from_pods"].iter().zip(&maps) {
        let elements: Vec<String> =
            map.iter().map(|(address, chain)| format!("{address} : jump {chain}")).collect();
        let elements = match elements.is_empty() {
            true => String::new(),
            false => format!("\nelements = {{ {} }}", elements.join(", ")),
        };
        let _ = writeln!(out, "map {name} {{\ntype ipv4_addr : verdict{elements}\n}}");
    }
    // `return` of a pod's chain goes on here, with the other direction.
    let _ = write!(
        out,
        "chain forward {{\n\
         type filter hook forward priority 0; policy accept;\n\
         ct state established,related accept\n\
         iifname \"{bridge}\" ip saddr vmap @from_pods\n\
         oifname \"{bridge}\" ip daddr vmap @to_pods\n\
         }}\n\
         chain input {{\n\
         type filter hook input priority 0; policy accept;\n\
         iifname != \"{bridge}\" accept\n\
         ct state established,related accept\n\
         ip daddr {dns} meta l4proto {{ tcp, udp }} th dport {dns_port} accept\n\
         ip saddr vmap @from_pods\n\
         }}\n\
         }}\n"
    );
    (out, held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selected_pods_are_closed_but_for_what_is_allowed() {
        let pod = |name: &str, place: &str, address: &str| {
            Arc::new(json!({"metadata": {"name": name, "namespace": place, "labels": {"app": name}},
                "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]}, "status": {"podIP": address}}))
        };
        let pods = [pod("web", "a", "10.9.0.2"), pod("db", "a", "10.9.0.3"), pod("web", "b", "10.9.0.4")];
        let place = |name: &str| Arc::new(json!({"metadata": {"name": name, "labels": {"name": name}}}));
        let policy = |spec: Value| Arc::new(json!({"metadata": {"namespace": "a"}, "spec": spec}));
        let policies = [
            policy(
                json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [
                {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]},
                {"from": [{"namespaceSelector": {"matchLabels": {"name": "b"}}}], "ports": [{"port": 1000, "endPort": 2000}]},
                {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.9/32"]}}]}]}),
            ),
            policy(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
                {"to": [{"podSelector": {"matchLabels": {"app": "db"}}}], "ports": [{"port": "http"}]}]})),
        ];
        let config = Config::new("nt0", "10.9.0.0/24".parse().expect("a subnet"));
        let objects = Objects { policies: &policies, pods: &pods, namespaces: &[place("a"), place("b")] };
        let (text, held) = rules(&config, &objects, "10.9.0.1:53".parse().expect("an address"));
        assert_eq!(held.into_iter().collect::<Vec<_>>(), ["10.9.0.2", "10.9.0.3"]);
        for line in [
            "ip saddr { 10.9.0.2 } tcp dport 8080 return",
            "ip saddr { 10.9.0.4 } tcp dport 1000-2000 return",
            "ip saddr 192.0.2.0/24 ip saddr != { 192.0.2.9/32 } return",
            "ip daddr 10.9.0.3 tcp dport 8080 return\ndrop",
            "map to_pods {\ntype ipv4_addr : verdict\nelements = { 10.9.0.3 : jump",
            "elements = { 10.9.0.2 : jump p0, 10.9.0.3 : jump p0 }",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let open = Objects { policies: &[], ..objects };
        let (text, held) = rules(&config, &open, "10.9.0.1:53".parse().expect("an address"));
        assert!(!text.contains("chain") && held.is_empty());
    }
}
