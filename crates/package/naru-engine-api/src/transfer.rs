//! Images in and out: registries, archives, root file systems.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use base64::Engine as _;
use bytes::Bytes;
use futures::StreamExt;
use http::HeaderMap;
use naru_image::oci::{ANNOTATION_REF_NAME, Descriptor, ImageConfig, Manifest, architecture, media_type};
use naru_image::{CommitOptions, Credential, Digest, ImageStore, PushEvent, Reference};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::answer::{Query, ToChannel, json_lines, streamed, text, texts};
use crate::engine::Engine;
use crate::error::{Error, Result, chain};
use crate::names::short;

/// An error within this time is told by its status; later ones come in the stream.
const FIRST_WORDS: Duration = Duration::from_millis(1500);
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// Entries of an archive of images: blobs, and a little beside them.
const ENTRIES_MAX: usize = 20_000;

/// `X-Registry-Auth`: what `docker login` keeps, for this one request.
pub fn credentials(headers: &HeaderMap, registry: &str) -> Result<Vec<Credential>> {
    let Some(value) = headers.get("x-registry-auth").and_then(|it| it.to_str().ok()) else {
        return Ok(Vec::new());
    };
    let engines = [
        &base64::engine::general_purpose::URL_SAFE,
        &base64::engine::general_purpose::STANDARD,
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
    ];
    let bytes = engines.iter().find_map(|it| it.decode(value.trim()).ok());
    let bytes = bytes.ok_or_else(|| Error::bad("invalid X-Registry-Auth header"))?;
    let login: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let (mut user, mut password) =
        (text(&login, "/username").to_owned(), text(&login, "/password").to_owned());
    if user.is_empty()
        && let Ok(pair) = base64::engine::general_purpose::STANDARD.decode(text(&login, "/auth"))
        && let Some((a, b)) = String::from_utf8_lossy(&pair).split_once(':')
    {
        (user, password) = (a.to_owned(), b.to_owned());
    }
    if user.is_empty() && password.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Credential { registry: registry.to_owned(), user, password }])
}

