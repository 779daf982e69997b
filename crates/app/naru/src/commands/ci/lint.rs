//! `naru ci lint`: what is wrong with workflows and what they need, before anything runs. A directory is a
//! repository: all of its workflows, and what the whole of them asks for.

use crate::error::{Context, Result};
use naru_plan::{Action, Job};
use naru_plan_dialects::{Dialect, Lowered, Trigger, dialect_of};
use naru_text::Finding;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct LintArgs {
    /// Workflow files, or directories of repositories.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// A label that the server maps to an image besides the usual ones.
    #[arg(long, value_name = "LABEL")]
    runner: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

pub fn run(args: &LintArgs) -> Result<ExitCode> {
    let mut workflows = Vec::new();
    for path in &args.files {
        if path.is_dir() {
            for file in workflows_of(path)? {
                workflows.push(Workflow::read(&file, &args.runner)?);
            }
        } else {
            workflows.push(Workflow::read(path, &args.runner)?);
        }
    }
    let broken = workflows.iter().any(Workflow::is_broken);
    if args.format == Format::Json {
        let files: Vec<Value> = workflows.iter().map(Workflow::json).collect();
        println!("{}", json!({"ok": !broken, "files": files}));
    } else {
        for workflow in &workflows {
            workflow.print();
        }
        if args.files.iter().any(|it| it.is_dir()) {
            report(&workflows);
        }
    }
    Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The workflow files of a repository's directory, in order.
pub fn workflows_of(directory: &Path) -> Result<Vec<PathBuf>> {
    let folder = directory.join(".github/workflows");
    let mut files: Vec<PathBuf> = match std::fs::read_dir(&folder) {
        Ok(entries) => entries.flatten().map(|it| it.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context(|| format!("cannot read {}", folder.display())),
    };
    files.retain(|it| it.is_file() && dialect_of(&repository_path(it)).is_some());
    files.sort();
    Ok(files)
}

/// A workflow file that was read, with every local file that it calls in.
pub struct Workflow {
    shown: String,
    lowered: Lowered,
    /// The manifests of the repository's own actions that it uses, and what is wrong with them.
    manifests: Vec<(String, Vec<Finding>)>,
}

impl Workflow {
    pub fn read(file: &Path, runners: &[String]) -> Result<Self> {
        let source = std::fs::read_to_string(file).context(|| format!("cannot read {}", file.display()))?;
        let shown = file.display().to_string();
        let path = repository_path(file);
        // A file that is somewhere else is read as if it were where workflows are.
        let path = match dialect_of(&path) {
            Some(_) => path,
            None => format!(".github/workflows/{}", file.file_name().unwrap_or_default().to_string_lossy()),
        };
        let Some(dialect) = dialect_of(&path) else {
            let finding = Finding::error(naru_text::Place::new(1, 1), "not a file that naru reads")
                .hint("workflows end in .yml or .yaml");
            let lowered = Lowered { findings: vec![finding], ..Lowered::default() };
            return Ok(Self { shown, lowered, manifests: Vec::new() });
        };
        let usual = naru_runner::labels::of_this_machine().map(str::to_owned);
        let mut trigger =
            Trigger { labels: usual.chain(runners.iter().cloned()).collect(), ..Trigger::default() };
        let root = file.to_string_lossy();
        let root = PathBuf::from(root.strip_suffix(&path).unwrap_or_default());
        let lowered = with_called(dialect, &path, &source, &mut trigger, &root);
        let manifests = manifests(dialect, &lowered, &root);
        Ok(Self { shown, lowered, manifests })
    }

    pub fn is_broken(&self) -> bool {
        let of_manifests = self.manifests.iter().flat_map(|it| &it.1);
        self.lowered.findings.iter().chain(of_manifests).any(Finding::is_error)
    }

    /// What is wrong with it, or that nothing is.
    pub fn print(&self) {
        for finding in &self.lowered.findings {
            println!("{}\n", finding.render(&self.shown));
        }
        for file in &self.lowered.missing {
            println!("note: `{file}` is read when the workflow runs, not here\n  --> {}\n", self.shown);
        }
        for (file, findings) in &self.manifests {
            for finding in findings {
                println!("{}\n", finding.render(file));
            }
        }
        if self.lowered.findings.is_empty() && self.manifests.iter().all(|it| it.1.is_empty()) {
            println!("{}: fine", self.shown);
        }
    }

    fn json(&self) -> Value {
        let survey = &self.lowered.survey;
        let findings: Vec<Value> = self.lowered.findings.iter().map(finding_json).collect();
        let manifests: Vec<Value> = self
            .manifests
            .iter()
            .map(|(file, findings)| {
                json!({"file": file, "findings": findings.iter().map(finding_json).collect::<Vec<_>>()})
            })
            .collect();
        let schedules: Vec<Value> = self
            .lowered
            .schedules
            .iter()
            .map(|it| json!({"cron": it.cron, "timezone": it.timezone}))
            .collect();
        json!({
            "file": self.shown, "name": self.lowered.name, "events": self.lowered.events, "schedules": schedules,
            "findings": findings, "not-read": self.lowered.missing, "manifests": manifests,
            "jobs": survey.plan.iter().flat_map(|it| &it.jobs).map(job_json).collect::<Vec<_>>(),
            "secrets": survey.secrets, "variables": survey.variables, "actions": survey.actions,
            "workflows": survey.workflows, "labels": survey.labels, "environments": survey.environments,
        })
    }
}

/// The file with those of the same repository that it calls in. Files of others are left out: they are
/// fetched when the workflow runs.
fn with_called(dialect: &Dialect, path: &str, source: &str, trigger: &mut Trigger, root: &Path) -> Lowered {
    loop {
        let lowered = (dialect.lower)(path, source, trigger);
        let mut found = false;
        for file in lowered.missing.iter().filter(|it| !it.contains('@')) {
            found = true;
            match std::fs::read_to_string(root.join(file)) {
                Ok(text) => {
                    trigger.files.insert(file.clone(), text);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    trigger.absent.insert(file.clone(), "there is no such file".into());
                }
                Err(error) => {
                    trigger.absent.insert(file.clone(), error.to_string());
                }
            }
        }
        if !found {
            return lowered;
        }
    }
}

/// What is wrong with the manifests of actions of the same repository. One that is not there may come from a step.
fn manifests(dialect: &Dialect, lowered: &Lowered, root: &Path) -> Vec<(String, Vec<Finding>)> {
    let mut all = Vec::new();
    for action in lowered.survey.actions.iter().filter_map(|it| it.strip_prefix("./")) {
        for name in dialect.package_files {
            let file = root.join(action).join(name);
            if let Ok(text) = std::fs::read_to_string(&file) {
                let shown = file.display().to_string();
                let findings = (dialect.package)(&shown, &text).1;
                all.push((shown, findings));
                break;
            }
        }
    }
    all
}

fn finding_json(it: &Finding) -> Value {
    json!({
        "severity": it.severity, "line": it.place.line, "column": it.place.column,
        "message": it.message, "hint": it.hint,
    })
}

fn job_json(job: &Job) -> Value {
    let steps: Vec<Value> = job
        .steps
        .iter()
        .map(|step| {
            let mut it = json!({"name": step.name, "line": step.line});
            if !step.id.is_empty() {
                it["id"] = json!(step.id);
            }
            if let Some(condition) = &step.condition {
                it["if"] = json!(condition);
            }
            match &step.action {
                Action::Run { script, shell, .. } => {
                    it["run"] = json!(script);
                    it["shell"] = json!(shell.join(" "));
                }
                Action::Checkout { .. } => it["uses"] = json!("actions/checkout"),
                Action::Uses { uses, .. } => it["uses"] = json!(uses),
            }
            it
        })
        .collect();
    let mut it = json!({
        "id": job.id, "key": job.key, "name": job.name, "needs": job.needs, "runs-on": job.runs_on,
        "matrix": job.matrix, "steps": steps, "line": job.line,
        // Made when what it needs has ended.
        "deferred": job.deferred.is_some(),
    });
    if let Some(condition) = &job.condition {
        it["if"] = json!(condition);
    }
    if let Some(call) = &job.call {
        it["uses"] = json!(call.uses);
        it["jobs"] = call.jobs.iter().map(job_json).collect();
    }
    it
}

/// What the workflows of a repository ask for, and whether they run here.
fn report(workflows: &[Workflow]) {
    if workflows.is_empty() {
        println!("no workflows: there is nothing in .github/workflows");
        return;
    }
    println!();
    let mut all = (BTreeSet::new(), BTreeSet::new());
    for workflow in workflows {
        let survey = &workflow.lowered.survey;
        let verdict = if workflow.is_broken() { "does not run" } else { "runs" };
        println!("{}  {}: {verdict}", workflow.shown, workflow.lowered.name);
        let mut jobs: Vec<(String, usize)> = Vec::new();
        for job in survey.plan.iter().flat_map(|it| &it.jobs) {
            match jobs.iter_mut().find(|it| it.0 == job.id) {
                Some(it) => it.1 += 1,
                None => jobs.push((job.id.clone(), 1)),
            }
        }
        let jobs: Vec<String> = jobs
            .into_iter()
            .map(|(id, count)| if count > 1 { format!("{id} ({count})") } else { id })
            .collect();
        let set = |it: &BTreeSet<String>| it.iter().cloned().collect::<Vec<_>>();
        for (what, words) in [
            ("events", survey.events.clone()),
            ("jobs", jobs),
            ("runs on", set(&survey.labels)),
            ("actions", set(&survey.actions)),
            ("workflows", set(&survey.workflows)),
            ("secrets", set(&survey.secrets)),
            ("variables", set(&survey.variables)),
            ("environments", set(&survey.environments)),
        ] {
            if !words.is_empty() {
                println!("  {what:<12}  {}", words.join(", "));
            }
        }
        // A file that is only called gets its secrets from whoever calls it.
        if survey.events != ["workflow_call"] {
            all.0.extend(survey.secrets.iter().cloned());
        }
        all.1.extend(survey.actions.iter().filter(|it| !it.starts_with("./")).cloned());
    }
    let broken = workflows.iter().filter(|it| it.is_broken()).count();
    println!("\n{} of {} workflows run here as they are", workflows.len() - broken, workflows.len());
    if !all.0.is_empty() {
        let names: Vec<String> = all.0.into_iter().collect();
        println!("secrets to set (`naru secret <repository> <name>`): {}", names.join(", "));
    }
    if !all.1.is_empty() {
        let names: Vec<String> = all.1.into_iter().collect();
        println!("actions to fetch or to vendor (`naru serve --actions-dir`): {}", names.join(", "));
    }
}

/// The part of a path that a dialect recognises: from `.github` on.
pub fn repository_path(file: &Path) -> String {
    let text = file.display().to_string();
    text.rfind(".github/").map_or(text.clone(), |at| text[at..].to_owned())
}
