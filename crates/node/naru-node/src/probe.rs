//! Probes: is it up, is it ready, is it alive.
//!
//! [`Counter`] turns single results into verdicts and is pure; `prober` asks at the right times.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub check: Check,
    pub initial_delay_seconds: u64,
    pub period_seconds: u64,
    pub timeout_seconds: u64,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Without a host the pod's own address is asked.
    Http {
        host: Option<String>,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        host: Option<String>,
        port: u16,
    },
    Exec {
        command: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// Counts results in a row.
#[derive(Debug, Clone)]
pub struct Counter {
    success_threshold: u32,
    failure_threshold: u32,
    same: u32,
    last: Option<bool>,
}

impl Counter {
    pub fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold,
            failure_threshold: probe.failure_threshold,
            same: 0,
            last: None,
        }
    }

    /// The verdict, when this result made it.
    pub fn feed(&mut self, success: bool) -> Option<bool> {
        self.same = if self.last == Some(success) { self.same + 1 } else { 1 };
        self.last = Some(success);
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.same == threshold).then_some(success)
    }

    pub fn in_a_row(&self) -> u32 {
        self.same
    }
}

/// Reads at most this much of an answer's first line.
const STATUS_LINE_BYTES_MAX: usize = 4096;

/// Asks once over the network. `Err` says what was wrong.
pub async fn ask_network(check: &Check, pod_ip: &str, timeout: Duration) -> Result<(), String> {
    let asked = async {
        match check {
            Check::Tcp { host, port } => {
                let address = (host.as_deref().unwrap_or(pod_ip), *port);
                TcpStream::connect(address)
                    .await
                    .map(drop)
                    .map_err(|error| format!("dial tcp {}:{port}: {error}", address.0))
            }
            Check::Http { host, port, path, headers } => {
                get(host.as_deref().unwrap_or(pod_ip), *port, path, headers).await
            }
            Check::Exec { .. } => Err("not a network check; this is a bug in Naru".to_owned()),
        }
    };
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
}

/// One request, one status line: all that a probe needs to know of HTTP.
async fn get(host: &str, port: u16, path: &str, headers: &[(String, String)]) -> Result<(), String> {
    let url = format!("http://{host}:{port}{path}");
    let failed = |error: std::io::Error| format!("Get \"{url}\": {error}");
    let mut stream = TcpStream::connect((host, port)).await.map_err(failed)?;
    let clean = |text: &str| text.replace(['\r', '\n'], "");
    let mut request = format!("GET {} HTTP/1.1\r\n", clean(path).replace(' ', "%20"));
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
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    while !answer.contains(&b'\n') && answer.len() < STATUS_LINE_BYTES_MAX {
        let mut buffer = [0; 512];
        match stream.read(&mut buffer).await.map_err(failed)? {
            0 => break,
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    let line = String::from_utf8_lossy(&answer);
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse::<u16>().ok());
    match status {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
        None => Err(format!("Get \"{url}\": the answer is not HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(success_threshold: u32, failure_threshold: u32) -> Probe {
        Probe {
            check: Check::Tcp { host: None, port: 1 },
            initial_delay_seconds: 0,
            period_seconds: 1,
            timeout_seconds: 1,
            success_threshold,
            failure_threshold,
        }
    }

    #[test]
    fn verdicts_need_results_in_a_row() {
        let mut counter = Counter::new(&probe(1, 3));
        let fed: Vec<_> =
            [true, false, false, true, false, false, false, false, true].map(|it| counter.feed(it)).into();
        let expect = [Some(true), None, None, Some(true), None, None, Some(false), None, Some(true)];
        assert_eq!(fed, expect);
        let mut counter = Counter::new(&probe(2, 1));
        assert_eq!([false, true, true].map(|it| counter.feed(it)), [Some(false), None, Some(true)]);
    }

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
            let check = Check::Http { host: None, port, path: path.into(), headers };
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
