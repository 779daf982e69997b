//! Pull requests on our own server: whoever pushes to `refs/for/<branch>/<topic>` asks for the topic to go
//! into the branch, as with Gerrit and Gitea's AGit flow. Each such ref has a number; its head and what a
//! merge would come to are the refs that GitHub has: `refs/pull/<number>/head` and `/merge`.

pub(crate) mod book;
pub(crate) mod settle;

use crate::record::{RecordError, git_output};
use book::{Book, Entry, State};
use serde_json::{Value, json};
use std::path::Path;

/// A pull request as it stands after a push.
pub struct Pull {
    pub number: u64,
    /// Where it wants to go, and what it is called.
    pub base: String,
    pub topic: String,
    pub base_sha: String,
    /// What the merge comes to; the head itself if the two do not fit together.
    pub sha: String,
    pub fits: bool,
}

impl Pull {
    /// The event's own words, in GitHub's shape. `before` is how it stood.
    pub fn payload(&self, before: Option<State>, head: &str, title: &str, author: &str) -> Value {
        let action = match before {
            None => "opened",
            Some(State::Open) => "synchronize",
            Some(_) => "reopened",
        };
        json!({
            "action": action, "number": self.number,
            "pull_request": {
                "number": self.number, "title": title, "state": "open", "draft": false, "merged": false,
                "mergeable": self.fits, "user": {"login": author}, "body": null, "labels": [],
                "head": {"ref": self.topic, "sha": head},
                "base": {"ref": self.base, "sha": self.base_sha},
                "merge_commit_sha": self.fits.then_some(&self.sha)},
        })
    }
}

/// Branch and topic of `refs/for/<branch>/<topic>`. Branches have slashes, too: the longest that exists is
/// meant.
pub fn asked(git_ref: &str, branches: &[String]) -> Option<(String, String)> {
    let rest = git_ref.strip_prefix("refs/for/")?;
    branches
        .iter()
        .filter_map(|it| Some((it, rest.strip_prefix(it.as_str())?.strip_prefix('/')?)))
        .max_by_key(|(branch, _)| branch.len())
        .map(|(branch, topic)| (branch.clone(), topic.to_owned()))
}

impl Pull {
    /// How it stands after a push, for the book.
    pub async fn entry(
        &self,
        directory: &Path,
        before: Option<&Entry>,
        head: &str,
        title: &str,
        author: &str,
    ) -> Entry {
        let in_base = ["merge-base", "--is-ancestor", head, &self.base_sha];
        Entry {
            state: State::Open,
            base: self.base.clone(),
            topic: self.topic.clone(),
            head: head.to_owned(),
            title: title.to_owned(),
            author: author.to_owned(),
            is_ahead: git_output(directory, &in_base, head).await.is_err(),
            merged_by: None,
            closings: before.map_or(0, |it| it.closings),
        }
    }
}

/// Brings the pull request's own refs to its head. Called under the repository's lock; doing it again changes
/// nothing.
pub async fn update(
    directory: &Path,
    book: &mut Book,
    git_ref: &str,
    base: &str,
    topic: &str,
    head: &str,
) -> Result<Pull, RecordError> {
    let number = book.assign(directory, git_ref)?;
    let base_sha = git_output(directory, &["rev-parse", &format!("refs/heads/{base}")], base).await?;
    let base_sha = base_sha.trim().to_owned();
    let what = format!("refs/pull/{number}");
    let (sha, fits) = match crate::mirror::merge_commit(directory, &base_sha, head).await {
        Ok(Some(commit)) => (commit, true),
        // Conflicts, or histories that have nothing to do with each other.
        Ok(None) | Err(_) => (head.to_owned(), false),
    };
    for (end, commit) in [("head", head), ("merge", sha.as_str())] {
        git_output(directory, &["update-ref", &format!("{what}/{end}"), commit], &what).await?;
    }
    Ok(Pull { number, base: base.to_owned(), topic: topic.to_owned(), base_sha, sha, fits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_branch_is_meant_and_the_rest_is_the_topic() {
        let branches = ["main", "release", "release/1"].map(str::to_owned);
        let of = |it: &str| asked(it, &branches);
        assert_eq!(of("refs/for/main/fix/this"), Some(("main".into(), "fix/this".into())));
        assert_eq!(of("refs/for/release/1/fix"), Some(("release/1".into(), "fix".into())));
        assert_eq!(
            (of("refs/for/other/fix"), of("refs/for/main"), of("refs/heads/main")),
            (None, None, None)
        );
    }
}
