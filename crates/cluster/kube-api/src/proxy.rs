//! `pods/NAME:PORT/proxy/PATH` and `services/NAME:PORT/proxy/PATH`: a request passed on to a pod.

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderName, Request, Uri, header};
use hyper_util::rt::TokioIo;
use kube_kinds::selector::LabelSelector;
use kube_kinds::{Failure, int, list, table, text, uid};
use serde_json::Value;

use crate::request::Call;
use crate::streams;

/// Headers of one connection, which are not passed on.
const HOP_HEADERS: [HeaderName; 5] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::TE, header::TRAILER, header::UPGRADE];

/// Who answers: a pod and a port of it.
struct Target {
    pod: String,
    port: u16,
}

pub(crate) async fn serve(call: Call, parts: Parts, body: Body) -> Result<Response, Failure> {
    let (scheme, name, port) = split(call.name());
    if scheme == "https" {
        return Err(Failure::bad_request(
            "the proxy speaks http with pods; use kubectl port-forward for https",
        ));
    }
    let target = match call.kind.is_pod() {
        true => of_pod(&call, name, port)?,
        false => of_service(&call, name, port)?,
    };
    let pods = table::of("", "Pod").expect("the table of kinds has pods");
    let pod = call.api.objects().get(pods, call.namespace(), &target.pod)?;
    let node = streams::node(&call, &pod)?;
    let unavailable = |error: String| {
        Failure::new(503, "ServiceUnavailable", format!("error trying to reach service: {error}"))
    };
    let connection = node
        .port_forward(call.namespace(), &target.pod, uid(&pod), target.port)
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    let (mut sender, serving) = hyper::client::conn::http1::handshake(TokioIo::new(connection))
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let request = passed_on(&call, parts, body, target.port)?;
    let response = sender.send_request(request).await.map_err(|error| unavailable(error.to_string()))?;
    let mut response = response.map(Body::new);
    for name in HOP_HEADERS {
        response.headers_mut().remove(name);
    }
    Ok(response)
}

/// `[scheme:]name[:port]`.
fn split(name: &str) -> (&str, &str, &str) {
    match name.split(':').collect::<Vec<_>>().as_slice() {
        [scheme, name, port] => (scheme, name, port),
        [name, port] => ("", name, port),
        _ => ("", name, ""),
    }
}

fn of_pod(call: &Call, name: &str, port: &str) -> Result<Target, Failure> {
    let pod = call.api.objects().get(&call.kind, call.namespace(), name)?;
    let ports = list(&pod, "/spec/containers").iter().flat_map(|it| list(it, "/ports"));
    let number = match (port, port.parse()) {
        ("", _) => ports.map(|it| int(it, "/containerPort")).next().and_then(|it| u16::try_from(it).ok()),
        (_, Ok(number)) => Some(number),
        _ => ports
            .filter(|it| it["name"] == port)
            .map(|it| int(it, "/containerPort"))
            .next()
            .and_then(|it| u16::try_from(it).ok()),
    };
    Ok(Target { pod: name.into(), port: number.unwrap_or(80) })
}

/// An endpoint of the service that is ready.
fn of_service(call: &Call, name: &str, port: &str) -> Result<Target, Failure> {
    let service = call.api.objects().get(&call.kind, call.namespace(), name)?;
    let ports = list(&service, "/spec/ports");
    let wanted = ports.iter().find(|it| {
        port.is_empty() && ports.len() == 1
            || it["name"] == port
            || it["port"] == port.parse::<i64>().unwrap_or(0)
    });
    let Some(wanted) = wanted else {
        return Err(Failure::new(
            503,
            "ServiceUnavailable",
            format!("no service port {port:?} found for service {name:?}"),
        ));
    };
    let slices = table::of("discovery.k8s.io", "EndpointSlice").expect("the table of kinds has slices");
    let of_service = LabelSelector::parse(&format!("kubernetes.io/service-name={name}"))?;
    for slice in call.api.objects().list(slices, Some(call.namespace()), &of_service) {
        let own = |it: &&Value| text(it, "/name") == text(wanted, "/name");
        let number = list(&slice, "/ports").iter().find(own).map(|it| int(it, "/port"));
        let ready = list(&slice, "/endpoints")
            .iter()
            .find(|it| it["conditions"]["ready"] != false && it["targetRef"]["kind"] == "Pod");
        if let (Some(Ok(port)), Some(endpoint)) = (number.map(u16::try_from), ready) {
            return Ok(Target { pod: text(endpoint, "/targetRef/name").into(), port });
        }
    }
    Err(Failure::new(503, "ServiceUnavailable", format!("no endpoints available for service {name:?}")))
}

/// The same request below the proxy's own path.
fn passed_on(call: &Call, parts: Parts, body: Body, port: u16) -> Result<Request<Body>, Failure> {
    let path = parts.uri.path();
    let below = path.split_once("/proxy").map_or("", |(_, rest)| rest);
    let below = if below.is_empty() { "/" } else { below };
    let target = match parts.uri.query() {
        Some(query) => format!("{below}?{query}"),
        None => below.to_string(),
    };
    let uri: Uri = target.parse().map_err(|_| Failure::bad_request("the path below /proxy is not valid"))?;
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = parts.headers;
    let headers = request.headers_mut();
    for name in HOP_HEADERS {
        headers.remove(name);
    }
    // The pod must not learn how the client authenticates here.
    headers.remove(header::AUTHORIZATION);
    if let Ok(host) = format!("{}:{port}", call.name().split(':').next().unwrap_or_default()).parse() {
        headers.insert(header::HOST, host);
    }
    Ok(request)
}
