//! One build of a BuildKit client, from its two requests to the image. `Control/Solve` says where the result
//! goes and lasts as long as the build; on the same connection `LLBBridge/Solve` says what to build, and
//! `LLBBridge/Return` that the client is content with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use naru_builder::form::{Action, Dockerfile};
use naru_builder::{BuiltImage, Event, Ignore, Order};
use naru_objects::{ImageSpec, Upload, kinds};
use serde_json::json;
use tokio::sync::watch;

use super::grpc::{Result, Status, code};
use super::order::{self, Asked};
use super::progress::{Board, Teller};
use super::session::{Session, Sessions};
use super::{files, outputs, wire};
use crate::caller::Caller;
use crate::engine::Engine;
use crate::error::Error;

pub const FRONTEND_CAPABILITIES: &[&str] = &[
    "solve.base",
    "return",
    "returnmap",
    "importcaches",
    "proto.refarray",
    "reference.output",
    "gateway.solve.metadata",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "frontend.caps",
];
/// What buildx looks at before it sends a request, though it sends no operations.
pub const OPERATION_CAPABILITIES: &[&str] = &[
    "source.image",
    "source.local",
    "source.local.unique",
    "exporter.image.attestations",
    "exporter.multiple",
    // Not spoken; a client that believes so sends them and is told, instead of leaving them out silently.
    "cache.gha",
    "cache.s3",
];

/// Builds that are over and may still be asked about.
const BUILDS_KEPT: usize = 32;
/// Both requests of a build come at the same time.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// How often the client sees how much of its context has arrived, in bytes.
const PROGRESS_BYTES: u64 = 4 << 20;

#[derive(Default)]
pub struct Builds {
    pub sessions: Sessions,
    known: Mutex<VecDeque<Arc<Build>>>,
}

pub struct Build {
    id: String,
    pub board: Arc<Board>,
    request: watch::Sender<Option<Arc<wire::ControlSolve>>>,
    returned: watch::Sender<Option<Result<()>>>,
    built: Mutex<Option<BuiltImage>>,
}

impl Builds {
    /// The build of this name, which the first who asks makes.
    pub fn of(&self, id: &str) -> Arc<Build> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(build) = known.iter().find(|it| it.id == id) {
            return Arc::clone(build);
        }
        // Whoever still uses an old one holds it.
        while known.len() >= BUILDS_KEPT {
            let unused = known.iter().position(|it| Arc::strong_count(it) == 1).unwrap_or(0);
            known.remove(unused);
        }
        let build = Arc::new(Build {
            id: id.to_owned(),
            board: Arc::default(),
            request: watch::Sender::new(None),
            returned: watch::Sender::new(None),
            built: Mutex::default(),
        });
        known.push_back(Arc::clone(&build));
        build
    }
}

impl Build {
    pub fn give_back(&self, said: wire::Return) {
        let end = match said.error {
            Some(error) => Err(Status::new(error.code, error.message)),
            None => Ok(()),
        };
        self.returned.send_replace(Some(end));
    }

    async fn request(&self) -> Result<Arc<wire::ControlSolve>> {
        let mut request = self.request.subscribe();
        let found = tokio::time::timeout(REQUEST_PATIENCE, request.wait_for(Option::is_some)).await;
        let found = found.ok().and_then(Result::ok).and_then(|it| it.clone());
        found.ok_or_else(|| Status::new(code::NOT_FOUND, format!("no build {} was begun", self.id)))
    }
}

/// Ends what clients follow, however the request ends.
struct Ending(Arc<Build>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.board.end();
    }
}

