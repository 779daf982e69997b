//! One stage: its instructions in order, a layer per step, each looked up in the cache first.
//!
//! A step's key is the chain of everything before it, the instruction with its variables filled in, and
//! the content of the files it copies. Times do not count.

use crate::cache::Step;
use crate::copy::{self, Owners, Request, Source};
use crate::engine::{BuildRequest, Builder, NamedContext, named_stage};
use crate::expand::{expand, expand_document};
use crate::form::{Action, Argument, Command, Copy, Dockerfile, Healthcheck, Instruction, Mount, Run, Stage};
use crate::ignore::Ignore;
use crate::outcome::{BuildError, Event, StepError};
use crate::run::{RunStep, StepMount};
use naru_image::oci::{History, ImageConfig, architecture};
use naru_image::{
    Base, CommitOptions, Digest, HostRoot, ImageStore, LAYERS_MAX, Layer, LocalImage, PullPolicy, View,
};
use naru_text::Place;
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const LOG_TAIL_LINES: usize = 20; // of a failed step, repeated in the error
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const PROXY_ARGS: &[&str] = &[
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
        }
    }

    pub(crate) fn view(&self, store: &ImageStore) -> View {
        let own = self.own_layers.iter().rev().map(|(it, _)| store.layer_dir(it));
        View::new(own.chain(self.lower_dirs.iter().cloned()).collect(), self.host.as_ref())
    }

    fn advance(&mut self, text: &str) {
        self.chain = Digest::of(format!("{}\n{text}", self.chain));
    }

    fn lookup(&self, name: &str) -> Option<String> {
        self.config.config.env_of(name).map(str::to_owned).or_else(|| self.args.get(name).cloned())
    }
}

pub(crate) struct Build<'a> {
    pub(crate) builder: &'a Builder,
    pub(crate) request: &'a BuildRequest,
    pub(crate) dockerfile: &'a Dockerfile,
    pub(crate) file: String,
    pub(crate) context: View,
    pub(crate) ignore: Ignore,
    pub(crate) epoch: Option<i64>,
    pub(crate) progress: &'a mut dyn FnMut(Event),
    pub(crate) stages: BTreeMap<usize, State>,
    pub(crate) globals: BTreeMap<String, String>,
    pub(crate) step: u32,
    pub(crate) total: u32,
    pub(crate) cached: u32,
}

