//! The data plane with real sockets: small servers behind, raw clients in front, the table made of
//! objects as the control loop makes it.

use crate::table::{Objects, Table, compile};
use crate::{Config, Gateway};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A server that answers with its name and with what it was sent.
struct Pod {
    address: SocketAddr,
    requests: Arc<AtomicU32>,
    connections: Arc<AtomicU32>,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Pod {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, connections) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let stop = CancellationToken::new();
        let (counted, opened, stopped) = (Arc::clone(&requests), Arc::clone(&connections), stop.clone());
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                opened.fetch_add(1, Relaxed);
                let counted = Arc::clone(&counted);
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    counted.fetch_add(1, Relaxed);
                    pod_answer(name, request)
                });
                let stopped = stopped.clone();
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    tokio::select! { _ = connection => {}, () = stopped.cancelled() => {} }
                });
            }
        });
        Self { address, requests, connections, task, stop }
    }

    /// As a killed container: every connection is gone at once and new ones are refused.
    async fn kill(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        self.stop.cancel();
    }
}

async fn pod_answer(
    name: &'static str,
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 5];
            stream.read_exact(&mut buffer).await.unwrap();
            stream.write_all(&buffer.map(|it| it.to_ascii_uppercase())).await.unwrap();
        });
        let response =
            Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
        return Ok(response.body(Full::default()).unwrap());
    }
    let headers: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .collect();
    if path == "/slow" {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let uri = request.uri().to_string();
    let body = request.into_body().collect().await.map(|it| it.to_bytes()).unwrap_or_default();
    let text = match path.as_str() {
        "/name" | "/slow" => name.to_owned(),
        "/big" => "x".repeat(3 << 20),
        _ => format!("{name} {uri}\n{}\n\n{}", headers.join("\n"), String::from_utf8_lossy(&body)),
    };
    Ok(Response::builder().header("keep-alive", "timeout=5").body(Full::from(text)).unwrap())
}

struct Fixture {
    gateway: Gateway,
    shutdown: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl Fixture {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shutdown = CancellationToken::new();
        let config =
            Config { backend_header: true, threads: 2, hold: Duration::from_secs(2), ..Config::default() };
        Self { gateway: Gateway::serve(config, listener, None, shutdown.clone()), shutdown }
    }

    /// Host `shop` to these services: name, weight, pods.
    fn route(&self, backends: &[(&str, u64, &[&Pod])]) {
        let arc = |it: Vec<Value>| it.into_iter().map(Arc::new).collect::<Vec<_>>();
        let gateways = arc(vec![
            json!({"metadata": {"name": "g", "namespace": "d"}, "spec": {"gatewayClassName": "naru",
            "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}]}}),
        ]);
        let refs: Vec<Value> = backends
            .iter()
            .map(|(name, weight, _)| json!({"name": name, "port": 80, "weight": weight}))
            .collect();
        let routes = arc(vec![
            json!({"metadata": {"name": "shop", "namespace": "d"}, "spec": {"parentRefs": [{"name": "g"}],
            "hostnames": ["shop"], "rules": [{"backendRefs": refs, "timeouts": {"request": "1s"}}]}}),
        ]);
        let services = arc(backends.iter().map(|(name, ..)| {
            json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"ports": [{"port": 80}]}})
        }).collect());
        let mut slices = Vec::new();
        for (name, _, pods) in backends {
            for pod in *pods {
                slices.push(json!({"metadata": {"namespace": "d", "labels": {"kubernetes.io/service-name": name}},
                    "ports": [{"port": pod.address.port()}],
                    "endpoints": [{"addresses": [pod.address.ip().to_string()], "conditions": {"ready": true}}]}));
            }
        }
        let slices = arc(slices);
        let objects = Objects {
            gateways: &gateways,
            routes: &routes,
            services: &services,
            slices: &slices,
            grants: &[],
            secrets: &[],
        };
        let previous = self.gateway.shared.table.load_full();
        let (table, _) = compile(objects, &self.gateway.shared.metrics, &previous);
        self.gateway.shared.replace_table(table);
    }

    async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.gateway.address()).await.unwrap(), rest: Vec::new() }
    }
}

