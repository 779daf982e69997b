//! The example as a git repository of its own, and what a developer does with it.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The example's files, so that the demo runs from the binary alone.
const FILES: &[(&str, &str)] = &[
    (".dockerignore", include_str!("../../../../../../examples/shop/.dockerignore")),
    (".gitignore", include_str!("../../../../../../examples/shop/.gitignore")),
    (".github/workflows/ci.yml", include_str!("../../../../../../examples/shop/.github/workflows/ci.yml")),
    ("Cargo.lock", include_str!("../../../../../../examples/shop/Cargo.lock")),
    ("Cargo.toml", include_str!("../../../../../../examples/shop/Cargo.toml")),
    ("Dockerfile", include_str!("../../../../../../examples/shop/Dockerfile")),
    ("naru.yaml", include_str!("../../../../../../examples/shop/naru.yaml")),
    ("src/catalogue.rs", CATALOGUE),
    ("src/main.rs", include_str!("../../../../../../examples/shop/src/main.rs")),
];

const CATALOGUE: &str = include_str!("../../../../../../examples/shop/src/catalogue.rs");

pub struct Repository {
    dir: PathBuf,
}

impl Repository {
    /// Writes the example, commits it as v1 and names the server as the remote `naru`.
    pub async fn create(dir: &Path, remote: &str) -> Result<Self> {
        for (path, text) in FILES {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().expect("every file stands in the directory"))?;
            std::fs::write(path, text)?;
        }
        let it = Self { dir: dir.to_owned() };
        it.git(&["init", "--quiet", "--initial-branch=main"]).await?;
        it.git(&["add", "."]).await?;
        it.commit("v1: a shop").await?;
        it.git(&["remote", "add", "naru", remote]).await?;
        Ok(it)
    }

    /// A one-line change, committed.
    pub async fn set_version(&self, version: &str, fail_every: u64) -> Result<()> {
        let text = CATALOGUE
            .replace("VERSION: &str = \"v1\"", &format!("VERSION: &str = \"{version}\""))
            .replace("FAIL_EVERY: u64 = 0", &format!("FAIL_EVERY: u64 = {fail_every}"));
        std::fs::write(self.dir.join("src/catalogue.rs"), text)?;
        self.commit(&format!("{version}: a one-line change")).await
    }

    async fn commit(&self, message: &str) -> Result<()> {
        let identity = ["-c", "user.name=Demo", "-c", "user.email=demo@example.org"];
        let mut args = identity.to_vec();
        args.extend(["commit", "--quiet", "--all", "-m", message]);
        self.git(&args).await
    }

    /// `git push naru <branch>`, with what the server says on our terminal.
    pub async fn push(&self, branch: &str) -> Result<()> {
        println!("$ git push naru {branch}");
        self.git(&["push", "naru", branch]).await
    }

    /// Pushes the present commit as another branch, without waiting for what becomes of it.
    pub async fn push_branch(&self, branch: &str) -> Result<()> {
        println!("$ git push naru main:{branch} &");
        let refspec = format!("main:refs/heads/{branch}");
        let mut child =
            self.command(&["push", "naru", &refspec]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }

    fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("git");
        command.args(args).current_dir(&self.dir).env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null());
        command
    }

    async fn git(&self, args: &[&str]) -> Result<()> {
        let status = self.command(args).status().await?;
        if status.success() {
            return Ok(());
        }
        Err(Error::new(format!("`git {}` ended with {status}", args.first().unwrap_or(&""))))
    }
}
