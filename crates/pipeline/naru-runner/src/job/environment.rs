//! What a step finds around it: directories, contexts of expressions, variables of its environment. Names and
//! meaning are those of GitHub's pages "Variables reference" and "Contexts reference".

use super::{JobFile, JobRun};
use crate::protocol::Outcome;
use naru_plan::{EvaluateError, Step};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// Of the `github` context, what is also `GITHUB_<NAME>`.
const GITHUB_VARIABLES: &[&str] = &[
    "action",
    "action_path",
    "action_ref",
    "action_repository",
    "actor",
    "actor_id",
    "api_url",
    "base_ref",
    "event_name",
    "event_path",
    "graphql_url",
    "head_ref",
    "job",
    "ref",
    "ref_name",
    "ref_protected",
    "ref_type",
    "repository",
    "repository_id",
    "repository_owner",
    "repository_owner_id",
    "retention_days",
    "run_attempt",
    "run_id",
    "run_number",
    "server_url",
    "sha",
    "triggering_actor",
    "workflow",
    "workflow_ref",
    "workflow_sha",
    "workspace",
];

/// What expressions within a packaged step may not look at: it gets what it is given.
const NOT_IN_PACKAGES: &[&str] = &["secrets", "needs", "vars"];

/// The directories of a job.
pub struct Places {
    pub workspace: PathBuf,
    /// Beside it, and emptied with it.
    pub temp: PathBuf,
    /// Fetched actions: `<owner>/<repository>/<ref>`.
    pub actions: PathBuf,
    pub tools: PathBuf,
}

impl Places {
    /// A directory of the job's own, whatever its image.
    pub fn own(&self) -> &Path {
        self.workspace.parent().unwrap_or(Path::new("/"))
    }

    pub fn of(file: &JobFile) -> Self {
        let root = file.workspace.parent().unwrap_or(Path::new("/")).to_owned();
        let tools = file.contexts.get("runner").and_then(|it| it["tool_cache"].as_str());
        Self {
            workspace: file.workspace.clone(),
            temp: root.join("_temp"),
            actions: root.join("_actions"),
            tools: tools.map_or_else(|| root.join("_tool"), PathBuf::from),
        }
    }

    pub fn make(&self) -> std::io::Result<()> {
        for it in [&self.workspace, &self.temp, &self.actions, &self.tools] {
            std::fs::create_dir_all(it)?;
        }
        Ok(())
    }
}

/// The steps that belong together: the job's own, or those of one composite.
#[derive(Clone, Default)]
pub struct Level {
    /// What was given to the packaged step; the job's own inputs at the top.
    pub inputs: Value,
    /// The `steps` context.
    pub steps: Map<String, Value>,
    /// The environment of the packaged step.
    pub env: Vec<(String, String)>,
    pub action: ActionFacts,
    /// A step has failed.
    pub failed: bool,
}

/// What `github.action*` says.
#[derive(Clone, Default)]
pub struct ActionFacts {
    pub path: String,
    pub repository: String,
    pub git_ref: String,
}

/// The contexts that do not change while the job runs.
pub fn first_contexts(file: &JobFile, places: &Places) -> Map<String, Value> {
    let mut contexts = file.contexts.clone();
    let token = contexts.get("secrets").map(|it| it["GITHUB_TOKEN"].clone()).unwrap_or_default();
    let debug = ["secrets", "vars"]
        .iter()
        .filter_map(|it| contexts.get(*it))
        .any(|it| it["ACTIONS_STEP_DEBUG"].as_str() == Some("true"));
    if let Value::Object(github) = contexts.entry("github").or_insert_with(|| json!({})) {
        github.insert("workspace".into(), json!(places.workspace));
        github.insert("event_path".into(), json!(event_path(places)));
        if !token.is_null() {
            github.entry("token").or_insert(token);
        }
        for name in ["base_ref", "head_ref"] {
            github.entry(name).or_insert(json!(""));
        }
    }
    if let Value::Object(runner) = contexts.entry("runner").or_insert_with(|| json!({})) {
        runner.insert("os".into(), json!("Linux"));
        runner.insert("arch".into(), json!(crate::contexts::runner_arch()));
        runner.insert("temp".into(), json!(places.temp));
        runner.insert("tool_cache".into(), json!(places.tools));
        runner.insert("workspace".into(), json!(places.workspace.parent()));
        runner.entry("name").or_insert(json!("naru"));
        runner.entry("environment").or_insert(json!("self-hosted"));
        if debug {
            runner.insert("debug".into(), json!("1"));
        }
    }
    if !contexts.get("inputs").is_some_and(Value::is_object) {
        contexts.insert("inputs".into(), json!({}));
    }
    contexts
}

