//! `cargo xtask bench [NAME...]`: what Naru costs, each figure beside its peer's, measured in the same run.
//!
//! Ours and the peer's turns alternate, and the ratio of each round is kept: on a shared machine ratios hold
//! where times do not. A goal that is missed is printed as MISSED, and a peer that is not installed as not
//! measured; neither is ever left out. The figures also go to `target/bench.json`. What is measured how, and
//! what it does not say, is in `docs/benchmarks.md`.

mod build;
mod cluster;
mod container;
mod daemon;
mod export;
mod expressions;
mod footprint;
mod gateway;
mod job;
mod measure;
mod neighbour;
mod pods;
mod push_to_live;
mod rebuild;
mod registry;
mod workflow;

use crate::root;
use daemon::Shop;
use measure::{Scratch, median};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub type Result<T> = std::result::Result<T, String>;

/// In the order in which they run: what disturbs the machine least comes first.
const BENCHES: &[(&str, fn(&mut Bench) -> Result<Vec<Line>>)] = &[
    ("size", footprint::size),
    ("expressions", expressions::run),
    ("workflow", workflow::run),
    ("job", job::run),
    ("container", container::run),
    ("gateway", gateway::run),
    ("cluster", cluster::run),
    ("pods", pods::run),
    ("build", build::run),
    ("rebuild", rebuild::run),
    ("export", export::run),
    ("registry", registry::run),
    ("neighbour", neighbour::run),
    ("loop", push_to_live::run),
    ("memory", footprint::memory),
];

/// What the benchmarks have in common.
pub struct Bench {
    naru: PathBuf,
    /// Dropped before `scratch`, in which it lives.
    shop: Option<Shop>,
    scratch: Scratch,
}

impl Bench {
    /// The daemon with the example deployed; started by whoever needs it first.
    fn shop(&mut self) -> Result<&mut Shop> {
        if self.shop.is_none() {
            self.shop = Some(Shop::start(&self.naru, self.scratch.path())?);
        }
        self.shop.as_mut().ok_or_else(|| "it was started above".into())
    }
}

pub enum Goal {
    /// Ours divided by the peer's.
    RatioAtMost(f64),
    AtMost(f64),
    /// Shown to be watched; nothing was promised.
    None,
}

/// One row of the table.
pub struct Line {
    what: String,
    unit: &'static str,
    ours: f64,
    /// Name with version, and its figure.
    peer: Option<(String, f64)>,
    /// Ours divided by the peer's, of every round.
    ratios: Vec<f64>,
    goal: Goal,
    /// Said below the table.
    note: String,
}

impl Line {
    /// None where there is nothing to compare with.
    fn is_met(&self) -> Option<bool> {
        match self.goal {
            Goal::RatioAtMost(it) => (!self.ratios.is_empty()).then(|| median(&self.ratios) <= it),
            Goal::AtMost(it) => Some(self.ours <= it),
            Goal::None => None,
        }
    }

    fn verdict(&self) -> &'static str {
        match (self.is_met(), &self.goal) {
            (Some(true), _) => "met",
            (Some(false), _) => "MISSED",
            (None, Goal::None) => "",
            (None, _) => "not measured",
        }
    }

    fn cells(&self) -> [String; 7] {
        let ratio = match self.ratios.as_slice() {
            [] => String::new(),
            all => format!("{:.2} ({:.2}..{:.2})", median(all), measure::min(all), measure::max(all)),
        };
        let goal = match self.goal {
            Goal::RatioAtMost(it) if it < 1.0 => format!("<= {it} ({:.0}x less)", 1.0 / it),
            Goal::RatioAtMost(it) => format!("<= {it}"),
            Goal::AtMost(it) => format!("<= {it} {}", self.unit),
            Goal::None => String::new(),
        };
        let (peer, peer_value) = match &self.peer {
            Some((name, value)) => (name.clone(), format!("{} {}", short(*value), self.unit)),
            None => Default::default(),
        };
        let ours = format!("{} {}", short(self.ours), self.unit);
        [self.what.clone(), ours, peer, peer_value, ratio, goal, self.verdict().into()]
    }

    fn json(&self, bench: &str) -> Value {
        let goal = match self.goal {
            Goal::RatioAtMost(it) => json!({"ratioAtMost": it}),
            Goal::AtMost(it) => json!({"atMost": it}),
            Goal::None => Value::Null,
        };
        json!({
            "bench": bench, "what": self.what, "unit": self.unit, "ours": self.ours,
            "peer": self.peer.as_ref().map(|it| &it.0), "peerValue": self.peer.as_ref().map(|it| it.1),
            "ratios": self.ratios, "goal": goal, "met": self.is_met(), "note": self.note,
        })
    }
}

