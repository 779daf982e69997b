//! What a repository's jobs may reach and write, by the repository's settings. The first is a NetworkPolicy that
//! selects their pods.
//!
//! Closed while in doubt: settings that cannot be understood fail the job, and a job is given to its pod only
//! once the node says that the pod's address is held.

use super::{SERVER_HOST, Shared, already_there_is_fine};
use naru_client::Error;
use naru_objects::{Allowed, Egress, RepositorySettings, kinds, labels};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The rules of a pod that has an address are in force within milliseconds; one that has none yet waits for its
/// image, which takes as long as it takes.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// More rules for one repository are a mistake, and every job's pod carries all of them.
const ALLOWED_MAX: usize = 100;

/// Tells whether the rules for what a pod's address may reach are in force.
pub type Held = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What a repository's jobs are held to.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// They may not reach everything.
    pub egress: bool,
    /// What one may write; empty is what all may.
    pub disk: String,
}

/// What a repository's jobs are held to, or why they cannot be.
pub(super) type Holding = Result<Bounds, String>;

fn policy_name(repository: &str) -> String {
    naru_objects::dns_label_unique(&format!("jobs-of-{repository}"), 63)
}

/// The policy that makes the settings true; none is needed where everything may be reached.
fn policy_of(
    settings: &RepositorySettings,
    namespace: &str,
    server: SocketAddr,
) -> Result<Option<Value>, String> {
    let (spec, repository) = (&settings.spec, &settings.metadata.name);
    if spec.egress == Egress::All {
        return match spec.allow.is_empty() {
            true => Ok(None),
            false => Err("`allow` means something only with `egress: server`".into()),
        };
    }
    if spec.allow.len() > ALLOWED_MAX {
        return Err(format!("`allow` has more than {ALLOWED_MAX} entries"));
    }
    let mut rules = vec![json!({
        "to": [{"ipBlock": {"cidr": format!("{}/32", server.ip())}}],
        "ports": [{"protocol": "TCP", "port": server.port()}]})];
    for (index, it) in spec.allow.iter().enumerate() {
        let rule = rule_of(it).map_err(|why| format!("`allow[{index}]`: {why}"))?;
        rules.push(rule);
    }
    Ok(Some(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {
            "name": policy_name(repository), "namespace": namespace,
            "labels": {labels::APP: repository},
            "ownerReferences": [{
                "apiVersion": "naru.dev/v1", "kind": "RepositorySettings", "name": repository,
                "uid": settings.metadata.uid, "controller": true, "blockOwnerDeletion": true}],
        },
        "spec": {
            "podSelector": {
                "matchLabels": {labels::APP: repository},
                "matchExpressions": [{"key": labels::JOB, "operator": "Exists"}]},
            "policyTypes": ["Egress"], "egress": rules},
    })))
}

fn rule_of(allowed: &Allowed) -> Result<Value, String> {
    let text = &allowed.cidr;
    let (address, bits) = text.split_once('/').unwrap_or((text, "32"));
    let fine = address.parse::<Ipv4Addr>().is_ok() && bits.parse::<u8>().is_ok_and(|it| it <= 32);
    if !fine {
        return Err(format!(
            "pods have IPv4 addresses; write 10.1.0.0/16 or one address instead of `{text}`"
        ));
    }
    let ports = allowed.ports.iter().map(port_of).collect::<Result<Vec<_>, _>>()?;
    let mut rule = json!({"to": [{"ipBlock": {"cidr": format!("{address}/{bits}")}}]});
    if !ports.is_empty() {
        rule["ports"] = json!(ports);
    }
    Ok(rule)
}

