use crate::{dispatch, ended_by, logs, phase};
use naru_actions_tests::ended;
use naru_actions_tests::harness::{Daemon, Repository, text};

const CI: &str = "name: CI
on: push
jobs:
  list:
    runs-on: ubuntu-latest
    outputs: {names: '${{ steps.it.outputs.names }}'}
    steps:
      - id: it
        run: echo 'names=[\"ant\",\"bee\"]' >> $GITHUB_OUTPUT
  each:
    needs: list
    runs-on: ubuntu-latest
    strategy:
      matrix:
        name: ${{ fromJSON(needs.list.outputs.names) }}
    steps:
      - run: echo \"this is the ${{ matrix.name }}\"
  call:
    needs: each
    uses: ./.github/workflows/called.yml
    with: {greeting: hello, times: 2}
    secrets: inherit
  after:
    needs: call
    runs-on: ubuntu-latest
    steps:
      - run: echo \"the call said ${{ needs.call.outputs.said }}\"
";

const CALLED: &str = "on:
  workflow_call:
    inputs:
      greeting: {type: string, required: true}
      times: {type: number, default: 1}
    outputs:
      said: {value: '${{ jobs.say.outputs.said }}'}
jobs:
  say:
    runs-on: ubuntu-latest
    outputs: {said: '${{ steps.it.outputs.said }}'}
    steps:
      - id: it
        run: echo \"said=${{ inputs.greeting }} ${{ inputs.times }} times\" >> $GITHUB_OUTPUT
  check:
    needs: say
    runs-on: ubuntu-latest
    steps:
      - run: test '${{ needs.say.outputs.said }}' = 'hello 2 times'
";

const BY_HAND: &str = "name: By hand
on:
  workflow_dispatch:
    inputs:
      target: {type: choice, options: [staging, production], required: true}
      dry: {type: boolean, default: true}
  repository_dispatch:
    types: [ping]
jobs:
  go:
    runs-on: ubuntu-latest
    steps:
      - if: github.event_name == 'workflow_dispatch'
        run: echo \"to ${{ inputs.target }}, dry is ${{ inputs.dry == true }}\"
      - if: github.event_name == 'repository_dispatch'
        run: echo \"ping of ${{ github.event.client_payload.who }}\"
";

const AFTERWARDS: &str = "on:
  workflow_run:
    workflows: [CI]
    types: [completed]
jobs:
  tell:
    runs-on: ubuntu-latest
    steps:
      - run: echo \"${{ github.event.workflow_run.name }} ended with ${{ github.event.workflow_run.conclusion }}\"
";

const NIGHTLY: &str = "on:
  schedule:
    - cron: '* * * * *'
jobs:
  night:
    runs-on: ubuntu-latest
    steps:
      - run: echo \"due by ${{ github.event.schedule }}\"
";

const PULL: &str = "on:
  pull_request:
    branches: [main]
    paths: ['src/**', '!src/docs/**']
jobs:
  review:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - run: |
          echo \"number ${{ github.event.number }} from ${{ github.head_ref }} into ${{ github.base_ref }}\"
          cat src/fix main-only
";

#[test]
fn jobs_are_made_of_outputs_and_of_called_workflows_and_runs_of_other_runs_of_the_clock_and_by_hand() {
    let daemon = Daemon::start();
    let shop = Repository::empty(&daemon, "shop");
    shop.write(".github/workflows/ci.yml", CI);
    shop.write(".github/workflows/called.yml", CALLED);
    shop.write(".github/workflows/hand.yml", BY_HAND);
    shop.write(".github/workflows/after.yml", AFTERWARDS);
    shop.commit("workflows");
    shop.push();
    let run = ended(&daemon, "shop-main-1");
    assert_eq!(run["status"]["phase"], "Succeeded", "{run:#}\n{}", logs(&daemon, &run));
    let shown = logs(&daemon, &run);
    for line in ["this is the ant", "this is the bee", "the call said hello 2 times"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert_eq!(phase(&run, "call/check"), "Succeeded");
    let why = text(&daemon.naru(&["ci", "why", "shop-main-1"]));
    assert!(why.contains("because of a push on refs/heads/main") && why.contains("each (ant)"), "{why}");

    let after = ended_by(&daemon, "workflow_run");
    assert!(logs(&daemon, &after).contains("CI ended with success"), "{}", logs(&daemon, &after));

    let run = ended(&daemon, &dispatch(&daemon, &["shop", "hand.yml", "-f", "target=staging"]));
    assert!(logs(&daemon, &run).contains("to staging, dry is true"), "{run:#}");
    let run = ended(&daemon, &dispatch(&daemon, &["shop", "By hand", "-f", "target=moon"]));
    assert_eq!(run["status"]["phase"], "Refused", "{run:#}");
    let why = text(&daemon.naru(&["ci", "why", run["metadata"]["name"].as_str().unwrap()]));
    assert!(why.contains("target") && why.contains("hand.yml:"), "{why}");
    let ping = ["shop", "--event", "ping", "--payload", r#"{"who": "me"}"#];
    let run = ended(&daemon, &dispatch(&daemon, &ping));
    assert!(logs(&daemon, &run).contains("ping of me"), "{run:#}");

    // A time that has just passed while nobody looked is made up for.
    shop.write(".github/workflows/nightly.yml", NIGHTLY);
    shop.commit("every minute");
    shop.push();
    let ago = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(70);
    let status = format!(r#"{{"status":{{"scheduled":{{"* * * * *":"{ago}"}}}}}}"#);
    let patch = ["patch", "workflow", "shop-nightly", "--subresource=status", "--type=merge", "-p", &status];
    assert!(daemon.kubectl(&patch).status.success());
    let run = ended_by(&daemon, "schedule");
    assert!(logs(&daemon, &run).contains("due by * * * * *"), "{run:#}");
    daemon.destroy();
}

#[test]
fn a_pull_request_on_our_own_server_runs_on_what_the_merge_comes_to() {
    let daemon = Daemon::start();
    let shop = Repository::empty(&daemon, "shop");
    shop.write(".github/workflows/pull.yml", PULL);
    shop.commit("the start");
    shop.push();
    shop.git(&["checkout", "--quiet", "-b", "fix"]);
    shop.write("src/docs/page", "only words\n");
    shop.commit("words");
    shop.git(&["push", "--quiet", "naru", "HEAD:refs/for/main/words"]);
    let run = ended(&daemon, &pull(&daemon, "words"));
    assert_eq!(run["status"]["message"], "no workflow applies to this event", "{run:#}");

    shop.write("src/fix", "the fix\n");
    shop.commit("fix it");
    // Main goes on; what is tested is both together.
    shop.git(&["checkout", "--quiet", "main"]);
    shop.write("main-only", "of main\n");
    shop.commit("main goes on");
    shop.push();
    shop.git(&["push", "--quiet", "naru", "fix:refs/for/main/topic/fix"]);
    let run = ended(&daemon, &pull(&daemon, "topic/fix"));
    let shown = logs(&daemon, &run);
    assert_eq!(run["status"]["phase"], "Succeeded", "{shown}");
    for line in ["number 2 from topic/fix into main", "the fix", "of main"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert_eq!(run["spec"]["gitRef"], "refs/pull/2/merge");
    daemon.destroy();
}

/// The name of the run of a topic.
fn pull(daemon: &Daemon, topic: &str) -> String {
    daemon.wait_for("the pull request's run", "runs", |all| {
        let run = all.iter().find(|it| it["spec"]["headRef"] == topic)?;
        Some(run["metadata"]["name"].as_str()?.to_owned())
    })
}
