//! `${{ ... }}`: GitHub's expressions over JSON contexts. The grammar is parsed by the crate
//! `github-actions-expressions`; what the parts mean is here, after GitHub's page "Evaluate expressions
//! in workflows and actions" (loose comparison, truthiness, number and string coercion).

use github_actions_expressions::call::{Call, Function};
use github_actions_expressions::context::Context;
use github_actions_expressions::literal::Literal;
use github_actions_expressions::op::{BinExpr, BinOp, UnOp};
use github_actions_expressions::{Error as ParseError, Expr, SpannedExpr};
use naru_plan::{EvaluateError, Evaluator, Job};
use serde_json::Value;

/// Evaluates with everything taken from the contexts. One of them is ours: `__status` is `success`,
/// `failure` or `cancelled`, what the status functions ask for.
pub struct GithubEvaluator;

impl Evaluator for GithubEvaluator {
    fn text(&self, template: &str, contexts: &Value) -> Result<String, EvaluateError> {
        let mut out = String::with_capacity(template.len());
        for part in parts(template)? {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Expression { source, offset } => {
                    let value = evaluate(source, contexts)
                        .map_err(|it| EvaluateError { offset: it.offset + offset, ..it })?;
                    out.push_str(&to_text(&value));
                }
            }
        }
        Ok(out)
    }

    fn condition(&self, condition: Option<&str>, contexts: &Value) -> Result<bool, EvaluateError> {
        let Some(condition) = condition else { return Ok(status_is(contexts, "success")) };
        let source = strip_braces(condition);
        if source.is_empty() {
            return Ok(status_is(contexts, "success"));
        }
        let expr = parse(source)?;
        // Unless a status function is called, `success() &&` is implied.
        if !calls_status_function(&expr) && !status_is(contexts, "success") {
            return Ok(false);
        }
        Ok(truthy(&value_of(&expr, contexts)?))
    }

    fn file_hashes(&self, _: &str, _: &Value) -> Result<Vec<Vec<String>>, EvaluateError> {
        // `lower` refuses `hashFiles` yet.
        Ok(Vec::new())
    }

    fn expand(&self, job: &Job, _: &Value) -> Result<Vec<Job>, EvaluateError> {
        // `lower` leaves nothing open yet.
        Ok(vec![job.clone()])
    }
}

/// One expression without its braces.
pub fn evaluate(source: &str, contexts: &Value) -> Result<Value, EvaluateError> {
    value_of(&parse(source)?, contexts)
}

/// Checks that every expression in a text parses. The offset in the error is that in `template`.
pub fn check_text(template: &str) -> Result<(), EvaluateError> {
    for part in parts(template)? {
        if let Part::Expression { source, offset } = part {
            parse(source).map_err(|it| EvaluateError { offset: it.offset + offset, ..it })?;
        }
    }
    Ok(())
}

/// Checks that a condition (braces optional) parses.
pub fn check_condition(condition: &str) -> Result<(), EvaluateError> {
    match strip_braces(condition) {
        "" => Ok(()),
        source => parse(source).map(|_| ()),
    }
}

/// Whether an expression of the text asks for `hashFiles`, which needs files that only a job has.
pub fn calls_hash_files(template: &str) -> bool {
    fn asks(expr: &SpannedExpr<'_>) -> bool {
        match &expr.inner {
            Expr::Call(Call { func, args }) => *func == Function::HashFiles || args.iter().any(asks),
            Expr::BinExpr(BinExpr { lhs, rhs, .. }) => asks(lhs) || asks(rhs),
            Expr::UnExpr { expr, .. } | Expr::Index(expr) => asks(expr),
            Expr::Context(context) => context.parts.iter().any(asks),
            _ => false,
        }
    }
    parts(template).unwrap_or_default().iter().any(|part| match part {
        Part::Expression { source, .. } => parse(source).is_ok_and(|it| asks(&it)),
        Part::Text(_) => false,
    })
}

enum Part<'a> {
    Text(&'a str),
    Expression { source: &'a str, offset: usize },
}

fn parts(template: &str) -> Result<Vec<Part<'_>>, EvaluateError> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some(start) = template[at..].find("${{").map(|it| it + at) {
        let body = start + 3;
        let end = end_of_expression(&template[body..])
            .ok_or_else(|| EvaluateError { message: "`${{` without its `}}`".into(), offset: start })?
            + body;
        parts.push(Part::Text(&template[at..start]));
        parts.push(Part::Expression { source: &template[body..end], offset: body });
        at = end + 2;
    }
    parts.push(Part::Text(&template[at..]));
    Ok(parts)
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

