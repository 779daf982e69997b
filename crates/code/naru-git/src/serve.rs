//! HTTP in front of `git http-backend` (CGI, RFC 3875): bodies stream both ways, so a push of any size
//! needs no memory, and what the hook prints reaches the pusher's terminal as it comes.

use crate::{Config, create, directory, is_valid_name};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_util::io::ReaderStream;

/// Requests below `/`: `/<repository>.git/info/refs` and so on.
pub fn router(config: Config) -> Router {
    Router::new().route("/{repository}/{*rest}", axum::routing::any(handle)).with_state(config)
}

fn refuse(status: StatusCode, message: &str) -> Response {
    (status, format!("{message}\n")).into_response()
}

async fn handle(
    State(config): State<Config>,
    Path((repository, rest)): Path<(String, String)>,
    request: Request,
) -> Response {
    let Some(name) = repository.strip_suffix(".git").filter(|it| is_valid_name(it)) else {
        let message = "a repository is named with lower-case letters, digits and dashes, and ends in .git";
        return refuse(StatusCode::NOT_FOUND, message);
    };
    let query = request.uri().query().unwrap_or_default().to_owned();
    let pushes = rest == "git-receive-pack" || query.contains("service=git-receive-pack");
    let known = matches!(rest.as_str(), "info/refs" | "git-upload-pack" | "git-receive-pack");
    if !known {
        return refuse(StatusCode::NOT_FOUND, "only git's smart protocol is served here");
    }
    let token = token_of(request.headers());
    let allowed = match &token {
        Some(it) if pushes => config.tokens.may_push(it),
        Some(it) => config.tokens.may_read(it, name),
        None => false,
    };
    if !allowed {
        let mut response = refuse(StatusCode::UNAUTHORIZED, "a valid token is needed as the password");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"naru\""));
        return response;
    }
    if pushes {
        if let Err(error) = create(&config, name).await {
            tracing::error!(%error, "push refused");
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string());
        }
    } else if !directory(&config.root, name).join("HEAD").exists() {
        return refuse(StatusCode::NOT_FOUND, "there is no such repository; the first push creates it");
    }
    match backend(&config, name, &rest, &query, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, repository = name, "git http-backend failed");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "git's backend could not be run")
        }
    }
}

/// The password of Basic, or the token of Bearer.
fn token_of(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    if let Some(token) = value.strip_prefix("Bearer ") {
        return Some(token.to_owned());
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(value.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    text.split_once(':').map(|(_, password)| password.to_owned())
}

/// Chunks of an answer on their way to a slow client.
const ANSWER_CHUNKS_MAX: usize = 16;

fn stream_of<T>(chunks: tokio::sync::mpsc::Receiver<T>) -> impl futures::Stream<Item = T> {
    futures::stream::unfold(chunks, |mut chunks| async move { Some((chunks.recv().await?, chunks)) })
}

async fn backend(
    config: &Config,
    name: &str,
    rest: &str,
    query: &str,
    request: Request,
) -> std::io::Result<Response> {
    let headers = request.headers();
    let header_of = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let mut command = crate::git();
    command
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &config.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", format!("/{name}.git/{rest}"))
        .env("REQUEST_METHOD", request.method().as_str())
        .env("QUERY_STRING", query)
        .env("REMOTE_USER", "naru")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("CONTENT_TYPE", header_of("content-type"))
        .env("HTTP_CONTENT_ENCODING", header_of("content-encoding"))
        .env("HTTP_GIT_PROTOCOL", header_of("git-protocol"))
        .env("GIT_PROTOCOL", header_of("git-protocol"))
        .env("NARU_HOOK", config.hook_command.join(" "))
        .env("NARU_REPOSITORY", name)
        .envs(config.hook_env.iter().map(|(a, b)| (a, b)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A push that was accepted goes on when its client goes away.
        .kill_on_drop(false);
    let length = header_of("content-length");
    if !length.is_empty() {
        command.env("CONTENT_LENGTH", length);
    }
    let pushes = rest == "git-receive-pack";
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().expect("asked for above");
    let mut stdout = BufReader::new(child.stdout.take().expect("asked for above"));
    let mut body = request.into_body().into_data_stream();
    tokio::spawn(async move {
        while let Some(Ok(chunk)) = body.next().await {
            if stdin.write_all(&chunk).await.is_err() {
                break;
            }
        }
    });

    let mut status = StatusCode::OK;
    let mut response_headers = HeaderMap::new();
    loop {
        let mut line = String::new();
        // A header of the backend is short; anything else is not a header.
        if (&mut stdout).take(8 * 1024).read_line(&mut line).await? == 0 {
            return Err(std::io::Error::other("the backend ended without an answer"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        if key.eq_ignore_ascii_case("status") {
            let code = value.split_whitespace().next().and_then(|it| it.parse().ok());
            status = code.and_then(|it: u16| StatusCode::from_u16(it).ok()).unwrap_or(status);
        } else if let (Ok(key), Ok(value)) = (key.parse::<HeaderName>(), value.trim().parse::<HeaderValue>())
        {
            response_headers.insert(key, value);
        }
    }
    tokio::spawn(async move {
        // Reaps the process once it has ended, whether or not the client is still there.
        let _ = child.wait().await;
    });
    // The answer goes through a channel, so that a client that goes away does not close the backend's
    // output: git would die of it between moving the ref and running the hook, and a push that says
    // "everything up-to-date" the next time would have no run.
    let (chunks_in, chunks) = tokio::sync::mpsc::channel(ANSWER_CHUNKS_MAX);
    tokio::spawn(async move {
        let mut output = ReaderStream::new(stdout);
        while let Some(chunk) = output.next().await {
            if chunks_in.send(chunk).await.is_err() && !pushes {
                break;
            }
        }
    });
    let mut response = Response::new(Body::from_stream(stream_of(chunks)));
    *response.status_mut() = status;
    *response.headers_mut() = response_headers;
    Ok(response)
}
