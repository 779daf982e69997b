//! Services of the type LoadBalancer: their ports are opened on the machine itself.
//!
//! The rules that lead a packet to the pods are written with those of all services ([`crate::services`]);
//! this is about who gets which port. A port that another program listens on stays that program's, and the
//! service says so in its status. A port that was opened is kept from other programs by a socket that is
//! bound to it and never listens, for as long as the daemon lives; the rules outlive the daemon.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use naru_client::{Client, EventKind};
use naru_objects::kinds;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket};
use serde_json::{Value, json};

/// Protocol and number of a port of the machine.
pub(crate) type MachinePort = (&'static str, u16);
/// Namespace and name of a service.
pub(crate) type Key = (String, String);

/// Kubernetes' own name of the condition.
const CONDITION: &str = "LoadBalancerPortsError";

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

fn key(service: &Value) -> Key {
    (text(service, "/metadata/namespace").to_owned(), text(service, "/metadata/name").to_owned())
}

/// Whether we balance this service: nobody else was named.
pub(crate) fn is_ours(service: &Value) -> bool {
    service["spec"]["type"] == "LoadBalancer" && service["spec"]["loadBalancerClass"].is_null()
}

/// The ports of a service that are to be opened.
pub(crate) fn ports(service: &Value) -> Vec<MachinePort> {
    let ports = service["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let protocol = |port: &Value| match port["protocol"].as_str().unwrap_or("TCP") {
        "TCP" => Some("tcp"),
        "UDP" => Some("udp"),
        "SCTP" => Some("sctp"),
        _ => None,
    };
    ports
        .iter()
        .filter_map(|it| Some((protocol(it)?, it["port"].as_u64().and_then(|it| u16::try_from(it).ok())?)))
        .collect()
}

/// Which service gets which port: the one that was there first.
pub(crate) fn claims(services: &[Arc<Value>]) -> BTreeMap<MachinePort, Key> {
    let mut ours: Vec<&Arc<Value>> = services.iter().filter(|it| is_ours(it)).collect();
    ours.sort_by_key(|it| (text(it, "/metadata/creationTimestamp").to_owned(), key(it)));
    let mut claims = BTreeMap::new();
    for service in ours {
        for port in ports(service) {
            claims.entry(port).or_insert_with(|| key(service));
        }
    }
    claims
}

/// The ports that are kept open.
#[derive(Default)]
pub(crate) struct Doors {
    /// With the socket that keeps others from a TCP port.
    held: BTreeMap<MachinePort, Option<OwnedFd>>,
}

impl Doors {
    /// Lets go of what nobody claims and takes what is free. Returns the ports that are open, by service,
    /// and whether some were not to be had.
    pub fn settle(&mut self, claims: &BTreeMap<MachinePort, Key>) -> (BTreeMap<MachinePort, Key>, bool) {
        self.held.retain(|port, _| claims.contains_key(port));
        let mut some_are_taken = false;
        for port in claims.keys() {
            if self.held.contains_key(port) {
                continue;
            }
            match take(*port) {
                Ok(socket) => {
                    self.held.insert(*port, socket);
                }
                Err(_) => some_are_taken = true,
            }
        }
        let open = claims.iter().filter(|(port, _)| self.held.contains_key(port));
        (open.map(|(port, key)| (*port, key.clone())).collect(), some_are_taken)
    }
}

fn take((protocol, number): MachinePort) -> nix::Result<Option<OwnedFd>> {
    let everywhere = SockaddrIn::new(0, 0, 0, 0, number);
    let try_bind = |kind| {
        let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?;
        // Without SO_REUSEADDR: then nobody who sets it gets past us, although we do not listen.
        bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &everywhere)?;
        Ok(socket)
    };
    match protocol {
        "tcp" => try_bind(SockType::Stream).map(Some),
        // A bound UDP socket would swallow packets that nobody serves, so it is only tried.
        "udp" => try_bind(SockType::Datagram).map(|_| None),
        _ => Ok(None),
    }
}

/// The address by which others know this machine.
pub(crate) fn machine_address() -> Ipv4Addr {
    // Connecting a UDP socket sends nothing; it only chooses a route.
    let route = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    };
    match route().map(|it| it.ip()) {
        Ok(std::net::IpAddr::V4(it)) => it,
        _ => Ipv4Addr::LOCALHOST,
    }
}

