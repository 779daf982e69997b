//! What a job asks for beside itself: a container in its own pod, and the image for one. Pipeline starts it,
//! package builds it; whoever asks proves that it is the pod.

use super::http::{FENCED, knows};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::StreamExt;
use naru_builder::{BuildLogs, Builder, Event, Order};
use naru_client::chain;
use naru_engine_api::Engine;
use naru_objects::{ImageSpec, NAMESPACE, Upload};
use naru_runner::controller::beside::{Beside, Image};
use naru_runner::controller::waiting_token_of;
use naru_runner::job::beside::{Request as Container, Said};
use naru_runner::warm::Waiting;
use serde::Deserialize;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// As much as a job may send, see [`naru_runner::job::beside`].
const CONTEXT_BYTES_MAX: usize = 256 * 1024 * 1024 + 1024;

#[derive(Clone)]
pub struct Parts {
    pub beside: Arc<Beside>,
    pub docker: Option<(Engine, CancellationToken)>,
    pub builder: Builder,
    pub builds: BuildLogs,
    pub waiting: Arc<Waiting>,
    pub run_token: Arc<dyn Fn(&str) -> String + Send + Sync>,
}

pub fn router(parts: Parts) -> Router {
    Router::new()
        .route("/_apis/jobs/{pod}/containers", post(start))
        .route("/_apis/jobs/{pod}/images", post(build))
        .route("/_apis/jobs/{pod}/docker", post(docker))
        .layer(DefaultBodyLimit::max(CONTEXT_BYTES_MAX))
        .with_state(parts)
}

impl Parts {
    fn refused(&self, pod: &str, headers: &http::HeaderMap) -> Option<Response> {
        let token = (self.run_token)(&waiting_token_of(pod));
        if !knows(&token, headers) {
            let refusal = (http::StatusCode::FORBIDDEN, "this is not the token of that pod\n");
            return Some(refusal.into_response());
        }
        self.waiting.is_fenced(pod).then(|| (http::StatusCode::GONE, FENCED).into_response())
    }
}

fn line(said: &Said) -> String {
    format!("{}\n", serde_json::to_string(said).expect("texts and numbers always serialise"))
}

/// A container beside a job's own, in its pod; what it says comes line by line.
async fn start(
    State(parts): State<Parts>,
    Path(pod): Path<String>,
    headers: http::HeaderMap,
    axum::Json(request): axum::Json<Container>,
) -> Response {
    if let Some(refused) = parts.refused(&pod, &headers) {
        return refused;
    }
    let found = parts.builder.store().ensure(&request.image, naru_image::PullPolicy::IfNotPresent).await;
    let image = match found {
        Ok(found) => Image { entrypoint: found.config.config.entrypoint, command: found.config.config.cmd },
        Err(error) => return line(&Said::Error(chain(&error))).into_response(),
    };
    let (said, mut lines) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move { parts.beside.run(&pod, &request, &image, &said).await });
    let stream = futures::stream::poll_fn(move |context| lines.poll_recv(context));
    Body::from_stream(stream.map(|it| Ok::<_, std::convert::Infallible>(line(&it)))).into_response()
}

/// The connection becomes one of the Docker Engine API, as far as jobs may use it.
async fn docker(State(parts): State<Parts>, Path(pod): Path<String>, request: Request) -> Response {
    if let Some(refused) = parts.refused(&pod, request.headers()) {
        return refused;
    }
    let no = |why: String| (http::StatusCode::FORBIDDEN, why).into_response();
    let Some((engine, shutdown)) = parts.docker else {
        return no("this server gives jobs no docker socket (--no-job-docker)".into());
    };
    match parts.beside.may_not_push(&pod).await {
        Ok(None) => {}
        Ok(Some(why)) => return no(why.into()),
        Err(error) => return no(error),
    }
    engine.serve_job(request, shutdown)
}

#[derive(Deserialize)]
struct Asked {
    dockerfile: String,
}

/// The image of an action that brings a Dockerfile, of the tar archive of its directory.
async fn build(
    State(parts): State<Parts>,
    Path(pod): Path<String>,
    Query(asked): Query<Asked>,
    headers: http::HeaderMap,
    context: Bytes,
) -> Response {
    if let Some(refused) = parts.refused(&pod, &headers) {
        return refused;
    }
    match parts.beside.may_not_build(&pod).await {
        Ok(None) => {}
        Ok(Some(why)) => return line(&Said::Error(why.into())).into_response(),
        Err(error) => return line(&Said::Error(error)).into_response(),
    }
    let store = parts.builder.store().clone();
    let digest = match tokio::task::spawn_blocking(move || store.put_blob(&context)).await {
        Ok(Ok(digest)) => digest,
        Ok(Err(error)) => return line(&Said::Error(chain(&error))).into_response(),
        Err(error) => return line(&Said::Error(error.to_string())).into_response(),
    };
    let spec = ImageSpec {
        upload: Some(Upload { digest: digest.to_string(), ..Upload::default() }),
        service: "action".into(),
        dockerfile: asked.dockerfile,
        ..ImageSpec::default()
    };
    let image =
        match naru_builder::submit(&parts.beside.client, NAMESPACE, Order { spec, ..Order::default() }).await
        {
            Ok(image) => image,
            Err(error) => return line(&Said::Error(chain(&error))).into_response(),
        };
    let events = parts.builds.follow(naru_objects::name_of(&image)).filter_map(|it| async move {
        let said = match serde_json::from_str::<Event>(it.trim()).ok()? {
            Event::Done(built) => Said::Image(built.reference),
            Event::Failed { report } => Said::Error(report),
            event => Said::Line(event.to_string()),
        };
        Some(Ok::<_, std::convert::Infallible>(line(&said)))
    });
    Body::from_stream(events).into_response()
}