/// A stream of progress whose first error still has a status of its own.
async fn progress<F>(work: impl FnOnce(mpsc::Sender<Value>) -> F) -> Result<Response>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(64);
    let last = sender.clone();
    let mut task = tokio::spawn(work(sender));
    match tokio::time::timeout(FIRST_WORDS, &mut task).await {
        Ok(Ok(done)) => done?,
        Ok(Err(error)) => return Err(Error::server(error.to_string())),
        Err(_) => {
            tokio::spawn(async move {
                let failed = match task.await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.message,
                    Err(error) => error.to_string(),
                };
                let _ = last.send(json!({"errorDetail": {"message": failed}, "error": failed})).await;
            });
        }
    }
    Ok(json_lines(tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

/// `docker pull`, and `docker import`.
pub async fn create(
    State(engine): State<Engine>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    if let Some(from) = query.get("fromSrc") {
        if from != "-" {
            return Err(Error::refused(
                "docker import from a URL is not supported: fetch it, and import the file",
            ));
        }
        return import(engine, query, body).await;
    }
    crate::system::check_platform(query.get("platform"))?;
    let name = query.get("fromImage").ok_or_else(|| Error::bad("fromImage is missing"))?;
    let wanted = match query.get("tag") {
        Some(digest) if digest.starts_with("sha256:") => format!("{name}@{digest}"),
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    };
    let reference = match engine.images.resolve_name(&wanted)? {
        naru_image::Resolved::Host => {
            let line = json!({"status": format!("Status: Image is up to date for {wanted}: it is this machine's own root")});
            return Ok(json_lines(futures::stream::once(async { line })));
        }
        naru_image::Resolved::Name(reference) => reference,
    };
    if reference.is_local_only() {
        return Err(Error::missing(format!(
            "{wanted} is only ever built here; there is nowhere to pull it from"
        )));
    }
    let credentials = credentials(&headers, &reference.registry)?;
    progress(move |sender| async move {
        let tag =
            reference.tag.clone().or(reference.digest.as_ref().map(|it| it.to_string())).unwrap_or_default();
        let repository = reference.name();
        let repository = repository.strip_prefix("docker.io/").unwrap_or(&repository);
        let _ = sender.send(json!({"status": format!("Pulling from {repository}"), "id": tag})).await;
        let before = engine.images.find(&reference)?.map(|it| it.digest);
        let digest = engine.images.pull_with(&reference, &credentials).await?;
        if let Ok(manifest) = engine.images.manifest(&digest) {
            for layer in &manifest.layers {
                let line =
                    json!({"status": "Pull complete", "progressDetail": {}, "id": short(layer.digest.hex())});
                let _ = sender.send(line).await;
            }
        }
        let _ = sender.send(json!({"status": format!("Digest: {digest}")})).await;
        let status = match before.as_ref() == Some(&digest) {
            true => "Image is up to date for",
            false => "Downloaded newer image for",
        };
        let _ = sender.send(json!({"status": format!("Status: {status} {}", reference.familiar())})).await;
        engine.events.tell("image", "pull", &reference.familiar(), json!({"name": reference.familiar()}));
        Ok(())
    })
    .await
}

pub async fn push(engine: &Engine, name: &str, query: &Query, headers: &HeaderMap) -> Result<Response> {
    crate::system::check_platform(query.get("platform"))?;
    let wanted = match query.get("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    };
    let target = Reference::parse(&wanted)
        .map_err(|error| Error::bad(format!("invalid reference format: {error}")))?;
    let found = engine.images.find(&target)?;
    let found = found
        .ok_or_else(|| Error::missing(format!("An image does not exist locally with the tag: {name}")))?;
    if target.is_local_only() {
        return Err(Error::bad(format!("{wanted} has no registry; give it another name with docker tag")));
    }
    let credentials = credentials(headers, &target.registry)?;
    let engine = engine.clone();
    progress(move |sender| async move {
        let first = json!({"status": format!("The push refers to repository [{}]", target.name())});
        let _ = sender.send(first).await;
        let tell = sender.clone();
        let told = move |event: PushEvent| {
            let line = match event {
                PushEvent::Exists(digest) => {
                    json!({"status": "Layer already exists", "id": short(digest.hex())})
                }
                PushEvent::Mounted { digest, from } => {
                    json!({"status": format!("Mounted from {from}"), "id": short(digest.hex())})
                }
                PushEvent::Pushing { digest, size } => json!({"status": "Pushing", "id": short(digest.hex()),
                    "progressDetail": {"current": 0, "total": size}}),
                PushEvent::Pushed(digest) => json!({"status": "Pushed", "id": short(digest.hex())}),
                PushEvent::Done { digest, size, name } => {
                    let told = json!({"status": format!("{name}: digest: {digest} size: {size}")});
                    let _ = tell.try_send(told);
                    json!({"progressDetail": {}, "aux": {"Tag": name, "Digest": digest, "Size": size}})
                }
            };
            // Progress is worth no waiting.
            let _ = tell.try_send(line);
        };
        engine.images.push(&found.digest, &target, &credentials, &told).await?;
        engine.events.tell("image", "push", &target.familiar(), json!({"name": target.familiar()}));
        Ok(())
    })
    .await
}

/// The request's body in a file.
pub async fn spool(store: &ImageStore, body: Body) -> Result<(tempfile::TempDir, PathBuf)> {
    use tokio::io::AsyncWriteExt;
    let directory = store.scratch_dir()?;
    let path = directory.path().join("body");
    let mut file = tokio::fs::File::create(&path).await?;
    let mut stream = body.into_data_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| Error::bad(format!("cannot read the request: {error}")))?;
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    Ok((directory, path))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|it| Error::server(it.to_string()))?
}

/// A configuration with nothing but what every one has.
pub fn fresh_config() -> ImageConfig {
    ImageConfig {
        created: Some(crate::answer::now()),
        architecture: architecture().into(),
        os: "linux".into(),
        ..ImageConfig::default()
    }
}

async fn import(engine: Engine, query: Query, body: Body) -> Result<Response> {
    let changes: Vec<&str> = query.get("changes").into_iter().collect();
    let mut config = fresh_config();
    for change in changes {
        apply_change(&mut config, change)?;
    }
    let message = query.get("message").unwrap_or("Imported from -").to_owned();
    let target = match (query.get("repo"), query.get("tag")) {
        (None, _) => None,
        (Some(name), Some(tag)) => Some(format!("{name}:{tag}")),
        (Some(name), None) => Some(name.to_owned()),
    };
    let target = target
        .map(|it| {
            Reference::parse(&it).map_err(|error| Error::bad(format!("invalid reference format: {error}")))
        })
        .transpose()?;
    let target = target.ok_or_else(|| {
        Error::refused("docker import without a name is not supported: what has no name is removed soon")
    })?;
    let store = engine.images.clone();
    let (_scratch, path) = spool(&store, body).await?;
    let name = target.clone();
    let digest = blocking(move || {
        let directory = store.scratch_dir()?;
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut plain = naru_image::decompress(io::BufReader::new(File::open(path)?))?;
        naru_image::unpack(&mut plain, directory.path())
            .map_err(|error| Error::bad(format!("cannot import: {}", chain(&error))))?;
        let layer = store.add_layer(directory, CommitOptions::default())?;
        config.history = serde_json::from_value(json!([{"created": config.created, "comment": message}]))
            .unwrap_or_default();
        let digest = store.put_image(&config, &[layer], naru_image::Base::Own)?;
        store.tag(&name, &digest, media_type::MANIFEST)?;
        Ok(digest)
    })
    .await?;
    engine.events.tell("image", "import", digest.as_str(), json!({"name": target.familiar()}));
    let line = json!({"status": digest});
    Ok(json_lines(futures::stream::once(async { line })))
}

/// `--change`: one instruction of a Dockerfile laid over a configuration.
pub fn apply_change(config: &mut ImageConfig, change: &str) -> Result<()> {
    let (word, rest) = change.trim().split_once(char::is_whitespace).unwrap_or((change.trim(), ""));
    let rest = rest.trim();
    let list = || -> Vec<String> {
        match serde_json::from_str::<Vec<String>>(rest) {
            Ok(list) => list,
            Err(_) => vec!["/bin/sh".into(), "-c".into(), rest.into()],
        }
    };
    let run = &mut config.config;
    match word.to_ascii_uppercase().as_str() {
        "CMD" => run.cmd = list(),
        "ENTRYPOINT" => run.entrypoint = list(),
        "USER" => run.user = rest.into(),
        "WORKDIR" => run.working_dir = rest.into(),
        "STOPSIGNAL" => run.stop_signal = Some(rest.into()),
        "ENV" | "LABEL" => {
            let (name, value) = rest
                .split_once(['=', ' '])
                .ok_or_else(|| Error::bad(format!("{word} must have two arguments")))?;
            let value = value.trim().trim_matches('"');
            match word.eq_ignore_ascii_case("ENV") {
                true => run.set_env(name, value),
                false => drop(run.labels.insert(name.into(), value.into())),
            }
        }
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                let (number, protocol) = crate::ports::parse_port(port)?;
                run.exposed_ports.insert(format!("{number}/{protocol}"), json!({}));
            }
        }
        "VOLUME" => {
            let paths: Vec<String> = serde_json::from_str(rest)
                .unwrap_or_else(|_| rest.split_whitespace().map(str::to_owned).collect());
            run.volumes.extend(paths.into_iter().map(|it| (it, json!({}))));
        }
        "HEALTHCHECK" if rest.eq_ignore_ascii_case("NONE") => {
            run.healthcheck = Some(json!({"Test": ["NONE"]}))
        }
        _ => return Err(Error::refused(format!("--change {word} is not supported"))),
    }
    Ok(())
}

