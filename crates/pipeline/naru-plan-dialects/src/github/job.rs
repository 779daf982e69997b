//! One job of the file to the form. What a job says before its steps run and may be computed (its matrix, its
//! labels, its name, ...) is kept as it stands and looked at by [`super::settle`]: at once if everything that
//! it asks for is known, or when the jobs that it needs have ended.

use super::call;
use super::late::Late;
use super::names::Names;
use super::place::{self, Allowed};
use super::reader::{Key, Reader, has_expression, key, refused};
use super::settle;
use super::step::{Defaults, check_id, has_steps};
use naru_plan::Job;
use naru_text::yaml::Node;
use std::collections::BTreeMap;

/// GitHub's own limits.
const TIMEOUT_MINUTES_DEFAULT: u64 = 360;
const CANCEL_TIMEOUT_MINUTES_DEFAULT: u64 = 5;

const JOB_KEYS: &[Key] = &[
    key("name"),
    key("runs-on"),
    key("needs"),
    key("if"),
    key("env"),
    key("defaults"),
    key("steps"),
    key("strategy"),
    key("outputs"),
    key("timeout-minutes"),
    key("cancel-timeout-minutes"),
    key("continue-on-error"),
    key("permissions"),
    key("container"),
    key("services"),
    key("environment"),
    key("concurrency"),
    key("uses"),
    key("with"),
    key("secrets"),
    refused("snapshot", "build the image with a Dockerfile and map a label to it with `--runner`"),
];

const CALL_KEYS: &[Key] = &[
    key("name"),
    key("uses"),
    key("with"),
    key("secrets"),
    key("needs"),
    key("if"),
    key("permissions"),
    key("concurrency"),
    key("strategy"),
];

const DEFAULTS_KEYS: &[Key] = &[key("run")];
const DEFAULTS_RUN_KEYS: &[Key] = &[key("shell"), key("working-directory")];

/// What is computed before a job starts, in the order in which it is.
const LATE_KEYS: &[(&str, &Allowed)] = &[
    ("strategy", &place::STRATEGY),
    ("name", &place::JOB),
    ("runs-on", &place::JOB),
    ("timeout-minutes", &place::JOB),
    ("cancel-timeout-minutes", &place::JOB),
    ("continue-on-error", &place::JOB),
    ("concurrency", &place::JOB),
    ("environment", &place::JOB),
    ("container", &place::JOB),
    ("services", &place::JOB),
];

/// Scopes of a token's permissions, and what each can be given besides `none`.
const SCOPES: &[(&str, &[&str])] = &[
    ("actions", READ_WRITE),
    ("artifact-metadata", READ_WRITE),
    ("attestations", READ_WRITE),
    ("checks", READ_WRITE),
    ("code-quality", READ_WRITE),
    ("contents", READ_WRITE),
    ("copilot-requests", &["write"]),
    ("deployments", READ_WRITE),
    ("discussions", READ_WRITE),
    ("drives", READ_WRITE),
    ("id-token", &["write"]),
    ("issues", READ_WRITE),
    ("models", &["read"]),
    ("packages", READ_WRITE),
    ("pages", READ_WRITE),
    ("pull-requests", READ_WRITE),
    ("repository-projects", READ_WRITE),
    ("security-events", READ_WRITE),
    ("statuses", READ_WRITE),
    ("vulnerability-alerts", &["read"]),
];
/// From the lowest up.
const READ_WRITE: &[&str] = &["read", "write"];

/// What a job takes over from the workflow.
#[derive(Clone, Default)]
pub struct Outer {
    pub env: Vec<(String, String)>,
    pub defaults: Defaults,
    pub permissions: Option<BTreeMap<String, String>>,
    pub inputs: serde_json::Map<String, serde_json::Value>,
}

