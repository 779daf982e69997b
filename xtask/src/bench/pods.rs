//! Pods on the node: from being made to Running as an open watch sees it, many Deployments at once, and what it
//! costs to be looked at by a dozen informers while nothing happens.

use super::daemon::Daemon;
use super::measure::{self, Server, sorted};
use super::{Bench, Goal, Line, Result};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// So many at a time: a node takes no more than 110.
const BATCH: usize = 100;
const BATCHES: usize = 5;
/// How fast they are asked for. Faster, and waiting for the processors is what is measured.
const RATE: &str = "20/s";
const RUNNING_MS_MAX: f64 = 50.0;
const DEPLOYMENTS: usize = 30;
const AVAILABLE_S_MAX: f64 = 3.0;
const INFORMERS: usize = 12;
const OBJECTS: usize = 1000;
const IDLE_MIB_MAX: f64 = 80.0;
const IDLE_CPU_MAX: f64 = 0.5;
const IDLE_FOR: Duration = Duration::from_secs(20);

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let dir = bench.scratch.path().join("pods");
    let daemon = Daemon::start(&bench.naru, &dir)?;
    make_image(&bench.naru, &daemon, &dir)?;
    let running = until_running(&daemon, &dir)?;
    let available = until_available(&daemon)?;
    let (memory, cpu) = at_rest(&daemon)?;
    let p = |part: f64| running[((running.len() - 1) as f64 * part).round() as usize];
    let line = |what: &str, unit, ours, goal, note: String| Line {
        what: what.into(),
        unit,
        ours,
        peer: None,
        ratios: Vec::new(),
        goal,
        note,
    };
    let note = format!("p50 {:.1} ms, largest {:.1} ms of {}", p(0.5), p(1.0), running.len());
    Ok(vec![
        line(
            "a pod from made to Running, as a watch sees it, p99",
            "ms",
            p(0.99),
            Goal::AtMost(RUNNING_MS_MAX),
            note,
        ),
        line(
            "30 Deployments with readiness probes at once, all Available",
            "s",
            available,
            Goal::AtMost(AVAILABLE_S_MAX),
            String::new(),
        ),
        line(
            "10 pods, 12 informers, 1,000 objects at rest: all processes, PSS",
            "MiB",
            memory,
            Goal::AtMost(IDLE_MIB_MAX),
            String::new(),
        ),
        line("the same, of a core", "%", cpu, Goal::AtMost(IDLE_CPU_MAX), String::new()),
    ])
}

fn make_image(naru: &std::path::Path, daemon: &Daemon, dir: &std::path::Path) -> Result<()> {
    let context = dir.join("context");
    std::fs::create_dir_all(&context).map_err(|it| it.to_string())?;
    std::fs::copy("/bin/busybox", context.join("busybox")).map_err(|it| format!("/bin/busybox: {it}"))?;
    let dockerfile =
        "FROM scratch\nCOPY busybox /bin/busybox\nCMD [\"/bin/busybox\", \"sleep\", \"1000000\"]\n";
    std::fs::write(context.join("Dockerfile"), dockerfile).map_err(|it| it.to_string())?;
    measure::run(
        Command::new(naru)
            .arg("--data-dir")
            .arg(daemon.data_dir())
            .args(["build", "-q", "-t", "naru.local/bench:1"])
            .arg(&context),
    )
    .map(drop)
}

