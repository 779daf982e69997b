//! The value of a tree, with everything that it asks for taken from the contexts.

use super::CONTEXTS;
use super::json;
use super::tree::{Comparison, Expr, Function, Node};
use super::value::{Val, equal, folded, order};
use naru_plan::EvaluateError;
use std::borrow::Cow;
use std::cmp::Ordering;

type Computed<'a> = Result<Val<'a>, EvaluateError>;

fn fail<T>(at: usize, message: impl Into<String>) -> Result<T, EvaluateError> {
    Err(EvaluateError { message: message.into(), offset: at })
}

/// `root` holds the contexts by name.
pub fn compute<'a>(expr: &'a Expr, root: &Val<'a>) -> Computed<'a> {
    match &expr.node {
        Node::Null => Ok(Val::Null),
        Node::Bool(it) => Ok(Val::Bool(*it)),
        Node::Number(it) => Ok(Val::Number(*it)),
        Node::Text(it) => Ok(Val::Text(Cow::Borrowed(it))),
        Node::Context(name) => match root.property(name) {
            Some(it) => Ok(it),
            // A context that is known and has nothing to say here.
            None if CONTEXTS.contains(&name.as_str()) => Ok(Val::Null),
            None => fail(expr.at, unknown_context(name)),
        },
        Node::Not(it) => Ok(Val::Bool(!compute(it, root)?.is_true())),
        Node::And(items) | Node::Or(items) => {
            let stops_at = matches!(expr.node, Node::Or(_));
            let mut last = Val::Null;
            for item in items {
                last = compute(item, root)?;
                if last.is_true() == stops_at {
                    break;
                }
            }
            Ok(last)
        }
        Node::Compare(by, left, right) => {
            let (left, right) = (compute(left, root)?, compute(right, root)?);
            Ok(Val::Bool(compare(*by, &left, &right)))
        }
        Node::Star(of) => {
            let of = compute(of, root)?;
            Ok(Val::starred(match &of {
                Val::List(list) if list.starred => list.items.iter().flat_map(values).collect(),
                it => values(it),
            }))
        }
        Node::Index(of, key) => {
            // The variables of a job have names whose case counts.
            let exact = matches!(&of.node, Node::Context(name) if name == "env");
            let (of, key) = (compute(of, root)?, compute(key, root)?);
            Ok(match &of {
                Val::List(list) if list.starred => {
                    Val::starred(list.items.iter().filter_map(|it| enter(it, &key)).collect())
                }
                it if exact && !key.is_collection() => it.property_exact(&key.text()).unwrap_or(Val::Null),
                it => enter(it, &key).unwrap_or(Val::Null),
            })
        }
        Node::Call(function, args) => call(expr.at, *function, args, root),
    }
}

pub fn unknown_context(name: &str) -> String {
    let hint = naru_text::suggest(name, CONTEXTS.iter().copied());
    let hint = hint.map(|it| format!("; did you mean `{it}`?")).unwrap_or_default();
    format!("there is no context `{name}`{hint}")
}

/// What is in a collection.
fn values<'a>(of: &Val<'a>) -> Vec<Val<'a>> {
    match of.items() {
        Some(items) => items,
        None => of.entries().unwrap_or_default().into_iter().map(|(_, it)| it).collect(),
    }
}

/// One step into a list or an object.
fn enter<'a>(of: &Val<'a>, key: &Val<'_>) -> Option<Val<'a>> {
    let at = || {
        let at = key.number();
        (at >= 0.0 && at <= f64::from(i32::MAX)).then_some(at as usize)
    };
    match of {
        Val::Json(serde_json::Value::Array(items)) => items.get(at()?).map(Val::of),
        Val::List(list) => list.items.get(at()?).cloned(),
        it if !key.is_collection() => it.property(&key.text()),
        _ => None,
    }
}

fn compare(by: Comparison, left: &Val<'_>, right: &Val<'_>) -> bool {
    let is = |wanted| order(left, right) == Some(wanted) && !left.is_collection() && !right.is_collection();
    match by {
        Comparison::Equal => equal(left, right),
        Comparison::NotEqual => !equal(left, right),
        Comparison::Less => is(Ordering::Less),
        Comparison::Greater => is(Ordering::Greater),
        Comparison::LessOrEqual => equal(left, right) || is(Ordering::Less),
        Comparison::GreaterOrEqual => equal(left, right) || is(Ordering::Greater),
    }
}

