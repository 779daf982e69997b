//! A pod that can be stopped and started again, as a container of Docker's can: a Pod of Kubernetes knows only
//! one life. Whoever owns such a pod says in two annotations what a Pod has no words for, and changes the first
//! to stop it and to start it again; its files, its log and its name stay.

use naru_objects::labels;
use serde::Deserialize;
use serde_json::Value;

/// The annotation [`labels::LIFE`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Life {
    /// The number of the life that is wanted; 0 is "made, never started". A larger one begins anew.
    pub run: u32,
    /// End what runs and keep what is left of it.
    #[serde(default)]
    pub stopped: bool,
    /// Seconds between the signal and the kill, instead of the pod's.
    #[serde(default)]
    pub grace: Option<i64>,
    #[serde(default)]
    pub restart: Restart,
    /// For [`Restart::OnFailure`]; `None` is without end.
    #[serde(default)]
    pub retries: Option<u32>,
}

/// The pod's own restart policy cannot change, this one can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    No,
    OnFailure,
    Always,
}

impl Life {
    /// Whether an end is followed by a start. `restarts` are those of this life so far.
    pub fn restarts(&self, code: i32, restarts: u32) -> bool {
        match self.restart {
            _ if self.stopped => false,
            Restart::No => false,
            Restart::OnFailure => code != 0 && self.retries.is_none_or(|max| restarts < max),
            Restart::Always => true,
        }
    }
}

/// The annotation [`labels::OPTIONS`]: what a container may be told that a Pod cannot say. Nothing here gives a
/// pod more than its security context allows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Options {
    /// By name or number, with or without a group, as in an image; in place of the image's.
    pub user: Option<String>,
    /// Fewer processes than the node allows.
    pub pids_max: Option<u64>,
    pub limits: Vec<ResourceLimit>,
    /// Freer than a Pod's: upper case, dots, underscores.
    pub hostname: Option<String>,
    /// Only the variables of the image and its own: none that tell of the cluster.
    pub plain_environment: bool,
    /// Variables of the image that the container does not get.
    pub unset: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ResourceLimit {
    /// `nofile`.
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// Both annotations of a pod, or why they mean nothing.
pub fn lower(annotations: &Value) -> Result<(Option<Life>, Options), String> {
    fn read<T: serde::de::DeserializeOwned>(annotations: &Value, name: &str) -> Result<Option<T>, String> {
        let Some(text) = annotations[name].as_str() else { return Ok(None) };
        serde_json::from_str(text).map(Some).map_err(|error| format!("annotation {name}: {error}"))
    }
    let options: Options = read(annotations, labels::OPTIONS)?.unwrap_or_default();
    let known = |limit: &&ResourceLimit| naru_runtime::RESOURCE_LIMITS.contains(&limit.name.as_str());
    if let Some(unknown) = options.limits.iter().find(|limit| !known(limit)) {
        return Err(format!("annotation {}: there is no limit called {}", labels::OPTIONS, unknown.name));
    }
    Ok((read(annotations, labels::LIFE)?, options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn annotations_are_read_whole_or_refused() {
        let life = |text: &str| lower(&json!({labels::LIFE: text})).map(|(life, _)| life);
        let read = life(r#"{"run":2,"restart":"on-failure","retries":1}"#).unwrap().unwrap();
        assert_eq!((read.run, read.restart, read.stopped), (2, Restart::OnFailure, false));
        assert!(read.restarts(1, 0) && !read.restarts(1, 1) && !read.restarts(0, 0));
        assert!(life(r#"{"run":1,"sometimes":true}"#).unwrap_err().contains("sometimes"));
        let limits = json!({labels::OPTIONS: r#"{"limits":[{"name":"nofiles","soft":1,"hard":1}]}"#});
        assert!(lower(&limits).unwrap_err().contains("nofiles"));
        assert_eq!(lower(&json!({})), Ok((None, Options::default())));
    }
}