fn event_path(places: &Places) -> PathBuf {
    places.temp.join("_github_workflow/event.json")
}

/// The file that `GITHUB_EVENT_PATH` names.
pub fn write_event(file: &JobFile, places: &Places) -> std::io::Result<()> {
    let event = file.contexts.get("github").map(|it| it["event"].clone()).unwrap_or_default();
    let path = event_path(places);
    std::fs::create_dir_all(path.parent().expect("joined of two parts above"))?;
    let event = if event.is_null() { json!({}) } else { event };
    std::fs::write(path, serde_json::to_vec_pretty(&event)?)
}

pub fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "success",
        Outcome::Failed => "failure",
        Outcome::Skipped => "skipped",
        Outcome::Cancelled => "cancelled",
    }
}

impl JobRun<'_> {
    fn status(&self) -> &'static str {
        if self.stop.is_some() {
            "cancelled"
        } else if self.levels[0].failed {
            "failure"
        } else {
            "success"
        }
    }

    /// How the steps around the one at hand went: what `success()` and `failure()` ask for.
    fn level_status(&self) -> &'static str {
        let level = self.level();
        match self.status() {
            "cancelled" => "cancelled",
            _ if self.levels.len() > 1 => {
                if level.failed {
                    "failure"
                } else {
                    "success"
                }
            }
            status => status,
        }
    }

    /// Brings the contexts to what holds for a step of the current level.
    pub(super) fn enter(&mut self, step_env: &[(String, String)]) {
        let (status, level_status) = (self.status(), self.level_status());
        let level = &self.levels[self.levels.len() - 1];
        let contexts = &mut self.contexts;
        let env: Map<String, Value> = self
            .env
            .iter()
            .chain(&level.env)
            .chain(step_env)
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect();
        contexts.insert("env".into(), Value::Object(env));
        contexts.insert("steps".into(), Value::Object(level.steps.clone()));
        contexts.insert("inputs".into(), level.inputs.clone());
        for name in NOT_IN_PACKAGES {
            if self.levels.len() > 1 {
                contexts.remove(*name);
            } else if !contexts.contains_key(*name)
                && let Some(value) = self.file.contexts.get(*name)
            {
                contexts.insert((*name).into(), value.clone());
            }
        }
        if let Value::Object(job) = contexts.entry("job").or_insert_with(|| json!({})) {
            job.insert("status".into(), json!(status));
        }
        contexts.insert("__status".into(), json!(level_status));
        let (facts, named) = (&level.action, self.action_name.clone());
        if let Some(Value::Object(github)) = contexts.get_mut("github") {
            for (key, value) in [
                ("action_path", &facts.path),
                ("action_repository", &facts.repository),
                ("action_ref", &facts.git_ref),
            ] {
                if value.is_empty() {
                    github.remove(key);
                } else {
                    github.insert(key.into(), json!(value));
                }
            }
            github.insert("action".into(), json!(named));
            github.insert("action_status".into(), json!(level_status));
        }
    }

    /// A text with its expressions replaced, by the contexts of the last [`Self::enter`].
    pub(super) fn text(&mut self, template: &str) -> Result<String, EvaluateError> {
        self.hash(template)?;
        self.with_contexts(|evaluator, contexts| evaluator.text(template, contexts))
    }

    pub(super) fn condition(&mut self, condition: Option<&str>) -> Result<bool, EvaluateError> {
        if let Some(text) = condition {
            self.hash(text)?;
        }
        self.with_contexts(|evaluator, contexts| evaluator.condition(condition, contexts))
    }

    /// Puts the hashes that a text asks for into the contexts.
    fn hash(&mut self, template: &str) -> Result<(), EvaluateError> {
        let wanted = self.with_contexts(|evaluator, contexts| evaluator.file_hashes(template, contexts))?;
        if wanted.is_empty() {
            return Ok(());
        }
        let mut hashes = Map::new();
        for patterns in wanted {
            let key = patterns.join("\n");
            if !hashes.contains_key(&key) {
                let hash = super::hash::of_files(&self.places.workspace, &patterns)
                    .map_err(|it| EvaluateError { message: format!("hashFiles: {it}"), offset: 0 })?;
                hashes.insert(key, json!(hash));
            }
        }
        self.contexts.insert("__hashes".into(), Value::Object(hashes));
        Ok(())
    }

    /// The evaluator wants one value, the job keeps a map: lent out, not copied.
    fn with_contexts<T>(&mut self, ask: impl FnOnce(&dyn naru_plan::Evaluator, &Value) -> T) -> T {
        let contexts = Value::Object(std::mem::take(&mut self.contexts));
        let answer = ask(self.dialect.evaluator, &contexts);
        let Value::Object(contexts) = contexts else { unreachable!("put in as an object above") };
        self.contexts = contexts;
        answer
    }

    pub(super) fn step_env(&mut self, step: &Step) -> Result<Vec<(String, String)>, EvaluateError> {
        step.env.iter().map(|(name, template)| Ok((name.clone(), self.text(template)?))).collect()
    }

    /// Everything that a process of a step finds in its environment. `files` are those through which it
    /// speaks to later steps.
    pub(super) fn environment(&self, command: &mut Command, env: &[(String, String)], files: &Path) {
        let level = self.level();
        // With it this pod asked for its job.
        command.env_remove(crate::controller::WAIT_TOKEN);
        command.env("CI", "true");
        for (name, value) in self.env.iter().chain(&level.env).chain(env) {
            command.env(name, value);
        }
        command.env("GITHUB_ACTIONS", "true");
        let text = |value: &Value| match value {
            Value::String(it) => it.clone(),
            Value::Null => String::new(),
            it => it.to_string(),
        };
        let github = self.contexts.get("github");
        for name in GITHUB_VARIABLES {
            if let Some(value) = github.and_then(|it| it.get(*name)).filter(|it| !it.is_null()) {
                command.env(format!("GITHUB_{}", name.to_ascii_uppercase()), text(value));
            }
        }
        let runner = self.contexts.get("runner").and_then(Value::as_object);
        for (name, value) in runner.into_iter().flatten() {
            command.env(format!("RUNNER_{}", name.to_ascii_uppercase()), text(value));
        }
        for (name, file) in [
            ("GITHUB_OUTPUT", "output"),
            ("GITHUB_ENV", "env"),
            ("GITHUB_PATH", "path"),
            ("GITHUB_STEP_SUMMARY", "summary"),
            ("GITHUB_STATE", "state"),
        ] {
            command.env(name, files.join(file));
        }
        if !self.path.is_empty() || self.has_tools {
            let mut all = self.path.clone();
            all.push(self.search_path(env));
            command.env("PATH", all.join(":"));
        }
    }

    /// PATH without what steps have put in front of it.
    pub(super) fn search_path(&self, env: &[(String, String)]) -> String {
        let given = self.env.iter().chain(&self.level().env).chain(env).rfind(|(name, _)| name == "PATH");
        given.map_or_else(|| self.image_path.clone(), |(_, value)| value.clone())
    }

    /// Whether a step would find a program.
    pub(super) fn has_program(&self, name: &str, env: &[(String, String)]) -> bool {
        let path = self.search_path(env);
        let all = self.path.iter().map(String::as_str).chain(path.split(':'));
        name.contains('/') || all.filter(|it| !it.is_empty()).any(|it| Path::new(it).join(name).is_file())
    }

    /// The Node that actions run on: the image's own, whatever version a step has put in front of PATH for the
    /// project (on GitHub actions have one of their own); that of a step only where the image has none.
    pub(super) fn node_program(&self, env: &[(String, String)]) -> Option<PathBuf> {
        let within = |path: &str| {
            let mut all = path.split(':').filter(|it| !it.is_empty()).map(|it| Path::new(it).join("node"));
            all.find(|it| it.is_file())
        };
        let of_steps = || self.path.iter().find_map(|it| within(it));
        within(&self.image_path).or_else(|| within(&self.search_path(env))).or_else(of_steps)
    }
}
