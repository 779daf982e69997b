//! From a path and its query to what is asked, and on to who answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::Response;
use http::{HeaderMap, Method, Request, Uri, header};
use kube_kinds::selector::{FieldSelector, LabelSelector};
use kube_kinds::{Failure, Kind};
use kube_objects::{Mode, Notes, Validation, Writer};

use crate::{Api, answer, body, discovery, exec, openapi, read, streams, write};

/// The parameters after `?`, in order; some repeat.
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn of(uri: &Uri) -> Result<Parameters, Failure> {
        let Query(parameters) = Query::try_from_uri(uri)
            .map_err(|_| Failure::bad_request("the query of the address cannot be read"))?;
        Ok(Parameters(parameters))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|it| !it.is_empty())
    }

    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect()
    }

    pub fn is_set(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True"))
    }

    pub fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let number =
            text.parse().map_err(|_| Failure::bad_request(format!("{name} is not a number: {text:?}")));
        number.map(Some)
    }
}

/// One request for objects.
pub(crate) struct Call {
    pub api: Api,
    pub kind: Arc<Kind>,
    /// `None`: all namespaces, or a kind without.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub method: Method,
    pub parameters: Parameters,
    pub headers: HeaderMap,
    /// What the client is told beside the answer.
    pub notes: Notes,
}

impl Call {
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("")
    }

    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("")
    }

    pub fn selectors(&self) -> Result<(LabelSelector, FieldSelector), Failure> {
        let labels = LabelSelector::parse(self.parameters.get("labelSelector").unwrap_or(""))?;
        let fields = FieldSelector::parse(self.parameters.get("fieldSelector").unwrap_or(""), &self.kind)?;
        Ok((labels, fields))
    }

    pub fn writer(&self) -> Result<Writer, Failure> {
        let mode = match self.parameters.get("dryRun") {
            None => Mode::Commit,
            Some("All") => Mode::DryRun,
            Some(other) => return Err(Failure::bad_request(format!("invalid dryRun {other:?}, use All"))),
        };
        let agent = self.headers.get(header::USER_AGENT).and_then(|it| it.to_str().ok()).unwrap_or("unknown");
        let agent = agent.split(['/', ' ']).next().unwrap_or("unknown");
        Ok(Writer {
            mode,
            validation: Validation::parse(self.parameters.get("fieldValidation"))?,
            notes: self.notes.clone(),
            ..Writer::new(self.parameters.get("fieldManager").unwrap_or(agent))
        })
    }
}

/// The single entrance.
pub(crate) async fn handle(State(api): State<Api>, request: Request<Body>) -> Response {
    let started = std::time::Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = match dispatch(api, request).await {
        Ok(response) => response,
        Err(failure) => answer::failure(&failure),
    };
    tracing::debug!(%method, %uri, code = response.status().as_u16(), elapsed_us = started.elapsed().as_micros() as u64);
    response
}

async fn dispatch(api: Api, request: Request<Body>) -> Result<Response, Failure> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().trim_matches('/').to_string();
    let segments: Vec<&str> = path.split('/').filter(|it| !it.is_empty()).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => return Ok(answer::text("ok")),
        ["version"] => return Ok(answer::json(200, &discovery::version(&api.inner.version))),
        ["openapi", rest @ ..] => {
            return openapi::serve(&api, rest, &parts.headers, &Parameters::of(&parts.uri)?);
        }
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return discovery::answer(api.registry(), &segments, &parts.headers),
    };
    let (namespace, plural, name, subresource) = match rest {
        [] => return discovery::answer(api.registry(), &segments, &parts.headers),
        ["namespaces", namespace, plural, rest @ ..]
            if !(rest.is_empty() && ["status", "finalize"].contains(plural)) =>
        {
            (Some(*namespace), *plural, rest.first().copied(), rest.get(1..).unwrap_or_default())
        }
        [plural, rest @ ..] => (None, *plural, rest.first().copied(), rest.get(1..).unwrap_or_default()),
    };
    let Some(kind) = api.registry().find(group, version, plural) else {
        return Err(Failure::new(404, "NotFound", "the server could not find the requested resource"));
    };
    if namespace.is_some() && !kind.namespaced {
        return Err(Failure::new(404, "NotFound", "the server could not find the requested resource"));
    }
    if kind.namespaced && namespace.is_none() && name.is_some() {
        return Err(Failure::bad_request(
            "an empty namespace may not be set when a resource name is provided",
        ));
    }
    let call = Call {
        api,
        kind,
        namespace: namespace.map(String::from),
        name: name.map(|it| it.to_string()),
        method: parts.method.clone(),
        parameters: Parameters::of(&parts.uri)?,
        headers: parts.headers.clone(),
        notes: Notes::default(),
    };
    match (call.name.is_some(), subresource) {
        (false, []) => collection(call, &parts.method, body).await,
        (true, []) => object(call, &parts.method, body).await,
        (true, ["status"]) if call.kind.has_status => write::status(call, &parts.method, body).await,
        (true, ["scale"]) if call.kind.scale.is_some() => write::scale(call, &parts.method, body).await,
        (true, ["finalize"]) if call.kind.is_namespace() => write::finalize(call, body).await,
        (true, ["binding"]) if call.kind.is_pod() => write::binding(call, body).await,
        (true, ["log"]) if call.kind.is_pod() => streams::log(call).await,
        (true, ["exec"]) if call.kind.is_pod() => exec::exec(call, parts).await,
        _ => Err(Failure::new(404, "NotFound", "the server could not find the requested resource")),
    }
}

async fn collection(call: Call, method: &Method, body: Body) -> Result<Response, Failure> {
    match *method {
        Method::GET if call.parameters.is_set("watch") => read::watch(call),
        Method::GET => read::list(&call),
        Method::POST => {
            let body = body::object(&call, body).await?;
            write::create(&call, body).await
        }
        Method::DELETE => {
            let body = body::optional(&call.headers, body).await?;
            write::delete_collection(&call, body).await
        }
        _ => Err(method_not_allowed()),
    }
}

async fn object(call: Call, method: &Method, body: Body) -> Result<Response, Failure> {
    match *method {
        Method::GET if call.parameters.is_set("watch") => read::watch(call),
        Method::GET => read::get(&call),
        Method::PUT => {
            let body = body::object(&call, body).await?;
            write::replace(&call, body).await
        }
        Method::PATCH => {
            let patch = body::patch(&call, body).await?;
            write::patch(&call, patch).await
        }
        Method::DELETE => {
            let body = body::optional(&call.headers, body).await?;
            write::delete(&call, body).await
        }
        _ => Err(method_not_allowed()),
    }
}

pub(crate) fn method_not_allowed() -> Failure {
    Failure::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}
