//! The one plain HTTP port: git, registry, metrics, health.

use crate::commands::ci::why;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use naru_builder::{BuildLogs, Builder, DiskReport, Keeper};
use naru_client::Client;
use naru_engine_api::Engine;
use naru_gateway::Gateway;
use naru_node::Node;
use naru_objects::{NAMESPACE, Run, kinds};
use naru_registry::Registry;
use naru_runner::controller::beside::Beside;
use naru_runner::controller::waiting_token_of;
use naru_runner::warm::Waiting;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub struct Parts {
    pub client: Client,
    pub git: naru_git::Config,
    pub registry: Registry,
    pub job_api: naru_job_api::Services,
    /// Where other git hosts report.
    pub hooks: Router,
    /// Repositories are also at `/<owner>/<name>`, as on GitHub.
    pub owner: String,
    /// Where pods that were started ahead ask for their jobs, and what their tokens are the keyed hash of.
    pub waiting: Arc<Waiting>,
    pub run_token: Arc<dyn Fn(&str) -> String + Send + Sync>,
    /// Starts containers beside jobs.
    pub beside: Arc<Beside>,
    /// What a job's Docker clients talk to, until the token says that we end.
    pub docker: Option<(Engine, CancellationToken)>,
    pub gateway: Gateway,
    pub node: Node,
    pub builds: BuildLogs,
    pub keeper: Keeper,
    pub builder: Builder,
    pub gate: naru_policy::Gate,
    /// What a client shows to follow builds.
    pub token: String,
}

pub fn router(parts: Parts) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .with_state((parts.gateway, parts.node))
        .merge(builds(parts.builds.clone(), parts.token.clone()))
        .merge(super::images::router(parts.builder.clone(), parts.gate, parts.token.clone()))
        .merge(
            Router::new()
                .route("/disk", get(disk).post(tidy))
                .with_state((parts.keeper, parts.token.clone())),
        )
        .merge(
            Router::new()
                .route("/runs/{name}", get(run_page))
                .with_state((parts.client, parts.token.clone())),
        )
        .nest("/git", naru_git::router(parts.git.clone()))
        .nest(&format!("/{}", parts.owner), naru_git::router(parts.git))
        .merge(parts.hooks)
        .merge(parts.job_api.router())
        .merge(super::beside::router(super::beside::Parts {
            beside: parts.beside,
            docker: parts.docker,
            builder: parts.builder,
            builds: parts.builds,
            waiting: parts.waiting.clone(),
            run_token: parts.run_token.clone(),
        }))
        .merge(
            Router::new()
                .route("/_apis/jobs/{pod}", get(next_job))
                .with_state((parts.waiting, parts.run_token)),
        )
        .merge(parts.registry.router())
}

/// What a pod is told that was lost with its node and comes back.
pub(super) const FENCED: &str = "the job of this pod was given to another, because its node was lost\n";

/// A pod's question is answered so late at the latest: both learn then that the other is there.
const QUESTION: Duration = Duration::from_secs(50);

async fn next_job(
    State((waiting, run_token)): State<(Arc<Waiting>, Arc<dyn Fn(&str) -> String + Send + Sync>)>,
    Path(pod): Path<String>,
    headers: http::HeaderMap,
) -> Response {
    if !knows(&run_token(&waiting_token_of(&pod)), &headers) {
        return (http::StatusCode::FORBIDDEN, "this is not the token of that pod\n").into_response();
    }
    match tokio::time::timeout(QUESTION, waiting.next(&pod)).await {
        Ok(Some(file)) => file.into_response(),
        Ok(None) => (http::StatusCode::GONE, FENCED).into_response(),
        Err(_) => http::StatusCode::NO_CONTENT.into_response(),
    }
}

/// What happens in builds. Their output may tell more than their images, so it asks for the token.
fn builds(logs: BuildLogs, token: String) -> Router {
    Router::new().route("/builds/{image}/events", get(build_events)).with_state((logs, token))
}

pub(super) const NEEDS_TOKEN: &str = "this needs the push token, as Bearer (`naru token` prints it)\n";

