//! The socket: versions in paths, routes, connections.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, head, post};
use http::{HeaderValue, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::caller::Caller;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::system::{API_MAX, API_MIN, version_text};
use crate::{
    archive, attach, build, bundle, containers, events, exec, images, logs, networks, stats, system,
    transfer, volumes,
};

/// What is read whole before it is answered.
const SMALL_BODY_BYTES: usize = 64 * 1024;

/// Binds the socket: whoever may write to it is as good as root, so only root and its group may.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        // What an earlier daemon left; another's that lives is not taken.
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there already"));
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there and no socket")),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn routes(engine: Engine) -> Router {
    let swarm = ["/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs"];
    let mut router = Router::new()
        .route("/_ping", get(system::ping).head(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/auth", post(system::auth))
        .route("/events", get(events::events))
        .route("/system/df", get(system::df))
        .route("/containers/json", get(containers::list))
        .route("/containers/create", post(containers::create))
        .route("/containers/prune", post(containers::prune))
        .route("/containers/{id}", delete(containers::remove))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/start", post(containers::start))
        .route("/containers/{id}/stop", post(containers::stop))
        .route("/containers/{id}/restart", post(containers::restart))
        .route("/containers/{id}/kill", post(containers::kill))
        .route("/containers/{id}/pause", post(containers::pause))
        .route("/containers/{id}/unpause", post(containers::unpause))
        .route("/containers/{id}/wait", post(containers::wait))
        .route("/containers/{id}/rename", post(containers::rename))
        .route("/containers/{id}/update", post(containers::update))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}/attach", post(attach::attach))
        .route("/containers/{id}/resize", post(attach::resize))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/top", get(stats::top))
        .route("/containers/{id}/changes", get(archive::changes))
        .route("/containers/{id}/export", get(archive::export))
        .route("/containers/{id}/archive", head(archive::head).get(archive::get).put(archive::put))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
        .route("/build", post(build::build))
        .route("/build/prune", post(build::prune))
        .route("/commit", post(transfer::commit))
        .route("/images/json", get(images::list))
        .route("/images/create", post(transfer::create))
        .route("/images/get", get(bundle::save_many))
        .route("/images/load", post(bundle::load))
        .route("/images/prune", post(images::prune))
        .route("/images/search", get(images::search))
        .route("/images/{*rest}", get(images::get).post(images::post).delete(images::remove))
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route("/volumes/prune", post(volumes::prune))
        .route("/volumes/{name}", get(volumes::inspect).delete(volumes::remove))
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/{id}", get(networks::inspect).delete(networks::remove))
        .route("/networks/{id}/connect", post(networks::connect))
        .route("/networks/{id}/disconnect", post(networks::disconnect))
        .route("/plugins", get(system::no_plugins))
        .route("/session", post(crate::buildkit::session))
        .route("/grpc", post(crate::buildkit::control));
    for path in swarm {
        router = router
            .route(path, axum::routing::any(system::no_swarm))
            .route(&format!("{path}/{{*rest}}"), axum::routing::any(system::no_swarm));
    }
    router.fallback(system::not_found).method_not_allowed_fallback(system::not_found).with_state(engine)
}

/// The path without its version, or why that version is not spoken.
fn without_version(path: &str) -> Result<&str> {
    let Some((version, _)) = path.strip_prefix("/v").and_then(|it| it.split_once('/')) else {
        return Ok(path);
    };
    let parse = || {
        let (major, minor) = version.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    let Some(asked) = parse() else { return Ok(path) };
    if asked > API_MAX {
        return Err(Error::bad(format!(
            "client version {version} is too new. Maximum supported API version is {}",
            version_text(API_MAX)
        )));
    }
    if asked < API_MIN {
        return Err(Error::bad(format!(
            "client version {version} is too old. Minimum supported API version is {}, please upgrade your client to a \
             newer version",
            version_text(API_MIN)
        )));
    }
    Ok(&path[2 + version.len()..])
}

/// A small request's body is read before anything is answered: a client that is told no while it still writes may
/// find its connection broken instead of the answer.
async fn whole(request: Request<Body>) -> Result<Request<Body>> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok());
    if length.is_none_or(|it: usize| it > SMALL_BODY_BYTES) {
        return Ok(request);
    }
    let (head, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, SMALL_BODY_BYTES).await;
    let bytes = bytes.map_err(|it| Error::bad(format!("cannot read the request: {it}")))?;
    Ok(Request::from_parts(head, Body::from(bytes)))
}

async fn answer(router: Router, caller: Caller, mut request: Request<Body>) -> Response {
    let path = request.uri().path().to_owned();
    caller.mark(request.headers_mut());
    let mut request = match whole(request).await {
        Ok(it) => it,
        Err(error) => return error.into_response(),
    };
    let allowed = without_version(&path).and_then(|it| caller.check(request.method(), it).map(|()| it));
    let mut response = match allowed {
        Err(error) => error.into_response(),
        Ok(path) => {
            let query = request.uri().query().map(|it| format!("?{it}")).unwrap_or_default();
            match format!("{path}{query}").parse::<Uri>() {
                Ok(uri) => {
                    *request.uri_mut() = uri;
                    match router.oneshot(request).await {
                        Ok(response) => response,
                        Err(never) => match never {},
                    }
                }
                Err(_) => Error::bad("the path makes no sense").into_response(),
            }
        }
    };
    if response.status().is_server_error() {
        tracing::debug!(path, status = response.status().as_u16(), "a request of a Docker client failed");
    }
    let headers = response.headers_mut();
    let version = version_text(API_MAX);
    for (name, value) in [("api-version", version.as_str()), ("ostype", "linux"), ("server", "Naru (linux)")]
    {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

impl Engine {
    /// Serves the socket and follows the containers until `shutdown`.
    pub async fn serve(self, listener: UnixListener, shutdown: CancellationToken) {
        let following = self.follow(shutdown.clone());
        let router = routes(self);
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a Docker client");
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = shutdown.cancelled() => break,
            };
            let (router, shutdown) = (router.clone(), shutdown.clone());
            tokio::spawn(serve_connection(stream, router, Caller::Owner, shutdown));
        }
        let _ = following.await;
    }

    /// Makes of a request's connection one of this API, for the steps of a job: they build, pull, tag and push
    /// images.
    pub fn serve_job(self, mut request: Request, shutdown: CancellationToken) -> Response {
        let Some(upgrade) = crate::attach::upgrade_of(&mut request) else {
            return Error::bad("no upgrade in the request").into_response();
        };
        tokio::spawn(async move {
            if let Ok(connection) = upgrade.await {
                serve_connection(TokioIo::new(connection), routes(self), Caller::Job, shutdown).await;
            }
        });
        let headers = [(header::CONNECTION, "Upgrade"), (header::UPGRADE, "tcp")];
        (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    router: Router,
    caller: Caller,
    shutdown: CancellationToken,
) {
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(router, caller, request.map(Body::new)).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    // A client may close its side and still read.
    http.half_close(true);
    let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        // A client that goes away in the middle is its own affair.
        _ = connection => {}
        () = shutdown.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_negotiated_as_docker_does() {
        assert_eq!(without_version("/v1.41/containers/json").unwrap(), "/containers/json");
        assert_eq!(without_version("/volumes/v1").unwrap(), "/volumes/v1");
        assert!(without_version("/v1.12/info").unwrap_err().message.contains("too old"));
        assert!(without_version("/v1.99/info").unwrap_err().message.contains("too new"));
    }
}
