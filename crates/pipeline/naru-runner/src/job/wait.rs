//! A pod asks the daemon for its job, over one request that is answered when there is one: at once, or later if
//! the pod was started ahead. What the job holds is on no disk and in no object.

use super::{JobFile, fetch};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// The pause before a daemon that does not answer is asked again: it may be restarting.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Waits until the daemon gives this pod its job. `Err` says why it never will.
pub async fn for_job(url: &str, token: &str) -> Result<JobFile, String> {
    // As the first process of its pod nothing ends it that it does not listen for.
    let mut end = signal(SignalKind::terminate()).map_err(|it| it.to_string())?;
    loop {
        let answer = tokio::select! {
            answer = fetch::small(url, token) => answer,
            _ = end.recv() => return Err("the pod ended before there was a job for it".into()),
        };
        match answer {
            Ok((200, body)) => {
                return serde_json::from_slice(&body)
                    .map_err(|it| format!("the job's file is damaged: {it}"));
            }
            // Nothing yet: the daemon ends a request now and then, so that both know the other is there.
            Ok((204, _)) => {}
            Ok((status @ 400..=499, body)) => {
                let said = String::from_utf8_lossy(&body);
                return Err(format!("the daemon has no job for this pod ({status}): {}", said.trim()));
            }
            Ok(_) | Err(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}
