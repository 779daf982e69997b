//! Pod security by the labels of a namespace.

use kube_kinds::pod_security::{self, Level};
use kube_kinds::{Failure, Kind, name};
use serde_json::Value;

use crate::Writer;

const PREFIX: &str = "pod-security.kubernetes.io/";

fn level(namespace: &Value, mode: &str) -> Level {
    let label = namespace["metadata"]["labels"][format!("{PREFIX}{mode}")].as_str().unwrap_or("");
    Level::parse(label).unwrap_or(Level::Privileged)
}

/// A pod that its namespace does not allow is refused; a workload whose pods would be is told.
pub(super) fn check(namespace: &Value, kind: &Kind, object: &Value, writer: &Writer) -> Result<(), Failure> {
    let template = match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "pods") => object,
        ("apps", _) | ("batch", "jobs") | ("", "replicationcontrollers") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return Ok(()),
    };
    if !template["spec"].is_object() {
        return Ok(());
    }
    let told = |mode: &str| -> Option<String> {
        let level = level(namespace, mode);
        let found = pod_security::violations(level, &template["metadata"], &template["spec"]);
        (!found.is_empty())
            .then(|| format!("violate PodSecurity \"{}:latest\": {}", level.word(), found.join(", ")))
    };
    if kind.is_pod()
        && let Some(why) = told("enforce")
    {
        return Err(Failure::forbidden(kind, name(object), &why.replacen("violate", "violates", 1)));
    }
    if let Some(why) = told("warn") {
        writer.notes.warn(format!("would {why}"));
    }
    if !kind.is_pod()
        && let Some(why) = told("enforce")
    {
        writer.notes.warn(format!("would {why}"));
    }
    Ok(())
}
