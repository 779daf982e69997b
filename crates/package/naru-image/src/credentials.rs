//! The ways into registries that people have already: Docker's `config.json`, with passwords in it or with
//! helpers that keep them (`docker-credential-<name>`, which speak a protocol of one line in and JSON out).

use crate::store::Credential;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

const HELPER_TIME_MAX: Duration = Duration::from_secs(15); // one that asks a person would hang for ever

/// What the configuration at `path` knows about a registry. Whatever is wrong with it is said in the log, and
/// the registry is asked without credentials.
pub(crate) async fn find(path: &Path, registry: &str) -> Option<Credential> {
    let text = tokio::fs::read(path).await.ok()?;
    let config: Value = match serde_json::from_slice(&text) {
        Ok(it) => it,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "this is no Docker configuration; it is not used");
            return None;
        }
    };
    let servers = servers(registry);
    let own_helper = servers.iter().find_map(|it| config["credHelpers"][it].as_str());
    if let Some(helper) = own_helper.or_else(|| config["credsStore"].as_str().filter(|it| !it.is_empty())) {
        for server in &servers {
            if let Some((user, password)) = ask(helper, server).await {
                return Some(Credential { registry: registry.to_owned(), user, password });
            }
        }
    }
    servers.iter().find_map(|it| from_auth(registry, &config["auths"][it]))
}

/// The names under which Docker may have written a registry down.
fn servers(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned(), format!("https://{registry}"), format!("http://{registry}")];
    if registry == "docker.io" {
        names.splice(0..0, ["https://index.docker.io/v1/".to_owned(), "index.docker.io".to_owned()]);
    }
    names
}

fn from_auth(registry: &str, auth: &Value) -> Option<Credential> {
    use base64::Engine;
    let text = |field: &str| auth[field].as_str().filter(|it| !it.is_empty()).map(str::to_owned);
    let (user, password) = match (text("username"), text("password")) {
        (Some(user), Some(password)) => (user, password),
        _ => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text("auth")?).ok()?;
            let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
            (user.to_owned(), password.to_owned())
        }
    };
    Some(Credential { registry: registry.to_owned(), user, password })
}

/// User and password from a helper; none if it has none.
async fn ask(helper: &str, server: &str) -> Option<(String, String)> {
    // The name becomes part of a program's name: nothing that leads elsewhere.
    if helper.contains('/') {
        tracing::warn!(helper, "a credential helper's name has no slashes; it is not asked");
        return None;
    }
    let program = format!("docker-credential-{helper}");
    let asked = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(HELPER_TIME_MAX, asked).await {
        Ok(Ok(it)) => it,
        Ok(Err(error)) => {
            tracing::warn!(program, %error, "a credential helper cannot be asked");
            return None;
        }
        Err(_) => {
            tracing::warn!(program, "a credential helper does not answer");
            return None;
        }
    };
    if !output.status.success() {
        return None; // "credentials not found" is its usual word
    }
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    let text = |field: &str| answer[field].as_str().filter(|it| !it.is_empty()).map(str::to_owned);
    Some((text("Username")?, text("Secret")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn credentials_are_found_under_the_names_that_docker_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let config = serde_json::json!({"auths": {
            "https://index.docker.io/v1/": {"auth": "bWU6cGFzczp3b3Jk"}, // me:pass:word
            "r.example.com:5000": {"username": "you", "password": "secret"},
            "broken": {"auth": "?"}}});
        std::fs::write(&path, config.to_string()).unwrap();
        let found = find(&path, "docker.io").await.unwrap();
        assert_eq!((found.user.as_str(), found.password.as_str()), ("me", "pass:word"));
        assert_eq!(find(&path, "r.example.com:5000").await.unwrap().user, "you");
        assert!(find(&path, "broken").await.is_none() && find(&path, "other").await.is_none());
        std::fs::write(&path, "{").unwrap();
        assert!(find(&path, "docker.io").await.is_none());
    }
}
