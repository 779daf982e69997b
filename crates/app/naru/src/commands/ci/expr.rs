//! `naru ci expr`: what an expression is, without a run. One question is one JSON object with `expr` and,
//! if it asks for any, `contexts`; the answer is one line with `kind` and `value`, or `err` and `pos`.

use crate::error::{Context, Error, Result};
use naru_plan_dialects::github::expression::answer;
use std::io::Read;
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct ExprArgs {
    /// The expression without its braces; `-` reads questions from standard input, one JSON object each:
    /// `{"expr": "github.ref == 'x'", "contexts": {"github": {"ref": "X"}}}`.
    expression: String,
}

pub fn run(args: &ExprArgs) -> Result<ExitCode> {
    if args.expression != "-" {
        let question = serde_json::json!({"expr": args.expression}).to_string();
        println!("{}", answer(&question).map_err(Error::new)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).context(|| "cannot read standard input".into())?;
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
