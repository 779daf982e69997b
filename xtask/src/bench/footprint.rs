//! What it takes to have Naru: bytes on disk, memory at rest.

use super::{Bench, Goal, Line, Result, measure};
use std::time::Duration;

const BINARY_MB_MAX: f64 = 60.0;
const IDLE_MIB_MAX: f64 = 60.0;
/// For each container with the process that keeps it.
const KEEPER_MIB_MAX: f64 = 1.0;
const IDLE_FOR: Duration = Duration::from_secs(10);

pub fn size(bench: &mut Bench) -> Result<Vec<Line>> {
    let bytes = std::fs::metadata(&bench.naru).map_err(|it| it.to_string())?.len();
    let mut line = plain("the binary, everything in it", "MB", bytes as f64 / 1e6);
    line.goal = Goal::AtMost(BINARY_MB_MAX);
    Ok(vec![line])
}

/// The daemon with the example deployed, after it was pushed to at least twice; then its shims.
pub fn memory(bench: &mut Bench) -> Result<Vec<Line>> {
    let shop = bench.shop()?;
    std::thread::sleep(IDLE_FOR);
    let cpu = measure::cpu_seconds(shop.daemon.pid())?;
    std::thread::sleep(IDLE_FOR);
    let cpu = (measure::cpu_seconds(shop.daemon.pid())? - cpu) / IDLE_FOR.as_secs_f64() * 100.0;
    let (rss, pss) = measure::memory_mib(shop.daemon.pid())?;
    let data = shop.daemon.data_dir().display().to_string();
    let shims: Result<Vec<(f64, f64)>> =
        measure::processes_with(&["__shim", &data]).into_iter().map(measure::memory_mib).collect();
    let shims = shims?;
    let mut resident = plain("the daemon at rest, RSS", "MiB", rss);
    resident.goal = Goal::AtMost(IDLE_MIB_MAX);
    let mut held = plain("the shims of the pods, PSS", "MiB", shims.iter().map(|it| it.1).sum());
    held.note = format!(
        "{} pods; RSS {:.1} MiB, most of it the program that they share with the daemon",
        shims.len(),
        shims.iter().map(|it| it.0).sum::<f64>()
    );
    let each = shims.iter().map(|it| it.1).sum::<f64>() / shims.len().max(1) as f64;
    let mut keeper = plain("what keeps an idle container, PSS", "MiB", each);
    keeper.goal = Goal::AtMost(KEEPER_MIB_MAX);
    // The peer is one of several figures here, and its absence does not lose the others.
    match conmon(bench) {
        Ok(Some((version, pss))) => {
            keeper.peer = Some((version, pss));
            keeper.ratios = vec![each / pss];
        }
        Ok(None) => keeper.note = format!("conmon is {}", measure::NOT_INSTALLED),
        Err(error) => keeper.note = format!("not compared: {error}"),
    }
    Ok(vec![
        resident,
        keeper,
        plain("the daemon at rest, PSS", "MiB", pss),
        held,
        plain("the daemon at rest, of a core", "%", cpu),
    ])
}

/// PSS of podman's monitor for one container of crun's that sleeps. crun itself is gone by then.
fn conmon(bench: &Bench) -> Result<Option<(String, f64)>> {
    let Some(version) = measure::version("conmon", "conmon", "--version") else { return Ok(None) };
    let dir = bench.scratch.path().join("conmon");
    super::container::make_bundle(&dir, &["/bin/busybox", "sleep", "1000"])?;
    let (shown, id) = (dir.display(), format!("naru-bench-{}", std::process::id()));
    // crun refuses to work beside the v2 half of a hybrid layout. The monitor is asked for its memory while it is
    // there, and ends with its container.
    let script = format!(
        "mount --make-rprivate / && {{ umount /sys/fs/cgroup/unified 2>/dev/null || true; }}
         mkdir -p {shown}/sockets
         conmon --socket-dir-path {shown}/sockets --cid {id} --cuuid {id} --runtime /usr/bin/crun --bundle {shown} --persist-dir {shown} --exit-dir {shown} \
            --container-pidfile {shown}/pid --conmon-pidfile {shown}/conmon.pid --log-path k8s-file:{shown}/log \
            --runtime-arg --root --runtime-arg {shown}/state >/dev/null
         for try in $(seq 50); do [ -s {shown}/pid ] && break; sleep 0.1; done
         crun --root {shown}/state start {id} && sleep 1
         grep '^Pss:' /proc/$(cat {shown}/conmon.pid)/smaps_rollup
         crun --root {shown}/state kill {id} KILL; sleep 0.5; crun --root {shown}/state delete --force {id} || true"
    );
    let text = measure::output_within(60, "unshare", &["-m", "sh", "-c", &script])?;
    let kib = text.split_whitespace().nth(1).and_then(|it| it.parse::<f64>().ok());
    let kib = kib.ok_or_else(|| format!("conmon's memory cannot be read: {text}"))?;
    Ok(Some((version, kib / 1024.0)))
}

fn plain(what: &str, unit: &'static str, ours: f64) -> Line {
    Line {
        what: what.into(),
        unit,
        ours,
        peer: None,
        ratios: Vec::new(),
        goal: Goal::None,
        note: String::new(),
    }
}
