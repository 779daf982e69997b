//! `naru status`: what runs, and how the latest releases went.

use crate::cli::Global;
use crate::connection;
use crate::error::Result;
use naru_objects::{NAMESPACE, Release, ReleasePhase, Run, kinds};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// So many runs are shown.
const RUNS_SHOWN: usize = 5;

pub async fn run(global: &Global) -> Result<ExitCode> {
    let endpoints = connection::endpoints(global)?;
    let client = connection::client(global).await?;
    let releases = client.list(&kinds::RELEASE, Some(NAMESPACE), "").await?;
    let deployments = client.list(&kinds::DEPLOYMENT, Some(NAMESPACE), "").await?;
    let mut apps: BTreeMap<String, Vec<Release>> = BTreeMap::new();
    for object in releases {
        let release: Release = serde_json::from_value(object)?;
        apps.entry(release.spec.app.clone()).or_default().push(release);
    }
    if apps.is_empty() {
        println!("Nothing is deployed yet. Push a repository with a naru.yaml:");
        println!(
            "  git push {}/git/<app>.git main",
            endpoints.http.replace("http://", "http://naru:$(naru token)@")
        );
    }
    let gateway_port = endpoints.gateway.rsplit(':').next().unwrap_or_default().to_owned();
    for (app, mut releases) in apps {
        releases.sort_by_key(|it| it.spec.number);
        println!("{app}");
        for release in releases.iter().rev().take(5) {
            let status = &release.status;
            let weight = if status.phase == ReleasePhase::Progressing {
                format!(" at {} % of the traffic", status.weight)
            } else {
                String::new()
            };
            let message = status.message.lines().next().unwrap_or_default();
            println!(
                "  {:<14} {:<11} {}{weight}  {message}",
                release.metadata.name,
                format!("{:?}", status.phase),
                release.spec.change
            );
            if status.phase == ReleasePhase::Promoted {
                for service in &release.spec.services {
                    let ready = deployments
                        .iter()
                        .find(|it| naru_objects::name_of(it) == service.workload)
                        .map_or(0, |it| it["status"]["readyReplicas"].as_u64().unwrap_or_default());
                    println!("    {}: {ready}/{} pods ready", service.service, service.replicas);
                }
                for object in &release.spec.objects {
                    for host in object["spec"]["hostnames"].as_array().into_iter().flatten() {
                        println!("    http://{}:{gateway_port}", host.as_str().unwrap_or_default());
                    }
                }
            }
        }
    }
    let mut runs: Vec<Run> = client
        .list(&kinds::RUN, Some(NAMESPACE), "")
        .await?
        .into_iter()
        .filter_map(|it| serde_json::from_value(it).ok())
        .collect();
    runs.sort_by(|a, b| b.spec.pushed_at.cmp(&a.spec.pushed_at));
    if !runs.is_empty() {
        println!("\nlatest runs");
    }
    for run in runs.iter().take(RUNS_SHOWN) {
        println!(
            "  {:<20} {:<11} {}  {}",
            run.metadata.name,
            format!("{:?}", run.status.phase),
            run.spec.change,
            run.spec.message
        );
    }
    Ok(ExitCode::SUCCESS)
}
