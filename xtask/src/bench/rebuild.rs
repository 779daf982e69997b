//! `naru build` as people wait for it: the whole command, on 200 files and nine instructions. Once with nothing
//! changed, once with one file changed that the last step looks at. Peer: the whole `buildah bud --layers`.

use super::daemon::Daemon;
use super::measure::{self, NOT_INSTALLED, median};
use super::{Bench, Goal, Line, Result};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const ROUNDS: usize = 5;
const FILES: usize = 200;
const GOAL_NOTHING: f64 = 0.05;
const GOAL_ONE_FILE: f64 = 0.3;

const DOCKERFILE: &str = "FROM scratch
COPY busybox /bin/busybox
COPY busybox /bin/sh
ENV PATH=/bin
RUN [\"/bin/busybox\", \"mkdir\", \"-p\", \"/app\", \"/tmp\"]
WORKDIR /app
COPY src src
RUN /bin/busybox cat src/*.txt > all
CMD [\"/bin/busybox\", \"cat\", \"/app/all\"]
";

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let version = measure::version("buildah", "buildah", "--version");
    let dir = bench.scratch.path().join("rebuild");
    let context = dir.join("context");
    make(&context)?;
    let daemon = Daemon::start(&bench.naru, &dir.join("daemon"))?;
    let store = dir.join("buildah").display().to_string();
    let context_text = context.display().to_string();
    let naru = |quiet: &str| {
        let mut command = Command::new(&bench.naru);
        command.arg("--data-dir").arg(daemon.data_dir()).args([
            "build",
            quiet,
            "-t",
            "bench:1",
            &context_text,
        ]);
        measure::run(&mut command).map(drop)
    };
    let ours = || naru("-q");
    let theirs = || {
        let line = format!(
            "-m buildah --root {store}/store --runroot {store}/run --storage-driver overlay bud --layers --isolation \
             chroot --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 -q -t bench:1 {context_text}"
        );
        let args: Vec<&str> = line.split_whitespace().collect();
        measure::output_within(120, "unshare", &args).map(drop)
    };
    ours()?;
    if version.is_some() {
        theirs()?;
    }
    let timed = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
        let began = Instant::now();
        work()?;
        Ok(measure::milliseconds(began.elapsed()))
    };
    let mut lines = Vec::new();
    for (what, goal, changes) in [
        ("`naru build`, nothing changed, p50", GOAL_NOTHING, false),
        ("`naru build`, one file changed, p50", GOAL_ONE_FILE, true),
    ] {
        let (mut mine, mut peers) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            if changes {
                std::fs::write(context.join("src/0.txt"), format!("{what} {round}"))
                    .map_err(|it| it.to_string())?;
            }
            mine.push(timed(&ours)?);
            if version.is_some() {
                peers.push(timed(&theirs)?);
            }
        }
        lines.push(Line {
            what: what.into(),
            unit: "ms",
            ours: median(&mine),
            note: if version.is_none() { format!("buildah is {NOT_INSTALLED}") } else { String::new() },
            peer: version.clone().map(|it| (it, median(&peers))),
            ratios: measure::ratios(&mine, &peers),
            goal: Goal::RatioAtMost(goal),
        });
    }
    Ok(lines)
}

fn make(context: &Path) -> Result<()> {
    let io = |it: std::io::Error| it.to_string();
    std::fs::create_dir_all(context.join("src")).map_err(io)?;
    std::fs::copy("/bin/busybox", context.join("busybox")).map_err(io)?;
    std::fs::write(context.join("Dockerfile"), DOCKERFILE).map_err(io)?;
    for index in 0..FILES {
        let text = format!("file {index}\n").repeat(200);
        std::fs::write(context.join(format!("src/{index}.txt")), text).map_err(io)?;
    }
    Ok(())
}
