//! A container as Docker sees it, read from its Pod. Pure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::answer::{NEVER, text};

/// On every pod that is a container of Docker's: the first digits of its id.
pub const LABEL_ID: &str = "docker.naru.dev/id";
/// What of a container never changes and what its Pod cannot say, as JSON.
pub const RECORD: &str = "docker.naru.dev/container";
/// Its name, which may change.
pub const NAME: &str = "docker.naru.dev/name";
/// Its endpoints by the name of the network, as JSON.
pub const ENDPOINTS: &str = "docker.naru.dev/endpoints";
/// What of the request was changed later (`docker update`), as JSON to lay over `HostConfig`.
pub const UPDATED: &str = "docker.naru.dev/updated";
/// Present while its processes are frozen.
pub const PAUSED: &str = "docker.naru.dev/paused";
/// Present once it was stopped by hand.
pub const STOPPED: &str = "docker.naru.dev/stopped-by-hand";
pub const HEALTH: &str = "docker.naru.dev/health";
/// The one container of the pod.
pub const CONTAINER: &str = "main";

/// See [`RECORD`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub id: String,
    pub created: String,
    /// As the user named it.
    pub image: String,
    /// The configuration's digest.
    pub image_id: String,
    /// The manifest's digest.
    pub digest: String,
    /// `Config` of the request laid over the image's.
    pub config: Value,
    pub host_config: Value,
    pub mounts: Vec<MountPoint>,
    /// Host ports, random ones chosen: `80/tcp` and its bindings.
    pub ports: Map<String, Value>,
}

/// Where files of the machine or of a volume are in the container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MountPoint {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: String,
    /// The volume's.
    pub name: String,
    pub source: String,
    pub destination: String,
    pub read_only: bool,
    /// It was made for this container and goes with it.
    pub anonymous: bool,
    /// Copy what the image has there into an empty volume.
    pub copy: bool,
}

/// The annotation [`naru_objects::labels::LIFE`], as the node reads it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Life {
    pub run: u32,
    pub stopped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace: Option<i64>,
    pub restart: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Created,
    Running,
    Paused,
    Restarting,
    Removing,
    Exited,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Removing => "removing",
            Status::Exited => "exited",
        }
    }

    /// Something of it runs or is about to.
    pub fn is_up(self) -> bool {
        matches!(self, Status::Running | Status::Paused | Status::Restarting)
    }
}

/// How it is.
#[derive(Debug, Clone)]
pub struct State {
    pub status: Status,
    pub exit_code: i64,
    pub out_of_memory: bool,
    pub error: String,
    pub started_at: String,
    pub finished_at: String,
    /// Tells lives and restarts apart; empty before the first.
    pub attempt: String,
    pub restarts: u64,
}

#[derive(Debug, Clone)]
pub struct Container {
    pub pod: Arc<Value>,
    pub name: String,
    pub record: Record,
    pub life: Life,
}

