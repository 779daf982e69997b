//! A workflow file to jobs. Every key is in a table with what we make of it; a key that is in no table is
//! a typo, a key that we do not honour yet stops the file. Either way the place is named.

use super::expression;
use super::matrix::{self, COMBINATIONS_MAX};
use super::pattern::Pattern;
use crate::{Lowered, Trigger};
use naru_plan::{Action, Job, Plan, Step, needs_cycle};
use naru_text::yaml::{self, Data, Node};
use naru_text::{Finding, suggest_hint};
use serde_json::{Map, Value};

/// A key that may stand in a mapping.
struct Key {
    name: &'static str,
    support: Support,
}

enum Support {
    Honoured,
    /// Known to GitHub, not to us yet. The text says what to do instead.
    Refused(&'static str),
}

const fn honoured(name: &'static str) -> Key {
    Key { name, support: Support::Honoured }
}

const fn refused(name: &'static str, instead: &'static str) -> Key {
    Key { name, support: Support::Refused(instead) }
}

const WORKFLOW_KEYS: &[Key] = &[
    honoured("name"),
    honoured("on"),
    honoured("env"),
    honoured("defaults"),
    honoured("jobs"),
    honoured("permissions"),
    refused("run-name", "remove it; runs are named after the commit"),
    refused("concurrency", "remove it; runs of one repository do not wait for each other yet"),
];

const JOB_KEYS: &[Key] = &[
    honoured("name"),
    honoured("runs-on"),
    honoured("needs"),
    honoured("if"),
    honoured("env"),
    honoured("defaults"),
    honoured("steps"),
    honoured("strategy"),
    honoured("outputs"),
    honoured("timeout-minutes"),
    honoured("continue-on-error"),
    honoured("permissions"),
    refused("container", "map the `runs-on` label to an image in naru's configuration instead"),
    refused("services", "start what the tests need in a step"),
    refused("uses", "copy the reusable workflow's jobs here"),
    refused("with", "it belongs to `uses`, which jobs cannot have yet"),
    refused("secrets", "it belongs to `uses`, which jobs cannot have yet"),
    refused("environment", "use secrets of the repository"),
    refused("concurrency", "remove it; jobs do not wait for other runs yet"),
    refused("snapshot", "remove it"),
];

const STEP_KEYS: &[Key] = &[
    honoured("id"),
    honoured("name"),
    honoured("if"),
    honoured("run"),
    honoured("shell"),
    honoured("env"),
    honoured("working-directory"),
    honoured("uses"),
    honoured("with"),
    honoured("continue-on-error"),
    honoured("timeout-minutes"),
];

const STRATEGY_KEYS: &[Key] = &[honoured("matrix"), honoured("fail-fast"), honoured("max-parallel")];
const DEFAULTS_KEYS: &[Key] = &[honoured("run")];
const DEFAULTS_RUN_KEYS: &[Key] = &[honoured("shell"), honoured("working-directory")];

const PUSH_KEYS: &[Key] = &[
    honoured("branches"),
    honoured("branches-ignore"),
    honoured("tags"),
    honoured("tags-ignore"),
    refused("paths", "remove it, or test for the files in a step"),
    refused("paths-ignore", "remove it, or test for the files in a step"),
];

const CHECKOUT_KEYS: &[Key] = &[
    honoured("fetch-depth"),
    honoured("path"),
    refused("ref", "the pushed commit is checked out"),
    refused("repository", "only the pushed repository can be checked out yet"),
    refused("token", "the job's own token is used"),
    refused("submodules", "check submodules out in a step"),
    refused("lfs", "fetch LFS files in a step"),
    honoured("persist-credentials"),
    honoured("clean"),
];

/// The events that GitHub knows and we do not serve yet: such a trigger is no error, it just never fires.
const OTHER_EVENTS: &[&str] = &[
    "pull_request",
    "pull_request_target",
    "workflow_dispatch",
    "schedule",
    "workflow_call",
    "workflow_run",
    "repository_dispatch",
    "release",
    "issues",
    "issue_comment",
    "create",
    "delete",
    "merge_group",
    "check_run",
    "check_suite",
    "deployment",
    "deployment_status",
    "discussion",
    "fork",
    "label",
    "milestone",
    "page_build",
    "public",
    "registry_package",
    "status",
    "watch",
    "branch_protection_rule",
    "gollum",
];

/// GitHub's own limit.
const TIMEOUT_MINUTES_DEFAULT: u64 = 360;

pub fn lower(path: &str, source: &str, trigger: &Trigger) -> Lowered {
    let (node, findings) = yaml::parse(source);
    let mut reader = Reader { findings, trigger };
    let Some(root) = node else { return Lowered { findings: reader.findings, ..Lowered::default() } };
    let plan = reader.workflow(path, &root);
    Lowered { plan, findings: reader.findings, ..Lowered::default() }
}

struct Reader<'a> {
    findings: Vec<Finding>,
    trigger: &'a Trigger,
}