impl Build<'_> {
    fn fail(&self, place: Place, text: &str, source: impl Into<StepError>) -> BuildError {
        BuildError::Step {
            file: self.file.clone(),
            place,
            text: text.to_owned(),
            source: Box::new(source.into()),
        }
    }

    fn platform_arg(name: &str) -> Option<String> {
        let (os, arch) = ("linux", architecture());
        Some(match name {
            "TARGETPLATFORM" | "BUILDPLATFORM" => format!("{os}/{arch}"),
            "TARGETOS" | "BUILDOS" => os.into(),
            "TARGETARCH" | "BUILDARCH" => arch.into(),
            "TARGETVARIANT" | "BUILDVARIANT" => String::new(),
            _ => return None,
        })
    }

    pub(crate) fn read_globals(&mut self) -> Result<(), BuildError> {
        for Argument { name, default } in &self.dockerfile.global_args {
            let globals = self.globals.clone();
            let lookup = |it: &str| globals.get(it).cloned().or_else(|| Self::platform_arg(it));
            let value = match (self.request.args.get(name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(
                    expand(default, '\\', &lookup)
                        .map_err(|it| self.fail(Place::new(1, 1), &format!("ARG {name}"), it))?,
                ),
                (None, None) => Self::platform_arg(name),
            };
            if let Some(value) = value {
                self.globals.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    pub(crate) fn stage(&mut self, index: usize) -> Result<State, BuildError> {
        let dockerfile = self.dockerfile;
        let stage = &dockerfile.stages[index];
        let mut state = self.base(index, stage)?;
        let name = stage.name.clone().unwrap_or_else(|| format!("stage-{index}"));
        if let Some(epoch) = self.epoch {
            state.advance(&format!("times up to {epoch}"));
        }
        for instruction in &stage.instructions {
            self.instruction(&name, index, &mut state, instruction)
                .map_err(|source| self.fail(instruction.place, &instruction.text, source))?;
        }
        Ok(state)
    }

    fn base(&mut self, index: usize, stage: &Stage) -> Result<State, BuildError> {
        let text = format!("FROM {}", stage.image);
        let globals = self.globals.clone();
        let lookup = |it: &str| globals.get(it).cloned().or_else(|| Self::platform_arg(it));
        let name = expand(&stage.image, '\\', &lookup).map_err(|it| self.fail(stage.place, &text, it))?;
        if let Some(platform) = &stage.platform {
            let platform = expand(platform, '\\', &lookup).map_err(|it| self.fail(stage.place, &text, it))?;
            let ours = format!("linux/{}", architecture());
            if platform != ours {
                let why = format!("`--platform={platform}` cannot be built here: this machine is {ours}");
                return Err(self.fail(stage.place, &text, StepError::Invalid(why)));
            }
        }
        let store = &self.builder.inner.store;
        let policy = if self.request.pull { PullPolicy::Always } else { PullPolicy::IfNotPresent };
        let ensure = |name: &str| {
            tokio::runtime::Handle::current()
                .block_on(store.ensure(name, policy))
                .map_err(|it| self.fail(stage.place, &text, it))
        };
        let given = self.request.contexts.get(&name);
        let mut state = match named_stage(self.dockerfile, &name, index) {
            _ if given.is_some() => match given.expect("asked for in the line above") {
                NamedContext::Image(name) => State::of(ensure(name)?),
                NamedContext::Directory(_) => {
                    let why = format!("`{name}` is given as a directory; `FROM` needs an image");
                    return Err(self.fail(stage.place, &text, StepError::Invalid(why)));
                }
            },
            Some(other) => {
                let mut state = self.stages.get(&other).expect("needed stages are built in order").clone();
                state.args.clear();
                state.has_own_cmd = false;
                state
            }
            None if name == "scratch" => State::of(store.scratch_image()),
            None if name.is_empty() => {
                return Err(self.fail(
                    stage.place,
                    &text,
                    StepError::Invalid("the image name is empty".into()),
                ));
            }
            None => State::of(ensure(&name)?),
        };
        if !state.config.config.on_build.is_empty() {
            let why = "its base image has ONBUILD triggers, which are not supported";
            return Err(self.fail(stage.place, &text, StepError::Invalid(why.into())));
        }
        if state.host.is_none() && state.config.config.env_of("PATH").is_none() && name != "scratch" {
            state.config.config.set_env("PATH", DEFAULT_PATH);
        }
        Ok(state)
    }

    fn image(&self, name: &str) -> Result<LocalImage, StepError> {
        let ensure = self.builder.inner.store.ensure(name, PullPolicy::IfNotPresent);
        Ok(tokio::runtime::Handle::current().block_on(ensure)?)
    }

    fn instruction(
        &mut self,
        stage: &str,
        index: usize,
        state: &mut State,
        instruction: &Instruction,
    ) -> Result<(), StepError> {
        let snapshot = state.clone();
        let value = |text: &str| expand(text, '\\', &|it| snapshot.lookup(it)).map_err(StepError::from);
        let mut made_layer = false;
        match &instruction.action {
            Action::Run(run) => {
                self.announce(stage, instruction);
                made_layer = self.run(state, run, instruction)?;
            }
            Action::Copy(copy) => {
                self.announce(stage, instruction);
                made_layer = self.copy(state, index, copy, instruction)?;
            }
            Action::Workdir(path) => {
                self.announce(stage, instruction);
                let path = value(path)?;
                let path = absolute(&state.config.config.working_dir, &path);
                state.config.config.working_dir = path.clone();
                let plan = copy::plan_directory(&state.view(&self.builder.inner.store), &path)?;
                state.advance(&format!("workdir {path}"));
                if plan.is_empty() {
                    self.was_cached();
                } else {
                    made_layer = self.written(state, &plan, instruction)?;
                }
            }
            Action::Arg(arguments) => {
                for Argument { name, default } in arguments {
                    let given = self.request.args.get(name).cloned();
                    let global = || self.globals.get(name).cloned().or_else(|| Self::platform_arg(name));
                    let value = match (given, default) {
                        (Some(given), _) => Some(given),
                        (None, Some(default)) => Some(value(default)?),
                        (None, None) => global(),
                    };
                    state.advance(&format!("arg {name}={}", value.as_deref().unwrap_or("")));
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
                    let port = value(port)?;
                    for port in port.split_whitespace() {
                        let port = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
                        state.config.config.exposed_ports.insert(port, json!({}));
                    }
                }
            }
            Action::Volume(paths) => {
                for path in paths {
                    state.config.config.volumes.insert(value(path)?, json!({}));
                }
            }
            Action::StopSignal(signal) => state.config.config.stop_signal = Some(value(signal)?),
            Action::Shell(words) => state.config.config.shell = words.clone(),
            Action::Healthcheck(check) => {
                state.config.config.healthcheck = Some(health(check.as_ref(), &state.config))
            }
            Action::Maintainer(name) => {
                state.config.rest.insert("author".into(), json!(name));
            }
        }
        if !matches!(
            instruction.action,
            Action::Run(_) | Action::Copy(_) | Action::Workdir(_) | Action::Arg(_)
        ) {
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

    fn announce(&mut self, stage: &str, instruction: &Instruction) {
        self.step += 1;
        (self.progress)(Event::Step {
            number: self.step,
            total: self.total,
            stage: stage.to_owned(),
            text: instruction.text.clone(),
        });
    }

    fn was_cached(&mut self) {
        self.cached += 1;
        (self.progress)(Event::Cached { number: self.step });
    }

    /// Takes the step of the state's chain from the cache, or makes it. Returns whether there is a layer.
    fn cached_or(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        make: impl FnOnce(&mut Self, &State) -> Result<Layer, StepError>,
    ) -> Result<bool, StepError> {
        let inner = &self.builder.inner;
        let usable = |it: &Step| it.layer.is_empty || inner.store.layer(&it.layer.diff_id).is_some();
        let known = if self.request.no_cache { None } else { inner.steps.get(&state.chain) };
        let step = match known.filter(usable) {
            Some(step) => {
                inner.steps.touch(&state.chain);
                self.was_cached();
                step
            }
            None => {
                let began = std::time::Instant::now();
                let layer = make(self, state)?;
                let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                (self.progress)(Event::Finished { number: self.step, millis });
                let step = Step { layer, created: rfc3339(jiff::Timestamp::now().as_second()) };
                self.builder.inner.steps.put(&state.chain, &step).map_err(StepError::Cache)?;
                step
            }
        };
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
        &mut self,
        state: &mut State,
        plan: &copy::Plan,
        instruction: &Instruction,
    ) -> Result<bool, StepError> {
        let digest = plan.digest(&self.builder.inner.digests)?;
        state.advance(&format!("write {digest}"));
        self.cached_or(state, instruction, |build, _| {
            let store = &build.builder.inner.store;
            let dir = store.scratch_dir()?;
            plan.write(dir.path())?;
            let options = CommitOptions { time_max: build.epoch };
            Ok(store.add_layer(dir, options)?)
        })
    }

    fn copy(
        &mut self,
        state: &mut State,
        index: usize,
        copy: &Copy,
        instruction: &Instruction,
    ) -> Result<bool, StepError> {
        let store = self.builder.inner.store.clone();
        let lookup = |it: &str| state.lookup(it);
        let value = |text: &str| expand(text, '\\', &lookup).map_err(StepError::from);
        let mut sources = Vec::new();
        for source in &copy.sources {
            sources.push(match source {
                crate::form::Source::Path(path) => Source::Path(value(path)?),
                crate::form::Source::Inline { name, content, expand } => Source::Inline {
                    name: name.clone(),
                    content: match expand {
                        true => expand_document(content, &lookup)?,
                        false => content.clone(),
                    },
                },
            });
        }
        let stage_view = state.view(&store);
        let (from, ignore, owners) = match &copy.from {
            None => (self.context.clone(), Some(&self.ignore), Owners::Root),
            Some(name) => match (self.request.contexts.get(name), self.dockerfile.stage_index(name, index)) {
                (Some(NamedContext::Directory(path)), _) => (View::of_directory(path), None, Owners::Root),
                (Some(NamedContext::Image(image)), _) => (self.image(image)?.view(), None, Owners::Kept),
                (None, Some(other)) => {
                    let other = self.stages.get(&other).expect("needed stages are built in order");
                    (other.view(&store), None, Owners::Kept)
                }
                (None, None) => (self.image(name)?.view(), None, Owners::Kept),
            },
        };
        let owner = match &copy.chown {
            Some(text) => Some(copy::owner_of(&stage_view, &value(text)?)?),
            None => None,
        };
        let destination = value(&copy.destination)?;
        let is_directory = destination.ends_with('/') || destination == "." || destination.ends_with("/.");
        let mut destination = absolute(&state.config.config.working_dir, &destination);
        if is_directory && !destination.ends_with('/') {
            destination.push('/');
        }
        let request = Request {
            sources,
            destination,
            from: &from,
            ignore,
            stage: &stage_view,
            owner,
            mode: copy.chmod,
            owners,
            unpack: copy.unpack,
        };
        let plan = copy::plan(&request)?;
        state.advance("copy");
        self.written(state, &plan, instruction)
    }

    fn run(&mut self, state: &mut State, run: &Run, instruction: &Instruction) -> Result<bool, StepError> {
        let command = words(&run.command, &state.config);
        state.advance(&format!("run {}", json!([command, format!("{:?}", run.mounts)])));
        let mounts = run.mounts.clone();
        self.cached_or(state, instruction, move |build, state| build.run_step(state, command, &mounts))
    }

    fn run_step(
        &mut self,
        state: &State,
        command: Vec<String>,
        mounts: &[Mount],
    ) -> Result<Layer, StepError> {
        let inner = Arc::clone(&self.builder.inner);
        let mut config = state.config.clone();
        if !config.config.user.is_empty() {
            let (uid, gid) = copy::owner_of(&state.view(&inner.store), &config.config.user)?;
            config.config.user = format!("{uid}:{gid}");
        }
        let base = if state.host.is_some() { Base::Host } else { Base::Own };
        let image = inner.store.put_transient(&config, &state.layers, base);
        let id = format!(
            "{}-{}-{}",
            state.chain.short(),
            std::process::id(),
            inner.counter.fetch_add(1, Ordering::Relaxed)
        );
        let mut env: BTreeMap<String, String> = state.args.clone();
        for name in PROXY_ARGS {
            if let Some(value) = self.request.args.get(*name) {
                env.insert((*name).to_owned(), value.clone());
            }
        }
        // The image's variables win over build arguments, as in Docker.
        env.retain(|name, _| config.config.env_of(name).is_none());
        if config.config.env_of("PATH").is_none() {
            env.insert("PATH".into(), DEFAULT_PATH.into());
        }
        let mut step_mounts = Vec::new();
        for mount in mounts {
            step_mounts.push(match mount {
                Mount::Tmpfs { target } => StepMount::Tmpfs { target: target.clone() },
                Mount::Cache { id, target } => {
                    let key = Digest::of(format!("{}\n{id}", self.request.name));
                    let path = self.builder.mounts_dir().join(key.hex());
                    std::fs::create_dir_all(&path).map_err(StepError::Cache)?;
                    // What nobody used for long goes first when room is needed.
                    let _ = std::fs::File::open(&path)
                        .and_then(|it| it.set_modified(std::time::SystemTime::now()));
                    StepMount::Cache { path, target: target.clone() }
                }
            });
        }
        let step = RunStep {
            id: id.clone(),
            image: format!("naru.local/build@{}", image.digest()),
            command,
            env: env.into_iter().collect(),
            working_dir: match config.config.working_dir.as_str() {
                "" => "/".into(),
                it => it.to_owned(),
            },
            mounts: step_mounts,
            labels: self.request.pod_labels.clone(),
            stop: self.request.stop.clone().unwrap_or_else(|| inner.stop.clone()),
        };
        inner.store.expect_commit(&id, CommitOptions { time_max: self.epoch });
        let mut tail = VecDeque::new();
        let number = self.step;
        let progress = &mut *self.progress;
        let outcome = inner.runner.run(&step, &mut |line| {
            if tail.len() == LOG_TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line.to_owned());
            progress(Event::Log { number, line: line.to_owned() });
        });
        if outcome.is_err() {
            inner.store.forget_commit(&id);
        }
        outcome.map_err(|failure| StepError::Run { failure, tail: tail.into() })?;
        Ok(inner.store.take_committed(&id)?)
    }
}

fn absolute(working_dir: &str, path: &str) -> String {
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

fn words(command: &Command, config: &ImageConfig) -> Vec<String> {
    match command {
        Command::Exec(words) => words.clone(),
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
