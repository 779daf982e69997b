//! `naru ci`: workflows and their runs, a file per command.

pub mod cancel;
pub mod decide;
pub mod dispatch;
pub mod expr;
pub mod lint;
pub mod list;
pub mod rerun;
pub mod run;
mod screen;
mod services;
pub mod tests;
pub mod why;

use crate::cli::Global;
use crate::error::{Error, Result};
use clap::Subcommand;
use naru_client::Client;
use naru_objects::{NAMESPACE, Run, kinds};
use std::process::ExitCode;

#[derive(Subcommand, Clone)]
pub enum CiCommand {
    /// What is wrong with workflows and what they need: files, or a repository's directory. Exit code 1 if one
    /// cannot be honoured.
    Lint(lint::LintArgs),
    /// What an expression is: `naru ci expr "format('{0}', 1)"`, or questions as JSON with `-`.
    Expr(expr::ExprArgs),
    /// The latest runs: `naru ci list`, `naru ci list shop`.
    List(list::ListArgs),
    /// Why a run and its jobs ran, were skipped, failed or wait: `naru ci why shop-main-3`.
    Why(why::WhyArgs),
    /// The tests that a run's jobs told of in their output: failed, slow and flaky ones by name.
    Tests(tests::TestsArgs),
    /// Run a workflow by hand: `naru ci dispatch shop deploy.yml -f target=staging`.
    Dispatch(dispatch::DispatchArgs),
    /// End a run; jobs that clean up get the time for it.
    Cancel(cancel::CancelArgs),
    /// Run a run again, or what of it failed.
    Rerun(rerun::RerunArgs),
    /// Let a run deploy to an environment: `naru ci approve shop-main-3 production`.
    Approve(decide::DecideArgs),
    /// Keep a run from deploying to an environment.
    Reject(decide::DecideArgs),
    /// Run the workflows of this directory here and now, without a daemon: `naru ci run -j test`.
    Run(Box<run::RunArgs>),
}

pub async fn run(global: &Global, command: &CiCommand) -> Result<ExitCode> {
    match command {
        CiCommand::Lint(args) => lint::run(args),
        CiCommand::Expr(args) => expr::run(args),
        CiCommand::List(args) => list::run(global, args).await,
        CiCommand::Why(args) => why::run(global, args).await,
        CiCommand::Tests(args) => tests::run(global, args).await,
        CiCommand::Dispatch(args) => dispatch::run(global, args).await,
        CiCommand::Cancel(args) => cancel::run(global, args).await,
        CiCommand::Rerun(args) => rerun::run(global, args).await,
        CiCommand::Approve(args) => decide::run(global, args, "approved").await,
        CiCommand::Reject(args) => decide::run(global, args, "rejected").await,
        CiCommand::Run(args) => run::run(args).await,
    }
}

/// The run of a name; `run/NAME`, as `kubectl` prints it, is the same.
async fn run_named(client: &Client, name: &str) -> Result<Run> {
    let name = name.strip_prefix("run/").unwrap_or(name);
    match client.get(&kinds::RUN, NAMESPACE, name).await? {
        Some(object) => Ok(serde_json::from_value(object)?),
        None => Err(Error::new(format!("there is no run `{name}`")).hint("`naru ci list` shows them")),
    }
}

/// Who types, for the record; rights are the kubeconfig's.
fn who() -> String {
    std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "somebody".into())
}
