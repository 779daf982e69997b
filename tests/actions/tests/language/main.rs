//! The language of workflows as a user meets it: `naru ci lint`, `naru ci expr`, `naru check`; and side by side with
//! GitHub's own parser and evaluator (the npm packages `@actions/workflow-parser` and `@actions/expressions`).
//!
//! They need `cargo build -p naru` and what `scripts/setup.sh` installs; `runs` needs root, too.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod groups;
mod runs;

use naru_actions_tests::harness::naru_binary;
use naru_actions_tests::{node, packages};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const TABLE: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../crates/pipeline/naru-plan-dialects/src/github/expression/table.json"
));

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn fixtures() -> Vec<PathBuf> {
    let folder = here("fixtures/workflows/.github/workflows");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 20, "{files:?}");
    files
}

fn with_input(mut command: Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output
}

/// One value per line of what a program printed.
fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|it| serde_json::from_str(it).unwrap()).collect()
}

fn naru(args: &[&str]) -> Command {
    let mut command = Command::new(naru_binary());
    command.args(args);
    command
}

/// GitHub's own program of ours in this folder.
fn github(script: &str) -> Command {
    let mut command = Command::new(node());
    command.arg(here("tests/language").join(script)).arg(packages());
    command
}

fn lint(paths: &[&Path]) -> (bool, Vec<Value>) {
    let mut command = naru(&["ci", "lint", "--format", "json"]);
    let output = command.args(paths).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], output.status.success());
    (output.status.success(), answer["files"].as_array().unwrap().clone())
}

#[test]
fn expressions_are_what_github_makes_of_them() {
    let table: Vec<Value> = serde_json::from_str(TABLE).unwrap();
    let questions: String = table.iter().map(|it| format!("{it}\n")).collect();
    let ours = lines(&with_input(naru(&["ci", "expr", "-"]), &questions));
    let theirs = lines(&with_input(github("expressions.mjs"), TABLE));
    assert_eq!((ours.len(), theirs.len()), (table.len(), table.len()));
    for ((case, ours), theirs) in table.iter().zip(&ours).zip(&theirs) {
        let source = &case["expr"];
        assert_eq!(ours.get("kind"), case.get("kind"), "{source}: {ours}");
        assert_eq!(ours.get("pos"), case.get("pos"), "{source}: {ours}");
        // The evaluator of GitHub's editors differs from its runner here and there; the row says why.
        if case.get("differs").is_none() {
            assert_eq!(ours.get("kind"), theirs.get("kind"), "{source}: {ours} {theirs}");
            assert_eq!(ours.get("value"), theirs.get("value"), "{source}: {ours} {theirs}");
        }
    }
    let differing = table.iter().filter(|it| it.get("differs").is_some()).count();
    assert!(differing * 10 < table.len(), "{differing} of {} rows are not compared", table.len());
}

#[test]
fn one_expression_is_answered_on_the_command_line() {
    let output = naru(&["ci", "expr", "format('{0}', 1e20)"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"kind\":\"String\",\"value\":\"1E+20\"}\n");
    let question = json!({"expr": "a.*.b == 1 || nope", "contexts": {"a": []}});
    let pretty = serde_json::to_string_pretty(&question).unwrap();
    let answer = &lines(&with_input(naru(&["ci", "expr", "-"]), &pretty))[0];
    assert_eq!(answer, &json!({"err": "there is no context `nope`", "pos": 14}));
    let output = with_input(naru(&["ci", "expr", "-"]), "{\"expression\": 1}");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("the question has no `expr`"));
}

#[test]
fn workflows_of_many_kinds_are_read_as_github_reads_them() {
    let files = fixtures();
    let paths: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let (ok, ours) = lint(&paths);
    let findings: Vec<&Value> = ours
        .iter()
        .flat_map(|it| it["findings"].as_array().unwrap())
        .filter(|it| it["severity"] == "error")
        .collect();
    assert!(ok && findings.is_empty(), "{findings:#?}");
    let list: String = files.iter().map(|it| format!("{}\n", it.display())).collect();
    let theirs = lines(&with_input(github("workflows.mjs"), &list));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(theirs["errors"], json!([]), "{}", theirs["path"]);
        let mut graph: BTreeMap<String, Value> = BTreeMap::new();
        for job in ours["jobs"].as_array().unwrap() {
            let steps = job["steps"].as_array().unwrap().len();
            graph
                .entry(job["id"].as_str().unwrap().to_owned())
                .or_insert_with(|| json!({"id": job["id"], "needs": job["needs"], "steps": steps}));
        }
        let wanted: BTreeMap<String, Value> = theirs["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| (it["id"].as_str().unwrap().to_owned(), it.clone()))
            .collect();
        assert_eq!(graph, wanted, "{}", ours["file"]);
    }
}