fn strip_braces(condition: &str) -> &str {
    let text = condition.trim();
    match text.strip_prefix("${{").and_then(|it| it.strip_suffix("}}")) {
        // Only if one pair encloses everything: `${{ a }} && ${{ b }}` is two expressions.
        Some(inner) if !inner.contains("${{") => inner.trim(),
        _ => text,
    }
}

fn parse(source: &str) -> Result<SpannedExpr<'_>, EvaluateError> {
    Expr::parse(source).map_err(|error| EvaluateError {
        offset: match &error {
            ParseError::Syntax(it) => it.offset,
            _ => 0,
        },
        message: match &error {
            ParseError::Call(it) => format!("{error}: {it}"),
            _ => error.to_string(),
        },
    })
}

fn calls_status_function(expr: &SpannedExpr<'_>) -> bool {
    match &expr.inner {
        Expr::Call(Call { func, args }) => {
            matches!(func, Function::Success | Function::Always | Function::Cancelled | Function::Failure)
                || args.iter().any(calls_status_function)
        }
        Expr::BinExpr(BinExpr { lhs, rhs, .. }) => calls_status_function(lhs) || calls_status_function(rhs),
        Expr::UnExpr { expr, .. } | Expr::Index(expr) => calls_status_function(expr),
        Expr::Context(context) => context.parts.iter().any(calls_status_function),
        _ => false,
    }
}

fn status_is(contexts: &Value, status: &str) -> bool {
    contexts["__status"].as_str().unwrap_or("success") == status
}

fn error<T>(message: impl Into<String>) -> Result<T, EvaluateError> {
    Err(EvaluateError { message: message.into(), offset: 0 })
}

fn value_of(expr: &SpannedExpr<'_>, contexts: &Value) -> Result<Value, EvaluateError> {
    match &expr.inner {
        Expr::Literal(it) => Ok(match it {
            Literal::Number(it) => number(*it),
            Literal::String(it) => Value::String(it.to_string()),
            Literal::Boolean(it) => Value::Bool(*it),
            Literal::Null => Value::Null,
        }),
        Expr::Call(it) => call(it, contexts),
        Expr::Context(it) => context(it, contexts),
        Expr::Identifier(it) => Ok(property(contexts, it.as_str())),
        Expr::Index(it) => value_of(it, contexts),
        Expr::Star => error("`*` stands alone"),
        Expr::UnExpr { op: UnOp::Not, expr } => Ok(Value::Bool(!truthy(&value_of(expr, contexts)?))),
        Expr::BinExpr(BinExpr { lhs, op, rhs }) => {
            let left = value_of(lhs, contexts)?;
            match op {
                BinOp::And => return if truthy(&left) { value_of(rhs, contexts) } else { Ok(left) },
                BinOp::Or => return if truthy(&left) { Ok(left) } else { value_of(rhs, contexts) },
                _ => {}
            }
            let right = value_of(rhs, contexts)?;
            let order = compare(&left, &right);
            Ok(Value::Bool(match op {
                BinOp::Eq => equal(&left, &right),
                BinOp::Neq => !equal(&left, &right),
                BinOp::Gt => order == Some(std::cmp::Ordering::Greater),
                BinOp::Ge => order.is_some_and(|it| it.is_ge()),
                BinOp::Lt => order == Some(std::cmp::Ordering::Less),
                BinOp::Le => order.is_some_and(|it| it.is_le()),
                BinOp::And | BinOp::Or => unreachable!("answered above"),
            }))
        }
    }
}

/// `a.b[0].*.c`. After a star every step is taken in each of the values.
fn context(context: &Context<'_>, contexts: &Value) -> Result<Value, EvaluateError> {
    let Some((head, rest)) = context.parts.split_first() else { return Ok(Value::Null) };
    let mut values = vec![match &head.inner {
        Expr::Identifier(it) => property(contexts, it.as_str()),
        _ => value_of(head, contexts)?,
    }];
    let mut starred = false;
    for part in rest {
        let (star, key) = match &part.inner {
            Expr::Star => (true, Value::Null),
            Expr::Identifier(it) => (false, Value::String(it.as_str().to_owned())),
            Expr::Index(it) if matches!(it.inner, Expr::Star) => (true, Value::Null),
            Expr::Index(it) => (false, value_of(it, contexts)?),
            _ => (false, value_of(part, contexts)?),
        };
        if star {
            starred = true;
            values = values
                .into_iter()
                .flat_map(|it| match it {
                    Value::Array(items) => items,
                    Value::Object(map) => map.into_iter().map(|(_, value)| value).collect(),
                    _ => Vec::new(),
                })
                .collect();
        } else {
            values = values.iter().map(|it| index(it, &key)).collect();
            if starred {
                values.retain(|it| !it.is_null());
            }
        }
    }
    Ok(if starred { Value::Array(values) } else { values.pop().unwrap_or(Value::Null) })
}

