//! The parts of the loop, each as its user meets it.

use crate::harness::{Daemon, Repository, busybox, text};
use std::process::Command;

#[test]
fn a_push_is_tested_built_and_live_and_a_rollback_brings_the_whole_release_back() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    let shown = page.push();
    assert!(shown.contains("test succeeded"), "{shown}");
    assert!(shown.contains("page-r1 is live at http://page.test"), "{shown}");
    assert_eq!(daemon.curl("page.test", "/index.html"), (200, "version 1\n".into()));
    assert_eq!(daemon.curl("nobody.test", "/").0, 404);

    page.write("index.html", "version 2\n");
    page.commit("the second version");
    page.push();
    assert_eq!(daemon.curl("page.test", "/index.html").1, "version 2\n");

    let output = daemon.naru(&["rollback", "page"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(daemon.curl("page.test", "/index.html").1, "version 1\n");
    let release = daemon.wait_for_release(3);
    assert_eq!(release["spec"]["rollbackOf"], "page-r1");

    let status = text(&daemon.naru(&["status"]));
    assert!(status.contains("page-r3") && status.contains("1/1 pods ready"), "{status}");
    let walk = text(&daemon.naru(&["trace", "page-r2"]));
    assert!(walk.contains("push accepted: the second version") && walk.contains("promoted"), "{walk}");
    let figures = text(&daemon.naru(&["dora", "page"]));
    assert!(figures.contains("50 % (1 failed)"), "a rollback by hand is a failed change: {figures}");
    let out = text(&daemon.naru(&["exec", "page", "--", "/bin/busybox", "cat", "/www/index.html"]));
    assert_eq!(out, "version 1\n");
    let failed = daemon.naru(&["exec", "page", "--", "/bin/busybox", "sh", "-c", "exit 7"]);
    assert_eq!(failed.status.code(), Some(7), "{}", text(&failed));
    let top = text(&daemon.naru(&["top"]));
    assert!(top.contains("page-web-r3") && top.contains("MiB"), "{top}");
    daemon.destroy();
}

#[test]
fn a_workflow_passes_values_on_hides_secrets_and_skips_what_its_conditions_say() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    let mut secret = Command::new(crate::harness::naru_binary())
        .args(["--data-dir", &daemon.data_dir().display().to_string(), "secret", "page", "KEY"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut secret.stdin.take().unwrap(), b"hunter22-secret\n").unwrap();
    assert!(secret.wait().unwrap().success());
    page.write(
        ".github/workflows/ci.yml",
        "on: push
env: {COLOUR: green}
jobs:
  build:
    runs-on: ubuntu-latest
    outputs: {version: '${{ steps.v.outputs.version }}'}
    steps:
      - uses: actions/checkout@v4
      - id: v
        run: echo version=7 >> $GITHUB_OUTPUT
      - run: |
          echo key is ${{ secrets.KEY }}
          echo -n '${{ secrets.KEY }}' | base64
          echo \"uid $(id -u) pid $$ host $(hostname)\"
          test ! -e /root/.ssh && test ! -s /etc/shadow && echo no secrets of the machine
  many:
    needs: build
    runs-on: ubuntu-latest
    strategy: {matrix: {n: [1, 2], exclude: [{n: 2}], include: [{n: 5, extra: yes}]}}
    steps:
      - run: echo \"n=${{ matrix.n }} version=${{ needs.build.outputs.version }} $COLOUR\"
  never:
    if: github.ref == 'refs/heads/other'
    runs-on: ubuntu-latest
    steps: [{run: exit 1}]
  after:
    needs: [many, never]
    if: always()
    runs-on: ubuntu-latest
    defaults: {run: {shell: sh, working-directory: sub}}
    steps:
      - run: mkdir -p /workspace/page/sub
        working-directory: .
      - run: echo \"in $(basename $PWD) never was ${{ needs.never.result }}\"
      - run: exit 3
        continue-on-error: true
      - run: echo still here
",
    );
    page.commit("a richer workflow");
    let shown = page.push();
    for line in [
        "n=1 version=7 green",
        "n=5 version=7 green",
        "in sub never was skipped",
        "still here",
        "key is ***",
        "no secrets of the machine",
        "never was skipped: its condition does not hold",
    ] {
        assert!(shown.contains(line), "`{line}` is missing in\n{shown}");
    }
    assert!(!shown.contains("n=2"), "{shown}");
    let log = text(&daemon.naru(&["logs", "run/page-main-1"]));
    assert!(log.contains("key is ***"), "{log}");
    // Not in the terminal, not in the kept logs, not in an object's status: in the Secret alone.
    let found = Command::new("grep")
        .args(["-rlF", "hunter22", "."])
        .current_dir(daemon.data_dir().join("node"))
        .output();
    assert_eq!(text(&found.unwrap()), "", "the secret is on the disk");
    let objects = text(&daemon.kubectl(&["get", "runs,pods,events", "-A", "-o", "yaml"]));
    assert!(!objects.contains("hunter22"));
    daemon.destroy();
}

#[test]
fn a_failed_test_stops_the_change_and_says_so() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.write("index.html", "nothing to find here\n");
    page.commit("breaks the test");
    let shown = page.push();
    assert!(shown.contains("test failed") && shown.contains("1 of 1 jobs failed"), "{shown}");
    assert!(daemon.get("images").is_empty() && daemon.get("releases").is_empty());
    daemon.destroy();
}

