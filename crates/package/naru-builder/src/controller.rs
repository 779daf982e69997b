//! Makes `Image` objects true: fetches the source at their commit, builds, writes what came of it into
//! their status. What it does next it reads from the objects, so a restart loses nothing: an image that
//! was being built is started over, and the cache makes that cheap.

use crate::engine::{BuildRequest, Builder};
use crate::outcome::BuiltImage;
use crate::run::remove_leftovers;
use naru_client::{Client, EventKind};
use naru_image::{Collected, Digest, Keep, LastLink, Reference, View};
use naru_objects::{Image, ImagePhase, ImageSpec, kinds, labels};
use naru_source::Source;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LOG_BYTES_MAX: usize = 16 << 20; // per image; what is beyond is dropped and said so
const LOGS_KEPT: usize = 500; // the oldest go
const CLEAN_FIRST: Duration = Duration::from_secs(600); // not while everything starts
const CLEAN_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Unused content stays at least this long: a rollback or a second try soon after finds it.
const UNUSED_MAX: Duration = Duration::from_secs(24 * 3600);
/// Steps of builds stay useful for as long as somebody works on them.
const STEPS_UNUSED_MAX: Duration = Duration::from_secs(14 * 24 * 3600);
const MESSAGE_CHARS_MAX: usize = 4_000; // an object is no log

#[derive(Clone)]
pub struct ControllerConfig {
    /// Where `Image` objects and the pods of their steps live.
    pub namespace: String,
    pub source: Source,
    /// One file per image, see [`log_path`].
    pub log_dir: PathBuf,
    /// Builds side by side.
    pub parallel: usize,
}

/// Where the build log of an image is written, line by line.
pub fn log_path(log_dir: &Path, image: &str) -> PathBuf {
    // Names of objects are DNS names and hold no slash; anything else would not have been stored.
    log_dir.join(format!("{}.log", image.replace('/', "_")))
}

/// Starts the controller. It ends after `shutdown`, leaving what it was building to the next start.
pub fn start(
    builder: Builder,
    client: Client,
    config: ControllerConfig,
    shutdown: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(run(builder, client, config, shutdown))
}

async fn run(builder: Builder, client: Client, config: ControllerConfig, shutdown: CancellationToken) {
    if let Err(error) = std::fs::create_dir_all(&config.log_dir) {
        tracing::error!(path = %config.log_dir.display(), %error, "cannot create the directory of build logs");
    }
    let mut cache = client.cache(&kinds::IMAGE, Some(&config.namespace), "");
    tokio::select! {
        () = cache.synced() => {}
        () = shutdown.cancelled() => return,
    }
    if let Err(error) = remove_leftovers(&client, &config.namespace).await {
        tracing::warn!(%error, "pods of interrupted builds are left behind");
    }
    let config = Arc::new(config);
    let mut under_way: BTreeSet<String> = BTreeSet::new();
    let mut builds: JoinSet<String> = JoinSet::new();
    let mut clean_at = Instant::now() + CLEAN_FIRST;
    loop {
        for object in cache.list() {
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            if builds.len() >= config.parallel.max(1) {
                break;
            }
            if !is_wanted(&object) || !under_way.insert(uid.clone()) {
                continue;
            }
            let (builder, client, config) = (builder.clone(), client.clone(), Arc::clone(&config));
            builds.spawn(async move {
                build(&builder, &client, &config, &object).await;
                uid
            });
        }
        tokio::select! {
            () = cache.changed() => {}
            Some(done) = builds.join_next(), if !builds.is_empty() => {
                match done {
                    Ok(uid) => {
                        // The copy may not show the new status yet: asked again only after it has changed.
                        let settled = wait_until_final(&mut cache, &uid);
                        let _ = tokio::time::timeout(Duration::from_secs(5), settled).await;
                        under_way.remove(&uid);
                    }
                    Err(error) => tracing::error!(%error, "a build ended by a panic: this is a bug in Naru"),
                }
            }
            // Between builds only: a build must not lose what it is about to use.
            () = tokio::time::sleep_until(clean_at), if builds.is_empty() => {
                if let Err(error) = clean(&builder, &client, &config.namespace).await {
                    tracing::warn!(error = &*error, "unused images are not removed");
                }
                clean_at = Instant::now() + CLEAN_EVERY;
            }
            () = shutdown.cancelled() => break,
        }
    }
    builder.stop();
    while builds.join_next().await.is_some() {}
}

