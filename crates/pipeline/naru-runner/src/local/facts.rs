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
    /// Asks git once, for the commit; what lies open in `.git` is read, which is several times faster.
    pub fn of(directory: &Path) -> Self {
        let git = |args: &[&str]| {
            let output = Command::new("git").arg("-C").arg(directory).args(args).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
            output.status.success().then_some(text)
        };
        let plain = directory.ancestors().find(|it| it.join(".git").is_dir());
        let top =
            plain.map(Path::to_owned).or_else(|| git(&["rev-parse", "--show-toplevel"]).map(PathBuf::from));
        let is_repository = top.is_some();
        let top = top.unwrap_or_else(|| directory.to_owned());
        let head =
            is_repository.then(|| git(&["log", "-1", "--format=%H%n%an%n%s"])).flatten().unwrap_or_default();
        let mut head = head.lines().map(str::to_owned);
        let sha = head.next().unwrap_or_else(|| NO_COMMIT.to_owned());
        let author = head.next().unwrap_or_default();
        let message = head.next().unwrap_or_default();
        let open = |name: &str| std::fs::read_to_string(plain?.join(".git").join(name)).ok();
        let (git_ref, remote) = match plain {
            Some(_) => (
                open("HEAD").and_then(|it| Some(it.trim().strip_prefix("ref: ")?.to_owned())),
                open("config").and_then(|it| origin(&it)),
            ),
            None if is_repository => {
                (git(&["symbolic-ref", "-q", "HEAD"]), git(&["config", "--get", "remote.origin.url"]))
            }
            None => (None, None),
        };
        let git_ref = git_ref.unwrap_or_else(|| "refs/heads/main".into());
        let name = top.file_name().map(|it| it.to_string_lossy().into_owned());
        let (owner, repository) = remote
            .and_then(|it| owner_and_name(&it))
            .unwrap_or_else(|| ("local".to_owned(), name.unwrap_or_else(|| "repository".into())));
        Self { top, owner, repository, sha, git_ref, author, message }
    }
}

/// The URL of the remote `origin` in a repository's configuration.
fn origin(config: &str) -> Option<String> {
    let mut within = false;
    for line in config.lines().map(str::trim) {
        if line.starts_with('[') {
            within = line == "[remote \"origin\"]";
        } else if within
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == "url"
        {
            return Some(value.trim().to_owned());
        }
    }
    None
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
    fn what_lies_open_is_read_as_git_would_say_it() {
        let root = tempfile::tempdir().unwrap();
        let tree = root.path().join("shop");
        let script = "git init -q -b work shop; cd shop; mkdir deep; git config user.email a@b; git config user.name Ann; \
                      git commit -q --allow-empty -m 'first one'; git remote add other u; \
                      git remote add origin https://example.com/acme/shop.git";
        assert!(
            Command::new("bash").args(["-ec", script]).current_dir(root.path()).status().unwrap().success()
        );
        let facts = Facts::of(&tree.join("deep"));
        assert_eq!((facts.top.as_path(), facts.git_ref.as_str()), (tree.as_path(), "refs/heads/work"));
        assert_eq!((facts.owner.as_str(), facts.repository.as_str()), ("acme", "shop"));
        assert_eq!(
            (facts.author.as_str(), facts.message.as_str(), facts.sha.len()),
            ("Ann", "first one", 40)
        );
        // A second work tree of it has its `.git` elsewhere.
        let script = "git -C shop worktree add -q ../other -b side";
        assert!(
            Command::new("bash").args(["-ec", script]).current_dir(root.path()).status().unwrap().success()
        );
        let facts = Facts::of(&root.path().join("other"));
        assert_eq!((facts.git_ref.as_str(), facts.owner.as_str()), ("refs/heads/side", "acme"));
    }

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
