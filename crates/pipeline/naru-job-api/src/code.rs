//! What the services ask of the git server.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// A stream of bytes that may break.
pub type Bytestream = BoxStream<'static, std::io::Result<Bytes>>;

/// Repositories that are here, by their names without owner.
#[async_trait]
pub trait Code: Send + Sync {
    /// The commit that a branch, a tag, a full ref or a commit means; `None` if there is no such thing.
    async fn resolve(&self, repository: &str, name: &str) -> Result<Option<String>, String>;
    /// All files of a commit, as a gzip tar archive without a leading folder.
    async fn archive(&self, repository: &str, commit: &str) -> Result<Bytestream, String>;
    async fn default_branch(&self, repository: &str) -> Result<Option<String>, String>;
    async fn content(&self, repository: &str, commit: &str, path: &str) -> Result<Option<Content>, String>;
    /// What is known of a commit that is there.
    async fn commit(&self, repository: &str, commit: &str) -> Result<Commit, String>;
    /// What the second commit changes since it left the first.
    async fn compare(&self, repository: &str, base: &str, head: &str) -> Result<Comparison, String>;
}

pub struct Commit {
    pub parents: Vec<String>,
    pub author: String,
    pub email: String,
    pub date: String,
    pub message: String,
}

pub struct Comparison {
    pub files: Vec<Changed>,
    pub ahead: usize,
    pub behind: usize,
}

/// A file that differs; `letter` in git's words (`A`, `M`, `D`, `R`).
pub struct Changed {
    pub letter: char,
    pub path: String,
    pub previous: String,
    pub added: u64,
    pub removed: u64,
}

/// What stands at a path of a commit.
pub enum Content {
    File { sha: String, bytes: Vec<u8> },
    Directory(Vec<Row>),
}

/// One entry of a directory; `kind` in git's words (`blob`, `tree`, `commit`).
pub struct Row {
    pub kind: String,
    pub sha: String,
    pub bytes: u64,
    pub name: String,
}