/// `Control/Solve`.
pub async fn control(
    engine: Engine,
    caller: Caller,
    question: wire::ControlSolve,
) -> Result<wire::ControlSolved> {
    let build = engine.buildkit.of(&question.reference);
    let _ending = Ending(Arc::clone(&build));
    if question.definition.as_ref().is_some_and(|it| !it.is_empty()) {
        return Err(Status::refused("graphs of operations (LLB) are not built here, Dockerfiles are"));
    }
    if question.source_policy.is_some() {
        return Err(Status::refused("source policies are not supported: pin the images in the Dockerfile"));
    }
    if question.proxy_network {
        return Err(Status::refused("a proxy for the network of steps is not supported"));
    }
    let outputs = outputs::read(&question)?;
    let question = Arc::new(question);
    build.request.send_replace(Some(Arc::clone(&question)));
    if question.frontend.is_empty() {
        let mut returned = build.returned.subscribe();
        let end = returned.wait_for(Option::is_some).await.map_err(|it| Status::failed(it.to_string()))?;
        if let Some(end) = end.clone() {
            end?;
        }
    } else {
        let attrs = question.frontend_attrs.clone().into_iter().collect();
        let direct = wire::BridgeSolve { frontend: question.frontend.clone(), attrs, ..Default::default() };
        bridge(engine.clone(), caller, Arc::clone(&build), direct).await?;
    }
    let image = build.built.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut exporter_response = BTreeMap::new();
    if let Some(image) = image {
        let session = engine.buildkit.sessions.get(&question.session).await?;
        let mut teller = Teller::new(Arc::clone(&build.board), &build.id);
        for (number, output) in outputs.iter().enumerate() {
            output.write(number, &engine, caller, &session, &image, &mut teller).await?;
        }
        exporter_response.insert("containerimage.digest".into(), image.digest.to_string());
        exporter_response.insert("image.name".into(), image.names.join(","));
        let kind = match engine.images.as_index(&image.digest) {
            Ok(Some(index)) => Some(index.media_type),
            _ => engine.images.manifest(&image.digest).ok().map(|it| it.media_type),
        };
        if let Some(kind) = kind {
            let size = engine.images.blob_size(&image.digest).unwrap_or(0);
            let descriptor = json!({"mediaType": kind, "digest": image.digest, "size": size}).to_string();
            let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, descriptor);
            exporter_response.insert("containerimage.descriptor".into(), encoded);
        }
    }
    Ok(wire::ControlSolved { exporter_response })
}

/// `LLBBridge/Solve`: builds.
pub async fn bridge(
    engine: Engine,
    caller: Caller,
    build: Arc<Build>,
    question: wire::BridgeSolve,
) -> Result<wire::BridgeSolved> {
    match question.frontend.as_str() {
        "dockerfile.v0" => {}
        "gateway.v0" if is_dockerfile_syntax(question.attrs.get("source")) => {}
        "gateway.v0" => {
            let source = question.attrs.get("source").map_or("", String::as_str);
            return Err(Status::refused(format!(
                "the frontend {source} is not run: Dockerfiles are built here"
            )));
        }
        _ => return Err(Status::refused("graphs of operations (LLB) are not built here, Dockerfiles are")),
    }
    if let Some(name) = question.inputs.keys().next() {
        return Err(Status::refused(format!(
            "the context {name} is the result of another build, which is not supported: tag that one, and name it \
             with docker-image://"
        )));
    }
    let request = build.request().await?;
    let mut asked = order::read(&question.attrs, &question.cache_imports)?;
    let exports = request.cache.as_ref().map(|it| it.exports.as_slice()).unwrap_or_default();
    let (mut cache_to, warnings) = order::cache_exports(exports);
    asked.warnings.extend(warnings);
    if caller == Caller::Job && !cache_to.is_empty() {
        // It would be sent with the daemon's own login.
        cache_to.clear();
        asked
            .warnings
            .push("--cache-to is not used in a job\nthis machine keeps its cache by content".into());
    }
    let session = engine.buildkit.sessions.get(&request.session).await?;
    let mut teller = Teller::new(Arc::clone(&build.board), &build.id);
    let built = run(&engine, &session, &request, asked, cache_to, &mut teller).await;
    if let Err(error) = &built {
        teller.fail(&error.message);
    }
    let (reference, metadata) = match built? {
        Outcome::Image(image) => {
            let id = image.digest.to_string();
            *build.built.lock().unwrap_or_else(PoisonError::into_inner) = Some(*image);
            (Some(wire::Reference { id }), BTreeMap::new())
        }
        Outcome::Said(metadata) => (None, metadata),
    };
    Ok(wire::BridgeSolved { result: Some(wire::BridgeResult { reference, metadata }) })
}