pub fn run(args: &[String]) -> ExitCode {
    if args.first().map(String::as_str) == Some(container::INNER) {
        return container::run_inner(&args[1..]);
    }
    if let Some(unknown) = args.iter().find(|it| !BENCHES.iter().any(|(name, _)| name == it)) {
        let names: Vec<&str> = BENCHES.iter().map(|it| it.0).collect();
        eprintln!("error: there is no benchmark `{unknown}`; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    match measure_all(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True when every benchmark could be run, whatever its figures say.
fn measure_all(names: &[String]) -> Result<bool> {
    let naru = std::env::var_os("NARU").map_or_else(|| root().join("target/release/naru"), PathBuf::from);
    if !naru.exists() {
        return Err(format!("{} is missing: `make build` makes it", naru.display()));
    }
    if measure::output("id", &["-u"])?.trim() != "0" {
        return Err("the benchmarks run containers, which needs root".into());
    }
    let machine = measure::machine();
    eprintln!("{}", machine["line"].as_str().unwrap_or_default());
    measure::remove_remains_of_others(&naru);
    let mut bench = Bench { naru, shop: None, scratch: Scratch::new()? };
    let mut results: Vec<(&str, Vec<Line>, Quiet)> = Vec::new();
    let mut failed = false;
    for (name, measure) in BENCHES.iter().filter(|it| names.is_empty() || names.iter().any(|n| n == it.0)) {
        eprintln!("measuring {name}");
        let quiet = measure::wait_until_quiet();
        match measure(&mut bench) {
            Ok(lines) => results.push((name, lines, quiet)),
            Err(error) => {
                eprintln!("error: {name}: {error}");
                failed = true;
            }
        }
    }
    drop(bench);
    print_table(&results);
    write_json(&root().join("target/bench.json"), &machine, &results)?;
    Ok(!failed)
}

/// What the pressure on the processors was when a benchmark began.
#[derive(Clone, Copy, PartialEq)]
pub enum Quiet {
    Yes,
    /// Others kept the machine busy (per cent of the last 10 s in which something waited).
    No(f64),
}

fn print_table(results: &[(&str, Vec<Line>, Quiet)]) {
    let heads = ["what", "naru", "peer", "peer's", "ratio (of rounds)", "goal", ""].map(str::to_owned);
    let mut rows = vec![heads];
    rows.extend(results.iter().flat_map(|it| &it.1).map(Line::cells));
    let widths: Vec<usize> =
        (0..7).map(|column| rows.iter().map(|it| it[column].chars().count()).max().unwrap_or(0)).collect();
    println!();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
        if index == 0 {
            println!("{}", "-".repeat(widths.iter().sum::<usize>() + 12));
        }
    }
    println!();
    for (name, lines, quiet) in results {
        if let Quiet::No(pressure) = quiet {
            println!("{name}: noisy: others waited for a processor {pressure:.0} % of the time before it");
        }
        for line in lines.iter().filter(|it| !it.note.is_empty()) {
            println!("{name}: {}: {}", line.what, line.note);
        }
    }
}

fn write_json(path: &Path, machine: &Value, results: &[(&str, Vec<Line>, Quiet)]) -> Result<()> {
    let lines: Vec<Value> =
        results.iter().flat_map(|(name, lines, _)| lines.iter().map(|it| it.json(name))).collect();
    let noisy: Vec<&str> = results.iter().filter(|it| it.2 != Quiet::Yes).map(|it| it.0).collect();
    let all = json!({"machine": machine, "noisy": noisy, "lines": lines});
    let text = serde_json::to_string_pretty(&all).map_err(|it| it.to_string())?;
    std::fs::write(path, text).map_err(|it| format!("cannot write {}: {it}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        it if it >= 100.0 => format!("{value:.0}"),
        it if it >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(ratios: &[f64], goal: Goal) -> Line {
        let peer = Some(("peer 1".into(), 2.0));
        Line {
            what: "it".into(),
            unit: "ms",
            ours: 1.0,
            peer,
            ratios: ratios.to_vec(),
            goal,
            note: String::new(),
        }
    }

    #[test]
    fn a_goal_is_judged_by_the_median_of_the_rounds() {
        assert_eq!(line(&[0.1, 9.0, 0.4], Goal::RatioAtMost(0.5)).verdict(), "met");
        assert_eq!(line(&[0.1, 9.0, 0.6], Goal::RatioAtMost(0.5)).verdict(), "MISSED");
        assert_eq!(line(&[], Goal::RatioAtMost(0.5)).verdict(), "not measured");
        assert_eq!(line(&[], Goal::AtMost(0.5)).verdict(), "MISSED");
    }
}
