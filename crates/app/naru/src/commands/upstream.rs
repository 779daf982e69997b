//! `naru upstream REPOSITORY URL < token`: a repository that lives on another git host. What is pushed there
//! runs here, and the verdict goes back.

use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use naru_hooks::{Host, Upstream, secret_name};
use naru_objects::{NAMESPACE, kinds};
use serde_json::json;
use std::io::{IsTerminal, Read};
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct UpstreamArgs {
    /// Its name here, such as `shop`.
    repository: String,
    /// Where it lives: `https://github.com/acme/shop`.
    url: String,
    /// What the host is: github, gitlab, gitea or forgejo. Known for github.com, gitlab.com, gitea.com and codeberg.org.
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Where its interface is, if not where the host usually has it.
    #[arg(long, value_name = "URL")]
    api: Option<String>,
}

pub async fn run(global: &Global, args: &UpstreamArgs) -> Result<ExitCode> {
    if !naru_git::is_valid_name(&args.repository) {
        return Err(Error::new(format!("`{}` cannot be the name of a repository", args.repository))
            .hint("write lower-case letters, digits and dashes"));
    }
    let hosts = Host::ALL.map(Host::name).join(", ");
    let host = match &args.host {
        Some(it) => Host::parse(it)
            .ok_or_else(|| Error::new(format!("`{it}` is no host")).hint(format!("the hosts are {hosts}")))?,
        None => Host::of_url(&args.url).ok_or_else(|| {
            Error::new(format!("what is at {}?", args.url)).hint(format!("say it with --host: {hosts}"))
        })?,
    };
    let mut token = String::new();
    match std::io::stdin().is_terminal() {
        true => eprintln!(
            "no token was given: a repository that everybody may read, and no status is written back"
        ),
        false => drop(std::io::stdin().read_to_string(&mut token)?),
    }
    let bytes: [u8; 24] = rand::random();
    let secret: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
    let upstream =
        Upstream::new(host, &args.url, args.api.as_deref(), token.trim(), &secret).ok_or_else(|| {
            Error::new(format!("`{}` is no repository's URL", args.url))
                .hint("write it like https://github.com/acme/shop, without a user or a password")
        })?;
    let client = connection::client(global).await?;
    let object = upstream.to_secret(&args.repository, NAMESPACE);
    let name = secret_name(&args.repository);
    if client.get(&kinds::SECRET, NAMESPACE, &name).await?.is_some() {
        let data =
            json!({"metadata": {"labels": object["metadata"]["labels"]}, "stringData": object["stringData"]});
        client.patch_merge(&kinds::SECRET, NAMESPACE, &name, &data).await?;
    } else {
        client.create(&kinds::SECRET, &object).await?;
    }
    let endpoints = connection::endpoints(global)?;
    println!("add a webhook to {}:", upstream.url);
    println!("  URL           {}/_hooks/{}/{}", endpoints.http, host.name(), args.repository);
    println!("  content type  application/json");
    println!("  secret        {secret}");
    println!("  events        pushes, and pull requests (merge requests)");
    println!(
        "  (as seen from here: the host needs a way to this port, such as a proxy with TLS in front of it)"
    );
    println!("both are kept in the secret {name}; what is pushed there runs here from now on");
    Ok(ExitCode::SUCCESS)
}
