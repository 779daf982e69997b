//! Bridge and cables, by netlink.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{Config, Error, Subnet};

/// Needs a tokio runtime with I/O.
pub(crate) fn connect() -> io::Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

fn kernel(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |source| Error::Kernel { what: what.into(), source: Box::new(source) }
}

fn is_errno(error: &rtnetlink::Error, errno: nix::errno::Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(errno as i32))
}

async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) if is_errno(&error, nix::errno::Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) async fn ensure_bridge(handle: &Handle, config: &Config) -> Result<u32, Error> {
    let name = &config.bridge;
    let found = index_of(handle, name).await.map_err(kernel(format!("look for link {name}")))?;
    check_free(handle, config, found).await?;
    let index = match found {
        Some(index) => index,
        None => {
            // A fixed hardware address: otherwise the bridge takes its first port's and every pod's
            // neighbour table is wrong when that pod goes.
            let octets = config.subnet.gateway().octets();
            let hardware = vec![0x02, 0x4e, octets[0], octets[1], octets[2], octets[3]];
            let message = LinkBridge::new(name).address(hardware).build();
            handle.link().add(message).execute().await.map_err(kernel(format!("make the bridge {name}")))?;
            index_of(handle, name)
                .await
                .map_err(kernel(format!("look for link {name}")))?
                .ok_or_else(|| kernel(format!("find the bridge {name}"))(rtnetlink::Error::RequestFailed))?
        }
    };
    let added = handle
        .address()
        .add(index, IpAddr::V4(config.subnet.gateway()), config.subnet.prefix())
        .execute()
        .await;
    match added {
        Err(error) if !is_errno(&error, nix::errno::Errno::EEXIST) => {
            return Err(kernel(format!("give {name} its address"))(error));
        }
        _ => {}
    }
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(kernel(format!("switch {name} on")))?;
    Ok(index)
}

/// Two links with one network confuse every route; better to say so at start.
async fn check_free(handle: &Handle, config: &Config, own: Option<u32>) -> Result<(), Error> {
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.map_err(kernel("list addresses"))? {
        if message.header.family != AddressFamily::Inet || Some(message.header.index) == own {
            continue;
        }
        for attribute in &message.attributes {
            if let AddressAttribute::Address(IpAddr::V4(address)) = attribute
                && let Some(taken) = Subnet::around(*address, message.header.prefix_len)
                && taken.overlaps(&config.subnet)
            {
                return Err(Error::SubnetTaken { subnet: config.subnet, taken: taken.to_string() });
            }
        }
    }
    Ok(())
}

/// Makes a cable between the bridge and the namespace of `pid`, and configures the far end.
pub(crate) async fn plug(
    handle: &Handle,
    bridge_index: u32,
    name: &str,
    subnet: &Subnet,
    address: Ipv4Addr,
    pid: i32,
) -> Result<(), Error> {
    // Both ends in one request, the far one born in its namespace under its final name.
    let peer = LinkMessageBuilder::<LinkUnspec>::new().name("eth0").setns_by_pid(pid as u32).build();
    let cable = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .controller(bridge_index)
        .up()
        .build();
    if let Err(error) = handle.link().add(cable.clone()).execute().await {
        if !is_errno(&error, nix::errno::Errno::EEXIST) {
            return Err(kernel(format!("make the link {name}"))(error));
        }
        // Left by a daemon that died between making it and writing it down.
        remove(handle, name).await;
        handle.link().add(cable).execute().await.map_err(kernel(format!("make the link {name}")))?;
    }
    let gateway = subnet.gateway();
    in_namespace(pid, move |handle| async move { configure_inside(&handle, address, gateway).await }).await
}

pub(crate) async fn loopback_only(pid: i32) -> Result<(), Error> {
    in_namespace(pid, |handle| async move { switch_on(&handle, "lo").await.map(|_| ()) }).await
}

async fn switch_on(handle: &Handle, name: &str) -> Result<u32, Error> {
    let index = index_of(handle, name)
        .await
        .map_err(kernel(format!("look for {name} in the pod")))?
        .ok_or_else(|| kernel(format!("find {name} in the pod"))(rtnetlink::Error::RequestFailed))?;
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(up).execute().await.map_err(kernel(format!("switch {name} on in the pod")))?;
    Ok(index)
}

/// The pod is alone in its network: also its neighbours are reached through the machine, so that every
/// packet passes the rules there (addresses of services, network policies).
async fn configure_inside(handle: &Handle, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), Error> {
    switch_on(handle, "lo").await?;
    let cable = switch_on(handle, "eth0").await?;
    let request = handle.address().add(cable, IpAddr::V4(address), 32).execute();
    request.await.map_err(kernel("give the pod its address"))?;
    let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(gateway, 32)
        .output_interface(cable)
        .scope(RouteScope::Link)
        .build();
    handle.route().add(to_gateway).execute().await.map_err(kernel("give the pod a route to the bridge"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
    handle.route().add(route).execute().await.map_err(kernel("give the pod a default route"))
}

/// Runs netlink requests in another network namespace: on a thread of its own, because a namespace
/// is a property of a thread and must not come back to a pool.
async fn in_namespace<F, Fut>(pid: i32, work: F) -> Result<(), Error>
where
    F: FnOnce(Handle) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), Error>>,
{
    let namespace = move |source| Error::Namespace { pid, source };
    let file = File::open(format!("/proc/{pid}/ns/net")).map_err(namespace)?;
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("pod-network".into())
        .spawn(move || {
            let result = nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_io().build())
                .map_err(namespace)
                .and_then(|runtime| {
                    runtime.block_on(async {
                        let handle = connect().map_err(Error::Netlink)?;
                        work(handle).await
                    })
                });
            let _ = tell.send(result);
        })
        .map_err(namespace)?;
    told.await.unwrap_or_else(|_| Err(namespace(io::Error::other("the thread died; this is a bug in Naru"))))
}

/// What is not there is no error.
pub(crate) async fn remove(handle: &Handle, name: &str) {
    match index_of(handle, name).await {
        Ok(Some(index)) => {
            if let Err(error) = handle.link().del(index).execute().await
                && !is_errno(&error, nix::errno::Errno::ENODEV)
            {
                tracing::warn!(link = name, %error, "cannot remove a link");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(link = name, %error, "cannot look for a link"),
    }
}

/// Removes the cables that still hang on the bridge.
pub(crate) async fn remove_ports(handle: &Handle, bridge: &str) -> Result<(), Error> {
    let Some(index) = index_of(handle, bridge).await.map_err(kernel(format!("look for link {bridge}")))?
    else {
        return Ok(());
    };
    let mut ports = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(kernel("list links"))? {
        if link
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, LinkAttribute::Controller(it) if *it == index))
        {
            ports.push(link.header.index);
        }
    }
    for port in ports {
        let _ = handle.link().del(port).execute().await;
    }
    Ok(())
}
