//! GET: one object, lists in pages, watches.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use kube_kinds::selector::{FieldSelector, LabelSelector};
use kube_kinds::{Failure, Kind};
use kube_objects::present;
use kube_store::{Change, Entry, Page, RevisionError, Watcher};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::{self, Form};
use crate::request::Call;

/// How often a quiet watch tells its client how far it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Length of a watch when the client does not say; up to twice this, so that not all end at once.
const WATCH_SECONDS_MIN: u64 = 1800;

pub(crate) fn get(call: &Call) -> Result<Response, Failure> {
    let form = Form::wanted(&call.headers, &call.parameters)?;
    let object = call.api.objects().get(&call.kind, call.namespace(), call.name())?;
    Ok(answer::json(200, &form.object(&call.kind, &object, true)))
}

pub(crate) fn list(call: &Call) -> Result<Response, Failure> {
    let form = Form::wanted(&call.headers, &call.parameters)?;
    let (labels, fields) = call.selectors()?;
    let token = call.parameters.get("continue").map(Continue::parse).transpose()?;
    let store = call.api.objects().store();
    let prefix = call.kind.prefix_in(call.namespace.as_deref());
    let asked = revision_asked(call)?;
    let exactly = call.parameters.get("resourceVersionMatch") == Some("Exact");
    let at = match (&token, asked) {
        (Some(token), _) => token.revision,
        (None, Some(revision)) if exactly => revision,
        (None, Some(revision)) if revision > store.revision() => {
            return Err(too_new(revision, store.revision()));
        }
        (None, _) => 0,
    };
    let after = token.as_ref().map_or("", |it| it.after.as_str());
    let limit = call.parameters.number("limit")?.filter(|it| *it > 0);
    let limit = limit.and_then(|it| usize::try_from(it).ok()).unwrap_or(usize::MAX);
    let Page { revision, items: page, remaining } = match (fields.name(), call.namespace.as_deref()) {
        // A pinned name is one look-up, not a walk over all keys.
        (Some(name), Some(namespace)) if at == 0 && call.kind.namespaced => one(call, namespace, name),
        (Some(name), None) if at == 0 && !call.kind.namespaced => one(call, "", name),
        _ if labels.is_empty() && fields.is_empty() => {
            store.page(&prefix, at, after, limit).map_err(too_old)?
        }
        _ => store.page(&prefix, at, after, usize::MAX).map_err(too_old)?,
    };
    let is_chosen = |it: &Entry| labels.matches(&it.value) && fields.matches(&it.value, &call.kind);
    let mut matching = page.into_iter().filter(is_chosen);
    let page: Vec<Entry> = matching.by_ref().take(limit).collect();
    let remaining = remaining + matching.count();

    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let Some(last) = page.last().filter(|_| remaining > 0) {
        let next = Continue { revision, after: last.key.to_string() };
        metadata["continue"] = json!(next.to_text());
        if labels.is_empty() && fields.is_empty() {
            metadata["remainingItemCount"] = json!(remaining);
        }
    }
    let objects: Vec<Arc<Value>> = page.into_iter().map(|it| present(&call.kind, it.value)).collect();
    let objects: Vec<&Value> = objects.iter().map(|it| &**it).collect();
    let text = form.list_text(&call.kind, &objects, metadata);
    Ok(answer::with_type(200, "application/json", Body::from(text)))
}

fn one(call: &Call, namespace: &str, name: &str) -> Page {
    let store = call.api.objects().store();
    // The revision first: the object may then be newer than the list says, never older.
    let revision = store.revision();
    let items = store.get(&call.kind.key(namespace, name)).into_iter().collect();
    Page { revision, items, remaining: 0 }
}

/// Where the next page starts, as an opaque word for the client.
struct Continue {
    revision: u64,
    after: String,
}