/// Removes images and layers that no pod, no release and no recent build refers to.
async fn clean(
    builder: &Builder,
    client: &Client,
    namespace: &str,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut used: BTreeSet<Digest> = BTreeSet::new();
    for kind in [&kinds::POD, &kinds::RELEASE] {
        for object in client.list(kind, None, "").await? {
            collect_digests(&object, &mut used);
        }
    }
    let now = jiff::Timestamp::now();
    for image in client.list(&kinds::IMAGE, Some(namespace), "").await? {
        let finished =
            image["status"]["finishedAt"].as_str().and_then(|it| it.parse::<jiff::Timestamp>().ok());
        // Its release may not be written yet.
        if finished.is_none_or(|it| now.duration_since(it) < jiff::SignedDuration::from_hours(24)) {
            collect_digests(&image["status"], &mut used);
        }
    }
    let builder = builder.clone();
    let work = move || -> Result<Collected, Box<dyn std::error::Error + Send + Sync>> {
        let store = builder.store();
        for (name, manifest) in store.tags()? {
            let name = Reference::parse(&name)?;
            let is_commit = |tag: &String| tag.len() == 12 && tag.bytes().all(|it| it.is_ascii_hexdigit());
            if name.is_local_only()
                && name.tag.as_ref().is_some_and(is_commit)
                && !used.contains(&manifest.digest)
            {
                store.untag(&name)?;
            }
        }
        let layers = builder.gc(STEPS_UNUSED_MAX)?;
        Ok(store.gc(&Keep { manifests: used.into_iter().collect(), layers }, UNUSED_MAX)?)
    };
    let collected = tokio::task::spawn_blocking(work).await??;
    if collected != Collected::default() {
        tracing::info!(
            blobs = collected.blobs,
            layers = collected.layers,
            bytes = collected.bytes,
            "unused images removed"
        );
    }
    Ok(())
}

/// Every digest that an object names, wherever in it.
fn collect_digests(value: &Value, found: &mut BTreeSet<Digest>) {
    match value {
        Value::String(text) => {
            let at = text.find("sha256:").map(|at| &text[at..]);
            found.extend(at.and_then(|it| Digest::parse(it).ok()));
        }
        Value::Array(items) => items.iter().for_each(|it| collect_digests(it, found)),
        Value::Object(fields) => fields.values().for_each(|it| collect_digests(it, found)),
        _ => {}
    }
}

fn is_wanted(object: &Value) -> bool {
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    object["metadata"]["deletionTimestamp"].is_null() && matches!(phase, "" | "Pending" | "Building")
}

async fn wait_until_final(cache: &mut naru_client::Cache, uid: &str) {
    let is_open = |it: &Arc<Value>| it["metadata"]["uid"] == uid && is_wanted(it);
    while cache.list().iter().any(is_open) {
        cache.changed().await;
    }
}

async fn build(builder: &Builder, client: &Client, config: &ControllerConfig, object: &Value) {
    let name = naru_objects::name_of(object).to_owned();
    let now = || naru_objects::timestamp(jiff::Timestamp::now());
    let started_at = now();
    let write = async |status: Value| {
        if let Err(error) = client.patch_status(&kinds::IMAGE, &config.namespace, &name, &status).await {
            tracing::warn!(image = name, %error, "the status of an image is not written");
        }
    };
    let image: Image = match serde_json::from_value(object.clone()) {
        Ok(it) => it,
        Err(error) => {
            let message = format!("this Image object cannot be understood: {error}");
            return write(json!({"phase": ImagePhase::Failed, "message": message, "finishedAt": now()}))
                .await;
        }
    };
    write(json!({"phase": ImagePhase::Building, "startedAt": started_at, "message": null})).await;
    let mut log = BuildLog::open(&config.log_dir, &name);
    log.line(&format!("building {} of {} at {}", image.spec.service, image.spec.repository, image.spec.sha));
    let outcome = build_spec(builder, config, object, &image.spec, log.clone()).await;
    let status = match outcome {
        Ok(built) => {
            let message = format!("built {}", built.reference);
            client.event(object, EventKind::Normal, "Built", &message).await;
            json!({
                "phase": ImagePhase::Ready, "reference": built.reference, "digest": built.digest,
                "sizeBytes": built.size, "layers": built.layers, "cachedSteps": built.cached_steps,
                "totalSteps": built.total_steps, "advice": built.advice, "finishedAt": now(), "message": null,
            })
        }
        Err(Outcome::Stopped) => return,
        Err(Outcome::Failed(report)) => {
            log.line(&report);
            let message: String = report.chars().take(MESSAGE_CHARS_MAX).collect();
            let first = message.lines().next().unwrap_or_default().to_owned();
            client.event(object, EventKind::Warning, "BuildFailed", &first).await;
            json!({"phase": ImagePhase::Failed, "message": message, "finishedAt": now()})
        }
    };
    log.finish();
    write(status).await;
}

enum Outcome {
    Failed(String),
    /// The daemon goes; the next one starts over.
    Stopped,
}

