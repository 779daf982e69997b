//! gRPC over HTTP/2 in both directions, as much of it as BuildKit's clients use: unary calls and streams of
//! uncompressed messages (grpc/grpc `doc/PROTOCOL-HTTP2.md`).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;
use tokio::sync::mpsc;

/// A context's files come in pieces of 32 KiB; other messages are small.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Go's clients take no more in one message.
pub const CHUNK_BYTES: usize = 1 << 20;

pub mod code {
    pub const UNKNOWN: i32 = 2;
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const NOT_FOUND: i32 = 5;
    pub const UNIMPLEMENTED: i32 = 12;
    pub const UNAVAILABLE: i32 = 14;
}

/// How a call ended other than well.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: i32,
    pub message: String,
}

pub type Result<T, E = Status> = std::result::Result<T, E>;

impl Status {
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The build cannot go on; the message says why.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN, message)
    }

    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(code::UNIMPLEMENTED, message)
    }

    fn broken(error: impl std::fmt::Display) -> Self {
        Self::new(code::UNAVAILABLE, format!("the connection broke: {error}"))
    }

    fn trailers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from(self.code));
        // Bytes outside printable ASCII, and `%`, are percent-encoded.
        let mut text = String::new();
        for byte in self.message.bytes() {
            match byte {
                b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert("grpc-message", value);
        }
        headers
    }

    /// What trailers say; `None`: the call went well.
    fn of_trailers(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).and_then(|it| it.to_str().ok());
        let code = text("grpc-status").and_then(|it| it.parse().ok()).unwrap_or(code::UNKNOWN);
        if code == 0 {
            return None;
        }
        Some(Self { code, message: percent_decoded(text("grpc-message").unwrap_or_default()) })
    }
}

