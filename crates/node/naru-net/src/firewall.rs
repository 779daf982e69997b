//! The one nft table of an instance: outgoing traffic wears the machine's address.
//!
//! Done through the `nft` program, which is atomic and present wherever nftables is; without it the
//! pods still reach each other and the machine.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::Config;

pub(crate) fn table_name(config: &Config) -> String {
    format!("naru_{}", config.bridge.replace('-', "_"))
}

fn rules(config: &Config) -> String {
    let (table, subnet, bridge) = (table_name(config), config.subnet, &config.bridge);
    // Pods reach each other through the machine on purpose; it must not tell them a shorter way.
    // Adding before deleting makes the first run and every other one the same transaction.
    format!(
        "table ip {table}\n\
         delete table ip {table}\n\
         table ip {table} {{\n\
           chain postrouting {{\n\
             type nat hook postrouting priority srcnat; policy accept;\n\
             ip saddr {subnet} ip daddr != {subnet} oifname != \"{bridge}\" masquerade\n\
           }}\n\
           chain output {{\n\
             type filter hook output priority 0; policy accept;\n\
             oifname \"{bridge}\" icmp type redirect drop\n\
           }}\n\
         }}\n"
    )
}

pub(crate) async fn install(config: &Config) {
    if let Err(text) = run(&rules(config)).await {
        tracing::warn!(
            error = text,
            "cannot install the masquerade rule: containers reach each other and this machine, not the outside"
        );
    }
}

pub(crate) async fn remove(config: &Config) {
    let tables =
        [table_name(config), crate::services::table_name(config), crate::policies::table_name(config)];
    for table in tables {
        // Fails only where there was no nft to make the table.
        let _ = run(&format!("table ip {table}\ndelete table ip {table}\n")).await;
    }
}

/// Lets the machine reach node ports by its loopback address. The table of services keeps pods from it.
pub(crate) fn open_loopback(config: &Config) {
    let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", config.bridge);
    if std::fs::read_to_string(&path).is_ok_and(|it| it.trim() != "1")
        && let Err(error) = std::fs::write(&path, "1")
    {
        tracing::debug!(%error, "node ports are not reachable by 127.0.0.1");
    }
}

pub(crate) async fn run(script: &str) -> Result<(), String> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("nft: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await.map_err(|error| error.to_string())?;
    }
    let output = child.wait_with_output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_named_after_the_bridge() {
        let config = Config::new("naru-t1", "10.9.0.0/24".parse().unwrap());
        let rules = rules(&config);
        assert!(
            rules.contains("table ip naru_naru_t1 {") && rules.contains("oifname != \"naru-t1\" masquerade")
        );
    }
}
