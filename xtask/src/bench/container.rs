//! A container's whole life: made, `true` run in it, removed. One OCI bundle for all runtimes.
//!
//! Everything is timed in a mount namespace of its own, from which the v2 hierarchy of a hybrid cgroup
//! layout is taken away: crun refuses to work beside it. We give it up there, too, so that all do the same.

use super::measure::{self, median, min};
use super::{Bench, Goal, Line, Result};
use crate::root;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// The name under which this program times things inside that namespace.
pub const INNER: &str = "__container";

const ROUNDS: usize = 5;
const RUNS_PER_ROUND: usize = 30;
/// podman takes long enough that fewer say as much.
const PODMAN_RUNS_PER_ROUND: usize = 5;
const WARM_UP_RUNS: usize = 3;
const SECONDS_MAX: &str = "300";
const GOAL_CRUN: f64 = 1.0;
const GOAL_RUNC: f64 = 0.4;
const GOAL_PODMAN: f64 = 0.03;

/// Many at once: this many containers, so many of them at a time.
const MANY: usize = 200;
const AT_A_TIME: usize = 10;
const MANY_ROUNDS: usize = 3;
const GOAL_MANY_RUNC: f64 = 1.0 / 5.0;

const PEERS: &[(&str, &str)] = &[("crun", "crun"), ("runc", "runc"), ("podman", "podman")];

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let dir = bench.scratch.path().join("container");
    make_bundle(&dir, &["/bin/true"])?;
    let versions: Vec<(&str, String)> = PEERS
        .iter()
        .filter_map(|(name, program)| Some((*name, measure::version(name, program, "--version")?)))
        .collect();
    let installed: Vec<&str> = versions.iter().map(|it| it.0).collect();
    let exe = std::env::current_exe().map_err(|it| it.to_string())?;
    // The mounts go with the namespace, the processes with `timeout`'s group.
    let enter =
        "mount --make-rprivate / && { umount /sys/fs/cgroup/unified 2>/dev/null || true; } && exec \"$@\"";
    let before = podman_remains();
    let text = measure::run(
        Command::new("timeout")
            .args(["-k", "5", SECONDS_MAX, "unshare", "-m", "sh", "-c", enter, "sh"])
            .arg(exe)
            .args(["bench", INNER])
            .arg(&dir)
            .arg(&bench.naru)
            .args(&installed),
    )?;
    for path in podman_remains().iter().filter(|it| !before.contains(it)) {
        let _ = if path.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
    }
    let all: Value =
        serde_json::from_str(&text).map_err(|it| format!("the inner process said {text}: {it}"))?;
    let series = |name: &str, what: &str| -> Vec<Vec<f64>> {
        serde_json::from_value(all[name][what].clone()).unwrap_or_default()
    };
    let ours = series("naru", "milliseconds");
    let mut lines = Vec::new();
    for (name, _) in PEERS {
        let goal = || match *name {
            "crun" => Goal::RatioAtMost(GOAL_CRUN),
            "runc" => Goal::RatioAtMost(GOAL_RUNC),
            "podman" => Goal::RatioAtMost(GOAL_PODMAN),
            _ => Goal::None,
        };
        let version = versions.iter().find(|it| it.0 == *name).map(|it| it.1.clone());
        let theirs = series(name, "milliseconds");
        let pooled = |rounds: &[Vec<f64>]| rounds.concat();
        for (what, of) in [("p50", median as fn(&[f64]) -> f64), ("min", min as fn(&[f64]) -> f64)] {
            let each = |rounds: &[Vec<f64>]| rounds.iter().map(|it| of(it)).collect::<Vec<_>>();
            lines.push(Line {
                what: format!("container start to end, {what}"),
                unit: "ms",
                ours: of(&pooled(&ours)),
                peer: version.clone().map(|it| (it, of(&pooled(&theirs)))),
                ratios: measure::ratios(&each(&ours), &each(&theirs)),
                goal: goal(),
                note: if version.is_none() {
                    format!("{name} is {}", measure::NOT_INSTALLED)
                } else {
                    String::new()
                },
            });
        }
        if *name != "podman" {
            let (ours, theirs) = (series("naru", "many").concat(), series(name, "many").concat());
            lines.push(Line {
                what: format!("{MANY} containers, {AT_A_TIME} at a time"),
                unit: "s",
                ours: median(&ours),
                peer: version.clone().map(|it| (it, median(&theirs))),
                ratios: measure::ratios(&ours, &theirs),
                goal: if *name == "runc" { Goal::RatioAtMost(GOAL_MANY_RUNC) } else { Goal::None },
                note: String::new(),
            });
        }
        // podman's monitor is nobody's child, so its CPU time cannot be counted like the others'.
        if *name != "podman" && version.is_some() {
            let (ours, theirs) = (series("naru", "cpu").concat(), series(name, "cpu").concat());
            lines.push(Line {
                what: "container start to end, CPU".into(),
                unit: "ms",
                ours: median(&ours),
                peer: version.map(|it| (it, median(&theirs))),
                ratios: measure::ratios(&ours, &theirs),
                goal: Goal::None,
                note: String::new(),
            });
        }
    }
    Ok(lines)
}

