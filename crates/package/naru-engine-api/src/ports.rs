//! `-p`: which ports of the machine lead to which of the container.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use serde_json::{Map, Value, json};

use crate::answer::text;
use crate::error::{Error, Result};

/// One port of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub address: Option<Ipv4Addr>,
    /// First and last that will do; 0 is any.
    pub host: (u16, u16),
    pub port: u16,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
}

/// `80`, `80/udp`.
pub fn parse_port(port: &str) -> Result<(u16, String)> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let wrong = || Error::bad(format!("invalid port specification: {port:?}"));
    if !["tcp", "udp", "sctp"].contains(&protocol) {
        return Err(wrong());
    }
    let number = number.parse().ok().filter(|it| *it > 0).ok_or_else(wrong)?;
    Ok((number, protocol.to_owned()))
}

/// What `PortBindings`, and with `PublishAllPorts` the exposed ports, ask for. Pure.
pub fn wanted(bindings: &Value, exposed: &Value, publish_all: bool) -> Result<Vec<Published>> {
    let mut wanted = Vec::new();
    for (port, list) in bindings.as_object().into_iter().flatten() {
        let (number, protocol) = parse_port(port)?;
        for binding in list.as_array().into_iter().flatten() {
            let address = match text(binding, "/HostIp") {
                // Every address; those of IPv6 are not there to be bound.
                "" | "0.0.0.0" | "::" | "[::]" => None,
                given => match given.parse::<IpAddr>() {
                    Ok(IpAddr::V4(address)) => Some(address),
                    Ok(IpAddr::V6(_)) => {
                        return Err(Error::refused(format!("-p {given}: ports are published for IPv4")));
                    }
                    Err(_) => return Err(Error::bad(format!("invalid IP address: {given}"))),
                },
            };
            let given = text(binding, "/HostPort");
            let parse = |it: &str| {
                it.parse::<u16>().map_err(|_| Error::bad(format!("invalid port specification: {given:?}")))
            };
            let host = match given.split_once('-') {
                None if given.is_empty() => (0, 0),
                None => (parse(given)?, parse(given)?),
                Some((first, last)) => (parse(first)?, parse(last)?),
            };
            if host.0 > host.1 {
                return Err(Error::bad(format!("invalid port specification: {given:?}")));
            }
            let one = Published { address, host, port: number, protocol: protocol.clone() };
            if !wanted.contains(&one) {
                wanted.push(one);
            }
        }
    }
    for port in exposed.as_object().into_iter().flatten().map(|(port, _)| port).filter(|_| publish_all) {
        let (number, protocol) = parse_port(port)?;
        if !wanted.iter().any(|it| it.port == number && it.protocol == protocol) {
            wanted.push(Published { address: None, host: (0, 0), port: number, protocol });
        }
    }
    Ok(wanted)
}

/// Ports of the machine that containers have: address, port, protocol.
pub type Taken = Vec<(Option<Ipv4Addr>, u16, String)>;

fn overlaps(taken: &Taken, wanted: &Published, port: u16) -> bool {
    taken.iter().any(|(address, number, protocol)| {
        *number == port
            && *protocol == wanted.protocol
            && (address.is_none() || wanted.address.is_none() || *address == wanted.address)
    })
}

/// Whether nobody on the machine listens there. What cannot be tried is believed.
fn is_free(wanted: &Published, port: u16) -> bool {
    let at = SocketAddr::new(IpAddr::V4(wanted.address.unwrap_or(Ipv4Addr::UNSPECIFIED)), port);
    let taken = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    match wanted.protocol.as_str() {
        "tcp" => !TcpListener::bind(at).is_err_and(taken),
        "udp" => !UdpSocket::bind(at).is_err_and(taken),
        _ => true,
    }
}

fn any_free(wanted: &Published) -> Option<u16> {
    let at = SocketAddr::new(IpAddr::V4(wanted.address.unwrap_or(Ipv4Addr::UNSPECIFIED)), 0);
    match wanted.protocol.as_str() {
        "udp" => UdpSocket::bind(at).ok()?.local_addr().ok().map(|it| it.port()),
        _ => TcpListener::bind(at).ok()?.local_addr().ok().map(|it| it.port()),
    }
}

/// Chooses where a choice is left. A port that was named is taken as it is: whether it is free counts when the
/// container begins.
pub fn choose(wanted: &[Published], taken: &Taken) -> Result<Map<String, Value>> {
    const TRIES_MAX: u32 = 64;
    let mut taken = taken.clone();
    let mut chosen: Map<String, Value> = Map::new();
    for one in wanted {
        let port = match one.host {
            (0, _) => (0..TRIES_MAX).find_map(|_| any_free(one).filter(|it| !overlaps(&taken, one, *it))),
            (first, last) if first == last => Some(first),
            (first, last) => (first..=last).find(|it| !overlaps(&taken, one, *it) && is_free(one, *it)),
        };
        let port = port.ok_or_else(|| {
            Error::server(format!("all ports are allocated: {}-{}/{}", one.host.0, one.host.1, one.protocol))
        })?;
        taken.push((one.address, port, one.protocol.clone()));
        let address = one.address.map_or("0.0.0.0".to_owned(), |it| it.to_string());
        let list = chosen.entry(format!("{}/{}", one.port, one.protocol)).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(json!({"HostIp": address, "HostPort": port.to_string()}));
        }
    }
    Ok(chosen)
}

/// Chosen ports as a list again.
pub fn chosen(ports: &Map<String, Value>) -> Vec<Published> {
    wanted(&Value::Object(ports.clone()), &Value::Null, false).unwrap_or_default()
}

/// Docker's error when somebody has a port already.
pub fn check_free(ports: &Map<String, Value>, taken: &Taken) -> Result<()> {
    for one in chosen(ports) {
        if overlaps(taken, &one, one.host.0) || !is_free(&one, one.host.0) {
            let address = one.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
            return Err(Error::server(format!(
                "driver failed programming external connectivity: Bind for {address}:{} failed: port is already \
                 allocated",
                one.host.0
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_read_and_choices_made() {
        let bindings = json!({"80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": ""}],
            "53/udp": [{"HostPort": "5300-5302"}]});
        let wanted = wanted(&bindings, &json!({"81/tcp": {}}), true).unwrap();
        assert_eq!(wanted.len(), 4);
        let taken = vec![(None, 5300, "udp".to_owned())];
        let chosen = choose(&wanted, &taken).unwrap();
        assert_eq!(chosen["80/tcp"][0], json!({"HostIp": "0.0.0.0", "HostPort": "8080"}));
        assert_eq!(chosen["80/tcp"][1]["HostIp"], "127.0.0.1");
        assert_ne!(chosen["81/tcp"][0]["HostPort"], "0");
        let dns: u16 = chosen["53/udp"][0]["HostPort"].as_str().unwrap().parse().unwrap();
        assert!((5301..=5302).contains(&dns), "not what another container has");
        assert!(super::wanted(&json!({"80/icmp": []}), &Value::Null, false).is_err());
    }
}