/// The official frontend's images hold what is built in here.
fn is_dockerfile_syntax(source: Option<&String>) -> bool {
    let Some(source) = source else { return false };
    let name = source.split(['@', ':']).next().unwrap_or_default();
    let name = name.trim_start_matches("docker.io/");
    matches!(name, "docker/dockerfile" | "docker/dockerfile-upstream")
}

enum Outcome {
    Image(Box<BuiltImage>),
    /// An answer that is no image.
    Said(BTreeMap<String, Vec<u8>>),
}

const DEFINITION: &str = "definition";
const CONTEXT: &str = "context";

async fn run(
    engine: &Engine,
    session: &Session,
    request: &wire::ControlSolve,
    mut asked: Asked,
    cache_to: Vec<String>,
    teller: &mut Teller,
) -> Result<Outcome> {
    teller.begin(DEFINITION, format!("[internal] load build definition from {}", asked.filename));
    let ignore_name = format!("{}.dockerignore", asked.filename);
    let wanted = [asked.filename.clone(), ignore_name.clone()];
    let mut definition = files::receive_small(session.files(&asked.dockerfile, &wanted, &[])?).await?;
    let text = definition.remove(&asked.filename).ok_or_else(|| {
        Status::failed(format!(
            "failed to read dockerfile: open {}: no such file or directory",
            asked.filename
        ))
    })?;
    let text =
        String::from_utf8(text).map_err(|_| Status::failed(format!("{} is not UTF-8", asked.filename)))?;
    teller.amount(DEFINITION, "transferring dockerfile:", text.len() as u64, true);
    for warning in &asked.warnings {
        teller.event(&Event::Finding { text: warning.clone() }, DEFINITION);
    }
    let form = naru_builder::parse(&text);
    match asked.request.as_deref() {
        None => {}
        Some("frontend.lint") => {
            teller.done(DEFINITION);
            return Ok(Outcome::Said(lint(&asked.filename, &text, &form)));
        }
        Some(other) => {
            return Err(Status::refused(format!(
                "{} is not supported: docker build --check is",
                other.trim_start_matches("frontend.")
            )));
        }
    }
    teller.done(DEFINITION);
    let secrets = secrets(session, &form).await?;
    pull_bases(engine, session, &form, &mut asked, teller).await?;

    teller.begin(CONTEXT, "[internal] load build context");
    let ignore = match definition.remove(&ignore_name) {
        Some(it) => it,
        None => {
            let name = ".dockerignore".to_owned();
            let mut found =
                files::receive_small(session.files(&asked.context, std::slice::from_ref(&name), &[])?)
                    .await?;
            found.remove(&name).unwrap_or_default()
        }
    };
    let exclude = exclude_patterns(&String::from_utf8_lossy(&ignore))?;
    let digest = receive(engine, session, &asked.context, &exclude, teller).await?;
    let mut contexts = asked.images;
    for (name, directory) in &asked.directories {
        contexts.insert(name.clone(), receive(engine, session, directory, &[], teller).await?);
    }
    teller.done(CONTEXT);

    let outputs = outputs::read(request)?;
    let tags: Vec<String> =
        outputs.into_iter().flat_map(|it| it.names).collect::<BTreeSet<_>>().into_iter().collect();
    for tag in &tags {
        naru_image::Reference::parse(tag)
            .map_err(|it| Status::failed(format!("invalid reference format: {it}")))?;
    }
    let spec = ImageSpec {
        upload: Some(Upload { digest, dockerfile: Some(text), contexts, ..Upload::default() }),
        service: "docker".into(),
        dockerfile: asked.filename,
        target: asked.target,
        args: asked.args,
        labels: asked.labels,
        platforms: asked.platforms,
        no_cache: asked.no_cache,
        pull: asked.pull,
        cache_from: asked.cache_from,
        cache_to,
        tags,
        ..ImageSpec::default()
    };
    let order = Order { spec, secrets, ..Order::default() };
    let namespace = &engine.config.builds_namespace;
    let image = naru_builder::submit(&engine.client, namespace, order).await.map_err(Error::from)?;
    let mut stop = StopOnDrop { engine, name: naru_objects::name_of(&image).to_owned(), armed: true };
    let mut events = std::pin::pin!(engine.builds.follow(&stop.name));
    while let Some(line) = events.next().await {
        let Ok(event) = serde_json::from_str::<Event>(&line) else { continue };
        teller.event(&event, DEFINITION);
        stop.armed = !event.is_last();
        match event {
            Event::Done(image) => return Ok(Outcome::Image(Box::new(image))),
            Event::Failed { report } => return Err(Status::failed(report)),
            _ => {}
        }
    }
    Err(Status::failed("the build's events ended before it did"))
}