/// `docker commit`.
pub async fn commit(State(engine): State<Engine>, RawQuery(query): RawQuery, body: Body) -> Result<Response> {
    let raw = query.unwrap_or_default();
    let changes: Vec<String> = raw
        .split('&')
        .filter(|it| it.starts_with("changes="))
        .filter_map(|it| Query::parse(Some(it)).get("changes").map(str::to_owned))
        .flat_map(|it| it.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let query = Query::parse(Some(&raw));
    let given = crate::answer::json_body(body).await?;
    let container = engine.container(query.get("container").unwrap_or_default())?;
    let _turn = engine.turn(container.id()).await;
    let found = engine.find_image(&container.record.digest)?;
    let base = engine.load_image(&found).await?;
    let mut config = base.config.clone();
    // What the container was told counts, as in Docker.
    let own = container.record.config.clone();
    let environment = texts(&own["Env"]);
    config.config.env = environment;
    config.config.cmd = texts(&own["Cmd"]);
    config.config.entrypoint = texts(&own["Entrypoint"]);
    config.config.user = text(&own, "/User").to_owned();
    config.config.working_dir = text(&own, "/WorkingDir").to_owned();
    for (name, value) in own["Labels"].as_object().into_iter().flatten() {
        config.config.labels.insert(name.clone(), value.as_str().unwrap_or_default().to_owned());
    }
    if !texts(&given["Cmd"]).is_empty() {
        config.config.cmd = texts(&given["Cmd"]);
    }
    for change in &changes {
        apply_change(&mut config, change)?;
    }
    config.created = Some(crate::answer::now());
    if let Some(author) = query.get("author") {
        config.rest.insert("author".into(), json!(author));
    }
    let target = query.get("repo").map(|name| match query.get("tag") {
        Some(tag) => format!("{name}:{tag}"),
        None => name.to_owned(),
    });
    // What has no name would be removed soon.
    let target = target.unwrap_or_else(|| format!("commit:{}", short(&crate::names::random_id())));
    let target = Reference::parse(&target)
        .map_err(|error| Error::bad(format!("invalid reference format: {error}")))?;
    let (namespace, pod) = (container.namespace(), container.pod_name());
    let running = container.state().status == crate::container::Status::Running;
    let frozen = running && query.is_or("pause", true);
    if frozen {
        engine.node.freeze(namespace, pod, true).await?;
    }
    let files = engine.node.files(namespace, pod)?;
    let store = engine.images.clone();
    let comment = query.get("comment").unwrap_or_default().to_owned();
    let command = crate::create::command_line(&container.record.config).join(" ");
    let name = target.clone();
    let packed = blocking(move || {
        let mut layers = base.layers.clone();
        let directory = store.scratch_dir()?;
        std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        if let Some(files) = &files {
            copy_upper(&store, files, directory.path())?;
        }
        layers.push(store.add_layer(directory, CommitOptions::default())?);
        let mut history = serde_json::to_value(&config.history).unwrap_or_default();
        if let Some(list) = history.as_array_mut() {
            list.push(json!({"created": config.created, "created_by": command, "comment": comment}));
        }
        config.history = serde_json::from_value(history).unwrap_or_default();
        let over = if base.host.is_some() { naru_image::Base::Host } else { naru_image::Base::Own };
        let digest = store.put_image(&config, &layers, over)?;
        store.tag(&name, &digest, media_type::MANIFEST)?;
        Ok(digest)
    })
    .await;
    if frozen {
        engine.node.freeze(namespace, pod, false).await?;
    }
    let digest = packed?;
    engine.tell_container("commit", &container, json!({"imageID": digest, "imageRef": target.familiar()}));
    Ok(crate::answer::created(json!({"Id": digest})))
}

/// Copies what a container wrote, without what the runtime made only to mount on.
fn copy_upper(store: &ImageStore, files: &crate::node::Files, to: &FilePath) -> Result<()> {
    let scratch = store.scratch_dir()?;
    let path = scratch.path().join("layer.tar");
    let out = io::BufWriter::new(File::create(&path)?);
    let failed = |error: &dyn std::error::Error| {
        Error::server(format!("cannot copy the container's files: {}", chain(error)))
    };
    naru_image::pack(&files.upper, None, out).map_err(|error| failed(&error))?;
    naru_image::unpack(&mut io::BufReader::new(File::open(&path)?), to).map_err(|error| failed(&error))?;
    for stub in crate::archive::stubs(files) {
        let Ok(relative) = stub.strip_prefix("/") else { continue };
        let place = to.join(relative);
        match place.symlink_metadata() {
            // What is not empty is the container's own, and stays.
            Ok(meta) if meta.is_dir() => drop(std::fs::remove_dir(&place)),
            Ok(meta) if meta.is_file() && meta.len() == 0 => std::fs::remove_file(&place)?,
            _ => {}
        }
    }
    Ok(())
}

pub async fn save_many(State(engine): State<Engine>, RawQuery(query): RawQuery) -> Result<Response> {
    let raw = query.unwrap_or_default();
    let names = raw.split('&').filter(|it| it.starts_with("names="));
    let names: Vec<String> =
        names.filter_map(|it| Query::parse(Some(it)).get("names").map(str::to_owned)).collect();
    save(&engine, names, &Query::parse(Some(&raw))).await
}

/// `docker save`: an OCI layout that is also an archive as Docker's older versions read it.
pub async fn save(engine: &Engine, names: Vec<String>, query: &Query) -> Result<Response> {
    crate::system::check_platform(query.get("platform"))?;
    let mut wanted: Vec<(Digest, Option<Reference>)> = Vec::new();
    for name in &names {
        let found = engine.find_image(name)?;
        if found.host || engine.images.manifest(&found.digest)?.is_over_host() {
            return Err(Error::refused(format!(
                "{name} lies over this machine's own root and means nothing elsewhere"
            )));
        }
        let named = found.name.filter(|it| it.tag.is_some() && it.digest.is_none());
        let named: Vec<Option<Reference>> = match named {
            Some(name) => vec![Some(name)],
            None if found.tags.is_empty() => vec![None],
            None => found.tags.into_iter().map(Some).collect(),
        };
        for name in named {
            engine.events.tell("image", "save", found.digest.as_str(), json!({}));
            wanted.push((found.digest.clone(), name));
        }
    }
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(8);
    let store = engine.images.clone();
    tokio::task::spawn_blocking(move || {
        let errors = sender.clone();
        let out = io::BufWriter::with_capacity(64 * 1024, ToChannel(sender));
        if let Err(error) = write_archive(&store, &wanted, out) {
            let _ = errors.blocking_send(Err(io::Error::other(error.message)));
        }
    });
    Ok(streamed("application/x-tar", tokio_stream::wrappers::ReceiverStream::new(receiver)))
}

fn write_archive(store: &ImageStore, wanted: &[(Digest, Option<Reference>)], out: impl Write) -> Result<()> {
    let mut out = tar::Builder::new(out);
    let (mut index, mut listed): (Vec<Value>, BTreeMap<Digest, Value>) = Default::default();
    let mut blobs: BTreeSet<Digest> = BTreeSet::new();
    let place = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    for (digest, name) in wanted {
        let manifest = store.manifest(digest)?;
        let size = store.blob_size(digest).unwrap_or(0);
        let mut entry = json!({"mediaType": manifest.media_type, "digest": digest, "size": size});
        if let Some(name) = name {
            entry["annotations"] =
                json!({"io.containerd.image.name": name.tag_name(), ANNOTATION_REF_NAME: name.tag});
        }
        index.push(entry);
        let one = listed.entry(digest.clone()).or_insert_with(|| {
            json!({"Config": place(&manifest.config.digest), "RepoTags": [],
                "Layers": manifest.layers.iter().map(|it| place(&it.digest)).collect::<Vec<_>>()})
        });
        if let (Some(name), Some(tags)) = (name, one["RepoTags"].as_array_mut()) {
            tags.push(json!(name.familiar()));
        }
        blobs.insert(digest.clone());
        blobs.insert(manifest.config.digest.clone());
        blobs.extend(manifest.layers.iter().map(|it| it.digest.clone()));
    }
    let mut add = |name: &str, size: u64, from: &mut dyn Read| -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size);
        out.append_data(&mut header, name, from)
    };
    for digest in &blobs {
        let mut file = File::open(store.blob_path(digest))?;
        let size = file.metadata()?.len();
        add(&place(digest), size, &mut file)?;
    }
    let listed: Vec<&Value> = listed.values().collect();
    for (name, document) in [
        ("index.json", json!({"schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": index})),
        ("manifest.json", json!(listed)),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
    ] {
        let text = document.to_string();
        add(name, text.len() as u64, &mut text.as_bytes())?;
    }
    out.into_inner()?.flush()?;
    Ok(())
}

