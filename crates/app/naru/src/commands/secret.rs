//! `naru secret REPOSITORY NAME < value`.

use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use base64::Engine as _;
use naru_objects::{NAMESPACE, kinds};
use serde_json::json;
use std::io::Read;
use std::process::ExitCode;

pub async fn run(global: &Global, repository: &str, name: &str) -> Result<ExitCode> {
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
    let object_name = naru_runner::controller::secret_name(repository, "");
    let data = json!({"data": {name: base64::engine::general_purpose::STANDARD.encode(value)}});
    if client.get(&kinds::SECRET, NAMESPACE, &object_name).await?.is_some() {
        client.patch_merge(&kinds::SECRET, NAMESPACE, &object_name, &data).await?;
    } else {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": object_name, "namespace": NAMESPACE}});
        object["data"] = data["data"].clone();
        client.create(&kinds::SECRET, &object).await?;
    }
    println!("{name} is kept in the secret {object_name}");
    Ok(ExitCode::SUCCESS)
}
