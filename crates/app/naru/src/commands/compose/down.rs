//! `naru down`: everything of a compose project goes.

use super::{ProjectArgs, load_everything, objects_of};
use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use clap::Args;
use naru_objects::{kinds, name_of};
use naru_spec::compose::PROJECT_LABEL;
use std::process::ExitCode;
use std::time::Duration;

/// Grace periods pass first; after this something holds a pod that will not let go by itself.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Args)]
pub struct DownArgs {
    #[command(flatten)]
    pub project: ProjectArgs,
    /// The named volumes, too, with everything in them.
    #[arg(short, long)]
    pub volumes: bool,
}

pub async fn run(global: &Global, args: &DownArgs) -> Result<ExitCode> {
    // A name is enough: a file that is broken or gone does not keep anything running.
    let name = match &args.project.project_name {
        Some(name) => name.clone(),
        None => load_everything(&args.project).map(|it| it.name).ok_or_else(|| {
            Error::new("the compose file cannot be read, so the project's name is not known")
                .hint("say it with `-p NAME`; `naru export` tells what is wrong with the file")
        })?,
    };
    let namespace = &args.project.namespace;
    let client = connection::client(global).await?;
    let selector = format!("{PROJECT_LABEL}={name}");
    let pods = client.cache(&kinds::POD, Some(namespace), &selector);
    pods.synced().await;
    let objects = objects_of(&client, namespace, &name).await?;
    let (claims, others): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|it| it.0.kind == "PersistentVolumeClaim");
    if others.is_empty() && (claims.is_empty() || !args.volumes) {
        println!("nothing runs of {name} in the namespace {namespace}");
    }
    for (kind, object) in &others {
        client.delete(kind, namespace, name_of(object), None).await?;
    }
    let mut changes = pods.changes();
    let gone = async {
        while !pods.list().is_empty() {
            changes.wait().await;
        }
    };
    if tokio::time::timeout(PATIENCE, gone).await.is_err() {
        let left: Vec<String> = pods.list().iter().map(|it| name_of(it).to_owned()).collect();
        return Err(Error::new(format!("these pods do not end: {}", left.join(", ")))
            .hint("`kubectl describe pod` says what holds them"));
    }
    for (kind, object) in &others {
        println!("  {} {} removed", kind.kind, name_of(object));
    }
    if args.volumes {
        let held = client.cache(&kinds::PERSISTENT_VOLUME_CLAIM, Some(namespace), &selector);
        held.synced().await;
        for (kind, object) in &claims {
            client.delete(kind, namespace, name_of(object), None).await?;
        }
        let mut changes = held.changes();
        let gone = async {
            while !held.list().is_empty() {
                changes.wait().await;
            }
        };
        if tokio::time::timeout(PATIENCE, gone).await.is_err() {
            return Err(
                Error::new("the volumes are still in use").hint("`kubectl describe pvc` says by whom")
            );
        }
        for (_, object) in &claims {
            println!("  volume {} removed", name_of(object));
        }
    } else if !claims.is_empty() {
        println!(
            "  {} kept; `naru down -v` removes them",
            match claims.len() {
                1 => "1 volume".to_owned(),
                count => format!("{count} volumes"),
            }
        );
    }
    Ok(ExitCode::SUCCESS)
}