impl Continue {
    fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}:{}", self.revision, self.after))
    }

    fn parse(text: &str) -> Result<Continue, Failure> {
        let bad = || Failure::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        let text = String::from_utf8(bytes).map_err(|_| bad())?;
        let (revision, after) = text.split_once(':').ok_or_else(bad)?;
        Ok(Continue { revision: revision.parse().map_err(|_| bad())?, after: after.to_string() })
    }
}

fn revision_asked(call: &Call) -> Result<Option<u64>, Failure> {
    let Some(text) = call.parameters.get("resourceVersion") else { return Ok(None) };
    let number: u64 =
        text.parse().map_err(|_| Failure::bad_request(format!("invalid resource version {text:?}")))?;
    Ok(Some(number).filter(|it| *it > 0))
}

fn too_old(error: RevisionError) -> Failure {
    match error {
        RevisionError::Expired { wanted, oldest } => {
            Failure::expired(format!("too old resource version: {wanted} ({oldest})"))
        }
        RevisionError::Future { wanted, current } => too_new(wanted, current),
    }
}

fn too_new(wanted: u64, current: u64) -> Failure {
    let mut failure =
        Failure::new(504, "Timeout", format!("Too large resource version: {wanted}, current: {current}"));
    failure.details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1});
    failure
}

/// Changes as lines of JSON, until the time is up or the client goes.
pub(crate) fn watch(call: Call) -> Result<Response, Failure> {
    let form = Form::wanted(&call.headers, &call.parameters)?;
    let (labels, mut fields) = call.selectors()?;
    if let Some(name) = &call.name {
        fields = FieldSelector::parse(&format!("metadata.name={name}"), &call.kind)?;
    }
    let store = call.api.objects().store();
    let prefix = call.kind.prefix_in(call.namespace.as_deref());
    let with_state = call.parameters.is_set("sendInitialEvents");
    let bookmarks = call.parameters.is_set("allowWatchBookmarks");
    let asked = revision_asked(&call)?;
    let filter = Filter { kind: call.kind.clone(), labels, fields, form, rows_sent: false };
    let (initial, watcher, expired) = match asked {
        Some(revision) if !with_state => match store.watch_from(&prefix, revision) {
            Ok(watcher) => (None, Some(watcher), None),
            Err(error) => (None, None, Some(too_old(error))),
        },
        Some(revision) if revision > store.revision() => return Err(too_new(revision, store.revision())),
        _ => {
            let (snapshot, watcher) = store.list_and_watch(&prefix);
            (Some(snapshot), Some(watcher), None)
        }
    };
    let seconds = match call.parameters.number("timeoutSeconds")?.filter(|it| *it > 0) {
        Some(seconds) => seconds,
        None => WATCH_SECONDS_MIN + rand::rng().random_range(0..WATCH_SECONDS_MIN),
    };
    let mut stream = Stream {
        filter,
        watcher,
        lines: VecDeque::new(),
        ends_at: Instant::now() + Duration::from_secs(seconds),
        bookmark_at: bookmarks.then(|| Instant::now() + BOOKMARK_INTERVAL),
        stop: call.api.inner.stop.clone(),
    };
    if let Some(failure) = expired {
        stream.lines.push_back(line("ERROR", &failure.to_value()));
    }
    if let Some(snapshot) = initial {
        for entry in &snapshot.items {
            stream.push_initial(entry);
        }
        if with_state {
            stream.push_bookmark(snapshot.revision, true);
        }
    }
    let lines = futures::stream::unfold(stream, |mut stream| async {
        let line = stream.next().await?;
        Some((Ok::<Bytes, Infallible>(line), stream))
    });
    Ok(answer::with_type(200, "application/json", Body::from_stream(lines)))
}

struct Stream {
    filter: Filter,
    /// `None` once there is nothing more to come.
    watcher: Option<Watcher>,
    lines: VecDeque<Bytes>,
    ends_at: Instant,
    bookmark_at: Option<Instant>,
    stop: CancellationToken,
}

