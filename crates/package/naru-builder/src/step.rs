//! `RUN`: a step's environment and what is mounted into it for its time, then the pod, then its layer.

use crate::copy::{self, Origin, Request, Source};
use crate::expand::expand;
use crate::form::{Instruction, Mount, MountKind, Run, SCRIPTS, Sharing};
use crate::outcome::{Event, StepError};
use crate::run::{RunStep, StepMount};
use crate::stage::{Build, DEFAULT_PATH, Number, PROXY_ARGS, State, absolute, words};
use naru_image::{Base, CommitOptions, Digest, LastLink, Layer, View};
use serde_json::json;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

const LOG_TAIL_LINES: usize = 20; // of a failed step, repeated in the error
/// A secret shorter than this is not looked for in the log: it would blank out half of it.
const MASKED_BYTES_MIN: usize = 4;

/// A mount with its variables filled in and what it shows looked up.
struct Planned<'a> {
    mount: &'a Mount,
    target: String,
    files: Option<(Origin<'a>, String)>,
}

/// What must stay until the step has ended.
#[derive(Default)]
struct Held {
    directories: Vec<tempfile::TempDir>,
    caches: Vec<CacheUse>,
}

impl<'a> Build<'a> {
    pub(crate) fn run(
        &self,
        state: &mut State,
        index: usize,
        run: &Run,
        instruction: &Instruction,
        number: Number,
    ) -> Result<bool, StepError> {
        let command = words(&run.command, &state.config);
        if command.is_empty() {
            return Err(StepError::Invalid("there is no command".into()));
        }
        state.advance(&format!("run {}", json!([command, run.script, format!("{:?}", run.network)])));
        let mut planned = Vec::new();
        for mount in &run.mounts {
            let it = self.plan_mount(state, index, mount)?;
            // Secrets and caches do not count: what a step makes of them is the same, or should be.
            let mut key = format!("mount {:?} {} {:?}", mount.kind, it.target, mount.read_only);
            if mount.kind == MountKind::Bind
                && let Some((origin, source)) = &it.files
            {
                key.push_str(&format!(" {}", self.content_of(origin, source)?));
            }
            state.advance(&key);
            planned.push(it);
        }
        let (run, planned) = (run.clone(), planned);
        self.cached_or(state, instruction, number, |state| {
            self.run_step(state, command, &run, &planned, number)
        })
    }

