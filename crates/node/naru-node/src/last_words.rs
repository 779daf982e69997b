//! A program's last words: a file that it may write, or the end of its log.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::pod::{DesiredContainer, DesiredPod, MessagePolicy};
use crate::worker::container_id;
use crate::{effects, logs};

/// Kubernetes' bounds for a message, and for one taken from a log.
const MESSAGE_BYTES_MAX: u64 = 4096;
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;

fn path(pod_directory: &Path, id: &str) -> PathBuf {
    pod_directory.join("messages").join(id)
}

/// Makes the file that is bound into the container.
pub fn prepare(pod_directory: &Path, id: &str) -> Result<PathBuf, String> {
    let path = path(pod_directory, id);
    let make = || {
        fs::create_dir_all(pod_directory.join("messages"))?;
        fs::write(&path, b"")?;
        // Whoever the container runs as.
        fs::set_permissions(&path, Permissions::from_mode(0o666))
    };
    make().map_err(|error| format!("cannot make the file for the termination message: {error}"))?;
    Ok(path)
}

/// What the container's status says about its end.
pub fn of(
    pod_directory: &Path,
    pod: &DesiredPod,
    container: &DesiredContainer,
    attempt: u32,
    code: i32,
) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path(pod_directory, &container_id(&container.name, attempt))) {
        let _ = file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes);
    }
    if bytes.is_empty() && code != 0 && container.message_policy == MessagePolicy::FallbackToLogsOnError {
        let log = effects::log_path(pod_directory, &container.name, pod.log_number(attempt));
        bytes = logs::tail(&log, LOG_LINES_MAX, LOG_BYTES_MAX);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::lower_pod;

    #[test]
    fn the_file_wins_and_the_log_speaks_for_a_failure() {
        let directory = tempfile::tempdir().unwrap();
        let pod = lower_pod(&json!({"metadata": {}, "spec": {"containers": [
            {"name": "a", "terminationMessagePolicy": "FallbackToLogsOnError"}, {"name": "b"}]}}));
        let log = effects::log_path(directory.path(), "a", 0);
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        fs::write(
            &log,
            "2026-11-22T01:44:05.000000007Z stdout F out\n2026-11-22T01:44:05.000000007Z stderr F bad\n",
        )
        .unwrap();
        assert_eq!(of(directory.path(), &pod, &pod.containers[0], 0, 1), "out\nbad\n");
        assert_eq!(of(directory.path(), &pod, &pod.containers[0], 0, 0), "");
        assert_eq!(of(directory.path(), &pod, &pod.containers[1], 0, 1), "");
        fs::write(prepare(directory.path(), "a-0").unwrap(), "DONE").unwrap();
        assert_eq!(of(directory.path(), &pod, &pod.containers[0], 0, 1), "DONE");
    }
}