#[test]
fn a_stock_client_pulls_the_built_image_and_pushes_one_of_its_own() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.push();
    let image = daemon.get("images").remove(0);
    let registry = daemon.http().replace("http://", "");
    let reference = image["status"]["reference"].as_str().unwrap().replace("naru.local/", "");
    let copy = daemon.dir.path().join("copy");
    let skopeo = |args: &[&str]| {
        let output =
            Command::new("skopeo").args(args).output().expect("skopeo is installed by scripts/setup.sh");
        assert!(output.status.success(), "skopeo {args:?}: {}", text(&output));
        text(&output)
    };
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{registry}/{reference}"),
        &format!("dir:{}", copy.display()),
    ]);
    let manifest = std::fs::read(copy.join("manifest.json")).unwrap();
    assert!(String::from_utf8_lossy(&manifest).contains("layers"));
    let token = daemon.push_token();
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds",
        &format!("naru:{token}"),
        &format!("dir:{}", copy.display()),
        &format!("docker://{registry}/mine/copy:1"),
    ]);
    let inspected = skopeo(&["inspect", "--tls-verify=false", &format!("docker://{registry}/mine/copy:1")]);
    assert!(inspected.contains("sha256:"), "{inspected}");
    daemon.destroy();
}

#[test]
fn the_second_build_of_an_unchanged_image_runs_nothing() {
    let daemon = Daemon::start();
    let page = Repository::page(&daemon);
    page.write("Dockerfile", "FROM rust:1 AS build\nRUN echo said by the build && mkdir /out && cp /bin/busybox /out/ && date > /out/when\nFROM scratch\nCOPY --from=build /out/busybox /bin/busybox\nCOPY --from=build /out/when /www/index.html\nCMD [\"/bin/busybox\", \"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n");
    page.commit("builds in a container");
    let shown = page.push();
    assert!(shown.contains("[image of web]   1: said by the build"), "{shown}");
    let log = text(&daemon.naru(&["logs", "run/page-main-1"]));
    assert!(log.contains("said by the build"), "{log}");
    let first = daemon.curl("page.test", "/index.html").1;
    page.commit("nothing changed");
    page.push();
    assert_eq!(daemon.curl("page.test", "/index.html").1, first);
    let mut images = daemon.get("images");
    images.sort_by_key(|it| it["metadata"]["name"].as_str().map(str::to_owned));
    assert_eq!(images[0]["status"]["digest"], images[1]["status"]["digest"]);
    assert_eq!(images[1]["status"]["cachedSteps"], images[1]["status"]["totalSteps"]);
    daemon.destroy();
}

#[test]
fn runs_on_labels_and_image_names_can_be_mapped() {
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let daemon = Daemon::start_in(dir, &["--runner", "tools=host", "--image", "debian:*=host"]);
    let page = Repository::page(&daemon);
    page.write(
        ".github/workflows/ci.yml",
        "on: push\njobs:\n  test:\n    runs-on: tools\n    steps: [{run: echo mapped}]\n",
    );
    page.commit("a label of our own");
    assert!(page.push().contains("mapped"));
    assert!(busybox().exists());
    daemon.destroy();
}
