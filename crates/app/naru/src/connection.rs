//! How a command finds its daemon: the data directory holds the addresses and the keys.

use crate::cli::Global;
use crate::error::{Context, Error, Result};
use naru_client::Client;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The addresses that a running daemon answers at; `endpoints.json` in its data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoints {
    pub pid: u32,
    pub api: String,
    pub http: String,
    pub gateway: String,
    #[serde(default)]
    pub gateway_tls: Option<String>,
    pub kubeconfig: PathBuf,
    /// The socket for Docker's clients.
    #[serde(default)]
    pub docker: PathBuf,
    /// Who owns the repositories in URLs.
    #[serde(default)]
    pub owner: String,
}

pub fn endpoints_path(data_dir: &Path) -> PathBuf {
    data_dir.join("endpoints.json")
}

pub fn push_token_path(data_dir: &Path) -> PathBuf {
    data_dir.join("push-token")
}

pub fn endpoints(global: &Global) -> Result<Endpoints> {
    let path = endpoints_path(&global.data_dir);
    let text = std::fs::read_to_string(&path).map_err(|it| {
        Error::new(format!("no daemon is known in {}: {it}", global.data_dir.display()))
            .hint("start one with `naru serve`, or say where its data is with --data-dir")
    })?;
    serde_json::from_str(&text).context(|| format!("{} is damaged", path.display()))
}

pub async fn client(global: &Global) -> Result<Client> {
    let endpoints = endpoints(global)?;
    let address = endpoints.api.trim_start_matches("https://");
    if let Err(error) = tokio::net::TcpStream::connect(address).await {
        return Err(Error::new(format!(
            "the daemon of {} does not answer: {error}",
            global.data_dir.display()
        ))
        .hint("start it with `naru serve`"));
    }
    let text = std::fs::read_to_string(&endpoints.kubeconfig)
        .context(|| format!("cannot read {}", endpoints.kubeconfig.display()))?;
    Ok(Client::from_kubeconfig(&text).await?)
}
