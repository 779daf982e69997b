//! What it takes to have Naru: bytes on disk, memory at rest.

use super::{Bench, Goal, Line, Result, measure};
use std::time::Duration;

const BINARY_MB_MAX: f64 = 60.0;
const IDLE_MIB_MAX: f64 = 60.0;
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
    Ok(vec![
        resident,
        plain("the daemon at rest, PSS", "MiB", pss),
        held,
        plain("the daemon at rest, of a core", "%", cpu),
    ])
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
