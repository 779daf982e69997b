//! Jobs on the server: from an accepted push to the first step, and what a step prints to whoever watches.

use super::daemon::Daemon;
use super::measure::{self, max, median};
use super::{Bench, Goal, Line, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PUSHES: usize = 11;
const STAMPS: usize = 50;
const MANY_LINES: usize = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let dir = bench.scratch.path().join("job");
    let daemon = Daemon::start(&bench.naru, &dir)?;
    let repository = Repository { daemon, tree: dir.join("tree"), naru: bench.naru.clone() };
    repository.init()?;
    Ok(vec![repository.first_step()?, repository.watched_line()?, repository.many_lines()?])
}

struct Repository {
    daemon: Daemon,
    tree: PathBuf,
    naru: PathBuf,
}

impl Repository {
    fn git(&self, args: &[&str]) -> Result<String> {
        let identity = ["-c", "user.name=Bench", "-c", "user.email=bench@example.org"];
        measure::run(Command::new("git").arg("-C").arg(&self.tree).args(identity).args(args))
    }

    fn init(&self) -> Result<()> {
        std::fs::create_dir_all(self.tree.join(".github/workflows")).map_err(|it| it.to_string())?;
        self.git(&["init", "--quiet", "--initial-branch=main"])?;
        self.git(&["remote", "add", "naru", &self.daemon.git_url("job")?]).map(drop)
    }

