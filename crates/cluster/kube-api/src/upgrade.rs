//! The transports of streams: a websocket, or the raw connection after an upgrade to SPDY.

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use kube_kinds::Failure;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use crate::spdy;

const BUFFER_BYTES: usize = 64 * 1024;

pub(crate) async fn websocket(parts: &mut Parts) -> Result<WebSocketUpgrade, Failure> {
    WebSocketUpgrade::from_request_parts(parts, &())
        .await
        .map_err(|_| Failure::bad_request("Upgrade request required"))
}

/// Whether the client asks for SPDY on the connection itself.
pub(crate) fn wants_spdy(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|it| it.to_str().ok());
    upgrade.is_some_and(|it| it.eq_ignore_ascii_case("SPDY/3.1"))
}

/// Whether the client offers this protocol on a websocket.
pub(crate) fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    offered.filter_map(|it| it.to_str().ok()).flat_map(|it| it.split(',')).any(|it| it.trim() == protocol)
}

/// Answers an upgrade to SPDY; the streams go to `run`. The protocol is the first of ours that the client
/// names in its `X-Stream-Protocol-Version` headers.
pub(crate) fn spdy<F, R>(parts: &mut Parts, ours: &[&'static str], run: F) -> Result<Response, Failure>
where
    F: FnOnce(mpsc::Receiver<spdy::Stream>) -> R + Send + 'static,
    R: Future<Output = ()> + Send,
{
    const PROTOCOL: &str = "x-stream-protocol-version";
    let offered: Vec<&str> =
        parts.headers.get_all(PROTOCOL).into_iter().filter_map(|it| it.to_str().ok()).collect();
    let protocol = ours.iter().find(|it| offered.contains(it)).copied();
    let Some(protocol) = protocol.or(ours.first().copied().filter(|_| offered.is_empty())) else {
        return Err(Failure::new(
            403,
            "Forbidden",
            format!("unable to negotiate a protocol: client supports {offered:?}, server accepts {ours:?}"),
        ));
    };
    let Some(upgrade) = parts.extensions.remove::<hyper::upgrade::OnUpgrade>() else {
        return Err(Failure::bad_request("the connection cannot be upgraded; use HTTP/1.1"));
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => run(spdy::session(TokioIo::new(connection))).await,
            Err(error) => tracing::debug!(%error, "an upgrade to SPDY failed"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(PROTOCOL, HeaderValue::from_static(protocol));
    Ok(response)
}

/// The bytes of a websocket's binary messages as one stream.
pub(crate) fn tunnel(socket: WebSocket) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
    let (mut from_ours, mut to_ours) = tokio::io::split(ours);
    let (mut to_client, mut from_client) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = from_client.next().await {
            match message {
                Message::Binary(bytes) if to_ours.write_all(&bytes).await.is_err() => return,
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = to_ours.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(count @ 1..) = from_ours.read(&mut buffer).await {
            let message = Message::Binary(Bytes::copy_from_slice(&buffer[..count]));
            if to_client.send(message).await.is_err() {
                return;
            }
        }
        let _ = to_client.send(Message::Close(None)).await;
    });
    theirs
}
