//! POST, PUT, PATCH, DELETE, and the subresources that write.

use axum::body::Body;
use axum::response::Response;
use http::{Method, header};
use kube_kinds::selector::LabelSelector;
use kube_kinds::strategy::{DeleteOptions, Propagation};
use kube_kinds::{Failure, Kind, Tier, int, name, text, uid};
use kube_objects::{Deleted, Door, Mode, Outcome, Patch, Writer, present};
use serde_json::{Value, json};

use crate::answer::{self, Form};
use crate::auth::escalation;
use crate::body;
use crate::request::{Call, method_not_allowed};

pub(crate) async fn create(call: &Call, object: Value) -> Result<Response, Failure> {
    let namespace = match call.kind.namespaced {
        true => match &call.namespace {
            Some(namespace) => namespace.as_str(),
            None => match text(&object, "/metadata/namespace") {
                "" => return Err(Failure::bad_request("an object of this kind needs a namespace")),
                namespace => namespace,
            },
        },
        false => "",
    }
    .to_string();
    escalation::check(call, &object)?;
    let made = call.api.objects().create(&call.kind, &namespace, object, &call.writer()?).await?;
    respond(call, 201, &made)
}

pub(crate) async fn replace(call: &Call, object: Value) -> Result<Response, Failure> {
    write(call, object, Door::Object).await
}

async fn write(call: &Call, object: Value, door: Door) -> Result<Response, Failure> {
    let writer = call.writer()?;
    escalation::check(call, &object)?;
    let objects = call.api.objects();
    let new = objects.replace(&call.kind, call.namespace(), call.name(), object, door, &writer).await?;
    respond(call, 200, &new)
}

pub(crate) async fn patch(call: &Call, patch: Patch) -> Result<Response, Failure> {
    change(call, patch, Door::Object).await
}

async fn change(call: &Call, patch: Patch, door: Door) -> Result<Response, Failure> {
    let writer = call.writer()?;
    let objects = call.api.objects();
    if call.kind.group == "rbac.authorization.k8s.io" && writer.mode == Mode::Commit {
        // What the patch would leave decides.
        let trial = Writer { mode: Mode::DryRun, ..writer.clone() };
        let (new, _) = objects.patch(&call.kind, call.namespace(), call.name(), &patch, door, &trial).await?;
        escalation::check(call, &new)?;
    }
    let (new, outcome) =
        objects.patch(&call.kind, call.namespace(), call.name(), &patch, door, &writer).await?;
    let code = match outcome {
        Outcome::Created => 201,
        Outcome::Updated => 200,
    };
    respond(call, code, &new)
}

pub(crate) async fn status(call: Call, method: &Method, body: Body) -> Result<Response, Failure> {
    part(call, method, body, Door::Status).await
}

/// One part of an object, read with the whole.
pub(crate) async fn part(call: Call, method: &Method, body: Body, door: Door) -> Result<Response, Failure> {
    match *method {
        Method::GET => crate::read::get(&call),
        Method::PUT => {
            let object = body::object(&call, body).await?;
            write(&call, object, door).await
        }
        Method::PATCH => {
            let patch = body::patch(&call, body).await?;
            change(&call, patch, door).await
        }
        _ => Err(method_not_allowed()),
    }
}

pub(crate) async fn delete(call: &Call, body: Value) -> Result<Response, Failure> {
    let options = delete_options(call, &body)?;
    let writer = call.writer()?;
    let deleted =
        call.api.objects().delete(&call.kind, call.namespace(), call.name(), &options, &writer).await?;
    match deleted {
        Deleted::Removed(object) if !call.kind.is_pod() => Ok(answer::json(
            200,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": name(&object), "group": call.kind.group, "kind": call.kind.plural, "uid": uid(&object)}}),
        )),
        Deleted::Removed(object) | Deleted::Pending(object) => respond(call, 200, &object),
    }
}

pub(crate) async fn delete_collection(call: &Call, body: Value) -> Result<Response, Failure> {
    let options = delete_options(call, &body)?;
    let writer = call.writer()?;
    let (labels, fields) = call.selectors()?;
    let found = call.api.objects().list(&call.kind, call.namespace.as_deref(), &labels);
    let mut deleted = Vec::new();
    for object in found.iter().filter(|it| fields.matches(it, &call.kind)) {
        let place = kube_kinds::namespace(object);
        match call.api.objects().delete(&call.kind, place, name(object), &options, &writer).await {
            Ok(_) => deleted.push(&**object),
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => return Err(failure),
        }
    }
    let metadata = json!({"resourceVersion": call.api.objects().store().revision().to_string()});
    Ok(answer::json(200, &Form::Object.list(&call.kind, &deleted, metadata)))
}

