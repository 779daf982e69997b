//! The way of a request: read, matched, sent to a pod, its answer passed back as it comes.
//!
//! Input is taken strictly: what two readers could understand differently is refused and the connection
//! closed, nothing is forwarded. The message that goes on is written anew by us, so a pod never sees the
//! framing that a client sent.

use crate::Shared;
use crate::connection::{Peer, connection};
use crate::filters;
use crate::hosts::Scheme;
use crate::message::{forwarded, is_idempotent, is_upgrade, remove_hop_by_hop, repeated};
use crate::metrics::Series;
use crate::pool::{Pool, Sender};
use crate::table::{Backend, Endpoint, Rule, Table, Target};
use crate::tls;
use arc_swap::{ArcSwap, Cache};
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

pub const HEAD_BYTES_MAX: usize = 64 * 1024; // of a request's head; larger ones get 431
pub const HEADERS_MAX: usize = 100; // likewise
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30); // from the first byte, and for idle connections
const CONNECTIONS_MAX: usize = 8_192; // per thread; further ones wait in the kernel
const HELD_MAX: usize = 1_024; // requests that wait for a pod, per thread; further ones get their 503 at once
const ATTEMPTS_MAX: usize = 4; // sends of one request; more would multiply an overload
/// How long an endpoint that refused a connection is spared.
const EJECTION: Duration = Duration::from_secs(1);
const ACCEPT_RETRY: Duration = Duration::from_millis(50); // when the process is out of descriptors
/// After our own start pods are still being found again: a service without any is worth waiting for.
const START_GRACE: Duration = Duration::from_secs(30);
const TIDY_EVERY: Duration = Duration::from_secs(5);

const X_NARU_BACKEND: HeaderName = HeaderName::from_static("x-naru-backend");

/// Starts the serving threads.
pub fn start(
    shared: &Arc<Shared>,
    listener: &StdListener,
    scheme: Scheme,
    threads: usize,
    shutdown: &CancellationToken,
) {
    for index in 0..threads {
        let (shared, shutdown) = (Arc::clone(shared), shutdown.clone());
        let listener = match listener.try_clone() {
            Ok(it) => it,
            Err(error) => return tracing::error!(%error, "the gateway cannot listen"),
        };
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => LocalSet::new().block_on(&runtime, serve(shared, listener, scheme, shutdown)),
                Err(error) => tracing::error!(%error, "a gateway thread cannot start"),
            }
        };
        if let Err(error) = std::thread::Builder::new()
            .name(format!(
                "{}-{index}",
                match scheme {
                    Scheme::Http => "gateway",
                    Scheme::Https => "gateway-tls",
                }
            ))
            .spawn(body)
        {
            tracing::error!(%error, "a gateway thread cannot start");
        }
    }
}

/// What a thread's connections have in common.
pub struct Worker {
    shared: Arc<Shared>,
    table: RefCell<Cache<Arc<ArcSwap<Table>>, Arc<Table>>>,
    pool: Pool,
    started: Instant,
    held: Cell<usize>,
    pub is_draining: Cell<bool>,
    /// Of every open connection, to tell it of the drain.
    pub connections: RefCell<HashMap<u64, Option<Waker>>>,
}