/// `docker load`.
pub async fn load(State(engine): State<Engine>, RawQuery(query): RawQuery, body: Body) -> Result<Response> {
    let query = Query::parse(query.as_deref());
    crate::system::check_platform(query.get("platform"))?;
    let store = engine.images.clone();
    let (scratch, path) = spool(&store, body).await?;
    let loaded = blocking(move || {
        let names = read_archive(&store, scratch.path(), &path);
        drop(scratch);
        names
    })
    .await?;
    let mut lines = Vec::new();
    for name in loaded {
        engine.events.tell("image", "load", &name, json!({"name": name}));
        let what = if name.starts_with("sha256:") { "Loaded image ID" } else { "Loaded image" };
        lines.push(json!({"stream": format!("{what}: {name}\n")}));
    }
    Ok(json_lines(futures::stream::iter(lines)))
}

/// Puts the images of an archive into the store and returns their names.
fn read_archive(store: &ImageStore, scratch: &FilePath, path: &FilePath) -> Result<Vec<String>> {
    let wrong = |why: &str| Error::bad(format!("cannot load the archive: {why}"));
    let plain = naru_image::decompress(io::BufReader::new(File::open(path)?))?;
    let mut archive = tar::Archive::new(plain);
    // Each file under a number: names of the archive never become paths.
    let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (number, entry) in archive.entries().map_err(|it| wrong(&it.to_string()))?.enumerate() {
        let mut entry = entry.map_err(|it| wrong(&it.to_string()))?;
        if number > ENTRIES_MAX {
            return Err(wrong("it has too many entries"));
        }
        let clean = |path: &FilePath| -> PathBuf {
            path.components().filter(|it| matches!(it, std::path::Component::Normal(_))).collect()
        };
        let name = clean(&entry.path().map_err(|it| wrong(&it.to_string()))?);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let place = scratch.join(number.to_string());
            io::copy(&mut entry, &mut File::create(&place)?).map_err(|it| wrong(&it.to_string()))?;
            files.insert(name, place);
        } else if kind.is_symlink() || kind.is_hard_link() {
            // Older archives name the same layer twice by a link.
            let target = entry.link_name().ok().flatten().unwrap_or_default().into_owned();
            let target = match kind.is_symlink() {
                true => clean(
                    &name.parent().unwrap_or(FilePath::new("")).join(
                        target
                            .components()
                            .filter(|it| !matches!(it, std::path::Component::ParentDir))
                            .collect::<PathBuf>(),
                    ),
                ),
                false => clean(&target),
            };
            let found = files.get(&target).or_else(|| {
                // `../<layer>/layer.tar`, as Docker's old archives have it.
                let tail: PathBuf =
                    target.iter().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect();
                files.get(&tail)
            });
            if let Some(found) = found.cloned() {
                files.insert(name, found);
            }
        }
    }
    let read = |name: &FilePath| -> Result<Vec<u8>> {
        let place = files.get(name).ok_or_else(|| wrong(&format!("it has no {}", name.display())))?;
        if place.metadata()?.len() > DOCUMENT_BYTES_MAX {
            return Err(wrong(&format!("{} is too large", name.display())));
        }
        Ok(std::fs::read(place)?)
    };
    if files.contains_key(FilePath::new("manifest.json")) {
        return read_docker_archive(store, &files, &read, &wrong);
    }
    if files.contains_key(FilePath::new("index.json")) {
        return read_layout(store, &files, &read, &wrong);
    }
    Err(wrong("it has neither a manifest.json nor an index.json"))
}

