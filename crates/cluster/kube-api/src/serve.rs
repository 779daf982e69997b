//! The network side: TLS, and who may come in.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{Request, header};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kube_kinds::Failure;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::{Api, answer};

/// A client that does not finish the handshake is dropped.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Every watch is one stream of a connection.
const STREAMS_MAX: u32 = 2000;
/// Dead clients are found by a ping.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Answers in progress get this long at the end.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// When the process has no descriptors left, accepting again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Paths that need no identity: health and version.
const OPEN_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

impl Api {
    /// Serves until `shutdown`; then ends watches and lets other answers finish.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        if let Err(error) = self.prepare().await {
            tracing::error!(%error, "the initial objects cannot be written");
        }
        let acceptor = TlsAcceptor::from(self.inner.identity.server.clone());
        let connections = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                () = shutdown.cancelled() => break,
            };
            connections.spawn(connection(self.clone(), acceptor.clone(), stream, shutdown.clone()));
        }
        self.inner.stop.cancel();
        connections.close();
        if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
            tracing::warn!("some clients did not finish in time");
        }
    }
}

async fn connection(api: Api, acceptor: TlsAcceptor, stream: TcpStream, shutdown: CancellationToken) {
    // A watch event is small and wanted now.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    // The verifier has checked the certificate, if there is one, against our authority.
    let has_certificate = stream.get_ref().1.peer_certificates().is_some_and(|it| !it.is_empty());
    let router = api.router();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (api, router) = (api.clone(), router.clone());
        async move {
            let request = request.map(Body::new);
            if !has_certificate && !is_open(&request) && !has_token(&request, api.admin_token()) {
                return Ok(unauthorized());
            }
            router.oneshot(request).await
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let mut draining = false;
    loop {
        tokio::select! {
            result = serving.as_mut() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
            () = shutdown.cancelled(), if !draining => {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

fn is_open(request: &Request<Body>) -> bool {
    OPEN_PATHS.contains(&request.uri().path())
}

fn has_token(request: &Request<Body>, token: &str) -> bool {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|it| it.to_str().ok());
    let Some(given) = header.and_then(|it| it.strip_prefix("Bearer ")) else { return false };
    // In constant time: how far the comparison came must not be measurable.
    given.len() == token.len() && given.bytes().zip(token.bytes()).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

fn unauthorized() -> Response {
    answer::failure(&Failure::new(401, "Unauthorized", "Unauthorized"))
}
