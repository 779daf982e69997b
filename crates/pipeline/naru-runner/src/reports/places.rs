//! Where test programs leave their reports when nobody tells them otherwise, and those of a job's workspace.

use super::junit;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A workspace is looked through as far as this: a monorepo with its dependencies has more, and its reports are
/// not the last of it.
const ENTRIES_MAX: usize = 200_000;
const DEPTH_MAX: usize = 16;

/// More reports of one job are left out, and it is said.
pub const FILES_MAX: usize = 500;

/// Directories that hold other people's files.
const LEFT_OUT: &[&str] =
    &[".git", "node_modules", "vendor", ".venv", "venv", "site-packages", ".cargo", ".gradle", ".tox"];

/// Whether a file at this path of the workspace is where a report would be.
pub fn is_known(path: &str) -> bool {
    let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
    let lower = name.to_ascii_lowercase();
    let Some(stem) = lower.strip_suffix(".xml") else { return false };
    let in_directory = |wanted: &str| directories.split('/').any(|it| it == wanted);
    // Gradle; surefire and failsafe of Maven; whatever is called so.
    let by_directory =
        ["test-results", "test-reports", "surefire-reports", "failsafe-reports", "test_results", "junit"];
    let by_name = [
        "junit",
        "test-results",
        "test-report",
        "test_results",
        "test-reports",
        "unit-tests",
        "pytest",
        "gotestsum",
        "nosetests",
    ];
    name.starts_with("TEST-")
        || by_directory.iter().any(|it| in_directory(it))
        || by_name.iter().any(|it| {
            stem == *it || stem.starts_with(&format!("{it}-")) || stem.starts_with(&format!("{it}_"))
        })
        || stem.ends_with("junit")
}

/// The reports that a job has left in its workspace, in order. Files that the repository tracks are part of its
/// sources, and no results.
pub fn find(workspace: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries = 0;
    let mut open = vec![(workspace.to_owned(), 0)];
    while let Some((directory, depth)) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            entries += 1;
            if entries > ENTRIES_MAX {
                break;
            }
            // Links are not followed: they lead out, or in circles.
            let Ok(kind) = entry.file_type() else { continue };
            let (path, name) = (entry.path(), entry.file_name());
            if kind.is_dir() && depth < DEPTH_MAX && !LEFT_OUT.iter().any(|it| name == *it) {
                open.push((path, depth + 1));
            } else if kind.is_file()
                && path.strip_prefix(workspace).is_ok_and(|it| is_known(&it.to_string_lossy()))
                && looks_right(&path)
            {
                found.push(path);
            }
        }
    }
    if !found.is_empty() {
        let tracked = tracked(workspace);
        found.retain(|it| {
            it.strip_prefix(workspace).is_ok_and(|it| !tracked.iter().any(|known| Path::new(known) == it))
        });
    }
    found.sort();
    found
}

fn looks_right(path: &Path) -> bool {
    let mut head = Vec::new();
    let Ok(file) = std::fs::File::open(path) else { return false };
    let small = file.metadata().is_ok_and(|it| it.len() <= junit::FILE_BYTES_MAX);
    small && file.take(4096).read_to_end(&mut head).is_ok() && junit::is_report(&head)
}

/// XML files that git knows in the workspace; none without git.
fn tracked(workspace: &Path) -> Vec<String> {
    let mut git = Command::new("git");
    git.arg("-C").arg(workspace).args(["-c", "safe.directory=*", "ls-files", "-z", "--", "*.xml"]);
    let output = git.stdin(std::process::Stdio::null()).output();
    let output = output.ok().filter(|it| it.status.success()).map(|it| it.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).split('\0').filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_found_where_programs_leave_them() {
        for known in [
            "junit.xml",
            "report-junit.xml",
            "target/nextest/ci/junit.xml",
            "app/build/test-results/test/x.xml",
            "target/surefire-reports/TEST-a.xml",
            "TEST-a.B.xml",
            "test-results.xml",
            "pytest-report.xml",
            "a/JUnit_1.XML",
        ] {
            assert!(is_known(known), "{known}");
        }
        for other in ["pom.xml", "junit.txt", "src/main/resources/context.xml", "latest-news.xml"] {
            assert!(!is_known(other), "{other}");
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let write = |path: &str, text: &str| {
            std::fs::create_dir_all(at.join(path).parent().unwrap()).unwrap();
            std::fs::write(at.join(path), text).unwrap();
        };
        write("a/junit.xml", "<testsuites/>");
        write("tests/data/junit.xml", "<testsuite/>");
        write("b/junit.xml", "<project/>");
        write("node_modules/x/junit.xml", "<testsuite/>");
        std::os::unix::fs::symlink(at.join("a"), at.join("c")).unwrap();
        for args in [&["init", "-q"][..], &["add", "tests"]] {
            assert!(Command::new("git").arg("-C").arg(at).args(args).status().unwrap().success());
        }
        assert_eq!(find(at), [at.join("a/junit.xml")]);
    }
}
