//! The process of a job itself: how it is stopped, and how much it bears.

use naru_actions_tests::harness::naru_binary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Job {
    _root: tempfile::TempDir,
    child: Child,
    reader: BufReader<std::process::ChildStdout>,
}

fn run(script: &str) -> Value {
    json!({"name": "a step", "action": {"type": "run", "script": script, "shell": ["bash", "-e", "{0}"], "extension": "sh"}})
}

fn start(steps: Value, more: Value) -> Job {
    let root = tempfile::Builder::new().prefix("naru-job-").tempdir().unwrap();
    let mut job = json!({"steps": steps, "timeout_minutes": 5});
    job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let file = json!({"dialect": "github", "nonce": "n0nce", "job": job, "workspace": root.path().join("w/w"),
                      "contexts": {"secrets": {"S": "do-not-show"}}});
    let mut child = Command::new(naru_binary())
        .args(["__job", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(file.to_string().as_bytes()).unwrap();
    let reader = BufReader::with_capacity(1 << 20, child.stdout.take().unwrap());
    Job { _root: root, child, reader }
}

impl Job {
    fn until(&mut self, end: &str) -> String {
        let mut log = String::new();
        while !log.ends_with(end) {
            assert!(self.reader.read_line(&mut log).unwrap() > 0, "{log}");
        }
        log
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn rest(mut self) -> (String, i32) {
        let mut log = String::new();
        self.reader.read_to_string(&mut log).unwrap();
        (log, self.child.wait().unwrap().code().unwrap_or(-1))
    }
}

#[test]
fn a_cancelled_step_is_asked_first_and_told_why() {
    let mut always = run("echo cleaned");
    always["condition"] = json!("always()");
    let steps = json!([
        run("trap 'echo asked; exit 1' INT; echo begun; while true; do sleep 0.05; done"),
        run("echo never"),
        always
    ]);
    let mut job = start(steps, json!({}));
    job.until("begun\n");
    let asked = Instant::now();
    job.signal(Signal::SIGTERM);
    let (log, code) = job.rest();
    assert!(asked.elapsed() < Duration::from_secs(5), "it was asked, not killed");
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("asked\n") && log.contains("cleaned\n") && !log.contains("never\n"), "{log}");
    assert!(log.contains("\"outcome\":\"Cancelled\""), "{log}");
}

#[test]
fn who_does_not_listen_is_killed_and_sooner_when_asked_again() {
    let mut job =
        start(json!([run("trap '' INT TERM; echo begun; while true; do sleep 0.05; done")]), json!({}));
    job.until("begun\n");
    let begun = Instant::now();
    for _ in 0..3 {
        job.signal(Signal::SIGTERM);
        // Signals of one kind that wait are one.
        std::thread::sleep(Duration::from_millis(200));
    }
    let (log, code) = job.rest();
    assert!(code == 1 && begun.elapsed() < Duration::from_secs(6), "{:?} {log}", begun.elapsed());
}

#[test]
fn a_million_lines_and_a_line_of_ten_megabytes_go_through_with_flat_memory() {
    let script = "seq 1000000; head -c 5000000 /dev/zero | tr '\\0' a; printf do-not-show; head -c 5000000 /dev/zero | tr '\\0' b; echo; \
                  echo peak; grep VmHWM /proc/$PPID/status";
    let mut job = start(json!([run(script)]), json!({}));
    let (mut lines, mut bytes) = (0, 0);
    let mut line = Vec::new();
    let mut peak = 0;
    let mut hidden = false;
    while job.reader.read_until(b'\n', &mut line).unwrap() > 0 {
        let text = String::from_utf8_lossy(&line);
        assert!(!text.contains("do-not-show"));
        hidden |= text.contains("***");
        if let Some(it) = text.strip_prefix("VmHWM:") {
            peak = it.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
        } else if !text.starts_with("##naru") && text.trim() != "peak" {
            lines += usize::from(line.len() < 10);
            bytes += line.len();
        }
        line.clear();
    }
    let (log, code) = job.rest();
    assert_eq!(code, 0, "{log}");
    assert!(lines >= 1_000_000 && hidden, "{lines}");
    assert!(bytes > 16_000_000, "{bytes}");
    assert!(peak > 0 && peak < 64 * 1024, "its memory grew to {peak} KiB");
}

#[test]
fn a_job_that_loses_its_parent_ends() {
    let script = "echo begun; while true; do sleep 0.05; done";
    let root = tempfile::tempdir().unwrap();
    let file = json!({"dialect": "github", "nonce": "n", "workspace": root.path().join("w/w"),
                      "job": {"steps": [run(script)], "timeout_minutes": 5}});
    std::fs::write(root.path().join("job.json"), file.to_string()).unwrap();
    // A shell that starts it, and is killed.
    let mut parent = Command::new("bash")
        .arg("-c")
        .arg(format!(
            "{} __job - < {} & echo pid $!; wait",
            naru_binary().display(),
            root.path().join("job.json").display()
        ))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(parent.stdout.take().unwrap());
    let mut log = String::new();
    while !log.ends_with("begun\n") {
        assert!(reader.read_line(&mut log).unwrap() > 0, "{log}");
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    // Its output ends when nobody has it open any more.
    reader.read_to_string(&mut log).unwrap();
    assert!(log.contains("Cancelled"), "{log}");
}
