//! Events from other git hosts (GitHub, GitLab, Gitea, Forgejo), and our verdicts back to them.
//!
//! A host calls `POST /_hooks/<host>/<repository>`. The signature is verified over the raw body; what was
//! accepted is kept in a file until it is done, so that a crash loses no event. A push is fetched into our git
//! server and makes a run as every push does; a pull request is merged into its base and makes a run of the
//! merge. [`statuses`] writes each run's state back to the commit.
//!
//! Where a repository comes from, and how it is reached, is in the Secret `<repository>-upstream` ([`Upstream`]).

mod event;
mod server;
mod statuses;
mod upstream;
mod verify;
mod work;

pub use server::Hooks;
pub use statuses::start as start_statuses;
pub use upstream::{Host, Upstream, secret_name};

use naru_client::Client;
use std::path::PathBuf;

#[derive(Clone)]
pub struct Config {
    pub client: Client,
    pub namespace: String,
    pub git: naru_git::Config,
    /// Deliveries that are not done yet.
    pub dir: PathBuf,
    /// Where people see a run: `<this>/runs/<name>`.
    pub public_url: String,
}
