//! A daemon of the benchmarks' own, and the example in it.

use super::Result;
use super::measure::{self, Server, free_port};
use crate::root;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here measures up to this: it is for what never comes.
const PATIENCE: Duration = Duration::from_secs(180);

/// `naru serve` on a data directory, ports and a bridge that nobody else uses. Gone with everything that it
/// made when it is dropped.
pub struct Daemon {
    server: Option<Server>,
    naru: PathBuf,
    data_dir: PathBuf,
    endpoints: Value,
}

impl Daemon {
    pub fn start(naru: &Path, dir: &Path) -> Result<Self> {
        let data_dir = dir.join("data");
        std::fs::create_dir_all(&data_dir).map_err(|it| it.to_string())?;
        let log = dir.join("naru.log");
        let log_file = std::fs::File::create(&log).map_err(|it| it.to_string())?;
        let pid = std::process::id();
        // The data directory's name tells two daemons of one run apart.
        let salt =
            u32::from(dir.file_name().and_then(|it| it.as_encoded_bytes().first()).copied().unwrap_or(0));
        let unique = pid.wrapping_mul(31).wrapping_add(salt);
        let address = || Ok::<_, String>(format!("127.0.0.1:{}", free_port()?));
        let mut server = Server::start(
            Command::new(naru)
                .arg("--data-dir")
                .arg(&data_dir)
                .args(["--log", "warn", "serve", "--listen", &address()?, "--api", &address()?])
                .args(["--gateway", &address()?, "--bridge", &format!("nb{}", unique % 100_000)])
                .args(["--subnet", &format!("10.{}.{}.0/24", 230 + unique / 256 % 20, unique % 256)])
                .args(["--image", "rust:1=host", "--print-endpoints"])
                .stdout(Stdio::piped())
                .stderr(log_file),
        )?;
        let mut line = String::new();
        if let Some(stdout) = server.child().stdout.take() {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        let mut it = Self { server: Some(server), naru: naru.into(), data_dir, endpoints: Value::Null };
        it.endpoints = serde_json::from_str(&line).map_err(|_| {
            format!("naru did not start: {}", std::fs::read_to_string(&log).unwrap_or_default().trim())
        })?;
        Ok(it)
    }

    pub fn pid(&self) -> u32 {
        self.server.as_ref().map_or(0, Server::pid)
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// `host:port` of git and the registry.
    pub fn http(&self) -> String {
        self.endpoints["http"].as_str().unwrap_or_default().trim_start_matches("http://").to_owned()
    }

    pub fn push_token(&self) -> Result<String> {
        let token = std::fs::read_to_string(self.data_dir.join("push-token")).map_err(|it| it.to_string())?;
        Ok(token.trim().to_owned())
    }

    pub fn gateway_port(&self) -> u16 {
        let address = self.endpoints["gateway"].as_str().unwrap_or_default();
        address.rsplit(':').next().and_then(|it| it.parse().ok()).unwrap_or(0)
    }

    fn kubectl(&self) -> Command {
        let mut command = Command::new(root().join(".tools/bin/kubectl"));
        command.env("KUBECONFIG", self.endpoints["kubeconfig"].as_str().unwrap_or_default());
        command.env("HOME", &self.data_dir);
        command
    }

    pub fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let text = measure::run(self.kubectl().args(["get", kind, "-o", "json"]))?;
        let mut list: Value = serde_json::from_str(&text).map_err(|it| it.to_string())?;
        Ok(match list["items"].take() {
            Value::Array(items) => items,
            _ => Vec::new(),
        })
    }

    pub fn api(&self) -> &str {
        self.endpoints["api"].as_str().unwrap_or_default()
    }

    pub fn kubectl_run(&self, args: &[&str]) -> Result<String> {
        measure::run(self.kubectl().args(args))
    }

    pub fn apply(&self, objects: &Value) -> Result<()> {
        let file = self.data_dir.with_extension("objects.json");
        std::fs::write(&file, objects.to_string()).map_err(|it| it.to_string())?;
        measure::run(self.kubectl().args(["apply", "-f"]).arg(&file)).map(drop)
    }

    pub fn git_url(&self, repository: &str) -> Result<String> {
        let token = self.push_token()?;
        let base = self.endpoints["http"].as_str().unwrap_or_default();
        Ok(format!("{}/git/{repository}.git", base.replace("http://", &format!("http://naru:{token}@"))))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.server = None;
        let destroyed =
            measure::run(Command::new(&self.naru).arg("--data-dir").arg(&self.data_dir).arg("destroy"));
        if let Err(error) = destroyed {
            eprintln!("warning: {error}");
        }
    }
}

/// The answer's body, if the status is 200.
pub fn get(port: u16, host: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200 ").then(|| body.to_owned())
}

/// `examples/shop` in a repository of its own, deployed, with `rollout: rolling`: what a canary waits for is
/// the judge's time, not ours.
pub struct Shop {
    pub daemon: Daemon,
    pub repository: PathBuf,
    version: u32,
}

const HOST: &str = "shop.localhost";

impl Shop {
    pub fn start(naru: &Path, scratch: &Path) -> Result<Self> {
        let dir = scratch.join("shop");
        let repository = dir.join("repository");
        std::fs::create_dir_all(&repository).map_err(|it| it.to_string())?;
        let files =
            measure::run(Command::new("git").arg("-C").arg(root()).args(["ls-files", "examples/shop"]))?;
        for file in files.lines() {
            let to = repository.join(file.trim_start_matches("examples/shop/"));
            std::fs::create_dir_all(to.parent().unwrap_or(&repository)).map_err(|it| it.to_string())?;
            std::fs::copy(root().join(file), &to).map_err(|it| format!("{file}: {it}"))?;
        }
        let spec = repository.join("naru.yaml");
        let text = std::fs::read_to_string(&spec).map_err(|it| it.to_string())?;
        let lines = text.lines().filter(|it| !it.trim_start().starts_with("window:")).map(|it| {
            match it.find("rollout:") {
                Some(at) => format!("{}rollout: rolling\n", &it[..at]),
                None => format!("{it}\n"),
            }
        });
        std::fs::write(&spec, lines.collect::<String>()).map_err(|it| it.to_string())?;
        let daemon = Daemon::start(naru, &dir)?;
        let mut shop = Self { daemon, repository, version: 1 };
        shop.git(&["init", "--quiet", "--initial-branch=main"])?;
        shop.git(&["add", "--all"])?;
        shop.commit("v1")?;
        shop.git(&["remote", "add", "naru", &shop.daemon.git_url("shop")?])?;
        shop.push()?;
        shop.wait_until_live("v1")?;
        // The second push is like all that follow: everything that can be cached is.
        shop.push_version()?;
        Ok(shop)
    }