async fn build_spec(
    builder: &Builder,
    config: &ControllerConfig,
    object: &Value,
    spec: &ImageSpec,
    mut log: BuildLog,
) -> Result<BuiltImage, Outcome> {
    let failed = |text: String| Outcome::Failed(format!("error: {text}"));
    let tree =
        config.source.checkout(&spec.repository, &spec.sha).await.map_err(|it| failed(it.to_string()))?;
    // No part of the source, and different in every checkout: it would spoil the cache.
    let _ = std::fs::remove_dir_all(tree.path().join(".git"));
    let view = View::of_directory(tree.path());
    let context = match view.resolve(Path::new(&spec.context), LastLink::Follow) {
        Ok(Some((_, entry))) if entry.meta.is_dir() => entry.real,
        _ => {
            return Err(failed(format!(
                "the build context `{}` is not a directory of the repository",
                spec.context
            )));
        }
    };
    let mut pod_labels = BTreeMap::from([(labels::CHANGE.to_owned(), spec.change.clone())]);
    for label in [labels::APP, labels::SERVICE, labels::RUN] {
        let value = naru_objects::label_of(object, label);
        if !value.is_empty() {
            pod_labels.insert(label.to_owned(), value.to_owned());
        }
    }
    let request = BuildRequest {
        context,
        dockerfile: PathBuf::from(if spec.dockerfile.is_empty() { "Dockerfile" } else { &spec.dockerfile }),
        name: image_name(&spec.repository, &spec.service),
        tags: vec![spec.sha.chars().take(12).collect(), "latest".into()],
        target: spec.target.clone(),
        args: spec.args.clone(),
        labels: BTreeMap::new(),
        pod_labels,
        source_date_epoch: None,
    };
    let built = builder.build(request, move |event| log.line(&event.to_string())).await;
    drop(tree);
    built.map_err(|it| if it.is_stopped() { Outcome::Stopped } else { Outcome::Failed(it.report()) })
}

/// A repository path that every registry client accepts.
fn image_name(repository: &str, service: &str) -> String {
    format!("{}/{}", naru_objects::dns_label(repository, 63), naru_objects::dns_label(service, 63))
}

/// The lines of one build, as a file. That it cannot be written is no reason to fail a build.
#[derive(Clone)]
struct BuildLog(Arc<std::sync::Mutex<LogFile>>);

struct LogFile {
    file: Option<BufWriter<File>>,
    bytes: usize,
}

impl BuildLog {
    fn open(dir: &Path, name: &str) -> Self {
        remove_oldest(dir);
        let path = log_path(dir, name);
        let file = match File::create(&path) {
            Ok(it) => Some(BufWriter::new(it)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a build log is not kept");
                None
            }
        };
        Self(Arc::new(std::sync::Mutex::new(LogFile { file, bytes: 0 })))
    }

    fn line(&mut self, text: &str) {
        let mut log = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_first_too_many = log.bytes <= LOG_BYTES_MAX;
        log.bytes += text.len() + 1;
        let text = match log.bytes > LOG_BYTES_MAX {
            true if is_first_too_many => "(the log is longer than 16 MiB; the rest is dropped)",
            true => return,
            false => text,
        };
        if let Some(file) = &mut log.file {
            // Flushed per line: somebody may be reading along.
            let _ = writeln!(file, "{text}").and_then(|()| file.flush());
        }
    }

    fn finish(&mut self) {
        let mut log = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(file) = log.file.take().and_then(|it| it.into_inner().ok()) {
            let _ = file.sync_all();
        }
    }
}

fn remove_oldest(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut logs: Vec<_> =
        entries.flatten().filter_map(|it| Some((it.metadata().ok()?.modified().ok()?, it.path()))).collect();
    logs.sort();
    let too_many = logs.len().saturating_sub(LOGS_KEPT);
    for (_, path) in logs.drain(..too_many) {
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_wherever_it_is_named() {
        let digest = Digest::of("x");
        let mut found = BTreeSet::new();
        let pod = json!({"spec": {"containers": [{"image": format!("naru.local/shop/web@{digest}")}]}, "status": {"n": 1}});
        collect_digests(&pod, &mut found);
        assert!(found.contains(&digest) && found.len() == 1);
    }

    #[test]
    fn an_image_is_built_until_it_has_an_outcome() {
        let image = |phase: &str| json!({"metadata": {}, "status": {"phase": phase}});
        for (phase, want) in
            [("", true), ("Pending", true), ("Building", true), ("Ready", false), ("Failed", false)]
        {
            assert_eq!(is_wanted(&image(phase)), want, "{phase}");
        }
        assert!(!is_wanted(&json!({"metadata": {"deletionTimestamp": "x"}})));
        assert_eq!(image_name("Shop", "web_1"), "shop/web-1");
    }
}
