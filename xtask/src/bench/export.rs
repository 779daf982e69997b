//! Files become an image, and the image an archive with a compressed layer: what that takes of a processor, and how
//! large it comes out. Ours is `naru build -o type=oci`, daemon included; the peer's are `buildah bud` and
//! `buildah push oci-archive:`, which compress by default with gzip, too. A file differs in each round, so nothing
//! is cached.

use super::daemon::Daemon;
use super::measure::{self, NOT_INSTALLED, median};
use super::{Bench, Goal, Line, Result};
use std::path::Path;
use std::process::Command;

const ROUNDS: usize = 3;
/// Programs and libraries of the machine, in the order of their names, until there is this much.
const TREE_MB: u64 = 200;
const GOAL_PROCESSOR: f64 = 0.5;
const GOAL_SIZE: f64 = 1.02;

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let dir = bench.scratch.path().join("export");
    let context = dir.join("context");
    make_tree(&context.join("tree"))?;
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY tree /\n").map_err(|it| it.to_string())?;
    let version = measure::version("buildah", "buildah", "--version");
    let daemon = Daemon::start(&bench.naru, &dir.join("daemon"))?;
    let (store, shown) = (dir.join("buildah").display().to_string(), context.display().to_string());
    let (own_file, peer_file) = (dir.join("naru.tar"), dir.join("buildah.tar"));
    let ours = || -> Result<f64> {
        let cpu = measure::cpu_seconds(daemon.pid())? + measure::cpu_seconds_of_children();
        let mut command = Command::new(&bench.naru);
        command.arg("--data-dir").arg(daemon.data_dir()).args(["build", "-q", "-t", "bench:1", "-o"]);
        measure::run(command.arg(format!("type=oci,dest={}", own_file.display())).arg(&shown))?;
        Ok(measure::cpu_seconds(daemon.pid())? + measure::cpu_seconds_of_children() - cpu)
    };
    let theirs = || -> Result<f64> {
        let cpu = measure::cpu_seconds_of_children();
        let buildah = format!("buildah --root {store}/store --runroot {store}/run --storage-driver overlay");
        let script = format!(
            "set -e; {buildah} bud -q --layers --isolation chroot -t bench:1 {shown} >/dev/null; rm -f {0}; \
             {buildah} push -q bench:1 oci-archive:{0} >/dev/null",
            peer_file.display()
        );
        measure::output_within(300, "unshare", &["-m", "sh", "-c", &script])?;
        Ok(measure::cpu_seconds_of_children() - cpu)
    };
    let size = |it: &Path| it.metadata().map(|it| it.len() as f64 / 1e6).map_err(|it| it.to_string());
    let (mut mine, mut peers, mut sizes, mut peer_sizes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        std::fs::write(context.join("tree/round"), round.to_string()).map_err(|it| it.to_string())?;
        mine.push(ours()?);
        sizes.push(size(&own_file)?);
        if version.is_some() {
            peers.push(theirs()?);
            peer_sizes.push(size(&peer_file)?);
        }
    }
    let note = if version.is_none() { format!("buildah is {NOT_INSTALLED}") } else { String::new() };
    let line = |what: String, unit, ours: &[f64], theirs: &[f64], goal| Line {
        what,
        unit,
        ours: median(ours),
        peer: version.clone().map(|it| (it, median(theirs))),
        ratios: measure::ratios(ours, theirs),
        goal: Goal::RatioAtMost(goal),
        note: note.clone(),
    };
    let what = format!("{TREE_MB} MB built and exported with gzip, of a processor");
    Ok(vec![
        line(what, "s", &mine, &peers, GOAL_PROCESSOR),
        line("the archive that comes out".into(), "MB", &sizes, &peer_sizes, GOAL_SIZE),
    ])
}

fn make_tree(tree: &Path) -> Result<()> {
    let script = format!(
        "set -e; mkdir -p {0}; cd /usr; find bin lib/x86_64-linux-gnu lib/python3 share/perl -xdev -type f -size -20000k \
         2>/dev/null | LC_ALL=C sort | while read f; do s=$(stat -c %s \"$f\"); n=$((n+s)); \
         [ $n -gt {1} ] && break; cp --parents \"$f\" {0}; done; true",
        tree.display(),
        TREE_MB * 1_000_000
    );
    measure::output_within(120, "sh", &["-c", &script]).map(drop)
}
