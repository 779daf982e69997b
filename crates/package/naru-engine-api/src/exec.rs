//! `docker exec`. What was made and not started, and how it ended, is known for as long as this process lives,
//! as in Docker.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::answer::{Query, created, is_set, json as answer, json_body, nothing, streamed, text, texts};
use crate::attach::{
    DetachKeys, Left, MULTIPLEXED, RAW, Wanted, carry, drain, frame, size_of, switched, upgrade_of,
};
use crate::container::{Container, Status};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::names::random_id;
use crate::node::{ExecSpec, Session};

/// Finished ones are forgotten beyond this many.
const KEPT_MAX: usize = 512;

#[derive(Debug, Clone)]
struct Exec {
    container: String,
    spec: ExecSpec,
    stdout: bool,
    stderr: bool,
    detach_keys: String,
    started: bool,
    running: bool,
    exit_code: Option<i32>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
    number: u64,
}

#[derive(Default)]
pub struct Execs(Mutex<HashMap<String, Exec>>);

impl Execs {
    fn insert(&self, id: String, mut exec: Exec) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        exec.number = all.values().map(|it| it.number + 1).max().unwrap_or(0);
        if all.len() >= KEPT_MAX {
            let oldest = all.iter().filter(|(_, it)| !it.running).min_by_key(|(_, it)| it.number);
            if let Some(id) = oldest.map(|(id, _)| id.clone()) {
                all.remove(&id);
            }
        }
        all.insert(id, exec);
    }

    fn get(&self, id: &str) -> Result<Exec> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(id).cloned().ok_or_else(|| Error::missing(format!("No such exec instance: {id}")))
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Exec)) {
        if let Some(exec) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(id) {
            change(exec);
        }
    }

    /// Ids of what was made for a container and has not ended.
    pub fn of(&self, container: &str) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = all.iter().filter(|(_, it)| it.container == container && it.exit_code.is_none());
        ours.map(|(id, _)| id.clone()).collect()
    }
}

fn running(engine: &Engine, wanted: &str) -> Result<Container> {
    let container = engine.container(wanted)?;
    match container.state().status {
        Status::Running => Ok(container),
        Status::Paused => Err(Error::conflict(format!(
            "Container {} is paused, unpause the container before exec",
            container.name
        ))),
        Status::Restarting => Err(Error::conflict(format!(
            "Container {} is restarting, wait until the container is running",
            container.id()
        ))),
        _ => Err(Error::conflict(format!("container {} is not running", container.id()))),
    }
}

