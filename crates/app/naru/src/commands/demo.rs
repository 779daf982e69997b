//! `naru demo`: the example through the whole loop under load, on real git, real containers and a real
//! kill -9; at the end the figures.

mod daemon;
mod repository;

use super::load::Load;
use crate::commands::{dora, trace};
use crate::error::{Context, Error, Result};
use clap::Args;
use daemon::Daemon;
use naru_client::Client;
use naru_objects::{NAMESPACE, Release, ReleasePhase, Run, RunPhase, kinds, labels};
use repository::Repository;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Args)]
pub struct DemoArgs {
    /// Also write the summary as JSON.
    #[arg(long, value_name = "FILE")]
    pub summary: Option<PathBuf>,
    /// Leave everything running to look at.
    #[arg(long)]
    pub keep: bool,
    /// Requests per second of the load.
    #[arg(long, default_value_t = 60)]
    pub rate: u32,
    /// Where the demo keeps everything. Without it: a new directory, removed at the end.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// What came of it; times in seconds.
#[derive(Debug, Serialize)]
pub struct Summary {
    pub releases: usize,
    pub promoted: usize,
    pub rolled_back: usize,
    pub requests: u64,
    pub failed_outside_canary: u64,
    pub failed_in_canary: u64,
    /// From `git push` to all traffic on the version, canary windows included.
    pub push_to_live_seconds: Vec<f64>,
    /// From the bad version's first traffic to all traffic back on the version before.
    pub rollback_seconds: f64,
    /// From the kill of a container to the full number of ready pods.
    pub heal_seconds: f64,
    pub containers_survived_restart: bool,
    /// How the run that was under way when naru was killed ended.
    pub run_during_restart: String,
    /// Requests that found nobody while naru was dead and were sent again by the client.
    pub requests_retried_during_restart: u64,
    /// From the start of the killed daemon's successor to its first answered request.
    pub restart_seconds: f64,
    pub idle_rss_mib: f64,
}

const HOST: &str = "shop.localhost";

/// The longest that one push may take on a slow machine: a build of the example from nothing.
const PUSH_WITHIN: Duration = Duration::from_secs(600);
const HEAL_WITHIN: Duration = Duration::from_secs(120);

pub async fn run(args: &DemoArgs) -> Result<ExitCode> {
    let temporary = match &args.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("naru-demo-").tempdir()?),
    };
    let dir = args.dir.clone().or(temporary.as_ref().map(|it| it.path().to_owned())).expect("one of both");
    std::fs::create_dir_all(&dir)?;
    let mut daemon = Daemon::start(&dir).await?;
    let result = walk(args, &dir, &mut daemon).await;
    if args.keep && result.is_ok() {
        let _ = temporary.map(tempfile::TempDir::keep);
        daemon.leave_running();
        let data_dir = dir.join("data");
        println!("\nEverything is left running:");
        println!("  open  {}/  (Host: {HOST})", daemon.gateway_url(HOST));
        println!("  naru --data-dir {} status", data_dir.display());
        println!("  KUBECONFIG={} kubectl get pods -A", daemon.endpoints.kubeconfig.display());
        println!(
            "  stop it: kill {} && naru --data-dir {} destroy",
            daemon.endpoints.pid,
            data_dir.display()
        );
    } else {
        daemon.stop_and_destroy().await?;
        if args.dir.is_some() {
            let _ = std::fs::remove_dir_all(dir.join("data"));
            let _ = std::fs::remove_dir_all(dir.join("shop"));
        }
    }
    let summary = result?;
    println!("\n{}", render(&summary));
    if let Some(file) = &args.summary {
        std::fs::write(file, serde_json::to_string_pretty(&summary)?)
            .context(|| format!("cannot write {}", file.display()))?;
    }
    let good = summary.failed_outside_canary == 0
        && summary.promoted == 2
        && summary.rolled_back == 1
        && summary.containers_survived_restart;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn walk(args: &DemoArgs, dir: &std::path::Path, daemon: &mut Daemon) -> Result<Summary> {
    let began = Instant::now();
    let title = |text: &str| println!("\n[{:>5.1} s] == {text}", began.elapsed().as_secs_f64());
    let client = daemon.client().await?;
    let shop = Repository::create(&dir.join("shop"), &daemon.git_url("shop")).await?;

    title("v1: git push, tests, image, live");
    let v1 = push_and_wait(&shop, &client, 1).await?;
    expect(&v1.release, ReleasePhase::Promoted)?;
    let answer = daemon.get(HOST, "/").await?;
    println!("http://{HOST} answers: {answer}");
    let mut load = Load::start(daemon.gateway_url("127.0.0.1"), HOST.into(), args.rate, 8);

    title("v2: canary 10 % -> 50 % -> 100 %, each step judged");
    shop.set_version("v2", 0).await?;
    let v2 = push_and_wait(&shop, &client, 2).await?;
    expect(&v2.release, ReleasePhase::Promoted)?;

    title("v3: a third of its answers is 500; it must be judged bad and rolled back");
    shop.set_version("v3", 3).await?;
    let v3 = push_and_wait(&shop, &client, 3).await?;
    expect(&v3.release, ReleasePhase::RolledBack)?;
    let rollback_seconds = between(&v3.release.status.live_at, &v3.release.status.finished_at);

    title("a container is killed");
    let heal_seconds = kill_a_container(&client).await?;
    println!("replaced after {heal_seconds:.1} s");

    title("naru itself is killed with -9 while a run is under way");
    let before = container_processes(&client).await?;
    shop.push_branch("try/restart").await?;
    let run = wait_for_step(&client, "refs/heads/try/restart").await?;
    load.set_daemon_is_away(true);
    daemon.kill().await?;
    println!("killed; {} container processes go on", before.len());
    let restart_seconds = daemon.start_again().await?;
    daemon.get(HOST, "/").await?;
    load.set_daemon_is_away(false);
    println!("answers again after {restart_seconds:.1} s");
    let client = daemon.client().await?;
    let after = container_processes(&client).await?;
    let survived = before.iter().all(|it| after.contains(it));
    let ended = wait_for_run(&client, &run).await?;
    println!("{run}: {:?} {}", ended.status.phase, ended.status.message);

    load.stop().await;
    for it in load.failure_samples() {
        println!("failed request: {it}");
    }
    let bad_workloads: Vec<String> = v3.release.spec.services.iter().map(|it| it.workload.clone()).collect();
    let counts = load.counts();
    let in_canary = |it: &str| bad_workloads.iter().any(|bad| bad == it);
    title("what one change went through");
    for line in trace::lines(&client, &v2.release.spec.change).await? {
        println!("{line}");
    }
    title("the delivery figures");
    print!("{}", dora::render(&dora::figures(&client, None, 30).await?));
    show_with_kubectl(daemon).await;

    // Let what the run and the load used go back before idle memory is measured.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let releases: Vec<Release> = client
        .list(&kinds::RELEASE, Some(NAMESPACE), "")
        .await?
        .into_iter()
        .filter_map(|it| serde_json::from_value(it).ok())
        .collect();
    Ok(Summary {
        releases: releases.len(),
        promoted: releases.iter().filter(|it| !it.status.promoted_at.is_empty()).count(),
        rolled_back: releases.iter().filter(|it| it.status.phase == ReleasePhase::RolledBack).count(),
        requests: counts.values().map(|it| it.good + it.failed).sum(),
        failed_outside_canary: counts.iter().filter(|(it, _)| !in_canary(it)).map(|(_, it)| it.failed).sum(),
        failed_in_canary: counts.iter().filter(|(it, _)| in_canary(it)).map(|(_, it)| it.failed).sum(),
        push_to_live_seconds: vec![v1.seconds, v2.seconds],
        rollback_seconds,
        heal_seconds,
        containers_survived_restart: survived,
        run_during_restart: format!("{:?}", ended.status.phase),
        requests_retried_during_restart: load.retried(),
        restart_seconds,
        idle_rss_mib: daemon.rss_mib()?,
    })
}

