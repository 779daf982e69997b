use crate::{dispatch, logs, phase};
use naru_actions_tests::harness::{Daemon, Repository, text};
use naru_actions_tests::{ended, secret};

const DEPLOY: &str = "on: workflow_dispatch
jobs:
  build:
    runs-on: ubuntu-latest
    steps: [{run: 'true'}]
  deploy:
    needs: build
    runs-on: ubuntu-latest
    environment: production
    steps:
      - run: test \"$KEY\" = of-production && echo deployed
        env: {KEY: '${{ secrets.KEY }}'}
";

const SLOW: &str = "on: workflow_dispatch
concurrency: {group: '${{ github.workflow }}-x', cancel-in-progress: true}
jobs:
  work:
    runs-on: ubuntu-latest
    steps:
      - run: if [ \"${{ github.run_number }}\" = 2 ]; then echo begun; sleep 600; fi
      - if: always()
        run: echo \"cleaning after ${{ job.status }}\"
";

const FLAKY: &str = "on: workflow_dispatch
jobs:
  good:
    runs-on: ubuntu-latest
    outputs: {at: '${{ steps.it.outputs.at }}'}
    steps:
      - id: it
        run: echo \"at=attempt ${{ github.run_attempt }}\" >> $GITHUB_OUTPUT
  bad:
    needs: good
    runs-on: ubuntu-latest
    steps:
      - run: |
          echo \"good was of ${{ needs.good.outputs.at }}\"
          echo 'ok 1 - adds # time=1500ms'
          if test ${{ github.run_attempt }} = 2; then echo 'ok 2 - divides'; else echo 'not ok 2 - divides'; exit 1; fi
  last:
    needs: bad
    runs-on: ubuntu-latest
    steps: [{run: echo the last}]
";

const CALLER: &str = "on: workflow_dispatch
jobs:
  call:
    uses: ./.github/workflows/part.yml
  last:
    needs: call
    runs-on: ubuntu-latest
    steps: [{run: 'echo \"kept of ${{ needs.call.outputs.kept }}, done on ${{ needs.call.outputs.done }}\"'}]
";

const PART: &str = "on:
  workflow_call:
    outputs: {kept: {value: '${{ jobs.keeps.outputs.at }}'}, done: {value: '${{ jobs.breaks.outputs.at }}'}}
jobs:
  keeps:
    runs-on: ubuntu-latest
    outputs: {at: '${{ steps.it.outputs.at }}'}
    steps: [{id: it, run: 'echo \"at=attempt ${{ github.run_attempt }}\" >> $GITHUB_OUTPUT'}]
  breaks:
    runs-on: ubuntu-latest
    outputs: {at: '${{ steps.it.outputs.at }}'}
    steps:
      - run: test ${{ github.run_attempt }} = 2
      - {id: it, run: 'echo \"at=attempt ${{ github.run_attempt }}\" >> $GITHUB_OUTPUT'}
";

#[test]
fn deployments_wait_for_approval_newer_runs_replace_older_ones_and_what_failed_is_done_again() {
    let daemon = Daemon::start();
    let shop = Repository::empty(&daemon, "shop");
    shop.write(".github/workflows/deploy.yml", DEPLOY);
    shop.write(".github/workflows/slow.yml", SLOW);
    shop.write(".github/workflows/flaky.yml", FLAKY);
    shop.write(".github/workflows/caller.yml", CALLER);
    shop.write(".github/workflows/part.yml", PART);
    shop.commit("workflows");
    shop.push();

    // The second run of the repository is replaced by the third once it has begun.
    let slow = dispatch(&daemon, &["shop", "slow.yml"]);
    daemon.wait_for("the slow step", "runs", |all| {
        let run = all.iter().find(|it| it["metadata"]["name"] == slow.as_str())?;
        (run["status"]["jobs"][0]["steps"][0]["phase"] == "Running").then_some(())
    });
    let newer = dispatch(&daemon, &["shop", "slow.yml"]);
    let run = ended(&daemon, &slow);
    assert_eq!(run["status"]["phase"], "Cancelled", "{run:#}");
    assert!(run["status"]["message"].as_str().unwrap().contains("a newer run"), "{run:#}");
    assert!(logs(&daemon, &run).contains("cleaning after cancelled"), "{}", logs(&daemon, &run));
    assert_eq!(ended(&daemon, &newer)["status"]["phase"], "Succeeded");

    // Production asks Ann.
    secret(&daemon, &["shop", "KEY"], "of-the-repository");
    secret(&daemon, &["shop", "KEY", "--env", "production"], "of-production");
    let environment = "apiVersion: naru.dev/v1
kind: Environment
metadata: {name: shop-production}
spec: {repository: shop, name: production, reviewers: [ann]}
";
    let applied = daemon.kubectl_with_input(&["apply", "-f", "-"], environment);
    assert!(applied.status.success(), "{}", text(&applied));
    let deploy = dispatch(&daemon, &["shop", "deploy.yml"]);
    daemon.wait_for("the job that waits", "runs", |all| {
        let run = all.iter().find(|it| it["metadata"]["name"] == deploy.as_str())?;
        let message = run["status"]["jobs"][1]["message"].as_str()?;
        message.contains(&format!("naru ci approve {deploy} production")).then_some(())
    });
    let stranger = daemon.naru(&["ci", "approve", &deploy, "production", "--as", "bob"]);
    assert!(
        !stranger.status.success() && text(&stranger).contains("`bob` is no reviewer"),
        "{}",
        text(&stranger)
    );
    // The wait survives a crash.
    let mut daemon = daemon;
    daemon.kill();
    daemon.start_again();
    let approved = daemon.naru(&["ci", "approve", &deploy, "production", "--as", "ann"]);
    assert!(approved.status.success(), "{}", text(&approved));
    let run = ended(&daemon, &deploy);
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    assert!(logs(&daemon, &run).contains("deployed"), "{run:#}");

    let flaky = dispatch(&daemon, &["shop", "flaky.yml"]);
    let run = ended(&daemon, &flaky);
    assert_eq!(
        (phase(&run, "good"), phase(&run, "bad"), phase(&run, "last")),
        ("Succeeded", "Failed", "Skipped")
    );
    let again = daemon.naru(&["ci", "rerun", &flaky, "--failed"]);
    assert!(again.status.success(), "{}", text(&again));
    let run = ended(&daemon, &format!("{flaky}-again2"));
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    // What went well was taken over.
    assert!(logs(&daemon, &run).contains("good was of attempt 1"), "{}", logs(&daemon, &run));

    // Behind a call only what failed.
    let parts = dispatch(&daemon, &["shop", "caller.yml"]);
    assert_eq!(phase(&ended(&daemon, &parts), "call"), "Failed");
    assert!(daemon.naru(&["ci", "rerun", &parts, "--failed"]).status.success());
    let run = ended(&daemon, &format!("{parts}-again2"));
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}");
    let shown = logs(&daemon, &run);
    assert!(shown.contains("kept of attempt 1, done on attempt 2"), "{shown}");

    // What it said of its tests.
    let tests = text(&daemon.naru(&["ci", "tests", &flaky]));
    assert!(tests.contains("bad: 1 passed, 1 failed, 0 skipped\n  x divides"), "{tests}");
    assert!(tests.contains("1.50 s  adds") && tests.contains("  ~ divides"), "{tests}");

    // Somebody ends a run.
    let waiting = dispatch(&daemon, &["shop", "deploy.yml"]);
    daemon.wait_for("the job that waits", "runs", |all| {
        let run = all.iter().find(|it| it["metadata"]["name"] == waiting.as_str())?;
        run["status"]["jobs"][1]["message"].as_str().filter(|it| it.starts_with("waits")).map(|_| ())
    });
    assert!(daemon.naru(&["ci", "cancel", &waiting]).status.success());
    assert_eq!(ended(&daemon, &waiting)["status"]["phase"], "Cancelled");
    daemon.destroy();
}
