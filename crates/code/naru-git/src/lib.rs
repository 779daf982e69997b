//! The git server: smart HTTP in front of the `git` program's own backend, and [`record`], which turns
//! what was pushed into `Run` objects.
//!
//! A repository is created by the first push to it. Who holds the push token may do everything; a run's
//! token ([`Tokens::for_reading`]) may read one repository; a job's token ([`JobTokens`]) may do with its
//! repository what its permission `contents` says. What a job pushes makes no run, so that a workflow which
//! commits does not start itself.
//!
//! Nothing is lost between a push and its run: git keeps a log of every update of a ref, and [`record`]
//! writes a `Run` for each entry that has none yet. It is called by the hook of a push and at every start.

mod mirror;
mod pulls;
mod read;
mod record;
mod serve;
pub mod ssh;

pub use mirror::{MirrorError, Noted, Remote, delete_ref, fetch, merge, set_default_branch};
pub use pulls::book::{Entry as PullEntry, State as PullState};
pub use pulls::settle::{
    Listed as Pull, Method, PullError, close, list as pulls, merge as merge_pull, reopen,
};
pub use read::{Changed, Commit, Entry, ReadError, archive, commit, compare, default_branch, entry, resolve};
pub use record::{RecordError, record, record_all};
pub use serve::router;

use base64::Engine as _;
use futures::future::BoxFuture;
use hmac::{Hmac, Mac};
use naru_token::JobClaims;
use sha2::Sha256;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest name of a repository: it becomes part of Kubernetes names.
const NAME_CHARS_MAX: usize = 40;

/// The largest pack that a push may bring; a repository beyond it holds things that are not source code.
const PACK_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

#[derive(Clone)]
pub struct Config {
    /// Where the bare repositories are, `<name>.git` each.
    pub root: PathBuf,
    pub tokens: Tokens,
    pub jobs: JobTokens,
    /// The program that the post-receive hook runs, with its arguments, and what it finds in its environment.
    pub hook_command: Vec<String>,
    pub hook_env: Vec<(String, String)>,
}

/// Tells whose a job's token is, or why it opens nothing.
#[derive(Clone)]
pub struct JobTokens(pub Arc<dyn Fn(String) -> BoxFuture<'static, Result<JobClaims, String>> + Send + Sync>);

/// Who may do what. Made from one secret, so that nothing has to be stored per repository.
#[derive(Clone)]
pub struct Tokens {
    push: String,
    key: Vec<u8>,
}

impl Tokens {
    pub fn new(push: String, key: Vec<u8>) -> Self {
        Self { push, key }
    }

    /// The token that may read one repository: an HMAC-SHA256 of its name.
    pub fn for_reading(&self, repository: &str) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(repository.as_bytes());
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    }

    /// The token that may read every repository: for our own stages.
    pub fn for_reading_all(&self) -> String {
        // No repository is named so, see `is_valid_name`.
        self.for_reading("*")
    }

    fn may_push(&self, token: &str) -> bool {
        same(token, &self.push)
    }

    fn may_read(&self, token: &str, repository: &str) -> bool {
        self.may_push(token)
            || same(token, &self.for_reading(repository))
            || same(token, &self.for_reading_all())
    }
}

/// Compares without telling by the time it takes where the first difference is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// Whether a name may be a repository's: lower-case letters, digits and dashes, as Kubernetes names are.
pub fn is_valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_CHARS_MAX
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The directory of a repository.
pub fn directory(root: &Path, name: &str) -> PathBuf {
    root.join(format!("{name}.git"))
}

/// The names of all repositories.
pub fn repositories(root: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|it| it.file_name().to_str()?.strip_suffix(".git").map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[derive(Debug, thiserror::Error)]
#[error("cannot create the repository {name}: {message}")]
pub struct CreateError {
    name: String,
    message: String,
}

/// Creates a repository if there is none, and brings its settings and hook up to date. `git init` on a
/// repository that is there changes nothing, so a half-made one is completed.
pub async fn create(config: &Config, name: &str) -> Result<(), CreateError> {
    create_in(&config.root, name).await
}

pub(crate) async fn create_in(root: &Path, name: &str) -> Result<(), CreateError> {
    let fail = |message: String| CreateError { name: name.to_owned(), message };
    let directory = directory(root, name);
    if directory.join("naru-ready").exists() {
        return Ok(());
    }
    tokio::fs::create_dir_all(root).await.map_err(|it| fail(it.to_string()))?;
    let pack_bytes_max = PACK_BYTES_MAX.to_string();
    let target = directory.display().to_string();
    let mut commands: Vec<Vec<&str>> =
        vec![vec!["init", "--quiet", "--bare", "--initial-branch=main", &target]];
    for (key, value) in [
        ("http.receivepack", "true"),
        ("core.logAllRefUpdates", "always"),
        // An acknowledged push is on the disk.
        ("core.fsync", "all"),
        ("core.hooksPath", "hooks"),
        ("transfer.fsckObjects", "true"),
        ("receive.maxInputSize", pack_bytes_max.as_str()),
        ("receive.autogc", "false"),
        ("uploadpack.allowAnySHA1InWant", "true"),
        ("gc.reflogExpire", "never"),
        ("gc.reflogExpireUnreachable", "never"),
    ] {
        commands.push(vec!["-C", &target, "config", key, value]);
    }
    for args in commands {
        let output = git().args(&args).output().await.map_err(|it| fail(format!("git: {it}")))?;
        if !output.status.success() {
            return Err(fail(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
    }
    let hook = directory.join("hooks/post-receive");
    let write = async {
        tokio::fs::create_dir_all(directory.join("hooks")).await?;
        tokio::fs::write(&hook, HOOK).await?;
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        tokio::fs::write(directory.join("naru-ready"), "").await
    };
    write.await.map_err(|it| fail(it.to_string()))
}

/// The hook is the same in every repository: what it runs comes from the environment that the server
/// gives to the backend, so that an upgrade of naru needs no change on the disk.
const HOOK: &str = "#!/bin/sh\n[ -n \"$NARU_HOOK\" ] || exit 0\nexec $NARU_HOOK\n";

/// The `git` program with nothing of the machine's own configuration.
fn git() -> tokio::process::Command {
    let mut command = tokio::process::Command::new("git");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env_remove("GIT_DIR")
        .env_remove("GIT_QUARANTINE_PATH")
        .kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_token_opens_one_repository() {
        let tokens = Tokens::new("secret".into(), b"key".to_vec());
        let shop = tokens.for_reading("shop");
        assert!(tokens.may_read(&shop, "shop"));
        assert!(!tokens.may_read(&shop, "other"));
        assert!(!tokens.may_push(&shop));
        assert!(tokens.may_push("secret") && tokens.may_read("secret", "other"));
    }

    #[test]
    fn names_that_could_leave_the_root_are_refused() {
        for bad in ["", "..", "a/b", "Shop", "-a", "a.git", &"a".repeat(41)] {
            assert!(!is_valid_name(bad), "{bad}");
        }
        assert!(is_valid_name("shop-2"));
    }
}
