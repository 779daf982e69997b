//! `naru secret REPOSITORY NAME < value`.

use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use base64::Engine as _;
use naru_objects::{NAMESPACE, kinds};
use serde_json::json;
use std::io::Read;
use std::process::ExitCode;

#[derive(clap::Args, Clone)]
pub struct SecretArgs {
    repository: String,
    /// The name that `${{ secrets.NAME }}` uses. The value is read from standard input.
    name: String,
    /// Only for jobs that deploy to this environment.
    #[arg(long = "env", value_name = "ENVIRONMENT", default_value = "")]
    environment: String,
    /// A variable, which `${{ vars.NAME }}` shows to everybody, instead of a secret.
    #[arg(long)]
    variable: bool,
}

pub async fn run(global: &Global, args: &SecretArgs) -> Result<ExitCode> {
    let name = &args.name;
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !valid {
        return Err(Error::new(format!("`{name}` cannot name a secret: letters, digits and `_` only")));
    }
    let mut value = String::new();
    std::io::stdin().read_to_string(&mut value)?;
    // The line break that `echo` and an editor add is not part of the secret.
    let value = value.strip_suffix('\n').unwrap_or(&value);
    let client = connection::client(global).await?;
    let object_name = naru_runner::controller::secret_name(&args.repository, &args.environment);
    let (kind, data) = match args.variable {
        true => (kinds::CONFIG_MAP, json!({name: value})),
        false => (kinds::SECRET, json!({name: base64::engine::general_purpose::STANDARD.encode(value)})),
    };
    if client.get(&kind, NAMESPACE, &object_name).await?.is_some() {
        client.patch_merge(&kind, NAMESPACE, &object_name, &json!({"data": data})).await?;
    } else {
        let mut object = json!({
            "apiVersion": "v1", "kind": kind.kind,
            "metadata": {"name": object_name, "namespace": NAMESPACE}, "data": data});
        if !args.variable {
            object["type"] = json!("Opaque");
        }
        client.create(&kind, &object).await?;
    }
    let what = if args.variable { "configmap" } else { "secret" };
    println!("{name} is kept in the {what} {object_name}");
    Ok(ExitCode::SUCCESS)
}
