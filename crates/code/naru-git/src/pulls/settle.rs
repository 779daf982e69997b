//! What becomes of pull requests: closed when their ref is deleted, merged when their branch has what they want,
//! reopened when somebody pushes again. People say so with git alone, or with the functions here.

use super::book::{Book, Entry, State};
use crate::record::{PEOPLE, RecordError, git_output, lock};
use crate::{directory, git};
use naru_objects::RunSpec;
use serde_json::json;
use std::path::Path;

/// A pull request that somebody asks about.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub number: u64,
    pub entry: Entry,
}

/// How a branch takes what is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A commit with both as its parents.
    Merge,
    /// One commit with all the changes.
    Squash,
}

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("there is no pull request {number} of {repository}")]
    Unknown { repository: String, number: u64 },
    #[error("the pull request {number} is {state}")]
    State { number: u64, state: &'static str },
    #[error("the pull request {number} conflicts with {base}: merge {base} into it, and push it again")]
    Conflict { number: u64, base: String },
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// All pull requests of a repository, the oldest first.
pub fn list(root: &Path, repository: &str) -> Result<Vec<Listed>, RecordError> {
    let book = Book::open(&directory(root, repository))?;
    Ok(book.entries.into_iter().map(|(number, entry)| Listed { number, entry }).collect())
}

fn in_state(
    book: &Book,
    repository: &str,
    number: u64,
    wanted: &[State],
) -> Result<(Entry, String), PullError> {
    let unknown = || PullError::Unknown { repository: repository.to_owned(), number };
    let entry = book.entries.get(&number).ok_or_else(unknown)?;
    let state = match entry.state {
        State::Open => "open",
        State::Closed => "closed",
        State::Merged => "merged",
    };
    if !wanted.contains(&entry.state) {
        return Err(PullError::State { number, state });
    }
    Ok((entry.clone(), book.ref_of(number).ok_or_else(unknown)?.to_owned()))
}

/// Moves a ref as a push would: with a line in its log.
async fn move_ref(directory: &Path, name: &str, to: &str, from: &str, why: &str) -> Result<(), RecordError> {
    let mut command = git();
    command
        .arg("-C")
        .arg(directory)
        .env("GIT_COMMITTER_NAME", PEOPLE)
        .env("GIT_COMMITTER_EMAIL", "naru@localhost");
    command.args(["update-ref", "--create-reflog", "-m", why, name, to, from]);
    let fail = |message: String| RecordError::Git { what: name.to_owned(), message };
    let output = command.output().await.map_err(|it| fail(it.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

const ZERO: &str = "0000000000000000000000000000000000000000";

/// Deletes the ref by which it was asked for. [`crate::record()`] tells of it.
pub async fn close(root: &Path, repository: &str, number: u64) -> Result<(), PullError> {
    let directory = directory(root, repository);
    let _lock = lock(&directory).await?;
    let (_, git_ref) = in_state(&Book::open(&directory)?, repository, number, &[State::Open])?;
    git_output(&directory, &["update-ref", "-d", &git_ref], &git_ref).await?;
    Ok(())
}

/// Makes that ref anew, where it was.
pub async fn reopen(root: &Path, repository: &str, number: u64) -> Result<(), PullError> {
    let directory = directory(root, repository);
    let _lock = lock(&directory).await?;
    let (entry, git_ref) = in_state(&Book::open(&directory)?, repository, number, &[State::Closed])?;
    move_ref(&directory, &git_ref, &entry.head, ZERO, "reopened").await?;
    Ok(())
}

/// Brings it into its branch; the commit that the branch is at then.
pub async fn merge(root: &Path, repository: &str, number: u64, method: Method) -> Result<String, PullError> {
    let directory = directory(root, repository);
    let _lock = lock(&directory).await?;
    let mut book = Book::open(&directory)?;
    let (mut entry, _) = in_state(&book, repository, number, &[State::Open])?;
    let branch = format!("refs/heads/{}", entry.base);
    let base = git_output(&directory, &["rev-parse", &branch], &branch).await?.trim().to_owned();
    let merged = crate::mirror::merge_commit(&directory, &base, &entry.head).await;
    let merged = merged.map_err(|it| RecordError::Git { what: branch.clone(), message: it.to_string() })?;
    let Some(merged) = merged else { return Err(PullError::Conflict { number, base: entry.base }) };
    let (parents, message) = match method {
        Method::Merge => (
            vec![base.as_str(), &entry.head],
            format!("Merge pull request #{number} from {}\n\n{}", entry.topic, entry.title),
        ),
        Method::Squash => (vec![base.as_str()], format!("{} (#{number})", entry.title)),
    };
    let mut command = git();
    command.arg("-C").arg(&directory).args(["commit-tree", &format!("{merged}^{{tree}}"), "-m", &message]);
    for parent in parents {
        command.args(["-p", parent]);
    }
    for who in ["AUTHOR", "COMMITTER"] {
        let name = if who == "AUTHOR" && method == Method::Squash { entry.author.as_str() } else { PEOPLE };
        command.env(format!("GIT_{who}_NAME"), name).env(format!("GIT_{who}_EMAIL"), "naru@localhost");
    }
    let fail = |message: String| RecordError::Git { what: format!("the merge of {number}"), message };
    let output = command.output().await.map_err(|it| fail(it.to_string()))?;
    if !output.status.success() {
        return Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()).into());
    }
    let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // Noted before the branch moves: whoever looks in between finds it merged once the branch has this commit.
    entry.merged_by = Some(commit.clone());
    book.put(&directory, number, entry)?;
    move_ref(&directory, &branch, &commit, &base, &format!("merge of pull request {number}")).await?;
    Ok(commit)
}

/// A pull request that is open in the book and not any more: its end, and the event that tells of it.
pub(crate) struct Ended {
    pub number: u64,
    pub entry: Entry,
    pub git_ref: String,
    pub spec: RunSpec,
}

/// Which of the open ones have ended.
pub(crate) async fn ended(
    directory: &Path,
    repository: &str,
    book: &Book,
) -> Result<Vec<Ended>, RecordError> {
    let mut all = Vec::new();
    for (number, entry) in book.entries.iter().filter(|(_, it)| it.state == State::Open) {
        let Some(git_ref) = book.ref_of(*number) else { continue };
        let is_there =
            git_output(directory, &["rev-parse", "--verify", "--quiet", git_ref], git_ref).await.is_ok();
        let branch = format!("refs/heads/{}", entry.base);
        let base = git_output(directory, &["rev-parse", "--verify", "--quiet", &branch], &branch).await;
        let base = base.map(|it| it.trim().to_owned()).unwrap_or_default();
        let merged = match base.is_empty() {
            true => false,
            false => is_merged(directory, entry, &base).await,
        };
        if is_there && !merged {
            continue;
        }
        let mut entry = entry.clone();
        entry.state = if merged { State::Merged } else { State::Closed };
        entry.closings += 1;
        let spec = spec_of(directory, repository, *number, &entry, &base).await?;
        all.push(Ended { number: *number, entry, git_ref: git_ref.to_owned(), spec });
    }
    Ok(all)
}

async fn is_merged(directory: &Path, entry: &Entry, base: &str) -> bool {
    let has = async |commit: &str| {
        git_output(directory, &["merge-base", "--is-ancestor", commit, base], commit).await.is_ok()
    };
    match &entry.merged_by {
        Some(commit) if has(commit).await => true,
        _ => entry.is_ahead && has(&entry.head).await,
    }
}

/// As GitHub tells of it: what was merged runs on the branch that it went into.
async fn spec_of(
    directory: &Path,
    repository: &str,
    number: u64,
    entry: &Entry,
    base: &str,
) -> Result<RunSpec, RecordError> {
    let merged = entry.state == State::Merged;
    let pull = format!("refs/pull/{number}/merge");
    let (git_ref, sha) = match merged {
        true => (format!("refs/heads/{}", entry.base), base.to_owned()),
        false => {
            let sha = git_output(directory, &["rev-parse", &pull], &pull).await?.trim().to_owned();
            (pull, sha)
        }
    };
    Ok(RunSpec {
        repository: repository.to_owned(),
        git_ref,
        sha: sha.clone(),
        before: base.to_owned(),
        event: "pull_request".into(),
        author: entry.author.clone(),
        message: entry.title.clone(),
        base_ref: entry.base.clone(),
        head_ref: entry.topic.clone(),
        payload: json!({
            "action": "closed", "number": number,
            "pull_request": {
                "number": number, "title": entry.title, "state": "closed", "draft": false, "merged": merged,
                "user": {"login": entry.author}, "body": null, "labels": [],
                "head": {"ref": entry.topic, "sha": entry.head}, "base": {"ref": entry.base, "sha": base},
                "merge_commit_sha": merged.then_some(sha)},
        }),
        ..RunSpec::default()
    })
}
