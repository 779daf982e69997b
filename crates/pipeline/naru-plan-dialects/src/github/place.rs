//! Where in a workflow an expression stands decides what it may ask for. The lists are those of GitHub's page
//! "Contexts reference" and of the schema `workflow-v1.0.json` of its runner.

use super::expression::{CONTEXTS, Expr, Function, Node};
use naru_plan::EvaluateError;

/// What a place of the file lets expressions use.
pub struct Allowed {
    /// How an error names the place.
    pub what: &'static str,
    pub contexts: &'static [&'static str],
    /// `success()` and the like.
    pub status: bool,
    pub hash_files: bool,
}

const fn place(what: &'static str, contexts: &'static [&'static str]) -> Allowed {
    Allowed { what, contexts, status: false, hash_files: false }
}

const BEFORE: &[&str] = &["github", "inputs", "vars"];
const NEEDS: &[&str] = &["github", "inputs", "vars", "needs"];
const MATRIX: &[&str] = &["github", "inputs", "vars", "needs", "strategy", "matrix"];

pub const NONE: Allowed = place("this place", &[]);
pub const RUN_NAME: Allowed = place("`run-name`", BEFORE);
pub const WORKFLOW_ENV: Allowed = place("the workflow's `env`", &["github", "inputs", "vars", "secrets"]);
pub const WORKFLOW_CONCURRENCY: Allowed = place("the workflow's `concurrency`", BEFORE);
pub const INPUT_DEFAULT: Allowed = place("an input's `default`", BEFORE);
pub const CALL_OUTPUT: Allowed = place("an output of `workflow_call`", &["github", "inputs", "vars", "jobs"]);
pub const JOB_IF: Allowed = Allowed { status: true, ..place("a job's `if`", NEEDS) };
pub const STRATEGY: Allowed = place("`strategy`", NEEDS);
pub const JOB: Allowed = place("this key of a job", MATRIX);
pub const CALL_SECRETS: Allowed =
    place("`secrets` of a call", &["github", "inputs", "vars", "needs", "strategy", "matrix", "secrets"]);
pub const JOB_ENV: Allowed =
    place("a job's `env`", &["github", "inputs", "vars", "needs", "strategy", "matrix", "secrets"]);
pub const JOB_DEFAULTS: Allowed =
    place("a job's `defaults`", &["github", "inputs", "vars", "needs", "strategy", "matrix", "env"]);
pub const CREDENTIALS: Allowed =
    place("`credentials`", &["github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "env"]);
pub const ENVIRONMENT_URL: Allowed = place(
    "`environment.url`",
    &["github", "inputs", "vars", "needs", "strategy", "matrix", "steps", "job", "runner", "env"],
);
/// Outputs of a job, and the variables of its containers.
pub const JOB_OUTPUT: Allowed = place(
    "this key of a job",
    &["github", "inputs", "vars", "needs", "strategy", "matrix", "secrets", "steps", "job", "runner", "env"],
);
pub const STEP: Allowed = Allowed { what: "a step", hash_files: true, ..JOB_OUTPUT };
pub const STEP_IF: Allowed = Allowed {
    status: true,
    hash_files: true,
    ..place(
        "a step's `if`",
        &["github", "inputs", "vars", "needs", "strategy", "matrix", "steps", "job", "runner", "env"],
    )
};

impl Allowed {
    /// The first thing in an expression that may not stand here.
    pub fn check(&self, expr: &Expr) -> Result<(), EvaluateError> {
        let mut wrong: Option<EvaluateError> = None;
        expr.walk(&mut |it| {
            let message = match &it.node {
                Node::Context(name) if !self.contexts.contains(&name.as_str()) => Some(self.no_context(name)),
                Node::Call(function, _) if function.is_status() && !self.status => {
                    Some(format!("`{}()` is only available in `if`, this is {}", function.name(), self.what))
                }
                Node::Call(Function::HashFiles, _) if !self.hash_files => {
                    Some(format!("`hashFiles` is only available in steps, this is {}", self.what))
                }
                _ => None,
            };
            if let (Some(message), None) = (message, &wrong) {
                wrong = Some(EvaluateError { message, offset: it.at });
            }
        });
        wrong.map_or(Ok(()), Err)
    }

    fn no_context(&self, name: &str) -> String {
        if CONTEXTS.contains(&name) {
            let known = if self.contexts.is_empty() {
                "there are none".to_owned()
            } else {
                format!("there are {}", self.contexts.join(", "))
            };
            return format!("there is no context `{name}` in {}; {known}", self.what);
        }
        let hint = naru_text::suggest(name, self.contexts.iter().copied());
        let hint = hint.map(|it| format!("; did you mean `{it}`?")).unwrap_or_default();
        format!("there is no context `{name}`{hint}")
    }
}