/// A run as `naru ci why` tells of it: where a commit's status on another host leads to. A browser asks for the
/// token as a password.
async fn run_page(
    State((client, token)): State<(Client, String)>,
    Path(name): Path<String>,
    headers: http::HeaderMap,
) -> Response {
    let given = headers.get(http::header::AUTHORIZATION).and_then(|it| it.to_str().ok());
    let digest = |it: &str| naru_image::Digest::of(it);
    if given.and_then(naru_token::credential).is_none_or(|it| digest(&it) != digest(&token)) {
        let ask = [(http::header::WWW_AUTHENTICATE, "Basic realm=\"naru\"")];
        return (http::StatusCode::UNAUTHORIZED, ask, NEEDS_TOKEN).into_response();
    }
    let found = client.get(&kinds::RUN, NAMESPACE, &name).await;
    match found.map(|it| it.and_then(|it| serde_json::from_value::<Run>(it).ok())) {
        Ok(Some(run)) => {
            let mut text = why::lines(&run).join("\n");
            let _ = write!(text, "\n\nits log: naru logs run/{name}\n");
            text.into_response()
        }
        Ok(None) => (http::StatusCode::NOT_FOUND, "there is no such run (any more)\n").into_response(),
        Err(error) => {
            tracing::error!(%error, "a run cannot be shown");
            (http::StatusCode::INTERNAL_SERVER_ERROR, "the run cannot be looked at; try again\n")
                .into_response()
        }
    }
}

async fn disk(State((keeper, token)): State<(Keeper, String)>, headers: http::HeaderMap) -> Response {
    if !knows(&token, &headers) {
        return (http::StatusCode::UNAUTHORIZED, NEEDS_TOKEN).into_response();
    }
    disk_answer(keeper.report().await.map_err(Into::into))
}

async fn tidy(State((keeper, token)): State<(Keeper, String)>, headers: http::HeaderMap) -> Response {
    match knows(&token, &headers) {
        true => disk_answer(keeper.tidy().await),
        false => (http::StatusCode::UNAUTHORIZED, NEEDS_TOKEN).into_response(),
    }
}

fn disk_answer(report: Result<DiskReport, Box<dyn std::error::Error + Send + Sync>>) -> Response {
    match report {
        Ok(report) => axum::Json(report).into_response(),
        Err(error) => {
            tracing::error!(error = &*error, "the disk cannot be measured");
            let text = format!("the disk cannot be measured: {error}\n");
            (http::StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

/// Digests are compared, so that the time it takes tells nothing about the token.
pub(super) fn knows(token: &str, headers: &http::HeaderMap) -> bool {
    let given = headers.get(http::header::AUTHORIZATION).and_then(|it| it.to_str().ok());
    let digest = |it: &str| naru_image::Digest::of(it);
    given.and_then(|it| it.strip_prefix("Bearer ")).is_some_and(|it| digest(it) == digest(token))
}

async fn build_events(
    State((logs, token)): State<(BuildLogs, String)>,
    Path(image): Path<String>,
    headers: http::HeaderMap,
) -> Response {
    if !knows(&token, &headers) {
        return (http::StatusCode::UNAUTHORIZED, NEEDS_TOKEN).into_response();
    }
    let events = logs.follow(&image).map(Ok::<_, std::convert::Infallible>);
    ([("content-type", "application/x-ndjson")], Body::from_stream(events)).into_response()
}

/// Serves until `shutdown`; requests under way may finish, streams that never end may not.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let stopped = shutdown.clone();
    let server =
        axum::serve(listener, router).with_graceful_shutdown(async move { stopped.cancelled().await });
    let bounded = async {
        shutdown.cancelled().await;
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    };
    tokio::select! {
        result = server => {
            if let Err(error) = result {
                tracing::error!(%error, "the HTTP server ended");
            }
        }
        () = bounded => {}
    }
}

async fn metrics(State((gateway, node)): State<(Gateway, Node)>) -> impl IntoResponse {
    let mut text = format!(
        "# TYPE naru_build_info gauge\nnaru_build_info{{version=\"{}\"}} 1\n",
        env!("CARGO_PKG_VERSION")
    );
    text.push_str(&gateway.metrics_text());
    let stats = node.stats().await;
    text.push_str("# TYPE naru_pod_cpu_seconds_total counter\n");
    for it in &stats {
        let _ = writeln!(
            text,
            "naru_pod_cpu_seconds_total{{namespace=\"{}\",pod=\"{}\"}} {}",
            it.namespace, it.pod, it.cpu_seconds
        );
    }
    if let Some(millis) = node.pipelines_limit() {
        text.push_str("# HELP naru_pipelines_cpu_limit_cores What builds and jobs may use together while the apps wait.\n");
        text.push_str("# TYPE naru_pipelines_cpu_limit_cores gauge\n");
        let _ = writeln!(text, "naru_pipelines_cpu_limit_cores {}", millis as f64 / 1000.0);
    }
    text.push_str("# TYPE naru_pod_memory_bytes gauge\n");
    for it in &stats {
        let _ = writeln!(
            text,
            "naru_pod_memory_bytes{{namespace=\"{}\",pod=\"{}\"}} {}",
            it.namespace, it.pod, it.memory_bytes
        );
    }
    ([("content-type", "text/plain; version=0.0.4")], text)
}