/// What `defaults` says, from the outside in.
#[derive(Clone, Default)]
struct Defaults {
    shell: Option<String>,
    working_directory: Option<String>,
}

impl Reader<'_> {
    fn error(&mut self, node: &Node, message: impl Into<String>) {
        self.findings.push(Finding::error(node.place, message));
    }

    fn error_hint(&mut self, node: &Node, message: impl Into<String>, hint: impl Into<String>) {
        self.findings.push(Finding::error(node.place, message).hint(hint));
    }

    /// Checks a mapping's keys against the table; false if it is no mapping at all.
    fn keys(&mut self, what: &str, node: &Node, table: &[Key]) -> bool {
        let Data::Mapping(entries) = &node.data else {
            self.error(node, format!("{what} must be a mapping, this is {}", node.describe()));
            return false;
        };
        for (key, _) in entries {
            let name = key.as_str().unwrap_or_default();
            match table.iter().find(|it| it.name == name).map(|it| &it.support) {
                Some(Support::Honoured) => {}
                Some(Support::Refused(instead)) => {
                    self.error_hint(key, format!("`{name}` of {what} is not supported yet"), *instead);
                }
                None => {
                    let known: Vec<&str> = table.iter().map(|it| it.name).collect();
                    self.error_hint(
                        key,
                        format!("unknown key `{name}` in {what}"),
                        suggest_hint(name, &known),
                    );
                }
            }
        }
        true
    }

    fn workflow(&mut self, path: &str, root: &Node) -> Option<Plan> {
        if !self.keys("the workflow", root, WORKFLOW_KEYS) {
            return None;
        }
        let Some(on) = root.get("on") else {
            self.error_hint(root, "the workflow has no `on`", "write `on: push`");
            return None;
        };
        let applies = self.on(on);
        if let Some(it) = root.get("permissions") {
            self.permissions(it);
        }
        let env = root.get("env").map(|it| self.env(it)).unwrap_or_default();
        let defaults = root.get("defaults").map(|it| self.defaults(it)).unwrap_or_default();
        let Some(jobs) = root.get("jobs") else {
            self.error(root, "the workflow has no `jobs`");
            return None;
        };
        if jobs.entries().is_empty() {
            self.error(jobs, "`jobs` must name at least one job");
            return None;
        }
        let mut plan = Plan {
            name: root.get("name").and_then(Node::as_str).unwrap_or(path).to_owned(),
            file: path.to_owned(),
            ..Plan::default()
        };
        for (id, job) in jobs.entries() {
            self.job(id, job, &env, &defaults, &mut plan.jobs);
        }
        self.needs(jobs, &plan.jobs);
        applies.then_some(plan)
    }

    /// Whether the trigger is one that the workflow asks for.
    fn on(&mut self, on: &Node) -> bool {
        let mut push = None;
        let events: Vec<(&Node, Option<&Node>)> = match &on.data {
            Data::Scalar { .. } => vec![(on, None)],
            Data::Sequence(items) => items.iter().map(|it| (it, None)).collect(),
            Data::Mapping(entries) => entries.iter().map(|(key, value)| (key, Some(value))).collect(),
        };
        for (name_node, filter) in events {
            let name = name_node.as_str().unwrap_or_default();
            if name == "push" {
                push = Some(filter);
            } else if OTHER_EVENTS.contains(&name) {
                let message =
                    format!("the event `{name}` is not served yet: this workflow does not run for it");
                self.findings.push(Finding::warning(name_node.place, message));
            } else {
                let mut known = vec!["push"];
                known.extend(OTHER_EVENTS);
                let hint = naru_text::suggest(name, known).map(|it| format!("did you mean `{it}`?"));
                self.error_hint(name_node, format!("unknown event `{name}`"), hint.unwrap_or_default());
            }
        }
        let Some(filter) = push else { return false };
        let filter = filter.filter(|it| !it.is_null());
        if let Some(filter) = filter {
            self.keys("`push`", filter, PUSH_KEYS);
        }
        if self.trigger.event != "push" {
            return false;
        }
        let filter = filter.cloned().unwrap_or(Node { place: on.place, data: Data::Mapping(Vec::new()) });
        let has = |key: &str| filter.get(key).is_some();
        let (kind, name, only_other) = if let Some(it) = self.trigger.git_ref.strip_prefix("refs/heads/") {
            ("branches", it, has("tags") || has("tags-ignore"))
        } else if let Some(it) = self.trigger.git_ref.strip_prefix("refs/tags/") {
            ("tags", it, has("branches") || has("branches-ignore"))
        } else {
            return false;
        };
        let ignore = format!("{kind}-ignore");
        match (filter.get(kind), filter.get(&ignore)) {
            (Some(_), Some(it)) => {
                self.error(it, format!("`{kind}` and `{ignore}` cannot stand together"));
                false
            }
            (Some(patterns), None) => self.matches(patterns, name),
            (None, Some(patterns)) => !self.matches(patterns, name),
            // A filter on tags alone means that branches do not trigger, and the other way round.
            (None, None) => !only_other,
        }
    }

    /// Patterns in order; a later `!pattern` takes out again.
    fn matches(&mut self, patterns: &Node, name: &str) -> bool {
        let items = match &patterns.data {
            Data::Sequence(items) => items.as_slice(),
            _ => std::slice::from_ref(patterns),
        };
        let mut matched = false;
        for item in items {
            let text = item.as_str().unwrap_or_default();
            let (negative, pattern) = text.strip_prefix('!').map_or((false, text), |it| (true, it));
            match Pattern::parse(pattern) {
                Ok(it) => {
                    if it.matches(name) {
                        matched = !negative;
                    }
                }
                Err(error) => self.error(item, format!("not a pattern: {error}")),
            }
        }
        matched
    }

    /// A job's token can read its repository and nothing else, so only that may be asked for.
    fn permissions(&mut self, node: &Node) {
        let refuse = |it: &mut Self, at: &Node, what: &str| {
            it.error_hint(
                at,
                format!(
                    "the permission `{what}` cannot be given: a job's token may only read its repository"
                ),
                "write `permissions: read-all`, or take it out",
            );
        };
        match &node.data {
            Data::Scalar { text, .. } if text == "write-all" => refuse(self, node, "write-all"),
            Data::Scalar { .. } => {}
            Data::Mapping(entries) => {
                for (scope, access) in entries {
                    if access.as_str() == Some("write") {
                        let what = format!("{}: write", scope.as_str().unwrap_or_default());
                        refuse(self, access, &what);
                    }
                }
            }
            Data::Sequence(_) => self.error(node, "`permissions` must be a mapping, this is a list"),
        }
    }

    fn env(&mut self, node: &Node) -> Vec<(String, String)> {
        if node.is_null() {
            return Vec::new();
        }
        if !matches!(node.data, Data::Mapping(_)) {
            self.error(node, format!("`env` must be a mapping, this is {}", node.describe()));
        }
        node.entries().iter().map(|(key, value)| (self.text(key), self.text(value))).collect()
    }

    /// A scalar whose expressions parse.
    fn text(&mut self, node: &Node) -> String {
        let Some(text) = node.as_str() else {
            self.error(node, format!("text is expected here, this is {}", node.describe()));
            return String::new();
        };
        if expression::calls_hash_files(text) {
            self.error_hint(node, "`hashFiles` is not supported yet", "compute the hash in a step");
        }
        if let Err(error) = expression::check_text(text) {
            self.error(node, format!("{error} in `{}`", text.lines().next().unwrap_or_default()));
        }
        if node.is_null() { String::new() } else { text.to_owned() }
    }

    fn condition(&mut self, node: &Node) -> Option<String> {
        let text = node.as_str().unwrap_or_default();
        if let Err(error) = expression::check_condition(text) {
            self.error(node, format!("{error} in `{text}`"));
        }
        Some(text.to_owned())
    }

    fn defaults(&mut self, node: &Node) -> Defaults {
        if !self.keys("`defaults`", node, DEFAULTS_KEYS) {
            return Defaults::default();
        }
        let Some(run) = node.get("run") else { return Defaults::default() };
        self.keys("`defaults.run`", run, DEFAULTS_RUN_KEYS);
        Defaults {
            shell: run.get("shell").map(|it| self.text(it)),
            working_directory: run.get("working-directory").map(|it| self.text(it)),
        }
    }

    fn bool_of(&mut self, what: &str, node: &Node) -> bool {
        node.as_bool().unwrap_or_else(|| {
            self.error(node, format!("`{what}` must be true or false"));
            false
        })
    }

    fn number_of(&mut self, what: &str, node: &Node) -> u64 {
        node.as_u64().unwrap_or_else(|| {
            self.error(node, format!("`{what}` must be a whole number"));
            0
        })
    }

    fn job(
        &mut self,
        id_node: &Node,
        node: &Node,
        env: &[(String, String)],
        defaults: &Defaults,
        jobs: &mut Vec<Job>,
    ) {
        let id = id_node.as_str().unwrap_or_default().to_owned();
        let valid = id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if !valid {
            self.error(id_node, format!("`{id}` cannot be a job's id: letters, digits, `-` and `_` only"));
        }
        if !self.keys(&format!("the job `{id}`"), node, JOB_KEYS) {
            return;
        }
        if let Some(it) = node.get("permissions") {
            self.permissions(it);
        }
        let mut env = env.to_vec();
        env.extend(node.get("env").map(|it| self.env(it)).unwrap_or_default());
        let mut defaults = defaults.clone();
        if let Some(it) = node.get("defaults") {
            let own = self.defaults(it);
            defaults.shell = own.shell.or(defaults.shell);
            defaults.working_directory = own.working_directory.or(defaults.working_directory);
        }
        let mut job = Job {
            name: node.get("name").map_or(id.clone(), |it| self.text(it)),
            needs: node.get("needs").map(list_of).unwrap_or_default(),
            condition: node.get("if").and_then(|it| self.condition(it)),
            env,
            timeout_minutes: node
                .get("timeout-minutes")
                .map_or(TIMEOUT_MINUTES_DEFAULT, |it| self.number_of("timeout-minutes", it)),
            continue_on_error: node
                .get("continue-on-error")
                .is_some_and(|it| self.bool_of("continue-on-error", it)),
            fail_fast: true,
            id,
            ..Job::default()
        };
        for (name, value) in node.get("outputs").map(Node::entries).unwrap_or_default() {
            job.outputs.push((name.as_str().unwrap_or_default().to_owned(), self.text(value)));
        }
        match node.get("runs-on") {
            Some(it) => job.runs_on = list_of(it),
            None if node.get("uses").is_none() => {
                self.error_hint(
                    id_node,
                    format!("the job `{}` has no `runs-on`", job.id),
                    "write `runs-on: ubuntu-latest`",
                );
            }
            None => {}
        }
        match node.get("steps") {
            Some(steps) if !steps.items().is_empty() => {
                for step in steps.items() {
                    if let Some(it) = self.step(step, &defaults) {
                        if !it.id.is_empty() && job.steps.iter().any(|other| other.id == it.id) {
                            self.error(step, format!("two steps have the id `{}`", it.id));
                        }
                        job.steps.push(it);
                    }
                }
            }
            Some(it) => self.error(it, "`steps` must be a list with at least one step"),
            None if node.get("uses").is_none() => {
                self.error(id_node, format!("the job `{}` has no `steps`", job.id))
            }
            None => {}
        }
        let combinations = node.get("strategy").map(|it| self.strategy(it, &mut job)).unwrap_or_default();
        let runs_on_place = node.get("runs-on").unwrap_or(id_node);
        if combinations.is_empty() {
            job.key.clone_from(&job.id);
            self.runs_on(runs_on_place, &mut job);
            jobs.push(job);
            return;
        }
        for (index, combination) in combinations.into_iter().enumerate() {
            let values: Vec<String> = combination.values().map(expression::to_text).collect();
            let mut it = Job {
                key: format!("{}-{}", job.id, index + 1),
                // A name that holds expressions says itself what tells the combinations apart.
                name: if job.name.contains("${{") {
                    job.name.clone()
                } else {
                    format!("{} ({})", job.name, values.join(", "))
                },
                matrix: combination,
                ..job.clone()
            };
            self.runs_on(runs_on_place, &mut it);
            jobs.push(it);
        }
    }

    /// `runs-on` and the name may hold matrix values; what comes of it must be a label that this machine serves.
    fn runs_on(&mut self, at: &Node, job: &mut Job) {
        use naru_plan::Evaluator;
        let contexts = serde_json::json!({"matrix": job.matrix});
        for text in job.runs_on.iter_mut().chain([&mut job.name]) {
            match expression::GithubEvaluator.text(text, &contexts) {
                Ok(it) => *text = it,
                Err(error) => {
                    self.findings.push(Finding::error(at.place, error.message));
                    return;
                }
            }
        }
        for label in &job.runs_on {
            if !self.trigger.labels.iter().any(|it| it.eq_ignore_ascii_case(label)) {
                let known = self.trigger.labels.join(", ");
                let finding = Finding::error(at.place, format!("no machine here serves the label `{label}`"))
                    .hint(format!("map it to an image with `--runner {label}=<image>`; known: {known}"));
                if !self.findings.contains(&finding) {
                    self.findings.push(finding);
                }
            }
        }
    }

    fn strategy(&mut self, node: &Node, job: &mut Job) -> Vec<Map<String, Value>> {
        if !self.keys("`strategy`", node, STRATEGY_KEYS) {
            return Vec::new();
        }
        if let Some(it) = node.get("fail-fast") {
            job.fail_fast = self.bool_of("fail-fast", it);
        }
        if let Some(it) = node.get("max-parallel") {
            job.parallel_max = self.number_of("max-parallel", it) as usize;
        }
        let Some(matrix) = node.get("matrix") else { return Vec::new() };
        if !matches!(matrix.data, Data::Mapping(_)) {
            self.error_hint(matrix, "a matrix that is computed is not supported yet", "write the values out");
            return Vec::new();
        }
        let mut axes = Vec::new();
        let (mut include, mut exclude) = (Vec::new(), Vec::new());
        for (key, value) in matrix.entries() {
            let name = key.as_str().unwrap_or_default();
            if !matches!(value.data, Data::Sequence(_)) {
                self.error_hint(
                    value,
                    format!("`{name}` of the matrix must be a list"),
                    "write the values out",
                );
                continue;
            }
            match name {
                "include" => include = self.combinations(value),
                "exclude" => exclude = self.combinations(value),
                _ => axes.push((name.to_owned(), value.items().iter().map(Node::to_json).collect())),
            }
        }
        let all = matrix::spread(&axes, &include, &exclude);
        if all.len() > COMBINATIONS_MAX {
            self.error(matrix, format!("the matrix has more than {COMBINATIONS_MAX} combinations"));
            return Vec::new();
        }
        if all.is_empty() {
            self.error(matrix, "the matrix has no combination");
        }
        all
    }

    fn combinations(&mut self, node: &Node) -> Vec<Map<String, Value>> {
        node.items()
            .iter()
            .filter_map(|it| match it.to_json() {
                Value::Object(map) => Some(map),
                _ => {
                    self.error(it, "a combination must be a mapping");
                    None
                }
            })
            .collect()
    }

    fn step(&mut self, node: &Node, defaults: &Defaults) -> Option<Step> {
        if !self.keys("the step", node, STEP_KEYS) {
            return None;
        }
        let mut step = Step {
            id: node.get("id").map(|it| self.text(it)).unwrap_or_default(),
            condition: node.get("if").and_then(|it| self.condition(it)),
            env: node.get("env").map(|it| self.env(it)).unwrap_or_default(),
            continue_on_error: node
                .get("continue-on-error")
                .is_some_and(|it| self.bool_of("continue-on-error", it)),
            timeout_minutes: node
                .get("timeout-minutes")
                .map_or(0, |it| self.number_of("timeout-minutes", it)),
            line: node.place.line,
            ..Step::default()
        };
        match (node.get("run"), node.get("uses")) {
            (Some(_), Some(uses)) => {
                self.error(uses, "a step cannot have both `run` and `uses`");
                return None;
            }
            (None, None) => {
                self.error_hint(node, "a step needs `run` or `uses`", "write `run: <command>`");
                return None;
            }
            (Some(run), None) => {
                let script = self.text(run);
                self.warn_of_injection(run, &script);
                step.name = first_line("Run ", &script);
                let shell_node = node.get("shell");
                let shell = shell_node.map(|it| self.text(it)).or(defaults.shell.clone());
                step.action = self.shell(shell_node.unwrap_or(run), shell.as_deref(), script);
                step.working_directory = node
                    .get("working-directory")
                    .map(|it| self.text(it))
                    .or(defaults.working_directory.clone())
                    .unwrap_or_default();
            }
            (None, Some(uses)) => {
                let action = self.text(uses);
                step.name = format!("Run {action}");
                if let Some(it) = node.get("shell").or(node.get("working-directory")) {
                    self.error(it, "this key belongs to `run`");
                }
                step.action = self.uses(uses, &action, node.get("with"))?;
            }
        }
        if let Some(it) = node.get("name") {
            step.name = self.text(it);
        }
        Some(step)
    }

    /// The exact command lines are those of GitHub's page on `jobs.<job_id>.steps[*].shell`.
    fn shell(&mut self, at: &Node, shell: Option<&str>, script: String) -> Action {
        let words = |it: &str| it.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (line, extension) = match shell {
            // Without a word about it: plain `bash -e`, no pipefail.
            None => ("bash -e {0}", "sh"),
            Some("bash") => ("bash --noprofile --norc -eo pipefail {0}", "sh"),
            Some("sh") => ("sh -e {0}", "sh"),
            Some("python") => ("python3 {0}", "py"),
            Some(custom) if custom.contains("{0}") => (custom, "sh"),
            Some(other) => {
                let hint = match other {
                    "pwsh" | "powershell" | "cmd" => "write the script for `bash`, `sh` or `python`",
                    _ => "use bash, sh, python, or a command line with `{0}` for the script's file",
                };
                self.error_hint(at, format!("the shell `{other}` is not supported"), hint);
                ("", "")
            }
        };
        Action::Run { script, shell: words(line), extension: extension.to_owned() }
    }

    fn uses(&mut self, at: &Node, action: &str, with: Option<&Node>) -> Option<Action> {
        let name = action.split('@').next().unwrap_or_default();
        if !name.eq_ignore_ascii_case("actions/checkout") {
            self.error_hint(
                at,
                format!(
                    "the action `{name}` cannot run yet; `actions/checkout` is the only one that is built in"
                ),
                "do the same with `run:`; every tool that is installed on the runner's image can be used",
            );
            return None;
        }
        let mut depth = 1;
        let mut path = String::new();
        if let Some(with) = with.filter(|it| self.keys("`with` of actions/checkout", it, CHECKOUT_KEYS)) {
            if let Some(it) = with.get("fetch-depth") {
                depth = self.number_of("fetch-depth", it) as u32;
            }
            if let Some(it) = with.get("path") {
                path = self.text(it);
                if path.starts_with('/') || path.split('/').any(|part| part == "..") {
                    self.error(it, "`path` must stay within the workspace");
                }
            }
        }
        Some(Action::Checkout { path, depth })
    }

    /// Text that a stranger wrote (a commit message, a branch name) must not become part of a script.
    fn warn_of_injection(&mut self, at: &Node, script: &str) {
        const UNTRUSTED: &[&str] =
            &["github.event.head_commit.message", "github.head_ref", "github.event.commits"];
        if let Some(it) = UNTRUSTED.iter().find(|it| script.contains(**it)) {
            self.findings.push(
                Finding::warning(
                    at.place,
                    format!("`{it}` is text from outside and becomes part of a script"),
                )
                .hint("pass it through `env:` and use the variable in quotes"),
            );
        }
    }

    /// `needs` must name jobs and must not go in circles.
    fn needs(&mut self, jobs_node: &Node, jobs: &[Job]) {
        let ids: Vec<&str> = jobs.iter().map(|it| it.id.as_str()).collect();
        for (id, job) in jobs_node.entries() {
            let Some(needs) = job.get("needs") else { continue };
            let items = if needs.items().is_empty() { std::slice::from_ref(needs) } else { needs.items() };
            for need in items {
                let name = need.as_str().unwrap_or_default();
                if !ids.contains(&name) {
                    let id = id.as_str().unwrap_or_default();
                    let message = format!("job `{id}` needs `{name}`, which does not exist");
                    self.error_hint(need, message, suggest_hint(name, &ids));
                }
            }
        }
        if let Some(circle) = needs_cycle(jobs) {
            let place = jobs_node
                .entries()
                .iter()
                .find(|(id, _)| id.as_str() == circle.first().map(String::as_str))
                .and_then(|(_, job)| job.get("needs"))
                .unwrap_or(jobs_node);
            let way = circle.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(" needs ");
            self.error_hint(
                place,
                format!("the jobs wait for each other: {way}"),
                "take one of the `needs` out",
            );
        }
    }
}

