//! `naru kubeconfig`, `naru docker-socket` and `naru token`: what other clients need to connect.

use crate::cli::Global;
use crate::connection;
use crate::error::{Context, Result};
use std::process::ExitCode;

pub fn kubeconfig(global: &Global, path: bool) -> Result<ExitCode> {
    let file = connection::endpoints(global)?.kubeconfig;
    if path {
        println!("{}", file.display());
    } else {
        print!("{}", std::fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(ExitCode::SUCCESS)
}

pub fn docker_socket(global: &Global, path: bool) -> Result<ExitCode> {
    let socket = connection::endpoints(global)?.docker;
    match path {
        true => println!("{}", socket.display()),
        false => println!("DOCKER_HOST=unix://{}", socket.display()),
    }
    Ok(ExitCode::SUCCESS)
}

pub fn token(global: &Global) -> Result<ExitCode> {
    let file = connection::push_token_path(&global.data_dir);
    println!(
        "{}",
        std::fs::read_to_string(&file).context(|| format!("cannot read {}", file.display()))?.trim()
    );
    Ok(ExitCode::SUCCESS)
}
