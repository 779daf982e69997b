//! The same steps in a pod: actions from the daemon's directory, and what a step cannot get at.

use naru_actions_tests::harness::{Daemon, Repository};
use serde_json::Value;

const WORKFLOW: &str = "on: push
jobs:
  job:
    runs-on: ubuntu-latest
    outputs: {said: '${{ steps.node.outputs.said }}'}
    steps:
      - uses: actions/checkout@v4
      - name: curious
        run: |
          echo \"memory: $(cat /proc/1/environ /proc/1/mem 2>&1 | grep -c -i 'denied\\|error')\"
          if echo forged > /proc/1/fd/1; then echo spoke; fi 2>/dev/null
          env | grep -c '^ACTIONS_RUNTIME_TOKEN' || true
      - id: node
        uses: vendor/hello@v1
        with: {who: pod}
      - uses: ./local
      - run: echo \"::error file=index.html,line=1,title=Bad::in here\"; exit 1
";

const HELLO: &str = "name: hello\ninputs: {who: {}}\noutputs: {said: {}}\n\
                     runs: {using: node24, pre: pre.js, main: main.js, post: post.js}\n";
const HELLO_MAIN: &str = "console.log(`hello ${process.env.INPUT_WHO} token ${process.env.ACTIONS_RUNTIME_TOKEN ? 'given' : 'missing'}`);\n\
                          require('fs').appendFileSync(process.env.GITHUB_OUTPUT, 'said=yes\\n');\n";
const LOCAL: &str = "runs:\n  using: composite\n  steps:\n    - uses: vendor/second/deep@main\n    - {run: 'echo from ${{ github.action_path }}', shell: bash}\n";
const SECOND: &str =
    "runs: {using: composite, steps: [{run: 'echo second of ${{ github.repository }}', shell: sh}]}\n";

#[test]
fn actions_run_in_a_jobs_pod_whose_memory_is_closed_to_its_steps() {
    let dir = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let actions = dir.path().join("actions");
    for (path, content) in [
        ("vendor/hello/action.yml", HELLO),
        ("vendor/hello/main.js", HELLO_MAIN),
        ("vendor/hello/pre.js", "console.log('before all')\n"),
        ("vendor/hello/post.js", "console.log('after all')\n"),
        ("vendor/second/deep/action.yaml", SECOND),
    ] {
        let path = actions.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let daemon = Daemon::start_in(dir, &["--actions-dir", actions.to_str().unwrap()]);
    let repository = Repository::page(&daemon);
    repository.write(".github/workflows/ci.yml", WORKFLOW);
    repository.write("local/action.yml", LOCAL);
    repository.commit("actions");
    let log = repository.push();
    for want in [
        "action vendor/hello@v1 is ",
        "before all",
        "memory: 2",
        "hello pod token given",
        "second of naru/page",
        "from /workspace/page/local",
        "after all",
        "error: Bad: in here",
    ] {
        assert!(log.contains(want), "`{want}` is missing in\n{log}");
    }
    assert!(!log.contains("forged") && !log.contains("spoke"), "{log}");
    let run = daemon.kubectl(&["get", "run", "page-main-1", "-o", "json"]);
    let run: Value = serde_json::from_slice(&run.stdout).unwrap();
    let job = &run["status"]["jobs"][0];
    assert_eq!(job["phase"], "Failed", "{run:#}");
    let steps: Vec<&str> =
        job["steps"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(steps[5..], ["Pre Run vendor/hello@v1", "Post Run vendor/hello@v1"], "{steps:?}");
    assert_eq!(job["annotations"][0]["file"], "index.html", "{run:#}");
    assert_eq!(job["annotations"][0]["message"], "Bad: in here");
}

#[test]
fn an_action_that_is_nowhere_fails_its_job_with_what_to_do() {
    let daemon = Daemon::start();
    let repository = Repository::page(&daemon);
    repository.write(
        ".github/workflows/ci.yml",
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps: [{uses: nobody/nothing@v1}]\n",
    );
    repository.commit("an action");
    let log = repository.push();
    assert!(log.contains("the action `nobody/nothing@v1` cannot be had"), "{log}");
}

const DOCKER: &str = "inputs: {word: {default: none}}\noutputs: {out: {}}\n\
                      runs: {using: docker, image: Dockerfile, args: ['${{ inputs.word }}', two words], env: {OWN: 'w-${{ inputs.word }}'}}\n";
const ENTRY: &str = "#!/bin/busybox sh\necho \"args $1|$2 input $INPUT_WORD own $OWN home $HOME\"\n\
                     busybox pwd\nbusybox cat kept\necho out=from-inside >> $GITHUB_OUTPUT\necho made > made\n\
                     echo \"::add-mask::$INPUT_WORD-x\"\necho \"hidden $INPUT_WORD-x\"\n";

/// Docker's own command line on our Docker API: a Docker action of a local run is built and run there.
#[test]
fn a_docker_action_runs_where_there_is_a_docker() {
    let daemon = Daemon::start();
    let workflow = super::steps(
        "      - uses: actions/checkout@v4
      - id: d
        uses: ./action
        with: {word: hello}
      - run: echo \"out ${{ steps.d.outputs.out }} $(cat made)\"
",
    );
    let project = super::Project::new(&[
        (".github/workflows/ci.yml", &workflow),
        ("kept", "kept here\n"),
        ("action/action.yml", DOCKER),
        ("action/entry.sh", ENTRY),
        (
            "action/Dockerfile",
            "FROM scratch\nCOPY busybox /bin/busybox\nCOPY --chmod=755 entry.sh /entry.sh\nENV PATH=/bin\nENTRYPOINT [\"/entry.sh\"]\n",
        ),
    ]);
    std::fs::copy(naru_actions_tests::harness::busybox(), project.path("tree/action/busybox")).unwrap();
    let path = format!(
        "{}:{}",
        super::tool("bin").canonicalize().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let socket = format!("unix://{}", daemon.data_dir().join("docker.sock").display());
    let output = project.naru(&[]).env("PATH", path).env("DOCKER_HOST", socket).output().unwrap();
    let log = super::text(&output.stdout);
    assert!(output.status.success(), "{log}{}", super::text(&output.stderr));
    for want in [
        "args hello|two words input hello own w-hello home /github/home",
        "/github/workspace",
        "kept here",
        "hidden ***",
        "out from-inside made",
    ] {
        assert!(log.contains(want), "`{want}` is missing in\n{log}");
    }
}
