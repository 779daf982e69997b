//! `ports` and `expose`: what a service offers to the others, and to whoever reaches the machine.

use super::keys;
use super::load::Loader;
use super::tree::{At, Node};
use std::net::Ipv4Addr;

/// A range may not be wider: each port becomes an entry of its own.
const RANGE_MAX: u32 = 1000;

/// A port of the container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    pub number: u16,
    pub protocol: Protocol,
    pub name: Option<String>,
    pub app_protocol: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn upper(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }
}

/// A port of the container that is reached from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    pub port: Port,
    pub on: Where,
    /// Without one the machine chooses.
    pub number: Option<u16>,
    pub at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Where {
    /// All addresses of the machine.
    Everywhere,
    /// Only for programs of the machine itself.
    Loopback,
    /// One address of the machine.
    Address(Ipv4Addr),
}

impl Loader<'_> {
    pub fn ports(&mut self, node: &Node) -> Vec<Published> {
        let mut all = Vec::new();
        for item in node.items_or_one() {
            let made = match item.as_str() {
                Some(text) => self.short_port(item.at, text),
                None => self.long_port(item),
            };
            all.extend(made);
        }
        let mut seen: Vec<(Where, u16, Protocol)> = Vec::new();
        for it in &all {
            let Some(number) = it.number else { continue };
            let key = (it.on, number, it.port.protocol);
            if seen.contains(&key) {
                self.error(it.at, format!("the port {number} is published twice"), "remove one of them");
            }
            seen.push(key);
        }
        all
    }

    pub fn exposed(&mut self, node: &Node) -> Vec<Port> {
        let mut all = Vec::new();
        for item in node.items_or_one() {
            let text = item.as_str().unwrap_or_default();
            let Some((rest, protocol)) = self.protocol(item.at, text) else { continue };
            let Some(numbers) = self.range(item.at, text, rest) else { continue };
            all.extend(numbers.map(|number| Port { number, protocol, name: None, app_protocol: None }));
        }
        all
    }

    fn protocol<'t>(&mut self, at: At, text: &'t str) -> Option<(&'t str, Protocol)> {
        let (rest, word) = text.split_once('/').unwrap_or((text, "tcp"));
        match word.to_ascii_lowercase().as_str() {
            "tcp" => Some((rest, Protocol::Tcp)),
            "udp" => Some((rest, Protocol::Udp)),
            "sctp" => Some((rest, Protocol::Sctp)),
            _ => {
                self.error(at, format!("`{word}` is no protocol of ports"), "write /tcp, /udp or /sctp");
                None
            }
        }
    }

    fn range(&mut self, at: At, whole: &str, text: &str) -> Option<std::ops::RangeInclusive<u16>> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<u16>().ok().filter(|it| *it > 0);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last && u32::from(last - first) < RANGE_MAX => {
                Some(first..=last)
            }
            (Some(first), Some(last)) if first <= last => {
                self.error(at, format!("`{whole}` means more than {RANGE_MAX} ports"), "publish fewer");
                None
            }
            _ => {
                self.error(
                    at,
                    format!("`{whole}` is not a port"),
                    "write it like \"8080:80\"; ports go from 1 to 65535",
                );
                None
            }
        }
    }

    fn place(&mut self, at: At, text: &str) -> Option<Where> {
        match text.trim_matches(['[', ']']) {
            "" | "0.0.0.0" | "::" => Some(Where::Everywhere),
            "127.0.0.1" | "localhost" | "::1" => Some(Where::Loopback),
            other => match other.parse::<Ipv4Addr>() {
                Ok(it) if it.is_loopback() => Some(Where::Loopback),
                Ok(it) => Some(Where::Address(it)),
                Err(_) => {
                    self.error(
                        at,
                        format!("`{text}` is no IPv4 address to publish a port on"),
                        "write it like \"127.0.0.1:8080:80\"",
                    );
                    None
                }
            },
        }
    }

    /// `[[address:]published:]target[/protocol]`, each port perhaps a range.
    fn short_port(&mut self, at: At, text: &str) -> Vec<Published> {
        let made = (|| {
            let (rest, protocol) = self.protocol(at, text)?;
            let (rest, target) = rest.rsplit_once(':').map_or(("", rest), |(rest, target)| (rest, target));
            let (address, published) = rest.rsplit_once(':').unwrap_or(("", rest));
            let on = self.place(at, address)?;
            let targets: Vec<u16> = self.range(at, text, target)?.collect();
            let published: Vec<Option<u16>> = match published {
                "" => targets.iter().map(|_| None).collect(),
                it => self.range(at, text, it)?.map(Some).collect(),
            };
            // One target may have any of a range of ports: the first is as good as any.
            if published.len() != targets.len() && targets.len() != 1 {
                self.error(
                    at,
                    format!(
                        "`{text}` has {} ports on one side and {} on the other",
                        published.len(),
                        targets.len()
                    ),
                    "",
                );
                return None;
            }
            let port = |number| Port { number, protocol, name: None, app_protocol: None };
            Some(
                targets
                    .into_iter()
                    .zip(published)
                    .map(|(target, number)| Published { port: port(target), on, number, at })
                    .collect(),
            )
        })();
        made.unwrap_or_default()
    }

    fn long_port(&mut self, node: &Node) -> Vec<Published> {
        if !self.keys("a port", node, keys::PORT) {
            return Vec::new();
        }
        let part = |key: &str| node.get(key).and_then(Node::as_str).unwrap_or_default().to_owned();
        let Some(target) = node.get("target") else {
            self.error(node.at, "a port without `target`", "write `target: <the port in the container>`");
            return Vec::new();
        };
        if let Some(mode) = node.get("mode").filter(|it| !matches!(it.as_str(), Some("ingress" | "host"))) {
            self.error(mode.at, "`mode` of a port is ingress or host", "");
        }
        let protocol = part("protocol");
        let text = match (part("published").as_str(), protocol.as_str()) {
            ("", "") => part("target"),
            ("", protocol) => format!("{}/{protocol}", part("target")),
            (published, "") => format!("{published}:{}", part("target")),
            (published, protocol) => format!("{published}:{}/{protocol}", part("target")),
        };
        let Some(on) = self.place(node.at, &part("host_ip")) else { return Vec::new() };
        let mut made = self.short_port(target.at, &text);
        for it in &mut made {
            it.on = on;
            it.at = node.at;
            it.port.name = Some(part("name")).filter(|it| !it.is_empty());
            it.port.app_protocol = Some(part("app_protocol")).filter(|it| !it.is_empty());
        }
        made
    }
}