/// Copies a file into the store, checked against its digest if there is one.
fn put_file(store: &ImageStore, path: &FilePath, expected: Option<&Digest>) -> Result<(Digest, u64)> {
    let mut blob = store.begin_blob()?;
    io::copy(&mut File::open(path)?, &mut blob)?;
    Ok(blob.commit(expected)?)
}

type Files = BTreeMap<PathBuf, PathBuf>;

fn read_layout(
    store: &ImageStore,
    files: &Files,
    read: &dyn Fn(&FilePath) -> Result<Vec<u8>>,
    wrong: &dyn Fn(&str) -> Error,
) -> Result<Vec<String>> {
    let index: Value =
        serde_json::from_slice(&read(FilePath::new("index.json"))?).map_err(|it| wrong(&it.to_string()))?;
    let mut names = Vec::new();
    let place = |digest: &Digest| PathBuf::from(format!("blobs/sha256/{}", digest.hex()));
    for entry in index["manifests"].as_array().into_iter().flatten() {
        let entry: Descriptor = serde_json::from_value(entry.clone()).map_err(|it| wrong(&it.to_string()))?;
        let mut digest = entry.digest.clone();
        let mut bytes = read(&place(&digest))?;
        let document: Value = serde_json::from_slice(&bytes).map_err(|it| wrong(&it.to_string()))?;
        if document["manifests"].is_array() {
            let ours = document["manifests"].as_array().into_iter().flatten().find(|it| {
                it["platform"].is_null()
                    || (it["platform"]["architecture"] == architecture() && it["platform"]["os"] == "linux")
            });
            let ours = ours.and_then(|it| Digest::parse(it["digest"].as_str()?).ok());
            digest = ours.ok_or_else(|| wrong(&format!("{digest} has no variant for this machine")))?;
            bytes = read(&place(&digest))?;
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|it| wrong(&it.to_string()))?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            let place = files
                .get(&place(&blob.digest))
                .ok_or_else(|| wrong(&format!("the blob {} is missing", blob.digest)))?;
            put_file(store, place, Some(&blob.digest))?;
        }
        if Digest::of(&bytes) != digest {
            return Err(wrong(&format!("the manifest {digest} has another digest")));
        }
        store.put_blob(&bytes)?;
        let named = ["io.containerd.image.name", ANNOTATION_REF_NAME]
            .iter()
            .find_map(|it| entry.annotations.get(*it));
        match named.and_then(|it| Reference::parse(it).ok()) {
            Some(name) => {
                store.tag(&name, &digest, media_type::MANIFEST)?;
                names.push(name.familiar());
            }
            None => names.push(digest.to_string()),
        }
    }
    Ok(names)
}