impl Reader<'_> {
    pub fn defaults(&mut self, node: &Node, allowed: &Allowed) -> Defaults {
        if node.is_null() || !self.keys("`defaults`", node, DEFAULTS_KEYS) {
            return Defaults::default();
        }
        let Some(run) = node.get("run").filter(|it| !it.is_null()) else { return Defaults::default() };
        self.keys("`defaults.run`", run, DEFAULTS_RUN_KEYS);
        Defaults {
            shell: run.get("shell").map(|it| self.text(it, allowed)),
            working_directory: run.get("working-directory").map(|it| self.text(it, allowed)),
        }
    }

    /// What a token may do, by scope; what is not named is not given.
    pub fn permissions(&mut self, node: &Node) -> Option<BTreeMap<String, String>> {
        if let Some(word) = node.as_str() {
            // The highest level that each scope has within what the word says.
            let all = |wanted: &[&str]| {
                SCOPES
                    .iter()
                    .filter_map(|(scope, levels)| {
                        let level = levels.iter().rev().find(|it| wanted.contains(it))?;
                        Some(((*scope).to_owned(), (*level).to_owned()))
                    })
                    .collect()
            };
            return match word {
                "read-all" => Some(all(&["read"])),
                "write-all" => Some(all(READ_WRITE)),
                _ => {
                    let hint = "write read-all, write-all, or a mapping such as `contents: read`";
                    self.error_hint(node, format!("there are no permissions `{word}`"), hint);
                    None
                }
            };
        }
        if !self.mapping("`permissions`", node) {
            return None;
        }
        let mut given = BTreeMap::new();
        for (scope_node, level_node) in node.entries() {
            let scope = scope_node.as_str().unwrap_or_default();
            let Some((_, levels)) = SCOPES.iter().find(|it| it.0 == scope) else {
                let known: Vec<&str> = SCOPES.iter().map(|it| it.0).collect();
                self.error_hint(
                    scope_node,
                    format!("there is no permission `{scope}`"),
                    naru_text::suggest_hint(scope, &known),
                );
                continue;
            };
            match level_node.as_str().unwrap_or_default() {
                "none" => {}
                level if levels.contains(&level) => {
                    given.insert(scope.to_owned(), level.to_owned());
                }
                level => {
                    let hint = format!("known here: {}, none", levels.join(", "));
                    self.error_hint(
                        level_node,
                        format!("the permission `{scope}` cannot be `{level}`"),
                        hint,
                    );
                }
            }
        }
        Some(given)
    }

    pub fn job(&mut self, id_node: &Node, node: &Node, outer: &Outer, jobs: &mut Vec<Job>) {
        let id = id_node.as_str().unwrap_or_default().to_owned();
        if let Err(why) = check_id(&id) {
            self.error(id_node, format!("`{id}` cannot be a job's id: {why}"));
        }
        let calls = node.get("uses").is_some();
        let what = format!("the job `{id}`");
        if calls {
            let own: Vec<&str> = CALL_KEYS.iter().map(|it| it.name).collect();
            for (key, _) in node.entries() {
                let name = key.as_str().unwrap_or_default();
                if !own.contains(&name) && JOB_KEYS.iter().any(|it| it.name == name) {
                    let hint = format!("a job that calls a workflow has only: {}", own.join(", "));
                    self.error_hint(key, format!("`{name}` cannot stand beside `uses` in {what}"), hint);
                }
            }
        }
        if !self.keys(&what, node, JOB_KEYS) {
            return;
        }
        let needs: Vec<String> = node
            .get("needs")
            .map(|it| self.words("`needs`", it).into_iter().map(|it| it.0).collect())
            .unwrap_or_default();
        self.names.needs = Some(needs.clone());
        self.names.matrix = super::names::of_matrix(node.get("strategy"));
        self.names.steps = None;
        let mut env = outer.env.clone();
        env.extend(node.get("env").map(|it| self.env(it, &place::JOB_ENV)).unwrap_or_default());
        let mut defaults = outer.defaults.clone();
        if let Some(it) = node.get("defaults") {
            let own = self.defaults(it, &place::JOB_DEFAULTS);
            defaults.shell = own.shell.or(defaults.shell);
            defaults.working_directory = own.working_directory.or(defaults.working_directory);
        }
        let permissions = match node.get("permissions") {
            Some(it) => self.permissions(it),
            None => outer.permissions.clone(),
        };
        let mut job = Job {
            name: id.clone(),
            key: id.clone(),
            needs,
            condition: node.get("if").and_then(|it| self.condition(it, &place::JOB_IF)),
            env,
            timeout_minutes: TIMEOUT_MINUTES_DEFAULT,
            cancel_timeout_minutes: CANCEL_TIMEOUT_MINUTES_DEFAULT,
            fail_fast: true,
            inputs: outer.inputs.clone(),
            permissions,
            line: id_node.place.line,
            id,
            ..Job::default()
        };
        let mut called_concurrency = None;
        if calls {
            if let Some((call, concurrency)) = self.call(&job, node) {
                job.call = Some(call);
                called_concurrency = concurrency;
            }
        } else {
            for key in ["with", "secrets"] {
                if let Some((it, _)) = node.entries().iter().find(|(it, _)| it.as_str() == Some(key)) {
                    self.error_hint(
                        it,
                        format!("`{key}` belongs to `uses`"),
                        "a step has `with`, a job only beside `uses`",
                    );
                }
            }
            if node.get("runs-on").is_none() {
                let message = format!("the job `{}` has no `runs-on`", job.id);
                self.error_hint(id_node, message, "write `runs-on: ubuntu-latest`");
            }
            match node.get("steps") {
                Some(steps) if has_steps(steps) => job.steps = self.steps(steps, &defaults),
                Some(it) => self.error(it, "`steps` must be a list with at least one step"),
                None => self.error(id_node, format!("the job `{}` has no `steps`", job.id)),
            }
        }
        if let Some(outputs) = node.get("outputs") {
            job.outputs = self.texts("`outputs`", outputs, &place::JOB_OUTPUT);
        }
        let mut late = Late {
            place: id_node.place,
            labels: self.trigger.labels.clone(),
            nodes: Vec::new(),
            prefix: String::new(),
        };
        for (name, allowed) in LATE_KEYS {
            let Some(value) = node.get(name) else { continue };
            self.check_late(name, value, allowed);
            late.nodes.push(((*name).to_owned(), value.clone()));
        }
        if let Some(it) = called_concurrency.filter(|_| node.get("concurrency").is_none()) {
            late.nodes.push(("concurrency".into(), it));
        }
        if let Some(shell) = node
            .get("defaults")
            .and_then(|it| it.get("run"))
            .and_then(|it| it.get("shell"))
            .filter(|it| has_expression(it))
        {
            late.nodes.push((settle::SHELL.to_owned(), shell.clone()));
        }
        self.names =
            Names { inputs: self.names.inputs.take(), jobs: self.names.jobs.take(), ..Names::default() };
        self.settle(job, late, jobs);
    }

    /// The jobs behind one of the file, now or later.
    fn settle(&mut self, mut job: Job, late: Late, jobs: &mut Vec<Job>) {
        let broken = self.findings.iter().any(naru_text::Finding::is_error);
        if !late.is_ready(&self.known) {
            // What can be said without a value is said now.
            late.check_static(&mut self.findings);
            if let Some(name) = late.node("name").and_then(Node::as_str).filter(|it| !it.contains("${{")) {
                name.clone_into(&mut job.name);
            }
            late.survey(&mut self.survey);
            job.deferred = Some(late.to_json());
            jobs.push(job);
            return;
        }
        match settle::settle(&job, &late, &self.known) {
            Ok((settled, warnings)) => {
                for warning in warnings {
                    self.warn(warning.place, warning.message, warning.hint);
                }
                for it in &settled {
                    self.survey.labels.extend(it.runs_on.iter().cloned());
                    self.survey.environments.extend(it.environment.iter().map(|it| it.name.clone()));
                }
                jobs.extend(settled);
            }
            Err(findings) => {
                for finding in findings {
                    // An expression that could not be read has been told with a better place.
                    let told = broken && finding.message.starts_with("expression: ");
                    if !told && !self.findings.contains(&finding) {
                        self.findings.push(finding);
                    }
                }
                // So that `needs` of others still find it.
                jobs.push(job);
            }
        }
    }

    fn check_late(&mut self, name: &str, value: &Node, allowed: &Allowed) {
        match name {
            "environment" if !value.entries().is_empty() => {
                for (key, it) in value.entries() {
                    let url = key.as_str() == Some("url");
                    self.check_all(it, if url { &place::ENVIRONMENT_URL } else { allowed });
                }
            }
            "container" => self.check_container(value),
            "services" => match value.entries() {
                [] => self.check_all(value, allowed),
                entries => entries.iter().for_each(|(_, it)| self.check_container(it)),
            },
            _ => self.check_all(value, allowed),
        }
    }

    fn check_container(&mut self, node: &Node) {
        if node.entries().is_empty() {
            self.check_all(node, &place::JOB);
        }
        for (key, value) in node.entries() {
            let allowed = match key.as_str() {
                Some("env") => &place::JOB_OUTPUT,
                Some("credentials") => &place::CREDENTIALS,
                _ => &place::JOB,
            };
            self.check_all(value, allowed);
        }
    }

    fn call(&mut self, job: &Job, node: &Node) -> Option<(naru_plan::Call, Option<Node>)> {
        let uses = node.get("uses")?;
        let name = self.scalar("`uses`", uses)?;
        call::read(self, job, node, uses, &name)
    }
}
