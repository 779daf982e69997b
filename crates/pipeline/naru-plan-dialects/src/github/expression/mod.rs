//! `${{ ... }}`: GitHub's expressions. [`tree`] reads them, [`compute`] gives their value over contexts,
//! [`value`] holds the rules of coercion and comparison, [`json`] is `toJSON` and `fromJSON`; here are the texts
//! that they stand in. After GitHub's page "Evaluate expressions in workflows and actions" and the runner's code.

mod compute;
mod json;
mod tree;
mod value;

pub use tree::{DEPTH_MAX, Expr, FUNCTIONS, Function, LENGTH_MAX, Node, is_name};
pub use value::{Kind, Val, equal, number_text};

use naru_plan::{EvaluateError, Evaluator, Job};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// Every context that GitHub has, somewhere.
pub const CONTEXTS: &[&str] = &[
    "github", "env", "vars", "job", "jobs", "steps", "runner", "secrets", "strategy", "matrix", "needs",
    "inputs",
];

/// So many expressions are kept parsed. A workflow has some hundred; a service that evaluates foreign ones must
/// not grow.
const PARSED_MAX: usize = 2_000;

/// Evaluates with everything taken from the contexts. Two of them are ours: `__status` is `success`, `failure`,
/// `cancelled` or `skipped`, what the status functions ask for; `__hashes` is what `hashFiles` answers.
pub struct GithubEvaluator;

impl Evaluator for GithubEvaluator {
    fn text(&self, template: &str, contexts: &Value) -> Result<String, EvaluateError> {
        text_of(template, &Val::of(contexts))
    }

    fn condition(&self, condition: Option<&str>, contexts: &Value) -> Result<bool, EvaluateError> {
        let root = Val::of(contexts);
        let source = condition.unwrap_or_default().trim();
        if source.is_empty() {
            return Ok(compute::status_is(&root, "success"));
        }
        let parts = condition_parts(source)?;
        // Unless a status function is called, `success() &&` is implied.
        let asks = parts.iter().any(|it| matches!(it, Part::Expression { expr, .. } if asks_status(expr)));
        if !asks && !compute::status_is(&root, "success") {
            return Ok(false);
        }
        match parts.as_slice() {
            [Part::Expression { expr, offset }] => Ok(compute_at(expr, *offset, &root)?.is_true()),
            // Text around an expression makes a text of all of it, and a text that is not empty is true.
            _ => Ok(!text_of(source, &root)?.is_empty()),
        }
    }

    fn file_hashes(&self, template: &str, contexts: &Value) -> Result<Vec<Vec<String>>, EvaluateError> {
        if !template.to_ascii_lowercase().contains("hashfiles") {
            return Ok(Vec::new());
        }
        let root = Val::of(contexts);
        let mut all = Vec::new();
        // A condition needs no braces. Any other text without them is seldom an expression, and if it is one,
        // a hash too much does no harm.
        let bare = !template.contains("${{");
        let parts = if bare { condition_parts(template).unwrap_or_default() } else { parts(template)? };
        for part in parts {
            let Part::Expression { expr, .. } = part else { continue };
            expr.walk(&mut |it| {
                if let Node::Call(Function::HashFiles, args) = &it.node
                    // A branch that is not taken may hold patterns that cannot be computed.
                    && let Ok(patterns) = compute::patterns(args, &root)
                {
                    all.push(patterns);
                }
            });
        }
        Ok(all)
    }

    fn expand(&self, job: &Job, contexts: &Value) -> Result<Vec<Job>, EvaluateError> {
        super::settle::expand(job, contexts)
    }
}

/// One piece of a text that holds expressions.
pub enum Part<'a> {
    Text(&'a str),
    /// What stands between the braces, beginning at byte `offset` of the text.
    Expression {
        expr: Rc<Expr>,
        offset: usize,
    },
}

/// The pieces of a text, its expressions parsed.
pub fn parts(template: &str) -> Result<Vec<Part<'_>>, EvaluateError> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(start) = template[at..].find("${{").map(|it| it + at) {
        let body = start + 3;
        let end = end_of_expression(&template[body..])
            .ok_or_else(|| EvaluateError { message: "`${{` without its `}}`".into(), offset: start })?
            + body;
        if at < start {
            parts.push(Part::Text(&template[at..start]));
        }
        let expr =
            parsed(&template[body..end]).map_err(|it| EvaluateError { offset: it.offset + body, ..it })?;
        parts.push(Part::Expression { expr, offset: body });
        at = end + 2;
    }
    if at < template.len() {
        parts.push(Part::Text(&template[at..]));
    }
    Ok(parts)
}

/// As [`parts`], for a condition: without any braces all of it is one expression.
pub fn condition_parts(condition: &str) -> Result<Vec<Part<'_>>, EvaluateError> {
    if condition.contains("${{") {
        let mut parts = parts(condition)?;
        if parts.iter().filter(|it| matches!(it, Part::Expression { .. })).count() == 1 {
            let blank = |it: &Part<'_>| matches!(it, Part::Text(text) if text.trim().is_empty());
            if parts.iter().all(|it| blank(it) || matches!(it, Part::Expression { .. })) {
                parts.retain(|it| !blank(it));
            }
        }
        return Ok(parts);
    }
    if condition.trim().is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Part::Expression { expr: parsed(condition)?, offset: 0 }])
}

/// Whether an expression calls one of `success()`, `failure()`, `cancelled()`, `always()`.
fn asks_status(expr: &Expr) -> bool {
    let mut found = false;
    expr.walk(&mut |it| found |= matches!(it.node, Node::Call(function, _) if function.is_status()));
    found
}