struct Pushed {
    release: Release,
    seconds: f64,
}

/// Pushes main, its output on our terminal, and waits until the release has come to an end.
async fn push_and_wait(shop: &Repository, client: &Client, number: u64) -> Result<Pushed> {
    let began = Instant::now();
    let pushed = async {
        shop.push("main").await?;
        let mut releases = client.cache(&kinds::RELEASE, Some(NAMESPACE), &format!("{}=shop", labels::APP));
        releases.synced().await;
        loop {
            for object in releases.list() {
                let release: Release = serde_json::from_value((*object).clone())?;
                let ended = release.status.phase == ReleasePhase::Promoted || release.status.phase.is_final();
                if release.spec.number == number && ended {
                    return Ok(Pushed { release, seconds: began.elapsed().as_secs_f64() });
                }
            }
            releases.changed().await;
        }
    };
    tokio::time::timeout(PUSH_WITHIN, pushed)
        .await
        .map_err(|_| Error::new(format!("release {number} did not end within {PUSH_WITHIN:?}")))?
}

fn expect(release: &Release, phase: ReleasePhase) -> Result<()> {
    if release.status.phase == phase {
        return Ok(());
    }
    let status = &release.status;
    Err(Error::new(format!(
        "{} should have ended as {phase:?} and is {:?}: {}",
        release.metadata.name, status.phase, status.message
    )))
}

