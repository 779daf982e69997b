//! Jobs that misbehave: what they ask for too much of is refused to them, and to nobody else.

use naru_actions_tests::ended;
use naru_actions_tests::harness::{Daemon, Repository, text};

const WORKFLOW: &str = "on: push
jobs:
  kills:
    runs-on: ubuntu-latest
    steps:
      - run: kill -9 1; kill -9 -1
        continue-on-error: true
      - run: echo still here
  talks:
    runs-on: ubuntu-latest
    steps:
      - run: head -c 10000000 /dev/zero | tr '\\0' x; echo; echo after the line
  writes:
    runs-on: ubuntu-latest
    steps:
      - run: while true; do head -c 30000000 /dev/zero >> big; sleep 1; done
        timeout-minutes: 5
";

#[test]
fn a_job_that_kills_floods_or_fills_ends_alone() {
    let daemon = Daemon::start();
    let page = Repository::empty(&daemon, "page");
    let settings =
        "apiVersion: naru.dev/v1\nkind: RepositorySettings\nmetadata: {name: page}\nspec: {disk: 100Mi}\n";
    let applied = daemon.kubectl_with_input(&["apply", "-f", "-"], settings);
    assert!(applied.status.success(), "{}", text(&applied));
    page.write(".github/workflows/ci.yml", WORKFLOW);
    page.commit("hostile");
    page.push();
    let run = ended(&daemon, "page-main-1");
    let job = |key: &str| {
        let jobs = run["status"]["jobs"].as_array().unwrap();
        let job = jobs.iter().find(|it| it["key"] == key).unwrap();
        (job["phase"].as_str().unwrap().to_owned(), job["message"].as_str().unwrap_or_default().to_owned())
    };
    let shown = text(&daemon.naru(&["logs", "run/page-main-1"]));
    assert_eq!(job("kills").0, "Succeeded", "{run:#}");
    assert!(shown.contains("still here"));
    assert_eq!(job("talks").0, "Succeeded", "{run:#}");
    assert!(shown.contains("after the line") && shown.lines().all(|it| it.len() <= 70_000));
    let (phase, message) = job("writes");
    assert_eq!(phase, "Failed", "{run:#}");
    assert!(message.contains("workspace") && message.contains("exceeds the limit"), "{message}");
    assert_eq!(run["status"]["message"], "1 of 3 jobs failed");
    daemon.destroy();
}
