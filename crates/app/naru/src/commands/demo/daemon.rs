//! A daemon of the demo's own: other ports, another bridge, another data directory than the machine's.

use crate::connection::Endpoints;
use crate::error::{Context, Error, Result};
use naru_client::Client;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const STARTS_WITHIN: Duration = Duration::from_secs(60);
const STOPS_WITHIN: Duration = Duration::from_secs(15);

pub struct Daemon {
    child: Child,
    args: Vec<String>,
    data_dir: PathBuf,
    log: PathBuf,
    pub endpoints: Endpoints,
    left_running: bool,
}

impl Daemon {
    pub async fn start(dir: &Path) -> Result<Self> {
        let data_dir = dir.join("data");
        let number = std::process::id() % 200;
        let [http, api, gateway] = free_ports()?;
        let args: Vec<String> = [
            "--data-dir",
            &data_dir.display().to_string(),
            "serve",
            "--listen",
            &format!("127.0.0.1:{http}"),
            "--api",
            &format!("127.0.0.1:{api}"),
            "--gateway",
            &format!("127.0.0.1:{gateway}"),
            "--bridge",
            &format!("narudemo{number}"),
            "--subnet",
            &format!("10.{}.0.0/16", 20 + number),
            // No registry is needed: the Dockerfile's build stage runs with this machine's own tools.
            "--image",
            "rust:1=host",
            "--backend-header",
            "--print-endpoints",
        ]
        .map(str::to_owned)
        .to_vec();
        let log = dir.join("naru.log");
        let (child, endpoints) = spawn(&args, &log).await?;
        println!("naru serves git and registry at {}, the apps at {}", endpoints.http, endpoints.gateway);
        Ok(Self { child, args, data_dir, log, endpoints, left_running: false })
    }

    /// Starts it again where it was; returns the seconds until everything answers.
    pub async fn start_again(&mut self) -> Result<f64> {
        let began = Instant::now();
        (self.child, self.endpoints) = spawn(&self.args, &self.log).await?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// kill -9.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    pub fn leave_running(&mut self) {
        self.left_running = true;
    }

    pub async fn stop_and_destroy(&mut self) -> Result<()> {
        if let Some(pid) = self.child.id() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
            if tokio::time::timeout(STOPS_WITHIN, self.child.wait()).await.is_err() {
                self.child.kill().await?;
            }
        }
        crate::serve::destroy(&self.data_dir).await
    }

    pub async fn client(&self) -> Result<Client> {
        let path = &self.endpoints.kubeconfig;
        let text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
        Ok(Client::from_kubeconfig(&text).await?)
    }

    pub fn git_url(&self, repository: &str) -> String {
        let token =
            std::fs::read_to_string(crate::connection::push_token_path(&self.data_dir)).unwrap_or_default();
        let base = self.endpoints.http.replace("http://", &format!("http://naru:{}@", token.trim()));
        format!("{base}/git/{repository}.git")
    }

    pub fn gateway_url(&self, host: &str) -> String {
        let port = self.endpoints.gateway.rsplit(':').next().unwrap_or_default();
        format!("http://{host}:{port}")
    }

    /// One request through the gateway, which must succeed.
    pub async fn get(&self, host: &str, path: &str) -> Result<String> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("{}{path}", self.gateway_url("127.0.0.1"));
        Ok(client.get(url).header("host", host).send().await?.error_for_status()?.text().await?)
    }

    /// Resident memory of the daemon's process.
    pub fn rss_mib(&self) -> Result<f64> {
        let pid = self.endpoints.pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|it| it.starts_with("VmRSS:")).unwrap_or_default();
        let kib: f64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).unwrap_or_default();
        Ok(kib / 1024.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.left_running {
            let _ = self.child.start_kill();
        }
    }
}

async fn spawn(args: &[String], log: &Path) -> Result<(Child, Endpoints)> {
    let log_file = std::fs::File::options().create(true).append(true).open(log)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .process_group(0)
        .spawn()?;
    let stdout = child.stdout.take().expect("asked for above");
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(STARTS_WITHIN, lines.next_line()).await;
    let Ok(Ok(Some(line))) = line else {
        let _ = child.start_kill();
        let tail = std::fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<&str> = tail.lines().rev().take(12).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        return Err(Error::new(format!("naru did not start:\n{}", tail.join("\n"))));
    };
    let endpoints = serde_json::from_str(&line).context(|| "naru printed no endpoints".into())?;
    // Nobody reads further lines, and none come.
    Ok((child, endpoints))
}

fn free_ports() -> Result<[u16; 3]> {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener?.local_addr()?.port();
    }
    Ok(ports)
}
