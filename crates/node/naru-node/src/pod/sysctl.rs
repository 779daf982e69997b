//! Kernel settings that a pod may have, because they belong to its own namespaces.

/// Those that Kubernetes calls safe: namespaced, and without influence on the neighbours.
const SAFE: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// `kernel/shm` and `kernel.shm` are the same; the error is kubelet's.
pub fn check(name: &str, host_network: bool, host_ipc: bool) -> Result<(), String> {
    let dotted = name.replace('/', ".");
    if !SAFE.contains(&dotted.as_str()) {
        return Err(format!("forbidden sysctl: \"{name}\" not allowlisted"));
    }
    if host_network && dotted.starts_with("net.") {
        return Err(format!("forbidden sysctl: \"{name}\" not allowed with host net enabled"));
    }
    if host_ipc && dotted.starts_with("kernel.") {
        return Err(format!("forbidden sysctl: \"{name}\" not allowed with host ipc enabled"));
    }
    Ok(())
}
