//! One stage: its instructions in order, a layer per step, each looked up in the cache first.
//!
//! A step's key is the chain of everything before it, the instruction with its variables filled in, and
//! the content of the files it copies. Times do not count. Stages are built side by side, so what they share
//! is in [`Build`] behind locks.

use crate::cache::Step;
use crate::copy::{self, Origin, Owners, Request, Source};
use crate::engine::{BuildRequest, Builder, NamedContext, named_stage};
use crate::expand::{ExpandError, expand, expand_document, expand_words};
use crate::fetch;
use crate::form::{Action, Add, Argument, Command, Copy, Dockerfile, Healthcheck, Instruction, Stage};
use crate::ignore::Ignore;
use crate::mode::Mode;
use crate::outcome::{BuildError, Event, StepError, chain};
use crate::shared_cache::Imported;
use naru_image::oci::{History, ImageConfig};
use naru_image::{
    CommitOptions, Digest, HostRoot, ImageStore, LAYERS_MAX, Layer, LocalImage, Platform, PullPolicy, View,
};
use naru_text::{Finding, Place};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Given to steps without being declared, and no part of the cache's key.
pub(crate) const PROXY_ARGS: &[&str] = &[
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];
/// Known in every `FROM`, and after an `ARG` in a stage.
pub(crate) const PLATFORM_ARGS: &[&str] = &[
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETOSVERSION",
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDARCH",
    "BUILDVARIANT",
    "BUILDOSVERSION",
    "TARGETSTAGE",
];
/// Of the builder itself; none has to be declared.
pub(crate) const BUILDER_ARGS: &[&str] =
    &["SOURCE_DATE_EPOCH", "BUILDKIT_CACHE_MOUNT_NS", "BUILDKIT_SANDBOX_HOSTNAME", "BUILDKIT_SYNTAX"];

pub(crate) fn rfc3339(seconds: i64) -> String {
    let at = jiff::Timestamp::from_second(seconds).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What a stage has become so far.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) layers: Vec<Layer>,
    pub(crate) host: Option<HostRoot>,
    pub(crate) lower_dirs: Vec<PathBuf>,
    pub(crate) config: ImageConfig,
    pub(crate) chain: Digest,
    pub(crate) created: String,
    pub(crate) args: BTreeMap<String, String>,
    /// Of the layers that this build made for the stage: the line of the Dockerfile.
    pub(crate) own_layers: Vec<(Digest, u32)>,
    pub(crate) has_own_cmd: bool,
    /// The stage that it is of.
    pub(crate) stage: usize,
}

impl State {
    fn of(image: LocalImage) -> Self {
        Self {
            created: image.config.created.clone().unwrap_or_default(),
            chain: Digest::of(format!("from {}", image.digest)),
            layers: image.layers,
            host: image.host,
            lower_dirs: image.lower_dirs,
            config: image.config,
            args: BTreeMap::new(),
            own_layers: Vec::new(),
            has_own_cmd: false,
            stage: 0,
        }
    }

    pub(crate) fn view(&self, store: &ImageStore) -> View {
        let own = self.own_layers.iter().rev().map(|(it, _)| store.layer_dir(it));
        View::new(own.chain(self.lower_dirs.iter().cloned()).collect(), self.host.as_ref())
    }

    pub(crate) fn advance(&mut self, text: &str) {
        self.chain = Digest::of(format!("{}\n{text}", self.chain));
    }

    fn lookup(&self, name: &str) -> Option<String> {
        self.config.config.env_of(name).map(str::to_owned).or_else(|| self.args.get(name).cloned())
    }
}

