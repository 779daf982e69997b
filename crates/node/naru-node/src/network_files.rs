//! The pod's own `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use naru_runtime::Mount;

use crate::pod::{CLUSTER_DOMAIN, DesiredPod, Dns};

/// As many as the C library reads.
const NAME_SERVERS_MAX: usize = 3;
/// Kubernetes' bounds for search lists.
const SEARCHES_MAX: usize = 32;
/// A name with fewer dots is tried in the search list first: `shop.default` is a service.
const CLUSTER_OPTIONS: &str = "ndots:5";

/// Writes the files. `cluster_dns` is the address of the cluster's name server, if there is one.
pub fn write(
    directory: &Path,
    pod: &DesiredPod,
    address: &str,
    cluster_dns: Option<IpAddr>,
) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let of_host = pod.host_network.then(|| fs::read_to_string("/etc/hosts").unwrap_or_default());
    fs::write(directory.join("hosts"), hosts(pod, address, of_host.as_deref()))?;
    fs::write(directory.join("hostname"), format!("{}\n", pod.hostname))?;
    let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let upstream = fs::read_to_string("/run/systemd/resolve/resolv.conf").ok();
    let of_host = host_resolv_conf(&own, upstream.as_deref());
    fs::write(directory.join("resolv.conf"), resolv_conf(pod, &of_host, cluster_dns))
}

/// What a container gets over its image's own files, unless it mounts something there itself.
pub fn mounts(directory: &Path, taken: &[Mount]) -> Vec<Mount> {
    ["hosts", "hostname", "resolv.conf"]
        .into_iter()
        .map(|name| Mount::new(directory.join(name), Path::new("/etc").join(name), false))
        .filter(|mount| !taken.iter().any(|it| it.destination == mount.destination))
        .collect()
}

fn hosts(pod: &DesiredPod, address: &str, of_host: Option<&str>) -> String {
    let mut text = match of_host {
        Some(of_host) => format!("# Kubernetes-managed hosts file (host network).\n{of_host}"),
        None => {
            let names = match &pod.full_name {
                Some(full) => format!("{full}\t{}", pod.hostname.split('.').next().unwrap_or_default()),
                None => pod.hostname.clone(),
            };
            format!(
                "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost \
                 ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\n\
                 fe00::2\tip6-allrouters\n{address}\t{names}\n"
            )
        }
    };
    if !pod.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for (ip, names) in &pod.host_aliases {
            text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
        }
    }
    text
}

#[derive(Debug, Default)]
struct Resolver {
    name_servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.name_servers.extend(words.next().map(str::to_owned)),
                // The last one counts.
                Some("search") => found.searches = words.map(str::to_owned).collect(),
                Some("options") => found.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        found
    }

    fn write(mut self) -> String {
        self.name_servers.truncate(NAME_SERVERS_MAX);
        self.searches.truncate(SEARCHES_MAX);
        let mut text: String = self.name_servers.iter().map(|it| format!("nameserver {it}\n")).collect();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

fn resolv_conf(pod: &DesiredPod, of_host: &str, cluster_dns: Option<IpAddr>) -> String {
    let Dns { policy, name_servers, searches, options } = &pod.dns;
    let clustered = match policy.as_str() {
        "ClusterFirst" => !pod.host_network,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut resolver = match (policy.as_str(), cluster_dns) {
        ("None", _) => Resolver::default(),
        (_, Some(server)) if clustered => {
            let mut searches = vec![
                format!("{}.svc.{CLUSTER_DOMAIN}", pod.namespace),
                format!("svc.{CLUSTER_DOMAIN}"),
                CLUSTER_DOMAIN.to_owned(),
            ];
            searches.extend(Resolver::parse(of_host).searches);
            Resolver {
                name_servers: vec![server.to_string()],
                searches,
                options: vec![CLUSTER_OPTIONS.to_owned()],
            }
        }
        _ => Resolver::parse(of_host),
    };
    let add = |list: &mut Vec<String>, more: &[String]| {
        for it in more {
            if !list.contains(it) {
                list.push(it.clone());
            }
        }
    };
    add(&mut resolver.name_servers, name_servers);
    add(&mut resolver.searches, searches);
    for (name, value) in options {
        resolver.options.retain(|it| it.split(':').next() != Some(name));
        resolver.options.push(if value.is_empty() { name.clone() } else { format!("{name}:{value}") });
    }
    resolver.write()
}

/// A resolver on the machine's loopback is out of a pod's reach; systemd keeps the real ones beside.
fn host_resolv_conf(own: &str, upstream: Option<&str>) -> String {
    let loopback = |server: &str| server.parse::<IpAddr>().is_ok_and(|it| it.is_loopback());
    let reachable = |text: &str| Resolver::parse(text).name_servers.iter().any(|it| !loopback(it));
    let chosen = match upstream {
        Some(upstream) if !reachable(own) && reachable(upstream) => upstream,
        _ => own,
    };
    let mut resolver = Resolver::parse(chosen);
    resolver.name_servers.retain(|it| !loopback(it));
    resolver.write()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::lower_pod;

    fn pod(spec: Value) -> DesiredPod {
        lower_pod(&json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
    }

    #[test]
    fn loopback_resolvers_are_replaced() {
        let stub = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n";
        let upstream = "nameserver 192.168.1.1\nsearch lan\n";
        assert_eq!(host_resolv_conf(stub, Some(upstream)), upstream);
        assert_eq!(host_resolv_conf(stub, None), "search lan\noptions edns0\n");
        assert_eq!(host_resolv_conf(upstream, Some("nameserver 9.9.9.9\n")), upstream);
    }

    #[test]
    fn names_are_looked_up_as_the_policy_says() {
        let host = "nameserver 1.1.1.1\nsearch lan\noptions edns0\n";
        let server = Some("10.96.0.10".parse().unwrap());
        let clustered = "nameserver 10.96.0.10\nsearch n.svc.cluster.local svc.cluster.local cluster.local lan\n\
                         options ndots:5\n";
        assert_eq!(resolv_conf(&pod(json!({})), host, server), clustered);
        assert_eq!(resolv_conf(&pod(json!({})), host, None), host);
        assert_eq!(resolv_conf(&pod(json!({"hostNetwork": true})), host, server), host);
        let policy = |policy: &str| json!({"dnsPolicy": policy, "hostNetwork": true});
        assert_eq!(resolv_conf(&pod(policy("ClusterFirstWithHostNet")), host, server), clustered);
        assert_eq!(resolv_conf(&pod(policy("Default")), host, server), host);
        let own = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["a.b"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        assert_eq!(
            resolv_conf(&pod(own), host, server),
            "nameserver 9.9.9.9\nsearch a.b\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn hosts_know_the_pod_and_its_aliases() {
        let text = hosts(
            &pod(
                json!({"hostname": "h", "subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
            ),
            "10.88.0.9",
            None,
        );
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n"));
        assert!(text.contains("\n10.88.0.9\th.s.n.svc.cluster.local\th\n"));
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
        let shared = hosts(&pod(json!({"hostNetwork": true})), "x", Some("127.0.0.1 me\n"));
        assert_eq!(shared, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n");
    }
}
