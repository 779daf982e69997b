//! The builder: from a request to a named image. Reads the Dockerfile, builds the stages that the target
//! needs (see `stage`), and writes the image down.
//!
//! A build in which nothing changed touches no container and writes nothing.

use crate::cache::{FileDigests, Step, StepCache};
use crate::dialect::is_known_frontend;
use crate::fetch::Fetcher;
use crate::form::{Action, Dockerfile, Instruction};
use crate::ignore::Ignore;
use crate::outcome::{BuildError, BuiltImage, Event};
use crate::provenance::{Facts, Signer, Verdict};
use crate::run::{PodRunner, Runner};
use crate::shared_cache::{self, Imported};
use crate::stage::{BUILDER_ARGS, Build, PROXY_ARGS, Progress, State, rfc3339};
use crate::step::CacheMounts;
use naru_image::{Digest, ImageStore, Platform, Reference, View};
use naru_text::{Finding, Place};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where a builder works and what its steps may use.
#[derive(Debug, Clone)]
pub struct Config {
    /// The namespace of the pods that run steps.
    pub namespace: String,
    /// Caches live here.
    pub dir: PathBuf,
    pub step_memory_bytes: u64,
    pub step_cpu_millis: u64,
    pub step_timeout: Duration,
    /// In memory: what secrets are mounted from.
    pub secrets_dir: PathBuf,
    /// `ADD` may fetch from this machine's own addresses. For tests.
    pub may_reach_this_machine: bool,
    /// What statements about images are signed with; made at the first start. None: nothing is said.
    pub signing_key: Option<PathBuf>,
    /// Stages side by side in one build.
    pub stages_parallel: usize,
}

impl Config {
    /// Limits that fit the smallest machine that can build anything.
    pub fn new(dir: PathBuf, namespace: &str) -> Self {
        Self {
            namespace: namespace.into(),
            secrets_dir: dir.join("secrets"),
            may_reach_this_machine: false,
            signing_key: None,
            stages_parallel: 4,
            dir,
            step_memory_bytes: 4 << 30,
            step_cpu_millis: 4_000,
            step_timeout: Duration::from_secs(3600),
        }
    }
}

/// One image to build.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// Directory whose files `COPY` sees.
    pub context: PathBuf,
    /// Relative to the context.
    pub dockerfile: PathBuf,
    /// The Dockerfile, if it is no file of the context. Such a context has been cleaned by its ignore file.
    pub text: Option<String>,
    /// What the image is called below `naru.local/`, and what separates cache mounts. Without `names` the
    /// image gets this name with `tags`.
    pub name: String,
    pub tags: Vec<String>,
    /// What else the image is called.
    pub names: Vec<Reference>,
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
    /// Added to the image's labels.
    pub labels: BTreeMap<String, String>,
    /// Added to the labels of the pods that run steps.
    pub pod_labels: BTreeMap<String, String>,
    /// Makes the image reproducible to the bit: no time in it is later.
    pub source_date_epoch: Option<i64>,
    /// Every step is done again.
    pub no_cache: bool,
    /// Base images are asked for at their registries even if they are here.
    pub pull: bool,
    /// What `FROM` and `COPY --from` mean by these names, before stages and images.
    pub contexts: BTreeMap<String, NamedContext>,
    /// None means this machine's.
    pub platforms: Vec<String>,
    /// Caches in registries to look steps up in.
    pub cache_from: Vec<String>,
    /// Where this build's steps are sent.
    pub cache_to: Vec<CacheTarget>,
    /// Where the files come from, for the statement about the image: `repository` and `commit`, or `context`.
    pub source: BTreeMap<String, String>,
    /// By id, for `RUN --mount=type=secret`.
    pub secrets: BTreeMap<String, Vec<u8>>,
    /// Sockets of SSH agents, by id, for `RUN --mount=type=ssh`.
    pub agents: BTreeMap<String, PathBuf>,
    /// Ends this build alone; see [`Builder::stopper`].
    pub stop: Option<CancellationToken>,
}

/// A cache in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheTarget {
    pub name: String,
    /// Steps of all stages, not only of the one that became the image.
    pub all_stages: bool,
}

