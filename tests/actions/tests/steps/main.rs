//! What steps may do, with real counterparts: Node with the official `@actions/*` packages, git, terminals, and
//! `act` as a second opinion. Most of it needs no daemon: `naru ci run` takes workflows through the same
//! engine as the server.
//!
//! They need `cargo build -p naru` and what `scripts/setup.sh` installs.

#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up fails where it stands")]

mod act;
mod daemon;
mod job;
mod local;
mod packages;

use naru_actions_tests::harness::naru_binary;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A work tree with workflows, and directories of actions and for what the programs keep.
pub struct Project {
    root: tempfile::TempDir,
}

impl Project {
    /// Files of the work tree, committed; those whose name begins with `actions/` are of the directory of
    /// actions (`actions/<owner>/<name>/...`).
    pub fn new(files: &[(&str, &str)]) -> Self {
        let root = tempfile::Builder::new().prefix("naru-steps-").tempdir().unwrap();
        let it = Self { root };
        for directory in ["tree", "actions", "home"] {
            std::fs::create_dir(it.path(directory)).unwrap();
        }
        for (path, content) in files {
            it.write(path, content);
        }
        it.shell(
            "git init -q -b main; git add -A; git -c user.email=t@t -c user.name=tester commit -qm first",
        );
        it
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn write(&self, path: &str, content: &str) {
        let path = if path.starts_with("actions/") { self.path(path) } else { self.path("tree").join(path) };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn shell(&self, script: &str) -> String {
        let output = self.command("bash").args(["-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        text(&output.stdout)
    }

    /// A program in the work tree, which finds nothing of whoever runs the tests.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let home = self.path("home");
        command.current_dir(self.path("tree")).env("HOME", &home);
        command.env("XDG_CACHE_HOME", home.join("cache")).env("XDG_CONFIG_HOME", home.join("config"));
        command.env_remove("GITHUB_ACTIONS").env_remove("CI");
        command
    }

    pub fn naru(&self, args: &[&str]) -> Command {
        let mut command = self.command(naru_binary().to_str().unwrap());
        command.args(["ci", "run", "--actions-dir"]).arg(self.path("actions")).args(args);
        command
    }

    /// Runs the workflows; standard output and the exit code.
    pub fn run(&self, args: &[&str]) -> (String, i32) {
        let output: Output = self.naru(args).output().unwrap();
        let all = format!("{}{}", text(&output.stdout), text(&output.stderr));
        (all, output.status.code().unwrap_or(-1))
    }
}

/// A workflow with one job of these steps.
pub fn steps(steps: &str) -> String {
    format!("on: push\njobs:\n  a:\n    runs-on: ubuntu-latest\n    steps:\n{steps}")
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `scripts/setup.sh` put into `.tools`.
pub fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools").join(name)
}