/// A client that writes bytes and reads one answer at a time.
struct Client {
    stream: TcpStream,
    rest: Vec<u8>,
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Client {
    async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
    }

    async fn get(&mut self, path: &str) -> Reply {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n")).await;
        self.reply().await.unwrap()
    }

    async fn reply(&mut self) -> Option<Reply> {
        let mut buffer = vec![0; 65536];
        loop {
            if let Some(end) = self.rest.windows(4).position(|it| it == b"\r\n\r\n") {
                let head = String::from_utf8(self.rest[..end].to_vec()).unwrap().to_ascii_lowercase();
                let length = head
                    .split("content-length: ")
                    .nth(1)
                    .map_or(0, |it| it.split("\r\n").next().unwrap().parse().unwrap());
                if self.rest.len() >= end + 4 + length {
                    let body = String::from_utf8_lossy(&self.rest[end + 4..end + 4 + length]).into_owned();
                    self.rest.drain(..end + 4 + length);
                    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                    return Some(Reply { status, head, body });
                }
            }
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.rest.extend_from_slice(&buffer[..n]),
            }
        }
    }

    async fn is_closed(&mut self) -> bool {
        let mut byte = [0; 1];
        matches!(
            tokio::time::timeout(Duration::from_secs(5), self.stream.read(&mut byte)).await,
            Ok(Ok(0) | Err(_))
        )
    }
}

