//! Expressions of workflows: how long one takes once it was read, over contexts as a push has them. Peer: the
//! evaluator of GitHub's own npm package, its tree read once too.

use super::measure::{self, median};
use super::{Bench, Goal, Line, Result};
use crate::root;
use serde_json::{Value, json};
use std::process::{Command, Stdio};

const ROUNDS: usize = 5;
const TIMES: u32 = 200_000;
/// A thousand in a millisecond.
const GOAL_MICROSECONDS: f64 = 1.0;

/// As workflows have them: a condition, a key of a cache, a look into a list.
const EXPRESSIONS: &[&str] = &[
    "github.event_name == 'push' && startsWith(github.ref, 'refs/tags/v') && !contains(github.ref, '-rc')",
    "format('{0}-{1}-{2}', runner.os, matrix.toolchain, matrix.features || 'default')",
    "contains(github.event.commits.*.id, 'c7') || needs.build.outputs.version == '1.2.3'",
];

fn contexts() -> Value {
    let commits: Vec<Value> = (0..10).map(|it| json!({"id": format!("c{it}"), "message": "text"})).collect();
    json!({
        "github": {
            "event_name": "push", "ref": "refs/tags/v1.2.3", "sha": "0".repeat(40), "actor": "somebody",
            "repository": "owner/name", "event": {"commits": commits, "pusher": {"name": "somebody"}},
        },
        "runner": {"os": "Linux", "arch": "X64"},
        "matrix": {"toolchain": "stable", "features": ""},
        "needs": {"build": {"result": "success", "outputs": {"version": "1.2.3"}}},
    })
}

pub fn run(bench: &mut Bench) -> Result<Vec<Line>> {
    let packages = root().join(".tools/actions");
    let has_peer = packages.join("node_modules/@actions/expressions").exists();
    let node = measure::version("node", "node", "--version").filter(|_| has_peer);
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut own = 0.0;
        for expression in EXPRESSIONS {
            let question = json!({"expr": expression, "contexts": contexts()});
            own += microseconds(
                Command::new(&bench.naru).args(["ci", "expr", "--times", &TIMES.to_string(), "-"]),
                &question,
            )?;
        }
        own /= EXPRESSIONS.len() as f64;
        ours.push(own);
        if node.is_none() {
            continue;
        }
        let mut peer = 0.0;
        for expression in EXPRESSIONS {
            let question = json!({"expr": expression, "contexts": contexts()});
            let script = root().join("xtask/src/bench/expressions.mjs");
            let mut command = Command::new("node");
            command.arg(script).arg(&packages).arg(TIMES.to_string());
            peer += microseconds(&mut command, &question)?;
        }
        peer /= EXPRESSIONS.len() as f64;
        theirs.push(peer);
        ratios.push(own / peer);
    }
    Ok(vec![Line {
        what: "one expression of a workflow".into(),
        unit: "us",
        ours: median(&ours),
        peer: node.map(|it| (format!("@actions/expressions, {it}"), median(&theirs))),
        ratios,
        goal: Goal::AtMost(GOAL_MICROSECONDS),
        note: format!("the mean of {} expressions, each {TIMES} times in one process", EXPRESSIONS.len()),
    }])
}

/// What a program says that one evaluation took.
fn microseconds(command: &mut Command, question: &Value) -> Result<f64> {
    use std::io::Write as _;
    let failed = |it: std::io::Error| format!("cannot run {command:?}: {it}");
    let mut child = Command::new(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().ok_or("a pipe was asked for")?;
    stdin.write_all(question.to_string().as_bytes()).map_err(failed)?;
    drop(stdin);
    let output = child.wait_with_output().map_err(failed)?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .map_err(|it| format!("{command:?} answered {}: {it}", String::from_utf8_lossy(&output.stdout)))?;
    answer["nanoseconds"]
        .as_f64()
        .map(|it| it / 1e3)
        .ok_or_else(|| format!("{command:?} gave no time: {answer}"))
}