/// What the stages of one build share.
pub(crate) struct Build<'a> {
    pub(crate) builder: &'a Builder,
    pub(crate) request: &'a BuildRequest,
    pub(crate) dockerfile: &'a Dockerfile,
    pub(crate) file: String,
    pub(crate) context: View,
    pub(crate) ignore: &'a Ignore,
    pub(crate) epoch: Option<i64>,
    pub(crate) total: u32,
    pub(crate) progress: &'a Mutex<Progress<'a>>,
    pub(crate) stages: Mutex<BTreeMap<usize, State>>,
    pub(crate) globals: BTreeMap<String, String>,
    /// Ends all steps of this build.
    pub(crate) stop: CancellationToken,
    /// Images that were built on or copied from.
    pub(crate) bases: Mutex<BTreeMap<String, Digest>>,
    /// Steps that registries have.
    pub(crate) imported: &'a Imported,
    /// Of this build: its stage, its key, its outcome.
    pub(crate) steps: Mutex<Vec<(usize, Digest, Step)>>,
    pub(crate) target: usize,
    /// What the image is for.
    pub(crate) platform: Platform,
    /// Of each needed stage.
    pub(crate) platforms: BTreeMap<usize, Platform>,
    /// More than one platform is built: steps say theirs.
    pub(crate) is_one_of_many: bool,
}

pub(crate) struct Progress<'a> {
    pub(crate) tell: &'a mut (dyn FnMut(Event) + Send),
    pub(crate) step: u32,
    pub(crate) cached: u32,
    /// Build arguments that some `ARG` asked for.
    pub(crate) asked: BTreeSet<String>,
}

/// A step under way.
#[derive(Clone, Copy)]
pub(crate) struct Number(pub(crate) u32);

