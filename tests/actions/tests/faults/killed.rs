//! kill -9 of the daemon while jobs run.

use naru_actions_tests::harness::{Daemon, Repository, random, seeds};
use naru_actions_tests::in_background;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Kills in one run of this test.
const SEEDS: u64 = 12;

/// So many kills meet one daemon; then another begins from nothing.
const SEEDS_PER_DAEMON: u64 = 40;

/// What the jobs tell: how often each of each commit began, and how often it came to its end.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<BTreeMap<String, u32>>>);

impl Told {
    /// Listens on an address that pods reach. Ends with the process.
    fn listen(&self) -> u16 {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let told = self.0.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut line = [0; 256];
                let length = stream.read(&mut line).unwrap_or(0);
                let line = String::from_utf8_lossy(&line[..length]).trim().to_owned();
                *told.lock().unwrap().entry(line).or_default() += 1;
                // Whoever tells waits for this: what it goes on to do was counted before.
                let _ = stream.write_all(b"ok\n");
            }
        });
        port
    }

    fn count(&self, what: &str) -> u32 {
        self.0.lock().unwrap().get(what).copied().unwrap_or(0)
    }
}

fn workflow(host: &str, port: u16) -> String {
    let tell = |what: &str| {
        format!(
            "bash -c 'exec 3<>/dev/tcp/{host}/{port}; echo ${{{{ github.sha }}}} {what} >&3; read -r _ <&3'"
        )
    };
    format!(
        "on: push
jobs:
  first:
    runs-on: ubuntu-latest
    outputs: {{it: '${{{{ steps.it.outputs.it }}}}'}}
    steps:
      - run: {}
      - id: it
        run: sleep 0.2; echo it=${{{{ github.sha }}}} >> $GITHUB_OUTPUT
      - run: {}
  second:
    needs: first
    runs-on: ubuntu-latest
    steps:
      - run: {}; test '${{{{ needs.first.outputs.it }}}}' = ${{{{ github.sha }}}}
      - run: {}
",
        tell("first begins"),
        tell("first ends"),
        tell("second begins"),
        tell("second ends"),
    )
}

#[test]
fn no_job_runs_twice_and_no_result_is_lost_whenever_the_daemon_is_killed() {
    let told = Told::default();
    let port = told.listen();
    let all: Vec<u64> = (0..seeds(SEEDS)).collect();
    for seeds in all.chunks(SEEDS_PER_DAEMON as usize) {
        hunt(&told, port, seeds);
    }
}

fn hunt(told: &Told, port: u16, seeds: &[u64]) {
    let mut daemon = Daemon::start();
    let page = Repository::empty(&daemon, "page");
    let mut finished: BTreeMap<String, Value> = BTreeMap::new();
    page.write(".github/workflows/ci.yml", &workflow(&daemon.pod_host(), port));
    for seed in seeds {
        page.commit(&format!("seed {seed}"));
        let head = page.head();
        let push = in_background(page.command(&["push", "naru", "main"]));
        // The moment is the point: a push, its run and both jobs take about this long.
        std::thread::sleep(Duration::from_millis(random(*seed) % 2200));
        daemon.kill();
        drop(push);
        daemon.start_again();
        // A push that git refused or never finished is made again, as its user would.
        page.push();
        let run = daemon.wait_for(&format!("the run of seed {seed}"), "runs", |all| {
            let of_head: Vec<&Value> = all.iter().filter(|it| it["spec"]["sha"] == head.as_str()).collect();
            assert!(of_head.len() < 2, "seed {seed}: {of_head:#?}");
            let run = of_head.first()?;
            let phase = run["status"]["phase"].as_str().unwrap_or("Pending");
            (!matches!(phase, "Pending" | "Running")).then(|| (*run).clone())
        });
        check(*seed, told, &head, &run, &daemon);
        finished.insert(run["metadata"]["name"].as_str().unwrap().to_owned(), run["status"].clone());
        for run in daemon.get("runs") {
            let known = &finished[run["metadata"]["name"].as_str().unwrap()];
            assert_eq!(run["status"], *known, "seed {seed}: what has ended does not change");
        }
        // Nobody waits for a job of a run that has ended.
        daemon.wait_for(&format!("the pods of seed {seed} to end"), "pods", |all| {
            let mut of_runs = all.iter().filter(|it| it["metadata"]["labels"]["naru.dev/run"].is_string());
            of_runs
                .all(|it| it["status"]["phase"] != "Running" && it["status"]["phase"] != "Pending")
                .then_some(())
        });
    }
    daemon.destroy();
}

/// What a run says is what its jobs told.
fn check(seed: u64, told: &Told, head: &str, run: &Value, daemon: &Daemon) {
    let phase = run["status"]["phase"].as_str().unwrap();
    let log = || format!("seed {seed}: {run:#}\n{}", daemon.log());
    assert!(matches!(phase, "Succeeded" | "Interrupted"), "{}", log());
    for job in run["status"]["jobs"].as_array().unwrap() {
        let key = job["key"].as_str().unwrap();
        let (begun, ended) =
            (told.count(&format!("{head} {key} begins")), told.count(&format!("{head} {key} ends")));
        assert!(begun <= 1 && ended <= 1, "{key} ran twice ({begun}, {ended}); {}", log());
        match job["phase"].as_str().unwrap() {
            "Succeeded" => assert_eq!((begun, ended), (1, 1), "{}", log()),
            "Interrupted" => assert!(!job["message"].as_str().unwrap_or_default().is_empty(), "{}", log()),
            // What an interrupted job leaves undone.
            "Skipped" => assert_eq!((begun, phase), (0, "Interrupted"), "{}", log()),
            _ => panic!("{}", log()),
        }
    }
}