fn index(value: &Value, key: &Value) -> Value {
    match (value, key) {
        (Value::Array(items), key) => {
            let at = to_number(key);
            if at >= 0.0 && at.is_finite() {
                items.get(at as usize).cloned().unwrap_or(Value::Null)
            } else {
                Value::Null
            }
        }
        (Value::Object(_), key) => property(value, &to_text(key)),
        _ => Value::Null,
    }
}

/// Property names compare without regard to case.
fn property(value: &Value, name: &str) -> Value {
    let Value::Object(map) = value else { return Value::Null };
    map.get(name)
        .or_else(|| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, it)| it))
        .cloned()
        .unwrap_or(Value::Null)
}

fn call(call: &Call<'_>, contexts: &Value) -> Result<Value, EvaluateError> {
    if call.func == Function::Case {
        let (pairs, last) = call.args.split_at(call.args.len() - 1);
        for pair in pairs.chunks(2) {
            if truthy(&value_of(&pair[0], contexts)?) {
                return value_of(&pair[1], contexts);
            }
        }
        return value_of(&last[0], contexts);
    }
    let args = call.args.iter().map(|it| value_of(it, contexts)).collect::<Result<Vec<_>, _>>()?;
    let lower = |it: &Value| to_text(it).to_lowercase();
    Ok(match call.func {
        Function::Contains => Value::Bool(match &args[0] {
            Value::Array(items) => items.iter().any(|it| equal(it, &args[1])),
            it => lower(it).contains(&lower(&args[1])),
        }),
        Function::StartsWith => Value::Bool(lower(&args[0]).starts_with(&lower(&args[1]))),
        Function::EndsWith => Value::Bool(lower(&args[0]).ends_with(&lower(&args[1]))),
        Function::Format => Value::String(format(&to_text(&args[0]), &args[1..])?),
        Function::Join => {
            let separator = args.get(1).map_or(",".into(), to_text);
            Value::String(match &args[0] {
                Value::Array(items) => items.iter().map(to_text).collect::<Vec<_>>().join(&separator),
                it => to_text(it),
            })
        }
        Function::ToJSON => {
            Value::String(serde_json::to_string_pretty(&args[0]).expect("a JSON value always serialises"))
        }
        Function::FromJSON => serde_json::from_str(&to_text(&args[0]))
            .or_else(|it| error(format!("fromJSON: the text is not JSON: {it}")))?,
        Function::HashFiles => return error("hashFiles is not supported yet"),
        Function::Success => Value::Bool(status_is(contexts, "success")),
        Function::Failure => Value::Bool(status_is(contexts, "failure")),
        Function::Cancelled => Value::Bool(status_is(contexts, "cancelled")),
        Function::Always => Value::Bool(true),
        Function::Case => unreachable!("answered above"),
    })
}

fn format(template: &str, args: &[Value]) -> Result<String, EvaluateError> {
    let mut out = String::new();
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' if chars.peek() == Some(&'{') => {
                chars.next();
                out.push('{');
            }
            '}' if chars.peek() == Some(&'}') => {
                chars.next();
                out.push('}');
            }
            '{' => {
                let digits: String = std::iter::from_fn(|| chars.next_if(char::is_ascii_digit)).collect();
                match (digits.parse::<usize>(), chars.next()) {
                    (Ok(at), Some('}')) => match args.get(at) {
                        Some(it) => out.push_str(&to_text(it)),
                        None => return error(format!("format: there is no argument {at}")),
                    },
                    _ => return error("format: `{` must be followed by a number and `}`"),
                }
            }
            '}' => return error("format: `}` without `{`; write `}}` for the sign itself"),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(it) => *it,
        Value::Number(it) => it.as_f64().is_some_and(|it| it != 0.0 && !it.is_nan()),
        Value::String(it) => !it.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

/// What a value looks like in text. Objects and lists show only their type, as on GitHub.
pub fn to_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(it) => it.to_string(),
        Value::Number(it) => match it.as_f64() {
            Some(it) if it.fract() == 0.0 && it.abs() < 1e15 => format!("{}", it as i64),
            Some(it) => it.to_string(),
            None => it.to_string(),
        },
        Value::String(it) => it.clone(),
        Value::Array(_) => "Array".into(),
        Value::Object(_) => "Object".into(),
    }
}