impl<'a> Build<'a> {
    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress<'a>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, event: Event) {
        (self.progress().tell)(event);
    }

    fn fail(&self, place: Place, text: &str, source: impl Into<StepError>) -> BuildError {
        BuildError::Step {
            file: self.file.clone(),
            place,
            text: text.to_owned(),
            source: Box::new(source.into()),
        }
    }

    fn platform_arg(&self, name: &str) -> Option<String> {
        let (target, build) = (&self.platform, Platform::here());
        Some(match name {
            "TARGETPLATFORM" => target.to_string(),
            "TARGETOS" => target.os.clone(),
            "TARGETARCH" => target.architecture.clone(),
            "TARGETVARIANT" => target.variant.clone().unwrap_or_default(),
            "BUILDPLATFORM" => build.to_string(),
            "BUILDOS" => build.os,
            "BUILDARCH" => build.architecture,
            "TARGETSTAGE" => {
                self.dockerfile.stages[self.target].name.clone().unwrap_or_else(|| self.target.to_string())
            }
            it if PLATFORM_ARGS.contains(&it) => String::new(),
            _ => return None,
        })
    }

    fn given_arg(&self, name: &str) -> Option<String> {
        self.progress().asked.insert(name.to_owned());
        self.request.args.get(name).cloned()
    }

    pub(crate) fn read_globals(&mut self) -> Result<(), BuildError> {
        for Argument { name, default } in &self.dockerfile.global_args {
            let lookup = |it: &str| self.globals.get(it).cloned().or_else(|| self.platform_arg(it));
            let value = match (self.given_arg(name), default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(
                    expand(default, self.dockerfile.escape, &lookup)
                        .map_err(|it| self.fail(Place::new(1, 1), &format!("ARG {name}"), it))?,
                ),
                (None, None) => self.platform_arg(name),
            };
            if let Some(value) = value {
                self.globals.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    pub(crate) fn stage(&self, index: usize) -> Result<State, BuildError> {
        let stage = &self.dockerfile.stages[index];
        let mut state = self.base(index, stage)?;
        state.stage = index;
        let name = stage.name.clone().unwrap_or_else(|| format!("stage-{index}"));
        if let Some(epoch) = self.epoch {
            state.advance(&format!("times up to {epoch}"));
        }
        // What the base image wants done first.
        for text in std::mem::take(&mut state.config.config.on_build) {
            let trigger = format!("ONBUILD {text}");
            let (action, findings) = crate::dialect::parse_trigger(&text, self.dockerfile);
            if let Some(finding) = findings.into_iter().find(Finding::is_error) {
                return Err(self.fail(stage.place, &trigger, StepError::Invalid(finding.message)));
            }
            let Some(action) = action else { continue };
            if matches!(action, Action::Run(_)) && !crate::platform::runs_here(&self.platforms[&index]) {
                let why = format!("it cannot be run here for {}", self.platforms[&index]);
                return Err(self.fail(stage.place, &trigger, StepError::Invalid(why)));
            }
            let line = trigger.lines().next().unwrap_or_default().to_owned();
            let instruction = Instruction { place: stage.place, text: line, action };
            self.instruction(&name, index, &mut state, &instruction)
                .map_err(|source| self.fail(instruction.place, &instruction.text, source))?;
        }
        for instruction in &stage.instructions {
            if self.stop.is_cancelled() {
                return Err(BuildError::Stopped);
            }
            self.instruction(&name, index, &mut state, instruction)
                .map_err(|source| self.fail(instruction.place, &instruction.text, source))?;
        }
        Ok(state)
    }

    /// What a `FROM` names, with its variables filled in.
    pub(crate) fn base_name(&self, stage: &Stage) -> Result<String, ExpandError> {
        self.value_of_from(&stage.image)
    }

    /// A part of a `FROM`, with its variables filled in.
    pub(crate) fn value_of_from(&self, text: &str) -> Result<String, ExpandError> {
        let lookup = |it: &str| self.globals.get(it).cloned().or_else(|| self.platform_arg(it));
        expand(text, self.dockerfile.escape, &lookup)
    }

    fn base(&self, index: usize, stage: &Stage) -> Result<State, BuildError> {
        let text = format!("FROM {}", stage.image);
        let invalid = |why: String| self.fail(stage.place, &text, StepError::Invalid(why));
        let name = self.base_name(stage).map_err(|it| self.fail(stage.place, &text, it))?;
        let platform = &self.platforms[&index];
        let store = &self.builder.inner.store;
        let policy = if self.request.pull { PullPolicy::Always } else { PullPolicy::IfNotPresent };
        let ensure = |name: &str| {
            if store.local(name).ok().flatten().is_none() {
                self.tell(Event::Note { text: format!("pulling {name}") });
            }
            let image = tokio::runtime::Handle::current().block_on(store.ensure_for(name, policy, platform));
            image
                .inspect(|it| self.note_base(name, &it.digest))
                .map_err(|it| self.fail(stage.place, &text, it))
        };
        let mut state = match (self.request.contexts.get(&name), named_stage(self.dockerfile, &name, index)) {
            (Some(NamedContext::Image(name)), _) => State::of(ensure(name)?),
            (Some(NamedContext::Directory(_)), _) => {
                return Err(invalid(format!("`{name}` is given as a directory; `FROM` needs an image")));
            }
            (None, Some(other)) => {
                let mut state = self.finished(other);
                state.args.clear();
                state.has_own_cmd = false;
                state
            }
            (None, None) if name == "scratch" => {
                let mut image = store.scratch_image();
                image.config.set_platform(platform);
                State::of(image)
            }
            (None, None) if name.is_empty() => return Err(invalid("the image name is empty".into())),
            (None, None) => State::of(ensure(&name)?),
        };
        if !platform.is_here() {
            // The same files in front of the same command are another step elsewhere.
            state.advance(&format!("platform {platform}"));
        }
        if state.host.is_none() && state.config.config.env_of("PATH").is_none() {
            state.config.config.set_env("PATH", DEFAULT_PATH);
        }
        if state.config.config.working_dir.is_empty() {
            state.config.config.working_dir = "/".into();
        }
        Ok(state)
    }

    /// A stage that is done; the schedule sees to that.
    pub(crate) fn finished(&self, index: usize) -> State {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.get(&index).expect("a stage begins after those that it needs").clone()
    }

    fn image(&self, name: &str, platform: &Platform) -> Result<LocalImage, StepError> {
        let ensure = self.builder.inner.store.ensure_for(name, PullPolicy::IfNotPresent, platform);
        let image = tokio::runtime::Handle::current().block_on(ensure)?;
        self.note_base(name, &image.digest);
        Ok(image)
    }

    fn note_base(&self, name: &str, digest: &Digest) {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        bases.insert(name.to_owned(), digest.clone());
    }

    /// What `--from` names: its files, whose they are, and what tells its content apart.
    pub(crate) fn origin(&self, from: Option<&str>, index: usize) -> Result<(Origin<'_>, String), StepError> {
        let store = &self.builder.inner.store;
        let of = |view, ignore, owners| Origin { view, ignore, owners, unpack: false };
        let Some(name) = from else {
            return Ok((of(self.context.clone(), Some(self.ignore), Owners::Root), String::new()));
        };
        Ok(match (self.request.contexts.get(name), self.dockerfile.stage_index(name, index)) {
            (Some(NamedContext::Directory(path)), _) => {
                (of(View::of_directory(path), None, Owners::Root), String::new())
            }
            (Some(NamedContext::Image(image)), _) => {
                let image = self.image(image, &self.platforms[&index])?;
                (of(image.view(), None, Owners::Kept), image.digest.to_string())
            }
            (None, Some(other)) => {
                let other = self.finished(other);
                (of(other.view(store), None, Owners::Kept), other.chain.to_string())
            }
            (None, None) => {
                let image = self.image(name, &self.platforms[&index])?;
                (of(image.view(), None, Owners::Kept), image.digest.to_string())
            }
        })
    }

    fn instruction(
        &self,
        stage: &str,
        index: usize,
        state: &mut State,
        instruction: &Instruction,
    ) -> Result<(), StepError> {
        let escape = self.dockerfile.escape;
        let snapshot = state.clone();
        let value = |text: &str| expand(text, escape, &|it| snapshot.lookup(it)).map_err(StepError::from);
        let number = match instruction.action.is_step() {
            true => self.announce(stage, instruction),
            false => Number(0),
        };
        let mut made_layer = false;
        match &instruction.action {
            Action::Run(run) => made_layer = self.run(state, index, run, instruction, number)?,
            Action::Copy(copy) => made_layer = self.copy(state, index, copy, instruction, number)?,
            Action::Workdir(path) => {
                let path = absolute(&state.config.config.working_dir, &value(path)?);
                state.config.config.working_dir = path.clone();
                let view = state.view(&self.builder.inner.store);
                // The directory belongs to whoever works in it.
                let user = state.config.config.user.as_str();
                let owner = (!user.is_empty()).then(|| copy::owner_of(&view, user)).transpose()?;
                let plan = copy::plan_directory(&view, &path, owner)?;
                state.advance(&format!("workdir {path} {owner:?}"));
                if plan.is_empty() {
                    self.was_cached(number);
                } else {
                    made_layer = self.written(state, &plan, instruction, number)?;
                }
            }
            Action::Arg(arguments) => {
                for Argument { name, default } in arguments {
                    let global = || self.globals.get(name).cloned().or_else(|| self.platform_arg(name));
                    let value = match (self.given_arg(name), default) {
                        (Some(given), _) => Some(given),
                        (None, Some(default)) => Some(value(default)?),
                        (None, None) => global(),
                    };
                    if !PROXY_ARGS.contains(&name.as_str()) {
                        state.advance(&format!("arg {name}={}", value.as_deref().unwrap_or("")));
                    }
                    if let Some(value) = value {
                        state.args.insert(name.clone(), value);
                    }
                }
            }
            Action::Env(pairs) => {
                for (name, text) in pairs {
                    state.config.config.set_env(&value(name)?, &value(text)?);
                }
            }
            Action::Label(pairs) => {
                for (name, text) in pairs {
                    state.config.config.labels.insert(value(name)?, value(text)?);
                }
            }
            Action::User(user) => state.config.config.user = value(user)?,
            Action::Cmd(command) => {
                state.config.config.cmd = words(command, &state.config);
                state.has_own_cmd = true;
            }
            Action::Entrypoint(command) => {
                state.config.config.entrypoint = words(command, &state.config);
                // The base's default arguments were for the base's program.
                if !state.has_own_cmd {
                    state.config.config.cmd.clear();
                }
            }
            Action::Expose(ports) => {
                for port in ports {
                    for port in expand_words(port, escape, &|it| snapshot.lookup(it))? {
                        for port in exposed(&port)? {
                            state.config.config.exposed_ports.insert(port, json!({}));
                        }
                    }
                }
            }
            Action::Volume(paths) => {
                for path in paths {
                    let path = value(path)?;
                    if path.is_empty() {
                        return Err(StepError::Invalid("the path is empty".into()));
                    }
                    state.config.config.volumes.insert(path, json!({}));
                }
            }
            Action::StopSignal(signal) => {
                let signal = value(signal)?;
                if !is_signal(&signal) {
                    let why = format!("`{signal}` is not a signal; write `SIGTERM` or a number");
                    return Err(StepError::Invalid(why));
                }
                state.config.config.stop_signal = Some(signal);
            }
            Action::Shell(words) => state.config.config.shell = words.clone(),
            Action::Healthcheck(check) => {
                state.config.config.healthcheck = Some(health(check.as_ref(), &state.config))
            }
            Action::Maintainer(name) => {
                state.config.rest.insert("author".into(), json!(name));
            }
            Action::OnBuild(text) => state.config.config.on_build.push(text.clone()),
        }
        if !instruction.action.is_step() && !matches!(instruction.action, Action::Arg(_)) {
            let config = serde_json::to_string(&state.config.config).expect("a config is plain data");
            state.advance(&format!("config {config}"));
        }
        let created = match self.epoch {
            Some(it) => rfc3339(it),
            None => state.created.clone(),
        };
        state.config.history.push(History {
            created: (!created.is_empty()).then_some(created),
            created_by: instruction.text.clone(),
            empty_layer: !made_layer,
            comment: String::new(),
        });
        Ok(())
    }

    fn announce(&self, stage: &str, instruction: &Instruction) -> Number {
        let mut progress = self.progress();
        progress.step += 1;
        let number = progress.step;
        (progress.tell)(Event::Step {
            number,
            total: self.total.max(number),
            stage: match self.is_one_of_many {
                true => format!("{} {stage}", self.platform),
                false => stage.to_owned(),
            },
            text: instruction.text.clone(),
        });
        Number(number)
    }

    fn was_cached(&self, number: Number) {
        let mut progress = self.progress();
        progress.cached += 1;
        (progress.tell)(Event::Cached { number: number.0 });
    }

    /// Takes the step of the state's chain from the cache, or makes it. Returns whether there is a layer.
    pub(crate) fn cached_or(
        &self,
        state: &mut State,
        instruction: &Instruction,
        number: Number,
        make: impl FnOnce(&State) -> Result<Layer, StepError>,
    ) -> Result<bool, StepError> {
        let inner = &self.builder.inner;
        let usable = |it: &Step| it.layer.is_empty || inner.store.layer(&it.layer.diff_id).is_some();
        let known = if self.request.no_cache { None } else { inner.steps.get(&state.chain) };
        let mut known = known.filter(usable);
        if known.is_none() && !self.request.no_cache {
            known = match self.imported.get(&inner.store, &state.chain) {
                Ok(None) => None,
                Ok(Some(step)) => {
                    inner.steps.put(&state.chain, &step).map_err(StepError::Cache)?;
                    Some(step)
                }
                // It can be done here as well.
                Err(error) => {
                    let text = format!("a step of the cache cannot be used: {}", chain(&error));
                    self.tell(Event::Note { text });
                    None
                }
            };
        }
        let step = match known {
            Some(step) => {
                inner.steps.touch(&state.chain);
                self.was_cached(number);
                step
            }
            None => {
                let began = Instant::now();
                let layer = make(state)?;
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.tell(Event::Finished { number: number.0, millis });
                let step = Step { layer, created: rfc3339(jiff::Timestamp::now().as_second()) };
                inner.steps.put(&state.chain, &step).map_err(StepError::Cache)?;
                step
            }
        };
        if !self.request.cache_to.is_empty() {
            let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
            steps.push((state.stage, state.chain.clone(), step.clone()));
        }
        // RFC 3339 in UTC with seconds: text order is time order.
        state.created = state.created.clone().max(step.created);
        if step.layer.is_empty {
            return Ok(false);
        }
        if state.layers.len() >= LAYERS_MAX {
            return Err(StepError::Invalid(format!("an image can have at most {LAYERS_MAX} layers")));
        }
        state.own_layers.push((step.layer.diff_id.clone(), instruction.place.line));
        state.layers.push(step.layer);
        Ok(true)
    }

    fn written(
        &self,
        state: &mut State,
        plan: &copy::Plan,
        instruction: &Instruction,
        number: Number,
    ) -> Result<bool, StepError> {
        let digest = plan.digest(&self.builder.inner.digests)?;
        state.advance(&format!("write {digest}"));
        self.cached_or(state, instruction, number, |_| {
            let store = &self.builder.inner.store;
            let dir = store.scratch_dir()?;
            plan.write(dir.path())?;
            Ok(store.add_layer(dir, CommitOptions { time_max: self.epoch, ..CommitOptions::default() })?)
        })
    }

    fn copy(
        &self,
        state: &mut State,
        index: usize,
        copy: &Copy,
        instruction: &Instruction,
        number: Number,
    ) -> Result<bool, StepError> {
        let store = &self.builder.inner.store;
        let snapshot = state.clone();
        let lookup = |it: &str| snapshot.lookup(it);
        let value = |text: &str| expand(text, self.dockerfile.escape, &lookup).map_err(StepError::from);
        let stage_view = match copy.link {
            // It does not look at what lies below.
            true => View::new(vec![store.dir().join("empty")], None),
            false => state.view(store),
        };
        let (mut origin, _) = self.origin(copy.from.as_deref(), index)?;
        origin.unpack = copy.add.as_ref().is_some_and(|it| it.unpack != Some(false));
        let destination = value(&copy.destination)?;
        let is_directory = destination.ends_with('/') || destination == "." || destination.ends_with("/.");
        let mut destination = absolute(&state.config.config.working_dir, &destination);
        if is_directory && !destination.ends_with('/') {
            destination.push('/');
        }
        // What was fetched is there until it is written.
        let mut fetched = Vec::new();
        let mut sources = Vec::new();
        for source in &copy.sources {
            sources.push(match source {
                crate::form::Source::Inline { name, content, expand } => Source::Inline {
                    name: name.clone(),
                    content: match expand {
                        true => expand_document(content, &lookup)?,
                        false => content.clone(),
                    },
                },
                crate::form::Source::Path(path) => match (value(path)?, &copy.add) {
                    (url, Some(add)) if fetch::is_remote(&url) => {
                        let checksum = add.checksum.as_deref().map(value).transpose()?;
                        let (directory, source) = self.fetch(&url, add, checksum.as_deref(), is_directory)?;
                        fetched.push(directory);
                        source
                    }
                    (pattern, add) => {
                        if add.as_ref().is_some_and(|it| it.checksum.is_some()) {
                            let why = "`--checksum` is for what is fetched over HTTP".to_owned();
                            return Err(StepError::Invalid(why));
                        }
                        Source::Path { pattern, origin: origin.clone() }
                    }
                },
            });
        }
        let owner = match &copy.chown {
            Some(text) => Some(copy::owner_of(&state.view(store), &value(text)?)?),
            None => None,
        };
        let mode = match copy.chmod.as_deref().map(value).transpose()? {
            Some(text) => match Mode::parse(&text) {
                Some(mode) => Some(mode),
                None => {
                    let why = format!("`--chmod={text}` is neither an octal nor a symbolic mode");
                    return Err(StepError::Invalid(why));
                }
            },
            None => None,
        };
        let exclude = copy.exclude.iter().map(|it| value(it)).collect::<Result<_, _>>()?;
        let request =
            Request { sources, destination, stage: &stage_view, owner, mode, exclude, parents: copy.parents };
        let plan = copy::plan(&request)?;
        state.advance("copy");
        self.written(state, &plan, instruction, number)
    }

    /// Brings a source of `ADD` from elsewhere.
    fn fetch(
        &self,
        url: &str,
        add: &Add,
        checksum: Option<&str>,
        is_directory: bool,
    ) -> Result<(tempfile::TempDir, Source<'static>), StepError> {
        let fetcher = &self.builder.inner.fetcher;
        let runtime = tokio::runtime::Handle::current();
        let of = |path: &std::path::Path, unpack| Origin {
            view: View::of_directory(path),
            ignore: None,
            owners: Owners::Root,
            unpack,
        };
        if fetch::is_git(url) {
            if checksum.is_some() {
                let why = "`--checksum` of a git repository is not supported; name a commit after `#`";
                return Err(StepError::Invalid(why.into()));
            }
            let (tree, below) = runtime.block_on(fetcher.git(url, add.keep_git_dir))?;
            let origin = of(tree.path(), false);
            let pattern = if below.as_os_str().is_empty() { ".".into() } else { below.display().to_string() };
            return Ok((tree, Source::Path { pattern, origin }));
        }
        let checksum = match checksum {
            None => None,
            Some(text) => Some(
                Digest::parse(text)
                    .map_err(|_| StepError::Invalid(format!("`--checksum={text}` is not a sha256 digest")))?,
            ),
        };
        let file = runtime.block_on(fetcher.file(url, checksum.as_ref()))?;
        let unpack = add.unpack == Some(true);
        let pattern = match (file.name.as_str(), is_directory) {
            ("", true) if !unpack => return Err(fetch::FetchError::NoName(url.to_owned()).into()),
            ("", _) => "download".to_owned(),
            (name, _) => name.to_owned(),
        };
        // A name may hold what a pattern would read as its own.
        let pattern = pattern.replace('[', "\\[").replace('*', "\\*").replace('?', "\\?");
        let origin = of(file.directory.path(), unpack);
        Ok((file.directory, Source::Path { pattern, origin }))
    }
}

pub(crate) fn absolute(working_dir: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{working_dir}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let slash = if path.ends_with('/') && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}", parts.join("/"))
}

pub(crate) fn words(command: &Command, config: &ImageConfig) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
        Command::Shell(text) if text.is_empty() => Vec::new(),
        Command::Shell(text) => {
            let mut words = config.config.shell.clone();
            if words.is_empty() {
                words = vec!["/bin/sh".into(), "-c".into()];
            }
            words.push(text.clone());
            words
        }
    }
}

