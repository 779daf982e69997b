//! `naru ci run` as people use it.

use super::{Project, steps};
use naru_actions_tests::harness::naru_binary;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

const WORKFLOW: &str = "on:
  push:
  workflow_dispatch: {inputs: {target: {default: nowhere}}}
jobs:
  build:
    runs-on: ubuntu-latest
    outputs: {list: '${{ steps.l.outputs.list }}'}
    steps:
      - uses: actions/checkout@v4
      - id: l
        run: echo 'list=[1, 2]' >> $GITHUB_OUTPUT; cat new; pwd
  test:
    needs: build
    runs-on: ubuntu-latest
    strategy: {matrix: {n: '${{ fromJSON(needs.build.outputs.list) }}'}}
    steps: [{run: 'echo combination ${{ matrix.n }} of ${{ strategy.job-total }}'}]
  called:
    needs: test
    uses: ./.github/workflows/called.yml
    with: {what: '${{ inputs.target || github.event_name }}'}
    secrets: inherit
  last:
    needs: called
    runs-on: ubuntu-latest
    steps: [{run: 'echo called said ${{ needs.called.outputs.said }}'}]
  other:
    runs-on: ubuntu-latest
    steps: [{run: 'echo other; exit 7'}]
";

const CALLED: &str = "on:
  workflow_call:
    inputs: {what: {type: string, required: true}}
    outputs: {said: {value: '${{ jobs.say.outputs.it }}'}}
jobs:
  say:
    runs-on: ubuntu-latest
    outputs: {it: '${{ steps.s.outputs.it }}'}
    steps: [{id: s, run: 'echo it=about-${{ inputs.what }} >> $GITHUB_OUTPUT; echo key ${{ secrets.KEY }}'}]
";

fn project() -> Project {
    let it = Project::new(&[
        (".github/workflows/ci.yml", WORKFLOW),
        (".github/workflows/called.yml", CALLED),
        ("old", "x"),
    ]);
    it.write("new", "not committed\n");
    it
}

#[test]
fn jobs_matrices_and_calls_run_on_uncommitted_work() {
    let project = project();
    let (log, code) = project.run(&["-j", "last", "-s", "KEY=hidden-value"]);
    assert_eq!(code, 0, "{log}");
    for want in
        ["not committed", "combination 1 of 2", "combination 2 of 2", "key ***", "called said about-push"]
    {
        assert!(log.contains(want), "`{want}` is missing in\n{log}");
    }
    assert!(!log.contains("[other]"), "{log}");
    let (log, code) = project.run(&[
        "--event",
        "workflow_dispatch",
        "--input",
        "target=moon",
        "-j",
        "last",
        "--matrix",
        "n:2",
    ]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("called said about-moon") && !log.contains("combination 1"), "{log}");
    let (log, code) = project.run(&["-j", "other"]);
    assert!(code == 1 && log.contains("failed with 7"), "{log}");
    // The work tree is as it was, and nothing is left behind.
    assert_eq!(project.shell("git status --porcelain"), "?? new\n");
}

#[test]
fn what_cannot_be_meant_is_said_before_anything_runs() {
    let project = project();
    for (args, want) in [
        (vec!["-j", "nope"], "no job is called `nope`; there are: build, called, last, other, test"),
        (vec!["--event", "release"], "no workflow here asks for the event `release`"),
        (vec!["--break", "x"], "needs a terminal"),
        (vec!["--input", "x"], "write --input NAME=VALUE"),
        (vec!["-s", "NOT_SET_ANYWHERE"], "the secret `NOT_SET_ANYWHERE` has no value"),
        (vec!["-W", "missing.yml"], "cannot read missing.yml"),
    ] {
        let (log, code) = project.run(&args);
        assert!(code == 1 && log.contains(want), "{args:?}: {log}");
        assert!(!log.contains("[build]"), "{log}");
    }
    project.write(".github/workflows/bad.yml", "on: push\njobs: {a: {runs-on: ubuntu-latest, stepz: []}}\n");
    let (log, code) = project.run(&[]);
    assert!(code == 1 && log.contains("bad.yml:2:") && !log.contains("[build]"), "{log}");
    let boxed = "on: push\njobs:\n  a: {runs-on: ubuntu-latest, container: alpine, steps: [{run: x}]}\n  \
                 b: {runs-on: ubuntu-latest, environment: prod, steps: [{run: echo ran}]}\n";
    project.write(".github/workflows/bad.yml", boxed);
    let (log, code) = project.run(&["-W", ".github/workflows/bad.yml"]);
    assert!(code == 1 && log.contains("`a` has `container`") && log.contains("bad.yml:3:"), "{log}");
    let (log, code) = project.run(&["-W", ".github/workflows/bad.yml", "-j", "b"]);
    assert!(code == 0 && log.contains("environment `prod`") && log.contains("  ran"), "{log}");
}