fn text_of(template: &str, root: &Val<'_>) -> Result<String, EvaluateError> {
    if !template.contains("${{") {
        return Ok(template.to_owned());
    }
    let mut out = String::with_capacity(template.len());
    for part in parts(template)? {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Expression { expr, offset } => {
                out.push_str(&compute_at(&expr, offset, root)?.text());
            }
        }
    }
    Ok(out)
}

fn compute_at<'a>(expr: &'a Expr, offset: usize, root: &Val<'a>) -> Result<Val<'a>, EvaluateError> {
    compute::compute(expr, root).map_err(|it| EvaluateError { offset: it.offset + offset, ..it })
}

/// The tree of an expression, from those that were read before where possible.
fn parsed(source: &str) -> Result<Rc<Expr>, EvaluateError> {
    thread_local! {
        static PARSED: RefCell<HashMap<String, Rc<Expr>>> = RefCell::default();
    }
    PARSED.with_borrow_mut(|kept| {
        if let Some(expr) = kept.get(source) {
            return Ok(expr.clone());
        }
        let expr = Rc::new(tree::parse(source)?);
        if kept.len() >= PARSED_MAX {
            kept.clear();
        }
        kept.insert(source.to_owned(), expr.clone());
        Ok(expr)
    })
}

/// One expression without its braces, over contexts whose objects keep no order.
pub fn evaluate(source: &str, contexts: &Value) -> Result<Value, EvaluateError> {
    Ok(compute::compute(&*parsed(source)?, &Val::of(contexts))?.to_json())
}

/// Computes the values of one place of a file over the same contexts.
pub struct Evaluation<'a> {
    root: Val<'a>,
}

impl<'a> Evaluation<'a> {
    pub fn new(contexts: &'a Value) -> Self {
        Self { root: Val::of(contexts) }
    }

    /// With one context replaced by a value that has an order.
    pub fn with(self, name: &str, value: Val<'a>) -> Self {
        let entries = self.root.entries().unwrap_or_default();
        let mut entries: Vec<(String, Val<'a>)> = entries
            .into_iter()
            .filter(|(it, _)| *it != name)
            .map(|(it, value)| (it.to_owned(), value))
            .collect();
        entries.push((name.to_owned(), value));
        Self { root: Val::object(entries) }
    }

    /// What a text stands for: the value of the one expression that it is, which may be a list or an object, or
    /// else a text.
    pub fn value(&self, template: &str) -> Result<Val<'static>, EvaluateError> {
        let parts = parts(template)?;
        match parts.as_slice() {
            [Part::Expression { expr, offset }] => Ok(compute_at(expr, *offset, &self.root)?.into_owned()),
            _ => Ok(Val::Text(text_of(template, &self.root)?.into())),
        }
    }
}

/// What one expression is, as `naru ci expr` shows it: its kind, and its value on one line of JSON. Further
/// contexts than GitHub's may be given.
fn explain(source: &str, root: &Val<'_>) -> Result<(Kind, String), EvaluateError> {
    let expr = tree::parse(source)?;
    let mut unknown = None;
    expr.walk(&mut |it| {
        if let Node::Context(name) = &it.node
            && unknown.is_none()
            && !CONTEXTS.contains(&name.as_str())
            && root.property(name).is_none()
        {
            unknown = Some(EvaluateError { message: compute::unknown_context(name), offset: it.at });
        }
    });
    if let Some(error) = unknown {
        return Err(error);
    }
    let value = compute::compute(&expr, root)?;
    Ok((value.kind(), json::write_line(&value)))
}

/// Answers a question in JSON, `{"expr": ..., "contexts": {...}}`, with a line of JSON: `kind` and `value`, or
/// `err` and `pos`, the byte of the expression at which it is wrong. `Err` if it is no such question.
pub fn answer(question: &str) -> Result<String, String> {
    let question = json::read(question).map_err(|(what, at)| format!("not JSON: {what} at byte {at}"))?;
    let Some(Val::Text(source)) = question.property("expr") else {
        return Err("the question has no `expr`".into());
    };
    let contexts = question.property("contexts").unwrap_or(Val::Null);
    Ok(match explain(&source, &contexts) {
        Ok((kind, value)) => format!("{{\"kind\":\"{}\",\"value\":{value}}}", kind.name()),
        Err(error) => {
            let message = json::write_line(&Val::Text(error.message.into()));
            format!("{{\"err\":{message},\"pos\":{}}}", error.offset)
        }
    })
}

/// What a value looks like in text.
pub fn to_text(value: &Value) -> String {
    Val::of(value).text().into_owned()
}

/// Where the `}}` stands that ends an expression: the first one outside of a quoted string.
fn end_of_expression(text: &str) -> Option<usize> {
    let mut quoted = false;
    let bytes = text.as_bytes();
    (0..bytes.len()).find(|&i| {
        if bytes[i] == b'\'' {
            quoted = !quoted;
        }
        !quoted && bytes[i..].starts_with(b"}}")
    })
}

/// Checks that every expression in a text parses. The offset in the error is that in `template`.
pub fn check_text(template: &str) -> Result<(), EvaluateError> {
    parts(template).map(|_| ())
}

/// Checks that a condition (braces optional) parses.
pub fn check_condition(condition: &str) -> Result<(), EvaluateError> {
    condition_parts(condition).map(|_| ())
}

#[cfg(test)]
mod tests;