/// `80`, `80/udp`, `8000-8010/tcp` as the config names ports.
fn exposed(text: &str) -> Result<Vec<String>, StepError> {
    const RANGE_MAX: u32 = 65_536; // all of them
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let wrong = || StepError::Invalid(format!("`{text}` is not a port; write `80`, `53/udp` or `8000-8010`"));
    // Where it would be published is not the image's to say.
    let ports = ports.rsplit(':').next().unwrap_or(ports);
    let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |it: &str| it.parse::<u32>().ok().filter(|it| *it < RANGE_MAX).ok_or_else(wrong);
    let (from, to) = (number(from)?, number(to)?);
    if from > to || !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong());
    }
    Ok((from..=to).map(|it| format!("{it}/{protocol}")).collect())
}

fn is_signal(text: &str) -> bool {
    const NAMES: &[&str] = &[
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
        "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
        "TTIN", "TTOU", "UNUSED", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    text.parse::<u32>().is_ok_and(|it| (1..=64).contains(&it))
        || NAMES.contains(&name)
        || name.starts_with("RTMIN")
        || name.starts_with("RTMAX")
}

fn health(check: Option<&Healthcheck>, config: &ImageConfig) -> serde_json::Value {
    let Some(check) = check else { return json!({"Test": ["NONE"]}) };
    let test: Vec<String> = match &check.command {
        Command::Exec(words) => std::iter::once("CMD".to_owned()).chain(words.iter().cloned()).collect(),
        Command::Shell(text) if config.config.shell.is_empty() => vec!["CMD-SHELL".into(), text.clone()],
        Command::Shell(_) => std::iter::once("CMD".to_owned()).chain(words(&check.command, config)).collect(),
    };
    let mut out = json!({"Test": test});
    for (name, value) in [
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
        ("Retries", check.retries),
    ] {
        if value != 0 {
            out[name] = json!(value);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_signals_are_checked() {
        for (text, want) in [
            ("80", &["80/tcp"][..]),
            ("53/UDP", &["53/udp"]),
            ("8000-8002", &["8000/tcp", "8001/tcp", "8002/tcp"]),
            ("127.0.0.1:8080:80", &["80/tcp"]),
        ] {
            assert_eq!(exposed(text).unwrap(), want, "{text}");
        }
        for bad in ["", "x", "80/http", "70000", "9-8"] {
            assert!(exposed(bad).is_err(), "{bad}");
        }
        assert!(is_signal("SIGTERM") && is_signal("quit") && is_signal("9") && is_signal("SIGRTMIN+3"));
        assert!(!is_signal("SIGNOT") && !is_signal("0"));
    }
}
