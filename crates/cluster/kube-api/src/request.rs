//! From a path and its query to what is asked, and on to who answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::Response;
use http::{HeaderMap, Method, Request, Uri, header};
use kube_kinds::selector::{FieldSelector, LabelSelector};
use kube_kinds::{Failure, Kind};
use kube_objects::{Door, Mode, Notes, Validation, Writer};

use crate::auth::{Attributes, User, rbac, reviews};
use crate::{
    Api, answer, body, discovery, evict, exec, forward, metrics, openapi, proxy, read, streams, tokens, write,
};

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
    pub user: Arc<User>,
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
            user: self.user.to_value(),
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
    // Only `serve` comes from the network, and it says who asks.
    let user = parts.extensions.get::<Arc<User>>().cloned().unwrap_or_else(|| Arc::new(User::internal()));
    let segments: Vec<&str> = parts.uri.path().split('/').filter(|it| !it.is_empty()).collect();
    let parameters = Parameters::of(&parts.uri)?;
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => ("", "", &[] as &[&str]),
    };
    let asked = attributes(&parts.method, &parts.uri);
    if !rbac::allows(&api, &user, &asked) {
        return Err(asked.forbidden(&user));
    }
    if rest.is_empty() {
        return general(&api, &segments, &parts.headers, &parameters);
    }
    let Target { namespace, plural, name, subresource } = Target::of(rest);
    if let Some(review) = reviews::find(group, version, plural) {
        if parts.method != Method::POST || name.is_some() {
            return Err(method_not_allowed());
        }
        answer::Form::only_objects(&parts.headers)?;
        let body = body::optional(&parts.headers, body).await?;
        let answered = reviews::answer(&api, &user, review, namespace.unwrap_or(""), body)?;
        return Ok(answer::json(201, &answered));
    }
    if (group, version) == (metrics::GROUP, metrics::VERSION) {
        return metrics::serve(&api, &parts.method, namespace, plural, name, &parameters).await;
    }
    let Some(kind) = api.registry().find(group, version, plural) else { return Err(no_such_resource()) };
    if namespace.is_some() && !kind.namespaced {
        return Err(no_such_resource());
    }
    if kind.namespaced && namespace.is_none() && name.is_some() {
        return Err(Failure::bad_request(
            "an empty namespace may not be set when a resource name is provided",
        ));
    }
    let call = Call {
        api,
        user,
        kind,
        namespace: namespace.map(String::from),
        name: name.map(|it| it.to_string()),
        method: parts.method.clone(),
        parameters,
        headers: parts.headers.clone(),
        notes: Notes::default(),
    };
    match (call.name.is_some(), subresource) {
        (false, []) => collection(call, &parts.method, body).await,
        (true, []) => object(call, &parts.method, body).await,
        (true, ["status"]) if call.kind.has_status => write::status(call, &parts.method, body).await,
        (true, ["approval"]) if call.kind.group == "certificates.k8s.io" => {
            write::status(call, &parts.method, body).await
        }
        (true, ["resize"]) if call.kind.is_pod() => {
            write::part(call, &parts.method, body, Door::Resize).await
        }
        (true, ["ephemeralcontainers"]) if call.kind.is_pod() => {
            write::part(call, &parts.method, body, Door::Ephemeral).await
        }
        (true, ["scale"]) if call.kind.scale.is_some() => write::scale(call, &parts.method, body).await,
        (true, ["finalize"]) if call.kind.is_namespace() => write::finalize(call, body).await,
        (true, ["binding"]) if call.kind.is_pod() => write::binding(call, body).await,
        (true, ["log"]) if call.kind.is_pod() => streams::log(call).await,
        (true, ["exec"]) if call.kind.is_pod() => exec::exec(call, parts).await,
        (true, ["attach"]) if call.kind.is_pod() => exec::attach(call, parts).await,
        (true, ["eviction"]) if call.kind.is_pod() => evict::evict(call, body).await,
        (true, ["proxy", ..])
            if call.kind.group.is_empty() && ["Pod", "Service"].contains(&call.kind.kind.as_str()) =>
        {
            proxy::serve(call, parts, body).await
        }
        (true, ["portforward"]) if call.kind.is_pod() => forward::serve(call, parts).await,
        (true, ["token"]) if call.kind.group.is_empty() && call.kind.kind == "ServiceAccount" => {
            tokens::create(call, body).await
        }
        _ => Err(no_such_resource()),
    }
}