    fn plan_mount<'b>(
        &'b self,
        state: &State,
        index: usize,
        mount: &'b Mount,
    ) -> Result<Planned<'b>, StepError> {
        let lookup =
            |it: &str| state.config.config.env_of(it).map(str::to_owned).or(state.args.get(it).cloned());
        let value = |text: &str| expand(text, self.dockerfile.escape, &lookup).map_err(StepError::from);
        let target = match (&mount.target, &mount.id) {
            (Some(it), _) => value(it)?,
            (None, Some(id)) if mount.kind == MountKind::Secret => format!("/run/secrets/{id}"),
            (None, _) => String::new(),
        };
        let target = match target.as_str() {
            "" => String::new(),
            it => absolute(&state.config.config.working_dir, it),
        };
        if target == "/"
            || target.starts_with("/proc")
            || target.starts_with("/sys")
            || target.starts_with("/dev/pts")
        {
            return Err(StepError::Invalid(format!("nothing can be mounted at `{target}`")));
        }
        let files = match mount.kind {
            MountKind::Bind => {
                let from = mount.from.as_deref().map(value).transpose()?;
                let source = mount.source.as_deref().map(value).transpose()?.unwrap_or_default();
                Some((self.origin(from.as_deref(), index)?.0, source))
            }
            MountKind::Cache if mount.from.is_some() => {
                let from = mount.from.as_deref().map(value).transpose()?;
                let source = mount.source.as_deref().map(value).transpose()?.unwrap_or_default();
                Some((self.origin(from.as_deref(), index)?.0, source))
            }
            _ => None,
        };
        Ok(Planned { mount, target, files })
    }

    /// Tells content apart: as a `COPY` of it would.
    fn content_of(&self, origin: &Origin<'_>, source: &str) -> Result<Digest, StepError> {
        let nothing = View::new(vec![self.builder.inner.store.dir().join("empty")], None);
        Ok(copy_plan(origin, source, "/x", &nothing)?.digest(&self.builder.inner.digests)?)
    }

    fn run_step(
        &self,
        state: &State,
        command: Vec<String>,
        run: &Run,
        planned: &[Planned<'_>],
        number: Number,
    ) -> Result<Layer, StepError> {
        let inner = Arc::clone(&self.builder.inner);
        let view = state.view(&inner.store);
        let mut config = state.config.clone();
        if !config.config.user.is_empty() {
            let (uid, gid) = copy::owner_of(&view, &config.config.user)?;
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
        let mut held = Held::default();
        let mut mounts = Vec::new();
        let mut secret_env = BTreeMap::new();
        for it in planned {
            match it.mount.kind {
                MountKind::Secret => self.secret(it, &mut held, &mut mounts, &mut secret_env)?,
                MountKind::Ssh => self.agent(it, &mut mounts, &mut env)?,
                MountKind::Tmpfs => mounts
                    .push(StepMount::Tmpfs { target: it.target.clone(), size_bytes: it.mount.size_bytes }),
                MountKind::Bind => mounts.push(self.bind(it, &mut held)?),
                MountKind::Cache => mounts.push(self.cache(it, &mut held)?),
            }
        }
        if let Some((name, content)) = &run.script {
            let directory = inner.store.scratch_dir()?;
            let path = directory.path().join(name);
            fs::write(&path, content).map_err(StepError::Cache)?;
            for it in [directory.path(), &path] {
                fs::set_permissions(it, fs::Permissions::from_mode(0o755)).map_err(StepError::Cache)?;
            }
            let path = directory.path().to_owned();
            mounts.push(StepMount::Path { path, target: SCRIPTS.into(), read_only: true });
            held.directories.push(directory);
        }
        // What lies inside another mount comes after it.
        mounts.sort_by_key(|it| it.target().len());
        let stubs = mounts.iter().flat_map(|it| stubs(&view, it.target())).collect();
        let masked: Vec<String> = self
            .request
            .secrets
            .values()
            .filter_map(|it| String::from_utf8(it.clone()).ok())
            .flat_map(|it| it.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|it| it.trim().len() >= MASKED_BYTES_MIN)
            .collect();
        let step = RunStep {
            id: id.clone(),
            image: format!("naru.local/build@{}", image.digest()),
            command,
            env: env.into_iter().collect(),
            working_dir: match config.config.working_dir.as_str() {
                "" => "/".into(),
                it => it.to_owned(),
            },
            mounts,
            secret_env,
            network: run.network,
            hostname: self.request.args.get("BUILDKIT_SANDBOX_HOSTNAME").cloned(),
            labels: self.request.pod_labels.clone(),
            stop: self.stop.clone(),
        };
        inner.store.expect_commit(&id, CommitOptions { time_max: self.epoch, stubs });
        let mut tail = VecDeque::new();
        let outcome = inner.runner.run(&step, &mut |line| {
            let mut line = line.to_owned();
            for secret in &masked {
                if line.contains(secret.as_str()) {
                    line = line.replace(secret.as_str(), "***");
                }
            }
            if tail.len() == LOG_TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line.clone());
            self.tell(Event::Log { number: number.0, line });
        });
        drop(held);
        if outcome.is_err() {
            inner.store.forget_commit(&id);
        }
        outcome.map_err(|failure| StepError::Run { failure, tail: tail.into() })?;
        Ok(inner.store.take_committed(&id)?)
    }

    fn secret(
        &self,
        planned: &Planned<'_>,
        held: &mut Held,
        mounts: &mut Vec<StepMount>,
        env: &mut BTreeMap<String, Vec<u8>>,
    ) -> Result<(), StepError> {
        let mount = planned.mount;
        let base = mount.target.as_deref().and_then(|it| it.rsplit('/').next()).unwrap_or_default();
        let id = mount.id.as_deref().unwrap_or(base);
        let Some(value) = self.request.secrets.get(id) else {
            return match mount.required {
                true => Err(StepError::Invalid(format!(
                    "the secret `{id}` was not given; build with `--secret id={id},src=FILE`"
                ))),
                false => Ok(()),
            };
        };
        if let Some(name) = &mount.env {
            env.insert(name.clone(), value.clone());
            if mount.target.is_none() {
                return Ok(());
            }
        }
        let io = StepError::Cache;
        let directory = tempfile::tempdir_in(&self.builder.inner.config.secrets_dir).map_err(io)?;
        let path = directory.path().join("secret");
        fs::write(&path, value).map_err(io)?;
        std::os::unix::fs::chown(&path, Some(mount.uid.unwrap_or(0)), Some(mount.gid.unwrap_or(0)))
            .map_err(io)?;
        let mode = fs::Permissions::from_mode(mount.mode.unwrap_or(0o400));
        fs::set_permissions(&path, mode).map_err(io)?;
        mounts.push(StepMount::Path { path, target: planned.target.clone(), read_only: true });
        held.directories.push(directory);
        Ok(())
    }

    /// An agent's socket that the client brought.
    fn agent(
        &self,
        planned: &Planned<'_>,
        mounts: &mut Vec<StepMount>,
        env: &mut BTreeMap<String, String>,
    ) -> Result<(), StepError> {
        let id = planned.mount.id.as_deref().unwrap_or("default");
        let Some(socket) = self.request.agents.get(id) else {
            return match planned.mount.required {
                true => Err(StepError::Invalid(format!(
                    "the SSH agent `{id}` was not given; build with `--ssh {id}=KEYFILE`"
                ))),
                false => Ok(()),
            };
        };
        let target = match planned.target.as_str() {
            "" => "/run/buildkit/ssh_agent.0".to_owned(),
            it => it.to_owned(),
        };
        env.entry("SSH_AUTH_SOCK".into()).or_insert(target.clone());
        mounts.push(StepMount::Path { path: socket.clone(), target, read_only: false });
        Ok(())
    }

    fn bind(&self, planned: &Planned<'_>, held: &mut Held) -> Result<StepMount, StepError> {
        let (origin, source) = planned.files.as_ref().expect("a bind has files");
        let read_only = planned.mount.read_only != Some(false);
        let target = planned.target.clone();
        let clean = source.trim_start_matches('/');
        let found = origin.view.resolve(Path::new(clean), LastLink::Follow);
        let found = found.map_err(StepError::Cache)?;
        let Some((_, entry)) = found else {
            return Err(copy::CopyError::Missing(source.clone(), false).into());
        };
        // A single directory without hidden files can be shown as it is.
        let is_whole = origin.view.is_single() && origin.ignore.is_none_or(|it| it.is_empty());
        if read_only && is_whole {
            return Ok(StepMount::Path { path: entry.real, target, read_only });
        }
        let directory = self.builder.inner.store.scratch_dir()?;
        let nothing = View::new(vec![self.builder.inner.store.dir().join("empty")], None);
        copy_plan(origin, source, "/files", &nothing)?.write(directory.path())?;
        let path = directory.path().join("files");
        held.directories.push(directory);
        Ok(StepMount::Path { path, target, read_only })
    }

    fn cache(&self, planned: &Planned<'_>, held: &mut Held) -> Result<StepMount, StepError> {
        let mount = planned.mount;
        let space = self.request.args.get("BUILDKIT_CACHE_MOUNT_NS").unwrap_or(&self.request.name);
        let id = mount.id.as_deref().unwrap_or(&planned.target);
        let key = Digest::of(format!("{space}\n{id}")).hex().to_owned();
        let using = self.builder.inner.cache_mounts.take(&key, mount.sharing);
        let path = self.builder.mounts_dir().join(&using.name);
        held.caches.push(using);
        if !path.is_dir() {
            let fresh = self.builder.inner.store.scratch_dir()?;
            let content = fresh.path().join("files");
            match &planned.files {
                Some((origin, source)) => {
                    let nothing = View::new(vec![self.builder.inner.store.dir().join("empty")], None);
                    copy_plan(origin, source, "/files", &nothing)?.write(fresh.path())?;
                }
                None => fs::create_dir(&content).map_err(StepError::Cache)?,
            }
            std::os::unix::fs::chown(&content, Some(mount.uid.unwrap_or(0)), Some(mount.gid.unwrap_or(0)))
                .map_err(StepError::Cache)?;
            fs::set_permissions(&content, fs::Permissions::from_mode(mount.mode.unwrap_or(0o755)))
                .map_err(StepError::Cache)?;
            fs::create_dir_all(path.parent().expect("it is below `mounts`")).map_err(StepError::Cache)?;
            match fs::rename(&content, &path) {
                Ok(()) => {}
                Err(_) if path.is_dir() => {} // another step was faster
                Err(it) => return Err(StepError::Cache(it)),
            }
        }
        // What nobody used for long goes first when room is needed.
        let _ = fs::File::open(&path).and_then(|it| it.set_modified(std::time::SystemTime::now()));
        let read_only = mount.read_only == Some(true);
        Ok(StepMount::Path { path, target: planned.target.clone(), read_only })
    }
}

