//! `kubectl exec` and `attach`: a websocket whose frames carry a channel number and bytes, or SPDY streams.

use std::collections::HashMap;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::request::Parts;
use kube_kinds::{Failure, uid};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::request::Call;
use crate::streams::{self, AttachRequest, ExecRequest, ExecSession, StreamError};
use crate::{spdy, upgrade};

/// The newest first. In v5 the client can close a channel.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Bytes in one frame.
const CHUNK_BYTES: usize = 32 * 1024;
/// After the command has ended, its children may hold its output open for this long.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

pub(crate) async fn exec(call: Call, parts: Parts) -> Result<Response, Failure> {
    let pod = call.api.objects().get(&call.kind, call.namespace(), call.name())?;
    let parameters = &call.parameters;
    let request = ExecRequest {
        namespace: call.namespace().into(),
        pod: call.name().into(),
        uid: uid(&pod).into(),
        container: streams::container(&call, &pod)?,
        command: parameters.all("command"),
        stdin: parameters.is_set("stdin"),
        stdout: parameters.is_set("stdout"),
        stderr: parameters.is_set("stderr"),
        tty: parameters.is_set("tty"),
    };
    if request.command.is_empty() {
        return Err(Failure::bad_request("you must specify at least one command for the container"));
    }
    let node = streams::node(&call, &pod)?;
    serve(parts, &call, async move { node.exec(request).await }).await
}

pub(crate) async fn attach(call: Call, parts: Parts) -> Result<Response, Failure> {
    let pod = call.api.objects().get(&call.kind, call.namespace(), call.name())?;
    let parameters = &call.parameters;
    let request = AttachRequest {
        namespace: call.namespace().into(),
        pod: call.name().into(),
        uid: uid(&pod).into(),
        container: streams::container(&call, &pod)?,
        stdin: parameters.is_set("stdin"),
        stdout: parameters.is_set("stdout"),
        stderr: parameters.is_set("stderr"),
        tty: parameters.is_set("tty"),
    };
    let node = streams::node(&call, &pod)?;
    serve(parts, &call, async move { node.attach(request).await }).await
}

/// Upgrades the connection and joins it with the session. A command that cannot be started is told over the
/// stream: kubectl takes any other answer than the upgrade for a server that speaks an older protocol.
async fn serve(
    mut parts: Parts,
    call: &Call,
    session: impl Future<Output = Result<ExecSession, StreamError>> + Send + 'static,
) -> Result<Response, Failure> {
    if upgrade::wants_spdy(&parts.headers) {
        let wanted = ["stdin", "stdout", "stderr"].into_iter().filter(|it| call.parameters.is_set(it));
        // Terminal sizes have a stream of their own, and a terminal has no standard error.
        let tty = call.parameters.is_set("tty");
        let wanted: Vec<&'static str> = wanted
            .filter(|it| !(tty && *it == "stderr"))
            .chain(["error"])
            .chain(tty.then_some("resize"))
            .collect();
        return upgrade::spdy(&mut parts, &[PROTOCOLS[1]], move |streams| async move {
            over_spdy(session.await, wanted, streams).await;
        });
    }
    let upgrade = upgrade::websocket(&mut parts).await?;
    let session = session.await;
    Ok(upgrade.protocols(PROTOCOLS).on_upgrade(move |socket| async move {
        match session {
            Ok(session) => run(socket, session).await,
            Err(error) => finish(&mut socket.split().0, &Failure::from(error).to_value()).await,
        }
    }))
}

/// The older transport: a stream for each of standard input, output, error, terminal sizes and the status.
async fn over_spdy(
    session: Result<ExecSession, StreamError>,
    wanted: Vec<&'static str>,
    mut streams: mpsc::Receiver<spdy::Stream>,
) {
    let mut opened = HashMap::new();
    while opened.len() < wanted.len() {
        let Some(stream) = streams.recv().await else { return };
        let kind = stream.headers.get("streamtype").cloned().unwrap_or_default();
        opened.insert(kind, stream);
    }
    let Some(error) = opened.remove("error") else { return };
    let status = match session {
        Ok(session) => pump(session, opened).await,
        Err(error) => Failure::from(error).to_value(),
    };
    error.output.send(status.to_string().as_bytes()).await;
    error.output.finish().await;
}

async fn pump(session: ExecSession, mut streams: HashMap<String, spdy::Stream>) -> Value {
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    let mut inputs = tokio::task::JoinSet::new();
    if let (Some(mut pipe), Some(mut stream)) = (stdin, streams.remove("stdin")) {
        inputs.spawn(async move {
            while let Some(bytes) = stream.input.recv().await {
                if pipe.write_all(&bytes).await.is_err() || pipe.flush().await.is_err() {
                    return;
                }
            }
        });
    }
    if let (Some(resize), Some(mut stream)) = (resize, streams.remove("resize")) {
        inputs.spawn(async move {
            while let Some(bytes) = stream.input.recv().await {
                if let Some(size) = terminal_size(&bytes) {
                    let _ = resize.try_send(size);
                }
            }
        });
    }
    let output = |stream: Option<spdy::Stream>| stream.map(|it| it.output);
    let (out, err) = (output(streams.remove("stdout")), output(streams.remove("stderr")));
    let copied = async {
        let copy = |reader: Option<Box<dyn AsyncRead + Send + Unpin>>, output: Option<spdy::Output>| async move {
            let Some(mut reader) = reader else { return };
            let mut buffer = vec![0; CHUNK_BYTES];
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                if let Some(output) = &output
                    && !output.send(&buffer[..count]).await
                {
                    return;
                }
            }
            if let Some(output) = output {
                output.finish().await;
            }
        };
        tokio::join!(copy(Some(stdout), out), copy(stderr, err));
    };
    tokio::pin!(copied);
    let mut exit = exit;
    let code = tokio::select! {
        () = &mut copied => exit.await,
        code = &mut exit => {
            // Children of a command that has ended may hold its output open.
            let _ = tokio::time::timeout(LAST_OUTPUT, copied).await;
            code
        }
    };
    inputs.abort_all();
    exit_status(code.ok())
}

