//! The services from where they are used: a JavaScript action in a job's pod, vendored and bundled as the
//! official actions are, with nothing but what the job gives it.

use naru_actions_tests::harness::{Daemon, Repository, text};
use naru_actions_tests::{node, packages};
use std::path::Path;
use std::process::Command;

const ACTION: &str = "name: kit
inputs:
  call: {required: true}
  name: {default: dist}
  path: {default: dist}
runs: {using: node20, main: dist/index.mjs}
";

const WORKFLOW: &str = "on: push
permissions: {contents: read, actions: read, id-token: write}
env:
  GITHUB_TOKEN: ${{ github.token }}
jobs:
  build:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: mkdir dist && echo made in build > dist/a.txt
      - uses: test/kit@v1
        with: {call: upload}
      - uses: test/kit@v1
        with: {call: save, name: k-1}
      - uses: test/kit@v1
        with: {call: id}
      - uses: test/kit@v1
        with: {call: rest}
      - run: git ls-remote \"${GITHUB_SERVER_URL/:\\/\\//://x-access-token:$GITHUB_TOKEN@}/$GITHUB_REPOSITORY\" refs/heads/main
  use:
    needs: build
    runs-on: ubuntu-latest
    steps:
      - uses: test/kit@v1
        with: {call: download, path: from-build}
      - run: grep -q 'made in build' from-build/a.txt
      - uses: test/kit@v1
        with: {call: restore, name: k-2}
      - run: grep -q 'made in build' dist/a.txt
  closed:
    permissions: {}
    runs-on: ubuntu-latest
    steps:
      - uses: test/kit@v1
        id: id
        continue-on-error: true
        with: {call: id}
      - uses: test/kit@v1
        id: rest
        continue-on-error: true
        with: {call: rest}
      - run: test '${{ steps.id.outcome }} ${{ steps.rest.outcome }}' = 'failure failure'
";

#[test]
fn an_action_in_a_job_reaches_all_of_them() {
    let vendored = tempfile::tempdir().unwrap();
    let action = vendored.path().join("test/kit");
    std::fs::create_dir_all(&action).unwrap();
    std::fs::write(action.join("action.yml"), ACTION).unwrap();
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("kit.mjs");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/services/kit.mjs"), &source).unwrap();
    std::os::unix::fs::symlink(packages().join("node_modules"), work.path().join("node_modules")).unwrap();
    let mut bundle = Command::new(node());
    bundle.arg(packages().join("node_modules/esbuild/bin/esbuild")).arg(&source);
    bundle.args(["--bundle", "--platform=node", "--target=node20", "--format=esm", "--log-level=error"]);
    // CommonJS inside of a module asks for what modules do not have.
    let require = "import {createRequire as cr} from 'module'; const require = cr(import.meta.url);";
    bundle.arg(format!("--banner:js={require}"));
    bundle.arg(format!("--outfile={}", action.join("dist/index.mjs").display()));
    let bundled = bundle.output().unwrap();
    assert!(bundled.status.success(), "{}", text(&bundled));

    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let daemon = Daemon::start_in(dir, &["--actions-dir", &vendored.path().display().to_string()]);
    let repository = Repository::page(&daemon);
    std::fs::remove_file(repository.dir.path().join("naru.yaml")).unwrap();
    repository.write(".github/workflows/ci.yml", WORKFLOW);
    repository.commit("a workflow");
    let shown = repository.push();
    let run = daemon.get("runs").remove(0);
    assert_eq!(run["status"]["phase"], "Succeeded", "{shown}");
    for expected in [
        "answer of upload: true",
        "answer of save: true",
        "answer of id: repo:naru/page:ref:refs/heads/main naru/page/.github/workflows/ci.yml@refs/heads/main",
        "answer of rest: main with dist",
        &repository.head(),
        "answer of download: true",
        "answer of restore: k-1",
    ] {
        assert!(shown.contains(expected), "`{expected}` is missing: {shown}");
    }
    daemon.destroy();
}
