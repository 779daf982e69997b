//! `RUN --mount=type=ssh`: an SSH agent for one build, with the keys that the client gave. Steps see its socket
//! and can have it sign; the keys themselves they never see.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// How keys are told from other secrets of an order: `ssh.default`.
pub const SSH_PREFIX: &str = "ssh.";
/// An agent that is not there by then does not come.
const START_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(
        "`{program}` cannot be run on the daemon's machine, which `--ssh` needs; install OpenSSH's client there"
    )]
    Missing { program: &'static str, source: io::Error },
    #[error("the SSH agent did not start")]
    NotStarted,
    #[error("the SSH agent does not take the key: {0}")]
    Key(String),
    #[error("cannot keep the SSH agent's socket")]
    Io(#[from] io::Error),
}

/// An agent; it ends with its handle.
pub(crate) struct Agent {
    directory: tempfile::TempDir,
    _process: Child,
}

impl Agent {
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent")
    }

    /// `keys` are private keys in files' format, one after the other.
    pub(crate) async fn start(dir: &Path, keys: &[u8]) -> Result<Self, AgentError> {
        let directory = tempfile::Builder::new().prefix("ssh-").tempdir_in(dir)?;
        let socket = directory.path().join("agent");
        let process = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| AgentError::Missing { program: "ssh-agent", source })?;
        let agent = Self { directory, _process: process };
        let listens = async {
            while tokio::net::UnixStream::connect(&socket).await.is_err() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(START_MAX, listens).await.map_err(|_| AgentError::NotStarted)?;
        for key in split_keys(keys) {
            agent.add(&key).await?;
        }
        Ok(agent)
    }

    async fn add(&self, key: &[u8]) -> Result<(), AgentError> {
        let missing = |source| AgentError::Missing { program: "ssh-add", source };
        let mut adding = Command::new("ssh-add")
            .args(["-q", "-"])
            .env("SSH_AUTH_SOCK", self.socket())
            // Nobody is there to type a passphrase.
            .env("SSH_ASKPASS_REQUIRE", "never")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(missing)?;
        if let Some(mut input) = adding.stdin.take() {
            input.write_all(key).await?;
        }
        let output = adding.wait_with_output().await.map_err(missing)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(AgentError::Key(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }
}

/// Each from its `BEGIN` to its `END`.
fn split_keys(bytes: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8_lossy(bytes);
    let mut keys = Vec::new();
    let mut key = String::new();
    for line in text.lines() {
        if !key.is_empty() || line.starts_with("-----BEGIN") {
            key.push_str(line);
            key.push('\n');
        }
        if line.starts_with("-----END") {
            keys.push(std::mem::take(&mut key).into_bytes());
        }
    }
    keys
}
