//! Addresses and links: a bridge, and for every pod a cable to it.
//!
//! A pod's network namespace belongs to its shim; this crate puts an `eth0` with an address into it
//! and a default route to the bridge, and hides the pods behind the machine's own address when they
//! talk to the outside (one nft table of our own, named after the bridge).
//!
//! [`start_cluster`] makes true what the API declares about the network: addresses of services, who may
//! talk to whom, and names.
//!
//! It keeps no state. Which addresses are taken is what the agent knows about its pods; it says so
//! at start, and the cables themselves vanish with the pods' namespaces.
//!
//! ```no_run
//! # async fn example(shim_pid: i32) -> Result<(), naru_net::Error> {
//! use naru_net::{Config, Network};
//! let network = Network::start(Config::new("naru0", "10.88.0.0/16".parse()?), []).await?;
//! let address = network.attach("pod-uid", shim_pid).await?;
//! network.release(address);
//! # Ok(()) }
//! ```

mod addresses;
mod balancers;
mod cluster;
mod dns;
mod firewall;
mod links;
mod policies;
mod services;

use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

pub use addresses::{Allocator, ParseSubnetError, Subnet};
pub use cluster::{DNS_ADDRESS, Held, can_filter, start as start_cluster};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the bridge; with another name and subnet several instances live side by side.
    pub bridge: String,
    pub subnet: Subnet,
}

impl Config {
    pub fn new(bridge: &str, subnet: Subnet) -> Self {
        Self { bridge: bridge.to_owned(), subnet }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{name}` cannot be a network link: at most 15 letters, digits, `-` and `_`")]
    BridgeName { name: String },
    #[error(transparent)]
    Subnet(#[from] ParseSubnetError),
    #[error(
        "the subnet {subnet} overlaps {taken}, which the machine uses already; choose another in the configuration"
    )]
    SubnetTaken { subnet: Subnet, taken: String },
    #[error("cannot speak to the kernel's network configuration")]
    Netlink(#[source] std::io::Error),
    #[error("cannot {what}")]
    Kernel { what: String, source: Box<rtnetlink::Error> },
    #[error("cannot enter the network namespace of process {pid}")]
    Namespace { pid: i32, source: std::io::Error },
    #[error("all {count} addresses of {subnet} are in use")]
    Exhausted { subnet: Subnet, count: u32 },
}

/// The running network of one instance.
#[derive(Debug)]
pub struct Network {
    config: Config,
    handle: rtnetlink::Handle,
    bridge_index: u32,
    addresses: Mutex<Allocator>,
}

impl Network {
    /// Makes or finds the bridge. `used` are the addresses of pods that live already: none of them
    /// is handed out again.
    pub async fn start(config: Config, used: impl IntoIterator<Item = Ipv4Addr>) -> Result<Network, Error> {
        check_name(&config.bridge)?;
        let handle = links::connect().map_err(Error::Netlink)?;
        let bridge_index = links::ensure_bridge(&handle, &config).await?;
        enable_forwarding();
        firewall::install(&config).await;
        let mut addresses = Allocator::new(config.subnet);
        for address in used {
            addresses.reserve(address);
        }
        Ok(Network { config, handle, bridge_index, addresses: Mutex::new(addresses) })
    }

    /// The machine's own address on the bridge: what pods see as their router.
    pub fn gateway(&self) -> Ipv4Addr {
        self.config.subnet.gateway()
    }

    /// Gives the namespaces of process `pid` an address. `pod` names the cable.
    pub async fn attach(&self, pod: &str, pid: i32) -> Result<Ipv4Addr, Error> {
        let address = self
            .lock()
            .allocate()
            .ok_or(Error::Exhausted { subnet: self.config.subnet, count: self.config.subnet.host_count() })?;
        let link = link_name(pod);
        match links::plug(&self.handle, self.bridge_index, &link, &self.config.subnet, address, pid).await {
            Ok(()) => Ok(address),
            Err(error) => {
                self.release(address);
                self.detach(pod).await;
                Err(error)
            }
        }
    }

    /// Removes the cable of a pod whose namespace may live on; ending the namespace does the same.
    pub async fn detach(&self, pod: &str) {
        links::remove(&self.handle, &link_name(pod)).await;
    }

    /// The address may be used again, though not soon.
    pub fn release(&self, address: Ipv4Addr) {
        self.lock().release(address);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Allocator> {
        // The allocator is consistent between any two statements.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leaves the namespaces of process `pid` alone but for their loopback.
pub async fn attach_nothing(pid: i32) -> Result<(), Error> {
    links::loopback_only(pid).await
}

/// Removes everything that [`Network::start`] made; what is not there is no error.
pub async fn teardown(config: &Config) -> Result<(), Error> {
    check_name(&config.bridge)?;
    firewall::remove(config).await;
    let handle = links::connect().map_err(Error::Netlink)?;
    links::remove_ports(&handle, &config.bridge).await?;
    links::remove(&handle, &config.bridge).await;
    Ok(())
}

/// The machine's end of a pod's cable: 15 bytes are all that a link's name may have, so a hash.
pub fn link_name(pod: &str) -> String {
    // FNV-1a; stable across versions because a later daemon must find an earlier one's links.
    let hash = pod.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("nv{:012x}", hash & 0xffff_ffff_ffff)
}

fn check_name(name: &str) -> Result<(), Error> {
    let fine = !name.is_empty()
        && name.len() <= 15
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if fine { Ok(()) } else { Err(Error::BridgeName { name: name.to_owned() }) }
}

fn enable_forwarding() {
    let path = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
        return;
    }
    if let Err(error) = std::fs::write(path, "1") {
        tracing::warn!(%error, "cannot enable IP forwarding: containers will not reach the outside");
    }
}
