//! CPU time that a proxied request costs, ours against HAProxy's and Traefik's.
//!
//! One backend (nginx with a file of 1 KiB), one load generator, all on this machine, keep-alive on both
//! sides. The proxy's CPU time is divided by the requests that it answered; what it uses at rest is taken
//! off. CPU time and not requests per second: the load generator and the backend share the processors.

use super::daemon::{Daemon, get};
use super::measure::{self, NOT_INSTALLED, Server, free_port, median};
use super::{Bench, Goal, Line, Result};
use crate::root;
use serde_json::json;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
const LOAD_SECONDS: u32 = 5;
const REST: Duration = Duration::from_secs(2);
const HOST: &str = "bench.test";
const BODY_BYTES: usize = 1024;
const GOAL_HAPROXY: f64 = 2.0;
const GOAL_TRAEFIK: f64 = 0.5;

struct Proxy {
    name: &'static str,
    version: String,
    port: u16,
    pid: u32,
    microseconds: Vec<f64>,
    per_second: Vec<f64>,
    /// What runs; dropped at the end.
    _server: Option<Server>,
}

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let dir = bench.scratch.path().join("gateway");
    std::fs::create_dir_all(dir.join("www")).map_err(|it| it.to_string())?;
    measure::version("wrk", "wrk", "-v").ok_or(format!("wrk is {NOT_INSTALLED}"))?;
    let (_backend, backend_port) = start_backend(&dir)?;
    let daemon = Daemon::start(&bench.naru, &dir)?;
    daemon.apply(&objects(backend_port))?;
    let mut proxies = vec![proxy("naru", String::new(), daemon.gateway_port(), daemon.pid(), None)];
    proxies.extend(start_haproxy(&dir, backend_port)?);
    proxies.extend(start_traefik(&dir, backend_port)?);
    for it in &proxies {
        wait_for_answer(it)?;
    }
    for round in 0..ROUNDS {
        for place in 0..proxies.len() {
            let count = proxies.len();
            load(&mut proxies[(place + round) % count])?;
        }
    }
    let (ours, peers) = proxies.split_first().ok_or("ours is the first")?;
    let mut lines = Vec::new();
    for (name, goal) in [("HAProxy", GOAL_HAPROXY), ("Traefik", GOAL_TRAEFIK)] {
        let peer = peers.iter().find(|it| it.name == name);
        lines.push(Line {
            what: "CPU time per proxied request".into(),
            unit: "us",
            ours: median(&ours.microseconds),
            peer: peer.map(|it| (it.version.clone(), median(&it.microseconds))),
            ratios: peer.map_or(Vec::new(), |it| measure::ratios(&ours.microseconds, &it.microseconds)),
            goal: Goal::RatioAtMost(goal),
            note: match peer {
                Some(it) => format!(
                    "{:.0} requests/s, {:.0} of {}",
                    median(&ours.per_second),
                    median(&it.per_second),
                    it.version
                ),
                None => format!("{name} is {NOT_INSTALLED}"),
            },
        });
    }
    Ok(lines)
}

fn proxy(name: &'static str, version: String, port: u16, pid: u32, server: Option<Server>) -> Proxy {
    Proxy { name, version, port, pid, microseconds: Vec::new(), per_second: Vec::new(), _server: server }
}

/// nginx: one process that answers with a file.
fn start_backend(dir: &Path) -> Result<(Server, u16)> {
    let port = free_port()?;
    let shown = dir.display();
    std::fs::write(dir.join("www/index.html"), "x".repeat(BODY_BYTES)).map_err(|it| it.to_string())?;
    let config = format!(
        "daemon off; master_process off; pid {shown}/nginx.pid; error_log {shown}/nginx.log crit;
         events {{ worker_connections 1024; }}
         http {{
           access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; sendfile on; tcp_nodelay on;
           client_body_temp_path {shown}/t1; proxy_temp_path {shown}/t2; fastcgi_temp_path {shown}/t3;
           uwsgi_temp_path {shown}/t4; scgi_temp_path {shown}/t5;
           server {{ listen 127.0.0.1:{port}; root {shown}/www; }}
         }}"
    );
    let mut server = start_with(dir, "nginx.conf", &config, "nginx", &["-e", "stderr", "-c"])?;
    server.wait_for_port(port)?;
    Ok((server, port))
}

fn start_haproxy(dir: &Path, backend: u16) -> Result<Option<Proxy>> {
    let Some(version) = measure::version("HAProxy", "/usr/sbin/haproxy", "-v") else { return Ok(None) };
    let port = free_port()?;
    let config = format!(
        "global\n  nbthread 1\n  maxconn 4096\n\
         defaults\n  mode http\n  option http-keep-alive\n  http-reuse always\n  timeout connect 5s\n  \
         timeout client 60s\n  timeout server 60s\n\
         frontend web\n  bind 127.0.0.1:{port}\n  use_backend shop if {{ hdr(host) -i {HOST} }}\n\
         backend shop\n  option forwardfor\n  server one 127.0.0.1:{backend}\n"
    );
    let server = start_with(dir, "haproxy.cfg", &config, "/usr/sbin/haproxy", &["-db", "-f"])?;
    Ok(Some(proxy("HAProxy", format!("{version}, 1 thread"), port, server.pid(), Some(server))))
}

