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
    /// Where the bare repositories are, if they are on this machine.
    near: Option<PathBuf>,
    /// Where checked-out trees are; the system's temporary directory if nobody said.
    scratch: Option<PathBuf>,
}

impl Source {
    /// `base_url` has no trailing slash; repositories are at `<base_url>/<name>.git`.
    pub fn new(base_url: impl Into<String>, token: impl Into<String>) -> Self {
        Self { base_url: base_url.into(), token: token.into(), near: None, scratch: None }
    }

    /// Puts trees into a directory of the caller, who clears it at start: a process that is killed cannot
    /// remove its own.
    pub fn with_scratch(self, directory: PathBuf) -> Self {
        Self { scratch: Some(directory), ..self }
    }

    /// Looks into repositories on this machine directly, `<root>/<name>.git`, before it asks the server for a
    /// few files: that saves most of the time.
    pub fn near(self, root: PathBuf) -> Self {
        Self { near: Some(root), ..self }
    }

    /// The files of one directory at a commit, under the same path in a directory that is removed with the
    /// returned handle; the rest of the repository may be there or not.
    pub async fn files(&self, repository: &str, sha: &str, path: &str) -> Result<TempDir, Error> {
        if let Some(near) = &self.near {
            let directory = near.join(format!("{repository}.git"));
            match self.files_near(&directory, sha, path).await {
                Ok(Some(tree)) => return Ok(tree),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, repository, "it is asked from the server"),
            }
        }
        self.checkout(repository, sha).await
    }

    /// `None` if the repository or the commit is not there.
    async fn files_near(&self, directory: &Path, sha: &str, path: &str) -> Result<Option<TempDir>, Error> {
        let git = || {
            let mut command = self.git(Path::new("/"));
            command.arg("--git-dir").arg(directory);
            command
        };
        // `<mode> blob <id>\t<path>`, nul at the end of each.
        let list =
            git().args(["ls-tree", "-r", "-z", sha, "--", path]).output().await.map_err(Error::Spawn)?;
        if !list.status.success() {
            return Ok(None);
        }
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let files: Vec<(&str, &str)> = list
            .split('\0')
            .filter_map(|it| it.split_once('\t'))
            // A plain file; a link or a submodule is none.
            .filter(|(facts, _)| facts.starts_with("100"))
            .filter_map(|(facts, name)| Some((facts.split(' ').nth(2)?, name)))
            .collect();
        let tree = self.directory()?;
        if files.is_empty() {
            return Ok(Some(tree));
        }
        let ids: String = files.iter().map(|(id, _)| format!("{id}\n")).collect();
        let mut child = git()
            .args(["cat-file", "--batch"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::Spawn)?;
        let mut stdin = child.stdin.take().expect("asked for above");
        let feed = async move { tokio::io::AsyncWriteExt::write_all(&mut stdin, ids.as_bytes()).await };
        let (_, output) = tokio::join!(feed, child.wait_with_output());
        let mut bytes = output.map_err(Error::Spawn)?.stdout.into_iter();
        for (_, name) in files {
            // `<id> blob <size>`, a line break, the content, a line break.
            let head: Vec<u8> = bytes.by_ref().take_while(|it| *it != b'\n').collect();
            let head = String::from_utf8_lossy(&head);
            let Some(size) = head.rsplit(' ').next().and_then(|it| it.parse().ok()) else { return Ok(None) };
            let content: Vec<u8> = bytes.by_ref().take(size).collect();
            bytes.next();
            let read = |source| Error::Read { path: name.to_owned(), source };
            // Git itself refuses names that lead out; this is for a repository that somebody made by hand.
            if name.split('/').any(|it| matches!(it, ".." | "." | "")) {
                continue;
            }
            let full = tree.path().join(name);
            std::fs::create_dir_all(full.parent().expect("joined to a directory")).map_err(read)?;
            std::fs::write(&full, content).map_err(read)?;
        }
        Ok(Some(tree))
    }

    fn directory(&self) -> Result<TempDir, Error> {
        let scratch = self.scratch.clone().unwrap_or_else(std::env::temp_dir);
        tempfile::Builder::new()
            .prefix("naru-source-")
            .tempdir_in(&scratch)
            .map_err(|source| Error::Read { path: scratch.display().to_string(), source })
    }

    /// The repository's files at a commit, in a directory that is removed with the returned handle.
    /// No hooks run, no submodules are followed, and the directory holds no credentials.
    pub async fn checkout(&self, repository: &str, sha: &str) -> Result<TempDir, Error> {
        let dir = self.directory()?;
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