fn call<'a>(at: usize, function: Function, args: &'a [Expr], root: &Val<'a>) -> Computed<'a> {
    let arg = |index: usize| compute(&args[index], root);
    Ok(match function {
        Function::Contains => {
            let (of, item) = (arg(0)?, arg(1)?);
            Val::Bool(match of.items() {
                Some(items) => items.iter().any(|it| equal(it, &item)),
                None => both_texts(&of, &item, |of, item| {
                    item.is_empty() || of.windows(item.len()).any(|it| it == item)
                }),
            })
        }
        Function::StartsWith => Val::Bool(both_texts(&arg(0)?, &arg(1)?, <[u16]>::starts_with)),
        Function::EndsWith => Val::Bool(both_texts(&arg(0)?, &arg(1)?, <[u16]>::ends_with)),
        Function::Format => {
            let template = arg(0)?;
            Val::Text(format(at, &template.text(), &args[1..], root)?.into())
        }
        Function::Join => {
            let of = arg(0)?;
            let separator = match args.get(1) {
                Some(it) => Some(compute(it, root)?).filter(|it| !it.is_collection()),
                None => None,
            };
            let separator = separator.as_ref().map_or(Cow::Borrowed(","), Val::text);
            Val::Text(match of.items() {
                Some(items) => items.iter().map(Val::text).collect::<Vec<_>>().join(&separator).into(),
                None if of.is_collection() => "".into(),
                None => of.text().into_owned().into(),
            })
        }
        Function::ToJson => Val::Text(json::write_pretty(&arg(0)?).into()),
        Function::FromJson => {
            let text = arg(0)?;
            match json::read(&text.text()) {
                Ok(it) => it,
                Err((message, byte)) => {
                    let shown: String = text.text().chars().take(60).collect();
                    return fail(at, format!("fromJSON: {message} at byte {byte} of `{shown}`"));
                }
            }
        }
        Function::Case => {
            for pair in args[..args.len() - 1].chunks(2) {
                match compute(&pair[0], root)? {
                    Val::Bool(true) => return compute(&pair[1], root),
                    Val::Bool(false) => {}
                    other => {
                        let kind = other.kind().name();
                        return fail(
                            pair[0].at,
                            format!("a condition of `case` must be a Boolean, this is {kind}"),
                        );
                    }
                }
            }
            compute(&args[args.len() - 1], root)?
        }
        Function::HashFiles => {
            let patterns = patterns(args, root)?;
            let hashes = root.property("__hashes");
            match hashes.and_then(|it| it.property(&patterns.join("\n"))) {
                Some(it) => it,
                None => return fail(at, "hashFiles is only available in a job's steps, where the files are"),
            }
        }
        Function::Always => Val::Bool(true),
        Function::Cancelled => Val::Bool(status_is(root, "cancelled")),
        Function::Success if args.is_empty() => Val::Bool(status_is(root, "success")),
        Function::Failure if args.is_empty() => Val::Bool(status_is(root, "failure")),
        // Of the named jobs alone.
        Function::Success | Function::Failure => {
            let mut results = Vec::new();
            for index in 0..args.len() {
                let need = root.property("needs").and_then(|it| it.property(&arg(index).ok()?.text()));
                results.push(need.and_then(|it| it.property("result")).unwrap_or(Val::Null));
            }
            let is = |it: &Val<'_>, word: &str| it.text() == word;
            Val::Bool(match function {
                Function::Success => results.iter().all(|it| is(it, "success")),
                _ => results.iter().any(|it| is(it, "failure")),
            })
        }
    })
}

/// The patterns that a call of `hashFiles` names.
pub fn patterns<'a>(args: &'a [Expr], root: &Val<'a>) -> Result<Vec<String>, EvaluateError> {
    args.iter().map(|it| Ok(compute(it, root)?.text().into_owned())).collect()
}

pub fn status_is(root: &Val<'_>, status: &str) -> bool {
    match root.property("__status") {
        Some(it) => it.text() == status,
        None => status == "success",
    }
}

/// Texts without regard to case; a collection is no text.
fn both_texts(a: &Val<'_>, b: &Val<'_>, holds: impl Fn(&[u16], &[u16]) -> bool) -> bool {
    !a.is_collection() && !b.is_collection() && holds(&folded(&a.text()), &folded(&b.text()))
}

fn format<'a>(at: usize, template: &str, args: &'a [Expr], root: &Val<'a>) -> Result<String, EvaluateError> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(sign) = rest.find(['{', '}']) {
        out.push_str(&rest[..sign]);
        rest = &rest[sign..];
        if let Some(after) = rest.strip_prefix("{{") {
            out.push('{');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("}}") {
            out.push('}');
            rest = after;
        } else if rest.starts_with('}') {
            return fail(
                at,
                format!("format: `}}` without its `{{` in `{template}`; write `}}}}` for the sign itself"),
            );
        } else {
            let end = rest.find('}').unwrap_or(rest.len());
            let inner = &rest[1..end];
            let digits = !inner.is_empty() && inner.bytes().all(|it| it.is_ascii_digit());
            let Some(index) = inner.parse::<u8>().ok().filter(|_| digits && end < rest.len()) else {
                return fail(
                    at,
                    format!("format: `{{` must be followed by a number and `}}` in `{template}`"),
                );
            };
            let Some(arg) = args.get(usize::from(index)) else {
                return fail(
                    at,
                    format!("format: `{template}` names argument {index}, {} are given", args.len()),
                );
            };
            out.push_str(&compute(arg, root)?.text());
            rest = &rest[end + 1..];
        }
    }
    out.push_str(rest);
    Ok(out)
}
