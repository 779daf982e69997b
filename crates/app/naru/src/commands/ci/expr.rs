//! `naru ci expr`: what an expression is, without a run. One question is one JSON object with `expr` and,
//! if it asks for any, `contexts`; the answer is one line with `kind` and `value`, or `err` and `pos`.

use crate::error::{Context, Error, Result};
use naru_plan_dialects::github::expression::{answer, evaluate};
use serde_json::{Value, json};
use std::io::Read;
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct ExprArgs {
    /// The expression without its braces; `-` reads questions from standard input, one JSON object each:
    /// `{"expr": "github.ref == 'x'", "contexts": {"github": {"ref": "X"}}}`.
    expression: String,
    /// Compute it so often, and say how long one took.
    #[arg(long, value_name = "N")]
    times: Option<u32>,
}

pub fn run(args: &ExprArgs) -> Result<ExitCode> {
    let mut input = String::new();
    if args.expression == "-" {
        std::io::stdin().read_to_string(&mut input).context(|| "cannot read standard input".into())?;
    } else {
        input = json!({"expr": args.expression}).to_string();
    }
    if let Some(times) = args.times {
        println!("{}", timed(&input, times)?);
        return Ok(ExitCode::SUCCESS);
    }
    // One question over several lines, or one on each.
    if let Ok(line) = answer(&input) {
        println!("{line}");
        return Ok(ExitCode::SUCCESS);
    }
    for question in input.lines().filter(|it| !it.trim().is_empty()) {
        println!("{}", answer(question).map_err(Error::new)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The value of one question, and the time that it takes once the expression was read.
fn timed(question: &str, times: u32) -> Result<Value> {
    let question: Value = serde_json::from_str(question).context(|| "the question is not JSON".into())?;
    let source = question["expr"].as_str().ok_or_else(|| Error::new("the question has no `expr`"))?;
    let failed = |it: naru_plan::EvaluateError| Error::new(it.message);
    let mut value = evaluate(source, &question["contexts"]).map_err(failed)?;
    let begin = std::time::Instant::now();
    for _ in 0..times {
        value = evaluate(source, &question["contexts"]).map_err(failed)?;
    }
    let nanoseconds = begin.elapsed().as_secs_f64() * 1e9 / f64::from(times.max(1));
    Ok(json!({"value": value, "nanoseconds": nanoseconds}))
}