    /// Pushes a workflow whose one step is this script, and returns its run as soon as there is one, but nobody looks
    /// for that long: a look costs as much as a job.
    fn push(&self, script: &str, undisturbed: Duration) -> Result<Value> {
        let text = format!(
            "on: push\njobs:\n  job:\n    runs-on: ubuntu-latest\n    steps:\n      - run: |\n          {script}\n"
        );
        let file = self.tree.join(".github/workflows/ci.yml");
        std::fs::write(file, text).map_err(|it| it.to_string())?;
        self.git(&["add", "--all"])?;
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "next"])?;
        let head = self.git(&["rev-parse", "HEAD"])?.trim().to_owned();
        // A push shows its run until the end; here others do.
        let mut push = Command::new("git");
        push.arg("-C").arg(&self.tree).args(["push", "--quiet", "naru", "main"]);
        let mut push = push.stderr(Stdio::null()).spawn().map_err(|it| it.to_string())?;
        std::thread::sleep(undisturbed);
        let run =
            self.until("the run", || Ok(self.run_of(&head)?.filter(|it| it["status"]["phase"].is_string())));
        std::thread::spawn(move || push.wait());
        run
    }

    fn run_of(&self, head: &str) -> Result<Option<Value>> {
        Ok(self.daemon.list("runs")?.into_iter().find(|it| it["spec"]["sha"] == head))
    }

    fn until<T>(&self, what: &str, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let began = Instant::now();
        loop {
            if let Some(it) = done()? {
                return Ok(it);
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{what} did not come"));
            }
            // Seldom: every look costs processor time that the daemon does not get.
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn ended(&self, run: &Value) -> Result<Value> {
        let head = run["spec"]["sha"].as_str().unwrap_or_default();
        let is_over = |it: &Value| !it["status"]["finishedAt"].as_str().unwrap_or_default().is_empty();
        let run = self.until("the end of the run", || Ok(self.run_of(head)?.filter(is_over)))?;
        match run["status"]["phase"].as_str() {
            Some("Succeeded") => Ok(run),
            other => Err(format!("the run ended as {other:?}: {}", run["status"]["message"])),
        }
    }

    fn logs(&self, run: &Value, follow: bool) -> Command {
        let mut command = Command::new(&self.naru);
        command.arg("--data-dir").arg(self.daemon.data_dir()).arg("logs");
        command.arg(format!("run/{}", run["metadata"]["name"].as_str().unwrap_or_default()));
        command.args(if follow { &["--follow"][..] } else { &[] });
        command
    }

    fn first_step(&self) -> Result<Line> {
        let mut times = Vec::new();
        for _ in 0..PUSHES {
            let run = self.ended(&self.push("echo stamp $(date +%s%N)", Duration::from_millis(500))?)?;
            let text = measure::run(&mut self.logs(&run, false))?;
            let stamp = text.lines().find_map(stamp).ok_or("the step's output is not in the log")?;
            let pushed = run["spec"]["pushedAt"].as_str().unwrap_or_default();
            let pushed = measure::output("date", &["-d", pushed, "+%s%N"])?;
            let pushed: u64 = pushed.trim().parse().map_err(|_| format!("{pushed} is no time"))?;
            times.push(stamp.saturating_sub(pushed) as f64 / 1e6);
        }
        // The first finds no pod that waits.
        let cold = times.remove(0);
        Ok(Line {
            what: "push accepted to the first step, p50".into(),
            unit: "ms",
            ours: median(&times),
            peer: None,
            ratios: Vec::new(),
            goal: Goal::AtMost(50.0),
            note: format!(
                "with a pod that waits; slowest {:.0} ms, the very first {cold:.0} ms; published beside it: GitHub's \
                 runners take 3.7 s to begin, GitLab's ask for work every 3 s",
                max(&times)
            ),
        })
    }

    fn watched_line(&self) -> Result<Line> {
        let run = self.push(
            &format!("for i in $(seq {STAMPS}); do echo stamp $(date +%s%N); sleep 0.1; done"),
            Duration::ZERO,
        )?;
        let mut late = Vec::new();
        let mut child = self.logs(&run, true).stdout(Stdio::piped()).spawn().map_err(|it| it.to_string())?;
        for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
            let line = line.map_err(|it| it.to_string())?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            if let Some(stamp) = stamp(&line) {
                late.push(now.saturating_sub(u128::from(stamp)) as f64 / 1e6);
            }
        }
        child.wait().map_err(|it| it.to_string())?;
        self.ended(&run)?;
        // What was printed before we watched is no measure.
        let late = late.split_off(late.len().min(STAMPS / 2));
        Ok(Line {
            what: "a step's line until a watcher has it, p50".into(),
            unit: "ms",
            ours: median(&late),
            peer: None,
            ratios: Vec::new(),
            goal: Goal::AtMost(100.0),
            note: format!("slowest of {}: {:.1} ms", late.len(), max(&late)),
        })
    }

    fn many_lines(&self) -> Result<Line> {
        let before = measure::peak_memory_mib(self.daemon.pid())?;
        let run = self.push(&format!("sleep 3; seq {MANY_LINES}"), Duration::ZERO)?;
        let mut child = self.logs(&run, true).stdout(Stdio::piped()).spawn().map_err(|it| it.to_string())?;
        let (mut lines, mut began) = (0, Instant::now());
        let mut reader = BufReader::new(child.stdout.take().ok_or("no output")?);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).map_err(|it| it.to_string())? > 0 {
            // Whatever a watcher sees before it, the step's own line is the last word.
            let text = line.trim_ascii().rsplit(|it| *it == b' ').next().unwrap_or_default();
            if text == b"1" {
                began = Instant::now();
            }
            lines += usize::from(!text.is_empty() && text.iter().all(u8::is_ascii_digit));
            line.clear();
        }
        child.wait().map_err(|it| it.to_string())?;
        let took = began.elapsed().as_secs_f64();
        self.ended(&run)?;
        let after = measure::peak_memory_mib(self.daemon.pid())?;
        if lines < MANY_LINES {
            return Err(format!("a watcher saw {lines} of {MANY_LINES} lines"));
        }
        Ok(Line {
            what: "a log of a million lines, watched".into(),
            unit: "s",
            ours: took,
            peer: None,
            ratios: Vec::new(),
            goal: Goal::None,
            note: format!(
                "the daemon's memory had its peak at {before:.0} MiB before and {after:.0} MiB after"
            ),
        })
    }
}

/// The nanoseconds of a line that a step printed as `stamp N`.
fn stamp(line: &str) -> Option<u64> {
    line.rsplit_once("stamp ")?.1.trim().parse().ok()
}
