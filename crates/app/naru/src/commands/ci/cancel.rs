//! `naru ci cancel`: asks a run to end.

use super::{run_named, who};
use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use naru_objects::{NAMESPACE, annotations, kinds};
use serde_json::json;
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct CancelArgs {
    /// Such as `shop-main-3`.
    run: String,
}

pub async fn run(global: &Global, args: &CancelArgs) -> Result<ExitCode> {
    let client = connection::client(global).await?;
    let run = run_named(&client, &args.run).await?;
    let name = &run.metadata.name;
    if run.status.phase.is_final() {
        return Err(Error::new(format!("the run `{name}` has ended: {:?}", run.status.phase)));
    }
    let patch = json!({"metadata": {"annotations": {annotations::CANCEL: who()}}});
    client.patch_merge(&kinds::RUN, NAMESPACE, name, &patch).await?;
    println!("{name} is being cancelled; `naru ci why {name}` shows how far it is");
    Ok(ExitCode::SUCCESS)
}
