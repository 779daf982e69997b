//! `naru pr`: pull requests on our own server, seen and ended.

use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use naru_git::{Method, PullError, PullState};
use naru_objects::{NAMESPACE, name_of};
use std::process::ExitCode;

#[derive(clap::Subcommand, Clone)]
pub enum PrCommand {
    /// Those that are open, or all of them.
    List {
        repository: String,
        #[arg(long)]
        all: bool,
    },
    /// Bring one into its branch: a push of the branch, and the end of the pull request.
    Merge {
        repository: String,
        number: u64,
        /// One commit with all changes, in place of a merge.
        #[arg(long)]
        squash: bool,
    },
    /// End one without merging it. `git push origin :refs/for/main/topic` does the same.
    Close { repository: String, number: u64 },
    /// Open one again that was closed, as it was.
    Reopen { repository: String, number: u64 },
}

pub async fn run(global: &Global, command: &PrCommand) -> Result<ExitCode> {
    let root = global.data_dir.join("git");
    let (PrCommand::List { repository, .. }
    | PrCommand::Merge { repository, .. }
    | PrCommand::Close { repository, .. }
    | PrCommand::Reopen { repository, .. }) = command;
    if !naru_git::is_valid_name(repository) || !naru_git::directory(&root, repository).exists() {
        return Err(Error::new(format!("there is no repository `{repository}`"))
            .hint("`git push` makes one; say where the daemon keeps its data with --data-dir"));
    }
    let done = match command {
        PrCommand::List { repository, all } => return list(&root, repository, *all),
        PrCommand::Merge { repository, number, squash } => {
            let method = if *squash { Method::Squash } else { Method::Merge };
            naru_git::merge_pull(&root, repository, *number, method)
                .await
                .map(|commit| format!("merged as {commit}"))
        }
        PrCommand::Close { repository, number } => {
            naru_git::close(&root, repository, *number).await.map(|()| "closed".into())
        }
        PrCommand::Reopen { repository, number } => {
            naru_git::reopen(&root, repository, *number).await.map(|()| "open again".into())
        }
    };
    println!("{}", done.map_err(|it| explained(repository, it))?);
    // What is done is done; a daemon that is not there makes the runs when it is back.
    let client = connection::client(global).await?;
    for run in naru_git::record(&client, &root, repository, NAMESPACE).await? {
        println!("runs as {}", name_of(&run));
    }
    Ok(ExitCode::SUCCESS)
}

fn explained(repository: &str, error: PullError) -> Error {
    let hint = match &error {
        PullError::Unknown { .. } | PullError::State { .. } => {
            Some(format!("look at `naru pr list {repository} --all`"))
        }
        PullError::Conflict { .. } | PullError::Record(_) => None,
    };
    let error = Error::new(naru_client::chain(&error));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn list(root: &std::path::Path, repository: &str, all: bool) -> Result<ExitCode> {
    let pulls = naru_git::pulls(root, repository)?;
    let mut shown = false;
    for pull in pulls.iter().filter(|it| all || it.entry.state == PullState::Open) {
        let it = &pull.entry;
        let state = match it.state {
            PullState::Open => "open",
            PullState::Closed => "closed",
            PullState::Merged => "merged",
        };
        println!("#{:<5} {state:<7} {} -> {}  {} ({})", pull.number, it.topic, it.base, it.title, it.author);
        shown = true;
    }
    if !shown {
        println!(
            "no pull request is open; ask for one with `git push origin HEAD:refs/for/<branch>/<topic>`"
        );
    }
    Ok(ExitCode::SUCCESS)
}
