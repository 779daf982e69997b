//! Workflows on this machine: `naru ci run` against act in host mode, and against bash that runs the same scripts
//! bare. Ours copies nothing it need not and starts a process per job; act's jobs are neither isolated.

use super::measure::{self, median, ratios};
use super::{Bench, Goal, Line, Result};
use crate::root;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 9;

/// Steps of the long workflow.
const STEPS: usize = 21;
const JOBS: usize = 10;

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let act = root().join(".tools/bin/act");
    let version = measure::version("act", &act.display().to_string(), "--version");
    let directory = bench.scratch.path().join("workflow");
    let step = "      - run: 'true'\n";
    let job = |name: &str, steps: usize| {
        format!("  {name}:\n    runs-on: ubuntu-latest\n    steps:\n{}", step.repeat(steps))
    };
    let all: Vec<String> = (0..JOBS).map(|it| job(&format!("j{it}"), 1)).collect();
    let cases = [
        ("1 step", job("a", 1), 1),
        ("21 steps", job("a", STEPS), STEPS),
        ("10 jobs of 1 step", all.concat(), JOBS),
    ];
    let mut lines = Vec::new();
    let mut slopes: [Vec<(f64, f64)>; 3] = Default::default();
    for (what, jobs, scripts) in &cases {
        let tree = directory.join(what.replace(' ', "-"));
        prepare(&tree, &format!("on: push\njobs:\n{jobs}"))?;
        let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(timed(Command::new(&bench.naru).args(["ci", "run"]), &tree)?);
            if version.is_some() {
                theirs.push(timed(
                    Command::new(&act).args(["push", "-P", "ubuntu-latest=-self-hosted"]),
                    &tree,
                )?);
            }
            bare.push(timed(Command::new("bash").args(["-c", &bare_script(*scripts)]), &tree)?);
        }
        if *scripts != JOBS {
            slopes[0].push((mean(&column(&ours, 1)), *scripts as f64));
            slopes[1].push((mean(&column(&theirs, 1)), *scripts as f64));
            slopes[2].push((mean(&column(&bare, 1)), *scripts as f64));
        }
        lines.push(line(
            format!("workflow of {what}"),
            0,
            &ours,
            &theirs,
            version.as_deref(),
            Goal::RatioAtMost(0.2),
        ));
        lines.push(line(
            format!("workflow of {what}, processor"),
            1,
            &ours,
            &theirs,
            version.as_deref(),
            Goal::RatioAtMost(0.2),
        ));
        lines.push(line(
            format!("workflow of {what}, against bare bash"),
            0,
            &ours,
            &bare,
            Some("bash"),
            Goal::RatioAtMost(1.5),
        ));
    }
    let slope = |all: &[(f64, f64)]| match all {
        [(first, few), (second, many)] => (second - first) / (many - few),
        _ => f64::NAN,
    };
    if let Some(act) = version {
        // What the scripts cost by themselves is nobody's merit.
        let bare = slope(&slopes[2]);
        let (own, peer) = (slope(&slopes[0]) - bare, slope(&slopes[1]) - bare);
        lines.push(Line {
            what: "one more step, processor beyond bash's".into(),
            unit: "ms",
            ours: own,
            peer: Some((act, peer)),
            ratios: vec![own / peer],
            goal: Goal::RatioAtMost(0.2),
            note: format!("the slope from 1 to {STEPS} steps, less that of bare bash ({bare:.2} ms)"),
        });
    }
    Ok(lines)
}

/// What the same scripts cost when nobody looks after them: a shell each, as the workflow has it.
fn bare_script(count: usize) -> String {
    format!(
        "for i in $(seq {count}); do echo true > /tmp/naru-bench-step; bash -e /tmp/naru-bench-step; done; rm -f /tmp/naru-bench-step"
    )
}

fn prepare(tree: &Path, workflow: &str) -> Result<()> {
    let failed = |it: std::io::Error| format!("cannot write {}: {it}", tree.display());
    std::fs::create_dir_all(tree.join(".github/workflows")).map_err(failed)?;
    std::fs::write(tree.join(".github/workflows/ci.yml"), workflow).map_err(failed)?;
    let config = tree.join("../home/act");
    std::fs::create_dir_all(&config).map_err(failed)?;
    std::fs::write(config.join("actrc"), "").map_err(failed)?;
    let git = "git init -q -b main; git add -A; git -c user.email=b@b -c user.name=b commit -q -m first";
    measure::run(Command::new("bash").args(["-ec", git]).current_dir(tree)).map(|_| ())
}

/// Milliseconds on the wall, and of processors.
fn timed(command: &mut Command, tree: &Path) -> Result<(f64, f64)> {
    let home = tree.join("../home");
    command
        .current_dir(tree)
        .env("HOME", &home)
        .env("XDG_CONFIG_HOME", &home)
        .env("XDG_CACHE_HOME", home.join("cache"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (before, begun) = (measure::cpu_seconds_of_children(), Instant::now());
    let status = command.status().map_err(|it| format!("cannot run {command:?}: {it}"))?;
    let wall = measure::milliseconds(begun.elapsed());
    if !status.success() {
        return Err(format!("{command:?} failed: {status}"));
    }
    Ok((wall, 1000.0 * (measure::cpu_seconds_of_children() - before)))
}

fn column(all: &[(f64, f64)], index: usize) -> Vec<f64> {
    all.iter().map(|it| if index == 0 { it.0 } else { it.1 }).collect()
}

fn mean(all: &[f64]) -> f64 {
    all.iter().sum::<f64>() / all.len().max(1) as f64
}

/// Walls are compared round by round; the kernel counts processors in hundredths of a second, which says nothing
/// of one round, so those are compared as a whole.
fn line(
    what: String,
    index: usize,
    ours: &[(f64, f64)],
    theirs: &[(f64, f64)],
    peer: Option<&str>,
    goal: Goal,
) -> Line {
    let (ours, theirs) = (column(ours, index), column(theirs, index));
    let figure = if index == 0 { median } else { mean };
    let compared = match (theirs.is_empty(), index) {
        (true, _) => Vec::new(),
        (false, 0) => ratios(&ours, &theirs),
        (false, _) => vec![mean(&ours) / mean(&theirs)],
    };
    Line {
        what,
        unit: "ms",
        ours: figure(&ours),
        peer: peer.filter(|_| !theirs.is_empty()).map(|it| (it.to_owned(), figure(&theirs))),
        ratios: compared,
        goal,
        note: String::new(),
    }
}
