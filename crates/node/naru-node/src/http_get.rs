//! The little HTTP that probes and hooks need: one request, one status line.

use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, SignatureScheme};

/// Reads at most this much of an answer's first line.
const STATUS_LINE_BYTES_MAX: usize = 4096;

/// One request, one status line: all that a probe needs to know of HTTP.
pub async fn get(
    tls: bool,
    host: &str,
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> Result<(), String> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let scheme = if tls { "https" } else { "http" };
    let url = format!("{scheme}://{host}:{port}{path}");
    let failed = |error: std::io::Error| format!("Get \"{url}\": {error}");
    let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
    let clean = |text: &str| text.replace(['\r', '\n'], "");
    let mut request = format!("GET {} HTTP/1.1\r\n", clean(&path).replace(' ', "%20"));
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    if !given("host") {
        request.push_str(&format!("Host: {host}:{port}\r\n"));
    }
    if !given("user-agent") {
        request.push_str("User-Agent: kube-probe/naru\r\n");
    }
    if !given("accept") {
        request.push_str("Accept: */*\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{}: {}\r\n", clean(name), clean(value)));
    }
    request.push_str("Connection: close\r\n\r\n");
    let line = if tls {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|error| failed(std::io::Error::other(error)))?;
        let stream = connector().connect(name, stream).await.map_err(failed)?;
        ask(stream, &request).await.map_err(failed)?
    } else {
        ask(stream, &request).await.map_err(failed)?
    };
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!("Get \"{url}\": the answer is not HTTP")),
    }
}

/// Sends the request; the beginning of the answer.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < STATUS_LINE_BYTES_MAX {
        let mut buffer = [0; 512];
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            // A server that closes without taking leave has said what it wanted to say.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A probe asks whether the program serves, not who it is: as kubelet, any certificate will do.
fn connector() -> TlsConnector {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate))
            .with_no_client_auth();
        Arc::new(config)
    });
    TlsConnector::from(config.clone())
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probe::{Check, ask_network};

    #[tokio::test]
    async fn http_checks_read_the_status() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let count = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                let answer: &[u8] = match text.split(' ').nth(1) {
                    Some("/ok") if text.contains("X-Probe: 1") => b"HTTP/1.1 204 No Content\r\n\r\n",
                    Some("/moved") => b"HTTP/1.0 302 Found\r\n\r\n",
                    Some("/noise") => b"SSH-2.0\r\n",
                    _ => b"HTTP/1.1 500 Oops\r\n\r\n",
                };
                let _ = stream.write_all(answer).await;
            }
        });
        let ask = async |path: &str| {
            let headers = vec![("X-Probe".to_owned(), "1".to_owned())];
            let check = Check::Http { tls: false, host: None, port, path: path.into(), headers };
            ask_network(&check, "127.0.0.1", Duration::from_secs(5)).await
        };
        assert_eq!(ask("/ok").await, Ok(()));
        assert_eq!(ask("/moved").await, Ok(()));
        assert_eq!(ask("/bad").await, Err("HTTP probe failed with statuscode: 500".into()));
        assert!(ask("/noise").await.unwrap_err().ends_with("the answer is not HTTP"));
        let closed = Check::Tcp { host: None, port: 1 };
        assert!(ask_network(&closed, "127.0.0.1", Duration::from_secs(5)).await.is_err());
    }
}
