//! The Kubernetes API alone, on simulated nodes: how soon it answers, how fast it reads and writes, and how soon
//! it is back with ten thousand objects. The peer would be kube-apiserver with etcd; it is not built here yet.

use super::measure::{self, NOT_INSTALLED, Server, median, milliseconds};
use super::{Bench, Goal, Line, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const STARTS: usize = 5;
const START_MS_MAX: f64 = 100.0;
const GET_MS_MAX: f64 = 2.0;
const RESTART_MS_MAX: f64 = 2000.0;
const OBJECTS: usize = 10_000;
const SECONDS: &str = "5s";
const MISSING: &str = "kube-apiserver with etcd is not measured: this run has no column for it";

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
}

/// What wrk says: requests a second, and the 99th percentile in ms.
fn wrk(dev: &Dev, data: &Path, connections: &str, script: &str, path: &str) -> Result<(f64, f64)> {
    let token = std::fs::read_to_string(data.join("api/pki/admin.token")).map_err(|it| it.to_string())?;
    let file = data.join("wrk.lua");
    let head = format!("wrk.headers['Authorization'] = 'Bearer {}'\n", token.trim());
    std::fs::write(&file, head + script).map_err(|it| it.to_string())?;
    let url = format!("{}{path}", dev.address);
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
wrk.method = 'POST'
wrk.headers['Content-Type'] = 'application/json'
request = function()
  n = n + 1
  return wrk.format(nil, nil, nil, '{\"metadata\":{\"name\":\"m' .. n .. '-' .. math.random(1000000000) .. '\"},\"data\":{\"key\":\"value\"}}')
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
    let (creates, create_p99) = wrk(&dev, &data, "16", CREATE, MAPS)?;
    let mut made = creates * 5.0;
    while made < OBJECTS as f64 {
        made += wrk(&dev, &data, "16", CREATE, MAPS)?.0 * 5.0;
    }
    let (gets, get_p99) = wrk(&dev, &data, "1", "", "/api/v1/namespaces/default")?;
    let (pages, _) = wrk(&dev, &data, "4", "", &format!("{MAPS}?limit=1000"))?;
    let (rss, _) = measure::memory_mib(dev.server.pid())?;
    drop(dev);
    let again = Dev::start(&bench.naru, &data)?.answered_after;
    Ok(vec![
        line("naru dev, start to an answering API", "ms", median(&starts), Goal::AtMost(START_MS_MAX), ""),
        line("GET of one object, p99, one client", "ms", get_p99, Goal::AtMost(GET_MS_MAX), ""),
        line("GET of one object, one client", "1/s", gets, Goal::None, MISSING),
        line("create, 16 clients, each fsynced", "1/s", creates, Goal::None, MISSING),
        line("create, 16 clients, p99", "ms", create_p99, Goal::None, ""),
        line("list of 1,000 objects, 4 clients", "1/s", pages, Goal::None, MISSING),
        line(
            "start again with more than 10,000 objects (kill -9 before)",
            "ms",
            again,
            Goal::AtMost(RESTART_MS_MAX),
            &format!("about {made:.0} objects"),
        ),
        line("memory with them, RSS", "MiB", rss, Goal::None, "after the load, not at rest"),
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