impl From<crate::error::Error> for Status {
    fn from(error: crate::error::Error) -> Self {
        Self::failed(error.message)
    }
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|it| std::str::from_utf8(it).ok());
        match (first, hex.and_then(|it| u8::from_str_radix(it, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(length + 5);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode(&mut out).expect("the buffer grows");
    out.freeze()
}

/// The messages that the other side sends.
pub struct Messages {
    source: Source,
    read: BytesMut,
}

enum Source {
    /// The answer has not begun; a stream may have to be written before it does.
    Pending(Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>),
    Body(Incoming),
    /// It came whole with the headers of the answer.
    Ended(Status),
}

impl Messages {
    fn new(source: Source) -> Self {
        Self { source, read: BytesMut::new() }
    }

    async fn frame(&mut self) -> Result<Option<Frame<Bytes>>> {
        loop {
            match &mut self.source {
                Source::Ended(status) => return Err(status.clone()),
                Source::Body(body) => return body.frame().await.transpose().map_err(Status::broken),
                Source::Pending(answer) => {
                    let (head, body) = answer.await.map_err(Status::broken)?.into_parts();
                    let early = head.headers.contains_key("grpc-status");
                    self.source = match Status::of_trailers(&head.headers).filter(|_| early) {
                        Some(status) => Source::Ended(status),
                        None => Source::Body(body),
                    };
                }
            }
        }
    }

    /// The next one; `None` after the last.
    ///
    /// # Errors
    /// What the other side ended the call with, a connection that broke, or bytes that are no such message.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>> {
        loop {
            if let Some(length) = self.read.get(1..5) {
                let length = u32::from_be_bytes(length.try_into().expect("they are four")) as usize;
                if self.read[0] != 0 {
                    return Err(Status::refused("compressed messages are not understood"));
                }
                if length > MESSAGE_BYTES_MAX {
                    return Err(Status::refused("a message is larger than 16 MiB"));
                }
                if self.read.len() >= length + 5 {
                    self.read.advance(5);
                    let bytes = self.read.split_to(length).freeze();
                    let message = M::decode(bytes);
                    return message.map(Some).map_err(|it| {
                        Status::new(code::INVALID_ARGUMENT, format!("not the expected message: {it}"))
                    });
                }
            }
            let Some(frame) = self.frame().await? else {
                return if self.read.is_empty() {
                    Ok(None)
                } else {
                    Err(Status::broken("a message is not whole"))
                };
            };
            match frame.into_data() {
                Ok(data) => self.read.extend_from_slice(&data),
                Err(frame) => {
                    if let Some(status) = frame.trailers_ref().and_then(Status::of_trailers) {
                        return Err(status);
                    }
                }
            }
        }
    }

    /// The one message that there must be.
    pub async fn only<M: Message + Default>(&mut self) -> Result<M> {
        self.next().await?.ok_or_else(|| Status::new(code::INVALID_ARGUMENT, "a message is missing"))
    }
}

/// A call of a client.
pub struct Call {
    /// `/package.Service/Method`.
    pub path: String,
    pub metadata: HeaderMap,
    pub messages: Messages,
}

/// What a call is answered with.
pub struct Reply(Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>);

impl Reply {
    pub fn one(message: &impl Message) -> Self {
        Self(Box::pin(futures::stream::iter([Ok(framed(message))])))
    }

    pub fn stream<M: Message>(messages: impl Stream<Item = Result<M>> + Send + 'static) -> Self {
        Self(Box::pin(messages.map(|it| it.map(|it| framed(&it)))))
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn body(messages: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Body {
    // After the first error nothing comes; at the end the trailers say how it went.
    let frames = futures::stream::unfold(Some(Box::pin(messages)), |state| async move {
        let mut messages = state?;
        Some(match messages.next().await {
            Some(Ok(bytes)) => (Ok(Frame::data(bytes)), Some(messages)),
            Some(Err(status)) => (Ok(Frame::trailers(status.trailers())), None),
            None => (Ok(Frame::trailers(Status::new(0, "").trailers())), None),
        })
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Answers the calls on a connection until it closes.
pub async fn serve<F, R>(connection: Upgraded, answer: F)
where
    F: Fn(Call) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Reply>> + Send + 'static,
{
    let answer = Arc::new(answer);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let answer = Arc::clone(&answer);
        async move {
            let (head, incoming) = request.into_parts();
            let path = head.uri.path().to_owned();
            let call = Call { path, metadata: head.headers, messages: Messages::new(Source::Body(incoming)) };
            let reply = match answer(call).await {
                Ok(reply) => body(reply.0),
                Err(status) => body(futures::stream::iter([Err(status)])),
            };
            let mut response = Response::new(reply);
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok::<_, Infallible>(response)
        }
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(connection, service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a BuildKit client went away in the middle");
    }
}

/// The services of the other side. Cheap to clone.
#[derive(Clone)]
pub struct Channel(hyper::client::conn::http2::SendRequest<Body>);

impl Channel {
    /// The returned future drives the connection until it closes.
    pub async fn new(connection: Upgraded) -> Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(connection)
            .await
            .map_err(Status::broken)?;
        let driven = async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the session of a BuildKit client broke");
            }
        };
        Ok((Self(sender), driven))
    }

    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    fn call(
        &self,
        path: &str,
        metadata: HeaderMap,
        messages: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<Messages> {
        let frames = messages.map(|it| Ok(Frame::data(it)));
        let mut request = Request::new(StreamBody::new(frames).boxed_unsync());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = format!("http://localhost{path}").parse().map_err(Status::broken)?;
        *request.headers_mut() = metadata;
        let headers = request.headers_mut();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("te", HeaderValue::from_static("trailers"));
        Ok(Messages::new(Source::Pending(Box::pin(self.0.clone().send_request(request)))))
    }

    pub async fn unary<M: Message + Default>(&self, path: &str, question: &impl Message) -> Result<M> {
        let question = framed(question);
        self.call(path, HeaderMap::new(), futures::stream::iter([question]))?.only().await
    }

    /// A stream in both directions. Ours ends when the sender is dropped.
    pub fn duplex(&self, path: &str, metadata: HeaderMap) -> Result<(Sender, Messages)> {
        let (sender, receiver) = mpsc::channel(64);
        let ours = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok((Sender(sender), self.call(path, metadata, ours)?))
    }
}

/// Our half of a stream.
#[derive(Clone)]
pub struct Sender(mpsc::Sender<Bytes>);

impl Sender {
    pub async fn send(&self, message: &impl Message) -> Result<()> {
        self.0.send(framed(message)).await.map_err(|_| Status::broken("the client no longer listens"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_errors_survive_the_trailers() {
        for text in ["plain", "100 % of it\nsecond line", "나루"] {
            let status = Status::failed(text);
            assert_eq!(Status::of_trailers(&status.trailers()), Some(status));
        }
        assert_eq!(Status::of_trailers(&Status::new(0, "").trailers()), None);
    }
}
