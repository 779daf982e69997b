//! Makes `Image` objects true: fetches the source at their commit, builds, writes what came of it into
//! their status. What it does next it reads from the objects, so a restart loses nothing: an image that
//! was being built is started over, and the cache makes that cheap.

use crate::agent::{Agent, SSH_PREFIX};
use crate::context::{Contexts, Unpacked};
use crate::engine::{BuildRequest, Builder, CacheTarget, NamedContext};
use crate::log::{BuildLog, BuildLogs};
use crate::outcome::{BuiltImage, Event, chain};
use crate::run::remove_leftovers;
use base64::Engine as _;
use naru_client::{Client, EventKind};
use naru_image::{Collected, Digest, Keep, LastLink, Reference, View};
use naru_objects::{Image, ImagePhase, ImageSpec, kinds, labels};
use naru_source::Source;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const CLEAN_FIRST: Duration = Duration::from_secs(600); // not while everything starts
const CLEAN_EVERY: Duration = Duration::from_secs(6 * 3600);
/// While there is room. A rollback or a second try soon after finds unused content; steps of builds stay useful
/// for as long as somebody works on them.
const WITH_ROOM: Ages = Ages {
    steps: Duration::from_secs(14 * 24 * 3600),
    unused: Duration::from_secs(24 * 3600),
    pulled: None,
    mounts: None,
};
/// Objects of builds that `naru build` asked for, as a history for people.
const UPLOADS_KEPT: usize = 100;
/// A client creates the secrets right after the object.
const SECRETS_MAX: Duration = Duration::from_secs(30);
const MESSAGE_CHARS_MAX: usize = 4_000; // an object is no log

