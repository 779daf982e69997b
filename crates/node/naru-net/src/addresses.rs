//! Which address is whose. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network. Its first address is the bridge's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an IPv4 network with 4 to 65534 addresses, like 10.88.0.0/16: `{0}`")]
pub struct ParseSubnetError(String);

impl Subnet {
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == self.network
    }

    pub fn overlaps(&self, other: &Subnet) -> bool {
        let mask = self.mask() & other.mask();
        self.network & mask == other.network & mask
    }

    fn mask(&self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix))
    }

    /// Addresses for pods: all but network, bridge and broadcast.
    pub fn host_count(&self) -> u32 {
        (1 << (32 - u32::from(self.prefix))) - 3
    }

    /// The network that an interface's address and prefix stand for.
    pub(crate) fn around(address: Ipv4Addr, prefix: u8) -> Option<Subnet> {
        (1..=32).contains(&prefix).then(|| {
            let mask = u32::MAX << (32 - u32::from(prefix));
            Subnet { network: u32::from(address) & mask, prefix }
        })
    }
}

impl FromStr for Subnet {
    type Err = ParseSubnetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let network = u32::from(address.parse::<Ipv4Addr>().ok()?);
            let prefix = prefix.parse().ok().filter(|prefix| (16..=29).contains(prefix))?;
            let subnet = Subnet { network, prefix };
            (network & !subnet.mask() == 0).then_some(subnet)
        };
        parse().ok_or_else(|| ParseSubnetError(text.to_owned()))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", Ipv4Addr::from(self.network), self.prefix)
    }
}

/// Hands out addresses in turn, so that one just freed rests as long as possible: a client that
/// still knows the old pod's address must not meet a new pod there.
#[derive(Debug, Clone)]
pub struct Allocator {
    subnet: Subnet,
    used: BTreeSet<u32>,
    /// Offset in the subnet of the next candidate.
    next: u32,
}

/// After network and bridge.
const FIRST_OFFSET: u32 = 2;

impl Allocator {
    pub fn new(subnet: Subnet) -> Self {
        Self { subnet, used: BTreeSet::new(), next: FIRST_OFFSET }
    }

    /// Marks an address of a living pod; the turn goes on after it.
    pub fn reserve(&mut self, address: Ipv4Addr) {
        if self.subnet.contains(address) {
            let offset = u32::from(address) - self.subnet.network;
            self.used.insert(offset);
            self.next = self.next.max(offset + 1);
        }
    }

    pub fn allocate(&mut self) -> Option<Ipv4Addr> {
        let count = self.subnet.host_count();
        for _ in 0..count {
            let offset = self.next;
            if offset >= FIRST_OFFSET + count {
                self.next = FIRST_OFFSET;
                if self.used.insert(FIRST_OFFSET) {
                    self.next = FIRST_OFFSET + 1;
                    return Some(Ipv4Addr::from(self.subnet.network + FIRST_OFFSET));
                }
                continue;
            }
            self.next = offset + 1;
            if self.used.insert(offset) {
                return Some(Ipv4Addr::from(self.subnet.network + offset));
            }
        }
        None
    }

    pub fn release(&mut self, address: Ipv4Addr) {
        if self.subnet.contains(address) {
            self.used.remove(&(u32::from(address) - self.subnet.network));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read_and_refused() {
        for (text, gateway) in [("10.88.0.0/16", "10.88.0.1"), ("192.168.7.8/29", "192.168.7.9")] {
            let subnet: Subnet = text.parse().unwrap();
            assert_eq!((subnet.gateway().to_string(), subnet.to_string()), (gateway.into(), text.into()));
        }
        for text in ["10.88.0.1/16", "10.88.0.0", "10.0.0.0/8", "10.0.0.0/30", "x/16", "::/16", ""] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlap_is_containment_either_way() {
        let a: Subnet = "10.88.0.0/16".parse().unwrap();
        assert!(a.overlaps(&"10.88.4.0/24".parse().unwrap()));
        assert!("10.88.4.0/24".parse::<Subnet>().unwrap().overlaps(&a));
        assert!(!a.overlaps(&"10.89.0.0/16".parse().unwrap()));
    }

    #[test]
    fn every_address_is_given_once_and_a_freed_one_rests() {
        let subnet: Subnet = "10.0.0.0/29".parse().unwrap();
        let mut allocator = Allocator::new(subnet);
        let given: Vec<String> = (0..5).map(|_| allocator.allocate().unwrap().to_string()).collect();
        assert_eq!(given, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        assert_eq!(allocator.allocate(), None);
        allocator.release("10.0.0.3".parse().unwrap());
        assert_eq!(allocator.allocate().unwrap().to_string(), "10.0.0.3");

        let mut allocator = Allocator::new(subnet);
        let first = allocator.allocate().unwrap();
        allocator.release(first);
        assert_ne!(allocator.allocate().unwrap(), first, "the turn goes on");
    }

    #[test]
    fn a_restart_never_hands_out_an_address_in_use() {
        let mut allocator = Allocator::new("10.0.0.0/29".parse().unwrap());
        for used in ["10.0.0.2", "10.0.0.6", "10.99.0.1"] {
            allocator.reserve(used.parse().unwrap());
        }
        let given: Vec<String> =
            std::iter::from_fn(|| allocator.allocate()).map(|it| it.to_string()).collect();
        assert_eq!(given, ["10.0.0.3", "10.0.0.4", "10.0.0.5"]);
    }
}
