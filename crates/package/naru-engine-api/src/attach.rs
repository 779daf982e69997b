//! Streams over a connection that stops being HTTP: `attach`, `exec` and what both send.

use std::sync::PoisonError;

use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::answer::{Query, nothing, streamed};
use crate::container::{Container, Status};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::node::{AttachSpec, Session};

pub const RAW: &str = "application/vnd.docker.raw-stream";
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

const OUT: u8 = 1;
const ERROR: u8 = 2;
const CHUNK_BYTES: usize = 32 * 1024;
/// Chunks on their way to a slow client; the program waits.
const CHUNKS_MAX: usize = 8;

/// One chunk as a client without a terminal expects it: the stream's number, the length, the bytes.
pub fn frame(stream: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + payload.len());
    out.put_slice(&[stream, 0, 0, 0]);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
    out.freeze()
}

/// The bytes that leave a terminal without ending its program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// `ctrl-p,ctrl-q` unless said otherwise.
    pub fn parse(text: Option<&str>) -> Result<Self> {
        let text = text.unwrap_or("ctrl-p,ctrl-q");
        let key = |it: &str| match it.strip_prefix("ctrl-").map(str::as_bytes) {
            Some([letter @ b'a'..=b'z']) => Some(letter - b'a' + 1),
            Some([other]) if b"@[\\]^_".contains(other) => Some(other & 0x1f),
            None if it.len() == 1 => it.bytes().next(),
            _ => None,
        };
        let keys = text.split(',').map(key).collect::<Option<Vec<u8>>>();
        let keys = keys.ok_or_else(|| Error::bad(format!("Invalid detach keys ({text}) provided")))?;
        Ok(Self { keys, matched: 0 })
    }

    /// What of `input` goes on to the program, and whether the keys were typed.
    fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(input.len());
        for byte in input {
            if *byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if *byte == self.keys[0] {
                self.matched = 1;
            } else {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

/// What of a session a client wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
    pub detach: DetachKeys,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The program has ended.
    Ended,
    Detached,
    /// The client is gone.
    Broken,
}

/// Takes the connection, if the client offers it.
pub fn upgrade_of(request: &mut Request<Body>) -> Option<OnUpgrade> {
    let asks = request.headers().get(header::UPGRADE).is_some();
    asks.then(|| hyper::upgrade::on(request))
}

/// The answer after which the connection is a stream.
pub fn switched(tty: bool) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let kind = if tty { RAW } else { MULTIPLEXED };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    response
}

async fn read_into(
    mut from: impl AsyncRead + Unpin,
    stream: u8,
    wanted: bool,
    tty: bool,
    to: mpsc::Sender<Bytes>,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if !wanted {
            continue;
        }
        let chunk =
            if tty { Bytes::copy_from_slice(&buffer[..count]) } else { frame(stream, &buffer[..count]) };
        if to.send(chunk).await.is_err() {
            return;
        }
    }
}

/// Carries everything between a session and a connection until one of them ends. `first` is sent before.
pub async fn carry(
    session: &mut Session,
    connection: impl AsyncRead + AsyncWrite + Send + Unpin,
    wanted: Wanted,
) -> Left {
    let (mut reader, mut writer) = tokio::io::split(connection);
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_MAX);
    let tty = wanted.tty;
    let stdin = session.stdin.take().filter(|_| wanted.stdin);
    let mut detach = wanted.detach;
    let input = async {
        let Some(mut stdin) = stdin else {
            return std::future::pending::<Left>().await;
        };
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = match reader.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            let (typed, left) = match tty {
                true => detach.filter(&buffer[..count]),
                false => (buffer[..count].to_vec(), false),
            };
            if !typed.is_empty() && stdin.write_all(&typed).await.is_err() {
                break;
            }
            if left {
                return Left::Detached;
            }
        }
        // The input's end is not the output's.
        let _ = stdin.shutdown().await;
        drop(stdin);
        std::future::pending().await
    };
    let stderr = session.stderr.take();
    let stdout = &mut session.stdout;
    let second = sender.clone();
    let output = async {
        let errors = async {
            if let Some(stderr) = stderr {
                read_into(stderr, ERROR, wanted.stderr, tty, second).await;
            } else {
                drop(second);
            }
        };
        tokio::join!(read_into(stdout, OUT, wanted.stdout, tty, sender), errors);
        std::future::pending::<Left>().await
    };
    let send = async {
        while let Some(chunk) = chunks.recv().await {
            if writer.write_all(&chunk).await.is_err() || writer.flush().await.is_err() {
                return Left::Broken;
            }
        }
        let _ = writer.shutdown().await;
        Left::Ended
    };
    tokio::select! {
        left = input => left,
        left = output => left,
        left = send => left,
    }
}

/// Reads what is left of a session's output, so that its program never waits for a client that has gone.
pub async fn drain(session: &mut Session) {
    let _ = tokio::io::copy(&mut session.stdout, &mut tokio::io::sink()).await;
}

pub fn forget_terminal(engine: &Engine, id: &str) {
    engine.terminals.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
}

/// Joins a container, now or when it begins.
async fn join(engine: &Engine, container: &Container, spec: AttachSpec) -> Result<Waiting> {
    let (namespace, pod) = (container.namespace(), container.pod_name());
    match container.state().status {
        Status::Running | Status::Restarting => {
            Ok(Waiting::Now(engine.node.attach(namespace, pod, spec).await?))
        }
        Status::Paused => Err(Error::conflict(format!(
            "container {} is paused, unpause the container before attach",
            container.name
        ))),
        _ => Ok(Waiting::Later(engine.node.attach_early(namespace, pod, spec).await?)),
    }
}

