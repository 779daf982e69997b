//! Addresses and ports of Services: which a service keeps, which it is given. Pure: what others use
//! comes in as a value.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use serde_json::{Map, Value, json};

use crate::{Cause, list, text};

/// The addresses of Services: first address and length of the prefix.
pub const RANGE: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 96, 0, 0), 16);
/// The address of the API itself, as pods see it.
pub const API_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The address of the cluster's DNS.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

/// What other services have.
#[derive(Debug, Default)]
pub struct InUse {
    addresses: HashSet<Ipv4Addr>,
    /// Number and protocol.
    ports: HashSet<(i64, String)>,
}

impl InUse {
    pub fn of<'a>(services: impl Iterator<Item = &'a Value>) -> InUse {
        let mut all = InUse::default();
        for service in services {
            for address in addresses(service) {
                all.addresses.extend(address.parse::<Ipv4Addr>().ok());
            }
            for port in list(service, "/spec/ports") {
                if let Some(number) = port["nodePort"].as_i64().filter(|it| *it != 0) {
                    all.ports.insert((number, text(port, "/protocol").to_string()));
                }
            }
        }
        all
    }
}

/// Addresses of the service; neither none nor "None".
fn addresses(service: &Value) -> Vec<String> {
    let given = list(service, "/spec/clusterIPs").iter().filter_map(Value::as_str);
    let mut all: Vec<String> = given.map(String::from).collect();
    let first = text(service, "/spec/clusterIP");
    if all.is_empty() && !first.is_empty() {
        all.push(first.into());
    }
    all.retain(|it| !it.is_empty() && it != "None");
    all
}

fn has_address(kind: &str) -> bool {
    kind != "ExternalName"
}

fn has_node_ports(spec: &Value) -> bool {
    match text(spec, "/type") {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Keeps what an update leaves unsaid, lets go of what its type does not have. Before validation.
pub fn carry_over(old: &Value, new: &mut Value) {
    let (was, is) = (text(old, "/spec/type").to_string(), text(new, "/spec/type").to_string());
    let unsaid = text(new, "/spec/clusterIP").is_empty() && list(new, "/spec/clusterIPs").is_empty();
    let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if !has_address(&is) {
        if has_address(&was) && spec.get("clusterIP") == old["spec"].get("clusterIP") {
            forget_addresses(spec);
        }
    } else if has_address(&was) && unsaid {
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = old["spec"].get(field) {
                spec.insert(field.into(), value.clone());
            }
        }
    } else if spec.get("clusterIP") != old["spec"].get("clusterIP")
        && spec.get("clusterIPs") == old["spec"].get("clusterIPs")
    {
        // A client that knows only the older field.
        spec.remove("clusterIPs");
    }
    let is_node_port = has_node_ports(&new["spec"]);
    let old_ports = list(old, "/spec/ports").to_vec();
    let ports = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        let before = old_ports
            .iter()
            .find(|it| ["port", "protocol"].iter().all(|field| it.get(*field) == port.get(*field)));
        let Some(before) = before.map(|it| &it["nodePort"]).filter(|it| !it.is_null()) else { continue };
        if is_node_port && port.get("nodePort").is_none_or(Value::is_null) {
            port.insert("nodePort".into(), before.clone());
        } else if !is_node_port && port.get("nodePort") == Some(before) {
            port.remove("nodePort");
        }
    }
}

fn forget_addresses(spec: &mut Map<String, Value>) {
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
        spec.remove(field);
    }
}

/// Gives the service its address and node ports. The causes say what it cannot have.
pub fn allocate(old: Option<&Value>, new: &mut Value, in_use: &InUse) -> Result<(), Vec<Cause>> {
    let mut causes = Vec::new();
    let seed = crate::uid(new).to_string();
    let mine: Vec<String> = old.map(addresses).unwrap_or_default();
    let kind = text(new, "/spec/type").to_string();
    if has_address(&kind) {
        let given = match text(new, "/spec/clusterIP") {
            "" => list(new, "/spec/clusterIPs").first().and_then(Value::as_str).unwrap_or("").to_string(),
            given => given.to_string(),
        };
        let address = match given.as_str() {
            "" => match free_address(&seed, &in_use.addresses) {
                Some(address) => address.to_string(),
                None => {
                    let why = "failed to allocate an IP: range is full";
                    causes.push(Cause::invalid("spec.clusterIPs", &json!([]), why));
                    String::new()
                }
            },
            "None" => given,
            asked => {
                if !mine.iter().any(|it| it == asked)
                    && let Err(why) = check_address(asked, &in_use.addresses)
                {
                    let why = format!("failed to allocate IP {asked}: {why}");
                    causes.push(Cause::invalid("spec.clusterIPs", &json!([asked]), &why));
                }
                given
            }
        };
        if let Some(spec) = new["spec"].as_object_mut() {
            spec.insert("clusterIPs".into(), json!([address]));
            spec.insert("clusterIP".into(), json!(address));
        }
    }
    if has_node_ports(&new["spec"]) {
        let had: HashSet<(i64, String)> = list(old.unwrap_or(&Value::Null), "/spec/ports")
            .iter()
            .filter_map(|it| Some((it["nodePort"].as_i64()?, text(it, "/protocol").to_string())))
            .collect();
        let mut taken = in_use.ports.clone();
        let ports = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
        for (index, port) in ports.into_iter().flatten().enumerate() {
            let protocol = text(port, "/protocol").to_string();
            let field = format!("spec.ports[{index}].nodePort");
            let number = match port["nodePort"].as_i64() {
                None | Some(0) => {
                    // The same number may serve several protocols, but a fresh one is easier to read.
                    let mut all = NODE_PORTS;
                    let start =
                        spread(&format!("{seed}{index}")) as i64 % (NODE_PORTS.end() - NODE_PORTS.start());
                    let free = |it: &i64| !taken.iter().any(|(number, _)| number == it);
                    let free_port = (NODE_PORTS.start() + start..=*NODE_PORTS.end())
                        .find(free)
                        .or_else(|| all.find(free));
                    let Some(number) = free_port else {
                        causes.push(Cause::invalid(&field, &json!(0), "no node port is free"));
                        continue;
                    };
                    port["nodePort"] = json!(number);
                    number
                }
                Some(number) if had.contains(&(number, protocol.clone())) => number,
                Some(number) if !NODE_PORTS.contains(&number) => {
                    let why =
                        "provided port is not in the valid range. The range of valid ports is 30000-32767";
                    causes.push(Cause::invalid(&field, &json!(number), why));
                    continue;
                }
                Some(number) => number,
            };
            let is_own = had.contains(&(number, protocol.clone()));
            if !taken.insert((number, protocol)) && !is_own {
                causes.push(Cause::invalid(&field, &json!(number), "provided port is already allocated"));
            }
        }
    }
    if causes.is_empty() { Ok(()) } else { Err(causes) }
}

