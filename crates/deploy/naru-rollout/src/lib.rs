//! From a successful run to traffic on the new version.
//!
//! [`releases`] makes `Image` requests and then one immutable `Release` of a run; [`plan`] decides, purely,
//! what a release needs next; [`execute`] does it. The only ground for moving traffic on is a verdict that
//! monitor has written.

pub mod execute;
pub mod plan;
pub mod releases;

use naru_client::Client;
use naru_objects::{Release, kinds};
use naru_source::Source;

#[derive(Clone)]
pub struct Config {
    pub namespace: String,
    pub source: Source,
}

/// Starts both controllers; they run until the tasks are aborted.
pub fn start(client: Client, config: Config) -> Vec<tokio::task::JoinHandle<()>> {
    vec![
        tokio::spawn(releases::run(client.clone(), config.clone())),
        tokio::spawn(execute::run(client, config)),
    ]
}

#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    #[error("the app {app} has no release that could be brought back")]
    NothingBefore { app: String },
    #[error("there is no release {name}")]
    NoSuchRelease { name: String },
    #[error("the release {name} never had anything to run, so there is nothing to bring back")]
    Empty { name: String },
    #[error(transparent)]
    Api(#[from] naru_client::Error),
}

/// Brings a whole earlier release back as a new one: the one named, or the last that was promoted before
/// the present one. Returns the new release's name.
pub async fn roll_back(
    client: &Client,
    namespace: &str,
    app: &str,
    to: Option<&str>,
) -> Result<String, RollbackError> {
    let all = releases::of_app(client, namespace, app).await?;
    let target = match to {
        Some(name) => all
            .iter()
            .find(|it| it.metadata.name == name)
            .ok_or_else(|| RollbackError::NoSuchRelease { name: name.to_owned() })?,
        None => previous_good(&all).ok_or_else(|| RollbackError::NothingBefore { app: app.to_owned() })?,
    };
    if target.spec.services.is_empty() {
        // Nothing would ever become of it, and whoever asked would wait.
        return Err(RollbackError::Empty { name: target.metadata.name.clone() });
    }
    loop {
        let all = releases::of_app(client, namespace, app).await?;
        let number = all.iter().map(|it| it.spec.number).max().unwrap_or_default() + 1;
        let release = releases::again(target, number);
        match client.create(&kinds::RELEASE, &release).await {
            Ok(_) => return Ok(naru_objects::name_of(&release).to_owned()),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The release that had all traffic before the one that has it now.
fn previous_good(all: &[Release]) -> Option<&Release> {
    let promoted = |it: &&Release| !it.status.promoted_at.is_empty();
    let mut good: Vec<&Release> = all.iter().filter(promoted).collect();
    good.sort_by(|a, b| b.status.promoted_at.cmp(&a.status.promoted_at));
    // What was brought back counts as what it brought back.
    let now = good.first()?;
    let same = |it: &Release| it.spec.images == now.spec.images && it.spec.sha == now.spec.sha;
    good.iter().skip(1).find(|it| !same(it)).copied()
}