fn between(from: &str, to: &str) -> f64 {
    let time = |it: &str| it.parse::<jiff::Timestamp>().ok();
    time(from).zip(time(to)).map_or(0.0, |(from, to)| to.duration_since(from).as_secs_f64())
}

async fn app_pods(client: &Client) -> Result<Vec<Value>> {
    let selector = format!("{}=shop,{}", labels::APP, labels::SERVICE);
    let pods = client.list(&kinds::POD, Some(NAMESPACE), &selector).await?;
    Ok(pods.into_iter().filter(|it| it["metadata"]["deletionTimestamp"].is_null()).collect())
}

fn ready_pods(pods: &[Value]) -> usize {
    pods.iter()
        .filter(|it| {
            let conditions = it["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|it| it["type"] == "Ready" && it["status"] == "True")
        })
        .count()
}

/// The processes of the app's containers: pid and start time, which together name a process for good.
async fn container_processes(client: &Client) -> Result<Vec<(u32, String)>> {
    let uids: Vec<String> = app_pods(client)
        .await?
        .iter()
        .filter_map(|it| it["metadata"]["uid"].as_str().map(str::to_owned))
        .collect();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|it| it.parse::<u32>().ok()) else { continue };
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if command.trim() == "shop" && uids.iter().any(|it| cgroup.contains(it.as_str())) {
            let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let after_name = stat.rsplit(')').next().unwrap_or_default();
            let start = after_name.split_whitespace().nth(19).unwrap_or_default().to_owned();
            found.push((pid, start));
        }
    }
    Ok(found)
}

/// Kills one of the app's containers and waits until all pods are ready again.
async fn kill_a_container(client: &Client) -> Result<f64> {
    let processes = container_processes(client).await?;
    let Some((pid, _)) = processes.first() else {
        return Err(Error::new("no container of the shop runs"));
    };
    let began = Instant::now();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), nix::sys::signal::Signal::SIGKILL)?;
    println!("killed process {pid}");
    let mut pods = client.cache(&kinds::POD, Some(NAMESPACE), "");
    pods.synced().await;
    let healed = async {
        loop {
            let now = container_processes(client).await?;
            let replaced = !now.iter().any(|it| it.0 == *pid) && now.len() >= processes.len();
            if replaced && ready_pods(&app_pods(client).await?) >= processes.len() {
                return Ok(began.elapsed().as_secs_f64());
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), pods.changed()).await;
        }
    };
    tokio::time::timeout(HEAL_WITHIN, healed)
        .await
        .map_err(|_| Error::new(format!("the killed container was not replaced within {HEAL_WITHIN:?}")))?
}

