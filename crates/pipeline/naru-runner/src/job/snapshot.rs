//! A work tree as a checkout would have it, uncommitted changes included: files that git tracks or would
//! track, as they are now, and a `.git` of its own that borrows the objects of the original. What a job does
//! to it, also with git, leaves the original alone.

use std::ffi::OsStr;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Links below links are followed by nobody here, but directories nest; deeper ones are no source tree.
const DEPTH_MAX: usize = 200;

/// Copies; how many files there were.
pub fn copy(from: &Path, to: &Path) -> Result<usize> {
    std::fs::create_dir_all(to)?;
    let mut count = 0;
    match git(from, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"]) {
        Some(listing) => {
            let mut made = PathBuf::new();
            for name in listing.split(|it| *it == 0).filter(|it| !it.is_empty()) {
                let name = Path::new(OsStr::from_bytes(name));
                // One that is staged for a merge is listed several times, one that was deleted still once.
                let Ok(kind) = std::fs::symlink_metadata(from.join(name)) else { continue };
                let target = to.join(name);
                if let Some(parent) = target.parent().filter(|it| *it != made) {
                    std::fs::create_dir_all(parent)?;
                    made = parent.to_owned();
                }
                // A repository within the repository.
                if kind.is_dir() {
                    count += copy(&from.join(name), &target)?;
                } else {
                    count += copy_file(&from.join(name), &target, &kind)?;
                }
            }
            borrow_repository(from, to)?;
        }
        None => count += copy_all(from, to, 0)?,
    }
    Ok(count)
}

fn copy_file(from: &Path, to: &Path, kind: &std::fs::Metadata) -> Result<usize> {
    if kind.is_symlink() {
        match std::os::unix::fs::symlink(std::fs::read_link(from)?, to) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    } else if kind.is_file() {
        // Shares the blocks where the file system can.
        std::fs::copy(from, to)?;
    } else {
        // Sockets and pipes are no part of a source tree.
        return Ok(0);
    }
    Ok(1)
}

fn copy_all(from: &Path, to: &Path, depth: usize) -> Result<usize> {
    if depth == DEPTH_MAX {
        return Err(Error::other(format!("{} is nested more than {DEPTH_MAX} deep", from.display())));
    }
    std::fs::create_dir_all(to)?;
    let mut count = 0;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = std::fs::symlink_metadata(&from)?;
        count += if kind.is_dir() { copy_all(&from, &to, depth + 1)? } else { copy_file(&from, &to, &kind)? };
    }
    Ok(count)
}

/// A small `.git`: refs, index and configuration copied, objects borrowed.
fn borrow_repository(from: &Path, to: &Path) -> Result<()> {
    let Some(answer) = git(from, &["rev-parse", "--path-format=absolute", "--git-dir", "--git-common-dir"])
    else {
        return Ok(());
    };
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let mut lines = answer.lines().map(PathBuf::from);
    let (Some(own), Some(common)) = (lines.next(), lines.next()) else { return Ok(()) };
    // Only of this very directory: a tree within a repository has none of its own.
    if own.parent() != Some(from) && !from.join(".git").exists() {
        return Ok(());
    }
    let git = to.join(".git");
    std::fs::create_dir_all(git.join("objects/info"))?;
    std::fs::create_dir_all(git.join("refs"))?;
    std::fs::write(git.join("objects/info/alternates"), format!("{}\n", common.join("objects").display()))?;
    for (directory, name) in
        [(&own, "HEAD"), (&own, "index"), (&common, "config"), (&common, "packed-refs"), (&common, "shallow")]
    {
        match std::fs::copy(directory.join(name), git.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    copy_all(&common.join("refs"), &git.join("refs"), 0)?;
    Ok(())
}

fn git(directory: &Path, args: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new("git").arg("-C").arg(directory).args(args).output().ok()?;
    output.status.success().then_some(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(directory: &Path, script: &str) -> String {
        let output = Command::new("bash").args(["-ec", script]).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_work_tree_is_copied_as_it_is_without_what_git_ignores() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        shell(
            &from,
            "git init -q -b main; git config user.email a@b; git config user.name a; echo 1 > kept; echo x > gone; mkdir d; \
             echo ignored > .gitignore; ln -s kept link; git add .; git commit -qm first; git tag v1; \
             echo 2 > kept; rm gone; echo new > d/new; echo staged > staged; git add staged; echo no > ignored",
        );
        assert_eq!(copy(&from, &to).unwrap(), 5);
        assert_eq!(
            shell(&to, "cat kept d/new link; ls; git describe --tags"),
            "2\nnew\n2\nd\nkept\nlink\nstaged\nv1\n"
        );
        assert_eq!(shell(&to, "git status --porcelain"), shell(&from, "git status --porcelain"));
        // What is done there stays there.
        shell(&to, "git add -A; git commit -qm second; git tag v2; echo 3 > kept");
        assert_eq!(shell(&from, "git tag; git log --oneline | wc -l; cat kept"), "v1\n1\n2\n");
        assert_eq!(shell(&to, "git fsck 2>&1 | grep -c missing || true"), "0\n");
    }

    #[test]
    fn a_directory_that_is_no_repository_is_copied_whole() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::write(from.join("a/b/c"), "x").unwrap();
        assert_eq!(copy(&from, &to).unwrap(), 1);
        assert!(to.join("a/b/c").is_file() && !to.join(".git").exists());
    }
}
