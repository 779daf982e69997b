//! What the language says is what runs: matrices that another job computes, files that are called in, and values
//! that are only known then, on a daemon.

use naru_actions_tests::harness::{Daemon, Repository};
use serde_json::Value;

const CI: &str = r#"name: Language
run-name: Run of ${{ github.ref_name }}
on:
  push:
    branches: ["**", "!quiet"]
    paths: ["**", "!docs/**"]
env:
  LEVEL: workflow
jobs:
  plan:
    runs-on: ubuntu-latest
    outputs:
      list: ${{ steps.list.outputs.value }}
      label: ubuntu-latest
    steps:
      - id: list
        run: echo 'value=[{"name":"b","n":2},{"name":"a","n":10}]' >> "$GITHUB_OUTPUT"
  each:
    needs: plan
    name: Each ${{ matrix.it.name }} ${{ strategy.job-index }} of ${{ strategy.job-total }}
    strategy:
      matrix:
        it: ${{ fromJSON(needs.plan.outputs.list) }}
    runs-on: ${{ needs.plan.outputs.label }}
    timeout-minutes: ${{ fromJSON('5') }}
    steps:
      - run: test "${{ matrix.it.n > 5 }}" = "${{ matrix.it.name == 'A' }}"
      - run: test "$LEVEL/$OWN" = "workflow/${{ matrix.it.n }}"
        if: false
  systems:
    strategy: {matrix: {os: [ubuntu-latest, windows-latest]}}
    runs-on: ${{ matrix.os }}
    steps: [{run: 'true'}]
  call:
    needs: plan
    strategy: {matrix: {target: [x, y]}}
    uses: ./.github/workflows/called.yml
    with:
      target: ${{ matrix.target }}
      count: ${{ fromJSON(needs.plan.outputs.list)[0].n }}
    secrets: inherit
  last:
    needs: [each, call, systems]
    if: ${{ !cancelled() && needs.each.result == 'success' }}
    runs-on: ubuntu-latest
    outputs:
      said: ${{ needs.call.outputs.said }}
    steps:
      - run: test "${{ join(needs.*.result, ' ') }}" = "success success success"
      - if: needs.call.outputs.said == 'nothing'
        run: exit 1
"#;

const CALLED: &str = r#"on:
  workflow_call:
    inputs:
      target: {type: string, required: true}
      count: {type: number}
      loud: {type: boolean, default: true}
    outputs:
      said: {value: "${{ jobs.say.outputs.it }}"}
jobs:
  say:
    name: Say ${{ inputs.target }}
    if: inputs.count == 2 && inputs.loud
    runs-on: ubuntu-latest
    outputs: {it: "${{ steps.it.outputs.v }}"}
    steps:
      - id: it
        run: echo "v=${{ inputs.target }}-${{ toJSON(inputs.count) }}" >> "$GITHUB_OUTPUT"
  never:
    needs: say
    if: ${{ !inputs.loud }}
    runs-on: ubuntu-latest
    steps: [{run: exit 1}]
"#;

const OTHER: &str = "on: release\njobs: {a: {runs-on: a-mainframe, steps: [{run: x}]}}\n";

#[test]
fn what_the_language_says_is_what_runs() {
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let daemon = Daemon::start_in(dir, &["--runner", "windows-latest=skip"]);
    let repository = Repository::page(&daemon);
    repository.write(".github/workflows/ci.yml", CI);
    repository.write(".github/workflows/called.yml", CALLED);
    // What is wrong with a file that does not ask for a push keeps nobody from pushing.
    repository.write(".github/workflows/other.yml", OTHER);
    repository.commit("the language");
    let shown = repository.push();
    let run = daemon.get("runs").into_iter().next().unwrap();
    let status = &run["status"];
    assert_eq!(status["phase"], "Succeeded", "{shown}\n{status:#}");
    let told = status["diagnostics"].to_string();
    assert!(told.contains("no machine here serves the label `a-mainframe`"), "{told}");
    let jobs: Vec<(&str, &str)> = status["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["name"].as_str().unwrap(), it["phase"].as_str().unwrap()))
        .collect();
    for wanted in [
        ("plan", "Succeeded"),
        ("Each b 0 of 2", "Succeeded"),
        ("Each a 1 of 2", "Succeeded"),
        ("call (x) / Say x", "Succeeded"),
        ("call (y) / Say y", "Succeeded"),
        ("call (x) / never", "Skipped"),
        ("systems (ubuntu-latest)", "Succeeded"),
        ("systems (windows-latest)", "Skipped"),
        ("last", "Succeeded"),
    ] {
        assert!(jobs.contains(&wanted), "want {wanted:?} in {jobs:?}");
    }
    let last = status["jobs"].as_array().unwrap().iter().find(|it| it["name"] == "last").unwrap();
    assert_eq!(last["outputs"]["said"], Value::from("y-2"), "{last}");

    let left_out =
        status["jobs"].as_array().unwrap().iter().find(|it| it["name"] == "systems (windows-latest)");
    assert_eq!(left_out.unwrap()["message"], "`windows-latest` is left out here, by `--runner`");

    // A filter that does not let the push pass: nothing runs, and that is said.
    repository.write("docs/a.md", "text");
    repository.commit("docs only");
    let shown = repository.push();
    assert!(shown.contains("no workflow applies"), "{shown}");
    daemon.destroy();
}
