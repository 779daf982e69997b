//! Looking into repositories without a clone: which commit a name means, its files, and all of them as one
//! archive.

use crate::{directory, git, is_valid_name};
use std::collections::HashMap;
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

/// A commit in a few words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Commit {
    pub parents: Vec<String>,
    pub author: String,
    pub email: String,
    /// RFC 3339.
    pub date: String,
    pub message: String,
}

/// What is known of a commit that is there.
pub async fn commit(root: &Path, repository: &str, sha: &str) -> Result<Commit, ReadError> {
    let args = ["show", "--no-patch", "--format=%P%n%an%n%ae%n%cI%n%B", "--end-of-options", sha];
    let text = output(root, repository, &args, sha).await?;
    let mut lines = text.splitn(5, '\n');
    let mut next = || lines.next().unwrap_or_default().to_owned();
    Ok(Commit {
        parents: next().split_whitespace().map(str::to_owned).collect(),
        author: next(),
        email: next(),
        date: next(),
        message: next().trim_end().to_owned(),
    })
}

/// A file that differs between two commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Git's letter: `A`, `M`, `D`, `R`, `C`, `T`.
    pub letter: char,
    pub path: String,
    /// Where it was before, if it was renamed or copied.
    pub previous: String,
    /// Lines; none of a binary file.
    pub added: u64,
    pub removed: u64,
}

/// What `head` changes since it left `base`, and how many commits it is ahead and behind.
pub async fn compare(
    root: &Path,
    repository: &str,
    base: &str,
    head: &str,
) -> Result<(Vec<Changed>, usize, usize), ReadError> {
    let range = format!("{base}...{head}");
    let counts = output(root, repository, &["rev-list", "--left-right", "--count", &range], &range).await?;
    let mut counts = counts.split_whitespace().map(|it| it.parse().unwrap_or(0));
    let (behind, ahead) = (counts.next().unwrap_or(0), counts.next().unwrap_or(0));
    let names = output(root, repository, &["diff", "-z", "-M", "--name-status", &range], &range).await?;
    let lines = output(root, repository, &["diff", "-z", "-M", "--numstat", &range], &range).await?;
    let lines = numbers(&lines);
    let mut changed = Vec::new();
    let mut words = names.split('\0').filter(|it| !it.is_empty());
    while let (Some(letters), Some(path)) = (words.next(), words.next()) {
        let letter = letters.chars().next().unwrap_or('M');
        let (path, previous) = match letter {
            'R' | 'C' => (words.next().unwrap_or_default(), path),
            _ => (path, ""),
        };
        let (added, removed) = lines.get(path).copied().unwrap_or_default();
        changed.push(Changed {
            letter,
            path: path.to_owned(),
            previous: previous.to_owned(),
            added,
            removed,
        });
    }
    Ok((changed, ahead, behind))
}

/// Lines added and removed by path, of `git diff -z --numstat`: `1\t2\tpath\0`, and of a renamed file
/// `1\t2\t\0before\0after\0`.
fn numbers(text: &str) -> HashMap<&str, (u64, u64)> {
    let mut found = HashMap::new();
    let mut words = text.split('\0');
    while let Some(word) = words.next() {
        let mut parts = word.splitn(3, '\t');
        let (Some(added), Some(removed), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            break;
        };
        let path = if path.is_empty() { words.nth(1).unwrap_or_default() } else { path };
        // A binary file has dashes.
        found.insert(path, (added.parse().unwrap_or(0), removed.parse().unwrap_or(0)));
    }
    found
}

async fn output(root: &Path, repository: &str, args: &[&str], what: &str) -> Result<String, ReadError> {
    let output = git().arg("-C").arg(directory(root, repository)).args(args).output().await?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(ReadError::Git {
            what: what.to_owned(),
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
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

        let facts = commit(root, "shop", &main).await.unwrap();
        assert_eq!((facts.parents, facts.message.as_str()), (vec![tag.clone()], "two"));
        let found = entry(root, "shop", &main, "sub/a.txt").await.unwrap();
        assert!(matches!(found, Some(Entry::File { bytes, .. }) if bytes == b"hello"));
        let Some(Entry::Directory(rows)) = entry(root, "shop", &main, "").await.unwrap() else {
            panic!("no rows")
        };
        assert_eq!((rows[0].0.as_str(), rows[0].3.as_str()), ("tree", "sub"));
        assert_eq!(entry(root, "shop", &main, "../x").await.unwrap(), None);
        assert_eq!(entry(root, "shop", &main, "none").await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_a_branch_changes_is_counted_since_it_left() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("shop.git");
        std::fs::create_dir(&dir).unwrap();
        let author = ["-c", "user.name=T", "-c", "user.email=t@example.org"];
        let all = [&author[..], &["commit", "--quiet", "-am", "x"]].concat();
        git_in(&dir, &["init", "--quiet", "--initial-branch=main"]).await;
        std::fs::write(dir.join("a"), "1\n2\n3\n4\n").unwrap();
        std::fs::write(dir.join("b"), "b\n").unwrap();
        git_in(&dir, &["add", "."]).await;
        git_in(&dir, &all).await;
        git_in(&dir, &["checkout", "--quiet", "-b", "fix"]).await;
        git_in(&dir, &["mv", "a", "moved"]).await;
        std::fs::write(dir.join("b"), "b\nmore\n").unwrap();
        std::fs::write(dir.join("new\nname"), [0, 1, 2]).unwrap();
        git_in(&dir, &["add", "."]).await;
        git_in(&dir, &all).await;
        git_in(&dir, &["checkout", "--quiet", "main"]).await;
        std::fs::write(dir.join("b"), "elsewhere\n").unwrap();
        git_in(&dir, &all).await;
        let (mut changed, ahead, behind) = compare(root.path(), "shop", "main", "fix").await.unwrap();
        changed.sort_by(|a, b| a.path.cmp(&b.path));
        let row = |letter, path: &str, previous: &str, added, removed| Changed {
            letter,
            path: path.into(),
            previous: previous.into(),
            added,
            removed,
        };
        assert_eq!(
            changed,
            [row('M', "b", "", 1, 0), row('R', "moved", "a", 0, 0), row('A', "new\nname", "", 0, 0)]
        );
        assert_eq!((ahead, behind), (1, 1));
    }
}
