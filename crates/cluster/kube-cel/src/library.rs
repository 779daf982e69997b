//! The functions that Kubernetes adds to the language: lists, regular expressions, quantities, addresses.

use std::cmp::Ordering;
use std::sync::Arc;

use cel::extractors::This;
use cel::{Context, Env, ExecutionError, Value};

type Text = Arc<String>;
type List = Arc<Vec<Value>>;
type Answer<T> = Result<T, ExecutionError>;

pub(crate) fn environment() -> Env {
    let mut env = Env::stdlib();
    // Not `lists`: its `range` makes lists of any length.
    env.add_extension(cel::extensions::strings).expect("the extensions do not overlap");
    env.add_extension(cel::extensions::math).expect("the extensions do not overlap");
    env
}

pub(crate) fn extend(context: &mut Context<'_, '_>) {
    let _ = context.add_function("isSorted", |This(list): This<List>| -> Answer<bool> {
        Ok(list.windows(2).all(|it| order(&it[0], &it[1]) != Some(Ordering::Greater)))
    });
    let _ = context.add_function("sum", |This(list): This<List>| -> Answer<Value> { sum(&list) });
    let _ = context.add_function("min", |This(list): This<List>| extreme(&list, "min", Ordering::Less));
    let _ = context.add_function("max", |This(list): This<List>| extreme(&list, "max", Ordering::Greater));
    let _ = context.add_function("find", |This(text): This<Text>, pattern: Text| -> Answer<Text> {
        let found = regex(&pattern)?.find(&text).map_or("", |it| it.as_str()).to_string();
        Ok(Arc::new(found))
    });
    let _ = context.add_function("findAll", |This(text): This<Text>, pattern: Text| -> Answer<List> {
        let found = regex(&pattern)?;
        let found = found.find_iter(&text).map(|it| Value::String(Arc::new(it.as_str().to_string())));
        Ok(Arc::new(found.collect()))
    });
    let _ = context.add_function("isQuantity", |text: Text| -> Answer<bool> { Ok(amount(&text).is_some()) });
    let _ = context.add_function("quantity", |text: Text| -> Answer<f64> {
        amount(&text).ok_or_else(|| ExecutionError::function_error("quantity", "not a quantity"))
    });
    let _ = context.add_function("isGreaterThan", |This(a): This<f64>, b: f64| -> Answer<bool> { Ok(a > b) });
    let _ = context.add_function("isLessThan", |This(a): This<f64>, b: f64| -> Answer<bool> { Ok(a < b) });
    let _ = context.add_function("compareTo", |This(a): This<f64>, b: f64| -> Answer<i64> {
        Ok(a.partial_cmp(&b).map_or(0, |it| it as i64))
    });
    let _ = context.add_function("asApproximateFloat", |This(a): This<f64>| -> Answer<f64> { Ok(a) });
    let _ = context.add_function("asInteger", |This(a): This<f64>| -> Answer<i64> { Ok(a as i64) });
    let _ = context
        .add_function("isIP", |text: Text| -> Answer<bool> { Ok(text.parse::<std::net::IpAddr>().is_ok()) });
    let _ = context.add_function("isCIDR", |text: Text| -> Answer<bool> { Ok(is_cidr(&text)) });
    let _ = context.add_function("isURL", |text: Text| -> Answer<bool> { Ok(url(&text).is_some()) });
    let _ = context.add_function("url", |text: Text| -> Answer<Text> {
        url(&text).map(|_| text.clone()).ok_or_else(|| ExecutionError::function_error("url", "not a URL"))
    });
    for (name, part) in
        [("getScheme", 0), ("getHost", 1), ("getHostname", 2), ("getPort", 3), ("getEscapedPath", 4)]
    {
        let _ = context.add_function(name, move |This(text): This<Text>| -> Answer<Text> {
            Ok(Arc::new(url(&text).map(|it| it[part].clone()).unwrap_or_default()))
        });
    }
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    a.partial_cmp(b)
}

fn extreme(list: &[Value], name: &str, wanted: Ordering) -> Answer<Value> {
    let mut best = list
        .first()
        .ok_or_else(|| ExecutionError::function_error(name, format!("{name} called on empty list")))?;
    for item in list {
        if order(item, best) == Some(wanted) {
            best = item;
        }
    }
    Ok(best.clone())
}

fn sum(list: &[Value]) -> Answer<Value> {
    let overflow = || ExecutionError::function_error("sum", "integer overflow");
    if list.iter().any(|it| matches!(it, Value::Float(_))) {
        let all = list.iter().map(|it| match it {
            Value::Float(it) => *it,
            Value::Int(it) => *it as f64,
            _ => f64::NAN,
        });
        return Ok(Value::Float(all.sum()));
    }
    let mut total: i64 = 0;
    for item in list {
        match item {
            Value::Int(it) => total = total.checked_add(*it).ok_or_else(overflow)?,
            _ => return Err(ExecutionError::function_error("sum", "not a list of numbers")),
        }
    }
    Ok(Value::Int(total))
}

/// Its cost is bounded by the engine: no backtracking, and patterns of bounded size.
fn regex(pattern: &str) -> Answer<regex::Regex> {
    regex::RegexBuilder::new(pattern)
        .size_limit(1 << 20)
        .build()
        .map_err(|error| ExecutionError::function_error("find", error))
}

/// A quantity as a number.
fn amount(text: &str) -> Option<f64> {
    let end = text.find(|it: char| it.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024f64,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        _ => 10f64.powi(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some(number.parse::<f64>().ok()? * factor)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let widest = match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|it| it <= widest)
}

/// Scheme, host with port, host, port, path.
fn url(text: &str) -> Option<[String; 5]> {
    let (scheme, rest) = text.split_once("://")?;
    if scheme.is_empty() || !scheme.bytes().all(|it| it.is_ascii_alphanumeric() || b"+-.".contains(&it)) {
        return None;
    }
    let rest = rest.split(['?', '#']).next().unwrap_or("");
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let host = authority.rsplit('@').next().unwrap_or("");
    if host.is_empty() || host.contains(char::is_whitespace) {
        return None;
    }
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|it| it.is_ascii_digit()) => (name, port),
        _ => (host, ""),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    Some([scheme, host, name, port, path].map(String::from))
}