/// What podman makes for good where it runs for the first time: a file of locks, and a cgroup in every
/// hierarchy (with what is below it, innermost first).
fn podman_remains() -> Vec<PathBuf> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let mut groups: Vec<PathBuf> = vec!["/sys/fs/cgroup/libpod_parent".into()];
    groups.extend(hierarchies.map(|it| it.path().join("libpod_parent")));
    let below = |it: &PathBuf| std::fs::read_dir(it).into_iter().flatten().flatten().map(|it| it.path());
    let mut found: Vec<PathBuf> = groups.iter().flat_map(below).filter(|it| it.is_dir()).collect();
    found.extend(groups);
    found.push("/dev/shm/libpod_lock".into());
    found.retain(|it| it.exists());
    found
}

/// A bundle as `runc spec` writes it, with a static busybox.
pub fn make_bundle(dir: &Path, arguments: &[&str]) -> Result<()> {
    let failed = |it: std::io::Error| format!("cannot make the bundle in {}: {it}", dir.display());
    let bin = dir.join("rootfs/bin");
    std::fs::create_dir_all(&bin).map_err(failed)?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|it| Path::new(it).exists());
    std::fs::copy(busybox.ok_or("busybox-static is not installed")?, bin.join("busybox")).map_err(failed)?;
    std::os::unix::fs::symlink("busybox", bin.join("true")).map_err(failed)?;
    let config = match std::fs::read_to_string(dir.join("config.json")) {
        Ok(text) => text,
        Err(_) => {
            measure::run(Command::new("runc").args(["spec", "--bundle"]).arg(dir))
                .map_err(|it| format!("runc writes the bundle's configuration, but {it}"))?;
            std::fs::read_to_string(dir.join("config.json")).map_err(failed)?
        }
    };
    let mut config: Value = serde_json::from_str(&config).map_err(|it| it.to_string())?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(arguments);
    std::fs::write(dir.join("config.json"), config.to_string()).map_err(failed)
}