fn port_of(port: &Value) -> Result<Value, String> {
    let text = port.as_str().map_or_else(|| port.to_string(), str::to_owned);
    let (ports, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |it: &str| it.parse::<u16>().ok().filter(|it| *it > 0);
    match (number(first), number(last), protocol.to_ascii_lowercase().as_str()) {
        (Some(first), Some(last), "tcp" | "udp" | "sctp") if first <= last => {
            let mut port = json!({"protocol": protocol.to_ascii_uppercase(), "port": first});
            if last > first {
                port["endPort"] = json!(last);
            }
            Ok(port)
        }
        _ => Err(format!("`{text}` is no port: write 443, 8000-9000 or 53/udp")),
    }
}

impl Shared {
    /// Makes the settings of a repository true before one of its jobs begins.
    pub(super) async fn hold(&self, repository: &str) -> Result<Holding, Error> {
        let namespace = &self.config.namespace;
        let object = self.client.get(&kinds::REPOSITORY_SETTINGS, namespace, repository).await?;
        let mut disk = String::new();
        let wanted = match object.map(serde_json::from_value::<RepositorySettings>) {
            None => None,
            Some(Err(error)) => return Ok(Err(refusal(repository, &error.to_string()))),
            Some(Ok(settings)) => match policy_of(&settings, namespace, self.config.pod_http) {
                Ok(policy) => {
                    disk = settings.spec.disk;
                    policy
                }
                Err(why) => return Ok(Err(refusal(repository, &why))),
            },
        };
        let name = policy_name(repository);
        let there = self.client.get(&kinds::NETWORK_POLICY, namespace, &name).await?;
        match (&wanted, there) {
            (None, None) => {}
            (None, Some(_)) => match self.client.delete(&kinds::NETWORK_POLICY, namespace, &name, None).await
            {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            },
            (Some(wanted), Some(there)) if there["spec"] == wanted["spec"] => {}
            (Some(wanted), Some(mut there)) => {
                there["spec"] = wanted["spec"].clone();
                self.client.replace(&kinds::NETWORK_POLICY, &there).await?;
            }
            (Some(wanted), None) => {
                already_there_is_fine(self.client.create(&kinds::NETWORK_POLICY, wanted).await)?;
            }
        }
        if wanted.is_some() && self.config.held.is_none() {
            let why = "this node cannot keep network policies (nft does not work here)";
            return Ok(Err(refusal(repository, why)));
        }
        Ok(Ok(Bounds { egress: wanted.is_some(), disk }))
    }

    /// Waits until the pod's address is held. False if the pod is gone before that.
    pub(super) async fn is_held(&self, pod: &str) -> bool {
        let Some(held) = &self.config.held else { return false };
        let mut changes = self.pods.changes();
        let mut seen = false;
        loop {
            match self.pods.get(&self.config.namespace, pod) {
                Some(it) => {
                    seen = true;
                    let address = it["status"]["podIP"].as_str().unwrap_or_default();
                    if !address.is_empty() && held(address) {
                        return true;
                    }
                }
                // The cache may not have it yet.
                None if seen => return false,
                None => {}
            }
            tokio::select! {
                () = changes.wait() => {}
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

fn refusal(repository: &str, why: &str) -> String {
    format!(
        "its settings cannot be kept: {why}; look at `kubectl get repositorysettings {repository} -o yaml` (jobs \
         reach this server as {SERVER_HOST} with `egress: server`)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> Result<Option<Value>, String> {
        let settings = json!({"metadata": {"name": "shop", "uid": "u"}, "spec": spec});
        policy_of(&serde_json::from_value(settings).unwrap(), "default", "10.88.0.1:7070".parse().unwrap())
    }

    #[test]
    fn jobs_reach_the_server_and_what_is_allowed() {
        assert_eq!(policy(json!({})), Ok(None));
        let allow =
            json!([{"cidr": "10.1.0.0/16", "ports": [443, "8000-9000", "53/udp"]}, {"cidr": "192.0.2.7"}]);
        let policy = policy(json!({"egress": "server", "allow": allow})).unwrap().unwrap();
        assert_eq!(policy["spec"]["podSelector"]["matchLabels"]["naru.dev/app"], "shop");
        assert_eq!(
            policy["spec"]["egress"],
            json!([
                {"to": [{"ipBlock": {"cidr": "10.88.0.1/32"}}], "ports": [{"protocol": "TCP", "port": 7070}]},
                {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [
                    {"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 8000, "endPort": 9000},
                    {"protocol": "UDP", "port": 53}]},
                {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}]},
            ])
        );
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        for (spec, why) in [
            (json!({"allow": [{"cidr": "10.0.0.0/8"}]}), "only with `egress: server`"),
            (json!({"egress": "server", "allow": [{"cidr": "example.com"}]}), "`allow[0]`: pods have IPv4"),
            (json!({"egress": "server", "allow": [{"cidr": "2001:db8::/32"}]}), "pods have IPv4"),
            (json!({"egress": "server", "allow": [{"cidr": "10.0.0.0/33"}]}), "10.1.0.0/16"),
            (
                json!({"egress": "server", "allow": [{"cidr": "10.0.0.1", "ports": ["http"]}]}),
                "`http` is no port",
            ),
            (
                json!({"egress": "server", "allow": [{"cidr": "10.0.0.1", "ports": ["9-1"]}]}),
                "`9-1` is no port",
            ),
        ] {
            let refused = policy(spec).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