/// A client that goes away ends its build.
struct StopOnDrop<'a> {
    engine: &'a Engine,
    name: String,
    armed: bool,
}

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (engine, name) = (self.engine.clone(), std::mem::take(&mut self.name));
        tokio::spawn(async move {
            let namespace = &engine.config.builds_namespace;
            if let Err(error) = engine.client.delete(&kinds::IMAGE, namespace, &name, None).await {
                tracing::debug!(%error, "a build that nobody waits for goes on");
            }
        });
    }
}

async fn receive(
    engine: &Engine,
    session: &Session,
    name: &str,
    exclude: &[String],
    teller: &mut Teller,
) -> Result<String> {
    let id = match name == order::CONTEXT {
        true => "transferring context:".to_owned(),
        false => format!("transferring {name}:"),
    };
    let (mut told, mut seen) = (0, 0);
    let digest = files::receive(&engine.images, session.files(name, &[], exclude)?, |bytes| {
        seen = bytes;
        if bytes - told >= PROGRESS_BYTES {
            told = bytes;
            teller.amount(CONTEXT, &id, bytes, false);
        }
    })
    .await?;
    teller.amount(CONTEXT, &id, seen, true);
    Ok(digest.to_string())
}

/// The secrets that steps mount, as far as the client has them. Whether one may be missing, the step says.
async fn secrets(session: &Session, form: &Dockerfile) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut ids = BTreeSet::new();
    for instruction in form.stages.iter().flat_map(|it| &it.instructions) {
        let Action::Run(run) = &instruction.action else { continue };
        for mount in run.mounts.iter().filter(|it| it.kind == naru_builder::form::MountKind::Secret) {
            // Without an id it is the last part of its target or source.
            let path = mount.target.as_ref().or(mount.source.as_ref());
            let last = path.and_then(|it| it.rsplit('/').next()).map(str::to_owned);
            ids.extend(mount.id.clone().or(last));
        }
    }
    let mut secrets = BTreeMap::new();
    for id in ids {
        if let Some(secret) = session.secret(&id).await? {
            secrets.insert(id, secret);
        }
    }
    Ok(secrets)
}

