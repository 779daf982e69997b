//! kube-apiserver with etcd, as `scripts/kube-peer.sh` builds them: one of each, on loopback, durable as they
//! come, without admission that would need controllers.

use super::Target;
use crate::bench::Result;
use crate::bench::measure::{self, Server, free_port};
use crate::root;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const TOKEN: &str = "bench-token";

pub struct ApiServer {
    pub target: Target,
    pub version: String,
    /// The API goes before what it stores in.
    _api: Server,
    _etcd: Server,
}

impl ApiServer {
    /// `None` when the programs are not there.
    pub fn start(dir: &Path) -> Result<Option<Self>> {
        let bin = root().join(".tools/bin");
        let (api, etcd) = (bin.join("kube-apiserver"), bin.join("etcd"));
        if !api.exists() || !etcd.exists() {
            return Ok(None);
        }
        std::fs::create_dir_all(dir).map_err(|it| it.to_string())?;
        let text = |name: &str| dir.join(name).display().to_string();
        let log = |name: &str| std::fs::File::create(dir.join(name)).map_err(|it| it.to_string());
        let (clients, peers, secure) = (free_port()?, free_port()?, free_port()?);
        let (clients_url, peers_url) =
            (format!("http://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
        let mut store = Server::start(
            Command::new(&etcd)
                .args([
                    "--data-dir",
                    &text("etcd"),
                    "--listen-client-urls",
                    &clients_url,
                    "--advertise-client-urls",
                    &clients_url,
                ])
                .args(["--listen-peer-urls", &peers_url, "--initial-advertise-peer-urls", &peers_url])
                .args(["--initial-cluster", &format!("default={peers_url}"), "--log-level", "error"])
                .stdout(Stdio::null())
                .stderr(log("etcd.log")?),
        )?;
        store.wait_for_port(clients)?;
        std::fs::write(dir.join("tokens.csv"), format!("{TOKEN},admin,1,system:masters\n"))
            .map_err(|it| it.to_string())?;
        measure::run(Command::new("openssl").args(["genrsa", "-out", &text("sa.key"), "2048"]))?;
        let server = Server::start(
            Command::new(&api)
                .args([
                    "--etcd-servers",
                    &clients_url,
                    "--bind-address",
                    "127.0.0.1",
                    "--secure-port",
                    &secure.to_string(),
                ])
                .args(["--cert-dir", &text("pki"), "--token-auth-file", &text("tokens.csv")])
                .args([
                    "--service-account-key-file",
                    &text("sa.key"),
                    "--service-account-signing-key-file",
                    &text("sa.key"),
                ])
                .args(["--service-account-issuer", "https://kubernetes.default.svc"])
                .args(["--service-cluster-ip-range", "10.97.0.0/24", "--authorization-mode", "RBAC"])
                .args(["--disable-admission-plugins", "ServiceAccount"])
                .stdout(Stdio::null())
                .stderr(log("apiserver.log")?),
        )?;
        let address = format!("https://127.0.0.1:{secure}");
        let began = Instant::now();
        let ask = || {
            let header = format!("Authorization: Bearer {TOKEN}");
            let url = format!("{address}/api/v1/namespaces/default");
            measure::output("curl", &["-skf", "--noproxy", "*", "-H", &header, &url])
        };
        while ask().is_err() {
            if began.elapsed() > PATIENCE {
                let log = std::fs::read_to_string(dir.join("apiserver.log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("kube-apiserver does not answer: {}", end.join(" / ")));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let said = measure::output(&api.display().to_string(), &["--version"])?;
        let version = format!("kube-apiserver {} with etcd", said.trim().trim_start_matches("Kubernetes "));
        let pids = vec![server.pid(), store.pid()];
        let target = Target { address, token: TOKEN.into(), pids, scratch: dir.into() };
        Ok(Some(Self { target, version, _api: server, _etcd: store }))
    }
}
