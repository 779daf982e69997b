//! TLS at the door: the certificate is chosen by the server name that a client asks for, from the table that
//! is in force, so that a new certificate needs no restart and closes no connection.

use crate::Shared;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// From the first byte to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

struct Resolver(Arc<Shared>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.table.load().certificates.choose(hello.server_name(), hello.signature_schemes())
    }
}

/// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1.
pub fn acceptor(shared: &Arc<Shared>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver(Arc::clone(shared))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// What a connection is, once its handshake is done.
pub struct Accepted {
    pub stream: TlsStream<TcpStream>,
    pub server_name: Option<String>,
    pub is_http2: bool,
}

/// `None`: there was no handshake; the client has been told why, if it can be told.
pub async fn accept(acceptor: &TlsAcceptor, stream: TcpStream) -> Option<Accepted> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            let server_name = session.server_name().map(str::to_owned);
            let is_http2 = session.alpn_protocol() == Some(b"h2");
            Some(Accepted { stream, server_name, is_http2 })
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}
