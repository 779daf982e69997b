//! The ways into registries that a pod brings: its `imagePullSecrets`.

use base64::Engine;
use naru_client::Client;
use serde_json::Value;

use crate::environment::key_of;
use crate::image::Credential;
use crate::pod::DesiredPod;
use crate::provide;

/// All credentials of the pod's secrets, in their order. One that is missing or unreadable is none, as
/// everywhere: the pull says what it lacks.
pub(crate) async fn of(client: &Client, pod: &DesiredPod) -> Vec<Credential> {
    let mut found = Vec::new();
    for name in &pod.pull_secrets {
        let names = vec![(true, name.clone())];
        match provide::fetch(client, &pod.namespace, names).await {
            Ok(sources) => found.extend(sources.into_values().flatten().flat_map(|secret| parse(&secret))),
            Err(error) => tracing::warn!(pod = pod.name, secret = name, error, "cannot read a pull secret"),
        }
    }
    found
}

/// `kubernetes.io/dockerconfigjson` and its older form without `auths`.
fn parse(secret: &Value) -> Vec<Credential> {
    let file = [".dockerconfigjson", ".dockercfg"].iter().find_map(|key| key_of(true, secret, key));
    let Some(config) = file.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else {
        return Vec::new();
    };
    let auths = config.get("auths").unwrap_or(&config);
    auths.as_object().into_iter().flatten().filter_map(|(server, auth)| credential(server, auth)).collect()
}

fn credential(server: &str, auth: &Value) -> Option<Credential> {
    let text = |field: &str| auth[field].as_str().filter(|it| !it.is_empty()).map(str::to_owned);
    let (user, password) = match (text("username"), text("password")) {
        (Some(user), Some(password)) => (user, password),
        _ => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text("auth")?).ok()?;
            let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
            (user.to_owned(), password.to_owned())
        }
    };
    // Docker writes its own registry as `https://index.docker.io/v1/`.
    let host = server.trim_start_matches("https://").trim_start_matches("http://");
    let registry = match host.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    Some(Credential { registry: registry.to_owned(), user, password })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn credentials_are_found_in_both_forms() {
        let encode = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        let auth = encode("me:pass:word".into());
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": auth},
            "r.example.com:5000": {"username": "you", "password": "secret"},
            "broken": {"auth": "?"}}});
        let secret = json!({"data": {".dockerconfigjson": encode(config.to_string())}});
        let found = parse(&secret);
        let credential = |registry: &str, user: &str, password: &str| Credential {
            registry: registry.into(),
            user: user.into(),
            password: password.into(),
        };
        assert!(found.contains(&credential("docker.io", "me", "pass:word")), "{found:?}");
        assert!(found.contains(&credential("r.example.com:5000", "you", "secret")));
        assert_eq!(found.len(), 2);
        let old = json!({"data": {".dockercfg": encode(json!({"r": {"auth": auth}}).to_string())}});
        assert_eq!(parse(&old), [credential("r", "me", "pass:word")]);
        assert_eq!(parse(&json!({"data": {}})), []);
    }
}
