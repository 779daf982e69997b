//! What the node must still know about a pod after a crash, beside what shims and exit files know.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::state::{CommitState, ContainerState, Ended, Observed, Phase, SandboxState};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Present while the sandbox has it.
    pub address: Option<String>,
    pub started_at: Option<Timestamp>,
    pub failed: Option<(String, String)>,
    /// The pod was finished and torn down.
    pub gone: bool,
    #[serde(default)]
    pub run: u32,
    pub containers: BTreeMap<String, ContainerRecord>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    pub attempt: u32,
    pub digest: String,
    pub stop_signal: Option<String>,
    pub streak: u32,
    pub ready: bool,
    pub started: bool,
    #[serde(default)]
    pub hooked: bool,
    #[serde(default)]
    pub replace: bool,
    #[serde(default)]
    pub image_name: String,
    #[serde(default)]
    pub resources: serde_json::Value,
    pub committed: bool,
    #[serde(default)]
    pub first_attempt: u32,
    /// The attempt was given to the shim, which may or may not have begun it.
    pub begun: bool,
    pub ended: Option<Ended>,
    pub last: Option<Ended>,
}

impl Record {
    pub fn new(uid: &str, namespace: &str, name: &str, seen: &Observed) -> Self {
        let address = match &seen.sandbox {
            SandboxState::Ready { address } => Some(address.clone()),
            _ => None,
        };
        let containers =
            seen.containers.iter().map(|(name, state)| (name.clone(), ContainerRecord::new(state)));
        Self {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            address,
            started_at: seen.started_at,
            failed: seen.failed.clone(),
            gone: seen.sandbox == SandboxState::Gone,
            run: seen.run,
            containers: containers.collect(),
        }
    }

    pub fn load(pod_directory: &Path) -> io::Result<Record> {
        Ok(serde_json::from_slice(&fs::read(pod_directory.join("record.json"))?)?)
    }

    /// Survives the daemon, not a power cut: after one the pod starts over anyway.
    pub fn save(&self, pod_directory: &Path) -> io::Result<()> {
        fs::create_dir_all(pod_directory)?;
        let temporary = pod_directory.join("record.tmp");
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, pod_directory.join("record.json"))
    }

    /// All pods that have files here, with their records; `None` where the record is unreadable.
    pub fn load_all(pods_directory: &Path) -> Vec<(PathBuf, Option<Record>)> {
        let entries = fs::read_dir(pods_directory).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .map(|path| {
                let record = Record::load(&path).ok();
                (path, record)
            })
            .collect()
    }

    /// The state that can be told from the record alone; running containers are still unknown.
    pub fn to_observed(&self) -> Observed {
        let containers =
            self.containers.iter().map(|(name, record)| (name.clone(), record.to_state())).collect();
        Observed {
            sandbox: if self.gone { SandboxState::Gone } else { SandboxState::Absent },
            containers,
            run: self.run,
            started_at: self.started_at,
            failed: self.failed.clone(),
            ..Observed::default()
        }
    }
}

impl ContainerRecord {
    fn new(state: &ContainerState) -> Self {
        let ended = match &state.phase {
            Phase::Ended(ended) => Some(ended.clone()),
            _ => None,
        };
        Self {
            attempt: state.attempt,
            digest: state.digest.clone(),
            stop_signal: state.stop_signal.clone(),
            streak: state.streak,
            ready: state.ready,
            started: state.started,
            hooked: state.hooked,
            replace: state.replace,
            image_name: state.image_name.clone(),
            resources: state.resources.clone(),
            first_attempt: state.first_attempt,
            committed: state.commit == CommitState::Done,
            begun: matches!(state.phase, Phase::Starting | Phase::Running { .. }),
            ended,
            last: state.last.clone(),
        }
    }

    fn to_state(&self) -> ContainerState {
        ContainerState {
            attempt: self.attempt,
            digest: self.digest.clone(),
            stop_signal: self.stop_signal.clone(),
            streak: self.streak,
            ready: self.ready,
            started: self.started,
            hooked: self.hooked,
            replace: self.replace,
            image_name: self.image_name.clone(),
            resources: self.resources.clone(),
            first_attempt: self.first_attempt,
            commit: if self.committed { CommitState::Done } else { CommitState::Wanted },
            phase: self.ended.clone().map_or(Phase::Waiting, Phase::Ended),
            last: self.last.clone(),
            ..ContainerState::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_brings_back_what_was_known() {
        let mut seen =
            Observed { sandbox: SandboxState::Ready { address: "10.0.0.2".into() }, ..Observed::default() };
        let state = seen.containers.entry("a".into()).or_default();
        (state.attempt, state.streak, state.ready) = (3, 2, true);
        state.phase = Phase::Running { since: Timestamp::UNIX_EPOCH };
        let record = Record::new("u", "n", "p", &seen);
        let directory = tempfile::tempdir().unwrap();
        record.save(&directory.path().join("u")).unwrap();
        let all = Record::load_all(directory.path());
        assert_eq!(all[0].1.as_ref(), Some(&record));
        assert!(record.containers["a"].begun);
        let back = record.to_observed();
        assert_eq!((back.containers["a"].attempt, back.containers["a"].ready), (3, true));
        assert_eq!(back.sandbox, SandboxState::Absent, "whether the shim lives is for the shim to say");
    }
}