#[test]
fn what_github_refuses_is_refused() {
    // Each slip is made in every workflow that has the words.
    let slips = [
        ("runs-on:", "run-on:"),
        ("steps:", "stesp:"),
        ("- run:", "- rnu:"),
        ("needs: ", "needs: nowhere-"),
        ("github.ref ", "githb.ref "),
        ("${{ matrix.", "${{ matrx."),
        ("hashFiles(", "hashFile("),
        ("fail-fast: false", "fail-fast: [no]"),
        ("if: always()", "if: secrets.X && always()"),
        ("contents: read", "contents: reed"),
        ("workflow_dispatch:", "workflow_dispach:"),
        ("- cron: \"", "- cron: \"99 "),
        ("type: choice", "type: option"),
        ("branches: [", "branchs: ["),
        ("runs-on: ubuntu-latest\n", "runs-on: ubuntu-latest\n    runs-on: ubuntu-latest\n"),
        ("steps:\n", "steps: {}\n    x:\n"),
        ("}}", "}"),
        ("timeout-minutes: 1", "timeout-minutes: soon1"),
        ("uses: actions/checkout@v4", "uses: actions/checkout@v4\n        run: x"),
    ];
    let scratch = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let folder = scratch.path().join(".github/workflows");
    std::fs::create_dir_all(&folder).unwrap();
    let mut made = Vec::new();
    for file in fixtures() {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, (from, to)) in slips.iter().enumerate() {
            if text.contains(from) {
                let path = folder.join(format!("{number}-{name}"));
                std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
                made.push(path);
            }
        }
        // So that calls find what they call.
        std::fs::write(folder.join(&name), text).unwrap();
    }
    assert!(made.len() > 100, "{}", made.len());
    let paths: Vec<&Path> = made.iter().map(PathBuf::as_path).collect();
    let (_, ours) = lint(&paths);
    let list: String = made.iter().map(|it| format!("{}\n", it.display())).collect();
    let theirs = lines(&with_input(github("workflows.mjs"), &list));
    let mut refused = 0;
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let errors: Vec<&Value> =
            ours["findings"].as_array().unwrap().iter().filter(|it| it["severity"] == "error").collect();
        if theirs["errors"] != json!([]) {
            assert!(!errors.is_empty(), "{}: GitHub says {}", ours["file"], theirs["errors"]);
            refused += 1;
        }
        for error in errors {
            assert!(error["line"].as_u64().unwrap() > 0 && error["column"].as_u64().unwrap() > 0, "{error}");
        }
    }
    assert!(refused > 80, "GitHub refuses {refused} of {}", made.len());
}

#[test]
fn lint_says_what_is_wrong_and_what_a_repository_needs() {
    let scratch = tempfile::Builder::new().prefix("naru-test-").tempdir().unwrap();
    let folder = scratch.path().join(".github/workflows");
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write(
        "ci.yml",
        "name: CI\non: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    environment: prod\n    steps:\n      - uses: some/tool@v1\n      - run: echo ${{ secrets.KEY }} ${{ github.head_ref }}\n  b:\n    uses: ./.github/workflows/gone.yml\n",
    );
    let output = naru(&["ci", "lint"]).arg(scratch.path()).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{shown}");
    for words in [
        "`./.github/workflows/gone.yml` cannot be read: there is no such file",
        "ci.yml:11:11",
        "`some/tool@v1` is not pinned",
        "ci.yml:8:15",
        "`github.head_ref` is text from outside",
        "ci.yml:9:",
        "CI: does not run",
        "environments  prod",
        "0 of 1 workflows run here",
        "secrets to set (`naru secret <repository> <name>`): KEY",
    ] {
        assert!(shown.contains(words), "want {words} in\n{shown}");
    }
    let action = scratch.path().join("tool");
    std::fs::create_dir_all(&action).unwrap();
    std::fs::write(action.join("action.yml"), "name: x\nruns: {using: composite, stesp: []}\n").unwrap();
    write("local.yml", "on: push\njobs: {a: {runs-on: linux, steps: [{uses: ./tool}]}}\n");
    let output = naru(&["ci", "lint"]).arg(folder.join("local.yml")).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && shown.contains("tool/action.yml:2:26"), "{shown}");
    std::fs::remove_file(folder.join("local.yml")).unwrap();
    write("gone.yml", "on: workflow_call\njobs: {c: {runs-on: gpu, steps: [{run: x}]}}\n");
    let file = folder.join("ci.yml");
    let output = naru(&["check"]).arg(&file).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("gone.yml:2:21: no machine here serves the label `gpu`"), "{shown}");
    let (_, files) = lint(&[&file]);
    assert_eq!(files[0]["jobs"][0]["steps"][0]["uses"], "some/tool@v1");
    let output = naru(&["ci", "lint", "--runner", "gpu"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let output = naru(&["check"]).arg(scratch.path()).output().unwrap();
    assert!(!output.status.success());
}
