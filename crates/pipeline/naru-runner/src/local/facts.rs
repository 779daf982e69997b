//! What git says about a work tree.

use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// The top of the work tree; the directory itself if it is in no repository.
    pub top: PathBuf,
    pub owner: String,
    pub repository: String,
    pub sha: String,
    pub git_ref: String,
    pub author: String,
    pub message: String,
}

const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

impl Facts {
    pub fn of(directory: &Path) -> Self {
        let git = |args: &[&str]| {
            let output = Command::new("git").arg("-C").arg(directory).args(args).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
            output.status.success().then_some(text)
        };
        let top = git(&["rev-parse", "--show-toplevel"]).map_or_else(|| directory.to_owned(), PathBuf::from);
        let head = git(&["log", "-1", "--format=%H%n%an%n%s"]).unwrap_or_default();
        let mut head = head.lines().map(str::to_owned);
        let sha = head.next().unwrap_or_else(|| NO_COMMIT.to_owned());
        let author = head.next().unwrap_or_default();
        let message = head.next().unwrap_or_default();
        let git_ref = git(&["symbolic-ref", "-q", "HEAD"]).unwrap_or_else(|| "refs/heads/main".into());
        let name = top.file_name().map(|it| it.to_string_lossy().into_owned());
        let (owner, repository) = git(&["config", "--get", "remote.origin.url"])
            .and_then(|it| owner_and_name(&it))
            .unwrap_or_else(|| ("local".to_owned(), name.unwrap_or_else(|| "repository".into())));
        Self { top, owner, repository, sha, git_ref, author, message }
    }
}

/// `git@host:owner/name.git`, `https://host/owner/name`
fn owner_and_name(url: &str) -> Option<(String, String)> {
    let path = url.split_once("://").map_or(url, |it| it.1);
    let path = path.strip_suffix('/').unwrap_or(path);
    let path = path.strip_suffix(".git").unwrap_or(path);
    let mut parts = path.rsplit(['/', ':']);
    let (name, owner) = (parts.next()?, parts.next()?);
    // A path of this machine has no owner.
    let is_remote = !url.starts_with('/') && !url.starts_with('.') && !url.starts_with("file:");
    (is_remote && !name.is_empty() && !owner.is_empty()).then(|| (owner.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_says_whose_repository_it_is() {
        for (url, want) in [
            ("git@example.com:acme/shop.git", Some(("acme", "shop"))),
            ("https://example.com/acme/shop", Some(("acme", "shop"))),
            ("ssh://git@example.com:22/acme/shop.git/", Some(("acme", "shop"))),
            ("/srv/git/shop.git", None),
        ] {
            let got = owner_and_name(url);
            assert_eq!(got.as_ref().map(|it| (it.0.as_str(), it.1.as_str())), want, "{url}");
        }
    }
}
