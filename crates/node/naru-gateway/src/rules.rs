//! Reading rules: which listeners take a route, what a match says, what cannot be honoured. Pure.

use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;
use std::time::Duration;

use crate::certificates::is_tls;
use crate::hosts::Scheme;
use crate::table::{PathMatch, items};

/// Longest schedule: weights are kept exact up to this sum and to a hundredth of a per cent beyond.
const SCHEDULE_MAX: u64 = 10_000;

/// The host names under which a route is served by a Gateway: both sides must want them. An empty name is
/// any. The error is a reason of the Gateway API.
pub fn attach(
    gateway: &Value,
    parent: &Value,
    wanted: &[&str],
    is_same_namespace: bool,
) -> Result<Vec<(Scheme, String)>, &'static str> {
    let listeners = items(&gateway["spec"]["listeners"]).iter().filter(|listener| {
        let section = parent["sectionName"].as_str();
        let port = parent["port"].as_u64();
        section.is_none_or(|it| listener["name"] == it)
            && port.is_none_or(|it| listener["port"].as_u64() == Some(it))
            && (listener["protocol"] == "HTTP" || is_tls(listener))
    });
    let listeners: Vec<&Value> = listeners.collect();
    if listeners.is_empty() {
        return Err("NoMatchingParent");
    }
    let allowed = listeners
        .into_iter()
        .filter(|it| is_same_namespace || it["allowedRoutes"]["namespaces"]["from"] == "All");
    let allowed: Vec<&Value> = allowed.collect();
    if allowed.is_empty() {
        return Err("NotAllowedByListeners");
    }
    let mut names = Vec::new();
    for listener in allowed {
        let own = listener["hostname"].as_str().unwrap_or_default();
        let scheme = if is_tls(listener) { Scheme::Https } else { Scheme::Http };
        if wanted.is_empty() {
            names.push((scheme, own.to_ascii_lowercase()));
        }
        names.extend(wanted.iter().filter_map(|it| Some((scheme, intersect(own, it)?))));
    }
    if names.is_empty() { Err("NoMatchingListenerHostname") } else { Ok(names) }
}

/// The narrower of two host names, if one contains the other.
pub fn intersect(a: &str, b: &str) -> Option<String> {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let contains = |wide: &str, narrow: &str| {
        wide.is_empty()
            || wide == narrow
            || wide.strip_prefix('*').is_some_and(|suffix| {
                let narrow = narrow.strip_prefix('*').unwrap_or(narrow);
                narrow.len() > suffix.len() && narrow.ends_with(suffix)
            })
    };
    if contains(&a, &b) {
        Some(b)
    } else if contains(&b, &a) {
        Some(a)
    } else {
        None
    }
}

/// What of a rule changes its meaning and is not implemented.
pub fn unsupported_in(rule: &Value) -> Option<String> {
    if rule.get("sessionPersistence").is_some() {
        return Some("sessionPersistence is not supported".into());
    }
    if items(&rule["backendRefs"]).iter().any(|it| !items(&it["filters"]).is_empty()) {
        return Some("filters of a backend are not supported".into());
    }
    if let Some(text) = rule["timeouts"]["request"].as_str()
        && duration(text).is_none()
    {
        return Some(format!("`{text}` is not a duration"));
    }
    items(&rule["matches"]).iter().find_map(|it| {
        let is_exact = |it: &Value| matches!(it["type"].as_str(), None | Some("Exact"));
        if items(&it["queryParams"]).iter().any(|it| !is_exact(it)) {
            return Some("matching query parameters other than exactly is not supported".into());
        }
        let kind = it["path"]["type"].as_str().unwrap_or("PathPrefix");
        if !matches!(kind, "PathPrefix" | "Exact") {
            return Some(format!("matching paths by {kind} is not supported"));
        }
        let header =
            items(&it["headers"]).iter().find(|it| !matches!(it["type"].as_str(), None | Some("Exact")));
        header.map(|it| {
            format!("matching headers by {} is not supported", it["type"].as_str().unwrap_or_default())
        })
    })
}

pub struct Match {
    pub path: PathMatch,
    pub method: Option<Method>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub query: Vec<(String, String)>,
}

/// None for a match that can never be true. Where something is unsupported the path still counts, so that
/// its share of requests gets the 500 and nobody else's answer.
pub fn read_match(it: &Value) -> Option<Match> {
    let value = it["path"]["value"].as_str().unwrap_or("/").to_owned();
    let path = match it["path"]["type"].as_str() {
        Some("Exact") => PathMatch::Exact(value),
        _ if value == "/" => PathMatch::Prefix(value),
        _ => PathMatch::Prefix(value.trim_end_matches('/').to_owned()),
    };
    let method = match it["method"].as_str() {
        Some(name) => Some(Method::from_bytes(name.as_bytes()).ok()?),
        None => None,
    };
    let mut headers = Vec::new();
    for header in items(&it["headers"]) {
        let name = HeaderName::from_bytes(header["name"].as_str()?.as_bytes()).ok()?;
        headers.push((name, HeaderValue::from_str(header["value"].as_str()?).ok()?));
    }
    let query = items(&it["queryParams"])
        .iter()
        .map(|it| Some((it["name"].as_str()?.to_owned(), it["value"].as_str()?.to_owned())));
    Some(Match { path, method, headers, query: query.collect::<Option<_>>()? })
}

/// `500ms`, `1m30s`, as the Gateway API writes durations.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|it: char| !it.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let end = rest[digits..].find(|it: char| it.is_ascii_digit()).map_or(rest.len(), |it| it + digits);
        total += match &rest[digits..end] {
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = &rest[end..];
    }
    (!text.is_empty()).then_some(total)
}

/// Turns of a smooth weighted round robin: after every full round each index came exactly as often as its
/// weight says, and as evenly as possible on the way.
pub fn schedule(weights: &[u64]) -> Box<[u16]> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let mut weights: Vec<u64> = weights.iter().map(|it| it / divisor).collect();
    let sum: u64 = weights.iter().sum();
    if sum > SCHEDULE_MAX {
        for it in &mut weights {
            // A share that is not zero stays.
            *it = if *it == 0 { 0 } else { (*it * SCHEDULE_MAX / sum).max(1) };
        }
    }
    let sum = i64::try_from(weights.iter().sum::<u64>()).unwrap_or(0);
    let mut current = vec![0i64; weights.len()];
    (0..sum)
        .map(|_| {
            for (value, weight) in current.iter_mut().zip(&weights) {
                *value += *weight as i64;
            }
            let best =
                (0..current.len()).max_by_key(|it| (current[*it], std::cmp::Reverse(*it))).unwrap_or(0);
            current[best] -= sum;
            best as u16
        })
        .collect()
}

pub fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