async fn serve(shared: Arc<Shared>, listener: StdListener, scheme: Scheme, shutdown: CancellationToken) {
    let listener = match TcpListener::from_std(listener) {
        Ok(it) => it,
        Err(error) => return tracing::error!(%error, "the gateway cannot listen"),
    };
    let acceptor = (scheme == Scheme::Https).then(|| Rc::new(tls::acceptor(&shared)));
    let worker = Rc::new(Worker {
        table: RefCell::new(Cache::new(Arc::clone(&shared.table))),
        shared,
        pool: Pool::default(),
        started: Instant::now(),
        held: Cell::new(0),
        is_draining: Cell::new(false),
        connections: RefCell::default(),
    });
    let tidying = Rc::clone(&worker);
    tokio::task::spawn_local(async move {
        loop {
            tokio::time::sleep(TIDY_EVERY).await;
            tidying.pool.tidy(Instant::now());
        }
    });
    let accept = async {
        for id in 0.. {
            while worker.connections.borrow().len() >= CONNECTIONS_MAX {
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
            match listener.accept().await {
                Ok((stream, peer)) => {
                    worker.connections.borrow_mut().insert(id, None);
                    tokio::task::spawn_local(connection(
                        Rc::clone(&worker),
                        id,
                        stream,
                        peer,
                        acceptor.clone(),
                    ));
                }
                Err(error) => {
                    tracing::warn!(%error, "the gateway cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown.cancelled() => {}
    }
    drop(listener);
    worker.is_draining.set(true);
    worker.connections.borrow_mut().values_mut().filter_map(Option::take).for_each(Waker::wake);
    let deadline = Instant::now() + worker.shared.config.drain;
    while !worker.connections.borrow().is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Why a request is not forwarded.
struct Refusal {
    status: StatusCode,
    why: &'static str,
}

const fn refusal(status: StatusCode, why: &'static str) -> Refusal {
    Refusal { status, why }
}

/// What two readers could understand differently, or what is no request to a web server.
fn check(request: &Request<Incoming>) -> Result<(), Refusal> {
    let headers = request.headers();
    let bad = |why| Err(refusal(StatusCode::BAD_REQUEST, why));
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return bad("more than one Host"),
        (None, _) if request.version() == Version::HTTP_11 => return bad("no Host"),
        _ => {}
    }
    // hyper refuses lengths that differ, folds equal ones, and with both kinds of length drops
    // Content-Length and closes the connection; the tests hold it to that.
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next()
        && (encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(refusal(
            StatusCode::NOT_IMPLEMENTED,
            "only the transfer encoding `chunked` is understood",
        ));
    }
    if request.method() == Method::CONNECT {
        return Err(refusal(StatusCode::METHOD_NOT_ALLOWED, "this is no forward proxy"));
    }
    Ok(())
}

pub async fn answer(
    worker: Rc<Worker>,
    client: Rc<Peer>,
    mut request: Request<Incoming>,
) -> Response<Answer> {
    let started = Instant::now();
    let table = worker.table();
    let mut ticket = Ticket { series: Arc::clone(&table.unmatched), code: 499, started, counts_abort: false };
    ticket.series.under_way.fetch_add(1, Relaxed);
    if let Err(refusal) = check(&request) {
        let mut response = ticket.text(refusal.status, refusal.why);
        // Nobody knows where this message ends and the next begins.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let is_upgrade = is_upgrade(request.headers());
    let upgrade = is_upgrade.then(|| hyper::upgrade::on(&mut request));
    let mut request = forwarded(request, &client, is_upgrade);
    let scheme = client.scheme;
    let table = if table.is_known { table } else { worker.first_table(started).await };
    if let Some(name) = &client.server_name
        && !table.certificates.may_ask(name, host_of(&request))
    {
        return ticket.text(StatusCode::MISDIRECTED_REQUEST, "this connection was made for another host");
    }
    let Some(rule) = find(&table, scheme, &request) else {
        if !table.is_known {
            return ticket.text(StatusCode::SERVICE_UNAVAILABLE, "the gateway does not know its routes yet");
        }
        return ticket.text(StatusCode::NOT_FOUND, "no route for this host and path");
    };
    let mut rule = Arc::clone(rule);
    drop(table);
    if let Some(response) = redirected(&rule, scheme, &request) {
        let (status, to) = response;
        let mut response = ticket.text(status, "the page is elsewhere");
        response.headers_mut().insert(filters::REDIRECT_HEADER, to);
        return response;
    }
    // Rules are found by what was asked, not by what is made of it.
    let asked = rule.filters.as_ref().map(|it| {
        let asked = head(&request);
        it.request(&mut request, rule.prefix());
        asked
    });
    let Some(mut target) = rule.next().cloned() else {
        return ticket.text(StatusCode::INTERNAL_SERVER_ERROR, "the route's backends all have weight 0");
    };
    ticket.switch_to(&target.series);
    let can_repeat = !is_upgrade && is_idempotent(request.method()) && request.body().is_end_stream();
    let give_up = started + rule.timeout.unwrap_or(worker.shared.config.request_timeout);
    let mut attempts = 0;
    let (response, sender, address) = loop {
        let Some(backend) = &target.backend else {
            return ticket
                .text(StatusCode::INTERNAL_SERVER_ERROR, "the route names a backend that does not exist");
        };
        let Some((mut sender, endpoint, reused)) = worker.connect(backend).await else {
            // All its pods are being replaced: the request waits for the first that is ready.
            if !worker.hold(backend, started).await {
                return ticket.text(StatusCode::SERVICE_UNAVAILABLE, "no pod of the service is ready");
            }
            let table = worker.table();
            let now = match &asked {
                Some(asked) => find(&table, scheme, asked),
                None => find(&table, scheme, &request),
            };
            if let Some(now) = now {
                rule = Arc::clone(now);
            }
            if let Some(next) = rule.again(&target) {
                target = next.clone();
                ticket.switch_to(&target.series);
            }
            continue;
        };
        attempts += 1;
        let spare = (can_repeat && attempts < ATTEMPTS_MAX).then(|| repeated(&request));
        let sent = tokio::time::timeout_at(give_up.into(), sender.try_send_request(request)).await;
        match sent {
            Ok(Ok(response)) => break (response, sender, endpoint.address),
            Ok(Err(mut error)) => {
                worker.failed(&endpoint, reused);
                // Either it was never sent, or it may be sent twice.
                request = match (error.take_message().filter(|_| attempts < ATTEMPTS_MAX), spare) {
                    (Some(unsent), _) => unsent,
                    (None, Some(spare)) => spare,
                    (None, None) => {
                        return ticket.text(StatusCode::BAD_GATEWAY, "the pod broke off before it answered");
                    }
                };
            }
            Err(_) => return ticket.text(StatusCode::GATEWAY_TIMEOUT, "the pod did not answer in time"),
        }
    };
    ticket.code = response.status().as_u16();
    let mut response = passed_back(
        &worker,
        response,
        Connection { worker: Rc::clone(&worker), sender: Some((address, sender)) },
        ticket,
        &target,
        upgrade,
    );
    if let Some(filters) = &rule.filters {
        filters.response(response.headers_mut());
    }
    response
}

/// Where the rule sends the asker instead, if it does.
fn redirected<B>(rule: &Rule, scheme: Scheme, request: &Request<B>) -> Option<(StatusCode, HeaderValue)> {
    rule.filters.as_ref()?.redirect(scheme.as_str(), host_of(request), request.uri(), rule.prefix())
}

fn host_of<B>(request: &Request<B>) -> &str {
    request.headers().get(HOST).and_then(|it| it.to_str().ok()).unwrap_or_default()
}

/// A request without its body.
fn head<B>(request: &Request<B>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.headers_mut() = request.headers().clone();
    head
}

fn find<'a, B>(table: &'a Table, scheme: Scheme, request: &Request<B>) -> Option<&'a Arc<Rule>> {
    table.find(scheme, host_of(request), request.uri(), request.method(), request.headers())
}

/// The answer on its way back, its framing ours.
fn passed_back(
    worker: &Worker,
    mut response: Response<Incoming>,
    connection: Connection,
    mut ticket: Ticket,
    target: &Target,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
) -> Response<Answer> {
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if switched {
        let Some(client) = upgrade else {
            return ticket.text(StatusCode::BAD_GATEWAY, "the pod switched protocols without being asked");
        };
        let pod = hyper::upgrade::on(&mut response);
        tokio::task::spawn_local(async move {
            if let (Ok(client), Ok(pod)) = (client.await, pod.await) {
                let (mut client, mut pod) = (TokioIo::new(client), TokioIo::new(pod));
                let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
            }
            drop(ticket);
        });
        let (mut parts, _) = response.into_parts();
        mark(worker, &mut parts.headers, target);
        return Response::from_parts(
            parts,
            Answer { body: Content::Text(None), connection: None, ticket: None },
        );
    }
    ticket.counts_abort = true;
    let (mut parts, body) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers);
    mark(worker, &mut parts.headers, target);
    parts.version = Version::HTTP_11;
    Response::from_parts(
        parts,
        Answer { body: Content::Pod(body, false), connection: Some(connection), ticket: Some(ticket) },
    )
}

fn mark(worker: &Worker, headers: &mut HeaderMap, target: &Target) {
    if worker.shared.config.backend_header {
        headers.insert(X_NARU_BACKEND, target.service.clone());
    }
}

impl Worker {
    fn table(&self) -> Arc<Table> {
        Arc::clone(self.table.borrow_mut().load())
    }

    /// The table once there is one, or the empty one when that takes too long.
    async fn first_table(&self, since: Instant) -> Arc<Table> {
        let mut version = self.shared.version.subscribe();
        let deadline = since + self.shared.config.hold;
        let _ = tokio::time::timeout_at(deadline.into(), version.wait_for(|it| *it > 0)).await;
        self.table()
    }

    fn now_ms(&self, now: Instant) -> u64 {
        // One clock for all threads: they start within a millisecond, and ejections last a second.
        u64::try_from(now.duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// A connection to some pod of the backend; true if it was in use before.
    async fn connect(&self, backend: &Backend) -> Option<(Sender, Arc<Endpoint>, bool)> {
        for attempt in 0..backend.endpoints.len().min(ATTEMPTS_MAX) {
            let now = Instant::now();
            let endpoint = backend.next(self.now_ms(now), attempt)?;
            if let Some(sender) = self.pool.take(endpoint.address, now) {
                return Some((sender, Arc::clone(endpoint), true));
            }
            match self.pool.connect(endpoint.address).await {
                Ok(sender) => return Some((sender, Arc::clone(endpoint), false)),
                Err(error) => {
                    tracing::debug!(pod = %endpoint.address, %error, "a pod does not take connections");
                    self.eject(endpoint);
                }
            }
        }
        None
    }

    fn eject(&self, endpoint: &Endpoint) {
        let until = self.now_ms(Instant::now() + EJECTION);
        endpoint.ejected_until_ms.store(until, Relaxed);
    }

    /// A kept connection may have been closed by the pod at any time, which says little about the pod; its
    /// neighbours are probably closed too. A new one that breaks says more.
    fn failed(&self, endpoint: &Endpoint, reused: bool) {
        self.pool.forget(endpoint.address);
        if !reused {
            self.eject(endpoint);
        }
    }

    /// Waits until the table has changed, or a little. False once waiting has no prospect.
    async fn hold(&self, backend: &Backend, since: Instant) -> bool {
        let deadline = since + self.shared.config.hold;
        let has_prospect = backend.had_endpoints || self.started.elapsed() < START_GRACE;
        if !has_prospect
            || self.held.get() >= HELD_MAX
            || Instant::now() >= deadline
            || self.is_draining.get()
        {
            return false;
        }
        let mut version = self.shared.version.subscribe();
        let holding = Holding::new(&self.held);
        // Without a change: perhaps a pod that refused connections takes them again.
        let pause = Duration::from_millis(25).min(deadline.saturating_duration_since(Instant::now()));
        let _ = tokio::time::timeout(pause, version.changed()).await;
        drop(holding);
        true
    }
}

/// Counts a held request for as long as it is held, whatever becomes of it.
struct Holding<'a>(&'a Cell<usize>);

impl<'a> Holding<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Counts one request when it is over, however it ends.
struct Ticket {
    series: Arc<Series>,
    /// 499 until there is an answer: the client has gone.
    code: u16,
    started: Instant,
    counts_abort: bool,
}

impl Ticket {
    fn switch_to(&mut self, series: &Arc<Series>) {
        if !Arc::ptr_eq(&self.series, series) {
            self.series.under_way.fetch_sub(1, Relaxed);
            series.under_way.fetch_add(1, Relaxed);
            self.series = Arc::clone(series);
        }
    }

    /// An answer of our own.
    fn text(mut self, status: StatusCode, why: &'static str) -> Response<Answer> {
        self.code = status.as_u16();
        let text = Bytes::from(format!("{}: {why}\n", status.as_u16()));
        let mut response =
            Response::new(Answer { body: Content::Text(Some(text)), connection: None, ticket: Some(self) });
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(http::header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.series.under_way.fetch_sub(1, Relaxed);
        self.series.count(self.code, self.started.elapsed());
    }
}

/// The connection that an answer comes from, to be used again once it has come whole.
struct Connection {
    worker: Rc<Worker>,
    sender: Option<(SocketAddr, Sender)>,
}

/// The body of an answer. Whole or not, dropping it ends the request.
pub struct Answer {
    body: Content,
    connection: Option<Connection>,
    ticket: Option<Ticket>,
}

enum Content {
    /// And whether its end has been seen.
    Pod(Incoming, bool),
    Text(Option<Bytes>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Content::Pod(body, ended) => {
                let polled = Pin::new(body).poll_frame(context);
                if matches!(polled, Poll::Ready(None)) {
                    *ended = true;
                }
                polled
            }
            Content::Text(text) => Poll::Ready(text.take().map(|it| Ok(Frame::data(it)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            Content::Pod(body, ended) => *ended || body.is_end_stream(),
            Content::Text(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Content::Pod(body, _) => body.size_hint(),
            Content::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |it| it.len() as u64)),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let is_whole = self.is_end_stream();
        if is_whole
            && let Some(connection) = &mut self.connection
            && let Some((address, sender)) = connection.sender.take()
        {
            connection.worker.pool.put(address, sender, Instant::now());
        }
        if !is_whole && let Some(ticket) = self.ticket.as_ref().filter(|it| it.counts_abort) {
            ticket.series.aborted.fetch_add(1, Relaxed);
        }
    }
}

/// The body of a request on its way to a pod.
pub struct Outgoing(pub Option<Incoming>);

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