/// The last word of a stream.
async fn finish(to_client: &mut SplitSink<WebSocket, Message>, status: &Value) {
    let mut frame = vec![ERROR];
    frame.extend(status.to_string().into_bytes());
    // The client may have gone; then nobody needs the status.
    let _ = to_client.send(Message::Binary(frame.into())).await;
    // Without the code the client takes the end for a broken connection.
    let close = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    let _ = to_client.send(Message::Close(Some(close))).await;
}

async fn run(socket: WebSocket, session: ExecSession) {
    let (to_client, from_client) = socket.split();
    let ExecSession { stdin, stdout, stderr, resize, exit } = session;
    let output = async {
        let mut to_client = to_client;
        let exit = copy_output(&mut to_client, stdout, stderr, exit).await;
        finish(&mut to_client, &exit_status(exit)).await;
    };
    tokio::select! {
        () = output => {}
        () = copy_input(from_client, stdin, resize) => tracing::debug!("exec: the client has gone"),
    }
}

/// Copies until both outputs are at their end and the command has ended.
async fn copy_output(
    to_client: &mut SplitSink<WebSocket, Message>,
    stdout: Box<dyn AsyncRead + Send + Unpin>,
    stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    mut exit: tokio::sync::oneshot::Receiver<i32>,
) -> Option<i32> {
    let (mut stdout, mut stderr) = (Some(stdout), stderr);
    let (mut out, mut err) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut ended = None;
    let mut deadline = None;
    while stdout.is_some() || stderr.is_some() {
        let (channel, bytes) = tokio::select! {
            count = read(&mut stdout, &mut out) => (STDOUT, &out[..count]),
            count = read(&mut stderr, &mut err) => (STDERR, &err[..count]),
            code = &mut exit, if ended.is_none() => {
                ended = Some(code.ok());
                deadline = Some(tokio::time::Instant::now() + LAST_OUTPUT);
                continue;
            }
            () = until(deadline) => break,
        };
        if !bytes.is_empty() {
            let mut frame = Vec::with_capacity(bytes.len() + 1);
            frame.push(channel);
            frame.extend_from_slice(bytes);
            if to_client.send(Message::Binary(frame.into())).await.is_err() {
                return None;
            }
        }
    }
    match ended {
        Some(code) => code,
        None => exit.await.ok(),
    }
}

async fn until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Reads once; at the end the reader is dropped. Waits for ever when there is none.
async fn read(reader: &mut Option<Box<dyn AsyncRead + Send + Unpin>>, buffer: &mut [u8]) -> usize {
    let Some(inner) = reader.as_mut() else { return std::future::pending().await };
    match inner.read(buffer).await {
        Ok(count) if count > 0 => count,
        _ => {
            *reader = None;
            0
        }
    }
}

/// Copies until the client closes the connection.
async fn copy_input(
    mut from_client: SplitStream<WebSocket>,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
) {
    while let Some(Ok(message)) = from_client.next().await {
        let frame = match message {
            Message::Binary(frame) => frame,
            Message::Close(_) => return,
            _ => continue,
        };
        match frame.split_first() {
            Some((&STDIN, bytes)) => {
                if let Some(pipe) = stdin.as_mut()
                    && (pipe.write_all(bytes).await.is_err() || pipe.flush().await.is_err())
                {
                    // The command does not read any more; its end will be reported.
                    stdin = None;
                }
            }
            Some((&CLOSE, &[STDIN])) => stdin = None,
            Some((&RESIZE, bytes)) => {
                if let (Some(resize), Some(size)) = (&resize, terminal_size(bytes)) {
                    // A full queue means that a newer size is on its way already.
                    let _ = resize.try_send(size);
                }
            }
            _ => {}
        }
    }
}

/// `{"Width": 80, "Height": 24}`.
fn terminal_size(bytes: &[u8]) -> Option<(u16, u16)> {
    let size: Value = serde_json::from_slice(bytes).ok()?;
    let figure = |name: &str| size[name].as_u64().and_then(|it| u16::try_from(it).ok());
    Some((figure("Width")?, figure("Height")?))
}

fn exit_status(code: Option<i32>) -> Value {
    match code {
        Some(0) => json!({"metadata": {}, "status": "Success"}),
        Some(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with exit code {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        None => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": "the end of the command was not reported",
        }),
    }
}