    pub fn git(&self, args: &[&str]) -> Result<String> {
        measure::run(
            Command::new("git").arg("-C").arg(&self.repository).args(args).env("GIT_TERMINAL_PROMPT", "0"),
        )
    }

    pub fn commit(&self, message: &str) -> Result<()> {
        let identity = ["-c", "user.name=Bench", "-c", "user.email=bench@example.org"];
        let args = [&identity[..], &["commit", "--quiet", "--all", "--allow-empty", "-m", message]].concat();
        self.git(&args).map(drop)
    }

    pub fn push(&self) -> Result<()> {
        self.git(&["push", "--quiet", "naru", "main"]).map(drop)
    }

    /// Changes one line and pushes it; seconds from the start of the push until a request gets the new
    /// version.
    pub fn push_version(&mut self) -> Result<f64> {
        let file = self.repository.join("src/catalogue.rs");
        let text = std::fs::read_to_string(&file).map_err(|it| it.to_string())?;
        let (old, new) = (format!("\"v{}\"", self.version), format!("\"v{}\"", self.version + 1));
        if !text.contains(&old) {
            return Err(format!("{} does not name its version {old}", file.display()));
        }
        std::fs::write(&file, text.replacen(&old, &new, 1)).map_err(|it| it.to_string())?;
        self.version += 1;
        let version = format!("v{}", self.version);
        self.commit(&version)?;
        let began = Instant::now();
        self.push()?;
        self.wait_until_live(&version)?;
        let took = began.elapsed().as_secs_f64();
        self.wait_until_settled()?;
        Ok(took)
    }

    fn wait_until_live(&self, version: &str) -> Result<()> {
        let (began, wanted) = (Instant::now(), format!("\"version\":\"{version}\""));
        while !get(self.daemon.gateway_port(), HOST, "/").is_some_and(|it| it.contains(&wanted)) {
            if began.elapsed() > PATIENCE {
                return Err(format!("{version} did not become live: {}", self.story()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until the release of the present commit has come to its end and what it replaced is gone.
    pub fn wait_until_settled(&self) -> Result<()> {
        let head = self.git(&["rev-parse", "HEAD"])?.trim().to_owned();
        let began = Instant::now();
        loop {
            // Seldom: every look costs CPU time that the daemon does not get.
            std::thread::sleep(Duration::from_millis(500));
            let releases = self.daemon.list("releases")?;
            let phase = releases
                .iter()
                .find(|it| it["spec"]["sha"] == head.as_str())
                .map(|it| &it["status"]["phase"]);
            match phase.and_then(Value::as_str) {
                Some("Promoted") => return Ok(()),
                Some(it @ ("Failed" | "RolledBack" | "Superseded")) => {
                    return Err(format!("the release of {head} ended as {it}: {}", self.story()));
                }
                _ if began.elapsed() > PATIENCE => {
                    return Err(format!("no release of {head}: {}", self.story()));
                }
                _ => {}
            }
        }
    }

    /// The build of the present commit: its `Image`.
    pub fn image(&self) -> Result<Value> {
        let head = self.git(&["rev-parse", "HEAD"])?.trim().to_owned();
        let images = self.daemon.list("images")?;
        images.into_iter().find(|it| it["spec"]["sha"] == head.as_str()).ok_or(format!("no Image of {head}"))
    }

    /// What a reader needs to see why something did not happen.
    fn story(&self) -> String {
        let table = measure::run(self.daemon.kubectl().args(["get", "runs,images,releases,pods"]))
            .unwrap_or_default();
        let log =
            std::fs::read_to_string(self.daemon.data_dir().with_file_name("naru.log")).unwrap_or_default();
        format!("\n{table}\n{log}")
    }
}
