//! The Kubernetes API alone, on simulated nodes: how soon it answers, how fast it reads, writes and tells its
//! watchers, and how soon it is back with ten thousand objects. The peer is kube-apiserver with etcd, if
//! `scripts/kube-peer.sh` has built them.

mod apiserver;

use super::measure::{self, NOT_INSTALLED, Server, median, milliseconds};
use super::{Bench, Goal, Line, Result};
use apiserver::ApiServer;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const STARTS: usize = 5;
const START_MS_MAX: f64 = 100.0;
const GET_MS_MAX: f64 = 2.0;
const RESTART_MS_MAX: f64 = 2000.0;
/// At least twice the peer's throughput, so at most half its time for each request.
const TIME_RATIO_MAX: f64 = 0.5;
const MEMORY_RATIO_MAX: f64 = 0.1;
const OBJECTS: usize = 10_000;
const WATCHERS: usize = 100;
const SECONDS: &str = "5s";
const SECONDS_OF_LOAD: f64 = 5.0;

/// `naru dev` on a directory.
struct Dev {
    server: Server,
    address: String,
    /// From the start of the process until the API accepted requests.
    answered_after: f64,
}

impl Dev {
    fn start(naru: &Path, data: &Path) -> Result<Dev> {
        let began = Instant::now();
        let mut server = Server::start(
            Command::new(naru)
                .args(["--log", "error", "--data-dir"])
                .arg(data)
                .args(["dev", "--simulate", "--nodes", "1", "--api", "127.0.0.1:0", "--print-endpoints"])
                .stdout(Stdio::piped()),
        )?;
        let mut line = String::new();
        if let Some(stdout) = server.child().stdout.take() {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        let endpoints: Value = serde_json::from_str(&line)
            .map_err(|_| format!("naru dev did not start in {}", data.display()))?;
        let address = endpoints["api"].as_str().unwrap_or_default().to_owned();
        Ok(Dev { server, address, answered_after: milliseconds(began.elapsed()) })
    }

    fn target(&self, data: &Path) -> Result<Target> {
        let token = std::fs::read_to_string(data.join("api/pki/admin.token")).map_err(|it| it.to_string())?;
        Ok(Target {
            address: self.address.clone(),
            token: token.trim().to_owned(),
            pids: vec![self.server.pid()],
            scratch: data.into(),
        })
    }
}

/// An API under load.
struct Target {
    address: String,
    token: String,
    /// Of all processes that make it up.
    pids: Vec<u32>,
    scratch: PathBuf,
}

impl Target {
    /// What wrk says: requests a second, and the 99th percentile in ms.
    fn wrk(&self, connections: &str, script: &str, path: &str) -> Result<(f64, f64)> {
        let file = self.scratch.join("wrk.lua");
        let head = format!("wrk.headers['Authorization'] = 'Bearer {}'\n", self.token);
        std::fs::write(&file, head + script).map_err(|it| it.to_string())?;
        let url = format!("{}{path}", self.address);
        let script = file.display().to_string();
        let said = measure::output_within(
            60,
            "wrk",
            &["-t", "1", "-c", connections, "-d", SECONDS, "--latency", "-s", &script, &url],
        )?;
        let word = |start: &str| {
            let line = said.lines().find(|it| it.trim_start().starts_with(start))?;
            line.split_whitespace().nth(1).map(str::to_owned)
        };
        let rate = word("Requests/sec:").and_then(|it| it.parse().ok()).ok_or("wrk gave no rate")?;
        let p99 = word("99%").and_then(|it| in_ms(&it)).ok_or("wrk gave no percentiles")?;
        if said.contains("Non-2xx") {
            return Err(format!("some requests for {path} were refused: {said}"));
        }
        Ok((rate, p99))
    }

    fn memory(&self) -> Result<f64> {
        self.pids.iter().map(|it| Ok(measure::memory_mib(*it)?.0)).sum()
    }

