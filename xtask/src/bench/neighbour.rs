//! What the app's users notice of a build on the same machine: requests at a steady pace through the gateway, first
//! on a quiet machine, then while a build keeps every processor and the disk busy. Ours builds with `naru build`;
//! the peer's turn is the same Dockerfile with buildah, beside the same app in the same daemon.

use super::build::Buildah;
use super::measure::{self, NOT_INSTALLED, median, sorted};
use super::{Bench, Goal, Line, Result};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
const PACE: Duration = Duration::from_millis(5); // 200 requests a second: a busy shop for this audience
const LISTEN_FOR: Duration = Duration::from_secs(6);
const SETTLE: Duration = Duration::from_secs(3); // until the step runs and whoever holds it back has seen it
const GOAL: f64 = 1.2;

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let naru = bench.naru.clone();
    let dir = bench.scratch.path().join("neighbour");
    std::fs::create_dir_all(&dir).map_err(|it| it.to_string())?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Twice as many loops as processors, and one that writes.
    let step = format!(
        "RUN for i in $(seq {}); do (while :; do :; done) & done; (while :; do dd if=/dev/zero of=/tmp/x bs=1M count=64 \
         conv=fsync 2>/dev/null; done) & sleep 600\n",
        cores * 2
    );
    std::fs::write(dir.join("Dockerfile"), format!("FROM rust:1\n{step}")).map_err(|it| it.to_string())?;
    let version = measure::version("buildah", "buildah", "--version");
    let buildah = match &version {
        Some(_) => Some(Buildah::new(&bench.scratch.path().join("neighbour-buildah"), &dir)?),
        None => None,
    };
    let daemon = &bench.shop()?.daemon;
    let (port, data_dir) = (daemon.gateway_port(), daemon.data_dir().to_owned());
    let (mut ours, mut theirs, mut quiet) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        quiet.push(p99(port)?);
        let mut command = Command::new(&naru);
        command.arg("--data-dir").arg(&data_dir).args(["build", "--no-cache", "-t", "burn:1"]).arg(&dir);
        ours.push(beside(command, port)?);
        if let Some(it) = &buildah {
            theirs.push(beside(it.command(), port)?);
        }
    }
    let ratio = |all: &[f64]| measure::ratios(all, &quiet);
    Ok(vec![Line {
        what: "p99 of an app beside a build, to its quiet p99".into(),
        unit: "x",
        ours: median(&ratio(&ours)),
        peer: version.clone().map(|it| (it, median(&ratio(&theirs)))),
        ratios: measure::ratios(&ours, &theirs),
        goal: Goal::AtMost(GOAL),
        note: match version {
            None => format!("buildah is {NOT_INSTALLED}"),
            Some(_) => format!(
                "p99 on the quiet machine {:.2} ms, beside our build {:.2} ms, beside buildah's {:.2} ms",
                median(&quiet),
                median(&ours),
                median(&theirs)
            ),
        },
    }])
}

/// The p99 while a build that never ends runs; it is ended afterwards.
fn beside(mut command: Command, port: u16) -> Result<f64> {
    // Its own group, so that what it starts ends with it.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut build = Build(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|it| it.to_string())?,
    );
    std::thread::sleep(SETTLE);
    let latency = p99(port);
    if let Ok(Some(status)) = build.0.try_wait() {
        return Err(format!("the build ended early, with {status}"));
    }
    latency
}

struct Build(Child);

impl Drop for Build {
    fn drop(&mut self) {
        // As a person ends it, to the whole group: the daemon ends its steps; buildah's are in the group.
        let group = format!("-{}", self.0.id());
        let signal = |name: &str| {
            let _ = measure::run(Command::new("kill").args([name, "--", &group]));
        };
        signal("-INT");
        let began = Instant::now();
        while !matches!(self.0.try_wait(), Ok(Some(_))) {
            if began.elapsed() > Duration::from_secs(10) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        signal("-KILL");
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Milliseconds. Each request has its time; one that is late makes the next ones late, too, and they count from
/// when they should have been sent.
fn p99(port: u16) -> Result<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|it| it.to_string())?;
    stream.set_nodelay(true).map_err(|it| it.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(|it| it.to_string())?;
    let began = Instant::now();
    let mut latencies = Vec::new();
    let mut buffer = [0; 16 * 1024];
    for number in 0.. {
        let due = began + PACE * number;
        if due.duration_since(began) > LISTEN_FOR {
            break;
        }
        if let Some(wait) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(wait);
        }
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.localhost\r\n\r\n").map_err(|it| it.to_string())?;
        let mut answer = Vec::new();
        loop {
            let read = stream.read(&mut buffer).map_err(|it| it.to_string())?;
            if read == 0 {
                return Err("the gateway closed the connection".into());
            }
            answer.extend_from_slice(&buffer[..read]);
            if is_whole(&answer)? {
                break;
            }
        }
        latencies.push(measure::milliseconds(due.elapsed()));
    }
    let all = sorted(&latencies);
    Ok(all[all.len() * 99 / 100])
}

fn is_whole(answer: &[u8]) -> Result<bool> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(false) };
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(format!("the gateway answered {}", head.lines().next().unwrap_or_default()));
    }
    let head = head.to_ascii_lowercase();
    let length =
        head.lines().find_map(|it| it.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    match length {
        Some(length) => Ok(body.len() >= length),
        None => Ok(body.ends_with("0\r\n\r\n")),
    }
}
