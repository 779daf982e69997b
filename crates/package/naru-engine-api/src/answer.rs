//! Small things that many answers need.

use std::collections::HashMap;
use std::io;

use axum::Json;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// The largest request that is JSON: a create request with the largest environment that Linux takes.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// A request's query, each name once: the last one counts, as in Docker.
#[derive(Debug, Clone, Default)]
pub struct Query(HashMap<String, String>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|it| !it.is_empty());
        Self(
            pairs
                .map(|it| {
                    let (name, value) = it.split_once('=').unwrap_or((it, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// Empty is not there.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|it| !it.is_empty())
    }

    pub fn is(&self, name: &str) -> bool {
        self.is_or(name, false)
    }

    /// Docker's reading of truth.
    pub fn is_or(&self, name: &str, default: bool) -> bool {
        match self.get(name) {
            None => default,
            Some(it) => !matches!(it.to_ascii_lowercase().as_str(), "0" | "no" | "false" | "none"),
        }
    }

    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(it) = self.get(name) else { return Ok(None) };
        it.parse().map(Some).map_err(|_| Error::bad(format!("invalid value for {name}: {it}")))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next().unwrap_or(b'%'), rest.next().unwrap_or(b'%')];
                let digits = std::str::from_utf8(&digits).unwrap_or("");
                bytes.extend(u8::from_str_radix(digits, 16).ok());
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The request's JSON; an empty body is `null`.
pub async fn json_body(body: Body) -> Result<Value> {
    let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|error| Error::bad(format!("cannot read the request: {error}")))?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| Error::bad(format!("invalid JSON: {error}")))
}

pub fn json(value: Value) -> Response {
    Json(value).into_response()
}

pub fn created(value: Value) -> Response {
    (StatusCode::CREATED, Json(value)).into_response()
}

pub fn nothing() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// A body that comes bit by bit; its head goes out at once.
pub fn streamed(
    content_type: &'static str,
    stream: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> Response {
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// One JSON document per line, as they come.
pub fn json_lines(stream: impl Stream<Item = Value> + Send + 'static) -> Response {
    let lines = stream.map(|it| {
        let mut line = it.to_string().into_bytes();
        line.extend_from_slice(b"\r\n");
        Ok(Bytes::from(line))
    });
    streamed("application/json", lines)
}

/// What a thread writes becomes a body; the thread waits for a slow client.
pub struct ToChannel(pub mpsc::Sender<io::Result<Bytes>>);

impl io::Write for ToChannel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

pub fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        // Commands may be one string.
        Value::String(one) => vec![one.clone()],
        _ => Vec::new(),
    }
}

/// True when a field is there and means something.
pub fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Bool(true) => true,
    }
}

/// Go's zero time, which Docker shows for "never".
pub const NEVER: &str = "0001-01-01T00:00:00Z";

pub fn now() -> String {
    nanos(Timestamp::now())
}

/// With nanoseconds, as Docker writes times.
pub fn nanos(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string()
}

/// `1700000000`, `1700000000.000000001` or a time as text.
pub fn parse_time(text: &str) -> Result<Timestamp> {
    let wrong = || Error::bad(format!("invalid time: {text}"));
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().map_err(|_| wrong())?;
    let nanos: i32 = format!("{fraction:0<9}").get(..9).and_then(|it| it.parse().ok()).ok_or_else(wrong)?;
    Timestamp::new(seconds, nanos).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_as_docker_reads_them() {
        let query = Query::parse(Some("a=1&b=0&c=&filters=%7B%22x%22%3A%5B%22y+z%22%5D%7D&n=7"));
        assert!(query.is("a") && !query.is("b") && !query.is("c") && query.is_or("d", true));
        assert_eq!(query.get("filters"), Some("{\"x\":[\"y z\"]}"));
        assert_eq!(query.number::<u64>("n").ok().flatten(), Some(7));
        assert!(query.number::<u64>("filters").is_err());
    }

    #[test]
    fn times_come_in_three_forms() {
        for (text, nanoseconds) in [
            ("1700000000", 1_700_000_000_000_000_000_i128),
            ("1700000000.5", 1_700_000_000_500_000_000),
            ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ] {
            assert_eq!(parse_time(text).ok().map(|it| it.as_nanosecond()), Some(nanoseconds), "{text}");
        }
        assert!(parse_time("yesterday").is_err());
    }
}