    /// Events that reach a hundred watchers, a second, while objects are made as fast as it goes.
    fn fan_out(&self) -> Result<f64> {
        let dir = self.scratch.join("watchers");
        std::fs::create_dir_all(&dir).map_err(|it| it.to_string())?;
        let requests: String = (0..WATCHERS)
            .map(|it| {
                format!(
                    "url = \"{}{WATCHED}?watch=true&timeoutSeconds=120&n={it}\"\noutput = \"{}/{it}\"\n",
                    self.address,
                    dir.display()
                )
            })
            .collect();
        let config = self.scratch.join("watchers.conf");
        std::fs::write(&config, format!("header = \"Authorization: Bearer {}\"\n{requests}", self.token))
            .map_err(|it| it.to_string())?;
        let watchers = WATCHERS.to_string();
        let mut curl = Server::start(
            Command::new("curl")
                .args([
                    "-skN",
                    "--http1.1",
                    "--noproxy",
                    "*",
                    "-Z",
                    "--parallel-immediate",
                    "--parallel-max",
                    &watchers,
                    "-K",
                ])
                .arg(&config)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )?;
        let lines = || -> usize {
            let read = |it: usize| std::fs::read(dir.join(it.to_string())).unwrap_or_default();
            (0..WATCHERS).map(|it| read(it).iter().filter(|it| **it == b'\n').count()).sum()
        };
        // Each begins with what is there already; one object in advance shows that all have begun.
        self.wrk("1", APPLY, WATCHED)?;
        let mut before = lines();
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = lines();
            if now == before && now >= WATCHERS {
                break;
            }
            before = now;
        }
        let began = Instant::now();
        self.wrk("16", CREATE, WATCHED)?;
        let (mut last, mut seen) = (began.elapsed(), lines());
        loop {
            std::thread::sleep(Duration::from_millis(100));
            match lines() {
                it if it != seen => (last, seen) = (began.elapsed(), it),
                _ if began.elapsed() > last + Duration::from_secs(1) => break,
                _ => {}
            }
        }
        let _ = curl.child().kill();
        Ok((seen - before) as f64 / last.as_secs_f64())
    }

    fn measure(&self) -> Result<Figures> {
        let (creates, create_p99) = self.wrk("16", CREATE, MAPS)?;
        let mut made = creates * SECONDS_OF_LOAD;
        while made < OBJECTS as f64 {
            made += self.wrk("16", CREATE, MAPS)?.0 * SECONDS_OF_LOAD;
        }
        let (gets, get_p99) = self.wrk("1", "", "/api/v1/namespaces/default")?;
        let (pages, _) = self.wrk("4", "", &format!("{MAPS}?limit=1000"))?;
        let (applies, _) = self.wrk("16", APPLY, MAPS)?;
        let memory = self.memory()?;
        let told = self.fan_out()?;
        Ok(Figures { creates, create_p99, made, gets, get_p99, pages, applies, told, memory })
    }
}

/// Rates a second, times in ms, memory in MiB.
struct Figures {
    creates: f64,
    create_p99: f64,
    made: f64,
    gets: f64,
    get_p99: f64,
    pages: f64,
    applies: f64,
    told: f64,
    memory: f64,
}

