//! Source code at a commit, fetched over git's HTTP protocol with the `git` program: how every stage
//! that needs files of a repository gets them, from our own server or any other.
//!
//! ```no_run
//! # async fn example() -> Result<(), naru_source::Error> {
//! let source = naru_source::Source::new("http://127.0.0.1:7070/git", "token");
//! let tree = source.checkout("shop", "0123456789012345678901234567890123456789").await?;
//! println!("{}", tree.path().display());
//! # Ok(()) }
//! ```

use base64::Engine as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;
use tokio::process::Command;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run git")]
    Spawn(#[source] std::io::Error),
    #[error("git could not fetch {sha} of {repository}: {message}")]
    Fetch { repository: String, sha: String, message: String },
    #[error("cannot read {path}")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
}

/// Where repositories are served, and the token that may read them.
#[derive(Clone)]
pub struct Source {
    base_url: String,
    token: String,
    /// Where checked-out trees are; the system's temporary directory if nobody said.
    scratch: Option<PathBuf>,
}

impl Source {
    /// `base_url` has no trailing slash; repositories are at `<base_url>/<name>.git`.
    pub fn new(base_url: impl Into<String>, token: impl Into<String>) -> Self {
        Self { base_url: base_url.into(), token: token.into(), scratch: None }
    }

    /// Puts trees into a directory of the caller, who clears it at start: a process that is killed cannot
    /// remove its own.
    pub fn with_scratch(self, directory: PathBuf) -> Self {
        Self { scratch: Some(directory), ..self }
    }

    /// The repository's files at a commit, in a directory that is removed with the returned handle.
    /// No hooks run, no submodules are followed, and the directory holds no credentials.
    pub async fn checkout(&self, repository: &str, sha: &str) -> Result<TempDir, Error> {
        let scratch = self.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("naru-source-")
            .tempdir_in(&scratch)
            .map_err(|source| Error::Read { path: scratch.display().to_string(), source })?;
        let url = format!("{}/{repository}.git", self.base_url);
        let steps: [&[&str]; 3] = [
            &["init", "--quiet"],
            &["fetch", "--quiet", "--depth=1", "--no-tags", &url, sha],
            &["checkout", "--quiet", "--detach", "FETCH_HEAD"],
        ];
        for args in steps {
            let output = self.git(dir.path()).args(args).output().await.map_err(Error::Spawn)?;
            if !output.status.success() {
                return Err(Error::Fetch {
                    repository: repository.to_owned(),
                    sha: sha.to_owned(),
                    message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                });
            }
        }
        Ok(dir)
    }

    /// Branches and tags with the commits that they name; a tag object's commit is meant.
    pub async fn refs(&self, repository: &str) -> Result<BTreeMap<String, String>, Error> {
        let url = format!("{}/{repository}.git", self.base_url);
        let output = self.git(Path::new("/")).args(["ls-remote", "--heads", "--tags", &url]).output().await;
        let output = output.map_err(Error::Spawn)?;
        if !output.status.success() {
            return Err(Error::Fetch {
                repository: repository.to_owned(),
                sha: "its refs".to_owned(),
                message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let lines = text.lines().filter_map(|it| it.split_once('\t'));
        // The line of a tag's commit, with `^{}`, comes after that of the tag itself.
        Ok(lines.map(|(sha, name)| (name.trim_end_matches("^{}").to_owned(), sha.to_owned())).collect())
    }

    fn git(&self, dir: &Path) -> Command {
        let header = format!("Authorization: {}", basic_auth(&self.token));
        let mut command = Command::new("git");
        // The token goes through the environment: an argument would show in the process list.
        command
            .current_dir(dir)
            .env("GIT_CONFIG_COUNT", "3")
            .envs([("GIT_CONFIG_KEY_0", "http.extraHeader"), ("GIT_CONFIG_VALUE_0", &header)])
            .envs([("GIT_CONFIG_KEY_1", "core.hooksPath"), ("GIT_CONFIG_VALUE_1", "/dev/null")])
            .envs([("GIT_CONFIG_KEY_2", "protocol.allow"), ("GIT_CONFIG_VALUE_2", "user")])
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// The value of an `Authorization` header for a token: git asks for Basic, the user name does not matter.
pub fn basic_auth(token: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("naru:{token}")))
}

/// A file of a checked-out tree; `None` if there is none. `path` is relative and stays inside the tree:
/// a link that leads out is refused like a missing file.
pub fn read_file(tree: &Path, path: &str) -> Result<Option<String>, Error> {
    let full = tree.join(path);
    let inside =
        full.canonicalize().ok().zip(tree.canonicalize().ok()).is_some_and(|(f, t)| f.starts_with(t));
    if !inside {
        return Ok(None);
    }
    match std::fs::read(&full) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_out_of_the_tree_is_not_followed() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::write(tree.path().join("a"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", tree.path().join("b")).unwrap();
        assert_eq!(read_file(tree.path(), "a").unwrap().as_deref(), Some("x"));
        assert_eq!(read_file(tree.path(), "b").unwrap(), None);
        assert_eq!(read_file(tree.path(), "../x").unwrap(), None);
    }
}
