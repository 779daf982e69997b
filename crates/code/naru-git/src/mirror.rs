//! Taking over what was pushed elsewhere: refs of a remote come into our repository by `git fetch`, and make
//! runs as a push does, unless they are noted quietly.

use crate::record::{MIRROR, PEOPLE, RecordError};
use crate::{Config, CreateError, create, directory, git};
use std::path::Path;
use std::process::Stdio;

/// A transfer that is slower than so many bytes a second for so many seconds is given up.
const SLOW_BYTES: &str = "1000";
const SLOW_SECONDS: &str = "60";

/// Where a repository comes from.
#[derive(Debug, Clone)]
pub struct Remote {
    /// `https://...`; no other way of git is taken.
    pub url: String,
    /// The password; empty for a repository that everybody may read.
    pub token: String,
}

/// Whether an update makes a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    AsPush,
    Quietly,
}

#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error("git cannot be run")]
    Io(#[from] std::io::Error),
    #[error("git cannot {what}: {message}")]
    Git { what: String, message: String },
    #[error(
        "the pull request {number} of {repository} on this server has that number; `naru pr close {repository} {number}` first"
    )]
    Taken { repository: String, number: u64 },
    #[error(transparent)]
    Record(#[from] RecordError),
}

fn git_in(directory: &Path, noted: Noted) -> tokio::process::Command {
    let who = match noted {
        Noted::AsPush => PEOPLE,
        Noted::Quietly => MIRROR,
    };
    let mut command = git();
    command
        .arg("-C")
        .arg(directory)
        .env("GIT_COMMITTER_NAME", who)
        .env("GIT_COMMITTER_EMAIL", "naru@localhost")
        .env("GIT_AUTHOR_NAME", who)
        .env("GIT_AUTHOR_EMAIL", "naru@localhost")
        .env("GIT_TERMINAL_PROMPT", "0")
        .stdin(Stdio::null());
    command
}

async fn run(mut command: tokio::process::Command, what: &str) -> Result<String, MirrorError> {
    let output = command.output().await?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(MirrorError::Git {
            what: what.to_owned(),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}

/// Fetches refs under names of ours: pairs of theirs and ours, both full. The repository is created if it is
/// not there.
pub async fn fetch(
    config: &Config,
    repository: &str,
    remote: &Remote,
    refs: &[(String, String)],
    noted: Noted,
) -> Result<(), MirrorError> {
    create(config, repository).await?;
    let directory = directory(&config.root, repository);
    for (theirs, ours) in refs {
        for name in [theirs, ours] {
            let mut check = git_in(&directory, noted);
            check.args(["check-ref-format", name]);
            run(check, &format!("take `{name}` for the name of a ref")).await?;
        }
    }
    let number = |ours: &String| ours.strip_prefix("refs/pull/")?.split('/').next()?.parse().ok();
    let pulls: Vec<u64> = refs.iter().filter_map(|(_, ours)| number(ours)).collect();
    if !pulls.is_empty() {
        let taken = crate::pulls::book::beside_upstream(&directory, &pulls)?;
        taken.map_err(|number| MirrorError::Taken { repository: repository.to_owned(), number })?;
    }
    let mut command = git_in(&directory, noted);
    command
        .args(["-c", "protocol.allow=never", "-c", "protocol.https.allow=always"])
        .args(["-c", "protocol.http.allow=always", "-c", "http.followRedirects=false"])
        .args(["-c", "credential.helper="])
        .args(["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-gc", "--"])
        .arg(&remote.url)
        .args(refs.iter().map(|(theirs, ours)| format!("+{theirs}:{ours}")))
        .env("GIT_HTTP_LOW_SPEED_LIMIT", SLOW_BYTES)
        .env("GIT_HTTP_LOW_SPEED_TIME", SLOW_SECONDS);
    if !remote.token.is_empty() {
        use base64::Engine as _;
        // The user does not matter to GitHub, GitLab (`oauth2`) and Gitea as long as the password is a token.
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("oauth2:{}", remote.token));
        // Through the environment: an argument would show in the process list.
        command
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "http.extraHeader")
            .env("GIT_CONFIG_VALUE_0", format!("Authorization: Basic {basic}"));
    }
    run(command, &format!("fetch from {}", remote.url)).await.map(|_| ())
}

/// Removes a ref that was deleted elsewhere.
pub async fn delete_ref(config: &Config, repository: &str, name: &str) -> Result<(), MirrorError> {
    let mut command = git_in(&directory(&config.root, repository), Noted::Quietly);
    command.args(["update-ref", "-d", name]);
    run(command, &format!("delete {name}")).await.map(|_| ())
}

/// Makes a branch the one that HEAD names.
pub async fn set_default_branch(config: &Config, repository: &str, branch: &str) -> Result<(), MirrorError> {
    let mut command = git_in(&directory(&config.root, repository), Noted::Quietly);
    command.args(["symbolic-ref", "HEAD", &format!("refs/heads/{branch}")]);
    run(command, &format!("make {branch} the default branch")).await.map(|_| ())
}

/// The commit that a pull request is tested as: its head merged into its base, under `name`. `None` if they
/// conflict.
pub async fn merge(
    config: &Config,
    repository: &str,
    base: &str,
    head: &str,
    name: &str,
) -> Result<Option<String>, MirrorError> {
    let directory = directory(&config.root, repository);
    let Some(commit) = merge_commit(&directory, base, head).await? else { return Ok(None) };
    let mut command = git_in(&directory, Noted::Quietly);
    command.args(["update-ref", name, &commit]);
    run(command, &format!("move {name}")).await?;
    Ok(Some(commit))
}

/// Writes the merge of two commits; `None` if they conflict. The same two always make the same third.
pub(crate) async fn merge_commit(
    directory: &Path,
    base: &str,
    head: &str,
) -> Result<Option<String>, MirrorError> {
    let mut command = git_in(directory, Noted::Quietly);
    command.args(["merge-tree", "--write-tree", "--no-messages", base, head]);
    let output = command.output().await?;
    // 1 is a conflict, anything above is a fault.
    match output.status.code() {
        Some(0) => {}
        Some(1) => return Ok(None),
        _ => {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(MirrorError::Git { what: format!("merge {head} into {base}"), message });
        }
    }
    let tree = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut command = git_in(directory, Noted::Quietly);
    command.args(["show", "--no-patch", "--format=%cI", head]);
    let date = run(command, &format!("look at {head}")).await?;
    let mut command = git_in(directory, Noted::Quietly);
    let message = format!("Merge {head} into {base}");
    command.args(["commit-tree", &tree, "-p", base, "-p", head, "-m", &message]);
    command.env("GIT_AUTHOR_DATE", &date).env("GIT_COMMITTER_DATE", &date);
    run(command, "write the merge").await.map(Some)
}