/// A copy of what a mount shows to one place of its own.
fn copy_plan(
    origin: &Origin<'_>,
    source: &str,
    destination: &str,
    nothing: &View,
) -> Result<copy::Plan, StepError> {
    let source = source.trim_start_matches('/');
    let pattern = if source.is_empty() { ".".to_owned() } else { source.to_owned() };
    let request = Request {
        sources: vec![Source::Path { pattern, origin: origin.clone() }],
        destination: destination.to_owned(),
        stage: nothing,
        owner: None,
        mode: None,
        exclude: Vec::new(),
        parents: false,
    };
    Ok(copy::plan(&request)?)
}

/// What the container runtime has to make so that something can be mounted at `target`, innermost first. It
/// is no work of the step and goes again before its layer is made.
fn stubs(view: &View, target: &str) -> Vec<PathBuf> {
    let target = Path::new(target.trim_start_matches('/'));
    target
        .ancestors()
        .filter(|it| !it.as_os_str().is_empty())
        .take_while(|it| !view.resolve(it, LastLink::Follow).is_ok_and(|it| it.is_some()))
        .map(Path::to_owned)
        .collect()
}

/// Which caches steps are using right now.
#[derive(Debug, Clone, Default)]
pub(crate) struct CacheMounts(Arc<(Mutex<HashMap<String, usize>>, Condvar)>);