/// Base images that the client's own logins open are pulled with them, before the builder looks for them with
/// the daemon's.
async fn pull_bases(
    engine: &Engine,
    session: &Session,
    form: &Dockerfile,
    asked: &mut Asked,
    teller: &mut Teller,
) -> Result<()> {
    let mut pulled = 0;
    let bases: BTreeSet<&str> = form
        .stages
        .iter()
        .enumerate()
        .filter(|(index, it)| form.stage_index(&it.image, *index).is_none() && !it.image.contains('$'))
        .map(|(_, it)| it.image.as_str())
        .filter(|it| !asked.images.contains_key(*it) && !asked.directories.contains_key(*it))
        .collect();
    for name in &bases {
        let Ok(naru_image::Resolved::Name(reference)) = engine.images.resolve_name(name) else { continue };
        let is_here = engine.images.find(&reference).map_err(Error::from)?.is_some();
        if reference.is_local_only() || (is_here && !asked.pull) {
            continue;
        }
        let logins = session.credentials(&reference.registry).await?;
        if logins.is_empty() {
            continue;
        }
        let key = format!("pull {name}");
        teller.begin(&key, format!("[internal] pull {name} with the login of this client"));
        engine.images.pull_with(&reference, &logins).await.map_err(Error::from)?;
        teller.done(&key);
        pulled += 1;
    }
    // What has just been pulled need not be asked for again, which the daemon might not be allowed to.
    asked.pull &= pulled < bases.len();
    Ok(())
}

/// The patterns of an ignore file, as the client's walk takes them. Pure.
fn exclude_patterns(text: &str) -> Result<Vec<String>> {
    Ignore::parse(text).map_err(|(line, why)| Status::failed(format!(".dockerignore:{line}: {why}")))?;
    let lines = text.trim_start_matches('\u{feff}').lines();
    let lines = lines.filter(|it| !it.starts_with('#')).map(str::trim).filter(|it| !it.is_empty());
    Ok(lines
        .map(|line| {
            let (not, pattern) = match line.strip_prefix('!') {
                Some(rest) => ("!", rest.trim()),
                None => ("", line),
            };
            let parts: Vec<&str> = pattern.split('/').filter(|it| !it.is_empty() && *it != ".").collect();
            format!("{not}{}", parts.join("/"))
        })
        .filter(|it| !it.trim_start_matches('!').is_empty())
        .collect())
}

/// `docker build --check`: what there is to say about a Dockerfile, as BuildKit's linter writes it. Pure.
fn lint(filename: &str, text: &str, form: &Dockerfile) -> BTreeMap<String, Vec<u8>> {
    let rules: Vec<_> = form
        .findings
        .iter()
        .map(|it| {
            let at = json!({"line": it.place.line, "character": 0});
            json!({
                "ruleName": if it.is_error() { "Error" } else { "Warning" },
                "description": it.message, "detail": it.message, "level": 1,
                "location": {"sourceIndex": 0, "ranges": [{"start": at, "end": at}]},
            })
        })
        .collect();
    let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
    let document = json!({"warnings": rules, "sources": [{"filename": filename, "language": "Dockerfile", "data": data}]});
    let report: Vec<String> = form.findings.iter().map(|it| it.render(filename)).collect();
    let status = if form.findings.is_empty() { "0" } else { "1" };
    BTreeMap::from([
        ("result.json".to_owned(), document.to_string().into_bytes()),
        ("result.txt".to_owned(), report.join("\n\n").into_bytes()),
        ("result.statuscode".to_owned(), status.as_bytes().to_vec()),
        ("version".to_owned(), b"1.0.0".to_vec()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignore_files_become_patterns() {
        let text = "# comment\n\n/target/\n ./a//b \n!keep\n! /x\n.\n";
        assert_eq!(exclude_patterns(text).unwrap(), ["target", "a/b", "!keep", "!x"]);
    }

    #[test]
    fn the_official_frontend_needs_no_running() {
        for (source, known) in [
            ("docker/dockerfile:1", true),
            ("docker.io/docker/dockerfile:1.7-labs", true),
            ("docker/dockerfile-upstream@sha256:0", true),
            ("example.org/frontend", false),
        ] {
            assert_eq!(is_dockerfile_syntax(Some(&source.to_owned())), known, "{source}");
        }
    }
}
