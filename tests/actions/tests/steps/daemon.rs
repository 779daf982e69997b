//! The same steps in a pod: actions from the daemon's directory, and what a step cannot get at.

use naru_actions_tests::harness::{Daemon, Repository, naru_binary};
use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Stdio};

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

const SECRET: &str = "tr4ce-M3<&>'\"x y/\\é";

/// One line per encoding, `name value`. The last ones are what a database of objects may hold by itself.
const LEAKS: &str = r#"
import base64, html, json, os, re, shlex, sys, urllib.parse
s = os.environ['S']
b = s.encode()
forms = {
    'plain': s, 'json': json.dumps(s), 'json-utf8': json.dumps(s, ensure_ascii=False), 'json-twice': json.dumps(json.dumps(s)),
    'html': html.escape(s), 'url': urllib.parse.quote(s), 'url-all': urllib.parse.quote(s, safe=''),
    'form': urllib.parse.quote_plus(s), 'url-lower': re.sub('%..', lambda it: it[0].lower(), urllib.parse.quote(s, safe='')), 'shell': shlex.quote(s),
    'hex': b.hex(), 'hex-upper': b.hex().upper(), 'hex-spaced': b.hex(' '), 'sql': s.replace("'", "''"),
    'csv': s.replace('"', '""'), 'backslashes': s.replace('\\', '\\\\'), 'xml': s.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;'),
    'base64': base64.b64encode(b).decode(), 'base64-url': base64.urlsafe_b64encode(b).decode(),
    'base64-within': base64.b64encode(b'user:' + b + b'@host').decode(),
    'base64-utf16': base64.b64encode(s.encode('utf-16-le')).decode(),
}
for name, form in forms.items():
    sys.stdout.buffer.write(f'{name} {form}\n'.encode())
"#;

#[test]
fn secrets_in_twenty_encodings_leave_no_trace() {
    let daemon = Daemon::start();
    let mut child = Command::new(naru_binary())
        .args(["--data-dir", &daemon.data_dir().display().to_string(), "secret", "page", "S"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(SECRET.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let repository = Repository::page(&daemon);
    repository.write("leak.py", LEAKS);
    repository.write(
        ".github/workflows/ci.yml",
        "on: push
jobs:
  job:
    runs-on: ubuntu-latest
    outputs: {o: '${{ steps.s.outputs.o }}'}
    steps:
      - uses: actions/checkout@v4
      - name: a name with ${{ secrets.S }} in it
        id: s
        env: {S: '${{ secrets.S }}'}
        run: |
          python3 leak.py
          python3 leak.py >> $GITHUB_STEP_SUMMARY
          echo \"::error file=index.html::$S\"
          echo \"o=$S\" >> $GITHUB_OUTPUT
",
    );
    repository.commit("leaks");
    let log = repository.push();
    let output = Command::new("python3").arg("-c").arg(LEAKS).env("S", SECRET).output().unwrap();
    let forms = String::from_utf8(output.stdout).unwrap();
    assert!(forms.lines().count() > 20, "{forms}");
    for line in forms.lines() {
        let (name, form) = line.split_once(' ').unwrap();
        assert!(log.contains(&format!("{name} ")), "{name} was not printed\n{log}");
        assert!(!log.contains(form), "{name} is shown\n{log}");
        let mut command = Command::new("grep");
        let found =
            command.args(["-rlaF", "--exclude-dir=git", "--", form]).arg(daemon.data_dir()).output().unwrap();
        let mut files = super::text(&found.stdout);
        // The object that keeps the secret holds it as Kubernetes does, in base64.
        if name.starts_with("base64") {
            files = files.lines().filter(|it| !it.contains("/api/objects.db")).collect();
        }
        assert!(files.is_empty(), "{name} stands in {files}");
    }
}

/// In an image of busybox alone, with neither git nor a C library.
#[test]
fn a_commit_is_checked_out_where_there_is_no_git() {
    let daemon = Daemon::start();
    let context = tempfile::Builder::new().prefix("naru-context-").tempdir().unwrap();
    let bin = context.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy(naru_actions_tests::harness::busybox(), bin.join("busybox")).unwrap();
    for program in ["sh", "cat", "ls"] {
        std::os::unix::fs::symlink("busybox", bin.join(program)).unwrap();
    }
    std::fs::write(context.path().join("Dockerfile"), "FROM scratch\nCOPY bin /bin\nENV PATH=/bin\n")
        .unwrap();
    let built = daemon.naru(&["build", "-q", "-t", "tiny:1", &context.path().display().to_string()]);
    assert!(built.status.success(), "{built:?}");
    let repository = Repository::page(&daemon);
    repository.write(
        ".github/workflows/ci.yml",
        "on: push
jobs:
  job:
    runs-on: ubuntu-latest
    container: 'tiny:1'
    steps:
      - {uses: actions/checkout@v4, with: {path: here}}
      - run: cat here/index.html; ls -a here
      - uses: ./here/local
",
    );
    repository.write(
        "local/action.yml",
        "runs: {using: composite, steps: [{run: 'echo composite in $PWD', shell: sh}]}\n",
    );
    repository.commit("no git");
    let log = repository.push();
    for want in
        ["without its history", "version 1", "naru.yaml", "composite in /workspace/page", "job succeeded"]
    {
        assert!(log.contains(want), "`{want}` is missing in\n{log}");
    }
}