/// From the body, or the query for clients that cannot send a body with DELETE.
fn delete_options(call: &Call, body: &Value) -> Result<DeleteOptions, Failure> {
    let mut options = DeleteOptions::parse(body)?;
    if let Some(seconds) = call.parameters.number("gracePeriodSeconds")? {
        options.grace_seconds = Some(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
    if let Some(word) = call.parameters.get("propagationPolicy") {
        options.propagation = Some(Propagation::parse(word)?);
    }
    Ok(options)
}

pub(crate) async fn scale(call: Call, method: &Method, body: Body) -> Result<Response, Failure> {
    let live = call.api.objects().get(&call.kind, call.namespace(), call.name())?;
    let current = scale_of(&call.kind, &live);
    let asked = match *method {
        Method::GET => return Ok(answer::json(200, &current)),
        Method::PUT => body::object(&call, body).await?,
        Method::PATCH => match body::patch(&call, body).await? {
            Patch::Json(patch) => kube_patch::json(&current, &patch)
                .map_err(|error| Failure::new(422, "Invalid", error.to_string()))?,
            Patch::Merge(patch) | Patch::Strategic(patch) | Patch::Apply { object: patch, .. } => {
                kube_patch::merge(&current, &patch)
            }
        },
        _ => return Err(method_not_allowed()),
    };
    let stated = text(&asked, "/metadata/resourceVersion");
    if !stated.is_empty() && stated != text(&live, "/metadata/resourceVersion") {
        return Err(Failure::modified(&call.kind, call.name()));
    }
    let replicas = int(&asked, "/spec/replicas");
    let pointer = call.kind.scale.as_ref().map_or("", |it| it.spec_replicas.as_str()).to_string();
    let writer = call.writer()?;
    let new = call
        .api
        .objects()
        .edit(&call.kind, call.namespace(), call.name(), Door::Scale, &writer, |object| {
            set(object, &pointer, json!(replicas));
        })
        .await?;
    Ok(answer::json(200, &scale_of(&call.kind, &new)))
}

/// Sets the value at a JSON pointer of object fields.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for field in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[field];
    }
    *place = value;
}

fn scale_of(kind: &Kind, object: &Value) -> Value {
    let Some(scale) = &kind.scale else { return Value::Null };
    let selector = match scale.selector.as_deref().and_then(|it| object.pointer(it)) {
        Some(Value::String(text)) => text.clone(),
        // ReplicationControllers select by a plain map.
        Some(selector) if kind.kind == "ReplicationController" => {
            LabelSelector::from_map(selector).to_string()
        }
        Some(selector) => LabelSelector::from_object(selector).map(|it| it.to_string()).unwrap_or_default(),
        None => String::new(),
    };
    let metadata = &object["metadata"];
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": int(object, &scale.spec_replicas)},
        "status": {"replicas": int(object, &scale.status_replicas), "selector": selector},
    })
}

/// Lets a namespace go: only its finalizers change.
pub(crate) async fn finalize(call: Call, body: Body) -> Result<Response, Failure> {
    let asked = body::object(&call, body).await?;
    let finalizers = asked["spec"]["finalizers"].clone();
    let writer = call.writer()?;
    let new = call
        .api
        .objects()
        .edit(&call.kind, "", call.name(), Door::Object, &writer, |namespace| {
            namespace["spec"]["finalizers"] =
                if finalizers.is_null() { json!([]) } else { finalizers.clone() };
        })
        .await?;
    respond(&call, 200, &new)
}

pub(crate) async fn binding(call: Call, body: Body) -> Result<Response, Failure> {
    let binding = body::object(&call, body).await?;
    let node = text(&binding, "/target/name");
    if node.is_empty() {
        return Err(Failure::bad_request("target.name must name a node"));
    }
    call.api.objects().bind(call.namespace(), call.name(), node, &call.writer()?).await?;
    Ok(answer::json(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

fn respond(call: &Call, code: u16, object: &std::sync::Arc<Value>) -> Result<Response, Failure> {
    let form = Form::wanted(&call.headers, &call.parameters)?;
    let shown = form.object(&call.kind, &present(&call.kind, object.clone()), true);
    let mut response = answer::json(code, &shown);
    if call.method != Method::DELETE {
        let stored = (code == 201 && call.kind.tier == Tier::Stored)
            .then(|| format!("{} is stored, but nothing acts on it here", call.kind.resource()));
        let warnings = call.notes.warnings().into_iter().chain((call.kind.warnings)(object));
        for warning in warnings.chain(stored) {
            if let Ok(value) = format!("299 - {warning:?}").parse() {
                response.headers_mut().append(header::WARNING, value);
            }
        }
    }
    Ok(response)
}