/// `__container <bundle> <naru> <peer>...`: prints per program, per round, the milliseconds of every run
/// and the CPU milliseconds per run, as JSON.
pub fn run_inner(args: &[String]) -> ExitCode {
    let [dir, naru, peers @ ..] = args else { return ExitCode::from(2) };
    match time_all(Path::new(dir), naru, peers) {
        Ok(it) => {
            println!("{it}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

struct Program {
    name: String,
    command: Vec<String>,
    runs: usize,
    milliseconds: Vec<Vec<f64>>,
    cpu: Vec<Vec<f64>>,
    many: Vec<Vec<f64>>,
}

fn time_all(dir: &Path, naru: &str, peers: &[String]) -> Result<Value> {
    let shown = dir.display().to_string();
    let mut programs = vec![program("naru", &[naru, "__run", &shown, "ID"], RUNS_PER_ROUND)];
    for peer in peers {
        programs.push(match peer.as_str() {
            "podman" => podman(dir)?,
            // Both know the same words.
            oci => {
                let state = format!("{shown}/{oci}");
                program(oci, &[oci, "--root", &state, "run", "--bundle", &shown, "ID"], RUNS_PER_ROUND)
            }
        });
    }
    let number = AtomicUsize::new(0);
    for it in &programs {
        for _ in 0..WARM_UP_RUNS {
            time_one(it, &number)?;
        }
    }
    let count = programs.len();
    for round in 0..ROUNDS {
        for place in 0..count {
            let it = &mut programs[(place + round) % count];
            let cpu = measure::cpu_seconds_of_children();
            let times: Result<Vec<f64>> = (0..it.runs).map(|_| time_one(it, &number)).collect();
            let cpu = (measure::cpu_seconds_of_children() - cpu) * 1e3 / it.runs as f64;
            it.milliseconds.push(times?);
            it.cpu.push(vec![cpu]);
        }
    }
    for round in 0..MANY_ROUNDS {
        for place in 0..count {
            let it = &mut programs[(place + round) % count];
            if it.name != "podman" {
                let took = time_many(it, &number)?;
                it.many.push(vec![took]);
            }
        }
    }
    let all = programs
        .into_iter()
        .map(|it| (it.name, json!({"milliseconds": it.milliseconds, "cpu": it.cpu, "many": it.many})));
    Ok(Value::Object(all.collect()))
}

/// Seconds for many containers from several threads.
fn time_many(program: &Program, number: &AtomicUsize) -> Result<f64> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let one = || (0..MANY / AT_A_TIME).try_for_each(|_| time_one(program, number).map(drop));
        let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(one)).collect();
        threads.into_iter().try_for_each(|it| it.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    Ok(began.elapsed().as_secs_f64())
}

fn program(name: &str, command: &[&str], runs: usize) -> Program {
    let command = command.iter().map(|it| (*it).to_owned()).collect();
    Program { name: name.into(), command, runs, milliseconds: Vec::new(), cpu: Vec::new(), many: Vec::new() }
}

/// podman with a store of its own and an image made of the bundle's files.
fn podman(dir: &Path) -> Result<Program> {
    let dir = dir.display();
    let podman = format!(
        "podman --root {dir}/podman --runroot {dir}/podman-run --storage-driver overlay --cgroup-manager cgroupfs"
    );
    measure::output("tar", &["-C", &format!("{dir}/rootfs"), "-cf", &format!("{dir}/image.tar"), "."])?;
    let import = format!("{podman} import -q {dir}/image.tar naru-bench:1 2>&1");
    measure::output("sh", &["-c", &import])?;
    // Without these podman asks for more than a plain root has.
    let run = format!(
        "{podman} run --rm --network=none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 naru-bench:1 /bin/true"
    );
    Ok(program("podman", &run.split(' ').collect::<Vec<_>>(), PODMAN_RUNS_PER_ROUND))
}

fn time_one(program: &Program, number: &AtomicUsize) -> Result<f64> {
    let number = number.fetch_add(1, Ordering::Relaxed);
    let id = format!("naru-bench-{}-{number}", std::process::id());
    let mut command = Command::new(&program.command[0]);
    command.args(program.command[1..].iter().map(|it| if it == "ID" { &id } else { it }));
    command.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().map_err(|it| format!("{}: {it}", program.name))?;
    let status = child.wait().map_err(|it| it.to_string())?;
    let took = measure::milliseconds(began.elapsed());
    if status.success() {
        return Ok(took);
    }
    let mut error = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = std::io::Read::read_to_string(&mut stderr, &mut error);
    }
    Err(format!("{} ended with {status}: {}", program.name, error.trim()))
}
