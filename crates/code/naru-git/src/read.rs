//! Looking into repositories without a clone: which commit a name means, its files, and all of them as one
//! archive.

use crate::{directory, git, is_valid_name};
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncRead;
use tokio::process::Child;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("git cannot be run")]
    Io(#[from] std::io::Error),
    #[error("git could not tell about {what}: {message}")]
    Git { what: String, message: String },
}

/// A file larger than this is not handed out whole.
pub const FILE_BYTES_MAX: u64 = 100 << 20; // GitHub's limit for contents

/// What stands at a path of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    File {
        sha: String,
        bytes: Vec<u8>,
    },
    /// Kind (`blob`, `tree`, `commit`), object, size of a file, name.
    Directory(Vec<(String, String, u64, String)>),
}

/// The commit that a name means: a branch, a tag, a full ref or a commit, in this order of tags before
/// branches that GitHub has. `None` if there is no such repository, or nothing of the name in it.
pub async fn resolve(root: &Path, repository: &str, name: &str) -> Result<Option<String>, ReadError> {
    if !is_valid_name(repository) || !is_name(name) {
        return Ok(None);
    }
    let directory = directory(root, repository);
    if !directory.join("HEAD").exists() {
        return Ok(None);
    }
    let is_commit = name.len() == 40 && name.bytes().all(|it| it.is_ascii_hexdigit());
    let candidates = match name {
        "HEAD" => vec!["HEAD".to_owned()],
        _ if name.starts_with("refs/") || is_commit => vec![name.to_owned()],
        _ => vec![format!("refs/tags/{name}"), format!("refs/heads/{name}")],
    };
    for candidate in candidates {
        let wanted = format!("{candidate}^{{commit}}");
        let args = ["rev-parse", "--verify", "--quiet", "--end-of-options", &wanted];
        let output = git().arg("-C").arg(&directory).args(args).output().await?;
        if output.status.success() {
            return Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
        }
    }
    Ok(None)
}

/// Whether a text may be the name of a ref. Git's own rules are stricter; what matters here is that it is
/// no option and no other way to name a commit (`main~3`, `@{1}`, `main:path`).
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('-')
        && !name.contains("..")
        && name.chars().all(|it| it.is_alphanumeric() || "-_./+@#=%,".contains(it))
        && !name.contains("@{")
        && name != "@"
}

/// The branch that HEAD names.
pub async fn default_branch(root: &Path, repository: &str) -> Result<Option<String>, ReadError> {
    let directory = directory(root, repository);
    if !is_valid_name(repository) || !directory.join("HEAD").exists() {
        return Ok(None);
    }
    let output = git().arg("-C").arg(&directory).args(["symbolic-ref", "--short", "HEAD"]).output().await?;
    Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
}

/// All files of a commit as a gzip tar archive without a leading folder, as git writes it.
pub fn archive(
    root: &Path,
    repository: &str,
    commit: &str,
) -> Result<impl AsyncRead + Unpin + Send + use<>, ReadError> {
    let mut child: Child = git()
        .arg("-C")
        .arg(directory(root, repository))
        .args(["archive", "--format=tar.gz", "--end-of-options", commit])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let output = child.stdout.take().expect("asked for above");
    tokio::spawn(async move {
        // Reaps the process; one that failed has written a broken archive, which the reader notices.
        let _ = child.wait().await;
    });
    Ok(output)
}

