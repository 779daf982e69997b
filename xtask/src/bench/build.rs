//! The example's image built again when nothing has changed.
//!
//! Ours: a push of an empty commit; the time is that of the `Image` object, from the start of its build,
//! fetching the commit included, to its end. Peer: buildah on the same files and the same Dockerfile. Its
//! `rust:1` is a small image whose `cargo` only copies a file: no registry is needed, the step is cached in
//! what is measured anyway, and it has fewer bytes to look after than we have.

use super::measure::{self, NOT_INSTALLED, median};
use super::{Bench, Goal, Line, Result};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const ROUNDS: usize = 5;
const GOAL: f64 = 1.0 / 5.0;

const CARGO: &str = "#!/bin/sh
mkdir -p target/release && cp /bin/busybox target/release/shop
";

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let version = measure::version("buildah", "buildah", "--version");
    let dir = bench.scratch.path().join("buildah");
    let shop = bench.shop()?;
    let buildah = match &version {
        Some(_) => {
            let it = Buildah::new(&dir, &shop.repository)?;
            it.build()?;
            Some(it)
        }
        None => None,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        shop.commit("nothing has changed")?;
        shop.push()?;
        shop.wait_until_settled()?;
        let status = &shop.image()?["status"];
        if status["cachedSteps"] != status["totalSteps"] {
            return Err(format!(
                "{} of {} steps came from the cache although nothing has changed",
                status["cachedSteps"], status["totalSteps"]
            ));
        }
        ours.push(seconds_between(&status["startedAt"], &status["finishedAt"])? * 1e3);
        if let Some(it) = &buildah {
            let began = Instant::now();
            it.build()?;
            theirs.push(measure::milliseconds(began.elapsed()));
        }
    }
    Ok(vec![Line {
        what: "image rebuilt, nothing changed, p50".into(),
        unit: "ms",
        ours: median(&ours),
        note: if version.is_none() { format!("buildah is {NOT_INSTALLED}") } else { String::new() },
        peer: version.map(|it| (it, median(&theirs))),
        ratios: measure::ratios(&ours, &theirs),
        goal: Goal::RatioAtMost(GOAL),
    }])
}

/// buildah with a store of its own and a small `rust:1` in it.
pub struct Buildah {
    args: Vec<String>,
}

impl Buildah {
    /// Makes the base image in a store of its own.
    pub fn new(dir: &Path, context: &Path) -> Result<Self> {
        let bin = dir.join("base/bin");
        std::fs::create_dir_all(&bin).map_err(|it| it.to_string())?;
        std::fs::create_dir_all(dir.join("base/tmp")).map_err(|it| it.to_string())?;
        std::fs::copy("/bin/busybox", bin.join("busybox")).map_err(|it| it.to_string())?;
        for name in ["sh", "mkdir", "cp", "seq", "dd", "sleep"] {
            std::os::unix::fs::symlink("busybox", bin.join(name)).map_err(|it| it.to_string())?;
        }
        let cargo = bin.join("cargo");
        std::fs::write(&cargo, CARGO).map_err(|it| it.to_string())?;
        measure::run(Command::new("chmod").arg("755").arg(&cargo))?;
        let store =
            format!("buildah --root {0}/store --runroot {0}/run --storage-driver overlay", dir.display());
        let script = format!(
            "set -e; b=$({store} from scratch); {store} copy -q $b {0}/base /; \
             {store} config --env PATH=/bin $b; {store} commit -q $b docker.io/library/rust:1; {store} rm $b",
            dir.display()
        );
        measure::output_within(60, "unshare", &["-m", "sh", "-c", &script])?;
        let build = "bud --layers --isolation chroot --pull-never --ulimit nofile=1024:1024 --ulimit \
                     nproc=1024:1024 -q -t docker.io/library/shop:bench";
        let mut args: Vec<String> = vec!["-m".into()];
        args.extend(format!("{store} {build}").split_whitespace().map(str::to_owned));
        args.push(context.display().to_string());
        Ok(Self { args })
    }

    /// A build that may be ended; it must not be waited for by its name.
    pub fn command(&self) -> Command {
        let mut command = Command::new("unshare");
        command.args(&self.args);
        command
    }

    fn build(&self) -> Result<()> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        measure::output_within(60, "unshare", &args).map(drop)
    }
}

/// Between two times in RFC 3339, both in UTC and on the same or the following day.
fn seconds_between(from: &Value, to: &Value) -> Result<f64> {
    let seconds = |it: &Value| -> Option<f64> {
        let (_, time) = it.as_str()?.strip_suffix('Z')?.split_once('T')?;
        let mut parts = time.split(':').map(|it| it.parse::<f64>().ok());
        Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
    };
    match seconds(from).zip(seconds(to)) {
        Some((from, to)) if to >= from => Ok(to - from),
        Some((from, to)) => Ok(to - from + 86_400.0),
        None => Err(format!("{from} and {to} are not two times")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_of_objects_are_subtracted() {
        let between = |a: &str, b: &str| seconds_between(&json!(a), &json!(b));
        let took = between("2026-11-22T10:00:59.999000Z", "2026-11-22T10:01:00.001500Z").expect("two times");
        assert!((took - 0.0025).abs() < 1e-9, "{took}");
        let took = between("2026-11-22T23:59:59.5Z", "2026-11-23T00:00:00.5Z").expect("two times");
        assert!((took - 1.0).abs() < 1e-9, "{took}");
        assert!(between("", "2026-11-22T10:00:00Z").is_err());
    }
}
