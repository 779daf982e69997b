//! `actions/checkout` as a built-in: the pushed commit of the job's own repository, without Node.

use super::{FAILED, JobRun, StepEnd};
use crate::protocol::Outcome;
use std::time::Duration;
use tokio::process::Command;

/// How often a checkout asks the server, and how much longer it waits after each time: a restart of naru
/// takes a second or two, an upgrade some more.
const FETCH_ATTEMPTS_MAX: u32 = 8;
const FETCH_PAUSE: Duration = Duration::from_millis(500);

impl JobRun<'_> {
    pub(super) async fn checkout(&mut self, path: &str, depth: u32) -> StepEnd {
        let path = match self.text(path) {
            Ok(it) => it,
            Err(error) => {
                self.log.say(&format!("error: `path`: {error}"));
                return FAILED;
            }
        };
        let target = self.file.workspace.join(&path);
        if let Err(error) = std::fs::create_dir_all(&target) {
            self.log.say(&format!("error: cannot make {}: {error}", target.display()));
            return FAILED;
        }
        if let Some(tree) = self.file.checkout_tree.clone() {
            return match super::snapshot::copy(&tree, &target) {
                Ok(count) => {
                    self.log.say(&format!("{count} files of {} as they are", tree.display()));
                    super::SUCCEEDED
                }
                Err(error) => {
                    self.log.remark("error", &format!("cannot copy {}: {error}", tree.display()));
                    FAILED
                }
            };
        }
        if !self.has_program("git", &[]) {
            return self.checkout_without_git(&target).await;
        }
        let (url, sha) = (self.file.checkout_url.clone(), self.file.sha.clone());
        let git_ref = self.file.git_ref.clone();
        let depth = format!("--depth={depth}");
        let mut fetch = vec!["fetch", "--quiet", "--no-tags"];
        if depth != "--depth=0" {
            fetch.push(&depth);
        }
        fetch.extend([url.as_str(), sha.as_str()]);
        let branch = git_ref.strip_prefix("refs/heads/");
        let checkout: Vec<&str> = match branch {
            Some(branch) => vec!["checkout", "--quiet", "--force", "-B", branch, "FETCH_HEAD"],
            None => vec!["checkout", "--quiet", "--force", "--detach", "FETCH_HEAD"],
        };
        let header = format!("Authorization: {}", naru_source::basic_auth(&self.file.checkout_token));
        self.log.mask.add(header.rsplit(' ').next().unwrap_or_default());
        for args in [vec!["init", "--quiet"], fetch, checkout] {
            let mut attempt = 1;
            loop {
                let mut command = Command::new("git");
                command
                    .args(&args)
                    .current_dir(&target)
                    .env("GIT_TERMINAL_PROMPT", "0")
                    .env("GIT_CONFIG_COUNT", "3")
                    .envs([("GIT_CONFIG_KEY_0", "http.extraHeader"), ("GIT_CONFIG_VALUE_0", header.as_str())])
                    .envs([("GIT_CONFIG_KEY_1", "core.hooksPath"), ("GIT_CONFIG_VALUE_1", "/dev/null")])
                    .envs([("GIT_CONFIG_KEY_2", "safe.directory"), ("GIT_CONFIG_VALUE_2", "*")]);
                let end = self.execute(command, "git").await;
                if end.outcome == Outcome::Succeeded {
                    break;
                }
                // The server may just be restarting; fetching again is harmless.
                if args[0] != "fetch" || attempt == FETCH_ATTEMPTS_MAX || self.is_cancelled() {
                    return end;
                }
                self.log.say(&format!(
                    "the server did not answer, trying again ({attempt} of {FETCH_ATTEMPTS_MAX})"
                ));
                tokio::time::sleep(FETCH_PAUSE * attempt).await;
                attempt += 1;
            }
        }
        let shown = if path.is_empty() { "the workspace" } else { &path };
        self.log.say(&format!("{shown} is at {}", sha.get(..12).unwrap_or(&sha)));
        StepEnd { outcome: Outcome::Succeeded, exit_code: Some(0) }
    }

    /// An image need not have git (a container of the workflow's choice): the files of the commit come as an
    /// archive then, as `actions/checkout` does it.
    async fn checkout_without_git(&mut self, target: &std::path::Path) -> StepEnd {
        self.log.say("there is no git in the image: the commit's files come without its history");
        let name = self.contexts.get("github").and_then(|it| it["repository"].as_str()).unwrap_or_default();
        let (owner, repository) = name.split_once('/').unwrap_or_default();
        let (owner, repository, sha) = (owner.to_owned(), repository.to_owned(), self.file.sha.clone());
        match self.fetch_files(&owner, &repository, &sha, target).await {
            Ok(_) => super::SUCCEEDED,
            Err(error) => {
                self.log.remark("error", &format!("the commit cannot be had: {error}"));
                FAILED
            }
        }
    }
}
