//! Messages as they are passed on: headers of one connection stay behind, claims of the client are replaced.

use crate::connection::Peer;
use crate::proxy::Outgoing;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use hyper::body::{Body, Incoming};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// The request as the pod gets it.
pub fn forwarded(request: Request<Incoming>, client: &Peer, is_upgrade: bool) -> Request<Outgoing> {
    let (mut parts, body) = request.into_parts();
    let upgrade = if is_upgrade { parts.headers.get(UPGRADE).cloned() } else { None };
    remove_hop_by_hop(&mut parts.headers);
    parts.headers.remove(EXPECT); // answered by us once the pod reads the body
    if let Some(protocol) = upgrade {
        parts.headers.insert(UPGRADE, protocol);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if let Some(authority) = parts.uri.authority() {
        // An absolute target says more than Host.
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            parts.headers.insert(HOST, host);
        }
        let path =
            parts.uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
        parts.uri = Uri::from(path);
    }
    // What a client claims about itself is replaced: nobody stands in front of this gateway.
    parts.headers.insert(X_FORWARDED_FOR, client.address.clone());
    parts.headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(client.scheme.as_str()));
    match parts.headers.get(HOST).cloned() {
        Some(host) => parts.headers.insert(X_FORWARDED_HOST, host),
        None => parts.headers.remove(X_FORWARDED_HOST),
    };
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    parts.version = Version::HTTP_11;
    let body = if body.is_end_stream() { Outgoing(None) } else { Outgoing(Some(body)) };
    Request::from_parts(parts, body)
}

/// HTTP/2 may send crumbs of one cookie header; HTTP/1.1 knows one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, whole);
    }
}

/// A second copy of a request without a body.
pub fn repeated(request: &Request<Outgoing>) -> Request<Outgoing> {
    let mut copy = Request::new(Outgoing(None));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    copy
}

pub fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers.get_all(CONNECTION).iter().any(|it| {
            it.as_bytes().split(|it| *it == b',').any(|it| it.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        })
}

/// Headers that are about one connection only, and those that `Connection` says are.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|it| it.as_bytes().split(|it| *it == b','))
            .filter_map(|it| HeaderName::from_bytes(it.trim_ascii()).ok())
            // Naming these would make us drop what the message needs.
            .filter(|it| !matches!(*it, HOST | CONTENT_LENGTH | CONTENT_TYPE))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        TRANSFER_ENCODING,
        UPGRADE,
        TE,
        TRAILER,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
    ] {
        headers.remove(name);
    }
}
