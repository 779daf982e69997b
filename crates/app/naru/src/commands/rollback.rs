//! `naru rollback APP`: the whole release before, as a new one.

use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use naru_objects::{NAMESPACE, Release, ReleasePhase, kinds};
use std::process::ExitCode;

pub async fn run(global: &Global, app: &str, to: Option<&str>) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let name = naru_rollout::roll_back(&client, NAMESPACE, app, to).await.map_err(|it| {
        Error::from(it).hint("`kubectl get releases` shows the releases, `naru status` what runs")
    })?;
    println!("{name} brings it back");
    let mut releases = client.cache(&kinds::RELEASE, Some(NAMESPACE), "");
    releases.synced().await;
    loop {
        if let Some(release) = releases.get(NAMESPACE, &name)
            && let Ok(release) = serde_json::from_value::<Release>((*release).clone())
        {
            match release.status.phase {
                ReleasePhase::Promoted => {
                    println!("{name} has all the traffic");
                    return Ok(ExitCode::SUCCESS);
                }
                it if it.is_final() => {
                    return Err(Error::new(format!("{name} ended as {it:?}: {}", release.status.message)));
                }
                _ => {}
            }
        }
        releases.changed().await;
    }
}