/// A cache while a step uses it.
#[derive(Debug)]
pub(crate) struct CacheUse {
    mounts: CacheMounts,
    pub(crate) name: String,
}

impl CacheMounts {
    /// Waits, or takes another one, as the sharing says.
    pub(crate) fn take(&self, key: &str, sharing: Sharing) -> CacheUse {
        let (users, changed) = &*self.0;
        let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
        let mut name = key.to_owned();
        match sharing {
            Sharing::Shared => {}
            Sharing::Locked => {
                while users.contains_key(&name) {
                    users = changed.wait(users).unwrap_or_else(PoisonError::into_inner);
                }
            }
            Sharing::Private => {
                let mut number = 1;
                while users.contains_key(&name) {
                    number += 1;
                    name = format!("{key}-{number}");
                }
            }
        }
        *users.entry(name.clone()).or_default() += 1;
        CacheUse { mounts: self.clone(), name }
    }
}

impl Drop for CacheUse {
    fn drop(&mut self) {
        let (users, changed) = &*self.mounts.0;
        let mut users = users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.name);
            }
        }
        changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_shared_as_asked() {
        let mounts = CacheMounts::default();
        let one = mounts.take("k", Sharing::Shared);
        let two = mounts.take("k", Sharing::Shared);
        assert_eq!((one.name.as_str(), two.name.as_str()), ("k", "k"));
        let own = mounts.take("k", Sharing::Private);
        assert_eq!(own.name, "k-2");
        drop((one, own));
        let waiting = std::thread::spawn({
            let mounts = mounts.clone();
            move || mounts.take("k", Sharing::Locked).name.clone()
        });
        drop(two);
        assert_eq!(waiting.join().unwrap(), "k");
    }
}
