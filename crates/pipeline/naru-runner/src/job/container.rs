//! Docker actions: a container for one step, through whichever program of Docker's command line the job finds
//! (`docker`, `podman`, or ours under that name). Mounts, paths and variables inside are those of GitHub's page
//! "Dockerfile support for GitHub Actions".
//!
//! A job's pod has no such program and no right to start containers: there the daemon starts one beside it
//! ([`super::beside`]), and builds the image of an action that brings a Dockerfile.

use super::actions::Stage;
use super::beside::{Build, Question, Request, Start};
use super::packages::Loaded;
use super::{FAILED, JobRun, StepEnd};
use crate::controller::words;
use crate::protocol::Outcome;
use naru_plan::{PackageBody, Step};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// In the order in which they are looked for.
const PROGRAMS: &[&str] = &["docker", "podman"];

/// Inside of the container.
const WORKSPACE: &str = "/github/workspace";
const HOME: &str = "/github/home";
const EVENT: &str = "/github/workflow";
const FILES: &str = "/github/file_commands";

impl JobRun<'_> {
    /// Runs one stage of a Docker action.
    pub(super) async fn container(
        &mut self,
        stage: Stage,
        at: &[usize],
        step: &Step,
        loaded: &Loaded,
        env: &[(String, String)],
        inputs: &[(String, Value)],
    ) -> StepEnd {
        let PackageBody::Container {
            image,
            entrypoint,
            pre_entrypoint,
            post_entrypoint,
            args,
            env: more,
            ..
        } = &loaded.package.body
        else {
            unreachable!("asked for with a container only")
        };
        let program = match PROGRAMS.iter().find(|it| self.has_program(it, env)) {
            // A pod's image may hold the program; whom it would talk to is not there.
            _ if !self.file.beside_url.is_empty() => None,
            Some(program) => Some(*program),
            None => {
                let message = "a Docker action needs `docker` or `podman` here; neither is in PATH";
                self.log.remark("error", message);
                return FAILED;
            }
        };
        let prepared = self.prepare_container(inputs, args, more);
        let (given, own_env) = match prepared {
            Ok(it) => it,
            Err(error) => {
                self.log.remark("error", &error);
                return FAILED;
            }
        };
        let mut build = None;
        let image = match (image.strip_prefix("docker://"), program) {
            (Some(image), _) => image.to_owned(),
            (None, Some(program)) => match self.build_image(program, &loaded.directory.join(image)).await {
                Ok(image) => image,
                Err(end) => return end,
            },
            (None, None) => {
                build = Some(Build { directory: loaded.directory.clone(), dockerfile: image.clone() });
                String::new()
            }
        };
        let input = |name: &str| {
            let found = inputs.iter().find(|(it, _)| it.eq_ignore_ascii_case(name));
            found.and_then(|(_, it)| it.as_str()).filter(|it| !it.is_empty()).map(str::to_owned)
        };
        let entrypoint = match stage {
            Stage::Pre => pre_entrypoint.clone(),
            Stage::Main => entrypoint.clone().or_else(|| input("entrypoint")),
            Stage::Post => post_entrypoint.clone(),
        };
        let given = match (given.is_empty(), input("args")) {
            (true, Some(text)) => match words(&text) {
                Ok(words) => words,
                Err(error) => {
                    self.log.remark("error", &format!("`args`: {error}"));
                    return FAILED;
                }
            },
            _ => given,
        };
        let directory = match self.step_directory() {
            Ok(it) => it,
            Err(error) => {
                self.log.say(&format!("error: {error}"));
                return FAILED;
            }
        };
        let home = self.places.temp.join("_github_home");
        if let Err(error) = std::fs::create_dir_all(&home) {
            self.log.say(&format!("error: cannot make {}: {error}", home.display()));
            return FAILED;
        }
        let mut mounts = vec![
            (home, HOME),
            (self.places.temp.join("_github_workflow"), EVENT),
            (directory.path().to_owned(), FILES),
            (self.places.workspace.clone(), WORKSPACE),
        ];
        if program.is_none() {
            // The pod's volume as a whole stands at both places; links in it make the names.
            mounts.remove(2);
            if let Err(error) = self.links(&mounts) {
                self.log.say(&format!("error: {error}"));
                return FAILED;
            }
        }
        // What the step would find in its environment, with the paths as they are inside.
        let mut inside = Command::new(program.unwrap_or(PROGRAMS[0]));
        self.environment(&mut inside, env, directory.path());
        for (name, value) in inputs {
            inside.env(super::script::input_variable(name), value.as_str().unwrap_or_default());
        }
        for (name, value) in self.actions.states.get(at).into_iter().flatten() {
            inside.env(format!("STATE_{name}"), value);
        }
        for (name, value) in own_env {
            inside.env(name, value);
        }
        inside.envs(&self.file.services).env("HOME", HOME);
        // The image has a PATH of its own.
        inside.env_remove("PATH");
        let variables: Vec<(String, String)> = inside
            .as_std()
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_str()?.to_owned(), translated(value?, &mounts))))
            .collect();
        let Some(program) = program else {
            let start = Start {
                entrypoint,
                args: given,
                env: variables,
                directory: WORKSPACE.into(),
                stop: directory.path().join("stop"),
            };
            let end = self.run_beside(image, build, start, directory.path()).await;
            return self.heard(at, step, directory.path(), end);
        };
        let name = directory.path().file_name().map(|it| format!("naru-{}", it.to_string_lossy()));
        let name = name.unwrap_or_default().replace('.', "-");
        let mut command = Command::new(program);
        command.args(["run", "--rm", "--name", &name, "--workdir", WORKSPACE]);
        for (from, to) in &mounts {
            command.arg("-v").arg(format!("{}:{to}", from.display()));
        }
        for (name, value) in &variables {
            // By name only: what is in an argument everybody on the machine can read. The program takes the value
            // from its own environment, which must not be confused by it.
            if ["HOME", "DOCKER_HOST", "DOCKER_CONFIG"].contains(&name.as_str()) {
                command.arg("-e").arg(format!("{name}={value}"));
            } else {
                command.args(["-e", name]).env(name, value);
            }
        }
        if let Some(entrypoint) = &entrypoint {
            command.args(["--entrypoint", entrypoint]);
        }
        command.arg(&image).args(given);
        let end = self.execute(command, program).await;
        if self.is_cancelled() || end.exit_code.is_none() {
            // The program may have been killed before it could end what it started.
            let mut command = Command::new(program);
            command
                .args(["rm", "--force", &name])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            let _ = command.status().await;
        }
        self.heard(at, step, directory.path(), end)
    }

    /// Has the daemon start a container beside this pod; its output is that of the client which asks.
    async fn run_beside(
        &mut self,
        image: String,
        build: Option<Build>,
        start: Start,
        directory: &Path,
    ) -> StepEnd {
        let question = Question {
            url: self.file.beside_url.clone(),
            token: self.file.beside_token.clone(),
            stop: start.stop.clone(),
            build,
            request: Request { image, start: directory.join("start.json") },
        };
        let written = private(&question.request.start, &start)
            .and_then(|()| private(&directory.join("question.json"), &question));
        if let Err(error) = written {
            self.log.say(&format!("error: cannot leave word for the container: {error}"));
            return FAILED;
        }
        let words = crate::launch::again();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("__beside").arg(directory.join("question.json"));
        self.execute(command, "naru").await
    }

    /// `/github/workspace` and its like are links in the volume that both containers have.
    fn links(&self, mounts: &[(PathBuf, &str)]) -> std::io::Result<()> {
        let root = self.places.workspace.parent().unwrap_or(Path::new("/"));
        for (from, to) in mounts {
            let (Some(name), Ok(target)) = (Path::new(to).file_name(), from.strip_prefix(root)) else {
                continue;
            };
            match std::os::unix::fs::symlink(target, root.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The arguments and variables that the manifest gives, computed over the inputs.
    fn prepare_container(
        &mut self,
        inputs: &[(String, Value)],
        args: &[String],
        env: &[(String, String)],
    ) -> Result<(Vec<String>, Vec<(String, String)>), String> {
        self.contexts.insert("inputs".into(), Value::Object(inputs.iter().cloned().collect::<Map<_, _>>()));
        let mut given = Vec::new();
        for arg in args {
            given.push(self.text(arg).map_err(|it| format!("`args`: {it}"))?);
        }
        let mut own = Vec::new();
        for (name, template) in env {
            own.push((name.clone(), self.text(template).map_err(|it| format!("`env.{name}`: {it}"))?));
        }
        Ok((given, own))
    }

    async fn build_image(&mut self, program: &str, file: &Path) -> Result<String, StepEnd> {
        let directory = file.parent().unwrap_or(Path::new("/"));
        let hash = Sha256::digest(file.as_os_str().as_encoded_bytes());
        let tag: String = hash.iter().take(8).map(|it| format!("{it:02x}")).collect();
        let image = format!("naru-action:{tag}");
        self.log.say("##[group]Building the action's image");
        let mut command = Command::new(program);
        command.args(["build", "--quiet", "-t", &image, "-f"]).arg(file).arg(directory);
        let end = self.execute(command, program).await;
        self.log.say("##[endgroup]");
        if end.outcome == Outcome::Succeeded { Ok(image) } else { Err(end) }
    }
}

/// A file that nobody else may read.
fn private(path: &Path, content: &impl serde::Serialize) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&serde_json::to_vec(content)?)
}

/// A value with a path outside as the one inside.
fn translated(value: &OsStr, mounts: &[(PathBuf, &str)]) -> String {
    let text = value.to_string_lossy();
    for (from, to) in mounts {
        if let Ok(rest) = Path::new(value).strip_prefix(from) {
            return if rest.as_os_str().is_empty() {
                (*to).to_owned()
            } else {
                format!("{to}/{}", rest.display())
            };
        }
    }
    text.into_owned()
}