pub async fn create(
    State(engine): State<Engine>,
    Path(wanted): Path<String>,
    body: Body,
) -> Result<Response> {
    let request = json_body(body).await?;
    let container = running(&engine, &wanted)?;
    let command = texts(&request["Cmd"]);
    if command.is_empty() {
        return Err(Error::bad("No exec command specified"));
    }
    let environment = texts(&request["Env"]);
    let spec = ExecSpec {
        environment: environment
            .iter()
            .filter_map(|it| it.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        working_directory: Some(text(&request, "/WorkingDir")).filter(|it| !it.is_empty()).map(Into::into),
        user: Some(text(&request, "/User")).filter(|it| !it.is_empty()).map(str::to_owned),
        privileged: request["Privileged"] == true,
        stdin: request["AttachStdin"] == true,
        tty: request["Tty"] == true,
        command,
    };
    let keys = text(&request, "/DetachKeys").to_owned();
    DetachKeys::parse(Some(keys.as_str()).filter(|it| !it.is_empty()))?;
    let id = random_id();
    let told = format!("exec_create: {}", spec.command.join(" "));
    engine.execs.insert(
        id.clone(),
        Exec {
            container: container.id().to_owned(),
            spec,
            stdout: request["AttachStdout"] == true,
            stderr: request["AttachStderr"] == true,
            detach_keys: keys,
            started: false,
            running: false,
            exit_code: None,
            resize: None,
            number: 0,
        },
    );
    engine.tell_container(&told, &container, json!({"execID": id}));
    Ok(created(json!({"Id": id})))
}

pub async fn start(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    mut request: Request<Body>,
) -> Result<Response> {
    let upgrade = upgrade_of(&mut request);
    let order = json_body(request.into_body()).await?;
    let exec = engine.execs.get(&id)?;
    if exec.started {
        return Err(Error::conflict(format!("Error: Exec command {id} has already run")));
    }
    let container = running(&engine, &exec.container)?;
    let mut spec = exec.spec.clone();
    spec.stdin &= order["Detach"] != true;
    engine.execs.change(&id, |it| it.started = true);
    let tty = spec.tty;
    let wanted = Wanted {
        stdin: spec.stdin,
        stdout: exec.stdout,
        stderr: exec.stderr,
        tty,
        detach: DetachKeys::parse(Some(exec.detach_keys.as_str()).filter(|it| !it.is_empty()))?,
    };
    let size = order["ConsoleSize"].as_array().filter(|it| it.len() == 2 && it.iter().all(is_set)).cloned();
    if let (Some(upgrade), false) = (upgrade, order["Detach"] == true) {
        // The connection is a stream before the command begins: clients lose what comes with the head.
        tokio::spawn(async move {
            let Ok(connection) = upgrade.await else { return };
            let mut connection = TokioIo::new(connection);
            match begin(&engine, &container, &id, spec, size).await {
                Ok(session) => serve(engine, container, id, session, connection, wanted).await,
                Err(error) => {
                    // As Docker does it: what there is to say is shown in the stream.
                    let line = format!("{}\r\n", error.message);
                    let bytes = if tty { line.into_bytes().into() } else { frame(1, line.as_bytes()) };
                    let _ = tokio::io::AsyncWriteExt::write_all(&mut connection, &bytes).await;
                    let _ = tokio::io::AsyncWriteExt::shutdown(&mut connection).await;
                }
            }
        });
        return Ok(switched(tty));
    }
    let session = begin(&engine, &container, &id, spec, size).await?;
    if order["Detach"] == true {
        let nowhere = tokio::io::join(tokio::io::empty(), tokio::io::sink());
        tokio::spawn(serve(engine, container, id, session, nowhere, wanted));
        return Ok(nothing());
    }
    let (ours, theirs) = tokio::io::duplex(32 * 1024);
    tokio::spawn(serve(engine, container, id, session, theirs, wanted));
    let kind = if tty { RAW } else { MULTIPLEXED };
    Ok(streamed(kind, tokio_util::io::ReaderStream::new(ours)))
}

async fn begin(
    engine: &Engine,
    container: &Container,
    id: &str,
    spec: ExecSpec,
    size: Option<Vec<Value>>,
) -> Result<Session> {
    let told = format!("exec_start: {}", spec.command.join(" "));
    let session = match engine.node.exec(container.namespace(), container.pod_name(), spec).await {
        Ok(session) => session,
        Err(error) => {
            let text = error.to_string();
            // Clients make their own exit code of the words.
            let (code, words) = match () {
                () if text.contains("cannot be executed") => (126, ": permission denied"),
                () if text.contains("not found") => (127, ": executable file not found in $PATH"),
                () => (126, ""),
            };
            engine.execs.change(id, |it| it.exit_code = Some(code));
            return Err(Error::bad(format!("OCI runtime exec failed: exec failed: {text}{words}")));
        }
    };
    engine.execs.change(id, |it| {
        it.running = true;
        it.resize = session.resize.clone();
    });
    if let (Some(resize), Some(size)) = (&session.resize, size) {
        let number = |it: &Value| it.as_u64().and_then(|it| u16::try_from(it).ok()).unwrap_or(0);
        let _ = resize.send((number(&size[1]), number(&size[0]))).await;
    }
    engine.tell_container(&told, container, json!({"execID": id}));
    Ok(session)
}

async fn serve(
    engine: Engine,
    container: Container,
    id: String,
    mut session: Session,
    mut connection: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin,
    wanted: Wanted,
) {
    use tokio::io::AsyncWriteExt;
    // The exit code is known before the client sees the end: it asks for it at once.
    let (held, theirs) = tokio::io::duplex(32 * 1024);
    let carried = async {
        let left = carry(&mut session, theirs, wanted).await;
        if left != Left::Ended {
            // The command goes on without its client.
            drain(&mut session).await;
        }
        let code = (&mut session.exit).await.unwrap_or(-1);
        engine.execs.change(&id, |it| {
            it.running = false;
            it.exit_code = Some(code);
            it.resize = None;
        });
        code
    };
    let relayed = async {
        let (mut from_client, mut to_client) = tokio::io::split(&mut connection);
        let (mut out, mut input) = tokio::io::split(held);
        let typed = async {
            let _ = tokio::io::copy(&mut from_client, &mut input).await;
            let _ = input.shutdown().await;
            std::future::pending::<()>().await
        };
        let shown = async {
            let _ = tokio::io::copy(&mut out, &mut to_client).await;
            let _ = to_client.flush().await;
        };
        tokio::select! {
            () = typed => {}
            () = shown => {}
        }
    };
    let (code, ()) = tokio::join!(carried, relayed);
    engine.tell_container("exec_die", &container, json!({"execID": id, "exitCode": code.to_string()}));
    let _ = connection.shutdown().await;
}

pub async fn resize(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response> {
    let size = size_of(&Query::parse(query.as_deref()))?;
    let exec = engine.execs.get(&id)?;
    match exec.resize {
        Some(resize) if exec.running => {
            let _ = resize.send(size).await;
            Ok(nothing())
        }
        _ => Err(Error::conflict("process is not running or has no terminal")),
    }
}

pub async fn inspect(State(engine): State<Engine>, Path(id): Path<String>) -> Result<Response> {
    let exec = engine.execs.get(&id)?;
    let (program, arguments) = exec.spec.command.split_first().expect("checked when it was made");
    Ok(answer(json!({
        "ID": id, "Running": exec.running, "ExitCode": exec.exit_code, "ContainerID": exec.container,
        "OpenStdin": exec.spec.stdin, "OpenStdout": exec.stdout, "OpenStderr": exec.stderr, "CanRemove": false,
        "DetachKeys": exec.detach_keys, "Pid": 0,
        "ProcessConfig": {"tty": exec.spec.tty, "entrypoint": program, "arguments": arguments,
            "privileged": exec.spec.privileged, "user": exec.spec.user.clone().unwrap_or_default()},
    })))
}