fn read_docker_archive(
    store: &ImageStore,
    files: &Files,
    read: &dyn Fn(&FilePath) -> Result<Vec<u8>>,
    wrong: &dyn Fn(&str) -> Error,
) -> Result<Vec<String>> {
    let list: Value = serde_json::from_slice(&read(FilePath::new("manifest.json"))?)
        .map_err(|it| wrong(&it.to_string()))?;
    let mut names = Vec::new();
    for image in list.as_array().into_iter().flatten() {
        let config_bytes = read(FilePath::new(text(image, "/Config")))?;
        let config: ImageConfig =
            serde_json::from_slice(&config_bytes).map_err(|it| wrong(&it.to_string()))?;
        let paths = texts(&image["Layers"]);
        if paths.len() != config.rootfs.diff_ids.len() {
            return Err(wrong("its configuration and its list of layers disagree"));
        }
        let mut layers = Vec::new();
        for (path, diff_id) in paths.iter().zip(&config.rootfs.diff_ids) {
            let place = files
                .get(FilePath::new(path))
                .ok_or_else(|| wrong(&format!("the layer {path} is missing")))?;
            let mut head = [0; 8];
            let count = File::open(place)?.read(&mut head)?;
            let compressed = naru_image::Compression::sniff(&head[..count]);
            let (kind, expected) = match compressed {
                naru_image::Compression::None => (media_type::LAYER, Some(diff_id)),
                naru_image::Compression::Gzip => (media_type::LAYER_GZIP, None),
                naru_image::Compression::Zstd => (media_type::LAYER_ZSTD, None),
            };
            let (digest, size) = put_file(store, place, expected)?;
            layers.push(Descriptor::new(kind, digest, size));
        }
        let config_digest = store.put_blob(&config_bytes)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::MANIFEST.into(),
            config: Descriptor::new(media_type::CONFIG, config_digest, config_bytes.len() as u64),
            layers,
            annotations: BTreeMap::new(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|it| wrong(&it.to_string()))?;
        let digest = store.put_blob(&bytes)?;
        let tags = texts(&image["RepoTags"]);
        if tags.is_empty() {
            names.push(digest.to_string());
        }
        for tag in tags {
            let name = Reference::parse(&tag).map_err(|error| wrong(&error.to_string()))?;
            store.tag(&name, &digest, media_type::MANIFEST)?;
            names.push(name.familiar());
        }
        // Unpacked now: a layer that lies about its digest is told at once.
        store.load("loaded", &digest)?;
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_come_in_a_header() {
        let mut headers = HeaderMap::new();
        let login = json!({"username": "u", "password": "p", "serveraddress": "r"}).to_string();
        let value = base64::engine::general_purpose::URL_SAFE.encode(login);
        headers.insert("x-registry-auth", value.parse().unwrap());
        let found = credentials(&headers, "r.example").unwrap();
        assert_eq!((found[0].registry.as_str(), found[0].user.as_str()), ("r.example", "u"));
        headers.insert("x-registry-auth", "e30=".parse().unwrap());
        assert!(credentials(&headers, "r.example").unwrap().is_empty(), "nobody is logged in");
    }

    #[test]
    fn changes_are_instructions() {
        let mut config = fresh_config();
        for change in ["CMD [\"a\", \"b\"]", "ENV A=1", "EXPOSE 80 53/udp", "LABEL x=\"y\"", "ENTRYPOINT run"]
        {
            apply_change(&mut config, change).unwrap();
        }
        assert_eq!(config.config.cmd, ["a", "b"]);
        assert_eq!(config.config.entrypoint, ["/bin/sh", "-c", "run"]);
        assert!(config.config.exposed_ports.contains_key("53/udp"));
        assert_eq!(config.config.labels["x"], "y");
        assert!(apply_change(&mut config, "RUN x").is_err());
    }
}