fn first_line(prefix: &str, script: &str) -> String {
    let line = script.trim_start().lines().next().unwrap_or_default();
    format!("{prefix}{}", line.chars().take(80).collect::<String>())
}

/// A scalar or a list of scalars.
fn list_of(node: &Node) -> Vec<String> {
    match &node.data {
        Data::Sequence(items) => items.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect(),
        _ => node.as_str().map(str::to_owned).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(git_ref: &str) -> Trigger {
        Trigger {
            event: "push".into(),
            git_ref: git_ref.into(),
            labels: vec!["ubuntu-latest".into()],
            ..Trigger::default()
        }
    }

    fn findings(source: &str) -> String {
        let lowered = lower("ci.yml", source, &trigger("refs/heads/main"));
        lowered.findings.iter().map(|it| it.render("ci.yml")).collect::<Vec<_>>().join("\n")
    }

    fn job(keys: &str) -> String {
        format!("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n{keys}    steps:\n      - run: 'true'\n")
    }

    #[test]
    fn a_plain_workflow_becomes_a_plan() {
        let source = "on: push\nenv: {A: 1}\njobs:\n  build:\n    runs-on: ubuntu-latest\n    strategy:\n      matrix: {v: [1, 2]}\n    steps:\n      - uses: actions/checkout@v4\n      - run: make\n  deploy:\n    needs: build\n    runs-on: ubuntu-latest\n    defaults: {run: {shell: bash}}\n    steps: [{run: ./deploy, id: d}]\n";
        let lowered = lower("ci.yml", source, &trigger("refs/heads/main"));
        assert!(lowered.findings.is_empty(), "{:?}", lowered.findings);
        let plan = lowered.plan.unwrap();
        let keys: Vec<&str> = plan.jobs.iter().map(|it| it.key.as_str()).collect();
        assert_eq!(keys, ["build-1", "build-2", "deploy"]);
        assert_eq!(plan.jobs[0].name, "build (1)");
        assert_eq!(plan.jobs[0].steps[0].action, Action::Checkout { path: String::new(), depth: 1 });
        let Action::Run { shell, .. } = &plan.jobs[0].steps[1].action else { panic!() };
        assert_eq!(shell.join(" "), "bash -e {0}");
        let Action::Run { shell, .. } = &plan.jobs[2].steps[0].action else { panic!() };
        assert_eq!(shell.join(" "), "bash --noprofile --norc -eo pipefail {0}");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_with_its_place() {
        let cases = [
            (job("    container: rust:1\n"), "`container` of the job `a` is not supported yet\n  --> ci.yml:5:5"),
            (job("    stepz: 1\n"), "unknown key `stepz` in the job `a`\n  --> ci.yml:5:5\nhint: did you mean `steps`?"),
            (job("    needs: b\n"), "job `a` needs `b`, which does not exist\n  --> ci.yml:5:12"),
            (job("    if: ${{ github. }}\n"), "ci.yml:5:9"),
            (job("    permissions: {contents: write}\n"), "`contents: write` cannot be given"),
            ("on: push\njobs:\n  a:\n    runs-on: windows-latest\n    steps: [{run: x}]\n".into(), "no machine here serves the label `windows-latest`\n  --> ci.yml:4:14"),
            ("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps: [{uses: actions/cache@v4}]\n".into(), "the action `actions/cache` cannot run yet"),
            ("on: push\njobs:\n  a: {runs-on: ubuntu-latest, needs: b, steps: [{run: x}]}\n  b: {runs-on: ubuntu-latest, needs: a, steps: [{run: x}]}\n".into(), "the jobs wait for each other: `a` needs `b` needs `a`"),
            ("on: psuh\njobs: {}\n".into(), "did you mean `push`?"),
        ];
        for (source, want) in cases {
            let got = findings(&source);
            assert!(got.contains(want), "want {want}\ngot {got}");
        }
    }

    #[test]
    fn filters_on_branches_and_tags_decide_as_on_github() {
        let applies = |filter: &str, git_ref: &str| {
            let source = format!(
                "on:\n  push:\n    {filter}\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps: [{{run: x}}]\n"
            );
            let lowered = lower("ci.yml", &source, &trigger(git_ref));
            assert!(lowered.findings.is_empty(), "{:?}", lowered.findings);
            lowered.plan.is_some()
        };
        let cases = [
            ("branches: [main]", "refs/heads/main", true),
            ("branches: [main]", "refs/heads/dev", false),
            ("branches: ['rel/**', '!rel/old']", "refs/heads/rel/1/2", true),
            ("branches: ['rel/**', '!rel/old']", "refs/heads/rel/old", false),
            ("branches: ['rel/*']", "refs/heads/rel/1/2", false),
            ("branches-ignore: [main]", "refs/heads/dev", true),
            ("branches: [main]", "refs/tags/v1", false),
            ("tags: ['v*']", "refs/tags/v1", true),
            ("tags: ['v*']", "refs/heads/main", false),
        ];
        for (filter, git_ref, want) in cases {
            assert_eq!(applies(filter, git_ref), want, "{filter} {git_ref}");
        }
    }
}
