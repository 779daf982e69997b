//! `grpc.health.v1.Health/Check`: two messages of one field each, so their bytes are written here.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// `HealthCheckResponse.status`.
const SERVING: u8 = 1;

pub async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| {
        format!("timeout: failed to connect service \"{host}:{port}\": {error}")
    };
    let stream = TcpStream::connect((host, port)).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
    let _connection = AbortOnDrop(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let request = Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/naru")
        .body(Full::new(Bytes::from(request_bytes(service))))
        .map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let header = status_of(answer.headers());
    let body = answer.into_body().collect().await.map_err(|error| failed(&error))?;
    let status = header.or_else(|| body.trailers().and_then(status_of));
    match status.as_deref() {
        None | Some("0") => {}
        Some(code) => return Err(format!("error: health rpc failed: rpc error: code = {code}")),
    }
    match serving_status(&body.to_bytes()) {
        Some(SERVING) => Ok(()),
        other => {
            let name = match other {
                Some(2) => "NOT_SERVING",
                Some(3) => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn status_of(headers: &http::HeaderMap) -> Option<String> {
    Some(headers.get("grpc-status")?.to_str().ok()?.to_owned())
}

/// A message behind its five bytes of flag and length: field 1, the service's name.
fn request_bytes(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        // Kubernetes bounds the name well below the 127 bytes that fit one byte of length; more take two.
        message.push(0x0a);
        let length = service.len();
        if length < 0x80 {
            message.push(length as u8);
        } else {
            message.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
        }
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

/// Field 1 of the first message; 0 when the message is empty.
fn serving_status(body: &[u8]) -> Option<u8> {
    let message = body.get(5..)?;
    match message {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_as_the_protocol_says() {
        assert_eq!(request_bytes(""), [0, 0, 0, 0, 0]);
        assert_eq!(request_bytes("db"), [0, 0, 0, 0, 4, 0x0a, 2, b'd', b'b']);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving_status(&[]), None);
    }

    #[tokio::test]
    async fn a_server_that_serves_is_found_well() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = async |status: u8| {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Past the preface and the settings, into the request.
            let mut begin = [0; 110];
            stream.read_exact(&mut begin).await.unwrap();
            let mut answer = SETTINGS.to_vec();
            answer.extend(b"\0\0\x14\x01\x04\0\0\0\x01\x88\x0f\x10\x10application/grpc");
            answer.extend([0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 8, status]);
            answer.extend(b"\0\0\x0f\x01\x05\0\0\0\x01\0\x0bgrpc-status\x010");
            stream.write_all(&answer).await.unwrap();
            stream
        };
        let (answer, _held) = tokio::join!(check("127.0.0.1", port, ""), serve(1));
        assert_eq!(answer, Ok(()));
        let (answer, _held) = tokio::join!(check("127.0.0.1", port, ""), serve(2));
        assert_eq!(answer, Err("service unhealthy (responded with \"NOT_SERVING\")".into()));
    }
}
