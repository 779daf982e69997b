//! The one plain HTTP port: git, registry, metrics, health.

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use naru_gateway::Gateway;
use naru_node::Node;
use naru_registry::Registry;
use std::fmt::Write;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub struct Parts {
    pub git: naru_git::Config,
    pub registry: Registry,
    pub gateway: Gateway,
    pub node: Node,
}

pub fn router(parts: Parts) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .with_state((parts.gateway, parts.node))
        .nest("/git", naru_git::router(parts.git))
        .merge(parts.registry.router())
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
