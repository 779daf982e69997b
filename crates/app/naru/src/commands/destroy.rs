//! `naru destroy`: nothing of a daemon stays but its data.

use crate::cli::Global;
use crate::error::Result;
use crate::serve;
use std::process::ExitCode;

pub async fn run(global: &Global) -> Result<ExitCode> {
    serve::destroy(&global.data_dir).await?;
    println!("every container, mount, link and cgroup of {} is gone", global.data_dir.display());
    Ok(ExitCode::SUCCESS)
}
