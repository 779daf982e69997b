//! What a repository keeps for its pipeline, and the rules of the places that it deploys to.
//!
//! Secrets are in the Secret `<repository>-ci`, variables in the ConfigMap of the same name; those of an
//! environment in `<repository>-ci-<environment>`. An `Environment` object, if there is one, says whose
//! approval a job waits for, how long it waits, and which branches may come.

use naru_client::Client;
use naru_objects::{Environment, dns_label, dns_label_unique, kinds};
use naru_plan_dialects::github::matches_ref;
use serde_json::{Map, Value, json};

/// The Secret that holds a repository's CI secrets, or those of one of its environments.
pub fn secret_name(repository: &str, environment: &str) -> String {
    let base = format!("{}-ci", dns_label(repository, 50));
    if environment.is_empty() { base } else { dns_label_unique(&format!("{base}-{environment}"), 63) }
}

/// The ConfigMap that holds its variables.
pub fn variables_name(repository: &str, environment: &str) -> String {
    secret_name(repository, environment)
}

/// The annotation of a run that says what was decided about an environment: `approved by ...` or
/// `rejected by ...`.
pub fn approval_annotation(environment: &str) -> String {
    format!("approval.naru.dev/{}", dns_label_unique(environment, 60))
}

/// A repository's secrets by name.
pub async fn secrets(
    client: &Client,
    namespace: &str,
    repository: &str,
    environment: &str,
) -> Result<Map<String, Value>, naru_client::Error> {
    use base64::Engine as _;
    let mut secrets = Map::new();
    let name = secret_name(repository, environment);
    if let Some(object) = client.get(&kinds::SECRET, namespace, &name).await? {
        for (name, value) in object["data"].as_object().into_iter().flatten() {
            let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
            secrets.insert(name.clone(), json!(String::from_utf8_lossy(&bytes.unwrap_or_default())));
        }
    }
    Ok(secrets)
}

/// A repository's variables by name.
pub async fn variables(
    client: &Client,
    namespace: &str,
    repository: &str,
    environment: &str,
) -> Result<Map<String, Value>, naru_client::Error> {
    let name = variables_name(repository, environment);
    let object = client.get(&kinds::CONFIG_MAP, namespace, &name).await?.unwrap_or_default();
    Ok(object["data"].as_object().cloned().unwrap_or_default())
}

/// Whether a job may deploy to an environment now.
#[derive(Debug, PartialEq)]
pub enum Gate {
    Open,
    /// Not yet; what is waited for.
    Waits(String),
    /// Never in this run.
    Closed(String),
}

/// Decides by the environment's rules and what was said on the run. `waited` is in minutes since the job could
/// have begun.
pub fn gate(
    environment: &Environment,
    run: &str,
    decision: Option<&str>,
    ref_name: &str,
    waited: i64,
) -> Gate {
    let spec = &environment.spec;
    let name = &spec.name;
    if !spec.branches.is_empty() && !spec.branches.iter().any(|it| matches_ref(it, ref_name)) {
        let allowed = spec.branches.join(", ");
        return Gate::Closed(format!("`{ref_name}` may not deploy to `{name}`; only {allowed} may"));
    }
    if !spec.reviewers.is_empty() {
        match decision {
            Some(it) if it.starts_with("approved") => {}
            Some(it) => return Gate::Closed(format!("the deployment to `{name}` was {it}")),
            None => {
                let who = spec.reviewers.join(" or ");
                return Gate::Waits(format!(
                    "waits for {who} to approve the deployment to `{name}`: naru ci approve {run} {name}"
                ));
            }
        }
    }
    let left = i64::from(spec.wait_minutes) - waited;
    if left > 0 {
        return Gate::Waits(format!("waits {left} more minutes before the deployment to `{name}`"));
    }
    Gate::Open
}

#[cfg(test)]
mod tests {
    use super::*;
    use naru_objects::EnvironmentSpec;

    #[test]
    fn an_environment_opens_by_branch_approval_and_time() {
        let mut environment = Environment {
            spec: EnvironmentSpec {
                name: "production".into(),
                branches: vec!["main".into(), "release/*".into()],
                reviewers: vec!["ann".into()],
                wait_minutes: 10,
                ..EnvironmentSpec::default()
            },
            ..Environment::default()
        };
        let at = |it: &Environment, decision, name, waited| gate(it, "shop-1", decision, name, waited);
        assert!(matches!(at(&environment, None, "fix", 0), Gate::Closed(_)));
        assert!(matches!(at(&environment, None, "release/1/2", 0), Gate::Closed(_)));
        let Gate::Waits(why) = at(&environment, None, "release/1", 0) else { panic!() };
        assert!(why.ends_with("naru ci approve shop-1 production"), "{why}");
        assert!(matches!(at(&environment, Some("rejected by ann"), "main", 0), Gate::Closed(_)));
        assert!(matches!(at(&environment, Some("approved by ann"), "main", 9), Gate::Waits(_)));
        assert_eq!(at(&environment, Some("approved by ann"), "main", 10), Gate::Open);
        environment.spec = EnvironmentSpec::default();
        assert_eq!(at(&environment, None, "fix", 0), Gate::Open);
    }
}