fn start_traefik(dir: &Path, backend: u16) -> Result<Option<Proxy>> {
    let program = root().join(".tools/bin/traefik").display().to_string();
    let version = Command::new(&program).arg("version").output().ok().and_then(|it| {
        let text = String::from_utf8_lossy(&it.stdout).into_owned();
        let line = text.lines().find(|it| it.starts_with("Version:"))?;
        Some(format!("Traefik {}", line.split_whitespace().nth(1)?))
    });
    let Some(version) = version else { return Ok(None) };
    let port = free_port()?;
    let config = json!({"http": {
        "routers": {"shop": {"rule": format!("Host(`{HOST}`)"), "service": "shop", "entryPoints": ["web"]}},
        "services": {"shop": {"loadBalancer": {"servers": [{"url": format!("http://127.0.0.1:{backend}")}]}}},
    }});
    let options = [
        format!("--entryPoints.web.address=127.0.0.1:{port}"),
        "--log.level=ERROR".into(),
        "--global.checkNewVersion=false".into(),
        "--global.sendAnonymousUsage=false".into(),
        "--providers.file.watch=false".into(),
        "--providers.file.filename".into(),
    ];
    // JSON is YAML.
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let server = start_with(dir, "traefik.yml", &config.to_string(), &program, &options)?;
    Ok(Some(proxy("Traefik", version, port, server.pid(), Some(server))))
}

/// Writes a configuration and starts a program whose last argument it is.
fn start_with(dir: &Path, name: &str, config: &str, program: &str, args: &[&str]) -> Result<Server> {
    let path = dir.join(name);
    std::fs::write(&path, config).map_err(|it| it.to_string())?;
    let log = std::fs::File::create(path.with_extension("out")).map_err(|it| it.to_string())?;
    Server::start(Command::new(program).args(args).arg(path).stdout(Stdio::null()).stderr(log))
}

/// A Service without pods of ours: its endpoint is the backend.
fn objects(backend: u16) -> serde_json::Value {
    let meta = |labels: serde_json::Value| json!({"name": "bench", "namespace": "default", "labels": labels});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta(json!({})),
         "spec": {"ports": [{"name": "http", "port": 80, "targetPort": backend}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": meta(json!({"kubernetes.io/service-name": "bench"})),
         "ports": [{"name": "http", "port": backend, "protocol": "TCP"}],
         "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]},
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": meta(json!({})),
         "spec": {"parentRefs": [{"name": "naru"}], "hostnames": [HOST],
                  "rules": [{"backendRefs": [{"name": "bench", "port": 80}]}]}},
    ]})
}

fn wait_for_answer(proxy: &Proxy) -> Result<()> {
    let began = Instant::now();
    loop {
        match get(proxy.port, HOST, "/") {
            Some(body) if body.len() >= BODY_BYTES => return Ok(()),
            _ if began.elapsed() > Duration::from_secs(20) => {
                return Err(format!("{} does not answer", proxy.name));
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn load(proxy: &mut Proxy) -> Result<()> {
    let at_rest = measure::cpu_seconds(proxy.pid)?;
    std::thread::sleep(REST);
    let before = measure::cpu_seconds(proxy.pid)?;
    let began = Instant::now();
    let header = format!("Host: {HOST}");
    let url = format!("http://127.0.0.1:{}/", proxy.port);
    let duration = format!("{LOAD_SECONDS}s");
    let text = measure::output_within(
        LOAD_SECONDS + 15,
        "wrk",
        &["-t1", "-c32", "-d", &duration, "-H", &header, &url],
    )?;
    let resting_share = (before - at_rest) / REST.as_secs_f64();
    let used = measure::cpu_seconds(proxy.pid)? - before - resting_share * began.elapsed().as_secs_f64();
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(format!("{} failed under load: {text}", proxy.name));
    }
    let requests = requests_in(&text).ok_or(format!("wrk said {text}"))?;
    proxy.microseconds.push(used * 1e6 / requests);
    proxy.per_second.push(requests / began.elapsed().as_secs_f64());
    Ok(())
}

/// From wrk's `  123456 requests in 5.00s, 150.00MB read`.
fn requests_in(text: &str) -> Option<f64> {
    text.lines().find_map(|it| it.split_once(" requests in ")?.0.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_load_generators_words_are_read() {
        let text =
            "Running 5s test\n  1 threads and 32 connections\n  123456 requests in 5.00s, 150.00MB read\n";
        assert_eq!(super::requests_in(text), Some(123_456.0));
    }
}
