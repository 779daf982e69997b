//! A Docker action in a job's pod: a further container of the same pod, which the daemon starts when it is asked.
//!
//! Three processes of ours take part. The job starts a client ([`ask`]) as it starts any program of a step, so
//! that output, time limits and signals are those of every step. The client asks the daemon and prints what the
//! container says. In the container, [`run`] starts the action's program with what the job left in a file of the
//! workspace that both share: so nothing of it is in the pod's object.

use super::fetch;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// What the client is told, in a file that it removes.
#[derive(Serialize, Deserialize)]
pub struct Question {
    /// Where the daemon starts containers beside this pod, and with what the job proves itself.
    pub url: String,
    pub token: String,
    pub request: Request,
    /// What the image is made of first, if it is none that is named.
    pub build: Option<Build>,
    /// Somebody wants the container to end as soon as this file is there.
    pub stop: PathBuf,
}

/// A directory and the Dockerfile in it.
#[derive(Serialize, Deserialize)]
pub struct Build {
    pub directory: PathBuf,
    pub dockerfile: String,
}

/// What the daemon is told.
#[derive(Serialize, Deserialize)]
pub struct Request {
    pub image: String,
    /// The file with the [`Start`].
    pub start: PathBuf,
}

/// What is to be started in the container.
#[derive(Serialize, Deserialize)]
pub struct Start {
    /// In place of the image's own.
    pub entrypoint: Option<String>,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub directory: PathBuf,
    pub stop: PathBuf,
}

/// What the daemon tells of the container, a line of JSON each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Said {
    Line(String),
    Exit(i32),
    /// What was built.
    Image(String),
    /// It never ran.
    Error(String),
}

/// How often the container looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// From the request to end to the end, as for any step.
const END_WITHIN: Duration = Duration::from_millis(7500);

/// An action's directory is a part of a repository; more than this is none.
const CONTEXT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The client: prints what the container says and ends as it does.
pub async fn ask(file: &Path, out: &mut (dyn Write + Send)) -> Result<i32, String> {
    let text = std::fs::read(file).map_err(|it| format!("cannot read {}: {it}", file.display()))?;
    let _ = std::fs::remove_file(file);
    let mut question: Question = serde_json::from_slice(&text).map_err(|it| it.to_string())?;
    if let Some(build) = &question.build {
        let context = packed(&build.directory).map_err(|it| format!("cannot pack the action: {it}"))?;
        let dockerfile = naru_objects::percent_encode(&build.dockerfile);
        let url = format!("{}/images?dockerfile={dockerfile}", question.url);
        match told(&question, &url, "application/x-tar", context, out).await? {
            Said::Image(image) => question.request.image = image,
            other => return Err(format!("the build ended with {other:?}")),
        }
    }
    let body = serde_json::to_vec(&question.request).expect("a request always serialises");
    match told(&question, &format!("{}/containers", question.url), "application/json", body, out).await? {
        Said::Exit(code) => Ok(code),
        other => Err(format!("the container ended with {other:?}")),
    }
}

/// Asks the daemon and prints what it tells until its last word. A signal asks the container to end.
async fn told(
    question: &Question,
    url: &str,
    kind: &str,
    body: Vec<u8>,
    out: &mut (dyn Write + Send),
) -> Result<Said, String> {
    let listen = |kind| signal(kind).expect("a runtime with I/O enabled can listen for signals");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    let mut answer = fetch::post(url, &question.token, kind, body).await.map_err(|it| it.to_string())?;
    let mut rest = Vec::new();
    loop {
        tokio::select! {
            _ = interrupt.recv() => drop(std::fs::write(&question.stop, "")),
            _ = terminate.recv() => drop(std::fs::write(&question.stop, "")),
            piece = answer.next() => {
                let Some(piece) = piece.map_err(|it| it.to_string())? else {
                    return Err(match String::from_utf8_lossy(&rest).trim() {
                        "" => "the daemon went away; how the container ended is not known".into(),
                        said => said.to_owned(),
                    });
                };
                rest.extend_from_slice(&piece);
                while let Some(end) = rest.iter().position(|it| *it == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    match serde_json::from_slice(&line) {
                        Ok(Said::Line(line)) => drop(writeln!(out, "{line}")),
                        Ok(Said::Error(error)) => return Err(error),
                        Ok(last) => return Ok(last),
                        Err(_) => return Err(String::from_utf8_lossy(&line).trim().to_owned()),
                    }
                }
            }
        }
    }
}

/// A directory as a tar archive; links stay links.
fn packed(directory: &Path) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", directory)?;
    let bytes = archive.into_inner()?;
    if bytes.len() > CONTEXT_BYTES_MAX {
        return Err(std::io::Error::other(format!("it has more than {} MiB", CONTEXT_BYTES_MAX >> 20)));
    }
    Ok(bytes)
}

/// In the container: starts the program and ends as it does. `image` is the image's own entrypoint and command.
pub async fn run(file: &Path, entrypoint: &[String], command: &[String]) -> Result<i32, String> {
    let text = std::fs::read(file).map_err(|it| format!("cannot read {}: {it}", file.display()))?;
    let _ = std::fs::remove_file(file);
    let start: Start = serde_json::from_slice(&text).map_err(|it| it.to_string())?;
    let mut words = match &start.entrypoint {
        Some(it) => vec![it.clone()],
        None => entrypoint.to_vec(),
    };
    // As `docker run`: arguments take the place of the image's command.
    let own = start.args.is_empty() && start.entrypoint.is_none();
    words.extend(if own { command.to_vec() } else { start.args.clone() });
    let Some((program, args)) = words.split_first() else {
        return Err("the image says nothing of what to start; give an entrypoint".into());
    };
    let mut child = Command::new(program)
        .args(args)
        .envs(start.env)
        .env_remove(crate::controller::WAIT_TOKEN)
        .env("PWD", &start.directory)
        .current_dir(&start.directory)
        .spawn()
        .map_err(|it| format!("cannot start `{program}`: {it}"))?;
    let status = ended(&mut child, &start.stop).await.map_err(|it| it.to_string())?;
    use std::os::unix::process::ExitStatusExt;
    Ok(status.code().or_else(|| status.signal().map(|it| 128 + it)).unwrap_or(1))
}

async fn ended(child: &mut Child, stop: &Path) -> std::io::Result<ExitStatus> {
    loop {
        tokio::select! {
            status = child.wait() => return status,
            () = tokio::time::sleep(LOOK) => {}
        }
        if stop.exists() {
            let pid = child.id().and_then(|it| i32::try_from(it).ok()).map(nix::unistd::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            }
            return match tokio::time::timeout(END_WITHIN, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    child.kill().await?;
                    child.wait().await
                }
            };
        }
    }
}
