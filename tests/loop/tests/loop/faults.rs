//! kill -9 and a full disk.

use crate::harness::{Daemon, PATIENCE, Repository, leftovers, random, seeds, text};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Kills in one run of this test; each is at another moment of a push.
const SEEDS: u64 = 20;

fn revision(daemon: &Daemon) -> u64 {
    let list: Value =
        serde_json::from_slice(&daemon.kubectl(&["get", "--raw", "/api/v1/namespaces"]).stdout).unwrap();
    list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

#[test]
fn kill_dash_nine_at_any_moment_loses_nothing_that_was_acknowledged() {
    let mut daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    let mut known = revision(&daemon);
    for seed in 0..seeds(SEEDS) {
        page.write("index.html", &format!("version seed {seed}\n"));
        page.commit(&format!("seed {seed}"));
        let mut push = page
            .command(&["push", "naru", "main"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment is the point: the push, its run, its build and its rollout take about this long.
        std::thread::sleep(Duration::from_millis(random(seed) % 2500));
        daemon.kill();
        let _ = push.wait();
        daemon.start_again();
        let now = revision(&daemon);
        assert!(now >= known, "seed {seed}: the resource version went back from {known} to {now}");
        // A push that git refused or never finished is made again, as its user would.
        page.push();
        let head = page.head();
        let run = daemon.wait_for(&format!("the run of seed {seed}"), "runs", |all| {
            let run = all.iter().find(|it| it["spec"]["sha"] == head.as_str())?;
            let phase = run["status"]["phase"].as_str().unwrap_or("Pending");
            (!matches!(phase, "Pending" | "Running")).then(|| run.clone())
        });
        assert_eq!(run["status"]["phase"], "Succeeded", "seed {seed}: {run:#}\n{}", daemon.log());
        let release = daemon.wait_for(&format!("the release of seed {seed}"), "releases", |all| {
            all.iter()
                .find(|it| it["spec"]["sha"] == head.as_str() && it["status"]["phase"] == "Promoted")
                .cloned()
        });
        let body = daemon.curl("page.test", "/index.html");
        assert_eq!(body, (200, format!("version seed {seed}\n")), "seed {seed}");
        // One run for each update of the branch, none twice, none under way for ever.
        let runs = daemon.get("runs");
        let of_head = runs.iter().filter(|it| it["spec"]["sha"] == head.as_str()).count();
        assert_eq!(of_head, 1, "seed {seed}: {runs:#?}");
        known = revision(&daemon).max(now);
        let workload = release["spec"]["services"][0]["workload"].as_str().unwrap().to_owned();
        daemon.wait_for(&format!("one pod of seed {seed}"), "pods", |all| {
            let ready: Vec<&Value> = all
                .iter()
                .filter(|it| it["metadata"]["labels"]["naru.dev/service"] == "web")
                .filter(|it| it["metadata"]["deletionTimestamp"].is_null())
                .collect();
            let ours = ready.iter().all(|it| it["metadata"]["name"].as_str().unwrap().starts_with(&workload));
            (ready.len() == 1 && ours).then_some(())
        });
    }
    let interrupted: Vec<Value> = daemon
        .get("runs")
        .into_iter()
        .filter(|it| !matches!(it["status"]["phase"].as_str(), Some("Succeeded")))
        .collect();
    // A run may have been interrupted, and then it says so; it must not have failed for another reason.
    for run in interrupted {
        assert_eq!(run["status"]["phase"], "Interrupted", "{run:#?}");
    }
    daemon.destroy();
}

#[test]
fn containers_outlive_the_daemon_and_a_clean_stop_is_quick() {
    let mut daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    let containers = |daemon: &Daemon| -> Vec<Value> {
        daemon
            .get("pods")
            .iter()
            .filter(|it| it["metadata"]["labels"]["naru.dev/service"] == "web")
            .map(|it| it["status"]["containerStatuses"][0]["containerID"].clone())
            .collect()
    };
    let before = containers(&daemon);
    assert!(daemon.stop() < Duration::from_secs(5));
    daemon.start_again();
    assert_eq!(daemon.curl("page.test", "/index.html").0, 200);
    assert_eq!(containers(&daemon), before);
    let restarts = &daemon
        .get("pods")
        .into_iter()
        .find(|it| it["metadata"]["labels"]["naru.dev/service"] == "web")
        .unwrap()["status"]["containerStatuses"][0]["restartCount"];
    assert_eq!(*restarts, 0);
    daemon.destroy();
}

#[test]
fn a_full_disk_fails_the_build_with_a_reason_and_nothing_else() {
    let dir = tempfile::Builder::new().prefix("naru-full-").tempdir().unwrap();
    let small = SmallDisk::mount(dir.path());
    let daemon = Daemon::start_in(dir, &[]);
    let page = Repository::page(&daemon);
    page.push();
    let fills = "FROM rust:1 AS build\nRUN head -c 300000000 /dev/zero > /big\nFROM scratch\nCOPY --from=build /big /big\n";
    let good = std::fs::read_to_string(page.dir.path().join("Dockerfile")).unwrap();
    page.write("Dockerfile", fills);
    page.commit("fills the disk");
    let shown = page.push();
    assert!(shown.contains("No space left") || shown.to_lowercase().contains("disk"), "{shown}");
    assert_eq!(daemon.curl("page.test", "/index.html"), (200, "version 1\n".into()));
    page.write("Dockerfile", &good);
    page.write("index.html", "version after\n");
    page.commit("is small again");
    page.push();
    assert_eq!(daemon.curl("page.test", "/index.html"), (200, "version after\n".into()), "{}", daemon.log());
    daemon.destroy();
    drop(small);
}

/// A file system of 200 MB at `<dir>/data`.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(dir: &std::path::Path) -> Self {
        let data = dir.join("data");
        std::fs::create_dir_all(&data).unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=200m,mode=755", "small"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        Self(data)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
        // The test's own handle could not remove it while this was mounted.
        let _ = self.0.parent().map(std::fs::remove_dir_all);
    }
}

#[test]
fn what_was_left_by_a_killed_daemon_is_removed_by_destroy() {
    let mut daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    daemon.kill();
    assert!(
        !leftovers("no-such-bridge", &daemon.dir.path().display().to_string()).is_empty(),
        "containers go on"
    );
    daemon.destroy();
}

#[test]
fn a_push_whose_client_goes_away_in_the_middle_leaves_no_process() {
    let daemon = Daemon::start();
    let page = Repository::empty(&daemon, "page");
    page.write("a", "b");
    page.commit("the start");
    page.push();
    let data = daemon.data_dir().display().to_string();
    let backends = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let read = |it: &std::fs::DirEntry, name: &str| {
            String::from_utf8_lossy(&std::fs::read(it.path().join(name)).unwrap_or_default()).into_owned()
        };
        processes
            .filter(|it| read(it, "cmdline").contains("http-backend") && read(it, "environ").contains(&data))
            .count()
    };
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < PATIENCE, "{what} did not come true");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let host = daemon.http().trim_start_matches("http://").to_owned();
    let mut stream = std::net::TcpStream::connect(&host).unwrap();
    let login = Command::new("sh")
        .args(["-c", "printf 'naru:%s' \"$0\" | base64 -w0", &daemon.push_token()])
        .output()
        .unwrap();
    let head = format!(
        "POST /git/page.git/git-receive-pack HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {}\r\n\
         Content-Type: application/x-git-receive-pack-request\r\nContent-Length: 350\r\n\r\n00",
        text(&login)
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    until("the push", &|| backends() > 0);
    drop(stream);
    until("the end of the push", &|| backends() == 0);
    page.write("a", "c");
    page.commit("the repository takes pushes as before");
    page.push();
    daemon.destroy();
}
