//! What git's post-receive hook runs: records the push as runs and follows the last of them on the
//! pusher's terminal. The push is complete before this starts; leaving early loses nothing.

use super::logs::{build_logs, follow_change};
use crate::cli::Global;
use crate::connection;
use crate::error::{Error, Result};
use naru_objects::{NAMESPACE, name_of};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// So often the data directory is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long a daemon that is just being restarted is waited for. After that the next start records the push.
const DAEMON_WITHIN: Duration = Duration::from_secs(20);

pub async fn run(global: &Global) -> Result<ExitCode> {
    // Whoever pushed may wait for minutes; with the daemon's data nothing is left to wait for.
    tokio::select! {
        done = record_and_follow(global) => done,
        () = without_data(global) => Ok(ExitCode::SUCCESS),
    }
}

async fn without_data(global: &Global) {
    while global.data_dir.exists() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn record_and_follow(global: &Global) -> Result<ExitCode> {
    let repository = std::env::var("NARU_REPOSITORY")
        .map_err(|_| Error::new("this command is for git's hook").hint("push with `git push` instead"))?;
    let root = global.data_dir.join("git");
    let attempts = async {
        loop {
            let attempt = async {
                let client = connection::client(global).await?;
                let runs = naru_git::record(&client, &root, &repository, NAMESPACE).await?;
                Ok::<_, Error>((client, runs))
            };
            match attempt.await {
                Ok(it) => return it,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    };
    let Ok((client, runs)) = tokio::time::timeout(DAEMON_WITHIN, attempts).await else {
        say("the daemon does not answer; the push is safe and runs when it is back");
        return Ok(ExitCode::SUCCESS);
    };
    let Some(last) = runs.last() else { return Ok(ExitCode::SUCCESS) };
    for earlier in &runs[..runs.len() - 1] {
        say(&format!("{} was recorded, too: naru logs -f run/{}", name_of(earlier), name_of(earlier)));
    }
    match follow_change(&client, name_of(last), &build_logs(global), &mut say).await {
        Ok(_) => {}
        Err(error) => {
            error.print();
            say(&format!("the run goes on: naru logs -f run/{}", name_of(last)));
        }
    }
    // The push itself was fine, whatever became of the change.
    Ok(ExitCode::SUCCESS)
}

/// Nobody may be listening any more; that is no reason to stop.
fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
