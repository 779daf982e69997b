//! `naru`: the one binary. It is the daemon (`serve`), the client of everything that the daemon does, and,
//! under names that people never type, the helpers that run in pods, in shims and in git's hooks.
//!
//! Only this crate prints, reads the environment and knows several wings.

mod adapters;
mod cli;
mod commands;
mod connection;
mod engine_node;
mod error;
mod serve;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // Before anything else, and before any thread: container helpers must be single-threaded.
    naru_runtime::maybe_run_helper();
    if let Some(code) = commands::job::maybe_run() {
        return code;
    }
    let cli = cli::Cli::parse_from(commands::oci::arguments());
    let result = rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| error::Error::bug("the TLS provider was installed twice"))
        .and_then(|()| cli::run(cli));
    match result {
        Ok(code) => code,
        Err(error) => {
            error.print();
            std::process::ExitCode::FAILURE
        }
    }
}
