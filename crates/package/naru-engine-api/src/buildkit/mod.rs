//! BuildKit's protocol, which `docker build`, `docker buildx build`, `docker compose build` and bake speak: the
//! client lends its files in a session (`POST /session`) and asks for builds over gRPC (`POST /grpc`). A build
//! becomes an `Image` object like any other.
//!
//! Dockerfiles are understood; graphs of operations of a client's own making (LLB), frontends from images and
//! attributes that are not known are refused by name.

mod files;
mod grpc;
mod order;
mod outputs;
mod progress;
mod session;
mod solve;
mod wire;

pub use solve::Builds;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use naru_image::oci::architecture;

use crate::attach::upgrade_of;
use crate::caller::Caller;
use crate::engine::Engine;
use crate::error::{Error, Result};
use grpc::{Call, Reply, Status};

fn switched() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("h2c"));
    response
}

/// The connection becomes one on which the client serves its session.
pub async fn session(State(engine): State<Engine>, mut request: Request) -> Result<Response> {
    let upgrade = upgrade_of(&mut request).ok_or_else(|| Error::bad("no upgrade proto in request"))?;
    let headers = request.headers().clone();
    tokio::spawn(async move { engine.buildkit.sessions.hold(headers, upgrade).await });
    Ok(switched())
}

/// The connection becomes one of gRPC calls.
pub async fn control(State(engine): State<Engine>, mut request: Request) -> Result<Response> {
    let upgrade = upgrade_of(&mut request).ok_or_else(|| Error::bad("no upgrade proto in request"))?;
    let caller = Caller::of(request.headers());
    tokio::spawn(async move {
        let Ok(connection) = upgrade.await else { return };
        grpc::serve(connection, move |call| answer(engine.clone(), caller, call)).await;
    });
    Ok(switched())
}

async fn answer(engine: Engine, caller: Caller, mut call: Call) -> grpc::Result<Reply> {
    let path = call.path.clone();
    let Some((service, method)) = path.trim_start_matches('/').split_once('/') else {
        return Err(Status::refused(format!("{path} is no method")));
    };
    let build = || {
        let id = call.metadata.get("buildkit-controlapi-buildid").and_then(|it| it.to_str().ok());
        engine.buildkit.of(id.unwrap_or_default())
    };
    match (service, method) {
        ("moby.buildkit.v1.Control", "ListWorkers") => {
            Ok(Reply::one(&wire::Workers { record: vec![worker(&engine)] }))
        }
        ("moby.buildkit.v1.Control", "Info") => {
            Ok(Reply::one(&wire::Info { version: Some(version(&engine)) }))
        }
        ("moby.buildkit.v1.Control", "Status") => {
            let question: wire::StatusRequest = call.messages.only().await?;
            let build = engine.buildkit.of(&question.reference);
            Ok(Reply::stream(build.board.clone().follow()))
        }
        ("moby.buildkit.v1.Control", "Solve") => {
            let question = call.messages.only().await?;
            Ok(Reply::one(&solve::control(engine, caller, question).await?))
        }
        ("moby.buildkit.v1.Control", "DiskUsage" | "Prune") => Err(Status::refused(
            "builds share the disk budget of all images; see naru df. What is not used goes by itself",
        )),
        ("moby.buildkit.v1.Control", _) => Err(Status::refused(format!("{method} is not offered"))),
        ("moby.buildkit.v1.frontend.LLBBridge", "Ping") => Ok(Reply::one(&wire::Pong {
            frontend: capabilities(solve::FRONTEND_CAPABILITIES),
            operations: capabilities(solve::OPERATION_CAPABILITIES),
            workers: vec![worker(&engine)],
        })),
        ("moby.buildkit.v1.frontend.LLBBridge", "Solve") => {
            let build = build();
            let question = call.messages.only().await?;
            Ok(Reply::one(&solve::bridge(engine, caller, build, question).await?))
        }
        ("moby.buildkit.v1.frontend.LLBBridge", "Evaluate") => Ok(Reply::one(&wire::Empty {})), // it is built
        ("moby.buildkit.v1.frontend.LLBBridge", "Return") => {
            let build = build();
            build.give_back(call.messages.only().await?);
            Ok(Reply::one(&wire::Empty {}))
        }
        ("grpc.health.v1.Health", "Check") => Ok(Reply::one(&wire::Health { status: 1 })),
        _ => Err(Status::refused(format!(
            "{service}/{method} is not offered: Dockerfiles are built here, not graphs of operations"
        ))),
    }
}

fn capabilities(names: &[&str]) -> Vec<wire::Capability> {
    names.iter().map(|id| wire::Capability { id: (*id).to_owned(), enabled: true }).collect()
}

fn version(engine: &Engine) -> wire::Version {
    wire::Version {
        package: "naru".into(),
        version: format!("v{}", engine.config.version.trim_start_matches('v')),
    }
}

fn worker(engine: &Engine) -> wire::Worker {
    let labels = [
        ("org.mobyproject.buildkit.worker.executor", "naru".to_owned()),
        ("org.mobyproject.buildkit.worker.hostname", engine.config.node_name.clone()),
        ("org.mobyproject.buildkit.worker.moby.host-gateway-ip", engine.config.gateway.to_string()),
        // Says to buildx that archives, caches in registries and several platforms can be asked for.
        ("org.mobyproject.buildkit.worker.snapshotter", "overlayfs".to_owned()),
    ];
    wire::Worker {
        id: engine.config.node_name.clone(),
        labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        platforms: vec![wire::Platform { architecture: architecture().to_string(), os: "linux".into() }],
        version: Some(version(engine)),
    }
}
