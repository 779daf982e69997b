//! One connection from outside: TLS if it is that door, then HTTP/1.1 or HTTP/2, request by request.

use crate::hosts::Scheme;
use crate::proxy::{HEAD_BYTES_MAX, HEAD_TIMEOUT, HEADERS_MAX, Worker, answer};
use crate::tls;
use http::header::CONNECTION;
use http::{HeaderValue, Version};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

const STREAMS_MAX: u32 = 128; // requests of one connection side by side; more would starve the others
const RESETS_MAX: usize = 32; // streams that a client may begin and drop before it is sent away

/// Who is at the other end of a connection.
pub struct Peer {
    /// As pods are told.
    pub address: HeaderValue,
    pub scheme: Scheme,
    /// The name that the client asked for in its handshake.
    pub server_name: Option<String>,
}

/// Serves one connection to its end.
pub async fn connection(
    worker: Rc<Worker>,
    id: u64,
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: Option<Rc<TlsAcceptor>>,
) {
    let _ = stream.set_nodelay(true);
    let address = HeaderValue::from_str(&peer.ip().to_string()).expect("an IP address is a header value");
    match acceptor {
        None => {
            let client = Peer { address, scheme: Scheme::Http, server_name: None };
            http1(&worker, id, stream, peer, client).await;
        }
        Some(acceptor) => {
            if let Some(tls::Accepted { stream, server_name, is_http2 }) =
                tls::accept(&acceptor, stream).await
            {
                let client = Peer { address, scheme: Scheme::Https, server_name };
                match is_http2 {
                    true => http2(&worker, id, stream, peer, client).await,
                    false => http1(&worker, id, stream, peer, client).await,
                }
            }
        }
    }
    worker.connections.borrow_mut().remove(&id);
}

/// Drives a connection to its end; when the gateway drains, the connection is told once.
macro_rules! drive {
    ($worker:expr, $id:expr, $peer:expr, $connection:expr) => {{
        let mut connection = pin!($connection);
        let mut told = false;
        let ended = std::future::poll_fn(|context| {
            if !told {
                if $worker.is_draining.get() {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                } else if let Some(waker @ None) = $worker.connections.borrow_mut().get_mut(&$id) {
                    // Once: a task's waker stays the same.
                    *waker = Some(context.waker().clone());
                }
            }
            connection.as_mut().poll(context)
        });
        if let Err(error) = ended.await {
            tracing::debug!(peer = %$peer, %error, "a connection ended early");
        }
    }};
}

async fn http1<S>(worker: &Rc<Worker>, id: u64, stream: S, peer: SocketAddr, client: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (service_worker, client) = (Rc::clone(worker), Rc::new(client));
    let service = hyper::service::service_fn(move |request| {
        let (worker, client) = (Rc::clone(&service_worker), Rc::clone(&client));
        async move { Ok::<_, Infallible>(answer(worker, client, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    drive!(worker, id, peer, builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
}

/// Requests of one connection side by side, each its own task of this thread.
async fn http2<S>(worker: &Rc<Worker>, id: u64, stream: S, peer: SocketAddr, client: Peer)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (service_worker, client) = (Rc::clone(worker), Rc::new(client));
    let service = hyper::service::service_fn(move |request| {
        let (worker, client) = (Rc::clone(&service_worker), Rc::clone(&client));
        async move {
            let mut response = answer(worker, client, request).await;
            *response.version_mut() = Version::HTTP_2;
            // A word about a connection has no place in a stream.
            response.headers_mut().remove(CONNECTION);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http2::Builder::new(OnThisThread);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_local_error_reset_streams(RESETS_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .keep_alive_interval(HEAD_TIMEOUT)
        .keep_alive_timeout(HEAD_TIMEOUT);
    drive!(worker, id, peer, builder.serve_connection(TokioIo::new(stream), service));
}

#[derive(Clone, Copy)]
struct OnThisThread;

impl<F: Future + 'static> hyper::rt::Executor<F> for OnThisThread {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}