/// Which changes concern the client, and how it wants to see them.
struct Filter {
    kind: Arc<Kind>,
    labels: LabelSelector,
    fields: FieldSelector,
    form: Form,
    rows_sent: bool,
}

enum Step {
    Changes(Result<kube_store::Batch, RevisionError>),
    Bookmark,
    End,
}

impl Stream {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.lines.is_empty() {
                return Some(self.take_lines());
            }
            let watcher = self.watcher.as_mut()?;
            let bookmark_at = self.bookmark_at.unwrap_or(self.ends_at);
            let step = tokio::select! {
                batch = watcher.next() => Step::Changes(batch),
                () = self.stop.cancelled() => Step::End,
                () = tokio::time::sleep_until(bookmark_at.min(self.ends_at)) => {
                    if Instant::now() >= self.ends_at { Step::End } else { Step::Bookmark }
                }
            };
            match step {
                Step::Changes(Ok(batch)) => {
                    for change in &batch.changes {
                        self.lines.extend(self.filter.event(change));
                    }
                }
                Step::Changes(Err(error)) => {
                    self.watcher = None;
                    self.lines.push_back(line("ERROR", &too_old(error).to_value()));
                }
                Step::Bookmark => {
                    let revision = watcher.revision();
                    self.bookmark_at = Some(Instant::now() + BOOKMARK_INTERVAL);
                    self.push_bookmark(revision, false);
                }
                Step::End => {
                    let revision = watcher.revision();
                    self.watcher = None;
                    if self.bookmark_at.is_some() {
                        self.push_bookmark(revision, false);
                    }
                }
            }
        }
    }

    /// All waiting lines as one chunk.
    fn take_lines(&mut self) -> Bytes {
        match self.lines.len() {
            1 => self.lines.pop_front().unwrap_or_default(),
            _ => self.lines.drain(..).flatten().collect(),
        }
    }

    fn push_initial(&mut self, entry: &Entry) {
        if self.filter.matches(&entry.value) {
            let object = self.filter.show(&present(&self.filter.kind, entry.value.clone()));
            self.lines.push_back(line("ADDED", &object));
        }
    }

    fn push_bookmark(&mut self, revision: u64, ends_initial: bool) {
        let kind = &self.filter.kind;
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.filter.form {
            Form::Table(_) => {
                json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision.to_string()},
                    "columnDefinitions": null,
                    "rows": [{"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}}]})
            }
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Object => {
                json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata})
            }
        };
        self.lines.push_back(line("BOOKMARK", &object));
    }
}

impl Filter {
    fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object, &self.kind)
    }

    /// The change as this client sees it: an object that begins to match is added, one that no
    /// longer does is deleted.
    fn event(&mut self, change: &Change) -> Option<Bytes> {
        let before = change.previous.as_ref().filter(|it| self.matches(it));
        let after = Some(&change.value).filter(|it| !change.deleted && self.matches(it));
        let (event, object) = match (before, after) {
            (None, None) => return None,
            (None, Some(object)) => ("ADDED", object.clone()),
            (Some(_), Some(object)) => ("MODIFIED", object.clone()),
            (Some(_), None) if change.deleted => ("DELETED", change.value.clone()),
            (Some(last), None) => {
                // The last state that matched, at the revision at which it ceased to.
                let mut last = (**last).clone();
                last["metadata"]["resourceVersion"] = json!(change.revision.to_string());
                ("DELETED", Arc::new(last))
            }
        };
        let object = self.show(&present(&self.kind, object));
        Some(line(event, &object))
    }

    fn show(&mut self, object: &Value) -> Value {
        let first = !std::mem::replace(&mut self.rows_sent, true);
        self.form.object(&self.kind, object, first)
    }
}

fn line(event: &str, object: &Value) -> Bytes {
    let mut text = String::with_capacity(1024);
    text.push_str("{\"type\":\"");
    text.push_str(event);
    text.push_str("\",\"object\":");
    text.push_str(&object.to_string());
    text.push_str("}\n");
    Bytes::from(text)
}