#[tokio::test]
async fn a_request_reaches_its_pod_and_connections_are_kept() {
    let (it, pod) = (Fixture::start().await, Pod::start("one").await);
    it.route(&[("v1", 1, &[&pod])]);
    let mut client = it.client().await;
    client.send("POST /a?b=c HTTP/1.1\r\nHost: shop\r\nConnection: x-drop, close\r\nX-Drop: 1\r\nX-Keep: 2\r\nX-Forwarded-For: 6.6.6.6\r\nContent-Length: 4\r\n\r\nbody").await;
    let reply = client.reply().await.unwrap();
    assert_eq!(reply.status, 200);
    assert!(reply.body.starts_with("one /a?b=c\n") && reply.body.ends_with("\n\nbody"), "{}", reply.body);
    for want in [
        "x-keep: 2",
        "host: shop",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop",
        "content-length: 4",
    ] {
        assert!(reply.body.contains(want), "{want} in {}", reply.body);
    }
    assert!(!reply.body.contains("x-drop") && !reply.body.contains("6.6.6.6"));
    assert!(
        reply.head.contains("x-naru-backend: v1") && !reply.head.contains("keep-alive"),
        "{}",
        reply.head
    );
    assert!(client.is_closed().await, "as it asked for");

    let mut client = it.client().await;
    let before = pod.connections.load(Relaxed);
    for _ in 0..50 {
        assert_eq!(client.get("/name").await.body, "one");
    }
    assert!(pod.connections.load(Relaxed) <= before + 1, "one connection serves all requests of a thread");
    // Chunked both ways.
    client
        .send("POST /e HTTP/1.1\r\nhost: shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    assert!(client.reply().await.unwrap().body.ends_with("hello"));
    assert_eq!(client.get("/big").await.body.len(), 3 << 20);
    client.send("HEAD /big HTTP/1.1\r\nhost: shop\r\n\r\n").await;
    let mut head = [0; 12];
    client.stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[tokio::test]
async fn shares_are_exact_and_a_change_closes_nothing() {
    let (it, one, two) = (Fixture::start().await, Pod::start("one").await, Pod::start("two").await);
    it.route(&[("v1", 90, &[&one]), ("v2", 10, &[&two])]);
    let mut client = it.client().await;
    for _ in 0..1000 {
        assert_eq!(client.get("/name").await.status, 200);
    }
    assert_eq!((one.requests.load(Relaxed), two.requests.load(Relaxed)), (900, 100));
    it.route(&[("v1", 0, &[&one]), ("v2", 100, &[&two])]);
    for _ in 0..10 {
        assert_eq!(client.get("/name").await.body, "two", "the same client connection");
    }
    let text = it.gateway.metrics_text();
    assert!(
        text.contains("naru_gateway_requests_total{route=\"d/shop\",service=\"v1\",code=\"200\"} 900"),
        "{text}"
    );
    assert!(text.contains("naru_gateway_requests_under_way{route=\"d/shop\",service=\"v1\"} 0"), "{text}");
}

#[tokio::test]
async fn a_killed_pod_costs_no_request() {
    let (it, mut one, two) = (Fixture::start().await, Pod::start("one").await, Pod::start("two").await);
    it.route(&[("v1", 1, &[&one, &two])]);
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(it.client().await);
    }
    for client in &mut clients {
        for _ in 0..4 {
            assert_eq!(client.get("/name").await.status, 200);
        }
    }
    // Half of these are in the pod when it dies.
    let slow: Vec<_> = clients
        .into_iter()
        .map(|mut client| tokio::spawn(async move { (client.get("/slow").await.status, client) }))
        .collect();
    while one.requests.load(Relaxed) < 18 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    one.kill().await;
    let mut clients = Vec::new();
    for task in slow {
        let (status, client) = task.await.unwrap();
        assert_eq!(status, 200, "sent again to the other pod");
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.get("/name").await.body, "two");
        client.send("POST /name HTTP/1.1\r\nhost: shop\r\ncontent-length: 1\r\n\r\nx").await;
        assert_eq!(client.reply().await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_request_waits_for_a_pod_that_is_being_replaced() {
    let (it, mut one, two) = (Fixture::start().await, Pod::start("one").await, Pod::start("two").await);
    it.route(&[("v1", 1, &[&one])]);
    let mut client = it.client().await;
    assert_eq!(client.get("/name").await.body, "one");
    one.kill().await;
    let waiting = tokio::spawn(async move { client.get("/name").await });
    tokio::time::sleep(Duration::from_millis(60)).await;
    it.route(&[("v1", 1, &[])]);
    tokio::time::sleep(Duration::from_millis(60)).await;
    it.route(&[("v1", 1, &[&two])]);
    assert_eq!(waiting.await.unwrap().body, "two");

    // Not for ever.
    it.route(&[("v1", 1, &[])]);
    let mut client = it.client().await;
    let before = Instant::now();
    let reply = client.get("/name").await;
    assert_eq!(reply.status, 503);
    assert!(reply.body.contains("no pod of the service is ready"), "{}", reply.body);
    assert!((2..4).contains(&before.elapsed().as_secs()));
}

#[tokio::test]
async fn requests_before_the_first_table_wait_for_it() {
    let (it, pod) = (Fixture::start().await, Pod::start("one").await);
    let mut client = it.client().await;
    client.send("GET /name HTTP/1.1\r\nhost: shop\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    it.route(&[("v1", 1, &[&pod])]);
    assert_eq!(client.reply().await.unwrap().status, 200);
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_said() {
    let (it, pod) = (Fixture::start().await, Pod::start("one").await);
    it.route(&[("v1", 0, &[&pod])]);
    let mut client = it.client().await;
    assert_eq!(client.get("/").await.status, 500, "no backend has weight");
    client.send("GET / HTTP/1.1\r\nhost: other\r\n\r\n").await;
    assert_eq!(client.reply().await.unwrap().status, 404);
    it.route(&[("v1", 1, &[&pod])]);
    // The route allows one second.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hang = Pod { address: silent.local_addr().unwrap(), ..Pod::start("hang").await };
    it.route(&[("v1", 1, &[&hang])]);
    let before = Instant::now();
    assert_eq!(client.get("/").await.status, 504);
    assert!(before.elapsed() < Duration::from_millis(1900));
    assert!(it.gateway.metrics_text().contains("code=\"504\"} 1"));
}

#[tokio::test]
async fn ambiguous_requests_are_refused_and_not_forwarded() {
    let (it, pod) = (Fixture::start().await, Pod::start("one").await);
    it.route(&[("v1", 1, &[&pod])]);
    let long = "x".repeat(70_000);
    let many = (0..150).map(|it| format!("a{it}: b\r\n")).collect::<String>();
    for (request, statuses) in [
        (
            "POST / HTTP/1.1\r\nhost: shop\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde".to_owned(),
            &[400][..],
        ),
        ("POST / HTTP/1.1\r\nhost: shop\r\ncontent-length: +4\r\n\r\nabcd".to_owned(), &[400]),
        (
            "POST / HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n".to_owned(),
            &[400, 501],
        ),
        (
            "POST / HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            &[501],
        ),
        ("GET / HTTP/1.1\r\nhost : shop\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/1.1\r\nhost: shop\r\nx: a\r\n b\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/1.1\r\nhost: shop\r\nx: a\0b\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/1.1\r\nhost: shop\r\nhost: other\r\n\r\n".to_owned(), &[400]),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), &[400]),
        ("CONNECT shop:80 HTTP/1.1\r\nhost: shop\r\n\r\n".to_owned(), &[405, 400]),
        (format!("GET /{long} HTTP/1.1\r\nhost: shop\r\n\r\n"), &[414, 431]),
        (format!("GET / HTTP/1.1\r\nhost: shop\r\nx: {long}\r\n\r\n"), &[431]),
        (format!("GET / HTTP/1.1\r\nhost: shop\r\n{many}\r\n"), &[431]),
        ("NONSENSE\r\n\r\n".to_owned(), &[400]),
    ] {
        let mut client = it.client().await;
        client.send(&request).await;
        let reply = client
            .reply()
            .await
            .unwrap_or_else(|| panic!("no answer to {}", &request[..40.min(request.len())]));
        assert!(statuses.contains(&reply.status), "{} -> {}", &request[..80.min(request.len())], reply.head);
        assert!(
            client.is_closed().await,
            "the connection is closed after {}",
            &request[..40.min(request.len())]
        );
    }
    assert_eq!(pod.requests.load(Relaxed), 0, "nothing was forwarded");
    // Both lengths: hyper reads the chunks, drops the other length and closes (RFC 9112, 6.3), so what
    // follows is never taken for a request.
    let mut client = it.client().await;
    client
        .send("POST / HTTP/1.1\r\nhost: shop\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: shop\r\n\r\n")
        .await;
    assert!(!client.reply().await.unwrap().body.contains("content-length"));
    assert!(client.is_closed().await);
    assert_eq!(pod.requests.load(Relaxed), 1, "the second request was never one");
    // An absolute target counts more than Host, and pipelined requests are answered in order.
    let mut client = it.client().await;
    client
        .send(
            "GET http://shop/first HTTP/1.1\r\nhost: other\r\n\r\nGET /second HTTP/1.1\r\nhost: shop\r\n\r\n",
        )
        .await;
    let first = client.reply().await.unwrap();
    assert!(first.body.starts_with("one /first") && first.body.contains("host: shop"), "{}", first.body);
    assert!(client.reply().await.unwrap().body.starts_with("one /second"));
}

#[tokio::test]
async fn an_upgrade_goes_through() {
    let (it, pod) = (Fixture::start().await, Pod::start("one").await);
    it.route(&[("v1", 1, &[&pod])]);
    let mut client = it.client().await;
    client.send("GET /ws HTTP/1.1\r\nhost: shop\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    let reply = client.reply().await.unwrap();
    assert_eq!(reply.status, 101);
    assert!(reply.head.contains("upgrade: echo"));
    client.send("hello").await;
    let mut echo = [0; 5];
    client.stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"HELLO");
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_closes_the_idle() {
    let (it, pod) = (Fixture::start().await, Pod::start("one").await);
    it.route(&[("v1", 1, &[&pod])]);
    let mut idle = it.client().await;
    assert_eq!(idle.get("/name").await.status, 200);
    let mut busy = it.client().await;
    busy.send("GET /slow HTTP/1.1\r\nhost: shop\r\n\r\n").await;
    while pod.requests.load(Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    it.shutdown.cancel();
    assert!(idle.is_closed().await);
    assert_eq!(busy.reply().await.unwrap().status, 200);
    assert!(busy.is_closed().await);
    assert!(
        TcpStream::connect(it.gateway.address()).await.is_err()
            || Table::default()
                .find(
                    crate::hosts::Scheme::Http,
                    "",
                    &http::Uri::from_static("/"),
                    &http::Method::GET,
                    &http::HeaderMap::new()
                )
                .is_none()
    );
}