/// What a service's status should say, if it does not yet. Pure.
pub(crate) fn plan_status(
    service: &Value,
    open: &BTreeMap<MachinePort, Key>,
    machine: Ipv4Addr,
) -> Option<Value> {
    let status = &service["status"];
    let ingress = &status["loadBalancer"]["ingress"];
    // We always tell ports; whoever wrote an address without them balances by other means.
    let is_written_by_us = ingress[0]["ports"].is_array();
    if !is_ours(service) {
        let is_left = is_written_by_us && service["spec"]["type"] != "LoadBalancer";
        return is_left.then(|| json!({"loadBalancer": {"ingress": null}}));
    }
    if ingress[0].is_object() && !is_written_by_us {
        return None;
    }
    let key = key(service);
    let (mut ports_now, mut taken) = (Vec::new(), Vec::new());
    for port in ports(service) {
        let mut entry = json!({"port": port.1, "protocol": port.0.to_ascii_uppercase()});
        if open.get(&port) != Some(&key) {
            entry["error"] = json!("PortTaken");
            taken.push(match open.get(&port) {
                Some((namespace, name)) => format!("{}/{} by the service {namespace}/{name}", port.1, port.0),
                None => format!("{}/{} by another program", port.1, port.0),
            });
        }
        ports_now.push(entry);
    }
    let address = if is_local(service) { Ipv4Addr::LOCALHOST } else { machine };
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let message = format!("taken on this machine: {}", taken.join(", "));
    let said = conditions.iter().find(|it| it["type"] == CONDITION);
    let is_said = match taken.is_empty() {
        true => said.is_none(),
        false => said.is_some_and(|it| it["message"] == message.as_str()),
    };
    if is_said && ingress[0]["ip"] == address.to_string().as_str() && ingress[0]["ports"] == json!(ports_now)
    {
        return None;
    }
    let mut conditions: Vec<Value> = conditions.into_iter().filter(|it| it["type"] != CONDITION).collect();
    if !taken.is_empty() {
        conditions
            .push(json!({"type": CONDITION, "status": "True", "reason": "PortTaken", "message": message}));
    }
    let mut patch =
        json!({"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP", "ports": ports_now}]}});
    if !is_said {
        patch["conditions"] = json!(conditions);
    }
    Some(patch)
}

/// Whether only the machine itself may come in.
fn is_local(service: &Value) -> bool {
    let ranges = service["spec"]["loadBalancerSourceRanges"].as_array().map_or(&[][..], Vec::as_slice);
    !ranges.is_empty() && ranges.iter().all(|it| it.as_str().is_some_and(|it| it.starts_with("127.")))
}

/// Writes what [`plan_status`] asks for. What fails is tried again at the next change.
pub(crate) async fn write_status(client: &Client, service: &Value, mut patch: Value, now: String) {
    let (namespace, name) = key(service);
    for condition in patch["conditions"].as_array_mut().into_iter().flatten() {
        if condition["lastTransitionTime"].is_null() {
            condition["lastTransitionTime"] = json!(now);
            let message = condition["message"].as_str().unwrap_or_default();
            client.event(service, EventKind::Warning, "PortTaken", message).await;
        }
    }
    // On what was seen: whoever wrote in between, perhaps another balancer, is looked at first.
    let mut object = service.clone();
    for (key, value) in patch.as_object().into_iter().flatten() {
        object["status"][key] = value.clone();
    }
    if object["status"]["loadBalancer"]["ingress"].is_null() {
        object["status"]["loadBalancer"] = json!({});
    }
    if let Err(error) = client.replace_status(&kinds::SERVICE, &object).await {
        tracing::debug!(%error, namespace, name, "the status of a service is not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, made: &str, port: u16) -> Arc<Value> {
        Arc::new(json!({"metadata": {"name": name, "namespace": "d", "creationTimestamp": made},
            "spec": {"type": "LoadBalancer", "ports": [{"port": port}]}}))
    }

    #[test]
    fn the_first_service_gets_the_port_and_the_second_says_so() {
        let services = [service("b", "2026-01-01T00:00:00Z", 80), service("a", "2026-01-02T00:00:00Z", 80)];
        let claims = claims(&services);
        assert_eq!(claims, BTreeMap::from([(("tcp", 80), ("d".to_owned(), "b".to_owned()))]));
        let machine = Ipv4Addr::new(192, 0, 2, 7);
        let first = plan_status(&services[0], &claims, machine).unwrap();
        assert_eq!(
            first["loadBalancer"]["ingress"],
            json!([{"ip": "192.0.2.7", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]}])
        );
        let second = plan_status(&services[1], &claims, machine).unwrap();
        assert_eq!(second["loadBalancer"]["ingress"][0]["ports"][0]["error"], "PortTaken");
        assert_eq!(second["conditions"][0]["message"], "taken on this machine: 80/tcp by the service d/b");
        let mut written = (*services[1]).clone();
        written["status"] = second;
        assert_eq!(plan_status(&written, &claims, machine), None, "once is enough");
        let freed = plan_status(
            &written,
            &BTreeMap::from([(("tcp", 80), ("d".to_owned(), "a".to_owned()))]),
            machine,
        )
        .unwrap();
        assert_eq!(freed["conditions"], json!([]));
        written["spec"]["type"] = json!("ClusterIP");
        assert_eq!(plan_status(&written, &claims, machine), Some(json!({"loadBalancer": {"ingress": null}})));
    }

    #[test]
    fn a_port_of_another_program_is_left_to_it() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let number = other.local_addr().expect("it is bound").port();
        let services = [service("a", "", number)];
        let mut doors = Doors::default();
        assert_eq!(doors.settle(&claims(&services)), (BTreeMap::new(), true));
        drop(other);
        let (open, some_are_taken) = doors.settle(&claims(&services));
        assert!(open.contains_key(&("tcp", number)) && !some_are_taken);
        // Now it is ours, also against those who reuse addresses.
        assert!(std::net::TcpListener::bind(("127.0.0.1", number)).is_err());
        doors.settle(&BTreeMap::new());
        assert!(std::net::TcpListener::bind(("127.0.0.1", number)).is_ok());
    }
}