/// `850.00us`, `1.20ms`, `2.00s`.
fn in_ms(text: &str) -> Option<f64> {
    let (number, factor) = match text {
        it if it.ends_with("us") => (&it[..it.len() - 2], 1e-3),
        it if it.ends_with("ms") => (&it[..it.len() - 2], 1.0),
        it => (it.strip_suffix('s')?, 1e3),
    };
    number.parse::<f64>().ok().map(|it| it * factor)
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CREATE: &str = "local n = 0
math.randomseed(os.time())
wrk.method = 'POST'
wrk.headers['Content-Type'] = 'application/json'
request = function()
  n = n + 1
  return wrk.format(nil, nil, nil, '{\"metadata\":{\"name\":\"m' .. n .. '-' .. math.random(1000000000) .. '\"},\"data\":{\"key\":\"value\"}}')
end
";

const WATCHED: &str = "/api/v1/namespaces/kube-public/configmaps";
/// Server-side apply to one of a hundred objects, each time with something new.
const APPLY: &str = "local n = 0
wrk.method = 'PATCH'
wrk.headers['Content-Type'] = 'application/apply-patch+yaml'
request = function()
  n = n + 1
  local name = 'a' .. math.random(100)
  return wrk.format(nil, wrk.path .. '/' .. name .. '?fieldManager=bench&force=true', nil, '{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"' .. name .. '\"},\"data\":{\"key\":\"' .. n .. '\"}}')
end
";

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    if measure::version("wrk", "wrk", "-v").is_none() {
        return Err(format!("wrk is {NOT_INSTALLED}"));
    }
    let dir = bench.scratch.path().join("cluster");
    let mut starts = Vec::new();
    for round in 0..STARTS {
        let data = dir.join(format!("fresh-{round}"));
        std::fs::create_dir_all(&data).map_err(|it| it.to_string())?;
        starts.push(Dev::start(&bench.naru, &data)?.answered_after);
    }
    let data = dir.join("full");
    std::fs::create_dir_all(&data).map_err(|it| it.to_string())?;
    let dev = Dev::start(&bench.naru, &data)?;
    let ours = dev.target(&data)?.measure()?;
    drop(dev);
    let again = Dev::start(&bench.naru, &data)?.answered_after;
    let (peer, missing) = match ApiServer::start(&dir.join("peer")) {
        Ok(Some(it)) => (Some((it.version.clone(), it.target.measure()?)), ""),
        Ok(None) => (None, "the peer is not there: scripts/kube-peer.sh builds kube-apiserver and etcd"),
        Err(error) => return Err(error),
    };
    let rate = |what: &str, note: &str, of: fn(&Figures) -> f64| {
        // As time for each, so that less is better on every line.
        let each = |it: &Figures| 1e6 / of(it);
        let theirs = peer.as_ref().map(|it| (it.0.clone(), each(&it.1)));
        Line {
            what: what.into(),
            unit: "us",
            ours: each(&ours),
            ratios: theirs.iter().map(|it| each(&ours) / it.1).collect(),
            peer: theirs,
            goal: Goal::RatioAtMost(TIME_RATIO_MAX),
            note: format!(
                "{:.0} a second{}{}",
                of(&ours),
                if note.is_empty() && missing.is_empty() { "" } else { "; " },
                if missing.is_empty() { note } else { missing }
            ),
        }
    };
    let memory = peer.as_ref().map(|it| (it.0.clone(), it.1.memory));
    Ok(vec![
        line("naru dev, start to an answering API", "ms", median(&starts), Goal::AtMost(START_MS_MAX), ""),
        line("GET of one object, p99, one client", "ms", ours.get_p99, Goal::AtMost(GET_MS_MAX), ""),
        rate("GET of one object, one client, time for each", "", |it| it.gets),
        rate("create, 16 clients, each fsynced, time for each", "", |it| it.creates),
        line("create, 16 clients, p99", "ms", ours.create_p99, Goal::None, ""),
        rate("list of 1,000 of more than 10,000 objects, 4 clients, time for each", "", |it| it.pages),
        rate("server-side apply, 16 clients on 100 objects, time for each", "", |it| it.applies),
        rate("an event told to one of 100 watchers, while 16 clients create", "", |it| it.told),
        line(
            "start again with more than 10,000 objects (kill -9 before)",
            "ms",
            again,
            Goal::AtMost(RESTART_MS_MAX),
            &format!("about {:.0} objects", ours.made),
        ),
        Line {
            what: "memory with them, RSS".into(),
            unit: "MiB",
            ours: ours.memory,
            ratios: memory.iter().map(|it| ours.memory / it.1).collect(),
            peer: memory,
            goal: Goal::RatioAtMost(MEMORY_RATIO_MAX),
            note:
                "after the load, not at rest; the number of objects follows from how fast each creates them"
                    .into(),
        },
    ])
}

fn line(what: &str, unit: &'static str, ours: f64, goal: Goal, note: &str) -> Line {
    Line { what: what.into(), unit, ours, peer: None, ratios: Vec::new(), goal, note: note.into() }
}

#[cfg(test)]
mod tests {
    use super::in_ms;

    #[test]
    fn durations_as_wrk_writes_them() {
        assert_eq!(in_ms("850.00us"), Some(0.85));
        assert_eq!(in_ms("1.20ms"), Some(1.2));
        assert_eq!(in_ms("2.00s"), Some(2000.0));
        assert_eq!(in_ms("soon"), None);
    }
}
