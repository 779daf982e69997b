//! `naru ci`: workflows and their runs, a file per command.

pub mod list;

use crate::cli::Global;
use crate::error::Result;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Subcommand, Clone)]
pub enum CiCommand {
    /// The latest runs: `naru ci list`, `naru ci list shop`.
    List(list::ListArgs),
}

pub async fn run(global: &Global, command: &CiCommand) -> Result<ExitCode> {
    match command {
        CiCommand::List(args) => list::run(global, args).await,
    }
}
