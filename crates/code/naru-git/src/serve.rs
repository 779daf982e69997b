//! HTTP in front of `git http-backend` (CGI, RFC 3875): bodies stream both ways, so a push of any size
//! needs no memory, and what the hook prints reaches the pusher's terminal as it comes.

use crate::record::{JOB, PEOPLE};
use crate::{Config, create, directory, is_valid_name};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use naru_token::credential;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_util::io::ReaderStream;

/// Requests below `/`: `/<repository>.git/info/refs` and so on, with or without `.git`.
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
    let name = repository.strip_suffix(".git").unwrap_or(&repository);
    if !is_valid_name(name) {
        return refuse(
            StatusCode::NOT_FOUND,
            "a repository is named with lower-case letters, digits and dashes",
        );
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let pushes = rest == "git-receive-pack" || query.contains("service=git-receive-pack");
    let known = matches!(rest.as_str(), "info/refs" | "git-upload-pack" | "git-receive-pack");
    if !known {
        return refuse(StatusCode::NOT_FOUND, "only git's smart protocol is served here");
    }
    let who = match allowed(&config, request.headers(), name, pushes).await {
        Ok(who) => who,
        Err((status, message)) => {
            let mut response = refuse(status, &message);
            if status == StatusCode::UNAUTHORIZED {
                let ask = HeaderValue::from_static("Basic realm=\"naru\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
            }
            return response;
        }
    };
    if pushes {
        if let Err(error) = create(&config, name).await {
            tracing::error!(%error, "push refused");
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string());
        }
    } else if !directory(&config.root, name).join("HEAD").exists() {
        return refuse(StatusCode::NOT_FOUND, "there is no such repository; the first push creates it");
    }
    match backend(&config, name, &rest, &query, who, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, repository = name, "git http-backend failed");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "git's backend could not be run")
        }
    }
}

/// Who is let in, under the name that git's log of a ref notes.
async fn allowed(
    config: &Config,
    headers: &HeaderMap,
    name: &str,
    pushes: bool,
) -> Result<&'static str, (StatusCode, String)> {
    let given = headers.get(header::AUTHORIZATION).and_then(|it| credential(it.to_str().ok()?));
    let unknown = (StatusCode::UNAUTHORIZED, "a valid token is needed as the password".to_owned());
    let Some(token) = given else { return Err(unknown) };
    let tokens = &config.tokens;
    if if pushes { tokens.may_push(&token) } else { tokens.may_read(&token, name) } {
        return Ok(PEOPLE);
    }
    // A job's token has three parts; the others have one.
    if token.split('.').count() != 3 {
        return Err(unknown);
    }
    let claims = (config.jobs.0)(token).await.map_err(|it| (StatusCode::UNAUTHORIZED, it))?;
    let may = if pushes { claims.may_write("contents") } else { claims.may_read("contents") };
    match may && claims.repository == name {
        true => Ok(JOB),
        false if claims.repository != name => Err((
            StatusCode::FORBIDDEN,
            format!("the token of a job of {} opens no other repository", claims.repository),
        )),
        false => {
            let right = if pushes { "write" } else { "read" };
            let why = if claims.untrusted { ", which a change from outside never gets" } else { "" };
            Err((
                StatusCode::FORBIDDEN,
                format!("this needs `permissions: contents: {right}` in the job{why}"),
            ))
        }
    }
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
    who: &str,
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
        .env("REMOTE_USER", who)
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
    // No CONTENT_LENGTH: with one, the backend reads again and again what has ended before it, for ever. Without one
    // the end is the end, and git itself sees that a pack is not whole.
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
