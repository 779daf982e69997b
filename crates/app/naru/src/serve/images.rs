//! What clients ask about images: parts of them, what could be better, what they are made of. All of it needs
//! the push token, because any image of this machine may be asked about.

use super::http::{NEEDS_TOKEN, knows};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use naru_builder::Builder;
use naru_builder::inspect::{self, Format};
use naru_image::{Digest, ImageStore, LocalImage, PullPolicy, Reference};
use serde::Deserialize;

type Shared = State<(ImageStore, String)>;

pub fn router(builder: Builder, gate: naru_policy::Gate, token: String) -> Router {
    let images = builder.store().clone();
    let judging = Router::new().route("/images/policies", get(policies)).with_state((
        images.clone(),
        gate,
        token.clone(),
    ));
    let verifying =
        Router::new().route("/images/provenance", get(provenance)).with_state((builder, token.clone()));
    Router::new()
        .route("/blobs/{digest}", get(blob))
        .route("/images/digest", get(digest))
        .route("/images/advice", get(advice))
        .route("/images/sbom", get(sbom))
        .route("/images/index", post(index))
        .with_state((images, token))
        .merge(verifying)
        .merge(judging)
}

#[derive(Deserialize)]
struct Asked {
    image: String,
    #[serde(default)]
    format: String,
    #[serde(default)]
    namespace: String,
}

/// A part of an image, whatever its name: the registry only gives what its repositories hold.
async fn blob(State((images, token)): Shared, Path(digest): Path<String>, headers: HeaderMap) -> Response {
    if !knows(&token, &headers) {
        return (StatusCode::UNAUTHORIZED, NEEDS_TOKEN).into_response();
    }
    let unknown = || (StatusCode::NOT_FOUND, "there is no such content\n").into_response();
    let Ok(digest) = Digest::parse(&digest) else { return unknown() };
    match tokio::fs::File::open(images.blob_path(&digest)).await {
        Ok(file) => {
            let stream = tokio_util::io::ReaderStream::with_capacity(file, 256 * 1024);
            Body::from_stream(stream).into_response()
        }
        Err(_) => unknown(),
    }
}

/// The image, pulled if it is not here.
async fn found(
    images: &ImageStore,
    token: &str,
    headers: &HeaderMap,
    name: &str,
) -> Result<LocalImage, Response> {
    if !knows(token, headers) {
        return Err((StatusCode::UNAUTHORIZED, NEEDS_TOKEN).into_response());
    }
    images
        .ensure(name, PullPolicy::IfNotPresent)
        .await
        .map_err(|error| (StatusCode::NOT_FOUND, format!("{}\n", naru_client::chain(&error))).into_response())
}

async fn digest(State((images, token)): Shared, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    match found(&images, &token, &headers, &asked.image).await {
        Ok(image) => image.digest.to_string().into_response(),
        Err(response) => response,
    }
}

async fn advice(State((images, token)): Shared, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    let image = match found(&images, &token, &headers, &asked.image).await {
        Ok(it) => it,
        Err(response) => return response,
    };
    answer(tokio::task::spawn_blocking(move || inspect::advise(&images, &image)).await)
}

async fn sbom(State((images, token)): Shared, Query(asked): Query<Asked>, headers: HeaderMap) -> Response {
    let format = match asked.format.as_str() {
        "spdx" => Format::Spdx,
        "cyclonedx" => Format::CycloneDx,
        _ => return (StatusCode::BAD_REQUEST, "the formats are spdx and cyclonedx\n").into_response(),
    };
    let image = match found(&images, &token, &headers, &asked.image).await {
        Ok(it) => it,
        Err(response) => return response,
    };
    let work = move || -> std::io::Result<serde_json::Value> {
        let (components, notes) = inspect::components(&images, &image)?;
        // The image's own time: the same image has the same document.
        let created = image.config.created.as_deref().unwrap_or_default();
        let created = match created.parse::<jiff::Timestamp>() {
            Ok(it) => it.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            Err(_) => "1970-01-01T00:00:00Z".to_owned(),
        };
        let digest = image.digest.to_string();
        Ok(inspect::document(format, &image.reference, &digest, &created, &components, &notes))
    };
    answer(tokio::task::spawn_blocking(work).await)
}

#[derive(Deserialize)]
struct IndexOrder {
    name: String,
    images: Vec<String>,
    push: bool,
}

/// Joins images for different platforms under one name.
async fn index(
    State((images, token)): Shared,
    headers: HeaderMap,
    axum::Json(order): axum::Json<IndexOrder>,
) -> Response {
    if !knows(&token, &headers) {
        return (StatusCode::UNAUTHORIZED, NEEDS_TOKEN).into_response();
    }
    let made = async {
        let digest = images.join_images(&order.name, &order.images).await?;
        if order.push {
            let target = Reference::parse(&order.name)?;
            images.push(&digest, &target, &[], &|_| {}).await?;
        }
        Ok::<_, naru_image::Error>(digest)
    };
    match made.await {
        Ok(digest) => format!("{digest}\n").into_response(),
        Err(error) => (StatusCode::CONFLICT, format!("{}\n", naru_client::chain(&error))).into_response(),
    }
}

async fn provenance(
    State((builder, token)): State<(Builder, String)>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let image = match found(builder.store(), &token, &headers, &asked.image).await {
        Ok(it) => it,
        Err(response) => return response,
    };
    match builder.verify(&image.digest) {
        Some(verdict) => axum::Json(verdict).into_response(),
        None => (StatusCode::NOT_FOUND, "this daemon signs nothing\n").into_response(),
    }
}

/// What the policies of the cluster say about running the image.
async fn policies(
    State((images, gate, token)): State<(ImageStore, naru_policy::Gate, String)>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let image = match found(&images, &token, &headers, &asked.image).await {
        Ok(it) => it,
        Err(response) => return response,
    };
    match gate.verdicts(&asked.namespace, &image, &[]).await {
        Ok(verdicts) => axum::Json(verdicts).into_response(),
        Err(error) => (StatusCode::CONFLICT, format!("{}\n", naru_client::chain(&error))).into_response(),
    }
}

fn answer<T: serde::Serialize>(outcome: Result<std::io::Result<T>, tokio::task::JoinError>) -> Response {
    match outcome.map_err(std::io::Error::other).and_then(|it| it) {
        Ok(value) => axum::Json(value).into_response(),
        Err(error) => {
            tracing::warn!(%error, "an image cannot be looked into");
            let text = format!("the image cannot be looked into: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}
