//! The workflows of a commit, read for what happened.

use futures::FutureExt;
use naru_objects::{Diagnostic, JobStatus, StepStatus, dns_label};
use naru_plan::{Job, Plan};
use naru_plan_dialects::{Dialect, Schedule, Trigger, dialect_of};
use naru_source::{Source, read_file};
use std::collections::BTreeSet;
use std::path::Path;

/// A plan with the language that it was written in.
pub struct Planned {
    pub plan: Plan,
    pub dialect: &'static Dialect,
    /// What the keys of its jobs begin with in the run, if the run has several workflows.
    pub prefix: String,
    /// Of each of the plan's jobs the key of its status in the run.
    pub keys: Vec<String>,
    /// Why what is left of it is to end, if it is.
    pub cancelled: Option<String>,
}

/// What came of all workflow files of a commit.
#[derive(Default)]
pub struct Reading {
    pub planned: Vec<Planned>,
    pub diagnostics: Vec<Diagnostic>,
    /// Whether a file that asks for the event cannot be honoured. What is wrong with the others is told, too.
    pub refused: bool,
    /// Every file that could be read, applying or not.
    pub files: Vec<ReadFile>,
}

pub struct ReadFile {
    pub path: String,
    pub name: String,
    pub events: Vec<String>,
    /// Workflows after whose runs it runs.
    pub follows: Vec<String>,
    pub schedules: Vec<Schedule>,
}

/// Reads the workflow files of a tree. `owner` is ours: `owner/name/path@ref` is a file of another repository
/// of this server.
pub async fn read(tree: &Path, source: &Source, owner: &str, trigger: &Trigger) -> Reading {
    let mut reading = Reading::default();
    let mut trigger = trigger.clone();
    for path in workflow_files(tree) {
        let Some(dialect) = dialect_of(&path) else { continue };
        let Ok(Some(text)) = read_file(tree, &path) else { continue };
        let fetch = |name: String| async move { called_file(&name, tree, source, owner).await }.boxed();
        let lowered = crate::calls::lower(dialect, &path, &text, &mut trigger, &fetch).await;
        reading.refused |= lowered.applies && lowered.findings.iter().any(|it| it.is_error());
        reading.diagnostics.extend(lowered.findings.iter().map(|it| Diagnostic {
            severity: if it.is_error() { "error" } else { "warning" }.into(),
            file: path.clone(),
            line: it.place.line,
            column: it.place.column,
            message: it.message.clone(),
            hint: it.hint.clone(),
        }));
        reading.files.push(ReadFile {
            path,
            name: lowered.name,
            events: lowered.events,
            follows: lowered.follows,
            schedules: lowered.schedules,
        });
        if let Some(plan) = lowered.plan {
            let planned = Planned { plan, dialect, prefix: String::new(), keys: Vec::new(), cancelled: None };
            reading.planned.push(planned);
        }
    }
    if reading.planned.len() > 1 {
        for planned in &mut reading.planned {
            planned.prefix = format!("{}-", stem(&planned.plan.file));
        }
    }
    let mut taken = BTreeSet::new();
    for planned in &mut reading.planned {
        planned.keys = unique_keys(&planned.prefix, &planned.plan.jobs, &mut taken);
    }
    reading
}

/// A called file's text: of the same commit by its path, or `owner/name/path@ref`.
async fn called_file(name: &str, tree: &Path, source: &Source, owner: &str) -> Result<String, String> {
    let Some((place, git_ref)) = name.split_once('@') else {
        let path = name.trim_start_matches("./");
        return match read_file(tree, path) {
            Ok(Some(text)) => Ok(text),
            Ok(None) => Err("there is no such file".into()),
            Err(error) => Err(error.to_string()),
        };
    };
    let mut parts = place.splitn(3, '/');
    let (Some(its_owner), Some(repository), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("it is not owner/name/path@ref".into());
    };
    let repository = repository_of(its_owner, repository, owner);
    let tree = source.checkout(&repository, git_ref).await.map_err(|error| {
        format!("{error}; push the repository to this server as `{repository}` to call it in")
    })?;
    match read_file(tree.path(), path) {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(format!("`{repository}` has no such file at `{git_ref}`")),
        Err(error) => Err(error.to_string()),
    }
}

/// How a repository that GitHub names `owner/name` is called on this server.
fn repository_of(owner: &str, name: &str, ours: &str) -> String {
    let name = if owner.eq_ignore_ascii_case(ours) { name.to_owned() } else { format!("{owner}-{name}") };
    dns_label(&name, 40)
}

/// The keys of jobs in a run: each is its own, and so are the names of pods and labels that are made of it.
pub fn unique_keys(prefix: &str, jobs: &[Job], taken: &mut BTreeSet<String>) -> Vec<String> {
    jobs.iter()
        .map(|job| {
            let wanted = format!("{prefix}{}", job.key);
            let mut key = wanted.clone();
            let mut number = 2;
            while !taken.insert(dns_label(&key, 63)) {
                key = format!("{wanted}-x{number}");
                number += 1;
            }
            key
        })
        .collect()
}

/// A job that has not begun.
pub fn pending(key: &str, job: &Job, behind: &str) -> JobStatus {
    JobStatus {
        key: key.to_owned(),
        name: job.name.clone(),
        behind: behind.to_owned(),
        steps: job
            .steps
            .iter()
            .map(|step| StepStatus { name: step.name.clone(), ..StepStatus::default() })
            .collect(),
        ..JobStatus::default()
    }
}

/// The workflow files of a tree, in order.
fn workflow_files(tree: &Path) -> Vec<String> {
    let mut files: Vec<String> = std::fs::read_dir(tree.join(".github/workflows"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|it| format!(".github/workflows/{}", it.file_name().to_string_lossy()))
        .collect();
    files.sort();
    files
}

pub fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_files_with_the_same_stem_get_pods_of_their_own() {
        let jobs = ["test", "test", "te_st", "other"].map(|it| Job { key: it.into(), ..Job::default() });
        let keys = unique_keys("ci-", &jobs, &mut BTreeSet::new());
        let labels: BTreeSet<String> = keys.iter().map(|it| dns_label(it, 60)).collect();
        assert_eq!(labels.len(), 4, "{keys:?}");
        assert_eq!((keys[0].as_str(), keys[3].as_str()), ("ci-test", "ci-other"));
    }

    #[test]
    fn repositories_of_others_have_their_owner_in_front() {
        assert_eq!(repository_of("acme", "Shop.js", "Acme"), "shop-js");
        assert_eq!(repository_of("other", "shop", "acme"), "other-shop");
    }
}
