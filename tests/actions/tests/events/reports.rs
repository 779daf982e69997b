//! Test reports, as pytest and node's own test runner leave them in a job's workspace.

use naru_actions_tests::ended;
use naru_actions_tests::harness::{Daemon, Repository, text};
use std::path::Path;
use std::process::Command;

const WORKFLOW: &str = "on: push
env: {PYTHONPATH: vendored}
jobs:
  python:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: python3 -m pytest -p no:cacheprovider -q --junitxml=out/junit.xml tests
        continue-on-error: true
  node:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: mkdir test-results; node --test --test-reporter=junit --test-reporter-destination=test-results/node.xml tests
";

const PYTEST: &str = "import os, pytest, time
def test_adds(): assert 1 + 1 == 2
def test_divides(): assert os.environ['GITHUB_SHA'] == ''
@pytest.mark.skip
def test_later(): pass
@pytest.mark.parametrize('what', ['a<b', 'c&d'])
def test_each(what): time.sleep(1.1 if what == 'a<b' else 0)
";

#[test]
fn junit_files_in_a_workspace_are_read_where_test_programs_leave_them() {
    let daemon = Daemon::start();
    let shop = Repository::empty(&daemon, "shop");
    let pytest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/python-pytest").canonicalize();
    // The workspace has what the repository has; where the machine keeps it is nothing that jobs see.
    let copied = Command::new("cp")
        .arg("-r")
        .arg(pytest.expect("run scripts/setup.sh first"))
        .arg(shop.dir.path().join("vendored"))
        .status();
    assert!(copied.unwrap().success());
    shop.write("tests/test_sum.py", PYTEST);
    shop.write("tests/sum.test.mjs", "import test from 'node:test';\ntest('sums', () => {});\n");
    // Part of the sources, and no result.
    shop.write("tests/data/junit.xml", "<testsuite><testcase name='of-the-sources'/></testsuite>");
    shop.write(".github/workflows/ci.yml", WORKFLOW);
    shop.commit("tests");
    shop.push();
    let run = ended(&daemon, "shop-main-1");
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    let summary = run["status"]["jobs"][0]["summary"].as_str().unwrap_or_default();
    for part in [
        "| `out/junit.xml` | 3 | 1 | 1 |",
        "**Failed**\n\n- `tests.test_sum.test_divides`",
        "**Slow**\n\n- `tests.test_sum.test_each[a<b]`",
    ] {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    let tests = text(&daemon.naru(&["ci", "tests", "shop-main-1"]));
    for line in [
        "python: 3 passed, 1 failed, 1 skipped",
        "  x tests.test_sum.test_divides",
        "node: 1 passed, 0 failed",
        "s  tests.test_sum.test_each[a<b]",
    ] {
        assert!(tests.contains(line), "{line}: {tests}");
    }
    assert!(!tests.contains("of-the-sources"), "{tests}");
    daemon.destroy();
}
