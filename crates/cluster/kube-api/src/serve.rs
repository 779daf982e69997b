//! The network side: TLS, and who may come in.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::audit::{self, Audit};
use crate::auth::authenticate;
use crate::request::attributes;
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

impl Api {
    /// Serves until `shutdown`; then ends watches and lets other answers finish.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        if let Err(error) = self.prepare().await {
            tracing::error!(%error, "the initial objects cannot be written");
        }
        let audit = match self.audit() {
            Ok(audit) => audit,
            Err(error) => return tracing::error!(%error, "the API is not served without its audit log"),
        };
        let acceptor = TlsAcceptor::from(self.inner.identity.server.clone());
        let connections = TaskTracker::new();
        loop {
            let (stream, from) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                () = shutdown.cancelled() => break,
            };
            let client = Client { stream, address: from.ip().to_string(), audit: audit.clone() };
            connections.spawn(connection(self.clone(), acceptor.clone(), client, shutdown.clone()));
        }
        self.inner.stop.cancel();
        connections.close();
        if tokio::time::timeout(DRAIN_MAX, connections.wait()).await.is_err() {
            tracing::warn!("some clients did not finish in time");
        }
    }
}

/// Who is on the other end.
struct Client {
    stream: TcpStream,
    address: String,
    audit: Audit,
}

async fn connection(api: Api, acceptor: TlsAcceptor, client: Client, shutdown: CancellationToken) {
    let Client { stream, address, audit } = client;
    // A watch event is small and wanted now.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    // The verifier has checked the certificate, if there is one, against our authority.
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(<[_]>::first).and_then(authenticate::of_certificate).map(Arc::new);
    let router = api.router();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (api, router, user) = (api.clone(), router.clone(), user.clone());
        let (audit, address) = (audit.clone(), address.clone());
        async move {
            let mut request = request.map(Body::new);
            let (method, uri, headers) = (request.method(), request.uri(), request.headers());
            let trail = audit::Request::new(method, uri, headers, attributes(method, uri));
            let user = authenticate::of_request(&api, user.as_deref(), headers).map(Arc::new);
            let response = match &user {
                Ok(user) => {
                    request.extensions_mut().insert(user.clone());
                    router.oneshot(request).await
                }
                Err(failure) => Ok(answer::failure(failure)),
            };
            let code = response.as_ref().map_or(500, |it| it.status().as_u16());
            audit.record(&trail, user.ok().as_deref(), &address, code).await;
            response
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