fn container(probe: Value) -> Value {
    let mut container = json!({"name": "c", "image": "naru.local/bench:1"});
    if !probe.is_null() {
        container["readinessProbe"] = probe;
    }
    json!({"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "containers": [container]})
}

/// A curl that is known as the administrator.
fn curl(daemon: &Daemon) -> Result<Command> {
    let token = std::fs::read_to_string(daemon.data_dir().join("api/pki/admin.token"))
        .map_err(|it| it.to_string())?;
    let mut command = Command::new("curl");
    command.args(["-skN", "--noproxy", "*", "-H", &format!("Authorization: Bearer {}", token.trim())]);
    Ok(command)
}

/// Milliseconds of each pod, sorted.
fn until_running(daemon: &Daemon, dir: &std::path::Path) -> Result<Vec<f64>> {
    let path = format!("{}/api/v1/namespaces/default/pods", daemon.api());
    let mut watch = Server::start(curl(daemon)?.arg(format!("{path}?watch=true")).stdout(Stdio::piped()))?;
    let stdout = watch.child().stdout.take().ok_or("a watch without output")?;
    let (tell, seen) = mpsc::channel();
    // Stamped where it is read, so that nothing that we do in between counts.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(|it| it.ok()) {
            if tell.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
    let mut all = Vec::new();
    for batch in 0..BATCHES {
        let mut requests = format!(
            "header = \"content-type: application/json\"\noutput = \"/dev/null\"\nrate = \"{RATE}\"\n"
        );
        for number in 0..BATCH {
            let pod =
                json!({"metadata": {"name": format!("p{batch}-{number}")}, "spec": container(Value::Null)});
            let file = dir.join(format!("pod-{number}.json"));
            std::fs::write(&file, pod.to_string()).map_err(|it| it.to_string())?;
            if number > 0 {
                requests
                    .push_str("next\nheader = \"content-type: application/json\"\noutput = \"/dev/null\"\n");
                requests.push_str(&authorization(daemon)?);
            }
            requests.push_str(&format!("url = \"{path}\"\ndata = \"@{}\"\n", file.display()));
        }
        let config = dir.join("pods.conf");
        std::fs::write(&config, requests).map_err(|it| it.to_string())?;
        let mut asking = Server::start(curl(daemon)?.arg("-K").arg(&config))?;
        let (mut made, mut count): (HashMap<String, Instant>, usize) = (HashMap::new(), 0);
        while count < BATCH {
            let (at, line) = seen
                .recv_timeout(PATIENCE)
                .map_err(|_| format!("{count} of {BATCH} pods were Running in time"))?;
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if event["type"] == "ADDED" {
                made.insert(name, at);
            } else if event["object"]["status"]["phase"] == "Running"
                && let Some(since) = made.remove(&name)
            {
                all.push(measure::milliseconds(at - since));
                count += 1;
            }
        }
        asking.child().wait().map_err(|it| it.to_string())?;
        daemon.kubectl_run(&["delete", "pods", "--all", "--grace-period=0", "--force"])?;
        let began = Instant::now();
        while !daemon.list("pods")?.is_empty() {
            if began.elapsed() > PATIENCE {
                return Err("pods do not go".into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    Ok(sorted(&all))
}

fn authorization(daemon: &Daemon) -> Result<String> {
    let token = std::fs::read_to_string(daemon.data_dir().join("api/pki/admin.token"))
        .map_err(|it| it.to_string())?;
    Ok(format!("insecure\nsilent\nheader = \"Authorization: Bearer {}\"\n", token.trim()))
}

/// Seconds.
fn until_available(daemon: &Daemon) -> Result<f64> {
    let probe = json!({"exec": {"command": ["/bin/busybox", "true"]}, "periodSeconds": 1});
    let items: Vec<Value> = (0..DEPLOYMENTS)
        .map(|it| {
            let labels = json!({"app": format!("d{it}")});
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": format!("d{it}")}, "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": container(probe.clone())}}})
        })
        .collect();
    let began = Instant::now();
    daemon.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}))?;
    daemon.kubectl_run(&["wait", "--for=condition=Available", "deployment", "--all", "--timeout=120s"])?;
    let took = began.elapsed().as_secs_f64();
    daemon.kubectl_run(&["delete", "deployment", "--all", "--cascade=foreground", "--wait"])?;
    Ok(took)
}

/// PSS of all processes in MiB, and the share of a core in per cent.
fn at_rest(daemon: &Daemon) -> Result<(f64, f64)> {
    let pods = (0..10).map(|it| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("rest-{it}")}, "spec": container(Value::Null)}));
    let maps = (0..OBJECTS).map(|it| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{it}")}, "data": {"key": "value"}}));
    daemon
        .apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods.chain(maps).collect::<Vec<_>>()}))?;
    daemon.kubectl_run(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"])?;
    let kinds = ["pods", "configmaps", "services"];
    let mut informers = Vec::new();
    for number in 0..INFORMERS {
        let url = format!(
            "{}/api/v1/{}?watch=true&allowWatchBookmarks=true",
            daemon.api(),
            kinds[number % kinds.len()]
        );
        informers.push(Server::start(curl(daemon)?.arg(url).stdout(Stdio::null()))?);
    }
    std::thread::sleep(IDLE_FOR / 2);
    let data = daemon.data_dir().display().to_string();
    let pids: Vec<u32> =
        measure::processes_with(&["__shim", &data]).into_iter().chain([daemon.pid()]).collect();
    let cpu = || -> Result<f64> { pids.iter().map(|it| measure::cpu_seconds(*it)).sum() };
    let before = cpu()?;
    std::thread::sleep(IDLE_FOR);
    let used = (cpu()? - before) / IDLE_FOR.as_secs_f64() * 100.0;
    let memory: Result<f64> = pids.iter().map(|it| Ok(measure::memory_mib(*it)?.1)).sum();
    Ok((memory?, used))
}