/// A further source of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    Directory(PathBuf),
    Image(String),
}

/// Builds images; cheap to clone. Builds may run side by side.
#[derive(Clone)]
pub struct Builder {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: ImageStore,
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) config: Config,
    pub(crate) steps: StepCache,
    pub(crate) digests: FileDigests,
    pub(crate) fetcher: Fetcher,
    pub(crate) cache_mounts: CacheMounts,
    pub(crate) signer: Option<Signer>,
    /// Makes ids of steps unique within this process.
    pub(crate) counter: AtomicU64,
    pub(crate) stop: CancellationToken,
}

impl Builder {
    /// A builder whose `RUN` steps are pods.
    pub fn new(store: ImageStore, client: naru_client::Client, config: Config) -> Result<Self, BuildError> {
        let runner = PodRunner::new(client, &config);
        Self::with_runner(store, Arc::new(runner), config)
    }

    /// A builder with another way to run steps.
    pub fn with_runner(
        store: ImageStore,
        runner: Arc<dyn Runner>,
        config: Config,
    ) -> Result<Self, BuildError> {
        let steps = StepCache::open(config.dir.join("steps")).map_err(BuildError::Cache)?;
        let digests = FileDigests::open(config.dir.join("files"));
        let fetcher = Fetcher::open(config.dir.join("downloads"), config.may_reach_this_machine);
        let fetcher = fetcher.map_err(BuildError::Cache)?;
        // What a killed process left there helps nobody.
        let _ = std::fs::remove_dir_all(&config.secrets_dir);
        std::fs::create_dir_all(&config.secrets_dir).map_err(BuildError::Cache)?;
        std::fs::set_permissions(&config.secrets_dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(BuildError::Cache)?;
        let signer =
            config.signing_key.as_deref().map(Signer::open).transpose().map_err(BuildError::Cache)?;
        let inner = Inner {
            store,
            runner,
            config,
            steps,
            digests,
            fetcher,
            cache_mounts: CacheMounts::default(),
            signer,
            counter: AtomicU64::new(0),
            stop: CancellationToken::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What `RUN --mount=type=cache` keeps, a directory each.
    pub(crate) fn mounts_dir(&self) -> PathBuf {
        self.inner.config.dir.join("mounts")
    }

    pub(crate) fn secrets_dir(&self) -> PathBuf {
        self.inner.config.secrets_dir.clone()
    }

    /// Whether an image was built here, and from what.
    pub fn verify(&self, image: &Digest) -> Option<Verdict> {
        Some(self.inner.signer.as_ref()?.verify(&self.inner.store, image))
    }

    /// Of the key that statements about images are signed with.
    pub fn public_key(&self) -> Option<Vec<u8>> {
        self.inner.signer.as_ref().map(crate::provenance::Signer::public_key)
    }

    pub fn store(&self) -> &ImageStore {
        &self.inner.store
    }

    /// Ends a build that has it in its request; [`Builder::stop`] ends that one too.
    pub fn stopper(&self) -> CancellationToken {
        self.inner.stop.child_token()
    }

    /// Ends all builds of this builder, soon; they fail with [`BuildError::is_stopped`].
    pub fn stop(&self) {
        self.inner.stop.cancel();
    }

    /// Builds one image. `progress` hears of everything as it happens.
    pub async fn build(
        &self,
        request: BuildRequest,
        mut progress: impl FnMut(Event) + Send + 'static,
    ) -> Result<BuiltImage, BuildError> {
        let builder = self.clone();
        // Reading, hashing and packing block; waiting for pods does too, on this same thread.
        let task = tokio::task::spawn_blocking(move || builder.build_blocking(&request, &mut progress));
        task.await.map_err(|it| if it.is_panic() { BuildError::Bug } else { BuildError::Stopped })?
    }

    fn build_blocking(
        &self,
        request: &BuildRequest,
        progress: &mut (dyn FnMut(Event) + Send),
    ) -> Result<BuiltImage, BuildError> {
        let file = request.dockerfile.display().to_string();
        let view = View::of_directory(&request.context);
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let text = match &request.text {
            Some(text) => text.clone(),
            None => {
                let read = view.read(&request.dockerfile, 2 << 20).and_then(|it| it.ok_or_else(missing));
                let bytes = read.map_err(|source| BuildError::Context {
                    what: "the Dockerfile",
                    path: request.dockerfile.clone(),
                    source,
                })?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        let started = rfc3339(jiff::Timestamp::now().as_second());
        let dockerfile_digest = Digest::of(&text);
        let dockerfile = crate::dialect::parse(&text);
        if dockerfile.has_errors() {
            let findings = dockerfile.findings.into_iter().filter(Finding::is_error).collect();
            return Err(BuildError::Refused { file, findings });
        }
        for finding in &dockerfile.findings {
            progress(Event::Finding { text: finding.render(&file) });
        }
        let ignore = match request.text {
            Some(_) => Ignore::default(),
            None => self.read_ignore(request, &view)?,
        };
        let target = match &request.target {
            None => dockerfile.stages.len() - 1,
            Some(name) => dockerfile
                .stage_index(name, dockerfile.stages.len())
                .ok_or_else(|| BuildError::NoTarget { file: file.clone(), name: name.clone() })?,
        };
        let epoch = request
            .args
            .get("SOURCE_DATE_EPOCH")
            .and_then(|it| it.parse().ok())
            .or(request.source_date_epoch);
        if let Some(frontend) = request.args.get("BUILDKIT_SYNTAX").filter(|it| !is_known_frontend(it)) {
            let why = format!("the build argument BUILDKIT_SYNTAX names another frontend (`{frontend}`)");
            let finding = Finding::error(Place::new(1, 1), why).hint("leave it out");
            return Err(BuildError::Refused { file, findings: vec![finding] });
        }
        let platforms = platforms(request)?;
        let stop = request.stop.clone().unwrap_or_else(|| self.stopper());
        let runtime = tokio::runtime::Handle::current();
        let imported = match request.cache_from.is_empty() {
            true => Imported::default(),
            false => {
                let tell = Mutex::new(&mut *progress);
                let say = |text| (tell.lock().unwrap_or_else(PoisonError::into_inner))(Event::Note { text });
                runtime.block_on(Imported::read(&self.inner.store, &request.cache_from, &say))
            }
        };
        let progress = Mutex::new(Progress { tell: progress, step: 0, cached: 0, asked: BTreeSet::new() });
        // All of them can be built, or none is begun.
        let mut builds = Vec::new();
        for platform in &platforms {
            let mut build = Build {
                builder: self,
                request,
                dockerfile: &dockerfile,
                file: file.clone(),
                context: view.clone(),
                ignore: &ignore,
                epoch,
                total: 0,
                progress: &progress,
                stages: Mutex::default(),
                globals: BTreeMap::new(),
                stop: stop.child_token(),
                bases: Mutex::default(),
                imported: &imported,
                steps: Mutex::default(),
                target,
                platform: platform.clone(),
                platforms: BTreeMap::new(),
                is_one_of_many: platforms.len() > 1,
            };
            build.read_globals()?;
            let needed = build.needed_stages(target);
            build.platforms = build.plan_platforms(needed.keys())?;
            builds.push((build, needed));
        }
        let is_step = |it: &&Instruction| it.action.is_step();
        let steps = builds
            .iter()
            .flat_map(|it| it.1.keys())
            .map(|it| dockerfile.stages[*it].instructions.iter().filter(is_step).count());
        let total = steps.sum::<usize>() as u32;
        let mut parts = Vec::new();
        for (build, needed) in &mut builds {
            build.total = total;
            let outcome = schedule(build, std::mem::take(needed), self.inner.config.stages_parallel.max(1));
            if stop.is_cancelled() {
                return Err(BuildError::Stopped);
            }
            outcome?;
            parts.push(build.finish()?);
        }
        let builds: Vec<Build<'_>> = builds.into_iter().map(|it| it.0).collect();
        for name in builds[0].unused_args() {
            let why = format!("warning: the build argument `{name}` is not used by any `ARG`");
            builds[0].tell(Event::Finding { text: why });
        }
        let made: Vec<Digest> = parts.iter().map(|it| it.digest.clone()).collect();
        let image = self.name_image(request, parts, &progress)?;
        if let Some(signer) = self.inner.signer.as_ref() {
            let facts = |builds: &[Build<'_>]| Facts {
                names: image.names.clone(),
                source: request.source.clone(),
                dockerfile: request.dockerfile.display().to_string(),
                dockerfile_digest: Some(dockerfile_digest.clone()),
                target: request.target.clone(),
                args: request.args.clone(),
                bases: builds
                    .iter()
                    .flat_map(|it| it.bases.lock().unwrap_or_else(PoisonError::into_inner).clone())
                    .collect(),
                platforms: builds.iter().map(|it| it.platform.to_string()).collect(),
                started: started.clone(),
                finished: rfc3339(jiff::Timestamp::now().as_second()),
            };
            let attest = |digest: &Digest, builds: &[Build<'_>]| {
                signer.attest(&self.inner.store, digest, &facts(builds)).map_err(BuildError::Store)
            };
            for (digest, build) in made.iter().zip(&builds) {
                attest(digest, std::slice::from_ref(build))?;
            }
            if made.len() > 1 {
                attest(&image.digest, &builds)?;
            }
        }
        if let Err(error) = self.inner.digests.save() {
            tracing::warn!(%error, "the file digests of this build are not remembered");
        }
        for to in &request.cache_to {
            builds[0].tell(Event::Note { text: format!("sending the cache to {}", to.name) });
            let mut steps = BTreeMap::new();
            for build in &builds {
                let own = build.steps.lock().unwrap_or_else(PoisonError::into_inner);
                let is_wanted = |it: &&(usize, Digest, Step)| to.all_stages || it.0 == target;
                steps.extend(own.iter().filter(is_wanted).map(|it| (it.1.clone(), it.2.clone())));
            }
            let manifest = shared_cache::artifact(&self.inner.store, &steps)?;
            let name = Reference::parse(&to.name).map_err(|it| BuildError::Store(it.into()))?;
            runtime
                .block_on(self.inner.store.push(&manifest, &name, &[], &|_| {}))
                .map_err(|source| BuildError::CacheTo { name: to.name.clone(), source })?;
        }
        builds[0].tell(Event::Done(image.clone()));
        Ok(image)
    }

    /// `<Dockerfile>.dockerignore` before `.dockerignore`.
    fn read_ignore(&self, request: &BuildRequest, view: &View) -> Result<Ignore, BuildError> {
        let mut own = request.dockerfile.clone().into_os_string();
        own.push(".dockerignore");
        for path in [PathBuf::from(own), PathBuf::from(".dockerignore")] {
            let bytes = view.read(&path, 1 << 20).map_err(|source| BuildError::Context {
                what: "the ignore file",
                path: path.clone(),
                source,
            })?;
            let Some(bytes) = bytes else { continue };
            return Ignore::parse(&String::from_utf8_lossy(&bytes)).map_err(|(line, why)| {
                let finding =
                    Finding::error(Place::new(line, 1), format!("this pattern cannot be understood: {why}"));
                BuildError::Refused { file: path.display().to_string(), findings: vec![finding] }
            });
        }
        Ok(Ignore::default())
    }

    /// Forgets steps that no build used for so long. What is left names the layers to keep.
    pub fn gc(&self, age_max: Duration) -> Result<Vec<Digest>, BuildError> {
        self.inner.steps.gc(age_max).map_err(BuildError::Cache)
    }
}

/// What to build for, each once; this machine's if nothing is said.
fn platforms(request: &BuildRequest) -> Result<Vec<Platform>, BuildError> {
    let mut platforms: Vec<Platform> = Vec::new();
    for text in &request.platforms {
        let platform = Platform::parse(text)?;
        if platform.os != "linux" {
            return Err(BuildError::NotLinux(platform));
        }
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    if platforms.is_empty() {
        platforms.push(Platform::here());
    }
    Ok(platforms)
}

impl Build<'_> {
    /// Arguments that were given and meant nothing.
    fn unused_args(&self) -> Vec<String> {
        let progress = self.progress();
        let is_known =
            |it: &str| progress.asked.contains(it) || PROXY_ARGS.contains(&it) || BUILDER_ARGS.contains(&it);
        self.request.args.keys().filter(|it| !is_known(it)).cloned().collect()
    }

    /// The target and what it is made from, each with what it needs itself.
    fn needed_stages(&self, target: usize) -> BTreeMap<usize, BTreeSet<usize>> {
        let dockerfile = self.dockerfile;
        let mut needed: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let mut open = vec![target];
        while let Some(index) = open.pop() {
            if needed.contains_key(&index) {
                continue;
            }
            let stage = &dockerfile.stages[index];
            let mut from: Vec<&str> = Vec::new();
            for it in &stage.instructions {
                match &it.action {
                    Action::Copy(copy) => from.extend(copy.from.as_deref()),
                    Action::Run(run) => from.extend(run.mounts.iter().filter_map(|it| it.from.as_deref())),
                    _ => {}
                }
            }
            let mut below: BTreeSet<usize> = from
                .into_iter()
                .filter(|it| !self.request.contexts.contains_key(*it))
                .filter_map(|it| dockerfile.stage_index(it, index))
                .collect();
            // What cannot be filled in is said when the stage is built.
            if let Ok(base) = self.base_name(stage) {
                below.extend(named_stage(dockerfile, &base, index));
            }
            open.extend(below.iter().copied());
            needed.insert(index, below);
        }
        needed
    }
}

/// Builds the stages, each once those that it needs are done, `parallel` at a time. After a failure nothing
/// new begins and what is under way is stopped.
fn schedule(
    build: &Build<'_>,
    mut needed: BTreeMap<usize, BTreeSet<usize>>,
    parallel: usize,
) -> Result<(), BuildError> {
    let runtime = tokio::runtime::Handle::current();
    let (done_in, done) = std::sync::mpsc::channel();
    let mut failure: Option<BuildError> = None;
    let keep = |index: usize, state: State| {
        build.stages.lock().unwrap_or_else(PoisonError::into_inner).insert(index, state);
    };
    std::thread::scope(|scope| {
        let mut running = 0;
        while running > 0 || (!needed.is_empty() && failure.is_none()) {
            let ready: Vec<usize> = match failure {
                Some(_) => Vec::new(),
                None => needed.iter().filter(|it| it.1.is_empty()).map(|it| *it.0).collect(),
            };
            // One alone needs no thread of its own.
            if running == 0 && ready.len() == 1 {
                needed.remove(&ready[0]);
                match build.stage(ready[0]) {
                    Ok(state) => keep(ready[0], state),
                    Err(error) => failure = Some(error),
                }
                forget(&mut needed, ready[0]);
                continue;
            }
            for index in ready.into_iter().take(parallel - running) {
                needed.remove(&index);
                running += 1;
                let (done, runtime) = (done_in.clone(), runtime.clone());
                scope.spawn(move || {
                    let _inside = runtime.enter();
                    // A panic must be heard, or the build would wait for ever.
                    let work = std::panic::AssertUnwindSafe(|| build.stage(index));
                    let outcome = std::panic::catch_unwind(work).unwrap_or(Err(BuildError::Bug));
                    let _ = done.send((index, outcome));
                });
            }
            let (index, outcome) = done.recv().expect("this function holds a sender itself");
            running -= 1;
            match outcome {
                Ok(state) => keep(index, state),
                Err(error) => {
                    build.stop.cancel();
                    // The first one is why the others stopped.
                    failure.get_or_insert(error);
                }
            }
            forget(&mut needed, index);
        }
    });
    failure.map_or(Ok(()), Err)
}

/// Nobody waits for it any more.
fn forget(needed: &mut BTreeMap<usize, BTreeSet<usize>>, done: usize) {
    for below in needed.values_mut() {
        below.remove(&done);
    }
}

/// `FROM` names stages, not numbers.
pub(crate) fn named_stage(dockerfile: &Dockerfile, name: &str, before: usize) -> Option<usize> {
    name.parse::<usize>().is_err().then(|| dockerfile.stage_index(name, before)).flatten()
}