async fn find_run(client: &Client, done: impl Fn(&Run) -> bool) -> Result<Run> {
    let mut runs = client.cache(&kinds::RUN, Some(NAMESPACE), "");
    runs.synced().await;
    let found = async {
        loop {
            for object in runs.list() {
                let run: Run = serde_json::from_value((*object).clone())?;
                if done(&run) {
                    return Ok(run);
                }
            }
            runs.changed().await;
        }
    };
    tokio::time::timeout(PUSH_WITHIN, found)
        .await
        .map_err(|_| Error::new(format!("a run did not get there within {PUSH_WITHIN:?}")))?
}

/// The name of the ref's run, once one of its steps has started.
async fn wait_for_step(client: &Client, git_ref: &str) -> Result<String> {
    let started = |run: &Run| {
        let steps = run.status.jobs.iter().flat_map(|it| &it.steps);
        run.spec.git_ref == git_ref && steps.into_iter().any(|it| !it.started_at.is_empty())
    };
    Ok(find_run(client, started).await?.metadata.name)
}

async fn wait_for_run(client: &Client, name: &str) -> Result<Run> {
    find_run(client, |it| it.metadata.name == name && it.status.phase.is_final()).await.inspect(|it| {
        if it.status.phase == RunPhase::Failed {
            eprintln!("the run that was under way failed: {}", it.status.message);
        }
    })
}

async fn show_with_kubectl(daemon: &Daemon) {
    let output = tokio::process::Command::new("kubectl")
        .args(["get", "runs,images,releases,deployments,pods", "-A"])
        .env("KUBECONFIG", &daemon.endpoints.kubeconfig)
        .output()
        .await;
    match output {
        Ok(output) => {
            println!("\n$ kubectl get runs,images,releases,deployments,pods -A");
            print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
        Err(_) => println!(
            "\n(kubectl is not installed here; with it, `kubectl get runs,releases -A` shows the same)"
        ),
    }
}

fn render(summary: &Summary) -> String {
    let live: Vec<String> = summary.push_to_live_seconds.iter().map(|it| format!("{it:.1} s")).collect();
    let rows: BTreeMap<u8, (&str, String)> = BTreeMap::from([
        (
            1,
            (
                "releases",
                format!(
                    "{} ({} promoted, {} rolled back)",
                    summary.releases, summary.promoted, summary.rolled_back
                ),
            ),
        ),
        (2, ("requests", summary.requests.to_string())),
        (3, ("failed outside the canary", summary.failed_outside_canary.to_string())),
        (4, ("failed in the canary", summary.failed_in_canary.to_string())),
        (5, ("push to live", live.join(", "))),
        (6, ("rollback after", format!("{:.1} s", summary.rollback_seconds))),
        (7, ("killed container replaced after", format!("{:.1} s", summary.heal_seconds))),
        (
            8,
            (
                "containers survived kill -9 of naru",
                if summary.containers_survived_restart { "yes" } else { "NO" }.into(),
            ),
        ),
        (9, ("run under way at the kill ended as", summary.run_during_restart.clone())),
        (10, ("requests retried while naru was dead", summary.requests_retried_during_restart.to_string())),
        (11, ("naru answers again after", format!("{:.1} s", summary.restart_seconds))),
        (12, ("idle memory of naru", format!("{:.0} MiB", summary.idle_rss_mib))),
    ]);
    rows.values().map(|(name, value)| format!("{name:<40}{value}\n")).collect()
}