enum Waiting {
    Now(Session),
    Later(tokio::sync::oneshot::Receiver<Result<Session, crate::node::NodeError>>),
}

pub async fn attach(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
    mut request: Request<Body>,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let container = engine.container(&wanted)?;
    let tty = container.has_terminal();
    let wanted = Wanted {
        stdin: query.is("stdin") && container.record.config["OpenStdin"] == true,
        stdout: query.is("stdout"),
        stderr: query.is("stderr"),
        tty,
        detach: DetachKeys::parse(query.get("detachKeys"))?,
    };
    let stream = query.is("stream");
    if query.is("logs") && !stream {
        return crate::logs::of_container(&engine, &container, &query).await;
    }
    let uid = crate::answer::text(&container.pod, "/metadata/uid").to_owned();
    let spec = AttachSpec { uid, stdin: wanted.stdin, tty };
    let waiting = join(&engine, &container, spec).await?;
    engine.tell_container("attach", &container, json!({}));
    let Some(upgrade) = upgrade_of(&mut request) else {
        let kind = if tty { RAW } else { MULTIPLEXED };
        return Ok(without_connection(engine, container, waiting, wanted, kind));
    };
    tokio::spawn(async move {
        let Ok(connection) = upgrade.await else { return };
        let connection = TokioIo::new(connection);
        serve(engine, container, waiting, connection, wanted).await;
    });
    Ok(switched(tty))
}

/// For clients that only read: the output is the body.
fn without_connection(
    engine: Engine,
    container: Container,
    waiting: Waiting,
    wanted: Wanted,
    kind: &'static str,
) -> Response {
    let (ours, theirs) = tokio::io::duplex(CHUNK_BYTES);
    tokio::spawn(serve(engine, container, waiting, theirs, wanted));
    streamed(kind, tokio_util::io::ReaderStream::new(ours))
}

async fn serve(
    engine: Engine,
    container: Container,
    waiting: Waiting,
    connection: impl AsyncRead + AsyncWrite + Send + Unpin,
    wanted: Wanted,
) {
    let run = container.life.run;
    let mut session = match waiting {
        Waiting::Now(session) => session,
        Waiting::Later(receiver) => {
            // It may be removed, or found impossible to begin, before anybody can join.
            let hopeless = engine.wait_for(container.id(), |now| match now {
                None => Some(()),
                Some(now) => {
                    (now.life.run > run && now.life.stopped && !now.state().status.is_up()).then_some(())
                }
            });
            tokio::select! {
                biased;
                session = receiver => match session {
                    Ok(Ok(session)) => session,
                    _ => return,
                },
                () = hopeless => return,
            }
        }
    };
    if let Some(resize) = &session.resize {
        let mut terminals = engine.terminals.lock().unwrap_or_else(PoisonError::into_inner);
        terminals.insert(container.id().to_owned(), resize.clone());
    }
    if carry(&mut session, connection, wanted).await == Left::Detached {
        engine.tell_container("detach", &container, json!({}));
    }
}

pub async fn resize(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    let container = engine.container(&wanted)?;
    let size = size_of(&query)?;
    if container.state().status != Status::Running {
        return Err(Error::conflict(format!("container {} is not running", container.id())));
    }
    let known = engine.terminals.lock().unwrap_or_else(PoisonError::into_inner).get(container.id()).cloned();
    if let Some(terminal) = known
        && terminal.send(size).await.is_ok()
    {
        engine.tell_container("resize", &container, json!({"width": size.0, "height": size.1}));
        return Ok(nothing());
    }
    let spec = AttachSpec { stdin: false, tty: true, ..AttachSpec::default() };
    let session = engine.node.attach(container.namespace(), container.pod_name(), spec).await?;
    if let Some(terminal) = session.resize {
        // The sender lives until the size is on its way.
        let _ = terminal.send(size).await;
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), terminal.closed()).await;
    }
    Ok(nothing())
}

/// Columns and rows.
pub fn size_of(query: &Query) -> Result<(u16, u16)> {
    let rows = query.number::<u16>("h")?.ok_or_else(|| Error::bad("invalid height"))?;
    let columns = query.number::<u16>("w")?.ok_or_else(|| Error::bad("invalid width"))?;
    Ok((columns, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_leave_and_everything_else_is_typed() {
        let mut keys = DetachKeys::parse(None).unwrap();
        assert_eq!(keys.filter(b"a\x10b"), (b"a\x10b".to_vec(), false));
        assert_eq!(keys.filter(b"x\x10"), (b"x".to_vec(), false));
        assert_eq!(keys.filter(b"\x11more"), (b"".to_vec(), true), "over two reads");
        assert!(DetachKeys::parse(Some("ctrl-pq")).is_err());
        assert_eq!(DetachKeys::parse(Some("x,ctrl-@")).unwrap().keys, [b'x', 0]);
    }

    #[tokio::test]
    async fn both_outputs_arrive_framed_and_the_end_is_told() {
        let (_keep, exit) = tokio::sync::oneshot::channel();
        let mut session = Session {
            stdin: None,
            stdout: Box::new(&b"out"[..]),
            stderr: Some(Box::new(&b"err"[..])),
            resize: None,
            exit,
        };
        let (mut ours, theirs) = tokio::io::duplex(1024);
        let detach = DetachKeys::parse(None).unwrap();
        let wanted = Wanted { stdin: false, stdout: true, stderr: true, tty: false, detach };
        assert_eq!(carry(&mut session, theirs, wanted).await, Left::Ended);
        let mut got = Vec::new();
        ours.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, [&frame(1, b"out")[..], &frame(2, b"err")[..]].concat());
    }
}