/// The number that a value counts as, NaN if none.
fn to_number(value: &Value) -> f64 {
    match value {
        Value::Null => 0.0,
        Value::Bool(it) => f64::from(u8::from(*it)),
        Value::Number(it) => it.as_f64().unwrap_or(f64::NAN),
        Value::String(it) => {
            let it = it.trim();
            match (it.strip_prefix("0x"), it.strip_prefix("0o")) {
                _ if it.is_empty() => 0.0,
                (Some(hex), _) => i64::from_str_radix(hex, 16).map_or(f64::NAN, |it| it as f64),
                (_, Some(octal)) => i64::from_str_radix(octal, 8).map_or(f64::NAN, |it| it as f64),
                _ => it.parse().unwrap_or(f64::NAN),
            }
        }
        Value::Array(_) | Value::Object(_) => f64::NAN,
    }
}

fn number(it: f64) -> Value {
    if it.fract() == 0.0 && it.abs() < 1e15 {
        Value::from(it as i64)
    } else {
        serde_json::Number::from_f64(it).map_or(Value::Null, Value::Number)
    }
}

/// Loose equality: same types compare as themselves (text without regard to case), different types as
/// numbers.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.to_lowercase() == b.to_lowercase(),
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Array(_) | Value::Object(_), _) | (_, Value::Array(_) | Value::Object(_)) => {
            std::ptr::eq(a, b)
        }
        _ => to_number(a) == to_number(b),
    }
}

fn compare(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => Some(a.to_lowercase().cmp(&b.to_lowercase())),
        _ => to_number(a).partial_cmp(&to_number(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn contexts() -> Value {
        json!({
            "github": {"ref": "refs/heads/main", "event": {"commits": [{"id": "a"}, {"id": "b"}]}},
            "env": {"N": "3", "EMPTY": ""},
            "needs": {"build": {"result": "success", "outputs": {"version": "1.2"}}},
            "__status": "success",
        })
    }

    #[test]
    fn expressions_follow_githubs_rules() {
        let cases = [
            ("github.ref == 'REFS/heads/main'", json!(true)),
            ("env.N > 2 && env.N < 4", json!(true)),
            ("env.EMPTY || 'default'", json!("default")),
            ("env.MISSING == 0", json!(true)),
            ("null == ''", json!(true)),
            ("true == 1", json!(true)),
            ("'abc' == 0", json!(false)),
            ("'' == 0", json!(true)),
            ("1 == '0x1'", json!(true)),
            ("contains('Hello', 'ELL')", json!(true)),
            ("contains(fromJSON('[1,2]'), 2)", json!(true)),
            ("join(github.event.commits.*.id, '-')", json!("a-b")),
            ("format('{{{0}}} {1}', 'x', 2)", json!("{x} 2")),
            ("needs.build.outputs['version']", json!("1.2")),
            ("fromJSON('{\"a\":[10,20]}').a[1]", json!(20)),
            ("case(false, 1, true, 2, 3)", json!(2)),
            ("!env.MISSING", json!(true)),
            ("startsWith(github.ref, 'refs/heads')", json!(true)),
        ];
        for (source, want) in cases {
            assert_eq!(evaluate(source, &contexts()).as_ref(), Ok(&want), "{source}");
        }
    }

    #[test]
    fn text_keeps_what_is_not_an_expression() {
        let text = |it: &str| GithubEvaluator.text(it, &contexts());
        assert_eq!(text("v${{ needs.build.outputs.version }}!").unwrap(), "v1.2!");
        assert_eq!(text("${{ '}}' }} $HOME").unwrap(), "}} $HOME");
        assert_eq!(text("a ${{ b").unwrap_err().offset, 2);
    }

    #[test]
    fn a_condition_implies_success_unless_it_asks_for_the_status() {
        let at = |status: &str, condition: Option<&str>| {
            let mut contexts = contexts();
            contexts["__status"] = json!(status);
            GithubEvaluator.condition(condition, &contexts).unwrap()
        };
        assert!(at("success", None));
        assert!(!at("failure", None));
        assert!(!at("failure", Some("github.ref == 'refs/heads/main'")));
        assert!(at("failure", Some("failure()")));
        assert!(at("failure", Some("${{ always() && true }}")));
        assert!(!at("success", Some("failure()")));
    }
}