#[test]
fn secrets_and_variables_come_from_files_and_the_environment() {
    let workflow = steps(
        "      - run: echo \"${{ secrets.A }} ${{ secrets.B }} ${{ secrets.C }} ${{ vars.V }} $E ${{ github.event.x.y }}\" | rev\n",
    );
    let project = Project::new(&[(".github/workflows/ci.yml", &workflow)]);
    project.write("secrets", "# remark\nA=from-file\nexport B=\"quoted value\"\n");
    project.write("event.json", "{\"x\": {\"y\": \"deep\"}}");
    let args =
        ["--secret-file", "secrets", "-s", "C", "--var", "V=var", "--env", "E=env", "-e", "event.json"];
    let output = project.naru(&args).env("C", "from-env").output().unwrap();
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(log.contains("peed vne rav vne-morf eulav detouq elif-morf"), "{log}");
}

/// A terminal for a program, by Python's `pty`; what is typed waits for a prompt.
const TERMINAL: &str = r"
import os, pty, sys, select
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
typed = [it.encode() + b'\n' for it in os.environ['TYPE'].split('|') if it]
interrupt_after = os.environ.get('INTERRUPT_AFTER', '').encode()
seen = b''
while True:
    try:
        data = os.read(fd, 65536)
    except OSError:
        break
    if not data:
        break
    seen += data
    sys.stdout.buffer.write(data); sys.stdout.flush()
    if interrupt_after and interrupt_after in seen:
        interrupt_after = b''
        os.write(fd, b'\x03')
    if typed and seen.rstrip(b' ').endswith(b'$') and b'naru:' in seen[-80:]:
        seen = b''
        os.write(fd, typed.pop(0))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

fn on_a_terminal(project: &Project, args: &[&str], typed: &[&str]) -> (String, i32) {
    let mut command = project.command("timeout");
    command.args(["60", "python3", "-c", TERMINAL]).arg(naru_binary()).args(["ci", "run"]).args(args);
    let output = command.env("TYPE", typed.join("|")).env("TERM", "dumb").output().unwrap();
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap_or(-1))
}

#[test]
fn a_breakpoint_opens_a_shell_in_the_job_and_a_failure_as_well() {
    let workflow = steps(
        "      - run: echo one > made
      - id: mid
        env: {MINE: step-env}
        run: cat fixed; echo \"late $LATE\"
      - run: exit 5
",
    );
    let project = Project::new(&[(".github/workflows/ci.yml", &workflow)]);
    let (log, code) = on_a_terminal(
        &project,
        &["--break", "mid", "--on-failure", "shell"],
        &[
            "echo seen-$(cat made)-$MINE",
            "echo by-hand > fixed; echo LATE=yes >> $GITHUB_ENV",
            "exit",
            "echo why: $NARU_PAUSED",
            "exit",
        ],
    );
    assert_eq!(code, 1, "{log}");
    for want in ["seen-one-step-env", "by-hand", "late yes", "has failed", "a ", "failed"] {
        assert!(log.contains(want), "`{want}` is missing in\n{log}");
    }
    let (log, code) = on_a_terminal(&project, &["--break", "nonsense"], &[]);
    assert!(code == 1 && log.contains("no step is called `nonsense`"), "{log}");
}

#[test]
fn ctrl_c_ends_the_jobs_after_they_have_cleaned_up() {
    let workflow = steps(
        "      - run: echo begun; sleep 60
      - run: echo never
      - if: always()
        run: echo cleaned ${{ job.status }}
      - if: cancelled()
        run: echo was cancelled
",
    );
    let project = Project::new(&[(".github/workflows/ci.yml", &workflow)]);
    let mut child = project.naru(&[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut log = String::new();
    while !log.ends_with("begun\n") {
        assert!(reader.read_line(&mut log).unwrap() > 0, "{log}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    reader.read_to_string(&mut log).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{log}");
    assert!(log.contains("cleaned cancelled") && log.contains("was cancelled"), "{log}");
    assert!(!log.contains("never"), "{log}");
    let _ = std::io::stdout().flush();
}

/// On a terminal Ctrl-C reaches everything in the foreground; a step is asked once, and has its time.
#[test]
fn ctrl_c_on_a_terminal_asks_each_step_once() {
    let workflow = steps(
        "      - run: trap 'sleep 1; echo tidied; exit 1' INT TERM; echo \"has be\"gun; while true; do sleep 0.05; done\n",
    );
    let project = Project::new(&[(".github/workflows/ci.yml", &workflow)]);
    let mut command = project.command("timeout");
    command.args(["60", "python3", "-c", TERMINAL]).arg(naru_binary()).args(["ci", "run"]);
    let output =
        command.env("TYPE", "").env("TERM", "dumb").env("INTERRUPT_AFTER", "has begun").output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(130), "{log}");
    assert_eq!(log.matches("[a]   tidied").count(), 1, "{log}");
}
