//! `kubectl port-forward`, in the three ways in which clients speak: SPDY on the connection, SPDY in a
//! websocket, and a websocket with two channels for each port.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::request::Parts;
use kube_kinds::{Failure, uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::request::Call;
use crate::spdy::Stream;
use crate::streams::{self, Connection, NodeStreams};
use crate::upgrade;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: &str = "v4.channel.k8s.io";
const CHUNK_BYTES: usize = 32 * 1024;
/// Ports of one websocket: a channel is a byte, and each port has two.
const PORTS_MAX: usize = 127;

pub(crate) async fn serve(call: Call, mut parts: Parts) -> Result<Response, Failure> {
    let pod = call.api.objects().get(&call.kind, call.namespace(), call.name())?;
    let target = Target {
        node: streams::node(&call, &pod)?,
        namespace: call.namespace().into(),
        pod: call.name().into(),
        uid: uid(&pod).into(),
    };
    if upgrade::wants_spdy(&parts.headers) {
        return upgrade::spdy(&mut parts, &[PROTOCOL], move |streams| forward(target, streams));
    }
    let tunnelled = upgrade::offers(&parts.headers, TUNNELLED);
    let ports = if tunnelled { Vec::new() } else { ports(&call)? };
    let upgrade = upgrade::websocket(&mut parts).await?;
    Ok(match tunnelled {
        true => upgrade.protocols([TUNNELLED]).on_upgrade(move |socket| async move {
            forward(target, crate::spdy::session(upgrade::tunnel(socket))).await;
        }),
        false => upgrade.protocols([CHANNELS]).on_upgrade(move |socket| channels(target, socket, ports)),
    })
}

#[derive(Clone)]
struct Target {
    node: Arc<dyn NodeStreams>,
    namespace: String,
    pod: String,
    uid: String,
}

impl Target {
    async fn connect(&self, port: u16) -> Result<Connection, String> {
        let connected = self.node.port_forward(&self.namespace, &self.pod, &self.uid, port).await;
        connected.map_err(|error| {
            format!("an error occurred forwarding {port} to pod {}/{}: {error}", self.namespace, self.pod)
        })
    }
}

fn ports(call: &Call) -> Result<Vec<u16>, Failure> {
    let words = call.parameters.all("ports");
    let ports: Result<Vec<u16>, _> = words.iter().flat_map(|it| it.split(',')).map(str::parse).collect();
    let bad = || Failure::bad_request("query parameter \"ports\" must name ports from 1 to 65535");
    let ports = ports.map_err(|_| bad())?;
    match ports.len() {
        1..=PORTS_MAX if !ports.contains(&0) => Ok(ports),
        _ => Err(bad()),
    }
}

/// Each connection of the user is a pair of streams with the same `requestid`: one for data, one for the error.
async fn forward(target: Target, mut streams: mpsc::Receiver<Stream>) {
    let mut waiting: HashMap<String, Stream> = HashMap::new();
    while let Some(stream) = streams.recv().await {
        let port = stream.headers.get("port").cloned().unwrap_or_default();
        let request = stream.headers.get("requestid").unwrap_or(&port).clone();
        let Some(other) = waiting.remove(&request) else {
            waiting.insert(request, stream);
            continue;
        };
        let is_data = stream.headers.get("streamtype").is_some_and(|it| it == "data");
        let (data, error) = if is_data { (stream, other) } else { (other, stream) };
        let target = target.clone();
        tokio::spawn(async move {
            let outcome = match port.parse() {
                Ok(port) => one(&target, port, data).await,
                Err(_) => Err(format!("{port:?} is not a port")),
            };
            if let Err(message) = outcome {
                error.output.send(message.as_bytes()).await;
            }
            error.output.finish().await;
        });
    }
}

async fn one(target: &Target, port: u16, data: Stream) -> Result<(), String> {
    let Stream { mut input, output, .. } = data;
    let connection = match target.connect(port).await {
        Ok(connection) => connection,
        Err(message) => {
            output.finish().await;
            return Err(message);
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let up = async {
        while let Some(bytes) = input.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to_pod.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from_pod.read(&mut buffer).await {
            if !output.send(&buffer[..count]).await {
                return;
            }
        }
        output.finish().await;
    };
    // The pod's end ends it; the client's end alone may be a half-closed connection.
    tokio::pin!(up);
    tokio::select! {
        () = down => {}
        () = async { (&mut up).await; std::future::pending::<()>().await } => {}
    }
    Ok(())
}

/// Channel 2i is the data of port i, channel 2i+1 its error; each begins with the port in two bytes.
async fn channels(target: Target, socket: WebSocket, ports: Vec<u16>) {
    let (mut to_client, mut from_client) = socket.split();
    let (frames, mut outgoing) = mpsc::channel::<Vec<u8>>(16);
    let mut inputs = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let data = (index * 2) as u8;
        for channel in [data, data + 1] {
            let first = [&[channel][..], &port.to_le_bytes()].concat();
            if send(&mut to_client, first).await.is_err() {
                return;
            }
        }
        let (input, received) = mpsc::channel::<Vec<u8>>(16);
        inputs.push(input);
        tokio::spawn(channel(target.clone(), port, data, received, frames.clone()));
    }
    drop(frames);
    loop {
        tokio::select! {
            frame = outgoing.recv() => match frame {
                Some(frame) => {
                    if send(&mut to_client, frame).await.is_err() {
                        return;
                    }
                }
                None => break,
            },
            message = from_client.next() => match message {
                Some(Ok(Message::Binary(frame))) => {
                    let Some((channel, bytes)) = frame.split_first() else { continue };
                    if let Some(input) = inputs.get(usize::from(*channel / 2)).filter(|_| channel % 2 == 0) {
                        let _ = input.send(bytes.to_vec()).await;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
        }
    }
    let _ = to_client.send(Message::Close(None)).await;
}

async fn send(to_client: &mut SplitSink<WebSocket, Message>, frame: Vec<u8>) -> Result<(), axum::Error> {
    to_client.send(Message::Binary(frame.into())).await
}

async fn channel(
    target: Target,
    port: u16,
    data: u8,
    mut input: mpsc::Receiver<Vec<u8>>,
    frames: mpsc::Sender<Vec<u8>>,
) {
    let connection = match target.connect(port).await {
        Ok(connection) => connection,
        Err(message) => {
            let _ = frames.send([&[data + 1][..], message.as_bytes()].concat()).await;
            return;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let up = async {
        while let Some(bytes) = input.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; CHUNK_BYTES];
        while let Ok(count @ 1..) = from_pod.read(&mut buffer).await {
            if frames.send([&[data][..], &buffer[..count]].concat()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