fn check_address(asked: &str, taken: &HashSet<Ipv4Addr>) -> Result<(), String> {
    let Ok(address) = asked.parse::<Ipv4Addr>() else { return Err("must be a valid IP address".into()) };
    let (first, length) = RANGE;
    let size = 1u32 << (32 - length);
    let offset = u32::from(address).wrapping_sub(u32::from(first));
    if offset == 0 || offset >= size - 1 {
        return Err(format!("the provided IP ({asked}) is not in the valid range {first}/{length}"));
    }
    match taken.contains(&address) {
        true => Err("provided IP is already allocated".into()),
        false => Ok(()),
    }
}

/// A free address that does not follow the last one, so that a client with an old address does not
/// soon meet another service. The first addresses are for services that ask for theirs.
fn free_address(seed: &str, taken: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    const RESERVED: u32 = 256;
    let (first, length) = RANGE;
    let size = 1u32 << (32 - length);
    let start = spread(seed) as u32 % (size - 1 - RESERVED);
    let at = |offset: u32| Ipv4Addr::from(u32::from(first) + offset);
    let upper = (0..size - 1 - RESERVED).map(|step| RESERVED + (start + step) % (size - 1 - RESERVED));
    upper.chain(11..RESERVED).map(at).find(|it| !taken.contains(it))
}

/// FNV-1a: the same service gets the same place in a dry run and in earnest.
fn spread(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s", "uid": "u"}, "spec": spec});
        crate::defaults::service(&mut service);
        service
    }

    fn given(spec: Value, in_use: &InUse) -> Value {
        let mut service = service(spec);
        allocate(None, &mut service, in_use).expect("there is room");
        service
    }

    #[test]
    fn services_get_addresses_and_ports_of_their_own() {
        let first =
            given(json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}), &InUse::default());
        let address = text(&first, "/spec/clusterIP").to_string();
        assert!(address.starts_with("10.96."), "{address}");
        assert_eq!(first["spec"]["clusterIPs"], json!([address]));
        let in_use = InUse::of([&first].into_iter());
        let second = given(json!({"type": "NodePort", "ports": [{"port": 80}]}), &in_use);
        assert_ne!(second["spec"]["clusterIP"], first["spec"]["clusterIP"]);
        assert!(NODE_PORTS.contains(&crate::int(&second, "/spec/ports/0/nodePort")));
        assert_ne!(first["spec"]["ports"][0]["nodePort"], first["spec"]["ports"][1]["nodePort"]);
        assert_eq!(given(json!({"clusterIP": "None"}), &in_use)["spec"]["clusterIPs"], json!(["None"]));

        let mut taken = service(json!({"clusterIP": address, "type": "NodePort", "ports": [
            {"port": 1, "nodePort": 80}, {"port": 2, "nodePort": first["spec"]["ports"][0]["nodePort"]}]}));
        let causes = allocate(None, &mut taken, &in_use).expect_err("taken");
        let fields: Vec<&str> = causes.iter().map(|it| it.field.as_str()).collect();
        assert_eq!(fields, ["spec.clusterIPs", "spec.ports[0].nodePort", "spec.ports[1].nodePort"]);
        let mut outside = service(json!({"clusterIP": "10.97.0.1"}));
        assert!(allocate(None, &mut outside, &in_use).is_err());
    }

    #[test]
    fn an_update_keeps_what_it_leaves_unsaid_and_drops_what_its_type_lacks() {
        let old = given(json!({"type": "NodePort", "ports": [{"port": 80}]}), &InUse::default());
        let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}));
        carry_over(&old, &mut new);
        assert_eq!(new["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        assert_eq!(new["spec"]["ports"][0]["nodePort"], old["spec"]["ports"][0]["nodePort"]);
        allocate(Some(&old), &mut new, &InUse::default()).expect("there is room");
        let mut plain = old.clone();
        plain["spec"]["type"] = json!("ClusterIP");
        carry_over(&old, &mut plain);
        assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
        let mut named = old.clone();
        named["spec"]["type"] = json!("ExternalName");
        carry_over(&old, &mut named);
        assert!(named["spec"].get("clusterIP").is_none());
    }
}