/// What stands at a path of a commit; an empty path is its root.
pub async fn entry(
    root: &Path,
    repository: &str,
    commit: &str,
    path: &str,
) -> Result<Option<Entry>, ReadError> {
    let directory = directory(root, repository);
    let path = path.trim_matches('/');
    if !is_valid_name(repository) || path.split('/').any(|it| it == "..") || path.contains(['\0', '\n']) {
        return Ok(None);
    }
    let run = async |args: &[&str]| git().arg("-C").arg(&directory).args(args).output().await;
    let object = format!("{commit}:{path}");
    let found = run(&["cat-file", "-t", &object]).await?;
    if !found.status.success() {
        return Ok(None);
    }
    let fail = |message: &[u8]| ReadError::Git {
        what: object.clone(),
        message: String::from_utf8_lossy(message).trim().to_owned(),
    };
    match String::from_utf8_lossy(&found.stdout).trim() {
        "blob" => {
            let facts = run(&["rev-parse", "--verify", "--quiet", &object]).await?;
            let size = run(&["cat-file", "-s", &object]).await?;
            let size: u64 = String::from_utf8_lossy(&size.stdout).trim().parse().unwrap_or(u64::MAX);
            if size > FILE_BYTES_MAX {
                return Err(fail(format!("the file has more than {FILE_BYTES_MAX} bytes").as_bytes()));
            }
            let content = run(&["cat-file", "blob", &object]).await?;
            if !content.status.success() {
                return Err(fail(&content.stderr));
            }
            let sha = String::from_utf8_lossy(&facts.stdout).trim().to_owned();
            Ok(Some(Entry::File { sha, bytes: content.stdout }))
        }
        "tree" => {
            let listed = run(&["ls-tree", "-z", "--long", &object]).await?;
            if !listed.status.success() {
                return Err(fail(&listed.stderr));
            }
            let text = String::from_utf8_lossy(&listed.stdout).into_owned();
            let row = |line: &str| {
                let (facts, name) = line.split_once('\t')?;
                let mut words = facts.split_whitespace().skip(1);
                let (kind, sha) = (words.next()?.to_owned(), words.next()?.to_owned());
                Some((kind, sha, words.next()?.parse().unwrap_or(0), name.to_owned()))
            };
            Ok(Some(Entry::Directory(text.split('\0').filter_map(row).collect())))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn git_in(dir: &Path, args: &[&str]) {
        let output = git().arg("-C").arg(dir).args(args).output().await.unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[tokio::test]
    async fn a_name_is_a_tag_before_it_is_a_branch_and_nothing_cleverer() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("shop.git");
        std::fs::create_dir(&dir).unwrap();
        git_in(&dir, &["init", "--quiet", "--initial-branch=main"]).await;
        std::fs::create_dir(dir.join("sub")).unwrap();
        std::fs::write(dir.join("sub/a.txt"), "hello").unwrap();
        git_in(&dir, &["add", "sub"]).await;
        let author = ["-c", "user.name=T", "-c", "user.email=t@example.org"];
        git_in(&dir, &[&author[..], &["commit", "--quiet", "-m", "one"]].concat()).await;
        git_in(&dir, &["tag", "v1"]).await;
        git_in(&dir, &[&author[..], &["commit", "--quiet", "--allow-empty", "-m", "two"]].concat()).await;
        git_in(&dir, &["branch", "v1"]).await;
        // As a bare repository has it.
        std::fs::rename(dir.join(".git"), root.path().join("git")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::rename(root.path().join("git"), &dir).unwrap();
        let root = root.path();
        let of = async |name: &str| resolve(root, "shop", name).await.unwrap();
        let (tag, main) = (of("v1").await.unwrap(), of("main").await.unwrap());
        assert_ne!(tag, main);
        assert_eq!(of("refs/heads/v1").await, Some(main.clone()));
        assert_eq!(of(&tag).await, Some(tag.clone()));
        for bad in ["", "nothing", "main~1", "main^", "@{1}", "main:sub", "--help", "../x", "HEAD@{0}"] {
            assert_eq!(of(bad).await, None, "{bad}");
        }
        assert_eq!(resolve(root, "../shop", "main").await.unwrap(), None);
        assert_eq!(default_branch(root, "shop").await.unwrap().as_deref(), Some("main"));

        let found = entry(root, "shop", &main, "sub/a.txt").await.unwrap();
        assert!(matches!(found, Some(Entry::File { bytes, .. }) if bytes == b"hello"));
        let Some(Entry::Directory(rows)) = entry(root, "shop", &main, "").await.unwrap() else {
            panic!("no rows")
        };
        assert_eq!((rows[0].0.as_str(), rows[0].3.as_str()), ("tree", "sub"));
        assert_eq!(entry(root, "shop", &main, "../x").await.unwrap(), None);
        assert_eq!(entry(root, "shop", &main, "none").await.unwrap(), None);
    }
}