#[derive(Clone)]
pub struct ControllerConfig {
    /// Where `Image` objects and the pods of their steps live.
    pub namespace: String,
    pub source: Source,
    pub logs: BuildLogs,
    /// Where uploaded contexts are unpacked.
    pub contexts_dir: PathBuf,
    /// Builds side by side.
    pub parallel: usize,
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
    let contexts = match Contexts::open(config.contexts_dir.clone()) {
        Ok(it) => it,
        Err(error) => {
            return tracing::error!(path = %config.contexts_dir.display(), %error, "nothing can be built");
        }
    };
    let mut cache = client.cache(&kinds::IMAGE, Some(&config.namespace), "");
    tokio::select! {
        () = cache.synced() => {}
        () = shutdown.cancelled() => return,
    }
    if let Err(error) = remove_leftovers(&client, &config.namespace).await {
        tracing::warn!(%error, "pods of interrupted builds are left behind");
    }
    let work = Arc::new(Work { builder: builder.clone(), client: client.clone(), config, contexts });
    let config = &work.config;
    // By uid; what is in here is not started again, and ends when its object is deleted.
    let mut under_way: BTreeMap<String, CancellationToken> = BTreeMap::new();
    let mut builds: JoinSet<String> = JoinSet::new();
    let mut clean_at = Instant::now() + CLEAN_FIRST;
    loop {
        let objects = cache.list();
        let uid_of = |it: &Value| it["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        for (uid, stop) in &under_way {
            if !objects.iter().any(|it| uid_of(it) == *uid && it["metadata"]["deletionTimestamp"].is_null()) {
                stop.cancel();
            }
        }
        for object in objects {
            let uid = uid_of(&object);
            if builds.len() >= config.parallel.max(1) {
                break;
            }
            if !is_wanted(&object) || under_way.contains_key(&uid) {
                continue;
            }
            let stop = builder.stopper();
            under_way.insert(uid.clone(), stop.clone());
            let work = Arc::clone(&work);
            builds.spawn(async move {
                work.build(&object, stop).await;
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
                if let Err(error) = clean(&builder, &client, &config.namespace, &WITH_ROOM).await {
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

/// How long what nobody uses stays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ages {
    /// Outcomes of build steps.
    pub(crate) steps: Duration,
    /// Content that nothing names.
    pub(crate) unused: Duration,
    /// Images that a registry has; none: they stay.
    pub(crate) pulled: Option<Duration>,
    /// Cache mounts; none: they stay.
    pub(crate) mounts: Option<Duration>,
}

/// Removes images and layers that no pod, no release and no recent build refers to.
pub(crate) async fn clean(
    builder: &Builder,
    client: &Client,
    namespace: &str,
    ages: &Ages,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut used: BTreeSet<Digest> = BTreeSet::new();
    for kind in [&kinds::POD, &kinds::RELEASE] {
        for object in client.list(kind, None, "").await? {
            collect_digests(&object, &mut used);
        }
    }
    let now = jiff::Timestamp::now();
    let images = client.list(&kinds::IMAGE, Some(namespace), "").await?;
    for name in superfluous(&images) {
        client.delete(&kinds::IMAGE, namespace, &name, None).await?;
    }
    for image in images {
        let finished =
            image["status"]["finishedAt"].as_str().and_then(|it| it.parse::<jiff::Timestamp>().ok());
        // Its release may not be written yet.
        if finished.is_none_or(|it| now.duration_since(it) < jiff::SignedDuration::from_hours(24)) {
            collect_digests(&image["status"], &mut used);
        }
    }
    let (builder, ages) = (builder.clone(), *ages);
    let work = move || -> Result<Collected, Box<dyn std::error::Error + Send + Sync>> {
        let store = builder.store();
        for (name, manifest) in store.tags()? {
            let name = Reference::parse(&name)?;
            let is_commit = |tag: &String| tag.len() == 12 && tag.bytes().all(|it| it.is_ascii_hexdigit());
            let is_own = name.is_local_only() && name.tag.as_ref().is_some_and(is_commit);
            let idle = store.last_used(&manifest.digest).and_then(|it| it.elapsed().ok()).unwrap_or_default();
            let is_spare = manifest.is_pulled() && ages.pulled.is_some_and(|it| idle > it);
            if (is_own || is_spare) && !used.contains(&manifest.digest) {
                store.untag(&name)?;
            }
        }
        if let Some(age) = ages.mounts {
            crate::keeper::remove_old_mounts(&builder.mounts_dir(), age);
        }
        crate::provenance::forget_the_gone(store)?;
        let layers = builder.gc(ages.steps)?;
        Ok(store.gc(&Keep { manifests: used.into_iter().collect(), layers }, ages.unused)?)
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

/// Objects of uploads that came to an end, but for the newest. The others go with what caused them.
fn superfluous(images: &[Value]) -> Vec<String> {
    let is_done = |it: &&Value| it["spec"]["upload"].is_object() && it["status"]["finishedAt"].is_string();
    let mut done: Vec<&Value> = images.iter().filter(is_done).collect();
    done.sort_by_key(|it| std::cmp::Reverse(it["status"]["finishedAt"].as_str().map(str::to_owned)));
    done.into_iter().skip(UPLOADS_KEPT).map(|it| naru_objects::name_of(it).to_owned()).collect()
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

/// What every build needs.
struct Work {
    builder: Builder,
    client: Client,
    config: ControllerConfig,
    contexts: Contexts,
}

enum Outcome {
    Failed(String),
    /// The daemon goes, and the next one starts over; or nobody wants the image any more.
    Stopped,
}

fn failed(error: impl std::error::Error) -> Outcome {
    Outcome::Failed(format!("error: {}", chain(&error)))
}

/// Files to build from, while a build uses them.
struct Sources {
    context: PathBuf,
    contexts: BTreeMap<String, NamedContext>,
    /// Held for their ends: they remove the files, or let them be removed.
    _checkout: Option<tempfile::TempDir>,
    _unpacked: Vec<Unpacked>,
}

impl Work {
    async fn build(&self, object: &Value, stop: CancellationToken) {
        let name = naru_objects::name_of(object).to_owned();
        let now = || naru_objects::timestamp(jiff::Timestamp::now());
        let write = async |status: Value| {
            let written = self.client.patch_status(&kinds::IMAGE, &self.config.namespace, &name, &status);
            match written.await {
                Err(error) if !error.is_not_found() => {
                    tracing::warn!(image = name, %error, "the status of an image is not written");
                }
                _ => {}
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
        write(json!({"phase": ImagePhase::Building, "startedAt": now(), "message": null})).await;
        let log = self.config.logs.begin(&name);
        let spec = &image.spec;
        let text = match &spec.upload {
            Some(upload) => format!("building {} of an upload ({})", spec.service, short(&upload.digest)),
            None => format!("building {} of {} at {}", spec.service, spec.repository, spec.sha),
        };
        log.event(&Event::Note { text });
        let outcome = self.build_spec(object, spec, log.clone(), stop).await;
        if let Some(secret) = spec.upload.as_ref().and_then(|it| it.secrets.as_ref())
            && !matches!(outcome, Err(Outcome::Stopped))
        {
            self.remove_secret(secret).await;
        }
        let (status, last) = match outcome {
            Err(Outcome::Stopped) => return,
            Ok(built) => {
                let message = format!("built {}", built.reference);
                self.client.event(object, EventKind::Normal, "Built", &message).await;
                let status = json!({
                    "phase": ImagePhase::Ready, "reference": built.reference, "digest": built.digest,
                    "sizeBytes": built.size, "layers": built.layers, "cachedSteps": built.cached_steps,
                    "totalSteps": built.total_steps, "advice": built.advice, "finishedAt": now(),
                    "message": null,
                });
                (status, Event::Done(built))
            }
            Err(Outcome::Failed(report)) => {
                let message: String = report.chars().take(MESSAGE_CHARS_MAX).collect();
                let first = message.lines().next().unwrap_or_default().to_owned();
                self.client.event(object, EventKind::Warning, "BuildFailed", &first).await;
                let status = json!({"phase": ImagePhase::Failed, "message": message, "finishedAt": now()});
                (status, Event::Failed { report })
            }
        };
        write(status).await;
        // After the status: whoever follows to the end may ask for the object at once.
        log.event(&last);
    }

    async fn build_spec(
        &self,
        object: &Value,
        spec: &ImageSpec,
        log: BuildLog,
        stop: CancellationToken,
    ) -> Result<BuiltImage, Outcome> {
        let sources = self.sources(spec).await?;
        let mut pod_labels = BTreeMap::new();
        for label in [labels::CHANGE, labels::APP, labels::SERVICE, labels::RUN] {
            let value = naru_objects::label_of(object, label);
            if !value.is_empty() {
                pod_labels.insert(label.to_owned(), value.to_owned());
            }
        }
        let mut secrets = self.secrets(spec).await?;
        let mut agents = BTreeMap::new();
        for (name, keys) in secrets.extract_if(.., |name, _| name.starts_with(SSH_PREFIX)) {
            let agent = Agent::start(&self.builder.secrets_dir(), &keys).await.map_err(failed)?;
            agents.insert(name[SSH_PREFIX.len()..].to_owned(), agent);
        }
        let names = spec.tags.iter().map(|it| Reference::parse(it)).collect::<Result<Vec<_>, _>>();
        let request = BuildRequest {
            context: sources.context.clone(),
            dockerfile: PathBuf::from(match spec.dockerfile.as_str() {
                "" => "Dockerfile",
                it => it,
            }),
            text: spec.upload.as_ref().and_then(|it| it.dockerfile.clone()),
            name: match &spec.upload {
                Some(_) => format!("build/{}", naru_objects::dns_label(&spec.service, 63)),
                None => image_name(&spec.repository, &spec.service),
            },
            tags: match &spec.upload {
                Some(_) => Vec::new(),
                None => vec![spec.sha.chars().take(12).collect(), "latest".into()],
            },
            names: names.map_err(failed)?,
            target: spec.target.clone(),
            args: spec.args.clone(),
            labels: spec.labels.clone(),
            pod_labels,
            source_date_epoch: None,
            no_cache: spec.no_cache,
            pull: spec.pull,
            contexts: sources.contexts.clone(),
            platforms: spec.platforms.clone(),
            cache_from: spec.cache_from.clone(),
            cache_to: spec.cache_to.iter().map(|it| cache_target(it)).collect(),
            source: match &spec.upload {
                Some(it) => BTreeMap::from([("context".into(), it.digest.clone())]),
                None => BTreeMap::from([
                    ("repository".into(), spec.repository.clone()),
                    ("commit".into(), spec.sha.clone()),
                ]),
            },
            agents: agents.iter().map(|(id, it)| (id.clone(), it.socket().to_owned())).collect(),
            secrets,
            stop: Some(stop.clone()),
        };
        let events = log.clone();
        // The last one is told after the status is written.
        let built = self.builder.build(request, move |event| {
            if !event.is_last() {
                events.event(&event);
            }
        });
        let built = built.await;
        drop((sources, agents));
        match built {
            Ok(built) => {
                if spec.push {
                    self.push(&built, spec, &log).await?;
                }
                Ok(built)
            }
            Err(it) if stop.is_cancelled() || it.is_stopped() => Err(Outcome::Stopped),
            Err(it) => Err(Outcome::Failed(it.report())),
        }
    }

    async fn sources(&self, spec: &ImageSpec) -> Result<Sources, Outcome> {
        let mut contexts = BTreeMap::new();
        let (root, checkout, unpacked) = match &spec.upload {
            Some(upload) => {
                let mut unpacked = vec![self.unpacked(&upload.digest).await?];
                for (name, text) in &upload.contexts {
                    let context = match text.strip_prefix("docker-image://") {
                        Some(image) => NamedContext::Image(image.to_owned()),
                        None => {
                            unpacked.push(self.unpacked(text).await?);
                            NamedContext::Directory(unpacked.last().expect("just pushed").path.clone())
                        }
                    };
                    contexts.insert(name.clone(), context);
                }
                (unpacked[0].path.clone(), None, unpacked)
            }
            None if spec.sha.is_empty() => {
                let why = "error: the spec names neither `repository` and `sha` nor `upload`";
                return Err(Outcome::Failed(why.into()));
            }
            None => {
                let checkout =
                    self.config.source.checkout(&spec.repository, &spec.sha).await.map_err(failed)?;
                // No part of the source, and different in every checkout: it would spoil the cache.
                let _ = std::fs::remove_dir_all(checkout.path().join(".git"));
                (checkout.path().to_owned(), Some(checkout), Vec::new())
            }
        };
        let view = View::of_directory(&root);
        match view.resolve(Path::new(&spec.context), LastLink::Follow) {
            Ok(Some((_, entry))) if entry.meta.is_dir() => {
                Ok(Sources { context: entry.real, contexts, _checkout: checkout, _unpacked: unpacked })
            }
            _ => Err(Outcome::Failed(format!(
                "error: the build context `{}` is not a directory of the source",
                spec.context
            ))),
        }
    }

    async fn unpacked(&self, digest: &str) -> Result<Unpacked, Outcome> {
        let digest = Digest::parse(digest).map_err(failed)?;
        let (contexts, store) = (self.contexts.clone(), self.builder.store().clone());
        let unpack = tokio::task::spawn_blocking(move || contexts.unpacked(&store, &digest));
        unpack.await.map_err(failed)?.map_err(failed)
    }

    /// Sends the image to the registries of its names.
    async fn push(&self, built: &BuiltImage, spec: &ImageSpec, log: &BuildLog) -> Result<(), Outcome> {
        for name in &spec.tags {
            let target = Reference::parse(name).map_err(failed)?;
            log.event(&Event::Note { text: format!("pushing {name}") });
            let told = log.clone();
            let progress = move |event| {
                if let naru_image::PushEvent::Pushing { digest, size } = event {
                    let text = format!("pushing {} ({})", short(digest.as_str()), crate::keeper::size(size));
                    told.event(&Event::Note { text });
                }
            };
            self.builder.store().push(&built.digest, &target, &[], &progress).await.map_err(failed)?;
        }
        Ok(())
    }

    /// What the client gave along, which may come a moment after the object.
    async fn secrets(&self, spec: &ImageSpec) -> Result<BTreeMap<String, Vec<u8>>, Outcome> {
        let Some(name) = spec.upload.as_ref().and_then(|it| it.secrets.as_deref()) else {
            return Ok(BTreeMap::new());
        };
        let mut cache = self.client.cache_named(&kinds::SECRET, &self.config.namespace, name);
        let found = async {
            loop {
                if let Some(secret) = cache.get(&self.config.namespace, name) {
                    break secret;
                }
                cache.changed().await;
            }
        };
        let secret = tokio::time::timeout(SECRETS_MAX, found).await.map_err(|_| {
            Outcome::Failed(format!("error: the secret {name}, which the build needs, did not come"))
        })?;
        let data = secret["data"].as_object().cloned().unwrap_or_default();
        let decode = |it: &Value| {
            base64::engine::general_purpose::STANDARD
                .decode(it.as_str().unwrap_or_default())
                .unwrap_or_default()
        };
        Ok(data.iter().map(|(id, it)| (id.clone(), decode(it))).collect())
    }

    async fn remove_secret(&self, name: &str) {
        let removed = self.client.delete(&kinds::SECRET, &self.config.namespace, name, None).await;
        if let Err(error) = removed
            && !error.is_not_found()
        {
            tracing::warn!(secret = name, %error, "the secrets of a build are left behind");
        }
    }
}

/// `name`, or `name,mode=max`.
fn cache_target(text: &str) -> CacheTarget {
    match text.split_once(",mode=") {
        Some((name, mode)) => CacheTarget { name: name.to_owned(), all_stages: mode == "max" },
        None => CacheTarget { name: text.to_owned(), all_stages: false },
    }
}

fn short(digest: &str) -> &str {
    digest.strip_prefix("sha256:").and_then(|it| it.get(..12)).unwrap_or(digest)
}

/// A repository path that every registry client accepts.
fn image_name(repository: &str, service: &str) -> String {
    format!("{}/{}", naru_objects::dns_label(repository, 63), naru_objects::dns_label(service, 63))
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
    fn the_newest_builds_of_uploads_are_kept() {
        let image = |number: usize, upload: Value| {
            json!({"metadata": {"name": format!("i{number}")}, "spec": {"upload": upload},
                   "status": {"finishedAt": format!("2026-01-01T00:{:02}:{:02}Z", number / 60, number % 60)}})
        };
        let mut images: Vec<Value> =
            (0..UPLOADS_KEPT + 2).map(|it| image(it, json!({"digest": "x"}))).collect();
        images.push(image(0, Value::Null));
        images.push(json!({"metadata": {"name": "running"}, "spec": {"upload": {}}, "status": {}}));
        assert_eq!(superfluous(&images), ["i1", "i0"]);
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
