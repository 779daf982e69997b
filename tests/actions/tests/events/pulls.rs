//! Pull requests on our own server from their first push to their end.

use crate::logs;
use naru_actions_tests::ended;
use naru_actions_tests::harness::{Daemon, Repository, text};
use serde_json::Value;

const WORKFLOW: &str = "on:
  pull_request:
    types: [opened, synchronize, reopened, closed]
jobs:
  tell:
    runs-on: ubuntu-latest
    steps:
      - run: >-
          echo \"${{ github.event.action }} ${{ github.event.number }} ${{ github.event.pull_request.state }}
          merged=${{ github.event.pull_request.merged }} on ${{ github.ref }}\"
";

/// The log of the one run that tells of an action, once it has ended.
fn told(daemon: &Daemon, number: u64, action: &str, occasion: usize) -> (Value, String) {
    let name = daemon.wait_for(&format!("{action} of {number}"), "runs", |all| {
        let of = |it: &&Value| {
            it["spec"]["payload"]["action"] == action && it["spec"]["payload"]["number"] == number
        };
        let mut names: Vec<(&str, &str)> = (all.iter().filter(of))
            .filter_map(|it| Some((it["spec"]["pushedAt"].as_str()?, it["metadata"]["name"].as_str()?)))
            .collect();
        names.sort_unstable();
        names.get(occasion).map(|(_, it)| (*it).to_owned())
    });
    let run = ended(daemon, &name);
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    let shown = logs(daemon, &run);
    (run, shown)
}

#[test]
fn a_pull_request_is_opened_changed_closed_reopened_and_merged() {
    let daemon = Daemon::start();
    let shop = Repository::empty(&daemon, "shop");
    shop.write(".github/workflows/pull.yml", WORKFLOW);
    shop.commit("the start");
    shop.push();
    let pr = |args: &[&str]| {
        let output = daemon.naru(&[&["pr"], args].concat());
        (output.status.success(), text(&output))
    };
    shop.git(&["checkout", "--quiet", "-b", "fix"]);
    shop.write("fix", "1\n");
    shop.commit("fix it");
    shop.git(&["push", "--quiet", "naru", "HEAD:refs/for/main/fix"]);
    assert!(told(&daemon, 1, "opened", 0).1.contains("opened 1 open merged=false on refs/pull/1/merge"));
    shop.write("fix", "2\n");
    shop.commit("fix it better");
    shop.git(&["push", "--quiet", "naru", "HEAD:refs/for/main/fix"]);
    told(&daemon, 1, "synchronize", 0);
    let (_, shown) = pr(&["list", "shop"]);
    assert!(shown.contains("#1") && shown.contains("fix -> main  fix it better"), "{shown}");

    // Closed with git alone, opened again by a push; then both by command.
    shop.git(&["push", "--quiet", "naru", ":refs/for/main/fix"]);
    let (run, shown) = told(&daemon, 1, "closed", 0);
    assert!(shown.contains("closed 1 closed merged=false on refs/pull/1/merge"), "{shown}");
    assert_eq!(run["spec"]["deploy"], false);
    shop.git(&["push", "--quiet", "naru", "HEAD:refs/for/main/fix"]);
    told(&daemon, 1, "reopened", 0);
    assert!(pr(&["close", "shop", "1"]).0);
    told(&daemon, 1, "closed", 1);
    let (merged, said) = pr(&["merge", "shop", "1"]);
    assert!(!merged && said.contains("the pull request 1 is closed"), "{said}");
    assert!(pr(&["reopen", "shop", "1"]).0);
    told(&daemon, 1, "reopened", 1);

    // Merged by command: a push of main, and the end of the pull request on main.
    let (merged, said) = pr(&["merge", "shop", "1"]);
    assert!(merged && said.contains("merged as ") && said.contains("runs as shop-main-2"), "{said}");
    let (run, shown) = told(&daemon, 1, "closed", 2);
    assert!(shown.contains("closed 1 closed merged=true on refs/heads/main"), "{shown}");
    assert_eq!(run["spec"]["payload"]["pull_request"]["merge_commit_sha"], run["spec"]["sha"]);
    shop.git(&["checkout", "--quiet", "main"]);
    shop.git(&["pull", "--quiet", "naru", "main"]);
    let log = text(&shop.command(&["log", "-1", "--format=%s %an"]).output().unwrap());
    assert_eq!(log.trim(), "Merge pull request #1 from fix naru");

    // What is pushed to a branch merges what it has; the same topic asks for something new then.
    shop.git(&["checkout", "--quiet", "-b", "more"]);
    shop.write("more", "1\n");
    shop.commit("more");
    shop.git(&["push", "--quiet", "naru", "HEAD:refs/for/main/fix"]);
    told(&daemon, 2, "opened", 0);
    shop.git(&["push", "--quiet", "naru", "HEAD:main"]);
    assert!(told(&daemon, 2, "closed", 0).1.contains("merged=true on refs/heads/main"));

    // Two that do not fit together, and one that is squashed.
    for (number, topic) in [(3, "left"), (4, "right")] {
        shop.git(&["checkout", "--quiet", "-b", topic, "more"]);
        shop.write("fix", &format!("{topic}\n"));
        shop.commit(topic);
        shop.git(&["push", "--quiet", "naru", &format!("HEAD:refs/for/main/{topic}")]);
        told(&daemon, number, "opened", 0);
    }
    assert!(pr(&["merge", "shop", "3", "--squash"]).0);
    assert!(told(&daemon, 3, "closed", 0).1.contains("merged=true"));
    let (merged, said) = pr(&["merge", "shop", "4"]);
    assert!(!merged && said.contains("conflicts with main"), "{said}");
    let (_, shown) = pr(&["list", "shop", "--all"]);
    let states: Vec<&str> = shown.lines().filter_map(|it| it.split_whitespace().nth(1)).collect();
    assert_eq!(states, ["merged", "merged", "merged", "open"], "{shown}");
    daemon.destroy();
}
