//! `docker logs`: the records of the node's log as Docker sends them.

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use jiff::Timestamp;

use crate::answer::{Query, parse_time, streamed};
use crate::attach::{MULTIPLEXED, RAW, frame};
use crate::container::Container;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// What of the log is wanted.
#[derive(Debug, Clone)]
struct Wanted {
    stdout: bool,
    stderr: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tty: bool,
}

/// Turns records into what clients read.
struct Lines {
    wanted: Wanted,
    /// Of each stream: its last record was no whole line.
    in_line: [bool; 2],
}

/// A record beyond the end of what was asked for.
struct Over;

impl Lines {
    fn push(&mut self, record: &[u8], out: &mut BytesMut) -> std::result::Result<(), Over> {
        let mut fields = record.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag), Some(text)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Ok(());
        };
        let number: u8 = if stream == b"stderr" { 2 } else { 1 };
        let time = std::str::from_utf8(time).unwrap_or_default();
        if self.wanted.since.is_some() || self.wanted.until.is_some() {
            let Ok(at) = time.parse::<Timestamp>() else { return Ok(()) };
            if self.wanted.until.is_some_and(|until| at > until) {
                return Err(Over);
            }
            if self.wanted.since.is_some_and(|since| at < since) {
                return Ok(());
            }
        }
        let wanted = if number == 1 { self.wanted.stdout } else { self.wanted.stderr };
        if !wanted {
            return Ok(());
        }
        let in_line = &mut self.in_line[usize::from(number) - 1];
        let mut line = Vec::with_capacity(text.len() + 32);
        if self.wanted.timestamps && !*in_line {
            line.extend_from_slice(time.as_bytes());
            line.push(b' ');
        }
        line.extend_from_slice(text);
        *in_line = tag.first() == Some(&b'P');
        if !*in_line {
            line.push(b'\n');
        }
        if self.wanted.tty {
            out.extend_from_slice(&line);
        } else {
            out.extend_from_slice(&frame(number, &line));
        }
        Ok(())
    }
}

pub async fn of_container(engine: &Engine, container: &Container, query: &Query) -> Result<Response> {
    let tty = container.has_terminal();
    let wanted = Wanted {
        stdout: query.is("stdout"),
        stderr: query.is("stderr"),
        timestamps: query.is("timestamps"),
        since: query.get("since").filter(|it| *it != "0").map(parse_time).transpose()?,
        until: query.get("until").filter(|it| *it != "0").map(parse_time).transpose()?,
        tty,
    };
    if !wanted.stdout && !wanted.stderr {
        return Err(Error::bad("Bad parameters: you must choose at least one stream"));
    }
    let tail = match query.get("tail") {
        None | Some("all") => None,
        // Anything else that is no number means all, as in Docker.
        Some(lines) => lines.parse::<u64>().ok(),
    };
    let kind = if tty { RAW } else { MULTIPLEXED };
    if container.state().attempt.is_empty() && !container.state().status.is_up() {
        // It never ran.
        return Ok(streamed(kind, futures::stream::empty()));
    }
    let follow = query.is("follow");
    let records = engine.node.logs(container.namespace(), container.pod_name(), follow, tail).await?;
    let lines = Lines { wanted, in_line: [false; 2] };
    let stream = records.scan((lines, Vec::new(), false), |(lines, rest, over), chunk| {
        let out = match chunk {
            _ if *over => None,
            Err(error) => Some(Err(error)),
            Ok(chunk) => {
                let mut out = BytesMut::new();
                rest.extend_from_slice(&chunk);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let record: Vec<u8> = rest.drain(..=end).collect();
                    if lines.push(&record[..end], &mut out).is_err() {
                        *over = true;
                        break;
                    }
                }
                Some(Ok(out.freeze()))
            }
        };
        std::future::ready(out)
    });
    let stream = stream.filter(|it| {
        let empty = it.as_ref().is_ok_and(Bytes::is_empty);
        std::future::ready(!empty)
    });
    Ok(streamed(kind, stream))
}

pub async fn logs(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let container = engine.container(&wanted)?;
    of_container(&engine, &container, &Query::parse(query.as_deref())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(wanted: Wanted, records: &[&str]) -> Vec<u8> {
        let mut out = BytesMut::new();
        let mut lines = Lines { wanted, in_line: [false; 2] };
        for record in records {
            if lines.push(record.as_bytes(), &mut out).is_err() {
                break;
            }
        }
        out.to_vec()
    }

    const ALL: Wanted =
        Wanted { stdout: true, stderr: true, timestamps: false, since: None, until: None, tty: true };
    const RECORDS: &[&str] = &[
        "2026-11-22T01:00:00.5Z stdout P half ",
        "2026-11-22T01:00:01Z stdout F a line",
        "2026-11-22T01:00:02Z stderr F oh",
    ];

    #[test]
    fn records_become_lines_again() {
        assert_eq!(lines(ALL, RECORDS), b"half a line\noh\n");
        let timed = Wanted { timestamps: true, stderr: false, ..ALL };
        assert_eq!(lines(timed, RECORDS), b"2026-11-22T01:00:00.5Z half a line\n");
        let framed = Wanted { tty: false, stdout: false, ..ALL };
        assert_eq!(lines(framed, RECORDS), [2, 0, 0, 0, 0, 0, 0, 3, b'o', b'h', b'\n']);
        let at = |second: i64| Some(Timestamp::new(1_795_309_200 + second, 0).unwrap());
        assert_eq!(lines(Wanted { since: at(2), ..ALL }, RECORDS), b"oh\n");
        assert_eq!(lines(Wanted { until: at(1), ..ALL }, RECORDS), b"half a line\n");
    }
}