impl Container {
    /// `None` for a pod that is no container of Docker's.
    pub fn of(pod: &Arc<Value>) -> Option<Self> {
        let annotations = &pod["metadata"]["annotations"];
        let mut record: Record = serde_json::from_str(annotations[RECORD].as_str()?).ok()?;
        if let Some(Value::Object(updated)) =
            annotations[UPDATED].as_str().and_then(|it| serde_json::from_str(it).ok())
        {
            for (key, value) in updated {
                record.host_config[key] = value;
            }
        }
        let life = annotations[naru_objects::labels::LIFE].as_str()?;
        Some(Self {
            name: annotations[NAME].as_str()?.to_owned(),
            life: serde_json::from_str(life).ok()?,
            record,
            pod: pod.clone(),
        })
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    pub fn pod_name(&self) -> &str {
        naru_objects::name_of(&self.pod)
    }

    pub fn namespace(&self) -> &str {
        text(&self.pod, "/metadata/namespace")
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.pod["metadata"]["annotations"][name].as_str()
    }

    pub fn endpoints(&self) -> Map<String, Value> {
        let read = || serde_json::from_str(self.annotation(ENDPOINTS)?).ok();
        read().unwrap_or_default()
    }

    pub fn has_terminal(&self) -> bool {
        self.record.config["Tty"] == true
    }

    pub fn removes_itself(&self) -> bool {
        self.record.host_config["AutoRemove"] == true
    }

    pub fn labels(&self) -> &Value {
        &self.record.config["Labels"]
    }

    /// `sha256:...` is appended to the name so that a tag that moves changes nothing.
    pub fn pod_image(&self) -> &str {
        text(&self.pod, "/spec/containers/0/image")
    }

    pub fn state(&self) -> State {
        let status = &self.pod["status"]["containerStatuses"][0];
        let (now, last) = (&status["state"], &status["lastState"]["terminated"]);
        let mut state = State {
            status: Status::Created,
            exit_code: 0,
            out_of_memory: false,
            error: String::new(),
            started_at: NEVER.into(),
            finished_at: NEVER.into(),
            attempt: text(status, "/containerID").to_owned(),
            restarts: 0,
        };
        let ended = |state: &mut State, how: &Value| {
            let time = |name: &str| how[name].as_str().unwrap_or(NEVER).to_owned();
            state.exit_code = how["exitCode"].as_i64().unwrap_or(0);
            state.out_of_memory = how["reason"] == "OOMKilled";
            (state.started_at, state.finished_at) = (time("startedAt"), time("finishedAt"));
            if how["reason"] == "StartError" {
                state.error = text(how, "/message").to_owned();
            }
        };
        let phase = text(&self.pod, "/status/phase");
        if now["running"].is_object() {
            let paused = self.annotation(PAUSED).is_some();
            state.status = if paused { Status::Paused } else { Status::Running };
            state.started_at = text(now, "/running/startedAt").to_owned();
            if last.is_object() {
                state.finished_at = last["finishedAt"].as_str().unwrap_or(NEVER).to_owned();
            }
        } else if now["terminated"].is_object() {
            ended(&mut state, &now["terminated"]);
            let over = matches!(phase, "Succeeded" | "Failed");
            state.status = if over { Status::Exited } else { Status::Restarting };
        } else if last.is_object() {
            ended(&mut state, last);
            let again = text(now, "/waiting/reason") == "CrashLoopBackOff";
            state.status = if again { Status::Restarting } else { Status::Exited };
        }
        if !state.error.is_empty() && state.status == Status::Exited && state.started_at == NEVER {
            // It never was: Docker says so, too.
            state.status = Status::Created;
            state.finished_at = NEVER.into();
        }
        if self.pod["metadata"]["deletionTimestamp"].is_string() {
            state.status = Status::Removing;
        }
        // Starts by hand are lives, those by policy are attempts.
        let attempts = status["restartCount"].as_u64().unwrap_or(0);
        state.restarts = attempts.saturating_sub(u64::from(self.life.run.saturating_sub(1)));
        state
    }

    /// Why it does not begin, while it should: an image that is gone, a volume that cannot be mounted.
    pub fn trouble(&self) -> Option<String> {
        let waiting = &self.pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let message = text(waiting, "/message");
        let of_pod = text(&self.pod, "/status/message");
        let found = if message.is_empty() { of_pod } else { message };
        let back_off = waiting["reason"] == "CrashLoopBackOff";
        (!back_off && !found.is_empty()).then(|| found.to_owned())
    }

    /// `Health` of `State`, if there is a check.
    pub fn health(&self) -> Option<Value> {
        crate::health::Check::of(&self.record.config)?;
        let written = self.annotation(HEALTH).and_then(|it| serde_json::from_str::<Value>(it).ok());
        let health = written.unwrap_or_else(|| json!({"Status": "starting", "FailingStreak": 0, "Log": []}));
        Some(json!({
            "Status": health["Status"], "FailingStreak": health["FailingStreak"], "Log": health["Log"],
        }))
    }

    /// What this container's part in an event is told by.
    pub fn event_attributes(&self) -> Value {
        let mut attributes = self.labels().as_object().cloned().unwrap_or_default();
        attributes.insert("image".into(), json!(self.record.image));
        attributes.insert("name".into(), json!(self.name));
        Value::Object(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(run: u32, phase: &str, status: Value) -> Container {
        let record = json!({"id": "ab", "created": "", "image": "i", "imageId": "", "digest": "", "config": {},
            "hostConfig": {}, "mounts": [], "ports": {}});
        let annotations = json!({RECORD: record.to_string(), NAME: "n",
            naru_objects::labels::LIFE: json!({"run": run}).to_string()});
        let pod = json!({"metadata": {"name": "p", "annotations": annotations},
            "status": {"phase": phase, "containerStatuses": [status]}});
        Container::of(&Arc::new(pod)).expect("a container")
    }

    #[test]
    fn states_are_read_from_what_the_node_tells() {
        let end = json!({"exitCode": 3, "reason": "Error", "startedAt": "a", "finishedAt": "b"});
        let failed = json!({"exitCode": 127, "reason": "StartError", "message": "no sh", "finishedAt": "b"});
        for (phase, status, expected, code) in [
            ("Pending", json!({"state": {"waiting": {"reason": "Created"}}}), Status::Created, 0),
            ("Running", json!({"state": {"running": {"startedAt": "a"}}}), Status::Running, 0),
            ("Failed", json!({"state": {"terminated": end}}), Status::Exited, 3),
            ("Running", json!({"state": {"terminated": end}}), Status::Restarting, 3),
            (
                "Running",
                json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": end}}),
                Status::Restarting,
                3,
            ),
            ("Failed", json!({"state": {"terminated": failed}}), Status::Created, 127),
        ] {
            let state = container(1, phase, status).state();
            assert_eq!((state.status, state.exit_code), (expected, code), "{phase}");
        }
    }

    #[test]
    fn starts_by_hand_are_no_restarts() {
        let status = json!({"restartCount": 4, "state": {"running": {"startedAt": "a"}}});
        assert_eq!(container(3, "Running", status).state().restarts, 2);
    }
}