/// What a request asks, as far as its address tells: for rights and for the audit log.
pub(crate) fn attributes(method: &Method, uri: &Uri) -> Attributes {
    let segments: Vec<&str> = uri.path().split('/').filter(|it| !it.is_empty()).collect();
    let watch = Parameters::of(uri).is_ok_and(|it| it.is_set("watch"));
    match segments.as_slice() {
        ["api", _, rest @ ..] if !rest.is_empty() => Target::of(rest).attributes("", method, watch),
        ["apis", group, _, rest @ ..] if !rest.is_empty() => {
            Target::of(rest).attributes(group, method, watch)
        }
        _ => Attributes::path(verb_of(method, false, true, false), uri.path()),
    }
}

/// Everything that is no resource: health, version, discovery, schemas, keys.
fn general(
    api: &Api,
    segments: &[&str],
    headers: &HeaderMap,
    parameters: &Parameters,
) -> Result<Response, Failure> {
    match segments {
        ["healthz" | "livez" | "readyz", ..] => Ok(answer::text("ok")),
        ["version"] => Ok(answer::json(200, &discovery::version(&api.inner.version))),
        ["openapi", rest @ ..] => openapi::serve(api, rest, headers, parameters),
        [".well-known", "openid-configuration"] => Ok(answer::json(200, &tokens::configuration())),
        ["openid", "v1", "jwks"] => Ok(tokens::keys(api)),
        _ => discovery::answer(api.registry(), segments, headers),
    }
}

/// What a path below a version names.
struct Target<'a> {
    namespace: Option<&'a str>,
    plural: &'a str,
    name: Option<&'a str>,
    subresource: &'a [&'a str],
}

impl<'a> Target<'a> {
    fn of(rest: &'a [&'a str]) -> Target<'a> {
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !matches!(rest, [] | ["status" | "finalize"]) => {
                (Some(*namespace), rest)
            }
            rest => (None, rest),
        };
        Target {
            namespace,
            plural: rest.first().copied().unwrap_or(""),
            name: rest.get(1).copied(),
            subresource: rest.get(2..).unwrap_or_default(),
        }
    }

    fn attributes(&self, group: &str, method: &Method, watch: bool) -> Attributes {
        let subresource = self.subresource.first().copied();
        let verb = match subresource {
            // A websocket begins with a GET, but is no reading.
            Some("exec" | "attach" | "portforward") => "create",
            _ => verb_of(method, watch, self.name.is_some(), true),
        };
        let namespace = match (self.namespace, self.plural) {
            (None, "namespaces") => self.name.unwrap_or(""),
            (namespace, _) => namespace.unwrap_or(""),
        };
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: match subresource {
                Some(subresource) => format!("{}/{subresource}", self.plural),
                None => self.plural.into(),
            },
            namespace: namespace.into(),
            name: self.name.unwrap_or("").into(),
            path: String::new(),
        }
    }
}

/// The word of RBAC for a method.
fn verb_of(method: &Method, watch: bool, is_one: bool, is_resource: bool) -> &'static str {
    match *method {
        Method::POST if is_resource => "create",
        Method::POST => "post",
        Method::PUT if is_resource => "update",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE if is_one => "delete",
        Method::DELETE => "deletecollection",
        _ if watch => "watch",
        _ if is_one => "get",
        _ => "list",
    }
}

fn no_such_resource() -> Failure {
    Failure::new(404, "NotFound", "the server could not find the requested resource")
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
